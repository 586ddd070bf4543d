//! What the suite of groups stands on: a log, groups over one of its streams, and events by short names.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millrace::clock::{Clock, ManualClock};
use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::streams::groups::{
    ConsumerName, Delivery, GroupChange, GroupId, GroupLimits, GroupName, GroupRead, GroupStart, GroupStatus,
    Groups, Settle, Settled,
};
use millrace::streams::{AggregateScopes, EventLog, Retention, Scope, StreamName};

use crate::conformance::effects::tenant;

/// A log, groups over it, and the clock that both go by.
#[derive(Clone)]
pub struct Stage {
    /// What the groups are on.
    pub stream: StreamName,
    pub log: Arc<dyn EventLog>,
    pub groups: Arc<dyn Groups>,
    pub clock: Arc<ManualClock>,
    /// The groups as a process finds them that starts now, after a kill.
    pub again: Arc<dyn Fn(GroupLimits) -> Arc<dyn Groups> + Send + Sync>,
    /// The state lies where several hosts share it: leases are another's concern, too, and outlive a host. The log's
    /// times are its own.
    pub shared: bool,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("log", &self.log).finish_non_exhaustive()
    }
}

/// Options of most tests: short, and three tries.
pub const THREE_TRIES: GroupChange = GroupChange {
    lease_ms: Some(10_000),
    attempts_max: Some(3),
    backoff_ms_min: Some(1_000),
    backoff_ms_max: Some(1_500),
    on_lost: None,
};

pub fn group(tenant: &str, name: &str) -> GroupId {
    GroupId {
        tenant: TenantId::new(tenant).unwrap(),
        stream: "events".into(),
        name: GroupName::new(name).unwrap(),
    }
}

pub fn read_of(consumer: &str, events: usize) -> GroupRead {
    GroupRead { consumer: ConsumerName::new(consumer).unwrap(), events, bytes: 1 << 20, wait: Duration::ZERO }
}

/// The streams that the suite is run on.
pub fn events() -> StreamName {
    StreamName::Events
}

pub fn named() -> StreamName {
    "orders".parse().unwrap()
}

pub fn changes() -> StreamName {
    "changes:thing:tenant".parse().unwrap()
}

/// `a1`: the first version of key `a`.
pub fn label(delivery: &Delivery) -> String {
    let event = delivery.event.get(0);
    format!("{}{}", event.agg_id, event.version)
}

pub fn labels(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(label).collect()
}

/// Appends events by their labels.
pub async fn append(log: &Arc<dyn EventLog>, tenant: &TenantId, labels: &[&str]) -> Vec<Position> {
    append_to(log, &StreamName::Events, tenant, labels).await
}

async fn append_to(
    log: &Arc<dyn EventLog>,
    stream: &StreamName,
    tenant: &TenantId,
    labels: &[&str],
) -> Vec<Position> {
    let appended = log.append_to(stream, batch_of("thing", tenant, labels)).await.unwrap();
    appended.iter().map(|appended| appended.position).collect()
}

fn batch_of(aggregate: &str, tenant: &TenantId, labels: &[&str]) -> EventBatch {
    let mut batch = EventBatch::new(tenant.clone());
    for label in labels {
        let (agg_id, version) = label.split_at(1);
        let version = version.parse().unwrap();
        let event_type = &format!("{aggregate}.made");
        let event = Event { aggregate, agg_id, version, event_type, ..Event::default() };
        batch.push(&event).unwrap();
    }
    batch
}

impl Stage {
    pub(super) fn advance(&self, ms: i64) {
        self.clock.set(Micros(self.clock.now().0 + ms * 1_000));
    }

    /// What a killed process leaves behind.
    #[must_use]
    pub fn restarted(&self) -> Self {
        self.restarted_with(GroupLimits::default())
    }

    /// The same with bounds of its own.
    #[must_use]
    pub(super) fn restarted_with(&self, limits: GroupLimits) -> Self {
        Self { groups: (self.again)(limits), ..self.clone() }
    }

    /// The same with groups on another stream, and other streams' events between its own.
    pub async fn on(self, stream: StreamName) -> Self {
        let scopes =
            AggregateScopes { aggregate: "thing".to_owned(), scopes: vec![Scope::Id, Scope::Tenant] };
        self.log.declare_scopes("things", &[scopes]).await.unwrap();
        let stage = Self { stream, ..self };
        stage.noise(1).await;
        stage
    }

    /// What other streams get, so that positions of the log are not those of the stream.
    async fn noise(&self, version: u64) {
        let acme = tenant("acme");
        let label = format!("n{version}");
        let noisy: StreamName = "noise".parse().unwrap();
        self.log.append(batch_of("other", &acme, &[&label])).await.unwrap();
        self.log.append_to(&noisy, batch_of("thing", &acme, &[&label])).await.unwrap();
    }

    /// The group of a tenant on this stage's stream.
    pub fn group(&self, tenant: &str, name: &str) -> GroupId {
        GroupId { stream: self.stream.to_string().into(), ..group(tenant, name) }
    }

    pub(super) async fn made(&self, change: GroupChange) -> GroupId {
        let id = self.group("acme", "billing");
        self.groups.ensure(&id, GroupStart::Oldest, change).await.unwrap();
        id
    }

    pub(super) async fn append(&self, labels: &[&str]) -> Vec<Position> {
        self.append_of("acme", labels).await
    }

    pub(super) async fn append_of(&self, of: &str, labels: &[&str]) -> Vec<Position> {
        let stream = match &self.stream {
            StreamName::Named(_) => &self.stream,
            // A change stream has what is appended to `events`.
            StreamName::Events | StreamName::Changes(_) => &StreamName::Events,
        };
        let positions = append_to(&self.log, stream, &tenant(of), labels).await;
        if self.stream != StreamName::Events {
            self.noise(positions[0].0).await;
        }
        positions
    }

    pub(super) async fn take(&self, id: &GroupId, consumer: &str, events: usize) -> Vec<Delivery> {
        self.groups.read(id, read_of(consumer, events)).await.unwrap().entries
    }

    pub(super) async fn settle_one(&self, id: &GroupId, said: Settle) -> Settled {
        self.groups.settle(id, vec![said]).await.unwrap()[0]
    }

    pub(super) async fn ack(&self, id: &GroupId, deliveries: &[Delivery]) {
        let said = deliveries.iter().map(|delivery| Settle::Ack(delivery.receipt)).collect();
        let settled = self.groups.settle(id, said).await.unwrap();
        assert!(settled.iter().all(|settled| *settled == Settled::Acknowledged), "{settled:?}");
    }

    pub(super) async fn nack(&self, id: &GroupId, delivery: &Delivery, delay_ms: Option<u64>) -> Settled {
        let reason = "no such invoice".to_owned();
        self.settle_one(id, Settle::Nack { receipt: delivery.receipt, delay_ms, reason }).await
    }

    pub(super) async fn status(&self, id: &GroupId) -> GroupStatus {
        self.groups.status(id).await.unwrap()
    }

    pub(super) async fn keep_newest(&self, events: u64) {
        self.log.trim(Retention { events: Some(events), age: None }).await.unwrap();
    }

    /// Trims everything up to a position.
    pub(super) async fn trim_until(&self, position: Position) {
        self.keep_newest(self.log.bounds().newest.0 - position.0).await;
    }
}
