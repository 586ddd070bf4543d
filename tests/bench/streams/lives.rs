//! How long a log that is not what it was may stay unnoticed: from the break to the line that a client reads.
//!
//! A host with its log on a server, and one client that follows `events` and hears nothing. Each break comes at another
//! moment between two looks. Where the server was away, time begins when it answers again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use millrace_tests::bench::{Better, Figure, Suite, median};
use millrace_tests::host::{HostProcess, Setup};
use millrace_tests::redis_server::{Engine, Keeps, RedisServer};
use reqwest::{Client, Response};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::super::{replay, runtime};

/// Breaks of a kind.
const BREAKS: usize = 12;
/// What each of them may take.
const NOTICED_WITHIN_MS: f64 = 1_000.0;
/// How long one that is not noticed is waited for.
const WAIT_MAX: Duration = Duration::from_secs(20);

type Break = fn(&mut RedisServer) -> Result<()>;

const BREAKS_OF_A_LOG: [(&str, Break); 5] = [
    ("FLUSHALL", |server| {
        server.command(&["FLUSHALL"]);
        Ok(())
    }),
    ("its counters deleted", |server| {
        ensure!(server.number(&["DEL", "{millrace}:meta"]) == 1, "there were some");
        Ok(())
    }),
    ("keys evicted", evict),
    ("a restart without files", |server| {
        server.kill();
        std::thread::sleep(Duration::from_millis(1_500));
        // The snapshot is that of another break.
        let _ = std::fs::remove_file(server.folder().join("dump.rdb"));
        server.start_again();
        Ok(())
    }),
    ("an older snapshot", |server| {
        server.restart();
        Ok(())
    }),
];

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    for (what, broken) in BREAKS_OF_A_LOG {
        let millis = runtime()?.block_on(log(what, broken))?;
        record(suite, &format!("a new life is told: {what}"), millis)?;
    }
    let millis = runtime()?.block_on(group())?;
    record(suite, "a group that was deleted is told (NOGROUP)", millis)
}

fn record(suite: &mut Suite, name: &str, millis: Vec<f64>) -> Result<()> {
    let longest = millis.iter().copied().fold(0.0, f64::max);
    eprintln!("  {name}: {:.0} ms, {longest:.0} at most", median(&millis).context("there are some")?);
    let (unit, better) = ("ms", Better::Lower);
    suite.record(Figure { name, unit, floor: None, better }, &millis)?;
    let name = format!("{name}, the longest of {BREAKS}");
    suite.record(Figure { name: &name, unit, floor: Some(NOTICED_WITHIN_MS), better }, &[longest])?;
    Ok(())
}

/// Has the server remove keys to make room.
fn evict(server: &mut RedisServer) -> Result<()> {
    for n in 0..200 {
        server.command(&["SET", &format!("filler-{n}"), &"x".repeat(4_000)]);
    }
    let used = server.info("memory");
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).context("it is told")?;
    let max = (used.trim().parse::<u64>()? - 200_000).to_string();
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", &max]);
    server.command(&["SET", "one-more", "x"]);
    server.command(&["CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction"]);
    Ok(())
}

struct Scene {
    server: RedisServer,
    host: HostProcess,
    http: Client,
    _dir: TempDir,
}

impl Scene {
    async fn start() -> Result<Self> {
        let server = RedisServer::start(Engine::Redis, Keeps::Nothing, &["--dbfilename", "dump.rdb"]);
        let dir = tempfile::tempdir()?;
        let setup = Setup::new(replay::binary()).log(&server.url()).set("redis.ack=memory");
        let host = HostProcess::start_as(setup, &dir.path().join("store")).await?;
        Ok(Self { server, host, http: Client::new(), _dir: dir })
    }

    async fn publish(&self, id: &str) -> Result<()> {
        let begun = Instant::now();
        let event = format!(
            r#"{{"id":"{id}","aggregate":"thing","agg_id":"{id}","version":1,"type":"thing.made","payload":{{}}}}"#
        );
        // A host that is about to know its log again says so.
        while let Err(error) = self.host.publish(event.clone()).await {
            ensure!(begun.elapsed() < WAIT_MAX, "{id}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

async fn log(what: &str, broken: Break) -> Result<Vec<f64>> {
    let mut scene = Scene::start().await?;
    let mut all = Vec::with_capacity(BREAKS);
    for n in 0..BREAKS {
        scene.publish(&format!("{n}-kept")).await?;
        scene.server.command(&["SAVE"]);
        scene.publish(&format!("{n}-lost")).await?;
        let url = format!("{}/v1/streams/events?after=oldest", scene.host.url);
        let request = scene.http.get(url).header("accept", "text/event-stream");
        let mut tail = request.send().await?.error_for_status()?;
        read_until(&mut tail, &format!("{n}-lost")).await.with_context(|| what.to_owned())?;
        pause(n).await;
        // It is read while the server is started again.
        let mut told = JoinSet::new();
        told.spawn(async move {
            read_until(&mut tail, "cursor_foreign").await?;
            anyhow::Ok(Instant::now())
        });
        tokio::task::block_in_place(|| broken(&mut scene.server))?;
        let since = Instant::now();
        let told = told.join_next().await.context("it was begun")??.with_context(|| what.to_owned())?;
        all.push(told.saturating_duration_since(since).as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// The breaks fall everywhere between two looks.
async fn pause(n: usize) {
    tokio::time::sleep(Duration::from_millis(100 + (n as u64 * 137) % 500)).await;
}

async fn read_until(tail: &mut Response, text: &str) -> Result<()> {
    let mut seen = String::new();
    while !seen.contains(text) {
        let chunk = tokio::time::timeout(WAIT_MAX, tail.chunk()).await;
        let chunk = chunk.with_context(|| format!("`{text}` does not come after {seen}"))??;
        let Some(chunk) = chunk else { bail!("it ended before `{text}`: {seen}") };
        seen.push_str(std::str::from_utf8(&chunk)?);
    }
    Ok(())
}

/// A reader waits, and the keys of its group are deleted.
async fn group() -> Result<Vec<f64>> {
    let scene = Scene::start().await?;
    let mut all = Vec::with_capacity(BREAKS);
    for n in 0..BREAKS {
        let keys = |server: &RedisServer| -> Result<Vec<String>> {
            Ok(redis::from_redis_value(server.command(&["KEYS", "*"]))?)
        };
        let before = keys(&scene.server)?;
        let url = format!("{}/v1/streams/events/groups/g{n}", scene.host.url);
        let make =
            scene.http.put(&url).header("content-type", "application/json").body(r#"{"from":"newest"}"#);
        make.send().await?.error_for_status()?;
        let read = scene.http.post(format!("{url}/read")).header("content-type", "application/json");
        let read = read.body(r#"{"consumer":"one","wait_ms":15000}"#);
        let mut told = JoinSet::new();
        told.spawn(async move {
            let answer = read.send().await?.text().await?;
            anyhow::Ok((Instant::now(), answer))
        });
        pause(n).await;
        let mut delete = vec!["DEL".to_owned()];
        delete.extend(keys(&scene.server)?.into_iter().filter(|key| !before.contains(key)));
        ensure!(delete.len() > 1, "a group has keys of its own");
        scene.server.command(&delete.iter().map(String::as_str).collect::<Vec<_>>());
        let since = Instant::now();
        let (told, answer) = told.join_next().await.context("it was begun")???;
        ensure!(answer.contains("group_unknown"), "the reader is told: {answer}");
        all.push(told.saturating_duration_since(since).as_secs_f64() * 1e3);
    }
    Ok(all)
}
