//! Channels that are full: what they refuse, drop or put away, and what they always take.

use millrace::channels::{ChannelLimits, ChannelOptions, EntryType, Head, NewEntry, WhenFull};
use millrace::limits::{CHANNEL_CLOSING_BYTES_MAX, CHANNEL_CLOSINGS_BYTES_MAX};

use super::{
    Stage, Talk, by, channel_of, code, free, heard, labels, limit, numbered, party, positions, talk_of,
    to_the_end, work,
};

async fn full(stage: &Stage, full: WhenFull, entries_max: u64, bytes_max: u64) -> Talk {
    stage.talk(free(), ChannelOptions { full, entries_max, bytes_max, ..free().default_options() }).await
}

async fn head(talk: &Talk) -> Head {
    talk.router.get_by_process_and_name(&talk.job, &talk.id.name).await.unwrap()
}

pub async fn a_channel_is_full_in_bytes_too(stage: Stage) {
    let talk = full(&stage, WhenFull::Reject, 100, 10).await;
    talk.say("ann", 1, "123456").await;
    assert_eq!(code(talk.try_say("ann", 2, "12345").await), "channel_full");
    assert_eq!(code(talk.try_say("eve", 1, "12345678901").await), "channel_full", "more than it ever holds");
    talk.say("ann", 2, "1234").await;
    talk.say("ann", 3, "").await;
    assert_eq!(code(talk.try_say("ann", 4, "1").await), "channel_full");
    let head = head(&talk).await;
    assert_eq!((head.channel.bytes, head.channel.hot_entries()), (10, 3));
}

/// In the reference a full channel refuses the last word as well.
pub async fn a_full_channel_takes_the_end_of_either_side(stage: Stage) {
    for with in [EntryType::End, EntryType::Error] {
        let talk = full(&stage, WhenFull::Reject, 2, 10).await;
        talk.append("ann", numbered(1, &["12345", "12345"])).await.unwrap();
        assert_eq!(code(talk.try_say("eve", 1, "x").await), "channel_full");
        let last = NewEntry::data(1, "more than there is room for").of_type(with);
        talk.append("eve", vec![last]).await.unwrap();
        talk.try_end("ann", 3, with).await.unwrap();
        let mut follower = talk.follow("oscar", 0).await;
        let (all, reason, last) = to_the_end(&mut follower).await;
        assert_eq!(all, ["ann1", "ann2", "eve1", "ann3"]);
        assert_eq!((reason.as_str(), last), ("ended", 4));
    }
    // A last word of any length is data like another.
    let talk = full(&stage, WhenFull::Reject, 1, 100_000).await;
    talk.say("ann", 1, "x").await;
    let long = "x".repeat(CHANNEL_CLOSING_BYTES_MAX + 1);
    let last = |text: &str| vec![NewEntry::data(1, text.to_owned()).of_type(EntryType::End)];
    assert_eq!(code(talk.append("eve", last(&long)).await), "channel_full");
    talk.append("eve", last(&long[1..])).await.unwrap();
}

pub async fn dropping_the_oldest_moves_the_beginning_and_no_position(stage: Stage) {
    let talk = full(&stage, WhenFull::DropOldest, 3, 1_000).await;
    for sequence in 1..=5 {
        assert_eq!(talk.say("ann", sequence, "x").await.position.0, sequence);
    }
    let page = talk.router.read_after(&talk.id, &by("eve"), 0, 0).await.unwrap();
    assert_eq!(labels(&page.entries), ["ann3", "ann4", "ann5"]);
    assert_eq!((page.missed, page.oldest.0, page.newest.0, page.next.0), (2, 3, 5, 5));
    let page = talk.router.read_after(&talk.id, &by("eve"), 1, 1).await.unwrap();
    assert_eq!((labels(&page.entries).concat(), page.missed, page.next.0), ("ann3".into(), 1, 3));
    let page = talk.router.read_after(&talk.id, &by("eve"), 2, 0).await.unwrap();
    assert_eq!((page.entries[0].position.0, page.missed), (3, 0));
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 3);
    assert_eq!(head(&talk).await.channel.dropped(), 2);
    // What is more than it holds is refused as a whole.
    assert_eq!(code(talk.append("ann", numbered(6, &["x"; 4])).await), "channel_full");
    let appended = talk.append("ann", numbered(6, &["x"; 3])).await.unwrap();
    assert_eq!(positions(&appended), [6, 7, 8]);
    assert_eq!(talk.log().await, ["ann6", "ann7", "ann8"]);
}

