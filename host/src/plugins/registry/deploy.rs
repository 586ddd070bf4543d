//! Deploying: a first version, or one over another. The candidate proves
//! itself before anything is changed, and what ran before it goes on unless
//! it has taken over.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Entry, Progress, Registry, blocking};
use crate::error::Classify as _;
use crate::limits::{DRAIN_MAX, LANES_MAX};
use crate::plugins::watch::BY_DIRECTORY;
use crate::plugins::{
    Candidate, CandidateState, ControlError, DeployFrom, DeployOptions, DeployRequest, DeployStep,
    Deployment, PluginError, PluginSettings, PluginStatus, Proof, Refusal, StartFrom,
};
use crate::processors::{
    LoadError, Manifest, ProcessorFactory, Runner, ShadowFault, ShadowReport, SwapError, Trap, TrapKind,
    prove_at_rest,
};
use crate::streams::StreamError;

/// A version that wants to run.
pub(super) struct Attempt {
    pub(super) factory: Arc<dyn ProcessorFactory>,
    pub(super) component: bytes::Bytes,
    pub(super) by: String,
    pub(super) options: DeployOptions,
    pub(super) settings: Option<PluginSettings>,
    /// What its shadow run found.
    pub(super) report: Option<ShadowReport>,
    pub(super) progress: Progress,
}

impl Attempt {
    pub(super) fn candidate(&self, at: i64, state: CandidateState, refusal: Option<Refusal>) -> Candidate {
        let manifest = self.factory.manifest();
        Candidate {
            name: format!("{} {}", manifest.name, manifest.version),
            digest: self.factory.digest().to_owned(),
            by: self.by.clone(),
            at,
            state,
            refusal,
            report: self.report.clone(),
        }
    }

    fn proof(&self) -> Proof {
        match &self.report {
            _ if self.options.no_shadow => Proof::LoadedOnly,
            Some(report) => Proof::Shadowed { events: report.events },
            None => Proof::Loaded,
        }
    }
}

impl Registry {
    pub(super) async fn deploy_now(&self, request: DeployRequest) -> Result<PluginStatus, ControlError> {
        // Also before it is compiled, which takes its time.
        self.has_started()?;
        let DeployRequest {
            component,
            expected_name,
            expected_build,
            from,
            by,
            options,
            paused,
            settings,
            progress,
        } = request;
        let progress = Progress(progress);
        // Nothing is compiled or remembered for a plugin that cannot be changed.
        expected_name.as_deref().map_or(Ok(()), |name| self.may_change(name))?;
        let factory = match self.load(component.clone(), settings.clone(), progress.clone()).await {
            Ok(factory) => factory,
            Err(error) => {
                let error = ControlError::from(error);
                self.refuse_unnamed(expected_name.as_deref(), &by, &error).await;
                return Err(error);
            }
        };
        let name = factory.manifest().name.clone();
        if let Some(expected) = expected_name.filter(|expected| *expected != name) {
            let error = ControlError::OtherName { expected: expected.clone(), found: name };
            self.refuse_unnamed(Some(&expected), &by, &error).await;
            return Err(error);
        }
        self.may_change(&name)?;
        let version = factory.manifest().version.to_string();
        if let Err(error) = expected_build.map_or(Ok(()), |build| build.check(&version, factory.world())) {
            self.refuse_unnamed(Some(&name), &by, &error).await;
            return Err(error);
        }
        progress.tell(DeployStep::Validated);
        let deploying = self.begin_deploy(&name)?;
        let _turn = self.turn(&name).await?;
        let before = self.entries().get(&name).cloned();
        if let Some(entry) = &before {
            if self.changes_nothing(entry, &factory, settings.as_ref(), &by).await? {
                if entry.deployment.digest == factory.digest() {
                    // It may have been lost since, and an idle plugin is loaded from it.
                    self.keep(component).await?;
                }
                tell_active(&progress, &entry.deployment);
                return Ok(PluginStatus { nothing_changed: true, ..self.status(&name).await? });
            }
            self.not_rebuilding(&name)?;
            if let Some(waiting) = &entry.waiting {
                let version = waiting.factory.manifest().version.to_string();
                return Err(ControlError::CandidateWaits { plugin: name, version });
            }
        }
        let mut attempt = Attempt { factory, component, by, options, settings, report: None, progress };
        match before {
            None => self.deploy_first(attempt, from, paused).await?,
            Some(entry) => {
                if let Err(error) = self.try_in_shadow(&entry, &mut attempt, &deploying.cancel).await {
                    self.refuse(&name, &attempt, &error).await;
                    return Err(error);
                }
                if attempt.options.confirm && attempt.report.is_some() {
                    self.let_wait(&name, attempt).await;
                } else {
                    self.take_over(entry, attempt).await?;
                }
            }
        }
        self.status(&name).await
    }

