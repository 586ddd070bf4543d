//! A host that is killed again and again while versions change and events fail: what is left must be what a
//! quiet run leaves. The ordinary suite runs it short, `cargo xtask chaos` long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::dump::dump;
use crate::flights;
use crate::guests::guest;
use crate::host::{HostProcess, Setup, relabelled};

/// Tries of one upload: a kill costs one, a host that comes back slowly a few.
const TRIES_MAX: usize = 20;
/// A kill comes at a random moment within this long after an upload begins.
const KILL_WITHIN_MICROS: u64 = 12_000;
/// Most events in one upload: small enough that kills hit uploads in flight.
const UPLOAD_EVENTS_MAX: usize = 400;
/// Lines of a difference that are shown.
const DIFFERENCE_LINES: usize = 40;
/// Aggregate instances of the chaotic plugin, and how many of them get no event that cannot be handled.
const KEYS: u64 = 40;
const GOOD_KEYS: u64 = 32;

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub kills: usize,
    /// How often every plugin is swapped.
    pub swaps: usize,
    pub seed: u64,
    pub in_play: InPlay,
    /// The host under test, with the settings of the run.
    pub host: Setup,
}

/// What goes through the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct InPlay {
    /// The sample plugins over the month of flights.
    pub flights: bool,
    /// Events for the guest `chaotic`: snapshot, keyed state, rows and emitted events.
    pub chaotic_events: usize,
    /// Of those, one in so many asks twice for another try; none for 0.
    pub flaky_every: u64,
    /// One in so many is rejected, and becomes a dead letter.
    pub bad_every: u64,
    /// One in so many makes the guest trap.
    pub poison_every: u64,
}

/// What a stormy run has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storm {
    pub kills: usize,
    pub swaps: usize,
    pub uploads: usize,
}

/// How the host is set up for it.
pub fn setup(binary: impl Into<PathBuf>) -> Setup {
    Setup::new(binary)
        .set("processors.retry_wait_ms_min=2")
        .set("processors.retry_wait_ms_max=20")
        // A try counts in the memory of an instance, which kills take: no event is given up for its retries.
        .set("processors.retries_max=1000000")
        .set("processors.breaker_failures_max=1000000")
        .set("processors.shadow_events=50")
        .set("processors.shadow_ms=20")
}

impl Scenario {
    /// What is published, in the order in which it is: NDJSON, the same for every run of a scenario.
    pub fn uploads(&self) -> Result<Vec<Bytes>> {
        let flights = if self.in_play.flights { flights::lines()? } else { Vec::new() };
        let chaotic = chaotic_lines(self.seed, &self.in_play);
        let events = flights.len().max(chaotic.len());
        ensure!(events >= self.kills, "{} kills need as many uploads; there are {events} events", self.kills);
        let count = self.kills.max(self.swaps).max(events.div_ceil(UPLOAD_EVENTS_MAX));
        let uploads = (0..count).map(|index| {
            let part = |lines: &[String]| {
                let range = lines.len() * index / count..lines.len() * (index + 1) / count;
                lines[range].iter().fold(String::new(), |text, line| text + line + "\n")
            };
            Bytes::from(part(&flights) + &part(&chaotic))
        });
        Ok(uploads.filter(|upload| !upload.is_empty()).collect())
    }

    /// The plugins in play, as built.
    fn components(&self) -> Result<Vec<Bytes>> {
        let samples = ["flight-board", "carrier-stats", "delay-watch"];
        let names = samples.into_iter().filter(|_| self.in_play.flights);
        let names = names.chain(["chaotic"].into_iter().filter(|_| self.in_play.chaotic_events > 0));
        names.map(|name| Ok(std::fs::read(guest(name)).context("the guest is built")?.into())).collect()
    }

    /// Runs it without kills and swaps; answers the dump.
    pub async fn quiet(&self, data: &Path) -> Result<String> {
        let mut host = HostProcess::start_as(self.host.clone(), data).await?;
        deploy_all(&host, &self.components()?, "0").await?;
        for upload in self.uploads()? {
            host.publish(upload).await?;
        }
        host.settle().await?;
        ensure!(host.terminate()?, "a drain ends with success");
        dump(data)
    }

