//! The JSON form of control events, and the bytes that are signed.
//!
//! These members are the same in every schema version, so that a host can pass by what it does not know: `schema_version`,
//! `must_understand`, `event_id`, `type`, `revision`, `base_revision`, `base_event_id`, `issued_at`, `expires_at`, `actor`,
//! `reason` and `signatures`. `control_version` is the feed's: it is not part of the event.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::times::Time;
use super::{
    ControlEvent, ControlFeedError, ControlVersion, Desired, EventBody, EventId, Kind, Result, Signature,
    Trusted, UnsignedEvent, check, json,
};

/// The only schema version that this host writes, and the last that it knows.
pub const SCHEMA_VERSION: u32 = 1;

/// Room for the control version in the text of an event.
const VERSION_BYTES: usize = 64;

#[derive(Serialize, Deserialize)]
struct Header {
    schema_version: u32,
    #[serde(default)]
    must_understand: bool,
    event_id: EventId,
    #[serde(rename = "type")]
    kind: String,
    revision: u64,
    base_revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_event_id: Option<EventId>,
    issued_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    actor: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plugin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    desired: Option<Desired>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trust: Option<Trusted>,
}

/// An event, and the control version that a feed has written into it.
pub(super) fn parse(text: &str) -> Result<(ControlEvent, Option<ControlVersion>)> {
    let (json, version) = split(text)?;
    Ok((read(json)?, version))
}

/// An event's JSON, and the control version that a feed has written into it.
pub(super) fn split(text: &str) -> Result<(Value, Option<ControlVersion>)> {
    let mut json = json::parse(text)?;
    let version = match json.as_object_mut().and_then(|members| members.remove("control_version")) {
        None | Some(Value::Null) => None,
        Some(version) => {
            Some(ControlVersion(version.as_u64().ok_or_else(|| invalid("control_version is not a number"))?))
        }
    };
    Ok((json, version))
}

/// Takes JSON without doubt that has no control version.
pub(super) fn read(json: Value) -> Result<ControlEvent> {
    if !json.is_object() {
        return Err(invalid("it is not a JSON object"));
    }
    json::check(&json)?;
    json::check_bytes(pretty(&json).len() + VERSION_BYTES)?;
    let header = Header::deserialize(&json).map_err(invalid)?;
    let (kind, body) = body(&header, &json)?;
    let unsigned = UnsignedEvent {
        schema_version: header.schema_version,
        must_understand: header.must_understand,
        event_id: header.event_id,
        kind,
        body,
        revision: header.revision,
        base_revision: header.base_revision,
        base_event_id: header.base_event_id,
        issued_at: header.issued_at.0,
        expires_at: header.expires_at.map(|time| time.0),
        actor: header.actor,
        reason: header.reason,
    };
    check::event(&unsigned)?;
    check::signatures(&header.signatures)?;
    Ok(ControlEvent::from_parts(unsigned, header.signatures, json))
}

/// The id of an event, whatever else is in it.
pub(super) fn id(json: &Value) -> Result<EventId> {
    json::check(json)?;
    json::check_bytes(pretty(json).len() + VERSION_BYTES)?;
    Ok(Header::deserialize(json).map_err(invalid)?.event_id)
}

