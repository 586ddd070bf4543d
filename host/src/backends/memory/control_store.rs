//! A host's memory of the control feed, in memory: for tests, and for embedders that keep nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::clock::Clock;
use crate::control::rules::{self, Standing, Turn, Turns, Waiting, micros};
use crate::control::{
    Applied, AppliedOutcome, Claimed, ControlEvent, ControlFeedError, ControlStore, ControlVersion,
    DesiredRow, Entry, EventBody, EventId, ObservedRow, OutboxLetter, OutboxStatus, Proposed, PublishOutcome,
    Quarantined, Restore, Restored, Result, Settlement, Told, Unreadable, cut,
};
use crate::limits::{
    CONTROL_OUTBOX_EVENTS_MAX, CONTROL_PUBLISH_LEASE_MAX, CONTROL_PUBLISH_WAIT_MAX,
    CONTROL_QUARANTINE_EVENTS_MAX, CONTROL_TOLD_EVENTS_MAX,
};

/// A [`ControlStore`] that keeps nothing over its own life. Clones are the same store.
#[derive(Clone, Debug)]
pub struct MemoryControlStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    outbox_events_max: u64,
}

#[derive(Debug, Default)]
struct State {
    cursor: ControlVersion,
    applied: HashMap<EventId, (ControlVersion, String)>,
    desired: BTreeMap<String, Row>,
    proposed: BTreeMap<String, Row>,
    /// What is in the feed of what was proposed here.
    carried: BTreeMap<String, Row>,
    quarantine: BTreeMap<(ControlVersion, String), Quarantined>,
    observed: BTreeMap<String, ObservedRow>,
    outbox: BTreeMap<u64, Letter>,
    told: BTreeMap<EventId, Remembered>,
    notes: BTreeMap<String, String>,
    next_seq: u64,
    next_claim: u64,
}

#[derive(Clone, Debug)]
struct Row {
    standing: Standing,
    event: ControlEvent,
}

#[derive(Debug)]
struct Letter {
    event: ControlEvent,
    entity: String,
    at: i64,
    attempts: u32,
    error: String,
    tried_at: i64,
    due_at: i64,
    claim: u64,
    claimed_until: i64,
    dead: bool,
}

#[derive(Debug)]
struct Remembered {
    seq: u64,
    told: Told,
}

impl MemoryControlStore {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), clock, outbox_events_max: CONTROL_OUTBOX_EVENTS_MAX }
    }

    /// With room for so many proposed events.
    #[must_use]
    pub fn with_outbox(self, events_max: u64) -> Self {
        Self { outbox_events_max: events_max, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a call out when it is awaited, as other stores do.
    fn run<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(&mut State, i64) -> T + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        async move { Ok(call(&mut self.state(), self.clock.now().0)) }.boxed()
    }
}

impl Row {
    fn new(version: ControlVersion, event: &ControlEvent) -> Self {
        let standing = Standing {
            revision: event.unsigned().revision,
            version,
            event_id: event.id().to_string(),
            digest: event.digest(),
        };
        Self { standing, event: event.clone() }
    }

    fn told(&self, entity: &str) -> DesiredRow {
        let Standing { revision, version, .. } = self.standing;
        DesiredRow { entity: entity.to_owned(), revision, version, event: self.event.clone() }
    }
}

impl Letter {
    fn waiting(&self) -> Waiting<'_> {
        let (due_at, claimed_until, dead) = (self.due_at, self.claimed_until, self.dead);
        Waiting { entity: &self.entity, due_at, claimed_until, dead }
    }

    fn give_back(&mut self) {
        (self.claim, self.claimed_until) = (0, 0);
    }
}

impl State {
    fn take(&mut self, entry: Entry, now: i64) -> Applied {
        let mut ousted = None;
        let (version, outcome) = match entry {
            Entry::PassedBy { version } => (version, AppliedOutcome::PassedBy),
            Entry::SetAside { quarantined, event } => {
                let version = quarantined.version;
                (version, self.refuse(quarantined, event.as_ref(), now))
            }
            Entry::Event { version, event } => {
                let outcome = self.take_event(version, &event, now, &mut ousted);
                (version, outcome)
            }
        };
        self.cursor = self.cursor.max(version);
        Applied { outcome, cursor: self.cursor, ousted }
    }

