//! `/v1/streams/{stream}`: pages of events, following them over SSE, and appending to a stream by its name.
//!
//! A follower names where it starts; there is no "now" but the one that the
//! log answers. Every event's SSE id is its cursor, so that a reconnecting
//! client goes on exactly behind what it has seen. What cannot be shown any
//! more ends the stream with an `error` event, never with a silent gap. While its
//! log cannot be read it stays open ([`Outage`]).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;

use super::auth::{Caller, Publisher, Reader};
use super::metrics::Living;
use super::outage::Outage;
use super::params::{self, Asked, Params};
use super::problem::Problem;
use super::{Edge, changes, json, metrics, publish};
use crate::event::{Epoch, Event, EventBatch, Page, Position};
use crate::limits::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX, STREAM_EVENTS_DEFAULT};
use crate::streams::{PageLimit, StreamError, StreamName, StreamPage, TailReader};

/// Bytes of SSE text that are prepared at once. A slow client holds no more than this.
const SSE_CHUNK_BYTES: usize = 256 << 10;

/// Events of a stream after a position: one page, or all that follow as server-sent events.
///
/// With `Accept: text/event-stream` the answer begins with a `ready` event and goes on as long as the client
/// stays. `Last-Event-ID` (or `last_event_id`) resumes and wins over `after`. An
/// `error` event carries a problem and ends the stream; `closing` says that the host stops. A log that cannot be reached is
/// waited for, up to `gateway.log_away_ms_max`; in a new life of it the stream ends with `cursor_foreign`.
/// `progress` moves the id over events that the filter left out.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}",
    tag = "events",
    params(
        ("stream" = String, Path, description = "`events`, or a stream with a name of its own. Its pages are those of `/v1/changes`"),
        ("after" = Option<String>, Query, description = "A cursor, `oldest` or `newest`. A page without it begins at the oldest; a tail must have it"),
        ("from" = Option<String>, Query, description = "`oldest` or `tail`: the same as `after=oldest` and `after=newest`"),
        ("limit" = Option<u32>, Query, description = "Events of the page: 1 to 4096, or else 100"),
        ("types" = Option<String>, Query, description = "Event types, separated by commas; a trailing `*` stands for any ending"),
        ("last_event_id" = Option<String>, Query, description = "As the header Last-Event-ID, for clients that cannot set it"),
    ),
    responses((status = 200, description = "A page, or the stream", content(
        (super::wire::EventPage = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(stream): Path<String>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let stream = named(&stream)?;
    let Asked { follow, after, last_seen, limit } = Asked::take(&headers, &mut params)?;
    let epoch = edge.services.log.epoch();
    let types = Types::parse(params.take("types")?.as_deref());
    params.finish()?;
    if !follow && stream != StreamName::Events {
        if !types.0.is_empty() {
            return Err(params::invalid("types", "is for the stream `events`"));
        }
        let after = after.as_deref().map_or(Ok(Position::START), |after| start(&edge, &epoch, after))?;
        return changes::page(&edge, &caller, &stream, after, changes::page_limit(limit)?).await;
    }
    if !follow {
        let limit = limit.unwrap_or(STREAM_EVENTS_DEFAULT);
        if limit == 0 || limit > PAGE_EVENTS_MAX {
            let detail = format!("limit is {limit}; a page has 1 to {PAGE_EVENTS_MAX} events");
            return Err(Problem::new("page_events_max", detail).limit(
                "page_events_max",
                limit as u64,
                PAGE_EVENTS_MAX as u64,
            ));
        }
        let after = start(&edge, &epoch, after.as_deref().unwrap_or("oldest"))?;
        return page(&edge, &caller, &epoch, after, limit, &types).await;
    }
    let Some(from) = last_seen.or(after) else {
        return Err(Problem::new("start_missing", "a tail has `after` or `Last-Event-ID`"));
    };
    let after = start(&edge, &epoch, &from)?;
    // A position that is lost or ahead is a status here, and an `error` event only later.
    let probe = PageLimit { events: 1, bytes: PAGE_BYTES_MAX };
    read_on(&edge, &caller, &stream, after, probe).await.map_err(|e| lost(&epoch, e))?;
    Ok(tail(edge, caller, (stream, epoch), after, types))
}

/// Appends events to a stream with a name of its own, and answers their positions, once they are durable.
///
/// The body and the answer are those of `POST /v1/events`. Processors and change streams see nothing of it; the
/// stream begins with its first event. With `events` as its name it is `POST /v1/events`.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}",
    tag = "events",
    params(("stream" = String, Path, description = "1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit")),
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
pub(super) async fn append(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path(stream): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    publish::take(edge, caller, named(&stream)?, request).await
}

/// The stream of a path: the main one, or one with a name of its own. Change streams have a path of their own, which
/// asks who may follow them.
fn named(text: &str) -> Result<StreamName, Problem> {
    let unknown = |why: String| Problem::new("stream_unknown", why);
    match text.parse::<StreamName>() {
        Ok(StreamName::Changes(_)) => Err(unknown("changes are at /v1/changes".to_owned())),
        Ok(stream) => Ok(stream),
        Err(invalid) => Err(unknown(invalid.to_string())),
    }
}

/// What follows a position in a stream that is tailed. What is lost ends a tail.
async fn read_on(
    edge: &Edge,
    caller: &Caller,
    stream: &StreamName,
    after: Position,
    limit: PageLimit,
) -> Result<(Arc<EventBatch>, Position), StreamError> {
    let log = &edge.services.log;
    if *stream == StreamName::Events {
        let Page { events, next, .. } = log.read(&caller.tenant, after, limit).await?;
        return Ok((events, next));
    }
    let StreamPage { events, next, oldest, truncated, .. } =
        log.read_stream(&caller.tenant, stream, after, limit).await?;
    if truncated {
        return Err(StreamError::PositionLost { asked: after, trimmed: oldest });
    }
    Ok((events, next))
}

/// The position that a request means.
fn start(edge: &Edge, epoch: &Epoch, text: &str) -> Result<Position, Problem> {
    match text {
        "oldest" => Ok(edge.services.log.bounds().trimmed),
        "newest" | "tail" => Ok(edge.services.log.bounds().newest),
        cursor => params::cursor(cursor, epoch),
    }
}

/// A stream's error, with the cursors to go on from.
pub(super) fn lost(epoch: &Epoch, error: StreamError) -> Problem {
    let cursor = |position: Position| format!("{}.{position}", epoch.0).into();
    match &error {
        StreamError::PositionLost { trimmed, .. } => {
            let oldest = cursor(*trimmed);
            Problem::from(error).with("oldest", oldest)
        }
        StreamError::PositionAhead { newest, .. } => {
            let newest = cursor(*newest);
            Problem::from(error).with("newest", newest)
        }
        _ => error.into(),
    }
}

async fn page(
    edge: &Edge,
    caller: &Caller,
    epoch: &Epoch,
    after: Position,
    limit: usize,
    types: &Types,
) -> Result<Response, Problem> {
    let log = &edge.services.log;
    let limit = PageLimit { events: limit, bytes: PAGE_BYTES_MAX };
    let page = log.read(&caller.tenant, after, limit).await.map_err(|e| lost(epoch, e))?;
    let mut out = Vec::with_capacity(page.events.bytes() + 256 * page.events.len() + 128);
    out.extend_from_slice(b"{\"events\":[");
    let mut first = true;
    for event in page.events.iter().filter(|event| types.pass(event)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        json::write_event(&mut out, &event, &epoch.0);
    }
    out.extend_from_slice(b"],\"next\":");
    json::write_cursor(&mut out, &epoch.0, page.next.0);
    out.extend_from_slice(b",\"oldest\":");
    json::write_cursor(&mut out, &epoch.0, log.bounds().trimmed.0);
    out.push(b'}');
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], out)
        .into_response())
}

