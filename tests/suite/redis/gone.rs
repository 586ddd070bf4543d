//! What is gone of a log: keys that were evicted or deleted, and what retention took from a host that was cut off.

use std::time::Duration;

use millrace::backends::redis::{RedisLog, RedisOptions};
use millrace::checkpoints::LogMark;
use millrace::error::Classify as _;
use millrace::event::{Epoch, Position};
use millrace::limits::REDIS_CHECK_EVERY;
use millrace::streams::{EventLog, Retention, StreamError, StreamName};
use millrace_tests::conformance::change_streams::{asset_scopes, change, stream};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, append_one, batch};
use millrace_tests::cutter::Cutter;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

use super::chaos::{another_life, with_ten};
use super::log::all;
use super::{SOON, as_seam, open, options};

/// A server whose stream loses exactly what it is trimmed by, and a host that reaches it through a proxy.
async fn through_a_proxy() -> (RedisServer, Cutter, RedisLog) {
    let server = RedisServer::start(Engine::Redis, Keeps::Always, &["--stream-node-max-entries", "1"]);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let log =
        open(RedisOptions { append_wait_max: Duration::from_secs(60), ..RedisOptions::new(address) }).await;
    (server, cutter, log)
}

const KEEP_FIVE: Retention = Retention { events: Some(5), age: None };

#[tokio::test]
async fn sn4_a_host_that_retention_has_passed_goes_on_and_leaves_the_log_as_it_is() {
    let (server, cutter, behind) = through_a_proxy().await;
    let log = open(options(&server)).await;
    let (epoch, acme) = with_ten(&log).await;
    until("the other host follows", || behind.bounds().newest == Position(10)).await;
    let mut waiting = behind.tail().follow(&acme);
    cutter.close();
    for n in 10..40 {
        append_one(&as_seam(&log), &acme, &format!("id-{n}")).await;
    }
    log.trim(KEEP_FIVE).await.unwrap();
    cutter.open();
    assert!(waiting.wait_after(Position(10)).await);
    until("it is there", || behind.bounds() == log.bounds()).await;
    assert_eq!((behind.epoch(), log.epoch(), log.bounds().trimmed), (epoch.clone(), epoch, Position(35)));
    let lost = behind.read(&acme, Position(10), ALL).await;
    assert!(matches!(lost, Err(StreamError::PositionLost { trimmed: Position(35), .. })), "{lost:?}");
    assert!(behind.tail().read(&acme, Position(10), 10).is_none(), "the tail sends it to the log");
    let kept = behind.read(&acme, Position(35), ALL).await.unwrap();
    assert_eq!(kept.events.iter().map(|event| event.position.0).collect::<Vec<_>>(), [36, 37, 38, 39, 40]);
    append_one(&as_seam(&behind), &acme, "after it").await;
    until("both have it", || log.bounds().newest == Position(41)).await;
}

#[tokio::test]
async fn sn12_an_append_that_may_have_been_forgotten_is_refused_instead_of_doubled() {
    let (server, cutter, log) = through_a_proxy().await;
    let other = open(options(&server)).await;
    let (epoch, acme) = with_ten(&other).await;
    until("both follow", || log.bounds().newest == Position(10)).await;
    cutter.cut_and_close_after("unanswered");
    let mut sending = tokio::task::JoinSet::new();
    let (sender, tenant) = (log.clone(), acme.clone());
    sending.spawn(async move { sender.append(batch(&tenant, &[("unanswered", "{}")])).await });
    until("it is in the log", || other.bounds().newest == Position(11)).await;
    for n in 10..40 {
        append_one(&as_seam(&other), &acme, &format!("id-{n}")).await;
    }
    // Gone with it: the log cannot tell any more that it had the event.
    other.trim(KEEP_FIVE).await.unwrap();
    cutter.open();
    let refused = sending.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.code(), "backend_timeout", "{refused}");
    assert!(refused.to_string().contains("may have left the dedup window"), "{refused}");
    assert_eq!((other.bounds().newest, other.epoch()), (Position(41), epoch));
    // Asked anew, it is an append like any other.
    assert!(!append_one(&as_seam(&log), &acme, "unanswered").await.repeated);
}

