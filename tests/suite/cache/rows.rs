//! Rows by key through the cache: the same answers as without it, at every moment. What is given a level runs on every
//! one.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use millrace::backends::sqlite::{CommitStep, SqliteOptions, SqliteStore, StepObserver};
use millrace::cache::{CacheOptions, CachedTables, ReadThrough};
use millrace::checkpoints::{CheckpointStore, Generation, TaskId};
use millrace::config::{Right, TableRuleConfig, TablesConfig};
use millrace::event::Revision;
use millrace::tables::{Cell, ColumnType, Query, Row, TableSchema, TableStore, Value};
use millrace_tests::conformance::effects::{Effects, column, commit, table, task};
use millrace_tests::embedded::{Embedded, token};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Counting, Level, memory_level, tenant, two_levels};

/// A store with table `rows`, and the tables through a cache.
struct Rig {
    store: Arc<SqliteStore>,
    tables: Arc<CachedTables>,
    cache: ReadThrough,
    second: Arc<Counting>,
    owner: TaskId,
    generation: Generation,
    schema: TableSchema,
    position: u64,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        Self::on(memory_level()).await
    }

    async fn on(level: Level) -> Self {
        Self::observed(level, None).await
    }

    async fn observed(level: Level, observer: Option<StepObserver>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteOptions { observer, ..SqliteOptions::new(dir.path()) };
        let store = Arc::new(SqliteStore::open(options).unwrap());
        let second = Counting::over(level);
        let cache = two_levels(100, &second);
        let tables = Arc::new(CachedTables::new(store.clone(), cache.clone()));
        let schema = table("rows", true);
        store.declare("board", std::slice::from_ref(&schema)).await.unwrap();
        let owner = task("board", "acme", 0);
        let (generation, _) = store.claim(&owner).await.unwrap();
        Self { store, tables, cache, second, owner, generation, schema, position: 0, _dir: dir }
    }

    async fn commit(&mut self, effects: &mut Effects) -> Revision {
        self.position += 1;
        let tables = [self.schema.clone()];
        let commit = commit(&self.owner, self.generation, self.position, &tables, effects);
        self.store.commit(commit).await.unwrap().revision
    }

    async fn put(&mut self, key: &str, n: i64) -> Revision {
        let version = u64::try_from(n).unwrap();
        self.commit(Effects::default().put(key, version, &[Cell::Int(n), Cell::Text("a label")])).await
    }

    async fn get(&self, key: &str) -> (Revision, Option<Row>) {
        self.tables.get(&tenant("acme"), "rows", key).await.unwrap()
    }

    /// How often the second level is asked by a read: not at all where the first one answers.
    async fn is_warm(&self, key: &str) -> bool {
        let asked = self.second.gets();
        self.get(key).await;
        self.second.gets() == asked
    }
}

fn n(row: Option<&Row>) -> Option<i64> {
    match row?.cells[0] {
        Value::Int(n) => Some(n),
        _ => None,
    }
}

pub(super) async fn c77_a_read_after_a_commit_is_never_older_than_it(level: Level) {
    let mut rig = Rig::on(level).await;
    for version in 1..=50 {
        let committed = rig.put("k", version).await;
        for _ in 0..2 {
            let (revision, row) = rig.get("k").await;
            assert_eq!(n(row.as_ref()), Some(version));
            assert!(revision >= committed, "it says what it is exact at");
        }
        assert!(rig.is_warm("k").await);
    }
    let committed = rig.commit(Effects::default().delete("k", 51)).await;
    assert_eq!(rig.get("k").await, (committed, None));
}

pub(super) async fn c77_after_a_commit_only_the_changed_row_is_loaded(level: Level) {
    let mut rig = Rig::on(level).await;
    for key in ["a", "b"] {
        rig.put(key, 1).await;
        rig.get(key).await;
    }
    let committed = rig.put("a", 2).await;
    assert!(rig.is_warm("b").await && !rig.is_warm("a").await && rig.is_warm("a").await);
    assert_eq!(rig.get("b").await.0, committed, "a copy is the row as of the last commit");
}

pub(super) async fn c77_a_list_after_a_commit_has_what_it_wrote_and_lacks_what_it_deleted(level: Level) {
    let mut rig = Rig::on(level).await;
    let acme = tenant("acme");
    let query = Query::all("rows");
    let list = async |rig: &Rig, committed: Revision| {
        let mut last = None;
        // The second time from wherever the first has put it.
        for _ in 0..2 {
            let page = rig.tables.query(&acme, &query).await.unwrap();
            assert!(page.revision >= committed, "it says what it is exact at");
            let rows: Vec<(String, Option<i64>)> =
                page.rows.iter().map(|row| (row.key[..].to_owned(), n(Some(row)))).collect();
            assert!(last.is_none_or(|last| last == rows));
            last = Some(rows);
        }
        last.unwrap()
    };
    let is = |rows: &[(&str, i64)]| -> Vec<_> {
        rows.iter().map(|(key, n)| ((*key).to_owned(), Some(*n))).collect()
    };
    rig.put("a", 1).await;
    let committed = rig.put("b", 1).await;
    assert_eq!(list(&rig, committed).await, is(&[("a", 1), ("b", 1)]));
    let committed = rig.put("a", 2).await;
    assert_eq!(list(&rig, committed).await, is(&[("a", 2), ("b", 1)]));
    let committed = rig.put("c", 1).await;
    assert_eq!(list(&rig, committed).await, is(&[("a", 2), ("b", 1), ("c", 1)]));
    let committed = rig.commit(Effects::default().delete("b", 2)).await;
    assert_eq!(list(&rig, committed).await, is(&[("a", 2), ("c", 1)]));
}

