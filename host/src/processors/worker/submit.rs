//! How a task's work becomes durable: flush, snapshot, commit. How it ends: everything done is committed,
//! flushed, and committed again. How it hands over: the next version begins from a submitted snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::super::spans::CommitCall;
use super::super::task::{Drain, End};
use super::super::{FailureKind, FlushReason, LoadError, ProcessorFactory, Trap, TrapKind};
use super::recover::Cause;
use super::{ADVANCE_POSITIONS, Blocked, Care, Drained, InFlight, Next, Worker};
use crate::checkpoints::{Commit, CommitError, Committed, Dropped, SavedState};
use crate::error::{Blame, Classify as _};
use crate::event::Micros;
use crate::limits::{COMMIT_AGE_CEILING, COMMIT_AGE_SNAPSHOTS, COMMIT_AGE_STATE_BYTES};

const STATE_IS_LARGE: &str =
    "the snapshot has passed half of its bound, at which the processor stops: keep what grows in keyed state";

/// How long what is done may wait for its commit, which takes a snapshot and writes it.
fn age_max(commit_age: Duration, snapshot_took: Duration, state_bytes: usize) -> Duration {
    let writing = Duration::from_secs((state_bytes / COMMIT_AGE_STATE_BYTES) as u64);
    let for_state = writing.max(snapshot_took.saturating_mul(COMMIT_AGE_SNAPSHOTS)).min(COMMIT_AGE_CEILING);
    commit_age.max(for_state)
}

impl Worker {
    /// Answers whether it went well, or there was nothing to flush.
    pub(super) fn flush(&mut self, reason: FlushReason) -> Result<bool, End> {
        let Some(instance) = self.instance.as_mut() else { return Ok(true) };
        let began = Instant::now();
        let flushed = instance.flush(reason);
        self.counters.flush(began.elapsed());
        match flushed {
            Ok(Ok(effects)) => {
                self.shadow.offer_flush(reason, &effects);
                if effects.is_empty() {
                    self.flush_alone = false;
                } else {
                    self.pending.flushed = true;
                }
                self.keep(effects);
                // Where single events are handled, the state to fall back to is that after this.
                let careful = self.work.front().is_some_and(|stretch| stretch.care != Care::Batch);
                if (careful || self.pending.savepoint.is_some())
                    && let Err(trap) = self.savepoint()
                {
                    return self.fall_in_snapshot(&trap).map(|()| false);
                }
                Ok(true)
            }
            Ok(Err(failure)) if failure.kind == FailureKind::Fatal => {
                self.fatal = Some(failure.message);
                Ok(false)
            }
            Ok(Err(failure)) => {
                warn!(task.id = %self.id, error.kind = "flush_failed", error.blame = "guest", message = failure.message, "flush failed; it is called again at the next tick");
                self.counters.retry();
                Ok(false)
            }
            Err(trap) if trap.kind == TrapKind::Host => {
                Err(End { message: trap.to_string(), restart: true, blame: Blame::Host })
            }
            Err(trap) => {
                warn!(task.id = %self.id, error.kind = %trap.kind, error.blame = "guest", message = trap.message, "instance fell in flush");
                self.instance = None;
                self.fell = true;
                self.counters.trap(trap.kind);
                self.unwind(Care::Batch);
                Ok(false)
            }
        }
    }

    pub(super) fn snapshot(&mut self) -> Result<Arc<SavedState>, Trap> {
        let content_type = self.factory.manifest().state_content_type.clone().unwrap_or_default();
        let instance = self.instance.as_mut().expect("a snapshot is taken of a living instance");
        let began = Instant::now();
        let state = instance.snapshot();
        let took = began.elapsed();
        self.counters.snapshot(took);
        let state = state?;
        self.snapshot_took = took;
        self.look_at_size(state.len());
        Ok(Arc::new(SavedState { content_type, state }))
    }

