//! Streams and tables. What is given a log runs on every one.

use millrace_tests::every_log::Log;
use serde_json::{Value, json};

use super::rig::{Client, Rig};

async fn follow(rig: &Rig, path: &str, extra: &str) -> Client {
    let mut client = rig.connect().await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{extra}\r\n");
    client.write(head.as_bytes()).await;
    client
}

fn versions(page: &Value) -> Vec<u64> {
    page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| e["version"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test]
async fn pages_follow_each_other_exactly() {
    let rig = Rig::start().await;
    rig.append("default", 25).await;
    let mut after = String::new();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let page = rig.get(&format!("/v1/streams/events?limit=10{after}")).await.json();
        seen.extend(versions(&page));
        after = format!("&after={}", page["next"].as_str().expect("a cursor"));
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    let even = rig.get("/v1/streams/events?types=thing.even,other").await.json();
    assert_eq!(versions(&even), (2..=25).step_by(2).collect::<Vec<_>>());
    let none = rig.get("/v1/streams/events?after=newest&types=thing.*").await.json();
    assert_eq!(none["events"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn wrong_questions_to_a_stream_are_refused() {
    let rig = Rig::start().await;
    rig.append("default", 1).await;
    let epoch = rig.get("/v1/streams/events").await.json()["next"].as_str().expect("a cursor").to_owned();
    let epoch = epoch.split('.').next().expect("an epoch").to_owned();
    rig.get("/v1/streams/changes").await.is_problem(404, "stream_unknown");
    rig.get("/v1/streams/events?limit=0").await.is_problem(400, "page_events_max");
    rig.get("/v1/streams/events?limit=4097").await.is_problem(400, "page_events_max");
    rig.get("/v1/streams/events?limit=many").await.is_problem(400, "parameter_invalid");
    rig.get("/v1/streams/events?after=nonsense").await.is_problem(400, "cursor_invalid");
    rig.get("/v1/streams/events?after=OTHER.1").await.is_problem(410, "cursor_foreign");
    rig.get(&format!("/v1/streams/events?after={epoch}.99")).await.is_problem(409, "position_ahead");
    rig.get("/v1/streams/events?afer=oldest").await.is_problem(400, "parameter_unknown");
    rig.get("/v1/streams/events?tenant=beta").await.is_problem(400, "tenant_in_body");
    let headers = [("Accept", "text/event-stream")];
    rig.send("GET", "/v1/streams/events", &headers, b"").await.is_problem(400, "start_missing");
    rig.stop().await;
}

#[tokio::test]
async fn a_lost_position_is_told_with_the_oldest() {
    let rig = Rig::start().await;
    rig.append("default", 10).await;
    let first =
        rig.get("/v1/streams/events?limit=1").await.json()["next"].as_str().expect("a cursor").to_owned();
    let keep = millrace::streams::Retention { age: None, events: Some(3) };
    millrace::streams::EventLog::trim(&rig.store, keep).await.expect("trimmed");
    let path = format!("/v1/streams/events?after={first}");
    let problem = rig.get(&path).await.is_problem(410, "position_lost");
    let headers = [("Accept", "text/event-stream")];
    rig.send("GET", &path, &headers, b"").await.is_problem(410, "position_lost");
    let oldest = problem["oldest"].as_str().expect("a cursor");
    let page = rig.get(&format!("/v1/streams/events?after={oldest}")).await.json();
    assert_eq!(versions(&page), [8, 9, 10]);
    assert_eq!(versions(&rig.get("/v1/streams/events").await.json()), [8, 9, 10]);
    rig.stop().await;
}

pub(super) async fn c39_sn23_a_tail_shows_what_was_and_what_comes_and_resumes_exactly(log: Log) {
    let rig = Rig::over(log, |_| {}).await;
    rig.append("default", 3).await;
    let mut client = follow(&rig, "/v1/streams/events?after=oldest", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":3,").await;
    assert!(seen.contains("retry: "), "{seen}");
    assert!(seen.contains("event: ready"), "{seen}");
    let body = br#"{"aggregate":"thing","agg_id":"two","version":1,"type":"thing.new","payload":{
        "n": 9007199254740993}}"#;
    rig.post("application/json", body).await;
    client.read_until(&mut seen, "\"agg_id\":\"two\"").await;
    assert!(seen.contains("9007199254740993"));
    drop(client);
    let ids: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids.len(), 5, "one for `ready`, one for each event");
    for header in [true, false] {
        let (path, extra) = if header {
            ("/v1/streams/events?after=oldest".into(), format!("Last-Event-ID: {}\r\n", ids[2]))
        } else {
            (format!("/v1/streams/events?after=oldest&last_event_id={}", ids[2]), String::new())
        };
        let mut client = follow(&rig, &path, &extra).await;
        let mut again = String::new();
        client.read_until(&mut again, "\"agg_id\":\"two\"").await;
        let resumed: Vec<&str> = again.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        assert_eq!(resumed, ids[2..], "`ready` repeats the place, then what follows it");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_tail_from_newest_shows_only_what_comes_of_its_tenant() {
    let rig = Rig::with_tokens().await;
    rig.append("alpha", 3).await;
    let token = "Authorization: Bearer alpha-read\r\n";
    let mut client = follow(&rig, "/v1/streams/events?after=newest&types=thing.made", token).await;
    let mut seen = String::new();
    client.read_until(&mut seen, "event: ready").await;
    let body = br#"{"aggregate":"thing","agg_id":"x","version":1,"type":"thing.made"}"#;
    for token in ["Bearer beta-all-rights", "Bearer alpha-publish"] {
        let headers = [("Content-Type", "application/json"), ("Authorization", token)];
        assert_eq!(rig.send("POST", "/v1/events", &headers, body).await.status, 200);
    }
    client.read_until(&mut seen, "thing.made").await;
    let shown: Vec<&str> = seen
        .lines()
        .filter(|line| line.starts_with("data: {\"position\"") && line.contains("agg_id"))
        .collect();
    assert_eq!(shown.len(), 1, "{seen}");
    assert!(shown[0].contains(".5\""), "the fourth belongs to the other tenant: {seen}");
    rig.stop().await;
}

/// The versions of the events that a follower was shown, in their order.
fn shown(text: &str) -> Vec<u64> {
    let events = text.lines().filter(|line| line.starts_with("data: ") && line.contains("\"agg_id\""));
    let version = |line: &str| line.split("\"version\":").nth(1)?.split(',').next()?.parse().ok();
    events.map(|line| version(line).expect("a version")).collect()
}

#[tokio::test]
async fn a_follower_behind_the_tail_is_served_from_the_store_and_then_by_the_tail() {
    let rig = Rig::with_short_tail().await;
    // More than the buffers of a socket hold: the follower stays behind until it is read from.
    rig.append_large(40, 500_000).await;
    let mut client = follow(&rig, "/v1/streams/events?after=oldest", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "event: ready").await;
    client.read_until(&mut seen, "\"version\":40,").await;
    rig.append("default", 3).await;
    let mut later = String::new();
    client.read_until(&mut later, "\"version\":3,").await;
    assert_eq!((shown(&seen), shown(&later)), ((1..=40).collect(), vec![1, 2, 3]));
    rig.stop().await;
}

#[tokio::test]
async fn a_follower_that_retention_passes_is_told_where_it_can_go_on() {
    let rig = Rig::with_short_tail().await;
    rig.append_large(40, 500_000).await;
    let mut client = follow(&rig, "/v1/streams/events?after=oldest", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":1,").await;
    let keep = millrace::streams::Retention { age: None, events: Some(2) };
    millrace::streams::EventLog::trim(&rig.store, keep).await.expect("trimmed");
    client.read_until(&mut seen, "event: error\ndata: ").await;
    client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
    let versions = shown(&seen);
    let count = versions.len() as u64;
    assert_eq!(versions, (1..=count).collect::<Vec<_>>(), "nothing is left out before the word");
    assert!(count < 38, "the follower was not behind: it has seen {count}");
    let (_, problem) = seen.rsplit_once("event: error\ndata: ").expect("it came");
    let problem: Value = serde_json::from_str(problem.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&problem["code"], &problem["status"]), (&json!("position_lost"), &json!(410)));
    let oldest = problem["oldest"].as_str().expect("a cursor");
    let mut client = follow(&rig, &format!("/v1/streams/events?after={oldest}"), "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":40,").await;
    client.read_until(&mut seen, "\n\n").await;
    assert_eq!(shown(&seen), [39, 40]);
    rig.stop().await;
}

/// Nothing of the new life comes under a place of the former one, and what is told is a place in the new one.
#[tokio::test]
async fn sn7_a_tail_that_lives_through_a_new_life_of_the_log_ends_with_a_word_and_a_place_to_go_on() {
    const LIFE: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for path in ["/v1/streams/events", "/v1/streams/orders"] {
        let rig = Rig::start().await;
        let publish = async |version: u64| {
            let event =
                json!({"aggregate": "thing", "agg_id": "a", "version": version, "type": "thing.made"});
            let headers = [("Content-Type", "application/json")];
            let answer = rig.send("POST", path, &headers, event.to_string().as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        };
        publish(1).await;
        let mut client = follow(&rig, &format!("{path}?after=oldest"), "").await;
        let mut seen = String::new();
        client.read_until(&mut seen, "\"version\":1,").await;
        rig.log.begin_new_life(LIFE);
        publish(2).await;
        client.read_until(&mut seen, "event: error\ndata: ").await;
        client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
        assert_eq!(shown(&seen), [1], "{path}");
        let (_, problem) = seen.rsplit_once("event: error\ndata: ").expect("it came");
        let problem: Value = serde_json::from_str(problem.lines().next().expect("a line")).expect("JSON");
        assert_eq!((&problem["code"], &problem["status"]), (&json!("cursor_foreign"), &json!(410)));
        let mut places = seen.lines().filter_map(|line| line.strip_prefix("id: "));
        let last = places.next_back().expect("a place");
        assert_eq!(last, format!("{}.1", millrace::streams::EventLog::epoch(&rig.store).0));
        let headers = [("Accept", "text/event-stream"), ("Last-Event-ID", last)];
        rig.send("GET", path, &headers, b"").await.is_problem(410, "cursor_foreign");
        let oldest = problem["oldest"].as_str().expect("a cursor");
        assert_eq!(oldest, format!("{LIFE}.0"));
        let mut client = follow(&rig, &format!("{path}?after={oldest}"), "").await;
        let mut again = String::new();
        client.read_until(&mut again, "\"version\":2,").await;
        assert!(again.contains(&format!("id: {LIFE}.2\n")), "{again}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_quiet_tail_shows_signs_of_life_and_moves_over_what_is_filtered() {
    let rig = Rig::with(|options| options.sse_heartbeat = std::time::Duration::from_millis(50)).await;
    let mut client = follow(&rig, "/v1/streams/events?after=newest&types=never", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, ": \n\n").await;
    rig.append("default", 2).await;
    client.read_until(&mut seen, "event: progress").await;
    client.read_until(&mut seen, ".2\"").await;
    rig.stop().await;
}

#[tokio::test]
async fn stopping_ends_tails_with_a_word() {
    let rig = Rig::start().await;
    let mut client = follow(&rig, "/v1/streams/events?after=oldest", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "event: ready").await;
    rig.cancel();
    client.read_until(&mut seen, "event: closing").await;
    client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
    rig.stop().await;
}

const ROWS: &[(&str, i64, Option<&str>)] = &[
    ("a/1", i64::MAX, Some("2013-01-01T10:00:00Z")),
    ("b", 7, None),
    ("c", -9_007_199_254_740_993, Some("2013-01-02T10:00:00.5Z")),
    ("d", 7, Some("2013-01-03T10:00:00Z")),
];

fn keys(page: &Value) -> Vec<&str> {
    page["rows"].as_array().expect("rows").iter().map(|row| row["key"].as_str().expect("a key")).collect()
}

#[tokio::test]
async fn sn23_rows_come_with_every_digit_and_every_type() {
    let rig = Rig::start().await;
    rig.rows("default", ROWS).await;
    let answer = rig.get("/v1/tables/things/a/1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("\"size\":9223372036854775807"), "{}", answer.text());
    assert!(answer.text().contains("{\"big\":9007199254740993}"));
    let row = &answer.json()["row"];
    assert_eq!(row["values"]["seen"], "2013-01-01T10:00:00Z");
    assert_eq!(row["values"]["raw"], "AP8=");
    assert_eq!(row["values"]["title"], "thing a/1");
    assert_eq!(rig.get("/v1/tables/things/a%2F1").await.status, 200);
    rig.get("/v1/tables/things/nobody").await.is_problem(404, "row_unknown");
    let long = "k".repeat(1_025);
    rig.get(&format!("/v1/tables/things/{long}")).await.is_problem(400, "row_key_bytes_max");
    let list = rig.get("/v1/tables").await.json();
    assert_eq!(list["tables"][0]["name"], "things");
    assert_eq!(list["tables"][0]["plugin"], "keeper");
    assert_eq!(list["tables"][0]["columns"][0]["type"], "int");
    rig.stop().await;
}

#[tokio::test]
async fn conditions_order_and_cursors_do_what_they_say() {
    let rig = Rig::start().await;
    rig.rows("default", ROWS).await;
    for (query, wanted) in [
        ("where=size:eq:7", vec!["b", "d"]),
        ("where=size:in:7,9223372036854775807&order=size:desc", vec!["a/1", "b", "d"]),
        ("where=size:lt:0", vec!["c"]),
        ("where=seen:isnull", vec!["b"]),
        ("where=seen:gte:2013-01-02T10:00:00.5Z&where=size:eq:7", vec!["d"]),
        ("where=title:like:thing%25b", vec!["b"]),
        ("where=%7B%22column%22:%22size%22,%22op%22:%22eq%22,%22value%22:-9007199254740993%7D", vec!["c"]),
        (
            "where=%5B%7B%22column%22:%22key%22,%22op%22:%22in%22,%22value%22:%5B%22b%22,%22c%22%5D%7D%5D",
            vec!["b", "c"],
        ),
        ("order=size,seen:desc", vec!["c", "d", "b", "a/1"]),
    ] {
        let page = rig.get(&format!("/v1/tables/things?{query}")).await;
        assert_eq!(page.status, 200, "{query}: {}", page.text());
        assert_eq!(keys(&page.json()), wanted, "{query}");
    }
    for order in ["", "&order=size:desc", "&order=seen", "&order=seen:desc,size"] {
        let whole = rig.get(&format!("/v1/tables/things?limit=100{order}")).await.json();
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = rig.get(&format!("/v1/tables/things?limit=1{order}{cursor}")).await.json();
            seen.extend(keys(&page).iter().map(|key| (*key).to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, keys(&whole), "order `{order}`");
    }
    rig.stop().await;
}

#[tokio::test]
async fn wrong_questions_to_a_table_are_refused() {
    let rig = Rig::start().await;
    rig.rows("default", ROWS).await;
    rig.get("/v1/tables/nothing").await.is_problem(404, "table_unknown");
    rig.get("/v1/tables/nothing/key").await.is_problem(404, "table_unknown");
    for (query, code, said) in [
        ("where=colour:eq:1", "query_invalid", "colour"),
        ("order=colour", "query_invalid", "colour"),
        ("order=title", "query_invalid", "title"),
        ("where=raw:eq:AA==", "query_invalid", "raw"),
        ("where=size:eq:many", "query_invalid", "many"),
        ("where=size:eq:9223372036854775808", "query_invalid", "9223372036854775808"),
        ("where=size:like:7", "query_invalid", "size"),
        ("where=size:about:7", "parameter_invalid", "about"),
        ("where=size", "parameter_invalid", "size"),
        ("where=%7B", "parameter_invalid", "where"),
        ("order=size:up", "parameter_invalid", "up"),
        ("order=size,size", "parameter_invalid", "size"),
        ("limit=101", "query_invalid", "101"),
        ("limit=0", "query_invalid", "0"),
        ("cursor=nonsense", "query_invalid", "cursor"),
        ("offset=5", "parameter_unknown", "offset"),
    ] {
        let problem = rig.get(&format!("/v1/tables/things?{query}")).await.is_problem(400, code);
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(said)), "{query}: {problem}");
    }
    let next = rig.get("/v1/tables/things?limit=1&order=size").await.json()["next"].clone();
    let other =
        format!("/v1/tables/things?limit=1&order=size:desc&cursor={}", next.as_str().expect("a cursor"));
    rig.get(&other).await.is_problem(400, "query_invalid");
    rig.stop().await;
}

#[tokio::test]
async fn an_unchanged_table_costs_no_transfer() {
    let rig = Rig::start().await;
    rig.rows("default", ROWS).await;
    for path in ["/v1/tables/things?limit=2", "/v1/tables/things/b"] {
        let first = rig.get(path).await;
        let etag = first.header("etag").expect("an ETag").to_owned();
        let again = rig.send("GET", path, &[("If-None-Match", &etag)], b"").await;
        assert_eq!((again.status, again.body.len()), (304, 0));
        rig.rows("default", &[("b", 8, None)]).await;
        assert_eq!(rig.send("GET", path, &[("If-None-Match", &etag)], b"").await.status, 200);
    }
    rig.stop().await;
}

#[tokio::test]
async fn tenants_do_not_see_each_others_rows_and_events() {
    let rig = Rig::with_tokens().await;
    rig.rows("alpha", &[("same", 1, None)]).await;
    rig.rows("beta", &[("same", 2, None)]).await;
    rig.append("alpha", 1).await;
    for (token, size, events) in [("Bearer alpha-read", 1, 1), ("Bearer beta-all-rights", 2, 0)] {
        let headers = [("Authorization", token)];
        let row = rig.send("GET", "/v1/tables/things/same", &headers, b"").await.json();
        assert_eq!(row["row"]["values"]["size"], size);
        let page = rig.send("GET", "/v1/tables/things", &headers, b"").await.json();
        assert_eq!(page["rows"].as_array().map(Vec::len), Some(1));
        let page = rig.send("GET", "/v1/streams/events", &headers, b"").await.json();
        assert_eq!(page["events"].as_array().map(Vec::len), Some(events));
    }
    rig.stop().await;
}