pub async fn dropping_the_oldest_makes_room_in_bytes(stage: Stage) {
    let talk = full(&stage, WhenFull::DropOldest, 100, 10).await;
    for (sequence, text) in (1..).zip(["12", "345", "6789"]) {
        talk.say("ann", sequence, text).await;
    }
    talk.say("ann", 4, "1234").await;
    assert_eq!(talk.log().await, ["ann3", "ann4"], "three bytes were too many, and an entry goes as a whole");
    assert_eq!(head(&talk).await.channel.bytes, 8);
    assert_eq!(code(talk.try_say("ann", 5, "12345678901").await), "channel_full");
    talk.say("ann", 5, "1234567890").await;
    assert_eq!(talk.log().await, ["ann5"]);
    // The ends go beyond; what comes then takes their place like another's.
    talk.end("ann", 6).await;
    assert_eq!(talk.log().await, ["ann5", "ann6"]);
    talk.say("eve", 1, "12345").await;
    assert_eq!(talk.log().await, ["ann6", "eve1"]);
}

pub async fn an_archive_has_what_a_full_channel_puts_away(stage: Stage) {
    let talk = full(&stage, WhenFull::Archive, 3, 1_000).await;
    let mut follower = talk.follow("oscar", 0).await;
    for sequence in 1..=10 {
        talk.say("ann", sequence, "xy").await;
    }
    let channel = head(&talk).await.channel;
    assert_eq!((channel.oldest.0, channel.hot.0, channel.newest.0), (1, 8, 10));
    assert_eq!((channel.hot_entries(), channel.entries(), channel.dropped()), (3, 10, 0));
    assert_eq!((channel.bytes, channel.archive_bytes), (6, 14));
    let all: Vec<String> = (1..=10).map(|n| format!("ann{n}")).collect();
    assert_eq!(talk.log().await, all, "and it is read like the rest");
    assert_eq!(heard(&mut follower, 10).await, all);
    let page = talk.router.read_after(&talk.id, &by("eve"), 5, 4).await.unwrap();
    assert_eq!((labels(&page.entries).concat(), page.missed), ("ann6ann7ann8ann9".to_owned(), 0));
    assert!(talk.say("ann", 1, "xy").await.repeated, "it is known there too");
    assert_eq!(code(talk.append("ann", numbered(11, &["x"; 4])).await), "channel_full");
}

pub async fn an_archive_is_bound_in_bytes_and_its_oldest_go(stage: Stage) {
    let limits = ChannelLimits { archive_bytes_max: 10, ..free() };
    let options = ChannelOptions { full: WhenFull::Archive, bytes_max: 4, ..limits.default_options() };
    let talk = stage.talk(limits, options).await;
    for sequence in 1..=10 {
        talk.say("ann", sequence, "xy").await;
    }
    let channel = head(&talk).await.channel;
    assert_eq!((channel.oldest.0, channel.hot.0, channel.newest.0), (4, 9, 10));
    assert_eq!((channel.bytes, channel.archive_bytes, channel.all_bytes()), (4, 10, 14));
    let page = talk.router.read_after(&talk.id, &by("eve"), 0, 0).await.unwrap();
    assert_eq!((page.entries.len(), page.entries[0].position.0, page.missed), (7, 4, 3));
}

/// Entries without a byte take room as well.
pub async fn an_archive_is_bound_in_entries_too(stage: Stage) {
    let limits = ChannelLimits { archive_entries_max: 5, ..free() };
    let options = ChannelOptions { full: WhenFull::Archive, entries_max: 3, ..limits.default_options() };
    let talk = stage.talk(limits, options).await;
    for sequence in 1..=10 {
        talk.say("ann", sequence, "").await;
    }
    let channel = head(&talk).await.channel;
    assert_eq!((channel.oldest.0, channel.hot.0, channel.newest.0), (3, 8, 10));
    assert_eq!((channel.archived_entries(), channel.all_bytes(), channel.dropped()), (5, 0, 2));
    // Several at once, and a last word: it never holds more.
    talk.append("ann", numbered(11, &[""; 3])).await.unwrap();
    talk.end("ann", 14).await;
    talk.append("eve", numbered(1, &["x", ""])).await.unwrap();
    let channel = head(&talk).await.channel;
    assert_eq!((channel.oldest.0, channel.hot.0, channel.newest.0), (9, 14, 16));
    let page = talk.router.read_after(&talk.id, &by("eve"), 0, 0).await.unwrap();
    let all: Vec<u64> = page.entries.iter().map(|entry| entry.position.0).collect();
    assert_eq!((all, page.missed), ((9..=16).collect(), 8));
}

