//! Claims about plugins that have nothing to do: they give their instances and their code back, and nobody can
//! tell from what they write.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use millrace::checkpoints::CheckpointStore;
use millrace::config::Config;
use millrace::error::Classify;
use millrace::host::Host;
use millrace::plugins::{
    ArtifactStore, CodeState, DeployFrom, DeployOptions, DeployRequest, FileArtifacts, PluginError,
    PluginSettings, PluginState, PluginStatus, RuntimeOptions, WasmRuntime,
};
use millrace::processors::{ProcessorSettings, TaskContext};
use millrace_tests::guests::variant;
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::scene::{Scene, counts, scripted};
use millrace_tests::scripted::counted;
use millrace_tests::{until, workspace_binary};

use super::plugins::rig::{batch, component, context, load, options};
use super::state::{config, deploy, numbers, publish, settle, start};

fn quick(dir: &Path) -> Config {
    let mut config = config(dir);
    config.processors.task_idle_ms_max = 20;
    config
}

async fn wait_for(host: &Host, plugin: &str, what: &str, so: impl Fn(&PluginStatus) -> bool) -> PluginStatus {
    for _ in 0..30_000 {
        let status = host.plugins().show(plugin).await.unwrap();
        if so(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("waited a minute: {plugin} {what}");
}

async fn idle(host: &Host, plugin: &str) -> PluginStatus {
    let idle = |s: &PluginStatus| s.measures.code == Some(CodeState::Idle) && s.measures.instances == 0;
    wait_for(host, plugin, "is idle", idle).await
}

async fn deploy_bytes(host: &Host, component: Vec<u8>) -> PluginStatus {
    let request = DeployRequest {
        component: component.into(),
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: "api:test".into(),
        options: DeployOptions { no_shadow: true, ..DeployOptions::default() },
        paused: false,
        settings: None,
        progress: None,
    };
    host.plugins().deploy(request).await.unwrap()
}

/// The precompiled code of a component.
fn entry(dir: &Path, digest: &str) -> PathBuf {
    let entries = fs::read_dir(dir.join("data/precompiled")).unwrap();
    let mut found = entries.map(|entry| entry.unwrap().path());
    found.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(digest)).unwrap()
}

fn artifact(dir: &Path, digest: &str) -> PathBuf {
    dir.join("data/artifacts").join(format!("{digest}.wasm"))
}

/// Whether this process has mapped or opened a file.
fn holds(path: &Path) -> (bool, bool) {
    let mapped = fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap());
    let open = fs::read_dir("/proc/self/fd").unwrap().any(|fd| {
        // The folder's own descriptor is closed by now.
        fs::read_link(fd.unwrap().path()).is_ok_and(|file| file == path)
    });
    (mapped, open)
}

/// Each plugin writes the rows that it would have written had it never been idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_plugin_gives_its_code_back_and_goes_on_with_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&quick(dir.path())).await;
    let still_dir = tempfile::tempdir().unwrap();
    let still = start(&config(still_dir.path())).await;
    let plugins = [("counter", "counters"), ("keyed", "keyed_counts")];
    for (plugin, _) in plugins {
        for host in [&host, &still] {
            let deployed = deploy(host, plugin).await.unwrap();
            assert_eq!(deployed.measures.code, Some(CodeState::Loaded));
        }
    }
    for round in 0..4 {
        let events = [("a", "changed", round), ("b", "changed", round), ("sum", "keyed.sum", round)];
        for host in [&host, &still] {
            publish(host, &events[..if round == 3 { 3 } else { 2 }]).await;
        }
        for (plugin, _) in plugins {
            settle(&host, plugin).await;
            let idle = idle(&host, plugin).await;
            assert_eq!((idle.state, idle.message.as_str()), (PluginState::Running, ""));
            let code = fs::canonicalize(entry(dir.path(), &idle.deployment.digest)).unwrap();
            assert_eq!(holds(&code), (false, false), "the code is neither mapped nor open");
        }
    }
    for (plugin, table) in plugins {
        let running = settle(&still, plugin).await;
        let code = fs::canonicalize(entry(still_dir.path(), &running.deployment.digest)).unwrap();
        assert!(holds(&code).0, "a plugin that is not idle has its code mapped");
        assert_eq!(numbers(&host, table).await, numbers(&still, table).await);
    }
    host.shutdown().await;
    still.shutdown().await;
}

/// An artifact store that counts how often it is asked.
#[derive(Debug)]
struct Counted {
    files: FileArtifacts,
    asked: AtomicUsize,
}

