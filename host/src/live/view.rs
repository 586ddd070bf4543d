//! One view: a window, what its subscribers were last told, and what they are told next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use ::metrics::{Counter, counter};

use super::encode::{self, At, Membership};
use super::frames::{Batch, BatchBuilder};
use super::holders::Holders;
use super::index::ViewId;
use super::owner::{Attach, Standing};
use super::ring::{Ring, Watching};
use super::shape::{Change, Plan, RowText};
use super::sort_key::SortKey;
use super::token::{Gap, ViewMark};
use super::window::{Held, Step, Window, difference};
use crate::event::Revision;
use crate::limits::LIVE_RING_BYTES_MAX;
use crate::tables::{CommitChanges, Row};
use crate::telemetry::metrics;

type Rows = Vec<Held<RowText>>;

/// A page of a read: its rows, what it is exact at, and the last key that it speaks of; none for all keys.
#[derive(Debug)]
pub(super) struct ReadPage {
    pub(super) rows: Vec<Row>,
    pub(super) revision: Revision,
    pub(super) up_to: Option<Box<str>>,
}

/// Where a subscriber begins.
#[derive(Clone, Debug)]
pub(super) enum Start {
    Fresh,
    Token(String),
    /// It was too slow.
    Behind,
}

/// What a subscriber gets first, and where it goes on.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) first: Vec<Batch>,
    pub(super) next: u64,
    pub(super) watching: Watching,
}

/// Whether what the subscribers were told is the whole truth.
#[derive(Debug)]
enum State {
    /// Nothing was told yet.
    New,
    Live,
    /// The window does not know all that is to be seen: what was told is this, and the store is being read.
    Behind(Rows),
}

/// What telling takes: the same for all views of an owner.
pub(super) struct Telling {
    pub(super) now: Instant,
    pub(super) ring_bytes_max: usize,
    /// For the text of a row.
    pub(super) scratch: Vec<u8>,
    /// What the view that is being changed is to tell.
    steps: Vec<Step<RowText>>,
    batch: BatchBuilder,
    frames: Counter,
}

impl Telling {
    pub(super) fn new() -> Self {
        Self {
            now: Instant::now(),
            ring_bytes_max: LIVE_RING_BYTES_MAX,
            scratch: Vec::new(),
            steps: Vec::new(),
            batch: BatchBuilder::default(),
            frames: counter!(metrics::LIVE_FRAMES),
        }
    }
}

impl Telling {
    /// What was to be told was not, since the view broke.
    pub(super) fn forget(&mut self) {
        self.steps.clear();
        self.batch = BatchBuilder::default();
    }
}

pub(super) struct View {
    pub(super) id: ViewId,
    pub(super) plan: Plan,
    pub(super) shape: Arc<str>,
    pub(super) ring: Arc<Ring>,
    pub(super) waiting: Vec<Attach>,
    /// Since when nobody watches it.
    pub(super) idle_since: Option<Instant>,
    /// The store is being read for it.
    pub(super) reading: bool,
    /// The number of the change that was last looked at, so that none is looked at twice.
    pub(super) looked: u64,
    /// Changes of the last commit that may have concerned it, the number of that commit, and where the last of these
    /// changes stands among all that were found.
    pub(super) coming: usize,
    pub(super) commit: u64,
    pub(super) last: usize,
    /// Which of the owner's views this is, of all that ever were.
    pub(super) born: u64,
    /// Its subscribers were not woken since it last told them something.
    pub(super) told: bool,
    /// The number of the next batch.
    next: u64,
    mark: ViewMark,
    window: Window<RowText>,
    state: State,
    /// Commits up to here are in its rows already, by ranges of keys; the last range has no end.
    exact: Vec<(Option<Box<str>>, Revision)>,
    /// Commits after this one are in none of them.
    exact_max: Revision,
    /// What was seen before the running commit, where that may be needed.
    before: Option<Rows>,
    /// The rows as of a place in the ring, encoded.
    snapshot: Option<(u64, Batch)>,
}

