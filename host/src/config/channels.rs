//! What an operator may set of channels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::limits;

/// Where processes and channels are kept, and their bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelsConfig {
    /// `durable`: in the folder of the store. `memory`: nothing of them outlives the host.
    pub store: ChannelsStore,
    /// Processes of one tenant, closed ones included.
    pub processes_max: usize,
    /// Channels, and observers, of one process.
    pub channels_max: usize,
    pub process_observers_max: usize,
    pub channel_payload_bytes_max: usize,
    /// Entries and bytes of one channel, the bytes of all channels of a process, and bytes and entries of an archive.
    pub channel_entries_max: u64,
    pub channel_bytes_max: u64,
    pub process_bytes_max: u64,
    pub channel_archive_bytes_max: u64,
    pub channel_archive_entries_max: u64,
    /// Entries and bytes of one append.
    pub channel_batch_entries_max: usize,
    pub channel_batch_bytes_max: usize,
    /// How long an entry waits for its forerunner, how many entries of one sender do, and how many bytes of the appends to
    /// a process and of all appends.
    pub channel_hold_ms: u64,
    pub channel_hold_entries_max: usize,
    pub channel_hold_bytes_max: usize,
    pub channel_hold_host_bytes_max: usize,
    /// Whether appends are bound by the four below: entries of a process, and of one sender in it, at once and in a second.
    pub channel_rate_limited: bool,
    pub channel_burst: u32,
    pub channel_rate: u32,
    pub channel_sender_burst: u32,
    pub channel_sender_rate: u32,
    /// How far a follower may fall behind before it is told.
    pub channel_subscriber_entries_max: u64,
    /// Followers of one channel on this host.
    pub channel_subscribers_max: usize,
    /// How long the channels of a closed process can be read.
    pub channel_keep_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelsStore {
    #[default]
    Durable,
    Memory,
}

impl Default for ChannelsConfig {
    fn default() -> Self {
        Self {
            store: ChannelsStore::default(),
            processes_max: limits::PROCESSES_MAX,
            channels_max: limits::CHANNELS_MAX,
            process_observers_max: limits::PROCESS_OBSERVERS_MAX,
            channel_payload_bytes_max: limits::CHANNEL_PAYLOAD_BYTES_MAX,
            channel_entries_max: limits::CHANNEL_ENTRIES_MAX,
            channel_bytes_max: limits::CHANNEL_BYTES_MAX,
            process_bytes_max: limits::PROCESS_BYTES_MAX,
            channel_archive_bytes_max: limits::CHANNEL_ARCHIVE_BYTES_MAX,
            channel_archive_entries_max: limits::CHANNEL_ARCHIVE_ENTRIES_MAX,
            channel_batch_entries_max: limits::CHANNEL_BATCH_ENTRIES_MAX,
            channel_batch_bytes_max: limits::CHANNEL_BATCH_BYTES_MAX,
            channel_hold_ms: millis(limits::CHANNEL_HOLD),
            channel_hold_entries_max: limits::CHANNEL_HOLD_ENTRIES_MAX,
            channel_hold_bytes_max: limits::CHANNEL_HOLD_BYTES_MAX,
            channel_hold_host_bytes_max: limits::CHANNEL_HOLD_HOST_BYTES_MAX,
            channel_rate_limited: true,
            channel_burst: whole(limits::CHANNEL_BURST),
            channel_rate: whole(limits::CHANNEL_RATE),
            channel_sender_burst: whole(limits::CHANNEL_SENDER_BURST),
            channel_sender_rate: whole(limits::CHANNEL_SENDER_RATE),
            channel_subscriber_entries_max: limits::CHANNEL_SUBSCRIBER_ENTRIES_MAX,
            channel_subscribers_max: limits::CHANNEL_SUBSCRIBERS_MAX,
            channel_keep_ms: millis(limits::CHANNEL_KEEP),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the limits are whole and small; the buckets count in fractions"
)]
const fn whole(number: f64) -> u32 {
    number as u32
}

impl ChannelsConfig {
    pub fn channel_hold(&self) -> Duration {
        Duration::from_millis(self.channel_hold_ms)
    }

    pub fn channel_keep(&self) -> Duration {
        Duration::from_millis(self.channel_keep_ms)
    }

    /// The first thing that is wrong: a key, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: String| Err((format!("channels.{key}"), why));
        for (key, value) in [
            ("processes_max", self.processes_max as u64),
            ("channels_max", self.channels_max as u64),
            ("channel_payload_bytes_max", self.channel_payload_bytes_max as u64),
            ("channel_entries_max", self.channel_entries_max),
            ("channel_bytes_max", self.channel_bytes_max),
            ("channel_batch_entries_max", self.channel_batch_entries_max as u64),
            ("channel_subscriber_entries_max", self.channel_subscriber_entries_max),
            ("channel_subscribers_max", self.channel_subscribers_max as u64),
            ("channel_burst", self.channel_burst.into()),
            ("channel_rate", self.channel_rate.into()),
            ("channel_sender_burst", self.channel_sender_burst.into()),
            ("channel_sender_rate", self.channel_sender_rate.into()),
        ] {
            if value == 0 {
                return wrong(key, "0 would stop everything; it counts from 1".into());
            }
        }
        for (key, value, other, max) in [
            (
                "channel_payload_bytes_max",
                self.channel_payload_bytes_max as u64,
                "channel_batch_bytes_max",
                self.channel_batch_bytes_max as u64,
            ),
            (
                "channel_payload_bytes_max",
                self.channel_payload_bytes_max as u64,
                "channel_bytes_max",
                self.channel_bytes_max,
            ),
            (
                "channel_batch_bytes_max",
                self.channel_batch_bytes_max as u64,
                "channel_batch_bytes_ceiling",
                limits::CHANNEL_BATCH_BYTES_CEILING as u64,
            ),
            ("channel_bytes_max", self.channel_bytes_max, "process_bytes_max", self.process_bytes_max),
            (
                "channel_hold_bytes_max",
                self.channel_hold_bytes_max as u64,
                "channel_hold_host_bytes_max",
                self.channel_hold_host_bytes_max as u64,
            ),
            (
                "channel_hold_ms",
                self.channel_hold_ms,
                "channel_hold_ms_ceiling",
                millis(limits::CHANNEL_HOLD_CEILING),
            ),
        ] {
            if value > max {
                return wrong(key, format!("{value} is over {other} = {max}"));
            }
        }
        Ok(())
    }
}
