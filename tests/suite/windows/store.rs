//! Live queries over the embedded store, with commits from several lanes.

use std::sync::Arc;

use millrace::checkpoints::CheckpointStore;
use millrace::event::{Epoch, Revision};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::LiveEngine;
use millrace::tables::{Cell, Changed, RowChange, TableStore};
use millrace_tests::conformance::effects::{Effects, commit, tenant};
use millrace_tests::viewer::Viewer;
use serde_json::json;

use super::rig::{Rig, by_n};

/// All changes that a watch tells of, as text, until there have been so many.
async fn told(changes: &mut millrace::tables::RowChanges, count: usize) -> Vec<String> {
    let mut out = Vec::new();
    while out.len() < count {
        for changed in changes.next().await.expect("the store is open") {
            let Changed::Commits(commits) = changed else {
                out.push("lost".into());
                continue;
            };
            for commit in commits.iter() {
                for row in &commit.rows {
                    out.push(match row {
                        RowChange::Put(row) => {
                            format!("{} {}@{} {:?}", commit.revision, row.key, row.version, row.cells[0])
                        }
                        RowChange::Delete { key, version } => {
                            format!("{} {key}@{version} gone", commit.revision)
                        }
                    });
                }
            }
        }
    }
    out
}

#[tokio::test]
async fn a_watch_tells_what_was_written_and_nothing_else() {
    let rig = Rig::new(true).await;
    let lane = rig.lane("acme", 0).await;
    let rival = rig.lane("rival", 0).await;
    lane.put("before", 1, 1).await;
    let mut changes = rig.store.watch(&tenant("acme"), "rows").await.unwrap();
    assert_eq!(changes.after(), Revision(1));
    rival.put("theirs", 1, 1).await;
    lane.put("a", 2, 1).await;
    // It is stale, so nothing is written.
    lane.put("a", 1, 7).await;
    // Three writes of one row are one change, the newest.
    let mut many = Effects::default();
    many.put("b", 1, &[Cell::Int(1), Cell::Null]).put("b", 3, &[Cell::Int(3), Cell::Null]);
    lane.commit(many.put("b", 2, &[Cell::Int(2), Cell::Null])).await;
    lane.commit(Effects::default().delete("a", 9)).await;
    // A commit that is refused has changed nothing, whatever it wrote before.
    let other = rig.lane("acme", 1).await;
    let mut refused = Effects::default();
    refused.put("fresh", 1, &[Cell::Int(1), Cell::Null]).put("zzz", 1, &[Cell::Int(1), Cell::Null]);
    lane.put("zzz", 1, 1).await;
    let refused = commit(&other.task, other.generation, 1, &rig.tables, &mut refused);
    rig.store.commit(refused).await.expect_err("the row belongs to another lane");
    lane.put("last", 1, 1).await;
    let expected = ["3 a@2 Int(1)", "5 b@3 Int(3)", "6 a@9 gone", "7 zzz@1 Int(1)", "8 last@1 Int(1)"];
    assert_eq!(told(&mut changes, 5).await, expected);
}

#[tokio::test]
async fn a_watch_of_an_unknown_table_is_refused_and_a_closed_store_ends_it() {
    let rig = Rig::new(false).await;
    rig.store.watch(&tenant("acme"), "absent").await.expect_err("there is no such table");
    let mut changes = rig.store.watch(&tenant("acme"), "rows").await.unwrap();
    rig.store.close().await;
    assert!(changes.next().await.is_none());
    rig.store.watch(&tenant("acme"), "rows").await.expect_err("it is closed");
}

#[tokio::test]
async fn a_watcher_that_takes_nothing_is_told_that_it_lost_some() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let mut changes = rig.store.watch(&tenant("acme"), "rows").await.unwrap();
    let long = "x".repeat(1 << 19);
    for n in 0..40 {
        lane.commit(Effects::default().put("a", 1, &[Cell::Int(n), Cell::Text(&long)])).await;
    }
    let all = changes.next().await.unwrap();
    let Some(Changed::Lost { after }) = all.front() else { panic!("{all:?}") };
    assert!(after.0 > 20);
    let after: u64 = after.0;
    assert_eq!(all.len() as u64, 1 + 40 - after, "what came after it is there");
}

#[tokio::test]
async fn x1_a_row_that_matches_now_enters_and_pushes_another_out() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let kind = async |key: &str, kind: &str| {
        lane.commit(Effects::default().put(key, 1, &[Cell::Null, Cell::Text(kind)])).await;
    };
    for (name, of) in [("Alpha", "pump"), ("Charlie", "pump"), ("Bravo", "valve")] {
        kind(name, of).await;
    }
    let live = rig.live();
    let pump = json!([{"column": "label", "op": "eq", "value": "pump"}]);
    let mut client = rig.ask(&live, &json!({"table": "rows", "where": pump, "limit": 2})).await;
    assert_eq!(client.viewer.keys(), ["Alpha", "Charlie"]);
    client.viewer.names.clear();
    kind("Bravo", "pump").await;
    client.take().await;
    assert_eq!(client.viewer.keys(), ["Alpha", "Bravo"]);
    assert_eq!(client.viewer.names, ["enter", "leave"]);
}

