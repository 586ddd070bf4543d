//! Recent events in memory, by tenant, shared by everybody who follows the log.
//!
//! The log publishes each committed batch once; followers get the same `Arc`.
//! Memory is bounded over all tenants ([`TAIL_BYTES_MAX`]); what is pushed out
//! is read from the store, which the follower does by itself when the tail
//! does not reach back to its position.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::event::{EventBatch, Position, TenantId};
use crate::limits::TAIL_BYTES_MAX;

/// The shared ring. One owner: the log's committer publishes, everybody else reads.
#[derive(Debug)]
pub struct Tail {
    inner: Mutex<Inner>,
    newest: watch::Sender<Position>,
    tenants: watch::Sender<u64>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: HashMap<TenantId, TenantTail>,
    /// Which tenant's chunk came when, for pushing the oldest out.
    order: VecDeque<TenantId>,
    bytes: usize,
}

#[derive(Debug)]
struct TenantTail {
    chunks: VecDeque<Arc<EventBatch>>,
    /// The tail holds every event of the tenant after this position.
    complete_after: Position,
    wake: watch::Sender<Position>,
}

/// How full the tail is.
#[derive(Clone, Copy, Debug)]
pub struct TailStats {
    pub bytes: usize,
    pub chunks: usize,
    pub tenants: usize,
}

/// Follows one tenant: waits for what is new.
#[derive(Clone, Debug)]
pub struct TailReader {
    wake: watch::Receiver<Position>,
}

impl TailReader {
    /// Waits until the tenant has an event after this position. Cancel-safe.
    /// Answers false when the log has closed.
    pub async fn wait_after(&mut self, position: Position) -> bool {
        self.wake.wait_for(|newest| *newest > position).await.is_ok()
    }

    /// The tenant's newest known position.
    pub fn newest(&self) -> Position {
        *self.wake.borrow()
    }
}

impl Tail {
    /// A tail of a log whose newest event is `newest`, and that has these tenants.
    pub fn new(newest: Position, tenants: impl IntoIterator<Item = TenantId>) -> Self {
        Self::with_bytes_max(newest, tenants, TAIL_BYTES_MAX)
    }

    /// The same with another bound.
    pub fn with_bytes_max(
        newest: Position,
        tenants: impl IntoIterator<Item = TenantId>,
        bytes_max: usize,
    ) -> Self {
        let mut inner = Inner::default();
        for tenant in tenants {
            inner.tenants.insert(tenant, TenantTail::new(newest));
        }
        let count = inner.tenants.len() as u64;
        Self {
            inner: Mutex::new(inner),
            newest: watch::Sender::new(newest),
            tenants: watch::Sender::new(count),
            bytes_max,
        }
    }

    /// Takes in what was just committed together: a chunk per tenant, with
    /// positions above every one published before. Chunks of several tenants
    /// may interleave, so they become visible at once: whoever sees `newest`
    /// sees every event up to it. For the log alone.
    pub fn publish(&self, group: &[Arc<EventBatch>]) {
        let Some(newest) = group.iter().map(|chunk| chunk.last_position()).max() else { return };
        let mut new_tenants = 0;
        {
            let mut inner = self.lock();
            for chunk in group.iter().filter(|chunk| !chunk.is_empty()) {
                new_tenants += inner.take_in(chunk);
            }
            inner.shrink(self.bytes_max);
            self.newest.send_replace(newest);
        }
        if new_tenants > 0 {
            self.tenants.send_modify(|count| *count += new_tenants);
        }
    }

    /// The tenant's chunks after a position, oldest first, up to about
    /// `events_max` events; the first chunk may begin before the position.
    /// None when the tail does not reach back that far: read from the store.
    pub fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        events_max: usize,
    ) -> Option<Vec<Arc<EventBatch>>> {
        let inner = self.lock();
        let Some(tail) = inner.tenants.get(tenant) else { return Some(Vec::new()) };
        if after < tail.complete_after {
            return None;
        }
        let begin = tail.chunks.partition_point(|chunk| chunk.last_position() <= after);
        let mut events = 0;
        let mut chunks = Vec::new();
        for chunk in tail.chunks.iter().skip(begin) {
            chunks.push(Arc::clone(chunk));
            events += chunk.len();
            if events >= events_max {
                break;
            }
        }
        Some(chunks)
    }

    /// Follows a tenant, a yet unknown one too.
    pub fn follow(&self, tenant: &TenantId) -> TailReader {
        let mut inner = self.lock();
        let newest = *self.newest.borrow();
        let tail = inner.tenants.entry(tenant.clone()).or_insert_with(|| TenantTail::new(newest));
        TailReader { wake: tail.wake.subscribe() }
    }

    /// The newest position over all tenants.
    pub fn newest(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    /// Changes when a tenant appends for the first time.
    pub fn tenants(&self) -> watch::Receiver<u64> {
        self.tenants.subscribe()
    }

    pub fn stats(&self) -> TailStats {
        let inner = self.lock();
        TailStats { bytes: inner.bytes, chunks: inner.order.len(), tenants: inner.tenants.len() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds the tail")
    }
}

impl TenantTail {
    fn new(complete_after: Position) -> Self {
        Self { chunks: VecDeque::new(), complete_after, wake: watch::Sender::new(complete_after) }
    }
}

impl Inner {
    /// Answers how many tenants are new.
    fn take_in(&mut self, chunk: &Arc<EventBatch>) -> u64 {
        let tenant = &chunk.tenant;
        let before = Position(chunk.records()[0].position - 1);
        let mut new_tenants = 0;
        let tail = self.tenants.entry(tenant.clone()).or_insert_with(|| {
            new_tenants = 1;
            TenantTail::new(before)
        });
        tail.chunks.push_back(Arc::clone(chunk));
        tail.wake.send_replace(chunk.last_position());
        self.order.push_back(tenant.clone());
        self.bytes += chunk.bytes();
        new_tenants
    }

    /// Pushes the oldest chunks out until the bound holds; the newest chunk stays.
    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.order.len() > 1 {
            let Some(tenant) = self.order.pop_front() else { return };
            let tail = self.tenants.get_mut(&tenant).expect("a chunk's tenant is known");
            let chunk = tail.chunks.pop_front().expect("`order` names a tenant once per chunk");
            tail.complete_after = chunk.last_position();
            self.bytes -= chunk.bytes();
        }
    }
}
