//! The embedded store with a table, lanes that write it, and an engine over it that may be meddled with.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, Generation, TaskId};
use millrace::event::Revision;
use millrace::gateway::live::{Anchor, Ask, Backend as _, InProcess, Sub};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::streams::EventLog;
use millrace::tables::{Cell, Order, Query, TableSchema, TableStore};
use millrace_tests::conformance::effects::{Effects, commit, table, task, tenant};
use millrace_tests::meddler::Meddler;
use millrace_tests::viewer::Viewer;
use serde_json::{Value as Json, value::to_raw_value};

/// How long a test waits for what must happen. Reaching it is a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Rig {
    _dir: tempfile::TempDir,
    pub(super) store: SqliteStore,
    pub(super) tables: Vec<TableSchema>,
    pub(super) meddler: Meddler,
}

pub(super) struct Lane {
    store: SqliteStore,
    tables: Vec<TableSchema>,
    pub(super) task: TaskId,
    pub(super) generation: Generation,
}

impl Rig {
    /// With a table `rows` of an integer `n` and a text `label`.
    pub(super) async fn new(versioned: bool) -> Self {
        Self::with(table("rows", versioned)).await
    }

    pub(super) async fn with(table: TableSchema) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a store");
        let tables = vec![table];
        store.declare("board", &tables).await.expect("a good table");
        let meddler = Meddler::new(Arc::new(store.clone()));
        Self { _dir: dir, store, tables, meddler }
    }

    pub(super) async fn lane(&self, tenant: &str, lane: u32) -> Lane {
        let task = task("board", tenant, lane);
        let (generation, _) = self.store.claim(&task).await.expect("a claim");
        Lane { store: self.store.clone(), tables: self.tables.clone(), task, generation }
    }

    pub(super) fn live(&self) -> LiveEngine {
        LiveEngine::new(Arc::new(self.store.clone()), self.store.epoch(), LIVE_VIEWS_MAX)
    }

    /// One that compares its views with the store all the time, and whose store is meddled with.
    pub(super) fn meddled(&self, check_every: Duration) -> LiveEngine {
        let tables = Arc::new(self.meddler.clone());
        LiveEngine::checked_every(check_every, tables, self.store.epoch(), LIVE_VIEWS_MAX)
    }

    /// Keys of a query's rows, in the store.
    pub(super) async fn keys(&self, query: &LiveQuery) -> Vec<String> {
        let page = self.store.query(&tenant("acme"), &query.query).await.expect("a good query");
        page.rows.into_iter().map(|row| row.key).collect()
    }

    /// Subscribes as a client of the edge does.
    pub(super) async fn ask(&self, live: &LiveEngine, query: &Json) -> Moving {
        let edge = InProcess::new(Arc::new(live.clone()), Arc::new(self.store.clone()), tenant("acme"));
        let ask = Ask { query: to_raw_value(query).expect("JSON"), resume: None };
        let sub = edge.subscribe(ask).await.expect("a good query");
        let mut moving = Moving { sub, viewer: Viewer::new(tenant("acme"), by_n(1)) };
        moving.until_ready().await;
        moving
    }
}

/// A client of the edge, and what it has.
pub(super) struct Moving {
    sub: Sub,
    pub(super) viewer: Viewer,
}

impl Moving {
    pub(super) async fn take(&mut self) {
        let next = tokio::time::timeout(PATIENCE, self.sub.next()).await.expect("something comes");
        self.viewer.follow(&next.expect("it goes on").expect("nothing fails"));
    }

    async fn until_ready(&mut self) {
        self.viewer.ready = false;
        while !self.viewer.ready {
            self.take().await;
        }
    }

    pub(super) async fn reanchor(&mut self, cursor: &Json, limit: Option<i64>) {
        let cursor = Some(to_raw_value(cursor).expect("JSON"));
        self.sub.reanchor(Anchor { cursor, limit }).await.expect("a good place");
        self.until_ready().await;
    }
}

impl Lane {
    pub(super) async fn commit(&self, effects: &mut Effects) -> Revision {
        let commit = commit(&self.task, self.generation, 1, &self.tables, effects);
        self.store.commit(commit).await.expect("a good commit").revision
    }

    pub(super) async fn put(&self, key: &str, version: u64, n: i64) -> Revision {
        self.commit(Effects::default().put(key, version, &[Cell::Int(n), Cell::Null])).await
    }
}

pub(super) fn by_n(limit: u32) -> LiveQuery {
    let order = vec![Order { column: "n".into(), descending: false }];
    LiveQuery { query: Query { order, limit, ..Query::all("rows") }, mode: Mode::Maintained, columns: None }
}

/// A viewer that has its rows.
pub(super) async fn watch(live: &LiveEngine, query: LiveQuery) -> Viewer {
    let mut viewer = Viewer::new(tenant("acme"), query);
    viewer.connect(live).await.expect("a good query");
    viewer.take_until_ready().await;
    viewer.names.clear();
    viewer
}

/// Takes batches in until these are its rows.
pub(super) async fn until_keys(viewer: &mut Viewer, keys: &[&str]) {
    while viewer.keys() != keys {
        let taken = tokio::time::timeout(PATIENCE, viewer.take()).await;
        taken.unwrap_or_else(|_| panic!("it has {:?}, not {keys:?}", viewer.keys())).expect("nothing fails");
    }
}
