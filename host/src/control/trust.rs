//! Which keys a host believes, and for what.
//!
//! A key has one role: what signs builds cannot release, what releases cannot vouch for an artifact, and only a root key
//! changes the list of keys. One good signature is enough; others beside it are not looked at. What a signature is over is
//! in `keys`.
//!
//! When a key counts. A revoked key never does, whatever it signed and whenever: what it released must be signed anew. An
//! expired one counts for what was issued before it expired. Since whoever has an old key can write any date, its word is
//! taken as news for `CONTROL_KEY_GRACE` only ([`TrustStore::check_event`]); from a snapshot
//! ([`TrustStore::check_kept`]) it is taken after that, too, or a host that joins late could not run what was released long
//! ago. A key that others may have is therefore to be revoked: waiting until it expires is not enough.
//!
//! When an event counts. News is refused once it has expired, by this host's own clock: a clock that is ahead gives it less
//! time, never more. What is issued in the future is refused beyond `CONTROL_CLOCK_SKEW_MAX`.
//!
//! How the list changes. A host begins with the list in its file. A `trust.changed` event is a whole new list under a
//! higher revision, signed by a root key of the list before. Both have a revision, and the higher one holds: so the file
//! can overtake the feed as well, for a host that has no root key in common with its fleet any more.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::{Context, SigningKey, key_id, public_key, verifies};
use super::{
    ArtifactRef, ControlEvent, ControlFeedError, EventBody, Result, Signature, Trusted, json, times,
};
use crate::event::Micros;
use crate::limits::{
    CONTROL_CLOCK_SKEW_MAX, CONTROL_KEY_GRACE, CONTROL_KEYS_MAX, CONTROL_OWNER_BYTES_MAX,
    CONTROL_TRUST_BYTES_MAX,
};

const FORMAT: &str = "millrace.trust.v1";

/// When a component was released that stood before: since then its build key may have expired.
pub(super) const RELEASED_BEFORE: i64 = i64::MIN;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// Signs artifacts.
    Build,
    /// Signs what hosts are to run.
    Release,
    /// Signs changes of the list of keys.
    Root,
}

impl KeyRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Release => "release",
            Self::Root => "root",
        }
    }
}

/// A public key, and what it is believed for. Its JSON is how people give it to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// 32 bytes as base64.
    pub public_key: String,
    pub role: KeyRole,
    /// Who has it, for people.
    pub owner: String,
    /// Microseconds since 1970; RFC 3339 on the wire. What was issued afterwards does not count.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "times::optional")]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub revoked: bool,
}

impl TrustedKey {
    /// What its signatures name it by; none if it is not a key.
    pub fn id(&self) -> Option<String> {
        public_key(&self.public_key).map(|key| key_id(&key))
    }

    pub(super) fn is_root_at(&self, time: i64) -> bool {
        self.role == KeyRole::Root && !self.revoked && self.expires_at.is_none_or(|end| time <= end)
    }
}

/// What differs between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustLimits {
    pub clock_skew_max: Duration,
    pub key_grace: Duration,
}

impl Default for TrustLimits {
    fn default() -> Self {
        Self { clock_skew_max: CONTROL_CLOCK_SKEW_MAX, key_grace: CONTROL_KEY_GRACE }
    }
}

/// The list of keys of one revision. A value: another list is another store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustStore {
    revision: u64,
    /// By id.
    keys: BTreeMap<String, Known>,
    limits: TrustLimits,
    insecure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    key: TrustedKey,
    public: [u8; 32],
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    format: String,
    #[serde(default)]
    revision: u64,
    keys: Vec<Value>,
}

impl TrustStore {
    pub fn new(revision: u64, trusted: &Trusted) -> Result<Self> {
        check_list(&trusted.keys).map_err(unusable)?;
        let known = |key: &TrustedKey| {
            let public = public_key(&key.public_key)?;
            Some((key_id(&public), Known { key: key.clone(), public }))
        };
        let keys = trusted.keys.iter().filter_map(known).collect();
        Ok(Self { revision, keys, ..Self::default() })
    }

