//! Names and meanings of the metrics. Labels have few values: plugin, version,
//! outcome, reason, route; never a tenant, a client's free text, a key or a position.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Upper edges of histograms of time, 100 µs to 10 s.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper edges of histograms of events in one batch or commit.
pub const EVENTS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_000.0, 4_000.0, 20_000.0];

// Streams.
pub const EVENTS_TRIMMED: &str = "millrace_events_trimmed_total";
pub const CHANGE_ENTRIES_TRIMMED: &str = "millrace_change_entries_trimmed_total";
pub const CHANGE_SCOPES_SKIPPED: &str = "millrace_change_scopes_skipped_total";
pub const CHANGE_SUBSCRIPTIONS: &str = "millrace_change_subscriptions";
pub const CHANGES_PENDING: &str = "millrace_changes_pending";
pub const CHANGES_CONFLATED: &str = "millrace_changes_conflated_total";
pub const CHANGE_GAPS: &str = "millrace_change_gaps_total";
pub const FOLLOWER_OUTAGES: &str = "millrace_follower_outages_total";
pub const UPCASTS_FAILED: &str = "millrace_upcasts_failed_total";
pub const TAIL_FALLBACKS: &str = "millrace_tail_fallbacks_total";

// The log on Redis.
pub const REDIS_SESSIONS: &str = "millrace_redis_sessions_total";
/// Label: `ack` (`memory`, `synced`, `synced_by_waitaof`, `replicated`).
pub const REDIS_ACK: &str = "millrace_redis_ack";
pub const REDIS_REPEATED_APPENDS: &str = "millrace_redis_repeated_appends_total";
pub const REDIS_CHANNELS_NEW_LIVES: &str = "millrace_redis_channels_new_lives_total";
pub const REDIS_CHANNELS_CONFLICTS: &str = "millrace_redis_channels_conflicts_total";
pub const LOG_NEW_EPOCHS: &str = "millrace_log_new_epochs_total";
pub const OUTBOX_EVENTS: &str = "millrace_outbox_events";
pub const OUTBOX_CARRIED: &str = "millrace_outbox_carried_total";
pub const OUTBOX_REFUSED: &str = "millrace_outbox_refused_total";
pub const OUTBOX_APPENDED: &str = "millrace_outbox_appended_total";
/// Labels: `plugin`, `code`.
pub const OUTBOX_APPENDS_REFUSED: &str = "millrace_outbox_appends_refused_total";
/// Labels: `plugin`, `policy` (`stop`, `oldest`, `tail`, `rebuild`).
pub const POSITIONS_LOST: &str = "millrace_positions_lost_total";
/// Labels: `what` (`emitted`, `appended`); `result` (`flipped`, `abandoned`).
pub const REBUILD_DROPPED: &str = "millrace_rebuild_dropped_total";
pub const REBUILDS_ENDED: &str = "millrace_rebuilds_ended_total";
pub const REBUILD_TRIES: &str = "millrace_rebuild_tries_total";
pub const REBUILD_HOLD_SECONDS: &str = "millrace_rebuild_hold_seconds";
pub const LEASES_HELD: &str = "millrace_leases_held";
pub const LEASES_LOST: &str = "millrace_leases_lost_total";
pub const LOG_FOREIGN_TRIMS: &str = "millrace_log_foreign_trims_total";

// The cache. Labels: `level` (`first`, `second`) of the hits and stale stores; `call` of the errors.
pub const CACHE_HITS: &str = "millrace_cache_hits_total";
pub const CACHE_MISSES: &str = "millrace_cache_misses_total";
pub const CACHE_LOADS: &str = "millrace_cache_loads_total";
pub const CACHE_COALESCED: &str = "millrace_cache_coalesced_total";
pub const CACHE_STALE_STORES: &str = "millrace_cache_stale_stores_total";
pub const CACHE_TOO_LARGE: &str = "millrace_cache_too_large_total";
pub const CACHE_EVICTIONS: &str = "millrace_cache_evictions_total";
pub const CACHE_ERRORS: &str = "millrace_cache_errors_total";
// Presence. Labels: of leaves `reason`, of gaps `cause`.
pub const PRESENCE_JOINS: &str = "millrace_presence_joins_total";
pub const PRESENCE_UPDATES: &str = "millrace_presence_updates_total";
pub const PRESENCE_LEAVES: &str = "millrace_presence_leaves_total";
pub const PRESENCE_MESSAGES: &str = "millrace_presence_messages_total";
pub const PRESENCE_GAPS: &str = "millrace_presence_gaps_total";
pub const PRESENCE_FOLLOWERS: &str = "millrace_presence_followers";

