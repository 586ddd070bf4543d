//! What waits for one follower of a room.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use tokio::sync::Notify;

use super::{Change, Notice, PresenceError, PresenceLimits, Result, Roster};
use crate::error::{Classify as _, Retry};
use crate::telemetry::metrics as names;

/// Why something was not told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapCause {
    /// The follower took less than came.
    Overflow,
    /// The server that the rooms are on was lost for a while.
    Reconnected,
    /// The server has lost what was said there, or the host read it too slowly.
    FeedLost,
}

impl GapCause {
    pub fn code(self) -> &'static str {
        match self {
            Self::Overflow => "presence_follower_overflow",
            Self::Reconnected => "presence_reconnected",
            Self::FeedLost => "presence_feed_lost",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Reconnected => "reconnected",
            Self::FeedLost => "feed_lost",
        }
    }
}

/// Reads a roster that is no older than a place in the order of changes.
pub(crate) type ReadRoster = Arc<dyn Fn(u64) -> BoxFuture<'static, Result<Arc<Roster>>> + Send + Sync>;

/// One follower's queue. The backend puts in, the follower takes out.
#[derive(Debug)]
pub(crate) struct Queue {
    changes_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Before all changes: a roster is needed.
    needed: Option<Needed>,
    /// The last roster has everything up to here, also what is put in later.
    seen: u64,
}

/// What the next roster must have, and why it is needed; no cause where it is the first.
#[derive(Clone, Copy, Debug)]
struct Needed {
    after: u64,
    cause: Option<GapCause>,
}

/// What there is for a follower.
enum Taken {
    Change(Arc<Change>),
    Needed(Needed),
    Nothing,
}

impl Queue {
    /// A queue that gets every change after a place.
    pub(crate) fn new(limits: &PresenceLimits, after: u64) -> Self {
        let state = State {
            changes: VecDeque::new(),
            bytes: 0,
            needed: Some(Needed { after, cause: None }),
            seen: 0,
        };
        Self {
            changes_max: limits.queue_max,
            bytes_max: limits.queue_bytes_max,
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }

    /// Puts a change in; nobody waits for a follower that does not take them.
    pub(crate) fn put(&self, change: &Arc<Change>) {
        {
            let mut state = self.lock();
            if change.sequence <= state.seen {
                return;
            }
            let bytes = change.bytes();
            let full = state.changes.len() >= self.changes_max || state.bytes + bytes > self.bytes_max;
            if full {
                state.lose(change.sequence, GapCause::Overflow);
            } else {
                state.bytes += bytes;
                state.changes.push_back(Arc::clone(change));
            }
        }
        self.wake.notify_one();
    }

    /// Notes that changes up to a place may not have been put in.
    pub(crate) fn lose(&self, through: u64, cause: GapCause) {
        {
            let mut state = self.lock();
            // A server that was emptied may count from lower down again.
            state.seen = 0;
            state.lose(through, cause);
        }
        self.wake.notify_one();
    }

    fn take(&self) -> Taken {
        let mut state = self.lock();
        if let Some(needed) = state.needed {
            return Taken::Needed(needed);
        }
        match state.changes.pop_front() {
            Some(change) => {
                state.bytes -= change.bytes();
                Taken::Change(change)
            }
            None => Taken::Nothing,
        }
    }

    /// Goes on behind a roster. False where more was lost since it was read.
    fn resume(&self, roster: &Roster) -> bool {
        let mut state = self.lock();
        if state.needed.is_some_and(|needed| needed.after > roster.sequence) {
            return false;
        }
        state.needed = None;
        state.seen = roster.sequence;
        while let Some(change) = state.changes.pop_front_if(|change| change.sequence <= roster.sequence) {
            state.bytes -= change.bytes();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lose(&mut self, through: u64, cause: GapCause) {
        let Some(needed) = self.needed else {
            counter!(names::PRESENCE_GAPS, "cause" => cause.label()).increment(1);
            self.needed = Some(Needed { after: through, cause: Some(cause) });
            return self.clear();
        };
        // The roster that is needed anyway tells of this, too. Who waits for the first one has missed nothing.
        let after = match cause {
            GapCause::Overflow => needed.after.max(through),
            GapCause::Reconnected | GapCause::FeedLost => through,
        };
        self.needed = Some(Needed { after, ..needed });
        self.clear();
    }

    fn clear(&mut self) {
        self.changes.clear();
        self.bytes = 0;
    }
}

/// Follows one room. Dropping it ends that.
pub struct Follower {
    queue: Arc<Queue>,
    read: ReadRoster,
    /// The first roster, which was read when it was attached.
    first: Option<Arc<Roster>>,
    /// A gap was told of, and the roster after it was not.
    told: bool,
    /// Tells the backend.
    detach: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Follower {
    /// Attaches a queue that gets changes already. Answers when the roster is there to begin with.
    pub(crate) async fn attach(
        queue: Arc<Queue>,
        read: ReadRoster,
        detach: impl FnOnce() + Send + Sync + 'static,
    ) -> Result<Self> {
        gauge!(names::PRESENCE_FOLLOWERS).increment(1);
        let mut follower = Self { queue, read, first: None, told: false, detach: Some(Box::new(detach)) };
        while let Taken::Needed(needed) = follower.queue.take() {
            let roster = (follower.read)(needed.after).await?;
            if follower.queue.resume(&roster) {
                follower.first = Some(roster);
                break;
            }
        }
        Ok(follower)
    }

    /// What comes next; waits for it. Dropping the future loses nothing. While the server is away it waits, and fails
    /// only with what waiting does not help.
    pub async fn next(&mut self) -> Result<Notice> {
        if let Some(first) = self.first.take() {
            return Ok(Notice::Roster(first));
        }
        loop {
            match self.queue.take() {
                Taken::Change(change) => return Ok(Notice::Change(change)),
                Taken::Nothing => self.queue.wake.notified().await,
                Taken::Needed(needed) => {
                    if let Some(cause) = needed.cause
                        && !std::mem::replace(&mut self.told, true)
                    {
                        return Ok(Notice::Gap(cause));
                    }
                    match (self.read)(needed.after).await {
                        Ok(roster) if self.queue.resume(&roster) => {
                            self.told = false;
                            return Ok(Notice::Roster(roster));
                        }
                        Ok(_) => {}
                        Err(error) => self.pause(error).await?,
                    }
                }
            }
        }
    }

    /// Waits before the roster is asked for again, where that may help.
    async fn pause(&self, error: PresenceError) -> Result<()> {
        match error.retry() {
            Retry::Never => Err(error),
            Retry::After(wait) => {
                tracing::debug!(error.kind = error.code(), %error, "a roster waits");
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        gauge!(names::PRESENCE_FOLLOWERS).decrement(1);
        if let Some(detach) = self.detach.take() {
            detach();
        }
    }
}
