//! The log in memory: for tests and for embedders that keep nothing.
//!
//! It answers like a durable log, dedup window and trimming included, and
//! forgets everything when it is dropped. Nothing bounds it but `trim`.

mod groups;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use crate::clock::{Clock, SystemClock};
use crate::event::{Epoch, Event, EventBatch, Page, Position, TenantId};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, DEDUP_EVENTS_MAX, PAGE_BYTES_MAX, PAGE_EVENTS_MAX, TAIL_BYTES_MAX,
};
use crate::streams::{Appended, Bounds, EventLog, PageLimit, Retention, StreamError, Tail};

/// An [`EventLog`] that keeps nothing over its own life.
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
    tail: Tail,
    epoch: Epoch,
    clock: Arc<dyn Clock>,
    dedup_events_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The event at `trimmed + 1 + index`.
    events: VecDeque<Stored>,
    trimmed: u64,
    /// Held positions of each tenant, in order.
    by_tenant: HashMap<TenantId, VecDeque<u64>>,
    /// First positions of ids inside the dedup window.
    ids: HashMap<(TenantId, Arc<str>), u64>,
    /// The oldest position inside the dedup window.
    window_first: u64,
    tenants: BTreeSet<TenantId>,
    groups: groups::Kept,
}

/// An event is a place in the batch it came in.
#[derive(Debug)]
struct Stored {
    batch: Arc<EventBatch>,
    index: usize,
    appended_at: i64,
}

impl Stored {
    fn event(&self) -> Event<'_> {
        self.batch.get(self.index)
    }
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
            state: Mutex::new(State { window_first: 1, ..State::default() }),
            tail: Tail::with_bytes_max(Position::START, [], tail_bytes_max),
            epoch: Epoch(ulid::Ulid::new().to_string().into()),
            clock,
            dedup_events_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(&self, batch: &EventBatch) -> Result<Vec<Appended>, StreamError> {
        if batch.len() > BATCH_EVENTS_MAX {
            return Err(StreamError::TooManyEvents { events: batch.len(), max: BATCH_EVENTS_MAX });
        }
        if batch.bytes() > BATCH_BYTES_MAX {
            return Err(StreamError::TooManyBytes { bytes: batch.bytes(), max: BATCH_BYTES_MAX });
        }
        let mut state = self.lock();
        let (appended, fresh) = state.admit(batch)?;
        if !fresh.is_empty() {
            let stored = state.store(batch, &fresh, self.clock.now().0, self.dedup_events_max);
            // Still under the lock, so that the tail sees appends in their order.
            self.tail.publish(stored);
        }
        Ok(appended)
    }
}

impl State {
    fn newest(&self) -> u64 {
        self.trimmed + self.events.len() as u64
    }

    fn at(&self, position: u64) -> Option<&Stored> {
        let index = position.checked_sub(self.trimmed + 1)?;
        self.events.get(usize::try_from(index).ok()?)
    }

    /// Positions for a batch, and which of its events are new. Changes nothing.
    fn admit(&self, batch: &EventBatch) -> Result<(Vec<Appended>, Vec<usize>), StreamError> {
        let mut appended: Vec<Appended> = Vec::with_capacity(batch.len());
        let mut fresh: Vec<usize> = Vec::new();
        let mut inside: HashMap<&str, usize> = HashMap::new();
        for (index, event) in batch.iter().enumerate() {
            let known = self.ids.get(&(batch.tenant.clone(), event.id.into())).copied();
            let first = match (known.and_then(|position| self.at(position)), inside.get(event.id)) {
                (Some(stored), _) => Some((stored.event().position, stored.event())),
                (None, Some(&earlier)) => Some((appended[earlier].position, batch.get(earlier))),
                (None, None) => None,
            };
            match first {
                Some((position, stored)) if stored.same_content(&event) => {
                    appended.push(Appended { position, repeated: true });
                }
                Some((position, _)) => {
                    return Err(StreamError::IdTaken { index, id: event.id.to_owned(), position });
                }
                None => {
                    inside.insert(event.id, index);
                    fresh.push(index);
                    let position = Position(self.newest() + fresh.len() as u64);
                    appended.push(Appended { position, repeated: false });
                }
            }
        }
        Ok((appended, fresh))
    }

