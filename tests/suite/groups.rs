//! Claims about groups of consumers.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod bounds;
mod crowd;
mod http;
mod model;

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::ManualClock;
use millrace::event::Micros;
use millrace::streams::EventLog;
use millrace::streams::groups::{GroupLimits, GroupOwner, GroupStore, Groups};
use millrace_tests::conformance::groups::Stage;

/// Groups over a store that is a log, too.
fn stage<S: EventLog + GroupStore + 'static>(store: Arc<S>, clock: Arc<ManualClock>) -> Stage {
    let owner = {
        let (store, clock) = (Arc::clone(&store), Arc::clone(&clock));
        move || -> Arc<dyn Groups> {
            let (log, groups) = (Arc::clone(&store) as Arc<dyn EventLog>, Arc::clone(&store) as _);
            Arc::new(GroupOwner::new(log, groups, clock.clone(), GroupLimits::default()))
        }
    };
    Stage { log: store, groups: owner(), clock, again: Arc::new(owner) }
}

fn manual_clock() -> Arc<ManualClock> {
    let clock = Arc::new(ManualClock::default());
    clock.set(Micros(1_000_000));
    clock
}

async fn memory() -> (Stage, ()) {
    let clock = manual_clock();
    let log = MemoryLog::with_options(clock.clone(), 1_000, 1 << 20);
    (stage(Arc::new(log), clock), ())
}

async fn sqlite() -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let options =
        SqliteOptions { clock: clock.clone(), disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    (stage(Arc::new(SqliteStore::open(options).unwrap()), clock), dir)
}

millrace_tests::groups_conformance!(memory, memory);
millrace_tests::groups_conformance!(sqlite, sqlite);
