//! Claims about whole hosts: processes of one fleet, with a feed and artifacts in folders that they share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::clock::{Clock as _, SystemClock};
use millrace::control::changes::{Actor, Change, Deploy, Present};
use millrace::control::rollout::{Gate, Plan, Wave};
use millrace::control::{
    ControlEvent, ControlSink as _, ControlVersion, Desired, EventBody, EventId, Kind, PluginSpec,
    UnsignedEvent,
};
use millrace_tests::control_events::{about, digest_of, key, pem, release_key, running, spec, trust};
use millrace_tests::guests::variant;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::workspace_binary;
use serde_json::Value;

/// Reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(120);
const PLUGIN: &str = "variant";

/// What the hosts of a test share.
struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trust.json"), trust().to_json()).unwrap();
        std::fs::write(dir.path().join("release.pem"), pem(2)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn setup(&self, host: &str, tier: &str) -> Setup {
        let shown = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut setup = Setup::new(workspace_binary("millrace"));
        setup.args.extend(["--feed-source".into(), "file".into()]);
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
        setup
    }

    fn origin(&self, host: &str) -> Setup {
        let mut setup = self.setup(host, "canary");
        setup.args.extend(["--feed-sink".into(), "file".into()]);
        let key = self.path("release.pem");
        setup.set(&format!("control.signing_key={}", key.to_str().unwrap()))
    }

    async fn start(&self, host: &str, setup: Setup) -> HostProcess {
        HostProcess::start_as(setup, &self.path(host)).await.unwrap()
    }
}

