//! Claims about groups of consumers whose state lies in the server, beside the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use millrace::backends::redis::{RedisGroups, RedisLink, RedisLog};
use millrace::clock::ManualClock;
use millrace::error::{BackendError, Classify, RemoteFault};
use millrace::event::{Event, EventBatch, Micros, Position};
use millrace::limits::{REDIS_CONSUMERS_DUE_MAX, REDIS_CONSUMERS_SWEEP_MAX};
use millrace::streams::groups::{
    Delivery, GroupChange, GroupError, GroupId, GroupLimits, GroupRead, GroupStart, Groups, OnLost, Refusal,
    Settle, Settled,
};
use millrace::streams::{EventLog, Retention, StreamName};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::groups::{Stage, THREE_TRIES, append, group, label, labels, read_of};
use millrace_tests::cutter::Cutter;
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

use super::{SOON, as_seam, open, options};

fn link(server: &RedisServer) -> RedisLink {
    RedisLink::new(server.url().parse().expect("the server has an address"), None, "millrace")
}

/// Groups of one host, by the server's time.
fn groups(server: &RedisServer, log: &RedisLog) -> RedisGroups {
    RedisGroups::new(link(server), log, as_seam(log), GroupLimits::default())
}

/// For the suite of the seam: the time is the test's.
async fn stage(engine: Engine, stream: StreamName) -> (Stage, RedisServer) {
    let server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    let clock = Arc::new(ManualClock::default());
    clock.set(Micros(1_000_000));
    let again = {
        let (url, log, clock) = (server.url(), log.clone(), clock.clone());
        move |limits| -> Arc<dyn Groups> {
            let link = RedisLink::new(url.parse().expect("the server has an address"), None, "millrace");
            Arc::new(RedisGroups::with_clock(link, &log, as_seam(&log), limits, clock.clone()))
        }
    };
    let (log, groups, again) = (as_seam(&log), again(GroupLimits::default()), Arc::new(again));
    let stage = Stage { stream: StreamName::Events, log, groups, clock, again, shared: true };
    (if stream == StreamName::Events { stage } else { stage.on(stream).await }, server)
}

async fn redis(stream: StreamName) -> (Stage, RedisServer) {
    stage(Engine::Redis, stream).await
}

async fn valkey(stream: StreamName) -> (Stage, RedisServer) {
    stage(Engine::Valkey, stream).await
}

millrace_tests::groups_conformance!(redis_groups, redis);
millrace_tests::groups_conformance!(valkey_groups, valkey);
millrace_tests::groups_conformance!(redis_named, redis, named);
millrace_tests::groups_conformance!(valkey_named, valkey, named);
millrace_tests::groups_conformance!(redis_changes, redis, changes);
millrace_tests::groups_conformance!(valkey_changes, valkey, changes);

/// The keys of a group's events, and who has which of them now. Each is held by one at a time, each key too.
#[derive(Debug, Default)]
struct Held {
    now: BTreeMap<String, String>,
    /// What was seen of each key for the first time, in order.
    seen: BTreeMap<String, Vec<u64>>,
}

impl Held {
    fn take(&mut self, consumer: &str, delivery: &Delivery) {
        let event = delivery.event.get(0);
        let before = self.now.insert(event.agg_id.to_owned(), consumer.to_owned());
        assert_eq!(before, None, "{} {} is with two", event.agg_id, event.version);
        let seen = self.seen.entry(event.agg_id.to_owned()).or_default();
        let newest = seen.last().copied().unwrap_or(0);
        assert!(event.version == newest || event.version == newest + 1, "{event:?} after {newest}");
        if event.version > newest {
            seen.push(event.version);
        }
    }

    fn give_back(&mut self, delivery: &Delivery) {
        self.now.remove(delivery.event.get(0).agg_id);
    }
}

