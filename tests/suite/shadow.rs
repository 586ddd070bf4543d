//! Claims about candidates in the shadow: a bad one is refused with nothing committed, a good one is taken,
//! and the running version goes on as if nobody were there.

mod components;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::clock::SystemClock;
use millrace::event::{Event, EventBatch, Position, TenantId};
use millrace::processors::{
    Engine, Expect, GuestPool, ProcessorFactory, Runner, ShadowOutcome, ShadowSettings,
};
use millrace::streams::EventLog;
use millrace::tables::TableStore;
use millrace_tests::dump::dump;
use millrace_tests::scene::skipping;
use millrace_tests::scripted::{Flaw, FlawKind, Scripted, Watch, table};
use millrace_tests::until;
use tokio_util::sync::CancellationToken;

struct Scene {
    store: SqliteStore,
    engine: Engine,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a new store opens");
        store.declare("scripted", &[table()]).await.expect("a good table");
        let engine = Engine {
            shared_log: None,
            log: Arc::new(store.clone()),
            checkpoints: Arc::new(store.clone()),
            pool: GuestPool::new(4).expect("threads start"),
            clock: Arc::new(SystemClock),
            runtime: tokio::runtime::Handle::current(),
        };
        Self { store, engine, dir }
    }

    /// Keys go on after an event that was rejected: held, all of them would stand still before a busy machine lets a
    /// candidate begin, and it would have nothing to handle.
    fn start(&self) -> (Runner, Arc<Watch>) {
        let scripted = Scripted::new("scripted", 1);
        let watch = Arc::clone(&scripted.watch);
        (Runner::start(&self.engine, Arc::new(scripted), skipping()), watch)
    }

    /// Appends `count` events on a few keys: most are added, some reject, emit and write keyed state.
    async fn publish(&self, count: u64) -> Position {
        let mut batch = EventBatch::new(TenantId::new("a").expect("a name"));
        let base = self.store.bounds().newest.0;
        for number in base + 1..=base + count {
            let agg_id = format!("k{}", number % 7);
            let event_type = match number % 10 {
                3 => "reject",
                5 => "emit",
                7 => "remember",
                _ => "add",
            };
            let event = Event {
                aggregate: "thing",
                agg_id: &agg_id,
                event_type,
                version: number,
                payload: b"null",
                ..Event::default()
            };
            batch.push(&event).expect("a good event");
        }
        let appended = self.store.append(batch).await.expect("the append succeeds");
        appended.last().expect("events were appended").position
    }

    /// Everything is handled, also what was emitted meanwhile.
    async fn settle(&self, runner: &Runner) {
        until("the processor is done", || runner.status().done_through >= self.store.bounds().newest).await;
    }

    /// Ends all and answers what the store holds.
    async fn end(self, runner: &Runner) -> String {
        self.settle(runner).await;
        assert!(runner.stop(Duration::from_secs(20)).await, "it stops in time");
        self.store.close().await;
        dump(Path::new(self.dir.path())).expect("the store can be read")
    }
}

fn candidate(version: u64, flaw: Option<Flaw>) -> Arc<dyn ProcessorFactory> {
    // Rows name the version that wrote them; these are to be the same, so that only flaws differ.
    let mut scripted = Scripted::new("scripted", 1);
    scripted.digest = format!("candidate-{version}");
    scripted.flaw = flaw;
    Arc::new(scripted)
}

/// A busy machine may make a good version some times as slow; the slow one is slower by far.
fn quick() -> ShadowSettings {
    let (time, time_max) = (Duration::from_millis(20), Duration::from_secs(60));
    ShadowSettings { events: 40, time, time_max, time_ratio_max: 30, ..ShadowSettings::default() }
}

fn strict() -> ShadowSettings {
    ShadowSettings { expect: Expect::IdenticalRows, ..quick() }
}

async fn shadow(
    runner: &Runner,
    candidate: &Arc<dyn ProcessorFactory>,
    settings: &ShadowSettings,
) -> ShadowOutcome {
    runner.shadow(candidate, settings, &CancellationToken::new()).await
}

fn code(outcome: &ShadowOutcome) -> &'static str {
    outcome.refusal.as_ref().map_or("taken", |refusal| refusal.fault.code())
}

