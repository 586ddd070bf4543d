//! A sender's numbers: repeats answer the first position, and what has a forerunner missing waits, is refused or is taken.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use millrace::channels::{
    Actor, Append, Change, ChannelError, ChannelLimits, ChannelOptions, EntryType, Gaps, NewEntry, Outcome,
    WhenFull,
};
use millrace::limits::{CHANNEL_AHEAD_MAX, CHANNEL_ENTRY_BYTES, CHANNEL_SEQUENCE_MAX};

use super::{
    Stage, Talk, batch, channel_of, code, free, heard, label, labels, limit, numbered, party, positions,
    soon, talk_of, text, work,
};

pub async fn a_repeat_answers_the_first_position_and_adds_nothing(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("eve", 0).await;
    let first = talk.say("ann", 1, "a").await;
    talk.say("eve", 1, "b").await;
    let again = talk.say("ann", 1, "a").await;
    assert_eq!((first.repeated, again.repeated), (false, true));
    assert_eq!((again.position, again.epoch, again.sequence), (first.position, 0, 1));
    assert_eq!(talk.log().await, ["ann1", "eve1"]);
    // Another sender's first entry is another entry, whatever it says.
    talk.say("eve", 2, "a").await;
    assert_eq!(heard(&mut follower, 3).await, ["ann1", "eve1", "eve2"], "nobody hears of a repeat");
}

pub async fn a_repeat_within_one_append_is_one_entry(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    let entries = [numbered(1, &["a", "b"]), numbered(2, &["b", "c"]), numbered(1, &["a"])].concat();
    let appended = talk.append("ann", entries).await.unwrap();
    assert_eq!(positions(&appended), [1, 2, 2, 3, 1]);
    let repeated: Vec<bool> = appended.iter().map(|one| one.repeated).collect();
    assert_eq!(repeated, [true, false, true, false, true]);
    assert_eq!(talk.log().await, ["ann1", "ann2", "ann3"]);
    let differs = [numbered(4, &["d"]), numbered(4, &["e"])].concat();
    assert_eq!(code(talk.append("ann", differs).await), "channel_sequence_taken");
    assert_eq!(talk.log().await.len(), 3, "all of it or nothing");
}

pub async fn a_number_that_says_something_else_is_taken(stage: Stage) {
    let talk = stage.free().await;
    talk.append("eve", numbered(1, &["q"])).await.unwrap();
    talk.append("ann", numbered(1, &["a"])).await.unwrap();
    let same = NewEntry::data(1, "a");
    for other in [
        NewEntry::data(1, "b"),
        NewEntry::data(1, ""),
        NewEntry { payload: None, ..same.clone() },
        same.clone().of_type(EntryType::End),
        same.clone().replying_to(1),
    ] {
        match talk.append("ann", vec![other.clone()]).await {
            Err(ChannelError::SequenceTaken { position, sequence: 1, epoch: 0, .. }) => {
                assert_eq!(position.0, 2, "{other:?}");
            }
            answered => panic!("{other:?}: {answered:?}"),
        }
    }
    assert_eq!(text(&talk.read(1).await[0]), "a", "what is there stays");
}

pub async fn a_repeat_is_answered_after_the_end_too(stage: Stage) {
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["a", "b"])).await.unwrap();
    let end = talk.end("ann", 3).await;
    assert!(talk.say("ann", 2, "b").await.repeated, "its half is closed");
    assert_eq!(talk.end("ann", 3).await.position, end.position);
    talk.close(Outcome::Success).await;
    let again = talk.append("ann", numbered(1, &["a", "b"])).await.unwrap();
    assert_eq!(positions(&again), [1, 2]);
    assert_eq!(code(talk.try_say("ann", 2, "other").await), "channel_sequence_taken");
    assert_eq!(code(talk.try_say("ann", 4, "new").await), "process_closed");
    assert_eq!(code(talk.try_say("eve", 1, "new").await), "process_closed");
}

