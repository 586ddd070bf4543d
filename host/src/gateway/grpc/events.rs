//! One stream of events: what the log has after a cursor, then what comes.
//!
//! A stream is a reader of the log like any other: who takes events slowly stands at an older position, and is ended only
//! when nothing is taken for `write_wait_ms_max`. Events about the stream itself pass every filter, and no event of the log
//! can be taken for one. They move the cursor over what was left out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::filters::Filters;
use super::places::Place;
use super::queue::{Message, Queue};
use super::refusal::{full, later, status};
use super::serve::Server;
use crate::event::{Cursor, Epoch, Event, Position, TenantId};
use crate::gateway::Edge;
use crate::gateway::auth::{Caller, Right};
use crate::gateway::metrics::Living;
use crate::gateway::problem::Problem;
use crate::limits::{
    GRPC_CURSOR_LOOK, GRPC_CURSOR_WAIT_MAX, GRPC_EVENT_STREAMS_MAX, GRPC_PAGE_BYTES_MAX,
    GRPC_PAGE_EVENTS_MAX, GRPC_RETRY_AFTER,
};
use crate::memory_v1::{EventNotification, EventScope, SubscribeEventsRequest};
use crate::streams::{EventLog, LogView, PageLimit, StreamError};

/// What a cursor stands for that this log cannot go on from.
const LOST: &str = "cursor beyond retention window";
const EVICTED: &str = "too many connections";

/// The kind of what is said about a stream, and the one that events of the log have in its place.
const ABOUT: &str = "stream";
const PLAIN: &str = "event";

/// What an event costs beside its texts.
const EVENT_BYTES: usize = 128;

/// Opens a stream, or says why not. What it shows comes from a task of the edge.
pub(super) fn subscribe(
    server: &Arc<Server>,
    caller: Caller,
    mut asked: SubscribeEventsRequest,
) -> Result<BoxStream<'static, Message>, Status> {
    check(&caller, &asked)?;
    let filters = Filters::of(&mut asked)?;
    let edge = &server.edge;
    let log = Arc::clone(&edge.services.log);
    if log.view() == LogView::Unreached {
        // Nothing is known of it, so no cursor is lost.
        let problem = Problem::new("host_starting", "the log was not reached yet");
        return Err(status(&problem.retry_after(GRPC_RETRY_AFTER)));
    }
    let (epoch, bounds) = (log.epoch(), log.bounds());
    let (begin, epoch, position) = match asked.after_cursor.as_deref().map(str::trim) {
        None | Some("") => (Begin::Live, epoch, bounds.newest),
        Some("start") => (Begin::Oldest, epoch, bounds.trimmed),
        Some(text) => match text.parse::<Cursor>() {
            Ok(Cursor { epoch, position }) => (Begin::Cursor, epoch, position),
            Err(_) => return Ok(stream::iter([Ok(lost())]).boxed()),
        },
    };
    let room = Arc::clone(&server.streams).try_acquire_owned();
    let room = room.map_err(|_| full("grpc_event_streams_max", GRPC_EVENT_STREAMS_MAX))?;
    let place = match caller.may(Right::Admin) {
        true => Place::uncounted(),
        false => server.places.take((caller.tenant.clone(), Arc::clone(&caller.name))),
    };
    let (out, messages) = Queue::open();
    let stream = Stream {
        edge: Arc::clone(edge),
        log,
        tenant: caller.tenant.clone(),
        epoch,
        position,
        told: position,
        told_at: Instant::now(),
        filters,
        out,
    };
    let stopping = edge.stopping.clone();
    edge.tasks.spawn(async move {
        let living = Living::grpc_stream();
        stream.run(begin, &caller, &place, &stopping).await;
        drop((living, place));
    });
    // What is written ahead is there until the client has taken it, or is ended for not taking it.
    let held = move |message| {
        let _room = &room;
        message
    };
    Ok(messages.map(held).boxed())
}