    /// Runs it with kills while uploads are in flight, and swaps in between. `said` hears of each upload.
    pub async fn stormy(&self, data: &Path, mut said: impl FnMut(Storm)) -> Result<(String, Storm)> {
        let mut host = HostProcess::start_as(self.host.clone(), data).await?;
        let (components, uploads) = (self.components()?, self.uploads()?);
        deploy_all(&host, &components, "0").await?;
        let mut random = Random(self.seed);
        let mut storm = Storm::default();
        for (index, upload) in uploads.iter().enumerate() {
            let label = is_due(self.swaps, index, uploads.len()).then(|| (index + 1).to_string());
            if is_due(self.kills, index, uploads.len()) {
                let wait = Duration::from_micros(random.below(KILL_WITHIN_MICROS));
                let killer = kill_after(host.pid(), wait);
                // Its outcome is nobody's business: it is repeated below.
                let _ = send(&host, upload, &components, label.as_deref()).await;
                killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
                host.kill_and_start().await?;
                storm.kills += 1;
            }
            let mut tries = 0;
            while let Err(error) = send(&host, upload, &components, label.as_deref()).await {
                tries += 1;
                ensure!(tries < TRIES_MAX, "upload {index} is not acknowledged: {error:#}");
            }
            storm.swaps += usize::from(label.is_some());
            storm.uploads += 1;
            said(storm);
        }
        host.settle().await?;
        ensure!(host.terminate()?, "a drain ends with success");
        Ok((dump(data)?, storm))
    }
}

/// Whether the step `index` of `steps` is one of `times` that are spread evenly over them.
fn is_due(times: usize, index: usize, steps: usize) -> bool {
    (index + 1) * times / steps > index * times / steps
}

async fn send(host: &HostProcess, upload: &Bytes, components: &[Bytes], label: Option<&str>) -> Result<()> {
    host.publish(upload.clone()).await?;
    match label {
        Some(label) => deploy_all(host, components, label).await,
        None => Ok(()),
    }
}

/// Deploys builds that differ in their digest alone.
async fn deploy_all(host: &HostProcess, components: &[Bytes], label: &str) -> Result<()> {
    for component in components {
        host.deploy(relabelled(component, label)).await?;
    }
    Ok(())
}

fn kill_after(pid: u32, wait: Duration) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        Ok(())
    })
}

/// Events of the aggregate `work`. What cannot be handled has keys of its own, so that the others go on
/// whatever becomes of those.
fn chaotic_lines(seed: u64, in_play: &InPlay) -> Vec<String> {
    let mut random = Random(seed ^ 0xc4a0);
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let one_in = |random: &mut Random, every: u64| every > 0 && random.below(every) == 0;
    let event = |_| {
        let (kind, key) = if one_in(&mut random, in_play.bad_every) {
            ("bad", random.between(GOOD_KEYS, KEYS))
        } else if one_in(&mut random, in_play.poison_every) {
            ("poison", random.between(GOOD_KEYS, KEYS))
        } else if one_in(&mut random, in_play.flaky_every) {
            ("flaky", random.below(KEYS))
        } else {
            ("step", random.below(KEYS))
        };
        let agg_id = format!("key-{key}");
        let version = versions.entry(agg_id.clone()).or_default();
        *version += 1;
        let value = random.below(1_000);
        format!(
            "{{\"aggregate\":\"work\",\"agg_id\":\"{agg_id}\",\"version\":{version},\"type\":\"{kind}\",\
             \"at\":\"2013-01-01T00:00:00Z\",\"payload\":{{\"value\":{value}}}}}"
        )
    };
    (0..in_play.chaotic_events).map(event).collect()
}

/// The lines in which two dumps differ, `-` for the quiet run's and `+` for the stormy one's; none where they
/// are the same.
pub fn difference(quiet: &str, stormy: &str) -> Option<String> {
    if quiet == stormy {
        return None;
    }
    let mut counts: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (dump, sign) in [(quiet, 1), (stormy, -1)] {
        let mut section = "";
        for line in dump.lines() {
            if line.starts_with("== ") {
                section = line.split(':').next().unwrap_or(line);
            }
            *counts.entry((section, line)).or_default() += sign;
        }
    }
    counts.retain(|_, count| *count != 0);
    let mut text = String::new();
    for ((section, line), count) in counts.iter().take(DIFFERENCE_LINES) {
        let sign = if *count > 0 { '-' } else { '+' };
        text.push_str(&format!("{sign} {section}: {}\n", line.chars().take(400).collect::<String>()));
    }
    let more = counts.len().saturating_sub(DIFFERENCE_LINES);
    Some(if more > 0 { format!("{text}and {more} more lines\n") } else { text })
}

/// Numbers that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }
}
