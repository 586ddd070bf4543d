//! The clients: sockets that speak just enough of HTTP and WebSocket, so that ten thousand fit beside the host.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::server::micros;

/// Clients that connect at the same time.
const CONNECTING: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How every frame begins.
const FRAME: &[u8] = b"{\"op\":\"";
const READY: &[u8] = b"{\"op\":\"ready\"";
/// The column that the publisher's time stands in.
const MADE_AT: &[u8] = b"\"distance_mi\":";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Of many subscriptions, with all frames of a commit in a message.
    WebSocket,
    /// Of one subscription, with a message for each frame.
    Single,
    Events,
}

/// A connection whose window has come.
#[derive(Debug)]
pub(super) struct Client {
    number: usize,
    stream: TcpStream,
    token: String,
    /// Deltas that came before the window was whole, and whether they were what was missed.
    deltas: usize,
    resumed: bool,
}

/// Who has gone, and where it was.
#[derive(Debug)]
pub(super) struct Gone {
    transport: Transport,
    tokens: Vec<String>,
}

/// One source address has 28,000 ports, and what is closed keeps its own for a minute: each crowd has another.
fn next_source() -> IpAddr {
    static LAST: AtomicU8 = AtomicU8::new(1);
    Ipv4Addr::new(127, 0, 1, LAST.fetch_add(1, Ordering::Relaxed)).into()
}

impl Client {
    pub(super) async fn open(addr: SocketAddr, transport: Transport, query: &str) -> Result<Self> {
        Self::connect(addr, next_source(), transport, 0, query, None).await
    }

    async fn connect(
        addr: SocketAddr,
        source: IpAddr,
        transport: Transport,
        number: usize,
        query: &str,
        resume: Option<&str>,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let mut stream = socket.connect(addr).await?;
        stream.set_nodelay(true)?;
        stream.write_all(request(transport, query, resume).as_bytes()).await?;
        let mut client = Self { number, stream, token: String::new(), deltas: 0, resumed: false };
        if transport != Transport::Events {
            client.read_until(b"\r\n\r\n").await?;
            let resume = resume.map(|token| format!(",\"resume\":\"{token}\"")).unwrap_or_default();
            let id = if transport == Transport::WebSocket { "\"id\":\"a\"," } else { "" };
            client.say(&format!("{{\"action\":\"subscribe\",{id}\"query\":{query}{resume}}}")).await?;
        }
        client.wait_ready().await?;
        Ok(client)
    }

