//! From a deploy to the first event that the new version has handled, on the origin of a fleet and on another host.
//!
//! Both are processes with stores of their own, so that each runs the plugin. Events flow into both all the time; the
//! plugin answers each with an event that says which version made it. Both versions have been deployed before, so their
//! code is in the hosts' caches, and none is tried in the shadow. What is waited for is a client's sight: the answer comes
//! out of a stream that it follows, so it is committed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace::cli::SseParser;
use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::{Actor, Deploy, Present};
use millrace::control::{ControlEvent, EventBody, EventId, PluginSpec};
use millrace_tests::bench::{Better, Figure, Suite, median, percentile};
use millrace_tests::control_events::{digest_of, pem, release_key, spec, trust};
use millrace_tests::guests::{variant, version_of};
use millrace_tests::host::{HostProcess, Setup};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::WAIT_MAX;
use super::places::Place;
use crate::replay::binary;
use crate::runtime;

const PLUGIN: &str = "variant";
const DEPLOYS: usize = 40;
const FLOOR_MS: f64 = 250.0;
/// How often an event is published, on each host.
const BEAT: Duration = Duration::from_millis(5);
const MADE_WAITING_MAX: usize = 4_096;
pub(super) const PLACES: [&str; 3] = ["file", "redis", "nats"];
const HOSTS: [&str; 2] = ["the origin", "another host"];

/// Milliseconds of each deploy, by host.
#[derive(Debug, Default)]
struct Waits {
    since_sent: [Vec<f64>; 2],
    since_acknowledged: [Vec<f64>; 2],
}

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    for name in PLACES {
        let place = Place::open(name);
        let waits = runtime()?.block_on(Box::pin(deploys(&place)))?;
        for (since, floor, of_hosts) in [
            ("sending it", Some(FLOOR_MS), &waits.since_sent),
            ("its acknowledgement", None, &waits.since_acknowledged),
        ] {
            for (host, millis) in HOSTS.into_iter().zip(of_hosts) {
                for (what, value) in [("median", median(millis)), ("p99", percentile(millis, 99))] {
                    let name = format!(
                        "deploy over {name} to the first event of the new version on {host}, from {since}, \
                         {DEPLOYS} deploys, {what}"
                    );
                    let figure = Figure { name: &name, unit: "ms", floor, better: Better::Lower };
                    suite.record(figure, &[value.context("there are deploys")?])?;
                }
            }
        }
    }
    Ok(())
}

/// A version of the plugin, and how its answers differ.
struct Version {
    component: Vec<u8>,
    is_other: bool,
}

async fn deploys(place: &Place) -> Result<Waits> {
    let dir = tempfile::tempdir()?;
    let origin = start_origin(place, &dir).await?;
    let other = start(place, &dir, "other").await?;

    let versions = [("good", false), ("other", true)].into_iter().zip(1..);
    let versions = versions.map(|((nature, is_other), number)| {
        let component = variant(number, nature);
        Version { component, is_other }
    });
    let versions: Vec<Version> = versions.collect();
    let mut teller = Teller::of(&origin);
    for version in &versions {
        teller.push(&version.component).await?;
    }
    let mut members = [Member::new(origin), Member::new(other)];
    // Each is compiled once.
    for version in [&versions[0], &versions[1], &versions[0]] {
        let event = teller.next(&version.component)?;
        let revision = event.unsigned().revision;
        teller.tell(event).await?;
        for member in &members {
            member.is_active(revision).await?;
        }
    }
    for member in &mut members {
        member.begin();
        member.first_of(versions[0].is_other).await?;
    }

    let mut waits = Waits::default();
    for number in 1..=DEPLOYS {
        let version = &versions[number % versions.len()];
        let event = teller.next(&version.component)?;
        let revision = event.unsigned().revision;
        let (sent, acknowledged) = teller.tell(event).await?;
        for (host, member) in members.iter_mut().enumerate() {
            let seen = member.first_of(version.is_other).await?;
            let millis = |from| seen.saturating_duration_since(from).as_secs_f64() * 1e3;
            waits.since_sent[host].push(millis(sent));
            waits.since_acknowledged[host].push(millis(acknowledged));
        }
        for member in &members {
            member.is_active(revision).await?;
        }
        if number % 10 == 0 {
            let so_far = waits.since_sent.each_ref().map(|millis| median(millis).unwrap_or_default());
            eprintln!("  {number} deploys over {}, median so far {so_far:.0?} ms", place.name);
        }
        // Not in step with those who look at the feed now and then.
        tokio::time::sleep(Duration::from_millis(100 + number as u64 * 37 % 50)).await;
    }
    for member in members {
        member.end()?;
    }
    Ok(waits)
}

