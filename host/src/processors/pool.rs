//! The guest threads: they run tasks, a turn at a time.
//!
//! Guests are synchronous and cannot yield, so there are several threads for each core, and one processor gets
//! at most half of them: a slow plugin must not keep the others from running. Of those, one tenant gets at most
//! half: events that make a plugin hang hold up the tenant that published them. Queue length is bounded by the
//! number of tasks, since a task stands in it at most once.
//!
//! There are two lines of them. The front line has a lower priority than the rest of the host; the back line gets
//! what cores the front line leaves. Candidates that nobody waits for work there, and for a while plugins whose
//! calls were long or came to nothing ([`Conduct`]). A call that turns out to be long in the front line takes its
//! thread along: it steps back, and another one takes its place. A thread cannot raise its priority again, so it
//! ends with that turn.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::conduct::{Conduct, Used};
use crate::event::TenantId;
use crate::limits::{GUEST_BACK_NICE, GUEST_NICE, GUEST_STEPPED_BACK_PER_CORE, GUEST_THREADS_PER_CORE};

/// Something that wants turns on a guest thread.
pub(super) trait Turns: Send + Sync + Debug + 'static {
    /// What shares a quota of threads: the processor's name.
    fn group(&self) -> &Arc<str>;

    /// What shares a part of that quota.
    fn tenant(&self) -> &TenantId;

    /// Runs one turn.
    fn turn(self: Arc<Self>) -> Turned;

    fn schedule(&self) -> &Schedule;

    /// Whether nobody waits for it, so that it always works in the back line.
    fn is_background(&self) -> bool {
        false
    }
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turned {
    /// Another one is wanted at once.
    pub(super) again: bool,
    /// An instance fell in it.
    pub(super) fell: bool,
    /// Time that it spent on a core.
    pub(super) cpu: Duration,
}

/// A piece of work was not done to its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the host is stopping, or its code panicked")]
pub(super) struct Interrupted;

type Work = Box<dyn FnOnce() + Send>;

/// Work that is done in one turn.
struct Job {
    group: Arc<str>,
    tenant: TenantId,
    schedule: Schedule,
    work: Mutex<Option<Work>>,
}

