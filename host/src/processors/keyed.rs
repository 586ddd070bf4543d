//! A task's keyed state as its instance sees it: what is committed, what is
//! being committed, and what has been handed back since. The running batch's
//! own writes are added by the SDK.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use super::StateReader;
use crate::checkpoints::{
    CheckpointStore, CommitError, EffectBatch, EffectRef, ScanLimit, StateEntry, StatePage, StateValue,
    TaskId,
};

/// Key to value; none for a deleted entry.
type Writes = BTreeMap<Vec<u8>, Option<StateValue>>;

/// Two layers of writes over the store. Owned by the task; the instance only reads.
#[derive(Debug)]
pub(super) struct KeyedState {
    task: TaskId,
    store: Arc<dyn CheckpointStore>,
    layers: Mutex<Layers>,
}

#[derive(Debug, Default)]
struct Layers {
    pending: Writes,
    committing: Writes,
}

impl KeyedState {
    pub(super) fn new(task: TaskId, store: Arc<dyn CheckpointStore>) -> Self {
        Self { task, store, layers: Mutex::default() }
    }

    /// Takes the writes of effects that were handed back.
    pub(super) fn add(&self, effects: &EffectBatch) {
        let mut layers = self.lock();
        for effect in effects.iter() {
            match effect {
                EffectRef::StatePut { key, value, expires_at } => {
                    layers.pending.insert(key.into(), Some(StateValue { value: value.into(), expires_at }))
                }
                EffectRef::StateDelete { key } => layers.pending.insert(key.into(), None),
                _ => None,
            };
        }
    }

    /// What was pending is on its way into the store.
    pub(super) fn begin_commit(&self) {
        let mut layers = self.lock();
        layers.committing = std::mem::take(&mut layers.pending);
    }

    /// It has arrived.
    pub(super) fn end_commit(&self) {
        self.lock().committing.clear();
    }

    /// Forgets what was handed back since the last commit began.
    pub(super) fn drop_pending(&self) {
        self.lock().pending.clear();
    }

    /// Forgets everything that is not in the store.
    pub(super) fn drop_all(&self) {
        *self.lock() = Layers::default();
    }

    fn lock(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().expect("no code panics while it holds the overlay")
    }
}

impl StateReader for KeyedState {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        {
            let layers = self.lock();
            if let Some(written) = layers.pending.get(key).or_else(|| layers.committing.get(key)) {
                return Ok(written.clone());
            }
        }
        self.store.state_get(&self.task, key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: ScanLimit) -> Result<StatePage, CommitError> {
        let mut merge = Merge { limit, bytes: 0, found: StatePage::default() };
        if limit.entries == 0 {
            return Ok(merge.found);
        }
        let mut from = after.map(<[u8]>::to_vec);
        loop {
            // What is found already and what the store answers stay under the bound together.
            let page = self.store.state_scan(&self.task, prefix, from.as_deref(), merge.left())?;
            // The overlay counts as far as this page reaches.
            let reach = if page.more { page.entries.last().map(|entry| entry.key.clone()) } else { None };
            let full = {
                let layers = self.lock();
                let ours = layers.writes(prefix, from.as_deref(), reach.as_deref());
                merge.add(ours, page.entries)
            };
            if full || reach.is_none() || merge.is_full() {
                merge.found.more = full || reach.is_some();
                return Ok(merge.found);
            }
            from = reach;
        }
    }
}

impl Layers {
    /// The writes with this prefix after one key and up to another, in order; the later of two wins.
    fn writes<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        up_to: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], Option<&'a StateValue>)> {
        let begin = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let of = move |layer: &'a Writes| {
            layer
                .range::<[u8], _>((begin, Bound::Unbounded))
                .map(|(key, value)| (key.as_slice(), value.as_ref()))
                .take_while(move |(key, _)| key.starts_with(prefix) && up_to.is_none_or(|last| *key <= last))
        };
        let mut earlier = of(&self.committing).peekable();
        let mut later = of(&self.pending).peekable();
        std::iter::from_fn(move || match (earlier.peek(), later.peek()) {
            (Some((a, _)), Some((b, _))) if a < b => earlier.next(),
            (Some((a, _)), Some((b, _))) => {
                if a == b {
                    earlier.next();
                }
                later.next()
            }
            (Some(_), None) => earlier.next(),
            (None, _) => later.next(),
        })
    }
}

