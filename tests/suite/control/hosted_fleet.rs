//! What the tests of whole hosts share: a fleet of processes, and how it is asked and told.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::{Actor, Change, Deploy, Present};
use millrace::control::rollout::{Plan, Wave};
use millrace::control::{ControlEvent, Desired, EventBody, EventId, Kind, PluginSpec, UnsignedEvent};
use millrace_tests::control_events::{about, digest_of, pem, release_key, running, spec, trust};
use millrace_tests::guests::version_of;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde_json::Value;

/// Reaching it is a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const PLUGIN: &str = "variant";

/// What the hosts of a test share.
pub(super) struct Fleet {
    dir: tempfile::TempDir,
    feed: &'static str,
    /// The server of a feed that has one.
    url: Option<String>,
}

impl Fleet {
    /// With a feed in a folder.
    pub(super) fn new() -> Self {
        Self::on("file", None)
    }

    pub(super) fn on(feed: &'static str, url: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trust.json"), trust().to_json()).unwrap();
        std::fs::write(dir.path().join("release.pem"), pem(2)).unwrap();
        Self { dir, feed, url }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn setup(&self, host: &str, tier: &str) -> Setup {
        let shown = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut setup = Setup::new(workspace_binary("millrace"));
        setup.args.extend(["--feed-source".into(), self.feed.into()]);
        for setting in [
            format!("control.dir={}", shown("feed")),
            format!("control.artifacts_dir={}", shown("artifacts")),
            format!("control.trust_file={}", shown("trust.json")),
            format!("control.host={host}"),
            format!("control.labels.tier={tier}"),
            "control.report_ms=100".into(),
            "control.heal_ms=500".into(),
        ] {
            setup = setup.set(&setting);
        }
        match &self.url {
            Some(url) => setup.set(&format!("control.url={url}")),
            None => setup,
        }
    }

    pub(super) fn origin(&self, host: &str) -> Setup {
        let mut setup = self.setup(host, "canary");
        setup.args.extend(["--feed-sink".into(), self.feed.into()]);
        let key = self.path("release.pem");
        setup.set(&format!("control.signing_key={}", key.to_str().unwrap()))
    }

    pub(super) async fn start(&self, host: &str, setup: Setup) -> HostProcess {
        HostProcess::start_as(setup, &self.path(host)).await.unwrap()
    }

    /// The origin `a`, and `b` and `c`, which only listen.
    pub(super) async fn three(&self) -> [HostProcess; 3] {
        let a = self.start("a", self.origin("a")).await;
        let b = self.start("b", self.setup("b", "edge")).await;
        let c = self.start("c", self.setup("c", "edge")).await;
        [a, b, c]
    }

    /// Where the repository has an artifact.
    pub(super) fn artifact(&self, digest: &str) -> PathBuf {
        below(&self.path("artifacts"), digest)
    }

    /// Whether a host has a copy of its own.
    pub(super) fn has_copy(&self, host: &str, digest: &str) -> bool {
        below(&self.path(host).join("artifact-copies"), digest).exists()
    }
}

fn below(dir: &Path, digest: &str) -> PathBuf {
    let hex = &digest["sha256:".len()..];
    dir.join("sha256").join(&hex[..2]).join(&hex[2..4]).join(hex)
}

/// Puts an artifact into the fleet's repository.
pub(super) async fn push(host: &HostProcess, bytes: &[u8]) {
    let url = format!("{}/v1/artifacts/{}", host.url, digest_of(bytes));
    let answer = reqwest::Client::new().put(url).body(bytes.to_vec()).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// Hands an event in, as the command line does. None when the host ended before it answered.
pub(super) async fn try_hand_in(host: &HostProcess, event: &ControlEvent) -> Option<(u16, Value)> {
    let url = format!("{}/v1/fleet/events", host.url);
    let answer = reqwest::Client::new().post(url).body(event.to_json()).send().await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

pub(super) async fn hand_in(host: &HostProcess, event: &ControlEvent) -> (u16, Value) {
    try_hand_in(host, event).await.expect("the host answers")
}

/// The next change of what stands at the origin, signed.
pub(super) async fn next(
    origin: &HostProcess,
    make: impl FnOnce(Present<'_>, &EventId) -> Change,
) -> ControlEvent {
    let stands = origin.get("/v1/fleet/desired").await.unwrap();
    let entities = stands["entities"].as_array().unwrap();
    let entity = entities.iter().find(|entity| entity["entity"] == format!("plugin:{PLUGIN}"));
    let event = entity.map(|entity| ControlEvent::parse(&entity["event"].to_string()).unwrap());
    let desired = event.as_ref().and_then(|event| match &event.unsigned().body {
        EventBody::Plugin { desired, .. } => Some(desired),
        _ => None,
    });
    let base = entity.map_or(0, |entity| entity["revision"].as_u64().unwrap());
    let id = EventId::new(ulid::Ulid::new());
    let change = make(Present { plugin: PLUGIN, desired }, &id);
    let by = Actor { name: "tests".into(), reason: "because it is time".into() };
    change.event(PLUGIN, base, id, &by, SystemClock.now().0).sign(&release_key()).unwrap()
}

/// Makes the next change and hands it in. Answers its revision.
pub(super) async fn change(origin: &HostProcess, make: impl FnOnce(Present<'_>, &EventId) -> Change) -> u64 {
    let event = next(origin, make).await;
    let (status, answer) = hand_in(origin, &event).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!((&answer["entity"], &answer["repeated"]), (&format!("plugin:{PLUGIN}").into(), &false.into()));
    answer["revision"].as_u64().unwrap()
}

pub(super) async fn deploy(origin: &HostProcess, spec: PluginSpec, plan: Option<Plan>) -> u64 {
    let deploy = Deploy { spec, plan, targets: None };
    change(origin, |present, id| present.deploy(id, deploy).unwrap()).await
}

/// A version that takes over at once.
pub(super) fn version(bytes: &[u8]) -> PluginSpec {
    PluginSpec { shadow_events: Some(0), ..spec(PLUGIN, &version_of(bytes), bytes) }
}

/// All hosts with these labels.
pub(super) fn wave(labels: &[(&str, &str)]) -> Wave {
    let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Wave { labels, percent: 100, soak_s: 0 }
}

/// A plugin that no host is meant to run: its events are all that there is of it.
pub(super) fn elsewhere(plugin: &str, revision: u64) -> ControlEvent {
    let targets = [("tier".to_owned(), "nowhere".to_owned())].into();
    let desired = Desired { targets, ..running(spec(plugin, "1.0.0", b"nothing")) };
    let event = about(plugin, Kind::Deployed, desired, revision);
    UnsignedEvent { issued_at: SystemClock.now().0, ..event }.sign(&release_key()).unwrap()
}

/// Looks until it is so, and says what was seen last if it never is.
pub(super) async fn eventually(
    what: &str,
    host: &HostProcess,
    path: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let begun = Instant::now();
    loop {
        let seen = host.get(path).await.unwrap();
        if is_so(&seen) {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {seen:#}\n{}", host.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a host has written this to its log.
pub(super) async fn until_said(host: &HostProcess, words: &str) {
    let begun = Instant::now();
    while !host.said().contains(words) {
        assert!(begun.elapsed() < PATIENCE, "it does not say `{words}`: {}", host.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a status says that these hosts run what they should, as of this revision of the plugin.
pub(super) fn is_converged(seen: &Value, hosts: &[&str], revision: u64) -> bool {
    let plugins = seen["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(plugin) = plugins.iter().find(|plugin| plugin["plugin"] == PLUGIN) else { return false };
    let lines = plugin["hosts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<&str> = lines.iter().filter_map(|line| line["host"].as_str()).collect();
    let told = lines.iter().all(|line| line["revision"] == revision);
    seen["converged"] == true && plugin["revision"] == revision && named == hosts && told
}

/// All these hosts run what they should, as of this revision of the plugin.
pub(super) async fn converged(origin: &HostProcess, hosts: &[&str], revision: u64) -> Value {
    let is_so = |seen: &Value| is_converged(seen, hosts, revision);
    eventually("all hosts run what they should", origin, "/v1/fleet/status", is_so).await
}

/// A host has read the feed so far, and has the state that the origin says it should have.
pub(super) async fn same_state(host: &HostProcess, cursor: u64) -> Value {
    let is_same = |seen: &Value| seen["cursor"] == cursor && seen["drift"] == "same";
    eventually("it has the fleet's state", host, "/v1/fleet/self", is_same).await
}

pub(super) async fn serving(host: &HostProcess) -> String {
    let shown = host.get(&format!("/v1/plugins/{PLUGIN}")).await.unwrap();
    assert_eq!(shown["state"], "running", "{shown}");
    format!("sha256:{}", shown["deployment"]["digest"].as_str().unwrap())
}

/// The codes of what a host has set aside, sorted.
pub(super) async fn aside(host: &HostProcess) -> Vec<String> {
    let seen = host.get("/v1/fleet/quarantine").await.unwrap();
    let events = seen["events"].as_array().unwrap();
    let mut codes: Vec<String> =
        events.iter().map(|event| event["code"].as_str().unwrap().to_owned()).collect();
    codes.sort();
    codes
}

/// Has the plugin count one more event on a host; answers how many it has counted.
pub(super) async fn counted(host: &HostProcess, event: u64) -> u64 {
    let line =
        format!(r#"{{"aggregate":"thing","agg_id":"k","version":{event},"type":"changed","payload":{{}}}}"#);
    assert_eq!(host.publish(line).await.unwrap(), 1);
    host.settle().await.unwrap();
    let row = host.get("/v1/tables/variants/k").await.unwrap();
    row["row"]["values"]["events"].as_u64().unwrap()
}