impl Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("group", &self.group)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl Turns for Job {
    fn group(&self) -> &Arc<str> {
        &self.group
    }

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn turn(self: Arc<Self>) -> Turned {
        let work = lock(&self.work).take();
        if let Some(work) = work {
            work();
        }
        Turned::default()
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn is_background(&self) -> bool {
        true
    }
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
    front: Line,
    back: Line,
    conduct: Conduct,
    threads: Mutex<Threads>,
    group_max: usize,
    /// Of one group, for one tenant.
    tenant_max: usize,
    stepped_back_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Front,
    Back,
}

/// The threads that run now.
#[derive(Debug, Default)]
struct Threads {
    handles: HashMap<u64, JoinHandle<()>>,
    /// Begun so far.
    begun: u64,
    /// At work on a long call.
    stepped_back: usize,
    ended: bool,
}

#[derive(Debug, Default)]
struct Line {
    queue: Mutex<Queue>,
    ready: Condvar,
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

thread_local! {
    /// Of a thread of the front line.
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

/// A place in the front line.
struct Seat {
    pool: Arc<Inner>,
    stepped_back: bool,
}

/// Says that the call that runs on this thread has become long. In the front line its thread steps back;
/// elsewhere this does nothing.
pub fn call_is_long() {
    SEAT.with_borrow_mut(|seat| {
        if let Some(seat) = seat
            && !seat.stepped_back
            && seat.pool.replace()
        {
            seat.stepped_back = true;
            lower_priority(GUEST_BACK_NICE - GUEST_NICE);
            make_way_at_once();
        }
    });
}

impl GuestPool {
    /// As many threads as the machine's cores ask for.
    pub fn for_this_machine() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(cores * GUEST_THREADS_PER_CORE)
    }

    /// So many threads in each of the two lines.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let inner = Arc::new(Inner {
            front: Line::default(),
            back: Line::default(),
            conduct: Conduct::default(),
            threads: Mutex::default(),
            group_max: (threads / 2).max(1),
            tenant_max: (threads / 4).max(1),
            stepped_back_max: (threads / GUEST_THREADS_PER_CORE).max(1) * GUEST_STEPPED_BACK_PER_CORE,
        });
        for place in [Place::Front, Place::Back] {
            for _ in 0..threads {
                inner.begin(&mut lock(&inner.threads), place, true)?;
            }
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

    /// Does one piece of work in the back line, as a turn of this processor and tenant.
    /// Answers what came of it; an error when it panicked, or the pool ended first.
    pub(super) async fn run_back<T: Send + 'static>(
        &self,
        group: Arc<str>,
        tenant: TenantId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move || {
            // Who asked may have gone.
            let _ = reply.send(work());
        });
        let job = Job { group, tenant, schedule: Schedule::default(), work: Mutex::new(Some(work)) };
        self.wake(&Arc::new(job));
        answer.await.map_err(|_| Interrupted)
    }

    /// Has those of a group that wait in the back line stand in the one that is theirs now.
    pub(super) fn line_up_again(&self, group: &str) {
        let back = &self.inner.back;
        let moved: VecDeque<_> = {
            let mut queue = lock(&back.queue);
            let (moved, others) = queue.waiting.drain(..).partition(|task| **task.group() == *group);
            queue.waiting = others;
            moved
        };
        moved.into_iter().for_each(|task| self.inner.push(task));
    }

    /// Lets running turns end and joins the threads. What still waits is dropped.
    pub fn shut_down(&self) {
        let threads = {
            let mut threads = lock(&self.inner.threads);
            threads.ended = true;
            std::mem::take(&mut threads.handles)
        };
        for line in [&self.inner.front, &self.inner.back] {
            lock(&line.queue).ended = true;
            line.ready.notify_all();
        }
        for thread in threads.into_values() {
            if thread.join().is_err() {
                tracing::error!(error.kind = "panicked", error.blame = "host", "a guest thread had panicked");
            }
        }
    }
}

impl Inner {
    /// Starts a thread. One that is `from_host` is started by a thread with the host's priority; another one
    /// has that of the front line from the thread that starts it.
    fn begin(self: &Arc<Self>, threads: &mut Threads, place: Place, from_host: bool) -> std::io::Result<()> {
        let number = threads.begun;
        let pool = Arc::clone(self);
        let name = if place == Place::Front { "guest" } else { "guest-back" };
        let thread = std::thread::Builder::new().name(format!("{name}-{number}")).stack_size(4 << 20).spawn(
            move || {
                if from_host {
                    lower_priority(if place == Place::Front { GUEST_NICE } else { GUEST_BACK_NICE });
                }
                if place == Place::Back {
                    make_way_at_once();
                }
                pool.run(place, number);
            },
        )?;
        threads.begun += 1;
        threads.handles.insert(number, thread);
        Ok(())
    }

    /// Puts another thread in the place of the one that calls it, which is in the front line. Answers whether it did.
    fn replace(self: &Arc<Self>) -> bool {
        let mut threads = lock(&self.threads);
        if threads.ended || threads.stepped_back >= self.stepped_back_max {
            return false;
        }
        if let Err(error) = self.begin(&mut threads, Place::Front, false) {
            tracing::debug!(%error, "no thread can take the place of one with a long call");
            return false;
        }
        threads.stepped_back += 1;
        true
    }

    fn line(&self, place: Place) -> &Line {
        match place {
            Place::Front => &self.front,
            Place::Back => &self.back,
        }
    }

    fn place(&self, task: &dyn Turns) -> Place {
        let back = task.is_background() || self.conduct.is_back(task.group(), task.tenant(), Instant::now());
        if back { Place::Back } else { Place::Front }
    }

