//! A table store in front of another one, for what may go wrong between a store and those who watch it: reads
//! that take long, fail or lie; news of commits that come late, or are lost.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use millrace::error::BackendError;
use millrace::event::{Revision, TenantId};
use millrace::tables::{
    Changed, CommitChanges, Query, Row, RowChanges, RowPage, TableError, TableSchema, TableStore, row_changes,
};
use tokio::sync::watch;

type Lie = Box<dyn FnOnce(&mut RowPage) + Send>;

#[derive(Default)]
struct State {
    /// Reads wait after they have seen their rows.
    reads_held: bool,
    /// News of commits wait.
    news_held: bool,
    /// So many pieces of news pass all the same.
    passes: usize,
    /// Watches end, as if the store were closed.
    over: bool,
    /// The next news are lost, and watchers are told.
    lose: bool,
    /// The next commits are kept from watchers, without a word.
    swallow: usize,
    /// Reads fail.
    failing: bool,
    /// What is made of the next page that is read.
    lie: Option<Lie>,
    /// Reads that were asked for.
    reads: usize,
}

/// Clones meddle with the same store.
#[derive(Clone)]
pub struct Meddler {
    inner: Arc<dyn TableStore>,
    state: Arc<Mutex<State>>,
    /// Wakes whoever is held up.
    turned: watch::Sender<u64>,
}

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meddler").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Meddler {
    pub fn new(inner: Arc<dyn TableStore>) -> Self {
        Self { inner, state: Arc::default(), turned: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.turned.send_modify(|turns| *turns += 1);
    }

    /// From now on reads wait, after they have seen their rows.
    pub fn hold_reads(&self) {
        self.turn(|state| state.reads_held = true);
    }

    pub fn let_reads_go(&self) {
        self.turn(|state| state.reads_held = false);
    }

    /// From now on nobody hears of commits, though reads see them.
    pub fn hold_news(&self) {
        self.turn(|state| state.news_held = true);
    }

    pub fn let_news_go(&self) {
        self.turn(|state| state.news_held = false);
    }

    /// Lets so many pieces of news go on, and holds the others.
    pub fn pass_news(&self, count: usize) {
        self.turn(|state| state.passes = count);
    }

    /// Ends the watches that there are, as if the store were closed.
    pub fn end_watches(&self) {
        self.turn(|state| state.over = true);
    }

    /// The next news are lost, and watchers are told so.
    pub fn lose_news(&self) {
        self.turn(|state| state.lose = true);
    }

    /// So many pieces of news are lost, and nobody is told.
    pub fn swallow_news(&self, count: usize) {
        self.turn(|state| state.swallow = count);
    }

    /// From now on reads fail.
    pub fn fail_reads(&self) {
        self.turn(|state| state.failing = true);
    }

    pub fn mend_reads(&self) {
        self.turn(|state| state.failing = false);
    }

    /// Makes something else of the next page that is read.
    pub fn lie_once(&self, lie: impl FnOnce(&mut RowPage) + Send + 'static) {
        self.turn(|state| state.lie = Some(Box::new(lie)));
    }

    /// How often rows were asked for.
    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    /// Waits while something is so.
    async fn while_it_is(&self, held: fn(&State) -> bool) {
        let mut turns = self.turned.subscribe();
        while held(&self.lock()) {
            // `self` keeps the other end.
            let _ = turns.changed().await;
        }
    }

    /// What becomes of news on their way.
    fn fate(&self, commits: &Arc<Vec<CommitChanges>>) -> Fate {
        let mut state = self.lock();
        state.passes = state.passes.saturating_sub(1);
        let last = commits.last().map_or(Revision(0), |commit| commit.revision);
        if std::mem::take(&mut state.lose) {
            return Fate::Lost(last);
        }
        match state.swallow.checked_sub(1) {
            Some(left) => {
                state.swallow = left;
                Fate::Swallowed
            }
            None => Fate::Passed,
        }
    }

    /// Passes news on until nobody listens, or there are no more.
    fn pass_on(&self, mut from: RowChanges) -> RowChanges {
        let (sender, changes) = row_changes(from.after());
        let meddler = self.clone();
        let passing = async move {
            let over = meddler.while_it_is(|state| !state.over);
            tokio::pin!(over);
            loop {
                let news = tokio::select! {
                    news = from.next() => news,
                    () = &mut over => None,
                };
                let Some(news) = news else { return };
                for changed in news {
                    meddler.while_it_is(|state| state.news_held && state.passes == 0).await;
                    let listens = match changed {
                        Changed::Commits(commits) => match meddler.fate(&commits) {
                            Fate::Passed => sender.send(&commits, 1),
                            Fate::Lost(after) => sender.lose(after),
                            Fate::Swallowed => true,
                        },
                        Changed::Lost { after } => sender.lose(after),
                    };
                    if !listens {
                        return;
                    }
                }
            }
        };
        #[expect(clippy::disallowed_methods, reason = "it ends with the store, or with the test's runtime")]
        drop(tokio::spawn(passing));
        changes
    }
}

enum Fate {
    Passed,
    Lost(Revision),
    Swallowed,
}

impl TableStore for Meddler {
    fn declare(&self, plugin: &str, tables: &[TableSchema]) -> BoxFuture<'_, Result<(), TableError>> {
        self.inner.declare(plugin, tables)
    }

    fn check(&self, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError> {
        self.inner.check(plugin, tables)
    }

    fn list(&self) -> Vec<(String, TableSchema)> {
        self.inner.list()
    }

    fn schema(&self, table: &str) -> Result<TableSchema, TableError> {
        self.inner.schema(table)
    }

    fn query(&self, tenant: &TenantId, query: &Query) -> BoxFuture<'_, Result<RowPage, TableError>> {
        let (tenant, query) = (tenant.clone(), query.clone());
        Box::pin(async move {
            self.lock().reads += 1;
            let page = self.inner.query(&tenant, &query).await;
            self.while_it_is(|state| state.reads_held).await;
            let mut page = page?;
            let mut state = self.lock();
            if state.failing {
                return Err(BackendError::Failed { detail: "the test says so".into() }.into());
            }
            if let Some(lie) = state.lie.take() {
                lie(&mut page);
            }
            Ok(page)
        })
    }

    fn get(
        &self,
        tenant: &TenantId,
        table: &str,
        key: &str,
    ) -> BoxFuture<'_, Result<(Revision, Option<Row>), TableError>> {
        self.inner.get(tenant, table, key)
    }

    fn watch(&self, tenant: &TenantId, table: &str) -> BoxFuture<'_, Result<RowChanges, TableError>> {
        let (tenant, table) = (tenant.clone(), table.to_owned());
        self.turn(|state| state.over = false);
        Box::pin(async move { Ok(self.pass_on(self.inner.watch(&tenant, &table).await?)) })
    }
}
