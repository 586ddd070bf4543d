//! Live queries: ordered windows over tables, kept exact as commits change rows.
//!
//! Promises: what a subscriber has after each batch is the answer to its query as of the batch's revision;
//! all frames of a commit come in one batch; a token resumes with exactly what was missed, or the subscriber
//! is told that it cannot and gets everything anew; nobody is left out silently, and who is slow holds nobody
//! up. Knows neither HTTP nor the store behind [`TableStore`](crate::tables::TableStore).

mod ahead;
mod encode;
mod engine;
mod frames;
mod holders;
mod index;
mod numbers;
mod owner;
mod ranked;
mod read;
mod ring;
mod shape;
mod sort_key;
mod token;
mod view;
mod views;
mod window;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use engine::LiveEngine;
pub use frames::{Batch, BatchBuilder};

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::TenantId;
use crate::tables::{Query, RowCursor, TableError};

/// How a view follows its query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// An ordered window of at most `limit` rows.
    #[default]
    Maintained,
    /// Which rows match, without order: match, update, unmatch. `limit` bounds the first page only.
    Streamed,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveQuery {
    /// Its `after` anchors the window. What the subscriber may not see is left out by its scope.
    pub query: Query,
    pub mode: Mode,
    /// The columns that frames show; none for all. The key is always there.
    pub columns: Option<Vec<String>>,
}

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub struct Subscribe {
    pub tenant: TenantId,
    pub query: LiveQuery,
    /// The token of the last batch that the subscriber has.
    pub resume: Option<String>,
}

/// One subscription of a subscriber. Dropping it ends it.
pub struct Subscription {
    /// What comes, in order: first a snapshot, or what was missed; an error is the last item.
    pub batches: BoxStream<'static, Result<Batch, LiveError>>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

/// Answers live queries. Safe to share; what it answers ends when it is dropped or closed.
pub trait LiveQueries: Send + Sync + std::fmt::Debug {
    /// Watches a query. The answer comes once the query is checked; rows follow in the stream.
    fn subscribe(&self, subscribe: Subscribe) -> BoxFuture<'_, Result<Subscription, LiveError>>;
}

/// The same query from another place on, or with another size; none keeps what it was, a cursor `Some(None)` is the head.
#[derive(Clone, Debug, Default)]
pub struct Reanchor {
    pub after: Option<Option<RowCursor>>,
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("table `{table}` has no column `{column}` to show")]
    Column { table: String, column: String },
    #[error("the columns of table `{table}` have changed; the query no longer fits them")]
    Changed { table: String },
    #[error(
        "the rows of the window have more than {bytes} bytes, after {rows} rows; live_window_bytes_max is {bytes}"
    )]
    WindowBytes { rows: usize, bytes: usize },
    #[error("more than {max} rows match; live_streamed_rows_max is {max}")]
    StreamedRows { max: usize },
    #[error("{views} different queries are watched; live_views_max is {max}")]
    TooManyViews { views: usize, max: usize },
    #[error("the view failed inside the host and was given up")]
    ViewFailed,
    #[error("the host is stopping")]
    Closing,
}

impl Classify for LiveError {
    fn code(&self) -> &'static str {
        match self {
            Self::Table(error) => error.code(),
            Self::Column { .. } => "query_invalid",
            Self::Changed { .. } => "live_columns_changed",
            Self::WindowBytes { .. } => "live_window_bytes_max",
            Self::StreamedRows { .. } => "live_streamed_rows_max",
            Self::TooManyViews { .. } => "live_views_max",
            Self::ViewFailed => "live_view_failed",
            Self::Closing => "host_stopping",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Table(error) => error.retry(),
            Self::Column { .. }
            | Self::Changed { .. }
            | Self::WindowBytes { .. }
            | Self::StreamedRows { .. } => Retry::Never,
            _ => BackendError::Closed.retry(),
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Table(error) => error.blame(),
            Self::Column { .. }
            | Self::Changed { .. }
            | Self::WindowBytes { .. }
            | Self::StreamedRows { .. }
            | Self::TooManyViews { .. } => Blame::Caller,
            Self::ViewFailed | Self::Closing => Blame::Host,
        }
    }
}
