//! The tail of the log evicts what other hosts have changed. What is given a log runs on every one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::poll;
use millrace::backends::memory::MemoryLog;
use millrace::backends::redis::{RedisLog, RedisOptions};
use millrace::cache::{Ask, CacheOptions, Holds, Keyspace, Partition, ReadThrough};
use millrace::config::LogAddress;
use millrace::event::{Event, EventBatch, Position};
use millrace::streams::{AggregateScopes, EventLog, Scope};
use millrace_tests::conformance::change_streams::stream;
use millrace_tests::conformance::event_log::ALL;
use millrace_tests::embedded::Embedded;
use millrace_tests::every_log::Log;
use millrace_tests::guests::variant;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::until;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::tenant;

fn ask(keyspace: &Keyspace, scope: Option<&str>, key: &str) -> Ask {
    let acme = tenant("acme");
    let partition =
        scope.map_or(Partition::Tenant(acme.clone()), |scope| Partition::Scope(acme, scope.into()));
    Ask::new(keyspace, &partition, key)
}

fn orders(cache: &ReadThrough) -> Keyspace {
    cache.keyspace(Keyspace::new("rows", Holds::RowsOf("order".into())))
}

/// Keeps a value; a follower that just begins may forget everything once.
async fn set(cache: &ReadThrough, ask: &Ask) {
    while cache.get(ask).await.is_none() {
        cache.set(ask, Bytes::from_static(b"v")).await;
        tokio::task::yield_now().await;
    }
}

/// Waits until a value is gone.
async fn gone(cache: &ReadThrough, ask: &Ask) {
    let begin = std::time::Instant::now();
    while cache.get(ask).await.is_some() {
        assert!(begin.elapsed().as_secs() < 60, "it stays");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

async fn append(log: &dyn EventLog, scope: &str, agg_id: &str) {
    let mut batch = EventBatch::new(tenant("acme"));
    static IDS: AtomicU64 = AtomicU64::new(0);
    let id = format!("e{}", IDS.fetch_add(1, Ordering::SeqCst));
    batch.push(&Event { id: &id, scope, agg_id, ..order() }).unwrap();
    log.append(batch).await.unwrap();
}

fn order() -> Event<'static> {
    Event {
        aggregate: "order",
        version: 1,
        event_type: "order.changed",
        payload: b"{}",
        schema_version: 1,
        ..Event::default()
    }
}

fn followed(log: Arc<dyn EventLog>) -> (ReadThrough, JoinSet<()>) {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let follower = cache.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { follower.follow(log).await });
    (cache, tasks)
}

#[tokio::test]
async fn an_event_of_another_host_takes_its_row_out_of_this_process() {
    let log = Arc::new(MemoryLog::new());
    let (cache, _follower) = followed(log.clone());
    let rows = orders(&cache);
    let (one, sibling) = (ask(&rows, None, "1"), ask(&rows, None, "2"));
    // The follower begins with a first level that is empty.
    set(&cache, &one).await;
    append(&*log, "", "1").await;
    gone(&cache, &one).await;
    set(&cache, &sibling).await;
    set(&cache, &one).await;
    append(&*log, "", "1").await;
    gone(&cache, &one).await;
    assert!(cache.get(&sibling).await.is_some());
}

/// The reference loses the scope between the command and the stream, so that copies of a scope are never evicted.
pub(super) async fn sn14_a_scope_reaches_every_reader_of_a_log_and_evicts_its_own_copies_alone(log: Log) {
    let scopes = AggregateScopes { aggregate: "order".into(), scopes: vec![Scope::Id] };
    log.declare_scopes("orders", &[scopes]).await.unwrap();
    let (cache, _follower) = followed(Arc::clone(&log));
    let rows = orders(&cache);
    let (north, south) = (ask(&rows, Some("north"), "1"), ask(&rows, Some("south"), "1"));
    // The follower begins with a first level that is empty.
    set(&cache, &north).await;
    append(&*log, "north", "1").await;
    gone(&cache, &north).await;
    set(&cache, &north).await;
    set(&cache, &south).await;
    append(&*log, "north", "1").await;
    gone(&cache, &north).await;
    assert!(cache.get(&south).await.is_some(), "another scope's copy stays");
    let acme = tenant("acme");
    let of = |events: &EventBatch| events.iter().map(|event| event.scope.to_owned()).collect::<Vec<_>>();
    let page = log.read(&acme, Position::START, ALL).await.unwrap();
    let changes = log.read_stream(&acme, &stream("order", "id", "1"), Position::START, ALL).await.unwrap();
    let tail = log.tail().read(&acme, Position::START, 10).unwrap();
    let tail: Vec<String> = tail.iter().flat_map(|chunk| of(chunk)).collect();
    for (read, how) in [(of(&page.events), "page"), (of(&changes.events), "change stream"), (tail, "tail")] {
        assert_eq!(read, ["north", "north"], "{how}");
    }
}

