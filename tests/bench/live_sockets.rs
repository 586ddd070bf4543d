//! Live queries on the wire: a host as a process of its own, and in this one the clients, over loopback.
//!
//! What the host spends is read from the kernel: processor time of all of its threads (user and system, and with
//! loopback much of what receiving costs is done by who sends), and what of its memory is its own (Pss, user space
//! only: the kernel's socket buffers are not in it).

mod clients;
mod server;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite, median, percentile};

use clients::{Client, Crowd, Transport};
use server::Server;
pub(crate) use server::{own_bytes, raise_open_files};

/// Sockets that are open and idle, and that drop and come back.
const IDLE: usize = 10_000;
const IDLE_VIEWS: usize = 100;
const IDLE_ROWS: usize = 50;
/// Sockets that a few views are sent to, and how: so many rows of each view in one commit, so many times a second.
const FAN: usize = 5_000;
const FAN_VIEWS: usize = 10;
const FAN_ROWS: usize = 20;
const FAN_PER_SECOND: u32 = 8;
const FAN_SECONDS: u32 = 4;
/// Subscribers with a window of their own each, and what changes in them.
const LATENCY_CLIENTS: usize = 1_000;
const LATENCY_ROWS: usize = 20;
const LATENCY_CHANGES: usize = 20_000;
const LATENCY_STEPS: usize = 100;
const LATENCY_SECONDS: usize = 6;
/// Rows of the large table; so many have the same value in the column of the order.
const DEEP_ROWS: usize = 1_050_000;
const DEEP_TIES: usize = 1_000;
const DEEP: usize = 1_000_000;
const REANCHORS: usize = 200;

/// The values of each figure, round by round.
#[derive(Debug, Default)]
struct Found {
    ws_bytes: Vec<f64>,
    sse_bytes: Vec<f64>,
    ws_rate: Vec<f64>,
    ws_frames: Vec<f64>,
    single_rate: Vec<f64>,
    sse_rate: Vec<f64>,
    sse_frames: Vec<f64>,
    offered: Vec<f64>,
    to_socket: Vec<f64>,
    to_client: Vec<f64>,
    changed: Vec<f64>,
    young: Vec<f64>,
    old: Vec<f64>,
    head: Vec<f64>,
    deep: Vec<f64>,
}

pub(crate) fn run(suite: &mut Suite) -> Result<()> {
    raise_open_files(IDLE as u64 + 2_000)?;
    super::runtime()?.block_on(async {
        let mut found = Found::default();
        for round in 0..ROUNDS {
            eprintln!("  sockets, round {}", round + 1);
            websockets(&mut found).await?;
            events(&mut found).await?;
        }
        old_log(&mut found).await?;
        record(suite, &found)
    })
}

/// A fresh host whose table has so many rows in each of so many views, and clients, each with one of the views.
async fn crowded(transport: Transport, clients: usize, views: usize, rows: usize) -> Result<(Server, Crowd)> {
    let mut server = Server::start().await?;
    for view in 0..views {
        server.publish(view..view + 1, rows).await?;
    }
    server.settle().await?;
    let crowd = connect(&server, transport, clients, views).await?;
    Ok((server, crowd))
}

async fn connect(server: &Server, transport: Transport, clients: usize, views: usize) -> Result<Crowd> {
    Crowd::connect(server.addr(), transport, clients, move |number| server::query_of(number % views)).await
}

/// What each of many idle connections costs. The first few, which make the views, are not counted.
async fn idle(transport: Transport) -> Result<(Server, Crowd, f64)> {
    let (server, mut crowd) = crowded(transport, IDLE_VIEWS, IDLE_VIEWS, IDLE_ROWS).await?;
    let before = server.own_bytes()?;
    crowd.extend(connect(&server, transport, IDLE - IDLE_VIEWS, IDLE_VIEWS).await?);
    // What was needed to connect is given back in a moment, if at all.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let bytes = (server.own_bytes()? - before) / (IDLE - IDLE_VIEWS) as f64;
    eprintln!("    {transport:?}: {bytes:.0} bytes an idle connection");
    Ok((server, crowd, bytes))
}

async fn websockets(found: &mut Found) -> Result<()> {
    let (server, crowd, bytes) = idle(Transport::WebSocket).await?;
    found.ws_bytes.push(bytes);
    drop((server, crowd));
    let (mut server, mut crowd) = crowded(Transport::WebSocket, FAN, FAN_VIEWS, FAN_ROWS).await?;
    let fanned = fan_out(&mut server, &mut crowd).await?;
    found.ws_rate.push(fanned.rate);
    found.ws_frames.push(fanned.frames_per_write);
    found.offered.push(fanned.offered);
    drop((server, crowd));
    let (mut server, mut crowd) = crowded(Transport::Single, FAN, FAN_VIEWS, FAN_ROWS).await?;
    found.single_rate.push(fan_out(&mut server, &mut crowd).await?.rate);
    drop((server, crowd));
    let (mut server, crowd) =
        crowded(Transport::WebSocket, LATENCY_CLIENTS, LATENCY_CLIENTS, LATENCY_ROWS).await?;
    latency(&mut server, crowd, found).await
}

