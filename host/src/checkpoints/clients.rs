//! Checkpoints that clients elsewhere keep here: processors of their own, which read our events.
//!
//! One a client, replaced whole, durable when the answer is there. What is kept belongs to a tenant and a client and cannot
//! be read as another's. There is no compare-and-set: the protocol has none.

use std::fmt::{self, Debug};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{Micros, Revision, TenantId};
use crate::limits::{CLIENT_CHECKPOINT_BYTES_MAX, CLIENT_CHECKPOINTS_MAX, CLIENT_NAME_BYTES_MAX};

/// Who keeps a checkpoint: a name without white space around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(String);

impl ClientId {
    /// None where nothing is left of it without the white space around it, or too much.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.len() <= CLIENT_NAME_BYTES_MAX).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientValue {
    /// JSON text: numbers are as they were written.
    Json(String),
    /// The bytes of a `google.protobuf.Value`.
    Proto(Vec<u8>),
}

impl ClientValue {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Proto(bytes) => bytes,
        }
    }
}

/// What a client puts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClientCheckpoint {
    pub content_type: String,
    pub value: ClientValue,
}

/// What is kept of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCheckpoint {
    pub client: ClientId,
    pub content_type: String,
    pub value: ClientValue,
    pub updated_at: Micros,
    /// How often it was put.
    pub revision: Revision,
}

/// Where checkpoints of clients are kept.
pub trait ClientCheckpoints: Send + Sync + Debug {
    /// None where the client has never put one.
    fn get<'a>(
        &'a self,
        tenant: &'a TenantId,
        client: &'a ClientId,
    ) -> BoxFuture<'a, Result<Option<ClientCheckpoint>, ClientCheckpointError>>;

    /// Replaces what there was. Durable when it answers; what is refused leaves what there was.
    fn put<'a>(
        &'a self,
        tenant: &'a TenantId,
        client: &'a ClientId,
        put: NewClientCheckpoint,
    ) -> BoxFuture<'a, Result<ClientCheckpoint, ClientCheckpointError>>;
}

/// Where hosts share a log and each has its own folder: a client that came to another host would find nothing, or what it has
/// left behind long since, so nothing is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoClientCheckpoints;

impl ClientCheckpoints for NoClientCheckpoints {
    fn get<'a>(
        &'a self,
        _tenant: &'a TenantId,
        _client: &'a ClientId,
    ) -> BoxFuture<'a, Result<Option<ClientCheckpoint>, ClientCheckpointError>> {
        ready(Err(ClientCheckpointError::NotShared)).boxed()
    }

    fn put<'a>(
        &'a self,
        _tenant: &'a TenantId,
        _client: &'a ClientId,
        _put: NewClientCheckpoint,
    ) -> BoxFuture<'a, Result<ClientCheckpoint, ClientCheckpointError>> {
        ready(Err(ClientCheckpointError::NotShared)).boxed()
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientCheckpointError {
    #[error("the value has {bytes} bytes; client_checkpoint_bytes_max is {CLIENT_CHECKPOINT_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error(
        "{CLIENT_CHECKPOINTS_MAX} clients have a checkpoint; client_checkpoints_max is {CLIENT_CHECKPOINTS_MAX}"
    )]
    TooMany,
    /// Somebody moved or changed what was kept, or the key is another one.
    #[error("the checkpoint cannot be opened: {detail}")]
    Unreadable { detail: String },
    #[error(
        "this host shares its log with others, which would not have the checkpoint; grpc.checkpoints = \"host\" keeps it here"
    )]
    NotShared,
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for ClientCheckpointError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "client_checkpoint_bytes_max",
            Self::TooMany => "client_checkpoints_max",
            Self::Unreadable { .. } => "checkpoint_unreadable",
            Self::NotShared => "checkpoints_not_shared",
            Self::Backend(error) => error.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(error) => error.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::TooLarge { .. } | Self::TooMany | Self::NotShared => Blame::Caller,
            Self::Unreadable { .. } => Blame::Host,
            Self::Backend(error) => error.blame(),
        }
    }
}
