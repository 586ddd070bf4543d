//! Channels on Redis or Valkey, shared by all hosts that use the server.
//!
//! The rules stay in Rust. A host decides on records that it knows, and one script writes what came of it if nothing has
//! changed since; otherwise it answers the records as they are, and the host decides again. What the host knows it has
//! from its own calls, so that an append is one round trip as a rule; appends to one channel that come during a call go
//! together in the next one. What known records refuse is decided on fresh ones before it is answered.
//!
//! Entries lie in a stream for each channel, under their positions. An acknowledgement stands on what the log's stands on,
//! and nobody reads or hears what may still be lost. Hosts learn of each other's changes from one stream, the feed, whose
//! entries are numbered without a hole.
//!
//! A position has one meaning for ever. Each host remembers how many changes it knows to be durable, and the last of
//! them, and says so with every call: a server that was emptied, went back to an older copy, or has a log of another life
//! begins another life. Followers of what is gone are told that it was removed. What is still there can be read; where
//! something is appended to it, its positions go on 2^32 above, what lay before counts as dropped, and readers are told.
//! Hosts that know nothing of what was lost may append for a moment, until one that does speaks to the server.
//!
//! An entry that is an event, too, is in one script with the event: the log decides in it as for any append, and what it
//! decides is written behind the first line of the entry's. What processors append comes from the outbox of their host,
//! under the lease of the processor and with a key; the keys of what was appended lie beside the entries, in the same
//! script, so that whoever carries an entry once more finds it.
//!
//! Deliberately absent: Redis Cluster, though the keys of all channels have the log's tag. A process is not spread.

mod book;
mod calls;
mod carry;
mod decide;
mod entries;
mod lanes;
mod manage;
mod pages;
mod reader;
mod records;
mod settling;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};

use super::RedisLog;
use super::groups::Barrier;
use super::link::RedisLink;
use super::options::{Durability, RedisAck, RedisOptions};
use super::scripts::Keys;
use super::shared::Shared as LogShared;
use crate::channels::{
    Actor, Append, Appended, Change, ChannelError, ChannelId, ChannelLimits, ChannelStats, ChannelStore,
    EntryPage, Head, Incarnation, NewProcess, Process, ProcessId, ProcessName, ProcessView, ReadLimit, Tails,
};
use crate::clock::Clock;
use crate::event::{Micros, Position, TenantId};
use crate::limits::REDIS_CHANNELS_SETTLING_MAX;
use crate::tasks::{TaskKind, Tasks};
use book::Book;
use lanes::Lanes;
use records::Stamp;
use settling::Settling;

type Result<T> = std::result::Result<T, ChannelError>;

/// A [`ChannelStore`] on Redis. Clones are the same store; with the last one its connections end.
#[derive(Clone, Debug)]
pub struct RedisChannels {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// What the handles, the lanes and the reader have together.
struct Shared {
    link: RedisLink,
    ack: RedisAck,
    append_wait_max: Duration,
    limits: ChannelLimits,
    clock: Arc<dyn Clock>,
    /// Those of the log, too, which says in which life it is.
    keys: Keys,
    /// The log, where entries are events of it.
    log: Option<Arc<LogShared>>,
    tails: Tails,
    barrier: Barrier,
    tasks: Tasks,
    /// What the tags of this host's calls begin with.
    host: String,
    calls: AtomicU64,
    /// How far the store is known to be durable.
    known: Mutex<Stamp>,
    /// What an acknowledgement stands on, on which connection.
    standing: Mutex<Option<(u64, Durability)>>,
    book: Mutex<Book>,
    lanes: Mutex<Lanes>,
    settling: mpsc::Sender<Settling>,
    /// Processes that followers here have to be told of, and somebody else than the feed knows it.
    looks: Mutex<BTreeSet<ProcessId>>,
    used: AtomicBool,
    /// The store is used.
    wake: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisChannels").field("link", &self.link).finish_non_exhaustive()
    }
}

impl RedisChannels {
    /// Does not wait for the server, and connects when it is used for the first time. It uses of the options where the log
    /// lies, its name, what an acknowledgement stands on, and how long an append is tried. Needs a tokio runtime.
    pub fn open(options: &RedisOptions, limits: ChannelLimits, clock: Arc<dyn Clock>) -> Self {
        Self::start(options, None, ChannelLimits { events: false, ..limits }, clock)
    }

