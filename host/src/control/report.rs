//! What a host says of itself: what it should run, what it runs, and how that goes.
//!
//! A report is JSON on the board. Whoever reads one takes members that it does not know for those of a later host, and a
//! missing one for nothing. All times in it are lengths by the host's own clock, so clocks need not agree.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::rollout::Sample;
use super::{ControlFeedError, ControlVersion, ObservedRow, Phase, Result};
use crate::limits::{CONTROL_REPORT_BYTES_MAX, CONTROL_REPORT_REASON_BYTES_MAX};
use crate::plugins::{
    Candidate, CandidateState, Differences, PluginState, PluginStatus, ShadowReport, TrapCounts,
    VersionMeasures,
};

const SCHEMA_VERSION: u32 = 1;

/// Code of a version that was brought and has stopped by itself.
pub(super) const PLUGIN_FAILED: &str = "plugin_failed";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    pub schema_version: u32,
    pub host: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Another one after each start.
    #[serde(default)]
    pub incarnation: String,
    #[serde(default)]
    pub millrace_version: String,
    #[serde(default)]
    pub cursor: ControlVersion,
    /// Of the desired state as this host knows it at its cursor.
    #[serde(default)]
    pub state_digest: String,
    #[serde(default)]
    pub plugins: BTreeMap<String, PluginReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginReport {
    /// The desired revision that all of this is about.
    pub revision: u64,
    #[serde(deserialize_with = "phase")]
    pub phase: Phase,
    /// The component that serves, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// For how long it has been active; 0 while it is not.
    #[serde(default)]
    pub active_ms: u64,
    /// What the serving version has done since it was activated, or since the host was started if that is later.
    #[serde(default)]
    pub now: Sample,
    /// What the version before it had done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Sample>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowSummary>,
    /// How the serving version is at this moment; none where that is not known, or is a later host's word.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "state")]
    pub state: Option<PluginState>,
    /// Why it does not work, or only in part.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Why a host is not there yet, or has set a version aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reason {
    pub code: String,
    pub message: String,
}

/// A shadow run in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ShadowSummary {
    pub new: Sample,
    pub old: Sample,
    /// Rows, entries and emitted events that were not the same.
    pub differences: u64,
}

/// A host's newest word, and how old it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub host: String,
    pub age: Duration,
    /// None when it cannot be read.
    pub report: Option<HostReport>,
}

/// The counters of plugins as they stood when their versions were activated. Kept by whoever makes reports; it need not
/// outlive the host, whose counters do not either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baselines {
    of: BTreeMap<String, Baseline>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Baseline {
    /// Digest and time of the deployment that serves: a new configuration is another one.
    serving: (String, i64),
    version: String,
    at_activation: Sample,
    before: Option<Sample>,
    /// At the last look, by version.
    last: BTreeMap<String, Sample>,
}

impl HostReport {
    /// Of a host without plugins.
    pub fn new(host: &str, labels: BTreeMap<String, String>, incarnation: &str) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            host: host.to_owned(),
            labels,
            incarnation: incarnation.to_owned(),
            millrace_version: env!("CARGO_PKG_VERSION").to_owned(),
            cursor: ControlVersion::default(),
            state_digest: String::new(),
            plugins: BTreeMap::new(),
        }
    }

    /// Its text. One that would be too large leaves shadow runs and the words of reasons out.
    pub fn to_json(&self) -> Result<String> {
        let full = write(self)?;
        if full.len() <= CONTROL_REPORT_BYTES_MAX {
            return Ok(full);
        }
        let mut short = self.clone();
        for plugin in short.plugins.values_mut() {
            plugin.shadow = None;
            plugin.message.clear();
            if let Some(reason) = &mut plugin.reason {
                reason.message.clear();
            }
        }
        let short = write(&short)?;
        if short.len() <= CONTROL_REPORT_BYTES_MAX {
            return Ok(short);
        }
        let (asked, max) = (short.len() as u64, CONTROL_REPORT_BYTES_MAX as u64);
        Err(ControlFeedError::Limit { limit: "control_report_bytes_max", asked, max })
    }

    pub fn parse(text: &str) -> Result<Self> {
        let unreadable = |detail: String| ControlFeedError::InvalidReport { detail };
        if text.len() > CONTROL_REPORT_BYTES_MAX {
            return Err(unreadable(format!("it is longer than {CONTROL_REPORT_BYTES_MAX} bytes")));
        }
        let report: Self = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if report.schema_version == 0 {
            return Err(unreadable("schema_version counts from 1".into()));
        }
        Ok(report)
    }
}

impl Seen {
    /// What a board answered.
    pub fn read(reports: Vec<(String, Duration, String)>) -> Vec<Self> {
        let seen = |(host, age, text): (String, Duration, String)| {
            // One that speaks for another is no word of that one.
            let report = HostReport::parse(&text).ok().filter(|report| report.host == host);
            Self { host, age, report }
        };
        reports.into_iter().map(seen).collect()
    }
}

/// The newest word of each host. Of two of one age one is taken, whichever came first.
pub(super) fn newest(reports: &[Seen]) -> BTreeMap<&str, &Seen> {
    let mut newest: BTreeMap<&str, &Seen> = BTreeMap::new();
    let text = |seen: &Seen| seen.report.as_ref().and_then(|report| write(report).ok());
    for seen in reports {
        let known = newest.entry(&seen.host).or_insert(seen);
        let is_newer = seen.age < known.age || (seen.age == known.age && text(seen) < text(known));
        if is_newer {
            *known = seen;
        }
    }
    newest
}

