//! What a shadow run found, in the words of a deploy's answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{SHADOW_ERRORS_MAX, SHADOW_EVENTS, SHADOW_TIME, SHADOW_TIME_MAX, SHADOW_TIME_RATIO_MAX};

/// The bounds of a shadow run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowSettings {
    /// Events to handle; 0 leaves the run out.
    pub events: u64,
    /// How long it takes where there is traffic.
    pub time: Duration,
    /// The most that it takes.
    pub time_max: Duration,
    /// How many times as long as the running version the candidate may take for an event.
    pub time_ratio_max: u32,
    /// Events that the candidate may fail on where the running version did not.
    pub errors_max: u64,
    pub expect: Expect,
}

/// What else the candidate is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Differences are told and refuse nobody.
    #[default]
    Anything,
    /// Rows, emitted events and appended entries are those of the running version, in the columns that both have.
    IdenticalRows,
}

impl Default for ShadowSettings {
    fn default() -> Self {
        Self {
            events: SHADOW_EVENTS,
            time: SHADOW_TIME,
            time_max: SHADOW_TIME_MAX,
            time_ratio_max: SHADOW_TIME_RATIO_MAX,
            errors_max: SHADOW_ERRORS_MAX,
            expect: Expect::Anything,
        }
    }
}

/// What became of a candidate in the shadow.
#[derive(Clone, Debug)]
pub struct ShadowOutcome {
    pub report: ShadowReport,
    /// Why it must not take over; none when it may.
    pub refusal: Option<ShadowRefusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ShadowRefusal {
    pub fault: ShadowFault,
    pub message: String,
}

/// What a candidate is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowFault {
    Trap,
    Timeout,
    Limit,
    Fatal,
    Errors,
    /// It does not load a state that it would have to go on from.
    State,
    Slow,
    Memory,
    /// It gives no snapshot, or none that it loads itself.
    Snapshot,
    /// Two snapshots in a row differ.
    Impure,
    RowsDiffer,
    /// The host could not run it.
    Host,
    /// Somebody ended the run.
    Stopped,
}

impl ShadowFault {
    /// Stable, for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Trap => "shadow_trap",
            Self::Timeout => "shadow_timeout",
            Self::Limit => "shadow_limit",
            Self::Fatal => "shadow_fatal",
            Self::Errors => "shadow_errors",
            Self::State => "state_refused",
            Self::Slow => "shadow_slow",
            Self::Memory => "shadow_memory",
            Self::Snapshot => "shadow_snapshot",
            Self::Impure => "shadow_impure",
            Self::RowsDiffer => "shadow_rows_differ",
            Self::Host => "shadow_failed",
            Self::Stopped => "shadow_stopped",
        }
    }
}

/// How a candidate compares with the version that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ShadowReport {
    /// Events that both versions have handled; of them, those replayed from the log.
    pub events: u64,
    pub replayed_events: u64,
    pub milliseconds: u64,
    /// Runs of events from one state to another; rows are compared at the end of each.
    pub stretches: u64,
    /// Those that ended early because the candidate was too far behind or the running version began again.
    pub broken_stretches: u64,
    /// Rows as they are at the end of a stretch.
    pub rows: Differences,
    /// Emitted events, in order.
    pub emitted: Differences,
    /// Entries appended to channels, in order.
    #[serde(default)]
    pub appended: Differences,
    /// Entries of keyed state at the end of a stretch.
    pub state_entries: Differences,
    /// A few of the differences.
    pub examples: Vec<RowDifference>,
    /// What only the candidate declares, and what it no longer does. What is no longer declared stays readable.
    pub added_tables: Vec<String>,
    pub removed_tables: Vec<String>,
    pub added_columns: Vec<String>,
    pub removed_columns: Vec<String>,
    /// Events that only the candidate, only the running version, or both failed on.
    pub errors_new: u64,
    pub errors_old: u64,
    pub errors_both: u64,
    /// What the candidate said at the first event that only it failed on; empty when there is none.
    pub first_error: String,
    pub old: VersionFigures,
    pub new: VersionFigures,
}

/// How many were equal, and how the others differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Differences {
    pub same: u64,
    pub different: u64,
    pub only_old: u64,
    pub only_new: u64,
}

impl Differences {
    pub fn any(&self) -> bool {
        self.different > 0 || self.only_old > 0 || self.only_new > 0
    }

    pub(super) fn count<T>(&mut self, old: Option<T>, new: Option<T>, equal: impl FnOnce(&T, &T) -> bool) {
        let counted = match (&old, &new) {
            (Some(old), Some(new)) if equal(old, new) => &mut self.same,
            (Some(_), Some(_)) => &mut self.different,
            (Some(_), None) => &mut self.only_old,
            (None, Some(_)) => &mut self.only_new,
            (None, None) => return,
        };
        *counted += 1;
    }
}

/// A row that the versions do not agree on. A value that is not there is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowDifference {
    pub tenant: String,
    pub table: String,
    pub key: String,
    /// Empty when one of the versions has no row.
    pub column: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

/// What a version used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionFigures {
    /// The median over batches; 0 when nothing was measured.
    pub nanoseconds_per_event: u64,
    /// Snapshots, over the tasks that were looked at.
    pub state_bytes: u64,
    /// Linear memory, over the tasks that were looked at.
    pub memory_bytes: u64,
}
