//! Reading: giving a group what follows in its stream, leasing what is free, and waiting for it.
//!
//! A host remembers how far the group was when it last heard of it, so that one call both brings what is new and leases
//! it. What other hosts make free it finds out by looking now and then.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::answers::shape;
use super::bodies::{Bodies, Stretch, alone, key_of};
use super::{Here, Inner, Result};
use crate::backends::redis::scripts::{GROUP_TAKE, bytes, number, text};
use crate::error::BackendError;
use crate::event::{Micros, Position};
use crate::limits::{REDIS_CONSUMERS_LOOK_EVERY, REDIS_CONSUMERS_PAGE_MAX, REDIS_CONSUMERS_PAGE_MIN};
use crate::streams::StreamName;
use crate::streams::groups::{
    Deliveries, Delivery, GroupError, GroupId, GroupRead, Receipt, check_read, follow, stream_of,
};

/// Events that are looked through for each one wanted, before it is looked whether some can be delivered.
const FILL_FACTOR: usize = 4;
/// The least of them.
const FILL_EVENTS_MIN: usize = 256;

/// A read that waits. Counted as long as it lives.
struct Waiter<'a>(&'a Here);

impl<'a> Waiter<'a> {
    fn begin(here: &'a Here, max: usize) -> Result<Self> {
        let mut seen = here.lock();
        if seen.waiters >= max {
            let what = "with one more, the number of reads of this group that wait".to_owned();
            let (asked, max) = (seen.waiters as u64 + 1, max as u64);
            return Err(GroupError::Limit { limit: "group_waiters_max", what, asked, max });
        }
        seen.waiters += 1;
        Ok(Self(here))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

/// What a look into the group came to.
struct Looked {
    deliveries: Deliveries,
    /// When something is due.
    due: Option<Duration>,
    /// Up to where the stream was taken in; none while there is no room for more.
    after: Option<Position>,
}

/// What one call of the script answered.
struct Taken {
    frontier: Position,
    room: usize,
    due: Option<Duration>,
    stopped: bool,
    lost_events: u64,
    lost_until: Position,
    /// Of what was leased, and whether it was all that may be.
    bytes: usize,
    full: bool,
    leases: Vec<Lease>,
}

struct Lease {
    receipt: Receipt,
    attempt: u32,
    deadline: Micros,
    replayed: bool,
    /// The event, where it is a dead letter's.
    body: Vec<u8>,
}

impl Inner {
    pub(super) async fn read(&self, id: &GroupId, read: GroupRead) -> Result<Deliveries> {
        let stream = stream_of(&id.stream)?;
        check_read(&read)?;
        let end = Instant::now() + read.wait;
        loop {
            let here = self.here(id);
            let changed = here.changed.notified();
            tokio::pin!(changed);
            // From here on nothing is missed that happens at this host.
            changed.as_mut().enable();
            let mut tail = follow(self.log.tail(), &id.tenant, &stream);
            let Looked { deliveries, due, after } = self.look(&here, id, &stream, &read).await?;
            if !deliveries.entries.is_empty() {
                // There may be more for others that wait.
                here.changed.notify_waiters();
                return Ok(deliveries);
            }
            if Instant::now() >= end {
                return Ok(deliveries);
            }
            let _waiter = Waiter::begin(&here, self.limits.waiters_max)?;
            let until = due.map_or(end, |due| end.min(Instant::now() + due));
            let looks_for_all = async {
                // It is never closed; a failure would only mean that more of them look.
                let _looker = here.looker.acquire().await;
                tokio::time::sleep(REDIS_CONSUMERS_LOOK_EVERY).await;
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
                () = looks_for_all => {}
                alive = tail.wait_after(after.unwrap_or_default()), if after.is_some() => {
                    if !alive {
                        return Err(BackendError::Closed.into());
                    }
                }
            }
        }
    }

    /// Leases what there is, and takes in more of the stream as long as that is too little.
    async fn look(&self, here: &Here, id: &GroupId, stream: &StreamName, read: &GroupRead) -> Result<Looked> {
        let mut wanted = read.clone();
        let mut left = read.events.saturating_mul(FILL_FACTOR).max(FILL_EVENTS_MIN);
        let mut bodies = Bodies::new();
        let mut leases: Vec<Lease> = Vec::new();
        let mut frontier = here.lock().frontier;
        let mut looked = Looked { deliveries: Deliveries::default(), due: None, after: None };
        loop {
            let page = wanted.events.clamp(REDIS_CONSUMERS_PAGE_MIN, REDIS_CONSUMERS_PAGE_MAX).min(left);
            let asked = frontier;
            let (stretch, taken) = match self.round(id, stream, &wanted, frontier, page).await {
                Ok(round) => round,
                // What is leased is answered, whatever this round has met. The next read meets it, too.
                Err(_) if !leases.is_empty() => break,
                Err(error) => return Err(error),
            };
            here.lock().frontier = Some(taken.frontier);
            frontier = Some(taken.frontier);
            let moved = stretch.is_some();
            left = left.saturating_sub(stretch.as_ref().map_or(1, |stretch| stretch.events.len().max(1)));
            if let Some(stretch) = stretch {
                bodies.extend(stretch.events);
            }
            leases.extend(taken.leases);
            looked.deliveries.lost_events = taken.lost_events;
            looked.due = taken.due;
            looked.after = (taken.room > 0).then_some(taken.frontier);
            wanted.events = read.events - leases.len();
            wanted.bytes = wanted.bytes.saturating_sub(taken.bytes);
            let full = taken.full || wanted.events == 0 || wanted.bytes == 0;
            // A group that was moved stands elsewhere than this host has looked for more.
            let nothing_more = !moved && asked == Some(taken.frontier);
            let at_end = taken.frontier >= self.log.bounds().newest || nothing_more;
            if full || at_end || taken.room == 0 || left == 0 {
                break;
            }
        }
        looked.deliveries.entries = self.deliveries(id, stream, leases, bodies).await?;
        Ok(looked)
    }

    /// Takes in what follows a position, and leases what can be.
    async fn round(
        &self,
        id: &GroupId,
        stream: &StreamName,
        read: &GroupRead,
        after: Option<Position>,
        events_max: usize,
    ) -> Result<(Option<Stretch>, Taken)> {
        let stretch = match after {
            Some(after) => self.stretch(id, stream, after, events_max).await?,
            None => None,
        };
        let taken = self.take(id, read, stretch.as_ref()).await?;
        Ok((stretch, taken))
    }

    async fn take(&self, id: &GroupId, read: &GroupRead, stretch: Option<&Stretch>) -> Result<Taken> {
        let shown = self.log.bounds().newest;
        let token = u64::try_from(ulid::Ulid::new().random() & u128::from(u64::MAX)).unwrap_or_default();
        let call = self.call(&GROUP_TAKE, Some(id), |command, again| {
            command.arg(read.consumer.as_str()).arg(read.events).arg(read.bytes).arg(shown.0).arg(token);
            command.arg(u8::from(again));
            let Some(stretch) = stretch else {
                command.arg(0).arg(0);
                return;
            };
            command.arg(stretch.after.0).arg(stretch.upto.0);
            for (position, (batch, index)) in &stretch.events {
                let size = batch.records()[*index].span().len();
                command.arg(*position).arg(size).arg(&key_of(&batch.get(*index))[..]);
            }
        });
        let answer = call.await?;
        let held = || answer.parts.first().and_then(number::<u64>).unwrap_or(0);
        let limit = |limit, what: String, max: usize| {
            Err(GroupError::Limit { limit, what, asked: held(), max: max as u64 })
        };
        let (limits, name) = (&self.limits, &read.consumer);
        match answer.code.as_str() {
            "ok" => {}
            "own" => {
                let whose = format!("what consumer `{name}` has and did not acknowledge");
                return limit("group_consumer_in_flight_max", whose, limits.consumer_in_flight_max);
            }
            "all" => {
                let whose = "what the group's consumers have and did not acknowledge".to_owned();
                return limit("group_in_flight_max", whose, limits.in_flight_max);
            }
            _ => {
                let what = "with one more, the number of consumers of this group".to_owned();
                return limit("group_consumers_max", what, limits.consumers_max);
            }
        }
        let taken = Taken::read(&answer.parts, token).ok_or_else(shape)?;
        if taken.stopped {
            let (events, until) = (taken.lost_events, taken.lost_until);
            return Err(GroupError::PositionLost { group: id.clone(), events, until });
        }
        Ok(taken)
    }

    /// Leases with their events. What retention has removed since is left out: it was counted when it went. When the log
    /// cannot be read, those are answered whose events are at hand, and the others are given back.
    async fn deliveries(
        &self,
        id: &GroupId,
        stream: &StreamName,
        mut leases: Vec<Lease>,
        mut bodies: Bodies,
    ) -> Result<Vec<Delivery>> {
        let own = leases.iter().filter(|lease| !lease.replayed).map(|lease| lease.receipt.position.0);
        let found = self.find(id, stream, own, &mut bodies).await;
        leases.sort_by_key(|lease| lease.receipt.position);
        let (mut entries, mut unseen) = (Vec::with_capacity(leases.len()), Vec::new());
        for Lease { receipt, attempt, deadline, replayed, body } in leases {
            let position = receipt.position;
            let event = match bodies.get(&position.0) {
                _ if replayed => self.kept(&id.tenant, position, &body),
                found => found.map(|(batch, index)| alone(batch, *index)),
            };
            match event {
                Some(event) => entries.push(Delivery { receipt, event, attempt, deadline, replayed }),
                None => unseen.push(receipt),
            }
        }
        let Err(error) = found else { return Ok(entries) };
        self.give_back(id, &unseen).await;
        if entries.is_empty() { Err(error) } else { Ok(entries) }
    }
}

impl Taken {
    fn read(parts: &[Value], token: u64) -> Option<Self> {
        let [frontier, room, now, due, stopped, lost, lost_until, incarnation, bytes, full, leases] = parts
        else {
            return None;
        };
        let now: i64 = number(now)?;
        let due = match text(due)? {
            "" => None,
            // A moment later, since a lease ends when its time has passed.
            due => {
                let left = due.parse::<i64>().ok()?.saturating_sub(now);
                Some(Duration::from_micros(u64::try_from(left).unwrap_or(0)) + Duration::from_millis(1))
            }
        };
        let incarnation = number(incarnation)?;
        let Value::Array(leases) = leases else { return None };
        let leases = leases.chunks(6).map(|lease| Lease::read(lease, incarnation, token));
        Some(Self {
            frontier: Position(number(frontier)?),
            room: number(room)?,
            due,
            stopped: number::<u8>(stopped)? == 1,
            lost_events: number(lost)?,
            lost_until: Position(number(lost_until)?),
            bytes: number(bytes)?,
            full: number::<u8>(full)? == 1,
            leases: leases.collect::<Option<_>>()?,
        })
    }
}

impl Lease {
    fn read(parts: &[Value], incarnation: u64, token: u64) -> Option<Self> {
        let [position, attempt, sequence, deadline, replayed, body] = parts else { return None };
        let position = Position(number(position)?);
        Some(Self {
            receipt: Receipt { incarnation, life: token, position, sequence: number(sequence)? },
            attempt: number(attempt)?,
            deadline: Micros(number(deadline)?),
            replayed: number::<u8>(replayed)? == 1,
            body: bytes(body)?.to_vec(),
        })
    }
}
