//! A host that is killed again and again while versions change and events fail: what is left must be what a
//! quiet run leaves. The ordinary suite runs it short, `cargo xtask chaos` long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use serde_json::Value;

use crate::dump::dump;
use crate::flights;
use crate::guests::guest;
use crate::host::{HostProcess, Setup, relabelled};
use crate::shared_log::bring_home;

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
/// From this one on, a good key gets the shy events, which hold it until they are replayed: of few keys, so
/// that what waits for a decision until the end of a long run can all be parked.
const SHY_KEYS: u64 = 28;
/// From this one on, what cannot be handled is discarded, and does not hold its key for ever.
const RELEASED_KEYS: u64 = 36;
/// Dead letters that are decided at a time while a run goes on.
const RESOLVED_AT_ONCE: usize = 4;

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub kills: usize,
    /// How often every plugin is swapped.
    pub swaps: usize,
    /// How often dead letters are replayed and discarded on the way. None are, also at the end, for 0.
    pub resolves: usize,
    pub seed: u64,
    pub in_play: InPlay,
    /// The host under test, with the settings of the run.
    pub host: Setup,
}

/// What goes through the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct InPlay {
    /// The sample plugins, over so many events of the month of flights at most.
    pub flights: usize,
    /// Events for the guest `chaotic`: snapshot, keyed state, rows and emitted events.
    pub chaotic_events: usize,
    /// Of those, one in so many asks twice for another try; none for 0.
    pub flaky_every: u64,
    /// One in so many is rejected, and becomes a dead letter.
    pub bad_every: u64,
    /// One in so many makes the guest trap.
    pub poison_every: u64,
    /// One in so many is rejected at first and handled when its dead letter is replayed.
    pub shy_every: u64,
}

/// What a stormy run has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storm {
    pub kills: usize,
    pub swaps: usize,
    pub resolves: usize,
    pub uploads: usize,
}

/// What a host has said that it has done, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// Every event of this upload.
    Upload(usize),
    Deploy {
        plugin: String,
        digest: String,
    },
    /// A dead letter is no more.
    Resolve {
        letter: u64,
    },
}

/// What is heard of a run while it goes on.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The host is asked for something; what it answers is heard next.
    Asked,
    Acknowledged(Acknowledged),
    /// An upload is done, and what was due after it.
    Round(Storm),
}

