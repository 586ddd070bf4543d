//! Who follows which rooms on this host, how far each feed was read, and what the server's answers say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redis::Value;
use tokio::sync::Notify;

use crate::backends::redis::scripts::{bytes, list, number, text};
use crate::cluster::placement::partition;
use crate::event::Micros;
use crate::limits::PRESENCE_FEEDS;
use crate::presence::{
    Change, GapCause, LeaveReason, Member, MemberName, Queue, Result, RoomId, Roster, What, within,
};

/// What a room is called on the server: its feed, its tenant, its name. A tenant has no colon.
pub(super) fn room_key(room: &RoomId) -> String {
    let feed = partition(room.tenant.as_str(), room.name.as_str(), PRESENCE_FEEDS);
    format!("{feed}:{room}")
}

/// The feed that a room's changes go through.
fn feed_of(room: &str) -> u64 {
    room.split(':').next().and_then(|feed| feed.parse().ok()).unwrap_or_default()
}

#[derive(Debug, Default)]
pub(super) struct Feeds {
    state: Mutex<State>,
    /// Something is followed that was not.
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Feeds with rooms that somebody follows, and up to where they were read.
    feeds: HashMap<u64, Feed>,
    rooms: HashMap<String, Room>,
}

#[derive(Debug)]
struct Feed {
    reached: u64,
    rooms: usize,
}

/// The roster that was read last of a room. Who holds the lock reads it.
pub(super) type Recent = Arc<tokio::sync::Mutex<Option<Arc<Roster>>>>;

#[derive(Debug, Default)]
struct Room {
    followers: Vec<Arc<Queue>>,
    recent: Recent,
}

impl Feeds {
    /// Adds a follower, whose queue gets what comes after the place that the feed was read up to; a feed that nobody
    /// followed is read from `from` on.
    pub(super) fn add(
        &self,
        room: &str,
        from: u64,
        followers_max: usize,
        queue: impl FnOnce(u64) -> Arc<Queue>,
    ) -> Result<Arc<Queue>> {
        let mut state = self.lock();
        let State { feeds, rooms } = &mut *state;
        let followers = rooms.get(room).map_or(0, |room| room.followers.len());
        within("presence_followers_max", "followers of the room", followers + 1, followers_max)?;
        let feed = feeds.entry(feed_of(room)).or_insert(Feed { reached: from, rooms: 0 });
        if followers == 0 {
            feed.rooms += 1;
        }
        let queue = queue(feed.reached);
        rooms.entry(room.to_owned()).or_default().followers.push(Arc::clone(&queue));
        drop(state);
        self.wake.notify_one();
        Ok(queue)
    }

    pub(super) fn remove(&self, room: &str, queue: &Arc<Queue>) {
        let mut state = self.lock();
        let State { feeds, rooms } = &mut *state;
        let Some(found) = rooms.get_mut(room) else { return };
        found.followers.retain(|other| !Arc::ptr_eq(other, queue));
        if !found.followers.is_empty() {
            return;
        }
        rooms.remove(room);
        let number = feed_of(room);
        if let Some(feed) = feeds.get_mut(&number) {
            feed.rooms -= 1;
            if feed.rooms == 0 {
                feeds.remove(&number);
            }
        }
    }

    pub(super) fn recent(&self, room: &str) -> Recent {
        self.lock().rooms.get(room).map(|room| Arc::clone(&room.recent)).unwrap_or_default()
    }

    /// The feeds to read, and after which place each.
    pub(super) fn reached(&self) -> Vec<(u64, u64)> {
        self.lock().feeds.iter().map(|(number, feed)| (*number, feed.reached)).collect()
    }

    /// Goes on elsewhere, unless the feed was begun anew in between: whoever follows a room of it reads its roster again.
    pub(super) fn lose(&self, (number, seen): (u64, u64), reached: u64, cause: GapCause) {
        let mut state = self.lock();
        if state.feeds.get(&number).is_some_and(|feed| feed.reached == seen) {
            state.lose(number, reached, cause);
        }
    }

