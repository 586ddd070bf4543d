//! What a commit makes of an owner's views.
//!
//! Ten thousand windows fit no cache, so what a change costs is waiting for memory. Therefore nothing is looked at
//! that was not asked for (see `ahead`) some steps before: the rows of the commit, who holds them, the views that
//! they may concern, their places there, the rows at those places. Each step is made for many changes in a row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::Owner;
use crate::event::Revision;
use crate::live::ahead;
use crate::live::index::ViewId;
use crate::live::shape::Change;
use crate::live::sort_key::SortKey;
use crate::live::view::Need;
use crate::tables::{CommitChanges, RowChange};

/// Views whose memory is asked for together: more than a processor fetches at once, and few enough for its cache.
const AHEAD: usize = 48;

/// A changed row and a view that it may concern.
pub(super) struct Found {
    /// Which of the commit's rows.
    place: usize,
    view: ViewId,
    /// Where the view holds it.
    old: Option<SortKey>,
    /// Where it is to be.
    new: Option<SortKey>,
    /// The indices of both, before the commit.
    from: Option<usize>,
    to: Option<usize>,
    /// The hash of the key of the row that is to make room for it.
    out: Option<u64>,
    /// The next one of the same view.
    next: Option<usize>,
}

/// What a commit comes to, as far as it is known. Kept between commits, so that it need not be made anew.
#[derive(Default)]
pub(super) struct Looking {
    found: Vec<Found>,
    /// Views, and the first that was found of each.
    concerned: Vec<(ViewId, usize)>,
    candidates: Vec<ViewId>,
    /// Views that the running step has failed in.
    failed: Vec<ViewId>,
    /// Changes and commits that were looked at, ever.
    changes: u64,
    commits: u64,
}

impl Looking {
    /// What was found of a view, in the order of the commit's rows.
    fn of(&self, first: usize) -> impl Iterator<Item = &Found> {
        std::iter::successors(self.found.get(first), |found| found.next.map(|next| &self.found[next]))
    }

    fn each_of(&mut self, first: usize, mut look: impl FnMut(&mut Found)) {
        let mut next = Some(first);
        while let Some(index) = next {
            let found = &mut self.found[index];
            next = found.next;
            look(found);
        }
    }
}

impl Owner {
    /// First it finds out which views each changed row may concern, so that each view knows how much is coming;
    /// then it tells them, one after the other.
    pub(super) fn commit(&mut self, commit: &CommitChanges) {
        self.row_changes.increment(commit.rows.len() as u64);
        ask_for_rows(commit);
        let changes: Vec<_> = commit.rows.iter().map(Change::new).collect();
        for change in &changes {
            let hash = self.holders.hash(change.key.as_bytes());
            change.hash.set(hash);
            self.holders.ask_for_number(hash);
        }
        for change in &changes {
            self.holders.ask_for(change.hash.get());
            change.ask_for_cells();
        }
        let mut looking = std::mem::take(&mut self.looking);
        for (place, change) in changes.iter().enumerate() {
            self.find(place, change, &mut looking);
        }
        self.sort_out(&mut looking);
        self.seen = commit.revision;
        self.telling.now = self.committed.unwrap_or_else(Instant::now);
        self.telling.ring_bytes_max = self.common.ring_bytes_max();
        for start in (0..looking.concerned.len()).step_by(AHEAD) {
            let end = looking.concerned.len().min(start + AHEAD);
            self.find_places(&changes, &mut looking, start..end);
            self.change(commit.revision, &changes, &mut looking, start..end);
        }
        looking.found.clear();
        looking.concerned.clear();
        self.looking = looking;
    }

    /// Adds the views that a changed row may concern, some of them twice.
    fn find(&mut self, place: usize, change: &Change<'_>, looking: &mut Looking) {
        let Looking { found, candidates, .. } = looking;
        let mut add = |view: ViewId, old: Option<&SortKey>| {
            if let Some(known) = self.views.get(view) {
                ahead::all(known);
                let old = old.cloned();
                found.push(Found {
                    place,
                    view,
                    old,
                    new: None,
                    from: None,
                    to: None,
                    out: None,
                    next: None,
                });
            }
        };
        // First those that hold it, with its place.
        let holders = self.holders.of(change.hash.get(), change.key.as_bytes());
        holders.iter().for_each(|(view, at)| add(*view, Some(at)));
        if let Some(row) = change.row {
            candidates.clear();
            self.index.candidates(row, candidates);
            candidates.iter().for_each(|view| add(*view, None));
        }
    }