// Channels. Label of the refused: `code`.
pub const CHANNEL_ENTRIES: &str = "millrace_channel_entries_total";
pub const CHANNEL_BYTES: &str = "millrace_channel_bytes_total";
pub const CHANNEL_REPEATS: &str = "millrace_channel_repeats_total";
pub const CHANNEL_HELD: &str = "millrace_channel_held_total";
pub const CHANNEL_DENIED: &str = "millrace_channel_rate_denied_total";
pub const CHANNEL_REFUSED: &str = "millrace_channel_refused_total";
pub const CHANNEL_FOLLOWERS: &str = "millrace_channel_followers";
pub const CHANNEL_LAGGED: &str = "millrace_channel_lagged_total";
pub const CHANNEL_MISSED: &str = "millrace_channel_missed_entries_total";
// Their WebSockets. Label of the closes: `cause`.
pub const CHANNEL_SOCKETS: &str = "millrace_channel_sockets";
pub const CHANNEL_SOCKET_ENTRIES: &str = "millrace_channel_socket_sent_entries_total";
pub const CHANNEL_SOCKET_BYTES: &str = "millrace_channel_socket_sent_bytes_total";
pub const CHANNEL_SOCKET_WRITES: &str = "millrace_channel_socket_writes_total";
pub const CHANNEL_SOCKET_CLOSES: &str = "millrace_channel_socket_closes_total";

// Sources. Labels: of the reconnects `reason`, of the puts `result`.
pub const SOURCE_EVENTS: &str = "millrace_source_events_total";
pub const SOURCE_REPEATED: &str = "millrace_source_repeated_total";
pub const SOURCE_LETTERS: &str = "millrace_source_letters_total";
pub const SOURCE_RECONNECTS: &str = "millrace_source_reconnects_total";
pub const SOURCE_PUTS: &str = "millrace_source_puts_total";
pub const SOURCE_CURSORS_LOST: &str = "millrace_source_cursors_lost_total";

// The gRPC server. Labels of the calls: `method`, `code`.
pub const GRPC_CALLS: &str = "millrace_grpc_calls_total";
pub const GRPC_UNTAKEN: &str = "millrace_grpc_calls_untaken_total";
pub const GRPC_STREAMS: &str = "millrace_grpc_streams";

// The control feed. Labels: of the applied `outcome`, of the quarantined `code`, of the restored `cause`.
pub const CONTROL_APPLIED: &str = "millrace_control_applied_total";
pub const CONTROL_QUARANTINED: &str = "millrace_control_quarantined_total";
pub const CONTROL_CURSOR: &str = "millrace_control_cursor";
pub const CONTROL_POLLS_FAILED: &str = "millrace_control_polls_failed_total";
pub const CONTROL_ACKS_FAILED: &str = "millrace_control_acks_failed_total";
pub const CONTROL_RESTORED: &str = "millrace_control_restored_total";
pub const CONTROL_PUBLISHED: &str = "millrace_control_published_total";
pub const CONTROL_PUBLISH_FAILED: &str = "millrace_control_publish_failed_total";
pub const CONTROL_OUTBOX_WAITING: &str = "millrace_control_outbox_waiting";
pub const CONTROL_OUTBOX_DEAD: &str = "millrace_control_outbox_dead";
pub const CONTROL_OUTBOX_OLDEST: &str = "millrace_control_outbox_oldest_seconds";
/// Label: `outcome` (`active`, `paused`, `retired`).
pub const CONTROL_RECONCILED: &str = "millrace_control_reconciled_total";
/// Label of both: `code`.
pub const CONTROL_SET_ASIDE: &str = "millrace_control_revisions_set_aside_total";
pub const CONTROL_RECONCILE_TROUBLES: &str = "millrace_control_reconcile_troubles_total";
pub const CONTROL_BREAKER_TRIPS: &str = "millrace_control_breaker_trips_total";
/// Label: `change` (`advanced`, `completed`, `rolled_back`).
pub const CONTROL_ROLLOUT_CHANGES: &str = "millrace_control_rollout_changes_total";
pub const CONTROL_CONTROLLER_FAILED: &str = "millrace_control_controller_failed_total";
pub const CONTROL_REPORTS: &str = "millrace_control_reports_total";
pub const CONTROL_REPORTS_FAILED: &str = "millrace_control_reports_failed_total";
pub const CONTROL_PROPOSED: &str = "millrace_control_proposed_total";
// Artifacts. Label of the fetches: `outcome` (`fetched`, `failed`).
pub const ARTIFACTS_DAMAGED: &str = "millrace_artifacts_damaged_total";
pub const ARTIFACT_FETCHES: &str = "millrace_artifact_fetches_total";

