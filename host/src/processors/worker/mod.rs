//! What a task does in a turn: handle, recover, flush, snapshot, commit.
//!
//! Invariants: the instance's state is always that of the last submitted
//! snapshot plus `pending`, or there is no instance; at most one commit is in
//! flight; its snapshot is taken before the next batch is handled. When an
//! instance falls, what was pending goes back to `work` and is done again from
//! the last submitted snapshot, one event at a time, which finds the culprit.

mod submit;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::keyed::KeyedState;
use super::proof::Basis;
use super::runner::{ProcessorSettings, Shared};
use super::shadow::Link;
use super::task::{Drain, End, Inputs};
use super::{
    Failure, FailureKind, FlushReason, LoadError, Outcome, Processor, ProcessorFactory, TaskContext, Trap,
    TrapKind,
};
use crate::checkpoints::{Checkpoint, Commit, DeadLetter, EffectBatch, Generation, SavedState, TaskId};
use crate::event::{EventBatch, Position};
use crate::tables::TableSchema;

/// A task without events of its own commits its position when it has fallen
/// this far behind, so that a restart need not read what was skipped.
pub(super) const ADVANCE_POSITIONS: u64 = 10_000;

/// What a task wants after a turn.
#[derive(Debug)]
pub(super) enum Next {
    Again,
    Wait,
    WaitUntil(Instant),
    Over,
}

/// How carefully a stretch of work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    /// As one batch.
    Batch,
    /// One event at a time, with a snapshot after each: something in it made an instance fall.
    Single,
    /// One event a commit: the store refused the effects of something in it.
    SingleCommit,
}

/// A stretch of a batch that is to be handled.
#[derive(Debug)]
struct Stretch {
    batch: Arc<EventBatch>,
    range: Range<usize>,
    care: Care,
}

/// Done and not yet submitted.
#[derive(Debug, Default)]
struct Pending {
    done: Vec<(Arc<EventBatch>, Range<usize>)>,
    effects: Vec<Arc<EffectBatch>>,
    dead: Vec<DeadLetter>,
    events: usize,
    bytes: usize,
    position: Position,
    /// The state after what is pending; known while single events are handled.
    savepoint: Option<Arc<SavedState>>,
    /// The instance was called since the last snapshot.
    touched: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.events == 0 && self.effects.is_empty() && self.dead.is_empty()
    }
}

/// Submitted and not yet answered.
#[derive(Debug)]
struct InFlight {
    done: Vec<(Arc<EventBatch>, Range<usize>)>,
    position: Position,
    saved: Option<Arc<SavedState>>,
    events: usize,
}

