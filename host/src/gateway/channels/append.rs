//! Appending to a channel. What a client sends is borrowed from its body until a payload is decoded into its own bytes.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::views::{AppendRequest, AppendedList, AppendedView};
use super::who::Asker;
use super::{channel_id, json, said};
use crate::channels::{Append, ChannelError, ChannelLimits, EntryType, NewEntry};
use crate::gateway::Edge;
use crate::gateway::auth::Publisher;
use crate::gateway::body::{BodyLimit, BodyReader};
use crate::gateway::native::Text;
use crate::gateway::params::{Params, cut};
use crate::gateway::problem::Problem;
use crate::limits::{CHANNEL_ENTRY_EXTRA_BYTES, CHANNEL_SEQUENCE_MAX};

/// An entry as clients write it; `AppendRequest` says what its members mean.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireEntry<'a> {
    #[serde(borrow, default)]
    pub(super) sequence: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) inreplyto: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    pub(super) entry_type: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) error: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) payload: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) text: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "given")]
    pub(super) json: Option<&'a RawValue>,
    /// These two are no members: here only to be refused in words that help.
    #[serde(default)]
    pub(super) tenant: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) senderid: Option<IgnoredAny>,
}

/// An entry with the names of its members: serde would take a list of their values as well.
struct Object<'a>(WireEntry<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = WireEntry<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an entry, which is an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                WireEntry::deserialize(MapAccessDeserializer::new(map))
            }
        }

        from.deserialize_map(ObjectVisitor).map(Self)
    }
}

