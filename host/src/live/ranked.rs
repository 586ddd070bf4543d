//! Rows in the order of their places.
//!
//! Rows are many and changes hit them anywhere, so what a change must move and what a search must look at is kept
//! small and close together: the heads of the places, and numbers of slots. The rows themselves stay in their slots.

use std::cmp::Ordering;

use super::ahead;
use super::sort_key::SortKey;
use super::window::Held;

/// Bytes that all places may begin with in common and that their heads leave out.
const COMMON_MAX: u32 = 12;

#[derive(Clone, Debug)]
pub(super) struct Ranked<R> {
    common: Common,
    order: Vec<Ranking>,
    slots: Vec<Held<R>>,
}

/// A row in the order.
#[derive(Clone, Copy, Debug)]
struct Ranking {
    /// Four bytes of its place, behind the common ones.
    head: u32,
    slot: u32,
}

/// What the first bytes of all places have in common.
#[derive(Clone, Copy, Debug, Default)]
struct Common {
    bytes: u32,
    value: u128,
}

impl Common {
    /// Of all places between these two.
    fn of(first: u128, last: u128) -> Self {
        let bytes = ((first ^ last).leading_zeros() / 8).min(COMMON_MAX);
        Self { bytes, value: Self::top(first, bytes) }
    }

    fn top(head: u128, bytes: u32) -> u128 {
        head.checked_shr(128 - 8 * bytes).unwrap_or_default()
    }

    /// How what a place begins with compares with that.
    fn compare(self, head: u128) -> Ordering {
        Self::top(head, self.bytes).cmp(&self.value)
    }

    /// The bytes behind it.
    fn rest(self, head: u128) -> u32 {
        let rest = (head << (8 * self.bytes)) >> 96;
        u32::try_from(rest).expect("32 bits are left")
    }
}

impl<R> Default for Ranked<R> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<R> Ranked<R> {
    /// Of rows that are in order.
    pub(super) fn new(rows: Vec<Held<R>>) -> Self {
        let order = (0..slot(rows.len())).map(|slot| Ranking { head: 0, slot }).collect();
        let mut ranked = Self { common: Common::default(), order, slots: rows };
        ranked.find_heads();
        ranked
    }

