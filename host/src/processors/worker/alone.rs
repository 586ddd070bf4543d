//! What is tried alone, in a commit of its own: the first event of a key that
//! waits, and dead letters that somebody replays or discards.

use std::sync::Arc;
use std::time::Instant;

use tracing::info;

use super::Worker;
use super::recover::Cause;
use crate::checkpoints::{DeadLetter, DeadLetterRow, ParkedState};
use crate::error::Blame;
use crate::event::{EventBatch, Position};
use crate::processors::parked::Key;
use crate::processors::resolve::{Reply, Resolution, ResolveError, Resolved, Verdict};
use crate::processors::spans::HandleCall;
use crate::processors::task::End;
use crate::processors::{Failure, FailureKind, FailurePolicy, OrderingKey, Trap};

/// What a commit decides about.
#[derive(Debug)]
pub(in crate::processors) enum Alone {
    /// The first event of a key.
    Parked { key: Key, event: Arc<EventBatch>, before: ParkedState },
    /// A dead letter, and who waits for what becomes of it.
    Letter { letter: DeadLetterRow, reply: Reply, answer: Resolved },
}

/// Why a lane that has work does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::processors) enum Blocked {
    /// As many events wait as may.
    Full,
    /// The breaker is open.
    Breaker,
    /// The processor's only key is held by this dead letter.
    Held(Position),
}

impl std::fmt::Display for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str(
                "as many events wait as parked_events_max and parked_bytes_max allow; replay or discard dead letters",
            ),
            Self::Breaker => f.write_str("calls failed one after the other; it rests and then tries one event"),
            Self::Held(letter) => {
                write!(f, "its one ordering key is held by dead letter {}; replay or discard it", letter.0)
            }
        }
    }
}

/// What came of calling the instance with one event.
enum Tried {
    Done,
    Failed(Failure),
    Fell(Trap),
}

impl Worker {
    /// Whether the lane handles no new events, whatever there is.
    pub(super) fn stands_still(&self) -> bool {
        let single = self.factory.manifest().ordering_key == OrderingKey::Single;
        self.blocked == Some(Blocked::Full) || (single && !self.parked.is_empty())
    }

    /// Why the lane stands still, for the status. A dead letter is named once it can be read.
    pub(in crate::processors) fn blocked(&self) -> Option<Blocked> {
        let single = self.factory.manifest().ordering_key == OrderingKey::Single;
        let held = self.parked.first_held().filter(|letter| single && *letter <= self.committed);
        let held = held.map(Blocked::Held);
        held.or(self.blocked)
    }

    /// Whether something waits to be tried alone, so that what is pending is committed first.
    pub(super) fn alone_waits(&self) -> bool {
        !self.resolutions.is_empty() || (!self.tried_parked && self.parked.due(self.now()).is_some())
    }

    /// Whether nothing else is under way.
    pub(super) fn may_be_alone(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none()
    }

    /// Whether a parked event is the next thing to try: those and new ones take turns.
    pub(super) fn parked_is_next(&self) -> bool {
        self.may_be_alone()
            && self.parked.due(self.now()).is_some()
            && !(self.tried_parked && self.may_handle())
    }

    /// Tries the longest due parked event. Answers whether the instance was called.
    pub(super) fn try_parked(&mut self) -> Result<bool, End> {
        let now = self.now();
        let Some((key, event)) = self.parked.due(now) else { return Ok(false) };
        let Some(before) = self.parked.state(&key).cloned() else { return Ok(false) };
        self.tried_parked = true;
        let tried = self.call_alone(&event)?;
        self.pending.alone =
            Some(Alone::Parked { key: Arc::clone(&key), event: Arc::clone(&event), before: before.clone() });
        match tried {
            Tried::Done => {
                self.breaker.succeeded();
                self.parked.take_first(&key, &mut self.pending.parked);
                self.parked.release(&key, now, &mut self.pending.parked);
                self.unblock();
            }
            Tried::Failed(failure) => match failure.kind {
                FailureKind::Fatal => {
                    self.pending.alone = None;
                    self.stop_for(failure.message);
                }
                FailureKind::Reject => {
                    self.breaker.succeeded();
                    self.bury_parked(&key, event, Cause::said("reject", failure.message), &before);
                }
                FailureKind::Retry => {
                    self.count_failure();
                    self.retry_parked(&key, event, Cause::said("retries", failure.message), &before);
                }
            },
            Tried::Fell(trap) => {
                self.count_failure();
                self.bury_parked(&key, event, Cause::of(&trap), &before);
            }
        }
        Ok(true)
    }

    /// The first event of a key that waits is tried again later, unless it was tried often enough.
    fn retry_parked(&mut self, key: &Key, event: Arc<EventBatch>, cause: Cause, before: &ParkedState) {
        let attempts = before.attempts + 1;
        if attempts > self.shared.settings.retries_max {
            return self.bury_parked(key, event, cause, before);
        }
        self.counters.retry();
        let state = self.put_off(attempts, before.since, cause.message);
        self.parked.put_off(key, state, &mut self.pending.parked);
    }

    /// The first event of a key that waits becomes a dead letter.
    fn bury_parked(&mut self, key: &Key, event: Arc<EventBatch>, cause: Cause, before: &ParkedState) {
        self.parked.take_first(key, &mut self.pending.parked);
        self.add_letter(event, key, cause, before.attempts + 1);
        if self.shared.settings.on_failure == FailurePolicy::Skip {
            let now = self.now();
            self.parked.release(key, now, &mut self.pending.parked);
        }
        self.unblock();
    }

