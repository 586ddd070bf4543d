//! Claims about every step of applier and publisher: whoever ends there, or fails there, is followed by the same end state
//! as if nothing had happened. The steps are counted in an undisturbed run, and each of them is tried.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::backends::memory::{MemoryConsumer, MemoryControlStore, MemoryFeed};
use millrace::backends::sqlite::{SqliteControlOptions, SqliteControlStore, Synchronous};
use millrace::clock::SystemClock;
use millrace::control::{
    Applier, ApplierOptions, ApplierSeams, Believing, ControlEvent, ControlFeedError, ControlSink,
    ControlSource, ControlStore, ControlVersion, NoBootstrap, Origin, PublisherOptions, Received, Result,
};
use millrace::error::{Classify as _, Retry};
use millrace_tests::control::steps::{Cut, SteppedSink, SteppedSource, SteppedStore, Steps};
use millrace_tests::control::{at, deployed, id, of_a_new_kind, removed, state, trust_changed, unsigned};
use millrace_tests::control_events::{key, trust, trusted};
use tokio_util::sync::CancellationToken;

/// Longer than any run should take.
const LONG: Duration = Duration::from_secs(60);

/// What a run left behind, in words that can be compared.
type End = Vec<String>;

fn applier_options(events_max: usize) -> ApplierOptions {
    ApplierOptions {
        events_max,
        poll_wait: Duration::from_secs(1),
        poll_gap: Duration::from_millis(1),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        ..ApplierOptions::default()
    }
}

fn publisher_options() -> PublisherOptions {
    PublisherOptions {
        wait_min: Duration::from_millis(1),
        wait_max: Duration::from_millis(2),
        // Not what a killed one has claimed: in memory nobody sees that it is gone.
        lease: Duration::from_millis(100),
        ..PublisherOptions::default()
    }
}

/// A host's folder, or what stands for it.
#[derive(Clone, Debug)]
enum Disk {
    Files(PathBuf),
    Memory(MemoryControlStore),
}

impl Disk {
    fn open(&self) -> Arc<dyn ControlStore> {
        match self {
            Self::Files(dir) => {
                let options = SqliteControlOptions {
                    // A process that ends takes nothing along that the system has.
                    synchronous: Synchronous::Off,
                    ..SqliteControlOptions::new(dir.join("host"), Arc::new(SystemClock))
                };
                Arc::new(SqliteControlStore::open(&options).unwrap())
            }
            Self::Memory(store) => Arc::new(store.clone()),
        }
    }
}

/// What is killed, started again and compared.
trait Scene: Send + Sync {
    /// What outlives a process, for one more run.
    fn begin(&mut self, dir: &Path);

    /// A process that works for as long as nobody drops it.
    fn process(&self, steps: &Arc<Steps>) -> BoxFuture<'static, ()>;

    /// What there is in the end; none while something is to be done.
    fn end(&self) -> BoxFuture<'_, Option<End>>;
}

