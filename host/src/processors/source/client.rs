//! The seams to a foreign system: where events come from and where checkpoints are kept.

use std::error::Error;
use std::fmt::{self, Debug};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::{Blame, Classify, Retry};
use crate::event::Micros;

/// Opens streams of events.
pub trait EventClient: Send + Sync + Debug {
    /// Opens a stream after a cursor. That it succeeds says nothing about rights or cursors: a server may tell of them
    /// with the first event.
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn EventStream>, SourceError>>;
}

/// One stream of events.
pub trait EventStream: Send {
    /// The next event; none at a clean end. A future that is dropped has taken nothing. After an error the stream is over.
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<EventEnvelope>, SourceError>>;
}

/// Keeps one checkpoint a client. It is replaced whole; there is no history and no comparing.
pub trait CheckpointClient: Send + Sync + Debug {
    /// None where there is none.
    fn get<'a>(&'a self, client_id: &'a str) -> BoxFuture<'a, Result<Option<RemoteCheckpoint>, SourceError>>;

    /// Durable when it answers, with what is kept now.
    fn put<'a>(
        &'a self,
        client_id: &'a str,
        content_type: &'a str,
        value: JsonText,
    ) -> BoxFuture<'a, Result<RemoteCheckpoint, SourceError>>;
}

/// An event as it came. The wire has no time of its own: `time` is when it was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventEnvelope {
    /// What happened, such as `created`.
    pub event: String,
    /// To what, such as `entry`. Events of the kind `stream` are about the stream itself.
    pub kind: String,
    /// Meant to be JSON; nobody has looked.
    pub data: Vec<u8>,
    /// Opaque. None where the server keeps no events.
    pub cursor: Option<String>,
    pub time: Micros,
}

/// What a subscription asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeRequest {
    /// Empty: all.
    pub kinds: Vec<String>,
    pub detail: Detail,
    pub after_cursor: Option<String>,
    pub scope: Scope,
    pub justification: String,
    /// Empty: what the server takes for it, which is `history`.
    pub entry_channels: Vec<String>,
    pub entry_content_types: Vec<String>,
    pub entry_roles: Vec<String>,
}

/// How much an event says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    Summary,
    #[default]
    Full,
}

/// Whose events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Scope {
    /// Those that the user may see.
    User,
    #[default]
    Admin,
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "user" => Ok(Self::User),
            "admin" | "" => Ok(Self::Admin),
            other => Err(format!("`{other}` is no scope; it is `user` or `admin`")),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What a client has saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCheckpoint {
    pub client_id: String,
    /// May be empty in what others have saved.
    pub content_type: String,
    pub value: JsonText,
    pub updated_at: Option<Micros>,
}

