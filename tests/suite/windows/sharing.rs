//! Who shares what, who is told what, and what one view's trouble does to others.

use std::sync::Arc;

use futures_util::StreamExt as _;
use millrace::error::Classify as _;
use millrace::event::{Epoch, TenantId};
use millrace::limits::{LIVE_STREAMED_ROWS_MAX, LIVE_VIEWS_MAX};
use millrace::live::{LiveEngine, LiveError, LiveQueries, LiveQuery, Mode, Subscribe};
use millrace::tables::{ColumnType, Condition, Filter, Operator, Order, Query, Value};
use millrace_tests::shelf::Shelf;
use millrace_tests::viewer::Viewer;
use serde_json::json;

use millrace_tests::model::{board, column};

struct Rig {
    shelf: Shelf,
    live: LiveEngine,
}

fn rig() -> Rig {
    let shelf = Shelf::new(board());
    // Reads are counted here: none is to be a check.
    let never = std::time::Duration::from_secs(3_600);
    let live = LiveEngine::checked_every(never, Arc::new(shelf.clone()), Epoch("one".into()), LIVE_VIEWS_MAX);
    Rig { shelf, live }
}

fn acme() -> TenantId {
    TenantId::new("acme").expect("a good name")
}

fn by_rank(limit: u32) -> LiveQuery {
    let order = vec![Order { column: "rank".into(), descending: false }];
    LiveQuery { query: Query { order, limit, ..Query::all("board") }, mode: Mode::Maintained, columns: None }
}

fn is(column: &str, operator: Operator, values: Vec<Value>) -> Filter {
    Filter::Is(Condition { column: column.into(), operator, values })
}

fn of_team(team: &str) -> LiveQuery {
    let mut asked = by_rank(10);
    asked.query.filter = is("team", Operator::Eq, vec![Value::Text(team.into())]);
    asked
}

impl Rig {
    fn put(&self, key: &str, rank: i64, team: &str) {
        let cells = vec![Value::Int(rank), Value::Text(team.into()), Value::Int(0)];
        self.shelf.commit(&[(key.into(), Some(cells))]);
    }

    fn delete(&self, key: &str) {
        self.shelf.commit(&[(key.into(), None)]);
    }

    async fn watch(&self, query: LiveQuery) -> Viewer {
        let mut viewer = Viewer::new(acme(), query);
        viewer.connect(&self.live).await.expect("a good query");
        viewer.take_until_ready().await;
        viewer.names.clear();
        viewer
    }

