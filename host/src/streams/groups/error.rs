//! Why a group did not do what it was asked.

use std::time::Duration;

use super::names::GroupId;
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::Position;
use crate::streams::StreamError;

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    #[error("there is no stream `{stream}`")]
    UnknownStream { stream: String },
    #[error("there is no group `{group}`")]
    Unknown { group: GroupId },
    #[error(
        "`{name}` is no {what}'s name: 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit"
    )]
    Name { what: &'static str, name: String },
    #[error("`{receipt}` is not a receipt")]
    Receipt { receipt: String },
    #[error("{option} is {asked}; {min} to {max} are possible")]
    Option { option: &'static str, asked: u64, min: u64, max: u64 },
    /// A bound by its name, which is also the code.
    #[error("{what} is {asked}; {limit} is {max}")]
    Limit { limit: &'static str, what: String, asked: u64, max: u64 },
    /// The group's policy is to stop, and what it had not acknowledged is gone: by retention, or with a former life of
    /// the log.
    #[error(
        "{events} events up to position {until} went with retention or a former life of the log, before group \
         `{group}` had acknowledged them"
    )]
    PositionLost { group: GroupId, events: u64, until: Position },
    #[error("group `{group}` has no dead letter {position}")]
    UnknownLetter { group: GroupId, position: Position },
    /// The group was removed, moved or loaded anew while the call was under way.
    #[error("group `{group}` changed while this was under way")]
    Interrupted { group: GroupId },
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for GroupError {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownStream { .. } => "stream_unknown",
            Self::Unknown { .. } => "group_unknown",
            Self::Name { .. } => "group_name_invalid",
            Self::Receipt { .. } => "receipt_invalid",
            Self::Option { .. } => "group_option_invalid",
            Self::Limit { limit, .. } => limit,
            Self::PositionLost { .. } => "group_position_lost",
            Self::UnknownLetter { .. } => "group_dead_letter_unknown",
            Self::Interrupted { .. } => "group_interrupted",
            Self::Stream(inner) => inner.code(),
            Self::Backend(inner) => inner.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stream(inner) => inner.retry(),
            Self::Backend(inner) => inner.retry(),
            Self::Interrupted { .. } => Retry::After(Duration::from_secs(1)),
            // Waiters leave, and entries are acknowledged or run out.
            Self::Limit { limit, .. }
                if limit.ends_with("in_flight_max") || limit.ends_with("waiters_max") =>
            {
                Retry::After(Duration::from_secs(1))
            }
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Stream(inner) => inner.blame(),
            Self::Backend(inner) => inner.blame(),
            _ => Blame::Caller,
        }
    }
}
