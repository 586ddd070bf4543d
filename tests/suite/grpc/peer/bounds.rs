//! Bounds of the server, as a client in Python is told of them.

use std::time::Instant;

use serde_json::json;

use super::super::scene::{PATIENCE, Scene};
use super::caller::{Caller, headers, status};

#[tokio::test(flavor = "multi_thread")]
async fn rx_resource_exhausted_at_the_rate_of_a_tenant_says_when_to_come_back() {
    let scene = Scene::with(|config| {
        (config.gateway.tenant_requests_per_s, config.gateway.tenant_requests_burst) = (1, 1);
    })
    .await;
    let mut caller = Caller::start(scene.port());
    let refused = (0..1_000).map(|_| caller.get(None, "me")).find(|told| status(told).0 != "NOT_FOUND");
    let refused = refused.expect("a thousand in a second are too many");
    let (code, text) = status(&refused);
    assert_eq!(code, "RESOURCE_EXHAUSTED", "{refused}");
    assert!(text.contains("tenant_requests_per_s = 1"), "{refused}");
    assert!((0..=1_000).contains(&refused["retry_ms"].as_i64().unwrap()), "{refused}");
    // So is a stream.
    let begin = (0..1_000).map(|_| caller.refused(None, &json!({}))).find(|said| said["kind"].is_null());
    let begin = begin.expect("these are too many, too");
    assert_eq!(status(&begin), ("RESOURCE_EXHAUSTED", text));
    assert!(begin["retry_ms"].is_number(), "{begin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rx_resource_exhausted_over_the_streams_of_a_server_ends_with_one_of_them() {
    let scene = Scene::open().await;
    let mut caller = Caller::start(scene.port());
    caller.ask(
        &json!({ "do": "open", "stream": "of many ", "count": 500, "headers": headers(None), "asked": {} }),
    );
    let refused = caller.refused(None, &json!({}));
    assert_eq!(
        status(&refused),
        ("RESOURCE_EXHAUSTED", "grpc_event_streams_max = 500 are open on this host")
    );
    assert_eq!(refused["retry_ms"], 1_000);
    // Those that there are go on, and there is room again when one has gone.
    scene.publish("a", "b", &[json!(1)]).await;
    assert_eq!(caller.events("of many 499", 1)[0]["data"], 1);
    caller.ask(&json!({ "do": "cancel", "stream": "of many 7" }));
    let begin = Instant::now();
    loop {
        caller.open("late", None, &json!({}));
        let said = caller.messages("late", 1).remove(0);
        if said["data"] == json!({ "phase": "live" }) {
            return;
        }
        assert_eq!(status(&said).0, "RESOURCE_EXHAUSTED", "{said}");
        assert!(begin.elapsed() < PATIENCE, "there is no room");
    }
}