// Keyed state.
pub const STATE_EXPIRED: &str = "millrace_state_expired_total";

// Processors. Labels: `plugin`.
// The edge.
pub const HTTP_REQUESTS: &str = "millrace_http_requests_total";
pub const HTTP_REQUEST_SECONDS: &str = "millrace_http_request_seconds";
pub const HTTP_PROBLEMS: &str = "millrace_http_problems_total";
pub const HTTP_CONNECTIONS: &str = "millrace_http_connections";
pub const HTTP_CONNECTIONS_REFUSED: &str = "millrace_http_connections_refused_total";
pub const PUBLISHED_EVENTS: &str = "millrace_published_events_total";
pub const PUBLISHED_REPEATS: &str = "millrace_published_repeats_total";
pub const SSE_CLIENTS: &str = "millrace_sse_clients";
pub const LIVE_CLIENTS: &str = "millrace_live_clients";
pub const LIVE_SENT_FRAMES: &str = "millrace_live_sent_frames_total";
pub const LIVE_SENT_BYTES: &str = "millrace_live_sent_bytes_total";
pub const LIVE_WRITES: &str = "millrace_live_writes_total";
pub const LIVE_COMMIT_TO_WRITE: &str = "millrace_live_commit_to_write_seconds";
pub const LIVE_CLOSES: &str = "millrace_live_closes_total";
// Live queries. Label of the gaps: `reason`.
pub const LIVE_VIEWS: &str = "millrace_live_views";
pub const LIVE_FRAMES: &str = "millrace_live_frames_total";
pub const LIVE_ROW_CHANGES: &str = "millrace_live_row_changes_total";
pub const LIVE_READS: &str = "millrace_live_reads_total";
pub const LIVE_RESUMES: &str = "millrace_live_resumes_total";
pub const LIVE_GAPS: &str = "millrace_live_gaps_total";
pub const LIVE_LOST: &str = "millrace_live_lost_total";
pub const LIVE_CHECKS: &str = "millrace_live_checks_total";
pub const LIVE_DRIFTS: &str = "millrace_live_drifts_total";
pub const LIVE_FAILED: &str = "millrace_live_failed_total";
/// Label: `outcome` (`read`, `failed`).
pub const JWKS_READS: &str = "millrace_jwks_reads_total";

// Plugins. Labels of the first: `plugin`.
pub const GUEST_HTTP_REQUESTS: &str = "millrace_guest_http_requests_total";
pub const GUEST_HTTP_DENIED: &str = "millrace_guest_http_denied_total";
pub const GUEST_HTTP_UNSECURED: &str = "millrace_guest_http_unsecured_total";
/// Only where guests are metered by fuel.
pub const GUEST_FUEL: &str = "millrace_guest_fuel_total";
pub const GUEST_LOGS_DROPPED: &str = "millrace_guest_logs_dropped_total";
pub const PRECOMPILED_REJECTED: &str = "millrace_precompiled_rejected_total";
/// Label: `from` (`cache`, `artifact`, `failed`).
pub const CODE_LOADS: &str = "millrace_code_loads_total";
pub const CODE_LOAD_SECONDS: &str = "millrace_code_load_seconds";
pub const CODE_GIVEN_BACK: &str = "millrace_code_given_back_total";

// Traces. Labels of the second: `reason`.
pub const SPANS_EXPORTED: &str = "millrace_spans_exported_total";
pub const SPANS_DROPPED: &str = "millrace_spans_dropped_total";

