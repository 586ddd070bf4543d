//! `GET` and `POST /v1/live`: a live query as server-sent events.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value as Json, json};

use super::super::Edge;
use super::super::auth::{Caller, TableReader};
use super::super::body::{BodyLimit, BodyReader, media_type, unsupported};
use super::super::native::json_problem;
use super::super::params::{self, Params};
use super::super::problem::Problem;
use super::super::serve::{RawStream, TakeOver};
use super::super::tables::parse_order;
use super::InProcess;
use super::credential::until_ended;
use super::shell::{Broken, SseOptions, SseSink, Sub, Until};
use super::sse::serve_sse;
use crate::tables::TableSchema;

/// A live query as server-sent events, for a plain `EventSource`.
///
/// First the rows (`reset`, `enter`…, `ready`), then every change of the window: `enter`, `leave`, `move`,
/// `update`. The last event of a commit has an `id`; a client that comes back with it as `Last-Event-ID` gets
/// exactly what it missed, or is told by `gap` that it gets everything anew. An `error` event comes last, with a
/// code and with how long to wait.
#[utoipa::path(
    get,
    path = "/v1/live",
    tag = "live",
    params(
        ("table" = Option<String>, Query, description = "The table's name; `entity` means the same"),
        ("where" = Option<Vec<String>>, Query, description = "As for /v1/tables/{table}"),
        ("order" = Option<String>, Query, description = "`column:desc,column`; then by key"),
        ("limit" = Option<u32>, Query, description = "Rows of the window, or else 50"),
        ("cursor" = Option<String>, Query, description = "`{\"values\":[…]}`, a row's `cursor`: the window begins strictly after it"),
        ("mode" = Option<String>, Query, description = "`maintained`, an ordered window, or `streamed`, which rows match"),
        ("columns" = Option<String>, Query, description = "The columns to show, separated by commas; or else all"),
        ("query" = Option<String>, Query, description = "The whole query as JSON, instead of the parameters above"),
        ("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID, for clients that cannot set it"),
    ),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String))
)]
pub(in super::super) async fn get(
    State(edge): State<Arc<Edge>>,
    TableReader(caller): TableReader,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let resume = last_event_id(&headers, &mut params)?;
    let query = query_of(&mut params)?;
    params.finish()?;
    follow(edge, caller, query, resume).await
}

/// The same with the query as a JSON body.
#[utoipa::path(
    post,
    path = "/v1/live",
    tag = "live",
    request_body(
        content = serde_json::Value,
        content_type = "application/json",
        description = "`{\"table\",\"where\",\"sort\",\"limit\",\"cursor\",\"mode\",\"columns\"}`",
    ),
    params(("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID")),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String))
)]
pub(in super::super) async fn post(
    State(edge): State<Arc<Edge>>,
    TableReader(caller): TableReader,
    headers: HeaderMap,
    mut params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let resume = last_event_id(&headers, &mut params)?;
    params.finish()?;
    let media_type = media_type(&headers);
    if media_type != "application/json" {
        return Err(unsupported(&media_type, &["application/json"]));
    }
    let limit =
        BodyLimit { name: "live_message_bytes_max", bytes: edge.options.live_message_bytes_max as u64 };
    let body = BodyReader::new(&headers, body, edge.options.body_idle_max, limit)?;
    // It is small: who dribbles it, a byte now and then, keeps a place for nothing.
    let within = edge.options.live_first_command_wait_max;
    let body = tokio::time::timeout(within, body.whole()).await.map_err(|_| {
        let detail =
            format!("the query was not there after {within:?}; live_first_command_wait_max is {within:?}");
        Problem::new("live_first_command_wait_max", detail)
    })??;
    let query = serde_json::from_slice(&body).map_err(|error| json_problem(&error))?;
    follow(edge, caller, query, resume).await
}

/// The token of the last commit that the client has; one that has none yet sends it empty.
fn last_event_id(headers: &HeaderMap, params: &mut Params) -> Result<Option<String>, Problem> {
    let parameter = params.take("last_event_id")?;
    let token = match headers.get("last-event-id") {
        Some(value) => {
            Some(value.to_str().map_err(|_| params::invalid("Last-Event-ID", "is not text"))?.to_owned())
        }
        None => parameter,
    };
    Ok(token.filter(|token| !token.is_empty()))
}