/// Detail, scope and rights, in this order.
fn check(caller: &Caller, asked: &SubscribeEventsRequest) -> Result<(), Status> {
    // An event has one payload, which is shown as it is; both words are taken.
    let detail = asked.detail.as_deref().map(str::trim).unwrap_or_default();
    if !matches!(detail, "" | "summary" | "full") {
        return Err(Status::invalid_argument("detail is summary or full"));
    }
    let scope = EventScope::try_from(asked.scope.unwrap_or_default())
        .map_err(|_| Status::invalid_argument("scope is unknown"))?;
    if caller.reads_everything() || (caller.may(Right::Admin) && !caller.is_confined()) {
        return Ok(());
    }
    Err(match scope {
        EventScope::Admin => Status::permission_denied("admin or auditor role required"),
        EventScope::Unspecified | EventScope::Authorized => {
            Status::permission_denied("this needs the right `read` of everything the tenant has")
        }
    })
}

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// With what comes from now on.
    Live,
    Oldest,
    /// Behind a cursor, if that means something here.
    Cursor,
}

/// Why a stream is over.
enum Ended {
    /// The client went away, or takes nothing.
    Gone,
    Lost,
    Evicted,
    Failed(Status),
}

struct Stream {
    edge: Arc<Edge>,
    log: Arc<dyn EventLog>,
    tenant: TenantId,
    epoch: Epoch,
    /// Everything up to here was shown or left out. At first the client's own cursor.
    position: Position,
    /// Up to where the client was told, and when.
    told: Position,
    told_at: Instant,
    filters: Filters,
    out: Queue,
}

impl Stream {
    async fn run(mut self, begin: Begin, caller: &Caller, place: &Place, stopping: &CancellationToken) {
        let (out, evicted, wait_max) = (self.out.clone(), place.evicted(), self.write_wait_max());
        let ended = tokio::select! {
            ended = self.show(begin) => ended,
            () = out.closed() => Ended::Gone,
            () = evicted.cancelled() => Ended::Evicted,
            problem = caller.valid.ended() => Ended::Failed(status(&problem)),
            () = stopping.cancelled() => Ended::Failed(Status::unavailable("the host is stopping")),
        };
        let last = match ended {
            Ended::Gone => return,
            Ended::Lost => Ok(lost()),
            Ended::Evicted => Ok(about("evicted", &json!({ "reason": EVICTED }), Some(self.cursor()))),
            Ended::Failed(status) => Err(status),
        };
        // Whoever takes nothing is not told.
        let _ = timeout(wait_max, out.send(EVENT_BYTES, || last)).await;
    }

