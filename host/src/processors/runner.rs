//! Runs one processor: a run per tenant (claims, tasks, a feed), restarts with
//! back-off, swaps, and an orderly end.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::breaker::{Breaker, BreakerState};
use super::counters::{Counts, VersionCounters};
use super::feed::{Feed, FeedError};
use super::measures::{CodeState, Measures, since};
use super::owned::Owned;
use super::pool::GuestPool;
use super::proof::prove;
use super::resolve::{Resolution, ResolveError, Resolved, Verdict};
use super::run_end::{RunError, first};
use super::settings::ProcessorSettings;
use super::shadow::Slot;
use super::task::{End, Task};
use super::{LoadError, ProcessorFactory};
use crate::checkpoints::{CheckpointStore, DeadLetterRow, Outbox, TaskId};
use crate::clock::Clock;
use crate::cluster::Ownerships;
use crate::event::{Position, TenantId};
use crate::limits::{RESTART_WAIT_MAX, RESTART_WAIT_MIN};
use crate::streams::EventLog;

/// What all processors share.
#[derive(Clone, Debug)]
pub struct Engine {
    pub log: Arc<dyn EventLog>,
    pub checkpoints: Arc<dyn CheckpointStore>,
    pub pool: GuestPool,
    pub clock: Arc<dyn Clock>,
    /// Where the log is shared with other hosts: who runs what, and what is on its way to the log.
    pub shared_log: Option<SharedLog>,
    /// Where feeds and timers run.
    pub runtime: tokio::runtime::Handle,
}

/// What a log that other hosts share asks of a host.
#[derive(Clone, Debug)]
pub struct SharedLog {
    /// One host at a time runs a processor.
    pub owners: Ownerships,
    /// What it emitted and the log does not have yet.
    pub outbox: Arc<dyn Outbox>,
}

/// What the parts of one processor share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) checkpoints: Arc<dyn CheckpointStore>,
    pub(super) pool: GuestPool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: ProcessorSettings,
    pub(super) counters: Arc<VersionCounters>,
    /// The candidate that handles what the tasks handle, if there is one.
    pub(super) shadow: Slot,
    runtime: tokio::runtime::Handle,
    pub(super) jobs: TaskTracker,
    factory: RwLock<Arc<dyn ProcessorFactory>>,
    runs: Mutex<HashMap<TenantId, Run>>,
    /// Held for reading while a run starts, for writing while versions change.
    swapping: tokio::sync::RwLock<()>,
    /// No feed hands out what lies behind it, and nothing is flushed by time, while it is set.
    pub(super) barrier: watch::Sender<Option<Position>>,
    pub(super) cancel: CancellationToken,
    /// Who runs it, where several hosts could; none where this is the only one.
    pub(super) owned: Option<Owned>,
}

/// A tenant's run, as others see it.
#[derive(Debug, Default)]
struct Run {
    tasks: Vec<Arc<Task>>,
    breaker: Option<Arc<Breaker>>,
    /// The tenant has no event up to here that is for this processor.
    nothing_before: Position,
    fed: Position,
    /// The feed has come to the barrier, or had passed it, and hands out nothing.
    halted: bool,
    /// Why it does not run; none while it does.
    failure: Option<String>,
}

impl Run {
    /// Takes its tasks. From the same moment on, what is done is what they had done: the feed was further.
    fn end(&mut self) -> Vec<Arc<Task>> {
        if let Some(reached) = self.tasks.iter().map(|task| task.done_through()).min() {
            self.fed = self.fed.min(reached);
        }
        self.halted = false;
        std::mem::take(&mut self.tasks)
    }
}

/// A processor that runs. Dropping it does not end it; [`Runner::stop`] does.
#[derive(Clone, Debug)]
pub struct Runner {
    shared: Arc<Shared>,
}

/// How a processor is doing.
#[derive(Clone, Debug)]
pub struct RunnerStatus {
    pub counts: Counts,
    /// All but the lag in seconds, which has to be looked up: see [`super::lag_seconds`].
    pub measures: Measures,
    /// Tenants with events that are not done, and up to where they are.
    pub behind: Vec<(TenantId, Position)>,
    /// Everything up to here is done, for all tenants.
    pub done_through: Position,
    pub tasks: Vec<TaskState>,
    /// Tenants whose run has ended, and why.
    pub failures: Vec<(TenantId, String)>,
    /// Another host runs it, and this one stands by.
    pub standby: Option<String>,
}