    /// Everything that a candidate has to show beside a version that runs. Changes nothing.
    async fn try_in_shadow(
        &self,
        entry: &Entry,
        attempt: &mut Attempt,
        cancel: &CancellationToken,
    ) -> Result<(), ControlError> {
        let parts = &self.inner.parts;
        same_key(entry, &attempt.factory)?;
        let manifest = attempt.factory.manifest();
        let Some(runner) = running(entry) else { return Ok(()) };
        runner.prove(&attempt.factory).await.map_err(|error| refused(&attempt.factory, error))?;
        parts.tables.check(&manifest.name, &manifest.tables)?;
        self.check_scopes(manifest)?;
        let settings = attempt.options.shadow(&parts.processors.shadow);
        if settings.events == 0 {
            return Ok(());
        }
        if let Some(entry) = self.entries().get_mut(&manifest.name) {
            entry.last = Some(attempt.candidate(self.now(), CandidateState::InShadow, None));
        }
        attempt.progress.tell(DeployStep::Shadow);
        let outcome = runner.shadow(&attempt.factory, &settings, cancel).await;
        attempt.report = Some(outcome.report);
        match outcome.refusal {
            None => Ok(()),
            Some(refusal) => Err(ControlError::Shadow { version: manifest.version.to_string(), refusal }),
        }
    }

    /// Whether these bytes run already with these settings, or are what a watched file had brought
    /// before somebody else deployed over it: a start of the host must not go back to them.
    async fn changes_nothing(
        &self,
        entry: &Entry,
        factory: &Arc<dyn ProcessorFactory>,
        settings: Option<&PluginSettings>,
        by: &str,
    ) -> Result<bool, ControlError> {
        let digest = factory.digest();
        if entry.deployment.digest == digest && entry.deployment.settings.as_ref() == settings {
            return Ok(entry.failure.is_none());
        }
        if !by.starts_with(BY_DIRECTORY) {
            return Ok(false);
        }
        let history = self.inner.parts.deployments.history(&entry.deployment.plugin).await?;
        let brought = history.iter().find(|deployment| deployment.deployed_by == by);
        Ok(brought.is_some_and(|deployment| deployment.digest == digest))
    }

    async fn deploy_first(
        &self,
        attempt: Attempt,
        from: DeployFrom,
        paused: bool,
    ) -> Result<(), ControlError> {
        let parts = &self.inner.parts;
        let Attempt { factory, component, by, settings, progress, .. } = attempt;
        let manifest = factory.manifest().clone();
        let lanes = self.settings(&manifest.name, settings.as_ref()).lanes;
        let lanes = lanes.unwrap_or(parts.processors.lanes).clamp(1, LANES_MAX);
        let proved = prove_at_rest(&parts.engine, &factory, lanes).await;
        proved.map_err(|error| refused(&factory, error))?;
        self.check_scopes(&manifest)?;
        parts.tables.declare(&manifest.name, &manifest.tables).await?;
        self.keep(component).await?;
        parts.engine.log.declare_scopes(&manifest.name, &manifest.changes).await?;
        let deployment = Deployment {
            plugin: manifest.name.clone(),
            version: manifest.version.to_string(),
            digest: factory.digest().to_owned(),
            paused,
            lanes,
            from: match from {
                DeployFrom::Oldest => StartFrom::Oldest,
                DeployFrom::Tail => StartFrom::After(parts.engine.log.bounds().newest.0),
                DeployFrom::After(position) => StartFrom::After(position),
            },
            deployed_at: self.now(),
            deployed_by: by,
            ordering_key: Some(manifest.ordering_key.clone()),
            proof: Proof::Loaded,
            rollback: false,
            settings,
        };
        parts.deployments.put(deployment.clone()).await?;
        info!(plugin.name = manifest.name, plugin.version = %manifest.version, "plugin deployed");
        let runner = if paused { None } else { Some(self.run(factory, &deployment)) };
        tell_active(&progress, &deployment);
        let name = manifest.name.clone();
        let manifest = Some(manifest);
        let entry = Entry { deployment, manifest, runner, failure: None, last: None, waiting: None };
        self.entries().insert(name, entry);
        Ok(())
    }

