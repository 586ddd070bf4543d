//! Writes of groups that fail, and who has left by then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::memory::MemoryLog;
use millrace::error::BackendError;
use millrace::event::{Position, TenantId};
use millrace::streams::EventLog;
use millrace::streams::groups::{
    GroupChange, GroupError, GroupId, GroupLimits, GroupOwner, GroupStart, GroupStore, GroupWrite, Groups,
    LetterPage, LoadedGroup, NewGroup, Settle, StoredGroup, Unread,
};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{THREE_TRIES, append, group, labels, read_of};
use tokio::sync::Notify;

/// A store of which one write takes long and then fails.
#[derive(Debug)]
struct Failing {
    store: Arc<MemoryLog>,
    fails: AtomicBool,
    asked: Notify,
    goes: Notify,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, GroupError>>;

impl GroupStore for Failing {
    fn ensure(&self, group: &GroupId, wanted: NewGroup) -> Answer<'_, (StoredGroup, bool)> {
        GroupStore::ensure(&*self.store, group, wanted)
    }

    fn remove(&self, group: &GroupId) -> Answer<'_, ()> {
        GroupStore::remove(&*self.store, group)
    }

    fn load(&self, group: &GroupId) -> Answer<'_, LoadedGroup> {
        GroupStore::load(&*self.store, group)
    }

    fn row(&self, group: &GroupId) -> Answer<'_, StoredGroup> {
        GroupStore::row(&*self.store, group)
    }

    fn list(&self, of: Option<(&TenantId, &str)>, limit: usize) -> Answer<'_, Vec<StoredGroup>> {
        GroupStore::list(&*self.store, of, limit)
    }

    fn write(&self, group: &GroupId, write: GroupWrite) -> Answer<'_, ()> {
        if !self.fails.swap(false, Ordering::SeqCst) {
            return GroupStore::write(&*self.store, group, write);
        }
        async {
            self.asked.notify_one();
            self.goes.notified().await;
            Err(BackendError::Failed { detail: "a test".to_owned() }.into())
        }
        .boxed()
    }

    fn seek(&self, group: &GroupId, to: Position) -> Answer<'_, ()> {
        GroupStore::seek(&*self.store, group, to)
    }

    fn letters(&self, group: &GroupId, after: Position, limit: usize) -> Answer<'_, LetterPage> {
        GroupStore::letters(&*self.store, group, after, limit)
    }

    fn unread(&self, group: &GroupId, after: Position, max: u64) -> Answer<'_, Unread> {
        GroupStore::unread(&*self.store, group, after, max)
    }
}

/// Two entries are with a consumer, each of which becomes a dead letter when it fails.
async fn leased() -> (Arc<Failing>, GroupOwner, GroupId, Vec<Settle>) {
    let clock = super::manual_clock();
    let store = Arc::new(MemoryLog::with_options(clock.clone(), 1_000, 1 << 20));
    let log: Arc<dyn EventLog> = store.clone();
    let (fails, asked, goes) = (AtomicBool::new(false), Notify::new(), Notify::new());
    let store = Arc::new(Failing { store, fails, asked, goes });
    let groups = GroupOwner::new(log.clone(), store.clone(), clock, GroupLimits::default());
    let id = group("acme", "billing");
    let once = GroupChange { attempts_max: Some(1), ..THREE_TRIES };
    groups.ensure(&id, GroupStart::Oldest, once).await.unwrap();
    append(&log, &tenant("acme"), &["a1", "b1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    let nack = |n: usize| {
        let receipt = taken[n].receipt;
        Settle::Nack { receipt, delay_ms: None, reason: "no".into() }
    };
    let said = vec![nack(0), nack(1)];
    (store, groups, id, said)
}

/// Begins a call and leaves while its write is under way.
async fn leaves(store: &Failing, groups: &GroupOwner, id: &GroupId, said: Settle) {
    tokio::select! {
        biased;
        settled = groups.settle(id, vec![said]) => panic!("{settled:?}"),
        () = store.asked.notified() => {}
    }
}

#[tokio::test]
async fn a_dead_letter_whose_write_fails_leaves_its_entry_undone_whatever_is_written_beside_it() {
    let (store, groups, id, said) = leased().await;
    store.fails.store(true, Ordering::SeqCst);
    leaves(&store, &groups, &id, said[0].clone()).await;
    let other = groups.settle(&id, vec![said[1].clone()]);
    tokio::pin!(other);
    tokio::select! {
        biased;
        settled = &mut other => panic!("{settled:?} before it is known what became of the other write"),
        () = tokio::task::yield_now() => {}
    }
    store.goes.notify_one();
    let error = other.await.unwrap_err();
    assert!(matches!(error, GroupError::Backend(BackendError::Failed { .. })), "{error:?}");
    assert_eq!(groups.letters(&id, Position::START, 10).await.unwrap().letters.len(), 0);
    let again = groups.read(&id, read_of("two", 10)).await.unwrap().entries;
    assert_eq!(labels(&again), ["a1", "b1"], "nothing has gone");
}

#[tokio::test]
async fn what_a_caller_said_who_left_is_written_all_the_same() {
    let (store, groups, id, said) = leased().await;
    let settled = groups.settle(&id, said);
    // It is asked once, which is as far as a caller may come that is cut off.
    assert!(settled.now_or_never().is_none(), "it waits for its write");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    // The store itself is asked: the group's owner would write what is not written.
    let letters = store.letters(&id, Position::START, 10).await.unwrap();
    assert_eq!(letters.letters.len(), 2);
}
