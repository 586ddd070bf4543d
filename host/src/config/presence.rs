//! What an operator may set of rooms.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::limits;

/// Bounds of rooms and their members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PresenceConfig {
    /// Rooms of one tenant that have members.
    pub presence_rooms_max: usize,
    /// Members of one room.
    pub presence_members_max: usize,
    pub presence_state_bytes_max: usize,
    pub presence_message_bytes_max: usize,
    /// Followers of one room on this host.
    pub presence_followers_max: usize,
    /// How long a member stays that is not heard of and does not say; the least and the most it may ask for.
    pub presence_ttl_ms: u64,
    pub presence_ttl_ms_min: u64,
    pub presence_ttl_ms_max: u64,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self {
            presence_rooms_max: limits::PRESENCE_ROOMS_MAX,
            presence_members_max: limits::PRESENCE_MEMBERS_MAX,
            presence_state_bytes_max: limits::PRESENCE_STATE_BYTES_MAX,
            presence_message_bytes_max: limits::PRESENCE_MESSAGE_BYTES_MAX,
            presence_followers_max: limits::PRESENCE_FOLLOWERS_MAX,
            presence_ttl_ms: millis(limits::PRESENCE_TTL),
            presence_ttl_ms_min: millis(limits::PRESENCE_TTL_MIN),
            presence_ttl_ms_max: millis(limits::PRESENCE_TTL_MAX),
        }
    }
}

impl PresenceConfig {
    pub fn presence_ttl(&self) -> Duration {
        Duration::from_millis(self.presence_ttl_ms)
    }

    pub fn presence_ttl_min(&self) -> Duration {
        Duration::from_millis(self.presence_ttl_ms_min)
    }

    pub fn presence_ttl_max(&self) -> Duration {
        Duration::from_millis(self.presence_ttl_ms_max)
    }

    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: String| Err((format!("presence.{key}"), why));
        let (ttl, min, max) = (self.presence_ttl_ms, self.presence_ttl_ms_min, self.presence_ttl_ms_max);
        if min == 0 || !(min..=max).contains(&ttl) {
            return wrong("presence_ttl_ms", format!("{ttl} is not within 1 <= {min} <= {max}"));
        }
        for (key, value, most) in [
            ("presence_members_max", self.presence_members_max, limits::PRESENCE_EXPIRED_MAX),
            ("presence_state_bytes_max", self.presence_state_bytes_max, limits::PRESENCE_QUEUE_BYTES_MAX / 4),
            (
                "presence_message_bytes_max",
                self.presence_message_bytes_max,
                limits::PRESENCE_QUEUE_BYTES_MAX / 4,
            ),
        ] {
            if value > most {
                return wrong(key, format!("it is {most} at most"));
            }
        }
        Ok(())
    }
}
