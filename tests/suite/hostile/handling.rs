//! Attacks while an event is handled: the third of five sets the guest off. It becomes a letter that says
//! why, or is handled; the others are, and so is what comes after; and a neighbour notices nothing.

use std::collections::BTreeMap;

use millrace::plugins::PluginSettings;
use millrace_tests::handwritten::Handwritten;
use millrace_tests::handwritten::Import::{Config, Exit, Log, Poll, Print, Random, Wait};

use crate::plugins::rig::Rig;

/// How an attack ends.
enum Ends {
    /// Its event becomes a dead letter for this reason, with a message that says so.
    Letter(&'static str, &'static str),
    /// It hurts nobody, not even itself.
    Handled,
}

use Ends::{Handled, Letter};

type Attack = (Handwritten, Ends);

fn guest(name: &str) -> Handwritten {
    Handwritten::new(name)
}

/// Strikes by what it does when it sees the event.
fn strikes(name: &str, code: &str) -> Handwritten {
    guest(name).on_poison(code)
}

/// Strikes by what it answers.
fn answers(name: &str, code: &str) -> Handwritten {
    guest(name).before_return(code)
}

/// Strikes inside `cabi_realloc`, which the host calls to hand over a setting.
fn allocates(name: &str, code: &str) -> Handwritten {
    let asks = format!(
        "(global.set $evil (i32.const 1)) (call $config (i32.const 0x200) (i32.const {}) (i32.const 0xd00))",
        name.len()
    );
    let evil = format!("(if (global.get $evil) (then (global.set $evil (i32.const 0)) {code}))");
    strikes(name, &asks).import(Config).in_realloc(&evil)
}

/// Strikes after it has answered.
fn lingers(name: &str, code: &str) -> Handwritten {
    strikes(name, "(global.set $evil (i32.const 1))")
        .after_return(&format!("(if (global.get $evil) (then {code}))"))
}

const ROOMY: u32 = 400;
const LOOP: &str = "(loop $l (br $l))";

fn endless() -> Vec<Attack> {
    let timeout = || Letter("timeout", "guest_call_ms_max = 300");
    let floats = "(local $x f64) (loop $l
        (local.set $x (f64.sqrt (f64.add (local.get $x) (f64.const 1.5)))) (br $l))";
    let config = "(loop $l (call $config (i32.const 0x200) (i32.const 4) (i32.const 0xd00)) (br $l))";
    let log = "(loop $l (call $log (i32.const 1) (i32.const 0x200) (i32.const 4)) (br $l))";
    let fill = "(loop $l (memory.fill (i32.const 0x20000) (i32.const 7) (i32.const 20000000)) (br $l))";
    let wait = "(call $block (call $after (i64.const 3600000000000)))";
    // A thousand times the same pollable.
    let poll = "(local $at i32) (local $one i32)
        (local.set $one (call $after (i64.const 3600000000000)))
        (loop $l
            (i32.store offset=0x20000 (local.get $at) (local.get $one))
            (local.set $at (i32.add (local.get $at) (i32.const 4)))
            (br_if $l (i32.lt_u (local.get $at) (i32.const 40000))))
        (call $poll (i32.const 0x20000) (i32.const 10000) (i32.const 0xd00))";
    let random = "(loop $l (global.set $heap (i32.const 0x20000))
        (call $random (i64.const 65536) (i32.const 0xd00)) (br $l))";
    let print = "(local $to i32) (local.set $to (call $stdout))
        (loop $l (call $print (local.get $to) (i32.const 0x20000) (i32.const 4096) (i32.const 0xd00)) (br $l))";
    vec![
        (strikes("spins", LOOP), timeout()),
        (strikes("spins-on-floats", floats), timeout()),
        (strikes("asks-for-ever", config).import(Config), timeout()),
        (strikes("logs-for-ever", log).import(Log), timeout()),
        (strikes("fills-for-ever", fill).pages(ROOMY), timeout()),
        (strikes("waits-for-ever", wait).import(Wait), timeout()),
        (strikes("polls-for-ever", poll).import(Wait).import(Poll), timeout()),
        (strikes("rolls-for-ever", random).import(Random), timeout()),
        (strikes("prints-for-ever", print).import(Print), timeout()),
        (allocates("allocates-for-ever", LOOP), timeout()),
        (lingers("lingers-for-ever", LOOP), timeout()),
    ]
}

