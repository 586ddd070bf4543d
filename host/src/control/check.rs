//! What can be said of an event without keys and state. Whoever makes one and whoever takes one ask the same.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::rollout::{Progress, RolloutState};
use super::wire::invalid;
use super::{
    ArtifactRef, ControlFeedError, Desired, EventBody, EventId, Kind, PluginSpec, Result, RunState,
    Signature, UnsignedEvent, trust,
};
use crate::limits::{
    COMPONENT_BYTES_MAX, CONTROL_ACTOR_BYTES_MAX, CONTROL_CONFIG_BYTES_MAX, CONTROL_KIND_BYTES_MAX,
    CONTROL_LABEL_BYTES_MAX, CONTROL_LABELS_MAX, CONTROL_REASON_BYTES_MAX, CONTROL_SIGNATURES_MAX,
    CONTROL_VERSION_BYTES_MAX, CONTROL_WORLD_BYTES_MAX, LANES_MAX,
};
use crate::plugins::{Manifest, PluginSettings};

const LIMITS: [&str; 4] = ["memory_bytes_max", "call_ms_max", "state_bytes_max", "lanes"];
const GRANTS: [&str; 5] = ["grants", "env", "http_hosts", "read_dir", "channels"];

/// Whether a text is `sha256:` and 64 lower-case hexadecimal digits.
pub fn check_digest(digest: &str) -> Result<()> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
        return Ok(());
    }
    Err(ControlFeedError::InvalidDigest { digest: digest.chars().take(80).collect() })
}

impl PluginSpec {
    /// Its limits and grants as the settings of a plugin; its configuration is an artifact of its own. A member that this
    /// host does not know is an error: a limit that is overlooked does not bound, and a grant is not given.
    pub fn settings(&self) -> Result<PluginSettings> {
        let mut members = Map::new();
        for (what, known, given) in [("limits", &LIMITS[..], &self.limits), ("grants", &GRANTS, &self.grants)]
        {
            for (name, value) in given {
                if !known.contains(&name.as_str()) {
                    let name: String = name.chars().take(80).collect();
                    return Err(invalid(format!("{what}.{name} is none of {}", known.join(", "))));
                }
                members.insert(name.clone(), value.clone());
            }
        }
        let settings = PluginSettings::deserialize(Value::Object(members)).map_err(invalid)?;
        settings.check().map_err(|(key, why)| invalid(format!("{key}: {why}")))?;
        match settings.lanes {
            Some(lanes) if !(1..=LANES_MAX).contains(&lanes) => {
                Err(invalid(format!("lanes is {lanes}, which is not 1 to {LANES_MAX}")))
            }
            _ => Ok(settings),
        }
    }
}

pub(super) fn event(event: &UnsignedEvent) -> Result<()> {
    if event.revision <= event.base_revision {
        let (revision, base) = (event.revision, event.base_revision);
        return Err(invalid(format!("revision {revision} is not above base_revision {base}")));
    }
    if event.issued_at <= 0 {
        return Err(invalid("issued_at is before 1970"));
    }
    if event.expires_at.is_some_and(|expires_at| expires_at <= event.issued_at) {
        return Err(invalid("expires_at is not after issued_at"));
    }
    if event.actor.is_empty() {
        return Err(invalid("actor is empty"));
    }
    text("actor", &event.actor, CONTROL_ACTOR_BYTES_MAX)?;
    if event.reason.len() > CONTROL_REASON_BYTES_MAX {
        return Err(invalid(format!(
            "reason is longer than control_reason_bytes_max: {}",
            event.reason.len()
        )));
    }
    if event.reason.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err(invalid("reason has control characters"));
    }
    match &event.body {
        EventBody::Plugin { plugin, desired } => {
            if !Manifest::is_name(plugin) {
                let plugin: String = plugin.chars().take(80).collect();
                return Err(invalid(format!(
                    "plugin `{plugin}` is not 1 to 62 of a-z, 0-9 and `-`, beginning with a letter"
                )));
            }
            fits_kind(&event.kind, desired)?;
            check_desired(desired)
        }
        EventBody::Trust(trusted) => {
            trust::check_list(&trusted.keys).map_err(invalid)?;
            if !trusted.keys.iter().any(|key| key.is_root_at(event.issued_at)) {
                return Err(invalid("the list has no root key that counts, so nobody could change it again"));
            }
            Ok(())
        }
        EventBody::Unknown => Ok(()),
    }
}

