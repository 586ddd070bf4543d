//! Claims about `GET` and `POST /v1/live`, over a real socket and a stand-in for the engine.

use millrace::event::Revision;
use millrace::limits::QUERY_CONDITIONS_MAX;
use millrace::live::{Batch, BatchBuilder, LiveError, Mode};
use millrace::tables::{Condition, Filter, Operator, RowCursor, Value};
use serde_json::json;

use super::fakes::FakeSubscription;
use super::rig::{Client, Rig};

pub(super) fn batch(names: &[&'static str], token: Option<&str>) -> Batch {
    let mut builder = BatchBuilder::default();
    for name in names {
        builder.frame(name, |out| {
            out.extend_from_slice(format!(r#"{{"op":"{name}","agg_id":"a"}}"#).as_bytes())
        });
    }
    builder.finish(token.map(str::to_owned), Revision(3))
}

pub(super) async fn rig_with_rows() -> Rig {
    let rig = Rig::start().await;
    rig.rows("default", &[("a", 1, None)]).await;
    rig
}

/// Asks without closing, and leaves the answer to be read.
async fn ask(rig: &Rig, head: &str, body: &str) -> Client {
    let mut client = rig.connect().await;
    let request = format!("{head}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.write(request.as_bytes()).await;
    client
}

async fn get(rig: &Rig, query: &str) -> (Client, FakeSubscription) {
    let client = ask(rig, &format!("GET /v1/live?{query} HTTP/1.1"), "").await;
    let opened = rig.live.opened().await;
    (client, opened)
}

async fn post(rig: &Rig, body: &str) -> Client {
    ask(rig, "POST /v1/live HTTP/1.1\r\nContent-Type: application/json", body).await
}

fn is(column: &str, operator: Operator, value: Value) -> Filter {
    Filter::Is(Condition { column: column.into(), operator, values: vec![value] })
}

#[tokio::test]
async fn h1_a_posted_query_streams_its_rows() {
    let rig = rig_with_rows().await;
    let mut client = post(&rig, r#"{"entity":"things","limit":2}"#).await;
    let opened = rig.live.opened().await;
    assert_eq!((opened.asked.query.query.table.as_str(), opened.asked.query.query.limit), ("things", 2));
    opened.batches.send(Ok(batch(&["reset", "enter"], None))).await.expect("somebody listens");
    opened.batches.send(Ok(batch(&["ready"], Some("e.3")))).await.expect("somebody listens");
    let mut text = String::new();
    client.read_until(&mut text, "id: e.3\nevent: ready\n").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let (reset, enter) = (text.find("event: reset\n"), text.find("event: enter\n"));
    assert!(reset.is_some() && reset < enter, "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn h2_the_path_of_the_websocket_is_there() {
    let rig = rig_with_rows().await;
    let problem = rig.get("/v1/live/ws").await.is_problem(426, "websocket_expected");
    assert!(problem["fix"].as_str().is_some_and(|fix| fix.contains("/docs")));
    rig.stop().await;
}

#[tokio::test]
async fn b2_the_head_keeps_proxies_from_holding_events_back() {
    let rig = rig_with_rows().await;
    let (mut client, _opened) = get(&rig, "table=things").await;
    let mut text = String::new();
    client.read_until(&mut text, "retry: ").await;
    let text = text.to_ascii_lowercase();
    for header in [
        "content-type: text/event-stream\r\n",
        "cache-control: no-cache, no-transform\r\n",
        "x-accel-buffering: no\r\n",
    ] {
        assert!(text.contains(header), "{text}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn b3_the_last_event_id_is_passed_on_and_is_absent_when_it_is_empty() {
    let rig = rig_with_rows().await;
    let cases = [
        ("", "", None),
        ("\r\nLast-Event-ID: ", "", None),
        ("\r\nLast-Event-ID: e.5", "", Some("e.5")),
        ("", "&last_event_id=e.6", Some("e.6")),
        ("", "&last_event_id=", None),
        ("\r\nLast-Event-ID: e.5", "&last_event_id=e.6", Some("e.5")),
    ];
    for (header, parameter, wanted) in cases {
        let _client = ask(&rig, &format!("GET /v1/live?table=things{parameter} HTTP/1.1{header}"), "").await;
        assert_eq!(rig.live.opened().await.asked.resume.as_deref(), wanted, "{header} {parameter}");
    }
    let long = "x".repeat(513);
    let answer = rig.get(&format!("/v1/live?table=things&last_event_id={long}")).await;
    answer.is_problem(400, "parameter_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn parameters_and_json_mean_the_same_query() {
    let rig = rig_with_rows().await;
    let seen = "2013-01-01T10:00:00Z";
    let parameters = "table=things&where=size:gt:9007199254740993&where=seen:isnull&order=seen:desc,size\
                      &limit=7&mode=streamed&columns=size,seen,key\
                      &cursor=%7B%22values%22:%5B%222013-01-01T10:00:00Z%22,9223372036854775807,%22k%22%5D%7D";
    let (_client, from_get) = get(&rig, parameters).await;
    let cursor = json!([seen, i64::MAX, "k"]);
    let lower = json!({
        "table": "things",
        "where": [
            {"column": "size", "op": "gt", "value": 9_007_199_254_740_993_i64},
            {"column": "seen", "op": "isnull"},
        ],
        "sort": [{"column": "seen", "desc": true}, {"column": "size"}],
        "limit": 7, "mode": "streamed", "columns": ["size", "seen", "key"], "cursor": {"values": cursor},
    });
    let upper = json!({
        "Entity": "things",
        "Where": [
            {"Column": "size", "Op": "gt", "Value": 9_007_199_254_740_993_i64},
            {"Column": "seen", "Op": "isnull", "Value": null, "Or": []},
        ],
        "Sort": [{"Column": "seen", "Desc": true}, {"Column": "size", "Desc": false}],
        "Limit": 7, "Mode": 1, "Columns": ["size", "seen"], "Cursor": {"values": cursor},
    });
    let query = &from_get.asked.query;
    let Filter::All(parts) = &query.query.filter else { panic!("{query:?}") };
    assert_eq!(parts[0], is("size", Operator::Gt, Value::Int(9_007_199_254_740_993)));
    let micros = millrace::event::Micros::parse(seen).expect("a time");
    let place = RowCursor { values: vec![Value::Timestamp(micros), Value::Int(i64::MAX)], key: "k".into() };
    assert_eq!(query.query.after, Some(place));
    assert_eq!((query.mode, query.query.limit), (Mode::Streamed, 7));
    assert_eq!(query.columns, Some(vec!["size".to_owned(), "seen".to_owned()]));
    for body in [lower, upper] {
        let _client = post(&rig, &body.to_string()).await;
        assert_eq!(rig.live.opened().await.asked.query, *query, "{body}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_is_left_out_has_its_default_and_the_whole_query_may_be_one_parameter() {
    let rig = rig_with_rows().await;
    let (_client, short) = get(&rig, "entity=things").await;
    let query = short.asked.query;
    assert_eq!((query.query.limit, query.mode, query.columns.as_ref()), (50, Mode::Maintained, None));
    assert_eq!((query.query.after.as_ref(), query.query.order.len()), (None, 0));
    let (_client, whole) =
        get(&rig, "query=%7B%22table%22:%22things%22,%22cursor%22:%7B%22values%22:null%7D%7D").await;
    assert_eq!(whole.asked.query, query);
    rig.get("/v1/live?query=%7B%7D&table=things").await.is_problem(400, "parameter_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_bad_query_is_refused_with_its_reason_and_reaches_no_engine() {
    let rig = rig_with_rows().await;
    let cond = |column: &str, op: &str, value: serde_json::Value| json!({"table": "things", "where": [{"column": column, "op": op, "value": value}]});
    let with = |name: &str, value: serde_json::Value| json!({"table": "things", name: value});
    let cases = [
        (json!([]), 400, "query_invalid", "not a JSON object"),
        (json!({}), 400, "query_invalid", "`table` is missing"),
        (json!({"table": 7}), 400, "query_invalid", "`table`"),
        (json!({"table": "nothing"}), 404, "table_unknown", "nothing"),
        (json!({"table": "things", "Entity": "things"}), 400, "query_invalid", "stands twice"),
        (with("tenant", "beta".into()), 400, "tenant_in_body", "tenant"),
        (with("offset", 5.into()), 400, "query_invalid", "`offset`"),
        (cond("nothing", "eq", 1.into()), 400, "query_invalid", "nothing"),
        (cond("raw", "eq", "AA==".into()), 400, "query_invalid", "not filterable"),
        (cond("size", "eq", "one".into()), 400, "query_invalid", "size"),
        (cond("size", "eq", 1.5.into()), 400, "query_invalid", "1.5"),
        (cond("size", "eq", json!([1])), 400, "query_invalid", "[1]"),
        (cond("size", "eq", json!({"a": 1})), 400, "query_invalid", "size"),
        (cond("size", "eq", serde_json::Value::Null), 400, "query_invalid", "null"),
        (cond("size", "in", json!([])), 400, "query_invalid", "size"),
        (cond("seen", "gt", "yesterday".into()), 400, "query_invalid", "yesterday"),
        (cond("size", "near", 1.into()), 400, "parameter_invalid", "near"),
        (with("where", 7.into()), 400, "parameter_invalid", "7"),
        (with("sort", "size".into()), 400, "query_invalid", "`sort`"),
        (with("sort", json!([{"column": "title"}])), 400, "query_invalid", "not sortable"),
        (with("sort", json!([{"column": "gone"}])), 400, "query_invalid", "gone"),
        (with("sort", json!([{"column": "size", "asc": true}])), 400, "query_invalid", "`asc`"),
        (with("sort", json!([{"column": "size"}, {"column": "size"}])), 400, "query_invalid", "twice"),
        (with("limit", 0.into()), 400, "query_invalid", "limit is 0"),
        (with("limit", (-1).into()), 400, "query_invalid", "limit is -1"),
        (with("limit", 101.into()), 400, "query_invalid", "1 to 100"),
        (with("limit", json!(1e30)), 400, "query_invalid", "1 to 100"),
        (with("limit", "5".into()), 400, "query_invalid", "1 to 100"),
        (with("cursor", json!({"values": []})), 400, "query_invalid", "0 values; this query has 1"),
        (with("cursor", json!({"values": [1, "k"]})), 400, "query_invalid", "2 values; this query has 1"),
        (with("cursor", json!({"values": [1]})), 400, "query_invalid", "key"),
        (with("cursor", json!({"value": ["k"]})), 400, "query_invalid", "`cursor`"),
        (with("cursor", "k".into()), 400, "query_invalid", "`cursor`"),
        (with("mode", 2.into()), 400, "query_invalid", "`mode` is 2"),
        (with("columns", json!(["gone"])), 400, "query_invalid", "gone"),
        (with("columns", "size".into()), 400, "query_invalid", "`columns`"),
    ];
    for (query, status, code, says) in cases {
        let headers = [("Content-Type", "application/json")];
        let answer = rig.send("POST", "/v1/live", &headers, query.to_string().as_bytes()).await;
        let problem = answer.is_problem(status, code);
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{query}: {problem}");
    }
    let typed = json!({"table": "things", "sort": [{"column": "size"}], "cursor": {"values": ["x", "k"]}});
    let headers = [("Content-Type", "application/json")];
    let answer = rig.send("POST", "/v1/live", &headers, typed.to_string().as_bytes()).await;
    answer.is_problem(400, "query_invalid");
    for (path, status, code) in [
        ("/v1/live", 400, "query_invalid"),
        ("/v1/live?table=things&limit=-1", 400, "query_invalid"),
        ("/v1/live?table=things&limit=x", 400, "parameter_invalid"),
        ("/v1/live?table=things&cursor=x", 400, "parameter_invalid"),
        ("/v1/live?table=things&offset=5", 400, "parameter_unknown"),
        ("/v1/live?table=things&tenant=beta", 400, "tenant_in_body"),
        ("/v1/live?table=things&table=things", 400, "parameter_invalid"),
        ("/v1/live?table=things&entity=things", 400, "parameter_invalid"),
        ("/v1/live?query=x", 400, "parameter_invalid"),
    ] {
        rig.get(path).await.is_problem(status, code);
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn bodies_that_are_no_query_are_refused() {
    let rig = rig_with_rows().await;
    let json = [("Content-Type", "application/json")];
    rig.send("POST", "/v1/live", &json, b"not json").await.is_problem(400, "json_malformed");
    rig.send("POST", "/v1/live", &json, b"\xff\xfe").await.is_problem(400, "json_malformed");
    rig.send("POST", "/v1/live", &json, b"").await.is_problem(400, "json_malformed");
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    rig.send("POST", "/v1/live", &form, b"{}").await.is_problem(415, "content_type_unsupported");
    rig.send("DELETE", "/v1/live", &[], b"").await.is_problem(405, "method_not_allowed");
    let large = vec![b' '; (64 << 10) + 1];
    let problem = rig.send("POST", "/v1/live", &json, &large).await.is_problem(413, "live_message_bytes_max");
    assert_eq!(problem["max"], 64 << 10);
    rig.stop().await;
}

#[tokio::test]
async fn thousands_of_conditions_and_deep_nesting_are_refused() {
    let rig = Rig::with(|options| options.live_message_bytes_max = 1 << 20).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let json = [("Content-Type", "application/json")];
    let many = vec![json!({"column": "size", "op": "eq", "value": 1}); 10_000];
    let body = json!({"table": "things", "where": many}).to_string();
    let answer = rig.send("POST", "/v1/live", &json, body.as_bytes()).await;
    let problem = answer.is_problem(400, "query_invalid");
    assert_eq!(problem["max"], QUERY_CONDITIONS_MAX);
    for (open, close) in [("[", "]"), ("{\"not\":", "}"), ("{\"or\":[", "]}")] {
        for (depth, code) in [(20, "query_invalid"), (20_000, "json_malformed")] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let bomb = format!("{{\"table\":\"things\",\"where\":{nested}}}");
            rig.send("POST", "/v1/live", &json, bomb.as_bytes()).await.is_problem(400, code);
        }
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn what_the_engine_refuses_is_a_problem_and_what_it_ends_with_is_the_last_event() {
    let rig = rig_with_rows().await;
    *rig.live.refuse.lock().expect("no panic") = Some(LiveError::TooManyViews { views: 9, max: 9 });
    let problem = rig.get("/v1/live?table=things").await.is_problem(429, "live_views_max");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("live_views_max"), &json!(9)));
    let (mut client, opened) = get(&rig, "table=things").await;
    opened.batches.send(Err(LiveError::ViewFailed)).await.expect("somebody listens");
    let mut text = String::new();
    client.read_until(&mut text, "0\r\n\r\n").await;
    assert!(text.contains("event: error\ndata: {"), "{text}");
    assert!(text.contains("\"code\":\"live_view_failed\""), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn a_host_that_stops_tells_its_followers_when_to_come_back() {
    let rig = rig_with_rows().await;
    let (mut client, opened) = get(&rig, "table=things").await;
    let mut text = String::new();
    client.read_until(&mut text, "retry: ").await;
    rig.cancel();
    client.read_until(&mut text, "\"code\":\"host_stopping\"").await;
    client.read_until(&mut text, "0\r\n\r\n").await;
    assert!(text.contains("event: error"), "{text}");
    opened.batches.closed().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_its_subscription() {
    let rig = rig_with_rows().await;
    let (mut client, opened) = get(&rig, "table=things").await;
    let mut text = String::new();
    client.read_until(&mut text, "retry: ").await;
    drop(client);
    tokio::time::timeout(super::rig::PATIENCE, opened.batches.closed()).await.expect("it is closed");
    rig.stop().await;
}

#[tokio::test]
async fn an_idle_stream_has_pings() {
    let rig = Rig::with(|options| options.sse_heartbeat = std::time::Duration::from_millis(20)).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let (mut client, _opened) = get(&rig, "table=things").await;
    let mut text = String::new();
    client.read_until(&mut text, ": ping\n\n").await;
    client.read_until(&mut text, ": ping\n\n").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_query_is_the_tenants_of_its_token() {
    let rig = Rig::with_tokens().await;
    rig.rows("alpha", &[("a", 1, None)]).await;
    for path in ["/v1/live?table=things", "/v1/live/ws"] {
        rig.get(path).await.is_problem(401, "token_missing");
        let wrong = [("Authorization", "Bearer alpha-publish")];
        rig.send("GET", path, &wrong, b"").await.is_problem(403, "right_missing");
    }
    for (token, tenant) in [("alpha-read", "alpha"), ("beta-all-rights", "beta")] {
        let head = format!("GET /v1/live?table=things HTTP/1.1\r\nAuthorization: Bearer {token}");
        let _client = ask(&rig, &head, "").await;
        assert_eq!(rig.live.opened().await.asked.tenant.as_str(), tenant);
    }
    rig.stop().await;
}

#[tokio::test]
async fn connections_frames_and_their_ends_are_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let (mut gone, first) = get(&rig, "table=things").await;
    let (mut ended, second) = get(&rig, "table=things").await;
    let mut text = String::new();
    first.batches.send(Ok(batch(&["reset", "enter"], Some("e.3")))).await.expect("somebody listens");
    gone.read_until(&mut text, "event: enter").await;
    let shown = rig.get("/metrics").await.text();
    assert!(shown.contains("millrace_live_clients{transport=\"sse\"} 2\n"), "{shown}");
    assert!(shown.contains("millrace_live_sent_frames_total{transport=\"sse\"} 2\n"), "{shown}");
    second.batches.send(Err(LiveError::ViewFailed)).await.expect("somebody listens");
    ended.read_until(&mut String::new(), "0\r\n\r\n").await;
    drop(gone);
    let counted = async {
        loop {
            let shown = rig.get("/metrics").await.text();
            let closed = |cause: &str| {
                shown.contains(&format!(
                    "millrace_live_closes_total{{transport=\"sse\",cause=\"{cause}\"}} 1\n"
                ))
            };
            if closed("disconnected") && closed("live_view_failed") {
                assert!(shown.contains("millrace_live_clients{transport=\"sse\"} 0\n"), "{shown}");
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::rig::PATIENCE, counted).await.expect("both ends are counted");
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_can_follow_other_requests_on_its_connection() {
    let rig = rig_with_rows().await;
    let mut client = rig.connect().await;
    // Both at once: the answer to the first must be whole before the second takes the connection over.
    client
        .write(
            b"GET /v1/tables/things HTTP/1.1\r\nHost: localhost\r\n\r\n\
              GET /v1/live?table=things HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
    let opened = rig.live.opened().await;
    opened.batches.send(Ok(batch(&["reset"], Some("e.3")))).await.expect("somebody listens");
    let mut text = String::new();
    client.read_until(&mut text, "event: reset").await;
    let (rows, events) = text.split_once("text/event-stream").expect("two answers");
    assert_eq!(rows.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(rows.contains("\"rows\":["), "{text}");
    assert!(events.contains("transfer-encoding: chunked"), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn an_old_client_gets_a_stream_without_chunks_and_a_question_for_the_head_gets_no_stream() {
    let rig = rig_with_rows().await;
    let mut old = ask(&rig, "GET /v1/live?table=things HTTP/1.0", "").await;
    let opened = rig.live.opened().await;
    opened.batches.send(Err(LiveError::ViewFailed)).await.expect("somebody listens");
    let mut text = String::new();
    old.read_until(&mut text, "event: error").await;
    assert!(!text.contains("chunked"), "{text}");
    let body = text.split_once("\r\n\r\n").expect("a head").1;
    assert!(body.starts_with("retry: "), "{text}");
    old.closed().await;

    let mut client = ask(&rig, "HEAD /v1/live?table=things HTTP/1.1", "").await;
    let opened = rig.live.opened().await;
    tokio::time::timeout(super::rig::PATIENCE, opened.batches.closed()).await.expect("nobody watches");
    let mut text = String::new();
    client.read_until(&mut text, "\r\n\r\n").await;
    assert!(text.contains("text/event-stream") && !text.contains("retry: "), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_little_at_a_time_gets_every_byte() {
    let rig = rig_with_rows().await;
    let (mut client, opened) = get(&rig, "table=things").await;
    // More than the socket's buffers hold: writes are cut wherever they happen to be full.
    let send = async {
        for number in 0..24 {
            let mut builder = BatchBuilder::default();
            let filler = "x".repeat(200_000 + number * 7);
            builder.frame("enter", |out| out.extend_from_slice(format!("\"{number}-{filler}\"").as_bytes()));
            let sent = opened.batches.send(Ok(builder.finish(None, Revision(1)))).await;
            sent.expect("somebody listens");
        }
        opened.batches.send(Err(LiveError::ViewFailed)).await.expect("somebody listens");
    };
    let mut text = String::new();
    tokio::join!(send, client.read_until(&mut text, "0\r\n\r\n"));
    let mut body = text.split_once("\r\n\r\n").expect("a head").1;
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        whole.push_str(&rest[..size]);
        assert_eq!(&rest[size..size + 2], "\r\n");
        body = &rest[size + 2..];
    }
    let frames: Vec<_> = whole.lines().filter_map(|line| line.strip_prefix("data: \"")).collect();
    assert_eq!(frames.len(), 24);
    for (number, frame) in frames.iter().enumerate() {
        let filler = frame.strip_prefix(&format!("{number}-")).expect("in order");
        assert_eq!(filler.trim_end_matches('"').len(), 200_000 + number * 7);
    }
    rig.stop().await;
}
