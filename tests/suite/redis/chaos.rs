//! What happens to servers: kills, restarts, failovers, and data that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace::backends::redis::{
    Durability, RedisAck, RedisGroups, RedisLink, RedisLog, RedisOptions, RedisPresence,
};
use millrace::event::{Epoch, Position, TenantId};
use millrace::limits::{REDIS_CHECK_EVERY, REDIS_FIND_WAIT_MAX};
use millrace::presence::{Join, Joined, Presence, PresenceLimits};
use millrace::streams::groups::{GroupChange, GroupLimits, GroupStart, Groups, Settle, Settled};
use millrace::streams::{EventLog, Retention, StreamError};
use millrace_tests::conformance::effects::tenant;
use millrace_tests::conformance::event_log::{ALL, append_one, batch};
use millrace_tests::conformance::groups::{group, read_of};
use millrace_tests::conformance::presence::{name, room};
use millrace_tests::cutter::Cutter;
use millrace_tests::failover::{Failovers, Writers};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use millrace_tests::until;

use super::log::all;
use super::{SOON, as_seam, open, options};

// A log that is another one is noticed by the next look at it, and followed when it is looked for next: within a second.
// `cargo xtask bench streams` measures it.
const _: () = assert!(REDIS_CHECK_EVERY.as_millis() * 2 + REDIS_FIND_WAIT_MAX.as_millis() <= 1_000);

/// Waits until so many more events are acknowledged: the log is in use.
async fn progress(log: &RedisLog, events: u64) {
    let from = log.bounds().newest.0;
    until("events are acknowledged", || log.bounds().newest.0 >= from + events).await;
}

/// Every acknowledged event is in the log once, at its place; and the tail has shown the same.
async fn nothing_lost_nothing_doubled(log: &RedisLog, acknowledged: &BTreeMap<String, Position>) {
    let found = all(log, &tenant("acme")).await;
    let places: BTreeMap<&String, u64> = found.iter().map(|(position, id)| (id, *position)).collect();
    assert_eq!(places.len(), found.len(), "an event is doubled");
    let lost: Vec<_> = acknowledged.iter().filter(|(id, at)| places.get(id) != Some(&at.0)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged events are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    let positions: Vec<u64> = found.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, (1..=log.bounds().newest.0).collect::<Vec<_>>(), "positions have no holes");
    let chunks =
        log.tail().read(&tenant("acme"), Position::START, usize::MAX).expect("the tail reaches back");
    let shown: Vec<u64> =
        chunks.iter().flat_map(|chunk| chunk.iter().map(|event| event.position.0)).collect();
    assert_eq!(shown, positions, "readers were shown the same");
}

pub(super) async fn sn5_a_killed_server_that_syncs_keeps_what_was_acknowledged(engine: Engine) {
    let mut server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    let epoch = log.epoch();
    let writers = Writers::start(&log, 8, "w", 1);
    for _ in 0..3 {
        progress(&log, 100).await;
        server.restart();
    }
    progress(&log, 100).await;
    let acknowledged = writers.end().await;
    nothing_lost_nothing_doubled(&log, &acknowledged).await;
    assert_eq!(log.epoch(), epoch, "it is the same log");
}

pub(super) async fn sn5_connections_that_are_killed_lose_nothing_and_double_nothing(engine: Engine) {
    let server = RedisServer::durable(engine);
    let log = open(options(&server)).await;
    let other = open(options(&server)).await;
    let writers = Writers::start(&log, 8, "w", 1);
    for _ in 0..10 {
        progress(&log, 40).await;
        server.kill_clients();
    }
    progress(&log, 40).await;
    let acknowledged = writers.end().await;
    nothing_lost_nothing_doubled(&log, &acknowledged).await;
    until("the other host has it all", || other.bounds().newest == log.bounds().newest).await;
    nothing_lost_nothing_doubled(&other, &acknowledged).await;
}

