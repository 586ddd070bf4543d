//! Every error of the edge, in one table: code, status, title, fix, blame.

mod artifacts;
mod backends;
mod channel_sockets;
mod channels;
mod client_checkpoints;
mod control;
mod groups;
mod parts;
mod presence;
mod rollouts;
mod sources;
mod streams;

use self::parts::{count, joined};
use crate::error::Blame;

/// One kind of problem.
#[derive(Clone, Copy, Debug)]
pub struct ProblemKind {
    /// Stable, for programs.
    pub code: &'static str,
    pub status: u16,
    /// What is wrong, whatever the values.
    pub title: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    pub blame: Blame,
}

pub(super) const fn caller(
    status: u16,
    code: &'static str,
    title: &'static str,
    fix: &'static str,
) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Caller }
}

const fn guest(status: u16, code: &'static str, title: &'static str, fix: &'static str) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Guest }
}

pub(super) const fn host(
    status: u16,
    code: &'static str,
    title: &'static str,
    fix: &'static str,
) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Host }
}

const FIX_SHADOW: &str =
    "the old one goes on and nothing of the new one was committed; correct the new one and deploy again";

/// Every kind of problem that the edge can answer, or name as the reason of what it shows. `/docs` lists them from here.
pub const PROBLEMS: &[ProblemKind] = &joined::<{ count(&PARTS) }>(&PARTS);

const PARTS: [&[ProblemKind]; 12] = [
    GENERAL,
    streams::STREAMS,
    groups::GROUPS,
    presence::PRESENCE,
    channels::CHANNELS,
    channel_sockets::CHANNEL_SOCKETS,
    backends::BACKENDS,
    artifacts::ARTIFACTS,
    rollouts::ROLLOUTS,
    control::CONTROL,
    sources::SOURCES,
    client_checkpoints::CLIENT_CHECKPOINTS,
];

