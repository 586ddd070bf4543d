//! The log on Redis beside what one would write by hand, and the embedded log beside Redis.
//!
//! Servers are real ones on this machine, so rates of a whole round share its cores with them; what is compared is
//! measured in turn, in the same run.

mod lives;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::backends::redis::{RedisAck, RedisLog, RedisOptions};
use millrace::backends::sqlite::{LogPlace, SqliteOptions, SqliteStore};
use millrace::event::TenantId;
use millrace::processors::{Engine, ProcessorSettings, Runner};
use millrace::streams::{EventLog, Retention};
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::redis_server::{Engine as Server, Keeps, RedisServer};

use super::processors::{done, engine, load};
use super::{events, payload, runtime};

/// Events that are read: published one by one, as they come from many clients.
const EVENTS: u64 = 200_000;
/// Of them, what the naive loop reads: it is slow.
const NAIVE_EVENTS: u64 = 20_000;
const IN_FLIGHT: u64 = 256;
const SPAN: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
const TAILS: usize = 5_000;

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    consuming(suite)?;
    acknowledging(suite)?;
    embedded(suite)?;
    idle(suite)?;
    lives::run(suite)
}

/// Processor seconds that a server has used.
fn cpu(server: &RedisServer) -> Result<f64> {
    let said = server.info("cpu");
    let value = |name: &str| -> Result<f64> {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.context("INFO has it")?.trim().parse()?)
    };
    Ok(value("used_cpu_user")? + value("used_cpu_sys")?)
}

async fn open(server: &RedisServer, ack: RedisAck) -> Result<RedisLog> {
    let log = RedisLog::open(RedisOptions {
        ack,
        retention: Retention::default(),
        ..RedisOptions::new(server.url().parse()?)
    });
    log.ready(Duration::from_secs(20)).await?;
    Ok(log)
}

