//! How things end: each side's half of a channel, the channel, the process, and what is kept of it.

use futures_util::FutureExt as _;
use millrace::channels::{
    Actor, Change, ChannelOptions, CloseReason, EntryType, NewEntry, NewProcess, Notice, Outcome,
};
use millrace::event::{Micros, Position};
use millrace::limits::CHANNEL_SWEEP_PROCESSES_MAX;

use super::{
    Stage, by, channel_of, code, heard, next, numbered, party, process, process_of, soon, talk_of,
    to_the_end, work,
};

/// In the reference they close nothing.
pub async fn end_and_error_close_the_half_of_their_sender_only(stage: Stage) {
    for with in [EntryType::End, EntryType::Error] {
        let talk = stage.free().await;
        talk.say("eve", 1, "a").await;
        talk.try_end("eve", 2, with).await.unwrap();
        let refused = talk.try_say("eve", 3, "b").await.unwrap_err();
        assert!(refused.to_string().contains(with.as_str()), "{refused}");
        assert_eq!(code::<()>(Err(refused)), "channel_half_closed");
        assert_eq!(code(talk.try_end("eve", 3, EntryType::End).await), "channel_half_closed");
        let unnumbered = NewEntry { sequence: None, ..NewEntry::data(1, "b") };
        assert_eq!(code(talk.append("eve", vec![unnumbered]).await), "channel_half_closed");
        // The other half goes on, and so does the reading of both.
        talk.say("ann", 1, "and you?").await;
        let read = talk.router.read_after(&talk.id, &by("eve"), 0, 0).await.unwrap();
        assert_eq!(read.entries[1].entry_type, with);
        // A new executor has a half of its own.
        talk.assign("eli").await;
        talk.say("eli", 1, "me").await;
        assert_eq!(talk.router.log_size(&talk.id).await.unwrap(), 4);
    }
}

pub async fn a_channel_that_both_have_ended_ends_for_followers_after_everything(stage: Stage) {
    let talk = stage.free().await;
    let mut quick = talk.follow("oscar", 0).await;
    talk.append("ann", numbered(1, &["a", "b"])).await.unwrap();
    talk.end("ann", 3).await;
    assert_eq!(heard(&mut quick, 3).await, ["ann1", "ann2", "ann3"]);
    assert!(quick.next(1).now_or_never().is_none(), "one half is open");
    let mut slow = talk.follow("ann", 0).await;
    talk.say("eve", 1, "c").await;
    talk.try_end("eve", 2, EntryType::Error).await.unwrap();
    let rest = vec!["eve1".to_owned(), "eve2".into()];
    assert_eq!(to_the_end(&mut quick).await, (rest, CloseReason::Ended, 5));
    let all = ["ann1", "ann2", "ann3", "eve1", "eve2"].map(str::to_owned).to_vec();
    assert_eq!(to_the_end(&mut slow).await, (all.clone(), CloseReason::Ended, 5));
    // Who comes later hears the same.
    let mut late = talk.follow("eve", 0).await;
    assert_eq!(to_the_end(&mut late).await, (all, CloseReason::Ended, 5));
    assert_eq!(talk.followers(), 0, "who was told the end follows no more");
    // An assignment opens the other half again.
    talk.assign("eli").await;
    let mut again = talk.follow("ann", 5).await;
    talk.say("eli", 1, "d").await;
    assert_eq!(heard(&mut again, 1).await, ["eli1"]);
}

/// The reference drops everything at once, the last `end` that nobody has read included.
pub async fn a_closed_process_is_read_to_the_end_and_takes_nothing_more(stage: Stage) {
    for (outcome, name) in
        [(Outcome::Success, "success"), (Outcome::Failed, "failed"), (Outcome::Cancelled, "cancelled")]
    {
        let talk = stage.free().await;
        let mut slow = talk.follow("ann", 0).await;
        talk.append("eve", numbered(1, &["a", "b"])).await.unwrap();
        talk.end("eve", 3).await;
        let view = talk.close(outcome).await;
        let closed = view.process.closed.clone().unwrap();
        assert_eq!((closed.outcome, closed.reason.as_str(), outcome.as_str()), (outcome, "because", name));
        assert_eq!(Outcome::parse(name), Some(outcome));
        let all = ["eve1", "eve2", "eve3"].map(str::to_owned).to_vec();
        assert_eq!(to_the_end(&mut slow).await, (all.clone(), CloseReason::Closed(outcome), 3));
        for who in ["ann", "eve", "oscar"] {
            let mut late = talk.follow(who, 0).await;
            assert_eq!(to_the_end(&mut late).await, (all.clone(), CloseReason::Closed(outcome), 3));
        }
        assert_eq!(talk.log().await, all);
        assert_eq!(code(talk.try_say("ann", 1, "x").await), "process_closed");
        assert_eq!(code(talk.try_end("ann", 1, EntryType::End).await), "process_closed");
        // Nothing about it changes any more; closing it again is fine and changes nothing either.
        let again = Change::Close { outcome: Outcome::Failed, reason: "other".to_owned() };
        assert_eq!(talk.change(again).await, view);
        let side = channel_of(&talk.job, "side");
        assert_eq!(code(talk.router.create(&side, ChannelOptions::default()).await), "process_closed");
        let there = talk.router.create_if_not_exists(&talk.id, ChannelOptions::default()).await.unwrap();
        assert_eq!(there.channel.newest, Position(3));
        let refused = talk.router.change(&talk.job, Actor::Host, Change::Assign(party("eli"))).await;
        assert_eq!(code(refused), "process_closed");
        // But who reads what is left.
        for change in [Change::Unassign, Change::Observe(Vec::new())] {
            talk.router.change(&talk.job, Actor::Host, change).await.unwrap();
        }
        for who in ["eve", "oscar"] {
            let read = talk.router.read_after(&talk.id, &by(who), 0, 0).await;
            assert!(["channel_forbidden", "channel_access_revoked"].contains(&code(read)), "{who}");
        }
    }
}

