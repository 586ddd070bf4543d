//! What waits for one subscriber.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::counter;
use tokio::sync::Notify;

use super::ChangeMode;
use crate::event::{EventBatch, Position};
use crate::limits::{CHANGE_QUEUE_BATCHES_MAX, CHANGE_QUEUE_BYTES_MAX};
use crate::telemetry::metrics::CHANGE_GAPS;

/// What a subscriber gets.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events in the order of their positions: of a raw stream every one, of a conflated one the latest of
    /// each aggregate in a window.
    Events(Arc<EventBatch>),
    /// Of a conflated stream: changes up to this position were left out. Whoever keeps state reads it again,
    /// no older than this, and goes on.
    Gap { through: Position, cause: GapCause },
    /// Of a raw stream, and its last word: what came after this position was not delivered. The stream has it.
    End { after: Position, cause: GapCause },
}

/// Why something was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapCause {
    /// The subscriber took less than came.
    Overflow,
    /// The reader fell behind what the tail keeps in memory.
    TailLost,
}

impl GapCause {
    pub fn code(self) -> &'static str {
        match self {
            Self::Overflow => "change_subscriber_overflow",
            Self::TailLost => "change_tail_lost",
        }
    }
}

/// One subscriber's queue. The feed puts in, the subscription takes out.
#[derive(Debug)]
pub(super) struct Queue {
    raw: bool,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Arc<EventBatch>>,
    bytes: usize,
    /// Before all batches: what came until then was left out.
    gap: Option<(Position, GapCause)>,
    /// After all batches: the end of a raw stream.
    end: Option<GapCause>,
    /// The last position that was put in.
    put: Position,
    /// Nothing is put in any more.
    closed: bool,
    detached: bool,
}

impl Queue {
    pub(super) fn new(mode: ChangeMode) -> Self {
        Self { raw: mode == ChangeMode::Raw, state: Mutex::default(), wake: Notify::new() }
    }

    /// Puts events in, or notes what cannot be. False when the subscription has ended with that.
    pub(super) fn put(&self, batch: &Arc<EventBatch>) -> bool {
        let goes_on = {
            let mut state = self.lock();
            let full = state.batches.len() >= CHANGE_QUEUE_BATCHES_MAX
                || (!state.batches.is_empty() && state.bytes + batch.bytes() > CHANGE_QUEUE_BYTES_MAX);
            if full {
                self.leave_out(&mut state, batch.last_position(), GapCause::Overflow)
            } else {
                state.bytes += batch.bytes();
                state.put = state.put.max(batch.last_position());
                state.batches.push_back(Arc::clone(batch));
                true
            }
        };
        self.wake.notify_one();
        goes_on
    }

    /// Notes that what came up to a position is not delivered. False when the subscription has ended with that.
    pub(super) fn gap(&self, through: Position, cause: GapCause) -> bool {
        let goes_on = self.leave_out(&mut self.lock(), through, cause);
        self.wake.notify_one();
        goes_on
    }

    fn leave_out(&self, state: &mut State, through: Position, cause: GapCause) -> bool {
        let label = match cause {
            GapCause::Overflow => "overflow",
            GapCause::TailLost => "tail",
        };
        counter!(CHANGE_GAPS, "cause" => label).increment(1);
        if self.raw {
            // What is in it is whole and in order: it is delivered, and then the end.
            state.end = Some(cause);
            state.closed = true;
            return false;
        }
        // One mark stands for all: the state that is read after it has what was in the queue, too.
        state.batches.clear();
        state.bytes = 0;
        state.gap = Some((through.max(state.put), cause));
        true
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Whether everything that was put in was taken.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.batches.is_empty() && state.gap.is_none() && state.end.is_none()
    }

    pub(super) fn has_gap(&self) -> bool {
        let state = self.lock();
        state.gap.is_some() || state.end.is_some()
    }

    /// The subscriber has gone. True once.
    pub(super) fn detach(&self) -> bool {
        let first = {
            let mut state = self.lock();
            state.batches.clear();
            (state.gap, state.end, state.closed) = (None, None, true);
            !std::mem::replace(&mut state.detached, true)
        };
        self.wake.notify_one();
        first
    }

    /// The next delivery of what came after a position.
    pub(super) async fn next(&self, begin: Position) -> Option<Delivery> {
        loop {
            if let Some(taken) = self.take(begin) {
                return taken;
            }
            self.wake.notified().await;
        }
    }

    /// What there is now: a delivery, or the end. None when there is nothing yet.
    fn take(&self, begin: Position) -> Option<Option<Delivery>> {
        let mut state = self.lock();
        if let Some((through, cause)) = state.gap.take() {
            return Some(Some(Delivery::Gap { through, cause }));
        }
        while let Some(batch) = state.batches.pop_front() {
            state.bytes -= batch.bytes();
            if let Some(batch) = after(begin, batch) {
                return Some(Some(Delivery::Events(batch)));
            }
        }
        if let Some(cause) = state.end.take() {
            return Some(Some(Delivery::End { after: state.put.max(begin), cause }));
        }
        state.closed.then_some(None)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch without what a subscriber has from before its beginning. Events past the log have no position, and stay.
fn after(begin: Position, batch: Arc<EventBatch>) -> Option<Arc<EventBatch>> {
    let fresh = |position: u64| position == 0 || position > begin.0;
    if batch.records().iter().all(|record| fresh(record.position)) {
        return Some(batch);
    }
    let mut kept = EventBatch::new(batch.tenant.clone());
    for index in (0..batch.len()).filter(|index| fresh(batch.records()[*index].position)) {
        kept.push_from(&batch, index);
    }
    (!kept.is_empty()).then(|| Arc::new(kept))
}
