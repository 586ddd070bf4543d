//! Leases among hosts of one process: for tests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;

use crate::cluster::{Asked, Fence, Lease, LeaseStore};
use crate::error::BackendError;

/// A [`LeaseStore`] in memory.
#[derive(Debug, Default)]
pub struct MemoryLeases {
    leases: Mutex<HashMap<String, Stored>>,
}

#[derive(Debug)]
struct Stored {
    holder: String,
    generation: u64,
    until: Instant,
}

impl LeaseStore for MemoryLeases {
    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> BoxFuture<'_, Result<Asked, BackendError>> {
        let now = Instant::now();
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = leases.entry(name.to_owned()).or_insert_with(|| Stored {
            holder: String::new(),
            generation: 0,
            until: now,
        });
        if stored.holder != holder {
            if !stored.holder.is_empty() && stored.until > now {
                let (holder, left) = (stored.holder.clone(), stored.until - now);
                return ready(Ok(Asked::Taken { holder, left })).boxed();
            }
            stored.holder = holder.to_owned();
            stored.generation += 1;
        }
        stored.until = now + ttl;
        let fence = Fence { name: name.into(), generation: stored.generation };
        let lease = Lease { fence, holder: holder.into(), until: stored.until };
        ready(Ok(Asked::Granted(lease))).boxed()
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), BackendError>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = leases.get_mut(&*lease.fence.name)
            && stored.holder == *lease.holder
            && stored.generation == lease.fence.generation
        {
            stored.holder.clear();
        }
        ready(Ok(())).boxed()
    }
}