/// A host that tells the fleet, with keys that everybody knows.
pub(super) async fn start_origin(place: &Place, dir: &TempDir) -> Result<HostProcess> {
    let key = dir.path().join("release.pem");
    std::fs::write(dir.path().join("trust.json"), trust().to_json())?;
    std::fs::write(&key, pem(2))?;
    let mut origin = setup(place, dir, "origin");
    origin.args.extend(["--feed-sink".into(), place.name.into()]);
    let origin = origin.set(&format!("control.signing_key={}", key.display()));
    HostProcess::start_as(origin, &dir.path().join("origin")).await
}

/// A host that only listens.
pub(super) async fn start(place: &Place, dir: &TempDir, host: &str) -> Result<HostProcess> {
    HostProcess::start_as(setup(place, dir, host), &dir.path().join(host)).await
}

fn setup(place: &Place, dir: &TempDir, host: &str) -> Setup {
    let shown = |name: &str| dir.path().join(name).display().to_string();
    let mut setup = Setup::new(binary());
    setup.args.extend(["--feed-source".into(), place.name.into()]);
    let url = place.url().map(|url| format!("control.url={url}"));
    let settings = [
        format!("control.dir={}", shown("feed")),
        format!("control.artifacts_dir={}", shown("artifacts")),
        format!("control.trust_file={}", shown("trust.json")),
        format!("control.host={host}"),
    ];
    settings.iter().chain(&url).fold(setup, |setup, setting| setup.set(setting))
}

/// Tells the fleet through its origin.
pub(super) struct Teller {
    http: reqwest::Client,
    url: String,
    /// What the next change is made of.
    told: Option<ControlEvent>,
}

impl Teller {
    pub(super) fn of(origin: &HostProcess) -> Self {
        Self { http: reqwest::Client::new(), url: origin.url.clone(), told: None }
    }

    pub(super) async fn push(&self, component: &[u8]) -> Result<()> {
        let url = format!("{}/v1/artifacts/{}", self.url, digest_of(component));
        let answer = self.http.put(url).body(component.to_vec()).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "an artifact was answered with {status}: {}", answer.text().await?);
        Ok(())
    }

    /// The next deploy, without a shadow run, signed.
    pub(super) fn next(&self, component: &[u8]) -> Result<ControlEvent> {
        let (base, desired) = match self.told.as_ref().map(ControlEvent::unsigned) {
            Some(told) => match &told.body {
                EventBody::Plugin { desired, .. } => (told.revision, Some(desired)),
                _ => bail!("it was about the plugin"),
            },
            None => (0, None),
        };
        let id = EventId::new(ulid::Ulid::new());
        let spec = PluginSpec { shadow_events: Some(0), ..spec(PLUGIN, &version_of(component), component) };
        let change =
            Present { plugin: PLUGIN, desired }.deploy(&id, Deploy { spec, plan: None, targets: None })?;
        let by = Actor { name: "bench".into(), reason: "to see how long it takes".into() };
        Ok(change.event(PLUGIN, base, id, &by, SystemClock.now().0).sign(&release_key())?)
    }

    /// Answers when it was sent, and when it was acknowledged.
    pub(super) async fn tell(&mut self, event: ControlEvent) -> Result<(Instant, Instant)> {
        let request = self.http.post(format!("{}/v1/fleet/events", self.url)).body(event.to_json());
        let sent = Instant::now();
        let answer = request.send().await?;
        let status = answer.status();
        let said = answer.text().await?;
        let acknowledged = Instant::now();
        ensure!(status.as_u16() == 202, "a deploy was answered with {status}: {said}");
        self.told = Some(event);
        Ok((sent, acknowledged))
    }
}

