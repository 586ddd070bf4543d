//! Following: what is there, then what comes, each once and in order, however slow the follower is.

use futures_util::FutureExt as _;
use millrace::channels::{ChannelLimits, ChannelOptions, CloseReason, Notice, WhenFull};
use millrace::event::Position;
use millrace::limits::{CHANNEL_SUBSCRIBER_ENTRIES_MAX, CHANNEL_TAIL_ENTRIES_MAX};

use super::{
    Stage, by, channel_of, code, free, heard, labels, limit, next, numbered, positions, process, soon,
    talk_of, to_the_end, work,
};

pub async fn k09_followers_are_counted_and_strangers_are_none(stage: Stage) {
    let talk = stage.free().await;
    assert_eq!(talk.followers(), 0);
    let follower = talk.router.subscribe(&talk.id, &by("ann"), 0).await.unwrap();
    assert_eq!(talk.followers(), 1);
    let handle = follower.handle();
    talk.router.unsubscribe(&handle);
    assert_eq!(talk.followers(), 0, "also while its end was not heard yet");
    drop(follower);
    assert_eq!(talk.followers(), 0, "it left once");
    assert_eq!(code(talk.router.subscribe(&talk.id, &by("mallory"), 0).await), "channel_forbidden");
    let side = channel_of(&talk.job, "side");
    assert_eq!(code(talk.router.subscribe(&side, &by("ann"), 0).await), "channel_unknown");
    assert_eq!(code(talk.router.subscribe(&talk_of("other"), &by("ann"), 0).await), "channel_unknown");
    assert_eq!((talk.followers(), talk.router.subscriber_count(&side)), (0, 0));
    // The same party as often as it wants, and each goes when it is dropped.
    let many: Vec<_> = [talk.follow("ann", 0).await, talk.follow("ann", 0).await].into();
    assert_eq!(talk.followers(), 2);
    drop(many);
    assert_eq!(talk.followers(), 0);
}

pub async fn k10_what_was_appended_is_there_for_a_follower_at_once(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("eve", 0).await;
    for sequence in 1..=5 {
        talk.say("ann", sequence, "x").await;
        let there = follower.next(10).now_or_never().expect("nothing is waited for");
        let Some(Notice::Entries(entries)) = there.unwrap() else { panic!() };
        assert_eq!(labels(&entries), [format!("ann{sequence}")]);
    }
}

pub async fn k11_followers_hear_the_same_and_one_that_leaves_costs_nobody_anything(stage: Stage) {
    let talk = stage.free().await;
    let mut one = talk.follow("ann", 0).await;
    let mut other = talk.follow("oscar", 0).await;
    talk.say("ann", 1, "x").await;
    assert_eq!(heard(&mut one, 1).await, ["ann1"], "also who sent it");
    assert_eq!(heard(&mut other, 1).await, ["ann1"]);
    talk.router.unsubscribe(&one.handle());
    assert_eq!(to_the_end(&mut one).await, (vec![], CloseReason::Unsubscribed, 1));
    talk.say("eve", 1, "x").await;
    assert_eq!(heard(&mut other, 1).await, ["eve1"]);
    assert_eq!(talk.followers(), 1);
}

pub async fn k12_cleanup_tells_every_follower_and_leaves_none(stage: Stage) {
    let talk = stage.free().await;
    talk.router.create_process(work("other", &["talk"])).await.unwrap();
    let mut elsewhere = talk.router.subscribe(&talk_of("other"), &by("ann"), 0).await.unwrap();
    let mut fresh = talk.router.subscribe(&talk.id, &by("ann"), 0).await.unwrap();
    let mut waiting = talk.follow("eve", 0).await;
    let handle = waiting.handle();
    let (end, removed) = soon(async {
        let cleanup = async { talk.router.cleanup_process(&talk.job).await.unwrap() };
        tokio::join!(to_the_end(&mut waiting), cleanup)
    })
    .await;
    // The reference ends a stream without a word.
    assert_eq!((end, removed), ((vec![], CloseReason::Removed, 0), true));
    assert_eq!(next(&mut fresh).await, Notice::Closed { reason: CloseReason::Removed, last: Position(0) });
    assert_eq!(talk.followers(), 0);
    talk.router.unsubscribe(&handle);
    talk.router.unsubscribe(&handle);
    assert_eq!(talk.followers(), 0, "late and again is harmless");
    // A channel of the same name that is made later is another one.
    talk.router.create_process(work("job", &["talk"])).await.unwrap();
    talk.say("ann", 1, "x").await;
    assert_eq!(talk.followers(), 0);
    assert!(fresh.next(1).now_or_never().is_some_and(|next| next.unwrap().is_none()));
    let other = talk.router.append(&talk_of("other"), &super::party("ann"), 1, None, "x").await.unwrap();
    assert_eq!(other.position.0, 1);
    assert!(matches!(next(&mut elsewhere).await, Notice::Ready { .. }));
    assert_eq!(heard(&mut elsewhere, 1).await, ["ann1"]);
    assert_eq!(process("other"), talk_of("other").process);
}

