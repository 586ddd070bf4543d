//! Conversations: types, answers, and streams of tokens.

use bytes::Bytes;
use millrace::channels::{Actor, ChannelOptions, EntryType, Gaps, NewEntry, Notice, in_senders_order};

use super::{Stage, by, code, free, heard, label, labels, next, numbered, party, soon, text, texts};

pub async fn k19_an_entry_is_data_unless_its_type_says_that_its_sender_is_done(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("ann", 0).await;
    talk.say("eve", 1, "token1").await;
    talk.say("eve", 2, "token2").await;
    let ended = talk
        .router
        .append_with_type(&talk.id, &party("eve"), 3, None, "all of it", EntryType::End)
        .await
        .unwrap();
    assert_eq!(ended.position.0, 3);
    talk.try_end("ann", 1, EntryType::Error).await.unwrap();
    let expected = [
        ("eve1", EntryType::Data, "token1"),
        ("eve2", EntryType::Data, "token2"),
        ("eve3", EntryType::End, "all of it"),
        ("ann1", EntryType::Error, ""),
    ];
    let read = talk.read(0).await;
    let mut pushed = Vec::new();
    while pushed.len() < 4 {
        let Notice::Entries(entries) = next(&mut follower).await else { panic!() };
        pushed.extend(entries);
    }
    for entries in [&read, &pushed] {
        let found: Vec<_> = entries.iter().map(|e| (label(e), e.entry_type, text(e))).collect();
        let expected = expected.map(|(label, kind, text)| (label.to_owned(), kind, text.to_owned()));
        assert_eq!(found, expected);
    }
    let names = [EntryType::Data, EntryType::End, EntryType::Error].map(EntryType::as_str);
    assert_eq!(names, ["data", "end", "error"]);
    assert_eq!(names.map(EntryType::parse), [EntryType::Data, EntryType::End, EntryType::Error].map(Some));
    assert_eq!(EntryType::parse(""), Some(EntryType::Data));
    // The reference takes any text for a type.
    assert_eq!((EntryType::parse("End"), EntryType::parse("done")), (None, None));
}

pub async fn an_error_carries_its_text_beside_its_payload_and_nothing_else_has_one(stage: Stage) {
    let talk = stage.free().await;
    let failed = NewEntry {
        error: Some("the model is gone".into()),
        ..NewEntry::data(1, &b"\xff\x00"[..]).of_type(EntryType::Error)
    };
    let with_text = |entry_type| NewEntry { entry_type, ..failed.clone() };
    for entry_type in [EntryType::Data, EntryType::End] {
        let refused = talk.append("eve", vec![with_text(entry_type)]).await;
        assert_eq!(code(refused), "channel_entry_invalid");
    }
    talk.append("eve", vec![failed.clone()]).await.unwrap();
    let read = talk.read(0).await;
    assert_eq!(read[0].error.as_deref(), Some("the model is gone"));
    assert_eq!(read[0].payload, Some(Bytes::from_static(b"\xff\x00")));
    let other = NewEntry { error: Some("something else".into()), ..failed.clone() };
    assert_eq!(code(talk.append("eve", vec![other]).await), "channel_sequence_taken");
    assert!(talk.append("eve", vec![failed]).await.unwrap()[0].repeated);
}

pub async fn k20_questions_and_answers_go_to_and_fro(stage: Stage) {
    let talk = stage.free().await;
    let (id, router) = (&talk.id, &talk.router);
    let (ann, eve) = (party("ann"), party("eve"));
    let read = |who: &'static str, index| async move {
        router.read_after(id, &by(who), index, 0).await.unwrap().entries
    };
    router.append(id, &ann, 1, None, "Q1").await.unwrap();
    let asked = read("eve", 0).await;
    assert_eq!((texts(&asked), asked[0].in_reply_to), (vec!["Q1".to_owned()], None));
    router.append(id, &eve, 1, Some(asked[0].sequence), "A1").await.unwrap();
    let answered = read("ann", 1).await;
    assert_eq!((texts(&answered), answered[0].in_reply_to), (vec!["A1".to_owned()], Some(1)));
    router.append(id, &ann, 2, None, "Q2").await.unwrap();
    let asked = read("eve", 2).await;
    assert_eq!(texts(&asked), ["Q2"]);
    router.append(id, &eve, 2, Some(asked[0].sequence), "A2").await.unwrap();
    let all = read("oscar", 0).await;
    assert_eq!(texts(&all), ["Q1", "A1", "Q2", "A2"]);
    let replies: Vec<_> = all.iter().map(|entry| entry.in_reply_to).collect();
    assert_eq!(replies, [None, Some(1), None, Some(2)]);
}

