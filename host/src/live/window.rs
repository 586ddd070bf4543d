//! One window: the first rows of a query behind its anchor, kept as rows change.
//!
//! A window holds a prefix of the query's order: the rows that are seen and some more, so that a row that
//! leaves can be followed by the next one at once. What lies behind the prefix is not known unless the window
//! is `complete`. Changes go in one by one, in the order of their commits, each with the row's place before and
//! after; steps come out, which turn what a client held into what it is to hold. When too many rows have left,
//! only the store knows which follow: the window is `starved`, and exact again once it is given a new prefix.
//!
//! This is the one place that decides what a change does to a window. It knows neither tables nor clients.

use std::collections::HashSet;

use super::ranked::Ranked;
use super::sort_key::SortKey;

/// A row of a window, with its place in the order. `R` is what a client gets of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held<R> {
    pub(super) at: SortKey,
    pub(super) row: R,
}

/// What a client does to its array. Steps are applied one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step<R> {
    /// Insert at this index.
    Enter { to: usize, row: Held<R> },
    /// Remove at this index. The row is as it was last seen.
    Leave { from: usize, row: Held<R> },
    /// Remove at `from`, then insert at `to`.
    Move { from: usize, to: usize, row: Held<R> },
    /// Replace at this index.
    Update { at: usize, row: Held<R> },
}

/// What a change did to the rows that a window holds.
#[derive(Debug, PartialEq)]
pub(super) struct Kept {
    /// The row that changed is held now.
    pub(super) held: bool,
    /// The place of another row, which is held no longer, since there was no room.
    pub(super) pushed_out: Option<SortKey>,
}

impl Kept {
    fn only(held: bool) -> Self {
        Self { held, pushed_out: None }
    }
}

/// The rows of a query from its anchor on, as far as they are known.
#[derive(Clone, Debug)]
pub(super) struct Window<R> {
    rows: Ranked<R>,
    /// Rows before this one are no part of it, nor is this one.
    anchor: Option<SortKey>,
    /// Rows that are seen.
    limit: usize,
    /// Rows that are held at most.
    held_max: usize,
    /// Nothing lies behind the rows that are held.
    complete: bool,
}

impl<R: Clone + PartialEq> Window<R> {
    /// An empty window that knows nothing: starved, until it is given rows.
    pub(super) fn new(limit: usize, spare: usize, anchor: Option<SortKey>) -> Self {
        Self { rows: Ranked::default(), anchor, limit, held_max: limit + spare, complete: false }
    }

    /// The rows that are seen.
    pub(super) fn visible(&self) -> impl ExactSizeIterator<Item = &Held<R>> {
        self.rows.iter().take(self.limit)
    }

    pub(super) fn held(&self) -> impl ExactSizeIterator<Item = &Held<R>> {
        self.rows.iter()
    }

    /// Holds so many rows beyond those that are seen, from the next read on.
    pub(super) fn set_spare(&mut self, spare: usize) {
        self.held_max = self.limit + spare;
    }

    /// How many rows a read must ask for to fill it.
    pub(super) fn held_max(&self) -> usize {
        self.held_max
    }

    /// It does not know all that is to be seen: what it shows is no answer to the query.
    pub(super) fn is_starved(&self) -> bool {
        !self.complete && self.rows.len() < self.limit
    }

    /// It is worth reading the rows behind those that are held.
    pub(super) fn is_low(&self) -> bool {
        !self.complete && self.rows.len() < self.limit + (self.held_max - self.limit).div_ceil(2)
    }

    /// A row changed: it stood at `old` (nowhere, if it was not in the query's result, or not held), and is
    /// now `new` (none, if it is deleted or no longer matches). What the client is to do is added to `steps`.
    pub(super) fn apply(
        &mut self,
        old: Option<&SortKey>,
        new: Option<Held<R>>,
        steps: &mut Vec<Step<R>>,
    ) -> Kept {
        let from = old.and_then(|at| self.rows.search(at).ok());
        let new = new.filter(|new| self.reaches(&new.at));
        match (from, new) {
            (None, None) => Kept::only(false),
            (None, Some(new)) => self.insert(new, steps),
            (Some(from), None) => {
                self.remove(from, steps);
                Kept::only(false)
            }
            (Some(from), Some(new)) => {
                self.shift(from, new, steps);
                Kept::only(true)
            }
        }
    }

    /// Whether a row of this place would be held: behind the anchor, and not where unknown rows may lie before it.
    pub(super) fn reaches(&self, at: &SortKey) -> bool {
        self.anchor.as_ref().is_none_or(|anchor| at > anchor) && (self.complete || self.rows.reaches(at))
    }

    /// Asks for what a search for a place looks at.
    pub(super) fn ask_for_heads(&self) {
        self.rows.ask_for_heads();
    }

    /// Where a row of this place stands, or would.
    pub(super) fn index_of(&self, at: &SortKey) -> usize {
        let (Ok(index) | Err(index)) = self.rows.search(at);
        index
    }

    /// Asks for the rows that a change between these indices needs.
    pub(super) fn ask_for_rows(&self, from: Option<usize>, to: Option<usize>) {
        if let Some(from) = from {
            self.rows.ask_for(from);
        }
        if from.is_none() || to.is_none() {
            self.rows.ask_for_end();
        }
        self.edge(from, to, |index| self.rows.ask_for(index));
    }

    /// And then for what those rows refer to.
    pub(super) fn ask_for_texts(&self, from: Option<usize>, to: Option<usize>, ask: impl Fn(&R, bool)) {
        if let Some(held) = from.and_then(|from| self.rows.get(from)) {
            ask(&held.row, to.is_none());
        }
        self.edge(from, to, |index| {
            if let Some(held) = self.rows.get(index) {
                ask(&held.row, true);
            }
        });
    }

