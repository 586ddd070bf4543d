//! What every control store decides the same way, without I/O.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ControlEvent, ControlFeedError, ControlVersion, EventBody, EventId, Quarantined, Result};
use crate::limits::{CONTROL_NUMBER_MAX, CONTROL_PUBLISH_LEASE_MAX, CONTROL_PUBLISH_WAIT_MAX};

/// Code of an event that came second with a revision.
pub(crate) const CONFLICT: &str = "revision_conflict";

/// What is known of an entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) revision: u64,
    pub(crate) version: ControlVersion,
    pub(crate) event_id: String,
    pub(crate) digest: String,
}

/// What an event does to what is known of its entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Replaces,
    /// It replaces one of the same revision that came later in the feed.
    Ousts,
    /// It is older, or the same.
    ChangesNothing,
    /// One of the same revision was before it.
    Loses,
}

pub(crate) fn turn(known: Option<&Standing>, new: &Standing) -> Turn {
    let Some(known) = known else { return Turn::Replaces };
    match new.revision.cmp(&known.revision) {
        std::cmp::Ordering::Greater => Turn::Replaces,
        std::cmp::Ordering::Less => Turn::ChangesNothing,
        std::cmp::Ordering::Equal if new.digest == known.digest => Turn::ChangesNothing,
        std::cmp::Ordering::Equal if new.version < known.version => Turn::Ousts,
        std::cmp::Ordering::Equal => Turn::Loses,
    }
}

/// The record of an event that another one of its revision was before.
pub(crate) fn conflict(entity: &str, loser: &Standing, winner: &Standing, at: i64) -> Quarantined {
    let (revision, before) = (loser.revision, &winner.event_id);
    let reason = format!("{entity} has revision {revision} from {before}, which is before it in the feed");
    Quarantined::new(loser.version, &loser.event_id, CONFLICT, &reason, at)
}

/// What is said of a change that was made on one that counts nowhere.
pub(crate) fn made_on(lost: &str) -> String {
    format!(
        "it was made on {lost}, which was set aside; look at what stands now, and discard it or try it again"
    )
}

/// The event that this one was made on by its own word, where that is another one than is known.
pub(crate) fn other_base<'a>(known: Option<&Standing>, event: &'a ControlEvent) -> Option<&'a EventId> {
    let base = event.unsigned().base_event_id.as_ref()?;
    (known?.event_id != base.as_str()).then_some(base)
}

/// The record of an event that was made on one that came second.
pub(crate) fn astray(entity: &str, row: &Standing, base: &EventId, known: &Standing, at: i64) -> Quarantined {
    let reason = format!(
        "{entity} is told to go on from {base}, which came second with its revision; it has revision {} from {}",
        known.revision, known.event_id
    );
    Quarantined::new(row.version, &row.event_id, CONFLICT, &reason, at)
}

/// Whether an event may be proposed where its entity stands as this.
pub(crate) fn check_proposal(event: &ControlEvent, stands: Option<&Standing>) -> Result<()> {
    let found = stands.map_or(0, |row| row.revision);
    let unsigned = event.unsigned();
    if unsigned.body == EventBody::Unknown {
        let detail = format!("this host cannot propose a `{}`, which it does not know", unsigned.kind);
        return Err(ControlFeedError::InvalidEvent { detail });
    }
    if unsigned.base_revision != found || other_base(stands, event).is_some() {
        let (entity, expected) = (event.entity(), unsigned.base_revision);
        return Err(ControlFeedError::RevisionConflict { entity, expected, found });
    }
    Ok(())
}

/// Up to where a feed leaves its versions unused when somebody's place is beyond its newest: it has lost its end, or is an
/// older copy. Above that place, and above any other that a feed of single steps can have given by now. None where nobody is
/// beyond, and for a place that no feed comes to.
pub(crate) fn new_life(place: u64, newest: u64, now: i64) -> Option<u64> {
    const LAST: u64 = CONTROL_NUMBER_MAX / 2;
    (newest < place && place <= LAST).then(|| u64::try_from(now).unwrap_or(0).clamp(place, LAST))
}

/// One more waits than may.
pub(crate) fn outbox_full(asked: u64, max: u64) -> ControlFeedError {
    ControlFeedError::Limit { limit: "control_outbox_events_max", asked, max }
}

/// A row of the outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting<'a> {
    pub(crate) entity: &'a str,
    pub(crate) due_at: i64,
    /// 0 when nobody has claimed it.
    pub(crate) claimed_until: i64,
    pub(crate) dead: bool,
}

/// Looks through the outbox in its order: what may be claimed, and otherwise when the first may.
#[derive(Debug)]
pub(crate) struct Turns {
    now: i64,
    /// Entities whose next event has to wait.
    held: BTreeSet<String>,
    next_at: Option<i64>,
}

impl Turns {
    pub(crate) fn new(now: i64) -> Self {
        Self { now, held: BTreeSet::new(), next_at: None }
    }

    /// Whether the next row may be claimed, given that all before it were asked for.
    pub(crate) fn may_claim(&mut self, row: Waiting<'_>) -> bool {
        if self.held.contains(row.entity) {
            return false;
        }
        let free_at = (!row.dead).then(|| self.free_at(row));
        let is_free = free_at.is_some_and(|at| at <= self.now);
        if !is_free {
            self.held.insert(row.entity.to_owned());
        }
        if let Some(at) = free_at {
            self.next_at = Some(self.next_at.map_or(at, |known| known.min(at)));
        }
        is_free
    }

    /// How long it is until something may be claimed.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let at = self.next_at?;
        Some(Duration::from_micros(u64::try_from(at.saturating_sub(self.now)).unwrap_or(0)))
    }

    /// Nothing waits for longer than the bounds allow: if it says so, the clock has gone back.
    fn free_at(&self, row: Waiting<'_>) -> i64 {
        let within = |at: i64, longest: Duration| {
            if at > self.now.saturating_add(micros(longest)) { self.now } else { at }
        };
        within(row.due_at, CONTROL_PUBLISH_WAIT_MAX).max(within(row.claimed_until, CONTROL_PUBLISH_LEASE_MAX))
    }
}

/// A duration as times are counted.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
