//! Changes and streams with a name of their own, over HTTP. What is given a log runs on every one.

use std::time::Duration;

use millrace::event::{Event, EventBatch, TenantId};
use millrace::streams::{EventLog, Retention};
use millrace_tests::conformance::change_streams::{asset_scopes, change_of};
use millrace_tests::every_log::Log;
use serde_json::{Value, json};

use super::rig::{Client, Rig};

const FROM_START: &str = "/v1/changes/asset/id/A1?after=oldest&mode=raw";

async fn rig() -> Rig {
    declared(Rig::start().await).await
}

pub(super) async fn declared(rig: Rig) -> Rig {
    rig.log.declare_scopes("assets", &asset_scopes()).await.expect("declared");
    rig
}

/// An event of the tenant `default`, at site S1.
pub(super) async fn publish(rig: &Rig, agg_id: &str, version: u64) {
    publish_at(rig, agg_id, version, "S1").await;
}

async fn publish_at(rig: &Rig, agg_id: &str, version: u64, site: &str) {
    let payload = format!("{{\"site_id\":\"{site}\"}}");
    rig.place(change_of("default", "asset", agg_id, version, "updated", &payload)).await;
}

pub(super) async fn follow(rig: &Rig, path: &str, extra: &str) -> Client {
    follow_on(rig.connect().await, path, extra).await
}

pub(super) async fn follow_on(mut client: Client, path: &str, extra: &str) -> Client {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{extra}\r\n");
    client.write(head.as_bytes()).await;
    client
}

fn versions(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().expect("events");
    events.iter().map(|event| event["version"].as_u64().expect("a number")).collect()
}

pub(super) fn ids(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
}

#[tokio::test]
async fn a_page_of_changes_has_what_concerns_one_subject_and_says_what_it_lacks() {
    let rig = rig().await;
    for version in 1..=3 {
        publish(&rig, "A1", version).await;
        publish_at(&rig, "A/2:b", version, "S2").await;
    }
    let page = rig.get("/v1/changes/asset/id/A1?limit=2").await.json();
    assert_eq!((versions(&page), &page["truncated"]), (vec![1, 2], &json!(false)));
    assert_eq!(page["stream"], "changes:asset:id:A1");
    let epoch = page["epoch"].as_str().expect("an epoch");
    assert_eq!(page["newest"], format!("{epoch}.6"));
    assert_eq!(page["oldest"], format!("{epoch}.0"));
    let next = page["next"].as_str().expect("a cursor");
    assert_eq!(next, format!("{epoch}.3"));
    let path = format!("/v1/changes/asset/id/A1?after={next}");
    assert_eq!(versions(&rig.get(&path).await.json()), [3]);
    // The cursor is good for another scope; ids may hold anything.
    let path = format!("/v1/changes/asset/site/S2?after={next}");
    assert_eq!(versions(&rig.get(&path).await.json()), [2, 3]);
    assert_eq!(versions(&rig.get("/v1/changes/asset/id/A%2F2:b").await.json()), [1, 2, 3]);
    for path in ["/v1/changes/asset/tenant", "/v1/changes/asset/tenant/whoever"] {
        assert_eq!(rig.get(path).await.json()["events"].as_array().map(Vec::len), Some(6), "{path}");
    }
    assert_eq!(versions(&rig.get("/v1/changes/asset/id/nobody").await.json()), [0_u64; 0]);
    rig.store.trim(Retention { events: Some(2), age: None }).await.expect("trimmed");
    let page = rig.get("/v1/changes/asset/id/A1").await.json();
    assert_eq!((versions(&page), &page["truncated"]), (vec![3], &json!(true)));
    let page = rig.get("/v1/changes/asset/id/A1?after=oldest").await.json();
    assert_eq!((versions(&page), &page["truncated"]), (vec![3], &json!(false)));
    rig.stop().await;
}

