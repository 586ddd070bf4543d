//! A burst of events on its way from the outbox of an origin to the last commit of the hosts.
//!
//! Origin and hosts are the parts that a host has, on durable stores, with the options that a host gives them. There are two
//! hosts: the origin, which reads its own feed as every host does, and another one. Nothing is made of what is desired.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::backends::sqlite::{SqliteControlOptions, SqliteControlStore};
use millrace::clock::{Clock as _, SystemClock};
use millrace::control::{
    Acker, Applier, ApplierOptions, ApplierSeams, Believing, ControlEvent, ControlSink, ControlSource,
    ControlStore, ControlVersion, Kind, NoBootstrap, Origin, Polled, PublisherOptions, Received,
    UnsignedEvent,
};
use millrace_tests::bench::{Better, Figure, ROUNDS, Suite};
use millrace_tests::control_events::{about, release_key, running, spec, trust};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::WAIT_MAX;
use super::places::{Place, new_fleet};
use crate::runtime;

/// As many as a reference system once took 28 minutes for.
const EVENTS: u64 = 1_470;
const PLUGINS: u64 = 49;
const FLOOR_SECONDS: f64 = 5.0;
const PLACES: [&str; 5] = ["file", "sqlite", "redis", "nats", "memory"];

/// Seconds that the parts of the way took.
#[derive(Debug, Default)]
struct Times {
    /// From the first proposal to the last one, each durable before the next.
    proposing: Vec<f64>,
    /// From a full outbox to the last commit of both hosts.
    carrying: Vec<f64>,
    /// From the start of a host that knows nothing to its last commit.
    catching_up: Vec<f64>,
}

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let (many, one) = (Burst::new(PLUGINS)?, Burst::new(1)?);
    let mut proposing = Vec::new();
    for name in PLACES {
        let place = Place::open(name);
        let (mut of_many, mut of_one) = (Times::default(), Times::default());
        for round in 0..ROUNDS {
            for (burst, times) in [(&many, &mut of_many), (&one, &mut of_one)] {
                runtime()?.block_on(Box::pin(carried(&place, burst, times)))?;
            }
            let last = |seconds: &[f64]| seconds.last().copied().unwrap_or_default();
            eprintln!(
                "  {EVENTS} events over {name}, round {}: {:.2} s of {PLUGINS} plugins, {:.2} s of one, \
                 caught up with in {:.2} s",
                round + 1,
                last(&of_many.carrying),
                last(&of_one.carrying),
                last(&of_many.catching_up)
            );
        }
        record(suite, name, &of_many, &of_one)?;
        proposing.extend([of_many.proposing, of_one.proposing].concat());
    }
    let name = "changes that an origin takes one after the other, each durable";
    suite.record(rate(name), &rates(&proposing))?;
    Ok(())
}

fn record(suite: &mut Suite, place: &str, many: &Times, one: &Times) -> Result<()> {
    let name = format!(
        "a burst of 1,470 events of {PLUGINS} plugins over {place}, from the outbox to the last commit of two hosts"
    );
    // A feed in memory is none that hosts have.
    let floor = (place != "memory").then_some(FLOOR_SECONDS);
    suite.record(Figure { name: &name, unit: "s", floor, better: Better::Lower }, &many.carrying)?;
    for (name, seconds) in [
        (format!("the same over {place}"), &many.carrying),
        (format!("the same over {place}, all of one plugin"), &one.carrying),
        (format!("an applier that catches up with it over {place}"), &many.catching_up),
    ] {
        suite.record(rate(&name), &rates(seconds))?;
    }
    Ok(())
}

fn rate(name: &str) -> Figure<'_> {
    Figure { name, unit: "events/s", floor: None, better: Better::Higher }
}

fn rates(seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|seconds| EVENTS as f64 / seconds).collect()
}

/// Signed events, and the last revision of each entity that they are about.
struct Burst {
    events: Vec<ControlEvent>,
    newest: BTreeMap<String, u64>,
}

impl Burst {
    /// So many plugins have their turns, one revision after the other.
    fn new(plugins: u64) -> Result<Self> {
        let revisions = EVENTS / plugins;
        let turns = (1..=revisions).flat_map(|revision| (0..plugins).map(move |plugin| (plugin, revision)));
        let events = turns.map(|(plugin, revision)| event(&format!("plugin-{plugin}"), revision));
        let events = events.collect::<Result<Vec<_>>>()?;
        ensure!(events.len() as u64 == EVENTS, "the plugins share the events evenly");
        let newest = (0..plugins).map(|plugin| (format!("plugin:plugin-{plugin}"), revisions)).collect();
        Ok(Self { events, newest })
    }

    /// What a fleet begins with.
    fn first() -> Result<Self> {
        Ok(Self { events: vec![event("first", 1)?], newest: BTreeMap::from([("plugin:first".into(), 1)]) })
    }
}

fn event(plugin: &str, revision: u64) -> Result<ControlEvent> {
    let component = format!("{plugin} {revision}");
    let desired = running(spec(plugin, "1.0.0", component.as_bytes()));
    let event = about(plugin, Kind::Deployed, desired, revision);
    Ok(UnsignedEvent { issued_at: SystemClock.now().0, ..event }.sign(&release_key())?)
}

