//! Plugins that do what their bytes say, and remember what was asked of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::checkpoints::DeadLetterRow;
use millrace::control::{ControlStore, Phase};
use millrace::error::BackendError;
use millrace::event::{Position, TenantId};
use millrace::plugins::{
    ControlError, DeployOptions, DeployRequest, DeployStep, Deployment, Measures, PluginControl,
    PluginCounters, PluginError, PluginState, PluginStatus, Proof, ReplayReport, ReplayRequest, Resolved,
    StartFrom, Verdict,
};
use millrace::processors::{ShadowFault, ShadowRefusal};
use millrace_tests::control::NOW;
use millrace_tests::control::steps::Steps;
use millrace_tests::control_events::digest_of;
use millrace_tests::scripted::Scripted;
use tokio::sync::watch;

/// The version under which a number is released.
pub(super) fn released_as(version: &str) -> String {
    match version.parse::<u64>() {
        Ok(number) => format!("{number}.0.0"),
        Err(_) => "1.0.0".into(),
    }
}

/// Takes a text for a component: `name version` and what becomes of it. `broken`, `world`, `bomb`, `describe` do not come
/// as far as their name · `grant` is missing one · `state` refuses that of the version before · `shadow` falls in its
/// shadow run · `held` stays in it until it is let go or given up · `traps` whenever somebody looks.
#[derive(Debug)]
pub(super) struct FakePlugins {
    state: Mutex<State>,
    /// Whether what is held goes on.
    pub(super) let_go: watch::Sender<bool>,
    /// How often a shadow run was to be given up.
    given_up: watch::Sender<u32>,
    store: Arc<dyn ControlStore>,
    /// How long a step waits until the store has it.
    patience: Mutex<Duration>,
}

#[derive(Debug)]
struct State {
    steps: Arc<Steps>,
    plugins: BTreeMap<String, Fake>,
    calls: Vec<String>,
    /// What the next deploys answer before they begin.
    fails: VecDeque<ControlError>,
    /// The phases that the store had when each step was over, and before the first.
    phases: Vec<Phase>,
    deploys: i64,
    /// Those in the shadow now, and the most there ever were.
    shadows: usize,
}

#[derive(Clone, Debug)]
struct Fake {
    /// The newest first.
    history: Vec<Deployment>,
    traps: u64,
    always_traps: bool,
    started: bool,
    stopped: bool,
}

