//! Claims about tables.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::sync::Arc;

use millrace::backends::sqlite::{SqliteOptions, SqliteStore};
use millrace::checkpoints::CheckpointStore;
use millrace::clock::ManualClock;
use millrace::event::Micros;
use millrace::limits::TOMBSTONE_AGE_MAX;
use millrace::tables::{Cell, TableStore, matches_ilike, matches_like};
use millrace_tests::conformance::Seams;
use millrace_tests::conformance::effects::{Effects, commit, table, task};

async fn sqlite_seams() -> (Seams, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(SqliteOptions::new(dir.path())).unwrap());
    let seams =
        Seams { log: store.clone(), checkpoints: store.clone(), tables: store.clone(), deployments: store };
    (seams, dir)
}

millrace_tests::tables_conformance!(sqlite, sqlite_seams);

#[test]
fn like_is_a_walk_and_not_a_search_tree() {
    assert!(matches_like("%", "") && matches_like("", "") && !matches_like("", "a"));
    assert!(matches_like("a%b%c", "aXbXbXc") && !matches_like("a%b%c", "aXbXbX"));
    assert!(matches_like("_%_", "ab") && !matches_like("_%_", "a"));
    assert!(matches_like("Z_rich", "Zürich") && !matches_like("z%", "Zürich"));
    assert!(matches_ilike("z%H", "Zürich") && !matches_ilike("ZÜ%", "zürich"));
    // Takes forever where each `%` starts a search of its own.
    assert!(!matches_like(&"a%".repeat(40), &"a".repeat(39)));
    assert!(!matches_like(&format!("{}b", "a%".repeat(40)), &"a".repeat(5_000)));
}

#[tokio::test]
async fn old_tombstones_go() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    clock.set(Micros(1));
    let store =
        SqliteStore::open(SqliteOptions { clock: clock.clone(), ..SqliteOptions::new(dir.path()) }).unwrap();
    let tables = [table("rows", true)];
    store.declare("board", &tables).await.unwrap();
    let owner = task("board", "acme", 0);
    let (generation, _) = store.claim(&owner).await.unwrap();
    let mut effects = Effects::default();
    store.commit(commit(&owner, generation, 1, &tables, effects.delete("k", 5))).await.unwrap();
    let late = |effects: &mut Effects| {
        commit(&owner, generation, 2, &tables, effects.put("k", 4, &[Cell::Int(1), Cell::Null]))
    };
    assert_eq!(store.commit(late(&mut effects)).await.unwrap().stale, 1);
    clock.set(Micros(i64::try_from(TOMBSTONE_AGE_MAX.as_micros()).unwrap() + 1_000));
    let mut waited = tokio::time::interval(std::time::Duration::from_millis(50));
    let gone = async {
        while store.commit(late(&mut effects)).await.unwrap().stale == 1 {
            waited.tick().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("the tombstone went");
}

#[tokio::test]
async fn declaring_what_is_there_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(SqliteOptions::new(dir.path())).unwrap();
    let tables = [table("rows", true), table("others", false)];
    store.declare("board", &tables).await.unwrap();
    // Another connection sees the number change with every transaction that wrote something.
    let other = rusqlite::Connection::open(dir.path().join("millrace.db")).unwrap();
    let writes = || other.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = writes();
    store.declare("board", &tables).await.unwrap();
    assert_eq!(writes(), before);
    store.declare("board", &[table("more", false)]).await.unwrap();
    assert_ne!(writes(), before, "a new table is written");
}
