//! Attacks in JavaScript and Python, on an event or in another call: each ends as it must, and its letter says why. Of those
//! on an event neither the guest's other events nor a neighbour's notice anything. Attacks without an engine are in
//! `hostile`. Of their kinds, these have no form here: lengths and texts that lie, tricks with `realloc` and growth of wasm
//! tables, which the languages cannot say; bombs at compile time and forged compiled code, which look the same whatever a
//! component was written in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace::error::Classify;
use millrace::limits::CAUSATION_DEPTH_MAX;
use millrace::plugins::{Metering, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{
    FailureKind, FlushReason, LoadError, Processor, ProcessorFactory, Trap, TrapKind,
};
use millrace::streams::EventLog;
use millrace_tests::guests::{hostile_in_describe, load_shared, sharing_code};
use millrace_tests::handwritten::Handwritten;
use millrace_tests::until;

use crate::plugins::rig::{Rig, batch, component, context, options};

/// How an attack on an event ends.
enum Ends {
    /// Its event becomes a dead letter for this reason, with a message that says so.
    Letter(&'static str, &'static str),
    /// It hurts nobody, not even itself.
    Handled,
}

use Ends::{Handled, Letter};

#[derive(Clone, Copy)]
enum Guest {
    Js,
    Python,
}

impl Guest {
    fn plugin(self) -> &'static str {
        match self {
            Self::Js => "hostile-js",
            Self::Python => "hostile-python",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Js => "seen_js",
            Self::Python => "seen_python",
        }
    }
}

/// Long enough for an engine's first call on a busy machine.
const CALL_MS_MAX: u64 = 3_000;

/// An endless call takes it twice.
const ENDLESS_CALL_MS_MAX: u64 = 1_500;

/// What ends by another bound than this one: an interpreter hands a long text over letter by letter.
const PATIENT_CALL_MS_MAX: u64 = 60_000;

fn settings(mode: &str) -> PluginSettings {
    let config = BTreeMap::from([("mode".to_owned(), mode.to_owned())]);
    let call_ms_max = match mode {
        "large_log" => PATIENT_CALL_MS_MAX,
        "loop" | "regex" | "large_number" | "load_loops" | "flush_loops" | "snapshot_loops" => {
            ENDLESS_CALL_MS_MAX
        }
        _ => CALL_MS_MAX,
    };
    PluginSettings { config, call_ms_max: Some(call_ms_max), ..PluginSettings::default() }
}

/// More than a good call burns, and what an endless one burns in seconds.
const FUEL_MAX: u64 = 1_000_000_000;

/// Where calls are measured by what they burn.
fn by_fuel() -> RuntimeOptions {
    RuntimeOptions { metering: Metering::Fuel, fuel_max: FUEL_MAX, ..options() }
}

/// A call that is not among the host's functions ends by its fuel long before its time is over.
fn settings_by_fuel(mode: &str) -> PluginSettings {
    PluginSettings { call_ms_max: Some(PATIENT_CALL_MS_MAX), ..settings(mode) }
}

async fn contained(guest: Guest, mode: &str, ends: Ends) {
    contained_under(guest, &settings(mode), options(), ends).await;
}

/// The third of five events sets the guest off.
async fn contained_under(guest: Guest, settings: &PluginSettings, options: RuntimeOptions, ends: Ends) {
    let rig = Rig::with(sharing_code(options));
    load_shared(&rig.runtime, &component(guest.plugin()), settings).expect("the guest loads");
    let last = rig
        .publish(&[("a", "x", "1"), ("b", "x", "1"), ("c", "poison", "1"), ("d", "x", "1"), ("b", "x", "2")])
        .await;
    let neighbour = Handwritten::new("neighbour");
    let beside = rig.run_component(&neighbour.component(), PluginSettings::default()).await;
    let runner = rig.run(guest.plugin(), settings.clone()).await;
    rig.done(&runner, last).await;
    rig.done(&beside, last).await;
    let after = rig.publish(&[("e", "x", "1")]).await;
    rig.done(&runner, after).await;
    rig.done(&beside, after).await;
    let all = ["a", "b", "c", "d", "e"];
    assert_eq!(rig.keys(&neighbour.table()).await, all, "the neighbour notices nothing");
    let (dead, keys) = (rig.dead(guest.plugin()).await, rig.keys(guest.table()).await);
    match ends {
        Handled => {
            assert!(dead.is_empty(), "{dead:?}");
            assert_eq!(keys, all);
        }
        Letter(reason, says) => {
            let [(agg_id, why, message)] = &dead[..] else { panic!("one letter: {dead:?}") };
            assert_eq!((agg_id.as_str(), why.as_str()), ("c", reason), "{message}");
            assert!(message.contains(says), "{message}");
            assert_eq!(keys, ["a", "b", "d", "e"], "the others are handled");
        }
    }
}

