//! The second level of the cache on a Redis that may forget anything at any time.
//!
//! An entry is a hash with the tokens of its marks as they were when it was missed, the token of the miss and then
//! the value; a mark is a key with a token. A token is random, so one that was evicted and made anew is another one.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;

use super::faults::{backend, remote};
use super::link::RedisLink;
use super::scripts::{CACHE_GET, CACHE_PUT, bytes, list, number};
use crate::cache::{Cache, Entry, Lookup, Stamp, Stored};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{CACHE_LOAD_MAX, CACHE_TTL_CEILING};

/// A [`Cache`] whose keys all begin with the link's name.
#[derive(Clone, Debug)]
pub struct RedisCache {
    link: RedisLink,
}

impl RedisCache {
    pub fn new(link: RedisLink) -> Self {
        Self { link }
    }

    fn keys(&self, entry: &Entry) -> Vec<Vec<u8>> {
        let marks = entry.marks.iter().map(|mark| self.mark(mark));
        std::iter::once(self.value(&entry.name)).chain(marks).collect()
    }

    fn value(&self, name: &str) -> Vec<u8> {
        self.link.key(&format!("cache:v:{name}"))
    }

    fn mark(&self, mark: &str) -> Vec<u8> {
        self.link.key(&format!("cache:m:{mark}"))
    }

    async fn look_up(&self, keys: Vec<Vec<u8>>) -> Result<Lookup, BackendError> {
        let linked = self.link.shared().await?;
        let mut connection = linked.connection;
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let token: [u8; 16] = rand::random();
        let answer = CACHE_GET.run(&mut connection, &keys, |command| {
            command.arg(&token[..]).arg(millis(CACHE_LOAD_MAX)).arg(millis(CACHE_TTL_CEILING));
        });
        let answer = answer.await.map_err(|error| backend("reading the cache", &error));
        let answer = self.link.ended(linked.number, answer).await?;
        let parts = list(answer).unwrap_or_default();
        match (parts.first().and_then(number::<i64>), parts.get(1).and_then(bytes)) {
            (Some(1), Some(value)) => Ok(Lookup::Hit(Bytes::copy_from_slice(value))),
            (Some(0), Some(stamp)) => Ok(Lookup::Miss(Stamp(stamp.to_vec()))),
            _ => Err(remote(RemoteFault::Unsupported, "reading the cache: an answer of another shape")),
        }
    }

    async fn store(
        &self,
        keys: Vec<Vec<u8>>,
        stamp: Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> Result<Stored, BackendError> {
        let linked = self.link.shared().await?;
        let mut connection = linked.connection;
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let answer = CACHE_PUT.run(&mut connection, &keys, |command| {
            command.arg(&stamp.0[..]).arg(&value[..]).arg(millis(ttl));
        });
        let answer = answer.await.map_err(|error| backend("storing in the cache", &error));
        let answer = self.link.ended(linked.number, answer).await?;
        Ok(match number::<i64>(&answer) {
            Some(1) => Stored::Kept,
            Some(2) => Stored::Already,
            _ => Stored::Stale,
        })
    }

    async fn delete(&self, keys: Vec<Vec<u8>>) -> Result<(), BackendError> {
        if keys.is_empty() {
            return Ok(());
        }
        let linked = self.link.shared().await?;
        let mut connection = linked.connection;
        let mut command = redis::cmd("UNLINK");
        command.arg(keys);
        let answer = command.query_async::<Value>(&mut connection).await;
        let answer = answer.map_err(|error| backend("removing from the cache", &error));
        self.link.ended(linked.number, answer).await.map(drop)
    }
}

impl Cache for RedisCache {
    fn get(&self, entry: &Entry) -> BoxFuture<'_, Result<Lookup, BackendError>> {
        self.look_up(self.keys(entry)).boxed()
    }

    fn put(
        &self,
        entry: &Entry,
        stamp: &Stamp,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Stored, BackendError>> {
        self.store(self.keys(entry), stamp.clone(), value, ttl).boxed()
    }

    fn remove(&self, names: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        self.delete(names.iter().map(|name| self.value(name)).collect()).boxed()
    }

    /// A mark that is not there has another token the next time somebody asks.
    fn invalidate(&self, marks: &[String]) -> BoxFuture<'_, Result<(), BackendError>> {
        self.delete(marks.iter().map(|mark| self.mark(mark)).collect()).boxed()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
