//! Copies of what is costly to read, good for as long as nothing has changed.
//!
//! Promises: a copy belongs to a tenant (or is declared to be everybody's) and to a version of its keyspace; a load
//! that began before an invalidation is never stored after it; of many who miss the same at the same time one
//! loads; a second level that is away or fails changes no answer; every copy ends after a bounded time.
//! Two levels: the first in this process ([`ReadThrough`]), the second behind the seam [`Cache`], shared by hosts.
//! Deliberately absent: writes through to the store. Whoever changes something says so afterwards.

mod first;
mod flights;
mod follow;
mod names;
mod read_through;
mod rows;
mod second;

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use first::Shelf;
pub use names::{Change, Entry, Holds, Keyspace, Partition};
pub use read_through::{Ask, CacheOptions, Loaded, ReadThrough};
pub use rows::CachedTables;

use crate::error::BackendError;

/// What was true of an entry when it was missed. Opaque; it is given back with what was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp(pub Vec<u8>);

/// The answer to [`Cache::get`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Hit(Bytes),
    Miss(Stamp),
}

/// The answer to [`Cache::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Kept,
    /// Somebody who missed the same was faster.
    Already,
    /// Something was invalidated, removed or lost since the miss. Nothing is kept.
    Stale,
}

/// Values that may be gone at any time, and never come back once they were invalidated.
///
/// An entry has a name and marks; moving a mark invalidates every entry that has it. Each method is one atomic step.
/// Nothing is durable. What was forgotten (evicted, expired, lost with its server) is a miss and makes no earlier
/// value valid: marks and misses have tokens that are never used twice, not counters that could begin again. A
/// server that fails over to a replica may lose the newest invalidations; then the entries' time is the bound.
/// Calls may fail or be slow, and may be repeated.
pub trait Cache: Send + Sync + Debug {
    /// The value, if it was stored under its marks as they are now. Otherwise a stamp, the same for all who miss until
    /// the entry is stored or removed, or one of its marks moved.
    fn get(&self, entry: &Entry) -> BoxFuture<'_, Result<Lookup, BackendError>>;

    /// Stores what was loaded after a miss, for a time, unless the miss is no longer the last word.
    fn put(
        &self,
        entry: &Entry,
        stamp: &Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Stored, BackendError>>;

    /// Removes values by the names of their entries, and refuses what was being loaded for them. One that is not
    /// there is no error.
    fn remove(&self, names: &[String]) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Moves marks.
    fn invalidate(&self, marks: &[String]) -> BoxFuture<'_, Result<(), BackendError>>;
}