/// How a task is doing.
#[derive(Clone, Debug)]
pub struct TaskState {
    pub task: TaskId,
    /// Every event up to here that is the task's is applied, parked or dead-lettered.
    pub done_through: Position,
    pub state_bytes: u64,
    /// Events that wait for their ordering key.
    pub parked_events: u64,
    /// Keys that are held by a dead letter.
    pub held_keys: u64,
    pub breaker: BreakerState,
    /// Why it does nothing although it may have work.
    pub blocked: Option<String>,
    /// What was refused last and cost no event: an entry that was left out, or the effects of a flush.
    pub last_refused: Option<String>,
}

/// A version that did not take over; the old one goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("task {task}: {source}")]
pub struct SwapError {
    pub task: TaskId,
    pub source: LoadError,
}

impl Runner {
    /// Starts a processor for every tenant there is and will be.
    pub fn start(engine: &Engine, factory: Arc<dyn ProcessorFactory>, settings: ProcessorSettings) -> Self {
        Self::start_counting(engine, factory, settings, Arc::default())
    }

    /// The same, going on with the counts of former runs.
    pub fn start_counting(
        engine: &Engine,
        factory: Arc<dyn ProcessorFactory>,
        settings: ProcessorSettings,
        counters: Arc<VersionCounters>,
    ) -> Self {
        let name: Arc<str> = factory.manifest().name.as_str().into();
        let (owned, keeper) = engine.shared_log.as_ref().map(|log| Owned::keep(&name, log)).unzip();
        // Its numbers are there from the beginning, at 0.
        counters.of(&factory.manifest().version.to_string());
        let shared = Arc::new(Shared {
            counters,
            name,
            log: Arc::clone(&engine.log),
            checkpoints: Arc::clone(&engine.checkpoints),
            pool: engine.pool.clone(),
            clock: Arc::clone(&engine.clock),
            settings,
            shadow: Slot::default(),
            runtime: engine.runtime.clone(),
            jobs: TaskTracker::new(),
            factory: RwLock::new(factory),
            runs: Mutex::default(),
            swapping: tokio::sync::RwLock::new(()),
            barrier: watch::Sender::new(None),
            cancel: CancellationToken::new(),
            owned,
        });
        if let Some(keeper) = keeper {
            shared.spawn(keeper);
            let declarer = Arc::clone(&shared);
            shared.spawn(async move { declarer.keep_declared().await });
        }
        let watcher = Arc::clone(&shared);
        shared.spawn(async move { watcher.watch_tenants().await });
        let ticker = Arc::clone(&shared);
        shared.spawn(async move { ticker.tick().await });
        Self { shared }
    }

