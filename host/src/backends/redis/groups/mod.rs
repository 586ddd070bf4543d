//! Groups of consumers that several hosts share: their state lies in the server, beside the log.
//!
//! Each step is one script, so that hosts need not know of each other; times are the server's. A script is given
//! positions and keys of events, which the host has read from the log anyway, and answers positions: payloads go through
//! a script only when an event becomes a dead letter, which outlives the log's events. Leases outlive a host. A lease whose
//! event a host then cannot read goes back at once, and was no attempt.
//!
//! A group goes by the life of the log that it has seen. When the log begins another one, the group loses its place and
//! says so by its policy. Trimming takes from groups in its own script (`reads::trim`).
//!
//! Deliberately absent: the server's own consumer groups, which know no keys, hold several events in one entry, and lose
//! what is trimmed without a word.

mod answers;
mod bodies;
mod calls;
mod durable;
mod manage;
mod reading;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::RedisLog;
use super::link::RedisLink;
use super::scripts::Keys;
use super::shared::RedisStatus;
use crate::clock::Clock;
use crate::event::{Position, TenantId};
use crate::limits::{GROUP_IDLE_MAX, GROUP_SWEEP, REDIS_CONSUMERS_SWEEP_CALLS_MAX};
use crate::streams::EventLog;
use crate::streams::groups::{
    ConsumerStatus, Deliveries, GroupChange, GroupError, GroupId, GroupLag, GroupLimits, GroupRead,
    GroupStart, GroupStatus, Groups, LetterPage, LetterVerdict, Settle, Settled,
};

pub(super) use answers::{Bounds, tell_losses};
pub(super) use durable::Barrier;

type Result<T> = std::result::Result<T, GroupError>;

/// [`Groups`] on Redis. A clone is another handle.
#[derive(Clone, Debug)]
pub struct RedisGroups {
    inner: Arc<Inner>,
}

struct Inner {
    link: RedisLink,
    log: Arc<dyn EventLog>,
    statuses: watch::Receiver<RedisStatus>,
    keys: Keys,
    limits: GroupLimits,
    bounds: Bounds,
    clock: Option<Arc<dyn Clock>>,
    barrier: Barrier,
    here: Mutex<HashMap<GroupId, Arc<Here>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisGroups").field("link", &self.link).finish_non_exhaustive()
    }
}

/// What one host knows of a group, none of which matters to the others.
#[derive(Debug)]
struct Here {
    /// Something may be deliverable that was not.
    changed: Notify,
    /// Which waiting read looks for all.
    looker: Semaphore,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Up to where the stream was taken in when that was last answered. It may have moved since.
    frontier: Option<Position>,
    waiters: usize,
    asked: Instant,
}

impl Here {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedisGroups {
    /// Groups on the streams of a log on Redis. `link` leads to the same server and has the log's name; `log` is what
    /// the host's consumers read: `redis` itself, or what upcasts it. [`Self::keep`] has to run.
    pub fn new(link: RedisLink, redis: &RedisLog, log: Arc<dyn EventLog>, limits: GroupLimits) -> Self {
        Self::with_time(link, redis, log, limits, None)
    }

    /// The same by another clock than the server's: for tests.
    pub fn with_clock(
        link: RedisLink,
        redis: &RedisLog,
        log: Arc<dyn EventLog>,
        limits: GroupLimits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self::with_time(link, redis, log, limits, Some(clock))
    }

    fn with_time(
        link: RedisLink,
        redis: &RedisLog,
        log: Arc<dyn EventLog>,
        limits: GroupLimits,
        clock: Option<Arc<dyn Clock>>,
    ) -> Self {
        let keys = Keys::new(link.name());
        let barrier = Barrier::new(link.clone(), ("groups", "a group's change"));
        let (statuses, bounds) = (redis.statuses(), Bounds::of(&limits));
        let here = Mutex::default();
        Self { inner: Arc::new(Inner { link, log, statuses, keys, limits, bounds, clock, barrier, here }) }
    }

