//! Which rows a query is about and in which order, in the store and in windows that are kept alike.

use millrace::event::Micros;
use millrace::live::{LiveQueries as _, LiveQuery, Mode, Subscribe};
use millrace::tables::{
    Cell, ColumnType, Condition, Filter, Operator, Order, Query, RowCursor, TableSchema, Value,
};
use millrace_tests::conformance::effects::{Effects, column, table, tenant};
use millrace_tests::viewer::Viewer;
use serde_json::{Value as Json, json};

use super::rig::{Lane, PATIENCE, Rig, until_keys, watch};

/// A column of each type that can be sorted by.
fn mixed() -> TableSchema {
    let columns = [
        ("n", ColumnType::Int),
        ("label", ColumnType::Text),
        ("ratio", ColumnType::Float),
        ("flag", ColumnType::Bool),
        ("at", ColumnType::Timestamp),
    ];
    let columns = columns.into_iter().map(|(name, kind)| column(name, kind)).collect();
    TableSchema { columns, ..table("rows", false) }
}

const NULLS: [Cell<'static>; 5] = [Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null];

/// Rows whose cells are null but for one column.
async fn fill(lane: &Lane, column: usize, rows: &[(&str, Cell<'static>)]) {
    for (key, cell) in rows {
        let mut cells = NULLS;
        cells[column] = *cell;
        lane.commit(Effects::default().put(key, 1, &cells)).await;
    }
}

fn order(column: &str, descending: bool) -> Order {
    Order { column: column.into(), descending }
}

fn query(filter: Filter, order: Vec<Order>, limit: u32) -> LiveQuery {
    let query = Query { filter, order, limit, ..Query::all("rows") };
    LiveQuery { query, mode: Mode::Maintained, columns: None }
}

fn is(column: &str, operator: Operator, values: &[Value]) -> Filter {
    Filter::Is(Condition { column: column.into(), operator, values: values.to_vec() })
}

/// Each filter selects these keys, whether the rows were there before or come while the window is watched.
async fn selects(column: usize, rows: &[(&str, Cell<'static>)], cases: &[(Filter, &str)]) {
    let rig = Rig::with(mixed()).await;
    let lane = rig.lane("acme", 0).await;
    let live = rig.live();
    let mut early = Vec::new();
    for (filter, keys) in cases {
        early.push((watch(&live, query(filter.clone(), vec![], 50)).await, keys));
    }
    fill(&lane, column, rows).await;
    for (filter, keys) in cases {
        let asked = query(filter.clone(), vec![], 49);
        assert_eq!(rig.keys(&asked).await.concat(), *keys, "the store: {filter:?}");
        assert_eq!(watch(&live, asked).await.keys().concat(), *keys, "read: {filter:?}");
    }
    for (mut viewer, keys) in early {
        let keys: Vec<_> = keys.split("").filter(|key| !key.is_empty()).collect();
        until_keys(&mut viewer, &keys).await;
    }
}

#[tokio::test]
async fn f1_comparisons_nulls_and_conjunctions_select_alike_in_the_store_and_in_windows() {
    use Operator::{Eq, Gt, Gte, IsNotNull, IsNull, Lt, Lte, Ne};
    let n = |n| [Value::Int(n)];
    let rows = [("a", Cell::Int(1)), ("b", Cell::Int(2)), ("c", Cell::Int(3)), ("d", Cell::Null)];
    let both = Filter::All(vec![is("n", Operator::Gt, &n(1)), is("key", Lt, &[Value::Text("c".into())])]);
    let cases = [
        (is("n", Eq, &n(2)), "b"),
        (is("n", Ne, &n(2)), "ac"),
        (is("n", Gt, &n(2)), "c"),
        (is("n", Gte, &n(2)), "bc"),
        (is("n", Lt, &n(2)), "a"),
        (is("n", Lte, &n(2)), "ab"),
        (is("n", IsNull, &[]), "d"),
        (is("n", IsNotNull, &[]), "abc"),
        (both, "b"),
    ];
    selects(0, &rows, &cases).await;
}

#[tokio::test]
async fn f1_whole_numbers_are_compared_with_floats_by_their_value() {
    use Operator::{Eq, Gt, In, Lt};
    let rows = [("a", Cell::Float(2.5)), ("b", Cell::Float(3.0)), ("c", Cell::Float(-0.0))];
    let ratio = |ratio| [Value::Float(ratio)];
    let cases = [
        (is("ratio", Eq, &ratio(3.0)), "b"),
        (is("ratio", Eq, &ratio(0.0)), "c"),
        (is("ratio", Gt, &ratio(2.0)), "ab"),
        (is("ratio", Lt, &ratio(2.75)), "ac"),
        (is("ratio", In, &[Value::Float(3.0), Value::Float(0.0)]), "bc"),
    ];
    selects(2, &rows, &cases).await;
    // As clients write them: 3 is 3.0 where a column is of floats, and 3.0 is 3 where it is of integers.
    let rig = Rig::with(mixed()).await;
    let lane = rig.lane("acme", 0).await;
    fill(&lane, 2, &rows).await;
    fill(&lane, 0, &[("d", Cell::Int(3))]).await;
    let live = rig.live();
    for (column, value, key) in [("ratio", json!(3), "b"), ("n", json!(3.0), "d")] {
        let asked = json!({"table": "rows", "where": [{"column": column, "op": "eq", "value": value}]});
        assert_eq!(rig.ask(&live, &asked).await.viewer.keys(), [key], "{asked}");
    }
}

#[tokio::test]
async fn f2_lists_patterns_and_alternatives_select_alike_in_the_store_and_in_windows() {
    use Operator::{Eq, ILike, In, Like, NotIn};
    let text = |text: &str| Value::Text(text.into());
    let rows = [
        ("a", Cell::Text("Alpha")),
        ("b", Cell::Text("alp%ha")),
        ("c", Cell::Text("bravo")),
        ("d", Cell::Null),
    ];
    let either = |one: &str, other: &str| {
        Filter::Any(vec![is("label", Eq, &[text(one)]), is("label", Eq, &[text(other)])])
    };
    let cases = [
        (is("label", In, &[text("Alpha"), text("bravo"), text("x")]), "ac"),
        (is("label", NotIn, &[text("Alpha"), text("x")]), "bc"),
        (is("label", Like, &[text("Al%")]), "a"),
        (is("label", Like, &[text("%av%")]), "c"),
        (is("label", Like, &[text("_lp%a")]), "ab"),
        (is("label", Like, &[text("lph%")]), ""),
        (is("label", ILike, &[text("AL%")]), "ab"),
        (either("bravo", "x"), "c"),
        (either("x", "y"), ""),
        (Filter::Not(Box::new(is("label", In, &[text("Alpha")]))), "bcd"),
    ];
    selects(1, &rows, &cases).await;
}

#[tokio::test]
async fn o1_rows_are_in_the_order_of_each_column_and_then_of_their_keys() {
    let rig = Rig::with(mixed()).await;
    let lane = rig.lane("acme", 0).await;
    let live = rig.live();
    let asked = || query(Filter::default(), vec![order("n", false), order("label", true)], 20);
    let mut early = watch(&live, asked()).await;
    for (key, n, label) in
        [("z", 1, "a"), ("b", 1, "b"), ("c", 2, "a"), ("y", 1, "b"), ("a", 2, "a"), ("x", 0, "a")]
    {
        let cells = [Cell::Int(n), Cell::Text(label), Cell::Null, Cell::Null, Cell::Null];
        lane.commit(Effects::default().put(key, 1, &cells)).await;
    }
    let expected = ["x", "b", "y", "z", "a", "c"];
    assert_eq!(rig.keys(&asked()).await, expected);
    until_keys(&mut early, &expected).await;
    assert_eq!(watch(&live, asked()).await.keys(), expected);
}

#[tokio::test]
async fn o2_frames_have_the_seven_names() {
    use futures_util::StreamExt as _;
    let rig = Rig::with(mixed()).await;
    let lane = rig.lane("acme", 0).await;
    let live = rig.live();
    let n = |n| [Cell::Int(n), Cell::Null, Cell::Null, Cell::Null, Cell::Null];
    let mut viewer = Viewer::new(tenant("acme"), query(Filter::default(), vec![order("n", false)], 10));
    viewer.connect(&live).await.expect("a good query");
    let mut member = query(is("n", Operator::Gt, &[Value::Int(4)]), vec![], 10);
    member.mode = Mode::Streamed;
    let member = Subscribe { tenant: tenant("acme"), query: member, resume: None };
    let mut members = live.subscribe(member).await.expect("a good query").batches;
    viewer.take_until_ready().await;
    for (key, cells) in [("a", n(1)), ("b", n(5)), ("a", n(7)), ("b", n(5))] {
        lane.commit(Effects::default().put(key, 1, &cells)).await;
    }
    lane.commit(Effects::default().put("b", 1, &n(0))).await;
    lane.commit(Effects::default().delete("b", 1)).await;
    until_keys(&mut viewer, &["a"]).await;
    while viewer.names.last().is_none_or(|name| name != "leave") {
        viewer.take().await.expect("it goes on");
    }
    let mut names: Vec<_> = viewer.names.iter().map(String::as_str).collect();
    names.dedup();
    assert_eq!(names.join(" "), "reset ready enter move update move leave");
    let mut names = Vec::new();
    while names.last() != Some(&"unmatch") {
        let batch = tokio::time::timeout(PATIENCE, members.next()).await.expect("something comes");
        names.extend(batch.expect("it goes on").expect("nothing fails").names().collect::<Vec<_>>());
    }
    assert_eq!(names.join(" "), "reset ready match match update unmatch");
}

/// Rows in the order that they have by one column: nulls first, every digit, every byte, every microsecond.
fn sorted(column: &str) -> (usize, Vec<(&'static str, Cell<'static>)>) {
    let at = |text: &str| Cell::Timestamp(Micros::parse(text).expect("a time").0);
    match column {
        "n" => {
            let cells = [i64::MIN, -1, 0, 9_007_199_254_740_992, 9_007_199_254_740_993, i64::MAX];
            (0, keyed(cells.map(Cell::Int)))
        }
        "label" => (1, keyed(["", " ", "Z", "a", "a\u{0}", "ab", "z", "é", "\u{10000}"].map(Cell::Text))),
        "ratio" => (2, keyed([-1e300, -1.5, 0.0, 0.1, 1.0, 1e15, 1e300].map(Cell::Float))),
        "flag" => (3, keyed([false, true].map(Cell::Bool))),
        // Fractions of different lengths, and another zone: times, not texts.
        _ => {
            let times = [
                "1969-12-31T23:59:59.9Z",
                "2013-01-01T00:00:00Z",
                "2013-01-01T00:00:00.000001Z",
                "2013-01-01T00:00:00.1Z",
                "2013-01-01T01:00:00.11+01:00",
            ];
            (4, keyed(times.map(at)))
        }
    }
}

/// Two nulls, and then the others: keys go the other way, so that they do not sort by chance.
fn keyed<const N: usize>(cells: [Cell<'static>; N]) -> Vec<(&'static str, Cell<'static>)> {
    let keys = ["k8", "k7", "k6", "k5", "k4", "k3", "k2", "k1", "k0"];
    let mut rows = vec![("null0", Cell::Null), ("null1", Cell::Null)];
    rows.extend(keys.into_iter().zip(cells));
    rows
}

#[tokio::test]
async fn n6_nulls_texts_times_and_large_numbers_have_one_order_in_the_store_and_in_windows() {
    for name in ["n", "label", "ratio", "flag", "at"] {
        let (place, rows) = sorted(name);
        let rig = Rig::with(mixed()).await;
        let lane = rig.lane("acme", 0).await;
        let live = rig.live();
        let asked = |descending, limit| query(Filter::default(), vec![order(name, descending)], limit);
        let mut early = [watch(&live, asked(false, 50)).await, watch(&live, asked(true, 50)).await];
        // They come in an order of their own.
        let mut mingled = rows.clone();
        mingled.rotate_left(3);
        mingled.swap(0, rows.len() - 1);
        fill(&lane, place, &mingled).await;
        for (viewer, descending) in early.iter_mut().zip([false, true]) {
            let mut expected: Vec<_> = rows.iter().map(|(key, _)| *key).collect();
            if descending {
                // Rows of one value stay in the order of their keys.
                expected.reverse();
                let last = expected.len() - 2;
                expected[last..].reverse();
            }
            assert_eq!(rig.keys(&asked(descending, 49)).await, expected, "{name} in the store");
            until_keys(viewer, &expected).await;
            anchored(&rig, name, descending, viewer, &expected).await;
        }
    }
}

/// A window behind any of the rows is the rest, by the cursor that the row's frame would have.
async fn anchored(rig: &Rig, column: &str, descending: bool, viewer: &Viewer, expected: &[&str]) {
    let live = rig.live();
    let whole = json!({"table": "rows", "sort": [{"column": column, "desc": descending}], "limit": 50});
    let mut moving = rig.ask(&live, &whole).await;
    for (place, row) in viewer.rows.iter().enumerate() {
        let cursor = json!({"values": [row[column], row["key"]]});
        moving.reanchor(&cursor, None).await;
        assert_eq!(moving.viewer.keys(), expected[place + 1..], "behind {cursor}");
    }
}

#[tokio::test]
async fn n6_the_cursor_of_a_null_is_told_from_the_head() {
    let rig = Rig::with(mixed()).await;
    let lane = rig.lane("acme", 0).await;
    fill(&lane, 0, &[("a", Cell::Null), ("b", Cell::Null), ("c", Cell::Int(0))]).await;
    let live = rig.live();
    let mut asked = query(Filter::default(), vec![order("n", false)], 10);
    asked.query.after = Some(RowCursor { values: vec![Value::Null], key: "a".into() });
    let mut viewer = watch(&live, asked.clone()).await;
    assert_eq!(viewer.keys(), ["b", "c"]);
    assert_eq!(rig.keys(&asked).await, ["b", "c"]);
    fill(&lane, 0, &[("aa", Cell::Null), ("A", Cell::Null), ("d", Cell::Int(-1))]).await;
    until_keys(&mut viewer, &["aa", "b", "d", "c"]).await;
    let head: Json = json!({"values": null});
    let mut moving = rig.ask(&live, &json!({"table": "rows", "sort": [{"column": "n"}], "limit": 2})).await;
    moving.reanchor(&head, Some(1)).await;
    assert_eq!(moving.viewer.keys(), ["A"]);
}
