//! Which events have been seen: the newest cursors, in the order in which they came.

use std::collections::{HashSet, VecDeque};

use crate::limits::SOURCE_RING_CURSORS;

/// Cursors are opaque, so their order is that of their arrival. It only moves forward.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    /// Right before the oldest that is remembered; none: where a stream without a cursor began.
    base: Option<String>,
    order: VecDeque<String>,
    known: HashSet<String>,
    /// The newest that an event had.
    event: Option<String>,
    /// The newest is a place that a server has named, and no event's.
    is_mark: bool,
}

impl Recent {
    /// After a cursor, with what is remembered up to it, oldest first, and whether the last of these is a mark.
    pub(super) fn new(cursor: Option<String>, remembered: Vec<String>, is_mark: bool) -> Self {
        let mut recent = Self::default();
        match (remembered.last() == cursor.as_ref(), remembered.split_first()) {
            (true, Some((first, rest))) => {
                recent.base = Some(first.clone());
                rest.iter().for_each(|cursor| recent.note(cursor));
                // There are no two marks in a row.
                recent.event = remembered.iter().rev().nth(usize::from(is_mark)).cloned();
                recent.is_mark = is_mark;
            }
            _ => recent.base = cursor,
        }
        recent
    }

    /// Whether it came before, as far as is remembered.
    pub(super) fn knows(&self, cursor: &str) -> bool {
        self.known.contains(cursor) || self.base.as_deref() == Some(cursor)
    }

    /// An event's.
    pub(super) fn note(&mut self, cursor: &str) {
        self.event = Some(cursor.to_owned());
        if self.add(cursor) {
            self.is_mark = false;
        }
    }

    /// A place without an event. The next one stands for it, too: what is read again is counted in events.
    pub(super) fn mark(&mut self, cursor: &str) {
        if self.newest() == Some(cursor) {
            return;
        }
        if self.is_mark {
            match self.order.pop_back() {
                Some(mark) => {
                    self.known.remove(&mark);
                }
                // It is all that is remembered.
                None => self.base = None,
            }
        }
        self.is_mark = self.add(cursor);
    }

    /// Whether it is new.
    fn add(&mut self, cursor: &str) -> bool {
        if !self.known.insert(cursor.to_owned()) {
            return false;
        }
        self.order.push_back(cursor.to_owned());
        if self.order.len() > SOURCE_RING_CURSORS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.base = Some(oldest);
        }
        true
    }

    /// Whether the newest is a mark.
    pub(super) fn is_at_mark(&self) -> bool {
        self.is_mark
    }

    /// The newest event, as far as is remembered.
    pub(super) fn newest_event(&self) -> Option<&str> {
        self.event.as_deref()
    }

    /// The newest; none before anything came.
    pub(super) fn newest(&self) -> Option<&str> {
        self.order.back().map(String::as_str).or(self.base.as_deref())
    }

    /// Where to read again from, so that so many known events come once more.
    pub(super) fn before(&self, events: usize) -> Option<&str> {
        match self.order.len().checked_sub(events + 1) {
            Some(index) => self.order.get(index).map(String::as_str),
            // Of a stream that began without a cursor, the first event is the earliest place there is.
            None => self.base.as_deref().or(self.order.front().map(String::as_str)),
        }
    }

    /// The newest ones with the one before them, to be remembered over a restart.
    pub(super) fn newest_ones(&self, events: usize) -> Vec<String> {
        let from = self.order.len().saturating_sub(events + 1);
        let base = if from == 0 && self.order.len() <= events { self.base.clone() } else { None };
        base.into_iter().chain(self.order.iter().skip(from).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(count: usize) -> Recent {
        let mut recent = Recent::new(Some("0".into()), Vec::new(), false);
        (1..=count).for_each(|number| recent.note(&number.to_string()));
        recent
    }

    fn over_a_restart(before: &Recent, events: usize) -> Recent {
        let newest = before.newest().map(str::to_owned);
        Recent::new(newest, before.newest_ones(events), before.is_at_mark())
    }

    #[test]
    fn reading_again_begins_so_many_events_before_the_newest() {
        assert_eq!(after(100).before(64), Some("36"));
        assert_eq!(after(65).before(64), Some("1"));
        assert_eq!(after(64).before(64), Some("0"));
        assert_eq!(after(3).before(64), Some("0"));
        assert_eq!(after(3).before(0), Some("3"));
    }

    #[test]
    fn a_stream_that_began_without_a_cursor_is_read_again_after_its_first_event() {
        let mut recent = Recent::new(None, Vec::new(), false);
        assert_eq!((recent.newest(), recent.before(64)), (None, None));
        recent.note("a");
        recent.note("b");
        assert_eq!((recent.newest(), recent.before(64)), (Some("b"), Some("a")));
    }

    #[test]
    fn memory_is_bounded_and_moves_on() {
        let recent = after(SOURCE_RING_CURSORS + 10);
        assert!(!recent.knows("9") && recent.knows("10") && recent.knows("11"));
        assert_eq!(recent.order.len(), SOURCE_RING_CURSORS);
    }

    #[test]
    fn what_is_remembered_over_a_restart_reads_the_same_again() {
        for count in [0, 1, 64, 65, 100] {
            let before = after(count);
            let again = over_a_restart(&before, 64);
            assert_eq!(again.before(64), before.before(64), "{count} events");
            assert_eq!(again.newest(), before.newest(), "{count} events");
        }
    }

    #[test]
    fn a_mark_is_still_one_after_a_restart() {
        let mut recent = after(3);
        for mark in ["x", "y", "z"] {
            recent.mark(mark);
            recent = over_a_restart(&recent, 2);
            assert_eq!((recent.newest(), recent.newest_event()), (Some(mark), Some("3")));
            assert_eq!((recent.before(2), recent.order.len()), (Some("2"), 2), "{mark}");
        }
        recent.note("4");
        recent = over_a_restart(&recent, 2);
        assert_eq!((recent.newest_event(), recent.is_at_mark()), (Some("4"), false));
        // Where nothing else is remembered, too.
        let mut recent = Recent::new(None, Vec::new(), false);
        for mark in ["x", "y", "z"] {
            recent.mark(mark);
            recent = over_a_restart(&recent, 2);
            assert_eq!((recent.newest(), recent.before(2)), (Some(mark), Some(mark)));
            assert_eq!(recent.newest_event(), None);
        }
    }

    #[test]
    fn marks_in_a_row_take_one_place_and_are_no_events() {
        let mut recent = after(3);
        (4..=100).for_each(|mark| recent.mark(&mark.to_string()));
        assert_eq!((recent.newest(), recent.newest_event()), (Some("100"), Some("3")));
        assert!(recent.knows("3") && recent.knows("100") && !recent.knows("99"));
        assert_eq!((recent.before(1), recent.before(2)), (Some("3"), Some("2")));
        recent.note("101");
        recent.mark("102");
        assert!(recent.knows("100"), "an event lies between");
        assert_eq!(recent.before(1), Some("101"));
        recent.mark("102");
        recent.mark("103");
        assert_eq!(recent.before(1), Some("101"));
    }

    #[test]
    fn what_is_remembered_of_another_cursor_is_left() {
        let recent = Recent::new(Some("x".into()), vec!["1".into(), "2".into()], true);
        assert!(recent.knows("x") && !recent.knows("2"));
        assert_eq!((recent.newest_event(), recent.is_at_mark()), (None, false));
    }
}
