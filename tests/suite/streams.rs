//! Claims about streams.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::backends::sqlite::{OpenError, SqliteOptions, SqliteStore, Synchronous};
use millrace::checkpoints::CheckpointStore;
use millrace::clock::ManualClock;
use millrace::error::BackendError;
use millrace::event::{Micros, Position};
use millrace::streams::{EventLog, Retention, StreamError};
use millrace_tests::conformance::effects::{Effects, commit, task, tenant};
use millrace_tests::conformance::event_log::{append_one, batch, ids};

type Log = Arc<dyn EventLog>;

async fn memory_log() -> (Log, ()) {
    (Arc::new(MemoryLog::new()), ())
}

async fn sqlite_log() -> (Log, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(SqliteStore::open(SqliteOptions::new(dir.path())).unwrap()), dir)
}

/// A dedup window whose hashes nearly all collide must change nothing.
async fn sqlite_log_of_collisions() -> (Log, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { dedup_hash_bits: 2, ..SqliteOptions::new(dir.path()) };
    (Arc::new(SqliteStore::open(options).unwrap()), dir)
}

millrace_tests::event_log_conformance!(memory, memory_log);
millrace_tests::event_log_conformance!(sqlite, sqlite_log);
millrace_tests::event_log_conformance!(colliding, sqlite_log_of_collisions);

fn open(options: &SqliteOptions) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(options.clone()).unwrap())
}

#[tokio::test]
async fn reopened_store_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path());
    let (acme, owner) = (tenant("acme"), task("board", "acme", 0));
    let store = open(&options);
    let epoch = store.epoch();
    let log: Log = store.clone();
    for id in ["a", "b", "c"] {
        append_one(&log, &acme, id).await;
    }
    let (generation, _) = store.claim(&owner).await.unwrap();
    let done = store.commit(commit(&owner, generation, 2, &[], &mut Effects::default())).await.unwrap();
    log.trim(Retention { events: Some(2), age: None }).await.unwrap();
    let bounds = log.bounds();
    store.close().await;
    drop((store, log));

    let store = open(&options);
    let log: Log = store.clone();
    assert_eq!((log.epoch(), log.bounds(), log.tenants()), (epoch, bounds, vec![acme.clone()]));
    assert_eq!(ids(&log, &acme, Position(1)).await, ["b", "c"]);
    assert!(append_one(&log, &acme, "c").await.repeated);
    assert_eq!(append_one(&log, &acme, "d").await.position, Position(4));
    let (next, checkpoint) = store.claim(&owner).await.unwrap();
    assert!(next > generation);
    assert_eq!(checkpoint.unwrap().revision, done.revision);
}

#[tokio::test]
async fn trimmed_empty_log_keeps_counting_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path());
    let log: Log = open(&options);
    append_one(&log, &tenant("acme"), "a").await;
    log.trim(Retention { events: Some(0), age: None }).await.unwrap();
    drop(log);
    let log: Log = open(&options);
    assert_eq!((log.bounds().trimmed, log.bounds().newest), (Position(1), Position(1)));
    assert_eq!(append_one(&log, &tenant("acme"), "a").await.position, Position(2));
}

#[tokio::test]
async fn second_opener_is_refused_and_told_who_holds_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path());
    let store = open(&options);
    match SqliteStore::open(options.clone()) {
        Err(OpenError::Locked { holder, .. }) => {
            assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        }
        other => panic!("{other:?}"),
    }
    store.close().await;
    open(&options);
}

#[tokio::test]
async fn store_of_a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path());
    drop(open(&options));
    let conn = rusqlite::Connection::open(dir.path().join("millrace.db")).unwrap();
    conn.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(conn);
    let refused = SqliteStore::open(options);
    assert!(matches!(refused, Err(OpenError::NewerSchema { found: 99, known: 9 })), "{refused:?}");
}

#[tokio::test]
async fn closed_store_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&SqliteOptions::new(dir.path()));
    store.close().await;
    store.close().await;
    let refused = store.append(batch(&tenant("acme"), &[("a", "{}")])).await;
    assert!(matches!(refused, Err(StreamError::Backend(BackendError::Closed))), "{refused:?}");
}

