//! Keys that everybody knows, and events signed with them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace::control::trust::{KeyRole, TrustStore};
use millrace::control::{
    ArtifactRef, ControlEvent, Desired, EventBody, EventId, Kind, PluginSpec, RunState, SCHEMA_VERSION,
    SigningKey, Trusted, UnsignedEvent,
};
use millrace::event::Micros;
use ring::digest::{SHA256, digest};

/// When events are issued, 2026-03-01T12:00:00Z, unless a test says otherwise.
pub const ISSUED: i64 = 1_772_366_400_000_000;
pub const NOW: Micros = Micros(ISSUED + 60_000_000);
pub const SECOND: i64 = 1_000_000;

/// The key whose seed is this byte, again and again.
pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_pem(&pem(seed)).expect("a seed is a key")
}

/// The file of that key.
pub fn pem(seed: u8) -> String {
    // What PKCS#8 writes before the seed of an Ed25519 key.
    let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    pkcs8.extend([seed; 32]);
    let text = STANDARD.encode(pkcs8);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

pub fn root_key() -> SigningKey {
    key(1)
}

pub fn release_key() -> SigningKey {
    key(2)
}

pub fn build_key() -> SigningKey {
    key(3)
}

pub fn trusted() -> Trusted {
    Trusted {
        keys: vec![
            root_key().trusted_as(KeyRole::Root, "the safe"),
            release_key().trusted_as(KeyRole::Release, "ops@example.com"),
            build_key().trusted_as(KeyRole::Build, "the build server"),
        ],
    }
}

/// Believes those three keys.
pub fn trust() -> TrustStore {
    TrustStore::new(0, &trusted()).expect("these keys fit one list")
}

pub fn digest_of(content: &[u8]) -> String {
    digest(&SHA256, content)
        .as_ref()
        .iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A component of these bytes, with the signature of the build key.
pub fn component(plugin: &str, content: &[u8]) -> ArtifactRef {
    let artifact =
        ArtifactRef { digest: digest_of(content), bytes: content.len() as u64, signatures: Vec::new() };
    artifact.built_by(plugin, &build_key())
}

pub fn spec(plugin: &str, version: &str, content: &[u8]) -> PluginSpec {
    PluginSpec {
        version: version.into(),
        component: component(plugin, content),
        world: "millrace:processor@0.1.0".into(),
        config: None,
        limits: BTreeMap::new(),
        grants: BTreeMap::new(),
        from: "oldest".into(),
        shadow_events: None,
    }
}

pub fn running(spec: PluginSpec) -> Desired {
    Desired {
        state: RunState::Running,
        spec: Some(spec),
        stable: None,
        targets: BTreeMap::new(),
        rollout: None,
    }
}

/// What a plugin looks like once it is removed.
pub fn removed() -> Desired {
    Desired { state: RunState::Removed, spec: None, stable: None, targets: BTreeMap::new(), rollout: None }
}

/// A new event about a plugin, made on the revision before its own.
pub fn about(plugin: &str, kind: Kind, desired: Desired, revision: u64) -> UnsignedEvent {
    let body = EventBody::Plugin { plugin: plugin.into(), desired };
    UnsignedEvent {
        schema_version: SCHEMA_VERSION,
        must_understand: false,
        event_id: EventId::new(ulid()),
        kind,
        body,
        revision,
        base_revision: revision - 1,
        base_event_id: None,
        issued_at: ISSUED,
        expires_at: None,
        actor: "ops@example.com".into(),
        reason: "because it is time".into(),
    }
}

/// A deploy of a component whose content is its version.
pub fn deployed(plugin: &str, version: &str, revision: u64) -> UnsignedEvent {
    about(plugin, Kind::Deployed, running(spec(plugin, version, version.as_bytes())), revision)
}

/// The same, signed with the release key.
pub fn signed_deploy(plugin: &str, version: &str, revision: u64) -> ControlEvent {
    deployed(plugin, version, revision).sign(&release_key()).expect("it is a sound event")
}

/// A list of keys, not signed yet.
pub fn trust_changed(trusted: Trusted, revision: u64) -> UnsignedEvent {
    let event = about("x", Kind::TrustChanged, removed(), revision);
    UnsignedEvent { body: EventBody::Trust(trusted), ..event }
}

fn ulid() -> ulid::Ulid {
    ulid::Ulid::from_parts(u64::try_from(ISSUED / 1_000).unwrap_or(0), rand::random())
}