    async fn refused(&self, query: LiveQuery) -> LiveError {
        let subscribe = Subscribe { tenant: acme(), query, resume: None };
        self.live.subscribe(subscribe).await.expect_err("it is refused")
    }
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn e1_a_snapshot_and_then_what_enters() {
    let rig = rig();
    rig.put("a", 1, "red");
    rig.put("b", 3, "red");
    let mut viewer = rig.watch(by_rank(10)).await;
    assert_eq!(viewer.keys(), ["a", "b"]);
    rig.put("n", 2, "blue");
    viewer.take().await.unwrap();
    assert_eq!(
        (viewer.keys(), viewer.names.as_slice()),
        (vec!["a", "n", "b"], ["enter".to_owned()].as_slice())
    );
}

#[tokio::test]
async fn a_fresh_subscriber_is_told_of_an_empty_result_too() {
    let rig = rig();
    let mut viewer = Viewer::new(acme(), by_rank(10));
    viewer.connect(&rig.live).await.unwrap();
    viewer.take().await.unwrap();
    assert!(viewer.ready && viewer.rows.is_empty());
    assert_eq!(viewer.names, ["reset", "ready"]);
}

#[tokio::test]
async fn e3_each_view_gets_its_own_changes_and_both_get_the_common_one() {
    let rig = rig();
    let mut red = rig.watch(of_team("red")).await;
    let mut blue = rig.watch(of_team("blue")).await;
    rig.put("a", 1, "red");
    rig.put("b", 1, "blue");
    // It changes sides: it leaves the one and enters the other.
    rig.put("a", 1, "blue");
    for _ in 0..2 {
        red.take().await.unwrap();
        blue.take().await.unwrap();
    }
    assert_eq!((red.keys(), blue.keys()), (vec![], vec!["a", "b"]));
    assert_eq!(
        (red.names, blue.names),
        (vec!["enter".to_owned(), "leave".into()], vec!["enter".into(), "enter".into()])
    );
}

#[tokio::test]
async fn e6_the_same_question_is_read_once_however_it_is_put() {
    let rig = rig();
    rig.put("a", 1, "red");
    let (red, low) = (
        is("team", Operator::Eq, vec![Value::Text("red".into())]),
        is("rank", Operator::Lt, vec![Value::Int(9)]),
    );
    let ways = [
        Filter::All(vec![red.clone(), low.clone()]),
        Filter::All(vec![low.clone(), red.clone(), low.clone()]),
        Filter::All(vec![Filter::All(vec![red.clone()]), Filter::Any(vec![low.clone()])]),
        Filter::Not(Box::new(Filter::Not(Box::new(Filter::All(vec![red, low]))))),
    ];
    let mut viewers = Vec::new();
    for filter in ways {
        let mut asked = by_rank(10);
        asked.query.filter = filter;
        viewers.push(rig.watch(asked).await);
    }
    assert_eq!((rig.shelf.reads(), rig.live.views(), rig.shelf.watchers()), (1, 1, 1));
    rig.put("b", 2, "red");
    for viewer in &mut viewers {
        viewer.take().await.unwrap();
        assert_eq!(viewer.keys(), ["a", "b"]);
    }
    assert_eq!(rig.shelf.reads(), 1, "changes need no reads");
}

#[tokio::test]
async fn the_frames_of_a_view_are_the_same_bytes_for_all_who_get_them() {
    let rig = rig();
    let mut one = rig.watch(by_rank(10)).await;
    let mut two = rig.watch(by_rank(10)).await;
    rig.put("a", 1, "red");
    let (first, second) = (one.take().await.unwrap(), two.take().await.unwrap());
    assert_eq!(first.list().as_ptr(), second.list().as_ptr());
    assert_eq!(first.sse().as_ptr(), second.sse().as_ptr());
}

#[tokio::test]
async fn all_frames_of_a_commit_come_in_one_batch_and_only_the_last_has_the_id() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut viewer = rig.watch(by_rank(2)).await;
    let cells = |rank| Some(vec![Value::Int(rank), Value::Null, Value::Null]);
    rig.shelf.commit(&[("b".into(), cells(2)), ("c".into(), cells(0)), ("a".into(), None)]);
    let batch = viewer.take().await.unwrap();
    assert_eq!(viewer.keys(), ["c", "b"]);
    let sse = String::from_utf8(batch.sse().to_vec()).unwrap();
    let events: Vec<_> = sse.split_terminator("\n\n").collect();
    assert_eq!(events.len(), batch.len());
    let with_id: Vec<_> = events.iter().map(|event| event.starts_with("id: ")).collect();
    assert_eq!(with_id.iter().filter(|has| **has).count(), 1);
    assert_eq!(with_id.last(), Some(&true));
    let token = batch.token().unwrap();
    assert!(events.last().unwrap().starts_with(&format!("id: {token}\nevent: ")));
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_what_it_missed() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut viewer = rig.watch(by_rank(10)).await;
    viewer.disconnect();
    rig.put("b", 2, "red");
    rig.delete("a");
    settle().await;
    viewer.connect(&rig.live).await.unwrap();
    viewer.take_until_ready().await;
    assert_eq!((viewer.keys(), viewer.names.join(" ")), (vec!["b"], "enter leave ready".into()));
    viewer.disconnect();
    viewer.names.clear();
    viewer.connect(&rig.live).await.unwrap();
    viewer.take_until_ready().await;
    assert_eq!(viewer.names.join(" "), "ready", "it missed nothing");
    assert_eq!(rig.shelf.reads(), 1, "coming back needs no read");
}

#[tokio::test]
async fn a_token_that_does_not_resume_says_why_and_brings_the_rows() {
    let rig = rig();
    rig.put("a", 1, "red");
    let good = rig.watch(by_rank(10)).await;
    let other_query = rig.watch(of_team("red")).await.token;
    let other_store = LiveEngine::new(Arc::new(rig.shelf.clone()), Epoch("two".into()), LIVE_VIEWS_MAX);
    let mut elsewhere = Viewer::new(acme(), by_rank(10));
    elsewhere.connect(&other_store).await.unwrap();
    elsewhere.take_until_ready().await;
    // The same store and query, in another life of the host.
    let restarted = LiveEngine::new(Arc::new(rig.shelf.clone()), Epoch("one".into()), LIVE_VIEWS_MAX);
    let mut earlier = Viewer::new(acme(), by_rank(10));
    earlier.connect(&restarted).await.unwrap();
    earlier.take_until_ready().await;
    let mut rival = Viewer::new(TenantId::new("rival").unwrap(), by_rank(10));
    rival.connect(&rig.live).await.unwrap();
    rival.take_until_ready().await;
    let future = good.token.clone().map(|token| format!("{}9", token));
    for (token, reason) in [
        (other_query, "view"),
        (elsewhere.token, "epoch"),
        (earlier.token, "expired"),
        (rival.token, "view"),
        (future, "expired"),
        (Some("junk".into()), "invalid"),
    ] {
        let mut viewer = Viewer::new(acme(), by_rank(10));
        viewer.token = token;
        viewer.connect(&rig.live).await.unwrap();
        let gap = viewer.take().await.unwrap();
        let frame: serde_json::Value = serde_json::from_slice(&gap.frames().next().unwrap()).unwrap();
        assert_eq!((&frame["op"], &frame["reason"]), (&json!("gap"), &json!(reason)));
        viewer.take_until_ready().await;
        assert_eq!((viewer.names.join(" "), viewer.keys()), ("gap reset enter ready".into(), vec!["a"]));
    }
}

