//! What a host remembers of the feed, durably.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{ControlEvent, ControlVersion, EventId, Result};
use crate::error::BackendError;
use crate::limits::CONTROL_QUARANTINE_TEXT_BYTES_MAX;

/// The newest that is known of one entity (`plugin:<name>` or `trust`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredRow {
    pub entity: String,
    pub revision: u64,
    /// Where it stands in the feed; 0 while it is only proposed.
    pub version: ControlVersion,
    pub event: ControlEvent,
}

/// Entities whose newest event this version cannot read: a later one wrote it, or the file is damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Those that [`ControlStore::desired`] leaves out.
    pub desired: Vec<String>,
    /// Those that [`ControlStore::proposed`] leaves out, or answers an older event of.
    pub proposed: Vec<String>,
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

/// An entry of the feed, as the applier judged it.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It is to be believed.
    Event { version: ControlVersion, event: ControlEvent },
    /// It needs nothing to be done here.
    PassedBy { version: ControlVersion },
    /// It is wrong, with the event where it could be read as one: one that was applied before is only repeated.
    SetAside { quarantined: Quarantined, event: Option<ControlEvent> },
}

/// What became of an entry here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedOutcome {
    /// The desired state is this event's now.
    Changed,
    /// Its id was applied before.
    Repeated,
    /// What is known is of a higher revision, or the very same event.
    Superseded,
    /// It needed nothing to be done.
    PassedBy,
    /// Set aside, with the reason. What was desired before stays so.
    Quarantined { code: String, reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: AppliedOutcome,
    pub cursor: ControlVersion,
    /// The event of the same revision that was known and had come later in the feed. It is set aside now.
    pub ousted: Option<EventId>,
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

/// A snapshot as it comes into a store.
#[derive(Clone, Debug, Default)]
pub struct Restore {
    pub version: ControlVersion,
    /// Of each entity one, with its place in the feed.
    pub events: Vec<(ControlVersion, ControlEvent)>,
    /// What of the snapshot this host does not believe or understand.
    pub set_aside: Vec<Quarantined>,
}

/// What a snapshot changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub cursor: ControlVersion,
    /// In the order of names.
    pub entities: Vec<String>,
}

/// An answer to a proposed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    pub entity: String,
    pub revision: u64,
    /// It was there already.
    pub repeated: bool,
}

/// What is remembered of a proposed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub entity: String,
    pub revision: u64,
    /// Of the event.
    pub digest: String,
    /// Its place in the feed; none while it waits.
    pub version: Option<ControlVersion>,
}

/// An event that a publisher has the right to carry.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub event: ControlEvent,
    /// How often it was refused, or could not be told.
    pub attempts: u32,
    /// Shown with what became of it; a claim that has ended has another's.
    pub claim: u64,
}

/// What became of a claimed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    pub event: EventId,
    pub claim: u64,
    pub outcome: PublishOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It is in the feed. True whoever says it, so it counts without a claim, too.
    Published(ControlVersion),
    /// It is not, or nobody knows, and is to be tried again after a time. None makes it a dead letter, which holds its
    /// entity until somebody retries or discards it. What is claimed behind it is given back.
    Refused { error: String, again: Option<Duration> },
    /// It was not tried.
    GivenBack,
}

/// The outbox as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Events that are not in the feed yet, dead letters included.
    pub waiting: u64,
    pub dead: u64,
    /// When the oldest of them was proposed, in microseconds since 1970.
    pub oldest_at: Option<i64>,
}

/// An event that the feed does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxLetter {
    pub event: EventId,
    pub entity: String,
    pub revision: u64,
    pub attempts: u32,
    pub error: String,
    /// When it was last tried, in microseconds since 1970.
    pub at: i64,
}

/// A host's own memory. Each method is one transaction, durable when it answers. Whoever drops a call before it answers
/// does not know whether it was carried out; it never was in part.
pub trait ControlStore: Send + Sync + Debug {
    // What is desired here.

    fn cursor(&self) -> BoxFuture<'_, Result<ControlVersion>>;

