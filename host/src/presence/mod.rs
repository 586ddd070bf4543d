//! Rooms: who is there now, and what is said to them.
//!
//! A room belongs to one tenant and is there while somebody follows it or is a member. Members come by joining,
//! stay by joining again before their time is over, and go by leaving or by staying away. States of members and messages
//! are bytes that nobody looks into.
//!
//! Promises: a roster and the changes after it have no hole and no double; whatever a follower was not told of, it is
//! told that it was not, and is given the roster anew; a member that stays away leaves exactly once, whichever host it
//! had joined through. Deliberately absent: a history. A message that nobody follows is gone.

mod counts;
mod error;
mod names;
mod queue;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub(crate) use counts::{Counted, count};
pub use error::PresenceError;
pub use names::{MemberName, RoomId, RoomName};
pub(crate) use queue::Queue;
pub use queue::{Follower, GapCause};

use crate::event::Micros;
use crate::limits;

/// The rooms of a host, or of all hosts that share a server. A call may wait for that server; dropping its
/// future leaves open whether it was done, and then it may be repeated, except [`Self::say`].
pub trait Presence: Send + Sync + fmt::Debug {
    /// Makes somebody a member for a time, or lets a member stay for that time from now on. A member is told of once,
    /// as a join; a state that differs from the one before, as an update; staying, not at all. A member
    /// whose time was over has left, and joins anew.
    fn join(&self, room: &RoomId, member: &MemberName, join: Join) -> BoxFuture<'_, Result<Joined>>;

    /// Ends a membership. False where there was none; nobody is told then.
    fn leave(&self, room: &RoomId, member: &MemberName) -> BoxFuture<'_, Result<bool>>;

    /// Gives bytes to everybody who follows the room when it arrives there, and to nobody else. Answers its place. What
    /// one caller says one after the other is heard in that order. The sender need not be a member.
    fn say(&self, room: &RoomId, from: Option<&MemberName>, payload: Bytes) -> BoxFuture<'_, Result<u64>>;

    /// Who is there. A room without members has an empty roster; there is no unknown room.
    fn roster(&self, room: &RoomId) -> BoxFuture<'_, Result<Arc<Roster>>>;

    /// Follows a room. It is attached when this answers: nothing that happens from then on is missed silently. The first
    /// notice is the roster.
    fn follow(&self, room: &RoomId) -> BoxFuture<'_, Result<Follower>>;

    fn limits(&self) -> &PresenceLimits;
}

pub type Result<T> = std::result::Result<T, PresenceError>;

/// What somebody joins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// None leaves the state as it is; that of a new member is empty then.
    pub state: Option<Bytes>,
    /// How long the membership lasts if nothing more is heard.
    pub ttl: Duration,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// A new member. The roster has it, too.
    New(Arc<Roster>),
    /// A member with another state than before.
    Updated { sequence: u64 },
    /// A member that stays.
    Stays,
}

/// Who is in a room, as of a place in the order of its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Grows with every change; there may be steps of more than one. Nothing up to here comes afterwards.
    pub sequence: u64,
    /// By name.
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: MemberName,
    pub joined_at: Micros,
    pub state: Bytes,
}

/// Something that happened in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub sequence: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Joined(Member),
    Updated { member: MemberName, state: Bytes },
    Left { member: MemberName, reason: LeaveReason },
    Said { from: Option<MemberName>, payload: Bytes },
}

impl Change {
    /// What it takes in a queue.
    pub(crate) fn bytes(&self) -> usize {
        let body = match &self.what {
            What::Joined(Member { state, .. }) | What::Updated { state, .. } => state.len(),
            What::Left { .. } => 0,
            What::Said { payload, .. } => payload.len(),
        };
        body + size_of::<Self>() + limits::PRESENCE_NAME_BYTES_MAX
    }
}

/// Why somebody is not a member any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    Left,
    /// Nothing was heard for the time that it had joined for.
    Expired,
}

impl LeaveReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Expired => "expired",
        }
    }
}

/// What a follower gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Who is there. It replaces all that was known; what comes afterwards is after it.
    Roster(Arc<Roster>),
    Change(Arc<Change>),
    /// Something was not told of, messages perhaps among it. The roster comes next.
    Gap(GapCause),
}

/// The bounds of rooms; see the constants of the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceLimits {
    pub rooms_max: usize,
    pub members_max: usize,
    pub state_bytes_max: usize,
    pub message_bytes_max: usize,
    pub followers_max: usize,
    pub queue_max: usize,
    pub queue_bytes_max: usize,
    pub ttl: Duration,
    pub ttl_min: Duration,
    pub ttl_max: Duration,
    pub sweep: Duration,
}

impl Default for PresenceLimits {
    fn default() -> Self {
        Self {
            rooms_max: limits::PRESENCE_ROOMS_MAX,
            members_max: limits::PRESENCE_MEMBERS_MAX,
            state_bytes_max: limits::PRESENCE_STATE_BYTES_MAX,
            message_bytes_max: limits::PRESENCE_MESSAGE_BYTES_MAX,
            followers_max: limits::PRESENCE_FOLLOWERS_MAX,
            queue_max: limits::PRESENCE_QUEUE_MAX,
            queue_bytes_max: limits::PRESENCE_QUEUE_BYTES_MAX,
            ttl: limits::PRESENCE_TTL,
            ttl_min: limits::PRESENCE_TTL_MIN,
            ttl_max: limits::PRESENCE_TTL_MAX,
            sweep: limits::PRESENCE_SWEEP,
        }
    }
}

impl PresenceLimits {
    /// Refuses a join that is beyond these, before anybody is asked.
    pub(crate) fn check_join(&self, join: &Join) -> Result<()> {
        if !(self.ttl_min..=self.ttl_max).contains(&join.ttl) {
            let (asked, min, max) = (millis(join.ttl), millis(self.ttl_min), millis(self.ttl_max));
            return Err(PresenceError::Ttl { asked, min, max });
        }
        let bytes = join.state.as_ref().map_or(0, Bytes::len);
        within("presence_state_bytes_max", "the bytes of the state", bytes, self.state_bytes_max)
    }

    pub(crate) fn check_message(&self, payload: &Bytes) -> Result<()> {
        let max = self.message_bytes_max;
        within("presence_message_bytes_max", "the bytes of the message", payload.len(), max)
    }
}

/// Refuses what is over a bound.
pub(crate) fn within(limit: &'static str, what: &'static str, asked: usize, max: usize) -> Result<()> {
    if asked <= max {
        return Ok(());
    }
    Err(PresenceError::Limit { limit, what, asked: asked as u64, max: max as u64 })
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
