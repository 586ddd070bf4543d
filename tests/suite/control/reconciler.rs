//! Claims about carrying out what is desired: each phase is written down as it is reached, what is bad stays alone, and
//! whatever ends in the middle goes on.

mod breaker;
mod failures;
mod fakes;
mod guests;
mod kills;
mod reports;
mod supply;
mod unreadable;
mod ways_back;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace::backends::memory::MemoryControlStore;
use millrace::clock::{Clock, ManualClock};
use millrace::control::reconciler::{Reconciler, ReconcilerOptions, ReconcilerParts, Vet};
use millrace::control::rollout::{Plan, Progress, RolloutState, Wave};
use millrace::control::{
    AppliedOutcome, Believing, ControlStore, ControlVersion, Desired, Kind, ObservedRow, Phase, PluginSpec,
    RunState, UnsignedEvent,
};
use millrace::plugins::{DeployStep, ManagedPlugins, PluginControl, PluginSettings};
use millrace_tests::control::steps::{SteppedStore, Steps};
use millrace_tests::control::{NOW, id};
use millrace_tests::control_events::{about, component, release_key, removed, running, spec, trust};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::fakes::{FakePlugins, released_as};
use self::supply::FakeSupply;

/// Waits that no test outlives, where it is to be woken; short ones, where it is to try again.
fn options() -> ReconcilerOptions {
    ReconcilerOptions {
        every: Duration::from_secs(3_600),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        give_up_every: Duration::from_millis(2),
        breaker_poll: Duration::from_secs(3_600),
        ..ReconcilerOptions::default()
    }
}

/// A host: what it remembers, and what it works with.
struct Scene {
    store: Arc<dyn ControlStore>,
    plugins: Arc<FakePlugins>,
    supply: Arc<FakeSupply>,
    managed: ManagedPlugins,
    keys: Believing,
    /// In the place of the keys.
    vet: Option<Arc<dyn Vet>>,
    options: ReconcilerOptions,
    labels: BTreeMap<String, String>,
    settings: BTreeMap<String, PluginSettings>,
    /// In the place of the fakes.
    real: Option<Arc<dyn PluginControl>>,
    news: watch::Sender<u64>,
    version: AtomicU64,
    /// What the reconciler tells of.
    observed: Option<watch::Receiver<u64>>,
    running: JoinSet<()>,
}

impl Scene {
    /// Nothing runs yet.
    fn new() -> Self {
        let clock = ManualClock::default();
        clock.set(NOW);
        let store: Arc<dyn ControlStore> = Arc::new(MemoryControlStore::new(Arc::new(clock)));
        Self {
            plugins: FakePlugins::new(Arc::clone(&store)),
            store,
            supply: FakeSupply::new(),
            managed: ManagedPlugins::default(),
            keys: Believing::new(trust()),
            vet: None,
            options: options(),
            labels: BTreeMap::new(),
            settings: BTreeMap::new(),
            real: None,
            news: watch::Sender::new(0),
            version: AtomicU64::new(0),
            observed: None,
            running: JoinSet::new(),
        }
    }

    /// Starts a reconciler.
    fn start(&mut self) {
        self.start_with(&Steps::all());
    }

    fn start_with(&mut self, steps: &Arc<Steps>) {
        assert!(self.running.is_empty(), "one at a time");
        self.plugins.set_steps(steps);
        self.supply.set_steps(steps);
        let clock = ManualClock::default();
        clock.set(NOW);
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let plugins: Arc<dyn PluginControl> = self.plugins.clone();
        let parts = ReconcilerParts {
            store: Arc::new(SteppedStore { inner: Arc::clone(&self.store), steps: Arc::clone(steps) }),
            plugins: self.real.clone().unwrap_or(plugins),
            managed: self.managed.clone(),
            supply: self.supply.clone(),
            vet: self.vet.clone().unwrap_or_else(|| Arc::new(self.keys.clone())),
            clock,
            host: "host-1".into(),
            labels: self.labels.clone(),
            settings: self.settings.clone(),
        };
        let (reconciler, news) = (Reconciler::new(parts, self.options), self.news.subscribe());
        self.observed = Some(reconciler.follow());
        self.running.spawn(async move { reconciler.run(news, &CancellationToken::new()).await });
    }

    /// Drops whatever it does.
    async fn kill(&mut self) {
        self.running.shutdown().await;
    }

