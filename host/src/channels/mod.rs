//! Channels: durable, ordered logs between whoever submits a piece of work and whoever executes it.
//!
//! A process belongs to a tenant and has a submitter, at times an executor, observers, and channels by name. Both sides
//! append and read; observers read. An entry gets a position when it is appended, from 1 on without holes, and keeps it:
//! a position, with the process that it is of, is the only cursor, and what is replayed comes in the order in which it
//! came live.
//!
//! Promises: what was acknowledged lies at its position for as long as it is kept; a sender's entries are in the order of
//! its numbers, unless the channel was made to take them as they arrive; (sender, epoch, sequence) is there once, and a
//! repeat answers the first position; an executor's rights end with its epoch, subscriptions included; a full channel
//! takes an `end` all the same; a slow follower is told that it is behind and loses nothing that the log has.
//!
//! `rules` decides and `record` is what it decides on; a [`ChannelStore`] carries it out in its transaction; `router`
//! is what clients call; `tail` wakes those who follow.

mod assign;
mod bell;
mod causal;
mod counts;
pub mod cursor;
mod entry;
mod error;
mod event;
mod limiter;
mod names;
mod options;
mod record;
mod room;
mod router;
mod rules;
mod subscription;
mod tail;
mod waiting;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use causal::in_senders_order;
pub(crate) use counts::{Written, count_refused, count_written};
pub use cursor::{Incarnation, Place};
pub use entry::{Appended, Entry, EntryPage, EntryType, NewEntry};
pub use error::ChannelError;
pub use event::Cause;
pub(crate) use event::{check_depth, push_event};
pub use limiter::{Limiters, RateLimiter};
pub use names::{ChannelId, ChannelName, Party, ProcessId, ProcessName};
pub use options::{ChannelLimits, ChannelOptions, Gaps, WhenFull};
pub use record::{Channel, Closed, Head, Outcome, Process, ProcessView, Role, Sender};
pub use room::Excess;
pub(crate) use room::archive_excess;
pub(crate) use router::AtOnce;
pub use router::{Begun, Router};
pub use rules::{Actor, Append, Change, NewChannel, NewProcess, Outcomed, Planned};
pub(crate) use rules::{append, append_owned, change, create, may_see};
pub use subscription::{CloseReason, Notice, Now, Subscription, SubscriptionHandle};
pub use tail::Tails;

use crate::event::{Micros, Position, TenantId};

type Result<T> = std::result::Result<T, ChannelError>;

/// Where processes, channels and entries are kept. Each call that changes something is one transaction, decided by
/// `rules`; what it changed is told to [`Self::tails`] after it is durable and before the call answers. Dropping a
/// call's future leaves open whether it was done; repeating it is safe where entries have numbers.
pub trait ChannelStore: Send + Sync + fmt::Debug {
    /// Makes a process. The same again answers what is there, and false.
    fn create(&self, new: NewProcess) -> BoxFuture<'_, Result<(ProcessView, bool)>>;

    fn process(&self, id: &ProcessId) -> BoxFuture<'_, Result<ProcessView>>;

    /// In the order of their names, after one.
    fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Process>>>>;

    fn head(&self, id: &ChannelId) -> BoxFuture<'_, Result<Head>>;

    /// Answers how the process is afterwards. What changes nothing writes nothing.
    fn change(&self, id: &ProcessId, by: Actor, change: Change) -> BoxFuture<'_, Result<ProcessView>>;

    /// All of it or nothing. Calls take effect in the order in which their futures were first polled, or earlier in that in
    /// which they were made. Answers in the order of the entries. A repeat is answered with the first position if it says
    /// the same; an entry that repeats another of the same call does, too.
    fn append(&self, id: &ChannelId, append: Append) -> BoxFuture<'_, Result<Vec<Appended>>>;

    /// The store as one that appends without waiting, if it does.
    fn prompt(&self) -> Option<&dyn PromptStore> {
        None
    }

    /// Entries after a position, in order; at least one if there is one. Where they were dropped it begins with the oldest
    /// and says how many are missed. After the newest it is empty.
    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> BoxFuture<'_, Result<EntryPage>>;

    /// Removes a process with all that it has; where an incarnation is given, that one only. False where it was not there.
    fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> BoxFuture<'_, Result<bool>>;

    /// Removes some of the processes that were closed before a time. Answers how many; fewer than
    /// [`CHANNEL_SWEEP_PROCESSES_MAX`](crate::limits::CHANNEL_SWEEP_PROCESSES_MAX) mean that no more are left.
    fn expire(&self, closed_before: Micros) -> BoxFuture<'_, Result<usize>>;

    /// Of all tenants.
    fn stats(&self) -> BoxFuture<'_, Result<ChannelStats>>;

    fn tails(&self) -> &Tails;

    /// Whether others change what is here, too, so that [`Self::tails`] may not have been told yet.
    fn is_shared(&self) -> bool;

    fn limits(&self) -> &ChannelLimits;
}

/// A [`ChannelStore`] that appends without waiting for anything.
pub trait PromptStore: Send + Sync {
    /// Appends as [`ChannelStore::append`] does. `admit` is asked once, with the channel as it is and before anything is done;
    /// what it refuses is not done. The payloads of an append that was carried out are gone, and at times of one that repeats
    /// what it must not; otherwise it is as it was.
    fn append_at_once(
        &self,
        id: &ChannelId,
        append: &mut Append,
        admit: &mut dyn FnMut(&Head) -> Result<()>,
    ) -> Result<AppendedAtOnce>;
}

/// What came of an append that needed no waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendedAtOnce {
    /// Where its entries lie, in their order.
    pub places: Vec<Appended>,
    /// Of those that are new.
    pub bytes: u64,
    /// Somebody on this host follows the channel, and has been woken.
    pub followed: bool,
}

/// How much of a log is read at once; at least one entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    pub entries: usize,
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    pub channels: u64,
    pub processes: u64,
}
