//! Keyed state in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use crate::checkpoints::{CommitError, EffectBatch, EffectRef, ScanLimit, StateEntry, StatePage, StateValue};
use crate::processors::StateReader;

#[derive(Debug, Default)]
pub(super) struct TrialState(Mutex<BTreeMap<Vec<u8>, StateValue>>);

impl TrialState {
    pub(super) fn add(&self, effects: &EffectBatch) {
        let mut entries = self.entries();
        for effect in effects.iter() {
            match effect {
                EffectRef::StatePut { key, value, expires_at } => {
                    entries.insert(key.into(), StateValue { value: value.into(), expires_at });
                }
                EffectRef::StateDelete { key } => {
                    entries.remove(key);
                }
                _ => {}
            }
        }
    }

    pub(super) fn all(&self) -> BTreeMap<Vec<u8>, StateValue> {
        self.entries().clone()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, StateValue>> {
        self.0.lock().expect("no code panics while it holds the entries")
    }
}

impl StateReader for TrialState {
    fn get(&self, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        Ok(self.entries().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: ScanLimit) -> Result<StatePage, CommitError> {
        let begin = match after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let entries = self.entries();
        let (mut page, mut bytes) = (StatePage::default(), 0);
        let found = entries.range::<[u8], _>((begin, Bound::Unbounded));
        for (key, entry) in found.take_while(|(key, _)| key.starts_with(prefix)) {
            let next = key.len() + entry.value.len();
            if limit.ends(page.entries.len(), bytes, next) {
                page.more = true;
                break;
            }
            bytes += next;
            let StateValue { value, expires_at } = entry.clone();
            page.entries.push(StateEntry { key: key.clone(), value, expires_at });
        }
        Ok(page)
    }
}
