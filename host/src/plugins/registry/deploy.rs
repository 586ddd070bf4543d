//! Deploying: a first version, or one over another. The candidate proves
//! itself before anything is changed, and what ran before it goes on unless
//! it has taken over.

use std::sync::Arc;

use tracing::{info, warn};

use super::{Entry, Registry, blocking};
use crate::error::Classify;
use crate::limits::{DRAIN_MAX, LANES_MAX};
use crate::plugins::watch::BY_DIRECTORY;
use crate::plugins::{
    ControlError, DeployFrom, DeployRequest, Deployment, PluginError, PluginStatus, Refusal, StartFrom,
};
use crate::processors::{LoadError, ProcessorFactory, Runner, SwapError, prove_at_rest};

/// A version that wants to run.
struct Candidate {
    factory: Arc<dyn ProcessorFactory>,
    component: bytes::Bytes,
    by: String,
}

impl Registry {
    pub(super) async fn deploy_now(&self, request: DeployRequest) -> Result<PluginStatus, ControlError> {
        let DeployRequest { component, expected_name, from, by } = request;
        let factory = match self.load(component.clone()).await {
            Ok(factory) => factory,
            Err(error) => {
                let error = ControlError::from(error);
                self.refuse_unnamed(expected_name.as_deref(), &by, &error);
                return Err(error);
            }
        };
        let name = factory.manifest().name.clone();
        if let Some(expected) = expected_name.filter(|expected| *expected != name) {
            let error = ControlError::OtherName { expected: expected.clone(), found: name };
            self.refuse_unnamed(Some(&expected), &by, &error);
            return Err(error);
        }
        let _turn = self.turn(&name).await?;
        let before = self.entries().get(&name).cloned();
        if let Some(entry) = &before
            && self.changes_nothing(entry, factory.digest(), &by).await?
        {
            return self.status(&name).await;
        }
        let called = format!("{name} {}", factory.manifest().version);
        let candidate = Candidate { factory, component, by };
        let result = match before {
            None => self.deploy_first(candidate, from).await,
            Some(entry) => self.deploy_over(entry, candidate).await,
        };
        if let Err(error) = result {
            self.refuse(&name, self.refusal(&error, called));
            return Err(error);
        }
        self.status(&name).await
    }

    /// Whether these bytes run already, or are what a watched file had brought
    /// before somebody else deployed over it: a start of the host must not go back to them.
    async fn changes_nothing(&self, entry: &Entry, digest: &str, by: &str) -> Result<bool, ControlError> {
        if entry.deployment.digest == digest {
            return Ok(entry.failure.is_none());
        }
        if !by.starts_with(BY_DIRECTORY) {
            return Ok(false);
        }
        let history = self.inner.parts.deployments.history(&entry.deployment.plugin).await?;
        let brought = history.iter().find(|deployment| deployment.deployed_by == by);
        Ok(brought.is_some_and(|deployment| deployment.digest == digest))
    }

