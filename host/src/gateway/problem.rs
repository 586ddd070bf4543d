//! Every error of the edge, in one table: code, status, title, fix, blame.
//!
//! An error leaves as RFC 9457 `application/problem+json`. Its `code` never
//! changes its meaning. Texts are safe to show; causes on the host's side go to
//! the log and not to the client.

use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::checkpoints::CommitError;
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::InvalidEvent;
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX};
use crate::plugins::{ControlError, PluginError};
use crate::streams::StreamError;
use crate::tables::{InvalidQuery, TableError};

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

const fn caller(status: u16, code: &'static str, title: &'static str, fix: &'static str) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Caller }
}

const fn guest(status: u16, code: &'static str, title: &'static str, fix: &'static str) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Guest }
}

const fn host(status: u16, code: &'static str, title: &'static str, fix: &'static str) -> ProblemKind {
    ProblemKind { code, status, title, fix, blame: Blame::Host }
}

const FIX_SHADOW: &str =
    "the old one goes on and nothing of the new one was committed; correct the new one and deploy again";

/// Every kind of problem that the edge can answer. `/docs` lists them from here.
pub const PROBLEMS: &[ProblemKind] = &[
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
    caller(
        403,
        "right_missing",
        "the token lacks a right",
        "use a token that has the right, or have it added in the config file",
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
        "without tokens this host serves no foreign web pages",
        "open the page from this host, or configure tokens",
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
    caller(404, "stream_unknown", "there is no such stream", "the stream of published events is `events`"),
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
        "the store was replaced: begin again with after=oldest or after=newest",
    ),
    caller(
        410,
        "position_lost",
        "the events after this position are no longer held",
        "go on with after=<the cursor in `oldest`>",
    ),
    caller(409, "position_ahead", "the position is beyond the newest event", "begin again with after=newest"),
    caller(400, "page_events_max", "the page is too large", "ask for fewer events and follow `next`"),
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
    caller(409, "plugin_other_name", "the component has another name", "deploy it under the name it says"),
    guest(
        409,
        "state_refused",
        "the new version refused the present state",
        "make `load` accept the older content type",
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
    caller(404, "artifact_missing", "there is no such artifact", "deploy the component again"),
    host(500, "artifact_damaged", "an artifact is damaged", "deploy the component again"),
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
    host(503, "store_closed", "the store is closed", "try again in a moment"),
    host(503, "storage_failed", "the store failed", "try again; see the host's log"),
];

/// An error on its way to a client.
#[derive(Clone, Debug)]
pub struct Problem(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: &'static ProblemKind,
    detail: String,
    retry_after: Option<Duration>,
    allow: Option<String>,
    members: Vec<(&'static str, Value)>,
}

/// What a response carries, so that the edge can count problems by code.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProblemCode(pub(super) &'static str);

impl Problem {
    /// A problem of a kind of [`PROBLEMS`]; a code that is not there is `internal`.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        let known = PROBLEMS.iter().find(|kind| kind.code == code);
        debug_assert!(known.is_some(), "problem `{code}` is missing in PROBLEMS");
        let kind = known.unwrap_or(&INTERNAL);
        Self(Box::new(Inner {
            kind,
            detail: detail.into(),
            retry_after: None,
            allow: None,
            members: Vec::new(),
        }))
    }

    /// Says which limit was hit, how much was asked and how much is possible.
    pub fn limit(self, name: &'static str, asked: u64, max: u64) -> Self {
        self.with("limit", name.into()).with("asked", asked.into()).with("max", max.into())
    }

    /// Adds a member.
    pub fn with(mut self, name: &'static str, value: Value) -> Self {
        self.0.members.push((name, value));
        self
    }

    pub(super) fn allow(mut self, methods: &str) -> Self {
        self.0.allow = Some(methods.to_owned());
        self
    }

    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    pub fn code(&self) -> &'static str {
        self.0.kind.code
    }

    pub fn blame(&self) -> Blame {
        self.0.kind.blame
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The problem as its JSON object.
    pub fn to_json(&self) -> Value {
        let Inner { kind, detail, members, .. } = &*self.0;
        let mut object = Map::new();
        object.insert("type".into(), format!("/docs#problem-{}", kind.code).into());
        object.insert("title".into(), kind.title.into());
        object.insert("status".into(), kind.status.into());
        object.insert("detail".into(), detail.as_str().into());
        object.insert("code".into(), kind.code.into());
        object.insert("fix".into(), kind.fix.into());
        object.insert("blame".into(), kind.blame.as_str().into());
        for (name, value) in members {
            object.insert((*name).into(), value.clone());
        }
        Value::Object(object)
    }

    /// One line of an NDJSON answer.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let mut line = json!({ "error": self.to_json() }).to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// What went wrong on the host's side is logged with its cause and shown without it.
    fn classified<E: Classify + Display>(error: &E) -> Self {
        let problem = if error.blame() == Blame::Host {
            tracing::error!(error.kind = error.code(), error.blame = "host", cause = %error, "request failed");
            let hidden = Self::new(error.code(), "");
            let title = hidden.0.kind.title;
            Self::new(error.code(), title)
        } else {
            Self::new(error.code(), error.to_string())
        };
        match error.retry() {
            Retry::Never => problem,
            Retry::After(wait) => problem.retry_after(wait),
        }
    }
}

const INTERNAL: ProblemKind = host(
    500,
    "internal",
    "something failed inside the host",
    "see the host's log at the time of this request",
);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.to_json().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.0.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"millrace\""));
        }
        if let Some(allow) = self.0.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response.extensions_mut().insert(ProblemCode(self.code()));
        response
    }
}

