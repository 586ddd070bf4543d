//! Entries that a processor appends to channels: what its operator lets it reach, and what is checked before the store
//! is asked.

use std::sync::Arc;

use super::effect::EffectRecord;
use crate::channels::{ChannelError, ChannelName, EntryType, Head, ProcessName};
use crate::event::Position;
use crate::limits::{
    CHANNEL_ERROR_BYTES_MAX, CHANNEL_NAME_BYTES_MAX, CHANNEL_PAYLOAD_BYTES_MAX, CHANNEL_SEQUENCE_MAX,
    GUEST_CHANNELS_MAX,
};

/// As whom a processor appends: this, and its name.
pub const PLUGIN_PARTY: &str = "plugin:";

/// An entry to append, borrowed. Its number is the next one of its sender, which is the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendRef<'a> {
    pub process: &'a str,
    pub channel: &'a str,
    pub entry_type: EntryType,
    /// The number of another sender's entry that this one answers.
    pub in_reply_to: Option<u64>,
    /// Only with the type `error`.
    pub error: Option<&'a str>,
    pub payload: Option<&'a [u8]>,
    /// The depth that its event has, where the channel's entries are events.
    pub depth: u32,
    /// Of the event that caused it; often empty.
    pub scope: &'a str,
    pub traceparent: &'a str,
}

/// What an entry is known by wherever its event is handled again: the event, and which of the entries that it has
/// caused it is. How events were cut into batches does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendCause {
    pub position: Position,
    pub index: u32,
}

/// The channels that a plugin was granted, by name: in whatever process of its tenant it takes part in. The default has
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelGrant(Arc<[Pattern]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Name(Box<str>),
    Beginning(Box<str>),
}

impl ChannelGrant {
    /// Every channel there is.
    pub fn all() -> Self {
        Self([Pattern::Beginning("".into())].into())
    }

    /// Reads names and, with a trailing `*`, beginnings of names. The error says what is wrong with which.
    pub fn parse(patterns: &[String]) -> Result<Self, String> {
        if patterns.len() > GUEST_CHANNELS_MAX {
            let asked = patterns.len();
            return Err(format!("it has {asked} channels; guest_channels_max is {GUEST_CHANNELS_MAX}"));
        }
        let read = |text: &String| {
            let beginning = text.strip_suffix('*');
            // A beginning may end where a name must not, and with nothing it is all of them.
            let sound = match beginning {
                Some("") => true,
                Some(beginning) => {
                    beginning.len() < CHANNEL_NAME_BYTES_MAX && ChannelName::new(beginning).is_ok()
                }
                None => ChannelName::new(text).is_ok(),
            };
            if !sound {
                let shown: String = text.chars().take(80).collect();
                return Err(format!("`{shown}` is no channel's name, nor the beginning of one before a `*`"));
            }
            Ok(match beginning {
                Some(beginning) => Pattern::Beginning(beginning.into()),
                None => Pattern::Name(text.as_str().into()),
            })
        };
        Ok(Self(patterns.iter().map(read).collect::<Result<_, _>>()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn allows(&self, channel: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Name(name) => **name == *channel,
            Pattern::Beginning(beginning) => channel.starts_with(&**beginning),
        })
    }
}

/// What is wrong with an entry to append, by itself; what its channel says to it, the store says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAppend {
    #[error("`{name}` is no {what}'s name")]
    Name { what: &'static str, name: String },
    #[error(
        "the plugin lacks the grant `channels`, so it cannot append to `{channel}`: add it to plugins.<name>.grants, and the channel to plugins.<name>.channels"
    )]
    NotGranted { channel: String },
    #[error("channel `{channel}` is none of those that were granted: add it to plugins.<name>.channels")]
    OtherGranted { channel: String },
    #[error("an entry's type is `data`, `end` or `error`, not `{name}`")]
    Type { name: String },
    #[error("the text of an error goes with the type `error` only")]
    ErrorText,
    #[error("the text of the error has {bytes} bytes; channel_error_bytes_max is {CHANNEL_ERROR_BYTES_MAX}")]
    ErrorTooLong { bytes: usize },
    #[error("the payload has {bytes} bytes; channel_payload_bytes_max is {CHANNEL_PAYLOAD_BYTES_MAX}")]
    PayloadTooLarge { bytes: usize },
    #[error("whether there is a payload is said by 1 or 0, not by {said}, and without one it has no bytes")]
    Payload { said: u32 },
    #[error("it answers number {sequence}; numbers end at {CHANNEL_SEQUENCE_MAX}")]
    Reply { sequence: u64 },
}

/// What a channel's refusal means for the commit that the entry is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFate {
    /// The entry is left out, and counted. Who takes part in the process has brought its channel into a state in which
    /// nobody waits for the entry any more; that is no fault of the event that led to it, nor of the plugin.
    Dropped(DropReason),
    /// It may be taken later.
    Waits,
    /// It is not acceptable.
    Refused,
}

/// Why an entry is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    Unknown,
    Closed,
    HalfClosed,
    Forbidden,
    Revoked,
}

impl DropReason {
    pub const ALL: [Self; 5] =
        [Self::Unknown, Self::Closed, Self::HalfClosed, Self::Forbidden, Self::Revoked];

    /// The code of the channel's refusal.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "channel_unknown",
            Self::Closed => "process_closed",
            Self::HalfClosed => "channel_half_closed",
            Self::Forbidden => "channel_forbidden",
            Self::Revoked => "channel_access_revoked",
        }
    }
}

