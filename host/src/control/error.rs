//! What can go wrong with the control feed.

use std::time::Duration;

use crate::error::{BackendError, Blame, Classify, Retry};

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFeedError {
    /// The event itself is wrong; it will never be right.
    #[error("the control event is invalid: {detail}")]
    InvalidEvent { detail: String },
    /// It says that it must be understood, and this host does not know its kind or schema version.
    #[error("this host does not understand the control event: {detail}; bring the host up to date")]
    NotUnderstood { detail: String },
    /// What a host says of itself cannot be read.
    #[error("the report of a host cannot be read: {detail}")]
    InvalidReport { detail: String },
    /// The change cannot be made of what stands.
    #[error("{plugin} cannot be changed so: {detail}")]
    ChangeRefused { plugin: String, detail: String },
    /// The fleet is frozen. What stops something or takes it back is still done.
    #[error("the fleet is frozen by {by}: {reason}; unfreeze it first")]
    Frozen { by: String, reason: String },
    /// Its signatures do not give it the right to what it asks for.
    #[error("the control event is not trusted: {detail}")]
    Untrusted { detail: String },
    /// Its time is over, or it is from a future that no clock skew explains.
    #[error("the control event is out of its time: {detail}")]
    OutOfTime { detail: String },
    /// Somebody else was quicker; nothing changed.
    #[error("{entity} stands at revision {found}, not {expected}: look at it again and repeat the change")]
    RevisionConflict { entity: String, expected: u64, found: u64 },
    /// The same event id came with other content.
    #[error("event {event_id} is known with other content; each change needs an id of its own")]
    EventIdTaken { event_id: String },
    /// Events after the cursor are gone from the feed.
    #[error("the feed begins at control version {oldest}, after {asked}: this host starts from a snapshot")]
    BehindRetention { asked: u64, oldest: u64 },
    #[error("there is no artifact {digest}")]
    ArtifactMissing { digest: String },
    #[error("artifact {digest} is damaged: its bytes have digest {found}")]
    ArtifactDamaged { digest: String, found: String },
    /// What came is not what was announced; nothing is stored.
    #[error("the content has digest {found}, not {digest}")]
    ArtifactMismatch { digest: String, found: String },
    #[error("the content has {found} bytes where {expected} were announced")]
    ArtifactSize { expected: u64, found: u64 },
    /// Whoever sent content, or was asked for it, stopped in the middle.
    #[error("the content broke off: {detail}")]
    ArtifactBroken { detail: String },
    #[error(
        "`{name}` is no name of a {what}: 1 to 128 letters, digits, `.`, `_`, `-` and `:`, not beginning with a dot"
    )]
    InvalidName { what: &'static str, name: String },
    #[error("this is no build signature: {detail}")]
    InvalidSignature { detail: String },
    #[error("artifact {digest} has another note `{name}` already")]
    NoteTaken { digest: String, name: String },
    #[error("`{digest}` is not a digest: sha256: and 64 lower-case hexadecimal digits")]
    InvalidDigest { digest: String },
    #[error("{limit} is {max}, and {asked} was asked for")]
    Limit { limit: &'static str, asked: u64, max: u64 },
    #[error("there is no {what} `{name}`; there are: {known}")]
    UnknownBackend { what: &'static str, name: String, known: String },
    /// The outbox has no dead letter of this id.
    #[error("the outbox has no dead letter {event_id}")]
    LetterUnknown { event_id: String },
    /// The single node's feed carries nothing.
    #[error("this host has no control feed; set control.sink and control.source")]
    NoFeed,
    #[error("{setting}: {detail}")]
    Settings { setting: String, detail: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for ControlFeedError {
    fn code(&self) -> &'static str {
        match self {
            Self::InvalidEvent { .. } => "control_event_invalid",
            Self::NotUnderstood { .. } => "control_event_not_understood",
            Self::InvalidReport { .. } => "control_report_invalid",
            Self::ChangeRefused { .. } => "control_change_refused",
            Self::Frozen { .. } => "control_frozen",
            Self::Untrusted { .. } => "control_event_untrusted",
            Self::OutOfTime { .. } => "control_event_out_of_time",
            Self::RevisionConflict { .. } => "revision_conflict",
            Self::EventIdTaken { .. } => "control_event_id_taken",
            Self::BehindRetention { .. } => "control_behind_retention",
            Self::ArtifactMissing { .. } => "artifact_missing",
            Self::ArtifactDamaged { .. } => "artifact_damaged",
            Self::ArtifactMismatch { .. } => "artifact_mismatch",
            Self::ArtifactSize { .. } => "artifact_size",
            Self::ArtifactBroken { .. } => "artifact_broken",
            Self::InvalidName { .. } => "artifact_name_invalid",
            Self::InvalidSignature { .. } => "artifact_signature_invalid",
            Self::NoteTaken { .. } => "artifact_note_taken",
            Self::InvalidDigest { .. } => "digest_invalid",
            Self::Limit { limit, .. } => limit,
            Self::UnknownBackend { .. } => "control_backend_unknown",
            Self::LetterUnknown { .. } => "control_letter_unknown",
            Self::NoFeed => "control_no_feed",
            Self::Settings { .. } => "control_settings_invalid",
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(e) => e.retry(),
            // It may not have been copied here yet.
            Self::ArtifactMissing { .. } => Retry::After(Duration::from_secs(5)),
            Self::ArtifactBroken { .. } => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Backend(e) => e.blame(),
            Self::ArtifactMissing { .. } | Self::ArtifactDamaged { .. } | Self::BehindRetention { .. } => {
                Blame::Host
            }
            _ => Blame::Caller,
        }
    }
}