pub async fn k21_tokens_of_an_answer_come_together_in_order(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("ann", 0).await;
    talk.say("ann", 1, "prompt").await;
    for (sequence, token) in (1..).zip(["to", "ge", "th", "er"]) {
        talk.router.append(&talk.id, &party("eve"), sequence, Some(1), token).await.unwrap();
    }
    talk.end("eve", 5).await;
    assert_eq!(heard(&mut follower, 6).await, ["ann1", "eve1", "eve2", "eve3", "eve4", "eve5"]);
    let read = talk.read(1).await;
    let replies = read.iter().filter(|entry| entry.in_reply_to == Some(1));
    assert_eq!(replies.map(|entry| text(entry)).collect::<String>(), "together");
}

pub async fn k21_a_view_puts_what_arrived_out_of_order_into_the_order_of_the_senders(stage: Stage) {
    let options = ChannelOptions { gaps: Gaps::Arrival, ..ChannelOptions::default() };
    let talk = stage.talk(free(), options).await;
    let mut follower = talk.follow("ann", 0).await;
    for (who, sequence) in [("ann", 1), ("ann", 2), ("eve", 2)] {
        talk.say(who, sequence, "x").await;
    }
    let before = talk.read(0).await;
    assert_eq!(labels(&before), ["ann1", "ann2", "eve2"]);
    talk.say("eve", 1, "x").await;
    let view = talk.router.read_in_senders_order(&talk.id, &by("ann")).await.unwrap();
    assert_eq!(labels(&view), ["ann1", "ann2", "eve1", "eve2"]);
    // The reference sorts the log itself: a reader that had three entries gets `eve2` twice and `eve1` never.
    assert_eq!(labels(&talk.read(3).await), ["eve1"]);
    assert_eq!(talk.read(0).await[..3], before[..]);
    assert_eq!(heard(&mut follower, 4).await, ["ann1", "ann2", "eve2", "eve1"]);
    assert_eq!(labels(&in_senders_order(&view)), labels(&view), "what is in order stays as it is");
}

/// The reference sorts by a rule that goes round in a circle here, and leaves `eve1` behind `eve2`.
pub async fn a_view_has_every_sender_in_order_where_neighbours_cannot_be_compared(stage: Stage) {
    let options = ChannelOptions { gaps: Gaps::Arrival, ..ChannelOptions::default() };
    let talk = stage.talk(free(), options).await;
    for (who, sequence) in [("ann", 1), ("eve", 2), ("ann", 2), ("eve", 1)] {
        talk.say(who, sequence, "x").await;
    }
    let view = talk.router.read_in_senders_order(&talk.id, &by("ann")).await.unwrap();
    let of = |who: &str| -> Vec<u64> {
        view.iter().filter(|entry| entry.sender == party(who)).map(|entry| entry.sequence).collect()
    };
    assert_eq!((of("ann"), of("eve")), (vec![1, 2], vec![1, 2]));
    assert_eq!(code(talk.router.read_in_senders_order(&talk.id, &by("mallory")).await), "channel_forbidden");
}

pub async fn k21_a_channel_that_holds_has_the_senders_order_in_its_log(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "x").await;
    talk.say("ann", 2, "x").await;
    let (second, first) =
        soon(async { tokio::join!(talk.say("eve", 2, "x"), talk.say("eve", 1, "x")) }).await;
    assert_eq!((first.position.0, second.position.0), (3, 4));
    assert_eq!(talk.log().await, ["ann1", "ann2", "eve1", "eve2"]);
}

pub async fn an_answer_is_to_something_that_another_sender_has_sent(stage: Stage) {
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["Q1", "Q2"])).await.unwrap();
    talk.append("eve", numbered(1, &["a", "b", "c"])).await.unwrap();
    let reply = |to| NewEntry::data(4, "re").replying_to(to);
    for unknown in [0, 3, 4, 99] {
        let refused = talk.append("eve", vec![reply(unknown)]).await;
        assert_eq!(code(refused), "channel_reply_unknown", "to {unknown}: only eve has sent it, or nobody");
    }
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 5);
    talk.append("eve", vec![reply(2)]).await.unwrap();
    assert_eq!(talk.read(5).await[0].in_reply_to, Some(2));
    // What a former executor has sent can still be answered.
    talk.assign("eli").await;
    let answer = NewEntry::data(3, "to eve").replying_to(4);
    talk.append("ann", vec![answer]).await.unwrap();
    // Who talks to itself answers itself.
    talk.assign("ann").await;
    talk.append("ann", vec![NewEntry::data(4, "to myself").replying_to(3)]).await.unwrap();
    let newest = talk.router.read_after(&talk.id, &Actor::Host, 7, 0).await.unwrap();
    assert_eq!(labels(&newest.entries), ["ann4"]);
}
