//! Places that a server names without an event: up to there, everything was shown or left out.

use super::{Feed, Place};

impl Feed {
    /// What a stream that begins after `asked` has to show before it is as far as this run. None where it begins there.
    pub(super) fn to_come_again(&self, asked: Option<&str>) -> Option<String> {
        let overlaps = self.place == Place::Overlap && asked != self.recent.newest();
        self.recent.newest_event().filter(|event| overlaps && Some(*event) != asked).map(str::to_owned)
    }

    /// Takes a place as if an event had it: the next subscription begins there, and it is saved. Of what is read again, the
    /// server names places of before; so may a host of several that is behind the one that was asked last.
    pub(super) fn mark(&mut self, cursor: &str) {
        let is_newest = self.recent.newest() == Some(cursor);
        if self.again.is_some() || (!is_newest && self.recent.knows(cursor)) {
            return;
        }
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
