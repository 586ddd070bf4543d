//! Who owns what in a fleet, and how its hosts tell each other.
//!
//! A member is a host under a name; each time it comes in it is another incarnation, with an epoch above all former ones
//! of the fleet. Whatever is said names the incarnation that says it and the one that it is for: what a replaced or
//! dead owner still sends is refused, and nothing that was meant for it reaches the next one. No incarnation outlives the
//! server that members share: after a restart, a failover or older data all of them are gone and enter again. So nothing
//! that a server has forgotten is taken for delivered, and no number stands for two messages.
//!
//! `placement` says which member owns a partition; it is pure. Deliberately absent: retries. A sender that is
//! told `Gone` looks at who is alive and sends to the new owner; handling a control message twice must do no harm.
//!
//! A lease gives one host at a time the right to something; its generation fences out whoever had it before.
//! [`Ownerships`] keeps this host's leases and says at any time whether they hold.

mod error;
mod lease;
mod member;
mod ownership;
pub mod placement;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use error::ClusterError;
pub use lease::{Asked, Fence, Lease, LeaseStore};
pub use member::{Incarnation, MemberId, View};
pub use ownership::{Ownership, Ownerships, Right, Standing};

use crate::limits;

pub type Result<T> = std::result::Result<T, ClusterError>;

/// Who is alive. Time is that of the server which members share; a host that stops telling is gone for everybody at once.
pub trait Membership: Send + Sync + fmt::Debug {
    /// Comes in under a name, alive for the TTL. An incarnation that has the name already is replaced, and what waits
    /// for it is dropped.
    fn enter(&self, member: &MemberId) -> BoxFuture<'_, Result<Incarnation>>;

    /// Stays alive for another TTL. `Gone` when it was replaced, its time was over, or the server is not what it was: it
    /// has to enter again, since what it owned may be another's.
    fn heartbeat(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>>;

    /// Goes at once. An incarnation that is gone already changes nothing.
    fn leave(&self, me: &Incarnation) -> BoxFuture<'_, Result<()>>;

    /// Who is alive now, and the epoch of this answer, which grows with every change of it.
    fn live(&self) -> BoxFuture<'_, Result<View>>;
}

/// Requests from one member to another, each acknowledged with an answer.
pub trait ControlBus: Send + Sync + fmt::Debug {
    /// Puts a message where its receiver reads it, and answers its number. It stays there until it is acknowledged or
    /// its receiver is gone. `Gone` when either of the two is. After an error of the server it may have been put there.
    fn send(&self, from: &Incarnation, to: &Incarnation, payload: Bytes) -> BoxFuture<'_, Result<u64>>;

    /// Messages after a number that are not acknowledged, in their order; waits for one for a time, and may answer none.
    /// Who begins reads after 0. `Gone` when the receiver is, and when the server has not had as many messages for it, since
    /// it has lost the newest: it has to enter again.
    fn receive(
        &self,
        me: &Incarnation,
        after: u64,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<ControlMessage>>>;

    /// Says that a message was handled, and what came of it. Of one that was acknowledged before, nothing changes.
    fn acknowledge(&self, me: &Incarnation, sequence: u64, answer: Bytes) -> BoxFuture<'_, Result<()>>;

    /// What came of a message; waits for it for a time. None when it is not acknowledged yet, `Gone` when it never
    /// will be, or was so long ago that the answer was dropped: those of the newest `cluster_control_max` messages are kept.
    fn answer(&self, to: &Incarnation, sequence: u64, wait: Duration)
    -> BoxFuture<'_, Result<Option<Bytes>>>;
}

/// Changes from owners to those who serve them.
pub trait DeltaBus: Send + Sync + fmt::Debug {
    /// Puts deltas behind all that their receiver has, together and in order; answers the number of the last. `Gone` when
    /// either of the two is: an owner that was replaced says nothing more.
    fn publish(&self, from: &Incarnation, to: &Incarnation, deltas: Vec<Bytes>)
    -> BoxFuture<'_, Result<u64>>;

    /// Deltas after a number; waits for one for a time, and may answer none. Numbers have no holes: what is missing is
    /// told of. Who begins reads after 0.
    fn deltas(&self, me: &Incarnation, after: u64, wait: Duration) -> BoxFuture<'_, Result<DeltaPage>>;
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlMessage {
    pub sequence: u64,
    pub from: Incarnation,
    pub payload: Bytes,
}

/// A change, and the owner that told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub sequence: u64,
    pub from: Incarnation,
    pub payload: Bytes,
}

/// What a receiver reads at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaPage {
    /// How many are missing before the first of these, or were read and then lost by the server, which begins again at
    /// `next`. Whoever keeps state from deltas asks its owners for it anew.
    pub lost: u64,
    pub deltas: Vec<Delta>,
    /// Where to go on.
    pub next: u64,
}

/// The bounds of a fleet; see the constants of the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterLimits {
    pub ttl: Duration,
    pub message_bytes_max: usize,
    pub control_max: usize,
    pub deltas_max: usize,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self {
            ttl: limits::CLUSTER_TTL,
            message_bytes_max: limits::CLUSTER_MESSAGE_BYTES_MAX,
            control_max: limits::CLUSTER_CONTROL_MAX,
            deltas_max: limits::CLUSTER_DELTAS_MAX,
        }
    }
}

impl ClusterLimits {
    pub(crate) fn check_message(&self, payload: &Bytes) -> Result<()> {
        within("cluster_message_bytes_max", payload.len(), self.message_bytes_max)
    }

    pub(crate) fn check_deltas(&self, deltas: &[Bytes]) -> Result<()> {
        within("cluster_deltas_at_once_max", deltas.len(), limits::CLUSTER_DELTAS_AT_ONCE_MAX)?;
        let bytes = deltas.iter().map(Bytes::len).sum();
        within("cluster_delta_bytes_at_once_max", bytes, limits::CLUSTER_DELTA_BYTES_AT_ONCE_MAX)?;
        deltas.iter().try_for_each(|delta| self.check_message(delta))
    }
}

/// Refuses what is over a bound.
pub(crate) fn within(limit: &'static str, asked: usize, max: usize) -> Result<()> {
    if asked <= max {
        return Ok(());
    }
    Err(ClusterError::Limit { limit, asked: asked as u64, max: max as u64 })
}