/// What a commit or a read makes of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// The store must be read.
    Read,
}

impl View {
    pub(super) fn new(id: ViewId, born: u64, plan: Plan, shape: Arc<str>, mark: ViewMark) -> Self {
        let window = Window::new(plan.shown_max(), plan.spare(), plan.anchor());
        Self {
            id,
            plan,
            shape,
            ring: Ring::new(),
            waiting: Vec::new(),
            idle_since: None,
            reading: false,
            looked: 0,
            coming: 0,
            commit: 0,
            last: 0,
            born,
            told: false,
            next: 0,
            mark,
            window,
            state: State::New,
            exact: Vec::new(),
            exact_max: Revision::default(),
            before: None,
            snapshot: None,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live)
    }

    pub(super) fn is_new(&self) -> bool {
        matches!(self.state, State::New)
    }

    /// Rows that a read must ask for.
    pub(super) fn rows_wanted(&self) -> usize {
        self.window.held_max()
    }

    /// What its rows are exact at, in a table whose commits were looked at up to `seen`.
    pub(super) fn revision(&self, seen: Revision) -> Revision {
        self.exact_max.max(seen)
    }

    fn has_seen(&self, key: &str, revision: Revision) -> bool {
        if revision > self.exact_max {
            return false;
        }
        let range = self.exact.iter().find(|(end, _)| end.as_deref().is_none_or(|end| key <= end));
        range.is_some_and(|(_, exact)| revision <= *exact)
    }

    /// The changes that are coming begin.
    pub(super) fn begin_commit(&mut self) {
        self.before = self.window.may_starve(self.coming).then(|| self.window.visible().cloned().collect());
    }

    /// Where a changed row of a commit is to stand, if this view is concerned by it at all. What is in its rows
    /// already is not looked at: it may be of a time when the table had other columns.
    pub(super) fn wants(&self, revision: Revision, change: &Change<'_>) -> Option<SortKey> {
        let row = change.row.filter(|_| !self.has_seen(change.key, revision))?;
        self.plan.holds(row).then(|| self.plan.place(row))
    }

    /// Asks for what says whether it wants a row.
    pub(super) fn ask_for_plan(&self) {
        self.plan.ask_for();
    }

    /// Asks for what is looked at to find where a change stands.
    pub(super) fn ask_for_heads(&self) {
        self.window.ask_for_heads();
        self.ring.ask_for();
    }

    pub(super) fn index_of(&self, at: &SortKey) -> usize {
        self.window.index_of(at)
    }

    /// Asks for the rows that a change between these indices needs.
    pub(super) fn ask_for_rows(&self, from: Option<usize>, to: Option<usize>) {
        self.window.ask_for_rows(from, to);
    }

    /// And then for what those refer to.
    pub(super) fn ask_for_texts(&self, from: Option<usize>, to: Option<usize>) {
        self.window.ask_for_texts(from, to, RowText::ask_for);
    }

    /// The key of the row that it gives up when another one comes in.
    pub(super) fn next_out(&self) -> Option<&[u8]> {
        self.window.next_out()
    }

    /// One row changed, which the view holds at `old`, if at all, and is to hold at `new`, if that is in its window.
    pub(super) fn change(
        &mut self,
        revision: Revision,
        change: &Change<'_>,
        old: Option<&SortKey>,
        new: Option<SortKey>,
        holders: &mut Holders,
        telling: &mut Telling,
    ) {
        if self.has_seen(change.key, revision) {
            return;
        }
        let new = new.filter(|at| self.window.reaches(at)).zip(change.row);
        if old.is_none() && new.is_none() {
            return;
        }
        let new = new.map(|(at, row)| Held { at, row: self.plan.text_of(change, row, &mut telling.scratch) });
        let at = new.as_ref().map(|new| new.at.clone());
        let kept = self.window.apply(old, new, &mut telling.steps);
        match at {
            Some(at) if kept.held => holders.put(change.hash.get(), self.id, &at),
            _ if old.is_some() => holders.remove(change.hash.get(), self.id, change.key.as_bytes()),
            _ => {}
        }
        if let Some(out) = kept.pushed_out {
            holders.remove(holders.hash(out.key()), self.id, out.key());
        }
    }