    /// A text frame. What a client sends must be masked, and a mask of zeros is one.
    async fn say(&mut self, text: &str) -> Result<()> {
        let length = u16::try_from(text.len())?;
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// Reads up to the end of what is looked for; answers everything.
    async fn read_until(&mut self, wanted: &[u8]) -> Result<Vec<u8>> {
        let (mut all, mut looked) = (Vec::new(), 0);
        loop {
            if let Some(at) = memmem::find(&all[looked..], wanted) {
                let end = looked + at + wanted.len();
                // What ends the frame comes with it, or right after it.
                if wanted != READY || all[end..].contains(&b'}') {
                    return Ok(all);
                }
            } else {
                looked = all.len().saturating_sub(wanted.len());
            }
            let read = tokio::time::timeout(WAIT_MAX, self.stream.read_buf(&mut all)).await;
            if read.context("nothing came")?? == 0 {
                bail!("the host closed: {}", String::from_utf8_lossy(&all));
            }
        }
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let all = self.read_until(READY).await?;
        let at = memmem::rfind(&all, READY).context("it was found")?;
        let ready = String::from_utf8_lossy(&all[at..]).into_owned();
        self.deltas = memmem::find_iter(&all[..at], FRAME).count();
        self.resumed = ready.contains("\"resumed\":true");
        let token = ready.split("\"stream_id\":\"").nth(1).and_then(|rest| rest.split('"').next());
        self.token = token.context("a window that is whole has a token")?.to_owned();
        Ok(())
    }

    /// Moves the window. Answers the microseconds until it is whole.
    pub(super) async fn reanchor(&mut self, cursor: &str) -> Result<f64> {
        let begin = Instant::now();
        self.say(&format!("{{\"action\":\"reanchor\",\"id\":\"a\",\"cursor\":{cursor}}}")).await?;
        self.wait_ready().await?;
        let micros = begin.elapsed().as_secs_f64() * 1e6;
        ensure!(self.deltas == 51, "a reset and 50 rows come, not {} frames", self.deltas);
        Ok(micros)
    }
}

fn request(transport: Transport, query: &str, resume: Option<&str>) -> String {
    match transport {
        Transport::Events => {
            let last = resume.map(|token| format!("Last-Event-ID: {token}\r\n")).unwrap_or_default();
            let length = query.len();
            format!(
                "POST /v1/live HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: text/event-stream\r\n{last}\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{query}"
            )
        }
        _ => {
            let protocol = if transport == Transport::WebSocket {
                "Sec-WebSocket-Protocol: millrace.live.v1\r\n"
            } else {
                ""
            };
            format!(
                "GET /v1/live/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{protocol}\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
        }
    }
}

/// Many clients.
#[derive(Debug)]
pub(super) struct Crowd {
    transport: Transport,
    clients: Vec<Client>,
    readers: JoinSet<Result<()>>,
}

impl Crowd {
    pub(super) async fn connect(
        addr: SocketAddr,
        transport: Transport,
        clients: usize,
        query: impl Fn(usize) -> String,
    ) -> Result<Self> {
        Self::connect_all(addr, transport, &vec![None; clients], query).await
    }

    pub(super) async fn resume(
        addr: SocketAddr,
        gone: Gone,
        query: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let tokens: Vec<_> = gone.tokens.into_iter().map(Some).collect();
        Self::connect_all(addr, gone.transport, &tokens, query).await
    }

    async fn connect_all(
        addr: SocketAddr,
        transport: Transport,
        tokens: &[Option<String>],
        query: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let source = next_source();
        let connect = |(number, token): (usize, &Option<String>)| {
            let (query, token) = (query(number), token.clone());
            async move { Client::connect(addr, source, transport, number, &query, token.as_deref()).await }
        };
        let connecting = stream::iter(tokens.iter().enumerate()).map(connect).buffer_unordered(CONNECTING);
        let mut clients: Vec<_> = connecting.try_collect().await?;
        clients.sort_by_key(|client| client.number);
        Ok(Self { transport, clients, readers: JoinSet::new() })
    }

    pub(super) fn extend(&mut self, others: Self) {
        self.clients.extend(others.clients);
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Everybody leaves at once.
    pub(super) fn leave(self) -> Gone {
        let tokens = self.clients.into_iter().map(|client| client.token).collect();
        Gone { transport: self.transport, tokens }
    }

    /// Whether each of them got exactly so many deltas, and no row twice.
    pub(super) fn all_resumed_with(&self, deltas: usize) -> Result<()> {
        let others = self.clients.iter().filter(|client| !client.resumed || client.deltas != deltas).count();
        ensure!(others == 0, "{others} of {} clients got something else than what they missed", self.len());
        Ok(())
    }

    /// From now on all clients read, and what comes is counted.
    pub(super) fn count(&mut self) -> Arc<Counted> {
        let counted = Arc::new(Counted::default());
        for client in std::mem::take(&mut self.clients) {
            let counted = Arc::clone(&counted);
            self.readers.spawn(client.count(counted));
        }
        counted
    }

    /// From now on all clients read, and compare the time in each row with their own.
    pub(super) fn time(&mut self) -> Arc<Timed> {
        let timed = Arc::new(Timed::default());
        for client in std::mem::take(&mut self.clients) {
            let timed = Arc::clone(&timed);
            self.readers.spawn(client.time(timed));
        }
        timed
    }
}

#[derive(Debug, Default)]
pub(super) struct Counted {
    deltas: AtomicUsize,
}

impl Counted {
    pub(super) fn deltas(&self) -> usize {
        self.deltas.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Timed {
    millis: Mutex<Vec<f64>>,
}

impl Timed {
    pub(super) fn millis(&self) -> Vec<f64> {
        self.millis.lock().expect("nothing panics here").clone()
    }
}

thread_local! {
    /// A client keeps none of its own: what is read is looked at and forgotten.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 << 10]);
}

impl Client {
    async fn count(self, counted: Arc<Counted>) -> Result<()> {
        let wanted = memmem::Finder::new(FRAME);
        // The last bytes of what came before: a frame's beginning may be torn.
        let mut rest = Vec::with_capacity(FRAME.len());
        loop {
            self.stream.readable().await?;
            let found = BUFFER.with_borrow_mut(|buffer| {
                buffer[..rest.len()].copy_from_slice(&rest);
                let read = match self.stream.try_read(&mut buffer[rest.len()..]) {
                    Ok(read) => read,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Some(0)),
                    Err(error) => return Err(error),
                };
                let all = &buffer[..rest.len() + read];
                let kept = all.len().saturating_sub(FRAME.len() - 1);
                let found = wanted.find_iter(all).count();
                rest.clear();
                rest.extend_from_slice(&all[kept..]);
                Ok((read > 0).then_some(found))
            })?;
            let Some(found) = found else { return Ok(()) };
            counted.deltas.fetch_add(found, Ordering::Relaxed);
        }
    }

    async fn time(mut self, timed: Arc<Timed>) -> Result<()> {
        let mut buffer = Vec::new();
        while self.stream.read_buf(&mut buffer).await? > 0 {
            let now = micros()?;
            let (mut done, mut found) = (buffer.len().saturating_sub(MADE_AT.len()), Vec::new());
            for at in memmem::find_iter(&buffer, MADE_AT) {
                let digits = &buffer[at + MADE_AT.len()..];
                let Some(end) = digits.iter().position(|byte| !byte.is_ascii_digit()) else {
                    done = at;
                    break;
                };
                let made: u64 = std::str::from_utf8(&digits[..end])?.parse()?;
                found.push(now.saturating_sub(made) as f64 / 1e3);
                done = done.max(at + MADE_AT.len());
            }
            buffer.drain(..done);
            timed.millis.lock().expect("nothing panics here").extend(found);
        }
        Ok(())
    }
}