/// Which types pass. None named: all.
#[derive(Debug, Default)]
struct Types(Vec<String>);

impl Types {
    fn parse(text: Option<&str>) -> Self {
        let names = text.unwrap_or_default().split(',').map(str::trim);
        Self(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    fn pass(&self, event: &Event<'_>) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|name| match name.strip_suffix('*') {
                Some(beginning) => event.event_type.starts_with(beginning),
                None => event.event_type == name,
            })
    }
}

/// One follower. Lives inside of its response's body and ends with it.
struct Follower {
    edge: Arc<Edge>,
    caller: Caller,
    stream: StreamName,
    epoch: Epoch,
    types: Types,
    reader: TailReader,
    /// What has been looked at.
    position: Position,
    /// What the client has been told.
    told: Position,
    outage: Outage,
    phase: Phase,
    _living: Living,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    Follow,
    End,
}

/// What came of a look at the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    Moved,
    Nothing,
    /// It cannot be read, and is asked again after this.
    Away(Duration),
}

fn tail(
    edge: Arc<Edge>,
    caller: Caller,
    (stream, epoch): (StreamName, Epoch),
    after: Position,
    types: Types,
) -> Response {
    let all = edge.services.log.tail();
    let reader = match &stream {
        StreamName::Events => all.follow(&caller.tenant),
        stream => all.follow_named(&caller.tenant, &stream.to_string()),
    };
    let follower = Follower {
        edge,
        caller,
        stream,
        epoch,
        types,
        reader,
        position: after,
        told: after,
        outage: Outage::default(),
        phase: Phase::Begin,
        _living: Living::sse_client(),
    };
    let stream = unfold(Box::new(follower), |mut follower| async move {
        let chunk = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), follower))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // A proxy that buffers would hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

