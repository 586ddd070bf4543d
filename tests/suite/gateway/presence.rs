//! Rooms over HTTP.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use super::rig::{Answer, Client, Rig};

const LOBBY: &str = "/v1/presence/lobby";

async fn send(rig: &Rig, method: &str, path: &str, token: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    rig.send(method, path, &headers, body.as_bytes()).await
}

async fn join(rig: &Rig, member: &str, body: &Value) -> Answer {
    send(rig, "PUT", &format!("{LOBBY}/members/{member}"), "alpha-all", &body.to_string()).await
}

/// A follower of the lobby that has its `ready`.
async fn follow(rig: &Rig, token: &str) -> (Client, String) {
    let mut client = rig.connect().await;
    let head = format!(
        "GET {LOBBY} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    client.write(head.as_bytes()).await;
    let mut text = String::new();
    client.read_until(&mut text, "event: ready").await;
    (client, text)
}

/// The events of a stream: name and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let blocks = text.split("\n\n");
    let event = |block: &str| {
        let (_, named) = block.split_once("event: ")?;
        let (name, data) = named.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data.lines().next()?).ok()?))
    };
    blocks.filter_map(event).collect()
}

#[tokio::test]
async fn a_follower_over_http_sees_who_comes_changes_speaks_and_goes() {
    let rig = Rig::with_tokens().await;
    let answer = join(&rig, "ann", &json!({ "state": { "at": "desk" }, "ttl_ms": 60_000 })).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let joined = answer.json();
    assert_eq!((&joined["outcome"], &joined["ttl_ms"]), (&json!("joined"), &json!(60_000)));
    assert_eq!(joined["roster"]["members"][0]["state"], json!({ "at": "desk" }));
    let (mut client, mut text) = follow(&rig, "alpha-read").await;
    assert_eq!(join(&rig, "ann", &json!({ "state": { "at": "door" } })).await.json()["outcome"], "updated");
    let stays = send(&rig, "PUT", &format!("{LOBBY}/members/ann"), "alpha-all", "").await;
    assert_eq!(
        (stays.status, stays.json()["ttl_ms"].clone()),
        (200, json!(30_000)),
        "the body may be left out"
    );
    assert_eq!(stays.json()["outcome"], "stays");
    assert_eq!(join(&rig, "b%2Fo%20b", &json!({ "state": null })).await.status, 201);
    let said = "{\"big\":9007199254740993,\r\n \"b\":1.10}";
    let path = format!("{LOBBY}/messages?from=ann");
    let answer = send(&rig, "POST", &path, "alpha-publish", said).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let path = format!("{LOBBY}/members/ann");
    assert_eq!(send(&rig, "DELETE", &path, "alpha-publish", "").await.status, 204);
    client.read_until(&mut text, "event: leave").await;
    client.read_until(&mut text, "\"reason\":\"left\"").await;
    client.read_until(&mut text, "\n\n").await;

    assert!(text.contains("\"payload\":{\"big\":9007199254740993,   \"b\":1.10}"), "as it was said: {text}");
    let found = events(&text.replace("\r\n", ""));
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["roster", "ready", "update", "join", "message", "leave"], "{text}");
    assert_eq!(found[0].1["members"][0]["member"], "ann");
    assert_eq!(found[0].1["sequence"], found[1].1["sequence"]);
    assert_eq!((&found[2].1["member"], &found[2].1["state"]), (&json!("ann"), &json!({ "at": "door" })));
    assert_eq!((&found[3].1["member"], &found[3].1["state"]), (&json!("b/o b"), &json!(null)));
    assert_eq!((&found[4].1["from"], &found[4].1["sequence"]), (&json!("ann"), &answer.json()["sequence"]));
    let sequences: Vec<u64> =
        found[1..].iter().map(|(_, data)| data["sequence"].as_u64().unwrap_or(0)).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    let roster = send(&rig, "GET", LOBBY, "alpha-read", "").await.json();
    assert_eq!(roster["room"], "lobby");
    assert_eq!(roster["members"].as_array().map(Vec::len), Some(1), "{roster}");
    rig.stop().await;
}