// Processors. Labels: `plugin`, `version`; of traps also `kind`. They are not in the recorder: each plugin
// keeps them for its newest versions, and they are written out when somebody asks.
pub const PROCESSOR_LAG_EVENTS: &str = "millrace_processor_lag_events";
pub const PROCESSOR_LAG_SECONDS: &str = "millrace_processor_lag_seconds";
pub const PROCESSOR_INSTANCES: &str = "millrace_processor_instances";
pub const PROCESSOR_CODE_LOADED: &str = "millrace_processor_code_loaded";
pub const PROCESSOR_MEMORY_BYTES: &str = "millrace_processor_memory_bytes";
pub const PROCESSOR_CHECKPOINT_BYTES: &str = "millrace_processor_checkpoint_bytes";
pub const PROCESSOR_CHECKPOINT_AGE: &str = "millrace_processor_checkpoint_age_seconds";
pub const PROCESSOR_PARKED_EVENTS: &str = "millrace_processor_parked_events";
pub const PROCESSOR_HELD_KEYS: &str = "millrace_processor_held_keys";
pub const GROUP_DELIVERIES: &str = "millrace_group_deliveries_total";
pub const GROUP_REDELIVERIES: &str = "millrace_group_redeliveries_total";
pub const GROUP_ACKS: &str = "millrace_group_acks_total";
pub const GROUP_NACKS: &str = "millrace_group_nacks_total";
pub const GROUP_LEASES_EXPIRED: &str = "millrace_group_leases_expired_total";
pub const GROUP_DEAD_LETTERS: &str = "millrace_group_dead_letters_total";
pub const GROUP_RECEIPTS_REFUSED: &str = "millrace_group_receipts_refused_total";
pub const GROUP_CONSUMERS_REAPED: &str = "millrace_group_consumers_reaped_total";
pub const GROUP_LOST_POSITIONS: &str = "millrace_group_lost_positions_total";
pub const GROUP_LOST_EVENTS: &str = "millrace_group_lost_events_total";
pub const GROUP_LAG_EVENTS: &str = "millrace_group_lag_events";
pub const GROUP_LAG_SECONDS: &str = "millrace_group_lag_seconds";
pub const PROCESSOR_EVENTS: &str = "millrace_processor_events_total";
pub const PROCESSOR_BATCHES: &str = "millrace_processor_batches_total";
pub const PROCESSOR_COMMITS: &str = "millrace_processor_commits_total";
pub const PROCESSOR_EFFECTS: &str = "millrace_processor_effects_total";
pub const PROCESSOR_STALE_WRITES: &str = "millrace_processor_stale_writes_total";
pub const PROCESSOR_RETRIES: &str = "millrace_processor_retries_total";
pub const PROCESSOR_TRAPS: &str = "millrace_processor_traps_total";
pub const PROCESSOR_PARKINGS: &str = "millrace_processor_parkings_total";
pub const PROCESSOR_BREAKER_OPENINGS: &str = "millrace_processor_breaker_openings_total";
pub const PROCESSOR_DEAD_LETTERS: &str = "millrace_processor_dead_letters_total";
pub const PROCESSOR_REPLAYED: &str = "millrace_processor_replayed_total";
pub const PROCESSOR_DROPPED_APPENDS: &str = "millrace_processor_appends_dropped_total";
pub const PROCESSOR_REFUSED_FLUSHES: &str = "millrace_processor_flushes_refused_total";
pub const PROCESSOR_RESTARTS: &str = "millrace_processor_restarts_total";
pub const PROCESSOR_SWAPS: &str = "millrace_processor_swaps_total";
pub const PROCESSOR_STATE_WARNINGS: &str = "millrace_processor_state_warnings_total";
pub const PROCESSOR_CPU_SECONDS: &str = "millrace_processor_cpu_seconds_total";
pub const PROCESSOR_BATCH_EVENTS: &str = "millrace_processor_batch_events";
pub const PROCESSOR_HANDLE_SECONDS: &str = "millrace_processor_handle_seconds";
pub const PROCESSOR_COMMIT_SECONDS: &str = "millrace_processor_commit_seconds";
pub const PROCESSOR_SNAPSHOT_SECONDS: &str = "millrace_processor_snapshot_seconds";
pub const PROCESSOR_FLUSH_SECONDS: &str = "millrace_processor_flush_seconds";
pub const PROCESSOR_HAND_OVER_SECONDS: &str = "millrace_processor_hand_over_seconds";

/// What a number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric and its meaning in one sentence.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help }
}