#[tokio::test]
async fn wrong_questions_about_changes_are_refused() {
    let rig = rig().await;
    publish(&rig, "A1", 1).await;
    let epoch = rig.store.epoch().0;
    let follow = [("Accept", "text/event-stream")];
    for (path, status, code) in [
        ("/v1/changes/pump/id/P1", 404, "aggregate_unknown"),
        ("/v1/changes/asset/kind/x", 404, "scope_unknown"),
        ("/v1/changes/asset/id", 400, "scope_id_missing"),
        ("/v1/changes/asset/id/A1?after=nonsense", 400, "cursor_invalid"),
        ("/v1/changes/asset/id/A1?after=OTHER.1", 410, "cursor_foreign"),
        (&format!("/v1/changes/asset/id/A1?after={epoch}.99"), 409, "position_ahead"),
        ("/v1/changes/asset/id/A1?limit=0", 400, "page_events_max"),
        ("/v1/changes/asset/id/A1?mode=all", 400, "parameter_invalid"),
        ("/v1/changes/asset/id/A1?mode=raw&window_ms=5", 400, "parameter_invalid"),
        ("/v1/changes/asset/id/A1?types=x", 400, "parameter_unknown"),
        ("/v1/changes/asset", 404, "path_unknown"),
    ] {
        rig.get(path).await.is_problem(status, code);
    }
    let ahead = format!("/v1/changes/asset/id/A1?after={epoch}.99");
    rig.send("GET", &ahead, &follow, b"").await.is_problem(409, "position_ahead");
    for window in ["0", "10001"] {
        let path = format!("/v1/changes/asset/id/A1?window_ms={window}");
        rig.send("GET", &path, &follow, b"").await.is_problem(400, "change_window_ms");
    }
    let mut raw = self::follow(&rig, FROM_START, "").await;
    raw.read_until(&mut String::new(), "event: ready").await;
    rig.send("GET", "/v1/changes/asset/id/A1", &follow, b"").await.is_problem(409, "change_modes_mixed");
    rig.stop().await;
}

