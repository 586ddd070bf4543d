//! A gate before changes: who is denied gets the same answer whatever there is, and nothing is looked at for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use millrace::config::Config;
use millrace::event::TenantId;
use millrace::host::Host;
use millrace::streams::hub::Gate;
use millrace::streams::{ChangeMode, ChangeRequest, HubError};
use millrace_tests::conformance::change_streams::asset_scopes;
use millrace_tests::embedded::Client;
use reqwest::Method;
use serde_json::{Value, json};

use super::changes::{declared, publish};
use super::rig::Rig;

/// What there is, what there is nothing of, an aggregate that nobody knows, a scope that nobody has declared, and
/// one that no id is given for. As they stand in a path, and as a stream's name.
const SUBJECTS: [(&str, &str); 6] = [
    ("asset/id/A1", "asset:id:A1"),
    ("asset/id/nobody", "asset:id:nobody"),
    ("asset/tenant", "asset:tenant"),
    ("pump/id/P1", "pump:id:P1"),
    ("asset/kind/x", "asset:kind:x"),
    ("asset/id", "asset:id:"),
];

const GROUP: &str = "/v1/streams/changes:asset:id:A1/groups/billing";

/// A request: its method, its path, what it accepts, its body.
type Call = (Method, String, &'static str, &'static str);

