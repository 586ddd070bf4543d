//! The one reader of a host: it hears from the feed what other hosts have changed, and has followers here told of it.
//!
//! It says what a channel is, and not what has happened: it reads those that somebody uses here, waits until what it has
//! read has come to stay, and publishes it. What the feed has lost, or a connection that broke, makes it read all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;
use tracing::warn;

use super::Shared;
use super::records::{Stamp, shape};
use crate::backends::redis::faults::backend;
use crate::backends::redis::scripts::{list, number, text};
use crate::channels::{ChannelId, ChannelName, ProcessId, ProcessName, ReadLimit};
use crate::error::{BackendError, Classify as _};
use crate::event::{Position, TenantId};
use crate::limits::{
    CHANNEL_TAIL_BYTES_MAX, CHANNEL_TAIL_ENTRIES_MAX, REDIS_CHANNELS_REFRESH_MAX, REDIS_CHECK_EVERY,
    REDIS_READ_ENTRIES_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN,
};
use crate::tasks::TaskError;

type Read<T> = Result<T, BackendError>;

/// Entries of the feed by their numbers; none for a kind that this version does not know.
type Heard = Vec<(u64, Option<Told>)>;

pub(super) struct Reader {
    shared: Arc<Shared>,
    /// The code of what was written to the host's log last: a server that is away is away once.
    told: Option<&'static str>,
}

/// Something that the feed tells.
#[derive(Debug)]
struct Told {
    count: u64,
    kind: String,
    process: ProcessId,
    channel: Option<ChannelName>,
    newest: Position,
    incarnation: String,
    tag: String,
}

