//! What the store is opened with, and why it may not open.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::channels::ChannelLimits;
use crate::clock::{Clock, SystemClock};
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::limits::{
    CHANNEL_UNSETTLED_BYTES_MAX, DEAD_LETTERS_MAX, DEDUP_EVENTS_MAX, DISK_FREE_BYTES_MIN,
    KEYED_STATE_BYTES_MAX, KEYED_STATE_ENTRIES_MAX, STATE_EXPIRED_KEEP, TAIL_BYTES_MAX, TOMBSTONE_AGE_MAX,
    WAL_BYTES_HARD_MAX, WAL_BYTES_SOFT_MAX,
};
use crate::streams::Retention;

/// When a commit counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// After fdatasync.
    #[default]
    Full,
    /// When the system has it: a power cut loses acknowledged events. It exists
    /// so that the power-cut tests can show that they would notice.
    Off,
}

/// Where the log is whose events the store's tasks handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogPlace {
    /// In the store itself.
    #[default]
    Own,
    /// What tasks emit goes to the outbox.
    Elsewhere,
}

/// Where the way of a commit can be cut, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitStep {
    /// The transaction has begun; nothing is written.
    Begun,
    /// The rows are written.
    Rows,
    /// The keyed state is written.
    KeyedState,
    /// The emitted events are in the log.
    Emitted,
    /// What was appended is in its channels, and in the log where it is events, too.
    Appended,
    /// Dead letters are written or removed.
    DeadLetters,
    /// What is parked is written.
    Parked,
    /// Snapshot and position are written; all of one commit is.
    Position,
    /// The transaction is committed and synced; nobody knows.
    Synced,
    /// The tail shows the emitted events, and followers of channels are told; nobody has an answer.
    Published,
    /// The answers are given.
    Answered,
}

impl CommitStep {
    pub const ALL: [Self; 11] = [
        Self::Begun,
        Self::Rows,
        Self::KeyedState,
        Self::Emitted,
        Self::Appended,
        Self::DeadLetters,
        Self::Parked,
        Self::Position,
        Self::Synced,
        Self::Published,
        Self::Answered,
    ];
}

/// Is told each step of every commit, on the committer's thread. It exists so that tests can look at what a
/// host that ends at this very step leaves behind.
#[derive(Clone)]
pub struct StepObserver(pub Arc<dyn Fn(CommitStep) + Send + Sync>);

impl std::fmt::Debug for StepObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StepObserver")
    }
}

/// How to open the store. `SqliteOptions::new(dir)` has the defaults.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// Holds `millrace.db`, its WAL and `LOCK`. Created when missing.
    pub dir: PathBuf,
    pub synchronous: Synchronous,
    pub log: LogPlace,
    /// Applied once a second.
    pub retention: Retention,
    /// Free space under which appends are refused with `disk_low`. 0 turns the guard off.
    pub disk_free_bytes_min: u64,
    /// Largest size of the database file; beyond, writes answer `disk_full`. None leaves it to the disk.
    pub database_bytes_max: Option<u64>,
    pub dedup_events_max: usize,
    /// Bits of the dedup window's hash. Fewer than 64 only serve to prove that collisions do no harm.
    pub dedup_hash_bits: u32,
    /// Bytes of recent events kept in memory for tails.
    pub tail_bytes_max: usize,
    /// How long a delete is remembered.
    pub tombstone_age_max: Duration,
    /// Dead letters of one processor; a commit with one more is refused.
    pub dead_letters_max: u64,
    /// Of one task's keyed state. A commit that goes beyond is refused.
    pub keyed_state_bytes_max: u64,
    pub keyed_state_entries_max: u64,
    /// Entries that one change stream keeps, about; none keeps all. More than a fourth beyond it, the oldest go.
    pub change_stream_events_max: Option<u64>,
    /// How long an expired entry of keyed state is kept.
    pub state_expired_keep: Duration,
    pub wal_bytes_soft_max: u64,
    pub wal_bytes_hard_max: u64,
    /// Bounds of processes and their channels.
    pub channels: ChannelLimits,
    /// Bytes of their entries that lie in memory as well and wait to be settled. The configuration does not have it: it
    /// exists so that tests come to it.
    pub channel_unsettled_bytes_max: usize,
    pub clock: Arc<dyn Clock>,
    pub observer: Option<StepObserver>,
}

impl SqliteOptions {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            synchronous: Synchronous::Full,
            log: LogPlace::Own,
            retention: Retention::default(),
            disk_free_bytes_min: DISK_FREE_BYTES_MIN,
            database_bytes_max: None,
            dedup_events_max: DEDUP_EVENTS_MAX,
            dedup_hash_bits: 64,
            tail_bytes_max: TAIL_BYTES_MAX,
            tombstone_age_max: TOMBSTONE_AGE_MAX,
            dead_letters_max: DEAD_LETTERS_MAX,
            keyed_state_bytes_max: KEYED_STATE_BYTES_MAX,
            keyed_state_entries_max: KEYED_STATE_ENTRIES_MAX,
            change_stream_events_max: None,
            state_expired_keep: STATE_EXPIRED_KEEP,
            wal_bytes_soft_max: WAL_BYTES_SOFT_MAX,
            wal_bytes_hard_max: WAL_BYTES_HARD_MAX,
            channels: ChannelLimits::default(),
            channel_unsettled_bytes_max: CHANNEL_UNSETTLED_BYTES_MAX,
            clock: Arc::new(SystemClock),
            observer: None,
        }
    }
}

/// Why the store did not open.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("the store in `{dir}` is in use by {holder}; stop it first, or choose another directory")]
    Locked { dir: String, holder: String },
    #[error("the store has schema {found}, this version knows up to {known}; use a newer millrace")]
    NewerSchema { found: i64, known: i64 },
    #[error(
        "the store in `{dir}` has worked with a log elsewhere, whose positions mean nothing in its own; give serve.log again, or choose another directory"
    )]
    LogElsewhere { dir: String },
    #[error(
        "the store in `{dir}` has a log of its own, whose positions mean nothing elsewhere; leave serve.log out, or choose another directory"
    )]
    LogOwn { dir: String },
    #[error("cannot use the directory `{dir}`: {detail}")]
    Directory { dir: String, detail: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for OpenError {
    fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "store_locked",
            Self::NewerSchema { .. } => "store_newer_schema",
            Self::LogElsewhere { .. } | Self::LogOwn { .. } => "store_other_log",
            Self::Directory { .. } => "store_directory",
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
        Blame::Host
    }
}
