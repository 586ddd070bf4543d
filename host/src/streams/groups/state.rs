//! What a group decides, without I/O and with the time given: the same calls make the same decisions.
//!
//! Everything up to `low` is done; what is done beyond it is in `done`. Up to `frontier` the stream was taken in:
//! what of it is not done is in the window. [`GroupState::write`] says what the store must know of all this.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::GroupError;
use super::names::{ConsumerName, Receipt};
use super::options::{GroupLimits, GroupOptions, later};
use super::ranges::Ranges;
use super::status::{ConsumerStatus, DeadReason, Deliveries, Delivery, GroupLetter, GroupRead};
use super::store::{GroupWrite, LoadedGroup, StoredGroup, Tried};
use super::window::{Entry, Phase, Window};
use crate::event::{EventBatch, Micros, Position};

/// One group, between two writes to its store.
#[derive(Debug)]
pub struct GroupState {
    incarnation: u64,
    life: u64,
    options: GroupOptions,
    limits: GroupLimits,
    low: u64,
    frontier: u64,
    done: Ranges,
    delivered: Ranges,
    /// What was taken in and is not done; replayed dead letters are not among it.
    unfinished: BTreeSet<u64>,
    window: Window,
    /// Of an earlier life, for entries that were not taken in yet.
    known: BTreeMap<u64, Tried>,
    /// Dead letters that nobody has replayed. One may be in the window, too, when the group was moved back before it.
    dead: BTreeSet<u64>,
    consumers: BTreeMap<ConsumerName, Consumer>,
    sequence: u64,
    /// Entries that retention has removed under a lease.
    lost_leases: BTreeSet<u64>,
    loss: Lost,
    tally: Tally,
    unwritten: Unwritten,
}

#[derive(Debug, Default)]
struct Consumer {
    in_flight: usize,
    seen_at: Micros,
}

/// What retention took from the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub events: u64,
    pub until: Position,
    pub at: Option<Micros>,
    pub stopped: bool,
}

/// What happened since the last [`GroupState::take_tally`], for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub deliveries: u64,
    pub redeliveries: u64,
    pub acks: u64,
    pub nacks: u64,
    pub expired: u64,
    pub dead: u64,
    pub reaped: u64,
    /// Receipts that changed nothing.
    pub refused: u64,
}

/// What the store does not know yet.
#[derive(Debug, Default)]
struct Unwritten {
    /// Where the group stands.
    place: bool,
    tried: BTreeMap<u64, Option<Tried>>,
    dead: Vec<GroupLetter>,
    replaying: Vec<Position>,
    resolved: Vec<Position>,
}

/// How many entries the window has of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    pub in_flight: usize,
    pub retrying: usize,
    pub waiting: usize,
    pub dead_letters: usize,
}

impl GroupState {
    /// Goes on where the store says. `life` tells receipts of this process from those of an earlier one.
    pub fn load(loaded: LoadedGroup, life: u64, limits: GroupLimits) -> Self {
        let LoadedGroup { row, tried, dead, replaying } = loaded;
        let mut state = Self {
            incarnation: row.incarnation,
            life,
            options: row.options,
            limits,
            low: row.low.0,
            frontier: row.low.0,
            done: row.done,
            delivered: row.delivered,
            unfinished: BTreeSet::new(),
            window: Window::default(),
            known: tried.into_iter().map(|(position, tried)| (position.0, tried)).collect(),
            dead: dead.into_iter().map(|position| position.0).collect(),
            consumers: BTreeMap::new(),
            sequence: 0,
            lost_leases: BTreeSet::new(),
            loss: Lost {
                events: row.lost_events,
                until: row.lost_until,
                at: row.lost_at,
                stopped: row.stopped,
            },
            tally: Tally::default(),
            unwritten: Unwritten::default(),
        };
        for letter in replaying {
            state.insert(letter.position().0, letter.event, true);
        }
        state
    }

    pub fn options(&self) -> GroupOptions {
        self.options
    }

    pub fn set_options(&mut self, options: GroupOptions) {
        self.options = options;
    }

    pub fn low(&self) -> Position {
        Position(self.low)
    }

    /// Up to where the stream was taken in; the next page begins behind it.
    pub fn frontier(&self) -> Position {
        Position(self.frontier)
    }

    pub fn lost(&self) -> Lost {
        self.loss
    }

    /// The oldest entry of the stream that was taken in and is not done.
    pub fn oldest_unfinished(&self) -> Option<Position> {
        self.unfinished.first().map(|position| Position(*position))
    }

    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    pub fn filling(&self) -> Filling {
        let (in_flight, retrying) = (self.window.leased(), self.window.retrying());
        Filling {
            in_flight,
            retrying,
            waiting: self.window.len() - in_flight - retrying,
            dead_letters: self.dead.len(),
        }
    }

    pub fn is_dead(&self, position: Position) -> bool {
        self.dead.contains(&position.0)
    }

