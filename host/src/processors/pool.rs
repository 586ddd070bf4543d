//! The guest threads: they run tasks, a turn at a time.
//!
//! Guests are synchronous and cannot yield, so there are several threads for
//! each core, and one processor gets at most half of them: a slow plugin must
//! not keep the others from running. Of those, one tenant gets at most half,
//! which is a thread for each core: events that make a plugin hang hold up the
//! tenant that published them. They run at a lower priority than the rest of the host. Queue length is bounded by the number of tasks,
//! since a task stands in it at most once.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::event::TenantId;
use crate::limits::{GUEST_NICE, GUEST_THREADS_PER_CORE};

/// Something that wants turns on a guest thread.
pub(super) trait Turns: Send + Sync + Debug + 'static {
    /// What shares a quota of threads: the processor's name.
    fn group(&self) -> &Arc<str>;

    /// What shares a part of that quota.
    fn tenant(&self) -> &TenantId;

    /// Runs one turn. Answers whether another one is wanted at once.
    fn turn(self: Arc<Self>) -> bool;

    fn schedule(&self) -> &Schedule;
}

/// Keeps a task in the queue at most once, and remembers a wake that came during a turn.
#[derive(Debug, Default)]
pub(super) struct Schedule(AtomicU8);

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const WOKEN: u8 = 3;

/// The pool. Clones share the threads; they end when [`GuestPool::shut_down`] is called.
#[derive(Clone, Debug)]
pub struct GuestPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<Queue>,
    ready: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    group_max: usize,
    /// Of one group, for one tenant.
    tenant_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<dyn Turns>>,
    running: HashMap<Arc<str>, Running>,
    ended: bool,
}

/// The turns of one group.
#[derive(Debug, Default)]
struct Running {
    turns: usize,
    by_tenant: HashMap<TenantId, usize>,
}

impl GuestPool {
    /// As many threads as the machine's cores ask for.
    pub fn for_this_machine() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(cores * GUEST_THREADS_PER_CORE)
    }

    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let inner = Arc::new(Inner {
            queue: Mutex::default(),
            ready: Condvar::new(),
            threads: Mutex::default(),
            group_max: (threads / 2).max(1),
            tenant_max: (threads / 4).max(1),
        });
        for index in 0..threads {
            let worker = Arc::clone(&inner);
            let thread = std::thread::Builder::new()
                .name(format!("guest-{index}"))
                .stack_size(4 << 20)
                .spawn(move || {
                    step_back();
                    worker.run();
                })?;
            lock(&inner.threads).push(thread);
        }
        Ok(Self { inner })
    }

    /// Asks for a turn. A wake during a turn leads to another turn; none is lost.
    pub(super) fn wake(&self, task: &Arc<impl Turns>) {
        let state = &task.schedule().0;
        let mut seen = state.load(Ordering::Acquire);
        loop {
            let next = match seen {
                IDLE => QUEUED,
                RUNNING => WOKEN,
                _ => return,
            };
            match state.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if next == QUEUED => return self.inner.push(Arc::clone(task) as Arc<dyn Turns>),
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Lets running turns end and joins the threads. What still waits is dropped.
    pub fn shut_down(&self) {
        lock(&self.inner.queue).ended = true;
        self.inner.ready.notify_all();
        for thread in std::mem::take(&mut *lock(&self.inner.threads)) {
            if thread.join().is_err() {
                tracing::error!(error.kind = "panicked", error.blame = "host", "a guest thread had panicked");
            }
        }
    }
}

impl Inner {
    fn push(&self, task: Arc<dyn Turns>) {
        lock(&self.queue).waiting.push_back(task);
        self.ready.notify_one();
    }

    fn run(&self) {
        while let Some(task) = self.next() {
            let state = &task.schedule().0;
            state.store(RUNNING, Ordering::Release);
            let again = Arc::clone(&task).turn();
            let idle =
                !again && state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if !idle {
                state.store(QUEUED, Ordering::Release);
            }
            self.done(task, !idle);
        }
    }

    /// The first waiting task whose processor and tenant have a thread left.
    fn next(&self) -> Option<Arc<dyn Turns>> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            let running = &queue.running;
            let free = |task: &Arc<dyn Turns>| {
                running.get(task.group()).is_none_or(|group| {
                    group.turns < self.group_max
                        && group.by_tenant.get(task.tenant()).is_none_or(|turns| *turns < self.tenant_max)
                })
            };
            if let Some(task) = queue.waiting.iter().position(free).and_then(|i| queue.waiting.remove(i)) {
                let group = queue.running.entry(Arc::clone(task.group())).or_default();
                group.turns += 1;
                *group.by_tenant.entry(task.tenant().clone()).or_default() += 1;
                return Some(task);
            }
            queue = self.ready.wait(queue).expect("no code panics while it holds the run queue");
        }
    }

    fn done(&self, task: Arc<dyn Turns>, again: bool) {
        let mut queue = lock(&self.queue);
        if let Some(group) = queue.running.get_mut(task.group()) {
            group.turns -= 1;
            if let Some(turns) = group.by_tenant.get_mut(task.tenant()) {
                *turns -= 1;
                if *turns == 0 {
                    group.by_tenant.remove(task.tenant());
                }
            }
            if group.turns == 0 {
                queue.running.remove(task.group());
            }
        }
        if again {
            queue.waiting.push_back(task);
        }
        // This thread takes the next one itself; another may have become free through the quota.
        if !queue.waiting.is_empty() {
            self.ready.notify_one();
        }
    }
}

/// Lowers the priority of this thread, so that under load the edge and the committer run first. Where it is
/// not permitted, guests compete as equals.
fn step_back() {
    // On Linux, this is the thread's own.
    if let Err(error) = rustix::process::nice(GUEST_NICE) {
        tracing::debug!(%error, "guest threads keep the priority of the host");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds the run queue")
}