    /// Reads the file: `{"format": "millrace.trust.v1", "revision": 0, "keys": [...]}`. A member that is not known is an
    /// error there: a misspelt `revoked` would be believed.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > CONTROL_TRUST_BYTES_MAX {
            return Err(unusable("it is longer than control_trust_bytes_max"));
        }
        let json = json::parse(text).map_err(unusable)?;
        let file = TrustFile::deserialize(&json).map_err(unusable)?;
        if file.format != FORMAT {
            return Err(unusable(format!("its format is not {FORMAT}")));
        }
        let keys = file.keys.iter().map(parse_key).collect::<Result<_>>()?;
        Self::new(file.revision, &Trusted { keys })
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        let keys: Vec<Value> = self.keys.values().filter_map(|k| serde_json::to_value(&k.key).ok()).collect();
        let file = serde_json::json!({ "format": FORMAT, "revision": self.revision, "keys": keys });
        format!("{file:#}\n")
    }

    #[must_use]
    pub fn with_limits(self, limits: TrustLimits) -> Self {
        Self { limits, ..self }
    }

    /// Looks at no signature: for a host that runs with `--insecure-dev`.
    #[must_use]
    pub fn insecure(self) -> Self {
        Self { insecure: true, ..self }
    }

    pub fn is_insecure(&self) -> bool {
        self.insecure
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The keys with their ids, in the order of ids.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &TrustedKey)> {
        self.keys.iter().map(|(id, known)| (id.as_str(), &known.key))
    }

    /// The list as an event carries it.
    pub fn trusted(&self) -> Trusted {
        Trusted { keys: self.keys.values().map(|known| known.key.clone()).collect() }
    }

    /// The list with one more key, or with another word on a key that it has.
    pub fn trusting(&self, key: TrustedKey) -> Result<Trusted> {
        let mut trusted = self.trusted();
        trusted.keys.retain(|known| known.public_key != key.public_key);
        trusted.keys.push(key);
        check_list(&trusted.keys).map_err(unusable)?;
        Ok(trusted)
    }

    /// The list with a key revoked. It stays in the list, so that nobody adds it again unknowingly.
    pub fn revoking(&self, id: &str) -> Result<Trusted> {
        if !self.keys.contains_key(id) {
            let id: String = id.chars().take(80).collect();
            return Err(unusable(format!("there is no key {id} in the list")));
        }
        let revoked = |(known, Known { key, .. }): (&String, &Known)| TrustedKey {
            revoked: key.revoked || known == id,
            ..key.clone()
        };
        Ok(Trusted { keys: self.keys.iter().map(revoked).collect() })
    }

    /// Whether an event is a list that this one has replaced, or is this one. It is neither wrong nor news: pass it by
    /// before it is checked, since its signer may not be trusted any more.
    pub fn is_past(&self, event: &ControlEvent) -> bool {
        matches!(event.unsigned().body, EventBody::Trust(_)) && event.unsigned().revision <= self.revision
    }

    /// The list after a `trust.changed` event, or the same where it has another body or is past. It is not checked here:
    /// that is for news ([`TrustStore::check_event`]), and what this host itself remembers needs none.
    pub fn after(&self, event: &ControlEvent) -> Result<Self> {
        match &event.unsigned().body {
            EventBody::Trust(trusted) if !self.is_past(event) => {
                let next = Self::new(event.unsigned().revision, trusted)?;
                Ok(Self { limits: self.limits, insecure: self.insecure, ..next })
            }
            _ => Ok(self.clone()),
        }
    }

    /// Whether news from the feed, or from somebody who proposes it, may be carried out: its time, then its signatures.
    pub fn check_event(&self, event: &ControlEvent, now: Micros) -> Result<()> {
        let unsigned = event.unsigned();
        let out_of_time = |detail: String| Err(ControlFeedError::OutOfTime { detail });
        let issued_at = Micros(unsigned.issued_at);
        if issued_at.0 > now.0.saturating_add(micros(self.limits.clock_skew_max)) {
            return out_of_time(format!(
                "it was issued at {issued_at}, and it is {now} here; clocks may differ by control_clock_skew_max"
            ));
        }
        if let Some(end) = unsigned.expires_at.filter(|end| now.0 >= *end) {
            return out_of_time(format!("it expired at {}, and it is {now} here", Micros(end)));
        }
        self.check_signers(event, Some(now))
    }

    /// Whether what a snapshot holds may be restored. An event that has expired since was in time for the fleet.
    pub fn check_kept(&self, event: &ControlEvent) -> Result<()> {
        self.check_signers(event, None)
    }

    fn check_signers(&self, event: &ControlEvent, now: Option<Micros>) -> Result<()> {
        if self.is_past(event) {
            let (revision, known) = (event.unsigned().revision, self.revision);
            let detail =
                format!("it is the list of keys of revision {revision}; the present one has {known}");
            return Err(ControlFeedError::Untrusted { detail });
        }
        let role = match event.unsigned().body {
            EventBody::Trust(_) => KeyRole::Root,
            // Nothing is done for an unknown one. Whoever wants to know whether it is genuine is told of releases.
            EventBody::Plugin { .. } | EventBody::Unknown => KeyRole::Release,
        };
        let (content, issued_at) = (event.signed_bytes(), event.unsigned().issued_at);
        self.check(event.signatures(), Signed { role, context: Context::Event, content, issued_at, now })
    }

    /// Whether a build key vouches for a plugin's component. `issued_at` is that of the event that first named it: the
    /// release says when, so a build key that expired later still counts. A configuration needs none, since the release
    /// names its digest.
    pub fn check_artifact(&self, plugin: &str, artifact: &ArtifactRef, issued_at: i64) -> Result<()> {
        let content = statement(plugin, artifact);
        let signed = Signed { role: KeyRole::Build, context: Context::Build, content, issued_at, now: None };
        self.check(&artifact.signatures, signed).map_err(|error| match error {
            ControlFeedError::Untrusted { detail } => {
                let digest = &artifact.digest;
                ControlFeedError::Untrusted { detail: format!("component {digest} of {plugin}: {detail}") }
            }
            other => other,
        })
    }

    fn check(&self, signatures: &[Signature], signed: Signed) -> Result<()> {
        if self.insecure {
            return Ok(());
        }
        let role = signed.role.as_str();
        let mut reasons = Vec::new();
        for signature in signatures {
            match self.refusal(signature, &signed) {
                None => return Ok(()),
                Some(reason) => reasons.push(format!("{} {reason}", signature.key)),
            }
        }
        let detail = match reasons.as_slice() {
            [] => format!("it is not signed; a {role} key has to"),
            reasons => format!("a {role} key has to sign it: {}", reasons.join(", ")),
        };
        Err(ControlFeedError::Untrusted { detail })
    }

    /// Why a signature does not count.
    fn refusal(&self, signature: &Signature, signed: &Signed) -> Option<String> {
        let Some(Known { key, public }) = self.keys.get(&signature.key) else {
            return Some("is not known here".into());
        };
        if key.revoked {
            return Some("is revoked".into());
        }
        if key.role != signed.role {
            return Some(format!("is a {} key", key.role.as_str()));
        }
        if let Some(end) = key.expires_at {
            if signed.issued_at > end {
                return Some(format!("had expired at {}", Micros(end)));
            }
            let over = end.saturating_add(micros(self.limits.key_grace));
            if signed.now.is_some_and(|now| now.0 > over) {
                return Some(format!("expired at {}, too long ago for news", Micros(end)));
            }
        }
        let verifies = verifies(public, signed.context, &signed.content, signature);
        (!verifies).then(|| "did not sign this content".into())
    }
}