    pub fn consumers(&self) -> Vec<ConsumerStatus> {
        let status = |(name, consumer): (&ConsumerName, &Consumer)| ConsumerStatus {
            name: name.clone(),
            in_flight: consumer.in_flight,
            seen_at: consumer.seen_at,
        };
        self.consumers.iter().map(status).collect()
    }

    /// When the next lease or wait ends.
    pub fn next_due(&self) -> Option<Micros> {
        self.window.next_due()
    }

    /// How many entries could be delivered at once.
    pub fn ready(&self) -> usize {
        self.window.ready()
    }

    /// Events and bytes that may be taken in. Nothing while the window is full.
    pub fn room(&self) -> Option<(usize, usize)> {
        let events = self.limits.window_events_max.saturating_sub(self.window.len());
        let bytes = self.limits.window_bytes_max.saturating_sub(self.window.bytes());
        (events > 0 && bytes > 0).then_some((events, bytes))
    }

    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Takes in the next event of the stream, alone in its batch. Events come in order; what was seen is left out.
    pub fn take_in(&mut self, event: Arc<EventBatch>) {
        let position = event.last_position().0;
        if position <= self.frontier {
            return;
        }
        self.frontier = position;
        if self.done.contains(position) {
            return;
        }
        if self.window.get(position).is_some() {
            // The group was moved back before a dead letter that is being replayed.
            self.mark_done(position);
            return;
        }
        self.unfinished.insert(position);
        self.insert(position, event, false);
    }

    /// Says that the stream was taken in up to here.
    pub fn advance(&mut self, to: Position) {
        self.frontier = self.frontier.max(to.0);
        self.settle_low();
    }

    fn insert(&mut self, position: u64, event: Arc<EventBatch>, replayed: bool) {
        let known = self.known.remove(&position);
        let noted = known.is_some();
        let once = u32::from(!replayed && self.delivered.contains(position));
        let Tried { attempts, due, message } = known.unwrap_or_default();
        let phase = if due > Micros(0) { Phase::Retrying { due } } else { Phase::Waiting };
        let entry = Entry { event, phase, attempts: attempts.max(once), message, replayed, noted };
        self.window.insert(position, entry);
    }

    /// Ends the leases and waits whose time has come.
    pub fn tick(&mut self, now: Micros) {
        while let Some(position) = self.window.pop_due(now) {
            let Some(entry) = self.window.get(position) else { continue };
            if !entry.is_leased() {
                self.window.release(position);
                continue;
            }
            self.tally.expired += 1;
            let attempts = entry.attempts;
            self.let_go(position);
            if attempts < self.options.attempts_max {
                self.window.release(position);
            } else {
                self.bury(position, DeadReason::LeaseExpired, now);
            }
        }
    }

    /// Leases what can be delivered to a consumer, the oldest first.
    pub fn take(&mut self, read: &GroupRead, now: Micros) -> Result<Deliveries, GroupError> {
        self.tick(now);
        self.see(&read.consumer, now)?;
        let room = self.room_of(&read.consumer)?;
        let mut taken = Deliveries { entries: Vec::new(), lost_events: self.loss.events };
        let mut bytes = 0;
        let deadline = later(now, self.options.lease_ms);
        while taken.entries.len() < room.min(read.events) {
            let Some(position) = self.window.first_ready() else { break };
            let size = self.window.get(position).map_or(0, |entry| entry.event.bytes());
            if bytes + size > read.bytes && bytes > 0 {
                break;
            }
            bytes += size;
            self.sequence += 1;
            let sequence = self.sequence;
            let Some(entry) = self.window.lease(position, &read.consumer, sequence, deadline) else { break };
            let (attempt, replayed) = (entry.attempts, entry.replayed);
            let receipt = Receipt {
                incarnation: self.incarnation,
                life: self.life,
                position: Position(position),
                sequence,
            };
            let event = Arc::clone(&entry.event);
            taken.entries.push(Delivery { receipt, event, attempt, deadline, replayed });
            self.count_delivery(position, attempt, replayed);
        }
        if let Some(consumer) = self.consumers.get_mut(&read.consumer) {
            consumer.in_flight += taken.entries.len();
        }
        Ok(taken)
    }

    /// What one consumer may still be given.
    fn room_of(&self, name: &ConsumerName) -> Result<usize, GroupError> {
        let limits = &self.limits;
        let held = self.consumers.get(name).map_or(0, |consumer| consumer.in_flight);
        let bound = |limit, what: String, held: usize, max: usize| {
            if held < max {
                return Ok(max - held);
            }
            Err(GroupError::Limit { limit, what, asked: held as u64, max: max as u64 })
        };
        let whose = format!("what consumer `{name}` has and did not acknowledge");
        let own = bound("group_consumer_in_flight_max", whose, held, limits.consumer_in_flight_max)?;
        let all = "what the group's consumers have and did not acknowledge".to_owned();
        Ok(own.min(bound("group_in_flight_max", all, self.window.leased(), limits.in_flight_max)?))
    }

