//! Claims about every point at which a commit can be cut: what a host that ends there leaves behind leads to
//! the same end as a run that nobody disturbed.
//!
//! One scenario file for each point, in `tests/scenarios`: `step`, how often that step has passed when the
//! host ends (`times`), the channels that there are, the events, and after a line of dashes the store at the end. The store's files are copied on the committer's own
//! thread at that very step: that is what `kill -9` leaves, since what a process has written is the system's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace::backends::sqlite::{CommitStep, SqliteOptions, SqliteStore, StepObserver};
use millrace::channels::{
    ChannelName, ChannelOptions, ChannelStore, NewChannel, NewProcess, Party, ProcessId, ProcessName,
};
use millrace::checkpoints::CheckpointStore;
use millrace::event::{Position, TenantId};
use millrace::processors::{ProcessorSettings, Runner, Verdict};
use millrace::streams::EventLog;
use millrace_tests::dump::dump;
use millrace_tests::scene::{Scene, scripted};
use millrace_tests::scripted::Watch;

struct Scenario {
    file: PathBuf,
    head: String,
    step: CommitStep,
    times: usize,
    /// Channels of the process `p`, which the processor executes.
    channels: Vec<String>,
    events: Vec<(String, String, String)>,
}

fn scenarios() -> Vec<Scenario> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&dir).expect("the scenarios ship with the project");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.into_iter().map(scenario).collect()
}

fn scenario(file: PathBuf) -> Scenario {
    let text = std::fs::read_to_string(&file).expect("a scenario is text");
    let head = text.split_once("\n---\n").map_or(text.trim_end(), |(head, _)| head).to_owned();
    let (mut step, mut times, mut channels, mut events) = (None, 0, Vec::new(), Vec::new());
    for line in head.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["step", name] => {
                step = CommitStep::ALL.into_iter().find(|step| format!("{step:?}") == name);
            }
            ["times", count] => times = count.parse().expect("a count"),
            ["channel", name] => channels.push(name.into()),
            ["event", key, of, payload] => events.push((key.into(), of.into(), payload.into())),
            _ => panic!("{}: `{line}` is not understood", file.display()),
        }
    }
    let step = step.unwrap_or_else(|| panic!("{} names no step", file.display()));
    Scenario { file, head, step, times, channels, events }
}

pub(crate) fn settings() -> ProcessorSettings {
    ProcessorSettings {
        commit_events: 3,
        retry_wait_min: Duration::from_millis(1),
        retry_wait_max: Duration::from_millis(2),
        ..ProcessorSettings::default()
    }
}

/// Until nothing waits: what is held is given up, what is tried again is waited for.
pub(crate) async fn to_the_end(scene: &Scene, runner: &Runner) {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not end: {:?}", runner.status());
        let letter = scene.dead().await.pop();
        let status = runner.status();
        let waits = status.tasks.iter().any(|task| task.held_keys + task.parked_events > 0);
        if status.done_through >= scene.last() && !status.tasks.is_empty() && !waits && letter.is_none() {
            return;
        }
        if let Some(letter) = letter {
            // A run that ended in between has decided nothing.
            let _ = runner.resolve(letter, Verdict::Discard).await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The store as it ends, and how often the step was passed; with a copy of it made at that step.
async fn run(scenario: &Scenario, copy_to: Option<&Path>) -> (String, usize) {
    let passed = Arc::new(AtomicUsize::new(0));
    let (count, copy) = (Arc::clone(&passed), copy_to.map(Path::to_owned));
    let (step, times) = (scenario.step, scenario.times);
    let from: Arc<Mutex<PathBuf>> = Arc::default();
    let source = Arc::clone(&from);
    let observer = StepObserver(Arc::new(move |at| {
        if at == step
            && count.fetch_add(1, Ordering::SeqCst) + 1 == times
            && let Some(copy) = &copy
        {
            copy_store(&source.lock().expect("test"), copy);
        }
    }));
    let options = |options: SqliteOptions| {
        from.lock().expect("test").clone_from(&options.dir);
        SqliteOptions { observer: Some(observer), ..options }
    };
    let scene = Scene::with(options, |store| store).await;
    make_channels(&scene.store, &scenario.channels).await;
    let events: Vec<_> =
        scenario.events.iter().map(|(k, t, p)| (k.as_str(), t.as_str(), p.as_str())).collect();
    scene.publish("a", &events).await;
    let (runner, _) = scene.start(scripted(), settings());
    to_the_end(&scene, &runner).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    (scene.close().await, passed.load(Ordering::SeqCst))
}

async fn make_channels(store: &SqliteStore, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let channel = |name: &String| NewChannel {
        name: ChannelName::new(name).expect("a good name"),
        options: ChannelOptions::default(),
    };
    let new = NewProcess {
        id: ProcessId {
            tenant: TenantId::new("a").expect("a good name"),
            name: ProcessName::new("p").expect("a good name"),
        },
        submitter: Party::new("ada").expect("a good name"),
        executor: Some(Party::new("plugin:scripted").expect("a good name")),
        observers: Vec::new(),
        channels: names.iter().map(channel).collect(),
    };
    store.create(new).await.expect("a process can be made");
}

/// The database and its WAL; the WAL's index is made anew from it.
pub(crate) fn copy_store(from: &Path, to: &Path) {
    for name in ["millrace.db", "millrace.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).expect("the store can be copied");
        }
    }
}

/// Goes on with what the ended host has left.
async fn go_on(left: &Path) -> String {
    let scene = Scene::on(SqliteStore::open(SqliteOptions::new(left)).expect("what is left can be opened"));
    let watch: Arc<Watch> = Arc::default();
    // What the ended host had tried is forgotten with its memory.
    let runner = scene.start_again(&watch, 1, settings());
    to_the_end(&scene, &runner).await;
    assert!(runner.stop(Duration::from_secs(60)).await);
    let tenant = TenantId::new("a").expect("a good name");
    assert!(scene.store.tenants().contains(&tenant));
    let tasks = scene.store.tasks(Some("scripted")).await.expect("tasks can be read");
    assert!(tasks.iter().all(|task| task.position > Position::START));
    scene.close().await;
    dump(left).expect("the store can be read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_ends_at_any_step_of_a_commit_comes_to_the_same_end() {
    let scenarios = scenarios();
    for scenario in &scenarios {
        let left = tempfile::tempdir().expect("a temporary folder");
        let (undisturbed, passed) = run(scenario, Some(left.path())).await;
        let name = scenario.file.display();
        assert!(passed >= scenario.times, "{name}: the step was passed {passed} times");
        let resumed = go_on(left.path()).await;
        assert_eq!(undisturbed, resumed, "{name}");
        let text = format!("{}\n---\n{undisturbed}", scenario.head);
        expect_test::expect_file![scenario.file.clone()].assert_eq(&text);
    }
}

#[test]
fn every_step_of_a_commit_has_its_scenario() {
    let covered: BTreeSet<CommitStep> = scenarios().iter().map(|scenario| scenario.step).collect();
    let missing: Vec<_> = CommitStep::ALL.into_iter().filter(|step| !covered.contains(step)).collect();
    assert!(missing.is_empty(), "tests/scenarios has none for {missing:?}");
}