/// A scan's answer while it grows.
struct Merge {
    limit: ScanLimit,
    bytes: usize,
    found: StatePage,
}

impl Merge {
    /// Merges what was written here with what is stored. Answers whether the page is full.
    fn add<'a>(
        &mut self,
        ours: impl Iterator<Item = (&'a [u8], Option<&'a StateValue>)>,
        theirs: Vec<StateEntry>,
    ) -> bool {
        let mut theirs = theirs.into_iter().peekable();
        for (key, written) in ours {
            while let Some(entry) = theirs.next_if(|entry| entry.key.as_slice() < key) {
                if self.push(entry) {
                    return true;
                }
            }
            theirs.next_if(|entry| entry.key == key);
            if let Some(StateValue { value, expires_at }) = written {
                if self.limit.ends(self.found.entries.len(), self.bytes, key.len() + value.len()) {
                    return true;
                }
                let entry = StateEntry { key: key.into(), value: value.clone(), expires_at: *expires_at };
                self.push(entry);
            }
        }
        theirs.any(|entry| self.push(entry))
    }

    fn left(&self) -> ScanLimit {
        let found = u32::try_from(self.found.entries.len()).unwrap_or(u32::MAX);
        ScanLimit {
            entries: self.limit.entries.saturating_sub(found),
            bytes: self.limit.bytes.saturating_sub(self.bytes),
        }
    }

    fn is_full(&self) -> bool {
        let left = self.left();
        left.entries == 0 || left.bytes == 0
    }

    /// False once it was taken; true when the page has no room for it.
    fn push(&mut self, entry: StateEntry) -> bool {
        if self.limit.ends(self.found.entries.len(), self.bytes, entry.bytes()) {
            return true;
        }
        self.bytes += entry.bytes();
        self.found.entries.push(entry);
        false
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::checkpoints::{
        Checkpoint, Commit, Committed, DeadLetterRow, EffectKind, EffectRecord, Generation, TaskRow,
    };
    use crate::event::{Position, TenantId};

    /// What is committed. Only keyed state is asked for here.
    #[derive(Debug, Default)]
    struct Stored(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

    impl CheckpointStore for Stored {
        fn state_get(&self, _: &TaskId, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
            let found = self.0.lock().expect("test").get(key).cloned();
            Ok(found.map(|value| StateValue { value, expires_at: None }))
        }

        fn state_scan(
            &self,
            _: &TaskId,
            prefix: &[u8],
            after: Option<&[u8]>,
            limit: ScanLimit,
        ) -> Result<StatePage, CommitError> {
            let (mut page, mut bytes) = (StatePage::default(), 0);
            for (key, value) in &*self.0.lock().expect("test") {
                if !key.starts_with(prefix) || after.is_some_and(|after| key.as_slice() <= after) {
                    continue;
                }
                if limit.ends(page.entries.len(), bytes, key.len() + value.len()) {
                    page.more = true;
                    break;
                }
                bytes += key.len() + value.len();
                page.entries.push(StateEntry { key: key.clone(), value: value.clone(), expires_at: None });
            }
            Ok(page)
        }

        fn claim(&self, _: &TaskId) -> BoxFuture<'_, Result<(Generation, Option<Checkpoint>), CommitError>> {
            unreachable!("not asked for")
        }

        fn commit(&self, _: Commit) -> BoxFuture<'_, Result<Committed, CommitError>> {
            unreachable!("not asked for")
        }

        fn forget(
            &self,
            _: &TaskId,
            _: Generation,
            _: Position,
        ) -> BoxFuture<'_, Result<Committed, CommitError>> {
            unreachable!("not asked for")
        }

        fn checkpoint(&self, _: &TaskId) -> BoxFuture<'_, Result<Option<Checkpoint>, CommitError>> {
            unreachable!("not asked for")
        }

        fn tasks(&self, _: Option<&str>) -> BoxFuture<'_, Result<Vec<TaskRow>, CommitError>> {
            unreachable!("not asked for")
        }

        fn dead_letters(
            &self,
            _: &str,
            _: Option<&TenantId>,
            _: u32,
        ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, CommitError>> {
            unreachable!("not asked for")
        }

        fn dead_letter(
            &self,
            _: &str,
            _: Option<&TenantId>,
            _: crate::event::Position,
        ) -> BoxFuture<'_, Result<Option<DeadLetterRow>, CommitError>> {
            unreachable!("not asked for")
        }
    }

    fn write(key: &[u8], value: Option<&[u8]>) -> EffectBatch {
        let kind = if value.is_some() { EffectKind::StatePut } else { EffectKind::StateDelete };
        let value = value.unwrap_or_default();
        let bytes = |part: &[u8]| u32::try_from(part.len()).expect("small");
        let record = EffectRecord {
            kind,
            table: 0,
            event: 0,
            version: 0,
            at: 0,
            schema_version: 0,
            start: 0,
            key_bytes: bytes(key),
            aggregate_bytes: 0,
            type_bytes: 0,
            id_bytes: 0,
            body_bytes: bytes(value),
            depth: 0,
        };
        EffectBatch::check([key, value].concat(), vec![record], &[], &[]).expect("a good effect")
    }

    /// Writes and deletes of a pseudo-random order, in all three places at once, against one map.
    #[test]
    fn a_scan_over_store_and_overlay_is_that_of_one_map_however_it_is_cut() {
        let store = Arc::new(Stored::default());
        let task = TaskId { processor: "p".into(), tenant: TenantId::new("t").expect("a name"), lane: 0 };
        let keyed = KeyedState::new(task, Arc::clone(&store) as _);
        let mut all = BTreeMap::new();
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap_or(0) % below
        };
        for round in 0..300 {
            let key = format!("{}{:02}", ["k/", "j", "k0"][random(8).min(2)], random(40)).into_bytes();
            let value = (random(3) > 0).then(|| vec![7; random(60)]);
            keyed.add(&write(&key, value.as_deref()));
            match value {
                Some(value) => all.insert(key, value),
                None => all.remove(&key),
            };
            match round % 25 {
                10 => keyed.begin_commit(),
                20 => {
                    let committing = keyed.lock().committing.clone();
                    let mut stored = store.0.lock().expect("test");
                    for (key, value) in committing {
                        match value {
                            Some(value) => stored.insert(key, value.value),
                            None => stored.remove(&key),
                        };
                    }
                    keyed.end_commit();
                }
                _ => {}
            }
            let limit =
                ScanLimit { entries: 1 + u32::try_from(random(6)).unwrap_or(0), bytes: 1 + random(150) };
            let prefix: &[u8] = [b"k/", b"".as_slice()][random(2)];
            let (mut found, mut after) = (BTreeMap::new(), None);
            loop {
                let page = keyed.scan(prefix, after.as_deref(), limit).expect("it can be read");
                let bytes: usize = page.entries.iter().map(StateEntry::bytes).sum();
                assert!(page.entries.len() == 1 || bytes <= limit.bytes, "the page is too large");
                assert!(page.entries.len() <= limit.entries as usize);
                assert!(!page.more || !page.entries.is_empty(), "a page with more to come leads on");
                after = page.entries.last().map(|entry| entry.key.clone()).or(after);
                found.extend(page.entries.into_iter().map(|entry| (entry.key, entry.value)));
                if !page.more {
                    break;
                }
            }
            let expected: BTreeMap<_, _> = all
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            assert_eq!(found, expected, "round {round}");
        }
    }
}