    /// All rows of a commit were looked at: subscribers are told, or the store must be asked first.
    pub(super) fn end_commit(&mut self, revision: Revision, telling: &mut Telling) -> Need {
        let before = self.before.take();
        if self.window.is_starved() {
            telling.steps.clear();
            self.state = State::Behind(before.unwrap_or_default());
            return Need::Read;
        }
        self.tell(revision, telling);
        if self.window.is_low() { Need::Read } else { Need::Nothing }
    }

    fn tell(&mut self, revision: Revision, telling: &mut Telling) {
        if telling.steps.is_empty() {
            return;
        }
        self.next += 1;
        let at = At { revision, next: self.next };
        let batch = if self.plan.is_streamed() {
            let changes: Vec<_> = telling.steps.drain(..).map(membership).collect();
            encode::streamed(&mut telling.batch, &self.plan, &self.mark, at, &changes)
        } else {
            encode::steps(&mut telling.batch, &self.plan, &self.mark, at, &telling.steps)
        };
        telling.steps.clear();
        telling.frames.increment(batch.len() as u64);
        self.ring.push(batch, telling.now, telling.ring_bytes_max);
        self.told = true;
    }

    /// Wakes its subscribers, if it told them anything.
    pub(super) fn wake(&mut self) {
        if std::mem::take(&mut self.told) {
            self.ring.wake();
        }
    }

    /// What it shows can no longer be relied on.
    pub(super) fn lose(&mut self) {
        self.before = None;
        if self.is_live() {
            self.state = State::Behind(self.window.visible().cloned().collect());
        }
    }

    /// The table's columns have changed. Called before it is read again.
    pub(super) fn replan(&mut self, plan: Plan) {
        if let State::Behind(told) = &mut self.state
            && !plan.orders_like(&self.plan)
        {
            // No row is found by these places any more, and what is told of them is read as the new columns are.
            told.iter_mut().for_each(|held| held.at = plan.nowhere(held.at.key()));
        }
        self.window.set_spare(plan.spare());
        self.plan = plan;
        self.snapshot = None;
    }

    /// Takes in what was read, and what was committed since, up to `seen`. Tells the subscribers what is
    /// different now.
    pub(super) fn install(
        &mut self,
        pages: &[ReadPage],
        complete: bool,
        recent: &[Arc<Vec<CommitChanges>>],
        seen: Revision,
        holders: &mut Holders,
        telling: &mut Telling,
    ) -> Need {
        self.exact_max = pages.iter().map(|page| page.revision).max().unwrap_or_default();
        self.exact = pages.iter().map(|page| (page.up_to.clone(), page.revision)).collect();
        let rows = self.rows_of(pages, &mut telling.scratch);
        let old = self.window.replace(rows, complete);
        // Most rows stay, and those that do need not be taken out first.
        let kept: HashSet<&[u8]> = self.window.held().map(|held| held.at.key()).collect();
        for gone in old.iter().map(|held| held.at.key()).filter(|key| !kept.contains(key)) {
            holders.remove(holders.hash(gone), self.id, gone);
        }
        for held in self.window.held() {
            holders.put(holders.hash(held.at.key()), self.id, &held.at);
        }
        let told = match std::mem::replace(&mut self.state, State::Live) {
            State::New => None,
            State::Live => Some(self.window.seen(&old).cloned().collect()),
            State::Behind(told) => Some(told),
        };
        let exact_min = self.exact.iter().map(|(_, revision)| *revision).min().unwrap_or_default();
        let unseen =
            recent.iter().flat_map(|commits| commits.iter()).filter(|commit| commit.revision > exact_min);
        for commit in unseen {
            for change in &commit.rows {
                let change = Change::new(change);
                let hash = holders.hash(change.key.as_bytes());
                change.hash.set(hash);
                let new = self.wants(commit.revision, &change);
                let old = holders.place(hash, change.key.as_bytes(), self.id).cloned();
                if old.is_some() || new.is_some() {
                    self.change(commit.revision, &change, old.as_ref(), new, holders, telling);
                }
            }
        }
        telling.steps.clear();
        if self.window.is_starved() {
            self.state = told.map_or(State::New, State::Behind);
            return Need::Read;
        }
        let revision = self.revision(seen);
        if let Some(told) = told {
            difference(&told, self.window.visible(), &mut telling.steps);
            self.tell(revision, telling);
        }
        Need::Nothing
    }

