//! One stream of events: what the log has after a cursor, then what comes.
//!
//! A stream is a reader of the log like any other: who takes events slowly stands at an older position, and is ended only
//! when nothing is taken for `write_wait_ms_max`. Events about the stream itself pass every filter.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::filters::Filters;
use super::places::Place;
use super::refusal::status;
use super::serve::Server;
use crate::event::{Cursor, Epoch, Event, Position, TenantId};
use crate::gateway::auth::{Caller, Right};
use crate::gateway::metrics::Living;
use crate::gateway::problem::Problem;
use crate::limits::{GRPC_PAGE_BYTES_MAX, GRPC_PAGE_EVENTS_MAX, GRPC_STREAM_QUEUE_MAX};
use crate::memory_v1::{EventNotification, EventScope, SubscribeEventsRequest};
use crate::streams::{EventLog, PageLimit, StreamError};

type Message = Result<EventNotification, Status>;

/// What a cursor stands for that this log cannot go on from.
const LOST: &str = "cursor beyond retention window";
const EVICTED: &str = "too many connections";

/// The kind of what is said about a stream, and the one that events of the log have in its place.
const ABOUT: &str = "stream";
const PLAIN: &str = "event";

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
    let (epoch, bounds) = (log.epoch(), log.bounds());
    let begin = match asked.after_cursor.as_deref().map(str::trim).filter(|cursor| !cursor.is_empty()) {
        None => Begin::Live,
        Some("start") => Begin::After(bounds.trimmed),
        Some(text) => match text.parse::<Cursor>() {
            Ok(Cursor { epoch: of, position })
                if of == epoch && (bounds.trimmed..=bounds.newest).contains(&position) =>
            {
                Begin::After(position)
            }
            _ => Begin::Lost,
        },
    };
    let place = match caller.may(Right::Admin) {
        true => Place::uncounted(),
        false => server.places.take((caller.tenant.clone(), Arc::clone(&caller.name))),
    };
    let (out, messages) = mpsc::channel(GRPC_STREAM_QUEUE_MAX);
    let stream = Stream {
        log,
        tenant: caller.tenant.clone(),
        epoch,
        position: match begin {
            Begin::After(position) => position,
            Begin::Live | Begin::Lost => bounds.newest,
        },
        filters,
        out,
        write_wait_max: edge.options.write_wait_max,
    };
    let stopping = edge.stopping.clone();
    edge.tasks.spawn(async move {
        let living = Living::grpc_stream();
        stream.run(begin, &caller, &place, &stopping).await;
        drop((living, place));
    });
    Ok(ReceiverStream::new(messages).boxed())
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// With what comes from now on.
    Live,
    After(Position),
    /// The cursor means nothing here, or what follows it is gone.
    Lost,
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
    log: Arc<dyn EventLog>,
    tenant: TenantId,
    epoch: Epoch,
    /// Everything up to here was shown or left out.
    position: Position,
    filters: Filters,
    out: mpsc::Sender<Message>,
    write_wait_max: Duration,
}

impl Stream {
    async fn run(mut self, begin: Begin, caller: &Caller, place: &Place, stopping: &CancellationToken) {
        let (out, evicted) = (self.out.clone(), place.evicted());
        let ended = tokio::select! {
            ended = self.show(begin) => ended,
            () = out.closed() => Ended::Gone,
            () = evicted.cancelled() => Ended::Evicted,
            problem = caller.valid.ended() => Ended::Failed(status(&problem)),
            () = stopping.cancelled() => Ended::Failed(Status::unavailable("the host is stopping")),
        };
        let last = match ended {
            Ended::Gone => return,
            Ended::Lost => Ok(about("invalidate", &json!({ "reason": LOST }), None)),
            Ended::Evicted => {
                let cursor = self.cursor(self.position);
                Ok(about("evicted", &json!({ "reason": EVICTED }), Some(cursor)))
            }
            Ended::Failed(status) => Err(status),
        };
        // Whoever takes nothing is not told.
        let _ = timeout(self.write_wait_max, out.send(last)).await;
    }

    /// Until it is over. Dropped at any point, `position` is that of what was sent.
    async fn show(&mut self, begin: Begin) -> Ended {
        match self.follow(begin).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn follow(&mut self, begin: Begin) -> Result<std::convert::Infallible, Ended> {
        if begin == Begin::Lost {
            return Err(Ended::Lost);
        }
        let mut live = begin == Begin::Live;
        let mut tail = self.log.tail().follow(&self.tenant);
        self.send(about("phase", &json!({ "phase": if live { "live" } else { "replay" } }), None)).await?;
        loop {
            if !self.page().await? {
                continue;
            }
            if !live {
                live = true;
                self.send(about("phase", &json!({ "phase": "live" }), None)).await?;
            }
            if !tail.wait_after(self.position).await {
                return Err(Ended::Failed(Status::unavailable("the log has closed")));
            }
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
                let shown = notification(kind, &event, self.cursor(event.position));
                self.send(shown).await?;
            }
            self.position = event.position;
        }
        self.position = self.position.max(page.next);
        Ok(page.events.is_empty())
    }

    async fn send(&self, message: EventNotification) -> Result<(), Ended> {
        match timeout(self.write_wait_max, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            // It comes back with the cursor of what it has taken.
            Ok(Err(_)) | Err(_) => Err(Ended::Gone),
        }
    }

    fn cursor(&self, position: Position) -> String {
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
