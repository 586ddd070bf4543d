//! Claims about failing events: which key waits, who else goes on, and what a dead letter can become. Each holds for the
//! processor in plain Rust and for guests in JavaScript and Python. Those that the kit's guests show, in Rust and in WAT,
//! too, are in `languages::parking`.

mod stage;

use std::time::Duration;

use millrace::backends::sqlite::SqliteOptions;
use millrace::processors::{BreakerState, ProcessorSettings, ResolveError, Resolved, Verdict};
use millrace_tests::scene::{counts, skipping};
use millrace_tests::until;

use stage::{Actor, Stage, parked, passed};

/// No retry but the first comes by itself.
fn patient() -> ProcessorSettings {
    let hour = Duration::from_secs(3600);
    ProcessorSettings { retry_wait_min: hour, retry_wait_max: hour, ..ProcessorSettings::default() }
}

/// An event that fails becomes a dead letter at once.
fn strict() -> ProcessorSettings {
    ProcessorSettings { retries_max: 0, ..ProcessorSettings::default() }
}

async fn a_retry_parks_its_key_and_nothing_else(actor: Actor) {
    let stage = Stage::new(actor).await;
    let events =
        [("x", "add", "1"), ("x", "retry", "1"), ("y", "add", "1"), ("x", "add", "1"), ("y", "add", "1")];
    let last = stage.publish(&events).await;
    let runner = stage.start(patient()).await;
    passed(&runner, last).await;
    assert_eq!(stage.counts().await, counts(&[("x", 1), ("y", 2)]));
    assert_eq!((parked(&runner), stage.dead().await.len()), ((2, 0), 0));
    let more = stage.publish(&[("x", "add", "1"), ("y", "add", "1")]).await;
    passed(&runner, more).await;
    assert_eq!(parked(&runner), (3, 0), "what follows on the key waits, too");
    // Another version gets its chance at once.
    runner.swap(stage.factory(2)).await.expect("it takes over");
    stage.done(&runner, more).await;
    assert_eq!(stage.counts().await, counts(&[("x", 4), ("y", 3)]));
    assert_eq!(stage.applied().await["x"], [1, 2, 4, 6], "in the order of the stream");
}

async fn what_waits_goes_on_in_the_next_life(actor: Actor) {
    let stage = Stage::new(actor).await;
    let events = [("x", "retry", "2"), ("x", "add", "1"), ("y", "add", "1"), ("x", "add", "1")];
    let last = stage.publish(&events).await;
    let runner = stage.start(patient()).await;
    passed(&runner, last).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    // Its retry was an hour away by its own reckoning; who takes it over waits no longer than its own bound.
    let runner = stage.start(ProcessorSettings::default()).await;
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [1, 2, 4]);
    let tries = stage.watch.tries.lock().expect("test").values().copied().collect::<Vec<_>>();
    // What a guest remembers of its tries ends with its life, so it fails twice more.
    let retries = runner.status().counts.retries;
    match actor {
        Actor::Native => assert_eq!(tries, [3]),
        Actor::Js | Actor::Python => assert_eq!(retries, 2),
    }
    assert_eq!(stage.counts().await, counts(&[("x", 3), ("y", 1)]));
}

async fn a_retry_that_succeeds_at_last_frees_its_key(actor: Actor) {
    let stage = Stage::new(actor).await;
    let events = [("x", "add", "1"), ("x", "retry", "3"), ("y", "add", "1"), ("x", "add", "1")];
    let last = stage.publish(&events).await;
    let wait = Duration::from_millis(2);
    let settings =
        ProcessorSettings { retry_wait_min: wait, retry_wait_max: wait, ..ProcessorSettings::default() };
    let runner = stage.start(settings).await;
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [1, 2, 4], "in the order of the stream");
    assert_eq!(stage.counts().await, counts(&[("x", 3), ("y", 1)]));
    assert!(stage.dead().await.is_empty());
    assert_eq!(runner.status().counts.retries, 3);
}

async fn a_dead_letter_holds_its_key_until_it_is_replayed(actor: Actor) {
    let stage = Stage::new(actor).await;
    let events = [("x", "retry", "1"), ("x", "add", "1"), ("y", "add", "1"), ("x", "add", "1")];
    let last = stage.publish(&events).await;
    let runner = stage.start(strict()).await;
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (2, 1)).await;
    assert_eq!(stage.counts().await, counts(&[("y", 1)]));
    let held = stage.letter(1).await;
    assert_eq!((held.reason.as_str(), held.held, held.parked_behind), ("retries", true, 2));
    assert_eq!((held.attempts, held.plugin_version.as_str()), (1, "1.0.0"));
    let resolved = runner.resolve(held, Verdict::Replay).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Replayed { out_of_order: false, released: 2 });
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [1, 2, 4]);
    assert!(stage.dead().await.is_empty());
    assert_eq!(runner.status().counts.replayed, 1);
}

