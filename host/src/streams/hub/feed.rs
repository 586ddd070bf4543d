//! One tenant's followed streams: pure, but for the queues that it fills.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};

use super::ChangeMode;
use super::queue::{GapCause, Queue};
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::limits::CHANGE_PENDING_BYTES_MAX;
use crate::telemetry::metrics::{CHANGES_CONFLATED, CHANGES_PENDING};

/// What an event that waits costs beside its bytes.
const PENDING_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct Feed {
    /// Everything up to here is delivered, waits for the end of a window, or was told of.
    position: Position,
    streams: HashMap<Arc<str>, Followed>,
    /// When which window ends. A stream that nobody follows any more may still stand here.
    due: BTreeSet<(Micros, Arc<str>, Duration)>,
}

/// A stream that somebody follows.
#[derive(Debug)]
enum Followed {
    Raw(Vec<Arc<Queue>>),
    /// By window.
    Conflated(BTreeMap<Duration, Window>),
}

/// The subscribers with the same window, and what waits for its end.
#[derive(Debug, Default)]
struct Window {
    subscribers: Vec<Arc<Queue>>,
    /// By the aggregate's id; a stream has one aggregate.
    pending: HashMap<Box<str>, Pending>,
    bytes: usize,
    due: Option<Micros>,
}

/// The latest event of an aggregate.
#[derive(Debug)]
struct Pending {
    version: u64,
    position: u64,
    event: Arc<EventBatch>,
}

