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
    #[error("storage failed: {detail}")]
    Failed { detail: String },
}

impl Classify for BackendError {
    fn code(&self) -> &'static str {
        match self {
            Self::DiskFull { .. } => "disk_full",
            Self::DiskLow { .. } => "disk_low",
            Self::Closed => "store_closed",
            Self::Failed { .. } => "storage_failed",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::DiskFull { .. } | Self::DiskLow { .. } => Retry::After(Duration::from_secs(5)),
            Self::Closed => Retry::After(Duration::from_secs(1)),
            Self::Failed { .. } => Retry::After(Duration::from_secs(1)),
        }
    }

    fn blame(&self) -> Blame {
        Blame::Host
    }
}