    /// The same beside a log, whose events entries may be.
    pub fn beside(log: &RedisLog, limits: ChannelLimits, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::clone(&log.inner.shared);
        Self::start(log.options(), Some(shared), ChannelLimits { events: true, ..limits }, clock)
    }

    fn start(
        options: &RedisOptions,
        log: Option<Arc<LogShared>>,
        limits: ChannelLimits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        // Of its own: a large append keeps nobody else waiting.
        let link = RedisLink::new(options.address.clone(), options.ca_file.clone(), &*options.name);
        let keys = Keys::new(&options.name);
        let tasks = Tasks::new();
        let (settling, settled) = mpsc::channel(REDIS_CHANNELS_SETTLING_MAX);
        let shared = Arc::new(Shared {
            ack: options.ack,
            append_wait_max: options.append_wait_max,
            limits,
            clock,
            keys,
            log,
            tails: Tails::default(),
            barrier: Barrier::new(link.clone(), ("channels", "a channel's change")),
            tasks: tasks.clone(),
            host: format!("{:016x}.", rand::random::<u64>()),
            calls: AtomicU64::new(0),
            known: Mutex::default(),
            standing: Mutex::default(),
            book: Mutex::default(),
            lanes: Mutex::default(),
            settling,
            looks: Mutex::default(),
            used: AtomicBool::new(false),
            wake: Notify::new(),
            link,
        });
        let settler = settling::run(Arc::clone(&shared), settled);
        tasks.spawn(TaskKind::BACKGROUND, "channels settler", settler);
        let reader = reader::Reader::new(Arc::clone(&shared));
        tasks.spawn(TaskKind::BACKGROUND, "channels reader", reader.run());
        Self { inner: Arc::new(Inner { shared, tasks }) }
    }
}

fn unknown(id: &ProcessId) -> ChannelError {
    ChannelError::ProcessUnknown { process: id.to_string() }
}

impl ChannelStore for RedisChannels {
    fn create(&self, new: NewProcess) -> BoxFuture<'_, Result<(ProcessView, bool)>> {
        async move { self.inner.shared.create(new).await }.boxed()
    }

    fn process(&self, id: &ProcessId) -> BoxFuture<'_, Result<ProcessView>> {
        let id = id.clone();
        async move { self.inner.shared.process(&id).await }.boxed()
    }

    fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Process>>>> {
        let (tenant, after) = (tenant.clone(), after.cloned());
        async move { self.inner.shared.processes(&tenant, after, limit).await }.boxed()
    }

    fn head(&self, id: &ChannelId) -> BoxFuture<'_, Result<Head>> {
        let id = id.clone();
        async move { self.inner.shared.head(&id).await }.boxed()
    }

    fn change(&self, id: &ProcessId, by: Actor, what: Change) -> BoxFuture<'_, Result<ProcessView>> {
        let id = id.clone();
        async move { self.inner.shared.change(&id, &by, what).await }.boxed()
    }

    fn append(&self, id: &ChannelId, append: Append) -> BoxFuture<'_, Result<Vec<Appended>>> {
        let id = id.clone();
        async move { self.inner.shared.append(&id, append).await }.boxed()
    }

    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> BoxFuture<'_, Result<EntryPage>> {
        let id = id.clone();
        async move { self.inner.shared.page(&id, after, limit).await }.boxed()
    }

    fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> BoxFuture<'_, Result<bool>> {
        let id = id.clone();
        async move { self.inner.shared.remove(&id, only).await }.boxed()
    }

    fn expire(&self, closed_before: Micros) -> BoxFuture<'_, Result<usize>> {
        async move { self.inner.shared.expire(closed_before).await }.boxed()
    }

    fn stats(&self) -> BoxFuture<'_, Result<ChannelStats>> {
        async move { self.inner.shared.stats().await }.boxed()
    }

    fn tails(&self) -> &Tails {
        &self.inner.shared.tails
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn limits(&self) -> &ChannelLimits {
        &self.inner.shared.limits
    }
}
