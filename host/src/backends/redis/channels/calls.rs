//! Calls to the server: over lost connections, and with what the host knows of the store.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use metrics::counter;
use redis::Value;
use tokio::time::Instant;
use tracing::warn;

use super::Shared;
use super::records::{Record, Stamp, shape};
use crate::backends::redis::connect::Server;
use crate::backends::redis::faults::{backend, ends_session};
use crate::backends::redis::link::Linked;
use crate::backends::redis::options::Durability;
use crate::backends::redis::scripts::{CHANNEL_READ, Script, list, number, text};
use crate::channels::ProcessId;
use crate::error::BackendError;
use crate::limits::{
    REDIS_CHANNELS_CALL_WAIT_MAX, REDIS_CHANNELS_FEED_MAX, REDIS_RETRY_WAIT_MAX, REDIS_RETRY_WAIT_MIN,
};
use crate::telemetry::metrics as names;

type Called<T> = Result<T, BackendError>;

/// What a script answered, and where.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) said: Said,
    pub(super) stamp: Stamp,
    pub(super) parts: Vec<Value>,
    pub(super) linked: Linked,
    pub(super) durability: Durability,
    /// A call before may have been carried out without an answer.
    pub(super) again: bool,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Done,
    /// Something else was there than expected.
    Changed,
    /// The lease is another one by now.
    Fenced,
    /// Some entries were appended before.
    Repeated,
    /// The log has other last known values of fields.
    Moved,
    /// The log is another one, or has other change scopes.
    OtherLog,
}

impl Said {
    fn read(code: &str) -> Option<Self> {
        Some(match code {
            "ok" => Self::Done,
            "changed" => Self::Changed,
            "fenced" => Self::Fenced,
            "repeated" => Self::Repeated,
            "moved" => Self::Moved,
            "log" => Self::OtherLog,
            _ => return None,
        })
    }
}

impl Answer {
    pub(super) fn done(&self) -> bool {
        self.said == Said::Done
    }

    /// Whether what it says has come to stay as far as it ever does.
    pub(super) fn lasts(&self) -> bool {
        matches!(self.durability, Durability::Memory | Durability::AppendAlways)
    }

    /// The first part that was not taken yet.
    pub(super) fn next(&mut self) -> Called<Value> {
        if self.parts.is_empty() { Err(shape()) } else { Ok(self.parts.remove(0)) }
    }
}

/// What the keys of a process have in their names. A tenant has no colon, so it is taken apart in one way.
pub(super) fn key_of(id: &ProcessId) -> String {
    format!("{}:{}", id.tenant, id.name)
}

