//! Claims about emitted events on their way to a log that is not in the store.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use millrace::backends::memory::{MemoryLeases, MemoryLog};
use millrace::backends::sqlite::{LogPlace, OpenError, SqliteOptions, SqliteStore};
use millrace::checkpoints::{
    CheckpointStore, CommitError, Generation, LogMark, LogMarks, Outbox, OutboxBatch, OutboxDone, TaskId,
};
use millrace::cluster::{Ownerships, Right};
use millrace::error::{BackendError, Classify};
use millrace::event::{Epoch, Event, EventBatch, Position};
use millrace::limits::{BATCH_EVENTS_MAX, OUTBOX_EVENTS_MAX};
use millrace::processors::{Carried, Relay};
use millrace::streams::{EventLog, PageLimit};
use millrace_tests::conformance::effects::{Effects, commit, task, tenant};
use millrace_tests::until;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions { log: LogPlace::Elsewhere, ..SqliteOptions::new(dir) }).unwrap()
}

/// Has a task emit one event a key, in one commit.
async fn emit(store: &SqliteStore, task: &TaskId, at: u64, keys: &[&str]) -> Result<(), CommitError> {
    let mut effects = Effects::default();
    for key in keys {
        effects.emit(key, at, "{}");
    }
    let generation = store.claim(task).await.unwrap().0;
    store.commit(commit(task, generation, at, &[], &mut effects)).await.map(drop)
}

/// What a log has of tenant `acme`: key and version, in order.
async fn logged(log: &dyn EventLog) -> Vec<(String, u64)> {
    let limit = PageLimit { events: 10_000, bytes: 64 << 20 };
    let page = log.read(&tenant("acme"), Position::START, limit).await.unwrap();
    page.events.iter().map(|event| (event.agg_id.to_owned(), event.version)).collect()
}

fn pairs(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(key, version)| ((*key).to_owned(), *version)).collect()
}

fn relay(store: &SqliteStore, log: &Arc<MemoryLog>) -> Relay {
    Relay::new(Arc::new(store.clone()), Arc::clone(log) as Arc<dyn EventLog>, None)
}

#[tokio::test]
async fn what_is_emitted_waits_in_the_store_over_its_closing_and_is_carried_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let board = task("board", "acme", 0);
    let store = open(dir.path());
    emit(&store, &board, 1, &["a", "b"]).await.unwrap();
    emit(&store, &board, 2, &["a"]).await.unwrap();
    assert_eq!((store.len(), store.bounds().newest), (3, Position::START), "its own log has nothing");
    store.close().await;
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.len(), 3);
    let log = Arc::new(MemoryLog::new());
    let carried = relay(&store, &log).carry().await.unwrap();
    assert_eq!(carried, Carried { events: 3, refused: 0, left: false });
    assert_eq!(logged(&*log).await, pairs(&[("a", 1), ("b", 1), ("a", 2)]));
    assert!(store.is_empty());
    assert_eq!(relay(&store, &log).carry().await.unwrap(), Carried::default());
}

#[tokio::test]
async fn a_commit_that_is_refused_leaves_nothing_in_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let board = task("board", "acme", 0);
    let outdated = store.claim(&board).await.unwrap().0;
    let newer = store.claim(&board).await.unwrap().0;
    let write = |generation: Generation| {
        let mut effects = Effects::default();
        commit(&board, generation, 1, &[], effects.emit("a", 1, "{}"))
    };
    assert!(matches!(store.commit(write(outdated)).await, Err(CommitError::Fenced { .. })));
    assert!(store.is_empty());
    store.commit(write(newer)).await.unwrap();
    assert_eq!(store.len(), 1);
}

/// Forgets what was settled, once: as a host does that ends between the append and that.
#[derive(Debug)]
struct EndsBeforeItSettles {
    store: SqliteStore,
    left: AtomicUsize,
}

impl Outbox for EndsBeforeItSettles {
    fn waiting(&self, held: &[Arc<str>]) -> BoxFuture<'_, Result<Vec<OutboxBatch>, BackendError>> {
        self.store.waiting(held)
    }

    fn settle(&self, done: OutboxDone) -> BoxFuture<'_, Result<(), BackendError>> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return ready(Err(BackendError::Closed)).boxed();
        }
        self.store.settle(done)
    }

    fn added(&self) -> watch::Receiver<u64> {
        self.store.added()
    }

    fn len(&self) -> u64 {
        self.store.len()
    }

    fn is_empty_of(&self, processor: &str) -> bool {
        self.store.is_empty_of(processor)
    }
}

