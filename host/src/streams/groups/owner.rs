//! Groups of a host that has its log to itself: state machines in memory, over the log and its store.
//!
//! A group is loaded when somebody asks for it and leaves memory when nobody has for a while. What is durable is
//! written before it is answered, by `writer`. When a write fails, the group's memory is dropped and loaded anew, so
//! that it never knows more than the store; leases end with it, and their entries are delivered again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex as Turn, Notify, Semaphore, watch};

use super::Groups;
use super::error::GroupError;
use super::names::GroupId;
use super::options::{GroupChange, GroupLimits, GroupOptions, GroupStart};
use super::state::{Filling, GroupState};
use super::status::{
    ConsumerStatus, Deliveries, GroupLag, GroupRead, GroupStatus, LetterPage, LetterVerdict, Settle, Settled,
};
use super::store::{GroupStore, NewGroup, StoredGroup, Unread};
use super::streams::{horizon, start_of, stream_of};
use super::writer::{Turns, Written};
use crate::clock::Clock;
use crate::event::{Micros, Position, TenantId};
use crate::limits::{GROUP_IDLE_MAX, GROUP_LAG_EVENTS_MAX, GROUP_SWEEP};
use crate::streams::{Bounds, EventLog, StreamName};
use crate::tasks::Tasks;

use super::asked::{check_settles, count};
use super::status::Result;

/// Owns the groups of a host. A clone is another handle.
#[derive(Clone, Debug)]
pub struct GroupOwner {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) store: Arc<dyn GroupStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: GroupLimits,
    groups: Mutex<HashMap<GroupId, Arc<Group>>>,
    /// Options reach memory in the order in which the store has got them.
    ensuring: Turn<()>,
    /// What writes.
    pub(super) tasks: Tasks,
}

/// A group in memory.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) stream: StreamName,
    held: Mutex<Held>,
    /// Something may be deliverable that was not.
    pub(super) changed: Notify,
    /// Whose turn it is to take in more of the stream.
    pub(super) filler: Semaphore,
    /// What has been written of it.
    pub(super) written: watch::Sender<Written>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) state: GroupState,
    /// It is in memory no more: look for it again.
    pub(super) closed: bool,
    pub(super) waiters: usize,
    /// What retention had removed when that was last looked at.
    trimmed: Position,
    pub(super) asked_at: Micros,
    pub(super) turns: Turns,
}

impl Group {
    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GroupOwner {
    pub fn new(
        log: Arc<dyn EventLog>,
        store: Arc<dyn GroupStore>,
        clock: Arc<dyn Clock>,
        limits: GroupLimits,
    ) -> Self {
        let (groups, ensuring, tasks) = (Mutex::default(), Turn::default(), Tasks::new());
        Self { inner: Arc::new(Inner { log, store, clock, limits, groups, ensuring, tasks }) }
    }

    /// Looks after groups that nobody asks anything of, for as long as it is polled.
    pub async fn keep(&self) {
        loop {
            tokio::time::sleep(GROUP_SWEEP).await;
            self.sweep().await;
        }
    }

    /// One round of that: ends leases, writes what waits, forgets dead consumers, lets idle groups go.
    pub async fn sweep(&self) {
        let groups: Vec<Arc<Group>> = self.inner.groups().values().cloned().collect();
        for group in groups {
            let swept = self.inner.turn_of(&group, |held, now| {
                held.state.tick(now);
                held.state.reap(now);
            });
            // What failed was told by the store, and the group is loaded anew.
            let _ = swept.await;
            self.inner.let_idle_go(&group);
        }
    }
}

impl Inner {
    fn groups(&self) -> MutexGuard<'_, HashMap<GroupId, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group, loaded if it is not in memory.
    pub(super) async fn group(&self, id: &GroupId) -> Result<Arc<Group>> {
        let stream = stream_of(&id.stream)?;
        if let Some(group) = self.groups().get(id) {
            return Ok(Arc::clone(group));
        }
        // Looked at before the row is read: what is removed in between is noticed.
        let trimmed = self.log.bounds().trimmed;
        let loaded = self.store.load(id).await?;
        let life = u64::try_from(ulid::Ulid::new().random() & u128::from(u64::MAX)).unwrap_or_default();
        let row = loaded.row.clone();
        let mut state = GroupState::load(loaded, life, self.limits);
        state.forget(&row, trimmed);
        let (asked_at, turns) = (self.clock.now(), Turns::default());
        let held = Held { state, closed: false, waiters: 0, trimmed, asked_at, turns };
        let group = Arc::new(Group {
            id: id.clone(),
            stream,
            held: Mutex::new(held),
            changed: Notify::new(),
            filler: Semaphore::new(1),
            written: watch::Sender::default(),
        });
        Ok(Arc::clone(self.groups().entry(id.clone()).or_insert(group)))
    }

