//! Following a channel: a place in its log. Nothing is kept for a follower, so a slow one costs nothing and loses nothing
//! that the log still has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bell::Listener;
use super::counts;
use super::cursor::{Incarnation, Place};
use super::entry::Entry;
use super::error::ChannelError;
use super::names::Party;
use super::record::{Head, Outcome, Process, Role};
use super::rules::may_read;
use super::tail::{Live, Seen};
use super::{ChannelStore, ReadLimit};
use crate::event::Position;
use crate::limits::{CHANNEL_FOLLOW_BYTES_MAX, CHANNEL_FOLLOW_ENTRIES_MAX};

/// What a follower gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// The first one: where the follower begins and what the log has. Up to `newest` it is replay.
    Ready { after: Position, oldest: Position, newest: Position },
    /// In the order of their positions, each once.
    Entries(Vec<Arc<Entry>>),
    /// The follower is behind. It goes on at `resume_at`; `missed` entries before that were dropped by the channel, and
    /// nothing else is left out.
    Lagged { resume_at: Position, missed: u64, behind: u64 },
    /// The last one.
    Closed { reason: CloseReason, last: Position },
}

/// What a follower finds when it looks.
#[derive(Clone, Debug, PartialEq)]
pub enum Now {
    Notice(Notice),
    /// There is something that is not in memory: [`Subscription::stored`] reads it.
    Stored,
    /// Nothing until [`Subscription::changed`].
    Nothing,
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides have sent `end` or `error`.
    Ended,
    /// The process was closed so.
    Closed(Outcome),
    /// The process was removed with its channels.
    Removed,
    /// The follower may not read any more.
    Revoked,
    Unsubscribed,
}

impl CloseReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Closed(outcome) => outcome.as_str(),
            Self::Removed => "removed",
            Self::Revoked => "revoked",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

/// Ends a subscription from elsewhere. Using it again, or late, does nothing.
#[derive(Clone, Debug)]
pub struct SubscriptionHandle {
    live: Arc<Live>,
    ended: Arc<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    asked: AtomicBool,
    /// Whether it counts as a follower no more.
    left: AtomicBool,
}

/// One follower. It ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    live: Arc<Live>,
    changed: Listener,
    store: Arc<dyn ChannelStore>,
    who: Who,
    /// Which process it is of, whichever is there under its name.
    incarnation: Incarnation,
    after: Position,
    begun: bool,
    closed: bool,
    /// Whether it has ever had all there was, since it was last told to be behind.
    caught_up: bool,
    lag_max: u64,
    ended: Arc<Ended>,
}

/// Whose rights a subscription lives by.
#[derive(Clone, Debug)]
pub(super) enum Who {
    /// Of a party, in the role that it had.
    Party(Party, Role),
    Host,
}

impl SubscriptionHandle {
    pub fn unsubscribe(&self) {
        if !self.ended.asked.swap(true, Ordering::AcqRel) {
            self.ended.leave(&self.live);
            self.live.wake();
        }
    }
}

impl Ended {
    fn leave(&self, live: &Live) {
        if !self.left.swap(true, Ordering::AcqRel) {
            live.leave();
            counts::follower_left();
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.ended.leave(&self.live);
    }
}

impl Subscription {
    /// The caller has counted it with `Live::enter`.
    pub(super) fn new(
        live: Arc<Live>,
        store: Arc<dyn ChannelStore>,
        who: Who,
        after: (&Process, Position),
        lag_max: u64,
    ) -> Self {
        counts::follower_came();
        Self {
            changed: live.watch(),
            live,
            store,
            who,
            incarnation: Incarnation::of(after.0),
            after: after.1,
            begun: false,
            closed: false,
            caught_up: false,
            lag_max,
            ended: Arc::default(),
        }
    }

    pub fn handle(&self) -> SubscriptionHandle {
        SubscriptionHandle { live: Arc::clone(&self.live), ended: Arc::clone(&self.ended) }
    }

    /// Where it stands: the position of the last entry that it has given.
    pub fn position(&self) -> Position {
        self.after
    }

    /// A position as a place of the process that is followed.
    pub fn place(&self, position: Position) -> Place {
        Place { incarnation: Some(self.incarnation), position }
    }

    /// What its follower is to the channel; none where that is the host itself.
    pub fn role(&self) -> Option<Role> {
        match self.who {
            Who::Party(_, role) => Some(role),
            Who::Host => None,
        }
    }

    /// What comes next, `max` entries at most; none after the end. Dropping the future loses nothing.
    pub async fn next(&mut self, max: usize) -> Result<Option<Notice>, ChannelError> {
        if self.closed {
            return Ok(None);
        }
        let max = max.max(1);
        let limit = ReadLimit { entries: max, bytes: CHANNEL_FOLLOW_BYTES_MAX };
        loop {
            let mut now = self.now(max);
            if let Now::Stored = now {
                match self.stored(limit).await? {
                    Some(notice) => return Ok(Some(notice)),
                    None => now = self.now(max),
                }
            }
            match now {
                Now::Notice(notice) => return Ok(Some(notice)),
                Now::Stored | Now::Nothing => self.changed().await,
            }
        }
    }