/// What has to be signed, and by whom.
struct Signed {
    role: KeyRole,
    context: Context,
    content: Vec<u8>,
    issued_at: i64,
    now: Option<Micros>,
}

impl ArtifactRef {
    /// With the signature of a build key that this content is a build of this plugin. A signature of the same key is
    /// replaced.
    #[must_use]
    pub fn built_by(mut self, plugin: &str, key: &SigningKey) -> Self {
        let signature = key.sign(Context::Build, &statement(plugin, &self));
        self.signatures.retain(|known| known.key != signature.key);
        self.signatures.push(signature);
        self
    }
}

/// Canonical JSON. The plugin is part of it, so that nobody can deploy one plugin's build as another.
fn statement(plugin: &str, artifact: &ArtifactRef) -> Vec<u8> {
    let statement =
        serde_json::json!({ "bytes": artifact.bytes, "digest": artifact.digest, "plugin": plugin });
    json::canonical(&statement).into_bytes()
}

fn parse_key(json: &Value) -> Result<TrustedKey> {
    const MEMBERS: [&str; 5] = ["public_key", "role", "owner", "expires_at", "revoked"];
    let unknown = |name: &&String| !MEMBERS.contains(&name.as_str());
    let members = json.as_object().ok_or_else(|| unusable("a key is not a JSON object"))?;
    if let Some(name) = members.keys().find(unknown) {
        let name: String = name.chars().take(80).collect();
        return Err(unusable(format!("a key has no member `{name}`; it has {}", MEMBERS.join(", "))));
    }
    TrustedKey::deserialize(json).map_err(unusable)
}

impl std::str::FromStr for TrustedKey {
    type Err = ControlFeedError;

    /// Reads a public key as people give it to each other.
    fn from_str(text: &str) -> Result<Self> {
        let key = parse_key(&json::parse(text).map_err(unusable)?)?;
        check_list(std::slice::from_ref(&key)).map_err(unusable)?;
        Ok(key)
    }
}

/// Whether keys can stand in one list.
pub(super) fn check_list(keys: &[TrustedKey]) -> std::result::Result<(), String> {
    if keys.len() > CONTROL_KEYS_MAX {
        return Err(format!("{} keys; {CONTROL_KEYS_MAX} is the most", keys.len()));
    }
    let mut ids = std::collections::BTreeSet::new();
    for key in keys {
        let Some(id) = key.id() else {
            return Err("a public key is not 32 bytes as base64".into());
        };
        if key.owner.is_empty()
            || key.owner.len() > CONTROL_OWNER_BYTES_MAX
            || key.owner.chars().any(char::is_control)
        {
            let max = CONTROL_OWNER_BYTES_MAX;
            return Err(format!("the owner of {id} is not 1 to {max} bytes without control characters"));
        }
        if !ids.insert(id.clone()) {
            return Err(format!("{id} stands twice; a key has one role"));
        }
    }
    Ok(())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn unusable(detail: impl ToString) -> ControlFeedError {
    ControlFeedError::Settings { setting: "control.trust_file".into(), detail: detail.to_string() }
}
