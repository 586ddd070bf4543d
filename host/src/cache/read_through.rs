//! Reads through both levels, and says what is no longer good.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use metrics::counter;
use tokio::sync::watch;

use super::first::Shelf;
use super::flights::{Boarded, Flights, Landed, follow};
use super::second::Second;
use super::{Cache, Change, Entry, Keyspace, Lookup, Partition, Stamp, Stored};
use crate::limits::{CACHE_BYTES_MAX, CACHE_ENTRIES_MAX, CACHE_TTL, CACHE_VALUE_BYTES_MAX};
use crate::telemetry::metrics::{
    CACHE_COALESCED, CACHE_HITS, CACHE_LOADS, CACHE_MISSES, CACHE_STALE_STORES, CACHE_TOO_LARGE,
};

/// Bounds of the first level, and how long a value lasts in any.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    pub entries_max: usize,
    pub bytes_max: usize,
    pub ttl: Duration,
    /// Whether values are kept in this process. Without, only the second level keeps some.
    pub first_level: bool,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { entries_max: CACHE_ENTRIES_MAX, bytes_max: CACHE_BYTES_MAX, ttl: CACHE_TTL, first_level: true }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    entry: Entry,
    fence: u64,
}

impl Ask {
    pub fn new(keyspace: &Keyspace, partition: &Partition, key: &str) -> Self {
        Self { entry: keyspace.entry(partition, key), fence: 0 }
    }

    /// Leaves out values as of anything before this.
    #[must_use]
    pub fn as_of(mut self, fence: u64) -> Self {
        self.fence = fence;
        self
    }
}

/// A value, and as of what it was read, where the source counts its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// None where there is nothing, which is not kept.
    pub value: Option<Bytes>,
    pub as_of: u64,
}

impl From<Bytes> for Loaded {
    fn from(value: Bytes) -> Self {
        Self { value: Some(value), as_of: 0 }
    }
}

/// The cache as its users see it. Clones are the same one.
///
/// Reads never fail because of the cache: what no level can say is loaded.
#[derive(Clone, Debug)]
pub struct ReadThrough {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    ttl: Duration,
    first: Shelf,
    second: Option<Second>,
    flights: Flights,
    /// Keyspaces of rows, whose keys a change names, and all entities that any keyspace depends on.
    rows: RwLock<HashSet<Keyspace>>,
    entities: RwLock<HashSet<Arc<str>>>,
    pub(super) has_entities: watch::Sender<bool>,
}

