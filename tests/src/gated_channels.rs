//! A store of channels that a test can hold up: reads that wait, reads that fail, answers that come late.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace::channels::{
    Actor, Append, Appended, Change, ChannelError, ChannelId, ChannelLimits, ChannelStats, ChannelStore,
    EntryPage, Head, Incarnation, NewProcess, Process, ProcessId, ProcessName, ProcessView, ReadLimit, Tails,
};
use millrace::error::BackendError;
use millrace::event::{Micros, Position, TenantId};
use tokio::sync::watch;

type Answered<'a, T> = BoxFuture<'a, Result<T, ChannelError>>;

/// What happens to reads and appends of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Reads of entries wait.
    ReadsWait,
    /// Reads of entries fail.
    ReadsFail,
    /// Reads of its state wait, without which nobody follows it.
    HeadsWait,
    /// Appends are carried out at once, and answered later.
    AnswersWait,
}

/// Passes everything on to a real store, but for channels with a gate. Clones are the same store.
#[derive(Clone, Debug)]
pub struct GatedChannels {
    inner: Arc<dyn ChannelStore>,
    gates: Arc<Mutex<BTreeMap<String, Gate>>>,
    opened: watch::Sender<()>,
    /// Reads that have waited at a gate, or wait.
    held: watch::Sender<usize>,
    /// Appends that are not answered, and the most there ever were.
    waiting: Arc<AtomicUsize>,
    waiting_max: Arc<AtomicUsize>,
    /// Appends, and questions for the state of a channel, that have come this far.
    appends: Arc<AtomicUsize>,
    heads: Arc<AtomicUsize>,
}

impl GatedChannels {
    pub fn new(inner: Arc<dyn ChannelStore>) -> Self {
        Self {
            inner,
            gates: Arc::default(),
            opened: watch::Sender::new(()),
            held: watch::Sender::new(0),
            waiting: Arc::default(),
            waiting_max: Arc::default(),
            appends: Arc::default(),
            heads: Arc::default(),
        }
    }

    fn gates(&self) -> MutexGuard<'_, BTreeMap<String, Gate>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of channels of this name, whatever their process.
    pub fn shut(&self, channel: &str, gate: Gate) {
        self.gates().insert(channel.to_owned(), gate);
    }

    /// From now on nothing waits or fails.
    pub fn open(&self) {
        self.gates().clear();
        self.opened.send_replace(());
    }

    /// Appends that the store has and has not answered.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub fn waiting_max(&self) -> usize {
        self.waiting_max.load(Ordering::SeqCst)
    }

    pub fn appends(&self) -> usize {
        self.appends.load(Ordering::SeqCst)
    }

    pub fn heads(&self) -> usize {
        self.heads.load(Ordering::SeqCst)
    }

    /// Waits until a read has come to a gate.
    pub async fn until_read(&self) {
        let mut held = self.held.subscribe();
        // The sender is held here.
        let _ = held.wait_for(|held| *held > 0).await;
    }

    fn gate(&self, id: &ChannelId) -> Option<Gate> {
        self.gates().get(id.name.as_str()).copied()
    }

    async fn pass(&self, id: &ChannelId, gate: Gate) {
        let mut opened = self.opened.subscribe();
        // The sender is in what is held here.
        while self.gate(id) == Some(gate) && opened.changed().await.is_ok() {}
    }
}

impl ChannelStore for GatedChannels {
    fn create(&self, new: NewProcess) -> Answered<'_, (ProcessView, bool)> {
        self.inner.create(new)
    }

    fn process(&self, id: &ProcessId) -> Answered<'_, ProcessView> {
        self.inner.process(id)
    }

    fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> Answered<'_, Vec<Arc<Process>>> {
        self.inner.processes(tenant, after, limit)
    }

    fn head(&self, id: &ChannelId) -> Answered<'_, Head> {
        self.heads.fetch_add(1, Ordering::SeqCst);
        let id = id.clone();
        async move {
            self.pass(&id, Gate::HeadsWait).await;
            self.inner.head(&id).await
        }
        .boxed()
    }

    fn change(&self, id: &ProcessId, by: Actor, change: Change) -> Answered<'_, ProcessView> {
        self.inner.change(id, by, change)
    }

    fn append(&self, id: &ChannelId, append: Append) -> Answered<'_, Vec<Appended>> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.waiting_max.fetch_max(waiting, Ordering::SeqCst);
        let (answer, id) = (self.inner.append(id, append), id.clone());
        async move {
            let answer = answer.await;
            self.pass(&id, Gate::AnswersWait).await;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            answer
        }
        .boxed()
    }

    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> Answered<'_, EntryPage> {
        let id = id.clone();
        async move {
            if self.gate(&id) == Some(Gate::ReadsFail) {
                return Err(BackendError::Failed { detail: "a test".into() }.into());
            }
            if self.gate(&id) == Some(Gate::ReadsWait) {
                self.held.send_modify(|held| *held += 1);
            }
            self.pass(&id, Gate::ReadsWait).await;
            self.inner.read(&id, after, limit).await
        }
        .boxed()
    }

    fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> Answered<'_, bool> {
        self.inner.remove(id, only)
    }

    fn expire(&self, closed_before: Micros) -> Answered<'_, usize> {
        self.inner.expire(closed_before)
    }

    fn stats(&self) -> Answered<'_, ChannelStats> {
        self.inner.stats()
    }

    fn tails(&self) -> &Tails {
        self.inner.tails()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn limits(&self) -> &ChannelLimits {
        self.inner.limits()
    }
}
