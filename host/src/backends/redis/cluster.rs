//! A fleet on Redis or Valkey. One script does everything, by the server's time; reads that wait have connections of
//! their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::connect::ask;
use super::faults::{backend, remote};
use super::link::RedisLink;
use super::scripts::{CLUSTER, bytes, list, number, text};
use crate::cluster::{
    ClusterError, ClusterLimits, ControlBus, ControlMessage, Delta, DeltaBus, DeltaPage, Incarnation,
    MemberId, Membership, Result, View, within,
};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    CLUSTER_ANSWERS_KEEP, CLUSTER_ASK_MAX, CLUSTER_ASK_MIN, CLUSTER_READ_MAX, CLUSTER_READERS_MAX,
    REDIS_CHECK_EVERY,
};

/// Clones are the same fleet.
#[derive(Clone, Debug)]
pub struct RedisCluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: RedisLink,
    limits: ClusterLimits,
    prefix: Vec<u8>,
    /// Connections of reads that are over.
    readers: Mutex<Vec<MultiplexedConnection>>,
}

/// One entry of a member's streams.
struct Entry {
    sequence: u64,
    from: Incarnation,
    payload: Bytes,
}

impl RedisCluster {
    /// Connects when it is first used.
    pub fn new(link: RedisLink, limits: ClusterLimits) -> Self {
        let prefix = link.key("cluster:");
        Self { inner: Arc::new(Inner { link, limits, prefix, readers: Mutex::default() }) }
    }

