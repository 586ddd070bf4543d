//! Hot swaps of the sample plugins while events come as fast as they are taken: what is left must be what a
//! run without swaps leaves. The ordinary suite does it some fifty times, `cargo xtask chaos --kills 0
//! --swaps N` as often as it is told.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::dump::dump;
use crate::flights;
use crate::guests::guest;
use crate::host::{HostProcess, Setup, relabelled};

pub const PLUGINS: [&str; 3] = ["flight-board", "carrier-stats", "delay-watch"];

/// So many events at least wait for the slowest plugin, unless the edge is slower still.
const LEAD_EVENTS: u64 = 4_000;
const UPLOAD_EVENTS: usize = 400;
/// Uploads between two looks at how far the plugins are.
const UPLOADS_UNSEEN: usize = 4;
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

/// Swaps each of these plugins so many times, side by side. `said` hears how many swaps are done.
pub async fn at_full_rate(
    host: &Setup,
    plugins: &[&str],
    rounds: usize,
    dir: &Path,
    said: impl Fn(usize),
) -> Result<Swapped> {
    let uploads = Uploads::read()?;
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
    }
    quiet.settle().await?;
    ensure!(quiet.terminate()?, "a drain ends with success");
    Ok(Swapped {
        swaps: done.into_inner(),
        refused: refused.into_inner().unwrap_or_default(),
        events: count * UPLOAD_EVENTS,
        quiet: dump(&dir.join("quiet"))?,
        swapped: dump(&dir.join("swapped"))?,
    })
}

/// The month of flights over and over: each time other flights.
struct Uploads {
    lines: Vec<String>,
}

impl Uploads {
    fn read() -> Result<Self> {
        Ok(Self { lines: flights::lines()? })
    }

    fn get(&self, number: usize) -> Bytes {
        let mut text = String::with_capacity(UPLOAD_EVENTS * 300);
        for event in number * UPLOAD_EVENTS..(number + 1) * UPLOAD_EVENTS {
            let (pass, index) = (event / self.lines.len(), event % self.lines.len());
            let agg_id = format!("\"agg_id\":\"{pass}/");
            text.push_str(&self.lines[index].replacen("\"agg_id\":\"", &agg_id, 1));
            text.push('\n');
        }
        text.into()
    }
}

/// Keeps every plugin busy until it is told to stop; answers how many uploads that took.
async fn publish(host: &HostProcess, uploads: &Uploads, stop: &AtomicBool) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..UPLOADS_UNSEEN {
            host.publish(uploads.get(count)).await?;
            count += 1;
        }
        while least_lag(host).await? > LEAD_EVENTS && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(count)
}

/// Of the plugin that is furthest ahead.
async fn least_lag(host: &HostProcess) -> Result<u64> {
    let answer = host.get("/v1/plugins").await?;
    let plugins = answer["plugins"].as_array().context("a list of plugins")?;
    let lags = plugins.iter().map(|plugin| plugin["lag_events"].as_u64().context("it has a lag"));
    Ok(lags.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default())
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