    pub fn factory(&self) -> Arc<dyn ProcessorFactory> {
        self.shared.factory()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether this version could load the committed state of every task. It is
    /// tried beside the tasks, which go on meanwhile, however long it takes.
    pub async fn prove(&self, factory: &Arc<dyn ProcessorFactory>) -> Result<(), SwapError> {
        for task in self.shared.tasks() {
            // An ended task has no objection.
            let Some(basis) = task.basis().await else { continue };
            prove(&self.shared.pool, factory, task.id.clone(), basis).await?;
        }
        Ok(())
    }

    /// Has every task hand over at a batch boundary. When one refuses, it goes
    /// on with the old version, and those that had handed over go back to it.
    /// [`Runner::prove`] comes first, so that this is the exception.
    pub async fn swap(&self, factory: Arc<dyn ProcessorFactory>) -> Result<(), SwapError> {
        let shared = &self.shared;
        let _no_starts = shared.swapping.write().await;
        let tasks = shared.tasks();
        let old = shared.factory();
        shared.set_factory(Arc::clone(&factory));
        for (index, task) in tasks.iter().enumerate() {
            let Err(source) = task.swap(Arc::clone(&factory)).await else { continue };
            shared.set_factory(Arc::clone(&old));
            for handed_over in &tasks[..index] {
                if let Err(error) = handed_over.swap(Arc::clone(&old)).await {
                    warn!(task.id = %handed_over.id, error.kind = "swap_failed", error.blame = "guest", %error, "task could not go back to the old version");
                }
            }
            return Err(SwapError { task: task.id.clone(), source });
        }
        shared.counters.of(&factory.manifest().version.to_string()).swap();
        // Feeds refer to it until their next event.
        old.rest(Duration::ZERO);
        Ok(())
    }

    /// Lets every task flush and commit, then ends it. What takes longer than
    /// `deadline` is cut off: it is handled again at the next start. Answers
    /// whether all were in time.
    pub async fn stop(&self, deadline: Duration) -> bool {
        let shared = &self.shared;
        let in_time = tokio::time::timeout(deadline, async {
            let _no_starts = shared.swapping.write().await;
            shared.cancel.cancel();
            for task in shared.tasks() {
                task.stop().await;
            }
        })
        .await
        .is_ok();
        shared.cancel.cancel();
        for task in shared.tasks() {
            task.close();
        }
        shared.jobs.close();
        shared.give_up().await;
        in_time
    }

    /// Replays or discards a dead letter, in the task that it belongs to.
    pub async fn resolve(&self, letter: DeadLetterRow, verdict: Verdict) -> Result<Resolved, ResolveError> {
        let shared = &self.shared;
        let (processor, tenant) = (shared.name.to_string(), letter.task.tenant.to_string());
        let position = letter.event.last_position().0;
        let task = shared.tasks().into_iter().find(|task| task.id == letter.task);
        let Some(task) = task else { return Err(ResolveError::NotRunning { processor, tenant }) };
        let (reply, answer) = oneshot::channel();
        task.resolve(Resolution { verdict, letter, reply });
        // A task that ends takes the reply with it, and so ends the wait.
        drop(task);
        answer.await.unwrap_or(Err(ResolveError::Interrupted { processor, letter: position }))
    }

    pub fn status(&self) -> RunnerStatus {
        let shared = &self.shared;
        let standby = shared.owned.as_ref().and_then(Owned::standby);
        // The newest position is read first: a tenant that is new after it has nothing before it.
        let newest = *shared.log.tail().newest().borrow();
        let runs = shared.runs();
        let mut done_through = newest;
        let mut tasks = Vec::new();
        let mut failures = Vec::new();
        let mut lagging = Vec::new();
        let mut measures = Measures::counted(&shared.counters);
        let loaded = shared.factory().is_loaded();
        measures.code = Some(if loaded { CodeState::Loaded } else { CodeState::Idle });
        for tenant in shared.log.tenants().iter().filter(|t| shared.serves(t)) {
            let Some(run) = runs.get(tenant) else {
                done_through = done_through.min(shared.settings.start);
                lagging.push((tenant.clone(), shared.settings.start));
                continue;
            };
            let mut behind = run.fed;
            for task in &run.tasks {
                behind = behind.min(task.done_through());
                let (parked_events, held_keys) = task.parked();
                let holds = task.holds();
                tasks.push(TaskState {
                    task: task.id.clone(),
                    done_through: task.done_through(),
                    state_bytes: holds.state_bytes,
                    parked_events,
                    held_keys,
                    breaker: run.breaker.as_ref().map(|breaker| breaker.state()).unwrap_or_default(),
                    blocked: task.blocked().map(|blocked| blocked.to_string()),
                    last_refused: task.last_refused(),
                });
                measures.instances += u64::from(holds.memory_bytes.is_some());
                measures.memory_bytes += holds.memory_bytes.unwrap_or(0);
                measures.checkpoint_bytes += holds.state_bytes;
                let age = since(&*shared.clock, holds.committed_at);
                measures.checkpoint_age_seconds = measures.checkpoint_age_seconds.max(age);
            }
            let has_more = shared.log.tail().follow(tenant).newest() > behind;
            if has_more {
                done_through = done_through.min(behind);
                lagging.push((tenant.clone(), behind));
            }
            failures.extend(run.failure.iter().map(|message| (tenant.clone(), message.clone())));
        }
        RunnerStatus {
            counts: shared.counters.sum(),
            measures,
            behind: lagging,
            done_through,
            tasks,
            failures,
            standby,
        }
    }
}

impl Shared {
    pub(super) fn factory(&self) -> Arc<dyn ProcessorFactory> {
        Arc::clone(&self.factory.read().expect("no code panics while it holds the factory"))
    }

