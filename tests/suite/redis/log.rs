//! Publishing, reading and trimming.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::event::{EventBatch, Position, TenantId};
use millrace::streams::{EventLog, PageLimit, Retention, StreamError};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, append_one, batch};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

use super::{as_seam, open, options};

/// Ids of a tenant's events, page by page, with their positions.
pub(super) async fn all(log: &RedisLog, tenant: &TenantId) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let mut after = log.bounds().trimmed;
    while after < log.bounds().newest {
        let page = log.read(tenant, after, ALL).await.expect("a page is read");
        found.extend(page.events.iter().map(|event| (event.position.0, event.id.to_owned())));
        after = page.next;
    }
    found
}

#[tokio::test]
async fn c12_c16_c17_an_append_is_seen_by_every_host_that_follows_the_log() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (open(options(&server)).await, open(options(&server)).await);
    assert_eq!(one.epoch(), other.epoch());
    let acme = tenant("acme");
    let mut reader = other.tail().follow(&acme);
    let appended = append_one(&as_seam(&one), &acme, "a").await;
    assert!(reader.wait_after(Position::START).await);
    let chunks = other.tail().read(&acme, Position::START, 10).expect("the tail has it");
    assert_eq!((chunks[0].get(0).id, chunks[0].get(0).position), ("a", appended.position));
    until("the other host serves it", || other.bounds().newest == appended.position).await;
    assert_eq!(other.tenants(), std::slice::from_ref(&acme));
    assert_eq!(all(&other, &acme).await, all(&one, &acme).await);
}

#[tokio::test]
async fn c13_trimming_is_exact_for_readers_and_cheap_for_the_server() {
    let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
    let acme = tenant("acme");
    for n in 0..400 {
        append_one(&as_seam(&log), &acme, &format!("id-{n}")).await;
    }
    assert_eq!(log.trim(Retention { events: Some(100), age: None }).await.unwrap(), 300);
    assert_eq!(all(&log, &acme).await.len(), 100);
    for key in ["{millrace}:events", "{millrace}:tenant:acme"] {
        let held = server.number(&["XLEN", key]);
        assert!((100..400).contains(&held), "{key}: {held}");
    }
    match log.read(&acme, Position(299), ALL).await {
        Err(StreamError::PositionLost { trimmed: Position(300), .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn c13_retention_is_applied_without_being_asked() {
    let server = RedisServer::durable(Engine::Valkey);
    let retention = Retention { events: Some(2), age: None };
    let log = open(RedisOptions { retention, ..options(&server) }).await;
    let other = open(options(&server)).await;
    for n in 0..5 {
        append_one(&as_seam(&log), &tenant("acme"), &format!("id-{n}")).await;
    }
    until("the log was trimmed", || log.bounds().trimmed == Position(3)).await;
    until("the other host knows", || other.bounds().trimmed == Position(3)).await;
}

#[tokio::test]
async fn retention_by_age_goes_by_the_time_of_append() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let acme = tenant("acme");
    for id in ["a", "b", "c"] {
        append_one(&as_seam(&log), &acme, id).await;
    }
    let third = log.appended_at(&acme, Position(2)).await.unwrap().expect("it has a time");
    let second = log.appended_at(&acme, Position(1)).await.unwrap().expect("it has a time");
    assert!(second < third, "{second} {third}");
    // What was appended before the third event is older than the third is now.
    let now: Vec<u64> = server.numbers(&["TIME"]);
    let age = Duration::from_micros(now[0] * 1_000_000 + now[1] - u64::try_from(third.0).unwrap());
    assert_eq!(
        log.trim(Retention { age: Some(age + Duration::from_secs(60)), events: None }).await.unwrap(),
        0
    );
    let trimmed = log.trim(Retention { age: Some(age), events: None }).await.unwrap();
    assert!(trimmed >= 2, "{trimmed}");
    assert_eq!(log.trim(Retention { age: Some(Duration::ZERO), events: None }).await.unwrap(), 3 - trimmed);
}

#[tokio::test]
async fn sn12_a_repeat_through_another_host_is_recognised() {
    let server = RedisServer::durable(Engine::Valkey);
    let (one, other) = (open(options(&server)).await, open(options(&server)).await);
    let acme = tenant("acme");
    let first = append_one(&as_seam(&one), &acme, "a").await;
    let again = append_one(&as_seam(&other), &acme, "a").await;
    assert_eq!((again.position, again.repeated), (first.position, true));
    let taken = other.append(batch(&acme, &[("b", "{}"), ("a", "[1]")])).await;
    assert!(matches!(taken, Err(StreamError::IdTaken { index: 1, position: Position(1), .. })), "{taken:?}");
    assert_eq!(all(&one, &acme).await.len(), 1);
}

#[tokio::test]
async fn a_repeat_beyond_the_dedup_window_is_a_new_event() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(RedisOptions { dedup_events_max: 3, ..options(&server) }).await;
    let (log, acme) = (as_seam(&log), tenant("acme"));
    for id in ["a", "b", "c", "d"] {
        append_one(&log, &acme, id).await;
    }
    assert!(append_one(&log, &acme, "b").await.repeated);
    assert_eq!(append_one(&log, &acme, "a").await.position, Position(5));
    for n in 0..20 {
        append_one(&log, &acme, &format!("more-{n}")).await;
        let held =
            server.number(&["HLEN", "{millrace}:ids"]) + server.number(&["HLEN", "{millrace}:ids:older"]);
        assert!(held <= 8, "the window keeps {held} ids");
    }
    for (id, repeated) in [("more-19", true), ("more-17", true), ("more-16", false)] {
        assert_eq!(append_one(&log, &acme, id).await.repeated, repeated, "{id}");
    }
}

/// Two hosts and many writers: positions without holes, each event once, and both tails agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_append_side_by_side_share_one_order() {
    let server = RedisServer::durable(Engine::Redis);
    let logs = [open(options(&server)).await, open(options(&server)).await];
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16_usize {
        let log = as_seam(&logs[writer % 2]);
        writers.spawn(async move {
            let tenant = tenant(&format!("t{}", writer % 3));
            for n in 0..20 {
                // Some ids are sent by two writers of one tenant.
                append_one(&log, &tenant, &format!("{}-{n}", writer % 4)).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer finishes");
    }
    let newest = logs.iter().map(|log| log.bounds().newest).max().unwrap();
    let mut seen = BTreeSet::new();
    for log in &logs {
        until("both have read it all", || log.bounds().newest == newest).await;
    }
    for name in ["t0", "t1", "t2"] {
        let found = all(&logs[0], &tenant(name)).await;
        assert_eq!(found, all(&logs[1], &tenant(name)).await);
        let ids: BTreeSet<&String> = found.iter().map(|(_, id)| id).collect();
        assert_eq!(ids.len(), found.len(), "no id twice");
        for log in &logs {
            let before = Position(found[0].0 - 1);
            let chunks = log.tail().read(&tenant(name), before, 10_000).expect("the tail reaches back");
            let tail: Vec<(u64, String)> = chunks
                .iter()
                .flat_map(|chunk| chunk.iter().map(|e| (e.position.0, e.id.to_owned())))
                .collect();
            assert_eq!(tail, found);
        }
        seen.extend(found.iter().map(|(position, _)| *position));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=newest.0).collect::<Vec<_>>());
}

/// Entries hold several events: pages begin and end inside of them.
#[tokio::test]
async fn pages_cut_entries_where_they_are_asked_to() {
    let server = RedisServer::durable(Engine::Valkey);
    let log = open(options(&server)).await;
    let acme = tenant("acme");
    for large in 0..3 {
        let ids: Vec<String> = (0..700).map(|n| format!("{large}-{n}")).collect();
        let payload = format!("\"{}\"", "x".repeat(400));
        let events: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), payload.as_str())).collect();
        log.append(batch(&acme, &events)).await.unwrap();
        append_one(&as_seam(&log), &tenant("other"), &format!("o-{large}")).await;
    }
    let entries = server.number(&["XLEN", "{millrace}:events"]);
    assert!((10..100).contains(&entries), "2103 events in {entries} entries");
    let mut whole = Vec::new();
    let mut after = Position::START;
    while after < log.bounds().newest {
        let page = log.read(&acme, after, PageLimit { events: 99, bytes: 30_000 }).await.unwrap();
        assert!(page.events.len() <= 99 && !page.events.is_empty(), "{}", page.events.len());
        assert!(page.events.iter().map(|event| event.payload.len()).sum::<usize>() <= 30_000);
        whole.extend(page.events.iter().map(|event| event.id.to_owned()));
        after = page.next;
    }
    let sent: Vec<String> = (0..3).flat_map(|large| (0..700).map(move |n| format!("{large}-{n}"))).collect();
    assert_eq!(whole, sent);
}