pub async fn a_repeat_of_what_was_dropped_is_not_appended_again(stage: Stage) {
    let options = ChannelOptions { full: WhenFull::DropOldest, entries_max: 2, ..free().default_options() };
    let talk = stage.talk(free(), options).await;
    for sequence in 1..=4 {
        talk.say("ann", sequence, "x").await;
    }
    for sequence in [1, 2] {
        assert_eq!(code(talk.try_say("ann", sequence, "x").await), "channel_sequence_forgotten");
    }
    assert!(talk.say("ann", 3, "x").await.repeated);
    assert_eq!(talk.log().await, ["ann3", "ann4"]);
}

/// The reference takes 0 and less, and cannot refer to them.
pub async fn numbers_begin_with_one_and_end_where_every_client_can_count(stage: Stage) {
    let talk = stage.free().await;
    for sequence in [0, CHANNEL_SEQUENCE_MAX + 1, u64::MAX] {
        assert_eq!(code(talk.try_say("ann", sequence, "x").await), "channel_sequence_invalid");
    }
    assert_eq!(CHANNEL_SEQUENCE_MAX, 9_007_199_254_740_991);
    assert_eq!(talk.log().await, [""; 0]);
}

pub async fn an_entry_without_a_number_takes_the_next(stage: Stage) {
    let talk = stage.free().await;
    let unnumbered = |text: &'static str| NewEntry { sequence: None, ..NewEntry::data(1, text) };
    let mut sequences = Vec::new();
    for entries in [
        vec![unnumbered("a"), unnumbered("a")],
        numbered(3, &["c"]),
        vec![unnumbered("a"), NewEntry::data(5, "e"), unnumbered("f")],
    ] {
        let appended = talk.append("ann", entries).await.unwrap();
        assert!(appended.iter().all(|one| !one.repeated), "{appended:?}");
        sequences.extend(appended.iter().map(|one| one.sequence));
    }
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
}

/// Three on their way at once arrive in any order.
pub async fn what_comes_too_early_waits_for_its_forerunners(stage: Stage) {
    let talk = stage.free().await;
    for first in (1..=30).step_by(3) {
        let say = |sequence| talk.say("ann", sequence, "x");
        let (three, two, other, one) = soon(async {
            tokio::join!(say(first + 2), say(first + 1), talk.say("eve", first.div_ceil(3), "y"), say(first))
        })
        .await;
        assert!(one.position < two.position && two.position < three.position);
        assert!([one, two, three, other].iter().all(|appended| !appended.repeated));
    }
    let log = talk.log().await;
    for (who, count) in [("ann", 30), ("eve", 10)] {
        let own: Vec<String> = log.iter().filter(|label| label.starts_with(who)).cloned().collect();
        assert_eq!(own, (1..=count).map(|n| format!("{who}{n}")).collect::<Vec<_>>());
    }
}

pub async fn a_batch_waits_as_a_whole(stage: Stage) {
    let talk = stage.free().await;
    let late = talk.append("ann", numbered(3, &["c", "d"]));
    let early = talk.append("ann", numbered(1, &["a", "b"]));
    let (late, early) = soon(async { tokio::join!(late, early) }).await;
    assert_eq!((positions(&early.unwrap()), positions(&late.unwrap())), (vec![1, 2], vec![3, 4]));
}

