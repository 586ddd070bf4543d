//! The host's own store.

use super::{ProblemKind, host};

pub(super) const STORAGE: &[ProblemKind] = &[
    host(507, "disk_full", "the host's disk is full", "free space on the host; nothing acknowledged is lost"),
    host(
        507,
        "disk_low",
        "the host's disk is almost full",
        "free space on the host, or lower store.disk_free_bytes_min; nothing acknowledged is lost",
    ),
    host(
        503,
        "outbox_events_max",
        "too many emitted events wait for the log",
        "make the server of the log reachable; the commit is tried again by itself",
    ),
    host(
        503,
        "host_starting",
        "the host is starting",
        "try again in a moment; /readyz says what it waits for",
    ),
    host(503, "store_closed", "the store is closed", "try again in a moment"),
    host(503, "storage_failed", "the store failed", "try again; see the host's log"),
];
