//! Claims about leases: who runs a processor, and how whoever does not any more is kept from harm.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;
use std::time::Duration;

use millrace::backends::memory::MemoryLeases;
use millrace::backends::redis::{RedisLeases, RedisLink, RedisLog, RedisOptions};
use millrace::cluster::{Asked, Fence, Lease, LeaseStore, Ownerships, Right, Standing};
use millrace::event::{Event, EventBatch};
use millrace::streams::upcast::{UpcastLog, Upcasters};
use millrace::streams::{EventLog, StreamError};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::until;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

fn leases(server: &RedisServer) -> RedisLeases {
    RedisLeases::new(RedisLink::new(server.url().parse().unwrap(), None, "millrace"))
}

async fn memory() -> (Arc<dyn LeaseStore>, ()) {
    (Arc::new(MemoryLeases::default()), ())
}

async fn on_redis() -> (Arc<dyn LeaseStore>, RedisServer) {
    let server = RedisServer::durable(Engine::Redis);
    (Arc::new(leases(&server)), server)
}

async fn on_valkey() -> (Arc<dyn LeaseStore>, RedisServer) {
    let server = RedisServer::durable(Engine::Valkey);
    (Arc::new(leases(&server)), server)
}

millrace_tests::leases_conformance!(in_memory, memory);
millrace_tests::leases_conformance!(redis, on_redis);
millrace_tests::leases_conformance!(valkey, on_valkey);

async fn granted(leases: &dyn LeaseStore, holder: &str) -> Lease {
    match leases.acquire("board", holder, LONG).await.unwrap() {
        Asked::Granted(lease) => lease,
        taken @ Asked::Taken { .. } => panic!("{taken:?}"),
    }
}

fn event(agg_id: &str) -> EventBatch {
    let mut batch = EventBatch::new(tenant("acme"));
    let event =
        Event { aggregate: "leg", agg_id, version: 1, event_type: "x", payload: b"1", ..Event::default() };
    batch.push(&event).unwrap();
    batch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_under_a_lease_that_somebody_else_has_by_now_is_refused() {
    let server = RedisServer::durable(Engine::Redis);
    let log = RedisLog::open(RedisOptions::new(server.url().parse().unwrap()));
    log.ready(Duration::from_secs(60)).await.unwrap();
    let leases = leases(&server);
    let first = granted(&leases, "one").await;
    log.append_fenced(event("a"), &first.fence).await.unwrap();
    leases.release(&first).await.unwrap();
    let second = granted(&leases, "two").await;
    let refused = log.append_fenced(event("b"), &first.fence).await.unwrap_err();
    assert!(matches!(&refused, StreamError::Fenced { name } if name == "board"), "{refused}");
    let upcast = UpcastLog::new(Arc::new(log.clone()), Arc::new(Upcasters::default()));
    let refused = upcast.append_fenced(event("b"), &first.fence).await.unwrap_err();
    assert!(matches!(refused, StreamError::Fenced { .. }), "{refused}");
    log.append_fenced(event("c"), &second.fence).await.unwrap();
    log.append(event("d")).await.expect("who needs no lease is not asked for one");
    assert_eq!(log.bounds().newest.0, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_go_up_also_when_the_server_has_lost_its_data() {
    let server = RedisServer::durable(Engine::Redis);
    let leases = leases(&server);
    let before = granted(&leases, "one").await;
    server.command(&["FLUSHALL"]);
    let after = granted(&leases, "two").await;
    assert!(after.fence.generation > before.fence.generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_renew_knows_that_it_owns_nothing_before_anybody_else_does() {
    let server = RedisServer::durable(Engine::Redis);
    let ttl = Duration::from_secs(3);
    let owners = Ownerships::new(Arc::new(leases(&server)), "one", ttl);
    let mut tasks = JoinSet::new();
    let (mut ownership, keeper) = owners.keep("board", CancellationToken::new());
    tasks.spawn(keeper);
    let generation = ownership.gained().await;
    assert_eq!(owners.right("board"), Right::Held(Fence { name: "board".into(), generation }));
    server.pause();
    ownership.lost(generation).await;
    assert_eq!((owners.right("board"), owners.not_held().len()), (Right::NotHeld, 1));
    server.resume();
    // Nobody has had it in between.
    assert_eq!(ownership.gained().await, generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_by_takes_over_when_the_owner_gives_it_up() {
    let leases: Arc<dyn LeaseStore> = Arc::new(MemoryLeases::default());
    let (one, two) = (Ownerships::new(leases.clone(), "one", LONG), Ownerships::new(leases, "two", LONG));
    let end = CancellationToken::new();
    let (mut first, keeper) = one.keep("board", end.clone());
    let mut kept = JoinSet::new();
    kept.spawn(keeper);
    let generation = first.gained().await;
    let mut tasks = JoinSet::new();
    let (mut second, keeper) = two.keep("board", CancellationToken::new());
    tasks.spawn(keeper);
    until(
        "the other one stands by",
        || matches!(second.now(), Standing::Standby { holder } if holder == "one"),
    )
    .await;
    end.cancel();
    kept.join_next().await.unwrap().unwrap();
    assert_eq!(one.right("board"), Right::NotKept);
    assert!(second.gained().await > generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_twice_is_given_back_when_nobody_here_keeps_it_any_more() {
    let leases: Arc<dyn LeaseStore> = Arc::new(MemoryLeases::default());
    let owners = Ownerships::new(leases.clone(), "one", LONG);
    let ends = [CancellationToken::new(), CancellationToken::new()];
    let mut kept = JoinSet::new();
    let (mut first, keeper) = owners.keep("board", ends[0].clone());
    kept.spawn(keeper);
    let generation = first.gained().await;
    let (mut second, keeper) = owners.keep("board", ends[1].clone());
    kept.spawn(keeper);
    assert_eq!(second.gained().await, generation);
    ends[0].cancel();
    kept.join_next().await.unwrap().unwrap();
    assert_eq!(owners.right("board"), Right::Held(Fence { name: "board".into(), generation }));
    assert!(matches!(leases.acquire("board", "two", LONG).await.unwrap(), Asked::Taken { .. }));
    let two = Ownerships::new(leases.clone(), "two", LONG);
    assert_eq!((owners.is_elsewhere("board").await, two.is_elsewhere("board").await), (false, true));
    ends[1].cancel();
    kept.join_next().await.unwrap().unwrap();
    assert_eq!(owners.right("board"), Right::NotKept);
    assert!(matches!(leases.acquire("board", "two", LONG).await.unwrap(), Asked::Granted(_)));
}
