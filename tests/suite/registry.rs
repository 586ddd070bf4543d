//! Claims about what is deployed: a version proves itself before it serves, the old one serves until then,
//! and what was decided holds over restarts.

mod artifacts;
mod candidates;
mod scopes;
mod settings;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::event::Position;
use millrace::plugins::{
    self, ArtifactStore, Autopsy, ControlError, DeployFrom, DeployOptions, DeployRequest, FileArtifacts,
    PluginControl, PluginError, PluginRuntime, PluginSettings, PluginState, PluginStatus, Registry,
    RegistryParts, RuntimeOptions, StartFrom, WasmRuntime,
};
use millrace::processors::{
    Engine, GuestPool, Manifest, OrderingKey, Processor, ProcessorFactory, ProcessorSettings, ShadowSettings,
    TaskContext, Trap,
};
use millrace::streams::{AggregateScopes, EventLog};
use millrace::tables::{Column, ColumnType, Query, TableStore, Value};
use millrace_tests::conformance::change_streams::asset_scopes;
use millrace_tests::scripted::{Flaw, FlawKind, Scripted, Watch};

use super::plugins::rig::{batch, component, options, tenant};

/// Takes a text for a component: `name version` and flags. `refuses` its state · `single` and `field` are
/// other ordering keys · `adds` says of what type an added column is · `waits` makes instances only when
/// the gate is open · `hangs` in its calls while that is wanted · `scopes` and `fewer` of them declare what can be followed · `picky` does not subscribe to what is fatal · `traps` and writes `wrong` rows ·
/// `other` has another table · `slow` takes half a second for each call · `ticks` often · anything else is broken.
#[derive(Debug, Default)]
pub(crate) struct Scripts {
    pub(crate) gate: Arc<Mutex<bool>>,
    /// Of whoever `hangs`.
    hanging: Arc<Watch>,
}

impl PluginRuntime for Scripts {
    fn load(
        &self,
        component: &[u8],
        _: &dyn Fn(&str) -> PluginSettings,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        let text = std::str::from_utf8(component).expect("a script is text");
        let mut words = text.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            return Err(PluginError::NotAComponent { detail: "it is broken".into() });
        };
        let mut scripted = Scripted::new(name, version.parse().expect("a number"));
        scripted.digest = text.into();
        scripted.manifest.tables[0].name = format!("counts_{name}");
        let mut gate = None;
        for flag in words {
            match flag {
                "refuses" => scripted.refuses_state = true,
                "single" => scripted.manifest.ordering_key = OrderingKey::Single,
                "picky" => scripted.manifest.subscription.types = vec!["add".into()],
                "int" => scripted.manifest.tables[0].columns.push(added(ColumnType::Int)),
                "text" => scripted.manifest.tables[0].columns.push(added(ColumnType::Text)),
                "traps" => scripted.flaw = Some(Flaw { kind: FlawKind::Traps, after: 1 }),
                "wrong" => scripted.flaw = Some(Flaw { kind: FlawKind::WrongRows, after: 1 }),
                "other" => scripted.manifest.tables[0].name = format!("other_{name}"),
                "slow" => scripted.flaw = Some(Flaw { kind: FlawKind::TakesItsTime, after: 1 }),
                "ticks" => scripted.manifest.flush_interval_ms = Some(20),
                "scopes" => scripted.manifest.changes = asset_scopes(),
                "fewer" => scripted.manifest.changes = fewer_scopes(),
                "waits" => gate = Some(Arc::clone(&self.gate)),
                "hangs" => scripted.watch = Arc::clone(&self.hanging),
                other => panic!("no flag {other}"),
            }
        }
        Ok(match gate {
            None => Arc::new(scripted),
            Some(gate) => Arc::new(Gated { scripted, gate }),
        })
    }

    fn autopsy(&self, _: &[u8], _: &PluginSettings, _: &plugins::Scene<'_>) -> Result<Autopsy, PluginError> {
        Err(PluginError::Engine { detail: "a script leaves nothing to look at".into() })
    }
}

