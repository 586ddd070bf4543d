//! The hub: who follows which change stream in this process.
//!
//! Promises: one reader per tenant, however many streams are followed; it
//! follows the tail from the first subscriber on and stops with the last. A
//! subscription says after which position it delivers, and then delivers
//! everything or says what it did not: a conflated one (the latest of each
//! aggregate, once per window) tells a gap, a raw one (every event in order)
//! ends with the position up to which it was whole. Nobody waits for a slow
//! subscriber. A stream is followed in one mode until nobody follows it.
//!
//! Who follows a tenant's streams, up to where the reader is, and what waits
//! for the end of a window is one state under one lock; every change of it is
//! whole, so that a subscriber who comes while the last one goes finds either.

mod feed;
mod queue;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use metrics::gauge;
use tokio::sync::Notify;

use self::feed::Feed;
use self::queue::Queue;
pub use self::queue::{Delivery, GapCause};
use super::{ChangeStream, EventLog, ScopeError, TailReader};
use crate::clock::Clock;
use crate::error::{Blame, Classify, Retry};
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::limits::{BATCH_EVENTS_MAX, CHANGE_WINDOW_CEILING, CHANGE_WINDOW_MIN};
use crate::tasks::{TaskError, TaskKind, Tasks};
use crate::telemetry::metrics::CHANGE_SUBSCRIPTIONS;

/// What a subscriber names. The tenant is never in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeRequest<'a> {
    pub aggregate: &'a str,
    pub scope: &'a str,
    /// Empty and ignored in the scope `tenant`.
    pub id: &'a str,
}

/// How changes are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeMode {
    /// The latest event of each aggregate, once per window.
    Conflated { window: Duration },
    /// Every event, at once and in order.
    Raw,
}

impl ChangeMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflated { .. } => "conflated",
            Self::Raw => "raw",
        }
    }
}

/// Whether a tenant may follow what is asked for. Asked first: who is denied does not learn what there is.
pub type Gate = Arc<dyn Fn(&TenantId, &ChangeRequest<'_>) -> bool + Send + Sync>;

/// Why nothing is followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    #[error("these changes may not be followed")]
    Denied,
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("`{stream}` is followed in the mode {mode}; one mode at a time")]
    MixedModes { stream: String, mode: &'static str },
    #[error(
        "a window of {asked_ms} ms; change_window_ms is from {} to {}",
        CHANGE_WINDOW_MIN.as_millis(), CHANGE_WINDOW_CEILING.as_millis()
    )]
    Window { asked_ms: u64 },
    #[error("the host stops")]
    Closed,
}

impl Classify for HubError {
    fn code(&self) -> &'static str {
        match self {
            Self::Denied => "changes_denied",
            Self::Scope(e) => e.code(),
            Self::MixedModes { .. } => "change_modes_mixed",
            Self::Window { .. } => "change_window_ms",
            Self::Closed => "host_stopping",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Closed => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Closed => Blame::Host,
            _ => Blame::Caller,
        }
    }
}

/// What is followed now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Readers of the tail: one for each tenant of which something is followed.
    pub tails: usize,
    pub streams: usize,
    pub subscriptions: usize,
}

/// The hub. Clones are handles on the same one.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
    gate: Option<Gate>,
}

struct Inner {
    log: Arc<dyn EventLog>,
    tasks: Tasks,
    clock: Arc<dyn Clock>,
    /// Locked before a feed, where both are.
    feeds: Mutex<HashMap<TenantId, Arc<TenantFeed>>>,
}

/// One tenant's followed streams, and what wakes their reader.
#[derive(Debug)]
struct TenantFeed {
    feed: Mutex<Feed>,
    wake: Notify,
}

impl Hub {
    /// A hub over a log; its readers end with these tasks, and windows end by this clock.
    pub fn new(log: Arc<dyn EventLog>, tasks: Tasks, clock: Arc<dyn Clock>) -> Self {
        Self { inner: Arc::new(Inner { log, tasks, clock, feeds: Mutex::default() }), gate: None }
    }

