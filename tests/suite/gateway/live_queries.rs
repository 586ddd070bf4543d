//! Which live queries are taken, and how others are refused.

use millrace::error::Classify as _;
use millrace::limits::LIVE_VIEWS_MAX;
use millrace::live::{LiveEngine, LiveQueries as _, LiveQuery, Mode, Subscribe};
use millrace::streams::EventLog as _;
use millrace::tables::{Column, ColumnType, Operator, Query, TableSchema, TableStore as _, Value};
use serde_json::{Value as Json, json};

use super::live::rig_with_rows;
use super::rig::{Answer, Rig};

async fn post(rig: &Rig, query: &Json) -> Answer {
    let headers = [("Content-Type", "application/json")];
    rig.send("POST", "/v1/live", &headers, query.to_string().as_bytes()).await
}

/// Asks, and gives the query that reaches the engine.
async fn taken(rig: &Rig, query: &Json) -> LiveQuery {
    let body = query.to_string();
    let mut client = rig.connect().await;
    let head = "POST /v1/live HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    client.write(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
    rig.live.opened().await.asked.query
}

#[tokio::test]
async fn q1_a_good_query_reaches_the_engine_as_it_was_meant() {
    let rig = rig_with_rows().await;
    let query = taken(
        &rig,
        &json!({
            "Entity": "things",
            "Where": [{"Column": "size", "Op": "gte", "Value": 9007199254740993_i64}],
            "Sort": [{"Column": "size", "Desc": true}],
            "Limit": 7,
            "Cursor": {"values": [9007199254740994_i64, "k"]},
            "Mode": 0,
            "columns": ["title"],
        }),
    )
    .await;
    assert_eq!((query.mode, query.columns), (Mode::Maintained, Some(vec!["title".into()])));
    let query = query.query;
    assert_eq!((query.table.as_str(), query.limit), ("things", 7));
    let [condition] = &query.conditions()[..] else { panic!("{query:?}") };
    let expected = ("size", Operator::Gte, [Value::Int(9_007_199_254_740_993)].as_slice());
    assert_eq!((condition.column.as_str(), condition.operator, condition.values.as_slice()), expected);
    assert!(query.order[0].column == "size" && query.order[0].descending);
    let after = query.after.expect("a place");
    assert_eq!((after.values, after.key.as_str()), (vec![Value::Int(9_007_199_254_740_994)], "k"));
    rig.stop().await;
}

#[tokio::test]
async fn q2_a_condition_on_an_unknown_or_unfilterable_column_is_refused() {
    let rig = rig_with_rows().await;
    for (column, says) in [("nothing", "no column `nothing`"), ("raw", "not filterable")] {
        let query = json!({"table": "things", "where": [{"column": column, "op": "isnull"}]});
        let problem = post(&rig, &query).await.is_problem(400, "query_invalid");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn q3_an_order_by_a_column_that_is_not_sortable_is_refused() {
    let rig = rig_with_rows().await;
    for (column, says) in [("title", "not sortable"), ("nothing", "no column `nothing`")] {
        let query = json!({"table": "things", "sort": [{"column": column}]});
        let problem = post(&rig, &query).await.is_problem(400, "query_invalid");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn q4_a_limit_that_gives_nothing_is_refused_and_none_is_the_default() {
    let rig = rig_with_rows().await;
    for limit in [json!(0), json!(-1), json!(101), json!(1.5), json!("7")] {
        let query = json!({"table": "things", "limit": limit});
        post(&rig, &query).await.is_problem(400, "query_invalid");
    }
    assert!(rig.live.none_opened());
    assert_eq!(taken(&rig, &json!({"table": "things"})).await.query.limit, 50);
    rig.stop().await;
}

#[tokio::test]
async fn q5_a_table_whose_columns_cannot_be_as_declared_is_refused_when_it_is_declared() {
    let rig = Rig::start().await;
    let column = |name: &str, column_type, sortable| Column {
        name: name.into(),
        column_type,
        nullable: true,
        filterable: true,
        sortable,
    };
    let size = || column("size", ColumnType::Int, true);
    for columns in [
        vec![size(), size()],
        vec![column("key", ColumnType::Text, true)],
        vec![column("Size!", ColumnType::Int, true)],
        vec![size(), column("extra", ColumnType::Json, true)],
        vec![],
    ] {
        let table = TableSchema { name: "odd".into(), columns, versioned: false, window_rows_max: 100 };
        let refused = rig.store.declare("keeper", &[table]).await.expect_err("it cannot be");
        assert_eq!(refused.code(), "schema_invalid", "{refused}");
    }
    let table =
        TableSchema { name: "odd".into(), columns: vec![size()], versioned: false, window_rows_max: 0 };
    let refused = rig.store.declare("keeper", &[table]).await.expect_err("no window has no rows");
    assert_eq!(refused.code(), "schema_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn q6_what_cannot_answer_says_so_by_its_code() {
    let rig = rig_with_rows().await;
    *rig.live.refuse.lock().expect("no panic") = Some(millrace::live::LiveError::Closing);
    post(&rig, &json!({"table": "things"})).await.is_problem(503, "host_stopping");
    let live = LiveEngine::new(std::sync::Arc::new(rig.store.clone()), rig.store.epoch(), LIVE_VIEWS_MAX);
    let ask = |table: &str| {
        let query = LiveQuery { query: Query::all(table), mode: Mode::Maintained, columns: None };
        let tenant = millrace::event::TenantId::new("default").expect("a tenant");
        live.subscribe(Subscribe { tenant, query, resume: None })
    };
    assert_eq!(ask("nothing").await.expect_err("unknown").code(), "table_unknown");
    ask("things").await.expect("it answers while it is open");
    live.close();
    assert_eq!(ask("things").await.expect_err("closed").code(), "host_stopping");
    rig.stop().await;
}
