//! Carries what this host tells the fleet into the feed.
//!
//! Promises: what was proposed is carried, over restarts and however long the feed is away; events of one entity in their
//! order, those of others beside them; what the feed will never take, or no host any more, becomes a dead letter, which
//! holds nothing but its entity. What is too early for this host's clock waits until that is right. Several publishers may
//! work on one store: a claim keeps them apart, and when it has ended, the sink knows what it was given twice. Deliberately
//! absent: a control version of its own. The sink gives it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use metrics::{counter, gauge};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::backoff::{self, Backoff};
use super::changes::desired_of;
use super::trust::{RELEASED_BEFORE, TrustStore};
use super::{
    Believing, Claimed, ControlEvent, ControlFeedError, ControlSink, ControlStore, ControlVersion, EventBody,
    EventId, Kind, PluginSpec, Proposed, PublishOutcome, Result, Settlement, freeze,
};
use crate::clock::Clock;
use crate::error::{Classify as _, Retry};
use crate::limits::{
    CONTROL_PUBLISH_DENIALS_MAX, CONTROL_PUBLISH_ENTITIES_MAX, CONTROL_PUBLISH_EVENTS_MAX,
    CONTROL_PUBLISH_LEASE, CONTROL_PUBLISH_LOOK, CONTROL_PUBLISH_WAIT_MAX, CONTROL_PUBLISH_WAIT_MIN,
};
use crate::telemetry::metrics::{
    CONTROL_OUTBOX_DEAD, CONTROL_OUTBOX_OLDEST, CONTROL_OUTBOX_WAITING, CONTROL_PUBLISH_FAILED,
    CONTROL_PUBLISHED,
};

/// Least wait before the outbox is looked at again.
const LOOK_MIN: Duration = Duration::from_millis(1);

/// Takes proposed changes on a host that has a sink.
#[derive(Clone, Debug)]
pub struct Origin {
    store: Arc<dyn ControlStore>,
    keys: Believing,
    clock: Arc<dyn Clock>,
    proposed: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
pub struct PublisherOptions {
    pub lease: Duration,
    /// Entities that are published at the same time.
    pub entities_max: usize,
    pub wait_min: Duration,
    pub wait_max: Duration,
    pub denials_max: u32,
    /// The sink is of the feed that this host reads: it is told how far that is.
    pub is_of_source: bool,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            lease: CONTROL_PUBLISH_LEASE,
            entities_max: CONTROL_PUBLISH_ENTITIES_MAX,
            wait_min: CONTROL_PUBLISH_WAIT_MIN,
            wait_max: CONTROL_PUBLISH_WAIT_MAX,
            denials_max: CONTROL_PUBLISH_DENIALS_MAX,
            is_of_source: false,
        }
    }
}

#[derive(Debug)]
pub struct Publisher {
    store: Arc<dyn ControlStore>,
    sink: Arc<dyn ControlSink>,
    keys: Believing,
    clock: Arc<dyn Clock>,
    options: PublisherOptions,
    proposed: Arc<Notify>,
}

/// How often in a row the sink has said of itself that it cannot take an event.
type Denials = HashMap<EventId, u32>;

impl Origin {
    pub fn new(store: Arc<dyn ControlStore>, keys: Believing, clock: Arc<dyn Clock>) -> Self {
        Self { store, keys, clock, proposed: Arc::default() }
    }

    /// The publisher that carries what is proposed here, woken at once.
    pub fn publisher(&self, sink: Arc<dyn ControlSink>, options: PublisherOptions) -> Publisher {
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let (keys, proposed) = (self.keys.clone(), Arc::clone(&self.proposed));
        Publisher { store, sink, keys, clock, options, proposed }
    }

    /// Checks an event and the build that it brings as every host does, and keeps it to be told. The same event again answers
    /// the same, also when it would be refused by now.
    pub async fn propose(&self, event: &ControlEvent) -> Result<Proposed> {
        if let Some(refused) = self.refusal(event).await? {
            return match self.store.told(event.id()).await? {
                Some(told) if told.digest == event.digest() => {
                    Ok(Proposed { entity: told.entity, revision: told.revision, repeated: true })
                }
                _ => Err(refused),
            };
        }
        let proposed = self.store.propose(event).await?;
        self.proposed.notify_one();
        Ok(proposed)
    }

    async fn refusal(&self, event: &ControlEvent) -> Result<Option<ControlFeedError>> {
        let keys = self.keys.keys();
        if let Err(refused) = keys.check_event(event, self.clock.now()) {
            return Ok(Some(refused));
        }
        match self.build_refusal(&keys, event).await? {
            None => freeze::refusal(self.store.as_ref(), event).await,
            refused => Ok(refused),
        }
    }

