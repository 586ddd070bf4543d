//! Servers that cannot be used, or not yet: a clear error each, with its code, and service once they can.

use std::time::{Duration, Instant};

use millrace::backends::redis::{
    Durability, RedisAck, RedisAddress, RedisLeases, RedisLink, RedisLog, RedisOptions,
};
use millrace::cluster::{Asked, LeaseStore as _};
use millrace::error::{BackendError, Blame, Classify, Retry};
use millrace::event::Position;
use millrace::gateway::Problem;
use millrace::streams::{EventLog, Retention, StreamError};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, append_one, batch};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::ports::Port;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::{until, workspace_binary};

use super::log::all;
use super::{SOON, as_seam, open, options};

/// What stands in the way of a log, once that has this code.
pub(super) async fn problem(log: &RedisLog, code: &str) -> BackendError {
    let mut found = None;
    until(code, || {
        found = log.status().problem.filter(|problem| problem.code() == code);
        found.is_some()
    })
    .await;
    let problem = found.expect("it was waited for");
    shown(&problem, code);
    problem
}

/// A client gets the code and a fix, and not the server's words.
#[track_caller]
pub(super) fn shown(error: &BackendError, code: &str) {
    assert_eq!((error.code(), error.blame()), (code, Blame::Host), "{error}");
    let shown = Problem::from(error.clone());
    assert_eq!(shown.code(), code);
    assert!(!shown.to_json().to_string().contains("redis,"), "{}", shown.to_json());
}

fn at(port: u16) -> RedisOptions {
    RedisOptions::new(format!("redis://127.0.0.1:{port}").parse::<RedisAddress>().unwrap())
}

pub(super) async fn c20_an_unreachable_server_is_said_and_waited_for(engine: Engine) {
    let port = Port::hold();
    let wait = Duration::from_millis(300);
    let log = RedisLog::open(RedisOptions { append_wait_max: wait, ..at(port.number()) });
    until("it was tried", || {
        log.status().problem.is_some_and(|said| said.to_string().contains("connecting"))
    })
    .await;
    let said = problem(&log, "backend_unreachable").await;
    assert!(matches!(said.retry(), Retry::After(_)));
    let refused = log.append(batch(&tenant("acme"), &[("a", "{}")])).await.unwrap_err();
    assert_eq!((refused.code(), refused.blame()), ("backend_unreachable", Blame::Host));
    let refused = log.read(&tenant("acme"), Position::START, ALL).await.unwrap_err();
    assert_eq!(refused.code(), "backend_unreachable");
    assert!(log.ready(Duration::ZERO).await.is_err());
    // An append that waits is carried out once there is a server.
    let log = RedisLog::open(at(port.number()));
    let mut waiting = tokio::task::JoinSet::new();
    let appending = as_seam(&log);
    waiting.spawn(async move { append_one(&appending, &tenant("acme"), "b").await });
    let _server = RedisServer::on_port(engine, Keeps::Always, port);
    assert_eq!(waiting.join_next().await.unwrap().unwrap().position, Position(1));
    assert!(log.status().problem.is_none());
}

pub(super) async fn c20_a_wrong_or_missing_password_is_not_worth_another_try(engine: Engine) {
    let server = RedisServer::start(engine, Keeps::Always, &["--requirepass", "right"]);
    for address in ["redis://:wrong@", "redis://", "redis://nobody:right@"] {
        let address = format!("{address}127.0.0.1:{}", server.port());
        let log = RedisLog::open(RedisOptions::new(address.parse().unwrap()));
        let said = problem(&log, "backend_denied").await;
        assert_eq!(said.retry(), Retry::Never, "{said}");
        assert!(!said.to_string().contains("wrong@"), "{said}");
    }
    append_one(&as_seam(&open(options(&server)).await), &tenant("acme"), "a").await;
}

pub(super) async fn c20_a_replica_is_refused(engine: Engine) {
    let primary = RedisServer::durable(engine);
    let replica = primary.replica(Keeps::Always);
    let log = RedisLog::open(options(&replica));
    let said = problem(&log, "backend_read_only").await;
    assert!(said.to_string().contains(&format!("follows 127.0.0.1:{}", primary.port())), "{said}");
    // Promoted, it serves.
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    log.ready(SOON).await.unwrap();
}

