//! The log in memory: for tests and for embedders that keep nothing.
//!
//! It answers like a durable log, dedup window and trimming included, and
//! forgets everything when it is dropped. Nothing bounds it but `trim`, and its change streams what they are told to keep.

mod artifacts;
mod cache;
mod channels;
mod cluster;
mod control;
mod control_store;
mod groups;
mod leases;
mod presence;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

pub use artifacts::MemoryArtifactRepository;
pub use cache::MemoryCache;
pub use channels::MemoryChannels;
pub(crate) use channels::repeated;
pub use cluster::MemoryCluster;
pub use control::{MemoryConsumer, MemoryFeed};
pub use control_store::MemoryControlStore;
pub use leases::MemoryLeases;
pub use presence::MemoryPresence;
use state::State;

use crate::clock::{Clock, SystemClock};
use crate::event::{Epoch, EventBatch, Page, Position, TenantId};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, DEDUP_EVENTS_MAX, TAIL_BYTES_MAX};
use crate::streams::name::EVENTS;
use crate::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, PageLimit, Retention, StreamError, StreamName,
    StreamPage, Tail,
};

/// An [`EventLog`] that keeps nothing over its own life.
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
    tail: Tail,
    epoch: Epoch,
    clock: Arc<dyn Clock>,
    dedup_events_max: usize,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    pub fn new() -> Self {
        Self::with_options(Arc::new(SystemClock), DEDUP_EVENTS_MAX, TAIL_BYTES_MAX)
    }

    /// With another clock, dedup window and bound of the tail.
    pub fn with_options(clock: Arc<dyn Clock>, dedup_events_max: usize, tail_bytes_max: usize) -> Self {
        Self {
            state: Mutex::new(State::new()),
            tail: Tail::with_bytes_max(Position::START, [], tail_bytes_max),
            epoch: Epoch(ulid::Ulid::new().to_string().into()),
            clock,
            dedup_events_max,
        }
    }

    /// With change streams that keep about so many entries each; none or 0 keeps what `trim` keeps.
    #[must_use]
    pub fn with_change_streams_of(self, entries_max: Option<u64>) -> Self {
        self.lock().cap_change_streams(entries_max);
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(&self, stream: &StreamName, batch: &EventBatch) -> Result<Vec<Appended>, StreamError> {
        if batch.len() > BATCH_EVENTS_MAX {
            return Err(StreamError::TooManyEvents { events: batch.len(), max: BATCH_EVENTS_MAX });
        }
        if batch.bytes() > BATCH_BYTES_MAX {
            return Err(StreamError::TooManyBytes { bytes: batch.bytes(), max: BATCH_BYTES_MAX });
        }
        let mut state = self.lock();
        let stream = state.appendable(&batch.tenant, stream)?;
        let (appended, fresh) = state.admit(&stream, batch)?;
        if fresh.is_empty() {
            return Ok(appended);
        }
        let now = self.clock.now();
        let stored = state.store(&stream, batch, &fresh, now.0, self.dedup_events_max);
        let lost = state.cap(&stored, now);
        // Still under the lock, so that the tail sees appends in their order.
        if &*stream == EVENTS {
            self.tail.publish(stored);
        } else {
            let last = stored.last_position();
            self.tail.publish_named(&[(batch.tenant.clone(), stream.as_ref().into(), last)]);
        }
        drop(state);
        for report in lost {
            report.tell(now);
        }
        Ok(appended)
    }
}

impl EventLog for MemoryLog {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        ready(self.append_now(&StreamName::Events, &batch)).boxed()
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        ready(self.lock().page(tenant, after, limit)).boxed()
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        ready(self.append_now(stream, &batch)).boxed()
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        ready(self.lock().stream_page(tenant, stream, after, limit)).boxed()
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        ready(self.lock().declare_scopes(owner, declarations)).boxed()
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.lock().scopes()
    }

    fn bounds(&self) -> Bounds {
        self.lock().bounds()
    }

    fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.lock().tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        let now = self.clock.now();
        let (trimmed, lost) = {
            let mut state = self.lock();
            let until = state.trim_until(retention, now.0);
            // Apart from the state, so that groups can be compared with the log.
            let mut groups = std::mem::take(&mut state.groups);
            let lost = groups.lose(&state, Position(until), None, now);
            state.groups = groups;
            (state.trim(until), lost)
        };
        for report in lost {
            report.tell(now);
        }
        ready(Ok(trimmed)).boxed()
    }
}