    fn push(&self, task: Arc<dyn Turns>) {
        let line = self.line(self.place(&*task));
        lock(&line.queue).waiting.push_back(task);
        line.ready.notify_one();
    }

    fn run(self: &Arc<Self>, place: Place, number: u64) {
        if place == Place::Front {
            SEAT.set(Some(Seat { pool: Arc::clone(self), stepped_back: false }));
        }
        while let Some(task) = self.next(place) {
            let state = &task.schedule().0;
            state.store(RUNNING, Ordering::Release);
            // A panic is a bug of the host, and costs the task its run; the thread goes on for the others.
            let turned = catch_unwind(AssertUnwindSafe(|| Arc::clone(&task).turn())).unwrap_or_else(|_| {
                tracing::error!(
                    error.kind = "panicked",
                    error.blame = "host",
                    plugin.name = %task.group(),
                    tenant = %task.tenant(),
                    "a turn panicked"
                );
                Turned { again: true, ..Turned::default() }
            });
            let stepped_back = SEAT.with_borrow(|seat| seat.as_ref().is_some_and(|seat| seat.stepped_back));
            if !task.is_background() {
                let used = Used { cpu: turned.cpu, fell: turned.fell, stepped_back };
                self.conduct.note(task.group(), task.tenant(), used, Instant::now());
            }
            let idle = !turned.again
                && state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if !idle {
                state.store(QUEUED, Ordering::Release);
            }
            self.done(place, &task);
            if !idle {
                self.push(task);
            }
            if stepped_back {
                let mut threads = lock(&self.threads);
                threads.stepped_back -= 1;
                // It ends here; nobody need wait for it.
                threads.handles.remove(&number);
                break;
            }
        }
        SEAT.set(None);
    }

    /// The first waiting task whose processor and tenant have a thread left.
    fn next(&self, place: Place) -> Option<Arc<dyn Turns>> {
        let line = self.line(place);
        let mut queue = lock(&line.queue);
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
            queue = line.ready.wait(queue).expect("no code panics while it holds the run queue");
        }
    }

    fn done(&self, place: Place, task: &Arc<dyn Turns>) {
        let line = self.line(place);
        let mut queue = lock(&line.queue);
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
        let more = !queue.waiting.is_empty();
        drop(queue);
        // This thread takes the next one itself; another may have become free through the quota.
        if more {
            line.ready.notify_one();
        }
    }
}

/// Lowers the priority of this thread, so that under load the edge and the committer run first. Where it is
/// not permitted, guests compete as equals.
fn lower_priority(by: i32) {
    // On Linux, this is the thread's own.
    if let Err(error) = rustix::process::nice(by) {
        tracing::debug!(%error, "guest threads keep their priority");
    }
}

/// Whoever else becomes ready takes this thread's core at once, and does not wait for the end of its slice: at a
/// low priority alone, the many short hand-overs between the rest of the host's threads would each wait for it.
fn make_way_at_once() {
    let parameters = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "there is no safe name for this call")]
    // SAFETY: it reads the parameters, which live until it returns, and changes this thread alone.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if answer != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "guest threads of the back line wait for their slices to end");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds the run queue")
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn policy() -> i32 {
        #[expect(unsafe_code, reason = "there is no safe name for this call")]
        // SAFETY: it only asks for the policy of this thread.
        unsafe {
            libc::sched_getscheduler(0)
        }
    }

    #[tokio::test]
    async fn the_back_line_gives_way_at_once() {
        let pool = GuestPool::new(2).unwrap();
        let tenant = TenantId::new("acme").unwrap();
        let back = pool.run_back("board".into(), tenant, || {
            (policy(), std::thread::current().name().map(str::to_owned))
        });
        let (back, name) = back.await.unwrap();
        assert_eq!(back, libc::SCHED_IDLE, "of {name:?}");
        assert_eq!(policy(), libc::SCHED_OTHER, "the rest of the host keeps its own");
        pool.shut_down();
    }
}
