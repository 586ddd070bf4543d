//! Rooms on Redis or Valkey, shared by all hosts that use the server.
//!
//! One script does everything: it changes a room and tells of it in a short stream, the feed, in one step. Rooms are
//! spread over a few feeds, so that a host reads all of its rooms on one connection, however many they are. Entries of a
//! feed are numbered without a hole; a host that finds one reads rosters again. Times are the server's, and whichever host
//! looks first removes whose time is over.
//!
//! Deliberately absent: durability. A server that forgets what it acknowledged forgets members with it, who come back
//! with their next heartbeat.

mod feeds;
mod reader;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::Value;

use super::faults::{backend, remote};
use super::link::RedisLink;
use super::scripts::{PRESENCE, list, number, text};
use crate::error::{BackendError, RemoteFault};
use crate::limits::{
    PRESENCE_EXPIRED_MAX, PRESENCE_FEED_CHANGES_MAX, PRESENCE_FEED_KEEP, PRESENCE_ROSTER_TRIES_MAX,
    REDIS_RETRY_WAIT_MIN,
};
use crate::presence::{
    Counted, Follower, Join, Joined, LeaveReason, MemberName, Presence, PresenceLimits, Queue, Result,
    RoomId, Roster, count, millis, within,
};
use crate::tasks::{TaskKind, Tasks};
use feeds::{Feeds, room_key};

/// A [`Presence`] on Redis. Clones are the same rooms; with the last one its connections end.
#[derive(Clone, Debug)]
pub struct RedisPresence {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// What the handles, the reader and the sweeper have together.
#[derive(Debug)]
struct Shared {
    link: RedisLink,
    limits: PresenceLimits,
    prefix: Vec<u8>,
    feeds: Feeds,
}

impl RedisPresence {
    /// Begins to look after members whose time is over. Does not wait for the server, and holds no connection of its
    /// own while nobody follows a room. Needs a tokio runtime.
    pub fn open(link: RedisLink, limits: PresenceLimits) -> Self {
        let prefix = link.key("presence:");
        let shared = Arc::new(Shared { link, limits, prefix, feeds: Feeds::default() });
        let tasks = Tasks::new();
        let reader = reader::Reader::new(Arc::clone(&shared));
        tasks.spawn(TaskKind::BACKGROUND, "presence reader", reader.run());
        let sweeper = Arc::clone(&shared);
        tasks.spawn(TaskKind::BACKGROUND, "presence sweep", async move {
            loop {
                tokio::time::sleep(sweeper.limits.sweep).await;
                if let Err(error) = sweeper.run("sweep", "", |_| {}).await {
                    tracing::debug!(%error, "members whose time is over wait for the server");
                }
            }
        });
        Self { inner: Arc::new(Inner { shared, tasks }) }
    }
}

/// What the script answers: what came of it, and the rest.
struct Answer {
    what: String,
    rest: Option<Value>,
}

impl Shared {
    /// Runs the script on a room, and counts who expired by the way.
    async fn run(
        &self,
        op: &'static str,
        room: &str,
        fill: impl Fn(&mut redis::Cmd),
    ) -> std::result::Result<Answer, BackendError> {
        let mut linked = self.link.shared().await?;
        let answered = PRESENCE
            .run(&mut linked.connection, &[&self.prefix], |command| {
                command.arg(op).arg(PRESENCE_FEED_CHANGES_MAX).arg(millis(PRESENCE_FEED_KEEP));
                command.arg(PRESENCE_EXPIRED_MAX).arg(room);
                fill(command);
            })
            .await
            .map_err(|error| backend(format_args!("presence, {op}"), &error));
        let answer = self.link.ended(linked.number, answered).await?;
        let mut parts = list(answer).ok_or_else(odd)?.into_iter();
        let what = parts.next().as_ref().and_then(text).ok_or_else(odd)?.to_owned();
        let expired: u64 = parts.next().as_ref().and_then(number).ok_or_else(odd)?;
        count(Counted::Leave(LeaveReason::Expired), expired);
        Ok(Answer { what, rest: parts.next() })
    }

    /// How far the feed of a room is.
    async fn reached(&self, room: &str) -> std::result::Result<u64, BackendError> {
        self.run("reached", room, |_| {}).await?.rest.as_ref().and_then(number).ok_or_else(odd)
    }

    async fn roster(&self, room: &str) -> Result<Arc<Roster>> {
        let answer = self.run("roster", room, |_| {}).await?;
        Ok(feeds::roster(answer.rest).ok_or_else(odd)?)
    }

