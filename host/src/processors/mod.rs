//! From source to commit: feeds, lanes, retries, dead letters, supervision.
//!
//! Promises: events of one ordering key reach a processor in stream order; an
//! event is handled at least once and its effects count exactly once, since
//! they commit with the position; a failing task never takes its neighbours
//! with it. Deliberately absent: WebAssembly. A [`Processor`] is plain Rust
//! here; `plugins` makes one out of a component.

mod counters;
mod feed;
mod keyed;
mod lane;
mod manifest;
mod pool;
mod proof;
mod runner;
mod shadow;
mod task;
mod worker;

use std::fmt::Debug;
use std::sync::Arc;

pub use counters::Counts;
pub use manifest::{InvalidManifest, Manifest, OrderingKey, Subscription};
pub use pool::GuestPool;
pub use proof::prove_at_rest;
pub use runner::{Engine, ProcessorSettings, Runner, RunnerStatus, SwapError};
pub use shadow::{
    Differences, Expect, RowDifference, ShadowFault, ShadowOutcome, ShadowRefusal, ShadowReport,
    ShadowSettings, VersionFigures,
};

use crate::checkpoints::{CommitError, EffectBatch, SavedState, StateEntry};
use crate::event::{EventBatch, Micros, TenantId};

/// One instance of a processor: it belongs to one task, and is called from one thread at a time.
///
/// After any [`Trap`] the instance must not be used again.
pub trait Processor: Send {
    /// Called once, before anything else.
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError>;

    /// Handles a batch of events in order; means the same as one by one.
    /// The effects are those of the first `handled` events and have passed [`EffectBatch::check`].
    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap>;

    /// Time-driven work.
    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap>;

    /// The state to restart from. Not called for a processor without a state content type.
    fn snapshot(&mut self) -> Result<Vec<u8>, Trap>;

    /// Linear memory of the instance; 0 where it has none of its own.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// A loaded version of a processor, from which each task gets its own instance.
pub trait ProcessorFactory: Send + Sync + Debug {
    fn manifest(&self) -> &Manifest;

    /// Names the exact code: the digest of a component's bytes.
    fn digest(&self) -> &str;

    /// A new instance. Cheap: the code is compiled already.
    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap>;
}

/// What an instance is given to live with.
#[derive(Clone, Debug)]
pub struct TaskContext {
    pub tenant: TenantId,
    pub lane: u32,
    pub lanes: u32,
    /// Reads of the task's keyed state: what is committed, or handed back and not yet committed.
    pub state: Arc<dyn StateReader>,
}

/// Reads of one task's keyed state, as its instance may see it. Blocks for storage.
pub trait StateReader: Send + Sync + Debug {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CommitError>;

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<StateEntry>, CommitError>;
}

/// What became of a batch. `failure`, if any, is about event number `handled`.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub handled: usize,
    pub effects: EffectBatch,
    pub failure: Option<Failure>,
}

/// An event that could not be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Transient.
    Retry,
    /// The event is bad.
    Reject,
    /// The processor cannot go on.
    Fatal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushReason {
    Tick,
    Shutdown,
    Swap,
}

/// The end of an instance: it broke a rule of the sandbox or fell over.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Trap {
    pub kind: TrapKind,
    /// With the guest's backtrace, where there is one.
    pub message: String,
    pub at: Option<Micros>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// The guest's code failed.
    Trap,
    /// A call took longer than `guest_call_max`.
    Timeout,
    /// More memory, output or other resources than allowed.
    Limit,
    /// What it handed back is not acceptable.
    Output,
    /// The host could not serve the instance; not the guest's fault.
    Host,
}

impl std::fmt::Display for TrapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Limit => "limit",
            Self::Output => "output",
            Self::Host => "host",
        })
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    #[error("the processor refused its state: {message}")]
    Refused { message: String },
    #[error(transparent)]
    Trap(#[from] Trap),
}
