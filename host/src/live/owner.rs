//! The owner of one tenant's views of one table: one task, to which all of their state belongs.
//!
//! It takes in commits in their order, one after the other, and tells each view that a changed row may concern.
//! Reads of the store happen elsewhere and come back as messages; while one is under way commits are kept, so
//! that those which the read has not seen can be applied to it.

#[path = "commit.rs"]
mod commit;
#[path = "reconcile.rs"]
mod reconcile;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::metrics::{Counter, counter, gauge};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::holders::Holders;
use super::index::{Index, ViewId};
use super::read::{Read, ReadDone};
use super::shape::{Columns, Plan};
use super::token::ViewMark;
use super::view::{Attached, Need, Start, Telling, View};
use super::views::Views;
use super::{LiveError, LiveQuery};
use crate::error::Classify as _;
use crate::event::{Epoch, Revision, TenantId};
use crate::limits::{
    LIVE_REPLAY_ROWS_MAX, LIVE_RING_AGE_MAX, LIVE_RING_BYTES_MAX, LIVE_RING_BYTES_MIN, LIVE_RINGS_BYTES_MAX,
    LIVE_SWEEP,
};
use crate::tables::{Changed, CommitChanges, RowChanges, TableSchema, TableStore};
use crate::tasks::Tasks;
use crate::telemetry::metrics;
pub(super) use reconcile::Standing;

/// What all owners share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) tables: Arc<dyn TableStore>,
    pub(super) epoch: Epoch,
    /// Views of all owners.
    pub(super) views: AtomicUsize,
    pub(super) views_max: usize,
    /// Turns to read.
    pub(super) reads: Semaphore,
    /// The turn to compare a view with the store, how often each table has it, and what was found.
    pub(super) checks: Arc<Semaphore>,
    pub(super) check_every: Duration,
    pub(super) repaired: AtomicUsize,
    /// Owners and their reads.
    pub(super) tasks: Tasks,
}

impl Common {
    /// What each view may keep of its last frames.
    fn ring_bytes_max(&self) -> usize {
        let share = LIVE_RINGS_BYTES_MAX / self.views.load(Ordering::Relaxed).max(1);
        share.clamp(LIVE_RING_BYTES_MIN, LIVE_RING_BYTES_MAX)
    }
}

/// Somebody wants to watch a query.
#[derive(Debug)]
pub(super) struct Attach {
    pub(super) query: LiveQuery,
    /// The query in its normal form, as text.
    pub(super) shape: Arc<str>,
    pub(super) start: Start,
    pub(super) reply: oneshot::Sender<Result<Attached, LiveError>>,
}

pub(super) struct Owner {
    common: Arc<Common>,
    tenant: TenantId,
    table: String,
    columns: Arc<Columns>,
    views: Views,
    by_shape: HashMap<Arc<str>, ViewId>,
    index: Index,
    holders: Holders,
    /// The last commit that was looked at.
    seen: Revision,
    /// Reads of before this have missed something.
    valid_from: Revision,
    /// Commits since the oldest read that is under way began.
    recent: Vec<Arc<Vec<CommitChanges>>>,
    recent_rows: usize,
    /// Reads that are under way.
    reads: usize,
    checks: reconcile::Checks,
    done: mpsc::Sender<ReadDone>,
    /// When the commits that are being looked at were sent.
    committed: Option<Instant>,
    row_changes: Counter,
    /// Why its views end when it does.
    ended: LiveError,
    looking: commit::Looking,
    /// Views that have told something since subscribers were woken.
    touched: Vec<ViewId>,
    telling: Telling,
}

impl Owner {
    pub(super) fn new(
        common: Arc<Common>,
        tenant: TenantId,
        schema: TableSchema,
        after: Revision,
        done: mpsc::Sender<ReadDone>,
    ) -> Self {
        Self {
            common,
            tenant,
            table: schema.name.clone(),
            columns: Columns::new(schema),
            views: Views::default(),
            by_shape: HashMap::new(),
            index: Index::default(),
            holders: Holders::default(),
            seen: after,
            valid_from: after,
            recent: Vec::new(),
            recent_rows: 0,
            reads: 0,
            checks: reconcile::Checks::default(),
            done,
            committed: None,
            row_changes: counter!(metrics::LIVE_ROW_CHANGES),
            ended: LiveError::ViewFailed,
            looking: commit::Looking::default(),
            touched: Vec::new(),
            telling: Telling::new(),
        }
    }

