//! A hub whose windows end when the test says so.

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::MemoryLog;
use millrace::clock::{Clock, ManualClock};
use millrace::event::{EventBatch, Micros, Position};
use millrace::limits::{BATCH_EVENTS_MAX, CHANGE_WINDOW};
use millrace::streams::{ChangeMode, ChangeRequest, Delivery, EventLog, Hub, Subscription};
use millrace::tasks::Tasks;
use millrace_tests::conformance::change_streams::{asset_scopes, change};
use millrace_tests::conformance::effects::tenant;

pub(super) type Log = Arc<dyn EventLog>;

pub(super) const CONFLATED: ChangeMode = ChangeMode::Conflated { window: CHANGE_WINDOW };

pub(super) struct Rig {
    pub(super) log: Log,
    pub(super) hub: Hub,
    pub(super) tasks: Tasks,
    pub(super) clock: Arc<ManualClock>,
}

pub(super) async fn rig() -> Rig {
    rig_on(Arc::new(MemoryLog::new())).await
}

pub(super) async fn rig_on(log: Log) -> Rig {
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let tasks = Tasks::new();
    let clock = Arc::new(ManualClock::default());
    Rig { hub: Hub::new(Arc::clone(&log), tasks.clone(), clock.clone()), log, tasks, clock }
}

pub(super) fn of(scope: &'static str, id: &'static str) -> ChangeRequest<'static> {
    ChangeRequest { aggregate: "asset", scope, id }
}

impl Rig {
    pub(super) fn follow(&self, scope: &'static str, id: &'static str, mode: ChangeMode) -> Subscription {
        self.hub.subscribe(&tenant("acme"), &of(scope, id), mode).unwrap()
    }

    /// One event of an asset, at site S1.
    pub(super) async fn publish(&self, agg_id: &str, version: u64) -> Position {
        self.append(change("asset", agg_id, version, "updated", r#"{"site_id":"S1"}"#)).await
    }

    /// The first version of so many assets, in large batches.
    pub(super) async fn publish_all(&self, agg_ids: &[String]) {
        for some in agg_ids.chunks(BATCH_EVENTS_MAX) {
            let mut batch = EventBatch::new(tenant("acme"));
            for agg_id in some {
                batch.extend_from(&change("asset", agg_id, 1, "updated", r#"{"site_id":"S1"}"#));
            }
            self.append(batch).await;
        }
    }

    /// Lets the hub take in what there is, and every window end.
    pub(super) async fn end_windows(&self) {
        settle().await;
        self.advance(CHANGE_WINDOW);
    }

    pub(super) fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_micros()).unwrap();
        self.clock.set(Micros(self.clock.now().0 + by));
    }

    pub(super) async fn append(&self, batch: EventBatch) -> Position {
        self.log.append(batch).await.unwrap()[0].position
    }
}

pub(super) async fn next(subscription: &mut Subscription) -> Delivery {
    let waited = tokio::time::timeout(Duration::from_secs(20), subscription.next());
    waited.await.expect("something comes").expect("it has not ended")
}

/// The events of the next delivery: aggregate, version, position.
pub(super) async fn events(subscription: &mut Subscription) -> Vec<(String, u64, u64)> {
    match next(subscription).await {
        Delivery::Events(events) => {
            events.iter().map(|e| (e.agg_id.to_owned(), e.version, e.position.0)).collect()
        }
        other => panic!("events are expected: {other:?}"),
    }
}

/// Lets the hub's readers do what they can do now.
pub(super) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// So many events, in however many deliveries.
pub(super) async fn several(subscription: &mut Subscription, count: usize) -> Vec<(String, u64, u64)> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(events(subscription).await);
    }
    all
}

pub(super) fn is(agg_id: &str, version: u64, position: u64) -> (String, u64, u64) {
    (agg_id.to_owned(), version, position)
}
