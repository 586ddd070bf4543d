//! Stand-ins for both ends of the transport: backends made of channels, and sinks that remember.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, pending, ready};
use futures_util::{FutureExt, StreamExt};
use millrace::event::Revision;
use millrace::gateway::live::{
    Anchor, Ask, Backend, Broken, End, Fault, Incoming, Rows, SseSink, Sub, Text, Until, WsConn, WsOptions,
    serve_ws,
};
use millrace::live::{Batch, BatchBuilder};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long a test waits for what must happen. Reaching it is a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn frame(op: &str, key: &str, index: i64) -> String {
    format!(r#"{{"op":"{op}","agg_id":"{key}","version":7,"old_index":-1,"new_index":{index}}}"#)
}

pub(super) fn batch(names: &[(&'static str, &str)], token: Option<&str>) -> Batch {
    let mut builder = BatchBuilder::default();
    for (index, (op, key)) in names.iter().enumerate() {
        let index = i64::try_from(index).expect("few");
        builder.frame(op, |out| out.extend_from_slice(frame(op, key, index).as_bytes()));
    }
    builder.finish(token.map(str::to_owned), Revision(9))
}

pub(super) fn never() -> Until {
    pending().boxed()
}

pub(super) type Feed = mpsc::Sender<Result<Batch, Fault>>;

pub(super) fn feed() -> (Feed, Rows) {
    let (feed, mut receiver) = mpsc::channel(1_024);
    (feed, futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed())
}

/// What a sink was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) writes: Arc<Mutex<Vec<String>>>,
    pub(super) arms: Arc<AtomicUsize>,
    pub(super) closes: Arc<AtomicUsize>,
}

impl Told {
    pub(super) fn text(&self) -> String {
        self.writes.lock().expect("no panic").concat()
    }

    pub(super) fn count(&self) -> usize {
        self.writes.lock().expect("no panic").len()
    }

    /// The names of the events so far.
    pub(super) fn events(&self) -> Vec<String> {
        self.text().lines().filter_map(|line| line.strip_prefix("event: ").map(str::to_owned)).collect()
    }
}

/// An SSE client that fails at a write, or takes nothing from then on.
pub(super) struct Sink {
    pub(super) told: Told,
    pub(super) fail_at: usize,
    pub(super) stall_at: usize,
    pub(super) wrote: mpsc::Sender<()>,
}

impl Sink {
    pub(super) fn new() -> (Self, Told, mpsc::Receiver<()>) {
        let told = Told::default();
        let (wrote, writes) = mpsc::channel(10_000);
        (Self { told: told.clone(), fail_at: usize::MAX, stall_at: usize::MAX, wrote }, told, writes)
    }
}

impl SseSink for Sink {
    fn arm(&mut self, _within: Duration) {
        self.told.arms.fetch_add(1, Ordering::SeqCst);
    }

    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        let count = self.told.count();
        if count >= self.stall_at {
            return pending().boxed();
        }
        if count + 1 >= self.fail_at {
            return ready(Err(io::Error::other("gone"))).boxed();
        }
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        self.told.writes.lock().expect("no panic").push(text);
        // Not every test listens.
        let _ = self.wrote.try_send(());
        ready(Ok(())).boxed()
    }

    fn close(&mut self) {
        self.told.closes.fetch_add(1, Ordering::SeqCst);
    }
}

/// A subscription that a fake backend was asked for.
pub(super) struct Opened {
    pub(super) ask: Ask,
    pub(super) feed: Feed,
    /// Closed when the subscription is.
    pub(super) closed: mpsc::Receiver<()>,
    pub(super) anchors: mpsc::Receiver<(Anchor, Feed)>,
}

impl Opened {
    pub(super) async fn send(&self, names: &[(&'static str, &str)]) {
        self.feed.send(Ok(batch(names, Some("t")))).await.expect("somebody listens");
    }

    pub(super) async fn is_closed(&mut self) {
        let closed = tokio::time::timeout(PATIENCE, self.closed.recv()).await.expect("it is closed");
        assert_eq!(closed, None);
    }
}

/// Takes every query that is an object, and gives its other side to the test.
pub(super) struct Engine(mpsc::Sender<Opened>);

impl Engine {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Opened>) {
        let (sender, receiver) = mpsc::channel(1_024);
        (Arc::new(Self(sender)), receiver)
    }
}

impl Backend for Engine {
    fn subscribe(&self, ask: Ask) -> BoxFuture<'_, Result<Sub, Fault>> {
        if !ask.query.get().starts_with('{') {
            return ready(Err(Fault::new("query_invalid", "no object"))).boxed();
        }
        let (feed, rows) = feed();
        let (guard, closed) = mpsc::channel(1);
        let (moves, anchors) = mpsc::channel(16);
        self.0.try_send(Opened { ask, feed, closed, anchors }).expect("few subscriptions");
        let reanchor = move |anchor: Anchor| {
            if anchor.limit.is_some_and(|limit| limit < 0) {
                return ready(Err(Fault::new("query_invalid", "a negative limit"))).boxed();
            }
            let (feed, rows) = self::feed();
            moves.try_send((anchor, feed)).expect("few moves");
            ready(Ok(Some(rows))).boxed()
        };
        ready(Ok(Sub::new("sub", rows).on_reanchor(reanchor).on_close(move || drop(guard)))).boxed()
    }
}

/// The test's side of a fake WebSocket.
pub(super) struct Client {
    pub(super) say: Option<mpsc::Sender<Incoming>>,
    /// Each write with its messages; a close as `close CODE`, a cut as `cut`, a ping as `ping`.
    pub(super) heard: mpsc::Receiver<Vec<String>>,
    pub(super) served: JoinHandle<Result<End, Broken>>,
    pub(super) opened: mpsc::Receiver<Opened>,
}

pub(super) struct Conn {
    incoming: mpsc::Receiver<Incoming>,
    writes: mpsc::Sender<Vec<String>>,
    /// Writes after which nothing is taken.
    stall_after: usize,
}

impl Conn {
    fn note(&self, messages: Vec<String>) {
        // A test that has seen enough no longer listens.
        let _ = self.writes.try_send(messages);
    }
}

impl WsConn for Conn {
    fn recv(&mut self) -> BoxFuture<'_, Option<Incoming>> {
        self.incoming.recv().boxed()
    }

    fn send<'a>(&'a mut self, messages: &'a [Text]) -> BoxFuture<'a, io::Result<()>> {
        let Some(left) = self.stall_after.checked_sub(1) else { return pending().boxed() };
        self.stall_after = left;
        let text = |message: &Text| String::from_utf8(message.to_bytes()).expect("UTF-8");
        self.note(messages.iter().map(text).collect());
        ready(Ok(())).boxed()
    }

    fn ping(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.note(vec!["ping".into()]);
        ready(Ok(())).boxed()
    }

    fn close<'a>(&'a mut self, code: u16, _reason: &'a str) -> BoxFuture<'a, ()> {
        self.note(vec![format!("close {code}")]);
        ready(()).boxed()
    }

    fn cut(&mut self) {
        self.note(vec!["cut".into()]);
    }
}