    /// One event, and nothing else pending.
    fn call_alone(&mut self, event: &EventBatch) -> Result<Tried, End> {
        self.load_instance()?;
        self.last_used = Instant::now();
        let instance = self.instance.as_mut().expect("it was just loaded");
        // A candidate does not see what is parked: a stretch ends where such an event has its turn.
        self.shadow.break_stretch();
        let call = HandleCall::begin(&self.id, self.counters.version(), event);
        let mut answer = instance.handle(event);
        let span = call.end(&self.counters, event, &mut answer);
        self.pending.traces.add(span.as_ref());
        match answer {
            Ok(outcome) if outcome.handled == 1 => {
                self.keep(outcome.effects);
                Ok(Tried::Done)
            }
            Ok(outcome) => outcome.failure.map(Tried::Failed).ok_or_else(|| End {
                message: "the processor handled nothing and named no failure".into(),
                restart: false,
                blame: Blame::Guest,
            }),
            Err(trap) => {
                self.fell(&trap)?;
                Ok(Tried::Fell(trap))
            }
        }
    }

    /// There may be room to wait again.
    pub(super) fn unblock(&mut self) {
        if self.blocked == Some(Blocked::Full) {
            self.blocked = None;
        }
    }

    // Dead letters.

    /// Carries the next resolution out. Answers whether there is one, done or not.
    pub(super) fn resolve_first(&mut self) -> Result<bool, End> {
        if self.resolutions.is_empty() {
            return Ok(false);
        }
        if !self.may_be_alone() {
            return Ok(true);
        }
        let Some(Resolution { verdict, letter, reply }) = self.resolutions.pop_front() else {
            return Ok(false);
        };
        let position = letter.event.last_position();
        let key = self.parked.held_by(position);
        if letter.held && key.is_none() {
            let processor = self.id.processor.to_string();
            // Who asked may have gone.
            let _ = reply.send(Err(ResolveError::Gone { processor, letter: position.0 }));
            return Ok(true);
        }
        let answer = match verdict {
            Verdict::Discard => Resolved::Discarded { released: self.settle_letter(position, key.as_ref()) },
            Verdict::Replay => match self.call_alone(&letter.event)? {
                Tried::Done => {
                    let released = self.settle_letter(position, key.as_ref());
                    self.counters.replayed();
                    Resolved::Replayed { out_of_order: key.is_none(), released }
                }
                Tried::Failed(Failure { kind: FailureKind::Retry, message }) => {
                    self.fail_letter(&letter, Cause::said("retries", message))
                }
                Tried::Failed(failure) => self.fail_letter(&letter, Cause::said("reject", failure.message)),
                Tried::Fell(trap) => self.fail_letter(&letter, Cause::of(&trap)),
            },
        };
        info!(task.id = %self.id, stream.position = position.0, ?verdict, ?answer, "dead letter resolved");
        self.pending.alone = Some(Alone::Letter { letter, reply, answer });
        Ok(true)
    }

    /// The letter is gone with the next commit, and the key that it held goes on.
    fn settle_letter(&mut self, position: Position, key: Option<&Key>) -> usize {
        self.pending.resolved.push(position);
        let now = self.now();
        let released = key.map_or(0, |key| self.parked.release(key, now, &mut self.pending.parked));
        self.unblock();
        released
    }

    /// The letter stays, with what was said this time.
    fn fail_letter(&mut self, letter: &DeadLetterRow, cause: Cause) -> Resolved {
        let answer = Resolved::FailedAgain { reason: cause.reason.into(), message: cause.message.clone() };
        self.pending.dead.push(DeadLetter {
            event: Arc::clone(&letter.event),
            reason: cause.reason,
            message: cause.message,
            backtrace: cause.backtrace,
            attempts: letter.attempts + 1,
            key: Arc::clone(&letter.key),
            state_hash: self.state_hash(),
            plugin_version: self.factory.manifest().version.to_string(),
            at: self.shared.clock.now(),
        });
        answer
    }

    /// What was tried alone cannot be committed: its instance fell in `snapshot`, or the store refused its effects.
    /// Everything stands as before the try.
    pub(super) fn fail_alone(&mut self, alone: Alone, cause: Cause) {
        match alone {
            Alone::Parked { key, event, before } => {
                self.count_failure();
                self.bury_parked(&key, Arc::clone(&event), cause, &before);
                self.pending.alone = Some(Alone::Parked { key, event, before });
            }
            Alone::Letter { letter, reply, .. } => {
                let answer = self.fail_letter(&letter, cause);
                self.pending.alone = Some(Alone::Letter { letter, reply, answer });
            }
        }
    }

    /// What was tried alone cannot be committed yet. Everything stands as before the try, but for when the next one is.
    pub(super) fn put_off_alone(&mut self, alone: Alone, reason: String) {
        let cause = Cause::said("refused", reason);
        match alone {
            Alone::Parked { key, event, before } => {
                self.retry_parked(&key, Arc::clone(&event), cause, &before);
                self.pending.alone = Some(Alone::Parked { key, event, before });
            }
            letter @ Alone::Letter { .. } => self.fail_alone(letter, cause),
        }
    }

    /// It is committed.
    pub(super) fn end_alone(alone: Alone) {
        if let Alone::Letter { reply, answer, .. } = alone {
            // Who asked may have gone.
            let _ = reply.send(Ok(answer));
        }
    }
}
