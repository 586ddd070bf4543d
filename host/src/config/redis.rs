//! What an operator may set of a log on Redis.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{StoreConfig, millis};
use crate::limits;

/// Where a log elsewhere is: `redis://…`, `rediss://…` or `redis+sentinel://…`. It may hold a password, and is shown
/// without it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogAddress(pub String);

impl LogAddress {
    /// For people to read.
    pub fn masked(text: &str) -> String {
        match text.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
            Some((scheme, Some((_, place)))) => format!("{scheme}://********@{place}"),
            _ => text.to_owned(),
        }
    }
}

impl fmt::Debug for LogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::masked(&self.0))
    }
}

impl fmt::Display for LogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::masked(&self.0))
    }
}

/// How a log on Redis is kept; `serve.log` says where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// Names the log: its keys begin with `{name}`, so that several logs share a server.
    pub name: String,
    /// Authorities (PEM) that the server's certificate is checked against; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// When an event is acknowledged: `auto`, `memory`, `synced` or `replicated`.
    pub ack: RedisAckConfig,
    /// With `ack = "replicated"`: how many replicas must have it.
    pub replicas: u32,
    /// How long a host that is gone keeps its processors from the host that stands by.
    pub lease_ms: u64,
    /// How long a publish is tried over lost connections and failovers.
    pub append_wait_ms_max: u64,
}

/// When an append is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisAckConfig {
    /// `replicated` with one replica where the server has replicas when it is first reached, else `synced`.
    #[default]
    Auto,
    /// When the server has it in memory. Weaker: its crash loses acknowledged events.
    Memory,
    /// When it is in the server's append-only file, and that is synced.
    Synced,
    /// When so many replicas have it as `replicas` says.
    Replicated,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            name: "millrace".into(),
            ca_file: None,
            ack: RedisAckConfig::default(),
            replicas: 1,
            lease_ms: millis(limits::LEASE_TTL),
            append_wait_ms_max: millis(limits::REDIS_APPEND_WAIT_MAX),
        }
    }
}

impl RedisConfig {
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    pub fn append_wait_max(&self) -> Duration {
        Duration::from_millis(self.append_wait_ms_max)
    }

    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self, used: bool, store: &StoreConfig) -> Result<(), (String, String)> {
        let name = self.name.as_bytes();
        if name.is_empty()
            || name.len() > limits::STREAM_NAME_BYTES_MAX
            || name.iter().any(|b| !b.is_ascii_graphic() || b"{}".contains(b))
        {
            let max = limits::STREAM_NAME_BYTES_MAX;
            let why = format!("a name has 1 to {max} visible ASCII characters, without braces");
            return Err(("redis.name".into(), why));
        }
        if self.replicas == 0 {
            return Err((
                "redis.replicas".into(),
                "it counts from 1; for none say ack = \"synced\" or \"memory\"".into(),
            ));
        }
        let lease_min = millis(limits::LEASE_TTL_MIN);
        if self.lease_ms < lease_min {
            let why = format!("a host renews its leases three times within it; it is {lease_min} at least");
            return Err(("redis.lease_ms".into(), why));
        }
        if self.append_wait_ms_max == 0 {
            return Err((
                "redis.append_wait_ms_max".into(),
                "0 would stop everything; it counts from 1".into(),
            ));
        }
        // What a processor emitted before another host took it over is recognised by its id, as long as what made it
        // emit that can be read again.
        let kept = store.retention_events.unwrap_or(limits::REDIS_EVENTS_MAX);
        let window = store.dedup_events_max as u64;
        if used && kept > window {
            let why = format!(
                "a shared log recognises repeats among all events that it keeps; it keeps {kept}, dedup_events_max is {window}"
            );
            return Err(("store.dedup_events_max".into(), why));
        }
        Ok(())
    }
}
