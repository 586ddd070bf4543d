//! What becomes of an entry: acknowledged, tried again, a dead letter, replayed.

use super::GroupState;
use crate::event::{Micros, Position};
use crate::limits::GROUP_REASON_BYTES_MAX;
use crate::streams::groups::names::Receipt;
use crate::streams::groups::options::later;
use crate::streams::groups::status::{DeadReason, GroupLetter, Refusal, Settled};
use crate::streams::groups::window::{Entry, Phase};

impl GroupState {
    /// The entry is done.
    pub fn ack(&mut self, receipt: &Receipt, now: Micros) -> Settled {
        self.tick(now);
        let position = match self.find(receipt, now) {
            Ok(position) => position,
            Err(settled) => {
                // The answer to the first time may have been lost before it was durable: this one must be.
                self.unwritten.place |= settled == Settled::Already;
                return settled;
            }
        };
        self.tally.acks += 1;
        self.let_go(position);
        self.finish(position);
        Settled::Acknowledged
    }

    /// The entry failed: it is tried again later, or is a dead letter.
    pub fn nack(&mut self, receipt: &Receipt, delay_ms: Option<u64>, reason: &str, now: Micros) -> Settled {
        self.tick(now);
        let position = match self.find(receipt, now) {
            Ok(position) => position,
            Err(settled) => return settled,
        };
        self.tally.nacks += 1;
        self.let_go(position);
        self.window.note(position, Some(cut(reason, GROUP_REASON_BYTES_MAX)));
        let attempts = self.window.get(position).map_or(0, |entry| entry.attempts);
        if attempts >= self.options.attempts_max {
            return self.bury(position, DeadReason::Nacked, now);
        }
        let due = later(now, delay_ms.unwrap_or_else(|| self.options.backoff_ms(attempts)));
        self.try_again(position, due)
    }

    fn try_again(&mut self, position: u64, due: Micros) -> Settled {
        self.window.retry(position, due);
        self.note(position, due, None);
        Settled::Retry(due)
    }

    /// The lease ends so much later from now.
    pub fn renew(&mut self, receipt: &Receipt, lease_ms: Option<u64>, now: Micros) -> Settled {
        self.tick(now);
        match self.find(receipt, now) {
            Ok(position) => {
                let deadline = later(now, lease_ms.unwrap_or(self.options.lease_ms));
                self.window.extend(position, deadline);
                Settled::Renewed(deadline)
            }
            // Nothing is left to renew.
            Err(Settled::Already) => Settled::Refused(Refusal::LeaseExpired),
            Err(settled) => settled,
        }
    }

    /// The position whose lease a receipt stands for.
    fn find(&mut self, receipt: &Receipt, now: Micros) -> Result<u64, Settled> {
        let position = receipt.position.0;
        let refusal = match self.window.get(position).map(|entry| &entry.phase) {
            _ if receipt.incarnation != self.incarnation => Refusal::Unknown,
            Some(Phase::Leased { consumer, sequence, .. })
                if *sequence == receipt.sequence && receipt.life == self.life =>
            {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.seen_at = now;
                }
                return Ok(position);
            }
            Some(_) => Refusal::LeaseExpired,
            None if self.lost_leases.contains(&position) => Refusal::Lost,
            None if self.dead.contains(&position) => Refusal::LeaseExpired,
            None if position <= self.low || self.done.contains(position) => return Err(Settled::Already),
            // It was leased in an earlier life and is not taken in yet.
            None if receipt.life != self.life => Refusal::LeaseExpired,
            None => Refusal::Unknown,
        };
        self.tally.refused += 1;
        Err(Settled::Refused(refusal))
    }

    /// The consumer has one entry less.
    pub(super) fn let_go(&mut self, position: u64) {
        if let Some(name) = self.window.get(position).and_then(Entry::consumer)
            && let Some(consumer) = self.consumers.get_mut(name)
        {
            consumer.in_flight = consumer.in_flight.saturating_sub(1);
        }
    }

    fn finish(&mut self, position: u64) {
        let Some(entry) = self.window.remove(position) else { return };
        if entry.noted {
            self.unwritten.tried.insert(position, None);
        }
        // Also one that the group was moved back before: what is done needs no letter.
        if entry.replayed || self.dead.remove(&position) {
            self.unwritten.resolved.push(Position(position));
        }
        if !entry.replayed {
            self.mark_done(position);
        }
        self.unwritten.place = true;
    }

    /// Makes an entry a dead letter; its key goes on. While there is no place for one, it is tried again later.
    pub(super) fn bury(&mut self, position: u64, reason: DeadReason, now: Micros) -> Settled {
        if self.dead.len() >= self.limits.dead_letters_max && !self.dead.contains(&position) {
            return self.try_again(position, later(now, self.options.backoff_ms_max));
        }
        let consumer = self.window.get(position).and_then(Entry::consumer);
        let consumer = consumer.map(|name| name.as_str().to_owned()).unwrap_or_default();
        let Some(entry) = self.window.remove(position) else { return Settled::Already };
        self.tally.dead += 1;
        if entry.noted {
            self.unwritten.tried.insert(position, None);
        }
        // What was said of a former letter of this entry is over, and may not be written after this one.
        self.unwritten.replaying.retain(|at| at.0 != position);
        self.unwritten.resolved.retain(|at| at.0 != position);
        self.unwritten.dead.push(GroupLetter {
            event: entry.event,
            attempts: entry.attempts,
            reason,
            message: entry.message,
            consumer,
            at: now,
            replaying: false,
        });
        self.dead.insert(position);
        if !entry.replayed {
            self.mark_done(position);
        }
        self.unwritten.place = true;
        Settled::DeadLetter
    }

    /// Delivers a dead letter again, its attempts counted anew. Nothing changes for one that is being replayed, or that
    /// the group was moved back before: it is delivered anyway.
    pub fn replay(&mut self, letter: GroupLetter) {
        let position = letter.position().0;
        if self.window.get(position).is_some() {
            return;
        }
        if self.dead.remove(&position) {
            self.insert(position, letter.event, true);
            self.unwritten.replaying.push(Position(position));
        }
    }

    /// Forgets a dead letter, also one that is being replayed.
    pub fn discard(&mut self, position: Position) {
        let at = position.0;
        if self.window.get(at).is_some_and(|entry| entry.replayed) {
            self.let_go(at);
            self.window.remove(at);
            self.unwritten.tried.insert(at, None);
        }
        self.dead.remove(&at);
        self.unwritten.resolved.push(position);
    }
}

/// A text's beginning, cut between characters.
fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
