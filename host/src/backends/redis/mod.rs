//! The log on Redis 7 or Valkey 8, or a later one: one server, or a primary that sentinels watch over.
//!
//! One stream holds all events, several in an entry; an index by tenant holds ids of entries and nothing else. Scripts
//! give positions, from a counter, and recognise repeats, each in one atomic step; nothing newer than 7.0 is needed.
//! Several hosts may append to one log: each reads the stream, and shows what it has read once that is durable.
//!
//! A position has one meaning for ever. A log that was emptied, restored or cut back begins another life with another
//! epoch, far above all former positions, within a second; readers are told that their place is lost.
//!
//! Groups of consumers, channels, leases, rooms, copies of rows, the fleet's buses and the control feed lie beside the log,
//! with connections of their own. Deliberately absent: Redis Cluster, and a store of tables and checkpoints.

mod appender;
mod artifacts;
mod cache;
mod caps;
mod changes;
mod channels;
mod cluster;
mod codec;
mod connect;
mod control;
mod faults;
mod follower;
mod group;
mod groups;
mod leases;
mod link;
mod options;
mod presence;
mod reads;
mod requests;
mod scripts;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use metrics::counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use artifacts::RedisArtifactRepository;
pub use cache::RedisCache;
pub use channels::RedisChannels;
pub use cluster::RedisCluster;
pub use control::RedisControl;
pub use groups::RedisGroups;
pub use leases::RedisLeases;
pub use link::RedisLink;
pub use options::{Durability, InvalidAddress, RedisAck, RedisAddress, RedisOptions};
pub use presence::RedisPresence;
pub use shared::RedisStatus;

use crate::cluster::Fence;
use crate::error::BackendError;
use crate::event::{Epoch, EventBatch, Micros, Page, Position, TenantId};
use crate::limits::{REDIS_QUEUE_MAX, REDIS_RETENTION_EVERY};
use crate::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, LogView, PageLimit, Retention, StreamError,
    StreamName, StreamPage, Tail,
};
use crate::tasks::{TaskKind, Tasks};
use crate::telemetry::metrics as names;
use appender::Appender;
use follower::Follower;
use requests::Request;
use shared::Shared;

/// An [`EventLog`] on Redis. Clones are the same log; with the last one its connections end.
#[derive(Clone, Debug)]
pub struct RedisLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Request>,
    tasks: Tasks,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl RedisLog {
    /// Begins to reach the server, and does not wait for it: see [`Self::status`] and [`Self::ready`]. Until then
    /// appends wait, and reads are refused. Needs a tokio runtime.
    pub fn open(options: RedisOptions) -> Self {
        let shared = Shared::new(options);
        let tasks = Tasks::new();
        let (queue, requests) = mpsc::channel(REDIS_QUEUE_MAX);
        tasks.spawn(TaskKind::BACKGROUND, "redis follower", Follower::new(Arc::clone(&shared)).run());
        tasks.spawn(
            TaskKind::BACKGROUND,
            "redis appender",
            Appender::new(Arc::clone(&shared), requests).run(),
        );
        let trimmer = Arc::clone(&shared);
        tasks.spawn(TaskKind::BACKGROUND, "redis retention", async move {
            loop {
                tokio::time::sleep(REDIS_RETENTION_EVERY).await;
                keep_to_retention(&trimmer).await;
            }
        });
        Self { inner: Arc::new(Inner { shared, queue, tasks }) }
    }

    /// What it was opened with.
    pub fn options(&self) -> &RedisOptions {
        &self.inner.shared.options
    }

    /// How it stands now.
    pub fn status(&self) -> RedisStatus {
        self.inner.shared.status.borrow().clone()
    }

    /// Returns once the log serves, or with what stands in the way when it has not begun to within a time.
    pub async fn ready(&self, within: Duration) -> Result<(), BackendError> {
        let mut sessions = self.inner.shared.session.subscribe();
        let begun = tokio::time::timeout(within, sessions.wait_for(Option::is_some)).await;
        match begun {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(BackendError::Closed),
            Err(_) => Err(self.inner.shared.problem()),
        }
    }

    /// How far the log can be seen, and in which life of it; none before it was reached.
    pub fn mark(&self) -> Option<(Epoch, Position)> {
        self.inner.shared.mark()
    }

    /// Changes with what [`Self::status`] answers.
    pub fn statuses(&self) -> watch::Receiver<RedisStatus> {
        self.inner.shared.status.subscribe()
    }

    async fn append_batch(
        &self,
        target: (&str, Option<Fence>),
        batch: EventBatch,
    ) -> Result<Vec<Appended>, StreamError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &self.inner.shared;
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + shared.options.append_wait_max;
        let request = Request::new(target, batch, shared.bounds().newest, deadline, reply)?;
        match tokio::time::timeout_at(deadline, self.inner.queue.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(BackendError::Closed.into()),
            Err(_) => {
                let late = shared.late("appending: too many appends wait, for append_wait_ms_max");
                return Err(late.into());
            }
        }
        answer.await.unwrap_or(Err(BackendError::Closed.into()))
    }
}

async fn keep_to_retention(shared: &Shared) {
    match reads::trim(shared, shared.options.retention).await {
        Ok(0) => {}
        Ok(events) => counter!(names::EVENTS_TRIMMED).increment(events),
        // The follower says what is wrong with the server.
        Err(error) => tracing::debug!(%error, "retention waits"),
    }
    if let Err(error) = caps::keep(shared).await {
        tracing::debug!(%error, "caps of change streams wait");
    }
}

impl EventLog for RedisLog {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.append_batch(("", None), batch).boxed()
    }

    fn append_fenced(
        &self,
        batch: EventBatch,
        fence: &Fence,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let fence = fence.clone();
        async move { self.append_batch(("", Some(fence)), batch).await }.boxed()
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        let tenant = tenant.clone();
        async move { reads::page(&self.inner.shared, &tenant, after, limit).await }.boxed()
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let stream = stream.clone();
        async move {
            match &stream {
                StreamName::Events => self.append_batch(("", None), batch).await,
                StreamName::Named(name) => self.append_batch((name, None), batch).await,
                StreamName::Changes(_) => Err(StreamError::NotAppendable { stream: stream.to_string() }),
            }
        }
        .boxed()
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        let (tenant, stream) = (tenant.clone(), stream.clone());
        async move {
            let shared = &self.inner.shared;
            match stream {
                StreamName::Events => reads::stream_page(shared, &tenant, after, limit).await,
                _ => changes::page(shared, &tenant, &stream, after, limit).await,
            }
        }
        .boxed()
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        let (owner, declarations) = (owner.to_owned(), declarations.to_vec());
        async move { changes::declare(&self.inner.shared, &owner, &declarations).await }.boxed()
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.inner.shared.scopes().scopes
    }

    fn appended_at(
        &self,
        tenant: &TenantId,
        after: Position,
    ) -> BoxFuture<'_, Result<Option<Micros>, StreamError>> {
        let tenant = tenant.clone();
        async move { reads::appended_at(&self.inner.shared, &tenant, after).await }.boxed()
    }

    fn bounds(&self) -> Bounds {
        self.inner.shared.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.inner.shared.epoch()
    }

    fn view(&self) -> LogView {
        if self.mark().is_some() { LogView::Shared } else { LogView::Unreached }
    }

    fn tail(&self) -> &Tail {
        &self.inner.shared.tail
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.inner.shared.tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        async move { reads::trim(&self.inner.shared, retention).await }.boxed()
    }
}
