//! A plugin that a foreign server feeds, from end to end: the sample `turn-tracer`, written in Python.
//!
//! In place of spans it emits `turn.closed`, with what a span would have as its payload.

use std::collections::BTreeMap;

use millrace::plugins::PluginSettings;
use millrace_tests::embedded::Embedded;
use millrace_tests::peer::Peer;
use millrace_tests::until;
use serde_json::{Value, json};

use super::scene::{Scene, settings};

/// An entry in both shapes, in conversation `c` of group `g`.
fn entry(peer: &mut Peer, id: &str, channel: &str, content: &Value) {
    let role = content["role"].as_str();
    let mut summary = json!({
        "conversation": "c", "conversation_group": "g", "entry": id,
        "entry_channel": channel, "entry_content_type": "history",
    });
    if let Some(role) = role {
        summary["entry_role"] = role.into();
    }
    let full = json!({
        "id": id, "conversationId": "c", "conversationGroupId": "g", "userId": "u", "channel": channel,
        "contentType": if channel == "history" { "history" } else { "context" }, "epoch": 1,
        "content": [content], "createdAt": "2026-01-01T00:00:00Z",
    });
    peer.ask(&json!({
        "do": "publish", "kind": "entry", "event": "created", "data": full.to_string(),
        "summary": summary.to_string(),
    }));
}

/// A host with the tracer, whose sessions are groups of conversations.
async fn traced() -> Scene {
    let peer = Peer::start();
    let mut source = settings(&peer.endpoint());
    source.kinds = vec!["entry".into(), "conversation".into()];
    source.entry_channels = vec!["history".into(), "context".into()];
    let of_groups = PluginSettings {
        config: BTreeMap::from([("session_id".to_owned(), "conversation-group".to_owned())]),
        ..PluginSettings::default()
    };
    let host = Embedded::start_lent(&["turn-tracer"], |config| {
        config.source.grpc = Some(source);
        config.plugins.insert("turn-tracer".into(), of_groups);
    })
    .await
    .unwrap();
    host.client.deploy("turn-tracer").await.unwrap();
    Scene { peer, host }
}

/// The turns that were closed, once everything was handled.
async fn closed(scene: &Scene, foreign: usize) -> Vec<Value> {
    scene.events(foreign).await;
    scene.host.client.settle().await.unwrap();
    scene.host.client.events("turn.closed").await.unwrap()
}

/// What the tracer has saved, once it has saved that it is so far.
async fn saved(scene: &Scene, cursor: &str) -> Value {
    let is_there = |answer: &Value| answer["saved"]["json"]["lastEventCursor"] == cursor;
    let path = "/v1/plugins/turn-tracer/state";
    let answer = scene.host.client.wait_for(path, |answer| is_there(&answer.json())).await.unwrap();
    answer.json()["saved"]["json"].clone()
}

/// Waits until the source has written down that it is so far.
async fn stored(scene: &Scene, cursor: &str) {
    let kept = scene.kept();
    until("the cursor is stored", || {
        let text = std::fs::read(&kept).unwrap_or_default();
        let checkpoint: Value = serde_json::from_slice(&text).unwrap_or_default();
        checkpoint["value"]["lastEventCursor"] == cursor
    })
    .await;
}

/// The one turn of `e1`, `e2` and `e3` has everything that they say, `e2` as its context.
async fn is_whole(scene: &Scene, turns: &[Value]) {
    assert_eq!(turns.len(), 1, "{turns:?}");
    let turn = &turns[0]["payload"];
    assert_eq!((&turn["conversationId"], &turn["endReason"]), (&json!("c"), &json!("agent_history_entry")));
    let span = &turn["span"]["attributes"];
    assert_eq!((&span["session.id"], &span["langfuse.session.id"]), (&json!("g"), &json!("g")));
    assert_eq!((&span["input.value"], &span["output.value"]), (&json!("hello"), &json!("good day")));
    assert_eq!(span["langfuse.observation.metadata.context_entry_count"], 1);
    let generation = &turn["generation"]["attributes"];
    assert_eq!(generation["langfuse.observation.metadata.context_entry_ids"], json!(["e2"]));
    assert_eq!(generation["gen_ai.prompt"], "e2: more");
    let rows = scene.host.client.rows("turns", "limit=10").await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = &rows[0]["values"];
    assert_eq!((&row["context_entries"], &row["session"]), (&json!(1), &json!("g")));
    assert_eq!((&row["user_entry"], &row["agent_entry"]), (&json!("e1"), &json!("e3")));
    assert_eq!((&row["start_cursor"], &row["end_cursor"]), (&json!("1"), &json!("3")));
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_r55_three_events_are_one_turn_with_its_context() {
    let mut scene = traced().await;
    entry(&mut scene.peer, "e1", "history", &json!({ "role": "USER", "text": "hello" }));
    entry(&mut scene.peer, "e2", "context", &json!({ "role": "USER", "text": "more" }));
    entry(&mut scene.peer, "e3", "history", &json!({ "role": "AI", "text": "good day" }));
    let turns = closed(&scene, 3).await;
    is_whole(&scene, &turns).await;
    assert_eq!(saved(&scene, "3").await["openTurns"], json!({}));
    stored(&scene, "3").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r56_a_turn_goes_on_after_a_restart_with_the_context_that_was_saved() {
    let mut scene = traced().await;
    entry(&mut scene.peer, "e1", "history", &json!({ "role": "USER", "text": "hello" }));
    entry(&mut scene.peer, "e2", "context", &json!({ "role": "USER", "text": "more" }));
    assert_eq!(closed(&scene, 2).await, Vec::<Value>::new());
    let open = saved(&scene, "2").await;
    assert_eq!(open["openTurns"]["c"]["contextEntryIds"], json!(["e2"]), "{open}");
    stored(&scene, "2").await;
    let mut scene = scene.restart().await;
    entry(&mut scene.peer, "e3", "history", &json!({ "role": "AI", "text": "good day" }));
    let turns = closed(&scene, 3).await;
    is_whole(&scene, &turns).await;
    assert_eq!(saved(&scene, "3").await["openTurns"], json!({}));
    scene.end().await;
}
