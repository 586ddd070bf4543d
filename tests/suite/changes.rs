//! Claims about change streams, change scopes, and streams with a name of their own.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod caps;
mod every_log;
mod following;
mod hub;
mod rig;
mod scopes;
mod slow;
mod store;
mod upcasting;

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::streams::EventLog;

type Log = Arc<dyn EventLog>;

async fn memory_log() -> (Log, ()) {
    (Arc::new(MemoryLog::new()), ())
}

async fn sqlite_log() -> (Log, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(SqliteStore::open(SqliteOptions::new(dir.path())).unwrap()), dir)
}

millrace_tests::change_streams_conformance!(memory, memory_log);
millrace_tests::change_streams_conformance!(sqlite, sqlite_log);
