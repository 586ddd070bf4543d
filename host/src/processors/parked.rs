//! The ordering keys of a task that wait, and the events that wait with them.
//!
//! Pure: no clock, no storage. A key waits because its first event is tried
//! again later, or because it is held: its first event became a dead letter that
//! somebody must replay or discard. Whatever follows on the key waits behind, in
//! order. The task writes down every change with its next commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::{QueueSync, RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::checkpoints::{ParkedKey, ParkedState, ParkedWrites};
use crate::event::{EventBatch, Micros, Position};

/// An ordering key's bytes.
pub(super) type Key = Arc<[u8]>;

/// What waits. The task looks at it in every turn and clones it with every commit, so both must not depend
/// on how much waits: its parts share what has not changed with the clones, and times and letters have
/// indexes of their own.
#[derive(Clone, Debug, Default)]
pub(super) struct Parked {
    keys: RedBlackTreeMapSync<Key, Waiting>,
    /// The keys that are tried again, by when.
    retries: RedBlackTreeSetSync<(Micros, Key)>,
    /// The keys that are held, by the dead letter that holds them.
    held: RedBlackTreeSetSync<(Position, Key)>,
    events: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Waiting {
    state: ParkedState,
    /// One event each. The first is the one to try again, unless the key is held.
    events: QueueSync<Arc<EventBatch>>,
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
        ParkedWrites {
            keys: self.keys.into_iter().map(|key| (Arc::clone(&key), parked.state(&key).cloned())).collect(),
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
            parked.put(&key, Waiting { state, events: events.into_iter().collect() });
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
        self.held.size()
    }

    /// The oldest dead letter that holds a key.
    pub(super) fn first_held(&self) -> Option<Position> {
        self.held.first().map(|(letter, _)| *letter)
    }

    /// The key that this dead letter holds.
    pub(super) fn held_by(&self, letter: Position) -> Option<Key> {
        let from: Key = [].into();
        let (found, key) = self.held.range((letter, from)..).next()?;
        (*found == letter).then(|| Arc::clone(key))
    }

    /// When the next key is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Micros> {
        self.retries.first().map(|(when, _)| *when)
    }

    /// A key whose time has come, the longest due one first, and its first event.
    pub(super) fn due(&self, now: Micros) -> Option<(Key, Arc<EventBatch>)> {
        let (_, key) = self.retries.first().filter(|(when, _)| *when <= now)?;
        let event = self.keys.get(key)?.events.peek()?;
        Some((Arc::clone(key), Arc::clone(event)))
    }

    pub(super) fn state(&self, key: &[u8]) -> Option<&ParkedState> {
        self.keys.get(key).map(|waiting| &waiting.state)
    }

    // Changes. All of them go through `put` and `remove`, which keep the indexes.

    fn put(&mut self, key: &Key, waiting: Waiting) {
        self.remove(key);
        match waiting.state.held {
            Some(letter) => self.held.insert_mut((letter, Arc::clone(key))),
            None => self.retries.insert_mut((waiting.state.retry_at, Arc::clone(key))),
        }
        self.keys.insert_mut(Arc::clone(key), waiting);
    }

    fn remove(&mut self, key: &Key) {
        let Some(state) = self.state(key) else { return };
        match (state.held, state.retry_at) {
            (Some(letter), _) => self.held.remove_mut(&(letter, Arc::clone(key))),
            (None, when) => self.retries.remove_mut(&(when, Arc::clone(key))),
        };
        self.keys.remove_mut(key);
    }