    fn take_event(
        &mut self,
        version: ControlVersion,
        event: &ControlEvent,
        now: i64,
        ousted: &mut Option<EventId>,
    ) -> AppliedOutcome {
        if let Some((seen, _)) = self.applied.get_mut(event.id()) {
            *seen = version.max(*seen);
            return AppliedOutcome::Repeated;
        }
        if event.unsigned().body == EventBody::Unknown {
            return AppliedOutcome::PassedBy;
        }
        let (entity, row) = (event.entity(), Row::new(version, event));
        self.arrived(event.id(), version, &row.standing.digest);
        let known = self.desired.get(&entity);
        let turn = rules::turn(known.map(|row| &row.standing), &row.standing);
        if let (Turn::Loses, Some(known)) = (turn, known) {
            let conflict = rules::conflict(&entity, &row.standing, &known.standing, now);
            self.counts_nowhere(&row.standing, &entity, now);
            return self.put_aside(conflict, None);
        }
        let known = known.map(|row| row.standing.clone());
        if let (Turn::Replaces, Some(base), Some(known)) =
            (turn, rules::other_base(known.as_ref(), event), &known)
            && (known.revision == event.unsigned().base_revision || self.came_second(base))
        {
            let astray = rules::astray(&entity, &row.standing, base, known, now);
            self.counts_nowhere(&row.standing, &entity, now);
            return self.put_aside(astray, None);
        }
        self.applied.insert(event.id().clone(), (version, row.standing.digest.clone()));
        match turn {
            Turn::ChangesNothing | Turn::Loses => AppliedOutcome::Superseded,
            Turn::Replaces => {
                self.desired.insert(entity, row);
                AppliedOutcome::Changed
            }
            Turn::Ousts => {
                let winner = row.standing.clone();
                if let Some(loser) = self.desired.insert(entity.clone(), row) {
                    self.put_aside(rules::conflict(&entity, &loser.standing, &winner, now), None);
                    self.counts_nowhere(&loser.standing, &entity, now);
                    *ousted = Some(loser.event.id().clone());
                }
                AppliedOutcome::Changed
            }
        }
    }

    fn came_second(&self, event: &EventId) -> bool {
        self.quarantine.values().any(|aside| aside.name == event.as_str() && aside.code == rules::CONFLICT)
    }

    /// An entry that is wrong.
    fn refuse(&mut self, quarantined: Quarantined, event: Option<&ControlEvent>, now: i64) -> AppliedOutcome {
        let version = quarantined.version;
        let outcome = self.put_aside(quarantined, event);
        if let (Some(event), AppliedOutcome::Quarantined { .. }) = (event, &outcome) {
            let row = Row::new(version, event);
            self.arrived(event.id(), version, &row.standing.digest);
            self.counts_nowhere(&row.standing, &event.entity(), now);
        }
        outcome
    }

    /// An event that is in the feed, and may be this host's, was set aside.
    fn counts_nowhere(&mut self, row: &Standing, entity: &str, now: i64) {
        let is_it = |known: &Row| known.standing.event_id == row.event_id;
        let is_told = self
            .told
            .iter()
            .any(|(id, known)| id.as_str() == row.event_id && known.told.digest == row.digest);
        let stood = [&self.carried, &self.proposed].map(|rows| rows.get(entity).is_some_and(is_it));
        if !is_told || stood == [false; 2] {
            // Another one's; or it is known, and what waits now was made since.
            return;
        }
        if stood[0] {
            self.carried.remove(entity);
        }
        if stood[1] {
            self.proposed.remove(entity);
        }
        for letter in self.outbox.values_mut().filter(|letter| letter.entity == entity) {
            letter.give_back();
            (letter.dead, letter.error, letter.tried_at) = (true, rules::made_on(&row.event_id), now);
        }
    }

