//! Places that a server names without an event: up to there, everything was shown or left out.

use super::{Feed, Place};
use crate::processors::source::client::Phase;

impl Feed {
    /// A stream is opened after `asked`.
    pub(super) fn begins(&mut self, asked: Option<&str>) {
        if matches!(self.place, Place::After(_)) {
            // It goes on where the one of before was closed, which may have been while events were read again.
            return;
        }
        let newest = self.recent.newest();
        self.is_ahead = newest.is_none() || asked == newest;
        // From the oldest on, what is known is gone and does not come again.
        let comes_again = !self.is_ahead && self.place != Place::Oldest;
        let event = self.recent.newest_event().filter(|event| comes_again && Some(*event) != asked);
        self.again = event.map(str::to_owned);
    }

    /// A known event came.
    pub(super) fn came_again(&mut self, cursor: Option<&str>) {
        if self.again.is_some() && self.again.as_deref() == cursor {
            self.again = None;
            self.is_ahead = self.recent.newest() == cursor;
        }
    }

    /// Takes a place as if an event had it: the next subscription begins there, and it is saved. Of what is read again, the
    /// server names places of before; so may a host of several that is behind the one that was asked last. Such a host is not
    /// told from another where it is live between the newest event and a place that was named before: nothing for us lies
    /// between the two.
    pub(super) fn mark(&mut self, phase: Phase, cursor: &str) {
        let is_newest = self.recent.newest() == Some(cursor);
        if is_newest {
            (self.again, self.is_ahead) = (None, true);
        }
        let is_before = self.again.is_some() || (phase == Phase::Replay && !self.is_ahead);
        if is_before || (!is_newest && self.recent.knows(cursor)) {
            return;
        }
        self.is_ahead = true;
        self.recent.mark(cursor);
        self.place = Place::Newest;
        if self.cursor.as_deref() == Some(cursor) {
            return;
        }
        self.cursor = Some(cursor.to_owned());
        self.keeper.moved();
        self.run.progress.note(|status| status.cursor = Some(cursor.to_owned()));
    }
}