/// Appends batches of so many events for a while, or so many in all; answers the rate.
async fn append<L: EventLog + Clone + 'static>(
    log: &L,
    in_flight: u64,
    batch: u64,
    until: Until,
) -> Result<f64> {
    let (done, next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begin = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let (log, done, next) = (log.clone(), Arc::clone(&done), Arc::clone(&next));
        writers.spawn(async move {
            loop {
                let first = next.fetch_add(batch, Ordering::Relaxed);
                let over = match until {
                    Until::Span(span) => begin.elapsed() >= span,
                    Until::Events(events) => first >= events,
                };
                if over {
                    return anyhow::Ok(());
                }
                log.append(events(first, batch)).await?;
                done.fetch_add(batch, Ordering::Relaxed);
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

#[derive(Clone, Copy)]
enum Until {
    Span(Duration),
    Events(u64),
}

fn consuming(suite: &mut Suite) -> Result<()> {
    let server = RedisServer::start(Server::Redis, Keeps::Nothing, &[]);
    let runtime = runtime()?;
    runtime.block_on(async {
        let log = open(&server, RedisAck::Memory).await?;
        append(&log, IN_FLIGHT, 1, Until::Events(EVENTS)).await
    })?;
    by_hand(&server, EVENTS)?;
    let (mut ours, mut naive, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(runtime.block_on(catch_up(&server))?);
        naive.push(read_naively(&server, round)?);
        raw.push(read_raw(&server)?);
    }
    let rate = |name| Figure { name, unit: "events/Redis CPU-s", floor: None, better: Better::Higher };
    let ours = suite.record(rate("a processor on Redis: consume and checkpoint"), &ours)?;
    let naive = suite.record(rate("XREADGROUP COUNT 1 and XACK, one at a time"), &naive)?;
    let raw = suite.record(rate("XREAD COUNT 100, pipelined"), &raw)?;
    let ratio = |name, floor| Figure { name, unit: "x", floor: Some(floor), better: Better::Higher };
    suite.record(ratio("of the naive loop", 10.0), &[ours / naive])?;
    suite.record(ratio("of raw reads", 0.6), &[ours / raw])?;
    Ok(())
}

/// A processor (WASM) from the beginning of the log to its last commit.
async fn catch_up(server: &RedisServer) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let store =
        SqliteStore::open(SqliteOptions { log: LogPlace::Elsewhere, ..SqliteOptions::new(dir.path()) })?;
    let before = cpu(server)?;
    let log = open(server, RedisAck::Memory).await?;
    let last = log.bounds().newest;
    ensure!(last.0 == EVENTS, "{last} events were published");
    let engine = Engine { log: Arc::new(log), ..engine(&store)? };
    let runner = Runner::start(&engine, load("tally")?, ProcessorSettings::default());
    done(&runner, last).await?;
    let used = cpu(server)? - before;
    runner.stop(Duration::from_secs(10)).await;
    store.close().await;
    Ok(EVENTS as f64 / used)
}

/// A stream as one writes it by hand: an entry an event.
fn by_hand(server: &RedisServer, count: u64) -> Result<()> {
    let mut connection = redis::Client::open(server.url())?.get_connection()?;
    let payload = payload();
    for first in (0..count).step_by(1_000) {
        let mut pipe = redis::pipe();
        for number in first..(first + 1_000).min(count) {
            xadd(pipe.cmd("XADD"), "by-hand", number, &payload).ignore();
        }
        pipe.query::<()>(&mut connection)?;
    }
    Ok(())
}

/// The same event as the log's, field by field.
fn xadd<'a>(
    command: &'a mut redis::Pipeline,
    stream: &str,
    number: u64,
    payload: &str,
) -> &'a mut redis::Pipeline {
    command
        .arg(stream)
        .arg("*")
        .arg("id")
        .arg(format!("{number:016x}"))
        .arg("aggregate")
        .arg("thing")
        .arg("agg_id")
        .arg(format!("thing-{}", number % 1_000))
        .arg("type")
        .arg("thing.changed")
        .arg("version")
        .arg(number + 1)
        .arg("payload")
        .arg(payload)
}

/// What XREAD answers: streams with their entries, each an id and its fields.
type Streams = Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>;

fn read_naively(server: &RedisServer, round: usize) -> Result<f64> {
    let mut connection = redis::Client::open(server.url())?.get_connection()?;
    let group = format!("group-{round}");
    redis::cmd("XGROUP").arg("CREATE").arg("by-hand").arg(&group).arg(0).query::<()>(&mut connection)?;
    let before = cpu(server)?;
    for _ in 0..NAIVE_EVENTS {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&group).arg("one").arg("COUNT").arg(1).arg("STREAMS").arg("by-hand").arg(">");
        let found: Streams = read.query(&mut connection)?;
        let id = &found[0].1[0].0;
        let acknowledged: u64 =
            redis::cmd("XACK").arg("by-hand").arg(&group).arg(id).query(&mut connection)?;
        ensure!(acknowledged == 1, "{id} is not acknowledged");
    }
    Ok(NAIVE_EVENTS as f64 / (cpu(server)? - before))
}

/// Ten reads under way at a time: where each begins is known beforehand.
fn read_raw(server: &RedisServer) -> Result<f64> {
    let mut connection = redis::Client::open(server.url())?.get_connection()?;
    let ids = server.entry_ids("by-hand");
    let starts: Vec<&str> = ids.iter().skip(99).step_by(100).map(String::as_str).collect();
    let before = cpu(server)?;
    let mut read = 0;
    for starts in starts.chunks(10) {
        let mut pipe = redis::pipe();
        for start in starts {
            pipe.cmd("XREAD").arg("COUNT").arg(100).arg("STREAMS").arg("by-hand").arg(*start);
        }
        let found: Vec<Option<Streams>> = pipe.query(&mut connection)?;
        read += found.iter().flatten().map(|found| found[0].1.len() as u64).sum::<u64>();
    }
    ensure!(read + 100 == ids.len() as u64, "{read} of {} were read", ids.len());
    Ok(read as f64 / (cpu(server)? - before))
}

/// Durable by a replica, and by the append-only file, beside pipelines that nobody waits for to be durable.
fn acknowledging(suite: &mut Suite) -> Result<()> {
    const BATCH: u64 = 100;
    let rate = |name| Figure { name, unit: "events/s", floor: None, better: Better::Higher };
    let ratio = |name| Figure { name, unit: "x", floor: Some(0.6), better: Better::Higher };
    let runtime = runtime()?;
    let primary = RedisServer::start(Server::Redis, Keeps::Nothing, &[]);
    let _replica = primary.replica(Keeps::Nothing);
    let synced = RedisServer::durable(Server::Redis);
    for (server, ack, names) in [
        (
            &primary,
            RedisAck::Replicated { replicas: 1 },
            [
                "XADD in pipelines of 100, a replica is there",
                "durable appends of 100: one replica",
                "of the pipelines, with a replica",
            ],
        ),
        (
            &synced,
            RedisAck::Synced,
            [
                "XADD in pipelines of 100, appendfsync always",
                "durable appends of 100: synced",
                "of the pipelines, synced",
            ],
        ),
    ] {
        let (mut plain, mut durable) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            server.command(&["FLUSHALL"]);
            plain.push(pipelined(server, 8, BATCH)?);
            server.command(&["FLUSHALL"]);
            durable.push(runtime.block_on(async {
                let log = open(server, ack).await?;
                append(&log, 8, BATCH, Until::Span(SPAN)).await
            })?);
        }
        let ratios: Vec<f64> = durable.iter().zip(&plain).map(|(durable, plain)| durable / plain).collect();
        suite.record(rate(names[0]), &plain)?;
        suite.record(rate(names[1]), &durable)?;
        suite.record(ratio(names[2]), &ratios)?;
    }
    Ok(())
}

