//! Attacks in the other calls of an instance, and at its start: each ends with a kind and a reason, and the
//! same runtime goes on making good instances.

use std::time::Duration;

use millrace::checkpoints::SavedState;
use millrace::plugins::{PluginError, PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{FlushReason, LoadError};
use millrace_tests::handwritten::Handwritten;

use crate::plugins::rig::{batch, context, load, options};

/// The call in which an attack strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Describe,
    Load,
    Flush,
    Snapshot,
}

use Call::{Describe, Flush, Load, Snapshot};

/// A guest, where it strikes, and what is said at the end.
type Attack = (Handwritten, Call, &'static str);

const LOOP: &str = "(loop $l (br $l))";
const FALL: &str = "(unreachable)";
const TIMEOUT: &str = "timeout: the call took longer than guest_call_ms_max = 300";
const UNREACHABLE: &str = "trap: wasm trap: wasm `unreachable` instruction executed";

fn guest() -> Handwritten {
    Handwritten::new("attacker")
}

fn store(at: u32, number: i64) -> String {
    format!("(i32.store (i32.const {at}) (i32.const {number}))")
}

/// What goes wrong when the component is started or says what it is.
fn starting() -> Vec<Attack> {
    let described = |at, number| guest().in_describe(&store(at, number));
    let start = |code: &str| guest().with(&format!("(start $s) (func $s {code})"));
    let refuses = "describe";
    vec![
        (guest().in_describe(LOOP), Describe, TIMEOUT),
        (guest().in_describe(FALL), Describe, "unreachable"),
        (start(LOOP), Describe, TIMEOUT),
        (start(FALL), Describe, "unreachable"),
        (guest().pages(5_000), Describe, "guest_memory_bytes_max"),
        (guest().pages(65_536), Describe, "guest_memory_bytes_max"),
        (guest().with("(table 200000 funcref)"), Describe, "guest_table_elements_max is 100000"),
        (guest().with("(data (i32.const 0x7fffffff) \"x\")"), Describe, "out of bounds memory access"),
        // The manifest, word by word.
        (described(0x104, -1), Describe, "output: "),
        (described(0x100, -16), Describe, "output: "),
        (described(0x144, 0x0fff_ffff), Describe, "output: "),
        (described(0x130, 7), Describe, refuses),
        (guest().in_describe("(i32.store8 (i32.const 0x200) (i32.const 0xff))"), Describe, "utf-8"),
        (guest().in_describe("(i32.store8 (i32.const 0x118) (i32.const 3))"), Describe, "output: "),
        (guest().in_describe("(i32.store8 (i32.const 0x124) (i32.const 9))"), Describe, "output: "),
        (guest().in_describe("(i32.store8 (i32.const 0x1a8) (i32.const 99))"), Describe, "output: "),
        (guest().in_describe("(return (i32.const 0x101))"), Describe, "not aligned"),
        // A million empty names.
        (
            guest().pages(400).in_describe(&(store(0x130, 0x20000) + &store(0x134, 1_000_000))),
            Describe,
            "guest_",
        ),
        // A path for a name.
        (guest().in_describe("(i32.store (i32.const 0x200) (i32.const 0x2f2e2e2f))"), Describe, "name"),
    ]
}

fn loading() -> Vec<Attack> {
    let refuses = |pages, at, bytes| {
        let refusal = "(i32.store8 (i32.const 0xc40) (i32.const 1))".to_owned();
        guest().pages(pages).in_load(&(refusal + &store(0xc44, at) + &store(0xc48, bytes)))
    };
    vec![
        (guest().in_load(LOOP), Load, TIMEOUT),
        (guest().in_load(FALL), Load, UNREACHABLE),
        (guest().in_load("(i32.store8 (i32.const 0xc40) (i32.const 7))"), Load, "output: "),
        (guest().in_load("(return (i32.const 0xc41))"), Load, "not aligned"),
        (refuses(4, 0x200, 8), Load, "the processor refused its state: attacker"),
        (refuses(4, -16, 100), Load, "output: "),
        (refuses(400, 0x20000, 20_000_000), Load, "guest_output_bytes_max"),
        // A message of a megabyte is cut.
        (refuses(400, 0x20000, 1_000_000), Load, "the processor refused its state: "),
    ]
}

fn flushing() -> Vec<Attack> {
    let failed = "(i32.store8 (i32.const 0xc80) (i32.const 1))";
    vec![
        (guest().in_flush(LOOP), Flush, TIMEOUT),
        (guest().in_flush(FALL), Flush, UNREACHABLE),
        (guest().in_flush("(i32.store8 (i32.const 0xc80) (i32.const 2))"), Flush, "output: "),
        (guest().in_flush(&format!("{failed}{}", store(0xc90, -1))), Flush, "output: "),
        (guest().in_flush(&store(0xc88, -1)), Flush, "output: "),
        // An effect without any bytes.
        (guest().in_flush(&(store(0xc8c, 0x20000) + &store(0xc90, 56))), Flush, "a row's key has 1 to"),
        (guest().in_flush(&(store(0xc8c, 0x4001) + &store(0xc90, 1))), Flush, "have 1 bytes"),
    ]
}

fn snapshots() -> Vec<Attack> {
    let grows = "(i32.store (i32.const 0xc04) (i32.add (i32.const 1) (i32.load (i32.const 0xc04))))";
    let changes = "(i32.store8 (i32.const 0x1d0) (i32.add (i32.const 1) (i32.load8_u (i32.const 0x1d0))))";
    vec![
        (guest().in_snapshot(LOOP), Snapshot, TIMEOUT),
        (guest().in_snapshot(FALL), Snapshot, UNREACHABLE),
        (guest().in_snapshot(&store(0xc00, -16)), Snapshot, "output: "),
        (guest().in_snapshot(&store(0xc04, 0x4000_0000)), Snapshot, "output: "),
        (
            guest().pages(400).in_snapshot(&store(0xc04, 20_000_000)),
            Snapshot,
            "more than 16777216 bytes; guest_state_bytes_max",
        ),
        (guest().pages(400).in_snapshot(&store(0xc04, 9_000_000)), Snapshot, "guest_state_bytes_max"),
        (guest().in_snapshot("(return (i32.const 0xc01))"), Snapshot, "not aligned"),
        (guest().in_snapshot(grows), Snapshot, "output: two snapshots in a row differ (2 and 3 bytes)"),
        (guest().in_snapshot(changes), Snapshot, "output: two snapshots in a row differ (1 and 1 bytes)"),
    ]
}

pub(super) fn count() -> usize {
    starting().len() + loading().len() + flushing().len() + snapshots().len()
}

fn runtime() -> WasmRuntime {
    WasmRuntime::new(RuntimeOptions { call_max: Duration::from_millis(300), ..options() })
        .expect("the runtime starts")
}

/// Where a guest's life ends, and what is said about it.
fn life(runtime: &WasmRuntime, guest: &Handwritten) -> Result<(), (Call, String)> {
    let loaded = load(runtime, &guest.component(), &PluginSettings::default());
    let factory = loaded.map_err(|error| (Describe, error.to_string()))?;
    let mut instance = factory.instantiate(context()).map_err(|trap| (Describe, trap.to_string()))?;
    let saved = SavedState { content_type: "s/1".into(), state: vec![7; 100] };
    instance.load(Some(&saved)).map_err(|error: LoadError| (Load, error.to_string()))?;
    let outcome = instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it handles what is good");
    assert_eq!((outcome.handled, outcome.effects.len()), (1, 1));
    let flushed = instance.flush(FlushReason::Tick).map_err(|trap| (Flush, trap.to_string()))?;
    assert!(flushed.expect("it does not fail").is_empty());
    instance.snapshot().map_err(|trap| (Snapshot, trap.to_string()))?;
    Ok(())
}

fn contain(attacks: Vec<Attack>) {
    let runtime = runtime();
    let neighbour = Handwritten::new("neighbour");
    let mut wrong = Vec::new();
    for (number, (guest, call, says)) in attacks.iter().enumerate() {
        match life(&runtime, guest) {
            Err((at, said)) if at == *call && said.contains(says) && said.len() < 20_000 => {}
            other => wrong.push(format!("attack {number} in {call:?} ({says}): {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(life(&runtime, &neighbour), Ok(()), "the runtime makes good instances");
}

#[test]
fn what_goes_wrong_at_the_start_is_refused_with_its_reason() {
    contain(starting());
}

#[test]
fn what_goes_wrong_in_load_ends_the_instance() {
    contain(loading());
}

#[test]
fn what_goes_wrong_in_flush_ends_the_instance() {
    contain(flushing());
}

#[test]
fn what_goes_wrong_in_snapshot_ends_the_instance() {
    contain(snapshots());
}

/// Bytes of a component that has no `handler` that could be called.
fn refused(text: &str) -> PluginError {
    let bytes = wat::parse_str(text).expect("a good text");
    runtime().load(&bytes, &|_| PluginSettings::default()).expect_err("it is refused")
}

#[test]
fn ten_thousand_imports_are_refused_before_anything_is_compiled() {
    let imports: String =
        (0..10_000).map(|n| format!("(import \"acme:things/api{n}@1.0.0\" (instance))")).collect();
    let error = refused(&format!("(component {imports})"));
    assert!(matches!(error, PluginError::NotAComponent { .. }), "{error}");
    assert!(error.to_string().contains("limit"), "{error}");
}

#[test]
fn more_memories_or_instances_than_allowed_are_refused() {
    let instances = "(core instance (instantiate $m))".repeat(17);
    let memories = "(memory 1)".repeat(3);
    let handler = r#"(instance $h) (export "millrace:processor/handler@0.1.0" (instance $h))"#;
    for text in [
        format!("(component (core module $m) {instances} {handler})"),
        format!("(component (core module $m {memories}) (core instance (instantiate $m)) {handler})"),
    ] {
        let error = refused(&text).to_string();
        assert!(error.len() < 2_000, "{error}");
    }
}

#[test]
fn names_of_megabytes_cost_a_backtrace_no_more_than_its_bound() {
    let name = "x".repeat(2_000_000);
    let deep = format!(
        "(func ${name} (param i32) (result i32)
        (i32.add (i32.const 1) (call ${name} (i32.add (local.get 0) (i32.const 1)))))"
    );
    let guest = guest().with(&deep).on_poison(&format!("(drop (call ${name} (i32.const 0)))"));
    let runtime = WasmRuntime::new(options()).expect("the runtime starts");
    let factory = load(&runtime, &guest.component(), &PluginSettings::default()).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let trap = instance.handle(&batch(&[("a", "poison", "1")], 0)).expect_err("it recurses");
    assert!(trap.message.contains("guest_stack_bytes_max"), "{}", trap.message);
    assert_eq!(trap.backtrace.len(), 8 << 10);
    assert!(trap.backtrace.contains("xxxx"));
}

#[test]
fn a_fallen_instance_gives_its_memory_back_at_once() {
    // With the spare ones, 65 instances may live at once.
    let options = RuntimeOptions { instances_max: 1, ..options() };
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let guest = guest().on_poison(FALL);
    let factory = load(&runtime, &guest.component(), &PluginSettings::default()).expect("it loads");
    let mut fallen = Vec::new();
    for _ in 0..200 {
        let mut instance = factory.instantiate(context()).expect("there is room for another");
        instance.load(None).expect("it loads");
        instance.handle(&batch(&[("a", "poison", "1")], 0)).expect_err("it falls");
        fallen.push(instance);
    }
    assert_eq!(fallen.len(), 200);
}
