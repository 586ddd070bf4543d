//! Keyed state as a candidate sees it: that of the place where its stretch
//! began, plus what it has written itself. What the running version has written
//! since is hidden behind the values of before.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::StateReader;
use crate::checkpoints::{CommitError, EffectBatch, EffectRef, ScanLimit, StateEntry, StatePage, StateValue};
use crate::limits::SHADOW_STATE_BYTES_MAX;

/// Key to value; none for what is not there.
type Entries = BTreeMap<Vec<u8>, Option<StateValue>>;

/// What the keys that were written since a stretch began held before.
#[derive(Debug, Default)]
pub(super) struct Before(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    entries: Entries,
    bytes: usize,
}

impl Before {
    /// Remembers the entries that these effects are about to change. Call it
    /// before they can be read. Answers false when there is no room or an entry cannot be read.
    pub(super) fn remember(&self, effects: &EffectBatch, now: &dyn StateReader) -> bool {
        effects.iter().all(|effect| match effect {
            EffectRef::StatePut { key, .. } | EffectRef::StateDelete { key } => self.hold(key, now),
            _ => true,
        })
    }

    fn hold(&self, key: &[u8], now: &dyn StateReader) -> bool {
        if lock(&self.0).entries.contains_key(key) {
            return true;
        }
        let Ok(value) = now.get(key) else { return false };
        self.insert(key, value)
    }

    fn insert(&self, key: &[u8], value: Option<StateValue>) -> bool {
        let mut held = lock(&self.0);
        held.bytes += key.len() + value.as_ref().map_or(0, |value| value.value.len());
        held.entries.entry(key.to_vec()).or_insert(value);
        held.bytes <= SHADOW_STATE_BYTES_MAX
    }

    fn get(&self, key: &[u8]) -> Option<Option<StateValue>> {
        lock(&self.0).entries.get(key).cloned()
    }
}

/// Reads of a stretch, over the running version's own.
#[derive(Debug)]
pub(super) struct ShadowState {
    own: Mutex<Entries>,
    before: Arc<Before>,
    now: Arc<dyn StateReader>,
    /// Keeps what was read as it was: for two instances that are to see the same.
    frozen: bool,
}

impl ShadowState {
    pub(super) fn new(before: Arc<Before>, now: Arc<dyn StateReader>) -> Self {
        Self { own: Mutex::default(), before, now, frozen: false }
    }

    /// For replays: whatever a key held at its first read, it goes on to hold
    /// for all readers that share `before`.
    pub(super) fn frozen(before: Arc<Before>, now: Arc<dyn StateReader>) -> Self {
        Self { frozen: true, ..Self::new(before, now) }
    }

    /// Takes the writes that the instance has handed back.
    pub(super) fn add(&self, effects: &EffectBatch) {
        let mut own = lock(&self.own);
        for effect in effects.iter() {
            match effect {
                EffectRef::StatePut { key, value, expires_at } => {
                    own.insert(key.into(), Some(StateValue { value: value.into(), expires_at }))
                }
                EffectRef::StateDelete { key } => own.insert(key.into(), None),
                _ => None,
            };
        }
    }
}

impl StateReader for ShadowState {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        if let Some(written) = lock(&self.own).get(key) {
            return Ok(written.clone());
        }
        if let Some(before) = self.before.get(key) {
            return Ok(before);
        }
        let now = self.now.get(key)?;
        // Written meanwhile: what was read may be newer than this place. It was remembered before.
        if let Some(before) = self.before.get(key) {
            return Ok(before);
        }
        if self.frozen {
            self.before.insert(key, now.clone());
        }
        Ok(now)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: ScanLimit) -> Result<StatePage, CommitError> {
        let mut found = StatePage::default();
        let mut bytes = 0;
        let mut from = after.map(<[u8]>::to_vec);
        if limit.entries == 0 {
            return Ok(found);
        }
        loop {
            let page = self.now.scan(prefix, from.as_deref(), limit)?;
            let reach = if page.more { page.entries.last().map(|entry| entry.key.clone()) } else { None };
            // The layers are read after the page: what was written meanwhile is in them.
            let mut merged: Entries = page
                .entries
                .into_iter()
                .map(|StateEntry { key, value, expires_at }| (key, Some(StateValue { value, expires_at })))
                .collect();
            for layer in [&lock(&self.before.0).entries, &*lock(&self.own)] {
                merged.extend(part(layer, prefix, from.as_deref(), reach.as_deref()));
            }
            for (key, value) in merged {
                let Some(StateValue { value, expires_at }) = value else { continue };
                let entry = StateEntry { key, value, expires_at };
                if limit.ends(found.entries.len(), bytes, entry.bytes()) {
                    found.more = true;
                    return Ok(found);
                }
                bytes += entry.bytes();
                found.entries.push(entry);
            }
            if reach.is_none() {
                return Ok(found);
            }
            from = reach;
        }
    }
}

/// The entries with a prefix, after one key and up to another.
fn part(entries: &Entries, prefix: &[u8], after: Option<&[u8]>, reach: Option<&[u8]>) -> Entries {
    let begin = match after {
        Some(key) if key >= prefix => Bound::Excluded(key),
        _ => Bound::Included(prefix),
    };
    entries
        .range::<[u8], _>((begin, Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix) && reach.is_none_or(|reach| key.as_slice() <= reach))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds an overlay")
}
