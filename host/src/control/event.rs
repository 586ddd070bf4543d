//! One change of what a fleet should run, as it is written down, signed and carried.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::{Context, SigningKey};
use super::{ControlFeedError, ControlVersion, Result};

/// `evt_` and a ULID: what names an event through all repeats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId(String);

/// What an event says. Each carries the whole desired state; the kind says why it changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    Deployed,
    RolledBack,
    Removed,
    ConfigChanged,
    Paused,
    Resumed,
    RolloutAdvanced,
    RolloutHalted,
    TrustChanged,
    /// A later host's. It passes by unless it says that it must be understood.
    Other(String),
}

/// An artifact, by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// `sha256:` and 64 lower-case hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
    /// Those of build keys, over the artifact's statement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// An Ed25519 signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key's id: `ed25519:` and the first 16 hexadecimal digits of the SHA-256 of the public key.
    pub key: String,
    /// 64 bytes as base64.
    pub signature: String,
}

/// One version of a plugin, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginSpec {
    /// The version that the component says.
    pub version: String,
    pub component: ArtifactRef,
    /// The world that it was built for, such as `millrace:processor@0.1.0`.
    pub world: String,
    /// JSON, an object of texts: the answers to the guest's `config.get`. None is the empty object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ArtifactRef>,
    /// The members of a plugin's settings that bound it: `memory_bytes_max`, `call_ms_max`, `state_bytes_max`, `lanes`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Value>,
    /// The members that give it something: `grants`, `env`, `http_hosts`, `read_dir`, `channels`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<String, Value>,
    /// Where a first deploy begins to read: `oldest`, `tail` or `after:<position>`.
    #[serde(default = "oldest")]
    pub from: String,
    /// How long the shadow run is; none is the host's default, 0 leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_events: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    Paused,
    /// A tombstone: it stays, so that nothing older can bring the plugin back.
    Removed,
}

/// All that hosts are to know of one plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    pub state: RunState,
    /// What hosts run that the rollout has reached, and all of them without one. None when it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PluginSpec>,
    /// What all others run meanwhile; none is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<PluginSpec>,
    /// Hosts that run it at all: those that have each of these labels. Empty is all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, String>,
    /// The rollout that is under way, or was the last: see `rollout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<super::rollout::RolloutState>,
}

/// Keys by which a host knows what to believe; a whole list, not a difference. See `trust`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    pub keys: Vec<super::trust::TrustedKey>,
}

#[expect(clippy::large_enum_variant, reason = "there are few of them, and nearly all are of the large kind")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventBody {
    Plugin {
        plugin: String,
        desired: Desired,
    },
    Trust(Trusted),
    /// Of a kind that this host does not know.
    Unknown,
}

/// An event before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedEvent {
    /// 1. A host refuses a later one that must be understood, and passes others by.
    pub schema_version: u32,
    pub must_understand: bool,
    pub event_id: EventId,
    pub kind: Kind,
    pub body: EventBody,
    /// Of the plugin, or of the trusted keys: above `base_revision`.
    pub revision: u64,
    /// What the change was made on. The origin refuses it when that is not what stands.
    pub base_revision: u64,
    /// The event that stood then. Two may have had that revision, of which one came second: what was made on it does not go
    /// on. None where nothing stood, and from who does not say.
    pub base_event_id: Option<EventId>,
    /// Microseconds since 1970; RFC 3339 on the wire.
    pub issued_at: i64,
    pub expires_at: Option<i64>,
    pub actor: String,
    pub reason: String,
}

/// A signed event. It keeps the JSON that it came as, so that what a later host wrote in it is still under its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlEvent {
    unsigned: UnsignedEvent,
    signatures: Vec<Signature>,
    json: Value,
}

impl ControlEvent {
    /// Reads an event and checks all that can be checked without keys or state. Producers and consumers use the same.
    pub fn parse(json: &str) -> Result<Self> {
        Self::parse_at(json).map(|(event, _)| event)
    }

    /// The same of an entry of a feed, which may say its control version.
    pub fn parse_at(json: &str) -> Result<(Self, Option<ControlVersion>)> {
        super::wire::parse(json)
    }

    /// The same event with one more signature. A signature of the same key is replaced.
    pub fn signed_by(&self, key: &SigningKey) -> Result<Self> {
        let mut signatures = self.signatures.clone();
        signatures.retain(|signature| signature.key != key.id());
        signatures.push(key.sign(Context::Event, &self.signed_bytes()));
        super::wire::read(super::wire::with_signatures(&self.json, &signatures)?)
    }

