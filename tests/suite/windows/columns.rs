//! Tables that get other columns while they are watched.

use std::sync::Arc;
use std::time::Duration;

use millrace::error::Classify as _;
use millrace::event::{Epoch, TenantId};
use millrace::limits::{LIVE_DRIFT_CHECKS, LIVE_VIEWS_MAX};
use millrace::live::{LiveEngine, LiveQuery, Mode};
use millrace::tables::{ColumnType, Condition, Filter, Operator, Order, Query, TableSchema, Value};
use millrace_tests::meddler::Meddler;
use millrace_tests::model::{board, column};
use millrace_tests::shelf::Shelf;
use millrace_tests::viewer::Viewer;
use serde_json::json;

const NEVER: Duration = Duration::from_secs(3_600);

struct Rig {
    shelf: Shelf,
    meddler: Meddler,
    live: LiveEngine,
}

fn rig(schema: TableSchema, check_every: Duration) -> Rig {
    let shelf = Shelf::new(schema);
    let meddler = Meddler::new(Arc::new(shelf.clone()));
    let tables = Arc::new(meddler.clone());
    let live = LiveEngine::checked_every(check_every, tables, Epoch("one".into()), LIVE_VIEWS_MAX);
    Rig { shelf, meddler, live }
}

impl Rig {
    async fn watch(&self, query: LiveQuery) -> Viewer {
        let mut viewer = Viewer::new(TenantId::new("acme").expect("a good name"), query);
        viewer.connect(&self.live).await.expect("a good query");
        viewer.take_until_ready().await;
        viewer
    }
}

fn by(name: &str, descending: bool, limit: u32) -> LiveQuery {
    let order = vec![Order { column: name.into(), descending }];
    LiveQuery { query: Query { order, limit, ..Query::all("board") }, mode: Mode::Maintained, columns: None }
}

/// Lets the engine do what it can do.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn row(rank: Value) -> Option<Vec<Value>> {
    Some(vec![rank, Value::Text("red".into()), Value::Int(0)])
}

/// The store has them before it tells of them, and what tells of them may come as late as it likes.
#[tokio::test]
async fn other_columns_are_shown_before_anybody_is_told_of_them_and_late_news_harm_nobody() {
    let mut before = board();
    before.columns.push(column("due", ColumnType::Int));
    let rig = rig(before, NEVER);
    let Rig { shelf, meddler, .. } = &rig;
    let mut viewer = rig.watch(by("rank", false, 10)).await;
    meddler.hold_news();
    // News of rows that lack what the table has afterwards, where the order is to look for it.
    let cells = |rank| vec![Value::Int(rank), Value::Text("red".into()), Value::Int(0), Value::Int(7)];
    shelf.commit(&[("a".into(), Some(cells(1))), ("b".into(), Some(cells(2)))]);
    settle().await;
    let mut after = board();
    after.columns.rotate_left(1);
    for name in ["two", "one"] {
        after.columns.insert(0, column(name, ColumnType::Int));
    }
    shelf.set_schema(after);
    let cells = |rank| {
        let own = [Value::Int(1), Value::Int(2), Value::Text("blue".into()), Value::Int(0), Value::Int(rank)];
        Some(own.to_vec())
    };
    shelf.commit(&[("a".into(), cells(3)), ("b".into(), None), ("c".into(), cells(1))]);
    shelf.lose();
    let row = |key, rank| json!({"key": key, "one": 1, "two": 2, "team": "blue", "note": 0, "rank": rank});

    let mut second = rig.watch(by("rank", false, 5)).await;
    assert_eq!(second.rows, [row("c", 1), row("a", 3)], "who comes waits for no news");
    viewer.take().await.unwrap();
    assert_eq!(viewer.rows, [row("c", 1), row("a", 3)], "who was there neither");

    meddler.let_news_go();
    shelf.commit(&[("d".into(), cells(2))]);
    for viewer in [&mut viewer, &mut second] {
        while viewer.rows.len() < 3 {
            viewer.take().await.expect("late news break no view");
        }
        assert_eq!(viewer.rows, [row("c", 1), row("d", 2), row("a", 3)]);
    }
}

