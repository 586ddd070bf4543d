//! Which hosts are meant.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{Plan, Progress};
use crate::control::{Desired, PluginSpec, RunState};

/// A host's place among a hundred in a rollout. Hosts of all versions have to agree on it: it never changes.
pub fn bucket(rollout: &str, host: &str) -> u8 {
    let mut digest = Sha256::new();
    digest.update(rollout);
    // No name has it, so no other pair makes the same text.
    digest.update([0]);
    digest.update(host);
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(digest.finalize());
    let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) % 100;
    u8::try_from(place).unwrap_or(99)
}

/// The first wave that takes a host.
pub fn wave_of(plan: &Plan, rollout: &str, host: &str, labels: &BTreeMap<String, String>) -> Option<u32> {
    let place = bucket(rollout, host);
    let taken = plan.waves.iter().position(|wave| place < wave.percent && has(labels, &wave.labels));
    taken.and_then(|wave| u32::try_from(wave).ok())
}

/// Whether a host is to run the plugin at all.
pub fn is_target(desired: &Desired, labels: &BTreeMap<String, String>) -> bool {
    desired.state != RunState::Removed && has(labels, &desired.targets)
}

/// What a host is to run of a plugin; none is nothing. Whether it runs or is paused is `desired.state`.
pub fn effective_spec<'a>(
    desired: &'a Desired,
    host: &str,
    labels: &BTreeMap<String, String>,
) -> Option<&'a PluginSpec> {
    if !is_target(desired, labels) {
        return None;
    }
    let Some(rollout) = &desired.rollout else { return desired.spec.as_ref() };
    let reached = match rollout.progress {
        Progress::Complete => true,
        Progress::RolledBack => false,
        Progress::Running | Progress::Halted => {
            wave_of(&rollout.plan, &rollout.id, host, labels).is_some_and(|wave| wave <= rollout.wave)
        }
    };
    if reached { desired.spec.as_ref() } else { desired.stable.as_ref() }
}

fn has(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
