//! Names and meanings of the metrics. Labels have few values: plugin, outcome,
//! reason; never a tenant's free text, a key or a
//! position. The edge's own stand in `gateway`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Upper edges of histograms of time, 100 µs to 10 s.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper edges of histograms of events in one batch or commit.
pub const EVENTS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_000.0, 4_000.0, 20_000.0];

// Streams.
pub const EVENTS_APPENDED: &str = "millrace_events_appended_total";
pub const EVENTS_REPEATED: &str = "millrace_events_repeated_total";
/// Labels: `code`.
pub const EVENTS_REFUSED: &str = "millrace_events_refused_total";
pub const EVENTS_TRIMMED: &str = "millrace_events_trimmed_total";
pub const TAIL_FALLBACKS: &str = "millrace_tail_fallbacks_total";
pub const STREAM_NEWEST: &str = "millrace_stream_newest_position";
/// 1 while acknowledged events may be lost in a power cut, because the operator asked for it.
pub const DURABILITY_WEAKENED: &str = "millrace_durability_weakened";

// Store.
pub const COMMIT_SECONDS: &str = "millrace_commit_seconds";
pub const COMMIT_BATCH_EVENTS: &str = "millrace_commit_batch_events";
pub const WAL_BYTES: &str = "millrace_wal_bytes";
pub const DISK_FREE_BYTES: &str = "millrace_disk_free_bytes";

// Processors. Labels: `plugin`.
pub const HANDLE_SECONDS: &str = "millrace_handle_seconds";
pub const HANDLED_EVENTS: &str = "millrace_handled_events_total";
pub const EFFECTS: &str = "millrace_effects_total";
pub const STALE_WRITES: &str = "millrace_stale_writes_total";
pub const RETRIES: &str = "millrace_retries_total";
pub const DEAD_LETTERS: &str = "millrace_dead_letters_total";
pub const RESTARTS: &str = "millrace_restarts_total";
pub const TRAPS: &str = "millrace_traps_total";
pub const SWAPS: &str = "millrace_swaps_total";
/// Labels: `code`.
pub const DEPLOYS_REFUSED: &str = "millrace_deploys_refused_total";
pub const LAG_EVENTS: &str = "millrace_lag_events";
pub const INSTANCES: &str = "millrace_instances";
pub const GUEST_LOGS_DROPPED: &str = "millrace_guest_logs_dropped_total";

/// One sentence for each metric, for whoever reads `/metrics`.
pub fn describe() {
    for (name, text) in COUNTERS {
        describe_counter!(*name, Unit::Count, *text);
    }
    for (name, unit, text) in GAUGES {
        describe_gauge!(*name, *unit, *text);
    }
    for (name, unit, text) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *text);
    }
}

const COUNTERS: &[(&str, &str)] = &[
    (EVENTS_APPENDED, "Events that the log took."),
    (EVENTS_REPEATED, "Events that were recognised inside the dedup window and appended nothing."),
    (EVENTS_REFUSED, "Events that were refused, by error code."),
    (EVENTS_TRIMMED, "Events that retention removed."),
    (TAIL_FALLBACKS, "Reads that had fallen behind the in-memory ring and went to the store."),
    (HANDLED_EVENTS, "Events that a processor handled, repeats included."),
    (EFFECTS, "Effects that were committed."),
    (STALE_WRITES, "Row writes that the version gate left out because the row was newer."),
    (RETRIES, "Events that were tried again."),
    (DEAD_LETTERS, "Events that became dead letters."),
    (RESTARTS, "Processors that were started again after a failure."),
    (TRAPS, "Guest calls that ended in a trap or at their time limit."),
    (SWAPS, "Versions that took over from another."),
    (DEPLOYS_REFUSED, "Components that did not become a plugin, by error code."),
    (GUEST_LOGS_DROPPED, "Guest log messages over the rate limit."),
];

const GAUGES: &[(&str, Unit, &str)] = &[
    (STREAM_NEWEST, Unit::Count, "Position of the newest event."),
    (
        DURABILITY_WEAKENED,
        Unit::Count,
        "1 while acknowledged events may be lost in a power cut by configuration.",
    ),
    (WAL_BYTES, Unit::Bytes, "Size of the write-ahead log."),
    (DISK_FREE_BYTES, Unit::Bytes, "Free space where the store lies."),
    (LAG_EVENTS, Unit::Count, "Events after the position of the plugin's task that is furthest behind."),
    (INSTANCES, Unit::Count, "Loaded guest instances."),
];

const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    (COMMIT_SECONDS, Unit::Seconds, "From the start of a group commit until it is durable."),
    (COMMIT_BATCH_EVENTS, Unit::Count, "Events and effects in one group commit."),
    (HANDLE_SECONDS, Unit::Seconds, "One call of `handle`, the crossing included."),
];
