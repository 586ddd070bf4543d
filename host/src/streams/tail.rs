//! Recent events in memory, by tenant, shared by everybody who follows the log.
//!
//! The log publishes each committed batch once; followers get the same `Arc`.
//! Memory is bounded over all tenants ([`TAIL_BYTES_MAX`]); what is pushed out
//! is read from the store, which the follower does by itself when the tail
//! does not reach back to its position. Of the streams that are appended to by
//! name it has no events: it only wakes who follows them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;

use super::upcast::Upcasters;
use crate::event::{EventBatch, Position, TenantId};
use crate::limits::TAIL_BYTES_MAX;

/// What a mark costs beside the event's bytes: its two words and its share of the name.
const MARK_BYTES: usize = 64;

/// The shared ring. One owner: the log's committer publishes, everybody else reads.
#[derive(Debug)]
pub struct Tail {
    inner: Mutex<Inner>,
    newest: watch::Sender<Position>,
    tenants: watch::Sender<u64>,
    bytes_max: usize,
    upcasters: OnceLock<Arc<Upcasters>>,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: HashMap<TenantId, TenantTail>,
    /// Which tenant's chunk came when, for pushing the oldest out.
    order: VecDeque<TenantId>,
    bytes: usize,
    /// Streams with a name of their own, while somebody follows them.
    named: HashMap<(TenantId, Box<str>), watch::Sender<Position>>,
}

#[derive(Debug)]
struct TenantTail {
    chunks: VecDeque<Arc<EventBatch>>,
    /// The tail holds every event of the tenant after this position.
    complete_after: Position,
    wake: watch::Sender<Position>,
    /// Whether the log has the tenant. It may be followed before.
    known: bool,
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
            inner.tenants.insert(tenant, TenantTail { known: true, ..TenantTail::new(newest) });
        }
        let count = inner.tenants.len() as u64;
        Self {
            inner: Mutex::new(inner),
            newest: watch::Sender::new(newest),
            tenants: watch::Sender::new(count),
            bytes_max,
            upcasters: OnceLock::new(),
        }
    }

    /// Shows events upcast from now on. The first call counts.
    pub(super) fn upcast(&self, upcasters: Arc<Upcasters>) {
        // Whoever sets it again has the same log.
        let _ = self.upcasters.set(upcasters);
    }

    /// An event as the tail would show it, for one that comes another way.
    pub(crate) fn shown(&self, batch: EventBatch) -> Arc<EventBatch> {
        let batch = Arc::new(batch);
        match self.upcasters.get() {
            None => batch,
            Some(upcasters) => upcasters.shared(batch),
        }
    }

    /// Takes in one tenant's committed events. See [`Self::publish_group`].
    pub fn publish(&self, batch: Arc<EventBatch>) {
        self.publish_group(vec![batch]);
    }

    /// Takes in what one transaction has committed: batches with their
    /// positions, above every position published before; each tenant's in
    /// order. Followers see all of it or nothing, so a tenant's event is never
    /// missing below `newest`. For the log alone.
    pub fn publish_group(&self, batches: Vec<Arc<EventBatch>>) {
        let batches = match self.upcasters.get() {
            None => batches,
            Some(upcasters) => batches.into_iter().map(|batch| upcasters.shared(batch)).collect(),
        };
        let mut newest = Position::START;
        let mut new_tenants = 0;
        {
            let mut inner = self.lock();
            for batch in batches {
                let Some(first) = batch.records().first() else { continue };
                let before = Position(first.position - 1);
                let last = batch.last_position();
                newest = newest.max(last);
                let tenant = batch.tenant.clone();
                inner.bytes += held_bytes(&batch);
                inner.order.push_back(tenant.clone());
                let tail = inner.tenants.entry(tenant).or_insert_with(|| TenantTail::new(before));
                new_tenants += u64::from(!std::mem::replace(&mut tail.known, true));
                tail.chunks.push_back(batch);
                tail.wake.send_replace(last);
            }
            inner.shrink(self.bytes_max);
        }
        if newest > Position::START {
            self.newest.send_replace(newest);
        }
        if new_tenants > 0 {
            self.tenants.send_modify(|count| *count += new_tenants);
        }
    }

    /// Forgets what it holds: what comes next is after `position`, and whoever stands before it reads from the store,
    /// which wakes all who wait. For a log that turns out to be another one.
    pub fn begin_again(&self, position: Position) {
        {
            let mut inner = self.lock();
            inner.order.clear();
            inner.bytes = 0;
            for tail in inner.tenants.values_mut() {
                tail.chunks.clear();
                tail.complete_after = position;
                tail.wake.send_replace(position);
            }
            for wake in inner.named.values() {
                wake.send_replace(position);
            }
        }
        self.newest.send_replace(position);
    }

    /// Takes in tenants that the log already has.
    pub fn add_tenants(&self, tenants: impl IntoIterator<Item = TenantId>) {
        let mut new = 0;
        {
            let newest = *self.newest.borrow();
            let mut inner = self.lock();
            for tenant in tenants {
                let tail = inner.tenants.entry(tenant).or_insert_with(|| TenantTail::new(newest));
                new += u64::from(!std::mem::replace(&mut tail.known, true));
            }
        }
        if new > 0 {
            self.tenants.send_modify(|count| *count += new);
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
        let newest = *self.newest.borrow();
        let mut inner = self.lock();
        let tail = inner.tenants.entry(tenant.clone()).or_insert_with(|| TenantTail::new(newest));
        TailReader { wake: tail.wake.subscribe() }
    }

    /// Says how far streams with a name of their own have grown in what was committed, after
    /// [`Self::publish_group`] with the rest of it. For the log alone.
    pub fn publish_named(&self, grown: &[(TenantId, Box<str>, Position)]) {
        {
            let inner = self.lock();
            for (tenant, stream, position) in grown {
                if let Some(wake) = inner.named.get(&(tenant.clone(), stream.clone())) {
                    wake.send_replace(*position);
                }
            }
        }
        let last = grown.iter().map(|(_, _, position)| *position).max().unwrap_or(Position::START);
        self.newest.send_if_modified(|newest| {
            let moved = last > *newest;
            *newest = last.max(*newest);
            moved
        });
    }

    /// Follows a stream that is appended to by name, one that does not exist yet, too. Its `newest` is no older
    /// than the stream's.
    pub fn follow_named(&self, tenant: &TenantId, stream: &str) -> TailReader {
        let mut inner = self.lock();
        inner.named.retain(|_, wake| wake.receiver_count() > 0);
        let newest = *self.newest.borrow();
        let wake = inner.named.entry((tenant.clone(), stream.into()));
        TailReader { wake: wake.or_insert_with(|| watch::Sender::new(newest)).subscribe() }
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

fn held_bytes(chunk: &EventBatch) -> usize {
    chunk.bytes() + chunk.marks().len() * MARK_BYTES
}

impl TenantTail {
    fn new(complete_after: Position) -> Self {
        Self {
            chunks: VecDeque::new(),
            complete_after,
            wake: watch::Sender::new(complete_after),
            known: false,
        }
    }
}

impl Inner {
    /// Pushes the oldest chunks out until the bound holds; the newest chunk stays.
    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.order.len() > 1 {
            let Some(tenant) = self.order.pop_front() else { return };
            let tail = self.tenants.get_mut(&tenant).expect("a chunk's tenant is known");
            let chunk = tail.chunks.pop_front().expect("`order` names a tenant once per chunk");
            tail.complete_after = chunk.last_position();
            self.bytes -= held_bytes(&chunk);
        }
    }
}
