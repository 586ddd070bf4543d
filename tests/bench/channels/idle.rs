//! Memory of channels that nobody uses now, and of followers that wait.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace::backends::memory::MemoryChannels;
use millrace::channels::{Actor, Notice, Party, Router, Subscription};
use millrace::clock::SystemClock;
use millrace_tests::bench::{Better, ROUNDS, Suite};
use millrace_tests::channel_socket::base64;
use tokio::task::JoinSet;

use super::ends::{has, payload};
use super::wire::{Connection, Http, WebSocket};
use super::{CHANNEL, EXECUTOR, SUBMITTER, Server, make_process, new_process, record, side_by_side, unbound};
use crate::hostile::resident;
use crate::live_sockets::{own_bytes, raise_open_files};

/// What a process of its own is asked for: its heap holds nothing that others have left.
pub(crate) const IDLE: &str = "--idle-channels";

/// Channels, each with one entry of 100 bytes and one follower. Some come before the count begins.
const CHANNELS: usize = 10_000;
const FIRST: usize = 100;
const CLIENTS: usize = 16;
/// Subscriptions of one WebSocket.
const OF_A_SOCKET: usize = 1_000;
/// Followers where the system allows few open files.
const FEW: usize = 500;
const FOLLOW_ENTRIES: usize = 256;
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let streams = match raise_open_files(CHANNELS as u64 + 2_000) {
        Ok(()) => CHANNELS,
        Err(error) => {
            eprintln!("  {error:#}; {FEW} streams are measured");
            FEW
        }
    };
    let mut values = [const { Vec::new() }; 5];
    for round in 0..ROUNDS {
        let (channel, follower) = inside()?;
        let (kept, subscription) = served(FIRST + CHANNELS, sockets)?;
        let (_, stream) = served(FIRST + streams, events)?;
        let measured = [channel, follower, kept, subscription, stream];
        eprintln!("  idle channels and followers, round {}: {measured:.0?} bytes", round + 1);
        for (values, value) in values.iter_mut().zip(measured) {
            values.push(value);
        }
    }
    let [channel, follower, kept, subscription, stream] = values;
    let lower = Better::Lower;
    let stream_name = format!("an idle follower over SSE, of {streams}");
    let rows = vec![
        ("an idle channel with its process, memory store, of 10,000", "bytes", None, lower, channel),
        ("an idle follower in one process, of 10,000", "bytes", None, lower, follower),
        ("an idle channel with its process, of a host with a durable store", "bytes", None, lower, kept),
        ("an idle follower over a WebSocket, of 10,000 on 10", "bytes", None, lower, subscription),
        (stream_name.as_str(), "bytes", None, lower, stream),
    ];
    record(suite, rows)
}

/// Bytes of a channel and of a follower, as a process of its own finds them.
fn inside() -> Result<(f64, f64)> {
    let output = Command::new(std::env::current_exe()?).arg(IDLE).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the process with idle channels failed: {said}");
    let text = String::from_utf8(output.stdout)?;
    let (channel, follower) = text.trim().split_once(' ').context("two numbers")?;
    Ok((channel.parse()?, follower.parse()?))
}

/// Says what [`inside`] reads.
pub(crate) fn print_idle() -> Result<()> {
    let (channel, follower) = crate::runtime()?.block_on(measured_inside())?;
    writeln!(std::io::stdout(), "{channel} {follower}").context("standard output cannot be written")
}

async fn measured_inside() -> Result<(f64, f64)> {
    let router = Router::new(Arc::new(MemoryChannels::new(unbound(), Arc::new(SystemClock))));
    let (mut followers, waiting) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    make(&router, 0..FIRST).await?;
    follow(&router, 0..FIRST, &mut followers, &waiting).await?;
    let before = resident()?;
    make(&router, FIRST..FIRST + CHANNELS).await?;
    let made = resident()?;
    follow(&router, FIRST..FIRST + CHANNELS, &mut followers, &waiting).await?;
    let followed = resident()?;
    ensure!(followers.len() == FIRST + CHANNELS, "all of them wait");
    let each = |after: f64, before: f64| (after - before) / CHANNELS as f64;
    Ok((each(made, before), each(followed, made)))
}

async fn make(router: &Router, numbers: std::ops::Range<usize>) -> Result<()> {
    for number in numbers {
        let (new, id) = new_process(number)?;
        router.create_process(new).await?;
        router.append(&id, &Party::new(SUBMITTER)?, 1, None, payload()).await?;
    }
    Ok(())
}

