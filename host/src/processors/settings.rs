//! How processors run.

use std::time::Duration;

use super::FailurePolicy;
use super::lost::LostPolicy;
use super::shadow::ShadowSettings;
use crate::event::{Position, TenantId};
use crate::limits::{
    BREAKER_FAILURES_MAX, BREAKER_WAIT_MAX, BREAKER_WAIT_MIN, COMMIT_AGE_MAX, COMMIT_BYTES_MAX,
    COMMIT_EVENTS_MAX, PARKED_BYTES_MAX, PARKED_EVENTS_MAX, RETRIES_MAX, RETRY_WAIT_MAX, RETRY_WAIT_MIN,
    TASK_IDLE_MAX,
};

/// How a processor is run.
#[derive(Clone, Debug)]
pub struct ProcessorSettings {
    /// Fixed at the first deploy: a snapshot cannot be split.
    pub lanes: u32,
    /// Where a task without a checkpoint begins.
    pub start: Position,
    /// Only these tenants; none for all.
    pub tenants: Option<Vec<TenantId>>,
    /// Events after which a busy task commits; an idle one commits at once.
    pub commit_events: usize,
    /// How long what is done waits for that, from the end of the first call: a commit does not cut a call short. A large
    /// state waits longer (`COMMIT_AGE_STATE_BYTES`, `COMMIT_AGE_SNAPSHOTS`).
    pub commit_age: Duration,
    /// Events and bytes that may gather while a commit is in flight.
    pub commit_events_max: usize,
    pub commit_bytes_max: usize,
    pub retries_max: u32,
    /// What happens to the key of an event that became a dead letter.
    pub on_failure: FailurePolicy,
    /// What happens when events are gone that a task has not handled.
    pub on_position_lost: LostPolicy,
    /// What may wait for its key in one task.
    pub parked_events_max: usize,
    pub parked_bytes_max: usize,
    /// Failed calls in a row after which it rests, and for how long.
    pub breaker_failures_max: u32,
    pub breaker_wait_min: Duration,
    pub breaker_wait_max: Duration,
    /// The first and the longest wait between tries.
    pub retry_wait_min: Duration,
    pub retry_wait_max: Duration,
    pub idle_max: Duration,
    /// Nobody waits for it: it gets what cores the others leave.
    pub background: bool,
    /// How a candidate is tried before it takes over.
    pub shadow: ShadowSettings,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            lanes: 1,
            start: Position::START,
            tenants: None,
            commit_events: COMMIT_EVENTS_MAX / 2,
            commit_age: COMMIT_AGE_MAX,
            commit_events_max: COMMIT_EVENTS_MAX,
            commit_bytes_max: COMMIT_BYTES_MAX,
            retries_max: RETRIES_MAX,
            on_failure: FailurePolicy::default(),
            on_position_lost: LostPolicy::default(),
            parked_events_max: PARKED_EVENTS_MAX,
            parked_bytes_max: PARKED_BYTES_MAX,
            breaker_failures_max: BREAKER_FAILURES_MAX,
            breaker_wait_min: BREAKER_WAIT_MIN,
            breaker_wait_max: BREAKER_WAIT_MAX,
            retry_wait_min: RETRY_WAIT_MIN,
            retry_wait_max: RETRY_WAIT_MAX,
            idle_max: TASK_IDLE_MAX,
            background: false,
            shadow: ShadowSettings::default(),
        }
    }
}