fn behind_by(entries: u64) -> ChannelLimits {
    ChannelLimits { subscriber_entries_max: entries, ..free() }
}

/// The reference disconnects it and drops the oldest of what it had not read.
pub async fn k18_a_follower_that_falls_behind_is_told_and_loses_nothing(stage: Stage) {
    let limits = behind_by(3);
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let mut slow = talk.follow("ann", 0).await;
    let mut quick = talk.follow("eve", 0).await;
    for sequence in 1..=3 {
        talk.say("ann", sequence, "x").await;
        assert_eq!(heard(&mut quick, 1).await, [format!("ann{sequence}")]);
    }
    assert_eq!(heard(&mut slow, 3).await, ["ann1", "ann2", "ann3"], "three are not too many");
    for sequence in 4..=7 {
        talk.say("ann", sequence, "x").await;
        assert_eq!(heard(&mut quick, 1).await, [format!("ann{sequence}")], "nobody else is told");
    }
    let lagged = Notice::Lagged { resume_at: Position(4), missed: 0, behind: 4 };
    assert_eq!(next(&mut slow).await, lagged);
    assert_eq!(heard(&mut slow, 4).await, ["ann4", "ann5", "ann6", "ann7"], "told once, and all is there");
    assert_eq!(talk.followers(), 2, "it stays");
    talk.router.unsubscribe(&slow.handle());
    talk.router.unsubscribe(&slow.handle());
    assert_eq!(to_the_end(&mut slow).await, (vec![], CloseReason::Unsubscribed, 7));
    assert_eq!(talk.followers(), 1);
    assert_eq!(ChannelLimits::default().subscriber_entries_max, CHANNEL_SUBSCRIBER_ENTRIES_MAX);
    assert_eq!(CHANNEL_SUBSCRIBER_ENTRIES_MAX, 10_000);
}

pub async fn k18_a_follower_is_told_each_time_that_it_falls_behind(stage: Stage) {
    let limits = behind_by(3);
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let mut slow = talk.follow("ann", 0).await;
    for first in [1, 6, 11] {
        talk.append("ann", numbered(first, &["x"; 5])).await.unwrap();
        let lagged = Notice::Lagged { resume_at: Position(first), missed: 0, behind: 5 };
        assert_eq!(next(&mut slow).await, lagged);
        assert_eq!(heard(&mut slow, 5).await.len(), 5);
    }
    // Who begins with what is there long since has not fallen behind.
    let mut late = talk.follow("eve", 0).await;
    assert_eq!(heard(&mut late, 15).await.len(), 15);
}

pub async fn a_follower_is_told_what_was_dropped_before_it_came_to_it(stage: Stage) {
    let limits = free();
    let options = ChannelOptions { full: WhenFull::DropOldest, entries_max: 4, ..limits.default_options() };
    let talk = stage.talk(limits, options).await;
    let mut slow = talk.follow("oscar", 0).await;
    talk.append("ann", numbered(1, &["x"; 2])).await.unwrap();
    assert_eq!(heard(&mut slow, 2).await, ["ann1", "ann2"]);
    for sequence in 3..=9 {
        talk.say("ann", sequence, "x").await;
    }
    assert_eq!(next(&mut slow).await, Notice::Lagged { resume_at: Position(6), missed: 3, behind: 4 });
    assert_eq!(heard(&mut slow, 4).await, ["ann6", "ann7", "ann8", "ann9"]);
    let mut late = talk.router.subscribe(&talk.id, &by("eve"), 1).await.unwrap();
    let ready = Notice::Ready { after: Position(1), oldest: Position(6), newest: Position(9) };
    assert_eq!(next(&mut late).await, ready);
    assert_eq!(next(&mut late).await, Notice::Lagged { resume_at: Position(6), missed: 4, behind: 4 });
    assert_eq!(heard(&mut late, 4).await.len(), 4);
}