async fn events(found: &mut Found) -> Result<()> {
    let (mut server, crowd, bytes) = idle(Transport::Events).await?;
    found.sse_bytes.push(bytes);
    found.young.push(drop_and_resume(&mut server, crowd).await?);
    drop(server);
    let (mut server, mut crowd) = crowded(Transport::Events, FAN, FAN_VIEWS, FAN_ROWS).await?;
    let fanned = fan_out(&mut server, &mut crowd).await?;
    found.sse_rate.push(fanned.rate);
    found.sse_frames.push(fanned.frames_per_write);
    Ok(())
}

struct Fanned {
    /// Deltas of a second of the host's processor time.
    rate: f64,
    frames_per_write: f64,
    /// Deltas a second.
    offered: f64,
}

/// Changes all rows of the views again and again, and waits until everybody has everything.
async fn fan_out(server: &mut Server, crowd: &mut Crowd) -> Result<Fanned> {
    let received = crowd.count();
    let (before, spent) = (server.sent().await?, server.processor_seconds()?);
    let begin = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_secs(1) / FAN_PER_SECOND);
    for _ in 0..FAN_PER_SECOND * FAN_SECONDS {
        beat.tick().await;
        server.publish(0..FAN_VIEWS, FAN_ROWS).await?;
    }
    let took = begin.elapsed().as_secs_f64();
    server.settle().await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut last, mut calm) = (0, 0);
    while calm < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = received.deltas();
        calm = if now == last && now > 0 { calm + 1 } else { 0 };
        last = now;
        ensure!(Instant::now() < deadline, "deltas still come half a minute after the last change");
    }
    let spent = server.processor_seconds()? - spent;
    let sent = server.sent().await?.since(&before);
    ensure!(sent.frames == last as f64, "{} frames were sent and {last} came", sent.frames);
    let all = FAN * FAN_ROWS * (FAN_PER_SECOND * FAN_SECONDS) as usize;
    // A row that changes again before its commit was told is told once.
    ensure!(last * 4 > all, "of {all} deltas only {last} came");
    let fanned = Fanned {
        rate: sent.frames / spent,
        frames_per_write: sent.frames / sent.writes,
        offered: sent.frames / took,
    };
    eprintln!(
        "    fan-out: {:.0} deltas per CPU-second, {:.1} frames and {:.0} bytes a write, {:.0} deltas/s offered",
        fanned.rate,
        fanned.frames_per_write,
        sent.bytes / sent.writes,
        fanned.offered
    );
    Ok(fanned)
}

/// Changes rows at a steady rate. Measured are the time from the commit to the write to a socket, by the host's own
/// histogram, and from the publisher's clock to a client, with storing, the plugin and the commit in it.
async fn latency(server: &mut Server, mut crowd: Crowd, found: &mut Found) -> Result<()> {
    let times = crowd.time();
    let (before, begin) = (server.write_times().await?, Instant::now());
    let mut beat = tokio::time::interval(Duration::from_secs(1) / u32::try_from(LATENCY_STEPS)?);
    let rows = LATENCY_CHANGES / LATENCY_STEPS;
    for step in 0..LATENCY_STEPS * LATENCY_SECONDS {
        beat.tick().await;
        let first = step * rows % LATENCY_CLIENTS;
        server.publish_later(first..first + rows, LATENCY_ROWS).await?;
    }
    server.published().await?;
    let changed = (LATENCY_STEPS * LATENCY_SECONDS * rows) as f64 / begin.elapsed().as_secs_f64();
    server.settle().await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let histogram = server.write_times().await?.since(&before);
    let to_socket = histogram.quantile(0.99).context("something was written")? * 1e3;
    let to_client = percentile(&times.millis(), 99).context("something came")?;
    eprintln!(
        "    {changed:.0} changes/s: p99 {to_socket:.2} ms from commit to socket ({} writes), {to_client:.1} ms from publisher to client",
        histogram.count()
    );
    found.changed.push(changed);
    found.to_socket.push(to_socket);
    found.to_client.push(to_client);
    Ok(())
}