fn falls() -> Vec<Attack> {
    let trap = |says| Letter("trap", says);
    let deep = "(func $deep (param i32) (result i32)
        (i32.add (i32.const 1) (call $deep (i32.add (local.get 0) (i32.const 1)))))";
    let deep_by_table =
        "(type $v (func (param i32) (result i32))) (table 1 funcref) (elem (i32.const 0) $deep)
        (func $deep (type $v)
            (i32.add (i32.const 1) (call_indirect (type $v) (local.get 0) (i32.const 0))))";
    let table = "(type $v (func)) (table $t 4 funcref) (elem (i32.const 1) $other)
        (func $other (param i64))";
    let by_table = |index: u32| format!("(call_indirect $t (type $v) (i32.const {index}))");
    let again = "(call $log (i32.const 1) (i32.const 0x200) (i32.const 4))";
    let unaligned = "(if (i32.eq (local.get $align) (i32.const 4)) (then (return (i32.const 0x20001))))";
    let polls = "(i32.store (i32.const 0x20000) (call $after (i64.const 0)))
        (call $poll (i32.const 0x20000) (i32.const 1) (i32.const 0xd00))";
    vec![
        (strikes("gives-up", "(unreachable)"), trap("unreachable")),
        (strikes("divides", "(drop (i32.div_u (i32.const 1) (i32.const 0)))"), trap("divide by zero")),
        (strikes("overflows", "(drop (i32.trunc_f32_s (f32.const 1e30)))"), trap("overflow")),
        (strikes("reads-outside", "(drop (i32.load (i32.const -4)))"), trap("out of bounds memory")),
        (
            strikes("copies-outside", "(memory.copy (i32.const 0) (i32.const -9) (i32.const 100))"),
            trap("out of bounds memory"),
        ),
        (strikes("recurses", "(drop (call $deep (i32.const 0)))").with(deep), trap("guest_stack_bytes_max")),
        (
            strikes("recurses-by-table", "(drop (call $deep (i32.const 0)))").with(deep_by_table),
            trap("guest_stack_bytes_max"),
        ),
        (strikes("calls-nothing", &by_table(0)).with(table), trap("uninitialized element")),
        (strikes("calls-another", &by_table(1)).with(table), trap("indirect call type mismatch")),
        (strikes("calls-outside", &by_table(99)).with(table), trap("undefined element")),
        (strikes("exits", "(call $exit (i32.const 0))").import(Exit), trap("exit")),
        (strikes("aborts", "(call $exit (i32.const 1))").import(Exit), trap("exit")),
        (strikes("names-no-handle", "(call $block (i32.const 77))").import(Wait), trap("unknown handle")),
        (allocates("allocates-and-falls", "(unreachable)"), trap("unreachable")),
        (allocates("allocates-outside", "(return (i32.const -16))"), trap("realloc")),
        (
            strikes("allocates-askew", polls)
                .import(Wait)
                .import(Poll)
                .in_realloc(&format!("(if (i32.eq (local.get $size) (i32.const 4)) (then {unaligned}))")),
            trap("aligned"),
        ),
        (allocates("allocates-and-calls", again).import(Log), trap("cannot leave component instance")),
        // Its own memory is all that it can hurt.
        (allocates("allocates-at-nothing", "(return (i32.const 0))"), Handled),
        (lingers("lingers-and-falls", "(unreachable)"), trap("unreachable")),
        (lingers("lingers-and-calls", again).import(Log), trap("cannot leave component instance")),
    ]
}