#[tokio::test]
async fn sn12_an_append_whose_answer_is_cut_off_is_carried_out_once() {
    let server = RedisServer::durable(Engine::Redis);
    let cutter = Cutter::before(server.port()).await;
    let address = format!("redis://{}", cutter.addr);
    let log = open(RedisOptions::new(address.parse().unwrap())).await;
    let acme = tenant("acme");
    for n in 0..5 {
        cutter.cut_after(&format!("cut-{n}"));
        let events = [(format!("cut-{n}"), "{}"), (format!("too-{n}"), "[1]")];
        let events = events.each_ref().map(|(id, payload)| (id.as_str(), *payload));
        let appended = log.append(batch(&acme, &events)).await.unwrap();
        assert_eq!(appended[1].position, Position(2 * n + 2));
        assert_eq!(cutter.cuts() as u64, n + 1, "its answer was cut off");
    }
    let found: Vec<u64> = all(&log, &acme).await.into_iter().map(|(position, _)| position).collect();
    assert_eq!(found, (1..=10).collect::<Vec<_>>());
}

/// A new life of the log: who stands anywhere before it is told, wherever it reads from, and the log goes on.
pub(super) async fn another_life(log: &RedisLog, former: &Epoch, at: Position) {
    until("the log is another one", || log.epoch() != *former).await;
    let acme = tenant("acme");
    let bounds = log.bounds();
    assert!(bounds.trimmed > at, "{bounds:?}");
    for place in [Position::START, Position(at.0 - 1), at] {
        match log.read(&acme, place, ALL).await {
            Err(StreamError::PositionLost { asked, trimmed }) => {
                assert_eq!((asked, trimmed), (place, bounds.trimmed))
            }
            other => panic!("{place}: {other:?}"),
        }
        assert!(log.tail().read(&acme, place, 10).is_none(), "the tail sends {place} to the log");
    }
    log.ready(SOON).await.unwrap();
    let appended = append_one(&as_seam(log), &acme, "first of the new life").await;
    assert!(appended.position > bounds.trimmed && !appended.repeated);
    assert_eq!(all(log, &acme).await.len(), 1);
}

/// A log with ten events, and a reader that has seen them all and waits for more.
pub(super) async fn with_ten(log: &RedisLog) -> (Epoch, TenantId) {
    let acme = tenant("acme");
    for n in 0..10 {
        append_one(&as_seam(log), &acme, &format!("id-{n}")).await;
    }
    (log.epoch(), acme)
}

#[tokio::test]
async fn sn4_sn7_an_emptied_server_begins_a_new_life_of_the_log() {
    let server = RedisServer::durable(Engine::Redis);
    let (log, other) = (open(options(&server)).await, open(options(&server)).await);
    let (epoch, acme) = with_ten(&log).await;
    until("the other host follows", || other.bounds().newest == Position(10)).await;
    let mut waiting = log.tail().follow(&acme);
    server.command(&["FLUSHALL"]);
    // Nothing is appended, and still who waits is woken.
    assert!(waiting.wait_after(Position(10)).await);
    another_life(&log, &epoch, Position(10)).await;
    until("both hosts agree", || other.epoch() == log.epoch() && other.bounds() == log.bounds()).await;
    assert_eq!(all(&other, &acme).await, all(&log, &acme).await);
    // An id of the former life is free.
    assert!(!append_one(&as_seam(&other), &acme, "id-3").await.repeated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn7_writers_go_on_in_the_new_life() {
    let server = RedisServer::durable(Engine::Valkey);
    let log = open(options(&server)).await;
    let epoch = log.epoch();
    let writers = Writers::start(&log, 4, "w", 1);
    progress(&log, 50).await;
    server.command(&["FLUSHALL"]);
    until("the log is another one", || log.epoch() != epoch).await;
    progress(&log, 50).await;
    let acknowledged = writers.end().await;
    let held: BTreeSet<Position> =
        all(&log, &tenant("acme")).await.into_iter().map(|(position, _)| Position(position)).collect();
    let base = log.bounds().trimmed;
    let new: BTreeSet<Position> =
        acknowledged.values().copied().filter(|position| *position > base).collect();
    assert!(new.len() >= 50 && new.is_subset(&held), "what was acknowledged in the new life is there");
}

#[tokio::test]
async fn sn4_sn7_a_restart_without_files_begins_a_new_life() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
    let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
    let (epoch, _) = with_ten(&log).await;
    server.restart();
    another_life(&log, &epoch, Position(10)).await;
}

#[tokio::test]
async fn sn4_sn7_an_older_snapshot_begins_a_new_life() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
    for id in ["old-1", "old-2"] {
        append_one(&as_seam(&log), &tenant("acme"), id).await;
    }
    server.command(&["SAVE"]);
    let (epoch, _) = with_ten(&log).await;
    server.restart();
    another_life(&log, &epoch, Position(12)).await;
    assert!(log.bounds().trimmed.0 >= 1 << 32);
}