/// Puts an artifact into the fleet's repository.
async fn push(host: &HostProcess, bytes: &[u8]) {
    let url = format!("{}/v1/artifacts/{}", host.url, digest_of(bytes));
    let answer = reqwest::Client::new().put(url).body(bytes.to_vec()).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// Hands an event in, as the command line does.
async fn hand_in(host: &HostProcess, event: &ControlEvent) -> (u16, Value) {
    let url = format!("{}/v1/fleet/events", host.url);
    let answer = reqwest::Client::new().post(url).body(event.to_json()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Makes the next change of what stands at the origin, signs it, and hands it in.
async fn change(origin: &HostProcess, make: impl FnOnce(Present<'_>, &EventId) -> Change) -> u64 {
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
    let event = change.event(PLUGIN, base, id, &by, SystemClock.now().0).sign(&release_key()).unwrap();
    let (status, answer) = hand_in(origin, &event).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!((&answer["entity"], &answer["repeated"]), (&format!("plugin:{PLUGIN}").into(), &false.into()));
    answer["revision"].as_u64().unwrap()
}

async fn deploy(origin: &HostProcess, spec: PluginSpec, plan: Option<Plan>) -> u64 {
    let deploy = Deploy { spec, plan, targets: None };
    change(origin, |present, id| present.deploy(id, deploy).unwrap()).await
}

/// A version that takes over at once.
fn version(bytes: &[u8]) -> PluginSpec {
    PluginSpec { shadow_events: Some(0), ..spec(PLUGIN, "1.0.0", bytes) }
}

/// Looks until it is so, and says what was seen last if it never is.
async fn eventually(what: &str, host: &HostProcess, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
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

/// All these hosts run what they should, as of this revision of the plugin.
async fn converged(origin: &HostProcess, hosts: &[&str], revision: u64) -> Value {
    let is_so = |seen: &Value| {
        let plugin = &seen["plugins"][0];
        let lines = plugin["hosts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let named: Vec<&str> = lines.iter().filter_map(|line| line["host"].as_str()).collect();
        let told = lines.iter().all(|line| line["revision"] == revision);
        seen["converged"] == true && plugin["revision"] == revision && named == hosts && told
    };
    eventually("all hosts run what they should", origin, "/v1/fleet/status", is_so).await
}

async fn serving(host: &HostProcess) -> String {
    let shown = host.get(&format!("/v1/plugins/{PLUGIN}")).await.unwrap();
    assert_eq!(shown["state"], "running", "{shown}");
    format!("sha256:{}", shown["deployment"]["digest"].as_str().unwrap())
}

/// Whether a host's own folder of copies has an artifact.
fn has_copy(data: &Path, digest: &str) -> bool {
    let hex = &digest["sha256:".len()..];
    data.join("artifact-copies/sha256").join(&hex[..2]).join(&hex[2..4]).join(hex).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_is_taken_back_in_its_first_wave_and_nobody_else_has_seen_it() {
    let fleet = Fleet::new();
    let mut a = fleet.start("a", fleet.origin("a")).await;
    let mut b = fleet.start("b", fleet.setup("b", "edge")).await;
    let mut c = fleet.start("c", fleet.setup("c", "edge")).await;
    let (good, bad) = (variant(1, "good"), b"#!/bin/sh\nexit 0\n");
    push(&a, &good).await;
    push(&a, bad).await;
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a", "b", "c"], revision).await;
    for host in [&a, &b, &c] {
        assert_eq!(serving(host).await, digest_of(&good));
    }

    let first = Wave { labels: BTreeMap::from([("tier".into(), "canary".into())]), percent: 100, soak_s: 0 };
    let all = Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 };
    let gate = Gate { events_min: 0, ..Gate::default() };
    let plan = Plan { waves: vec![first, all], gate, automatic: true };
    let bad_revision = deploy(&a, version(bad), Some(plan.clone())).await;
    // The origin says so by an event of its own.
    let status = converged(&a, &["a", "b", "c"], bad_revision + 1).await;
    assert_eq!(status["plugins"][0]["rollout"]["progress"], "rolled_back", "{status:#}");
    assert_eq!(status["plugins"][0]["rollout"]["wave"], 1, "{status:#}");
    for host in [&a, &b, &c] {
        assert_eq!(serving(host).await, digest_of(&good));
    }
    assert!(has_copy(&fleet.path("a"), &digest_of(bad)), "the first host has looked at it");
    for (host, name) in [(&b, "b"), (&c, "c")] {
        assert!(!has_copy(&fleet.path(name), &digest_of(bad)));
        let history = host.get(&format!("/v1/plugins/{PLUGIN}/history")).await.unwrap();
        assert!(!history.to_string().contains(&digest_of(bad)["sha256:".len()..]), "{history}");
    }

    // A good one goes through all waves by itself.
    let better = variant(2, "good");
    push(&a, &better).await;
    let revision = deploy(&a, version(&better), Some(plan)).await;
    let status = converged(&a, &["a", "b", "c"], revision + 2).await;
    assert_eq!(status["plugins"][0]["rollout"]["progress"], "complete", "{status:#}");
    for host in [&mut a, &mut b, &mut c] {
        assert_eq!(serving(host).await, digest_of(&better));
        assert!(host.terminate().unwrap(), "{}", host.said());
    }
}

/// A plugin that no host is meant to run: its events are all that there is of it.
fn elsewhere(plugin: &str, revision: u64) -> ControlEvent {
    let targets = BTreeMap::from([("tier".into(), "nowhere".into())]);
    let desired = Desired { targets, ..running(spec(plugin, "1.0.0", b"nothing")) };
    let event = about(plugin, Kind::Deployed, desired, revision);
    UnsignedEvent { issued_at: SystemClock.now().0, ..event }.sign(&release_key()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_a_thousand_events_catches_up_and_who_comes_late_begins_with_a_snapshot() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let mut b = fleet.start("b", fleet.setup("b", "edge")).await;
    let good = variant(1, "good");
    push(&a, &good).await;
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a", "b"], revision).await;
    b.kill().unwrap();

    let origin = &a;
    let tell = |plugin: usize| async move {
        for revision in 1..=102 {
            let (status, answer) = hand_in(origin, &elsewhere(&format!("p{plugin}"), revision)).await;
            assert_eq!(status, 202, "{answer}");
        }
    };
    join_all((0..10).map(tell)).await;
    let told = |seen: &Value| seen["waiting"] == 0;
    eventually("all is in the feed", &a, "/v1/fleet/outbox", told).await;
    let last = 1 + 10 * 102;
    let is_same = |seen: &Value| seen["cursor"] == last && seen["drift"] == "same";
    let own = eventually("the origin has marked it", &a, "/v1/fleet/self", is_same).await;

    b.kill_and_start().await.unwrap();
    let caught_up = eventually("it has caught up", &b, "/v1/fleet/self", is_same).await;
    assert_eq!(caught_up["state_digest"], own["state_digest"]);
    assert!(!b.said().contains("starts from a snapshot"), "{}", b.said());

    let feed = FileFeed::open(FileFeedOptions::new(fleet.path("feed"))).unwrap();
    assert!(
        feed.trim(ControlVersion(1_000)).await.unwrap() > 0,
        "what a newcomer would have to read is gone"
    );
    let c = fleet.start("c", fleet.setup("c", "edge")).await;
    let late = eventually("the newcomer knows it all", &c, "/v1/fleet/self", is_same).await;
    assert_eq!(late["state_digest"], own["state_digest"]);
    assert!(c.said().contains("starts from a snapshot"), "{}", c.said());
    let is_there = |seen: &Value| {
        let plugins = seen["plugins"].as_array().unwrap();
        plugins.iter().any(|plugin| plugin["plugin"] == PLUGIN && plugin["phase"] == "active")
    };
    eventually("the newcomer runs what it should", &c, "/v1/fleet/self", is_there).await;
    assert_eq!(serving(&c).await, digest_of(&good));
    // Whoever asks gets the same again.
    let again = c.post("/v1/fleet/resync").await.unwrap();
    assert_eq!(again["restored"], true, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_tampered_with_or_that_nobody_signed_runs_nowhere() {
    let fleet = Fleet::new();
    let a = fleet.start("a", fleet.origin("a")).await;
    let (good, tampered, foreign) = (variant(1, "good"), variant(2, "good"), variant(3, "good"));
    for bytes in [&good, &tampered, &foreign] {
        push(&a, bytes).await;
    }
    let revision = deploy(&a, version(&good), None).await;
    converged(&a, &["a"], revision).await;

    let digest = digest_of(&tampered);
    let hex = &digest["sha256:".len()..];
    let stored = fleet.path("artifacts").join("sha256").join(&hex[..2]).join(&hex[2..4]).join(hex);
    let mut bytes = tampered.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&stored).unwrap();
    std::fs::write(&stored, &bytes).unwrap();
    let mut unbelieved = version(&foreign);
    unbelieved.component.signatures.clear();
    unbelieved.component = unbelieved.component.built_by(PLUGIN, &key(9));
    for (spec, codes) in [
        (version(&tampered), &["artifact_damaged", "artifact_mismatch"][..]),
        (unbelieved, &["control_event_untrusted"]),
    ] {
        let revision = deploy(&a, spec, None).await;
        let is_aside = |seen: &Value| {
            let plugin = &seen["plugins"][0];
            plugin["revision"] == revision && plugin["phase"] == "quarantined"
        };
        let seen = eventually("it is set aside", &a, "/v1/fleet/self", is_aside).await;
        let code = seen["plugins"][0]["reason"]["code"].as_str().unwrap();
        assert!(codes.contains(&code), "{seen:#}");
        assert_eq!(serving(&a).await, digest_of(&good), "what served goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_for_development_runs_what_nobody_has_signed_and_any_other_does_not() {
    let fleet = Fleet::new();
    let trusting = {
        let mut setup = fleet.origin("dev");
        setup.args.push("--insecure-dev".into());
        fleet.start("dev", setup).await
    };
    let good = variant(1, "good");
    push(&trusting, &good).await;
    let mut bare = version(&good);
    bare.component.signatures.clear();
    let event = about(PLUGIN, Kind::Deployed, running(bare), 1);
    let event = UnsignedEvent { issued_at: SystemClock.now().0, ..event }.without_signature().unwrap();
    let (status, answer) = hand_in(&trusting, &event).await;
    assert_eq!(status, 202, "{answer}");
    converged(&trusting, &["dev"], 1).await;
    assert_eq!(serving(&trusting).await, digest_of(&good));
    assert!(trusting.said().contains("looks at no signature"), "{}", trusting.said());

    // It is in the feed now, and a host that looks at signatures sets it aside.
    let strict = fleet.start("strict", fleet.setup("strict", "edge")).await;
    let is_aside = |seen: &Value| seen["events"].as_array().is_some_and(|events| !events.is_empty());
    let seen = eventually("it is set aside", &strict, "/v1/fleet/quarantine", is_aside).await;
    assert_eq!(seen["events"][0]["code"], "control_event_untrusted", "{seen}");
    assert_eq!(strict.get("/v1/plugins").await.unwrap()["plugins"], serde_json::json!([]));
}
