//! What clients say on a socket of channels, as text.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::channels::{ChannelLimits, EntryType, NewEntry, Place};
use crate::gateway::channels::append::{Sent, WireEntry, given};
use crate::gateway::native::Text;
use crate::gateway::params::cut;
use crate::gateway::problem::Problem;
use crate::limits::{CHANNEL_CREDIT, CHANNEL_CREDIT_MAX, CHANNEL_SOCKET_ID_BYTES_MAX};

/// A command that cannot be obeyed, and what it was about as far as that could be told.
pub(super) type Refused = (About, Problem);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum About {
    Nothing,
    Subscription(String),
    Append(Reference),
}

/// What a client calls an append: it is repeated as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Reference {
    Number(u64),
    Text(String),
}

#[derive(Debug)]
pub(super) enum Command<'a> {
    Subscribe(Subscribe),
    Credit { id: String, add: u64 },
    Unsubscribe { id: String },
    Append(Appending<'a>),
    Ping { nonce: Option<String> },
}

#[derive(Debug)]
pub(super) struct Subscribe {
    pub(super) id: String,
    pub(super) process: String,
    pub(super) channel: String,
    pub(super) after: Place,
    pub(super) credit: u64,
    pub(super) party: Option<String>,
    pub(super) binary: bool,
}

#[derive(Debug)]
pub(super) struct Appending<'a> {
    pub(super) reference: Reference,
    pub(super) process: Cow<'a, str>,
    pub(super) channel: Cow<'a, str>,
    pub(super) party: Option<Cow<'a, str>>,
    pub(super) epoch: Option<u32>,
    pub(super) entries: Vec<NewEntry>,
}

/// Where an append was to go that is not to be read whole.
#[derive(Debug, Deserialize)]
pub(super) struct Target<'a> {
    #[serde(borrow)]
    pub(super) process: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) channel: Cow<'a, str>,
    #[serde(borrow, rename = "as")]
    pub(super) party: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    pub(super) entry_type: Option<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    pub(super) fn of_text(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Whether it was one entry that would have closed its half.
    pub(super) fn closes(&self) -> bool {
        self.entry_type.as_deref().and_then(EntryType::parse).is_some_and(EntryType::closes)
    }
}

/// What a command is, and what it is about; the rest is read once that is known.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    op: Option<Cow<'a, str>>,
    id: Option<String>,
    #[serde(rename = "ref")]
    reference: Option<Reference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeFields {
    #[serde(rename = "op")]
    _op: IgnoredAny,
    #[serde(rename = "id")]
    _id: IgnoredAny,
    process: String,
    channel: String,
    after: Option<After>,
    credit: Option<u64>,
    #[serde(rename = "as")]
    party: Option<String>,
    binary: Option<bool>,
}

/// A cursor as the host gave it, or a position of which nobody can tell whether it is of another process.
#[derive(Deserialize)]
#[serde(untagged)]
enum After {
    Position(u64),
    Cursor(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreditFields {
    #[serde(rename = "op")]
    _op: IgnoredAny,
    #[serde(rename = "id")]
    _id: IgnoredAny,
    add: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdFields {
    #[serde(rename = "op")]
    _op: IgnoredAny,
    #[serde(rename = "id")]
    _id: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PingFields {
    #[serde(rename = "op")]
    _op: IgnoredAny,
    nonce: Option<String>,
}

/// An append: several entries, or the members of one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppendFields<'a> {
    #[serde(rename = "op")]
    _op: IgnoredAny,
    #[serde(rename = "ref")]
    _reference: IgnoredAny,
    process: String,
    channel: String,
    #[serde(rename = "as")]
    party: Option<String>,
    epoch: Option<u32>,
    #[serde(borrow, default, deserialize_with = "given")]
    entries: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    inreplyto: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    entry_type: Option<Text<'a>>,
    #[serde(borrow)]
    error: Option<Text<'a>>,
    #[serde(borrow)]
    payload: Option<Text<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "given")]
    json: Option<&'a RawValue>,
    tenant: Option<IgnoredAny>,
    senderid: Option<IgnoredAny>,
}

/// Reads a message of a client.
pub(super) fn read(text: &str, limits: &ChannelLimits) -> Result<Command<'static>, Refused> {
    let head: Head<'_> = parsed(text).map_err(|problem| (About::Nothing, problem))?;
    let fits = |text: &str| text.len() <= CHANNEL_SOCKET_ID_BYTES_MAX;
    let appends = head.op.as_deref() == Some("append");
    let about = match (&head.id, &head.reference) {
        (_, Some(Reference::Text(text))) if appends && !fits(text) => About::Nothing,
        (_, Some(reference)) if appends => About::Append(reference.clone()),
        (Some(id), _) if !appends && fits(id) => About::Subscription(id.clone()),
        _ => About::Nothing,
    };
    command(text, head, limits).map_err(|problem| (about, problem))
}

