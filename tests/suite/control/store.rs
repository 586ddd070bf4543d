//! Both memories of the control feed pass one suite.

use std::sync::Arc;

use millrace::backends::memory::MemoryControlStore;
use millrace::backends::sqlite::{SqliteControlOptions, SqliteControlStore, Synchronous};
use millrace::clock::ManualClock;
use millrace::control::{ControlFeedError, ControlStore};
use millrace::error::{BackendError, Classify as _};
use millrace_tests::conformance::control_store::Stage;
use millrace_tests::control::{OUTBOX_EVENTS_MAX, at, deployed, id, state, v};
use tempfile::TempDir;

async fn memory() -> (Stage, ()) {
    let clock = Arc::new(ManualClock::default());
    let store = MemoryControlStore::new(clock.clone()).with_outbox(OUTBOX_EVENTS_MAX);
    (Stage::new(clock, move || Arc::new(store.clone())), ())
}

async fn sqlite() -> (Stage, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let options = SqliteControlOptions {
        // Nothing here is about the power.
        synchronous: Synchronous::Off,
        outbox_events_max: OUTBOX_EVENTS_MAX,
        ..SqliteControlOptions::new(dir.path(), clock.clone())
    };
    let open = move || -> Arc<dyn ControlStore> { Arc::new(SqliteControlStore::open(&options).unwrap()) };
    (Stage::new(clock, open), dir)
}

mod desired {
    use super::{memory, sqlite};

    millrace_tests::control_store_conformance!(on_memory, memory);
    millrace_tests::control_store_conformance!(on_sqlite, sqlite);
}

mod outbox {
    use super::{memory, sqlite};

    millrace_tests::control_outbox_conformance!(on_memory, memory);
    millrace_tests::control_outbox_conformance!(on_sqlite, sqlite);
}

/// What a process leaves claimed is due when the next one starts: it need not wait for the lease.
#[tokio::test]
async fn claims_end_with_the_process_that_had_them() {
    let (stage, _dir) = sqlite().await;
    let store = stage.open();
    store.propose(&deployed(1, "p", 1)).await.unwrap();
    let lease = std::time::Duration::from_secs(600);
    assert_eq!(store.claim(9, lease).await.unwrap().len(), 1);
    assert!(store.claim(9, lease).await.unwrap().is_empty());
    drop(store);
    let claimed = stage.open().claim(9, lease).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].claim, 2, "another claim than the one before");
}

/// A call that is dropped was carried out or was not; the next one finds either, and never a part.
#[tokio::test]
async fn a_dropped_call_is_done_or_not() {
    let (stage, _dir) = sqlite().await;
    let store = stage.open();
    for n in 1..=20 {
        let event = deployed(n, "p", n);
        let mut call = Box::pin(store.apply(v(n), &event));
        // Begun, and dropped while its thread is at it.
        let _ = futures_util::poll!(&mut call);
        drop(call);
        let (cursor, rows) = store.desired().await.unwrap();
        let revisions: Vec<u64> = rows.iter().map(|row| row.revision).collect();
        assert!(cursor.0 <= n);
        assert_eq!(
            revisions.last().copied().unwrap_or(0),
            cursor.0,
            "state and cursor are of one transaction"
        );
        let known = store.applied(&id(n)).await.unwrap();
        if let Some(known) = known {
            assert_eq!(known, v(n));
        }
        store.apply(v(n), &event).await.unwrap();
        assert_eq!(state(&*store).await, [at("p", n, n)]);
    }
}

/// A full disk refuses, loses nothing, and is worth another try.
#[tokio::test]
async fn a_full_disk_refuses_and_keeps_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let options = |bytes_max| SqliteControlOptions {
        bytes_max,
        ..SqliteControlOptions::new(dir.path(), clock.clone())
    };
    let store = SqliteControlStore::open(&options(Some(200 << 10))).unwrap();
    let mut applied = 0;
    let error = loop {
        let n = applied + 1;
        match store.apply(v(n), &deployed(n, &format!("p{n}"), 1)).await {
            Ok(_) => applied = n,
            Err(error) => break error,
        }
        assert!(applied < 10_000, "it is full some time");
    };
    assert!(applied > 0);
    assert!(matches!(error, ControlFeedError::Backend(BackendError::DiskFull { .. })), "{error}");
    assert_ne!(error.retry(), millrace::error::Retry::Never);
    assert_eq!(store.cursor().await.unwrap(), v(applied));
    drop(store);
    let store = SqliteControlStore::open(&options(None)).unwrap();
    assert_eq!(state(&store).await.len() as u64, applied);
    store.apply(v(applied + 1), &deployed(applied + 1, &format!("p{}", applied + 1), 1)).await.unwrap();
}

/// What this version cannot read, since a later one wrote it or the file is damaged, keeps no host from starting and no other
/// event from being told.
#[tokio::test]
async fn a_row_that_cannot_be_read_holds_up_its_own_entity_only() {
    let (stage, dir) = sqlite().await;
    let store = stage.open();
    for (number, plugin) in [(1, "p"), (2, "q")] {
        store.apply(v(number), &deployed(number, plugin, 1)).await.unwrap();
    }
    for (number, plugin, revision) in [(3, "r", 1), (4, "r", 2), (5, "s", 1)] {
        store.propose(&deployed(number, plugin, revision)).await.unwrap();
    }
    let db = rusqlite::Connection::open(dir.path().join("control.db")).unwrap();
    let set = |table: &str, number: u64, text: &str| {
        let sql = format!("UPDATE {table} SET event = ?2 WHERE event_id = ?1");
        assert_eq!(db.execute(&sql, (id(number).as_str(), text)).unwrap(), 1);
    };
    set("desired", 1, "{\"kind\": \"of a later host\"}");
    set("outbox", 3, "{");
    let store = stage.open();
    assert_eq!(state(&*store).await, [at("q", 1, 2)]);
    assert_eq!(store.cursor().await.unwrap(), v(2));
    assert_eq!(store.proposed().await.unwrap().len(), 3);
    let lease = std::time::Duration::from_secs(600);
    let claimed = store.claim(9, lease).await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.event.id()).collect::<Vec<_>>(), [&id(5)]);
    let letters = store.letters(9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| &letter.event).collect::<Vec<_>>(), [&id(3)]);
    // A version that can read it goes on where this one stopped.
    set("outbox", 3, &deployed(3, "r", 1).to_json());
    assert!(store.retry_letter(&id(3)).await.unwrap());
    let claimed = store.claim(9, lease).await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.event.id()).collect::<Vec<_>>(), [&id(3), &id(4)]);
    // Nor does it keep what comes later from counting.
    store.apply(v(6), &deployed(6, "p", 2)).await.unwrap();
    assert_eq!(state(&*store).await, [at("p", 2, 6), at("q", 1, 2)]);
}

/// A file of a later version is not touched.
#[tokio::test]
async fn a_newer_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteControlOptions::new(dir.path(), Arc::new(ManualClock::default()));
    drop(SqliteControlStore::open(&options).unwrap());
    let db = rusqlite::Connection::open(dir.path().join("control.db")).unwrap();
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(db);
    let error = SqliteControlStore::open(&options).unwrap_err();
    assert_eq!(error.code(), "store_newer_schema");
}
