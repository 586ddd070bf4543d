//! Keeps leases for as long as they are wanted, and says at any time whether they hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::lease::{Asked, Fence, Lease, LeaseStore};
use crate::error::Classify as _;
use crate::limits::LEASE_ASK_EVERY;
use crate::telemetry::metrics as names;

/// How a host stands to something that one host at a time may do.
#[derive(Clone, Debug, Default)]
pub enum Standing {
    /// It has not been told yet.
    #[default]
    Unknown,
    Owner(Lease),
    /// This host has it.
    Standby {
        holder: String,
    },
}

/// The leases of one host. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ownerships {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn LeaseStore>,
    holder: Arc<str>,
    ttl: Duration,
    standings: Mutex<BTreeMap<Arc<str>, Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    standing: watch::Sender<Standing>,
    /// How often it is kept: the last one of a plugin may still end when the next one begins.
    keepers: usize,
}

/// What this host may do in a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// This, as long as it shows the fence.
    Held(Fence),
    /// Nothing: another host has it, or it is not known who has.
    NotHeld,
    /// This host does not ask for it.
    NotKept,
}

/// One of them, as who depends on it sees it.
#[derive(Clone, Debug)]
pub struct Ownership {
    standing: watch::Receiver<Standing>,
}

impl Ownerships {
    /// `holder` names this host: no other one has it. A lease ends after `ttl` unless it is renewed, which is tried
    /// three times within that; one that somebody else has is asked for every `LEASE_ASK_EVERY`.
    pub fn new(store: Arc<dyn LeaseStore>, holder: impl Into<Arc<str>>, ttl: Duration) -> Self {
        Self { inner: Arc::new(Inner { store, holder: holder.into(), ttl, standings: Mutex::default() }) }
    }

    /// Asks for something, and keeps it while the future that comes with it is polled and `end` is not cancelled. Then
    /// it is given back.
    pub fn keep(
        &self,
        name: &str,
        end: CancellationToken,
    ) -> (Ownership, impl Future<Output = ()> + Send + 'static + use<>) {
        let name: Arc<str> = name.into();
        let mut standings = self.lock();
        let kept = standings.entry(Arc::clone(&name)).or_default();
        kept.keepers += 1;
        let ownership = Ownership { standing: kept.standing.subscribe() };
        drop(standings);
        let keeper = self.clone();
        (ownership, async move { keeper.keep_one(name, end).await })
    }

