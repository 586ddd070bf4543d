//! What a caller may not do, and what ends a stream.

use std::time::{Duration, Instant};

use millrace::memory_v1::{RetryInfo, SubscribeEventsRequest};
use serde_json::json;
use tonic::Code;

use super::scene::{AUDITOR, OPERATOR, PATIENCE, Scene, Shown, TRACER, after, data, publish};

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_for_events_are_refused_with_a_reason() {
    let scene = Scene::open().await;
    let caller = scene.caller(&[]);
    let asked = SubscribeEventsRequest::default;
    for (asked, reason) in [
        (SubscribeEventsRequest { detail: Some("all".into()), ..asked() }, "detail is summary or full"),
        (SubscribeEventsRequest { scope: Some(7), ..asked() }, "scope is unknown"),
        (
            SubscribeEventsRequest { conversation_ids: vec!["c".into(), " ".into()], ..asked() },
            "conversation_ids has a blank element",
        ),
        (
            SubscribeEventsRequest { kinds: vec!["k".into(); 1_001], ..asked() },
            "the filters have 1001 values; grpc_filter_values_max is 1000",
        ),
    ] {
        let refused = caller.subscribe(asked).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, reason));
    }
    let unknown: Result<(), _> = caller.ask("/memory.v1.EntriesService/AppendEntry", ()).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_rate_of_a_tenant_say_when_to_come_back() {
    let scene = Scene::with(|config| {
        (config.gateway.tenant_requests_per_s, config.gateway.tenant_requests_burst) = (1, 1);
    })
    .await;
    let caller = scene.caller(&[]);
    let mut refused = None;
    for _ in 0..1_000 {
        let status = caller.get("me").await.unwrap_err();
        if status.code() != Code::NotFound {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("a thousand in a second are too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let wait = RetryInfo::of(refused.details()).and_then(RetryInfo::wait).unwrap();
    assert!(wait.as_micros() > 0 && wait.as_secs() <= 1, "{wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stops_tells_its_streams() {
    let scene = Scene::open().await;
    let mut shown = scene.caller(&[]).after("").await;
    shown.until_live().await;
    let stopped = scene.host.stop();
    let (_, ended) = tokio::join!(stopped, shown.next());
    let status = ended.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the host is stopping"));
}

/// A stream that is not read stands still, and takes nothing from another one of the same connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    // However slow this machine is, it is not ended for that.
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 600_000).await;
    let caller = scene.caller(&[]);
    let mut still = caller.after("start").await;
    // More in all than a client takes of one stream without reading it.
    let text = "x".repeat(50_000);
    let payloads: Vec<_> = (0..100).map(|number| json!({ "number": number, "text": text })).collect();
    scene.publish("a", "b", &payloads).await;
    let mut other = caller.subscribe(after("start")).await.unwrap();
    let events = other.events(20).await;
    assert_eq!(events.len(), 20);
    let first = still.event().await;
    assert_eq!(first.data, events[0].data, "it begins where it stood");
    assert_eq!(still.events(99).await.last().map(|event| event.data.len()), Some(events[19].data.len()));
}

/// How many events a stream still shows, if its client begins to read only now. None where the connection broke.
async fn left(mut shown: Shown) -> Option<usize> {
    let mut events = 0;
    loop {
        let event = match shown.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            // Who comes twice as late finds it gone.
            Err(status) if status.code() == Code::Cancelled => break,
            Err(_) => return None,
        };
        events += usize::from(event.kind != "stream");
        if data(&event) == json!({ "phase": "live" }) {
            break;
        }
    }
    Some(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_which_nothing_is_taken_is_ended_at_write_wait_max() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 500).await;
    let caller = scene.caller(&[]);
    // More in all than a client takes of one stream without reading it.
    let text = "x".repeat(50_000);
    let payloads: Vec<_> = (0..200).map(|number| json!({ "number": number, "text": text })).collect();
    scene.publish("a", "b", &payloads).await;
    let (begin, mut wait) = (Instant::now(), Duration::from_secs(1));
    loop {
        let still = caller.after("start").await;
        tokio::time::sleep(wait).await;
        match left(still).await {
            Some(0..200) => return,
            seen => assert!(begin.elapsed() < PATIENCE, "{seen:?} events after {wait:?} without a look"),
        }
        wait *= 2;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_credential_and_others_go_on() {
    let scene = Scene::with_tokens().await;
    let mut revoked = scene.keyed(AUDITOR).after("").await;
    let mut other = scene.keyed(TRACER).after("").await;
    revoked.until_live().await;
    other.until_live().await;
    let operator = scene.http(Some(OPERATOR));
    let body = json!({ "name": "auditor" }).to_string();
    operator.post("/v1/auth/revoke", "application/json", body).await.unwrap().ok().unwrap();
    let status = loop {
        match revoked.next().await {
            Ok(event) => assert_eq!(event.expect("it ends with a reason").kind, "stream"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("revoked"), "{status}");
    let again = scene.keyed(AUDITOR).subscribe(after("")).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    publish(&operator, "a", "b", &[json!(1)]).await;
    assert_eq!(data(&other.event().await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_the_bound_of_the_server_are_refused_by_its_name() {
    let scene = Scene::open().await;
    let caller = scene.caller(&[]);
    let mut streams = Vec::new();
    for _ in 0..500 {
        streams.push(caller.after("").await);
    }
    let refused = caller.subscribe(after("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("grpc_event_streams_max = 500"), "{refused}");
    assert!(RetryInfo::of(refused.details()).is_some());
    drop(streams.pop());
    let begin = Instant::now();
    while let Err(refused) = caller.subscribe(after("")).await {
        assert!(begin.elapsed() < PATIENCE, "{refused}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_is_refused() {
    let scene = Scene::open().await;
    let path = "/memory.v1.AdminCheckpointService/GetCheckpoint";
    assert_eq!(scene.caller(&[]).post(path, "application/json").await, 415);
    // A client of HTTP/1 is not understood, and costs nobody else anything.
    reqwest::get(format!("{}/healthz", scene.endpoint())).await.unwrap_err();
    assert_eq!(scene.caller(&[]).get("me").await.unwrap_err().code(), Code::NotFound);
}