pub(super) async fn c20_a_primary_that_becomes_a_replica_is_noticed(engine: Engine) {
    let (first, second) = (RedisServer::durable(engine), RedisServer::durable(engine));
    let log = open(options(&first)).await;
    append_one(&as_seam(&log), &tenant("acme"), "a").await;
    first.command(&["REPLICAOF", "127.0.0.1", &second.port().to_string()]);
    problem(&log, "backend_read_only").await;
}

pub(super) async fn c20_a_key_of_another_kind_is_named(engine: Engine) {
    for key in ["meta", "events", "ids", "tenants", "tenant:acme"] {
        let server = RedisServer::durable(engine);
        server.command(&["SET", &format!("{{millrace}}:{key}"), "mine"]);
        let log = RedisLog::open(options(&server));
        // Some keys stand in the way of the log, others only of an append.
        let refused = || log.status().problem.is_some_and(|said| said.code() == "backend_wrong_type");
        until("the log has begun, or says why not", || log.mark().is_some() || refused()).await;
        let said = if refused() {
            problem(&log, "backend_wrong_type").await
        } else {
            match log.append(batch(&tenant("acme"), &[("a", "{}")])).await {
                Err(StreamError::Backend(said)) => said,
                other => panic!("{key}: {other:?}"),
            }
        };
        assert_eq!((said.code(), said.retry()), ("backend_wrong_type", Retry::Never), "{key}: {said}");
        // Nothing of it was written.
        assert_eq!(
            server.command(&["GET", &format!("{{millrace}}:{key}")]),
            server.command(&["ECHO", "mine"])
        );
        assert!(key == "events" || server.number(&["EXISTS", "{millrace}:events"]) == 0, "{key}");
    }
}

pub(super) async fn c20_a_full_server_refuses_whole_appends_until_there_is_room(engine: Engine) {
    let server = RedisServer::start(engine, Keeps::Always, &["--maxmemory-policy", "noeviction"]);
    let log = open(options(&server)).await;
    let acme = tenant("acme");
    append_one(&as_seam(&log), &acme, "a").await;
    server.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let refused = log.append(batch(&acme, &[("b", "{}"), ("c", "{}")])).await.unwrap_err();
    assert_eq!(refused.code(), "backend_full", "{refused}");
    assert!(matches!(refused.retry(), Retry::After(_)));
    assert_eq!(log.bounds().newest, Position(1));
    // It can be read all the while, leases are kept, and retention makes room.
    assert_eq!(all(&log, &acme).await.len(), 1);
    let leases = RedisLeases::new(RedisLink::new(server.url().parse().unwrap(), None, "millrace"));
    let asked = leases.acquire("tally", "here", Duration::from_secs(5)).await.unwrap();
    assert!(matches!(asked, Asked::Granted(_)), "{asked:?}");
    let none = Retention { events: Some(0), age: None };
    assert_eq!(log.trim(none).await.unwrap(), 1);
    server.command(&["CONFIG", "SET", "maxmemory", "100mb"]);
    let appended = log.append(batch(&acme, &[("b", "{}"), ("c", "{}")])).await.unwrap();
    assert_eq!((appended[0].position, appended[0].repeated), (Position(2), false));
}

#[tokio::test]
async fn what_a_server_would_not_keep_is_not_called_durable() {
    for keeps in [Keeps::Nothing, Keeps::EverySecond] {
        let server = RedisServer::start(Engine::Redis, keeps, &[]);
        for ack in [RedisAck::Auto, RedisAck::Synced] {
            let log = RedisLog::open(RedisOptions { ack, ..options(&server) });
            let said = problem(&log, "backend_not_durable").await;
            assert_eq!(said.retry(), Retry::Never);
            assert!(said.to_string().contains("appendfsync always"), "{said}");
        }
        let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
        assert_eq!(log.status().durability, Some(Durability::Memory));
        // What was said is gone as soon as the server is set right.
        let log = RedisLog::open(options(&server));
        problem(&log, "backend_not_durable").await;
        server.command(&["CONFIG", "SET", "appendfsync", "always"]);
        server.command(&["CONFIG", "SET", "appendonly", "yes"]);
        log.ready(SOON).await.unwrap();
        assert_eq!(log.status().durability, Some(Durability::AppendAlways));
    }
}

