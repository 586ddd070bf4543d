//! Groups over HTTP and from the command line.

use millrace::cli::{Cli, Output};
use millrace::config::Right;
use millrace::streams::{AggregateScopes, Scope};
use millrace_tests::embedded::{Answer, Client, Embedded, token};
use reqwest::Method;
use serde_json::{Value, json};

const GROUP: &str = "/v1/streams/events/groups/billing";

/// A host with a reader and an administrator of `acme`, and one of `rival`.
async fn start() -> (Embedded, Client, Client, Client) {
    let host = Embedded::start_with(|config| {
        config.store.disk_free_bytes_min = 0;
        config.groups.groups_max = 2;
        config.auth.tokens = vec![
            token("acme-read", "acme", &[Right::Read]),
            token("acme-all", "acme", &[Right::Publish, Right::Read, Right::Admin]),
            token("rival-all", "rival", &[Right::Publish, Right::Read, Right::Admin]),
        ];
    });
    let host = host.await.unwrap();
    let of = |name: &str| host.client.with_token(name).unwrap();
    let (reader, all, rival) = (of("acme-read"), of("acme-all"), of("rival-all"));
    (host, reader, all, rival)
}

async fn ask(client: &Client, method: Method, path: &str, body: Option<Value>) -> Answer {
    let request = client.request(method, path);
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    client.send(request).await.unwrap()
}

async fn put(client: &Client, path: &str, body: Value) -> Answer {
    ask(client, Method::PUT, path, Some(body)).await
}

async fn post(client: &Client, path: &str, body: Value) -> Answer {
    ask(client, Method::POST, path, Some(body)).await
}

async fn get(client: &Client, path: &str) -> Value {
    ask(client, Method::GET, path, None).await.json()
}

async fn publish(client: &Client, keys: &[&str]) {
    let event = |(n, key): (usize, &&str)| {
        json!({
            "aggregate": "thing", "agg_id": key, "version": n + 1, "type": "thing.made",
            "at": "2013-01-01T00:00:00Z", "payload": { "n": 9_007_199_254_740_993_u64 },
        })
        .to_string()
    };
    let lines: Vec<String> = keys.iter().enumerate().map(event).collect();
    let request = client.request(Method::POST, "/v1/events");
    let request = request.header("content-type", "application/x-ndjson").body(lines.join("\n"));
    assert_eq!(client.send(request).await.unwrap().status, 200);
}

