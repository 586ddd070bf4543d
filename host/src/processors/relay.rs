//! Carries emitted events from the store's outbox to a log elsewhere.
//!
//! At least once, in order per processor and tenant: a page of the outbox goes to the log, and what the log answered
//! for is removed. A crash in between carries it over again, and the log knows the events by their ids. What the log
//! will never take is kept apart and counted, so that it does not hold up what comes after it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use metrics::counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::checkpoints::{Outbox, OutboxBatch, OutboxDone};
use crate::cluster::{Fence, Ownerships, Right, Standing};
use crate::error::{BackendError, Classify as _};
use crate::event::EventBatch;
use crate::limits::{OUTBOX_RETRY_WAIT_MAX, OUTBOX_RETRY_WAIT_MIN};
use crate::streams::{EventLog, StreamError};
use crate::telemetry::metrics as names;

/// The one that carries. Dropping its future in the middle loses nothing.
pub struct Relay {
    outbox: Arc<dyn Outbox>,
    log: Arc<dyn EventLog>,
    /// Which processors this host may speak for; none where there is no other host.
    owners: Option<Ownerships>,
    /// Processors that do not run here and that another host has, and when to ask again.
    taken: Mutex<HashMap<Arc<str>, Instant>>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub events: u64,
    pub refused: u64,
    /// Some could not be carried now.
    pub left: bool,
}

impl Relay {
    pub fn new(outbox: Arc<dyn Outbox>, log: Arc<dyn EventLog>, owners: Option<Ownerships>) -> Self {
        Self { outbox, log, owners, taken: Mutex::default() }
    }

    /// Carries for as long as it is polled.
    pub async fn run(&self) {
        let mut added = self.outbox.added();
        let mut wait = OUTBOX_RETRY_WAIT_MIN;
        loop {
            added.mark_unchanged();
            match self.carry().await {
                Ok(Carried { left: false, events: 0, refused: 0 }) => {
                    wait = OUTBOX_RETRY_WAIT_MIN;
                    // What waits for its processor to be this host's again is looked for now and then.
                    let held = if self.outbox.is_empty() { Duration::MAX } else { OUTBOX_RETRY_WAIT_MAX };
                    if let Ok(Err(_)) = tokio::time::timeout(held, added.changed()).await {
                        return;
                    }
                }
                Ok(Carried { left: false, .. }) => wait = OUTBOX_RETRY_WAIT_MIN,
                Ok(Carried { left: true, .. }) | Err(BackendError::Closed) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(OUTBOX_RETRY_WAIT_MAX);
                }
                Err(problem) => {
                    warn!(error.kind = problem.code(), error.blame = "host", error = %problem, "the outbox is not carried over");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(OUTBOX_RETRY_WAIT_MAX);
                }
            }
        }
    }

    /// One page.
    pub async fn carry(&self) -> Result<Carried, BackendError> {
        let mut held = self.owners.as_ref().map(Ownerships::not_held).unwrap_or_default();
        held.extend(self.taken());
        let page = self.outbox.waiting(&held).await?;
        if page.is_empty() {
            return Ok(Carried::default());
        }
        let sent = join_all(page.iter().map(|batch| self.send(batch))).await;
        let mut done = OutboxDone::default();
        let mut left = false;
        for (one, all) in sent {
            left |= !all;
            done.carried.extend(one.carried);
            done.refused.extend(one.refused);
        }
        let carried = Carried { events: done.carried.len() as u64, refused: done.refused.len() as u64, left };
        if carried.events + carried.refused > 0 {
            self.outbox.settle(done).await?;
            counter!(names::OUTBOX_CARRIED).increment(carried.events);
            counter!(names::OUTBOX_REFUSED).increment(carried.refused);
        }
        Ok(carried)
    }

    /// Sends a batch, if this host may. False when it was not sent to its end.
    async fn send(&self, batch: &OutboxBatch) -> (OutboxDone, bool) {
        let Some(owners) = &self.owners else { return self.send_under(batch, None).await };
        match owners.right(&batch.processor) {
            Right::Held(fence) => self.send_under(batch, Some(&fence)).await,
            Right::NotHeld => (OutboxDone::default(), false),
            Right::NotKept => self.send_borrowing(batch, owners).await,
        }
    }

    /// What a plugin emitted that does not run here any more is still to be published, unless another host runs it: that
    /// one emits the same, and what was emitted here may be of a time when this host owned it no more.
    async fn send_borrowing(&self, batch: &OutboxBatch, owners: &Ownerships) -> (OutboxDone, bool) {
        let end = CancellationToken::new();
        let (mut ownership, keeper) = owners.keep(&batch.processor, end.clone());
        let sending = async {
            let told = tokio::time::timeout(OUTBOX_RETRY_WAIT_MAX, ownership.told()).await;
            let sent = match told {
                Ok(Standing::Owner(lease)) => self.send_under(batch, Some(&lease.fence)).await,
                // A server that does not answer is not worth another wait for the same, either.
                Ok(Standing::Standby { .. } | Standing::Unknown) | Err(_) => {
                    let again = Instant::now() + OUTBOX_RETRY_WAIT_MAX;
                    self.lock().insert(Arc::clone(&batch.processor), again);
                    (OutboxDone::default(), false)
                }
            };
            end.cancel();
            sent
        };
        tokio::join!(sending, keeper).0
    }

    /// What is not to be asked for yet.
    fn taken(&self) -> Vec<Arc<str>> {
        let mut taken = self.lock();
        let now = Instant::now();
        taken.retain(|_, again| *again > now);
        taken.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch; one that the log refuses because of one event goes again without it.
    async fn send_under(&self, batch: &OutboxBatch, fence: Option<&Fence>) -> (OutboxDone, bool) {
        let mut done = OutboxDone::default();
        let mut entries = batch.entries.clone();
        let mut events = batch.events.clone();
        while !events.is_empty() {
            match self.append(events.clone(), fence).await {
                Ok(()) => {
                    done.carried = entries;
                    return (done, true);
                }
                Err(StreamError::IdTaken { index, id, position }) => {
                    let detail = format!(
                        "the id `{id}` is taken by an event with other content at position {position}"
                    );
                    error!(
                        plugin.name = %batch.processor,
                        tenant = %events.tenant,
                        event.id = id,
                        error.kind = "event_id_taken",
                        error.blame = "guest",
                        "an emitted event cannot be published: {detail}"
                    );
                    done.refused.push((entries.remove(index), "event_id_taken", detail));
                    events = without(&events, index);
                }
                Err(problem) => {
                    if !matches!(problem, StreamError::Fenced { .. }) {
                        warn!(
                            plugin.name = %batch.processor,
                            tenant = %events.tenant,
                            error.kind = problem.code(),
                            error.blame = problem.blame().as_str(),
                            error = %problem,
                            "emitted events wait for the log"
                        );
                    }
                    return (done, false);
                }
            }
        }
        (done, true)
    }

    async fn append(&self, events: EventBatch, fence: Option<&Fence>) -> Result<(), StreamError> {
        let appended = match fence {
            None => self.log.append(events).await,
            Some(fence) => self.log.append_fenced(events, fence).await,
        };
        appended.map(drop)
    }
}

fn without(events: &EventBatch, index: usize) -> EventBatch {
    let mut kept = EventBatch::with_capacity(events.tenant.clone(), events.len(), events.bytes());
    for other in (0..events.len()).filter(|other| *other != index) {
        kept.push_from(events, other);
    }
    kept
}
