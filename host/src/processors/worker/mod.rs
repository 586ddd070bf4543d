//! What a task does in a turn: handle, recover, park, flush, snapshot, commit.
//!
//! Invariants: the instance's state is always that of the last submitted
//! snapshot plus `pending`, or there is no instance; at most one commit is in
//! flight; its snapshot is taken before the next batch is handled. When an
//! instance falls, what was pending goes back to `work` and is done again from
//! the last submitted snapshot, one event at a time, which finds the culprit.
//! What is parked changes with `pending` and goes back with it. Parked events
//! and dead letters are tried alone, each in a commit of its own.

mod alone;
mod handle;
mod recover;
mod stand;
mod submit;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use alone::{Alone, Blocked};
use stand::Coming;

use super::breaker::{Breaker, Gate};
use super::counters::TaskCounters;
use super::keyed::KeyedState;
use super::parked::{Parked, ParkedChanges};
use super::proof::Basis;
use super::resolve::Resolution;
use super::runner::Shared;
use super::settings::ProcessorSettings;
use super::shadow::Link;
use super::spans::{CommitCall, CommitTraces};
use super::task::{Drain, End, Inputs};
use super::{FlushReason, LoadError, Processor, ProcessorFactory, TaskContext};
use crate::checkpoints::{Checkpoint, Commit, DeadLetter, EffectBatch, Generation, SavedState, TaskId};
use crate::error::Blame;
use crate::event::{EventBatch, Micros, Position};
use crate::limits::REBUILD_ROOM_LOOK;
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
    resolved: Vec<Position>,
    parked: ParkedChanges,
    /// What was tried alone; then nothing else is pending.
    alone: Option<Alone>,
    events: usize,
    bytes: usize,
    position: Position,
    /// When the first of its events were done.
    since: Option<Instant>,
    /// The state after what is pending; known while single events are handled.
    savepoint: Option<Arc<SavedState>>,
    traces: CommitTraces,
    /// The instance was called since the last snapshot.
    touched: bool,
    /// Among the effects are those of a flush.
    flushed: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.events == 0
            && self.effects.is_empty()
            && self.dead.is_empty()
            && self.resolved.is_empty()
            && self.parked.is_empty()
    }
}

/// Submitted and not yet answered.
#[derive(Debug)]
struct InFlight {
    done: Vec<(Arc<EventBatch>, Range<usize>)>,
    alone: Option<Alone>,
    position: Position,
    saved: Option<Arc<SavedState>>,
    parked: Parked,
    events: usize,
    flushed: bool,
    call: CommitCall,
}

