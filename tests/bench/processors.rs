//! Processors: catching up from the log, what crossing costs, and WebAssembly beside native code.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flight_board::FlightBoard;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CommitError, ScanLimit, StatePage, StateValue};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, Micros, Position};
use millrace::plugins::{PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{
    Engine, GuestPool, Processor, ProcessorFactory, ProcessorSettings, Runner, StateReader, TaskContext,
};
use millrace::streams::EventLog;
use millrace::tables::TableStore;
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::flights;
use millrace_tests::guests::guest;
use millrace_tests::native::Native;

use super::{events, runtime, tenant};

const CATCHUP_EVENTS: u64 = 1_000_000;

pub(crate) fn load(name: &str) -> Result<Arc<dyn ProcessorFactory>> {
    let runtime = WasmRuntime::new(RuntimeOptions::default())?;
    Ok(runtime.load(&std::fs::read(guest(name))?, &|_| PluginSettings::default())?)
}

pub(crate) fn engine(store: &SqliteStore) -> Result<Engine> {
    Ok(Engine {
        shared_log: None,
        log: Arc::new(store.clone()),
        checkpoints: Arc::new(store.clone()),
        pool: GuestPool::for_this_machine()?,
        clock: Arc::new(SystemClock),
        runtime: tokio::runtime::Handle::current(),
    })
}

pub(crate) async fn done(runner: &Runner, through: Position) -> Result<()> {
    let begin = Instant::now();
    while runner.status().done_through < through {
        ensure!(
            begin.elapsed() < Duration::from_secs(120),
            "the processor does not catch up: {:?}",
            runner.status()
        );
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    Ok(())
}

/// From the start of a state-only processor, on one lane, to its last commit; the log is on disk.
pub(crate) fn catchup(suite: &mut Suite) -> Result<()> {
    let figure = Figure {
        name: "catch-up of a state-only Rust processor (WASM), one lane",
        unit: "events/s",
        floor: Some(700_000.0),
        better: Better::Higher,
    };
    let dir = tempfile::tempdir()?;
    let tally = load("tally")?;
    runtime()?.block_on(fill(dir.path(), CATCHUP_EVENTS))?;
    suite.measure(figure, |round| {
        runtime()?.block_on(async {
            // Opened anew, so that the tail is empty and everything comes from the log.
            let store = SqliteStore::open(SqliteOptions::new(dir.path()))?;
            let factory =
                Renamed { name: format!("tally-{round}"), inner: Arc::clone(&tally) }.into_factory();
            let begin = Instant::now();
            let runner = Runner::start(&engine(&store)?, factory, ProcessorSettings::default());
            done(&runner, Position(CATCHUP_EVENTS)).await?;
            let rate = CATCHUP_EVENTS as f64 / begin.elapsed().as_secs_f64();
            runner.stop(Duration::from_secs(10)).await;
            store.close().await;
            Ok(rate)
        })
    })?;
    Ok(())
}

pub(crate) async fn fill(dir: &Path, count: u64) -> Result<()> {
    let store = SqliteStore::open(SqliteOptions::new(dir))?;
    for first in (0..count).step_by(1_000) {
        store.append(events(first, 1_000)).await?;
    }
    store.close().await;
    Ok(())
}

/// The same processor under another name: each round begins without a checkpoint.
#[derive(Debug)]
struct Renamed {
    name: String,
    inner: Arc<dyn ProcessorFactory>,
}

#[derive(Debug)]
struct RenamedFactory {
    manifest: millrace::processors::Manifest,
    inner: Arc<dyn ProcessorFactory>,
}

impl Renamed {
    fn into_factory(self) -> Arc<dyn ProcessorFactory> {
        let manifest = millrace::processors::Manifest { name: self.name, ..self.inner.manifest().clone() };
        Arc::new(RenamedFactory { manifest, inner: self.inner })
    }
}

impl ProcessorFactory for RenamedFactory {
    fn manifest(&self) -> &millrace::processors::Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, millrace::processors::Trap> {
        self.inner.instantiate(context)
    }
}

/// No keyed state.
#[derive(Debug)]
struct NoState;

impl StateReader for NoState {
    fn get(&self, _: &[u8]) -> Result<Option<StateValue>, CommitError> {
        Ok(None)
    }

    fn scan(&self, _: &[u8], _: Option<&[u8]>, _: ScanLimit) -> Result<StatePage, CommitError> {
        Ok(StatePage::default())
    }
}

pub(crate) fn instance(factory: &dyn ProcessorFactory) -> Result<Box<dyn Processor>> {
    let context = TaskContext { tenant: tenant(), lane: 0, lanes: 1, state: Arc::new(NoState) };
    let mut instance = factory.instantiate(context)?;
    instance.load(None)?;
    Ok(instance)
}

/// Time per event of `handle` alone, over and over the same batches.
fn handle_nanos(factory: &dyn ProcessorFactory, batches: &[EventBatch]) -> Result<f64> {
    let mut instance = instance(factory)?;
    let mut handled = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        for batch in batches {
            handled += instance.handle(batch)?.handled;
        }
    }
    Ok(begin.elapsed().as_nanos() as f64 / handled as f64)
}

/// Handing a batch of 100 to a guest that reads every part of every event.
pub(crate) fn crossing(suite: &mut Suite) -> Result<()> {
    let guest = load("crossing")?;
    let batches: Vec<EventBatch> = (0..50).map(|n| envelopes(n * 100)).collect();
    let figure = Figure {
        name: "crossing with the whole envelope, batches of 100",
        unit: "ns/event",
        floor: Some(100.0),
        better: Better::Lower,
    };
    suite.measure(figure, |_| handle_nanos(&*guest, &batches))?;
    Ok(())
}

/// 100 events with a payload of 150 bytes.
fn envelopes(first: u64) -> EventBatch {
    let payload = format!("{{\"note\":\"{}\"}}", "x".repeat(139));
    let mut batch = EventBatch::new(tenant());
    for number in first..first + 100 {
        let agg_id = format!("thing-{number}");
        let event = Event {
            aggregate: "thing",
            agg_id: &agg_id,
            event_type: "thing.changed",
            version: number + 1,
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    batch
}

/// The flights as batches, as the log would hand them out.
pub(crate) fn flight_batches(events_max: usize) -> Result<Vec<EventBatch>> {
    copied_flight_batches(events_max, 1)
}

/// The same so many times over, each time of other flights.
pub(crate) fn copied_flight_batches(events_max: usize, copies: usize) -> Result<Vec<EventBatch>> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        aggregate: &'a str,
        agg_id: &'a str,
        version: u64,
        #[serde(rename = "type")]
        event_type: &'a str,
        at: &'a str,
        #[serde(borrow)]
        payload: &'a serde_json::value::RawValue,
    }
    let lines = flights::lines()?;
    let mut batches = Vec::new();
    for (copy, chunk) in (0..copies).flat_map(|copy| lines.chunks(events_max).map(move |chunk| (copy, chunk)))
    {
        let mut batch = EventBatch::new(tenant());
        for line in chunk {
            let line: Line<'_> = serde_json::from_str(line).context("a line of the flights")?;
            let agg_id = if copy == 0 { line.agg_id.to_owned() } else { format!("{}-{copy}", line.agg_id) };
            batch.push(&Event {
                aggregate: line.aggregate,
                agg_id: &agg_id,
                version: line.version,
                event_type: line.event_type,
                at: Micros::parse(line.at)?,
                payload: line.payload.get().as_bytes(),
                ..Event::default()
            })?;
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// flight-board as a component and as native code, through the same seam.
pub(crate) fn projection(suite: &mut Suite) -> Result<()> {
    let wasm = load("flight-board")?;
    let native: Arc<dyn ProcessorFactory> = Arc::new(Native::<FlightBoard>::new());
    let batches = flight_batches(1_000)?;
    let mut values = [const { Vec::new() }; 4];
    for round in 0..millrace_tests::bench::ROUNDS {
        let handle = (handle_nanos(&*wasm, &batches)?, handle_nanos(&*native, &batches)?);
        let commit = (to_commit(&wasm, &batches)?, to_commit(&native, &batches)?);
        eprintln!("  round {}: handle {handle:?} ns/event, up to the commit {commit:?} events/s", round + 1);
        values[0].push(handle.0);
        values[1].push(handle.0 / handle.1);
        values[2].push(commit.0);
        values[3].push(commit.1 / commit.0);
    }
    let figures: [(&str, &str, Option<f64>, Better); 4] = [
        ("flight-board as WASM, handle alone", "ns/event", None, Better::Lower),
        ("flight-board, WASM over native, handle alone", "times", Some(3.8), Better::Lower),
        ("flight-board as WASM, up to the commit", "events/s", None, Better::Higher),
        ("flight-board, WASM over native, up to the commit", "times", Some(1.2), Better::Lower),
    ];
    for ((name, unit, floor, better), values) in figures.into_iter().zip(&values) {
        suite.record(Figure { name, unit, floor, better }, values)?;
    }
    Ok(())
}

/// Events a second from the log through the projection into durable rows.
fn to_commit(factory: &Arc<dyn ProcessorFactory>, batches: &[EventBatch]) -> Result<f64> {
    runtime()?.block_on(async {
        let dir = tempfile::tempdir()?;
        let store = SqliteStore::open(SqliteOptions::new(dir.path()))?;
        store.declare("flight-board", &factory.manifest().tables).await?;
        let mut last = Position::START;
        for batch in batches {
            last = store.append(batch.clone()).await?.last().context("events")?.position;
        }
        let begin = Instant::now();
        let runner = Runner::start(&engine(&store)?, Arc::clone(factory), ProcessorSettings::default());
        done(&runner, last).await?;
        let rate = last.0 as f64 / begin.elapsed().as_secs_f64();
        runner.stop(Duration::from_secs(10)).await;
        store.close().await;
        Ok(rate)
    })
}
