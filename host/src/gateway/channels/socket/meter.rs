//! What is counted of a socket of channels.

use metrics::{Counter, counter, gauge};

use crate::telemetry::metrics as names;

/// Counts what a client is sent, and how its socket ended: `disconnected` unless it is told otherwise.
#[derive(Debug)]
pub(super) struct Meter {
    cause: &'static str,
    entries: Counter,
    bytes: Counter,
    writes: Counter,
}

impl Meter {
    pub(super) fn new() -> Self {
        gauge!(names::CHANNEL_SOCKETS).increment(1);
        Self {
            cause: "disconnected",
            entries: counter!(names::CHANNEL_SOCKET_ENTRIES),
            bytes: counter!(names::CHANNEL_SOCKET_BYTES),
            writes: counter!(names::CHANNEL_SOCKET_WRITES),
        }
    }

    pub(super) fn wrote(&self, (entries, bytes): (usize, usize)) {
        self.entries.increment(entries as u64);
        self.bytes.increment(bytes as u64);
        self.writes.increment(1);
    }

    pub(super) fn ended(mut self, cause: &'static str) {
        self.cause = cause;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        gauge!(names::CHANNEL_SOCKETS).decrement(1);
        counter!(names::CHANNEL_SOCKET_CLOSES, "cause" => self.cause).increment(1);
    }
}
