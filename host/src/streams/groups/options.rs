//! What a group may be told, and its bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::GroupError;
use crate::event::{Micros, Position};
use crate::limits::{
    GROUP_ATTEMPTS_CEILING, GROUP_ATTEMPTS_MAX, GROUP_BACKOFF_MAX, GROUP_BACKOFF_MIN,
    GROUP_CONSUMER_IDLE_MAX, GROUP_CONSUMER_IN_FLIGHT_MAX, GROUP_CONSUMERS_MAX, GROUP_DEAD_LETTERS_MAX,
    GROUP_DELAY_MAX, GROUP_IN_FLIGHT_MAX, GROUP_LEASE, GROUP_LEASE_CEILING, GROUP_LEASE_FLOOR,
    GROUP_WAITERS_MAX, GROUP_WINDOW_BYTES_MAX, GROUP_WINDOW_EVENTS_MAX, GROUPS_MAX, TENANT_GROUPS_MAX,
};

/// What a group does when retention has removed what it had not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// It delivers nothing more until somebody has moved it.
    #[default]
    Stop,
    /// It goes on with the oldest event that is held.
    FromOldest,
    /// It goes on with what comes after the newest event; what lies between is lost, too.
    Tail,
}

/// How a group delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOptions {
    /// How long a consumer has an entry to itself before it is delivered again.
    pub lease_ms: u64,
    /// Deliveries of an entry after which a failure makes it a dead letter.
    pub attempts_max: u32,
    /// First and longest wait of an entry that was not acknowledged; doubles in between.
    pub backoff_ms_min: u64,
    pub backoff_ms_max: u64,
    pub on_lost: OnLost,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            lease_ms: millis(GROUP_LEASE),
            attempts_max: GROUP_ATTEMPTS_MAX,
            backoff_ms_min: millis(GROUP_BACKOFF_MIN),
            backoff_ms_max: millis(GROUP_BACKOFF_MAX),
            on_lost: OnLost::default(),
        }
    }
}

/// The options that somebody names. The others stay as they are, or are the defaults of a new group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupChange {
    pub lease_ms: Option<u64>,
    pub attempts_max: Option<u32>,
    pub backoff_ms_min: Option<u64>,
    pub backoff_ms_max: Option<u64>,
    pub on_lost: Option<OnLost>,
}

impl GroupChange {
    /// The options with what is named changed. Refused where a value is not possible.
    pub fn apply(&self, options: GroupOptions) -> Result<GroupOptions, GroupError> {
        let changed = GroupOptions {
            lease_ms: self.lease_ms.unwrap_or(options.lease_ms),
            attempts_max: self.attempts_max.unwrap_or(options.attempts_max),
            backoff_ms_min: self.backoff_ms_min.unwrap_or(options.backoff_ms_min),
            backoff_ms_max: self.backoff_ms_max.unwrap_or(options.backoff_ms_max),
            on_lost: self.on_lost.unwrap_or(options.on_lost),
        };
        let (floor, ceiling) = (millis(GROUP_LEASE_FLOOR), millis(GROUP_LEASE_CEILING));
        within("lease_ms", changed.lease_ms, floor, ceiling)?;
        within("attempts_max", changed.attempts_max.into(), 1, GROUP_ATTEMPTS_CEILING.into())?;
        within("backoff_ms_max", changed.backoff_ms_max, 1, millis(GROUP_DELAY_MAX))?;
        within("backoff_ms_min", changed.backoff_ms_min, 0, changed.backoff_ms_max)?;
        Ok(changed)
    }
}

/// Refuses what is not between two numbers.
pub(super) fn within(option: &'static str, asked: u64, min: u64, max: u64) -> Result<(), GroupError> {
    if (min..=max).contains(&asked) { Ok(()) } else { Err(GroupError::Option { option, asked, min, max }) }
}

impl GroupOptions {
    /// How long an entry waits after so many deliveries.
    pub fn backoff_ms(&self, attempts: u32) -> u64 {
        let doubled = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
        self.backoff_ms_min.saturating_mul(doubled).min(self.backoff_ms_max)
    }
}

/// Where a new group begins, or one that is moved goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupStart {
    /// With the oldest event that is held.
    #[default]
    Oldest,
    /// With what is appended from now on.
    Newest,
    /// Behind this position.
    After(Position),
}

/// Bounds of every group of a host. [`crate::limits`] has the reasons.
#[derive(Clone, Copy, Debug)]
pub struct GroupLimits {
    /// Of one tenant on one stream.
    pub groups_max: u64,
    /// Of one tenant on all of its streams.
    pub tenant_groups_max: u64,
    pub consumers_max: usize,
    pub consumer_idle: Duration,
    pub in_flight_max: usize,
    pub consumer_in_flight_max: usize,
    pub window_events_max: usize,
    pub window_bytes_max: usize,
    pub waiters_max: usize,
    pub dead_letters_max: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self {
            groups_max: GROUPS_MAX,
            tenant_groups_max: TENANT_GROUPS_MAX,
            consumers_max: GROUP_CONSUMERS_MAX,
            consumer_idle: GROUP_CONSUMER_IDLE_MAX,
            in_flight_max: GROUP_IN_FLIGHT_MAX,
            consumer_in_flight_max: GROUP_CONSUMER_IN_FLIGHT_MAX,
            window_events_max: GROUP_WINDOW_EVENTS_MAX,
            window_bytes_max: GROUP_WINDOW_BYTES_MAX,
            waiters_max: GROUP_WAITERS_MAX,
            dead_letters_max: GROUP_DEAD_LETTERS_MAX,
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A time so many milliseconds later.
pub(super) fn later(now: Micros, ms: u64) -> Micros {
    Micros(now.0.saturating_add(i64::try_from(ms.saturating_mul(1_000)).unwrap_or(i64::MAX)))
}