    /// Leaves out what was found twice, and puts together what is of one view.
    fn sort_out(&mut self, looking: &mut Looking) {
        let Looking { found, concerned, changes, commits, .. } = looking;
        *commits += 1;
        let (mut last, mut kept) = (usize::MAX, 0);
        for index in 0..found.len() {
            if std::mem::replace(&mut last, found[index].place) != found[index].place {
                *changes += 1;
            }
            let id = found[index].view;
            let view = self.views.get_mut(id).filter(|view| view.looked != *changes && view.is_live());
            let Some(view) = view else { continue };
            view.looked = *changes;
            found.swap(kept, index);
            if view.commit == *commits {
                view.coming += 1;
                found[view.last].next = Some(kept);
            } else {
                view.coming = 1;
                view.commit = *commits;
                concerned.push((id, kept));
                view.ask_for_plan();
            }
            view.last = kept;
            kept += 1;
        }
        found.truncate(kept);
    }

    /// Finds out where changed rows stand and are to stand, and asks for all that is there.
    fn find_places(&mut self, changes: &[Change<'_>], looking: &mut Looking, some: std::ops::Range<usize>) {
        for index in some.clone() {
            let (id, first) = looking.concerned[index];
            let Some(view) = self.views.get_mut(id) else { continue };
            view.begin_commit();
            let revision = self.seen;
            let wanted = || {
                looking.each_of(first, |found| {
                    found.new = view.wants(revision, &changes[found.place]);
                })
            };
            if catch_unwind(AssertUnwindSafe(wanted)).is_err() {
                looking.failed.push(id);
            }
            view.ask_for_heads();
        }
        looking.failed.drain(..).for_each(|id| self.fail(id));
        for index in some.clone() {
            let (id, first) = looking.concerned[index];
            let Some(view) = self.views.get(id) else { continue };
            looking.each_of(first, |found| {
                found.from = found.old.as_ref().map(|at| view.index_of(at));
                found.to = found.new.as_ref().map(|at| view.index_of(at));
                view.ask_for_rows(found.from, found.to);
            });
            view.ring.ask_for_ends();
        }
        for index in some.clone() {
            let (id, first) = looking.concerned[index];
            let Some(view) = self.views.get(id) else { continue };
            looking.each_of(first, |found| {
                view.ask_for_texts(found.from, found.to);
                let comes_in = found.from.is_none() && found.to.is_some();
                found.out = view.next_out().filter(|_| comes_in).map(|key| self.holders.hash(key));
                found.out.iter().for_each(|hash| self.holders.ask_for_number(*hash));
            });
            view.ring.ask_for_oldest();
        }
        for index in some {
            let (id, first) = looking.concerned[index];
            let Some(view) = self.views.get(id) else { continue };
            looking.of(first).filter_map(|found| found.out).for_each(|hash| self.holders.ask_for(hash));
            view.ring.ask_for_oldest_text();
        }
    }

    /// Makes the changes, and tells who watches.
    fn change(
        &mut self,
        revision: Revision,
        changes: &[Change<'_>],
        looking: &mut Looking,
        some: std::ops::Range<usize>,
    ) {
        for index in some {
            let (id, first) = looking.concerned[index];
            let Some(view) = self.views.get_mut(id) else { continue };
            let was_told = view.told;
            let (holders, telling) = (&mut self.holders, &mut self.telling);
            let run = || {
                looking.each_of(first, |found| {
                    let change = &changes[found.place];
                    view.change(revision, change, found.old.as_ref(), found.new.take(), holders, telling);
                });
                view.end_commit(revision, telling)
            };
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(need) => {
                    if view.told && !was_told {
                        self.touched.push(id);
                    }
                    if need == Need::Read {
                        self.read(id);
                    }
                }
                Err(_) => self.fail(id),
            }
        }
    }
}

fn ask_for_rows(commit: &CommitChanges) {
    for change in &commit.rows {
        if let RowChange::Put(row) = change {
            ahead::all(&**row);
        }
    }
    for change in &commit.rows {
        ahead::line(change.key());
        if let RowChange::Put(row) = change {
            ahead::all(row.cells.as_slice());
        }
    }
}