    /// A roster that is no older than a place. Followers who need one at the same time get the same.
    async fn roster_after(&self, room: &str, after: u64) -> Result<Arc<Roster>> {
        let recent = self.feeds.recent(room);
        let mut recent = recent.lock().await;
        for _ in 0..PRESENCE_ROSTER_TRIES_MAX {
            if let Some(roster) = recent.as_ref().filter(|roster| roster.sequence >= after) {
                return Ok(Arc::clone(roster));
            }
            let roster = self.roster(room).await?;
            let old = roster.sequence < after;
            *recent = Some(roster);
            if old {
                // The server was emptied, and the reader has yet to find that out.
                tokio::time::sleep(REDIS_RETRY_WAIT_MIN).await;
            }
        }
        Err(remote(RemoteFault::Timeout, format_args!("the roster stays behind {after}")).into())
    }
}

/// An answer that the script never gives.
fn odd() -> BackendError {
    remote(RemoteFault::Unsupported, "presence: the answer has another shape")
}

impl Presence for RedisPresence {
    fn join(&self, room: &RoomId, member: &MemberName, join: Join) -> BoxFuture<'_, Result<Joined>> {
        let (room, member) = (room_key(room), member.clone());
        async move {
            let shared = &self.inner.shared;
            let limits = &shared.limits;
            limits.check_join(&join)?;
            let answer = shared.run("join", &room, |command| {
                command.arg(member.as_str()).arg(millis(join.ttl));
                command.arg(u8::from(join.state.is_some())).arg(join.state.as_deref().unwrap_or_default());
                command.arg(limits.rooms_max).arg(limits.members_max);
            });
            let Answer { what, rest } = answer.await?;
            let counted = || rest.as_ref().and_then(number).unwrap_or(usize::MAX);
            match what.as_str() {
                "joined" => {
                    count(Counted::Join, 1);
                    Ok(Joined::New(feeds::roster(rest).ok_or_else(odd)?))
                }
                "updated" => {
                    count(Counted::Update, 1);
                    Ok(Joined::Updated { sequence: rest.as_ref().and_then(number).ok_or_else(odd)? })
                }
                "stays" => Ok(Joined::Stays),
                "full" => {
                    within("presence_members_max", "members of the room", counted(), limits.members_max)?;
                    Err(odd().into())
                }
                "crowded" => {
                    within("presence_rooms_max", "rooms of the tenant", counted(), limits.rooms_max)?;
                    Err(odd().into())
                }
                _ => Err(odd().into()),
            }
        }
        .boxed()
    }

    fn leave(&self, room: &RoomId, member: &MemberName) -> BoxFuture<'_, Result<bool>> {
        let (room, member) = (room_key(room), member.clone());
        async move {
            let answer = self.inner.shared.run("leave", &room, |command| {
                command.arg(member.as_str());
            });
            let left = answer.await?.what == "left";
            count(Counted::Leave(LeaveReason::Left), u64::from(left));
            Ok(left)
        }
        .boxed()
    }

    fn say(&self, room: &RoomId, from: Option<&MemberName>, payload: Bytes) -> BoxFuture<'_, Result<u64>> {
        let (room, from) = (room_key(room), from.cloned());
        async move {
            let shared = &self.inner.shared;
            shared.limits.check_message(&payload)?;
            let answer = shared.run("say", &room, |command| {
                command.arg(from.as_ref().map_or("", MemberName::as_str)).arg(&payload[..]);
            });
            let sequence = answer.await?.rest.as_ref().and_then(number).ok_or_else(odd)?;
            count(Counted::Message, 1);
            Ok(sequence)
        }
        .boxed()
    }

    fn roster(&self, room: &RoomId) -> BoxFuture<'_, Result<Arc<Roster>>> {
        let room = room_key(room);
        async move { self.inner.shared.roster(&room).await }.boxed()
    }

    fn follow(&self, room: &RoomId) -> BoxFuture<'_, Result<Follower>> {
        let (this, room) = (self.clone(), room_key(room));
        async move {
            let shared = &this.inner.shared;
            // Before the queue is there, so that the roster that it needs is no older.
            let from = shared.reached(&room).await?;
            let queue = |after| Arc::new(Queue::new(&shared.limits, after));
            let queue = shared.feeds.add(&room, from, shared.limits.followers_max, queue)?;
            let (reader, asked) = (Arc::clone(shared), room.clone());
            let read = move |after| {
                let (reader, asked) = (Arc::clone(&reader), asked.clone());
                async move { reader.roster_after(&asked, after).await }.boxed()
            };
            let (kept, handle) = (Arc::clone(&queue), this.clone());
            let detach = move || handle.inner.shared.feeds.remove(&room, &kept);
            Follower::attach(queue, Arc::new(read), detach).await
        }
        .boxed()
    }

    fn limits(&self) -> &PresenceLimits {
        &self.inner.shared.limits
    }
}