    /// Finds out anew what the places have in common.
    fn find_heads(&mut self) {
        let head = |held: Option<&Held<R>>| held.map_or(0, |held| held.at.head());
        self.common = Common::of(head(self.get(0)), head(self.get(self.len().saturating_sub(1))));
        for ranking in &mut self.order {
            ranking.head = self.common.rest(self.slots[ranking.slot as usize].at.head());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Held<R>> {
        self.order.get(index).map(|ranking| &self.slots[ranking.slot as usize])
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Held<R>> {
        self.order.iter().map(|ranking| &self.slots[ranking.slot as usize])
    }

    /// Where a row stands, or would.
    pub(super) fn search(&self, at: &SortKey) -> Result<usize, usize> {
        let head = at.head();
        match self.common.compare(head) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len()),
            Ordering::Equal => {}
        }
        let head = self.common.rest(head);
        let first = self.order.partition_point(|other| other.head < head);
        if self.order.get(first).is_none_or(|other| other.head != head) {
            return Err(first);
        }
        // Where heads are the same, the whole places decide.
        let behind = first + self.order[first..].partition_point(|other| other.head == head);
        let whole = |other: &Ranking| self.slots[other.slot as usize].at.cmp(at);
        let same = self.order[first..behind].binary_search_by(whole);
        same.map(|place| first + place).map_err(|place| first + place)
    }

    /// Asks for what a search looks at.
    pub(super) fn ask_for_heads(&self) {
        ahead::all(self.order.as_slice());
    }

    /// Asks for the row at an index.
    pub(super) fn ask_for(&self, index: usize) {
        if let Some(held) = self.get(index) {
            ahead::all(held);
        }
    }

    /// Asks for what a new row and one less take: the last one, and the end of the slots.
    pub(super) fn ask_for_end(&self) {
        self.ask_for(self.len().saturating_sub(1));
        if let Some(last) = self.slots.last() {
            ahead::all(last);
        }
    }

    /// Whether there is a row at this place or behind it.
    pub(super) fn reaches(&self, at: &SortKey) -> bool {
        let Some(last) = self.order.last() else { return false };
        let head = at.head();
        match self.common.compare(head).then_with(|| self.common.rest(head).cmp(&last.head)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => *at <= self.slots[last.slot as usize].at,
        }
    }

    pub(super) fn insert(&mut self, index: usize, row: Held<R>) {
        let head = row.at.head();
        let is_common = !self.order.is_empty() && self.common.compare(head) == Ordering::Equal;
        self.order.insert(index, Ranking { head: self.common.rest(head), slot: slot(self.slots.len()) });
        self.slots.push(row);
        if !is_common {
            self.find_heads();
        }
    }

    pub(super) fn remove(&mut self, index: usize) -> Held<R> {
        let free = self.order.remove(index).slot;
        // The last slot's row takes the free one.
        let last = slot(self.slots.len() - 1);
        if let Some(moved) = self.order.iter_mut().find(|ranking| ranking.slot == last) {
            moved.slot = free;
        }
        self.slots.swap_remove(free as usize)
    }

    /// Another row in the place of this one, which then stands at another index.
    pub(super) fn shift(&mut self, from: usize, to: usize, row: Held<R>) {
        let head = row.at.head();
        let slot = self.order[from].slot;
        self.order[from].head = self.common.rest(head);
        self.slots[slot as usize] = row;
        if from < to {
            self.order[from..=to].rotate_left(1);
        } else {
            self.order[to..=from].rotate_right(1);
        }
        if self.common.compare(head) != Ordering::Equal {
            self.find_heads();
        }
    }
}

fn slot(number: usize) -> u32 {
    u32::try_from(number).expect("a window is small")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::{Order, Value};

    fn at(value: &Value, key: &str) -> SortKey {
        let order = [Order { column: "c".into(), descending: false }];
        SortKey::new(&order, [value], key)
    }

    /// Values that begin alike, and others: what places have in common changes as they come and go.
    fn any_place() -> impl Strategy<Value = SortKey> {
        let value = prop_oneof![
            6 => (0_i64..300).prop_map(Value::Int),
            1 => any::<i64>().prop_map(Value::Int),
            1 => Just(Value::Null),
        ];
        let text = prop_oneof![Just("same beginning of many texts "), Just("same"), Just("")];
        let text = (text, "[ab]{0,3}").prop_map(|(start, end)| Value::Text(format!("{start}{end}")));
        (prop_oneof![2 => value, 1 => text], "[abc]{1,2}").prop_map(|(value, key)| at(&value, &key))
    }

    proptest! {
        #[test]
        fn rows_are_found_where_a_sorted_list_has_them(
            begin in prop::collection::vec(any_place(), 0..8),
            steps in prop::collection::vec((0_u8..4, any_place(), any::<prop::sample::Index>()), 1..120),
        ) {
            let mut list = begin;
            list.sort();
            list.dedup();
            let mut ranked = Ranked::new(list.iter().map(|at| Held { at: at.clone(), row: () }).collect());
            for (kind, place, any) in steps {
                let found = list.binary_search(&place);
                prop_assert_eq!(ranked.search(&place), found);
                prop_assert_eq!(ranked.reaches(&place), list.last().is_some_and(|last| place <= *last));
                match (kind, found) {
                    (0, Ok(index)) => {
                        prop_assert_eq!(ranked.remove(index).at, list.remove(index));
                    }
                    (1, Err(index)) if !list.is_empty() => {
                        let from = any.index(list.len());
                        let to = if index > from { index - 1 } else { index };
                        list.remove(from);
                        list.insert(to, place.clone());
                        ranked.shift(from, to, Held { at: place, row: () });
                    }
                    (_, Err(index)) => {
                        list.insert(index, place.clone());
                        ranked.insert(index, Held { at: place, row: () });
                    }
                    _ => {}
                }
                prop_assert!(ranked.iter().map(|held| &held.at).eq(&list));
            }
        }
    }
}
