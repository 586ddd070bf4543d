//! Hosts that share a log: each has tables and rebuilds of its own, and one that another host has under way is no
//! concern of its.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::backends::redis::{RedisLeases, RedisLink, RedisLog, RedisOptions};
use millrace::backends::sqlite::{LogPlace, SqliteOptions};
use millrace::cluster::Ownerships;
use millrace::error::Classify;
use millrace::event::{Event, EventBatch};
use millrace::plugins::{PluginControl, PluginState, RebuildStage, Registry};
use millrace::processors::SharedLog;
use millrace_tests::redis_server::{Engine, RedisServer};

use super::{Arc, Rig, tenant, wait};

/// Nobody is killed here, so no lease ends by itself.
const LEASE: Duration = Duration::from_secs(600);
const KEYS: [&str; 3] = ["x", "y", "z"];

async fn host(server: &RedisServer, name: &str) -> Rig {
    let elsewhere = |options: SqliteOptions| SqliteOptions { log: LogPlace::Elsewhere, ..options };
    let mut rig = Rig::with(elsewhere, |store| Arc::new(store.clone()), BTreeMap::new());
    let log = RedisLog::open(RedisOptions::new(server.url().parse().expect("it has an address")));
    log.ready(Duration::from_secs(60)).await.expect("the server answers");
    let link = RedisLink::new(server.url().parse().expect("it has an address"), None, "millrace");
    let owners = Ownerships::new(Arc::new(RedisLeases::new(link)), name, LEASE);
    rig.parts.engine.shared_log = Some(SharedLog { owners, outbox: Arc::new(rig.store.clone()) });
    rig.parts.engine.log = Arc::new(log);
    rig.registry = Registry::new(rig.parts.clone());
    rig
}

/// One more event for each key, as the log has them from then on.
async fn publish(host: &Rig, version: u64) {
    let mut batch = EventBatch::new(tenant());
    for agg_id in KEYS {
        let event = Event {
            aggregate: "thing",
            agg_id,
            event_type: "add",
            version,
            payload: b"1",
            ..Event::default()
        };
        batch.push(&event).expect("a good event");
    }
    host.parts.engine.log.append(batch).await.expect("the append succeeds");
}

/// Waits until each key was counted so often, by this version.
async fn counted(host: &Rig, count: i64, by: i64) {
    let expected: BTreeMap<_, _> = KEYS.iter().map(|key| ((*key).to_owned(), (count, by))).collect();
    let counted = async || host.rows("counts_alpha").await == expected;
    wait(&format!("{count} are counted by version {by}"), counted).await;
}

async fn is(host: &Rig, state: PluginState) {
    wait(&format!("it is {state:?}"), async || host.show("alpha").await.state == state).await;
}

/// Waits until the host's own rebuild says that it cannot take over for the other one.
async fn waits_for(host: &Rig, other: &str) {
    let why = format!("host {other} runs the plugin");
    let waits = async || {
        let view = host.view("alpha").await;
        assert!(!matches!(view.stage, RebuildStage::Flipped | RebuildStage::Abandoned), "{view:?}");
        view.message.contains(&why)
    };
    wait(&why, waits).await;
}

async fn refused(host: &Rig, code: &str) {
    let error = host.rebuild("alpha", Some("alpha 2")).await.expect_err("it is refused");
    assert_eq!(error.code(), code, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_one_log_rebuild_their_own_tables_while_they_run_the_plugin() {
    let server = RedisServer::durable(Engine::Redis);
    let (mut one, two) = (host(&server, "one").await, host(&server, "two").await);
    one.deploy("alpha 1").await.expect("it is deployed");
    publish(&one, 1).await;
    counted(&one, 1, 1).await;
    two.deploy("alpha 1").await.expect("it is deployed");
    is(&two, PluginState::Standby).await;
    // Only who runs it may begin, and only once.
    refused(&two, "rebuild_refused").await;
    let first = one.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    refused(&one, "rebuild_running").await;
    refused(&two, "rebuild_refused").await;
    let none = two.registry.rebuild_status("alpha").await.expect_err("it knows of none");
    assert_eq!(none.code(), "rebuild_none");

    // The other one takes the plugin over, with its own tables.
    one.registry.pause("alpha").await.expect("it pauses");
    one.open_gate();
    publish(&one, 2).await;
    counted(&two, 2, 1).await;
    one.registry.resume("alpha").await.expect("it stands by");
    is(&one, PluginState::Standby).await;
    waits_for(&one, "two").await;
    counted(&one, 1, 1).await;
    let none = two.registry.rebuild_status("alpha").await.expect_err("it knows of none still");
    assert_eq!(none.code(), "rebuild_none");

    // Its own rebuild does not wait for one of the same number elsewhere, which does not follow it either.
    let second = two.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    assert_eq!(second.number, first.number, "each host counts its own");
    assert_eq!(two.flipped("alpha").await.number, second.number);
    publish(&two, 3).await;
    counted(&two, 3, 2).await;
    one.restart().await;
    is(&one, PluginState::Standby).await;
    waits_for(&one, "two").await;
    counted(&one, 1, 1).await;

    // And it takes over once its host runs the plugin again.
    assert!(two.registry.shut_down(Duration::from_secs(20)).await, "it ends in time");
    let view = one.flipped("alpha").await;
    assert_eq!(view.number, first.number);
    counted(&one, 3, 2).await;
    publish(&one, 4).await;
    counted(&one, 4, 2).await;
    for host in [&one, &two] {
        let history = host.registry.history("alpha").await.expect("it is there");
        let mut versions: Vec<_> = history.iter().map(|deployment| deployment.version.as_str()).collect();
        // A pause and its end are revisions, too.
        versions.dedup();
        assert_eq!(versions, ["2.0.0", "1.0.0"], "each has taken over once");
        host.swept().await;
    }
}