    fn store(
        &mut self,
        batch: &EventBatch,
        fresh: &[usize],
        appended_at: i64,
        window_max: usize,
    ) -> Arc<EventBatch> {
        let tenant = &batch.tenant;
        let mut kept = EventBatch::with_capacity(tenant.clone(), fresh.len(), batch.bytes());
        for (place, &index) in fresh.iter().enumerate() {
            kept.push_from(batch, index);
            kept.set_position(place, Position(self.newest() + 1 + place as u64));
        }
        let kept = Arc::new(kept);
        for (index, event) in kept.iter().enumerate() {
            self.ids.insert((tenant.clone(), event.id.into()), event.position.0);
            self.by_tenant.entry(tenant.clone()).or_default().push_back(event.position.0);
            self.events.push_back(Stored { batch: Arc::clone(&kept), index, appended_at });
        }
        self.tenants.insert(tenant.clone());
        let window_max = u64::try_from(window_max).unwrap_or(u64::MAX);
        self.forget_ids(self.newest().saturating_sub(window_max));
        kept
    }

    /// Takes ids up to a position out of the dedup window.
    fn forget_ids(&mut self, until: u64) {
        while self.window_first <= until {
            let position = self.window_first;
            let key = self.at(position).map(|s| (s.batch.tenant.clone(), Arc::<str>::from(s.event().id)));
            if let Some(key) = key
                && self.ids.get(&key) == Some(&position)
            {
                self.ids.remove(&key);
            }
            self.window_first += 1;
        }
    }

    fn page(&self, tenant: &TenantId, after: Position, limit: PageLimit) -> Result<Page, StreamError> {
        let (trimmed, newest) = (Position(self.trimmed), Position(self.newest()));
        if after < trimmed {
            return Err(StreamError::PositionLost { asked: after, trimmed });
        }
        if after > newest {
            return Err(StreamError::PositionAhead { asked: after, newest });
        }
        let mut events = EventBatch::new(tenant.clone());
        let mut next = newest;
        let held = self.by_tenant.get(tenant);
        let begin = held.map_or(0, |held| held.partition_point(|position| *position <= after.0));
        for position in held.into_iter().flat_map(|held| held.range(begin..)) {
            let Some(stored) = self.at(*position) else { continue };
            let bytes = events.bytes() + stored.event().payload.len();
            let full = events.len() == limit.events.clamp(1, PAGE_EVENTS_MAX)
                || (!events.is_empty() && bytes > limit.bytes.min(PAGE_BYTES_MAX));
            if full {
                next = events.last_position();
                break;
            }
            events.push_from(&stored.batch, stored.index);
        }
        Ok(Page { events: Arc::new(events), next, oldest: Position(self.trimmed + 1) })
    }

    /// The newest position that goes.
    fn trim_until(&self, retention: Retention, now: i64) -> u64 {
        let by_count = retention.events.map_or(0, |events| self.newest().saturating_sub(events));
        let by_age = retention.age.map_or(0, |age| {
            let cutoff = now.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
            self.trimmed + self.events.partition_point(|stored| stored.appended_at < cutoff) as u64
        });
        by_count.max(by_age)
    }

    fn trim(&mut self, until: u64) -> u64 {
        let before = self.trimmed;
        self.forget_ids(until);
        while self.trimmed < until {
            let Some(stored) = self.events.pop_front() else { break };
            self.trimmed += 1;
            if let Some(held) = self.by_tenant.get_mut(&stored.batch.tenant) {
                held.pop_front();
            }
        }
        self.trimmed - before
    }
}

impl EventLog for MemoryLog {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        ready(self.append_now(&batch)).boxed()
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        ready(self.lock().page(tenant, after, limit)).boxed()
    }

    fn bounds(&self) -> Bounds {
        let state = self.lock();
        Bounds { trimmed: Position(state.trimmed), newest: Position(state.newest()) }
    }

    fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.lock().tenants.iter().cloned().collect()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        let now = self.clock.now();
        let (trimmed, lost) = {
            let mut state = self.lock();
            let until = state.trim_until(retention, now.0);
            // Apart from the state, so that groups can be compared with the log.
            let mut groups = std::mem::take(&mut state.groups);
            let lost = groups.lose(&state, Position(until), now);
            state.groups = groups;
            (state.trim(until), lost)
        };
        for report in lost {
            report.tell(now);
        }
        ready(Ok(trimmed)).boxed()
    }
}