/// The store's answer and the cache's are compared when the commit can be read and nobody knows of it yet, and after
/// each other step of the commit.
pub(super) async fn c77_whoever_sees_a_commit_in_the_store_sees_it_in_the_cache(level: Level) {
    type Seen = Vec<(CommitStep, Revision, Option<i64>, Revision, Option<i64>)>;
    let tables: Arc<Mutex<Option<Arc<CachedTables>>>> = Arc::default();
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let (through, list, runtime) =
        (Arc::clone(&tables), Arc::clone(&seen), tokio::runtime::Handle::current());
    let observer = StepObserver(Arc::new(move |step| {
        let Some(tables) = through.lock().unwrap().clone() else { return };
        let acme = tenant("acme");
        let all = Query::all("rows");
        let page = runtime.block_on(tables.query(&acme, &all)).unwrap();
        let (revision, row) = runtime.block_on(tables.get(&acme, "rows", "k")).unwrap();
        list.lock().unwrap().push((step, page.revision, n(page.rows.first()), revision, n(row.as_ref())));
    }));
    let mut rig = Rig::observed(level, Some(observer)).await;
    rig.put("k", 1).await;
    rig.get("k").await;
    *tables.lock().unwrap() = Some(Arc::clone(&rig.tables));
    for version in 2..=5 {
        rig.put("k", version).await;
        rig.get("k").await;
    }
    *tables.lock().unwrap() = None;
    // The committer's thread may still be at the last step of the one before.
    rig.put("k", 6).await;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen.iter().any(|(step, ..)| *step == CommitStep::Synced));
    for (step, stored_at, stored, cached_at, cached) in seen {
        assert_eq!(stored, cached, "{step:?}, of {stored_at} and {cached_at}");
    }
}