macro_rules! attacks {
    ($guest:ident: $($name:ident $mode:literal $ends:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            contained(Guest::$guest, $mode, $ends).await;
        }
    )*};
}

attacks! { Js:
    js_hostile_endless_loop "loop" Letter("timeout", "call_ms_max");
    js_hostile_pattern_without_an_end "regex" Letter("timeout", "call_ms_max");
    js_hostile_memory "bomb" Letter("limit", "guest_memory_bytes_max");
    // The engine ends by itself shortly before the limit.
    js_hostile_memory_of_objects "bomb_of_objects" Letter("trap", "out of memory");
    js_hostile_huge_text "text" Letter("limit", "guest_memory_bytes_max");
    js_hostile_recursion "recursion" Letter("trap", "too much recursion");
    js_hostile_too_many_effects "effects" Letter("output", "guest_effects_max");
    js_hostile_table_of_another "foreign_table" Letter("output", "table 1");
    js_hostile_too_much_output "output" Letter("limit", "guest_output_bytes_max");
    js_hostile_many_messages "logs" Handled;
    js_hostile_huge_message "large_log" Letter("limit", "guest_output_bytes_max");
    js_hostile_error "error" Letter("trap", "RangeError: as asked");
    js_hostile_error_without_a_message "error_without_a_message" Letter("trap", "Error: ");
    js_hostile_huge_error "large_error" Letter("trap", "Error: no no no");
    js_hostile_thrown_text "thrown_text" Letter("trap", "thrown: \"as asked\"");
    js_hostile_thrown_nothing "thrown_nothing" Letter("trap", "thrown: undefined");
    js_hostile_error_that_cannot_be_told "error_that_lies" Letter("trap", "an error that cannot be told");
    js_hostile_request "request" Letter("trap", "fetch: a processor waits for nothing");
    js_hostile_timer "timer" Letter("trap", "setTimeout: a processor waits for nothing");
    js_hostile_clock "clock" Handled;
    js_hostile_chance "chance" Handled;
    js_hostile_code_from_text "evaluates" Handled;
}

attacks! { Python:
    python_hostile_endless_loop "loop" Letter("timeout", "call_ms_max");
    python_hostile_pattern_without_an_end "regex" Letter("timeout", "call_ms_max");
    python_hostile_huge_number "large_number" Letter("timeout", "call_ms_max");
    python_hostile_memory "bomb" Letter("limit", "guest_memory_bytes_max");
    python_hostile_memory_of_objects "bomb_of_objects" Letter("limit", "guest_memory_bytes_max");
    python_hostile_huge_text "large_text" Letter("limit", "guest_memory_bytes_max");
    python_hostile_recursion "recursion" Letter("trap", "RecursionError");
    // Its frames lie in its memory, of which there is less than of the stack.
    python_hostile_recursion_without_a_limit "recursion_without_a_limit" Letter("limit", "guest_memory_bytes_max");
    python_hostile_too_many_effects "effects" Letter("output", "guest_effects_max");
    python_hostile_table_of_another "foreign_table" Letter("output", "table 1");
    python_hostile_too_much_output "output" Letter("limit", "guest_output_bytes_max");
    python_hostile_many_messages "logs" Handled;
    python_hostile_many_lines "prints" Handled;
    python_hostile_huge_message "large_log" Letter("limit", "guest_output_bytes_max");
    python_hostile_exception "error" Letter("trap", "ValueError: as asked");
    python_hostile_exception_without_a_message "error_without_a_message" Letter("trap", "ValueError");
    python_hostile_huge_exception "large_error" Letter("trap", "ValueError: no no no");
    python_hostile_exception_that_cannot_be_told "error_that_lies" Letter("trap", "Lying: an exception that cannot be told");
    python_hostile_exit "exits" Letter("trap", "SystemExit: enough");
    python_hostile_exit_at_once "exits_at_once" Letter("trap", "");
    python_hostile_abort "aborts" Letter("trap", "");
    python_hostile_file "reads_a_file" Letter("trap", "PermissionError");
    python_hostile_late_import "imports_late" Letter("trap", "ModuleNotFoundError");
    python_hostile_clock "clock" Handled;
    python_hostile_chance "chance" Handled;
    python_hostile_code_from_text "evaluates" Handled;
}

macro_rules! attacks_by_fuel {
    ($guest:ident: $($name:ident $mode:literal $ends:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            contained_under(Guest::$guest, &settings_by_fuel($mode), by_fuel(), $ends).await;
        }
    )*};
}

