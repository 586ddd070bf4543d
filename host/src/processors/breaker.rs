//! The circuit breaker of a processor, one for each tenant.
//!
//! A processor whose calls fail one after the other is not helped by more events:
//! every one would be parked or become a dead letter. So after
//! `breaker_failures_max` failures in a row it rests, the log keeps what comes,
//! and one event is let through as a trial; its success lets all others follow.
//! Rejected events do not count: they are the event's fault, by the processor's own word.
//! It is kept for each tenant, so that one tenant's events cannot rest another's.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Shared by the tasks of one tenant's run.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    wait_min: Duration,
    wait_max: Duration,
    failures: AtomicU32,
    /// Whether `rest` needs to be looked at; so that the way of all batches takes no lock.
    tripped: AtomicBool,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    wait: Duration,
    /// Somebody is trying.
    trial: bool,
}

/// Whether a task may call its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Closed,
    /// With one event, and must tell how it went.
    Trial,
    Open(Instant),
}

/// How the breaker stands, for the status.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    #[default]
    Closed,
    Open,
    HalfOpen,
}

impl Breaker {
    pub(super) fn new(failures_max: u32, wait_min: Duration, wait_max: Duration) -> Self {
        Self {
            failures_max: failures_max.max(1),
            wait_min,
            wait_max: wait_max.max(wait_min),
            failures: AtomicU32::new(0),
            tripped: AtomicBool::new(false),
            rest: Mutex::default(),
        }
    }

    /// Ask only with work in hand: who is told `Trial` is the only one who is.
    pub(super) fn gate(&self, now: Instant) -> Gate {
        if !self.tripped.load(Ordering::Acquire) {
            return Gate::Closed;
        }
        let mut rest = self.lock();
        match rest.until {
            None => Gate::Closed,
            Some(until) if now < until => Gate::Open(until),
            // Others look again when the trial had time to end.
            Some(_) if rest.trial => Gate::Open(now + self.wait_min),
            Some(_) => {
                rest.trial = true;
                Gate::Trial
            }
        }
    }

    /// Events were handled.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut rest = self.lock();
        self.failures.store(0, Ordering::Relaxed);
        *rest = Rest::default();
        self.tripped.store(false, Ordering::Release);
    }

    /// A call failed for an event. Answers how long the processor rests when this made it rest.
    pub(super) fn failed(&self, now: Instant) -> Option<Duration> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < self.failures_max { None } else { self.trip(now) }
    }

    fn trip(&self, now: Instant) -> Option<Duration> {
        let mut rest = self.lock();
        // Somebody succeeded after the failure was counted. A rest with no failures behind it would not end.
        if self.failures.load(Ordering::Relaxed) < self.failures_max {
            return None;
        }
        // Calls that were under way when it began to rest change nothing.
        if rest.until.is_some() && !rest.trial {
            return None;
        }
        rest.wait =
            if rest.trial { (rest.wait * 2).clamp(self.wait_min, self.wait_max) } else { self.wait_min };
        rest.until = Some(now + rest.wait);
        rest.trial = false;
        self.tripped.store(true, Ordering::Release);
        Some(rest.wait)
    }

    /// The trial did not come to a verdict: somebody else tries.
    pub(super) fn undecided(&self) {
        self.lock().trial = false;
    }

    /// Another version: nothing is known against it.
    pub(super) fn reset(&self) {
        self.succeeded();
    }

    pub(super) fn state(&self) -> BreakerState {
        if !self.tripped.load(Ordering::Acquire) {
            return BreakerState::Closed;
        }
        if self.lock().trial { BreakerState::HalfOpen } else { BreakerState::Open }
    }

    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().expect("no code panics while it holds the breaker")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_after_so_many_failures_tries_once_and_goes_on_after_a_success() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(3, second, second * 4);
        let start = Instant::now();
        assert_eq!(breaker.failed(start), None);
        breaker.succeeded();
        assert_eq!([breaker.failed(start), breaker.failed(start)], [None, None], "a success begins anew");
        assert_eq!(breaker.gate(start), Gate::Closed);
        assert_eq!(breaker.failed(start), Some(second));
        assert_eq!(breaker.gate(start), Gate::Open(start + second));
        assert_eq!(breaker.failed(start), None, "a call that was under way does not lengthen the rest");
        let later = start + second;
        assert_eq!(breaker.gate(later), Gate::Trial);
        assert_ne!(breaker.gate(later), Gate::Trial, "one tries");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.failed(later), Some(second * 2), "the rest doubles");
        assert_eq!(breaker.gate(later + second * 2), Gate::Trial);
        assert_eq!(breaker.failed(later + second * 2), Some(second * 4));
        let last = later + second * 6;
        assert_eq!(breaker.gate(last), Gate::Trial);
        assert_eq!(breaker.failed(last), Some(second * 4), "up to its bound");
        assert_eq!(breaker.gate(last + second * 4), Gate::Trial);
        breaker.undecided();
        assert_eq!(breaker.gate(last + second * 4), Gate::Trial, "an undecided trial is another's");
        breaker.succeeded();
        assert_eq!((breaker.gate(last), breaker.state()), (Gate::Closed, BreakerState::Closed));
    }

    #[test]
    fn after_a_success_it_rests_again_only_after_as_many_failures_and_as_shortly() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(2, second, second * 8);
        let mut now = Instant::now();
        for _ in 0..3 {
            assert_eq!([breaker.failed(now), breaker.failed(now)], [None, Some(second)]);
            assert_eq!(breaker.state(), BreakerState::Open);
            now += second;
            assert_eq!(breaker.gate(now), Gate::Trial);
            assert_eq!(breaker.failed(now), Some(second * 2));
            now += second * 2;
            assert_eq!(breaker.gate(now), Gate::Trial);
            breaker.succeeded();
            assert_eq!((breaker.gate(now), breaker.state()), (Gate::Closed, BreakerState::Closed));
        }
    }

    #[test]
    fn another_version_begins_without_failures() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(2, second, second);
        let now = Instant::now();
        assert_eq!(breaker.failed(now), None);
        breaker.reset();
        assert_eq!([breaker.failed(now), breaker.failed(now)], [None, Some(second)], "the count began anew");
        assert_eq!(breaker.gate(now + second), Gate::Trial);
        breaker.reset();
        assert_eq!((breaker.gate(now), breaker.state()), (Gate::Closed, BreakerState::Closed));
    }

    #[test]
    fn a_failure_that_a_success_has_overtaken_makes_nobody_rest() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(2, second, second);
        let now = Instant::now();
        assert_eq!(breaker.failed(now), None);
        breaker.succeeded();
        // The second failure was counted before that success, and comes to the lock after it.
        assert_eq!(breaker.trip(now), None);
        assert_eq!(breaker.gate(now), Gate::Closed);
        assert_eq!([breaker.failed(now), breaker.failed(now)], [None, Some(second)], "it can still rest");
        assert_eq!(breaker.gate(now + second), Gate::Trial);
        breaker.succeeded();
        assert_eq!(breaker.gate(now + second), Gate::Closed, "and the trial ends that");
    }

    #[test]
    fn a_longest_rest_under_the_shortest_is_that() {
        let second = Duration::from_secs(1);
        let breaker = Breaker::new(1, second * 2, second);
        let now = Instant::now();
        assert_eq!(breaker.failed(now), Some(second * 2));
        assert_eq!(breaker.gate(now + second * 2), Gate::Trial);
        assert_eq!(breaker.failed(now), Some(second * 2));
    }
}
