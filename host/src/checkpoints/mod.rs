//! Durable progress: what a task has done, in one commit.
//!
//! Promises: effects, state, position and dead letters of a commit become
//! durable and visible together or not at all. A claim outdates every older
//! one, so a commit by an owner that was replaced is refused ([`CommitError::Fenced`]).
//! The position never moves back. Nothing here decides *when* to commit or what
//! a failure means; that is `processors`.

mod append;
mod clients;
mod effect;
mod outbox;

use std::fmt::{self, Debug, Write as _};
use std::sync::Arc;

pub use outbox::{
    CarriedAppend, CarriedAppends, CarryError, ChannelCarrier, Fate, LogMark, LogMarks, Outbox, OutboxBatch,
    OutboxDone, OutboxPart, OutboxWhat, WhileFull,
};

pub use append::{
    AppendCause, AppendFate, AppendRef, ChannelGrant, DropReason, Dropped, InvalidAppend, PLUGIN_PARTY,
};
pub use clients::{
    ClientCheckpoint, ClientCheckpointError, ClientCheckpoints, ClientId, ClientValue, NewClientCheckpoint,
    NoClientCheckpoints,
};
pub use effect::{EffectBatch, EffectKind, EffectRecord, EffectRef, EmitRef, InvalidEffect, stored_expiry};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{EventBatch, Micros, Position, Revision, TenantId};
use crate::limits::{GUEST_SCAN_BYTES_MAX, GUEST_SCAN_MAX, GUEST_STATE_BYTES_CEILING};
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

impl SavedState {
    /// SHA-256 of the state, as lower-case hexadecimal.
    pub fn hash(&self) -> String {
        Sha256::digest(&self.state).iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What a task restarts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every event up to here that is the task's is applied, parked or dead-lettered.
    pub position: Position,
    /// None for a processor without state of its own.
    pub saved: Option<SavedState>,
    pub revision: Revision,
    /// The keys that wait, with their events in order. Told to a new owner only.
    pub parked: Vec<ParkedKey>,
}

/// An ordering key whose events wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedKey {
    pub key: Arc<[u8]>,
    pub state: ParkedState,
    /// One event each, in the order of the stream.
    pub events: Vec<Arc<EventBatch>>,
}

/// Why a key waits, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedState {
    /// Tries of its first event.
    pub attempts: u32,
    /// Since when it waits.
    pub since: Micros,
    /// When its first event is tried again, unless the key is held.
    pub retry_at: Micros,
    /// The dead letter, by its event's position, that must be replayed or discarded first.
    pub held: Option<Position>,
    /// What the first event failed with.
    pub message: String,
}

/// What a commit changes in what is parked.
#[derive(Clone, Debug, Default)]
pub struct ParkedWrites {
    /// Keys in their new state; none for one that waits no longer.
    pub keys: Vec<(Arc<[u8]>, Option<ParkedState>)>,
    /// Events that wait from now on, behind those of their key.
    pub added: Vec<(Arc<[u8]>, Arc<EventBatch>)>,
    /// Events that wait no longer. They may be among those added.
    pub removed: Vec<Position>,
}

impl ParkedWrites {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }
}

/// An event that could not be handled, kept with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Exactly one event, with its position.
    pub event: Arc<EventBatch>,
    /// `reject`, `retries`, `trap`, `timeout`, `refused`.
    pub reason: &'static str,
    /// What the guest or the host said.
    pub message: String,
    /// The guest's, where it fell; or empty.
    pub backtrace: String,
    /// Tries that failed: one in its batch and one alone, or one if it was alone from the start; after
    /// `retry`, all of them.
    pub attempts: u32,
    /// The event's ordering key.
    pub key: Arc<[u8]>,
    /// SHA-256 of the state that the event met, in hexadecimal; empty without a state.
    pub state_hash: String,
    pub plugin_version: String,
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
    /// The own time of the last event that it handles; none when it handles none.
    pub passed_at: Option<Micros>,
    /// The new snapshot; none where it has not changed.
    pub saved: Option<Arc<SavedState>>,
    /// Checked effects in order. Later ones on the same row or state entry win.
    pub effects: Vec<Arc<EffectBatch>>,
    /// The tables that the effects' indexes mean, in the manifest's order.
    pub tables: Arc<[TableSchema]>,
    /// Replaces the dead letter of the same event, where there is one.
    pub dead: Vec<DeadLetter>,
    /// Dead letters, by their events' positions, that were replayed or discarded: they are removed.
    pub resolved: Vec<Position>,
    pub parked: ParkedWrites,
    pub at: Micros,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub revision: Revision,
    /// Writes to versioned tables that were left out as stale.
    pub stale: u64,
    /// Entries that were left out because of what their channels are.
    pub dropped: Dropped,
}