pub(super) struct Worker {
    id: TaskId,
    counters: TaskCounters,
    shared: Arc<Shared>,
    factory: Arc<dyn ProcessorFactory>,
    tables: Arc<[TableSchema]>,
    generation: Generation,
    keyed: Arc<KeyedState>,
    breaker: Arc<Breaker>,
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
    /// What is parked after what is pending, at the last submit, and at the last answered commit.
    parked: Parked,
    submitted_parked: Parked,
    committed_parked: Parked,
    /// What somebody wants done with a dead letter.
    resolutions: VecDeque<Resolution>,
    /// The last thing tried was a parked event: new ones have their turn.
    tried_parked: bool,
    /// Why the lane stands still although it has work.
    blocked: Option<Blocked>,
    committed: Position,
    /// There was a commit, of this life or of one before.
    has_commit: bool,
    /// When that was; before the first commit, when the task was claimed.
    committed_at: Micros,
    advance: Position,
    fatal: Option<String>,
    drain: Option<(Drain, Drained)>,
    /// It was told to stand still: what time brings waits.
    standing: bool,
    /// Who waits until it does.
    stand: Option<Coming>,
    /// It was flushed for that, and nothing was handled since.
    flushed_to_stand: bool,
    last_used: Instant,
    /// Since when it has had no instance although time may have something to do for it: it has state.
    resting: Option<Instant>,
    /// When it began, on both clocks: retries keep to the one that never goes back.
    began: (Instant, Micros),
    /// An instance fell in this turn.
    fell: bool,
    /// How long the last snapshot took.
    snapshot_took: Duration,
    /// It was said that the snapshot is large.
    state_warned: bool,
    /// Effects were refused among which were those of a flush: the next ones of a flush go into a commit of their own,
    /// which tells who is to blame.
    flush_alone: bool,
    /// Such a flush waits until nothing else is under way.
    flush_waits: bool,
    /// The last commit left entries out, and that was said.
    dropping: bool,
    /// What was refused and cost no event, until it is told.
    refused: Option<Arc<str>>,
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
            .field("work", &self.work.len())
            .field("pending", &!self.pending.is_empty())
            .field("in_flight", &self.in_flight.is_some())
            .field("parked", &self.parked)
            .field("blocked", &self.blocked)
            .field("fatal", &self.fatal)
            .field("drain", &self.drain)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(
        id: TaskId,
        shared: Arc<Shared>,
        factory: Arc<dyn ProcessorFactory>,
        breaker: Arc<Breaker>,
        (generation, checkpoint): (Generation, Option<Checkpoint>),
        start: Position,
    ) -> Self {
        let position = checkpoint.as_ref().map_or(start, |c| c.position);
        let has_commit = checkpoint.is_some();
        let (saved, parked) = checkpoint.map(|c| (c.saved, c.parked)).unwrap_or_default();
        let now = shared.clock.now();
        let longest = i64::try_from(shared.settings.retry_wait_max.as_micros()).unwrap_or(i64::MAX);
        let parked = Parked::new(parked, Micros(now.0.saturating_add(longest)));
        let saved = saved.map(Arc::new);
        let keyed = Arc::new(KeyedState::new(id.clone(), Arc::clone(&shared.checkpoints)));
        Self {
            began: (Instant::now(), now),
            counters: TaskCounters::new(shared.counters.of(&factory.manifest().version.to_string())),
            committed_at: shared.clock.now(),
            id,
            shared,
            tables: factory.manifest().tables.clone().into(),
            factory,
            generation,
            keyed,
            breaker,
            shadow: Link::default(),
            instance: None,
            work: VecDeque::new(),
            pending: Pending::default(),
            in_flight: None,
            commit: None,
            resting: saved.as_ref().map(|_| Instant::now()),
            committed_saved: saved.clone(),
            submitted_saved: saved,
            submitted_parked: parked.clone(),
            committed_parked: parked.clone(),
            parked,
            resolutions: VecDeque::new(),
            tried_parked: false,
            blocked: None,
            committed: position,
            has_commit,
            advance: position,
            fatal: None,
            drain: None,
            standing: false,
            stand: None,
            flushed_to_stand: false,
            last_used: Instant::now(),
            fell: false,
            snapshot_took: Duration::ZERO,
            state_warned: false,
            flush_alone: false,
            flush_waits: false,
            dropping: false,
            refused: None,
            over: false,
        }
    }

    pub(super) fn committed(&self) -> Position {
        self.committed
    }

    pub(super) fn state_bytes(&self) -> u64 {
        self.committed_saved.as_ref().map_or(0, |s| s.state.len() as u64)
    }

    /// Events that wait, and keys that are held, as committed.
    pub(super) fn parked(&self) -> (usize, usize) {
        (self.committed_parked.events(), self.committed_parked.held())
    }

    /// When the last commit was; before the first, when the task was claimed.
    pub(super) fn committed_at(&self) -> Micros {
        self.committed_at
    }

