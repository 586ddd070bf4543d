//! Applying a commit: fence, rows, keyed state, emitted events, appended entries, dead
//! letters, snapshot and position, inside a savepoint of the group's transaction.

use rusqlite::OptionalExtension;

use super::committer::{Committer, Stop};
use super::database::{signed, unsigned};
use super::keyed_state::saved_state;
use super::letters;
use super::options::{CommitStep, LogPlace};
use super::request::Claimed;
use super::row_writes::TableRows;
use crate::checkpoints::{
    Checkpoint, Commit, CommitError, Committed, Dropped, EffectRef, EmitRef, Generation, TaskId,
};
use crate::event::{Event, EventBatch, Position, Revision};
use crate::streams::StreamError;

/// A task as it is stored.
pub(super) struct StoredTask {
    pub(super) number: i64,
    pub(super) generation: u64,
    position: u64,
    revision: u64,
}

pub(super) type CommitResult<T> = Result<T, Stop<CommitError>>;

/// What came of a commit.
struct Written {
    committed: Committed,
    /// Events that it wrote, in the order of their positions.
    events: Vec<EventBatch>,
    /// In tables that are watched.
    changed: Vec<TableRows>,
}

impl Committer {
    /// Gives a task to a new owner.
    pub(super) fn claim(&mut self, task: &TaskId) -> CommitResult<Claimed> {
        self.counters.generation += 1;
        let generation = self.counters.generation;
        self.conn
            .prepare_cached(
                "INSERT INTO tasks(processor, tenant, lane, generation, position, revision, at)
                 VALUES (?1, ?2, ?3, ?4, 0, 0, ?5)
                 ON CONFLICT(processor, tenant, lane) DO UPDATE SET generation = excluded.generation",
            )?
            .execute((
                &*task.processor,
                task.tenant.as_str(),
                task.lane,
                signed(generation),
                self.clock.now().0,
            ))?;
        let stored = self.stored_task(task)?;
        let checkpoint = match stored {
            Some(stored) if stored.revision > 0 => Some(Checkpoint {
                position: Position(stored.position),
                saved: saved_state(&self.conn, stored.number, task)?,
                revision: Revision(stored.revision),
                parked: letters::parked(&self.conn, stored.number)?,
            }),
            _ => None,
        };
        Ok((Generation(generation), checkpoint))
    }

    /// Writes one commit, or leaves everything as it was.
    pub(super) fn commit(&mut self, commit: &Commit) -> CommitResult<Committed> {
        let tenant = self.tenant_number(&commit.task.tenant)?;
        let counters = self.counters.clone();
        let appended = self.tenants.get(&commit.task.tenant).is_some_and(|t| t.appended);
        self.changes.begin();
        self.book.begin();
        let losses = self.losses();
        self.execute("SAVEPOINT one")?;
        match self.write_commit(tenant, commit) {
            Ok(Written { committed, events, changed }) => {
                self.execute("RELEASE one")?;
                self.book.keep();
                self.note_changes(&commit.task.tenant, committed.revision.0, changed);
                for batch in events {
                    self.add_chunk(tenant, batch);
                }
                Ok(committed)
            }
            Err(Stop::Refused(refused)) => {
                self.execute("ROLLBACK TO one")?;
                self.execute("RELEASE one")?;
                self.counters = counters;
                self.changes.undo();
                self.book.undo();
                self.forget_losses(losses);
                self.window.truncate(self.counters.newest + 1);
                if let Some(known) = self.tenants.get_mut(&commit.task.tenant) {
                    known.appended = appended;
                }
                Err(Stop::Refused(refused))
            }
            Err(stop) => Err(stop),
        }
    }

