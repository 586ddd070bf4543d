//! Why a channel did not do what it was asked. The first words of a text are the same for all times: they travel.

use std::time::Duration;

use super::entry::EntryType;
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::Position;

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    #[error("process not found: there is no process `{process}`")]
    ProcessUnknown { process: String },
    #[error("channel not found: process `{process}` has no channel `{channel}`")]
    Unknown { process: String, channel: String },
    #[error(
        "unauthorized access to channel: `{party}` is neither submitter nor executor of process `{process}`, nor one of \
         its observers"
    )]
    Forbidden { process: String, party: String },
    #[error("unauthorized access to channel: `{party}` may {needed} process `{process}` only as its {role}")]
    Role { process: String, party: String, role: &'static str, needed: &'static str },
    #[error(
        "unauthorized access to channel: `{party}` was executor of process `{process}` in epoch {epoch}; it is \
         epoch {now} now"
    )]
    Revoked { process: String, party: String, epoch: u32, now: u32 },
    #[error(
        "process already exists: `{process}` was created with another submitter, executor or set of observers"
    )]
    ProcessExists { process: String },
    #[error("channel already exists: `{channel}`")]
    Exists { channel: String },
    #[error("rate limit exceeded: {who} may append {burst} entries at once and {rate} a second")]
    RateLimited { who: String, burst: f64, rate: f64, after: Duration },
    #[error("message payload exceeds maximum size: {bytes} bytes; channel_payload_bytes_max is {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error(
        "channel log is full: `{channel}` holds {entries} entries with {bytes} bytes; it may hold {entries_max} and {bytes_max}"
    )]
    Full { channel: String, entries: u64, bytes: u64, entries_max: u64, bytes_max: u64 },
    #[error("process has too many channels: {max} at most")]
    TooManyChannels { max: u64 },
    /// A bound by its name, which is also the code.
    #[error("{what}: {asked}; {limit} is {max}")]
    Limit { limit: &'static str, what: &'static str, asked: u64, max: u64 },
    #[error("sequence is {sequence}; a sender counts its entries from 1 to 9007199254740991")]
    Sequence { sequence: i128 },
    #[error(
        "sequence is {sequence}, but the next one of `{party}` in epoch {epoch} is {expected}: those between are missing"
    )]
    Gap { party: String, epoch: u32, sequence: u64, expected: u64 },
    #[error("sequence {sequence} of `{party}` in epoch {epoch} is at position {position} with other content")]
    SequenceTaken { party: String, epoch: u32, sequence: u64, position: Position },
    #[error(
        "sequence {sequence} of `{party}` in epoch {epoch} was appended, and its entry has been dropped since"
    )]
    SequenceForgotten { party: String, epoch: u32, sequence: u64 },
    #[error("no other sender has sent a sequence {sequence} that could be answered")]
    ReplyUnknown { sequence: u64 },
    #[error("`{party}` has ended its half of the channel in epoch {epoch}, with an entry of type `{by}`")]
    HalfClosed { party: String, epoch: u32, by: &'static str },
    #[error(
        "process `{process}` is closed: nothing more is appended, and its channels can be read for some time"
    )]
    ProcessClosed { process: String },
    #[error("the entry is not valid: {why}")]
    Entry { why: String },
    #[error("`{name}` is no {what}'s name; see the rules of names")]
    Name { what: &'static str, name: String },
    #[error("{option} is {asked}; {possible}")]
    Option { option: &'static str, asked: String, possible: String },
    #[error("cursor `{cursor}` is of another process that had the name `{process}` before")]
    CursorForeign { process: String, cursor: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ChannelError {
    pub(crate) fn half_closed(party: &str, epoch: u32, by: EntryType) -> Self {
        Self::HalfClosed { party: party.to_owned(), epoch, by: by.as_str() }
    }
}

impl Classify for ChannelError {
    fn code(&self) -> &'static str {
        match self {
            Self::ProcessUnknown { .. } => "process_unknown",
            Self::Unknown { .. } => "channel_unknown",
            Self::Forbidden { .. } | Self::Role { .. } => "channel_forbidden",
            Self::Revoked { .. } => "channel_access_revoked",
            Self::ProcessExists { .. } => "process_exists",
            Self::Exists { .. } => "channel_exists",
            Self::RateLimited { .. } => "channel_rate_limited",
            Self::TooLarge { .. } => "channel_payload_bytes_max",
            Self::Full { .. } => "channel_full",
            Self::TooManyChannels { .. } => "channels_max",
            Self::Limit { limit, .. } => limit,
            Self::Sequence { .. } => "channel_sequence_invalid",
            Self::Gap { .. } => "channel_sequence_gap",
            Self::SequenceTaken { .. } => "channel_sequence_taken",
            Self::SequenceForgotten { .. } => "channel_sequence_forgotten",
            Self::ReplyUnknown { .. } => "channel_reply_unknown",
            Self::HalfClosed { .. } => "channel_half_closed",
            Self::ProcessClosed { .. } => "process_closed",
            Self::Entry { .. } => "channel_entry_invalid",
            Self::Name { .. } => "channel_name_invalid",
            Self::Option { .. } => "channel_option_invalid",
            Self::CursorForeign { .. } => "cursor_foreign",
            Self::Backend(inner) => inner.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::RateLimited { after, .. } => Retry::After(*after),
            Self::Backend(inner) => inner.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Backend(inner) => inner.blame(),
            _ => Blame::Caller,
        }
    }
}
