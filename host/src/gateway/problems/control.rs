//! What can go wrong with the control feed.

use super::{ProblemKind, caller, host};

pub(super) const CONTROL: &[ProblemKind] = &[
    caller(409, "plugin_managed", "a feed manages this plugin", "change it with an event of the feed"),
    caller(
        409,
        "control_no_feed",
        "this host tells no fleet what to run",
        "ask the host with a control.sink; a host of a fleet has a control.source",
    ),
    caller(400, "control_event_invalid", "the control event is not valid", "correct what the detail names"),
    caller(
        422,
        "control_event_not_understood",
        "this host does not understand the control event",
        "bring the host up to date, or make the change with a program of its version",
    ),
    // The next two are reasons of what `GET /v1/fleet/quarantine` lists, as most of the others are.
    caller(
        422,
        "control_event_unreadable",
        "an entry of the feed is no event",
        "find out who writes into the feed, and hand changes in at the origin; nothing else is held up by it",
    ),
    caller(
        404,
        "control_event_missing",
        "an event was removed from the middle of the feed",
        "run `millrace fleet resync` on this host; the snapshot of the fleet has what the event said",
    ),
    caller(
        403,
        "control_event_untrusted",
        "the control event is not signed by somebody whom this host believes",
        "sign it with a release key of the fleet's list and its component with a build key; a change of the list with a root key",
    ),
    caller(
        422,
        "control_event_out_of_time",
        "the control event has expired, or is from the future",
        "set the clocks right, and make the change again",
    ),
    caller(
        409,
        "revision_conflict",
        "somebody else was quicker",
        "look at GET /v1/fleet/desired, and make the change again of what stands now",
    ),
    caller(
        409,
        "control_event_id_taken",
        "another control event has this id",
        "give each change an id of its own",
    ),
    caller(
        404,
        "control_letter_unknown",
        "the outbox has no such dead letter",
        "GET /v1/fleet/outbox lists them; one that was retried or discarded is gone",
    ),
    caller(
        413,
        "control_event_bytes_max",
        "the control event is too large",
        "put what is large into artifacts",
    ),
    caller(
        413,
        "control_report_bytes_max",
        "the report of a host is too large",
        "run fewer plugins on the host",
    ),
    caller(
        429,
        "control_outbox_events_max",
        "too many changes wait for the feed",
        "make the feed reachable; GET /v1/fleet/outbox says what waits",
    ),
    caller(
        413,
        "control_snapshot_bytes_max",
        "the desired state of the fleet is too large for a snapshot",
        "remove plugins that nobody runs",
    ),
    host(
        503,
        "control_behind_retention",
        "this host is further behind than the feed goes back, and there is no snapshot yet",
        "try again in a moment; the origin makes a snapshot when it runs",
    ),
    caller(
        422,
        "control_backend_unknown",
        "there is no control feed of this name",
        "use a name that the detail lists",
    ),
    caller(
        422,
        "control_settings_invalid",
        "a setting of the control feed is not usable",
        "correct the setting that the detail names",
    ),
];
