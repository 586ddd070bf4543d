//! Answers that nobody takes: what is kept for them, and how long.

use millrace::memory_v1::{SubscribeEventsRequest, Value};
use prost::Message as _;
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use super::raw::{ALL, Answered, CANCEL, Raw};
use super::scene::{Caller, PATIENCE, Scene};

/// Keeps a text of so many bytes for `me`. Answers how many bytes the answer has that shows it.
async fn keeps(caller: &Caller, bytes: usize) -> u32 {
    let value = Value::from_json(&json!("x".repeat(bytes))).encode_to_vec();
    let kept = caller.put("me", "text/json", Some(value)).await.unwrap();
    u32::try_from(kept.encoded_len() + 5).unwrap()
}

/// Its socket is read, and it has asked for an answer; but it makes no room, or too little.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_is_ended_at_write_wait_max() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 500).await;
    let caller = scene.caller(&[]);
    let bytes = keeps(&caller, 40_000).await;
    for window in [0, 1, 20_000, bytes - 1] {
        let mut raw = Raw::open(&scene, window).await;
        raw.get(1, "me").await;
        assert_eq!(raw.answered(1).await, Answered::Reset(CANCEL), "room for {window} of {bytes} bytes");
        // Nothing else of the connection is ended for it.
        raw.get(3, "nobody").await;
        assert_eq!(raw.answered(3).await, Answered::Whole(0));
    }
}

/// However long this machine takes for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_needs_no_more_room_than_it_has_bytes() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 600_000).await;
    let bytes = keeps(&scene.caller(&[]), 40_000).await;
    let mut raw = Raw::open(&scene, bytes).await;
    raw.get(1, "me").await;
    assert_eq!(raw.answered(1).await, Answered::Whole(bytes as usize));
}

/// Each has a checkpoint in memory, so they are calls until they are taken.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken_are_bounded_in_number() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 600_000).await;
    let caller = scene.caller(&[]);
    keeps(&caller, 1_000).await;
    let mut raw = Raw::open(&scene, 0).await;
    for stream in (0..128).map(|number| 2 * number + 1) {
        raw.get(stream, "me").await;
        raw.begun(stream).await;
    }
    let refused = caller.get("me").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("grpc_calls_max = 128"), "{refused}");
    drop(raw);
    let room = async { while caller.get("me").await.is_err() {} };
    timeout(PATIENCE, room).await.expect("there is room again");
}

/// A stream of few events never fills what is written ahead of its client.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_any_room_is_ended() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 500).await;
    let mut raw = Raw::open(&scene, 0).await;
    raw.subscribe(1, &SubscribeEventsRequest::default()).await;
    assert_eq!(raw.answered(1).await, Answered::Reset(CANCEL));
}

/// Whoever does not read the socket holds nothing either, however much room was promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_left() {
    let scene = Scene::with(|config| config.gateway.write_wait_ms_max = 600_000).await;
    keeps(&scene.caller(&[]), 3_000_000).await;
    // Whoever reads is in time, however slowly, until here.
    let scene = scene.restart_with(|config| config.gateway.write_wait_ms_max = 500).await;
    let mut raw = Raw::open(&scene, ALL).await;
    // Far more in all than sockets hold.
    for stream in (0..30).map(|number| 2 * number + 1) {
        raw.get(stream, "me").await;
    }
    raw.wait_until_left().await;
    // An answer without a body waits for no reader.
    assert_eq!(scene.caller(&[]).get("nobody").await.unwrap_err().code(), Code::NotFound);
}