#[tokio::test]
async fn sn12_what_was_carried_and_not_crossed_off_is_in_the_log_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    emit(&store, &task("board", "acme", 0), 1, &["a", "b"]).await.unwrap();
    let log = Arc::new(MemoryLog::new());
    let outbox = Arc::new(EndsBeforeItSettles { store: store.clone(), left: AtomicUsize::new(1) });
    let relay = Relay::new(outbox, Arc::clone(&log) as Arc<dyn EventLog>, None);
    assert!(matches!(relay.carry().await, Err(BackendError::Closed)));
    assert_eq!((store.len(), logged(&*log).await.len()), (2, 2));
    emit(&store, &task("board", "acme", 0), 2, &["b"]).await.unwrap();
    assert_eq!(relay.carry().await.unwrap(), Carried { events: 2 + 1, refused: 0, left: false });
    assert_eq!(logged(&*log).await, pairs(&[("a", 1), ("b", 1), ("b", 2)]));
}

#[tokio::test]
async fn sn13_an_event_that_the_log_refuses_holds_up_nothing_and_is_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let log = Arc::new(MemoryLog::new());
    // Somebody has published another event under the id that the second one derives.
    let mut taken = EventBatch::new(tenant("acme"));
    taken
        .push(&Event {
            aggregate: "leg",
            agg_id: "b",
            version: 1,
            event_type: "other",
            payload: b"[]",
            ..Event::default()
        })
        .unwrap();
    log.append(taken).await.unwrap();
    emit(&store, &task("board", "acme", 0), 1, &["a", "b", "c"]).await.unwrap();
    let carried = relay(&store, &log).carry().await.unwrap();
    assert_eq!(carried, Carried { events: 2, refused: 1, left: false });
    assert_eq!(logged(&*log).await, pairs(&[("b", 1), ("a", 1), ("c", 1)]));
    assert!(store.is_empty());
    store.close().await;
    let db = rusqlite::Connection::open(dir.path().join("millrace.db")).unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let kept: (String, String, String) =
        db.query_row("SELECT processor, agg_id, code FROM outbox_refused", [], row).unwrap();
    assert_eq!(kept, ("board".into(), "b".into(), "event_id_taken".into()));
}

#[tokio::test]
async fn a_full_outbox_refuses_commits_that_emit_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let board = task("board", "acme", 0);
    let keys: Vec<String> = (0..1_000).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let commits = OUTBOX_EVENTS_MAX / 1_000;
    for at in 1..=commits {
        emit(&store, &board, at, &keys).await.unwrap();
    }
    let refused = emit(&store, &board, commits + 1, &["one more"]).await.unwrap_err();
    assert_eq!(refused.code(), "outbox_events_max");
    assert!(
        refused
            .to_string()
            .contains("100001 emitted events of the plugin wait for the log; outbox_events_max is 100000")
    );
    emit(&store, &board, commits + 1, &[]).await.expect("what emits nothing goes on");
    let watch = task("watch", "globex", 0);
    assert!(store.is_empty_of("watch") && !store.is_empty_of("board"));
    emit(&store, &watch, 1, &["other"]).await.expect("another processor has its own room");
    assert!(!store.is_empty_of("watch"));
    let log = Arc::new(MemoryLog::new());
    let first = relay(&store, &log).carry().await.unwrap();
    assert_eq!(first, Carried { events: BATCH_EVENTS_MAX as u64, refused: 0, left: false });
    emit(&store, &board, commits + 2, &["one more"]).await.unwrap();
    let relay = relay(&store, &log);
    while !store.is_empty() {
        relay.carry().await.unwrap();
    }
    let (mut versions, mut after) = (Vec::new(), Position::START);
    while after < log.bounds().newest {
        let page =
            log.read(&tenant("acme"), after, PageLimit { events: 4_000, bytes: 64 << 20 }).await.unwrap();
        versions.extend(page.events.iter().map(|event| event.version));
        after = page.next;
    }
    assert!(versions.is_sorted(), "they are in the order of their commits");
    assert_eq!(versions.len() as u64, OUTBOX_EVENTS_MAX + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_this_host_owns_is_carried() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    emit(&store, &task("board", "acme", 0), 1, &["a"]).await.unwrap();
    emit(&store, &task("watch", "acme", 0), 1, &["b"]).await.unwrap();
    let leases = Arc::new(MemoryLeases::default());
    let ttl = Duration::from_secs(60);
    let other = Ownerships::new(leases.clone(), "other", ttl);
    let owners = Ownerships::new(leases, "this", ttl);
    let mut tasks = JoinSet::new();
    let end = CancellationToken::new();
    let (mut theirs, keeper) = other.keep("watch", end.clone());
    tasks.spawn(keeper);
    theirs.gained().await;
    let (mut ours, keeper) = owners.keep("board", CancellationToken::new());
    tasks.spawn(keeper);
    ours.gained().await;
    let (_, keeper) = owners.keep("watch", CancellationToken::new());
    tasks.spawn(keeper);
    let log = Arc::new(MemoryLog::new());
    let relay =
        Relay::new(Arc::new(store.clone()), Arc::clone(&log) as Arc<dyn EventLog>, Some(owners.clone()));
    assert_eq!(relay.carry().await.unwrap(), Carried { events: 1, refused: 0, left: false });
    assert_eq!(logged(&*log).await, pairs(&[("a", 1)]));
    assert_eq!(relay.carry().await.unwrap(), Carried::default(), "the other host's wait");
    assert_eq!(store.len(), 1);
    end.cancel();
    tasks.spawn(async move { relay.run().await });
    until("the rest is carried once it is this host's", || store.is_empty()).await;
    assert_eq!(logged(&*log).await, pairs(&[("a", 1), ("b", 1)]));
}