pub(super) async fn c20_a_server_that_removes_keys_to_make_room_is_refused(engine: Engine) {
    let policy = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let server = RedisServer::start(engine, Keeps::Always, &policy);
    for ack in [RedisAck::Auto, RedisAck::Memory] {
        let log = RedisLog::open(RedisOptions { ack, ..options(&server) });
        let said = problem(&log, "backend_not_durable").await;
        assert!(said.to_string().contains("maxmemory-policy allkeys-lru"), "{said}");
    }
    assert_eq!(server.number(&["EXISTS", "{millrace}:meta"]), 0);
    let log = RedisLog::open(options(&server));
    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    log.ready(SOON).await.unwrap();
    append_one(&as_seam(&log), &tenant("acme"), "a").await;
    let epoch = log.epoch();
    // Noticed while it serves, and the log goes on as it was where nothing was removed.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"]);
    problem(&log, "backend_not_durable").await;
    until("it does not serve", || log.status().problem.is_some()).await;
    let refused = log.read(&tenant("acme"), Position::START, ALL).await.unwrap_err();
    assert_eq!(refused.code(), "backend_not_durable");
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    log.ready(SOON).await.unwrap();
    assert_eq!((log.epoch(), all(&log, &tenant("acme")).await.len()), (epoch, 1));
    // Without a bound nothing is removed.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "0"]);
    open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
}

#[tokio::test]
async fn an_append_waits_for_the_sync_where_the_server_has_waitaof() {
    let server = RedisServer::start(Engine::Valkey, Keeps::EverySecond, &[]);
    let log = open(options(&server)).await;
    assert_eq!(log.status().durability, Some(Durability::WaitAof));
    assert!(log.status().server.starts_with("valkey 8"), "{:?}", log.status());
    append_one(&as_seam(&log), &tenant("acme"), "a").await;
}

#[tokio::test]
async fn an_append_waits_for_a_replica_where_there_is_one() {
    let primary = RedisServer::durable(Engine::Redis);
    let replica = primary.replica(Keeps::Nothing);
    let wait = Duration::from_millis(1_500);
    let log = open(RedisOptions { append_wait_max: wait, ..options(&primary) }).await;
    assert_eq!(log.status().durability, Some(Durability::Replicated { replicas: 1 }));
    let acme = tenant("acme");
    append_one(&as_seam(&log), &acme, "a").await;
    replica.pause();
    let refused = log.append(batch(&acme, &[("b", "{}")])).await.unwrap_err();
    assert_eq!(refused.code(), "backend_not_replicated", "{refused}");
    // What no replica has is not shown, though the primary has it.
    assert_eq!((log.bounds().newest, primary.number(&["XLEN", "{millrace}:events"])), (Position(1), 2));
    assert!(log.tail().read(&acme, Position(1), 10).expect("the tail reaches back").is_empty());
    replica.resume();
    until("the replica has it", || log.bounds().newest == Position(2)).await;
    assert!(append_one(&as_seam(&log), &acme, "b").await.repeated);
    assert!(log.status().problem.is_none());
}

#[tokio::test]
async fn a_member_of_a_cluster_is_refused() {
    let server = RedisServer::start(Engine::Valkey, Keeps::Always, &["--cluster-enabled", "yes"]);
    let log = RedisLog::open(options(&server));
    let said = problem(&log, "backend_unsupported").await;
    assert!(said.to_string().contains("part of a cluster"), "{said}");
}

