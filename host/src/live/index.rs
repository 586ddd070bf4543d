//! Which views a changed row may concern.
//!
//! A view whose filter demands one of some values in a column (`eq`, `in`, outermost) is found by that value;
//! of several such conditions the one is taken whose values fewest other views are found by. Views without one
//! are tried with every change. So the index may name a view in vain, and never leaves one out; the full filter
//! is asked afterwards. Views that hold a row are found by its key (see `holders`).

use std::collections::{HashMap, HashSet};

use super::shape::{Plan, Source};
use super::sort_key::encode_value;
use crate::tables::{Row, Value};

pub(super) type ViewId = u32;

/// Encoded values of one column.
type Values = Vec<Box<[u8]>>;
/// Views by the value that they demand in one column.
type ByValue = HashMap<Box<[u8]>, Vec<ViewId>>;

#[derive(Debug, Default)]
pub(super) struct Index {
    columns: Vec<(Source, ByValue)>,
    /// Views that no value leads to.
    others: HashSet<ViewId>,
    /// Where each view stands, so that taking it out costs no search.
    places: HashMap<ViewId, (Source, Values)>,
}

impl Index {
    pub(super) fn add(&mut self, id: ViewId, plan: &Plan) {
        let cost = |source: Source, values: &[Box<[u8]>]| {
            let column = self.columns.iter().find(|(known, _)| *known == source);
            column.map_or(0, |(_, by)| values.iter().map(|v| by.get(v).map_or(0, Vec::len)).sum::<usize>())
        };
        let wanted = plan.wanted().into_iter().map(|(source, condition)| {
            let mut values: Vec<_> = condition.values.iter().map(encoded).collect();
            values.sort();
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
        for value in &values {
            self.columns[place].1.entry(value.clone()).or_default().push(id);
        }
        self.places.insert(id, (source, values));
    }

    pub(super) fn remove(&mut self, id: ViewId) {
        self.others.remove(&id);
        let Some((source, values)) = self.places.remove(&id) else { return };
        let Some(place) = self.columns.iter().position(|(known, _)| *known == source) else { return };
        let by_value = &mut self.columns[place].1;
        for value in values {
            if let Some(views) = by_value.get_mut(&value) {
                views.retain(|view| *view != id);
                if views.is_empty() {
                    by_value.remove(&value);
                }
            }
        }
        if by_value.is_empty() {
            self.columns.swap_remove(place);
        }
    }

    /// Adds the views that a row with these values may belong to, each once.
    pub(super) fn candidates(&self, row: &Row, buffer: &mut Vec<u8>, out: &mut Vec<ViewId>) {
        out.extend(&self.others);
        for (source, by_value) in &self.columns {
            buffer.clear();
            source.with(row, |value| encode_value(value, buffer));
            if let Some(views) = by_value.get(buffer.as_slice()) {
                out.extend(views);
            }
        }
    }
}

fn encoded(value: &Value) -> Box<[u8]> {
    let mut out = Vec::new();
    encode_value(value, &mut out);
    out.into()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
