//! Waiting between tries, with jitter, so that many clients do not come back at once.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// First wait between tries.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait between tries.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Doubles from 100 ms to 5 s; each wait is between its half and the whole.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    wait: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: WAIT_MIN }
    }
}

impl Backoff {
    /// The next wait. `random` picks the place between the half and the whole.
    pub fn next(&mut self, random: u64) -> Duration {
        let half = self.wait / 2;
        let part = u32::try_from(random % 1_000).unwrap_or(0);
        self.wait = (self.wait * 2).min(WAIT_MAX);
        half + half * part / 1_000
    }

    /// Something worked: the next wait is short again.
    pub fn reset(&mut self) {
        self.wait = WAIT_MIN;
    }

    pub(super) async fn sleep(&mut self) {
        // The standard library seeds each `RandomState` anew, which is random enough to spread clients.
        let random = RandomState::new().build_hasher().finish();
        tokio::time::sleep(self.next(random)).await;
    }
}