/// An event that the plugin has made.
#[derive(Clone, Copy, Debug)]
struct Made {
    seen: Instant,
    /// The number of the event that it was made for.
    from: u64,
    is_other: bool,
}

/// A host of the fleet, with who publishes to it and who reads what comes of it.
struct Member {
    host: HostProcess,
    made: Option<mpsc::Receiver<Made>>,
    last: u64,
    work: JoinSet<Result<()>>,
}

impl Member {
    fn new(host: HostProcess) -> Self {
        Self { host, made: None, last: 0, work: JoinSet::new() }
    }

    fn begin(&mut self) {
        let (sender, receiver) = mpsc::channel(MADE_WAITING_MAX);
        self.made = Some(receiver);
        self.work.spawn(read(self.host.url.clone(), sender));
        self.work.spawn(publish(self.host.url.clone()));
    }

    /// Waits for the next event that this version has made, and answers when it was seen. None is lost or comes twice.
    async fn first_of(&mut self, is_other: bool) -> Result<Instant> {
        let made = self.made.as_mut().context("somebody reads")?;
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(WAIT_MAX, made.recv()) => next.ok().flatten(),
                Some(ended) = self.work.join_next() => {
                    ended??;
                    None
                }
            };
            let next =
                next.with_context(|| format!("the new version handles nothing: {}", self.host.said()))?;
            ensure!(next.from == self.last + 1, "event {} came after event {}", next.from, self.last);
            self.last = next.from;
            if next.is_other == is_other {
                return Ok(next.seen);
            }
        }
    }

    /// Waits until the host says that it runs this revision.
    async fn is_active(&self, revision: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            let own = self.host.get("/v1/fleet/self").await?;
            let plugin = &own["plugins"][0];
            if plugin["revision"] == revision && plugin["phase"] == "active" {
                return Ok(());
            }
            ensure!(begin.elapsed() < WAIT_MAX, "revision {revision} does not run: {own:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn end(mut self) -> Result<()> {
        self.work.abort_all();
        ensure!(self.host.terminate()?, "the host ends well: {}", self.host.said());
        Ok(())
    }
}

/// Publishes one event after the other, and waits for each to be durable.
async fn publish(url: String) -> Result<()> {
    let http = reqwest::Client::new();
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for version in 1_u64.. {
        beats.tick().await;
        let event = format!(
            "{{\"aggregate\":\"thing\",\"agg_id\":\"a\",\"version\":{version},\"type\":\"make\",\"payload\":{{}}}}\n"
        );
        let request =
            http.post(format!("{url}/v1/events")).header("content-type", "application/x-ndjson").body(event);
        let answer = request.send().await?.error_for_status()?.text().await?;
        ensure!(answer.contains("\"position\""), "an event was refused: {answer}");
    }
    Ok(())
}

/// Follows what the plugin makes.
async fn read(url: String, made: mpsc::Sender<Made>) -> Result<()> {
    let request = reqwest::Client::new().get(format!("{url}/v1/streams/events?from=oldest&types=made"));
    let mut answer = request.header("accept", "text/event-stream").send().await?.error_for_status()?;
    let mut parser = SseParser::default();
    while let Some(bytes) = answer.chunk().await? {
        let seen = Instant::now();
        for frame in parser.feed(&bytes).map_err(anyhow::Error::msg)? {
            match frame.event.as_deref() {
                None => {}
                Some("error" | "closing") => bail!("the stream ends: {}", frame.data),
                Some(_) => continue,
            }
            let event: Value = serde_json::from_str(&frame.data)?;
            let payload = &event["payload"];
            let from = payload["from"].as_u64().with_context(|| format!("it says from what: {event}"))?;
            let is_other = payload["other"].as_bool().with_context(|| format!("it says by whom: {event}"))?;
            if made.send(Made { seen, from, is_other }).await.is_err() {
                return Ok(());
            }
        }
    }
    bail!("the host has closed the stream")
}
