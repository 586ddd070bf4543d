//! What clients say on a WebSocket, and what they are answered.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::shell::{Anchor, Ask, Fault, Text, WsProtocol};
use crate::limits::NAME_BYTES_MAX;
use crate::live::Batch;

/// A message of a client, with the subscription that it is about.
#[derive(Debug)]
pub struct Request {
    /// Empty in the protocol with one subscription.
    pub id: String,
    pub command: Command,
}

#[derive(Debug)]
pub enum Command {
    Subscribe(Ask),
    Reanchor(Anchor),
    Unsubscribe,
    Ping { nonce: Option<String> },
    Auth { token: String },
}

/// Every field that any action has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    action: String,
    id: Option<String>,
    query: Option<Box<RawValue>>,
    resume: Option<String>,
    cursor: Option<Box<RawValue>>,
    limit: Option<i64>,
    nonce: Option<String>,
    token: Option<String>,
}

impl Request {
    /// Reads a message. A refusal says which subscription it was about, as far as that could be told.
    pub fn parse(text: &str, protocol: WsProtocol) -> Result<Self, (Option<String>, Fault)> {
        let fields: Fields = serde_json::from_str(text).map_err(|error| (None, unreadable(text, &error)))?;
        let about = fields.id.clone().filter(|id| id.len() <= NAME_BYTES_MAX);
        Self::read(fields, protocol).map_err(|fault| (about, fault))
    }

    fn read(mut fields: Fields, protocol: WsProtocol) -> Result<Self, Fault> {
        let action = std::mem::take(&mut fields.action);
        let several = protocol == WsProtocol::Multi;
        let (possible, with_id): (&[&str], bool) = match action.as_str() {
            "subscribe" => (&["query", "resume"], several),
            "reanchor" => (&["cursor", "limit"], several),
            "unsubscribe" => (&[], several),
            "ping" if several => (&["nonce"], false),
            "auth" if several => (&["token"], false),
            _ => return Err(unknown(&action, protocol)),
        };
        if let Some(field) = fields.present().find(|field| !possible.contains(field) && *field != "id") {
            return Err(invalid(format!("`{field}` does not belong to `{action}`")));
        }
        let id = match (fields.id, with_id) {
            (None, false) => String::new(),
            (Some(_), false) => return Err(invalid(format!("`id` does not belong to `{action}` here"))),
            (Some(id), true) if !id.is_empty() => short("id", id)?,
            (_, true) => return Err(invalid(format!("`{action}` needs an `id`"))),
        };
        let missing = |field: &str| invalid(format!("`{action}` needs `{field}`"));
        let command = match action.as_str() {
            "subscribe" => Command::Subscribe(Ask {
                query: fields.query.ok_or_else(|| missing("query"))?,
                resume: fields.resume.filter(|token| !token.is_empty()),
            }),
            "reanchor" => Command::Reanchor(Anchor { cursor: fields.cursor, limit: fields.limit }),
            "unsubscribe" => Command::Unsubscribe,
            "ping" => Command::Ping { nonce: fields.nonce.map(|nonce| short("nonce", nonce)).transpose()? },
            _ => Command::Auth { token: fields.token.ok_or_else(|| missing("token"))? },
        };
        Ok(Self { id, command })
    }
}

impl Fields {
    fn present(&self) -> impl Iterator<Item = &'static str> {
        [
            ("id", self.id.is_some()),
            ("query", self.query.is_some()),
            ("resume", self.resume.is_some()),
            ("cursor", self.cursor.is_some()),
            ("limit", self.limit.is_some()),
            ("nonce", self.nonce.is_some()),
            ("token", self.token.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
    }
}

/// Not JSON at all, or JSON that is no command.
fn unreadable(text: &str, error: &serde_json::Error) -> Fault {
    let no_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_err();
    if no_json {
        return Fault::new("json_malformed", format!("the message is not JSON: {error}"));
    }
    let detail: String = error.to_string().chars().take(200).collect();
    invalid(format!("the message is not a command: {detail}"))
}

fn unknown(action: &str, protocol: WsProtocol) -> Fault {
    let action: String = action.chars().take(80).collect();
    let possible = match protocol {
        WsProtocol::Single => "subscribe, reanchor and unsubscribe",
        WsProtocol::Multi => "subscribe, reanchor, unsubscribe, ping and auth",
    };
    Fault::new("action_unknown", format!("there is no action `{action}` here; there are {possible}"))
}

fn invalid(detail: String) -> Fault {
    Fault::new("command_invalid", detail)
}

/// It is repeated in answers, and kept.
fn short(name: &str, value: String) -> Result<String, Fault> {
    if value.len() <= NAME_BYTES_MAX {
        return Ok(value);
    }
    let detail = format!("`{name}` has {} bytes; name_bytes_max is {NAME_BYTES_MAX}", value.len());
    Err(Fault::new("name_bytes_max", detail))
}

/// `subscribed`, `reanchored`, `unsubscribed`.
pub(super) fn acknowledged(kind: &'static str, id: &str) -> Text {
    text(&json!({"type": kind, "id": id}))
}

pub(super) fn pong(nonce: Option<&str>) -> Text {
    text(&match nonce {
        Some(nonce) => json!({"type": "pong", "nonce": nonce}),
        None => json!({"type": "pong"}),
    })
}

pub(super) fn authenticated() -> Text {
    text(&json!({"type": "authenticated"}))
}

/// What was refused, or why something ends.
pub(super) fn refused(id: Option<&str>, fault: &Fault, protocol: WsProtocol) -> Text {
    let mut frame = fault.frame(fault.retry_ms());
    if protocol == WsProtocol::Multi
        && let Some(object) = frame.as_object_mut()
    {
        object.remove("op");
        object.insert("type".into(), "error".into());
        if let Some(id) = id {
            object.insert("id".into(), id.into());
        }
    }
    text(&frame)
}

/// How the batches of a subscription begin.
pub(super) fn batch_head(id: &str) -> Bytes {
    format!("{{\"type\":\"batch\",\"id\":{},\"deltas\":[", json!(id)).into()
}

/// All frames of a batch in one message.
pub(super) fn batch(head: &Bytes, batch: &Batch) -> Text {
    Text([head.clone(), batch.list(), Bytes::from_static(b"]}")])
}

fn text(json: &serde_json::Value) -> Text {
    Text::whole(json.to_string())
}
