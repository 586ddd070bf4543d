//! What a plugin's status says.

use super::Registry;
use crate::plugins::{
    ControlError, PluginCounters, PluginState, PluginStatus, TaskStatus, TaskWarning, TenantFailure,
};
use crate::processors::{BreakerState, Runner};

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
            warnings: Vec::new(),
            counters: PluginCounters::default(),
            last_refusal: entry.last_refusal,
        };
        match (entry.runner, entry.failure) {
            (_, Some(message)) => {
                status.state = PluginState::Failed;
                status.message = message;
            }
            (Some(runner), None) => {
                self.show_running(&runner, &mut status);
                status.warnings = warnings(&status, runner.factory().state_bytes_max());
            }
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
        let tasks = running.tasks.into_iter().map(|task| TaskStatus {
            tenant: task.task.tenant.to_string(),
            lane: task.task.lane,
            position: task.done_through.0,
            state_bytes: task.state_bytes,
            parked_events: task.parked_events,
            held_keys: task.held_keys,
            breaker: task.breaker,
            blocked: task.blocked,
        });
        status.tasks = tasks.collect();
        let blocked = status.tasks.iter().find_map(|task| {
            task.blocked.as_ref().map(|why| format!("tenant {}, lane {}: {why}", task.tenant, task.lane))
        });
        if let Some(why) = blocked.filter(|_| status.state == PluginState::Running) {
            status.state = PluginState::Blocked;
            status.message = why;
        }
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
            parked: counts.parked,
            replayed: counts.replayed,
            breaker_openings: counts.breaker_openings,
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
            parked_events: 0,
            held_keys: 0,
            breaker: BreakerState::Closed,
            blocked: None,
        });
        status.tasks = tasks.collect();
        Ok(())
    }
}

/// What the sizes of saved states say.
fn warnings(status: &PluginStatus, state_bytes_max: usize) -> Vec<TaskWarning> {
    let stateless = status.manifest.as_ref().is_some_and(|manifest| manifest.state_content_type.is_none());
    let about = |task: &TaskStatus| {
        let bytes = task.state_bytes;
        let message = if stateless && bytes > 0 {
            format!(
                "this version keeps no state; the {bytes} bytes that an earlier one saved stay as they are, and lack what is handled meanwhile"
            )
        } else if bytes > state_bytes_max as u64 / 2 {
            format!(
                "the snapshot has {bytes} bytes, over half of guest_state_bytes_max = {state_bytes_max}, at which the processor stops: keep what grows in keyed state, or raise plugins.{}.state_bytes_max",
                status.name
            )
        } else {
            return None;
        };
        Some(TaskWarning { tenant: task.tenant.clone(), lane: task.lane, message })
    };
    status.tasks.iter().filter_map(about).collect()
}