fn takes_too_much() -> Vec<Attack> {
    let limit = |says| Letter("limit", says);
    let memory = "(loop $l (drop (memory.grow (i32.const 16)))
        (memory.fill (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 1048576)) (i32.const 7)
            (i32.const 1048576)) (br $l))";
    let table = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l))";
    let large_arena = "(i32.store (i32.const 0x804) (i32.const 0x20000))
        (i32.store (i32.const 0x808) (i32.const 20000000))";
    let some_logs = "(local $n i32) (loop $l
        (call $log (i32.const 1) (i32.const 0x20000) (i32.const 1000000))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 30))))";
    let some_prints = "(local $n i32) (local $to i32) (local.set $to (call $stdout)) (loop $l
        (call $print (local.get $to) (i32.const 0x20000) (i32.const 4096) (i32.const 0xd00))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 2000))))";
    vec![
        (strikes("grows", memory), limit("guest_memory_bytes_max")),
        (strikes("grows-a-table", table).with("(table $t 1 funcref)"), limit("guest_table_elements_max")),
        (
            strikes("opens-pollables", "(loop $l (drop (call $after (i64.const 9))) (br $l))").import(Wait),
            limit("guest_resources_max"),
        ),
        (
            strikes("rolls-too-much", "(call $random (i64.const 0x100000000) (i32.const 0xd00))")
                .import(Random),
            limit("guest_random_bytes_max"),
        ),
        (
            strikes("logs-too-much", "(call $log (i32.const 1) (i32.const 0x20000) (i32.const 20000000))")
                .import(Log)
                .pages(ROOMY),
            limit("guest_output_bytes_max"),
        ),
        (answers("hands-over-too-much", large_arena).pages(ROOMY), limit("guest_output_bytes_max")),
        (strikes("logs-by-size", some_logs).import(Log).pages(ROOMY), Handled),
        (strikes("prints-no-line", some_prints).import(Print), Handled),
    ]
}

/// Stores a number into the answer or its first effect.
fn store(at: u32, number: i64) -> String {
    format!("(i32.store (i32.const {at}) (i32.const {number}))")
}

/// The first effect as another one: its kind, and parts in a longer arena.
fn effect(kind: u32, arena: u32, parts: [u32; 5]) -> String {
    let mut code = format!("(i32.store8 (i32.const 0x4000) (i32.const {kind}))");
    code.push_str(&store(0x808, arena.into()));
    code.push_str("(i64.store (i32.const 0x4010) (i64.const 1))");
    code.push_str(&store(0x400c, 1));
    for (index, bytes) in (0..).zip(parts) {
        code.push_str(&store(0x4024 + 4 * index, bytes.into()));
    }
    code
}

/// An emitted event with these bytes as aggregate's id, aggregate, type and payload.
fn emit(bytes: [u8; 4]) -> String {
    let text = store(0x8000, u32::from_le_bytes(bytes).into());
    text + &effect(4, 400, [1, 1, 1, 0, 1])
}

fn lies() -> Vec<Attack> {
    let output = |says| Letter("output", says);
    let failed = |index: i64, kind: u32| {
        let kind = format!("(i32.store8 (i32.const 0x81c) (i32.const {kind}))");
        store(0x814, 1) + &store(0x818, index) + &kind
    };
    let not_text = "(i32.store8 (i32.const 0x20000) (i32.const 0xff))".to_owned()
        + &failed(0, 1)
        + &store(0x820, 0x20000)
        + &store(0x824, 1);
    let many = store(0x80c, 0x40000) + &store(0x810, 150_000 * 56);
    let twice = "(memory.copy (i32.const 0x4038) (i32.const 0x4000) (i32.const 56))".to_owned()
        + "(i32.store (i32.const 0x810) (i32.mul (i32.const 56) (i32.add (local.get $count) (i32.const 1))))";
    vec![
        (answers("arena-outside", &store(0x804, -16)), output("out of bounds")),
        (answers("arena-endless", &store(0x808, -1)), output("out of bounds")),
        (answers("records-outside", &store(0x80c, 0x7fff_ff00)), output("out of bounds")),
        (answers("records-cut", &store(0x810, 55)), output("have 55 bytes")),
        (answers("records-longer", &store(0x810, 57)), output("have 57 bytes")),
        (answers("records-endless", &store(0x810, 0x0fff_ffff)), output("")),
        (answers("records-many", &many).pages(ROOMY), output("guest_effects_max")),
        (answers("answer-outside", "(return (i32.const -16))"), output("")),
        (answers("answer-askew", "(return (i32.const 0x801))"), output("not aligned")),
        (answers("no-such-effect", &store(0x4000, 6)), output("effect 0 is of kind 6")),
        (answers("no-such-effect-by-far", &store(0x4000, -1)), output("is of kind 4294967295")),
        (answers("no-such-option", &store(0x814, 2)), output("")),
        (answers("no-such-failure", &failed(0, 9)), output("")),
        (answers("failure-not-text", &not_text), output("utf-8")),
        (
            answers("failure-outside", &(failed(0, 1) + &store(0x820, -16) + &store(0x824, 9))),
            output("out of bounds"),
        ),
        (answers("handled-more", &store(0x800, 1_000)), output("1000 of 1 events are handled")),
        (answers("handled-fewer", &store(0x800, 0)), output("0 of 1 events are handled")),
        (answers("fails-another", &failed(77, 1)), output("77")),
        (
            answers("effect-of-nothing", &(store(0x800, 0) + &failed(0, 1))),
            output("1 effects and handled no event"),
        ),
        (answers("shares-bytes", &twice), output("they share some")),
        (answers("foreign-table", &store(0x4004, 7)), output("names table 7 of 1")),
        (answers("names-no-event", &store(0x4008, 1_000)), output("names event 1000 of 1")),
        (answers("starts-outside", &store(0x4020, -2)), output("points outside its arena")),
        (answers("lies-about-length", &store(0x4034, -1)), output("points outside its arena")),
        (answers("key-empty", &store(0x4024, 0)), output("a row's key has 1 to")),
        (answers("key-too-long", &effect(0, 4_000, [2_000, 0, 0, 0, 1])), output("this one 2000")),
        (answers("no-cell", &effect(0, 400, [1, 0, 0, 0, 0])), output("effect 0")),
        (answers("many-cells", &effect(0, 400, [1, 0, 0, 0, 99])), output("effect 0")),
        (answers("version-too-large", "(i64.store (i32.const 0x4010) (i64.const -1))"), output("version")),
        (answers("state-key-too-long", &effect(2, 4_000, [600, 0, 0, 0, 1])), output("this one 600")),
        (
            answers("state-too-large", &effect(2, 4_000_000, [1, 0, 0, 0, 2_000_000])).pages(ROOMY),
            output("this one 2000000"),
        ),
        (answers("emits-nothing", &effect(4, 400, [0, 0, 0, 0, 0])), output("emitted event")),
        (answers("emits-control", &emit(*b"a\x01x1")), output("control character")),
        (answers("emits-no-json", &emit(*b"atx{")), output("not JSON")),
        (answers("emits-no-text", &emit(*b"a\xffx1")), output("not UTF-8")),
        (
            answers("emits-too-much", &effect(4, 4_000_000, [1, 1, 1, 0, 2_000_000])).pages(ROOMY),
            output("emitted event"),
        ),
    ]
}