    /// A candidate that has proved itself takes over. What goes wrong is remembered.
    pub(super) async fn take_over(&self, entry: Entry, attempt: Attempt) -> Result<(), ControlError> {
        let manifest = attempt.factory.manifest().clone();
        let name = manifest.name.clone();
        let deployment = Deployment {
            version: manifest.version.to_string(),
            digest: attempt.factory.digest().to_owned(),
            deployed_at: self.now(),
            deployed_by: attempt.by.clone(),
            ordering_key: Some(manifest.ordering_key.clone()),
            proof: attempt.proof(),
            rollback: attempt.options.rollback,
            settings: attempt.settings.clone(),
            ..entry.deployment.clone()
        };
        let swapped = match running(&entry) {
            Some(runner) => self.swap(&entry, runner, &attempt, &deployment).await.map(Some),
            None => self.replace(&entry, &attempt, &deployment).await,
        };
        let runner = match swapped {
            Ok(runner) => runner,
            Err(error) => {
                self.restore_scopes(&entry).await;
                self.refuse(&name, &attempt, &error).await;
                return Err(error);
            }
        };
        info!(plugin.name = manifest.name, plugin.version = %manifest.version, "plugin version took over");
        tell_active(&attempt.progress, &deployment);
        let manifest = Some(manifest);
        let entry = Entry { deployment, manifest, runner, failure: None, last: None, waiting: None };
        self.entries().insert(name.clone(), entry);
        self.remember(&name, attempt.candidate(self.now(), CandidateState::TookOver, None)).await;
        Ok(())
    }

    /// Lets the running version hand over.
    async fn swap(
        &self,
        entry: &Entry,
        runner: Runner,
        attempt: &Attempt,
        deployment: &Deployment,
    ) -> Result<Runner, ControlError> {
        let factory = &attempt.factory;
        if attempt.options.confirm {
            // It has waited, and the state has moved on.
            runner.prove(factory).await.map_err(|error| refused(factory, error))?;
        }
        self.prepare(factory, attempt.component.clone()).await?;
        // Written down first: what it commits, a host that is killed now must not hand to the old version.
        let deployments = &self.inner.parts.deployments;
        deployments.put(deployment.clone()).await?;
        if let Err(error) = runner.swap(Arc::clone(factory)).await {
            if let Err(stays) = deployments.withdraw(&deployment.plugin).await {
                warn!(plugin.name = deployment.plugin, error.kind = stays.code(), error.blame = "host", error = %stays, "a version that was refused runs after the next start");
            }
            return Err(refused(factory, error));
        }
        let goes_on_as_before = self.policies(&entry.deployment) == self.policies(deployment);
        if !runner.status().failures.is_empty() || !goes_on_as_before {
            // A tenant's run had ended before it could hand over, or a run cannot change to what is asked for.
            runner.stop(DRAIN_MAX).await;
            return Ok(self.run(Arc::clone(factory), deployment));
        }
        Ok(runner)
    }

    /// Takes the place of what does not run: paused, failed, or not started.
    async fn replace(
        &self,
        entry: &Entry,
        attempt: &Attempt,
        deployment: &Deployment,
    ) -> Result<Option<Runner>, ControlError> {
        let parts = &self.inner.parts;
        let factory = &attempt.factory;
        if let Some(runner) = &entry.runner {
            // Of several tenants, some may still run.
            runner.stop(DRAIN_MAX).await;
        }
        let replaced = async {
            let proved = prove_at_rest(&parts.engine, factory, deployment.lanes).await;
            proved.map_err(|error| refused(factory, error))?;
            self.prepare(factory, attempt.component.clone()).await?;
            Ok::<_, ControlError>(parts.deployments.put(deployment.clone()).await?)
        };
        if let Err(error) = replaced.await {
            let again = entry.runner.as_ref().map(|runner| self.run(runner.factory(), &entry.deployment));
            if let Some(entry) = self.entries().get_mut(&deployment.plugin) {
                entry.runner = again;
            }
            return Err(error);
        }
        Ok(if deployment.paused { None } else { Some(self.run(Arc::clone(factory), deployment)) })
    }

