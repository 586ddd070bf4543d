//! Takes a new version back on this host alone, without asking anybody: so many traps in such a time after its activation.
//!
//! It only decides. Whoever runs plugins here looks at it with their counters, goes back to the former version, and says in
//! its report why; the controller learns of it there.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Desired;
use crate::limits::{
    CONTROL_BREAKER_ARMED_FOR, CONTROL_BREAKER_LOOKS_MAX, CONTROL_BREAKER_TRAPS, CONTROL_BREAKER_WINDOW,
};

/// When it trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRule {
    pub traps: u64,
    pub within: Duration,
    /// How long after the activation it looks.
    pub armed_for: Duration,
}

impl Default for BreakerRule {
    fn default() -> Self {
        Self {
            traps: CONTROL_BREAKER_TRAPS,
            within: CONTROL_BREAKER_WINDOW,
            armed_for: CONTROL_BREAKER_ARMED_FOR,
        }
    }
}

/// Watches one activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    rule: BreakerRule,
    activated_at: i64,
    /// What was looked at, the oldest first: when, and how many traps there had been.
    looks: VecDeque<(i64, u64)>,
}

impl Breaker {
    /// From the activation on; `traps` is what the counter of the version shows then. Times are microseconds since 1970.
    pub fn armed(rule: BreakerRule, activated_at: i64, traps: u64) -> Self {
        Self { rule, activated_at, looks: VecDeque::from([(activated_at, traps)]) }
    }

    /// Looks at the counter. Answers how many traps there were when they are too many.
    pub fn look(&mut self, now: i64, traps: u64) -> Option<u64> {
        if now.saturating_sub(self.activated_at) > micros(self.rule.armed_for) {
            return None;
        }
        if let Some((at, before)) = self.looks.back().copied()
            && (traps < before || now < at)
        {
            // The counter began anew, or the clock went back: what was seen before cannot be compared.
            self.looks.clear();
            self.looks.push_back((now, if traps < before { 0 } else { before }));
        }
        let within = micros(self.rule.within);
        // The last look before the window stays: what it saw is where the window begins.
        while self.looks.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= within) {
            self.looks.pop_front();
        }
        let before = self.looks.front().map_or(0, |(_, before)| *before);
        if self.looks.len() >= CONTROL_BREAKER_LOOKS_MAX {
            let mut nth = 0_usize;
            self.looks.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
        self.looks.push_back((now, traps));
        let seen = traps.saturating_sub(before);
        (self.rule.traps > 0 && seen >= self.rule.traps).then_some(seen)
    }
}

/// A component that tripped, to be remembered over restarts: it does not run here again until somebody deploys it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tripped {
    pub revision: u64,
    /// `sha256:` and 64 digits.
    pub digest: String,
    /// The rollout that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
    pub traps: u64,
    /// Microseconds since 1970.
    pub at: i64,
}

impl Tripped {
    pub fn new(desired: &Desired, revision: u64, digest: &str, traps: u64, at: i64) -> Self {
        let rollout = desired.rollout.as_ref().map(|rollout| rollout.id.clone());
        Self { revision, digest: digest.to_owned(), rollout, traps, at }
    }

    /// Whether a component is still not to run. The next wave of the same rollout is no reason to try it again, although it
    /// is another revision.
    pub fn blocks(&self, desired: &Desired, revision: u64, digest: &str) -> bool {
        if self.digest != digest {
            return false;
        }
        match (&self.rollout, &desired.rollout) {
            (Some(then), Some(now)) => *then == now.id,
            _ => revision <= self.revision,
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
