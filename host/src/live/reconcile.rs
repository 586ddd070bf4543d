//! Checks views against the store, now and then: a view that shows anything else than the store is repaired, and
//! counted. It is a backstop: nothing else relies on it, and what it finds is a fault of this host.
//!
//! One view of a table at a time, and one of the whole host; a check takes no more than a share of the time that
//! it costs. The store is read off the path of changes, like for any window, and compared only in what both know:
//! rows that were committed after the read are left out, and while the read is ahead of what the view was told, a
//! difference counts only when it is still there after a while in which nothing was told: news of a commit may be
//! late on a busy machine. The repair is the difference, as frames like any others; who watches ends with the right
//! rows, and needs no reset.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ::metrics::counter;

use super::Owner;
use crate::event::Revision;
use crate::limits::LIVE_DRIFT_CHECKS;
use crate::live::index::ViewId;
use crate::live::read::{Read, ReadDone};
use crate::live::shape::RowText;
use crate::live::view::ReadPage;
use crate::live::window::Held;
use crate::tables::CommitChanges;
use crate::telemetry::metrics;

/// Where an owner is with its checks.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// The view that is being checked, by which of all views it is.
    running: Option<u64>,
    /// The one that was checked last.
    last: ViewId,
    /// A view that differed, and what it had been told up to.
    differed: Option<Differed>,
}

#[derive(Clone, Copy, Debug)]
struct Differed {
    view: ViewId,
    born: u64,
    told: Revision,
    since: Instant,
}

impl Checks {
    /// What is being read for a check says nothing any more.
    pub(super) fn forget(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }
}

impl Owner {
    /// Checks the next view that somebody watches, if it is this owner's turn.
    pub(super) fn check_next(&mut self) {
        if self.checks.running.is_some() {
            return;
        }
        let watched = |id: &ViewId| {
            self.views.get(*id).is_some_and(|view| view.is_live() && !view.reading && view.ring.is_watched())
        };
        // One that differed is looked at again before it is anybody else's turn.
        let again = self.checks.differed.map(|differed| differed.view).filter(&watched);
        let ids = || self.views.ids().into_iter().filter(&watched);
        let last = self.checks.last;
        let next = again.or_else(|| ids().filter(|id| *id > last).min()).or_else(|| ids().min());
        let Some(id) = next else { return };
        let Some(view) = self.views.get(id) else { return };
        let Ok(turn) = Arc::clone(&self.common.checks).try_acquire_owned() else { return };
        self.checks.running = Some(view.born);
        self.checks.last = id;
        self.reads += 1;
        let read = Read {
            view: id,
            born: view.born,
            tenant: self.tenant.clone(),
            query: view.query_of_read(),
            all: view.plan.is_streamed(),
            columns: Arc::clone(&self.columns),
            check: Some(turn),
        };
        read.start(&self.common, self.done.clone());
    }

    /// The store has answered.
    pub(super) fn take_check(&mut self, done: ReadDone) {
        counter!(metrics::LIVE_CHECKS).increment(1);
        let id = done.view;
        let asked = self.checks.running.take() == Some(done.born);
        let differed = self.checks.differed.take().filter(|differed| differed.born == done.born);
        // News that are only late come before this.
        let late = self.common.check_every * LIVE_DRIFT_CHECKS;
        let too_late = differed.filter(|differed| differed.since.elapsed() >= late);
        let too_late = too_late.map(|differed| differed.told);
        if self.columns_have_changed() {
            return self.read_all();
        }
        let view = self.views.get_mut(id).filter(|view| asked && view.born == done.born);
        // Who cannot be read is left as it is: what is wrong with the store is found by others.
        let (Some(view), Ok((pages, _))) = (view, done.result) else { return };
        // Rows of other columns say nothing.
        let same_columns = Arc::ptr_eq(&done.columns, &self.columns);
        let valid = same_columns && pages.iter().all(|page| page.revision >= self.valid_from);
        if !valid || !view.is_live() || view.reading {
            return;
        }
        let since = self.recent.iter().flat_map(|commits| commits.iter());
        let (scratch, seen) = (&mut self.telling.scratch, self.seen);
        let compare = || {
            let read = view.rows_of(&pages, scratch);
            view.standing(seen).verdict(&pages, &read, since, too_late)
        };
        // A row that breaks one view must not end the others.
        let Ok(verdict) = catch_unwind(AssertUnwindSafe(compare)) else { return self.fail(id) };
        match verdict {
            Verdict::Same => {}
            Verdict::Unsure(told) => {
                let first = differed.filter(|differed| differed.told == told);
                let since = first.map_or_else(Instant::now, |differed| differed.since);
                self.checks.differed = Some(Differed { view: id, born: done.born, told, since });
            }
            Verdict::Drifted => {
                tracing::error!(
                    tenant = %self.tenant,
                    table = self.table,
                    error.kind = "live_view_drifted",
                    error.blame = "host",
                    "a view showed anything else than the store and is repaired"
                );
                counter!(metrics::LIVE_DRIFTS).increment(1);
                self.common.repaired.fetch_add(1, Ordering::AcqRel);
                view.lose();
                self.read(id);
            }
        }
    }
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// It may be that the view has not been told yet; it was told up to here.
    Unsure(Revision),
    Drifted,
}

/// What a view shows, and what it knows of.
#[derive(Debug)]
pub(in crate::live) struct Standing<'a> {
    /// Its rows, in order.
    pub(in crate::live) shown: Vec<&'a Held<RowText>>,
    /// Rows that it shows at most.
    pub(in crate::live) limit: usize,
    /// What all of its rows are exact at.
    pub(in crate::live) told: Revision,
    /// What the read that it began with was exact at.
    pub(in crate::live) read: Revision,
}

impl Standing<'_> {
    /// Compares it with the rows of pages that were read, and with what was committed since the read began. It may have
    /// differed for long, while it was told up to a revision.
    fn verdict<'c>(
        &self,
        pages: &[ReadPage],
        read: &[Held<RowText>],
        since: impl Iterator<Item = &'c CommitChanges>,
        differed: Option<Revision>,
    ) -> Verdict {
        let newest = pages.iter().map(|page| page.revision).max().unwrap_or_default();
        let oldest = pages.iter().map(|page| page.revision).min().unwrap_or_default();
        if oldest < self.read {
            // It was read again meanwhile, and is ahead.
            return Verdict::Same;
        }
        let commits = since.filter(|commit| commit.revision > oldest);
        let changed: HashSet<&[u8]> =
            commits.flat_map(|commit| &commit.rows).map(|change| change.key().as_bytes()).collect();
        let read: Vec<&Held<RowText>> = read.iter().take(self.limit).collect();
        if same(&self.shown, &read, self.limit, &changed) {
            Verdict::Same
        } else if newest <= self.told || differed == Some(self.told) {
            Verdict::Drifted
        } else {
            Verdict::Unsure(self.told)
        }
    }
}

/// Whether two lists agree in the rows that did not change. Each is the beginning of one and the same order, so
/// they agree as far as the shorter one goes, and a list with room left is whole.
fn same(shown: &[&Held<RowText>], read: &[&Held<RowText>], limit: usize, changed: &HashSet<&[u8]>) -> bool {
    let left = |held: &&&Held<RowText>| !changed.contains(held.at.key());
    let unchanged = |rows: &[&Held<RowText>]| rows.iter().filter(left).count();
    let (ours, theirs) = (unchanged(shown), unchanged(read));
    let agree = shown.iter().filter(left).zip(read.iter().filter(left)).all(|(one, other)| one == other);
    agree && (ours <= theirs || read.len() == limit) && (theirs <= ours || shown.len() == limit)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
