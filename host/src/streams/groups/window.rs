//! The entries that a group has taken out of the log and that are not done, in the order of their keys.
//!
//! Of each key only the first entry can be delivered; what follows waits behind it, whether it is leased or
//! waits for another try. An entry that failed therefore keeps its own key waiting and no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::names::ConsumerName;
use crate::event::{EventBatch, Micros};

/// What entries are kept in order by: aggregate and aggregate id.
pub(super) type Key = Arc<str>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Behind another entry of its key.
    Waiting,
    Ready,
    Leased {
        consumer: ConsumerName,
        sequence: u64,
        deadline: Micros,
    },
    Retrying {
        due: Micros,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) event: Arc<EventBatch>,
    pub(super) phase: Phase,
    /// Deliveries so far.
    pub(super) attempts: u32,
    /// What the last consumer said.
    pub(super) message: String,
    pub(super) replayed: bool,
    /// The store knows its attempts.
    pub(super) noted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Window {
    entries: BTreeMap<u64, Entry>,
    keys: HashMap<Key, Queue>,
    ready: BTreeSet<u64>,
    /// Ends of leases and of waits.
    due: BTreeSet<(Micros, u64)>,
    bytes: usize,
    leased: usize,
    retrying: usize,
}

/// The entries of one key.
#[derive(Debug, Default)]
struct Queue {
    positions: BTreeSet<u64>,
    leased: Option<u64>,
}

impl Queue {
    /// The entry whose turn it is; none while one is leased.
    fn next(&self) -> Option<u64> {
        if self.leased.is_some() { None } else { self.positions.first().copied() }
    }
}

fn key_of(event: &EventBatch) -> Key {
    let event = event.get(0);
    // A name may hold any character but has a length, which tells the parts apart.
    format!("{}:{}{}", event.aggregate.len(), event.aggregate, event.agg_id).into()
}

impl Window {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn leased(&self) -> usize {
        self.leased
    }

