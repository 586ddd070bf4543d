//! Claims about entries that lie in runs: how many are settled at once, what is read meanwhile, and what a start makes of
//! what a kill has left.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use millrace::backends::sqlite::{CommitStep, SqliteOptions, SqliteStore, StepObserver, Synchronous};
use millrace::channels::{Actor, ChannelStore, NewEntry, Router};
use millrace::limits::{CHANNEL_SETTLE_BYTES, CHANNEL_UNSETTLED_ENTRY_BYTES};
use millrace_tests::conformance::channels::{batch, code, free, party, positions, talk_of, work};
use millrace_tests::until;
use rusqlite::{Connection, Row};

use crate::crash_points::copy_store;

/// Such an entry goes into a run, and is far from nothing.
const LARGE_BYTES: usize = 32 << 10;
const LARGE_ENTRIES: u64 = 20;
const BATCHES: u64 = 40;
const BATCH_ENTRIES: u64 = 100;
const ENTRIES: u64 = BATCHES * BATCH_ENTRIES + LARGE_ENTRIES;

fn options(dir: &Path) -> SqliteOptions {
    SqliteOptions { channels: free(), ..SqliteOptions::new(dir) }
}

async fn open(options: SqliteOptions) -> (SqliteStore, Router) {
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(options)).await.unwrap().unwrap();
    let router = Router::new(Arc::new(store.clone()) as Arc<dyn ChannelStore>);
    (store, router)
}

/// Each one is different.
fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
    let mut payload = sequence.to_string().into_bytes();
    payload.resize(payload.len().max(bytes), b'.');
    payload
}

/// What a store has in tables: settled entries, their bytes, and runs.
fn tables(dir: &Path) -> (u64, u64, u64) {
    let conn = Connection::open(dir.join("millrace.db")).unwrap();
    let sql =
        "SELECT count(*), coalesce(sum(bytes), 0), (SELECT count(*) FROM channel_runs) FROM channel_entries";
    let numbers =
        |row: &Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?].map(i64::cast_unsigned));
    let [entries, bytes, runs] = conn.query_row(sql, [], numbers).unwrap();
    (entries, bytes, runs)
}

/// All of the channel: none is missing, none comes twice, each is what was sent. Answers how many there are.
async fn look(router: &Router) -> u64 {
    let (mut count, newest) = (0, router.sequence(&talk_of("job")).await.unwrap().0);
    while count < newest {
        let page = router.read_after(&talk_of("job"), &Actor::Host, count, 0).await.unwrap();
        assert!(!page.entries.is_empty(), "after {count} of {newest}");
        for entry in page.entries {
            count += 1;
            assert_eq!((entry.position.0, entry.sequence), (count, count));
            let sent = payload(count, 0);
            assert!(entry.payload.as_ref().is_some_and(|payload| payload.starts_with(&sent)), "{count}");
        }
    }
    count
}

/// What a kill leaves of a store whose entries lie in runs, or most of them. Answers how many bytes those have.
async fn left_by_a_kill(to: &Path) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (from, into) = (dir.path().to_owned(), to.to_owned());
    let copies = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&copies);
    let observer = StepObserver(Arc::new(move |step| {
        if step == CommitStep::Synced && asked.swap(false, Ordering::SeqCst) {
            copy_store(&from, &into);
        }
    }));
    let (store, router) = open(SqliteOptions { observer: Some(observer), ..options(dir.path()) }).await;
    router.create_process(work("job", &["talk"])).await.unwrap();
    for sequence in 1..=LARGE_ENTRIES {
        copies.store(sequence == LARGE_ENTRIES, Ordering::SeqCst);
        let payload = payload(sequence, LARGE_BYTES);
        router.append(&talk_of("job"), &party("ann"), sequence, None, payload).await.unwrap();
    }
    store.close().await;
    let conn = Connection::open(to.join("millrace.db")).unwrap();
    let sql = "SELECT coalesce(sum(length(run)), 0) FROM channel_runs";
    conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
}

#[tokio::test]
async fn a_host_starts_on_a_full_disk_and_settles_what_runs_have_left_once_there_is_room() {
    let mut left = tempfile::tempdir().unwrap();
    // The store settles on its own, once a second, and may have done so before it was copied.
    for tries in 0.. {
        if left_by_a_kill(left.path()).await >= LARGE_ENTRIES / 2 * LARGE_BYTES as u64 {
            break;
        }
        assert!(tries < 20, "the runs are empty each time");
        left = tempfile::tempdir().unwrap();
    }
    let full = SqliteOptions { database_bytes_max: Some(1), ..options(left.path()) };
    let (store, router) = open(full).await;
    let count = look(&router).await;
    assert!(count >= LARGE_ENTRIES - 1, "{count}");
    let larger = router.append(&talk_of("job"), &party("ann"), count + 1, None, vec![b'.'; 1 << 20]).await;
    assert_eq!(code(larger), "disk_full");
    store.close().await;
    drop((store, router));

    let (store, router) = open(options(left.path())).await;
    until("all is settled", || tables(left.path()).2 == 0).await;
    assert_eq!(tables(left.path()).0, count);
    assert_eq!(look(&router).await, count);
    let next = router.append(&talk_of("job"), &party("ann"), count + 1, None, payload(count + 1, 0)).await;
    assert_eq!(next.unwrap().position.0, count + 1);
    let again = router.append(&talk_of("job"), &party("ann"), count, None, payload(count, LARGE_BYTES)).await;
    assert!(again.unwrap().repeated);
    store.close().await;
}