/// `null` is JSON, too.
pub(super) fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Appends an entry, or an array of entries, all or none. Answered when they are kept.
///
/// The sender is the credential's party, the submitter or the executor. The answer says at which position an entry lies;
/// a repeat of the same sequence with the same content answers its first one. What a missing forerunner means depends on
/// the channel: by default the request waits some seconds for it. With `epoch` an executor says in which epoch it
/// believes to be, and is refused in any other.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/channels/{channel}/entries",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("channel" = String, Path, description = "The channel's name"),
        ("epoch" = Option<u32>, Query, description = "The sender's epoch: 0 for the submitter, that of the assignment for an executor; or else the present one"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body(content = AppendRequest, description = "An entry, or an array of them"),
    responses(
        (status = 200, description = "All of it lay there already", body = AppendedView),
        (status = 201, description = "Where the entry lies; of an array, an object with `appended`", content(
            (AppendedView = "application/json"),
            (AppendedList = "application/json"),
        )),
    )
)]
pub(in crate::gateway) async fn append(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    mut params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::take(caller, &mut params)?;
    let epoch = params.number::<u32>("epoch")?;
    params.finish()?;
    let id = channel_id(&asker.caller, &path)?;
    let who = asker.party()?;
    let router = &edge.services.channels;
    // Who sends too much costs no reading of it.
    router.check_rate(&id, &who)?;
    let limit = body_limit(router.limits());
    let body = BodyReader::new(&headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    let sent = Sent::parse(&body, router.limits())?;
    // The payloads have bytes of their own.
    drop(body);
    let (is_array, entries) = match sent {
        Sent::One(entry) => (false, vec![entry]),
        Sent::Array(entries) => (true, entries),
    };
    let append = Append { who, epoch, entries };
    // One that waits for a forerunner ends with its credential. What came of it is open then; sent again under its
    // sequence, it is there once.
    let appended = tokio::select! {
        biased;
        appended = router.append_all(&id, append) => appended?,
        problem = asker.caller.valid.ended() => return Err(problem),
    };
    let is_new = appended.iter().any(|answer| !answer.repeated);
    let code = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut appended: Vec<AppendedView> = appended.into_iter().map(Into::into).collect();
    if is_array {
        return Ok(json(code, &AppendedList { appended }));
    }
    // One entry has one place.
    let one = appended.pop().ok_or_else(|| Problem::new("internal", "nothing was appended"))?;
    Ok(json(code, &one))
}

/// As much as a whole append takes as base64, with the members of its entries.
pub(super) fn body_limit(limits: &ChannelLimits) -> BodyLimit {
    let base64 = limits.batch_bytes_max.div_ceil(3).saturating_mul(4);
    let extra = limits.batch_entries_max.saturating_mul(CHANNEL_ENTRY_EXTRA_BYTES);
    BodyLimit { name: "channel_body_bytes_max", bytes: base64.saturating_add(extra) as u64 }
}

pub(super) enum Sent {
    One(NewEntry),
    Array(Vec<NewEntry>),
}

impl Sent {
    pub(super) fn parse(body: &[u8], limits: &ChannelLimits) -> Result<Self, Problem> {
        let text = std::str::from_utf8(body)
            .map_err(|e| Problem::new("json_malformed", format!("byte {} is not UTF-8", e.valid_up_to())))?;
        match text.trim_ascii_start().as_bytes().first() {
            Some(b'{') => {
                let Object(entry) = serde_json::from_str(text).map_err(|e| malformed(&e))?;
                entry.checked(limits).map(Self::One)
            }
            Some(b'[') => {
                let mut from = serde_json::Deserializer::from_str(text);
                let max = limits.batch_entries_max;
                let parsed = UpTo { max }.deserialize(&mut from);
                let (entries, asked) =
                    parsed.and_then(|all| from.end().map(|()| all)).map_err(|e| malformed(&e))?;
                if asked > max {
                    let (limit, what) = ("channel_batch_entries_max", "entries of one append");
                    let (asked, max) = (asked as u64, max as u64);
                    return Err(ChannelError::Limit { limit, what, asked, max }.into());
                }
                let checked = entries.into_iter().enumerate().map(|(index, entry)| {
                    entry.checked(limits).map_err(|problem| problem.with("index", index.into()))
                });
                checked.collect::<Result<_, _>>().map(Self::Array)
            }
            None => {
                Err(Problem::new("json_malformed", "the body is empty; it is an entry, or an array of them"))
            }
            Some(_) => {
                Err(Problem::new("json_malformed", "the body is neither an entry nor an array of them"))
            }
        }
    }
}

/// What serde says, under the right code: no JSON at all, or JSON that is no entry.
fn malformed(error: &serde_json::Error) -> Problem {
    match error.classify() {
        serde_json::error::Category::Data => Problem::new("channel_entry_invalid", said(error)),
        _ => Problem::new("json_malformed", said(error)),
    }
}

/// Entries of an array up to a bound, and how many there are: millions of empty ones would fit a body.
struct UpTo {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for UpTo {
    type Value = (Vec<WireEntry<'de>>, usize);

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for UpTo {
    type Value = (Vec<WireEntry<'de>>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while entries.len() < self.max {
            match all.next_element()? {
                Some(Object(entry)) => entries.push(entry),
                None => break,
            }
        }
        let mut count = entries.len();
        while count >= self.max && all.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((entries, count))
    }
}

fn invalid(why: impl Into<String>) -> Problem {
    ChannelError::Entry { why: why.into() }.into()
}

impl WireEntry<'_> {
    /// Whether no member is there.
    pub(super) fn is_blank(&self) -> bool {
        let Self { sequence, inreplyto, entry_type, error, payload, text, json, tenant, senderid } = self;
        sequence.is_none()
            && inreplyto.is_none()
            && entry_type.is_none()
            && [error, payload, text].into_iter().all(Option::is_none)
            && json.is_none()
            && tenant.is_none()
            && senderid.is_none()
    }

    pub(super) fn checked(self, limits: &ChannelLimits) -> Result<NewEntry, Problem> {
        if self.tenant.is_some() {
            return Err(Problem::new("tenant_in_body", "the entry has a member `tenant`"));
        }
        if self.senderid.is_some() {
            return Err(invalid("`senderid` comes from the credential; leave it out"));
        }
        let sequence = self.sequence.map(|raw| number("sequence", raw)).transpose()?;
        let in_reply_to = match self.inreplyto {
            None => None,
            Some(raw) if raw.get() == "0" => None,
            Some(raw) => Some(number("inreplyto", raw)?),
        };
        let name = self.entry_type.unwrap_or_default();
        let entry_type = EntryType::parse(&name.0).ok_or_else(|| {
            invalid(format!("type is `{}`; `data`, `end` and `error` are possible", cut(&name.0)))
        })?;
        let payload = match (self.payload, self.text, self.json) {
            (None, None, None) => None,
            (Some(base64), None, None) => Some(decoded(&base64.0, limits.payload_bytes_max)?),
            (None, Some(text), None) => Some(Bytes::copy_from_slice(text.0.as_bytes())),
            (None, None, Some(json)) => Some(Bytes::copy_from_slice(json.get().as_bytes())),
            _ => return Err(invalid("it has more than one of `payload`, `text` and `json`")),
        };
        let error = self.error.filter(|text| !text.0.is_empty()).map(|text| text.0.into_owned().into());
        Ok(NewEntry { sequence, in_reply_to, entry_type, error, payload })
    }
}

/// A sequence: a whole number that every client can count to.
fn number(member: &'static str, raw: &RawValue) -> Result<u64, Problem> {
    let known = raw.get().parse::<u64>().ok();
    known.filter(|number| (1..=CHANNEL_SEQUENCE_MAX).contains(number)).ok_or_else(|| {
        let found = cut(raw.get());
        let detail = format!("`{member}` is {found}; it is a whole number from 1 to {CHANNEL_SEQUENCE_MAX}");
        Problem::new("channel_sequence_invalid", detail)
            .with("member", member.into())
            .with("max", CHANNEL_SEQUENCE_MAX.into())
    })
}

/// Its size is known before room is made for it.
fn decoded(base64: &str, max: usize) -> Result<Bytes, Problem> {
    let padding = base64.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    let bytes = (base64.len() / 4 * 3).saturating_sub(padding);
    if bytes > max {
        return Err(ChannelError::TooLarge { bytes: bytes as u64, max: max as u64 }.into());
    }
    let decoded = STANDARD.decode(base64);
    decoded
        .map(Bytes::from)
        .map_err(|error| invalid(format!("`payload` is not standard base64 with padding: {error}")))
}
