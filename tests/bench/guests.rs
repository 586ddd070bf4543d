//! Guests in each language beside native code, through the same seam; what it takes to begin one; how quick a rebuild is;
//! and foreign events.
//!
//! What a thread does is told by the time that it had a core for: others on the machine are not counted.

mod begin;
mod rebuilds;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use millrace::event::EventBatch;
use millrace::plugins::{Metering, PluginRuntime as _, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::ProcessorFactory;
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::folds::{Fold, departures};
use millrace_tests::guests::guest;
use millrace_tests::kit::{Language, granted};
use millrace_tests::native::Native;

use super::hostile::resident;
use super::live::cpu_time;
use super::processors::instance;
use super::sources;

const BATCHES: u64 = 20;
const BATCH_EVENTS: u64 = 1_000;
/// Batches from one snapshot to the next.
const SNAPSHOT_BATCHES: usize = 4;
/// Of each round, in seconds of a core.
const ROUND_SECONDS: f64 = 2.0;

/// What is measured: its name, the component, and what it must reach without rows.
const GUESTS: [(&str, &str, f64); 3] = [
    ("Rust", "fold", 1_000_000.0),
    ("Python", "fold-python", 100_000.0),
    ("JavaScript", "fold-js", 75_000.0),
];

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    languages(suite)?;
    begin::run(suite)?;
    rebuilds::run(suite)?;
    sources::from_a_host(suite)?;
    sources::run(suite)
}

/// Events a second of a core that goes on for some seconds, snapshots among it.
fn rate(factory: &dyn ProcessorFactory, batches: &[EventBatch]) -> Result<f64> {
    let mut instance = instance(factory)?;
    let mut pass = || -> Result<usize> {
        let mut events = 0;
        for (number, batch) in (1_usize..).zip(batches) {
            let outcome = instance.handle(batch)?;
            ensure!(outcome.handled == batch.len(), "it handles all: {:?}", outcome.failure);
            events += outcome.handled;
            if number.is_multiple_of(SNAPSHOT_BATCHES) {
                instance.snapshot()?;
            }
        }
        Ok(events)
    };
    // An engine's first calls make what the later ones use.
    pass()?;
    let (begin, mut events) = (cpu_time(), 0);
    loop {
        events += pass()?;
        let seconds = cpu_time() - begin;
        if seconds >= ROUND_SECONDS {
            return Ok(events as f64 / seconds);
        }
    }
}

fn settings(writes_rows: bool) -> PluginSettings {
    let config = BTreeMap::from([("rows".to_owned(), writes_rows.to_string())]);
    PluginSettings { config, ..PluginSettings::default() }
}

fn runtime(metering: Metering, code: &Path) -> Result<WasmRuntime> {
    let cache_dir = Some(code.to_owned());
    Ok(WasmRuntime::new(RuntimeOptions { cache_dir, metering, ..RuntimeOptions::default() })?)
}

fn load(runtime: &WasmRuntime, name: &str, writes_rows: bool) -> Result<Arc<dyn ProcessorFactory>> {
    let settings = settings(writes_rows);
    Ok(runtime.load(&std::fs::read(guest(name))?, &|_| settings.clone())?)
}

fn languages(suite: &mut Suite) -> Result<()> {
    let batches: Vec<EventBatch> =
        (0..BATCHES).map(|number| departures(number * BATCH_EVENTS, BATCH_EVENTS)).collect();
    let code = tempfile::tempdir()?;
    let by_epochs = runtime(Metering::Epoch, &code.path().join("epochs"))?;
    let by_fuel = runtime(Metering::Fuel, &code.path().join("fuel"))?;
    for (language, name, _) in GUESTS {
        sizes(suite, &by_epochs, &batches, (language, name))?;
    }
    let measure = |suite: &mut Suite, name: &str, floor: Option<f64>, factory: &dyn ProcessorFactory| {
        let figure = Figure { name, unit: "events/s", floor, better: Better::Higher };
        suite.measure(figure, |_| rate(factory, &batches))
    };
    for (rows, what) in [(false, "state only"), (true, "a row for each event")] {
        for (language, name, floor) in GUESTS {
            let floor = Some(floor).filter(|_| !rows);
            let epochs = load(&by_epochs, name, rows)?;
            let epochs = measure(suite, &format!("{language}, {what}, epochs"), floor, &*epochs)?;
            let fuel = load(&by_fuel, name, rows)?;
            let fuel = measure(suite, &format!("{language}, {what}, fuel"), None, &*fuel)?;
            let name = format!("{language}, {what}, fuel of epochs");
            let ratio = Figure { name: &name, unit: "times", floor: None, better: Better::Higher };
            suite.record(ratio, &[fuel / epochs])?;
        }
        let native = Native::<Fold>::new().with_settings(settings(rows).config);
        measure(suite, &format!("native code, {what}"), None, &native)?;
    }
    for (metering, runtime) in [("epochs", &by_epochs), ("fuel", &by_fuel)] {
        // Its other types of events are in the kit; what has another one is counted, and its payload hashed.
        let component = Language::Wat.component();
        let factory = runtime.load(&component, &|_| granted(BTreeMap::new()))?;
        let name = format!("WebAssembly text without an SDK, payloads hashed, {metering}");
        measure(suite, &name, None, &*factory)?;
    }
    Ok(())
}

/// How large a component is, how long it takes to compile on all cores, and what an instance comes to.
fn sizes(
    suite: &mut Suite,
    runtime: &WasmRuntime,
    batches: &[EventBatch],
    (language, name): (&str, &str),
) -> Result<()> {
    let bytes = std::fs::metadata(guest(name))?.len() as f64;
    let begin = Instant::now();
    let factory = load(runtime, name, false)?;
    let seconds = begin.elapsed().as_secs_f64();
    let before = resident()?;
    let mut instance = instance(&*factory)?;
    for batch in batches {
        instance.handle(batch)?;
    }
    let held = resident()? - before;
    let mebibyte = f64::from(1 << 20);
    for (name, unit, value) in [
        (format!("component in {language}"), "MiB", bytes / mebibyte),
        (format!("compiling the component in {language}"), "s", seconds),
        // With what it has touched of its code.
        (format!("memory of one instance after its first events, {language}"), "MiB", held / mebibyte),
    ] {
        suite.record(Figure { name: &name, unit, floor: None, better: Better::Lower }, &[value])?;
    }
    Ok(())
}