    /// Lets a subscriber in. The view must be live.
    pub(super) fn attach(&mut self, from: Start, seen: Revision) -> Attached {
        let watching = Watching::new(&self.ring);
        let next = self.next;
        let at = At { revision: self.revision(seen), next };
        let gap = match from {
            Start::Fresh => None,
            Start::Behind => Some(Gap::Slow),
            Start::Token(token) => match self.mark.resume(&token) {
                Ok(has) => match self.ring.since(has) {
                    Some(mut first) => {
                        counter!(metrics::LIVE_RESUMES).increment(1);
                        first.push(encode::resumed(&self.mark, at, self.visible().len()));
                        return Attached { first, next, watching };
                    }
                    None => Some(Gap::Expired),
                },
                Err(why) => Some(why),
            },
        };
        if let Some(why) = gap {
            counter!(metrics::LIVE_GAPS, "reason" => why.reason()).increment(1);
        }
        let mut first: Vec<_> = gap.map(encode::gap).into_iter().collect();
        first.push(self.snapshot(at));
        Attached { first, next, watching }
    }

    fn visible(&self) -> impl ExactSizeIterator<Item = &Held<RowText>> {
        let limit = if self.plan.is_streamed() { self.plan.limit() } else { usize::MAX };
        self.window.visible().take(limit)
    }

    /// The rows, encoded once for everybody who comes before they change.
    fn snapshot(&mut self, at: At) -> Batch {
        if let Some((next, batch)) = &self.snapshot
            && *next == at.next
        {
            return batch.clone();
        }
        let batch = encode::snapshot(&self.plan, &self.mark, at, self.visible());
        self.snapshot = Some((at.next, batch.clone()));
        batch
    }

    pub(super) fn held_places(&self) -> impl Iterator<Item = &SortKey> {
        self.window.held().map(|held| &held.at)
    }

    /// What it shows, for whoever compares it with the store.
    pub(super) fn standing(&self, seen: Revision) -> Standing<'_> {
        let exact = self.exact.iter().map(|(_, revision)| (*revision).max(seen));
        let told = exact.min().unwrap_or(seen);
        let shown = self.window.visible().collect();
        Standing { shown, limit: self.plan.shown_max(), told, read: self.exact_max }
    }

    /// Rows of the store as it would hold them.
    pub(super) fn rows_of(&self, pages: &[ReadPage], scratch: &mut Vec<u8>) -> Rows {
        let held = |row: &Row| Held { at: self.plan.place(row), row: self.plan.text(row, scratch) };
        pages.iter().flat_map(|page| &page.rows).map(held).collect()
    }

    /// The place of its window, for whoever checks it against the store.
    pub(super) fn query_of_read(&self) -> crate::tables::Query {
        let query = &self.plan.query.query;
        let limit = u32::try_from(self.rows_wanted()).unwrap_or(u32::MAX);
        crate::tables::Query { limit: limit.min(self.plan.columns.schema.window_rows_max), ..query.clone() }
    }
}

fn membership(step: Step<RowText>) -> Membership {
    match step {
        Step::Enter { row, .. } => Membership::Match(row),
        Step::Leave { row, .. } => Membership::Unmatch(row),
        Step::Move { row, .. } | Step::Update { row, .. } => Membership::Update(row),
    }
}
