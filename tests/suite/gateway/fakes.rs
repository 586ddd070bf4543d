//! Stand-ins for the plugins and the live queries of a host.

use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, StreamExt};
use millrace::checkpoints::{DeadLetterRow, TaskId};
use millrace::event::{Event, EventBatch, Micros, Position, TenantId};
use millrace::live::{Batch, LiveError, LiveQueries, Subscribe, Subscription};
use millrace::plugins::{
    ControlError, DeployOptions, DeployRequest, Deployment, GrantStatus, Measures, PluginControl,
    PluginCounters, PluginState, PluginStatus, Proof, ReplayReport, ReplayRequest, StartFrom, TaskStatus,
    TenantFailure,
};
use millrace::processors::{Resolved, Verdict};
use tokio::sync::{Notify, mpsc};

/// One plugin, `keeper`, that remembers what it was asked.
#[derive(Debug, Default)]
pub(super) struct FakePlugins {
    pub(super) asked: Mutex<Vec<String>>,
    /// What becomes of a dead letter that is replayed, where it does not fail again.
    pub(super) replayed: Mutex<Option<Resolved>>,
    /// What happens when an event is done once more.
    pub(super) report: Mutex<Option<ReplayReport>>,
}

impl FakePlugins {
    fn note(&self, asked: String) {
        self.asked.lock().expect("no panic").push(asked);
    }

    pub(super) fn letter(plugin: &str) -> DeadLetterRow {
        let mut event = EventBatch::new(TenantId::new("alpha").expect("a tenant"));
        event.push_checked(&Event {
            position: Position(9),
            id: "x",
            aggregate: "thing",
            agg_id: "one",
            event_type: "thing.odd",
            payload: b"{\"n\":9223372036854775807}",
            ..Event::default()
        });
        let task =
            TaskId { processor: plugin.into(), tenant: TenantId::new("alpha").expect("a tenant"), lane: 0 };
        DeadLetterRow {
            task,
            event: Arc::new(event),
            reason: "reject".into(),
            message: "bad {}".into(),
            backtrace: "0: handle".into(),
            attempts: 1,
            key: b"thing".as_slice().into(),
            state_hash: "ab".into(),
            plugin_version: "1.0.0".into(),
            held: true,
            parked_behind: 2,
            at: Micros(0),
        }
    }

    fn failing(&self) -> Vec<TenantFailure> {
        let failure =
            |tenant: &str, message: &str| TenantFailure { tenant: tenant.into(), message: message.into() };
        vec![failure("alpha", "it is full"), failure("beta", "its key")]
    }

    fn status(&self, plugin: &str) -> Result<PluginStatus, ControlError> {
        if plugin != "keeper" {
            return Err(ControlError::Unknown { plugin: plugin.into() });
        }
        let task = |tenant: &str, dead_letters| TaskStatus {
            tenant: tenant.into(),
            position: 1,
            dead_letters,
            ..TaskStatus::default()
        };
        let counters = PluginCounters { events: 77, ..PluginCounters::default() };
        Ok(PluginStatus {
            name: "keeper".into(),
            state: PluginState::Failed,
            message: "tenant alpha: it is full; tenant beta: its key".into(),
            tenant_failures: self.failing(),
            deployment: Deployment {
                plugin: "keeper".into(),
                version: "1.0.0".into(),
                digest: "00".into(),
                paused: false,
                lanes: 1,
                from: StartFrom::Oldest,
                deployed_at: 0,
                deployed_by: "test".into(),
                ordering_key: None,
                proof: Proof::Loaded,
                rollback: false,
                settings: None,
            },
            manifest: None,
            grants: vec![GrantStatus {
                name: "http".into(),
                granted: true,
                wanted: true,
                reach: vec!["api.example.com".into()],
            }],
            lag_events: 7,
            tasks: vec![task("alpha", 2), task("beta", 5)],
            warnings: Vec::new(),
            counters,
            measures: Measures::default(),
            last_refusal: None,
            candidate: None,
            nothing_changed: false,
        })
    }
}

