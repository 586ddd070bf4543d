//! How long an answer that follows a log stays open while the log cannot be read.
//!
//! Promises: what passes by itself (a server that restarts, fails over or loads its data) ends no such answer within
//! `gateway.log_away_ms_max` of the first read that failed. The follower asks again from the place where it was, so what
//! came meanwhile comes once. Everything else is the end at once.

use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use crate::error::{BackendError, Classify as _, Retry};
use crate::limits::LOG_AWAY_LOOK_EVERY;
use crate::streams::StreamError;
use crate::telemetry::metrics::FOLLOWER_OUTAGES;

/// What one follower knows of its log: since when its reads fail, if they do.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// A read has failed: how long to wait before the next one, or none where the error is to be told and the answer
    /// ends.
    pub(super) fn pause(&mut self, error: &StreamError, away_max: Duration) -> Option<Duration> {
        let StreamError::Backend(fault @ BackendError::Remote { .. }) = error else { return None };
        if fault.retry() == Retry::Never {
            return None;
        }
        let since = *self.since.get_or_insert_with(|| {
            counter!(FOLLOWER_OUTAGES).increment(1);
            Instant::now()
        });
        let left = away_max.saturating_sub(since.elapsed());
        (!left.is_zero()).then(|| left.min(LOG_AWAY_LOOK_EVERY))
    }

    /// A read has succeeded.
    pub(super) fn end(&mut self) {
        self.since = None;
    }
}