    /// Says once that a snapshot has come half of the way to its bound, while there is time to do something.
    fn look_at_size(&mut self, bytes: usize) {
        let max = self.factory.state_bytes_max();
        if bytes > max / 2 && !self.state_warned {
            self.state_warned = true;
            let name = self.shared.name.to_string();
            metrics::counter!(crate::telemetry::metrics::PROCESSOR_STATE_WARNINGS, "plugin" => name)
                .increment(1);
            warn!(task.id = %self.id, error.kind = "state_large", error.blame = "guest", bytes, guest_state_bytes_max = max, "{STATE_IS_LARGE}");
        }
    }

    /// Commits what is pending when none is in flight and it is time.
    pub(super) fn submit_if_due(&mut self, drained: bool) -> Result<(), End> {
        if self.in_flight.is_some() {
            return Ok(());
        }
        let settings = &self.shared.settings;
        let state_bytes = self.submitted_saved.as_ref().map_or(0, |saved| saved.state.len());
        let age = age_max(settings.commit_age, self.snapshot_took, state_bytes);
        let idle = self.work.is_empty() && drained;
        let careful = self.work.front().is_some_and(|s| s.care == Care::SingleCommit);
        let alone = self.pending.alone.is_some() || self.alone_waits();
        // Until the breaker closes nothing is added to it.
        let rests = self.blocked == Some(Blocked::Breaker);
        let waiting = self.fatal.is_some() || self.stands_still() || self.flush_comes_first() || rests;
        let due = !self.pending.is_empty()
            && (idle
                || careful
                || alone
                || waiting
                || self.pending.events >= settings.commit_events
                || self.pending.since.is_some_and(|since| since.elapsed() >= age)
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
        let parked_changed = !self.pending.parked.is_empty();
        let pending = std::mem::take(&mut self.pending);
        if parked_changed {
            self.submitted_parked = self.parked.clone();
        }
        let mut position = pending.position.max(self.committed);
        if self.work.is_empty() {
            position = position.max(self.advance);
        }
        let last = pending.done.last();
        let passed_at = last.map(|(batch, done)| Micros(batch.records()[done.end - 1].at));
        self.keyed.begin_commit();
        self.commit = Some(Commit {
            task: self.id.clone(),
            generation: self.generation,
            position,
            passed_at,
            saved: changed.clone(),
            effects: pending.effects,
            tables: Arc::clone(&self.tables),
            dead: pending.dead,
            resolved: pending.resolved,
            parked: pending.parked.writes(&self.parked),
            at: self.shared.clock.now(),
        });
        if let Some(saved) = &changed {
            self.submitted_saved = Some(Arc::clone(saved));
        }
        self.in_flight = Some(InFlight {
            done: pending.done,
            alone: pending.alone,
            position,
            saved: changed,
            parked: self.submitted_parked.clone(),
            events: pending.events,
            flushed: pending.flushed,
            call: CommitCall::begin(pending.traces),
        });
        Ok(())
    }

    pub(super) fn fall_in_snapshot(&mut self, trap: &Trap) -> Result<(), End> {
        self.fell(trap)?;
        if let Some(alone) = self.pending.alone.take() {
            self.unwind(Care::Batch);
            self.fail_alone(alone, Cause::of(trap));
            return Ok(());
        }
        if self.pending.done.is_empty() {
            return Err(End {
                message: format!("snapshot failed: {trap}"),
                restart: true,
                blame: Blame::Guest,
            });
        }
        self.redo(trap);
        Ok(())
    }

    pub(super) fn end_commit(&mut self, answer: Result<Committed, CommitError>) -> Result<(), End> {
        let Some(mut done) = self.in_flight.take() else { return Ok(()) };
        done.call.end(&self.id, &self.counters, done.position, &answer);
        match answer {
            Ok(committed) => {
                self.committed = done.position;
                self.has_commit = true;
                if done.saved.is_some() {
                    self.committed_saved = done.saved;
                }
                self.committed_parked = done.parked;
                let (events, held) = self.parked();
                self.counters.parked(events, held);
                self.keyed.end_commit();
                self.counters.commit(done.events, committed.stale, done.call.began.elapsed());
                self.committed_at = self.shared.clock.now();
                self.note_dropped(&committed.dropped);
                if done.flushed {
                    self.flush_alone = false;
                }
                if let Some(alone) = done.alone {
                    Self::end_alone(alone);
                }
                Ok(())
            }
            Err(CommitError::Refused { reason, .. }) => self.refused(done, reason, Blame::Guest),
            Err(CommitError::NotNow { reason, .. }) => self.refused(done, reason, Blame::Caller),
            // One by one, those that there is room for are kept.
            Err(CommitError::DeadLettersFull { .. }) if done.alone.is_none() && done.events > 1 => {
                self.set_back();
                self.push_back_done(done.done, Care::SingleCommit);
                Ok(())
            }
            Err(error) => Err(End { message: error.to_string(), restart: true, blame: error.blame() }),
        }
    }

    /// Everything is again as it was committed last.
    fn set_back(&mut self) {
        self.instance = None;
        self.shadow.drop_stretch();
        self.submitted_saved = self.committed_saved.clone();
        self.submitted_parked = self.committed_parked.clone();
        self.unwind(Care::SingleCommit);
        self.keyed.drop_all();
    }

    /// The store refused the effects: from the committed state, everything
    /// again, an event a commit. Alone in its commit, the event is the culprit; where the callers of a channel are to
    /// blame, it is tried again later. A flush is never repeated with events, so that none is taken for it.
    fn refused(&mut self, done: InFlight, reason: String, blame: Blame) -> Result<(), End> {
        warn!(task.id = %self.id, error.kind = "refused", error.blame = blame.as_str(), reason, "effects were refused");
        self.set_back();
        let passes = blame == Blame::Caller;
        if let Some(alone) = done.alone {
            if passes {
                self.put_off_alone(alone, reason);
            } else {
                self.fail_alone(alone, Cause::said("refused", reason));
            }
            return Ok(());
        }
        self.push_back_done(done.done, Care::SingleCommit);
        if done.flushed {
            // What it would have said is in the state still, since that was set back, too.
            self.flush_alone = true;
            if done.events == 0 {
                self.counters.flush_refused();
                self.refused = Some(format!("effects of a flush: {reason}").into());
            }
            return Ok(());
        }
        match done.events {
            // Not even effects that could be refused.
            0 => Err(End {
                message: format!("a commit without events was refused: {reason}"),
                restart: true,
                blame,
            }),
            1 if passes && self.shared.settings.retries_max > 0 => self.park(reason),
            1 => {
                if !passes {
                    self.count_failure();
                }
                self.bury(Cause::said("refused", reason), 1)
            }
            _ => Ok(()),
        }
    }

    /// Says what a commit left out: where that begins, and the last of it in the status. The rest is counted.
    fn note_dropped(&mut self, dropped: &Dropped) {
        let Some(first) = dropped.first() else {
            self.dropping = false;
            return;
        };
        self.counters.dropped(dropped);
        if !std::mem::replace(&mut self.dropping, true) {
            let entries = dropped.entries();
            warn!(task.id = %self.id, error.kind = "append_dropped", error.blame = "caller", entries, reason = &**first, "entries were left out: nobody takes them any more");
        }
        self.refused = Some(Arc::clone(first));
    }

    // Stopping and swapping.

    /// One step towards the end: everything done is committed, flushed, committed.
    pub(super) fn stop(&mut self) -> Result<Next, End> {
        if self.in_flight.is_some() {
            return Ok(Next::Wait);
        }
        if !self.pending.is_empty() {
            self.submit()?;
            return Ok(if self.in_flight.is_some() { Next::Wait } else { Next::Again });
        }
        if let Some((_, drained @ Drained::Not)) = &mut self.drain {
            *drained = Drained::Flushed;
            self.flush(FlushReason::Shutdown)?;
            self.submit_what_is_left()?;
            return Ok(if self.in_flight.is_some() { Next::Wait } else { Next::Again });
        }
        if let Some((Drain::Stop { reply }, _)) = self.drain.take() {
            // Who asked may have gone.
            let _ = reply.send(());
        }
        Ok(Next::Over)
    }

    /// Commits what is pending, or how far the feed has come, or what a flush has done to the state alone.
    pub(super) fn submit_what_is_left(&mut self) -> Result<(), End> {
        let skipped = self.work.is_empty() && self.advance > self.committed;
        if !self.pending.is_empty() || skipped {
            return self.submit();
        }
        self.submit_flushed()
    }

    /// Commits what a flush has done to the state alone.
    pub(super) fn submit_flushed(&mut self) -> Result<(), End> {
        let stateful = self.factory.manifest().state_content_type.is_some();
        // A version that has handled nothing yet leaves no state behind.
        let began = self.submitted_saved.is_some() && self.instance.is_some();
        if !stateful || !began || !self.pending.touched {
            return Ok(());
        }
        match self.snapshot() {
            Ok(saved) if self.submitted_saved.as_ref() == Some(&saved) => Ok(()),
            Ok(_) => self.submit(),
            // It has done nothing else since the last commit: what is lost is what it could not say.
            Err(trap) => self.fell(&trap),
        }
    }

    /// A version can follow on another where a snapshot can be submitted: no commit is in flight. That is soon:
    /// events are handled meanwhile, and the next commit waits for this.
    pub(super) fn can_hand_over(&self) -> bool {
        self.in_flight.is_none() && self.pending.alone.is_none()
    }

    /// Submits what was done and goes on with another version from that very state, while the commit is under
    /// way. Should it fail, the new version begins from what was committed before it.
    pub(super) fn hand_over(&mut self) -> Result<Next, End> {
        let began = Instant::now();
        self.flush(FlushReason::Swap)?;
        self.submit_what_is_left()?;
        if let Some((Drain::Swap { factory, reply }, _)) = self.drain.take() {
            let answer = self.take_over(factory);
            if answer.is_ok() {
                self.counters.hand_over(began.elapsed());
            }
            // Who asked may have gone.
            let _ = reply.send(answer);
        }
        Ok(Next::Again)
    }

    pub(super) fn take_over(&mut self, factory: Arc<dyn ProcessorFactory>) -> Result<(), LoadError> {
        let saved = self.pending.savepoint.as_ref().or(self.submitted_saved.as_ref()).cloned();
        let instance = self.make(&factory, saved.as_deref())?;
        self.shadow.break_stretch();
        self.instance = Some(instance);
        self.resting = None;
        self.tables = factory.manifest().tables.clone().into();
        self.counters.follow(self.shared.counters.of(&factory.manifest().version.to_string()));
        self.factory = factory;
        self.snapshot_took = Duration::ZERO;
        self.flushed_to_stand = false;
        self.fatal = None;
        let now = self.now();
        self.parked.retry_all(now);
        self.breaker.reset();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::COMMIT_AGE_MAX;

    #[test]
    fn a_large_state_is_not_saved_every_second() {
        let age = |millis, bytes| age_max(COMMIT_AGE_MAX, Duration::from_millis(millis), bytes);
        assert_eq!(age(3, 1 << 20), COMMIT_AGE_MAX);
        assert_eq!(age(300, 1 << 20), Duration::from_secs(3));
        assert_eq!(age(3, 32 << 20), Duration::from_secs(4));
        assert_eq!(age(u64::MAX, usize::MAX), COMMIT_AGE_CEILING);
        let hour = Duration::from_secs(3_600);
        assert_eq!(age_max(hour, Duration::MAX, 0), hour, "what is set is not cut short");
    }
}