#[tokio::test]
async fn full_disk_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { database_bytes_max: Some(1 << 20), ..SqliteOptions::new(dir.path()) };
    let log: Log = open(&options);
    let acme = tenant("acme");
    let payload = format!("\"{}\"", "x".repeat(10_000));
    let mut acknowledged = 0;
    let refused = loop {
        match log.append(batch(&acme, &[(&format!("id-{acknowledged}"), &payload)])).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the bound of the database holds");
    };
    assert!(matches!(refused, StreamError::Backend(BackendError::DiskFull { .. })), "{refused:?}");
    assert_eq!(log.bounds().newest, Position(acknowledged));
    assert_eq!(ids(&log, &acme, Position::START).await.len() as u64, acknowledged);
    // The refused event is not taken for a repeat, and room makes the store go on.
    log.trim(Retention { events: Some(5), age: None }).await.unwrap();
    let again = log.append(batch(&acme, &[(&format!("id-{acknowledged}"), &payload)])).await.unwrap();
    assert_eq!((again[0].position, again[0].repeated), (Position(acknowledged + 1), false));
    drop(log);
    let log: Log = open(&options);
    assert_eq!(log.bounds().newest, Position(acknowledged + 1));
    assert_eq!(ids(&log, &acme, Position(acknowledged - 5)).await.len(), 6);
}

#[tokio::test]
async fn low_disk_refuses_appends_and_lets_commits_pass() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: u64::MAX, ..SqliteOptions::new(dir.path()) };
    let store = open(&options);
    let refused = store.append(batch(&tenant("acme"), &[("a", "{}")])).await;
    assert!(matches!(refused, Err(StreamError::Backend(BackendError::DiskLow { .. }))), "{refused:?}");
    let owner = task("board", "acme", 0);
    let (generation, _) = store.claim(&owner).await.unwrap();
    store.commit(commit(&owner, generation, 0, &[], &mut Effects::default())).await.unwrap();
}

#[tokio::test]
async fn repeat_beyond_the_dedup_window_is_a_new_event() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { dedup_events_max: 3, ..SqliteOptions::new(dir.path()) };
    let acme = tenant("acme");
    let log: Log = open(&options);
    for id in ["a", "b", "c", "d"] {
        append_one(&log, &acme, id).await;
    }
    assert!(append_one(&log, &acme, "b").await.repeated);
    assert_eq!(append_one(&log, &acme, "a").await.position, Position(5));
    drop(log);
    let log: Log = open(&options);
    for (id, repeated) in [("a", true), ("d", true), ("c", true), ("b", false)] {
        assert_eq!(append_one(&log, &acme, id).await.repeated, repeated, "{id}");
    }
}

#[tokio::test]
async fn retention_by_age_goes_by_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let log: Log = open(&SqliteOptions { clock: clock.clone(), ..SqliteOptions::new(dir.path()) });
    for second in 1..=10 {
        clock.set(Micros(second * 1_000_000));
        append_one(&log, &tenant("acme"), &format!("id-{second}")).await;
    }
    let age = Some(std::time::Duration::from_secs(3));
    assert_eq!(log.trim(Retention { age, events: None }).await.unwrap(), 6);
    assert_eq!(ids(&log, &tenant("acme"), Position(6)).await, ["id-7", "id-8", "id-9", "id-10"]);
}

#[tokio::test]
async fn retention_is_applied_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { events: Some(2), age: None };
    let log: Log = open(&SqliteOptions { retention, ..SqliteOptions::new(dir.path()) });
    for n in 0..5 {
        append_one(&log, &tenant("acme"), &format!("id-{n}")).await;
    }
    let mut waited = tokio::time::interval(std::time::Duration::from_millis(20));
    let trimmed = async {
        while log.bounds().trimmed < Position(3) {
            waited.tick().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), trimmed).await.expect("the log was trimmed");
}

