//! A host that is the source of another host: our own client at our own server.

use std::time::{Duration, Instant};

use millrace::config::{GrpcSourceConfig, SecretText, SourceCheckpoints, Span};
use millrace::event::{EventBatch, Position, TenantId};
use millrace::memory_v1::SubscribeEventsRequest;
use millrace::processors::source::{CheckpointClient as _, CursorPolicy, Scope};
use millrace::streams::PageLimit;
use millrace_tests::embedded::Embedded;
use serde_json::{Value, json};

use super::process::{End, Process};
use super::scene::{AUDITOR, FOREIGN, OPERATOR, PATIENCE, Scene, TRACER, WRITER, after, publish};

/// Everything from the oldest event of the server at a port, with short waits.
fn settings(port: u16) -> GrpcSourceConfig {
    GrpcSourceConfig {
        endpoint: format!("http://127.0.0.1:{port}"),
        client_id: "second".into(),
        after_cursor: "start".into(),
        checkpoint_interval: Span(Duration::from_millis(10)),
        reconnect_min: Span(Duration::from_millis(5)),
        reconnect_max: Span(Duration::from_millis(50)),
        ..GrpcSourceConfig::default()
    }
}

async fn second(settings: GrpcSourceConfig) -> Embedded {
    Embedded::start_with(|config| config.source.grpc = Some(settings)).await.unwrap()
}

