//! Rebuilds of a plugin that has work meanwhile: how quick they are, and how long it commits nothing when one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace::event::{Event, EventBatch};
use millrace::plugins::PluginControl;
use millrace::streams::EventLog;
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite, median, percentile};
use millrace_tests::embedded::{Client, Embedded};
use reqwest::Method;

use crate::processors::flight_batches;
use crate::tenant;

const PLUGIN: &str = "flight-board";
/// How often the month of flights is in the log.
const COPIES: usize = 8;
/// Rebuilds of what came last alone, for the pauses that they make.
const SHORT: usize = 30;
const BATCH_EVENTS: usize = 1_000;
/// What is published meanwhile: so many events, and then a pause.
const BESIDE_EVENTS: usize = 40;
const BESIDE_PAUSE: Duration = Duration::from_millis(2);
const LOOK: Duration = Duration::from_micros(200);
const WAIT_MAX: Duration = Duration::from_secs(300);

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let found = crate::runtime()?.block_on(measured())?;
    let figure = |name, unit, floor, better| Figure { name, unit, floor, better };
    let name = "rebuild of flight-board beside the one that serves";
    suite.record(figure(name, "events/s", None, Better::Higher), &found.rates)?;
    let (middle, most) = (median(&found.pauses), percentile(&found.pauses, 100));
    for (name, value) in [
        ("longest time between two commits while a rebuild takes over, median", middle),
        ("longest time between two commits while a rebuild takes over, the longest of 30", most),
        ("longest time between two commits in as long a time without one, median", median(&found.without)),
    ] {
        let value = value.context("there are pauses")?;
        suite.record(figure(name, "ms", None, Better::Lower), &[value])?;
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    rates: Vec<f64>,
    /// Milliseconds.
    pauses: Vec<f64>,
    without: Vec<f64>,
}

async fn measured() -> Result<Found> {
    let host = Embedded::start().await?;
    host.client.deploy(PLUGIN).await?;
    let source = flight_batches(BATCH_EVENTS)?;
    for copy in 0..COPIES {
        for batch in &source {
            host.host().log().append(copy_of(batch, 0..batch.len(), copy)).await?;
        }
    }
    host.client.settle().await?;
    let (stop, log) = (Arc::new(AtomicBool::new(false)), host.host().log());
    let publisher = beside(publish(log, source, Arc::clone(&stop)));
    let control = host.host().plugins();
    let mut found = Found::default();
    for _ in 0..ROUNDS {
        let events = host.host().log().bounds().newest.0;
        let begin = Instant::now();
        rebuilt(&host.client, &*control, "oldest").await?;
        found.rates.push(events as f64 / begin.elapsed().as_secs_f64());
        eprintln!("  rebuild of {events} events: {:.0} events/s", found.rates.last().unwrap_or(&0.0));
    }
    for _ in 0..SHORT {
        let begin = Instant::now();
        found.pauses.push(rebuilt(&host.client, &*control, "tail").await?);
        found.without.push(longest(&*control, begin.elapsed()).await?);
    }
    stop.store(true, Ordering::Release);
    publisher.await??;
    host.stop().await;
    Ok(found)
}

/// Some events of a batch, of other flights in each copy.
fn copy_of(batch: &EventBatch, part: std::ops::Range<usize>, copy: usize) -> EventBatch {
    let mut copied = EventBatch::with_capacity(tenant(), part.len(), batch.bytes() + part.len() * 32);
    for index in part {
        let event = batch.get(index);
        let agg_id = format!("{copy}/{}", event.agg_id);
        copied.push(&Event { id: "", agg_id: &agg_id, ..event }).expect("a good event");
    }
    copied
}

/// A steady stream of other events, until it is told to stop.
async fn publish(log: Arc<dyn EventLog>, source: Vec<EventBatch>, stop: Arc<AtomicBool>) -> Result<()> {
    for copy in COPIES.. {
        for batch in &source {
            for from in (0..batch.len()).step_by(BESIDE_EVENTS) {
                if stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                let part = from..batch.len().min(from + BESIDE_EVENTS);
                log.append(copy_of(batch, part, copy)).await?;
                tokio::time::sleep(BESIDE_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// Rebuilds the plugin; answers the longest time, in milliseconds, in which it committed nothing meanwhile.
async fn rebuilt(client: &Client, control: &dyn PluginControl, from: &str) -> Result<f64> {
    let path = format!("/v1/plugins/{PLUGIN}/rebuild");
    let begun = client.send(client.request(Method::POST, &format!("{path}?from={from}"))).await?.ok()?;
    let number = begun["number"].as_u64();
    let (begin, mut last, mut at) = (Instant::now(), 0, Instant::now());
    let (mut longest, mut looked, mut ended) = (Duration::ZERO, Instant::now(), None);
    loop {
        let now = position(control).await?;
        if now != last {
            longest = longest.max(at.elapsed());
            (last, at) = (now, Instant::now());
            // The first commit of the new version is one of those after the flip.
            if ended.is_some_and(|ended| now > ended) {
                return Ok(longest.as_secs_f64() * 1e3);
            }
        }
        if ended.is_none() && looked.elapsed() > Duration::from_millis(20) {
            let view = client.get(&path).await?.ok()?;
            ensure!(view["number"].as_u64() == number, "another rebuild: {view}");
            ensure!(view["stage"] != "abandoned", "it takes over: {view}");
            ensure!(begin.elapsed() < WAIT_MAX, "it takes over in time: {view}");
            ended = (view["stage"] == "flipped").then_some(now);
            looked = Instant::now();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The same for some time without a rebuild.
async fn longest(control: &dyn PluginControl, time: Duration) -> Result<f64> {
    let begin = Instant::now();
    let (mut last, mut at, mut longest) = (position(control).await?, Instant::now(), Duration::ZERO);
    while begin.elapsed() < time {
        let now = position(control).await?;
        if now != last {
            longest = longest.max(at.elapsed());
            (last, at) = (now, Instant::now());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(longest.as_secs_f64() * 1e3)
}

/// Where the plugin's one task stands.
async fn position(control: &dyn PluginControl) -> Result<u64> {
    let status = control.show(PLUGIN).await?;
    Ok(status.tasks.first().map_or(0, |task| task.position))
}

/// Runs something beside the measurement.
#[expect(clippy::disallowed_methods, reason = "a benchmark waits for what it starts")]
fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}
