//! A fleet in one process: for tests, and for a host that is alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::{
    ClusterError, ClusterLimits, ControlBus, ControlMessage, Delta, DeltaBus, DeltaPage, Incarnation,
    MemberId, Membership, Result, View, within,
};
use crate::limits::CLUSTER_READ_MAX;

/// Clones are the same fleet.
#[derive(Clone, Debug)]
pub struct MemoryCluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: ClusterLimits,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    view: u64,
    members: BTreeMap<MemberId, Alive>,
}

#[derive(Debug)]
struct Alive {
    epoch: u64,
    until: Instant,
    control: u64,
    messages: VecDeque<ControlMessage>,
    answers: BTreeMap<u64, Bytes>,
    last_delta: u64,
    deltas: VecDeque<Delta>,
}

impl MemoryCluster {
    pub fn new(limits: ClusterLimits) -> Self {
        let inner = Inner { limits, state: Mutex::default(), changed: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The state, with nobody in it whose time is over.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = state.members.len();
        state.members.retain(|_, alive| alive.until > now);
        state.view += u64::from(state.members.len() < before);
        state
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let changed = change(&mut self.now());
        self.inner.changed.notify_waiters();
        changed
    }

    /// Asks until there is something, or the time is over.
    async fn wait<T>(
        &self,
        wait: Duration,
        ask: impl Fn(&mut State) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + wait;
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = ask(&mut self.now())?;
            if found.is_some() || tokio::time::timeout_at(end, changed).await.is_err() {
                return Ok(found);
            }
        }
    }
}

impl State {
    fn alive(&mut self, who: &Incarnation) -> Result<&mut Alive> {
        let alive = self.members.get_mut(&who.member).filter(|alive| alive.epoch == who.epoch);
        alive.ok_or_else(|| ClusterError::Gone { who: who.clone() })
    }
}

impl Membership for MemoryCluster {
    fn enter(&self, member: &MemberId) -> BoxFuture<'_, Result<Incarnation>> {
        let until = Instant::now() + self.inner.limits.ttl;
        let entered = self.change(|state| {
            state.epoch += 1;
            state.view += 1;
            let alive = Alive {
                epoch: state.epoch,
                until,
                control: 0,
                messages: VecDeque::new(),
                answers: BTreeMap::new(),
                last_delta: 0,
                deltas: VecDeque::new(),
            };
            state.members.insert(member.clone(), alive);
            Ok(Incarnation { member: member.clone(), epoch: state.epoch })
        });
        ready(entered).boxed()
    }

    fn heartbeat(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>> {
        let until = Instant::now() + self.inner.limits.ttl;
        ready(self.change(|state| state.alive(me).map(|alive| alive.until = until))).boxed()
    }

    fn leave(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>> {
        let left = self.change(|state| {
            if state.alive(me).is_ok() {
                state.members.remove(&me.member);
                state.view += 1;
            }
            Ok(())
        });
        ready(left).boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<View>> {
        let state = self.now();
        let members = state.members.iter();
        let members = members
            .map(|(member, alive)| Incarnation { member: member.clone(), epoch: alive.epoch })
            .collect();
        ready(Ok(View { epoch: state.view, members })).boxed()
    }
}

impl ControlBus for MemoryCluster {
    fn send(&self, from: &Incarnation, to: &Incarnation, payload: Bytes) -> BoxFuture<'_, Result<u64>> {
        let sent = self.inner.limits.check_message(&payload).and_then(|()| {
            self.change(|state| {
                state.alive(from)?;
                let alive = state.alive(to)?;
                within("cluster_control_max", alive.messages.len() + 1, self.inner.limits.control_max)?;
                alive.control += 1;
                let sequence = alive.control;
                alive.messages.push_back(ControlMessage { sequence, from: from.clone(), payload });
                Ok(sequence)
            })
        });
        ready(sent).boxed()
    }

    fn receive(
        &self,
        me: &Incarnation,
        after: u64,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<ControlMessage>>> {
        let me = me.clone();
        async move {
            let found = self.wait(wait, |state| {
                let messages = state.alive(&me)?.messages.iter();
                let messages: Vec<_> =
                    messages.filter(|one| one.sequence > after).take(CLUSTER_READ_MAX).cloned().collect();
                Ok((!messages.is_empty()).then_some(messages))
            });
            Ok(found.await?.unwrap_or_default())
        }
        .boxed()
    }

    fn acknowledge(&self, me: &Incarnation, sequence: u64, answer: Bytes) -> BoxFuture<'_, Result<()>> {
        let acknowledged = self.inner.limits.check_message(&answer).and_then(|()| {
            self.change(|state| {
                let alive = state.alive(me)?;
                if let Some(place) = alive.messages.iter().position(|one| one.sequence == sequence) {
                    alive.messages.remove(place);
                    alive.answers.insert(sequence, answer);
                    while alive.answers.len() > self.inner.limits.control_max {
                        alive.answers.pop_first();
                    }
                }
                Ok(())
            })
        });
        ready(acknowledged).boxed()
    }

    fn answer(
        &self,
        to: &Incarnation,
        sequence: u64,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let to = to.clone();
        async move {
            self.wait(wait, |state| {
                let alive = state.alive(&to)?;
                let waits = alive.messages.iter().any(|one| one.sequence == sequence);
                match alive.answers.get(&sequence) {
                    Some(answer) => Ok(Some(answer.clone())),
                    None if waits => Ok(None),
                    None => Err(ClusterError::Gone { who: to.clone() }),
                }
            })
            .await
        }
        .boxed()
    }
}

impl DeltaBus for MemoryCluster {
    fn publish(
        &self,
        from: &Incarnation,
        to: &Incarnation,
        deltas: Vec<Bytes>,
    ) -> BoxFuture<'_, Result<u64>> {
        let published = self.inner.limits.check_deltas(&deltas).and_then(|()| {
            self.change(|state| {
                state.alive(from)?;
                let alive = state.alive(to)?;
                for payload in deltas {
                    alive.last_delta += 1;
                    alive.deltas.push_back(Delta { sequence: alive.last_delta, from: from.clone(), payload });
                }
                while alive.deltas.len() > self.inner.limits.deltas_max {
                    alive.deltas.pop_front();
                }
                Ok(alive.last_delta)
            })
        });
        ready(published).boxed()
    }

    fn deltas(&self, me: &Incarnation, after: u64, wait: Duration) -> BoxFuture<'_, Result<DeltaPage>> {
        let me = me.clone();
        async move {
            let found = self.wait(wait, |state| {
                let deltas = state.alive(&me)?.deltas.iter();
                let deltas: Vec<_> =
                    deltas.filter(|one| one.sequence > after).take(CLUSTER_READ_MAX).cloned().collect();
                let (Some(first), Some(last)) = (deltas.first(), deltas.last()) else { return Ok(None) };
                Ok(Some(DeltaPage { lost: first.sequence - after - 1, next: last.sequence, deltas }))
            });
            Ok(found.await?.unwrap_or(DeltaPage { next: after, ..DeltaPage::default() }))
        }
        .boxed()
    }
}
