//! A store, guest threads and a WebAssembly runtime, without an edge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, CommitError, DeadLetterRow, ScanLimit, StatePage, StateValue};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::plugins::{PluginError, PluginRuntime, PluginSettings, RuntimeOptions, WasmRuntime};
use millrace::processors::{
    Engine, FailurePolicy, GuestPool, ProcessorFactory, ProcessorSettings, Runner, StateReader, TaskContext,
};
use millrace::streams::EventLog;
use millrace::tables::{Query, TableStore, Value};
use millrace_tests::guests::{guest, load_shared, sharing_code};
use millrace_tests::until;

pub(crate) struct Rig {
    pub(crate) store: SqliteStore,
    pub(crate) engine: Engine,
    pub(crate) runtime: WasmRuntime,
    _dir: tempfile::TempDir,
}

/// Time enough for good guests on a busy machine, and few enough instances for any address space.
pub(crate) fn options() -> RuntimeOptions {
    RuntimeOptions { instances_max: 16, call_max: Duration::from_secs(20), ..RuntimeOptions::default() }
}

pub(crate) fn component(name: &str) -> Vec<u8> {
    std::fs::read(guest(name)).expect("a built guest can be read")
}

/// A component as a factory, with settings.
pub(crate) fn load(
    runtime: &WasmRuntime,
    bytes: &[u8],
    settings: &PluginSettings,
) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
    runtime.load(bytes, &|_| settings.clone())
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("default").expect("a good name")
}

/// A guest as a factory whose code tests share.
pub(crate) fn load_once(name: &str, settings: &PluginSettings) -> Arc<dyn ProcessorFactory> {
    let runtime = WasmRuntime::new(sharing_code(options())).expect("the runtime starts");
    load_shared(&runtime, &component(name), settings).expect("the guest loads")
}

/// No keyed state.
#[derive(Debug)]
pub(crate) struct NoState;

impl StateReader for NoState {
    fn get(&self, _: &[u8]) -> Result<Option<StateValue>, CommitError> {
        Ok(None)
    }

    fn scan(&self, _: &[u8], _: Option<&[u8]>, _: ScanLimit) -> Result<StatePage, CommitError> {
        Ok(StatePage::default())
    }
}

pub(crate) fn context() -> TaskContext {
    TaskContext { tenant: tenant(), lane: 0, lanes: 1, state: Arc::new(NoState) }
}

/// Events given as (agg_id, type, payload), an hour and a second each after 1970.
pub(crate) fn batch(events: &[(&str, &str, &str)], base: u64) -> EventBatch {
    let mut batch = EventBatch::new(tenant());
    for (index, (agg_id, event_type, payload)) in events.iter().enumerate() {
        let version = base + index as u64 + 1;
        let event = Event {
            aggregate: "thing",
            agg_id,
            event_type,
            version,
            at: Micros(3_600_000_000 + i64::try_from(version).expect("few events") * 1_000_000),
            payload: payload.as_bytes(),
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    batch
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    /// One that takes the code of a guest from where tests leave it: a guest with an engine takes ten seconds to compile.
    pub(crate) fn sharing(name: &str, settings: &PluginSettings) -> Self {
        let rig = Self::with(sharing_code(options()));
        load_shared(&rig.runtime, &component(name), settings).expect("the guest loads");
        rig
    }

    pub(crate) fn with(options: RuntimeOptions) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a new store opens");
        let engine = Engine {
            shared_log: None,
            log: Arc::new(store.clone()),
            checkpoints: Arc::new(store.clone()),
            pool: GuestPool::new(4).expect("threads start"),
            clock: Arc::new(SystemClock),
            runtime: tokio::runtime::Handle::current(),
        };
        Self { store, engine, runtime: WasmRuntime::new(options).expect("the runtime starts"), _dir: dir }
    }

    /// Runs a guest.
    pub(crate) async fn run(&self, name: &str, settings: PluginSettings) -> Runner {
        self.run_component(&component(name), settings).await
    }

    pub(crate) async fn run_component(&self, bytes: &[u8], settings: PluginSettings) -> Runner {
        let factory = load(&self.runtime, bytes, &settings).expect("the guest loads");
        let manifest = factory.manifest();
        self.store.declare(&manifest.name, &manifest.tables).await.expect("good tables");
        let settings = ProcessorSettings {
            retry_wait_min: Duration::from_millis(1),
            retry_wait_max: Duration::from_millis(4),
            on_failure: FailurePolicy::Skip,
            ..ProcessorSettings::default()
        };
        Runner::start(&self.engine, factory, settings)
    }

    pub(crate) async fn publish(&self, events: &[(&str, &str, &str)]) -> Position {
        let batch = batch(events, self.store.bounds().newest.0);
        let appended = self.store.append(batch).await.expect("the append succeeds");
        appended.last().expect("events were appended").position
    }

    pub(crate) async fn done(&self, runner: &Runner, through: Position) {
        let done = || {
            let status = runner.status();
            status.done_through >= through && status.tasks.iter().all(|task| task.parked_events == 0)
        };
        until("the processor is done", done).await;
    }

    /// Key to cells.
    pub(crate) async fn rows(&self, table: &str) -> BTreeMap<String, Vec<Value>> {
        let query = Query { limit: 1_000, ..Query::all(table) };
        let page = self.store.query(&tenant(), &query).await.expect("the table can be read");
        page.rows.into_iter().map(|row| (row.key, row.cells)).collect()
    }

    pub(crate) async fn keys(&self, table: &str) -> Vec<String> {
        self.rows(table).await.into_keys().collect()
    }

    /// The reason and message of each dead letter, with the agg-id of its event; newest first.
    pub(crate) async fn dead(&self, plugin: &str) -> Vec<(String, String, String)> {
        let letter = |row: DeadLetterRow| {
            let said = [row.message, row.backtrace].join("\n").trim_end().to_owned();
            (row.event.get(0).agg_id.to_owned(), row.reason, said)
        };
        let dead = self.store.dead_letters(plugin, None, 100).await.expect("dead letters can be read");
        dead.into_iter().map(letter).collect()
    }
}