    /// Drops a group's memory. Whoever waits looks for it again.
    pub(super) fn close(&self, group: &Arc<Group>) {
        let mut groups = self.groups();
        group.lock().closed = true;
        if groups.get(&group.id).is_some_and(|found| Arc::ptr_eq(found, group)) {
            groups.remove(&group.id);
        }
        drop(groups);
        group.changed.notify_waiters();
    }

    fn let_idle_go(&self, group: &Arc<Group>) {
        let idle = i64::try_from(GROUP_IDLE_MAX.as_micros()).unwrap_or(i64::MAX);
        let goes = {
            let held = group.lock();
            let since = self.clock.now().0.saturating_sub(held.asked_at.0);
            let filling = held.state.filling();
            let written = !held.state.is_unwritten() && !held.turns.is_writing();
            since > idle && held.waiters == 0 && filling.in_flight == 0 && written
        };
        if goes {
            self.close(group);
        }
    }

    /// Does something with a group as it is, and writes what comes of it. None when it is in memory no more.
    pub(super) async fn turn_of<T>(
        self: &Arc<Self>,
        group: &Arc<Group>,
        act: impl FnOnce(&mut Held, Micros) -> T,
    ) -> Result<Option<T>> {
        let (answer, turn, tally, wakes) = {
            let mut held = group.lock();
            if held.closed {
                return Ok(None);
            }
            let answer = act(&mut held, self.clock.now());
            let tally = held.state.take_tally();
            // Only what a waiting read can use: reads that woke each other for nothing would never rest.
            let wakes = held.state.ready() > 0 || tally.acks > 0 || tally.dead > 0;
            let unwritten = held.state.is_unwritten();
            let turn = unwritten.then(|| self.begin_write(group, &mut held, wakes));
            (answer, turn, tally, wakes)
        };
        count(tally);
        match turn {
            Some(turn) => group.wrote(turn).await?,
            None if wakes => group.changed.notify_waiters(),
            None => {}
        }
        Ok(Some(answer))
    }

    /// The same, with what retention did taken in before, and again should the group have left memory meanwhile.
    async fn turn<T>(
        self: &Arc<Self>,
        id: &GroupId,
        mut act: impl FnMut(&mut Held, Micros) -> T,
    ) -> Result<T> {
        loop {
            let group = self.group(id).await?;
            self.catch_up(&group).await?;
            let turn = |held: &mut Held, now| {
                held.asked_at = now;
                act(held, now)
            };
            if let Some(answer) = self.turn_of(&group, turn).await? {
                return Ok(answer);
            }
        }
    }

    /// Takes in what retention did to the group. The store has decided that; here it is only believed.
    pub(super) async fn catch_up(&self, group: &Arc<Group>) -> Result<()> {
        let trimmed = self.log.bounds().trimmed;
        // A change stream may have a cap of its own, of which the log's bounds say nothing.
        let capped = matches!(group.stream, StreamName::Changes(_));
        if !capped {
            let mut held = group.lock();
            if trimmed <= held.trimmed || trimmed <= held.state.low() {
                held.trimmed = held.trimmed.max(trimmed);
                return Ok(());
            }
        }
        let row = self.store.row(&group.id).await?;
        let mut held = group.lock();
        let before = held.state.lost();
        held.state.forget(&row, trimmed);
        held.trimmed = held.trimmed.max(trimmed);
        let changed = !capped || held.state.lost() != before;
        drop(held);
        if changed {
            group.changed.notify_waiters();
        }
        Ok(())
    }