#[tokio::test]
async fn sn4_sn7_any_key_of_the_log_that_is_gone_begins_a_new_life() {
    for key in ["meta", "events", "ids", "ids:older", "tenants", "tenant:acme", "scopes"] {
        let server = RedisServer::durable(Engine::Redis);
        // With a second hash of ids.
        let log = open(RedisOptions { dedup_events_max: 4, ..options(&server) }).await;
        log.declare_scopes("assets", &asset_scopes()).await.unwrap();
        let (epoch, acme) = with_ten(&log).await;
        let of_another = append_one(&as_seam(&log), &tenant("beta"), "other").await.position;
        assert_eq!(server.number(&["DEL", &format!("{{millrace}}:{key}")]), 1, "{key}");
        // Until it is noticed, no page may look as if there were no events.
        let begun = tokio::time::Instant::now();
        while log.epoch() == epoch {
            if let Ok(page) = log.read(&acme, Position::START, ALL).await {
                assert_eq!(page.events.len(), 10, "{key}");
            }
            assert!(begun.elapsed() < SOON, "{key}: not noticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        another_life(&log, &epoch, of_another).await;
        // It is one new life and no series of them.
        let epoch = log.epoch();
        tokio::time::sleep(REDIS_CHECK_EVERY * 3).await;
        assert_eq!((log.epoch(), log.status().problem.is_none()), (epoch, true), "{key}");
        assert!(all(&log, &tenant("beta")).await.is_empty());
        append_one(&as_seam(&log), &tenant("beta"), "after it").await;
        assert_eq!(all(&log, &tenant("beta")).await.len(), 1, "{key}");
    }
}

#[tokio::test]
async fn sn7_an_append_after_a_tenants_index_is_gone_goes_to_the_new_life() {
    let server = RedisServer::durable(Engine::Valkey);
    let log = open(options(&server)).await;
    let (epoch, acme) = with_ten(&log).await;
    server.command(&["DEL", "{millrace}:tenant:acme"]);
    // It would make an index anew, in which the ten events are missing.
    let appended = append_one(&as_seam(&log), &acme, "id-10").await;
    assert_ne!(log.epoch(), epoch);
    assert_eq!(all(&log, &acme).await, [(appended.position.0, "id-10".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn7_sn12_ids_that_are_gone_are_noticed_by_the_next_append() {
    for key in ["ids", "ids:older"] {
        let server = RedisServer::durable(Engine::Redis);
        let log = open(RedisOptions { dedup_events_max: 4, ..options(&server) }).await;
        let (epoch, acme) = with_ten(&log).await;
        server.command(&["DEL", &format!("{{millrace}}:{key}")]);
        // Else it would make the hash anew, and nobody would ever know.
        let appended = append_one(&as_seam(&log), &acme, "id-9").await;
        assert_ne!(log.epoch(), epoch, "{key}");
        assert!(appended.position > log.bounds().trimmed, "{key}");
    }
}

/// Has a server remove keys to make room, and leaves it as it was, with a policy.
fn evict_some(server: &RedisServer, policy_after: &str) {
    for n in 0..500 {
        server.command(&["SET", &format!("filler-{n}"), &"x".repeat(4_000)]);
    }
    let used = server.info("memory");
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("it is told");
    let max = used.trim().parse::<u64>().unwrap() - 400_000;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", &max.to_string()]);
    server.command(&["SET", "one-more", "x"]);
    server.command(&["CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", policy_after]);
    assert!(!server.info("stats").contains("evicted_keys:0\r"), "some were removed");
}

#[tokio::test]
async fn sn4_sn7_keys_that_a_full_server_has_removed_begin_a_new_life() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let log = open(options(&server)).await;
        let (epoch, _) = with_ten(&log).await;
        evict_some(&server, "noeviction");
        another_life(&log, &epoch, Position(10)).await;
        // Only what is removed from now on counts, also for a host that begins.
        let epoch = log.epoch();
        let other = open(options(&server)).await;
        tokio::time::sleep(REDIS_CHECK_EVERY * 3).await;
        assert_eq!((log.epoch(), other.epoch()), (epoch.clone(), epoch));
    }
}

#[tokio::test]
async fn sn4_sn7_what_was_removed_while_no_host_was_there_is_noticed_by_the_next() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (epoch, _) = with_ten(&log).await;
    drop(log);
    evict_some(&server, "noeviction");
    let log = open(options(&server)).await;
    assert_ne!(log.epoch(), epoch);
    let lost = log.read(&tenant("acme"), Position(3), ALL).await;
    // Where the log's own mark was removed as well, nobody here knows of a former life.
    let told = matches!(lost, Err(StreamError::PositionLost { .. } | StreamError::PositionAhead { .. }));
    assert!(told, "{lost:?}");
    assert!(append_one(&as_seam(&log), &tenant("acme"), "id-3").await.position > log.bounds().trimmed);
}

#[tokio::test]
async fn a_policy_that_removes_keys_with_a_time_to_live_leaves_the_log_alone() {
    let server = RedisServer::durable(Engine::Redis);
    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", "8mb"]);
    let log = open(options(&server)).await;
    let (epoch, acme) = with_ten(&log).await;
    for n in 0..2_500 {
        server.command(&["SET", &format!("filler-{n}"), &"x".repeat(4_000), "EX", "1000"]);
    }
    assert!(!server.info("stats").contains("evicted_keys:0\r"), "some were removed");
    tokio::time::sleep(REDIS_CHECK_EVERY * 3).await;
    assert_eq!((log.epoch(), all(&log, &acme).await.len()), (epoch, 10));
}

#[tokio::test]
async fn sn4_a_change_that_somebody_else_deletes_is_not_stepped_over_and_no_other_stands_for_it() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    for version in 1..=3 {
        // All of one length: another entry would read like the one that is missing.
        log.append(change("asset", "A1", version, "updated", r#"{"site_id":"S1"}"#)).await.unwrap();
    }
    server.command(&["XDEL", "{millrace}:events", "2-1"]);
    let site: StreamName = stream("asset", "site", "S1");
    let acme = tenant("acme");
    let page = log.read_stream(&acme, &site, Position::START, ALL).await.unwrap();
    let positions: Vec<u64> = page.events.iter().map(|event| event.position.0).collect();
    assert_eq!((positions, page.next, page.truncated), (vec![1], Position(1), false));
    let page = log.read_stream(&acme, &site, page.next, ALL).await.unwrap();
    let found: Vec<_> = page.events.iter().map(|event| (event.position.0, event.version)).collect();
    assert_eq!((found, page.next, page.truncated), (vec![(3, 3)], Position(3), true));
}

/// A host's store may have noted that its log is empty, and its tasks have gone on since.
#[tokio::test]
async fn a_log_in_its_first_life_is_no_later_life_of_another_one() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (epoch, _) = with_ten(&log).await;
    let begun = |reached| {
        let known =
            LogMark { epoch: Epoch("another".into()), newest: Position::START, reached: Position(reached) };
        RedisLog::open(RedisOptions { known: Some(known), ..options(&server) })
    };
    let refused = begun(3);
    let other_log = || refused.status().problem.is_some_and(|problem| problem.code() == "backend_other_log");
    until("it is refused", other_log).await;
    assert_eq!((log.epoch(), log.bounds().newest), (epoch.clone(), Position(10)), "it is left alone");
    // Of a host that has seen no event, nothing belongs to the former one.
    let taken = begun(0);
    taken.ready(SOON).await.unwrap();
    assert_eq!((taken.epoch(), taken.bounds()), (epoch, log.bounds()));
    // What its own log begins after it was emptied is later than all that it has seen.
    drop(refused);
    let own = RedisServer::durable(Engine::Redis);
    let known = LogMark { epoch: Epoch("own".into()), newest: Position::START, reached: Position(3) };
    let anew = open(RedisOptions { known: Some(known), ..options(&own) }).await;
    assert!(anew.bounds().trimmed.0 >= 1 << 32, "{:?}", anew.bounds());
}
