//! One view: a window, what its subscribers were last told, and what they are told next.

use std::sync::Arc;
use std::time::Instant;

use ::metrics::{Counter, counter};

use super::encode::{self, At, Membership};
use super::frames::Batch;
use super::holders::Holders;
use super::index::ViewId;
use super::owner::{Attach, Standing};
use super::ring::{Ring, Watching};
use super::shape::{Plan, Shown};
use super::token::{Gap, ViewMark};
use super::window::{Held, Step, Window, difference};
use crate::event::Revision;
use crate::tables::{CommitChanges, Row, RowChange};
use crate::telemetry::metrics;

type Rows = Vec<Held<Arc<Shown>>>;

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
    /// Changes of the running commit that may concern it.
    pub(super) coming: usize,
    /// It is among those that the running commit touches.
    pub(super) touched: bool,
    mark: ViewMark,
    window: Window<Arc<Shown>>,
    state: State,
    /// Commits up to here are in its rows already, by ranges of keys; the last range has no end.
    exact: Vec<(Option<Box<str>>, Revision)>,
    steps: Vec<Step<Arc<Shown>>>,
    frames: Counter,
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
    pub(super) fn new(id: ViewId, plan: Plan, shape: Arc<str>, mark: ViewMark) -> Self {
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
            touched: false,
            mark,
            window,
            state: State::New,
            exact: Vec::new(),
            steps: Vec::new(),
            frames: counter!(metrics::LIVE_FRAMES),
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
        self.exact.iter().map(|(_, revision)| *revision).max().unwrap_or_default().max(seen)
    }

    fn has_seen(&self, key: &str, revision: Revision) -> bool {
        let range = self.exact.iter().find(|(end, _)| end.as_deref().is_none_or(|end| key <= end));
        range.is_some_and(|(_, exact)| revision <= *exact)
    }

    /// The changes that are coming begin.
    pub(super) fn begin_commit(&mut self) {
        self.touched = true;
        let changes = std::mem::take(&mut self.coming);
        self.before = self.window.may_starve(changes).then(|| self.window.visible().to_vec());
    }

    /// One row changed.
    pub(super) fn change(
        &mut self,
        revision: Revision,
        key: &str,
        new: Option<&Arc<Shown>>,
        holders: &mut Holders,
    ) {
        if self.has_seen(key, revision) {
            return;
        }
        let old = holders.image(key, self.id).map(|image| self.plan.place(&image.row));
        let new = new.filter(|new| self.plan.holds(&new.row));
        if old.is_none() && new.is_none() {
            return;
        }
        let kept = self.window.apply(old.as_ref(), new.map(|new| self.plan.held(new)), &mut self.steps);
        match new {
            Some(new) if kept.held => holders.put(self.id, new),
            _ if old.is_some() => holders.remove(self.id, key),
            _ => {}
        }
        if let Some(out) = kept.pushed_out {
            holders.remove(self.id, &out.row.key);
        }
    }

    /// All rows of a commit were looked at: subscribers are told, or the store must be asked first.
    pub(super) fn end_commit(&mut self, revision: Revision, now: Instant) -> Need {
        self.touched = false;
        let before = self.before.take();
        if self.window.is_starved() {
            self.steps.clear();
            self.state = State::Behind(before.unwrap_or_default());
            return Need::Read;
        }
        self.tell(revision, now);
        if self.window.is_low() { Need::Read } else { Need::Nothing }
    }

    fn tell(&mut self, revision: Revision, now: Instant) {
        if self.steps.is_empty() {
            return;
        }
        let at = At { revision, next: self.ring.next() + 1 };
        let batch = if self.plan.is_streamed() {
            let changes: Vec<_> = self.steps.drain(..).map(membership).collect();
            encode::streamed(&self.plan, &self.mark, at, &changes)
        } else {
            encode::steps(&self.plan, &self.mark, at, &self.steps)
        };
        self.steps.clear();
        self.frames.increment(batch.len() as u64);
        self.ring.push(batch, now);
    }

    /// What it shows can no longer be relied on.
    pub(super) fn lose(&mut self) {
        self.steps.clear();
        self.touched = false;
        self.before = None;
        if self.is_live() {
            self.state = State::Behind(self.window.visible().to_vec());
        }
    }

    /// The table's columns have changed.
    pub(super) fn replan(&mut self, plan: Plan) {
        self.plan = plan;
        self.snapshot = None;
    }

    /// Takes in what was read, and what was committed since, up to `seen`. Tells the subscribers what is
    /// different now.
    pub(super) fn install(
        &mut self,
        pages: Vec<ReadPage>,
        complete: bool,
        recent: &[Arc<Vec<CommitChanges>>],
        seen: Revision,
        holders: &mut Holders,
        now: Instant,
    ) -> Need {
        self.exact = pages.iter().map(|page| (page.up_to.clone(), page.revision)).collect();
        let rows = pages.into_iter().flat_map(|page| page.rows);
        let rows: Rows = rows.map(|row| self.plan.held(&Shown::new(Arc::new(row)))).collect();
        let old = self.window.replace(rows, complete);
        old.iter().for_each(|held| holders.remove(self.id, &held.row.row.key));
        self.window.held().iter().for_each(|held| holders.put(self.id, &held.row));
        let told = match std::mem::replace(&mut self.state, State::Live) {
            State::New => None,
            State::Live => Some(self.window.seen(&old).to_vec()),
            State::Behind(told) => Some(told),
        };
        for commit in recent.iter().flat_map(|commits| commits.iter()) {
            for change in &commit.rows {
                let new = match change {
                    RowChange::Put(row) => Some(Shown::new(Arc::clone(row))),
                    RowChange::Delete { .. } => None,
                };
                self.change(commit.revision, change.key(), new.as_ref(), holders);
            }
        }
        self.steps.clear();
        if self.window.is_starved() {
            self.state = told.map_or(State::New, State::Behind);
            return Need::Read;
        }
        let revision = self.revision(seen);
        if let Some(told) = told {
            difference(&told, self.window.visible(), &mut self.steps);
            self.tell(revision, now);
        }
        Need::Nothing
    }

    /// Lets a subscriber in. The view must be live.
    pub(super) fn attach(&mut self, from: Start, seen: Revision) -> Attached {
        let watching = Watching::new(&self.ring);
        let next = self.ring.next();
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

    fn visible(&self) -> &[Held<Arc<Shown>>] {
        let seen = self.window.visible();
        if self.plan.is_streamed() { &seen[..seen.len().min(self.plan.limit())] } else { seen }
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

    pub(super) fn held_keys(&self) -> impl Iterator<Item = &str> {
        self.window.held().iter().map(|held| held.row.row.key.as_str())
    }

    /// What it shows, for whoever compares it with the store.
    pub(super) fn standing(&self, seen: Revision) -> Standing<'_> {
        let shown = self.window.visible().iter().map(|held| &*held.row.row).collect();
        let exact = self.exact.iter().map(|(_, revision)| (*revision).max(seen));
        let told = exact.min().unwrap_or(seen);
        let read = self.exact.iter().map(|(_, revision)| *revision).max().unwrap_or_default();
        Standing { shown, limit: self.plan.shown_max(), told, read }
    }

    /// The place of its window, for whoever checks it against the store.
    pub(super) fn query_of_read(&self) -> crate::tables::Query {
        let query = &self.plan.query.query;
        let limit = u32::try_from(self.rows_wanted()).unwrap_or(u32::MAX);
        crate::tables::Query { limit: limit.min(self.plan.schema.window_rows_max), ..query.clone() }
    }
}

fn membership(step: Step<Arc<Shown>>) -> Membership {
    match step {
        Step::Enter { row, .. } => Membership::Match(row.row),
        Step::Leave { row, .. } => {
            Membership::Unmatch { key: row.row.row.key.clone(), version: row.row.row.version }
        }
        Step::Move { row, .. } | Step::Update { row, .. } => Membership::Update(row.row),
    }
}