    /// An event has come.
    async fn apply(&self, event: UnsignedEvent) {
        let event = event.sign(&release_key()).unwrap();
        let version = ControlVersion(self.version.fetch_add(1, Ordering::SeqCst) + 1);
        let applied = self.store.apply(version, &event).await.unwrap();
        assert_eq!(applied.outcome, AppliedOutcome::Changed);
        self.news.send_modify(|news| *news += 1);
    }

    /// A component that there is, deployed as of a revision.
    async fn deploy(&self, content: &str, revision: u64) {
        self.apply(self.deployed(content, revision)).await;
    }

    fn deployed(&self, content: &str, revision: u64) -> UnsignedEvent {
        let plugin = content.split(' ').next().unwrap();
        about(plugin, Kind::Deployed, running(self.spec(content)), revision)
    }

    /// Everybody is to run a version, over another one.
    async fn deploy_over(&self, content: &str, former: &str, revision: u64) {
        self.apply(self.over(running(self.spec(content)), former, revision)).await;
    }

    fn over(&self, desired: Desired, former: &str, revision: u64) -> UnsignedEvent {
        let plugin = former.split(' ').next().unwrap();
        about(plugin, Kind::Deployed, at_once(desired, self.spec(former), 100 + revision), revision)
    }

    /// What is put into the repository by that.
    fn spec(&self, content: &str) -> PluginSpec {
        self.supply.put(content.as_bytes());
        let mut words = content.split(' ');
        let (name, version) = (words.next().unwrap(), released_as(words.next().unwrap_or_default()));
        spec(name, &version, content.as_bytes())
    }

    /// A rollout of one version over another that has reached hosts of a tier.
    fn rolling(&self, number: u64, new: &str, old: Option<&str>, tier: &str, progress: Progress) -> Desired {
        let labels = BTreeMap::from([("tier".to_owned(), tier.to_owned())]);
        let first = Wave { labels, percent: 100, soak_s: 0 };
        let plan = Plan { waves: vec![first, Plan::at_once().waves.remove(0)], ..Plan::at_once() };
        let rollout = RolloutState { id: id(number).to_string(), plan, wave: 0, progress };
        let stable = old.map(|old| self.spec(old));
        Desired { stable, rollout: Some(rollout), ..running(self.spec(new)) }
    }

    async fn row(&self, plugin: &str) -> Option<ObservedRow> {
        self.store.observed().await.unwrap().into_iter().find(|row| row.plugin == plugin)
    }