pub async fn a_follower_begins_after_an_index_and_not_beyond_the_newest(stage: Stage) {
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["a", "b", "c"])).await.unwrap();
    let mut follower = talk.router.subscribe(&talk.id, &by("eve"), 2).await.unwrap();
    let ready = Notice::Ready { after: Position(2), oldest: Position(1), newest: Position(3) };
    assert_eq!(next(&mut follower).await, ready);
    assert_eq!(heard(&mut follower, 1).await, ["ann3"]);
    assert_eq!(follower.position(), Position(3));
    let mut at_the_end = talk.follow("eve", 3).await;
    talk.say("ann", 4, "d").await;
    assert_eq!(heard(&mut at_the_end, 1).await, ["ann4"]);
    // Nothing is there to go on from: a hole would be the result.
    assert_eq!(code(talk.router.subscribe(&talk.id, &by("eve"), 5).await), "channel_option_invalid");
    assert_eq!(talk.followers(), 2);
}

/// The reference gives what comes between the subscription and the replay twice.
pub async fn replay_and_what_comes_meanwhile_have_neither_hole_nor_repeat(stage: Stage) {
    const ENTRIES: u64 = 600;
    assert!(ENTRIES > CHANNEL_TAIL_ENTRIES_MAX as u64, "some of it is read from the store");
    let talk = stage.free().await;
    let writer = async {
        for sequence in (1..=ENTRIES).step_by(3) {
            talk.append("ann", numbered(sequence, &["x"; 3])).await.unwrap();
            tokio::task::yield_now().await;
        }
        talk.end("ann", ENTRIES + 1).await;
        talk.end("eve", 1).await;
    };
    let follower = |from: u64, step: usize| {
        let talk = &talk;
        async move {
            let mut seen = Vec::new();
            let mut place = from;
            loop {
                // Comes and goes in the middle of it all, and goes on where it was.
                let mut follower = talk.router.subscribe(&talk.id, &by("oscar"), place).await.unwrap();
                for _ in 0..7 {
                    match soon(follower.next(step)).await.unwrap() {
                        Some(Notice::Entries(entries)) => {
                            assert!(entries.len() <= step);
                            seen.extend(entries.iter().map(|entry| entry.position.0));
                        }
                        Some(Notice::Ready { after, .. }) => assert_eq!(after.0, place),
                        Some(Notice::Closed { reason, last }) => {
                            assert_eq!((reason, last.0), (CloseReason::Ended, ENTRIES + 2));
                            return seen;
                        }
                        other => panic!("{other:?}"),
                    }
                }
                place = follower.position().0;
                tokio::task::yield_now().await;
            }
        }
    };
    let (_, one, two, three) = tokio::join!(writer, follower(0, 1), follower(0, 100), follower(0, 37));
    let all: Vec<u64> = (1..=ENTRIES + 2).collect();
    assert!(one == all && two == all && three == all, "{one:?}\n{two:?}\n{three:?}");
    // Those who come when all is over see it just so, and each entry is what it was.
    let mut late = talk.follow("ann", 0).await;
    let (replayed, reason, _) = to_the_end(&mut late).await;
    assert_eq!((replayed.len() as u64, reason), (ENTRIES + 2, CloseReason::Ended));
    assert_eq!(replayed, talk.log().await);
}

pub async fn two_that_append_at_once_are_heard_in_the_order_of_the_log(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("oscar", 0).await;
    let sender = |who: &'static str| {
        let talk = &talk;
        async move {
            let mut at = Vec::new();
            for sequence in 1..=100 {
                at.push(talk.say(who, sequence, "x").await);
                tokio::task::yield_now().await;
            }
            positions(&at)
        }
    };
    let (ann, eve, heard) = tokio::join!(sender("ann"), sender("eve"), heard(&mut follower, 200));
    assert!(ann.is_sorted() && eve.is_sorted());
    assert_eq!(heard, talk.log().await);
    let mut all = [ann, eve].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=200).collect::<Vec<_>>(), "every position once");
}

pub async fn a_channel_has_so_many_followers_and_not_more(stage: Stage) {
    let limits = ChannelLimits { subscribers_max: 2, ..free() };
    let talk = stage.talk(limits.clone(), limits.default_options()).await;
    let first = talk.follow("ann", 0).await;
    let _second = talk.follow("ann", 0).await;
    let third = talk.router.subscribe(&talk.id, &by("eve"), 0).await;
    assert_eq!(limit(third), ("channel_subscribers_max", 3, 2));
    talk.router.unsubscribe(&first.handle());
    let _third = talk.follow("eve", 0).await;
    drop(first);
    assert_eq!(talk.followers(), 2);
}
