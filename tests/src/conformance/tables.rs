//! What every table store must do.

use std::cmp::Ordering;

use millrace::checkpoints::{Generation, TaskId};
use millrace::event::{Micros, Revision};
use millrace::tables::{
    Cell, ColumnType, Condition, Filter, InvalidQuery, Operator, Order, Query, Row, RowCursor, TableError,
    TableSchema, Value, matches_ilike, matches_like,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::Seams;
use super::effects::{Effects, column, commit, table, task, tenant};

/// Every type in a column of its name.
fn wide() -> TableSchema {
    use ColumnType::{Bool, Bytes, Float, Int, Json, Text, Timestamp};
    let columns = [
        ("flag", Bool),
        ("count", Int),
        ("ratio", Float),
        ("label", Text),
        ("raw", Bytes),
        ("doc", Json),
        ("seen", Timestamp),
    ];
    TableSchema {
        name: "wide".into(),
        columns: columns.into_iter().map(|(name, column_type)| column(name, column_type)).collect(),
        versioned: false,
        window_rows_max: 1_000,
    }
}

fn cell(value: &Value) -> Cell<'_> {
    match value {
        Value::Null => Cell::Null,
        Value::Bool(value) => Cell::Bool(*value),
        Value::Int(value) => Cell::Int(*value),
        Value::Float(value) => Cell::Float(*value),
        Value::Text(text) => Cell::Text(text),
        Value::Bytes(bytes) => Cell::Bytes(bytes),
        Value::Json(text) => Cell::Json(text),
        Value::Timestamp(at) => Cell::Timestamp(at.0),
    }
}

type Rows = Vec<(String, Vec<Value>)>;

/// Writes rows into a declared table. Answers the commit's revision.
async fn write(seams: &Seams, owner: (&TaskId, Generation), table: &TableSchema, rows: &Rows) -> Revision {
    let mut effects = Effects::default();
    for (key, values) in rows {
        effects.put(key, 1, &values.iter().map(cell).collect::<Vec<_>>());
    }
    let tables = [table.clone()];
    let commit = commit(owner.0, owner.1, 1, &tables, &mut effects);
    seams.checkpoints.commit(commit).await.expect("the rows can be written").revision
}

/// Declares a table and fills it.
async fn filled(seams: &Seams, table: &TableSchema, rows: &Rows) -> Revision {
    seams.tables.declare("board", std::slice::from_ref(table)).await.expect("the table can be declared");
    let owner = task("board", "acme", 0);
    let (generation, _) = seams.checkpoints.claim(&owner).await.expect("a claim succeeds");
    write(seams, (&owner, generation), table, rows).await
}

fn condition(column: &str, operator: Operator, values: &[Value]) -> Condition {
    Condition { column: column.into(), operator, values: values.to_vec() }
}

fn order(column: &str, descending: bool) -> Order {
    Order { column: column.into(), descending }
}

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.key.as_str()).collect()
}

async fn select(seams: &Seams, table: &str, conditions: Vec<Condition>) -> Vec<String> {
    let query = Query { filter: conditions.into(), ..Query::all(table) };
    let page = seams.tables.query(&tenant("acme"), &query).await.expect("the query succeeds");
    page.rows.into_iter().map(|row| row.key).collect()
}

pub async fn declared_table_is_listed(seams: Seams) {
    let tables = [table("rows", true), wide()];
    seams.tables.declare("board", &tables).await.unwrap();
    seams.tables.declare("board", &tables).await.unwrap();
    assert_eq!(seams.tables.schema("rows").unwrap(), tables[0]);
    let listed = seams.tables.list();
    assert_eq!(listed, [("board".to_owned(), tables[0].clone()), ("board".to_owned(), tables[1].clone())]);
    assert!(matches!(seams.tables.schema("absent"), Err(TableError::Unknown { .. })));
    let unknown = seams.tables.query(&tenant("acme"), &Query::all("absent")).await;
    assert!(matches!(unknown, Err(TableError::Unknown { .. })));
}

