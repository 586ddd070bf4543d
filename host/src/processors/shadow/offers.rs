//! How a running task's worker lets a candidate have what it has handled: a few
//! calls that cost it next to nothing while nobody wants it, and never wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::super::proof::Basis;
use super::super::{FailureKind, FlushReason, Outcome, StateReader};
use super::keyed::Before;
use super::task::ShadowTask;
use super::{Shadow, lock};
use crate::checkpoints::{EffectBatch, TaskId};
use crate::event::EventBatch;
use crate::limits::{SHADOW_QUEUE_BATCHES_MAX, SHADOW_QUEUE_BYTES_MAX};

/// Where a processor's shadow run is found, if there is one.
#[derive(Debug, Default)]
pub(in super::super) struct Slot {
    on: AtomicBool,
    shadow: Mutex<Option<Arc<Shadow>>>,
}

impl Slot {
    pub(super) fn set(&self, shadow: Option<Arc<Shadow>>) {
        let mut slot = lock(&self.shadow);
        self.on.store(shadow.is_some(), Ordering::Release);
        *slot = shadow;
    }

    fn get(&self) -> Option<Arc<Shadow>> {
        if self.on.load(Ordering::Acquire) { lock(&self.shadow).clone() } else { None }
    }
}

/// A worker's end of a stretch. None of its calls waits or fails.
#[derive(Debug, Default)]
pub(in super::super) struct Link(Option<Weak<Stretch>>);

impl Link {
    /// Call it where the instance's state is the basis': nothing is handled
    /// that is not in it. Does nothing unless somebody wants a stretch.
    pub(in super::super) fn begin_stretch(
        &mut self,
        slot: &Slot,
        id: &TaskId,
        basis: impl FnOnce() -> Basis,
    ) {
        if self.is_watched() {
            return;
        }
        if let Some(shadow) = slot.get() {
            self.0 = shadow.begin_stretch(id, basis).as_ref().map(Arc::downgrade);
        }
    }

    /// Whether a candidate follows.
    pub(in super::super) fn is_watched(&self) -> bool {
        self.0.as_ref().is_some_and(|stretch| stretch.strong_count() > 0)
    }

    /// Effects are about to become readable as keyed state.
    pub(in super::super) fn before_write(&mut self, effects: &EffectBatch, now: &dyn StateReader) {
        if let Some(stretch) = self.stretch()
            && !stretch.before.remember(effects, now)
        {
            stretch.drop_all();
            self.0 = None;
        }
    }

    /// The instance has handled this batch: what came of it, how long it took,
    /// and how much memory the instance has.
    pub(in super::super) fn offer(
        &mut self,
        batch: &Arc<EventBatch>,
        outcome: &Outcome,
        took: Duration,
        memory: u64,
    ) {
        let rejected = outcome.failure.as_ref().is_some_and(|f| f.kind == FailureKind::Reject);
        if outcome.handled == 0 && !rejected {
            return;
        }
        let bytes = batch.bytes() + outcome.effects.bytes();
        self.push(bytes, || {
            let (batch, effects) = (Arc::clone(batch), outcome.effects.clone());
            Offer::Events(Handled { batch, handled: outcome.handled, rejected, effects, took, memory })
        });
    }

    /// The instance has flushed.
    pub(in super::super) fn offer_flush(&mut self, reason: FlushReason, effects: &EffectBatch) {
        self.push(effects.bytes(), || Offer::Flush(reason, effects.clone()));
    }

    /// The instance begins again from another state, or ends.
    pub(in super::super) fn break_stretch(&mut self) {
        if let Some(stretch) = self.0.take().and_then(|stretch| stretch.upgrade()) {
            stretch.end(true);
        }
    }

    /// The same, and what was handled is not what becomes of it.
    pub(in super::super) fn drop_stretch(&mut self) {
        if let Some(stretch) = self.0.take().and_then(|stretch| stretch.upgrade()) {
            stretch.drop_all();
        }
    }