    pub(super) fn from_parts(unsigned: UnsignedEvent, signatures: Vec<Signature>, json: Value) -> Self {
        Self { unsigned, signatures, json }
    }

    pub fn unsigned(&self) -> &UnsignedEvent {
        &self.unsigned
    }

    pub fn id(&self) -> &EventId {
        &self.unsigned.event_id
    }

    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// What it changes: `plugin:<name>` or `trust`. Revisions are counted, and order is kept, by entity.
    pub fn entity(&self) -> String {
        match &self.unsigned.body {
            EventBody::Plugin { plugin, .. } => format!("plugin:{plugin}"),
            EventBody::Trust(_) => "trust".into(),
            EventBody::Unknown => format!("kind:{}", self.unsigned.kind),
        }
    }

    /// What signatures are over, behind the line that says that it is an event: its JSON without `signatures`, in the
    /// canonical form.
    pub fn signed_bytes(&self) -> Vec<u8> {
        super::wire::signed_bytes(&self.json)
    }

    /// `sha256:` and the digest of the signed bytes.
    pub fn digest(&self) -> String {
        super::wire::digest_text(&self.signed_bytes())
    }

    /// As it is stored and carried, readable.
    pub fn to_json(&self) -> String {
        super::wire::pretty(&self.json)
    }

    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    /// The same with the control version that a feed gave it, which is no part of the event.
    pub fn to_json_at(&self, version: ControlVersion) -> String {
        super::wire::pretty_at(&self.json, version)
    }
}

impl UnsignedEvent {
    /// Checks all that can be checked without keys or state, and signs.
    pub fn sign(&self, key: &SigningKey) -> Result<ControlEvent> {
        self.without_signature()?.signed_by(key)
    }

    /// The event as it is. Only a host that runs with `--insecure-dev` takes it so.
    pub fn without_signature(&self) -> Result<ControlEvent> {
        super::wire::read(super::wire::write(self)?)
    }
}

impl EventId {
    pub fn new(id: ulid::Ulid) -> Self {
        Self(format!("evt_{id}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When whoever made it says that it was made, in microseconds since 1970.
    pub fn made_at(&self) -> i64 {
        let ulid = self.0.strip_prefix("evt_").and_then(|ulid| ulid::Ulid::from_string(ulid).ok());
        let millis = ulid.map_or(u64::MAX, |ulid| ulid.timestamp_ms());
        i64::try_from(millis).map_or(i64::MAX, |millis| millis.saturating_mul(1_000))
    }
}

impl TryFrom<String> for EventId {
    type Error = ControlFeedError;

    fn try_from(text: String) -> Result<Self> {
        let id = text.strip_prefix("evt_").and_then(|ulid| ulid::Ulid::from_string(ulid).ok());
        match id {
            // One spelling: ids are names of files and subjects.
            Some(ulid) if format!("evt_{ulid}") == text => Ok(Self(text)),
            _ => Err(ControlFeedError::InvalidEvent {
                detail: format!(
                    "event_id `{}` is not evt_ and a ULID",
                    text.chars().take(80).collect::<String>()
                ),
            }),
        }
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Kind {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Deployed => "plugin.deployed",
            Self::RolledBack => "plugin.rolled_back",
            Self::Removed => "plugin.removed",
            Self::ConfigChanged => "plugin.config_changed",
            Self::Paused => "plugin.paused",
            Self::Resumed => "plugin.resumed",
            Self::RolloutAdvanced => "rollout.advanced",
            Self::RolloutHalted => "rollout.halted",
            Self::TrustChanged => "trust.changed",
            Self::Other(name) => name,
        }
    }

    pub fn from_name(name: &str) -> Self {
        match name {
            "plugin.deployed" => Self::Deployed,
            "plugin.rolled_back" => Self::RolledBack,
            "plugin.removed" => Self::Removed,
            "plugin.config_changed" => Self::ConfigChanged,
            "plugin.paused" => Self::Paused,
            "plugin.resumed" => Self::Resumed,
            "rollout.advanced" => Self::RolloutAdvanced,
            "rollout.halted" => Self::RolloutHalted,
            "trust.changed" => Self::TrustChanged,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn oldest() -> String {
    "oldest".into()
}