impl ArtifactStore for Counted {
    fn put(&self, component: &[u8]) -> Result<String, PluginError> {
        self.files.put(component)
    }

    fn get(&self, digest: &str) -> Result<Vec<u8>, PluginError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.files.get(digest)
    }

    fn retain(&self, digests: &BTreeSet<String>) -> Result<usize, PluginError> {
        self.files.retain(digests)
    }
}

struct Shelf {
    dir: tempfile::TempDir,
    artifacts: Arc<Counted>,
    runtime: WasmRuntime,
}

fn shelf() -> Shelf {
    let dir = tempfile::tempdir().unwrap();
    let files = FileArtifacts::open(dir.path().join("data/artifacts")).unwrap();
    let artifacts = Arc::new(Counted { files, asked: AtomicUsize::new(0) });
    let cache_dir = Some(dir.path().join("data/precompiled"));
    let options = RuntimeOptions { cache_dir, artifacts: Some(Arc::clone(&artifacts) as _), ..options() };
    Shelf { artifacts, runtime: WasmRuntime::new(options).unwrap(), dir }
}

#[test]
fn whoever_asks_while_code_is_loaded_waits_for_that_one_load() {
    const MANY: usize = 8;
    let shelf = shelf();
    let digest = shelf.artifacts.put(&component("crossing")).unwrap();
    let factory = load(&shelf.runtime, &component("crossing"), &PluginSettings::default()).unwrap();
    factory.rest(Duration::ZERO);
    assert!(!factory.is_loaded());
    // So each load would ask for the artifact.
    fs::remove_file(entry(shelf.dir.path(), &digest)).unwrap();
    let together = Barrier::new(MANY);
    std::thread::scope(|threads| {
        for _ in 0..MANY {
            threads.spawn(|| {
                together.wait();
                let mut instance = factory.instantiate(context()).unwrap();
                instance.load(None).unwrap();
                assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).unwrap().handled, 1);
                together.wait();
            });
        }
    });
    assert_eq!(shelf.artifacts.asked.load(Ordering::SeqCst), 1);
    assert!(entry(shelf.dir.path(), &digest).exists(), "the next load need not compile");
}

#[test]
fn code_stays_while_an_instance_lives_and_where_it_could_not_be_had_again() {
    let shelf = shelf();
    let digest = shelf.artifacts.put(&component("crossing")).unwrap();
    let factory = load(&shelf.runtime, &component("crossing"), &PluginSettings::default()).unwrap();
    let instance = factory.instantiate(context()).unwrap();
    factory.rest(Duration::ZERO);
    assert!(factory.is_loaded(), "an instance lives");
    drop(instance);
    factory.rest(Duration::from_secs(60));
    assert!(factory.is_loaded(), "one was made within a minute");
    let entry = entry(shelf.dir.path(), &digest);
    let aside = entry.with_extension("aside");
    fs::rename(&entry, &aside).unwrap();
    factory.rest(Duration::ZERO);
    assert!(factory.is_loaded(), "another load would have to compile");
    fs::rename(&aside, &entry).unwrap();
    factory.rest(Duration::ZERO);
    assert!(!factory.is_loaded());
    for options in [
        RuntimeOptions { cache_dir: Some(shelf.dir.path().join("data/precompiled")), ..options() },
        RuntimeOptions { artifacts: Some(Arc::clone(&shelf.artifacts) as _), ..options() },
    ] {
        let runtime = WasmRuntime::new(options).unwrap();
        let factory = load(&runtime, &component("crossing"), &PluginSettings::default()).unwrap();
        factory.rest(Duration::ZERO);
        assert!(factory.is_loaded(), "without a cache or artifacts there is nothing to load from");
    }
}

#[test]
fn forged_code_of_an_idle_plugin_is_made_again_from_the_artifact() {
    let shelf = shelf();
    let digest = shelf.artifacts.put(&component("crossing")).unwrap();
    shelf.artifacts.put(&component("trap_on_type")).unwrap();
    let factory = load(&shelf.runtime, &component("crossing"), &PluginSettings::default()).unwrap();
    let other = load(&shelf.runtime, &component("trap_on_type"), &PluginSettings::default()).unwrap();
    let path = entry(shelf.dir.path(), &digest);
    let sound = fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    let foreign = fs::read(entry(shelf.dir.path(), other.digest())).unwrap();
    for (turn, forged) in [&flipped[..], &sound[..sound.len() / 2], b"", &foreign].into_iter().enumerate() {
        factory.rest(Duration::ZERO);
        assert!(!factory.is_loaded());
        fs::remove_file(&path).unwrap();
        fs::write(&path, forged).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        let mut instance = factory.instantiate(context()).unwrap();
        instance.load(None).unwrap();
        assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).unwrap().handled, 1);
        assert_eq!(shelf.artifacts.asked.load(Ordering::SeqCst), turn + 1, "the artifact was read");
        assert_eq!(fs::read(&path).unwrap().len(), sound.len(), "the entry is whole again");
    }
}

