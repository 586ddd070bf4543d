//! Claims about who owns what in a fleet, and how its hosts tell each other.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod placement;

use millrace::backends::memory::MemoryCluster;
use millrace::backends::redis::{RedisCluster, RedisLink};
use millrace::cluster::{ClusterError, ClusterLimits};
use millrace_tests::conformance::cluster::{Fleet, Stage, brief_limits, small_limits};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};

fn in_memory(limits: ClusterLimits) -> (Stage, ()) {
    let fleet = Fleet::new(MemoryCluster::new(limits));
    (Stage { one: fleet.clone(), other: fleet }, ())
}

async fn memory() -> (Stage, ()) {
    in_memory(small_limits())
}

async fn brief_memory() -> (Stage, ()) {
    in_memory(brief_limits())
}

fn open(server: &RedisServer, limits: ClusterLimits) -> Fleet {
    let link = RedisLink::new(server.url().parse().unwrap(), None, "millrace");
    Fleet::new(RedisCluster::new(link, limits))
}

fn on(engine: Engine, limits: &ClusterLimits) -> (Stage, RedisServer) {
    let server = RedisServer::start(engine, Keeps::Nothing, &[]);
    let host = || open(&server, limits.clone());
    (Stage { one: host(), other: host() }, server)
}

async fn on_redis() -> (Stage, RedisServer) {
    on(Engine::Redis, &small_limits())
}

async fn on_valkey() -> (Stage, RedisServer) {
    on(Engine::Valkey, &small_limits())
}

async fn brief_redis() -> (Stage, RedisServer) {
    on(Engine::Redis, &brief_limits())
}

async fn brief_valkey() -> (Stage, RedisServer) {
    on(Engine::Valkey, &brief_limits())
}

millrace_tests::cluster_conformance!(memory_fleet, memory, brief_memory);
millrace_tests::cluster_conformance!(redis_fleet, on_redis, brief_redis);
millrace_tests::cluster_conformance!(valkey_fleet, on_valkey, brief_valkey);

#[tokio::test]
async fn sn5_a_server_that_comes_back_empty_knows_nobody_and_gives_higher_epochs() {
    let (Stage { one, other }, mut server) = on(Engine::Redis, &small_limits());
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let soon = std::time::Duration::from_secs(20);
    let before = one.members.live().await.unwrap();
    one.control.send(&a, &b, "1".into()).await.unwrap();
    assert_eq!(other.control.receive(&b, 0, soon).await.unwrap().len(), 1);
    server.kill();
    assert!(matches!(one.members.heartbeat(&a).await, Err(ClusterError::Backend(_))));
    assert!(matches!(other.control.receive(&b, 0, soon).await, Err(ClusterError::Backend(_))));
    server.start_again();
    let heard = loop {
        match one.members.heartbeat(&a).await {
            Err(ClusterError::Backend(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(&heard, Err(ClusterError::Gone { who }) if *who == a), "{heard:?}");
    let again = one.enter("a").await;
    assert!(again.epoch > b.epoch, "{again} after {b}");
    assert!(one.members.live().await.unwrap().epoch > before.epoch);
    assert!(matches!(other.control.receive(&b, 0, soon).await, Err(ClusterError::Gone { .. })));
}