    /// The key of the row that has no room when another one comes in.
    pub(super) fn next_out(&self) -> Option<&[u8]> {
        let last = self.rows.len().checked_sub(1).filter(|_| self.rows.len() >= self.held_max)?;
        self.rows.get(last).map(|held| held.at.key())
    }

    /// Tells which row at the edge of what is seen a change is about to show or to hide.
    fn edge(&self, from: Option<usize>, to: Option<usize>, tell: impl Fn(usize)) {
        let is_seen = |index: Option<usize>| index.is_some_and(|index| index < self.limit);
        match (is_seen(from), is_seen(to)) {
            (true, false) => tell(self.limit),
            (false, true) => tell(self.limit - 1),
            _ => {}
        }
    }

    fn insert(&mut self, new: Held<R>, steps: &mut Vec<Step<R>>) -> Kept {
        let (Ok(to) | Err(to)) = self.rows.search(&new.at);
        if to < self.limit {
            steps.push(Step::Enter { to, row: new.clone() });
        }
        self.rows.insert(to, new);
        if to < self.limit {
            self.push_out(steps);
        }
        if self.rows.len() <= self.held_max {
            return Kept::only(true);
        }
        self.complete = false;
        // It may be the new row itself, behind all that are held.
        let out = self.rows.remove(self.rows.len() - 1);
        if to == self.rows.len() { Kept::only(false) } else { Kept { held: true, pushed_out: Some(out.at) } }
    }

    fn remove(&mut self, from: usize, steps: &mut Vec<Step<R>>) {
        let row = self.rows.remove(from);
        if from < self.limit {
            steps.push(Step::Leave { from, row });
            self.pull_in(steps);
        }
    }

    /// A held row changes, and may move to another place.
    fn shift(&mut self, from: usize, new: Held<R>, steps: &mut Vec<Step<R>>) {
        let to = match self.rows.search(&new.at) {
            Ok(same) => same,
            // Its own place becomes free when it stands further behind.
            Err(behind) if behind > from => behind - 1,
            Err(before) => before,
        };
        let row = new.clone();
        let is_same = self.rows.get(from).is_some_and(|held| held.at == new.at);
        self.rows.shift(from, to, new);
        if is_same {
            if from < self.limit {
                steps.push(Step::Update { at: from, row });
            }
            return;
        }
        match (from < self.limit, to < self.limit) {
            (true, true) => steps.push(Step::Move { from, to, row }),
            (true, false) => {
                steps.push(Step::Leave { from, row });
                self.pull_in(steps);
            }
            (false, true) => {
                steps.push(Step::Enter { to, row });
                self.push_out(steps);
            }
            (false, false) => {}
        }
    }

    /// A row was inserted before the last one that is seen, which may be one too many now.
    fn push_out(&self, steps: &mut Vec<Step<R>>) {
        if let Some(held) = self.rows.get(self.limit) {
            steps.push(Step::Leave { from: self.limit, row: held.clone() });
        }
    }

    /// A row that was seen is gone; another one may be seen in the last place.
    fn pull_in(&self, steps: &mut Vec<Step<R>>) {
        if let Some(held) = self.rows.get(self.limit - 1) {
            steps.push(Step::Enter { to: self.limit - 1, row: held.clone() });
        }
    }

    /// Takes a newly read prefix in, in the place of all that was held: `rows` in order, up to `held_max` of
    /// them; `complete` says that they are all there are. Answers what was held.
    pub(super) fn replace(&mut self, mut rows: Vec<Held<R>>, complete: bool) -> Ranked<R> {
        self.complete = complete && rows.len() <= self.held_max;
        rows.truncate(self.held_max);
        std::mem::replace(&mut self.rows, Ranked::new(rows))
    }

    /// The rows of a list that are seen in this window.
    pub(super) fn seen<'a>(&self, rows: &'a Ranked<R>) -> impl ExactSizeIterator<Item = &'a Held<R>> {
        rows.iter().take(self.limit)
    }

    /// Whether so many changes may leave it starved.
    pub(super) fn may_starve(&self, changes: usize) -> bool {
        !self.complete && self.rows.len() < self.limit + changes
    }
}

/// The steps that turn one list of rows into another.
pub(super) fn difference<'a, R: Clone + PartialEq + 'a>(
    from: impl IntoIterator<Item = &'a Held<R>>,
    to: impl IntoIterator<Item = &'a Held<R>>,
    steps: &mut Vec<Step<R>>,
) {
    let to: Vec<&Held<R>> = to.into_iter().collect();
    let wanted: HashSet<&[u8]> = to.iter().map(|held| held.at.key()).collect();
    let mut list: Vec<&Held<R>> = from.into_iter().collect();
    for index in (0..list.len()).rev() {
        if !wanted.contains(list[index].at.key()) {
            let row = list.remove(index);
            steps.push(Step::Leave { from: index, row: row.clone() });
        }
    }
    for (index, wanted) in to.into_iter().enumerate() {
        let found = list[index..].iter().position(|held| held.at.key() == wanted.at.key());
        match found {
            Some(0) if *list[index] == *wanted => continue,
            Some(0) => {
                steps.push(Step::Update { at: index, row: wanted.clone() });
                list[index] = wanted;
            }
            Some(behind) => {
                let from = index + behind;
                list.remove(from);
                steps.push(Step::Move { from, to: index, row: wanted.clone() });
                list.insert(index, wanted);
            }
            None => {
                steps.push(Step::Enter { to: index, row: wanted.clone() });
                list.insert(index, wanted);
            }
        }
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