/// What the recorder knows.
pub const RECORDED_METRICS: &[Metric] = &[
    counter(EVENTS_TRIMMED, "Events that retention removed."),
    counter(CHANGE_ENTRIES_TRIMMED, "Entries of change streams that went, by cause: retention, cap."),
    counter(
        CHANGE_SCOPES_SKIPPED,
        "Values of change scopes that were too long for an id, and were passed over.",
    ),
    gauge(CHANGE_SUBSCRIPTIONS, "Subscribers of change streams now."),
    gauge(CHANGES_PENDING, "Events that wait for the end of a window of conflated changes."),
    counter(
        CHANGES_CONFLATED,
        "Events that conflated changes left out, since a later one of the aggregate came.",
    ),
    counter(CHANGE_GAPS, "Gaps and ends that subscribers of changes were told of, by cause: overflow, tail."),
    counter(
        FOLLOWER_OUTAGES,
        "Answers that follow events or changes and had to wait since their log could not be read.",
    ),
    counter(UPCASTS_FAILED, "Events that consumers saw as they were published, since an upcast failed."),
    counter(TAIL_FALLBACKS, "Reads of processors that had fallen behind the tail and went to the store."),
    counter(
        REDIS_SESSIONS,
        "Times that the log on Redis was reached and checked; one more for each lost connection.",
    ),
    gauge(REDIS_ACK, "1 for what an acknowledged append on Redis stands on now, 0 for the others."),
    counter(
        REDIS_REPEATED_APPENDS,
        "Appends that were sent to Redis again because their answer was lost; their ids keep them single.",
    ),
    counter(
        REDIS_CHANNELS_NEW_LIVES,
        "Times that channels on Redis turned out to be gone or to have gone back. Their followers were told.",
    ),
    counter(
        REDIS_CHANNELS_CONFLICTS,
        "Appends to channels, and changes of processes, that were decided again because another host was faster.",
    ),
    counter(
        LOG_NEW_EPOCHS,
        "Times that the log turned out to be another one: emptied, restored, or cut back. Readers lost their place.",
    ),
    counter(LOG_FOREIGN_TRIMS, "Times that somebody else had shortened the log."),
    counter(PRESENCE_JOINS, "Members that came into a room."),
    counter(PRESENCE_UPDATES, "Members of rooms that changed their state."),
    counter(PRESENCE_LEAVES, "Members that went, by reason: left, expired."),
    counter(PRESENCE_MESSAGES, "Messages to rooms."),
    counter(
        PRESENCE_GAPS,
        "Followers of rooms that were given the roster anew because something was not told of, by cause: overflow, reconnected, feed_lost.",
    ),
    gauge(PRESENCE_FOLLOWERS, "Followers of rooms now."),
    counter(CHANNEL_ENTRIES, "Entries that were appended to channels."),
    counter(CHANNEL_BYTES, "Bytes of their payloads and error texts."),
    counter(CHANNEL_REPEATS, "Entries that lay in their channel already and were not appended again."),
    counter(CHANNEL_HELD, "Appends to channels that waited for a forerunner."),
    counter(CHANNEL_DENIED, "Appends to channels that were refused for their rate."),
    counter(CHANNEL_REFUSED, "Appends to channels that were refused, by problem code."),
    gauge(CHANNEL_FOLLOWERS, "Followers of channels now."),
    counter(CHANNEL_LAGGED, "Times that followers of channels were told that they are behind."),
    counter(CHANNEL_MISSED, "Entries that were dropped before a follower of their channel had them."),
    gauge(CHANNEL_SOCKETS, "WebSockets of channels that are open."),
    counter(CHANNEL_SOCKET_ENTRIES, "Entries that were sent on WebSockets of channels."),
    counter(CHANNEL_SOCKET_BYTES, "Bytes of all messages that were sent on them."),
    counter(CHANNEL_SOCKET_WRITES, "Writes that they were sent in."),
    counter(CHANNEL_SOCKET_CLOSES, "WebSockets of channels that ended, by cause."),
    counter(
        CONTROL_APPLIED,
        "Entries of the control feed that were applied, by outcome: changed, repeated, superseded, passed_by, quarantined.",
    ),
    counter(CONTROL_QUARANTINED, "Entries of the control feed that were set aside, by code."),
    gauge(CONTROL_CURSOR, "The control version that this host has applied."),
    counter(CONTROL_POLLS_FAILED, "Rounds of the applier that failed and were repeated."),
    counter(
        CONTROL_ACKS_FAILED,
        "Applied control events that the feed could not be told of; they come again.",
    ),
    counter(
        CONTROL_RESTORED,
        "Restores of the desired state from a snapshot, by cause: retention, drift, asked.",
    ),
    counter(CONTROL_PUBLISHED, "Control events of this host that its feed has taken."),
    counter(CONTROL_PUBLISH_FAILED, "Tries to publish a control event that failed."),
    gauge(CONTROL_OUTBOX_WAITING, "Control events of this host that are not in the feed yet."),
    gauge(CONTROL_OUTBOX_DEAD, "Those of them that the feed does not take."),
    gauge(CONTROL_OUTBOX_OLDEST, "Time since the oldest of them was proposed; 0 when there is none."),
    counter(CONTROL_RECONCILED, "Revisions of plugins that this host has carried out, by outcome."),
    counter(CONTROL_SET_ASIDE, "Revisions of plugins that this host does not carry out, by code."),
    counter(CONTROL_RECONCILE_TROUBLES, "Tries to carry a revision out that failed, by code."),
    counter(CONTROL_BREAKER_TRIPS, "Versions that were taken back for trapping soon after they took over."),
    counter(CONTROL_ROLLOUT_CHANGES, "Rollouts that the controller carried on or took back, by change."),
    counter(CONTROL_CONTROLLER_FAILED, "Looks of the controller that failed and were repeated."),
    counter(CONTROL_REPORTS, "Reports of this host to its fleet."),
    counter(CONTROL_REPORTS_FAILED, "Reports of this host that could not be told."),
    counter(CONTROL_PROPOSED, "Control events that somebody asked this host to tell, by outcome."),
    counter(SOURCE_EVENTS, "Foreign events that a source has handled."),
    counter(SOURCE_REPEATED, "Foreign events that came more than once."),
    counter(SOURCE_LETTERS, "Foreign events that cannot become ours."),
    counter(SOURCE_RECONNECTS, "Times that a source had to open its stream again, by reason."),
    counter(SOURCE_PUTS, "Checkpoints of sources that were put, by result: ok, or what went wrong."),
    counter(SOURCE_CURSORS_LOST, "Times that a server no longer knew the cursor of a source."),
    counter(
        GRPC_CALLS,
        "Calls of the gRPC server, by method and the code of the answer; a stream once it is over.",
    ),
    counter(
        GRPC_UNTAKEN,
        "Calls of the gRPC server that were ended because the client did not take the answer.",
    ),
    gauge(GRPC_STREAMS, "Event streams that are open over gRPC."),
    counter(HTTP_REQUESTS, "HTTP requests by route, method and class of status."),
    histogram(HTTP_REQUEST_SECONDS, "Time until the head of the answer, by route."),
    counter(HTTP_PROBLEMS, "Refused requests and refused lines of uploads, by problem code."),
    gauge(OUTBOX_EVENTS, "Emitted events and appended entries that wait in the store for a log elsewhere."),
    counter(OUTBOX_CARRIED, "Emitted events and appended entries that were carried to a log elsewhere."),
    counter(
        OUTBOX_REFUSED,
        "Emitted events and appended entries that are never taken elsewhere; outbox_refused in the store has them.",
    ),
    counter(OUTBOX_APPENDED, "Entries that processors appended to channels elsewhere, repeats left out."),
    counter(
        OUTBOX_APPENDS_REFUSED,
        "Entries of processors that channels elsewhere refused and that were dropped, by plugin and problem code.",
    ),
    counter(
        POSITIONS_LOST,
        "Tasks that found events gone which they may not have handled, by plugin and policy.",
    ),
    counter(
        REBUILD_DROPPED,
        "Effects that rebuilds left out, since they were made when the events were handled first, by what.",
    ),
    counter(REBUILDS_ENDED, "Rebuilds that have ended, by result."),
    counter(REBUILD_TRIES, "Tries of rebuilds to take over."),
    histogram(REBUILD_HOLD_SECONDS, "Time for which both versions stood still when a rebuild took over."),
    gauge(LEASES_HELD, "Processors that this host owns among the hosts of one log."),
    counter(LEASES_LOST, "Leases that ended before they were renewed, or that another host took over."),
    gauge(HTTP_CONNECTIONS, "Connections that are open now."),
    counter(HTTP_CONNECTIONS_REFUSED, "Connections refused at connections_max."),
    counter(PUBLISHED_EVENTS, "Events that were appended over HTTP."),
    counter(PUBLISHED_REPEATS, "Published events that were known already and not appended again."),
    gauge(SSE_CLIENTS, "Clients that follow a stream now."),
    gauge(LIVE_CLIENTS, "Connections of live queries now, by transport."),
    counter(LIVE_SENT_FRAMES, "Frames of live queries that clients were sent, by transport."),
    counter(LIVE_SENT_BYTES, "Bytes of live queries that clients were sent, by transport."),
    counter(LIVE_WRITES, "Writes to clients of live queries, each with all that was ready, by transport."),
    histogram(
        LIVE_COMMIT_TO_WRITE,
        "Time from a commit to the end of the write that tells a client, of the oldest commit in each write, by transport.",
    ),
    counter(LIVE_CLOSES, "Connections of live queries that ended, by transport and cause."),
    gauge(LIVE_VIEWS, "Different live queries that are kept."),
    counter(LIVE_FRAMES, "Frames of live queries that were encoded, each once for all who get it."),
    counter(LIVE_ROW_CHANGES, "Committed row changes that live queries looked at."),
    counter(
        LIVE_READS,
        "Reads of the store for live queries: one for each new view, and where a window ran out.",
    ),
    counter(LIVE_RESUMES, "Clients of live queries that went on from their token."),
    counter(LIVE_GAPS, "Clients that could not be told what they missed and got the rows anew, by reason."),
    counter(
        LIVE_LOST,
        "How often more was committed than was kept for live queries, or a table's columns changed.",
    ),
    counter(LIVE_CHECKS, "Views of live queries that were compared with the store."),
    counter(
        LIVE_DRIFTS,
        "Views of live queries that showed anything else than the store, and were repaired.",
    ),
    counter(LIVE_FAILED, "Views of live queries that broke and were given up."),
    counter(
        JWKS_READS,
        "Readings of an issuer's key set, by outcome; after a failed one the last set stays.",
    ),
    counter(GUEST_HTTP_REQUESTS, "HTTP requests of guests that the operator's list allowed."),
    counter(
        GUEST_HTTP_DENIED,
        "HTTP requests of guests that were refused: no grant, a host that is not listed, or too many at once.",
    ),
    counter(
        GUEST_HTTP_UNSECURED,
        "Requests of guests to https addresses that were not sent, mostly for the server's certificate.",
    ),
    counter(GUEST_FUEL, "Fuel that calls of guests have used, where they are metered by it."),
    counter(GUEST_LOGS_DROPPED, "Guest log messages over the rate limit."),
    counter(PRECOMPILED_REJECTED, "Precompiled components that were not this host's, and were made again."),
    counter(
        CODE_LOADS,
        "Loads of the code of plugins that had given it back, by where it came from: the cache, compiled from the artifact, or failed.",
    ),
    counter(GROUP_DELIVERIES, "Entries that consumers of groups were given, repeats included."),
    counter(GROUP_REDELIVERIES, "Entries that consumers of groups were given again."),
    counter(GROUP_ACKS, "Entries that consumers of groups acknowledged."),
    counter(GROUP_NACKS, "Entries that consumers of groups said they could not handle."),
    counter(GROUP_LEASES_EXPIRED, "Entries that nobody acknowledged before their lease ended."),
    counter(GROUP_DEAD_LETTERS, "Entries of groups that became dead letters."),
    counter(
        GROUP_RECEIPTS_REFUSED,
        "Receipts that changed nothing: the lease had ended, the entry was lost, or they were not the group's.",
    ),
    counter(GROUP_CONSUMERS_REAPED, "Consumers that were forgotten because they were silent for long."),
    counter(GROUP_LOST_POSITIONS, "Times that retention removed what a group had not acknowledged."),
    counter(GROUP_LOST_EVENTS, "Events that retention removed before a group had acknowledged them."),
    histogram(CODE_LOAD_SECONDS, "Time of one such load."),
    counter(CODE_GIVEN_BACK, "Times that an idle plugin gave its code back."),
    counter(PROCESSOR_STATE_WARNINGS, "Tasks whose snapshot passed half of `guest_state_bytes_max`."),
    counter(ARTIFACTS_DAMAGED, "Reads of an artifact that found other bytes than its digest says."),
    counter(ARTIFACT_FETCHES, "Copies of artifacts that this host has asked the repository for, by outcome."),
    counter(CACHE_HITS, "Reads that the cache answered, by level."),
    counter(CACHE_MISSES, "Reads that no level of the cache could answer."),
    counter(CACHE_LOADS, "Reads of the store for the cache."),
    counter(CACHE_COALESCED, "Reads that waited for somebody else's load of the same."),
    counter(
        CACHE_STALE_STORES,
        "Values that were not kept, since they were invalidated while they were loaded, by level.",
    ),
    counter(
        CACHE_TOO_LARGE,
        "Values that were not kept because they are larger than `cache_value_bytes_max`.",
    ),
    counter(CACHE_EVICTIONS, "Values that made room for others in the process."),
    counter(
        CACHE_ERRORS,
        "Calls of the cache's second level that failed or took too long, by call; the store was read instead.",
    ),
    counter(STATE_EXPIRED, "Entries of keyed state that the host removed long after they had expired."),
    counter(SPANS_EXPORTED, "Spans that the trace collector took."),
    counter(
        SPANS_DROPPED,
        "Spans that did not reach the trace collector, by reason: queue_full or export_failed.",
    ),
];