fn fewer_scopes() -> Vec<AggregateScopes> {
    let mut scopes = asset_scopes();
    scopes[0].scopes.pop();
    scopes
}

fn added(column_type: ColumnType) -> Column {
    Column { name: "added".into(), column_type, nullable: true, filterable: true, sortable: false }
}

#[derive(Debug)]
struct Gated {
    scripted: Scripted,
    gate: Arc<Mutex<bool>>,
}

impl ProcessorFactory for Gated {
    fn manifest(&self) -> &Manifest {
        self.scripted.manifest()
    }

    fn digest(&self) -> &str {
        self.scripted.digest()
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        while !*self.gate.lock().expect("test") {
            std::thread::yield_now();
        }
        self.scripted.instantiate(context)
    }
}

/// Scripts are their own digests.
#[derive(Debug, Default)]
pub(crate) struct Texts(Mutex<BTreeMap<String, Vec<u8>>>);

impl ArtifactStore for Texts {
    fn put(&self, component: &[u8]) -> Result<String, PluginError> {
        let text = String::from_utf8_lossy(component).into_owned();
        self.0.lock().expect("test").insert(text.clone(), component.to_vec());
        Ok(text)
    }

    fn get(&self, digest: &str) -> Result<Vec<u8>, PluginError> {
        let found = self.0.lock().expect("test").get(digest).cloned();
        found.ok_or_else(|| PluginError::ArtifactMissing { digest: digest.into() })
    }

    fn retain(&self, digests: &BTreeSet<String>) -> Result<usize, PluginError> {
        let mut texts = self.0.lock().expect("test");
        let before = texts.len();
        texts.retain(|digest, _| digests.contains(digest));
        Ok(before - texts.len())
    }
}

