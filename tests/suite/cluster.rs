//! Claims about who owns what in a fleet, and how its hosts tell each other.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod every_server;
mod placement;

use millrace::backends::memory::MemoryCluster;
use millrace::backends::redis::{RedisCluster, RedisLink};
use millrace::cluster::{ClusterError, ClusterLimits, Incarnation};
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

async fn sn5_a_server_that_comes_back_empty_knows_nobody_and_gives_higher_epochs(engine: Engine) {
    let (Stage { one, other }, mut server) = on(engine, &small_limits());
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

/// A call's outcome, once there is a server to ask.
async fn told<T>(mut call: impl AsyncFnMut() -> Result<T, ClusterError>) -> Result<T, ClusterError> {
    let begun = std::time::Instant::now();
    loop {
        match call().await {
            Err(ClusterError::Backend(error)) => {
                assert!(begun.elapsed().as_secs() < 60, "the server is away for a minute: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            told => return told,
        }
    }
}

/// Fails unless it is said that this one is gone.
async fn is_gone<T: std::fmt::Debug>(
    what: &str,
    who: &Incarnation,
    call: impl AsyncFnMut() -> Result<T, ClusterError>,
) {
    match told(call).await {
        Err(ClusterError::Gone { who: gone }) => assert_eq!(gone, *who, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// With the older data both members are alive, and the next numbers are those of what is lost: one message would be taken
/// for another.
async fn sn5_nobody_outlives_a_server_that_comes_back_with_older_data(engine: Engine) {
    let limits = ClusterLimits { ttl: std::time::Duration::from_secs(600), ..ClusterLimits::default() };
    let mut server = RedisServer::start(engine, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let (one, other) = (open(&server, limits.clone()), open(&server, limits.clone()));
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let before = one.control.send(&a, &b, "before".into()).await.unwrap();
    other.control.acknowledge(&b, before, "did before".into()).await.unwrap();
    one.deltas.publish(&a, &b, vec!["1".into(), "2".into()]).await.unwrap();
    server.command(&["SAVE"]);
    let done = one.control.send(&a, &b, "done".into()).await.unwrap();
    other.control.acknowledge(&b, done, "did done".into()).await.unwrap();
    let waits = one.control.send(&a, &b, "waits".into()).await.unwrap();
    let last = one.deltas.publish(&a, &b, vec!["3".into(), "4".into()]).await.unwrap();
    let view = one.members.live().await.unwrap();
    server.restart();
    // Behind the lost numbers, and with as many as hide that some went back.
    let some = || vec!["5".into(), "6".into(), "7".into()];
    for _ in 0..3 {
        is_gone("a request", &a, async || one.control.send(&a, &b, "another".into()).await).await;
        is_gone("deltas", &a, async || one.deltas.publish(&a, &b, some()).await).await;
    }
    let now = std::time::Duration::ZERO;
    for number in [before, done, waits] {
        is_gone("an answer", &b, async || one.control.answer(&b, number, now).await).await;
        let late = async || other.control.acknowledge(&b, number, "late".into()).await;
        is_gone("an acknowledgement", &b, late).await;
    }
    is_gone("requests", &b, async || other.control.receive(&b, done, now).await).await;
    is_gone("changes", &b, async || other.deltas.deltas(&b, last, now).await).await;
    is_gone("a heartbeat", &b, async || other.members.heartbeat(&b).await).await;
    let empty = one.members.live().await.unwrap();
    assert_eq!(empty.members, []);
    assert!(empty.epoch > view.epoch, "{} after {}", empty.epoch, view.epoch);

    let former = a.epoch.max(b.epoch);
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    assert!(a.epoch > former && b.epoch > a.epoch, "{a} and {b} after {former}");
    let sent = one.control.send(&a, &b, "again".into()).await.unwrap();
    let soon = std::time::Duration::from_secs(20);
    assert_eq!(other.control.receive(&b, 0, soon).await.unwrap()[0].payload, "again");
    other.control.acknowledge(&b, sent, "did again".into()).await.unwrap();
    assert_eq!(one.control.answer(&b, sent, soon).await.unwrap(), Some("did again".into()));
    one.deltas.publish(&a, &b, some()).await.unwrap();
    let page = other.deltas.deltas(&b, 0, soon).await.unwrap();
    assert_eq!((page.lost, page.next, page.deltas.len()), (0, 3, 3));
}

/// As when somebody changes or removes keys while the server goes on.
async fn sn5_numbers_that_go_back_are_told_of(engine: Engine) {
    let (Stage { one, other }, server) = on(engine, &small_limits());
    let (a, b) = (one.enter("a").await, other.enter("b").await);
    let soon = std::time::Duration::from_secs(20);
    let key = |of: &str| format!("{{millrace}}:cluster:{of}:{b}");
    let deltas = |texts: &[&'static str]| texts.iter().map(|text| (*text).into()).collect::<Vec<_>>();
    for _ in 0..2 {
        let sent = one.control.send(&a, &b, "ask".into()).await.unwrap();
        other.control.acknowledge(&b, sent, "done".into()).await.unwrap();
    }
    one.deltas.publish(&a, &b, deltas(&["1", "2", "3"])).await.unwrap();
    assert_eq!(other.deltas.deltas(&b, 0, soon).await.unwrap().next, 3);
    assert_eq!(other.control.receive(&b, 2, std::time::Duration::ZERO).await.unwrap(), []);

    // The count alone is lost: the stream knows it.
    server.command(&["HSET", &key("at"), "d", "1", "c", "1"]);
    assert_eq!(one.deltas.publish(&a, &b, deltas(&["4"])).await.unwrap(), 4);
    assert_eq!(one.control.send(&a, &b, "ask".into()).await.unwrap(), 3);
    let page = other.deltas.deltas(&b, 3, soon).await.unwrap();
    assert_eq!((page.lost, page.next, page.deltas.len()), (0, 4, 1));
    assert_eq!(other.control.receive(&b, 2, soon).await.unwrap()[0].sequence, 3);

    server.command(&["DEL", &key("delta"), &key("control")]);
    server.command(&["HSET", &key("at"), "d", "1", "c", "1"]);
    let page = other.deltas.deltas(&b, 4, soon).await.unwrap();
    assert_eq!(
        (page.lost, page.next, page.deltas.len()),
        (3, 1, 0),
        "that something is lost is told at once"
    );
    assert_eq!(one.deltas.publish(&a, &b, deltas(&["again"])).await.unwrap(), 2);
    let page = other.deltas.deltas(&b, page.next, soon).await.unwrap();
    assert_eq!((page.lost, page.next, &page.deltas[0].payload[..]), (0, 2, &b"again"[..]));
    let told = other.control.receive(&b, 3, soon).await;
    assert!(matches!(&told, Err(ClusterError::Gone { who }) if *who == b), "{told:?}");
    let anew = other.enter("b").await;
    let sent = one.control.send(&a, &anew, "ask".into()).await.unwrap();
    assert_eq!(other.control.receive(&anew, 0, soon).await.unwrap()[0].sequence, sent);
}

async fn sn5_epochs_do_not_repeat_when_the_server_has_lost_the_newest(engine: Engine) {
    let (Stage { one, .. }, server) = on(engine, &small_limits());
    let mut last = (one.enter("a").await.epoch, one.members.live().await.unwrap().epoch);
    for _ in 0..3 {
        let older = |epoch: u64| (epoch - 1).to_string();
        let words = ["HSET", "{millrace}:cluster:meta", "epoch", &older(last.0), "view", &older(last.1)];
        server.command(&words);
        let next = (one.enter("a").await.epoch, one.members.live().await.unwrap().epoch);
        assert!(next.0 > last.0 && next.1 > last.1, "{next:?} after {last:?}");
        last = next;
    }
}