    /// Entries in the feed's order: for each {desired state, the event's id, cursor} together. Of an event it asks in this
    /// order: is the id known (`Repeated`, whatever the cursor and the bytes), is the revision above the known one. Of
    /// different events of one revision the first in the feed's order counts, whichever came here first; the other is set
    /// aside with `revision_conflict`, and so is what says that it was made on that one. The cursor never goes back. An
    /// event that waits in the outbox here has arrived. Where one that was told here is set aside, what stood before it
    /// stands again, and what waits was made on it: dead letters.
    fn take(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<Vec<Applied>>>;

    /// One event.
    fn apply<'a>(
        &'a self,
        version: ControlVersion,
        event: &'a ControlEvent,
    ) -> BoxFuture<'a, Result<Applied>> {
        async move {
            let entry = Entry::Event { version, event: event.clone() };
            self.take(vec![entry]).await?.pop().ok_or_else(|| crate::error::BackendError::Closed.into())
        }
        .boxed()
    }

    /// Takes a snapshot's events where they are not below what is known, and its control version as the cursor unless that
    /// is further. An entity that the snapshot does not have stays. Of one revision the snapshot's event counts: it is what
    /// the origin has. What cannot be read here is put right where the snapshot has the same event.
    fn restore(&self, restore: Restore) -> BoxFuture<'_, Result<Restored>>;

    /// Everything that is desired in the order of entities, and the cursor, as of one moment.
    fn desired(&self) -> BoxFuture<'_, Result<(ControlVersion, Vec<DesiredRow>)>>;

    /// What the views of what is desired lack. Who lets go of what they do not name asks this first, and then for the view.
    fn unreadable(&self) -> BoxFuture<'_, Result<Unreadable>>;

    /// At which control version an event was last seen, if it was applied and is not forgotten.
    fn applied<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<ControlVersion>>>;

    /// What was set aside, the newest first. The oldest go at `CONTROL_QUARANTINE_EVENTS_MAX`.
    fn quarantined(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Quarantined>>>;

    /// At which control version the newest applied id is of which as many younger ones are known; 0 if there are not so many.
    /// Versions may lie far apart.
    fn applied_beyond(&self, younger: u64) -> BoxFuture<'_, Result<ControlVersion>>;

    /// Forgets applied ids of control versions at or below this one. Revisions still keep them from changing anything.
    fn forget_applied(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>>;

    // What was made of it.

    /// In the order of plugins.
    fn observed(&self) -> BoxFuture<'_, Result<Vec<ObservedRow>>>;

    fn observe<'a>(&'a self, row: &'a ObservedRow) -> BoxFuture<'a, Result<()>>;

    fn forget_observed<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<()>>;

    // What this host tells the fleet. The origin's own view of what is desired is ahead of its applier's.

    /// {origin's state, outbox row} together: `RevisionConflict` unless the entity stands at the event's base revision, and
    /// is what the event says that it was made on. The same event again answers what it answered first, and its id with
    /// other content is `EventIdTaken`. Nothing is proposed beyond `CONTROL_OUTBOX_EVENTS_MAX` that wait.
    fn propose<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<Proposed>>;

    /// What the origin last told of each entity, in the order of entities; what the applier knows where that is not older.
    fn proposed(&self) -> BoxFuture<'_, Result<Vec<DesiredRow>>>;

    /// What became of a proposed event. Those in the feed are forgotten after `CONTROL_TOLD_EVENTS_MAX` others.
    fn told<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<Told>>>;

    /// Claims events in the order in which they were proposed, up to `limit`, for a time. Of one entity several, without a
    /// hole; of an entity whose first event waits, is claimed or is dead, none.
    fn claim(&self, limit: usize, lease: Duration) -> BoxFuture<'_, Result<Vec<Claimed>>>;

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<()>>;

    /// When the next event of the outbox is due; none when it is empty or all that is left is dead or behind it.
    fn next_due(&self) -> BoxFuture<'_, Result<Option<Duration>>>;

    fn outbox(&self) -> BoxFuture<'_, Result<OutboxStatus>>;

    /// In the order in which they were proposed.
    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<OutboxLetter>>>;

    /// Makes a dead letter due. Answers whether there was one.
    fn retry_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>>;

    /// Gives a dead letter up: what was told of its entity before stands again, unless more was proposed since. Answers
    /// whether there was one.
    fn discard_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>>;

    // Small things by name, such as the global freeze.

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>>;

    fn set_note<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> BoxFuture<'a, Result<()>>;
}

impl Unreadable {
    /// The plugins that [`ControlStore::desired`] leaves out. They are the feed's nevertheless.
    pub fn plugins(&self) -> impl Iterator<Item = String> {
        self.desired.iter().filter_map(|entity| entity.strip_prefix("plugin:")).map(str::to_owned)
    }
}

impl Quarantined {
    /// Texts are cut: whoever writes into a feed chooses them.
    pub fn new(version: ControlVersion, name: &str, code: &str, reason: &str, at: i64) -> Self {
        Self { version, name: cut(name), code: code.to_owned(), reason: cut(reason), at }
    }
}

/// Refuses to let anything go for a view that lacks these entities.
pub(super) fn check_whole(unreadable: &[String]) -> Result<()> {
    if unreadable.is_empty() {
        return Ok(());
    }
    let names = cut(&unreadable.join(", "));
    let detail = format!(
        "what is stored of {names} cannot be read by this version, and until it can nothing of the fleet's is let go; run the version that wrote it, or change it anew"
    );
    Err(BackendError::Failed { detail }.into())
}

/// The beginning of a text, whole characters.
pub(crate) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(CONTROL_QUARANTINE_TEXT_BYTES_MAX)].to_owned()
}