impl From<InvalidEvent> for Problem {
    fn from(error: InvalidEvent) -> Self {
        let detail = error.to_string();
        match error {
            InvalidEvent::PayloadTooLarge { bytes } => Self::new("event_payload_bytes_max", detail).limit(
                "event_payload_bytes_max",
                bytes as u64,
                EVENT_PAYLOAD_BYTES_MAX as u64,
            ),
            InvalidEvent::NameTooLong { bytes, .. } => Self::new("name_bytes_max", detail).limit(
                "name_bytes_max",
                bytes as u64,
                NAME_BYTES_MAX as u64,
            ),
            InvalidEvent::Cursor { .. } => Self::new("cursor_invalid", detail),
            _ => Self::new("event_invalid", detail),
        }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        match &error {
            StreamError::TooManyEvents { events, .. } => {
                let asked = *events as u64;
                Self::classified(&error).limit("batch_events_max", asked, BATCH_EVENTS_MAX as u64)
            }
            StreamError::TooManyBytes { bytes, .. } => {
                let asked = *bytes as u64;
                Self::classified(&error).limit("batch_bytes_max", asked, BATCH_BYTES_MAX as u64)
            }
            StreamError::Invalid(invalid) => invalid.clone().into(),
            StreamError::Backend(backend) => backend.clone().into(),
            _ => Self::classified(&error),
        }
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        match &error {
            // Both numbers are the operator's, and the publisher should know them.
            BackendError::DiskLow { free_bytes, min_bytes } => {
                let detail = format!("{error}; new events are refused until there is space");
                Self::new("disk_low", detail)
                    .with("limit", "disk_free_bytes_min".into())
                    .with("free", (*free_bytes).into())
                    .with("min", (*min_bytes).into())
                    .retry_after(Duration::from_secs(5))
            }
            _ => Self::classified(&error),
        }
    }
}

impl From<TableError> for Problem {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Query(InvalidQuery::Limit { limit, max, .. }) => Self::new(
                "query_invalid",
                error.to_string(),
            )
            .limit("window_rows_max", limit.into(), max.into()),
            TableError::Backend(backend) => backend.into(),
            _ => Self::classified(&error),
        }
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Backend(backend) => backend.into(),
            _ => Self::classified(&error),
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Table(inner) => inner.into(),
            ControlError::Commit(inner) => inner.into(),
            ControlError::Backend(inner) => inner.into(),
            ControlError::StateTooLarge { bytes, max, .. } => {
                Self::classified(&error).limit("guest_state_bytes_max", bytes, max)
            }
            ControlError::Plugin(PluginError::TooLarge { bytes, max }) => {
                Self::classified(&error).limit("component_bytes_max", bytes as u64, max as u64)
            }
            _ => Self::classified(&error),
        }
    }
}
