//! Why a fleet did not do what it was asked.

use std::time::Duration;

use super::member::Incarnation;
use crate::error::{BackendError, Blame, Classify, Retry};

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    #[error("`{name}` is no member's name: 1 to 64 letters, digits, `.`, `_` and `-`")]
    Name { name: String },
    /// It left, its time was over, another incarnation has its name, or the server was started or promoted since.
    #[error("{who} is not alive")]
    Gone { who: Incarnation },
    /// A bound by its name, which is also the code.
    #[error("{limit} is {max}; this would be {asked}")]
    Limit { limit: &'static str, asked: u64, max: u64 },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for ClusterError {
    fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "cluster_name_invalid",
            Self::Gone { .. } => "cluster_member_gone",
            Self::Limit { limit, .. } => limit,
            Self::Backend(inner) => inner.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(inner) => inner.retry(),
            Self::Limit { limit: "cluster_control_max", .. } => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        Blame::Host
    }
}
