//! Claims about change streams, change scopes, and streams with a name of their own.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod scopes;

use std::sync::Arc;

use millrace::backends::memory::MemoryLog;
use millrace::streams::EventLog;

type Log = Arc<dyn EventLog>;

async fn memory_log() -> (Log, ()) {
    (Arc::new(MemoryLog::new()), ())
}

millrace_tests::change_streams_conformance!(memory, memory_log);
