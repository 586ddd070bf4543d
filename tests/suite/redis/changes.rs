//! Change streams and streams with a name of their own, where several hosts write to one log.

use std::collections::BTreeMap;

use millrace::event::{Event, EventBatch, Position};
use millrace::streams::{EventLog, PageLimit, Retention, StreamName};
use millrace_tests::conformance::change_streams::{
    asset_scopes, change, everything_after_a_subscribe_arrives, named, stream,
};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, batch};
use millrace_tests::redis_server::{Engine, RedisServer};
use millrace_tests::until;

use super::{as_seam, open, options};

async fn positions(log: &dyn EventLog, stream: &StreamName) -> Vec<u64> {
    let after = log.bounds().trimmed;
    let page = log.read_stream(&tenant("acme"), stream, after, ALL).await.expect("the stream is read");
    page.events.records().iter().map(|record| record.position).collect()
}

#[tokio::test]
async fn c12_scopes_that_one_host_declares_hold_for_what_another_appends() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (open(options(&server)).await, open(options(&server)).await);
    one.declare_scopes("assets", &asset_scopes()).await.unwrap();
    // The other host has not heard of it when it appends: the server tells it.
    other.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    assert_eq!(positions(&other, &stream("asset", "site", "S1")).await, [1]);
    until("the first host has read it", || one.bounds().newest == Position(1)).await;
    let chunks = one.tail().read(&tenant("acme"), Position::START, 10).expect("the tail has it");
    assert_eq!(chunks[0].marks().len(), 3, "and its tail says where it belongs");
    assert_eq!(one.scopes(), other.scopes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn06_a_follower_at_another_host_misses_nothing_from_the_instant_it_subscribes() {
    let server = RedisServer::durable(Engine::Redis);
    let (one, other) = (open(options(&server)).await, open(options(&server)).await);
    one.declare_scopes("assets", &asset_scopes()).await.unwrap();
    until("the other host has heard of it", || !other.scopes().is_empty()).await;
    everything_after_a_subscribe_arrives(&as_seam(&one), &as_seam(&other)).await;
}

/// Both hosts move the same assets all the time. Whoever was at a site is seen to leave it: each event that moves an
/// asset is in the stream of the site where the event before has put it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn11_moves_through_two_hosts_reach_every_old_scope() {
    let server = RedisServer::durable(Engine::Valkey);
    let logs = [open(options(&server)).await, open(options(&server)).await];
    logs[0].declare_scopes("assets", &asset_scopes()).await.unwrap();
    let mut movers = tokio::task::JoinSet::new();
    for mover in 0..6_u64 {
        let log = logs[usize::try_from(mover % 2).unwrap()].clone();
        movers.spawn(async move {
            for n in 0..15 {
                let payload = format!(r#"{{"site_id":"S{}"}}"#, (mover * 7 + n * 3) % 5);
                let asset = format!("A{}", n % 2);
                log.append(change("asset", &asset, 1 + mover * 100 + n, "updated", &payload)).await.unwrap();
            }
        });
    }
    while let Some(done) = movers.join_next().await {
        done.expect("a mover finishes");
    }
    until("all is read", || logs[0].bounds().newest == Position(90)).await;
    let all = logs[0].read(&tenant("acme"), Position::START, ALL).await.unwrap().events;
    let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut site_of: BTreeMap<String, String> = BTreeMap::new();
    for event in all.iter() {
        let site =
            String::from_utf8_lossy(event.payload).split('"').nth(3).expect("it has a site").to_owned();
        let before = site_of.insert(event.agg_id.to_owned(), site.clone());
        for site in before.iter().filter(|before| **before != site).chain([&site]) {
            expected.entry(site.clone()).or_default().push(event.position.0);
        }
    }
    for (site, expected) in expected {
        assert_eq!(positions(&logs[1], &stream("asset", "site", &site)).await, expected, "{site}");
    }
}

/// Without a cap of their own they are an index of the log, and what bounds all of them is the log's retention. A stream
/// has what it ever had among the events that are kept, and says that it lacks the rest.
#[tokio::test]
async fn c13_change_streams_keep_what_retention_keeps_whatever_the_size_of_a_page() {
    const EVENTS: u64 = 400;
    const CAP: usize = 100;
    const ENTRY: u64 = 7;
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let log = open(options(&server)).await;
        log.declare_scopes("assets", &asset_scopes()).await.unwrap();
        let acme = tenant("acme");
        let retention = Retention { events: Some(CAP as u64), age: None };
        let key = |stream: &StreamName| format!("{{millrace}}:stream:acme:{stream}");
        let all = stream("asset", "tenant", "");
        let mut position = 0;
        while position < EVENTS {
            let mut batch = EventBatch::new(acme.clone());
            // Several events in an entry, so that cuts fall into the middle of one.
            for _ in 0..ENTRY.min(EVENTS - position) {
                position += 1;
                let agg_id = if position % 40 == 0 { "rare" } else { "busy" };
                let (aggregate, event_type, payload) = ("asset", "asset.updated", &b"{}"[..]);
                let version = position;
                let event = Event { aggregate, agg_id, version, event_type, payload, ..Event::default() };
                batch.push(&event).unwrap();
            }
            log.append(batch).await.unwrap();
            log.trim(retention).await.unwrap();
            let held = server.number(&["XLEN", &key(&all)]);
            let bound = CAP as u64 + ENTRY;
            assert!((position.min(CAP as u64)..=bound).contains(&held), "{engine:?}: {held} at {position}");
        }
        assert_eq!(log.bounds().trimmed, Position(EVENTS - CAP as u64));
        let kept = |of: &dyn Fn(u64) -> bool| -> Vec<u64> { (301..=EVENTS).filter(|at| of(*at)).collect() };
        for (stream, kept) in [
            (all, kept(&|_| true)),
            (stream("asset", "id", "busy"), kept(&|at| at % 40 != 0)),
            (stream("asset", "id", "rare"), vec![320, 360, 400]),
        ] {
            let read = async |after, events| {
                let limit = PageLimit { events, ..ALL };
                let page = log.read_stream(&acme, &stream, Position(after), limit).await.unwrap();
                let positions: Vec<u64> =
                    page.events.records().iter().map(|record| record.position).collect();
                assert_eq!(page.oldest, Position(300), "{stream}");
                (positions, page.next.0, page.truncated)
            };
            for limit in [1, CAP / 2, CAP - 1, CAP, CAP + 1, 4 * CAP] {
                // Also where the page is not full, and where it is full to the last event.
                for after in [0, 1, 299] {
                    let (found, _, truncated) = read(after, limit).await;
                    assert!(
                        truncated,
                        "{stream}: a page of {limit} after {after} does not say what it lacks"
                    );
                    assert_eq!(found, kept[..limit.min(kept.len())], "{stream} {limit} {after}");
                }
                let (mut found, mut after) = (Vec::new(), 300);
                while after < EVENTS {
                    let (page, next, truncated) = read(after, limit).await;
                    assert!(!truncated && page.len() <= limit && next > after, "{stream} {limit} {after}");
                    found.extend(page);
                    after = next;
                }
                assert_eq!(found, kept, "{stream} {limit}");
            }
        }
    }
}