    /// What there is at once, from memory. With a `max` of 0 entries stay where they are: then it is only told what has
    /// to do with no entry, and the end once there is none before it.
    pub fn now(&mut self, max: usize) -> Now {
        if self.closed {
            return Now::Nothing;
        }
        let take = max.min(CHANNEL_FOLLOW_ENTRIES_MAX);
        self.changed.forget();
        if self.ended.asked.load(Ordering::Acquire) {
            return self.close(CloseReason::Unsubscribed);
        }
        let (head, entries) = match self.live.look(self.after, take) {
            Seen::Removed => return self.close(CloseReason::Removed),
            Seen::Unread => return Now::Stored,
            Seen::Head(head, entries) => (head, entries),
        };
        if self.own(&head).is_err() {
            return self.close(CloseReason::Removed);
        }
        if !self.may_go_on(&head) {
            return self.close(CloseReason::Revoked);
        }
        if !self.begun {
            self.begun = true;
            let (oldest, newest) = (head.channel.oldest, head.channel.newest);
            self.caught_up = self.after >= newest;
            return Now::Notice(Notice::Ready { after: self.after, oldest, newest });
        }
        if max == 0 && head.channel.newest > self.after {
            return Now::Nothing;
        }
        if let Some(notice) = self.lagged(&head) {
            return Now::Notice(notice);
        }
        let Some(entries) = entries else { return Now::Stored };
        if let Some(last) = entries.last() {
            self.after = last.position;
            self.caught_up |= self.after >= head.channel.newest;
            return Now::Notice(Notice::Entries(entries));
        }
        self.caught_up = true;
        if let Some(closed) = &head.process.closed {
            return self.close(CloseReason::Closed(closed.outcome));
        }
        if head.channel.is_ended(&head.process) {
            return self.close(CloseReason::Ended);
        }
        Now::Nothing
    }

    /// What the store has, after [`now`](Self::now) has said so. None: look again, and where it is still said, wait.
    /// Dropping the future loses nothing.
    pub async fn stored(&mut self, limit: ReadLimit) -> Result<Option<Notice>, ChannelError> {
        let limit = ReadLimit { entries: limit.entries.clamp(1, CHANNEL_FOLLOW_ENTRIES_MAX), ..limit };
        match self.read(limit).await {
            Ok(entries) => Ok(entries.last().map(|last| last.position).map(|last| {
                self.after = last;
                self.caught_up |= self.live.head().is_some_and(|head| last >= head.channel.newest);
                Notice::Entries(entries)
            })),
            Err(ChannelError::ProcessUnknown { .. } | ChannelError::Unknown { .. }) => {
                Ok(Some(self.end(CloseReason::Removed)))
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self, limit: ReadLimit) -> Result<Vec<Arc<Entry>>, ChannelError> {
        if self.live.head().is_none() {
            self.look_up().await?;
            if !self.begun {
                return Ok(Vec::new());
            }
        }
        loop {
            let page = self.store.read(&self.live.id, self.after, limit).await?;
            self.own(&page.head)?;
            if page.missed == 0 && self.may_go_on(&page.head) {
                // What was read under the name of a channel that is gone may be another one's.
                return Ok(if self.live.head().is_some() { page.entries } else { Vec::new() });
            }
            // Something was dropped since, or the right to read has ended: that is told first.
            let head = self.look_up().await?;
            if page.missed > 0 || !self.may_go_on(&head) {
                return Ok(Vec::new());
            }
            // It was taken and given back meanwhile.
        }
    }

    /// The channel's state as the store has it now, for everybody who follows it.
    async fn look_up(&self) -> Result<Head, ChannelError> {
        let head = self.store.head(&self.live.id).await?;
        self.own(&head)?;
        self.live.read(&head);
        Ok(head)
    }

    /// Refuses what is another process's that has the same name now.
    fn own(&self, head: &Head) -> Result<(), ChannelError> {
        if Incarnation::of(&head.process) == self.incarnation { Ok(()) } else { Err(self.live.id.unknown()) }
    }

    /// Waits until something has changed since the last look. It holds nothing of the subscription.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut changed = self.changed.clone();
        // That the channel is gone from memory is a change, too.
        async move { changed.rung().await }
    }

    fn may_go_on(&self, head: &Head) -> bool {
        match &self.who {
            Who::Host => true,
            Who::Party(party, role) => may_read(head, party).is_ok_and(|now| now == *role),
        }
    }

    /// Says once that it is behind, each time that it falls back, and always what is gone.
    fn lagged(&mut self, head: &Head) -> Option<Notice> {
        let (oldest, newest) = (head.channel.oldest, head.channel.newest);
        let missed = oldest.0.saturating_sub(self.after.0 + 1);
        let after = Position(self.after.0 + missed);
        let behind = newest.0.saturating_sub(after.0);
        let falls_back = self.caught_up && behind > self.lag_max;
        if missed == 0 && !falls_back {
            return None;
        }
        self.caught_up = false;
        self.after = after;
        counts::lagged(missed);
        Some(Notice::Lagged { resume_at: Position(after.0 + 1), missed, behind })
    }

    fn close(&mut self, reason: CloseReason) -> Now {
        Now::Notice(self.end(reason))
    }

    fn end(&mut self, reason: CloseReason) -> Notice {
        self.closed = true;
        self.ended.leave(&self.live);
        Notice::Closed { reason, last: self.after }
    }
}