impl Feed {
    pub(super) fn new(position: Position) -> Self {
        Self { position, streams: HashMap::new(), due: BTreeSet::new() }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The position, unless something of a stream waits for the end of a window.
    pub(super) fn reached(&self, stream: &str) -> Option<Position> {
        let waits = match self.streams.get(stream)? {
            Followed::Raw(_) => false,
            Followed::Conflated(windows) => windows.values().any(|window| !window.pending.is_empty()),
        };
        (!waits).then_some(self.position)
    }

    /// When the next window ends.
    pub(super) fn due(&self) -> Option<Micros> {
        self.due.first().map(|(due, _, _)| *due)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Streams and subscribers.
    pub(super) fn followed(&self) -> (usize, usize) {
        let of = |followed: &Followed| match followed {
            Followed::Raw(subscribers) => subscribers.len(),
            Followed::Conflated(windows) => windows.values().map(|window| window.subscribers.len()).sum(),
        };
        (self.streams.len(), self.streams.values().map(of).sum())
    }

    /// Adds a subscriber; answers after which position it is served, or the mode that others follow in.
    pub(super) fn add(
        &mut self,
        stream: &Arc<str>,
        mode: ChangeMode,
        queue: &Arc<Queue>,
    ) -> Result<Position, &'static str> {
        let followed = self.streams.entry(Arc::clone(stream)).or_insert_with(|| match mode {
            ChangeMode::Raw => Followed::Raw(Vec::new()),
            ChangeMode::Conflated { .. } => Followed::Conflated(BTreeMap::new()),
        });
        match (followed, mode) {
            (Followed::Raw(subscribers), ChangeMode::Raw) => subscribers.push(Arc::clone(queue)),
            (Followed::Conflated(windows), ChangeMode::Conflated { window }) => {
                windows.entry(window).or_default().subscribers.push(Arc::clone(queue));
            }
            (Followed::Raw(_), _) => return Err("raw"),
            (Followed::Conflated(_), _) => return Err("conflated"),
        }
        Ok(self.position)
    }

    /// Takes a subscriber out; with the last one, the stream and what waits in it.
    pub(super) fn remove(&mut self, stream: &str, queue: &Arc<Queue>) {
        let others = |subscribers: &mut Vec<Arc<Queue>>| {
            subscribers.retain(|other| !Arc::ptr_eq(other, queue));
        };
        match self.streams.get_mut(stream) {
            None => return,
            Some(Followed::Raw(subscribers)) => others(subscribers),
            Some(Followed::Conflated(windows)) => {
                windows.values_mut().for_each(|w| others(&mut w.subscribers))
            }
        }
        self.drop_empty(stream);
    }

    fn drop_empty(&mut self, stream: &str) {
        let empty = match self.streams.get_mut(stream) {
            None => return,
            Some(Followed::Raw(subscribers)) => subscribers.is_empty(),
            Some(Followed::Conflated(windows)) => {
                windows.retain(|_, window| {
                    let kept = !window.subscribers.is_empty();
                    if !kept {
                        gauge!(CHANGES_PENDING).decrement(window.pending.len() as f64);
                    }
                    kept
                });
                windows.is_empty()
            }
        };
        if empty {
            self.streams.remove(stream);
        }
    }

    /// Takes in a chunk of the tail; what is not after the position is known.
    pub(super) fn take(&mut self, chunk: &EventBatch, now: Micros) {
        let mut raw: HashMap<Arc<str>, EventBatch> = HashMap::new();
        for mark in chunk.marks() {
            let index = mark.index as usize;
            if chunk.records()[index].position <= self.position.0 {
                continue;
            }
            match self.streams.get_mut(&mark.stream) {
                None => {}
                Some(Followed::Raw(_)) => raw
                    .entry(Arc::clone(&mark.stream))
                    .or_insert_with(|| EventBatch::new(chunk.tenant.clone()))
                    .push_from(chunk, index),
                Some(Followed::Conflated(windows)) => {
                    for (length, window) in windows {
                        window.take(chunk, index);
                        if window.bytes > CHANGE_PENDING_BYTES_MAX {
                            window.flush(&chunk.tenant);
                        } else if window.due.is_none() {
                            let due = Micros(now.0.saturating_add(micros(*length)));
                            window.due = Some(due);
                            self.due.insert((due, Arc::clone(&mark.stream), *length));
                        }
                    }
                }
            }
        }
        for (stream, events) in raw {
            self.deliver_now(&stream, &Arc::new(events));
        }
        self.position = self.position.max(chunk.last_position());
    }

    /// Nothing came up to a position.
    pub(super) fn pass(&mut self, newest: Position) {
        self.position = self.position.max(newest);
    }

    /// The tail does not reach back to the position: everybody is told, and it goes on at the newest.
    pub(super) fn lose(&mut self, newest: Position) {
        let streams: Vec<Arc<str>> = self.streams.keys().cloned().collect();
        for stream in streams {
            match self.streams.get_mut(&stream) {
                None => {}
                Some(Followed::Raw(subscribers)) => {
                    subscribers.retain(|queue| queue.gap(newest, GapCause::TailLost));
                }
                Some(Followed::Conflated(windows)) => {
                    for window in windows.values_mut() {
                        window.clear();
                        window.subscribers.retain(|queue| queue.gap(newest, GapCause::TailLost));
                    }
                }
            }
            self.drop_empty(&stream);
        }
        self.pass(newest);
    }

    /// Delivers to everybody who follows a stream, whatever the mode.
    pub(super) fn deliver_now(&mut self, stream: &str, events: &Arc<EventBatch>) {
        match self.streams.get_mut(stream) {
            None => return,
            Some(Followed::Raw(subscribers)) => subscribers.retain(|queue| queue.put(events)),
            Some(Followed::Conflated(windows)) => {
                for window in windows.values_mut() {
                    window.subscribers.retain(|queue| queue.put(events));
                }
            }
        }
        self.drop_empty(stream);
    }

    /// Delivers what waits in windows that have ended.
    pub(super) fn flush(&mut self, now: Micros) {
        // A window that ends later than it lasts: the clock was set back.
        while let Some((due, _, length)) = self.due.first()
            && (*due <= now || due.0 - now.0 > micros(*length))
            && let Some((due, stream, length)) = self.due.pop_first()
        {
            let window = match self.streams.get_mut(&stream) {
                Some(Followed::Conflated(windows)) => windows.get_mut(&length),
                _ => None,
            };
            // The stream may have been left and followed anew since: then its windows are others.
            let Some(window) = window.filter(|window| window.due == Some(due)) else { continue };
            window.due = None;
            if let Some(tenant) = window.pending.values().next().map(|pending| pending.event.tenant.clone()) {
                window.flush(&tenant);
            }
        }
    }

    /// Nothing more comes for anybody.
    pub(super) fn close(&mut self) {
        for followed in self.streams.values_mut() {
            match followed {
                Followed::Raw(subscribers) => subscribers.iter().for_each(|queue| queue.close()),
                Followed::Conflated(windows) => {
                    for window in windows.values_mut() {
                        window.clear();
                        window.subscribers.iter().for_each(|queue| queue.close());
                    }
                }
            }
        }
        self.streams.clear();
        self.due.clear();
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Window {
    /// Keeps an event as the latest of its aggregate, unless a later version waits already.
    fn take(&mut self, chunk: &EventBatch, index: usize) {
        let event = chunk.get(index);
        let known = self.pending.get(event.agg_id);
        if known.is_some_and(|known| known.version > event.version) {
            counter!(CHANGES_CONFLATED).increment(1);
            return;
        }
        let mut one = EventBatch::with_capacity(chunk.tenant.clone(), 1, 0);
        one.push_from(chunk, index);
        self.bytes += one.bytes() + PENDING_BYTES;
        let pending = Pending { version: event.version, position: event.position.0, event: Arc::new(one) };
        match self.pending.insert(event.agg_id.into(), pending) {
            Some(former) => {
                self.bytes -= former.event.bytes() + PENDING_BYTES;
                counter!(CHANGES_CONFLATED).increment(1);
            }
            None => gauge!(CHANGES_PENDING).increment(1.0),
        }
    }

    /// Delivers what waits, in the order of positions: numbers, so that 10 comes after 9.
    fn flush(&mut self, tenant: &TenantId) {
        let mut waiting: Vec<Pending> = self.pending.drain().map(|(_, pending)| pending).collect();
        gauge!(CHANGES_PENDING).decrement(waiting.len() as f64);
        self.bytes = 0;
        if waiting.is_empty() {
            return;
        }
        waiting.sort_unstable_by_key(|pending| pending.position);
        let mut events = EventBatch::new(tenant.clone());
        for pending in &waiting {
            events.push_from(&pending.event, 0);
        }
        let events = Arc::new(events);
        self.subscribers.retain(|queue| queue.put(&events));
    }

    fn clear(&mut self) {
        gauge!(CHANGES_PENDING).decrement(self.pending.len() as f64);
        self.pending.clear();
        self.bytes = 0;
    }
}