/// `a1` to `h9`: so many versions of so many keys.
fn many(keys: u8, versions: u64) -> Vec<String> {
    let of = |version| (0..keys).map(move |key| format!("{}{version}", char::from(b'a' + key)));
    (1..=versions).flat_map(of).collect()
}

async fn publish(log: &RedisLog, labels: &[String]) -> Vec<Position> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    append(&as_seam(log), &tenant("acme"), &labels).await
}

fn patient(lease_ms: u64) -> GroupChange {
    GroupChange {
        lease_ms: Some(lease_ms),
        attempts_max: Some(1_000),
        backoff_ms_min: Some(1),
        backoff_ms_max: Some(5),
        on_lost: None,
    }
}

fn waiting(consumer: &str, events: usize) -> GroupRead {
    GroupRead { wait: Duration::from_secs(5), ..read_of(consumer, events) }
}

async fn acknowledge(groups: &RedisGroups, id: &GroupId, taken: &[Delivery]) -> Vec<Settled> {
    let said = taken.iter().map(|delivery| Settle::Ack(delivery.receipt)).collect();
    groups.settle(id, said).await.unwrap()
}

/// Reads and acknowledges until nothing is left: what came, in order.
async fn drain(groups: &RedisGroups, id: &GroupId, consumer: &str) -> Vec<Delivery> {
    let mut all = Vec::new();
    while groups.status(id).await.unwrap().lag_events > 0 {
        let taken = groups.read(id, waiting(consumer, 100)).await.unwrap().entries;
        acknowledge(groups, id, &taken).await;
        all.extend(taken);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_sn3_consumers_at_two_hosts_never_hold_one_event_or_one_key_together() {
    for engine in [Engine::Redis, Engine::Valkey] {
        let server = RedisServer::durable(engine);
        let logs = [open(options(&server)).await, open(options(&server)).await];
        let hosts = [groups(&server, &logs[0]), groups(&server, &logs[1])];
        let id = group("acme", "billing");
        hosts[0].ensure(&id, GroupStart::Oldest, patient(60_000)).await.unwrap();
        publish(&logs[0], &many(8, 5)).await;
        let held = Arc::new(Mutex::new(Held::default()));
        let mut consumers = tokio::task::JoinSet::new();
        for number in 0..6_usize {
            let (groups, id, held) = (hosts[number % 2].clone(), id.clone(), Arc::clone(&held));
            consumers.spawn(async move {
                let name = format!("c{number}");
                for round in number.. {
                    let read = GroupRead { wait: Duration::from_millis(100), ..read_of(&name, 3) };
                    let taken = groups.read(&id, read).await.unwrap().entries;
                    if taken.is_empty() && groups.status(&id).await.unwrap().lag_events == 0 {
                        return;
                    }
                    let mut said = Vec::new();
                    for (index, delivery) in taken.iter().enumerate() {
                        held.lock().unwrap().take(&name, delivery);
                        let receipt = delivery.receipt;
                        said.push(match (round + index) % 5 {
                            0 => Settle::Nack { receipt, delay_ms: Some(1), reason: "again".into() },
                            _ => Settle::Ack(receipt),
                        });
                    }
                    for delivery in &taken {
                        held.lock().unwrap().give_back(delivery);
                    }
                    groups.settle(&id, said).await.unwrap();
                }
            });
        }
        // More comes while they work.
        let later: Vec<String> = many(8, 9).split_off(40);
        publish(&logs[1], &later).await;
        while let Some(done) = consumers.join_next().await {
            done.unwrap();
        }
        let seen = std::mem::take(&mut held.lock().unwrap().seen);
        assert_eq!(seen.len(), 8);
        assert!(seen.values().all(|versions| *versions == (1..=9).collect::<Vec<_>>()), "{seen:?}");
        assert_eq!(hosts[1].status(&id).await.unwrap().lag_events, 0);
    }
}

#[tokio::test]
async fn sn2_what_a_dead_consumer_had_goes_to_one_at_another_host_in_the_order_of_its_keys() {
    let server = RedisServer::durable(Engine::Redis);
    let (log, other) = (open(options(&server)).await, open(options(&server)).await);
    let (dies, lives) = (groups(&server, &log), groups(&server, &other));
    let id = group("acme", "billing");
    // Long enough for it to acknowledge one.
    dies.ensure(&id, GroupStart::Oldest, patient(3_000)).await.unwrap();
    publish(&log, &many(3, 3)).await;
    let batch = dies.read(&id, read_of("dies", 10)).await.unwrap().entries;
    assert_eq!(labels(&batch), ["a1", "b1", "c1"]);
    acknowledge(&dies, &id, &batch[..1]).await;
    drop(dies);
    // Its leases end as they were begun; what the other one has, it has for long.
    lives.ensure(&id, GroupStart::Oldest, patient(60_000)).await.unwrap();
    let all = drain(&lives, &id, "lives").await;
    for key in ["a", "b", "c"] {
        let versions: Vec<u64> = all
            .iter()
            .filter(|delivery| delivery.event.get(0).agg_id == key)
            .map(|delivery| delivery.event.get(0).version)
            .collect();
        let expected = if key == "a" { vec![2, 3] } else { vec![1, 2, 3] };
        assert_eq!(versions, expected, "{key}");
    }
    let again = all.iter().filter(|delivery| delivery.attempt == 2);
    assert_eq!(again.map(label).collect::<Vec<_>>(), ["b1", "c1"]);
}

pub(super) async fn sn5_connections_that_are_killed_lose_no_entry_and_no_acknowledgement(engine: Engine) {
    let server = RedisServer::durable(engine);
    // So that acknowledgements wait for it, on a connection that is killed, too.
    let _replica = server.replica(Keeps::Nothing);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, patient(500)).await.unwrap();
    publish(&log, &many(10, 10)).await;
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    let (mut done, mut round) = (BTreeSet::new(), 0);
    while groups.status(&id).await.unwrap().lag_events > 0 {
        round += 1;
        if round % 2 == 0 {
            server.kill_clients();
        }
        let taken = groups.read(&id, waiting("one", 7)).await.unwrap().entries;
        for delivery in &taken {
            let event = delivery.event.get(0);
            let next = next.entry(event.agg_id.to_owned()).or_insert(1);
            assert!(event.version <= *next, "{event:?} before {next}");
            assert!(!done.contains(&event.position), "{event:?} was acknowledged");
            *next = (*next).max(event.version + 1);
        }
        if round % 3 == 0 {
            server.kill_clients();
        }
        let settled = acknowledge(&groups, &id, &taken).await;
        for (delivery, settled) in taken.iter().zip(settled) {
            if matches!(settled, Settled::Acknowledged | Settled::Already) {
                done.insert(delivery.receipt.position);
            }
        }
    }
    assert_eq!((done.len(), next.len()), (100, 10));
    assert!(next.values().all(|next| *next == 11), "{next:?}");
}

#[tokio::test]
async fn sn5_a_lost_answer_takes_no_entry_away_and_repeats_no_attempt() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr).parse().unwrap();
    let link = RedisLink::new(address, None, "millrace");
    let groups = RedisGroups::new(link, &log, as_seam(&log), GroupLimits::default());
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    publish(&log, &many(3, 1)).await;
    // The group is known from here on, so that one call does it all.
    assert_eq!(groups.read(&id, read_of("first", 1)).await.unwrap().entries.len(), 1);
    cutter.cut_after("unlucky");
    let taken = groups.read(&id, read_of("unlucky", 10)).await.unwrap().entries;
    assert_eq!((cutter.cuts(), labels(&taken)), (1, vec!["b1".to_owned(), "c1".to_owned()]));
    assert!(taken.iter().all(|delivery| delivery.attempt == 1), "the same leases were answered again");
    cutter.cut_after(&taken[0].receipt.life.to_string());
    let reason = "no such invoice".to_owned();
    let nack = Settle::Nack { receipt: taken[1].receipt, delay_ms: Some(3_600_000), reason };
    let settled = groups.settle(&id, vec![Settle::Ack(taken[0].receipt), nack]).await.unwrap();
    assert_eq!((cutter.cuts(), settled[0]), (2, Settled::Already));
    assert!(matches!(settled[1], Settled::Retry(_)), "{settled:?}");
    let status = groups.status(&id).await.unwrap();
    assert_eq!((status.in_flight, status.retrying, status.lag_events), (1, 1, 2));
}

