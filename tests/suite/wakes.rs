//! Claims about what a processor's commit wakes. That of an append is claimed for every log, in the suite of its seam.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::{MemoryLeases, MemoryLog};
use millrace::backends::redis::{RedisLeases, RedisLink, RedisLog, RedisOptions};
use millrace::backends::sqlite::{LogPlace, SqliteOptions};
use millrace::cluster::{LeaseStore, Ownerships};
use millrace::event::{Event, EventBatch, Position};
use millrace::processors::{ProcessorSettings, Relay, SharedLog};
use millrace::streams::EventLog;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::scene::{Scene, scripted, tenant_id};
use millrace_tests::sleeper::Sleeper;
use millrace_tests::until;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(60);

type Log = Arc<dyn EventLog>;

/// One event that the scripted processor does what it says with.
async fn publish(log: &Log, tenant: &str, event_type: &str, version: u64) -> Position {
    let mut batch = EventBatch::new(tenant_id(tenant));
    let event =
        Event { aggregate: "thing", agg_id: "x", version, event_type, payload: b"1", ..Event::default() };
    batch.push(&event).unwrap();
    log.append(batch).await.unwrap()[0].position
}

/// A processor of this scene handles an event of acme's and emits one: those who follow acme, where they do, hear of it
/// when its commit is in the log, and those who follow somebody else do not.
async fn what_is_emitted_wakes_its_tenants_followers(scene: Scene, log: Log, followed: Log) {
    publish(&log, "rival", "add", 1).await;
    let (runner, _) = scene.start(scripted(), ProcessorSettings::default());
    for version in 1..=3 {
        // Everybody has everything, and sleeps.
        let newest = log.bounds().newest;
        until("it is here, too", || *followed.tail().newest().borrow() >= newest).await;
        scene.done(&runner, newest).await;
        let mut rivals = followed.tail().follow(&tenant_id("rival"));
        let mut strangers = followed.tail().follow(&tenant_id("nobody"));
        let mut sleepers =
            [Sleeper::new(rivals.wait_after(newest)), Sleeper::new(strangers.wait_after(newest))];
        let mut ours = followed.tail().follow(&tenant_id("acme"));
        let asked = publish(&log, "acme", "emit", version).await;
        let woken = tokio::time::timeout(SOON, ours.wait_after(asked)).await;
        assert!(woken.expect("the emitted event wakes who follows acme"));
        let emitted = Position(asked.0 + 1);
        assert_eq!(ours.newest(), emitted);
        let chunks = followed.tail().read(&tenant_id("acme"), asked, 10).unwrap();
        let found: Vec<(String, Position)> = chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|event| (event.agg_id.to_owned(), event.position)))
            .filter(|(_, position)| *position > asked)
            .collect();
        assert_eq!(found, [(format!("emitted-x-{version}"), emitted)]);
        scene.done(&runner, emitted).await;
        assert!(sleepers.iter_mut().all(Sleeper::sleeps), "those who follow others sleep on");
    }
    // And what is emitted for the rival wakes the rival's.
    let (mut rivals, mut ours) =
        (followed.tail().follow(&tenant_id("rival")), followed.tail().follow(&tenant_id("acme")));
    let newest = ours.newest();
    let mut sleeper = Sleeper::new(ours.wait_after(newest));
    let asked = publish(&log, "rival", "emit", 2).await;
    let woken = tokio::time::timeout(SOON, rivals.wait_after(asked)).await;
    assert!(woken.expect("the rival's followers are woken"));
    scene.done(&runner, Position(asked.0 + 1)).await;
    assert!(sleeper.sleeps());
    assert!(runner.stop(SOON).await);
    scene.close().await;
}

/// A host whose log is not in its store, and what carries to it.
async fn host(log: &Log, leases: Arc<dyn LeaseStore>) -> (Scene, JoinSet<()>) {
    let elsewhere = |options: SqliteOptions| SqliteOptions { log: LogPlace::Elsewhere, ..options };
    let mut scene = Scene::with(elsewhere, |store| store).await;
    let (owners, outbox) = (Ownerships::new(leases, "here", LONG), Arc::new(scene.store.clone()));
    scene.engine.log = Arc::clone(log);
    scene.engine.shared_log = Some(SharedLog { owners: owners.clone(), outbox: outbox.clone() });
    let relay = Relay::new(outbox, Arc::clone(log), Some(owners));
    let mut carrying = JoinSet::new();
    carrying.spawn(async move { relay.run().await });
    (scene, carrying)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c23_a_processors_commit_wakes_the_followers_of_its_tenant_on_the_embedded_log() {
    let scene = Scene::new().await;
    let log: Log = Arc::new(scene.store.clone());
    what_is_emitted_wakes_its_tenants_followers(scene, Arc::clone(&log), log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c23_a_processors_commit_wakes_the_followers_of_its_tenant_on_a_log_elsewhere() {
    let log: Log = Arc::new(MemoryLog::new());
    let (scene, _carrying) = host(&log, Arc::new(MemoryLeases::default())).await;
    what_is_emitted_wakes_its_tenants_followers(scene, Arc::clone(&log), log).await;
}

async fn open(server: &RedisServer) -> Log {
    let log = RedisLog::open(RedisOptions::new(server.url().parse().unwrap()));
    log.ready(SOON).await.unwrap();
    Arc::new(log)
}

/// Followers at the host itself, and at another host of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c23_a_processors_commit_wakes_the_followers_of_its_tenant_at_every_host_of_a_server() {
    for (engine, at_another) in [(Engine::Redis, true), (Engine::Valkey, false)] {
        let server = RedisServer::durable(engine);
        let log = open(&server).await;
        let followed = if at_another { open(&server).await } else { Arc::clone(&log) };
        let link = RedisLink::new(server.url().parse().unwrap(), None, "millrace");
        let (scene, _carrying) = host(&log, Arc::new(RedisLeases::new(link))).await;
        what_is_emitted_wakes_its_tenants_followers(scene, log, followed).await;
    }
}