pub(super) async fn a_scope_over_http() -> Result<()> {
    let host = Embedded::start_with(|config| config.groups.groups_max = 10).await?;
    let cache = host.host().cache();
    let rows = orders(cache);
    let default = |scope: &str| Ask::new(&rows, &Partition::Scope(tenant("default"), scope.into()), "1");
    let (north, south) = (default("north"), default("south"));
    let publish = |n: u64| {
        json!({"aggregate": "order", "agg_id": "1", "version": n, "type": "order.changed", "scope": "north", "payload": {}})
            .to_string()
    };
    set(cache, &north).await;
    host.client.publish(publish(1)).await?;
    gone(cache, &north).await;
    set(cache, &north).await;
    set(cache, &south).await;
    host.client.publish(publish(2)).await?;
    gone(cache, &north).await;
    assert!(cache.get(&south).await.is_some(), "another scope's copy stays");
    for event in host.client.events("").await? {
        assert_eq!(event["scope"], "north", "{event}");
    }
    let tail = host.host().log().tail().read(&tenant("default"), Default::default(), 10);
    let scopes: Vec<String> =
        tail.unwrap().iter().flat_map(|chunk| chunk.iter()).map(|event| event.scope.to_owned()).collect();
    assert_eq!(scopes, ["north", "north"], "what processors and groups are fed from");
    Ok(())
}

/// What a plugin emits is in the scope of what it was made from: through the outbox of the host that runs the plugin, over
/// the log that hosts share, to readers, a projection and the copies of another host.
pub(super) async fn a_scope_through_the_outbox(engine: Engine) -> Result<()> {
    let server = RedisServer::durable(engine);
    let start = async || {
        let host = Embedded::start_with(|config| config.serve.log = Some(LogAddress(server.url()))).await?;
        ensure!(host.host().wait_ready().await, "the log serves");
        Ok(host)
    };
    let (one, other) = (start().await?, start().await?);
    // Each event of the type `make` makes one of the aggregate `made`.
    one.client.deploy_bytes(variant(1, "good")).await?.ok()?;
    other.client.deploy("scoped").await?;
    let event = |agg_id: &str, version: u64| json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": "make", "payload": {}});
    let in_north = |version: u64| {
        let mut event = event("a", version);
        event["scope"] = "north".into();
        event.to_string()
    };
    let cache = other.host().cache();
    let rows = cache.keyspace(Keyspace::new("rows", Holds::RowsOf("made".into())));
    let copy = |scope: &str| Ask::new(&rows, &Partition::Scope(tenant("default"), scope.into()), "a");
    let (north, south) = (copy("north"), copy("south"));
    // The follower begins with a first level that is empty.
    set(cache, &north).await;
    one.client.publish(in_north(1)).await?;
    gone(cache, &north).await;
    set(cache, &north).await;
    set(cache, &south).await;
    one.client.publish(in_north(2)).await?;
    gone(cache, &north).await;
    assert!(cache.get(&south).await.is_some(), "another scope's copy stays");
    one.client.publish(event("b", 1).to_string()).await?;

    for (key, scope) in [("a", json!("north")), ("b", Value::Null)] {
        let projected = |row: &Value| row["row"]["key"] == key && row["row"]["values"]["scope"] == scope;
        let path = format!("/v1/tables/scoped/{key}");
        other.client.wait_for(&path, |answer| answer.status == 200 && projected(&answer.json())).await?;
    }
    let read = other.client.events("made").await?;
    let read: Vec<_> = read.iter().map(|event| (event["agg_id"].clone(), event["scope"].clone())).collect();
    let expected = [("a", json!("north")), ("a", json!("north")), ("b", Value::Null)];
    assert_eq!(read, expected.map(|(agg_id, scope)| (json!(agg_id), scope)));
    let tail = other.host().log().tail().read(&tenant("default"), Default::default(), 100);
    let shown: Vec<_> = tail
        .unwrap()
        .iter()
        .flat_map(|chunk| chunk.iter())
        .filter(|event| event.aggregate == "made")
        .map(|event| (event.agg_id.to_owned(), event.scope.to_owned()))
        .collect();
    let expected = [("a", "north"), ("a", "north"), ("b", "")];
    assert_eq!(shown, expected.map(|(agg_id, scope)| (agg_id.to_owned(), scope.to_owned())));
    Ok(())
}