async fn a_discarded_letter_lets_its_key_go_on_without_it(actor: Actor) {
    let stage = Stage::new(actor).await;
    let events =
        [("x", "add", "1"), ("x", "reject", "1"), ("x", "add", "1"), ("x", "reject", "1"), ("x", "add", "1")];
    let last = stage.publish(&events).await;
    let runner = stage.start(ProcessorSettings::default()).await;
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (3, 1)).await;
    let resolved = runner.resolve(stage.letter(2).await, Verdict::Discard).await;
    assert_eq!(resolved.expect("it is decided"), Resolved::Discarded { released: 3 });
    until("the next one holds the key", || parked(&runner) == (1, 1)).await;
    assert_eq!(stage.applied().await["x"], [1, 3]);
    let second = stage.letter(4).await;
    let resolved = runner.resolve(second.clone(), Verdict::Discard).await;
    assert_eq!(resolved.expect("it is decided"), Resolved::Discarded { released: 1 });
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [1, 3, 5]);
    let again = runner.resolve(second, Verdict::Discard).await.expect_err("it is gone");
    assert!(matches!(again, ResolveError::Gone { letter: 4, .. }), "{again}");
}

async fn a_replay_that_fails_leaves_the_letter_and_the_order(actor: Actor) {
    let stage = Stage::new(actor).await;
    let last = stage.publish(&[("x", "trap", "1"), ("x", "add", "1")]).await;
    let runner = stage.start(ProcessorSettings::default()).await;
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (1, 1)).await;
    let before = stage.letter(1).await;
    let resolved = runner.resolve(before.clone(), Verdict::Replay).await.expect("it is decided");
    let Resolved::FailedAgain { reason, message } = resolved else { panic!("{resolved:?}") };
    // A guest's has its places, too.
    let says = message == "told to fall" || actor != Actor::Native && message.contains("told to fall");
    assert!(reason == "trap" && says, "{reason}: {message}");
    let after = stage.letter(1).await;
    assert_eq!((after.attempts, after.held, after.parked_behind), (before.attempts + 1, true, 1));
    assert!(stage.counts().await.is_empty());
    runner.resolve(after, Verdict::Discard).await.expect("it is decided");
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [2]);
}

async fn a_replay_behind_a_key_that_went_on_is_marked_out_of_order(actor: Actor) {
    let stage = Stage::new(actor).await;
    let last = stage.publish(&[("x", "retry", "1"), ("x", "add", "1")]).await;
    let settings = ProcessorSettings { retries_max: 0, ..skipping() };
    let runner = stage.start(settings).await;
    stage.done(&runner, last).await;
    assert_eq!(stage.applied().await["x"], [2]);
    let skipped = stage.letter(1).await;
    assert!(!skipped.held);
    let resolved = runner.resolve(skipped, Verdict::Replay).await.expect("it is decided");
    assert_eq!(resolved, Resolved::Replayed { out_of_order: true, released: 0 });
    assert_eq!(stage.applied().await["x"], [2, 1]);
    assert!(stage.dead().await.is_empty());
}

async fn an_event_that_the_store_refuses_holds_its_key_and_no_other(actor: Actor) {
    let stage = Stage::new(actor).await;
    let settings = ProcessorSettings { lanes: 2, ..ProcessorSettings::default() };
    let runner = stage.start(settings).await;
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
    let last = stage.publish(&events).await;
    stage.done(&runner, last).await;
    let lanes = stage.applied_by_lane().await;
    let of = |lane: u32| lanes[&lane].keys().take(2).cloned().collect::<Vec<_>>();
    let (first, second) = (of(0), of(1));
    let last = stage.publish(&[(first[0].as_str(), "steal", "1")]).await;
    stage.done(&runner, last).await;
    let thief = second[0].as_str();
    let last =
        stage.publish(&[(thief, "steal", "1"), (thief, "add", "1"), (second[1].as_str(), "add", "1")]).await;
    passed(&runner, last).await;
    until("the key is held", || parked(&runner) == (1, 1)).await;
    assert_eq!(stage.counts().await[&second[1]], 2);
    assert_eq!(stage.dead().await[0].reason, "refused");
    let letter = stage.letter(stage.dead().await[0].event.last_position().0).await;
    let resolved = runner.resolve(letter.clone(), Verdict::Replay).await.expect("it is decided");
    assert!(matches!(&resolved, Resolved::FailedAgain { reason, .. } if reason == "refused"), "{resolved:?}");
    runner.resolve(letter, Verdict::Discard).await.expect("it is decided");
    stage.done(&runner, last).await;
    assert_eq!(stage.counts().await[thief], 2);
}

async fn a_lane_stops_when_as_many_wait_as_may(actor: Actor) {
    let stage = Stage::new(actor).await;
    let mut events = vec![("x", "reject", "1")];
    events.extend([("x", "add", "1"); 6]);
    events.push(("y", "add", "1"));
    let last = stage.publish(&events).await;
    let settings = ProcessorSettings { parked_events_max: 4, ..ProcessorSettings::default() };
    let runner = stage.start(settings).await;
    let blocked = || runner.status().tasks.first().and_then(|task| task.blocked.clone());
    until("the lane stops", || blocked().is_some_and(|why| why.contains("parked_events_max"))).await;
    until("three wait behind the letter", || parked(&runner) == (3, 1)).await;
    assert!(stage.counts().await.is_empty(), "what follows in the lane waits in the log");
    runner.resolve(stage.letter(1).await, Verdict::Discard).await.expect("it is decided");
    stage.done(&runner, last).await;
    assert_eq!(stage.counts().await, counts(&[("x", 6), ("y", 1)]));
    assert_eq!(stage.applied().await["x"], [2, 3, 4, 5, 6, 7]);
    assert_eq!(blocked(), None);
}

