//! How a processor comes to stand at a position.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace::checkpoints::{CheckpointStore, EffectBatch, EffectKind, EffectRecord, SavedState};
use millrace::event::{EventBatch, Position};
use millrace::limits::REBUILD_INSTANCES_MAX;
use millrace::plugins::{Deployment, NewRebuild, Proof, RebuildStore, StartFrom};
use millrace::processors::{
    Ahead, Failure, FlushReason, LoadError, Manifest, Outcome, Processor, ProcessorFactory,
    ProcessorSettings, Renamed, Runner, TaskContext, Trap, TrapKind,
};
use millrace::tables::TableStore;
use millrace_tests::scene::{Scene, counts, scripted, tenant_id};
use millrace_tests::scripted::{Scripted, table};
use millrace_tests::until;

/// Where each task is committed.
async fn positions(scene: &Scene) -> Vec<Position> {
    let rows = scene.store.tasks(Some("scripted")).await.expect("tasks can be read");
    rows.iter().map(|row| row.position).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_tasks_of_all_tenants_stand_at_the_position_and_go_on() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { lanes: 3, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    scene.publish("a", &[("x", "add", "1"), ("y", "add", "1"), ("z", "add", "1")]).await;
    let barrier = scene.publish("b", &[("x", "add", "1")]).await;
    runner.hold_at(barrier).await.expect("nothing behind it was handled");
    assert_eq!(positions(&scene).await, [barrier; 6], "idle lanes, too");
    // What comes now lies behind it, also of a tenant that is new.
    scene.publish("a", &[("x", "add", "1")]).await;
    let last = scene.publish("c", &[("x", "add", "1")]).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1), ("y", 1), ("z", 1)]));
    assert_eq!(runner.hold_at(barrier).await, Ok(()), "it stands there still, and the new tenant with it");
    assert_eq!(watch.handled.lock().expect("test").len(), 4, "nothing behind it was handled");
    runner.release();
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 2), ("y", 1), ("z", 1)]));
    assert_eq!(scene.counts("c").await, counts(&[("x", 1)]));
    let Err(Ahead(position)) = runner.hold_at(barrier).await else { panic!("there is no way back") };
    assert!(position > barrier && position <= last);
    runner.hold_at(last).await.expect("it stands where it has come to");
    assert!(runner.stop(Duration::from_secs(20)).await, "it ends although it stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_ahead_is_come_to_in_the_midst_of_the_log() {
    let scene = Scene::new().await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    let barrier = Position(7);
    runner.hold_at(barrier).await.expect("nobody has an event");
    let events = vec![("x", "add", "1"); 1_000];
    for chunk in events.chunks(250) {
        scene.publish("a", chunk).await;
    }
    runner.hold_at(barrier).await.expect("it stops in the midst of a batch");
    assert_eq!(watch.handled.lock().expect("test").len(), 7, "exactly what lies before it");
    assert_eq!(positions(&scene).await, [barrier]);
    runner.hold_at(Position(999)).await.expect("it moves on to the next");
    assert_eq!(watch.handled.lock().expect("test").len(), 999);
    runner.release();
    scene.done(&runner, scene.last()).await;
    assert_eq!(scene.counts("a").await, counts(&[("x", 1_000)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_flushes_nothing_while_it_stands() {
    let scene = Scene::new().await;
    let mut with_ticks = scripted();
    with_ticks.manifest.flush_interval_ms = Some(10);
    let (runner, watch) = scene.start(with_ticks, ProcessorSettings::default());
    let mut another = Scripted::new("another", 1);
    another.manifest.flush_interval_ms = Some(10);
    another.manifest.tables[0].name = "others".into();
    scene.store.declare("another", &another.manifest.tables).await.expect("a good table");
    let (_another, other) = scene.start(another, ProcessorSettings::default());
    let barrier = scene.publish("a", &[("x", "add", "1")]).await;
    until("it is flushed by time", || watch.flushes.load(Ordering::SeqCst) > 0).await;
    runner.hold_at(barrier).await.expect("it comes to stand");
    let flushes = watch.flushes.load(Ordering::SeqCst);
    assert_eq!(runner.hold_at(barrier).await, Ok(()));
    // Somebody else's time goes on.
    let others = other.flushes.load(Ordering::SeqCst);
    until("the other is flushed often", || other.flushes.load(Ordering::SeqCst) > others + 10).await;
    assert_eq!(watch.flushes.load(Ordering::SeqCst), flushes, "no tick has come through");
    runner.release();
    until("it is flushed again", || watch.flushes.load(Ordering::SeqCst) > flushes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_begins_while_it_is_held_stands_with_the_others() {
    let scene = Scene::new().await;
    let (runner, _) = scene.start(Scripted::new("scripted", 1), ProcessorSettings::default());
    scene.publish("a", &[("x", "panic", "1"), ("x", "add", "1")]).await;
    let barrier = scene.publish("a", &[("x", "add", "1")]).await;
    // The first try ends in the host's own code: the run begins again from the last commit.
    runner.hold_at(barrier).await.expect("another run comes to stand");
    assert_eq!(positions(&scene).await, [barrier]);
    assert_eq!(scene.counts("a").await, counts(&[("x", 3)]));
}

/// As many instances at a time as it allows; then it is the host that has no more.
#[derive(Debug)]
struct Few {
    inner: Scripted,
    living: Arc<AtomicUsize>,
    max: Arc<AtomicUsize>,
}

struct OneOfFew {
    inner: Box<dyn Processor>,
    living: Arc<AtomicUsize>,
}

impl ProcessorFactory for Few {
    fn manifest(&self) -> &Manifest {
        self.inner.manifest()
    }

    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        let living = Arc::clone(&self.living);
        if living.fetch_add(1, Ordering::SeqCst) >= self.max.load(Ordering::SeqCst) {
            living.fetch_sub(1, Ordering::SeqCst);
            return Err(Trap::new(TrapKind::Host, "there are as many instances as there can be"));
        }
        Ok(Box::new(OneOfFew { inner: self.inner.instantiate(context)?, living }))
    }
}

impl Drop for OneOfFew {
    fn drop(&mut self) {
        self.living.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Processor for OneOfFew {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        self.inner.load(saved)
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        self.inner.handle(batch)
    }

    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        self.inner.flush(reason)
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        self.inner.snapshot()
    }

    fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes()
    }
}

/// Otherwise the tenants that it has would take the pool from the plugins that serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_has_few_instances_however_many_tenants_there_are() {
    let scene = Scene::new().await;
    let living = Arc::new(AtomicUsize::new(0));
    // One of each thread may be in the making when the last place is taken.
    let max = Arc::new(AtomicUsize::new(REBUILD_INSTANCES_MAX + 8));
    let few = Few { inner: scripted(), living: Arc::clone(&living), max };
    let deployment = Deployment {
        plugin: "scripted".into(),
        version: "1.0.0".into(),
        digest: "scripted-1".into(),
        paused: false,
        lanes: 1,
        from: StartFrom::Oldest,
        deployed_at: 0,
        deployed_by: "api:test".into(),
        ordering_key: None,
        proof: Proof::Loaded,
        rollback: false,
        settings: None,
    };
    let wanted =
        NewRebuild { deployment, tables: vec![table()], start: Position::START, accept_unemitted: false };
    let record = scene.store.begin(wanted).await.expect("it begins");
    let renamed = Renamed::new(Arc::new(few), record.number, Arc::default());
    let settings = ProcessorSettings {
        background: true,
        idle_max: Duration::from_secs(1),
        ..ProcessorSettings::default()
    };
    let mut barrier = Position::START;
    for tenant in 0..REBUILD_INSTANCES_MAX + 40 {
        barrier = scene.publish(&format!("t{tenant}"), &[("x", "add", "1")]).await;
    }
    let runner = Runner::start(&scene.engine, Arc::new(renamed), settings);
    scene.done(&runner, barrier).await;
    let held = tokio::time::timeout(Duration::from_secs(60), runner.hold_at(barrier)).await;
    assert_eq!(held.expect("they come to stand"), Ok(()));
    let status = runner.status();
    assert!(status.failures.is_empty(), "{:?}", status.failures);
    assert_eq!(status.counts.restarts, 0, "no run has ended");
    until("none keeps its instance", || living.load(Ordering::SeqCst) == 0).await;
}

/// A pool that is full ends no run, and tasks that rest do not fill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_rest_come_to_stand_with_few_instances() {
    const TENANTS: usize = 24;
    let scene = Scene::new().await;
    let (living, max) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let few = Few { inner: scripted(), living: Arc::clone(&living), max: Arc::clone(&max) };
    let settings = ProcessorSettings { idle_max: Duration::from_millis(10), ..ProcessorSettings::default() };
    let runner = Runner::start(&scene.engine, Arc::new(few), settings);
    let mut barrier = Position::START;
    for tenant in 0..TENANTS {
        barrier = scene.publish(&format!("t{tenant}"), &[("x", "add", "1")]).await;
    }
    scene.done(&runner, barrier).await;
    until("all rest", || living.load(Ordering::SeqCst) == 0).await;
    max.store(1, Ordering::SeqCst);
    let held = tokio::time::timeout(Duration::from_secs(60), runner.hold_at(barrier)).await;
    assert_eq!(held.expect("they come to stand one after the other"), Ok(()));
    until("none keeps its instance", || living.load(Ordering::SeqCst) == 0).await;
    let status = runner.status();
    assert!(status.failures.is_empty(), "{:?}", status.failures);
    assert_eq!(status.counts.restarts, 0, "no run has ended");
    assert_eq!(positions(&scene).await, [barrier; TENANTS]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_cannot_flush_does_not_make_the_others_flush_again() {
    let scene = Scene::new().await;
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    let swaps = |tenant: &str| watch.swaps.lock().expect("test").get(tenant).copied().unwrap_or_default();
    scene.publish("well", &[("x", "add", "1")]).await;
    let barrier = scene.publish("ill", &[("x", "add", "1")]).await;
    scene.done(&runner, barrier).await;
    *watch.flush_fails.lock().expect("test") = Some(tenant_id("ill"));
    let mut holding = std::pin::pin!(runner.hold_at(barrier));
    let asked = until("it is asked several times", || swaps("ill") > 3);
    tokio::select! {
        held = &mut holding => panic!("one cannot be flushed, and yet: {held:?}"),
        () = asked => {}
    }
    assert_eq!(swaps("well"), 1, "it was flushed, and nothing has happened since");
    *watch.flush_fails.lock().expect("test") = None;
    assert_eq!(holding.await, Ok(()));
    assert_eq!(swaps("well"), 1);
    // What comes afterwards is flushed again.
    runner.release();
    let barrier = scene.publish("well", &[("x", "add", "1")]).await;
    runner.hold_at(barrier).await.expect("nothing behind it was handled");
    assert_eq!(swaps("well"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_nobody_waits_for_is_waited_for_while_it_comes_to_stand() {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { background: true, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    let is_back = || {
        let threads = watch.threads.lock().expect("test");
        threads.get("a").map(|thread| thread.starts_with("guest-back"))
    };
    let first = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, first).await;
    assert_eq!(is_back(), Some(true), "nobody waits for it");
    let barrier = Position(first.0 + 1);
    runner.halt_at(barrier);
    scene.publish("a", &[("x", "add", "1")]).await;
    runner.hold_at(barrier).await.expect("nothing behind it was handled");
    assert_eq!(is_back(), Some(false), "another one stands still until it has come");
    runner.release();
    let last = scene.publish("a", &[("x", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert_eq!(is_back(), Some(true));
}

fn record(kind: EffectKind, start: u32, bytes: u32) -> EffectRecord {
    EffectRecord {
        kind,
        table: 0,
        event: 0,
        version: 1,
        at: 0,
        schema_version: 1,
        start,
        key_bytes: bytes,
        aggregate_bytes: 0,
        type_bytes: 0,
        id_bytes: 0,
        body_bytes: 0,
        depth: 0,
    }
}

#[test]
fn effects_that_are_left_out_take_their_bytes_along() {
    let records = vec![
        record(EffectKind::StateDelete, 0, 3),
        record(EffectKind::StateDelete, 3, 4),
        record(EffectKind::StateDelete, 7, 2),
    ];
    let batch = EffectBatch::check(b"abcdefghi".to_vec(), records, &[], &[0]).expect("good effects");
    let mut none = batch.clone();
    none.retain(|_| false);
    assert!(none.is_empty() && none.bytes() == 0);
    let mut all = batch.clone();
    all.retain(|_| true);
    assert_eq!((all.len(), all.bytes()), (3, 9));
    // The middle one.
    let asked = std::cell::Cell::new(0);
    let mut some = batch.clone();
    some.retain(|_| {
        asked.set(asked.get() + 1);
        asked.get() != 2
    });
    assert_eq!(asked.get(), 3, "each is asked for once");
    assert_eq!((some.len(), some.bytes()), (2, 5));
    assert_eq!([some.get(0), some.get(1)], [batch.get(0), batch.get(2)]);
}
