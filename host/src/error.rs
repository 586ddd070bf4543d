//! What every error can answer: whether to try again, and whose fault it was.

use std::time::Duration;

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail the same way.
    Never,
    /// Not before this has passed.
    After(Duration),
}

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    Host,
    Guest,
    Caller,
}

impl Blame {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Caller => "caller",
        }
    }
}

/// The questions that every error of a module answers.
pub trait Classify {
    /// A stable code for clients, such as `position_lost`.
    fn code(&self) -> &'static str;
    fn retry(&self) -> Retry;
    fn blame(&self) -> Blame;
}

/// What a storage technology failed with. The text is for the operator's log, not for clients.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    #[error("the disk is full: {detail}")]
    DiskFull { detail: String },
    #[error("free space is {free_bytes} bytes, under disk_free_bytes_min = {min_bytes}")]
    DiskLow { free_bytes: u64, min_bytes: u64 },
    #[error("the store is closed")]
    Closed,
    /// The log does not take what processors emit.
    #[error("{events} emitted events of the plugin wait for the log; outbox_events_max is {max}")]
    OutboxFull { events: u64, max: u64 },
    #[error("storage failed: {detail}")]
    Failed { detail: String },
    /// A server across the network.
    #[error("{fault}: {detail}")]
    Remote { fault: RemoteFault, detail: String },
}

/// How a server across the network stands in the way. The texts say what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteFault {
    #[error("the server cannot be reached")]
    Unreachable,
    #[error("the server did not answer in time")]
    Timeout,
    #[error(
        "the server refuses these credentials; correct user and password in the address, and the user's rights"
    )]
    Denied,
    #[error("the server is a read-only replica; give the address of the primary, or of its sentinels")]
    ReadOnly,
    #[error("the server is still loading its data")]
    Loading,
    #[error("the server's memory is full; raise its maxmemory or keep fewer events")]
    Full,
    #[error("a key of the log holds something else; give the log another name or remove the key")]
    WrongType,
    #[error("the server cannot serve here")]
    Unsupported,
    #[error(
        "the server would not keep what it acknowledges; change its settings, or ask for less with `ack`"
    )]
    NotDurable,
    #[error(
        "the log there is another one than the store has worked with; give the former address, or another data folder"
    )]
    OtherLog,
    #[error("too few replicas have taken what was written")]
    NotReplicated,
}

impl Classify for BackendError {
    fn code(&self) -> &'static str {
        match self {
            Self::DiskFull { .. } => "disk_full",
            Self::DiskLow { .. } => "disk_low",
            Self::Closed => "store_closed",
            Self::OutboxFull { .. } => "outbox_events_max",
            Self::Failed { .. } => "storage_failed",
            Self::Remote { fault, .. } => fault.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::DiskFull { .. } | Self::DiskLow { .. } => Retry::After(Duration::from_secs(5)),
            Self::Closed | Self::OutboxFull { .. } => Retry::After(Duration::from_secs(1)),
            Self::Failed { .. } => Retry::After(Duration::from_secs(1)),
            Self::Remote { fault, .. } => fault.retry(),
        }
    }

    fn blame(&self) -> Blame {
        Blame::Host
    }
}

impl RemoteFault {
    fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "backend_unreachable",
            Self::Timeout => "backend_timeout",
            Self::Denied => "backend_denied",
            Self::ReadOnly => "backend_read_only",
            Self::Loading => "backend_loading",
            Self::Full => "backend_full",
            Self::WrongType => "backend_wrong_type",
            Self::Unsupported => "backend_unsupported",
            Self::NotDurable => "backend_not_durable",
            Self::OtherLog => "backend_other_log",
            Self::NotReplicated => "backend_not_replicated",
        }
    }

    /// What only a person can change is not worth another try.
    fn retry(self) -> Retry {
        match self {
            Self::Denied | Self::WrongType | Self::Unsupported | Self::NotDurable | Self::OtherLog => {
                Retry::Never
            }
            Self::Full => Retry::After(Duration::from_secs(5)),
            Self::Unreachable | Self::Timeout | Self::ReadOnly | Self::Loading | Self::NotReplicated => {
                Retry::After(Duration::from_secs(1))
            }
        }
    }
}