impl Told {
    /// None for a shape that this version does not know.
    fn read(entry: Value) -> Option<(u64, Option<Self>)> {
        let mut parts = list(entry)?;
        let fields = list(parts.pop()?)?;
        let count = text(parts.first()?)?.strip_suffix("-0")?.parse().ok()?;
        let field = |place: usize| fields.get(place * 2 + 1).and_then(text);
        let told = || {
            let (tenant, name) = field(1)?.split_once(':')?;
            let process =
                ProcessId { tenant: TenantId::new(tenant).ok()?, name: ProcessName::new(name).ok()? };
            Some(Self {
                count,
                kind: field(0)?.to_owned(),
                process,
                channel: ChannelName::new(field(2)?).ok(),
                newest: Position(field(3)?.parse().ok()?),
                incarnation: field(4)?.to_owned(),
                tag: field(5)?.to_owned(),
            })
        };
        Some((count, told()))
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, told: None }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) -> Result<(), TaskError> {
        self.shared.wake.notified().await;
        let mut wait = REDIS_RETRY_WAIT_MIN;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.session().await {
                if self.told != Some(error.code()) {
                    self.told = Some(error.code());
                    warn!(error.kind = error.code(), error.blame = "host", %error, "the feed of channels on Redis is not read");
                }
                if begun.elapsed() > REDIS_RETRY_WAIT_MAX {
                    wait = REDIS_RETRY_WAIT_MIN;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
            }
        }
    }

    /// Reads on one connection until it breaks.
    async fn session(&mut self) -> Read<()> {
        let mut connection = self.shared.link.own().await?;
        let mut reached = self.catch_up().await?;
        self.told = None;
        loop {
            let Some(told) = self.next(&mut connection, &reached).await? else {
                reached = self.catch_up().await?;
                continue;
            };
            if let Some(last) = told.last() {
                reached.count = last.0;
            }
            let told = told.into_iter().filter_map(|(_, told)| told);
            // What this host has appended it tells by itself; who changes a process may leave before.
            let own = |told: &Told| told.kind == "a" && told.tag.starts_with(&self.shared.host);
            self.hear(reached.life, told.filter(|told| !own(told)).collect()).await?;
            self.look().await?;
        }
    }

    /// Goes on where the feed is now. Everything that somebody uses here is read again.
    async fn catch_up(&self) -> Read<Stamp> {
        let answer = self.shared.reached().await?;
        let used = self.shared.tails.outdate_all().into_iter().map(|channel| channel.process);
        let used: BTreeSet<ProcessId> = used.collect();
        self.all(used, |id| self.refresh(id)).await?;
        Ok(answer.stamp)
    }

    /// Waits for what comes next in the feed; none where something is missing. What the server says beforehand of how far
    /// it is shows that: it was emptied or went back, it has lost the end of the feed, or this host was too slow.
    async fn next(&self, connection: &mut MultiplexedConnection, reached: &Stamp) -> Read<Option<Heard>> {
        let mut commands = redis::pipe();
        let key = |rest: &[u8]| [&self.shared.keys.channels[..], rest].concat();
        commands.cmd("HMGET").arg(key(b"meta")).arg("id").arg("count");
        let read = commands.cmd("XREAD").arg("COUNT").arg(REDIS_READ_ENTRIES_MAX);
        read.arg("BLOCK").arg(REDIS_CHECK_EVERY.as_millis().to_string());
        read.arg("STREAMS").arg(key(b"feed")).arg(format!("{}-0", reached.count));
        let (before, answer): (Vec<Value>, Value) = commands
            .query_async(connection)
            .await
            .map_err(|error| backend("reading the feed of channels", &error))?;
        let [id, count] = &before[..] else { return Err(shape()) };
        let there: u64 = number(count).unwrap_or_default();
        if text(id) != Some(&*reached.id) || there < reached.count {
            return Ok(None);
        }
        let mut told = Heard::new();
        if answer != Value::Nil {
            let feed = list(answer).and_then(|mut feeds| feeds.pop()).and_then(list);
            let entries = feed.and_then(|mut feed| feed.pop()).and_then(list).ok_or_else(shape)?;
            for entry in entries {
                told.push(Told::read(entry).ok_or_else(shape)?);
            }
        }
        let first = told.first().map(|(count, _)| *count);
        let whole = match first {
            Some(first) => first == reached.count + 1,
            None => there == reached.count,
        };
        Ok(whole.then_some(told))
    }

    /// What has been done in a life of the store.
    async fn hear(&self, life: u64, all: Vec<Told>) -> Read<()> {
        let mut removed = Vec::new();
        let (mut changed, mut grown) = (BTreeSet::new(), BTreeMap::new());
        for told in all {
            let at = (life, told.count);
            match (told.kind.as_str(), told.channel) {
                ("a", Some(name)) => {
                    let id = ChannelId { process: told.process, name };
                    match self.shared.tails.outdate(&id) {
                        Some(live) => drop(grown.insert(id, (live, told.newest))),
                        None => self.shared.outdate(&id, at),
                    }
                }
                ("r", _) => removed.push((told.process, told.incarnation, at)),
                _ if self.shared.uses(&told.process, at) => drop(changed.insert(told.process)),
                _ => {}
            }
        }
        if !removed.is_empty() {
            // That it is gone has to stay, too.
            let answer = self.shared.reached().await?;
            if answer.stamp.life != life {
                return Ok(());
            }
            self.shared.settled(&answer).await?;
            for (id, incarnation, at) in removed {
                self.shared.gone(&id, Some(&incarnation), at);
            }
        }
        self.all(changed, |id| self.refresh(id)).await?;
        let behind = grown
            .into_iter()
            .filter(|(_, (live, newest))| live.head().is_none_or(|head| head.channel.newest < *newest));
        let behind = behind.map(|(id, (live, _))| {
            let known = live.head().map(|head| head.channel.newest);
            (id, known.filter(|_| live.subscribers() > 0))
        });
        self.all(behind, |(id, known)| self.follow(id, known)).await
    }

    /// Does something for some, a few at a time.
    async fn all<T, F: Future<Output = Read<()>>>(
        &self,
        of: impl IntoIterator<Item = T>,
        each: impl Fn(T) -> F,
    ) -> Read<()> {
        let work = stream::iter(of.into_iter().map(each));
        work.buffer_unordered(REDIS_CHANNELS_REFRESH_MAX).try_for_each(|()| async { Ok(()) }).await
    }

    /// Tells followers here how a process is now with its channels. Entries they read themselves.
    async fn refresh(&self, id: ProcessId) -> Read<()> {
        let (record, _, answer) = self.shared.look_up(&id).await?;
        let Some(record) = record else { return Ok(()) };
        self.shared.settled(&answer).await?;
        self.shared.publish_view(&id, &record.incarnation, &record.view());
        Ok(())
    }

    /// Tells followers here what a channel has after what they know; where nobody follows it, how it is.
    async fn follow(&self, id: ChannelId, known: Option<Position>) -> Read<()> {
        let entries = if known.is_some() { CHANNEL_TAIL_ENTRIES_MAX } else { 0 };
        let limit = ReadLimit { entries, bytes: CHANNEL_TAIL_BYTES_MAX };
        let stretch = self.shared.stretch(&id, known.unwrap_or_default(), limit, 0).await?;
        let (Some(record), Some(page)) = (stretch.record, stretch.page) else { return Ok(()) };
        self.shared.settled(&stretch.answer).await?;
        // With a hole they would be of no use.
        let whole = page.missed == 0 && page.next == page.newest;
        let entries = if whole { &page.entries[..] } else { &[] };
        self.shared.publish(&id, &record.incarnation, page.head, entries);
        Ok(())
    }

    /// Looks after what somebody on this host has left open.
    async fn look(&self) -> Read<()> {
        let looks = std::mem::take(&mut *self.shared.looks.lock().unwrap_or_else(PoisonError::into_inner));
        for id in &looks {
            // What nobody uses now is read again by whoever does.
            let _ = self.shared.uses(id, (0, 0));
        }
        self.all(looks, |id| self.refresh(id)).await
    }
}
