//! Claims about the control feed on Redis and Valkey: real servers of each test's own.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use millrace::backends::redis::{RedisAck, RedisControl, RedisLink};
use millrace::control::{
    Board as _, ControlEvent, ControlFeedError, ControlSink as _, ControlSource as _, ControlVersion,
    FleetMark, Received,
};
use millrace::error::{BackendError, RemoteFault};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};

use super::feeds::{Feed, LONG, Rig, event, feeds_conformance, is_broken, received, with_id};

const EVENTS: &str = "{fleet}:control:events";

fn open(server: &RedisServer, ack: RedisAck) -> RedisControl {
    let address = server.url().parse().expect("the server has an address");
    RedisControl::new(RedisLink::new(address, None, "fleet"), ack)
}

#[derive(Debug)]
struct OnRedis(Mutex<RedisServer>);

impl OnRedis {
    fn fresh(engine: Engine) -> Arc<dyn Rig> {
        Arc::new(Self(Mutex::new(RedisServer::durable(engine))))
    }
}

impl Rig for OnRedis {
    fn open<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Feed> {
        let server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(std::future::ready(Feed::of(open(&server, RedisAck::Auto))))
    }

    fn put_broken(&self) -> BoxFuture<'_, ()> {
        put_broken(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(std::future::ready(()))
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).restart();
        Box::pin(std::future::ready(()))
    }
}

async fn on_redis() -> Arc<dyn Rig> {
    OnRedis::fresh(Engine::Redis)
}

async fn on_valkey() -> Arc<dyn Rig> {
    OnRedis::fresh(Engine::Valkey)
}

feeds_conformance!(redis, on_redis);
feeds_conformance!(valkey, on_valkey);

/// Puts something right behind the newest entry.
fn put_broken(server: &RedisServer) {
    let newest = server.entry_ids(EVENTS).pop().unwrap_or_else(|| "0-0".into());
    let newest: u64 = newest.split('-').next().unwrap().parse().unwrap();
    server.command(&["XADD", EVENTS, &format!("{}-0", newest + 1), "notes", "it is no event"]);
}

async fn append(feed: &RedisControl, event: &ControlEvent) -> u64 {
    feed.append(event).await.unwrap().0
}

async fn three(feed: &RedisControl) -> Vec<u64> {
    let mut given = Vec::new();
    for plugin in ["one", "two", "three"] {
        given.push(append(feed, &event(plugin)).await);
    }
    given
}

async fn poll(feed: &RedisControl, after: u64) -> millrace::control::Result<Vec<Received>> {
    Ok(feed.poll(ControlVersion(after), 1_000, Duration::ZERO).await?.events)
}

async fn versions(feed: &RedisControl, after: u64) -> Vec<u64> {
    poll(feed, after).await.unwrap().iter().map(|entry| entry.version().0).collect()
}

