//! The seam between a group's owner and the store that it shares with the log: what of a group is durable.
//!
//! Leases are not: a restart delivers again what was leased. Everything else is.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::error::GroupError;
use super::names::GroupId;
use super::options::{GroupChange, GroupOptions, OnLost};
use super::ranges::Ranges;
use super::status::{GroupLetter, LetterPage};
use crate::event::{Micros, Position, TenantId};

/// A group as it is stored.
#[derive(Clone, Debug)]
pub struct StoredGroup {
    pub group: GroupId,
    /// Never used again, also not by a group of the same name. A group that is moved gets another.
    pub incarnation: u64,
    pub options: GroupOptions,
    pub created_at: Micros,
    /// Everything up to here is done.
    pub low: Position,
    /// What is done beyond.
    pub done: Ranges,
    /// What was delivered once at least, beyond `low`; what was delivered more often has a [`Tried`].
    pub delivered: Ranges,
    pub lost_events: u64,
    pub lost_until: Position,
    pub lost_at: Option<Micros>,
    pub stopped: bool,
}

/// What is known of an entry that failed or was delivered more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    pub attempts: u32,
    /// When it may be delivered again.
    pub due: Micros,
    pub message: String,
}

/// A group and everything that its owner needs to go on.
#[derive(Clone, Debug)]
pub struct LoadedGroup {
    pub row: StoredGroup,
    pub tried: Vec<(Position, Tried)>,
    /// Positions of the dead letters that nobody has replayed.
    pub dead: Vec<Position>,
    /// Those that were replayed and not yet acknowledged.
    pub replaying: Vec<GroupLetter>,
}

/// What has changed. The whole of `done` and `delivered`, so that a later write stands for the earlier ones.
#[derive(Clone, Debug, Default)]
pub struct GroupWrite {
    pub incarnation: u64,
    /// Never moves the stored one back.
    pub low: Position,
    pub done: Ranges,
    pub delivered: Ranges,
    /// None forgets.
    pub tried: Vec<(Position, Option<Tried>)>,
    pub dead: Vec<GroupLetter>,
    /// Dead letters that are replayed from now on.
    pub replaying: Vec<Position>,
    /// Dead letters that are no more.
    pub resolved: Vec<Position>,
}

/// What of a stream a group has not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub events: u64,
    /// There may be more.
    pub is_least: bool,
    /// When the oldest of them was appended.
    pub oldest_at: Option<Micros>,
}

/// Keeps groups beside the log.
///
/// Calls that write take effect in the order in which they are made, whenever they are awaited, and answer once
/// they are durable. Trimming the log is part of the contract: in the same transaction, each group loses what is
/// removed and was not done, by [`lose`], with a counter and a line in the log.
pub trait GroupStore: Send + Sync + Debug {
    /// Makes a group that begins behind `start`, or changes the named options of the one there is, whose
    /// position stays. Answers whether it is new. Idempotent.
    fn ensure(
        &self,
        group: &GroupId,
        wanted: NewGroup,
    ) -> BoxFuture<'_, Result<(StoredGroup, bool), GroupError>>;

    /// Removes a group and its dead letters. [`GroupError::Unknown`] where there is none.
    fn remove(&self, group: &GroupId) -> BoxFuture<'_, Result<(), GroupError>>;

    /// One group with all that belongs to it. Sees every write that was answered before.
    fn load(&self, group: &GroupId) -> BoxFuture<'_, Result<LoadedGroup, GroupError>>;

    /// The same without what belongs to it.
    fn row(&self, group: &GroupId) -> BoxFuture<'_, Result<StoredGroup, GroupError>>;

    /// Groups of a tenant and a stream, or those of all that are furthest behind; the latter up to `limit`.
    fn list(
        &self,
        of: Option<(&TenantId, &str)>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredGroup>, GroupError>>;

    /// Writes what has changed. [`GroupError::Interrupted`] where that incarnation is no more.
    fn write(&self, group: &GroupId, write: GroupWrite) -> BoxFuture<'_, Result<(), GroupError>>;

    /// Moves a group: everything up to there is done, nothing beyond is. Dead letters stay. A stopped group goes
    /// on. It gets another incarnation, so that whoever held the former one notices.
    fn seek(&self, group: &GroupId, to: Position) -> BoxFuture<'_, Result<(), GroupError>>;

    /// Dead letters behind a position, as [`LetterPage::fill`] has them.
    fn letters(
        &self,
        group: &GroupId,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<LetterPage, GroupError>>;

    /// What of the group's stream after a position is not done by what is stored, counted up to `max`.
    fn unread(&self, group: &GroupId, after: Position, max: u64)
    -> BoxFuture<'_, Result<Unread, GroupError>>;
}

/// What [`GroupStore::ensure`] makes.
#[derive(Clone, Copy, Debug)]
pub struct NewGroup {
    pub change: GroupChange,
    pub start: Position,
    pub groups_max: u64,
    pub tenant_groups_max: u64,
}

/// What retention does to a group, decided in one place for every store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Everything of the stream up to here that is not done counts as lost.
    pub until: Position,
    pub stop: bool,
}

/// What becomes of a group when everything up to `trimmed` goes.
pub fn lose(row: &StoredGroup, trimmed: Position, newest: Position) -> Loss {
    match row.options.on_lost {
        OnLost::Stop => Loss { until: trimmed, stop: true },
        OnLost::FromOldest => Loss { until: trimmed, stop: false },
        // A stopped group was told to; it waits for somebody.
        OnLost::Tail => Loss { until: newest, stop: false },
    }
}

/// Says once that a group has lost events, and then now and then as long as it goes on.
#[derive(Clone, Debug)]
pub struct LossReport {
    pub group: Arc<GroupId>,
    pub events: u64,
    pub until: Position,
    pub policy: OnLost,
    /// When it had lost something before.
    pub before: Option<Micros>,
}

impl LossReport {
    /// Counts, and writes the line. To be called once the loss is durable.
    pub fn tell(&self, now: Micros) {
        use crate::limits::GROUP_LOST_LOG_EVERY;
        use crate::telemetry::metrics as names;
        metrics::counter!(names::GROUP_LOST_POSITIONS).increment(1);
        metrics::counter!(names::GROUP_LOST_EVENTS).increment(self.events);
        let every = i64::try_from(GROUP_LOST_LOG_EVERY.as_micros()).unwrap_or(i64::MAX);
        if self.before.is_some_and(|before| now.0.saturating_sub(before.0) < every) {
            return;
        }
        tracing::warn!(
            error.kind = "group_position_lost",
            error.blame = "caller",
            group = %self.group,
            tenant = %self.group.tenant,
            events = self.events,
            stream.position = self.until.0,
            policy = ?self.policy,
            "retention removed events that a group had not acknowledged"
        );
    }
}