pub async fn table_of_another_plugin_is_owned(seams: Seams) {
    seams.tables.declare("board", &[table("rows", false)]).await.unwrap();
    let declared = [table("free", false), table("rows", false)];
    assert!(matches!(seams.tables.check("other", &declared), Err(TableError::Owned { .. })));
    match seams.tables.declare("other", &declared).await {
        Err(TableError::Owned { table, owner }) => {
            assert_eq!((table.as_str(), owner.as_str()), ("rows", "board"))
        }
        other => panic!("{other:?}"),
    }
    // All or nothing: the free one was not made either.
    assert!(seams.tables.schema("free").is_err());
}

pub async fn added_nullable_column_is_applied_in_place(seams: Seams) {
    let before = table("rows", false);
    let rows = vec![("k".to_owned(), vec![Value::Int(1), Value::Text("a".into())])];
    filled(&seams, &before, &rows).await;
    let mut after = before.clone();
    after.columns.insert(0, column("extra", ColumnType::Timestamp));
    after.columns[1].sortable = false;
    after.window_rows_max = 7;
    seams.tables.check("board", &[after.clone()]).unwrap();
    assert_eq!(seams.tables.schema("rows").unwrap(), before, "a check changes nothing");
    seams.tables.declare("board", &[after.clone()]).await.unwrap();
    assert_eq!(seams.tables.schema("rows").unwrap(), after);
    let (_, row) = seams.tables.get(&tenant("acme"), "rows", "k").await.unwrap();
    assert_eq!(row.unwrap().cells, [Value::Null, Value::Int(1), Value::Text("a".into())]);
    let owner = task("board", "acme", 0);
    let (generation, _) = seams.checkpoints.claim(&owner).await.unwrap();
    let later = vec![("l".to_owned(), vec![Value::Timestamp(Micros(5)), Value::Int(2), Value::Null])];
    write(&seams, (&owner, generation), &after, &later).await;
    // What the version before still has under way is written, too.
    write(&seams, (&owner, generation), &before, &vec![("m".to_owned(), rows[0].1.clone())]).await;
    let query = Query { order: vec![order("extra", true)], limit: 7, ..Query::all("rows") };
    let page = seams.tables.query(&tenant("acme"), &query).await.unwrap();
    assert_eq!(keys(&page.rows), ["l", "k", "m"]);
}

pub async fn other_changes_of_a_schema_are_refused(seams: Seams) {
    let mut before = table("rows", false);
    before.columns.push(millrace::tables::Column { nullable: false, ..column("must", ColumnType::Int) });
    seams.tables.declare("board", std::slice::from_ref(&before)).await.unwrap();
    let changed = |change: &dyn Fn(&mut TableSchema)| {
        let mut table = before.clone();
        change(&mut table);
        [table]
    };
    for tables in [
        changed(&|t| t.versioned = true),
        changed(&|t| drop(t.columns.pop())),
        changed(&|t| t.columns[0].column_type = ColumnType::Float),
        changed(&|t| t.columns[0].nullable = false),
        changed(&|t| {
            t.columns.push(millrace::tables::Column { nullable: false, ..column("x", ColumnType::Int) })
        }),
    ] {
        let refused = seams.tables.declare("board", &tables).await;
        assert!(matches!(refused, Err(TableError::SchemaChanged { .. })), "{refused:?}");
    }
    assert_eq!(seams.tables.schema("rows").unwrap(), before);
    let invalid = seams.tables.declare("board", &changed(&|t| t.name = "No".into())).await;
    assert!(matches!(invalid, Err(TableError::Schema(_))), "{invalid:?}");
}