const FLAWS: [(FlawKind, &str); 11] = [
    (FlawKind::Traps, "shadow_trap"),
    (FlawKind::HangsUntilCut, "shadow_timeout"),
    (FlawKind::BreaksALimit, "shadow_limit"),
    (FlawKind::Slow, "shadow_slow"),
    (FlawKind::Leaks, "shadow_memory"),
    (FlawKind::WrongRows, "shadow_rows_differ"),
    (FlawKind::Rejects, "shadow_errors"),
    (FlawKind::Stops, "shadow_fatal"),
    (FlawKind::TrapsInSnapshot, "shadow_snapshot"),
    (FlawKind::ImpureSnapshot, "shadow_impure"),
    (FlawKind::ForgetsItsFormat, "shadow_snapshot"),
];

/// How many versions are tried: few here, as many as `MILLRACE_SHADOW_VERSIONS` says elsewhere.
pub(super) fn versions(few: u32) -> u32 {
    let asked = std::env::var("MILLRACE_SHADOW_VERSIONS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(few)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_version_is_refused_with_its_reason_and_nothing_of_it_is_committed() {
    let undisturbed = Scene::new().await;
    let (runner, _) = undisturbed.start();
    undisturbed.publish(150).await;
    let expected = undisturbed.end(&runner).await;

    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(150).await;
    scene.settle(&runner).await;
    for number in 0..versions(44) {
        let (kind, expected) = FLAWS[number as usize % FLAWS.len()];
        // Slowness and leaks show over a run; the others at any of its events.
        let after = if matches!(kind, FlawKind::Slow | FlawKind::Leaks) { 1 } else { 1 + number % 30 };
        let bad = candidate(u64::from(number), Some(Flaw { kind, after }));
        let outcome = shadow(&runner, &bad, &strict()).await;
        assert_eq!(code(&outcome), expected, "{kind:?} after {after}: {outcome:?}");
    }
    assert_eq!(scene.end(&runner).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_good_version_is_taken_and_the_store_is_that_of_a_run_without_any() {
    let undisturbed = Scene::new().await;
    let (runner, _) = undisturbed.start();
    undisturbed.publish(150).await;
    let expected = undisturbed.end(&runner).await;

    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(150).await;
    scene.settle(&runner).await;
    for number in 0..versions(100) {
        let good = candidate(u64::from(number), None);
        let outcome = shadow(&runner, &good, &strict()).await;
        assert_eq!(code(&outcome), "taken", "{outcome:?}");
        assert_eq!(outcome.report.events, 40);
        assert_eq!(outcome.report.errors_new, 0);
        runner.swap(good).await.expect("it takes over");
    }
    assert_eq!(scene.end(&runner).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_traffic_is_handled_by_both_and_compared() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(30).await;
    scene.settle(&runner).await;
    let outcome = shadow_under_traffic(&scene, &runner, &candidate(2, None)).await;
    let report = &outcome.report;
    assert_eq!(code(&outcome), "taken", "{outcome:?}");
    assert!(report.events > report.replayed_events && report.stretches > 0, "{report:?}");
    assert!(report.rows.same > 0 && report.emitted.same > 0 && report.state_entries.same > 0, "{report:?}");
    assert!(!report.rows.any() && !report.emitted.any() && !report.state_entries.any(), "{report:?}");
    assert_eq!((report.errors_new, report.errors_old), (0, 0));
    assert!(report.errors_both > 0, "both reject the same events: {report:?}");
}

/// How long a machine may be too busy to let a candidate have live traffic in time.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(60);

/// The first run that had live traffic. Where a machine is too busy for that, the log's newest events are handled
/// alone, and that is no such run.
async fn shadow_under_traffic(
    scene: &Scene,
    runner: &Runner,
    candidate: &Arc<dyn ProcessorFactory>,
) -> ShadowOutcome {
    let begun = Instant::now();
    loop {
        let outcome = shadow_while_events_come(scene, runner, candidate).await;
        if outcome.refusal.is_some() || outcome.report.events > outcome.report.replayed_events {
            return outcome;
        }
        assert!(begun.elapsed() < BUSY_MAX, "no run had live traffic: {outcome:?}");
    }
}

/// Events come as long as the run goes on.
async fn shadow_while_events_come(
    scene: &Scene,
    runner: &Runner,
    candidate: &Arc<dyn ProcessorFactory>,
) -> ShadowOutcome {
    let settings = ShadowSettings { events: 40, time: Duration::from_millis(400), ..quick() };
    let over = AtomicBool::new(false);
    let run = async {
        let outcome = shadow(runner, candidate, &settings).await;
        over.store(true, Ordering::SeqCst);
        outcome
    };
    let traffic = async {
        while !over.load(Ordering::SeqCst) {
            scene.publish(20).await;
            scene.settle(runner).await;
        }
    };
    tokio::join!(run, traffic).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_rows_under_live_traffic_are_told_with_examples() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(300).await;
    scene.settle(&runner).await;
    let bad = candidate(2, Some(Flaw { kind: FlawKind::WrongRows, after: 1 }));
    let outcome = shadow_under_traffic(&scene, &runner, &bad).await;
    assert_eq!(code(&outcome), "taken", "differences refuse nobody who was not told to: {outcome:?}");
    let report = outcome.report;
    assert!(report.rows.different > 0 && report.rows.only_new == 0, "{report:?}");
    assert!(!report.examples.is_empty() && report.examples.len() <= 10);
    let example = &report.examples[0];
    assert_eq!((example.table.as_str(), example.column.as_str()), ("counts", "count"));
    let number =
        |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<i64>().ok()).expect("a count");
    assert_eq!(number(&example.new), number(&example.old) + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_reads_keyed_state_as_it_was_however_far_behind_it_is() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(30).await;
    scene.settle(&runner).await;
    let begun = Instant::now();
    let outcome = loop {
        let outcome = shadow_far_behind(&scene, &runner).await;
        // Again where the machine was too busy to let it have what came.
        if outcome.refusal.is_some() || outcome.report.replayed_events == 0 {
            break outcome;
        }
        assert!(begun.elapsed() < BUSY_MAX, "no run had live traffic: {outcome:?}");
    };
    let report = &outcome.report;
    assert_eq!((code(&outcome), report.replayed_events), ("taken", 0), "{outcome:?}");
    assert!(report.state_entries.same > 0 && !report.state_entries.any(), "{report:?}");
}

/// The candidate stands still in its first call until the running version is ahead of it.
async fn shadow_far_behind(scene: &Scene, runner: &Runner) -> ShadowOutcome {
    let late = Scripted::new("scripted", 1);
    let watch = Arc::clone(&late.watch);
    *watch.held.lock().expect("test") = Some(TenantId::new("a").expect("a name"));
    let late: Arc<dyn ProcessorFactory> = Arc::new(late);
    // To stand still is not to be slow.
    let time_ratio_max = u32::MAX;
    let settings = ShadowSettings { events: 1, time: Duration::from_secs(1), time_ratio_max, ..strict() };
    let run = shadow(runner, &late, &settings);
    let traffic = async {
        // One of ten events appends to an entry. The running version has written it before the candidate may read.
        while watch.instances.load(Ordering::SeqCst) == 0 {
            scene.publish(10).await;
            scene.settle(runner).await;
        }
        scene.publish(10).await;
        scene.settle(runner).await;
        *watch.held.lock().expect("test") = None;
    };
    let (outcome, ()) = tokio::join!(run, traffic);
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_running_version_does_not_wait_for_a_candidate_that_hangs() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    scene.publish(10).await;
    scene.settle(&runner).await;
    let mut held = Scripted::new("scripted", 2);
    held.manifest.state_content_type = None;
    let watch = Arc::clone(&held.watch);
    *watch.held.lock().expect("test") = Some(TenantId::new("a").expect("a name"));
    let held: Arc<dyn ProcessorFactory> = Arc::new(held);
    let cancel = CancellationToken::new();
    let settings = ShadowSettings { time: Duration::from_secs(20), ..quick() };
    let run = runner.shadow(&held, &settings, &cancel);
    let traffic = async {
        for _ in 0..60 {
            scene.publish(5).await;
            scene.settle(&runner).await;
        }
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(run, traffic);
    assert_eq!(code(&outcome), "shadow_stopped");
    *watch.held.lock().expect("test") = None;
    assert_eq!(runner.status().failures, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_log_holds_nobody_up() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start();
    let settings = ShadowSettings { time: Duration::from_secs(30), ..quick() };
    let outcome = shadow(&runner, &candidate(2, None), &settings).await;
    assert_eq!((code(&outcome), outcome.report.events), ("taken", 0));
    assert!(outcome.report.milliseconds < 10_000, "nobody waits for traffic that does not come");
    let figures: BTreeMap<&str, u64> =
        [("old", outcome.report.old.state_bytes), ("new", outcome.report.new.state_bytes)].into();
    assert_eq!(figures.values().sum::<u64>(), 0);
}
