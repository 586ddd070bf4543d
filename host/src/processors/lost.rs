//! What becomes of a task whose next events are gone: retention has passed it, or the log is another one.

use std::sync::Arc;

use metrics::counter;
use tracing::warn;

use super::runner::Shared;
use crate::checkpoints::{Checkpoint, Commit, CommitError, Generation, ParkedWrites, TaskId};
use crate::event::Position;
use crate::telemetry::metrics as names;

/// What happens when events are gone that a task has not handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostPolicy {
    /// The processor stops for that tenant, and says so.
    #[default]
    Stop,
    /// It goes on at the oldest event that is kept, with its rows and state as they are.
    Oldest,
    /// It goes on behind the newest event, with its rows and state as they are.
    Tail,
    /// Its rows and state go, and it handles everything that is kept.
    Rebuild,
}

impl LostPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Oldest => "oldest",
            Self::Tail => "tail",
            Self::Rebuild => "rebuild",
        }
    }
}

/// Events are gone that a task has not handled, and it is to stop then.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "position_lost: lane {lane} has come to position {position}, and the oldest event that is kept is after {trimmed}; \
     set on_position_lost to oldest, tail or rebuild, or remove the plugin and deploy it again"
)]
pub(super) struct PositionsLost {
    lane: u32,
    position: Position,
    trimmed: Position,
}

/// What a claim answered.
type Claim = (Generation, Option<Checkpoint>);

/// Why a task cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum LostError {
    #[error(transparent)]
    Lost(#[from] PositionsLost),
    #[error(transparent)]
    Store(#[from] CommitError),
}

impl Shared {
    /// Puts a task that was just claimed to where events are kept, as its policy says.
    pub(super) async fn where_events_are_kept(&self, id: &TaskId, claim: Claim) -> Result<Claim, LostError> {
        let bounds = self.log.bounds();
        let (generation, checkpoint) = claim;
        let Some(checkpoint) = checkpoint else {
            let (position, trimmed) = (self.nothing_before(&id.tenant), bounds.trimmed);
            // What begins anew begins at the oldest event there is. A rebuild does not: some of its lanes may have
            // rows of what is gone.
            return match self.settings.background && position < trimmed {
                true => Err(PositionsLost { lane: id.lane, position, trimmed }.into()),
                false => Ok((generation, None)),
            };
        };
        let (position, trimmed) = (checkpoint.position, bounds.trimmed);
        if position >= trimmed {
            return Ok((generation, Some(checkpoint)));
        }
        let policy = self.settings.on_position_lost;
        counter!(names::POSITIONS_LOST, "plugin" => self.name.to_string(), "policy" => policy.as_str())
            .increment(1);
        warn!(
            task.id = %id,
            stream.position = position.0,
            trimmed = trimmed.0,
            policy = policy.as_str(),
            error.kind = "position_lost",
            error.blame = "host",
            "events are gone that the task may not have handled"
        );
        let to = match policy {
            LostPolicy::Stop => return Err(PositionsLost { lane: id.lane, position, trimmed }.into()),
            LostPolicy::Oldest | LostPolicy::Rebuild => trimmed,
            LostPolicy::Tail => bounds.newest.max(trimmed),
        };
        if policy == LostPolicy::Rebuild {
            self.checkpoints.forget(id, generation, to).await?;
        } else {
            self.checkpoints.commit(self.step_over(id, generation, to)).await?;
        }
        let revised = self.checkpoints.claim(id).await?;
        Ok(revised)
    }

    /// A commit of nothing but a position.
    fn step_over(&self, id: &TaskId, generation: Generation, position: Position) -> Commit {
        Commit {
            task: id.clone(),
            generation,
            position,
            passed_at: None,
            saved: None,
            effects: Vec::new(),
            tables: Arc::new([]),
            dead: Vec::new(),
            resolved: Vec::new(),
            parked: ParkedWrites::default(),
            at: self.clock.now(),
        }
    }
}