pub async fn values_come_back_exactly(seams: Seams) {
    let rows: Rows = vec![
        (
            "big".into(),
            vec![
                Value::Bool(true),
                Value::Int(i64::MAX),
                Value::Float(0.1),
                Value::Text("Zürich \u{0} ✈".into()),
                Value::Bytes(vec![0, 255, 128]),
                Value::Json("{\"a\":  9007199254740993}".into()),
                Value::Timestamp(Micros(i64::MIN)),
            ],
        ),
        (
            "small".into(),
            vec![
                Value::Bool(false),
                Value::Int(i64::MIN),
                Value::Float(-5.0),
                Value::Text(String::new()),
                Value::Bytes(vec![]),
                Value::Json("null".into()),
                Value::Timestamp(Micros(0)),
            ],
        ),
        ("void".into(), vec![Value::Null; 7]),
    ];
    let revision = filled(&seams, &wide(), &rows).await;
    let page = seams.tables.query(&tenant("acme"), &Query::all("wide")).await.unwrap();
    assert_eq!((page.revision, page.next), (revision, None));
    for (row, (key, cells)) in page.rows.iter().zip(&rows) {
        assert_eq!((&row.key, &row.cells, row.revision, row.version), (key, cells, revision, 0));
    }
    for (key, value) in [("big", i64::MAX), ("small", i64::MIN)] {
        let found =
            select(&seams, "wide", vec![condition("count", Operator::Eq, &[Value::Int(value)])]).await;
        assert_eq!(found, [key]);
    }
    let near = Value::Int(i64::MAX - 1);
    assert!(select(&seams, "wide", vec![condition("count", Operator::Eq, &[near])]).await.is_empty());
}

pub async fn rows_are_inside_their_tenant(seams: Seams) {
    filled(&seams, &table("rows", false), &vec![("k".into(), vec![Value::Int(1), Value::Null])]).await;
    for name in ["beta", "never-seen"] {
        assert!(seams.tables.query(&tenant(name), &Query::all("rows")).await.unwrap().rows.is_empty());
        assert_eq!(seams.tables.get(&tenant(name), "rows", "k").await.unwrap().1, None);
    }
    assert_eq!(seams.tables.get(&tenant("acme"), "rows", "absent").await.unwrap().1, None);
}

pub async fn conditions_select(seams: Seams) {
    use Operator::{Eq, Gt, Gte, ILike, In, IsNotNull, IsNull, Like, Lt, Lte, Ne, NotIn};
    let text = |text: &str| Value::Text(text.into());
    let rows: Rows = [
        ("a", Value::Int(1), text("Alpha")),
        ("b", Value::Int(2), text("alp%ha")),
        ("c", Value::Int(3), text("ÄLPHA_x")),
        ("d", Value::Null, Value::Null),
    ]
    .into_iter()
    .map(|(key, n, label)| (key.to_owned(), vec![n, label]))
    .collect();
    filled(&seams, &table("rows", false), &rows).await;
    let n = |n| Value::Int(n);
    for (column, operator, values, expected) in [
        ("n", Eq, vec![n(2)], "b"),
        ("n", Ne, vec![n(2)], "ac"),
        ("n", Gt, vec![n(2)], "c"),
        ("n", Gte, vec![n(2)], "bc"),
        ("n", Lt, vec![n(2)], "a"),
        ("n", Lte, vec![n(2)], "ab"),
        ("n", In, vec![n(1), n(3), n(9)], "ac"),
        ("n", NotIn, vec![n(1), n(9)], "bc"),
        ("n", IsNull, vec![], "d"),
        ("n", IsNotNull, vec![], "abc"),
        ("label", Like, vec![text("Alp%")], "a"),
        ("label", Like, vec![text("alp%")], "b"),
        ("label", Like, vec![text("_lp%a")], "ab"),
        ("label", ILike, vec![text("ALP%")], "ab"),
        ("label", ILike, vec![text("äLPHA%")], ""),
        ("label", ILike, vec![text("Älpha__")], "c"),
        ("label", Gt, vec![text("Alpha")], "bc"),
        ("key", Eq, vec![text("c")], "c"),
        ("key", Like, vec![text("%")], "abcd"),
        ("version", Eq, vec![n(0)], "abcd"),
        ("revision", Lt, vec![n(1)], ""),
    ] {
        let found = select(&seams, "rows", vec![condition(column, operator, &values)]).await;
        assert_eq!(found.concat(), expected, "{column} {operator:?} {values:?}");
    }
    let both = vec![condition("n", Gt, &[n(1)]), condition("label", ILike, &[text("%h%")])];
    assert_eq!(select(&seams, "rows", both).await.concat(), "bc");
}