impl Shared {
    /// What a call is known by. No other call has it.
    pub(super) fn tag(&self) -> String {
        format!("{}{:x}", self.host, self.calls.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Stamp> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a script once. `fill` adds its own arguments.
    pub(super) async fn once(
        &self,
        script: &Script,
        tag: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Called<Answer> {
        self.once_on(&[&self.keys.channels, &self.keys.meta], script, tag, fill).await
    }

    /// The same on other keys.
    pub(super) async fn once_on(
        &self,
        keys: &[&[u8]],
        script: &Script,
        tag: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Called<Answer> {
        if !self.used.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
        let mut linked = self.link.shared().await?;
        let durability = self.durability(&mut linked).await?;
        let known = self.known().clone();
        let life = ulid::Ulid::new().to_string();
        let call = script.run(&mut linked.connection, keys, |command| {
            command.arg(&*known.id).arg(known.life).arg(known.count).arg(&*known.tag);
            command.arg(&life).arg(tag).arg(REDIS_CHANNELS_FEED_MAX);
            fill(command);
        });
        let answer = call.await.map_err(|error| backend("about channels", &error));
        let answer = self.link.ended(linked.number, answer).await?;
        let mut parts = list(answer).filter(|parts| parts.len() >= 5).ok_or_else(shape)?;
        let rest = parts.split_off(5);
        let [code, id, life, count, tag] = &parts[..] else { return Err(shape()) };
        let stamp = Stamp {
            id: text(id).ok_or_else(shape)?.into(),
            life: number(life).ok_or_else(shape)?,
            count: number(count).ok_or_else(shape)?,
            tag: text(tag).ok_or_else(shape)?.into(),
        };
        self.note(&stamp);
        let said = text(code).and_then(Said::read).ok_or_else(shape)?;
        Ok(Answer { said, stamp, parts: rest, linked, durability, again: false })
    }

    /// The same over lost connections, for some time.
    pub(super) async fn call(
        &self,
        script: &Script,
        tag: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> Called<Answer> {
        let end = Instant::now() + REDIS_CHANNELS_CALL_WAIT_MAX;
        let (mut wait, mut again) = (REDIS_RETRY_WAIT_MIN, false);
        loop {
            match self.once(script, tag, &fill).await {
                Ok(answer) => return Ok(Answer { again, ..answer }),
                Err(error) if ends_session(&error) && Instant::now() + wait < end => again = true,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REDIS_RETRY_WAIT_MAX);
        }
    }

    pub(super) async fn read(&self, fill: impl Fn(&mut redis::Cmd)) -> Called<Answer> {
        self.call(&CHANNEL_READ, &self.tag(), fill).await
    }

    /// Takes what comes next in an answer as the record of a process, and takes it in.
    pub(super) fn taken(&self, id: &ProcessId, answer: &mut Answer) -> Called<Option<Record>> {
        let record = Record::read(answer.next()?)?;
        self.take_in(id, record.as_ref(), answer.stamp.at());
        Ok(record)
    }

    /// What an acknowledgement stands on at the server that a connection leads to.
    async fn durability(&self, linked: &mut Linked) -> Called<Durability> {
        let known = *self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, durability)) = known.filter(|(number, _)| *number == linked.number) {
            return Ok(durability);
        }
        let looked = Server::look(&mut linked.connection).await;
        let server = self.link.ended(linked.number, looked).await?;
        let durability = match known {
            // As with the log: replicas that were counted on once are counted on for good.
            Some((_, replicated @ Durability::Replicated { .. })) => replicated,
            _ => server.durability(self.ack)?,
        };
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some((linked.number, durability));
        Ok(durability)
    }

    /// Notices another life of the store. Everything that is known is of the former one.
    fn note(&self, stamp: &Stamp) {
        let mut known = self.known();
        if known.id == stamp.id || stamp.life < known.life {
            return;
        }
        let former = std::mem::take(&mut *known);
        (known.id, known.life) = (stamp.id.clone(), stamp.life);
        drop(known);
        if !former.id.is_empty() {
            counter!(names::REDIS_CHANNELS_NEW_LIVES).increment(1);
            warn!(
                error.kind = "new_epoch",
                error.blame = "host",
                former = former.life,
                life = stamp.life,
                "the channels on Redis went back or are gone: what is appended to them goes on far above"
            );
        }
    }

    /// Waits until what an answer says has come to stay.
    pub(super) async fn settled(&self, answer: &Answer) -> Called<()> {
        {
            let known = self.known();
            if known.id == answer.stamp.id && answer.stamp.count <= known.count {
                return Ok(());
            }
        }
        self.barrier.reached(answer.durability, &answer.linked).await?;
        self.lasts(&answer.stamp);
        Ok(())
    }

    /// Remembers how far the store is durable.
    pub(super) fn lasts(&self, stamp: &Stamp) {
        let mut known = self.known();
        if known.id == stamp.id && stamp.count > known.count {
            (known.count, known.tag) = (stamp.count, stamp.tag.clone());
        }
    }

    /// Has followers here told of what somebody who gave up may have changed.
    pub(super) fn look_at(&self, id: &ProcessId) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
    }
}
