//! How long a call has been at work, and when it has used up its time.
//!
//! A call's limit counts the time in which it runs, or waits for something of its own. On a busy machine a
//! call may have to wait for a core, most of all in the back line; that is not its fault, and is not counted
//! up to a bound of its own. A call that becomes long makes way for others.

use std::time::{Duration, Instant};

use crate::limits::{GUEST_CALL_STRETCH_MAX, GUEST_EPOCH, GUEST_LONG_CALL};
use crate::processors::{call_is_long, waited_for_core};

/// The time of the running call. What is asked of it is asked on the thread of the call.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallTime {
    /// When its time is used up.
    until: Instant,
    /// When it ends however long it has waited for a core.
    until_max: Instant,
    /// What its thread had waited for a core when that was looked at last: first when the call became long.
    waited: Option<Duration>,
}

impl CallTime {
    pub(super) fn begin(call_max: Duration) -> Self {
        let now = Instant::now();
        let longest = call_max.saturating_mul(GUEST_CALL_STRETCH_MAX);
        Self { until: now + call_max, until_max: now + longest, waited: None }
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Whether its time would be used up even if it had waited for a core all the while: for a call whose work is
    /// measured by something other than time.
    pub(super) fn is_far_over(&self) -> bool {
        Instant::now() >= self.until_max
    }

    /// When a call of this length is looked at first.
    pub(super) fn first_look(call_max: Duration) -> Duration {
        call_max.min(GUEST_LONG_CALL)
    }

    /// What is left of its time; none when it is used up.
    pub(super) fn left(&mut self) -> Option<Duration> {
        if self.waited.is_none() {
            call_is_long();
        }
        self.left_at(Instant::now(), waited_for_core())
    }

    fn left_at(&mut self, now: Instant, waited: Duration) -> Option<Duration> {
        let before = *self.waited.get_or_insert(waited);
        if now >= self.until {
            let late = waited.saturating_sub(before);
            if late < GUEST_EPOCH {
                return None;
            }
            self.waited = Some(waited);
            self.until = (now + late).min(self.until_max);
        }
        self.until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const NO_WAIT: Duration = Duration::ZERO;

    #[test]
    fn a_call_that_had_a_core_ends_at_its_limit() {
        let mut time = CallTime::begin(LIMIT);
        let begun = time.until() - LIMIT;
        assert_eq!(time.left_at(begun + LIMIT / 4, NO_WAIT), Some(LIMIT * 3 / 4));
        assert_eq!(time.left_at(begun + LIMIT, NO_WAIT), None);
        assert_eq!(time.until(), begun + LIMIT);
    }

    #[test]
    fn waiting_for_a_core_is_not_counted_up_to_a_bound() {
        let mut time = CallTime::begin(LIMIT);
        let begun = time.until() - LIMIT;
        // What the thread had waited in earlier calls is none of this one's.
        let earlier = Duration::from_secs(100);
        assert!(time.left_at(begun + LIMIT / 20, earlier).is_some());
        let half = LIMIT / 2;
        assert_eq!(time.left_at(begun + LIMIT, earlier + half), Some(half));
        assert_eq!(time.left_at(begun + LIMIT + half, earlier + half), None, "it had a core since");
        let mut waited = earlier + half;
        for seconds in 2..GUEST_CALL_STRETCH_MAX {
            waited += LIMIT;
            assert!(time.left_at(begun + LIMIT * seconds, waited).is_some(), "it waited all the time");
        }
        let end = begun + LIMIT * GUEST_CALL_STRETCH_MAX;
        assert_eq!(
            time.left_at(end, waited + LIMIT),
            None,
            "it has had {GUEST_CALL_STRETCH_MAX} times its limit"
        );
    }

    #[test]
    fn a_short_limit_is_looked_at_when_it_is_over() {
        assert_eq!(CallTime::first_look(GUEST_LONG_CALL / 2), GUEST_LONG_CALL / 2);
        assert_eq!(CallTime::first_look(LIMIT), GUEST_LONG_CALL);
    }
}
