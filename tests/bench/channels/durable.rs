//! Appends that are acknowledged after a sync, 64 under way, beside Redis with `appendfsync always`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::channels::{Party, Router};
use millrace_tests::bench::{Better, ROUNDS, Suite};
use millrace_tests::channel_socket::base64;
use millrace_tests::redis_server::{Engine, RedisServer};
use tokio::task::JoinSet;

use super::ends::{Append, Form, RedisEnd, SocketEnd, Until, flood, payload};
use super::wire::Http;
use super::{CHANNEL, SUBMITTER, Server, new_process, ratios, record, side_by_side, unbound};

const IN_FLIGHT: u64 = 64;
const CLIENTS: usize = 64;
/// Entries of one request over HTTP.
const BATCH: u64 = 16;
const SPAN: Duration = Duration::from_secs(3);
/// Long enough that what came first is settled while more comes.
const LONG_SPAN: Duration = Duration::from_secs(12);

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let mut rates = [const { Vec::new() }; 6];
    for round in 0..ROUNDS {
        eprintln!("  durable appends, {IN_FLIGHT} in flight, round {}", round + 1);
        // Each server is gone when the next one is measured.
        let measured = [
            beside(|server| clients(server, 1))?,
            beside(|server| one_connection(&mut RedisEnd::of(server, "one")?))?,
            beside(|server| clients(server, BATCH))?,
            inside(SPAN)?,
            socket()?,
            http()?,
        ];
        eprintln!("    {measured:.0?} entries/s");
        for (rates, rate) in rates.iter_mut().zip(measured) {
            rates.push(rate);
        }
    }
    let sustained = inside(LONG_SPAN)?;
    let [clients, pipelined, batched, inside, socket, http] = rates;
    let higher = Better::Higher;
    // Held against the same: 64 clients, each with one under way.
    let [inside_over, http_over] = [&inside, &http].map(|rate| ratios(rate, &clients));
    // And one connection with 64 under way against another one, and against that, too.
    let [socket_over, inside_over_one, http_over_one] =
        [&socket, &inside, &http].map(|rate| ratios(rate, &pipelined));
    let http_over_batches = ratios(&http, &batched);
    let rows = vec![
        ("Redis, appendfsync always: one XADD at a time, 64 clients", "entries/s", None, higher, clients),
        ("the same over one connection, 64 in flight", "entries/s", None, higher, pipelined),
        ("the same, XADD in pipelines of 16, 64 clients", "entries/s", None, higher, batched),
        ("durable appends in one process, 64 in flight", "entries/s", None, higher, inside),
        ("the same for 12 seconds", "entries/s", None, higher, vec![sustained]),
        ("in one process, of Redis with 64 clients", "x", Some(2.0), higher, inside_over),
        ("in one process, of Redis over one connection", "x", None, higher, inside_over_one),
        ("durable appends over one WebSocket, 64 in flight", "entries/s", None, higher, socket),
        ("over a WebSocket, of Redis over one connection", "x", None, higher, socket_over),
        ("durable appends over HTTP in batches of 16, 64 in flight", "entries/s", None, higher, http),
        ("over HTTP, of Redis with 64 clients", "x", Some(1.5), higher, http_over),
        ("over HTTP, of Redis over one connection", "x", None, higher, http_over_one),
        ("over HTTP, of pipelines of 16", "x", None, higher, http_over_batches),
    ];
    record(suite, rows)
}

/// On a Redis server that syncs before it answers.
fn beside(measured: impl FnOnce(&RedisServer) -> Result<f64>) -> Result<f64> {
    measured(&RedisServer::durable(Engine::Redis))
}

/// Many clients, each with a stream of its own and so many entries in a pipeline.
fn clients(server: &RedisServer, batch: u64) -> Result<f64> {
    let begin = Instant::now();
    let done = side_by_side(CLIENTS, |number| {
        let mut end = RedisEnd::of(server, &format!("stream-{number}"))?;
        let (payload, mut out, mut done) = (payload(), Vec::new(), 0);
        while begin.elapsed() < SPAN {
            out.clear();
            for number in done..done + batch {
                end.write(number, &payload, &mut out);
            }
            end.send(&out)?;
            let mut open = batch;
            while open > 0 {
                open -= end.acknowledged()?;
            }
            done += batch;
        }
        Ok(done)
    })?;
    Ok(done.iter().sum::<u64>() as f64 / begin.elapsed().as_secs_f64())
}

fn one_connection(end: &mut dyn Append) -> Result<f64> {
    let begin = Instant::now();
    let done = flood(end, IN_FLIGHT, Until::Span(SPAN))?;
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

fn socket() -> Result<f64> {
    let server = Server::unbound("durable")?;
    let process = server.process()?;
    one_connection(&mut SocketEnd::append(&server, &process, Form::Binary)?)
}

/// Many clients, each with a process of its own and one request at a time.
fn http() -> Result<f64> {
    let server = Server::unbound("durable")?;
    let mut paths = Vec::new();
    for _ in 0..CLIENTS {
        let process = server.process()?;
        paths.push(format!("/v1/processes/{process}/channels/{CHANNEL}/entries?as={SUBMITTER}"));
    }
    let begin = Instant::now();
    let done = side_by_side(CLIENTS, |number| {
        let mut http = Http::open(server.addr())?;
        let payload = base64(&payload());
        let mut done = 0;
        while begin.elapsed() < SPAN {
            let entry = |sequence| format!("{{\"sequence\":{sequence},\"payload\":\"{payload}\"}}");
            let entries: Vec<String> = (done + 1..=done + BATCH).map(entry).collect();
            http.ask("POST", &paths[number], &format!("[{}]", entries.join(",")))?;
            done += BATCH;
        }
        Ok(done)
    })?;
    Ok(done.iter().sum::<u64>() as f64 / begin.elapsed().as_secs_f64())
}

/// Many tasks of this process, each with a channel of its own and one append at a time.
fn inside(span: Duration) -> Result<f64> {
    crate::runtime()?.block_on(async {
        let dir = tempfile::tempdir()?;
        let store =
            SqliteStore::open(SqliteOptions { channels: unbound(), ..SqliteOptions::new(dir.path()) })?;
        let router = Router::new(Arc::new(store.clone()));
        let mut channels = Vec::new();
        for number in 0..CLIENTS {
            let (new, id) = new_process(number)?;
            router.create_process(new).await?;
            channels.push(id);
        }
        let (done, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let mut tasks = JoinSet::new();
        for id in channels {
            let (router, who, done) = (router.clone(), Party::new(SUBMITTER)?, Arc::clone(&done));
            let payload = bytes::Bytes::from(payload());
            tasks.spawn(async move {
                let mut sequence = 0;
                while begin.elapsed() < span {
                    sequence += 1;
                    router.append(&id, &who, sequence, None, payload.clone()).await?;
                }
                done.fetch_add(sequence, Ordering::Relaxed);
                anyhow::Ok(())
            });
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        let rate = done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
        store.close().await;
        Ok(rate)
    })
}