impl PluginReport {
    /// Makes the report of one plugin; none of its status while it has none.
    pub fn of(
        observed: &ObservedRow,
        status: Option<&PluginStatus>,
        baselines: &mut Baselines,
        now: i64,
    ) -> Self {
        let is_active = observed.phase == Phase::Active;
        let since = u64::try_from(now.saturating_sub(observed.since)).unwrap_or(0) / 1_000;
        // While another version serves than is said, nothing is counted for either.
        let serves = |status: &&PluginStatus| {
            let serving = observed.serving.as_deref().unwrap_or_default();
            serving.trim_start_matches("sha256:") == status.deployment.digest.trim_start_matches("sha256:")
        };
        let looked = status.map(|status| (serves(&status), baselines.look(&observed.plugin, status)));
        let (now, before) = match looked {
            Some((true, looked)) => looked,
            _ => (Sample::default(), None),
        };
        let reason = observed
            .reason
            .as_ref()
            .map(|(code, message)| Reason { code: cut(code).to_owned(), message: cut(message).to_owned() });
        let serving = status.filter(serves);
        // What was refused, or is only tried, is another version than the one that this is about.
        let took_over = serving.and_then(|status| {
            let is_it = |candidate: &&Candidate| {
                candidate.state == CandidateState::TookOver && candidate.digest == status.deployment.digest
            };
            status.candidate.as_ref().filter(is_it)
        });
        Self {
            revision: observed.revision,
            phase: observed.phase,
            serving: observed.serving.clone(),
            reason,
            active_ms: if is_active { since } else { 0 },
            now,
            before,
            shadow: took_over.and_then(|candidate| candidate.report.as_ref()).map(ShadowSummary::of),
            state: serving.map(|status| status.state),
            message: serving.map(|status| cut(&status.message).to_owned()).unwrap_or_default(),
        }
    }

    pub fn serves(&self, digest: &str) -> bool {
        self.serving.as_deref() == Some(digest)
    }

    pub fn phase_name(&self) -> String {
        serde_json::to_value(self.phase)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

impl Baselines {
    /// What the serving version has done since its activation, and what the one before it had done. Versions are counted
    /// apart; where only the configuration is new, what happened since the last look counts for it.
    fn look(&mut self, plugin: &str, status: &PluginStatus) -> (Sample, Option<Sample>) {
        let counted: BTreeMap<String, Sample> = status
            .measures
            .versions
            .iter()
            .map(|version| (version.version.clone(), counted(version)))
            .collect();
        let deployment = &status.deployment;
        let serving = (deployment.digest.clone(), deployment.deployed_at);
        let known = self.of.entry(plugin.to_owned()).or_insert_with(|| Baseline {
            serving: serving.clone(),
            version: deployment.version.clone(),
            ..Baseline::default()
        });
        let at = |counted: &BTreeMap<String, Sample>, version: &str| {
            counted.get(version).copied().unwrap_or_default()
        };
        if known.serving != serving {
            let last = at(&known.last, &known.version);
            // Of one version, the former's end is the new one's beginning.
            let is_same = known.version == deployment.version;
            let before = if is_same { last } else { at(&counted, &known.version) };
            let before = Sample { lag_events: last.lag_events, ..before };
            known.before = Some(before.since(known.at_activation));
            known.at_activation = at(&known.last, &deployment.version);
            (known.serving, known.version) = (serving, deployment.version.clone());
        }
        let now = Sample {
            lag_events: status.lag_events,
            ..at(&counted, &known.version).since(known.at_activation)
        };
        for (version, sample) in counted {
            known.last.insert(version, Sample { lag_events: status.lag_events, ..sample });
        }
        let counted: Vec<&str> =
            status.measures.versions.iter().map(|version| version.version.as_str()).collect();
        known.last.retain(|version, _| counted.contains(&version.as_str()));
        (now, known.before)
    }

    /// Forgets plugins that are no more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.of.retain(|plugin, _| is_there(plugin));
    }
}

/// What was counted of a version since the host started. How far it is behind is not counted.
fn counted(version: &VersionMeasures) -> Sample {
    let TrapCounts { trap, timeout, limit, output } = version.traps;
    Sample {
        events: version.events,
        traps: [trap, timeout, limit, output].into_iter().fold(0, u64::saturating_add),
        errors: version.dead_letters,
        nanoseconds: nanoseconds(version.cpu_seconds),
        lag_events: 0,
    }
}

impl ShadowSummary {
    fn of(report: &ShadowReport) -> Self {
        let sample = |errors: u64, nanoseconds: u64| Sample {
            events: report.events,
            errors: report.errors_both.saturating_add(errors),
            nanoseconds: nanoseconds.saturating_mul(report.events),
            ..Sample::default()
        };
        let differ = |d: Differences| d.different.saturating_add(d.only_old).saturating_add(d.only_new);
        let all = [report.rows, report.emitted, report.appended, report.state_entries];
        Self {
            new: sample(report.errors_new, report.new.nanoseconds_per_event),
            old: sample(report.errors_old, report.old.nanoseconds_per_event),
            differences: all.into_iter().map(differ).fold(0, u64::saturating_add),
        }
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn write(report: &HostReport) -> Result<String> {
    serde_json::to_string(report)
        .map_err(|error| ControlFeedError::InvalidReport { detail: error.to_string() })
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(CONTROL_REPORT_REASON_BYTES_MAX)]
}

fn state<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<PluginState>, D::Error> {
    let name = String::deserialize(from)?;
    Ok(PluginState::deserialize(serde_json::Value::String(name)).ok())
}

/// A later host's phase is none of those that count.
fn phase<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Phase, D::Error> {
    let name = String::deserialize(from)?;
    Ok(Phase::deserialize(serde_json::Value::String(name)).unwrap_or(Phase::Absent))
}