pub(super) struct Worker {
    id: TaskId,
    shared: Arc<Shared>,
    factory: Arc<dyn ProcessorFactory>,
    tables: Arc<[TableSchema]>,
    generation: Generation,
    keyed: Arc<KeyedState>,
    /// A candidate that handles the same, if there is one.
    shadow: Link,
    instance: Option<Box<dyn Processor>>,
    work: VecDeque<Stretch>,
    pending: Pending,
    in_flight: Option<InFlight>,
    commit: Option<Commit>,
    /// The state of the last answered commit, and of the last submitted one.
    committed_saved: Option<Arc<SavedState>>,
    submitted_saved: Option<Arc<SavedState>>,
    committed: Position,
    advance: Position,
    /// Tries of the event that is next.
    attempts: u32,
    retry_at: Option<Instant>,
    fatal: Option<String>,
    drain: Option<(Drain, Drained)>,
    last_used: Instant,
    over: bool,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    Not,
    Flushed,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.id)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(
        id: TaskId,
        shared: Arc<Shared>,
        factory: Arc<dyn ProcessorFactory>,
        generation: Generation,
        position: Position,
        checkpoint: Option<Checkpoint>,
    ) -> Self {
        let saved = checkpoint.and_then(|c| c.saved).map(Arc::new);
        let keyed = Arc::new(KeyedState::new(id.clone(), Arc::clone(&shared.checkpoints)));
        Self {
            id,
            shared,
            tables: factory.manifest().tables.clone().into(),
            factory,
            generation,
            keyed,
            shadow: Link::default(),
            instance: None,
            work: VecDeque::new(),
            pending: Pending::default(),
            in_flight: None,
            commit: None,
            committed_saved: saved.clone(),
            submitted_saved: saved,
            committed: position,
            advance: position,
            attempts: 0,
            retry_at: None,
            fatal: None,
            drain: None,
            last_used: Instant::now(),
            over: false,
        }
    }

    pub(super) fn committed(&self) -> Position {
        self.committed
    }

    pub(super) fn state_bytes(&self) -> u64 {
        self.committed_saved.as_ref().map_or(0, |s| s.state.len() as u64)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// New batches are taken only when the old ones are done: the inbox stays the bounded queue.
    pub(super) fn wants_batches(&self) -> bool {
        self.work.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        // A task that has ended has not done what its feed has passed.
        self.over || !self.work.is_empty() || !self.pending.is_empty() || self.in_flight.is_some()
    }

    /// The commit that this turn decided on.
    pub(super) fn take_commit(&mut self) -> Option<Commit> {
        self.commit.take()
    }

    /// Ends it: nothing of what is pending will be committed.
    pub(super) fn give_up(&mut self) {
        self.over = true;
        self.shadow.break_stretch();
        self.instance = None;
        self.work.clear();
        self.pending = Pending::default();
        self.commit = None;
        self.drain = None;
    }

    pub(super) fn turn(&mut self, inputs: Inputs) -> Result<Next, End> {
        self.work.extend(inputs.batches.into_iter().map(|batch| Stretch {
            range: 0..batch.len(),
            batch,
            care: Care::Batch,
        }));
        if inputs.drained {
            self.advance = self.advance.max(inputs.advance);
        }
        if let Some(answer) = inputs.committed {
            self.end_commit(answer)?;
        }
        for asker in inputs.basis {
            let basis = Basis { context: self.context(), saved: self.committed_saved.clone() };
            // The asker may have gone.
            let _ = asker.send(basis);
        }
        if let Some(drain) = inputs.drain {
            self.drain = Some((drain, Drained::Not));
        }
        if self.drain.is_some() {
            return self.drain();
        }
        if inputs.evict && self.is_idle() {
            self.instance = None;
        }
        if inputs.tick && self.instance.is_some() && self.retry_at.is_none() {
            self.flush(FlushReason::Tick)?;
        }
        if let Some(when) = self.retry_at {
            if Instant::now() < when {
                self.submit_if_due(true)?;
                return Ok(Next::WaitUntil(when));
            }
            self.retry_at = None;
        }
        if self.fatal.is_none() && self.may_handle() {
            self.handle_next()?;
        }
        if let Some(message) = &self.fatal
            && self.in_flight.is_none()
            && self.pending.is_empty()
        {
            return Err(End { message: message.clone(), restart: false });
        }
        self.submit_if_due(inputs.drained)?;
        if let Some(when) = self.retry_at {
            return Ok(Next::WaitUntil(when));
        }
        let more = !inputs.drained || !self.work.is_empty();
        Ok(if more && self.fatal.is_none() && self.has_room() { Next::Again } else { Next::Wait })
    }

    fn is_idle(&self) -> bool {
        !self.is_busy() && self.last_used.elapsed() >= self.shared.settings.idle_max
    }

    /// Whether another stretch may be handled before the commit in flight is answered.
    fn has_room(&self) -> bool {
        let settings = &self.shared.settings;
        let careful = self.work.front().is_some_and(|s| s.care == Care::SingleCommit);
        if careful {
            return self.pending.is_empty() && self.in_flight.is_none();
        }
        self.in_flight.is_none()
            || (self.pending.events < settings.commit_events_max
                && self.pending.bytes < settings.commit_bytes_max)
    }

    fn may_handle(&self) -> bool {
        !self.work.is_empty() && self.has_room()
    }

    // Handling.

    fn handle_next(&mut self) -> Result<(), End> {
        self.load_instance()?;
        let stretch = self.work.front().expect("`may_handle` saw work");
        let (care, range) = (stretch.care, stretch.range.clone());
        let batch = match care {
            Care::Batch if range == (0..stretch.batch.len()) => Arc::clone(&stretch.batch),
            Care::Batch => Arc::new(cut(&stretch.batch, range.clone())),
            Care::Single | Care::SingleCommit => Arc::new(cut(&stretch.batch, range.start..range.start + 1)),
        };
        self.begin_stretch();
        self.last_used = Instant::now();
        let instance = self.instance.as_mut().expect("it was just loaded");
        self.shared.counters.batch();
        match instance.handle(&batch) {
            Ok(outcome) => {
                self.shadow.offer(&batch, &outcome, self.last_used.elapsed(), instance.memory_bytes());
                self.take_outcome(outcome, care)?
            }
            Err(trap) => self.fall(&trap)?,
        }
        Ok(())
    }

    /// At a batch boundary a candidate may begin: nothing is handled that is not in the submitted state.
    fn begin_stretch(&mut self) {
        if !self.pending.is_empty() || self.pending.touched {
            return;
        }
        let (slot, saved) = (&self.shared.shadow, &self.submitted_saved);
        let mut shadow = std::mem::take(&mut self.shadow);
        shadow.begin_stretch(slot, &self.id, || Basis { context: self.context(), saved: saved.clone() });
        self.shadow = shadow;
    }

    fn take_outcome(&mut self, outcome: Outcome, care: Care) -> Result<(), End> {
        if outcome.handled > 0 {
            let careful = care != Care::Batch;
            if careful && let Err(trap) = self.savepoint() {
                return self.fall(&trap);
            }
            self.keep(outcome.effects);
            self.pending.touched = !careful;
            self.pass(outcome.handled);
        }
        if let Some(failure) = outcome.failure {
            self.fail_event(failure);
        } else if outcome.handled == 0 {
            return Err(End {
                message: "the processor handled nothing and named no failure".into(),
                restart: false,
            });
        }
        Ok(())
    }

    fn keep(&mut self, effects: EffectBatch) {
        self.pending.touched = true;
        if effects.is_empty() {
            return;
        }
        self.shadow.before_write(&effects, &*self.keyed);
        self.keyed.add(&effects);
        self.shared.counters.effects(effects.len());
        self.pending.bytes += effects.bytes();
        self.pending.effects.push(Arc::new(effects));
    }

    /// The next `events` events are done.
    fn pass(&mut self, events: usize) {
        let stretch = self.work.front_mut().expect("what was handled came from the front");
        let done = stretch.range.start..stretch.range.start + events;
        self.pending.position = Position(stretch.batch.records()[done.end - 1].position);
        self.pending.events += events;
        stretch.range.start = done.end;
        let batch = Arc::clone(&stretch.batch);
        if stretch.range.is_empty() {
            self.work.pop_front();
        }
        match self.pending.done.last_mut() {
            Some((last, range)) if Arc::ptr_eq(last, &batch) && range.end == done.start => {
                range.end = done.end
            }
            _ => self.pending.done.push((batch, done)),
        }
        self.attempts = 0;
    }

    /// Takes the state after a single event, so that the next one's fall costs no more than itself.
    fn savepoint(&mut self) -> Result<(), Trap> {
        if self.factory.manifest().state_content_type.is_some() {
            self.pending.savepoint = Some(self.snapshot()?);
        }
        Ok(())
    }

    fn fail_event(&mut self, failure: Failure) {
        match failure.kind {
            FailureKind::Retry if self.attempts < self.shared.settings.retries_max => {
                self.attempts += 1;
                self.shared.counters.retry();
                self.retry_at = Some(Instant::now() + retry_wait(&self.shared.settings, self.attempts));
            }
            FailureKind::Retry => self.bury("retries", failure.message),
            FailureKind::Reject => self.bury("reject", failure.message),
            FailureKind::Fatal => {
                warn!(task.id = %self.id, error.kind = "fatal", error.blame = "guest", message = failure.message, "processor stops");
                self.fatal = Some(failure.message);
            }
        }
    }

    /// Makes the next event a dead letter; the lane goes on behind it.
    fn bury(&mut self, reason: &'static str, message: String) {
        let stretch = self.work.front().expect("a failure is about the next event");
        let event = cut(&stretch.batch, stretch.range.start..stretch.range.start + 1);
        warn!(
            task.id = %self.id,
            stream.position = event.records()[0].position,
            error.kind = reason,
            error.blame = "guest",
            message,
            "event became a dead letter"
        );
        self.shared.counters.dead_letter();
        let attempts = self.attempts + 1;
        self.pass(1);
        self.pending.dead.push(DeadLetter {
            event: Arc::new(event),
            reason,
            message,
            attempts,
            at: self.shared.clock.now(),
        });
    }

    // Falling and getting up.

    /// The instance is gone. Alone with one event, that event is the culprit;
    /// otherwise all that is pending is done again, one event at a time.
    fn fall(&mut self, trap: &Trap) -> Result<(), End> {
        self.shadow.break_stretch();
        self.instance = None;
        if trap.kind == TrapKind::Host {
            return Err(End { message: trap.to_string(), restart: true });
        }
        self.shared.counters.trap();
        let alone = self.work.front().is_some_and(|s| s.care != Care::Batch);
        if alone {
            self.attempts += 1;
            self.bury(trap_reason(trap.kind), trap.message.clone());
        } else {
            self.redo(trap);
        }
        Ok(())
    }

    fn redo(&mut self, trap: &Trap) {
        info!(task.id = %self.id, error.kind = %trap.kind, "instance fell; its batch is handled again one by one");
        if let Some(stretch) = self.work.front_mut() {
            stretch.care = Care::Single;
        }
        self.unwind(Care::Single);
    }

    /// Puts what is pending back in front of the work.
    fn unwind(&mut self, care: Care) {
        self.shadow.break_stretch();
        let pending = std::mem::take(&mut self.pending);
        self.keyed.drop_pending();
        self.push_back_done(pending.done, care);
        self.attempts = 0;
        self.retry_at = None;
        self.fatal = None;
    }

    fn push_back_done(&mut self, done: Vec<(Arc<EventBatch>, Range<usize>)>, care: Care) {
        for (batch, range) in done.into_iter().rev().filter(|(_, range)| !range.is_empty()) {
            self.work.push_front(Stretch { batch, range, care });
        }
    }

    /// A new instance, where there is none, with the state that belongs to what is pending.
    fn load_instance(&mut self) -> Result<(), End> {
        if self.instance.is_some() {
            return Ok(());
        }
        let saved = self.pending.savepoint.as_ref().or(self.submitted_saved.as_ref()).cloned();
        let loaded = self.make(&Arc::clone(&self.factory), saved.as_deref());
        match loaded {
            Ok(instance) => {
                self.instance = Some(instance);
                Ok(())
            }
            Err(error) => {
                let restart = !matches!(error, LoadError::Refused { .. });
                Err(End { message: error.to_string(), restart })
            }
        }
    }

    fn make(
        &self,
        factory: &Arc<dyn ProcessorFactory>,
        saved: Option<&SavedState>,
    ) -> Result<Box<dyn Processor>, LoadError> {
        let mut instance = factory.instantiate(self.context())?;
        instance.load(saved)?;
        Ok(instance)
    }

    fn context(&self) -> TaskContext {
        TaskContext {
            tenant: self.id.tenant.clone(),
            lane: self.id.lane,
            lanes: self.shared.settings.lanes,
            state: Arc::clone(&self.keyed) as _,
        }
    }
}

/// Part of a batch as a batch of its own.
fn cut(batch: &EventBatch, range: Range<usize>) -> EventBatch {
    let mut part = EventBatch::with_capacity(batch.tenant.clone(), range.len(), 0);
    for index in range {
        part.push_from(batch, index);
    }
    part
}

fn trap_reason(kind: TrapKind) -> &'static str {
    match kind {
        TrapKind::Trap => "trap",
        TrapKind::Timeout => "timeout",
        TrapKind::Limit => "limit",
        TrapKind::Output => "output",
        TrapKind::Host => "host",
    }
}

/// Doubles with each attempt, between the bounds.
fn retry_wait(settings: &ProcessorSettings, attempt: u32) -> Duration {
    let doubled = settings.retry_wait_min.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    doubled.min(settings.retry_wait_max)
}
