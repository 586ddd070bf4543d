//! Standing still at a position, until it is told to go on: everything up to there is done, flushed and committed.
//!
//! What was flushed for that stays flushed while nothing is handled, so whoever asks again is answered without a call.
//! A task that rests gets an instance for its flush and gives it back in the same turn: as many instances are there as
//! there are threads, however many tasks come to stand.

use std::time::Instant;

use tokio::sync::oneshot;

use super::super::FlushReason;
use super::super::rebuild::Ahead;
use super::super::task::{End, Stand};
use super::Worker;
use crate::error::Blame;
use crate::event::Position;

/// Who waits until the task stands, and where that is to be.
#[derive(Debug)]
pub(super) struct Coming {
    at: Position,
    reply: oneshot::Sender<Result<(), Ahead>>,
}

impl Worker {
    pub(super) fn take_stand(&mut self, stand: Stand) {
        match stand {
            Stand::At { position, reply } => {
                self.standing = true;
                self.stand = Some(Coming { at: position, reply });
            }
            Stand::Release => {
                self.standing = false;
                self.stand = None;
                // Time goes on, and may bring something.
                self.flushed_to_stand &= !self.goes_by_time();
            }
        }
    }

    /// One step towards standing. Its feed hands out nothing behind the position, so what is left is bounded.
    pub(super) fn come_to_stand(&mut self, drained: bool) -> Result<(), End> {
        let Some(Coming { at, .. }) = self.stand else { return Ok(()) };
        if self.advance.max(self.committed) > at {
            let ahead = Ahead(self.advance.max(self.committed));
            self.answer_stand(Err(ahead));
            return Ok(());
        }
        if !drained || !self.work.is_empty() || self.advance < at || !self.is_at_rest() {
            return Ok(());
        }
        if !self.flushed_to_stand || self.committed < at || !self.has_commit {
            // One that nobody waits for has others beside it that need the place.
            let rests = self.instance.is_none() || self.shared.settings.background;
            if !self.flushed_to_stand && !self.flush_to_stand()? {
                // The asker is told nothing, and asks again.
                self.stand = None;
                return Ok(());
            }
            self.submit_what_is_left()?;
            if !self.has_commit && self.in_flight.is_none() && self.pending.is_empty() {
                // One that never had an event says where it stands, too.
                self.submit()?;
            }
            if rests && self.instance.is_some() && self.pending.is_empty() {
                self.instance = None;
                self.pending.touched = false;
                self.resting = Some(Instant::now());
            }
        }
        if self.is_at_rest() && self.work.is_empty() {
            match self.committed == at && self.flushed_to_stand && !self.flush_alone {
                true => self.answer_stand(Ok(())),
                // A snapshot that failed, or a position that did not move: it is asked again.
                false => self.stand = None,
            }
        }
        Ok(())
    }

    /// Flushes what the task keeps, also what it would keep until its time has come: what it stands beside does the
    /// same. Answers whether it went well.
    fn flush_to_stand(&mut self) -> Result<bool, End> {
        if self.submitted_saved.is_some() {
            if !self.has_room_for_instance() {
                return Ok(false);
            }
            match self.load_instance() {
                Ok(()) => {}
                // There may be as many instances as there can be: no run ends for that.
                Err(End { blame: Blame::Host, .. }) => return Ok(false),
                Err(end) => return Err(end),
            }
        }
        let ticked = !self.goes_by_time() || self.flush(FlushReason::Tick)?;
        self.flushed_to_stand = ticked && self.flush(FlushReason::Swap)? && !self.flush_alone;
        Ok(self.flushed_to_stand)
    }

    fn goes_by_time(&self) -> bool {
        self.factory.manifest().flush_interval_ms.is_some()
    }

    /// Nothing is pending, submitted, or waits to be flushed.
    fn is_at_rest(&self) -> bool {
        self.pending.is_empty()
            && self.pending.alone.is_none()
            && self.in_flight.is_none()
            && !self.flush_waits
    }

    fn answer_stand(&mut self, answer: Result<(), Ahead>) {
        if let Some(coming) = self.stand.take() {
            // Who asked may have gone.
            let _ = coming.reply.send(answer);
        }
    }
}
