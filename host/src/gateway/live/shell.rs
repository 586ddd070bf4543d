//! The seams of the transport: where subscriptions come from, and where frames go.
//!
//! No web framework and no store is named here, nor in `sse`, `socket` and `commands`, so that all of it can be
//! driven by fakes, and so that an edge of its own can serve what another host's engine answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::super::problems::PROBLEMS;
use crate::error::Blame;
use crate::limits;
use crate::live::Batch;

/// Answers live queries to the transport.
///
/// A query is passed on as the client wrote it: who answers it checks it. `subscribe` answers once it is checked,
/// and may wait for the engine, never for a client. Dropping what it answered ends the subscription.
pub trait Backend: Send + Sync {
    fn subscribe(&self, ask: Ask) -> BoxFuture<'_, Result<Sub, Fault>>;
}

/// What a client asks for.
#[derive(Debug)]
pub struct Ask {
    /// The query's JSON, unread.
    pub query: Box<RawValue>,
    /// The token of the last commit that the client has.
    pub resume: Option<String>,
}

/// Another place and size for a window; what is absent stays.
#[derive(Debug, Default)]
pub struct Anchor {
    /// `{"values":[…]}`, unread.
    pub cursor: Option<Box<RawValue>>,
    /// 0 keeps the size.
    pub limit: Option<i64>,
}

/// The batches of a subscription. An error is the last item.
pub type Rows = BoxStream<'static, Result<Batch, Fault>>;
/// Subscribes anew; none leaves everything as it is.
type Reanchor = Box<dyn FnMut(Anchor) -> BoxFuture<'static, Result<Option<Rows>, Fault>> + Send>;

/// One subscription, made of a stream and, where there is more to it, of closures.
pub struct Sub {
    id: String,
    pub(super) batches: Rows,
    reanchor: Option<Reanchor>,
    close: Option<Box<dyn FnOnce() + Send>>,
}

impl Sub {
    pub fn new(id: impl Into<String>, batches: Rows) -> Self {
        Self { id: id.into(), batches, reanchor: None, close: None }
    }

    /// How it is moved. Without, [`reanchor`](Self::reanchor) changes nothing.
    #[must_use]
    pub fn on_reanchor(
        mut self,
        reanchor: impl FnMut(Anchor) -> BoxFuture<'static, Result<Option<Rows>, Fault>> + Send + 'static,
    ) -> Self {
        self.reanchor = Some(Box::new(reanchor));
        self
    }

    /// What happens when it ends, once, however it ends.
    #[must_use]
    pub fn on_close(mut self, close: impl FnOnce() + Send + 'static) -> Self {
        self.close = Some(Box::new(close));
        self
    }

    /// Names it in the host's log.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next batch; none when there are no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Batch, Fault>> {
        self.batches.next().await
    }

    /// Goes on from another place. Nothing of the old window follows what comes then. A refusal leaves the
    /// subscription as it was.
    pub async fn reanchor(&mut self, anchor: Anchor) -> Result<(), Fault> {
        if let Some(batches) = self.anew(anchor).await? {
            self.batches = batches;
        }
        Ok(())
    }

    /// The batches from another place on, for who reads them elsewhere.
    pub(super) async fn anew(&mut self, anchor: Anchor) -> Result<Option<Rows>, Fault> {
        match &mut self.reanchor {
            Some(reanchor) => reanchor(anchor).await,
            None => Ok(None),
        }
    }

    /// Forgets how it is moved, for a client that cannot ask for it.
    pub(super) fn fixed(mut self) -> Self {
        self.reanchor = None;
        self
    }

    /// Ends it now. Dropping it does the same.
    pub fn close(self) {}
}

impl Drop for Sub {
    fn drop(&mut self) {
        if let Some(close) = self.close.take() {
            close();
        }
    }
}