/// Where the feed begins for a host that is told that it is behind.
async fn behind(feed: &RedisControl, after: u64) -> u64 {
    match poll(feed, after).await {
        Err(ControlFeedError::BehindRetention { asked, oldest }) if asked == after => oldest,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_emptied_gives_no_version_twice_and_hosts_are_told() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let feed = open(&server, RedisAck::Auto);
        let given = three(&feed).await;
        assert_eq!(versions(&feed, 0).await, given);
        let mark = FleetMark { version: ControlVersion(given[2]), state_digest: "x".into(), snapshot: None };
        feed.set_mark(&mark).await.unwrap();
        server.command(&["FLUSHALL"]);
        assert_eq!((behind(&feed, given[2]).await, behind(&feed, given[0]).await), (1, 1));
        assert_eq!(
            versions(&feed, 0).await,
            [0_u64; 0],
            "who goes on from the beginning waits for what comes"
        );
        assert_eq!(feed.mark().await.unwrap(), None);
        // By an origin that knows nothing of what was.
        let fourth = append(&open(&server, RedisAck::Auto), &event("four")).await;
        assert!(fourth > given[2], "{fourth} after {given:?}");
        assert_eq!((behind(&feed, given[2]).await, behind(&feed, given[0]).await), (fourth, fourth));
        assert_eq!(
            (versions(&feed, fourth - 1).await, versions(&feed, 0).await),
            (vec![fourth], vec![fourth])
        );
        assert_eq!(versions(&feed, fourth).await, [0_u64; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_an_older_snapshot_gives_no_version_twice() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let feed = open(&server, RedisAck::Memory);
    let first = append(&feed, &event("one")).await;
    server.command(&["SAVE"]);
    let second = append(&feed, &event("two")).await;
    server.restart();
    // Who has seen what is lost is told that the feed is another one.
    let host = open(&server, RedisAck::Memory);
    assert_eq!(behind(&host, second).await, first);
    assert_eq!(versions(&host, first).await, [0_u64; 0]);
    let third = append(&open(&server, RedisAck::Memory), &event("three")).await;
    assert!(third > second, "{third} after {second}");
    assert_eq!((versions(&host, first).await, versions(&host, second).await), (vec![third], vec![third]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_its_file_keeps_events_and_what_ids_are_known() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let mut server = RedisServer::durable(engine);
        let feed = open(&server, RedisAck::Auto);
        let sent = with_id(78, "board");
        let given = append(&feed, &sent).await;
        server.restart();
        let begin = Instant::now();
        let known = loop {
            match feed.append(&sent).await {
                Ok(version) => break version.0,
                Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
            }
        };
        assert_eq!(known, given);
        let entries = feed.poll(ControlVersion(0), 9, LONG).await.unwrap().events;
        assert_eq!(entries.iter().map(received).collect::<Vec<_>>(), [(given, sent)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_cost_an_error_at_most() {
    let server = RedisServer::durable(Engine::Redis);
    let feed = Arc::new(open(&server, RedisAck::Auto));
    let first = append(&feed, &event("one")).await;
    let waiting = Arc::clone(&feed);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { waiting.poll(ControlVersion(first), 9, LONG * 10).await });
    let polls = || {
        let list: String = ::redis::from_redis_value(server.command(&["CLIENT", "LIST"])).unwrap();
        list.contains("cmd=xread")
    };
    millrace_tests::until("the poll waits at the server", polls).await;
    server.kill_clients();
    let second = event("two");
    let begin = Instant::now();
    let version = loop {
        match feed.append(&second).await {
            Ok(version) => break version.0,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
    };
    let ended = tokio::time::timeout(LONG, tasks.join_next()).await.expect("it ends, or goes on");
    match ended.unwrap().unwrap() {
        Ok(polled) => assert_eq!(polled.events.len(), 1),
        Err(ControlFeedError::Backend(BackendError::Remote { .. })) => {}
        Err(error) => panic!("{error}"),
    }
    assert_eq!(versions(&feed, first).await, [version]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_an_error_and_is_found_again() {
    let mut server = RedisServer::durable(Engine::Redis);
    let feed = open(&server, RedisAck::Auto);
    let first = append(&feed, &event("one")).await;
    assert_eq!(versions(&feed, 0).await, [first]);
    server.kill();
    let late = event("two");
    let away = feed.append(&late).await.unwrap_err();
    assert!(matches!(away, ControlFeedError::Backend(BackendError::Remote { .. })), "{away}");
    let away = feed.poll(ControlVersion(first), 9, LONG * 10).await.unwrap_err();
    assert!(matches!(away, ControlFeedError::Backend(BackendError::Remote { .. })), "{away}");
    server.start_again();
    let begin = Instant::now();
    while let Err(error) = feed.append(&late).await {
        assert!(begin.elapsed() < LONG, "{error}");
    }
    assert_eq!(feed.poll(ControlVersion(first), 9, LONG).await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_would_not_keep_an_event_is_not_given_one() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let feed = open(&server, RedisAck::Auto);
    let refused = feed.append(&event("one")).await.unwrap_err();
    let not_durable = RemoteFault::NotDurable;
    assert!(
        matches!(&refused, ControlFeedError::Backend(BackendError::Remote { fault, .. }) if *fault == not_durable),
        "{refused}"
    );
    assert_eq!(server.number(&["XLEN", EVENTS]), 0);
    append(&open(&server, RedisAck::Memory), &event("one")).await;
    let synced = RedisServer::start(Engine::Valkey, Keeps::EverySecond, &[]);
    append(&open(&synced, RedisAck::Auto), &event("one")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_somebody_else_removes_are_missed() {
    let server = RedisServer::durable(Engine::Redis);
    let feed = open(&server, RedisAck::Auto);
    let given = three(&feed).await;
    server.command(&["XDEL", EVENTS, &format!("{}-0", given[1])]);
    assert_eq!(versions(&feed, 0).await, given[..1], "up to the hole");
    assert_eq!(behind(&feed, given[0]).await, given[2], "behind the hole it goes on");
    assert_eq!(versions(&feed, given[1]).await, given[2..]);
    server.command(&["DEL", EVENTS]);
    assert_eq!(behind(&feed, given[1]).await, given[2] + 1);
    assert_eq!(versions(&feed, given[2]).await, [0_u64; 0]);
    let fourth = append(&feed, &event("four")).await;
    assert_eq!((versions(&feed, given[2]).await, behind(&feed, given[1]).await), (vec![fourth], fourth));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_events_than_one_read_has_come_in_one_answer() {
    let server = RedisServer::durable(Engine::Redis);
    let feed = open(&server, RedisAck::Auto);
    let count = millrace::limits::REDIS_CONTROL_PAGE_MAX * 2 + 3;
    let mut given = Vec::new();
    for _ in 0..count {
        given.push(append(&feed, &event("board")).await);
    }
    put_broken(&server);
    let entries = poll(&feed, 0).await.unwrap();
    assert_eq!(entries[..count].iter().map(|entry| entry.version().0).collect::<Vec<_>>(), given);
    assert!(entries.len() == count + 1 && is_broken(&entries[count]), "{:?}", entries.last());
    // Trimming takes more than one call, and ids are known beyond it.
    assert_eq!(feed.trim(ControlVersion(given[count - 2])).await.unwrap(), count as u64 - 1);
    assert_eq!(behind(&feed, 0).await, given[count - 1]);
}
