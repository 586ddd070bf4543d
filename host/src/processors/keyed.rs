//! A task's keyed state as its instance sees it: what is committed, what is
//! being committed, and what has been handed back since. The running batch's
//! own writes are added by the SDK.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use super::StateReader;
use crate::checkpoints::{CheckpointStore, CommitError, EffectBatch, EffectRef, StateEntry, TaskId};

/// Key to value; none for a deleted entry.
type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

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
                EffectRef::StatePut { key, value } => layers.pending.insert(key.into(), Some(value.into())),
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
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CommitError> {
        {
            let layers = self.lock();
            if let Some(written) = layers.pending.get(key).or_else(|| layers.committing.get(key)) {
                return Ok(written.clone());
            }
        }
        self.store.state_get(&self.task, key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<StateEntry>, CommitError> {
        let mut overlay = self.overlay(prefix, after);
        let wanted = limit as usize;
        let mut found = Vec::new();
        let mut from = after.map(<[u8]>::to_vec);
        loop {
            let page = self.store.state_scan(&self.task, prefix, from.as_deref(), limit)?;
            let last_page = page.len() < wanted;
            let reach = if last_page { None } else { page.last().map(|(key, _)| key.clone()) };
            let mut merged: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
                page.into_iter().map(|(key, value)| (key, Some(value))).collect();
            // The overlay wins, as far as this page reaches.
            let beyond = match &reach {
                Some(key) => {
                    let mut beyond = overlay.split_off(key);
                    if let Some(value) = beyond.remove(key) {
                        overlay.insert(key.clone(), value);
                    }
                    beyond
                }
                None => Writes::new(),
            };
            merged.append(&mut overlay);
            overlay = beyond;
            found.extend(merged.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))));
            if found.len() >= wanted || last_page || wanted == 0 {
                found.truncate(wanted);
                return Ok(found);
            }
            from = reach;
        }
    }
}

impl KeyedState {
    fn overlay(&self, prefix: &[u8], after: Option<&[u8]>) -> Writes {
        let layers = self.lock();
        let begin = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let mut overlay = Writes::new();
        for layer in [&layers.committing, &layers.pending] {
            let matching = layer
                .range::<[u8], _>((begin, Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()));
            overlay.extend(matching);
        }
        overlay
    }
}
