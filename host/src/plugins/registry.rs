//! The plugins of this host: what is deployed, what runs, and the changes.
//!
//! Changes happen one at a time; compiling and verifying happen before a
//! change takes its turn, so that a slow component holds up no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::{info, warn};

use super::{
    ArtifactStore, ControlError, DeployFrom, DeployRequest, Deployment, DeploymentStore, PluginControl,
    PluginCounters, PluginError, PluginRuntime, PluginSettings, PluginState, PluginStatus, Refusal,
    StartFrom, TaskStatus, TenantFailure,
};
use crate::checkpoints::DeadLetterRow;
use crate::error::Classify;
use crate::event::{Position, TenantId};
use crate::limits::{DRAIN_MAX, LANES_MAX};
use crate::processors::{Engine, Manifest, ProcessorFactory, ProcessorSettings, Runner};
use crate::tables::TableStore;

/// What a registry works with.
#[derive(Clone, Debug)]
pub struct RegistryParts {
    pub engine: Engine,
    pub runtime: Arc<dyn PluginRuntime>,
    pub artifacts: Arc<dyn ArtifactStore>,
    pub deployments: Arc<dyn DeploymentStore>,
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
}

#[derive(Debug)]
struct Inner {
    parts: RegistryParts,
    entries: Mutex<BTreeMap<String, Entry>>,
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Entry {
    deployment: Deployment,
    manifest: Option<Manifest>,
    runner: Option<Runner>,
    /// Why it could not be started.
    failure: Option<String>,
    last_refusal: Option<Refusal>,
}

impl Registry {
    pub fn new(parts: RegistryParts) -> Self {
        let inner = Inner { parts, entries: Mutex::default(), changing: tokio::sync::Mutex::new(()) };
        Self { inner: Arc::new(inner) }
    }

    /// Starts what was deployed when the host last ran. A plugin that cannot be
    /// started is shown as failed and does not keep the others from starting.
    pub async fn start_deployed(&self) -> Result<(), ControlError> {
        let _turn = self.inner.changing.lock().await;
        for deployment in self.inner.parts.deployments.list().await? {
            let name = deployment.plugin.clone();
            let mut entry =
                Entry { deployment, manifest: None, runner: None, failure: None, last_refusal: None };
            match self.load_deployed(&entry.deployment).await {
                Ok(factory) => {
                    entry.manifest = Some(factory.manifest().clone());
                    if !entry.deployment.paused {
                        entry.runner = Some(self.run(factory, &entry.deployment));
                    }
                }
                Err(error) => {
                    warn!(plugin.name = name, %error, "plugin could not be started");
                    entry.failure = Some(error.to_string());
                }
            }
            self.entries().insert(name, entry);
        }
        Ok(())
    }

    /// Lets every plugin commit what it has handled. Answers whether all were in time.
    pub async fn shut_down(&self, deadline: Duration) -> bool {
        let _turn = self.inner.changing.lock().await;
        let runners: Vec<Runner> = self.entries().values().filter_map(|e| e.runner.clone()).collect();
        let stops = runners.iter().map(|runner| runner.stop(deadline));
        futures_util::future::join_all(stops).await.into_iter().all(|in_time| in_time)
    }

    /// Remembers that a candidate did not take over, for the plugin's status.
    pub fn refuse(&self, plugin: &str, refusal: Refusal) {
        if let Some(entry) = self.entries().get_mut(plugin) {
            entry.last_refusal = Some(refusal);
        }
    }

    async fn load_deployed(
        &self,
        deployment: &Deployment,
    ) -> Result<Arc<dyn ProcessorFactory>, ControlError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        let digest = deployment.digest.clone();
        let component = blocking(move || artifacts.get(&digest)).await?;
        let factory = self.load(component.into()).await?;
        self.inner.parts.tables.declare(&deployment.plugin, &factory.manifest().tables).await?;
        Ok(factory)
    }

