//! What the tests of the control feed share: signed events, and stores and feeds that fail or stop where a test says.

#![expect(clippy::unwrap_used, reason = "test code, though it lives in a library")]

pub mod artifacts;
pub mod steps;

use std::collections::BTreeMap;

use millrace::control::{
    ArtifactRef, ControlEvent, ControlStore, ControlVersion, Desired, EventBody, EventId, Kind, PluginSpec,
    RunState, SCHEMA_VERSION, Trusted, UnsignedEvent,
};
use millrace::event::Micros;

use crate::control_events::{build_key, release_key, root_key};

/// When everything in these tests was issued: long ago.
pub const ISSUED_AT: i64 = 1_700_000_000_000_000;

/// The outbox of a store under test is full at so many.
pub const OUTBOX_EVENTS_MAX: u64 = 20;

/// A clock's time a second after that.
pub const NOW: Micros = Micros(ISSUED_AT + 1_000_000);

/// An id that is told apart by a number.
pub fn id(number: u64) -> EventId {
    EventId::try_from(format!("evt_{number:026}")).unwrap()
}

pub fn digest(number: u64) -> String {
    format!("sha256:{number:064x}")
}

/// `plugin` runs the build `build`, as of `revision`, made on the revision before.
pub fn unsigned(number: u64, plugin: &str, revision: u64, build: u64) -> UnsignedEvent {
    let component = ArtifactRef { digest: digest(build), bytes: 1, signatures: Vec::new() };
    let spec = PluginSpec {
        version: "1.0.0".into(),
        component: component.built_by(plugin, &build_key()),
        world: "millrace:processor@0.1.0".into(),
        config: None,
        limits: BTreeMap::new(),
        grants: BTreeMap::new(),
        from: "oldest".into(),
        shadow_events: None,
    };
    let desired = Desired {
        state: RunState::Running,
        spec: Some(spec),
        stable: None,
        targets: BTreeMap::new(),
        rollout: None,
    };
    UnsignedEvent {
        schema_version: SCHEMA_VERSION,
        must_understand: true,
        event_id: id(number),
        kind: Kind::Deployed,
        body: EventBody::Plugin { plugin: plugin.into(), desired },
        revision,
        base_revision: revision - 1,
        base_event_id: None,
        issued_at: ISSUED_AT,
        expires_at: None,
        actor: "tests".into(),
        reason: String::new(),
    }
}

/// The same, signed by the release key.
pub fn deployed(number: u64, plugin: &str, revision: u64) -> ControlEvent {
    sign(&unsigned(number, plugin, revision, number))
}

pub fn removed(number: u64, plugin: &str, revision: u64) -> ControlEvent {
    let desired = Desired {
        state: RunState::Removed,
        spec: None,
        stable: None,
        targets: BTreeMap::new(),
        rollout: None,
    };
    let body = EventBody::Plugin { plugin: plugin.into(), desired };
    sign(&UnsignedEvent { kind: Kind::Removed, body, ..unsigned(number, plugin, revision, 0) })
}

/// A list of keys, signed by the root key.
pub fn trust_changed(number: u64, revision: u64, trusted: Trusted) -> ControlEvent {
    let body = EventBody::Trust(trusted);
    let event = UnsignedEvent { kind: Kind::TrustChanged, body, ..unsigned(number, "p", revision, 0) };
    event.sign(&root_key()).unwrap()
}

pub fn sign(event: &UnsignedEvent) -> ControlEvent {
    event.sign(&release_key()).unwrap()
}

/// An event of a kind from the future that need not be understood.
pub fn of_a_new_kind(number: u64) -> ControlEvent {
    let text = sign(&unsigned(number, "p", 1, number)).to_json();
    let text = text
        .replace("plugin.deployed", "plugin.dreamt")
        .replace("\"must_understand\": true", "\"must_understand\": false");
    ControlEvent::parse(&text).unwrap()
}

/// What is desired, comparable: entity, revision and event of each.
pub async fn state(store: &dyn ControlStore) -> Vec<(String, u64, EventId)> {
    let (_, rows) = store.desired().await.unwrap();
    rows.into_iter().map(|row| (row.entity, row.revision, row.event.id().clone())).collect()
}

/// How `state` tells of a plugin.
pub fn at(plugin: &str, revision: u64, number: u64) -> (String, u64, EventId) {
    (format!("plugin:{plugin}"), revision, id(number))
}

pub fn v(version: u64) -> ControlVersion {
    ControlVersion(version)
}