#[tokio::test]
async fn a_store_works_with_the_log_that_it_has_begun_with() {
    let dir = tempfile::tempdir().unwrap();
    let own = |dir: &Path| SqliteStore::open(SqliteOptions::new(dir));
    let elsewhere =
        |dir: &Path| SqliteStore::open(SqliteOptions { log: LogPlace::Elsewhere, ..SqliteOptions::new(dir) });
    let store = own(dir.path()).unwrap();
    let mut batch = EventBatch::new(tenant("acme"));
    let event = Event {
        aggregate: "leg",
        agg_id: "a",
        version: 1,
        event_type: "x",
        payload: b"1",
        ..Event::default()
    };
    batch.push(&event).unwrap();
    store.append(batch).await.unwrap();
    store.close().await;
    drop(store);
    let refused = elsewhere(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::LogOwn { .. }), "{refused}");
    assert_eq!(refused.code(), "store_other_log");

    let dir = tempfile::tempdir().unwrap();
    let store = elsewhere(dir.path()).unwrap();
    store.mark_log(Epoch("one".into()), Position(7)).await.unwrap();
    store.close().await;
    drop(store);
    let refused = own(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::LogElsewhere { .. }), "{refused}");
    elsewhere(dir.path()).expect("the refusal has let the folder go");
}

#[tokio::test]
async fn what_a_store_remembers_of_its_log_is_no_less_than_its_tasks_have_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.log_mark().await.unwrap(), None);
    store.mark_log(Epoch("one".into()), Position(7)).await.unwrap();
    emit(&store, &task("board", "acme", 0), 9, &[]).await.unwrap();
    let mark = LogMark { epoch: Epoch("one".into()), newest: Position(7), reached: Position(9) };
    assert_eq!(store.log_mark().await.unwrap(), Some(mark));
    store.mark_log(Epoch("two".into()), Position(20)).await.unwrap();
    let mark = LogMark { epoch: Epoch("two".into()), newest: Position(20), reached: Position(20) };
    assert_eq!(store.log_mark().await.unwrap(), Some(mark));
}

#[tokio::test]
async fn what_a_plugin_emitted_that_runs_here_no_more_is_still_carried() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    emit(&store, &task("removed", "acme", 0), 1, &["a"]).await.unwrap();
    let owners = Ownerships::new(Arc::new(MemoryLeases::default()), "this", Duration::from_secs(60));
    let log = Arc::new(MemoryLog::new());
    let relay = Relay::new(Arc::new(store.clone()), Arc::clone(&log) as Arc<dyn EventLog>, Some(owners));
    assert_eq!(relay.carry().await.unwrap(), Carried { events: 1, refused: 0, left: false });
    assert!(store.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_emitted_that_runs_here_no_more_waits_while_another_host_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    emit(&store, &task("moved", "acme", 0), 1, &["a"]).await.unwrap();
    let leases = Arc::new(MemoryLeases::default());
    let ttl = Duration::from_secs(60);
    let other = Ownerships::new(leases.clone(), "other", ttl);
    let (mut tasks, end) = (JoinSet::new(), CancellationToken::new());
    let (mut theirs, keeper) = other.keep("moved", end.clone());
    tasks.spawn(keeper);
    theirs.gained().await;
    let owners = Ownerships::new(leases, "this", ttl);
    let log = Arc::new(MemoryLog::new());
    let relay =
        Relay::new(Arc::new(store.clone()), Arc::clone(&log) as Arc<dyn EventLog>, Some(owners.clone()));
    assert_eq!(relay.carry().await.unwrap(), Carried { events: 0, refused: 0, left: true });
    emit(&store, &task("removed", "acme", 0), 1, &["b"]).await.unwrap();
    assert_eq!(relay.carry().await.unwrap().events, 1);
    assert_eq!(logged(&*log).await, pairs(&[("b", 1)]), "what waits holds up nothing");
    end.cancel();
    tasks.join_next().await.unwrap().unwrap();
    tasks.spawn(async move { relay.run().await });
    until("it is carried when nobody runs the plugin", || store.is_empty()).await;
    assert_eq!(logged(&*log).await, pairs(&[("b", 1), ("a", 1)]));
    until("and the lease is given back", || owners.right("moved") == Right::NotKept).await;
    let (mut theirs, keeper) = other.keep("moved", CancellationToken::new());
    tasks.spawn(keeper);
    assert_eq!(theirs.gained().await, 3, "it was carried under a lease between the two");
}
