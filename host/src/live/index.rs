//! Which views a changed row may concern.
//!
//! A view whose filter demands one of some values in a column (`eq`, `in`, outermost) is found by that value;
//! of several such conditions the one is taken whose values fewest other views are found by. Views without one
//! are tried with every change. So the index may name a view in vain, and never leaves one out; the full filter
//! is asked afterwards. Views that hold a row are found by its key (see `holders`).

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::numbers::Numbers;
use super::shape::{Plan, Source};
use super::sort_key::SortKey;
use crate::tables::{Row, Value};

pub(super) type ViewId = u32;

/// Hashes of values of one column.
type Values = Vec<u64>;

/// Numbers from here on are those of lists.
const LISTS: u32 = 1 << 31;

/// Views by the hash of the value that they demand in one column. Where two values have the same hash a view is named
/// in vain.
#[derive(Debug, Default)]
struct ByValue {
    /// A value that one view demands has that view's number; others have that of a list.
    numbers: Numbers,
    lists: Vec<Vec<ViewId>>,
    free: Vec<u32>,
}

impl ByValue {
    fn number(&self, hash: u64) -> Option<u32> {
        self.numbers.find(hash, |_| true)
    }

    fn list(&self, number: u32) -> Option<&Vec<ViewId>> {
        number.checked_sub(LISTS).map(|place| &self.lists[place as usize])
    }

    fn count(&self, hash: u64) -> usize {
        self.number(hash).map_or(0, |number| self.list(number).map_or(1, Vec::len))
    }

    fn find(&self, hash: u64, out: &mut Vec<ViewId>) {
        let Some(number) = self.number(hash) else { return };
        match self.list(number) {
            Some(views) => out.extend(views),
            None => out.push(number),
        }
    }

    fn add(&mut self, hash: u64, view: ViewId) {
        let Some(number) = self.number(hash) else { return self.numbers.insert(hash, view) };
        if let Some(place) = number.checked_sub(LISTS) {
            return self.lists[place as usize].push(view);
        }
        let both = vec![number, view];
        let place = match self.free.pop() {
            Some(place) => {
                self.lists[place as usize] = both;
                place
            }
            None => {
                self.lists.push(both);
                u32::try_from(self.lists.len() - 1).expect("there are fewer lists than views")
            }
        };
        self.numbers.remove(hash, number);
        self.numbers.insert(hash, LISTS + place);
    }

    fn remove(&mut self, hash: u64, view: ViewId) {
        let Some(number) = self.number(hash) else { return };
        let Some(place) = number.checked_sub(LISTS) else { return self.numbers.remove(hash, view) };
        let views = &mut self.lists[place as usize];
        views.retain(|other| *other != view);
        if views.is_empty() {
            self.free.push(place);
            self.numbers.remove(hash, number);
        }
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    columns: Vec<(Source, ByValue)>,
    /// Views that no value leads to.
    others: BTreeSet<ViewId>,
    /// Where each view stands, so that taking it out costs no search.
    places: HashMap<ViewId, (Source, Values)>,
    /// Seeded at random: values come from outside.
    hasher: DefaultHashBuilder,
}

impl Index {
    fn hash(&self, value: &Value) -> u64 {
        self.hasher.hash_one(SortKey::of(value).bytes())
    }

    pub(super) fn add(&mut self, id: ViewId, plan: &Plan) {
        let cost = |source: Source, values: &[u64]| {
            let column = self.columns.iter().find(|(known, _)| *known == source);
            column.map_or(0, |(_, by)| values.iter().map(|hash| by.count(*hash)).sum::<usize>())
        };
        let wanted = plan.wanted().into_iter().map(|(source, condition)| {
            let mut values: Vec<_> = condition.values.iter().map(|value| self.hash(value)).collect();
            values.sort_unstable();
            values.dedup();
            (cost(source, &values), values.len(), source, values)
        });
        let Some((_, _, source, values)) = wanted.min_by_key(|(cost, values, ..)| (*cost, *values)) else {
            self.others.insert(id);
            return;
        };
        let place = self.columns.iter().position(|(known, _)| *known == source).unwrap_or_else(|| {
            self.columns.push((source, ByValue::default()));
            self.columns.len() - 1
        });
        for hash in &values {
            self.columns[place].1.add(*hash, id);
        }
        self.places.insert(id, (source, values));
    }

    pub(super) fn remove(&mut self, id: ViewId) {
        self.others.remove(&id);
        let Some((source, values)) = self.places.remove(&id) else { return };
        let Some(place) = self.columns.iter().position(|(known, _)| *known == source) else { return };
        let by_value = &mut self.columns[place].1;
        for hash in values {
            by_value.remove(hash, id);
        }
        if by_value.is_empty() {
            self.columns.swap_remove(place);
        }
    }

    /// Adds the views that a row with these values may belong to, each once.
    pub(super) fn candidates(&self, row: &Row, out: &mut Vec<ViewId>) {
        out.extend(&self.others);
        for (source, by_value) in &self.columns {
            by_value.find(source.with(row, |value| self.hash(value)), out);
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