pub(super) async fn c38_changes_arrive_by_their_type_and_a_resume_has_exactly_what_follows(log: Log) {
    let rig = declared(Rig::over(log, |_| {}).await).await;
    publish(&rig, "A1", 1).await;
    let mut client = follow(&rig, FROM_START, "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":1,").await;
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(seen.contains(header), "{header}: {seen}");
    }
    publish(&rig, "A1", 2).await;
    publish(&rig, "B", 1).await;
    publish(&rig, "A1", 3).await;
    client.read_until(&mut seen, "\"version\":3,").await;
    assert_eq!(seen.matches("event: asset.updated\ndata: {").count(), 3, "{seen}");
    let epoch = rig.log.epoch().0;
    let expected: Vec<String> = [0, 1, 2, 4].iter().map(|position| format!("{epoch}.{position}")).collect();
    assert_eq!(ids(&seen), expected, "`ready`, and one for each change");
    drop(client);
    publish(&rig, "A1", 4).await;
    // Resumed on another scope, too: positions are the log's.
    for path in ["/v1/changes/asset/id/A1?mode=raw", "/v1/changes/asset/site/S1"] {
        let extra = format!("Last-Event-ID: {}\r\n", expected[2]);
        let mut client = follow(&rig, path, &extra).await;
        let mut again = String::new();
        client.read_until(&mut again, "\"version\":4,").await;
        assert!(!again.contains("\"version\":2,") && again.contains("\"version\":3,"), "{again}");
        assert!(!again.contains("event: gap"), "{again}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn no_event_passes_for_what_the_stream_says_itself() {
    let rig = rig().await;
    for (id, event_type) in [("1", "closing"), ("2", "gap"), ("3", "asset.updated")] {
        let body = format!(
            r#"{{"id":"{id}","aggregate":"asset","agg_id":"A1","version":{id},"type":"{event_type}","payload":{{}}}}"#
        );
        let sent =
            rig.send("POST", "/v1/events", &[("Content-Type", "application/json")], body.as_bytes()).await;
        assert_eq!(sent.status, 200, "{}", sent.text());
    }
    let mut client = follow(&rig, "/v1/changes/asset/id/A1?mode=raw&after=oldest", "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":3,").await;
    assert!(!seen.contains("event: closing") && !seen.contains("event: gap"), "{seen}");
    assert_eq!(seen.matches("event: event\ndata: {").count(), 2, "{seen}");
    assert!(seen.contains(r#""type":"closing""#) && seen.contains("event: asset.updated\n"), "{seen}");
    rig.stop().await;
}

#[tokio::test]
async fn a_follower_without_a_place_begins_now_and_is_told_where() {
    let rig = rig().await;
    publish(&rig, "A1", 1).await;
    let mut client = follow(&rig, "/v1/changes/asset/tenant?window_ms=1", "Last-Event-ID: \r\n").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "event: ready").await;
    publish(&rig, "A1", 2).await;
    client.read_until(&mut seen, "\"version\":2,").await;
    assert!(!seen.contains("\"version\":1,"), "{seen}");
    assert_eq!(ids(&seen)[0], format!("{}.1", rig.store.epoch().0));
    rig.stop().await;
}

#[tokio::test]
async fn a_resume_catches_up_to_the_end_over_many_pages() {
    let rig = rig().await;
    let mut last = 0;
    for _ in 0..9 {
        let mut batch = EventBatch::new(TenantId::new("default").expect("a tenant"));
        for _ in 0..1_000 {
            last += 1;
            let event = Event {
                aggregate: "asset",
                agg_id: "A1",
                version: last,
                event_type: "asset.updated",
                payload: b"{}",
                ..Event::default()
            };
            batch.push(&event).expect("a valid event");
        }
        rig.store.append(batch).await.expect("appended");
    }
    let mut client = follow(&rig, FROM_START, "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, &format!("\"version\":{last},")).await;
    assert_eq!(seen.matches("event: asset.updated").count(), 9_000);
    assert!(!seen.contains("event: gap"));
    rig.stop().await;
}

#[tokio::test]
async fn sn07_an_id_that_means_nothing_any_more_is_a_gap_with_its_reason() {
    let rig = rig().await;
    for version in 1..=5 {
        publish(&rig, "A1", version).await;
    }
    rig.store.trim(Retention { events: Some(2), age: None }).await.expect("trimmed");
    let epoch = rig.store.epoch().0;
    let cases = [
        (format!("{epoch}.1"), "position_lost", format!("{epoch}.3"), true),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV.4".to_owned(), "cursor_foreign", format!("{epoch}.5"), false),
        (format!("{epoch}.77"), "position_ahead", format!("{epoch}.5"), false),
        ("1700000000000-0".to_owned(), "cursor_invalid", format!("{epoch}.5"), false),
    ];
    for (id, code, position, has_held) in cases {
        let extra = format!("Last-Event-ID: {id}\r\n");
        let mut client = follow(&rig, "/v1/changes/asset/id/A1?mode=raw", &extra).await;
        let mut seen = String::new();
        client.read_until(&mut seen, &format!("\"code\":\"{code}\",\"position\":\"{position}\"")).await;
        if has_held {
            client.read_until(&mut seen, "\"version\":5,").await;
            assert!(seen.contains("\"version\":4,"), "what is held follows: {seen}");
        }
        assert_eq!(seen.matches("event: gap").count(), 1, "{seen}");
    }
    let extra = format!("Last-Event-ID: {epoch}.3\r\n");
    let mut client = follow(&rig, "/v1/changes/asset/id/A1?mode=raw", &extra).await;
    let mut seen = String::new();
    client.read_until(&mut seen, "\"version\":5,").await;
    assert!(!seen.contains("event: gap"), "nothing is missing after the oldest: {seen}");
    rig.stop().await;
}

pub(super) async fn c38_a_follower_without_changes_gets_signs_of_life_and_its_place(log: Log) {
    let heartbeat = Duration::from_millis(20);
    let rig = declared(Rig::over(log, |options| options.sse_heartbeat = heartbeat).await).await;
    let mut client = follow(&rig, FROM_START, "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, ": \n\n").await;
    assert!(!seen.contains("event: progress"), "nothing has happened: {seen}");
    publish(&rig, "B", 1).await;
    client.read_until(&mut seen, &format!("event: progress\nid: {}.1\n", rig.log.epoch().0)).await;
    assert!(!seen.contains("\"version\""), "what concerns another is not shown: {seen}");
    rig.stop().await;
}

/// It is ended, with all that came before its place in order and whole, and has the rest when it comes again. Who
/// reads the same beside it has each event as it comes.
#[tokio::test]
async fn c43_sn8_sn22_a_slow_client_of_changes_is_told_of_the_overflow_and_resumes_to_the_end() {
    let rig = rig().await;
    let mut client = follow(&rig, FROM_START, "").await;
    let mut seen = String::new();
    client.read_until(&mut seen, "event: ready").await;
    let mut quick = follow(&rig, FROM_START, "").await;
    quick.read_until(&mut String::new(), "event: ready").await;
    // It reads nothing until the hub has given it up: what the sockets and its queue hold is full then.
    let (hub, padding) = (rig.services().hub, "x".repeat(500_000));
    let mut last = 0;
    while hub.stats().subscriptions > 1 {
        last += 1;
        assert!(last < 1_000, "it is never given up");
        let payload = format!("{{\"padding\":\"{padding}\"}}");
        rig.store
            .append(change_of("default", "asset", "A1", last, "updated", &payload))
            .await
            .expect("appended");
        quick.read_until(&mut String::new(), &format!("\"version\":{last},")).await;
    }
    publish(&rig, "A1", last + 1).await;
    quick.read_until(&mut String::new(), &format!("\"version\":{},", last + 1)).await;
    client.read_until(&mut seen, "\"code\":\"change_subscriber_overflow\"").await;
    client.read_until(&mut seen, "\r\n0\r\n\r\n").await;
    let epoch = rig.store.epoch().0;
    let places: Vec<u64> = ids(&seen)
        .iter()
        .map(|id| id.strip_prefix(&format!("{epoch}.")).and_then(|id| id.parse().ok()).expect("a place"))
        .collect();
    let (reached, rest) = places.split_last().expect("the gap has an id");
    assert_eq!(rest, (0..=*reached).collect::<Vec<_>>(), "all of it up to the gap's place");
    assert!(*reached < last, "something was left out");
    let extra = format!("Last-Event-ID: {epoch}.{reached}\r\n");
    let mut again = follow(&rig, FROM_START, &extra).await;
    let mut seen = String::new();
    again.read_until(&mut seen, &format!("\"version\":{},", last + 1)).await;
    let expected: Vec<String> = (*reached..=last + 1).map(|place| format!("{epoch}.{place}")).collect();
    assert_eq!(ids(&seen), expected);
    assert!(!seen.contains("event: gap"), "the log has the rest");
    rig.stop().await;
}

#[tokio::test]
async fn sn7_a_follower_that_lives_through_a_new_life_of_the_log_is_told_and_goes_on_in_it() {
    const LIFE: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for mode in ["raw", "conflated"] {
        let rig = rig().await;
        publish(&rig, "A1", 1).await;
        let former = rig.store.epoch().0;
        let path = format!("/v1/changes/asset/id/A1?after=oldest&mode={mode}");
        let mut client = follow(&rig, &path, "").await;
        let mut seen = String::new();
        client.read_until(&mut seen, "\"version\":1,").await;
        rig.log.begin_new_life(LIFE);
        publish(&rig, "A1", 2).await;
        let gap = format!("\"code\":\"cursor_foreign\",\"position\":\"{LIFE}.");
        client.read_until(&mut seen, &gap).await;
        publish(&rig, "A1", 3).await;
        client.read_until(&mut seen, "\"version\":3,").await;
        assert_eq!(seen.matches("event: gap").count(), 1, "{mode}: {seen}");
        let (before, after): (Vec<&str>, Vec<&str>) = ids(&seen).iter().partition(|id| !id.starts_with(LIFE));
        assert_eq!(
            before,
            [format!("{former}.0"), format!("{former}.1")],
            "{mode}: no new place in the old life"
        );
        assert_eq!(after.last(), Some(&&format!("{LIFE}.3")[..]), "{mode}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn c49_changes_are_for_who_may_read_in_the_tenant() {
    let rig = declared(Rig::with_tokens().await).await;
    let path = "/v1/changes/asset/id/A1";
    rig.get(path).await.is_problem(401, "token_missing");
    let of = |token| [("Authorization", token), ("Accept", "text/event-stream")];
    rig.send("GET", path, &of("Bearer alpha-publish"), b"").await.is_problem(403, "right_missing");
    let mut rival = follow(&rig, path, "Authorization: Bearer beta-all-rights\r\n").await;
    let mut seen = String::new();
    rival.read_until(&mut seen, "event: ready").await;
    rig.store.append(change_of("alpha", "asset", "A1", 1, "made", "{}")).await.expect("appended");
    // Its own event is the first that it sees.
    rig.store.append(change_of("beta", "asset", "A1", 9, "updated", "{}")).await.expect("appended");
    rival.read_until(&mut seen, "\"version\":9,").await;
    assert!(!seen.contains("asset.made"), "{seen}");
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_with_a_name_takes_events_and_gives_them_back() {
    let rig = rig().await;
    let path = "/v1/streams/orders.eu";
    let json = [("Content-Type", "application/json")];
    let body = br#"{"aggregate":"asset","agg_id":"A1","version":1,"type":"asset.made","payload":{"n":1}}"#;
    let first = rig.send("POST", path, &json, body).await.json();
    assert_eq!(first["events"][0]["repeated"], false);
    assert_eq!(rig.send("POST", path, &json, body).await.json()["events"][0]["repeated"], true);
    let lines = b"{\"aggregate\":\"o\",\"agg_id\":\"1\",\"version\":1,\"type\":\"o.x\"}\n\
        {\"aggregate\":\"o\",\"agg_id\":\"1\",\"version\":2,\"type\":\"o.x\"}\n";
    let answer = rig.send("POST", path, &[("Content-Type", "application/x-ndjson")], lines).await;
    assert_eq!(answer.text().lines().count(), 2, "{}", answer.text());
    let page = rig.get(path).await.json();
    assert_eq!((versions(&page), &page["stream"]), (vec![1, 1, 2], &json!("orders.eu")));
    for path in ["/v1/streams/events", "/v1/changes/asset/id/A1"] {
        assert_eq!(rig.get(path).await.json()["events"], json!([]), "{path}");
    }
    let next = page["next"].as_str().expect("a cursor");
    let mut tail = follow(&rig, &format!("{path}?after=oldest"), "").await;
    let mut seen = String::new();
    tail.read_until(&mut seen, "\"version\":2,").await;
    rig.append("default", 1).await;
    let body = br#"{"aggregate":"o","agg_id":"1","version":3,"type":"o.x"}"#;
    rig.send("POST", path, &json, body).await.json();
    tail.read_until(&mut seen, "\"version\":3,").await;
    assert!(!seen.contains("thing"), "the main stream is another one: {seen}");
    assert_eq!(versions(&rig.get(&format!("{path}?after={next}")).await.json()), [3]);
    assert_eq!(versions(&rig.get("/v1/streams/nobody").await.json()), [0_u64; 0]);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_name_of_a_stream_takes_no_events() {
    let rig = rig().await;
    let json = [("Content-Type", "application/json")];
    let body = br#"{"aggregate":"o","agg_id":"1","version":1,"type":"o.x"}"#;
    for name in ["changes", "changes:asset:id:A1", "Orders", "a%20b", "-x"] {
        let path = format!("/v1/streams/{name}");
        rig.send("POST", &path, &json, body).await.is_problem(404, "stream_unknown");
        rig.get(&path).await.is_problem(404, "stream_unknown");
    }
    rig.send("POST", "/v1/streams/events", &json, body).await.json();
    assert_eq!(rig.get("/v1/streams/events").await.json()["events"].as_array().map(Vec::len), Some(1));
    let follow = [("Accept", "text/event-stream")];
    rig.send("GET", "/v1/streams/orders", &follow, b"").await.is_problem(400, "start_missing");
    rig.stop().await;
}
