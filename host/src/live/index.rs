//! Which views a changed row may concern.
//!
//! A view whose filter demands one of some values in a column (`eq`, `in`, outermost) is found by that value;
//! of several such conditions the one is taken whose values fewest other views are found by. Views without one
//! are tried with every change. So the index may name a view in vain, and never leaves one out; the full filter
//! is asked afterwards. Views that hold a row are found by its key (see `holders`).

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::shape::{Plan, Source};
use super::sort_key::SortKey;
use crate::tables::Row;

pub(super) type ViewId = u32;

/// Encoded values of one column.
type Values = Vec<SortKey>;
/// Views by the value that they demand in one column.
type ByValue = HashMap<SortKey, Few>;

/// Views: mostly one.
#[derive(Debug, Default)]
enum Few {
    #[default]
    None,
    One(ViewId),
    Many(Vec<ViewId>),
}

impl Few {
    fn list(&self) -> &[ViewId] {
        match self {
            Self::None => &[],
            Self::One(view) => std::slice::from_ref(view),
            Self::Many(views) => views,
        }
    }

    fn add(&mut self, view: ViewId) {
        match self {
            Self::None => *self = Self::One(view),
            Self::One(first) => *self = Self::Many(vec![*first, view]),
            Self::Many(views) => views.push(view),
        }
    }

    /// Answers whether nobody is left.
    fn remove(&mut self, view: ViewId) -> bool {
        match self {
            Self::None => true,
            Self::One(only) => *only == view,
            Self::Many(views) => {
                views.retain(|other| *other != view);
                views.is_empty()
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    columns: Vec<(Source, ByValue)>,
    /// Views that no value leads to.
    others: BTreeSet<ViewId>,
    /// Where each view stands, so that taking it out costs no search.
    places: HashMap<ViewId, (Source, Values)>,
}

impl Index {
    pub(super) fn add(&mut self, id: ViewId, plan: &Plan) {
        let cost = |source: Source, values: &[SortKey]| {
            let column = self.columns.iter().find(|(known, _)| *known == source);
            column.map_or(0, |(_, by)| {
                values.iter().map(|v| by.get(v).map_or(0, |few| few.list().len())).sum::<usize>()
            })
        };
        let wanted = plan.wanted().into_iter().map(|(source, condition)| {
            let mut values: Vec<_> = condition.values.iter().map(SortKey::of).collect();
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
            self.columns[place].1.entry(value.clone()).or_default().add(id);
        }
        self.places.insert(id, (source, values));
    }

    pub(super) fn remove(&mut self, id: ViewId) {
        self.others.remove(&id);
        let Some((source, values)) = self.places.remove(&id) else { return };
        let Some(place) = self.columns.iter().position(|(known, _)| *known == source) else { return };
        let by_value = &mut self.columns[place].1;
        for value in values {
            if by_value.get_mut(&value).is_some_and(|views| views.remove(id)) {
                by_value.remove(&value);
            }
        }
        if by_value.is_empty() {
            self.columns.swap_remove(place);
        }
    }

    /// Adds the views that a row with these values may belong to, each once.
    pub(super) fn candidates(&self, row: &Row, out: &mut Vec<ViewId>) {
        out.extend(&self.others);
        for (source, by_value) in &self.columns {
            let value = source.with(row, SortKey::of);
            out.extend(by_value.get(&value).map_or(&[][..], Few::list));
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