/// A filter, an order of two columns, and the page strictly after a row.
pub async fn x3_a_filtered_ordered_page_begins_strictly_after_its_cursor(seams: Seams) {
    let text = |text: &str| Value::Text(text.into());
    let rows: Rows =
        [("a", 1, "x"), ("b", 2, "x"), ("c", 2, "x"), ("d", 2, "y"), ("e", 3, "x"), ("f", 2, "a")]
            .into_iter()
            .map(|(key, n, label)| (key.to_owned(), vec![Value::Int(n), text(label)]))
            .collect();
    filled(&seams, &table("rows", false), &rows).await;
    let filter = vec![condition("n", Operator::Lt, &[Value::Int(3)])];
    let mut query = Query {
        filter: filter.into(),
        order: vec![order("n", true), order("label", false)],
        limit: 2,
        ..Query::all("rows")
    };
    let mut pages = Vec::new();
    loop {
        let page = seams.tables.query(&tenant("acme"), &query).await.unwrap();
        pages.push(keys(&page.rows).concat());
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(pages, ["fb", "cd", "a"]);
    // Strictly after, also where the row itself is not there.
    query.after = Some(RowCursor { values: vec![Value::Int(2), text("x")], key: "bb".into() });
    let page = seams.tables.query(&tenant("acme"), &query).await.unwrap();
    assert_eq!(keys(&page.rows).concat(), "cd");
}

pub async fn query_outside_its_table_is_refused(seams: Seams) {
    let mut schema = table("rows", false);
    schema.columns[0].filterable = false;
    schema.columns[0].sortable = false;
    filled(&seams, &schema, &vec![]).await;
    let refused = async |query: Query| match seams.tables.query(&tenant("acme"), &query).await {
        Err(TableError::Query(error)) => error,
        other => panic!("{other:?}"),
    };
    let all = || Query::all("rows");
    let by = |column: &str| vec![condition(column, Operator::IsNull, &[])];
    assert!(matches!(
        refused(Query { filter: by("x\" OR 1").into(), ..all() }).await,
        InvalidQuery::UnknownColumn { .. }
    ));
    assert!(matches!(
        refused(Query { filter: by("n").into(), ..all() }).await,
        InvalidQuery::NotFilterable { .. }
    ));
    let open = Query { scope: by("n").into(), ..all() };
    assert!(seams.tables.query(&tenant("acme"), &open).await.is_ok(), "a scope may be about any column");
    assert!(matches!(
        refused(Query { scope: by("other").into(), ..all() }).await,
        InvalidQuery::UnknownColumn { .. }
    ));
    let mistyped = vec![condition("n", Operator::Eq, &[Value::Text("1".into())])];
    assert!(matches!(refused(Query { scope: mistyped.into(), ..all() }).await, InvalidQuery::Type { .. }));
    let unsortable = Query { order: vec![order("n", false)], ..all() };
    assert!(matches!(refused(unsortable).await, InvalidQuery::NotSortable { .. }));
    assert!(matches!(refused(Query { limit: 101, ..all() }).await, InvalidQuery::Limit { .. }));
    let strange = Some(RowCursor { values: vec![Value::Null], key: "k".into() });
    assert!(matches!(refused(Query { after: strange, ..all() }).await, InvalidQuery::Cursor));
    let text = Value::Text("x".into());
    let many = vec![condition("label", Operator::In, &vec![text; 5_000])];
    assert!(matches!(refused(Query { filter: many.into(), ..all() }).await, InvalidQuery::Values { .. }));
}

pub async fn tombstones_are_not_rows(seams: Seams) {
    let tables = [table("rows", true)];
    filled(&seams, &tables[0], &vec![("k".into(), vec![Value::Int(1), Value::Null])]).await;
    let owner = task("board", "acme", 0);
    let (generation, _) = seams.checkpoints.claim(&owner).await.unwrap();
    let mut effects = Effects::default();
    seams.checkpoints.commit(commit(&owner, generation, 2, &tables, effects.delete("k", 2))).await.unwrap();
    assert!(select(&seams, "rows", vec![]).await.is_empty());
    assert!(select(&seams, "rows", vec![condition("n", Operator::IsNull, &[])]).await.is_empty());
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).expect("floats are finite"),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Json(a), Value::Json(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        other => panic!("{other:?} have different types"),
    }
}

