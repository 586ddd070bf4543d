//! Carries emitted events and appended entries from the store's outbox to a log and channels elsewhere.
//!
//! At least once, in order per processor and tenant: a page of the outbox goes over, and what was answered for is removed.
//! A crash in between carries it over again; the log knows the events by their ids, and the channels the entries by their
//! keys. What will never be taken is kept apart and counted, so that it does not hold up what comes after it; a channel
//! that is full is given some time. Entries of different channels between two events do not wait for each other.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use metrics::counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::checkpoints::{
    CarriedAppends, CarryError, ChannelCarrier, Fate, Outbox, OutboxBatch, OutboxDone, OutboxPart,
    OutboxWhat, WhileFull,
};
use crate::cluster::{Fence, Ownerships, Right, Standing};
use crate::error::{BackendError, Classify as _};
use crate::event::EventBatch;
use crate::limits::{
    OUTBOX_FULL_CHANNELS_MAX, OUTBOX_FULL_WAIT_MAX, OUTBOX_RETRY_WAIT_MAX, OUTBOX_RETRY_WAIT_MIN,
};
use crate::streams::{EventLog, StreamError};
use crate::telemetry::metrics as names;

/// The one that carries. Dropping its future in the middle loses nothing.
pub struct Relay {
    outbox: Arc<dyn Outbox>,
    log: Arc<dyn EventLog>,
    /// None where processors append to none elsewhere.
    channels: Option<Arc<dyn ChannelCarrier>>,
    full_wait: Duration,
    /// Channels that had no room, by tenant and id, and since when.
    full: Mutex<HashMap<(Box<str>, String), Instant>>,
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
    /// Emitted events and appended entries.
    pub events: u64,
    pub refused: u64,
    /// Some could not be carried now.
    pub left: bool,
}

impl Relay {
    pub fn new(outbox: Arc<dyn Outbox>, log: Arc<dyn EventLog>, owners: Option<Ownerships>) -> Self {
        Self {
            outbox,
            log,
            channels: None,
            full_wait: OUTBOX_FULL_WAIT_MAX,
            full: Mutex::default(),
            owners,
            taken: Mutex::default(),
        }
    }

    /// Where entries go that processors append.
    #[must_use]
    pub fn with_channels(self, channels: Option<Arc<dyn ChannelCarrier>>) -> Self {
        Self { channels, ..self }
    }

    /// How long a full channel is given, instead of `OUTBOX_FULL_WAIT_MAX`.
    #[must_use]
    pub fn with_full_wait(self, full_wait: Duration) -> Self {
        Self { full_wait, ..self }
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

    fn full(&self) -> MutexGuard<'_, HashMap<(Box<str>, String), Instant>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch part by part.
    async fn send_under(&self, batch: &OutboxBatch, fence: Option<&Fence>) -> (OutboxDone, bool) {
        let mut done = OutboxDone::default();
        let mut parts = &batch.parts[..];
        while let Some(first) = parts.first() {
            let appends = parts.iter().take_while(|part| matches!(part.what, OutboxWhat::Appends(_))).count();
            let (now, rest) = parts.split_at(appends.max(1));
            parts = rest;
            let sent = match &first.what {
                OutboxWhat::Events(events) => vec![self.send_events(batch, first, events, fence).await],
                OutboxWhat::Appends(_) => {
                    join_all(now.iter().map(|part| self.send_appends(batch, part, fence))).await
                }
            };
            let mut whole = true;
            for (one, all) in sent {
                whole &= all;
                done.carried.extend(one.carried);
                done.refused.extend(one.refused);
            }
            if !whole {
                return (done, false);
            }
        }
        (done, true)
    }

    /// Sends entries of one channel.
    async fn send_appends(
        &self,
        batch: &OutboxBatch,
        part: &OutboxPart,
        fence: Option<&Fence>,
    ) -> (OutboxDone, bool) {
        let mut done = OutboxDone::default();
        let OutboxWhat::Appends(appends) = &part.what else { return (done, true) };
        let Some(channels) = &self.channels else {
            for number in &part.numbers {
                let detail = "the channels of this host are in memory".to_owned();
                done.refused.push(refused(batch, appends, *number, "channels_elsewhere", detail));
            }
            return (done, true);
        };
        let place = (batch.tenant.as_str().into(), appends.channel.to_string());
        let full = match self.full().get(&place) {
            Some(since) if since.elapsed() >= self.full_wait => WhileFull::Refuse,
            _ => WhileFull::Wait,
        };
        let fence = fence.map(|fence| (&*fence.name, fence.generation));
        let fates = match channels.carry(&batch.processor, appends, fence, full).await {
            Ok(fates) => fates,
            Err(error) => {
                if let CarryError::Backend(problem) = error {
                    warn!(
                        plugin.name = %batch.processor,
                        tenant = %batch.tenant,
                        channel = %appends.channel,
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        error = %problem,
                        "appended entries wait for their channel"
                    );
                }
                return (done, false);
            }
        };
        let mut whole = true;
        for (&number, fate) in part.numbers.iter().zip(fates) {
            match fate {
                Fate::Appended => {
                    self.full().remove(&place);
                    counter!(names::OUTBOX_APPENDED).increment(1);
                    done.carried.push(number);
                }
                Fate::Repeated => done.carried.push(number),
                Fate::Refused { code, message } => {
                    done.refused.push(refused(batch, appends, number, code, message));
                }
                Fate::Full { code, message } => {
                    self.note_full(batch, &place, code, &message);
                    whole = false;
                }
                Fate::Behind => whole = false,
            }
        }
        (done, whole)
    }

    /// Begins to count the time of a channel that has no room.
    fn note_full(&self, batch: &OutboxBatch, place: &(Box<str>, String), code: &str, message: &str) {
        let mut full = self.full();
        if full.contains_key(place) {
            return;
        }
        if full.len() >= OUTBOX_FULL_CHANNELS_MAX {
            full.clear();
        }
        full.insert(place.clone(), Instant::now());
        warn!(
            plugin.name = %batch.processor,
            tenant = %batch.tenant,
            channel = place.1,
            error.kind = code,
            error.blame = "caller",
            error = message,
            "appended entries wait until their channel has room"
        );
    }

    /// Sends emitted events; when the log refuses them because of one, they go again without it.
    async fn send_events(
        &self,
        batch: &OutboxBatch,
        part: &OutboxPart,
        events: &EventBatch,
        fence: Option<&Fence>,
    ) -> (OutboxDone, bool) {
        let mut done = OutboxDone::default();
        let mut entries = part.numbers.clone();
        let mut events = events.clone();
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

/// An entry that is dropped: its commit was long ago, so nothing else can be done with it.
fn refused(
    batch: &OutboxBatch,
    appends: &CarriedAppends,
    number: u64,
    code: &'static str,
    message: String,
) -> (u64, &'static str, String) {
    let plugin = batch.processor.to_string();
    counter!(names::OUTBOX_APPENDS_REFUSED, "plugin" => plugin, "code" => code).increment(1);
    warn!(
        plugin.name = %batch.processor,
        tenant = %batch.tenant,
        channel = %appends.channel,
        error.kind = code,
        error.blame = "guest",
        error = message,
        "an appended entry is dropped"
    );
    (number, code, message)
}