    async fn until(&self, plugin: &str, what: &str, is: impl Fn(Option<&ObservedRow>) -> bool) {
        let begun = Instant::now();
        loop {
            let row = self.row(plugin).await;
            if is(row.as_ref()) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: {what}, but {row:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until a revision has come to a phase.
    async fn reaches(&self, plugin: &str, revision: u64, phase: Phase) -> ObservedRow {
        let is =
            |row: Option<&ObservedRow>| row.is_some_and(|row| row.revision == revision && row.phase == phase);
        self.until(plugin, &format!("{plugin} of revision {revision} is {phase:?}"), is).await;
        self.row(plugin).await.unwrap()
    }

    /// Waits until a revision is set aside, and answers the code.
    async fn set_aside(&self, plugin: &str, revision: u64) -> String {
        self.reaches(plugin, revision, Phase::Quarantined).await.reason.unwrap().0
    }

    /// Waits until something hinders it.
    async fn hindered(&self, plugin: &str, code: &str) -> ObservedRow {
        let is = |row: Option<&ObservedRow>| {
            row.and_then(|row| row.reason.as_ref()).is_some_and(|(found, _)| found == code)
        };
        self.until(plugin, &format!("{plugin} has trouble: {code}"), is).await;
        self.row(plugin).await.unwrap()
    }

    fn now(&self, plugin: &str) -> Option<(String, bool)> {
        self.plugins.now(plugin)
    }
}

/// What everybody is to have at once, and what they had before.
fn at_once(desired: Desired, former: PluginSpec, number: u64) -> Desired {
    let id = id(number).to_string();
    let rollout = RolloutState { id, plan: Plan::at_once(), wave: 0, progress: Progress::Complete };
    Desired { stable: Some(former), rollout: Some(rollout), ..desired }
}

fn runs(version: &str) -> Option<(String, bool)> {
    Some((version.into(), true))
}

fn stands(version: &str) -> Option<(String, bool)> {
    Some((version.into(), false))
}

fn paused(spec: PluginSpec) -> Desired {
    Desired { state: RunState::Paused, ..running(spec) }
}

#[tokio::test]
async fn every_phase_is_written_down_while_it_lasts() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    let row = scene.reaches("board", 1, Phase::Active).await;
    let first = component("board", b"board 1").digest;
    assert_eq!((row.serving, row.reason, row.attempts), (Some(first.clone()), None, 1));
    assert_eq!(scene.plugins.phases(), [Phase::Verified, Phase::Compiled, Phase::Validated]);
    assert_eq!(scene.plugins.deployment("board").unwrap().deployed_by[..10], *"feed: evt_");

    // The next one proves itself while the first serves.
    scene.deploy("board 2 held", 2).await;
    let row = scene.reaches("board", 2, Phase::Shadow).await;
    assert_eq!((row.serving, row.attempts), (Some(first), 1));
    assert_eq!(scene.now("board"), runs("1"));
    scene.plugins.let_go.send_replace(true);
    let row = scene.reaches("board", 2, Phase::Active).await;
    assert_eq!(row.serving, Some(component("board", b"board 2 held").digest));
    let phases = [Phase::Verified, Phase::Compiled, Phase::Validated, Phase::Shadow];
    assert_eq!(scene.plugins.phases(), phases);

    scene.apply(about("board", Kind::Paused, paused(scene.spec("board 2 held")), 3)).await;
    let row = scene.reaches("board", 3, Phase::Paused).await;
    assert_eq!((row.serving, scene.now("board")), (None, stands("2")));
    scene.apply(about("board", Kind::Resumed, running(scene.spec("board 2 held")), 4)).await;
    scene.reaches("board", 4, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));

    scene.plugins.phases();
    scene.apply(about("board", Kind::Removed, removed(), 5)).await;
    scene.until("board", "it is gone", |row| row.is_none()).await;
    assert_eq!(scene.plugins.phases(), [Phase::Draining]);
    assert_eq!((scene.now("board"), scene.supply.pinned()), (None, vec![]));
    let calls = scene.plugins.calls();
    assert_eq!(
        calls,
        ["deploy board 1", "deploy board 2 held", "pause board", "resume board", "remove board"]
    );
}

#[tokio::test]
async fn a_version_comes_with_its_configuration_its_bounds_and_what_the_operator_adds() {
    let mut scene = Scene::new();
    let operator = PluginSettings {
        on_failure: Some(millrace::plugins::FailurePolicy::Skip),
        http_ca_file: Some("/ca.pem".into()),
        memory_bytes_max: Some(1),
        ..PluginSettings::default()
    };
    scene.settings.insert("board".into(), operator);
    scene.start();
    let config = br#"{"greeting":"hello"}"#;
    scene.supply.put(config);
    let mut with = scene.spec("board 1");
    with.config = Some(component("board", config));
    with.limits.insert("call_ms_max".into(), json!(70));
    with.grants.insert("grants".into(), json!(["http"]));
    with.grants.insert("http_hosts".into(), json!(["api.example.com"]));
    scene.apply(about("board", Kind::Deployed, running(with.clone()), 1)).await;
    scene.reaches("board", 1, Phase::Active).await;
    let settings = PluginSettings {
        config: BTreeMap::from([("greeting".into(), "hello".into())]),
        grants: vec!["http".into()],
        http_hosts: vec!["api.example.com".into()],
        http_ca_file: Some("/ca.pem".into()),
        on_failure: Some(millrace::plugins::FailurePolicy::Skip),
        call_ms_max: Some(70),
        ..PluginSettings::default()
    };
    assert_eq!(scene.plugins.deployment("board").unwrap().settings, Some(settings));
    // The same component with another configuration is another deployment.
    let other = br#"{"greeting":"good day"}"#;
    scene.supply.put(other);
    with.config = Some(component("board", other));
    scene.apply(about("board", Kind::ConfigChanged, running(with), 2)).await;
    scene.reaches("board", 2, Phase::Active).await;
    let settings = scene.plugins.deployment("board").unwrap().settings.unwrap();
    assert_eq!(settings.config["greeting"], "good day");
    assert_eq!(scene.plugins.calls(), ["deploy board 1", "deploy board 1"]);
}

#[tokio::test]
async fn what_runs_already_is_left_alone_and_what_was_changed_behind_its_back_is_not() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let (gets, pinned) = (scene.supply.gets(), scene.supply.pinned());
    // The same version under a new revision, as the next wave of a rollout has it.
    scene.deploy("board 1", 2).await;
    scene.reaches("board", 2, Phase::Active).await;
    scene.kill().await;
    scene.start();
    scene.deploy("other 1", 1).await;
    scene.reaches("other", 1, Phase::Active).await;
    assert_eq!(scene.plugins.calls(), ["deploy board 1", "deploy other 1"]);
    assert_eq!(scene.supply.gets(), gets + 1, "nothing of it was read again");
    assert!(pinned.iter().all(|pin| scene.supply.pinned().contains(pin)));
    scene.kill().await;
    scene.plugins.pause("board").await.unwrap();
    scene.start();
    let begun = Instant::now();
    while scene.now("board") != runs("1") {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: it runs again");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn copies_are_kept_of_what_serves_and_of_what_served_before() {
    let mut scene = Scene::new();
    scene.start();
    for (revision, content) in (1..).zip(["board 1", "board 2", "board 3"]) {
        scene.deploy(content, revision).await;
        scene.reaches("board", revision, Phase::Active).await;
    }
    scene.deploy("board 4 state", 4).await;
    assert_eq!(scene.set_aside("board", 4).await, "state_refused");
    let pinned: Vec<_> = scene.supply.pinned().into_iter().map(|(content, _)| content).collect();
    assert_eq!(pinned, ["board 2", "board 3", "board 4 state"]);
}

#[tokio::test]
async fn a_plugin_that_is_paused_before_it_ever_ran_does_not_run() {
    let mut scene = Scene::new();
    scene.start();
    scene.apply(about("board", Kind::Paused, paused(scene.spec("board 1")), 1)).await;
    scene.reaches("board", 1, Phase::Paused).await;
    assert_eq!(scene.now("board"), stands("1"));
    // Nor does another version that comes meanwhile.
    scene.apply(about("board", Kind::Paused, paused(scene.spec("board 2")), 2)).await;
    scene.reaches("board", 2, Phase::Paused).await;
    assert_eq!(scene.now("board"), stands("2"));
    scene.apply(about("board", Kind::Resumed, running(scene.spec("board 2")), 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.plugins.calls(), ["deploy board 1", "deploy board 2", "resume board"]);
}

#[tokio::test]
async fn a_plugin_that_is_to_be_paused_stops_before_its_next_version_is_fetched() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.supply.set_away(true);
    scene.apply(about("board", Kind::Paused, paused(scene.spec("board 2")), 2)).await;
    scene.hindered("board", "storage_failed").await;
    assert_eq!(scene.now("board"), stands("1"));
    scene.supply.set_away(false);
    scene.reaches("board", 2, Phase::Paused).await;
    assert_eq!(scene.now("board"), stands("2"));
}

#[tokio::test]
async fn the_way_back_is_a_deploy_of_the_version_before() {
    let mut scene = Scene::new();
    scene.start();
    for (revision, content) in (1..).zip(["board 1", "board 2"]) {
        scene.deploy(content, revision).await;
        scene.reaches("board", revision, Phase::Active).await;
    }
    scene.apply(about("board", Kind::RolledBack, running(scene.spec("board 1")), 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.plugins.calls(), ["deploy board 1", "deploy board 2", "rollback board 1"]);
    assert!(scene.plugins.deployment("board").unwrap().rollback);
}

#[tokio::test]
async fn of_two_quick_revisions_only_the_last_runs() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.deploy("board 2 held", 2).await;
    scene.reaches("board", 2, Phase::Shadow).await;
    scene.deploy("board 3", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    let calls = scene.plugins.calls();
    assert!(calls.contains(&"abandon board".to_owned()), "{calls:?}");
    let versions: Vec<_> =
        scene.plugins.history("board").await.unwrap().into_iter().map(|d| d.version).collect();
    assert_eq!(versions, ["3", "1"], "the one between never ran");
}

#[tokio::test]
async fn c61_w10_revisions_that_come_before_anybody_looks_are_passed_over() {
    let mut scene = Scene::new();
    for (revision, content) in (1..).zip(["board 1", "board 2", "board 3"]) {
        scene.deploy(content, revision).await;
    }
    scene.start();
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.plugins.calls(), ["deploy board 3"]);
}

#[tokio::test]
async fn a_plugin_that_is_removed_while_it_is_deployed_goes() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    scene.deploy("board 2 held", 2).await;
    scene.reaches("board", 2, Phase::Shadow).await;
    scene.apply(about("board", Kind::Removed, removed(), 3)).await;
    scene.until("board", "it is gone", |row| row.is_none()).await;
    assert_eq!((scene.now("board"), scene.supply.pinned()), (None, vec![]));
}

