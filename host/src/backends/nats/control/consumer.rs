//! Reading through the durable consumer of this host.
//!
//! One subscription takes what all requests for more bring, and one request at a time is open at the server. Both stay
//! when a poll is over or dropped, so nothing that the server hands out is lost with it. The server counts what it hands
//! out; when a count is missing, or a connection was lost, the consumer is made again where this host is.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::debug;

use super::{NatsControl, nanos};
use crate::backends::nats::api::{
    CONSUMER_NOT_FOUND, ConsumerInfo, Place, Refusal, STREAM_NOT_FOUND, StreamInfo,
};
use crate::backends::nats::link::{Linked, remote};
use crate::backends::nats::names::Names;
use crate::control::{ControlEvent, ControlFeedError, ControlVersion, Polled, Received, Result};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    NATS_ACKS_WAITING_MAX, NATS_ANSWER_WAIT_MAX, NATS_ATTACH_TRIES_MAX, NATS_CONSUMER_IDLE_MAX,
    NATS_PULL_MAX, NATS_PULL_WAIT, NATS_RETRY_WAIT_MIN, NATS_STREAM_LOOK_EVERY,
};

/// A way to the consumer on one connection.
#[derive(Debug)]
pub(super) struct Consumer {
    /// The connection's.
    number: u64,
    inbox: String,
    messages: Subscriber,
    request: Option<Request>,
    /// What the server counts next; none before the first.
    next: Option<u64>,
    /// The newest of the stream that there was nothing before any more.
    looked: u64,
}

/// A request for more that the server has.
#[derive(Debug)]
struct Request {
    until: Instant,
    left: usize,
}

/// What a poll asks for.
struct Wanted {
    after: u64,
    limit: usize,
    /// What the stream had a moment ago.
    newest: u64,
    end: Instant,
}

/// What came of a turn of reading.
enum Turn {
    Answer(Vec<Received>),
    /// The time of a request is over: the stream is looked at again.
    Again,
    /// The consumer is gone, or what it has handed out: it is made again.
    Lost(&'static str),
}

/// What a message was.
enum Heard {
    /// An entry; the last of those that there are, or not.
    Entry {
        last: bool,
    },
    /// The server has forgotten the request.
    Over,
    /// It does not take one now.
    Busy,
    Nothing,
    Lost(&'static str),
}

type Asked<T> = std::result::Result<T, BackendError>;

const LOOKING: &str = "looking at the consumer";

impl NatsControl {
    pub(super) async fn read(&self, after: u64, limit: usize, wait: Duration) -> Result<Polled> {
        let end = Instant::now() + wait;
        // The sink of this host goes on above that, whatever the stream has.
        self.learn(after);
        let mut slot = self.consumer.lock().await;
        let mut tries = 0;
        loop {
            let linked = self.link.linked().await?;
            let Some(info) = self.stream_at(&linked, after).await? else {
                // Nobody has published yet.
                *slot = None;
                if Instant::now() >= end {
                    return Ok(Polled::default());
                }
                tokio::time::sleep_until(end.min(Instant::now() + NATS_STREAM_LOOK_EVERY)).await;
                continue;
            };
            self.pass_broken(&linked, after).await?;
            let fits = slot.as_ref().is_some_and(|consumer| consumer.number == linked.number);
            if !fits || !self.held().covers(after) {
                let again = fits || tries > 0;
                // A stream that is removed right now has no consumer any more.
                *slot = self.attach(&linked, after, again).await?;
            }
            let why = match slot.as_mut() {
                None => "the stream was removed",
                Some(consumer) => {
                    let wanted = Wanted { after, limit, newest: info.state.last_seq, end };
                    match self.turn(consumer, &linked, &wanted).await? {
                        Turn::Answer(events) => return self.polled(&linked, info, after, events).await,
                        Turn::Again => continue,
                        Turn::Lost(why) => why,
                    }
                }
            };
            *slot = None;
            tries += 1;
            debug!(why, "the consumer of control events is made again");
            if tries >= NATS_ATTACH_TRIES_MAX {
                let detail =
                    format_args!("the consumer {} is lost again and again: {why}", self.names.consumer);
                return Err(remote(RemoteFault::Unreachable, detail).into());
            }
        }
    }

    /// The stream, if this host's place is in it.
    async fn stream_at(&self, linked: &Linked, after: u64) -> Result<Option<StreamInfo>> {
        let info = linked.stream(&self.names.stream).await?;
        let behind = match &info {
            Some(info) => info.is_behind(after),
            None => (after > 0).then_some(1),
        };
        match behind {
            Some(oldest) => Err(ControlFeedError::BehindRetention { asked: after, oldest }),
            None => Ok(info),
        }
    }