    /// Why no host would run what an event brings. What stands already is not news: to pause it, to go on with it or to go
    /// back to it needs no key that counts today. Who deploys it anew needs one that is not revoked.
    async fn build_refusal(
        &self,
        keys: &TrustStore,
        event: &ControlEvent,
    ) -> Result<Option<ControlFeedError>> {
        let unsigned = event.unsigned();
        let EventBody::Plugin { plugin, desired } = &unsigned.body else { return Ok(None) };
        let check = |spec: &PluginSpec, at| keys.check_artifact(plugin, &spec.component, at).err();
        let specs = || desired.spec.iter().chain(&desired.stable);
        if specs().all(|spec| check(spec, unsigned.issued_at).is_none()) {
            return Ok(None);
        }
        let rows = self.store.proposed().await?;
        let stands = rows.iter().filter_map(desired_of).find(|(name, _)| name == plugin);
        let stands = stands.map(|(_, stands)| stands);
        let is_known = |spec: &PluginSpec| {
            let mut known = stands.into_iter().flat_map(|stands| stands.spec.iter().chain(&stands.stable));
            known.any(|known| known.component == spec.component)
        };
        let deployed = desired.spec.as_ref().filter(|_| unsigned.kind == Kind::Deployed);
        Ok(specs().find_map(|spec| {
            if is_known(spec) {
                check(deployed.filter(|deployed| *deployed == spec)?, RELEASED_BEFORE)
            } else {
                check(spec, unsigned.issued_at)
            }
        }))
    }

    /// Tries a dead letter again. Answers whether there was one.
    pub async fn retry(&self, event: &EventId) -> Result<bool> {
        let found = self.store.retry_letter(event).await?;
        self.proposed.notify_one();
        Ok(found)
    }

    /// Gives a dead letter up, see [`ControlStore::discard_letter`].
    pub async fn discard(&self, event: &EventId) -> Result<bool> {
        let found = self.store.discard_letter(event).await?;
        self.proposed.notify_one();
        Ok(found)
    }
}

