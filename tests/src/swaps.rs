//! Hot swaps of the sample plugins while events come as fast as they are taken: what is left must be what a
//! run without swaps leaves. The ordinary suite does it some fifty times, `cargo xtask chaos --kills 0
//! --swaps N` as often as it is told.
//!
//! Each plugin gets events that it takes, and that a loss and a repetition can be seen of: a plugin that takes
//! none, or has no rows in the end, fails the run.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde_json::Value;

use crate::dump::dump;
use crate::guests::guest;
use crate::host::{HostProcess, Setup, relabelled};
use crate::{entries, flights};

pub const PLUGINS: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];

/// Takes entries, and no flights.
const TRACER: &str = "turn-tracer";

/// So many events at least wait for every plugin, unless the edge is slower still.
const LEAD_EVENTS: u64 = 4_000;
/// So many at most for the one that is furthest behind, which has to catch up in the end.
const LEAD_EVENTS_MAX: u64 = 16_000;
const UPLOAD_EVENTS: usize = 400;
/// Uploads between two looks at how far the plugins are.
const UPLOADS_UNSEEN: usize = 4;
const LOOK: Duration = Duration::from_millis(2);
/// Of one swap. A candidate may be refused for being slow on a machine that has other work.
const TRIES_MAX: usize = 20;
/// The builds that take turns.
const LABELS: [&str; 2] = ["a", "b"];

/// What a run has come to, and what it and a run without swaps have left.
#[derive(Debug)]
pub struct Swapped {
    pub swaps: usize,
    /// Why candidates were refused; each was deployed again.
    pub refused: Vec<String>,
    pub events: usize,
    pub quiet: String,
    pub swapped: String,
}

/// Which of these plugins are swapped side by side, one run after the other. The samples do not take what others of them
/// emit at any place; of the rest each is alone, for one that takes everything gets what its neighbour emits at another place
/// in every run.
pub fn side_by_side<'a>(plugins: &[&'a str]) -> Vec<Vec<&'a str>> {
    let (samples, others): (Vec<_>, Vec<_>) =
        plugins.iter().copied().partition(|name| PLUGINS.contains(name));
    let alone = others.into_iter().map(|name| vec![name]);
    [samples].into_iter().filter(|samples| !samples.is_empty()).chain(alone).collect()
}

