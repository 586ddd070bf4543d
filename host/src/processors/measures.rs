//! How a processor is doing, in numbers: for its status and for `/metrics`.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Distributions, VersionCounters};
use super::histogram::Distribution;
use crate::clock::Clock;
use crate::event::{Micros, Position, TenantId};
use crate::limits::LAGGING_TENANTS_MAX;
use crate::streams::EventLog;
use crate::telemetry::metrics::{self as names, Kind};

/// What a processor holds and how far it is behind, over all tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Measures {
    /// How long ago the oldest event that is not done was appended; 0 when there is none.
    pub lag_seconds: f64,
    /// Instances that are loaded.
    pub instances: u64,
    /// Whether the plugin's code is in memory; none while it does not run.
    pub code: Option<CodeState>,
    /// Linear memory of these.
    pub memory_bytes: u64,
    /// CPU time of the guest threads in this processor's turns.
    pub cpu_seconds: f64,
    /// Snapshots of all tasks together.
    pub checkpoint_bytes: u64,
    /// Since the last commit of the task that has not committed for longest; of a task that has not
    /// committed since it was started, since then. A quiet stream lets it grow.
    pub checkpoint_age_seconds: f64,
    /// Parked now.
    pub parked_events: u64,
    /// Ordering keys that wait for a parked event now.
    pub held_keys: u64,
    /// The newest versions, the oldest of them first.
    pub versions: Vec<VersionMeasures>,
}

/// Whether a plugin's code is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeState {
    Loaded,
    /// The plugin has had nothing to do for a while and gave it back; its next event loads it again.
    Idle,
}

/// What one version did since the host started.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionMeasures {
    pub version: String,
    /// Events whose effects are committed.
    pub events: u64,
    pub commits: u64,
    pub retries: u64,
    pub dead_letters: u64,
    /// Entries to append that were left out because of what their channels are.
    #[serde(default)]
    pub dropped_appends: u64,
    /// Calls of `flush` whose effects were refused.
    #[serde(default)]
    pub refused_flushes: u64,
    pub restarts: u64,
    /// Times that it took over.
    pub swaps: u64,
    pub cpu_seconds: f64,
    pub traps: TrapCounts,
    /// Events of one call of `handle`.
    pub batch_events: Shape,
    pub handle_seconds: Shape,
    /// From the submission of a commit until it is durable.
    pub commit_seconds: Shape,
    pub snapshot_seconds: Shape,
    pub flush_seconds: Shape,
    /// How long a task handled nothing because this version took over.
    pub hand_over_seconds: Shape,
}

/// Calls that ended an instance, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrapCounts {
    pub trap: u64,
    pub timeout: u64,
    pub limit: u64,
    pub output: u64,
}

/// A distribution in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shape {
    pub count: u64,
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Shape {
    fn of(seen: &Distribution) -> Self {
        let count = seen.count();
        let mean = if count == 0 { 0.0 } else { seen.sum / count as f64 };
        Self { count, mean, p50: seen.at_most(0.5), p99: seen.at_most(0.99) }
    }
}

impl Measures {
    /// What is counted; the rest is for whoever knows the tasks.
    pub(super) fn counted(counters: &VersionCounters) -> Self {
        let sum = counters.sum();
        Self {
            cpu_seconds: seconds(sum.cpu_nanos),
            parked_events: sum.parked_events,
            held_keys: sum.held_keys,
            versions: counters.versions().iter().map(|version| VersionMeasures::of(version)).collect(),
            ..Self::default()
        }
    }

    /// Of a processor that does not run.
    pub fn at_rest(counters: &VersionCounters) -> Self {
        Self::counted(counters)
    }
}