async fn until_the_end(scene: &dyn Scene) -> End {
    let begin = Instant::now();
    loop {
        if let Some(end) = scene.end().await {
            return end;
        }
        assert!(begin.elapsed() < LONG, "it does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs processes one after the other, each until it is killed, and the last until all is done.
async fn run(scene: &mut dyn Scene, runs: &[Arc<Steps>]) -> End {
    let dir = tempfile::tempdir().unwrap();
    scene.begin(dir.path());
    for steps in runs {
        let process = scene.process(steps);
        tokio::select! {
            () = process => unreachable!("it works until it is dropped"),
            () = steps.killed() => {}
            end = until_the_end(scene) => return end,
        }
    }
    panic!("the last process is killed by nobody");
}

/// Every step is reached, as long as there is something to do, so every step is tried.
async fn every_step_is_survived(scene: &mut dyn Scene) {
    let counting = Steps::all();
    let undisturbed = run(scene, std::slice::from_ref(&counting)).await;
    let steps = counting.passed();
    assert!(steps.len() > 10, "{steps:?}");
    for (at, name) in steps.iter().enumerate() {
        let killed = run(scene, &[Steps::cut(at, Cut::Kill), Steps::all()]).await;
        assert_eq!(killed, undisturbed, "killed at step {at}, {name}");
        let failed = run(scene, &[Steps::cut(at, Cut::Fail)]).await;
        assert_eq!(failed, undisturbed, "failed at step {at}, {name}");
    }
}

async fn store_end(store: &dyn ControlStore) -> End {
    let mut end: End = state(store).await.iter().map(|row| format!("{row:?}")).collect();
    let mut aside: Vec<String> = store
        .quarantined(100)
        .await
        .unwrap()
        .into_iter()
        .map(|aside| format!("aside {} {} {}", aside.version.0, aside.name, aside.code))
        .collect();
    aside.sort();
    end.extend(aside);
    end.push(format!("cursor {}", store.cursor().await.unwrap().0));
    end
}

/// The applier on a feed with everything in it that an applier has to decide on.
struct Applying {
    with_acks: bool,
    events_max: usize,
    in_files: bool,
    disk: Disk,
    feed: MemoryFeed,
    consumer: MemoryConsumer,
    look: Option<Arc<dyn ControlStore>>,
}

impl Applying {
    fn new(with_acks: bool, events_max: usize, in_files: bool) -> Self {
        let feed = MemoryFeed::new();
        let consumer = feed.consumer("host");
        let disk = Disk::Memory(MemoryControlStore::new(Arc::new(SystemClock)));
        Self { with_acks, events_max, in_files, disk, feed, consumer, look: None }
    }
}

/// The list with another release key.
fn with_a_new_key() -> ControlEvent {
    let key = key(9).trusted_as(millrace::control::trust::KeyRole::Release, "new");
    let mut list = trusted();
    list.keys.push(key);
    trust_changed(6, 1, list)
}

fn feed_events() -> Vec<ControlEvent> {
    vec![
        deployed(1, "a", 1),
        deployed(3, "b", 1),
        unsigned(4, "c", 1, 4).sign(&key(8)).unwrap(),
        of_a_new_kind(5),
        with_a_new_key(),
        // Believed for the key that came just before.
        unsigned(7, "d", 1, 7).sign(&key(9)).unwrap(),
        deployed(8, "a", 2),
        removed(9, "b", 2),
        // Nobody's news: another has this revision.
        deployed(10, "a", 2),
    ]
}

impl Scene for Applying {
    fn begin(&mut self, dir: &Path) {
        self.feed = MemoryFeed::new();
        self.consumer = self.feed.consumer("host");
        self.disk = if self.in_files {
            Disk::Files(dir.to_owned())
        } else {
            Disk::Memory(MemoryControlStore::new(Arc::new(SystemClock)))
        };
        self.look = Some(self.disk.open());
        for (n, event) in feed_events().iter().enumerate() {
            if n == 1 {
                self.feed.append_broken("odd.json", "it is no JSON");
            }
            self.feed.append(event).now_or_never().unwrap().unwrap();
        }
    }

    fn process(&self, steps: &Arc<Steps>) -> BoxFuture<'static, ()> {
        let source: Arc<dyn ControlSource> =
            if self.with_acks { Arc::new(self.consumer.clone()) } else { Arc::new(self.feed.clone()) };
        let keys = Believing::new(trust());
        applying(source, self.disk.open(), keys, steps, self.events_max)
    }

    fn end(&self) -> BoxFuture<'_, Option<End>> {
        async move {
            let store = Arc::clone(self.look.as_ref().unwrap());
            if store.cursor().await.unwrap() < ControlVersion(10) {
                return None;
            }
            let mut end = store_end(&*store).await;
            if self.with_acks {
                let mut acks: Vec<_> = self.consumer.acknowledged();
                acks.sort();
                end.extend(acks.iter().map(|(id, version)| format!("acknowledged {id} {}", version.0)));
                if acks.len() < feed_events().len() {
                    return None;
                }
            }
            Some(end)
        }
        .boxed()
    }
}

fn applying(
    source: Arc<dyn ControlSource>,
    store: Arc<dyn ControlStore>,
    keys: Believing,
    steps: &Arc<Steps>,
    events_max: usize,
) -> BoxFuture<'static, ()> {
    let seams = ApplierSeams {
        source: Arc::new(SteppedSource { inner: source, steps: Arc::clone(steps) }),
        store: Arc::new(SteppedStore { inner: store, steps: Arc::clone(steps) }),
        keys,
        bootstrap: Arc::new(NoBootstrap),
        clock: Arc::new(SystemClock),
    };
    let applier = Applier::new(seams, applier_options(events_max));
    async move { applier.run(&CancellationToken::new()).await }.boxed()
}

