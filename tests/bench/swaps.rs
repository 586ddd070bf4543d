//! What must not be felt: versions that change under full load, events that make a guest fall, a candidate
//! that is tried beside the serving version.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millrace::config::Config;
use millrace::event::{Event, EventBatch, Position};
use millrace::plugins::{DeployFrom, DeployOptions, DeployRequest, PluginControl, PluginStatus};
use millrace::streams::EventLog;
use millrace_tests::bench::{Better, Figure, Suite, median, percentile};
use millrace_tests::dump::dump;
use millrace_tests::embedded::Embedded;
use millrace_tests::guests::guest;
use millrace_tests::host::relabelled;

use super::processors::flight_batches;
use super::replay::PLUGINS;
use super::{runtime, tenant};

const SWAPS: usize = 306;
const POISONS: usize = 120;
/// Good events between two that are poison.
const POISON_GAP: u64 = 8_000;
/// How far a publisher runs ahead of the plugins: they are never without work, and read from memory.
const LEAD_EVENTS: u64 = 10_000;
const BATCH_EVENTS: usize = 500;
/// How often a plugin's status is looked at.
const LOOK: Duration = Duration::from_micros(200);
const WAIT_MAX: Duration = Duration::from_secs(120);
const CATCHUP_PASSES: u64 = 3;

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    swaps(suite)?;
    poison(suite)?;
    shadow(suite)
}

/// The flights over and over: each time other flights, with ids of their own.
struct Flights {
    batches: Vec<EventBatch>,
}

impl Flights {
    fn read() -> Result<Self> {
        Ok(Self { batches: flight_batches(BATCH_EVENTS)? })
    }

    fn batch(&self, number: u64) -> EventBatch {
        let count = self.batches.len() as u64;
        let pass = number / count;
        let source = &self.batches[usize::try_from(number % count).expect("there are few batches")];
        let mut batch = EventBatch::with_capacity(tenant(), source.len(), source.bytes() + source.len() * 32);
        for (index, event) in source.iter().enumerate() {
            let (id, agg_id) = (format!("{number:08x}-{index:04x}"), format!("{pass}/{}", event.agg_id));
            batch.push(&Event { id: &id, agg_id: &agg_id, ..event }).expect("a good event");
        }
        batch
    }
}

/// Runs something beside the measurement.
#[expect(clippy::disallowed_methods, reason = "a benchmark waits for, or ends, what it starts")]
fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}

fn component(name: &str, label: &str) -> Result<Bytes> {
    Ok(relabelled(&std::fs::read(guest(name))?, label))
}

async fn deploy(plugins: &dyn PluginControl, component: Bytes) -> Result<PluginStatus> {
    let request = DeployRequest {
        component,
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: "bench".into(),
        options: DeployOptions::default(),
        paused: false,
        settings: None,
        progress: None,
    };
    Ok(plugins.deploy(request).await?)
}

/// Where a plugin's one task stands.
fn position(status: &PluginStatus) -> u64 {
    status.tasks.first().map_or(0, |task| task.position)
}

/// The positions of the slowest of these plugins.
async fn slowest(plugins: &dyn PluginControl, names: &[&str]) -> Result<u64> {
    let mut slowest = u64::MAX;
    for name in names {
        slowest = slowest.min(position(&plugins.show(name).await?));
    }
    Ok(slowest)
}