    pub(super) fn retrying(&self) -> usize {
        self.retrying
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn get(&self, position: u64) -> Option<&Entry> {
        self.entries.get(&position)
    }

    /// The deliverable entry with the lowest position.
    pub(super) fn first_ready(&self) -> Option<u64> {
        self.ready.first().copied()
    }

    /// When the next lease or wait ends.
    pub(super) fn next_due(&self) -> Option<Micros> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The first entry whose lease or wait has ended. It is answered once: whatever becomes of it, time goes on.
    pub(super) fn pop_due(&mut self, now: Micros) -> Option<u64> {
        self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.pop_first().map(|(_, position)| position)
    }

    /// Puts an entry in its place in its key. A replayed one may come before others, but never before what is leased.
    pub(super) fn insert(&mut self, position: u64, mut entry: Entry) {
        // Nothing may be left of what another one had, such as the end of its lease.
        self.remove(position);
        let queue = self.keys.entry(key_of(&entry.event)).or_default();
        let former = queue.next();
        queue.positions.insert(position);
        let next = queue.next();
        self.bytes += entry.event.bytes();
        if let Phase::Retrying { due } = entry.phase {
            self.due.insert((due, position));
            self.retrying += 1;
        } else {
            entry.phase = Phase::Waiting;
        }
        self.entries.insert(position, entry);
        if next == Some(position) {
            if let Some(former) = former {
                self.demote(former);
            }
            self.promote(position);
        }
    }

    /// Takes an entry out, whatever its phase; the next of its key can be delivered.
    pub(super) fn remove(&mut self, position: u64) -> Option<Entry> {
        self.settle(position);
        self.ready.remove(&position);
        let entry = self.entries.remove(&position)?;
        self.bytes -= entry.event.bytes();
        let key = key_of(&entry.event);
        let queue = self.keys.entry(key.clone()).or_default();
        queue.positions.remove(&position);
        match queue.next() {
            Some(next) => self.promote(next),
            None if queue.positions.is_empty() => drop(self.keys.remove(&key)),
            None => {}
        }
        Some(entry)
    }

    /// Ends a lease or a wait, without saying what comes then.
    fn settle(&mut self, position: u64) {
        let Some(entry) = self.entries.get_mut(&position) else { return };
        let at = match &entry.phase {
            Phase::Leased { deadline, .. } => {
                self.leased -= 1;
                if let Some(queue) = self.keys.get_mut(&key_of(&entry.event)) {
                    queue.leased = None;
                }
                *deadline
            }
            Phase::Retrying { due } => {
                self.retrying -= 1;
                *due
            }
            Phase::Waiting | Phase::Ready => return,
        };
        entry.phase = Phase::Waiting;
        self.due.remove(&(at, position));
    }

    /// Ends a lease or a wait: the entry can be delivered again as soon as its turn comes.
    pub(super) fn release(&mut self, position: u64) {
        self.settle(position);
        self.promote_next(position);
    }

    /// Lets an entry wait for its time.
    pub(super) fn retry(&mut self, position: u64, due: Micros) {
        self.settle(position);
        if let Some(entry) = self.entries.get_mut(&position) {
            entry.phase = Phase::Retrying { due };
            self.due.insert((due, position));
            self.retrying += 1;
        }
        self.promote_next(position);
    }

    /// Lets the entry be delivered whose turn it is in the key of this one.
    fn promote_next(&mut self, position: u64) {
        let Some(entry) = self.entries.get(&position) else { return };
        if let Some(next) = self.keys.get(&key_of(&entry.event)).and_then(Queue::next) {
            self.promote(next);
        }
    }

    /// Leases a ready entry, and counts it as delivered. Answers what it is now.
    pub(super) fn lease(
        &mut self,
        position: u64,
        consumer: &ConsumerName,
        sequence: u64,
        deadline: Micros,
    ) -> Option<&Entry> {
        if !self.ready.remove(&position) {
            return None;
        }
        let entry = self.entries.get_mut(&position)?;
        entry.phase = Phase::Leased { consumer: consumer.clone(), sequence, deadline };
        entry.attempts = entry.attempts.saturating_add(1);
        if let Some(queue) = self.keys.get_mut(&key_of(&entry.event)) {
            queue.leased = Some(position);
        }
        self.due.insert((deadline, position));
        self.leased += 1;
        Some(entry)
    }

    /// Moves the end of a lease.
    pub(super) fn extend(&mut self, position: u64, until: Micros) {
        if let Some(Entry { phase: Phase::Leased { deadline, .. }, .. }) = self.entries.get_mut(&position) {
            self.due.remove(&(*deadline, position));
            *deadline = until;
            self.due.insert((until, position));
        }
    }

    /// Keeps what a consumer said, or that the store knows the attempts.
    pub(super) fn note(&mut self, position: u64, message: Option<String>) {
        if let Some(entry) = self.entries.get_mut(&position) {
            entry.noted = true;
            if let Some(message) = message {
                entry.message = message;
            }
        }
    }

    fn promote(&mut self, position: u64) {
        if let Some(entry) = self.entries.get_mut(&position)
            && entry.phase == Phase::Waiting
        {
            entry.phase = Phase::Ready;
            self.ready.insert(position);
        }
    }

    fn demote(&mut self, position: u64) {
        if self.ready.remove(&position)
            && let Some(entry) = self.entries.get_mut(&position)
        {
            entry.phase = Phase::Waiting;
        }
    }
}

impl Entry {
    pub(super) fn is_leased(&self) -> bool {
        matches!(self.phase, Phase::Leased { .. })
    }

    /// Who has it, or nobody.
    pub(super) fn consumer(&self) -> Option<&ConsumerName> {
        match &self.phase {
            Phase::Leased { consumer, .. } => Some(consumer),
            _ => None,
        }
    }
}
