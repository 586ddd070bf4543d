//! Which events have been seen: the newest cursors, in the order in which they came.

use std::collections::{HashSet, VecDeque};

use crate::limits::SOURCE_RING_CURSORS;

/// Cursors are opaque, so their order is that of their arrival. It only moves forward.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    /// Right before the oldest that is remembered; none: where a stream without a cursor began.
    base: Option<Seen>,
    /// Between two events there is one mark at most.
    order: VecDeque<Seen>,
    known: HashSet<String>,
    /// How many of these are events: the others count for nothing.
    events: usize,
    /// The newest that an event had.
    event: Option<String>,
}

/// A cursor that came.
#[derive(Clone, Debug)]
struct Seen {
    cursor: String,
    /// A place that a server has named, and no event's.
    is_mark: bool,
}

impl Recent {
    /// After a cursor, with what is remembered up to it, oldest first, and whether the last of these is a mark.
    pub(super) fn new(cursor: Option<String>, remembered: Vec<String>, is_mark: bool) -> Self {
        let mut recent = Self::default();
        if remembered.last() != cursor.as_ref() {
            recent.base = cursor.map(|cursor| Seen { cursor, is_mark: false });
            return recent;
        }
        // There are no two marks in a row.
        recent.event = remembered.iter().rev().nth(usize::from(is_mark)).cloned();
        let last = remembered.len().saturating_sub(1);
        for (index, cursor) in remembered.into_iter().enumerate() {
            let seen = Seen { cursor, is_mark: is_mark && index == last };
            if index == 0 {
                recent.base = Some(seen);
            } else {
                recent.add(seen);
            }
        }
        recent
    }

    /// Whether it came before, as far as is remembered.
    pub(super) fn knows(&self, cursor: &str) -> bool {
        self.known.contains(cursor) || self.base.as_ref().is_some_and(|base| base.cursor == cursor)
    }

    /// An event's.
    pub(super) fn note(&mut self, cursor: &str) {
        self.event = Some(cursor.to_owned());
        self.add(Seen { cursor: cursor.to_owned(), is_mark: false });
    }

    /// A place without an event. The next one stands for it, too.
    pub(super) fn mark(&mut self, cursor: &str) {
        if self.newest() == Some(cursor) {
            return;
        }
        if self.is_at_mark() {
            match self.order.pop_back() {
                Some(mark) => {
                    self.known.remove(&mark.cursor);
                }
                // It is all that is remembered.
                None => self.base = None,
            }
        }
        self.add(Seen { cursor: cursor.to_owned(), is_mark: true });
    }

    /// Nothing changes where it is known.
    fn add(&mut self, seen: Seen) {
        if !self.known.insert(seen.cursor.clone()) {
            return;
        }
        self.events += usize::from(!seen.is_mark);
        self.order.push_back(seen);
        while self.events > SOURCE_RING_CURSORS
            && let Some(oldest) = self.order.pop_front()
        {
            self.events -= usize::from(!oldest.is_mark);
            self.known.remove(&oldest.cursor);
            self.base = Some(oldest);
        }
    }

    /// Whether the newest is a mark.
    pub(super) fn is_at_mark(&self) -> bool {
        self.order.back().or(self.base.as_ref()).is_some_and(|newest| newest.is_mark)
    }

    /// The newest event, as far as is remembered.
    pub(super) fn newest_event(&self) -> Option<&str> {
        self.event.as_deref()
    }

    /// The newest; none before anything came.
    pub(super) fn newest(&self) -> Option<&str> {
        self.order.back().or(self.base.as_ref()).map(|newest| newest.cursor.as_str())
    }

    /// Where to read again from, so that so many known events come once more.
    pub(super) fn before(&self, events: usize) -> Option<&str> {
        let from = self.begin_of(events);
        let before = from.checked_sub(1).and_then(|index| self.order.get(index));
        // Of a stream that began without a cursor, what came first is the earliest place there is.
        let earliest = || self.base.as_ref().or(self.order.front());
        before.or_else(earliest).map(|seen| seen.cursor.as_str())
    }

    /// The newest ones with the place before them, to be remembered over a restart. Of marks only the newest is.
    pub(super) fn newest_ones(&self, events: usize) -> Vec<String> {
        let from = self.begin_of(events);
        let last = self.order.len().saturating_sub(1);
        let before = match from.checked_sub(1) {
            Some(index) => self.order.get(index),
            None => self.base.as_ref().or(self.order.front().filter(|first| first.is_mark && last > 0)),
        };
        let newest = self.order.iter().enumerate().skip(from);
        let newest = newest.filter(|(index, seen)| !seen.is_mark || *index == last).map(|(_, seen)| seen);
        before.into_iter().chain(newest).map(|seen| seen.cursor.clone()).collect()
    }

    /// Where so many events begin, or all where there are fewer; right after everything for none.
    fn begin_of(&self, events: usize) -> usize {
        if events == 0 {
            return self.order.len();
        }
        let indexes = self.order.iter().enumerate().rev().filter(|(_, seen)| !seen.is_mark);
        indexes.map(|(index, _)| index).nth(events - 1).unwrap_or(0)
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
            assert_eq!((recent.before(2), recent.order.len()), (Some("1"), 3), "{mark}");
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
        assert_eq!(
            (recent.before(0), recent.before(1), recent.before(2)),
            (Some("100"), Some("2"), Some("1"))
        );
        recent.note("101");
        recent.mark("102");
        assert!(recent.knows("100"), "an event lies between");
        assert_eq!((recent.before(1), recent.before(2)), (Some("100"), Some("2")));
        recent.mark("102");
        recent.mark("103");
        assert_eq!((recent.before(0), recent.before(1)), (Some("103"), Some("100")));
    }

    #[test]
    fn marks_between_events_count_for_nothing() {
        let mut recent = Recent::new(None, Vec::new(), false);
        recent.mark("m0");
        for number in 1..=SOURCE_RING_CURSORS {
            recent.note(&number.to_string());
            recent.mark(&format!("m{number}"));
        }
        assert!(recent.knows("1"), "as many events are known as without marks");
        let (events, newest) = (64, SOURCE_RING_CURSORS);
        let place = format!("m{}", newest - events);
        assert_eq!(recent.before(events), Some(place.as_str()), "so many events lie behind it");
        let kept = recent.newest_ones(events);
        assert_eq!((kept.len(), &kept[0]), (events + 2, &place), "with the places before and after them");
        let again = over_a_restart(&recent, events);
        assert_eq!((again.before(events), again.newest()), (Some(place.as_str()), recent.newest()));
        assert!(again.knows(&(newest - events + 1).to_string()));
        recent.note("last");
        assert!(!recent.knows("m0") && recent.knows("1") && recent.knows("2"));
        assert_eq!(recent.events, SOURCE_RING_CURSORS);
        // A mark that came before every event is a place like any other.
        let mut recent = Recent::new(None, Vec::new(), false);
        recent.mark("m0");
        recent.note("1");
        assert_eq!(recent.before(events), Some("m0"));
        assert_eq!(over_a_restart(&recent, events).before(events), Some("m0"));
    }

    #[test]
    fn what_is_remembered_of_another_cursor_is_left() {
        let recent = Recent::new(Some("x".into()), vec!["1".into(), "2".into()], true);
        assert!(recent.knows("x") && !recent.knows("2"));
        assert_eq!((recent.newest_event(), recent.is_at_mark()), (None, false));
    }
}
