//! A process that was removed, and another one that has its name: nothing that was meant for one reaches the other.

use millrace::channels::{CloseReason, Incarnation, Notice, Place};
use millrace::event::Position;

use super::{LONG, Stage, Talk, batch, by, code, heard, labels, next, numbered, soon, to_the_end, work};

impl Talk {
    /// Another process of the same name, in which `ann` has said so much.
    async fn again(&self, entries: u64) {
        assert!(self.router.cleanup_process(&self.job).await.unwrap());
        let (_, created) = self.router.create_process(work("job", &["talk"])).await.unwrap();
        assert!(created);
        for sequence in 1..=entries {
            self.say("ann", sequence, "new").await;
        }
    }

    async fn place(&self, position: u64) -> Place {
        Place::of(&self.router.process(&self.job).await.unwrap().process, Position(position))
    }
}

pub async fn a_place_of_a_former_process_is_none_of_the_next(stage: Stage) {
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["a", "b"])).await.unwrap();
    let (old, host) = (talk.place(1).await, &by("ann"));
    let read = talk.router.read_after(&talk.id, host, old, 0).await.unwrap();
    assert_eq!(
        (labels(&read.entries), Place::of(&read.head.process, Position(1))),
        (vec!["ann2".into()], old)
    );
    talk.again(3).await;
    assert_ne!(talk.place(1).await, old);
    assert_eq!(code(talk.router.read_after(&talk.id, host, old, 0).await), "cursor_foreign");
    let wait = talk.router.wait_after(&talk.id, host, old, 0, LONG);
    assert_eq!(code(soon(wait).await), "cursor_foreign");
    assert_eq!(code(talk.router.subscribe(&talk.id, host, old).await), "cursor_foreign");
    let new = talk.place(1).await;
    let read = talk.router.read_after(&talk.id, host, new, 0).await.unwrap();
    assert_eq!(labels(&read.entries), ["ann2", "ann3"]);
    let mut follower = talk.router.subscribe(&talk.id, host, new).await.unwrap();
    assert_eq!(follower.place(Position(1)), new);
    assert!(matches!(next(&mut follower).await, Notice::Ready { .. }));
    // A store that lasts knows it again, whoever asks.
    let head = talk.store.head(&talk.id).await.unwrap();
    assert_eq!(Some(Incarnation::of(&head.process)), new.incarnation);
}

pub async fn whoever_waits_is_not_given_the_next_process(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "old").await;
    let (place, ann) = (talk.place(1).await, by("ann"));
    let read = talk.router.wait_after(&talk.id, &ann, place, 0, LONG);
    let (read, ()) = soon(async { tokio::join!(read, talk.again(2)) }).await;
    // It looks again when the process is gone, or when there is another one.
    let refused = code(read);
    assert!(["cursor_foreign", "channel_unknown"].contains(&refused), "{refused}");
}

pub async fn a_follower_hears_the_end_of_its_process_and_nothing_of_the_next(stage: Stage) {
    let talk = stage.free().await;
    talk.append("ann", numbered(1, &["a", "b"])).await.unwrap();
    let mut keeps_up = talk.follow("eve", 2).await;
    // What it has not been given yet goes with the process.
    let mut behind = talk.follow("eve", 0).await;
    talk.again(5).await;
    assert_eq!(to_the_end(&mut keeps_up).await, (vec![], CloseReason::Removed, 2));
    assert_eq!(to_the_end(&mut behind).await, (vec![], CloseReason::Removed, 0));
    let mut new = talk.follow("eve", 5).await;
    talk.say("ann", 6, "new").await;
    assert_eq!(heard(&mut new, 1).await, ["ann6"]);
}

pub async fn what_waits_for_its_forerunner_is_not_for_the_next_process(stage: Stage) {
    let talk = stage.free().await;
    let held = talk.router.begin_append(&talk.id, batch("ann", numbered(3, &["old"]))).await.unwrap();
    let (held, ()) = soon(async { tokio::join!(held, talk.again(1)) }).await;
    assert_eq!(code(held), "channel_unknown");
    assert_eq!(talk.log().await, ["ann1"]);
}

pub async fn only_the_process_that_is_meant_is_removed(stage: Stage) {
    let talk = stage.free().await;
    talk.say("ann", 1, "old").await;
    let old = talk.place(1).await.incarnation;
    talk.again(1).await;
    let mut follower = talk.follow("eve", 1).await;
    assert!(!talk.store.remove(&talk.job, old).await.unwrap(), "that one is gone");
    assert_eq!(talk.log().await, ["ann1"]);
    talk.say("ann", 2, "new").await;
    assert_eq!(heard(&mut follower, 1).await, ["ann2"], "its follower is told of nothing else");
    assert_eq!(code(talk.router.remove_process(&talk.job, &by("eve")).await), "channel_forbidden");
    assert_eq!(code(talk.router.remove_process(&talk.job, &by("mallory")).await), "channel_forbidden");
    talk.router.remove_process(&talk.job, &by("ann")).await.unwrap();
    assert_eq!(to_the_end(&mut follower).await, (vec![], CloseReason::Removed, 2));
    assert_eq!(code(talk.router.remove_process(&talk.job, &by("ann")).await), "process_unknown");
    talk.router.create_process(work("job", &["talk"])).await.unwrap();
    let new = talk.place(0).await.incarnation;
    assert!(talk.store.remove(&talk.job, new).await.unwrap());
    assert!(!talk.store.remove(&talk.job, new).await.unwrap());
    assert_eq!(talk.store.stats().await.unwrap().processes, 0);
}