    /// Linear memory of the living instance; none when there is no instance.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        self.instance.as_ref().map(|instance| instance.memory_bytes())
    }

    /// The counts of the version that the task runs.
    pub(super) fn counters(&self) -> &TaskCounters {
        &self.counters
    }

    /// Whether an instance fell since this was asked last.
    pub(super) fn take_fell(&mut self) -> bool {
        std::mem::take(&mut self.fell)
    }

    /// What was refused since this was asked last, and cost no event.
    pub(super) fn take_refused(&mut self) -> Option<Arc<str>> {
        self.refused.take()
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
        // Who waits for what it decides is told that it was interrupted.
        self.in_flight = None;
        self.resolutions.clear();
        self.commit = None;
        self.stand = None;
        self.drain = None;
    }

    pub(super) fn turn(&mut self, inputs: Inputs) -> Result<Next, End> {
        self.work.extend(inputs.batches.into_iter().map(|batch| Stretch {
            range: 0..batch.len(),
            batch,
            care: Care::Batch,
        }));
        self.resolutions.extend(inputs.resolutions);
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
        if let Some(stand) = inputs.stand {
            self.take_stand(stand);
        }
        if let Some(drain) = inputs.drain {
            self.drain = Some((drain, Drained::Not));
        }
        match self.drain {
            Some((Drain::Stop { .. }, _)) => return self.stop(),
            Some((Drain::Swap { .. }, _)) if self.can_hand_over() => return self.hand_over(),
            // It goes on until it can.
            Some((Drain::Swap { .. }, _)) | None => {}
        }
        if self.standing && !self.flush_waits {
            // The next tick comes after it.
        } else if inputs.evict && self.instance.is_some() && self.is_idle() && !self.flush_waits {
            self.give_back()?;
        } else if (inputs.tick || self.flush_waits) && self.pending.alone.is_none() {
            self.tick()?;
        }
        let rest = if self.fatal.is_none() { self.act()? } else { None };
        if let Some(message) = &self.fatal
            && self.in_flight.is_none()
            && self.pending.is_empty()
        {
            return Err(End { message: message.clone(), restart: false, blame: Blame::Guest });
        }
        self.submit_if_due(inputs.drained)?;
        self.come_to_stand(inputs.drained)?;
        let is_done = inputs.drained && self.instance.is_some() && !self.is_busy();
        if is_done && !self.factory.has_room() {
            // Others wait for the place.
            self.give_back()?;
        }
        Ok(self.next(inputs.drained, rest))
    }

    /// Calls the instance once, if there is something to call it with. Answers until when the breaker says
    /// that nothing must be.
    fn act(&mut self) -> Result<Option<Instant>, End> {
        if self.resolve_first()? {
            return Ok(None);
        }
        let parked = self.parked_is_next();
        if !parked && !self.may_handle() {
            return Ok(None);
        }
        if !self.has_room_for_instance() {
            return Ok(Some(Instant::now() + REBUILD_ROOM_LOOK));
        }
        let gate = self.breaker.gate(Instant::now());
        match gate {
            Gate::Open(until) => {
                self.blocked = Some(Blocked::Breaker);
                return Ok(Some(until));
            }
            _ if self.blocked == Some(Blocked::Breaker) => self.blocked = None,
            _ => {}
        }
        let called = if parked { self.try_parked()? } else { self.handle_next(gate == Gate::Trial)? };
        if !called && gate == Gate::Trial {
            self.breaker.undecided();
        }
        Ok(None)
    }

    /// What to wait for.
    fn next(&self, drained: bool, rest: Option<Instant>) -> Next {
        if let Some(until) = rest {
            return Next::WaitUntil(until);
        }
        let retry = self.parked.next_retry().filter(|_| self.fatal.is_none());
        let now = self.now();
        if self.pending.alone.is_some() && self.in_flight.is_none() {
            // Its instance fell in `snapshot`: what became of it is to be committed now.
            return Next::Again;
        }
        let alone = !self.resolutions.is_empty() || retry.is_some_and(|when| when <= now);
        if self.fatal.is_none() {
            if alone && self.in_flight.is_none() {
                return Next::Again;
            }
            let more = !drained || !self.work.is_empty();
            if more && self.has_room() && !self.stands_still() && (!alone || self.tried_parked) {
                return Next::Again;
            }
        }
        match retry {
            Some(when) if !alone => Next::WaitUntil(self.instant(when)),
            _ => Next::Wait,
        }
    }

    fn is_idle(&self) -> bool {
        !self.is_busy() && self.last_used.elapsed() >= self.shared.settings.idle_max
    }

    /// Whether another stretch may be handled before the commit in flight is answered.
    fn has_room(&self) -> bool {
        if self.flush_comes_first() {
            return false;
        }
        let settings = &self.shared.settings;
        let careful = self.work.front().is_some_and(|s| s.care == Care::SingleCommit);
        if careful {
            return self.pending.is_empty() && self.in_flight.is_none();
        }
        let alone =
            self.pending.alone.is_some() || self.in_flight.as_ref().is_some_and(|f| f.alone.is_some());
        !alone
            && (self.in_flight.is_none()
                || (self.pending.events < settings.commit_events_max
                    && self.pending.bytes < settings.commit_bytes_max))
    }

    fn may_handle(&self) -> bool {
        !self.work.is_empty() && self.has_room() && !self.stands_still()
    }

    /// The time on the task's own clock: never goes back.
    fn now(&self) -> Micros {
        let (instant, micros) = self.began;
        Micros(micros.0.saturating_add(i64::try_from(instant.elapsed().as_micros()).unwrap_or(i64::MAX)))
    }

    /// When that is. What lies in the past is now.
    fn instant(&self, when: Micros) -> Instant {
        let micros = u64::try_from(when.0.saturating_sub(self.now().0)).unwrap_or(0);
        Instant::now() + Duration::from_micros(micros)
    }

    // Instances.

    /// Whether it has one, or may have one made.
    fn has_room_for_instance(&self) -> bool {
        self.instance.is_some() || self.factory.has_room()
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
                self.resting = None;
                Ok(())
            }
            Err(error) => {
                let restart = !matches!(error, LoadError::Refused { .. } | LoadError::StateTooLarge { .. });
                Err(End { message: error.to_string(), restart, blame: error.blame() })
            }
        }
    }

    /// Drops the instance of an idle task, whose state is then the last committed one; what it has changed
    /// without an event, in a flush, is committed first. With the last instance goes the code.
    fn give_back(&mut self) -> Result<(), End> {
        self.submit_flushed()?;
        if self.in_flight.is_some() || !self.pending.is_empty() {
            // It goes the next time, when that is committed.
            return Ok(());
        }
        self.instance = None;
        self.pending.touched = false;
        self.resting = Some(Instant::now());
        self.factory.rest(self.shared.settings.idle_max);
        Ok(())
    }

    /// The flush interval is over. A resting task gets an instance for it from time to time: what it does when
    /// no event comes must not wait for one. One whose flush was refused gets it at once.
    fn tick(&mut self) -> Result<(), End> {
        self.flush_waits = self.flush_alone && !self.may_be_alone();
        if self.flush_waits {
            return Ok(());
        }
        let rested = self.resting.is_some_and(|since| since.elapsed() >= self.shared.settings.idle_max);
        let loads = (rested || self.flush_alone) && self.fatal.is_none() && self.has_room_for_instance();
        if loads {
            self.load_instance()?;
        }
        self.flush(FlushReason::Tick).map(drop)
    }

    /// A flush that was refused before is waiting, or its commit is: nothing is handled until that is settled.
    fn flush_comes_first(&self) -> bool {
        let under_way = self.pending.flushed || self.in_flight.as_ref().is_some_and(|f| f.flushed);
        self.flush_waits || (self.flush_alone && under_way)
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
fn cut(batch: &EventBatch, indexes: impl ExactSizeIterator<Item = usize>) -> EventBatch {
    let mut part = EventBatch::with_capacity(batch.tenant.clone(), indexes.len(), 0);
    for index in indexes {
        part.push_from(batch, index);
    }
    part
}

/// Doubles with each attempt, between the bounds; less up to a half at random.
fn retry_wait(settings: &ProcessorSettings, attempt: u32) -> Duration {
    let doubled = settings.retry_wait_min.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let longest = doubled.min(settings.retry_wait_max);
    longest.mul_f64(rand::random_range(0.5..=1.0))
}