/// A comparison with null is false, and `not` turns that round like anything else.
fn meets(filter: &Filter, holds: &impl Fn(&Condition) -> bool) -> bool {
    match filter {
        Filter::All(parts) => parts.iter().all(|part| meets(part, holds)),
        Filter::Any(parts) => parts.iter().any(|part| meets(part, holds)),
        Filter::Not(part) => !meets(part, holds),
        Filter::Is(condition) => holds(condition),
    }
}

/// What a query means, said once more without SQL.
fn model(table: &TableSchema, rows: &Rows, query: &Query) -> Vec<String> {
    let value = |row: &(String, Vec<Value>), column: &str| match column {
        "key" => Value::Text(row.0.clone()),
        named => row.1[table.column(named).expect("a known column").0].clone(),
    };
    let holds = |row: &(String, Vec<Value>), condition: &Condition| {
        let value = value(row, &condition.column);
        let ordering = || compare(&value, &condition.values[0]);
        match (condition.operator, &value) {
            (Operator::IsNull, value) => *value == Value::Null,
            (_, Value::Null) => false,
            (Operator::IsNotNull, _) => true,
            (Operator::Eq, _) => ordering().is_eq(),
            (Operator::Ne, _) => ordering().is_ne(),
            (Operator::Gt, _) => ordering().is_gt(),
            (Operator::Gte, _) => ordering().is_ge(),
            (Operator::Lt, _) => ordering().is_lt(),
            (Operator::Lte, _) => ordering().is_le(),
            (Operator::In, value) => condition.values.iter().any(|v| compare(v, value).is_eq()),
            (Operator::NotIn, value) => !condition.values.iter().any(|v| compare(v, value).is_eq()),
            (Operator::Like | Operator::ILike, Value::Text(text)) => {
                let Value::Text(pattern) = &condition.values[0] else { panic!("a pattern is text") };
                let matches = if condition.operator == Operator::Like { matches_like } else { matches_ilike };
                matches(pattern, text)
            }
            other => panic!("{other:?}"),
        }
    };
    let belongs = |row: &(String, Vec<Value>)| {
        meets(&query.scope, &|c| holds(row, c)) && meets(&query.filter, &|c| holds(row, c))
    };
    for row in rows {
        let key = Value::Text(row.0.clone());
        let by_name = |column: &str| match column {
            "key" => &key,
            named => &row.1[table.column(named).expect("a known column").0],
        };
        assert_eq!(query.holds(&by_name), belongs(row), "{query:?} of {row:?}");
    }
    let mut found: Vec<_> = rows.iter().filter(|row| belongs(row)).collect();
    found.sort_by(|a, b| {
        let mut ordering = Ordering::Equal;
        for order in &query.order {
            let one = compare(&value(a, &order.column), &value(b, &order.column));
            ordering = ordering.then(if order.descending { one.reverse() } else { one });
        }
        ordering.then_with(|| a.0.cmp(&b.0))
    });
    found.into_iter().map(|row| row.0.clone()).collect()
}

fn value_of(column_type: ColumnType) -> BoxedStrategy<Value> {
    let text = || prop::sample::select(vec!["", "a", "A", "ab", "aB", "b%", "Ä", "ab_", "z"]);
    match column_type {
        ColumnType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ColumnType::Int => {
            let edges = prop::sample::select(vec![i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX]);
            prop_oneof![-2..3_i64, edges].prop_map(Value::Int).boxed()
        }
        ColumnType::Float => prop::sample::select(vec![-1e300, -1.5, 0.0, 0.1, 1.0, 1e15, 1e300])
            .prop_map(Value::Float)
            .boxed(),
        ColumnType::Text => text().prop_map(|t| Value::Text(t.into())).boxed(),
        ColumnType::Bytes => text().prop_map(|t| Value::Bytes(t.into())).boxed(),
        ColumnType::Json => (0..3_u8).prop_map(|n| Value::Json(n.to_string())).boxed(),
        ColumnType::Timestamp => (-2..3_i64).prop_map(|t| Value::Timestamp(Micros(t))).boxed(),
    }
}