/// XADD, so many in a pipeline, from so many connections.
fn pipelined(server: &RedisServer, connections: u64, batch: u64) -> Result<f64> {
    let begin = Instant::now();
    let done = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..connections)
            .map(|writer| {
                scope.spawn(move || -> Result<u64> {
                    let mut connection = redis::Client::open(server.url())?.get_connection()?;
                    let payload = payload();
                    let mut done = 0;
                    while begin.elapsed() < SPAN {
                        let mut pipe = redis::pipe();
                        for number in done..done + batch {
                            xadd(pipe.cmd("XADD"), "plain", number * connections + writer, &payload).ignore();
                        }
                        pipe.query::<()>(&mut connection)?;
                        done += batch;
                    }
                    Ok(done)
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).sum::<Result<u64>>()
    })?;
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

/// Single durable events: the embedded log beside Redis with `appendfsync always`.
fn embedded(suite: &mut Suite) -> Result<()> {
    const WRITERS: u64 = 64;
    let runtime = runtime()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir()?;
        ours.push(runtime.block_on(async {
            let store = SqliteStore::open(SqliteOptions::new(dir.path()))?;
            let rate = append(&store, WRITERS, 1, Until::Span(SPAN)).await?;
            store.close().await;
            anyhow::Ok(rate)
        })?);
        let server = RedisServer::durable(Server::Redis);
        theirs.push(pipelined(&server, WRITERS, 1)?);
    }
    let rate = |name| Figure { name, unit: "events/s", floor: None, better: Better::Higher };
    let ours = suite.record(rate("embedded: durable single appends, 64 in flight"), &ours)?;
    let theirs = suite.record(rate("Redis, appendfsync always: one XADD at a time, 64 clients"), &theirs)?;
    let figure = Figure { name: "of it", unit: "x", floor: Some(2.0), better: Better::Higher };
    suite.record(figure, &[ours / theirs])?;
    Ok(())
}

fn idle(suite: &mut Suite) -> Result<()> {
    let server = RedisServer::durable(Server::Redis);
    let runtime = runtime()?;
    let clients = runtime.block_on(async {
        let log = open(&server, RedisAck::Auto).await?;
        let names = (0..TAILS).map(|number| TenantId::new(&format!("tenant-{number}")));
        let tenants = names.collect::<Result<Vec<_>, _>>()?;
        let tails: Vec<_> = tenants.iter().map(|tenant| log.tail().follow(tenant)).collect();
        ensure!(tails.len() == TAILS, "they are there");
        anyhow::Ok(server.clients() as f64)
    })?;
    let figure = Figure {
        name: "connections that 5,000 idle tails hold",
        unit: "connections",
        floor: Some(8.0),
        better: Better::Lower,
    };
    suite.record(figure, &[clients])?;
    Ok(())
}
