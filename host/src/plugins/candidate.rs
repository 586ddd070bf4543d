//! A version that wants to run in another one's place: how it is tried, and what became of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::processors::{Expect, ShadowReport, ShadowSettings};

/// How a deploy differs from an ordinary one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeployOptions {
    /// Overrides of `shadow_events` and `shadow_ms`.
    pub shadow_events: Option<u64>,
    pub shadow_ms: Option<u64>,
    /// Leaves the shadow run out; the history says so.
    pub no_shadow: bool,
    /// After the shadow run, waits for `confirm` before it takes over.
    pub confirm: bool,
    pub expect: Expect,
    /// It is an earlier version.
    pub rollback: bool,
}

impl DeployOptions {
    /// The bounds of the shadow run.
    pub(super) fn shadow(&self, usual: &ShadowSettings) -> ShadowSettings {
        let events = if self.no_shadow { 0 } else { self.shadow_events.unwrap_or(usual.events) };
        let time = self.shadow_ms.map_or(usual.time, Duration::from_millis);
        ShadowSettings { events, time: time.min(usual.time_max), expect: self.expect, ..*usual }
    }
}

/// The last version that wanted to run, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Candidate {
    /// Name and version; where it did not come as far, the file that brought it.
    pub name: String,
    pub digest: String,
    pub by: String,
    /// Microseconds since 1970.
    pub at: i64,
    pub state: CandidateState,
    /// Why it was refused or dropped.
    pub refusal: Option<Refusal>,
    /// What the shadow run found; none when there was none.
    pub report: Option<ShadowReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    /// It handles events in the shadow.
    InShadow,
    /// It has proved itself and waits for `confirm`.
    Waiting,
    /// It runs.
    TookOver,
    Refused,
    /// It was given up before it could take over.
    Abandoned,
}
