//! Claims about what is bound however long a channel is used, and about order where a queue is full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use futures_util::future::join_all;
use millrace::backends::memory::MemoryChannels;
use millrace::backends::sqlite::{CommitStep, SqliteOptions, SqliteStore, StepObserver};
use millrace::channels::{
    Actor, Append, Change, ChannelLimits, ChannelOptions, ChannelStore, EntryType, NewEntry, NewProcess,
    Router, WhenFull,
};
use millrace::clock::SystemClock;
use millrace::error::Classify as _;
use millrace::limits::{CHANNEL_CLOSINGS_MAX, COMMIT_QUEUE_MAX};
use millrace_tests::conformance::channels::{
    batch, channel, free, numbered, party, process, soon, talk_of, text, work,
};
use tokio::sync::Notify;

/// The next one of its sender, whichever that is.
fn unnumbered(what: &str) -> Append {
    batch("ann", vec![NewEntry { sequence: None, ..NewEntry::data(1, what.to_owned()) }])
}

/// Two of one sender, made one after the other. The first finds the committer's queue full and waits; when there is room
/// again and it has not been looked at since, the second comes.
#[tokio::test]
async fn appends_that_find_the_committers_queue_full_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (stops, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (go_on, waits) = mpsc::sync_channel::<()>(1);
    let (asked, told, waits) = (Arc::clone(&stops), Arc::clone(&stopped), Mutex::new(waits));
    let observer = StepObserver(Arc::new(move |step| {
        if step == CommitStep::Synced && asked.swap(false, Ordering::SeqCst) {
            told.notify_one();
            // It fails where the test has ended.
            let _ = waits.lock().unwrap().recv();
        }
    }));
    let options =
        SqliteOptions { channels: free(), observer: Some(observer), ..SqliteOptions::new(dir.path()) };
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(options)).await.unwrap();
    let store: Arc<dyn ChannelStore> = Arc::new(opened.unwrap());
    // Gone before the store is, which waits for its committer.
    let go_on = go_on;
    let router = Router::new(Arc::clone(&store));
    for name in ["job", "other"] {
        router.create_process(work(name, &["talk"])).await.unwrap();
    }
    let (talk, other) = (talk_of("job"), talk_of("other"));

    stops.store(true, Ordering::SeqCst);
    let first = store.append(&other, unnumbered("first"));
    soon(stopped.notified()).await;
    let filling: Vec<_> = (0..COMMIT_QUEUE_MAX).map(|_| store.append(&other, unnumbered("x"))).collect();
    let early = soon(router.begin_append(&talk, unnumbered("early"))).await.unwrap();
    // Whoever goes away leaves no hole.
    drop(store.append(&talk, unnumbered("given up")));
    go_on.send(()).unwrap();
    soon(first).await.unwrap();
    for filled in soon(join_all(filling)).await {
        filled.unwrap();
    }
    let late = soon(router.begin_append(&talk, unnumbered("late"))).await.unwrap();
    let (late, early) = soon(async { tokio::join!(late, early) }).await;
    let (early, late) = (early.unwrap()[0], late.unwrap()[0]);
    assert_eq!((early.position.0, early.sequence), (1, 1));
    assert_eq!((late.position.0, late.sequence), (2, 2));
    let page = router.read_after(&talk, &Actor::Host, 0, 0).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| text(entry)).collect::<Vec<_>>(), ["early", "late"]);
}

/// A process can be assigned any number of times, and each time somebody says that it is done, without a byte.
#[tokio::test]
async fn ends_of_a_thousand_assignments_take_no_more_room_than_a_channel_has() {
    for full in [WhenFull::Reject, WhenFull::DropOldest, WhenFull::Archive] {
        let limits = ChannelLimits { archive_entries_max: 20, ..free() };
        let router = Router::new(Arc::new(MemoryChannels::new(limits, Arc::new(SystemClock))));
        let options = ChannelOptions { full, entries_max: 10, ..free().default_options() };
        let new = NewProcess { channels: vec![channel("talk", options)], ..work("job", &[]) };
        router.create_process(new).await.unwrap();
        let id = talk_of("job");
        router.append_all(&id, batch("ann", numbered(1, &["x"; 10]))).await.unwrap();
        for n in 0..1_000_u64 {
            let name = format!("e{n}");
            router.change(&process("job"), Actor::Host, Change::Assign(party(&name))).await.unwrap();
            let end = router.append_with_type(&id, &party(&name), 1, None, "", EntryType::End).await;
            match end {
                Ok(_) => assert!(full != WhenFull::Reject || n < CHANNEL_CLOSINGS_MAX, "{n}"),
                Err(error) => {
                    assert_eq!((error.code(), full), ("channel_full", WhenFull::Reject), "{n}");
                    assert!(n >= CHANNEL_CLOSINGS_MAX, "{n}");
                }
            }
        }
        let most = CHANNEL_CLOSINGS_MAX + 30;
        let entries = router.log_size(&id).await.unwrap();
        assert!(entries <= most, "{full:?}: {entries}");
        router.append_with_type(&id, &party("ann"), 11, None, "", EntryType::End).await.unwrap();
    }
}
