//! The ordering keys of a task that wait, and the events that wait with them.
//!
//! Pure: no clock, no storage. A key waits because its first event is tried
//! again later, or because it is held: its first event became a dead letter that
//! somebody must replay or discard. Whatever follows on the key waits behind, in
//! order. The task writes down every change with its next commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::checkpoints::{ParkedKey, ParkedState, ParkedWrites};
use crate::event::{EventBatch, Micros, Position};

/// An ordering key's bytes.
pub(super) type Key = Arc<[u8]>;

/// What waits. A clone costs a reference for each event.
#[derive(Clone, Debug, Default)]
pub(super) struct Parked {
    keys: BTreeMap<Key, Waiting>,
    events: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Waiting {
    state: ParkedState,
    /// One event each. The first is the one to try again, unless the key is held.
    events: VecDeque<Arc<EventBatch>>,
}

/// What has changed since the last commit was submitted.
#[derive(Debug, Default)]
pub(super) struct ParkedChanges {
    keys: BTreeSet<Key>,
    added: Vec<(Key, Arc<EventBatch>)>,
    removed: Vec<Position>,
}

impl ParkedChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }

    /// What the commit writes, with the keys as they are now.
    pub(super) fn writes(self, parked: &Parked) -> ParkedWrites {
        let state = |key: &Key| parked.keys.get(key).map(|waiting| waiting.state.clone());
        ParkedWrites {
            keys: self.keys.into_iter().map(|key| (Arc::clone(&key), state(&key))).collect(),
            added: self.added,
            removed: self.removed,
        }
    }
}

