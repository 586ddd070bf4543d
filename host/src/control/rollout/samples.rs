//! What versions did, in numbers that can be added and compared.

use serde::{Deserialize, Serialize};

/// What a version did on a host over a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Sample {
    /// Events whose effects are committed.
    pub events: u64,
    /// Calls that ended an instance.
    pub traps: u64,
    /// Events that became dead letters.
    pub errors: u64,
    /// Time in the guest, of all events together.
    pub nanoseconds: u64,
    /// Events behind, at the end of the time.
    pub lag_events: u64,
}

impl Sample {
    /// Both together: sums, and the greater lag. Numbers of reports are anybody's, so they stop at their ends.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            events: self.events.saturating_add(other.events),
            traps: self.traps.saturating_add(other.traps),
            errors: self.errors.saturating_add(other.errors),
            nanoseconds: self.nanoseconds.saturating_add(other.nanoseconds),
            lag_events: self.lag_events.max(other.lag_events),
        }
    }

    /// What came after an earlier look at the same counters. A counter that went back began anew.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let after = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Self {
            events: after(self.events, earlier.events),
            traps: after(self.traps, earlier.traps),
            errors: after(self.errors, earlier.errors),
            nanoseconds: after(self.nanoseconds, earlier.nanoseconds),
            lag_events: self.lag_events,
        }
    }

    /// As rates. Of fewer events than `events_min` they are taken as if the rest were to come without a fault: a rollout
    /// does not end for what could still pass.
    pub fn rates(&self, events_min: u64) -> Rates {
        let events = self.events.max(events_min).max(1);
        Rates {
            traps_per_million: per(self.traps, 1_000_000, events),
            errors_per_million: per(self.errors, 1_000_000, events),
            nanoseconds_per_event: (self.events > 0 && self.events >= events_min)
                .then(|| self.nanoseconds / self.events),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rates {
    pub traps_per_million: u64,
    pub errors_per_million: u64,
    /// None of too few events.
    pub nanoseconds_per_event: Option<u64>,
}

/// Rounded up: one of ten million is not none.
fn per(count: u64, of: u64, events: u64) -> u64 {
    let product = u128::from(count) * u128::from(of);
    u64::try_from(product.div_ceil(u128::from(events))).unwrap_or(u64::MAX)
}