impl VersionMeasures {
    fn of(counters: &Counters) -> Self {
        let (counts, shapes) = (counters.read(), counters.distributions());
        let mut traps = TrapCounts::default();
        for (kind, count) in counters.traps() {
            match kind {
                super::TrapKind::Trap => traps.trap = count,
                super::TrapKind::Timeout => traps.timeout = count,
                super::TrapKind::Limit => traps.limit = count,
                super::TrapKind::Output => traps.output = count,
                super::TrapKind::Host => {}
            }
        }
        Self {
            version: counters.version.to_string(),
            events: counts.events,
            commits: counts.commits,
            retries: counts.retries,
            dead_letters: counts.dead_letters,
            dropped_appends: counts.dropped_appends,
            refused_flushes: counts.refused_flushes,
            restarts: counts.restarts,
            swaps: counts.swaps,
            cpu_seconds: seconds(counts.cpu_nanos),
            traps,
            batch_events: Shape::of(&shapes.batch_events),
            handle_seconds: Shape::of(&shapes.handle),
            commit_seconds: Shape::of(&shapes.commit),
            snapshot_seconds: Shape::of(&shapes.snapshot),
            flush_seconds: Shape::of(&shapes.flush),
            hand_over_seconds: Shape::of(&shapes.hand_over),
        }
    }
}

/// How long ago the oldest event was appended that one of these tenants has not got done. Of many
/// tenants, the [`LAGGING_TENANTS_MAX`] that stand furthest back are asked for; the log orders by time of
/// append, so the oldest event is theirs but in odd cases. What cannot be read counts as 0: the log says why.
pub async fn lag_seconds(
    log: &dyn EventLog,
    clock: &dyn Clock,
    mut behind: Vec<(TenantId, Position)>,
) -> f64 {
    behind.retain(|(tenant, position)| log.tail().follow(tenant).newest() > *position);
    behind.sort_by_key(|(_, position)| *position);
    let mut oldest: Option<Micros> = None;
    for (tenant, position) in behind.into_iter().take(LAGGING_TENANTS_MAX) {
        if let Ok(Some(at)) = log.appended_at(&tenant, position).await {
            oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
        }
    }
    oldest.map_or(0.0, |at| since(clock, at))
}

/// Seconds since a time; 0 for one to come.
pub(super) fn since(clock: &dyn Clock, at: Micros) -> f64 {
    clock.now().0.saturating_sub(at.0).max(0) as f64 / 1e6
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// One plugin as `/metrics` shows it.
#[derive(Clone, Debug)]
pub struct Exposed {
    pub plugin: String,
    /// The version that is deployed now: whose the gauges are.
    pub version: String,
    pub lag_events: u64,
    pub measures: Measures,
    pub counters: Arc<VersionCounters>,
}

/// The processors' metrics in Prometheus' text format. Labels are the plugin, its version, the kind of a
/// trap and the code of what was left out: as many as there are plugins, times the versions that are kept.
pub fn exposition(plugins: &[Exposed]) -> String {
    let versions: Vec<_> = plugins
        .iter()
        .flat_map(|plugin| plugin.counters.versions().into_iter().map(|v| (plugin.plugin.as_str(), v)))
        .collect();
    let mut out = String::new();
    gauges(&mut out, plugins);
    counters(&mut out, &versions);
    histograms(&mut out, &versions);
    out
}

type Versions<'a> = [(&'a str, Arc<Counters>)];

fn gauges(out: &mut String, plugins: &[Exposed]) {
    let mut gauge = |name: &'static str, value: fn(&Exposed) -> f64| {
        head(out, name);
        for plugin in plugins {
            let labels = labels(&plugin.plugin, &plugin.version);
            line(out, name, &labels, value(plugin));
        }
    };
    gauge(names::PROCESSOR_LAG_EVENTS, |p| p.lag_events as f64);
    gauge(names::PROCESSOR_LAG_SECONDS, |p| p.measures.lag_seconds);
    gauge(names::PROCESSOR_INSTANCES, |p| p.measures.instances as f64);
    gauge(names::PROCESSOR_CODE_LOADED, |p| f64::from(p.measures.code == Some(CodeState::Loaded)));
    gauge(names::PROCESSOR_MEMORY_BYTES, |p| p.measures.memory_bytes as f64);
    gauge(names::PROCESSOR_CHECKPOINT_BYTES, |p| p.measures.checkpoint_bytes as f64);
    gauge(names::PROCESSOR_CHECKPOINT_AGE, |p| p.measures.checkpoint_age_seconds);
    gauge(names::PROCESSOR_PARKED_EVENTS, |p| p.measures.parked_events as f64);
    gauge(names::PROCESSOR_HELD_KEYS, |p| p.measures.held_keys as f64);
}

