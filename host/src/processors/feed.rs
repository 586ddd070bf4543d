//! Brings one tenant's events to the lanes of one processor: reads, filters, picks the lane.
//!
//! A feed reads the tail in memory where that reaches back far enough, else the
//! log. It waits for the slowest lane: the log keeps the rest. There is one
//! feed per tenant, so that one tenant's slow lane never holds up another's.

use std::sync::Arc;

use tokio::sync::watch;

use super::lane::lane_of;
use super::runner::Shared;
use super::task::Task;
use super::{OrderingKey, ProcessorFactory, Subscription};
use crate::event::{EventBatch, Position, TenantId};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::streams::{PageLimit, StreamError, TailReader};
use crate::telemetry::metrics::TAIL_FALLBACKS;

/// A chunk at least this long goes to a lane as it is; shorter ones are put together by copying.
const SHARE_EVENTS_MIN: usize = 256;

pub(super) struct Feed {
    shared: Arc<Shared>,
    tenant: TenantId,
    factory: Arc<dyn ProcessorFactory>,
    key: OrderingKey,
    subscription: Subscription,
    tail: TailReader,
    /// Nothing behind it is handed out while it is set.
    barrier: watch::Receiver<Option<Position>>,
    /// Everything up to here has been handed over or was not for this processor.
    position: Position,
    lanes: Vec<Lane>,
}

struct Lane {
    task: Arc<Task>,
    /// The task has everything up to here.
    holds: Position,
    next: Option<EventBatch>,
}

/// Why a feed ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the log has closed")]
    Closed,
    #[error("a task has ended")]
    TaskEnded,
}

impl Feed {
    /// A feed for tasks that stand at these positions; it begins at the lowest.
    pub(super) fn new(shared: Arc<Shared>, tenant: TenantId, tasks: &[(Arc<Task>, Position)]) -> Self {
        let factory = shared.factory();
        let manifest = factory.manifest();
        let tail = shared.log.tail().follow(&tenant);
        let barrier = shared.barrier.subscribe();
        let position = tasks.iter().map(|(_, position)| *position).min().unwrap_or_default();
        let lanes = tasks
            .iter()
            .map(|(task, holds)| Lane { task: Arc::clone(task), holds: *holds, next: None })
            .collect();
        let (key, subscription) = (manifest.ordering_key.clone(), manifest.subscription.clone());
        Self { key, subscription, tail, barrier, position, lanes, tenant, factory, shared }
    }

    /// Feeds until it is dropped or fails. Dropping it between two awaits hands
    /// nothing over twice: the tasks' positions decide at the next start.
    pub(super) async fn run(mut self) -> FeedError {
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), FeedError> {
        self.follow_version();
        let until = *self.barrier.borrow_and_update();
        if until.is_some_and(|until| self.position >= until) {
            self.halt().await;
            return Ok(());
        }
        let recent = self.shared.log.tail().read(&self.tenant, self.position, BATCH_EVENTS_MAX);
        match recent {
            Some(chunks) if chunks.is_empty() => {
                self.pass_quiet_stretch(until);
                if until.is_none_or(|until| self.position < until) {
                    tokio::select! {
                        open = self.tail.wait_after(self.position) => if !open {
                            return Err(FeedError::Closed);
                        },
                        // The sender is as old as this is.
                        _ = self.barrier.changed() => {}
                    }
                }
            }
            Some(chunks) => {
                for chunk in chunks {
                    self.hand_out(chunk, until).await?;
                }
                self.hand_over_all().await?;
            }
            None => {
                metrics::counter!(TAIL_FALLBACKS).increment(1);
                let limit = PageLimit { events: BATCH_EVENTS_MAX, bytes: BATCH_BYTES_MAX };
                let page = self.shared.log.read(&self.tenant, self.position, limit).await?;
                if !page.events.is_empty() {
                    self.hand_out(Arc::clone(&page.events), until).await?;
                    self.hand_over_all().await?;
                }
                self.position = self.position.max(until.map_or(page.next, |until| page.next.min(until)));
            }
        }
        self.tell();
        Ok(())
    }

    /// Tells everybody how far it is.
    fn tell(&self) {
        let position = self.position;
        for lane in &self.lanes {
            lane.task.advance(position);
        }
        self.shared.fed(&self.tenant, position);
    }