pub(super) fn count() -> usize {
    endless().len() + falls().len() + takes_too_much().len() + lies().len()
}

/// All of them at once, on the same five events, beside a neighbour.
async fn contain(attacks: Vec<Attack>, call_ms_max: Option<u64>) {
    let rig = Rig::new();
    let last = rig
        .publish(&[("a", "x", "1"), ("b", "x", "1"), ("c", "poison", "1"), ("d", "x", "1"), ("b", "x", "2")])
        .await;
    let neighbour = guest("neighbour");
    let mut runners = vec![rig.run_component(&neighbour.component(), PluginSettings::default()).await];
    for (attacker, _) in &attacks {
        // What `allocates` asks for, so that the host has something to hand over.
        let config = BTreeMap::from([(attacker.name().to_owned(), "a setting".to_owned())]);
        let settings = PluginSettings { config, call_ms_max, ..PluginSettings::default() };
        runners.push(rig.run_component(&attacker.component(), settings).await);
    }
    for runner in &runners {
        rig.done(runner, last).await;
    }
    let after = rig.publish(&[("e", "x", "1")]).await;
    for runner in &runners {
        rig.done(runner, after).await;
    }
    assert_eq!(
        rig.keys(&neighbour.table()).await,
        ["a", "b", "c", "d", "e"],
        "the neighbour notices nothing"
    );
    let mut wrong = Vec::new();
    for (attacker, ends) in &attacks {
        let name = attacker.name();
        let dead = rig.dead(name).await;
        let (keys, sound) = match ends {
            Letter(reason, says) => {
                let sound = matches!(&dead[..], [(agg_id, why, message)]
                    if agg_id == "c" && why == reason && message.contains(says));
                (&["a", "b", "d", "e"][..], sound)
            }
            Handled => (&["a", "b", "c", "d", "e"][..], dead.is_empty()),
        };
        let found = rig.keys(&attacker.table()).await;
        if !sound || found != keys {
            wrong.push(format!("{name}: letters {dead:?}, rows {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_ends_is_ended_at_the_time_of_a_call() {
    contain(endless(), Some(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_falls_takes_one_event_with_it() {
    contain(falls(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_too_much_is_told_the_limit() {
    contain(takes_too_much(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_in_its_answer_is_found_out() {
    contain(lies(), None).await;
}
