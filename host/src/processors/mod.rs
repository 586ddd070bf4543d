//! From source to commit: feeds, lanes, retries, dead letters, supervision.
//!
//! Promises: events of one ordering key reach a processor in stream order; an
//! event is handled at least once and its effects count exactly once, since
//! they commit with the position; a failing task never takes its neighbours
//! with it. Deliberately absent: WebAssembly. A [`Processor`] is plain Rust
//! here; `plugins` makes one out of a component.

mod breaker;
mod conduct;
mod core_time;
mod counters;
mod feed;
mod histogram;
mod keyed;
mod lane;
mod lost;
mod manifest;
mod measures;
mod owned;
mod parked;
mod pool;
mod proof;
mod rebuild;
mod relay;
mod resolve;
mod run_end;
mod runner;
mod settings;
mod shadow;
pub mod source;
mod spans;
mod task;
mod worker;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use breaker::BreakerState;
pub use core_time::waited_for_core;
pub use counters::{Counts, VersionCounters};
pub(crate) use lane::key_of;
pub use lane::lane_of_event;
pub use lost::LostPolicy;
pub use manifest::{InvalidManifest, Manifest, OrderingKey, Subscription};
pub use measures::{
    CodeState, Exposed, Measures, Shape, TrapCounts, VersionMeasures, exposition, lag_seconds,
};
pub use pool::{GuestPool, call_is_long};
pub use proof::{context_at_rest, prove_at_rest};
pub use rebuild::{Ahead, Dropped, RebuildStep, Renamed, is_shadow_name, shadow_name};
pub use relay::{Carried, Relay};
pub use resolve::{ResolveError, Resolved, Verdict};
pub use runner::{Engine, Runner, RunnerStatus, SharedLog, SwapError, TaskState};
pub use settings::ProcessorSettings;
pub use shadow::{
    Differences, Expect, RowDifference, ShadowFault, ShadowOutcome, ShadowRefusal, ShadowReport,
    ShadowSettings, VersionFigures,
};

use crate::checkpoints::{CommitError, EffectBatch, SavedState, ScanLimit, StatePage, StateValue};
use crate::error::Blame;
use crate::event::{EventBatch, Micros, TenantId};
use crate::limits::GUEST_STATE_BYTES_MAX;

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

    /// The memory that the instance holds now, for its status. Read once a turn.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// A loaded version of a processor, from which each task gets its own instance.
pub trait ProcessorFactory: Send + Sync + Debug {
    fn manifest(&self) -> &Manifest;

    /// Names the exact code: the digest of a component's bytes.
    fn digest(&self) -> &str;

    /// The world that it was built for, such as `millrace:processor@0.1.0`; none of what is no component.
    fn world(&self) -> Option<&str> {
        None
    }

    /// The largest state that its instances save and load.
    fn state_bytes_max(&self) -> usize {
        GUEST_STATE_BYTES_MAX
    }

    /// A new instance. Cheap: the code is compiled already. After [`ProcessorFactory::rest`] it is loaded
    /// first, which takes a millisecond or two, or as long as compiling does.
    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap>;

    /// Whether another instance may be made now. Who finds no room does nothing, and asks again.
    fn has_room(&self) -> bool {
        true
    }

    /// Gives back what instances are made of, unless one lives or one was made within this time. The next one
    /// brings it back. Does not block.
    fn rest(&self, _idle: Duration) {}

    /// Whether what instances are made of is in memory.
    fn is_loaded(&self) -> bool {
        true
    }
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
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, CommitError>;

    /// Holds about two answers of this limit in memory, and no more.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: ScanLimit) -> Result<StatePage, CommitError>;
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

/// What happens to an ordering key whose event became a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailurePolicy {
    /// The key waits, in order, until somebody replays or discards the letter.
    #[default]
    Hold,
    /// The key goes on; a later replay is out of order.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushReason {
    Tick,
    Shutdown,
    Swap,
}

/// The end of an instance: it broke a rule of the sandbox or fell over.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {}", self.said())]
pub struct Trap {
    pub kind: TrapKind,
    pub message: String,
    /// The guest's functions at its end, innermost first, with readable names; empty where there is none.
    pub backtrace: String,
    pub at: Option<Micros>,
}

impl Trap {
    /// A trap without a backtrace.
    pub fn new(kind: TrapKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), backtrace: String::new(), at: None }
    }

    /// The message, and below it the backtrace where there is one.
    pub fn said(&self) -> String {
        if self.backtrace.is_empty() {
            self.message.clone()
        } else {
            format!("{}\n{}", self.message, self.backtrace)
        }
    }
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

impl TrapKind {
    pub fn blame(self) -> Blame {
        match self {
            Self::Host => Blame::Host,
            Self::Trap | Self::Timeout | Self::Limit | Self::Output => Blame::Guest,
        }
    }
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
    /// It was not handed over: the instance would have run out of memory over it.
    #[error(
        "the saved state has {bytes} bytes; guest_state_bytes_max is {max}: raise plugins.<name>.state_bytes_max, or rebuild the plugin with what grows in keyed state"
    )]
    StateTooLarge { bytes: u64, max: u64 },
    #[error(transparent)]
    Trap(#[from] Trap),
}

impl LoadError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Refused { .. } | Self::StateTooLarge { .. } => Blame::Guest,
            Self::Trap(trap) => trap.kind.blame(),
        }
    }
}
