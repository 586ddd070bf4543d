//! What a host remembers of the feed, durably.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{ControlEvent, ControlVersion, EventId, Result};

/// The newest that is known of one entity (`plugin:<name>` or `trust`).
#[derive(Clone, Debug)]
pub struct DesiredRow {
    pub entity: String,
    pub revision: u64,
    pub version: ControlVersion,
    pub event: ControlEvent,
}

/// How far this host is with a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Absent,
    Fetched,
    Verified,
    Compiled,
    Validated,
    Shadow,
    Active,
    Paused,
    Draining,
    Retired,
    Quarantined,
}

/// What this host has made of a plugin's desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRow {
    pub plugin: String,
    /// The revision that this is about.
    pub revision: u64,
    pub phase: Phase,
    /// The component that serves, if one does: another than the desired one while that one proves itself or is quarantined.
    pub serving: Option<String>,
    /// Why it is quarantined or not there yet: a code and a sentence.
    pub reason: Option<(String, String)>,
    /// Microseconds since 1970.
    pub since: i64,
    pub attempts: u32,
}

/// What became of an event here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedOutcome {
    /// The desired state is this event's now.
    Changed,
    /// Its id was applied before.
    Repeated,
    /// What is known is of a higher revision, or the very same event.
    Superseded,
    /// Of a kind that is not known and need not be.
    PassedBy,
    /// Set aside, with the reason. What was desired before stays so.
    Quarantined { code: String, reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: AppliedOutcome,
    pub cursor: ControlVersion,
}

/// An event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quarantined {
    #[schema(value_type = u64)]
    pub version: ControlVersion,
    /// The event's id, or what the source calls it.
    pub name: String,
    pub code: String,
    pub reason: String,
    /// Microseconds since 1970.
    pub at: i64,
}

/// An answer to a proposed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    pub entity: String,
    pub revision: u64,
    /// It was there already.
    pub repeated: bool,
}

/// An event that a publisher has the right to carry.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub event: ControlEvent,
    pub attempts: u32,
    /// Shown with what became of it; a claim that has ended has another's.
    pub claim: u64,
}

/// A host's own memory. Each method is one transaction, durable when it answers.
pub trait ControlStore: Send + Sync + Debug {
    // What is desired here.

    fn cursor(&self) -> BoxFuture<'_, Result<ControlVersion>>;

    /// {desired state, the event's id, cursor} together. Asks in this order: is the id known (`Repeated`, whatever the
    /// cursor), is the revision above the known one (else `Superseded`). The cursor never goes back.
    fn apply<'a>(
        &'a self,
        version: ControlVersion,
        event: &'a ControlEvent,
    ) -> BoxFuture<'a, Result<Applied>>;

    /// Sets an entry of the feed aside, or lets it pass by, and moves the cursor.
    fn pass<'a>(
        &'a self,
        version: ControlVersion,
        event: Option<&'a EventId>,
        quarantine: Option<&'a Quarantined>,
    ) -> BoxFuture<'a, Result<Applied>>;

    /// Takes a snapshot's events in place of all that is desired, and its control version as the cursor. An entity that is
    /// known at a higher revision stays as it is, and so does one that the snapshot does not have.
    fn restore<'a>(
        &'a self,
        version: ControlVersion,
        events: &'a [ControlEvent],
    ) -> BoxFuture<'a, Result<()>>;

    /// Everything that is desired and the cursor, as of one moment.
    fn desired(&self) -> BoxFuture<'_, Result<(ControlVersion, Vec<DesiredRow>)>>;

    fn quarantined(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Quarantined>>>;

    /// Forgets applied ids of control versions at or below this one.
    fn forget_applied(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>>;

    // What was made of it.

    fn observed(&self) -> BoxFuture<'_, Result<Vec<ObservedRow>>>;

    fn observe<'a>(&'a self, row: &'a ObservedRow) -> BoxFuture<'a, Result<()>>;

    fn forget_observed<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<()>>;

    // What this host tells the fleet. The origin's own view of what is desired is ahead of its applier's.

    /// {origin's state, outbox row} together: `RevisionConflict` unless the entity stands at the event's base revision, and
    /// the same event id again answers what it answered first.
    fn propose<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<Proposed>>;

    /// What the origin last told of each entity, in the order of entities; what the applier knows where that is newer.
    fn proposed(&self) -> BoxFuture<'_, Result<Vec<DesiredRow>>>;

    /// Claims the next event of each entity that is due, up to `limit`, for a time. Of an entity whose first event waits,
    /// is claimed or is dead, none.
    fn claim(&self, limit: usize, lease: Duration) -> BoxFuture<'_, Result<Vec<Claimed>>>;

    /// It is in the feed at this version.
    fn published(&self, claimed: &Claimed, version: ControlVersion) -> BoxFuture<'_, Result<()>>;

    /// It is not, and is to be tried again after a time; none makes it a dead letter, which holds its entity until somebody
    /// discards or retries it.
    fn unpublished(
        &self,
        claimed: &Claimed,
        error: &str,
        again: Option<Duration>,
    ) -> BoxFuture<'_, Result<()>>;

    /// When the next event of the outbox is due; none when it is empty or all that is left is dead.
    fn next_due(&self) -> BoxFuture<'_, Result<Option<Duration>>>;

    // Small things by name, such as the global freeze.

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>>;

    fn set_note<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> BoxFuture<'a, Result<()>>;
}
