//! One follower of changes: catches up from the log, and then takes what the hub delivers.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::time::Instant;

use super::auth::Caller;
use super::metrics::Living;
use super::outage::Outage;
use super::problem::Problem;
use super::{Edge, json, metrics, streams};
use crate::event::{Epoch, Event, EventBatch, Position};
use crate::limits::PAGE_EVENTS_MAX;
use crate::streams::{
    ChangeMode, ChangeRequest, ChangeStream, Delivery, PageLimit, StreamError, StreamName, Subscription,
};

/// Bytes of text that are prepared at once. A slow client holds no more than this and its queue.
const SSE_CHUNK_BYTES: usize = 256 << 10;

/// Where a follower begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    /// Where the hub is.
    Now,
    After(Position),
    /// What it has seen means nothing here, for this reason: it is told, and begins now.
    Gap(&'static str),
}

/// Why a place of another log, or of a former life of this one, means nothing.
pub(super) const FOREIGN: &str = "cursor_foreign";

/// Lives inside of its response's body and ends with it.
pub(super) struct Follower {
    edge: Arc<Edge>,
    caller: Caller,
    /// Of the positions. The log may begin a new life meanwhile, and then has another one.
    epoch: Epoch,
    stream: ChangeStream,
    mode: ChangeMode,
    subscription: Subscription,
    /// Everything up to here was sent or told of.
    position: Position,
    /// The last id that was sent.
    told: Position,
    gap: Option<&'static str>,
    /// What was taken from the hub and is not yet sent: a batch, and from which event on.
    taken: Option<(Arc<EventBatch>, usize)>,
    outage: Outage,
    phase: Phase,
    _living: Living,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    CatchUp,
    Live,
    End,
}

impl Follower {
    pub(super) fn new(
        edge: Arc<Edge>,
        caller: Caller,
        (stream, mode): (ChangeStream, ChangeMode),
        subscription: Subscription,
        (epoch, beginning): (Epoch, Beginning),
    ) -> Self {
        let now = subscription.position();
        let (position, gap) = match beginning {
            Beginning::Now => (now, None),
            Beginning::After(position) => (position, None),
            Beginning::Gap(code) => (now, Some(code)),
        };
        let (taken, phase, living) = (None, Phase::Begin, Living::sse_client());
        Self {
            edge,
            caller,
            epoch,
            stream,
            mode,
            subscription,
            position,
            told: position,
            gap,
            taken,
            outage: Outage::default(),
            phase,
            _living: living,
        }
    }