impl fmt::Debug for Sub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sub").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why something is refused or ended, as a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Fault {
    /// Stable, for programs.
    pub code: &'static str,
    pub detail: String,
    /// What to do about it.
    pub fix: &'static str,
    pub blame: Blame,
    /// After how long it may go better; none when it will not.
    pub retry: Option<Duration>,
}

impl Fault {
    /// A fault of a kind of the table of problems; a code that is not there is `internal`.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        let kind = PROBLEMS.iter().find(|kind| kind.code == code);
        debug_assert!(kind.is_some(), "problem `{code}` is missing in PROBLEMS");
        Self {
            code: kind.map_or("internal", |kind| kind.code),
            detail: detail.into(),
            fix: kind.map_or("see the host's log", |kind| kind.fix),
            blame: kind.map_or(Blame::Host, |kind| kind.blame),
            retry: None,
        }
    }

    /// The host stops; another one, or this one later, answers.
    pub fn stopping() -> Self {
        let detail = "the host is stopping; nothing that was sent is lost";
        Self { retry: Some(limits::LIVE_RETRY_WAIT_MIN), ..Self::new("host_stopping", detail) }
    }

    /// When to come back, spread at random: clients that lose one host must not fall on the next together.
    pub fn retry_ms(&self) -> Option<u64> {
        let wait = self.retry?;
        let longest = wait.saturating_add(limits::LIVE_RETRY_SPREAD);
        Some(rand::random_range(millis(wait)..=millis(longest)))
    }

    /// The last frame before a close.
    pub fn frame(&self, retry_ms: Option<u64>) -> serde_json::Value {
        let Self { code, detail, fix, .. } = self;
        serde_json::json!({"op": "error", "code": code, "detail": detail, "fix": fix, "retry_ms": retry_ms})
    }

    /// The status that a WebSocket is closed with.
    pub fn close_code(&self) -> u16 {
        match (self.code, self.blame) {
            ("host_stopping", _) => 1001,
            ("websocket_malformed", _) => 1002,
            ("message_binary", _) => 1003,
            ("message_not_utf8", _) => 1007,
            ("live_message_bytes_max" | "channel_message_bytes_max", _) => 1009,
            (_, Blame::Host | Blame::Guest) => 1011,
            (_, Blame::Caller) => 1008,
        }
    }
}