/// All clients go at once, rows change, and all come back. Answers the host's processor time for both.
async fn drop_and_resume(server: &mut Server, crowd: Crowd) -> Result<f64> {
    let before = server.processor_seconds()?;
    let gone = crowd.leave();
    // It notices, and calms down.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let leaving = server.processor_seconds()? - before;
    server.publish(0..IDLE_VIEWS, IDLE_ROWS).await?;
    server.settle().await?;
    let (before, begin) = (server.processor_seconds()?, Instant::now());
    let crowd = Crowd::resume(server.addr(), gone, |number| server::query_of(number % IDLE_VIEWS)).await?;
    let (coming, took) = (server.processor_seconds()? - before, begin.elapsed());
    crowd.all_resumed_with(IDLE_ROWS)?;
    eprintln!(
        "    {} clients went and came back: {leaving:.2} s and {coming:.2} s of the host's processor time, in {took:.1?}, with {} events in the log",
        crowd.len(),
        server.events()
    );
    Ok(leaving + coming)
}

/// The same with a log that is long, and windows that begin deep in a large table.
async fn old_log(found: &mut Found) -> Result<()> {
    eprintln!("  a table of {DEEP_ROWS} rows");
    let begin = Instant::now();
    let mut server = Server::start().await?;
    for view in 0..IDLE_VIEWS {
        server.publish(view..view + 1, IDLE_ROWS).await?;
    }
    server.fill(DEEP_ROWS, DEEP_TIES).await?;
    server.settle().await?;
    eprintln!("    made in {:.1?}", begin.elapsed());
    for _ in 0..ROUNDS {
        let crowd = connect(&server, Transport::Events, IDLE, IDLE_VIEWS).await?;
        found.old.push(drop_and_resume(&mut server, crowd).await?);
    }
    let mut client = Client::open(server.addr(), Transport::WebSocket, &server::deep_query()).await?;
    for round in 0..ROUNDS {
        let (mut head, mut deep) = (Vec::new(), Vec::new());
        for number in 0..REANCHORS {
            // No window is asked for twice: it would be there already.
            let place = round * REANCHORS + number;
            head.push(client.reanchor(&server::deep_cursor(place, DEEP_ROWS, DEEP_TIES)).await?);
            deep.push(client.reanchor(&server::deep_cursor(DEEP + place, DEEP_ROWS, DEEP_TIES)).await?);
        }
        found.head.push(median(&head).context("reanchors")?);
        found.deep.push(median(&deep).context("reanchors")?);
        eprintln!(
            "    reanchor: {:.0} µs at the head, {:.0} µs at depth {DEEP}",
            found.head[round], found.deep[round]
        );
    }
    Ok(())
}

fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

/// A figure: name, unit, floor, which way is better, and its values.
type Row<'a> = (&'a str, &'a str, Option<f64>, Better, &'a [f64]);

fn record(suite: &mut Suite, found: &Found) -> Result<()> {
    let (million, lower, higher) = (Some(1_000_000.0), Better::Lower, Better::Higher);
    let resumes = ratios(&found.old, &found.young);
    let depths = ratios(&found.deep, &found.head);
    let figures: [Row<'_>; 16] = [
        (
            "deltas to 5,000 WebSockets, 10 views, per CPU-second of the host",
            "deltas",
            million,
            higher,
            &found.ws_rate,
        ),
        ("of which in one write", "frames", Some(10.0), higher, &found.ws_frames),
        ("offered meanwhile", "deltas/s", None, higher, &found.offered),
        ("the same with a message for each delta", "deltas", million, higher, &found.single_rate),
        (
            "deltas to 5,000 SSE connections, 10 views, per CPU-second of the host",
            "deltas",
            million,
            higher,
            &found.sse_rate,
        ),
        ("of which in one write, SSE", "frames", Some(10.0), higher, &found.sse_frames),
        (
            "an idle WebSocket with a live window, of 10,000 on 100 views",
            "bytes",
            Some(6.0 * 1024.0),
            lower,
            &found.ws_bytes,
        ),
        (
            "an idle SSE connection with a live window, of 10,000 on 100 views",
            "bytes",
            Some(20.0 * 1024.0),
            lower,
            &found.sse_bytes,
        ),
        (
            "row changes through plugin and store, 1,000 subscribers with a window each",
            "changes/s",
            None,
            higher,
            &found.changed,
        ),
        ("p99 from a commit to the write to a socket meanwhile", "ms", Some(10.0), lower, &found.to_socket),
        (
            "p99 from the publisher to a client meanwhile, through log, plugin and commit",
            "ms",
            None,
            lower,
            &found.to_client,
        ),
        (
            "CPU of the host for 10,000 clients that come back by Last-Event-ID",
            "s",
            Some(2.0),
            lower,
            &found.young,
        ),
        ("the same with 100 times more events in the log", "s", Some(2.0), lower, &found.old),
        ("of the cost with the young log", "times", Some(1.2), lower, &resumes),
        ("reanchor at depth 1,000,000", "µs", None, lower, &found.deep),
        ("of the same at the head", "times", Some(1.2), lower, &depths),
    ];
    for (name, unit, floor, better, values) in figures {
        suite.record(Figure { name, unit, floor, better }, values)?;
    }
    Ok(())
}
