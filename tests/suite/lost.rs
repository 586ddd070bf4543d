//! Claims about processors whose next events are gone: retention has passed them while they did not run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::cache::{CacheOptions, CachedTables, ReadThrough};
use millrace::event::Position;
use millrace::processors::{LostPolicy, ProcessorSettings, Runner};
use millrace::streams::{EventLog, Retention};
use millrace::tables::{Changed, RowChange, TableStore};
use millrace_tests::scene::{Scene, counts, scripted, tenant_id};
use millrace_tests::scripted::Watch;
use millrace_tests::until;

const A_WHILE: Duration = Duration::from_secs(20);

/// A scene whose processor has handled two events, then ran no more while four came, of which the first two went.
async fn two_gone(policy: LostPolicy) -> (Scene, Arc<Watch>, ProcessorSettings) {
    let scene = Scene::new().await;
    let settings = ProcessorSettings { on_position_lost: policy, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings.clone());
    let last = scene.publish("acme", &[("a", "add", "1"), ("b", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert!(runner.stop(A_WHILE).await);
    let later = [("a", "add", "1"), ("c", "add", "1"), ("b", "add", "1"), ("c", "add", "1")];
    scene.publish("acme", &later).await;
    scene.store.trim(Retention { age: None, events: Some(2) }).await.expect("a trim");
    assert_eq!(scene.store.bounds().trimmed, Position(4));
    (scene, watch, settings)
}

async fn started_again(policy: LostPolicy) -> (Scene, Runner) {
    let (scene, watch, settings) = two_gone(policy).await;
    let runner = scene.start_again(&watch, 1, settings);
    (scene, runner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_it_stops_and_says_what_is_gone_unless_told_otherwise() {
    assert_eq!(ProcessorSettings::default().on_position_lost, LostPolicy::Stop);
    let (scene, runner) = started_again(LostPolicy::Stop).await;
    until("it stops", || !runner.status().failures.is_empty()).await;
    let (tenant, why) = runner.status().failures.remove(0);
    assert_eq!(tenant, tenant_id("acme"));
    assert!(why.starts_with("position_lost: lane 0 has come to position 2"), "{why}");
    assert!(why.contains("set on_position_lost to oldest, tail or rebuild"), "{why}");
    assert_eq!(scene.counts("acme").await, counts(&[("a", 1), ("b", 1)]), "its rows stay as they are");
    runner.stop(A_WHILE).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_it_goes_on_at_the_oldest_event_that_is_kept_with_its_state() {
    let (scene, runner) = started_again(LostPolicy::Oldest).await;
    scene.done(&runner, scene.last()).await;
    assert_eq!(scene.counts("acme").await, counts(&[("a", 1), ("b", 2), ("c", 1)]));
    runner.stop(A_WHILE).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_it_goes_on_behind_the_newest_event_with_its_state() {
    let (scene, runner) = started_again(LostPolicy::Tail).await;
    scene.done(&runner, scene.last()).await;
    assert_eq!(scene.counts("acme").await, counts(&[("a", 1), ("b", 1)]), "nothing is handled");
    let last = scene.publish("acme", &[("a", "add", "1")]).await;
    scene.done(&runner, last).await;
    assert_eq!(scene.counts("acme").await, counts(&[("a", 2), ("b", 1)]));
    runner.stop(A_WHILE).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_it_is_rebuilt_from_what_is_kept_and_viewers_see_its_rows_go() {
    let (scene, watch, settings) = two_gone(LostPolicy::Rebuild).await;
    let mut changes =
        scene.store.watch(&tenant_id("acme"), "counts").await.expect("the table can be watched");
    let tables =
        CachedTables::new(Arc::new(scene.store.clone()), ReadThrough::new(&CacheOptions::default(), None));
    for _ in 0..2 {
        let (_, row) = tables.get(&tenant_id("acme"), "counts", "a").await.expect("the row can be read");
        assert!(row.is_some(), "it is there, and in the cache");
    }
    let runner = scene.start_again(&watch, 1, settings);
    let seen = changes.next().await.expect("something changes");
    let Some(Changed::Commits(commits)) = seen.front() else { panic!("{seen:?}") };
    let gone: BTreeSet<&str> = commits[0]
        .rows
        .iter()
        .map(|row| match row {
            RowChange::Delete { key, .. } => key.as_str(),
            RowChange::Put(row) => panic!("a row comes before the others have gone: {row:?}"),
        })
        .collect();
    assert_eq!(gone, BTreeSet::from(["a", "b"]));
    scene.done(&runner, scene.last()).await;
    assert_eq!(
        scene.counts("acme").await,
        counts(&[("b", 1), ("c", 1)]),
        "of what is kept, and nothing else"
    );
    let (_, row) = tables.get(&tenant_id("acme"), "counts", "a").await.expect("the row can be read");
    assert!(row.is_none(), "it is gone for the cache, too");
    assert!(runner.status().failures.is_empty());
    runner.stop(A_WHILE).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_that_never_ran_begins_at_the_oldest_event_that_is_kept() {
    let scene = Scene::new().await;
    scene.publish("acme", &[("a", "add", "1"), ("b", "add", "1"), ("c", "add", "1")]).await;
    scene.store.trim(Retention { age: None, events: Some(1) }).await.expect("a trim");
    let (runner, watch) = scene.start(scripted(), ProcessorSettings::default());
    scene.done(&runner, scene.last()).await;
    assert_eq!(scene.counts("acme").await, counts(&[("c", 1)]));
    assert_eq!(watch.instances.load(Ordering::SeqCst), 1);
    runner.stop(A_WHILE).await;
    scene.close().await;
}

/// Some of its lanes may have rows of what is gone: what it would make is not what the log had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_has_not_begun_everywhere_stops_where_events_are_gone() {
    let scene = Scene::new().await;
    scene.publish("acme", &[("a", "add", "1"), ("b", "add", "1"), ("c", "add", "1")]).await;
    scene.store.trim(Retention { age: None, events: Some(1) }).await.expect("a trim");
    let settings = ProcessorSettings { background: true, ..ProcessorSettings::default() };
    let (runner, watch) = scene.start(scripted(), settings);
    until("it stops", || !runner.status().failures.is_empty()).await;
    let (_, why) = runner.status().failures.remove(0);
    assert!(why.starts_with("position_lost: lane 0 has come to position 0"), "{why}");
    assert_eq!(watch.instances.load(Ordering::SeqCst), 0, "nothing is handled");
    // A tenant that is new has lost nothing.
    let last = scene.publish("new", &[("a", "add", "1")]).await;
    let served = || {
        let tasks = runner.status().tasks;
        tasks.iter().any(|task| task.task.tenant == tenant_id("new") && task.done_through >= last)
    };
    until("the new tenant is served", served).await;
    assert_eq!(scene.counts("new").await, counts(&[("a", 1)]));
    runner.stop(A_WHILE).await;
    scene.close().await;
}
