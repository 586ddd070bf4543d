//! One task: a lane of a processor for one tenant. It owns its instance, the
//! work that waits for it, and what has been done and not yet committed.
//!
//! Others send to it (batches, a commit's answer, a request to stop or to swap)
//! and wake it; all decisions fall in its own turns, on a guest thread.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use std::collections::VecDeque;
use tokio::sync::{Notify, oneshot};

use super::breaker::Breaker;
use super::counters::ThreadCpu;
use super::pool::{Schedule, Turned, Turns};
use super::proof::Basis;
use super::rebuild::Ahead;
use super::resolve::Resolution;
use super::runner::Shared;
use super::worker::{Blocked, Next, Worker};
use super::{LoadError, ProcessorFactory};
use crate::checkpoints::{Checkpoint, CommitError, Committed, Generation, TaskId};
use crate::error::Blame;
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, LANE_QUEUE_BATCHES_MAX};

/// A handle on a task, shared by its feed, its timers and the runner.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) shared: Arc<Shared>,
    schedule: Schedule,
    inbox: Mutex<Inbox>,
    room: Notify,
    worker: Mutex<Worker>,
    seen: Seen,
    claimed: Position,
    /// The next time at which it is woken, where it asked for one.
    alarm: Mutex<Option<Instant>>,
    /// Told when the task cannot go on: the reason, and whether a restart can help.
    end: Mutex<Option<oneshot::Sender<End>>>,
}

/// Why a task ended by itself.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) message: String,
    pub(super) restart: bool,
    /// Whose fault it was.
    pub(super) blame: Blame,
}

/// What others have sent and the task has not yet looked at.
#[derive(Debug, Default)]
struct Inbox {
    batches: VecDeque<Arc<EventBatch>>,
    advance: Position,
    committed: Option<Result<Committed, CommitError>>,
    tick: bool,
    evict: bool,
    basis: Vec<oneshot::Sender<Basis>>,
    resolutions: Vec<Resolution>,
    stand: Option<Stand>,
    drain: Option<Drain>,
    closed: bool,
}

/// Whether the task is to stand still at a position.
#[derive(Debug)]
pub(super) enum Stand {
    At { position: Position, reply: oneshot::Sender<Result<(), Ahead>> },
    Release,
}

/// What the task takes out of its inbox at the beginning of a turn.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) batches: VecDeque<Arc<EventBatch>>,
    pub(super) advance: Position,
    /// Nothing is left in the inbox, so `advance` holds.
    pub(super) drained: bool,
    pub(super) committed: Option<Result<Committed, CommitError>>,
    pub(super) tick: bool,
    pub(super) evict: bool,
    /// Who asks what another version would begin with.
    pub(super) basis: Vec<oneshot::Sender<Basis>>,
    pub(super) resolutions: Vec<Resolution>,
    pub(super) stand: Option<Stand>,
    pub(super) drain: Option<Drain>,
    pub(super) closed: bool,
}

/// How a version's work ends.
#[derive(Debug)]
pub(super) enum Drain {
    Stop { reply: oneshot::Sender<()> },
    Swap { factory: Arc<dyn ProcessorFactory>, reply: oneshot::Sender<Result<(), LoadError>> },
}

/// How far the task is, for status and lag; written by its turns, read by anybody.
#[derive(Debug, Default)]
struct Seen {
    committed: AtomicU64,
    advance: AtomicU64,
    busy: AtomicBool,
    state_bytes: AtomicU64,
    parked: AtomicU64,
    held: AtomicU64,
    blocked: Mutex<Option<Blocked>>,
    last_refused: Mutex<Option<Arc<str>>>,
    committed_at: AtomicI64,
    /// 1 above the instance's memory; 0 without an instance.
    memory_bytes: AtomicU64,
}

/// What a task holds, for status.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holds {
    pub(super) state_bytes: u64,
    pub(super) committed_at: Micros,
    /// None without an instance.
    pub(super) memory_bytes: Option<u64>,
}

impl Seen {
    fn note(&self, worker: &Worker) {
        self.state_bytes.store(worker.state_bytes(), Ordering::Relaxed);
        self.committed_at.store(worker.committed_at().0, Ordering::Relaxed);
        let memory = worker.memory_bytes().map_or(0, |bytes| bytes.saturating_add(1));
        self.memory_bytes.store(memory, Ordering::Relaxed);
    }
}