    async fn load(&self, component: bytes::Bytes) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        let runtime = Arc::clone(&self.inner.parts.runtime);
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let settings_of = |plugin: &str| inner.parts.settings.get(plugin).cloned().unwrap_or_default();
            runtime.load(&component, &settings_of)
        })
        .await
    }

    fn run(&self, factory: Arc<dyn ProcessorFactory>, deployment: &Deployment) -> Runner {
        let parts = &self.inner.parts;
        let start = match deployment.from {
            StartFrom::Oldest => parts.engine.log.bounds().trimmed,
            StartFrom::After(position) => Position(position),
        };
        let settings = ProcessorSettings { lanes: deployment.lanes, start, ..parts.processors.clone() };
        Runner::start(&parts.engine, factory, settings)
    }

    async fn deploy_now(&self, request: DeployRequest) -> Result<PluginStatus, ControlError> {
        let factory = self.load(request.component.clone()).await?;
        let manifest = factory.manifest().clone();
        let name = manifest.name.clone();
        if let Some(expected) = request.expected_name.filter(|expected| *expected != name) {
            return Err(ControlError::OtherName { expected, found: name });
        }
        let _turn = self.inner.changing.lock().await;
        let before = self.entries().get(&name).cloned();
        let same = before.as_ref().filter(|e| e.deployment.digest == factory.digest());
        if same.is_some_and(|entry| entry.failure.is_none()) {
            return self.status(&name).await;
        }
        let result = match before {
            None => self.deploy_first(factory, request.component, request.from, request.by).await,
            Some(entry) => self.deploy_over(entry, factory, request.component, request.by).await,
        };
        match result {
            Ok(()) => self.status(&name).await,
            Err(error) => {
                let candidate = format!("{name} {}", manifest.version);
                self.refuse(&name, self.refusal(&error, candidate));
                Err(error)
            }
        }
    }

    fn refusal(&self, error: &ControlError, candidate: String) -> Refusal {
        let at = self.inner.parts.engine.clock.now().0;
        Refusal { at, candidate, code: error.code().into(), message: error.to_string() }
    }

    async fn deploy_first(
        &self,
        factory: Arc<dyn ProcessorFactory>,
        component: bytes::Bytes,
        from: DeployFrom,
        by: String,
    ) -> Result<(), ControlError> {
        let parts = &self.inner.parts;
        let manifest = factory.manifest().clone();
        let settings = parts.settings.get(&manifest.name).cloned().unwrap_or_default();
        parts.tables.declare(&manifest.name, &manifest.tables).await?;
        self.keep(component).await?;
        let from = match from {
            DeployFrom::Oldest => StartFrom::Oldest,
            DeployFrom::Tail => StartFrom::After(parts.engine.log.bounds().newest.0),
            DeployFrom::After(position) => StartFrom::After(position),
        };
        let deployment = Deployment {
            plugin: manifest.name.clone(),
            version: manifest.version.to_string(),
            digest: factory.digest().to_owned(),
            paused: false,
            lanes: settings.lanes.unwrap_or(parts.processors.lanes).clamp(1, LANES_MAX),
            from,
            deployed_at: parts.engine.clock.now().0,
            deployed_by: by,
        };
        parts.deployments.put(deployment.clone()).await?;
        info!(plugin.name = manifest.name, plugin.version = %manifest.version, "plugin deployed");
        let runner = Some(self.run(factory, &deployment));
        let name = manifest.name.clone();
        let entry = Entry { deployment, manifest: Some(manifest), runner, failure: None, last_refusal: None };
        self.entries().insert(name, entry);
        Ok(())
    }

    async fn deploy_over(
        &self,
        mut entry: Entry,
        factory: Arc<dyn ProcessorFactory>,
        component: bytes::Bytes,
        by: String,
    ) -> Result<(), ControlError> {
        let parts = &self.inner.parts;
        let manifest = factory.manifest().clone();
        let version = manifest.version.to_string();
        if let Some(old) = entry.manifest.as_ref().filter(|old| old.ordering_key != manifest.ordering_key) {
            let detail = format!(
                "its ordering key is {:?}, the running version's is {:?}; another key needs a rebuild: remove the plugin and deploy it again",
                manifest.ordering_key, old.ordering_key
            );
            return Err(ControlError::SwapFailed { version, detail });
        }
        parts.tables.declare(&manifest.name, &manifest.tables).await?;
        self.keep(component).await?;
        let deployment = Deployment {
            version: version.clone(),
            digest: factory.digest().to_owned(),
            deployed_at: parts.engine.clock.now().0,
            deployed_by: by,
            ..entry.deployment.clone()
        };
        let runner = entry.runner.take();
        let failed = runner.as_ref().is_some_and(|runner| !runner.status().failures.is_empty());
        entry.runner = match runner {
            Some(runner) if !failed => {
                let swapped = runner.swap(Arc::clone(&factory)).await;
                swapped.map_err(|error| ControlError::StateRefused {
                    version,
                    task: error.task.to_string(),
                    detail: error.source.to_string(),
                })?;
                Some(runner)
            }
            // What does not run cannot hand over: the new version begins where the old one stopped.
            Some(runner) => {
                runner.stop(DRAIN_MAX).await;
                Some(self.run(Arc::clone(&factory), &deployment))
            }
            None if deployment.paused => None,
            None => Some(self.run(Arc::clone(&factory), &deployment)),
        };
        parts.deployments.put(deployment.clone()).await?;
        info!(plugin.name = manifest.name, plugin.version = %manifest.version, "plugin version took over");
        let name = manifest.name.clone();
        let entry = Entry {
            deployment,
            manifest: Some(manifest),
            failure: None,
            last_refusal: None,
            runner: entry.runner,
        };
        self.entries().insert(name, entry);
        Ok(())
    }

    async fn keep(&self, component: bytes::Bytes) -> Result<(), PluginError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        blocking(move || artifacts.put(&component)).await.map(|_| ())
    }

    async fn pause_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let _turn = self.inner.changing.lock().await;
        let mut entry = self.entry(plugin)?;
        if !entry.deployment.paused {
            entry.deployment.paused = true;
            self.inner.parts.deployments.put(entry.deployment.clone()).await?;
            if let Some(runner) = entry.runner.take() {
                runner.stop(DRAIN_MAX).await;
            }
            self.entries().insert(plugin.into(), entry);
        }
        self.status(plugin).await
    }

    /// Also starts a plugin again that had stopped by itself.
    async fn resume_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let _turn = self.inner.changing.lock().await;
        let mut entry = self.entry(plugin)?;
        let failed = entry.runner.as_ref().is_some_and(|runner| !runner.status().failures.is_empty());
        if entry.runner.is_none() || failed {
            let factory = self.load_deployed(&entry.deployment).await?;
            if let Some(runner) = entry.runner.take() {
                runner.stop(DRAIN_MAX).await;
            }
            if entry.deployment.paused {
                entry.deployment.paused = false;
                self.inner.parts.deployments.put(entry.deployment.clone()).await?;
            }
            entry.failure = None;
            entry.manifest = Some(factory.manifest().clone());
            entry.runner = Some(self.run(factory, &entry.deployment));
            self.entries().insert(plugin.into(), entry);
        }
        self.status(plugin).await
    }

    async fn remove_now(&self, plugin: &str) -> Result<(), ControlError> {
        let _turn = self.inner.changing.lock().await;
        let entry = self.entry(plugin)?;
        if let Some(runner) = entry.runner {
            runner.stop(DRAIN_MAX).await;
        }
        self.inner.parts.deployments.remove(plugin).await?;
        self.entries().remove(plugin);
        info!(plugin.name = plugin, "plugin removed");
        Ok(())
    }

    async fn status(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let entry = self.entry(plugin)?;
        let mut status = PluginStatus {
            name: plugin.to_owned(),
            state: if entry.deployment.paused { PluginState::Paused } else { PluginState::Starting },
            message: String::new(),
            tenant_failures: Vec::new(),
            deployment: entry.deployment,
            manifest: entry.manifest,
            lag_events: 0,
            tasks: Vec::new(),
            counters: PluginCounters::default(),
            last_refusal: entry.last_refusal,
        };
        match (entry.runner, entry.failure) {
            (_, Some(message)) => {
                status.state = PluginState::Failed;
                status.message = message;
            }
            (Some(runner), None) => self.show_running(&runner, &mut status),
            (None, None) => self.show_paused(plugin, &mut status).await?,
        }
        Ok(status)
    }

    fn show_running(&self, runner: &Runner, status: &mut PluginStatus) {
        let newest = self.inner.parts.engine.log.bounds().newest;
        let running = runner.status();
        status.state = if running.failures.is_empty() { PluginState::Running } else { PluginState::Failed };
        let failures = running.failures.iter();
        status.tenant_failures = failures
            .map(|(tenant, why)| TenantFailure { tenant: tenant.to_string(), message: why.clone() })
            .collect();
        status.message = TenantFailure::sentence(&status.tenant_failures);
        status.lag_events = newest.0.saturating_sub(running.done_through.0);
        let tasks = running.tasks.iter().map(|(task, position, state_bytes)| TaskStatus {
            tenant: task.tenant.to_string(),
            lane: task.lane,
            position: position.0,
            state_bytes: *state_bytes,
        });
        status.tasks = tasks.collect();
        let counts = running.counts;
        status.counters = PluginCounters {
            events: counts.events,
            batches: counts.batches,
            commits: counts.commits,
            effects: counts.effects,
            stale_writes: counts.stale_writes,
            retries: counts.retries,
            traps: counts.traps,
            dead_letters: counts.dead_letters,
            restarts: counts.restarts,
            swaps: counts.swaps,
        };
    }

    async fn show_paused(&self, plugin: &str, status: &mut PluginStatus) -> Result<(), ControlError> {
        let newest = self.inner.parts.engine.log.bounds().newest;
        let tasks = self.inner.parts.engine.checkpoints.tasks(Some(plugin)).await?;
        let behind = tasks.iter().map(|row| row.position).min().unwrap_or_default();
        status.lag_events = newest.0.saturating_sub(behind.0);
        let tasks = tasks.into_iter().map(|row| TaskStatus {
            tenant: row.task.tenant.to_string(),
            lane: row.task.lane,
            position: row.position.0,
            state_bytes: row.state_bytes,
        });
        status.tasks = tasks.collect();
        Ok(())
    }

    fn entry(&self, plugin: &str) -> Result<Entry, ControlError> {
        let unknown = || ControlError::Unknown { plugin: plugin.chars().take(80).collect() };
        self.entries().get(plugin).cloned().ok_or_else(unknown)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.entries.lock().expect("no code panics while it holds the entries")
    }
}

impl PluginControl for Registry {
    fn list(&self) -> BoxFuture<'_, Result<Vec<PluginStatus>, ControlError>> {
        async {
            let names: Vec<String> = self.entries().keys().cloned().collect();
            let mut all = Vec::new();
            for name in names {
                match self.status(&name).await {
                    // Removed in the meantime.
                    Err(ControlError::Unknown { .. }) => {}
                    status => all.push(status?),
                }
            }
            Ok(all)
        }
        .boxed()
    }

    fn show(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let plugin = plugin.to_owned();
        async move { self.status(&plugin).await }.boxed()
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
            let deploy = async move { registry.deploy_now(request).await };
            self.finish(deploy).await
        }
        .boxed()
    }

    fn pause(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        self.finish(async move { registry.pause_now(&plugin).await }).boxed()
    }

    fn resume(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        self.finish(async move { registry.resume_now(&plugin).await }).boxed()
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), ControlError>> {
        let (registry, plugin) = (self.clone(), plugin.to_owned());
        self.finish(async move { registry.remove_now(&plugin).await }).boxed()
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
