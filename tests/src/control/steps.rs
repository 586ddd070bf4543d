//! The steps of a run that touch something durable, so that a test can end the run, or let it fail, at each of them.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::control::{
    Acker, Applied, Claimed, ControlEvent, ControlSink, ControlSource, ControlStore, ControlVersion,
    DesiredRow, Entry, EventId, ObservedRow, OutboxLetter, OutboxStatus, Polled, Proposed, Quarantined,
    Restore, Restored, Result, Settlement, Told, Unreadable,
};
use millrace::error::BackendError;
use tokio::sync::watch;

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing that awaits the step ever goes on: whoever started it drops it.
    Kill,
    /// The call fails. After the call has done its work, that means that its answer was lost.
    Fail,
}

/// Counts steps: there is one before each call, and one after it.
#[derive(Debug)]
pub struct Steps {
    passed: Mutex<Vec<String>>,
    at: Option<(usize, Cut)>,
    killed: watch::Sender<bool>,
}

impl Steps {
    /// Nothing happens.
    pub fn all() -> Arc<Self> {
        Arc::new(Self { passed: Mutex::default(), at: None, killed: watch::Sender::new(false) })
    }

    /// The first step is 0.
    pub fn cut(at: usize, cut: Cut) -> Arc<Self> {
        Arc::new(Self { passed: Mutex::default(), at: Some((at, cut)), killed: watch::Sender::new(false) })
    }

    /// The names of the steps up to now.
    pub fn passed(&self) -> Vec<String> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The step of the kill is reached.
    pub async fn killed(&self) {
        // Its sender is `self`, so it cannot have gone.
        let _ = self.killed.subscribe().wait_for(|killed| *killed).await;
    }

    /// One step of a seam that is not among those below.
    pub async fn step(&self, name: &str) -> Result<()> {
        let index = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            passed.push(name.to_owned());
            passed.len() - 1
        };
        match self.at {
            Some((at, Cut::Fail)) if at == index => {
                Err(BackendError::Failed { detail: format!("told to fail: {name}") }.into())
            }
            Some((at, Cut::Kill)) if at == index => {
                self.killed.send_replace(true);
                std::future::pending().await
            }
            // What runs beside the one that is killed is killed, too.
            Some((at, Cut::Kill)) if at < index => std::future::pending().await,
            _ => Ok(()),
        }
    }

    pub async fn around<T>(&self, name: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.step(&format!("before {name}")).await?;
        let answer = call.await;
        self.step(&format!("after {name}")).await?;
        answer
    }
}

/// A store, each of whose calls is two steps.
#[derive(Clone, Debug)]
pub struct SteppedStore {
    pub inner: Arc<dyn ControlStore>,
    pub steps: Arc<Steps>,
}

/// A source.
#[derive(Clone, Debug)]
pub struct SteppedSource {
    pub inner: Arc<dyn ControlSource>,
    pub steps: Arc<Steps>,
}

/// A sink.
#[derive(Clone, Debug)]
pub struct SteppedSink {
    pub inner: Arc<dyn ControlSink>,
    pub steps: Arc<Steps>,
}

impl ControlSource for SteppedSource {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn poll(&self, after: ControlVersion, limit: usize, wait: Duration) -> BoxFuture<'_, Result<Polled>> {
        self.steps.around("poll", self.inner.poll(after, limit, wait)).boxed()
    }

    fn acker(&self) -> Option<&dyn Acker> {
        self.inner.acker().is_some().then_some(self)
    }
}

impl Acker for SteppedSource {
    fn acknowledge(&self, event: &EventId, version: ControlVersion) -> BoxFuture<'_, Result<()>> {
        let event = event.clone();
        let acknowledge = async move {
            match self.inner.acker() {
                Some(acker) => acker.acknowledge(&event, version).await,
                None => Ok(()),
            }
        };
        self.steps.around("acknowledge", acknowledge).boxed()
    }
}

impl ControlSink for SteppedSink {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        self.steps.around("append", self.inner.append(event)).boxed()
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.inner.trim(through)
    }
}

impl ControlStore for SteppedStore {
    fn cursor(&self) -> BoxFuture<'_, Result<ControlVersion>> {
        self.steps.around("cursor", self.inner.cursor()).boxed()
    }

    fn take(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<Vec<Applied>>> {
        self.steps.around("take", self.inner.take(entries)).boxed()
    }

    fn restore(&self, restore: Restore) -> BoxFuture<'_, Result<Restored>> {
        self.steps.around("restore", self.inner.restore(restore)).boxed()
    }

    fn desired(&self) -> BoxFuture<'_, Result<(ControlVersion, Vec<DesiredRow>)>> {
        self.steps.around("desired", self.inner.desired()).boxed()
    }

    fn unreadable(&self) -> BoxFuture<'_, Result<Unreadable>> {
        self.inner.unreadable()
    }

    fn applied<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<ControlVersion>>> {
        self.inner.applied(event)
    }

    fn quarantined(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Quarantined>>> {
        self.inner.quarantined(limit)
    }

    fn applied_beyond(&self, younger: u64) -> BoxFuture<'_, Result<ControlVersion>> {
        self.inner.applied_beyond(younger)
    }

    fn forget_applied(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.steps.around("forget_applied", self.inner.forget_applied(through)).boxed()
    }

    fn observed(&self) -> BoxFuture<'_, Result<Vec<ObservedRow>>> {
        self.steps.around("observed", self.inner.observed()).boxed()
    }

    fn observe<'a>(&'a self, row: &'a ObservedRow) -> BoxFuture<'a, Result<()>> {
        self.steps.around("observe", self.inner.observe(row)).boxed()
    }

    fn forget_observed<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<()>> {
        self.steps.around("forget_observed", self.inner.forget_observed(plugin)).boxed()
    }

    fn propose<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<Proposed>> {
        self.steps.around("propose", self.inner.propose(event)).boxed()
    }

    fn proposed(&self) -> BoxFuture<'_, Result<Vec<DesiredRow>>> {
        self.steps.around("proposed", self.inner.proposed()).boxed()
    }

    fn told<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<Told>>> {
        self.inner.told(event)
    }

    fn claim(&self, limit: usize, lease: Duration) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.steps.around("claim", self.inner.claim(limit, lease)).boxed()
    }

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<()>> {
        self.steps.around("settle", self.inner.settle(settlements)).boxed()
    }

    fn next_due(&self) -> BoxFuture<'_, Result<Option<Duration>>> {
        self.steps.around("next_due", self.inner.next_due()).boxed()
    }

    fn outbox(&self) -> BoxFuture<'_, Result<OutboxStatus>> {
        self.steps.around("outbox", self.inner.outbox()).boxed()
    }

    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<OutboxLetter>>> {
        self.inner.letters(limit)
    }

    fn retry_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        self.inner.retry_letter(event)
    }

    fn discard_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        self.inner.discard_letter(event)
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        self.steps.around("note", self.inner.note(name)).boxed()
    }

    fn set_note<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        self.steps.around("set_note", self.inner.set_note(name, value)).boxed()
    }
}