/// A dead letter as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRow {
    pub task: TaskId,
    pub event: Arc<EventBatch>,
    pub reason: String,
    pub message: String,
    pub backtrace: String,
    pub attempts: u32,
    pub key: Arc<[u8]>,
    pub state_hash: String,
    pub plugin_version: String,
    /// Its key waits until somebody replays or discards it.
    pub held: bool,
    /// Events of its key that wait behind it.
    pub parked_behind: u64,
    pub at: Micros,
}

/// What stands under a key of a task's keyed state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateValue {
    pub value: Vec<u8>,
    /// The entry is gone for an event whose `at` is not before this; none for never. Who reads decides:
    /// neither the store nor the host leaves an entry out because of it.
    pub expires_at: Option<Micros>,
}

/// One entry of a task's keyed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub expires_at: Option<Micros>,
}

impl StateEntry {
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// Entries in the order of their keys' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    pub entries: Vec<StateEntry>,
    /// There may be more after the last one. A page that says so has one at least.
    pub more: bool,
}

/// Where a page of keyed state ends at the latest. An entry that has more bytes stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimit {
    pub entries: u32,
    pub bytes: usize,
}

impl ScanLimit {
    /// What the bounds of one answer leave of a wish.
    pub fn new(entries: u32) -> Self {
        Self { entries: entries.min(GUEST_SCAN_MAX), bytes: GUEST_SCAN_BYTES_MAX }
    }

    /// Whether a page with so many entries of so many bytes cannot take one more of `next` bytes.
    pub fn ends(&self, entries: usize, bytes: usize, next: usize) -> bool {
        entries >= self.entries as usize || (entries > 0 && bytes + next > self.bytes)
    }
}
impl DeadLetterRow {
    /// What a guest could not handle is the guest's; the host's failures make no dead letters, but where one
    /// should, its reason says so.
    pub fn blame(&self) -> Blame {
        if self.reason == "host" { Blame::Host } else { Blame::Guest }
    }
}

/// How far a task is, for lag and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    pub task: TaskId,
    pub generation: Generation,
    pub position: Position,
    pub revision: Revision,
    pub state_bytes: u64,
    /// Entries of its keyed state, and the bytes of their keys and values.
    pub keyed_entries: u64,
    pub keyed_bytes: u64,
    /// Events that wait for their ordering key, and the keys that a dead letter holds.
    pub parked_events: u64,
    pub held_keys: u64,
    pub dead_letters: u64,
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

    /// Begins a task anew at a position: its rows, state, keyed state and parked events are gone, its dead letters
    /// stay. Durable when it answers. [`CommitError::Fenced`] as for a commit.
    fn forget(
        &self,
        task: &TaskId,
        generation: Generation,
        position: Position,
    ) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// The last commit, without taking the task over; none before the first.
    fn checkpoint(&self, task: &TaskId) -> BoxFuture<'_, Result<Option<Checkpoint>, CommitError>>;

    /// A task's keyed state: what is committed under a key, also when it has expired.
    fn state_get(&self, task: &TaskId, key: &[u8]) -> Result<Option<StateValue>, CommitError>;

    /// Committed entries whose key begins with `prefix`, after the key `after`, in order of bytes,
    /// expired ones included. No more of them than the limit allows is held in memory.
    fn state_scan(
        &self,
        task: &TaskId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<StatePage, CommitError>;

    /// All tasks of a processor, or of all.
    fn tasks(&self, processor: Option<&str>) -> BoxFuture<'_, Result<Vec<TaskRow>, CommitError>>;

    /// The newest `limit` dead letters of a processor; of one tenant where one is given.
    fn dead_letters(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, CommitError>>;

    /// The dead letter of one event, by its position.
    fn dead_letter(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        position: Position,
    ) -> BoxFuture<'_, Result<Option<DeadLetterRow>, CommitError>>;
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
    /// The same effects may be taken later: what stands against them can pass.
    #[error("the effects of task {task} cannot be taken now: {reason}")]
    NotNow { task: TaskId, reason: String },
    #[error(
        "task {task} has a dead letter too many: processor {} has {letters}, dead_letters_max is {max}; replay or discard some", .task.processor
    )]
    DeadLettersFull { task: TaskId, letters: u64, max: u64 },
    /// The stored state is more than any version may load; it was not read.
    #[error(
        "the saved state of task {task} has {bytes} bytes; guest_state_bytes_ceiling is {GUEST_STATE_BYTES_CEILING}: remove the plugin and deploy it again to rebuild its state"
    )]
    StateTooLarge { task: TaskId, bytes: u64 },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for CommitError {
    fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "fenced",
            Self::PositionBack { .. } => "position_back",
            Self::Refused { .. } | Self::NotNow { .. } => "effects_refused",
            Self::DeadLettersFull { .. } => "dead_letters_max",
            Self::StateTooLarge { .. } => "guest_state_bytes_max",
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
            Self::Refused { .. } | Self::DeadLettersFull { .. } | Self::StateTooLarge { .. } => Blame::Guest,
            Self::NotNow { .. } => Blame::Caller,
            _ => Blame::Host,
        }
    }
}
