//! One guest for each way to go wrong: what it costs, whom it costs, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use millrace::checkpoints::{EffectRef, SavedState};
use millrace::clock::{Clock, SystemClock};
use millrace::error::Classify;
use millrace::event::Position;
use millrace::plugins::{PluginError, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{LoadError, TrapKind};
use millrace::tables::{Cell, Cells, Value};
use millrace_tests::until;

use super::rig::{Rig, batch, component, context, load, options};

/// Settings under which an endless call ends soon.
fn impatient() -> PluginSettings {
    PluginSettings { call_ms_max: Some(300), ..PluginSettings::default() }
}

/// Five events of which the third sets the guest off. Answers the reason and message of the letter that it
/// becomes; all others must be handled, also those after it.
async fn poisoned(guest: &str, table: &str, settings: PluginSettings, payload: &str) -> (String, String) {
    let rig = Rig::new();
    let events =
        [("a", "x", "1"), ("b", "x", "1"), ("c", "poison", payload), ("d", "x", "1"), ("b", "x", "2")];
    let last = rig.publish(&events).await;
    let runner = rig.run(guest, settings).await;
    rig.done(&runner, last).await;
    assert_eq!(rig.keys(table).await, ["a", "b", "d"], "the others are handled");
    let mut dead = rig.dead(&guest.replace('_', "-")).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    let (agg_id, reason, message) = dead.remove(0);
    assert_eq!(agg_id, "c");
    (reason, message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panics_letter_has_its_message_and_the_guests_functions() {
    let (reason, message) = poisoned("trap_on_type", "trap_seen", PluginSettings::default(), "null").await;
    assert_eq!(reason, "trap");
    assert!(message.contains("guests/trap_on_type.rs:"), "it says where: {message}");
    assert!(message.contains("\npoisoned by c"), "it says what: {message}");
    assert!(message.contains("panicking::panic_fmt"), "the backtrace has names: {message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_call_ends_in_time() {
    let (reason, message) = poisoned("endless_handle", "endless_seen", impatient(), "null").await;
    assert_eq!(reason, "timeout");
    assert!(message.contains("guest_call_ms_max = 300"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_in_the_host_ends_in_time() {
    let begun = Instant::now();
    let (reason, message) = poisoned("sleeper", "sleeper_seen", impatient(), "null").await;
    assert_eq!(reason, "timeout");
    assert!(message.contains("guest_call_ms_max = 300"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(60), "it did not sleep for its hour");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_memory_is_a_limit_by_name() {
    let (reason, message) = poisoned("memory_bomb", "bomb_seen", PluginSettings::default(), "null").await;
    assert_eq!(reason, "limit");
    assert!(message.contains("guest_memory_bytes_max"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_output_is_a_limit_by_name() {
    let (reason, message) = poisoned("output_flood", "flood_seen", PluginSettings::default(), "null").await;
    assert_eq!(reason, "limit");
    assert!(message.contains("guest_output_bytes_max"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_effects_are_refused_by_number() {
    let settings = PluginSettings::default();
    let (reason, message) = poisoned("output_flood", "flood_seen", settings, "\"effects\"").await;
    assert_eq!(reason, "output");
    assert!(message.contains("100002 effects in one call; guest_effects_max is 100000"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deep_recursion_costs_one_event() {
    let settings = PluginSettings::default();
    let (reason, message) = poisoned("deep_recursion", "recursion_seen", settings, "null").await;
    assert_eq!(reason, "trap");
    assert!(message.contains("deeper"), "the backtrace names the function: {message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_exits_ends_only_itself() {
    let (reason, message) = poisoned("exits", "exits_seen", PluginSettings::default(), "null").await;
    assert_eq!(reason, "trap");
    assert!(message.contains("exit"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_event_keeps_the_authors_reason() {
    let (reason, message) = poisoned("rejecter", "rejecter_seen", PluginSettings::default(), "null").await;
    assert_eq!(reason, "reject");
    assert!(message.contains('c'), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_messages_holds_nobody_up() {
    let rig = Rig::new();
    let last = rig.publish(&[("a", "x", "1"), ("c", "poison", "1"), ("d", "x", "1")]).await;
    let runner = rig.run("log_flood", PluginSettings::default()).await;
    rig.done(&runner, last).await;
    assert_eq!(rig.keys("log_seen").await, ["a", "c", "d"]);
    assert!(rig.dead("log-flood").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_output_of_every_kind_costs_only_its_event() {
    let kinds = [
        "tag",
        "type",
        "float",
        "json",
        "cut",
        "few",
        "many",
        "utf8",
        "null",
        "key",
        "key-utf8",
        "span",
        "length",
        "table",
        "event",
        "version",
        "emit",
        "append",
        "grant",
        "state-key",
        "handled",
        "silent",
        "failure",
        "message",
    ];
    let rig = Rig::new();
    let types: Vec<String> = kinds.iter().map(|kind| format!("bad.{kind}")).collect();
    let mut events = vec![("good", "fine", "1")];
    events.extend(kinds.iter().zip(&types).map(|(kind, event_type)| (*kind, event_type.as_str(), "1")));
    events.push(("last", "fine", "1"));
    let last = rig.publish(&events).await;
    let runner = rig.run("bad_effects", PluginSettings::default()).await;
    rig.done(&runner, last).await;
    assert_eq!(rig.keys("bad_rows").await, ["good", "last"]);
    let found: BTreeMap<String, String> =
        rig.dead("bad-effects").await.into_iter().map(|(agg_id, reason, _)| (agg_id, reason)).collect();
    let expected = kinds.iter().map(|kind| ((*kind).to_owned(), "output".to_owned())).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_reach_the_same_instance_until_they_succeed_or_are_spent() {
    let rig = Rig::new();
    let last = rig.publish(&[("a", "flaky", "1"), ("b", "stuck", "1"), ("c", "x", "1")]).await;
    let settings = PluginSettings {
        config: BTreeMap::from([("failures".to_owned(), "3".to_owned())]),
        ..PluginSettings::default()
    };
    let runner = rig.run("retrier", settings).await;
    rig.done(&runner, last).await;
    assert_eq!(rig.keys("retrier_seen").await, ["a", "c"]);
    assert_eq!(rig.dead("retrier").await, [("b".into(), "retries".into(), "b is stuck".into())]);
    assert_eq!(runner.status().counts.retries, 3 + 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_failure_stops_the_processor_with_its_reason() {
    let rig = Rig::new();
    rig.publish(&[("a", "x", "1"), ("c", "poison", "1"), ("d", "x", "1")]).await;
    let runner = rig.run("fatal", PluginSettings::default()).await;
    until("it has stopped", || !runner.status().failures.is_empty()).await;
    assert_eq!(runner.status().failures[0].1, "poisoned by c");
    assert_eq!(rig.keys("fatal_seen").await, ["a"], "what came before is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_that_feeds_itself_ends_at_the_depth_limit() {
    let rig = Rig::new();
    rig.publish(&[("a", "feed.first", "1")]).await;
    let runner = rig.run("feeder", PluginSettings::default()).await;
    until("the chain has ended", || runner.status().counts.dead_letters == 1).await;
    rig.done(&runner, Position(17)).await;
    let dead = rig.dead("feeder").await;
    assert_eq!((dead[0].0.as_str(), dead[0].1.as_str()), ("a", "output"));
    assert!(dead[0].2.contains("causation_depth_max = 16"), "{}", dead[0].2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyed_state_counts_over_batches_and_instances() {
    let rig = Rig::new();
    let keys: Vec<String> = (0..25).map(|n| format!("k{n:02}")).collect();
    let mut last = Position::START;
    for round in 0..4 {
        let mut events: Vec<_> = keys.iter().map(|key| (key.as_str(), "x", "1")).collect();
        if round == 3 {
            events.push(("k00", "keyed.reset", "1"));
            events.push(("all", "keyed.sum", "1"));
        }
        last = rig.publish(&events).await;
    }
    let runner = rig.run("keyed", PluginSettings::default()).await;
    rig.done(&runner, last).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    let runner = rig.run("keyed", PluginSettings::default()).await;
    let last = rig.publish(&[("k01", "x", "1")]).await;
    rig.done(&runner, last).await;
    let rows = rig.rows("keyed_counts").await;
    assert_eq!(rows["all"], [Value::Int(24 * 4), Value::Int(24)], "a scan sees its own batch's writes");
    assert_eq!(rows["k01"], [Value::Int(5), Value::Null], "another instance goes on");
    assert!(!rows.contains_key("k00"));
}

#[test]
fn an_endless_load_is_a_timeout() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory = load(&runtime, &component("endless_load"), &impatient()).expect("it describes itself");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    let Err(LoadError::Trap(trap)) = instance.load(None) else { panic!("it came back") };
    assert_eq!(trap.kind, TrapKind::Timeout);
}

#[test]
fn an_endless_describe_is_refused_in_time() {
    let options = RuntimeOptions { call_max: Duration::from_millis(300), ..options() };
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let error = load(&runtime, &component("endless_describe"), &PluginSettings::default())
        .expect_err("it never says what it is");
    assert_eq!(error.code(), "describe_failed");
    assert!(
        error.to_string().contains("timeout: the call took longer than guest_call_ms_max = 300"),
        "{error}"
    );
}

#[test]
fn a_guest_that_needs_more_memory_than_it_has_is_refused_by_the_limits_name() {
    let options = RuntimeOptions { memory_bytes_max: 64 << 10, ..options() };
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let error = load(&runtime, &component("crossing"), &PluginSettings::default())
        .expect_err("it needs more than a page");
    assert!(error.to_string().contains("limit: guest_memory_bytes_max"), "{error}");
}

#[test]
fn an_instance_is_not_used_again_after_a_trap() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory =
        load(&runtime, &component("trap_on_type"), &PluginSettings::default()).expect("the guest loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let trap = instance.handle(&batch(&[("a", "poison", "1")], 0)).expect_err("it panics");
    assert_eq!(trap.kind, TrapKind::Trap);
    let trap = instance.handle(&batch(&[("a", "fine", "1")], 1)).expect_err("it is dead");
    assert_eq!(trap.kind, TrapKind::Host);
}

#[test]
fn a_state_of_plain_bytes_counts_on_after_a_restart() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory = load(&runtime, &component("tally"), &PluginSettings::default()).expect("the guest loads");
    let mut saved = None;
    for round in 1..=3_u64 {
        let mut instance = factory.instantiate(context()).expect("it can be instantiated");
        instance.load(saved.as_ref()).expect("it loads");
        let outcome = instance.handle(&batch(&[("a", "x", "[1]"), ("b", "y", "22")], 0)).expect("it behaves");
        assert_eq!((outcome.handled, outcome.effects.len()), (2, 0));
        let state = instance.snapshot().expect("it has state");
        assert_eq!(state[..8], (2 * round).to_le_bytes(), "events");
        assert_eq!(state[8..16], (5 * round).to_le_bytes(), "bytes of payload");
        let content_type = factory.manifest().state_content_type.clone().expect("it says so");
        saved = Some(SavedState { content_type, state });
    }
}

#[test]
fn an_event_of_every_part_crosses_and_asks_for_nothing() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory =
        load(&runtime, &component("crossing"), &PluginSettings::default()).expect("the guest loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let events = vec![("ü", "changed", "{\"a\":[1,2]}"); 1_000];
    let outcome = instance.handle(&batch(&events, 0)).expect("it behaves");
    assert_eq!((outcome.handled, outcome.effects.len()), (1_000, 0));
    let none = instance.handle(&batch(&[], 0)).expect("an empty batch is one, too");
    assert_eq!(none.handled, 0);
}

#[test]
fn without_the_grant_the_clock_stands_at_each_event() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory = load(&runtime, &component("tells_time"), &PluginSettings::default()).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let events = [("a", "x", "1"), ("b", "x", "1"), ("c", "x", "1")];
    let outcome = instance.handle(&batch(&events, 0)).expect("it behaves");
    assert_eq!(outcome.handled, 3);
    let mut times = BTreeSet::new();
    for effect in outcome.effects.iter() {
        let EffectRef::Put { cells, .. } = effect else { panic!("{effect:?}") };
        let cells: Vec<_> = Cells::new(cells).collect::<Result<_, _>>().expect("sound cells");
        let [Cell::Timestamp(event_at), Cell::Timestamp(clock_at)] = cells[..] else { panic!("{cells:?}") };
        assert_eq!(event_at, clock_at, "however the batch is cut");
        times.insert(event_at);
    }
    assert_eq!(times.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_is_a_grant() {
    let rig = Rig::new();
    let bytes = component("wants_clock");
    let error = load(&rig.runtime, &bytes, &PluginSettings::default()).expect_err("it is not granted");
    let PluginError::GrantMissing { grant, .. } = &error else { panic!("{error}") };
    assert_eq!(grant, "clock");
    let settings =
        PluginSettings { grants: vec!["clock".into(), "disk".into()], ..PluginSettings::default() };
    let error = load(&rig.runtime, &bytes, &settings).expect_err("there is no such grant");
    assert_eq!(
        error.to_string(),
        "`disk` is not a grant; there are: clock, random, env, http, read_dir, channels"
    );

    let before = SystemClock.now();
    let last = rig.publish(&[("a", "x", "1")]).await;
    let settings = PluginSettings { grants: vec!["clock".into()], ..PluginSettings::default() };
    let runner = rig.run("wants_clock", settings).await;
    rig.done(&runner, last).await;
    let row = &rig.rows("clock_times").await["a"];
    let Value::Timestamp(clock) = row[1] else { panic!("{row:?}") };
    assert!(clock >= before && clock <= SystemClock.now(), "it is the machine's clock");
}

#[test]
fn randomness_is_a_fixed_seed_without_the_grant_and_real_with_it() {
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let seeds = |grants: &[&str]| {
        let grants = grants.iter().map(|grant| (*grant).to_owned()).collect();
        let settings = PluginSettings { grants, ..PluginSettings::default() };
        let factory = load(&runtime, &component("wants_random"), &settings).expect("the guest loads");
        let mut seeds = BTreeSet::new();
        for _ in 0..4 {
            let mut instance = factory.instantiate(context()).expect("it can be instantiated");
            instance.load(None).expect("it loads");
            let outcome = instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it behaves");
            seeds.insert(format!("{:?}", outcome.effects.iter().next()));
        }
        seeds.len()
    };
    assert_eq!(seeds(&[]), 1, "a replay gives the same rows");
    assert_eq!(seeds(&["random"]), 4);
}

#[test]
fn every_guest_has_a_test() {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite");
    let tests: String = [
        "plugins/misbehaving.rs",
        "plugins/grants.rs",
        "cache/tail.rs",
        "envelope.rs",
        "registry.rs",
        "state/versions.rs",
        "kills.rs",
        "starts.rs",
        "shadow/components.rs",
        "trial/components.rs",
        "../src/folds.rs",
        "../src/kit/mod.rs",
    ]
    .iter()
    .map(|file| std::fs::read_to_string(suite.join(file)).expect("a test file can be read"))
    .collect();
    let guests = suite.join("../../plugins/misbehaving/guests");
    let mut found = 0;
    for entry in std::fs::read_dir(guests).expect("the guests lie there") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(tests.contains(&format!("\"{name}\"")), "no test runs the guest {name}");
        found += 1;
    }
    assert!(found >= 20, "{found} guests");
}
