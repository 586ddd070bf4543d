//! What somebody may do with a dead letter, and how it went.

use tokio::sync::oneshot;

use crate::checkpoints::DeadLetterRow;
use crate::error::{Blame, Classify, Retry};

/// What is to happen with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handle its event again, once. On success the letter is gone and its key goes on.
    Replay,
    /// Give its event up. The letter is gone and its key goes on.
    Discard,
}

/// What became of it. Durable when it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Handled; so many events of its key follow. Out of order when its key had gone on without it.
    Replayed { out_of_order: bool, released: usize },
    /// Given up; so many events of its key follow.
    Discarded { released: usize },
    /// It failed again and stays a dead letter.
    FailedAgain { reason: String, message: String },
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    #[error("processor `{processor}` has no dead letter {letter} any more")]
    Gone { processor: String, letter: u64 },
    #[error("processor `{processor}` does not run for tenant {tenant}")]
    NotRunning { processor: String, tenant: String },
    #[error("processor `{processor}` was stopped or started again before dead letter {letter} was decided")]
    Interrupted { processor: String, letter: u64 },
}

impl Classify for ResolveError {
    fn code(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "dead_letter_unknown",
            Self::NotRunning { .. } => "plugin_not_running",
            Self::Interrupted { .. } => "interrupted",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Interrupted { .. } => Retry::After(std::time::Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Gone { .. } | Self::NotRunning { .. } => Blame::Caller,
            Self::Interrupted { .. } => Blame::Host,
        }
    }
}

pub(super) type Reply = oneshot::Sender<Result<Resolved, ResolveError>>;

/// A verdict on its way to the task.
#[derive(Debug)]
pub(super) struct Resolution {
    pub(super) verdict: Verdict,
    pub(super) letter: DeadLetterRow,
    pub(super) reply: Reply,
}
