//! Claims about rollouts: who is reached when, what lets one go on, and what takes it back.

mod breaker;
mod changes;
mod cuts;
mod fleet;
mod gates;
mod members;
mod reports;
mod stage;
mod whole;

use std::collections::BTreeMap;

use millrace::control::rollout::{Gate, Plan, Progress, RolloutState, Wave};
use millrace::control::{Desired, RunState};
use millrace_tests::control_events::spec;

const PLUGIN: &str = "board";
const ID: &str = "evt_01JH0000000000000000000001";

fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn wave(percent: u8, of: &[(&str, &str)], soak_s: u64) -> Wave {
    Wave { labels: labels(of), percent, soak_s }
}

fn plan(waves: &[Wave]) -> Plan {
    Plan { waves: waves.to_vec(), gate: Gate::default(), automatic: true }
}

/// 2.0.0 on its way, and 1.0.0 before it.
fn desired(plan: Plan, wave: u32, progress: Progress) -> Desired {
    Desired {
        state: RunState::Running,
        spec: Some(spec(PLUGIN, "2.0.0", b"2.0.0")),
        stable: Some(spec(PLUGIN, "1.0.0", b"1.0.0")),
        targets: BTreeMap::new(),
        rollout: Some(RolloutState { id: ID.into(), plan, wave, progress }),
    }
}