    /// What a candidate needs, once it has proved itself: its tables, its change scopes, and bytes to start from.
    async fn prepare(
        &self,
        factory: &Arc<dyn ProcessorFactory>,
        component: bytes::Bytes,
    ) -> Result<(), ControlError> {
        let (parts, manifest) = (&self.inner.parts, factory.manifest());
        self.check_scopes(manifest)?;
        parts.tables.declare(&manifest.name, &manifest.tables).await?;
        self.keep(component).await?;
        Ok(parts.engine.log.declare_scopes(&manifest.name, &manifest.changes).await?)
    }

    /// Whether no other plugin declares other scopes for an aggregate. Changes nothing.
    pub(super) fn check_scopes(&self, manifest: &Manifest) -> Result<(), StreamError> {
        let scopes = self.inner.parts.engine.log.scopes();
        Ok(scopes.check(&manifest.name, &manifest.changes)?)
    }

    /// After a candidate that did not take over: what runs has declared what stands again.
    pub(super) async fn restore_scopes(&self, entry: &Entry) {
        let Some(manifest) = &entry.manifest else { return };
        let log = &self.inner.parts.engine.log;
        if let Err(error) = log.declare_scopes(&manifest.name, &manifest.changes).await {
            warn!(plugin.name = manifest.name, error.kind = error.code(), error.blame = "host", %error, "the change scopes of a version that was refused stay until the next start");
        }
    }

    pub(super) async fn keep(&self, component: bytes::Bytes) -> Result<(), PluginError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        blocking(move || artifacts.put(&component)).await.map(|_| ())
    }

    /// A component that did not come as far as its name: it was meant for the
    /// plugin that the caller named, or that its file had brought before.
    async fn refuse_unnamed(&self, expected_name: Option<&str>, by: &str, error: &ControlError) {
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
        let Some(plugin) = meant else { return };
        if self.entries().get(&plugin).is_some_and(|entry| entry.waiting.is_some()) {
            // The one that waits is still there to be confirmed.
            return;
        }
        let candidate = Candidate {
            name: by.to_owned(),
            digest: String::new(),
            by: by.to_owned(),
            at: self.now(),
            state: CandidateState::Refused,
            refusal: Some(self.refusal(error, by.to_owned())),
            report: None,
        };
        self.remember(&plugin, candidate).await;
    }

    /// Remembers that a candidate did not take over, for the plugin's status.
    async fn refuse(&self, plugin: &str, attempt: &Attempt, error: &ControlError) {
        let stopped = matches!(
            error,
            ControlError::Shadow { refusal, .. } if refusal.fault == ShadowFault::Stopped
        );
        let state = if stopped { CandidateState::Abandoned } else { CandidateState::Refused };
        let mut candidate = attempt.candidate(self.now(), state, None);
        candidate.refusal = Some(self.refusal(error, candidate.name.clone()));
        self.remember(plugin, candidate).await;
    }
}

fn tell_active(progress: &Progress, deployment: &Deployment) {
    if !deployment.paused {
        progress.tell(DeployStep::Active);
    }
}

/// What runs for all of its tenants.
pub(super) fn running(entry: &Entry) -> Option<Runner> {
    entry.runner.clone().filter(|runner| runner.status().failures.is_empty())
}

/// Lanes hold what their keys have brought: another key would send events to lanes without their state.
fn same_key(entry: &Entry, factory: &Arc<dyn ProcessorFactory>) -> Result<(), ControlError> {
    let manifest = factory.manifest();
    // A version that cannot be loaded any more has left its key in its deployment.
    let written = entry.deployment.ordering_key.as_ref();
    let old = written.or(entry.manifest.as_ref().map(|old| &old.ordering_key));
    match old.filter(|old| **old != manifest.ordering_key) {
        None => Ok(()),
        Some(old) => Err(ControlError::SwapFailed {
            version: manifest.version.to_string(),
            detail: format!(
                "its ordering key is {:?}, the running version's is {old:?}; another key needs a rebuild: `millrace plugin rebuild`",
                manifest.ordering_key
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
        LoadError::Trap(Trap { kind: TrapKind::Limit, message, .. }) => {
            ControlError::LoadLimit { version, task, detail: message }
        }
        trap => ControlError::SwapFailed { version, detail: format!("loading task {task}: {trap}") },
    }
}
