//! `/v1/fleet…`: what a fleet should run, what it does run, and changes of that. All of it needs the right `admin`.
//!
//! A change comes as a signed event and goes its way as it is; nothing is signed here. A host that is alone answers
//! `control_no_feed`, and so does one without a sink where it would have to tell something.

mod views;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use self::views::{
    DesiredView, FleetView, FreezeRequest, FreezeView, HostsView, OutboxView, OwnView, PreviewView,
    ProposedView, QuarantineView, ResyncView,
};
use super::Edge;
use super::auth::Admin;
use super::body::{BodyLimit, BodyReader};
use super::params::Params;
use super::problem::Problem;
use crate::control::{ControlFeedError, FleetDesk};
use crate::limits::{CONTROL_EVENT_BYTES_MAX, CONTROL_REASON_BYTES_MAX};

/// Takes a signed change of what the fleet should run.
///
/// The body is the event's JSON, as `millrace fleet` and `millrace rollout` write it. It is durable and on its way to the
/// feed when it is answered; the same event again answers the same.
#[utoipa::path(
    post,
    path = "/v1/fleet/events",
    tag = "fleet",
    request_body(content = Object, content_type = "application/json"),
    responses((status = 202, description = "It will be told", body = ProposedView))
)]
pub(super) async fn propose(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let fleet = fleet(&edge)?;
    let text = event_text(&edge, &headers, body).await?;
    let proposed = fleet.propose(&text).await?;
    if !proposed.repeated {
        tracing::info!(
            by = &*caller.name,
            entity = proposed.entity,
            revision = proposed.revision,
            "a change of the fleet was taken"
        );
    }
    Ok((StatusCode::ACCEPTED, axum::Json(ProposedView::from(proposed))).into_response())
}

/// What the fleet should run: the newest event of each plugin, and of the list of keys.
///
/// At the origin with what waits for the feed. The next change is made of it, on its `revision`.
#[utoipa::path(get, path = "/v1/fleet/desired", tag = "fleet",
    responses((status = 200, description = "All of it", body = DesiredView)))]
pub(super) async fn desired(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(axum::Json(DesiredView::of(fleet(&edge)?.desired().await?)).into_response())
}

/// Who runs what, beside what it should, and what is missing for that.
#[utoipa::path(get, path = "/v1/fleet/status", tag = "fleet",
    responses((status = 200, description = "By plugin and by host", body = FleetView)))]
pub(super) async fn status(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let fleet = fleet(&edge)?;
    let (status, frozen) = (fleet.status().await?, fleet.desired().await?.frozen);
    Ok(axum::Json(FleetView::of(status, frozen)).into_response())
}

/// The hosts that have reported, and how long ago.
#[utoipa::path(get, path = "/v1/fleet/hosts", tag = "fleet",
    responses((status = 200, description = "In the order of their names", body = HostsView)))]
pub(super) async fn hosts(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let hosts = fleet(&edge)?.status().await?.hosts;
    Ok(axum::Json(HostsView { hosts }).into_response())
}

/// Forgets a host that will not come back. One that lives reports again.
#[utoipa::path(delete, path = "/v1/fleet/hosts/{host}", tag = "fleet",
    params(("host" = String, Path, description = "The host's name")),
    responses((status = 204, description = "It is forgotten")))]
pub(super) async fn forget(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(host): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    fleet(&edge)?.forget(&host).await?;
    tracing::info!(by = &*caller.name, host, "a host of the fleet was forgotten");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What this host has set aside of the feed, the newest first.
#[utoipa::path(get, path = "/v1/fleet/quarantine", tag = "fleet",
    responses((status = 200, description = "Events and why", body = QuarantineView)))]
pub(super) async fn quarantine(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let events = fleet(&edge)?.quarantined().await?;
    Ok(axum::Json(QuarantineView::of(events)).into_response())
}

/// What this host has not told yet, and what the feed does not take of it.
#[utoipa::path(get, path = "/v1/fleet/outbox", tag = "fleet",
    responses((status = 200, description = "How much waits, and dead letters", body = OutboxView)))]
