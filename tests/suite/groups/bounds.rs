//! Bounds of groups, failing stores, and upkeep.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::backends::memory::MemoryLog;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::{Clock, ManualClock};
use millrace::error::{BackendError, Classify};
use millrace::event::{Micros, Position};
use millrace::streams::groups::{
    GroupChange, GroupError, GroupId, GroupLimits, GroupOwner, GroupRead, GroupStart, Groups, Receipt,
    Settle, Settled, gauges,
};
use millrace::streams::{EventLog, Retention};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{THREE_TRIES, append, group, labels, read_of};

fn owner(limits: GroupLimits) -> (GroupOwner, Arc<dyn EventLog>, Arc<ManualClock>) {
    let clock = super::manual_clock();
    let log = Arc::new(MemoryLog::with_options(clock.clone(), 1_000, 1 << 20));
    let owner = GroupOwner::new(log.clone(), log.clone(), clock.clone(), limits);
    (owner, log, clock)
}

fn limit_of(error: &GroupError) -> (&'static str, u64, u64) {
    match error {
        GroupError::Limit { limit, asked, max, .. } => (limit, *asked, *max),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_bound_of_a_group_says_which_it_is() {
    let limits = GroupLimits {
        groups_max: 2,
        tenant_groups_max: 3,
        consumers_max: 2,
        in_flight_max: 3,
        consumer_in_flight_max: 2,
        waiters_max: 1,
        ..GroupLimits::default()
    };
    let (groups, log, _) = owner(limits);
    let id = group("acme", "billing");
    for name in ["billing", "other"] {
        groups.ensure(&group("acme", name), GroupStart::Oldest, THREE_TRIES).await.unwrap();
    }
    let error = groups.ensure(&group("acme", "third"), GroupStart::Oldest, THREE_TRIES).await.unwrap_err();
    assert_eq!(limit_of(&error), ("groups_max", 3, 2));
    // Any name makes a stream, so the tenant has a bound for all of them.
    let on = |stream: &str| GroupId { stream: stream.into(), ..group("acme", "elsewhere") };
    groups.ensure(&on("orders"), GroupStart::Oldest, THREE_TRIES).await.unwrap();
    let error = groups.ensure(&on("returns"), GroupStart::Oldest, THREE_TRIES).await.unwrap_err();
    assert_eq!(limit_of(&error), ("tenant_groups_max", 4, 3));
    assert!(!groups.ensure(&on("orders"), GroupStart::Oldest, THREE_TRIES).await.unwrap().1, "it is there");
    // Another tenant has its own.
    groups.ensure(&group("rival", "third"), GroupStart::Oldest, THREE_TRIES).await.unwrap();
    append(&log, &tenant("acme"), &["a1", "b1", "c1", "d1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(labels(&taken), ["a1", "b1"], "as many as one consumer may have");
    let error = groups.read(&id, read_of("one", 10)).await.unwrap_err();
    assert_eq!(limit_of(&error), ("group_consumer_in_flight_max", 2, 2));
    assert_eq!(groups.read(&id, read_of("two", 10)).await.unwrap().entries.len(), 1);
    let error = groups.read(&id, read_of("two", 10)).await.unwrap_err();
    assert_eq!(limit_of(&error), ("group_in_flight_max", 3, 3));
    let error = groups.read(&id, read_of("three", 10)).await.unwrap_err();
    assert_eq!(limit_of(&error), ("group_consumers_max", 3, 2));
    // An acknowledgement makes room.
    groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap();
    assert_eq!(groups.read(&id, read_of("one", 10)).await.unwrap().entries.len(), 1);

    let other = group("acme", "other");
    groups.seek(&other, GroupStart::Newest).await.unwrap();
    let waits = |consumer: &str| {
        let read = GroupRead { wait: Duration::from_secs(30), ..read_of(consumer, 1) };
        groups.read(&other, read)
    };
    let first = waits("one");
    tokio::pin!(first);
    tokio::select! {
        biased;
        _ = &mut first => panic!("there is nothing to read"),
        () = tokio::task::yield_now() => {}
    }
    let error = waits("two").await.unwrap_err();
    assert_eq!(limit_of(&error), ("group_waiters_max", 2, 1));
    append(&log, &tenant("acme"), &["e1"]).await;
    assert_eq!(labels(&first.await.unwrap().entries), ["e1"]);
}

#[tokio::test]
async fn a_full_window_waits_for_its_entries_and_loses_none() {
    let limits = GroupLimits { window_events_max: 3, ..GroupLimits::default() };
    let (groups, log, clock) = owner(limits);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    append(&log, &tenant("acme"), &["a1", "a2", "a3", "b1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(labels(&taken), ["a1"]);
    let receipt = taken[0].receipt;
    let nack = Settle::Nack { receipt, delay_ms: Some(5_000), reason: String::new() };
    groups.settle(&id, vec![nack]).await.unwrap();
    assert_eq!(groups.read(&id, read_of("one", 10)).await.unwrap().entries.len(), 0, "b1 has no room");
    clock.set(Micros(clock.now().0 + 5_000_000));
    for expected in [vec!["a1"], vec!["a2", "b1"], vec!["a3"]] {
        let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
        assert_eq!(labels(&taken), expected);
        let acks = taken.iter().map(|delivery| Settle::Ack(delivery.receipt)).collect();
        groups.settle(&id, acks).await.unwrap();
    }
}

#[tokio::test]
async fn without_room_for_a_dead_letter_an_entry_is_tried_on() {
    let limits = GroupLimits { dead_letters_max: 1, ..GroupLimits::default() };
    let (groups, log, clock) = owner(limits);
    let id = group("acme", "billing");
    let once = GroupChange { attempts_max: Some(1), ..THREE_TRIES };
    groups.ensure(&id, GroupStart::Oldest, once).await.unwrap();
    append(&log, &tenant("acme"), &["a1", "b1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    let nack = |n: usize| Settle::Nack { receipt: taken[n].receipt, delay_ms: None, reason: "no".into() };
    let settled = groups.settle(&id, vec![nack(0), nack(1)]).await.unwrap();
    let due = Micros(clock.now().0 + 1_500_000);
    assert_eq!(settled, [Settled::DeadLetter, Settled::Retry(due)]);
    clock.set(due);
    assert_eq!(labels(&groups.read(&id, read_of("one", 10)).await.unwrap().entries), ["b1"]);
}

/// The continuous loop: nobody reads, and still leases end.
#[tokio::test]
async fn upkeep_ends_leases_that_nobody_waits_for_and_counts_what_happens() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (groups, log, clock) = owner(GroupLimits::default());
    let id = group("acme", "billing");
    let twice = GroupChange { attempts_max: Some(2), ..THREE_TRIES };
    groups.ensure(&id, GroupStart::Oldest, twice).await.unwrap();
    let positions = append(&log, &tenant("acme"), &["a1", "b1", "c1"]).await;
    for round in 0..2 {
        let taken = groups.read(&id, read_of(&format!("c{round}"), 10)).await.unwrap().entries;
        assert_eq!(taken.len(), 3 - round);
        if round == 0 {
            groups.settle(&id, vec![Settle::Ack(taken[2].receipt)]).await.unwrap();
        }
        clock.set(Micros(clock.now().0 + 10_000_000));
        groups.sweep().await;
    }
    let letters = groups.letters(&id, Position::START, 10).await.unwrap().letters;
    assert_eq!(letters.iter().map(|letter| letter.position()).collect::<Vec<_>>(), positions[..2]);
    let foreign = Receipt { incarnation: 999, life: 0, position: positions[0], sequence: 0 };
    let late = Settle::Ack(foreign);
    groups.settle(&id, vec![late]).await.unwrap();
    append(&log, &tenant("acme"), &["d1", "e1"]).await;
    log.trim(Retention { events: Some(1), age: None }).await.unwrap();
    clock.set(Micros(clock.now().0 + 3_600_000_000));
    groups.sweep().await;
    let text = handle.render();
    for line in [
        "millrace_group_deliveries_total 5",
        "millrace_group_redeliveries_total 2",
        "millrace_group_acks_total 1",
        "millrace_group_leases_expired_total 4",
        "millrace_group_dead_letters_total 2",
        "millrace_group_receipts_refused_total 1",
        "millrace_group_lost_positions_total 1",
        "millrace_group_lost_events_total 1",
        "millrace_group_consumers_reaped_total 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let lags = groups.lags(10).await.unwrap();
    let text = gauges(&lags, clock.now());
    assert!(text.contains("millrace_group_lag_events{stream=\"events\",group=\"billing\"} 1\n"), "{text}");
    assert!(
        text.contains("millrace_group_lag_seconds{stream=\"events\",group=\"billing\"} 3600\n"),
        "{text}"
    );
}

#[tokio::test]
async fn an_acknowledgement_that_cannot_be_written_is_no_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let store = Arc::new(SqliteStore::open(options.clone()).unwrap());
    let clock = super::manual_clock();
    let groups = GroupOwner::new(store.clone(), store.clone(), clock.clone(), GroupLimits::default());
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    let log: Arc<dyn EventLog> = store.clone();
    append(&log, &tenant("acme"), &["a1"]).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    store.close().await;
    let error = groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap_err();
    assert!(matches!(error, GroupError::Backend(BackendError::Closed)), "{error:?}");
    assert_eq!(error.code(), "store_closed");
    drop((groups, store, log));
    let store = Arc::new(SqliteStore::open(options).unwrap());
    let groups = GroupOwner::new(store.clone(), store.clone(), clock, GroupLimits::default());
    assert_eq!(labels(&groups.read(&id, read_of("one", 10)).await.unwrap().entries), ["a1"]);
}

#[tokio::test]
async fn groups_stay_when_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let id = group("acme", "billing");
    for (round, expected) in ["a1", "b1"].into_iter().enumerate() {
        let store = Arc::new(SqliteStore::open(options.clone()).unwrap());
        let clock = super::manual_clock();
        let groups = GroupOwner::new(store.clone(), store.clone(), clock, GroupLimits::default());
        let (status, created) = groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
        assert_eq!((created, status.options.attempts_max), (round == 0, 3));
        let log: Arc<dyn EventLog> = store.clone();
        append(&log, &tenant("acme"), &["a1", "b1"]).await;
        let taken = groups.read(&id, read_of("one", 1)).await.unwrap().entries;
        assert_eq!(labels(&taken), [expected]);
        groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn a_tenants_groups_are_counted_as_they_are_when_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let limits = GroupLimits { tenant_groups_max: 2, ..GroupLimits::default() };
    let on = |stream: &str, name: &str| GroupId { stream: stream.into(), ..group("acme", name) };
    let (events, orders, returns) = (on("events", "a"), on("orders", "a"), on("returns", "a"));
    // Each time somebody else goes, and somebody else finds the place.
    for (goes, comes) in [(None, None), (Some(&events), Some(&returns)), (Some(&orders), Some(&events))] {
        let store = Arc::new(SqliteStore::open(options.clone()).unwrap());
        let groups = GroupOwner::new(store.clone(), store.clone(), super::manual_clock(), limits);
        let make = async |id: &GroupId| groups.ensure(id, GroupStart::Oldest, THREE_TRIES).await;
        if let (Some(goes), Some(comes)) = (goes, comes) {
            assert_eq!(limit_of(&make(comes).await.unwrap_err()), ("tenant_groups_max", 3, 2), "{comes}");
            assert!(!make(goes).await.unwrap().1, "{goes} is there");
            groups.remove(goes).await.unwrap();
            assert!(make(comes).await.unwrap().1, "{comes} has its place");
        } else {
            assert!(make(&events).await.unwrap().1 && make(&orders).await.unwrap().1);
        }
        assert_eq!(limit_of(&make(&on("more", "a")).await.unwrap_err()), ("tenant_groups_max", 3, 2));
        let rival = GroupId { tenant: tenant("rival"), ..events.clone() };
        assert_eq!(make(&rival).await.unwrap().1, goes.is_none(), "another tenant has its own");
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_of_version_2_learns_of_streams_and_groups_and_keeps_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions { disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let store = Arc::new(SqliteStore::open(options.clone()).unwrap());
    let log: Arc<dyn EventLog> = store.clone();
    append(&log, &tenant("acme"), &["a1"]).await;
    store.close().await;
    drop((store, log));
    let conn = rusqlite::Connection::open(dir.path().join("millrace.db")).unwrap();
    let gone = "DROP TABLE consumer_groups; DROP TABLE group_tried; DROP TABLE group_letters;
        DROP TABLE streams; DROP TABLE stream_entries; DROP TABLE scope_values;
        DROP TABLE processes; DROP TABLE channels; DROP TABLE channel_entries; DROP TABLE channel_garbage;
        DROP TABLE channel_runs;
        DROP TABLE outbox; DROP TABLE outbox_refused; ALTER TABLE tasks DROP COLUMN passed_at;
        DROP TABLE rebuilds; ALTER TABLE tables DROP COLUMN indexes;
        DELETE FROM meta WHERE name LIKE 'log%';";
    conn.execute_batch(&format!("{gone} PRAGMA user_version = 2")).unwrap();
    drop(conn);
    let store = Arc::new(SqliteStore::open(options).unwrap());
    let clock = super::manual_clock();
    let groups = GroupOwner::new(store.clone(), store.clone(), clock, GroupLimits::default());
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    assert_eq!(labels(&groups.read(&id, read_of("one", 1)).await.unwrap().entries), ["a1"]);
}

/// Two reads that wait for nothing must not keep each other busy.
#[tokio::test]
async fn waiting_reads_rest_until_there_is_something() {
    let (groups, log, _) = owner(GroupLimits::default());
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    let wait = |consumer: &str| {
        let read = GroupRead { wait: Duration::from_secs(30), ..read_of(consumer, 1) };
        groups.read(&id, read)
    };
    let (one, two) = (wait("one"), wait("two"));
    tokio::pin!(one, two);
    let mut polls = 0;
    // Each poll is a wake-up of one of them, or this loop's own turn.
    let resting = std::future::poll_fn(|context| {
        polls += 1;
        assert!(one.as_mut().poll(context).is_pending() && two.as_mut().poll(context).is_pending());
        std::task::Poll::<()>::Pending
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), resting).await.is_err());
    assert!(polls < 10, "they woke {polls} times for nothing");
    append(&log, &tenant("acme"), &["a1", "b1"]).await;
    let (one, two) = tokio::join!(one, two);
    let mut both = labels(&[one.unwrap().entries, two.unwrap().entries].concat());
    both.sort();
    assert_eq!(both, ["a1", "b1"]);
}