impl ReadThrough {
    pub fn new(options: &CacheOptions, second: Option<Arc<dyn Cache>>) -> Self {
        let first = match options.first_level {
            true => Shelf::new(options.entries_max, options.bytes_max),
            false => Shelf::without_values(options.entries_max),
        };
        let inner = Inner {
            ttl: options.ttl,
            first,
            second: second.map(Second::new),
            flights: Flights::default(),
            rows: RwLock::default(),
            entities: RwLock::default(),
            has_entities: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Makes a keyspace's entity known, so that its changes invalidate. Once, before the first read.
    #[must_use]
    pub fn keyspace(&self, keyspace: Keyspace) -> Keyspace {
        if let Some(entity) = keyspace.entity() {
            let inner = &self.inner;
            inner.entities.write().expect(UNBROKEN).insert(Arc::clone(entity));
            if matches!(keyspace.holds, super::Holds::RowsOf(_)) {
                inner.rows.write().expect(UNBROKEN).insert(keyspace.clone());
            }
            inner.has_entities.send_replace(true);
        }
        keyspace
    }

    /// The value that is kept, or what `load` answers, which is kept. `load` runs for one of those who wait for the
    /// same; its error is answered to its caller alone, and the others load for themselves.
    pub async fn get_or_load<E>(
        &self,
        ask: &Ask,
        load: impl Future<Output = Result<Loaded, E>>,
    ) -> Result<Loaded, E> {
        let mut waited = false;
        loop {
            let stamp = match self.first(ask) {
                Ok(loaded) => return Ok(loaded),
                Err(stamp) => stamp,
            };
            match self.inner.flights.board(&(ask.entry.name.clone(), stamp.clone(), ask.fence)) {
                Boarded::Leads(flight) => {
                    let loaded = self.second_or_load(ask, &stamp, load).await;
                    flight
                        .land(loaded.as_ref().map_or(Landed::Failed, |found| Landed::Loaded(found.clone())));
                    return loaded;
                }
                Boarded::Follows(waiting) => {
                    if !std::mem::replace(&mut waited, true) {
                        counter!(CACHE_COALESCED).increment(1);
                    }
                    match follow(waiting).await {
                        // Read before what this caller may have been told of.
                        Some(Landed::Loaded(loaded)) if loaded.as_of < ask.fence => {
                            return self.load(load).await;
                        }
                        Some(Landed::Loaded(loaded)) => return Ok(loaded),
                        Some(Landed::Failed) => return self.load(load).await,
                        None => {}
                    }
                }
            }
        }
    }

    /// The value that is kept, if any is.
    pub async fn get(&self, ask: &Ask) -> Option<Bytes> {
        let stamp = match self.first(ask) {
            Ok(loaded) => return loaded.value,
            Err(stamp) => stamp,
        };
        let found = self.second(ask).await?.ok()?;
        self.keep_first(ask, &stamp, &found);
        found.value
    }

    /// Keeps a value in place of another one, unless it is removed or invalidated meanwhile.
    pub async fn set(&self, ask: &Ask, value: Bytes) {
        let loaded = Loaded { value: Some(value), as_of: ask.fence };
        self.remove_names(vec![ask.entry.name.clone()]).await;
        let Err(stamp) = self.first(ask) else { return };
        let second = self.second(ask).await;
        self.keep(ask, &stamp, second.and_then(Result::err), &loaded).await;
    }

    /// Removes values.
    pub async fn remove(&self, keyspace: &Keyspace, partition: &Partition, keys: &[&str]) {
        self.remove_names(keys.iter().map(|key| keyspace.entry(partition, key).name).collect()).await;
    }

    /// Forgets all values of a keyspace in a partition, of every version.
    pub async fn invalidate_keyspace(&self, keyspace: &Keyspace, partition: &Partition) {
        self.invalidate(Vec::new(), vec![keyspace.mark(partition)]).await;
    }

    /// Forgets what may be made of what was changed, in both levels. After the change can be read, and before
    /// anybody is told of it: who reads afterwards finds nothing older.
    pub async fn changed(&self, change: Change<'_>) {
        self.invalidate(self.names_of(&change), change.marks()).await;
    }

    /// The same in this process alone, for what another host has changed and said to the second level.
    pub fn evict(&self, change: Change<'_>) {
        if self.inner.entities.read().expect(UNBROKEN).contains(change.entity) {
            self.inner.first.remove(&self.names_of(&change));
            self.inner.first.invalidate(&change.marks());
        }
    }

    /// Forgets all that is kept in this process.
    pub fn evict_all(&self) {
        self.inner.first.clear();
    }

    /// Entries of the first level, misses included, and about their bytes.
    pub fn size(&self) -> (usize, usize) {
        self.inner.first.size()
    }

    fn names_of(&self, change: &Change<'_>) -> Vec<String> {
        let rows = self.inner.rows.read().expect(UNBROKEN);
        let of_entity =
            rows.iter().filter(|keyspace| keyspace.entity().is_some_and(|e| **e == *change.entity));
        of_entity.flat_map(|keyspace| change.names(keyspace)).collect()
    }

    async fn remove_names(&self, names: Vec<String>) {
        self.invalidate(names, Vec::new()).await;
    }

    /// The second level first: who misses the first one in between would bring its value back. The first one also
    /// when the caller goes away.
    async fn invalidate(&self, names: Vec<String>, marks: Vec<String>) {
        let _then = Evict { first: &self.inner.first, names: names.clone(), marks: marks.clone() };
        if let Some(second) = &self.inner.second {
            second.invalidate(names, marks).await;
        }
    }

    fn first(&self, ask: &Ask) -> Result<Loaded, Stamp> {
        loop {
            match self.inner.first.get(&ask.entry) {
                Lookup::Miss(stamp) => return Err(stamp),
                Lookup::Hit(value) => match unframed(&value).filter(|found| found.as_of >= ask.fence) {
                    Some(found) => {
                        counter!(CACHE_HITS, "level" => "first").increment(1);
                        return Ok(found);
                    }
                    // It will not be asked for again.
                    None => self.inner.first.remove(std::slice::from_ref(&ask.entry.name)),
                },
            }
        }
    }

    /// What the second level has; none where there is no such level, or it cannot say.
    async fn second(&self, ask: &Ask) -> Option<Result<Loaded, Stamp>> {
        let second = self.inner.second.as_ref()?;
        match second.get(&ask.entry).await? {
            Lookup::Miss(stamp) => Some(Err(stamp)),
            Lookup::Hit(value) => match unframed(&value).filter(|found| found.as_of >= ask.fence) {
                Some(found) => {
                    counter!(CACHE_HITS, "level" => "second").increment(1);
                    Some(Ok(found))
                }
                None => {
                    second.invalidate(vec![ask.entry.name.clone()], Vec::new()).await;
                    match second.get(&ask.entry).await? {
                        Lookup::Miss(stamp) => Some(Err(stamp)),
                        Lookup::Hit(_) => None,
                    }
                }
            },
        }
    }

    async fn second_or_load<E>(
        &self,
        ask: &Ask,
        stamp: &Stamp,
        load: impl Future<Output = Result<Loaded, E>>,
    ) -> Result<Loaded, E> {
        let second = match self.second(ask).await {
            Some(Ok(found)) => {
                self.keep_first(ask, stamp, &found);
                return Ok(found);
            }
            Some(Err(stamp)) => Some(stamp),
            None => None,
        };
        counter!(CACHE_MISSES).increment(1);
        let loaded = self.load(load).await?;
        self.keep(ask, stamp, second, &loaded).await;
        Ok(loaded)
    }

    async fn load<E>(&self, load: impl Future<Output = Result<Loaded, E>>) -> Result<Loaded, E> {
        counter!(CACHE_LOADS).increment(1);
        load.await
    }

    async fn keep(&self, ask: &Ask, stamp: &Stamp, second_stamp: Option<Stamp>, loaded: &Loaded) {
        if loaded.value.as_ref().is_some_and(|value| value.len() > CACHE_VALUE_BYTES_MAX) {
            counter!(CACHE_TOO_LARGE).increment(1);
            return;
        }
        self.keep_first(ask, stamp, loaded);
        let (Some(second), Some(stamp)) = (&self.inner.second, second_stamp) else { return };
        let Some(value) = worth_keeping(ask, loaded) else { return };
        if second.put(&ask.entry, &stamp, value, self.inner.ttl).await == Some(Stored::Stale) {
            counter!(CACHE_STALE_STORES, "level" => "second").increment(1);
        }
    }

    fn keep_first(&self, ask: &Ask, stamp: &Stamp, loaded: &Loaded) {
        let Some(value) = worth_keeping(ask, loaded) else { return };
        if self.inner.first.put(&ask.entry, stamp, value, self.inner.ttl) == Stored::Stale {
            counter!(CACHE_STALE_STORES, "level" => "first").increment(1);
        }
    }
}

const UNBROKEN: &str = "no code panics while it holds the lists of keyspaces";

/// What is forgotten in the first level at the end of an invalidation, however that ends.
struct Evict<'a> {
    first: &'a Shelf,
    names: Vec<String>,
    marks: Vec<String>,
}

impl Drop for Evict<'_> {
    fn drop(&mut self) {
        self.first.remove(&self.names);
        self.first.invalidate(&self.marks);
    }
}

/// A value as both levels hold it; none of what is not kept: nothing, and what was read before a change that is under
/// way.
fn worth_keeping(ask: &Ask, loaded: &Loaded) -> Option<Bytes> {
    let value = loaded.value.as_ref()?;
    if loaded.as_of < ask.fence {
        return None;
    }
    let mut framed = BytesMut::with_capacity(8 + value.len());
    framed.put_u64_le(loaded.as_of);
    framed.put_slice(value);
    Some(framed.freeze())
}

fn unframed(held: &Bytes) -> Option<Loaded> {
    let (as_of, _) = held.split_first_chunk::<8>()?;
    Some(Loaded { value: Some(held.slice(8..)), as_of: u64::from_le_bytes(*as_of) })
}
