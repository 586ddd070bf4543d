//! From an append to whoever follows: over one WebSocket for each beside XADD and XREAD BLOCK, and in one process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use millrace::backends::memory::MemoryChannels;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::channels::{Actor, ChannelId, ChannelStore, Notice, Party, Router, Subscription};
use millrace::clock::SystemClock;
use millrace_tests::bench::{Better, ROUNDS, Suite, percentile};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use tokio::task::JoinSet;

use super::ends::{Append, Follow, Form, RedisEnd, SocketEnd, Until, flood, payload};
use super::{EXECUTOR, SUBMITTER, Server, new_process, ratios, record, unbound};

const ENTRIES: u64 = 200_000;
const DURABLE_ENTRIES: u64 = 50_000;
/// Entries under way at a time, on either side.
const IN_FLIGHT: u64 = 256;
/// Entries of which each is alone under way.
const SLOW_ENTRIES: u64 = 1_000;
const SLOW_EVERY: Duration = Duration::from_millis(2);
const FOLLOW_ENTRIES: usize = 256;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The values of a way from end to end, round by round.
#[derive(Debug, Default)]
struct Way {
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Way {
    fn push(&mut self, what: &str, rate: f64, micros: &[f64]) -> Result<()> {
        let at = |percent| percentile(micros, percent).context("entries came");
        let (p50, p99) = (at(50)?, at(99)?);
        eprintln!("    {what}: {rate:.0} entries/s, p50 {p50:.0} µs, p99 {p99:.0} µs");
        self.rate.push(rate);
        self.p50.push(p50);
        self.p99.push(p99);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Found {
    redis: Way,
    memory: Way,
    durable: Way,
    /// In one process, over a store in memory.
    inside: Way,
    /// Rates over WebSockets with JSON.
    json: Vec<f64>,
    /// Medians in one process, over a durable store.
    inside_durable: Vec<f64>,
}

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let mut found = Found::default();
    for round in 0..ROUNDS {
        eprintln!("  from an append to a follower, round {}", round + 1);
        let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &[]);
        let ends = |stream| anyhow::Ok((RedisEnd::of(&server, stream)?, RedisEnd::of(&server, stream)?));
        found.redis.push("Redis", through(ends("quick")?, ENTRIES)?, &latency(ends("slow")?)?)?;
        drop(server);
        let server = Server::unbound("memory")?;
        let rate = through(sockets(&server, Form::Binary)?, ENTRIES)?;
        found.memory.push("memory", rate, &latency(sockets(&server, Form::Binary)?)?)?;
        found.json.push(through(sockets(&server, Form::Json)?, ENTRIES)?);
        drop(server);
        let server = Server::unbound("durable")?;
        let rate = through(sockets(&server, Form::Binary)?, DURABLE_ENTRIES)?;
        found.durable.push("durable", rate, &latency(sockets(&server, Form::Binary)?)?)?;
        drop(server);
        let runtime = crate::runtime()?;
        runtime.block_on(async {
            let store = MemoryChannels::new(unbound(), Arc::new(SystemClock));
            let rate = inside_through(&store, ENTRIES).await?;
            found.inside.push("in one process, memory", rate, &inside_latency(&store).await?)
        })?;
        found.inside_durable.push(runtime.block_on(async {
            let dir = tempfile::tempdir()?;
            let store =
                SqliteStore::open(SqliteOptions { channels: unbound(), ..SqliteOptions::new(dir.path()) })?;
            let micros = inside_latency(&store).await?;
            store.close().await;
            percentile(&micros, 50).context("entries came")
        })?);
    }
    tell(suite, found)
}

fn tell(suite: &mut Suite, found: Found) -> Result<()> {
    let Found { redis, memory, durable, inside, json, inside_durable } = found;
    let (higher, lower) = (Better::Higher, Better::Lower);
    let of_redis = [
        ratios(&memory.rate, &redis.rate),
        ratios(&memory.p50, &redis.p50),
        ratios(&memory.p99, &redis.p99),
        ratios(&durable.rate, &redis.rate),
        ratios(&json, &redis.rate),
    ];
    let [rates, p50s, p99s, durable_rates, json_rates] = of_redis;
    let rows = vec![
        (
            "XADD to XREAD BLOCK without AOF, a connection each, 256 in flight",
            "entries/s",
            None,
            higher,
            redis.rate,
        ),
        (
            "append to push over a WebSocket each, 256 in flight, memory store",
            "entries/s",
            None,
            higher,
            memory.rate,
        ),
        ("of Redis", "x", Some(1.0), higher, rates),
        ("append to push as JSON, memory store, of Redis", "x", None, higher, json_rates),
        ("append to push, durable store", "entries/s", None, higher, durable.rate),
        ("append to push, durable store, of Redis without AOF", "x", None, higher, durable_rates),
        ("XADD to XREAD BLOCK, one at a time, median", "µs", None, lower, redis.p50),
        ("append to push, one at a time, memory store, median", "µs", None, lower, memory.p50),
        ("median, of that of Redis", "x", Some(1.0), lower, p50s),
        ("XADD to XREAD BLOCK, one at a time, p99", "µs", None, lower, redis.p99),
        ("append to push, one at a time, memory store, p99", "µs", None, lower, memory.p99),
        ("p99, of that of Redis", "x", Some(1.0), lower, p99s),
        ("append to push, one at a time, durable store, median", "µs", None, lower, durable.p50),
        ("append to push, one at a time, durable store, p99", "µs", None, lower, durable.p99),
        (
            "append to follower in one process, one by one, memory store",
            "entries/s",
            None,
            higher,
            inside.rate,
        ),
        ("append to follower in one process, memory store, median", "µs", None, lower, inside.p50),
        ("append to follower in one process, memory store, p99", "µs", None, lower, inside.p99),
        ("append to follower in one process, durable store, median", "µs", None, lower, inside_durable),
    ];
    record(suite, rows)
}

fn sockets(server: &Server, form: Form) -> Result<(SocketEnd, SocketEnd)> {
    let process = server.process()?;
    Ok((SocketEnd::append(server, &process, form)?, SocketEnd::follow(server, &process, form)?))
}

/// Entries a second until the follower has the last of so many.
fn through<A: Append, F: Follow>((mut append, mut follow): (A, F), entries: u64) -> Result<f64> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<f64> {
            let mut came = 0;
            while came < entries {
                came += follow.take(&mut |_| {})?;
            }
            ensure!(came == entries, "{came} entries came of {entries}");
            Ok(entries as f64 / begin.elapsed().as_secs_f64())
        });
        flood(&mut append, IN_FLIGHT, Until::Entries(entries))?;
        reader.join().expect("a reader does not panic")
    })
}

