//! How many event streams one caller has: with one too many the oldest ends, so that a client that came back over another
//! connection gets in.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::event::TenantId;
use crate::limits::GRPC_USER_STREAMS_MAX;

type Who = (TenantId, Arc<str>);

/// The streams of all callers that are counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<Who, VecDeque<CancellationToken>>>>);

/// One stream's place. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// None for who is not counted.
    counted: Option<(Places, Who)>,
    evicted: CancellationToken,
}

impl Places {
    pub(super) fn take(&self, who: Who) -> Place {
        let evicted = CancellationToken::new();
        let mut all = self.lock();
        let streams = all.entry(who.clone()).or_default();
        streams.push_back(evicted.clone());
        if streams.len() > GRPC_USER_STREAMS_MAX
            && let Some(oldest) = streams.pop_front()
        {
            oldest.cancel();
        }
        drop(all);
        Place { counted: Some((self.clone(), who)), evicted }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, VecDeque<CancellationToken>>> {
        // A panic elsewhere leaves a list that is right or one off.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn uncounted() -> Self {
        Self { counted: None, evicted: CancellationToken::new() }
    }

    /// Cancelled when a newer stream has the place.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Marks it, so that it is known among the others.
        self.evicted.cancel();
        let Some((places, who)) = &self.counted else { return };
        let mut all = places.lock();
        if let Some(streams) = all.get_mut(who) {
            streams.retain(|stream| !stream.is_cancelled());
            if streams.is_empty() {
                all.remove(who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(name: &str) -> Who {
        (TenantId::new("default").unwrap(), name.into())
    }

    #[test]
    fn the_oldest_goes_for_one_too_many_and_places_are_free_again() {
        let places = Places::default();
        let mut held: Vec<_> = (0..GRPC_USER_STREAMS_MAX).map(|_| places.take(who("a"))).collect();
        let other = places.take(who("b"));
        assert!(held.iter().all(|place| !place.evicted().is_cancelled()));
        held.push(places.take(who("a")));
        assert!(held[0].evicted().is_cancelled() && !held[1].evicted().is_cancelled());
        drop(held.remove(1));
        held.push(places.take(who("a")));
        assert!(!held[1].evicted().is_cancelled(), "a place was free");
        assert!(!other.evicted().is_cancelled());
        drop((held, other));
        assert!(places.lock().is_empty());
    }
}