    /// Serves until nobody watches the table any more and `may_end` agrees, or the store is closed.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Attach>,
        mut changes: RowChanges,
        mut reads: mpsc::Receiver<ReadDone>,
        may_end: impl Fn(&mpsc::Receiver<Attach>) -> bool,
    ) {
        let mut sweep = tokio::time::interval(LIVE_SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let every = self.common.check_every;
        let mut check = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = commands.recv() => match asked {
                    Some(attach) => self.attach(attach),
                    None => break,
                },
                done = reads.recv() => if let Some(done) = done { self.take_read(done) },
                changed = changes.next() => match changed {
                    Some(changed) => {
                        self.committed = changes.committed();
                        self.take_changes(changed).await;
                    }
                    None => break,
                },
                _ = check.tick() => self.check_next(),
                _ = sweep.tick() => {
                    self.sweep(Instant::now());
                    if self.views.is_empty() && may_end(&commands) {
                        return;
                    }
                }
            }
        }
        self.ended = LiveError::Closing;
    }

    // Subscribers.

    fn attach(&mut self, attach: Attach) {
        // What is asked for was held against the columns that the table has now.
        if self.columns_have_changed() {
            self.read_all();
        }
        let id = match self.by_shape.get(&attach.shape) {
            Some(id) => *id,
            None => match self.add_view(&attach) {
                Ok(id) => id,
                Err(error) => return drop(attach.reply.send(Err(error))),
            },
        };
        let Some(view) = self.views.get_mut(id) else { return };
        if view.is_live() {
            let attached = view.attach(attach.start, self.seen);
            // Who asked may have gone; then the view is not watched by it.
            let _ = attach.reply.send(Ok(attached));
        } else {
            view.waiting.push(attach);
            self.read(id);
        }
    }

    fn add_view(&mut self, attach: &Attach) -> Result<ViewId, LiveError> {
        let views = self.common.views.fetch_add(1, Ordering::AcqRel);
        let max = self.common.views_max;
        if views >= max {
            self.common.views.fetch_sub(1, Ordering::AcqRel);
            return Err(LiveError::TooManyViews { views: views + 1, max });
        }
        let plan = Plan::new(attach.query.clone(), Arc::clone(&self.columns));
        let Some(plan) = plan else {
            self.common.views.fetch_sub(1, Ordering::AcqRel);
            return Err(self.changed_columns());
        };
        gauge!(metrics::LIVE_VIEWS).increment(1);
        let id = self.views.free();
        let mark = ViewMark::new(&self.common.epoch, &self.tenant, &attach.shape, rand::random());
        self.index.add(id, &plan);
        self.by_shape.insert(Arc::clone(&attach.shape), id);
        let shape = Arc::clone(&attach.shape);
        self.views.insert(id, |born| View::new(id, born, plan, shape, mark));
        Ok(id)
    }

    fn changed_columns(&self) -> LiveError {
        LiveError::Changed { table: self.table.clone() }
    }

    /// Takes a view out and tells its subscribers why.
    fn end_view(&mut self, id: ViewId, why: &LiveError) {
        let Some(view) = self.views.remove(id) else { return };
        self.common.views.fetch_sub(1, Ordering::AcqRel);
        gauge!(metrics::LIVE_VIEWS).decrement(1);
        self.by_shape.remove(&view.shape);
        self.index.remove(id);
        for at in view.held_places() {
            self.holders.remove(self.holders.hash(at.key()), id, at.key());
        }
        view.ring.end(why.clone());
        for attach in view.waiting {
            let _ = attach.reply.send(Err(why.clone()));
        }
    }

    /// A view panicked: nothing in it can be relied on. The others are as they were.
    fn fail(&mut self, id: ViewId) {
        tracing::error!(
            tenant = %self.tenant,
            table = self.table,
            error.kind = "live_view_failed",
            error.blame = "host",
            "a view panicked and was given up"
        );
        counter!(metrics::LIVE_FAILED).increment(1);
        self.telling.forget();
        self.holders.forget(id);
        self.end_view(id, &LiveError::ViewFailed);
    }

    fn sweep(&mut self, now: Instant) {
        let mut old = Vec::new();
        let ring_bytes_max = self.common.ring_bytes_max();
        for view in self.views.iter_mut() {
            view.ring.shrink(now, ring_bytes_max);
            if view.ring.is_watched() || !view.waiting.is_empty() {
                view.idle_since = None;
            } else if now.duration_since(*view.idle_since.get_or_insert(now)) >= LIVE_RING_AGE_MAX {
                old.push(view.id);
            }
        }
        for id in old {
            self.end_view(id, &LiveError::Closing);
        }
    }

    // Commits.

    async fn take_changes(&mut self, changed: VecDeque<Changed>) {
        for changed in changed {
            match changed {
                Changed::Commits(commits) => {
                    for commit in commits.iter() {
                        self.commit(commit);
                        tokio::task::coop::consume_budget().await;
                    }
                    self.keep(commits);
                }
                Changed::Lost { after } => self.lose(after),
            }
        }
        for id in std::mem::take(&mut self.touched) {
            if let Some(view) = self.views.get_mut(id) {
                view.wake();
            }
        }
    }

    fn keep(&mut self, commits: Arc<Vec<CommitChanges>>) {
        if self.reads == 0 {
            return;
        }
        self.recent_rows += commits.iter().map(|commit| commit.rows.len()).sum::<usize>();
        if self.recent_rows > LIVE_REPLAY_ROWS_MAX {
            // Reads that have not seen these commits are of no use.
            self.valid_from = self.seen;
            self.recent.clear();
            self.recent_rows = 0;
        } else {
            self.recent.push(commits);
        }
    }

    /// Some commits are unknown: every view is read again.
    fn lose(&mut self, after: Revision) {
        counter!(metrics::LIVE_LOST).increment(1);
        self.seen = after;
        self.read_all();
    }

    /// Has every view read again, with the columns that the table has now.
    pub(super) fn read_all(&mut self) {
        self.valid_from = self.seen;
        self.checks.forget();
        self.recent.clear();
        self.recent_rows = 0;
        let schema = match self.common.tables.schema(&self.table) {
            Ok(schema) => schema,
            Err(error) => {
                for id in self.views.ids() {
                    self.end_view(id, &LiveError::Table(error.clone()));
                }
                return;
            }
        };
        let columns_changed = schema != self.columns.schema;
        if columns_changed {
            self.columns = Columns::new(schema);
        }
        for id in self.views.ids() {
            let Some(view) = self.views.get_mut(id) else { continue };
            view.lose();
            if columns_changed {
                let query = &view.plan.query;
                let valid = query.query.validate(&self.columns.schema).is_ok();
                let plan = Plan::new(LiveQuery::clone(query), Arc::clone(&self.columns));
                match plan.filter(|_| valid) {
                    Some(plan) => {
                        self.index.remove(id);
                        self.index.add(id, &plan);
                        view.replan(plan);
                    }
                    None => {
                        self.end_view(id, &self.changed_columns());
                        continue;
                    }
                }
            }
            self.read(id);
        }
    }

    /// The columns are those of the last news or later ones: the store shows them before it tells of them.
    pub(super) fn columns_have_changed(&self) -> bool {
        self.common.tables.schema(&self.table).is_ok_and(|schema| schema != self.columns.schema)
    }

    // Reads.

    /// Has the store read for a view, if it is not under way. A view that nobody watches waits until somebody does.
    fn read(&mut self, id: ViewId) {
        let wanted = |view: &&mut View| !view.reading && (view.ring.is_watched() || !view.waiting.is_empty());
        let Some(view) = self.views.get_mut(id).filter(wanted) else { return };
        view.reading = true;
        counter!(metrics::LIVE_READS).increment(1);
        self.reads += 1;
        let read = Read {
            view: id,
            born: view.born,
            tenant: self.tenant.clone(),
            query: view.query_of_read(),
            all: view.plan.is_streamed(),
            columns: Arc::clone(&self.columns),
            check: None,
        };
        read.start(&self.common, self.done.clone());
    }

    fn take_read(&mut self, done: ReadDone) {
        self.reads -= 1;
        let id = done.view;
        if done.check {
            self.take_check(done);
        } else if let Some(view) = self.views.get_mut(id).filter(|view| view.born == done.born) {
            // Otherwise another view has its place by now.
            view.reading = false;
            self.install(id, done);
        }
        if self.reads == 0 {
            self.recent.clear();
            self.recent_rows = 0;
        }
    }

    fn install(&mut self, id: ViewId, done: ReadDone) {
        if !Arc::ptr_eq(&done.columns, &self.columns) {
            return self.read(id);
        }
        if self.columns_have_changed() {
            // The rows may be those of other columns. That is still to be told, and commits from before it are in
            // what is read now, so that no view looks at them.
            return self.read_all();
        }
        let Some(view) = self.views.get_mut(id) else { return };
        let (pages, complete) = match done.result {
            Ok(read) => read,
            Err(error) if view.is_new() || error.retry() == crate::error::Retry::Never => {
                return self.end_view(id, &error);
            }
            Err(error) => {
                // It waited before it failed; the view is told nothing wrong meanwhile.
                tracing::warn!(error.kind = error.code(), error.blame = "host", %error, table = self.table, "a live window could not be read; it is tried again");
                return self.read(id);
            }
        };
        if pages.iter().any(|page| page.revision < self.valid_from) {
            return self.read(id);
        }
        self.telling.now = Instant::now();
        self.telling.ring_bytes_max = self.common.ring_bytes_max();
        let (recent, seen, holders, telling) =
            (&self.recent, self.seen, &mut self.holders, &mut self.telling);
        let install = || view.install(&pages, complete, recent, seen, holders, telling);
        match catch_unwind(AssertUnwindSafe(install)) {
            Err(_) => return self.fail(id),
            Ok(Need::Read) => return self.read(id),
            Ok(Need::Nothing) => {}
        }
        let Some(view) = self.views.get_mut(id) else { return };
        view.wake();
        for attach in std::mem::take(&mut view.waiting) {
            let attached = view.attach(attach.start, self.seen);
            let _ = attach.reply.send(Ok(attached));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let why = self.ended.clone();
        for id in self.views.ids() {
            self.end_view(id, &why);
        }
    }
}