#[tokio::test]
async fn wal_has_room_for_small_transactions_and_it_is_not_taken_for_events() {
    let dir = tempfile::tempdir().unwrap();
    let log: Log = open(&SqliteOptions::new(dir.path()));
    let acme = tenant("acme");
    for n in 0..120 {
        append_one(&log, &acme, &format!("id-{n}")).await;
    }
    let wal = std::fs::read(dir.path().join("millrace.db-wal")).unwrap();
    assert!(wal.len() > 1 << 20, "{}", wal.len());
    assert!(room_of(&wal) > 100 << 10, "there is room for {} bytes", room_of(&wal));

    // What a crash leaves now.
    let copy = tempfile::tempdir().unwrap();
    for name in ["millrace.db", "millrace.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let found: Log = open(&SqliteOptions::new(copy.path()));
    assert_eq!(found.bounds().newest, Position(120));
    append_one(&found, &acme, "id-120").await;
    assert_eq!(found.bounds().newest, Position(121));
}

/// How many bytes at the end of a WAL are zeros.
fn room_of(wal: &[u8]) -> usize {
    wal.iter().rev().take_while(|byte| **byte == 0).count()
}

#[tokio::test]
async fn wal_that_is_not_synced_is_given_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let log: Log = open(&SqliteOptions { synchronous: Synchronous::Off, ..SqliteOptions::new(dir.path()) });
    for n in 0..120 {
        append_one(&log, &tenant("acme"), &format!("id-{n}")).await;
    }
    let wal = std::fs::read(dir.path().join("millrace.db-wal")).unwrap();
    assert!(wal.len() > 512 << 10, "{}", wal.len());
    assert!(room_of(&wal) < 4096, "{} bytes", room_of(&wal));
}

/// What a crash finds then: a header, frames of its generation, frames of the former one, zeros.
#[tokio::test]
async fn wal_that_began_anew_over_old_frames_and_was_made_longer_gives_back_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let log: Log = open(&SqliteOptions::new(dir.path()));
    let (acme, payload) = (tenant("acme"), format!("\"{}\"", "x".repeat(400_000)));
    // So much at once makes no room.
    log.append(batch(&acme, &[("large", &payload)])).await.unwrap();
    let path = dir.path().join("millrace.db-wal");
    let length = || std::fs::metadata(&path).unwrap().len();
    let former = length();
    // All of it is copied back: the next transaction begins it anew.
    let conn = rusqlite::Connection::open(dir.path().join("millrace.db")).unwrap();
    let is_busy = conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, bool>(0));
    assert!(!is_busy.unwrap());
    drop(conn);
    let mut count = 0;
    while length() < former + (1 << 20) {
        assert!(count < 500, "it is {} bytes long, it was {former}", length());
        append_one(&log, &acme, &format!("id-{count}")).await;
        count += 1;
    }

    let wal = std::fs::read(&path).unwrap();
    let frames = wal[32..].chunks_exact(4096 + 24);
    let of_now = |frame: &&[u8]| frame[8..16] == wal[16..24];
    let (now, others): (Vec<_>, Vec<_>) = frames.partition(of_now);
    let old = others.iter().filter(|frame| frame[8..16] != [0; 8]).count();
    assert!(!now.is_empty() && old > 0, "{} frames, and {old} of the former generation", now.len());
    assert!(room_of(&wal) > 512 << 10, "there is room for {} bytes", room_of(&wal));
    let copy = tempfile::tempdir().unwrap();
    for name in ["millrace.db", "millrace.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let found: Log = open(&SqliteOptions::new(copy.path()));
    let wanted: Vec<String> =
        ["large".to_owned()].into_iter().chain((0..count).map(|n| format!("id-{n}"))).collect();
    assert_eq!(ids(&found, &acme, Position::START).await, wanted);
    append_one(&found, &acme, "next").await;
    assert_eq!(found.bounds().newest, Position(count + 2));
}

#[tokio::test]
async fn wal_is_bounded_and_its_events_survive() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        wal_bytes_soft_max: 256 << 10,
        wal_bytes_hard_max: 1 << 20,
        ..SqliteOptions::new(dir.path())
    };
    let log: Log = open(&options);
    let (acme, payload) = (tenant("acme"), format!("\"{}\"", "x".repeat(20_000)));
    for n in 0..300 {
        log.append(batch(&acme, &[(&format!("id-{n}"), &payload)])).await.unwrap();
    }
    let wal = std::fs::metadata(dir.path().join("millrace.db-wal")).unwrap().len();
    assert!(wal < 2 << 20, "6 MB were written, the WAL has {wal} bytes");
    assert_eq!(log.bounds().newest, Position(300));
    drop(log);
    assert_eq!(open(&options).bounds().newest, Position(300));
}