    async fn ensure(
        self: &Arc<Self>,
        id: &GroupId,
        start: GroupStart,
        change: GroupChange,
    ) -> Result<(GroupStatus, bool)> {
        stream_of(&id.stream)?;
        // What is wrong in itself is refused before there is a group.
        change.apply(GroupOptions::default())?;
        let start = match self.store.row(id).await {
            // It stays where it is, and where it began may be long gone.
            Ok(row) => row.low,
            Err(GroupError::Unknown { .. }) => start_of(&*self.log, id, start).await?,
            Err(error) => return Err(error),
        };
        let GroupLimits { groups_max, tenant_groups_max, .. } = self.limits;
        let wanted = NewGroup { change, start, groups_max, tenant_groups_max };
        let ensuring = self.ensuring.lock().await;
        let (row, created) = self.store.ensure(id, wanted).await?;
        self.turn(id, |held, _| held.state.set_options(row.options)).await?;
        drop(ensuring);
        Ok((self.status(id).await?, created))
    }

    async fn status(self: &Arc<Self>, id: &GroupId) -> Result<GroupStatus> {
        let (filling, consumers) = self
            .turn(id, |held, now| {
                held.state.tick(now);
                (held.state.filling(), held.state.consumers().len())
            })
            .await?;
        let row = self.store.row(id).await?;
        let unread = self.store.unread(id, row.low, GROUP_LAG_EVENTS_MAX).await?;
        let bounds = horizon(&*self.log, &id.tenant, &stream_of(&id.stream)?).await?;
        Ok(status_of(row, unread, bounds, filling, consumers))
    }

    async fn settle(self: &Arc<Self>, id: &GroupId, said: Vec<Settle>) -> Result<Vec<Settled>> {
        check_settles(&said)?;
        self.turn(id, |held, now| {
            let state = &mut held.state;
            let settled = said.iter().map(|one| match one {
                Settle::Ack(receipt) => state.ack(receipt, now),
                Settle::Nack { receipt, delay_ms, reason } => state.nack(receipt, *delay_ms, reason, now),
                Settle::Renew { receipt, lease_ms } => state.renew(receipt, *lease_ms, now),
            });
            settled.collect()
        })
        .await
    }

    async fn decide(
        self: &Arc<Self>,
        id: &GroupId,
        position: Position,
        verdict: LetterVerdict,
    ) -> Result<()> {
        stream_of(&id.stream)?;
        let after = Position(position.0.saturating_sub(1));
        let letter = self.store.letters(id, after, 1).await?.letters.pop();
        let Some(letter) = letter.filter(|letter| letter.position() == position) else {
            return Err(GroupError::UnknownLetter { group: id.clone(), position });
        };
        self.turn(id, |held, _| match verdict {
            LetterVerdict::Replay => held.state.replay(letter.clone()),
            LetterVerdict::Discard => held.state.discard(position),
        })
        .await
    }

    async fn lags(&self, limit: usize) -> Result<Vec<GroupLag>> {
        let mut lags = Vec::new();
        for row in self.store.list(None, limit).await? {
            let unread = self.store.unread(&row.group, row.low, GROUP_LAG_EVENTS_MAX).await;
            // It may have been removed in between.
            let Ok(unread) = unread else { continue };
            lags.push(GroupLag { group: row.group, events: unread.events, oldest_at: unread.oldest_at });
        }
        Ok(lags)
    }
}

impl Groups for GroupOwner {
    fn ensure(
        &self,
        group: &GroupId,
        start: GroupStart,
        change: GroupChange,
    ) -> BoxFuture<'_, Result<(GroupStatus, bool)>> {
        let group = group.clone();
        async move { self.inner.ensure(&group, start, change).await }.boxed()
    }