    pub(super) fn answer(self) -> Response {
        let stream = unfold(Box::new(self), |mut follower| async move {
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

    /// The next piece of text; none when the stream is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let heartbeat = Instant::now() + self.edge.options.sse_heartbeat;
        loop {
            if self.phase == Phase::End {
                return None;
            }
            if self.edge.stopping.is_cancelled() {
                return Some(self.closing());
            }
            if let Err(problem) = self.caller.valid.check() {
                return Some(self.error(&problem));
            }
            let out = match self.phase {
                Phase::Begin => self.begin(),
                _ if self.has_new_life() => self.begin_again(),
                Phase::CatchUp => self.catch_up(heartbeat).await,
                _ => self.live().await,
            };
            match out {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Some(out),
                Err(problem) => return Some(self.error(&problem)),
            }
        }
    }

    fn begin(&mut self) -> Result<Vec<u8>, Problem> {
        self.phase = Phase::CatchUp;
        let (cursor, mode) = (self.cursor(self.position), self.mode.name());
        let data = format!("{{\"position\":\"{cursor}\",\"mode\":\"{mode}\"}}");
        let mut out = format!("retry: 1000\nevent: ready\nid: {cursor}\ndata: {data}\n\n").into_bytes();
        if let Some(code) = self.gap.take() {
            self.write_gap(&mut out, code, self.position);
        }
        Ok(out)
    }

    /// Whether the log is not the one any more that the positions are of.
    fn has_new_life(&self) -> bool {
        self.edge.services.log.epoch() != self.epoch
    }

    /// Says that all places of the former life are lost, and goes on in the new one. What was not sent yet may be of
    /// either; the client reads the state again in any case.
    fn begin_again(&mut self) -> Result<Vec<u8>, Problem> {
        let log = Arc::clone(&self.edge.services.log);
        self.epoch = log.epoch();
        self.subscribe()?;
        // It may need no read to be where it goes on.
        self.outage.end();
        self.taken = None;
        self.phase = Phase::CatchUp;
        self.position = self.subscription.position().max(log.bounds().trimmed);
        let mut out = Vec::new();
        self.write_gap(&mut out, FOREIGN, self.position);
        Ok(out)
    }

    fn subscribe(&mut self) -> Result<(), Problem> {
        let ChangeStream { aggregate, scope, id } = &self.stream;
        let request = ChangeRequest { aggregate, scope, id };
        self.subscription = self.edge.services.hub.subscribe(&self.caller.tenant, &request, self.mode)?;
        Ok(())
    }

    /// A page of what came before the subscription. The hub's deliveries wait meanwhile; where they were too
    /// many, it subscribes anew, and the log has what lies between.
    async fn catch_up(&mut self, heartbeat: Instant) -> Result<Vec<u8>, Problem> {
        let mut out = Vec::new();
        if self.position >= self.subscription.position() && !self.subscription.has_gap() {
            self.phase = Phase::Live;
            return Ok(out);
        }
        let log = Arc::clone(&self.edge.services.log);
        let name = StreamName::Changes(self.stream.clone());
        let limit = PageLimit { events: PAGE_EVENTS_MAX, bytes: SSE_CHUNK_BYTES };
        let page = log.read_stream(&self.caller.tenant, &name, self.position, limit).await;
        if self.has_new_life() {
            return Ok(out);
        }
        let page = match page {
            Ok(page) => page,
            Err(error) => return self.wait_for_log(error, heartbeat).await,
        };
        self.outage.end();
        if page.truncated {
            self.write_gap(&mut out, "position_lost", page.oldest);
        }
        for event in page.events.iter() {
            self.write(&mut out, &event);
        }
        self.position = self.position.max(page.next);
        if self.position >= self.subscription.position() && self.subscription.has_gap() {
            self.subscribe()?;
        }
        Ok(out)
    }

    /// Stays for a while where the log cannot be read, with signs of life. They say nothing of how far it is: what
    /// lies behind its position is not read yet.
    async fn wait_for_log(&mut self, error: StreamError, heartbeat: Instant) -> Result<Vec<u8>, Problem> {
        let Some(pause) = self.outage.pause(&error, self.edge.options.log_away_max) else {
            return Err(streams::lost(&self.epoch, error));
        };
        let (stopping, ended) = (self.edge.stopping.clone(), self.caller.valid.clone());
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(Vec::new()),
            () = stopping.cancelled() => Ok(self.closing()),
            problem = ended.ended() => Err(problem),
            () = tokio::time::sleep_until(heartbeat) => Ok(b": \n\n".to_vec()),
        }
    }

    /// What the hub delivers next, or a sign of life.
    async fn live(&mut self) -> Result<Vec<u8>, Problem> {
        let mut out = Vec::new();
        if let Some((batch, from)) = self.taken.take() {
            for index in from..batch.len() {
                if out.len() >= SSE_CHUNK_BYTES {
                    self.taken = Some((batch, index));
                    break;
                }
                self.write(&mut out, &batch.get(index));
            }
            return Ok(out);
        }
        let stopping = self.edge.stopping.clone();
        let ended = self.caller.valid.clone();
        // Each arm that is dropped loses nothing: the subscription keeps what was not taken.
        let delivery = tokio::select! {
            delivery = self.subscription.next() => Some(delivery),
            () = stopping.cancelled() => return Ok(self.closing()),
            problem = ended.ended() => return Err(problem),
            () = tokio::time::sleep(self.edge.options.sse_heartbeat) => None,
        };
        if self.has_new_life() {
            return Ok(out);
        }
        match delivery {
            None => return self.heartbeat(),
            Some(None) => return Ok(self.closing()),
            Some(Some(Delivery::Events(batch))) => self.taken = Some((batch, 0)),
            Some(Some(Delivery::Gap { through, cause })) => self.write_gap(&mut out, cause.code(), through),
            Some(Some(Delivery::End { after, cause })) => {
                self.write_gap(&mut out, cause.code(), after);
                self.phase = Phase::End;
            }
        }
        Ok(out)
    }

    /// Writes one event, unless it was sent before. One past the log has no position, and no id.
    fn write(&mut self, out: &mut Vec<u8>, event: &Event<'_>) {
        let position = event.position;
        if position > Position::START && position <= self.position {
            return;
        }
        if position > Position::START {
            self.position = position;
            self.told = position;
            out.extend_from_slice(format!("id: {}\n", self.cursor(position)).as_bytes());
        }
        out.extend_from_slice(format!("event: {}\ndata: ", event_name(event.event_type)).as_bytes());
        json::write_event(out, event, &self.epoch.0);
        out.extend_from_slice(b"\n\n");
    }

    /// Says that something is missing up to a position, which is where the client goes on.
    fn write_gap(&mut self, out: &mut Vec<u8>, code: &'static str, through: Position) {
        self.position = self.position.max(through);
        self.told = self.position;
        metrics::problem(code, 1);
        let cursor = self.cursor(self.position);
        let data = format!("{{\"code\":\"{code}\",\"position\":\"{cursor}\"}}");
        out.extend_from_slice(format!("event: gap\nid: {cursor}\ndata: {data}\n\n").as_bytes());
    }

    fn cursor(&self, position: Position) -> String {
        format!("{}.{position}", self.epoch.0)
    }

    /// Says why it is the end.
    fn error(&mut self, problem: &Problem) -> Vec<u8> {
        self.phase = Phase::End;
        metrics::problem(problem.code(), 1);
        format!("event: error\ndata: {}\n\n", problem.to_json()).into_bytes()
    }

    fn closing(&mut self) -> Vec<u8> {
        self.phase = Phase::End;
        let cursor = self.cursor(self.position);
        let data = format!("{{\"code\":\"host_stopping\",\"position\":\"{cursor}\"}}");
        format!("event: closing\nid: {cursor}\ndata: {data}\n\n").into_bytes()
    }

    /// A sign of life; with it, how far nothing has changed, so that the client's id does not grow old. A scope
    /// that nobody declares any more ends here.
    fn heartbeat(&mut self) -> Result<Vec<u8>, Problem> {
        let ChangeStream { aggregate, scope, id } = &self.stream;
        self.edge
            .services
            .log
            .scopes()
            .resolve(aggregate, scope, id)
            .map_err(crate::streams::HubError::from)?;
        if let Some(reached) = self.subscription.reached() {
            self.position = self.position.max(reached);
        }
        if self.position == self.told {
            return Ok(b": \n\n".to_vec());
        }
        self.told = self.position;
        let cursor = self.cursor(self.position);
        let data = format!("{{\"position\":\"{cursor}\"}}");
        Ok(format!("event: progress\nid: {cursor}\ndata: {data}\n\n").into_bytes())
    }
}

/// What the frame of an event is called: its type, unless that is what the stream itself says things with. Then it is
/// `event`, and its type is in its data, as everybody's is.
fn event_name(event_type: &str) -> &str {
    match event_type {
        "ready" | "gap" | "error" | "closing" | "progress" => "event",
        other => other,
    }
}