impl FakePlugins {
    pub(super) fn new(store: Arc<dyn ControlStore>) -> Arc<Self> {
        let state = State {
            steps: Steps::all(),
            plugins: BTreeMap::new(),
            calls: Vec::new(),
            fails: VecDeque::new(),
            phases: Vec::new(),
            deploys: 0,
            shadows: 0,
        };
        let (let_go, given_up) = (watch::Sender::new(false), watch::Sender::new(0));
        let patience = Mutex::new(Duration::from_secs(60));
        Arc::new(Self { state: Mutex::new(state), let_go, given_up, store, patience })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn set_steps(&self, steps: &Arc<Steps>) {
        self.state().steps = Arc::clone(steps);
    }

    /// For stores that are told to fail.
    pub(super) fn be_impatient(&self) {
        *self.patience.lock().unwrap() = Duration::from_millis(20);
    }

    /// The next deploys fail before they begin.
    pub(super) fn fail_next(&self, errors: impl IntoIterator<Item = ControlError>) {
        self.state().fails.extend(errors);
    }

    /// The calls since the last time, without those that only look.
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    pub(super) fn phases(&self) -> Vec<Phase> {
        std::mem::take(&mut self.state().phases)
    }

    /// How many are in the shadow now.
    pub(super) fn shadows(&self) -> usize {
        self.state().shadows
    }

    pub(super) fn trap(&self, plugin: &str, times: u64) {
        if let Some(fake) = self.state().plugins.get_mut(plugin) {
            fake.traps += times;
        }
    }

    /// Somebody else has deployed a version here.
    pub(super) fn bring(&self, plugin: &str, version: &str, by: &str) {
        let deployment = Deployment {
            plugin: plugin.into(),
            version: version.into(),
            digest: digest_of(version.as_bytes()).trim_start_matches("sha256:").to_owned(),
            paused: false,
            lanes: 1,
            from: StartFrom::Oldest,
            deployed_at: NOW.0,
            deployed_by: by.into(),
            ordering_key: None,
            proof: Proof::Loaded,
            rollback: false,
            settings: None,
        };
        let history = vec![deployment];
        let fake = Fake { history, traps: 0, always_traps: false, started: true, stopped: false };
        self.state().plugins.insert(plugin.into(), fake);
    }

    /// It ends by itself, without a trap.
    pub(super) fn stop(&self, plugin: &str) {
        if let Some(fake) = self.state().plugins.get_mut(plugin) {
            fake.stopped = true;
        }
    }

    /// All of it was deployed so many microseconds earlier.
    pub(super) fn age(&self, plugin: &str, by: i64) {
        if let Some(fake) = self.state().plugins.get_mut(plugin) {
            fake.history.iter_mut().for_each(|deployment| deployment.deployed_at -= by);
        }
    }

    /// As a host is started again by which this plugin cannot be loaded any more.
    pub(super) fn cannot_start(&self, plugin: &str) {
        if let Some(fake) = self.state().plugins.get_mut(plugin) {
            fake.started = false;
        }
    }

    /// The version that is deployed, and whether it runs.
    pub(super) fn now(&self, plugin: &str) -> Option<(String, bool)> {
        let state = self.state();
        let deployment = state.plugins.get(plugin)?.history.first()?;
        Some((deployment.version.clone(), !deployment.paused))
    }

    pub(super) fn deployment(&self, plugin: &str) -> Option<Deployment> {
        self.state().plugins.get(plugin)?.history.first().cloned()
    }

    fn status(&self, plugin: &str) -> std::result::Result<PluginStatus, ControlError> {
        let mut state = self.state();
        let Some(fake) = state.plugins.get_mut(plugin) else {
            return Err(ControlError::Unknown { plugin: plugin.into() });
        };
        if fake.always_traps {
            fake.traps += 10;
        }
        let mut deployment = fake.history[0].clone();
        deployment.version = released_as(&deployment.version);
        let works = fake.started && !fake.stopped;
        let running = if works { PluginState::Running } else { PluginState::Failed };
        Ok(PluginStatus {
            name: plugin.into(),
            state: if deployment.paused { PluginState::Paused } else { running },
            message: String::new(),
            tenant_failures: Vec::new(),
            deployment,
            manifest: fake.started.then(|| Scripted::new(plugin, 1).manifest),
            grants: Vec::new(),
            lag_events: 0,
            tasks: Vec::new(),
            warnings: Vec::new(),
            counters: PluginCounters { traps: fake.traps, ..PluginCounters::default() },
            measures: Measures::default(),
            last_refusal: None,
            candidate: None,
            nothing_changed: false,
        })
    }

    async fn step(&self, name: &str) -> std::result::Result<(), ControlError> {
        let steps = Arc::clone(&self.state().steps);
        steps.step(name).await.map_err(|_| BackendError::Failed { detail: "told to fail".into() }.into())
    }

    async fn around<T>(
        &self,
        name: &str,
        call: impl Future<Output = std::result::Result<T, ControlError>>,
    ) -> std::result::Result<T, ControlError> {
        self.step(&format!("before {name}")).await?;
        let answer = call.await;
        self.step(&format!("after {name}")).await?;
        answer
    }

    fn called(&self, call: String) {
        self.state().calls.push(call);
    }

    async fn phase(&self, plugin: &str) -> Option<Phase> {
        let observed = self.store.observed().await.unwrap();
        observed.iter().find(|row| row.plugin == plugin).map(|row| row.phase)
    }

    /// Tells a step, and goes on once the store has it.
    async fn tell(&self, request: &DeployRequest, plugin: &str, step: DeployStep) {
        if let Some(progress) = &request.progress {
            progress.try_send(step).unwrap();
        }
        let told = match step {
            DeployStep::Compiled => Phase::Compiled,
            DeployStep::Validated => Phase::Validated,
            DeployStep::Shadow => Phase::Shadow,
            DeployStep::Active => return,
        };
        // Where this revision was tried before, it may be further already.
        let is_written = |phase: Option<Phase>| phase.is_some_and(|phase| rank(phase) >= rank(told));
        let written = async {
            while !is_written(self.phase(plugin).await) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let patience = *self.patience.lock().unwrap();
        // What could not be written down is told by the phases.
        let _ = tokio::time::timeout(patience, written).await;
        let phase = self.phase(plugin).await.unwrap();
        self.state().phases.push(phase);
    }

    async fn deploy_now(&self, request: DeployRequest) -> std::result::Result<PluginStatus, ControlError> {
        let text = String::from_utf8(request.component.to_vec()).unwrap();
        let mut words = text.split(' ');
        let (name, version) = (words.next().unwrap().to_owned(), words.next().unwrap_or_default().to_owned());
        let says: BTreeSet<&str> = words.collect();
        let options = request.options;
        let kind = if options.rollback { "rollback" } else { "deploy" };
        self.called(format!("{kind} {text}"));
        if let Some(error) = self.state().fails.pop_front() {
            return Err(error);
        }
        let before = self.phase(&name).await.unwrap();
        self.state().phases.push(before);
        let detail = || "it is made so".to_owned();
        if says.contains("broken") {
            return Err(PluginError::NotAComponent { detail: detail() }.into());
        } else if says.contains("world") {
            return Err(PluginError::WrongWorld { detail: detail() }.into());
        } else if says.contains("bomb") {
            return Err(PluginError::CompileLimit { limit: "compile_ms_max", max: 1 }.into());
        } else if says.contains("describe") {
            return Err(PluginError::Describe { detail: detail() }.into());
        }
        self.tell(&request, &name, DeployStep::Compiled).await;
        if says.contains("grant") {
            let (grant, why, give) = ("clock".into(), detail(), detail());
            return Err(PluginError::GrantMissing { plugin: name, grant, why, give }.into());
        } else if request.expected_name.as_deref() != Some(&name) {
            return Err(ControlError::OtherName { expected: String::new(), found: name });
        }
        request.expected_build.as_ref().map_or(Ok(()), |build| build.check(&released_as(&version), None))?;
        self.tell(&request, &name, DeployStep::Validated).await;
        let former = self.state().plugins.get(&name).cloned();
        let is_beside = former.as_ref().is_some_and(|former| !former.history[0].paused);
        if is_beside && says.contains("state") {
            return Err(ControlError::StateRefused { version, task: "a task".into(), detail: detail() });
        }
        if is_beside && !options.no_shadow {
            self.shadow(&request, &name, &version, &says).await?;
        }
        let digest = digest_of(text.as_bytes()).trim_start_matches("sha256:").to_owned();
        let paused = former.as_ref().map_or(request.paused, |former| former.history[0].paused);
        let mut state = self.state();
        state.deploys += 1;
        let deployment = Deployment {
            plugin: name.clone(),
            version,
            digest,
            paused,
            lanes: 1,
            from: StartFrom::Oldest,
            deployed_at: NOW.0 + state.deploys,
            deployed_by: request.by.clone(),
            ordering_key: None,
            proof: Proof::Loaded,
            rollback: options.rollback,
            settings: request.settings.clone(),
        };
        let fake = state.plugins.entry(name.clone()).or_insert_with(|| Fake {
            history: Vec::new(),
            traps: 0,
            always_traps: false,
            started: true,
            stopped: false,
        });
        fake.history.insert(0, deployment);
        (fake.started, fake.stopped, fake.always_traps) = (true, false, says.contains("traps"));
        drop(state);
        self.status(&name)
    }

    async fn shadow(
        &self,
        request: &DeployRequest,
        name: &str,
        version: &str,
        says: &BTreeSet<&str>,
    ) -> std::result::Result<(), ControlError> {
        let refused = |fault| {
            let refusal = ShadowRefusal { fault, message: "it is made so".into() };
            Err(ControlError::Shadow { version: version.into(), refusal })
        };
        self.tell(request, name, DeployStep::Shadow).await;
        if says.contains("held") {
            self.state().shadows += 1;
            let (mut let_go, mut given_up) = (self.let_go.subscribe(), self.given_up.subscribe());
            let stopped = tokio::select! {
                _ = let_go.wait_for(|let_go| *let_go) => false,
                _ = given_up.changed() => true,
            };
            self.state().shadows -= 1;
            if stopped {
                return refused(ShadowFault::Stopped);
            }
        }
        if says.contains("shadow") { refused(ShadowFault::Trap) } else { Ok(()) }
    }

    fn change(
        &self,
        plugin: &str,
        change: impl FnOnce(&mut Fake),
    ) -> std::result::Result<PluginStatus, ControlError> {
        if let Some(fake) = self.state().plugins.get_mut(plugin) {
            change(fake);
        }
        self.status(plugin)
    }

    fn set_paused(&self, plugin: &str, paused: bool) -> std::result::Result<PluginStatus, ControlError> {
        self.change(plugin, |fake| {
            let next = Deployment { paused, ..fake.history[0].clone() };
            fake.history.insert(0, next);
        })
    }
}

impl PluginControl for FakePlugins {
    fn list(&self) -> BoxFuture<'_, std::result::Result<Vec<PluginStatus>, ControlError>> {
        let names: Vec<String> = self.state().plugins.keys().cloned().collect();
        let all = names.iter().map(|name| self.status(name)).collect();
        std::future::ready(all).boxed()
    }

    fn show(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        let plugin = plugin.to_owned();
        self.around("show", async move { self.status(&plugin) }).boxed()
    }

    fn history(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<Vec<Deployment>, ControlError>> {
        let history = self.state().plugins.get(plugin).map(|fake| fake.history.clone());
        let history = history.ok_or_else(|| ControlError::Unknown { plugin: plugin.into() });
        self.around("history", std::future::ready(history)).boxed()
    }

    fn deploy(
        &self,
        request: DeployRequest,
    ) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        self.around("deploy", self.deploy_now(request)).boxed()
    }

    fn confirm(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        self.called(format!("confirm {plugin}"));
        std::future::ready(self.status(plugin)).boxed()
    }

    fn abandon(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        self.called(format!("abandon {plugin}"));
        self.given_up.send_modify(|times| *times += 1);
        std::future::ready(self.status(plugin)).boxed()
    }

    fn rollback(
        &self,
        plugin: &str,
        to: Option<&str>,
        by: &str,
        _: DeployOptions,
    ) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        let (plugin, to, by) = (plugin.to_owned(), to.unwrap_or_default().to_owned(), by.to_owned());
        let back = async move {
            self.called(format!("back {plugin}"));
            let mut state = self.state();
            state.deploys += 1;
            let deployed_at = NOW.0 + state.deploys;
            drop(state);
            self.change(&plugin, |fake| {
                let present = fake.history[0].clone();
                let earlier = fake.history.iter().find(|earlier| {
                    earlier.digest == to
                        && (&earlier.digest, &earlier.settings) != (&present.digest, &present.settings)
                });
                let next = earlier.unwrap().clone();
                let paused = present.paused;
                let next = Deployment { deployed_at, deployed_by: by, rollback: true, paused, ..next };
                fake.history.insert(0, next);
                fake.always_traps = false;
            })
        };
        self.around("rollback", back).boxed()
    }

