//! What an operator may set of the cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::limits;

/// Copies of single rows, and of what embedders keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Entries in this process, and about their bytes.
    pub entries_max: usize,
    pub bytes_max: usize,
    /// How long a copy lasts at most.
    pub ttl_ms: u64,
    /// A second level, such as `redis://127.0.0.1:6379`; none keeps copies in this process alone.
    pub redis: Option<String>,
    /// What its keys there begin with, in braces.
    pub name: String,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            entries_max: limits::CACHE_ENTRIES_MAX,
            bytes_max: limits::CACHE_BYTES_MAX,
            ttl_ms: millis(limits::CACHE_TTL),
            redis: None,
            name: "millrace".into(),
        }
    }
}

impl CacheConfig {
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// The first thing that is wrong: a key, and why. The address is read when the host starts.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: String| Err((format!("cache.{key}"), why));
        for (key, value) in [
            ("entries_max", self.entries_max as u64),
            ("bytes_max", self.bytes_max as u64),
            ("ttl_ms", self.ttl_ms),
        ] {
            if value == 0 {
                return wrong(key, "0 would keep nothing; it counts from 1".into());
            }
        }
        if self.ttl() > limits::CACHE_TTL_CEILING {
            let max = limits::CACHE_TTL_CEILING.as_millis();
            return wrong("ttl_ms", format!("{} is over cache_ttl_ceiling = {max} ms", self.ttl_ms));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if self.name.is_empty() || !self.name.bytes().all(plain) {
            return wrong("name", "it has letters, digits, `.`, `_` and `-`".into());
        }
        Ok(())
    }
}