#[tokio::test]
async fn sn25_a_storm_of_dead_consumers_is_claimed_to_its_end_and_they_are_forgotten() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let limits = GroupLimits { consumer_idle: Duration::from_millis(400), ..GroupLimits::default() };
    let groups = RedisGroups::new(link(&server), &log, as_seam(&log), limits);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, patient(300)).await.unwrap();
    // More than end in one call of a script.
    let events = REDIS_CONSUMERS_DUE_MAX + 200;
    let keys: Vec<String> = (0..events)
        .map(|n| char::from_u32(0x4e00 + u32::try_from(n).unwrap()).unwrap().to_string() + "1")
        .collect();
    for keys in keys.chunks(1_000) {
        let mut batch = EventBatch::new(tenant("acme"));
        for key in keys {
            let (aggregate, event_type) = ("thing", "thing.made");
            let event = Event { aggregate, agg_id: key, version: 1, event_type, ..Event::default() };
            batch.push(&event).unwrap();
        }
        log.append(batch).await.unwrap();
    }
    let mut leased = 0;
    for n in 0.. {
        let taken = groups.read(&id, read_of(&format!("dead-{n}"), 30)).await.unwrap().entries;
        leased += taken.iter().filter(|delivery| delivery.attempt == 1).count();
        if leased == events {
            break;
        }
    }
    groups.ensure(&id, GroupStart::Oldest, patient(60_000)).await.unwrap();
    let mut all = BTreeSet::new();
    while all.len() < events {
        let taken = groups.read(&id, waiting("last", 1_000)).await.unwrap().entries;
        acknowledge(&groups, &id, &taken).await;
        all.extend(taken.iter().map(|delivery| delivery.receipt.position));
    }
    let server_forgets = async || {
        groups.sweep().await.unwrap();
        server.number(&["ZCARD", "{millrace}:group:acme:events:billing/seen"]) == 0
    };
    let begin = std::time::Instant::now();
    while !server_forgets().await {
        assert!(begin.elapsed() < SOON, "silent consumers stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(groups.status(&id).await.unwrap().lag_events, 0);
}

#[tokio::test]
async fn upkeep_comes_to_its_end_where_silent_consumers_hold_what_they_have() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (idle, clock) = (Duration::from_millis(400), Arc::new(ManualClock::default()));
    clock.set(Micros(1_000_000));
    let limits = GroupLimits { consumer_idle: idle, groups_max: 100, ..GroupLimits::default() };
    let groups = RedisGroups::with_clock(link(&server), &log, as_seam(&log), limits, clock.clone());
    publish(&log, &many(1, 1)).await;
    // As many as one call looks after, and they come before the one that has something to do.
    for n in 0..REDIS_CONSUMERS_SWEEP_MAX {
        let id = group("acme", &format!("held-{n}"));
        groups.ensure(&id, GroupStart::Oldest, patient(60_000)).await.unwrap();
        assert_eq!(groups.read(&id, read_of("silent", 1)).await.unwrap().entries.len(), 1);
    }
    let late = group("acme", "late");
    let once = GroupChange { attempts_max: Some(1), ..patient(500) };
    groups.ensure(&late, GroupStart::Oldest, once).await.unwrap();
    assert_eq!(groups.read(&late, read_of("dies", 1)).await.unwrap().entries.len(), 1);
    clock.set(Micros(2_000_000));
    tokio::time::timeout(SOON, groups.sweep()).await.expect("it ends").unwrap();
    assert_eq!(server.number(&["ZCARD", "{millrace}:group:acme:events:late/dead"]), 1);
}

