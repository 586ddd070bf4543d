//! A batch that crosses one event a call has the bounds of one call, whatever each of its events costs.

use std::time::Duration;

use millrace::plugins::{PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::Outcome;
use millrace_tests::handwritten::{Handwritten, Import};

use crate::plugins::rig::{batch, context, load, options};

/// How much of 150 events is handled at once by a guest that imports a clock and is not granted it.
fn handled(guest: Handwritten, call_max: Duration) -> Outcome {
    let runtime = WasmRuntime::new(RuntimeOptions { call_max, ..options() }).expect("the runtime starts");
    let component = guest.import(Import::Wait).component();
    let factory = load(&runtime, &component, &PluginSettings::default()).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let outcome = instance.handle(&batch(&[("a", "poison", "1"); 150], 0)).expect("it behaves");
    assert!(outcome.failure.is_none(), "what is left is asked for again");
    outcome
}

/// Effects of this kind, each with a key of one byte and this body, in the place of the one there was.
fn effects(kind: u32, count: u32, body: u32) -> String {
    format!(
        "(local.set $n (i32.const 0))
        (local.set $record (i32.const 0x20000))
        (block $end (loop $again
          (br_if $end (i32.eq (local.get $n) (i32.const {count})))
          (memory.fill (local.get $record) (i32.const 0) (i32.const 56))
          (i32.store8 (local.get $record) (i32.const {kind}))
          (i32.store offset=32 (local.get $record) (i32.mul (local.get $n) (i32.const {})))
          (i32.store offset=36 (local.get $record) (i32.const 1))
          (i32.store offset=52 (local.get $record) (i32.const {body}))
          (local.set $record (i32.add (local.get $record) (i32.const 56)))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br $again)))
        (i32.store (i32.const 0x804) (i32.const 0x600000))
        (i32.store (i32.const 0x808) (i32.const {}))
        (i32.store (i32.const 0x80c) (i32.const 0x20000))
        (i32.store (i32.const 0x810) (i32.const {}))",
        body + 1,
        count * (body + 1),
        count * 56,
    )
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn large_effects_of_many_events_do_not_add_up_beyond_a_commit() {
    // Twelve entries of a megabyte for each event: 1.8 GB, if nothing bounded them.
    let guest = Handwritten::new("hoarder").pages(400).before_return(&effects(2, 12, 1_000_000));
    let outcome = handled(guest, MINUTE);
    assert_eq!((outcome.handled, outcome.effects.len()), (1, 12));
}

#[test]
fn many_effects_of_many_events_do_not_add_up_beyond_a_call() {
    let guest = Handwritten::new("scatterer").pages(400).before_return(&effects(3, 60_000, 0));
    let outcome = handled(guest, MINUTE);
    assert_eq!((outcome.handled, outcome.effects.len()), (2, 120_000));
}

#[test]
fn slow_events_do_not_add_up_beyond_the_time_of_a_call() {
    // Fifty milliseconds for each event: seven and a half seconds, if nothing bounded them.
    let guest = Handwritten::new("dawdler").on_poison("(call $block (call $after (i64.const 50000000)))");
    let outcome = handled(guest, Duration::from_secs(1));
    assert!((1..=21).contains(&outcome.handled), "{}", outcome.handled);
}