    async fn polled(
        &self,
        linked: &Linked,
        info: StreamInfo,
        after: u64,
        events: Vec<Received>,
    ) -> Result<Polled> {
        let mut last = after;
        let mut new = events.iter().map(|event| event.version().0).filter(|version| *version > after);
        let hole = new.any(|version| std::mem::replace(&mut last, version) + 1 != version);
        // Between the look at the stream and the reading some may have been removed.
        let info = if hole { self.stream_at(linked, after).await?.unwrap_or(info) } else { info };
        let newest = events.iter().map(|event| event.version().0).max().unwrap_or(0).max(info.newest());
        self.shows(newest);
        Ok(Polled { events, oldest: ControlVersion(info.oldest()), newest: ControlVersion(newest) })
    }

    async fn pass_broken(&self, linked: &Linked, after: u64) -> Asked<()> {
        let passed = self.held().passed(after);
        for (version, reply) in passed {
            linked.ask("passing an entry by", reply, None, Bytes::from_static(b"+ACK")).await?;
            self.held().acknowledged(version);
        }
        Ok(())
    }

    /// Reads until there is something to answer, or the time is over.
    async fn turn(&self, consumer: &mut Consumer, linked: &Linked, wanted: &Wanted) -> Asked<Turn> {
        let Wanted { after, limit, newest, end } = *wanted;
        let patience = Instant::now() + NATS_ANSWER_WAIT_MAX;
        loop {
            let (waiting, reached, full) = {
                let held = self.held();
                (held.waiting(after), held.reached(), held.len() >= NATS_ACKS_WAITING_MAX)
            };
            let now = Instant::now();
            // What the server has is waited for; it comes at once.
            let whole = reached.max(consumer.looked) >= newest;
            let until = if whole && waiting == 0 { end } else { patience };
            if waiting >= limit || ((whole || full) && waiting > 0) || now >= until {
                if waiting > 0 || now >= end {
                    return Ok(Turn::Answer(self.held().answer(after, limit)));
                }
                // It may have been removed, or others have to be acknowledged before.
                consumer.looked = consumer.looked.max(newest);
                continue;
            }
            let open = match &consumer.request {
                Some(request) => request.until,
                None => {
                    // Where there is no consumer a request for more gets no answer.
                    if !self.has_consumer(linked).await? {
                        return Ok(Turn::Lost("it was removed"));
                    }
                    let left = end.max(patience).saturating_duration_since(now);
                    consumer.open(linked, &self.names, limit - waiting, left).await?
                }
            };
            let silent = open + NATS_ANSWER_WAIT_MAX;
            let heard = tokio::select! {
                // What came while nobody polled is read before the time is looked at. Nothing is lost with either.
                biased;
                message = consumer.messages.next() => match message {
                    Some(message) => self.hear(consumer, message),
                    None => Heard::Lost("the subscription ended"),
                },
                error = linked.lost() => return Err(error),
                () = tokio::time::sleep_until(until.min(silent)) => {
                    if until < silent { Heard::Nothing } else { Heard::Lost("it does not answer") }
                }
            };
            match heard {
                Heard::Entry { last: true } => consumer.looked = consumer.looked.max(newest),
                Heard::Entry { last: false } | Heard::Nothing => {}
                Heard::Over => {
                    consumer.request = None;
                    if waiting == 0 && Instant::now() < end {
                        return Ok(Turn::Again);
                    }
                }
                Heard::Busy => {
                    consumer.request = None;
                    tokio::time::sleep(NATS_RETRY_WAIT_MIN).await;
                }
                Heard::Lost(why) => return Ok(Turn::Lost(why)),
            }
        }
    }