/// A reader that began before a commit keeps nothing that is older than it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn16_rows_stay_right_under_many_readers_and_a_writer() {
    let mut rig = Rig::new().await;
    rig.put("k", 1).await;
    let told = Arc::new(AtomicI64::new(1));
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (tables, told) = (Arc::clone(&rig.tables), Arc::clone(&told));
        readers.spawn(async move {
            loop {
                let before = told.load(Ordering::SeqCst);
                let (_, row) = tables.get(&tenant("acme"), "rows", "k").await.unwrap();
                let read = n(row.as_ref()).unwrap();
                assert!(read >= before, "{read} is older than {before}");
                if read == 300 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for version in 2..=300 {
        rig.put("k", version).await;
        told.store(version, Ordering::SeqCst);
    }
    readers.join_all().await;
}

#[tokio::test]
async fn a_column_that_is_added_is_in_the_next_answer() {
    let mut rig = Rig::new().await;
    rig.put("k", 1).await;
    rig.get("k").await;
    rig.schema.columns.push(column("late", ColumnType::Bool));
    rig.store.declare("board", std::slice::from_ref(&rig.schema)).await.unwrap();
    let (_, row) = rig.get("k").await;
    assert_eq!(row.unwrap().cells, [Value::Int(1), Value::Text("a label".into()), Value::Null]);
}

pub(super) async fn c77_every_type_comes_back_from_the_cache_as_it_was_stored(level: Level) {
    let mut rig = Rig::on(level).await;
    use ColumnType::{Bool, Bytes, Float, Int, Json, Text, Timestamp};
    let types = [Bool, Int, Float, Text, Bytes, Json, Timestamp, Text];
    let columns = types.into_iter().enumerate().map(|(at, of)| column(&format!("c{at}"), of)).collect();
    let wide = TableSchema { name: "wide".into(), columns, versioned: false, window_rows_max: 10 };
    rig.store.declare("board", std::slice::from_ref(&wide)).await.unwrap();
    rig.schema = wide;
    let cells = [
        Cell::Bool(true),
        Cell::Int(i64::MIN),
        Cell::Float(0.1),
        Cell::Text("größe\u{0}"),
        Cell::Bytes(&[0, 255]),
        Cell::Json(r#"{"n":9007199254740993,"m":1.10}"#),
        Cell::Timestamp(-1),
        Cell::Null,
    ];
    rig.commit(Effects::default().put("k", 1, &cells)).await;
    let acme = tenant("acme");
    let stored = rig.store.get(&acme, "wide", "k").await.unwrap();
    for _ in 0..2 {
        assert_eq!(rig.tables.get(&acme, "wide", "k").await.unwrap(), stored);
    }
    rig.cache.evict_all();
    assert_eq!(rig.tables.get(&acme, "wide", "k").await.unwrap(), stored, "from the second level");
}

/// What a second level still holds from before: of another life of the store, and after an outage of its own.
#[tokio::test]
async fn a_second_level_that_missed_everything_gives_no_older_row() {
    let mut rig = Rig::new().await;
    rig.put("k", 1).await;
    rig.get("k").await;
    rig.second.fail(true);
    rig.put("k", 2).await;
    rig.cache.evict_all();
    rig.second.fail(false);
    assert_eq!(n(rig.get("k").await.1.as_ref()), Some(2));
    // Another store with the same names, whose commits have the same numbers.
    let mut other = Rig::new().await;
    let shared = ReadThrough::new(&CacheOptions::default(), Some(rig.second.clone()));
    let tables = CachedTables::new(other.store.clone(), shared);
    other.put("k", 7).await;
    assert_eq!(n(tables.get(&tenant("acme"), "rows", "k").await.unwrap().1.as_ref()), Some(7));
}

#[tokio::test]
async fn c25_a_row_of_another_tenant_is_not_found() {
    let mut rig = Rig::new().await;
    rig.put("k", 1).await;
    rig.get("k").await;
    assert_eq!(rig.tables.get(&tenant("apex"), "rows", "k").await.unwrap().1, None);
    assert!(rig.tables.get(&tenant("acme"), "absent", "k").await.is_err());
}

/// A store that cannot say what changed is read every time.
pub(super) async fn c77_tables_of_a_store_that_does_not_tell_are_passed_through(level: Level) {
    let shelf = millrace_tests::shelf::Shelf::new(table("rows", false));
    let second = Counting::over(level);
    let cache = two_levels(10, &second);
    let tables = CachedTables::new(Arc::new(shelf.clone()), cache.clone());
    shelf.commit(&[("k".into(), Some(vec![Value::Int(1), Value::Null]))]);
    for version in 1..=3 {
        let row = tables.get(&tenant("acme"), "rows", "k").await.unwrap().1;
        assert_eq!(n(row.as_ref()), Some(version));
        shelf.commit(&[("k".into(), Some(vec![Value::Int(version + 1), Value::Null]))]);
    }
    assert_eq!((cache.size().0, second.gets(), second.writes()), (0, 0, 0), "no level is asked");
}

fn event(agg_id: &str, version: u64) -> String {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": "changed", "payload": {"n": version}})
        .to_string()
}

/// A row follows every publish and is not sent again while nothing changes, over a second level at an address, whether it
/// is there or not.
pub(super) async fn a_row_over_http(address: String) -> Result<Embedded> {
    let host = Embedded::start_with(|config| config.cache.redis = Some(address)).await?;
    host.client.deploy("counter").await?;
    let key = "a%20b/c%2Fd";
    let mut last = None;
    for version in 1..=3 {
        host.client.publish(event("a b/c/d", version)).await?;
        host.client.settle().await?;
        for _ in 0..2 {
            let answer = host.client.get(&format!("/v1/tables/counters/{key}")).await?;
            assert_eq!(answer.json()["row"]["values"]["events"], version, "{}", answer.text());
            assert_eq!(answer.json()["row"]["key"], "a b/c/d");
            last = answer.etag;
        }
    }
    let path = format!("/v1/tables/counters/{key}");
    let request = host.client.request(reqwest::Method::GET, &path).header("if-none-match", last.unwrap());
    assert_eq!(host.client.send(request).await?.status, 304);
    let absent = host.client.get("/v1/tables/counters/absent").await?;
    assert_eq!(absent.refusal(), (404, "row_unknown".to_owned()));
    let said = host.host().tables().get(&tenant("default"), "counters", "a b/c/d").await?;
    assert!(said.1.is_some(), "the same in Rust");
    Ok(host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_credential_may_not_see_is_not_found_though_it_is_in_the_cache() -> Result<()> {
    let rule = TableRuleConfig { condition: Some("key:eq:mine".into()) };
    let rules = TablesConfig::Rules([("counters".to_owned(), rule)].into());
    let host = Embedded::start_with(|config| {
        let mut narrow = token("narrow", "acme", &[Right::Read]);
        narrow.tables = Some(rules);
        let all = [Right::Publish, Right::Read, Right::Admin];
        config.auth.tokens = vec![token("all", "acme", &all), token("other", "apex", &all), narrow];
    })
    .await?;
    let (all, narrow, other) =
        (host.client.with_token("all")?, host.client.with_token("narrow")?, host.client.with_token("other")?);
    all.deploy("counter").await?;
    all.publish([event("mine", 1), event("theirs", 1)].join("\n")).await?;
    all.settle().await?;
    for key in ["mine", "theirs"] {
        for _ in 0..2 {
            assert_eq!(all.get(&format!("/v1/tables/counters/{key}")).await?.status, 200);
        }
    }
    assert_eq!(narrow.get("/v1/tables/counters/mine").await?.status, 200);
    assert_eq!(narrow.get("/v1/tables/counters/theirs").await?.refusal(), (404, "row_unknown".into()));
    assert_eq!(other.get("/v1/tables/counters/mine").await?.refusal(), (404, "row_unknown".into()));
    Ok(())
}