#[test]
fn code_that_cannot_be_loaded_says_why_and_is_not_tried_again_at_once() {
    let shelf = shelf();
    let digest = shelf.artifacts.put(&component("crossing")).unwrap();
    let factory = load(&shelf.runtime, &component("crossing"), &PluginSettings::default()).unwrap();
    factory.rest(Duration::ZERO);
    fs::remove_file(entry(shelf.dir.path(), &digest)).unwrap();
    shelf.artifacts.retain(&BTreeSet::new()).unwrap();
    let refused = |context: TaskContext| factory.instantiate(context).err().unwrap().to_string();
    for _ in 0..10 {
        let said = refused(context());
        assert!(said.contains(&format!("there is no artifact {digest}")), "{said}");
    }
    assert_eq!(shelf.artifacts.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_plugin_whose_code_and_artifact_are_gone_fails_and_goes_on_when_they_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&quick(dir.path())).await;
    let digest = deploy(&host, "counter").await.unwrap().deployment.digest;
    publish(&host, &[("a", "changed", 0)]).await;
    settle(&host, "counter").await;
    let artifact = artifact(dir.path(), &digest);
    for deployed_again in [false, true] {
        idle(&host, "counter").await;
        fs::remove_file(entry(dir.path(), &digest)).unwrap();
        let aside = dir.path().join("aside.wasm");
        fs::rename(&artifact, &aside).unwrap();
        publish(&host, &[("a", "changed", 1)]).await;
        let failed = |status: &PluginStatus| status.state == PluginState::Failed;
        let status = wait_for(&host, "counter", "fails", failed).await;
        assert!(status.message.contains(&format!("there is no artifact {digest}")), "{}", status.message);
        assert_eq!(status.lag_events, 1, "the event waits");
        let error = host.plugins().resume("counter").await.unwrap_err();
        assert_eq!(error.code(), "artifact_missing");
        if deployed_again {
            deploy(&host, "counter").await.unwrap();
            assert!(artifact.exists(), "the next start finds it");
        } else {
            fs::rename(&aside, &artifact).unwrap();
        }
        let done = |s: &PluginStatus| s.state == PluginState::Running && s.lag_events == 0;
        wait_for(&host, "counter", "goes on", done).await;
    }
    assert_eq!(numbers(&host, "counters").await[0].1, millrace::tables::Value::Int(3));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_plugin_is_swapped_rolled_back_paused_started_again_and_removed_like_any() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = start(&quick(dir.path())).await;
    let first = deploy_bytes(&host, variant(1, "good")).await;
    let plugin = first.name.as_str();
    let mut expected = 0;
    for step in 0..5 {
        publish(&host, &[("a", "changed", step), ("a", "changed", step)]).await;
        expected += 2;
        settle(&host, plugin).await;
        let resting = idle(&host, plugin).await;
        assert_eq!(numbers(&host, "variants").await[0].1, millrace::tables::Value::Int(expected), "{step}");
        let before = fs::canonicalize(entry(dir.path(), &resting.deployment.digest)).unwrap();
        match step {
            0 => {
                deploy_bytes(&host, variant(2, "good")).await;
                assert_eq!(holds(&before), (false, false), "nothing keeps the former version's code");
            }
            1 => {
                let options = DeployOptions { no_shadow: true, ..DeployOptions::default() };
                let status = host.plugins().rollback(plugin, None, "api:test", options).await.unwrap();
                assert_eq!(status.deployment.digest, first.deployment.digest);
            }
            2 => {
                let paused = host.plugins().pause(plugin).await.unwrap();
                assert_eq!((paused.state, paused.measures.code), (PluginState::Paused, None));
                host.plugins().resume(plugin).await.unwrap();
            }
            3 => {
                host.shutdown().await;
                host = start(&quick(dir.path())).await;
            }
            _ => {
                host.plugins().remove(plugin).await.unwrap();
                assert_eq!(host.plugins().show(plugin).await.unwrap_err().code(), "plugin_unknown");
            }
        }
    }
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_for_its_next_try_brings_an_idle_plugin_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = quick(dir.path());
    config.processors.retry_wait_ms_min = 2_000;
    config.processors.retry_wait_ms_max = 2_000;
    config.processors.retries_max = 2;
    let host = start(&config).await;
    deploy(&host, "retrier").await.unwrap();
    publish(&host, &[("a", "stuck", 0)]).await;
    let waits = |s: &PluginStatus| {
        s.measures.code == Some(CodeState::Idle) && s.tasks.iter().any(|task| task.parked_events == 1)
    };
    wait_for(&host, "retrier", "is idle while an event waits", waits).await;
    let decided = |s: &PluginStatus| s.tasks.iter().all(|task| task.held_keys == 1);
    let status = wait_for(&host, "retrier", "has tried thrice", decided).await;
    assert_eq!((status.counters.retries, status.counters.dead_letters), (2, 1));
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_has_never_had_an_event_gives_its_code_back_too() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(&quick(dir.path())).await;
    deploy(&host, "counter").await.unwrap();
    assert_eq!(idle(&host, "counter").await.tasks.len(), 0);
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_tells_whose_code_is_loaded_and_counts_what_goes_and_comes() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(workspace_binary("millrace")).set("processors.task_idle_ms_max=20");
    let host = HostProcess::start_as(setup, &dir.path().join("data")).await.unwrap();
    host.deploy(component("counter").into()).await.unwrap();
    let event = |version| {
        format!(
            "{{\"aggregate\":\"thing\",\"agg_id\":\"a\",\"version\":{version},\"type\":\"x\",\"payload\":{{}}}}\n"
        )
    };
    let begun = Instant::now();
    for version in 1..=2 {
        host.publish(event(version)).await.unwrap();
        loop {
            let status = host.get("/v1/plugins/counter").await.unwrap();
            let measures = &status["measures"];
            if status["counters"]["events"] == version && measures["code"] == "idle" {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: {status}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let value = |metrics: &str, series: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in\n{metrics}")).parse::<f64>().unwrap()
    };
    // It is counted once the memory is given back, which is after it shows as idle.
    let (metrics, loads) = loop {
        let metrics = reqwest::get(format!("{}/metrics", host.url)).await.unwrap().text().await.unwrap();
        let loads = value(&metrics, "millrace_code_loads_total{from=\"cache\"}");
        if value(&metrics, "millrace_code_given_back_total") == loads + 1.0 {
            break (metrics, loads);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: {metrics}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let loaded = "millrace_processor_code_loaded{plugin=\"counter\",version=\"1.0.0\"}";
    assert_eq!(value(&metrics, loaded), 0.0);
    assert!(loads >= 1.0, "{metrics}");
    assert_eq!(value(&metrics, "millrace_code_load_seconds_count"), loads);
    let list = std::process::Command::new(workspace_binary("millrace"))
        .args(["plugin", "list", "--url", &host.url])
        .output()
        .unwrap();
    let text = String::from_utf8(list.stdout).unwrap();
    let [head, line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    let at = head.find("CODE").unwrap();
    assert!(line[at..].starts_with("idle "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_flush_has_changed_is_committed_before_the_instance_goes() {
    let scene = Scene::new().await;
    let mut scripted = scripted();
    scripted.manifest.flush_interval_ms = Some(5);
    let settings = ProcessorSettings { idle_max: Duration::from_millis(100), ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted, settings);
    watch.ticks_count.store(true, Ordering::SeqCst);
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    until("an instance was flushed", || watch.flushes.load(Ordering::SeqCst) > 0).await;
    until("it was given back", || runner.status().measures.instances == 0).await;
    let flushes = watch.flushes.load(Ordering::SeqCst);
    let task = runner.status().tasks[0].task.clone();
    let saved = scene.store.checkpoint(&task).await.unwrap().and_then(|checkpoint| checkpoint.saved).unwrap();
    assert!(counted(&saved.state)["ticks"] > 0 && i64::from(flushes) >= counted(&saved.state)["ticks"]);
    until("it is flushed now and then all the same", || watch.flushes.load(Ordering::SeqCst) > flushes).await;
    until("and given back again", || runner.status().measures.instances == 0).await;
    watch.ticks_count.store(false, Ordering::SeqCst);
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    let saved = scene.store.checkpoint(&task).await.unwrap().and_then(|checkpoint| checkpoint.saved).unwrap();
    let ticks = counted(&saved.state)["ticks"];
    assert_eq!(ticks, i64::from(watch.counted_ticks.load(Ordering::SeqCst)), "no tick's change is lost");
    assert_eq!(scene.counts("a").await, counts(&[("x", 2)]));
}