/// Who hears it.
pub type Hear<'a> = &'a mut (dyn FnMut(Heard) -> Result<()> + Send);

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
        let mut flights = if self.in_play.flights > 0 { flights::lines()? } else { Vec::new() };
        flights.truncate(self.in_play.flights);
        let chaotic = chaotic_lines(self.seed, &self.in_play);
        let events = flights.len().max(chaotic.len());
        ensure!(events >= self.kills, "{} kills need as many uploads; there are {events} events", self.kills);
        let count = self.kills.max(self.swaps).max(self.resolves).max(events.div_ceil(UPLOAD_EVENTS_MAX));
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
        let names = samples.into_iter().filter(|_| self.in_play.flights > 0);
        let names = names.chain(["chaotic"].into_iter().filter(|_| self.in_play.chaotic_events > 0));
        names.map(|name| Ok(std::fs::read(guest(name)).context("the guest is built")?.into())).collect()
    }

    /// Every build that is deployed, for a store that has their code already: see [`lend_code`](crate::guests::lend_code).
    pub fn builds(&self) -> Result<Vec<Bytes>> {
        let (components, uploads) = (self.components()?, self.uploads()?.len());
        let due = (0..uploads).filter(|index| is_due(self.swaps, *index, uploads)).map(label);
        let labels = std::iter::once("0".to_owned()).chain(due);
        Ok(labels
            .flat_map(|label| {
                components.iter().map(move |component| relabelled(component, &label)).collect::<Vec<_>>()
            })
            .collect())
    }

    /// Runs it without kills and swaps; answers the dump.
    pub async fn quiet(&self, data: &Path) -> Result<String> {
        let mut host = HostProcess::start_as(self.host.clone(), data).await?;
        deploy_all(&host, &self.components()?, "0", &mut |_| Ok(())).await?;
        for upload in self.uploads()? {
            host.publish(upload).await?;
        }
        self.play_out(&mut host, &mut |_| Ok(())).await?;
        self.dump(data).await
    }

    /// What a host has left.
    async fn dump(&self, data: &Path) -> Result<String> {
        if let Some(address) = &self.host.log {
            bring_home(address, data).await?;
        }
        dump(data)
    }

    /// Runs it with kills while uploads are in flight, and swaps and decisions on dead letters in between.
    pub async fn stormy(&self, data: &Path, hear: Hear<'_>) -> Result<(String, Storm)> {
        let storm = self.storm(data, hear).await?;
        Ok((self.dump(data).await?, storm))
    }

    /// The same without a look at what it leaves.
    pub async fn storm(&self, data: &Path, hear: Hear<'_>) -> Result<Storm> {
        let mut host = HostProcess::start_as(self.host.clone(), data).await?;
        let (components, uploads) = (self.components()?, self.uploads()?);
        deploy_all(&host, &components, "0", hear).await?;
        let mut random = Random(self.seed);
        let mut storm = Storm::default();
        for (index, upload) in uploads.iter().enumerate() {
            let due = |times| is_due(times, index, uploads.len());
            let label = due(self.swaps).then(|| label(index));
            let round = Round { index, upload, components: &components, label, resolves: due(self.resolves) };
            if due(self.kills) {
                let wait = Duration::from_micros(random.below(KILL_WITHIN_MICROS));
                let killer = kill_after(host.pid(), wait);
                // Its outcome is nobody's business: it is repeated below.
                let _ = round.play(&host, hear).await;
                killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
                host.kill_and_start().await?;
                storm.kills += 1;
            }
            let mut tries = 0;
            while let Err(error) = round.play(&host, hear).await {
                tries += 1;
                ensure!(tries < TRIES_MAX, "upload {index} is not acknowledged: {error:#}");
            }
            storm.swaps += usize::from(round.label.is_some());
            storm.resolves += usize::from(round.resolves);
            storm.uploads += 1;
            hear(Heard::Round(storm))?;
        }
        self.play_out(&mut host, hear).await?;
        Ok(storm)
    }

    /// Goes on with a store that has been through a part of a run: what was acknowledged of that must be in
    /// it. Answers the dump at the end.
    pub async fn resume(&self, data: &Path, held: &Held<'_>) -> Result<String> {
        let mut host = HostProcess::start_as(self.host.clone(), data).await?;
        let said = host.said();
        let complaint = said.lines().find(|line| line.contains(" ERROR ") || line.contains("precompiled_"));
        ensure!(complaint.is_none(), "the host complains: {said}");
        held.check(&host).await?;
        let uploads = self.uploads()?;
        let last = self.last_label(uploads.len());
        for (index, upload) in uploads.into_iter().enumerate() {
            let published = host.publish_all(upload).await?;
            let lost = published.iter().filter(|event| event["repeated"] != true).count();
            let acknowledged = held.before.contains(&&Acknowledged::Upload(index));
            ensure!(lost == 0 || !acknowledged, "lost: {lost} events of the acknowledged upload {index}");
        }
        deploy_all(&host, &self.components()?, &last, &mut |_| Ok(())).await?;
        self.play_out(&mut host, &mut |_| Ok(())).await?;
        dump(data)
    }

    /// Of the builds that run at the end.
    fn last_label(&self, uploads: usize) -> String {
        let last = (0..uploads).rfind(|index| is_due(self.swaps, *index, uploads));
        last.map_or("0".into(), label)
    }

    /// Waits until nothing moves any more, decides the dead letters that are to be decided, and ends the host.
    async fn play_out(&self, host: &mut HostProcess, hear: Hear<'_>) -> Result<()> {
        host.settle().await?;
        while self.resolves > 0 && resolve(host, usize::MAX, hear).await? > 0 {
            host.settle().await?;
        }
        ensure!(host.terminate()?, "a drain ends with success");
        Ok(())
    }
}

/// What a store must hold after a cut.
#[derive(Clone, Debug)]
pub struct Held<'a> {
    /// What was acknowledged before it.
    pub before: Vec<&'a Acknowledged>,
    /// What was acknowledged later in the same run: it may be there already.
    pub after: Vec<&'a Acknowledged>,
}

impl Held<'_> {
    /// Asks a host that has just started.
    async fn check(&self, host: &HostProcess) -> Result<()> {
        let answer = host.get("/v1/plugins").await?;
        let plugins = answer["plugins"].as_array().context("a list of plugins")?;
        // The last one counts.
        let deployed: BTreeMap<&str, &str> = self.before.iter().copied().filter_map(deploy).collect();
        for (plugin, least) in deployed {
            let status = plugins.iter().find(|status| status["name"] == plugin);
            let status = status.with_context(|| format!("lost: the plugin {plugin} is not deployed"))?;
            ensure!(status["state"] != "failed", "{plugin} does not run: {status}");
            let active = status["deployment"]["digest"].as_str().context("a digest")?;
            let newer = self.after.iter().copied().filter_map(deploy).any(|step| step == (plugin, active));
            ensure!(
                newer || active == least,
                "lost: {plugin} runs as {active}, although {least} had taken over"
            );
        }
        let letters = letters(host, plugins).await?;
        for step in &self.before {
            if let Acknowledged::Resolve { letter } = step {
                let there = letters.iter().any(|found| found["letter"] == *letter);
                ensure!(!there, "lost: dead letter {letter} is there again");
            }
        }
        Ok(())
    }
}