#[tokio::test]
async fn sn4_what_retention_takes_is_counted_when_it_goes_and_told_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let (unread, begun) = (group("acme", "unread"), group("acme", "begun"));
    for id in [&unread, &begun] {
        groups.ensure(id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    }
    publish(&log, &many(10, 1)).await;
    let taken = groups.read(&begun, read_of("one", 5)).await.unwrap().entries;
    acknowledge(&groups, &begun, &taken[1..3]).await;
    for keep in [6, 4] {
        log.trim(Retention { events: Some(keep), age: None }).await.unwrap();
    }
    for (id, lost) in [(&unread, 6), (&begun, 4)] {
        let status = groups.status(id).await.unwrap();
        assert_eq!((status.lost_events, status.lag_events, status.stopped), (lost, 4, true), "{id}");
        let error = groups.read(id, read_of("one", 1)).await.unwrap_err();
        assert_eq!(error.code(), "group_position_lost");
    }
    let text = handle.render();
    for line in ["millrace_group_lost_events_total 10", "millrace_group_lost_positions_total 4"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

pub(super) async fn sn5_an_emptied_server_has_no_groups_and_makes_them_again(engine: Engine) {
    let server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    publish(&log, &many(3, 1)).await;
    let taken = groups.read(&id, read_of("one", 2)).await.unwrap().entries;
    let epoch = log.epoch();
    server.command(&["FLUSHALL"]);
    let error = groups.read(&id, read_of("one", 2)).await.unwrap_err();
    assert!(matches!(error, GroupError::Unknown { .. }), "{error:?}");
    let error = groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap_err();
    assert_eq!(error.code(), "group_unknown");
    let (_, created) = groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    assert!(created && log.epoch() != epoch, "it begins in the log's next life");
    publish(&log, &many(1, 1)).await;
    assert_eq!(labels(&groups.read(&id, waiting("one", 2)).await.unwrap().entries), ["a1"]);
    let settled = acknowledge(&groups, &id, &taken).await;
    assert!(settled.iter().all(|settled| *settled == Settled::Refused(Refusal::Unknown)), "{settled:?}");
}

#[tokio::test]
async fn sn4_an_event_that_somebody_else_deletes_is_counted_and_keeps_no_group_busy() {
    let server = RedisServer::durable(Engine::Redis);
    let first = open(options(&server)).await;
    for label in ["a1", "b1", "c1"] {
        publish(&first, &[label.to_owned()]).await;
    }
    server.command(&["XDEL", "{millrace}:events", "2-1"]);
    // One that has not seen it.
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let (goes_on, stops) = (group("acme", "goes-on"), group("acme", "stops"));
    let change = GroupChange { on_lost: Some(OnLost::FromOldest), ..THREE_TRIES };
    groups.ensure(&goes_on, GroupStart::Oldest, change).await.unwrap();
    let read = groups.read(&goes_on, read_of("one", 10)).await.unwrap();
    assert_eq!((labels(&read.entries).join(" "), read.lost_events), ("a1 c1".to_owned(), 1));
    groups.ensure(&stops, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    let taken = groups.read(&stops, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(labels(&taken), ["a1"], "what was leased before it is answered");
    let error = groups.read(&stops, read_of("one", 10)).await.unwrap_err();
    assert!(matches!(error, GroupError::PositionLost { events: 1, until: Position(2), .. }), "{error:?}");
    acknowledge(&groups, &stops, &taken).await;
    groups.seek(&stops, GroupStart::After(Position(2))).await.unwrap();
    assert_eq!(labels(&groups.read(&stops, read_of("one", 10)).await.unwrap().entries), ["c1"]);
}

/// The group's keys are there, and the log is another one.
pub(super) async fn sn5_a_log_that_begins_another_life_takes_a_groups_place_and_it_says_so(engine: Engine) {
    let server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let ids = [OnLost::Stop, OnLost::FromOldest, OnLost::Tail].map(|on_lost| {
        (group("acme", &format!("{on_lost:?}")), GroupChange { on_lost: Some(on_lost), ..THREE_TRIES })
    });
    publish(&log, &many(4, 1)).await;
    for (id, change) in &ids {
        groups.ensure(id, GroupStart::Oldest, *change).await.unwrap();
        // Whether a group had everything of the former life or not: it cannot know what else there was.
        let taken = groups.read(id, read_of("one", 4)).await.unwrap().entries;
        acknowledge(&groups, id, &taken[..if *id == ids[1].0 { 4 } else { 1 }]).await;
    }
    server.command(&["DEL", "{millrace}:meta"]);
    let epoch = log.epoch();
    until("another life has begun", || log.epoch() != epoch).await;
    for (id, _) in &ids {
        groups.status(id).await.unwrap();
    }
    publish(&log, &["z1".to_owned()]).await;
    let error = groups.read(&ids[0].0, read_of("one", 4)).await.unwrap_err();
    assert!(matches!(error, GroupError::PositionLost { events: 3, .. }), "{error:?}");
    for (id, lost) in [(&ids[1].0, 1), (&ids[2].0, 3)] {
        let read = groups.read(id, waiting("one", 4)).await.unwrap();
        assert_eq!((labels(&read.entries), read.lost_events), (vec!["z1".to_owned()], lost), "{id}");
    }
    groups.seek(&ids[0].0, GroupStart::Oldest).await.unwrap();
    assert_eq!(labels(&groups.read(&ids[0].0, read_of("one", 4)).await.unwrap().entries), ["z1"]);
}

#[tokio::test]
async fn a_group_whose_parts_somebody_removed_delivers_again_what_is_not_known_to_be_done() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let id = group("acme", "billing");
    publish(&log, &many(4, 1)).await;
    for part in ["entries", "unfinished", "queue", "held", "ready", "due"] {
        groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
        let taken = groups.read(&id, read_of("one", 3)).await.unwrap().entries;
        acknowledge(&groups, &id, &taken[..1]).await;
        assert_eq!(
            server.number(&["DEL", &format!("{{millrace}}:group:acme:events:billing/{part}")]),
            1,
            "{part}"
        );
        let again = groups.read(&id, waiting("two", 10)).await.unwrap().entries;
        assert_eq!(labels(&again), ["b1", "c1", "d1"], "{part}");
        let settled = acknowledge(&groups, &id, &taken[1..2]).await;
        assert_eq!(settled, [Settled::Refused(Refusal::Unknown)], "{part}");
        groups.remove(&id).await.unwrap();
    }
    let left: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*group*"])).unwrap();
    assert_eq!(left, Vec::<String>::new(), "a group that was removed leaves nothing");
}

#[tokio::test]
async fn every_bound_of_a_shared_group_says_which_it_is() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let limits = GroupLimits {
        groups_max: 2,
        tenant_groups_max: 3,
        consumers_max: 2,
        in_flight_max: 3,
        consumer_in_flight_max: 2,
        window_events_max: 4,
        dead_letters_max: 1,
        ..GroupLimits::default()
    };
    let groups = RedisGroups::new(link(&server), &log, as_seam(&log), limits);
    let id = group("acme", "billing");
    let once = GroupChange { attempts_max: Some(1), ..THREE_TRIES };
    for name in ["billing", "other"] {
        groups.ensure(&group("acme", name), GroupStart::Oldest, once).await.unwrap();
    }
    let bound = |error: GroupError| match error {
        GroupError::Limit { limit, asked, max, .. } => (limit, asked, max),
        other => panic!("{other:?}"),
    };
    let error = groups.ensure(&group("acme", "third"), GroupStart::Oldest, once).await.unwrap_err();
    assert_eq!(bound(error), ("groups_max", 3, 2));
    let on = |stream: &str| GroupId { stream: stream.into(), ..group("acme", "elsewhere") };
    groups.ensure(&on("orders"), GroupStart::Oldest, once).await.unwrap();
    let error = groups.ensure(&on("returns"), GroupStart::Oldest, once).await.unwrap_err();
    assert_eq!(bound(error), ("tenant_groups_max", 4, 3));
    groups.ensure(&group("rival", "third"), GroupStart::Oldest, once).await.unwrap();
    publish(&log, &many(6, 1)).await;
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(labels(&taken), ["a1", "b1"], "as many as one consumer may have");
    let error = groups.read(&id, read_of("one", 10)).await.unwrap_err();
    assert_eq!(bound(error), ("group_consumer_in_flight_max", 2, 2));
    assert_eq!(labels(&groups.read(&id, read_of("two", 10)).await.unwrap().entries), ["c1"]);
    let error = groups.read(&id, read_of("two", 10)).await.unwrap_err();
    assert_eq!(bound(error), ("group_in_flight_max", 3, 3));
    let error = groups.read(&id, read_of("three", 10)).await.unwrap_err();
    assert_eq!(bound(error), ("group_consumers_max", 3, 2));
    assert_eq!(server.number(&["HLEN", "{millrace}:group:acme:events:billing/entries"]), 4, "the window");
    let nack = |n: usize| Settle::Nack { receipt: taken[n].receipt, delay_ms: None, reason: "no".into() };
    let settled = groups.settle(&id, vec![nack(0), nack(1)]).await.unwrap();
    assert!(matches!(settled[..], [Settled::DeadLetter, Settled::Retry(_)]), "{settled:?}");
    let taken = groups.read(&id, read_of("one", 10)).await.unwrap().entries;
    assert_eq!(labels(&taken), ["d1", "e1"], "what is done makes room");
}

#[tokio::test]
async fn c18_an_acknowledgement_is_answered_when_a_replica_has_it() {
    let server = RedisServer::durable(Engine::Redis);
    let replica = server.replica(Keeps::Nothing);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, THREE_TRIES).await.unwrap();
    publish(&log, &many(2, 1)).await;
    let taken = groups.read(&id, read_of("one", 2)).await.unwrap().entries;
    replica.pause();
    let error = groups.settle(&id, vec![Settle::Ack(taken[0].receipt)]).await.unwrap_err();
    assert!(
        matches!(error, GroupError::Backend(BackendError::Remote { fault: RemoteFault::NotReplicated, .. })),
        "{error:?}"
    );
    replica.resume();
    let settled = acknowledge(&groups, &id, &taken).await;
    assert_eq!(settled, [Settled::Already, Settled::Acknowledged]);
    assert_eq!(replica.number(&["ZCARD", "{millrace}:group:acme:events:billing/unfinished"]), 0);
}

#[tokio::test]
async fn sn2_a_killed_server_that_syncs_every_second_keeps_what_was_acknowledged_and_what_is_leased() {
    let mut server = RedisServer::start(Engine::Valkey, Keeps::EverySecond, &[]);
    let log = open(options(&server)).await;
    let groups = groups(&server, &log);
    let id = group("acme", "billing");
    groups.ensure(&id, GroupStart::Oldest, patient(60_000)).await.unwrap();
    publish(&log, &many(3, 1)).await;
    let taken = groups.read(&id, read_of("one", 2)).await.unwrap().entries;
    acknowledge(&groups, &id, &taken[..1]).await;
    server.restart();
    let status = groups.status(&id).await.unwrap();
    assert_eq!((status.lag_events, status.in_flight), (2, 1));
    assert_eq!(labels(&groups.read(&id, waiting("two", 5)).await.unwrap().entries), ["c1"]);
    assert_eq!(acknowledge(&groups, &id, &taken).await, [Settled::Already, Settled::Acknowledged]);
}