#[tokio::test]
async fn n4_a_row_that_was_read_behind_the_window_is_gone_when_it_is_deleted() {
    let rig = rig();
    for n in 0..60 {
        rig.put(&format!("k{n:02}"), n, "red");
    }
    let mut viewer = rig.watch(by_rank(3)).await;
    for n in 0..40 {
        rig.delete(&format!("k{n:02}"));
        settle().await;
    }
    while let Some(batch) = viewer.take_now() {
        batch.unwrap();
    }
    assert_eq!(viewer.keys(), ["k40", "k41", "k42"]);
    rig.delete("k41");
    viewer.take().await.unwrap();
    assert_eq!(viewer.keys(), ["k40", "k42", "k43"]);
    assert!(rig.shelf.reads() > 1, "it was read again");
}

#[tokio::test]
async fn n15_a_view_that_breaks_takes_no_other_along() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut sorted = rig.watch(by_rank(10)).await;
    let mut asked = by_rank(10);
    asked.query.order.clear();
    let mut plain = rig.watch(asked).await;
    // A row without cells: looking at one to sort by it panics.
    rig.shelf.commit(&[("broken".into(), Some(vec![]))]);
    let error = sorted.take().await.unwrap_err();
    assert_eq!(error.code(), "live_view_failed");
    plain.take().await.unwrap();
    assert_eq!(plain.keys(), ["a", "broken"]);
    rig.shelf.commit(&[("broken".into(), None)]);
    rig.put("b", 2, "red");
    plain.take().await.unwrap();
    plain.take().await.unwrap();
    assert_eq!(plain.keys(), ["a", "b"]);
    let again = rig.watch(by_rank(10)).await;
    assert_eq!(again.keys(), ["a", "b"], "the query can be asked again");
}

#[tokio::test]
async fn sn23_integers_keep_all_their_digits() {
    let rig = rig();
    rig.put("a", i64::MAX, "red");
    rig.put("b", 9_007_199_254_740_993, "red");
    let mut viewer = Viewer::new(acme(), by_rank(10));
    viewer.connect(&rig.live).await.unwrap();
    let text = String::from_utf8(viewer.take().await.unwrap().list().to_vec()).unwrap();
    assert!(text.contains("\"rank\":9223372036854775807,"), "{text}");
    assert!(text.contains("\"cursor\":{\"values\":[9007199254740993,\"b\"]}"), "{text}");
    assert!(
        text.find("9007199254740993") < text.find("9223372036854775807"),
        "and they are sorted by all of them"
    );
}

#[tokio::test]
async fn a_projection_shows_its_columns_and_the_key() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut asked = by_rank(10);
    asked.columns = Some(vec!["team".into(), "key".into(), "team".into()]);
    let viewer = rig.watch(asked.clone()).await;
    assert_eq!(viewer.rows, [json!({"key": "a", "team": "red"})]);
    asked.columns = Some(vec!["absent".into()]);
    assert_eq!(rig.refused(asked).await.code(), "query_invalid");
}

#[tokio::test]
async fn e4_a_streamed_query_tells_who_matches() {
    let rig = rig();
    for n in 0..130 {
        rig.put(&format!("k{n:03}"), n, if n % 2 == 0 { "red" } else { "blue" });
    }
    let mut asked = of_team("red");
    asked.mode = Mode::Streamed;
    let subscribe = Subscribe { tenant: acme(), query: asked, resume: None };
    let mut stream = rig.live.subscribe(subscribe).await.unwrap().batches;
    let names = |batch: millrace::live::Batch| batch.names().collect::<Vec<_>>().join(" ");
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(names(first), "reset match match match match match match match match match match ready");
    rig.put("k128", 1, "red");
    assert_eq!(names(stream.next().await.unwrap().unwrap()), "update", "a member beyond the first page");
    rig.put("k128", 1, "blue");
    assert_eq!(names(stream.next().await.unwrap().unwrap()), "unmatch");
    rig.put("k001", 1, "red");
    assert_eq!(names(stream.next().await.unwrap().unwrap()), "match");
    rig.delete("k001");
    assert_eq!(names(stream.next().await.unwrap().unwrap()), "unmatch");
}