impl Publisher {
    /// Looks at once and until it is told to stop. Whatever it awaits then is dropped: what was claimed is claimed again
    /// later, and the sink knows what it has.
    pub async fn run(&self, stop: &CancellationToken) {
        // Cut at any await, see above.
        stop.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        let mut backoff = Backoff::new(self.options.wait_min, self.options.wait_max);
        let mut denials = Denials::new();
        loop {
            let wait = match self.round(&mut denials).await {
                Ok(wait) => {
                    backoff.reset();
                    wait
                }
                Err(problem) => {
                    warn!(
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        %problem,
                        "the outbox of the control feed cannot be worked on"
                    );
                    Some(backoff.next())
                }
            };
            if let Some(wait) = wait {
                // A notification that comes before is kept.
                tokio::select! {
                    () = self.proposed.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// Publishes what is due. Answers how long to wait, unless there may be more at once.
    async fn round(&self, denials: &mut Denials) -> Result<Option<Duration>> {
        let claimed = self.store.claim(CONTROL_PUBLISH_EVENTS_MAX, self.options.lease).await?;
        let is_idle = claimed.is_empty();
        if !is_idle {
            if self.options.is_of_source {
                // What is appended to an older copy of the feed would be taken for what was read before.
                self.sink.saw(self.store.cursor().await?);
            }
            let settlements = self.publish(claimed, denials).await;
            self.store.settle(settlements).await?;
        }
        let status = self.store.outbox().await?;
        let age = status.oldest_at.map_or(0, |at| self.clock.now().0.saturating_sub(at).max(0));
        gauge!(CONTROL_OUTBOX_WAITING).set(status.waiting as f64);
        gauge!(CONTROL_OUTBOX_DEAD).set(status.dead as f64);
        gauge!(CONTROL_OUTBOX_OLDEST).set(age as f64 / 1e6);
        if !is_idle {
            return Ok(None);
        }
        let due = self.store.next_due().await?.unwrap_or(CONTROL_PUBLISH_LOOK);
        Ok(Some(due.clamp(LOOK_MIN, CONTROL_PUBLISH_LOOK)))
    }

    /// Several entities at a time, the events of each one after the other.
    async fn publish(&self, claimed: Vec<Claimed>, denials: &mut Denials) -> Vec<Settlement> {
        let mut entities: BTreeMap<String, Vec<Claimed>> = BTreeMap::new();
        let mut order = Vec::new();
        for claimed in claimed {
            let entity = claimed.event.entity();
            let events = entities.entry(entity.clone()).or_default();
            if events.is_empty() {
                order.push(entity);
            }
            events.push(claimed);
        }
        // Others may claim what is left after the lease.
        let until = Instant::now() + self.options.lease / 2;
        let groups: Vec<_> = order.iter().filter_map(|entity| entities.remove(entity)).collect();
        let appended: Vec<Vec<_>> = stream::iter(groups)
            .map(|events| self.append(events, until))
            .buffered(self.options.entities_max.max(1))
            .collect()
            .await;
        appended
            .into_iter()
            .flatten()
            .map(|(claimed, tried)| self.settlement(&claimed, tried, denials))
            .collect()
    }

    /// Events of one entity, up to the first that fails. None is one that was not tried.
    async fn append(
        &self,
        events: Vec<Claimed>,
        until: Instant,
    ) -> Vec<(Claimed, Option<Result<ControlVersion>>)> {
        let mut appended = Vec::new();
        for claimed in events {
            if Instant::now() >= until {
                appended.push((claimed, None));
                continue;
            }
            // While it waited it may have expired, or lost its key: no host would take it.
            let tried = match self.keys.keys().check_event(&claimed.event, self.clock.now()) {
                Err(refused) => Err(refused),
                Ok(()) => self.sink.append(&claimed.event).await,
            };
            let tried = match tried {
                // A feed that carries nothing.
                Ok(ControlVersion(0)) => Err(ControlFeedError::NoFeed),
                tried => tried,
            };
            let failed = tried.is_err();
            appended.push((claimed, Some(tried)));
            if failed {
                // The store gives back what is claimed behind it.
                break;
            }
        }
        appended
    }

    fn settlement(
        &self,
        claimed: &Claimed,
        tried: Option<Result<ControlVersion>>,
        denials: &mut Denials,
    ) -> Settlement {
        let event = claimed.event.id().clone();
        let outcome = match tried {
            None => PublishOutcome::GivenBack,
            Some(Ok(version)) => {
                denials.remove(&event);
                counter!(CONTROL_PUBLISHED).increment(1);
                PublishOutcome::Published(version)
            }
            Some(Err(problem)) => {
                let again = self.again(claimed, &problem, denials);
                counter!(CONTROL_PUBLISH_FAILED).increment(1);
                tell_failure(claimed, &problem, again);
                PublishOutcome::Refused { error: problem.to_string(), again }
            }
        };
        Settlement { event, claim: claimed.claim, outcome }
    }

    /// When an event is tried again; none when that cannot help.
    fn again(
        &self,
        claimed: &Claimed,
        problem: &ControlFeedError,
        denials: &mut Denials,
    ) -> Option<Duration> {
        let event = claimed.event.id();
        let wait = backoff::after(self.options.wait_min, self.options.wait_max, claimed.attempts);
        let is_early = matches!(problem, ControlFeedError::OutOfTime { .. }) && !self.has_expired(claimed);
        if is_about_the_event(problem) && !is_early {
            denials.remove(event);
            return None;
        }
        if is_early || problem.retry() != Retry::Never {
            // However long: a feed that is away comes back, and a clock that is behind is put right.
            denials.remove(event);
            return Some(wait);
        }
        let denied = denials.entry(event.clone()).or_default();
        *denied += 1;
        if *denied < self.options.denials_max {
            return Some(wait);
        }
        denials.remove(event);
        None
    }

    fn has_expired(&self, claimed: &Claimed) -> bool {
        claimed.event.unsigned().expires_at.is_some_and(|end| self.clock.now().0 >= end)
    }
}

/// Whether the same event would be refused by any sink, at any time; one that is out of its time only if it has expired.
fn is_about_the_event(problem: &ControlFeedError) -> bool {
    matches!(
        problem,
        ControlFeedError::InvalidEvent { .. }
            | ControlFeedError::NotUnderstood { .. }
            | ControlFeedError::Untrusted { .. }
            | ControlFeedError::OutOfTime { .. }
            | ControlFeedError::EventIdTaken { .. }
    )
}

fn tell_failure(claimed: &Claimed, problem: &ControlFeedError, again: Option<Duration>) {
    let (event, kind, blame) = (claimed.event.id().as_str(), problem.code(), problem.blame().as_str());
    match again {
        Some(_) => warn!(
            error.kind = kind,
            error.blame = blame,
            event,
            attempts = claimed.attempts + 1,
            %problem,
            "a control event is not in the feed yet"
        ),
        None => error!(
            error.kind = kind,
            error.blame = blame,
            event,
            %problem,
            "the feed does not take a control event; its plugin waits until somebody retries or discards it"
        ),
    }
}
