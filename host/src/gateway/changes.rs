//! `GET /v1/changes/{aggregate}/{scope}/{id}`: what has changed of one subject, page by page or as it changes.
//!
//! A page says what it lacks (`truncated`). A follower first catches up from the log, as far back as its cursor
//! says, and then gets what the hub delivers; every event's SSE id is its cursor. What cannot be shown
//! any more, or was left out since the client was slow, is a `gap` event with a code: whoever keeps state reads it
//! again, no older than the gap's position, and goes on.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Reader};
use super::changes_follow::{Beginning, FOREIGN, Follower};
use super::params::{self, Asked, Params};
use super::problem::Problem;
use super::{Edge, json};
use crate::event::{Cursor, Epoch, Position};
use crate::limits::{CHANGE_PAGE_EVENTS_DEFAULT, PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
use crate::streams::{ChangeMode, ChangeRequest, PageLimit, StreamError, StreamName, StreamPage};

/// Changes in a scope without an id, such as `tenant`: all of the tenant's. As `/v1/changes/{aggregate}/{scope}/{id}`.
#[utoipa::path(
    get,
    path = "/v1/changes/{aggregate}/{scope}",
    tag = "events",
    params(
        ("aggregate" = String, Path, description = "The aggregate, such as `flight`"),
        ("scope" = String, Path, description = "`tenant`; every other scope needs an id"),
        ("after" = Option<String>, Query, description = "A cursor, `oldest` or `newest`"),
        ("limit" = Option<u32>, Query, description = "Events of the page: 1 to 4096, or else 500"),
        ("mode" = Option<String>, Query, description = "`conflated` (the default) or `raw`"),
        ("window_ms" = Option<u64>, Query, description = "How long a conflated follower waits for a later event"),
        ("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID"),
    ),
    responses((status = 200, description = "A page, or the stream", content(
        (super::wire::ChangePage = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(super) async fn read_scope(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path((aggregate, scope)): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let request = ChangeRequest { aggregate: &aggregate, scope: &scope, id: "" };
    read_changes(edge, caller, &request, &headers, params).await
}

/// Changes of one subject, by the scopes that a plugin has declared for the aggregate: a page, or all that
/// follow as server-sent events.
///
/// A page begins after the cursor, or else at the oldest. `truncated` says that earlier events are missing: retention
/// has removed them, or the scope was declared later. A cursor is good for every stream of the host.
///
/// With `Accept: text/event-stream` the answer begins with a `ready` event, and then has one event a change, called
/// by its type. It goes on after `Last-Event-ID` (or `last_event_id`, or `after`), or else begins now.
/// `mode=conflated` gives the latest event of each aggregate once per window, `mode=raw` every event; a stream
/// is followed in one mode at a time. A `gap` event says that something is missing up to its position, and why
/// (`code`): read the state again. With `cursor_foreign` the log is another one than before, and the positions are its. In the mode `raw` a slow client is ended with one, and goes on by reconnecting.
/// `progress` moves the id while nothing changes, `error` carries a problem and ends the stream, and
/// `closing` says that the host stops.
#[utoipa::path(
    get,
    path = "/v1/changes/{aggregate}/{scope}/{id}",
    tag = "events",
    params(
        ("aggregate" = String, Path, description = "The aggregate, such as `flight`"),
        ("scope" = String, Path, description = "`id`, or a scope that a plugin declares"),
        ("id" = String, Path, description = "The aggregate's id, or the value of the field; ignored in the scope `tenant`"),
        ("after" = Option<String>, Query, description = "A cursor, `oldest` or `newest`"),
        ("limit" = Option<u32>, Query, description = "Events of the page: 1 to 4096, or else 500"),
        ("mode" = Option<String>, Query, description = "`conflated` (the default) or `raw`"),
        ("window_ms" = Option<u64>, Query, description = "How long a conflated follower waits for a later event: 1 to 10000, or else gateway.change_window_ms"),
        ("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID, for clients that cannot set it"),
    ),
    responses((status = 200, description = "A page, or the stream", content(
        (super::wire::ChangePage = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path((aggregate, scope, id)): Path<(String, String, String)>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let request = ChangeRequest { aggregate: &aggregate, scope: &scope, id: &id };
    read_changes(edge, caller, &request, &headers, params).await
}

async fn read_changes(
    edge: Arc<Edge>,
    caller: Caller,
    request: &ChangeRequest<'_>,
    headers: &HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let stream = edge.services.hub.resolve(&caller.tenant, request)?;
    let asked = Asked::take(headers, &mut params)?;
    let mode = mode(&edge, &mut params)?;
    params.finish()?;
    let epoch = edge.services.log.epoch();
    let since = edge.services.log.scopes().since(&stream);
    let bounds = edge.services.log.bounds();
    let place = |text: &str| match text {
        "oldest" => Ok(bounds.trimmed.max(since.unwrap_or_default())),
        "newest" | "tail" => Ok(bounds.newest),
        cursor => params::cursor(cursor, &epoch),
    };
    if !asked.follow {
        let after = asked.after.as_deref().map_or(Ok(Position::START), place)?;
        let limit = page_limit(asked.limit)?;
        return page(&edge, &caller, &StreamName::Changes(stream), after, limit).await;
    }
    let beginning = match (asked.last_seen, asked.after) {
        (Some(seen), _) => resumed(&seen, &epoch, bounds.newest),
        (None, Some(after)) => match place(&after)? {
            asked if asked > bounds.newest => {
                let ahead = StreamError::PositionAhead { asked, newest: bounds.newest };
                return Err(super::streams::lost(&epoch, ahead));
            }
            position => Beginning::After(position),
        },
        (None, None) => Beginning::Now,
    };
    let subscription = edge.services.hub.subscribe(&caller.tenant, request, mode)?;
    Ok(Follower::new(edge, caller, (stream, mode), subscription, (epoch, beginning)).answer())
}

/// Where somebody goes on who has seen an id. One that means nothing here is a gap and no error: a browser would
/// send it again and again.
fn resumed(seen: &str, epoch: &Epoch, newest: Position) -> Beginning {
    match seen.parse::<Cursor>() {
        Ok(cursor) if cursor.epoch != *epoch => Beginning::Gap(FOREIGN),
        Ok(cursor) if cursor.position > newest => Beginning::Gap("position_ahead"),
        Ok(cursor) => Beginning::After(cursor.position),
        Err(_) => Beginning::Gap("cursor_invalid"),
    }
}

fn mode(edge: &Edge, params: &mut Params) -> Result<ChangeMode, Problem> {
    let window = params.number::<u64>("window_ms")?.map(Duration::from_millis);
    match params.take("mode")?.as_deref() {
        Some("raw") if window.is_some() => Err(params::invalid("window_ms", "is for the mode `conflated`")),
        Some("raw") => Ok(ChangeMode::Raw),
        None | Some("conflated") => {
            Ok(ChangeMode::Conflated { window: window.unwrap_or(edge.options.change_window) })
        }
        Some(_) => Err(params::invalid("mode", "is `conflated` or `raw`")),
    }
}

/// How many events a page has: what was asked for, or else the default.
pub(super) fn page_limit(asked: Option<usize>) -> Result<PageLimit, Problem> {
    let events = asked.unwrap_or(CHANGE_PAGE_EVENTS_DEFAULT);
    if events == 0 || events > PAGE_EVENTS_MAX {
        let detail = format!("limit is {events}; a page has 1 to {PAGE_EVENTS_MAX} events");
        let problem = Problem::new("page_events_max", detail);
        return Err(problem.limit("page_events_max", events as u64, PAGE_EVENTS_MAX as u64));
    }
    Ok(PageLimit { events, bytes: PAGE_BYTES_MAX })
}

/// A page of any stream, with what it lacks.
pub(super) async fn page(
    edge: &Edge,
    caller: &Caller,
    stream: &StreamName,
    after: Position,
    limit: PageLimit,
) -> Result<Response, Problem> {
    let log = &edge.services.log;
    let epoch = log.epoch();
    let page = log.read_stream(&caller.tenant, stream, after, limit).await;
    let page = page.map_err(|e| super::streams::lost(&epoch, e))?;
    let StreamPage { events, next, oldest, newest, truncated } = page;
    let mut out = Vec::with_capacity(events.bytes() + 256 * events.len() + 256);
    out.extend_from_slice(b"{\"stream\":");
    json::write_text(&mut out, &stream.to_string());
    out.extend_from_slice(b",\"events\":[");
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json::write_event(&mut out, &event, &epoch.0);
    }
    out.push(b']');
    for (name, position) in [("next", next), ("oldest", oldest), ("newest", newest)] {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        json::write_cursor(&mut out, &epoch.0, position.0);
    }
    out.extend_from_slice(b",\"truncated\":");
    json::write_number(&mut out, truncated);
    out.extend_from_slice(b",\"epoch\":");
    json::write_text(&mut out, &epoch.0);
    out.push(b'}');
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], out)
        .into_response())
}
