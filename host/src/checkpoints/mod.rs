//! Durable progress: what a task has done, in one commit.
//!
//! Promises: effects, state, position and dead letters of a commit become
//! durable and visible together or not at all. A claim outdates every older
//! one, so a commit by an owner that was replaced is refused ([`CommitError::Fenced`]).
//! The position never moves back. Nothing here decides *when* to commit or what
//! a failure means; that is `processors`.

mod effect;

use std::fmt::{self, Debug};
use std::sync::Arc;

pub use effect::{EffectBatch, EffectKind, EffectRecord, EffectRef, EmitRef, InvalidEffect};

use futures_util::future::BoxFuture;

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{EventBatch, Micros, Position, Revision, TenantId};
use crate::tables::TableSchema;

/// The unit of ordering and ownership: one lane of one processor for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    pub processor: Arc<str>,
    pub tenant: TenantId,
    pub lane: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.processor, self.tenant, self.lane)
    }
}

/// Fences: of two owners of a task, the one with the higher generation is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What a processor's `snapshot` gave and what to read it as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedState {
    pub content_type: String,
    pub state: Vec<u8>,
}

/// What a task restarts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every event up to here that is the task's is applied or dead-lettered.
    pub position: Position,
    /// None for a processor without state of its own.
    pub saved: Option<SavedState>,
    pub revision: Revision,
}

/// An event that could not be handled, kept with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Exactly one event, with its position.
    pub event: Arc<EventBatch>,
    /// `reject`, `retries`, `trap`, `timeout`, `refused`.
    pub reason: &'static str,
    /// What the guest or the host said, with the guest's backtrace where there is one.
    pub message: String,
    pub attempts: u32,
    pub at: Micros,
}

impl PartialEq for EventBatch {
    fn eq(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.records() == other.records() && self.arena() == other.arena()
    }
}

impl Eq for EventBatch {}

/// One atomic write.
#[derive(Clone, Debug)]
pub struct Commit {
    pub task: TaskId,
    pub generation: Generation,
    /// Where the task stands after it; not below the committed one.
    pub position: Position,
    /// The new snapshot; none where it has not changed.
    pub saved: Option<Arc<SavedState>>,
    /// Checked effects in order. Later ones on the same row or state entry win.
    pub effects: Vec<Arc<EffectBatch>>,
    /// The tables that the effects' indexes mean, in the manifest's order.
    pub tables: Arc<[TableSchema]>,
    pub dead: Vec<DeadLetter>,
    pub at: Micros,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub revision: Revision,
    /// Writes to versioned tables that were left out as stale.
    pub stale: u64,
}

/// A dead letter as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRow {
    pub task: TaskId,
    pub event: Arc<EventBatch>,
    pub reason: String,
    pub message: String,
    pub attempts: u32,
    pub at: Micros,
}

impl DeadLetterRow {
    /// What a guest could not handle is the guest's; the host's failures make no dead letters, but where one
    /// should, its reason says so.
    pub fn blame(&self) -> Blame {
        if self.reason == "host" { Blame::Host } else { Blame::Guest }
    }
}

/// One entry of a task's keyed state: key and value.
pub type StateEntry = (Vec<u8>, Vec<u8>);

/// How far a task is, for lag and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    pub task: TaskId,
    pub generation: Generation,
    pub position: Position,
    pub revision: Revision,
    pub state_bytes: u64,
    pub at: Micros,
}

/// Checkpoints, and the one commit.
///
/// `claim` and `commit` answer after they are durable. `commit` may be called
/// again only with a new commit: a repeat of one that succeeded is not
/// recognised (the position tells). State reads may block the calling thread
/// for storage, never for a writer.
pub trait CheckpointStore: Send + Sync + Debug {
    /// Takes a task over: answers a generation above every earlier one, and the last commit.
    fn claim(&self, task: &TaskId) -> BoxFuture<'_, Result<(Generation, Option<Checkpoint>), CommitError>>;

    /// Writes one commit. The call itself only enqueues (it waits when the queue is full);
    /// commits of one task take effect in the order of the calls.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// The last commit, without taking the task over; none before the first.
    fn checkpoint(&self, task: &TaskId) -> BoxFuture<'_, Result<Option<Checkpoint>, CommitError>>;

    /// A task's keyed state: the committed value under a key.
    fn state_get(&self, task: &TaskId, key: &[u8]) -> Result<Option<Vec<u8>>, CommitError>;

    /// Committed entries whose key begins with `prefix`, after the key `after`, in order of bytes.
    fn state_scan(
        &self,
        task: &TaskId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<StateEntry>, CommitError>;

    /// All tasks of a processor, or of all.
    fn tasks(&self, processor: Option<&str>) -> BoxFuture<'_, Result<Vec<TaskRow>, CommitError>>;

    /// The newest `limit` dead letters of a processor; of one tenant where one is given.
    fn dead_letters(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, CommitError>>;
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    #[error("task {task} was taken over: generation {held} is outdated, the current one is {current}")]
    Fenced { task: TaskId, held: u64, current: u64 },
    #[error("task {task} cannot go back from position {committed} to {asked}")]
    PositionBack { task: TaskId, committed: Position, asked: Position },
    /// The effects break a rule that only the store can see.
    #[error("the effects of task {task} were refused: {reason}")]
    Refused { task: TaskId, reason: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for CommitError {
    fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "fenced",
            Self::PositionBack { .. } => "position_back",
            Self::Refused { .. } => "effects_refused",
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Backend(e) => e.retry(),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Refused { .. } => Blame::Guest,
            _ => Blame::Host,
        }
    }
}
