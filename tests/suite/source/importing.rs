//! Foreign events into a log: what is appended, and what it costs when everything comes again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use millrace::backends::memory::MemoryLog;
use millrace::event::{Epoch, EventBatch, Micros, Page, Position, TenantId};
use millrace::processors::source::{
    BegunRebuilds, EventEnvelope, Importer, ImporterParts, Progress, Rebuilds, Reducer as _, SourceError,
    SourceFault, SourceLetters,
};
use millrace::streams::{
    AggregateScopes, Appended, Bounds, ChangeScopes, EventLog, PageLimit, Retention, StreamError, StreamName,
    StreamPage, Tail,
};

/// A log that counts what is asked of it.
#[derive(Debug, Default)]
struct Counted {
    inner: MemoryLog,
    appends: AtomicUsize,
}

impl EventLog for Counted {
    fn append(&self, batch: EventBatch) -> BoxFuture<'_, Result<Vec<Appended>, StreamError>> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        self.inner.append(batch)
    }

    fn read(
        &self,
        tenant: &TenantId,
        after: Position,
        limit: PageLimit,
    ) -> BoxFuture<'_, Result<Page, StreamError>> {
        self.inner.read(tenant, after, limit)
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
        self.inner.read_stream(tenant, stream, after, limit)
    }

    fn declare_scopes(
        &self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> BoxFuture<'_, Result<(), StreamError>> {
        self.inner.declare_scopes(owner, declarations)
    }

    fn scopes(&self) -> Arc<ChangeScopes> {
        self.inner.scopes()
    }

    fn bounds(&self) -> Bounds {
        self.inner.bounds()
    }

    fn epoch(&self) -> Epoch {
        self.inner.epoch()
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

/// Nobody is to be made anew here.
#[derive(Debug)]
struct Nobody;

impl Rebuilds for Nobody {
    fn rebuild<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        ready(Ok(())).boxed()
    }
}

fn tenant() -> TenantId {
    TenantId::new("default").unwrap()
}

fn importer(log: &Arc<Counted>, progress: &Progress) -> Importer {
    Importer::new(parts(log, progress))
}

fn parts(log: &Arc<Counted>, progress: &Progress) -> ImporterParts {
    ImporterParts {
        source: "grpc".into(),
        tenant: tenant(),
        log: log.clone(),
        letters: SourceLetters::default(),
        progress: progress.clone(),
        rebuilds: Vec::new(),
        rebuilder: Arc::new(Nobody),
        begun: BegunRebuilds::default(),
    }
}

/// Events with these cursors, received at a time.
fn events(cursors: impl IntoIterator<Item = usize>, time: i64) -> Vec<EventEnvelope> {
    let event = |cursor: usize| EventEnvelope {
        event: "created".into(),
        kind: "response".into(),
        data: format!("{{\"conversation\":\"c{cursor}\"}}").into_bytes(),
        cursor: Some(cursor.to_string()),
        time: Micros(time),
    };
    cursors.into_iter().map(event).collect()
}

/// The cursors of the log, in its order.
async fn cursors(log: &Counted) -> Vec<String> {
    let limit = PageLimit { events: 10_000, bytes: 64 << 20 };
    let page = log.read(&tenant(), Position::START, limit).await.unwrap();
    page.events.iter().map(|event| event.cursor.to_owned()).collect()
}

fn names(cursors: impl IntoIterator<Item = usize>) -> Vec<String> {
    cursors.into_iter().map(|cursor| cursor.to_string()).collect()
}

/// A second time is never received at the time of the first, so no two are the same to the log but for their ids.
#[tokio::test]
async fn what_comes_again_costs_a_look_and_not_an_append_for_each() {
    let (log, progress) = (Arc::new(Counted::default()), Progress::default());
    let mut importer = importer(&log, &progress);
    assert_eq!(importer.handle(&events(1..=1_000, 1)).await.events, 1_000);
    let before = log.appends.load(Ordering::SeqCst);
    assert_eq!(importer.handle(&events(1..=1_000, 2)).await.events, 1_000);
    let asked = log.appends.load(Ordering::SeqCst) - before;
    assert!(asked <= 3, "{asked} appends for a thousand that are there");
    assert_eq!(progress.now().repeated, 1_000);
    assert_eq!(cursors(&log).await, names(1..=1_000));
}

/// Known and new ones in any order: each once, the new ones in the order in which they came.
#[tokio::test]
async fn repeats_among_new_events_are_left_out() {
    let (log, progress) = (Arc::new(Counted::default()), Progress::default());
    let mut importer = importer(&log, &progress);
    // With other events between those of the source.
    for cursor in (10..=300).step_by(10) {
        importer.handle(&events([cursor], 1)).await;
        importer.handle(&events(10_000 + cursor..10_000 + cursor + 7, 1)).await;
    }
    let before = cursors(&log).await;
    let handled = importer.handle(&events((1..=300).rev(), 2)).await;
    assert_eq!((handled.events, handled.failure.is_none()), (300, true));
    let new = names((1..=300).rev().filter(|cursor| cursor % 10 != 0));
    assert_eq!(cursors(&log).await, [before, new].concat());
    assert_eq!(progress.now().repeated, 30);
}

/// Notes who is made anew. The second cannot be, until it is said.
#[derive(Debug, Default)]
struct Noting {
    asked: Mutex<Vec<String>>,
    is_ready: AtomicBool,
}

impl Rebuilds for Noting {
    fn rebuild<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        self.asked.lock().unwrap().push(plugin.to_owned());
        let can = plugin == "first" || self.is_ready.load(Ordering::SeqCst);
        let refused = || SourceError::stop(SourceFault::CursorLost, "it is paused");
        ready(can.then_some(()).ok_or_else(refused)).boxed()
    }
}

/// A source that stops is tried again later, with an importer of its own. A plugin that begins again each time never ends.
#[tokio::test]
async fn a_plugin_is_made_anew_once_while_another_cannot_be() {
    let (log, progress, noting) =
        (Arc::new(Counted::default()), Progress::default(), Arc::new(Noting::default()));
    let parts = ImporterParts {
        rebuilds: vec!["first".into(), "second".into()],
        rebuilder: noting.clone(),
        ..parts(&log, &progress)
    };
    for _ in 0..3 {
        Importer::new(parts.clone()).begin_anew().await.unwrap_err();
    }
    noting.is_ready.store(true, Ordering::SeqCst);
    let mut importer = Importer::new(parts);
    importer.begin_anew().await.unwrap();
    assert_eq!(*noting.asked.lock().unwrap(), ["first", "second", "second", "second", "second"]);
    noting.asked.lock().unwrap().clear();
    // Something comes: a cursor that is lost now is another one.
    assert_eq!(importer.handle(&events([1], 1)).await.events, 1);
    importer.begin_anew().await.unwrap();
    assert_eq!(*noting.asked.lock().unwrap(), ["first", "second"]);
}