impl Task {
    pub(super) fn new(
        id: TaskId,
        shared: Arc<Shared>,
        factory: Arc<dyn ProcessorFactory>,
        breaker: Arc<Breaker>,
        claim: (Generation, Option<Checkpoint>),
        end: oneshot::Sender<End>,
    ) -> Arc<Self> {
        let start = shared.settings.start;
        let position = claim.1.as_ref().map_or(start, |c| c.position);
        let worker = Worker::new(id.clone(), Arc::clone(&shared), factory, breaker, claim, start);
        let seen = Seen::default();
        let (parked, held) = worker.parked();
        seen.parked.store(parked as u64, Ordering::Relaxed);
        seen.held.store(held as u64, Ordering::Relaxed);
        seen.committed_at.store(worker.committed_at().0, Ordering::Relaxed);
        seen.committed.store(position.0, Ordering::Relaxed);
        seen.advance.store(position.0, Ordering::Relaxed);
        Arc::new(Self {
            id,
            shared,
            schedule: Schedule::default(),
            inbox: Mutex::new(Inbox { advance: position, ..Inbox::default() }),
            room: Notify::new(),
            worker: Mutex::new(worker),
            seen,
            claimed: position,
            alarm: Mutex::default(),
            end: Mutex::new(Some(end)),
        })
    }

