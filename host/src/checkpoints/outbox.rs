//! What processors emit and append on its way to a log, and channels, that are not in the store.
//!
//! It is written in the commit of the task that asks for it, and stays until it has arrived: [`Outbox`] hands it out in
//! its order, and [`crate::processors::Relay`] carries it over. An event's id is what tells a repeat apart in the log, and
//! an entry's key does so in the channels; so carrying one over twice changes nothing.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::channels::{ChannelId, NewEntry};
use crate::error::BackendError;
use crate::event::{Epoch, EventBatch, Position, TenantId};

/// What one processor has emitted and appended for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxBatch {
    pub processor: Arc<str>,
    pub tenant: TenantId,
    /// In their order, except that entries of different channels may overtake each other.
    pub parts: Vec<OutboxPart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxPart {
    /// The outbox's numbers of what is in it, ascending.
    pub numbers: Vec<u64>,
    pub what: OutboxWhat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxWhat {
    /// Without positions: the log gives them.
    Events(EventBatch),
    Appends(CarriedAppends),
}

/// Entries for one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedAppends {
    pub channel: ChannelId,
    pub appends: Vec<CarriedAppend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedAppend {
    /// What a repeat of it is told by, among all that its processor appends for its tenant, at whichever host.
    pub key: Box<str>,
    pub entry: NewEntry,
    /// Of its event, where entries of the channel are events.
    pub depth: u32,
    pub scope: Box<str>,
    pub traceparent: Box<str>,
}

/// What became of an entry that was carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Appended,
    /// It had been appended before.
    Repeated,
    /// The channel will not take it.
    Refused {
        code: &'static str,
        message: String,
    },
    /// The channel has no room for it now.
    Full {
        code: &'static str,
        message: String,
    },
    /// It was not tried, since the one before it found no room.
    Behind,
}

/// What is done about entries that a channel has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhileFull {
    /// They are [`Fate::Full`], and what is behind them waits.
    Wait,
    /// They are [`Fate::Refused`], and what is behind them is tried.
    Refuse,
}

/// Why nothing was carried, as far as is known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CarryError {
    #[error("another host has the lease by now")]
    Fenced,
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Takes entries to channels that are not in the store.
pub trait ChannelCarrier: Send + Sync + Debug {
    /// Appends entries in their order, each once however often it is carried, and answers what became of each, durably.
    /// `fence` is the name of a lease and the generation under which it is done.
    fn carry<'a>(
        &'a self,
        processor: &'a str,
        appends: &'a CarriedAppends,
        fence: Option<(&'a str, u64)>,
        full: WhileFull,
    ) -> BoxFuture<'a, Result<Vec<Fate>, CarryError>>;
}

/// What became of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxDone {
    /// They have arrived.
    pub carried: Vec<u64>,
    /// They will never be taken: the entry, a code and what was wrong.
    pub refused: Vec<(u64, &'static str, String)>,
}

/// Emitted events and appended entries that have not arrived yet.
pub trait Outbox: Send + Sync + Debug {
    /// The oldest entries, one batch for each processor and tenant, in parts that any log and channel takes. What is in it
    /// is all that waited up to its end. `held` names processors whose entries wait for something else.
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
