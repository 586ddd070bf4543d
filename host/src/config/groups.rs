//! What an operator may set of consumer groups.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::limits;

/// Bounds of consumer groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// Groups of one tenant on one stream.
    pub groups_max: u64,
    /// Groups of one tenant on all of its streams.
    pub tenant_groups_max: u64,
    pub group_consumers_max: usize,
    /// After so long a consumer that holds nothing and is silent is forgotten.
    pub group_consumer_idle_ms_max: u64,
    /// Entries that are delivered and not acknowledged: of a group, and of one consumer.
    pub group_in_flight_max: usize,
    pub group_consumer_in_flight_max: usize,
    /// What a group holds in memory because it is not acknowledged.
    pub group_window_events_max: usize,
    pub group_window_bytes_max: usize,
    /// Reads of one group that may wait.
    pub group_waiters_max: usize,
    pub group_dead_letters_max: usize,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self {
            groups_max: limits::GROUPS_MAX,
            tenant_groups_max: limits::TENANT_GROUPS_MAX,
            group_consumers_max: limits::GROUP_CONSUMERS_MAX,
            group_consumer_idle_ms_max: millis(limits::GROUP_CONSUMER_IDLE_MAX),
            group_in_flight_max: limits::GROUP_IN_FLIGHT_MAX,
            group_consumer_in_flight_max: limits::GROUP_CONSUMER_IN_FLIGHT_MAX,
            group_window_events_max: limits::GROUP_WINDOW_EVENTS_MAX,
            group_window_bytes_max: limits::GROUP_WINDOW_BYTES_MAX,
            group_waiters_max: limits::GROUP_WAITERS_MAX,
            group_dead_letters_max: limits::GROUP_DEAD_LETTERS_MAX,
        }
    }
}

impl GroupsConfig {
    pub fn group_consumer_idle_max(&self) -> Duration {
        Duration::from_millis(self.group_consumer_idle_ms_max)
    }

    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        for (key, value) in [
            ("groups_max", self.groups_max),
            ("tenant_groups_max", self.tenant_groups_max),
            ("group_consumers_max", self.group_consumers_max as u64),
            ("group_in_flight_max", self.group_in_flight_max as u64),
            ("group_consumer_in_flight_max", self.group_consumer_in_flight_max as u64),
            ("group_window_bytes_max", self.group_window_bytes_max as u64),
            ("group_waiters_max", self.group_waiters_max as u64),
        ] {
            if value == 0 {
                return Err((format!("groups.{key}"), "0 would stop everything; it counts from 1".into()));
            }
        }
        let max = self.group_window_events_max;
        if self.group_in_flight_max > max {
            let why = format!("what is delivered is held in memory; group_window_events_max is {max}");
            return Err(("groups.group_in_flight_max".into(), why));
        }
        Ok(())
    }
}