/// One round in a fleet of its own.
async fn carried(place: &Place, burst: &Burst, times: &mut Times) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (feeds, fleet) = (place.feeds()?, new_fleet());
    let opened_with = |host: &str| place.settings(&fleet, host, dir.path());
    let store = open_store(&dir.path().join("origin"))?;
    let origin = Origin::new(Arc::clone(&store), Believing::new(trust()), Arc::new(SystemClock));
    let sink = feeds.sink(place.name, &opened_with("origin")).await?;
    let source = feeds.source(place.name, &opened_with("origin")).await?;
    let mut hosts = vec![Host::start(Arc::clone(&store), source)];
    let source = feeds.source(place.name, &opened_with("other")).await?;
    hosts.push(Host::start(open_store(&dir.path().join("other"))?, source));

    // The feed is there, and everybody is connected, before it counts.
    let first = Burst::first()?;
    origin.propose(&first.events[0]).await?;
    let publishing = publish(&origin, &sink);
    for host in &hosts {
        host.reaches(&first).await?;
    }
    emptied(&*store).await?;
    publishing.end().await?;

    let begin = Instant::now();
    for event in &burst.events {
        origin.propose(event).await?;
    }
    times.proposing.push(begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    let publishing = publish(&origin, &sink);
    for host in &hosts {
        host.reaches(burst).await?;
    }
    times.carrying.push(begin.elapsed().as_secs_f64());
    emptied(&*store).await?;
    publishing.end().await?;
    for host in hosts {
        host.check(burst).await?;
        host.work.end().await?;
    }

    let source = feeds.source(place.name, &opened_with("late")).await?;
    let late = open_store(&dir.path().join("late"))?;
    let begin = Instant::now();
    let late = Host::start(late, source);
    late.reaches(burst).await?;
    times.catching_up.push(begin.elapsed().as_secs_f64());
    late.check(burst).await?;
    late.work.end().await
}

fn open_store(dir: &Path) -> Result<Arc<dyn ControlStore>> {
    let options = SqliteControlOptions::new(dir, Arc::new(SystemClock));
    Ok(Arc::new(SqliteControlStore::open(&options)?))
}

/// A part that runs until it is told to end.
struct Work {
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Work {
    fn begin<F>(work: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(work(stop.clone()));
        Self { stop, running }
    }

    async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended?;
        }
        Ok(())
    }
}

fn publish(origin: &Origin, sink: &Arc<dyn ControlSink>) -> Work {
    let publisher = origin.publisher(Arc::clone(sink), PublisherOptions::default());
    Work::begin(|stop| async move { publisher.run(&stop).await })
}

/// Waits until all that was proposed is known to be in the feed.
async fn emptied(store: &dyn ControlStore) -> Result<()> {
    let begin = Instant::now();
    loop {
        let status = store.outbox().await?;
        if status.waiting == 0 {
            return Ok(());
        }
        ensure!(begin.elapsed() < WAIT_MAX, "the outbox is not emptied: {status:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Carries a feed into a store.
struct Host {
    store: Arc<dyn ControlStore>,
    applier: Arc<Applier>,
    source: Arc<Noting>,
    work: Work,
}

impl Host {
    fn start(store: Arc<dyn ControlStore>, source: Arc<dyn ControlSource>) -> Self {
        let source = Arc::new(Noting { source, noted: Mutex::default() });
        let seams = ApplierSeams {
            source: Arc::clone(&source) as _,
            store: Arc::clone(&store),
            keys: Believing::new(trust()),
            bootstrap: Arc::new(NoBootstrap),
            clock: Arc::new(SystemClock),
        };
        let applier = Arc::new(Applier::new(seams, ApplierOptions::default()));
        let running = Arc::clone(&applier);
        let work = Work::begin(|stop| async move { running.run(&stop).await });
        Self { store, applier, source, work }
    }

    /// Waits until the last event of each entity is committed.
    async fn reaches(&self, burst: &Burst) -> Result<()> {
        let mut known = self.applier.follow();
        let reached = known.wait_for(|known| {
            let stands = |(entity, newest): (&String, &u64)| {
                known.entities.get(entity).is_some_and(|known| known.revision == *newest)
            };
            burst.newest.iter().all(stands)
        });
        tokio::time::timeout(WAIT_MAX, reached).await.context("the last event is not committed")??;
        Ok(())
    }

    /// Every event has come, those of each plugin in their order, and was believed.
    async fn check(&self, burst: &Burst) -> Result<()> {
        let aside = self.store.quarantined(1).await?;
        ensure!(aside.is_empty(), "an event was set aside: {aside:?}");
        let noted = self.source.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut versions, mut reached) = (HashSet::new(), BTreeMap::new());
        for (version, entity, revision) in noted.iter() {
            // What was not acknowledged in time comes again.
            if versions.insert(version) {
                let before = reached.insert(entity.as_str(), *revision).unwrap_or_default();
                ensure!(
                    *revision == before + 1,
                    "revision {revision} of {entity} came after revision {before}"
                );
            }
        }
        for (entity, newest) in &burst.newest {
            ensure!(reached.get(entity.as_str()) == Some(newest), "not all of {entity} has come");
        }
        Ok(())
    }
}

/// Notes what a source answers: control version, entity and revision, as they come.
#[derive(Debug)]
struct Noting {
    source: Arc<dyn ControlSource>,
    noted: Mutex<Vec<(ControlVersion, String, u64)>>,
}

impl ControlSource for Noting {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn poll(
        &self,
        after: ControlVersion,
        limit: usize,
        wait: Duration,
    ) -> BoxFuture<'_, millrace::control::Result<Polled>> {
        async move {
            let polled = self.source.poll(after, limit, wait).await?;
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            for received in &polled.events {
                if let Received::Event { version, event } = received {
                    noted.push((*version, event.entity(), event.unsigned().revision));
                }
            }
            drop(noted);
            Ok(polled)
        }
        .boxed()
    }

    fn acker(&self) -> Option<&dyn Acker> {
        self.source.acker()
    }
}