    /// The same hub behind a gate. Without one, everything that a tenant has may be followed.
    #[must_use]
    pub fn with_gate(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// The stream that is asked for. Looks at the gate first, and touches no stream.
    pub fn resolve(&self, tenant: &TenantId, request: &ChangeRequest<'_>) -> Result<ChangeStream, HubError> {
        if self.gate.as_ref().is_some_and(|gate| !gate(tenant, request)) {
            return Err(HubError::Denied);
        }
        let ChangeRequest { aggregate, scope, id } = *request;
        Ok(self.inner.log.scopes().resolve(aggregate, scope, id)?)
    }

    /// Follows a stream from now on: everything after [`Subscription::position`] is delivered or told of. What
    /// came before is read from the log. Does not wait. Dropping the subscription ends it.
    pub fn subscribe(
        &self,
        tenant: &TenantId,
        request: &ChangeRequest<'_>,
        mode: ChangeMode,
    ) -> Result<Subscription, HubError> {
        let stream: Arc<str> = self.resolve(tenant, request)?.to_string().into();
        if let ChangeMode::Conflated { window } = mode
            && !(CHANGE_WINDOW_MIN..=CHANGE_WINDOW_CEILING).contains(&window)
        {
            let asked_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
            return Err(HubError::Window { asked_ms });
        }
        if self.inner.tasks.token().is_cancelled() {
            return Err(HubError::Closed);
        }
        let queue = Arc::new(Queue::new(mode));
        let mut feeds = self.inner.feeds();
        let feed = match feeds.get(tenant) {
            Some(feed) => Arc::clone(feed),
            None => {
                let reader = self.inner.log.tail().follow(tenant);
                let feed = Feed::new(reader.newest());
                let feed = Arc::new(TenantFeed { feed: Mutex::new(feed), wake: Notify::new() });
                feeds.insert(tenant.clone(), Arc::clone(&feed));
                self.inner.start(tenant.clone(), Arc::clone(&feed), reader);
                feed
            }
        };
        let position = match feed.lock().add(&stream, mode, &queue) {
            Ok(position) => position,
            Err(mode) => {
                feed.wake.notify_one();
                return Err(HubError::MixedModes { stream: stream.to_string(), mode });
            }
        };
        drop(feeds);
        gauge!(CHANGE_SUBSCRIPTIONS).increment(1.0);
        Ok(Subscription { position, stream, queue, feed: Arc::downgrade(&feed) })
    }

    /// Delivers events to whoever follows a stream: at once, past windows and what waits for their end, and past
    /// the log.
    pub fn publish_now(&self, stream: &ChangeStream, events: EventBatch) {
        let feed = self.inner.feeds().get(&events.tenant).cloned();
        if let Some(feed) = feed {
            feed.lock().deliver_now(&stream.to_string(), &Arc::new(events));
        }
    }

    pub fn stats(&self) -> HubStats {
        let feeds: Vec<_> = self.inner.feeds().values().cloned().collect();
        let mut stats = HubStats { tails: feeds.len(), ..HubStats::default() };
        for feed in feeds {
            let (streams, subscriptions) = feed.lock().followed();
            stats.streams += streams;
            stats.subscriptions += subscriptions;
        }
        stats
    }
}

impl Inner {
    fn feeds(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<TenantFeed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads for a tenant until nobody follows anything any more. A reader that fails is started again where
    /// the state says that it was.
    fn start(self: &Arc<Self>, tenant: TenantId, feed: Arc<TenantFeed>, reader: TailReader) {
        let inner = Arc::clone(self);
        let name = format!("changes of {tenant}");
        self.tasks.supervise(TaskKind::SUPERVISED, name, move || {
            let (inner, feed) = (Arc::clone(&inner), Arc::clone(&feed));
            let (tenant, reader) = (tenant.clone(), reader.clone());
            async move {
                inner.read(&tenant, &feed, reader).await;
                Ok::<(), TaskError>(())
            }
        });
    }

    async fn read(&self, tenant: &TenantId, feed: &TenantFeed, mut reader: TailReader) {
        loop {
            let (position, due) = {
                let feed = feed.lock();
                (feed.position(), feed.due())
            };
            if self.retire(tenant, feed) {
                return;
            }
            let flush = async {
                match due {
                    Some(due) => tokio::time::sleep(self.until(due)).await,
                    None => std::future::pending().await,
                }
            };
            // Nothing is lost with an arm that is dropped: what there is to do stands in the state.
            tokio::select! {
                () = self.tasks.token().cancelled() => return self.close(tenant, feed),
                alive = reader.wait_after(position) => {
                    if !alive {
                        return self.close(tenant, feed);
                    }
                    self.take(tenant, feed, &reader);
                }
                () = flush => {}
                () = feed.wake.notified() => {}
            }
            feed.lock().flush(self.clock.now());
        }
    }

    /// How long it is until then, as far as the clock is right.
    fn until(&self, due: Micros) -> Duration {
        let micros = due.0.saturating_sub(self.clock.now().0).max(0);
        Duration::from_micros(micros.unsigned_abs()).min(CHANGE_WINDOW_CEILING)
    }

    /// Takes in what the tail has after the feed's position.
    fn take(&self, tenant: &TenantId, feed: &TenantFeed, reader: &TailReader) {
        // Read before the tail is asked: what comes in between is there at the next turn.
        let newest = reader.newest();
        let position = feed.lock().position();
        let chunks = self.log.tail().read(tenant, position, BATCH_EVENTS_MAX);
        let mut feed = feed.lock();
        let now = self.clock.now();
        match chunks {
            Some(chunks) if chunks.is_empty() => feed.pass(newest),
            Some(chunks) => chunks.iter().for_each(|chunk| feed.take(chunk, now)),
            None => feed.lose(newest),
        }
    }

    /// Ends the reader where nobody follows anything. The lock of the feeds is what a subscriber holds, too.
    fn retire(&self, tenant: &TenantId, feed: &TenantFeed) -> bool {
        let mut feeds = self.feeds();
        let idle = feed.lock().is_idle();
        if idle {
            feeds.remove(tenant);
        }
        idle
    }

    fn close(&self, tenant: &TenantId, feed: &TenantFeed) {
        let mut feeds = self.feeds();
        feed.lock().close();
        feeds.remove(tenant);
    }
}

impl TenantFeed {
    fn lock(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// One subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    position: Position,
    stream: Arc<str>,
    queue: Arc<Queue>,
    feed: Weak<TenantFeed>,
}

impl Subscription {
    /// What comes after this position is delivered; it is a position of the log.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// What comes next; none when the subscription has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.queue.next(self.position).await
    }

    /// Whether something was left out, or will be told of as left out.
    pub fn has_gap(&self) -> bool {
        self.queue.has_gap()
    }

    /// Up to where there was nothing that is not delivered; none while something waits to be taken, or for the
    /// end of a window.
    pub fn reached(&self) -> Option<Position> {
        let feed = self.feed.upgrade()?;
        // The queue is filled under this lock.
        let feed = feed.lock();
        if self.queue.is_empty() { feed.reached(&self.stream) } else { None }
    }

    /// Ends the subscription: what was not taken is dropped, and `next` answers none. A second call does nothing.
    pub fn close(&self) {
        if !self.queue.detach() {
            return;
        }
        gauge!(CHANGE_SUBSCRIPTIONS).decrement(1.0);
        if let Some(feed) = self.feed.upgrade() {
            feed.lock().remove(&self.stream, &self.queue);
            feed.wake.notify_one();
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.close();
    }
}
