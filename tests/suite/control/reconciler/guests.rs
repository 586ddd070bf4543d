//! The same with real components: what each kind of bad one comes to on a host that runs, and what a good one does.

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::error::Classify as _;
use millrace::plugins::{
    DeployFrom, DeployOptions, DeployRequest, FileArtifacts, PluginState, PluginStatus, Registry,
    RegistryParts, RuntimeOptions, WasmRuntime,
};
use millrace::processors::{Engine, GuestPool, ProcessorSettings, ShadowSettings};
use millrace::streams::EventLog;
use millrace::tables::{Query, TableStore, Value};
use millrace_tests::control_events::spec as spec_of;
use millrace_tests::guests::{forge_code, variant, version_of};
use millrace_tests::handwritten::Handwritten;
use millrace_tests::workspace_binary;

use super::*;
use crate::plugins::compiling::bomb;
use crate::plugins::rig::{batch, component as guest, options as runtime_options, tenant};

/// A host with a registry and guests, and the feed's side beside it.
struct Real {
    scene: Scene,
    log: SqliteStore,
    parts: RegistryParts,
    registry: Registry,
    dir: tempfile::TempDir,
}

impl Real {
    fn new(options: RuntimeOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
        let artifacts = Arc::new(FileArtifacts::open(dir.path().join("artifacts")).unwrap());
        let cache_dir = Some(dir.path().join("precompiled"));
        let options = RuntimeOptions { cache_dir, artifacts: Some(artifacts.clone()), ..options };
        let engine = Engine {
            shared_log: None,
            log: Arc::new(log.clone()),
            checkpoints: Arc::new(log.clone()),
            pool: GuestPool::new(4).unwrap(),
            clock: Arc::new(SystemClock),
            runtime: tokio::runtime::Handle::current(),
        };
        let shadow = ShadowSettings {
            events: 20,
            time: Duration::from_millis(10),
            // Versions are told apart by what they do, and not by their time on a busy machine.
            time_ratio_max: 1_000_000,
            ..ShadowSettings::default()
        };
        let parts = RegistryParts {
            engine,
            runtime: Arc::new(WasmRuntime::new(options).unwrap()),
            artifacts,
            deployments: Arc::new(log.clone()),
            rebuilds: Arc::new(log.clone()),
            tables: Arc::new(log.clone()),
            settings: BTreeMap::new(),
            processors: ProcessorSettings { shadow, ..ProcessorSettings::default() },
        };
        let registry = Registry::new(parts.clone());
        let mut scene = Scene::new();
        scene.options.breaker_poll = Duration::from_millis(5);
        scene.real = Some(Arc::new(registry.for_feed()));
        scene.managed = registry.managed();
        Self { scene, log, parts, registry, dir }
    }

    /// The host ends, reconciler first, and is there again.
    async fn restart(&mut self) {
        self.scene.kill().await;
        assert!(self.registry.shut_down(Duration::from_secs(20)).await, "all stop in time");
        self.registry = Registry::new(self.parts.clone());
        self.registry.start_deployed().await.unwrap();
        self.scene.real = Some(Arc::new(self.registry.for_feed()));
        self.scene.managed = self.registry.managed();
        self.scene.start();
    }

    /// A component as the feed has it.
    fn spec(&self, plugin: &str, bytes: &[u8]) -> PluginSpec {
        self.scene.supply.put(bytes);
        let is = |name: &str| bytes == guest(name);
        let version = if is("counter_v2") {
            "2.0.0".into()
        } else if is("counter_refuses") {
            "3.0.0".into()
        } else {
            version_of(bytes)
        };
        spec_of(plugin, &version, bytes)
    }

    async fn deploy(&self, plugin: &str, bytes: &[u8], revision: u64) {
        let spec = self.spec(plugin, bytes);
        self.scene.apply(about(plugin, Kind::Deployed, running(spec), revision)).await;
    }

    async fn show(&self, plugin: &str) -> PluginStatus {
        self.registry.show(plugin).await.unwrap()
    }

    async fn publish(&self, events: &[(&str, &str, &str)]) {
        self.log.append(batch(events, self.log.bounds().newest.0)).await.unwrap();
    }

