//! What a run is told to do, and how long it waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{Detail, Scope, SubscribeRequest};
use crate::limits;

/// How a run behaves. The first eleven are those of the protocol's other runtimes, under their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Whose checkpoint it is. Must not be empty.
    pub client_id: String,
    /// Empty: all kinds.
    pub kinds: Vec<String>,
    pub entry_channels: Vec<String>,
    pub entry_content_types: Vec<String>,
    pub entry_roles: Vec<String>,
    pub scope: Scope,
    /// Where to begin without a checkpoint: `start` is the oldest event there is, none is now.
    pub after_cursor: Option<String>,
    pub justification: String,
    pub checkpoint_interval: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    pub on_cursor_lost: CursorPolicy,
    /// A stream that says nothing for so long is opened again, where there is a place to go on from; zero waits for ever.
    pub idle_max: Duration,
    /// How often the newest events are read again; zero leaves it out.
    pub recheck: Duration,
    /// How many events are read again after a reconnect.
    pub overlap_events: usize,
    /// A put is due after so many events, or bytes of them, too.
    pub checkpoint_events: u64,
    pub checkpoint_bytes: u64,
    pub behind_events_max: u64,
}

impl RuntimeConfig {
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            kinds: Vec::new(),
            entry_channels: Vec::new(),
            entry_content_types: Vec::new(),
            entry_roles: Vec::new(),
            scope: Scope::default(),
            after_cursor: None,
            justification: String::new(),
            checkpoint_interval: limits::SOURCE_CHECKPOINT_INTERVAL,
            reconnect_min: limits::SOURCE_RECONNECT_MIN,
            reconnect_max: limits::SOURCE_RECONNECT_MAX,
            on_cursor_lost: CursorPolicy::default(),
            idle_max: limits::SOURCE_IDLE_MAX,
            recheck: limits::SOURCE_RECHECK,
            overlap_events: limits::SOURCE_OVERLAP_EVENTS,
            checkpoint_events: limits::SOURCE_CHECKPOINT_EVENTS,
            checkpoint_bytes: limits::SOURCE_CHECKPOINT_BYTES,
            behind_events_max: limits::SOURCE_BEHIND_EVENTS_MAX,
        }
    }

    /// With times that can be added to any other, and the usual ones for zeros of the first three.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for (time, usual) in [
            (&mut self.checkpoint_interval, limits::SOURCE_CHECKPOINT_INTERVAL),
            (&mut self.reconnect_min, limits::SOURCE_RECONNECT_MIN),
            (&mut self.reconnect_max, limits::SOURCE_RECONNECT_MAX),
        ] {
            if time.is_zero() {
                *time = usual;
            }
        }
        for time in [
            &mut self.checkpoint_interval,
            &mut self.reconnect_min,
            &mut self.reconnect_max,
            &mut self.idle_max,
            &mut self.recheck,
        ] {
            *time = (*time).min(limits::SOURCE_TIME_MAX);
        }
        self
    }

    pub(super) fn request(&self, after_cursor: Option<String>) -> SubscribeRequest {
        SubscribeRequest {
            kinds: self.kinds.clone(),
            detail: Detail::Full,
            after_cursor,
            scope: self.scope,
            justification: self.justification.clone(),
            entry_channels: self.entry_channels.clone(),
            entry_content_types: self.entry_content_types.clone(),
            entry_roles: self.entry_roles.clone(),
        }
    }
}

/// What to do when the server no longer knows the cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CursorPolicy {
    /// Stop and say so: somebody decides.
    #[default]
    Fail,
    /// Go on with the oldest event there is. What was handled comes again.
    Oldest,
    /// Go on with what comes from now. What is gone is lost.
    Tail,
    /// As `oldest`, and the processor is told to begin anew. One that cannot ends the run.
    Rebuild,
}

/// Waits that double up to a bound. Half of each is left to chance, so that many who lost one server do not come back at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A bound that is zero, or under the least wait, is taken for the usual one.
    pub fn new(min: Duration, max: Duration) -> Self {
        let min = if min.is_zero() { limits::SOURCE_RECONNECT_MIN } else { min };
        let max = if max.is_zero() { limits::SOURCE_RECONNECT_MAX } else { max }.max(min);
        Self { min, max, next: min }
    }

    /// How long to wait now: at least what was asked for, within reason. Then it is asked again.
    pub fn wait(&mut self, asked: Duration) -> Duration {
        let asked = asked.min(limits::SOURCE_ASKED_WAIT_MAX);
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        whole.mul_f64(rand::random_range(0.5..=1.0)).max(asked)
    }

    /// Something went well.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// What was waited for lived so long. Longer than the longest wait is well, whatever it ended with: that is no
    /// server that takes connections only to close them.
    pub fn lived(&mut self, life: Duration) {
        if life >= self.max {
            self.reset();
        }
    }

    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_mean_the_usual_waits() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        let first = backoff.wait(Duration::ZERO);
        assert!(first >= limits::SOURCE_RECONNECT_MIN / 2 && first <= limits::SOURCE_RECONNECT_MIN);
        assert_eq!(backoff.max(), limits::SOURCE_RECONNECT_MAX);
    }

    #[test]
    fn what_a_server_asks_for_is_waited_for() {
        let asked = Duration::from_secs(90);
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).wait(asked), asked);
        let days = Duration::from_secs(30 * 24 * 3_600);
        let waited = Backoff::new(Duration::ZERO, Duration::ZERO).wait(days);
        assert_eq!(waited, limits::SOURCE_ASKED_WAIT_MAX, "then it is asked again");
    }

    #[test]
    fn what_lived_longer_than_the_longest_wait_begins_with_the_least() {
        let (min, max) = (Duration::from_millis(10), Duration::from_secs(10));
        let mut backoff = Backoff::new(min, max);
        for _ in 0..20 {
            backoff.wait(Duration::ZERO);
        }
        backoff.lived(max - min);
        assert!(backoff.wait(Duration::ZERO) > min, "a short life changes nothing");
        backoff.lived(max);
        assert!(backoff.wait(Duration::ZERO) <= min);
    }

    /// A zero that meant no wait at all would let a refused source spin.
    #[test]
    fn zeros_are_the_usual_times_wherever_they_are_used() {
        let zeros = RuntimeConfig {
            checkpoint_interval: Duration::ZERO,
            reconnect_min: Duration::ZERO,
            reconnect_max: Duration::ZERO,
            idle_max: Duration::ZERO,
            ..RuntimeConfig::new("client")
        };
        let usual = RuntimeConfig { idle_max: Duration::ZERO, ..RuntimeConfig::new("client") };
        assert_eq!(zeros.bounded(), usual, "a zero of `idle_max` waits for ever");
    }
}