    /// Names that this host was asked to keep and does not own now.
    pub fn not_held(&self) -> Vec<Arc<str>> {
        let standings = self.lock();
        let held = |kept: &Kept| kept.standing.borrow().lease().is_some();
        standings.iter().filter(|(_, kept)| !held(kept)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// What this host may do in a name now.
    pub fn right(&self, name: &str) -> Right {
        let standings = self.lock();
        let Some(kept) = standings.get(name) else { return Right::NotKept };
        match kept.standing.borrow().lease() {
            Some(lease) => Right::Held(lease.fence.clone()),
            None => Right::NotHeld,
        }
    }

    /// Whether another host has something now; asks where this host does not keep it. No, where that is not known in time.
    pub async fn is_elsewhere(&self, name: &str) -> bool {
        let end = CancellationToken::new();
        let (mut ownership, keeper) = self.keep(name, end.clone());
        let asking = async {
            let told = tokio::time::timeout(LEASE_ASK_EVERY, ownership.told()).await;
            end.cancel();
            matches!(told, Ok(Standing::Standby { .. }))
        };
        tokio::join!(asking, keeper).0
    }

    async fn keep_one(&self, name: Arc<str>, end: CancellationToken) {
        let mut told = false;
        loop {
            let asked = tokio::select! {
                asked = self.inner.store.acquire(&name, &self.inner.holder, self.inner.ttl) => asked,
                // A server that does not answer is not waited for: nobody may be its owner and not know.
                () = at(self.ends(&name)) => {
                    self.expire(&name);
                    continue;
                }
                () = end.cancelled() => break,
            };
            let mut wait = self.inner.ttl / 3;
            match asked {
                Ok(Asked::Granted(lease)) => {
                    told = false;
                    self.stand(&name, Standing::Owner(lease));
                }
                Ok(Asked::Taken { holder, .. }) => {
                    told = false;
                    wait = wait.min(LEASE_ASK_EVERY);
                    self.stand(&name, Standing::Standby { holder });
                }
                Err(error) => {
                    wait = wait.min(LEASE_ASK_EVERY);
                    if !std::mem::replace(&mut told, true) {
                        warn!(error.kind = error.code(), error.blame = "host", lease = %name, %error, "a lease cannot be asked for");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = at(self.ends(&name)) => self.expire(&name),
                () = end.cancelled() => break,
            }
        }
        if let Some(lease) = self.forget(&name)
            && let Err(error) = self.inner.store.release(&lease).await
        {
            info!(%error, lease = %name, "a lease was not given back; it ends by itself");
        }
    }

    /// When what this host has ends, unless it is renewed before.
    fn ends(&self, name: &str) -> Option<Instant> {
        let standings = self.lock();
        let standing = standings.get(name)?.standing.borrow();
        match &*standing {
            Standing::Owner(lease) => Some(lease.until),
            Standing::Unknown | Standing::Standby { .. } => None,
        }
    }

    fn expire(&self, name: &Arc<str>) {
        counter!(names::LEASES_LOST).increment(1);
        warn!(error.kind = "lease_lost", error.blame = "host", lease = %name, "a lease has ended before it could be renewed");
        self.stand(name, Standing::Unknown);
    }

    fn stand(&self, name: &Arc<str>, now: Standing) {
        let standings = self.lock();
        let Some(Kept { standing: sender, .. }) = standings.get(name) else { return };
        let before = sender.borrow().generation();
        match &now {
            Standing::Owner(lease) if before != Some(lease.fence.generation) => {
                info!(lease = %name, generation = lease.fence.generation, "this host owns it now");
            }
            Standing::Standby { holder } if before.is_some() => {
                counter!(names::LEASES_LOST).increment(1);
                warn!(error.kind = "lease_lost", error.blame = "host", lease = %name, %holder, "another host has taken a lease over");
            }
            _ => {}
        }
        sender.send_replace(now);
        let owned = standings.values().filter(|kept| kept.standing.borrow().generation().is_some()).count();
        gauge!(names::LEASES_HELD).set(owned as f64);
    }

    /// Somebody does not keep it any more. Answers what is to be given back: nothing while somebody else here keeps it.
    fn forget(&self, name: &Arc<str>) -> Option<Lease> {
        let mut standings = self.lock();
        let kept = standings.get_mut(name)?;
        kept.keepers -= 1;
        if kept.keepers > 0 {
            return None;
        }
        let lease = kept.standing.borrow().lease().cloned();
        drop(standings);
        self.stand(name, Standing::Unknown);
        let mut standings = self.lock();
        if standings.get(name).is_some_and(|kept| kept.keepers > 0) {
            // Somebody has begun to in between, and asks for it by itself.
            return None;
        }
        standings.remove(name);
        lease
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Kept>> {
        self.inner.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Standing {
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Owner(lease) => Some(lease.fence.generation),
            _ => None,
        }
    }

    /// The lease, while it is good.
    fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Owner(lease) if lease.is_valid() => Some(lease),
            _ => None,
        }
    }
}

impl Ownership {
    /// Returns once this host is the owner, with its generation. Never, when nobody keeps it any more.
    pub async fn gained(&mut self) -> u64 {
        let owned = self.standing.wait_for(|standing| standing.lease().is_some()).await;
        match owned.ok().and_then(|standing| standing.generation()) {
            Some(generation) => generation,
            None => std::future::pending().await,
        }
    }

    /// Returns once this host is not the owner under this generation any more.
    pub async fn lost(&mut self, generation: u64) {
        // Nobody keeps it any more: that is an end, too.
        drop(self.standing.wait_for(|standing| standing.generation() != Some(generation)).await);
    }

    /// Returns once it is known whether this host or another one has it.
    pub async fn told(&mut self) -> Standing {
        let told = self.standing.wait_for(|standing| !matches!(standing, Standing::Unknown)).await;
        // Unknown, too, when nobody keeps it any more.
        told.map(|standing| standing.clone()).unwrap_or_default()
    }

    pub fn now(&self) -> Standing {
        self.standing.borrow().clone()
    }
}
