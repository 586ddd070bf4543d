//! A fleet that is played: real stores, a real controller and a feed in memory; hosts that do what they are told; and a clock
//! that moves when a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::memory::{MemoryArtifactRepository, MemoryControlStore, MemoryFeed};
use millrace::clock::{Clock as _, ManualClock};
use millrace::control::changes::{Actor, Deploy, desired_of};
use millrace::control::report::{HostReport, PluginReport, Reason, Seen};
use millrace::control::rollout::{Plan, Progress, Sample, Silence, effective_spec};
use millrace::control::snapshot::Snapshots;
use millrace::control::{
    Believing, Board, ControlFeedError, ControlSink as _, ControlSource as _, ControlStore, ControlVersion,
    Controller, ControllerOptions, ControllerSeams, Desired, FleetMark, Kind, Looked, Origin, Phase,
    PublishOutcome, Received, Result, Settlement,
};
use millrace::error::BackendError;
use millrace::event::Micros;
use millrace::plugins::PluginState;
use millrace_tests::control_events::{NOW, SECOND, digest_of, release_key, spec, trust};

use super::{PLUGIN, labels};

/// How far the clock goes with each step.
pub(super) const STEP_S: i64 = 5;

/// The newest word of everybody, whose age is told by the clock of the test.
#[derive(Debug)]
pub(super) struct PlayedBoard {
    clock: Arc<ManualClock>,
    state: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    reports: BTreeMap<String, (i64, String)>,
    mark: Option<FleetMark>,
    /// It does not answer.
    down: bool,
}

/// A host with a sink, and what it remembers.
pub(super) struct OriginHost {
    pub(super) store: Arc<dyn ControlStore>,
    pub(super) controller: Arc<Controller>,
}

/// What a version does on a host in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) events: u64,
    pub(super) traps: u64,
    /// The host sets it aside as soon as it has it.
    pub(super) is_refused: bool,
    /// It takes over, and stops by itself.
    pub(super) has_stopped: bool,
}

pub(super) const GOOD: Habits = Habits { events: 100, traps: 0, is_refused: false, has_stopped: false };

/// A host that carries out what the feed says, at once.
#[derive(Debug)]
pub(super) struct PlayedHost {
    pub(super) name: String,
    labels: BTreeMap<String, String>,
    cursor: ControlVersion,
    known: Option<(u64, Desired)>,
    serving: Option<String>,
    refused: Option<String>,
    since: i64,
    now: Sample,
    before: Option<Sample>,
    /// Says nothing, and hears nothing.
    pub(super) is_away: bool,
    /// Events committed by each version, and how often one was activated.
    pub(super) committed: BTreeMap<String, u64>,
    pub(super) activations: u64,
}

pub(super) struct Stage {
    pub(super) clock: Arc<ManualClock>,
    pub(super) feed: MemoryFeed,
    pub(super) board: Arc<PlayedBoard>,
    pub(super) artifacts: Arc<MemoryArtifactRepository>,
    pub(super) origins: Vec<OriginHost>,
    pub(super) hosts: Vec<PlayedHost>,
    /// By version; others are good.
    pub(super) habits: BTreeMap<String, Habits>,
}

impl Stage {
    /// A fleet with one origin; 1.0.0 runs everywhere.
    pub(super) async fn running(hosts: &[(&str, &str)]) -> Self {
        let mut stage = Self::new(hosts);
        stage.deploy("1.0.0", None).await;
        stage.steps(3).await;
        assert_eq!(stage.on("1.0.0").len(), hosts.len());
        stage
    }