#[tokio::test]
async fn e7_a_window_moves_from_the_head_to_what_follows() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    for (key, n) in [("d", 4), ("b", 2), ("a", 1), ("c", 3), ("e", 5)] {
        lane.put(key, 1, n).await;
    }
    let live = rig.live();
    let mut client = rig.ask(&live, &json!({"table": "rows", "sort": [{"column": "n"}], "limit": 2})).await;
    assert_eq!(client.viewer.keys(), ["a", "b"]);
    client.reanchor(&json!({"values": [2, "b"]}), None).await;
    assert_eq!(client.viewer.keys(), ["c", "d"]);
    assert_eq!(client.viewer.names.join(" "), "reset enter enter ready reset enter enter ready");
    lane.put("bb", 1, 2).await;
    client.take().await;
    assert_eq!(client.viewer.keys(), ["bb", "c"]);
    lane.put("aa", 1, 0).await;
    client.reanchor(&json!({}), Some(3)).await;
    assert_eq!(client.viewer.keys(), ["aa", "a", "b"], "back at the head, with another size");
}

#[tokio::test]
async fn n8_windows_that_move_through_a_table_of_the_store_are_its_pages_and_are_kept() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    let mut all = Effects::default();
    for n in 0..61 {
        // Many have the same number: the key decides.
        all.put(&format!("k{n:02}"), 1, &[Cell::Int((n * 7) % 5), Cell::Null]);
    }
    lane.commit(&mut all).await;
    let live = rig.live();
    let asked = json!({"table": "rows", "sort": [{"column": "n", "desc": true}], "limit": 7});
    let mut client = rig.ask(&live, &asked).await;
    let mut query = by_n(100);
    query.query.order[0].descending = true;
    let whole = rig.keys(&query).await;
    let mut pages: Vec<String> = client.viewer.keys().into_iter().map(str::to_owned).collect();
    while let Some(last) = client.viewer.rows.last().cloned() {
        client.reanchor(&json!({"values": [last["n"], last["key"]]}), None).await;
        pages.extend(client.viewer.keys().into_iter().map(str::to_owned));
    }
    assert_eq!(pages, whole, "no row is left out, and none is there twice");
    let place = &whole[30];
    let n: i64 = place[1..].parse::<i64>().expect("a number") * 7 % 5;
    client.reanchor(&json!({"values": [n, place]}), Some(7)).await;
    assert_eq!(client.viewer.keys(), whole[31..38]);
    lane.commit(Effects::default().delete(&whole[33], 1)).await;
    client.take().await;
    let left: Vec<_> = whole.iter().filter(|key| **key != whole[33]).skip(31).take(7).collect();
    assert_eq!(client.viewer.keys(), left);
}

#[tokio::test]
async fn x2_a_tenant_sees_its_own_rows_only() {
    let rig = Rig::new(false).await;
    let (acme, rival) = (rig.lane("acme", 0).await, rig.lane("rival", 0).await);
    acme.put("ours", 1, 1).await;
    rival.put("theirs", 1, 1).await;
    let live = rig.live();
    let mut viewer = Viewer::new(tenant("acme"), by_n(10));
    viewer.connect(&live).await.unwrap();
    viewer.take_until_ready().await;
    rival.put("theirs-too", 1, 2).await;
    acme.put("ours-too", 1, 3).await;
    viewer.take().await.unwrap();
    assert_eq!(viewer.keys(), ["ours", "ours-too"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_race_writers_have_every_row_once() {
    let raced = millrace_tests::race::race(1_000, |_| {}).await;
    assert!(raced.compared > 100 && raced.commits > 100, "{raced:?} is too little to mean anything");
}

#[tokio::test]
async fn a_store_that_lives_again_is_told_apart() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    lane.put("a", 1, 1).await;
    let (one, two) =
        (rig.live(), LiveEngine::new(Arc::new(rig.store.clone()), Epoch("other".into()), LIVE_VIEWS_MAX));
    let mut viewer = Viewer::new(tenant("acme"), by_n(10));
    viewer.connect(&one).await.unwrap();
    viewer.take_until_ready().await;
    viewer.connect(&two).await.unwrap();
    viewer.take_until_ready().await;
    assert_eq!(viewer.names.join(" "), "reset enter ready gap reset enter ready");
}
