//! Why a room did not do what it was asked.

use std::time::Duration;

use crate::error::{BackendError, Blame, Classify, Retry};

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    #[error("`{name}` is no {what}'s name: 1 to 128 bytes without control characters")]
    Name { what: &'static str, name: String },
    #[error("ttl_ms is {asked}; presence_ttl_ms is from {min} to {max}")]
    Ttl { asked: u64, min: u64, max: u64 },
    /// A bound by its name, which is also the code.
    #[error("{what}: {asked}; {limit} is {max}")]
    Limit { limit: &'static str, what: &'static str, asked: u64, max: u64 },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for PresenceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "presence_name_invalid",
            Self::Ttl { .. } => "presence_ttl_ms",
            Self::Limit { limit, .. } => limit,
            Self::Backend(inner) => inner.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(inner) => inner.retry(),
            // Members leave, rooms empty, followers go.
            Self::Limit { limit, .. } if !limit.ends_with("bytes_max") => {
                Retry::After(Duration::from_secs(1))
            }
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