/// The plugin and the digest of a deploy.
fn deploy(step: &Acknowledged) -> Option<(&str, &str)> {
    match step {
        Acknowledged::Deploy { plugin, digest } => Some((plugin, digest)),
        _ => None,
    }
}

/// Whether the step `index` of `steps` is one of `times` that are spread evenly over them.
fn is_due(times: usize, index: usize, steps: usize) -> bool {
    (index + 1) * times / steps > index * times / steps
}

/// Of the builds that are deployed after an upload.
fn label(index: usize) -> String {
    (index + 1).to_string()
}

/// One upload, and what is due after it.
struct Round<'a> {
    index: usize,
    upload: &'a Bytes,
    components: &'a [Bytes],
    /// Of the builds that are deployed.
    label: Option<String>,
    resolves: bool,
}

impl Round<'_> {
    async fn play(&self, host: &HostProcess, hear: Hear<'_>) -> Result<()> {
        hear(Heard::Asked)?;
        host.publish(self.upload.clone()).await?;
        hear(Heard::Acknowledged(Acknowledged::Upload(self.index)))?;
        if let Some(label) = &self.label {
            deploy_all(host, self.components, label, hear).await?;
        }
        if self.resolves {
            resolve(host, RESOLVED_AT_ONCE, hear).await?;
        }
        Ok(())
    }
}

/// Deploys builds that differ in their digest alone.
async fn deploy_all(host: &HostProcess, components: &[Bytes], label: &str, hear: Hear<'_>) -> Result<()> {
    for component in components {
        hear(Heard::Asked)?;
        let deployed = host.deploy(relabelled(component, label)).await?;
        let text = |said: &Value| said.as_str().map(str::to_owned).context("an answer says it");
        let (plugin, digest) = (text(&deployed["name"])?, text(&deployed["deployment"]["digest"])?);
        hear(Heard::Acknowledged(Acknowledged::Deploy { plugin, digest }))?;
    }
    Ok(())
}

/// Decides the dead letters that are to be decided, as many as this at most; answers how many.
async fn resolve(host: &HostProcess, max: usize, hear: Hear<'_>) -> Result<usize> {
    let answer = host.get("/v1/plugins").await?;
    let letters = letters(host, answer["plugins"].as_array().context("a list of plugins")?).await?;
    let decided = letters.iter().filter_map(|letter| Some((letter, verdict(letter)?)));
    let mut count = 0;
    for (letter, verdict) in decided.take(max) {
        let number = letter["letter"].as_u64().context("a letter has a number")?;
        let plugin = letter["plugin"].as_str().context("it is a plugin's")?;
        hear(Heard::Asked)?;
        let answer = host.post(&format!("/v1/plugins/{plugin}/dead-letters/{number}/{verdict}")).await?;
        if answer["outcome"] != "failed_again" {
            hear(Heard::Acknowledged(Acknowledged::Resolve { letter: number }))?;
        }
        count += 1;
    }
    Ok(count)
}

/// The dead letters of all plugins, each with the name of its plugin.
async fn letters(host: &HostProcess, plugins: &[Value]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for plugin in plugins {
        let name = plugin["name"].as_str().context("a name")?;
        let mut answer = host.get(&format!("/v1/plugins/{name}/dead-letters?limit=4096")).await?;
        let letters = answer["dead_letters"].as_array_mut().context("a list of letters")?;
        letters.iter_mut().for_each(|letter| letter["plugin"] = name.into());
        all.append(letters);
    }
    Ok(all)
}

/// What is decided about a dead letter; none, and it holds its key.
fn verdict(letter: &Value) -> Option<&'static str> {
    let event = &letter["event"];
    let key = event["agg_id"].as_str()?.strip_prefix("key-")?.parse::<u64>().ok()?;
    match event["type"].as_str()? {
        "shy" => Some("replay"),
        _ if key >= RELEASED_KEYS => Some("discard"),
        _ => None,
    }
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
        } else if one_in(&mut random, in_play.shy_every) {
            ("shy", random.between(SHY_KEYS, GOOD_KEYS))
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
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }
}