impl Parked {
    /// What a task finds when it begins. Nothing waits beyond `latest`: an earlier owner may have gone by
    /// another clock, or by longer waits.
    pub(super) fn new(stored: Vec<ParkedKey>, latest: Micros) -> Self {
        let mut parked = Self::default();
        for ParkedKey { key, mut state, events } in stored {
            state.retry_at = state.retry_at.min(latest);
            parked.events += events.len();
            parked.bytes += events.iter().map(|event| event.bytes()).sum::<usize>();
            parked.keys.insert(key, Waiting { state, events: events.into() });
        }
        parked
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    /// What counts towards `parked_events_max`: events, and held keys, each of which has one elsewhere.
    pub(super) fn count(&self) -> usize {
        self.events + self.held()
    }

    pub(super) fn events(&self) -> usize {
        self.events
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn held(&self) -> usize {
        self.keys.values().filter(|waiting| waiting.state.held.is_some()).count()
    }

    /// The dead letter that holds the first held key.
    pub(super) fn first_held(&self) -> Option<Position> {
        self.keys.values().find_map(|waiting| waiting.state.held)
    }

    /// The key that this dead letter holds.
    pub(super) fn held_by(&self, letter: Position) -> Option<Key> {
        let mut keys = self.keys.iter();
        keys.find(|(_, waiting)| waiting.state.held == Some(letter)).map(|(key, _)| Arc::clone(key))
    }

    /// When the next key is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Micros> {
        let retrying = self.keys.values().filter(|waiting| waiting.state.held.is_none());
        retrying.map(|waiting| waiting.state.retry_at).min()
    }

    /// A key whose time has come, the longest due one first, and its first event.
    pub(super) fn due(&self, now: Micros) -> Option<(Key, Arc<EventBatch>)> {
        let retrying = self.keys.iter().filter(|(_, waiting)| waiting.state.held.is_none());
        let (key, waiting) = retrying.min_by_key(|(_, waiting)| waiting.state.retry_at)?;
        if waiting.state.retry_at > now {
            return None;
        }
        Some((Arc::clone(key), Arc::clone(waiting.events.front()?)))
    }

    pub(super) fn state(&self, key: &[u8]) -> Option<&ParkedState> {
        self.keys.get(key).map(|waiting| &waiting.state)
    }

    // Changes.

    /// An event joins its key, which waits already or waits from now on in this state.
    pub(super) fn add(
        &mut self,
        key: &Key,
        event: Arc<EventBatch>,
        new: impl FnOnce() -> ParkedState,
        changes: &mut ParkedChanges,
    ) {
        self.events += 1;
        self.bytes += event.bytes();
        changes.added.push((Arc::clone(key), Arc::clone(&event)));
        let waiting = self.keys.entry(Arc::clone(key)).or_insert_with(|| {
            changes.keys.insert(Arc::clone(key));
            Waiting { state: new(), events: VecDeque::new() }
        });
        waiting.events.push_back(event);
    }

    /// A key is held by a dead letter, with nothing behind it yet.
    pub(super) fn hold(&mut self, key: &Key, state: ParkedState, changes: &mut ParkedChanges) {
        changes.keys.insert(Arc::clone(key));
        match self.keys.get_mut(key) {
            Some(waiting) => waiting.state = state,
            None => drop(self.keys.insert(Arc::clone(key), Waiting { state, events: VecDeque::new() })),
        }
    }

    /// Writes down that the first event failed again.
    pub(super) fn put_off(&mut self, key: &Key, state: ParkedState, changes: &mut ParkedChanges) {
        if let Some(waiting) = self.keys.get_mut(key) {
            waiting.state = state;
            changes.keys.insert(Arc::clone(key));
        }
    }

    /// The first event of a key is done, or became a dead letter.
    pub(super) fn take_first(&mut self, key: &Key, changes: &mut ParkedChanges) {
        let Some(waiting) = self.keys.get_mut(key) else { return };
        if let Some(event) = waiting.events.pop_front() {
            self.events -= 1;
            self.bytes -= event.bytes();
            changes.removed.push(event.last_position());
        }
    }

    /// The key goes on: with what waits behind it from `now` on, or, when nothing does, as any other.
    /// Answers how many events wait.
    pub(super) fn release(&mut self, key: &Key, now: Micros, changes: &mut ParkedChanges) -> usize {
        let Some(waiting) = self.keys.get_mut(key) else { return 0 };
        changes.keys.insert(Arc::clone(key));
        let left = waiting.events.len();
        if left == 0 {
            self.keys.remove(key);
        } else {
            waiting.state =
                ParkedState { attempts: 0, since: now, retry_at: now, held: None, message: String::new() };
        }
        left
    }

    /// Another version: what failed under the old one gets a new chance at once.
    pub(super) fn retry_all(&mut self, now: Micros) {
        for waiting in self.keys.values_mut().filter(|waiting| waiting.state.held.is_none()) {
            waiting.state.attempts = 0;
            waiting.state.retry_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, TenantId};

    fn event(position: u64) -> Arc<EventBatch> {
        let mut batch = EventBatch::new(TenantId::new("t").expect("a good name"));
        let event = Event {
            position: Position(position),
            aggregate: "a",
            agg_id: "1",
            event_type: "x",
            payload: b"{}",
            ..Event::default()
        };
        batch.push_checked(&event);
        Arc::new(batch)
    }

    fn state(retry_at: i64) -> ParkedState {
        ParkedState {
            attempts: 1,
            since: Micros(0),
            retry_at: Micros(retry_at),
            held: None,
            message: String::new(),
        }
    }

    #[test]
    fn a_key_keeps_its_order_and_the_longest_due_goes_first() {
        let (mut parked, mut changes) = (Parked::default(), ParkedChanges::default());
        let keys: [Key; 2] = [b"one".as_slice().into(), b"two".as_slice().into()];
        parked.add(&keys[0], event(1), || state(20), &mut changes);
        parked.add(&keys[1], event(2), || state(10), &mut changes);
        parked.add(&keys[0], event(3), || unreachable!("the key waits already"), &mut changes);
        assert_eq!(parked.next_retry(), Some(Micros(10)));
        assert!(parked.due(Micros(9)).is_none());
        let (key, first) = parked.due(Micros(30)).expect("two keys are due");
        assert_eq!((&*key, first.last_position()), (b"two".as_slice(), Position(2)));
        parked.take_first(&keys[1], &mut changes);
        assert_eq!(parked.release(&keys[1], Micros(30), &mut changes), 0);
        assert!(!parked.contains(b"two"));
        let (_, first) = parked.due(Micros(30)).expect("the other key is due");
        assert_eq!(first.last_position(), Position(1));
        parked.take_first(&keys[0], &mut changes);
        assert_eq!(parked.release(&keys[0], Micros(31), &mut changes), 1);
        let (_, first) = parked.due(Micros(31)).expect("what follows is due at once");
        assert_eq!((first.last_position(), parked.count()), (Position(3), 1));
        let writes = changes.writes(&parked);
        assert_eq!(writes.added.len(), 3);
        assert_eq!(writes.removed, [Position(2), Position(1)]);
        let gone: Vec<_> = writes.keys.iter().map(|(key, state)| (&**key, state.is_none())).collect();
        assert_eq!(gone, [(b"one".as_slice(), false), (b"two".as_slice(), true)]);
    }

    #[test]
    fn a_held_key_is_never_due_and_counts() {
        let (mut parked, mut changes) = (Parked::default(), ParkedChanges::default());
        let key: Key = b"k".as_slice().into();
        parked.hold(&key, ParkedState { held: Some(Position(7)), ..state(0) }, &mut changes);
        parked.add(&key, event(8), || unreachable!("the key waits already"), &mut changes);
        assert!(parked.due(Micros(i64::MAX)).is_none());
        assert_eq!((parked.count(), parked.events(), parked.held()), (2, 1, 1));
        assert_eq!(parked.held_by(Position(7)), Some(Arc::clone(&key)));
        parked.retry_all(Micros(1));
        assert!(parked.due(Micros(i64::MAX)).is_none(), "another version does not release what is held");
        assert_eq!(parked.release(&key, Micros(5), &mut changes), 1);
        assert!(parked.due(Micros(5)).is_some());
    }
}
