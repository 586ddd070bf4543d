//! The durable log of events.
//!
//! Promises: an acknowledged append is durable; events keep the order of their
//! positions; a repeated event id (inside the dedup window, and with the same
//! content) answers its first position and appends nothing; a reader whose
//! place is no longer held is told so. Every read and every id is inside one
//! tenant. There is no "now": a tail starts from a position the log answered.
//!
//! One counter gives the positions of a whole log, so a position (and a cursor)
//! means the same on every stream of it. `events` is the stream that processors
//! handle; streams with a name of their own hold what was appended to them and
//! nothing else; change streams are indexes over `events`, written in the same
//! append as the event. [`name`] says how they are called, [`scopes`] which
//! change streams an event belongs to.

pub mod groups;
pub mod hub;
pub mod name;
pub mod scopes;
mod tail;
pub mod upcast;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use hub::{ChangeMode, ChangeRequest, Delivery, GapCause, Hub, HubError, Subscription};
pub use name::{ChangeStream, InvalidStreamName, StreamName};
pub use scopes::{AggregateScopes, ChangeScopes, Scope, ScopeError};
pub use tail::{Tail, TailReader, TailStats};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::cluster::Fence;
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{Epoch, EventBatch, InvalidEvent, Micros, Page, Position, TenantId};

/// How much one read may answer. A page holds one event at least, where there is one.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    pub events: usize,
    pub bytes: usize,
}

/// What the log did with one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: Position,
    /// It was there already; this is its first position.
    pub repeated: bool,
}

/// Which positions are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Every event up to here is gone. Reading after an earlier position is [`StreamError::PositionLost`].
    pub trimmed: Position,
    /// The newest event of the whole log; [`Position::START`] while it is empty.
    pub newest: Position,
}

/// What a host can know of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogView {
    /// Nobody else writes to it: what is outside of its bounds is not in it.
    Whole,
    /// Others write to it, too. They may have seen more of it, or that it has begun anew.
    Shared,
    /// It was not reached yet: its epoch and its bounds say nothing.
    Unreached,
}

/// A page of any stream.
#[derive(Clone, Debug)]
pub struct StreamPage {
    pub events: Arc<EventBatch>,
    /// Where to go on: the last event's position of a full page, and otherwise the newest of the log.
    pub next: Position,
    /// Reading after this position misses nothing that the stream ever had, or has had since it was declared.
    pub oldest: Position,
    /// The newest position of the log.
    pub newest: Position,
    /// Events after the asked position are no longer held, or were never in this stream: `after` is older than
    /// `oldest`. The page begins with the oldest that there is.
    pub truncated: bool,
}

/// The log of events.
///
/// Backends: `backends::sqlite`, `backends::memory`; `tests/src/conformance`
/// has the suite that both pass.
pub trait EventLog: Send + Sync + Debug {
    /// Appends all events of a batch or none, and answers once they are
    /// durable. Idempotent by event id within the dedup window: a repeat with
    /// the same content answers the first position, other content is
    /// [`StreamError::IdTaken`]. Waits when the queue is full. Dropping the
    /// future does not take the append back.
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>>;

    /// Appends for whoever holds a lease: [`StreamError::Fenced`] once somebody else has got it, whatever this host
    /// believes. A log that no other host writes to has nobody to fence out, and appends.
    fn append_fenced(
        &self,
        batch: EventBatch,
        fence: &Fence,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let _ = fence;
        self.append(batch)
    }

    /// A tenant's events after a position, oldest first. An empty page's `next`
    /// is the newest position of the log, so that readers of quiet tenants move on.
    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>>;

    /// Appends to one stream: to `events`, which is [`Self::append`], or to one with a name of its own. All
    /// that `append` promises holds; ids are told apart by stream. What was appended to another stream is
    /// in no page and no tail of `events` and in no change stream. A stream begins with its first event; a tenant has
    /// [`NAMED_STREAMS_MAX`](crate::limits::NAMED_STREAMS_MAX) at most. Change streams take no appends:
    /// [`StreamError::NotAppendable`].
    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>>;

