//! A rollout as it is written down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::{Result, check_labels, wire::invalid};
use crate::limits::{CONTROL_SOAK_MAX, CONTROL_WAVES_MAX};

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

/// What each wave must hold against the version before it. A rate that is broken ends the rollout at once, since what was
/// counted stays; so does a host that sets the version aside. A lag may go back while the wave soaks; then it ends the
/// rollout, too. Silent hosts, and those that are not there yet, are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Fewer events than that on all hosts of the wave together say nothing, and nothing is not healthy. 0 asks for none: for
    /// plugins without traffic. Where hosts share a log, one of them has the events; a wave of others asks for none.
    pub events_min: u64,
    /// Traps and errors in a million events, above those of the baseline.
    pub traps_per_million_max: u64,
    pub errors_per_million_max: u64,
    /// Time per event against the baseline, in percent. Not asked where the version before had fewer than `events_min`.
    pub time_percent_max: u64,
    /// Events behind, above the baseline.
    pub lag_events_max: u64,
    /// Hosts of the wave, in percent, that may be quarantined or silent.
    pub unavailable_percent_max: u8,
    /// How long a wave may take beyond its soak time to be healthy. Then it is taken back.
    pub wait_s_max: u64,
}

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
    /// The last one takes every host: nobody is left with the former version when the rollout is complete.
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
    /// It goes on by hand only. Waves that have the new version keep it.
    Halted,
    /// Every host has the new version. The former one stays written down, so that it can be gone back to.
    Complete,
    /// Every host has the former version, or nothing where there was none. The new one stays written down as what was tried.
    RolledBack,
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

impl Plan {
    /// Everybody at once.
    pub fn at_once() -> Self {
        let wave = Wave { labels: BTreeMap::new(), percent: 100, soak_s: 0 };
        Self { waves: vec![wave], gate: Gate::default(), automatic: true }
    }

    pub fn check(&self) -> Result<()> {
        if !(1..=CONTROL_WAVES_MAX).contains(&self.waves.len()) {
            let waves = self.waves.len();
            return Err(invalid(format!("a plan of {waves} waves; there are 1 to {CONTROL_WAVES_MAX}")));
        }
        for wave in &self.waves {
            check_labels("labels", &wave.labels)?;
            if !(1..=100).contains(&wave.percent) {
                return Err(invalid(format!("a wave of {} percent; it is 1 to 100", wave.percent)));
            }
            check_wait("soak_s", wave.soak_s)?;
        }
        if !self.waves.last().is_some_and(|last| last.labels.is_empty() && last.percent == 100) {
            return Err(invalid(
                "the last wave of a plan has no labels and 100 percent: it takes every host",
            ));
        }
        if self.gate.unavailable_percent_max > 100 {
            return Err(invalid("unavailable_percent_max is over 100"));
        }
        check_wait("wait_s_max", self.gate.wait_s_max)
    }
}

impl RolloutState {
    pub fn is_last_wave(&self) -> bool {
        usize::try_from(self.wave).is_ok_and(|wave| wave.saturating_add(1) >= self.plan.waves.len())
    }

    /// How long the present wave soaks, in seconds.
    pub fn soak_s(&self) -> u64 {
        let wave = usize::try_from(self.wave).ok().and_then(|wave| self.plan.waves.get(wave));
        wave.map_or(0, |wave| wave.soak_s)
    }
}

fn check_wait(what: &str, seconds: u64) -> Result<()> {
    let max = CONTROL_SOAK_MAX.as_secs();
    if seconds > max {
        return Err(invalid(format!("{what} is {seconds}; {max} is the most")));
    }
    Ok(())
}

fn all() -> u8 {
    100
}

fn yes() -> bool {
    true
}