    /// Looks after groups that nobody asks anything of, for as long as it is polled. Every host does; what one has
    /// done, the others do not find any more.
    pub async fn keep(&self) {
        loop {
            tokio::time::sleep(GROUP_SWEEP).await;
            if let Err(error) = self.sweep().await {
                // The log says what is wrong with the server.
                tracing::debug!(%error, "looking after groups waits");
            }
        }
    }

    /// One round of that: ends leases, makes dead letters, forgets dead consumers.
    pub async fn sweep(&self) -> Result<()> {
        let inner = &self.inner;
        inner.lock().retain(|_, here| {
            let seen = here.lock();
            seen.waiters > 0 || seen.asked.elapsed() < GROUP_IDLE_MAX
        });
        for _ in 0..REDIS_CONSUMERS_SWEEP_CALLS_MAX {
            if !inner.sweep_some().await? {
                break;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<GroupId, Arc<Here>>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn here(&self, id: &GroupId) -> Arc<Here> {
        let mut all = self.lock();
        let here = all.entry(id.clone()).or_insert_with(|| {
            let seen = Seen { frontier: None, waiters: 0, asked: Instant::now() };
            Arc::new(Here { changed: Notify::new(), looker: Semaphore::new(1), seen: Mutex::new(seen) })
        });
        here.lock().asked = Instant::now();
        Arc::clone(here)
    }

    /// Wakes reads that wait at this host.
    fn wake(&self, id: &GroupId) {
        let here = self.lock().get(id).cloned();
        if let Some(here) = here {
            here.changed.notify_waiters();
        }
    }
}

impl Groups for RedisGroups {
    fn ensure(
        &self,
        group: &GroupId,
        start: GroupStart,
        change: GroupChange,
    ) -> BoxFuture<'_, Result<(GroupStatus, bool)>> {
        let group = group.clone();
        async move { self.inner.ensure(&group, start, change).await }.boxed()
    }

    fn remove(&self, group: &GroupId) -> BoxFuture<'_, Result<()>> {
        let group = group.clone();
        async move { self.inner.remove(&group).await }.boxed()
    }

    fn list(&self, tenant: &TenantId, stream: &str) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        let (tenant, stream) = (tenant.clone(), stream.to_owned());
        async move { self.inner.list(&tenant, &stream).await }.boxed()
    }

    fn status(&self, group: &GroupId) -> BoxFuture<'_, Result<GroupStatus>> {
        let group = group.clone();
        async move { self.inner.status(&group).await }.boxed()
    }

    fn seek(&self, group: &GroupId, to: GroupStart) -> BoxFuture<'_, Result<GroupStatus>> {
        let group = group.clone();
        async move { self.inner.seek(&group, to).await }.boxed()
    }

    fn read(&self, group: &GroupId, read: GroupRead) -> BoxFuture<'_, Result<Deliveries>> {
        let group = group.clone();
        async move { self.inner.read(&group, read).await }.boxed()
    }

    fn settle(&self, group: &GroupId, said: Vec<Settle>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        let group = group.clone();
        async move { self.inner.settle(&group, said).await }.boxed()
    }

    fn consumers(&self, group: &GroupId) -> BoxFuture<'_, Result<Vec<ConsumerStatus>>> {
        let group = group.clone();
        async move { self.inner.consumers(&group).await }.boxed()
    }

    fn letters(&self, group: &GroupId, after: Position, limit: usize) -> BoxFuture<'_, Result<LetterPage>> {
        let group = group.clone();
        async move { self.inner.letters(&group, after, limit).await }.boxed()
    }

    fn decide(
        &self,
        group: &GroupId,
        position: Position,
        verdict: LetterVerdict,
    ) -> BoxFuture<'_, Result<()>> {
        let group = group.clone();
        async move { self.inner.decide(&group, position, verdict).await }.boxed()
    }

    fn lags(&self, limit: usize) -> BoxFuture<'_, Result<Vec<GroupLag>>> {
        async move { self.inner.lags(limit).await }.boxed()
    }
}
