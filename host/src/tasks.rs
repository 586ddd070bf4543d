//! Every task of the host starts here.
//!
//! Promises: each task has a name and a kind that says what happens on cancel
//! and on error; nothing outlives [`Tasks::shutdown`]; a panic is an error like
//! another. Deliberately absent: results. A task that has something to say
//! says it through a channel.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info_span, warn};

use crate::limits::{RESTART_WAIT_MAX, RESTART_WAIT_MIN};

/// What to do with a task when the host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// It watches [`Tasks::token`], finishes what it holds, and is waited for.
    Wait,
    /// It is dropped at its next `.await`: it holds nothing that matters.
    Abort,
}

/// What to do when a task ends with an error, or panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Only that piece of work is lost.
    Log,
    /// Start it again after a growing wait. Only for [`Tasks::supervise`].
    Restart,
    /// The host cannot keep its promises without it.
    StopHost,
}

/// How a task behaves; the kinds that the host uses have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKind {
    pub on_cancel: OnCancel,
    pub on_error: OnError,
}

impl TaskKind {
    /// A part without which the host stops: the committer's feeder, the accept loop.
    pub const VITAL: Self = Self { on_cancel: OnCancel::Wait, on_error: OnError::StopHost };
    /// A part that is started again when it fails, and finishes what it holds: a dispatcher.
    pub const SUPERVISED: Self = Self { on_cancel: OnCancel::Wait, on_error: OnError::Restart };
    /// Work for one caller, finished before the host ends: a connection.
    pub const SESSION: Self = Self { on_cancel: OnCancel::Wait, on_error: OnError::Log };
    /// Upkeep that may end at any point: gauges, retention, a watched folder.
    pub const BACKGROUND: Self = Self { on_cancel: OnCancel::Abort, on_error: OnError::Restart };
}

/// What a task fails with. Its text goes to the log.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// A family of tasks that ends together. Clones are the same family.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    abort: CancellationToken,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    running: Vec<(u64, String)>,
    next: u64,
    failure: Option<String>,
}

/// How a shutdown went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Tasks that the deadline cut off; empty when all ended by themselves.
    pub cut_off: Vec<String>,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Is cancelled when the family ends. Pass it down.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// What stopped the host, where a [`OnError::StopHost`] task failed.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Runs a future once. With [`OnError::Restart`], which needs a way to make it anew, an error is logged.
    pub fn spawn<F>(&self, kind: TaskKind, name: impl Into<String>, future: F)
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let name = name.into();
        let tasks = self.clone();
        self.start(kind, name.clone(), async move {
            if let Err(problem) = caught(future).await {
                tasks.failed(kind, &name, &problem);
            }
        });
    }

    /// Runs what `make` makes, again after each error while [`OnError::Restart`]
    /// says so, with a wait that doubles up to `RESTART_WAIT_MAX` and begins
    /// anew once a run was longer than that.
    pub fn supervise<M, F>(&self, kind: TaskKind, name: impl Into<String>, mut make: M)
    where
        M: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let name = name.into();
        let tasks = self.clone();
        self.start(kind, name.clone(), async move {
            let mut wait = RESTART_WAIT_MIN;
            while !tasks.token.is_cancelled() {
                let begun = Instant::now();
                let Err(problem) = caught(make()).await else { return };
                tasks.failed(kind, &name, &problem);
                if kind.on_error != OnError::Restart {
                    return;
                }
                if begun.elapsed() > RESTART_WAIT_MAX {
                    wait = RESTART_WAIT_MIN;
                }
                // Dropped on cancel: there is nothing to wait for then.
                if tasks.token.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return;
                }
                wait = (wait * 2).min(RESTART_WAIT_MAX);
            }
        });
    }

    /// Cancels the family and waits for it, at most until the deadline; what still runs then is dropped.
    pub async fn shutdown(&self, within: Duration) -> Shutdown {
        self.tracker.close();
        self.token.cancel();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_ok() {
            return Shutdown { cut_off: Vec::new() };
        }
        let cut_off: Vec<String> = self.lock().running.iter().map(|(_, name)| name.clone()).collect();
        warn!(error.kind = "drain_ended", error.blame = "host", tasks = ?cut_off, "the deadline cut tasks off");
        self.abort.cancel();
        Shutdown { cut_off }
    }

    fn start(&self, kind: TaskKind, name: String, work: impl Future<Output = ()> + Send + 'static) {
        let id = {
            let mut shared = self.lock();
            shared.next += 1;
            let id = shared.next;
            shared.running.push((id, name.clone()));
            id
        };
        let span = info_span!("task", task.name = %name);
        let running = Running { tasks: self.clone(), id };
        let stop = match kind.on_cancel {
            OnCancel::Wait => self.abort.clone(),
            OnCancel::Abort => self.token.clone(),
        };
        let work: BoxFuture<'static, ()> = work.boxed();
        self.tracker.spawn(
            async move {
                let _running = running;
                // Dropping the work is what abort means.
                if stop.run_until_cancelled(work).await.is_none() {
                    debug!("task dropped");
                }
            }
            .instrument(span),
        );
    }

    fn failed(&self, kind: TaskKind, name: &str, problem: &str) {
        match kind.on_error {
            OnError::Log => warn!(
                error.kind = "task_failed",
                error.blame = "host",
                task.name = name,
                error = problem,
                "task failed"
            ),
            OnError::Restart => warn!(
                error.kind = "task_failed",
                error.blame = "host",
                task.name = name,
                error = problem,
                "task failed, starting it again"
            ),
            OnError::StopHost => {
                error!(
                    error.kind = "task_failed",
                    error.blame = "host",
                    task.name = name,
                    error = problem,
                    "task failed, the host stops"
                );
                self.lock().failure.get_or_insert_with(|| format!("{name}: {problem}"));
                self.token.cancel();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running: Vec<String> = self.lock().running.iter().map(|(_, name)| name.clone()).collect();
        f.debug_struct("Tasks").field("running", &running).finish_non_exhaustive()
    }
}

/// Takes the task's name off the list however the task ends.
struct Running {
    tasks: Tasks,
    id: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.lock().running.retain(|(id, _)| *id != self.id);
    }
}

/// Runs a future to its end; a panic is an error with the panic's text.
async fn caught(future: impl Future<Output = Result<(), TaskError>>) -> Result<(), String> {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("panicked: {}", text.unwrap_or_else(|| "no message".into())))
        }
    }
}