    /// Hands on what was read. A hole before it is found here.
    pub(super) fn deliver(&self, number: u64, entries: Vec<Entry>) {
        let mut state = self.lock();
        for Entry { sequence, room, what } in entries {
            let Some(feed) = state.feeds.get(&number) else { return };
            if sequence <= feed.reached {
                continue;
            }
            if sequence > feed.reached + 1 {
                state.lose(number, sequence - 1, GapCause::FeedLost);
            }
            let State { feeds, rooms } = &mut *state;
            if let Some(feed) = feeds.get_mut(&number) {
                feed.reached = sequence;
            }
            if let (Some(room), Some(what)) = (rooms.get(&room), what) {
                let change = Arc::new(Change { sequence, what });
                room.followers.iter().for_each(|queue| queue.put(&change));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lose(&mut self, number: u64, reached: u64, cause: GapCause) {
        let Some(feed) = self.feeds.get_mut(&number) else { return };
        feed.reached = reached;
        for (name, room) in self.rooms.iter_mut().filter(|(name, _)| feed_of(name) == number) {
            tracing::debug!(room = %name, cause = cause.code(), "followers read the roster again");
            // One that was read before is of no use: its numbers may mean something else now.
            room.recent = Recent::default();
            room.followers.iter().for_each(|queue| queue.lose(reached, cause));
        }
    }
}

/// One entry of a feed.
#[derive(Debug)]
pub(super) struct Entry {
    sequence: u64,
    room: String,
    /// None for a kind that this version does not know.
    what: Option<What>,
}

/// The entries of an answer to XREAD, by feed; none where it has another shape.
pub(super) fn entries(answer: Value) -> Option<Vec<(u64, Vec<Entry>)>> {
    if answer == Value::Nil {
        return Some(Vec::new());
    }
    let feeds = list(answer)?.into_iter().map(|feed| {
        let mut feed = list(feed)?;
        let entries = list(feed.pop()?)?.into_iter().map(entry).collect::<Option<Vec<_>>>()?;
        let number = text(feed.first()?)?.rsplit(':').next()?.parse().ok()?;
        Some((number, entries))
    });
    feeds.collect()
}

fn entry(value: Value) -> Option<Entry> {
    let mut parts = list(value)?;
    let fields = list(parts.pop()?)?;
    let sequence = text(parts.first()?)?.strip_suffix("-0")?.parse().ok()?;
    let field = |place: usize| fields.get(place * 2 + 1);
    let (room, kind, name) = (text(field(0)?)?, text(field(1)?)?, text(field(2)?)?);
    let at = number::<i64>(field(3)?)?;
    let body = Bytes::copy_from_slice(bytes(field(4)?)?);
    let member = || MemberName::new(name).ok();
    let left = |reason| member().map(|member| What::Left { member, reason });
    let what = match kind {
        "j" => member().map(|name| What::Joined(Member { name, joined_at: millis(at), state: body })),
        "u" => member().map(|member| What::Updated { member, state: body }),
        "l" => left(LeaveReason::Left),
        "x" => left(LeaveReason::Expired),
        "m" => Some(What::Said { from: member(), payload: body }),
        _ => None,
    };
    Some(Entry { sequence, room: room.to_owned(), what })
}

/// A roster as the script answers it: how far the feed is, then names, each with its time of joining, a space, and its
/// state.
pub(super) fn roster(answer: Option<Value>) -> Option<Arc<Roster>> {
    let parts = list(answer?)?;
    let (first, rest) = parts.split_first()?;
    let members = rest.chunks_exact(2).map(|pair| {
        let (name, held) = (text(&pair[0])?, bytes(&pair[1])?);
        let space = held.iter().position(|byte| *byte == b' ')?;
        let (at, state) = (std::str::from_utf8(&held[..space]).ok()?, &held[space + 1..]);
        Some(Member {
            name: MemberName::new(name).ok()?,
            joined_at: millis(at.parse().ok()?),
            state: Bytes::copy_from_slice(state),
        })
    });
    let mut members = members.collect::<Option<Vec<_>>>()?;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Some(Arc::new(Roster { sequence: number(first)?, members }))
}

fn millis(at: i64) -> Micros {
    Micros(at.saturating_mul(1_000))
}
