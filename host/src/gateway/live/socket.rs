//! Serving subscriptions over a WebSocket, in both protocols.
//!
//! One task owns a socket: it reads a command or pulls batches, writes what came of it, and only then goes on. So
//! a client that does not read is not read from either, and its subscriptions are not pulled.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{AbortHandle, Abortable, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::commands::{self, Command, Request};
use super::meter::Meter;
use super::pulse::{Pulse, expired, in_time, leave};
use super::shell::{
    Anchor, Ask, Backend, Broken, End, Fault, Incoming, Rows, Sub, Text, Until, WsConn, WsOptions,
    WsProtocol, cause,
};
use crate::live::Batch;

/// Serves a client until it goes, breaks a rule that a socket cannot go on after, or `until` says so. Then all of
/// its subscriptions are closed, and the socket too. Dropping the future closes them without a word to the client.
pub async fn serve_ws(
    backend: Arc<dyn Backend>,
    conn: &mut dyn WsConn,
    options: &WsOptions,
    until: Until,
) -> Result<End, Broken> {
    let mut socket = Socket {
        backend,
        conn,
        options,
        until,
        open: Vec::new(),
        streams: SelectAll::new(),
        out: Vec::new(),
        out_bytes: 0,
        out_frames: 0,
        committed: None,
        told: None,
        serials: 0,
        begun: false,
        pulse: Pulse::default(),
        meter: Meter::new("websocket"),
    };
    let end = socket.serve().await;
    // Boxed, as all that is rare: most sockets only wait for rows and for their client, and are small then.
    Box::pin(socket.finish(end)).await
}

struct Socket<'a> {
    backend: Arc<dyn Backend>,
    conn: &'a mut dyn WsConn,
    options: &'a WsOptions,
    until: Until,
    /// By the client's ids; the empty one in the protocol with one subscription.
    /// Few, and mostly one: looked through, in the order in which they were opened.
    open: Vec<Open>,
    streams: SelectAll<Tagged>,
    /// What is written next.
    out: Vec<Text>,
    out_bytes: usize,
    out_frames: usize,
    /// The oldest commit in it.
    committed: Option<std::time::Instant>,
    /// When frames were last written.
    told: Option<Instant>,
    /// Tells the streams of one id apart: what an old one still gives is not passed on.
    serials: u64,
    /// A command has come.
    begun: bool,
    pulse: Pulse,
    meter: Meter,
}

/// A subscription whose batches come through [`Socket::streams`].
struct Open {
    id: Arc<str>,
    sub: Sub,
    head: Bytes,
    serial: u64,
    stop: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

/// A stream's items with its name. The end is an item too.
struct Tagged {
    id: Arc<str>,
    serial: u64,
    batches: Option<Abortable<Rows>>,
}

struct Item {
    id: Arc<str>,
    serial: u64,
    step: Option<Result<Batch, Fault>>,
}

impl Stream for Tagged {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let Some(batches) = &mut self.batches else { return Poll::Ready(None) };
        let step = std::task::ready!(batches.poll_next_unpin(context));
        if step.is_none() {
            self.batches = None;
        }
        Poll::Ready(Some(Item { id: Arc::clone(&self.id), serial: self.serial, step }))
    }
}

enum Happened {
    Over(Fault),
    Heard(Option<Incoming>),
    Came(Item),
    Late,
    Quiet,
    Due,
}

