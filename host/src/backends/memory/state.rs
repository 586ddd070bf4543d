//! What the log holds: events, the streams they are in, ids, and change scopes.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::event::{Event, EventBatch, Micros, Page, Position, TenantId};
use crate::limits::{NAMED_STREAMS_MAX, PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
use crate::streams::groups::LossReport;
use crate::streams::name::EVENTS;
use crate::streams::scopes::FieldValues;
use crate::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, PageLimit, Retention, StreamError, StreamName,
    StreamPage,
};

#[derive(Debug, Default)]
pub(super) struct State {
    /// The event at `trimmed + 1 + index`.
    events: VecDeque<Stored>,
    trimmed: u64,
    /// Held positions of each tenant's streams, in order, by the stream's name.
    streams: HashMap<TenantId, HashMap<Arc<str>, VecDeque<u64>>>,
    /// Which streams with a name of their own each tenant has begun.
    named: HashMap<TenantId, BTreeSet<Arc<str>>>,
    /// First positions of ids inside the dedup window, by tenant, stream and id.
    ids: HashMap<(TenantId, Arc<str>, Arc<str>), u64>,
    /// The oldest position inside the dedup window.
    window_first: u64,
    tenants: BTreeSet<TenantId>,
    pub(super) groups: super::groups::Kept,
    scopes: Arc<ChangeScopes>,
    /// Entries that one change stream keeps; none keeps all.
    change_entries_max: Option<usize>,
    /// Up to where a stream's entries were dropped beyond that.
    dropped: HashMap<(TenantId, Arc<str>), u64>,
    /// Last known values of field scopes, by tenant, aggregate and its id.
    values: HashMap<(TenantId, String, String), FieldValues>,
}

/// An event is a place in the batch it came in.
#[derive(Debug)]
pub(super) struct Stored {
    batch: Arc<EventBatch>,
    index: usize,
    pub(super) appended_at: i64,
    /// What it was appended to.
    stream: Arc<str>,
    changes: Vec<Arc<str>>,
}