/// A server with TLS beside its plain port, and the authority that it is to be checked against.
#[tokio::test]
async fn a_server_with_tls_is_checked_against_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(file("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    let held = Port::hold();
    let port = held.number();
    let server = RedisServer::start(
        Engine::Redis,
        Keeps::Always,
        &[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &file("cert.pem"),
            "--tls-key-file",
            &file("key.pem"),
            "--tls-ca-cert-file",
            &file("cert.pem"),
            "--tls-auth-clients",
            "no",
        ],
    );
    let address = |host: &str, port: u16| format!("rediss://{host}:{port}").parse::<RedisAddress>().unwrap();
    // Nobody vouches for it.
    let log = RedisLog::open(RedisOptions::new(address("localhost", port)));
    until("it is refused", || {
        log.status().problem.is_some_and(|said| said.to_string().contains("ertificate"))
    })
    .await;
    // A server that does not speak TLS is none.
    let log = RedisLog::open(RedisOptions::new(address("localhost", server.port())));
    until("it is refused", || {
        log.status().problem.is_some_and(|said| said.to_string().contains("connecting"))
    })
    .await;
    let ca_file = Some(file("cert.pem").into());
    let log = open(RedisOptions { ca_file, ..RedisOptions::new(address("localhost", port)) }).await;
    append_one(&as_seam(&log), &tenant("acme"), "a").await;
    let elsewhere = RedisOptions {
        ca_file: Some(file("missing.pem").into()),
        ..RedisOptions::new(address("localhost", port))
    };
    let log = RedisLog::open(elsewhere);
    until("the file is named", || {
        log.status().problem.is_some_and(|said| said.to_string().contains("missing.pem"))
    })
    .await;
}

#[tokio::test]
async fn a_server_that_still_loads_is_waited_for() {
    let mut server = RedisServer::start(
        Engine::Redis,
        Keeps::Nothing,
        &[
            "--dbfilename",
            "dump.rdb",
            "--rdbcompression",
            "no",
            "--loading-process-events-interval-bytes",
            "1024",
        ],
    );
    for n in 0..100 {
        server.command(&["SET", &format!("key-{n}"), &"x".repeat(1_000)]);
    }
    server.command(&["SAVE"]);
    server.kill();
    server.start_again_slowly(&["--key-load-delay", "20000"]);
    let log = RedisLog::open(RedisOptions { ack: RedisAck::Memory, ..options(&server) });
    problem(&log, "backend_loading").await;
    log.ready(SOON).await.unwrap();
}

#[tokio::test]
async fn entries_of_a_later_format_stop_the_log_and_stay() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    append_one(&as_seam(&log), &tenant("acme"), "a").await;
    let epoch = log.epoch();
    // As a later version would write it.
    server.command(&["HSET", "{millrace}:meta", "position", "2"]);
    server.command(&["XADD", "{millrace}:events", "2-1", "t", "acme", "a", "1", "e", "\u{9}later"]);
    let said = problem(&log, "backend_unsupported").await;
    assert!(said.to_string().contains("format"), "{said}");
    assert_eq!((log.epoch(), server.number(&["XLEN", "{millrace}:events"])), (epoch, 2));
}

/// What a host has written of its log, in order.
fn told(host: &HostProcess) -> Vec<&'static str> {
    let mut told = Vec::new();
    for line in host.said().lines() {
        if line.contains("the log on Redis serves") {
            told.push("serves");
        } else if line.contains("the log on Redis does not serve") {
            told.push(if line.contains("backend_denied") { "denied" } else { "something else" });
        }
    }
    told
}

/// How often a host has reached its log.
async fn sessions(host: &HostProcess) -> u64 {
    let text = reqwest::get(format!("{}/metrics", host.url)).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("millrace_redis_sessions_total "));
    line.expect("it was reached once").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_reached_and_cannot_be_read_is_told_once_for_each_outage() {
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::durable(Engine::Redis);
    let setup = Setup::new(workspace_binary("millrace")).log(&server.url());
    let host = HostProcess::start_as(setup, &dir.path().join("data")).await.unwrap();
    for _ in 0..2 {
        until("it serves", || told(&host).last() == Some(&"serves")).await;
        let before = (told(&host).len(), sessions(&host).await);
        // The server is found and the log is looked at; it is the reading that fails.
        server.command(&["ACL", "SETUSER", "default", "-xread"]);
        until("that is told", || told(&host)[before.0..].contains(&"denied")).await;
        let begun = Instant::now();
        while sessions(&host).await < before.1 + 5 {
            assert!(begun.elapsed() < SOON, "{}", host.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let said = told(&host).split_off(before.0);
        let mut once = said.clone();
        once.dedup();
        assert!(!said.contains(&"serves"), "{}", host.said());
        assert_eq!(said, once, "each is told once: {}", host.said());
        server.command(&["ACL", "SETUSER", "default", "+xread"]);
    }
    until("it serves again", || told(&host).last() == Some(&"serves")).await;
}
