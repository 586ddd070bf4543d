//! Leases: who of several hosts may do something, for a while.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::BackendError;

/// What an owner shows with everything that others will see: whoever owned it before has a lower generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub name: Arc<str>,
    pub generation: u64,
}

/// The right to do something until a moment of this host's own clock.
#[derive(Clone, Debug)]
pub struct Lease {
    pub fence: Fence,
    pub holder: Arc<str>,
    /// Nobody else has it before. Counted from before the call that gave it, so that it ends here first.
    pub until: Instant,
}

impl Lease {
    pub fn is_valid(&self) -> bool {
        Instant::now() < self.until
    }
}

/// What an asker for a lease was told.
#[derive(Clone, Debug)]
pub enum Asked {
    Granted(Lease),
    /// Somebody else has it, for so long unless it is renewed.
    Taken {
        holder: String,
        left: Duration,
    },
}

/// Leases by name. Time is the store's own, so hosts' clocks need not agree.
pub trait LeaseStore: Send + Sync + Debug {
    /// Asks for a lease. It is granted when nobody has it, or the asker itself: then it is renewed under its
    /// generation. Otherwise each grant has a higher generation than all before it.
    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> BoxFuture<'_, Result<Asked, BackendError>>;

    /// Gives it back, so that others need not wait for its end. Of a lease that is somebody else's by now, nothing.
    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), BackendError>>;
}
