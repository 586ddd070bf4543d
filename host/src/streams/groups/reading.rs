//! Reading from a group: taking the stream in, leasing what is free, and waiting for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::asked::{check_read, count};
use super::error::GroupError;
use super::names::GroupId;
use super::owner::{Group, Held, Inner};
use super::status::{Deliveries, GroupRead};
use super::streams::{follow, page};
use crate::event::{EventBatch, Micros, Position};
use crate::limits::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
use crate::streams::{PageLimit, StreamError};

use super::status::Result;

/// Events that are looked through for each one wanted, before it is looked whether some can be delivered.
const FILL_FACTOR: usize = 4;
/// The least of them.
const FILL_EVENTS_MIN: usize = 256;

/// A read that waits. Counted as long as it lives.
struct Waiter<'a>(&'a Group);

impl<'a> Waiter<'a> {
    fn begin(group: &'a Group, max: usize) -> Result<Self> {
        let mut held = group.lock();
        if held.waiters >= max {
            let what = "with one more, the number of reads of this group that wait".to_owned();
            let (asked, max) = (held.waiters as u64 + 1, max as u64);
            return Err(GroupError::Limit { limit: "group_waiters_max", what, asked, max });
        }
        held.waiters += 1;
        Ok(Self(group))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

/// What a look into the group came to.
enum Look {
    Taken(Deliveries),
    /// Nothing, and when to look again: at the latest then, and when the stream has more than this.
    Nothing {
        lost_events: u64,
        due: Option<Micros>,
        after: Option<Position>,
    },
    Gone,
}

impl Inner {
    pub(super) async fn read(self: &Arc<Self>, id: &GroupId, read: GroupRead) -> Result<Deliveries> {
        check_read(&read)?;
        let end = Instant::now() + read.wait;
        loop {
            let group = self.group(id).await?;
            let changed = group.changed.notified();
            tokio::pin!(changed);
            // From here on nothing is missed.
            changed.as_mut().enable();
            let mut tail = follow(self.log.tail(), &id.tenant, &group.stream);
            self.catch_up(&group).await?;
            // What has run out becomes a dead letter before anything else is delivered.
            let ticked = self.turn_of(&group, |held, now| {
                held.state.tick(now);
                held.state.see(&read.consumer, now)
            });
            let Some(seen) = ticked.await? else { continue };
            seen?;
            self.fill(&group, read.events).await?;
            match self.look(&group, &read)? {
                Look::Gone => {}
                Look::Taken(taken) => return Ok(taken),
                Look::Nothing { lost_events, .. } if Instant::now() >= end => {
                    return Ok(Deliveries { entries: Vec::new(), lost_events });
                }
                Look::Nothing { due, after, .. } => {
                    let _waiter = Waiter::begin(&group, self.limits.waiters_max)?;
                    let until = due.map_or(end, |due| end.min(Instant::now() + self.time_to(due)));
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                        alive = tail.wait_after(after.unwrap_or_default()), if after.is_some() => {
                            if !alive {
                                return Err(crate::error::BackendError::Closed.into());
                            }
                        }
                    }
                }
            }
        }
    }

    fn time_to(&self, at: Micros) -> Duration {
        let left = at.0.saturating_sub(self.clock.now().0);
        // A moment later, since a lease ends when its time has passed.
        Duration::from_micros(u64::try_from(left).unwrap_or(0)) + Duration::from_millis(1)
    }

    /// Leases what there is. No waiting from here to the answer: what is leased is answered.
    fn look(&self, group: &Group, read: &GroupRead) -> Result<Look> {
        let mut held = group.lock();
        held.asked_at = self.clock.now();
        let Held { state, closed: false, .. } = &mut *held else { return Ok(Look::Gone) };
        let lost = state.lost();
        if lost.stopped {
            let (events, until) = (lost.events, lost.until);
            return Err(GroupError::PositionLost { group: group.id.clone(), events, until });
        }
        let taken = state.take(read, self.clock.now())?;
        if taken.entries.is_empty() {
            let after = state.room().map(|_| state.frontier());
            return Ok(Look::Nothing { lost_events: lost.events, due: state.next_due(), after });
        }
        count(state.take_tally());
        Ok(Look::Taken(taken))
    }

    /// Takes in more of the stream until enough can be delivered, as far as there is room.
    async fn fill(&self, group: &Arc<Group>, wanted: usize) -> Result<()> {
        // It is never closed; a failure would only mean that two fill at a time, which does no harm.
        let _turn = group.filler.acquire().await;
        let mut left = wanted.saturating_mul(FILL_FACTOR).max(FILL_EVENTS_MIN);
        while left > 0 {
            let (after, limit) = {
                let held = group.lock();
                let Some((events, bytes)) = held.state.room() else { return Ok(()) };
                if held.closed || held.state.ready() >= wanted || held.state.lost().stopped {
                    return Ok(());
                }
                let events = events.min(left).min(PAGE_EVENTS_MAX);
                (held.state.frontier(), PageLimit { events, bytes: bytes.min(PAGE_BYTES_MAX) })
            };
            let (events, next) = match page(&*self.log, &group.id.tenant, &group.stream, after, limit).await {
                Ok(page) => page,
                // Retention has just passed: the next turn finds out what that means.
                Err(StreamError::PositionLost { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let entries = alone(&events);
            let mut held = group.lock();
            if held.state.frontier() != after {
                return Ok(());
            }
            left = left.saturating_sub(entries.len());
            let at_end = entries.is_empty();
            for entry in entries {
                held.state.take_in(entry);
            }
            held.state.advance(next);
            if at_end {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Each event in a batch of its own: a window that keeps one must not keep its whole page.
fn alone(events: &EventBatch) -> Vec<Arc<EventBatch>> {
    let one = |index: usize| {
        let bytes = events.records()[index].span().len();
        let mut batch = EventBatch::with_capacity(events.tenant.clone(), 1, bytes);
        batch.push_from(events, index);
        Arc::new(batch)
    };
    (0..events.len()).map(one).collect()
}