    async fn deploy_first(&self, candidate: Candidate, from: DeployFrom) -> Result<(), ControlError> {
        let parts = &self.inner.parts;
        let Candidate { factory, component, by } = candidate;
        let manifest = factory.manifest().clone();
        let settings = parts.settings.get(&manifest.name).cloned().unwrap_or_default();
        let lanes = settings.lanes.unwrap_or(parts.processors.lanes).clamp(1, LANES_MAX);
        let proved = prove_at_rest(&parts.engine, &factory, lanes).await;
        proved.map_err(|error| refused(&factory, error))?;
        parts.tables.declare(&manifest.name, &manifest.tables).await?;
        self.keep(component).await?;
        let deployment = Deployment {
            plugin: manifest.name.clone(),
            version: manifest.version.to_string(),
            digest: factory.digest().to_owned(),
            paused: false,
            lanes,
            from: match from {
                DeployFrom::Oldest => StartFrom::Oldest,
                DeployFrom::Tail => StartFrom::After(parts.engine.log.bounds().newest.0),
                DeployFrom::After(position) => StartFrom::After(position),
            },
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

    async fn deploy_over(&self, entry: Entry, candidate: Candidate) -> Result<(), ControlError> {
        same_key(&entry, &candidate.factory)?;
        let deployment = Deployment {
            version: candidate.factory.manifest().version.to_string(),
            digest: candidate.factory.digest().to_owned(),
            deployed_at: self.inner.parts.engine.clock.now().0,
            deployed_by: candidate.by.clone(),
            ..entry.deployment.clone()
        };
        let runs = |runner: &&Runner| runner.status().failures.is_empty();
        let running = entry.runner.as_ref().filter(runs).cloned();
        let manifest = candidate.factory.manifest().clone();
        let runner = match running {
            Some(runner) => Some(self.swap(runner, candidate, &deployment).await?),
            None => self.replace(&entry, candidate, &deployment).await?,
        };
        info!(plugin.name = manifest.name, plugin.version = %manifest.version, "plugin version took over");
        let name = manifest.name.clone();
        let entry = Entry { deployment, manifest: Some(manifest), runner, failure: None, last_refusal: None };
        self.entries().insert(name, entry);
        Ok(())
    }

    /// Lets the running version hand over.
    async fn swap(
        &self,
        runner: Runner,
        candidate: Candidate,
        deployment: &Deployment,
    ) -> Result<Runner, ControlError> {
        let factory = candidate.factory;
        runner.prove(&factory).await.map_err(|error| refused(&factory, error))?;
        self.prepare(&factory, candidate.component).await?;
        let old = runner.factory();
        runner.swap(Arc::clone(&factory)).await.map_err(|error| refused(&factory, error))?;
        if let Err(error) = self.inner.parts.deployments.put(deployment.clone()).await {
            // What is not written down would be another version after a restart.
            if let Err(stays) = runner.swap(old).await {
                warn!(plugin.name = deployment.plugin, error.kind = "swap_failed", error.blame = "guest", error = %stays, "plugin could not go back to the old version");
            }
            return Err(error.into());
        }
        if !runner.status().failures.is_empty() {
            // A tenant's run had ended before it could hand over.
            runner.stop(DRAIN_MAX).await;
            return Ok(self.run(factory, deployment));
        }
        Ok(runner)
    }

    /// Takes the place of what does not run: paused, failed, or not started.
    async fn replace(
        &self,
        entry: &Entry,
        candidate: Candidate,
        deployment: &Deployment,
    ) -> Result<Option<Runner>, ControlError> {
        let parts = &self.inner.parts;
        let factory = candidate.factory;
        if let Some(runner) = &entry.runner {
            // Of several tenants, some may still run.
            runner.stop(DRAIN_MAX).await;
        }
        let replaced = async {
            let proved = prove_at_rest(&parts.engine, &factory, deployment.lanes).await;
            proved.map_err(|error| refused(&factory, error))?;
            self.prepare(&factory, candidate.component).await?;
            Ok::<_, ControlError>(parts.deployments.put(deployment.clone()).await?)
        };
        if let Err(error) = replaced.await {
            let again = entry.runner.as_ref().map(|runner| self.run(runner.factory(), &entry.deployment));
            if let Some(entry) = self.entries().get_mut(&deployment.plugin) {
                entry.runner = again;
            }
            return Err(error);
        }
        Ok(if deployment.paused { None } else { Some(self.run(factory, deployment)) })
    }

    /// What a candidate needs, once it has proved itself: its tables, and bytes to start from.
    async fn prepare(
        &self,
        factory: &Arc<dyn ProcessorFactory>,
        component: bytes::Bytes,
    ) -> Result<(), ControlError> {
        let manifest = factory.manifest();
        self.inner.parts.tables.declare(&manifest.name, &manifest.tables).await?;
        Ok(self.keep(component).await?)
    }

    async fn keep(&self, component: bytes::Bytes) -> Result<(), PluginError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        blocking(move || artifacts.put(&component)).await.map(|_| ())
    }

    fn refusal(&self, error: &ControlError, candidate: String) -> Refusal {
        let at = self.inner.parts.engine.clock.now().0;
        Refusal {
            at,
            candidate,
            code: error.code().into(),
            blame: error.blame().as_str().into(),
            message: error.to_string(),
        }
    }

    /// A component that did not come as far as its name: it was meant for the
    /// plugin that the caller named, or that its file had brought before.
    fn refuse_unnamed(&self, expected_name: Option<&str>, by: &str, error: &ControlError) {
        let brought = || {
            let entries = self.entries();
            let mut brought = entries.iter().filter(|(_, entry)| entry.deployment.deployed_by == by);
            brought.next().map(|(name, _)| name.clone())
        };
        let meant = match expected_name {
            Some(name) => Some(name.to_owned()),
            None if by.starts_with(BY_DIRECTORY) => brought(),
            None => None,
        };
        if let Some(plugin) = meant {
            self.refuse(&plugin, self.refusal(error, by.to_owned()));
        }
    }

    /// Remembers that a candidate did not take over, for the plugin's status.
    fn refuse(&self, plugin: &str, refusal: Refusal) {
        if let Some(entry) = self.entries().get_mut(plugin) {
            entry.last_refusal = Some(refusal);
        }
    }
}

/// Lanes hold what their keys have brought: another key would send events to lanes without their state.
fn same_key(entry: &Entry, factory: &Arc<dyn ProcessorFactory>) -> Result<(), ControlError> {
    let manifest = factory.manifest();
    match entry.manifest.as_ref().filter(|old| old.ordering_key != manifest.ordering_key) {
        None => Ok(()),
        Some(old) => Err(ControlError::SwapFailed {
            version: manifest.version.to_string(),
            detail: format!(
                "its ordering key is {:?}, the running version's is {:?}; another key needs a rebuild: remove the plugin and deploy it again",
                manifest.ordering_key, old.ordering_key
            ),
        }),
    }
}

fn refused(factory: &Arc<dyn ProcessorFactory>, error: SwapError) -> ControlError {
    let version = factory.manifest().version.to_string();
    let task = error.task.to_string();
    match error.source {
        LoadError::Refused { message } => ControlError::StateRefused { version, task, detail: message },
        LoadError::StateTooLarge { bytes, max } => ControlError::StateTooLarge { version, task, bytes, max },
        trap => ControlError::SwapFailed { version, detail: format!("loading task {task}: {trap}") },
    }
}