    fn count_delivery(&mut self, position: u64, attempt: u32, replayed: bool) {
        self.tally.deliveries += 1;
        self.unwritten.place = true;
        if !replayed {
            let (unfinished, frontier) = (&self.unfinished, self.frontier);
            self.delivered.add(position, |a, b| apart(unfinished, frontier, a, b));
        }
        if attempt > 1 {
            self.tally.redeliveries += 1;
        }
        if attempt > 1 || replayed {
            self.note(position, Micros(0), None);
        }
    }

    /// Keeps an entry's attempts for the store.
    fn note(&mut self, position: u64, due: Micros, message: Option<String>) {
        self.window.note(position, message);
        let Some(entry) = self.window.get(position) else { return };
        let tried = Tried { attempts: entry.attempts, due, message: entry.message.clone() };
        self.unwritten.tried.insert(position, Some(tried));
    }

    /// Remembers that a consumer lives.
    pub fn see(&mut self, name: &ConsumerName, now: Micros) -> Result<(), GroupError> {
        if let Some(consumer) = self.consumers.get_mut(name) {
            consumer.seen_at = now;
            return Ok(());
        }
        if self.consumers.len() >= self.limits.consumers_max {
            self.reap(now);
        }
        let (consumers, max) = (self.consumers.len(), self.limits.consumers_max);
        if consumers >= max {
            return Err(GroupError::Limit {
                limit: "group_consumers_max",
                what: "with one more, the number of consumers of this group".into(),
                asked: consumers as u64 + 1,
                max: max as u64,
            });
        }
        self.consumers.insert(name.clone(), Consumer { in_flight: 0, seen_at: now });
        Ok(())
    }

    /// Forgets consumers that hold nothing and were not heard of for long.
    pub fn reap(&mut self, now: Micros) {
        let before = self.consumers.len();
        let idle = i64::try_from(self.limits.consumer_idle.as_micros()).unwrap_or(i64::MAX);
        self.consumers
            .retain(|_, consumer| consumer.in_flight > 0 || now.0.saturating_sub(consumer.seen_at.0) < idle);
        self.tally.reaped += (before - self.consumers.len()) as u64;
    }

    fn mark_done(&mut self, position: u64) {
        self.unfinished.remove(&position);
        let (unfinished, frontier) = (&self.unfinished, self.frontier);
        self.done.add(position, |a, b| apart(unfinished, frontier, a, b));
        self.settle_low();
    }

    fn settle_low(&mut self) {
        let low = self.unfinished.first().map_or(self.frontier, |first| first - 1);
        self.low = self.low.max(low);
        self.done.cut(self.low);
        self.delivered.cut(self.low);
    }

    /// Takes in what the store says that retention did: what it counted as lost is given up here, too.
    pub fn forget(&mut self, row: &StoredGroup, trimmed: Position) {
        let until = row.low.0;
        let gone: Vec<u64> = self.unfinished.range(..=until).copied().collect();
        for position in gone {
            if self.window.get(position).is_some_and(Entry::is_leased) {
                self.lost_leases.insert(position);
            }
            self.let_go(position);
            self.window.remove(position);
            self.unfinished.remove(&position);
            self.unwritten.tried.remove(&position);
        }
        while self.lost_leases.len() > self.limits.in_flight_max {
            self.lost_leases.pop_first();
        }
        self.known = self.known.split_off(&(until + 1));
        self.loss =
            Lost { events: row.lost_events, until: row.lost_until, at: row.lost_at, stopped: row.stopped };
        self.frontier = self.frontier.max(until).max(trimmed.0);
        self.settle_low();
    }

    /// Whether the store lacks something.
    pub fn is_unwritten(&self) -> bool {
        let Unwritten { place, tried, dead, replaying, resolved } = &self.unwritten;
        *place || !(tried.is_empty() && dead.is_empty() && replaying.is_empty() && resolved.is_empty())
    }

    /// What the store must know. It counts as written from here on: if that fails, the group is loaded anew. The next
    /// may be sent when this one is known to be written.
    pub fn write(&mut self) -> GroupWrite {
        let Unwritten { tried, dead, replaying, resolved, .. } = std::mem::take(&mut self.unwritten);
        GroupWrite {
            incarnation: self.incarnation,
            low: Position(self.low),
            done: self.done.clone(),
            delivered: self.delivered.clone(),
            tried: tried.into_iter().map(|(position, tried)| (Position(position), tried)).collect(),
            dead,
            replaying,
            resolved,
        }
    }
}

/// Whether an event that is not done may lie strictly between two positions. Beyond the frontier nobody knows.
fn apart(unfinished: &BTreeSet<u64>, frontier: u64, a: u64, b: u64) -> bool {
    b > frontier || unfinished.range(a + 1..b).next().is_some()
}