    fn write_commit(&mut self, tenant: i64, commit: &Commit) -> CommitResult<Written> {
        let task = self.fenced_task(commit)?;
        self.step(CommitStep::Begun);
        self.counters.revision += 1;
        let revision = self.counters.revision;
        let (stale, changed) = self.write_rows(tenant, task, revision, commit)?;
        self.step(CommitStep::Rows);
        self.write_keyed_state(task, commit)?;
        self.step(CommitStep::KeyedState);
        let emitted = self.write_emitted(tenant, revision, commit)?;
        self.step(CommitStep::Emitted);
        let (appended, dropped) = match self.log {
            LogPlace::Own => self.write_appends(commit)?,
            LogPlace::Elsewhere => {
                self.write_outbox_appends(commit, revision)?;
                (Vec::new(), Dropped::default())
            }
        };
        self.step(CommitStep::Appended);
        self.write_dead_letters(commit)?;
        self.step(CommitStep::DeadLetters);
        self.write_parked(task, commit)?;
        self.step(CommitStep::Parked);
        if let Some(saved) = &commit.saved {
            self.conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO states(task, content_type, state) VALUES (?1, ?2, ?3)",
                )?
                .execute((task, &saved.content_type, &saved.state))?;
        }
        self.conn
            .prepare_cached(
                "UPDATE tasks SET position = ?2, revision = ?3, at = ?4, passed_at = coalesce(?5, passed_at)
                 WHERE id = ?1",
            )?
            .execute((
                task,
                signed(commit.position.0),
                signed(revision),
                commit.at.0,
                commit.passed_at.map(|at| at.0),
            ))?;
        self.step(CommitStep::Position);
        let committed = Committed { revision: Revision(revision), stale, dropped };
        Ok(Written { committed, events: emitted.into_iter().chain(appended).collect(), changed })
    }

    /// The number of the commit's task, if its owner still is the owner and it does not go back.
    fn fenced_task(&self, commit: &Commit) -> CommitResult<i64> {
        let task = || commit.task.clone();
        let stored = self.stored_task(&commit.task)?;
        let current = stored.as_ref().map_or(0, |stored| stored.generation);
        let held = commit.generation.0;
        let Some(stored) = stored.filter(|stored| stored.generation == held) else {
            return Err(Stop::Refused(CommitError::Fenced { task: task(), held, current }));
        };
        if commit.position.0 < stored.position {
            return Err(Stop::Refused(CommitError::PositionBack {
                task: task(),
                committed: Position(stored.position),
                asked: commit.position,
            }));
        }
        Ok(stored.number)
    }

    pub(super) fn stored_task(&self, task: &TaskId) -> Result<Option<StoredTask>, rusqlite::Error> {
        self.conn
            .prepare_cached(
                "SELECT id, generation, position, revision FROM tasks
                 WHERE processor = ?1 AND tenant = ?2 AND lane = ?3",
            )?
            .query_row((&*task.processor, task.tenant.as_str(), task.lane), |row| {
                Ok(StoredTask {
                    number: row.get(0)?,
                    generation: unsigned(row.get(1)?),
                    position: unsigned(row.get(2)?),
                    revision: unsigned(row.get(3)?),
                })
            })
            .optional()
    }

    /// Emitted events enter the log like published ones; one that is there already is skipped. A log elsewhere gets
    /// them from the outbox.
    fn write_emitted(
        &mut self,
        tenant: i64,
        revision: u64,
        commit: &Commit,
    ) -> CommitResult<Option<EventBatch>> {
        let refused =
            |reason: String| Stop::Refused(CommitError::Refused { task: commit.task.clone(), reason });
        let mut batch = EventBatch::new(commit.task.tenant.clone());
        for effect in commit.effects.iter().flat_map(|effects| effects.iter()) {
            if let EffectRef::Emit(emit) = effect {
                batch.push(&event_of(&emit)).map_err(|e| refused(format!("emitted event: {e}")))?;
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        if self.log == LogPlace::Elsewhere {
            self.write_outbox(commit, revision, &batch)?;
            return Ok(None);
        }
        match self.write_events(tenant, batch) {
            Ok((_, written)) => Ok(written),
            Err(Stop::Storage(error)) => Err(Stop::Storage(error)),
            Err(Stop::Refused(StreamError::IdTaken { id, position, .. })) => Err(refused(format!(
                "emitted event id `{id}` is taken by an event with other content at position {position}"
            ))),
            Err(Stop::Refused(error)) => Err(refused(format!("emitted event: {error}"))),
        }
    }
}

fn event_of<'a>(emit: &EmitRef<'a>) -> Event<'a> {
    Event {
        id: emit.id,
        aggregate: emit.aggregate,
        agg_id: emit.agg_id,
        version: emit.version,
        event_type: emit.event_type,
        at: emit.at,
        schema_version: emit.schema_version,
        depth: emit.depth,
        scope: emit.scope,
        traceparent: emit.traceparent,
        payload: emit.payload,
        ..Event::default()
    }
}