    fn remove(&self, group: &GroupId) -> BoxFuture<'_, Result<()>> {
        let group = group.clone();
        async move {
            stream_of(&group.stream)?;
            self.inner.store.remove(&group).await?;
            let held = self.inner.groups().get(&group).cloned();
            if let Some(held) = held {
                self.inner.close(&held);
            }
            Ok(())
        }
        .boxed()
    }

    fn list(&self, tenant: &TenantId, stream: &str) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        let (tenant, stream) = (tenant.clone(), stream.to_owned());
        async move {
            stream_of(&stream)?;
            let rows = self.inner.store.list(Some((&tenant, &stream)), usize::MAX).await?;
            let mut found = Vec::with_capacity(rows.len());
            for row in rows {
                match self.inner.status(&row.group).await {
                    Ok(status) => found.push(status),
                    Err(GroupError::Unknown { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        }
        .boxed()
    }

    fn status(&self, group: &GroupId) -> BoxFuture<'_, Result<GroupStatus>> {
        let group = group.clone();
        async move { self.inner.status(&group).await }.boxed()
    }

    fn seek(&self, group: &GroupId, to: GroupStart) -> BoxFuture<'_, Result<GroupStatus>> {
        let group = group.clone();
        async move {
            let to = start_of(&*self.inner.log, &group, to).await?;
            self.inner.store.seek(&group, to).await?;
            let held = self.inner.groups().get(&group).cloned();
            if let Some(held) = held {
                self.inner.close(&held);
            }
            self.inner.status(&group).await
        }
        .boxed()
    }

    fn read(&self, group: &GroupId, read: GroupRead) -> BoxFuture<'_, Result<Deliveries>> {
        let group = group.clone();
        async move { self.inner.read(&group, read).await }.boxed()
    }

    fn settle(&self, group: &GroupId, said: Vec<Settle>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        let group = group.clone();
        async move { self.inner.settle(&group, said).await }.boxed()
    }

    fn consumers(&self, group: &GroupId) -> BoxFuture<'_, Result<Vec<ConsumerStatus>>> {
        let group = group.clone();
        let look = |held: &mut Held, now| {
            held.state.tick(now);
            held.state.reap(now);
            held.state.consumers()
        };
        async move { self.inner.turn(&group, look).await }.boxed()
    }

    fn letters(&self, group: &GroupId, after: Position, limit: usize) -> BoxFuture<'_, Result<LetterPage>> {
        let group = group.clone();
        async move {
            // A lease that has ended may have made one.
            self.inner.turn(&group, |held, now| held.state.tick(now)).await?;
            self.inner.store.letters(&group, after, limit).await
        }
        .boxed()
    }

    fn decide(
        &self,
        group: &GroupId,
        position: Position,
        verdict: LetterVerdict,
    ) -> BoxFuture<'_, Result<()>> {
        let group = group.clone();
        async move { self.inner.decide(&group, position, verdict).await }.boxed()
    }

    fn lags(&self, limit: usize) -> BoxFuture<'_, Result<Vec<GroupLag>>> {
        async move { self.inner.lags(limit).await }.boxed()
    }
}

fn status_of(
    row: StoredGroup,
    unread: Unread,
    bounds: Bounds,
    filling: Filling,
    consumers: usize,
) -> GroupStatus {
    GroupStatus {
        group: row.group,
        options: row.options,
        created_at: row.created_at,
        low: row.low,
        lag_events: unread.events,
        lag_is_least: unread.is_least,
        oldest_at: unread.oldest_at,
        in_flight: filling.in_flight,
        retrying: filling.retrying,
        waiting: filling.waiting,
        dead_letters: filling.dead_letters,
        consumers,
        lost_events: row.lost_events,
        lost_until: row.lost_until,
        lost_at: row.lost_at,
        stopped: row.stopped,
        trimmed: bounds.trimmed,
        newest: bounds.newest,
    }
}
