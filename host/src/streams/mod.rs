//! The durable log of events.
//!
//! Promises: an acknowledged append is durable; events keep the order of their
//! positions; a repeated event id (inside the dedup window, and with the same
//! content) answers its first position and appends nothing; a reader whose
//! place is no longer held is told so. Every read and every id is inside one
//! tenant. There is no "now": a tail starts from a position the log answered.

pub mod groups;
mod tail;

use std::fmt::Debug;
use std::time::Duration;

pub use tail::{Tail, TailReader, TailStats};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

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

    /// A tenant's events after a position, oldest first. An empty page's `next`
    /// is the newest position of the log, so that readers of quiet tenants move on.
    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>>;

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
            _ => Blame::Caller,
        }
    }
}
