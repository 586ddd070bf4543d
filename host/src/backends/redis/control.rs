//! A control feed on Redis or Valkey, and the board beside it. `lua/control/append.lua` says which keys there are.
//!
//! A version is the server's time in microseconds, or one more than the last. So none is ever given twice: not when the
//! server was emptied, not when it got back an older snapshot. Each entry names the version before it; a reader whose
//! place is older than that, or newer than all that the server knows of, is told `BehindRetention`, restores from a
//! snapshot and goes on at the place before the oldest entry. That is the same for entries that were trimmed, removed by
//! somebody else's command, or lost.
//!
//! What loses entries without a trace, an older snapshot that was written to before anybody read it, shows when hosts
//! compare themselves with the mark.

mod board;
mod entries;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::connect::Server;
use super::faults::{backend, remote};
use super::groups::Barrier;
use super::link::{Linked, RedisLink};
use super::options::{Durability, RedisAck};
use super::scripts::{CONTROL_APPEND, CONTROL_TRIM, Script, list, number, text};
use crate::control::{
    ControlEvent, ControlFeedError, ControlSink, ControlSource, ControlVersion, Polled, Result,
};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    CONTROL_POLL_EVENTS_MAX, REDIS_CHECK_EVERY, REDIS_CONTROL_IDS_MAX, REDIS_CONTROL_PAGE_MAX,
    REDIS_CONTROL_READERS_MAX, REDIS_CONTROL_TRIM_MAX,
};
use entries::Read;

/// Source, sink and board of one fleet. Connects when it is first used.
#[derive(Debug)]
pub struct RedisControl {
    link: RedisLink,
    ack: RedisAck,
    prefix: Vec<u8>,
    /// Connections of polls that are over.
    readers: Mutex<Vec<MultiplexedConnection>>,
    /// What an answer stands on, by the connection that it was looked up on.
    durability: Mutex<Option<(u64, Durability)>>,
    barrier: Barrier,
}

impl RedisControl {
    /// Keys begin with the link's name in braces, and `:control:`.
    pub fn new(link: RedisLink, ack: RedisAck) -> Self {
        let prefix = link.key("control:");
        let barrier = Barrier::new(link.clone(), ("control", "a control event"));
        Self { link, ack, prefix, readers: Mutex::default(), durability: Mutex::default(), barrier }
    }

    fn key(&self, rest: &str) -> Vec<u8> {
        [&self.prefix[..], rest.as_bytes()].concat()
    }

