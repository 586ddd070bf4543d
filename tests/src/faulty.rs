//! A checkpoint store that fails at the call a test chooses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace::checkpoints::{
    Checkpoint, CheckpointStore, Commit, CommitError, Committed, DeadLetterRow, Generation, ScanLimit,
    StatePage, StateValue, TaskId, TaskRow,
};
use millrace::error::BackendError;
use millrace::event::{Position, TenantId};
use tokio::sync::watch;

/// How the chosen commit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not written, and the caller is told.
    NotWritten,
    /// It is written, and the caller is told that it failed: the answer got lost.
    AnswerLost,
}

/// Passes everything on to a real store, but for the commits that fail.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn CheckpointStore>,
    fault: Mutex<Fault>,
    /// Counts down; the commit at 1 fails.
    left: AtomicU64,
    commits: AtomicU64,
    held: watch::Sender<bool>,
}

impl Faulty {
    pub fn new(inner: Arc<dyn CheckpointStore>, fault: Fault, at: u64) -> Self {
        Self {
            inner,
            fault: Mutex::new(fault),
            left: AtomicU64::new(at),
            commits: AtomicU64::new(0),
            held: watch::Sender::new(false),
        }
    }

    /// From now on, the commit at `at` fails.
    pub fn arm(&self, fault: Fault, at: u64) {
        *self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = fault;
        self.left.store(at, Ordering::SeqCst);
    }

    /// The chosen commit has failed.
    pub fn is_spent(&self) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        left == 0 || left > u64::from(u32::MAX)
    }

    /// While it is held, commits are under way and come to nothing.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }
}

impl CheckpointStore for Faulty {
    fn claim(&self, task: &TaskId) -> BoxFuture<'_, Result<(Generation, Option<Checkpoint>), CommitError>> {
        self.inner.claim(task)
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let faulty = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        let fault = *self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        async move {
            // Its sender is `self`, so it cannot have gone.
            let _ = self.held.subscribe().wait_for(|held| !held).await;
            if faulty && fault == Fault::NotWritten {
                return Err(BackendError::Failed { detail: "told to fail".into() }.into());
            }
            let answer = self.inner.commit(commit).await;
            if faulty { Err(BackendError::Failed { detail: "answer lost".into() }.into()) } else { answer }
        }
        .boxed()
    }

    fn forget(
        &self,
        task: &TaskId,
        generation: Generation,
        position: Position,
    ) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.inner.forget(task, generation, position)
    }

    fn state_get(&self, task: &TaskId, key: &[u8]) -> Result<Option<StateValue>, CommitError> {
        self.inner.state_get(task, key)
    }

    fn checkpoint(&self, task: &TaskId) -> BoxFuture<'_, Result<Option<Checkpoint>, CommitError>> {
        self.inner.checkpoint(task)
    }

    fn state_scan(
        &self,
        task: &TaskId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<StatePage, CommitError> {
        self.inner.state_scan(task, prefix, after, limit)
    }

    fn tasks(&self, processor: Option<&str>) -> BoxFuture<'_, Result<Vec<TaskRow>, CommitError>> {
        self.inner.tasks(processor)
    }

    fn dead_letters(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, CommitError>> {
        self.inner.dead_letters(processor, tenant, limit)
    }

    fn dead_letter(
        &self,
        processor: &str,
        tenant: Option<&TenantId>,
        position: Position,
    ) -> BoxFuture<'_, Result<Option<DeadLetterRow>, CommitError>> {
        self.inner.dead_letter(processor, tenant, position)
    }
}