impl PluginControl for FakePlugins {
    fn list(&self) -> BoxFuture<'_, Result<Vec<PluginStatus>, ControlError>> {
        ready(self.status("keeper").map(|status| vec![status])).boxed()
    }

    fn show(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        ready(self.status(plugin)).boxed()
    }

    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, ControlError>> {
        ready(self.status(plugin).map(|status| vec![status.deployment])).boxed()
    }

    fn deploy(&self, request: DeployRequest) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let DeployRequest { component, expected_name, from, by, .. } = request;
        self.note(format!("deploy {} bytes, {expected_name:?}, {from:?}, {by}", component.len()));
        ready(self.status("keeper")).boxed()
    }

    fn confirm(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        self.note(format!("confirm {plugin}"));
        ready(self.status(plugin)).boxed()
    }

    fn abandon(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        self.note(format!("abandon {plugin}"));
        ready(self.status(plugin)).boxed()
    }

    fn rollback(
        &self,
        plugin: &str,
        to: Option<&str>,
        by: &str,
        options: DeployOptions,
    ) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        self.note(format!("roll back {plugin} to {to:?}, {by}, {options:?}"));
        ready(self.status(plugin)).boxed()
    }

    fn pause(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        self.note(format!("pause {plugin}"));
        ready(self.status(plugin)).boxed()
    }

    fn resume(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        self.note(format!("resume {plugin}"));
        ready(self.status(plugin)).boxed()
    }

    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), ControlError>> {
        self.note(format!("remove {plugin}"));
        ready(self.status(plugin).map(drop)).boxed()
    }

    fn dead_letters(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, ControlError>> {
        self.note(format!("dead letters of {plugin}, {tenant:?}, {limit}"));
        ready(self.status(plugin).map(|_| vec![Self::letter(plugin)])).boxed()
    }

    fn dead_letter(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
    ) -> BoxFuture<'_, Result<DeadLetterRow, ControlError>> {
        self.note(format!("dead letter {} of {plugin}, {tenant:?}", letter.0));
        let row = Self::letter(plugin);
        let unknown = ControlError::DeadLetterUnknown { plugin: plugin.into(), letter: letter.0 };
        let found = if row.event.last_position() == letter { Ok(row) } else { Err(unknown) };
        ready(self.status(plugin).and(found)).boxed()
    }

    fn resolve(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
        verdict: Verdict,
    ) -> BoxFuture<'_, Result<Resolved, ControlError>> {
        self.note(format!("{verdict:?} letter {} of {plugin}, {tenant:?}", letter.0));
        let resolved = match verdict {
            Verdict::Discard => Resolved::Discarded { released: 2 },
            Verdict::Replay => self.replayed.lock().expect("no panic").clone().unwrap_or_else(|| {
                Resolved::FailedAgain { reason: "trap".into(), message: "unreachable".into() }
            }),
        };
        ready(self.status(plugin).map(|_| resolved)).boxed()
    }

    fn replay(&self, request: ReplayRequest) -> BoxFuture<'_, Result<ReplayReport, ControlError>> {
        let ReplayRequest { plugin, tenant, event } = request;
        self.note(format!("replay {event} of {plugin}, {tenant}"));
        let report = self.report.lock().expect("no panic").clone();
        let report = report.ok_or(ControlError::EventUnknown { event, searched: 5 });
        ready(self.status(&plugin).and(report)).boxed()
    }
}

/// Takes every query, and gives what a test sends.
#[derive(Debug, Default)]
pub(super) struct FakeLive {
    open: Mutex<Vec<FakeSubscription>>,
    came: Notify,
    /// Answers the next query instead.
    pub(super) refuse: Mutex<Option<LiveError>>,
}

/// The engine's side of a subscription.
#[derive(Debug)]
pub(super) struct FakeSubscription {
    pub(super) asked: Subscribe,
    pub(super) batches: mpsc::Sender<Result<Batch, LiveError>>,
}

impl FakeLive {
    /// The next subscription that somebody opens.
    pub(super) async fn opened(&self) -> FakeSubscription {
        let next = async {
            loop {
                let came = self.came.notified();
                if let Some(first) = self.open.lock().expect("no panic").pop() {
                    return first;
                }
                came.await;
            }
        };
        tokio::time::timeout(super::rig::PATIENCE, next).await.expect("somebody subscribes")
    }

    pub(super) fn none_opened(&self) -> bool {
        self.open.lock().expect("no panic").is_empty()
    }
}

impl LiveQueries for FakeLive {
    fn subscribe(&self, asked: Subscribe) -> BoxFuture<'_, Result<Subscription, LiveError>> {
        if let Some(error) = self.refuse.lock().expect("no panic").take() {
            return ready(Err(error)).boxed();
        }
        let (batches, mut receiver) = mpsc::channel(64);
        self.open.lock().expect("no panic").insert(0, FakeSubscription { asked, batches });
        self.came.notify_one();
        let batches = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        ready(Ok(Subscription { batches: batches.boxed() })).boxed()
    }
}
