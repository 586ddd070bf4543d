//! Rooms in memory: of a host that has its tenants to itself. They end with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::event::{Micros, TenantId};
use crate::presence::{
    Change, Counted, Follower, Join, Joined, LeaveReason, Member, MemberName, Presence, PresenceLimits,
    Queue, Result, RoomId, Roster, What, count, within,
};
use crate::tasks::{TaskKind, Tasks};

/// A [`Presence`] that keeps nothing over its own life. Clones are the same rooms.
#[derive(Clone, Debug)]
pub struct MemoryPresence {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: PresenceLimits,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    tasks: Tasks,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

#[derive(Debug, Default)]
struct State {
    sequence: u64,
    rooms: HashMap<RoomId, Room>,
    /// Rooms with members, by tenant.
    occupied: HashMap<TenantId, usize>,
    /// When whose time is over.
    due: BTreeSet<(Instant, RoomId, MemberName)>,
}

#[derive(Debug, Default)]
struct Room {
    members: BTreeMap<MemberName, Held>,
    followers: Vec<Arc<Queue>>,
}

#[derive(Debug)]
struct Held {
    state: Bytes,
    joined_at: Micros,
    until: Instant,
}

impl MemoryPresence {
    /// Begins to look after members whose time is over. Needs a tokio runtime.
    pub fn open(limits: PresenceLimits, clock: Arc<dyn Clock>) -> Self {
        let tasks = Tasks::new();
        let every = limits.sweep;
        let inner = Inner { limits, clock, state: Mutex::default(), tasks: tasks.clone() };
        let presence = Self { inner: Arc::new(inner) };
        let kept = Arc::downgrade(&presence.inner);
        tasks.spawn(TaskKind::BACKGROUND, "presence sweep", async move {
            sweep(kept, every).await;
            Ok(())
        });
        presence
    }
}

async fn sweep(inner: Weak<Inner>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.lock().expire(Instant::now());
    }
}

impl Inner {
    /// The state, with nobody in it whose time is over.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.expire(Instant::now());
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, room: &RoomId, name: &MemberName, join: Join) -> Result<Joined> {
        self.limits.check_join(&join)?;
        let joined_at = self.clock.now();
        let until = Instant::now() + join.ttl;
        let mut state = self.now();
        let State { rooms, due, occupied, .. } = &mut *state;
        if let Some(held) = rooms.get_mut(room).and_then(|room| room.members.get_mut(name)) {
            let place = |until| (until, room.clone(), name.clone());
            due.remove(&place(held.until));
            due.insert(place(until));
            held.until = until;
            let Some(fresh) = join.state.filter(|fresh| *fresh != held.state) else {
                return Ok(Joined::Stays);
            };
            held.state = fresh.clone();
            count(Counted::Update, 1);
            let sequence = state.tell(room, What::Updated { member: name.clone(), state: fresh });
            return Ok(Joined::Updated { sequence });
        }
        let members = rooms.get(room).map_or(0, |room| room.members.len());
        within("presence_members_max", "members of the room", members + 1, self.limits.members_max)?;
        if members == 0 {
            let taken = occupied.get(&room.tenant).copied().unwrap_or(0);
            within("presence_rooms_max", "rooms of the tenant", taken + 1, self.limits.rooms_max)?;
            *occupied.entry(room.tenant.clone()).or_default() += 1;
        }
        let member_state = join.state.unwrap_or_default();
        let held = Held { state: member_state.clone(), joined_at, until };
        rooms.entry(room.clone()).or_default().members.insert(name.clone(), held);
        due.insert((until, room.clone(), name.clone()));
        count(Counted::Join, 1);
        state.tell(room, What::Joined(Member { name: name.clone(), joined_at, state: member_state }));
        Ok(Joined::New(state.roster(room)))
    }

    fn follow(&self, room: &RoomId) -> Result<Arc<Queue>> {
        let mut state = self.now();
        let sequence = state.sequence;
        let followers = state.rooms.get(room).map_or(0, |room| room.followers.len());
        within("presence_followers_max", "followers of the room", followers + 1, self.limits.followers_max)?;
        let queue = Arc::new(Queue::new(&self.limits, sequence));
        state.rooms.entry(room.clone()).or_default().followers.push(Arc::clone(&queue));
        Ok(queue)
    }

    fn detach(&self, room: &RoomId, queue: &Arc<Queue>) {
        let mut state = self.lock();
        if let Some(found) = state.rooms.get_mut(room) {
            found.followers.retain(|other| !Arc::ptr_eq(other, queue));
        }
        state.forget_if_empty(room);
    }
}