#[tokio::test]
async fn a_host_that_is_not_meant_keeps_a_plugin_but_does_not_run_it() {
    let mut scene = Scene::new();
    scene.labels.insert("zone".into(), "a".into());
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    let targets = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let elsewhere = |content| Desired { targets: targets.clone(), ..running(scene.spec(content)) };
    let never = about("never", Kind::Deployed, elsewhere("never 1"), 1);
    let moved = about("board", Kind::Deployed, elsewhere("board 1"), 2);
    scene.apply(never).await;
    scene.apply(moved).await;
    let row = scene.reaches("board", 2, Phase::Retired).await;
    assert_eq!((row.serving, scene.now("board")), (None, stands("1")));
    assert_eq!((scene.row("never").await, scene.now("never")), (None, None));
    // It comes back as it was left.
    scene.deploy("board 1", 3).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.plugins.calls(), ["deploy board 1", "pause board", "resume board"]);
}

#[tokio::test]
async fn what_others_deployed_stays_theirs_until_a_first_rollout_comes() {
    let mut scene = Scene::new();
    scene.labels.insert("tier".into(), "edge".into());
    for plugin in ["board", "other"] {
        scene.plugins.bring(plugin, "0", &format!("directory: {plugin}.wasm"));
    }
    scene.start();
    let first = |tier, progress| scene.rolling(70, "board 1", None, tier, progress);
    scene.apply(about("board", Kind::Deployed, first("canary", Progress::Running), 1)).await;
    scene.apply(about("other", Kind::Removed, removed(), 1)).await;
    let begun = Instant::now();
    while !scene.managed.contains("other") || scene.now("other").is_some() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute: the other one goes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scene.apply(about("board", Kind::RolledBack, first("canary", Progress::RolledBack), 2)).await;
    scene.deploy("last 1", 1).await;
    scene.reaches("last", 1, Phase::Active).await;
    assert_eq!((scene.now("board"), scene.row("board").await), (runs("0"), None));
    assert!(!scene.managed.contains("board"), "its file may be exchanged");
    // It comes, and goes again: that is the feed's.
    scene.apply(about("board", Kind::Deployed, first("edge", Progress::Running), 3)).await;
    scene.reaches("board", 3, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("1"));
    scene.apply(about("board", Kind::RolledBack, first("edge", Progress::RolledBack), 4)).await;
    scene.reaches("board", 4, Phase::Retired).await;
    assert_eq!(scene.now("board"), stands("1"));
    assert!(scene.managed.contains("board"));
}