attacks_by_fuel! { Js:
    js_hostile_by_fuel_loop "loop" Letter("timeout", "guest_fuel_max");
    js_hostile_by_fuel_regex "regex" Letter("timeout", "guest_fuel_max");
    js_hostile_by_fuel_bomb "bomb" Letter("limit", "guest_memory_bytes_max");
    js_hostile_by_fuel_recursion "recursion" Letter("trap", "too much recursion");
    js_hostile_by_fuel_output "output" Letter("limit", "guest_output_bytes_max");
    js_hostile_by_fuel_error "error" Letter("trap", "RangeError: as asked");
    js_hostile_by_fuel_logs "logs" Handled;
}

attacks_by_fuel! { Python:
    python_hostile_by_fuel_loop "loop" Letter("timeout", "guest_fuel_max");
    python_hostile_by_fuel_regex "regex" Letter("timeout", "guest_fuel_max");
    python_hostile_by_fuel_bomb "bomb" Letter("limit", "guest_memory_bytes_max");
    python_hostile_by_fuel_recursion "recursion" Letter("trap", "RecursionError");
    python_hostile_by_fuel_output "output" Letter("limit", "guest_output_bytes_max");
    python_hostile_by_fuel_error "error" Letter("trap", "ValueError: as asked");
    python_hostile_by_fuel_logs "logs" Handled;
}

// In `describe`, before the host knows whose component it is.

/// What a deployment is told of a build with this nature.
fn undescribed(guest: Guest, nature: &str, code: &str, says: &str) {
    let call_ms_max = if nature == "loop" { ENDLESS_CALL_MS_MAX } else { CALL_MS_MAX };
    let options = RuntimeOptions { call_max: Duration::from_millis(call_ms_max), ..options() };
    let runtime = WasmRuntime::new(sharing_code(options)).expect("the runtime starts");
    let bytes = hostile_in_describe(guest.plugin(), nature);
    let refused = load_shared(&runtime, &bytes, &PluginSettings::default()).expect_err("it is refused");
    let said = refused.to_string();
    assert!(said.contains(says), "{said}");
    assert_eq!(refused.code(), code, "{said}");
    // It hurts nobody who comes after it.
    let neighbour = Handwritten::new("neighbour").component();
    load_shared(&runtime, &neighbour, &PluginSettings::default()).expect("the neighbour loads");
}

macro_rules! attacks_in_describe {
    ($($name:ident $guest:ident $nature:literal $code:literal $says:literal;)*) => {$(
        #[test]
        fn $name() {
            undescribed(Guest::$guest, $nature, $code, $says);
        }
    )*};
}

attacks_in_describe! {
    js_hostile_in_describe_loop Js "loop" "describe_failed" "guest_call_ms_max = 1500";
    js_hostile_in_describe_memory Js "bomb" "describe_failed" "guest_memory_bytes_max";
    // By its own `describe`, and not the one that the SDK makes out of a class.
    js_hostile_in_describe_error Js "error" "describe_failed" "trap: ";
    js_hostile_in_describe_name Js "lies" "manifest_invalid" "../hostile";
    python_hostile_in_describe_loop Python "loop" "describe_failed" "guest_call_ms_max = 1500";
    python_hostile_in_describe_memory Python "bomb" "describe_failed" "guest_memory_bytes_max";
    python_hostile_in_describe_error Python "error" "describe_failed" "ValueError: as asked (app.py:";
    python_hostile_in_describe_name Python "lies" "manifest_invalid" "../hostile";
}

// The other calls.

fn factory(guest: Guest, mode: &str) -> Arc<dyn ProcessorFactory> {
    let call_max = Duration::from_millis(CALL_MS_MAX);
    let options = RuntimeOptions { call_max, ..options() };
    let runtime = WasmRuntime::new(sharing_code(options)).expect("the runtime starts");
    load_shared(&runtime, &component(guest.plugin()), &settings(mode)).expect("the guest loads")
}

/// An instance that was loaded, or why it was not.
fn loaded(guest: Guest, mode: &str) -> Result<Box<dyn Processor>, LoadError> {
    let mut instance = factory(guest, mode).instantiate(context()).expect("it can be instantiated");
    instance.load(None).map(|()| instance)
}

fn refusal(guest: Guest, mode: &str) -> LoadError {
    loaded(guest, mode).err().expect("it does not load")
}

fn snapshot(guest: Guest, mode: &str) -> Trap {
    loaded(guest, mode).expect("it loads").snapshot().expect_err("there is no snapshot")
}