    async fn settle(&self, plugin: &str) {
        let begun = Instant::now();
        while self.show(plugin).await.lag_events > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: {plugin} has done all");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn number(&self, table: &str, key: &str) -> Value {
        let page = self.log.query(&tenant(), &Query::all(table)).await.unwrap();
        page.rows.into_iter().find(|row| row.key == key).unwrap().cells[0].clone()
    }
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c63_m14_m15_m16_bad_guests_set_themselves_aside_while_the_old_one_serves() {
    let compiling = RuntimeOptions {
        compiler: Some(workspace_binary("millrace")),
        compile_memory_bytes_max: 400 << 20,
        // What does not end takes it whole, several times.
        call_max: Duration::from_secs(2),
        ..runtime_options()
    };
    let mut real = Real::new(compiling);
    real.scene.start();
    real.deploy("counter", &guest("counter"), 1).await;
    real.scene.reaches("counter", 1, Phase::Active).await;
    real.publish(&[("x", "add", "1")]).await;
    real.settle("counter").await;
    // Right in everything else: it is started before anybody can ask what it is.
    let starts_for_ever =
        Handwritten::new("counter").with("(func $s (loop $l (br $l))) (start $s)").component();
    let cases = [
        (b"#!/bin/sh\nexit 0\n".to_vec(), "not_a_component"),
        (wat("(component)"), "wrong_world"),
        (starts_for_ever, "describe_failed"),
        (guest("endless_describe"), "describe_failed"),
        (guest("wants_clock"), "grant_missing"),
        (guest("counter_refuses"), "state_refused"),
        (guest("tally"), "plugin_other_name"),
        (bomb(1, 700_000), "compile_limit"),
    ];
    for (revision, (bytes, code)) in (2..).zip(cases) {
        real.deploy("counter", &bytes, revision).await;
        assert_eq!(real.scene.set_aside("counter", revision).await, code);
        let status = real.show("counter").await;
        assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    }
    real.publish(&[("x", "add", "1")]).await;
    real.settle("counter").await;
    assert_eq!(real.number("counters", "x").await, Value::Int(2), "it has missed nothing");
    let mut endless = real.spec("endless-load", &guest("endless_load"));
    endless.limits.insert("call_ms_max".into(), json!(300));
    real.scene.apply(about("endless-load", Kind::Deployed, running(endless), 1)).await;
    assert_eq!(real.scene.set_aside("endless-load", 1).await, "swap_failed");
    real.deploy("counter", &guest("counter_v2"), 20).await;
    real.scene.reaches("counter", 20, Phase::Active).await;
}

/// What an event says of a component is what the component says of itself, or the event is set aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c59_an_event_that_says_another_version_or_world_than_its_component_is_set_aside() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    real.deploy("counter", &guest("counter"), 1).await;
    real.scene.reaches("counter", 1, Phase::Active).await;
    let v2 = real.spec("counter", &guest("counter_v2"));
    let other_version = PluginSpec { version: "2.0.1".into(), ..v2.clone() };
    let other_world = PluginSpec { world: "millrace:processor@0.2.0".into(), ..v2.clone() };
    // Also of what runs already.
    let renamed = PluginSpec { version: "1.0.1".into(), ..real.spec("counter", &guest("counter")) };
    for (revision, spec, said, is) in [
        (2, other_version, "2.0.1", "2.0.0"),
        (3, other_world, "millrace:processor@0.2.0", "millrace:processor@0.1.0"),
        (4, renamed, "1.0.1", "1.0.0"),
    ] {
        real.scene.apply(about("counter", Kind::Deployed, running(spec), revision)).await;
        assert_eq!(real.scene.set_aside("counter", revision).await, "plugin_other_build");
        let (_, reason) = real.scene.row("counter").await.unwrap().reason.unwrap();
        assert!(reason.contains(&format!("`{said}`")) && reason.contains(&format!("`{is}`")), "{reason}");
        let status = real.show("counter").await;
        assert_eq!((status.state, status.deployment.version.as_str()), (PluginState::Running, "1.0.0"));
    }
    real.scene.apply(about("counter", Kind::Deployed, running(v2), 5)).await;
    real.scene.reaches("counter", 5, Phase::Active).await;
    assert_eq!(real.show("counter").await.deployment.version, "2.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_falls_in_the_shadow_is_set_aside() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    real.deploy("variant", &variant(1, "good"), 1).await;
    real.scene.reaches("variant", 1, Phase::Active).await;
    real.publish(&[("x", "add", "1"), ("y", "add", "1")]).await;
    real.settle("variant").await;
    real.deploy("variant", &variant(2, "traps"), 2).await;
    assert_eq!(real.scene.set_aside("variant", 2).await, "shadow_trap");
    real.deploy("variant", &variant(3, "good"), 3).await;
    real.scene.reaches("variant", 3, Phase::Active).await;
    assert!(real.show("variant").await.deployment.version.starts_with("1.1000003."));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m17_a_version_that_traps_in_service_goes_back_with_the_feed_offline() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    real.deploy("variant", &variant(1, "good"), 1).await;
    real.scene.reaches("variant", 1, Phase::Active).await;
    real.publish(&[("x", "add", "1")]).await;
    real.settle("variant").await;
    let unseen = PluginSpec { shadow_events: Some(0), ..real.spec("variant", &variant(2, "traps")) };
    let desired = at_once(running(unseen), real.spec("variant", &variant(1, "good")), 70);
    real.scene.apply(about("variant", Kind::Deployed, desired, 2)).await;
    real.scene.reaches("variant", 2, Phase::Active).await;
    real.scene.supply.set_away(true);
    let gets = real.scene.supply.gets();
    // As many as it takes: an event is tried some times, and each of these is one that it falls over.
    let keys: Vec<String> = (0..40).map(|key| format!("k{key}")).collect();
    let events: Vec<(&str, &str, &str)> = keys.iter().map(|key| (key.as_str(), "add", "1")).collect();
    real.publish(&events).await;
    assert_eq!(real.scene.set_aside("variant", 2).await, "breaker_tripped");
    let begun = Instant::now();
    while !real.show("variant").await.deployment.version.starts_with("1.1000001.") {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: the one before serves");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(real.show("variant").await.deployment.rollback);
    real.restart().await;
    real.scene.kill().await;
    assert!(real.show("variant").await.deployment.version.starts_with("1.1000001."), "it stays so");
    assert_eq!(real.scene.supply.gets(), gets, "nothing was asked of the repository");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_the_settings_and_asks_nobody() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    let mut spec = real.spec("reads-env", &guest("reads_env"));
    spec.grants.insert("grants".into(), json!(["env"]));
    spec.grants.insert("env".into(), json!({ "GREETING": "hello" }));
    real.scene.apply(about("reads-env", Kind::Deployed, running(spec), 1)).await;
    real.scene.reaches("reads-env", 1, Phase::Active).await;
    let deployed_at = real.show("reads-env").await.deployment.deployed_at;
    real.scene.supply.set_away(true);
    real.restart().await;
    real.publish(&[("x", "add", "1")]).await;
    real.settle("reads-env").await;
    assert_eq!(real.number("env_variables", "GREETING").await, Value::Text("hello".into()));
    assert_eq!(real.show("reads-env").await.deployment.deployed_at, deployed_at);
    assert_eq!(real.scene.row("reads-env").await.unwrap().reason, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_feed_brought_the_edge_and_the_folder_cannot_change() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    real.deploy("counter", &guest("counter"), 1).await;
    real.scene.reaches("counter", 1, Phase::Active).await;
    for by in ["api:test", "directory: counter.wasm"] {
        let request = DeployRequest {
            component: guest("counter_v2").into(),
            expected_name: None,
            expected_build: None,
            from: DeployFrom::Oldest,
            by: by.into(),
            options: DeployOptions::default(),
            paused: false,
            settings: None,
            progress: None,
        };
        let error = real.registry.deploy(request).await.unwrap_err();
        assert_eq!(error.code(), "plugin_managed");
    }
    assert_eq!(real.registry.remove("counter").await.unwrap_err().code(), "plugin_managed");
    assert_eq!(real.show("counter").await.deployment.version, "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn precompiled_code_that_was_changed_is_compiled_again() {
    let mut real = Real::new(runtime_options());
    real.scene.start();
    real.deploy("counter", &guest("counter"), 1).await;
    real.scene.reaches("counter", 1, Phase::Active).await;
    let changed = forge_code(&real.dir.path().join("precompiled"));
    assert!(changed > 0, "there is code to change");
    real.restart().await;
    real.publish(&[("x", "add", "1")]).await;
    real.settle("counter").await;
    assert_eq!(real.number("counters", "x").await, Value::Int(1));
    assert_eq!(real.scene.reaches("counter", 1, Phase::Active).await.reason, None);
}
