//! What becomes of an event that fails, and of an instance that falls.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::{Blocked, Care, Stretch, Worker, cut, retry_wait};
use crate::checkpoints::{DeadLetter, ParkedState};
use crate::error::Blame;
use crate::event::{EventBatch, Micros, Position};
use crate::processors::parked::Key;
use crate::processors::task::End;
use crate::processors::{Failure, FailureKind, FailurePolicy, Trap, TrapKind};

/// Why an event became a dead letter, and what was said.
#[derive(Debug)]
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) backtrace: String,
}

impl Cause {
    pub(super) fn of(trap: &Trap) -> Self {
        Self {
            reason: trap_reason(trap.kind),
            message: trap.message.clone(),
            backtrace: trap.backtrace.clone(),
        }
    }

    pub(super) fn said(reason: &'static str, message: String) -> Self {
        Self { reason, message, backtrace: String::new() }
    }
}

impl Worker {
    /// The next event of the work failed, by the processor's own word.
    pub(super) fn fail_event(&mut self, failure: Failure) -> Result<(), End> {
        match failure.kind {
            FailureKind::Fatal => {
                self.stop_for(failure.message);
                Ok(())
            }
            FailureKind::Reject => {
                // It works: the event is at fault, by its own word.
                self.breaker.succeeded();
                self.bury(Cause::said("reject", failure.message), 1)
            }
            FailureKind::Retry => {
                self.count_failure();
                if self.shared.settings.retries_max == 0 {
                    self.bury(Cause::said("retries", failure.message), 1)
                } else {
                    self.park(failure.message)
                }
            }
        }
    }

    pub(super) fn stop_for(&mut self, message: String) {
        warn!(task.id = %self.id, error.kind = "fatal", error.blame = "guest", message, "processor stops");
        self.fatal = Some(message);
    }

    /// One more failed call, for the breaker.
    pub(super) fn count_failure(&mut self) {
        if let Some(wait) = self.breaker.failed(Instant::now()) {
            warn!(
                task.id = %self.id,
                error.kind = "breaker_open",
                error.blame = "guest",
                wait_ms = wait.as_millis(),
                "calls failed one after the other; the processor rests"
            );
            self.counters.breaker_opened();
        }
    }

    /// The next event of the work is tried again later; its key waits for it.
    pub(super) fn park(&mut self, message: String) -> Result<(), End> {
        if !self.has_room_to_wait() {
            return Ok(());
        }
        let (event, key) = self.next_event();
        let now = self.now();
        let state = self.put_off(1, now, message);
        self.pass_one();
        self.parked.add(&key, event, || state, &mut self.pending.parked);
        self.counters.park();
        self.counters.retry();
        Ok(())
    }

    /// How a key waits after so many tries of its first event.
    pub(super) fn put_off(&self, attempts: u32, since: Micros, message: String) -> ParkedState {
        let wait = retry_wait(&self.shared.settings, attempts);
        let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        let retry_at = Micros(self.now().0.saturating_add(micros));
        ParkedState { attempts, since, retry_at, held: None, message }
    }

    /// The next event of the work becomes a dead letter. Its key is held, or goes on.
    pub(super) fn bury(&mut self, cause: Cause, attempts: u32) -> Result<(), End> {
        let hold = self.shared.settings.on_failure == FailurePolicy::Hold;
        if hold && !self.has_room_to_wait() {
            return Ok(());
        }
        let (event, key) = self.next_event();
        self.pass_one();
        self.add_letter(event, &key, cause, attempts);
        Ok(())
    }

    /// Writes a dead letter with the next commit, and holds its key where the policy says so.
    pub(super) fn add_letter(&mut self, event: Arc<EventBatch>, key: &Key, cause: Cause, attempts: u32) {
        let Cause { reason, message, backtrace } = cause;
        let position = event.last_position();
        warn!(
            task.id = %self.id,
            stream.position = position.0,
            error.kind = reason,
            error.blame = "guest",
            message,
            "event became a dead letter"
        );
        self.counters.dead_letter();
        if self.shared.settings.on_failure == FailurePolicy::Hold {
            self.hold(key, position, attempts, message.clone());
        }
        let state_hash = self.state_hash();
        self.pending.dead.push(DeadLetter {
            event,
            reason,
            message,
            backtrace,
            attempts,
            key: Arc::clone(key),
            state_hash,
            plugin_version: self.factory.manifest().version.to_string(),
            at: self.shared.clock.now(),
        });
    }

