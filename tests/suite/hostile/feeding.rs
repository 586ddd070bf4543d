//! Attacks by way of the log: emitted events, the causation depth, and what belongs to others.

use millrace::event::TenantId;
use millrace::plugins::PluginSettings;
use millrace::processors::TrapKind;
use millrace::streams::EventLog;
use millrace::tables::TableStore;
use millrace_tests::handwritten::Handwritten;
use millrace_tests::until;

use crate::plugins::rig::{Rig, batch, context, load, tenant};

/// Emits, for each event of a batch with a poisoned one in it, another poisoned one, and says that the
/// first event of the batch caused it.
const FEEDS_ITSELF: &str = r#"
    (local.set $n (i32.const 0))
    (local.set $record (i32.const 0x4000))
    (local.set $out (i32.const 0x8000))
    (local.set $words (i32.sub (local.get $words) (i32.mul (local.get $count) (i32.const 72))))
    (block $end (loop $again
      (br_if $end (i32.eq (local.get $n) (local.get $count)))
      ;; "a" of "t", a "poison", with the payload 1.
      (i32.store16 (local.get $out) (i32.const 0x7461))
      (i32.store offset=2 (local.get $out) (i32.const 0x73696f70))
      (i32.store16 offset=6 (local.get $out) (i32.const 0x6e6f))
      (i32.store8 offset=8 (local.get $out) (i32.const 0x31))
      (memory.fill (local.get $record) (i32.const 0) (i32.const 56))
      (i32.store8 (local.get $record) (i32.const 4))
      ;; A version of its own, from the event's position.
      (i64.store offset=16 (local.get $record) (i64.add (i64.const 1000) (i64.load (local.get $words))))
      (i32.store offset=12 (local.get $record) (i32.const 1))
      (i32.store offset=32 (local.get $record) (i32.sub (local.get $out) (i32.const 0x8000)))
      (i32.store offset=36 (local.get $record) (i32.const 1))
      (i32.store offset=40 (local.get $record) (i32.const 1))
      (i32.store offset=44 (local.get $record) (i32.const 6))
      (i32.store offset=52 (local.get $record) (i32.const 1))
      (local.set $out (i32.add (local.get $out) (i32.const 9)))
      (local.set $record (i32.add (local.get $record) (i32.const 56)))
      (local.set $words (i32.add (local.get $words) (i32.const 72)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br $again)))
    (i32.store (i32.const 0x808) (i32.mul (local.get $count) (i32.const 9)))"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_blames_the_shallowest_event_still_ends() {
    let rig = Rig::new();
    let guest = Handwritten::new("liar").before_return(FEEDS_ITSELF);
    let runner = rig.run_component(&guest.component(), PluginSettings::default()).await;
    let seeds = 30;
    for _ in 0..seeds {
        // One by one, so that deep and shallow events meet in a batch.
        rig.publish(&[("seed", "poison", "1")]).await;
    }
    // Each seed's chain ends with a letter, and with nothing else.
    until("every chain has ended", || runner.status().counts.dead_letters == seeds).await;
    let newest = rig.store.bounds().newest;
    rig.done(&runner, newest).await;
    assert_eq!(rig.store.bounds().newest, newest);
    let dead = rig.dead("liar").await;
    assert!(dead.iter().all(|(_, _, says)| says.contains("causation_depth_max = 16")), "{dead:?}");
    assert_eq!(
        rig.store.tenants(),
        [tenant()],
        "what it emits is its tenant's, and there is no way to say else"
    );
    let other = TenantId::new("other").expect("a good name");
    let limit = millrace::streams::PageLimit { events: 10, bytes: 1 << 20 };
    let page = rig.store.read(&other, millrace::event::Position::START, limit).await.expect("it can be read");
    assert_eq!(page.events.len(), 0);
}

/// What the host says to an answer of these instructions about two events.
fn said(code: &str) -> String {
    let runtime = millrace::plugins::WasmRuntime::new(crate::plugins::rig::options()).expect("it starts");
    let guest = Handwritten::new("doubler").before_return(code);
    let factory = load(&runtime, &guest.component(), &PluginSettings::default()).expect("it loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    let events = batch(&[("a", "poison", "1"), ("b", "poison", "1")], 0);
    let trap = instance.handle(&events).expect_err("it is refused");
    assert_eq!(trap.kind, TrapKind::Output);
    trap.message
}

#[test]
fn an_effect_can_only_name_an_event_that_was_handled() {
    let rejects = |index: u32| {
        format!(
            "(i32.store (i32.const 0x800) (i32.const {index})) (i32.store (i32.const 0x814) (i32.const 1))
             (i32.store (i32.const 0x818) (i32.const {index})) (i32.store8 (i32.const 0x81c) (i32.const 1))"
        )
    };
    // Its second effect is about the event that it rejects: that event's letter may be replayed, and then
    // the effect would be there twice.
    assert_eq!(said(&rejects(1)), "effect 1 names event 1 of 1");
    assert_eq!(said(&rejects(0)), "it hands back 2 effects and handled no event");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_plugin_cannot_be_declared_and_so_not_be_written() {
    let rig = Rig::new();
    let victim = Handwritten::new("victim");
    let last = rig.publish(&[("a", "x", "1")]).await;
    let runner = rig.run_component(&victim.component(), PluginSettings::default()).await;
    rig.done(&runner, last).await;
    let factory = load(&rig.runtime, &victim.component(), &PluginSettings::default()).expect("it loads");
    let error = rig.store.declare("thief", &factory.manifest().tables).await.expect_err("it has an owner");
    assert!(error.to_string().contains("victim"), "{error}");
    assert_eq!(rig.keys(&victim.table()).await, ["a"]);
}
