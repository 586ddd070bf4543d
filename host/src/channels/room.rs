//! What a channel, its archive and its process have room for.

use super::error::ChannelError;
use super::options::{ChannelLimits, ChannelOptions, WhenFull};
use super::record::{Channel, Head};
use crate::limits::{CHANNEL_CLOSING_BYTES_MAX, CHANNEL_CLOSINGS_BYTES_MAX, CHANNEL_CLOSINGS_MAX};

type Result<T> = std::result::Result<T, ChannelError>;

/// At least so many of the oldest entries that count, and at least so many of their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excess {
    pub entries: u64,
    pub bytes: u64,
}

impl Excess {
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Whether the last word of a sender is taken beyond all bounds. The submitter has one; each assignment brings another.
pub(super) fn takes_nobodys_room(channel: &Channel, epoch: u32, bytes: u64) -> bool {
    let few = channel.closing_entries < CHANNEL_CLOSINGS_MAX
        && channel.closing_bytes + bytes <= CHANNEL_CLOSINGS_BYTES_MAX;
    bytes <= CHANNEL_CLOSING_BYTES_MAX as u64 && (epoch == 0 || few)
}

/// What has to leave the archive of a channel, its oldest entries first.
pub(crate) fn archive_excess(channel: &Channel, limits: &ChannelLimits) -> Excess {
    Excess {
        entries: channel
            .archived_entries()
            .saturating_sub(limits.archive_entries_max)
            .min(limits.archive_drop_entries()),
        bytes: channel.archive_bytes.saturating_sub(limits.archive_bytes_max),
    }
}

/// What has to leave so that an append is within the bounds, or what it is beyond.
pub(super) fn excess(
    head: &Head,
    channel: &Channel,
    (data_entries, data_bytes): (u64, u64),
    process_bytes: u64,
    limits: &ChannelLimits,
) -> Result<Excess> {
    let ChannelOptions { full, entries_max, bytes_max, .. } = channel.options;
    let before = &head.channel;
    // Where entries go, those that closed a half long ago go like others; this append does not push its own end out.
    let (entries, bytes) = match full {
        WhenFull::Reject => (channel.closing_entries, channel.closing_bytes),
        WhenFull::DropOldest | WhenFull::Archive => {
            (channel.closing_entries - before.closing_entries, channel.closing_bytes - before.closing_bytes)
        }
    };
    let mut over = Excess {
        entries: channel.hot_entries().saturating_sub(entries_max.saturating_add(entries)),
        bytes: channel.bytes.saturating_sub(bytes_max.saturating_add(bytes)),
    };
    // What one append brings must fit by itself.
    let fits = data_entries <= entries_max && data_bytes <= bytes_max;
    if !fits || full == WhenFull::Reject && !over.is_none() {
        return Err(ChannelError::Full {
            channel: channel.name.to_string(),
            entries: before.hot_entries(),
            bytes: before.bytes,
            entries_max,
            bytes_max,
        });
    }
    let process = process_bytes + (channel.bytes - before.bytes);
    let too_many = process.saturating_sub(limits.process_bytes_max);
    if full == WhenFull::DropOldest && too_many <= before.bytes {
        over.bytes = over.bytes.max(too_many);
    } else if too_many > 0 {
        return Err(ChannelError::Limit {
            limit: "process_bytes_max",
            what: "bytes of all channels of the process",
            asked: process,
            max: limits.process_bytes_max,
        });
    }
    Ok(over)
}
