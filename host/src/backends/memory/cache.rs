//! A second level in memory: for tests, and for embedders whose hosts share a process.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use crate::cache::{Cache, Entry, Lookup, Shelf, Stamp, Stored};
use crate::error::BackendError;

/// A [`Cache`] that is gone with its process.
#[derive(Debug)]
pub struct MemoryCache(Shelf);

impl MemoryCache {
    pub fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self(Shelf::new(entries_max, bytes_max))
    }
}

impl Cache for MemoryCache {
    fn get(&self, entry: &Entry) -> BoxFuture<'_, Result<Lookup, BackendError>> {
        ready(Ok(self.0.get(entry))).boxed()
    }

    fn put(
        &self,
        entry: &Entry,
        stamp: &Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Stored, BackendError>> {
        ready(Ok(self.0.put(entry, stamp, value, ttl))).boxed()
    }

    fn remove(&self, names: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        self.0.remove(names);
        ready(Ok(())).boxed()
    }

    fn invalidate(&self, marks: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        self.0.invalidate(marks);
        ready(Ok(())).boxed()
    }
}