#[tokio::test]
async fn sn7_a_snapshot_that_others_have_written_on_is_noticed_by_its_events() {
    let mut server = RedisServer::start(Engine::Redis, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let log = open(RedisOptions { ack: RedisAck::Memory, ..options(&server) }).await;
    append_one(&as_seam(&log), &tenant("acme"), "old").await;
    server.command(&["SAVE"]);
    let (epoch, _) = with_ten(&log).await;
    server.kill();
    // Another host writes on, further than this one knows, before this one is back: positions alone tell nothing.
    let elsewhere =
        RedisServer::with_files_of(&server, Engine::Redis, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
    let other = open(RedisOptions { ack: RedisAck::Memory, ..options(&elsewhere) }).await;
    assert_eq!((other.epoch(), other.bounds().newest), (epoch.clone(), Position(1)));
    for n in 0..30 {
        append_one(&as_seam(&other), &tenant("acme"), &format!("other-{n}")).await;
    }
    elsewhere.command(&["SAVE"]);
    server.take_files_of(&elsewhere);
    server.start_again();
    another_life(&log, &epoch, Position(11)).await;
}

#[tokio::test]
async fn sn4_a_stream_that_somebody_else_shortens_is_lost_for_who_is_behind() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (epoch, acme) = with_ten(&log).await;
    server.command(&["XTRIM", "{millrace}:events", "MINID", "5-0"]);
    until("it is noticed", || log.bounds().trimmed == Position(4)).await;
    assert!(matches!(log.read(&acme, Position(3), ALL).await, Err(StreamError::PositionLost { .. })));
    assert_eq!((all(&log, &acme).await.len(), log.epoch()), (6, epoch));
}

#[tokio::test]
async fn sn4_an_entry_that_somebody_else_deletes_is_not_stepped_over() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (_, acme) = with_ten(&log).await;
    server.command(&["XDEL", "{millrace}:events", "5-1"]);
    match log.read(&acme, Position::START, ALL).await {
        Err(StreamError::PositionLost { asked, trimmed }) => {
            assert_eq!((asked, trimmed), (Position(0), Position(5)))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(log.read(&acme, Position(5), ALL).await.unwrap().events.len(), 5);
}

#[tokio::test]
async fn an_entry_that_the_log_did_not_write_begins_a_new_life_above_it() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let (epoch, _) = with_ten(&log).await;
    // With the time as its id, which is far above all positions.
    server.command(&["XADD", "{millrace}:events", "*", "field", "value"]);
    another_life(&log, &epoch, Position(10)).await;
}

#[tokio::test]
async fn an_id_that_leaves_no_room_is_said_instead_of_stepping_back() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    server.command(&["XADD", "{millrace}:events", "18446744073709551615-1", "field", "value"]);
    let said =
        || log.status().problem.is_some_and(|problem| problem.to_string().contains("beyond all positions"));
    until("it is said", said).await;
}

#[tokio::test]
async fn a_clock_that_goes_back_changes_no_order_and_no_retention() {
    let server = RedisServer::durable(Engine::Redis);
    let log = open(options(&server)).await;
    let acme = tenant("acme");
    append_one(&as_seam(&log), &acme, "a").await;
    // As if the server's clock had been a thousand years ahead a moment ago.
    let ahead = "33000000000000000";
    server.command(&["HSET", "{millrace}:meta", "time", ahead]);
    for id in ["b", "c"] {
        append_one(&as_seam(&log), &acme, id).await;
    }
    for after in [1, 2] {
        let at = log.appended_at(&acme, Position(after)).await.unwrap().expect("it has a time");
        assert_eq!(at.0.to_string(), ahead);
    }
    let none = Retention { age: Some(Duration::ZERO), events: None };
    assert_eq!(log.trim(none).await.unwrap(), 1, "what is from the future is not old");
}

/// Shorter than what a sentinel takes for the end of a replica.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn5_five_failovers_lose_nothing_that_a_replica_was_waited_for() {
    let mut servers = Failovers::new(RedisAck::Auto, PAUSE).await;
    for round in 0..5 {
        let found = servers.round().await;
        assert_eq!((found.lost, found.doubled), (0, 0), "round {round}: {found:?}");
        assert!(found.acknowledged >= 40, "{found:?}");
        assert_eq!(servers.log().status().durability, Some(Durability::Replicated { replicas: 1 }));
    }
}

