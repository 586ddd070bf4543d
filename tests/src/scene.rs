//! A processor in plain Rust on a real store: for claims about processors that need no component.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, DeadLetterRow};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, Position, TenantId};
use millrace::processors::{Engine, FailurePolicy, GuestPool, ProcessorSettings, Runner};
use millrace::streams::EventLog;
use millrace::tables::{Query, TableStore, Value};

use crate::dump::dump;
use crate::scripted::{Scripted, Watch, table};
use crate::until;

/// A store, a pool, and what a test needs of them.
#[derive(Debug)]
pub struct Scene {
    pub store: SqliteStore,
    pub engine: Engine,
    dir: Option<tempfile::TempDir>,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with_checkpoints(|store| store).await
    }

    pub async fn with_checkpoints(
        wrap: impl FnOnce(Arc<dyn CheckpointStore>) -> Arc<dyn CheckpointStore>,
    ) -> Self {
        Self::with(|options| options, wrap).await
    }

    pub async fn with(
        options: impl FnOnce(SqliteOptions) -> SqliteOptions,
        wrap: impl FnOnce(Arc<dyn CheckpointStore>) -> Arc<dyn CheckpointStore>,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = options(SqliteOptions::new(dir.path()));
        let store = SqliteStore::open(options).expect("a new store opens");
        store.declare("scripted", &[table()]).await.expect("a good table");
        let engine = engine(&store, wrap(Arc::new(store.clone())));
        Self { store, engine, dir: Some(dir) }
    }

    /// On a store that is there already.
    pub fn on(store: SqliteStore) -> Self {
        let engine = engine(&store, Arc::new(store.clone()));
        Self { store, engine, dir: None }
    }

    /// Closes the store and dumps it, where the folder is the scene's own.
    pub async fn close(self) -> String {
        self.store.close().await;
        self.engine.pool.shut_down();
        self.dir.map(|dir| dump(dir.path()).expect("the store can be read")).unwrap_or_default()
    }

    pub fn start(&self, scripted: Scripted, settings: ProcessorSettings) -> (Runner, Arc<Watch>) {
        let watch = Arc::clone(&scripted.watch);
        (Runner::start(&self.engine, Arc::new(scripted), settings), watch)
    }

    /// Another life of the processor on the same store.
    pub fn start_again(&self, watch: &Arc<Watch>, version: u64, settings: ProcessorSettings) -> Runner {
        let scripted = Scripted { watch: Arc::clone(watch), ..Scripted::new("scripted", version) };
        Runner::start(&self.engine, Arc::new(scripted), settings)
    }

    /// The newest position of the log.
    pub fn last(&self) -> Position {
        self.store.bounds().newest
    }

    /// Appends events given as (agg_id, type, payload), numbered in order.
    pub async fn publish(&self, tenant: &str, events: &[(&str, &str, &str)]) -> Position {
        let mut batch = EventBatch::new(tenant_id(tenant));
        let base = self.store.bounds().newest.0;
        for (index, (agg_id, event_type, payload)) in events.iter().enumerate() {
            let version = base + index as u64 + 1;
            let event = Event {
                aggregate: "thing",
                agg_id,
                event_type,
                version,
                payload: payload.as_bytes(),
                ..Event::default()
            };
            batch.push(&event).expect("a good event");
        }
        let appended = self.store.append(batch).await.expect("the append succeeds");
        appended.last().expect("events were appended").position
    }

    /// Everything is handled or a dead letter, and nothing waits for its key.
    pub async fn done(&self, runner: &Runner, through: Position) {
        let done = || {
            let status = runner.status();
            status.done_through >= through && status.tasks.iter().all(|task| task.parked_events == 0)
        };
        until("the processor is done", done).await;
    }

    /// Key to (count, version that wrote it).
    pub async fn rows(&self, tenant: &str) -> BTreeMap<String, (i64, i64)> {
        let query = Query { limit: 1_000, ..Query::all("counts") };
        let page = self.store.query(&tenant_id(tenant), &query).await.expect("the table can be read");
        let number = |value: &Value| if let Value::Int(n) = value { *n } else { panic!("{value:?}") };
        page.rows.iter().map(|r| (r.key.clone(), (number(&r.cells[0]), number(&r.cells[1])))).collect()
    }

    pub async fn counts(&self, tenant: &str) -> BTreeMap<String, i64> {
        self.rows(tenant).await.into_iter().map(|(key, (count, _))| (key, count)).collect()
    }

    /// Key to the versions that were applied, in the order of their application, out of the committed states.
    pub async fn applied(&self) -> BTreeMap<String, Vec<u64>> {
        let mut applied = BTreeMap::new();
        for row in self.store.tasks(Some("scripted")).await.expect("tasks can be read") {
            let checkpoint = self.store.checkpoint(&row.task).await.expect("checkpoints can be read");
            let Some(saved) = checkpoint.and_then(|checkpoint| checkpoint.saved) else { continue };
            applied.extend(crate::scripted::applied(&saved.state));
        }
        applied
    }

    pub async fn dead(&self) -> Vec<DeadLetterRow> {
        self.store.dead_letters("scripted", None, 100).await.expect("dead letters can be read")
    }
}

fn engine(store: &SqliteStore, checkpoints: Arc<dyn CheckpointStore>) -> Engine {
    Engine {
        shared_log: None,
        log: Arc::new(store.clone()),
        checkpoints,
        pool: GuestPool::new(4).expect("threads start"),
        clock: Arc::new(SystemClock),
        runtime: tokio::runtime::Handle::current(),
    }
}

pub fn tenant_id(name: &str) -> TenantId {
    TenantId::new(name).expect("a good tenant name")
}

/// Keys go on behind their dead letters.
pub fn skipping() -> ProcessorSettings {
    ProcessorSettings { on_failure: FailurePolicy::Skip, ..ProcessorSettings::default() }
}

pub fn scripted() -> Scripted {
    Scripted::new("scripted", 1)
}

pub fn counts(expected: &[(&str, i64)]) -> BTreeMap<String, i64> {
    expected.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect()
}
