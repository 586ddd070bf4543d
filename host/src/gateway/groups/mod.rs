//! `/v1/streams/{stream}/groups…`: groups of consumers.
//!
//! Making and reading a group needs the right `read`, like reading the stream itself. What takes something away
//! from all of its consumers (removing it, moving it, deciding about dead letters) needs `admin`.

pub(super) mod consume;
pub(super) mod letters;
pub(super) mod views;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Edge;
use super::auth::{Admin, Caller, Reader};
use super::body::{BodyLimit, BodyReader};
use super::params::{self, Params};
use super::problem::Problem;
use crate::event::Epoch;
use crate::limits::GROUP_BODY_BYTES_MAX;
use crate::streams::groups::{GroupChange, GroupError, GroupId, GroupName, GroupStart};
use crate::streams::{ChangeRequest, ChangeStream, StreamError, StreamName};
use views::{GroupList, GroupRequest, GroupView, SeekRequest};

/// The tenant's groups on a stream.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/groups",
    tag = "groups",
    params(("stream" = String, Path, description = "`events`, or any other stream's name")),
    responses((status = 200, description = "The groups, by name", body = GroupList))
)]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(stream): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let stream = admit(&edge, &caller, &stream)?;
    let groups = edge.services.groups.list(&caller.tenant, &stream).await?;
    let (epoch, now) = (edge.services.log.epoch(), edge.services.clock.now());
    let groups = groups.into_iter().map(|status| GroupView::of(status, &epoch, now)).collect();
    Ok(json(&GroupList { groups }))
}

/// Makes a group, unless it is there, and changes the options that are named. Where it stands does not change.
#[utoipa::path(
    put,
    path = "/v1/streams/{stream}/groups/{group}",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "1 to 64 letters, digits, `.`, `_` and `-`"),
    ),
    request_body(content = GroupRequest, description = "May be left out"),
    responses(
        (status = 200, description = "It was there", body = GroupView),
        (status = 201, description = "It is new", body = GroupView),
    )
)]
pub(super) async fn ensure(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let group = group(&edge, &caller, path)?;
    let wanted: GroupRequest = read_body(&edge, &headers, body).await?.unwrap_or_default();
    let epoch = edge.services.log.epoch();
    let start = wanted.from.as_deref().map_or(Ok(GroupStart::Oldest), |from| start(from, &epoch))?;
    let change = GroupChange {
        lease_ms: wanted.lease_ms,
        attempts_max: wanted.attempts_max,
        backoff_ms_min: wanted.backoff_ms_min,
        backoff_ms_max: wanted.backoff_ms_max,
        on_lost: wanted.on_lost,
    };
    let (status, created) =
        edge.services.groups.ensure(&group, start, change).await.map_err(|error| told(error, &epoch))?;
    let view = GroupView::of(status, &epoch, edge.services.clock.now());
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((code, json(&view)).into_response())
}

/// How a group stands: lag, what is in flight, what was lost.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/groups/{group}",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    responses((status = 200, description = "The group", body = GroupView))
)]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let status = edge.services.groups.status(&group(&edge, &caller, path)?).await?;
    Ok(json(&GroupView::of(status, &edge.services.log.epoch(), edge.services.clock.now())))
}

/// Removes a group, with its place and its dead letters.
#[utoipa::path(
    delete,
    path = "/v1/streams/{stream}/groups/{group}",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    responses((status = 204, description = "It is gone"))
)]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(path): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let group = group(&edge, &caller, path)?;
    edge.services.groups.remove(&group).await?;
    tracing::info!(by = %caller.name, group = %group, tenant = %group.tenant, "group removed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Moves a group, forward or back, and lets one go on that has stopped. Receipts of before are good for nothing then.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/seek",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    request_body = SeekRequest,
    responses((status = 200, description = "The group", body = GroupView))
)]
pub(super) async fn seek(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let group = group(&edge, &caller, path)?;
    let SeekRequest { to } = required(read_body(&edge, &headers, body).await?)?;
    let epoch = edge.services.log.epoch();
    let to = start(&to, &epoch)?;
    let status = edge.services.groups.seek(&group, to).await.map_err(|error| told(error, &epoch))?;
    tracing::info!(by = %caller.name, group = %group, tenant = %group.tenant, "group moved");
    Ok(json(&GroupView::of(status, &epoch, edge.services.clock.now())))
}

/// The caller's own group of that name: another tenant's cannot be named. Who may not follow a change stream has no
/// group on it.
fn group(edge: &Edge, caller: &Caller, (stream, name): (String, String)) -> Result<GroupId, Problem> {
    let stream = admit(edge, caller, &stream)?;
    Ok(GroupId { tenant: caller.tenant.clone(), stream, name: GroupName::new(&name)? })
}

/// The stream's own name: a change stream may be asked for by others, too.
fn admit(edge: &Edge, caller: &Caller, stream: &str) -> Result<Arc<str>, Problem> {
    let Ok(StreamName::Changes(changes)) = stream.parse() else { return Ok(stream.into()) };
    let ChangeStream { aggregate, scope, id } = &changes;
    let found = edge.services.hub.resolve(&caller.tenant, &ChangeRequest { aggregate, scope, id })?;
    Ok(found.to_string().into())
}

fn start(text: &str, epoch: &Epoch) -> Result<GroupStart, Problem> {
    match text {
        "oldest" => Ok(GroupStart::Oldest),
        "newest" => Ok(GroupStart::Newest),
        cursor => params::cursor(cursor, epoch).map(GroupStart::After),
    }
}

/// An error about a position, with the cursor to go on from.
fn told(error: GroupError, epoch: &Epoch) -> Problem {
    let cursor = match &error {
        GroupError::Stream(StreamError::PositionLost { trimmed, .. }) => Some(("oldest", *trimmed)),
        GroupError::Stream(StreamError::PositionAhead { newest, .. }) => Some(("newest", *newest)),
        GroupError::PositionLost { until, .. } => Some(("lost_until", *until)),
        _ => None,
    };
    let problem = Problem::from(error);
    match cursor {
        Some((name, position)) => problem.with(name, format!("{}.{position}", epoch.0).into()),
        None => problem,
    }
}

/// The body as JSON; none where it is empty.
async fn read_body<T: DeserializeOwned>(
    edge: &Edge,
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<T>, Problem> {
    let limit = BodyLimit { name: "group_body_bytes_max", bytes: GROUP_BODY_BYTES_MAX };
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
    parsed.map(Some).map_err(|e| Problem::new("json_malformed", format!("the body: {e}")))
}

fn required<T>(body: Option<T>) -> Result<T, Problem> {
    body.ok_or_else(|| Problem::new("json_malformed", "the body is empty; it is a JSON object"))
}

fn json<T: Serialize>(view: &T) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(view)).into_response()
}

/// JSON that was written by hand.
fn as_json(out: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], out).into_response()
}

impl From<GroupError> for Problem {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Stream(inner) => inner.into(),
            GroupError::Backend(inner) => inner.into(),
            GroupError::Limit { limit, asked, max, .. } => Self::classified(&error).limit(limit, asked, max),
            GroupError::Option { option, asked, min, max } => Self::classified(&error)
                .with("option", option.into())
                .with("asked", asked.into())
                .with("min", min.into())
                .with("max", max.into()),
            GroupError::PositionLost { events, .. } => {
                Self::classified(&error).with("lost_events", events.into())
            }
            _ => Self::classified(&error),
        }
    }
}