    async fn consumer_info(&self, linked: &Linked) -> Asked<std::result::Result<ConsumerInfo, Refusal>> {
        let (stream, name) = (&self.names.stream, &self.names.consumer);
        linked.api(LOOKING, format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await
    }

    async fn has_consumer(&self, linked: &Linked) -> Asked<bool> {
        match self.consumer_info(linked).await? {
            Ok(_) => Ok(true),
            Err(refusal) if [CONSUMER_NOT_FOUND, STREAM_NOT_FOUND].contains(&refusal.err_code) => Ok(false),
            Err(refusal) => Err(refusal.into_error(LOOKING)),
        }
    }

    fn hear(&self, consumer: &mut Consumer, message: Message) -> Heard {
        let said = message.description.as_deref().unwrap_or_default().to_lowercase();
        match message.status.map(|status| status.as_u16()) {
            None | Some(200) => {}
            Some(100) => return Heard::Nothing,
            Some(404 | 408) => return Heard::Over,
            Some(409) if said.contains("deleted") => return Heard::Lost("the consumer was removed"),
            Some(409) => return Heard::Busy,
            _ => return Heard::Lost("the consumer is not there"),
        }
        let Some((reply, place)) = message.reply.as_ref().and_then(|reply| Some((reply, Place::of(reply)?)))
        else {
            return Heard::Nothing;
        };
        if consumer.next.is_some_and(|next| place.delivery != next) {
            return Heard::Lost("something that it has handed out did not arrive");
        }
        consumer.next = Some(place.delivery + 1);
        if let Some(request) = &mut consumer.request {
            request.left = request.left.saturating_sub(1);
            if request.left == 0 {
                consumer.request = None;
            }
        }
        self.held().take(received(place.sequence, &message), reply.to_string());
        Heard::Entry { last: place.pending == 0 }
    }

    /// Subscribes, and makes sure that the consumer hands out what comes after a place. None without a stream.
    async fn attach(&self, linked: &Linked, after: u64, again: bool) -> Asked<Option<Consumer>> {
        let (stream, name) = (&self.names.stream, &self.names.consumer);
        let found = match self.consumer_info(linked).await? {
            Ok(info) => Some(info),
            Err(refusal) if refusal.err_code == CONSUMER_NOT_FOUND => None,
            Err(refusal) if refusal.err_code == STREAM_NOT_FOUND => return Ok(None),
            Err(refusal) => return Err(refusal.into_error(LOOKING)),
        };
        let config = self.config(after);
        let reached = self.held().reached().max(after);
        // What it has handed out beyond that, it would keep back until its time to be acknowledged is over.
        let keeps = |info: &ConsumerInfo| {
            let same = ["ack_wait", "max_ack_pending", "ack_policy"]
                .iter()
                .all(|name| info.config[name] == config[name]);
            same && self.held().covers(after) && info.delivered.stream_seq <= reached
        };
        match &found {
            Some(info) if !again && keeps(info) => {
                if self.held().reached() == 0 {
                    self.held().begin(after);
                }
            }
            found => {
                // What was not acknowledged comes again, too.
                let from = found.as_ref().map_or(after, |info| info.floor().min(after));
                if found.is_some() {
                    let subject = format!("CONSUMER.DELETE.{stream}.{name}");
                    // One that is gone is what is wanted.
                    let _: std::result::Result<Value, _> =
                        linked.api("removing the consumer", subject, &json!({})).await?;
                }
                let doing = "making the consumer";
                let body = json!({ "stream_name": stream, "config": self.config(from) });
                let made =
                    linked.api::<Value>(doing, format!("CONSUMER.CREATE.{stream}.{name}"), &body).await?;
                made.map_err(|refusal| refusal.into_error(doing))?;
                self.held().begin(from);
            }
        }
        let inbox = linked.client.new_inbox();
        let failed = |error| remote(RemoteFault::Unreachable, format_args!("subscribing: {error}"));
        let messages = linked.client.subscribe(inbox.clone()).await.map_err(failed)?;
        let number = linked.number;
        Ok(Some(Consumer { number, inbox, messages, request: None, next: None, looked: 0 }))
    }

    fn config(&self, after: u64) -> Value {
        json!({
            "durable_name": self.names.consumer,
            "name": self.names.consumer,
            "description": "control events for one host",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "explicit",
            "ack_wait": nanos(self.options.ack_wait),
            "max_ack_pending": NATS_ACKS_WAITING_MAX,
            "max_deliver": -1,
            "replay_policy": "instant",
            "inactive_threshold": nanos(NATS_CONSUMER_IDLE_MAX),
        })
    }
}

impl Consumer {
    /// Asks for more; until when the server knows of it.
    async fn open(
        &mut self,
        linked: &Linked,
        names: &Names,
        wanted: usize,
        left: Duration,
    ) -> Asked<Instant> {
        let doing = "asking for control events";
        let (expires, left) =
            (left.clamp(NATS_RETRY_WAIT_MIN, NATS_PULL_WAIT), wanted.clamp(1, NATS_PULL_MAX));
        let body = Bytes::from(json!({ "batch": left, "expires": nanos(expires) }).to_string());
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", names.stream, names.consumer);
        let until = Instant::now() + expires;
        let sending = linked.client.publish_with_reply(subject, self.inbox.clone(), body);
        match tokio::time::timeout(NATS_ANSWER_WAIT_MAX, sending).await {
            Ok(Ok(())) => {
                self.request = Some(Request { until, left });
                Ok(until)
            }
            Ok(Err(error)) => Err(remote(RemoteFault::Unreachable, format_args!("{doing}: {error}"))),
            Err(_) => Err(linked.late(doing)),
        }
    }
}

fn received(sequence: u64, message: &Message) -> Received {
    let version = ControlVersion(sequence);
    let name = || {
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
        id.map_or_else(|| message.subject.to_string(), |id| id.as_str().to_owned())
    };
    match std::str::from_utf8(&message.payload).map(ControlEvent::parse) {
        Ok(Ok(event)) => Received::Event { version, event },
        // Whoever applies it tells of it, with its code.
        Ok(Err(error)) => Received::refused(version, name(), &error),
        Err(_) => Received::unreadable(version, name(), "the message is no text"),
    }
}
