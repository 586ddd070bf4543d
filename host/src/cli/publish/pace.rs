//! Even sending at a rate.

use std::time::Duration;

/// How far sending may catch up after it was held up, so that a pause is not followed by a burst.
const CATCH_UP_MAX: Duration = Duration::from_millis(250);

/// Says how long to wait. Pure: time comes in, a wait comes out.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time that one event takes.
    event: Duration,
    /// When the next event is due.
    due: Duration,
}

impl Pace {
    pub fn new(events_per_second: f64) -> Self {
        let seconds = (1.0 / events_per_second).clamp(0.0, 1e9);
        Self { event: Duration::from_secs_f64(seconds), due: Duration::ZERO }
    }

    /// How long to wait at `now` before sending so many events. They count as sent then.
    pub fn wait(&mut self, now: Duration, events: u64) -> Duration {
        let due = self.due.max(now.saturating_sub(CATCH_UP_MAX));
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        self.due = due + self.event.saturating_mul(events);
        due.saturating_sub(now)
    }
}
