//! Who runs what: the desired state beside what hosts report, and what a change would change.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::changes::desired_of;
use super::report::{PLUGIN_FAILED, PluginReport, Reason, Seen, newest};
use super::rollout::{Progress, Silence, effective_spec, is_target, wave_of};
use super::snapshot::{Drift, drift};
use super::{ControlVersion, Desired, DesiredRow, FleetMark, Phase, PluginSpec, RunState};
use crate::plugins::PluginState;

/// The fleet as the origin knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FleetStatus {
    pub plugins: Vec<PluginFleet>,
    pub hosts: Vec<HostLine>,
    /// Every host that is part of the fleet runs what it should, and none of it has stopped. A rollout that is under way is
    /// not in the way of that: hosts beyond its wave should run the former version.
    pub converged: bool,
}

/// One plugin over all hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PluginFleet {
    pub plugin: String,
    #[schema(value_type = String)]
    pub state: RunState,
    pub revision: u64,
    /// In the feed; before, no host can know it.
    pub published: bool,
    /// Version and component of what is desired, and of what others run or go back to.
    pub spec: Option<Named>,
    pub stable: Option<Named>,
    pub rollout: Option<RolloutLine>,
    pub hosts: Vec<HostPlugin>,
    pub converged: bool,
    /// What is missing for that, for people.
    pub missing: Vec<String>,
}

/// A version, for people and for machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Named {
    pub version: String,
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RolloutLine {
    pub id: String,
    #[schema(value_type = String)]
    pub progress: Progress,
    /// The present one, from 1, and how many there are.
    pub wave: u32,
    pub waves: u32,
}

/// A plugin on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostPlugin {
    pub host: String,
    /// From 1; none without a rollout.
    pub wave: Option<u32>,
    /// What it should run, and the component that it does.
    pub wanted: Option<Named>,
    pub serving: Option<String>,
    pub phase: Phase,
    /// The revision that it has told of; 0 when it has told of none.
    pub revision: u64,
    pub reason: Option<Reason>,
    /// Events that it is behind.
    pub lag_events: u64,
    pub converged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostLine {
    pub host: String,
    pub labels: BTreeMap<String, String>,
    pub millrace_version: String,
    #[schema(value_type = u64)]
    pub cursor: ControlVersion,
    /// Control versions that it is behind the newest that the origin knows of.
    pub behind: u64,
    /// How old its newest report is.
    pub age_ms: u64,
    pub presence: HostPresence,
    /// How what it should run stands to what the origin has marked as the fleet's; none where nothing is marked.
    #[serde(default)]
    pub drift: Option<Drift>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostPresence {
    Talking,
    Silent,
    /// It has been silent for so long that nobody waits for it.
    Gone,
    /// Its report cannot be read.
    Unreadable,
}

/// What a change would do to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostChange {
    pub host: String,
    /// When it would come to the host: 1 is at once. None without a rollout.
    pub wave: Option<u32>,
    /// What it should run now, right after the change, and once a rollout is complete.
    pub now: Option<Named>,
    pub next: Option<Named>,
    pub finally: Option<Named>,
    /// The host would notice: another version, configuration, limit or grant, or another state.
    pub at_once: bool,
    /// Neither the change nor what stands means the host: whatever it has under that name stays as it is.
    #[serde(default)]
    pub left_alone: bool,
}

impl Named {
    pub fn of(spec: &PluginSpec) -> Self {
        Self { version: spec.version.clone(), digest: spec.component.digest.clone() }
    }
}

/// Compares what is desired with what is reported. `newest_version` is the highest control version that is known.
pub fn status(
    rows: &[DesiredRow],
    reports: &[Seen],
    newest_version: ControlVersion,
    silence: Silence,
) -> FleetStatus {
    let hosts = newest(reports);
    let plugins: Vec<PluginFleet> =
        rows.iter().filter_map(|row| plugin_status(row, &hosts, silence)).collect();
    let lines = hosts.values().map(|seen| line(seen, newest_version, silence)).collect();
    let converged = plugins.iter().all(|plugin| plugin.converged);
    FleetStatus { plugins, hosts: lines, converged }
}

fn line(seen: &Seen, newest_version: ControlVersion, silence: Silence) -> HostLine {
    let report = seen.report.as_ref();
    let cursor = report.map_or(ControlVersion(0), |report| report.cursor);
    HostLine {
        host: seen.host.clone(),
        labels: report.map(|report| report.labels.clone()).unwrap_or_default(),
        millrace_version: report.map(|report| report.millrace_version.clone()).unwrap_or_default(),
        cursor,
        behind: newest_version.0.saturating_sub(cursor.0),
        age_ms: millis(seen.age),
        presence: presence(seen, silence),
        drift: None,
    }
}

/// Says of each host whether it has missed something, by the digest in its report.
pub fn compare(hosts: &mut [HostLine], reports: &[Seen], mark: Option<&FleetMark>) {
    let Some(mark) = mark else { return };
    let newest = newest(reports);
    for line in hosts {
        let report = newest.get(line.host.as_str()).and_then(|seen| seen.report.as_ref());
        let report = report.filter(|report| !report.state_digest.is_empty());
        line.drift = report.map(|report| drift(mark, report.cursor, &report.state_digest));
    }
}

fn presence(seen: &Seen, silence: Silence) -> HostPresence {
    match &seen.report {
        _ if seen.age > silence.gone_after => HostPresence::Gone,
        None => HostPresence::Unreadable,
        Some(_) if seen.age > silence.silent_after => HostPresence::Silent,
        Some(_) => HostPresence::Talking,
    }
}