/// Given a log whose tail keeps the newest batch alone. The follower is given its turns, so that it is as late as it is
/// meant to be.
pub(super) async fn sn17_who_is_left_behind_by_the_tail_forgets_everything_and_follows_on(log: Log) {
    let cache = ReadThrough::new(&CacheOptions::default(), None);
    let rows = orders(&cache);
    let (one, sibling) = (ask(&rows, None, "1"), ask(&rows, None, "2"));
    let mut follower = Box::pin(cache.follow(Arc::clone(&log)));
    assert!(poll!(follower.as_mut()).is_pending());
    set(&cache, &one).await;
    set(&cache, &sibling).await;
    append(&*log, "", "1").await;
    assert!(cache.get(&one).await.is_some(), "it has not had its turn");
    assert!(poll!(follower.as_mut()).is_pending());
    assert_eq!(cache.get(&one).await, None);
    assert!(cache.get(&sibling).await.is_some(), "all that happened is known");

    for _ in 0..3 {
        append(&*log, "", "1").await;
    }
    assert!(poll!(follower.as_mut()).is_pending());
    assert_eq!(cache.get(&sibling).await, None, "it may have been changed among what is gone from the tail");

    set(&cache, &one).await;
    set(&cache, &sibling).await;
    append(&*log, "", "2").await;
    assert!(poll!(follower.as_mut()).is_pending());
    assert_eq!(cache.get(&sibling).await, None, "it follows on");
    assert!(cache.get(&one).await.is_some());
}

async fn redis_log(server: &RedisServer) -> Arc<RedisLog> {
    let log = RedisLog::open(RedisOptions::new(server.url().parse().unwrap()));
    log.ready(std::time::Duration::from_secs(60)).await.unwrap();
    Arc::new(log)
}

pub(super) async fn sn17_eviction_by_the_tail_survives_lost_connections_and_an_emptied_server(
    engine: Engine,
) {
    let mut server = RedisServer::durable(engine);
    let (here, there) = (redis_log(&server).await, redis_log(&server).await);
    let (cache, mut follower) = followed(here.clone());
    let rows = orders(&cache);
    let one = ask(&rows, None, "1");
    set(&cache, &one).await;
    append(&*there, "", "1").await;
    gone(&cache, &one).await;

    set(&cache, &one).await;
    server.kill_clients();
    append(&*there, "", "1").await;
    gone(&cache, &one).await;

    set(&cache, &one).await;
    server.restart();
    append(&*there, "", "1").await;
    gone(&cache, &one).await;

    // Another life of the log: what happened between is not known, so nothing stays.
    let sibling = ask(&rows, None, "2");
    set(&cache, &sibling).await;
    let epoch = here.epoch();
    server.command(&["FLUSHALL"]);
    until("the log begins anew", || here.epoch() != epoch).await;
    gone(&cache, &sibling).await;
    set(&cache, &one).await;
    append(&*there, "", "1").await;
    gone(&cache, &one).await;
    assert!(follower.try_join_next().is_none(), "it follows on");
}