pub async fn what_waits_too_long_is_a_gap_and_leaves_no_trace(stage: Stage) {
    let limits = ChannelLimits { hold: Duration::from_millis(30), ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    match soon(talk.try_say("ann", 3, "c")).await {
        Err(ChannelError::Gap { party, epoch: 0, sequence: 3, expected: 1 }) => assert_eq!(party, "ann"),
        other => panic!("{other:?}"),
    }
    assert_eq!(talk.log().await, [""; 0]);
    talk.append("ann", numbered(1, &["a", "b", "c"])).await.unwrap();
    assert_eq!(talk.log().await, ["ann1", "ann2", "ann3"]);
}

pub async fn so_many_wait_and_one_more_is_refused_at_once(stage: Stage) {
    let limits = ChannelLimits { hold_entries_max: 2, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let say = |sequence: u64| {
        let talk = &talk;
        async move { (sequence, talk.try_say("ann", sequence, "x").await) }
    };
    let mut waiting: FuturesUnordered<_> = [2, 3, 4].map(say).into_iter().collect();
    let (refused, answer) = soon(waiting.next()).await.unwrap();
    assert_eq!(code(answer), "channel_sequence_gap");
    // Another sender, and another channel, have places of their own.
    let other = async { tokio::join!(talk.say("eve", 2, "y"), talk.say("eve", 1, "y")) };
    let (second, first) = soon(other).await;
    assert_eq!((first.position.0, second.position.0), (1, 2));
    waiting.push(say(1));
    waiting.push(say(refused));
    soon(async {
        while let Some((sequence, answer)) = waiting.next().await {
            // Who finds the places still taken comes again.
            if answer.is_err() {
                waiting.push(say(sequence));
            }
        }
    })
    .await;
    assert_eq!(talk.log().await[2..], ["ann1", "ann2", "ann3", "ann4"]);
    // Their places are free again.
    let (_, six, five) = soon(async {
        tokio::join!(talk.say("ann", 7, "x"), talk.say("ann", 6, "x"), talk.say("ann", 5, "x"))
    })
    .await;
    assert!(five.position < six.position);
}

/// Of one process, whoever sends it, and of all of them.
pub async fn what_waits_is_bound_in_bytes_and_more_is_refused_by_name(stage: Stage) {
    let limits = ChannelLimits { hold_bytes_max: 1_000, hold_host_bytes_max: 1_500, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    talk.router.create_process(work("other", &["talk"])).await.unwrap();
    let large = "x".repeat(700);
    let takes = 700 + CHANNEL_ENTRY_BYTES as u64;
    let say = |sequence: u64| {
        let (talk, large) = (&talk, &large);
        async move { (sequence, talk.try_say("ann", sequence, large).await) }
    };
    let mut waiting: FuturesUnordered<_> = [2, 3].map(say).into_iter().collect();
    let (refused, answer) = soon(waiting.next()).await.unwrap();
    assert_eq!(limit(answer), ("channel_hold_bytes_max", 2 * takes, 1_000));
    let other = soon(talk.try_say("eve", 2, &large)).await;
    assert_eq!(limit(other), ("channel_hold_bytes_max", 2 * takes, 1_000), "it is the process's");
    let (other, ann) = (talk_of("other"), party("ann"));
    let elsewhere = soon(talk.router.append(&other, &ann, 2, None, large.clone())).await;
    assert_eq!(limit(elsewhere), ("channel_hold_host_bytes_max", 2 * takes, 1_500));
    // A small one still fits, and what is not early needs no room.
    let (second, first) =
        soon(async { tokio::join!(talk.say("eve", 2, "y"), talk.say("eve", 1, &large)) }).await;
    assert!(first.position < second.position);
    waiting.push(say(1));
    let mut early = Some(refused);
    soon(async {
        while let Some((sequence, answer)) = waiting.next().await {
            // With the first answer there may be room again.
            waiting.extend(early.take().map(say));
            if answer.is_err() {
                waiting.push(say(sequence));
            }
        }
    })
    .await;
    assert_eq!(talk.log().await[2..], ["ann1", "ann2", "ann3"]);
    // What they held is free again.
    let (five, four) =
        soon(async { tokio::join!(talk.say("ann", 5, &large), talk.say("ann", 4, "x")) }).await;
    assert!(four.position < five.position);
}

/// Whatever ends its right to wait is answered, and not waited for.
pub async fn what_waits_is_told_when_it_can_come_no_more(stage: Stage) {
    let executes = stage.free().await;
    executes.say("eve", 1, "x").await;
    let (held, _) =
        soon(async { tokio::join!(executes.try_say("eve", 3, "x"), executes.assign("eli")) }).await;
    assert_eq!(code(held), "channel_access_revoked");

    let closed = stage.free().await;
    let close = closed.close(Outcome::Cancelled);
    let (held, _) = soon(async { tokio::join!(closed.try_say("ann", 2, "x"), close) }).await;
    assert_eq!(code(held), "process_closed");

    let ended = stage.free().await;
    let (held, _) = soon(async { tokio::join!(ended.try_say("ann", 3, "x"), ended.end("ann", 1)) }).await;
    assert_eq!(code(held), "channel_half_closed");

    let gone = stage.free().await;
    let cleanup = gone.router.cleanup_process(&gone.job);
    let (held, removed) = soon(async { tokio::join!(gone.try_say("ann", 2, "x"), cleanup) }).await;
    assert_eq!((code(held), removed.unwrap()), ("channel_unknown", true));
    assert_eq!(gone.store.stats().await.unwrap().processes, 0);
}

async fn with(stage: &Stage, gaps: Gaps) -> Talk {
    stage.talk(free(), ChannelOptions { gaps, ..free().default_options() }).await
}

pub async fn a_channel_that_reports_refuses_a_gap_at_once_with_what_it_expects(stage: Stage) {
    let talk = with(&stage, Gaps::Report).await;
    talk.say("ann", 1, "a").await;
    match soon(talk.try_say("ann", 3, "c")).await {
        Err(ChannelError::Gap { party, epoch: 0, sequence: 3, expected: 2 }) => assert_eq!(party, "ann"),
        other => panic!("{other:?}"),
    }
    let holed = [numbered(2, &["b"]), numbered(4, &["d"])].concat();
    assert_eq!(code(talk.append("ann", holed).await), "channel_sequence_gap");
    assert_eq!(talk.log().await, ["ann1"], "nothing of a batch with a gap in it");
    talk.append("ann", numbered(2, &["b", "c"])).await.unwrap();
}

pub async fn a_channel_of_arrival_takes_entries_as_they_come_and_each_once(stage: Stage) {
    let talk = with(&stage, Gaps::Arrival).await;
    let mut follower = talk.follow("eve", 0).await;
    for (sequence, position) in [(2, 1), (5, 2), (4, 3), (1, 4), (3, 5), (6, 6)] {
        assert_eq!(talk.say("ann", sequence, "x").await.position.0, position);
    }
    for (sequence, position) in [(5, 2), (1, 4), (6, 6)] {
        let again = talk.say("ann", sequence, "x").await;
        assert_eq!((again.position.0, again.repeated), (position, true));
    }
    assert_eq!(code(talk.try_say("ann", 4, "other").await), "channel_sequence_taken");
    let arrived = ["ann2", "ann5", "ann4", "ann1", "ann3", "ann6"];
    assert_eq!(talk.log().await, arrived);
    assert_eq!(heard(&mut follower, 6).await, arrived, "live as in the log");
    let view = talk.router.read_in_senders_order(&talk.id, &Actor::Host).await.unwrap();
    assert_eq!(labels(&view), ["ann1", "ann2", "ann3", "ann4", "ann5", "ann6"]);
    let next = NewEntry { sequence: None, ..NewEntry::data(1, "x") };
    assert_eq!(talk.append("ann", vec![next]).await.unwrap()[0].sequence, 7);
}

/// Taken ahead, it would refuse what was sent before it.
pub async fn an_end_waits_for_what_is_before_it_where_entries_are_taken_as_they_arrive(stage: Stage) {
    for with_type in [EntryType::End, EntryType::Error] {
        let talk = with(&stage, Gaps::Arrival).await;
        talk.say("ann", 3, "x").await;
        let both = [numbered(5, &["x"]), vec![NewEntry::data(6, "").of_type(with_type)]].concat();
        let others = async {
            for sequence in [2, 4, 1] {
                talk.say("ann", sequence, "x").await;
            }
        };
        // The end comes first; whoever sends it is answered when all is there.
        let (ended, ()) = soon(async { tokio::join!(talk.append("ann", both), others) }).await;
        assert_eq!(positions(&ended.unwrap()), [5, 6]);
        assert_eq!(talk.log().await, ["ann3", "ann2", "ann4", "ann1", "ann5", "ann6"]);
        assert_eq!(code(talk.try_say("ann", 7, "x").await), "channel_half_closed");
    }
}

pub async fn an_end_whose_forerunner_does_not_come_closes_nothing(stage: Stage) {
    let limits = ChannelLimits { hold: Duration::from_millis(1), ..free() };
    let options = ChannelOptions { gaps: Gaps::Arrival, ..limits.default_options() };
    let talk = stage.talk(limits, options).await;
    talk.say("ann", 1, "x").await;
    assert_eq!(code(talk.try_end("ann", 3, EntryType::End).await), "channel_sequence_gap");
    talk.say("ann", 4, "what comes later is taken").await;
    talk.say("ann", 2, "and what was missing, too").await;
    talk.say("ann", 3, "under the number that closed nothing").await;
    talk.end("ann", 5).await;
}

pub async fn a_sender_runs_ahead_in_so_many_stretches_and_not_more(stage: Stage) {
    let talk = with(&stage, Gaps::Arrival).await;
    let stretches = CHANNEL_AHEAD_MAX as u64;
    for n in 1..=stretches {
        talk.say("ann", 2 * n, "x").await;
    }
    let beyond = 2 * stretches + 2;
    assert_eq!(code(talk.try_say("ann", beyond, "x").await), "channel_sequence_gap");
    assert!(talk.say("ann", 8, "x").await.repeated);
    talk.say("ann", 1, "what is expected is always taken").await;
    talk.say("ann", beyond, "x").await;
    let log = talk.read(0).await;
    assert_eq!(log.len() as u64, stretches + 2);
    assert_eq!(label(&log[log.len() - 1]), format!("ann{beyond}"));
}

pub async fn an_append_is_all_or_nothing(stage: Stage) {
    let talk = with(&stage, Gaps::Report).await;
    let mut follower = talk.follow("eve", 0).await;
    let end = |sequence| NewEntry::data(sequence, "").of_type(EntryType::End);
    let ab = || numbered(1, &["a", "b"]);
    let many = |last: NewEntry| [ab(), vec![last]].concat();
    for (entries, expected) in [
        (many(NewEntry::data(4, "d")), "channel_sequence_gap"),
        (many(NewEntry::data(3, "c").replying_to(9)), "channel_reply_unknown"),
        (many(NewEntry::data(0, "c")), "channel_sequence_invalid"),
        (many(NewEntry::data(2, "other")), "channel_sequence_taken"),
        ([ab(), vec![end(3)], numbered(4, &["d"])].concat(), "channel_half_closed"),
    ] {
        assert_eq!(code(talk.append("ann", entries).await), expected);
        assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 0, "{expected}");
    }
    let appended = talk.append("ann", many(end(3))).await.unwrap();
    assert_eq!(positions(&appended), [1, 2, 3], "one behind the other");
    assert_eq!(heard(&mut follower, 3).await, ["ann1", "ann2", "ann3"]);

    let limits = ChannelLimits { entries_max: 3, ..free() };
    let full = stage.talk(limits.clone(), limits.default_options()).await;
    full.say("ann", 1, "a").await;
    assert_eq!(code(full.append("ann", numbered(2, &["b", "c", "d"])).await), "channel_full");
    assert_eq!(full.log().await, ["ann1"]);
    let few = ChannelLimits { batch_entries_max: 2, ..free() };
    let few = stage.talk(few.clone(), few.default_options()).await;
    assert_eq!(limit(few.append("ann", numbered(1, &["a"; 3])).await).0, "channel_batch_entries_max");
    assert_eq!(few.log().await, [""; 0]);
}

/// The reference numbers by sender only: the one that comes after another begins anew.
pub async fn a_number_counts_in_the_channel_and_epoch_of_its_sender(stage: Stage) {
    let talk = stage.free().await;
    let side = channel_of(&talk.job, "side");
    talk.router.create(&side, ChannelOptions::default()).await.unwrap();
    talk.say("eve", 1, "a").await;
    let elsewhere = talk.router.append(&side, &party("eve"), 1, None, "other").await.unwrap();
    assert_eq!((elsewhere.position.0, elsewhere.repeated), (1, false));
    let epoch = talk.change(Change::Assign(party("eve"))).await.process.epoch;
    let anew = talk.say("eve", 1, "b").await;
    assert_eq!((anew.position.0, anew.epoch, anew.repeated), (2, epoch, false));
    let explicit = Append { epoch: Some(epoch), ..batch("eve", numbered(2, &["c"])) };
    assert_eq!(talk.router.append_all(&talk.id, explicit).await.unwrap()[0].position.0, 3);
}