fn command(text: &str, head: Head<'_>, limits: &ChannelLimits) -> Result<Command<'static>, Problem> {
    let id = || {
        let id = head.id.filter(|id| !id.is_empty());
        short("id", id.ok_or_else(|| invalid("the command needs an `id`"))?)
    };
    match head.op.as_deref() {
        Some("subscribe") => {
            let fields: SubscribeFields = parsed(text)?;
            Ok(Command::Subscribe(Subscribe {
                id: id()?,
                process: fields.process,
                channel: fields.channel,
                after: fields.after.map_or(Ok(Place::START), place)?,
                credit: within(fields.credit.unwrap_or(CHANNEL_CREDIT))?,
                party: fields.party,
                binary: fields.binary.unwrap_or(false),
            }))
        }
        Some("credit") => {
            let CreditFields { add, .. } = parsed(text)?;
            Ok(Command::Credit { id: id()?, add: within(add)? })
        }
        Some("unsubscribe") => {
            let IdFields { .. } = parsed(text)?;
            Ok(Command::Unsubscribe { id: id()? })
        }
        Some("append") => {
            let reference = match head.reference {
                None => return Err(invalid("`append` needs a `ref`")),
                Some(Reference::Text(text)) => Reference::Text(short("ref", text)?),
                Some(number) => number,
            };
            append(reference, parsed(text)?, limits).map(Command::Append)
        }
        Some("ping") => {
            let PingFields { nonce, .. } = parsed(text)?;
            Ok(Command::Ping { nonce: nonce.map(|nonce| short("nonce", nonce)).transpose()? })
        }
        Some(op) => {
            let possible = "subscribe, credit, unsubscribe, append and ping";
            let detail = format!("there is no op `{}` here; there are {possible}", cut(op));
            Err(Problem::new("action_unknown", detail))
        }
        None => Err(invalid("the command has no `op`")),
    }
}

fn place(after: After) -> Result<Place, Problem> {
    match after {
        After::Position(position) => Ok(position.into()),
        After::Cursor(text) => Place::parse(&text).ok_or_else(|| {
            Problem::new("cursor_invalid", format!("`after` is `{}`, which is no cursor", cut(&text)))
        }),
    }
}

fn append(
    reference: Reference,
    fields: AppendFields<'_>,
    limits: &ChannelLimits,
) -> Result<Appending<'static>, Problem> {
    let AppendFields { entries, sequence, inreplyto, entry_type, error, payload, text, json, .. } = fields;
    let (tenant, senderid) = (fields.tenant, fields.senderid);
    let one = WireEntry { sequence, inreplyto, entry_type, error, payload, text, json, tenant, senderid };
    let entries = match entries {
        None => vec![one.checked(limits)?],
        Some(_) if !one.is_blank() => {
            return Err(invalid("`append` has `entries`, and members of one entry beside them"));
        }
        Some(entries) => {
            let text = entries.get();
            let sent = text.starts_with('[').then(|| Sent::parse(text.as_bytes(), limits)).transpose()?;
            let Some(Sent::Array(entries)) = sent else { return Err(invalid("`entries` is an array")) };
            entries
        }
    };
    Ok(Appending {
        reference,
        process: fields.process.into(),
        channel: fields.channel.into(),
        party: fields.party.map(Into::into),
        epoch: fields.epoch,
        entries,
    })
}