impl Follower {
    /// The next piece of text; none when the stream is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        match self.phase {
            Phase::End => return None,
            Phase::Begin => {
                self.phase = Phase::Follow;
                return Some(self.ready());
            }
            Phase::Follow => {}
        }
        let heartbeat = tokio::time::sleep(self.edge.options.sse_heartbeat);
        tokio::pin!(heartbeat);
        let ended = self.caller.valid.ended();
        tokio::pin!(ended);
        loop {
            if self.edge.stopping.is_cancelled() {
                self.phase = Phase::End;
                return Some(self.closing());
            }
            let mut out = Vec::new();
            if let Err(problem) = self.caller.valid.check() {
                return Some(self.error(out, &problem));
            }
            let looked = match self.read(&mut out).await {
                Err(problem) => return Some(self.error(out, &problem)),
                Ok(_) if !out.is_empty() => return Some(out),
                Ok(Looked::Moved) => continue,
                Ok(looked) => looked,
            };
            let (stopping, position) = (self.edge.stopping.clone(), self.position);
            let reader = &mut self.reader;
            let news = async move {
                match looked {
                    // There may be some already, which cannot be read.
                    Looked::Away(pause) => {
                        tokio::time::sleep(pause).await;
                        true
                    }
                    _ => reader.wait_after(position).await,
                }
            };
            tokio::select! {
                alive = news => {
                    if !alive {
                        self.phase = Phase::End;
                        return Some(self.closing());
                    }
                }
                () = stopping.cancelled() => {}
                problem = &mut ended => return Some(self.error(Vec::new(), &problem)),
                () = &mut heartbeat => return Some(self.heartbeat()),
            }
        }
    }

    /// What there is to say before the end, and why it is the end.
    fn error(&mut self, mut out: Vec<u8>, problem: &Problem) -> Vec<u8> {
        self.phase = Phase::End;
        metrics::problem(problem.code(), 1);
        out.extend_from_slice(format!("event: error\ndata: {}\n\n", problem.to_json()).as_bytes());
        out
    }

    /// Writes what there is after the position, and moves it.
    async fn read(&mut self, out: &mut Vec<u8>) -> Result<Looked, Problem> {
        let log = Arc::clone(&self.edge.services.log);
        let before = self.position;
        if self.has_new_life() {
            return Err(self.foreign());
        }
        // The tail holds the main stream only.
        if self.stream == StreamName::Events
            && let Some(chunks) = log.tail().read(&self.caller.tenant, self.position, PAGE_EVENTS_MAX)
        {
            for chunk in chunks {
                if !self.write(out, &chunk) {
                    break;
                }
            }
            return Ok(self.looked(before));
        }
        let limit = PageLimit { events: PAGE_EVENTS_MAX, bytes: SSE_CHUNK_BYTES };
        let read = read_on(&self.edge, &self.caller, &self.stream, self.position, limit).await;
        let (events, next) = match read {
            Err(_) if self.has_new_life() => return Err(self.foreign()),
            Err(error) => {
                let pause = self.outage.pause(&error, self.edge.options.log_away_max);
                return pause.map(Looked::Away).ok_or_else(|| lost(&self.epoch, error));
            }
            Ok(read) => read,
        };
        if self.write(out, &events) {
            self.position = self.position.max(next);
        }
        Ok(self.looked(before))
    }

    /// The log was read, from this position on.
    fn looked(&mut self, before: Position) -> Looked {
        self.outage.end();
        if self.position > before { Looked::Moved } else { Looked::Nothing }
    }

    /// Writes a chunk's events after the position. False when it stopped at the bound.
    fn write(&mut self, out: &mut Vec<u8>, chunk: &EventBatch) -> bool {
        let begin = chunk.records().partition_point(|record| record.position <= self.position.0);
        for index in begin..chunk.len() {
            if out.len() >= SSE_CHUNK_BYTES {
                return false;
            }
            let event = chunk.get(index);
            self.position = event.position;
            if self.types.pass(&event) {
                self.told = event.position;
                out.extend_from_slice(b"id: ");
                out.extend_from_slice(self.epoch.0.as_bytes());
                out.push(b'.');
                json::write_number(out, event.position);
                out.extend_from_slice(b"\ndata: ");
                json::write_event(out, &event, &self.epoch.0);
                out.extend_from_slice(b"\n\n");
            }
        }
        true
    }

    /// Whether the log is not the one any more that the positions are of.
    fn has_new_life(&self) -> bool {
        self.edge.services.log.epoch() != self.epoch
    }

    /// That all places of the former life are lost, and where the new one begins.
    fn foreign(&self) -> Problem {
        let log = &self.edge.services.log;
        let (former, epoch, oldest) = (&self.epoch.0, log.epoch().0, log.bounds().trimmed);
        let detail = format!("these positions are of the log `{former}`; it is `{epoch}` now");
        Problem::new("cursor_foreign", detail).with("oldest", format!("{epoch}.{oldest}").into())
    }

    fn cursor(&self) -> String {
        format!("{}.{}", self.epoch.0, self.position)
    }

    fn ready(&self) -> Vec<u8> {
        let cursor = self.cursor();
        format!("retry: 1000\nevent: ready\nid: {cursor}\ndata: {{\"position\":\"{cursor}\"}}\n\n")
            .into_bytes()
    }

    fn closing(&self) -> Vec<u8> {
        let cursor = self.cursor();
        let data = format!("{{\"code\":\"host_stopping\",\"position\":\"{cursor}\"}}");
        format!("event: closing\nid: {cursor}\ndata: {data}\n\n").into_bytes()
    }

    /// A sign of life; with it, how far the filter has looked.
    fn heartbeat(&mut self) -> Vec<u8> {
        if self.position == self.told {
            return b": \n\n".to_vec();
        }
        self.told = self.position;
        let cursor = self.cursor();
        format!("event: progress\nid: {cursor}\ndata: {{\"position\":\"{cursor}\"}}\n\n").into_bytes()
    }
}