/// What each consumer group keeps, by stream and name; of a name that several tenants have, the largest.
pub const GROUP_METRICS: &[Metric] = &[
    gauge(GROUP_LAG_EVENTS, "Events that a group has not acknowledged."),
    gauge(GROUP_LAG_SECONDS, "Time since the oldest of them was appended; 0 when there is none."),
];

/// What each plugin keeps.
pub const PROCESSOR_METRICS: &[Metric] = &[
    gauge(PROCESSOR_LAG_EVENTS, "Events of the log after the position of the task that is furthest behind."),
    gauge(
        PROCESSOR_LAG_SECONDS,
        "Time since the oldest event was appended that is not done; 0 when all are.",
    ),
    gauge(PROCESSOR_INSTANCES, "Instances that are loaded."),
    gauge(PROCESSOR_CODE_LOADED, "1 while the plugin's code is in memory; an idle one gives it back."),
    gauge(PROCESSOR_MEMORY_BYTES, "Linear memory of the loaded instances."),
    gauge(PROCESSOR_CHECKPOINT_BYTES, "Snapshots of all tasks together."),
    gauge(
        PROCESSOR_CHECKPOINT_AGE,
        "Time since the last commit of the task that has not committed for longest.",
    ),
    gauge(PROCESSOR_PARKED_EVENTS, "Events that are parked."),
    gauge(PROCESSOR_HELD_KEYS, "Ordering keys that wait for a parked event."),
    counter(PROCESSOR_EVENTS, "Events whose effects a processor has committed."),
    counter(PROCESSOR_BATCHES, "Calls of `handle`, repeats included."),
    counter(PROCESSOR_COMMITS, "Commits of a processor's tasks."),
    counter(PROCESSOR_EFFECTS, "Effects that a processor handed back."),
    counter(PROCESSOR_STALE_WRITES, "Row writes that the version gate left out because the row was newer."),
    counter(PROCESSOR_RETRIES, "Events that were tried again."),
    counter(PROCESSOR_TRAPS, "Guest calls that ended their instance, by kind."),
    counter(PROCESSOR_PARKINGS, "Events that were parked."),
    counter(PROCESSOR_REPLAYED, "Dead letters that were replayed with success."),
    counter(PROCESSOR_BREAKER_OPENINGS, "Times that a processor's circuit breaker opened."),
    counter(PROCESSOR_DEAD_LETTERS, "Events that became dead letters."),
    counter(
        PROCESSOR_DROPPED_APPENDS,
        "Entries that a processor appended and that were left out because of what their channel is, by problem code.",
    ),
    counter(PROCESSOR_REFUSED_FLUSHES, "Calls of `flush` whose effects were refused; it is called again."),
    counter(PROCESSOR_RESTARTS, "Runs that were started again after a failure."),
    counter(PROCESSOR_SWAPS, "Times that the version took over from another."),
    counter(PROCESSOR_CPU_SECONDS, "CPU time of the guest threads in a processor's turns."),
    histogram(PROCESSOR_BATCH_EVENTS, "Events of one call of `handle`."),
    histogram(PROCESSOR_HANDLE_SECONDS, "Time of one call of `handle`."),
    histogram(PROCESSOR_COMMIT_SECONDS, "Time from the submission of a commit until it is durable."),
    histogram(PROCESSOR_SNAPSHOT_SECONDS, "Time of one call of `snapshot`."),
    histogram(PROCESSOR_FLUSH_SECONDS, "Time of one call of `flush`."),
    histogram(
        PROCESSOR_HAND_OVER_SECONDS,
        "Time in which a task handled nothing because another version took over.",
    ),
];

/// Tells the recorder what its names mean, for whoever reads `/metrics`.
pub fn describe() {
    for metric in RECORDED_METRICS {
        let Metric { name, help, .. } = *metric;
        match metric.kind {
            Kind::Counter => describe_counter!(name, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, Unit::Seconds, help),
        }
    }
}
