//! What a channel does when a number is missing and when it is full, and the bounds of all channels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::ChannelError;
use crate::limits;

/// What happens to an entry whose sender's forerunner is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gaps {
    /// It waits for the forerunner, within bounds, and is refused beyond them.
    #[default]
    Hold,
    /// It is refused at once, with the number that is expected.
    Report,
    /// It is taken as it arrives, but for what closes the sender's half: that waits. Readers can ask for the order of the
    /// senders.
    Arrival,
}

/// What happens to an entry when the channel is full. There is room for `end` and `error` of the submitter, and of
/// executors up to `CHANNEL_CLOSINGS_MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    #[default]
    Reject,
    /// The oldest entries go. Readers are told how many they missed.
    DropOldest,
    /// The oldest entries go to the archive, where they can be read and have bounds of their own. They still count towards
    /// the bytes of the process: archives may fill it, and then it takes no data.
    Archive,
}

/// What a channel was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelOptions {
    pub gaps: Gaps,
    pub full: WhenFull,
    /// Entries and bytes that it holds; no more than the host allows.
    pub entries_max: u64,
    pub bytes_max: u64,
    /// Each entry is also an event of the tenant's log, which processors may subscribe to. So whoever may read the
    /// tenant's events reads the entries, whether it takes part in the process or not.
    pub events: bool,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            gaps: Gaps::default(),
            full: WhenFull::default(),
            entries_max: limits::CHANNEL_ENTRIES_MAX,
            bytes_max: limits::CHANNEL_BYTES_MAX,
            events: false,
        }
    }
}

/// The bounds of processes and channels; see the constants of the same names.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelLimits {
    pub processes_max: usize,
    pub channels_max: usize,
    pub observers_max: usize,
    pub payload_bytes_max: usize,
    pub entries_max: u64,
    pub bytes_max: u64,
    pub process_bytes_max: u64,
    pub archive_bytes_max: u64,
    pub archive_entries_max: u64,
    pub batch_entries_max: usize,
    pub batch_bytes_max: usize,
    pub hold: Duration,
    pub hold_entries_max: usize,
    pub hold_bytes_max: usize,
    pub hold_host_bytes_max: usize,
    /// Off lets everybody append as fast as the store takes it.
    pub rate_limited: bool,
    pub burst: f64,
    pub rate: f64,
    pub sender_burst: f64,
    pub sender_rate: f64,
    pub subscriber_entries_max: u64,
    pub subscribers_max: usize,
    /// How long what was closed can be read.
    pub keep: Duration,
    /// Whether entries can be events, too. The store says it, when it is opened: it must have the log as well.
    pub events: bool,
}

impl Default for ChannelLimits {
    fn default() -> Self {
        Self {
            processes_max: limits::PROCESSES_MAX,
            channels_max: limits::CHANNELS_MAX,
            observers_max: limits::PROCESS_OBSERVERS_MAX,
            payload_bytes_max: limits::CHANNEL_PAYLOAD_BYTES_MAX,
            entries_max: limits::CHANNEL_ENTRIES_MAX,
            bytes_max: limits::CHANNEL_BYTES_MAX,
            process_bytes_max: limits::PROCESS_BYTES_MAX,
            archive_bytes_max: limits::CHANNEL_ARCHIVE_BYTES_MAX,
            archive_entries_max: limits::CHANNEL_ARCHIVE_ENTRIES_MAX,
            batch_entries_max: limits::CHANNEL_BATCH_ENTRIES_MAX,
            batch_bytes_max: limits::CHANNEL_BATCH_BYTES_MAX,
            hold: limits::CHANNEL_HOLD,
            hold_entries_max: limits::CHANNEL_HOLD_ENTRIES_MAX,
            hold_bytes_max: limits::CHANNEL_HOLD_BYTES_MAX,
            hold_host_bytes_max: limits::CHANNEL_HOLD_HOST_BYTES_MAX,
            rate_limited: true,
            burst: limits::CHANNEL_BURST,
            rate: limits::CHANNEL_RATE,
            sender_burst: limits::CHANNEL_SENDER_BURST,
            sender_rate: limits::CHANNEL_SENDER_RATE,
            subscriber_entries_max: limits::CHANNEL_SUBSCRIBER_ENTRIES_MAX,
            subscribers_max: limits::CHANNEL_SUBSCRIBERS_MAX,
            keep: limits::CHANNEL_KEEP,
            events: false,
        }
    }
}

impl ChannelLimits {
    /// Options of a channel where nobody says anything.
    pub fn default_options(&self) -> ChannelOptions {
        ChannelOptions {
            entries_max: self.entries_max,
            bytes_max: self.bytes_max,
            ..ChannelOptions::default()
        }
    }

    /// The most entries that leave an archive with one append: more than come into it.
    pub(crate) fn archive_drop_entries(&self) -> u64 {
        limits::CHANNEL_ARCHIVE_DROP_ENTRIES.max(2 * self.batch_entries_max as u64)
    }

    /// Refuses options that are beyond these.
    pub fn check(&self, options: &ChannelOptions) -> Result<(), ChannelError> {
        for (option, asked, max) in [
            ("entries_max", options.entries_max, self.entries_max),
            ("bytes_max", options.bytes_max, self.bytes_max),
        ] {
            if asked == 0 || asked > max {
                let possible = format!("1 to {max} are possible");
                return Err(ChannelError::Option { option, asked: asked.to_string(), possible });
            }
        }
        if options.events && !self.events {
            let possible = "it needs a store that has the log, too, as channels.store = \"durable\" has";
            let (option, asked) = ("events", "true".to_owned());
            return Err(ChannelError::Option { option, asked, possible: possible.to_owned() });
        }
        Ok(())
    }
}
