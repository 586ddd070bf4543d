//! The newest events of the log, handled once more by a fresh instance of each
//! version, from the committed state of a task: for streams that are quiet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::core_time::OwnTime;
use super::super::lane::lane_of;
use super::super::proof::Basis;
use super::super::{FailureKind, LoadError, Manifest, Outcome, Processor, ProcessorFactory, Trap, TrapKind};
use super::keyed::{Before, ShadowState};
use super::offers::Handled;
use super::task::context_with;
use super::trial::{Trial, part_of};
use super::{Shadow, ShadowRefusal};
use crate::checkpoints::{SavedState, TaskId};
use crate::event::{EventBatch, TenantId};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, SHADOW_SCAN_FACTOR};
use crate::streams::{EventLog, PageLimit, StreamError};

/// Events that are handled in one call, so that a median over calls means something.
const CALL_EVENTS_MAX: usize = 100;

/// What is replayed for one task.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) task: TaskId,
    pub(super) basis: Basis,
    pub(super) old: Arc<dyn ProcessorFactory>,
    pub(super) events: Arc<EventBatch>,
    pub(super) deadline: Instant,
    pub(super) stop: Arc<AtomicBool>,
}

/// Which events a task would get, of both versions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) old: &'a Manifest,
    pub(super) new: &'a Manifest,
    pub(super) lane: u32,
    pub(super) lanes: u32,
    pub(super) events: u64,
}

impl Wanted<'_> {
    fn wants(&self, batch: &EventBatch, index: usize) -> bool {
        let (aggregate, event_type) = batch.routing(index);
        let subscribed = |manifest: &Manifest| manifest.subscription.matches(aggregate, event_type);
        (subscribed(self.old) || subscribed(self.new))
            && lane_of(&self.old.ordering_key, batch, index, self.lanes) == self.lane
    }
}

/// A tenant's newest events that are wanted, in order. It looks further and
/// further back, within a bound.
pub(super) async fn newest(
    log: &dyn EventLog,
    tenant: &TenantId,
    wanted: Wanted<'_>,
    deadline: Instant,
) -> Result<Arc<EventBatch>, StreamError> {
    let bounds = log.bounds();
    let limit = PageLimit { events: BATCH_EVENTS_MAX, bytes: BATCH_BYTES_MAX };
    let most = usize::try_from(wanted.events).unwrap_or(usize::MAX);
    let scan_max = wanted.events.saturating_mul(SHADOW_SCAN_FACTOR);
    let mut span = wanted.events.saturating_mul(4);
    loop {
        let mut after = bounds.trimmed.max(crate::event::Position(bounds.newest.0.saturating_sub(span)));
        let from_the_oldest = after == bounds.trimmed;
        let mut found: VecDeque<(Arc<EventBatch>, usize)> = VecDeque::new();
        let mut seen = 0;
        while after < bounds.newest && seen <= scan_max && Instant::now() < deadline {
            let page = match log.read(tenant, after, limit).await {
                Ok(page) => page,
                // Trimmed meanwhile.
                Err(StreamError::PositionLost { .. }) => break,
                Err(error) => return Err(error),
            };
            seen += page.events.len() as u64;
            for index in (0..page.events.len()).filter(|index| wanted.wants(&page.events, *index)) {
                found.push_back((Arc::clone(&page.events), index));
                if found.len() > most {
                    found.pop_front();
                }
            }
            if page.next <= after {
                break;
            }
            after = page.next;
        }
        let enough = found.len() >= most || from_the_oldest || seen > scan_max;
        if enough || Instant::now() >= deadline {
            let mut events = EventBatch::new(tenant.clone());
            for (batch, index) in found {
                events.push_from(&batch, index);
            }
            return Ok(Arc::new(events));
        }
        span = span.saturating_mul(4);
    }
}

/// Both versions handle the events. Blocks for as long as they take. Where the
/// running version cannot do its part, there is nothing to compare with, and the replay ends.
pub(super) fn replay(shadow: &Arc<Shadow>, replay: &Replay) -> Result<(), ShadowRefusal> {
    let Basis { context, saved } = &replay.basis;
    let before = Arc::new(Before::default());
    let state = || ShadowState::frozen(Arc::clone(&before), Arc::clone(&context.state));
    let mut trial = Trial::begin(shadow, &replay.task, context, state(), saved.as_deref())?;
    let mut old = match Old::begin(replay, state(), saved.as_deref()) {
        Ok(old) => old,
        Err(error) => {
            tracing::warn!(task.id = %replay.task, error.kind = "shadow_unread", error.blame = "host", %error, "nothing to compare a candidate with");
            return trial.finish(None);
        }
    };
    // Events that only one of them subscribes to are told apart one by one.
    let call_events = match shadow.subscription {
        Some(_) => 1,
        None => (replay.events.len() / 10).clamp(1, CALL_EVENTS_MAX),
    };
    let over =
        || replay.stop.load(Ordering::Relaxed) || Instant::now() >= replay.deadline || shadow.is_refused();
    let mut from = 0;
    while from < replay.events.len() && !over() {
        let to = (from + call_events).min(replay.events.len());
        let batch = part_of(&replay.events, from..to);
        let Ok(handled) = old.handle(batch) else { break };
        from += handled.handled + usize::from(handled.rejected) + usize::from(old.skips);
        if handled.handled > 0 || handled.rejected {
            trial.handle(&handled, true, &|| false)?;
        }
    }
    let state_bytes = old.state_bytes();
    trial.finish(state_bytes)
}

/// The running version's instance.
struct Old {
    instance: Box<dyn Processor>,
    state: Arc<ShadowState>,
    factory: Arc<dyn ProcessorFactory>,
    /// The event after those that were handled is left out: it is not known what would become of it.
    skips: bool,
}

impl Old {
    fn begin(replay: &Replay, state: ShadowState, saved: Option<&SavedState>) -> Result<Self, LoadError> {
        let state = Arc::new(state);
        let factory = Arc::clone(&replay.old);
        let mut instance = factory.instantiate(context_with(&replay.basis.context, &state))?;
        instance.load(saved)?;
        Ok(Self { instance, state, factory, skips: false })
    }

    fn handle(&mut self, batch: Arc<EventBatch>) -> Result<Handled, Trap> {
        let subscription = &self.factory.manifest().subscription;
        let subscribed = (0..batch.len()).all(|index| {
            let (aggregate, event_type) = batch.routing(index);
            subscription.matches(aggregate, event_type)
        });
        let begun = OwnTime::begin();
        let outcome = if subscribed {
            self.instance.handle(&batch)?
        } else {
            Outcome { handled: batch.len(), ..Outcome::default() }
        };
        let took = begun.elapsed();
        if outcome.handled == 0 && outcome.failure.is_none() {
            let message = "the processor handled nothing and named no failure";
            return Err(Trap::new(TrapKind::Output, message));
        }
        self.state.add(&outcome.effects);
        let rejected = outcome.failure.as_ref().is_some_and(|f| f.kind == FailureKind::Reject);
        self.skips = outcome.failure.is_some() && !rejected;
        let memory = self.instance.memory_bytes();
        let Outcome { handled, effects, .. } = outcome;
        Ok(Handled { batch, handled, rejected, effects, took, memory })
    }

    fn state_bytes(&mut self) -> Option<u64> {
        self.factory.manifest().state_content_type.as_ref()?;
        self.instance.snapshot().ok().map(|state| state.len() as u64)
    }
}
