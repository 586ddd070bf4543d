//! What is counted of a connection of live queries.

use std::time::Instant;

use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::shell::Fault;
use crate::telemetry::metrics as names;

/// Counts what a connection is sent, and how it ended: `disconnected` unless it is told otherwise.
#[derive(Debug)]
pub(super) struct Meter {
    transport: &'static str,
    cause: &'static str,
    frames: Counter,
    bytes: Counter,
    writes: Counter,
    commit_to_write: Histogram,
}

impl Meter {
    pub(super) fn new(transport: &'static str) -> Self {
        gauge!(names::LIVE_CLIENTS, "transport" => transport).increment(1);
        Self {
            transport,
            cause: "disconnected",
            frames: counter!(names::LIVE_SENT_FRAMES, "transport" => transport),
            bytes: counter!(names::LIVE_SENT_BYTES, "transport" => transport),
            writes: counter!(names::LIVE_WRITES, "transport" => transport),
            commit_to_write: histogram!(names::LIVE_COMMIT_TO_WRITE, "transport" => transport),
        }
    }

    /// Counts a write, and how long the oldest commit that is told in it has waited.
    pub(super) fn wrote(&self, frames: usize, bytes: usize, oldest: Option<Instant>) {
        if let Some(committed) = oldest {
            self.commit_to_write.record(committed.elapsed());
        }
        self.frames.increment(frames as u64);
        self.bytes.increment(bytes as u64);
        self.writes.increment(1);
    }

    /// Counts what a client was refused.
    pub(super) fn refused(&self, fault: &Fault) {
        super::super::metrics::problem(fault.code, 1);
    }

    pub(super) fn ended(mut self, cause: &'static str) {
        self.cause = cause;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        gauge!(names::LIVE_CLIENTS, "transport" => self.transport).decrement(1);
        counter!(names::LIVE_CLOSES, "transport" => self.transport, "cause" => self.cause).increment(1);
    }
}
