//! Pausing, resuming and removing.

use tracing::{info, warn};

use super::Registry;
use crate::error::Classify as _;
use crate::limits::DRAIN_MAX;
use crate::plugins::{ControlError, PluginStatus};

impl Registry {
    pub(super) async fn pause_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        self.end_shadows(Some(plugin));
        let _turn = self.turn(plugin).await?;
        let mut entry = self.entry(plugin)?;
        self.lose_candidate(plugin, &mut entry, "the plugin was paused").await;
        if !entry.deployment.paused {
            entry.deployment.paused = true;
            self.inner.parts.deployments.put(entry.deployment.clone()).await?;
            if let Some(runner) = entry.runner.take() {
                runner.stop(DRAIN_MAX).await;
            }
        }
        self.entries().insert(plugin.into(), entry);
        self.status(plugin).await
    }

    /// Also starts a plugin again that had stopped by itself.
    pub(super) async fn resume_now(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        self.end_shadows(Some(plugin));
        let _turn = self.turn(plugin).await?;
        let mut entry = self.entry(plugin)?;
        let failed = entry.runner.as_ref().is_some_and(|runner| !runner.status().failures.is_empty());
        if entry.runner.is_none() || failed {
            let factory = self.load_deployed(&entry.deployment).await?;
            if entry.deployment.paused {
                entry.deployment.paused = false;
                self.inner.parts.deployments.put(entry.deployment.clone()).await?;
            }
            if let Some(runner) = entry.runner.take() {
                runner.stop(DRAIN_MAX).await;
            }
            entry.failure = None;
            entry.manifest = Some(factory.manifest().clone());
            entry.runner = Some(self.run(factory, &entry.deployment));
            self.entries().insert(plugin.into(), entry);
        }
        self.status(plugin).await
    }

    pub(super) async fn remove_now(&self, plugin: &str) -> Result<(), ControlError> {
        self.end_shadows(Some(plugin));
        let _turn = self.turn(plugin).await?;
        let mut entry = self.entry(plugin)?;
        if let Some(rebuilding) = self.open_rebuild(plugin) {
            self.end_rebuild(&rebuilding, "the plugin was removed").await?;
        }
        // While this host owns it: the next owner declares them again.
        self.withdraw_scopes(plugin).await;
        if let Some(runner) = &entry.runner {
            runner.stop(DRAIN_MAX).await;
        }
        if let Err(error) = self.inner.parts.deployments.remove(plugin).await {
            // It is still there, so it goes on.
            self.restore_scopes(&entry).await;
            entry.runner = entry.runner.map(|runner| self.run(runner.factory(), &entry.deployment));
            self.entries().insert(plugin.into(), entry);
            return Err(error.into());
        }
        self.entries().remove(plugin);
        self.forget_counters(plugin);
        self.rebuilds().remove(plugin);
        info!(plugin.name = plugin, "plugin removed");
        Ok(())
    }

    /// Ends the change streams of a plugin, unless another host runs it.
    async fn withdraw_scopes(&self, plugin: &str) {
        let engine = &self.inner.parts.engine;
        if let Some(shared_log) = &engine.shared_log
            && shared_log.owners.is_elsewhere(plugin).await
        {
            return;
        }
        if let Err(error) = engine.log.declare_scopes(plugin, &[]).await {
            warn!(plugin.name = plugin, error.kind = error.code(), error.blame = "host", %error, "the change scopes of a removed plugin stay");
        }
    }
}
