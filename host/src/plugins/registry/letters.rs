//! Dead letters: looking at them, deciding about them, and doing an event once more without any effect.

use std::sync::Arc;
use std::time::Instant;

use super::{Registry, blocking};
use crate::checkpoints::{DeadLetterRow, SavedState, TaskId};
use crate::event::{EventBatch, Position, TenantId};
use crate::limits::{DECISION_WAIT_MAX, PAGE_BYTES_MAX, PAGE_EVENTS_MAX, REPLAY_SEARCH_EVENTS_MAX};
use crate::plugins::{ControlError, ReplayReport, ReplayRequest, Scene};
use crate::processors::{ResolveError, Resolved, Verdict, context_at_rest, lane_of_event};
use crate::streams::PageLimit;

impl Registry {
    /// One dead letter; of one tenant where one is given.
    pub(super) async fn letter(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
    ) -> Result<DeadLetterRow, ControlError> {
        let checkpoints = &self.inner.parts.engine.checkpoints;
        let found = checkpoints.dead_letter(plugin, tenant, letter).await?;
        found.ok_or_else(|| ControlError::DeadLetterUnknown { plugin: plugin.to_owned(), letter: letter.0 })
    }

    pub(super) async fn decide(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
        verdict: Verdict,
    ) -> Result<Resolved, ControlError> {
        let entry = self.entry(plugin)?;
        let mut row = self.letter(plugin, tenant, letter).await?;
        let Some(runner) = entry.runner else {
            let state = if entry.deployment.paused { "is paused" } else { "does not run" };
            return Err(ControlError::NotRunning { plugin: plugin.to_owned(), state });
        };
        if !row.held {
            // It may be from before a rebuild, and then from another lane: its key has been in this one since.
            let factory = runner.factory();
            row.task.lane = lane_of_event(factory.manifest(), &row.event, entry.deployment.lanes);
        }
        // A run that was just started or resumed has its tasks a moment later.
        let wait_until = Instant::now() + DECISION_WAIT_MAX;
        loop {
            match runner.resolve(row.clone(), verdict).await {
                Err(ResolveError::NotRunning { .. })
                    if runner.status().failures.is_empty() && Instant::now() < wait_until =>
                {
                    tokio::time::sleep(DECISION_WAIT_MAX / 100).await;
                }
                decided => return Ok(decided?),
            }
        }
    }

    /// Handles an event once more in an instance of its own, from the task's committed state.
    pub(super) async fn replay_apart(&self, request: ReplayRequest) -> Result<ReplayReport, ControlError> {
        let parts = &self.inner.parts;
        let ReplayRequest { plugin, tenant, event } = request;
        let entry = self.entry(&plugin)?;
        let event = self.find_event(&plugin, &tenant, &event).await?;
        let factory = match &entry.runner {
            Some(runner) => runner.factory(),
            None => self.load_deployed(&entry.deployment).await?,
        };
        let lanes = entry.deployment.lanes;
        let task = TaskId {
            processor: plugin.as_str().into(),
            tenant: tenant.clone(),
            lane: lane_of_event(factory.manifest(), &event, lanes),
        };
        let saved = parts.engine.checkpoints.checkpoint(&task).await?.and_then(|found| found.saved);
        let context = context_at_rest(&parts.engine, &task, lanes);
        let settings = self.settings(&plugin, entry.deployment.settings.as_ref());
        let (artifacts, runtime) = (Arc::clone(&parts.artifacts), Arc::clone(&parts.runtime));
        let digest = entry.deployment.digest.clone();
        let (events, before) = (Arc::clone(&event), saved.clone());
        let autopsy = blocking(move || {
            let component = artifacts.get(&digest)?;
            let scene = Scene { context, saved: before.as_ref(), events: &events };
            runtime.autopsy(&component, &settings, &scene)
        })
        .await?;
        let state_before: Option<SavedState> = saved;
        Ok(ReplayReport { task, event, version: entry.deployment.version, state_before, autopsy })
    }

    /// An event by its position or id: among the dead letters, else in the log.
    async fn find_event(
        &self,
        plugin: &str,
        tenant: &TenantId,
        event: &str,
    ) -> Result<Arc<EventBatch>, ControlError> {
        let engine = &self.inner.parts.engine;
        let position = event.parse::<u64>().ok().map(Position);
        if let Some(position) = position {
            if let Some(letter) = engine.checkpoints.dead_letter(plugin, Some(tenant), position).await? {
                return Ok(letter.event);
            }
            let limit = PageLimit { events: 1, bytes: PAGE_BYTES_MAX };
            let after = Position(position.0.saturating_sub(1));
            let page = engine.log.read(tenant, after, limit).await?;
            if let Some(found) = pick(&page.events, |batch, index| batch.get(index).position == position) {
                return Ok(found);
            }
        }
        let limit = u32::try_from(PAGE_EVENTS_MAX).unwrap_or(u32::MAX);
        let letters = engine.checkpoints.dead_letters(plugin, Some(tenant), limit).await?;
        if let Some(letter) = letters.into_iter().find(|letter| letter.event.get(0).id == event) {
            return Ok(letter.event);
        }
        let bounds = engine.log.bounds();
        let mut after =
            bounds.trimmed.max(Position(bounds.newest.0.saturating_sub(REPLAY_SEARCH_EVENTS_MAX)));
        while after < bounds.newest {
            let limit = PageLimit { events: PAGE_EVENTS_MAX, bytes: PAGE_BYTES_MAX };
            let page = engine.log.read(tenant, after, limit).await?;
            if let Some(found) = pick(&page.events, |batch, index| batch.get(index).id == event) {
                return Ok(found);
            }
            if page.next <= after {
                break;
            }
            after = page.next;
        }
        let event = event.chars().take(80).collect();
        Err(ControlError::EventUnknown { event, searched: REPLAY_SEARCH_EVENTS_MAX })
    }
}

/// The event of a batch that is looked for, as a batch of its own.
fn pick(batch: &EventBatch, wanted: impl Fn(&EventBatch, usize) -> bool) -> Option<Arc<EventBatch>> {
    let index = (0..batch.len()).find(|index| wanted(batch, *index))?;
    let mut one = EventBatch::new(batch.tenant.clone());
    one.push_from(batch, index);
    Some(Arc::new(one))
}