fn row_values() -> impl Strategy<Value = Vec<Value>> {
    wide()
        .columns
        .iter()
        .map(|c| prop_oneof![1 => Just(Value::Null), 4 => value_of(c.column_type)])
        .collect::<Vec<_>>()
}

fn any_condition() -> impl Strategy<Value = Condition> {
    use Operator::{Eq, Gt, Gte, ILike, In, IsNotNull, IsNull, Like, Lt, Lte, Ne, NotIn};
    prop::sample::select(wide().columns).prop_flat_map(|column| {
        let mut operators = vec![Eq, Ne, Gt, Gte, Lt, Lte, In, NotIn, IsNull, IsNotNull];
        if column.column_type == ColumnType::Text {
            operators.extend([Like, ILike]);
        }
        let values = prop::collection::vec(value_of(column.column_type), 1..4);
        (prop::sample::select(operators), values).prop_map(move |(operator, mut values)| {
            values.truncate(match operator {
                IsNull | IsNotNull => 0,
                In | NotIn => 3,
                _ => 1,
            });
            Condition { column: column.name.clone(), operator, values }
        })
    })
}

fn any_filter() -> impl Strategy<Value = Filter> {
    any_condition().prop_map(Filter::Is).prop_recursive(3, 8, 3, |part| {
        prop_oneof![
            prop::collection::vec(part.clone(), 0..3).prop_map(Filter::All),
            prop::collection::vec(part.clone(), 0..3).prop_map(Filter::Any),
            part.prop_map(|part| Filter::Not(Box::new(part))),
        ]
    })
}

fn any_query() -> impl Strategy<Value = Query> {
    let mut sortable: Vec<String> =
        wide().columns.into_iter().filter(|c| c.sortable).map(|c| c.name).collect();
    sortable.push("key".into());
    let orders = prop::collection::vec((prop::sample::select(sortable), any::<bool>()), 0..3);
    let scope = prop_oneof![3 => Just(Filter::default()), 2 => any_filter()];
    (any_filter(), scope, orders, 1..6_u32).prop_map(|(filter, scope, orders, limit)| {
        let order = orders.into_iter().map(|(column, descending)| order(&column, descending)).collect();
        Query { filter, scope, order, limit, ..Query::all("wide") }
    })
}

/// Pages of any query, put together, are what the query means: nothing twice, nothing left out.
pub async fn pages_of_any_query_are_what_it_means(seams: Seams) {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let values = prop::collection::vec(row_values(), 60).new_tree(&mut runner).unwrap().current();
    let rows: Rows = values.into_iter().enumerate().map(|(n, row)| (format!("k{n:02}"), row)).collect();
    filled(&seams, &wide(), &rows).await;
    let handle = tokio::runtime::Handle::current();
    let pages = move |mut query: Query| {
        let mut found = Vec::new();
        loop {
            let page = handle.block_on(seams.tables.query(&tenant("acme"), &query)).unwrap();
            assert!(page.rows.len() <= query.limit as usize);
            found.extend(page.rows.into_iter().map(|row| row.key));
            assert!(found.len() <= 60, "the pages come to an end");
            query.after = page.next;
            if query.after.is_none() {
                return found;
            }
        }
    };
    let checked = tokio::task::spawn_blocking(move || {
        for _ in 0..300 {
            let query = any_query().new_tree(&mut runner).unwrap().current();
            assert_eq!(pages(query.clone()), model(&wide(), &rows, &query), "{query:?}");
        }
    });
    checked.await.expect("pages and model agree");
}

/// Runs this whole suite for a backend.
#[macro_export]
macro_rules! tables_conformance {
    ($backend:ident, $setup:expr) => {
        $crate::conformance!($backend, tables, $setup;
            declared_table_is_listed, table_of_another_plugin_is_owned,
            added_nullable_column_is_applied_in_place, other_changes_of_a_schema_are_refused,
            values_come_back_exactly, rows_are_inside_their_tenant, conditions_select,
            query_outside_its_table_is_refused, x3_a_filtered_ordered_page_begins_strictly_after_its_cursor,
            tombstones_are_not_rows, pages_of_any_query_are_what_it_means);
    };
}
