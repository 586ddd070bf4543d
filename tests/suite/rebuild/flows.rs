//! What a rebuild makes of tables, state and emitted events.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace::backends::sqlite::SqliteOptions;
use millrace::error::Classify;
use millrace::plugins::{DeployFrom, PluginControl, Proof, RebuildRequest, RebuildStage};
use millrace::processors::OrderingKey;
use millrace::tables::{ColumnType, Order, Query, TableStore};
use tokio::task::JoinSet;

use super::{Arc, Rig, borrowed, many, rebuild, tenant, wait};

const X: &[(&str, &str, &str)] = &[("x", "add", "1")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_serve_as_they_were_until_the_flip_which_is_one_revision() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(40, 8, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let before = rig.rows("counts_alpha").await;
    // No instance of the new version is made yet.
    let view = rig.rebuild("alpha", Some("alpha 2 waits")).await.expect("it begins");
    assert_eq!((view.stage, view.version.as_str()), (RebuildStage::Filling, "2.0.0"));
    assert_eq!(rig.rows("counts_alpha").await, before);
    let shadow = format!("counts_alpha~{}", view.number);
    assert_eq!(rig.store.schema(&shadow).expect_err("nobody can name it").code(), "table_unknown");
    let query = Query::all(shadow.as_str());
    assert_eq!(rig.store.query(&tenant(), &query).await.expect_err("nor read it").code(), "table_unknown");
    let listed = TableStore::list(&rig.store);
    assert_eq!(listed.iter().map(|(_, table)| table.name.as_str()).collect::<Vec<_>>(), ["counts_alpha"]);
    // The old version goes on.
    rig.publish(X).await;
    wait("the old version counts", async || rig.rows("counts_alpha").await.get("x") == Some(&(1, 1))).await;
    let all_old: BTreeMap<_, _> = rig.rows("counts_alpha").await;
    rig.open_gate();
    // Whoever reads meanwhile sees the one or the other.
    loop {
        let query = Query { limit: 1_000, ..Query::all("counts_alpha") };
        let page = rig.store.query(&tenant(), &query).await.expect("the table can be read at any moment");
        let by: Vec<_> = page.rows.iter().map(|row| super::int(&row.cells[1])).collect();
        let view = rig.view("alpha").await;
        match by.iter().all(|by| *by == 2) {
            true => {
                let revision = rig.flipped("alpha").await.report.expect("it tells what it did").revision;
                assert!(page.revision.0 >= revision, "the new rows are there from the flip's revision on");
                break;
            }
            false => {
                assert!(by.iter().all(|by| *by == 1), "rows of both versions: {by:?}");
                let at = view.report.map_or(u64::MAX, |report| report.revision);
                assert!(page.revision.0 < at || view.stage != RebuildStage::Flipped);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    let counts = |rows: &BTreeMap<String, (i64, i64)>| -> Vec<(String, i64)> {
        rows.iter().map(|(key, (count, _))| (key.clone(), *count)).collect()
    };
    assert_eq!(counts(&rig.rows("counts_alpha").await), counts(&all_old));
    let status = rig.show("alpha").await;
    assert_eq!(status.deployment.version, "2.0.0");
    assert!(matches!(status.deployment.proof, Proof::Rebuilt { events: 41.. }), "{:?}", status.deployment);
    rig.publish(X).await;
    wait("the new version counts on", async || rig.rows("counts_alpha").await.get("x") == Some(&(2, 2)))
        .await;
    let history = rig.registry.history("alpha").await.expect("it is there");
    assert_eq!(history.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(), ["2.0.0", "1.0.0"]);
    rig.swept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_tables_equal_a_fresh_projection() {
    let (rig, fresh) = (Rig::new(), Rig::new());
    let mut events = many(2_000, 37, "add");
    events.extend(many(300, 11, "remember"));
    events.extend(many(300, 23, "emit"));
    rig.deploy("alpha 1 wrong").await.expect("it is deployed");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let wrong = rig.rows("counts_alpha").await;
    rig.rebuild("alpha", Some("alpha 2")).await.expect("it begins");
    let view = rig.flipped("alpha").await;
    assert_eq!(view.dropped.emitted, 300, "each was emitted when it was handled first");
    rig.settle("alpha").await;
    fresh.publish(&borrowed(&events)).await;
    fresh.deploy("alpha 2").await.expect("it is deployed");
    fresh.settle("alpha").await;
    let rebuilt = rig.rows("counts_alpha").await;
    assert_eq!(rebuilt, fresh.rows("counts_alpha").await);
    assert_ne!(rebuilt, wrong);
    rig.swept().await;
    // Another time, with what runs: nothing changes but the revision.
    let first = view.report.expect("it tells what it did").revision;
    rig.rebuild("alpha", None).await.expect("it begins");
    let again = rig.flipped("alpha").await;
    assert!(again.number > view.number && again.report.expect("it tells what it did").revision > first);
    assert_eq!(rig.rows("counts_alpha").await, rebuilt);
    rig.swept().await;
}

/// The log tells no event by its id here, so whoever emitted one twice would be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_emitted_twice_or_left_out() {
    each_emits_once("emit", ["alpha 1", "alpha 2", "alpha 3", "alpha 4"]).await;
}

/// A plugin that emits what it has gathered when its time comes, and gathers over a swap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gathered_until_a_tick_is_emitted_once() {
    each_emits_once("sum", ["alpha 1 ticks", "alpha 2 ticks", "alpha 3 ticks", "alpha 4 ticks"]).await;
}

/// Rebuilds under load: whatever version there is, each event of this type has one emitted.
async fn each_emits_once(event_type: &'static str, versions: [&'static str; 4]) {
    let options = |options: SqliteOptions| SqliteOptions { dedup_events_max: 1, ..options };
    let rig = Arc::new(Rig::with(options, |store| Arc::new(store.clone()), BTreeMap::new()));
    let [first, others @ ..] = versions;
    rig.deploy(first).await.expect("it is deployed");
    let done = Arc::new(AtomicBool::new(false));
    let (publisher, over) = (Arc::clone(&rig), Arc::clone(&done));
    let mut published = JoinSet::new();
    published.spawn(async move {
        let mut published = 0;
        while !over.load(Ordering::SeqCst) {
            let events = many(5, 7, event_type);
            publisher.publish(&borrowed(&events)).await;
            published += events.len();
            // A scripted processor writes down every event that it ever had: not too many of them.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        published
    });
    for version in others {
        rig.rebuild("alpha", Some(version)).await.expect("it begins");
        let view = rig.flipped("alpha").await;
        assert!(view.report.expect("it tells what it did").is_exact());
    }
    done.store(true, Ordering::SeqCst);
    let published: usize = published.join_all().await.into_iter().sum();
    rig.settle("alpha").await;
    wait("each has emitted its event", async || rig.events("emitted-").await.len() >= published).await;
    let emitted = rig.events("emitted-").await;
    assert_eq!(emitted.len(), published);
    let doubled: Vec<_> = emitted.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "these were emitted more than once: {doubled:?}");
    assert!(rig.view("alpha").await.dropped.emitted > 0, "there was something to leave out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_change_by_a_rebuild() {
    let mut rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(600, 30, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    assert_eq!(rig.show("alpha").await.tasks.len(), 1);
    let request = RebuildRequest { lanes: Some(4), ..rebuild("alpha", None) };
    rig.registry.rebuild(request).await.expect("it begins");
    rig.flipped("alpha").await;
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let status = rig.show("alpha").await;
    assert_eq!((status.deployment.lanes, status.tasks.len()), (4, 4));
    assert!(rig.rows("counts_alpha").await.values().all(|row| *row == (40, 1)));
    rig.restart().await;
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    assert_eq!(rig.show("alpha").await.tasks.len(), 4);
    assert!(rig.rows("counts_alpha").await.values().all(|row| *row == (60, 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_changes_by_a_rebuild() {
    let mut rig = Rig::new();
    rig.deploy("alpha 1 int").await.expect("it is deployed");
    let events = many(60, 20, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let error = rig.deploy("alpha 2 text").await.expect_err("a column cannot be another");
    assert_eq!(error.code(), "schema_changed");
    assert!(error.to_string().contains("rebuild"), "{error}");
    rig.rebuild("alpha", Some("alpha 2 text")).await.expect("it begins");
    rig.flipped("alpha").await;
    let added = |rig: &Rig| {
        let schema = rig.store.schema("counts_alpha").expect("the table is there");
        schema.column("added").map(|(_, column)| column.column_type)
    };
    assert_eq!(added(&rig), Some(ColumnType::Text));
    rig.swept().await;
    rig.restart().await;
    assert_eq!(added(&rig), Some(ColumnType::Text));
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    // Pages behind a cursor are read by an index, which is named in the statement.
    let by_count = Order { column: "count".into(), descending: false };
    let mut query = Query { limit: 7, order: vec![by_count], ..Query::all("counts_alpha") };
    let mut keys = Vec::new();
    loop {
        let page = rig.store.query(&tenant(), &query).await.expect("the page can be read");
        keys.extend(page.rows.into_iter().map(|row| row.key));
        let Some(next) = page.next else { break };
        query.after = Some(next);
    }
    assert_eq!(keys.len(), 20);
    // And it is a table like any other from then on.
    rig.deploy("alpha 3 text").await.expect("the same columns need no rebuild");
    rig.rebuild("alpha", Some("alpha 4 int")).await.expect("it begins");
    rig.flipped("alpha").await;
    assert_eq!(added(&rig), Some(ColumnType::Int));
    rig.swept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordering_key_changes_by_a_rebuild() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(60, 20, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    assert_eq!(rig.deploy("alpha 2 single").await.expect_err("it is another key").code(), "swap_failed");
    rig.rebuild("alpha", Some("alpha 2 single")).await.expect("it begins");
    rig.flipped("alpha").await;
    let status = rig.show("alpha").await;
    assert_eq!(status.deployment.ordering_key, Some(OrderingKey::Single));
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    assert!(rig.rows("counts_alpha").await.values().all(|row| *row == (6, 2)));
    assert_eq!(rig.deploy("alpha 3").await.expect_err("the new key stands").code(), "swap_failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_removed_takes_the_record_of_its_rebuild_along() {
    let mut rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    rig.publish(X).await;
    rig.settle("alpha").await;
    rig.rebuild("alpha", None).await.expect("it begins");
    let first = rig.flipped("alpha").await.number;
    rig.registry.remove("alpha").await.expect("it is removed");
    rig.deploy("alpha 2").await.expect("it is another plugin");
    rig.restart().await;
    let error = rig.registry.rebuild_status("alpha").await.expect_err("it was never rebuilt");
    assert_eq!(error.code(), "rebuild_none");
    rig.swept().await;
    rig.rebuild("alpha", None).await.expect("it begins");
    assert!(rig.flipped("alpha").await.number > first, "no number comes twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_from_the_tail_begins_with_nothing() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    let events = many(40, 8, "add");
    rig.publish(&borrowed(&events)).await;
    rig.settle("alpha").await;
    let request = RebuildRequest { from: DeployFrom::Tail, ..rebuild("alpha", Some("alpha 2")) };
    rig.registry.rebuild(request).await.expect("it begins");
    rig.flipped("alpha").await;
    assert!(rig.rows("counts_alpha").await.is_empty());
    rig.publish(X).await;
    rig.settle("alpha").await;
    assert_eq!(rig.rows("counts_alpha").await, BTreeMap::from([("x".to_owned(), (1, 2))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_rebuild_does_not_declare_goes_with_the_flip() {
    let rig = Rig::new();
    rig.deploy("alpha 1").await.expect("it is deployed");
    rig.publish(X).await;
    rig.settle("alpha").await;
    rig.rebuild("alpha", Some("alpha 2 other")).await.expect("it begins");
    rig.flipped("alpha").await;
    assert_eq!(rig.store.schema("counts_alpha").expect_err("it is gone").code(), "table_unknown");
    assert_eq!(rig.rows("other_alpha").await.get("x"), Some(&(1, 2)));
    // Also while something is left of the one that was called so.
    rig.registry.remove("alpha").await.expect("it is removed");
    rig.deploy("alpha 3").await.expect("the table can be made again");
    rig.settle("alpha").await;
    assert_eq!(rig.rows("counts_alpha").await.get("x"), Some(&(1, 3)));
    rig.swept().await;
    assert_eq!(rig.rows("counts_alpha").await.get("x"), Some(&(1, 3)));
    rig.deploy("beta 1").await.expect("other plugins are as they were");
    rig.settle("beta").await;
    assert_eq!(rig.rows("counts_beta").await.get("x"), Some(&(1, 1)));
}
