//! Problems of reading and following streams.

use super::{ProblemKind, caller};

pub(super) const STREAMS: &[ProblemKind] = &[
    caller(
        404,
        "stream_unknown",
        "there is no such stream",
        "the stream of published events is `events`; others are called as the detail says",
    ),
    caller(
        400,
        "start_missing",
        "a tail needs to know where to start",
        "add after=oldest, after=newest or after=<cursor>",
    ),
    caller(
        400,
        "cursor_invalid",
        "this is not a cursor of this server",
        "use a cursor exactly as it was answered",
    ),
    caller(
        410,
        "cursor_foreign",
        "the cursor belongs to another log",
        "the store was replaced, or the process removed and made again: begin with after=oldest or after=newest",
    ),
    caller(
        410,
        "position_lost",
        "the events after this position are no longer held",
        "go on with after=<the cursor in `oldest`>",
    ),
    caller(409, "position_ahead", "the position is beyond the newest event", "begin again with after=newest"),
    caller(
        413,
        "channel_event_payload_bytes_max",
        "a payload is too large for an entry of a channel that is also an event",
        "cut it into several entries, or make the channel without `events`",
    ),
    caller(400, "page_events_max", "the page is too large", "ask for fewer events and follow `next`"),
    caller(
        409,
        "stream_not_appendable",
        "this stream takes no events of its own",
        "publish to `events`: the host writes change streams from there",
    ),
    caller(
        409,
        "named_streams_max",
        "the tenant has as many streams with a name of their own as it may",
        "append to one of them; what tells events apart belongs into their aggregate, type or id",
    ),
    caller(
        404,
        "aggregate_unknown",
        "the changes of this aggregate cannot be followed",
        "deploy a plugin whose manifest declares change scopes for it",
    ),
    caller(
        404,
        "scope_unknown",
        "the aggregate has no such change scope",
        "use a scope that its plugin declares; GET /v1/plugins shows them",
    ),
    caller(400, "scope_id_missing", "this scope needs an id", "add the id to the path"),
    caller(
        409,
        "change_scopes_taken",
        "another plugin declares other change scopes for the aggregate",
        "declare the same as the plugin that the detail names, or leave them to it",
    ),
    caller(422, "change_scopes_invalid", "a change scope is not valid", "correct what the detail names"),
    caller(422, "change_scopes_max", "an aggregate has too many change scopes", "declare fewer"),
    caller(
        422,
        "change_aggregates_max",
        "too many aggregates have change scopes",
        "declare fewer, or divide them between plugins",
    ),
    caller(403, "changes_denied", "these changes may not be followed", "ask for what you may follow"),
    caller(
        409,
        "change_modes_mixed",
        "others follow these changes in another mode",
        "follow them in the mode that the detail names",
    ),
    caller(
        400,
        "change_window_ms",
        "the window is too short or too long",
        "ask for a window_ms within the bounds that the detail names, or leave it out for gateway.change_window_ms",
    ),
];