    fn set_factory(&self, factory: Arc<dyn ProcessorFactory>) {
        *self.factory.write().expect("no code panics while it holds the factory") = factory;
    }

    /// The one place where this processor's feeds, timers and commits are spawned.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.jobs.spawn_on(future, &self.runtime);
    }

    /// The tenant has no event up to here that is for this processor.
    pub(super) fn nothing_before(&self, tenant: &TenantId) -> Position {
        self.runs().get(tenant).map_or(self.settings.start, |run| run.nothing_before)
    }

    /// A feed tells how far it has read.
    pub(super) fn fed(&self, tenant: &TenantId, position: Position) {
        if let Some(run) = self.runs().get_mut(tenant) {
            run.fed = position;
        }
    }

    /// A feed tells that the barrier keeps it where it is, or no more.
    pub(super) fn halts(&self, tenant: &TenantId, halted: bool) {
        if let Some(run) = self.runs().get_mut(tenant) {
            run.halted = halted;
        }
    }

    /// Where a tenant's feed has halted, with its tasks; none while it has not.
    pub(super) fn halted_tasks(&self, tenant: &TenantId) -> Option<(Position, Vec<Arc<Task>>)> {
        let runs = self.runs();
        let run = runs.get(tenant).filter(|run| run.halted)?;
        Some((run.fed, run.tasks.clone()))
    }