    async fn run(
        &self,
        script: &Script,
        doing: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> std::result::Result<(Value, Linked), BackendError> {
        let mut linked = self.link.shared().await?;
        let answer = script.run(&mut linked.connection, &[&self.prefix], fill).await;
        let answer = self.link.ended(linked.number, answer.map_err(|error| backend(doing, &error))).await?;
        Ok((answer, linked))
    }

    /// What an answer of this connection's server can stand on. A server that does not keep what it takes is refused.
    async fn durability(&self, linked: &Linked) -> std::result::Result<Durability, BackendError> {
        let known = *self.durability.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, durability)) = known.filter(|(number, _)| *number == linked.number) {
            return Ok(durability);
        }
        let server = Server::look(&mut linked.connection.clone()).await;
        let durability = self.link.ended(linked.number, server).await?.durability(self.ack)?;
        *self.durability.lock().unwrap_or_else(PoisonError::into_inner) = Some((linked.number, durability));
        Ok(durability)
    }

    async fn append_event(&self, event: &ControlEvent) -> Result<ControlVersion> {
        // Before anything is written: nothing is appended that could not be acknowledged.
        self.durability(&self.link.shared().await?).await?;
        let (digest, json) = (event.digest(), event.to_json());
        let (answer, linked) = self
            .run(&CONTROL_APPEND, "appending a control event", |command| {
                command.arg(event.id().as_str()).arg(&digest).arg(&json).arg(REDIS_CONTROL_IDS_MAX);
            })
            .await?;
        let parts = list(answer).unwrap_or_default();
        let (Some(what), Some(version)) = (parts.first().and_then(text), parts.get(1).and_then(number))
        else {
            return Err(odd().into());
        };
        if what == "taken" {
            return Err(ControlFeedError::EventIdTaken { event_id: event.id().to_string() });
        }
        // Of a repeat, too: who appended it first may have got no answer.
        let durability = self.durability(&linked).await?;
        self.barrier.reached(durability, &linked).await?;
        Ok(ControlVersion(version))
    }

    async fn read(&self, after: u64, limit: usize, wait: Duration) -> Result<Polled> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut read = self.once(after, limit, left.min(REDIS_CHECK_EVERY)).await?;
            if let Some(oldest) = read.is_behind(after) {
                return Err(ControlFeedError::BehindRetention { asked: after, oldest });
            }
            while let Some((last, rest)) = read.goes_on(limit) {
                let more = self.once(last, rest, Duration::ZERO).await?;
                if more.is_behind(last).is_some() || !read.add(more) {
                    break;
                }
            }
            // The time was measured before: whoever waits for none is asked once.
            if !read.entries.is_empty() || left.is_zero() {
                return Ok(read.polled());
            }
        }
    }

    /// One look at the feed, which waits for an entry where there is none.
    async fn once(
        &self,
        after: u64,
        limit: usize,
        wait: Duration,
    ) -> std::result::Result<Read, BackendError> {
        let events = self.key("events");
        let limit = limit.min(REDIS_CONTROL_PAGE_MAX);
        let mut commands = redis::pipe();
        commands.cmd("HGET").arg(self.key("meta")).arg("version");
        commands.cmd("XRANGE").arg(&events).arg("-").arg("+").arg("COUNT").arg(1);
        commands.cmd("XREVRANGE").arg(&events).arg("+").arg("-").arg("COUNT").arg(1);
        let read = commands.cmd("XREAD").arg("COUNT").arg(limit);
        if !wait.is_zero() {
            // It would wait for ever with 0.
            read.arg("BLOCK").arg(wait.as_millis().max(1).to_string());
        }
        // Whatever somebody else has put there under the same version was passed by with it.
        read.arg("STREAMS").arg(&events).arg(format!("{after}-{}", u64::MAX));
        let (given, first, last, read): (Value, Value, Value, Value) = self.waiting(&commands).await?;
        Read::new(&given, [first, last], read, limit).ok_or_else(odd)
    }

    /// Runs commands that may wait, on a connection that nobody else uses meanwhile.
    async fn waiting<T: redis::FromRedisValue>(
        &self,
        commands: &redis::Pipeline,
    ) -> std::result::Result<T, BackendError> {
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = readers().pop();
        let (mut connection, is_new) = match kept {
            Some(connection) => (connection, false),
            None => (self.link.own().await?, true),
        };
        let mut answer = commands.query_async(&mut connection).await;
        if answer.as_ref().is_err_and(redis::RedisError::is_unrecoverable_error) && !is_new {
            // It may have been cut alone, long ago.
            readers().clear();
            connection = self.link.own().await?;
            answer = commands.query_async(&mut connection).await;
        }
        let mut readers = readers();
        match &answer {
            // The others are of the same server.
            Err(_) => readers.clear(),
            Ok(_) if readers.len() < REDIS_CONTROL_READERS_MAX => readers.push(connection),
            Ok(_) => {}
        }
        answer.map_err(|error| backend("reading control events", &error))
    }
}

/// An answer that the scripts never give.
fn odd() -> BackendError {
    remote(RemoteFault::Unsupported, "the control feed: the answer has another shape")
}

impl ControlSource for RedisControl {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        self.read(after.0, limit.clamp(1, CONTROL_POLL_EVENTS_MAX), wait).boxed()
    }
}

impl ControlSink for RedisControl {
    fn name(&self) -> &'static str {
        "redis"
    }

    /// Repeats are known for ever, of the newest `REDIS_CONTROL_IDS_MAX` events.
    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        self.append_event(event).boxed()
    }

    /// Versions are times: so many events are told by the order of their ids.
    fn keeping(&self, through: ControlVersion, kept: u64) -> BoxFuture<'_, Result<ControlVersion>> {
        async move {
            let mut order = redis::cmd("ZREVRANGEBYSCORE");
            order.arg(self.key("order")).arg(through.0).arg(0).arg("LIMIT").arg(kept).arg(1);
            let found = list(self.ask(&order).await?).and_then(|mut ids| ids.pop());
            let Some(id) = found.as_ref().and_then(text) else { return Ok(ControlVersion(0)) };
            let known = self.ask(redis::cmd("HGET").arg(self.key("ids")).arg(id)).await?;
            let version = text(&known).and_then(|known| known.split(' ').next()?.parse().ok());
            Ok(ControlVersion(version.unwrap_or(0)))
        }
        .boxed()
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        async move {
            let mut gone = 0;
            loop {
                let (answer, _) = self
                    .run(&CONTROL_TRIM, "trimming control events", |command| {
                        command.arg(through.0).arg(REDIS_CONTROL_TRIM_MAX);
                    })
                    .await?;
                let counts = list(answer).unwrap_or_default();
                let count = |place: usize| counts.get(place).and_then(number::<u64>).ok_or_else(odd);
                gone += count(0)?;
                if count(1)? < REDIS_CONTROL_TRIM_MAX {
                    return Ok(gone);
                }
            }
        }
        .boxed()
    }
}