/// Text that is JSON, kept as it was written: numbers of any length survive.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// Checks it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| error.to_string())?;
        Ok(Self(text.into()))
    }

    pub fn null() -> Self {
        Self("null".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Loses what a double cannot hold.
    pub fn value(&self) -> serde_json::Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<&serde_json::Value> for JsonText {
    fn from(value: &serde_json::Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event about the stream itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    Phase {
        phase: Phase,
        /// Up to where everything was shown or left out, from a server that says so.
        cursor: Option<String>,
    },
    /// The cursor that was asked for is no longer known; the stream ends.
    CursorLost,
    /// Events may be missing; the stream goes on.
    EventsMissing { reason: String },
    /// The server closes the stream, and says where to go on.
    Evicted { reason: String, cursor: Option<String> },
    /// Of a kind that nothing here knows.
    Other { event: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Replay,
    Live,
}

impl ControlEvent {
    const KIND: &str = "stream";
    const CURSOR_LOST: &str = "cursor beyond retention window";

    /// None for an event that is about something else.
    pub fn of(envelope: &EventEnvelope) -> Option<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Said {
            phase: String,
            reason: String,
        }
        if envelope.kind != Self::KIND {
            return None;
        }
        let Said { phase, reason } = serde_json::from_slice(&envelope.data).unwrap_or_default();
        let cursor = || envelope.cursor.clone().filter(|cursor| !cursor.is_empty());
        Some(match (envelope.event.as_str(), phase.as_str()) {
            ("phase", "replay") => Self::Phase { phase: Phase::Replay, cursor: cursor() },
            ("phase", "live") => Self::Phase { phase: Phase::Live, cursor: cursor() },
            ("invalidate", _) if reason == Self::CURSOR_LOST => Self::CursorLost,
            ("invalidate", _) => Self::EventsMissing { reason },
            ("evicted", _) => Self::Evicted { reason, cursor: cursor() },
            (event, _) => Self::Other { event: event.chars().take(80).collect() },
        })
    }
}

/// What went wrong between here and the foreign system. A run that ends with one answers the very one that ended it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    pub fault: SourceFault,
    /// [`Retry::After`] nothing means the usual wait.
    pub retry: Retry,
    pub message: String,
    #[source]
    pub cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// Where it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceFault {
    /// No connection, or it broke.
    Unreachable,
    /// The server has more requests than it takes.
    Exhausted,
    /// Who asks is not known there, or may not.
    Denied,
    /// The server does not take what was asked.
    Refused,
    /// The checkpoint belongs to another client than the key does.
    ForeignCheckpoint,
    /// Somebody else saves under the same client id.
    TakenOver,
    ContentType,
    /// What was saved cannot be taken up.
    Load,
    CursorLost,
    /// A checkpoint is more than a server takes.
    TooLarge,
    /// A message is more than is read.
    MessageTooLarge,
    /// A message is none of the protocol's.
    Unreadable,
    /// The processor could not go on.
    Processor,
    /// Our own store or log.
    Store,
}

impl SourceError {
    /// One that trying again does not mend.
    pub fn stop(fault: SourceFault, message: impl Into<String>) -> Self {
        Self { fault, retry: Retry::Never, message: message.into(), cause: None }
    }

    /// One that may pass; the usual wait comes before the next try.
    pub fn pass(fault: SourceFault, message: impl Into<String>) -> Self {
        Self { fault, retry: Retry::After(Duration::ZERO), message: message.into(), cause: None }
    }

    #[must_use]
    pub fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// The least time to wait before trying again; none where that does not help.
    pub fn wait(&self) -> Option<Duration> {
        match self.retry {
            Retry::Never => None,
            Retry::After(wait) => Some(wait),
        }
    }
}

impl Classify for SourceError {
    fn code(&self) -> &'static str {
        match self.fault {
            SourceFault::Unreachable => "source_unreachable",
            SourceFault::Exhausted => "source_exhausted",
            SourceFault::Denied => "source_denied",
            SourceFault::Refused => "source_refused",
            SourceFault::ForeignCheckpoint => "source_checkpoint_foreign",
            SourceFault::TakenOver => "checkpoint_taken_over",
            SourceFault::ContentType => "content_type_mismatch",
            SourceFault::Load => "checkpoint_not_loaded",
            SourceFault::CursorLost => "cursor_lost",
            SourceFault::TooLarge => "source_put_bytes_max",
            SourceFault::MessageTooLarge => "source_message_bytes_max",
            SourceFault::Unreadable => "source_message_unreadable",
            SourceFault::Processor => "source_processor_failed",
            SourceFault::Store => "source_store_failed",
        }
    }

    fn retry(&self) -> Retry {
        self.retry
    }

    fn blame(&self) -> Blame {
        match self.fault {
            SourceFault::Processor => Blame::Guest,
            SourceFault::Store => Blame::Host,
            _ => Blame::Caller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(event: &str, data: &str) -> Option<ControlEvent> {
        ControlEvent::of(&EventEnvelope {
            event: event.into(),
            kind: "stream".into(),
            data: data.into(),
            cursor: Some("7".into()),
            time: Micros(0),
        })
    }

    #[test]
    fn events_about_the_stream_are_read() {
        let live = ControlEvent::Phase { phase: Phase::Live, cursor: Some("7".into()) };
        assert_eq!(said("phase", r#"{"phase":"live"}"#), Some(live));
        let lost = r#"{"reason":"cursor beyond retention window"}"#;
        assert_eq!(said("invalidate", lost), Some(ControlEvent::CursorLost));
        let missing = ControlEvent::EventsMissing { reason: "pubsub recovery".into() };
        assert_eq!(said("invalidate", r#"{"reason":"pubsub recovery"}"#), Some(missing));
        let evicted = ControlEvent::Evicted { reason: "slow consumer".into(), cursor: Some("7".into()) };
        assert_eq!(said("evicted", r#"{"reason":"slow consumer"}"#), Some(evicted));
        assert_eq!(said("phase", "no json"), Some(ControlEvent::Other { event: "phase".into() }));
        assert_eq!(
            ControlEvent::of(&EventEnvelope { kind: "entry".into(), ..EventEnvelope::default() }),
            None
        );
    }

    #[test]
    fn json_text_keeps_its_numbers_and_refuses_what_is_none() {
        let text = JsonText::parse(br#"{"n":9007199254740993}"#).unwrap();
        assert_eq!(text.as_str(), r#"{"n":9007199254740993}"#);
        assert!(JsonText::parse(b"{").is_err());
        assert!(JsonText::parse(&[0xff]).is_err());
    }
}