async fn until_done(plugins: &dyn PluginControl, names: &[&str]) -> Result<()> {
    let (mut moved, mut before) = (Instant::now(), 0);
    loop {
        let (mut idle, mut positions) = (true, 0);
        for name in names {
            let status = plugins.show(name).await?;
            ensure!(status.message.is_empty(), "{name}: {}", status.message);
            idle &= status.lag_events == 0;
            positions += position(&status);
        }
        if idle {
            return Ok(());
        }
        if positions != before {
            (moved, before) = (Instant::now(), positions);
        }
        ensure!(moved.elapsed() < WAIT_MAX, "the plugins do not catch up");
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// Publishes batches, as fast as the plugins take them, until it is told to stop. Answers how many.
async fn publish(
    log: Arc<dyn EventLog>,
    plugins: Arc<dyn PluginControl>,
    names: &'static [&'static str],
    mut batch: impl FnMut(u64) -> EventBatch + Send,
    stop: Arc<AtomicBool>,
) -> Result<u64> {
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        log.append(batch(number)).await?;
        number += 1;
        while log.bounds().newest.0.saturating_sub(slowest(&*plugins, names).await?) > LEAD_EVENTS
            && !stop.load(Ordering::Acquire)
        {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(number)
}

// Swaps.

/// Milliseconds in which a plugin committed nothing.
#[derive(Default)]
struct Pauses {
    /// In which a task handled nothing because it changed versions: median and p99, of the slowest plugin.
    hand_over: (f64, f64),
    around_swaps: Vec<f64>,
    elsewhere: Vec<f64>,
    rate: f64,
}

fn swaps(suite: &mut Suite) -> Result<()> {
    let flights = Arc::new(Flights::read()?);
    let dir = tempfile::tempdir()?;
    let pauses = runtime()?.block_on(stormy(&flights, dir.path()))?;
    let pause = |what: &str| {
        format!(
            "pause of a plugin for a swap at full rate: it handles nothing, {SWAPS} swaps, {what}, at most"
        )
    };
    let name = |what: &str| format!("longest time between two commits during a deploy at full rate, {what}");
    let all = &pauses.around_swaps;
    let missing = || anyhow::anyhow!("there are swaps");
    let figures = [
        (pause("median"), None, pauses.hand_over.0),
        (pause("p99"), Some(10.0), pauses.hand_over.1),
        (name("median"), None, median(all).with_context(missing)?),
        (name("p99"), None, percentile(all, 99).with_context(missing)?),
        (name("longest"), None, percentile(all, 100).with_context(missing)?),
        (
            "time between two commits without a swap, median".into(),
            None,
            median(&pauses.elsewhere).with_context(missing)?,
        ),
        (
            "time between two commits without a swap, p99".into(),
            None,
            percentile(&pauses.elsewhere, 99).with_context(missing)?,
        ),
    ];
    for (name, floor, value) in figures {
        suite.record(Figure { name: &name, unit: "ms", floor, better: Better::Lower }, &[value])?;
    }
    let name = "events through three plugins while they were swapped";
    let figure = Figure { name, unit: "events/s", floor: None, better: Better::Higher };
    suite.record(figure, &[pauses.rate])?;
    Ok(())
}

/// Swaps under load, and compares what is left with a run without swaps over the same events.
async fn stormy(flights: &Arc<Flights>, dir: &Path) -> Result<Pauses> {
    let stormy = Embedded::start_with(take_over_soon).await?;
    let control = stormy.host().plugins();
    for name in PLUGINS {
        // Both builds are compiled before anything is measured.
        deploy(&*control, component(name, "b")?).await?;
        deploy(&*control, component(name, "a")?).await?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let source = Arc::clone(flights);
    let publisher = beside(publish(
        stormy.host().log(),
        Arc::clone(&control),
        &PLUGINS,
        move |number| source.batch(number),
        Arc::clone(&stop),
    ));
    let begin = Instant::now();
    let mut pauses = Pauses::default();
    while slowest(&*control, &PLUGINS).await? < 2 * LEAD_EVENTS {
        ensure!(begin.elapsed() < WAIT_MAX, "no full rate after two minutes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for swap in 0..SWAPS {
        let name = PLUGINS[swap % PLUGINS.len()];
        let label = if (swap / PLUGINS.len()).is_multiple_of(2) { "b" } else { "a" };
        watch_swap(&control, name, component(name, label)?, &mut pauses).await?;
        if (swap + 1) % 51 == 0 {
            let so_far = percentile(&pauses.around_swaps, 99).unwrap_or_default();
            eprintln!("  {} swaps, p99 of their pauses so far {so_far:.2} ms", swap + 1);
        }
    }
    for name in PLUGINS {
        let versions = control.show(name).await?.measures.versions;
        for shape in versions.iter().map(|version| version.hand_over_seconds) {
            pauses.hand_over.0 = pauses.hand_over.0.max(shape.p50 * 1e3);
            pauses.hand_over.1 = pauses.hand_over.1.max(shape.p99 * 1e3);
        }
    }
    pauses.rate = slowest(&*control, &PLUGINS).await? as f64 / begin.elapsed().as_secs_f64();
    stop.store(true, Ordering::Release);
    let batches = publisher.await??;
    eprintln!("  {} events; the same once more without a swap", batches * BATCH_EVENTS as u64);
    until_done(&*control, &PLUGINS).await?;
    let data = stormy.data();
    let kept = stormy.stop().await;
    let after_swaps = dump(&data)?;
    drop(kept);

    let quiet = Embedded::start_with(|config| config.serve.data = dir.join("quiet")).await?;
    for name in PLUGINS {
        deploy(&*quiet.host().plugins(), component(name, "a")?).await?;
    }
    for number in 0..batches {
        quiet.host().log().append(flights.batch(number)).await?;
    }
    until_done(&*quiet.host().plugins(), &PLUGINS).await?;
    let data = quiet.data();
    let _kept = quiet.stop().await;
    ensure!(dump(&data)? == after_swaps, "something was lost or doubled over {SWAPS} swaps");
    eprintln!("  {SWAPS} swaps: 0 lost, 0 doubled");
    Ok(pauses)
}

/// One swap, and the commits around it: the longest time without one that touches it is its pause.
async fn watch_swap(
    control: &Arc<dyn PluginControl>,
    name: &str,
    component: Bytes,
    pauses: &mut Pauses,
) -> Result<()> {
    // Commits on both sides of the swap are seen: the first look waits for one.
    let mut commits = vec![next_commit(&**control, name, position(&control.show(name).await?)).await?];
    let deployer = Arc::clone(control);
    let begun = Instant::now();
    let mut swap = beside(async move {
        deploy(&*deployer, component).await?;
        anyhow::Ok(Instant::now())
    });
    let mut ended = None;
    loop {
        let (_, at) = commits[commits.len() - 1];
        if ended.is_some_and(|ended| at > ended) {
            break;
        }
        let last = commits[commits.len() - 1].0;
        commits.push(next_commit(&**control, name, last).await?);
        if ended.is_none() && swap.is_finished() {
            ended = Some((&mut swap).await??);
        }
    }
    let ended = ended.context("the swap has ended")?;
    let gaps = commits.windows(2).map(|pair| (pair[0].1, pair[1].1));
    let (mut longest, mut others) = (0.0_f64, Vec::new());
    for (from, to) in gaps {
        let millis = (to - from).as_secs_f64() * 1e3;
        if to > begun && from < ended { longest = longest.max(millis) } else { others.push(millis) }
    }
    pauses.around_swaps.push(longest);
    pauses.elsewhere.extend(others);
    // Some commits without a swap, to compare with.
    let mut last = commits[commits.len() - 1];
    for _ in 0..2 {
        let next = next_commit(&**control, name, last.0).await?;
        pauses.elsewhere.push((next.1 - last.1).as_secs_f64() * 1e3);
        last = next;
    }
    Ok(())
}

/// Waits until a plugin's committed position has moved on; answers it and when.
async fn next_commit(control: &dyn PluginControl, name: &str, after: u64) -> Result<(u64, Instant)> {
    let begin = Instant::now();
    loop {
        let position = position(&control.show(name).await?);
        if position != after {
            return Ok((position, Instant::now()));
        }
        ensure!(begin.elapsed() < WAIT_MAX, "{name} commits nothing more");
        tokio::time::sleep(LOOK).await;
    }
}

// Poison.

const POISONED: [&str; 1] = ["trap-on-type"];

fn poison(suite: &mut Suite) -> Result<()> {
    let waits = runtime()?.block_on(poisoned())?;
    for (what, floor, value) in [
        ("median", None, median(&waits)),
        ("p99", Some(50.0), percentile(&waits, 99)),
        ("longest", None, percentile(&waits, 100)),
    ] {
        let name = format!("from a trap to the next good event's commit, {POISONS} poison events, {what}");
        let figure = Figure { name: &name, unit: "ms", floor, better: Better::Lower };
        suite.record(figure, &[value.context("there are poison events")?])?;
    }
    Ok(())
}

/// Milliseconds from each trap to the next good event's commit, in a full stream.
async fn poisoned() -> Result<Vec<f64>> {
    let host = Embedded::start().await?;
    let control = host.host().plugins();
    deploy(&*control, std::fs::read(guest("trap_on_type"))?.into()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let gap = POISON_GAP / BATCH_EVENTS as u64;
    let counted = Arc::clone(&sent);
    let batch = move |number: u64| {
        let mut batch = super::events(number * BATCH_EVENTS as u64, BATCH_EVENTS as u64);
        if number % gap == gap - 1 && counted.load(Ordering::Relaxed) < POISONS as u64 {
            batch = with_poison(&batch, counted.fetch_add(1, Ordering::Relaxed));
        }
        batch
    };
    let publisher =
        beside(publish(host.host().log(), Arc::clone(&control), &POISONED, batch, Arc::clone(&stop)));
    let mut waits = Vec::new();
    let (mut before, mut looked) = (control.show(POISONED[0]).await?, Instant::now());
    let mut trapped = None;
    while waits.len() < POISONS {
        let now = control.show(POISONED[0]).await?;
        // What is seen now may have happened right after the look before: the longer time counts.
        if now.counters.traps > before.counters.traps && trapped.is_none() {
            trapped = Some((looked, now.counters.dead_letters.min(before.counters.dead_letters)));
        }
        if let Some((since, dead)) = trapped
            && now.counters.dead_letters > dead
            && position(&now) > position(&before)
        {
            waits.push(since.elapsed().as_secs_f64() * 1e3);
            trapped = None;
        }
        ensure!(now.message.is_empty(), "the plugin stopped: {}", now.message);
        ensure!(looked.elapsed() < WAIT_MAX, "nothing happens");
        (before, looked) = (now, Instant::now());
        tokio::time::sleep(LOOK).await;
    }
    stop.store(true, Ordering::Release);
    publisher.await??;
    until_done(&*control, &POISONED).await?;
    let dead = control.show(POISONED[0]).await?.counters.dead_letters;
    ensure!(dead == POISONS as u64, "{dead} dead letters of {POISONS} poison events");
    host.stop().await;
    Ok(waits)
}

/// The batch with an event that makes the guest fall in its middle, on a key of its own.
fn with_poison(batch: &EventBatch, number: u64) -> EventBatch {
    let mut poisoned = EventBatch::new(batch.tenant.clone());
    for index in 0..batch.len() {
        poisoned.push_from(batch, index);
        if index == batch.len() / 2 {
            let (id, agg_id) = (format!("poison-{number}"), format!("bad-{number}"));
            let event = Event {
                id: &id,
                aggregate: "thing",
                agg_id: &agg_id,
                event_type: "poison",
                version: 1,
                payload: b"{}",
                ..Event::default()
            };
            poisoned.push(&event).expect("a good event");
        }
    }
    poisoned
}

// Shadow.

const SERVING: [&str; 1] = ["flight-board"];

/// The same catch-up alone and with a candidate beside it, in turns.
fn shadow(suite: &mut Suite) -> Result<()> {
    let flights = Flights::read()?;
    let mut values = [const { Vec::new() }; 3];
    for round in 0..millrace_tests::bench::ROUNDS {
        let alone = runtime()?.block_on(catch_up(&flights, None))?;
        let with = runtime()?.block_on(catch_up(&flights, Some("b")))?;
        eprintln!("  round {}: {alone:.0} ms alone, {with:.0} ms with a candidate", round + 1);
        for (values, value) in values.iter_mut().zip([alone, with, with / alone]) {
            values.push(value);
        }
    }
    let figures: [(&str, &str, Option<f64>); 3] = [
        ("catch-up of flight-board alone", "ms", None),
        ("the same while a candidate is deployed", "ms", None),
        ("the serving version's time with a candidate over that without", "times", Some(1.3)),
    ];
    for ((name, unit, floor), values) in figures.into_iter().zip(&values) {
        suite.record(Figure { name, unit, floor, better: Better::Lower }, values)?;
    }
    Ok(())
}

/// Keeps a candidate in the shadow for all of a catch-up.
fn stay_in_the_shadow(config: &mut Config) {
    config.processors.shadow_events = u64::from(u32::MAX);
    config.processors.shadow_ms = 60_000;
    config.processors.shadow_ms_max = 60_000;
}

/// A candidate takes over as soon as it has shown itself on a few events.
fn take_over_soon(config: &mut Config) {
    config.processors.shadow_events = 50;
    config.processors.shadow_ms = 5;
}

/// Milliseconds in which the serving version handles a log that was there before.
async fn catch_up(flights: &Flights, candidate: Option<&str>) -> Result<f64> {
    let host = Embedded::start_with(stay_in_the_shadow).await?;
    let control = host.host().plugins();
    // Compiled before anything is measured.
    for label in ["b", "a"] {
        deploy(&*control, component(SERVING[0], label)?).await?;
        control.remove(SERVING[0]).await?;
    }
    let mut last = Position::START;
    for number in 0..flights.batches.len() as u64 * CATCHUP_PASSES {
        last = host.host().log().append(flights.batch(number)).await?.last().context("events")?.position;
    }
    let begin = Instant::now();
    deploy(&*control, component(SERVING[0], "a")?).await?;
    let deploying = candidate.map(|label| {
        let (control, component) = (Arc::clone(&control), component(SERVING[0], label));
        beside(async move { deploy(&*control, component?).await })
    });
    while position(&control.show(SERVING[0]).await?) < last.0 {
        ensure!(begin.elapsed() < WAIT_MAX, "it does not catch up");
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    if let Some(deploying) = deploying {
        deploying.abort();
    }
    host.stop().await;
    Ok(millis)
}