fn counters(out: &mut String, versions: &Versions<'_>) {
    let counts: Vec<_> = versions.iter().map(|(plugin, v)| (labels(plugin, &v.version), v.read())).collect();
    let mut counter = |name: &'static str, value: fn(&super::Counts) -> f64| {
        head(out, name);
        for (labels, counts) in &counts {
            line(out, name, labels, value(counts));
        }
    };
    counter(names::PROCESSOR_EVENTS, |c| c.events as f64);
    counter(names::PROCESSOR_BATCHES, |c| c.batches as f64);
    counter(names::PROCESSOR_COMMITS, |c| c.commits as f64);
    counter(names::PROCESSOR_EFFECTS, |c| c.effects as f64);
    counter(names::PROCESSOR_STALE_WRITES, |c| c.stale_writes as f64);
    counter(names::PROCESSOR_RETRIES, |c| c.retries as f64);
    counter(names::PROCESSOR_PARKINGS, |c| c.parkings as f64);
    counter(names::PROCESSOR_REPLAYED, |c| c.replayed as f64);
    counter(names::PROCESSOR_BREAKER_OPENINGS, |c| c.breaker_openings as f64);
    counter(names::PROCESSOR_DEAD_LETTERS, |c| c.dead_letters as f64);
    counter(names::PROCESSOR_REFUSED_FLUSHES, |c| c.refused_flushes as f64);
    counter(names::PROCESSOR_RESTARTS, |c| c.restarts as f64);
    counter(names::PROCESSOR_SWAPS, |c| c.swaps as f64);
    counter(names::PROCESSOR_CPU_SECONDS, |c| seconds(c.cpu_nanos));
    head(out, names::PROCESSOR_TRAPS);
    for (plugin, version) in versions {
        for (kind, count) in version.traps() {
            let labels = format!("{},kind=\"{kind}\"", labels(plugin, &version.version));
            line(out, names::PROCESSOR_TRAPS, &labels, count as f64);
        }
    }
    head(out, names::PROCESSOR_DROPPED_APPENDS);
    for (plugin, version) in versions {
        for (reason, count) in version.dropped_appends() {
            let labels = format!("{},code=\"{}\"", labels(plugin, &version.version), reason.code());
            line(out, names::PROCESSOR_DROPPED_APPENDS, &labels, count as f64);
        }
    }
}

fn histograms(out: &mut String, versions: &Versions<'_>) {
    let seen: Vec<_> =
        versions.iter().map(|(plugin, v)| (labels(plugin, &v.version), v.distributions())).collect();
    let mut histogram = |name: &'static str, value: fn(&Distributions) -> &Distribution| {
        head(out, name);
        for (labels, distributions) in &seen {
            buckets(out, name, labels, value(distributions));
        }
    };
    histogram(names::PROCESSOR_BATCH_EVENTS, |d| &d.batch_events);
    histogram(names::PROCESSOR_HANDLE_SECONDS, |d| &d.handle);
    histogram(names::PROCESSOR_COMMIT_SECONDS, |d| &d.commit);
    histogram(names::PROCESSOR_SNAPSHOT_SECONDS, |d| &d.snapshot);
    histogram(names::PROCESSOR_FLUSH_SECONDS, |d| &d.flush);
    histogram(names::PROCESSOR_HAND_OVER_SECONDS, |d| &d.hand_over);
}

fn buckets(out: &mut String, name: &str, labels: &str, seen: &Distribution) {
    let mut under = 0;
    let edges = seen.edges.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (edge, bucket) in edges.zip(&seen.buckets) {
        under += bucket;
        line(out, &format!("{name}_bucket"), &format!("{labels},le=\"{edge}\""), under as f64);
    }
    line(out, &format!("{name}_sum"), labels, seen.sum);
    line(out, &format!("{name}_count"), labels, under as f64);
}

/// Names and versions hold no quote, backslash or line break: a manifest with one is refused.
fn labels(plugin: &str, version: &str) -> String {
    format!("plugin=\"{plugin}\",version=\"{version}\"")
}

fn head(out: &mut String, name: &'static str) {
    let known = names::PROCESSOR_METRICS.iter().find(|metric| metric.name == name);
    debug_assert!(known.is_some(), "`{name}` is missing in PROCESSOR_METRICS");
    let Some(metric) = known else { return };
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    write!(out, "# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help).expect("a string takes all");
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    writeln!(out, "{name}{{{labels}}} {value}").expect("a string takes all");
}