#[tokio::test]
async fn a_channel_is_settled_in_bounded_steps_and_is_read_the_same_between_them() {
    let (dir, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, into) = (dir.path().to_owned(), cut.path().to_owned());
    let seen: Arc<Mutex<Vec<(u64, u64, u64)>>> = Arc::default();
    let (acknowledged, is_cut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (notes, known, cuts) = (Arc::clone(&seen), Arc::clone(&acknowledged), Arc::clone(&is_cut));
    let observer = StepObserver(Arc::new(move |step| {
        if step == CommitStep::Synced {
            let now = tables(&from);
            // Some entries of a channel are settled, and others not.
            if now.0 > 0 && now.0 < known.load(Ordering::SeqCst) && !cuts.swap(true, Ordering::SeqCst) {
                copy_store(&from, &into);
            }
            notes.lock().unwrap().push(now);
        }
    }));
    let (store, router) = open(SqliteOptions { observer: Some(observer), ..options(dir.path()) }).await;
    router.create_process(work("job", &["talk"])).await.unwrap();
    let talk = talk_of("job");
    let mut sequence = 0;
    for _ in 0..BATCHES {
        let entries = (1..=BATCH_ENTRIES).map(|n| NewEntry::data(sequence + n, payload(sequence + n, 0)));
        router.append_all(&talk, batch("ann", entries.collect())).await.unwrap();
        sequence += BATCH_ENTRIES;
        acknowledged.store(sequence, Ordering::SeqCst);
    }
    while sequence < ENTRIES {
        sequence += 1;
        let large = payload(sequence, LARGE_BYTES);
        router.append(&talk, &party("ann"), sequence, None, large).await.unwrap();
        acknowledged.store(sequence, Ordering::SeqCst);
    }
    while tables(dir.path()).2 > 0 {
        assert_eq!(look(&router).await, ENTRIES);
    }
    assert_eq!(look(&router).await, ENTRIES);
    store.close().await;

    let seen = seen.lock().unwrap().clone();
    let most = 2 * CHANNEL_SETTLE_BYTES + LARGE_BYTES;
    for pair in seen.windows(2) {
        let [(before, bytes_before, _), (after, bytes_after, _)] = *pair else { unreachable!() };
        let step = (after - before) * CHANNEL_UNSETTLED_ENTRY_BYTES as u64 + bytes_after - bytes_before;
        assert!(step <= most as u64, "from {pair:?} are {step} bytes; {most} are a step");
    }
    // A run goes with the last of its entries, and not with the last of the channel.
    for (entries, _, runs) in seen.iter().filter(|(entries, ..)| (ENTRIES / 2..ENTRIES).contains(entries)) {
        assert!(*runs <= BATCHES / 2 + LARGE_ENTRIES + 5, "{runs} runs with {entries} entries settled");
    }

    // A kill between two steps.
    assert!(is_cut.load(Ordering::SeqCst), "{seen:?}");
    let (store, router) = open(options(cut.path())).await;
    let count = look(&router).await;
    let entries = [1, count + 1].map(|sequence| NewEntry::data(sequence, payload(sequence, 0)));
    let appended = router.append_all(&talk, batch("ann", entries.to_vec())).await.unwrap();
    assert_eq!((positions(&appended), appended[0].repeated), (vec![1, count + 1], true));
    until("all is settled", || tables(cut.path()).2 == 0).await;
    assert_eq!(look(&router).await, count + 1);
    store.close().await;
}

/// The keeper, which looks once a second, settles less in all its rounds than is appended here in that time.
#[tokio::test]
async fn entries_that_wait_to_be_settled_stay_within_their_bound_however_many_are_appended() {
    const MOST: usize = 1 << 20;
    const APPENDS: u64 = 16 * MOST as u64 / LARGE_BYTES as u64;
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        channel_unsettled_bytes_max: MOST,
        synchronous: Synchronous::Off,
        ..options(dir.path())
    };
    let (store, router) = open(options).await;
    router.create_process(work("job", &["talk"])).await.unwrap();
    let each = (LARGE_BYTES + CHANNEL_UNSETTLED_ENTRY_BYTES) as u64;
    for sequence in 1..=APPENDS {
        let payload = payload(sequence, LARGE_BYTES);
        router.append(&talk_of("job"), &party("ann"), sequence, None, payload).await.unwrap();
        if sequence % 16 == 0 {
            let waiting = (sequence - tables(dir.path()).0) * each;
            assert!(waiting <= MOST as u64 + each, "{waiting} bytes wait after {sequence} entries");
        }
    }
    assert_eq!(look(&router).await, APPENDS);
    store.close().await;
    assert_eq!(tables(dir.path()), (APPENDS, tables(dir.path()).1, 0));
}