#[tokio::test]
async fn m7_an_applier_survives_every_step_with_acknowledgements() {
    every_step_is_survived(&mut Applying::new(true, 64, true)).await;
}

#[tokio::test]
async fn m7_an_applier_survives_every_step_one_event_at_a_time() {
    every_step_is_survived(&mut Applying::new(true, 1, true)).await;
}

#[tokio::test]
async fn m7_an_applier_survives_every_step_without_acknowledgements() {
    every_step_is_survived(&mut Applying::new(false, 1, true)).await;
}

#[tokio::test]
async fn m7_an_applier_in_memory_survives_every_step() {
    every_step_is_survived(&mut Applying::new(true, 3, false)).await;
}

/// What the undisturbed run comes to, so that all runs are not wrong in the same way.
#[tokio::test]
async fn the_end_of_an_undisturbed_run_is_what_the_feed_says() {
    let end = run(&mut Applying::new(true, 64, true), &[Steps::all()]).await;
    let row = |plugin: &str, revision, number| format!("{:?}", at(plugin, revision, number));
    let mut expected = vec![row("a", 2, 8), row("b", 2, 9), row("d", 1, 7)];
    expected.push(format!("{:?}", ("trust".to_owned(), 1_u64, id(6))));
    expected.push(format!("aside 10 {} revision_conflict", id(10)));
    expected.push("aside 2 odd.json control_event_unreadable".into());
    expected.push(format!("aside 4 {} control_event_untrusted", id(4)));
    expected.push("cursor 10".into());
    for (number, version) in [(1, 1), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10)] {
        expected.push(format!("acknowledged {} {version}", id(number)));
    }
    assert_eq!(end, expected);
}

/// A client that proposes, the publisher and the applier, all of the origin: from the proposal to the state.
struct Telling {
    in_files: bool,
    disk: Disk,
    feed: Feed,
    /// Opened once, since whoever opens a store ends the claims of who had it before.
    look: Option<Arc<dyn ControlStore>>,
}

impl Telling {
    fn new(in_files: bool) -> Self {
        let disk = Disk::Memory(MemoryControlStore::new(Arc::new(SystemClock)));
        Self { in_files, disk, feed: Feed::Memory(MemoryFeed::new()), look: None }
    }
}

#[derive(Clone, Debug)]
enum Feed {
    Files(PathBuf),
    Memory(MemoryFeed),
}

impl Feed {
    fn open(&self) -> (Arc<dyn ControlSource>, Arc<dyn ControlSink>) {
        match self {
            Self::Files(dir) => {
                let poll = Duration::from_millis(2);
                let options = FileFeedOptions { poll, ..FileFeedOptions::new(dir.join("feed")) };
                let feed = Arc::new(FileFeed::open(options).unwrap());
                (feed.clone(), feed)
            }
            Self::Memory(feed) => (Arc::new(feed.clone()), Arc::new(feed.clone())),
        }
    }
}

fn proposals() -> Vec<ControlEvent> {
    vec![
        deployed(1, "a", 1),
        deployed(2, "a", 2),
        deployed(3, "b", 1),
        removed(4, "a", 3),
        deployed(5, "c", 1),
    ]
}