/// A row that leaves is told of by what it had; the value that it stood by is of the old type, and no longer told.
#[tokio::test]
async fn a_window_moves_on_when_what_it_is_ordered_by_gets_another_type() {
    for (descending, expected) in [(true, ["d", "b"]), (false, ["a", "c"])] {
        let rig = rig(board(), NEVER);
        let rows = |rank: fn(i64) -> Value, keys: [(&str, i64); 4]| {
            keys.map(|(key, number)| (key.to_owned(), row(rank(number))))
        };
        rig.shelf.commit(&rows(Value::Int, [("a", -5), ("b", 4), ("c", i64::MAX), ("d", 1_356_998_400)]));
        let mut viewer = rig.watch(by("rank", descending, 2)).await;
        let mut schema = board();
        schema.columns[0] = column("rank", ColumnType::Text);
        rig.shelf.set_schema(schema);
        let text = |number: i64| Value::Text(number.to_string());
        rig.shelf.commit(&rows(text, [("a", 1), ("b", 3), ("c", 2), ("d", 4)]));
        rig.shelf.lose();
        viewer.take().await.expect("it is told what is different");
        assert_eq!(viewer.keys(), expected);
        assert_eq!(viewer.rows[0]["rank"], if descending { "4" } else { "1" });
        rig.shelf.commit(&[(expected[0].into(), None)]);
        viewer.take().await.expect("it goes on");
        assert_eq!(viewer.keys()[0], expected[1]);
    }
}

#[tokio::test]
async fn a_window_that_is_longer_than_its_table_allows_now_ends_and_a_shorter_one_is_read_no_oftener() {
    let rig = rig(board(), NEVER);
    let rows: Vec<_> = (0..60).map(|n| (format!("k{n:02}"), row(Value::Int(n)))).collect();
    rig.shelf.commit(&rows);
    let mut long = rig.watch(by("rank", false, 20)).await;
    let mut short = rig.watch(by("rank", false, 10)).await;
    rig.shelf.set_schema(TableSchema { window_rows_max: 10, ..board() });
    rig.shelf.lose();
    assert_eq!(long.take().await.unwrap_err().code(), "live_columns_changed");
    settle().await;
    let reads = rig.shelf.reads();
    for n in 0..20 {
        rig.shelf.commit(&[(format!("k{:02}", n % 10), row(Value::Int(-1 - n)))]);
        short.take().await.expect("it goes on");
        settle().await;
    }
    assert_eq!(rig.shelf.reads(), reads, "no row left the window");
    assert_eq!(short.rows.len(), 10);
}

#[tokio::test]
async fn a_condition_whose_column_has_another_type_now_ends_the_query() {
    let rig = rig(board(), NEVER);
    let mut asked = by("note", false, 10);
    let (column_name, operator) = ("rank".to_owned(), Operator::Gt);
    asked.query.filter = Filter::Is(Condition { column: column_name, operator, values: vec![Value::Int(3)] });
    let mut viewer = rig.watch(asked).await;
    let mut schema = board();
    schema.columns[0] = column("rank", ColumnType::Text);
    rig.shelf.set_schema(schema);
    rig.shelf.lose();
    assert_eq!(viewer.take().await.unwrap_err().code(), "live_columns_changed");
}

#[tokio::test]
async fn who_asks_by_a_new_column_is_answered_before_anybody_is_told_of_it() {
    let rig = rig(board(), NEVER);
    rig.shelf.commit(&[("a".into(), row(Value::Int(1)))]);
    let mut viewer = rig.watch(by("rank", false, 10)).await;
    rig.meddler.hold_news();
    let mut schema = board();
    schema.columns.push(column("due", ColumnType::Int));
    rig.shelf.set_schema(schema);
    let due = |rank, due| {
        let mut cells = row(Value::Int(rank));
        cells.iter_mut().for_each(|cells| cells.push(Value::Int(due)));
        cells
    };
    rig.shelf.commit(&[("a".into(), due(1, 9)), ("b".into(), due(2, 8))]);
    let second = rig.watch(by("due", false, 10)).await;
    assert_eq!(second.keys(), ["b", "a"]);
    viewer.take().await.expect("it is told what is different");
    assert_eq!(viewer.keys(), ["a", "b"]);
}

#[tokio::test]
async fn a_check_takes_other_columns_for_no_fault() {
    let every = Duration::from_millis(2);
    let rig = rig(board(), every);
    rig.shelf.commit(&[("a".into(), row(Value::Int(1)))]);
    let mut viewer = rig.watch(by("rank", false, 10)).await;
    rig.meddler.hold_news();
    let mut schema = board();
    schema.columns.rotate_right(1);
    rig.shelf.set_schema(schema);
    let cells = vec![Value::Int(0), Value::Int(5), Value::Text("red".into())];
    rig.shelf.commit(&[("a".into(), Some(cells))]);
    viewer.take().await.expect("a check sees them first");
    assert_eq!(viewer.rows, [json!({"key": "a", "note": 0, "rank": 5, "team": "red"})]);
    // Long enough for a difference that stays to count as one.
    let reads = rig.shelf.reads() + 4 * usize::try_from(LIVE_DRIFT_CHECKS).expect("few");
    while rig.shelf.reads() < reads {
        tokio::time::sleep(every).await;
    }
    assert_eq!(rig.live.repaired(), 0);
}