/// Not JSON at all, or JSON that is no command.
fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Problem> {
    // A list would do for serde as well, without the names.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => invalid("the message is not a JSON object"),
            Err(error) => Problem::new("json_malformed", format!("the message is not JSON: {error}")),
        });
    }
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            invalid(format!("the message is not a command: {}", cut(&error.to_string())))
        }
        _ => Problem::new("json_malformed", format!("the message is not JSON: {error}")),
    })
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new("command_invalid", detail)
}

/// It is repeated in answers, and kept.
fn short(name: &str, value: String) -> Result<String, Problem> {
    let (bytes, max) = (value.len(), CHANNEL_SOCKET_ID_BYTES_MAX);
    if bytes <= max {
        return Ok(value);
    }
    let problem = invalid(format!("`{name}` has {bytes} bytes; channel_socket_id_bytes_max is {max}"));
    Err(problem.limit("channel_socket_id_bytes_max", bytes as u64, max as u64))
}

fn within(credit: u64) -> Result<u64, Problem> {
    if credit <= CHANNEL_CREDIT_MAX { Ok(credit) } else { Err(too_much_credit(credit)) }
}

pub(super) fn too_much_credit(asked: u64) -> Problem {
    let detail = format!("the credit would be {asked}; channel_credit_max is {CHANNEL_CREDIT_MAX}");
    Problem::new("channel_credit_max", detail).limit("channel_credit_max", asked, CHANNEL_CREDIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: [&str; 7] = [
        r#"{"op":"subscribe","id":"a","process":"p","channel":"c","after":7,"credit":9,"as":"x","binary":true}"#,
        r#"{"op":"credit","id":"a","add":3}"#,
        r#"{"op":"unsubscribe","id":"a"}"#,
        r#"{"op":"append","ref":"r","process":"p","channel":"c","as":"x","epoch":2,"sequence":1,"inreplyto":4,"type":"error","error":"e","payload":"aGk="}"#,
        r#"{"op":"append","ref":1,"process":"p","channel":"c","entries":[{"json":{"a":[1]}},{"text":"b"}]}"#,
        r#"{"op":"ping","nonce":"n"}"#,
        r#"{"op":"subscribe","id":"a","process":"p","channel":"c","after":"ab.7"}"#,
    ];

    fn code_of(text: &str) -> Option<&'static str> {
        read(text, &ChannelLimits::default()).err().map(|(_, problem)| problem.code())
    }

    #[test]
    fn commands_are_read_whole() {
        for text in COMMANDS {
            assert_eq!(code_of(text), None, "{text}");
        }
        let Ok(Command::Append(append)) = read(COMMANDS[3], &ChannelLimits::default()) else {
            panic!("it is an append")
        };
        let entry = &append.entries[0];
        assert_eq!((append.epoch, entry.sequence, entry.in_reply_to), (Some(2), Some(1), Some(4)));
        assert_eq!((entry.error.as_deref(), entry.payload.as_deref()), (Some("e"), Some(b"hi".as_slice())));
    }

    #[test]
    fn any_text_is_read_or_refused_under_a_code_of_its_own() {
        let possible = [
            "json_malformed",
            "command_invalid",
            "action_unknown",
            "channel_credit_max",
            "cursor_invalid",
            "channel_entry_invalid",
            "channel_sequence_invalid",
        ];
        let check = |text: &str| {
            if let Some(code) = code_of(text) {
                assert!(possible.contains(&code), "{code}: {text}");
            }
        };
        for command in COMMANDS {
            for at in 0..command.len() {
                check(&command[..at]);
                assert!(code_of(&command[..at]).is_some(), "a part is no command: {}", &command[..at]);
                for other in "\"\\{}[]:,-0.eé\0 \u{7f}".chars() {
                    let changed = format!("{}{other}{}", &command[..at], &command[at + 1..]);
                    check(&changed);
                    check(&format!("{}{other}{}", &command[..at], &command[at..]));
                }
            }
        }
    }
}
