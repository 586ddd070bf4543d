//! Candidates that wait, are confirmed or given up, and what is remembered of them.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::deploy::Attempt;
use super::{Caller, Entry, Progress, Registry, blocking};
use crate::error::{Blame, Classify};
use crate::limits::SHADOW_CONFIRM_MAX;
use crate::plugins::{
    Candidate, CandidateState, ControlError, DeployFrom, DeployOptions, DeployRequest, Deployment,
    PluginSettings, PluginStatus, Refusal,
};
use crate::processors::ProcessorFactory;

/// A candidate that has proved itself. It is kept in memory only.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) factory: Arc<dyn ProcessorFactory>,
    pub(super) component: Bytes,
    pub(super) options: DeployOptions,
    pub(super) settings: Option<PluginSettings>,
}

/// The right to deploy a plugin; one at a time.
#[derive(Debug)]
pub(super) struct Deploying<'a> {
    registry: &'a Registry,
    plugin: String,
    pub(super) cancel: CancellationToken,
}

impl Drop for Deploying<'_> {
    fn drop(&mut self) {
        self.registry.deploying().remove(&self.plugin);
    }
}

impl Registry {
    /// Refused while another version of the plugin is being deployed: that may take a minute.
    pub(super) fn begin_deploy(&self, plugin: &str) -> Result<Deploying<'_>, ControlError> {
        let mut deploying = self.deploying();
        if deploying.contains_key(plugin) {
            return Err(ControlError::DeployInProgress { plugin: plugin.into() });
        }
        let cancel = CancellationToken::new();
        deploying.insert(plugin.into(), cancel.clone());
        Ok(Deploying { registry: self, plugin: plugin.into(), cancel })
    }

    /// Ends the shadow run of a plugin, or all. Answers whether there was one that could be ended.
    pub(super) fn end_shadows(&self, plugin: Option<&str>) -> bool {
        let deploying = self.deploying();
        let mut meant = deploying.iter().filter(|(name, _)| plugin.is_none_or(|plugin| plugin == *name));
        meant.by_ref().fold(false, |_, (_, cancel)| {
            cancel.cancel();
            true
        })
    }

    fn deploying(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<String, CancellationToken>> {
        self.inner.deploying.lock().expect("no code panics while it holds the deploys")
    }

    /// Keeps a proved candidate until somebody confirms it.
    pub(super) async fn let_wait(&self, plugin: &str, attempt: Attempt) {
        let candidate = attempt.candidate(self.now(), CandidateState::Waiting, None);
        let since = candidate.at;
        if let Some(entry) = self.entries().get_mut(plugin) {
            let Attempt { factory, component, options, settings, .. } = attempt;
            entry.waiting = Some(Waiting { factory, component, options, settings });
        }
        self.remember(plugin, candidate).await;
        let (inner, plugin) = (Arc::downgrade(&self.inner), plugin.to_owned());
        self.inner.parts.engine.runtime.spawn(async move {
            tokio::time::sleep(SHADOW_CONFIRM_MAX).await;
            let Some(registry) = inner.upgrade().map(|inner| Self { inner, caller: Caller::Local }) else {
                return;
            };
            let Ok(_turn) = registry.turn(&plugin).await else { return };
            let Ok(mut entry) = registry.entry(&plugin) else { return };
            if entry.waiting.is_some() && entry.last.as_ref().is_some_and(|last| last.at == since) {
                registry.lose_candidate(&plugin, &mut entry, "nobody confirmed it in time").await;
                registry.entries().insert(plugin, entry);
            }
        });
    }

    pub(super) async fn confirm_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let _deploying = self.begin_deploy(plugin)?;
        let _turn = self.turn(plugin).await?;
        let mut entry = self.entry(plugin)?;
        let (Some(waiting), Some(last)) = (entry.waiting.take(), entry.last.clone()) else {
            return Err(no_candidate(plugin, "waits to be confirmed"));
        };
        self.entries().insert(plugin.into(), entry.clone());
        let Waiting { factory, component, options, settings } = waiting;
        let (by, report, progress) = (last.by, last.report, Progress::default());
        let attempt = Attempt { factory, component, by, options, settings, report, progress };
        self.take_over(entry, attempt).await?;
        self.status(plugin).await
    }

    pub(super) async fn abandon_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let ended = self.end_shadows(Some(plugin));
        let _turn = self.turn(plugin).await?;
        let mut entry = self.entry(plugin)?;
        if entry.waiting.is_none() && !ended {
            return Err(no_candidate(plugin, "is in the shadow or waits to be confirmed"));
        }
        self.lose_candidate(plugin, &mut entry, "it was abandoned").await;
        self.entries().insert(plugin.into(), entry);
        self.status(plugin).await
    }

    pub(super) async fn rollback_now(
        &self,
        plugin: &str,
        to: Option<&str>,
        by: String,
        options: DeployOptions,
    ) -> Result<PluginStatus, ControlError> {
        let present = self.entry(plugin)?.deployment;
        let history = self.inner.parts.deployments.history(plugin).await?;
        let is_other = |d: &Deployment| d.digest != present.digest || d.settings != present.settings;
        let meant: Vec<_> = match to {
            None => history.iter().filter(|d| is_other(d)).collect(),
            Some(to) => history.iter().filter(|d| to == d.version || to == d.digest).collect(),
        };
        // The present version has a past of its own where it ran with other settings.
        let Some(earlier) = meant.iter().find(|d| is_other(d)).or(meant.first()) else {
            let known: Vec<_> = history.iter().map(|d| format!("{} ({})", d.version, d.digest)).collect();
            let asked = to.map_or_else(|| "of another version".into(), |to| format!("`{to}`"));
            return Err(ControlError::NoDeployment { plugin: plugin.into(), asked, known: known.join(", ") });
        };
        let (artifacts, digest) = (Arc::clone(&self.inner.parts.artifacts), earlier.digest.clone());
        let settings = earlier.settings.clone();
        let component = blocking(move || artifacts.get(&digest)).await?.into();
        let options = DeployOptions { rollback: true, ..options };
        let expected_name = Some(plugin.to_owned());
        let request = DeployRequest {
            component,
            expected_name,
            expected_build: None,
            from: DeployFrom::Oldest,
            by,
            options,
            paused: false,
            settings,
            progress: None,
        };
        self.deploy_now(request).await.map_err(|error| match error {
            ControlError::StateRefused { version, task, detail } => {
                let detail = format!(
                    "{detail}; the running version goes on. Pause the plugin if it must not, or deploy a version that loads the newest state"
                );
                ControlError::StateRefused { version, task, detail }
            }
            error => error,
        })
    }

    /// Drops a candidate that has not taken over, and says why.
    pub(super) async fn lose_candidate(&self, plugin: &str, entry: &mut Entry, why: &str) {
        entry.waiting = None;
        let Some(last) = entry.last.as_mut() else { return };
        if !matches!(last.state, CandidateState::Waiting | CandidateState::InShadow) {
            return;
        }
        info!(plugin.name = plugin, why, "candidate dropped");
        last.state = CandidateState::Abandoned;
        let (candidate, code) = (last.name.clone(), "candidate_abandoned".to_owned());
        last.refusal = Some(Refusal {
            at: self.now(),
            candidate,
            code,
            blame: Blame::Caller.as_str().into(),
            message: why.into(),
        });
        self.write_down(plugin, last.clone()).await;
    }

    /// Remembers what became of a candidate, for the plugin's status and over restarts.
    pub(super) async fn remember(&self, plugin: &str, candidate: Candidate) {
        match self.entries().get_mut(plugin) {
            Some(entry) => entry.last = Some(candidate.clone()),
            // Nothing is remembered of what never was a plugin.
            None => return,
        }
        self.write_down(plugin, candidate).await;
    }

    /// A failure to write is no reason to refuse or undo anything: the status of this start still tells.
    async fn write_down(&self, plugin: &str, candidate: Candidate) {
        if let Err(error) = self.inner.parts.deployments.put_candidate(plugin, candidate).await {
            warn!(plugin.name = plugin, error.kind = error.code(), error.blame = error.blame().as_str(), %error, "what became of a candidate could not be written down");
        }
    }

    pub(super) fn now(&self) -> i64 {
        self.inner.parts.engine.clock.now().0
    }

    pub(super) fn refusal(&self, error: &ControlError, candidate: String) -> Refusal {
        Refusal {
            at: self.now(),
            candidate,
            code: error.code().into(),
            blame: error.blame().as_str().into(),
            message: error.to_string(),
        }
    }
}

fn no_candidate(plugin: &str, wanted: &'static str) -> ControlError {
    ControlError::NoCandidate { plugin: plugin.into(), wanted }
}