/// What lies in archives counts towards the bytes of the process: then it takes no data, and the last words all the same.
pub async fn archives_that_fill_their_process_leave_room_for_the_end(stage: Stage) {
    let limits = ChannelLimits { process_bytes_max: 40, ..free() };
    let options = ChannelOptions { full: WhenFull::Archive, bytes_max: 10, ..limits.default_options() };
    let talk = stage.talk(limits, options.clone()).await;
    let side = channel_of(&talk.job, "side");
    talk.router.create(&side, options).await.unwrap();
    let (ann, eve, ten) = (party("ann"), party("eve"), "1234567890");
    for sequence in [1, 2] {
        talk.say("ann", sequence, ten).await;
        talk.router.append(&side, &ann, sequence, None, ten).await.unwrap();
    }
    let channel = head(&talk).await.channel;
    assert_eq!((channel.bytes, channel.archive_bytes), (10, 10));
    assert_eq!(limit(talk.try_say("ann", 3, "x").await), ("process_bytes_max", 41, 40));
    let more = talk.router.append(&side, &eve, 1, None, "x").await;
    assert_eq!(limit(more), ("process_bytes_max", 41, 40));
    talk.append("ann", vec![NewEntry::data(3, "that is all").of_type(EntryType::End)]).await.unwrap();
    let error = NewEntry { error: Some("it broke".into()), ..NewEntry::data(1, "here") };
    talk.append("eve", vec![error.of_type(EntryType::Error)]).await.unwrap();
    let mut follower = talk.follow("oscar", 0).await;
    let (all, reason, _) = to_the_end(&mut follower).await;
    assert_eq!((all.len(), reason.as_str()), (4, "ended"));
    for who in [&ann, &eve] {
        let sequence = if *who == ann { 3 } else { 1 };
        talk.router.append_with_type(&side, who, sequence, None, "", EntryType::End).await.unwrap();
    }
}

/// Each assignment brings another last word, and none of them needs room: there must be an end to that, too.
pub async fn last_words_are_taken_beyond_the_bounds_up_to_a_bound_of_their_own(stage: Stage) {
    let words = "x".repeat(CHANNEL_CLOSING_BYTES_MAX);
    let last = |text: &str| vec![NewEntry::data(1, text.to_owned()).of_type(EntryType::End)];
    let many = CHANNEL_CLOSINGS_BYTES_MAX / CHANNEL_CLOSING_BYTES_MAX as u64;
    let talk = full(&stage, WhenFull::Reject, 1, 1_000).await;
    talk.say("ann", 1, "x").await;
    for n in 0..many {
        let name = format!("e{n}");
        talk.assign(&name).await;
        talk.append(&name, last(&words)).await.unwrap();
    }
    talk.assign("late").await;
    assert_eq!(code(talk.append("late", last("x")).await), "channel_full", "as data is");
    assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), many + 1);
    // One without a byte is within it, and the submitter's is always taken.
    talk.append("late", last("")).await.unwrap();
    talk.append("ann", vec![NewEntry::data(2, words.clone()).of_type(EntryType::Error)]).await.unwrap();
    assert_eq!(code(talk.try_say("ann", 3, "x").await), "channel_half_closed");

    // Where the oldest go, they go for last words, too.
    let talk = full(&stage, WhenFull::DropOldest, 3, 1_000_000).await;
    for n in 0..many + 5 {
        let name = format!("e{n}");
        talk.assign(&name).await;
        talk.append(&name, last(&words)).await.unwrap();
    }
    let channel = head(&talk).await.channel;
    assert_eq!((channel.newest.0, channel.entries(), channel.bytes), (many + 5, 3, 3 * words.len() as u64));
}

pub async fn all_channels_of_a_process_share_a_budget_of_bytes(stage: Stage) {
    let limits = ChannelLimits { process_bytes_max: 20, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let side = channel_of(&talk.job, "side");
    let options = ChannelOptions { full: WhenFull::DropOldest, bytes_max: 10, ..limits.default_options() };
    talk.router.create(&side, options).await.unwrap();
    let (ann, ten) = (party("ann"), "1234567890");
    talk.say("ann", 1, ten).await;
    talk.router.append(&side, &ann, 1, None, ten).await.unwrap();
    assert_eq!(limit(talk.try_say("ann", 2, "x").await), ("process_bytes_max", 21, 20));
    // What makes room for itself needs none.
    let appended = talk.router.append(&side, &ann, 2, None, "0987654321").await.unwrap();
    assert_eq!(appended.position.0, 2);
    assert_eq!(limit(talk.try_say("ann", 2, "x").await).0, "process_bytes_max");
    talk.end("ann", 2).await;
    let last = NewEntry::data(1, "that is all").of_type(EntryType::End);
    talk.append("eve", vec![last]).await.unwrap();
    // Another process has its own.
    talk.router.create_process(work("other", &["talk"])).await.unwrap();
    talk.router.append(&talk_of("other"), &ann, 1, None, ten).await.unwrap();
}
