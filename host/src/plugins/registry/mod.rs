//! The plugins of this host: what is deployed, what runs, and the changes.
//!
//! A plugin's changes happen one at a time, beside those of other plugins;
//! compiling and verifying happen before a change takes its turn. So a slow
//! component holds up nobody but itself.

mod candidates;
mod changes;
mod collect;
mod deploy;
mod letters;
mod progress;
mod rebuild;
mod rebuilding;
mod show;
mod starts;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all, ready};
use futures_util::stream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard, RwLock, RwLockReadGuard};
use tokio_util::sync::CancellationToken;

use self::candidates::Waiting;
use self::progress::Progress;
use self::rebuilding::Rebuilding;
use self::starts::StartFailure;
use super::{
    ArtifactStore, Candidate, ControlError, DeployOptions, DeployRequest, DeployStep, Deployment,
    DeploymentStore, ManagedPlugins, PluginControl, PluginError, PluginRuntime, PluginSettings, PluginStatus,
    RebuildRequest, RebuildStore, RebuildView, ReplayReport, ReplayRequest, StartFrom,
};
use crate::checkpoints::DeadLetterRow;
use crate::error::{BackendError, Classify as _, Retry};
use crate::event::{Position, TenantId};
use crate::limits::{PLUGIN_LOADS_PER_CORE, SCOPES_DECLARE_WAIT_MAX};
use crate::processors::{
    Engine, FailurePolicy, LostPolicy, Manifest, ProcessorFactory, ProcessorSettings, Resolved, Runner,
    Verdict, VersionCounters,
};
use crate::streams::{AggregateScopes, StreamError};
use crate::tables::TableStore;

/// What a registry works with.
#[derive(Clone, Debug)]
pub struct RegistryParts {
    pub engine: Engine,
    pub runtime: Arc<dyn PluginRuntime>,
    pub artifacts: Arc<dyn ArtifactStore>,
    pub deployments: Arc<dyn DeploymentStore>,
    pub rebuilds: Arc<dyn RebuildStore>,
    pub tables: Arc<dyn TableStore>,
    /// The operator's settings by plugin name.
    pub settings: BTreeMap<String, PluginSettings>,
    /// How processors run where a plugin's settings do not say.
    pub processors: ProcessorSettings,
}

/// Implements [`PluginControl`] on one host.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
    /// Whose changes come through this handle.
    caller: Caller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// The edge, or the watched folder: not of what a feed decides about.
    Local,
    Feed,
}

#[derive(Debug)]
struct Inner {
    parts: RegistryParts,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// By plugin, since the host started.
    counters: Mutex<BTreeMap<String, Arc<VersionCounters>>>,
    /// Plugins that are being changed or wait for it; the others have no entry.
    turns: Mutex<BTreeMap<String, Arc<TurnMutex<()>>>>,
    /// Plugins that a version is being deployed of, and how to end its shadow run.
    deploying: Mutex<BTreeMap<String, CancellationToken>>,
    /// The last rebuild of each plugin that had one.
    rebuilds: Mutex<BTreeMap<String, Arc<Rebuilding>>>,
    /// Held for reading by every change, so that an end can wait for them.
    changing: RwLock<()>,
    closing: AtomicBool,
    /// What only a feed may change.
    managed: ManagedPlugins,
    /// What was deployed is still to be started: until then nobody knows what a change would change.
    starting: AtomicBool,
}

#[derive(Clone, Debug)]
struct Entry {
    deployment: Deployment,
    manifest: Option<Manifest>,
    runner: Option<Runner>,
    /// Why it could not be started.
    failure: Option<StartFailure>,
    /// What became of the last version that wanted to take over.
    last: Option<Candidate>,
    /// It has proved itself and waits to be confirmed.
    waiting: Option<Waiting>,
}

/// The right to change one plugin.
struct Turn<'a> {
    _change: RwLockReadGuard<'a, ()>,
    _plugin: OwnedMutexGuard<()>,
}