/// Followers that have had what there is, each a task that waits.
async fn follow(
    router: &Router,
    numbers: std::ops::Range<usize>,
    followers: &mut JoinSet<Result<()>>,
    waiting: &Arc<AtomicUsize>,
) -> Result<()> {
    let wanted = numbers.end;
    let executor = Actor::Party(Party::new(EXECUTOR)?);
    for number in numbers {
        let follower = router.subscribe(&new_process(number)?.1, &executor, 0).await?;
        followers.spawn(wait(follower, Arc::clone(waiting)));
    }
    let begin = Instant::now();
    while waiting.load(Ordering::Relaxed) < wanted {
        ensure!(begin.elapsed() < WAIT_MAX, "some followers have not got what there is");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn wait(mut follower: Subscription, waiting: Arc<AtomicUsize>) -> Result<()> {
    while let Some(notice) = follower.next(FOLLOW_ENTRIES).await? {
        if matches!(notice, Notice::Entries(_)) {
            waiting.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Connections whose followers have got what there is. They end when they are dropped.
type Open = Vec<TcpStream>;

/// Bytes that each of so many channels costs a host, and that each follower does. The first few are not counted.
fn served(
    channels: usize,
    follow: fn(&Server, std::ops::Range<usize>) -> Result<Open>,
) -> Result<(f64, f64)> {
    let server = Server::start(&["gateway.connections_max=30000"])?;
    let payload = base64(&payload());
    let make = |from: usize, until: usize| {
        side_by_side(CLIENTS, |client| {
            let mut http = Http::open(server.addr())?;
            for number in (from + client..until).step_by(CLIENTS) {
                make_process(&mut http, &name(number))?;
                let path =
                    format!("/v1/processes/{}/channels/{CHANNEL}/entries?as={SUBMITTER}", name(number));
                http.ask("POST", &path, &format!("{{\"sequence\":1,\"payload\":\"{payload}\"}}"))?;
            }
            Ok(())
        })
    };
    make(0, FIRST)?;
    let first = follow(&server, 0..FIRST)?;
    let before = own_bytes(server.host.pid())?;
    make(FIRST, channels)?;
    let made = settled(&server)?;
    let rest = follow(&server, FIRST..channels)?;
    let followed = settled(&server)?;
    drop((first, rest));
    let each = |after: f64, before: f64| (after - before) / (channels - FIRST) as f64;
    Ok((each(made, before), each(followed, made)))
}

/// What a host holds when what was needed for a moment is given back, if it is.
fn settled(server: &Server) -> Result<f64> {
    std::thread::sleep(Duration::from_millis(500));
    own_bytes(server.host.pid())
}

fn name(number: usize) -> String {
    format!("idle-{number}")
}

/// Many followers on each WebSocket.
fn sockets(server: &Server, numbers: std::ops::Range<usize>) -> Result<Open> {
    let mut open = Open::new();
    for from in numbers.clone().step_by(OF_A_SOCKET) {
        let mut socket = WebSocket::open(server.addr())?;
        let until = (from + OF_A_SOCKET).min(numbers.end);
        for number in from..until {
            socket.say(&format!(
                "{{\"op\":\"subscribe\",\"id\":\"{number}\",\"process\":\"{}\",\"channel\":\"{CHANNEL}\",\
                 \"as\":\"{EXECUTOR}\"}}",
                name(number)
            ))?;
        }
        let mut waiting = until - from;
        while waiting > 0 {
            socket.take(|message| {
                ensure!(!has(message, b"\"op\":\"error\""), "the host says {message:?}");
                waiting -= usize::from(has(message, b"\"op\":\"entries\""));
                Ok(())
            })?;
        }
        open.push(socket.into_stream());
    }
    Ok(open)
}

/// A connection for each follower.
fn events(server: &Server, numbers: std::ops::Range<usize>) -> Result<Open> {
    let open = numbers.map(|number| {
        let mut connection = Connection::open(server.addr())?;
        let path = format!("/v1/processes/{}/channels/{CHANNEL}/entries?as={EXECUTOR}", name(number));
        connection.write(
            format!(
                "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: text/event-stream\r\n\r\n"
            )
            .as_bytes(),
        )?;
        connection.until(b"event: entry")?;
        Ok(connection.into_stream())
    });
    open.collect()
}