    /// SHA-256 of the state that the next event meets.
    pub(super) fn state_hash(&self) -> String {
        let saved = self.pending.savepoint.as_ref().or(self.submitted_saved.as_ref());
        saved.map(|saved| saved.hash()).unwrap_or_default()
    }

    fn hold(&mut self, key: &Key, letter: Position, attempts: u32, message: String) {
        let now = self.now();
        let since = self.parked.state(key).map_or(now, |state| state.since);
        let state = ParkedState { attempts, since, retry_at: now, held: Some(letter), message };
        self.parked.hold(key, state, &mut self.pending.parked);
    }

    fn has_room_to_wait(&mut self) -> bool {
        let settings = &self.shared.settings;
        let stretch = self.work.front().expect("a failure is about the next event");
        let bytes = stretch.batch.records()[stretch.range.start].span().len();
        let room = self.parked.count() < settings.parked_events_max
            && self.parked.bytes() + bytes <= settings.parked_bytes_max;
        if !room {
            self.blocked = Some(Blocked::Full);
        }
        room
    }

    fn next_event(&self) -> (Arc<EventBatch>, Key) {
        let stretch = self.work.front().expect("a failure is about the next event");
        let index = stretch.range.start;
        (Arc::new(cut(&stretch.batch, index..index + 1)), self.key(&stretch.batch, index))
    }

    /// The next event of the work is done; it does not wait behind its key, whose first it is.
    fn pass_one(&mut self) {
        let next = self.work.front().map_or(0, |stretch| stretch.range.start + 1);
        self.pass_to(next);
    }

    // Falling and getting up.

    /// The instance is gone. Alone with one event, that event is the culprit;
    /// otherwise all that is pending is done again, one event at a time.
    pub(super) fn fall(&mut self, trap: &Trap) -> Result<(), End> {
        self.fell(trap)?;
        let alone = self.work.front().is_some_and(|s| s.care != Care::Batch);
        if alone {
            self.count_failure();
            // The first try was in its batch.
            self.bury(Cause::of(trap), 2)
        } else {
            self.redo(trap);
            Ok(())
        }
    }

    /// Gives the instance up. The host's own failures end the run.
    pub(super) fn fell(&mut self, trap: &Trap) -> Result<(), End> {
        self.instance = None;
        self.fell = true;
        self.flushed_to_stand = false;
        self.shadow.break_stretch();
        if trap.kind == TrapKind::Host {
            return Err(End { message: trap.to_string(), restart: true, blame: Blame::Host });
        }
        self.counters.trap(trap.kind);
        Ok(())
    }

    pub(super) fn redo(&mut self, trap: &Trap) {
        info!(task.id = %self.id, error.kind = %trap.kind, error.blame = "guest", "instance fell; its batch is handled again one by one");
        if let Some(stretch) = self.work.front_mut() {
            stretch.care = Care::Single;
        }
        // A trial that fell tells nothing before its event was alone.
        self.breaker.undecided();
        self.unwind(Care::Single);
    }

    /// Puts what is pending back in front of the work, and what was parked to where it was.
    pub(super) fn unwind(&mut self, care: Care) {
        let pending = std::mem::take(&mut self.pending);
        self.flushed_to_stand = false;
        self.shadow.break_stretch();
        self.keyed.drop_pending();
        self.parked = self.submitted_parked.clone();
        // What filled it may have been taken back.
        self.unblock();
        self.push_back_done(pending.done, care);
        self.fatal = None;
    }

    pub(super) fn push_back_done(&mut self, done: Vec<(Arc<EventBatch>, Range<usize>)>, care: Care) {
        for (batch, range) in done.into_iter().rev().filter(|(_, range)| !range.is_empty()) {
            self.work.push_front(Stretch { batch, range, care });
        }
    }
}

fn trap_reason(kind: TrapKind) -> &'static str {
    match kind {
        TrapKind::Trap => "trap",
        TrapKind::Timeout => "timeout",
        TrapKind::Limit => "limit",
        TrapKind::Output => "output",
        TrapKind::Host => "host",
    }
}
