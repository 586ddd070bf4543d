//! Following a channel: a place in its log. Nothing is kept for a follower, so a slow one costs nothing and loses nothing
//! that the log still has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::counts;
use super::entry::Entry;
use super::error::ChannelError;
use super::names::Party;
use super::record::{Head, Outcome, Role};
use super::rules::may_read;
use super::tail::{Live, Seen};
use super::{ChannelStore, ReadLimit};
use crate::event::Position;
use crate::limits::{CHANNEL_FOLLOW_ENTRIES_MAX, CHANNEL_PAGE_BYTES_MAX};

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
    changed: watch::Receiver<()>,
    store: Arc<dyn ChannelStore>,
    who: Who,
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
        after: Position,
        lag_max: u64,
    ) -> Self {
        counts::follower_came();
        Self {
            changed: live.watch(),
            live,
            store,
            who,
            after,
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

    /// What comes next, `max` entries at most; none after the end. Dropping the future loses nothing.
    pub async fn next(&mut self, max: usize) -> Result<Option<Notice>, ChannelError> {
        if self.closed {
            return Ok(None);
        }
        let max = max.clamp(1, CHANNEL_FOLLOW_ENTRIES_MAX);
        loop {
            self.changed.mark_unchanged();
            if self.ended.asked.load(Ordering::Acquire) {
                return Ok(Some(self.close(CloseReason::Unsubscribed)));
            }
            let (head, entries) = match self.live.look(self.after, max) {
                Seen::Removed => return Ok(Some(self.close(CloseReason::Removed))),
                Seen::Unread => {
                    match self.store.head(&self.live.id).await {
                        Ok(head) => self.live.read(&head),
                        Err(ChannelError::ProcessUnknown { .. } | ChannelError::Unknown { .. }) => {
                            return Ok(Some(self.close(CloseReason::Removed)));
                        }
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                Seen::Head(head, entries) => (head, entries),
            };
            if !self.may_go_on(&head) {
                return Ok(Some(self.close(CloseReason::Revoked)));
            }
            if !self.begun {
                self.begun = true;
                let (oldest, newest) = (head.channel.oldest, head.channel.newest);
                self.caught_up = self.after >= newest;
                return Ok(Some(Notice::Ready { after: self.after, oldest, newest }));
            }
            if let Some(notice) = self.lagged(&head) {
                return Ok(Some(notice));
            }
            let entries = match entries {
                Some(entries) => entries,
                None => {
                    let limit = ReadLimit { entries: max, bytes: CHANNEL_PAGE_BYTES_MAX };
                    match self.store.read(&self.live.id, self.after, limit).await {
                        // Something was dropped since: look again.
                        Ok(page) if page.missed > 0 => {
                            self.live.read(&self.store.head(&self.live.id).await?);
                            continue;
                        }
                        Ok(page) => page.entries,
                        Err(ChannelError::ProcessUnknown { .. } | ChannelError::Unknown { .. }) => {
                            return Ok(Some(self.close(CloseReason::Removed)));
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            if let Some(last) = entries.last() {
                self.after = last.position;
                self.caught_up |= self.after >= head.channel.newest;
                return Ok(Some(Notice::Entries(entries)));
            }
            self.caught_up = true;
            if let Some(closed) = &head.process.closed {
                return Ok(Some(self.close(CloseReason::Closed(closed.outcome))));
            }
            if head.channel.is_ended(&head.process) {
                return Ok(Some(self.close(CloseReason::Ended)));
            }
            // Only the end of the channel's sender could be an error, and this holds it.
            let _ = self.changed.changed().await;
        }
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

    fn close(&mut self, reason: CloseReason) -> Notice {
        self.closed = true;
        self.ended.leave(&self.live);
        Notice::Closed { reason, last: self.after }
    }
}
