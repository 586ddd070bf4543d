//! What the server has handed out to this host and is yet to hear of.

use std::collections::BTreeMap;

use crate::control::{EventId, Received};

/// Entries by their version, until they are acknowledged. There are never more than the server hands out unacknowledged.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: BTreeMap<u64, Entry>,
    /// The newest that was handed out; everything up to there was, too, or is not there.
    reached: u64,
    /// The newest that was acknowledged.
    acknowledged: u64,
}

#[derive(Debug)]
struct Entry {
    received: Received,
    /// Where the acknowledgement goes.
    reply: String,
    /// It was not answered since it was handed out.
    fresh: bool,
}

impl Held {
    /// A consumer begins after a version: what an earlier one has handed out comes again.
    pub(super) fn begin(&mut self, after: u64) {
        *self = Self { entries: BTreeMap::new(), reached: after, acknowledged: after };
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    /// Whether everything after a version that was handed out is still here.
    pub(super) fn covers(&self, after: u64) -> bool {
        after >= self.acknowledged
    }

    /// Takes in what the server has handed out, perhaps once more.
    pub(super) fn take(&mut self, received: Received, reply: String) {
        let version = received.version().0;
        self.reached = self.reached.max(version);
        self.entries.insert(version, Entry { received, reply, fresh: true });
    }

    /// How many there are after a version, and others that were handed out again.
    pub(super) fn waiting(&self, after: u64) -> usize {
        let old = self.entries.range(..=after).filter(|(_, entry)| entry.fresh).count();
        old + self.entries.range(after.saturating_add(1)..).count()
    }

    /// Answers them, ascending.
    pub(super) fn answer(&mut self, after: u64, limit: usize) -> Vec<Received> {
        let due = self.entries.iter_mut().filter(|(version, entry)| **version > after || entry.fresh);
        due.take(limit)
            .map(|(_, entry)| {
                entry.fresh = false;
                entry.received.clone()
            })
            .collect()
    }

    /// Where the acknowledgement of an event goes; none for what was not answered, or is acknowledged.
    pub(super) fn reply(&self, version: u64, event: &EventId) -> Option<String> {
        let entry = self.entries.get(&version)?;
        let is_it = matches!(&entry.received, Received::Event { event: held, .. } if held.id() == event);
        is_it.then(|| entry.reply.clone())
    }

    pub(super) fn acknowledged(&mut self, version: u64) {
        self.entries.remove(&version);
        self.acknowledged = self.acknowledged.max(version);
    }

    /// What is no event has no id to be acknowledged by: whoever asks for what is after it has passed it by.
    pub(super) fn passed(&self, after: u64) -> Vec<(u64, String)> {
        let passed = self.entries.range(..=after);
        let broken = passed.filter(|(_, entry)| matches!(entry.received, Received::Broken { .. }));
        broken.map(|(version, entry)| (*version, entry.reply.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ControlVersion;

    fn broken(version: u64) -> Received {
        Received::unreadable(ControlVersion(version), "x", "y")
    }

    fn versions(answer: &[Received]) -> Vec<u64> {
        answer.iter().map(|received| received.version().0).collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_answered_as_long_as_it_is_asked_for() {
        let mut held = Held::default();
        held.begin(4);
        for version in [6, 5, 7] {
            held.take(broken(version), format!("reply {version}"));
        }
        assert_eq!((held.reached(), held.waiting(4)), (7, 3));
        assert_eq!(versions(&held.answer(4, 2)), [5, 6]);
        assert_eq!(versions(&held.answer(4, 9)), [5, 6, 7]);
        assert_eq!(versions(&held.answer(6, 9)), [7]);
        assert_eq!(versions(&held.answer(7, 9)), [0_u64; 0]);
    }

    #[test]
    fn what_is_handed_out_again_is_answered_once_more_whatever_is_asked_for() {
        let mut held = Held::default();
        held.begin(0);
        held.take(broken(1), "first".into());
        held.take(broken(2), "first".into());
        assert_eq!(versions(&held.answer(0, 9)), [1, 2]);
        held.take(broken(1), "second".into());
        assert_eq!((held.waiting(2), versions(&held.answer(2, 9))), (1, vec![1]));
        assert_eq!((held.waiting(2), versions(&held.answer(2, 9))), (0, Vec::new()));
        assert_eq!(held.passed(1), [(1, "second".to_owned())]);
    }

    #[test]
    fn a_place_before_what_was_acknowledged_is_not_covered() {
        let mut held = Held::default();
        held.begin(4);
        held.take(broken(5), "reply".into());
        held.acknowledged(5);
        assert!(held.covers(5) && !held.covers(4));
        held.begin(4);
        assert!(held.covers(4) && !held.covers(3));
    }
}
