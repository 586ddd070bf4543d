//! What happened to a processor since the host started: for its status and for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::metrics as names;

/// One processor's counts. Anybody may read; its tasks add.
#[derive(Debug)]
pub(super) struct Counters {
    events: Count,
    batches: Count,
    commits: Count,
    effects: Count,
    stale_writes: Count,
    retries: Count,
    traps: Count,
    dead_letters: Count,
    parked: Count,
    replayed: Count,
    breaker_openings: Count,
    restarts: Count,
    swaps: Count,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events whose effects are committed.
    pub events: u64,
    /// Calls of `handle`.
    pub batches: u64,
    pub commits: u64,
    pub effects: u64,
    /// Writes to versioned tables that were left out.
    pub stale_writes: u64,
    pub retries: u64,
    pub traps: u64,
    pub dead_letters: u64,
    /// Events that had to wait for their ordering key.
    pub parked: u64,
    /// Dead letters that were replayed with success.
    pub replayed: u64,
    /// How often it rested after failures in a row.
    pub breaker_openings: u64,
    /// Starts after a failure.
    pub restarts: u64,
    pub swaps: u64,
}

#[derive(Debug)]
struct Count {
    value: AtomicU64,
    metric: metrics::Counter,
}

impl Count {
    fn new(name: &'static str, processor: &Arc<str>) -> Self {
        Self { value: AtomicU64::new(0), metric: metrics::counter!(name, "plugin" => processor.to_string()) }
    }

    fn add(&self, by: u64) {
        if by > 0 {
            self.value.fetch_add(by, Ordering::Relaxed);
            self.metric.increment(by);
        }
    }

    fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn new(processor: &Arc<str>) -> Self {
        Self {
            events: Count::new(names::PROCESSOR_EVENTS, processor),
            batches: Count::new(names::PROCESSOR_BATCHES, processor),
            commits: Count::new(names::PROCESSOR_COMMITS, processor),
            effects: Count::new(names::PROCESSOR_EFFECTS, processor),
            stale_writes: Count::new(names::PROCESSOR_STALE_WRITES, processor),
            retries: Count::new(names::PROCESSOR_RETRIES, processor),
            traps: Count::new(names::PROCESSOR_TRAPS, processor),
            dead_letters: Count::new(names::PROCESSOR_DEAD_LETTERS, processor),
            parked: Count::new(names::PROCESSOR_PARKED, processor),
            replayed: Count::new(names::PROCESSOR_REPLAYED, processor),
            breaker_openings: Count::new(names::PROCESSOR_BREAKER_OPENINGS, processor),
            restarts: Count::new(names::PROCESSOR_RESTARTS, processor),
            swaps: Count::new(names::PROCESSOR_SWAPS, processor),
        }
    }

    pub(super) fn batch(&self) {
        self.batches.add(1);
    }

    pub(super) fn effects(&self, effects: usize) {
        self.effects.add(effects as u64);
    }

    pub(super) fn commit(&self, events: usize, stale: u64) {
        self.commits.add(1);
        self.events.add(events as u64);
        self.stale_writes.add(stale);
    }

    pub(super) fn retry(&self) {
        self.retries.add(1);
    }

    pub(super) fn trap(&self) {
        self.traps.add(1);
    }

    pub(super) fn dead_letter(&self) {
        self.dead_letters.add(1);
    }

    pub(super) fn park(&self) {
        self.parked.add(1);
    }

    pub(super) fn replayed(&self) {
        self.replayed.add(1);
    }

    pub(super) fn breaker_opened(&self) {
        self.breaker_openings.add(1);
    }

    pub(super) fn restart(&self) {
        self.restarts.add(1);
    }

    pub(super) fn swap(&self) {
        self.swaps.add(1);
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            events: self.events.get(),
            batches: self.batches.get(),
            commits: self.commits.get(),
            effects: self.effects.get(),
            stale_writes: self.stale_writes.get(),
            retries: self.retries.get(),
            traps: self.traps.get(),
            dead_letters: self.dead_letters.get(),
            parked: self.parked.get(),
            replayed: self.replayed.get(),
            breaker_openings: self.breaker_openings.get(),
            restarts: self.restarts.get(),
            swaps: self.swaps.get(),
        }
    }
}
