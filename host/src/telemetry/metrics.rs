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

// Processors. Labels: `plugin`.
pub const PROCESSOR_EVENTS: &str = "millrace_processor_events_total";
pub const PROCESSOR_BATCHES: &str = "millrace_processor_batches_total";
pub const PROCESSOR_COMMITS: &str = "millrace_processor_commits_total";
pub const PROCESSOR_EFFECTS: &str = "millrace_processor_effects_total";
pub const PROCESSOR_STALE_WRITES: &str = "millrace_processor_stale_writes_total";
pub const PROCESSOR_RETRIES: &str = "millrace_processor_retries_total";
pub const PROCESSOR_TRAPS: &str = "millrace_processor_traps_total";
pub const PROCESSOR_DEAD_LETTERS: &str = "millrace_processor_dead_letters_total";
pub const PROCESSOR_RESTARTS: &str = "millrace_processor_restarts_total";
pub const PROCESSOR_SWAPS: &str = "millrace_processor_swaps_total";

// Plugins. Labels of those that begin with `guest`: `plugin`.
pub const GUEST_HTTP_REQUESTS: &str = "millrace_guest_http_requests_total";
pub const GUEST_HTTP_DENIED: &str = "millrace_guest_http_denied_total";
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
    (PROCESSOR_RESTARTS, "Runs that were started again after a failure."),
    (PROCESSOR_SWAPS, "Versions that took over from another."),
    (GUEST_HTTP_REQUESTS, "HTTP requests of guests that the operator's list allowed."),
    (
        GUEST_HTTP_DENIED,
        "HTTP requests of guests that were refused: no grant, a host that is not listed, or too many at once.",
    ),
    (GUEST_LOGS_DROPPED, "Guest log messages over the rate limit."),
    (PRECOMPILED_REJECTED, "Precompiled components that were not this host's, and were made again."),
];
