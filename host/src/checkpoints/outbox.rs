//! Emitted events on their way to a log that is not in the store.
//!
//! They are written in the commit of the task that emits them, and stay until the log has them: [`Outbox`] hands them
//! out in their order, and [`crate::processors::Relay`] carries them over. An event's id is what tells a repeat apart
//! in the log, so carrying one over twice changes nothing.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::error::BackendError;
use crate::event::{Epoch, EventBatch, Position};

/// Events of one processor for one tenant, in the order in which they were emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxBatch {
    pub processor: Arc<str>,
    /// The entries of the events, ascending.
    pub entries: Vec<u64>,
    /// Without positions: the log gives them.
    pub events: EventBatch,
}

/// What became of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxDone {
    /// The log has them.
    pub carried: Vec<u64>,
    /// The log will never take them: the entry, a code and what was wrong.
    pub refused: Vec<(u64, &'static str, String)>,
}

/// Emitted events that the log does not have yet.
pub trait Outbox: Send + Sync + Debug {
    /// The oldest entries, in batches that any log takes. Of one processor and tenant, a later event never comes
    /// before an earlier one that still waits. `held` names processors whose events wait for something else.
    fn waiting(&self, held: &[Arc<str>]) -> BoxFuture<'_, Result<Vec<OutboxBatch>, BackendError>>;

    /// Removes entries. Refused ones are kept apart, the newest `OUTBOX_REFUSED_MAX` of them, for somebody to look at.
    /// Durable when it answers; a second call with the same entries does nothing.
    fn settle(&self, done: OutboxDone) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Changes when entries are added.
    fn added(&self) -> watch::Receiver<u64>;

    /// How many entries wait.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether none of a processor's wait.
    fn is_empty_of(&self, processor: &str) -> bool;
}

/// How far a log was that a store has worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMark {
    pub epoch: Epoch,
    /// It was as far as this, in this epoch.
    pub newest: Position,
    /// Some task has come as far as this; in a later epoch, perhaps.
    pub reached: Position,
}

/// Remembers the log, so that a host which starts anew notices that it is another one, or went back.
pub trait LogMarks: Send + Sync + Debug {
    /// What was remembered last; none when the store has never seen a log.
    fn log_mark(&self) -> BoxFuture<'_, Result<Option<LogMark>, BackendError>>;

    /// Remembers. Durable when it answers.
    fn mark_log(&self, epoch: Epoch, newest: Position) -> BoxFuture<'_, Result<(), BackendError>>;
}
