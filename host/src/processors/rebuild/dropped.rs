//! Counts of what a rebuild has left out.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::counter;

use crate::telemetry::metrics::REBUILD_DROPPED;

/// Effects that were left out since the host began to count; what is handled again is counted again.
#[derive(Debug, Default)]
pub struct Dropped {
    emitted: AtomicU64,
    appended: AtomicU64,
}

impl Dropped {
    /// Goes on with what was counted before.
    pub fn from_counts(emitted: u64, appended: u64) -> Self {
        Self { emitted: emitted.into(), appended: appended.into() }
    }

    pub fn emitted(&self) -> u64 {
        self.emitted.load(Ordering::Relaxed)
    }

    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    pub(super) fn count_emitted(&self) {
        self.emitted.fetch_add(1, Ordering::Relaxed);
        counter!(REBUILD_DROPPED, "what" => "emitted").increment(1);
    }

    pub(super) fn count_appended(&self) {
        self.appended.fetch_add(1, Ordering::Relaxed);
        counter!(REBUILD_DROPPED, "what" => "appended").increment(1);
    }
}