impl Stored {
    fn event(&self) -> Event<'_> {
        self.batch.get(self.index)
    }

    fn id_key(&self) -> (TenantId, Arc<str>, Arc<str>) {
        (self.batch.tenant.clone(), Arc::clone(&self.stream), self.event().id.into())
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self { window_first: 1, ..Self::default() }
    }

    pub(super) fn cap_change_streams(&mut self, entries_max: Option<u64>) {
        let entries_max = entries_max.filter(|max| *max > 0);
        self.change_entries_max = entries_max.map(|max| usize::try_from(max).unwrap_or(usize::MAX));
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds { trimmed: Position(self.trimmed), newest: Position(self.newest()) }
    }

    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.tenants.iter().cloned().collect()
    }

    pub(super) fn scopes(&self) -> Arc<ChangeScopes> {
        Arc::clone(&self.scopes)
    }

    pub(super) fn newest(&self) -> u64 {
        self.trimmed + self.events.len() as u64
    }

    pub(super) fn at(&self, position: u64) -> Option<&Stored> {
        let index = position.checked_sub(self.trimmed + 1)?;
        self.events.get(usize::try_from(index).ok()?)
    }

    pub(super) fn declare_scopes(
        &mut self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> Result<(), StreamError> {
        let newest = Position(self.newest());
        let mut scopes = ChangeScopes::clone(&self.scopes);
        let useless = scopes.declare(owner, declarations, newest)?;
        self.values.retain(|(_, aggregate, _), _| !useless.contains(aggregate));
        self.scopes = Arc::new(scopes);
        Ok(())
    }

    /// The name of a stream that takes appends.
    pub(super) fn appendable(
        &mut self,
        tenant: &TenantId,
        stream: &StreamName,
    ) -> Result<Arc<str>, StreamError> {
        let name: Arc<str> = stream.to_string().into();
        match stream {
            StreamName::Events => {}
            StreamName::Changes(_) => {
                return Err(StreamError::NotAppendable { stream: stream.to_string() });
            }
            StreamName::Named(_) => {
                let named = self.named.entry(tenant.clone()).or_default();
                if !named.contains(&name) && named.len() >= NAMED_STREAMS_MAX {
                    return Err(StreamError::TooManyStreams { max: NAMED_STREAMS_MAX });
                }
                named.insert(Arc::clone(&name));
            }
        }
        Ok(name)
    }

    /// Positions for a batch, and which of its events are new. Changes nothing.
    pub(super) fn admit(
        &self,
        stream: &Arc<str>,
        batch: &EventBatch,
    ) -> Result<(Vec<Appended>, Vec<usize>), StreamError> {
        let mut appended: Vec<Appended> = Vec::with_capacity(batch.len());
        let mut fresh: Vec<usize> = Vec::new();
        let mut inside: HashMap<&str, usize> = HashMap::new();
        for (index, event) in batch.iter().enumerate() {
            let key = (batch.tenant.clone(), Arc::clone(stream), event.id.into());
            let known = self.ids.get(&key).copied();
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

    pub(super) fn store(
        &mut self,
        stream: &Arc<str>,
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
        if &**stream == EVENTS {
            self.tenants.insert(tenant.clone());
            self.mark_changes(&mut kept);
        }
        let kept = Arc::new(kept);
        let mut marks = kept.marks().iter().peekable();
        for (index, event) in kept.iter().enumerate() {
            let mut changes = Vec::new();
            while let Some(mark) = marks.next_if(|mark| mark.index as usize == index) {
                changes.push(Arc::clone(&mark.stream));
            }
            let streams = self.streams.entry(tenant.clone()).or_default();
            for name in changes.iter().chain([stream]) {
                streams.entry(Arc::clone(name)).or_default().push_back(event.position.0);
            }
            let stream = Arc::clone(stream);
            let stored = Stored { batch: Arc::clone(&kept), index, appended_at, stream, changes };
            self.ids.insert(stored.id_key(), event.position.0);
            self.events.push_back(stored);
        }
        let window_max = u64::try_from(window_max).unwrap_or(u64::MAX);
        self.forget_ids(self.newest().saturating_sub(window_max));
        kept
    }

    /// Drops the oldest entries of those of a batch's change streams that have a quarter more than they keep. Answers
    /// what that took from groups.
    pub(super) fn cap(&mut self, batch: &EventBatch, now: Micros) -> Vec<LossReport> {
        let Some(max) = self.change_entries_max else { return Vec::new() };
        let tenant = &batch.tenant;
        let names: BTreeSet<Arc<str>> = batch.marks().iter().map(|mark| Arc::clone(&mark.stream)).collect();
        let mut lost = Vec::new();
        for name in names {
            let Some(held) = self.held(tenant, &name) else { continue };
            let over = held.len().saturating_sub(max);
            let Some(until) = over.checked_sub(1).and_then(|last| held.get(last)).copied() else { continue };
            if over <= max / 4 {
                continue;
            }
            // Apart from the state, so that groups can be compared with the log.
            let mut groups = std::mem::take(&mut self.groups);
            lost.extend(groups.lose(self, Position(until), Some((tenant, &*name)), now));
            self.groups = groups;
            if let Some(held) = self.streams.get_mut(tenant).and_then(|streams| streams.get_mut(&name)) {
                held.drain(..over);
            }
            self.dropped.insert((tenant.clone(), name), until);
        }
        lost
    }

    /// Notes the change streams of each event, and what their fields say now.
    fn mark_changes(&mut self, batch: &mut EventBatch) {
        if self.scopes.is_empty() {
            return;
        }
        let scopes = Arc::clone(&self.scopes);
        let mut marks = Vec::new();
        for (index, event) in batch.iter().enumerate() {
            let Some(scopes) = scopes.of(event.aggregate) else { continue };
            let key = (batch.tenant.clone(), event.aggregate.to_owned(), event.agg_id.to_owned());
            let before = self.values.remove(&key).unwrap_or_default();
            let derived = scopes.derive(&event, &before);
            if !derived.values.is_empty() {
                self.values.insert(key, derived.values);
            }
            marks.extend(derived.streams.iter().map(|stream| (index, Arc::from(stream.to_string()))));
        }
        for (index, stream) in marks {
            batch.mark(index, stream);
        }
    }

    /// Takes ids up to a position out of the dedup window.
    fn forget_ids(&mut self, until: u64) {
        while self.window_first <= until {
            let position = self.window_first;
            let key = self.at(position).map(Stored::id_key);
            if let Some(key) = key
                && self.ids.get(&key) == Some(&position)
            {
                self.ids.remove(&key);
            }
            self.window_first += 1;
        }
    }

    pub(super) fn page(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> Result<Page, StreamError> {
        let Bounds { trimmed, newest } = self.bounds();
        if after < trimmed {
            return Err(StreamError::PositionLost { asked: after, trimmed });
        }
        if after > newest {
            return Err(StreamError::PositionAhead { asked: after, newest });
        }
        let (events, next) = self.events_of(tenant, EVENTS, after, limit);
        Ok(Page { events, next, oldest: Position(self.trimmed + 1) })
    }

    pub(super) fn stream_page(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> Result<StreamPage, StreamError> {
        let Bounds { trimmed, newest } = self.bounds();
        if after > newest {
            return Err(StreamError::PositionAhead { asked: after, newest });
        }
        let since = match stream {
            StreamName::Changes(changes) => self.scopes.since(changes).unwrap_or(newest),
            _ => Position::START,
        };
        let name = stream.to_string();
        let dropped = match self.change_entries_max {
            Some(_) => self.dropped.get(&(tenant.clone(), Arc::from(&*name))).copied(),
            None => None,
        };
        let oldest = trimmed.max(since).max(Position(dropped.unwrap_or_default()));
        let (events, next) = self.events_of(tenant, &name, after, limit);
        Ok(StreamPage { events, next, oldest, newest, truncated: after < oldest })
    }

    /// A stream's held events after a position, and where to go on.
    fn events_of(
        &self,
        tenant: &TenantId,
        stream: &str,
        after: Position,
        limit: PageLimit,
    ) -> (Arc<EventBatch>, Position) {
        let mut events = EventBatch::new(tenant.clone());
        let mut next = Position(self.newest());
        let held = self.held(tenant, stream);
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
        (Arc::new(events), next)
    }

    /// The held positions of a tenant's stream, in order; none where there never was one.
    pub(super) fn held(&self, tenant: &TenantId, stream: &str) -> Option<&VecDeque<u64>> {
        self.streams.get(tenant).and_then(|streams| streams.get(stream))
    }

    /// The newest position that goes.
    pub(super) fn trim_until(&self, retention: Retention, now: i64) -> u64 {
        let by_count = retention.events.map_or(0, |events| self.newest().saturating_sub(events));
        let by_age = retention.age.map_or(0, |age| {
            let cutoff = now.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
            self.trimmed + self.events.partition_point(|stored| stored.appended_at < cutoff) as u64
        });
        by_count.max(by_age)
    }

    /// Drops everything up to a position. Answers how many events went.
    pub(super) fn trim(&mut self, until: u64) -> u64 {
        let before = self.trimmed;
        self.forget_ids(until);
        while self.trimmed < until {
            let Some(stored) = self.events.pop_front() else { break };
            self.trimmed += 1;
            let Some(streams) = self.streams.get_mut(&stored.batch.tenant) else { continue };
            for name in stored.changes.iter().chain([&stored.stream]) {
                if let Some(held) = streams.get_mut(name) {
                    // A change stream may have dropped it before.
                    if held.front() == Some(&self.trimmed) {
                        held.pop_front();
                    }
                    if held.is_empty() {
                        streams.remove(name);
                        self.dropped.remove(&(stored.batch.tenant.clone(), Arc::clone(name)));
                    }
                }
            }
        }
        self.trimmed - before
    }
}