    fn pause(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        let plugin = plugin.to_owned();
        let pause = async move {
            self.called(format!("pause {plugin}"));
            self.set_paused(&plugin, true)
        };
        self.around("pause", pause).boxed()
    }

    fn resume(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<PluginStatus, ControlError>> {
        let plugin = plugin.to_owned();
        let resume = async move {
            self.called(format!("resume {plugin}"));
            self.set_paused(&plugin, false)
        };
        self.around("resume", resume).boxed()
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, std::result::Result<(), ControlError>> {
        let plugin = plugin.to_owned();
        let remove = async move {
            self.called(format!("remove {plugin}"));
            let phase = self.phase(&plugin).await;
            self.state().phases.extend(phase);
            match self.state().plugins.remove(&plugin) {
                Some(_) => Ok(()),
                None => Err(ControlError::Unknown { plugin }),
            }
        };
        self.around("remove", remove).boxed()
    }

    fn dead_letters(
        &self,
        _: &str,
        _: Option<&TenantId>,
        _: u32,
    ) -> BoxFuture<'_, std::result::Result<Vec<DeadLetterRow>, ControlError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn dead_letter(
        &self,
        plugin: &str,
        _: Option<&TenantId>,
        letter: Position,
    ) -> BoxFuture<'_, std::result::Result<DeadLetterRow, ControlError>> {
        let error = ControlError::DeadLetterUnknown { plugin: plugin.into(), letter: letter.0 };
        std::future::ready(Err(error)).boxed()
    }

    fn resolve(
        &self,
        plugin: &str,
        _: Option<&TenantId>,
        letter: Position,
        _: Verdict,
    ) -> BoxFuture<'_, std::result::Result<Resolved, ControlError>> {
        let error = ControlError::DeadLetterUnknown { plugin: plugin.into(), letter: letter.0 };
        std::future::ready(Err(error)).boxed()
    }

    fn replay(
        &self,
        request: ReplayRequest,
    ) -> BoxFuture<'_, std::result::Result<ReplayReport, ControlError>> {
        std::future::ready(Err(ControlError::Unknown { plugin: request.plugin })).boxed()
    }
}

fn rank(phase: Phase) -> usize {
    let way =
        [Phase::Absent, Phase::Fetched, Phase::Verified, Phase::Compiled, Phase::Validated, Phase::Shadow];
    way.iter().position(|step| *step == phase).unwrap_or(way.len())
}
