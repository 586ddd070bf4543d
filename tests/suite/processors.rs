//! Claims about processors: order, exactly-once effects, recovery, swaps, tenants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::backends::sqlite::SqliteOptions;
use millrace::checkpoints::CheckpointStore;
use millrace::event::{Event, EventBatch, Position};
use millrace::processors::{BreakerState, GuestPool, ProcessorSettings};
use millrace::streams::EventLog;
use millrace_tests::faulty::{Fault, Faulty};
use millrace_tests::scene::{Scene, counts, scripted, skipping, tenant_id};
use millrace_tests::scripted::{Flaw, FlawKind, Scripted};
use millrace_tests::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effects_equal_a_fold_over_the_log() {
    let scene = Scene::new().await;
    let keys: Vec<String> = (0..3_000).map(|n| format!("k{}", n % 7)).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "null")).collect();
    for chunk in events[..2_000].chunks(500) {
        scene.publish("a", chunk).await;
    }
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    let last = scene.publish("a", &events[2_000..2_900]).await;
    scene.done(&runner, last).await;
    let last = scene.publish("a", &events[2_900..]).await;
    scene.done(&runner, last).await;
    let mut expected = BTreeMap::new();
    for key in keys {
        *expected.entry(key).or_insert(0) += 1;
    }
    assert_eq!(scene.counts("a").await, expected);
    assert_eq!(runner.status().counts.events, 3_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_event_becomes_a_dead_letter_and_its_batch_goes_on() {
    let scene = Scene::new().await;
    let last = scene
        .publish("a", &[("x", "add", "1"), ("x", "reject", "{}"), ("x", "add", "1"), ("y", "add", "1")])
        .await;
    let (runner, _) = scene.start(scripted(), skipping());
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1)]));
    let dead = scene.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].reason.as_str(), dead[0].message.as_str()), ("reject", "told to reject"));
    assert_eq!(dead[0].event.get(0).position, Position(2));
    assert_eq!(dead[0].event.get(0).payload, b"{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_costs_exactly_the_event_that_causes_it() {
    let scene = Scene::new().await;
    let mut events = vec![("x", "add", "1"); 60];
    events[17] = ("x", "trap", "1");
    events[41] = ("y", "trap", "1");
    events[42] = ("y", "trap-in-snapshot", "1");
    let last = scene.publish("a", &events).await;
    let (runner, watch) = scene.start(scripted(), skipping());
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 57)]));
    let mut dead: Vec<_> =
        scene.dead().await.iter().map(|d| (d.event.get(0).position.0, d.reason.clone())).collect();
    dead.sort();
    assert_eq!(dead, [(18, "trap".to_owned()), (42, "trap".to_owned()), (43, "trap".to_owned())]);
    assert!(
        watch.instances.load(std::sync::atomic::Ordering::SeqCst) >= 4,
        "a fallen instance is not used again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_event_is_tried_until_it_succeeds() {
    let scene = Scene::new().await;
    let last = scene.publish("a", &[("x", "add", "1"), ("x", "retry", "2"), ("x", "add", "1")]).await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 3)]));
    assert!(scene.dead().await.is_empty());
    assert_eq!(watch.tries.lock().expect("test").values().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(runner.status().counts.retries, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_bounded_and_the_lane_goes_on() {
    let scene = Scene::new().await;
    let last = scene.publish("a", &[("x", "retry", "1000"), ("x", "add", "1")]).await;
    let settings = ProcessorSettings { retries_max: 2, ..skipping() };
    let (runner, watch) = scene.start(scripted(), settings);
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1)]));
    let dead = scene.dead().await;
    assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("retries", 3));
    assert_eq!(watch.tries.lock().expect("test").values().copied().collect::<Vec<_>>(), [3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_failure_keeps_what_came_before_and_stops_the_processor() {
    let scene = Scene::new().await;
    scene.publish("a", &[("x", "add", "1"), ("x", "fatal", "1"), ("x", "add", "1")]).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    until("the processor has stopped", || !runner.status().failures.is_empty()).await;
    assert_eq!(runner.status().failures[0].1, "told to stop");
    assert_eq!(scene.counts("a").await, counts(&[("x", 1)]));
    assert!(scene.dead().await.is_empty());
    assert_eq!(runner.status().counts.restarts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slow_events_did_is_committed_before_there_are_many() {
    let scene = Scene::new().await;
    let mut last = Position::START;
    for _ in 0..5 {
        last = scene.publish("a", &[("x", "add", "1"); 1_000]).await;
    }
    let mut slow = scripted();
    slow.flaw = Some(Flaw { kind: FlawKind::TakesItsTime, after: 1 });
    // Without the bound there would be two commits: of what the feed brought first, and of all that it brought meanwhile.
    let settings = ProcessorSettings {
        commit_events: usize::MAX,
        commit_bytes_max: usize::MAX,
        commit_age: Duration::from_millis(1),
        ..ProcessorSettings::default()
    };
    let (runner, _) = scene.start(slow, settings);
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 5_000)]));
    assert!(runner.status().counts.commits > 2, "{:?}", runner.status().counts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_flush_said_between_single_events_is_said_once() {
    const SUMS: usize = 60;
    // The log knows no event by its id, so whatever is emitted twice is there twice.
    let forgetful = |options: SqliteOptions| SqliteOptions { dedup_events_max: 0, ..options };
    let scene = Scene::with(forgetful, |store| store).await;
    let keys: Vec<String> = (0..SUMS).map(|n| format!("k{n}")).collect();
    // Each next one falls: its instance goes, and what the flush before it said must not be in the state of the one after it.
    let events: Vec<_> =
        keys.iter().flat_map(|key| [(key.as_str(), "sum", "1"), (key.as_str(), "trap", "1")]).collect();
    let last = scene.publish("a", &events).await;
    let mut scripted = scripted();
    scripted.manifest.flush_interval_ms = Some(1);
    // So that there is a tick, and an answer to the last commit, between any two events.
    scripted.flaw = Some(Flaw { kind: FlawKind::TakesAMoment, after: 1 });
    // And the flush finds nothing pending: what is fallen back to is what was committed.
    let settings = ProcessorSettings { commit_events: 1, ..skipping() };
    let (runner, _) = scene.start(scripted, settings);
    scene.done(&runner, last).await;
    let told_of = async || {
        let mut told = scene.counts("a").await;
        told.retain(|key, _| key.starts_with("emitted-"));
        told
    };
    let (mut told, begin) = (told_of().await, std::time::Instant::now());
    while told.len() < SUMS && begin.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        told = told_of().await;
    }
    assert_eq!(told.len(), SUMS, "all of them are told of");
    let doubled: Vec<_> = told.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    assert_eq!(scene.dead().await.len(), SUMS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_committed_before_the_breaker_rests() {
    let scene = Scene::new().await;
    let hour = Duration::from_secs(3_600);
    // Nothing else than the rest itself would have it committed.
    let settings = ProcessorSettings {
        breaker_failures_max: 1,
        breaker_wait_min: hour,
        breaker_wait_max: hour,
        retry_wait_min: hour,
        retry_wait_max: hour,
        idle_max: hour,
        commit_age: hour,
        ..ProcessorSettings::default()
    };
    scene.publish("a", &[("x", "add", "1"), ("y", "retry", "1000"), ("z", "add", "1")]).await;
    let (runner, _) = scene.start(scripted(), settings);
    until("it is committed", || runner.status().counts.commits > 0).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1)]));
    let status = runner.status();
    assert_eq!((status.counts.commits, status.tasks[0].breaker), (1, BreakerState::Open));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lane_keeps_the_order_of_its_keys() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { lanes: 5, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let mut last = Position::START;
    for round in 0..50 {
        let events: Vec<_> = keys
            .iter()
            .map(|key| {
                (
                    key.as_str(),
                    if round % 10 == 3 { "retry" } else { "add" },
                    if round == 3 { "1" } else { "0" },
                )
            })
            .collect();
        last = scene.publish("a", &events).await;
    }
    scene.done(&runner, last).await;
    assert!(scene.counts("a").await.values().all(|count| *count == 50));
    let handled = watch.handled.lock().expect("test");
    let mut newest: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
    for (_, lane, key, version) in handled.iter() {
        let (known_lane, known) = newest.entry(key).or_insert((*lane, 0));
        assert_eq!(known_lane, lane, "a key stays in its lane");
        assert!(*known <= *version, "{key}: {version} came after {known}");
        *known = *version;
    }
    let lanes: std::collections::BTreeSet<u32> = newest.values().map(|(lane, _)| *lane).collect();
    assert!(lanes.len() > 1, "keys are spread over lanes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_hangs_does_not_hold_up_another() {
    let scene = Scene::new().await;
    let scripted = scripted();
    *scripted.watch.held.lock().expect("test") = Some(tenant_id("slow"));
    let (runner, watch) = scene.start(scripted, ProcessorSettings::default());
    for _ in 0..20 {
        scene.publish("slow", &[("x", "add", "1"); 900]).await;
    }
    scene.publish("quick", &[("x", "add", "1")]).await;
    let mut quick = BTreeMap::new();
    let begin = std::time::Instant::now();
    while quick.is_empty() && begin.elapsed() < Duration::from_secs(60) {
        quick = scene.counts("quick").await;
        tokio::task::yield_now().await;
    }
    *watch.held.lock().expect("test") = None;
    assert_eq!(quick, counts(&[("x", 1)]));
    let newest = scene.store.bounds().newest;
    scene.done(&runner, newest).await;
    assert_eq!(scene.counts("slow").await, counts(&[("x", 18_000)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_lose_and_double_nothing() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings { lanes: 3, ..ProcessorSettings::default() });
    let mut last = Position::START;
    for round in 0..30_u64 {
        let keys: Vec<String> = (0..100).map(|n| format!("k{}", n % 10)).collect();
        let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
        last = scene.publish("a", &events).await;
        runner.swap(Arc::new(Scripted::new("scripted", round + 2))).await.expect("a good version takes over");
    }
    scene.done(&runner, last).await;
    assert!(scene.counts("a").await.values().all(|count| *count == 300));
    let last = scene.publish("a", &[("k0", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert_eq!(scene.rows("a").await["k0"], (301, 31), "the newest version writes the rows");
    assert_eq!(runner.status().counts.swaps, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_refuses_the_state_leaves_the_old_one_in_charge() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    let candidate = Scripted { refuses_state: true, ..Scripted::new("scripted", 2) };
    let error = runner.swap(Arc::new(candidate)).await.expect_err("it refuses");
    assert_eq!(error.to_string(), "task scripted/a/0: the processor refused its state: told to refuse");
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert_eq!(scene.rows("a").await["x"], (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_the_last_commit_stands() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    let last = scene.publish("a", &[("x", "add", "1"), ("y", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1)]));
    assert_eq!(watch.handled.lock().expect("test").len(), 1, "what was committed is not handled again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_anywhere_loses_and_doubles_nothing() {
    for fault in [Fault::NotWritten, Fault::AnswerLost] {
        for at in 1..=6 {
            let mut faulty = None;
            let scene = Scene::with_checkpoints(|store| {
                let wrapped = Arc::new(Faulty::new(store, fault, at));
                faulty = Some(Arc::clone(&wrapped));
                wrapped
            })
            .await;
            let settings = ProcessorSettings { commit_events: 10, ..skipping() };
            let (runner, _) = scene.start(scripted(), settings);
            let mut last = Position::START;
            for _ in 0..8 {
                // The second half may arrive while the first is committed; waiting then makes for a commit a round.
                scene.publish("a", &[("x", "add", "1"), ("y", "remember", "1")]).await;
                last = scene.publish("a", &[("y", "reject", "1"), ("x", "trap", "1")]).await;
                scene.done(&runner, last).await;
            }
            scene.done(&runner, last).await;
            assert_eq!(scene.counts("a").await, counts(&[("x", 8), ("y", 8)]), "{fault:?} at commit {at}");
            assert_eq!(scene.dead().await.len(), 16, "{fault:?} at commit {at}");
            let task = scene.store.tasks(Some("scripted")).await.expect("tasks can be read").remove(0).task;
            let seen =
                scene.store.state_get(&task, b"seen").expect("state can be read").expect("it was written");
            assert_eq!(seen.value, b"yyyyyyyy", "{fault:?} at commit {at}");
            let faulty = faulty.expect("it was made");
            assert!(faulty.commits() >= at, "the fault was reached");
            assert_eq!(runner.status().counts.restarts, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_while_versions_change_loses_and_doubles_nothing() {
    for fault in [Fault::NotWritten, Fault::AnswerLost] {
        for at in 1..=5 {
            let mut faulty = None;
            let scene = Scene::with_checkpoints(|store| {
                let wrapped = Arc::new(Faulty::new(store, fault, u64::MAX));
                faulty = Some(Arc::clone(&wrapped));
                wrapped
            })
            .await;
            let faulty = faulty.expect("it was made");
            let settings = ProcessorSettings { commit_events: 10, ..skipping() };
            let (runner, watch) = scene.start(scripted(), settings);
            let round = [("x", "add", "1"), ("y", "remember", "1"), ("y", "reject", "1"), ("x", "emit", "1")];
            let mut last = scene.publish("a", &round).await;
            scene.done(&runner, last).await;
            // What it fails, the old version has submitted when the new one is at work already, or soon after.
            faulty.arm(fault, at);
            for version in 2..8 {
                last = scene.publish("a", &round).await;
                let next = Scripted { watch: Arc::clone(&watch), ..Scripted::new("scripted", version) };
                runner.swap(Arc::new(next)).await.expect("a good version takes over");
            }
            until("the faulty commit was reached", || faulty.is_spent()).await;
            scene.done(&runner, last).await;
            let emitted = scene.last();
            scene.done(&runner, emitted).await;
            let mut expected = counts(&[("x", 14), ("y", 7)]);
            let seen = scene.counts("a").await;
            expected.extend(
                seen.iter().filter(|(key, _)| key.starts_with("emitted-")).map(|(k, _)| (k.clone(), 1)),
            );
            assert_eq!(expected.len(), 9, "seven events were emitted, each once: {seen:?}");
            assert_eq!(seen, expected, "{fault:?} at commit {at}");
            assert_eq!(scene.dead().await.len(), 7, "{fault:?} at commit {at}");
            let by = scene.rows("a").await;
            assert!(by["x"].1 > 1, "a newer version wrote the last of it: {by:?}");
        }
    }
}

/// A run that has ended begins again when the change of versions is over, and until then its feed has passed what is not
/// done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_commit_has_taken_back_is_not_done_while_versions_change() {
    let mut faulty = None;
    let scene = Scene::with_checkpoints(|store| {
        let wrapped = Arc::new(Faulty::new(store, Fault::NotWritten, u64::MAX));
        faulty = Some(Arc::clone(&wrapped));
        wrapped
    })
    .await;
    let faulty = faulty.expect("it was made");
    let (runner, watch) = scene.start(scripted(), skipping());
    let first = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, first).await;
    *watch.held.lock().expect("test") = Some(tenant_id("a"));
    watch.threads.lock().expect("test").clear();
    let last = scene.publish("a", &[("x", "add", "1"), ("y", "add", "1")]).await;
    until("it is being handled", || watch.threads.lock().expect("test").contains_key("a")).await;
    let next = Scripted { watch: Arc::clone(&watch), ..Scripted::new("scripted", 2) };
    let mut swap = std::pin::pin!(runner.swap(Arc::new(next)));
    assert!(futures_util::poll!(swap.as_mut()).is_pending(), "the task is at work");
    faulty.arm(Fault::NotWritten, 1);
    *watch.held.lock().expect("test") = None;
    until("the run has ended", || runner.status().tasks.is_empty()).await;
    let status = runner.status();
    assert_eq!(status.done_through, first, "{status:?}");
    assert_eq!(status.behind, [(tenant_id("a"), first)]);
    swap.await.expect("an ended task has no objection");
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_on_another_tasks_row_is_refused_and_costs_only_its_event() {
    let scene = Scene::new().await;
    // Two keys that live in different lanes both want the row `stolen`.
    let settings = ProcessorSettings { lanes: 2, ..skipping() };
    let (runner, watch) = scene.start(scripted(), settings);
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
    let last = scene.publish("a", &events).await;
    scene.done(&runner, last).await;
    let lane_of: BTreeMap<String, u32> =
        watch.handled.lock().expect("test").iter().map(|(_, lane, key, _)| (key.clone(), *lane)).collect();
    let first = keys.iter().find(|k| lane_of[*k] == 0).expect("some key is in lane 0");
    let second = keys.iter().find(|k| lane_of[*k] == 1).expect("some key is in lane 1");
    let last = scene.publish("a", &[(first, "steal", "1")]).await;
    scene.done(&runner, last).await;
    let last =
        scene.publish("a", &[(second, "add", "1"), (second, "steal", "1"), (second, "add", "1")]).await;
    scene.done(&runner, last).await;
    let dead = scene.dead().await;
    assert_eq!(dead.iter().map(|d| d.reason.as_str()).collect::<Vec<_>>(), ["refused"]);
    assert!(dead[0].message.contains("stolen"), "{}", dead[0].message);
    assert_eq!(scene.counts("a").await[second], 3, "the refused event counts for nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emitted_events_come_back_in_once() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(scripted(), skipping());
    scene.publish("a", &[("x", "emit", "1"), ("x", "trap", "1"), ("x", "emit", "1")]).await;
    until("the emitted events are in the log", || scene.store.bounds().newest == Position(5)).await;
    scene.done(&runner, Position(5)).await;
    assert_eq!(scene.counts("a").await, counts(&[("emitted-x-1", 1), ("emitted-x-3", 1), ("x", 2)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_processor_moves_on_over_what_is_not_for_it() {
    let scene = Scene::new().await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    let mut last = Position::START;
    for round in 0..12_u64 {
        let mut batch = EventBatch::new(tenant_id("a"));
        for version in 1..=900 {
            let agg_id = format!("o{round}");
            let event =
                Event { aggregate: "other", agg_id: &agg_id, event_type: "x", version, ..Event::default() };
            batch.push(&event).expect("a good event");
        }
        last = scene.store.append(batch).await.expect("the append succeeds").last().expect("events").position;
    }
    scene.done(&runner, last).await;
    let mut committed = Position::START;
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        committed = scene.store.tasks(None).await.expect("tasks can be read")[0].position;
        if committed.0 >= 10_000 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(committed.0 >= 10_000, "a restart need not read what was skipped: {committed}");
    assert_eq!(
        watch.instances.load(std::sync::atomic::Ordering::SeqCst),
        0,
        "instances are made when needed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_is_called_at_its_interval() {
    let scene = Scene::new().await;
    let mut scripted = scripted();
    scripted.manifest.flush_interval_ms = Some(10);
    let (runner, watch) = scene.start(scripted, ProcessorSettings::default());
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    until("it was flushed thrice", || watch.flushes.load(std::sync::atomic::Ordering::SeqCst) >= 3).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_instance_is_given_back_and_comes_again_with_its_state() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { idle_max: Duration::from_millis(20), ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    let made = || watch.instances.load(std::sync::atomic::Ordering::SeqCst);
    let mut rounds = 0;
    while made() < 2 {
        rounds += 1;
        assert!(rounds < 2_000, "the instance was never given back");
        let last = scene.publish("a", &[("x", "add", "1")]).await;
        scene.done(&runner, last).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(scene.counts("a").await, counts(&[("x", rounds)]));
}

#[tokio::test]
async fn a_long_call_makes_way_and_its_tenant_works_in_the_back_line_for_a_while() {
    let scene = Scene::new().await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    let of = |tenant: &str| watch.threads.lock().expect("test").get(tenant).cloned().unwrap_or_default();
    assert!(of("a").starts_with("guest-") && !of("a").starts_with("guest-back"), "{}", of("a"));
    let front = || {
        let threads = nice_values().into_iter();
        let front = threads.filter(|(name, _)| name.starts_with("guest-") && !name.contains("back"));
        front.map(|(_, nice)| nice).collect::<Vec<_>>()
    };
    let usual = front();
    assert_eq!(usual.len(), 4, "the scene has that many: {usual:?}");

    watch.long.store(true, Ordering::SeqCst);
    *watch.held.lock().expect("test") = Some(tenant_id("a"));
    scene.publish("a", &[("x", "add", "1")]).await;
    let stepped_back = || front().len() == 5 && front().iter().filter(|nice| **nice == 19).count() == 1;
    until("its thread has stepped back and another is in its place", stepped_back).await;
    let last = scene.publish("b", &[("y", "add", "1")]).await;
    until("another tenant goes on", || of("b").starts_with("guest-")).await;
    assert!(!of("b").starts_with("guest-back"), "{}", of("b"));

    *watch.held.lock().expect("test") = None;
    until("the thread has ended", || front() == usual).await;
    let last = scene.publish("a", &[("x", "add", "1")]).await.max(last);
    scene.done(&runner, last).await;
    assert!(of("a").starts_with("guest-back"), "it is put back: {}", of("a"));
    assert_eq!(scene.counts("a").await, counts(&[("x", 3)]));
}

#[tokio::test]
async fn a_panic_of_the_host_costs_a_run_and_neither_a_thread_nor_an_event() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    let events = [("x", "add", "1"), ("x", "panic", "1"), ("x", "add", "1")];
    for tenant in ["a", "b", "c", "d", "e"] {
        let last = scene.publish(tenant, &events).await;
        scene.done(&runner, last).await;
        assert_eq!(scene.counts(tenant).await, counts(&[("x", 3)]), "{tenant}");
    }
}

/// What the kernel says of each thread of this process: its name and nice value.
fn nice_values() -> Vec<(String, i64)> {
    let stat = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        // The fields after the name begin with the third; the nice value is the nineteenth.
        Some((name.to_owned(), rest.split_whitespace().nth(16)?.parse().ok()?))
    };
    let tasks = std::fs::read_dir("/proc/self/task").expect("this is Linux");
    tasks.flatten().filter_map(stat).collect()
}

/// Those of the threads with these names.
fn nices(names: &[&str]) -> Vec<i64> {
    let threads = nice_values().into_iter();
    threads.filter(|(name, _)| names.contains(&name.as_str())).map(|(_, nice)| nice).collect()
}

#[tokio::test]
async fn guest_threads_give_way_to_the_rest_of_the_host() {
    let mut before = nice_values();
    let (_, ours) = before.swap_remove(0);
    let pool = GuestPool::new(3).expect("threads start");
    let front = || nices(&["guest-0", "guest-1", "guest-2"]);
    let back = || nices(&["guest-back-3", "guest-back-4", "guest-back-5"]);
    let lower = (ours + 5).min(19);
    until("both lines have stepped back", || front() == [lower; 3] && back() == [19; 3]).await;
    assert!(
        nice_values().iter().any(|(name, nice)| !name.starts_with("guest-") && *nice == ours),
        "nobody else has"
    );
    pool.shut_down();
    until("they have ended", || front().is_empty() && back().is_empty()).await;
}
