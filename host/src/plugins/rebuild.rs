//! Making a plugin's tables again beside those that are served: what is asked for, what is remembered, and the seam
//! of whoever keeps both.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{DeployFrom, Deployment};
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{Position, Revision};
use crate::tables::{TableError, TableSchema};

/// After which a change that found a rebuild under way may be tried again.
const RUNNING_AGAIN: Duration = Duration::from_secs(10);

/// Rebuilds as they are remembered, and the one moment at which a rebuild takes over.
///
/// Everything is durable when it answers. The tables of a rebuild are told of to nobody before the flip, and what the
/// flip has replaced to nobody after it; both are removed in slices, beside other work, once nothing refers to them.
pub trait RebuildStore: Send + Sync + Debug {
    /// Writes a rebuild down, numbers it, and makes its tables, under the names of [`super::shadow_name`].
    fn begin(&self, wanted: NewRebuild) -> BoxFuture<'_, Result<RebuildRecord, RebuildError>>;

    /// Writes down how far an open one is.
    fn note(&self, number: u64, progress: RebuildProgress) -> BoxFuture<'_, Result<(), RebuildError>>;

    /// The last rebuild of each plugin that had one, whether it has ended or not.
    fn list(&self) -> BoxFuture<'_, Result<Vec<RebuildRecord>, RebuildError>>;

    /// Puts a rebuild's tables, tasks and deployment in the place of the plugin's, in one transaction and one
    /// revision; whoever watches the tables is told to read again. Refused unless every task of both stands at the
    /// barrier. A commit under a former task is fenced from then on.
    fn flip(&self, flip: Flip) -> BoxFuture<'_, Result<FlipReport, RebuildError>>;

    /// Ends a rebuild that has not taken over.
    fn abandon(&self, number: u64, why: String) -> BoxFuture<'_, Result<(), RebuildError>>;
}

/// A rebuild that is to begin.
#[derive(Clone, Debug)]
pub struct NewRebuild {
    /// What will be the plugin's deployment.
    pub deployment: Deployment,
    pub tables: Vec<TableSchema>,
    /// Events up to here are not handled.
    pub start: Position,
    pub accept_unemitted: bool,
}

/// A rebuild as it is remembered.
#[derive(Clone, Debug)]
pub struct RebuildRecord {
    /// No other rebuild of the store has it.
    pub number: u64,
    pub deployment: Deployment,
    pub start: Position,
    pub progress: RebuildProgress,
}

impl RebuildRecord {
    pub fn is_open(&self) -> bool {
        !matches!(self.progress.stage, RebuildStage::Flipped | RebuildStage::Abandoned)
    }
}

/// How far a rebuild has come. What it has handled is in its tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RebuildProgress {
    pub stage: RebuildStage,
    pub accept_unemitted: bool,
    pub dropped: DroppedEffects,
    /// How often it has tried to take over.
    pub tries: u64,
    /// Why it is not further, or has ended.
    pub message: String,
    /// What the flip did, or would have done when it was tried last.
    pub report: Option<FlipReport>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RebuildStage {
    /// It handles what is in the log.
    #[default]
    Filling,
    /// It has all but the newest events, and waits for the moment to take over.
    CaughtUp,
    /// Both versions stand still at one position.
    Holding,
    /// It has taken over.
    Flipped,
    /// It has ended without that.
    Abandoned,
}

/// Effects that were left out, since they were made when the events were handled first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DroppedEffects {
    pub emitted: u64,
    pub appended: u64,
}

/// A rebuild that is to take over.
#[derive(Clone, Debug)]
pub struct Flip {
    pub number: u64,
    /// Where all tasks stand.
    pub barrier: Position,
    /// The plugin's from then on.
    pub deployment: Deployment,
    /// Take over although some events are told of as unemitted or unhandled.
    pub accept_unemitted: bool,
}

/// What a flip did with what had failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FlipReport {
    pub revision: u64,
    /// The position at which both versions stood.
    pub barrier: u64,
    /// Events that the old version has not handled, and the rebuild has, or begins behind: nobody emits what comes of
    /// them.
    pub unemitted: Positions,
    /// Events that the old version has handled and the rebuild has not: what comes of them is emitted again when they
    /// are.
    pub unhandled: Positions,
    /// Dead letters of the old version that are gone, since the rebuild has handled their events or has letters of its
    /// own.
    pub letters_replaced: u64,
}

impl FlipReport {
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// Whether each emission that comes of an event was and will be made exactly once.
    pub fn is_exact(&self) -> bool {
        self.unemitted.count == 0 && self.unhandled.count == 0
    }
}

/// Events, by their positions: how many, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Positions {
    pub count: u64,
    pub first: Vec<u64>,
}

/// Somebody wants a plugin made again.
#[derive(Clone, Debug)]
pub struct RebuildRequest {
    pub plugin: String,
    /// Another version; none is the one that runs.
    pub component: Option<Bytes>,
    pub from: DeployFrom,
    /// None are as many as there are.
    pub lanes: Option<u32>,
    pub accept_unemitted: bool,
    /// The version calls others over HTTP, and may do that again for every event.
    pub repeat_calls: bool,
    pub by: String,
}

/// A rebuild as it is shown.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct RebuildView {
    pub plugin: String,
    pub number: u64,
    pub stage: RebuildStage,
    pub from: super::StartFrom,
    /// The position behind which it begins.
    pub start: u64,
    pub lanes: u32,
    pub version: String,
    pub digest: String,
    /// Microseconds since 1970.
    pub began_at: i64,
    pub began_by: String,
    /// Everything up to here is done, as far as it is known; 0 before it runs.
    pub position: u64,
    /// Of the log.
    pub newest: u64,
    /// Since the host started.
    pub events_done: u64,
    pub events_per_s: u64,
    /// Until it has what is in the log now; none while it does not move.
    pub eta_s: Option<u64>,
    pub dropped: DroppedEffects,
    pub tries: u64,
    pub accept_unemitted: bool,
    /// Why it is not further, or has ended; or empty.
    pub message: String,
    pub report: Option<FlipReport>,
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    #[error("rebuild {number} of plugin `{plugin}` is under way: wait for it, or abandon it")]
    Running { plugin: String, number: u64 },
    #[error("plugin `{plugin}` is not being rebuilt")]
    None { plugin: String },
    #[error("plugin `{plugin}` cannot be rebuilt: {detail}")]
    Refused { plugin: String, detail: String },
    /// It has ended, or never was.
    #[error("there is no rebuild {number} that is under way")]
    Gone { number: u64 },
    #[error("not every task stands at position {barrier}: {detail}")]
    NotAtBarrier { barrier: Position, detail: String },
    #[error(
        "the old version has left {} events to dead letters or parked that the rebuild has handled or begins behind, and handled {} that the rebuild has not: replay or discard them, or accept it",
        .0.unemitted.count, .0.unhandled.count
    )]
    Unemitted(Box<FlipReport>),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for RebuildError {
    fn code(&self) -> &'static str {
        match self {
            Self::Running { .. } => "rebuild_running",
            Self::None { .. } | Self::Gone { .. } => "rebuild_none",
            Self::Refused { .. } | Self::NotAtBarrier { .. } => "rebuild_refused",
            Self::Unemitted(_) => "rebuild_unemitted",
            Self::Table(e) => e.code(),
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Running { .. } => Retry::After(RUNNING_AGAIN),
            Self::Table(e) => e.retry(),
            Self::Backend(e) => e.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::NotAtBarrier { .. } => Blame::Host,
            Self::Table(e) => e.blame(),
            Self::Backend(e) => e.blame(),
            _ => Blame::Caller,
        }
    }
}
