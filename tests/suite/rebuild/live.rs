//! Who watches or keeps copies of rows that a rebuild replaces.

mod exact;

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::backends::memory::MemoryCache;
use millrace::cache::{CacheOptions, CachedTables, ReadThrough};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::plugins::RebuildStage;
use millrace::streams::EventLog;
use millrace::tables::{Order, Query, TableStore};
use millrace_tests::viewer::Viewer;
use serde_json::Value as Json;

use super::{Arc, Rig, borrowed, many, tenant};

const PATIENCE: Duration = Duration::from_secs(60);

fn engine(rig: &Rig) -> LiveEngine {
    LiveEngine::new(Arc::new(rig.store.clone()), rig.store.epoch(), LIVE_VIEWS_MAX)
}

fn window() -> LiveQuery {
    let order = vec![Order { column: "count".into(), descending: true }];
    let query = Query { limit: 10, order, ..Query::all("counts_alpha") };
    LiveQuery { query, mode: Mode::Maintained, columns: None }
}

/// The keys and values of the window, as the store has them.
async fn expected(rig: &Rig) -> Vec<(String, String, String)> {
    let page = rig.store.query(&tenant(), &window().query).await.expect("the table can be read");
    let text = |value: &millrace::tables::Value| super::int(value).to_string();
    page.rows.iter().map(|row| (row.key.clone(), text(&row.cells[0]), text(&row.cells[1]))).collect()
}

fn shown(viewer: &Viewer) -> Vec<(String, String, String)> {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    viewer.rows.iter().map(|row| (text(&row["key"]), text(&row["count"]), text(&row["by"]))).collect()
}

/// Takes in what comes until the viewer shows the window as it is.
async fn catches_up(viewer: &mut Viewer, rig: &Rig) {
    let begun = std::time::Instant::now();
    while shown(viewer) != expected(rig).await {
        assert!(begun.elapsed() < PATIENCE, "{:?} is shown of {:?}", shown(viewer), expected(rig).await);
        if let Ok(taken) = tokio::time::timeout(Duration::from_millis(50), viewer.take()).await {
            taken.expect("the view goes on");
        }
        let by: Vec<_> = shown(viewer).into_iter().map(|(_, _, by)| by).collect();
        assert!(by.windows(2).all(|by| by[0] == by[1]), "rows of both versions at once: {by:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_viewer_over_the_flip_gets_the_difference() {
    let rig = Rig::new();
    let live = engine(&rig);
    rig.deploy("alpha 1 wrong").await.expect("it is deployed");
    let events = many(200, 20, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    // Somebody else goes on watching, so that the view stays.
    let (mut steady, mut away) = (Viewer::new(tenant(), window()), Viewer::new(tenant(), window()));
    for viewer in [&mut steady, &mut away] {
        viewer.connect(&live).await.expect("it can watch");
        viewer.take_until_ready().await;
    }
    away.disconnect();
    away.names.clear();
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    rig.flipped("alpha").await;
    let before = steady.revision;
    steady.names.clear();
    catches_up(&mut steady, &rig).await;
    assert!(steady.revision > before, "revisions go on");
    assert!(!steady.names.contains(&"reset".to_owned()), "it is told the difference: {:?}", steady.names);
    away.connect(&live).await.expect("it comes back");
    catches_up(&mut away, &rig).await;
    assert!(!away.names.contains(&"reset".to_owned()), "it is told what it missed: {:?}", away.names);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_rows_are_none_of_before() {
    let rig = Rig::new();
    let cache = ReadThrough::new(&CacheOptions::default(), Some(Arc::new(MemoryCache::new(1_000, 1 << 20))));
    let cached = CachedTables::new(Arc::new(rig.store.clone()), cache);
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(60, 6, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let row = async |key: &str| {
        let (revision, row) = cached.get(&tenant(), "counts_alpha", key).await.expect("it can be read");
        (revision, super::int(&row.expect("the row is there").cells[1]))
    };
    for _ in 0..3 {
        assert_eq!(row("k1").await.1, 1);
    }
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    // Whoever saw the new rows anywhere sees no copy of the old ones.
    let mut seen = BTreeMap::new();
    while rig.view("alpha").await.stage != RebuildStage::Flipped {
        let newest = rig.rows("counts_alpha").await["k1"].1;
        let (revision, by) = row("k1").await;
        assert!(by >= newest, "a copy of the old row after the new one was seen");
        seen.insert(revision, by);
    }
    let (revision, by) = row("k1").await;
    let flip = rig.view("alpha").await.report.expect("it tells what it did").revision;
    assert!(by == 2 && revision.0 >= flip, "{by} as of {}, flipped at {flip}", revision.0);
    let old = seen.iter().filter(|(revision, by)| revision.0 >= flip && **by == 1);
    assert_eq!(old.count(), 0, "{seen:?}");
}