#[tokio::test]
async fn streams_of_what_is_trimmed_leave_no_key_behind() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    let empty = server.number(&["DBSIZE"]);
    for n in 0..600 {
        let payload = format!(r#"{{"site_id":"S{n}"}}"#);
        log.append(change("asset", &format!("A{n}"), 1, "created", &payload)).await.unwrap();
        log.append(change("asset", &format!("A{n}"), 2, "deleted", "{}")).await.unwrap();
    }
    log.append_to(&named("orders"), batch(&tenant("acme"), &[("o", "{}")])).await.unwrap();
    assert!(server.number(&["DBSIZE"]) > 1_200);
    log.trim(Retention { events: Some(0), age: None }).await.unwrap();
    // The events, the tenant's index, the tenants, the ids, the names of its streams.
    assert!(server.number(&["DBSIZE"]) <= empty + 5, "{}", server.number(&["DBSIZE"]));
    assert_eq!(log.bounds().trimmed, Position(1_201));
}

#[tokio::test]
async fn sn7_change_scopes_outlive_an_emptied_server() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    log.declare_scopes("assets", &asset_scopes()).await.unwrap();
    log.append(change("asset", "A1", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    log.append_to(&named("orders"), batch(&tenant("acme"), &[("o", "{}")])).await.unwrap();
    let epoch = log.epoch();
    let mut follower = log.tail().follow_named(&tenant("acme"), "orders");
    server.command(&["FLUSHALL"]);
    assert!(follower.wait_after(Position(2)).await, "who follows a stream is woken");
    until("the log is another one", || log.epoch() != epoch).await;
    let one = stream("asset", "site", "S1");
    log.append(change("asset", "A2", 1, "created", r#"{"site_id":"S1"}"#)).await.unwrap();
    assert_eq!(positions(&log, &one).await.len(), 1);
    let page = log.read_stream(&tenant("acme"), &one, Position(2), ALL).await.unwrap();
    assert!(page.truncated && page.oldest == log.bounds().trimmed, "{page:?}");
    for lost in [named("orders"), StreamName::Events] {
        let page = log.read_stream(&tenant("acme"), &lost, Position(2), ALL).await.unwrap();
        assert!(page.truncated, "{lost}");
    }
}
