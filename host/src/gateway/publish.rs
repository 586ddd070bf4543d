//! `POST /v1/events`: one event, an array, CloudEvents, or a stream of lines.
//!
//! What is sent whole is appended whole or not at all. Lines are `ndjson`'s business.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;

use super::auth::{Caller, Publisher};
use super::body::{BodyLimit, BodyReader, media_type, unsupported};
use super::params::Params;
use super::problem::Problem;
use super::traced::RequestTrace;
use super::{Edge, cloudevents, json, metrics, native, ndjson};
use crate::event::{EventBatch, Micros};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::streams::StreamName;

/// The content types of `POST /v1/events`.
pub(super) const EVENT_TYPES: &[&str] = &[
    "application/json",
    "application/x-ndjson",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
];

/// Appends events and answers their positions, once they are durable.
///
/// One JSON event, an array of them (all or nothing), CloudEvents 1.0 (structured,
/// batch, or binary with `ce-` headers), or NDJSON: a stream of one event a
/// line, answered line by line, in order, atomic per 1,000 events or 4 MiB.
///
/// CloudEvents: `id` is the id, `type` the type, `time` the `at`, `data` the
/// payload, `subject` (or else `source`) the `agg_id`. The aggregate is the
/// extension `aggregate`, or else `type` up to its last dot. The version is the
/// extension `aggregateversion`, or else 1. The extensions `schemaversion`,
/// `scope`, `kind`, `cursor` and `traceparent` are the fields of those names.
/// Other attributes are not kept.
#[utoipa::path(
    post,
    path = "/v1/events",
    tag = "events",
    request_body(
        content(
            (super::wire::NativeEvent = "application/json"),
            (super::wire::NativeEvent = "application/x-ndjson"),
            (super::wire::CloudEvent = "application/cloudevents+json"),
            (Vec<super::wire::CloudEvent> = "application/cloudevents-batch+json"),
        )
    ),
    responses(
        (status = 200, description = "Durable. NDJSON: one answer a line, either what an event became or `error`.", content(
            (super::wire::Published = "application/json"),
            (super::wire::LineAnswer = "application/x-ndjson"),
        ))
    )
)]
pub(super) async fn publish(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    take(edge, caller, StreamName::Events, request).await
}

/// Takes a request's events in and appends them to a stream.
pub(super) async fn take(
    edge: Arc<Edge>,
    caller: Caller,
    stream: StreamName,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let found = media_type(&parts.headers);
    let limit = if found == "application/x-ndjson" {
        BodyLimit { name: "upload_bytes_max", bytes: edge.options.upload_bytes_max }
    } else {
        BodyLimit { name: "body_bytes_max", bytes: edge.options.body_bytes_max }
    };
    let trace = RequestTrace::of(&parts.headers);
    let binary = cloudevents::is_binary(&parts.headers);
    if !binary && !EVENT_TYPES.contains(&found.as_str()) {
        return Err(unsupported(&found, EVENT_TYPES));
    }
    let reader = BodyReader::new(&parts.headers, body, edge.options.body_idle_max, limit)?;
    if !binary && found == "application/x-ndjson" {
        return ndjson::publish(edge, caller, (stream, reader), trace).await;
    }
    let body = reader.whole().await?;
    let now = edge.services.clock.now();
    let mut batch = EventBatch::with_capacity(caller.tenant.clone(), 1, body.len() + 64);
    if binary {
        cloudevents::push_binary(&mut batch, &parts.headers, &found, &body, now)?;
    } else if found == "application/cloudevents+json" {
        cloudevents::push(&mut batch, &body, now)?;
    } else if found == "application/cloudevents-batch+json" {
        push_array(&mut batch, &body, now, cloudevents::push)?;
    } else if body.trim_ascii_start().first() == Some(&b'[') {
        push_array(&mut batch, &body, now, native::push)?;
    } else {
        native::push(&mut batch, &body, now)?;
    }
    append(&edge, &caller, (&stream, batch), trace).await
}

fn push_array(
    batch: &mut EventBatch,
    body: &[u8],
    now: Micros,
    push: fn(&mut EventBatch, &[u8], Micros) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(|e| native::json_problem(&e))?;
    if events.len() > BATCH_EVENTS_MAX {
        let detail = format!("{} events; batch_events_max is {BATCH_EVENTS_MAX}", events.len());
        return Err(Problem::new("batch_events_max", detail).limit(
            "batch_events_max",
            events.len() as u64,
            BATCH_EVENTS_MAX as u64,
        ));
    }
    for (index, event) in events.iter().enumerate() {
        push(batch, event.get().as_bytes(), now).map_err(|problem| problem.with("index", index.into()))?;
    }
    Ok(())
}

async fn append(
    edge: &Edge,
    caller: &Caller,
    (stream, batch): (&StreamName, EventBatch),
    trace: RequestTrace,
) -> Result<Response, Problem> {
    if batch.bytes() > BATCH_BYTES_MAX {
        let detail = format!("{} bytes of events; batch_bytes_max is {BATCH_BYTES_MAX}", batch.bytes());
        let asked = batch.bytes() as u64;
        return Err(Problem::new("batch_bytes_max", detail).limit(
            "batch_bytes_max",
            asked,
            BATCH_BYTES_MAX as u64,
        ));
    }
    let ids: Vec<String> = batch.iter().map(|event| event.id.to_owned()).collect();
    let appended = if batch.is_empty() {
        Vec::new()
    } else {
        trace.append(&*edge.services.log, stream, batch).await.map_err(|error| match &error {
            crate::streams::StreamError::IdTaken { index, .. } => {
                let index = *index;
                Problem::from(error).with("index", index.into())
            }
            _ => error.into(),
        })?
    };
    let repeated = appended.iter().filter(|answer| answer.repeated).count() as u64;
    metrics::published(appended.len() as u64 - repeated, repeated);
    tracing::debug!(tenant = %caller.tenant, events = appended.len(), repeated, "events published");
    let epoch = edge.services.log.epoch();
    let mut out = b"{\"events\":[".to_vec();
    for (index, (answer, id)) in appended.iter().zip(&ids).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"position\":");
        json::write_cursor(&mut out, &epoch.0, answer.position.0);
        out.extend_from_slice(b",\"id\":");
        json::write_text(&mut out, id);
        out.extend_from_slice(b",\"repeated\":");
        json::write_number(&mut out, answer.repeated);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(([(header::CONTENT_TYPE, "application/json")], out).into_response())
}