pub(super) async fn outbox(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(axum::Json(OutboxView::of(fleet(&edge)?.outbox().await?)).into_response())
}

/// Tries a dead letter of the outbox again.
#[utoipa::path(post, path = "/v1/fleet/outbox/{event}/retry", tag = "fleet",
    params(("event" = String, Path, description = "The event's id")),
    responses((status = 204, description = "It is due")))]
pub(super) async fn retry(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(event): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    fleet(&edge)?.retry(&event).await?;
    tracing::info!(by = &*caller.name, event, "a dead letter of the outbox is tried again");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Gives a dead letter of the outbox up: what was told before it stands again.
#[utoipa::path(post, path = "/v1/fleet/outbox/{event}/discard", tag = "fleet",
    params(("event" = String, Path, description = "The event's id")),
    responses((status = 204, description = "It is gone")))]
pub(super) async fn discard(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(event): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    fleet(&edge)?.discard(&event).await?;
    tracing::info!(by = &*caller.name, event, "a dead letter of the outbox was given up");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Freezes the fleet, or lets it go on. What stops something or takes it back is done in a frozen fleet, too.
#[utoipa::path(post, path = "/v1/fleet/freeze", tag = "fleet",
    request_body = FreezeRequest,
    responses((status = 200, description = "As it stands now", body = FreezeView)))]
pub(super) async fn freeze(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let fleet = fleet(&edge)?;
    let text = event_text(&edge, &headers, body).await?;
    let FreezeRequest { frozen, reason } = serde_json::from_str(&text)
        .map_err(|error| Problem::new("json_malformed", format!("the body: {error}")))?;
    if reason.len() > CONTROL_REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        let detail =
            format!("`reason` is longer than {CONTROL_REASON_BYTES_MAX} bytes or has control characters");
        return Err(Problem::new("json_malformed", detail));
    }
    let freeze = fleet.freeze(&caller.name, frozen.then_some(reason.as_str())).await?;
    tracing::info!(by = &*caller.name, frozen, reason, "the fleet was frozen or let go on");
    Ok(axum::Json(FreezeView { frozen: freeze }).into_response())
}

/// What a change would change on which hosts, without making it.
///
/// The body is an event as `POST /v1/fleet/events` takes it; it need not be signed.
#[utoipa::path(
    post,
    path = "/v1/fleet/preview",
    tag = "fleet",
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "By host", body = PreviewView))
)]
pub(super) async fn preview(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let fleet = fleet(&edge)?;
    let text = event_text(&edge, &headers, body).await?;
    let hosts = fleet.preview(&text).await?;
    Ok(axum::Json(PreviewView { hosts }).into_response())
}

/// Restores what this host should run from the fleet's snapshot, now.
#[utoipa::path(post, path = "/v1/fleet/resync", tag = "fleet",
    responses((status = 200, description = "What changed", body = ResyncView)))]
pub(super) async fn resync(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let restored = fleet(&edge)?.resync().await?;
    tracing::info!(by = &*caller.name, "the state of the fleet was asked for");
    Ok(axum::Json(ResyncView::of(restored)).into_response())
}

/// This host: how far it has read the feed, whether its state is the fleet's, and how far each plugin is.
#[utoipa::path(get, path = "/v1/fleet/self", tag = "fleet",
    responses((status = 200, description = "What it says of itself", body = OwnView)))]
pub(super) async fn own(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(axum::Json(OwnView::of(fleet(&edge)?.own().await?)).into_response())
}

fn fleet(edge: &Edge) -> Result<&FleetDesk, Problem> {
    edge.services.fleet.as_ref().ok_or_else(|| ControlFeedError::NoFeed.into())
}

/// A body of the size of an event.
async fn event_text(edge: &Edge, headers: &HeaderMap, body: Body) -> Result<String, Problem> {
    let limit = BodyLimit { name: "control_event_bytes_max", bytes: CONTROL_EVENT_BYTES_MAX as u64 };
    let bytes = BodyReader::new(headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Problem::new("json_malformed", "the body is not UTF-8"))
}