impl Client {
    pub(super) fn connect(options: WsOptions) -> Self {
        Self::connect_until(options, never(), usize::MAX)
    }

    pub(super) fn connect_until(options: WsOptions, until: Until, stall_after: usize) -> Self {
        let (engine, opened) = Engine::new();
        let (say, incoming) = mpsc::channel(1_024);
        let (writes, heard) = mpsc::channel(10_000);
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and joins it")]
        let served = tokio::spawn(async move {
            let mut conn = Conn { incoming, writes, stall_after };
            serve_ws(engine, &mut conn, &options, until).await
        });
        Self { say: Some(say), heard, served, opened }
    }

    pub(super) async fn say(&self, text: &str) {
        self.say_this(Incoming::Text(text.to_owned())).await;
    }

    pub(super) async fn say_this(&self, incoming: Incoming) {
        self.say.as_ref().expect("connected").send(incoming).await.expect("it is read");
    }

    /// Subscribes, and gives the engine's side.
    pub(super) async fn subscribe(&mut self, command: &str) -> Opened {
        self.say(command).await;
        tokio::time::timeout(PATIENCE, self.opened.recv())
            .await
            .expect("in time")
            .expect("it reaches the backend")
    }

    /// The messages of the next write.
    pub(super) async fn write(&mut self) -> Vec<String> {
        tokio::time::timeout(PATIENCE, self.heard.recv())
            .await
            .expect("something is written")
            .unwrap_or_default()
    }

    /// The one message of the next write, which is JSON.
    pub(super) async fn message(&mut self) -> Value {
        let messages = self.write().await;
        let [message] = &messages[..] else { panic!("{messages:?}") };
        serde_json::from_str(message).unwrap_or_else(|error| panic!("{error}: {message}"))
    }

    pub(super) async fn end(&mut self) -> Result<End, Broken> {
        let served = tokio::time::timeout(PATIENCE, &mut self.served).await.expect("it ends");
        served.expect("without a panic")
    }

    /// What is written until the end.
    pub(super) async fn rest(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(messages) = self.heard.recv().await {
            all.extend(messages);
        }
        all
    }
}