fn plugin_status(row: &DesiredRow, hosts: &BTreeMap<&str, &Seen>, silence: Silence) -> Option<PluginFleet> {
    let (plugin, desired) = desired_of(row)?;
    let published = row.version.0 > 0;
    let mut missing = Vec::new();
    if !published {
        missing.push("it is not in the feed yet".to_owned());
    }
    let mut lines = Vec::new();
    for (host, seen) in hosts {
        let presence = presence(seen, silence);
        let Some(report) = &seen.report else {
            if presence != HostPresence::Gone {
                missing.push(format!("{host}: its report cannot be read"));
            }
            continue;
        };
        let told = report.plugins.get(plugin);
        let wanted = effective_spec(desired, host, &report.labels);
        let is_meant = is_target(desired, &report.labels);
        if !is_meant && told.is_none_or(|told| told.serving.is_none()) {
            continue;
        }
        let problem = match presence {
            HostPresence::Gone => None,
            HostPresence::Silent => Some(format!("{host}: silent for {} s", seen.age.as_secs())),
            _ => lacks(desired.state, row.revision, wanted, told).map(|lack| format!("{host}: {lack}")),
        };
        let rollout = desired.rollout.as_ref();
        let wave = rollout.and_then(|rollout| wave_of(&rollout.plan, &rollout.id, host, &report.labels));
        lines.push(HostPlugin {
            host: (*host).to_owned(),
            wave: wave.filter(|_| is_meant).map(|wave| wave.saturating_add(1)),
            wanted: wanted.map(Named::of),
            serving: told.and_then(|told| told.serving.clone()),
            phase: told.map_or(Phase::Absent, |told| told.phase),
            revision: told.map_or(0, |told| told.revision),
            reason: told.and_then(|told| stopped(told).or_else(|| told.reason.clone())),
            lag_events: told.map_or(0, |told| told.now.lag_events),
            converged: problem.is_none(),
        });
        missing.extend(problem);
    }
    Some(PluginFleet {
        plugin: plugin.to_owned(),
        state: desired.state,
        revision: row.revision,
        published,
        spec: desired.spec.as_ref().map(Named::of),
        stable: desired.stable.as_ref().map(Named::of),
        rollout: desired.rollout.as_ref().map(|rollout| RolloutLine {
            id: rollout.id.clone(),
            progress: rollout.progress,
            wave: rollout.wave.saturating_add(1),
            waves: u32::try_from(rollout.plan.waves.len()).unwrap_or(u32::MAX),
        }),
        hosts: lines,
        converged: missing.is_empty(),
        missing,
    })
}

/// What a talking host lacks.
fn lacks(
    state: RunState,
    revision: u64,
    wanted: Option<&PluginSpec>,
    told: Option<&PluginReport>,
) -> Option<String> {
    let Some(told) = told else {
        return wanted.map(|_| format!("has not taken revision {revision}"));
    };
    if told.phase == Phase::Quarantined && told.revision == revision {
        let why = told.reason.as_ref().map_or("", |reason| &reason.message);
        return Some(format!("has set it aside: {why}"));
    }
    let Some(wanted) = wanted else {
        return told.serving.as_ref().map(|_| "still runs it".to_owned());
    };
    if told.revision != revision {
        return Some(format!("is at revision {} of {revision}", told.revision));
    }
    let there = match state {
        RunState::Paused => told.phase == Phase::Paused,
        _ => told.phase == Phase::Active && told.serves(&wanted.component.digest),
    };
    if !there {
        return Some(format!("is at `{}`", told.phase_name()));
    }
    stopped(told).map(|why| format!("has stopped it: {}", why.message))
}

/// Why a version that was brought does not run: it has stopped by itself.
fn stopped(told: &PluginReport) -> Option<Reason> {
    let is_failed = told.phase == Phase::Active && told.state == Some(PluginState::Failed);
    let message = match (&told.reason, told.message.as_str()) {
        _ if !is_failed => return None,
        (Some(reason), "") if !reason.message.is_empty() => reason.message.clone(),
        (_, "") => "its report does not say why".to_owned(),
        (_, message) => message.to_owned(),
    };
    Some(Reason { code: PLUGIN_FAILED.to_owned(), message })
}

/// What would change on which hosts, without doing it, and which of them are left alone. Hosts that cannot be read or are gone
/// are left out.
pub fn preview(
    present: Option<&Desired>,
    next: &Desired,
    reports: &[Seen],
    silence: Silence,
) -> Vec<HostChange> {
    let finished = Desired {
        rollout: next.rollout.clone().map(|mut rollout| {
            if rollout.progress != Progress::RolledBack {
                rollout.progress = Progress::Complete;
            }
            rollout
        }),
        ..next.clone()
    };
    let mut changes = Vec::new();
    for (host, seen) in newest(reports) {
        let Some(report) = seen.report.as_ref().filter(|_| seen.age <= silence.gone_after) else { continue };
        let runs = |desired: &Desired| {
            effective_spec(desired, host, &report.labels).cloned().map(|spec| (spec, desired.state))
        };
        let named = |runs: &Option<(PluginSpec, RunState)>| runs.as_ref().map(|(spec, _)| Named::of(spec));
        let (before, after, end) = (present.and_then(runs), runs(next), runs(&finished));
        let wave = next
            .rollout
            .as_ref()
            .filter(|_| is_target(next, &report.labels))
            .and_then(|rollout| wave_of(&rollout.plan, &rollout.id, host, &report.labels));
        changes.push(HostChange {
            host: host.to_owned(),
            wave: wave.map(|wave| wave.saturating_add(1)),
            now: named(&before),
            next: named(&after),
            finally: named(&end),
            at_once: before != after,
            left_alone: before.is_none() && after.is_none() && end.is_none(),
        });
    }
    changes
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
