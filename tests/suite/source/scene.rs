//! A host of the test's own that is fed by a peer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace::config::{GrpcSourceConfig, Span};
use millrace::event::{EventBatch, Position, TenantId};
use millrace::streams::PageLimit;
use millrace_tests::embedded::Embedded;
use millrace_tests::peer::Peer;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything from the oldest event, with short waits.
pub(super) fn settings(endpoint: &str) -> GrpcSourceConfig {
    GrpcSourceConfig {
        endpoint: endpoint.into(),
        client_id: "millrace".into(),
        after_cursor: "start".into(),
        checkpoint_interval: Span(Duration::from_millis(10)),
        reconnect_min: Span(Duration::from_millis(5)),
        reconnect_max: Span(Duration::from_millis(50)),
        ..GrpcSourceConfig::default()
    }
}

/// A peer, and a host that takes its events.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) peer: Peer,
    pub(super) host: Embedded,
}

impl Scene {
    pub(super) async fn start() -> Self {
        Self::of(Peer::start(), |_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut GrpcSourceConfig)) -> Self {
        Self::of(Peer::start(), change).await
    }

    pub(super) async fn of(peer: Peer, change: impl FnOnce(&mut GrpcSourceConfig)) -> Self {
        Self::lent(peer, &[], change).await
    }

    /// The same with the code of guests that take long to compile.
    pub(super) async fn lent(
        peer: Peer,
        guests: &[&str],
        change: impl FnOnce(&mut GrpcSourceConfig),
    ) -> Self {
        let mut settings = settings(&peer.endpoint());
        change(&mut settings);
        let host = Embedded::start_lent(guests, |config| config.source.grpc = Some(settings)).await.unwrap();
        Self { peer, host }
    }

    /// What the host says of its source.
    pub(super) async fn status(&self) -> Value {
        self.host.client.get("/v1/sources/grpc").await.unwrap().ok().unwrap()
    }

    /// Waits until the source says something.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let status = self.status().await;
            if condition(&status) {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "waited a minute: {what}: {status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn until_live(&self) {
        self.until("the stream is live", |status| status["state"] == "live").await;
    }

    /// All events of the log, once there are so many.
    pub(super) async fn events(&self, count: usize) -> EventBatch {
        let begin = Instant::now();
        loop {
            let events = self.log().await;
            if events.len() >= count {
                return events;
            }
            let status = self.status().await;
            assert!(begin.elapsed() < PATIENCE, "{} of {count} events came: {status}", events.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The cursors of all events of the log, in its order, once there are so many.
    pub(super) async fn cursors(&self, count: usize) -> Vec<String> {
        self.events(count).await.iter().map(|event| event.cursor.to_owned()).collect()
    }

    async fn log(&self) -> EventBatch {
        let tenant = TenantId::new("default").unwrap();
        let (log, mut after) = (self.host.host().log(), Position::START);
        let mut events = EventBatch::new(tenant.clone());
        loop {
            let limit = PageLimit { events: 1_000, bytes: 4 << 20 };
            let page = log.read(&tenant, after, limit).await.unwrap();
            if page.events.is_empty() {
                return events;
            }
            events.extend_from(&page.events);
            after = page.next;
        }
    }

    /// Ends the host well and starts it on its store.
    pub(super) async fn restart(self) -> Self {
        Self { host: self.host.restart().await.unwrap(), peer: self.peer }
    }

    /// Where the host keeps how far its source is.
    pub(super) fn kept(&self) -> PathBuf {
        self.host.data().join("sources/millrace.json")
    }

    pub(super) async fn end(self) {
        drop(self.host.stop().await);
    }
}

/// The decimal numbers from one on.
pub(super) fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}