/// The query that parameters mean, as its JSON.
fn query_of(params: &mut Params) -> Result<Json, Problem> {
    let json = |name: &str, text: &str| {
        serde_json::from_str::<Json>(text)
            .map_err(|error| params::invalid(name, format!("is not JSON: {error}")))
    };
    if let Some(whole) = params.take("query")? {
        return json("query", &whole);
    }
    let mut query = Map::new();
    let (table, entity) = (params.take("table")?, params.take("entity")?);
    if table.is_some() && entity.is_some() {
        return Err(params::invalid("entity", "means the same as `table`; give one of them"));
    }
    if let Some(table) = table.or(entity) {
        query.insert("table".into(), table.into());
    }
    query.insert("where".into(), params.take_all("where").into());
    let order = parse_order(params.take("order")?.as_deref().unwrap_or_default())?;
    let sort = order.into_iter().map(|part| json!({"column": part.column, "desc": part.descending}));
    query.insert("sort".into(), sort.collect());
    if let Some(limit) = params.number::<i64>("limit")? {
        query.insert("limit".into(), limit.into());
    }
    if let Some(cursor) = params.take("cursor")? {
        query.insert("cursor".into(), json("cursor", &cursor)?);
    }
    if let Some(mode) = params.take("mode")? {
        query.insert("mode".into(), mode.into());
    }
    if let Some(columns) = params.take("columns")? {
        let names = columns.split(',').map(str::trim).filter(|name| !name.is_empty());
        query.insert("columns".into(), names.collect());
    }
    Ok(query.into())
}

async fn follow(
    edge: Arc<Edge>,
    caller: Caller,
    query: Json,
    resume: Option<String>,
) -> Result<Response, Problem> {
    // Who comes now would be sent away at once: an answer with a status costs both sides less.
    if edge.stopping.is_cancelled() {
        return Err(Problem::new("host_stopping", "the host is stopping"));
    }
    let sub = inprocess_of(&edge, &caller).open(&query, resume).await?;
    let until = until_ended(&caller, &edge);
    let options = SseOptions {
        heartbeat: edge.options.sse_heartbeat,
        write_wait_max: edge.options.write_wait_max,
        ..SseOptions::default()
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        // A proxy that buffers would hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    // There are many such streams and most are idle: each is served on its bare socket, without the buffers that
    // come with a connection of HTTP.
    let serve = move |stream| serve(edge, sub.fixed(), until, options, stream).boxed();
    Ok((headers, Extension(TakeOver::new(serve))).into_response())
}

pub(super) fn inprocess_of(edge: &Edge, caller: &Caller) -> InProcess {
    let (live, tables) = (Arc::clone(&edge.services.live), Arc::clone(&edge.services.tables));
    let access = caller.clone();
    let access = Arc::new(move |table: &TableSchema| access.table_filter(table));
    InProcess { live, tables, tenant: caller.tenant.clone(), access }
}

async fn serve(edge: Arc<Edge>, sub: Sub, until: Until, options: SseOptions, stream: RawStream) {
    let mut sink = BodySink { stream: &stream, within: options.write_wait_max };
    let end = tokio::select! {
        end = serve_sse(sub, &mut sink, &options, until) => end,
        // Dropping the rest ends the subscription.
        () = stream.gone() => return,
        () = edge.hard.cancelled() => return,
    };
    tracing::debug!(end = ?end, "live query ended");
    if !matches!(end, Err(Broken::Stalled(_) | Broken::Io(_))) {
        stream.finish(&edge.stopping).await;
    }
}

/// Writes to the client.
struct BodySink<'a> {
    stream: &'a RawStream,
    within: Duration,
}

impl SseSink for BodySink<'_> {
    fn arm(&mut self, within: Duration) {
        self.within = within;
    }

    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        async move { self.stream.write(&bytes, self.within).await }.boxed()
    }

    fn close(&mut self) {}
}