    /// Until it is over. Dropped at any point, `position` is that of what was sent.
    async fn show(&mut self, begin: Begin) -> Ended {
        match self.follow(begin).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn follow(&mut self, begin: Begin) -> Result<std::convert::Infallible, Ended> {
        if begin == Begin::Cursor {
            self.find().await?;
        }
        let mut live = begin == Begin::Live;
        let mut tail = self.log.tail().follow(&self.tenant);
        // As often as other followers hear something.
        let mark_every = self.edge.options.sse_heartbeat;
        self.phase(live).await?;
        loop {
            let is_all = self.page().await?;
            if is_all && !live {
                live = true;
                self.phase(live).await?;
            } else if self.position > self.told && self.told_at.elapsed() >= mark_every {
                self.phase(live).await?;
            }
            if !is_all {
                continue;
            }
            // It looks again also where nothing comes: others' events move the log on.
            if let Ok(false) = timeout(mark_every, tail.wait_after(self.position)).await {
                return Err(Ended::Failed(Status::unavailable("the log has closed")));
            }
        }
    }

    /// Waits until the cursor can be gone on from. Where others write to the log, one of them may have shown what is not seen
    /// here yet, also of a log that has begun anew; nobody is told that a cursor is lost for that.
    async fn find(&self) -> Result<(), Ended> {
        let begun = Instant::now();
        loop {
            let is_of_this_life = self.log.epoch() == self.epoch;
            let bounds = self.log.bounds();
            if is_of_this_life && (bounds.trimmed..=bounds.newest).contains(&self.position) {
                return Ok(());
            }
            let is_gone = is_of_this_life && self.position < bounds.trimmed;
            if is_gone || self.log.view() == LogView::Whole {
                return Err(Ended::Lost);
            }
            if begun.elapsed() >= GRPC_CURSOR_WAIT_MAX {
                // Only who reads the log knows that it is another one.
                if !is_of_this_life && (self.edge.services.ready)().ready {
                    return Err(Ended::Lost);
                }
                let why = "this host has not seen the log as far as the cursor yet; come again, or ask another host";
                return Err(Ended::Failed(later(Code::Unavailable, why, GRPC_RETRY_AFTER)));
            }
            tokio::time::sleep(GRPC_CURSOR_LOOK).await;
        }
    }

    /// Shows a page. Answers whether the log has no more.
    async fn page(&mut self) -> Result<bool, Ended> {
        if self.log.epoch() != self.epoch {
            return Err(Ended::Lost);
        }
        let limit = PageLimit { events: GRPC_PAGE_EVENTS_MAX, bytes: GRPC_PAGE_BYTES_MAX };
        let page = match self.log.read(&self.tenant, self.position, limit).await {
            Ok(page) => page,
            Err(StreamError::PositionLost { .. } | StreamError::PositionAhead { .. }) => {
                return Err(Ended::Lost);
            }
            Err(error) => return Err(Ended::Failed(status(&Problem::from(error)))),
        };
        for event in page.events.iter() {
            let kind = kind_of(&event);
            if self.filters.show(kind, &event) {
                let bytes = event.payload.len() + event.event_type.len() + kind.len() + EVENT_BYTES;
                let cursor = self.cursor_at(event.position);
                self.send(bytes, event.position, || notification(kind, &event, cursor)).await?;
            }
            self.position = event.position;
        }
        self.position = self.position.max(page.next);
        Ok(page.events.is_empty())
    }

    /// Says how far the stream is, and where to go on.
    async fn phase(&mut self, live: bool) -> Result<(), Ended> {
        let (phase, cursor) = (if live { "live" } else { "replay" }, self.cursor());
        let said = || about("phase", &json!({ "phase": phase }), Some(cursor));
        self.send(EVENT_BYTES, self.position, said).await
    }

    async fn send(
        &mut self,
        bytes: usize,
        position: Position,
        message: impl FnOnce() -> EventNotification,
    ) -> Result<(), Ended> {
        let sent = timeout(self.write_wait_max(), self.out.send(bytes, || Ok(message()))).await;
        // It comes back with the cursor of what it has taken.
        let Ok(Ok(())) = sent else { return Err(Ended::Gone) };
        (self.told, self.told_at) = (position, Instant::now());
        Ok(())
    }

    fn write_wait_max(&self) -> Duration {
        self.edge.options.write_wait_max
    }

    fn cursor(&self) -> String {
        self.cursor_at(self.position)
    }

    fn cursor_at(&self, position: Position) -> String {
        Cursor { epoch: self.epoch.clone(), position }.to_string()
    }
}

/// An event's own kind, else its aggregate. What is published cannot speak about a stream.
fn kind_of<'a>(event: &Event<'a>) -> &'a str {
    let kind = if event.kind.is_empty() { event.aggregate } else { event.kind };
    if kind == ABOUT { PLAIN } else { kind }
}

/// An event of the log in the words of the protocol. Its payload goes out as it is.
fn notification(kind: &str, event: &Event<'_>, cursor: String) -> EventNotification {
    let action = event.event_type.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
    EventNotification {
        event: action.filter(|action| !action.is_empty()).unwrap_or(event.event_type).to_owned(),
        kind: kind.to_owned(),
        data: event.payload.to_vec(),
        cursor: Some(cursor),
    }
}

fn lost() -> EventNotification {
    about("invalidate", &json!({ "reason": LOST }), None)
}

fn about(event: &str, data: &serde_json::Value, cursor: Option<String>) -> EventNotification {
    EventNotification {
        event: event.to_owned(),
        kind: ABOUT.to_owned(),
        data: data.to_string().into_bytes(),
        cursor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_loses_its_kind_and_nothing_else() {
        let shown = |kind: &str, event_type: &str| {
            notification(kind, &Event { event_type, ..Event::default() }, "e.1".into()).event
        };
        assert_eq!(shown("entry", "entry.created"), "created");
        assert_eq!(shown("entry", "entry.created.again"), "created.again");
        assert_eq!(shown("entry", "entrycreated"), "entrycreated");
        assert_eq!(shown("entry", "entry."), "entry.");
        assert_eq!(shown("flight", "flight_departed"), "flight_departed");
    }

    #[test]
    fn no_event_of_the_log_is_about_a_stream() {
        let shown =
            |kind: &str, aggregate: &str| kind_of(&Event { kind, aggregate, ..Event::default() }).to_owned();
        assert_eq!(shown("stream", "flight"), "event");
        assert_eq!(shown("", "stream"), "event");
        assert_eq!(shown("flight", "stream"), "flight");
        assert_eq!(shown("streams", "stream"), "streams");
    }
}
