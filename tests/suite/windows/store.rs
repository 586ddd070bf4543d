//! Live queries over the embedded store, with commits from several lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::{CheckpointStore, Generation, TaskId};
use millrace::event::{Epoch, Revision};
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::streams::EventLog;
use millrace::tables::{Cell, Changed, Order, Query, RowChange, RowCursor, TableSchema, TableStore, Value};
use millrace_tests::conformance::effects::{Effects, commit, table, task, tenant};
use millrace_tests::viewer::Viewer;

struct Rig {
    _dir: tempfile::TempDir,
    store: SqliteStore,
    tables: [TableSchema; 1],
}

struct Lane {
    store: SqliteStore,
    tables: [TableSchema; 1],
    task: TaskId,
    generation: Generation,
}

impl Rig {
    async fn new(versioned: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(SqliteOptions::new(dir.path())).expect("a store");
        let tables = [table("rows", versioned)];
        store.declare("board", &tables).await.expect("a good table");
        Self { _dir: dir, store, tables }
    }

    async fn lane(&self, tenant: &str, lane: u32) -> Lane {
        let task = task("board", tenant, lane);
        let (generation, _) = self.store.claim(&task).await.expect("a claim");
        Lane { store: self.store.clone(), tables: self.tables.clone(), task, generation }
    }

    fn live(&self) -> LiveEngine {
        LiveEngine::new(Arc::new(self.store.clone()), self.store.epoch(), LIVE_VIEWS_MAX)
    }
}

impl Lane {
    async fn commit(&self, effects: &mut Effects) -> Revision {
        let commit = commit(&self.task, self.generation, 1, &self.tables, effects);
        self.store.commit(commit).await.expect("a good commit").revision
    }

    async fn put(&self, key: &str, version: u64, n: i64) -> Revision {
        self.commit(Effects::default().put(key, version, &[Cell::Int(n), Cell::Null])).await
    }
}

fn by_n(limit: u32) -> LiveQuery {
    let order = vec![Order { column: "n".into(), descending: false }];
    LiveQuery { query: Query { order, limit, ..Query::all("rows") }, mode: Mode::Maintained, columns: None }
}

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
async fn x1_a_row_that_matches_now_pushes_another_out() {
    let rig = Rig::new(false).await;
    let lane = rig.lane("acme", 0).await;
    for (key, n) in [("alpha", 1), ("bravo", 9), ("charlie", 3)] {
        lane.put(key, 1, n).await;
    }
    let live = rig.live();
    let mut viewer = Viewer::new(tenant("acme"), by_n(2));
    viewer.connect(&live).await.unwrap();
    viewer.take_until_ready().await;
    assert_eq!(viewer.keys(), ["alpha", "charlie"]);
    viewer.names.clear();
    lane.put("bravo", 2, 2).await;
    viewer.take().await.unwrap();
    assert_eq!((viewer.keys(), viewer.names.join(" ")), (vec!["alpha", "bravo"], "enter leave".into()));
}

#[tokio::test]
async fn x2_n16_a_tenant_sees_its_own_rows_only() {
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

/// Subscribes and moves its window while two lanes write as fast as they can. Whoever came at whatever moment
/// has, in the end, what the store has; and a row that is counted up is never seen to go back.
#[expect(clippy::disallowed_methods, reason = "the test owns the tasks and joins them")]
async fn race(rounds: usize) {
    let rig = Rig::new(false).await;
    let live = Arc::new(rig.live());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in 0..2 {
        let lane = rig.lane("acme", number).await;
        let stop = Arc::clone(&stop);
        writers.push(tokio::spawn(async move {
            let mut n = 0_i64;
            while !stop.load(Ordering::Acquire) {
                n += 1;
                let mut effects = Effects::default();
                for row in 0..5 {
                    // Rows change places, come and go; the number in them counts up.
                    let key = format!("l{number}-{}", (n * 7 + row * 3) % 20);
                    if (n + row) % 4 == 0 {
                        effects.delete(&key, 1);
                    } else {
                        effects.put(&key, 1, &[Cell::Int(n), Cell::Text(&key)]);
                    }
                }
                lane.commit(&mut effects).await;
            }
        }));
    }
    let mut readers = Vec::new();
    for reader in 0..4_usize {
        let (live, store) = (Arc::clone(&live), rig.store.clone());
        readers.push(tokio::spawn(async move {
            for round in 0..rounds / 4 {
                let mut asked = by_n(u32::try_from(1 + 5 * ((round + reader) % 6)).expect("small"));
                asked.query.order[0].descending = round % 3 == 0;
                if round % 2 == 1 {
                    let values = vec![Value::Int(i64::try_from(8 * (round % 5)).expect("small"))];
                    asked.query.after = Some(RowCursor { values, key: "l0-5".into() });
                }
                let mut viewer = Viewer::new(tenant("acme"), asked.clone());
                viewer.connect(&*live).await.expect("a good query");
                viewer.take_until_ready().await;
                let soon = std::time::Duration::from_millis(3);
                for _ in 0..round % 3 {
                    // Nothing of its window may ever change again.
                    if let Ok(taken) = tokio::time::timeout(soon, viewer.take()).await {
                        taken.expect("it goes on");
                    }
                }
                // What the store has at the viewer's revision is what it has, once it got there.
                let page = store.query(&tenant("acme"), &asked.query).await.expect("a good query");
                while viewer.revision < page.revision.0 {
                    match tokio::time::timeout(soon, viewer.take()).await {
                        Ok(taken) => drop(taken.expect("it goes on")),
                        // Nothing of the window changes any more.
                        Err(_) => break,
                    }
                }
                if viewer.revision == page.revision.0 {
                    let keys: Vec<_> = page.rows.iter().map(|row| row.key.as_str()).collect();
                    assert_eq!(viewer.keys(), keys, "as of {}", page.revision);
                }
                let mut keys = viewer.keys();
                keys.sort_unstable();
                let count = keys.len();
                keys.dedup();
                assert_eq!(keys.len(), count, "no row is there twice");
            }
        }));
    }
    for reader in readers {
        reader.await.expect("no reader panics");
    }
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.expect("no writer panics");
    }
    let mut last = Viewer::new(tenant("acme"), by_n(50));
    last.connect(&*live).await.expect("a good query");
    last.take_until_ready().await;
    let page = rig.store.query(&tenant("acme"), &by_n(50).query).await.expect("a good query");
    assert_eq!(last.keys(), page.rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_race_writers_have_every_row_once() {
    race(1_000).await;
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