    fn put_aside(&mut self, quarantined: Quarantined, event: Option<&ControlEvent>) -> AppliedOutcome {
        let known = event.and_then(|event| Some((event, self.applied.get_mut(event.id())?)));
        if let Some((event, (seen, digest))) = known
            && *digest == event.digest()
        {
            *seen = quarantined.version.max(*seen);
            return AppliedOutcome::Repeated;
        }
        let (code, reason) = (quarantined.code.clone(), quarantined.reason.clone());
        self.quarantine.insert((quarantined.version, quarantined.name.clone()), quarantined);
        while self.quarantine.len() as u64 > CONTROL_QUARANTINE_EVENTS_MAX {
            let oldest = self.quarantine.iter().min_by_key(|(key, aside)| (aside.at, *key));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.quarantine.remove(&key);
        }
        AppliedOutcome::Quarantined { code, reason }
    }

    /// An event of this host is in the feed.
    fn arrived(&mut self, event: &EventId, version: ControlVersion, digest: &str) {
        let Some(known) = self.told.get_mut(event).filter(|known| known.told.digest == digest) else {
            return;
        };
        known.told.version = Some(version);
        if let Some(letter) = self.outbox.remove(&known.seq) {
            let row = Row::new(version, &letter.event);
            let before = self.carried.get(&letter.entity).map_or(0, |row| row.standing.revision);
            if before < row.standing.revision {
                self.carried.insert(letter.entity, row);
            }
        }
    }

    fn restore(&mut self, restore: Restore, now: i64) -> Restored {
        let mut entities = BTreeSet::new();
        for quarantined in restore.set_aside {
            self.put_aside(quarantined, None);
        }
        for (version, event) in &restore.events {
            let (entity, row) = (event.entity(), Row::new(*version, event));
            self.arrived(event.id(), *version, &row.standing.digest);
            let seen =
                self.applied.entry(event.id().clone()).or_insert((*version, row.standing.digest.clone()));
            seen.0 = seen.0.max(*version);
            let known = self.desired.get(&entity).map(|row| row.standing.clone());
            match (rules::turn(known.as_ref(), &row.standing), known) {
                (Turn::ChangesNothing, _) => continue,
                (Turn::Ousts | Turn::Loses, Some(loser)) => {
                    self.put_aside(rules::conflict(&entity, &loser, &row.standing, now), None);
                    self.counts_nowhere(&loser, &entity, now);
                }
                _ => {}
            }
            self.desired.insert(entity.clone(), row);
            entities.insert(entity);
        }
        self.cursor = self.cursor.max(restore.version);
        Restored { cursor: self.cursor, entities: entities.into_iter().collect() }
    }

    fn standing(&self, entity: &str) -> Option<&Row> {
        let (desired, proposed) = (self.desired.get(entity), self.proposed.get(entity));
        match (desired, proposed) {
            (Some(desired), Some(proposed)) if proposed.standing.revision > desired.standing.revision => {
                Some(proposed)
            }
            (desired, proposed) => desired.or(proposed),
        }
    }

    fn propose(&mut self, event: &ControlEvent, events_max: u64, now: i64) -> Result<Proposed> {
        let (entity, digest) = (event.entity(), event.digest());
        let known = self.told.get(event.id()).map(|known| known.told.digest == digest);
        let known = known.or_else(|| self.applied.get(event.id()).map(|(_, known)| *known == digest));
        let revision = event.unsigned().revision;
        match known {
            Some(true) => return Ok(Proposed { entity, revision, repeated: true }),
            Some(false) => {
                return Err(ControlFeedError::EventIdTaken { event_id: event.id().to_string() });
            }
            None => {}
        }
        rules::check_proposal(event, self.standing(&entity).map(|row| &row.standing))?;
        let waiting = self.outbox.len() as u64;
        if waiting >= events_max {
            return Err(rules::outbox_full(waiting + 1, events_max));
        }
        self.next_seq += 1;
        self.proposed.insert(entity.clone(), Row::new(ControlVersion(0), event));
        let told = Told { entity: entity.clone(), revision, digest, version: None };
        self.told.insert(event.id().clone(), Remembered { seq: self.next_seq, told });
        self.forget_told();
        let letter = Letter {
            event: event.clone(),
            entity: entity.clone(),
            at: now,
            attempts: 0,
            error: String::new(),
            tried_at: 0,
            due_at: now,
            claim: 0,
            claimed_until: 0,
            dead: false,
        };
        self.outbox.insert(self.next_seq, letter);
        Ok(Proposed { entity, revision, repeated: false })
    }

