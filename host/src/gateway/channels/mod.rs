//! `/v1/processes…`: pieces of work, their channels, and what lies in these. `/v1/channels/ws`: the same on one socket.
//!
//! Who somebody is comes from the credential: a party is known by the credential's name, inside of its tenant. Making
//! and appending need the right `publish`, reading `read`; the rest is decided by who submitted a process, executes or
//! observes it. Whoever has `admin` sees and changes all of the tenant's processes, and may act in a party's name.

pub(super) mod append;
mod entry_json;
mod follow;
pub(super) mod processes;
pub(super) mod read;
pub(super) mod single;
pub(super) mod socket;
pub(super) mod views;
mod who;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Edge;
use super::auth::Caller;
use super::body::{BodyLimit, BodyReader};
use super::problem::Problem;
use crate::channels::{ChannelError, ChannelId, ChannelName, ProcessId, ProcessName};
use crate::limits::CHANNEL_REQUEST_BYTES_MAX;

/// The caller's own process of that name: another tenant's cannot be named.
fn process_id(caller: &Caller, name: &str) -> Result<ProcessId, Problem> {
    Ok(ProcessId { tenant: caller.tenant.clone(), name: ProcessName::new(name)? })
}

fn channel_id(caller: &Caller, (process, channel): &(String, String)) -> Result<ChannelId, Problem> {
    Ok(ChannelId { process: process_id(caller, process)?, name: ChannelName::new(channel)? })
}

/// The body as a JSON object; none where it is empty.
async fn read_json<T: DeserializeOwned>(
    edge: &Edge,
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<T>, Problem> {
    let limit = BodyLimit { name: "channel_request_bytes_max", bytes: CHANNEL_REQUEST_BYTES_MAX };
    let body = BodyReader::new(headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    let body = body.trim_ascii();
    if body.is_empty() {
        return Ok(None);
    }
    // A list would do for serde as well, without the names.
    if !body.starts_with(b"{") {
        return Err(Problem::new("json_malformed", "the body is not a JSON object"));
    }
    let parsed = serde_json::from_slice(body);
    parsed.map(Some).map_err(|error| Problem::new("json_malformed", format!("the body: {}", said(&error))))
}

/// The same where there must be one.
async fn required_json<T: DeserializeOwned>(
    edge: &Edge,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    let body = read_json(edge, headers, body).await?;
    body.ok_or_else(|| Problem::new("json_malformed", "the body is empty; it is a JSON object"))
}

/// What serde says of a body, short enough to be repeated.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what: String = text.split(" at line ").next().unwrap_or_default().chars().take(300).collect();
    format!("{what} (line {}, column {})", error.line(), error.column())
}

fn json<T: Serialize>(code: StatusCode, view: &T) -> Response {
    (code, [(header::CACHE_CONTROL, "no-store")], axum::Json(view)).into_response()
}

impl From<ChannelError> for Problem {
    fn from(error: ChannelError) -> Self {
        let told = |error: &ChannelError| Self::classified(error);
        match error {
            ChannelError::Backend(inner) => inner.into(),
            ChannelError::Limit { limit, asked, max, .. } => told(&error).limit(limit, asked, max),
            ChannelError::TooLarge { bytes, max } => {
                told(&error).limit("channel_payload_bytes_max", bytes, max)
            }
            ChannelError::TooManyChannels { max } => told(&error).limit("channels_max", max + 1, max),
            ChannelError::Full { entries, bytes, entries_max, bytes_max, .. } => told(&error)
                .with("entries", entries.into())
                .with("bytes", bytes.into())
                .with("entries_max", entries_max.into())
                .with("bytes_max", bytes_max.into()),
            ChannelError::RateLimited { burst, rate, .. } => {
                told(&error).with("burst", burst.into()).with("rate", rate.into())
            }
            ChannelError::Gap { epoch, sequence, expected, .. } => told(&error)
                .with("epoch", epoch.into())
                .with("sequence", sequence.into())
                .with("expected", expected.into()),
            ChannelError::SequenceTaken { epoch, sequence, position, .. } => told(&error)
                .with("epoch", epoch.into())
                .with("sequence", sequence.into())
                .with("position", position.0.into()),
            ChannelError::SequenceForgotten { epoch, sequence, .. } => {
                told(&error).with("epoch", epoch.into()).with("sequence", sequence.into())
            }
            ChannelError::ReplyUnknown { sequence } => told(&error).with("inreplyto", sequence.into()),
            ChannelError::HalfClosed { epoch, by, .. } => {
                told(&error).with("epoch", epoch.into()).with("ended_by", by.into())
            }
            ChannelError::Revoked { epoch, now, .. } => {
                told(&error).with("epoch", epoch.into()).with("now", now.into())
            }
            ChannelError::Option { option, .. } => told(&error).with("option", option.into()),
            _ => told(&error),
        }
    }
}