/// Consumers and rooms use the log's server over connections of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn2_sn5_consumers_and_rooms_outlive_failovers() {
    let mut servers = Failovers::new(RedisAck::Auto, PAUSE).await;
    let link = || RedisLink::new(servers.url().parse().unwrap(), None, "millrace");
    let groups = RedisGroups::new(link(), servers.log(), as_seam(servers.log()), GroupLimits::default());
    let id = group("acme", "billing");
    let change = GroupChange { lease_ms: Some(2_000), attempts_max: Some(1_000), ..GroupChange::default() };
    groups.ensure(&id, GroupStart::Oldest, change).await.unwrap();
    let rooms = RedisPresence::open(link(), PresenceLimits::default());
    let (room, ada) = (room("lobby"), name("ada"));
    let join = || Join { ttl: Duration::from_secs(3_600), state: None };
    rooms.join(&room, &ada, join()).await.unwrap();
    let writers = Writers::start(servers.log(), 2, "w", 100);
    let stop = Arc::new(AtomicBool::new(false));
    let mut consumers = tokio::task::JoinSet::new();
    for consumer in ["one", "two"] {
        let (groups, id, stop) = (groups.clone(), id.clone(), Arc::clone(&stop));
        consumers.spawn(async move {
            let (mut delivered, mut done) = (Vec::new(), BTreeSet::new());
            loop {
                let ended = stop.load(Ordering::SeqCst);
                // A refusal is one of a server that is away: what was leased comes again when its time is over.
                let Ok(read) = groups.read(&id, read_of(consumer, 50)).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let receipts: Vec<_> = read.entries.iter().map(|delivery| delivery.receipt).collect();
                let positions = || receipts.iter().map(|receipt| receipt.position);
                delivered.push((std::time::Instant::now(), positions().collect::<Vec<_>>()));
                if receipts.is_empty() {
                    if ended && groups.status(&id).await.is_ok_and(|status| status.lag_events == 0) {
                        return (delivered, done);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                } else if let Ok(settled) =
                    groups.settle(&id, receipts.iter().map(|&receipt| Settle::Ack(receipt)).collect()).await
                {
                    let at = std::time::Instant::now();
                    let kept =
                        |(position, settled)| (settled == Settled::Acknowledged).then_some((position, at));
                    done.extend(positions().zip(settled).filter_map(kept));
                }
            }
        });
    }
    for _ in 0..2 {
        progress(servers.log(), 50).await;
        servers.fail_over().await;
        progress(servers.log(), 50).await;
        servers.settle();
    }
    let acknowledged = writers.end().await;
    stop.store(true, Ordering::SeqCst);
    let (mut delivered, mut done) = (Vec::new(), BTreeMap::new());
    for (seen, finished) in consumers.join_all().await {
        delivered.extend(seen);
        for (position, at) in finished {
            assert!(done.insert(position, at).is_none(), "{position} was done twice");
        }
    }
    for (at, positions) in &delivered {
        for position in positions {
            let finished = done.get(position);
            assert!(
                finished.is_none_or(|finished| at < finished),
                "{position} came again after its acknowledgement"
            );
        }
    }
    let seen: BTreeSet<Position> = delivered.iter().flat_map(|(_, positions)| positions).copied().collect();
    let missed: Vec<_> = acknowledged.values().filter(|position| !seen.contains(position)).collect();
    assert!(missed.is_empty(), "{} of {} were not delivered: {missed:?}", missed.len(), acknowledged.len());
    assert!(acknowledged.len() >= 200 && done.len() >= 200, "{} {}", acknowledged.len(), done.len());
    let roster = rooms.roster(&room).await.unwrap();
    assert_eq!(roster.members.len(), 1, "a member stays for its time: {roster:?}");
    assert!(matches!(rooms.join(&room, &ada, join()).await.unwrap(), Joined::Stays));
}

/// The same run shows what the weaker mode loses: the test above can see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn5_a_failover_loses_what_was_acknowledged_from_memory() {
    let found = Failovers::new(RedisAck::Memory, PAUSE).await.round().await;
    assert!(found.lost > 0, "{found:?}");
}