const GENERAL: &[ProblemKind] = &[
    // The request itself.
    caller(404, "path_unknown", "there is no such path", "look up the paths at /docs or in /openapi.json"),
    caller(
        405,
        "method_not_allowed",
        "this path does not take this method",
        "use a method of the Allow header",
    ),
    caller(
        415,
        "content_type_unsupported",
        "the body has a content type that is not taken here",
        "send one of the types listed in `supported`",
    ),
    caller(
        415,
        "content_encoding_unsupported",
        "compressed bodies are not taken",
        "send the body without Content-Encoding",
    ),
    caller(
        413,
        "body_bytes_max",
        "the body is too large",
        "send less at once, stream it as application/x-ndjson, or raise gateway.body_bytes_max",
    ),
    caller(
        413,
        "upload_bytes_max",
        "the upload is too large",
        "go on in another request after the last line that was answered, or raise gateway.upload_bytes_max",
    ),
    caller(
        408,
        "body_idle_max",
        "the body stopped arriving",
        "send without long breaks, or raise gateway.body_idle_ms_max; repeats of what was not answered are recognised by id",
    ),
    caller(400, "body_broken", "the body broke off or is not valid HTTP", "send it again"),
    caller(400, "json_malformed", "this is not JSON", "check the JSON at the place that the detail names"),
    caller(400, "parameter_invalid", "a query parameter has a wrong value", "see the parameter at /docs"),
    caller(
        400,
        "parameter_unknown",
        "a query parameter is not known here",
        "leave it out, or see /docs for its name",
    ),
    caller(
        503,
        "connections_max",
        "the host has as many connections as it takes",
        "close idle ones, or raise gateway.connections_max",
    ),
    host(
        503,
        "host_stopping",
        "the host is stopping",
        "connect again in a moment and go on where the answers ended",
    ),
    host(
        500,
        "internal",
        "something failed inside the host",
        "see the host's log at the time of this request",
    ),
    // Who asks.
    caller(401, "token_missing", "this host wants a bearer token", "send `Authorization: Bearer <token>`"),
    caller(
        401,
        "token_invalid",
        "the bearer token is not known",
        "check the token with the operator of this host",
    ),
    caller(401, "token_expired", "the token has expired", "get a new token and send the request again"),
    caller(
        401,
        "token_not_yet_valid",
        "the token is not valid yet",
        "wait, set the clocks right, or raise auth.jwt.leeway_s",
    ),
    caller(
        401,
        "token_key_unknown",
        "the token is signed with an unknown key",
        "get a token of the issuer whose key set this host reads",
    ),
    caller(
        403,
        "token_differs",
        "the token is not a newer one of the same reader",
        "open another connection with it",
    ),
    caller(401, "token_revoked", "the token was revoked", "get a new token"),
    host(
        503,
        "jwks_unavailable",
        "the key set of the issuer is not there",
        "send it again in a moment; the operator finds the cause in the host's log",
    ),
    caller(
        400,
        "token_in_url",
        "a token in an address ends up in logs",
        "send it as a header, or turn it into a cookie or a ticket with POST /v1/session",
    ),
    caller(401, "session_unknown", "the session is over", "make another one with POST /v1/session"),
    caller(
        401,
        "ticket_invalid",
        "the ticket is not good",
        "make another one with POST /v1/session; each opens one stream, soon",
    ),
    caller(
        403,
        "ticket_refused",
        "a ticket opens streams only",
        "send the token as a header, or use a session",
    ),
    caller(
        429,
        "sessions_max",
        "as many sessions are open as there may be",
        "end some with DELETE /v1/session, or raise auth.sessions_max",
    ),
    caller(
        429,
        "tickets_max",
        "as many tickets wait as there may be",
        "use them or wait until they are over, or raise auth.tickets_max",
    ),
    caller(
        409,
        "revocations_max",
        "as many credentials are revoked as are remembered",
        "remove static tokens from the config file and keys from the key set, or raise auth.revocations_max",
    ),
    caller(
        404,
        "credential_unknown",
        "there is no such credential",
        "static tokens have the names of the config file, or token-1, token-2 and so on",
    ),
    caller(
        429,
        "rate_limited",
        "the tenant makes too many requests",
        "wait as Retry-After says, send more events in one request, or raise gateway.tenant_requests_per_s",
    ),
    caller(
        403,
        "right_missing",
        "the token lacks a right",
        "use a token that has the right, or have it added in the config file",
    ),
    caller(
        403,
        "table_forbidden",
        "the token does not read this table",
        "use a token that has the table in `tables`, with a condition that fits it",
    ),
    caller(
        403,
        "tables_only",
        "the token reads tables only",
        "use a token without `tables`: events and states show what its tables hide",
    ),
    caller(
        403,
        "origin_refused",
        "the request comes from a page of another origin",
        "open the page from this host, or add its origin to gateway.cors_origins",
    ),
    caller(
        403,
        "foreign_host",
        "without tokens this host answers to loopback names only",
        "use http://127.0.0.1 or http://localhost, or configure tokens",
    ),
    caller(
        403,
        "foreign_origin",
        "this host serves no foreign web pages here",
        "open the page from this host; without tokens, from a loopback address",
    ),
    caller(
        400,
        "tenant_in_body",
        "the tenant comes from the token, never from the request",
        "leave `tenant` out; use a token of that tenant",
    ),
    // Events.
    caller(400, "event_invalid", "an event is not valid", "correct the field that the detail names"),
    caller(
        400,
        "name_bytes_max",
        "an aggregate, id, type or other name is too long",
        "shorten it; long values belong in the payload",
    ),
    caller(
        413,
        "event_payload_bytes_max",
        "a payload is too large",
        "keep the object in a blob store and its address in the event",
    ),
    caller(
        413,
        "event_line_bytes_max",
        "a line is too large for an event",
        "keep the payload under event_payload_bytes_max = 1 MiB, which cannot be raised",
    ),
    caller(
        413,
        "batch_events_max",
        "too many events at once",
        "send fewer, or stream them as application/x-ndjson",
    ),
    caller(
        413,
        "batch_bytes_max",
        "too many bytes at once",
        "send fewer, or stream them as application/x-ndjson",
    ),
    caller(
        409,
        "batch_refused",
        "another event of the same batch was refused, so nothing of it was appended",
        "correct that event and send the batch again",
    ),
    caller(
        409,
        "event_id_taken",
        "the event id belongs to an event with other content",
        "give a new event its own id or version; repeat an old one unchanged",
    ),
    // Streams.
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
        "ask again with columns that it has",
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
    guest(409, "table_owned", "the table belongs to another plugin", "give the table another name"),
    guest(
        409,
        "schema_changed",
        "the table cannot change in place",
        "use a new table name, or remove the plugin and its table first",
    ),
    guest(422, "schema_invalid", "the plugin declares an invalid table", "correct the plugin's manifest"),
    // Plugins.
    caller(404, "plugin_unknown", "there is no such plugin", "GET /v1/plugins lists the plugins"),
    caller(
        404,
        "dead_letter_unknown",
        "there is no such dead letter",
        "GET /v1/plugins/{plugin}/dead-letters lists them; one that was replayed or discarded is gone",
    ),
    caller(
        404,
        "event_unknown",
        "there is no such event",
        "give its position instead of its id when it is old; what retention removed cannot be replayed",
    ),
    caller(
        409,
        "plugin_not_running",
        "the plugin does not run for this tenant",
        "resume it first; `plugin show` says why it stopped",
    ),
    host(
        503,
        "interrupted",
        "the plugin was stopped or started again in between",
        "look at the dead letters: it is decided or it is still there; then ask again",
    ),
    caller(
        404,
        "core_dump_missing",
        "there is no core dump",
        "only a guest that falls in its own code leaves one; leave `core_dump` out to see what happened",
    ),
    guest(
        413,
        "core_dump_bytes_max",
        "the guest's memory is too large for a core dump",
        "give the plugin a smaller memory_bytes_max while you look for the fault",
    ),
    guest(
        409,
        "dead_letters_max",
        "the plugin has as many dead letters as it may",
        "replay or discard some, or raise store.dead_letters_max",
    ),
    caller(409, "plugin_other_name", "the component has another name", "deploy it under the name it says"),
    guest(
        409,
        "state_refused",
        "the new version refused the present state",
        "make `load` accept the older content type",
    ),
    guest(
        409,
        "load_limit",
        "the new version broke a limit while it loaded the present state",
        "the old one goes on; make `load` need less, or raise the limit that the detail names",
    ),
    guest(
        409,
        "guest_state_bytes_max",
        "the saved state is too large to load",
        "raise plugins.<name>.state_bytes_max or processors.guest_state_bytes_max (64 MiB at most), or remove the plugin and deploy it again with what grows in keyed state",
    ),
    caller(
        404,
        "task_unknown",
        "the plugin has no such task",
        "a task exists from the first event of its tenant on; GET /v1/plugins/{plugin} lists the tasks",
    ),
    caller(400, "guest_scan_max", "the page is too large", "ask for fewer entries and follow `next`"),
    guest(
        409,
        "swap_failed",
        "the new version did not take over",
        "the old one goes on; correct the new one and deploy again",
    ),
    guest(409, "shadow_trap", "the new version fell in the shadow", FIX_SHADOW),
    guest(409, "shadow_timeout", "the new version took too long for a call in the shadow", FIX_SHADOW),
    guest(409, "shadow_limit", "the new version broke a limit in the shadow", FIX_SHADOW),
    guest(409, "shadow_fatal", "the new version stopped in the shadow", FIX_SHADOW),
    guest(
        409,
        "shadow_errors",
        "the new version failed on events that the old one handled",
        "correct it, or raise processors.shadow_errors_max if it is meant to reject them",
    ),
    guest(
        409,
        "shadow_slow",
        "the new version is slower than its bound",
        "make it faster, raise processors.shadow_time_ratio_max, or deploy it without the shadow run",
    ),
    guest(
        409,
        "shadow_memory",
        "the new version uses too much memory or leaks it",
        "free what is not needed, or deploy it without the shadow run if it is meant to use more",
    ),
    guest(
        409,
        "shadow_snapshot",
        "the new version gives no usable snapshot",
        "keep the state under guest_state_bytes_max, and make `load` accept what `snapshot` gives",
    ),
    guest(
        409,
        "shadow_impure",
        "two snapshots of the new version in a row differ",
        "make `snapshot` depend on the state only: no clock, no random, no changes in it",
    ),
    guest(
        409,
        "shadow_rows_differ",
        "the new version writes other rows or events",
        "see the differences in `plugin show`; deploy without `expect=identical-rows` if they are meant",
    ),
    host(503, "shadow_failed", "the host could not run the new version in the shadow", "deploy it again"),
    caller(
        409,
        "shadow_stopped",
        "the shadow run was ended by another change of the plugin",
        "deploy it again",
    ),
    caller(
        409,
        "deploy_in_progress",
        "another version of this plugin is being deployed",
        "wait for it, or give it up with DELETE /v1/plugins/{plugin}/candidate",
    ),
    caller(
        409,
        "candidate_waits",
        "another version of this plugin waits to be confirmed",
        "confirm it, or give it up with DELETE /v1/plugins/{plugin}/candidate",
    ),
    caller(
        404,
        "candidate_unknown",
        "there is no such candidate",
        "GET /v1/plugins/{plugin} says what became of the last one",
    ),
    caller(
        404,
        "deployment_unknown",
        "there is no such earlier deployment",
        "name a version or digest of GET /v1/plugins/{plugin}/history",
    ),
    guest(
        422,
        "not_a_component",
        "this is not a WebAssembly component",
        "build for wasm32-wasip2 and deploy the .wasm file",
    ),
    guest(422, "wrong_world", "the component has the wrong world", "build against this host's WIT package"),
    guest(
        422,
        "grant_missing",
        "the component wants more than it was granted",
        "have the operator add it to the plugin's settings, as the detail says, or remove the import",
    ),
    guest(422, "import_unknown", "the component imports what this host does not have", "remove the import"),
    caller(422, "grant_unknown", "there is no such grant", "use a grant that the detail lists"),
    caller(
        422,
        "plugin_settings_invalid",
        "the operator's settings for this plugin are not usable",
        "have the operator correct the setting that the detail names",
    ),
    guest(
        422,
        "compile_limit",
        "compiling the component takes more than it may",
        "make its functions fewer or smaller, or have the operator raise the limit that the detail names",
    ),
    host(500, "compiler_failed", "the compiler failed", "see the host's log"),
    guest(413, "component_bytes_max", "the component is too large", "strip it, or build it for size"),
    guest(422, "describe_failed", "`describe` failed", "make `describe` answer without a task"),
    guest(422, "manifest_invalid", "the manifest is not valid", "correct what the detail names"),
    host(500, "plugin_storage_failed", "the plugin store failed", "see the host's log"),
    host(500, "engine_failed", "the WebAssembly engine failed", "see the host's log"),
    host(409, "fenced", "another owner took the task over", "ask again"),
    host(500, "position_back", "a task was asked to go back", "see the host's log"),
    guest(422, "effects_refused", "a processor's effects were refused", "correct what the detail names"),
    // Storage.
    host(507, "disk_full", "the host's disk is full", "free space on the host; nothing acknowledged is lost"),
    host(
        507,
        "disk_low",
        "the host's disk is almost full",
        "free space on the host, or lower store.disk_free_bytes_min; nothing acknowledged is lost",
    ),
    host(
        503,
        "outbox_events_max",
        "too many emitted events wait for the log",
        "make the server of the log reachable; the commit is tried again by itself",
    ),
    host(
        503,
        "host_starting",
        "the host is starting",
        "try again in a moment; /readyz says what it waits for",
    ),
    host(503, "store_closed", "the store is closed", "try again in a moment"),
    host(503, "storage_failed", "the store failed", "try again; see the host's log"),
];