    /// Begins with what an earlier life left waiting.
    pub(super) fn begin(self: &Arc<Self>) {
        if self.seen.parked.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// Hands a batch over; waits while the queue is full. Cancel-safe: a dropped
    /// call has handed nothing over. Answers false when the task has ended.
    pub(super) async fn send(self: &Arc<Self>, batch: Arc<EventBatch>, advance: Position) -> bool {
        let mut batch = Some(batch);
        loop {
            let room = self.room.notified();
            {
                let mut inbox = self.inbox();
                if inbox.closed {
                    return false;
                }
                if inbox.take_in(&mut batch) {
                    inbox.advance = inbox.advance.max(advance);
                    // First `busy`, then how far: `done_through` reads them the other way round.
                    self.seen.busy.store(true, Ordering::SeqCst);
                    self.seen.advance.store(inbox.advance.0, Ordering::SeqCst);
                    break;
                }
            }
            room.await;
        }
        self.wake();
        true
    }

    /// Tells that the feed has passed this position, with nothing more for this lane before it.
    pub(super) fn advance(self: &Arc<Self>, position: Position) {
        let mut inbox = self.inbox();
        inbox.advance = inbox.advance.max(position);
        let behind = inbox.advance.0 - self.seen.committed.load(Ordering::Acquire).min(inbox.advance.0);
        self.seen.advance.store(inbox.advance.0, Ordering::Release);
        drop(inbox);
        if behind >= super::worker::ADVANCE_POSITIONS {
            self.wake();
        }
    }

    pub(super) fn committed(self: &Arc<Self>, result: Result<Committed, CommitError>) {
        self.inbox().committed = Some(result);
        self.wake();
    }

    pub(super) fn tick(self: &Arc<Self>) {
        self.inbox().tick = true;
        self.wake();
    }

    pub(super) fn evict(self: &Arc<Self>) {
        self.inbox().evict = true;
        self.wake();
    }

    /// What another version would begin with: the last committed state. The
    /// task goes on. None when it has ended.
    pub(super) async fn basis(self: &Arc<Self>) -> Option<Basis> {
        let (reply, answer) = oneshot::channel();
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return None;
            }
            inbox.basis.push(reply);
        }
        self.wake();
        answer.await.ok()
    }

    /// Carries a verdict on a dead letter out, or drops it when the task has ended.
    pub(super) fn resolve(self: &Arc<Self>, resolution: Resolution) {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return;
            }
            inbox.resolutions.push(resolution);
        }
        self.wake();
    }

    /// Submits what was handled and hands over to another version, which goes on from there while that is
    /// committed. On an error the old instance goes on. An ended task has no objection.
    pub(super) async fn swap(self: &Arc<Self>, factory: Arc<dyn ProcessorFactory>) -> Result<(), LoadError> {
        let (reply, answer) = oneshot::channel();
        if !self.drain(Drain::Swap { factory, reply }) {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Commits what was handled, and ends.
    pub(super) async fn stop(self: &Arc<Self>) {
        let (reply, answer) = oneshot::channel();
        if self.drain(Drain::Stop { reply }) {
            // An error means that the task has ended by itself, which is as good.
            let _ = answer.await;
        }
    }

    /// Comes to stand at a position: everything up to it is done, flushed and committed when this answers, and
    /// nothing is flushed by time until [`Self::release`]. None when it has ended, or could not flush.
    pub(super) async fn stand(self: &Arc<Self>, position: Position) -> Option<Result<(), Ahead>> {
        let (reply, answer) = oneshot::channel();
        if !self.ask_to_stand(Stand::At { position, reply }) {
            return None;
        }
        answer.await.ok()
    }

    pub(super) fn release(self: &Arc<Self>) {
        self.ask_to_stand(Stand::Release);
    }

    fn ask_to_stand(self: &Arc<Self>, stand: Stand) -> bool {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return false;
            }
            inbox.stand = Some(stand);
        }
        self.wake();
        true
    }

    fn drain(self: &Arc<Self>, drain: Drain) -> bool {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return false;
            }
            inbox.drain = Some(drain);
        }
        self.wake();
        true
    }

    /// Ends the task where it stands: nothing more is handled or committed.
    pub(super) fn close(self: &Arc<Self>) {
        {
            let mut inbox = self.inbox();
            inbox.closed = true;
            inbox.batches.clear();
            inbox.basis.clear();
            inbox.resolutions.clear();
            inbox.stand = None;
            inbox.drain = None;
        }
        self.room.notify_waiters();
        self.wake();
    }

    /// Everything up to here is done and durable, or was not for this task.
    pub(super) fn done_through(&self) -> Position {
        let advance = self.seen.advance.load(Ordering::SeqCst);
        if self.seen.busy.load(Ordering::SeqCst) {
            Position(self.seen.committed.load(Ordering::SeqCst))
        } else {
            Position(advance)
        }
    }

    /// Whether this task has moved on since it was claimed.
    pub(super) fn has_committed(&self) -> bool {
        self.seen.committed.load(Ordering::SeqCst) > self.claimed.0
    }

    /// As of the task's last turn.
    pub(super) fn holds(&self) -> Holds {
        Holds {
            state_bytes: self.seen.state_bytes.load(Ordering::Relaxed),
            committed_at: Micros(self.seen.committed_at.load(Ordering::Relaxed)),
            memory_bytes: self.seen.memory_bytes.load(Ordering::Relaxed).checked_sub(1),
        }
    }

    /// Events that wait for their key, and keys that are held.
    pub(super) fn parked(&self) -> (u64, u64) {
        (self.seen.parked.load(Ordering::SeqCst), self.seen.held.load(Ordering::SeqCst))
    }

    /// Why it stands still although it may have work.
    pub(super) fn blocked(&self) -> Option<Blocked> {
        *self.seen.blocked.lock().expect("no code panics while it holds what is seen")
    }

    /// What was refused last and cost no event.
    pub(super) fn last_refused(&self) -> Option<String> {
        let refused = self.seen.last_refused.lock().expect("no code panics while it holds what is seen");
        refused.as_ref().map(|refused| refused.to_string())
    }

    fn wake(self: &Arc<Self>) {
        self.shared.pool.wake(self);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no code panics while it holds an inbox")
    }

    fn run(self: &Arc<Self>) -> Turned {
        let mut worker = self.worker.lock().unwrap_or_else(|broken| {
            // A panic in a turn is a bug; the state it left behind must not be used.
            let mut worker = broken.into_inner();
            worker.give_up();
            self.report(End {
                message: "the host's own code panicked; it is begun again from the last commit".into(),
                restart: true,
                blame: Blame::Host,
            });
            self.close_inbox();
            worker
        });
        if worker.is_over() {
            return Turned::default();
        }
        let cpu = ThreadCpu::begin();
        let inputs = self.take(worker.wants_batches());
        let closed = inputs.closed;
        let next = if closed { Ok(Next::Over) } else { worker.turn(inputs) };
        self.seen.state_bytes.store(worker.state_bytes(), Ordering::Relaxed);
        if let Some(refused) = worker.take_refused() {
            let mut last = self.seen.last_refused.lock().expect("no code panics while it holds what is seen");
            *last = Some(refused);
        }
        // First what waits, then how far: who sees a position sees what waits before it.
        let (parked, held) = worker.parked();
        self.seen.parked.store(parked as u64, Ordering::SeqCst);
        self.seen.held.store(held as u64, Ordering::SeqCst);
        self.seen.committed.store(worker.committed().0, Ordering::SeqCst);
        *self.seen.blocked.lock().expect("no code panics while it holds what is seen") = worker.blocked();
        let cpu = cpu.spent();
        worker.counters().cpu(cpu);
        let again = match next {
            Ok(Next::Again) => true,
            Ok(Next::Wait) => false,
            Ok(Next::WaitUntil(when)) => {
                self.wake_at(when);
                false
            }
            Ok(Next::Over) => {
                worker.give_up();
                self.close_inbox();
                false
            }
            Err(end) => {
                worker.give_up();
                self.report(end);
                self.close_inbox();
                false
            }
        };
        if let Some(commit) = worker.take_commit() {
            let task = Arc::clone(self);
            self.shared.spawn(async move {
                let answer = task.shared.checkpoints.commit(commit).await;
                task.committed(answer);
            });
        }
        self.seen.note(&worker);
        self.settle(&worker);
        Turned { again, fell: worker.take_fell(), cpu }
    }

    fn settle(&self, worker: &Worker) {
        let inbox = self.inbox();
        let busy = !inbox.batches.is_empty() || worker.is_busy();
        self.seen.busy.store(busy, Ordering::SeqCst);
    }

    fn take(&self, batches: bool) -> Inputs {
        let mut inbox = self.inbox();
        let taken = if batches { std::mem::take(&mut inbox.batches) } else { VecDeque::new() };
        if !taken.is_empty() {
            self.room.notify_waiters();
        }
        Inputs {
            batches: taken,
            advance: inbox.advance,
            drained: inbox.batches.is_empty(),
            committed: inbox.committed.take(),
            tick: std::mem::take(&mut inbox.tick),
            evict: std::mem::take(&mut inbox.evict),
            basis: std::mem::take(&mut inbox.basis),
            resolutions: std::mem::take(&mut inbox.resolutions),
            stand: inbox.stand.take(),
            drain: inbox.drain.take(),
            closed: inbox.closed,
        }
    }

    fn close_inbox(&self) {
        let mut inbox = self.inbox();
        inbox.closed = true;
        inbox.batches.clear();
        inbox.basis.clear();
        inbox.resolutions.clear();
        inbox.stand = None;
        inbox.drain = None;
        drop(inbox);
        self.room.notify_waiters();
    }

    fn report(&self, end: End) {
        let sender = self.end.lock().expect("no code panics while it holds the end").take();
        if let Some(sender) = sender {
            // Nobody listens any more when the run is being stopped.
            let _ = sender.send(end);
        }
    }

    /// Wakes the task at that time, unless it is woken before.
    fn wake_at(self: &Arc<Self>, when: Instant) {
        {
            let mut alarm = self.alarm();
            let now = Instant::now();
            if alarm.is_some_and(|set| set <= when && set > now) {
                return;
            }
            *alarm = Some(when);
        }
        let task = Arc::clone(self);
        self.shared.spawn(async move {
            tokio::time::sleep_until(when.into()).await;
            task.wake();
        });
    }

    fn alarm(&self) -> MutexGuard<'_, Option<Instant>> {
        self.alarm.lock().expect("no code panics while it holds an alarm")
    }
}

impl Inbox {
    /// Takes a batch in if there is room: as a batch of its own, or at the end of a small last one.
    fn take_in(&mut self, batch: &mut Option<Arc<EventBatch>>) -> bool {
        let Some(new) = batch.as_ref() else { return true };
        let full = self.batches.len() >= LANE_QUEUE_BATCHES_MAX;
        if let Some(last) = self.batches.back_mut() {
            let fits =
                last.len() + new.len() <= BATCH_EVENTS_MAX && last.bytes() + new.bytes() <= BATCH_BYTES_MAX;
            if fits && let Some(last) = Arc::get_mut(last) {
                last.extend_from(new);
                *batch = None;
                return true;
            }
        }
        if full {
            return false;
        }
        self.batches.extend(batch.take());
        true
    }
}

impl Turns for Task {
    fn group(&self) -> &Arc<str> {
        &self.id.processor
    }

    fn tenant(&self) -> &TenantId {
        &self.id.tenant
    }

    fn turn(self: Arc<Self>) -> Turned {
        self.run()
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn is_background(&self) -> bool {
        // While it is to come to stand, another one waits for it.
        self.shared.settings.background && self.shared.barrier.borrow().is_none()
    }
}