    /// Runs the script for one member, and perhaps another: what came of it, and the rest.
    async fn run(
        &self,
        op: &'static str,
        who: (&MemberId, u64),
        other: Option<&Incarnation>,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Result<(String, Option<Value>)> {
        let inner = &self.inner;
        let mut linked = inner.link.shared().await?;
        let ttl = millis(inner.limits.ttl);
        let answered = CLUSTER
            .run(&mut linked.connection, &[&inner.prefix], |command| {
                command.arg(op).arg(who.0.as_str()).arg(who.1).arg(ttl);
                if let Some(other) = other {
                    command.arg(other.member.as_str()).arg(other.epoch);
                }
                fill(command);
            })
            .await
            .map_err(|error| backend(format_args!("the fleet, {op}"), &error));
        let answer = inner.link.ended(linked.number, answered).await?;
        let mut parts = list(answer).ok_or_else(odd)?.into_iter();
        let what = parts.next().as_ref().and_then(text).ok_or_else(odd)?.to_owned();
        let rest = parts.next();
        if what != "gone" {
            return Ok((what, rest));
        }
        let first = || Incarnation { member: who.0.clone(), epoch: who.1 };
        let second = rest.as_ref().and_then(number::<u64>) == Some(2);
        let who = other.filter(|_| second).cloned().unwrap_or_else(first);
        Err(ClusterError::Gone { who })
    }

    async fn of(
        &self,
        op: &'static str,
        me: &Incarnation,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Result<(String, Option<Value>)> {
        self.run(op, (&me.member, me.epoch), None, fill).await
    }

    /// Puts payloads into a stream of another member; the number of the last.
    async fn put(
        &self,
        op: &'static str,
        (from, to): (&Incarnation, &Incarnation),
        max: usize,
        payloads: &[Bytes],
    ) -> Result<u64> {
        let answer = self.run(op, (&from.member, from.epoch), Some(to), |command| {
            command.arg(max);
            payloads.iter().for_each(|payload| {
                command.arg(&payload[..]);
            });
        });
        let (what, rest) = answer.await?;
        let number = rest.as_ref().and_then(number::<u64>).ok_or_else(odd)?;
        if what == "full" {
            within("cluster_control_max", usize::try_from(number).unwrap_or(usize::MAX), max)?;
        }
        Ok(number)
    }

    /// How many entries a member's stream had before, and those after a number; waits for some. It has had fewer than the
    /// number when the server has lost the newest.
    async fn read(
        &self,
        me: &Incarnation,
        stream: &'static str,
        after: u64,
        wait: Duration,
    ) -> Result<(u64, Vec<Entry>)> {
        let end = Instant::now() + wait;
        loop {
            let (_, rest) = self.of("check", me, |_| {}).await?;
            let counts = rest.and_then(list).ok_or_else(odd)?;
            let count = |place: usize| counts.get(place).and_then(number::<u64>).ok_or_else(odd);
            let count = count(usize::from(stream == "delta"))?;
            if count < after {
                return Ok((count, Vec::new()));
            }
            let left = millis(end.saturating_duration_since(Instant::now()).min(REDIS_CHECK_EVERY));
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(CLUSTER_READ_MAX);
            if left > 0 {
                // It would wait for ever with 0.
                command.arg("BLOCK").arg(left);
            }
            command.arg("STREAMS").arg(self.inner.link.key(&format!("cluster:{stream}:{me}")));
            command.arg(format!("{after}-0"));
            let found = entries(self.blocking(&command).await?).ok_or_else(odd)?;
            let missing = stream == "delta" && count > after;
            if !found.is_empty() || missing || left == 0 {
                return Ok((count, found));
            }
        }
    }

    /// Runs a command that may wait, on a connection that nobody else uses meanwhile.
    async fn blocking(&self, command: &redis::Cmd) -> std::result::Result<Value, BackendError> {
        let readers = || self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = readers().pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.inner.link.own().await?,
        };
        let answer = ask(&mut connection, "waiting for what the fleet tells", command).await;
        let mut readers = readers();
        match &answer {
            // The others are of the same server.
            Err(_) => readers.clear(),
            Ok(_) if readers.len() < CLUSTER_READERS_MAX => readers.push(connection),
            Ok(_) => {}
        }
        answer
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An answer that the script never gives.
fn odd() -> BackendError {
    remote(RemoteFault::Unsupported, "the fleet: the answer has another shape")
}

/// The entries of an answer to XREAD of one stream.
fn entries(answer: Value) -> Option<Vec<Entry>> {
    if answer == Value::Nil {
        return Some(Vec::new());
    }
    let stream = list(answer)?.pop().and_then(list)?.pop().and_then(list)?;
    let entry = |value| {
        let mut parts = list(value)?;
        let fields = list(parts.pop()?)?;
        let sequence = text(parts.first()?)?.strip_suffix("-0")?.parse().ok()?;
        let member = MemberId::new(text(fields.get(1)?)?).ok()?;
        let from = Incarnation { member, epoch: number(fields.get(3)?)? };
        Some(Entry { sequence, from, payload: Bytes::copy_from_slice(bytes(fields.get(5)?)?) })
    };
    stream.into_iter().map(entry).collect()
}

impl Membership for RedisCluster {
    fn enter(&self, member: &MemberId) -> BoxFuture<'_, Result<Incarnation>> {
        let member = member.clone();
        async move {
            let (_, rest) = self.run("enter", (&member, 0), None, |_| {}).await?;
            let epoch = rest.as_ref().and_then(number).ok_or_else(odd)?;
            Ok(Incarnation { member, epoch })
        }
        .boxed()
    }

    fn heartbeat(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>> {
        let me = me.clone();
        async move { self.of("heartbeat", &me, |_| {}).await.map(|_| ()) }.boxed()
    }

    fn leave(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>> {
        let me = me.clone();
        async move {
            match self.of("leave", &me, |_| {}).await {
                Ok(_) | Err(ClusterError::Gone { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<View>> {
        async move {
            let nobody = MemberId::new("-")?;
            let (_, rest) = self.run("live", (&nobody, 0), None, |_| {}).await?;
            let parts = rest.and_then(list).ok_or_else(odd)?;
            let (epoch, alive) = parts.split_first().ok_or_else(odd)?;
            let member = |pair: &[Value]| {
                let member = MemberId::new(text(&pair[0])?).ok()?;
                Some(Incarnation { member, epoch: number(&pair[1])? })
            };
            let members = alive.chunks_exact(2).map(member).collect::<Option<Vec<_>>>();
            let mut members = members.ok_or_else(odd)?;
            members.sort();
            Ok(View { epoch: number(epoch).ok_or_else(odd)?, members })
        }
        .boxed()
    }
}

impl ControlBus for RedisCluster {
    fn send(&self, from: &Incarnation, to: &Incarnation, payload: Bytes) -> BoxFuture<'_, Result<u64>> {
        let (from, to) = (from.clone(), to.clone());
        async move {
            let limits = &self.inner.limits;
            limits.check_message(&payload)?;
            self.put("send", (&from, &to), limits.control_max, &[payload]).await
        }
        .boxed()
    }

    fn receive(
        &self,
        me: &Incarnation,
        after: u64,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<ControlMessage>>> {
        let me = me.clone();
        async move {
            let (count, found) = self.read(&me, "control", after, wait).await?;
            if count < after {
                // Numbers that it has handled would come again, for other messages.
                return Err(ClusterError::Gone { who: me });
            }
            let message = |Entry { sequence, from, payload }| ControlMessage { sequence, from, payload };
            Ok(found.into_iter().map(message).collect())
        }
        .boxed()
    }

    fn acknowledge(&self, me: &Incarnation, sequence: u64, answer: Bytes) -> BoxFuture<'_, Result<()>> {
        let me = me.clone();
        async move {
            self.inner.limits.check_message(&answer)?;
            let max = self.inner.limits.control_max;
            let done = self.of("acknowledge", &me, |command| {
                command.arg(sequence).arg(&answer[..]).arg(millis(CLUSTER_ANSWERS_KEEP)).arg(max);
            });
            done.await.map(|_| ())
        }
        .boxed()
    }

    fn answer(
        &self,
        to: &Incarnation,
        sequence: u64,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let (to, end) = (to.clone(), Instant::now() + wait);
        async move {
            let mut pause = CLUSTER_ASK_MIN;
            loop {
                let answer = self.of("answer", &to, |command| {
                    command.arg(sequence);
                });
                let (what, rest) = answer.await?;
                if what == "ok" {
                    let answer = rest.as_ref().and_then(bytes).ok_or_else(odd)?;
                    return Ok(Some(Bytes::copy_from_slice(answer)));
                }
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                tokio::time::sleep(pause.min(left)).await;
                pause = (pause * 2).min(CLUSTER_ASK_MAX);
            }
        }
        .boxed()
    }
}

impl DeltaBus for RedisCluster {
    fn publish(
        &self,
        from: &Incarnation,
        to: &Incarnation,
        deltas: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<u64>> {
        let (from, to) = (from.clone(), to.clone());
        async move {
            let limits = &self.inner.limits;
            limits.check_deltas(&deltas)?;
            self.put("publish", (&from, &to), limits.deltas_max, &deltas).await
        }
        .boxed()
    }

    fn deltas(&self, me: &Incarnation, after: u64, wait: Duration) -> BoxFuture<'_, Result<DeltaPage>> {
        let me = me.clone();
        async move {
            let (count, found) = self.read(&me, "delta", after, wait).await?;
            if count < after {
                return Ok(DeltaPage { lost: after - count, deltas: Vec::new(), next: count });
            }
            let delta = |Entry { sequence, from, payload }| Delta { sequence, from, payload };
            let deltas: Vec<Delta> = found.into_iter().map(delta).collect();
            let Some((first, last)) = deltas.first().zip(deltas.last()) else {
                // The server knows of more than it has.
                return Ok(DeltaPage { lost: count - after, deltas, next: count });
            };
            Ok(DeltaPage { lost: (first.sequence - after).saturating_sub(1), next: last.sequence, deltas })
        }
        .boxed()
    }
}