/// Everything that can be asked of a subject's changes. Some of it is wrong in other ways, too.
fn calls((subject, stream): (&str, &str)) -> Vec<Call> {
    const JSON: &str = "application/json";
    const SSE: &str = "text/event-stream";
    const RECEIPTS: &str = r#"{"receipts":["1.1.1.1"]}"#;
    let changes = |query: &str| format!("/v1/changes/{subject}{query}");
    let mut calls = vec![
        (Method::GET, changes(""), JSON, ""),
        (Method::GET, changes("?after=nonsense&limit=0"), JSON, ""),
        (Method::GET, changes(""), SSE, ""),
        (Method::GET, changes("?mode=raw&after=oldest"), SSE, ""),
    ];
    let groups = |rest: &str| format!("/v1/streams/changes:{stream}/groups{rest}");
    for (method, rest, body) in [
        (Method::GET, "", ""),
        (Method::PUT, "/billing", ""),
        (Method::GET, "/billing", ""),
        (Method::DELETE, "/billing", ""),
        (Method::POST, "/billing/read", r#"{"consumer":"one"}"#),
        (Method::POST, "/billing/ack", RECEIPTS),
        (Method::POST, "/billing/nack", RECEIPTS),
        (Method::POST, "/billing/renew", RECEIPTS),
        (Method::POST, "/billing/seek", r#"{"to":"oldest"}"#),
        (Method::GET, "/billing/consumers", ""),
        (Method::GET, "/billing/dead-letters", ""),
        (Method::GET, "/billing/dead-letters/1", ""),
        (Method::POST, "/billing/dead-letters/1/replay", ""),
        (Method::POST, "/billing/dead-letters/1/discard", ""),
    ] {
        calls.push((method, groups(rest), JSON, body));
    }
    calls
}

fn counting(asked: &Arc<AtomicUsize>, allows: impl Fn() -> bool + Send + Sync + 'static) -> Gate {
    let asked = Arc::clone(asked);
    Arc::new(move |tenant, _| {
        asked.fetch_add(1, Ordering::SeqCst);
        tenant.as_str() == "default" && allows()
    })
}

#[tokio::test]
async fn c37_a_denied_request_is_answered_before_anything_is_resolved() {
    let asked = Arc::default();
    let rig = declared(Rig::with_gate(counting(&asked, || false)).await).await;
    publish(&rig, "A1", 1).await;
    let looks = rig.log.looks();
    let (mut answers, mut sent) = (BTreeSet::new(), 0);
    for subject in SUBJECTS {
        // The name of a stream without an id is none, which everybody may know.
        let calls = calls(subject).into_iter().filter(|(_, path, ..)| !path.contains("asset:id:/"));
        for (method, path, accept, body) in calls {
            let headers = [("Accept", accept), ("Content-Type", "application/json")];
            let answer = rig.send(method.as_str(), &path, &headers, body.as_bytes()).await;
            answer.is_problem(403, "changes_denied");
            answers.insert(answer.text());
            sent += 1;
        }
    }
    assert_eq!(answers.len(), 1, "all that is told is the same: {answers:?}");
    assert_eq!(asked.load(Ordering::SeqCst), sent, "each was asked about once");
    assert_eq!(rig.log.looks(), looks, "no scope was resolved and no stream was read");
    assert_eq!(rig.services().hub.stats(), Default::default(), "nothing is followed");
    rig.stop().await;
}

/// Sends a call; answers the status, the type of the content, and the content.
async fn send(client: &Client, (method, path, accept, body): Call) -> (u16, String, String) {
    let request = client.request(method, &path).header("accept", accept);
    let answer = request.header("content-type", "application/json").body(body).send().await;
    let answer = answer.expect("it answers");
    let content = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
    let content = content.unwrap_or_default().to_owned();
    (answer.status().as_u16(), content, answer.text().await.expect("a whole answer"))
}

async fn ask(client: &Client, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = client.request(method, path).header("content-type", "application/json");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.send(request.body(body)).await.expect("it answers");
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c37_a_host_with_a_gate_denies_known_and_unknown_changes_alike() {
    let (asked, open) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    let is_open = Arc::clone(&open);
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = Config::default();
    config.serve.data = dir.path().join("store");
    config.serve.bind = ([127, 0, 0, 1], 0).into();
    config.store.disk_free_bytes_min = 0;
    let gate = counting(&asked, move || is_open.load(Ordering::SeqCst));
    let host = Host::builder().config(config).change_gate(gate).start().await.expect("a host");
    host.log().declare_scopes("assets", &asset_scopes()).await.expect("declared");
    let client = Client::new(format!("http://{}", host.addr())).expect("a client");
    let event = json!({
        "aggregate": "asset", "agg_id": "A1", "version": 1, "type": "asset.made",
        "at": "2013-01-01T00:00:00Z", "payload": {},
    });
    client.publish(format!("{event}\n")).await.expect("published");

    // While it is open, somebody has a page, a group, and an entry of it.
    let page = ask(&client, Method::GET, "/v1/changes/asset/id/A1", Value::Null).await;
    assert_eq!((page.0, page.1["events"].as_array().map(Vec::len)), (200, Some(1)), "{page:?}");
    assert_eq!(ask(&client, Method::PUT, GROUP, json!({ "lease_ms": 600_000 })).await.0, 201);
    let read = json!({ "consumer": "one", "wait_ms": 10_000 });
    let (_, read) = ask(&client, Method::POST, &format!("{GROUP}/read"), read).await;
    let receipt = read["entries"][0]["receipt"].clone();
    assert!(receipt.is_string(), "{read}");

    open.store(false, Ordering::SeqCst);
    let before = asked.load(Ordering::SeqCst);
    let mut answers = BTreeSet::new();
    for subject in &SUBJECTS[..5] {
        for call in calls(*subject) {
            answers.insert(send(&client, call).await);
        }
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (status, content, body) = answers.pop_first().expect("one answer");
    assert_eq!((status, content.as_str()), (403, "application/problem+json"));
    let problem: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&problem["code"], &problem["status"]), (&json!("changes_denied"), &json!(403)));
    assert_eq!(host.hub().stats().subscriptions, 0);
    let acme = TenantId::new("default").expect("a tenant");
    let request = ChangeRequest { aggregate: "asset", scope: "id", id: "A1" };
    let refused = host.hub().subscribe(&acme, &request, ChangeMode::Raw).expect_err("refused");
    assert_eq!(refused, HubError::Denied, "an embedder's own followers go through it, too");
    let denied = 5 * calls(SUBJECTS[0]).len() + 1;
    assert_eq!(asked.load(Ordering::SeqCst) - before, denied, "each was asked about once");
    // The gate is before changes and nothing else.
    let events = "/v1/streams/events/groups/billing";
    assert_eq!(ask(&client, Method::PUT, events, json!({})).await.0, 201);
    assert_eq!(asked.load(Ordering::SeqCst) - before, denied);

    // Open again, each has an answer of its own, and what was denied has changed nothing.
    open.store(true, Ordering::SeqCst);
    for (path, code) in [("pump/id/P1", "aggregate_unknown"), ("asset/kind/x", "scope_unknown")] {
        let (status, problem) = ask(&client, Method::GET, &format!("/v1/changes/{path}"), Value::Null).await;
        assert_eq!((status, &problem["code"]), (404, &json!(code)));
    }
    let ack = json!({ "receipts": [receipt] });
    let (status, settled) = ask(&client, Method::POST, &format!("{GROUP}/ack"), ack).await;
    assert_eq!((status, &settled["results"][0]["outcome"]), (200, &json!("acknowledged")), "{settled}");
    host.shutdown().await;
}
