//! What a plugin's status says.

use super::Registry;
use crate::checkpoints::TaskRow;
use crate::event::{Position, TenantId};
use crate::plugins::{
    CandidateState, ControlError, PluginCounters, PluginState, PluginStatus, TaskStatus, TaskWarning,
    TenantFailure,
};
use crate::processors::{BreakerState, Exposed, Measures, Runner, exposition, lag_seconds};

impl Registry {
    /// With the dead letters, which are the store's.
    pub(super) async fn status(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let mut status = self.status_at_hand(plugin).await?;
        let tasks = self.inner.parts.engine.checkpoints.tasks(Some(plugin)).await?;
        count_letters(&mut status, &tasks);
        Ok(status)
    }

    /// The same of all plugins, with one look into the store.
    pub(super) async fn statuses(&self) -> Result<Vec<PluginStatus>, ControlError> {
        let names: Vec<String> = self.entries().keys().cloned().collect();
        let tasks = self.inner.parts.engine.checkpoints.tasks(None).await?;
        let mut all = Vec::new();
        for name in names {
            match self.status_at_hand(&name).await {
                // Removed in the meantime.
                Err(ControlError::Unknown { .. }) => {}
                status => {
                    let mut status = status?;
                    count_letters(&mut status, &tasks);
                    all.push(status);
                }
            }
        }
        Ok(all)
    }

    async fn status_at_hand(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        let entry = self.entry(plugin)?;
        let settings = self.settings(plugin, entry.deployment.settings.as_ref());
        let wanted = entry.manifest.as_ref().map(|manifest| manifest.grants.clone()).unwrap_or_default();
        let refused = entry.last.as_ref().filter(|last| last.state == CandidateState::Refused);
        let mut status = PluginStatus {
            name: plugin.to_owned(),
            state: if entry.deployment.paused { PluginState::Paused } else { PluginState::Starting },
            message: String::new(),
            tenant_failures: Vec::new(),
            deployment: entry.deployment,
            manifest: entry.manifest,
            grants: settings.grant_status(&wanted),
            lag_events: 0,
            tasks: Vec::new(),
            warnings: Vec::new(),
            counters: PluginCounters::default(),
            measures: Measures::at_rest(&self.counters(plugin)),
            last_refusal: refused.and_then(|last| last.refusal.clone()),
            candidate: entry.last,
            nothing_changed: false,
        };
        match (entry.runner, entry.failure) {
            (_, Some(failure)) => {
                status.state = PluginState::Failed;
                status.message = failure.message;
            }
            (Some(runner), None) => {
                self.show_running(&runner, &mut status).await;
                status.warnings = warnings(&status, runner.factory().state_bytes_max());
            }
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
        let tasks = running.tasks.into_iter().map(|task| TaskStatus {
            tenant: task.task.tenant.to_string(),
            lane: task.task.lane,
            position: task.done_through.0,
            state_bytes: task.state_bytes,
            parked_events: task.parked_events,
            held_keys: task.held_keys,
            dead_letters: 0,
            breaker: task.breaker,
            blocked: task.blocked,
            last_refused: task.last_refused,
        });
        status.tasks = tasks.collect();
        let blocked = status.tasks.iter().find_map(|task| {
            task.blocked.as_ref().map(|why| format!("tenant {}, lane {}: {why}", task.tenant, task.lane))
        });
        if let Some(why) = blocked.filter(|_| status.state == PluginState::Running) {
            status.state = PluginState::Blocked;
            status.message = why;
        }
        if let Some(holder) = running.standby {
            status.state = PluginState::Standby;
            status.message = format!("host {holder} runs it");
        }
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
            parked: counts.parkings,
            replayed: counts.replayed,
            dropped_appends: counts.dropped_appends,
            refused_flushes: counts.refused_flushes,
            breaker_openings: counts.breaker_openings,
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
        status.tasks = tasks.iter().map(at_rest).collect();
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
            let Ok(status) = self.status_at_hand(&plugin).await else { continue };
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

/// Fills in how many dead letters each task has. A task that is not at work now, since its plugin failed or no
/// event has come since the start, is told of where something waits.
fn count_letters(status: &mut PluginStatus, rows: &[TaskRow]) {
    for row in rows.iter().filter(|row| *row.task.processor == *status.name) {
        let of_row =
            |task: &&mut TaskStatus| task.tenant == row.task.tenant.as_str() && task.lane == row.task.lane;
        match status.tasks.iter_mut().find(of_row) {
            Some(task) => task.dead_letters = row.dead_letters,
            None if row.dead_letters + row.parked_events + row.held_keys > 0 => {
                status.tasks.push(at_rest(row));
            }
            None => {}
        }
    }
}

/// A task as it was committed last.
fn at_rest(row: &TaskRow) -> TaskStatus {
    TaskStatus {
        tenant: row.task.tenant.to_string(),
        lane: row.task.lane,
        position: row.position.0,
        state_bytes: row.state_bytes,
        parked_events: row.parked_events,
        held_keys: row.held_keys,
        dead_letters: row.dead_letters,
        breaker: BreakerState::Closed,
        blocked: None,
        last_refused: None,
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