    fn forget_told(&mut self) {
        let mut done: Vec<_> = self.told.iter().filter(|(_, known)| known.told.version.is_some()).collect();
        done.sort_by_key(|(_, known)| std::cmp::Reverse(known.seq));
        let kept = usize::try_from(CONTROL_TOLD_EVENTS_MAX).unwrap_or(usize::MAX);
        let old: Vec<EventId> = done.into_iter().skip(kept).map(|(id, _)| id.clone()).collect();
        for id in old {
            self.told.remove(&id);
        }
    }

    fn proposed(&self) -> Vec<DesiredRow> {
        let entities: BTreeSet<_> = self.desired.keys().chain(self.proposed.keys()).collect();
        entities.into_iter().filter_map(|entity| Some(self.standing(entity)?.told(entity))).collect()
    }

    fn claim(&mut self, limit: usize, lease: Duration, now: i64) -> Vec<Claimed> {
        let mut turns = Turns::new(now);
        self.next_claim += 1;
        let (claim, until) =
            (self.next_claim, now.saturating_add(micros(lease.min(CONTROL_PUBLISH_LEASE_MAX))));
        let mut claimed = Vec::new();
        for letter in self.outbox.values_mut() {
            if claimed.len() >= limit {
                break;
            }
            if turns.may_claim(letter.waiting()) {
                (letter.claim, letter.claimed_until) = (claim, until);
                claimed.push(Claimed { event: letter.event.clone(), attempts: letter.attempts, claim });
            }
        }
        claimed
    }

    fn settle(&mut self, settlement: Settlement, now: i64) {
        let Some(Remembered { seq, told }) = self.told.get(&settlement.event) else { return };
        let (seq, digest) = (*seq, told.digest.clone());
        let again = match settlement.outcome {
            PublishOutcome::Published(version) => {
                if self.outbox.contains_key(&seq) {
                    self.arrived(&settlement.event, version, &digest);
                }
                return;
            }
            PublishOutcome::GivenBack => None,
            PublishOutcome::Refused { error, again } => Some((error, again)),
        };
        let Some(letter) = self.outbox.get_mut(&seq).filter(|letter| letter.claim == settlement.claim) else {
            return;
        };
        letter.give_back();
        let Some((error, again)) = again else { return };
        letter.attempts = letter.attempts.saturating_add(1);
        (letter.error, letter.tried_at, letter.dead) = (cut(&error), now, again.is_none());
        letter.due_at = now.saturating_add(micros(again.unwrap_or_default().min(CONTROL_PUBLISH_WAIT_MAX)));
        let entity = letter.entity.clone();
        let behind = self.outbox.range_mut(seq + 1..).map(|(_, letter)| letter);
        for letter in behind.filter(|letter| letter.entity == entity && letter.claim == settlement.claim) {
            letter.give_back();
        }
    }

    fn dead(&mut self, event: &EventId) -> Option<u64> {
        let seq = self.told.get(event)?.seq;
        self.outbox.get(&seq).filter(|letter| letter.dead).map(|_| seq)
    }

    fn discard(&mut self, event: &EventId) -> bool {
        let Some(seq) = self.dead(event) else { return false };
        let Some(letter) = self.outbox.remove(&seq) else { return false };
        self.told.remove(event);
        if self.proposed.get(&letter.entity).is_some_and(|row| row.event.id() == event) {
            match self.carried.get(&letter.entity) {
                Some(before) => self.proposed.insert(letter.entity, before.clone()),
                None => self.proposed.remove(&letter.entity),
            };
        }
        true
    }
}

