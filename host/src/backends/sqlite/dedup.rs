//! The dedup window: which of the newest events has which id.
//!
//! It holds no ids, only a 64-bit keyed hash per event (13 bytes each with the
//! table), so a hit is a candidate that the caller compares with the stored
//! event. Positions are consecutive, so that one queue of hashes is both the
//! order of eviction and the way from a position to its hash.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// Hashes of the newest events' (tenant, id), by position.
pub(super) struct DedupWindow {
    /// The hash of the event at `first + index`.
    hashes: VecDeque<u64>,
    first: u64,
    /// The low 32 bits of positions in the window, by their hash.
    places: HashTable<u32>,
    events_max: usize,
    /// Keyed, so that nobody can choose ids that collide.
    hasher: RandomState,
    mask: u64,
}

impl DedupWindow {
    /// An empty window whose first event will have position `first`. Fewer
    /// than 64 hash bits only serve to prove that collisions do no harm.
    pub(super) fn new(first: u64, events_max: usize, hash_bits: u32) -> Self {
        Self {
            hashes: VecDeque::new(),
            first,
            places: HashTable::new(),
            events_max,
            hasher: RandomState::new(),
            mask: u64::MAX >> (64 - hash_bits.clamp(1, 64)),
        }
    }

    pub(super) fn hash(&self, tenant: i64, id: &[u8]) -> u64 {
        self.hasher.hash_one((tenant, id)) & self.mask
    }

    /// The position after the newest event in the window.
    pub(super) fn end(&self) -> u64 {
        self.first + self.hashes.len() as u64
    }

    /// Takes in the next event. The window may grow over its bound until [`Self::shrink`].
    pub(super) fn push(&mut self, hash: u64) {
        let place = low(self.end());
        self.hashes.push_back(hash);
        let Self { hashes, first, places, .. } = self;
        places.insert_unique(spread(hash), place, |&place| spread(hashes[index(*first, place)]));
    }

    /// Positions whose event may have this id.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = u64> {
        self.places
            .iter_hash(spread(hash))
            .map(|&place| index(self.first, place))
            .filter(move |&index| self.hashes[index] == hash)
            .map(|index| self.first + index as u64)
    }

    /// Forgets the newest events from a position on: their transaction failed.
    pub(super) fn truncate(&mut self, end: u64) {
        while self.end() > end.max(self.first) {
            let place = low(self.end() - 1);
            let Some(hash) = self.hashes.pop_back() else { return };
            self.forget(hash, place);
        }
    }

    /// Forgets the oldest events beyond the bound. Not before the newest are durable.
    pub(super) fn shrink(&mut self) {
        while self.hashes.len() > self.events_max {
            self.pop_front();
        }
    }

    /// Forgets every event up to a position: the log no longer holds it.
    pub(super) fn trim(&mut self, trimmed: u64) {
        while self.first <= trimmed && !self.hashes.is_empty() {
            self.pop_front();
        }
        if self.hashes.is_empty() {
            self.first = self.first.max(trimmed + 1);
        }
    }

    fn pop_front(&mut self) {
        let place = low(self.first);
        if let Some(hash) = self.hashes.pop_front() {
            self.first += 1;
            self.forget(hash, place);
        }
    }

    fn forget(&mut self, hash: u64, place: u32) {
        if let Ok(entry) = self.places.find_entry(spread(hash), |&other| other == place) {
            entry.remove();
        }
    }
}

impl fmt::Debug for DedupWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedupWindow").field("first", &self.first).field("events", &self.hashes.len()).finish()
    }
}

/// The window is far smaller than 2^32 events, so the low bits name one of its positions.
fn low(position: u64) -> u32 {
    let [a, b, c, d, ..] = position.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn index(first: u64, place: u32) -> usize {
    place.wrapping_sub(low(first)) as usize
}

/// The table takes its buckets from the low and its tags from the high bits: masked hashes need both.
fn spread(hash: u64) -> u64 {
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