pub(in super::super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Resolves when a connection has to end, with what its client is told: the host stops, a token is no longer good.
pub type Until = BoxFuture<'static, Fault>;

/// Ends with the host.
pub fn until_cancelled(stop: CancellationToken) -> Until {
    stop.cancelled_owned().map(|()| Fault::stopping()).boxed()
}

/// Takes server-sent events.
pub trait SseSink: Send {
    /// Told before each write: who writes to a socket ends it when this time passes without progress.
    fn arm(&mut self, within: Duration);

    /// Writes and flushes. Ready once more can be taken. What is dropped unfinished is never resumed.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>>;

    /// No more comes. Called once, at the end.
    fn close(&mut self);
}

/// A text message, in parts that are sent one behind the other.
#[derive(Clone, Debug)]
pub struct Text(pub [Bytes; 3]);

impl Text {
    pub fn whole(text: impl Into<Bytes>) -> Self {
        Self([text.into(), Bytes::new(), Bytes::new()])
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

/// What a client's socket gives.
#[derive(Debug)]
pub enum Incoming {
    Text(String),
    Binary(Bytes),
    /// A ping or a pong: somebody is there.
    Alive,
    /// A message over [`WsOptions::message_bytes_max`]. Nothing can be read after it.
    TooLarge,
    /// A text that is not UTF-8. Nothing can be read after it.
    NotUtf8,
    /// What is no WebSocket, and what it was. Nothing can be read after it.
    Malformed(String),
}

/// A WebSocket of a client.
pub trait WsConn: Send {
    /// The next message; none when the client is gone. Cancel-safe.
    fn recv(&mut self) -> BoxFuture<'_, Option<Incoming>>;

    /// Writes all messages, in order, and flushes once. What is dropped unfinished is never resumed.
    fn send<'a>(&'a mut self, messages: &'a [Text]) -> BoxFuture<'a, io::Result<()>>;

    fn ping(&mut self) -> BoxFuture<'_, io::Result<()>>;

    /// Closes in good order, and waits a moment for the client to do the same.
    fn close<'a>(&'a mut self, code: u16, reason: &'a str) -> BoxFuture<'a, ()>;

    /// Throws the connection away: the client takes nothing any more.
    fn cut(&mut self);
}

/// How an SSE connection is kept.
#[derive(Clone, Debug)]
pub struct SseOptions {
    /// Silence after which a comment is sent.
    pub heartbeat: Duration,
    /// A client that takes nothing for this long is ended.
    pub write_wait_max: Duration,
    /// Bytes after which what is ready waits for the next write.
    pub write_bytes: usize,
    /// Frames that come sooner after a write wait, and go together.
    pub write_pause: Duration,
}

impl Default for SseOptions {
    fn default() -> Self {
        Self {
            heartbeat: limits::SSE_HEARTBEAT,
            write_wait_max: limits::WRITE_WAIT_MAX,
            write_bytes: limits::LIVE_WRITE_BYTES,
            write_pause: limits::LIVE_WRITE_PAUSE,
        }
    }
}

/// Which of the two protocols a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WsProtocol {
    /// One subscription; each frame is a message.
    Single,
    /// `millrace.live.v1`: many, by the client's ids, with acknowledgements.
    Multi,
}

/// Checks a token that a client sends on an open socket.
pub type Authenticate = Arc<dyn Fn(String) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync>;

/// How a WebSocket is kept.
#[derive(Clone)]
pub struct WsOptions {
    pub protocol: WsProtocol,
    /// Silence of the host after which it pings. Two pings without any answer end the connection.
    pub heartbeat: Duration,
    pub write_wait_max: Duration,
    pub write_bytes: usize,
    pub write_pause: Duration,
    pub first_command_wait_max: Duration,
    pub message_bytes_max: usize,
    pub subscriptions_max: usize,
    /// None: tokens cannot be renewed on this socket.
    pub authenticate: Option<Authenticate>,
}

impl WsOptions {
    pub fn new(protocol: WsProtocol) -> Self {
        Self {
            protocol,
            heartbeat: limits::SSE_HEARTBEAT,
            write_wait_max: limits::WRITE_WAIT_MAX,
            write_bytes: limits::LIVE_WRITE_BYTES,
            write_pause: limits::LIVE_WRITE_PAUSE,
            first_command_wait_max: limits::LIVE_FIRST_COMMAND_WAIT_MAX,
            message_bytes_max: limits::LIVE_MESSAGE_BYTES_MAX,
            subscriptions_max: limits::LIVE_SUBSCRIPTIONS_MAX,
            authenticate: None,
        }
    }
}

impl fmt::Debug for WsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsOptions").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// How a connection came to a good end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It had to end, and the client was told why.
    Stopped(Fault),
    /// The subscription's stream was over.
    Ended,
    /// The client ended its subscription.
    Unsubscribed,
    /// The client went away.
    Disconnected,
}

/// How a connection came to a bad end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    #[error("the client took nothing for {0:?}")]
    Stalled(Duration),
    #[error("the client did not answer pings")]
    Silent,
    #[error("the connection broke: {0}")]
    Io(String),
    /// The client was told.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Broken {
    pub(super) fn io(error: &io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// What counts a connection's end.
pub(in super::super) fn cause(end: &Result<End, Broken>) -> &'static str {
    match end {
        Ok(End::Stopped(fault)) | Err(Broken::Fault(fault)) => fault.code,
        Ok(End::Ended) => "ended",
        Ok(End::Unsubscribed) => "unsubscribed",
        Ok(End::Disconnected) => "disconnected",
        Err(Broken::Stalled(_)) => "stalled",
        Err(Broken::Silent) => "silent",
        Err(Broken::Io(_)) => "broken",
    }
}
