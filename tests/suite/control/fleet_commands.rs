//! `millrace fleet` and `millrace rollout`, against a server that says what it is told to.

mod changes;
mod files;
mod looking;
mod starts;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use millrace::cli::CliError;
use millrace::control::fleet::status;
use millrace::control::report::{HostReport, PluginReport, Seen};
use millrace::control::rollout::{Gate, Plan, Progress, RolloutState, Sample, Silence, Wave};
use millrace::control::trust::{KeyRole, TrustStore};
use millrace::control::{
    ControlEvent, ControlVersion, Desired, DesiredRow, EventBody, Kind, Phase, RunState, SigningKey, Trusted,
};
use millrace::event::Micros;
use millrace_tests::control_events::{about, release_key, spec};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::commands::ran;
use crate::scripted_host::{Asked, Scripted, answer, fine};

const PLUGIN: &str = "board";
const ID: &str = "evt_01JH0000000000000000000001";

/// The files of somebody who looks after a fleet: a key of each role, and what a test writes.
struct Desk {
    dir: TempDir,
}

impl Desk {
    async fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        for role in ["release", "build", "root"] {
            ran(&["keys", "new", "--role", role, "-o", &desk.at(&format!("{role}.pem"))]).await.0.unwrap();
        }
        desk
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.at(name), text).unwrap();
        self.at(name)
    }

    fn key(&self, role: &str) -> SigningKey {
        SigningKey::from_pem(&fs::read_to_string(self.at(&format!("{role}.pem"))).unwrap()).unwrap()
    }

    /// Believes the three keys.
    fn trust(&self) -> TrustStore {
        let key = |(role, name): (KeyRole, &str)| self.key(name).trusted_as(role, "x");
        let roles = [(KeyRole::Release, "release"), (KeyRole::Build, "build"), (KeyRole::Root, "root")];
        TrustStore::new(0, &Trusted { keys: roles.map(key).into() }).unwrap()
    }

    /// The command with the release key.
    async fn ran(&self, server: &Scripted, arguments: &[&str]) -> (Result<(), CliError>, String) {
        let key = self.at("release.pem");
        at(server, &[arguments, &["--key", &key]].concat()).await
    }

    /// The event of a request, which has to be believed.
    #[track_caller]
    fn event(&self, asked: &Asked) -> ControlEvent {
        asks(asked, "POST", "/v1/fleet/events");
        let event = ControlEvent::parse(&asked.body.to_string()).unwrap();
        let issued_at = Micros(event.unsigned().issued_at);
        self.trust().check_event(&event, issued_at).unwrap();
        assert!(event.unsigned().must_understand);
        event
    }
}

async fn at(server: &Scripted, arguments: &[&str]) -> (Result<(), CliError>, String) {
    ran(&[arguments, &["--url", server.url.as_str()]].concat()).await
}

#[track_caller]
fn asks(asked: &Asked, method: &str, path: &str) {
    assert_eq!(asked.line, format!("{method} {path} HTTP/1.1"));
}

fn desired_of(event: &ControlEvent) -> &Desired {
    match &event.unsigned().body {
        EventBody::Plugin { desired, .. } => desired,
        other => panic!("{other:?} is not of a plugin"),
    }
}

// What the server says.

fn plan() -> Plan {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let first = Wave { labels, percent: 50, soak_s: 600 };
    let last = Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 };
    Plan { waves: vec![first, last], gate: Gate::default(), automatic: true }
}

/// 2.0.0 on its way, and 1.0.0 before it.
fn rollout(progress: Progress) -> Desired {
    Desired {
        state: RunState::Running,
        spec: Some(spec(PLUGIN, "2.0.0", b"2.0.0")),
        stable: Some(spec(PLUGIN, "1.0.0", b"1.0.0")),
        targets: BTreeMap::new(),
        rollout: Some(RolloutState { id: ID.into(), plan: plan(), wave: 0, progress }),
    }
}

/// Of revision 4, by somebody else.
fn standing(desired: Desired) -> ControlEvent {
    standing_at(4, Kind::Deployed, desired)
}

fn standing_at(revision: u64, kind: Kind, desired: Desired) -> ControlEvent {
    about(PLUGIN, kind, desired, revision).sign(&release_key()).unwrap()
}

fn stands(events: &[&ControlEvent]) -> String {
    frozen_with(events, Value::Null)
}

fn frozen_with(events: &[&ControlEvent], frozen: Value) -> String {
    let entity = |event: &&ControlEvent| {
        let json: Value = serde_json::from_str(&event.to_json()).unwrap();
        json!({ "entity": event.entity(), "revision": event.unsigned().revision, "version": 7, "event": json })
    };
    let entities: Vec<Value> = events.iter().map(entity).collect();
    fine(json!({ "version": 7, "entities": entities, "frozen": frozen }))
}

fn taken(entity: &str, revision: u64) -> String {
    answer("202 Accepted", "", &json!({ "entity": entity, "revision": revision, "repeated": false }))
}

/// The fleet as the origin answers it: hosts by name, with what they serve and how far they are.
fn fleet(event: &ControlEvent, hosts: &[(&str, &str, Phase)]) -> Value {
    let seen = |(host, version, phase): &(&str, &str, Phase)| {
        let mut report = HostReport::new(host, BTreeMap::from([("zone".into(), "a".into())]), "1");
        let serving = Some(spec(PLUGIN, version, version.as_bytes()).component.digest);
        let told = PluginReport {
            revision: event.unsigned().revision,
            phase: *phase,
            serving,
            reason: None,
            active_ms: 0,
            now: Sample { lag_events: 12, ..Sample::default() },
            before: None,
            shadow: None,
            state: None,
            message: String::new(),
        };
        report.plugins.insert(PLUGIN.into(), told);
        Seen { host: (*host).to_owned(), age: Duration::from_secs(2), report: Some(report) }
    };
    let seen: Vec<Seen> = hosts.iter().map(seen).collect();
    let row = DesiredRow {
        entity: event.entity(),
        revision: event.unsigned().revision,
        version: ControlVersion(7),
        event: event.clone(),
    };
    let mut answer = json!(status(&[row], &seen, ControlVersion(7), Silence::default()));
    answer["missing"] = json!([]);
    answer["frozen"] = Value::Null;
    answer["of a later host"] = json!(1);
    answer
}