    /// Puts another state to a key that waits. Answers false when it does not.
    fn set_state(&mut self, key: &Key, state: ParkedState) -> bool {
        let Some(waiting) = self.keys.get(key) else { return false };
        let events = waiting.events.clone();
        self.put(key, Waiting { state, events });
        true
    }

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
        match self.keys.get_mut(key) {
            Some(waiting) => waiting.events.enqueue_mut(event),
            None => {
                changes.keys.insert(Arc::clone(key));
                self.put(key, Waiting { state: new(), events: [event].into_iter().collect() });
            }
        }
    }

    /// A key is held by a dead letter, with nothing behind it yet.
    pub(super) fn hold(&mut self, key: &Key, state: ParkedState, changes: &mut ParkedChanges) {
        changes.keys.insert(Arc::clone(key));
        if !self.set_state(key, state.clone()) {
            self.put(key, Waiting { state, events: QueueSync::default() });
        }
    }

    /// Writes down that the first event failed again.
    pub(super) fn put_off(&mut self, key: &Key, state: ParkedState, changes: &mut ParkedChanges) {
        if self.set_state(key, state) {
            changes.keys.insert(Arc::clone(key));
        }
    }

    /// The first event of a key is done, or became a dead letter.
    pub(super) fn take_first(&mut self, key: &Key, changes: &mut ParkedChanges) {
        let Some(waiting) = self.keys.get_mut(key) else { return };
        let Some(event) = waiting.events.peek().map(Arc::clone) else { return };
        waiting.events.dequeue_mut();
        self.events -= 1;
        self.bytes -= event.bytes();
        changes.removed.push(event.last_position());
    }

    /// The key goes on: with what waits behind it from `now` on, or, when nothing does, as any other.
    /// Answers how many events wait.
    pub(super) fn release(&mut self, key: &Key, now: Micros, changes: &mut ParkedChanges) -> usize {
        let Some(waiting) = self.keys.get(key) else { return 0 };
        changes.keys.insert(Arc::clone(key));
        let left = waiting.events.len();
        if left == 0 {
            self.remove(key);
        } else {
            let message = String::new();
            let state = ParkedState { attempts: 0, since: now, retry_at: now, held: None, message };
            self.set_state(key, state);
        }
        left
    }

    /// Another version: what failed under the old one gets a new chance at once.
    pub(super) fn retry_all(&mut self, now: Micros) {
        let retrying: Vec<Key> = self.retries.iter().map(|(_, key)| Arc::clone(key)).collect();
        for key in retrying {
            let Some(state) = self.state(&key) else { continue };
            let state = ParkedState { attempts: 0, retry_at: now, ..state.clone() };
            self.set_state(&key, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

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
    /// The same without an index: what `Parked` is held to.
    #[derive(Clone, Debug, Default)]
    struct Naive(BTreeMap<Key, (ParkedState, VecDeque<u64>)>);

    impl Naive {
        /// How many events and held keys there are, the oldest letter that holds one, and what is due first.
        fn figures(&self) -> (usize, usize, Option<Position>, Option<(Micros, Key)>) {
            let held = || self.0.values().filter_map(|(state, _)| state.held);
            let retrying = self.0.iter().filter(|(_, (state, _))| state.held.is_none());
            let next = retrying.map(|(key, (state, _))| (state.retry_at, Arc::clone(key))).min();
            (self.0.values().map(|(_, events)| events.len()).sum(), held().count(), held().min(), next)
        }

        fn check(&self, parked: &Parked) {
            let (events, held, first_held, next) = self.figures();
            assert_eq!((parked.events(), parked.held(), parked.count()), (events, held, events + held));
            assert_eq!(
                parked.bytes(),
                self.0.values().flat_map(|(_, e)| e).map(|e| event(*e).bytes()).sum::<usize>()
            );
            assert_eq!((parked.first_held(), parked.is_empty()), (first_held, self.0.is_empty()));
            assert_eq!(parked.next_retry(), next.as_ref().map(|(when, _)| *when));
            let Some((when, key)) = next else {
                assert!(parked.due(Micros(i64::MAX)).is_none());
                return;
            };
            assert!(parked.due(Micros(when.0 - 1)).is_none(), "nothing is due before its time");
            let due = parked.due(when).map(|(key, event)| (key, event.last_position().0));
            assert_eq!(due, self.0[&key].1.front().map(|first| (key, *first)));
            for (key, (state, _)) in &self.0 {
                assert_eq!(parked.state(key), Some(state));
                if let Some(letter) = state.held {
                    assert_eq!(parked.held_by(letter).as_ref(), Some(key));
                    assert_eq!(parked.held_by(Position(letter.0 + 1)), None, "letters are even");
                }
            }
        }
    }

    /// What the store holds after every change was written down.
    #[derive(Clone, Debug, Default)]
    struct Written {
        keys: BTreeMap<Key, ParkedState>,
        events: BTreeMap<u64, Key>,
    }

    impl Written {
        fn apply(&mut self, writes: ParkedWrites) {
            for (key, state) in writes.keys {
                match state {
                    Some(state) => drop(self.keys.insert(key, state)),
                    None => drop(self.keys.remove(&key)),
                }
            }
            self.events.extend(writes.added.into_iter().map(|(key, event)| (event.last_position().0, key)));
            for position in writes.removed {
                self.events.remove(&position.0);
            }
        }

        fn check(&self, naive: &Naive) {
            let keys = naive.0.iter().map(|(key, (state, _))| (Arc::clone(key), state.clone()));
            assert_eq!(self.keys, keys.collect());
            let events = naive.0.iter().flat_map(|(key, (_, e))| e.iter().map(|e| (*e, Arc::clone(key))));
            assert_eq!(self.events, events.collect());
        }
    }

    /// One change that a task may make, on all.
    fn change(rng: &mut StdRng, number: u64, parked: &mut Parked, naive: &mut Naive, written: &mut Written) {
        let mut changes = ParkedChanges::default();
        let key: Key = [rng.random_range(0..12_u8)].into();
        let when = i64::try_from(number / 3 + rng.random_range(0..20)).expect("small");
        let letter = ParkedState { held: Some(Position(number * 2)), ..state(when) };
        let waits = naive.0.get(&key).map(|(state, events)| (state.held.is_some(), events.len()));
        match (rng.random_range(0..8), waits) {
            (0..3, _) => {
                parked.add(&key, event(number), || state(when), &mut changes);
                let new = || (state(when), VecDeque::new());
                naive.0.entry(key).or_insert_with(new).1.push_back(number);
            }
            (3, None | Some((false, 1..))) => {
                // Its event failed for good: it leaves the queue and holds the key.
                parked.take_first(&key, &mut changes);
                parked.hold(&key, letter.clone(), &mut changes);
                let waiting = naive.0.entry(key).or_insert_with(|| (state(0), VecDeque::new()));
                waiting.1.pop_front();
                waiting.0 = letter;
            }
            (4, Some((false, _))) => {
                parked.put_off(&key, ParkedState { attempts: 4, ..state(when) }, &mut changes);
                naive.0.get_mut(&key).expect("it waits").0 = ParkedState { attempts: 4, ..state(when) };
            }
            (5 | 6, Some((held, left))) => {
                if !held {
                    parked.take_first(&key, &mut changes);
                    naive.0.get_mut(&key).expect("it waits").1.pop_front();
                }
                let left = if held { left } else { left - 1 };
                assert_eq!(parked.release(&key, Micros(when), &mut changes), left);
                let released = ParkedState { attempts: 0, since: Micros(when), ..state(when) };
                match left {
                    0 => drop(naive.0.remove(&key)),
                    _ => naive.0.get_mut(&key).expect("it waits").0 = released,
                }
            }
            (7, _) if number.is_multiple_of(10) => {
                parked.retry_all(Micros(when));
                for (state, _) in naive.0.values_mut().filter(|(state, _)| state.held.is_none()) {
                    (state.attempts, state.retry_at) = (0, Micros(when));
                }
                // It is not written down: what becomes of the next tries is.
                for state in written.keys.values_mut().filter(|state| state.held.is_none()) {
                    (state.attempts, state.retry_at) = (0, Micros(when));
                }
            }
            _ => {}
        }
        written.apply(changes.writes(parked));
    }

    #[test]
    fn whatever_is_done_the_indexes_and_the_store_say_what_a_look_at_all_keys_says() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut parked, mut naive, mut written) =
                (Parked::default(), Naive::default(), Written::default());
            let mut before = (parked.clone(), naive.clone(), written.clone());
            for number in 1..400 {
                change(&mut rng, number, &mut parked, &mut naive, &mut written);
                naive.check(&parked);
                written.check(&naive);
                match rng.random_range(0..20) {
                    0 => before = (parked.clone(), naive.clone(), written.clone()),
                    1 => (parked, naive, written) = before.clone(),
                    _ => before.1.check(&before.0),
                }
            }
        }
    }

    #[test]
    fn what_a_task_began_with_is_indexed_too_and_waits_no_longer_than_it_may() {
        let key = |n: u8| -> Key { [n].into() };
        let stored = |n: u8, state| ParkedKey { key: key(n), state, events: vec![event(n.into())] };
        let held = ParkedState { held: Some(Position(9)), ..state(0) };
        let parked =
            Parked::new(vec![stored(1, state(500)), stored(2, held), stored(3, state(40))], Micros(50));
        assert_eq!((parked.count(), parked.held_by(Position(9))), (4, Some(key(2))));
        assert_eq!(parked.next_retry(), Some(Micros(40)));
        assert_eq!(parked.state(&key(1)).map(|state| state.retry_at), Some(Micros(50)));
    }
}
