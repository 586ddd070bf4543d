//! Claims about a processor that either of two hosts could run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::{MemoryLeases, MemoryLog};
use millrace::backends::sqlite::{LogPlace, SqliteOptions};
use millrace::cluster::{Ownerships, Right};
use millrace::event::{Event, EventBatch, Position};
use millrace::processors::{ProcessorSettings, SharedLog};
use millrace::streams::{EventLog, Retention};
use millrace_tests::conformance::change_streams::asset_scopes;
use millrace_tests::scene::{Scene, counts, scripted, tenant_id};
use millrace_tests::until;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const A_WHILE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

/// What hosts share.
#[derive(Default)]
struct Fleet {
    log: Arc<MemoryLog>,
    leases: Arc<MemoryLeases>,
}

impl Fleet {
    fn owners(&self, host: &str) -> Ownerships {
        Ownerships::new(self.leases.clone(), host, LONG)
    }

    /// A host with a store of its own.
    async fn host(&self, owners: &Ownerships) -> Scene {
        let elsewhere = |options: SqliteOptions| SqliteOptions { log: LogPlace::Elsewhere, ..options };
        let mut scene = Scene::with(elsewhere, |store| store).await;
        scene.engine.log = Arc::clone(&self.log) as Arc<dyn EventLog>;
        let outbox = Arc::new(scene.store.clone());
        scene.engine.shared_log = Some(SharedLog { owners: owners.clone(), outbox });
        scene
    }

    async fn publish(&self, keys: &[&str]) -> Position {
        let mut batch = EventBatch::new(tenant_id("acme"));
        let newest = self.log.bounds().newest.0;
        for (agg_id, version) in keys.iter().zip(newest + 1..) {
            let event = Event {
                aggregate: "thing",
                agg_id,
                version,
                event_type: "add",
                payload: b"1",
                ..Event::default()
            };
            batch.push(&event).expect("a good event");
        }
        self.log.append(batch).await.expect("the append succeeds");
        self.log.bounds().newest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_place_is_lost_leaves_the_processor_to_the_other_one() {
    let fleet = Fleet::default();
    let settings = ProcessorSettings::default();
    let owners = fleet.owners("one");
    let one = fleet.host(&owners).await;
    let (runner, watch) = one.start(scripted(), settings.clone());
    let last = fleet.publish(&["a", "b"]).await;
    one.done(&runner, last).await;
    assert!(runner.stop(A_WHILE).await);
    let last = fleet.publish(&["a", "c", "b", "c"]).await;
    fleet.log.trim(Retention { age: None, events: Some(2) }).await.expect("a trim");

    let stopped = one.start_again(&watch, 1, settings.clone());
    until("it stops", || !stopped.status().failures.is_empty()).await;
    let why = stopped.status().failures.remove(0).1;
    assert!(why.starts_with("position_lost"), "{why}");
    until("the lease is given back", || owners.right("scripted") == Right::NotKept).await;

    let two = fleet.host(&fleet.owners("two")).await;
    let (taken_over, _) = two.start(scripted(), settings.clone());
    two.done(&taken_over, last).await;
    assert_eq!(two.counts("acme").await, counts(&[("b", 1), ("c", 1)]));
    assert!(taken_over.stop(A_WHILE).await);
    assert_eq!(owners.right("scripted"), Right::NotKept, "it is not asked for by itself");
    assert!(stopped.stop(A_WHILE).await);
    // Another start asks again, and finds the same.
    let again = one.start_again(&watch, 1, settings);
    until("it stops again", || !again.status().failures.is_empty()).await;
    again.stop(A_WHILE).await;
    assert_eq!(one.counts("acme").await, BTreeMap::from([("a".into(), 1), ("b".into(), 1)]));
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_takes_over_declares_the_change_scopes_that_the_former_owner_has_withdrawn() {
    let fleet = Fleet::default();
    let former = fleet.owners("one");
    let (mut tasks, end) = (JoinSet::new(), CancellationToken::new());
    let (mut theirs, keeper) = former.keep("scripted", end.clone());
    tasks.spawn(keeper);
    theirs.gained().await;
    let two = fleet.host(&fleet.owners("two")).await;
    let mut plugin = scripted();
    plugin.manifest.changes = asset_scopes();
    let (runner, _) = two.start(plugin, ProcessorSettings::default());
    until("it stands by", || runner.status().standby.is_some()).await;
    // As a host does that is told to remove the plugin.
    fleet.log.declare_scopes("scripted", &asset_scopes()).await.expect("good scopes");
    fleet.log.declare_scopes("scripted", &[]).await.expect("they are withdrawn");
    assert!(fleet.log.scopes().of("asset").is_none());
    let last = fleet.publish(&["a"]).await;
    end.cancel();
    two.done(&runner, last).await;
    assert_eq!(fleet.log.scopes().of("asset").cloned(), asset_scopes().pop());
    assert!(runner.stop(A_WHILE).await);
    two.close().await;
}