#[tokio::test]
async fn looking_takes_read_and_joining_takes_publish_and_tenants_do_not_meet() {
    let rig = Rig::with_tokens().await;
    let member = format!("{LOBBY}/members/ann");
    send(&rig, "PUT", &member, "alpha-read", "{}").await.is_problem(403, "right_missing");
    send(&rig, "DELETE", &member, "alpha-read", "").await.is_problem(403, "right_missing");
    send(&rig, "POST", &format!("{LOBBY}/messages"), "alpha-read", "1")
        .await
        .is_problem(403, "right_missing");
    send(&rig, "GET", LOBBY, "alpha-publish", "").await.is_problem(403, "right_missing");
    let joined = send(&rig, "PUT", &member, "alpha-publish", "{}").await;
    assert_eq!((joined.status, joined.json().get("roster").cloned()), (201, None), "it may not look");
    let (_client, text) = follow(&rig, "beta-all-rights").await;
    assert_eq!(events(&text)[0].1["members"], json!([]));
    let theirs = send(&rig, "DELETE", &member, "beta-all-rights", "").await;
    theirs.is_problem(404, "presence_member_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_ticket_opens_a_room_for_following_and_for_nothing_else() {
    let rig = Rig::with_tokens().await;
    let made = send(&rig, "POST", "/v1/session", "alpha-read", "{\"ticket\":true}").await.json();
    let path = format!("{LOBBY}?ticket={}", made["ticket"].as_str().expect("a ticket"));
    rig.send("GET", &path, &[], b"").await.is_problem(403, "ticket_refused");
    let mut client = rig.connect().await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    client.write(head.as_bytes()).await;
    client.read_until(&mut String::new(), "event: ready").await;
    rig.stop().await;
}

#[tokio::test]
async fn wrong_requests_to_rooms_are_refused_by_name() {
    let rig = Rig::with_tokens().await;
    let at = |path: &str| format!("/v1/presence/{path}");
    let long = "x".repeat(129);
    for (method, path, body, status, code) in [
        ("PUT", at("lobby/members/ann"), "{\"ttl_ms\":999}", 400, "presence_ttl_ms"),
        ("PUT", at("lobby/members/ann"), "{\"ttl_ms\":3600001}", 400, "presence_ttl_ms"),
        ("PUT", at("lobby/members/ann"), "{\"tenant\":\"beta\"}", 400, "json_malformed"),
        ("PUT", at("lobby/members/ann"), "[]", 400, "json_malformed"),
        ("PUT", at(&format!("lobby/members/{long}")), "{}", 400, "presence_name_invalid"),
        ("GET", at(&long), "", 400, "presence_name_invalid"),
        ("GET", at("a%00b"), "", 400, "presence_name_invalid"),
        ("GET", at("lobby?after=1"), "", 400, "parameter_unknown"),
        ("POST", at("lobby/messages"), "{", 400, "json_malformed"),
        ("POST", at("lobby/messages"), "", 400, "json_malformed"),
        ("POST", at("lobby/messages?from="), "1", 400, "presence_name_invalid"),
        ("DELETE", at("lobby/members/ann"), "", 404, "presence_member_unknown"),
        ("POST", at("lobby"), "", 405, "method_not_allowed"),
    ] {
        send(&rig, method, &path, "alpha-all", body).await.is_problem(status, code);
    }
    let large = json!("x".repeat(9_000)).to_string();
    let answer = send(&rig, "POST", &at("lobby/messages"), "alpha-all", &large).await;
    assert_eq!(answer.is_problem(413, "presence_message_bytes_max")["max"], 8_192);
    for bytes in [4_095, 6_000] {
        let large = json!({ "state": "x".repeat(bytes) }).to_string();
        let answer = send(&rig, "PUT", &at("lobby/members/ann"), "alpha-all", &large).await;
        answer.is_problem(413, "presence_state_bytes_max");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_room_is_followed_as_long_as_the_credential_is_good_and_the_host_serves() {
    let rig = Rig::with(|options| {
        options.auth = super::rig::tokens();
        options.sse_heartbeat = Duration::from_millis(20);
    });
    let rig = rig.await;
    let (mut client, mut text) = follow(&rig, "alpha-read").await;
    client.read_until(&mut text, ": \n\n").await;
    let revoked = send(&rig, "POST", "/v1/auth/revoke", "alpha-all", "{\"name\":\"token-2\"}").await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    client.read_until(&mut text, "event: error").await;
    client.read_until(&mut text, "\"code\":\"token_revoked\"").await;
    client.closed().await;
    let (mut client, mut text) = follow(&rig, "alpha-all").await;
    rig.cancel();
    client.read_until(&mut text, "event: closing").await;
    client.read_until(&mut text, "host_stopping").await;
    rig.stop().await;
}

#[tokio::test]
async fn what_happens_in_rooms_is_counted_by_cause() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which is the whole runtime of this test: other tests count elsewhere.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::with_metrics(handle).await;
    let (mut client, mut text) = follow(&rig, "none").await;
    for (member, body) in [("ann", "{}"), ("ann", "{\"state\":1}"), ("bob", "{\"ttl_ms\":1000}")] {
        send(&rig, "PUT", &format!("{LOBBY}/members/{member}"), "none", body).await;
    }
    send(&rig, "POST", &format!("{LOBBY}/messages"), "none", "1").await;
    send(&rig, "DELETE", &format!("{LOBBY}/members/ann"), "none", "").await;
    client.read_until(&mut text, "\"expired\"").await;
    let metrics = rig.get("/metrics").await.text();
    for line in [
        "millrace_presence_joins_total 2",
        "millrace_presence_updates_total 1",
        "millrace_presence_messages_total 1",
        "millrace_presence_leaves_total{reason=\"left\"} 1",
        "millrace_presence_leaves_total{reason=\"expired\"} 1",
        "millrace_presence_followers 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    rig.stop().await;
}