impl State {
    fn tell(&mut self, room: &RoomId, what: What) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(room) = self.rooms.get(room).filter(|room| !room.followers.is_empty()) {
            let change = Arc::new(Change { sequence, what });
            room.followers.iter().for_each(|queue| queue.put(&change));
        }
        sequence
    }

    fn expire(&mut self, now: Instant) {
        while self.due.first().is_some_and(|(until, ..)| *until <= now) {
            let Some((_, room, name)) = self.due.pop_first() else { return };
            self.remove(&room, &name, LeaveReason::Expired);
        }
    }

    fn remove(&mut self, room: &RoomId, name: &MemberName, reason: LeaveReason) -> bool {
        let Some(found) = self.rooms.get_mut(room) else { return false };
        let Some(held) = found.members.remove(name) else { return false };
        let emptied = found.members.is_empty();
        self.due.remove(&(held.until, room.clone(), name.clone()));
        count(Counted::Leave(reason), 1);
        self.tell(room, What::Left { member: name.clone(), reason });
        if emptied {
            if let Some(taken) = self.occupied.get_mut(&room.tenant) {
                *taken -= 1;
                if *taken == 0 {
                    self.occupied.remove(&room.tenant);
                }
            }
            self.forget_if_empty(room);
        }
        true
    }

    fn forget_if_empty(&mut self, room: &RoomId) {
        if self.rooms.get(room).is_some_and(|room| room.members.is_empty() && room.followers.is_empty()) {
            self.rooms.remove(room);
        }
    }

    fn roster(&self, room: &RoomId) -> Arc<Roster> {
        let members = self.rooms.get(room).into_iter().flat_map(|room| &room.members);
        let members = members.map(|(name, held)| Member {
            name: name.clone(),
            joined_at: held.joined_at,
            state: held.state.clone(),
        });
        Arc::new(Roster { sequence: self.sequence, members: members.collect() })
    }
}

impl Presence for MemoryPresence {
    fn join(&self, room: &RoomId, member: &MemberName, join: Join) -> BoxFuture<'_, Result<Joined>> {
        ready(self.inner.join(room, member, join)).boxed()
    }

    fn leave(&self, room: &RoomId, member: &MemberName) -> BoxFuture<'_, Result<bool>> {
        ready(Ok(self.inner.now().remove(room, member, LeaveReason::Left))).boxed()
    }

    fn say(&self, room: &RoomId, from: Option<&MemberName>, payload: Bytes) -> BoxFuture<'_, Result<u64>> {
        let checked = self.inner.limits.check_message(&payload);
        let said = checked.map(|()| {
            count(Counted::Message, 1);
            self.inner.lock().tell(room, What::Said { from: from.cloned(), payload })
        });
        ready(said).boxed()
    }

    fn roster(&self, room: &RoomId) -> BoxFuture<'_, Result<Arc<Roster>>> {
        ready(Ok(self.inner.now().roster(room))).boxed()
    }

    fn follow(&self, room: &RoomId) -> BoxFuture<'_, Result<Follower>> {
        let (this, room) = (self.clone(), room.clone());
        async move {
            let queue = this.inner.follow(&room)?;
            let (reader, asked) = (this.clone(), room.clone());
            let read = move |_| {
                let (reader, asked) = (reader.clone(), asked.clone());
                async move { reader.roster(&asked).await }.boxed()
            };
            let kept = Arc::clone(&queue);
            let detach = move || this.inner.detach(&room, &kept);
            Follower::attach(queue, Arc::new(read), detach).await
        }
        .boxed()
    }

    fn limits(&self) -> &PresenceLimits {
        &self.inner.limits
    }
}
