//! How a processor comes to stand at a position.

use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::checkpoints::{CheckpointStore, EffectBatch, EffectKind, EffectRecord};
use millrace::event::Position;
use millrace::processors::{Ahead, ProcessorSettings};
use millrace::tables::TableStore;
use millrace_tests::scene::{Scene, counts, scripted};
use millrace_tests::scripted::Scripted;
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