#[tokio::test]
async fn logs_of_different_names_share_a_server_and_nothing_else() {
    let server = RedisServer::durable(Engine::Redis);
    let one = open(options(&server)).await;
    let other = open(RedisOptions { name: "other".into(), ..options(&server) }).await;
    assert_ne!(one.epoch(), other.epoch());
    append_one(&as_seam(&one), &tenant("acme"), "a").await;
    assert_eq!(append_one(&as_seam(&other), &tenant("acme"), "a").await.position, Position(1));
}

#[tokio::test]
async fn a_host_that_comes_back_finds_the_log_and_its_dedup_window() {
    let server = RedisServer::durable(Engine::Redis);
    let acme = tenant("acme");
    let log = open(options(&server)).await;
    let epoch = log.epoch();
    append_one(&as_seam(&log), &acme, "a").await;
    drop(log);
    let log = open(options(&server)).await;
    assert_eq!((log.epoch(), log.bounds().newest, log.tenants()), (epoch, Position(1), vec![acme.clone()]));
    assert!(append_one(&as_seam(&log), &acme, "a").await.repeated);
    // The tail begins at what the host found; what is older comes from the server.
    assert!(log.tail().read(&acme, Position::START, 10).is_none());
    assert_eq!(all(&log, &acme).await, [(1, "a".to_owned())]);
}

#[tokio::test]
async fn five_thousand_tails_hold_three_connections() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let tenants: Vec<TenantId> = (0..5_000).map(|n| tenant(&format!("t{n}"))).collect();
    let mut readers: Vec<_> = tenants.iter().map(|tenant| log.tail().follow(tenant)).collect();
    append_one(&as_seam(&log), &tenants[4_999], "a").await;
    assert!(readers[4_999].wait_after(Position::START).await);
    assert_eq!(server.clients(), 3);
}

#[tokio::test]
async fn an_append_that_nobody_waits_for_any_more_is_carried_out() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let acme = tenant("acme");
    server.pause();
    let given_up =
        tokio::time::timeout(Duration::from_millis(20), log.append(batch(&acme, &[("a", "{}")]))).await;
    assert!(given_up.is_err());
    server.resume();
    until("it is there", || log.bounds().newest == Position(1)).await;
    assert!(log.append(EventBatch::new(acme)).await.unwrap().is_empty());
}