fn other_calls_are_contained(guest: Guest, falls: &str, no_flush: &str) {
    let refused = refusal(guest, "refuse");
    assert!(matches!(&refused, LoadError::Refused { message } if message == "not with me"), "{refused}");
    let refused = refusal(guest, "load_falls").to_string();
    assert!(refused.contains("missing"), "{refused}");
    let endless = refusal(guest, "load_loops");
    assert!(matches!(&endless, LoadError::Trap(trap) if trap.kind == TrapKind::Timeout), "{endless}");

    assert_eq!(snapshot(guest, "snapshot_loops").kind, TrapKind::Timeout);
    let fallen = snapshot(guest, "snapshot_falls");
    assert_eq!(fallen.kind, TrapKind::Trap);
    assert!(fallen.message.contains(falls), "{fallen}");
    assert_eq!(snapshot(guest, "snapshot_is_none").kind, TrapKind::Trap);
    let differing = snapshot(guest, "snapshots_differ");
    assert!(differing.message.contains("two snapshots in a row differ"), "{differing}");
    let large = snapshot(guest, "snapshot_is_large");
    assert_eq!(large.kind, TrapKind::Limit);
    assert!(large.message.contains("guest_state_bytes_max"), "{large}");

    let mut instance = loaded(guest, "flush_loops").expect("it loads");
    let endless = instance.flush(FlushReason::Tick).expect_err("it does not come back");
    assert_eq!(endless.kind, TrapKind::Timeout, "{endless}");
    let mut instance = loaded(guest, "flush_falls").expect("it loads");
    let fallen = instance.flush(FlushReason::Tick).expect_err("it falls");
    assert!(fallen.kind == TrapKind::Trap && fallen.message.contains(no_flush), "{fallen}");
    let mut instance = loaded(guest, "flush_fails").expect("it loads");
    let failed = instance.flush(FlushReason::Tick).expect("it does not fall").expect_err("it fails");
    assert_eq!((failed.kind, failed.message.as_str()), (FailureKind::Retry, "later"));
    // A failure is no end.
    let outcome = instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it goes on");
    assert_eq!((outcome.handled, outcome.failure), (1, None));
}

#[test]
fn js_hostile_in_other_calls() {
    other_calls_are_contained(Guest::Js, "TypeError", "TypeError: no flush");
}

#[test]
fn python_hostile_in_other_calls() {
    other_calls_are_contained(Guest::Python, "AttributeError", "TypeError: no flush");
}

/// Each poisoned event emits the next one.
async fn a_guest_that_feeds_itself_ends(guest: Guest) {
    let settings = settings("feeds_itself");
    let rig = Rig::sharing(guest.plugin(), &settings);
    let runner = rig.run(guest.plugin(), settings).await;
    let last = rig.publish(&[("a", "poison", "1"), ("b", "poison", "1"), ("c", "x", "1")]).await;
    until("each chain has ended", || runner.status().counts.dead_letters == 2).await;
    let newest = rig.store.bounds().newest;
    rig.done(&runner, newest).await;
    assert_eq!(rig.store.bounds().newest, newest);
    assert_eq!(newest.0 - last.0, 2 * u64::from(CAUSATION_DEPTH_MAX));
    let dead = rig.dead(guest.plugin()).await;
    assert_eq!(dead.len(), 2);
    assert!(dead.iter().all(|(_, _, says)| says.contains("causation_depth_max = 16")), "{dead:?}");
    assert_eq!(rig.keys(guest.table()).await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn js_hostile_emits_for_ever() {
    a_guest_that_feeds_itself_ends(Guest::Js).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_hostile_emits_for_ever() {
    a_guest_that_feeds_itself_ends(Guest::Python).await;
}

#[test]
fn js_hostile_promise() {
    let mut instance = loaded(Guest::Js, "promise").expect("it loads");
    let outcome =
        instance.handle(&batch(&[("a", "x", "1"), ("b", "poison", "1")], 0)).expect("it is no trap");
    let failure = outcome.failure.expect("a promise is no answer");
    assert_eq!((outcome.handled, failure.kind), (1, FailureKind::Fatal));
    assert!(failure.message.contains("promise"), "{}", failure.message);
}

/// What a helper asks for that nobody waited for would be committed under an event of the next call.
#[test]
fn js_hostile_effect_after_the_call() {
    let mut instance = loaded(Guest::Js, "later").expect("it loads");
    let outcome =
        instance.handle(&batch(&[("a", "x", "1"), ("b", "poison", "1")], 0)).expect("it is no trap");
    assert_eq!((outcome.handled, outcome.failure), (2, None));
    assert_eq!(outcome.effects.iter().count(), 2);
    let outcome = instance.handle(&batch(&[("c", "x", "1")], 2)).expect("it is no trap");
    let failure = outcome.failure.expect("what came late is told");
    assert_eq!((outcome.handled, failure.kind, outcome.effects.iter().count()), (0, FailureKind::Fatal, 0));
    assert!(failure.message.contains("`put` was called after"), "{}", failure.message);
}
