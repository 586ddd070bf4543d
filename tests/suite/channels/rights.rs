//! Rights are those of the moment of the read: whoever loses them while the store is asked has nothing of what came after.

use std::sync::Arc;

use millrace::backends::memory::MemoryChannels;
use millrace::channels::{Change, ChannelStore, CloseReason, NewProcess, Notice, Place, Router};
use millrace::clock::SystemClock;
use millrace::event::Position;
use millrace_tests::conformance::channels::{
    LONG, Talk, batch, by, code, free, next, numbered, party, process, soon, talk_of, work,
};
use millrace_tests::gated_channels::{Gate, GatedChannels};

fn observed() -> NewProcess {
    NewProcess { observers: vec![party("oscar")], ..work("job", &["talk"]) }
}

/// A process over a store whose reads a test can hold up.
async fn gated() -> (Talk, GatedChannels) {
    let store = GatedChannels::new(Arc::new(MemoryChannels::new(free(), Arc::new(SystemClock))));
    let shared: Arc<dyn ChannelStore> = Arc::new(store.clone());
    let router = Router::new(Arc::clone(&shared));
    router.create_process(observed()).await.unwrap();
    (Talk { store: shared, router, id: talk_of("job"), job: process("job") }, store)
}

/// While a read waits in the store: nobody observes any more, and something is said.
async fn meanwhile(talk: &Talk, store: &GatedChannels) {
    store.until_read().await;
    talk.change(Change::Observe(Vec::new())).await;
    talk.router.append_all(&talk.id, batch("ann", numbered(2, &["not for him"]))).await.unwrap();
    store.open();
}

#[tokio::test]
async fn a_page_is_for_who_may_read_when_it_is_read() {
    for wait in [None, Some(LONG)] {
        let (talk, store) = gated().await;
        talk.say("ann", 1, "x").await;
        store.shut("talk", Gate::ReadsWait);
        let read = async {
            match wait {
                None => talk.router.read_after(&talk.id, &by("oscar"), 0, 0).await,
                Some(wait) => talk.router.wait_after(&talk.id, &by("oscar"), 0, 0, wait).await,
            }
        };
        let (read, ()) = soon(async { tokio::join!(read, meanwhile(&talk, &store)) }).await;
        assert_eq!(code(read), "channel_forbidden");
    }
}

#[tokio::test]
async fn a_follower_that_reads_the_store_is_given_nothing_that_came_after_its_rights() {
    let (talk, store) = gated().await;
    talk.say("ann", 1, "x").await;
    let mut follower = talk.follow("oscar", 0).await;
    store.shut("talk", Gate::ReadsWait);
    let (notice, ()) = soon(async { tokio::join!(next(&mut follower), meanwhile(&talk, &store)) }).await;
    assert_eq!(notice, Notice::Closed { reason: CloseReason::Revoked, last: Position(0) });
}

/// Removes the process, and makes another one of its name with as many entries.
async fn replace(talk: &Talk, entries: u64) {
    talk.router.cleanup_process(&talk.job).await.unwrap();
    talk.router.create_process(observed()).await.unwrap();
    for sequence in 1..=entries {
        talk.say("ann", sequence, "new").await;
    }
}

#[tokio::test]
async fn a_follower_whose_process_is_replaced_during_a_read_is_not_given_the_next_one() {
    let (talk, store) = gated().await;
    talk.say("ann", 1, "x").await;
    let mut follower = talk.follow("oscar", 0).await;
    let place = follower.place(Position(0));
    store.shut("talk", Gate::ReadsWait);
    let replaced = async {
        store.until_read().await;
        replace(&talk, 1).await;
        store.open();
    };
    let (notice, ()) = soon(async { tokio::join!(next(&mut follower), replaced) }).await;
    assert_eq!(notice, Notice::Closed { reason: CloseReason::Removed, last: Position(0) });
    let read = talk.router.read_after(&talk.id, &by("oscar"), place, 0).await;
    assert_eq!(code(read), "cursor_foreign");
    let read = talk.router.read_after(&talk.id, &by("oscar"), Place::START, 0).await.unwrap();
    assert_eq!(read.entries.len(), 1);
}

#[tokio::test]
async fn a_read_that_waits_behind_a_number_is_not_answered_by_the_next_process() {
    let (talk, _) = gated().await;
    talk.say("ann", 1, "x").await;
    // It has found its process when the other one comes: this store answers at once.
    let oscar = by("oscar");
    let read = talk.router.wait_after(&talk.id, &oscar, 1, 0, LONG);
    let (read, ()) = soon(async { tokio::join!(read, replace(&talk, 2)) }).await;
    assert_eq!(code(read), "cursor_foreign");
}