impl AppendFate {
    /// Of an entry that was refused for this; `head` is the channel as it was, where there is one.
    pub fn of(error: &ChannelError, head: Option<&Head>) -> Self {
        match error {
            ChannelError::ProcessUnknown { .. } | ChannelError::Unknown { .. } => {
                Self::Dropped(DropReason::Unknown)
            }
            ChannelError::ProcessClosed { .. } => Self::Dropped(DropReason::Closed),
            ChannelError::HalfClosed { .. } => Self::Dropped(DropReason::HalfClosed),
            ChannelError::Revoked { .. } => Self::Dropped(DropReason::Revoked),
            ChannelError::Forbidden { .. } | ChannelError::Role { .. } => {
                // A request may come before anybody is assigned to it.
                let may_be_assigned =
                    head.is_some_and(|head| head.channel.executor.is_none() && head.process.closed.is_none());
                if may_be_assigned { Self::Waits } else { Self::Dropped(DropReason::Forbidden) }
            }
            ChannelError::Full { .. } | ChannelError::Limit { limit: "process_bytes_max", .. } => Self::Waits,
            _ => Self::Refused,
        }
    }
}

/// Entries of a commit that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    counts: [u64; DropReason::ALL.len()],
    first: Option<Arc<str>>,
}

impl Dropped {
    /// `says` is asked for the first only.
    pub fn add(&mut self, reason: DropReason, says: impl FnOnce() -> String) {
        self.counts[reason as usize] += 1;
        self.first.get_or_insert_with(|| says().into());
    }

    pub fn counts(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.counts)
    }

    pub fn entries(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was said of the first.
    pub fn first(&self) -> Option<&Arc<str>> {
        self.first.as_ref()
    }
}

/// Checks an entry as far as that needs no store.
pub(super) fn check_append(
    record: &EffectRecord,
    [process, channel, entry_type, error]: [&str; 4],
    payload: &[u8],
    granted: &ChannelGrant,
) -> Result<(), InvalidAppend> {
    let shown = |text: &str| text.chars().take(80).collect::<String>();
    if ProcessName::new(process).is_err() {
        return Err(InvalidAppend::Name { what: "process", name: shown(process) });
    }
    if ChannelName::new(channel).is_err() {
        return Err(InvalidAppend::Name { what: "channel", name: shown(channel) });
    }
    if !granted.allows(channel) {
        let channel = channel.to_owned();
        return Err(match granted.is_empty() {
            true => InvalidAppend::NotGranted { channel },
            false => InvalidAppend::OtherGranted { channel },
        });
    }
    let Some(entry_type) = EntryType::parse(entry_type) else {
        return Err(InvalidAppend::Type { name: shown(entry_type) });
    };
    if !error.is_empty() && entry_type != EntryType::Error {
        return Err(InvalidAppend::ErrorText);
    }
    if error.len() > CHANNEL_ERROR_BYTES_MAX {
        return Err(InvalidAppend::ErrorTooLong { bytes: error.len() });
    }
    if payload.len() > CHANNEL_PAYLOAD_BYTES_MAX {
        return Err(InvalidAppend::PayloadTooLarge { bytes: payload.len() });
    }
    if record.schema_version > 1 || record.schema_version == 0 && !payload.is_empty() {
        return Err(InvalidAppend::Payload { said: record.schema_version });
    }
    if record.version > CHANNEL_SEQUENCE_MAX {
        return Err(InvalidAppend::Reply { sequence: record.version });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(patterns: &[&str]) -> Result<ChannelGrant, String> {
        ChannelGrant::parse(&patterns.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_grant_reaches_what_it_names() {
        let granted = grant(&["answers", "chat-*"]).unwrap();
        for (channel, allowed) in [
            ("answers", true),
            ("chat-1", true),
            ("chat-", true),
            ("answers2", false),
            ("answer", false),
            ("chat", false),
            ("my-chat-1", false),
            ("", false),
        ] {
            assert_eq!(granted.allows(channel), allowed, "{channel}");
        }
        assert!(!ChannelGrant::default().allows("answers"));
        assert!(!grant(&[]).unwrap().allows("answers"));
        assert!(grant(&["*"]).unwrap().allows("answers"));
        assert!(ChannelGrant::all().allows("answers"));
    }

    #[test]
    fn reasons_are_counted_where_they_stand() {
        let mut dropped = Dropped::default();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            dropped.add(reason, || reason.code().to_owned());
        }
        dropped.add(DropReason::Closed, || unreachable!("there is a first"));
        assert_eq!(dropped.counts().map(|(_, count)| count).collect::<Vec<_>>(), [1, 2, 1, 1, 1]);
        assert_eq!((dropped.entries(), dropped.first().map(|first| &**first)), (6, Some("channel_unknown")));
    }

    #[test]
    fn what_names_no_channel_is_no_grant() {
        let long = "c".repeat(CHANNEL_NAME_BYTES_MAX + 1);
        for text in ["", "-a", "a/b", "*a", "a**", "chat-*x", " ", "ä", &long, &format!("{long}*")] {
            let refused = grant(&["answers", text]).unwrap_err();
            assert!(refused.contains(&format!("`{text}`")), "{refused}");
        }
        let many: Vec<_> = (0..=GUEST_CHANNELS_MAX).map(|n| format!("c{n}")).collect();
        assert!(ChannelGrant::parse(&many).unwrap_err().contains("guest_channels_max is 64"));
    }
}
