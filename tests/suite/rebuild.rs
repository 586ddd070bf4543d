//! Claims about rebuilds: tables serve as they were until new ones take their place at once, and what left the store
//! when the events were handled first leaves it once.

mod channels;
mod edge;
mod errors;
mod flows;
mod hosts;
mod kills;
mod languages;
mod live;
mod middle;
mod progress;
mod scopes;
mod steps;
mod store;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, Position, TenantId};
use millrace::plugins::{
    ControlError, DeployFrom, PluginControl, PluginSettings, PluginState, PluginStatus, RebuildRequest,
    RebuildStage, RebuildStore, RebuildView, Registry, RegistryParts,
};
use millrace::processors::{Engine, GuestPool, ProcessorSettings, ShadowSettings};
use millrace::streams::{EventLog, PageLimit};
use millrace::tables::{Query, TableStore, Value};

use super::plugins::rig::tenant;
use super::registry::{Scripts, Texts, request};

/// A registry of scripted plugins, as [`Scripts`] reads them.
pub(crate) struct Rig {
    pub(crate) store: SqliteStore,
    parts: RegistryParts,
    pub(crate) registry: Registry,
    gate: Arc<Mutex<bool>>,
    dir: tempfile::TempDir,
}

/// What a store's file holds of rebuilds, but for what is remembered of them.
pub(crate) fn left_of_rebuilds(file: &Path) -> Vec<String> {
    let db = rusqlite::Connection::open(file).expect("it opens");
    let sql = "SELECT name FROM tables WHERE instr(name, '~') > 0
               UNION SELECT tbl_name FROM sqlite_schema WHERE instr(tbl_name, '~') > 0
               UNION SELECT processor FROM tasks WHERE instr(processor, '~') > 0
               UNION SELECT processor FROM dead_letters WHERE instr(processor, '~') > 0
               UNION SELECT 'state of ' || task FROM states WHERE task NOT IN (SELECT id FROM tasks)
               UNION SELECT 'parked of ' || task FROM parked_events WHERE task NOT IN (SELECT id FROM tasks)";
    let mut statement = db.prepare(sql).expect("the store has these tables");
    let found = statement.query_map([], |row| row.get(0)).expect("it can be read");
    found.collect::<Result<_, _>>().expect("it can be read")
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|options| options, |store| Arc::new(store.clone()), BTreeMap::new())
    }

    fn with(
        options: impl FnOnce(SqliteOptions) -> SqliteOptions,
        rebuilds: impl FnOnce(&SqliteStore) -> Arc<dyn RebuildStore>,
        settings: BTreeMap<String, PluginSettings>,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = options(SqliteOptions::new(dir.path().join("store")));
        let store = SqliteStore::open(options).expect("a new store opens");
        let scripts = Scripts::default();
        let gate = Arc::clone(&scripts.gate);
        let engine = Engine {
            shared_log: None,
            log: Arc::new(store.clone()),
            checkpoints: Arc::new(store.clone()),
            pool: GuestPool::new(4).expect("threads start"),
            clock: Arc::new(SystemClock),
            runtime: tokio::runtime::Handle::current(),
        };
        let shadow = ShadowSettings { events: 0, ..ShadowSettings::default() };
        let parts = RegistryParts {
            engine,
            runtime: Arc::new(scripts),
            artifacts: Arc::new(Texts::default()),
            deployments: Arc::new(store.clone()),
            rebuilds: rebuilds(&store),
            tables: Arc::new(store.clone()),
            settings,
            processors: ProcessorSettings { shadow, ..ProcessorSettings::default() },
        };
        let registry = Registry::new(parts.clone());
        Self { store, parts, registry, gate, dir }
    }

    pub(crate) fn open_gate(&self) {
        *self.gate.lock().expect("test") = true;
    }

    /// Stops all plugins and starts what was deployed.
    async fn restart(&mut self) {
        self.registry.shut_down(Duration::from_secs(20)).await;
        self.registry = Registry::new(self.parts.clone());
        self.registry.start_deployed().await.expect("what was deployed can be listed");
    }

    pub(crate) async fn deploy(&self, component: &'static str) -> Result<PluginStatus, ControlError> {
        self.registry.deploy(request(component, "api:test")).await
    }

    pub(crate) async fn publish(&self, events: &[(&str, &str, &str)]) -> Position {
        self.publish_of(&tenant(), events).await
    }

    async fn publish_of(&self, tenant: &TenantId, events: &[(&str, &str, &str)]) -> Position {
        let base = self.store.bounds().newest.0;
        let mut last = Position::START;
        for (chunk, events) in events.chunks(500).enumerate() {
            let mut batch = EventBatch::new(tenant.clone());
            for (index, (agg_id, event_type, payload)) in events.iter().enumerate() {
                let event = Event {
                    aggregate: "thing",
                    agg_id,
                    event_type,
                    version: base + (chunk * 500 + index) as u64 + 1,
                    payload: payload.as_bytes(),
                    ..Event::default()
                };
                batch.push(&event).expect("a good event");
            }
            let appended = self.store.append(batch).await.expect("the append succeeds");
            last = appended.last().map_or(last, |appended| appended.position);
        }
        last
    }

    async fn show(&self, plugin: &str) -> PluginStatus {
        self.registry.show(plugin).await.expect("the plugin is there")
    }

    /// Waits until the plugin has done everything there is.
    pub(crate) async fn settle(&self, plugin: &str) {
        let done = async || {
            let status = self.show(plugin).await;
            assert_ne!(status.state, PluginState::Failed, "{}", status.message);
            status.lag_events == 0
        };
        wait("the plugin has done all", done).await;
    }

    /// A rebuild with this version, or with the one that runs.
    async fn rebuild(
        &self,
        plugin: &str,
        version: Option<&'static str>,
    ) -> Result<RebuildView, ControlError> {
        self.registry.rebuild(rebuild(plugin, version)).await
    }

    pub(crate) async fn view(&self, plugin: &str) -> RebuildView {
        self.registry.rebuild_status(plugin).await.expect("there was a rebuild")
    }

    /// Waits until the last rebuild has taken over.
    pub(crate) async fn flipped(&self, plugin: &str) -> RebuildView {
        let flipped = async || {
            let view = self.view(plugin).await;
            assert_ne!(view.stage, RebuildStage::Abandoned, "{}", view.message);
            view.stage == RebuildStage::Flipped
        };
        wait("the rebuild has taken over", flipped).await;
        self.view(plugin).await
    }

    /// Waits until nothing is left of former rebuilds.
    async fn swept(&self) {
        wait("nothing is left of rebuilds", async || self.left().is_empty()).await;
    }

    fn left(&self) -> Vec<String> {
        left_of_rebuilds(&self.dir.path().join("store/millrace.db"))
    }

    /// Key to (count, version that wrote it).
    pub(crate) async fn rows(&self, table: &str) -> BTreeMap<String, (i64, i64)> {
        self.rows_of(&tenant(), table).await
    }

    async fn rows_of(&self, tenant: &TenantId, table: &str) -> BTreeMap<String, (i64, i64)> {
        let query = Query { limit: 1_000, ..Query::all(table) };
        let page = self.store.query(tenant, &query).await.expect("the table can be read");
        page.rows.iter().map(|row| (row.key.clone(), (int(&row.cells[0]), int(&row.cells[1])))).collect()
    }

    /// How often each aggregate id that begins so has an event in the log.
    async fn events(&self, beginning: &str) -> BTreeMap<String, usize> {
        let (mut found, mut after) = (BTreeMap::new(), Position::START);
        loop {
            let limit = PageLimit { events: 1_000, bytes: 1 << 20 };
            let page = self.store.read(&tenant(), after, limit).await.expect("the log can be read");
            for event in page.events.iter().filter(|event| event.agg_id.starts_with(beginning)) {
                *found.entry(event.agg_id.to_owned()).or_default() += 1;
            }
            if page.next <= after {
                return found;
            }
            after = page.next;
        }
    }
}

fn rebuild(plugin: &str, version: Option<&'static str>) -> RebuildRequest {
    RebuildRequest {
        plugin: plugin.into(),
        component: version.map(Into::into),
        from: DeployFrom::Oldest,
        lanes: None,
        accept_unemitted: false,
        repeat_calls: false,
        by: "api:test".into(),
    }
}

fn int(value: &Value) -> i64 {
    if let Value::Int(number) = value { *number } else { panic!("{value:?} is no number") }
}

/// Waits for something that has to be asked for.
pub(crate) async fn wait(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..30_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("waited a minute: {what}");
}

/// As many events of a type, each for a key of its own out of `keys`.
fn many(count: usize, keys: usize, event_type: &'static str) -> Vec<(String, &'static str, &'static str)> {
    (0..count).map(|n| (format!("k{}", n % keys), event_type, "1")).collect()
}

fn borrowed<'a>(events: &'a [(String, &'static str, &'static str)]) -> Vec<(&'a str, &'a str, &'a str)> {
    events.iter().map(|(key, event_type, payload)| (key.as_str(), *event_type, *payload)).collect()
}
