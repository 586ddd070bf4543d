//! Why a tenant's run ends.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use super::feed::FeedError;
use super::lost::{LostError, PositionsLost};
use super::task::End;
use crate::checkpoints::CommitError;
use crate::error::{Blame, Classify as _};

/// Why a tenant's run ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("{}", .0.message)]
    Task(End),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Claim(#[from] CommitError),
    #[error(transparent)]
    Lost(PositionsLost),
    #[error("another host runs the processor now")]
    NotOwner,
    #[error("position_lost for another tenant, so the processor is left to other hosts")]
    LeftToOthers,
}

impl From<LostError> for RunError {
    fn from(error: LostError) -> Self {
        match error {
            LostError::Lost(lost) => Self::Lost(lost),
            LostError::Store(error) => Self::Claim(error),
        }
    }
}

impl RunError {
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Task(end) => end.blame,
            Self::Feed(FeedError::Stream(error)) => error.blame(),
            Self::Feed(_) => Blame::Host,
            Self::Claim(error) => error.blame(),
            Self::Lost(_) | Self::NotOwner | Self::LeftToOthers => Blame::Host,
        }
    }
}

/// The first end that is reported. Tasks that end without a report were told
/// to; then whoever told them ends this wait, too.
pub(super) async fn first(ends: Vec<oneshot::Receiver<End>>) -> End {
    let mut ends: FuturesUnordered<_> = ends.into_iter().collect();
    while let Some(end) = ends.next().await {
        if let Ok(end) = end {
            return end;
        }
    }
    std::future::pending().await
}