impl Registry {
    pub fn new(parts: RegistryParts) -> Self {
        let inner = Inner {
            parts,
            entries: Mutex::default(),
            counters: Mutex::default(),
            turns: Mutex::default(),
            deploying: Mutex::default(),
            rebuilds: Mutex::default(),
            changing: RwLock::default(),
            closing: AtomicBool::new(false),
            managed: ManagedPlugins::default(),
            starting: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner), caller: Caller::Local }
    }

    /// The same registry for whoever carries out a feed. Through all other handles, plugins of
    /// [`Registry::managed`] can be looked at only.
    #[must_use]
    pub fn for_feed(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), caller: Caller::Feed }
    }

    /// The plugins that only a feed may change.
    pub fn managed(&self) -> ManagedPlugins {
        self.inner.managed.clone()
    }

    fn may_change(&self, plugin: &str) -> Result<(), ControlError> {
        if self.caller == Caller::Local && self.inner.managed.contains(plugin) {
            return Err(ControlError::Managed { plugin: plugin.into() });
        }
        Ok(())
    }

    /// Refuses changes until [`Registry::start_deployed`] has been through, for a host that answers before that.
    pub fn refuse_changes(&self) {
        self.inner.starting.store(true, Ordering::SeqCst);
    }

    /// Starts what was deployed when the host last ran: loads several at once, then starts all of them, so
    /// that their claims share a commit. A plugin that cannot be started is shown as failed and does not
    /// keep the others from starting.
    pub async fn start_deployed(&self) -> Result<(), ControlError> {
        let mut candidates = self.inner.parts.deployments.candidates().await?;
        let deployments = self.inner.parts.deployments.list().await?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let loads = stream::iter(deployments).map(|deployment| async {
            let turn = self.take_turn(&deployment.plugin).await?;
            let loaded = self.load_deployed(&deployment).await;
            Ok::<_, ControlError>((turn, deployment, loaded))
        });
        let loaded: Vec<_> = loads.buffer_unordered(cores * PLUGIN_LOADS_PER_CORE).try_collect().await?;
        for (_turn, deployment, factory) in loaded {
            let name = deployment.plugin.clone();
            let last = candidates.remove(&name);
            let mut entry =
                Entry { deployment, manifest: None, runner: None, failure: None, last, waiting: None };
            self.lose_candidate(&name, &mut entry, "the host was started again").await;
            self.take_in(&mut entry, factory);
            self.entries().insert(name, entry);
        }
        self.resume_rebuilds().await;
        self.inner.starting.store(false, Ordering::SeqCst);
        self.collect_artifacts().await;
        Ok(())
    }

    /// Lets every plugin commit what it has handled. Answers whether all were in
    /// time. A change that is under way gets half of the time; new ones are refused.
    pub async fn shut_down(&self, deadline: Duration) -> bool {
        let begun = Instant::now();
        self.inner.closing.store(true, Ordering::SeqCst);
        self.end_shadows(None);
        let changes = tokio::time::timeout(deadline / 2, self.inner.changing.write()).await;
        let open = self.open_rebuilds();
        let mut runners = self.halt_rebuilds();
        runners.extend(self.entries().values().filter_map(|e| e.runner.clone()));
        let left = || deadline.saturating_sub(begun.elapsed());
        let time = left();
        let stopped = join_all(runners.iter().map(|runner| runner.stop(time))).await;
        // Otherwise the next start would count on from where that was written down last.
        let open = open.iter().filter(|rebuilding| rebuilding.is_open());
        let noted = join_all(open.map(|rebuilding| self.write_down_rebuild(rebuilding)));
        drop(tokio::time::timeout(left(), noted).await);
        changes.is_ok() && stopped.into_iter().all(|in_time| in_time)
    }

    /// Waits until nobody else changes this plugin.
    async fn turn(&self, plugin: &str) -> Result<Turn<'_>, ControlError> {
        self.has_started()?;
        self.take_turn(plugin).await
    }

    fn has_started(&self) -> Result<(), ControlError> {
        if self.inner.starting.load(Ordering::SeqCst) { Err(ControlError::Starting) } else { Ok(()) }
    }

    async fn take_turn(&self, plugin: &str) -> Result<Turn<'_>, ControlError> {
        let change = self.inner.changing.read().await;
        if self.inner.closing.load(Ordering::SeqCst) {
            return Err(BackendError::Closed.into());
        }
        let turn = {
            let mut turns = self.inner.turns.lock().expect("no code panics while it holds the turns");
            // Whoever has or awaits a turn holds another reference.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(plugin.to_owned()).or_default())
        };
        Ok(Turn { _change: change, _plugin: turn.lock_owned().await })
    }

    async fn load_deployed(
        &self,
        deployment: &Deployment,
    ) -> Result<Arc<dyn ProcessorFactory>, ControlError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        let digest = deployment.digest.clone();
        let component = blocking(move || artifacts.get(&digest)).await?;
        let own = deployment.settings.clone();
        let factory = self.load(component.into(), own, Progress::default()).await?;
        let (parts, manifest) = (&self.inner.parts, factory.manifest());
        parts.tables.declare(&deployment.plugin, &manifest.tables).await?;
        self.declare_scopes(&deployment.plugin, &manifest.changes).await?;
        Ok(factory)
    }

    /// At a start the server of a log elsewhere may be away for a moment, and a plugin is not given up for that.
    async fn declare_scopes(&self, plugin: &str, changes: &[AggregateScopes]) -> Result<(), StreamError> {
        let log = &self.inner.parts.engine.log;
        if changes.is_empty() && !log.scopes().has_owner(plugin) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let error = match log.declare_scopes(plugin, changes).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error.retry() {
                Retry::After(wait) if begun.elapsed() + wait < SCOPES_DECLARE_WAIT_MAX => {
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// With settings of its own, or the operator's.
    async fn load(
        &self,
        component: bytes::Bytes,
        own: Option<PluginSettings>,
        progress: Progress,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        let registry = self.clone();
        blocking(move || {
            let settings_of = |plugin: &str| {
                progress.tell(DeployStep::Compiled);
                registry.settings(plugin, own.as_ref())
            };
            registry.inner.parts.runtime.load(&component, &settings_of)
        })
        .await
    }

    /// What a plugin runs with: what it was deployed with, or the operator's settings as they are now.
    fn settings(&self, plugin: &str, own: Option<&PluginSettings>) -> PluginSettings {
        own.or_else(|| self.inner.parts.settings.get(plugin)).cloned().unwrap_or_default()
    }

    fn run(&self, factory: Arc<dyn ProcessorFactory>, deployment: &Deployment) -> Runner {
        let parts = &self.inner.parts;
        let start = match deployment.from {
            StartFrom::Oldest => parts.engine.log.bounds().trimmed,
            StartFrom::After(position) => Position(position),
        };
        let (on_failure, on_position_lost) = self.policies(deployment);
        let lanes = deployment.lanes;
        let settings =
            ProcessorSettings { lanes, start, on_failure, on_position_lost, ..parts.processors.clone() };
        Runner::start_counting(&parts.engine, factory, settings, self.counters(&deployment.plugin))
    }

    /// The settings that a run keeps from its start to its end.
    fn policies(&self, deployment: &Deployment) -> (FailurePolicy, LostPolicy) {
        let processors = &self.inner.parts.processors;
        let own = self.settings(&deployment.plugin, deployment.settings.as_ref());
        (
            own.on_failure.unwrap_or(processors.on_failure),
            own.on_position_lost.unwrap_or(processors.on_position_lost),
        )
    }

    fn counters(&self, plugin: &str) -> Arc<VersionCounters> {
        Arc::clone(self.all_counters().entry(plugin.to_owned()).or_default())
    }

    fn forget_counters(&self, plugin: &str) {
        self.all_counters().remove(plugin);
    }

    fn all_counters(&self) -> MutexGuard<'_, BTreeMap<String, Arc<VersionCounters>>> {
        self.inner.counters.lock().expect("no code panics while it holds the counters")
    }

    fn entry(&self, plugin: &str) -> Result<Entry, ControlError> {
        // Asked first: an entry that comes in between is found.
        let started = self.has_started();
        if let Some(entry) = self.entries().get(plugin) {
            return Ok(entry.clone());
        }
        started?;
        Err(ControlError::Unknown { plugin: plugin.chars().take(80).collect() })
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.entries.lock().expect("no code panics while it holds the entries")
    }
}

impl PluginControl for Registry {
    fn list(&self) -> BoxFuture<'_, Result<Vec<PluginStatus>, ControlError>> {
        async move {
            // A list without what is still to be started would look whole.
            self.has_started()?;
            self.statuses().await
        }
        .boxed()
    }

    fn show(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let plugin = plugin.to_owned();
        async move { self.status(&plugin).await }.boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        self.exposition().boxed()
    }

    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, ControlError>> {
        let plugin = plugin.to_owned();
        async move {
            self.entry(&plugin)?;
            Ok(self.inner.parts.deployments.history(&plugin).await?)
        }
        .boxed()
    }

    fn deploy(&self, request: DeployRequest) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let registry = self.clone();
        async move {
            // A caller who hangs up must not leave a deploy half done.
            let deploy = async move {
                let deployed = registry.deploy_now(request).await;
                registry.collect_artifacts().await;
                deployed
            };
            self.finish(deploy).await
        }
        .boxed()
    }

    fn confirm(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let confirm = async move {
            registry.may_change(&plugin)?;
            registry.confirm_now(&plugin).await
        };
        self.finish(confirm).boxed()
    }

    fn abandon(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let abandon = async move {
            registry.may_change(&plugin)?;
            registry.abandon_now(&plugin).await
        };
        self.finish(abandon).boxed()
    }

    fn rollback(
        &self,
        plugin: &str,
        to: Option<&str>,
        by: &str,
        options: DeployOptions,
    ) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin, to) = (self.clone(), plugin.to_owned(), to.map(str::to_owned));
        let by = by.to_owned();
        let rollback = async move {
            registry.may_change(&plugin)?;
            registry.rollback_now(&plugin, to.as_deref(), by, options).await
        };
        self.finish(rollback).boxed()
    }

    fn pause(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let pause = async move {
            registry.may_change(&plugin)?;
            registry.pause_now(&plugin).await
        };
        self.finish(pause).boxed()
    }

    fn resume(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let resume = async move {
            registry.may_change(&plugin)?;
            registry.resume_now(&plugin).await
        };
        self.finish(resume).boxed()
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let remove = async move {
            registry.may_change(&plugin)?;
            registry.remove_now(&plugin).await
        };
        self.finish(remove).boxed()
    }

    fn dead_letters(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, ControlError>> {
        let (plugin, tenant) = (plugin.to_owned(), tenant.cloned());
        async move {
            let checkpoints = &self.inner.parts.engine.checkpoints;
            Ok(checkpoints.dead_letters(&plugin, tenant.as_ref(), limit).await?)
        }
        .boxed()
    }

    fn dead_letter(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
    ) -> BoxFuture<'_, Result<DeadLetterRow, ControlError>> {
        let (plugin, tenant) = (plugin.to_owned(), tenant.cloned());
        async move { self.letter(&plugin, tenant.as_ref(), letter).await }.boxed()
    }

    fn resolve(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
        verdict: Verdict,
    ) -> BoxFuture<'_, Result<Resolved, ControlError>> {
        let (registry, plugin, tenant) = (self.clone(), plugin.to_owned(), tenant.cloned());
        let decide = async move { registry.decide(&plugin, tenant.as_ref(), letter, verdict).await };
        self.finish(decide).boxed()
    }

    fn rebuild(&self, request: RebuildRequest) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        let registry = self.clone();
        self.finish(async move { registry.rebuild_now(request).await }).boxed()
    }

    fn rebuild_status(&self, plugin: &str) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        ready(self.rebuild_view(plugin)).boxed()
    }

    fn abandon_rebuild(&self, plugin: &str) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        let abandon = async move {
            registry.may_change(&plugin)?;
            registry.abandon_rebuild_now(&plugin).await
        };
        self.finish(abandon).boxed()
    }

    fn replay(&self, request: ReplayRequest) -> BoxFuture<'_, Result<ReplayReport, ControlError>> {
        self.replay_apart(request).boxed()
    }
}

impl Registry {
    /// Runs a change to its end, also when the caller goes away.
    async fn finish<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ControlError> {
        match self.inner.parts.engine.runtime.spawn(change).await {
            Ok(answer) => answer,
            Err(error) => Err(PluginError::Engine { detail: error.to_string() }.into()),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PluginError> + Send + 'static,
) -> Result<T, PluginError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(PluginError::Engine { detail: error.to_string() }))
}
