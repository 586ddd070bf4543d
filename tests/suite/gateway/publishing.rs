//! `POST /v1/events` with whole bodies. What is given a log runs on every one.

use millrace::event::derived_id;
use millrace_tests::conformance::event_log::ODD_JSON;
use millrace_tests::every_log::Log;
use serde_json::{Value, json};

use super::rig::{NOW, Rig, tokens};

fn event(agg_id: &str, version: u64) -> Value {
    json!({"aggregate": "thing", "agg_id": agg_id, "version": version, "type": "thing.made", "payload": {"n": version}})
}

/// What is published, and the same as it is read. `{id}`, `{n}`, `{position}` and the payload are put in.
const PUBLISHED: &str = r#"{"kind":"k/1","payload":{payload},"aggregate":"th\u0069ng","agg_id":"a\"b\\ Z\u00fcrich 😀","version":92233720368547758{n},"type":"thing.made","at":"2013-01-01T10:15:00.123456789+02:00","schema_version":2,"id":"{id}","scope":"eu<&>","cursor":"c,1","traceparent":"00-1-2-01"}"#;
const READ: &str = r#"{"position":"{position}","id":"{id}","aggregate":"thing","agg_id":"a\"b\\ Zürich 😀","type":"thing.made","scope":"eu<&>","kind":"k/1","cursor":"c,1","traceparent":"00-1-2-01","version":92233720368547758{n},"at":"2013-01-01T08:15:00.123456Z","schema_version":2,"payload":{payload}}"#;