pub async fn closing_wakes_who_waits(stage: Stage) {
    let talk = stage.free().await;
    let mut follower = talk.follow("ann", 0).await;
    let (end, _) =
        soon(async { tokio::join!(to_the_end(&mut follower), talk.close(Outcome::Cancelled)) }).await;
    assert_eq!(end, (vec![], CloseReason::Closed(Outcome::Cancelled), 0));
}

pub async fn what_was_closed_long_enough_ago_expires_with_all_that_it_has(stage: Stage) {
    let talk = stage.free().await;
    talk.router.create_process(work("open", &["talk"])).await.unwrap();
    talk.say("ann", 1, "a").await;
    let mut follower = talk.follow("ann", 0).await;
    assert_eq!(talk.store.expire(Micros(i64::MAX)).await.unwrap(), 0, "nothing is closed");
    let at = talk.close(Outcome::Success).await.process.closed.clone().unwrap().at;
    assert_eq!(talk.store.expire(at).await.unwrap(), 0, "it is kept");
    assert_eq!(talk.log().await, ["ann1"]);
    assert_eq!(talk.store.expire(Micros(at.0 + 1)).await.unwrap(), 1);
    assert_eq!(code(talk.router.process(&talk.job).await), "process_unknown");
    assert_eq!(code(talk.router.read_after(&talk.id, &by("ann"), 0, 0).await), "channel_unknown");
    let last = Position(0);
    assert_eq!(next(&mut follower).await, Notice::Closed { reason: CloseReason::Removed, last });
    assert!(talk.router.process(&process("open")).await.is_ok());
    assert_eq!(talk.store.stats().await.unwrap().processes, 1);
}

pub async fn expiry_goes_in_bounded_steps_over_all_tenants(stage: Stage) {
    let talk = stage.free().await;
    let closed = CHANNEL_SWEEP_PROCESSES_MAX + 3;
    for n in 0..closed {
        let id = process_of(if n % 2 == 0 { "acme" } else { "rival" }, &format!("p{n}"));
        let new = NewProcess { id: id.clone(), ..work("x", &["talk"]) };
        talk.router.create_process(new).await.unwrap();
        let close = Change::Close { outcome: Outcome::Success, reason: String::new() };
        talk.router.change(&id, Actor::Host, close).await.unwrap();
    }
    let expire = || talk.store.expire(Micros(i64::MAX));
    assert_eq!(expire().await.unwrap(), CHANNEL_SWEEP_PROCESSES_MAX);
    assert_eq!((expire().await.unwrap(), expire().await.unwrap()), (3, 0));
    assert_eq!(talk.store.stats().await.unwrap().processes, 1, "the open one");
    // The places are free again.
    talk.router.create_process(work("p0", &["talk"])).await.unwrap();
    assert_eq!(talk.router.log_size(&talk_of("p0")).await.unwrap(), 0);
}

pub async fn cleanup_is_at_once_whether_closed_or_not(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "a").await;
    talk.close(Outcome::Success).await;
    assert!(talk.router.cleanup_process(&talk.job).await.unwrap());
    assert_eq!(code(talk.router.log_size(&talk.id).await), "channel_unknown");
    // The reference makes a channel of a cancelled process anew when somebody touches it.
    assert_eq!(code(talk.try_say("ann", 2, "b").await), "channel_unknown");
    let create = talk.router.create_if_not_exists(&talk.id, ChannelOptions::default()).await;
    assert_eq!(code(create), "process_unknown");
    assert_eq!(talk.store.stats().await.unwrap().channels, 0);
    assert_eq!(talk.router.stats().await.unwrap(), talk.store.stats().await.unwrap());
}