    fn push(&mut self, bytes: usize, offer: impl FnOnce() -> Offer) {
        if let Some(stretch) = self.stretch()
            && !stretch.push(bytes, offer)
        {
            self.0 = None;
        }
    }

    fn stretch(&self) -> Option<Arc<Stretch>> {
        self.0.as_ref().and_then(Weak::upgrade)
    }
}

/// What a worker has done.
#[derive(Debug)]
pub(super) enum Offer {
    Events(Handled),
    Flush(FlushReason, EffectBatch),
}

/// A batch, and what the running version made of its first `handled` events.
#[derive(Debug)]
pub(super) struct Handled {
    pub(super) batch: Arc<EventBatch>,
    pub(super) handled: usize,
    /// It rejected the event after those.
    pub(super) rejected: bool,
    pub(super) effects: EffectBatch,
    pub(super) took: Duration,
    pub(super) memory: u64,
}

/// A run of events from one state on.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) basis: Basis,
    pub(super) before: Arc<Before>,
    task: Weak<ShadowTask>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    offers: VecDeque<(usize, Offer)>,
    bytes: usize,
    end: Option<Ended>,
}

/// How a stretch came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What was done is compared.
    Whole,
    /// The same, before its time.
    Broken,
    /// What was done means nothing.
    Dropped,
}

/// What a candidate does next.
#[derive(Debug)]
pub(super) enum Step {
    Take(Offer),
    Wait,
    Finish(Ended),
}

impl Stretch {
    pub(super) fn new(basis: Basis, task: Weak<ShadowTask>) -> Self {
        Self { basis, before: Arc::default(), task, queue: Mutex::default() }
    }

    /// Answers false when the stretch has ended; when there is no room, it ends.
    fn push(&self, bytes: usize, offer: impl FnOnce() -> Offer) -> bool {
        let has_room = {
            let mut queue = lock(&self.queue);
            let has_room =
                queue.offers.len() < SHADOW_QUEUE_BATCHES_MAX && queue.bytes < SHADOW_QUEUE_BYTES_MAX;
            if queue.end.is_none() && !has_room {
                queue.end = Some(Ended::Broken);
            }
            queue.end.is_none()
        };
        // Copied outside of the lock: only this worker pushes.
        if has_room {
            let offer = offer();
            let mut queue = lock(&self.queue);
            queue.bytes += bytes;
            queue.offers.push_back((bytes, offer));
            drop(queue);
            self.wake(true);
        }
        has_room
    }

    pub(super) fn next(&self) -> Step {
        let mut queue = lock(&self.queue);
        if queue.end == Some(Ended::Dropped) {
            return Step::Finish(Ended::Dropped);
        }
        match (queue.offers.pop_front(), queue.end) {
            (Some((bytes, offer)), _) => {
                queue.bytes -= bytes;
                Step::Take(offer)
            }
            (None, Some(end)) => Step::Finish(end),
            (None, None) => Step::Wait,
        }
    }

    /// Takes no more; what waits is still handled.
    pub(super) fn end(&self, broken: bool) {
        let end = if broken { Ended::Broken } else { Ended::Whole };
        lock(&self.queue).end.get_or_insert(end);
        self.wake(false);
    }

    /// Takes no more, and gives up what waits.
    pub(super) fn cut(&self) {
        let mut queue = lock(&self.queue);
        queue.offers.clear();
        queue.end.get_or_insert(Ended::Whole);
        drop(queue);
        self.wake(false);
    }

    /// Everything done so far may be wrong.
    pub(super) fn drop_all(&self) {
        let mut queue = lock(&self.queue);
        queue.offers.clear();
        queue.end = Some(Ended::Dropped);
        drop(queue);
        self.wake(false);
    }

    pub(super) fn is_dropped(&self) -> bool {
        lock(&self.queue).end == Some(Ended::Dropped)
    }

    fn wake(&self, offered: bool) {
        if let Some(task) = self.task.upgrade() {
            task.wake(offered);
        }
    }
}
