//! Names and meanings of the metrics. Labels have few values: plugin, outcome,
//! reason; never a tenant's free text, a key or a
//! position. The edge's own stand in `gateway`.

use metrics::{Unit, describe_counter};

/// Upper edges of histograms of time, 100 µs to 10 s.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper edges of histograms of events in one batch or commit.
pub const EVENTS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_000.0, 4_000.0, 20_000.0];

// Streams.
pub const EVENTS_TRIMMED: &str = "millrace_events_trimmed_total";
pub const TAIL_FALLBACKS: &str = "millrace_tail_fallbacks_total";

// Keyed state.
pub const STATE_EXPIRED: &str = "millrace_state_expired_total";

// Processors. Labels: `plugin`.
pub const PROCESSOR_EVENTS: &str = "millrace_processor_events_total";
pub const PROCESSOR_BATCHES: &str = "millrace_processor_batches_total";
pub const PROCESSOR_COMMITS: &str = "millrace_processor_commits_total";
pub const PROCESSOR_EFFECTS: &str = "millrace_processor_effects_total";
pub const PROCESSOR_STALE_WRITES: &str = "millrace_processor_stale_writes_total";
pub const PROCESSOR_RETRIES: &str = "millrace_processor_retries_total";
pub const PROCESSOR_TRAPS: &str = "millrace_processor_traps_total";
pub const PROCESSOR_DEAD_LETTERS: &str = "millrace_processor_dead_letters_total";
pub const PROCESSOR_PARKED: &str = "millrace_processor_parked_total";
pub const PROCESSOR_REPLAYED: &str = "millrace_processor_replayed_total";
pub const PROCESSOR_BREAKER_OPENINGS: &str = "millrace_processor_breaker_openings_total";
pub const PROCESSOR_RESTARTS: &str = "millrace_processor_restarts_total";
pub const PROCESSOR_SWAPS: &str = "millrace_processor_swaps_total";
pub const PROCESSOR_STATE_WARNINGS: &str = "millrace_processor_state_warnings_total";

// Plugins. Labels of the first: `plugin`.
pub const GUEST_LOGS_DROPPED: &str = "millrace_guest_logs_dropped_total";
pub const PRECOMPILED_REJECTED: &str = "millrace_precompiled_rejected_total";

/// One sentence for each metric, for whoever reads `/metrics`.
pub fn describe() {
    for (name, text) in COUNTERS {
        describe_counter!(*name, Unit::Count, *text);
    }
}

const COUNTERS: &[(&str, &str)] = &[
    (EVENTS_TRIMMED, "Events that retention removed."),
    (TAIL_FALLBACKS, "Reads of processors that had fallen behind the in-memory tail and went to the store."),
    (PROCESSOR_EVENTS, "Events whose effects a processor has committed."),
    (PROCESSOR_BATCHES, "Calls of `handle`, repeats included."),
    (PROCESSOR_COMMITS, "Commits of a processor's tasks."),
    (PROCESSOR_EFFECTS, "Effects that a processor handed back."),
    (PROCESSOR_STALE_WRITES, "Row writes that the version gate left out because the row was newer."),
    (PROCESSOR_RETRIES, "Events that were tried again."),
    (PROCESSOR_TRAPS, "Guest calls that ended in a trap or at a limit."),
    (PROCESSOR_DEAD_LETTERS, "Events that became dead letters."),
    (PROCESSOR_PARKED, "Events that had to wait for their ordering key."),
    (PROCESSOR_REPLAYED, "Dead letters that were replayed with success."),
    (PROCESSOR_BREAKER_OPENINGS, "Times that a processor rested after failures in a row."),
    (PROCESSOR_RESTARTS, "Runs that were started again after a failure."),
    (PROCESSOR_SWAPS, "Versions that took over from another."),
    (PROCESSOR_STATE_WARNINGS, "Tasks whose snapshot passed half of `guest_state_bytes_max`."),
    (STATE_EXPIRED, "Entries of keyed state that the host removed long after they had expired."),
    (GUEST_LOGS_DROPPED, "Guest log messages over the rate limit."),
    (PRECOMPILED_REJECTED, "Precompiled components that were not this host's, and were made again."),
];
