//! A source that begins anew, and the plugins that were made of what it brought.

use std::sync::Arc;
use std::time::Duration;

use millrace::clock::SystemClock;
use millrace::error::Classify;
use millrace::plugins::{DeployFrom, PluginControl, RebuildRequest, RebuildStage, Rebuilder};
use millrace::processors::source::{
    BegunRebuilds, CursorPolicy, IMPORTER_CONTENT_TYPE, Importer, ImporterParts, Progress, Rebuilds, Runtime,
    RuntimeConfig, RuntimeParts, SourceFault, SourceLetters,
};
use millrace_tests::until;
use serde_json::json;

use super::fakes::{FakeCheckpoints, FakeEvents, Step, cursor_lost, of_kind};
use crate::plugins::rig::tenant;
use crate::rebuild::{Rig, wait};

fn rebuilder(rig: &Rig) -> Rebuilder {
    Rebuilder::new(Arc::new(rig.registry.clone()), "source:grpc")
}

/// A source that had come to a cursor, and is told that nobody knows it any more.
fn source(rig: &Rig, events: &Arc<FakeEvents>) -> Runtime {
    let importer = Importer::new(ImporterParts {
        source: "grpc".into(),
        tenant: tenant(),
        log: Arc::new(rig.store.clone()),
        letters: SourceLetters::default(),
        progress: Progress::default(),
        rebuilds: vec!["alpha".into()],
        rebuilder: Arc::new(rebuilder(rig)),
        begun: BegunRebuilds::default(),
    });
    let checkpoints = FakeCheckpoints::with(IMPORTER_CONTENT_TYPE, &json!({ "lastEventCursor": "7" }));
    let parts = RuntimeParts {
        events: Some(events.clone()),
        checkpoints: Some(Arc::new(checkpoints)),
        processor: Some(Box::new(importer)),
        config: RuntimeConfig {
            on_cursor_lost: CursorPolicy::Rebuild,
            reconnect_min: Duration::from_millis(2),
            reconnect_max: Duration::from_millis(8),
            ..RuntimeConfig::new("client")
        },
        clock: Arc::new(SystemClock),
        progress: Progress::default(),
    };
    Runtime::start(parts).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rx_stale_cursor_rebuilds_the_plugins_and_takes_what_there_is() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.unwrap();
    rig.publish(&[("x", "add", "1"), ("y", "add", "1")]).await;
    rig.settle("alpha").await;
    let events = FakeEvents::of(vec![
        vec![cursor_lost(), Step::Ends],
        vec![of_kind("thing", "50"), of_kind("thing", "51")],
    ]);
    let events = Arc::new(events);
    let runtime = source(&rig, &events);
    until("it begins again at the oldest", || events.after_cursors().len() > 1).await;
    assert_eq!(events.after_cursors()[..2], [Some("7".to_owned()), Some("start".to_owned())]);
    let view = rig.flipped("alpha").await;
    assert_eq!((view.number, view.began_by.as_str()), (1, "source:grpc"));
    // Each event that comes again is counted once, by whichever version.
    let keys = ["e50", "e51", "x", "y"];
    let counted = async || rig.rows("counts_alpha").await.into_keys().eq(keys);
    wait("what came is counted beside what was there", counted).await;
    let rows = rig.rows("counts_alpha").await;
    assert!(rows.values().all(|row| *row == (1, 1)), "each once: {rows:?}");
    runtime.shutdown(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_have_a_plugin_rebuilt_stops_and_says_which() {
    let rig = Rig::new();
    let events = Arc::new(FakeEvents::of(vec![vec![cursor_lost(), Step::Ends]]));
    let ended = source(&rig, &events).wait().await.unwrap_err();
    assert_eq!((ended.fault, ended.code()), (SourceFault::CursorLost, "cursor_lost"));
    assert!(ended.to_string().contains("`alpha`"), "{ended}");
    assert_eq!(ended.wait(), None, "no time mends it");
    assert_eq!(events.after_cursors().len(), 1, "nothing comes again before it is decided");
}

/// Whoever began it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_is_under_way_is_enough() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.unwrap();
    rig.publish(&[("x", "add", "1")]).await;
    rig.settle("alpha").await;
    // A deploy makes an instance to prove it, and would wait for the gate; a rebuild makes its instances as it goes.
    let slow = RebuildRequest {
        plugin: "alpha".into(),
        component: Some("alpha 2 waits".into()),
        from: DeployFrom::Oldest,
        lanes: None,
        accept_unemitted: false,
        repeat_calls: false,
        by: "api:test".into(),
    };
    rig.registry.rebuild(slow).await.unwrap();
    for _ in 0..2 {
        rebuilder(&rig).rebuild("alpha").await.unwrap();
    }
    let view = rig.view("alpha").await;
    // It may have been near enough to wait for its first instance at the very end.
    let ended = [RebuildStage::Flipped, RebuildStage::Abandoned].contains(&view.stage);
    assert!(view.number == 1 && !ended, "{:?}: {}", view.stage, view.message);
    rig.open_gate();
    let view = rig.flipped("alpha").await;
    assert_eq!((view.number, view.began_by.as_str(), view.version.as_str()), (1, "api:test", "2.0.0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_is_refused_for_now_says_how_long_to_wait() {
    let rig = Rig::new();
    rig.registry.refuse_changes();
    let refused = rebuilder(&rig).rebuild("alpha").await.unwrap_err();
    assert_eq!((refused.fault, refused.wait()), (SourceFault::CursorLost, Some(Duration::from_secs(1))));
    assert!(refused.to_string().contains("the host is starting"), "{refused}");
}
