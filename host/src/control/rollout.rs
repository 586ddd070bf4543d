//! In which order hosts get a new version, and when it goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One step of a plan. A host belongs to the first wave that takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// Hosts with each of these labels; empty is every host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How many of a hundred of those, chosen by a hash of host and rollout; 100 is all.
    #[serde(default = "all")]
    pub percent: u8,
    /// How long it must stay healthy before the next.
    #[serde(default)]
    pub soak_s: u64,
}

/// What a wave must hold against the version before it; see `Gate::default` for the defaults and their reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Fewer events than that on all hosts of the wave together say nothing, and nothing is not healthy.
    pub events_min: u64,
    /// Traps and errors in a million events, above those of the baseline.
    pub traps_per_million_max: u64,
    pub errors_per_million_max: u64,
    /// Time per event against the baseline, in percent.
    pub time_percent_max: u64,
    /// Events behind, above the baseline.
    pub lag_events_max: u64,
    /// Hosts of the wave, in percent, that may be quarantined or silent.
    pub unavailable_percent_max: u8,
    /// How long a wave may take to be healthy before the rollout halts.
    pub wait_s_max: u64,
}

impl Eq for Gate {}

impl Default for Gate {
    fn default() -> Self {
        Self {
            events_min: 100,
            traps_per_million_max: 0,
            errors_per_million_max: 1_000,
            time_percent_max: 200,
            lag_events_max: 100_000,
            unavailable_percent_max: 0,
            wait_s_max: 3_600,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub waves: Vec<Wave>,
    #[serde(default)]
    pub gate: Gate,
    /// Goes on by itself when the gate is passed; otherwise it waits for `rollout advance`.
    #[serde(default = "yes")]
    pub automatic: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    Running,
    Halted,
    Complete,
}

/// A rollout as it stands, part of the desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutState {
    /// The id of the event that began it.
    pub id: String,
    pub plan: Plan,
    /// Waves up to this one have the new version; the first is 0.
    pub wave: u32,
    pub progress: Progress,
}

fn all() -> u8 {
    100
}

fn yes() -> bool {
    true
}