/// Microseconds from before each append, of which the last was acknowledged long ago, until the follower has it.
fn latency<A: Append, F: Follow>((mut append, mut follow): (A, F)) -> Result<Vec<f64>> {
    let zero = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<Vec<f64>> {
            let mut micros = Vec::new();
            while (micros.len() as u64) < SLOW_ENTRIES {
                follow.take(&mut |payload| micros.push(micros_since(zero, payload)))?;
            }
            Ok(micros)
        });
        let mut out = Vec::new();
        for number in 0..SLOW_ENTRIES {
            std::thread::sleep(next_beat(zero, number));
            out.clear();
            append.write(number, &stamped(zero), &mut out);
            append.send(&out)?;
            ensure!(append.acknowledged()? == 1, "one entry is under way");
        }
        reader.join().expect("a reader does not panic")
    })
}

fn next_beat(zero: Instant, number: u64) -> Duration {
    (SLOW_EVERY * u32::try_from(number).unwrap_or(u32::MAX)).saturating_sub(zero.elapsed())
}

/// A payload that begins with the time.
fn stamped(zero: Instant) -> Vec<u8> {
    let mut bytes = payload();
    bytes[..8].copy_from_slice(&nanos(zero).to_be_bytes());
    bytes
}

fn nanos(zero: Instant) -> u64 {
    u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn micros_since(zero: Instant, payload: &[u8]) -> f64 {
    let sent = payload.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    nanos(zero).saturating_sub(sent) as f64 / 1e3
}

/// A router with a process that nobody has used, and who follows its channel.
async fn inside<S: ChannelStore + Clone + 'static>(
    store: &S,
    number: usize,
) -> Result<(Router, ChannelId, Party, Subscription)> {
    let router = Router::new(Arc::new(store.clone()));
    let (new, id) = new_process(number)?;
    router.create_process(new).await?;
    let follower = router.subscribe(&id, &Actor::Party(Party::new(EXECUTOR)?), 0).await?;
    Ok((router, id, Party::new(SUBMITTER)?, follower))
}

async fn inside_through<S: ChannelStore + Clone + 'static>(store: &S, entries: u64) -> Result<f64> {
    let (router, id, who, mut follower) = inside(store, 0).await?;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut came = 0;
        while came < entries {
            match follower.next(FOLLOW_ENTRIES).await?.context("it has not ended")? {
                Notice::Entries(some) => came += some.len() as u64,
                Notice::Ready { .. } | Notice::Lagged { missed: 0, .. } => {}
                other => bail!("{other:?}"),
            }
        }
        anyhow::Ok(())
    });
    let payload = bytes::Bytes::from(payload());
    for sequence in 1..=entries {
        router.append(&id, &who, sequence, None, payload.clone()).await?;
    }
    finished(&mut tasks).await?;
    Ok(entries as f64 / begin.elapsed().as_secs_f64())
}

async fn inside_latency<S: ChannelStore + Clone + 'static>(store: &S) -> Result<Vec<f64>> {
    let (router, id, who, mut follower) = inside(store, 1).await?;
    let zero = Instant::now();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut micros = Vec::new();
        while (micros.len() as u64) < SLOW_ENTRIES {
            if let Notice::Entries(some) = follower.next(FOLLOW_ENTRIES).await?.context("it has not ended")? {
                let payloads = some.iter().filter_map(|entry| entry.payload.as_ref());
                micros.extend(payloads.map(|payload| micros_since(zero, payload)));
            }
        }
        anyhow::Ok(micros)
    });
    for number in 0..SLOW_ENTRIES {
        tokio::time::sleep(next_beat(zero, number)).await;
        router.append(&id, &who, number + 1, None, stamped(zero)).await?;
    }
    finished(&mut tasks).await
}

async fn finished<T: 'static>(tasks: &mut JoinSet<Result<T>>) -> Result<T> {
    let joined = tokio::time::timeout(WAIT_MAX, tasks.join_next()).await.context("it does not end")?;
    joined.context("a task is there")??
}