    /// Stays where it is until the barrier is moved or taken away.
    async fn halt(&mut self) {
        self.tell();
        self.shared.halts(&self.tenant, true);
        // The sender is as old as this is.
        let _ = self.barrier.changed().await;
        self.shared.halts(&self.tenant, false);
    }

    /// Another version may subscribe to other events: from here on, its own. The key stays: another key is a rebuild.
    fn follow_version(&mut self) {
        let factory = self.shared.factory();
        if !Arc::ptr_eq(&factory, &self.factory) {
            self.subscription = factory.manifest().subscription.clone();
            self.factory = factory;
        }
    }

    /// While this tenant is quiet the others are not: nothing of them is for it.
    fn pass_quiet_stretch(&mut self, until: Option<Position>) {
        let newest = *self.shared.log.tail().newest().borrow();
        let newest = until.map_or(newest, |until| newest.min(until));
        // Read after `newest`: an event of this tenant up to there would show.
        let still_quiet = self
            .shared
            .log
            .tail()
            .read(&self.tenant, self.position, 1)
            .is_some_and(|chunks| chunks.is_empty());
        if still_quiet && newest > self.position {
            self.position = newest;
        }
    }

    /// Sorts a chunk's events onto the lanes, those up to the barrier where there is one.
    async fn hand_out(&mut self, chunk: Arc<EventBatch>, until: Option<Position>) -> Result<(), FeedError> {
        let whole = until.is_none_or(|until| chunk.last_position() <= until);
        if whole && self.goes_as_it_is(&chunk) {
            self.hand_over(0).await?;
            self.position = chunk.last_position();
            return self.send(0, chunk).await;
        }
        for (index, record) in chunk.records().iter().enumerate() {
            let position = Position(record.position);
            if position <= self.position {
                continue;
            }
            if let Some(until) = until.filter(|until| position > *until) {
                // What comes after it lies behind the barrier, too.
                self.position = until;
                return Ok(());
            }
            let (aggregate, event_type) = chunk.routing(index);
            if self.subscription.matches(aggregate, event_type) {
                let count = u32::try_from(self.lanes.len()).expect("lanes_max is far below 2^32");
                let lane = lane_of(&self.key, &chunk, index, count) as usize;
                if position > self.lanes[lane].holds {
                    self.put(lane, &chunk, index).await?;
                }
            }
            self.position = position;
        }
        Ok(())
    }

    fn goes_as_it_is(&self, chunk: &EventBatch) -> bool {
        let [lane] = &self.lanes[..] else { return false };
        let first = chunk.records().first().map_or(0, |r| r.position);
        (SHARE_EVENTS_MIN..=BATCH_EVENTS_MAX).contains(&chunk.len())
            && first > self.position.0
            && first > lane.holds.0
            && (0..chunk.len()).all(|index| {
                let (aggregate, event_type) = chunk.routing(index);
                self.subscription.matches(aggregate, event_type)
            })
    }

    async fn put(&mut self, lane: usize, chunk: &EventBatch, index: usize) -> Result<(), FeedError> {
        let bytes = chunk.records()[index].span().len();
        let full = self.lanes[lane]
            .next
            .as_ref()
            .is_some_and(|next| next.len() >= BATCH_EVENTS_MAX || next.bytes() + bytes > BATCH_BYTES_MAX);
        if full {
            self.hand_over(lane).await?;
        }
        let tenant = &self.tenant;
        self.lanes[lane].next.get_or_insert_with(|| EventBatch::new(tenant.clone())).push_from(chunk, index);
        Ok(())
    }

    async fn hand_over_all(&mut self) -> Result<(), FeedError> {
        for lane in 0..self.lanes.len() {
            self.hand_over(lane).await?;
        }
        Ok(())
    }

    async fn hand_over(&mut self, lane: usize) -> Result<(), FeedError> {
        match self.lanes[lane].next.take() {
            Some(batch) => self.send(lane, Arc::new(batch)).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, lane: usize, batch: Arc<EventBatch>) -> Result<(), FeedError> {
        let last = batch.last_position();
        let lane = &mut self.lanes[lane];
        lane.holds = lane.holds.max(last);
        if lane.task.send(batch, last).await { Ok(()) } else { Err(FeedError::TaskEnded) }
    }
}
