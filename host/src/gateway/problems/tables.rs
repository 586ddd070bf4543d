//! Tables and live queries.

use super::{ProblemKind, caller, host};

pub(super) const TABLES: &[ProblemKind] = &[
    // Tables.
    caller(404, "table_unknown", "there is no such table", "GET /v1/tables lists the tables"),
    caller(404, "row_unknown", "there is no row with this key", "check the key; it may not be written yet"),
    caller(400, "row_key_bytes_max", "the key is too long", "no row has a key this long"),
    caller(
        400,
        "query_invalid",
        "the query does not fit the table",
        "GET /v1/tables shows columns, types and flags",
    ),
    // Live queries.
    caller(
        429,
        "live_views_max",
        "as many different queries are watched as can be",
        "watch fewer different ones, share their shape, or raise gateway.live_views_max",
    ),
    caller(
        409,
        "live_columns_changed",
        "the table's columns have changed",
        "ask again with columns that it has, of their types, and a limit that it allows",
    ),
    caller(
        422,
        "live_window_bytes_max",
        "the rows of the window are too large",
        "ask for fewer rows; 16 MiB are possible",
    ),
    caller(
        422,
        "live_streamed_rows_max",
        "too many rows match",
        "narrow the condition, or ask for an ordered window; 10,000 rows are possible",
    ),
    host(503, "live_view_failed", "the query could not be followed any more", "subscribe again"),
    caller(
        426,
        "websocket_expected",
        "this path is for WebSockets",
        "connect with a WebSocket client; for server-sent events there are other paths at /docs",
    ),
    caller(400, "websocket_malformed", "the client broke the WebSocket protocol", "correct the client"),
    caller(400, "message_not_utf8", "a text message is not UTF-8", "send texts as UTF-8"),
    caller(400, "message_binary", "commands are text messages", "send the JSON as a text message"),
    caller(
        400,
        "command_invalid",
        "the message is not a command, or not one that can stand here",
        "see the path of the socket at /docs for its commands",
    ),
    caller(400, "action_unknown", "there is no such action", "use an action that the detail lists"),
    caller(
        409,
        "subscription_taken",
        "the subscription exists already",
        "choose another id, or unsubscribe first; to move the window, reanchor",
    ),
    caller(404, "subscription_unknown", "there is no such subscription", "subscribe first"),
    caller(
        429,
        "live_subscriptions_max",
        "the socket has as many subscriptions as it may",
        "unsubscribe from some, open another socket, or raise gateway.live_subscriptions_max",
    ),
    caller(
        413,
        "live_message_bytes_max",
        "the query or message is too large",
        "ask with fewer or shorter conditions, or raise gateway.live_message_bytes_max",
    ),
    caller(
        408,
        "live_first_command_wait_max",
        "no command or query came",
        "send the first command, or the whole query, at once, or raise gateway.live_first_command_wait_ms_max",
    ),
    caller(400, "not_supported", "this is not supported here", "do without it, or connect anew"),
];
