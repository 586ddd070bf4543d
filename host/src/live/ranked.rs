//! Rows in the order of their places.
//!
//! Rows are many and changes hit them anywhere, so what a change must move and what a search must look at is kept
//! small and close together: the heads of the places, and numbers of slots. The rows themselves stay in their slots.

use super::sort_key::SortKey;
use super::window::Held;

#[derive(Clone, Debug)]
pub(super) struct Ranked<R> {
    /// The head of each row's place, in order.
    heads: Vec<u128>,
    /// The slot of each row, in order.
    order: Vec<u32>,
    slots: Vec<Held<R>>,
}

impl<R> Default for Ranked<R> {
    fn default() -> Self {
        Self { heads: Vec::new(), order: Vec::new(), slots: Vec::new() }
    }
}

impl<R> Ranked<R> {
    /// Of rows that are in order.
    pub(super) fn new(rows: Vec<Held<R>>) -> Self {
        let heads = rows.iter().map(|held| held.at.head()).collect();
        Self { heads, order: (0..slot(rows.len())).collect(), slots: rows }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Held<R>> {
        self.order.get(index).map(|slot| &self.slots[*slot as usize])
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Held<R>> {
        self.order.iter().map(|slot| &self.slots[*slot as usize])
    }

    /// Where a row stands, or would.
    pub(super) fn search(&self, at: &SortKey) -> Result<usize, usize> {
        let head = at.head();
        let first = self.heads.partition_point(|other| *other < head);
        if self.heads.get(first).is_none_or(|other| *other != head) {
            return Err(first);
        }
        // Where heads are the same, the whole places decide.
        let behind = first + self.heads[first..].partition_point(|other| *other == head);
        let same = self.order[first..behind].binary_search_by(|slot| self.slots[*slot as usize].at.cmp(at));
        same.map(|place| first + place).map_err(|place| first + place)
    }

    /// Whether there is a row at this place or behind it.
    pub(super) fn reaches(&self, at: &SortKey) -> bool {
        let (Some(last), head) = (self.heads.last(), at.head()) else { return false };
        head < *last || (head == *last && self.get(self.len() - 1).is_some_and(|last| *at <= last.at))
    }

    pub(super) fn insert(&mut self, index: usize, row: Held<R>) {
        self.heads.insert(index, row.at.head());
        self.order.insert(index, slot(self.slots.len()));
        self.slots.push(row);
    }

    pub(super) fn remove(&mut self, index: usize) -> Held<R> {
        self.heads.remove(index);
        let slot_of_row = self.order.remove(index);
        // The last slot's row takes the free one.
        let last = slot(self.slots.len() - 1);
        if let Some(moved) = self.order.iter_mut().find(|slot| **slot == last) {
            *moved = slot_of_row;
        }
        self.slots.swap_remove(slot_of_row as usize)
    }

    /// Another row in the place of this one, which then stands at another index.
    pub(super) fn shift(&mut self, from: usize, to: usize, row: Held<R>) {
        self.heads[from] = row.at.head();
        self.slots[self.order[from] as usize] = row;
        if from < to {
            self.heads[from..=to].rotate_left(1);
            self.order[from..=to].rotate_left(1);
        } else {
            self.heads[to..=from].rotate_right(1);
            self.order[to..=from].rotate_right(1);
        }
    }
}

fn slot(number: usize) -> u32 {
    u32::try_from(number).expect("a window is small")
}