    pub(super) fn serves(&self, tenant: &TenantId) -> bool {
        self.settings.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    pub(super) fn tasks(&self) -> Vec<Arc<Task>> {
        self.runs().values().flat_map(|run| run.tasks.iter().cloned()).collect()
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<TenantId, Run>> {
        self.runs.lock().expect("no code panics while it holds the runs")
    }

    async fn watch_tenants(self: Arc<Self>) {
        let mut changes = self.log.tail().tenants();
        let start = self.settings.start;
        // Read before the tenants: one that is new after them has nothing before it.
        let newest = *self.log.tail().newest().borrow();
        let mut nothing_before = start;
        loop {
            changes.mark_unchanged();
            for tenant in self.log.tenants() {
                if self.serves(&tenant) && !self.runs().contains_key(&tenant) {
                    self.runs().insert(tenant.clone(), Run { nothing_before, ..Run::default() });
                    let shared = Arc::clone(&self);
                    self.spawn(async move { shared.keep_running(tenant).await });
                }
            }
            nothing_before = start.max(newest);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.cancel.cancelled() => return,
            }
        }
    }

    /// Flush ticks, and instances that have been idle for long.
    async fn tick(self: Arc<Self>) {
        loop {
            // Another version may want another interval.
            let interval_ms = self.factory().manifest().flush_interval_ms;
            let flush = interval_ms.map(|ms| Duration::from_millis(ms.into()));
            tokio::select! {
                () = tokio::time::sleep(flush.unwrap_or(self.settings.idle_max)) => {}
                () = self.cancel.cancelled() => return,
            }
            if self.barrier.borrow().is_some() {
                continue;
            }
            for task in self.tasks() {
                if flush.is_some() {
                    task.tick();
                }
                task.evict();
            }
            // One without tasks, or whose tasks never had an event.
            self.factory().rest(self.settings.idle_max);
        }
    }

    /// A tenant's run, again and again until the processor is stopped.
    async fn keep_running(self: Arc<Self>, tenant: TenantId) {
        let mut wait = RESTART_WAIT_MIN;
        loop {
            let began_with = self.factory();
            let error = tokio::select! {
                error = self.run_as_owner(&tenant) => error,
                () = self.cancel.cancelled() => return,
            };
            let tasks = self.runs().get_mut(&tenant).map(Run::end).unwrap_or_default();
            let did_something = tasks.iter().any(|task| task.has_committed());
            for task in tasks {
                task.close();
            }
            // A swap that is under way counts these tasks as handed over. So it is waited for,
            // and the version that it brought gets its try at what the old one gave up on.
            let no_swap = self.swapping.read().await;
            let swapped = !Arc::ptr_eq(&began_with, &self.factory());
            let restart = (swapped || !matches!(&error, RunError::Task(end) if !end.restart))
                && !matches!(
                    &error,
                    RunError::Feed(FeedError::Closed) | RunError::Lost(_) | RunError::LeftToOthers
                );
            warn!(
                plugin.name = %self.name,
                %tenant,
                error.kind = "run_ended",
                error.blame = error.blame().as_str(),
                %error,
                restart,
                "processor run ended"
            );
            if let Some(run) = self.runs().get_mut(&tenant) {
                run.failure = Some(error.to_string());
            }
            drop(no_swap);
            if matches!(error, RunError::Lost(_)) {
                self.leave_to_others().await;
            }
            if !restart {
                return;
            }
            if did_something || swapped {
                wait = RESTART_WAIT_MIN;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.cancel.cancelled() => return,
            }
            wait = (wait * 2).min(RESTART_WAIT_MAX);
            self.counters.of(&self.factory().manifest().version.to_string()).restart();
        }
    }

    /// Runs while this host owns the processor.
    async fn run_as_owner(self: &Arc<Self>, tenant: &TenantId) -> RunError {
        let Some(owned) = &self.owned else { return self.run(tenant).await };
        let (mut ownership, generation) = owned.declared().await;
        tokio::select! {
            biased;
            () = ownership.lost(generation) => match owned.is_given_up() {
                true => RunError::LeftToOthers,
                false => RunError::NotOwner,
            },
            error = self.run(tenant) => error,
        }
    }

    /// Claims, starts the tasks and feeds them until something ends it.
    async fn run(self: &Arc<Self>, tenant: &TenantId) -> RunError {
        let (tasks, ends) = match self.begin(tenant).await {
            Ok(begun) => begun,
            Err(error) => return error,
        };
        let feed = Feed::new(Arc::clone(self), tenant.clone(), &tasks);
        let mut ended = std::pin::pin!(first(ends));
        tokio::select! {
            biased;
            end = &mut ended => RunError::Task(end),
            error = feed.run() => match error {
                // The task that ended knows why.
                FeedError::TaskEnded => RunError::Task(ended.await),
                error => error.into(),
            },
        }
    }

    async fn begin(
        self: &Arc<Self>,
        tenant: &TenantId,
    ) -> Result<(Vec<(Arc<Task>, Position)>, Vec<oneshot::Receiver<End>>), RunError> {
        let _no_swap = self.swapping.read().await;
        let mut tasks = Vec::new();
        let mut ends = Vec::new();
        let settings = &self.settings;
        let trimmed = self.log.bounds().trimmed;
        let breaker = Arc::new(Breaker::new(
            settings.breaker_failures_max,
            settings.breaker_wait_min,
            settings.breaker_wait_max,
        ));
        for lane in 0..self.settings.lanes {
            let id = TaskId { processor: Arc::clone(&self.name), tenant: tenant.clone(), lane };
            let claim = self.checkpoints.claim(&id).await?;
            let claim = self.where_events_are_kept(&id, claim).await?;
            let position = claim.1.as_ref().map_or(self.settings.start, |c| c.position).max(trimmed);
            let (end, ended) = oneshot::channel();
            let task = Task::new(id, Arc::clone(self), self.factory(), Arc::clone(&breaker), claim, end);
            tasks.push((task, position));
            ends.push(ended);
        }
        let lowest = tasks.iter().map(|(_, position)| *position).min().unwrap_or_default();
        info!(plugin.name = %self.name, %tenant, stream.position = %lowest, "processor run began");
        let run = Run {
            tasks: tasks.iter().map(|(t, _)| Arc::clone(t)).collect(),
            breaker: Some(breaker),
            nothing_before: self.nothing_before(tenant),
            fed: lowest,
            halted: false,
            failure: None,
        };
        self.runs().insert(tenant.clone(), run);
        for (task, _) in &tasks {
            task.begin();
        }
        Ok((tasks, ends))
    }
}