#[tokio::test]
async fn a_streamed_query_that_too_many_rows_match_is_refused_with_its_limit() {
    let rig = rig();
    let rows: Vec<_> = (0..=LIVE_STREAMED_ROWS_MAX)
        .map(|n| (format!("k{n:06}"), Some(vec![Value::Int(1), Value::Null, Value::Null])))
        .collect();
    rig.shelf.commit(&rows);
    let mut asked = by_rank(10);
    asked.mode = Mode::Streamed;
    assert_eq!(rig.refused(asked).await.code(), "live_streamed_rows_max");
}

#[tokio::test]
async fn a_column_that_is_added_shows_up_and_one_that_goes_ends_the_query() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut viewer = rig.watch(by_rank(10)).await;
    let mut schema = board();
    schema.columns.insert(0, column("extra", ColumnType::Bool));
    rig.shelf.set_schema(schema.clone());
    let cells = vec![Value::Bool(true), Value::Int(1), Value::Text("red".into()), Value::Int(0)];
    rig.shelf.commit(&[("a".into(), Some(cells))]);
    rig.shelf.lose();
    viewer.take().await.unwrap();
    assert_eq!(viewer.rows, [json!({"key": "a", "extra": true, "rank": 1, "team": "red", "note": 0})]);
    schema.columns.retain(|column| column.name != "rank");
    rig.shelf.set_schema(schema);
    rig.shelf.lose();
    assert_eq!(viewer.take().await.unwrap_err().code(), "live_columns_changed");
}

#[tokio::test]
async fn what_is_closed_says_so() {
    let rig = rig();
    let mut viewer = rig.watch(by_rank(10)).await;
    rig.live.close();
    assert_eq!(viewer.take().await.unwrap_err().code(), "host_stopping");
    assert_eq!(rig.refused(by_rank(10)).await.code(), "host_stopping");
}

#[tokio::test]
async fn unknown_tables_and_columns_are_refused() {
    let rig = rig();
    let mut asked = by_rank(10);
    asked.query.table = "absent".into();
    assert_eq!(rig.refused(asked).await.code(), "table_unknown");
    let mut asked = by_rank(10);
    asked.query.order[0].column = "absent".into();
    assert_eq!(rig.refused(asked).await.code(), "query_invalid");
    for limit in [0, 61] {
        assert_eq!(rig.refused(by_rank(limit)).await.code(), "query_invalid", "limit {limit}");
    }
}

#[tokio::test]
async fn a_view_that_nobody_watches_is_not_read_until_somebody_does() {
    let rig = rig();
    for n in 0..60 {
        rig.put(&format!("k{n:02}"), n, "red");
    }
    let mut viewer = rig.watch(by_rank(3)).await;
    viewer.disconnect();
    for n in 0..40 {
        rig.delete(&format!("k{n:02}"));
        settle().await;
    }
    assert_eq!(rig.shelf.reads(), 1);
    viewer.connect(&rig.live).await.unwrap();
    viewer.take_until_ready().await;
    assert_eq!(viewer.keys(), ["k40", "k41", "k42"]);
    assert!(!viewer.names.contains(&"gap".into()), "it is told what it missed: {:?}", viewer.names);
    assert_eq!(rig.shelf.reads(), 2);
}

#[tokio::test]
async fn so_many_different_queries_and_no_more_are_kept() {
    let shelf = Shelf::new(board());
    let live = LiveEngine::new(Arc::new(shelf.clone()), Epoch("one".into()), 2);
    let ask = |limit| live.subscribe(Subscribe { tenant: acme(), query: by_rank(limit), resume: None });
    let (_one, _two) = (ask(1).await.unwrap(), ask(2).await.unwrap());
    let again = ask(1).await;
    assert!(again.is_ok(), "a query that is watched already costs no place");
    assert_eq!(ask(3).await.unwrap_err().code(), "live_views_max");
}

#[tokio::test]
async fn a_batch_knows_when_it_was_committed_and_a_snapshot_does_not() {
    let rig = rig();
    rig.put("a", 1, "red");
    let mut viewer = Viewer::new(acme(), by_rank(10));
    viewer.connect(&rig.live).await.expect("a good query");
    assert_eq!(viewer.take().await.expect("a snapshot").committed(), None);
    let before = std::time::Instant::now();
    rig.put("b", 2, "red");
    let committed = viewer.take().await.expect("a change").committed().expect("it was committed");
    assert!((before..=std::time::Instant::now()).contains(&committed));
}