pub(super) async fn c02_sn23_what_is_published_is_read_back_with_every_field_and_every_byte(log: Log) {
    let rig = Rig::over(log, |options| options.auth = tokens()).await;
    // An event is a line: what is a line break between the tokens of a payload is a space when it is read.
    let payload = ODD_JSON.replace('\n', " ");
    let alpha = ("Authorization", "Bearer alpha-all");
    for path in ["/v1/events", "/v1/streams/orders"] {
        let stream = if path == "/v1/events" { "/v1/streams/events" } else { path };
        let mut expected = Vec::new();
        let ways = [
            ("application/json", "{}"),
            ("application/json; charset=utf-8", " [ {} ]\n"),
            ("application/x-ndjson", "{}\n"),
        ];
        for (number, (content_type, whole)) in ways.into_iter().enumerate() {
            // The last version that there may be, too.
            let (id, n) = (format!("my \u{fc}-{number}"), format!("0{}", 5 + number));
            let fill = |text: &str, payload: &str, position: &str| {
                let text = text.replace("{id}", &id).replace("{n}", &n).replace("{position}", position);
                text.replace("{payload}", payload)
            };
            let sent = if number < 2 { ODD_JSON } else { &payload };
            let body = whole.replace("{}", &fill(PUBLISHED, sent, ""));
            let headers = [alpha, ("Content-Type", content_type)];
            let answer = rig.send("POST", path, &headers, body.as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            let answer = answer["events"].get(0).unwrap_or(&answer);
            assert_eq!((&answer["id"], &answer["repeated"]), (&json!(id), &json!(false)), "{answer}");
            let position = answer["position"].as_str().expect("a cursor").to_owned();
            expected.push((fill(READ, &payload, &position), position));
        }
        let page = rig.send("GET", stream, &[alpha], b"").await.text();
        let events: Vec<&str> = expected.iter().map(|(event, _)| event.as_str()).collect();
        let events = format!("\"events\":[{}]", events.join(","));
        assert!(page.contains(&events), "{events}\n\nin\n{page}");
        // As server-sent events, each is its line.
        let mut client = rig.connect().await;
        let head = format!(
            "GET {stream}?after=oldest HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{}: {}\r\n\r\n",
            alpha.0, alpha.1
        );
        client.write(head.as_bytes()).await;
        let mut told = String::new();
        for (event, _) in &expected {
            client.read_until(&mut told, &format!("data: {event}\n")).await;
        }
        for (_, position) in &expected {
            assert!(told.contains(&format!("id: {position}\n")), "{position} in {told}");
        }
        // It is this tenant's, and nobody else's.
        let theirs = rig.send("GET", stream, &[("Authorization", "Bearer beta-all-rights")], b"").await;
        assert!(theirs.text().contains("\"events\":[]"), "{}", theirs.text());
    }
    rig.stop().await;
}

#[tokio::test]
async fn c02_what_is_left_out_is_filled_in_and_left_out_again() {
    let rig = Rig::with_tokens().await;
    let alpha = ("Authorization", "Bearer alpha-all");
    let body = br#"{"aggregate":"thing","agg_id":"a","version":1,"type":"thing.made","id":null,"scope":""}"#;
    let answer = rig.send("POST", "/v1/events", &[alpha, ("Content-Type", "application/json")], body).await;
    let position = answer.json()["events"][0]["position"].as_str().expect("a cursor").to_owned();
    let id = derived_id("alpha", "thing", "a", 1);
    let event = format!(
        r#"{{"position":"{position}","id":"{id}","aggregate":"thing","agg_id":"a","type":"thing.made","version":1,"at":"{NOW}","schema_version":1,"payload":null}}"#
    );
    let page = rig.send("GET", "/v1/streams/events", &[alpha], b"").await.text();
    assert!(page.contains(&format!("\"events\":[{event}]")), "{event}\n\nin\n{page}");
    rig.stop().await;
}

#[tokio::test]
async fn an_array_is_one_batch_and_repeats_answer_their_first_position() {
    let rig = Rig::start().await;
    let body = json!([event("a", 1), event("a", 2), event("b", 1)]).to_string();
    let first = rig.post("application/json", body.as_bytes()).await.json();
    let second = rig.post("application/json", body.as_bytes()).await.json();
    for index in 0..3 {
        assert_eq!(first["events"][index]["position"], second["events"][index]["position"]);
        assert_eq!(first["events"][index]["id"], second["events"][index]["id"]);
        assert_eq!(second["events"][index]["repeated"], true);
    }
    let page = rig.get("/v1/streams/events").await.json();
    assert_eq!(page["events"].as_array().map(Vec::len), Some(3));
    assert_eq!(page["events"][0]["at"], NOW, "an event without `at` happened now");
    rig.stop().await;
}

#[tokio::test]
async fn one_bad_event_refuses_the_whole_array_and_is_named() {
    let rig = Rig::start().await;
    let body = json!([event("a", 1), event("a", 0)]).to_string();
    let problem = rig.post("application/json", body.as_bytes()).await.is_problem(400, "event_invalid");
    assert_eq!(problem["index"], 1);
    assert_eq!(rig.get("/v1/streams/events").await.json()["events"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn the_same_id_with_other_content_is_a_conflict() {
    let rig = Rig::start().await;
    assert_eq!(rig.post("application/json", event("a", 1).to_string().as_bytes()).await.status, 200);
    let mut other = event("a", 1);
    other["payload"] = json!("other");
    rig.post("application/json", other.to_string().as_bytes()).await.is_problem(409, "event_id_taken");
    rig.stop().await;
}

#[tokio::test]
async fn c03_c04_bad_events_are_refused_with_the_field_named() {
    let rig = Rig::start().await;
    let long = "x".repeat(513);
    let cases = [
        ("{\"aggregate\": ", "json_malformed", 400, "line 1"),
        ("", "json_malformed", 400, "EOF"),
        ("nonsense", "json_malformed", 400, "line 1"),
        (r#"{"agg_id":"a","version":1,"type":"t"}"#, "event_invalid", 400, "aggregate"),
        (r#"{"aggregate":"a","version":1,"type":"t"}"#, "event_invalid", 400, "agg_id"),
        (r#"{"aggregate":"a","agg_id":"a","type":"t"}"#, "event_invalid", 400, "version"),
        (r#"{"aggregate":"a","agg_id":"a","version":1}"#, "event_invalid", 400, "type"),
        (r#"{"aggregate":"","agg_id":"a","version":1,"type":"t"}"#, "event_invalid", 400, "aggregate"),
        (r#"{"aggregate":"a","agg_id":"a","version":0,"type":"t"}"#, "event_invalid", 400, "version"),
        (r#"{"aggregate":"a","agg_id":"a","version":-1,"type":"t"}"#, "event_invalid", 400, "-1"),
        (r#"{"aggregate":"a","agg_id":"a","version":1.5,"type":"t"}"#, "event_invalid", 400, "1.5"),
        (
            r#"{"aggregate":"a","agg_id":"a","version":9223372036854775808,"type":"t"}"#,
            "event_invalid",
            400,
            "version",
        ),
        (
            r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t","schema_version":0}"#,
            "event_invalid",
            400,
            "schema_version",
        ),
        (
            r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t","at":"yesterday"}"#,
            "event_invalid",
            400,
            "yesterday",
        ),
        (
            r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t","colour":1}"#,
            "event_invalid",
            400,
            "colour",
        ),
        (r#"{"aggregate":7,"agg_id":"a","version":1,"type":"t"}"#, "event_invalid", 400, "7"),
        (
            r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t","tenant":"beta"}"#,
            "tenant_in_body",
            400,
            "tenant",
        ),
        (r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t\u0000"}"#, "event_invalid", 400, "type"),
    ];
    for (body, code, status, said) in cases {
        let problem = rig.post("application/json", body.as_bytes()).await.is_problem(status, code);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(said), "`{said}` in `{detail}` for {body}");
    }
    let body = format!(r#"{{"aggregate":"{long}","agg_id":"a","version":1,"type":"t"}}"#);
    let problem = rig.post("application/json", body.as_bytes()).await.is_problem(400, "name_bytes_max");
    assert_eq!((&problem["asked"], &problem["max"]), (&json!(513), &json!(512)));
    assert_eq!(rig.get("/v1/streams/events").await.json()["events"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn oversized_events_and_batches_say_which_limit() {
    let rig = Rig::start().await;
    let mut large = event("a", 1);
    large["payload"] = json!("x".repeat(1 << 20));
    let problem = rig
        .post("application/json", large.to_string().as_bytes())
        .await
        .is_problem(413, "event_payload_bytes_max");
    assert_eq!(problem["limit"], "event_payload_bytes_max");
    assert_eq!(problem["max"], 1 << 20);

    let many: Vec<Value> = (1..=1001).map(|version| event("a", version)).collect();
    let body = Value::from(many).to_string();
    let problem = rig.post("application/json", body.as_bytes()).await.is_problem(413, "batch_events_max");
    assert_eq!((&problem["asked"], &problem["max"]), (&json!(1001), &json!(1000)));

    let heavy: Vec<Value> = (1..=5)
        .map(|version| {
            let mut event = event("a", version);
            event["payload"] = json!("x".repeat(1_000_000));
            event
        })
        .collect();
    let body = Value::from(heavy).to_string();
    rig.post("application/json", body.as_bytes()).await.is_problem(413, "batch_bytes_max");
    rig.stop().await;
}

#[tokio::test]
async fn unknown_content_types_are_refused_with_the_known_ones() {
    let rig = Rig::start().await;
    let problem = rig.post("text/plain", b"{}").await.is_problem(415, "content_type_unsupported");
    assert_eq!(problem["supported"][0], "application/json");
    let none = rig.send("POST", "/v1/events", &[], b"{}").await;
    none.is_problem(415, "content_type_unsupported");
    let headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    let packed = rig.send("POST", "/v1/events", &headers, b"x").await;
    packed.is_problem(415, "content_encoding_unsupported");
    rig.stop().await;
}

#[tokio::test]
async fn cloudevents_arrive_in_all_three_modes() {
    let rig = Rig::start().await;
    let structured = json!({
        "specversion": "1.0", "id": "ce-1", "source": "/gates", "type": "flight.departed", "subject": "UA1",
        "time": "2013-01-01T08:00:00Z", "aggregateversion": 7, "data": {"delay": 3}
    });
    let answer = rig.post("application/cloudevents+json", structured.to_string().as_bytes()).await;
    assert_eq!(answer.json()["events"][0]["id"], "ce-1", "{}", answer.text());

    let mut second = structured.clone();
    second["id"] = json!("ce-2");
    second["aggregate"] = json!("plane");
    second["aggregateversion"] = json!("9007199254740993");
    let mut third = structured.clone();
    third["id"] = json!("ce-3");
    third.as_object_mut().expect("an object").remove("subject");
    third["data_base64"] = json!("eyJhIjoxfQ==");
    third.as_object_mut().expect("an object").remove("data");
    let body = json!([second, third]).to_string();
    let answer = rig.post("application/cloudevents-batch+json", body.as_bytes()).await;
    assert_eq!(answer.json()["events"].as_array().map(Vec::len), Some(2), "{}", answer.text());

    let headers = [
        ("Content-Type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "ce-4"),
        ("ce-source", "/gates"),
        ("ce-type", "flight.arrived"),
        ("ce-subject", "UA%201"),
    ];
    let answer = rig.send("POST", "/v1/events", &headers, b"{\"delay\": 4}").await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    let page = rig.get("/v1/streams/events").await;
    assert!(page.text().contains("\"version\":9007199254740993"), "all digits of a version in text");
    let events = page.json()["events"].clone();
    let picture: Vec<_> = (0..4)
        .map(|i| {
            let e = &events[i];
            format!("{} {} {} {}", e["aggregate"], e["agg_id"], e["type"], e["payload"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        picture,
        [
            "flight UA1 flight.departed {delay:3}",
            "plane UA1 flight.departed {delay:3}",
            "flight /gates flight.departed {a:1}",
            "flight UA 1 flight.arrived {delay:4}",
        ]
    );
    rig.stop().await;
}

#[tokio::test]
async fn wrong_cloudevents_are_refused() {
    let rig = Rig::start().await;
    let good = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "a.b", "data": 1});
    for (member, value, code) in [
        ("specversion", json!("0.3"), "event_invalid"),
        ("id", json!(""), "event_invalid"),
        ("source", Value::Null, "event_invalid"),
        ("type", Value::Null, "event_invalid"),
        ("aggregateversion", json!("x"), "event_invalid"),
        ("aggregateversion", json!(0), "event_invalid"),
        ("tenant", json!("beta"), "tenant_in_body"),
        ("time", json!("noon"), "event_invalid"),
        ("data_base64", json!("?"), "event_invalid"),
    ] {
        let mut bad = good.clone();
        bad[member] = value;
        rig.post("application/cloudevents+json", bad.to_string().as_bytes()).await.is_problem(400, code);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_full_disk_says_so_and_hides_the_cause() {
    let rig = Rig::start().await;
    rig.log.fail_after(0);
    let answer = rig.post("application/json", event("a", 1).to_string().as_bytes()).await;
    let problem = answer.is_problem(507, "disk_full");
    assert_eq!(problem["blame"], "host");
    assert!(!answer.text().contains("secret"));
    assert!(answer.header("retry-after").is_some());
    rig.stop().await;
}
