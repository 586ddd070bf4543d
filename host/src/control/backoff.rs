//! Waiting after errors.

use std::time::Duration;

/// Doubles from one wait to another; each is between its half and the whole, so that hosts do not come back together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let wait = after(self.min, self.max, self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Something worked: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The wait after so many failures before this one.
pub(super) fn after(min: Duration, max: Duration, failures: u32) -> Duration {
    let whole = min.saturating_mul(2_u32.saturating_pow(failures.min(20))).min(max);
    whole.mul_f64(rand::random_range(0.5..=1.0))
}
