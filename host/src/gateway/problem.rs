//! Errors of the edge.
//!
//! An error leaves as RFC 9457 `application/problem+json`. Its `code` never
//! changes its meaning. Texts are safe to show; causes on the host's side go to
//! the log and not to the client.

use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::problems::host;
pub use super::problems::{PROBLEMS, ProblemKind};
use crate::checkpoints::CommitError;
use crate::control::ControlFeedError;
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::InvalidEvent;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, CHANGE_WINDOW_CEILING, EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX,
};
use crate::live::LiveError;
use crate::plugins::{ControlError, PluginError, RebuildError};
use crate::streams::{HubError, ScopeError, StreamError};
use crate::tables::{InvalidQuery, TableError};

/// The most that `Retry-After` says: who has to wait for longer should look again all the same.
const RETRY_AFTER_SECONDS_MAX: u64 = 24 * 3_600;

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

    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// After how long it may go better.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.0.retry_after
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What `WWW-Authenticate` says (RFC 6750, 3); none where other credentials would not help.
    fn challenge(&self) -> Option<HeaderValue> {
        const REALM: &str = "Bearer realm=\"millrace\"";
        let error = match (self.code(), self.0.kind.status) {
            ("token_missing", _) => return Some(HeaderValue::from_static(REALM)),
            ("right_missing", _) => "insufficient_scope",
            (_, 401) => "invalid_token",
            _ => return None,
        };
        let text = format!("{REALM}, error=\"{error}\", error_description=\"{}\"", self.0.kind.title);
        HeaderValue::from_str(&text).ok()
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
    pub(super) fn classified<E: Classify + Display>(error: &E) -> Self {
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
            // Some waits have no end.
            let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
            headers.insert(header::RETRY_AFTER, seconds.clamp(1, RETRY_AFTER_SECONDS_MAX).into());
        }
        if let Some(challenge) = self.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
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
            StreamError::TooManyStreams { max } => {
                Self::classified(&error).limit("named_streams_max", *max as u64 + 1, *max as u64)
            }
            StreamError::Scopes(ScopeError::TooMany { limit, asked, max, .. }) => {
                Self::classified(&error).limit(limit, *asked as u64, *max as u64)
            }
            StreamError::Invalid(invalid) => invalid.clone().into(),
            StreamError::Backend(backend) => backend.clone().into(),
            _ => Self::classified(&error),
        }
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Scope(scope) => StreamError::from(scope).into(),
            HubError::Window { asked_ms } => {
                let max = u64::try_from(CHANGE_WINDOW_CEILING.as_millis()).unwrap_or(u64::MAX);
                Self::classified(&error).limit("change_window_ms", asked_ms, max)
            }
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

impl From<LiveError> for Problem {
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::Table(inner) => inner.into(),
            LiveError::TooManyViews { views, max } => {
                Self::classified(&error).limit("live_views_max", views as u64, max as u64)
            }
            // One event of the host ends every subscription: the host's log has it once, from where it happened.
            LiveError::ViewFailed | LiveError::Closing => {
                let problem = Self::new(error.code(), error.to_string());
                match error.retry() {
                    Retry::Never => problem,
                    Retry::After(wait) => problem.retry_after(wait),
                }
            }
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

impl From<ControlFeedError> for Problem {
    fn from(error: ControlFeedError) -> Self {
        match error {
            ControlFeedError::Backend(backend) => backend.into(),
            ControlFeedError::Limit { limit, asked, max } => {
                Self::classified(&error).limit(limit, asked, max)
            }
            _ => Self::classified(&error),
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Table(inner) | ControlError::Rebuild(RebuildError::Table(inner)) => inner.into(),
            ControlError::Commit(inner) => inner.into(),
            ControlError::Stream(inner) => inner.into(),
            ControlError::Backend(inner) | ControlError::Rebuild(RebuildError::Backend(inner)) => {
                inner.into()
            }
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