#[tokio::test]
async fn what_the_feed_names_is_the_feeds_also_once_it_is_removed() {
    let mut scene = Scene::new();
    scene.start();
    scene.deploy("board 1", 1).await;
    scene.reaches("board", 1, Phase::Active).await;
    assert!(scene.managed.contains("board") && !scene.managed.contains("other"));
    scene.apply(about("board", Kind::Removed, removed(), 2)).await;
    scene.until("board", "it is gone", |row| row.is_none()).await;
    assert!(scene.managed.contains("board"), "it would be removed again");
}

#[tokio::test]
async fn m13_what_is_older_than_what_was_carried_out_is_not_carried_out() {
    let mut scene = Scene::new();
    // As a host has it whose memory of the feed was put back from an old copy.
    let row = ObservedRow {
        plugin: "board".into(),
        revision: 7,
        phase: Phase::Active,
        serving: None,
        reason: None,
        since: 1,
        attempts: 1,
    };
    scene.store.observe(&row).await.unwrap();
    scene.deploy("board 1", 6).await;
    scene.start();
    scene.deploy("other 1", 1).await;
    scene.reaches("other", 1, Phase::Active).await;
    assert_eq!((scene.row("board").await, scene.now("board")), (Some(row), None));
    scene.deploy("board 2", 8).await;
    scene.reaches("board", 8, Phase::Active).await;
    assert_eq!(scene.now("board"), runs("2"));
}

#[test]
fn a_deploy_has_as_many_steps_as_it_says() {
    let steps = [DeployStep::Compiled, DeployStep::Validated, DeployStep::Shadow, DeployStep::Active];
    assert_eq!(steps.len(), DeployStep::COUNT);
}