async fn with_a_single_key_a_held_letter_stops_the_processor_and_says_so(actor: Actor) {
    let stage = Stage::new(actor).await;
    let last = stage.publish(&[("x", "add", "1"), ("x", "reject", "1"), ("y", "add", "1")]).await;
    let runner = stage.start_single(ProcessorSettings::default()).await;
    let blocked = || runner.status().tasks.first().and_then(|task| task.blocked.clone());
    until("it says so", || blocked().is_some_and(|why| why.contains("dead letter 2"))).await;
    assert_eq!(stage.counts().await, counts(&[("x", 1)]));
    assert_eq!(parked(&runner), (0, 1), "nothing is copied: the log keeps what comes");
    runner.resolve(stage.letter(2).await, Verdict::Discard).await.expect("it is decided");
    stage.done(&runner, last).await;
    assert_eq!(stage.counts().await, counts(&[("x", 1), ("y", 1)]));
    assert_eq!(blocked(), None);
}

async fn a_processor_whose_calls_all_fail_rests_and_tries_one_event(actor: Actor) {
    let stage = Stage::new(actor).await;
    let settings = ProcessorSettings {
        breaker_failures_max: 5,
        breaker_wait_min: Duration::from_millis(30),
        breaker_wait_max: Duration::from_millis(60),
        ..patient()
    };
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let events: Vec<_> = keys.iter().map(|key| (key.as_str(), "retry", "1")).collect();
    let last = stage.publish(&events[..8]).await;
    let runner = stage.start(settings).await;
    let breaker = || runner.status().tasks.first().map(|task| task.breaker);
    until("it rests", || breaker().is_some_and(|breaker| breaker != BreakerState::Closed)).await;
    passed(&runner, last).await;
    let status = runner.status();
    assert_eq!(parked(&runner).0, 8, "after the fifth, each was a trial of its own");
    assert!(status.counts.breaker_openings >= 4, "{:?}", status.counts);
    let last = stage.publish(&[("good", "add", "1"), ("good", "add", "1")]).await;
    passed(&runner, last).await;
    assert_eq!(stage.counts().await, counts(&[("good", 2)]));
    assert_eq!(breaker(), Some(BreakerState::Closed));
}

async fn rejected_events_do_not_make_a_processor_rest(actor: Actor) {
    let stage = Stage::new(actor).await;
    let last = stage.publish(&[("x", "reject", "1"); 30]).await;
    let settings = ProcessorSettings { breaker_failures_max: 3, ..skipping() };
    let runner = stage.start(settings).await;
    stage.done(&runner, last).await;
    assert_eq!((stage.dead().await.len(), runner.status().counts.breaker_openings), (30, 0));
}

async fn dead_letters_are_bounded_and_the_processor_waits_for_room(actor: Actor) {
    let bounded = |options: SqliteOptions| SqliteOptions { dead_letters_max: 2, ..options };
    let stage = Stage::with(actor, bounded).await;
    let last = stage.publish(&[("x", "reject", "1"), ("x", "reject", "1"), ("x", "reject", "1")]).await;
    let runner = stage.start(skipping()).await;
    let failed =
        || runner.status().failures.first().is_some_and(|(_, why)| why.contains("dead_letters_max is 2"));
    until("it stops", failed).await;
    assert!(stage.dead().await.len() <= 2);
    // It starts again by itself, and tells when there is room.
    let decided = async {
        loop {
            for letter in stage.dead().await {
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

macro_rules! claims {
    ($($name:ident,)*) => {
        claims! { @in native: Native, [$($name)*] }
        claims! { @in js: Js, [$($name)*] }
        claims! { @in python: Python, [$($name)*] }
    };
    (@in $module:ident: $actor:ident, [$($name:ident)*]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::Actor::$actor).await;
                }
            )*
        }
    };
}

claims! {
    a_retry_parks_its_key_and_nothing_else,
    what_waits_goes_on_in_the_next_life,
    a_retry_that_succeeds_at_last_frees_its_key,
    a_dead_letter_holds_its_key_until_it_is_replayed,
    a_discarded_letter_lets_its_key_go_on_without_it,
    a_replay_that_fails_leaves_the_letter_and_the_order,
    a_replay_behind_a_key_that_went_on_is_marked_out_of_order,
    an_event_that_the_store_refuses_holds_its_key_and_no_other,
    a_lane_stops_when_as_many_wait_as_may,
    with_a_single_key_a_held_letter_stops_the_processor_and_says_so,
    a_processor_whose_calls_all_fail_rests_and_tries_one_event,
    rejected_events_do_not_make_a_processor_rest,
    dead_letters_are_bounded_and_the_processor_waits_for_room,
}
