//! A log that fails when a test wants it to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use millrace::error::{BackendError, RemoteFault};
use millrace::event::{Epoch, EventBatch, Page, Position, TenantId};
use millrace::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, PageLimit, Retention, StreamError, StreamName,
    StreamPage, Tail,
};
use millrace_tests::every_log::Log;

/// Is done once, within the question that it waits for.
struct Meanwhile(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

/// A log, the store's unless a test brings its own, with a disk that is full after some appends, and reads that fail as those
/// of a server do.
#[derive(Debug)]
pub(super) struct FaultyLog {
    pub(super) inner: Log,
    appends_left: AtomicUsize,
    /// The epoch of another life than the store's.
    life: OnceLock<Epoch>,
    /// How often somebody asked which scopes there are, or for a stream's events.
    looks: AtomicUsize,
    fault: Mutex<Option<RemoteFault>>,
    failed_reads: AtomicUsize,
    at_bounds: Mutex<Option<Meanwhile>>,
}

impl FaultyLog {
    pub(super) fn over(inner: Log) -> Self {
        Self {
            inner,
            appends_left: AtomicUsize::new(usize::MAX),
            life: OnceLock::new(),
            looks: AtomicUsize::new(0),
            fault: Mutex::default(),
            failed_reads: AtomicUsize::new(0),
            at_bounds: Mutex::default(),
        }
    }

    /// What reads fail with from now on, if they do.
    pub(super) fn fail_reads(&self, fault: Option<RemoteFault>) {
        *self.fault.lock().expect("test") = fault;
    }

    pub(super) fn failed_reads(&self) -> usize {
        self.failed_reads.load(Ordering::SeqCst)
    }

    fn reached(&self) -> Result<(), StreamError> {
        let Some(fault) = *self.fault.lock().expect("test") else { return Ok(()) };
        self.failed_reads.fetch_add(1, Ordering::SeqCst);
        Err(BackendError::Remote { fault, detail: "made so by a test".into() }.into())
    }

    pub(super) fn fail_after(&self, appends: usize) {
        self.appends_left.store(appends, Ordering::SeqCst);
    }

    pub(super) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    /// What happens when somebody asks next which positions it has.
    pub(super) fn at_bounds(&self, happens: impl FnOnce() + Send + 'static) {
        *self.at_bounds.lock().expect("test") = Some(Meanwhile(Box::new(happens)));
    }

    /// From now on it is another log, as one on a server that was emptied.
    pub(super) fn begin_new_life(&self, epoch: &str) {
        self.life.set(Epoch(epoch.into())).expect("it has begun no new life yet");
    }
}

impl EventLog for FaultyLog {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        let left = self.appends_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_err() {
            let full = BackendError::DiskFull { detail: "/secret/path: no space".into() };
            return ready(Err(full.into())).boxed();
        }
        self.inner.append(batch)
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        match self.reached() {
            Ok(()) => self.inner.read(tenant, after, limit),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn append_to(
        &self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.inner.append_to(stream, batch)
    }

    fn read_stream(
        &self,
        tenant: &TenantId,
        stream: &StreamName,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<StreamPage, StreamError>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        match self.reached() {
            Ok(()) => self.inner.read_stream(tenant, stream, after, limit),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        self.inner.declare_scopes(owner, declarations)
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.inner.scopes()
    }

    fn bounds(&self) -> Bounds {
        let happens = self.at_bounds.lock().expect("test").take();
        if let Some(Meanwhile(happens)) = happens {
            happens();
        }
        self.inner.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.life.get().cloned().unwrap_or_else(|| self.inner.epoch())
    }

    fn tail(&self) -> &Tail {
        self.inner.tail()
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.inner.tenants()
    }

    fn trim(&self, retention: Retention) -> BoxFuture<'_, Result<u64, StreamError>> {
        self.inner.trim(retention)
    }
}
