//! What `/metrics` says of groups, beside what is counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::status::GroupLag;
use crate::event::Micros;
use crate::telemetry::metrics as names;

/// The lag of groups by stream and name, in the text format of Prometheus. Tenants are no label: of a name that
/// several have, the largest is shown. Empty where there is no group.
pub fn gauges(lags: &[GroupLag], now: Micros) -> String {
    if lags.is_empty() {
        return String::new();
    }
    let mut worst: BTreeMap<(&str, &str), (u64, f64)> = BTreeMap::new();
    for lag in lags {
        let micros = lag.oldest_at.map_or(0, |at| now.0.saturating_sub(at.0).max(0));
        let seen = worst.entry((&lag.group.stream, lag.group.name.as_str())).or_default();
        *seen = (seen.0.max(lag.events), seen.1.max(micros as f64 / 1e6));
    }
    let mut out = String::new();
    for metric in names::GROUP_METRICS {
        let name = metric.name;
        write!(out, "# HELP {name} {}\n# TYPE {name} gauge\n", metric.help).expect("a string takes all");
        for ((stream, group), (events, seconds)) in &worst {
            let value = if name == names::GROUP_LAG_EVENTS { *events as f64 } else { *seconds };
            let stream = escaped(stream);
            writeln!(out, "{name}{{stream=\"{stream}\",group=\"{group}\"}} {value}")
                .expect("a string takes all");
        }
    }
    debug_assert!(names::GROUP_METRICS.iter().any(|metric| metric.name == names::GROUP_LAG_SECONDS));
    out
}

/// Names of streams may hold what ends a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
