//! What a plugin's status says.

use super::Registry;
use crate::checkpoints::TaskRow;
use crate::event::{Position, TenantId};
use crate::plugins::{ControlError, PluginCounters, PluginState, PluginStatus, TaskStatus, TenantFailure};
use crate::processors::{Exposed, Measures, Runner, exposition, lag_seconds};

impl Registry {
    pub(super) async fn status(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
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
            measures: Measures::at_rest(&self.counters(plugin)),
            last_refusal: entry.last_refusal,
        };
        match (entry.runner, entry.failure) {
            (_, Some(message)) => {
                status.state = PluginState::Failed;
                status.message = message;
            }
            (Some(runner), None) => self.show_running(&runner, &mut status).await,
            (None, None) => self.show_paused(plugin, &mut status).await?,
        }
        Ok(status)
    }

    async fn show_running(&self, runner: &Runner, status: &mut PluginStatus) {
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
        status.measures = running.measures;
        status.measures.lag_seconds = self.lag_seconds(running.behind).await;
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
        status.measures.lag_seconds = self.lag_seconds(positions(&tasks)).await;
        status.measures.checkpoint_bytes = tasks.iter().map(|row| row.state_bytes).sum();
        let now = self.inner.parts.engine.clock.now().0;
        let oldest = tasks.iter().map(|row| now.saturating_sub(row.at.0).max(0)).max();
        status.measures.checkpoint_age_seconds = oldest.unwrap_or(0) as f64 / 1e6;
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

    async fn lag_seconds(&self, behind: Vec<(TenantId, Position)>) -> f64 {
        let engine = &self.inner.parts.engine;
        lag_seconds(&*engine.log, &*engine.clock, behind).await
    }

    /// What `/metrics` says of all plugins.
    pub(super) async fn exposition(&self) -> String {
        let names: Vec<String> = self.entries().keys().cloned().collect();
        let mut exposed = Vec::new();
        for plugin in names {
            // Removed in the meantime, or the store cannot be read: it has said so.
            let Ok(status) = self.status(&plugin).await else { continue };
            exposed.push(Exposed {
                counters: self.counters(&plugin),
                plugin,
                version: status.deployment.version,
                lag_events: status.lag_events,
                measures: status.measures,
            });
        }
        exposition(&exposed)
    }
}

/// Up to where each tenant's tasks are done.
fn positions(tasks: &[TaskRow]) -> Vec<(TenantId, Position)> {
    let mut positions: Vec<(TenantId, Position)> = Vec::new();
    for row in tasks {
        match positions.iter_mut().find(|(tenant, _)| *tenant == row.task.tenant) {
            Some((_, position)) => *position = row.position.min(*position),
            None => positions.push((row.task.tenant.clone(), row.position)),
        }
    }
    positions
}