/// What the feed never takes.
fn refused() -> ControlEvent {
    deployed(90, "x", 1)
}

#[derive(Debug)]
struct Refusing(Arc<dyn ControlSink>);

impl ControlSink for Refusing {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn append<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<ControlVersion>> {
        if event.id() == refused().id() {
            let detail = "the feed does not like it".into();
            return std::future::ready(Err(ControlFeedError::InvalidEvent { detail })).boxed();
        }
        self.0.append(event)
    }

    fn trim(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.0.trim(through)
    }
}

impl Scene for Telling {
    fn begin(&mut self, dir: &Path) {
        if self.in_files {
            (self.disk, self.feed) = (Disk::Files(dir.to_owned()), Feed::Files(dir.to_owned()));
        } else {
            self.disk = Disk::Memory(MemoryControlStore::new(Arc::new(SystemClock)));
            self.feed = Feed::Memory(MemoryFeed::new());
        }
        self.look = Some(self.disk.open());
    }

    fn process(&self, steps: &Arc<Steps>) -> BoxFuture<'static, ()> {
        let (source, sink) = self.feed.open();
        let store = self.disk.open();
        let keys = Believing::new(trust());
        let stepped = Arc::new(SteppedStore { inner: store.clone(), steps: Arc::clone(steps) });
        let origin = Origin::new(stepped, keys.clone(), Arc::new(SystemClock));
        let stepped = Arc::new(SteppedSink { inner: Arc::new(Refusing(sink)), steps: Arc::clone(steps) });
        let publisher = origin.publisher(stepped, publisher_options());
        let applier = applying(source, store, keys, steps, 64);
        let client = async move {
            for event in std::iter::once(refused()).chain(proposals()) {
                // It has no answer: it asks again.
                while let Err(error) = origin.propose(&event).await {
                    assert_ne!(error.retry(), Retry::Never, "{error}");
                }
            }
            std::future::pending::<()>().await;
        };
        let publisher = async move { publisher.run(&CancellationToken::new()).await };
        join_all([client.boxed(), publisher.boxed(), applier]).map(drop).boxed()
    }

    fn end(&self) -> BoxFuture<'_, Option<End>> {
        async move {
            let store = Arc::clone(self.look.as_ref().unwrap());
            let mut end = Vec::new();
            for event in proposals() {
                store.told(event.id()).await.unwrap().and_then(|told| told.version)?;
            }
            let letters = store.letters(9).await.unwrap();
            if letters.len() != 1 || store.outbox().await.unwrap().waiting != 1 {
                return None;
            }
            let (source, _) = self.feed.open();
            let polled = source.poll(ControlVersion(0), 100, Duration::ZERO).await.unwrap();
            if store.cursor().await.unwrap() < polled.newest {
                return None;
            }
            end.push(format!("dead {}", letters[0].event));
            end.extend(state(&*store).await.iter().map(|row| format!("{row:?}")));
            end.extend(
                store
                    .proposed()
                    .await
                    .unwrap()
                    .iter()
                    .map(|row| format!("told {} {}", row.entity, row.revision)),
            );
            end.push(format!("aside {}", store.quarantined(9).await.unwrap().len()));
            // Each once, those of one plugin in their order. Others may lie in between.
            let mut feed: Vec<(String, u64, String)> = Vec::new();
            for entry in polled.events {
                let Received::Event { version, event } = entry else { panic!("{entry:?}") };
                feed.push((event.entity(), version.0, event.id().to_string()));
            }
            feed.sort();
            end.extend(feed.into_iter().map(|(entity, _, id)| format!("feed {entity} {id}")));
            Some(end)
        }
        .boxed()
    }
}

/// C37, from end to end.
#[tokio::test]
async fn c37_m8_an_origin_survives_every_step_on_files() {
    every_step_is_survived(&mut Telling::new(true)).await;
}

#[tokio::test]
async fn c37_m8_an_origin_survives_every_step_in_memory() {
    every_step_is_survived(&mut Telling::new(false)).await;
}
