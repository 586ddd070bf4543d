//! Claims about groups of consumers.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod bounds;
mod caps;
mod crowd;
mod http;
mod model;
mod writes;

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::ManualClock;
use millrace::event::Micros;
use millrace::streams::groups::{GroupLimits, GroupOwner, GroupStore, Groups};
use millrace::streams::{EventLog, StreamName};
use millrace_tests::conformance::groups::Stage;

/// Groups over a store that is a log, too.
fn stage<S: EventLog + GroupStore + 'static>(store: Arc<S>, clock: Arc<ManualClock>) -> Stage {
    let owner = {
        let (store, clock) = (Arc::clone(&store), Arc::clone(&clock));
        move |limits| -> Arc<dyn Groups> {
            let (log, groups) = (Arc::clone(&store) as Arc<dyn EventLog>, Arc::clone(&store) as _);
            Arc::new(GroupOwner::new(log, groups, clock.clone(), limits))
        }
    };
    let again = Arc::new(owner);
    Stage {
        stream: StreamName::Events,
        log: store,
        groups: again(GroupLimits::default()),
        clock,
        again,
        shared: false,
    }
}

/// With what it is about: `events` as they are, other streams amid others' events.
async fn on(stage: Stage, stream: StreamName) -> Stage {
    if stream == StreamName::Events { stage } else { stage.on(stream).await }
}

fn manual_clock() -> Arc<ManualClock> {
    let clock = Arc::new(ManualClock::default());
    clock.set(Micros(1_000_000));
    clock
}

async fn memory(stream: StreamName) -> (Stage, ()) {
    let clock = manual_clock();
    let log = MemoryLog::with_options(clock.clone(), 1_000, 1 << 20);
    (on(stage(Arc::new(log), clock), stream).await, ())
}

async fn sqlite(stream: StreamName) -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let options =
        SqliteOptions { clock: clock.clone(), disk_free_bytes_min: 0, ..SqliteOptions::new(dir.path()) };
    let store = Arc::new(SqliteStore::open(options).unwrap());
    (on(stage(store, clock), stream).await, dir)
}

millrace_tests::groups_conformance!(memory, memory);
millrace_tests::groups_conformance!(sqlite, sqlite);
millrace_tests::groups_conformance!(memory_named, memory, named);
millrace_tests::groups_conformance!(sqlite_named, sqlite, named);
millrace_tests::groups_conformance!(memory_changes, memory, changes);
millrace_tests::groups_conformance!(sqlite_changes, sqlite, changes);
