//! How a task's work becomes durable: flush, snapshot, commit; and how it ends
//! or hands over: everything done is committed, flushed, and committed again.

use std::sync::Arc;

use tracing::warn;

use super::super::task::{Drain, End};
use super::super::{FailureKind, FlushReason, LoadError, ProcessorFactory, Trap, TrapKind};
use super::{ADVANCE_POSITIONS, Care, Drained, InFlight, Next, Worker};
use crate::checkpoints::{Commit, CommitError, Committed, SavedState};

impl Worker {
    pub(super) fn flush(&mut self, reason: FlushReason) -> Result<(), End> {
        let Some(instance) = self.instance.as_mut() else { return Ok(()) };
        match instance.flush(reason) {
            Ok(Ok(effects)) => {
                self.shadow.offer_flush(reason, &effects);
                self.keep(effects);
                Ok(())
            }
            Ok(Err(failure)) if failure.kind == FailureKind::Fatal => {
                self.fatal = Some(failure.message);
                Ok(())
            }
            Ok(Err(failure)) => {
                warn!(task.id = %self.id, message = failure.message, "flush failed; it is called again at the next tick");
                self.shared.counters.retry();
                Ok(())
            }
            Err(trap) if trap.kind == TrapKind::Host => Err(End { message: trap.to_string(), restart: true }),
            Err(trap) => {
                warn!(task.id = %self.id, error.kind = %trap.kind, message = trap.message, "instance fell in flush");
                self.instance = None;
                self.shared.counters.trap();
                self.unwind(Care::Batch);
                Ok(())
            }
        }
    }

    pub(super) fn snapshot(&mut self) -> Result<Arc<SavedState>, Trap> {
        let content_type = self.factory.manifest().state_content_type.clone().unwrap_or_default();
        let instance = self.instance.as_mut().expect("a snapshot is taken of a living instance");
        let state = instance.snapshot()?;
        Ok(Arc::new(SavedState { content_type, state }))
    }

    /// Commits what is pending when none is in flight and it is time.
    pub(super) fn submit_if_due(&mut self, drained: bool) -> Result<(), End> {
        if self.in_flight.is_some() {
            return Ok(());
        }
        let settings = &self.shared.settings;
        let idle = self.work.is_empty() && drained;
        let careful = self.work.front().is_some_and(|s| s.care == Care::SingleCommit);
        let waiting = self.retry_at.is_some() || self.fatal.is_some();
        let due = !self.pending.is_empty()
            && (idle
                || careful
                || waiting
                || self.pending.events >= settings.commit_events
                || self.pending.bytes >= settings.commit_bytes_max);
        let behind = idle
            && self.pending.is_empty()
            && self.advance.0.saturating_sub(self.committed.0) >= ADVANCE_POSITIONS;
        if due || behind { self.submit() } else { Ok(()) }
    }

    pub(super) fn submit(&mut self) -> Result<(), End> {
        let stateful = self.factory.manifest().state_content_type.is_some();
        let mut after = self.pending.savepoint.clone();
        if stateful && self.pending.touched && self.instance.is_some() {
            match self.snapshot() {
                Ok(saved) => after = Some(saved),
                Err(trap) => return self.fall_in_snapshot(&trap),
            }
        }
        let changed = after.filter(|saved| self.submitted_saved.as_ref() != Some(saved));
        let pending = std::mem::take(&mut self.pending);
        let mut position = pending.position.max(self.committed);
        if self.work.is_empty() {
            position = position.max(self.advance);
        }
        self.keyed.begin_commit();
        self.commit = Some(Commit {
            task: self.id.clone(),
            generation: self.generation,
            position,
            saved: changed.clone(),
            effects: pending.effects,
            tables: Arc::clone(&self.tables),
            dead: pending.dead,
            at: self.shared.clock.now(),
        });
        if let Some(saved) = &changed {
            self.submitted_saved = Some(Arc::clone(saved));
        }
        self.in_flight =
            Some(InFlight { done: pending.done, position, saved: changed, events: pending.events });
        Ok(())
    }

    pub(super) fn fall_in_snapshot(&mut self, trap: &Trap) -> Result<(), End> {
        self.instance = None;
        if trap.kind == TrapKind::Host {
            return Err(End { message: trap.to_string(), restart: true });
        }
        self.shared.counters.trap();
        if self.pending.done.is_empty() {
            return Err(End { message: format!("snapshot failed: {trap}"), restart: true });
        }
        self.redo(trap);
        Ok(())
    }

    pub(super) fn end_commit(&mut self, answer: Result<Committed, CommitError>) -> Result<(), End> {
        let Some(done) = self.in_flight.take() else { return Ok(()) };
        match answer {
            Ok(committed) => {
                self.committed = done.position;
                if done.saved.is_some() {
                    self.committed_saved = done.saved;
                }
                self.keyed.end_commit();
                self.shared.counters.commit(done.events, committed.stale);
                Ok(())
            }
            Err(CommitError::Refused { reason, .. }) => self.refused(done, reason),
            Err(error) => Err(End { message: error.to_string(), restart: true }),
        }
    }

    /// The store refused the effects: from the committed state, everything
    /// again, an event a commit. Alone in its commit, the event is the culprit.
    pub(super) fn refused(&mut self, done: InFlight, reason: String) -> Result<(), End> {
        warn!(task.id = %self.id, error.kind = "refused", error.blame = "guest", reason, "effects were refused");
        self.shadow.drop_stretch();
        self.instance = None;
        self.submitted_saved = self.committed_saved.clone();
        self.unwind(Care::SingleCommit);
        self.keyed.drop_all();
        if done.events == 0 {
            return Err(End { message: format!("effects of a flush were refused: {reason}"), restart: true });
        }
        self.push_back_done(done.done, Care::SingleCommit);
        if done.events == 1 {
            self.attempts = 1;
            self.bury("refused", reason);
        }
        Ok(())
    }

    // Stopping and swapping.

    /// One step towards: everything done is committed, flushed, committed.
    pub(super) fn drain(&mut self) -> Result<Next, End> {
        if self.in_flight.is_some() {
            return Ok(Next::Wait);
        }
        let (drain, drained) = self.drain.as_ref().expect("a drain was asked for");
        let (reason, drained) = (drain.reason(), *drained);
        if !self.pending.is_empty() {
            self.submit()?;
            return Ok(if self.in_flight.is_some() { Next::Wait } else { Next::Again });
        }
        if drained == Drained::Not {
            if let Some((_, drained)) = &mut self.drain {
                *drained = Drained::Flushed;
            }
            self.flush(reason)?;
            let skipped = self.work.is_empty() && self.advance > self.committed;
            if !self.pending.is_empty() || skipped {
                self.submit()?;
            }
            return Ok(if self.in_flight.is_some() { Next::Wait } else { Next::Again });
        }
        match self.drain.take() {
            Some((Drain::Stop { reply }, _)) => {
                let _ = reply.send(());
                Ok(Next::Over)
            }
            Some((Drain::Swap { factory, reply }, _)) => {
                let answer = self.take_over(factory);
                let _ = reply.send(answer);
                Ok(Next::Again)
            }
            None => Ok(Next::Again),
        }
    }

    pub(super) fn take_over(&mut self, factory: Arc<dyn ProcessorFactory>) -> Result<(), LoadError> {
        let instance = self.make(&factory, self.committed_saved.as_deref())?;
        self.shadow.break_stretch();
        self.instance = Some(instance);
        self.tables = factory.manifest().tables.clone().into();
        self.factory = factory;
        self.fatal = None;
        self.attempts = 0;
        self.retry_at = None;
        Ok(())
    }
}
