//! Values in memory: the first level of every host, and the whole of a cache that lives in memory.
//!
//! The least recently used go first. What was missed is on the shelf, too, so that whoever loads it can be refused
//! when it was removed meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use tokio::time::Instant;

use super::{Entry, Lookup, Stamp, Stored};
use crate::limits::{CACHE_LOAD_MAX, CACHE_MARKS_MAX};
use crate::telemetry::metrics::CACHE_EVICTIONS;

/// About what an entry costs beside its name and value.
const ENTRY_BYTES: usize = 256;

/// Bounded in entries and bytes. It never waits.
#[derive(Debug)]
pub struct Shelf {
    entries_max: usize,
    bytes_max: usize,
    /// Otherwise only misses are kept.
    values: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Arc<str>, Held>,
    /// By when they were used last.
    order: BTreeMap<u64, Arc<str>>,
    bytes: usize,
    marks: HashMap<Box<str>, u64>,
    /// Counts uses, misses and moved marks; never twice the same.
    next: u64,
}

#[derive(Debug)]
struct Held {
    /// The entry's marks as they were, and which miss it was.
    stamp: Stamp,
    value: Option<Bytes>,
    until: Instant,
    used: u64,
    bytes: usize,
}

impl Shelf {
    pub fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { entries_max, bytes_max, values: true, state: Mutex::default() }
    }

    /// One that knows who misses what, and keeps no values.
    pub(super) fn without_values(entries_max: usize) -> Self {
        Self { entries_max, bytes_max: usize::MAX, values: false, state: Mutex::default() }
    }

    pub fn get(&self, entry: &Entry) -> Lookup {
        let mut state = self.lock();
        let now = Instant::now();
        let marks = state.marks(&entry.marks);
        if let Some(held) = state.entries.get(entry.name.as_str())
            && held.until > now
            && held.stamp.0.starts_with(&marks)
        {
            let found = match &held.value {
                Some(value) => Lookup::Hit(value.clone()),
                None => Lookup::Miss(held.stamp.clone()),
            };
            state.touch(&entry.name);
            return found;
        }
        let mut stamp = marks;
        stamp.extend(state.next().to_le_bytes());
        let stamp = Stamp(stamp);
        state.insert(&entry.name, stamp.clone(), None, now + CACHE_LOAD_MAX);
        self.shrink(&mut state);
        Lookup::Miss(stamp)
    }

    pub fn put(&self, entry: &Entry, stamp: &Stamp, value: Bytes, ttl: Duration) -> Stored {
        let mut state = self.lock();
        let now = Instant::now();
        let marks = state.marks(&entry.marks);
        let Some(held) = state.entries.get(entry.name.as_str()).filter(|held| held.until > now) else {
            return Stored::Stale;
        };
        if held.stamp != *stamp || !stamp.0.starts_with(&marks) {
            return Stored::Stale;
        }
        if held.value.is_some() {
            return Stored::Already;
        }
        if self.values {
            state.insert(&entry.name, stamp.clone(), Some(value), now + ttl);
        } else {
            state.remove(&entry.name);
        }
        self.shrink(&mut state);
        Stored::Kept
    }

    pub fn remove(&self, names: &[String]) {
        let mut state = self.lock();
        for name in names {
            state.remove(name);
        }
    }

    pub fn invalidate(&self, marks: &[String]) {
        let mut state = self.lock();
        for mark in marks {
            // The next who asks gives it a token that was never there.
            state.marks.remove(mark.as_str());
        }
    }

    /// Forgets everything; what is being loaded is refused.
    pub fn clear(&self) {
        let mut state = self.lock();
        let next = state.next;
        *state = State { next, ..State::default() };
    }

    /// Entries, those that only were missed included, and about their bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.entries.len(), state.bytes)
    }

    fn shrink(&self, state: &mut State) {
        let mut evicted = 0;
        while state.entries.len() > self.entries_max || state.bytes > self.bytes_max {
            let Some((_, name)) = state.order.first_key_value() else { break };
            let name = Arc::clone(name);
            let held = state.remove(&name);
            evicted += u64::from(held.is_some_and(|held| held.value.is_some()));
        }
        if evicted > 0 {
            counter!(CACHE_EVICTIONS).increment(evicted);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The tokens of marks, one after the other.
    fn marks(&mut self, names: &[String]) -> Vec<u8> {
        if self.marks.len() + names.len() > CACHE_MARKS_MAX {
            let known: HashSet<&str> = names.iter().map(String::as_str).collect();
            // Entries under the others are misses from now on, and go in their turn.
            self.marks.retain(|mark, _| known.contains(&**mark));
        }
        let mut tokens = Vec::with_capacity(8 * names.len() + 8);
        for name in names {
            let token = match self.marks.get(name.as_str()) {
                Some(token) => *token,
                None => {
                    let token = self.next();
                    self.marks.insert(name.as_str().into(), token);
                    token
                }
            };
            tokens.extend(token.to_le_bytes());
        }
        tokens
    }

    fn touch(&mut self, name: &str) {
        let used = self.next();
        let Some(held) = self.entries.get_mut(name) else { return };
        if let Some(name) = self.order.remove(&held.used) {
            self.order.insert(used, name);
        }
        held.used = used;
    }

    fn insert(&mut self, name: &str, stamp: Stamp, value: Option<Bytes>, until: Instant) {
        self.remove(name);
        let used = self.next();
        let bytes = ENTRY_BYTES + 2 * name.len() + value.as_ref().map_or(0, Bytes::len);
        let name: Arc<str> = name.into();
        self.order.insert(used, Arc::clone(&name));
        self.bytes += bytes;
        self.entries.insert(name, Held { stamp, value, until, used, bytes });
    }

    fn remove(&mut self, name: &str) -> Option<Held> {
        let held = self.entries.remove(name)?;
        self.order.remove(&held.used);
        self.bytes -= held.bytes;
        Some(held)
    }
}
