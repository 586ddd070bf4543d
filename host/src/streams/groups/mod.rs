//! Consumer groups: any stream handed out to consumers outside of the host, entry by entry, until each is done.
//!
//! Promises: at least once. An entry that was delivered and is not acknowledged is delivered again, when its
//! lease ends, after a nack, after a restart; what is acknowledged is durable before that is answered. Of one
//! key (aggregate and aggregate id) one entry is out at a time, in the order of the stream: while it is leased or
//! waits for another try, what follows on its key waits, and other keys go on. An entry that has failed
//! `attempts_max` times becomes a dead letter with its reason, and its key goes on without it; when it is replayed
//! later it comes before what waits of its key. Consumers of a group share its keys and need no place of their own: whoever reads gets what is
//! free.
//!
//! Retention does not wait for groups: disks are finite, and a group that nobody reads must not fill them. What
//! retention removes before it was done is counted, logged, and told to the group by its policy
//! ([`OnLost`]); it never just disappears from the lag.
//!
//! Attempts count deliveries. They survive a restart, except that a host that is killed may forget a delivery of
//! its last second. Leases and the list of consumers do not survive one. Where several hosts share their groups (on
//! Redis), all of this lies in the server and outlives every host.
//!
//! `state` decides and does no I/O, `owner` drives it over the log, `store` is the seam for what is durable.

mod asked;
mod error;
mod gauges;
mod names;
mod options;
mod owner;
mod ranges;
mod reading;
pub mod state;
mod status;
mod store;
mod streams;
mod window;
mod writer;

use std::fmt::Debug;

use futures_util::future::BoxFuture;

pub use error::GroupError;
pub use gauges::gauges;
pub use names::{ConsumerName, GroupId, GroupName, Receipt};
pub use options::{GroupChange, GroupLimits, GroupOptions, GroupStart, OnLost};
pub use owner::GroupOwner;
pub use ranges::Ranges;
pub use status::{
    ConsumerStatus, DeadReason, Deliveries, Delivery, GroupLag, GroupLetter, GroupRead, GroupStatus,
    LetterPage, LetterVerdict, Refusal, Settle, Settled,
};
pub use store::{
    GroupStore, GroupWrite, LoadedGroup, Loss, LossReport, NewGroup, StoredGroup, Tried, Unread, lose,
};

pub(crate) use asked::{check_groups, check_read, check_settles, count};
pub(crate) use streams::{follow, horizon, page, start_of, stream_of};

use crate::event::{Position, TenantId};

/// Groups of consumers over streams.
///
/// [`GroupOwner`] implements it for a host that has its log to itself. A backend whose groups are shared by
/// several hosts implements it beside its log; `tests/src/conformance` has the suite that all of them pass.
///
/// Every call answers [`GroupError::UnknownStream`] for a stream that there is not, and all but `ensure`, `list`
/// and `lags` [`GroupError::Unknown`] for a group that there is not. Dropping a future takes nothing back.
pub trait Groups: Send + Sync + Debug {
    /// Makes a group that begins at `start`. There may be one: it stays where it is, and the named options
    /// change. Answers how it stands and whether it is new. Durable when answered.
    fn ensure(
        &self,
        group: &GroupId,
        start: GroupStart,
        change: GroupChange,
    ) -> BoxFuture<'_, Result<(GroupStatus, bool), GroupError>>;

    /// Removes a group, its place and its dead letters. Reads that wait answer [`GroupError::Unknown`].
    fn remove(&self, group: &GroupId) -> BoxFuture<'_, Result<(), GroupError>>;

    /// The groups of a tenant on a stream, by name.
    fn list(&self, tenant: &TenantId, stream: &str) -> BoxFuture<'_, Result<Vec<GroupStatus>, GroupError>>;

    /// How a group stands.
    fn status(&self, group: &GroupId) -> BoxFuture<'_, Result<GroupStatus, GroupError>>;

    /// Moves a group, forward or back, and lets one go on that has stopped. Receipts of before are good for
    /// nothing afterwards. Dead letters stay, one that it was moved back before until its entry is acknowledged.
    fn seek(&self, group: &GroupId, to: GroupStart) -> BoxFuture<'_, Result<GroupStatus, GroupError>>;

    /// Leases entries to a consumer, the oldest first; waits for one where there is none. An answer without
    /// entries means that none came in time. What is answered is leased, also when the answer gets lost: it is
    /// delivered again when the lease ends.
    fn read(&self, group: &GroupId, read: GroupRead) -> BoxFuture<'_, Result<Deliveries, GroupError>>;

    /// Acknowledges, refuses or renews leases, each for itself, and answers in their order. Durable when
    /// answered. Idempotent: an entry that is done stays so, and says [`Settled::Already`].
    fn settle(&self, group: &GroupId, said: Vec<Settle>) -> BoxFuture<'_, Result<Vec<Settled>, GroupError>>;

    /// Who reads from the group, by name. One that holds nothing and is silent for long is forgotten.
    fn consumers(&self, group: &GroupId) -> BoxFuture<'_, Result<Vec<ConsumerStatus>, GroupError>>;

    /// Dead letters behind a position, the oldest first: so many at most, and a page's bytes of them.
    fn letters(
        &self,
        group: &GroupId,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<LetterPage, GroupError>>;

    /// Replays or discards a dead letter. One that is being replayed stays until it is acknowledged. Durable
    /// when answered. Replaying twice is replaying once, and so is replaying what the group was moved back before.
    fn decide(
        &self,
        group: &GroupId,
        position: Position,
        verdict: LetterVerdict,
    ) -> BoxFuture<'_, Result<(), GroupError>>;

    /// How far groups are behind, of all tenants: the `limit` that stand at the lowest positions.
    fn lags(&self, limit: usize) -> BoxFuture<'_, Result<Vec<GroupLag>, GroupError>>;
}