/// All that a host has taken, once there are so many.
async fn taken(host: &Embedded, count: usize) -> EventBatch {
    let tenant = TenantId::new("default").unwrap();
    let limit = PageLimit { events: 1_000, bytes: 4 << 20 };
    let (mut events, mut after, begin) = (EventBatch::new(tenant.clone()), Position::START, Instant::now());
    loop {
        let page = host.host().log().read(&tenant, after, limit).await.unwrap();
        events.extend_from(&page.events);
        after = page.next;
        if !page.events.is_empty() {
            continue;
        }
        if events.len() >= count {
            return events;
        }
        assert!(begin.elapsed() < PATIENCE, "{} of {count} came: {}", events.len(), status(host).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn status(host: &Embedded) -> Value {
    host.client.get("/v1/sources/grpc").await.unwrap().ok().unwrap()
}

async fn until(host: &Embedded, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let status = status(host).await;
        if condition(&status) {
            return status;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What events say, in the order of the log.
fn data(events: &EventBatch) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_slice(event.payload).unwrap()).collect()
}

/// Our own source reads what our own server shows, and keeps its checkpoint there.
#[tokio::test(flavor = "multi_thread")]
async fn r52_a_host_is_the_source_of_another() {
    let scene = Scene::open().await;
    let payloads: Vec<_> = (0..300).map(|number| json!({ "conversation": number.to_string() })).collect();
    scene.publish("response", "created", &payloads).await;
    let remote = SourceCheckpoints::Remote;
    let second = second(GrpcSourceConfig { checkpoints: remote, ..settings(scene.port()) }).await;
    let events = taken(&second, 300).await;
    assert!(events.iter().all(|event| (event.event_type, event.kind) == ("response.created", "response")));
    assert_eq!(data(&events), payloads);
    second.stop().await;
    let kept = scene.client("second", None).get("second").await.unwrap().unwrap();
    let newest = scene.host.host().log().bounds().newest;
    let cursor = kept.value.value()["lastEventCursor"].as_str().unwrap().to_owned();
    assert!(cursor.ends_with(&format!(".{newest}")), "{cursor} {newest}");
}

/// Cursors are the server's own words; what counts is that each goes on behind its event.
#[tokio::test(flavor = "multi_thread")]
async fn r47_a_host_goes_on_behind_each_event_of_anothers_live_tail() {
    let scene = Scene::open().await;
    let from_now = GrpcSourceConfig { after_cursor: String::new(), ..settings(scene.port()) };
    let live = second(from_now).await;
    until(&live, "it is live", |status| status["state"] == "live").await;
    let mut told: Vec<_> = (0..3).map(|number| json!({ "number": number })).collect();
    for payload in &told {
        scene.publish("response", "created", std::slice::from_ref(payload)).await;
    }
    let events = taken(&live, 3).await;
    assert_eq!(data(&events), told);
    let cursors: Vec<_> = events.iter().map(|event| event.cursor.to_owned()).collect();
    live.stop().await;
    for (number, cursor) in cursors.into_iter().enumerate() {
        let behind = second(GrpcSourceConfig { after_cursor: cursor, ..settings(scene.port()) }).await;
        until(&behind, "it is live", |status| status["state"] == "live").await;
        // One more, since what came too often would be before it.
        told.push(json!({ "number": told.len() }));
        scene.publish("response", "created", &told[told.len() - 1..]).await;
        let rest = &told[number + 1..];
        assert_eq!(data(&taken(&behind, rest.len()).await), rest, "behind the event {number}");
        behind.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r48_r49_a_host_takes_what_it_asks_another_for() {
    let scene = Scene::open().await;
    let entry = |id: &str, channel: &str, role: &str| {
        json!({
            "id": id, "conversationId": "c", "channel": channel, "contentType": channel,
            "content": [{ "role": role }],
        })
    };
    let entries = [
        entry("said", "history", "USER"),
        entry("asked", "context", "USER"),
        entry("thought", "context", "AI"),
        entry("thought again", "context", "AI"),
    ];
    scene.publish("entry", "created", &entries).await;
    scene.publish("response", "created", &[json!({ "conversation": "c" })]).await;
    let all = SubscribeEventsRequest { entry_channels: vec!["context".into()], ..after("start") };
    let shown = scene.caller(&[]).subscribe(all).await.unwrap().events(4).await;
    let shown: Vec<_> = shown.into_iter().filter_map(|event| event.cursor).collect();
    let asked = GrpcSourceConfig {
        kinds: vec!["entry".into()],
        entry_channels: vec!["context".into()],
        entry_roles: vec!["ai".into()],
        ..settings(scene.port())
    };
    let filtered = second(asked.clone()).await;
    until(&filtered, "it is live", |status| status["state"] == "live").await;
    let events = taken(&filtered, 2).await;
    assert_eq!(data(&events), entries[2..], "no other is shown");
    let first = events.get(0).cursor.to_owned();
    assert!(shown.contains(&first), "{first} is none of {shown:?}");
    filtered.stop().await;

    let behind = second(GrpcSourceConfig { after_cursor: first, ..asked }).await;
    until(&behind, "it is live", |status| status["state"] == "live").await;
    assert_eq!(data(&taken(&behind, 1).await), entries[3..]);
    behind.stop().await;
}

/// Who published is somebody else; the token says whether that matters, and the reason that is given does not.
#[tokio::test(flavor = "multi_thread")]
async fn r50_a_host_with_a_token_that_reads_everything_takes_what_others_published() {
    let scene = Scene::with_tokens().await;
    let of = |token: &str| json!({ "by": token });
    for token in [FOREIGN, OPERATOR, WRITER] {
        publish(&scene.http(Some(token)), "response", "created", &[of(token)]).await;
    }
    let keyed = |token: &str, scope: Scope, justification: &str| GrpcSourceConfig {
        api_key: Some(SecretText(token.into())),
        scope,
        justification: justification.into(),
        ..settings(scene.port())
    };
    for token in [TRACER, AUDITOR] {
        for (scope, justification) in [(Scope::Admin, ""), (Scope::Admin, "audit 7"), (Scope::User, "")] {
            let second = second(keyed(token, scope, justification)).await;
            let events = taken(&second, 2).await;
            assert_eq!(data(&events), [of(OPERATOR), of(WRITER)], "{token} {scope:?} {justification}");
            second.stop().await;
        }
    }
    let second = second(keyed(WRITER, Scope::Admin, "audit 7")).await;
    let status = until(&second, "it stops", |status| status["state"] == "failed").await;
    assert_eq!(status["last_error"]["code"], "source_denied", "{status}");
    assert!(taken(&second, 0).await.is_empty());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r51_a_host_is_told_that_another_does_not_hold_its_cursor() {
    let scene = Scene::open().await;
    scene.publish("response", "created", &[json!({ "number": 1 })]).await;
    for (policy, taken_there) in [(CursorPolicy::Fail, 0), (CursorPolicy::Oldest, 1)] {
        let asked = GrpcSourceConfig {
            after_cursor: "abcd.7".into(),
            on_cursor_lost: policy,
            ..settings(scene.port())
        };
        let second = second(asked).await;
        if policy == CursorPolicy::Fail {
            let status = until(&second, "it stops", |status| status["state"] == "failed").await;
            assert_eq!(status["last_error"]["code"], "cursor_lost");
        }
        assert_eq!(taken(&second, taken_there).await.len(), taken_there, "{policy:?}");
        second.stop().await;
    }
}

/// Nothing is missing afterwards, and nothing is there twice.
async fn outlives(end: End, checkpoints: SourceCheckpoints) {
    let mut first = Process::start().await;
    first.publish(0..6_000).await;
    let second = second(GrpcSourceConfig { checkpoints, ..settings(first.port()) }).await;
    let log = second.host().log();
    millrace_tests::until("it has begun to take them", || log.bounds().newest > Position::START).await;
    first.end(end);
    until(&second, "the server is missed", |status| status["state"] == "waiting").await;
    first.start_again().await;
    first.publish(6_000..7_000).await;
    taken(&second, 7_000).await;
    until(&second, "it has come back", |status| status["reconnects"].as_u64() > Some(0)).await;
    // One more, since what came twice would be before it; and after a restart, since that begins at what was kept.
    let second = Box::pin(second.restart()).await.unwrap();
    first.publish(7_000..7_001).await;
    let numbers: Vec<_> =
        data(&taken(&second, 7_001).await).iter().map(|data| data["number"].as_u64()).collect();
    assert!(numbers.iter().copied().eq((0..7_001).map(Some)), "{numbers:?}");
    let kept = first.client().get("/v1/admin/checkpoints/second").await.unwrap();
    let is_there = checkpoints == SourceCheckpoints::Remote;
    assert_eq!(kept.status, if is_there { 200 } else { 404 }, "{}", kept.text());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_server_kill_of_a_host_leaves_another_that_reads_it_whole() {
    for checkpoints in [SourceCheckpoints::Remote, SourceCheckpoints::Store] {
        Box::pin(outlives(End::Kill, checkpoints)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_graceful_stop_of_a_host_leaves_another_that_reads_it_whole() {
    for checkpoints in [SourceCheckpoints::Remote, SourceCheckpoints::Store] {
        Box::pin(outlives(End::Stop, checkpoints)).await;
    }
}