    /// A stream's events after a position, oldest first; none for a stream that nobody has written to. What is
    /// no longer held is told by `truncated` and not by an error, so that a reader sees what there is;
    /// [`StreamError::PositionAhead`] as in [`Self::read`]. Waits for `events` of a tenant through
    /// `tail().follow`, for a stream with a name of its own through `tail().follow_named`.
    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>>;

    /// Replaces the change scopes that an owner has declared ([`ChangeScopes::declare`]); none withdraws them.
    /// Durable when it answers. Events appended from then on are in the streams of these scopes, in the very
    /// append that writes them; earlier events are not. A second call with the same scopes does nothing.
    /// The same scopes of several owners are one declaration, other ones are refused.
    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>>;

    /// The change scopes in effect, also those of an earlier life of the host.
    fn scopes(&self) -> Arc<ChangeScopes>;

    /// When the tenant's first held event after a position was appended; none where there is no such event.
    /// A log that does not keep that answers the event's own time.
    fn appended_at(
        &self,
        tenant: &TenantId,
        after: Position,
    ) -> BoxFuture<'_, Result<Option<Micros>, StreamError>> {
        let page = self.read(tenant, after.max(self.bounds().trimmed), PageLimit { events: 1, bytes: 0 });
        async { Ok(page.await?.events.records().first().map(|record| Micros(record.at))) }.boxed()
    }

    /// What is held.
    fn bounds(&self) -> Bounds;

    /// Which life of the log this is.
    fn epoch(&self) -> Epoch;

    /// How much [`Self::bounds`] and [`Self::epoch`] say.
    fn view(&self) -> LogView {
        LogView::Whole
    }

    /// Recent events in memory, and the way to wait for new ones.
    fn tail(&self) -> &Tail;

    /// Every tenant that has ever appended. New ones are announced by `tail().tenants()`.
    fn tenants(&self) -> Vec<TenantId>;

    /// Drops the oldest events beyond an age or a count. Answers how many went.
    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>>;
}

/// How long events are kept. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// By time of append, not by the event's own `at`.
    pub age: Option<Duration>,
    /// Over all tenants.
    pub events: Option<u64>,
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    #[error("position {asked} is no longer held; the oldest held is after {trimmed}")]
    PositionLost { asked: Position, trimmed: Position },
    #[error("position {asked} is beyond the newest, {newest}")]
    PositionAhead { asked: Position, newest: Position },
    /// `index` counts in the batch.
    #[error("event id `{id}` is taken by an event with other content at position {position}")]
    IdTaken { index: usize, id: String, position: Position },
    #[error("{events} events in a batch; batch_events_max is {max}")]
    TooManyEvents { events: usize, max: usize },
    #[error("{bytes} bytes in a batch; batch_bytes_max is {max}")]
    TooManyBytes { bytes: usize, max: usize },
    #[error("`{stream}` is written by the host alone: it has the positions of `events`")]
    NotAppendable { stream: String },
    #[error("the tenant has {max} streams with a name of their own; named_streams_max is {max}")]
    TooManyStreams { max: usize },
    #[error("another host has the lease of `{name}` by now")]
    Fenced { name: String },
    #[error(transparent)]
    Scopes(#[from] ScopeError),
    #[error(transparent)]
    Invalid(#[from] InvalidEvent),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for StreamError {
    fn code(&self) -> &'static str {
        match self {
            Self::PositionLost { .. } => "position_lost",
            Self::PositionAhead { .. } => "position_ahead",
            Self::IdTaken { .. } => "event_id_taken",
            Self::TooManyEvents { .. } => "batch_events_max",
            Self::TooManyBytes { .. } => "batch_bytes_max",
            Self::NotAppendable { .. } => "stream_not_appendable",
            Self::TooManyStreams { .. } => "named_streams_max",
            Self::Fenced { .. } => "fenced",
            Self::Scopes(e) => e.code(),
            Self::Invalid(_) => "event_invalid",
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(e) => e.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Backend(e) => e.blame(),
            Self::Fenced { .. } => Blame::Host,
            _ => Blame::Caller,
        }
    }
}
