//! Claims about failing events: which key waits, who else goes on, and what a dead letter can become.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::sqlite::SqliteOptions;
use millrace::checkpoints::{CheckpointStore, DeadLetterRow};
use millrace::event::Position;
use millrace::processors::{
    BreakerState, OrderingKey, ProcessorSettings, ResolveError, Resolved, Runner, Verdict,
};
use millrace_tests::scene::{Scene, counts, scripted, skipping};
use millrace_tests::scripted::Scripted;
use millrace_tests::until;

/// No retry but the first comes by itself.
fn patient() -> ProcessorSettings {
    let hour = Duration::from_secs(3600);
    ProcessorSettings { retry_wait_min: hour, retry_wait_max: hour, ..ProcessorSettings::default() }
}

/// An event that fails becomes a dead letter at once.
fn strict() -> ProcessorSettings {
    ProcessorSettings { retries_max: 0, ..ProcessorSettings::default() }
}

async fn passed(runner: &Runner, through: Position) {
    until("the processor has passed", || runner.status().done_through >= through).await;
}

async fn letter(scene: &Scene, position: u64) -> DeadLetterRow {
    let letter = scene.store.dead_letter("scripted", None, Position(position)).await;
    letter.expect("dead letters can be read").expect("it is a dead letter")
}

fn parked(runner: &Runner) -> (u64, u64) {
    let tasks = runner.status().tasks;
    (tasks.iter().map(|task| task.parked_events).sum(), tasks.iter().map(|task| task.held_keys).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_parks_its_key_and_nothing_else() {
    let scene = Scene::new().await;
    let events =
        [("x", "add", "1"), ("x", "retry", "1"), ("y", "add", "1"), ("x", "add", "1"), ("y", "add", "1")];
    let last = scene.publish("a", &events).await;
    let (runner, watch) = scene.start(scripted(), patient());
    passed(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1), ("y", 2)]));
    assert_eq!((parked(&runner), scene.dead().await.len()), ((2, 0), 0));
    let more = scene.publish("a", &[("x", "add", "1"), ("y", "add", "1")]).await;
    passed(&runner, more).await;
    assert_eq!(parked(&runner), (3, 0), "what follows on the key waits, too");
    // Another version gets its chance at once.
    let next = Scripted { watch: Arc::clone(&watch), ..Scripted::new("scripted", 2) };
    runner.swap(Arc::new(next)).await.expect("it takes over");
    scene.done(&runner, more).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 4), ("y", 3)]));
    assert_eq!(scene.applied().await["x"], [1, 2, 4, 6], "in the order of the stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_goes_on_in_the_next_life() {
    let scene = Scene::new().await;
    let events = [("x", "retry", "2"), ("x", "add", "1"), ("y", "add", "1"), ("x", "add", "1")];
    let last = scene.publish("a", &events).await;
    let (runner, watch) = scene.start(scripted(), patient());
    passed(&runner, last).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    // Its retry was an hour away by its own reckoning; who takes it over waits no longer than its own bound.
    let runner = scene.start_again(&watch, 1, ProcessorSettings::default());
    scene.done(&runner, last).await;
    assert_eq!(scene.applied().await["x"], [1, 2, 4]);
    assert_eq!(watch.tries.lock().expect("test").values().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(scene.counts("a").await, counts(&[("x", 3), ("y", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_holds_its_key_until_it_is_replayed() {
    let scene = Scene::new().await;
    let events = [("x", "retry", "1"), ("x", "add", "1"), ("y", "add", "1"), ("x", "add", "1")];
    let last = scene.publish("a", &events).await;
    let (runner, _) = scene.start(scripted(), strict());
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (2, 1)).await;
    assert_eq!(scene.counts("a").await, counts(&[("y", 1)]));
    let held = letter(&scene, 1).await;
    assert_eq!((held.reason.as_str(), held.held, held.parked_behind), ("retries", true, 2));
    assert_eq!((held.attempts, held.plugin_version.as_str()), (1, "1.0.0"));
    let resolved = runner.resolve(held, Verdict::Replay).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Replayed { out_of_order: false, released: 2 });
    scene.done(&runner, last).await;
    assert_eq!(scene.applied().await["x"], [1, 2, 4]);
    assert!(scene.dead().await.is_empty());
    assert_eq!(runner.status().counts.replayed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_letter_lets_its_key_go_on_without_it() {
    let scene = Scene::new().await;
    let events =
        [("x", "add", "1"), ("x", "reject", "1"), ("x", "add", "1"), ("x", "reject", "1"), ("x", "add", "1")];
    let last = scene.publish("a", &events).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (3, 1)).await;
    let resolved = runner.resolve(letter(&scene, 2).await, Verdict::Discard).await;
    assert_eq!(resolved.expect("it is decided"), Resolved::Discarded { released: 3 });
    until("the next one holds the key", || parked(&runner) == (1, 1)).await;
    assert_eq!(scene.applied().await["x"], [1, 3]);
    let second = letter(&scene, 4).await;
    let resolved = runner.resolve(second.clone(), Verdict::Discard).await;
    assert_eq!(resolved.expect("it is decided"), Resolved::Discarded { released: 1 });
    scene.done(&runner, last).await;
    assert_eq!(scene.applied().await["x"], [1, 3, 5]);
    let again = runner.resolve(second, Verdict::Discard).await.expect_err("it is gone");
    assert!(matches!(again, ResolveError::Gone { letter: 4, .. }), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_fails_leaves_the_letter_and_the_order() {
    let scene = Scene::new().await;
    let last = scene.publish("a", &[("x", "trap", "1"), ("x", "add", "1")]).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (1, 1)).await;
    let before = letter(&scene, 1).await;
    let resolved = runner.resolve(before.clone(), Verdict::Replay).await.expect("it is decided");
    let failed = Resolved::FailedAgain { reason: "trap".into(), message: "told to fall".into() };
    assert_eq!(resolved, failed);
    let after = letter(&scene, 1).await;
    assert_eq!((after.attempts, after.held, after.parked_behind), (before.attempts + 1, true, 1));
    assert!(scene.counts("a").await.is_empty());
    runner.resolve(after, Verdict::Discard).await.expect("it is decided");
    scene.done(&runner, last).await;
    assert_eq!(scene.applied().await["x"], [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_behind_a_key_that_went_on_is_marked_out_of_order() {
    let scene = Scene::new().await;
    let last = scene.publish("a", &[("x", "retry", "1"), ("x", "add", "1")]).await;
    let settings = ProcessorSettings { retries_max: 0, ..skipping() };
    let (runner, _) = scene.start(scripted(), settings);
    scene.done(&runner, last).await;
    assert_eq!(scene.applied().await["x"], [2]);
    let skipped = letter(&scene, 1).await;
    assert!(!skipped.held);
    let resolved = runner.resolve(skipped, Verdict::Replay).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Replayed { out_of_order: true, released: 0 });
    assert_eq!(scene.applied().await["x"], [2, 1]);
    assert!(scene.dead().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_store_refuses_holds_its_key_and_no_other() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { lanes: 2, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
    let last = scene.publish("a", &events).await;
    scene.done(&runner, last).await;
    let lanes: std::collections::BTreeMap<String, u32> =
        watch.handled.lock().expect("test").iter().map(|(_, lane, key, _)| (key.clone(), *lane)).collect();
    let of = |lane| keys.iter().filter(|key| lanes[*key] == lane).take(2).collect::<Vec<_>>();
    let (first, second) = (of(0), of(1));
    let last = scene.publish("a", &[(first[0], "steal", "1")]).await;
    scene.done(&runner, last).await;
    let thief = second[0].as_str();
    let last =
        scene.publish("a", &[(thief, "steal", "1"), (thief, "add", "1"), (second[1], "add", "1")]).await;
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (1, 1)).await;
    assert_eq!(scene.counts("a").await[second[1]], 2);
    assert_eq!(scene.dead().await[0].reason, "refused");
    let letter = letter(&scene, scene.dead().await[0].event.last_position().0).await;
    let resolved = runner.resolve(letter.clone(), Verdict::Replay).await.expect("it is decided");
    assert!(matches!(&resolved, Resolved::FailedAgain { reason, .. } if reason == "refused"), "{resolved:?}");
    runner.resolve(letter, Verdict::Discard).await.expect("it is decided");
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await[thief], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_stops_when_as_many_wait_as_may() {
    let scene = Scene::new().await;
    let mut events = vec![("x", "reject", "1")];
    events.extend([("x", "add", "1"); 6]);
    events.push(("y", "add", "1"));
    let last = scene.publish("a", &events).await;
    let settings = ProcessorSettings { parked_events_max: 4, ..ProcessorSettings::default() };
    let (runner, _) = scene.start(scripted(), settings);
    let blocked = || runner.status().tasks.first().and_then(|task| task.blocked.clone());
    until("the lane stops", || blocked().is_some_and(|why| why.contains("parked_events_max"))).await;
    until("three wait behind the letter", || parked(&runner) == (3, 1)).await;
    assert!(scene.counts("a").await.is_empty(), "what follows in the lane waits in the log");
    runner.resolve(letter(&scene, 1).await, Verdict::Discard).await.expect("it is decided");
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 6), ("y", 1)]));
    assert_eq!(scene.applied().await["x"], [2, 3, 4, 5, 6, 7]);
    assert_eq!(blocked(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_single_key_a_held_letter_stops_the_processor_and_says_so() {
    let scene = Scene::new().await;
    let mut single = scripted();
    single.manifest.ordering_key = OrderingKey::Single;
    let last = scene.publish("a", &[("x", "add", "1"), ("x", "reject", "1"), ("y", "add", "1")]).await;
    let (runner, _) = scene.start(single, ProcessorSettings::default());
    let blocked = || runner.status().tasks.first().and_then(|task| task.blocked.clone());
    until("it says so", || blocked().is_some_and(|why| why.contains("dead letter 2"))).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1)]));
    assert_eq!(parked(&runner), (0, 1), "nothing is copied: the log keeps what comes");
    runner.resolve(letter(&scene, 2).await, Verdict::Discard).await.expect("it is decided");
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1), ("y", 1)]));
    assert_eq!(blocked(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_whose_calls_all_fail_rests_and_tries_one_event() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings {
        breaker_failures_max: 5,
        breaker_wait_min: Duration::from_millis(30),
        breaker_wait_max: Duration::from_millis(60),
        ..patient()
    };
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "retry", "1")).collect();
    let last = scene.publish("a", &events[..8]).await;
    let (runner, _) = scene.start(scripted(), settings);
    let breaker = || runner.status().tasks.first().map(|task| task.breaker);
    until("it rests", || breaker().is_some_and(|breaker| breaker != BreakerState::Closed)).await;
    passed(&runner, last).await;
    let status = runner.status();
    assert_eq!(parked(&runner).0, 8, "after the fifth, each was a trial of its own");
    assert!(status.counts.breaker_openings >= 4, "{:?}", status.counts);
    let last = scene.publish("a", &[("good", "add", "1"), ("good", "add", "1")]).await;
    passed(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("good", 2)]));
    assert_eq!(breaker(), Some(BreakerState::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_events_do_not_make_a_processor_rest() {
    let scene = Scene::new().await;
    let last = scene.publish("a", &[("x", "reject", "1"); 30]).await;
    let settings = ProcessorSettings { breaker_failures_max: 3, ..skipping() };
    let (runner, _) = scene.start(scripted(), settings);
    scene.done(&runner, last).await;
    assert_eq!((scene.dead().await.len(), runner.status().counts.breaker_openings), (30, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_bounded_and_the_processor_waits_for_room() {
    let bounded = |options: SqliteOptions| SqliteOptions { dead_letters_max: 2, ..options };
    let scene = Scene::with(bounded, |store| store).await;
    let last = scene.publish("a", &[("x", "reject", "1"), ("x", "reject", "1"), ("x", "reject", "1")]).await;
    let (runner, _) = scene.start(scripted(), skipping());
    let failed =
        || runner.status().failures.first().is_some_and(|(_, why)| why.contains("dead_letters_max is 2"));
    until("it stops", failed).await;
    assert!(scene.dead().await.len() <= 2);
    // It starts again by itself, and tells when there is room.
    let decided = async {
        loop {
            for letter in scene.dead().await {
                // Between two starts there is nobody to decide.
                let _ = runner.resolve(letter, Verdict::Discard).await;
            }
            if runner.status().done_through >= last {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), decided).await.expect("it goes on");
}
