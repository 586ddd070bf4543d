//! What a plugin's status says.

use super::Registry;
use crate::plugins::{
    CandidateState, ControlError, PluginCounters, PluginState, PluginStatus, TaskStatus, TenantFailure,
};
use crate::processors::Runner;

impl Registry {
    pub(super) async fn status(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let entry = self.entry(plugin)?;
        let refused = entry.last.as_ref().filter(|last| last.state == CandidateState::Refused);
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
            last_refusal: refused.and_then(|last| last.refusal.clone()),
            candidate: entry.last,
            nothing_changed: false,
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
}
