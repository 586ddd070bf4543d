//! What attackers cost: how long after its limit an endless call ends, what a neighbour keeps of its
//! throughput, and whether the memory comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::event::{Event, EventBatch, Position};
use millrace::plugins::{PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{ProcessorFactory, ProcessorSettings, Runner, TrapKind};
use millrace::streams::EventLog;
use millrace::tables::TableStore;
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::guests::guest;
use millrace_tests::handwritten::{Handwritten, Import};

use super::processors::{copied_flight_batches, done, engine, instance};
use super::tenant;

const CALL_MS: u64 = 200;
/// Of a call that takes all the memory there is for an instance, 256 MiB, and of other attacks.
const GROW_MS: u64 = 5_000;
const SHORT_MS: u64 = 20;
/// Endless calls of each kind.
const CALLS: usize = 20;
const POISON_EVENTS: u64 = 1_000;
/// How often the neighbour's day of flights is repeated: enough for more than a second of work.
const NEIGHBOUR_COPIES: usize = 8;

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    overshoot(suite)?;
    neighbour(suite)?;
    memory(suite)
}

fn load(runtime: &WasmRuntime, bytes: &[u8], call_ms_max: u64) -> Result<Arc<dyn ProcessorFactory>> {
    let settings = PluginSettings { call_ms_max: Some(call_ms_max), ..PluginSettings::default() };
    Ok(runtime.load(bytes, &|_| settings.clone())?)
}

/// Events whose type sets a handwritten guest off.
fn poison(first: u64, count: u64) -> EventBatch {
    let mut batch = EventBatch::new(tenant());
    for number in first..first + count {
        let agg_id = format!("poison-{number}");
        let event = Event {
            aggregate: "thing",
            agg_id: &agg_id,
            event_type: "poison",
            version: 1,
            payload: b"1",
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    batch
}

fn spinner(name: &str) -> Handwritten {
    Handwritten::new(name).on_poison("(loop $l (br $l))")
}

/// Calls that would never end: in the guest's code, in a host function again and again, waiting inside the
/// host, and in one long instruction after the other.
fn endless() -> Vec<Handwritten> {
    let log = "(loop $l (call $log (i32.const 0) (i32.const 0x200) (i32.const 4)) (br $l))";
    let wait = "(call $block (call $after (i64.const 3600000000000)))";
    let fill = "(loop $l (memory.fill (i32.const 0x20000) (i32.const 7) (i32.const 20000000)) (br $l))";
    let random = "(loop $l (global.set $heap (i32.const 0x20000))
        (call $random (i64.const 60000) (i32.const 0xd00)) (br $l))";
    vec![
        spinner("spins"),
        Handwritten::new("logs").import(Import::Log).on_poison(log),
        Handwritten::new("waits").import(Import::Wait).on_poison(wait),
        Handwritten::new("fills").pages(400).on_poison(fill),
        Handwritten::new("rolls").pages(400).import(Import::Random).on_poison(random),
    ]
}

/// How long after the limit a call came back, 99 of 100 times.
fn overshoot(suite: &mut Suite) -> Result<()> {
    let runtime = WasmRuntime::new(RuntimeOptions { instances_max: 16, ..RuntimeOptions::default() })?;
    let attackers = endless()
        .iter()
        .map(|guest| load(&runtime, &guest.component(), CALL_MS))
        .collect::<Result<Vec<_>>>()?;
    let limit = Duration::from_millis(CALL_MS);
    let figure = Figure {
        name: "an endless call ends after its limit, p99",
        unit: "ms",
        floor: Some(50.0),
        better: Better::Lower,
    };
    suite.measure(figure, |_| {
        let mut over = Vec::new();
        for attacker in &attackers {
            for _ in 0..CALLS {
                let mut instance = instance(&**attacker)?;
                let begin = Instant::now();
                let ended = instance.handle(&poison(0, 1));
                over.push(begin.elapsed().saturating_sub(limit).as_secs_f64() * 1_000.0);
                let kind = ended.err().context("it came back")?.kind;
                ensure!(kind == TrapKind::Timeout, "it ended by {kind}");
            }
        }
        over.sort_by(f64::total_cmp);
        Ok(over[(over.len() * 99).div_ceil(100) - 1])
    })?;
    Ok(())
}

/// Events a second of a processor that behaves, beside some that do not, on the same log.
fn throughput(batches: &[EventBatch], attackers: &[Handwritten]) -> Result<f64> {
    super::runtime()?.block_on(async {
        let dir = tempfile::tempdir()?;
        let store = SqliteStore::open(SqliteOptions::new(dir.path()))?;
        // Enough for every attacker to be busy until the end.
        store.append(poison(0, POISON_EVENTS)).await?;
        let mut last = Position::START;
        for batch in batches {
            last = store.append(batch.clone()).await?.last().context("events")?.position;
        }
        let runtime = WasmRuntime::new(RuntimeOptions { instances_max: 16, ..RuntimeOptions::default() })?;
        let engine = engine(&store)?;
        let mut runners = Vec::new();
        for attacker in attackers {
            let factory = load(&runtime, &attacker.component(), 1_000)?;
            store.declare(attacker.name(), &factory.manifest().tables).await?;
            runners.push(Runner::start(&engine, factory, ProcessorSettings::default()));
        }
        // They are at it before the neighbour begins.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let neighbour = load(&runtime, &std::fs::read(guest("flight-board"))?, 5_000)?;
        store.declare("flight-board", &neighbour.manifest().tables).await?;
        let begin = Instant::now();
        let runner = Runner::start(&engine, neighbour, ProcessorSettings::default());
        done(&runner, last).await?;
        let rate = (last.0 - POISON_EVENTS) as f64 / begin.elapsed().as_secs_f64();
        for runner in runners.iter().chain([&runner]) {
            runner.stop(Duration::from_secs(2)).await;
        }
        engine.pool.shut_down();
        store.close().await;
        Ok(rate)
    })
}

fn neighbour(suite: &mut Suite) -> Result<()> {
    let bomb = Handwritten::new("grows").on_poison(
        "(loop $l (drop (memory.grow (i32.const 16)))
            (memory.fill (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 1048576)) (i32.const 7)
                (i32.const 1048576)) (br $l))",
    );
    let (one, two) = (spinner("spins"), spinner("spins-too"));
    let batches = copied_flight_batches(1_000, NEIGHBOUR_COPIES)?;
    let mut values = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let alone = throughput(&batches, &[])?;
        let beside_one = throughput(&batches, std::slice::from_ref(&one))?;
        let beside_bomb = throughput(&batches, std::slice::from_ref(&bomb))?;
        let beside_two = throughput(&batches, &[one.clone(), two.clone()])?;
        eprintln!(
            "  round {}: alone {alone:.0}, beside one loop {beside_one:.0}, beside a memory bomb {beside_bomb:.0}, beside two loops {beside_two:.0} events/s",
            round + 1
        );
        values[0].push(alone);
        values[1].push(beside_one / alone);
        values[2].push(beside_bomb / alone);
        values[3].push(beside_two / alone);
    }
    let figures: [(&str, &str, Option<f64>); 4] = [
        ("a neighbour alone", "events/s", None),
        ("a neighbour beside an endless loop, of what it does alone", "times", Some(0.8)),
        ("a neighbour beside a memory bomb, of what it does alone", "times", Some(0.8)),
        ("a neighbour beside two endless loops, of what it does alone", "times", Some(0.4)),
    ];
    for ((name, unit, floor), values) in figures.into_iter().zip(&values) {
        suite.record(Figure { name, unit, floor, better: Better::Higher }, values)?;
    }
    Ok(())
}

