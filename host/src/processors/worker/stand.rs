//! Standing still at a position, until it is told to go on: everything up to there is done, flushed and committed.

use tokio::sync::oneshot;

use super::super::FlushReason;
use super::super::rebuild::Ahead;
use super::super::task::{End, Stand};
use super::Worker;
use crate::event::Position;

/// Who waits until the task stands, and where that is to be.
#[derive(Debug)]
pub(super) struct Coming {
    at: Position,
    flushed: bool,
    reply: oneshot::Sender<Result<(), Ahead>>,
}

impl Worker {
    pub(super) fn take_stand(&mut self, stand: Stand) {
        match stand {
            Stand::At { position, reply } => {
                self.standing = true;
                self.stand = Some(Coming { at: position, flushed: false, reply });
            }
            Stand::Release => {
                self.standing = false;
                self.stand = None;
            }
        }
    }

    /// One step towards standing. Its feed hands out nothing behind the position, so what is left is bounded.
    pub(super) fn come_to_stand(&mut self, drained: bool) -> Result<(), End> {
        let Some(Coming { at, flushed, .. }) = self.stand else { return Ok(()) };
        if self.advance.max(self.committed) > at {
            let ahead = Ahead(self.advance.max(self.committed));
            self.answer_stand(Err(ahead));
            return Ok(());
        }
        if !drained || !self.work.is_empty() {
            // Also what a flush was committed with and has to be done again: then it is flushed again.
            if let Some(coming) = &mut self.stand {
                coming.flushed = false;
            }
            return Ok(());
        }
        if self.advance < at || !self.is_at_rest() {
            return Ok(());
        }
        if !flushed {
            // What it keeps for the next flush, the one that it stands beside has flushed, or will.
            if self.submitted_saved.is_some() {
                self.load_instance()?;
            }
            let went_well = self.flush(FlushReason::Swap)?;
            if !went_well || self.flush_alone {
                // The asker is told nothing, and asks again.
                self.stand = None;
                return Ok(());
            }
            if let Some(coming) = &mut self.stand {
                coming.flushed = true;
            }
            self.submit_what_is_left()?;
            if !self.has_commit && self.in_flight.is_none() && self.pending.is_empty() {
                // One that never had an event says where it stands, too.
                self.submit()?;
            }
        }
        if self.is_at_rest() && self.work.is_empty() {
            match self.committed == at && !self.flush_alone {
                true => self.answer_stand(Ok(())),
                // A snapshot that failed, or a position that did not move: it is asked again.
                false => self.stand = None,
            }
        }
        Ok(())
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
