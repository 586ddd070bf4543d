//! When the newest events are read again on a stream.

use std::time::Duration;

use tokio::time::Instant;

use super::Cut;
use crate::processors::source::client::{ControlEvent, Phase};

/// The clock of one stream. It waits for a replay: one that takes longer than the time between two looks would otherwise
/// begin again and again and never end.
pub(super) struct Recheck {
    /// Zero leaves it out.
    every: Duration,
    since: Instant,
    /// Kept events come, or are still to come.
    replays: bool,
    has_phases: bool,
    was_live: bool,
}

impl Recheck {
    /// A stream that was asked for after a cursor begins with what was kept.
    pub(super) fn new(every: Duration, asked: Option<&str>, begun: Instant) -> Self {
        Self { every, since: begun, replays: asked.is_some(), has_phases: false, was_live: false }
    }

    /// Something came, and its events are handled.
    pub(super) fn came(&mut self, cut: &Cut, now: Instant) {
        match cut {
            Cut::Control(ControlEvent::Phase { phase: Phase::Replay, .. }) => {
                (self.has_phases, self.replays) = (true, true);
            }
            Cut::Control(ControlEvent::Phase { phase: Phase::Live, .. }) => {
                (self.has_phases, self.replays) = (true, false);
                if !self.was_live {
                    // The newest were read just now. A later replay of the same stream does not begin before them.
                    (self.was_live, self.since) = (true, now);
                }
            }
            // Not every server says what it shows.
            Cut::Quiet if !self.has_phases => self.replays = false,
            _ => {}
        }
    }

    /// When they are to be read again, as far as that is known.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.replays && !self.every.is_zero()).then(|| self.since + self.every)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    fn says(phase: Phase) -> Cut {
        Cut::Control(ControlEvent::Phase { phase, cursor: None })
    }

    #[test]
    fn a_replay_is_waited_for_and_counts_as_a_look() {
        let begun = Instant::now();
        let (later, much_later) = (begun + EVERY * 3, begun + EVERY * 10);
        let mut recheck = Recheck::new(EVERY, Some("start"), begun);
        assert_eq!(recheck.due(), None, "its first word may take long");
        recheck.came(&says(Phase::Replay), begun);
        recheck.came(&Cut::Quiet, begun);
        assert!(!recheck.is_due(much_later));
        recheck.came(&says(Phase::Live), later);
        assert_eq!(recheck.due(), Some(later + EVERY));
        // What a server shows again in between is none of the newest that are known.
        recheck.came(&says(Phase::Replay), later);
        assert!(!recheck.is_due(much_later));
        recheck.came(&says(Phase::Live), much_later);
        assert!(recheck.is_due(much_later), "one that was due meanwhile is not put off");
    }

    #[test]
    fn a_stream_that_says_nothing_of_phases_is_looked_at_again_all_the_same() {
        let begun = Instant::now();
        assert_eq!(Recheck::new(EVERY, None, begun).due(), Some(begun + EVERY));
        let mut recheck = Recheck::new(EVERY, Some("7"), begun);
        recheck.came(&Cut::Quiet, begun);
        assert_eq!(recheck.due(), Some(begun + EVERY));
        assert_eq!(Recheck::new(Duration::ZERO, None, begun).due(), None);
    }
}