impl ControlStore for MemoryControlStore {
    fn cursor(&self) -> BoxFuture<'_, Result<ControlVersion>> {
        self.run(|state, _| state.cursor)
    }

    fn take(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<Vec<Applied>>> {
        self.run(|state, now| entries.into_iter().map(|entry| state.take(entry, now)).collect())
    }

    fn restore(&self, restore: Restore) -> BoxFuture<'_, Result<Restored>> {
        self.run(|state, now| state.restore(restore, now))
    }

    fn desired(&self) -> BoxFuture<'_, Result<(ControlVersion, Vec<DesiredRow>)>> {
        self.run(|state, _| {
            let rows = state.desired.iter().map(|(entity, row)| row.told(entity)).collect();
            (state.cursor, rows)
        })
    }

    fn unreadable(&self) -> BoxFuture<'_, Result<Unreadable>> {
        // It keeps events as what they are.
        self.run(|_, _| Unreadable::default())
    }

    fn applied<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<ControlVersion>>> {
        self.run(|state, _| state.applied.get(event).map(|(version, _)| *version))
    }

    fn quarantined(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Quarantined>>> {
        self.run(move |state, _| {
            let mut newest: Vec<_> = state.quarantine.values().cloned().collect();
            newest.sort_by(|one, other| {
                (other.at, other.version, &other.name).cmp(&(one.at, one.version, &one.name))
            });
            newest.truncate(limit);
            newest
        })
    }

    fn applied_beyond(&self, younger: u64) -> BoxFuture<'_, Result<ControlVersion>> {
        self.run(move |state, _| {
            let mut versions: Vec<ControlVersion> =
                state.applied.values().map(|(version, _)| *version).collect();
            versions.sort_unstable_by_key(|version| std::cmp::Reverse(*version));
            let place = usize::try_from(younger).unwrap_or(usize::MAX);
            versions.get(place).copied().unwrap_or_default()
        })
    }

    fn forget_applied(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.run(move |state, _| {
            let before = state.applied.len();
            state.applied.retain(|_, (version, _)| *version > through);
            (before - state.applied.len()) as u64
        })
    }

    fn observed(&self) -> BoxFuture<'_, Result<Vec<ObservedRow>>> {
        self.run(|state, _| state.observed.values().cloned().collect())
    }

    fn observe<'a>(&'a self, row: &'a ObservedRow) -> BoxFuture<'a, Result<()>> {
        self.run(|state, _| drop(state.observed.insert(row.plugin.clone(), row.clone())))
    }

    fn forget_observed<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<()>> {
        self.run(|state, _| drop(state.observed.remove(plugin)))
    }

    fn propose<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<Proposed>> {
        async move { self.state().propose(event, self.outbox_events_max, self.clock.now().0) }.boxed()
    }

    fn proposed(&self) -> BoxFuture<'_, Result<Vec<DesiredRow>>> {
        self.run(|state, _| state.proposed())
    }

    fn told<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<Told>>> {
        self.run(|state, _| state.told.get(event).map(|known| known.told.clone()))
    }

    fn claim(&self, limit: usize, lease: Duration) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.run(move |state, now| state.claim(limit, lease, now))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<()>> {
        self.run(|state, now| settlements.into_iter().for_each(|settlement| state.settle(settlement, now)))
    }

    fn next_due(&self) -> BoxFuture<'_, Result<Option<Duration>>> {
        self.run(|state, now| {
            let mut turns = Turns::new(now);
            for letter in state.outbox.values() {
                turns.may_claim(letter.waiting());
            }
            turns.next_due()
        })
    }

    fn outbox(&self) -> BoxFuture<'_, Result<OutboxStatus>> {
        self.run(|state, _| OutboxStatus {
            waiting: state.outbox.len() as u64,
            dead: state.outbox.values().filter(|letter| letter.dead).count() as u64,
            oldest_at: state.outbox.first_key_value().map(|(_, letter)| letter.at),
        })
    }

    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<OutboxLetter>>> {
        let letter = |letter: &Letter| OutboxLetter {
            event: letter.event.id().clone(),
            entity: letter.entity.clone(),
            revision: letter.event.unsigned().revision,
            attempts: letter.attempts,
            error: letter.error.clone(),
            at: letter.tried_at,
        };
        self.run(move |state, _| {
            state.outbox.values().filter(|known| known.dead).take(limit).map(letter).collect()
        })
    }

    fn retry_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        self.run(|state, now| {
            let letter = state.dead(event).and_then(|seq| state.outbox.get_mut(&seq));
            letter.map(|letter| (letter.dead, letter.due_at) = (false, now)).is_some()
        })
    }

    fn discard_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        self.run(|state, _| state.discard(event))
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        self.run(|state, _| state.notes.get(name).cloned())
    }

    fn set_note<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        self.run(move |state, _| match value {
            Some(value) => drop(state.notes.insert(name.to_owned(), value.to_owned())),
            None => drop(state.notes.remove(name)),
        })
    }
}
