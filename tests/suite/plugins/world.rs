//! Claims about the world that components are built for: what crosses, in which layout, what bounds a call, and what is
//! said of a component that does not fit.

use std::fs;
use std::time::Duration;

use millrace::checkpoints::{EffectKind, EffectRecord, EffectRef, InvalidEffect};
use millrace::error::{Blame, Classify};
use millrace::plugins::{Metering, PluginError, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{Outcome, Processor, Trap, TrapKind};
use millrace_guest::wire;
use millrace_tests::handwritten::{Handwritten, Import};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use proptest::prelude::*;

use super::rig::{Rig, batch, component, context, load, options};

/// As the SDK writes it, and as the host is to read it.
fn effect() -> impl Strategy<Value = (wire::EffectRecord, EffectRecord)> {
    let kind = prop::sample::select(vec![
        (wire::EffectKind::Put, EffectKind::Put),
        (wire::EffectKind::Delete, EffectKind::Delete),
        (wire::EffectKind::StatePut, EffectKind::StatePut),
        (wire::EffectKind::StateDelete, EffectKind::StateDelete),
        (wire::EffectKind::Emit, EffectKind::Emit),
        (wire::EffectKind::Append, EffectKind::Append),
    ]);
    let numbers = (any::<[u32; 9]>(), any::<u64>(), any::<i64>());
    (kind, numbers).prop_map(|((written, read), (numbers, version, at))| {
        let [
            table,
            event,
            schema_version,
            start,
            key_bytes,
            aggregate_bytes,
            type_bytes,
            id_bytes,
            body_bytes,
        ] = numbers;
        let written = wire::EffectRecord {
            kind: written,
            table,
            event,
            version,
            at,
            schema_version,
            start,
            key_bytes,
            aggregate_bytes,
            type_bytes,
            id_bytes,
            body_bytes,
        };
        let read = EffectRecord {
            kind: read,
            table,
            event,
            version,
            at,
            schema_version,
            start,
            key_bytes,
            aggregate_bytes,
            type_bytes,
            id_bytes,
            body_bytes,
            depth: 0,
        };
        (written, read)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn effects_of_every_kind_cross_as_they_were(effects in prop::collection::vec(effect(), 0..20)) {
        let (written, read): (Vec<_>, Vec<_>) = effects.into_iter().unzip();
        let mut records = Vec::new();
        written.iter().for_each(|effect| effect.write(&mut records));
        prop_assert_eq!(records.len(), written.len() * EffectRecord::WIRE_BYTES);
        prop_assert_eq!(EffectRecord::read_wire(&records), Ok(read));
    }
}

#[test]
fn a_kind_of_effect_that_is_none_is_refused() {
    let mut records = vec![0; 2 * EffectRecord::WIRE_BYTES];
    for kind in [6_u32, 256, u32::MAX] {
        records[EffectRecord::WIRE_BYTES..][..4].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(EffectRecord::read_wire(&records), Err(InvalidEffect::Kind { index: 1, kind }));
    }
}

#[test]
fn records_that_are_no_whole_number_are_refused() {
    assert_eq!(EffectRecord::read_wire(&[]), Ok(vec![]));
    for bytes in [1, 55, 57, 111] {
        assert_eq!(EffectRecord::read_wire(&vec![0; bytes]), Err(InvalidEffect::Records { bytes }));
    }
    let many = vec![0; 100_001 * EffectRecord::WIRE_BYTES];
    assert_eq!(EffectRecord::read_wire(&many), Err(InvalidEffect::TooMany { effects: 100_001 }));
}

fn instance(options: RuntimeOptions, bytes: &[u8]) -> Box<dyn Processor> {
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let factory = load(&runtime, bytes, &PluginSettings::default()).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it begins");
    instance
}

fn struck(options: RuntimeOptions, guest: &Handwritten) -> Trap {
    let mut instance = instance(options, &guest.component());
    let fine = instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it handles what is good");
    assert_eq!(fine.handled, 1);
    instance.handle(&batch(&[("b", "poison", "1")], 1)).expect_err("it does not come back by itself")
}

fn by_fuel(fuel_max: u64) -> RuntimeOptions {
    RuntimeOptions { metering: Metering::Fuel, fuel_max, ..options() }
}

#[test]
fn an_endless_call_ends_by_fuel() {
    let fill = "(loop $l (memory.fill (i32.const 0x20000) (i32.const 7) (i32.const 100000)) (br $l))";
    for (name, code) in [("spins", "(loop $l (br $l))"), ("fills", fill)] {
        let trap = struck(by_fuel(50_000_000), &Handwritten::new(name).on_poison(code));
        assert_eq!(trap.kind, TrapKind::Timeout, "{name}: {trap}");
        assert!(trap.message.contains("guest_fuel_max = 50000000"), "{name}: {trap}");
    }
}

#[test]
fn a_call_that_asks_the_host_for_ever_ends_although_it_burns_little() {
    let ask = "(loop $l (call $config (i32.const 0x200) (i32.const 4) (i32.const 0xd00)) (br $l))";
    let guest = Handwritten::new("asks").import(Import::Config).on_poison(ask);
    let options = RuntimeOptions { call_max: Duration::from_millis(300), ..by_fuel(u64::MAX) };
    let trap = struck(options, &guest);
    assert_eq!(trap.kind, TrapKind::Timeout, "{trap}");
    assert!(trap.message.contains("guest_call_ms_max = 300"), "{trap}");
}

/// What a guest asks for, under these options.
fn asked(options: RuntimeOptions) -> Outcome {
    let events = [("a", "x", r#"{"n":1}"#), ("b", "thing.deleted", "{}"), ("ü", "y", r#"{"n":null}"#)];
    instance(options, &component("mirror")).handle(&batch(&events, 0)).expect("it behaves")
}

#[test]
fn a_guest_does_the_same_under_fuel_and_code_for_both_lies_side_by_side() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let compiled_apart = |options| RuntimeOptions {
        compiler: Some(workspace_binary("millrace")),
        cache_dir: Some(dir.path().to_owned()),
        ..options
    };
    let expected = asked(options());
    assert_eq!((expected.handled, expected.effects.len()), (3, 3));
    for options in [by_fuel(1_000_000_000), options(), by_fuel(1_000_000_000)] {
        let outcome = asked(compiled_apart(options));
        let effects: Vec<EffectRef<'_>> = outcome.effects.iter().collect();
        assert_eq!(effects, expected.effects.iter().collect::<Vec<_>>());
    }
}

fn refused(options: RuntimeOptions, bytes: &[u8]) -> PluginError {
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    load(&runtime, bytes, &PluginSettings::default()).expect_err("it is refused")
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("good text")
}

/// A component that says and does what the text says, with more in it.
fn with_more(guest: &Handwritten, more: &str) -> Vec<u8> {
    let text = guest.text();
    let whole = text.trim_end().strip_suffix(')').expect("it ends with its bracket");
    wat(&format!("{whole} {more})"))
}

fn instances(count: usize) -> String {
    format!("(core module $empty) {}", "(core instance (instantiate $empty))".repeat(count))
}

#[test]
fn a_component_with_too_many_parts_is_refused_by_the_limits_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let of = |fields: &str, count: usize| {
        let made = "(core instance (instantiate $m))".repeat(count);
        wat(&format!("(component (core module $m {fields}) {made})"))
    };
    let globals = "(global i32 (i32.const 0))".repeat(70_000);
    let cases = [
        (of("", 65), "the component has 65 core instances; guest_core_instances_max is 64"),
        (of("(memory 1)", 3), "the component has 3 linear memories; guest_memories_max is 2"),
        (of("(memory 1) (memory 1) (memory 1)", 1), "3 linear memories; guest_memories_max is 2"),
        (of("(table 1 funcref)", 9), "the component has 9 tables; guest_tables_max is 8"),
        (of(&"(table 1 funcref)".repeat(9), 1), "9 tables; guest_tables_max is 8"),
        (of("(table 100001 funcref)", 1), "100001 elements in one table; guest_table_elements_max is 100000"),
        (of(&globals, 1), "bytes of an instance beside its memories; guest_instance_bytes_max is 1048576"),
    ];
    for (bytes, says) in &cases {
        let options = RuntimeOptions { cache_dir: Some(dir.path().to_owned()), ..options() };
        let error = refused(options, bytes);
        assert_eq!((error.code(), error.blame()), ("wrong_parts", Blame::Guest), "{error}");
        assert!(error.to_string().contains(says), "{error}");
        let kept = fs::read_dir(dir.path()).expect("the folder is there").count();
        assert_eq!(kept, 1, "only the key is kept: {says}");
    }
    // As many as there may be are no reason.
    assert_eq!(refused(options(), &of("", 64)).code(), "wrong_world");
}

#[test]
fn a_component_of_as_many_instances_as_python_links_works() {
    let guest = Handwritten::new("linked");
    let mut instance = instance(options(), &with_more(&guest, &instances(61)));
    assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it works").handled, 1);
    let error = refused(options(), &with_more(&guest, &instances(62)));
    assert_eq!(error.code(), "wrong_parts", "{error}");
}

#[test]
fn an_export_beside_the_handler_does_no_harm() {
    let more = r#"(instance $more) (export "exports" (instance $more))"#;
    let mut instance = instance(options(), &with_more(&Handwritten::new("more"), more));
    assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it works").handled, 1);
}

#[test]
fn a_component_of_another_world_version_says_which_this_host_speaks() {
    let text = Handwritten::new("later").text();
    let later = text.replace("millrace:processor/handler@0.1.0", "millrace:processor/handler@0.2.0");
    let error = refused(options(), &wat(&later));
    assert_eq!(error.code(), "wrong_world");
    assert!(error.to_string().contains("version `0.2.0`; this host speaks 0.1"), "{error}");
    // The world before it was frozen handed events over as a list of numbers.
    let former = text.replace("(type $event-records (list u8))", "(type $event-records (list u64))");
    assert_ne!(former, text);
    let error = refused(options(), &wat(&former));
    assert_eq!(error.code(), "wrong_world");
    assert!(error.to_string().contains("build it against this host's version"), "{error}");
}

/// The dead letter of an event at which this guest falls.
async fn letter(guest: &Handwritten) -> String {
    let rig = Rig::new();
    let last = rig.publish(&[("a", "x", "1"), ("b", "poison", "1")]).await;
    let runner = rig.run_component(&guest.component(), PluginSettings::default()).await;
    rig.done(&runner, last).await;
    let dead = rig.dead(guest.name()).await;
    let [(agg_id, reason, message)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((agg_id.as_str(), reason.as_str()), ("b", "trap"));
    message.clone()
}

const SAID: &str = "TypeError: x is undefined";
const WHERE: &str = "  at handle (src/plugin.mjs:3)";

/// Logs at a level what [`SAID`] and [`WHERE`] say.
fn says(level: u32) -> String {
    let bytes = SAID.len() + 1 + WHERE.len();
    format!("(call $log (i32.const {level}) (i32.const 0xe00) (i32.const {bytes}))")
}

fn speaker(code: &str) -> Handwritten {
    Handwritten::new("speaker")
        .import(Import::Log)
        .with(&format!("(data (i32.const 0xe00) \"{SAID}\\n{WHERE}\")"))
        .on_poison(&format!("{code} (unreachable)"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_has_the_words_that_the_guest_logged_as_an_error() {
    let message = letter(&speaker(&says(3))).await;
    let words = format!("the guest's last words: {SAID}\n{WHERE}");
    assert!(message.contains("unreachable") && message.contains(&words), "{message}");
    let message = letter(&speaker(&says(2))).await;
    assert!(!message.contains(SAID), "a warning is none: {message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_words_are_the_end_of_what_a_call_said() {
    // Hundreds of long errors, most of which no log takes, and a short one.
    let many = format!(
        "(local $n i32) (memory.fill (i32.const 0x20000) (i32.const 0x7a) (i32.const 3000))
        (loop $l (call $log (i32.const 3) (i32.const 0x20000) (i32.const 3000))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $l (i32.lt_u (local.get $n) (i32.const 300)))) {}",
        says(3)
    );
    let message = letter(&speaker(&many)).await;
    assert!(message.contains(&format!("z\n{SAID}\n{WHERE}")), "{message}");
    let room = 2_048 - SAID.len() - WHERE.len() - 2;
    assert_eq!(message.matches('z').count(), room, "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_set_to_fuel_compiles_for_it_and_counts_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup::new(workspace_binary("millrace"))
        .set("processors.guest_metering=fuel")
        .set("processors.guest_fuel_max=50000000");
    let host = HostProcess::start_as(setup, &dir.path().join("data")).await.expect("it starts");
    let guest = Handwritten::new("spins").on_poison("(loop $l (br $l))");
    host.deploy(guest.component().into()).await.expect("it is taken");
    for (agg_id, event_type) in [("a", "x"), ("b", "poison")] {
        let event = format!(
            "{{\"aggregate\":\"thing\",\"agg_id\":\"{agg_id}\",\"version\":1,\"type\":\"{event_type}\"}}\n"
        );
        host.publish(event).await.expect("it is appended");
    }
    host.settle().await.expect("everything is handled");
    let letters = host.get("/v1/plugins/spins/dead-letters").await.expect("they can be read");
    let letter = &letters["dead_letters"][0];
    assert_eq!(letter["reason"], "timeout", "{letters}");
    let message = letter["message"].to_string();
    assert!(message.contains("guest_fuel_max = 50000000"), "{message}");
    let metrics = reqwest::get(format!("{}/metrics", host.url)).await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    let used =
        metrics.lines().find_map(|line| line.strip_prefix("millrace_guest_fuel_total{plugin=\"spins\"} "));
    let used: u64 = used.and_then(|used| used.parse().ok()).expect("it is counted");
    assert!(used >= 50_000_000, "{used}");
}
