//! `/v1/presence/{room}`: who is in a room, as JSON or as it changes; joining, leaving, and saying something.
//!
//! Looking needs the right `read`, joining and speaking `publish`. A room belongs to the credential's tenant. Within it
//! names of members are what clients say: whoever may publish there may use any of them.

mod follow;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::Edge;
use super::auth::{Caller, Publisher, Reader};
use super::body::{BodyLimit, BodyReader};
use super::params::Params;
use super::problem::Problem;
use crate::presence::{Join, Joined, MemberName, PresenceError, RoomId, RoomName};
use follow::Follower;
use views::{JoinRequest, JoinedView, RosterView, SaidView};

/// What the body of a join has besides the state: names, the time, and white space.
const JOIN_EXTRA_BYTES: usize = 1 << 10;

/// Who is in a room: once, or as it changes.
///
/// There is no unknown room: one without members has an empty roster. With `Accept: text/event-stream` the answer
/// begins with a `roster` event and a `ready` event; from then on nothing is missed silently. `join`, `update`, `leave`
/// (with its reason, `left` or `expired`) and `message` follow in one order for everybody, their `sequence` growing. A
/// `gap` event with a `code` says that something was not told of, messages perhaps, and a new `roster` comes behind it.
/// Nothing is kept: whoever reconnects begins with the roster.
#[utoipa::path(
    get,
    path = "/v1/presence/{room}",
    tag = "presence",
    params(("room" = String, Path, description = "1 to 128 bytes without control characters")),
    responses((status = 200, description = "The roster, or the stream", content(
        (RosterView = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(room): Path<String>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let room = room_of(&caller, &room)?;
    let accepted = headers.get_all(header::ACCEPT).iter();
    if accepted.filter_map(|value| value.to_str().ok()).any(|text| text.contains("text/event-stream")) {
        let follower = edge.services.presence.follow(&room).await?;
        return Ok(Follower::new(edge, caller, room, follower).answer());
    }
    let roster = edge.services.presence.roster(&room).await?;
    Ok(views::json(StatusCode::OK, &RosterView::of(&room, &roster)))
}

/// Joins a room, or stays in it: the same request again is the heartbeat.
///
/// A member that is not heard of for `ttl_ms` leaves, with the reason `expired`. A state that is left out stays as it is;
/// another one is told of as an `update`. Who joins gets the roster, where the credential may read it.
#[utoipa::path(
    put,
    path = "/v1/presence/{room}/members/{member}",
    tag = "presence",
    params(
        ("room" = String, Path, description = "1 to 128 bytes without control characters"),
        ("member" = String, Path, description = "1 to 128 bytes without control characters, unique in the room"),
    ),
    request_body(content = JoinRequest, description = "May be left out"),
    responses(
        (status = 200, description = "It stays", body = JoinedView),
        (status = 201, description = "It is new", body = JoinedView),
    )
)]
pub(super) async fn join(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path((room, member)): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let (room, member) = (room_of(&caller, &room)?, MemberName::new(&member)?);
    let limits = edge.services.presence.limits();
    let bytes = (limits.state_bytes_max + JOIN_EXTRA_BYTES) as u64;
    let body =
        read_body(&edge, &headers, body, BodyLimit { name: "presence_state_bytes_max", bytes }).await?;
    let asked = join_request(&body)?;
    let ttl = asked.ttl_ms.map_or(limits.ttl, Duration::from_millis);
    let state = asked.state.map(|state| Bytes::copy_from_slice(state.get().as_bytes()));
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let joined = edge.services.presence.join(&room, &member, Join { state, ttl }).await?;
    let (code, outcome, roster) = match joined {
        Joined::New(roster) => (StatusCode::CREATED, "joined", Some(roster)),
        Joined::Updated { .. } => (StatusCode::OK, "updated", None),
        Joined::Stays => (StatusCode::OK, "stays", None),
    };
    let roster = roster.filter(|_| caller.reads_everything());
    let roster = roster.as_deref().map(|roster| RosterView::of(&room, roster));
    Ok(views::json(code, &JoinedView { member: member.as_str().to_owned(), outcome, ttl_ms, roster }))
}

/// Leaves a room.
#[utoipa::path(
    delete,
    path = "/v1/presence/{room}/members/{member}",
    tag = "presence",
    params(
        ("room" = String, Path, description = "The room"),
        ("member" = String, Path, description = "The member"),
    ),
    responses((status = 204, description = "It has left"))
)]
pub(super) async fn leave(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path((room, member)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (room, member) = (room_of(&caller, &room)?, MemberName::new(&member)?);
    if edge.services.presence.leave(&room, &member).await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let detail = format!("room `{}` has no member `{member}`", room.name);
    Err(Problem::new("presence_member_unknown", detail))
}

/// Says something to everybody who follows the room now. The body is any JSON, and is handed on as it is.
///
/// It is not kept, and not repeated: after an error of the connection it may have been said.
#[utoipa::path(
    post,
    path = "/v1/presence/{room}/messages",
    tag = "presence",
    params(
        ("room" = String, Path, description = "The room"),
        ("from" = Option<String>, Query, description = "The member that says it; it need not be in the room"),
    ),
    request_body(content = Object, description = "Any JSON"),
    responses((status = 200, description = "It was said", body = SaidView))
)]
pub(super) async fn say(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path(room): Path<String>,
    headers: HeaderMap,
    mut params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let from = params.take("from")?.map(|name| MemberName::new(&name)).transpose()?;
    params.finish()?;
    let room = room_of(&caller, &room)?;
    let bytes = edge.services.presence.limits().message_bytes_max as u64;
    let limit = BodyLimit { name: "presence_message_bytes_max", bytes };
    let payload = read_body(&edge, &headers, body, limit).await?;
    serde_json::from_slice::<&RawValue>(&payload).map_err(|error| malformed(&error))?;
    let sequence = edge.services.presence.say(&room, from.as_ref(), payload).await?;
    Ok(views::json(StatusCode::OK, &SaidView { sequence }))
}

/// The caller's own room of that name: another tenant's cannot be named.
fn room_of(caller: &Caller, name: &str) -> Result<RoomId, Problem> {
    Ok(RoomId { tenant: caller.tenant.clone(), name: RoomName::new(name)? })
}

async fn read_body(edge: &Edge, headers: &HeaderMap, body: Body, limit: BodyLimit) -> Result<Bytes, Problem> {
    BodyReader::new(headers, body, edge.options.body_idle_max, limit)?.whole().await
}

fn join_request(body: &[u8]) -> Result<JoinRequest, Problem> {
    let body = body.trim_ascii();
    if body.is_empty() {
        return Ok(JoinRequest::default());
    }
    // A list would do for serde as well, without the names.
    if !body.starts_with(b"{") {
        return Err(Problem::new("json_malformed", "the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new("json_malformed", format!("the body: {error}"))
}

impl From<PresenceError> for Problem {
    fn from(error: PresenceError) -> Self {
        match error {
            PresenceError::Backend(inner) => inner.into(),
            PresenceError::Limit { limit, asked, max, .. } => {
                Self::classified(&error).limit(limit, asked, max)
            }
            PresenceError::Ttl { asked, min, max } => {
                Self::classified(&error).limit("presence_ttl_ms", asked, max).with("min", min.into())
            }
            _ => Self::classified(&error),
        }
    }
}