    pub(super) fn new(hosts: &[(&str, &str)]) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.set(NOW);
        let board = Arc::new(PlayedBoard { clock: clock.clone(), state: Mutex::default() });
        let host = |(name, tier): &(&str, &str)| PlayedHost {
            name: (*name).into(),
            labels: labels(&[("tier", tier)]),
            cursor: ControlVersion(0),
            known: None,
            serving: None,
            refused: None,
            since: 0,
            now: Sample::default(),
            before: None,
            is_away: false,
            committed: BTreeMap::new(),
            activations: 0,
        };
        let mut stage = Self {
            feed: MemoryFeed::new(),
            artifacts: Arc::new(MemoryArtifactRepository::new(clock.clone())),
            clock,
            board,
            origins: Vec::new(),
            hosts: hosts.iter().map(host).collect(),
            habits: BTreeMap::new(),
        };
        stage.add_origin();
        stage
    }

    pub(super) fn add_origin(&mut self) {
        let store: Arc<dyn ControlStore> = Arc::new(MemoryControlStore::new(self.clock.clone()));
        let controller = Arc::new(self.controller(store.clone(), self.board.clone()));
        self.origins.push(OriginHost { store, controller });
    }

    pub(super) fn controller(&self, store: Arc<dyn ControlStore>, board: Arc<dyn Board>) -> Controller {
        let options = ControllerOptions { mark_gap: Duration::ZERO, ..ControllerOptions::new("origin") };
        self.controller_with(store, board, options)
    }

    pub(super) fn controller_with(
        &self,
        store: Arc<dyn ControlStore>,
        board: Arc<dyn Board>,
        options: ControllerOptions,
    ) -> Controller {
        let keys = Believing::new(trust());
        let clock = self.clock.clone();
        let snapshots =
            Snapshots::new(store.clone(), self.artifacts.clone(), board.clone(), keys.clone(), clock.clone());
        let seams = ControllerSeams {
            origin: Origin::new(store.clone(), keys, clock.clone()),
            store,
            board,
            sink: Arc::new(self.feed.clone()),
            snapshots: Arc::new(snapshots),
            key: Some(Arc::new(release_key())),
            clock,
        };
        Controller::new(seams, options)
    }

    pub(super) fn first(&self) -> &OriginHost {
        &self.origins[0]
    }

    pub(super) async fn deploy(&self, version: &str, plan: Option<Plan>) {
        let spec = spec(PLUGIN, version, version.as_bytes());
        let deploy = Deploy { spec, plan, targets: None };
        let controller = &self.first().controller;
        controller.change(PLUGIN, None, &people(), |present, id| present.deploy(id, deploy)).await.unwrap();
    }

    /// The controllers look, what they propose is carried, the hosts do it and go on with their work, and time passes.
    pub(super) async fn step(&mut self) -> Vec<Looked> {
        let mut looked = Vec::new();
        for origin in &self.origins {
            // It looks again at the next step.
            looked.push(origin.controller.look().await.unwrap_or_default());
            origin.controller.mark().await.unwrap_or_default();
        }
        self.carry().await;
        for host in &mut self.hosts {
            host.step(&self.feed, &self.board, self.clock.now().0, &self.habits).await;
        }
        self.pass(STEP_S);
        looked
    }

    pub(super) async fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step().await;
        }
    }

    /// Steps until something is so, within so many.
    pub(super) async fn until(&mut self, count: usize, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..count {
            if is_so(self) {
                return;
            }
            self.step().await;
        }
        assert!(is_so(self), "not within {count} steps");
    }

    /// The outboxes into the feed, the feed into the stores.
    pub(super) async fn carry(&self) {
        for OriginHost { store, .. } in &self.origins {
            for claimed in store.claim(64, Duration::from_secs(60)).await.unwrap() {
                let version = self.feed.append(&claimed.event).await.unwrap();
                let outcome = PublishOutcome::Published(version);
                let settled = Settlement { event: claimed.event.id().clone(), claim: claimed.claim, outcome };
                store.settle(vec![settled]).await.unwrap();
            }
        }
        for OriginHost { store, .. } in &self.origins {
            let cursor = store.cursor().await.unwrap();
            for (version, event) in events_after(&self.feed, cursor).await {
                store.apply(version, &event).await.unwrap();
            }
        }
    }

    pub(super) fn pass(&self, seconds: i64) {
        self.clock.set(Micros(self.clock.now().0 + seconds * SECOND));
    }

    /// What stands at the first origin.
    pub(super) async fn desired(&self) -> (u64, Desired) {
        let rows = self.first().store.proposed().await.unwrap();
        let row =
            rows.iter().find(|row| desired_of(row).is_some_and(|(plugin, _)| plugin == PLUGIN)).unwrap();
        (row.revision, desired_of(row).unwrap().1.clone())
    }

    pub(super) async fn progress(&self) -> (u32, Progress) {
        let rollout = self.desired().await.1.rollout.unwrap();
        (rollout.wave, rollout.progress)
    }

    /// Hosts that serve a version.
    pub(super) fn on(&self, version: &str) -> BTreeSet<&str> {
        let digest = digest_of(version.as_bytes());
        let serving = self.hosts.iter().filter(|host| host.serving.as_ref() == Some(&digest));
        serving.map(|host| host.name.as_str()).collect()
    }

    pub(super) fn host(&mut self, name: &str) -> &mut PlayedHost {
        self.hosts.iter_mut().find(|host| host.name == name).unwrap()
    }

    /// The kinds of all events of the feed, in its order.
    pub(super) async fn kinds(&self) -> Vec<Kind> {
        let events = events_after(&self.feed, ControlVersion(0)).await;
        events.into_iter().map(|(_, event)| event.unsigned().kind.clone()).collect()
    }

    /// What the last event of the feed says about its reason.
    pub(super) async fn last_reason(&self) -> String {
        let events = events_after(&self.feed, ControlVersion(0)).await;
        events.last().unwrap().1.unsigned().reason.clone()
    }

    pub(super) async fn status(&self) -> millrace::control::fleet::FleetStatus {
        let store = &self.first().store;
        let (rows, cursor) = (store.proposed().await.unwrap(), store.cursor().await.unwrap());
        let reports = Seen::read(self.board.reports().await.unwrap());
        millrace::control::fleet::status(&rows, &reports, cursor, Silence::default())
    }
}

pub(super) fn people() -> Actor {
    Actor { name: "ops@example.com".into(), reason: "because it is time".into() }
}