/// Resident bytes of this process.
pub(crate) fn resident() -> Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("the kernel tells it")?;
    let pages: f64 = statm.split(' ').nth(1).context("the second number")?.parse()?;
    Ok(pages * 4_096.0)
}

/// Attacks that take memory, over and over, and what of it stays.
fn memory(suite: &mut Suite) -> Result<()> {
    let runtime = WasmRuntime::new(RuntimeOptions { instances_max: 16, ..RuntimeOptions::default() })?;
    let grow = "(loop $l (drop (memory.grow (i32.const 16)))
        (memory.fill (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 1048576)) (i32.const 7)
            (i32.const 1048576)) (br $l))";
    let table = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l))";
    let output = "(i32.store (i32.const 0x804) (i32.const 0x20000))
        (i32.store (i32.const 0x808) (i32.const 16000000))";
    let attackers = [
        // Time enough to come to `guest_memory_bytes_max`, all of it written.
        (Handwritten::new("grows").on_poison(grow), GROW_MS),
        (Handwritten::new("grows-a-table").with("(table $t 1 funcref)").on_poison(table), SHORT_MS),
        (Handwritten::new("hands-over").pages(400).before_return(output), SHORT_MS),
        (
            Handwritten::new("recurses")
                .with(
                    "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))",
                )
                .on_poison("(drop (call $deep (i32.const 0)))"),
            SHORT_MS,
        ),
        (spinner("spins"), SHORT_MS),
    ];
    let attackers = attackers
        .iter()
        .map(|(guest, call_ms)| load(&runtime, &guest.component(), *call_ms))
        .collect::<Result<Vec<_>>>()?;
    let bomb = instance(&*attackers[0])?.handle(&poison(0, 1)).err().context("the bomb goes off")?;
    ensure!(bomb.kind == TrapKind::Limit, "it ends by the bound on its memory: {bomb}");
    let strike = |times: usize| -> Result<()> {
        for attacker in attackers.iter().cycle().take(attackers.len() * times) {
            // Whether it ends by a limit or in its answer is told by the tests.
            let _ = instance(&**attacker)?.handle(&poison(0, 1));
        }
        Ok(())
    };
    // What the allocator and the pool keep for the next one is no leak.
    strike(5)?;
    let figure = Figure {
        name: "resident memory after 500 attacks, of that before",
        unit: "times",
        floor: Some(1.05),
        better: Better::Lower,
    };
    suite.measure(figure, |_| {
        let before = resident()?;
        strike(100)?;
        Ok(resident()? / before)
    })?;
    Ok(())
}