/// Swaps each of these plugins so many times, side by side. `said` hears how many swaps are done.
pub async fn at_full_rate(
    host: &Setup,
    plugins: &[&str],
    rounds: usize,
    dir: &Path,
    said: impl Fn(usize),
) -> Result<Swapped> {
    let uploads = Uploads::of(plugins)?;
    let mut swapped = HostProcess::start_as(host.clone(), &dir.join("swapped")).await?;
    // Both builds are compiled, and kept compiled, before anything is swapped.
    for label in LABELS {
        deploy_all(&swapped, plugins, label).await?;
    }
    let (done, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let stop = AtomicBool::new(false);
    let swaps = async {
        let each = plugins.iter().map(|plugin| {
            let (host, done, refused, said) = (&swapped, &done, &refused, &said);
            async move {
                for round in 0..rounds {
                    swap(host, plugin, LABELS[round % LABELS.len()], refused).await?;
                    said(done.fetch_add(1, Ordering::Relaxed) + 1);
                }
                anyhow::Ok(())
            }
        });
        let all = try_join_all(each).await;
        stop.store(true, Ordering::Relaxed);
        all
    };
    let (count, _) = tokio::try_join!(publish(&swapped, &uploads, &stop), swaps)?;
    swapped.settle().await?;
    ensure!(swapped.terminate()?, "a drain ends with success");

    let mut quiet = HostProcess::start_as(host.clone(), &dir.join("quiet")).await?;
    deploy_all(&quiet, plugins, LABELS[0]).await?;
    for number in 0..count {
        quiet.publish(uploads.get(number)).await?;
        while number.is_multiple_of(UPLOADS_UNSEEN) && lags(&quiet).await?.most > LEAD_EVENTS_MAX {
            tokio::time::sleep(LOOK).await;
        }
    }
    quiet.settle().await?;
    let statuses = statuses(&quiet).await?;
    ensure!(quiet.terminate()?, "a drain ends with success");
    let quiet = dump(&dir.join("quiet"))?;
    statuses.iter().try_for_each(|status| has_taken(status, &quiet))?;
    Ok(Swapped {
        swaps: done.into_inner(),
        refused: refused.into_inner().unwrap_or_default(),
        events: count * UPLOAD_EVENTS,
        quiet,
        swapped: dump(&dir.join("swapped"))?,
    })
}

/// Of a plugin that takes nothing, nothing can be lost or doubled.
pub fn has_taken(status: &Value, dump: &str) -> Result<()> {
    let name = status["name"].as_str().context("a plugin has a name")?;
    let events = status["counters"]["events"].as_u64().context("it counts events")?;
    ensure!(events > 0, "the swaps of {name} show nothing: it took none of the events that were published");
    let tables = status["manifest"]["tables"].as_array().context("it says which tables it has")?;
    let has_rows = |table: &Value| {
        let section = format!("== rows_{}: ", table["name"].as_str().unwrap_or_default());
        dump.lines().any(|line| line.strip_prefix(&section).is_some_and(|count| count != "0"))
    };
    ensure!(
        tables.iter().any(has_rows),
        "the swaps of {name} show nothing: it took {events} events, and none of its {} tables has a row",
        tables.len()
    );
    Ok(())
}

/// What is published, without an end.
enum Uploads {
    /// The month of flights over and over: each time other flights, a year later.
    Flights(Vec<String>),
    Entries,
}

impl Uploads {
    fn of(plugins: &[&str]) -> Result<Self> {
        if !plugins.contains(&TRACER) {
            return Ok(Self::Flights(flights::lines()?));
        }
        ensure!(plugins == [TRACER], "{TRACER} takes no flights: it is swapped alone");
        Ok(Self::Entries)
    }

    fn get(&self, number: usize) -> Bytes {
        let mut text = String::with_capacity(UPLOAD_EVENTS * 300);
        for event in number * UPLOAD_EVENTS..(number + 1) * UPLOAD_EVENTS {
            match self {
                Self::Flights(lines) => text.push_str(&flight(lines, event)),
                Self::Entries => text.push_str(&entries::line(event as u64)),
            }
            text.push('\n');
        }
        text.into()
    }
}

fn flight(lines: &[String], event: usize) -> String {
    let (pass, index) = (event / lines.len(), event % lines.len());
    let line = lines[index].replacen("\"agg_id\":\"", &format!("\"agg_id\":\"{pass}/"), 1);
    // What comes late ends at a tick or at another event, whichever is first.
    line.replacen("\"at\":\"2013-", &format!("\"at\":\"{}-", 2013 + pass), 1)
}

/// Keeps every plugin busy until it is told to stop; answers how many uploads that took.
async fn publish(host: &HostProcess, uploads: &Uploads, stop: &AtomicBool) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..UPLOADS_UNSEEN {
            host.publish(uploads.get(count)).await?;
            count += 1;
        }
        while lags(host).await?.are_long() && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(count)
}

/// Of the plugin that is furthest ahead, and of the one that is furthest behind.
struct Lags {
    least: u64,
    most: u64,
}

impl Lags {
    fn are_long(&self) -> bool {
        self.least > LEAD_EVENTS || self.most > LEAD_EVENTS_MAX
    }
}

async fn lags(host: &HostProcess) -> Result<Lags> {
    let lag = |plugin: &Value| plugin["lag_events"].as_u64().context("it has a lag");
    let lags = statuses(host).await?.iter().map(lag).collect::<Result<Vec<_>>>()?;
    let (least, most) = (lags.iter().min(), lags.iter().max());
    Ok(Lags { least: least.copied().unwrap_or_default(), most: most.copied().unwrap_or_default() })
}

async fn statuses(host: &HostProcess) -> Result<Vec<Value>> {
    let answer = host.get("/v1/plugins").await?;
    Ok(answer["plugins"].as_array().context("a list of plugins")?.clone())
}

async fn swap(host: &HostProcess, plugin: &str, label: &str, refused: &Mutex<Vec<String>>) -> Result<()> {
    let component = component(plugin, label)?;
    let mut tries = 0;
    loop {
        match host.deploy(component.clone()).await {
            Ok(status) => {
                ensure!(status["nothing_changed"] != true, "this build of {plugin} ran already");
                return Ok(());
            }
            Err(error) => {
                tries += 1;
                ensure!(tries < TRIES_MAX, "{plugin} is not swapped: {error:#}");
                refused.lock().expect("nobody panics").push(format!("{plugin}: {error:#}"));
            }
        }
    }
}

async fn deploy_all(host: &HostProcess, plugins: &[&str], label: &str) -> Result<()> {
    for plugin in plugins {
        host.deploy(component(plugin, label)?).await?;
    }
    Ok(())
}

/// The builds of a plugin that take turns.
pub fn builds(plugin: &str) -> Result<Vec<Bytes>> {
    LABELS.iter().map(|label| component(plugin, label)).collect()
}

fn component(plugin: &str, label: &str) -> Result<Bytes> {
    Ok(relabelled(&std::fs::read(guest(plugin)).context("the guest is built")?, label))
}