struct Scene {
    store: SqliteStore,
    parts: RegistryParts,
    registry: Registry,
    gate: Arc<Mutex<bool>>,
    hanging: Arc<Watch>,
    artifacts: Arc<Texts>,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scripts = Scripts::default();
        let (gate, hanging) = (Arc::clone(&scripts.gate), Arc::clone(&scripts.hanging));
        let artifacts = Arc::new(Texts::default());
        let texts = Arc::clone(&artifacts);
        let scene = Self::with(gate, artifacts, |_| (Arc::new(scripts) as _, texts as _));
        Self { hanging, ..scene }
    }

    /// With real components, a cache and artifacts on the disk.
    fn wasm(options: RuntimeOptions) -> Self {
        Self::with(Arc::default(), Arc::default(), |dir| {
            let options = RuntimeOptions { cache_dir: Some(dir.join("precompiled")), ..options };
            let runtime = WasmRuntime::new(options).expect("the runtime starts");
            let artifacts = FileArtifacts::open(dir.join("artifacts")).expect("the folder opens");
            (Arc::new(runtime) as _, Arc::new(artifacts) as _)
        })
    }

    fn with(
        gate: Arc<Mutex<bool>>,
        texts: Arc<Texts>,
        make: impl FnOnce(&std::path::Path) -> (Arc<dyn PluginRuntime>, Arc<dyn ArtifactStore>),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a new store opens");
        let (runtime, artifacts) = make(dir.path());
        let engine = Engine {
            shared_log: None,
            log: Arc::new(store.clone()),
            checkpoints: Arc::new(store.clone()),
            pool: GuestPool::new(4).expect("threads start"),
            clock: Arc::new(SystemClock),
            runtime: tokio::runtime::Handle::current(),
        };
        let time = Duration::from_millis(10);
        let shadow = ShadowSettings { events: 20, time, ..ShadowSettings::default() };
        let parts = RegistryParts {
            engine,
            runtime,
            artifacts,
            deployments: Arc::new(store.clone()),
            rebuilds: Arc::new(store.clone()),
            tables: Arc::new(store.clone()),
            settings: BTreeMap::new(),
            processors: ProcessorSettings { shadow, ..ProcessorSettings::default() },
        };
        let registry = Registry::new(parts.clone());
        Self { store, parts, registry, gate, hanging: Arc::default(), artifacts: texts, dir }
    }

    /// Stops all plugins and starts what was deployed.
    async fn restart(&mut self) {
        assert!(self.registry.shut_down(Duration::from_secs(60)).await, "all stop in time");
        self.registry = Registry::new(self.parts.clone());
        self.registry.start_deployed().await.expect("what was deployed can be listed");
    }

    async fn deploy(&self, component: impl Into<Bytes>) -> Result<PluginStatus, ControlError> {
        self.registry.deploy(request(component, "api:test")).await
    }

    async fn publish(&self, events: &[(&str, &str, &str)]) -> Position {
        let batch = batch(events, self.store.bounds().newest.0);
        let appended = self.store.append(batch).await.expect("the append succeeds");
        appended.last().expect("events were appended").position
    }

    async fn show(&self, plugin: &str) -> PluginStatus {
        self.registry.show(plugin).await.expect("the plugin is there")
    }

    /// Waits until the plugin has done everything there is.
    async fn settle(&self, plugin: &str) -> PluginStatus {
        for _ in 0..30_000 {
            let status = self.show(plugin).await;
            assert_ne!(status.state, PluginState::Failed, "{}", status.message);
            if status.lag_events == 0 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("waited a minute: {plugin} has done all");
    }

    async fn failed(&self, plugin: &str) -> PluginStatus {
        for _ in 0..30_000 {
            let status = self.show(plugin).await;
            if status.state == PluginState::Failed {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("waited a minute: {plugin} has failed");
    }

    /// Key to cells.
    async fn rows(&self, table: &str) -> BTreeMap<String, Vec<Value>> {
        let page = self.store.query(&tenant(), &Query::all(table)).await.expect("the table can be read");
        page.rows.into_iter().map(|row| (row.key, row.cells)).collect()
    }

    /// How often the scripted plugin has counted `x`, and which version did so last.
    async fn count(&self, plugin: &str) -> (Value, Value) {
        let rows = self.rows(&format!("counts_{plugin}")).await;
        rows.get("x").map_or((Value::Null, Value::Null), |cells| (cells[0].clone(), cells[1].clone()))
    }
}

pub(crate) fn request(component: impl Into<Bytes>, by: &str) -> DeployRequest {
    let component = component.into();
    DeployRequest {
        component,
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: by.into(),
        options: DeployOptions::default(),
        paused: false,
        settings: None,
        progress: None,
    }
}

fn ints(count: i64, version: i64) -> (Value, Value) {
    (Value::Int(count), Value::Int(version))
}

const X: &[(&str, &str, &str)] = &[("x", "add", "1")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_again_change_nothing() {
    let scene = Scene::new();
    let first = scene.deploy("alpha 1").await.expect("it is deployed");
    let again = scene.deploy("alpha 1").await.expect("it is no error");
    assert_eq!(again.deployment, first.deployment);
    assert_eq!(again.counters.swaps, 0);
    assert_eq!(scene.registry.history("alpha").await.expect("it is there").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_takes_over_where_the_old_one_stands() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    let status = scene.deploy("alpha 2").await.expect("it takes over");
    assert_eq!((status.deployment.version.as_str(), status.counters.swaps), ("2.0.0", 1));
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 2));
    let history = scene.registry.history("alpha").await.expect("it is there");
    assert_eq!(history.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(), ["2.0.0", "1.0.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_with_another_name_is_refused() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    let request = DeployRequest { expected_name: Some("alpha".into()), ..request("beta 1", "api:test") };
    let error = scene.registry.deploy(request).await.expect_err("it is not the plugin that was meant");
    assert_eq!(error.code(), "plugin_other_name");
    assert_eq!(scene.registry.show("beta").await.expect_err("it does not run").code(), "plugin_unknown");
    let refusal = scene.show("alpha").await.last_refusal.expect("it is told where it was meant for");
    assert_eq!(refusal.code, "plugin_other_name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ordering_key_is_refused_with_its_reason() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    let error = scene.deploy("alpha 2 single").await.expect_err("lanes cannot be split anew");
    assert_eq!(error.code(), "swap_failed");
    assert!(error.to_string().contains("another key needs a rebuild"), "{error}");
    assert_eq!(scene.show("alpha").await.deployment.version, "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_refuses_the_state_is_remembered_and_the_old_one_serves() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    let error = scene.deploy("alpha 2 refuses").await.expect_err("it refuses");
    assert_eq!(error.to_string(), "version 2.0.0 refused the state of task alpha/default/0: told to refuse");
    let status = scene.show("alpha").await;
    assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    let refusal = status.last_refusal.expect("it is remembered");
    assert_eq!((refusal.candidate.as_str(), refusal.code.as_str()), ("alpha 2.0.0", "state_refused"));
    assert_eq!(refusal.message, error.to_string());
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 1));
    scene.restart().await;
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(3, 1), "also after a restart");
    let status = scene.deploy("alpha 3").await.expect("a good one takes over");
    assert!(status.last_refusal.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_change_is_refused_and_the_old_version_serves() {
    let scene = Scene::new();
    scene.deploy("alpha 1 int").await.expect("it is deployed");
    let error = scene.deploy("alpha 2 text").await.expect_err("a column cannot change its type");
    assert_eq!(error.code(), "schema_changed");
    let status = scene.show("alpha").await;
    assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    assert_eq!(status.last_refusal.expect("it is remembered").code, "schema_changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_version_leaves_no_columns_behind() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    scene.deploy("alpha 2 refuses int").await.expect_err("it refuses its state");
    scene.deploy("alpha 3 text").await.expect("the column is still free to be a text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_plugin_stays_paused_over_a_restart_and_resumes_where_it_stood() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    assert_eq!(scene.registry.pause("alpha").await.expect("it pauses").state, PluginState::Paused);
    scene.publish(X).await;
    scene.restart().await;
    let status = scene.show("alpha").await;
    assert_eq!((status.state, status.lag_events), (PluginState::Paused, 1));
    assert_eq!(scene.count("alpha").await, ints(1, 1));
    scene.registry.resume("alpha").await.expect("it resumes");
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 1));
    assert_eq!(scene.registry.resume("alpha").await.expect("twice is once").state, PluginState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_over_a_paused_plugin_proves_itself_and_stays_paused() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    scene.registry.pause("alpha").await.expect("it pauses");
    let error = scene.deploy("alpha 2 refuses").await.expect_err("it is asked although nothing runs");
    assert_eq!(error.code(), "state_refused");
    assert_eq!(scene.show("alpha").await.deployment.version, "1.0.0");
    let status = scene.deploy("alpha 3").await.expect("a good one is taken");
    assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Paused, "3.0.0"));
    scene.publish(X).await;
    scene.registry.resume("alpha").await.expect("it resumes");
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_plugin_is_mended_by_another_version_and_not_by_the_same() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(&[("x", "add", "1"), ("x", "fatal", "1"), ("x", "add", "1")]).await;
    assert_eq!(scene.failed("alpha").await.message, "tenant default: told to stop");
    scene.deploy("alpha 1").await.expect("the same bytes change nothing");
    scene.failed("alpha").await;
    scene.registry.resume("alpha").await.expect("it is started again");
    scene.failed("alpha").await;
    let error = scene.deploy("alpha 2 refuses").await.expect_err("the state is asked for all the same");
    assert_eq!(error.code(), "state_refused");
    scene.deploy("alpha 3 picky").await.expect("a good one is taken");
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_fixed_at_the_first_deploy() {
    let mut scene = Scene::new();
    let lanes = |lanes| PluginSettings { lanes: Some(lanes), ..PluginSettings::default() };
    scene.parts.settings.insert("alpha".into(), lanes(3));
    scene.restart().await;
    assert_eq!(scene.deploy("alpha 1").await.expect("it is deployed").deployment.lanes, 3);
    scene.parts.settings.insert("alpha".into(), lanes(5));
    scene.restart().await;
    let status = scene.deploy("alpha 2").await.expect("it takes over");
    assert_eq!(status.deployment.lanes, 3);
    scene.publish(X).await;
    assert_eq!(scene.settle("alpha").await.tasks.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_deploy_begins_where_it_is_told_to() {
    let mut scene = Scene::new();
    let second = scene.publish(&[("x", "add", "1"), ("x", "add", "1")]).await;
    scene.publish(X).await;
    for (name, from) in [("oldest", DeployFrom::Oldest), ("tail", DeployFrom::Tail)] {
        let component = format!("{name} 1");
        let request = DeployRequest { from, ..request(component, "api:test") };
        scene.registry.deploy(request).await.expect("it is deployed");
    }
    let after = DeployRequest { from: DeployFrom::After(second.0), ..request("after 1", "api:test") };
    scene.registry.deploy(after).await.expect("it is deployed");
    assert_eq!(scene.show("tail").await.deployment.from, StartFrom::After(3), "what is new was decided then");
    // The tail stands still over a restart, too.
    scene.restart().await;
    scene.publish(X).await;
    for (name, count) in [("oldest", 4), ("after", 2), ("tail", 1)] {
        scene.settle(name).await;
        assert_eq!(scene.count(name).await, ints(count, 1), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_candidate_holds_up_neither_its_plugin_nor_others() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.publish(X).await;
    scene.settle("alpha").await;
    let slow = scene.registry.deploy(request("alpha 2 waits", "api:test"));
    let meanwhile = async {
        scene.deploy("beta 1").await.expect("another plugin is deployed");
        scene.publish(X).await;
        scene.settle("alpha").await;
        assert_eq!(scene.count("alpha").await, ints(2, 1), "the old version serves");
        *scene.gate.lock().expect("test") = true;
    };
    let (status, ()) = tokio::join!(slow, meanwhile);
    assert_eq!(status.expect("it takes over in the end").deployment.version, "2.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_plugin_is_gone_and_begins_anew_when_it_comes_back() {
    let mut scene = Scene::new();
    scene.publish(X).await;
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.settle("alpha").await;
    scene.registry.remove("alpha").await.expect("it is removed");
    assert_eq!(scene.registry.remove("alpha").await.expect_err("it is gone").code(), "plugin_unknown");
    assert_eq!(scene.count("alpha").await, ints(1, 1), "its rows stay");
    scene.restart().await;
    assert!(scene.registry.list().await.expect("a list").is_empty());
    scene.deploy("alpha 2").await.expect("it is deployed");
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(1, 2), "it counts from nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_is_told_of_at_the_plugin_that_it_brought() {
    let scene = Scene::new();
    let file = "directory: alpha.wasm";
    scene.registry.deploy(request("alpha 1", file)).await.expect("it is deployed");
    scene.registry.deploy(request("beta 1", "directory: beta.wasm")).await.expect("it is deployed");
    scene.registry.deploy(request("broken", file)).await.expect_err("it is broken");
    let status = scene.show("alpha").await;
    assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    let refusal = status.last_refusal.expect("it is remembered");
    assert_eq!((refusal.candidate.as_str(), refusal.code.as_str()), (file, "not_a_component"));
    assert!(scene.show("beta").await.last_refusal.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_does_not_go_back_to_a_file_that_was_deployed_over() {
    let mut scene = Scene::new();
    let file = "directory: alpha.wasm";
    scene.registry.deploy(request("alpha 1", file)).await.expect("it is deployed");
    scene.deploy("alpha 2").await.expect("it takes over");
    scene.restart().await;
    let status = scene.registry.deploy(request("alpha 1", file)).await.expect("it is no error");
    assert_eq!(status.deployment.version, "2.0.0", "the file has had its turn");
    let status = scene.registry.deploy(request("alpha 3", file)).await.expect("a new file is taken");
    assert_eq!(status.deployment.version, "3.0.0");
    let status =
        scene.registry.deploy(request("alpha 1", file)).await.expect("and so is an old one put back");
    assert_eq!(status.deployment.version, "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_cannot_start_holds_up_no_other_and_is_mended_by_its_bytes() {
    let mut scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    scene.deploy("beta 1").await.expect("it is deployed");
    scene.artifacts.0.lock().expect("test").remove("alpha 1");
    scene.restart().await;
    let status = scene.failed("alpha").await;
    assert_eq!(status.message, "there is no artifact alpha 1");
    scene.publish(X).await;
    scene.settle("beta").await;
    scene.deploy("alpha 1").await.expect("the same bytes mend it");
    scene.settle("alpha").await;
    assert_eq!(scene.count("alpha").await, ints(1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_changes_any_more_once_the_host_stops() {
    let scene = Scene::new();
    scene.deploy("alpha 1").await.expect("it is deployed");
    assert!(scene.registry.shut_down(Duration::from_secs(60)).await);
    assert_eq!(scene.deploy("alpha 2").await.expect_err("it is too late").code(), "store_closed");
    assert_eq!(scene.registry.pause("alpha").await.expect_err("it is too late").code(), "store_closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_component_is_swapped_refused_and_started_again() {
    let mut scene = Scene::wasm(options());
    scene.deploy(component("counter")).await.expect("it is deployed");
    scene.publish(&[("a", "x", "1"), ("a", "y", "1"), ("b", "x", "1")]).await;
    scene.settle("counter").await;
    scene.restart().await;
    scene.publish(&[("a", "x", "1")]).await;
    scene.settle("counter").await;
    assert_eq!(scene.rows("counters").await["a"], [Value::Int(3)]);

    scene.deploy(component("counter_v2")).await.expect("it takes over");
    scene.publish(&[("a", "z", "1")]).await;
    scene.settle("counter").await;
    let rows = scene.rows("counters").await;
    assert_eq!(rows["a"], [Value::Int(4), Value::Text("z".into())], "it adds a column and goes on counting");
    assert_eq!(rows["b"], [Value::Int(1), Value::Null], "rows of before have no value in it");

    let error = scene.deploy(component("counter_refuses")).await.expect_err("it refuses any state");
    assert_eq!(error.code(), "state_refused");
    assert!(error.to_string().contains("counter.v2+json` is not for me"), "{error}");
    let cut = component("counter")[..10_000].to_vec();
    let request = DeployRequest { expected_name: Some("counter".into()), ..request(cut, "api:test") };
    scene.registry.deploy(request).await.expect_err("half a component is none");
    scene.publish(&[("a", "z", "1")]).await;
    let status = scene.settle("counter").await;
    assert_eq!(status.last_refusal.expect("it is remembered").code, "not_a_component");
    assert_eq!(scene.rows("counters").await["a"][0], Value::Int(5));
    assert!(scene.dir.path().join("precompiled/key").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_load_is_refused_before_it_is_deployed() {
    let scene = Scene::wasm(RuntimeOptions { call_max: Duration::from_millis(300), ..options() });
    let error = scene.deploy(component("endless_load")).await.expect_err("it never begins");
    assert_eq!(error.code(), "swap_failed");
    assert!(error.to_string().contains("guest_call_ms_max = 300"), "{error}");
    assert!(scene.registry.list().await.expect("a list").is_empty());
}