pub(super) fn kind_name(name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_');
    if (1..=CONTROL_KIND_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    let name: String = name.chars().take(80).collect();
    Err(invalid(format!("type `{name}` is not 1 to {CONTROL_KIND_BYTES_MAX} of a-z, 0-9, `.` and `_`")))
}

pub(super) fn signatures(signatures: &[Signature]) -> Result<()> {
    if signatures.len() > CONTROL_SIGNATURES_MAX {
        return Err(invalid(format!(
            "{} signatures; {CONTROL_SIGNATURES_MAX} is the most",
            signatures.len()
        )));
    }
    for (index, signature) in signatures.iter().enumerate() {
        let hex = signature.key.strip_prefix("ed25519:").unwrap_or_default();
        let named = hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
        if !named || STANDARD.decode(&signature.signature).map_or(0, |bytes| bytes.len()) != 64 {
            return Err(invalid("a signature is not a key's id and 64 bytes as base64"));
        }
        if signatures[..index].iter().any(|other| other.key == signature.key) {
            return Err(invalid(format!("{} signs twice", signature.key)));
        }
    }
    Ok(())
}

/// What a kind says must be in the state that comes with it: nothing else would be wrong with one of them alone.
fn fits_kind(kind: &Kind, desired: &Desired) -> Result<()> {
    let wrong = |what: &str| Err(invalid(format!("{kind} {what}")));
    let removed = desired.state == RunState::Removed;
    match kind {
        Kind::Removed if !removed => wrong("has another state than `removed`"),
        Kind::Removed => Ok(()),
        _ if removed => wrong("has state `removed`"),
        Kind::Paused if desired.state != RunState::Paused => wrong("has another state than `paused`"),
        Kind::Resumed if desired.state != RunState::Running => wrong("has another state than `running`"),
        Kind::RolloutAdvanced | Kind::RolloutHalted => match desired.rollout.as_ref().map(|r| r.progress) {
            None => wrong("has no `rollout`"),
            Some(progress) => {
                let fits = match kind {
                    Kind::RolloutHalted => progress == Progress::Halted,
                    _ => matches!(progress, Progress::Running | Progress::Complete),
                };
                if fits { Ok(()) } else { wrong("does not fit the progress of its rollout") }
            }
        },
        // Going back is for all hosts at once.
        Kind::RolledBack if desired.rollout.as_ref().is_some_and(|r| r.progress != Progress::RolledBack) => {
            wrong("has a rollout that is not rolled back")
        }
        _ => Ok(()),
    }
}

fn check_desired(desired: &Desired) -> Result<()> {
    let Desired { state, spec, stable, targets, rollout } = desired;
    match (state, spec) {
        (RunState::Removed, None) => {
            let empty = stable.is_none() && rollout.is_none() && targets.is_empty();
            return if empty { Ok(()) } else { Err(invalid("what is removed has nothing but its state")) };
        }
        (RunState::Removed, Some(_)) => return Err(invalid("what is removed has no `spec`")),
        (_, None) => return Err(invalid("what is not removed has a `spec`")),
        (_, Some(spec)) => check_spec(spec)?,
    }
    if let Some(stable) = stable {
        if rollout.is_none() {
            return Err(invalid("`stable` is what others run in a rollout, and there is no `rollout`"));
        }
        check_spec(stable)?;
    }
    check_labels("targets", targets)?;
    rollout.as_ref().map_or(Ok(()), check_rollout)
}

fn check_spec(spec: &PluginSpec) -> Result<()> {
    text("version", &spec.version, CONTROL_VERSION_BYTES_MAX)?;
    semver::Version::parse(&spec.version)
        .map_err(|_| invalid(format!("version `{}` is not such as 1.2.0", spec.version)))?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'@' | b'.' | b'-' | b'+');
    if !(1..=CONTROL_WORLD_BYTES_MAX).contains(&spec.world.len()) || !spec.world.bytes().all(fits) {
        return Err(invalid("world is not such as millrace:processor@0.1.0"));
    }
    check_artifact("component", &spec.component, COMPONENT_BYTES_MAX as u64)?;
    if let Some(config) = &spec.config {
        check_artifact("config", config, CONTROL_CONFIG_BYTES_MAX)?;
    }
    let begins = match spec.from.strip_prefix("after:") {
        // One spelling of a number: it is compared as a text, too.
        Some(position) => position.parse::<u64>().is_ok_and(|number| number.to_string() == position),
        None => matches!(spec.from.as_str(), "oldest" | "tail"),
    };
    if !begins {
        return Err(invalid("from is none of `oldest`, `tail` and `after:<position>`"));
    }
    spec.settings().map(|_| ())
}

fn check_artifact(what: &str, artifact: &ArtifactRef, bytes_max: u64) -> Result<()> {
    check_digest(&artifact.digest).map_err(|error| invalid(format!("{what}: {error}")))?;
    if !(1..=bytes_max).contains(&artifact.bytes) {
        return Err(invalid(format!("{what} has {} bytes, which is not 1 to {bytes_max}", artifact.bytes)));
    }
    signatures(&artifact.signatures)
}

fn check_rollout(rollout: &RolloutState) -> Result<()> {
    EventId::try_from(rollout.id.clone())?;
    rollout.plan.check()?;
    if !usize::try_from(rollout.wave).is_ok_and(|wave| wave < rollout.plan.waves.len()) {
        return Err(invalid(format!("wave {} of a plan of {}", rollout.wave, rollout.plan.waves.len())));
    }
    Ok(())
}

/// Whether labels can be meant: those of a selector, or a host's own.
pub fn check_labels(what: &str, labels: &BTreeMap<String, String>) -> Result<()> {
    if labels.len() > CONTROL_LABELS_MAX {
        return Err(invalid(format!("{what} are {}; {CONTROL_LABELS_MAX} is the most", labels.len())));
    }
    let fits = |text: &str| {
        (1..=CONTROL_LABEL_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'))
    };
    match labels.iter().find(|(name, value)| !fits(name) || !fits(value)) {
        Some((name, _)) => {
            let name: String = name.chars().take(80).collect();
            Err(invalid(format!(
                "{what}: the name or the value of `{name}` is not 1 to {CONTROL_LABEL_BYTES_MAX} of letters, digits and `._-/`"
            )))
        }
        None => Ok(()),
    }
}

fn text(what: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max || text.chars().any(char::is_control) {
        return Err(invalid(format!("{what} is longer than {bytes_max} bytes or has control characters")));
    }
    Ok(())
}
