//! Rebuilds of the samples in JavaScript and Python, in the midst of bursts and turns that are open: what they come to is
//! what a plugin comes to that was deployed over the same events.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use millrace::event::Micros;
use millrace_tests::chaos::difference;
use millrace_tests::dump::dump;
use millrace_tests::embedded::Embedded;
use millrace_tests::entries;
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::left_of_rebuilds;

/// Events of a run, before the rebuild is asked for and until it has taken over.
const EVENTS: u64 = 450;
const BEFORE: u64 = 258;
const UNTIL: u64 = 274;
/// On a busy machine an engine's first call takes its time.
const CALL_MS_MAX: u64 = 20_000;
/// The beginning of 2013. Events are a second apart.
const BEGIN: i64 = 1_356_998_400_000_000;

const PATIENCE: Duration = Duration::from_secs(60);

/// Keys that have bursts.
const KEYS: u64 = 40;
/// Of them, so many at a time, for so many events.
const BESIDE: u64 = 10;
const BURST_EVENTS: u64 = 50;

struct Sample {
    plugin: &'static str,
    table: &'static str,
    emits: &'static str,
    line: fn(u64) -> String,
    /// What it holds open, by what it has told of so many events.
    open: fn(&[Json], u64) -> Result<u64>,
}

/// Each key is quiet long enough before it comes again.
fn burst(number: u64) -> String {
    let key = (number / BURST_EVENTS * BESIDE + number % BESIDE) % KEYS;
    let at = Micros(BEGIN + i64::try_from(number).expect("small") * 1_000_000).to_string();
    let event = json!({
        "aggregate": "order", "agg_id": format!("o{key}"), "version": number + 1, "type": "order.changed", "at": at,
        "payload": {},
    });
    event.to_string()
}

fn events_of_bursts(told: &[Json], events: u64) -> Result<u64> {
    let closed = told.iter().map(|batch| batch["payload"]["events"].as_u64().context("a batch has a count"));
    Ok(events - closed.sum::<Result<u64>>()?)
}

/// Ten conversations at a time, for sixty entries: each begins with the user's words, and is answered in the fifth round.
fn turns(told: &[Json], events: u64) -> Result<u64> {
    let (rounds, beside) = (events % 60 / 10, 10);
    ensure!((1..4).contains(&rounds), "the turns of the last conversations are open");
    let begun = (events / 60 + 1) * beside;
    Ok(begun - told.len() as u64)
}

const DEBOUNCE: Sample = Sample {
    plugin: "debounce",
    table: "batches",
    emits: "debounce.batch",
    line: burst,
    open: events_of_bursts,
};

const TRACER: Sample =
    Sample { plugin: "turn-tracer", table: "turns", emits: "turn.closed", line: entries::line, open: turns };

impl Sample {
    async fn host(&self) -> Result<Embedded> {
        Box::pin(Embedded::start_lent(&[self.plugin], |config| {
            config.plugins.entry(self.plugin.to_owned()).or_default().call_ms_max = Some(CALL_MS_MAX);
        }))
        .await
    }

    async fn publish(&self, host: &Embedded, numbers: std::ops::Range<u64>) -> Result<()> {
        let lines = numbers.map(|number| (self.line)(number) + "\n");
        host.client.publish(lines.collect::<String>()).await.map(drop)
    }

    /// What the store holds once all is done.
    async fn left(&self, host: Embedded) -> Result<String> {
        host.client.settle().await?;
        let data = host.data();
        let _kept = host.stop().await;
        dump(&data)
    }

    async fn rebuilt(&self) -> Result<String> {
        let host = self.host().await?;
        let client = &host.client;
        client.deploy(self.plugin).await?;
        self.publish(&host, 0..BEFORE).await?;
        client.settle().await?;
        let path = format!("/v1/plugins/{}/rebuild", self.plugin);
        client.send(client.request(Method::POST, &path)).await?.ok()?;
        self.publish(&host, BEFORE..UNTIL).await?;
        let view = client.wait_for(&path, |answer| answer.json()["stage"] == "flipped").await?.json();
        client.settle().await?;
        let told = client.events(self.emits).await?;
        let open = (self.open)(&told, UNTIL)?;
        ensure!(open >= 10 && !told.is_empty(), "{open} are open, and {} were told", told.len());
        ensure!(view["report"]["barrier"].as_u64() >= Some(BEFORE), "it took over behind them: {view}");
        ensure!(view["dropped"]["emitted"].as_u64() > Some(0), "there was something to leave out: {view}");
        self.publish(&host, UNTIL..EVENTS).await?;
        let (begun, file) = (Instant::now(), host.data().join("millrace.db"));
        while !left_of_rebuilds(&file).is_empty() {
            ensure!(begun.elapsed() < PATIENCE, "left: {:?}", left_of_rebuilds(&file));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.left(host).await
    }

    async fn deployed(&self) -> Result<String> {
        let host = self.host().await?;
        self.publish(&host, 0..EVENTS).await?;
        host.client.deploy(self.plugin).await?;
        self.left(host).await
    }

    async fn is_rebuilt_in_the_midst(&self) -> Result<()> {
        let (rebuilt, deployed) = (self.rebuilt().await?, self.deployed().await?);
        let rows = format!("== rows_{}: ", self.table);
        let line = deployed.lines().find(|line| line.starts_with(&rows)).context("it has its table")?;
        ensure!(line != format!("{rows}0"), "there are rows");
        ensure!(deployed.contains(&format!("\"{}\"", self.emits)), "it emits");
        match difference(&deployed, &rebuilt) {
            Some(difference) => bail!("the dumps differ:\n{difference}"),
            None => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_js_plugin_is_rebuilt_in_the_midst_of_bursts() -> Result<()> {
    Box::pin(DEBOUNCE.is_rebuilt_in_the_midst()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_plugin_is_rebuilt_in_the_midst_of_turns() -> Result<()> {
    Box::pin(TRACER.is_rebuilt_in_the_midst()).await
}