#[track_caller]
fn is_problem(answer: &Answer, status: u16, code: &str) {
    let body = answer.json();
    assert_eq!((answer.status, body["code"].as_str()), (status, Some(code)), "{body}");
    assert!(body["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{body}");
}

async fn receipts(client: &Client, limit: u64) -> Vec<String> {
    let read = json!({ "consumer": "one", "limit": limit });
    let answer = post(client, &format!("{GROUP}/read"), read).await.json();
    let entries = answer["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["receipt"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_reads_answers_and_renews_over_http() {
    let (_host, reader, all, _) = start().await;
    publish(&all, &["a", "a", "b", "c"]).await;
    let made = put(&reader, GROUP, json!({ "attempts_max": 1, "lease_ms": 60_000 })).await;
    assert_eq!(made.status, 201);
    assert_eq!((&made.json()["lag_events"], &made.json()["on_lost"]), (&json!(4), &json!("stop")));
    let again = ask(&reader, Method::PUT, GROUP, None).await;
    assert_eq!((again.status, &again.json()["attempts_max"]), (200, &json!(1)), "a body may be left out");
    let read = json!({ "consumer": "one", "limit": 10, "wait_ms": 1000 });
    let answer = post(&reader, &format!("{GROUP}/read"), read).await;
    assert!(answer.text().contains("9007199254740993"), "payloads stay as they are");
    let body = answer.json();
    let entries = body["entries"].as_array().unwrap();
    let keys: Vec<_> = entries.iter().map(|entry| entry["event"]["agg_id"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!((&entries[0]["attempt"], &body["lost_events"]), (&json!(1), &json!(0)));
    assert!(entries[0]["deadline"].is_string() && entries[0]["event"]["position"].is_string());
    let receipt = |n: usize| entries[n]["receipt"].clone();
    let renewed = post(&reader, &format!("{GROUP}/renew"), json!({ "receipts": [receipt(0)] })).await.json();
    assert_eq!(renewed["results"][0]["outcome"], "renewed", "{renewed}");
    let acked = json!({ "receipts": [receipt(0), receipt(0), "9.9.9.9"] });
    let acked = post(&reader, &format!("{GROUP}/ack"), acked).await.json();
    let outcomes: Vec<_> =
        acked["results"].as_array().unwrap().iter().map(|one| one["outcome"].clone()).collect();
    assert_eq!(outcomes, ["acknowledged", "already", "refused"]);
    assert_eq!((&acked["refused"], &acked["results"][2]["code"]), (&json!(1), &json!("receipt_unknown")));
    let nacked = json!({ "receipts": [receipt(1)], "reason": "no such invoice", "delay_ms": 0 });
    let nacked = post(&reader, &format!("{GROUP}/nack"), nacked).await.json();
    assert_eq!(nacked["results"][0]["outcome"], "dead_letter");
    let consumers = get(&reader, &format!("{GROUP}/consumers")).await;
    assert_eq!(
        (&consumers["consumers"][0]["consumer"], &consumers["consumers"][0]["in_flight"]),
        (&json!("one"), &json!(1))
    );
    let group = get(&reader, GROUP).await;
    assert_eq!(
        (&group["lag_events"], &group["in_flight"], &group["dead_letters"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert!(group["lag_seconds"].as_f64().unwrap() > 0.0, "{group}");
    let listed = get(&reader, "/v1/streams/events/groups").await;
    assert_eq!(
        (&listed["groups"][0]["group"], listed["groups"].as_array().unwrap().len()),
        (&json!("billing"), 1)
    );

    let letters = get(&reader, &format!("{GROUP}/dead-letters?limit=1")).await;
    let letter = &letters["dead_letters"][0];
    assert_eq!((&letter["reason"], &letter["message"]), (&json!("nacked"), &json!("no such invoice")));
    assert_eq!((&letters["next"], &letter["event"]["agg_id"]), (&json!(null), &json!("b")), "there is one");
    let path = format!("{GROUP}/dead-letters/{}", letter["letter"]);
    assert_eq!(get(&reader, &path).await["letter"], letter["letter"]);
    is_problem(&ask(&reader, Method::POST, &format!("{path}/replay"), None).await, 403, "right_missing");
    let replayed = ask(&all, Method::POST, &format!("{path}/replay"), None).await.json();
    assert_eq!(replayed["outcome"], "replaying");
    assert_eq!(get(&reader, &path).await["replaying"], true);
    let read = json!({ "consumer": "one" });
    let answer = post(&reader, &format!("{GROUP}/read"), read).await.json();
    assert_eq!(
        (&answer["entries"][1]["replayed"], &answer["entries"][1]["event"]["agg_id"]),
        (&json!(true), &json!("b"))
    );
    let discarded = ask(&all, Method::POST, &format!("{path}/discard"), None).await.json();
    assert_eq!(discarded["outcome"], "discarded");
    is_problem(&ask(&reader, Method::GET, &path, None).await, 404, "group_dead_letter_unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said_by_its_code() {
    let (_host, reader, all, rival) = start().await;
    publish(&all, &["a"]).await;
    assert_eq!(put(&reader, GROUP, json!({ "lease_ms": 50 })).await.status, 201);
    let at = |rest: &str| format!("{GROUP}{rest}");
    let nowhere = "/v1/streams/No-Where/groups/billing";
    for (path, body, status, code) in [
        (at("/read"), json!({ "consumer": "" }), 400, "group_name_invalid"),
        (at("/read"), json!({ "consumer": "a b" }), 400, "group_name_invalid"),
        (at("/read"), json!({ "limit": 1 }), 400, "json_malformed"),
        (at("/read"), json!({ "consumer": "one", "limmit": 1 }), 400, "json_malformed"),
        (at("/read"), json!(["one"]), 400, "json_malformed"),
        (at("/read"), json!({ "consumer": "one", "limit": 0 }), 400, "group_read_events_max"),
        (at("/read"), json!({ "consumer": "one", "limit": 1001 }), 400, "group_read_events_max"),
        (at("/read"), json!({ "consumer": "one", "bytes": 0 }), 400, "group_read_bytes_max"),
        (at("/read"), json!({ "consumer": "one", "wait_ms": 30_001 }), 400, "group_option_invalid"),
        (at("/ack"), json!({ "receipts": ["what"] }), 400, "receipt_invalid"),
        (at("/ack"), json!({ "receipts": ["+1.1.1.1"] }), 400, "receipt_invalid"),
        (at("/ack"), json!({ "receipts": ["1.1.1.1.1"] }), 400, "receipt_invalid"),
        (at("/ack"), json!({ "receipts": ["ffff.1.1.1"] }), 404, "receipt_unknown"),
        (at("/ack"), json!({ "receipts": vec!["1.1.1.1"; 1001] }), 413, "group_receipts_max"),
        (at("/nack"), json!({ "receipts": [], "delay_ms": -1 }), 400, "json_malformed"),
        (
            at("/nack"),
            json!({ "receipts": ["1.1.1.1"], "delay_ms": 43_200_001 }),
            400,
            "group_option_invalid",
        ),
        (at("/renew"), json!({ "receipts": ["1.1.1.1"], "lease_ms": 1 }), 400, "group_option_invalid"),
        (format!("{nowhere}/read"), json!({ "consumer": "one" }), 404, "stream_unknown"),
        // Who may not follow a change stream, or one that there is not, has no group on it.
        (
            "/v1/streams/changes:secret:tenant/groups/x/read".into(),
            json!({ "consumer": "one" }),
            404,
            "aggregate_unknown",
        ),
        ("/v1/streams/events/groups/none/read".into(), json!({ "consumer": "one" }), 404, "group_unknown"),
        ("/v1/streams/events/groups/-x/read".into(), json!({ "consumer": "one" }), 400, "group_name_invalid"),
    ] {
        let answer = post(&reader, &path, body).await;
        is_problem(&answer, status, code);
    }
    for (body, code) in [
        (json!({ "from": "yesterday" }), "cursor_invalid"),
        (json!({ "lease_ms": 1 }), "group_option_invalid"),
        (json!({ "attempts_max": 1001 }), "group_option_invalid"),
        (json!({ "on_lost": "explode" }), "json_malformed"),
    ] {
        is_problem(&put(&reader, GROUP, body).await, 400, code);
    }
    is_problem(
        &put(&reader, "/v1/streams/events/groups/x", json!({ "from": "elsewhere.1" })).await,
        410,
        "cursor_foreign",
    );
    is_problem(
        &ask(&reader, Method::GET, &at("/dead-letters/99"), None).await,
        404,
        "group_dead_letter_unknown",
    );
    is_problem(&ask(&reader, Method::GET, &at("/dead-letters/x"), None).await, 400, "parameter_invalid");
    is_problem(
        &ask(&all, Method::POST, &at("/dead-letters/99/discard"), None).await,
        404,
        "group_dead_letter_unknown",
    );
    is_problem(&ask(&reader, Method::GET, &at("?tenant=acme"), None).await, 400, "tenant_in_body");

    // A lease that has run out: the answer says so as a whole, too.
    let taken = receipts(&reader, 1).await;
    assert!(taken.len() == 1);
    let again = json!({ "consumer": "two", "limit": 1, "wait_ms": 5_000 });
    assert_eq!(post(&reader, &at("/read"), again).await.json()["entries"][0]["attempt"], 2);
    let late = post(&reader, &at("/ack"), json!({ "receipts": taken })).await;
    is_problem(&late, 409, "lease_expired");
    assert_eq!(late.json()["results"][0]["outcome"], "refused");

    // The stream takes two groups, and the second is made here.
    assert_eq!(put(&reader, "/v1/streams/events/groups/second", json!({})).await.status, 201);
    let third = put(&reader, "/v1/streams/events/groups/third", json!({})).await;
    is_problem(&third, 409, "groups_max");
    assert_eq!((&third.json()["limit"], &third.json()["max"]), (&json!("groups_max"), &json!(2)));
    assert!(third.json()["fix"].as_str().unwrap().contains("groups.groups_max"));

    // Another tenant sees none of it, and has two of its own.
    is_problem(&ask(&rival, Method::GET, GROUP, None).await, 404, "group_unknown");
    is_problem(&post(&rival, &at("/ack"), json!({ "receipts": taken })).await, 404, "group_unknown");
    assert_eq!(put(&rival, GROUP, json!({})).await.status, 201);
    is_problem(&post(&rival, &at("/ack"), json!({ "receipts": taken })).await, 404, "receipt_unknown");
    // Reading is a reader's; what takes something from all of its consumers is not.
    for (method, path) in [(Method::DELETE, GROUP.to_owned()), (Method::POST, at("/seek"))] {
        is_problem(&ask(&reader, method, &path, None).await, 403, "right_missing");
    }
    assert_eq!(post(&all, &at("/seek"), json!({ "to": "newest" })).await.json()["lag_events"], 0);
    assert_eq!(ask(&all, Method::DELETE, GROUP, None).await.status, 204);
    is_problem(&ask(&reader, Method::GET, GROUP, None).await, 404, "group_unknown");
    assert_eq!(ask(&rival, Method::GET, GROUP, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sn4_a_group_that_retention_has_passed_says_so_until_it_is_moved() {
    let (host, reader, all, _) = start().await;
    publish(&all, &["a", "b", "c"]).await;
    assert_eq!(put(&reader, GROUP, json!({})).await.status, 201);
    let retention = millrace::streams::Retention { events: Some(1), age: None };
    host.host().log().trim(retention).await.unwrap();
    let answer = post(&reader, &format!("{GROUP}/read"), json!({ "consumer": "one" })).await;
    is_problem(&answer, 410, "group_position_lost");
    let problem = answer.json();
    assert_eq!(problem["lost_events"], 2, "{problem}");
    assert!(problem["lost_until"].as_str().unwrap().ends_with(".2"), "{problem}");
    let group = get(&reader, GROUP).await;
    assert_eq!(
        (&group["stopped"], &group["lag_events"], &group["lost_events"]),
        (&json!(true), &json!(1), &json!(2))
    );
    let moved = post(&all, &format!("{GROUP}/seek"), json!({ "to": "oldest" })).await.json();
    assert_eq!(moved["stopped"], false);
    let answer = post(&reader, &format!("{GROUP}/read"), json!({ "consumer": "one" })).await.json();
    assert_eq!((&answer["entries"][0]["event"]["agg_id"], &answer["lost_events"]), (&json!("c"), &json!(2)));
    let metrics = ask(&all, Method::GET, "/metrics", None).await.text();
    assert!(
        metrics.contains("millrace_group_lag_events{stream=\"events\",group=\"billing\"} 1\n"),
        "{metrics}"
    );
}

/// A stream's name as a part of a path.
fn part(stream: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b":-._".contains(b);
    stream.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_on_a_change_stream_is_one_however_the_stream_is_asked_for() {
    let (host, reader, all, rival) = start().await;
    let scopes = AggregateScopes { aggregate: "thing".into(), scopes: vec![Scope::Id, Scope::Tenant] };
    host.host().log().declare_scopes("things", &[scopes]).await.unwrap();
    let group = |stream: &str| format!("/v1/streams/{}/groups/billing", part(stream));
    // The scope `tenant` needs no id and ignores one: nobody gets to another tenant's stream that way.
    let tenants = ["changes:thing:tenant", "changes:thing:tenant:acme", "changes:thing:tenant:rival"];
    for (stream, status) in tenants.iter().zip([201, 200, 200]) {
        let made = put(&reader, &group(stream), json!({})).await;
        assert_eq!(
            (made.status, &made.json()["stream"]),
            (status, &json!("changes:thing:tenant")),
            "{stream}"
        );
    }
    assert_eq!(put(&rival, &group(tenants[2]), json!({})).await.status, 201);
    // An id may have every character; in the name of its stream some are escaped.
    let one = "changes:thing:id:a%3Ab/\u{fc} %25";
    assert_eq!(put(&reader, &group(one), json!({})).await.json()["stream"], one);

    publish(&all, &["a:b/\u{fc} %", "c"]).await;
    let read = async |client: &Client, stream: &str| {
        let answer =
            post(client, &format!("{}/read", group(stream)), json!({ "consumer": "one" })).await.json();
        let entries = answer["entries"].as_array().unwrap_or_else(|| panic!("{stream}: {answer}")).clone();
        entries.iter().map(|entry| entry["event"]["agg_id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(read(&reader, tenants[1]).await, ["a:b/\u{fc} %", "c"]);
    assert_eq!(read(&reader, tenants[2]).await.len(), 0, "they are leased, under whichever name");
    assert_eq!(read(&reader, one).await, ["a:b/\u{fc} %"]);
    assert_eq!(read(&rival, tenants[1]).await.len(), 0, "it is the rival's own");
    for stream in tenants {
        let listed = get(&reader, &format!("/v1/streams/{}/groups", part(stream))).await;
        let listed = listed["groups"].as_array().unwrap();
        assert_eq!((listed.len(), &listed[0]["in_flight"]), (1, &json!(2)), "{stream}");
    }

    // What names no stream that there is makes no group.
    for (stream, status, code) in [
        ("changes:thing:id", 400, "scope_id_missing"),
        ("changes:thing:colour:red", 404, "scope_unknown"),
        ("changes:other:tenant", 404, "aggregate_unknown"),
        ("changes:thing:id:a:b", 404, "stream_unknown"),
        ("changes:thing:id:%61", 404, "stream_unknown"),
        ("changes:thing", 404, "stream_unknown"),
        ("changes", 404, "stream_unknown"),
    ] {
        is_problem(&put(&reader, &group(stream), json!({})).await, status, code);
        is_problem(&ask(&reader, Method::GET, &group(stream), None).await, status, code);
    }
    assert_eq!(ask(&all, Method::DELETE, &group(tenants[2]), None).await.status, 204);
    is_problem(&ask(&reader, Method::GET, &group(tenants[0]), None).await, 404, "group_unknown");
    assert_eq!(ask(&rival, Method::GET, &group(tenants[0]), None).await.status, 200);
}

/// Runs a command line in this process; answers what it wrote.
async fn ran(args: &[&str]) -> Result<String, String> {
    use clap::Parser as _;
    let args: Vec<String> = ["millrace"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    let run = move || {
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        let written = Written::default();
        let ended = millrace::cli::run(cli, &mut Output::new(written.clone()));
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        ended.map(|()| text).map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[derive(Clone, Debug, Default)]
struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_made_read_and_removed_from_the_command_line() {
    let (host, _, all, _) = start().await;
    publish(&all, &["a", "b", "c"]).await;
    let url = format!("http://{}", host.host().addr());
    let run = async |args: &[&str]| {
        let common = ["--url", &url, "--token", "acme-all"];
        ran(&[&["group"], args, &common].concat()).await
    };
    assert_eq!(run(&["list"]).await.unwrap(), "no groups\n");
    let made = run(&["create", "billing", "--attempts-max", "1", "--on-lost", "tail"]).await.unwrap();
    assert_eq!(made, "group billing is there, 3 events behind\n");
    assert_eq!(
        run(&["read", "billing", "--consumer", "one", "-n", "1", "--ack"]).await.unwrap().lines().count(),
        1
    );
    let lines = run(&["read", "billing", "--consumer", "one", "--json"]).await.unwrap();
    let entries: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((entries.len(), &entries[0]["event"]["agg_id"]), (2, &json!("b")));
    let receipt = |n: usize| entries[n]["receipt"].as_str().unwrap();
    let nacked = run(&["nack", "billing", receipt(0), "--reason", "broken"]).await.unwrap();
    assert!(nacked.ends_with("dead_letter\n"), "{nacked}");
    assert!(run(&["ack", "billing", receipt(1)]).await.unwrap().ends_with("acknowledged\n"));
    let refused = run(&["ack", "billing", "ffff.1.1.1"]).await.unwrap_err();
    assert!(refused.contains("receipt_unknown"), "{refused}");
    assert_eq!(run(&["lag", "billing"]).await.unwrap(), "0 events, 0.0 s\n");
    let letters = run(&["dead-letters", "billing"]).await.unwrap();
    assert!(letters.contains("thing/b") && letters.contains("broken"), "{letters}");
    let number = letters.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(
        run(&["dead-letters", "billing", "--discard", &number]).await.unwrap(),
        format!("{number} is discarded\n")
    );
    let shown: Value = serde_json::from_str(&run(&["show", "billing", "--json"]).await.unwrap()).unwrap();
    assert_eq!((&shown["on_lost"], &shown["consumers"][0]["consumer"]), (&json!("tail"), &json!("one")));
    assert!(
        run(&["seek", "billing", "--to", "oldest"]).await.unwrap().starts_with("group billing goes on after")
    );
    let listed = run(&["ls"]).await.unwrap();
    assert!(
        listed.lines().nth(1).is_some_and(|line| line.starts_with("billing") && line.contains(" 3 ")),
        "{listed}"
    );
    assert_eq!(run(&["rm", "billing"]).await.unwrap(), "group billing is removed\n");
    let gone = run(&["show", "billing"]).await.unwrap_err();
    assert!(gone.contains("group_unknown"), "{gone}");
}