impl Socket<'_> {
    async fn serve(&mut self) -> Result<End, Broken> {
        let mut late = Some(Box::pin(sleep(self.options.first_command_wait_max)));
        let mut due: Option<Pin<Box<Sleep>>> = None;
        let quiet = sleep(self.options.heartbeat);
        tokio::pin!(quiet);
        loop {
            // Whatever arm is dropped loses nothing: `recv` and streams are cancel-safe.
            let happened = tokio::select! {
                fault = &mut self.until => Happened::Over(fault),
                heard = self.conn.recv() => Happened::Heard(heard),
                // While what has come waits for more, it is not looked at: it can be late, and not be much.
                Some(item) = self.streams.next(), if due.is_none() && !self.streams.is_empty() => {
                    Happened::Came(item)
                }
                () = expired(&mut late), if late.is_some() => Happened::Late,
                () = expired(&mut due), if due.is_some() => Happened::Due,
                () = &mut quiet => Happened::Quiet,
            };
            let came = matches!(happened, Happened::Came(_));
            let end = match happened {
                Happened::Over(fault) => Some(End::Stopped(fault)),
                Happened::Heard(None) => Some(End::Disconnected),
                Happened::Heard(Some(incoming)) => {
                    self.pulse.heard();
                    match Box::pin(self.heard(incoming)).await? {
                        // An acknowledgement does not travel alone if there are rows already.
                        None => self.gather(None)?,
                        end => end,
                    }
                }
                Happened::Came(item) => {
                    let end = self.gather(Some(item))?;
                    due = self.pause().filter(|_| end.is_none()).map(|until| Box::pin(sleep_until(until)));
                    end
                }
                Happened::Due => self.gather(None)?,
                Happened::Late => return Err(self.too_late().into()),
                Happened::Quiet => {
                    Box::pin(self.ping()).await?;
                    quiet.as_mut().reset(self.next_ping());
                    continue;
                }
            };
            if let Some(end) = end {
                return Ok(end);
            }
            if self.begun {
                late = None;
            }
            let waits = came && due.is_some();
            if !waits && !self.out.is_empty() {
                due = None;
                self.flush().await?;
                quiet.as_mut().reset(self.next_ping());
            }
        }
    }

    /// The last words, and the close.
    async fn finish(mut self, end: Result<End, Broken>) -> Result<End, Broken> {
        // Nothing more comes of them while the rest is said.
        self.open.clear();
        self.streams.clear();
        let last = match &end {
            Ok(End::Stopped(fault)) | Err(Broken::Fault(fault)) => Some(fault),
            _ => None,
        };
        if let Some(fault) = last {
            self.meter.refused(fault);
            self.push(commands::refused(None, fault, self.options.protocol), 1);
        }
        let said = if matches!(end, Err(Broken::Stalled(_) | Broken::Io(_)) | Ok(End::Disconnected)) {
            Ok(())
        } else {
            self.flush().await
        };
        let end = match (said, end) {
            (Err(broken), Ok(_)) => Err(broken),
            (_, end) => end,
        };
        leave(self.conn, &end).await;
        self.meter.ended(cause(&end));
        end
    }

    /// Does what a message asks for. Answers the end, when it was one.
    async fn heard(&mut self, incoming: Incoming) -> Result<Option<End>, Broken> {
        let max = self.options.message_bytes_max;
        let text = match incoming.readable("live_message_bytes_max", max)? {
            Incoming::Text(text) => text,
            Incoming::Binary(_) => {
                let fault = Fault::new("message_binary", "a message was binary; commands are text");
                return self.complain(None, fault);
            }
            _ => return Ok(None),
        };
        let Request { id, command } = match Request::parse(&text, self.options.protocol) {
            Ok(request) => request,
            Err((id, fault)) => return self.complain(id.as_deref(), fault),
        };
        let single = self.options.protocol == WsProtocol::Single;
        if single && !self.begun && !matches!(command, Command::Subscribe(_)) {
            let fault = Fault::new("command_invalid", "the first command must be `subscribe`");
            return Err(fault.into());
        }
        self.begun = true;
        match command {
            Command::Subscribe(ask) => self.subscribe(id, ask).await,
            Command::Reanchor(anchor) => self.reanchor(&id, anchor).await,
            Command::Unsubscribe => {
                if !self.drop_open(&id) {
                    return self.complain(Some(&id), no_such(&id));
                }
                if single {
                    return Ok(Some(End::Unsubscribed));
                }
                self.push(commands::acknowledged("unsubscribed", &id), 0);
                Ok(None)
            }
            Command::Ping { nonce } => {
                self.push(commands::pong(nonce.as_deref()), 0);
                Ok(None)
            }
            Command::Auth { token } => self.authenticate(token).await,
        }
    }

    async fn subscribe(&mut self, id: String, ask: Ask) -> Result<Option<End>, Broken> {
        let max = self.options.subscriptions_max;
        if self.open.iter().any(|open| *open.id == *id) {
            let detail = match self.options.protocol {
                WsProtocol::Single => "this socket has its subscription already".to_owned(),
                WsProtocol::Multi => format!("subscription `{id}` is open already"),
            };
            return self.complain(Some(&id), Fault::new("subscription_taken", detail));
        }
        if self.open.len() >= max {
            let detail = format!("{max} subscriptions are open; live_subscriptions_max is {max}");
            return self.complain(Some(&id), Fault::new("live_subscriptions_max", detail));
        }
        let backend = Arc::clone(&self.backend);
        let answer = tokio::select! {
            answer = backend.subscribe(ask) => answer,
            fault = &mut self.until => return Ok(Some(End::Stopped(fault))),
        };
        let mut sub = match answer {
            Ok(sub) => sub,
            Err(fault) => return self.complain(Some(&id), fault),
        };
        let id: Arc<str> = id.into();
        if self.options.protocol == WsProtocol::Multi {
            self.push(commands::acknowledged("subscribed", &id), 0);
        }
        let batches = std::mem::replace(&mut sub.batches, futures_util::stream::empty().boxed());
        let (serial, stop) = self.listen(&id, batches);
        let head = commands::batch_head(&id);
        self.open.reserve_exact(1);
        self.open.push(Open { id, sub, head, serial, stop });
        Ok(None)
    }

    async fn reanchor(&mut self, id: &str, anchor: Anchor) -> Result<Option<End>, Broken> {
        let Some(open) = self.open.iter_mut().find(|open| *open.id == *id) else {
            return self.complain(Some(id), no_such(id));
        };
        let answer = tokio::select! {
            answer = open.sub.anew(anchor) => answer,
            fault = &mut self.until => return Ok(Some(End::Stopped(fault))),
        };
        match answer {
            Err(fault) => return self.complain(Some(id), fault),
            Ok(None) => {}
            Ok(Some(batches)) => {
                let key: Arc<str> = id.into();
                let (serial, stop) = self.listen(&key, batches);
                if let Some(open) = self.open.iter_mut().find(|open| *open.id == *id) {
                    open.serial = serial;
                    std::mem::replace(&mut open.stop, stop).abort();
                }
            }
        }
        if self.options.protocol == WsProtocol::Multi {
            self.push(commands::acknowledged("reanchored", id), 0);
        }
        Ok(None)
    }

    async fn authenticate(&mut self, token: String) -> Result<Option<End>, Broken> {
        let Some(authenticate) = self.options.authenticate.clone() else {
            let fault = Fault::new("not_supported", "tokens cannot be renewed on an open socket here");
            return self.complain(None, fault);
        };
        let answer = tokio::select! {
            answer = authenticate(token) => answer,
            fault = &mut self.until => return Ok(Some(End::Stopped(fault))),
        };
        match answer {
            Ok(()) => {
                self.push(commands::authenticated(), 0);
                Ok(None)
            }
            Err(fault) => self.complain(None, fault),
        }
    }

    /// Where one bad message is not the end, it is answered; with one subscription an error is the last frame.
    fn complain(&mut self, id: Option<&str>, fault: Fault) -> Result<Option<End>, Broken> {
        if self.options.protocol == WsProtocol::Single {
            return Err(fault.into());
        }
        self.meter.refused(&fault);
        self.push(commands::refused(id, &fault, self.options.protocol), 1);
        Ok(None)
    }

    fn listen(&mut self, id: &Arc<str>, batches: Rows) -> (u64, AbortHandle) {
        self.serials += 1;
        let (batches, stop) = futures_util::stream::abortable(batches);
        self.streams.push(Tagged { id: Arc::clone(id), serial: self.serials, batches: Some(batches) });
        (self.serials, stop)
    }

    /// Takes all that is ready, up to the bound. Answers the end, when it came.
    fn gather(&mut self, first: Option<Item>) -> Result<Option<End>, Broken> {
        let mut next = first;
        loop {
            if let Some(item) = next
                && let Some(end) = self.came(item)?
            {
                return Ok(Some(end));
            }
            if self.out_bytes >= self.options.write_bytes {
                return Ok(None);
            }
            match self.streams.next().now_or_never() {
                Some(Some(item)) => next = Some(item),
                _ => return Ok(None),
            }
        }
    }

    fn came(&mut self, item: Item) -> Result<Option<End>, Broken> {
        let Item { id, serial, step } = item;
        let Some(open) = self.open.iter().find(|open| open.serial == serial) else { return Ok(None) };
        let several = self.options.protocol == WsProtocol::Multi;
        if let Some(Ok(batch)) = &step {
            self.committed = self.committed.or(batch.committed());
        }
        match step {
            Some(Ok(batch)) if several => {
                let message = commands::batch(&open.head, &batch);
                self.push(message, batch.len());
            }
            Some(Ok(batch)) => {
                for frame in batch.frames() {
                    self.push(Text::whole(frame), 1);
                }
            }
            Some(Err(fault)) => {
                self.drop_open(&id);
                return self.complain(Some(&id), fault);
            }
            None => {
                self.drop_open(&id);
                if !several {
                    return Ok(Some(End::Ended));
                }
                self.push(commands::acknowledged("unsubscribed", &id), 0);
            }
        }
        Ok(None)
    }

    /// Ends a subscription. Answers whether there was one.
    fn drop_open(&mut self, id: &str) -> bool {
        let before = self.open.len();
        self.open.retain(|open| *open.id != *id);
        self.open.len() < before
    }

    /// Until when frames wait for others; none when it is time.
    fn pause(&self) -> Option<Instant> {
        let until = self.told? + self.options.write_pause;
        (Instant::now() < until).then_some(until)
    }

    fn push(&mut self, message: Text, frames: usize) {
        self.out_bytes += message.len();
        self.out_frames += frames;
        self.out.push(message);
    }

    /// Writes what has gathered, in one go.
    async fn flush(&mut self) -> Result<(), Broken> {
        // Its memory is not kept: most sockets are idle most of the time.
        let out = std::mem::take(&mut self.out);
        if out.is_empty() {
            return Ok(());
        }
        let (bytes, frames) = (std::mem::take(&mut self.out_bytes), std::mem::take(&mut self.out_frames));
        let committed = self.committed.take();
        Box::pin(in_time(self.options.write_wait_max, self.conn.send(&out))).await?;
        // After a full write the next one has no reason to wait.
        self.told = (frames > 0 && bytes < self.options.write_bytes).then(Instant::now);
        self.meter.wrote(frames, bytes, committed);
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Broken> {
        self.pulse.ping(self.conn, self.options.write_wait_max).await
    }

    fn next_ping(&self) -> Instant {
        Instant::now() + self.options.heartbeat.max(Duration::from_millis(1))
    }

    fn too_late(&self) -> Fault {
        let wait = self.options.first_command_wait_max;
        let detail = format!("no command came for {wait:?}; live_first_command_wait_max is {wait:?}");
        Fault::new("live_first_command_wait_max", detail)
    }
}

fn no_such(id: &str) -> Fault {
    let id: String = id.chars().take(80).collect();
    Fault::new("subscription_unknown", format!("subscription `{id}` is not open"))
}