async fn events_after(
    feed: &MemoryFeed,
    after: ControlVersion,
) -> Vec<(ControlVersion, millrace::control::ControlEvent)> {
    let polled = feed.poll(after, 1_000, Duration::ZERO).await.unwrap();
    let event = |received| match received {
        Received::Event { version, event } => (version, event),
        Received::Broken { name, .. } => panic!("{name} is broken"),
    };
    polled.events.into_iter().map(event).collect()
}

impl PlayedHost {
    async fn step(
        &mut self,
        feed: &MemoryFeed,
        board: &PlayedBoard,
        now: i64,
        habits: &BTreeMap<String, Habits>,
    ) {
        if self.is_away {
            return;
        }
        for (version, event) in events_after(feed, self.cursor).await {
            self.cursor = version;
            let unsigned = event.unsigned();
            let millrace::control::EventBody::Plugin { desired, .. } = &unsigned.body else { continue };
            if self.known.as_ref().is_none_or(|(revision, _)| unsigned.revision > *revision) {
                self.known = Some((unsigned.revision, desired.clone()));
                self.refused = None;
            }
        }
        let Some((revision, desired)) = self.known.clone() else { return };
        let wanted = effective_spec(&desired, &self.name, &self.labels).cloned();
        let habits_of = |version: &str| habits.get(version).copied().unwrap_or(GOOD);
        match &wanted {
            Some(spec) if habits_of(&spec.version).is_refused => self.refused = Some(spec.version.clone()),
            _ => {
                let digest = wanted.as_ref().map(|spec| spec.component.digest.clone());
                if digest != self.serving {
                    self.before = self.serving.is_some().then_some(self.now);
                    (self.serving, self.now, self.since) = (digest, Sample::default(), now);
                    self.activations += 1;
                }
            }
        }
        if let Some(spec) =
            wanted.as_ref().filter(|spec| self.serving.as_ref() == Some(&spec.component.digest))
        {
            let Habits { events, traps, .. } = habits_of(&spec.version);
            // What traps commits nothing.
            let committed = if traps == 0 { events } else { 0 };
            let did =
                Sample { events: committed, traps, nanoseconds: committed * 1_000, ..Sample::default() };
            self.now = self.now.and(did);
            *self.committed.entry(spec.version.clone()).or_default() += committed;
        }
        let phase = match (&self.refused, &self.serving) {
            (Some(_), _) => Phase::Quarantined,
            (None, Some(_)) => Phase::Active,
            (None, None) => Phase::Absent,
        };
        let reason = self.refused.as_ref().map(|version| Reason {
            code: "validation_failed".into(),
            message: format!("{version} is not sound"),
        });
        let has_stopped = wanted.as_ref().is_some_and(|spec| habits_of(&spec.version).has_stopped);
        let message = if has_stopped { "it gave up" } else { "" };
        let mut report = HostReport::new(&self.name, self.labels.clone(), "one");
        report.cursor = self.cursor;
        let active_ms = u64::try_from((now - self.since) / 1_000).unwrap();
        let plugin = PluginReport {
            revision,
            phase,
            serving: self.serving.clone(),
            reason,
            active_ms: if phase == Phase::Active { active_ms } else { 0 },
            now: self.now,
            before: self.before,
            shadow: None,
            state: has_stopped.then_some(PluginState::Failed),
            message: message.into(),
        };
        report.plugins.insert(PLUGIN.into(), plugin);
        board.report(&self.name, &report.to_json().unwrap()).await.unwrap();
    }
}

impl PlayedBoard {
    /// Lets it answer nothing but errors, or again.
    pub(super) fn set_down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    /// Loses every word.
    pub(super) fn forget_all(&self) {
        self.state.lock().unwrap().reports.clear();
    }

    fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Told) -> T) -> BoxFuture<'_, Result<T>> {
        let mut told = self.state.lock().unwrap();
        let answer = if told.down {
            Err(ControlFeedError::Backend(BackendError::Failed { detail: "the board is down".into() }))
        } else {
            Ok(work(&mut told))
        };
        std::future::ready(answer).boxed()
    }
}

impl Board for PlayedBoard {
    fn report<'a>(&'a self, host: &'a str, report: &'a str) -> BoxFuture<'a, Result<()>> {
        let now = self.clock.now().0;
        self.with(|told| drop(told.reports.insert(host.to_owned(), (now, report.to_owned()))))
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<(String, Duration, String)>>> {
        let now = self.clock.now().0;
        let age = |at: i64| Duration::from_micros(u64::try_from(now - at).unwrap());
        self.with(|told| {
            told.reports.iter().map(|(host, (at, text))| (host.clone(), age(*at), text.clone())).collect()
        })
    }

    fn forget<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<()>> {
        self.with(|told| drop(told.reports.remove(host)))
    }

    fn set_mark<'a>(&'a self, mark: &'a FleetMark) -> BoxFuture<'a, Result<()>> {
        self.with(|told| {
            if told.mark.as_ref().is_none_or(|known| known.version <= mark.version) {
                told.mark = Some(mark.clone());
            }
        })
    }

    fn forget_mark(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|told| told.mark = None)
    }

    fn mark(&self) -> BoxFuture<'_, Result<Option<FleetMark>>> {
        self.with(|told| told.mark.clone())
    }
}