fn body(header: &Header, json: &Value) -> Result<(Kind, EventBody)> {
    let kind = Kind::from_name(&header.kind);
    let strange = match &kind {
        _ if header.schema_version == 0 => return Err(invalid("schema_version counts from 1")),
        _ if header.schema_version > SCHEMA_VERSION => Some(format!(
            "its schema version is {}, and {SCHEMA_VERSION} is the last that is known",
            header.schema_version
        )),
        Kind::Other(name) => {
            check::kind_name(name)?;
            Some(format!("its kind `{name}` is not known"))
        }
        _ => None,
    };
    match strange {
        Some(detail) if header.must_understand => Err(ControlFeedError::NotUnderstood { detail }),
        Some(_) => Ok((kind, EventBody::Unknown)),
        None => {
            let body = Body::deserialize(json).map_err(invalid)?;
            let body = match (&kind, body) {
                (Kind::TrustChanged, Body { plugin: None, desired: None, trust: Some(trust) }) => {
                    EventBody::Trust(trust)
                }
                (Kind::TrustChanged, _) => {
                    return Err(invalid(format!("{kind} has `trust`, and neither `plugin` nor `desired`")));
                }
                (_, Body { plugin: Some(plugin), desired: Some(desired), trust: None }) => {
                    EventBody::Plugin { plugin, desired }
                }
                _ => return Err(invalid(format!("{kind} has `plugin` and `desired`, and no `trust`"))),
            };
            Ok((kind, body))
        }
    }
}

/// The JSON of an event that has no signature yet.
pub(super) fn write(event: &UnsignedEvent) -> Result<Value> {
    let header = Header {
        schema_version: event.schema_version,
        must_understand: event.must_understand,
        event_id: event.event_id.clone(),
        kind: event.kind.as_str().to_owned(),
        revision: event.revision,
        base_revision: event.base_revision,
        base_event_id: event.base_event_id.clone(),
        issued_at: Time(event.issued_at),
        expires_at: event.expires_at.map(Time),
        actor: event.actor.clone(),
        reason: event.reason.clone(),
        signatures: Vec::new(),
    };
    let body = match &event.body {
        EventBody::Plugin { plugin, desired } => {
            Body { plugin: Some(plugin.clone()), desired: Some(desired.clone()), trust: None }
        }
        EventBody::Trust(trust) => Body { plugin: None, desired: None, trust: Some(trust.clone()) },
        EventBody::Unknown => return Err(invalid("an event of an unknown kind can only be carried")),
    };
    let mut json = serde_json::to_value(header).map_err(invalid)?;
    if let (Some(json), Value::Object(body)) =
        (json.as_object_mut(), serde_json::to_value(body).map_err(invalid)?)
    {
        json.extend(body);
    }
    Ok(json)
}

/// The same event with these signatures. Members of those that stay which this host does not know stay, too.
pub(super) fn with_signatures(json: &Value, signatures: &[Signature]) -> Result<Value> {
    let members = json.as_object().ok_or_else(|| invalid("it is not a JSON object"))?;
    let before = members.get("signatures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let kept = |signature: &Signature| {
        before.iter().find(|known| Signature::deserialize(*known).is_ok_and(|known| known == *signature))
    };
    let written = |signature: &Signature| match kept(signature) {
        Some(known) => Ok(known.clone()),
        None => serde_json::to_value(signature).map_err(invalid),
    };
    let signatures: Vec<Value> = signatures.iter().map(written).collect::<Result<_>>()?;
    let mut members = members.clone();
    members.insert("signatures".into(), signatures.into());
    Ok(members.into())
}

/// Canonical, so that what is signed does not depend on who wrote it down.
pub(super) fn signed_bytes(json: &Value) -> Vec<u8> {
    let signed: Map<String, Value> = json
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !matches!(name.as_str(), "signatures" | "control_version"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    json::canonical(&signed.into()).into_bytes()
}

pub(super) fn digest_text(bytes: &[u8]) -> String {
    hex_digest(&Sha256::digest(bytes))
}

pub(super) fn hex_digest(digest: &[u8]) -> String {
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

pub(super) fn pretty(json: &Value) -> String {
    format!("{json:#}")
}

pub(super) fn pretty_at(json: &Value, version: ControlVersion) -> String {
    let mut json = json.clone();
    if let Some(members) = json.as_object_mut() {
        members.insert("control_version".into(), version.0.into());
    }
    pretty(&json)
}

pub(super) fn invalid(detail: impl ToString) -> ControlFeedError {
    ControlFeedError::InvalidEvent { detail: detail.to_string() }
}
