//! A plugin that a foreign server feeds, from end to end: the sample `turn-tracer`, written in Python.
//!
//! In place of spans it emits `turn.closed`, with what a span would have as its payload.

use millrace_tests::peer::Peer;
use serde_json::{Value, json};

use super::scene::Scene;

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

async fn traced() -> Scene {
    let scene = Scene::lent(Peer::start(), &["turn-tracer"], |settings| {
        settings.kinds = vec!["entry".into(), "conversation".into()];
        settings.entry_channels = vec!["history".into(), "context".into()];
    })
    .await;
    scene.host.client.deploy("turn-tracer").await.unwrap();
    scene
}

/// The turns that were closed, once everything was handled.
async fn closed(scene: &Scene, foreign: usize) -> Vec<Value> {
    scene.events(foreign).await;
    scene.host.client.settle().await.unwrap();
    scene.host.client.events("turn.closed").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_r55_three_events_are_one_turn_with_its_context() {
    let mut scene = traced().await;
    entry(&mut scene.peer, "e1", "history", &json!({ "role": "USER", "text": "hello" }));
    entry(&mut scene.peer, "e2", "context", &json!({ "role": "USER", "text": "more" }));
    entry(&mut scene.peer, "e3", "history", &json!({ "role": "AI", "text": "good day" }));
    let turns = closed(&scene, 3).await;
    assert_eq!(turns.len(), 1, "{turns:?}");
    let said = turns[0]["payload"].to_string();
    assert!(said.contains("agent_history_entry"), "{said}");
    assert!(said.contains("hello") && said.contains("good day"), "{said}");
    scene.until("the source has handled it", |status| status["cursor"] == "3").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r56_a_turn_goes_on_after_a_restart() {
    let mut scene = traced().await;
    entry(&mut scene.peer, "e1", "history", &json!({ "role": "USER", "text": "hello" }));
    entry(&mut scene.peer, "e2", "context", &json!({ "role": "USER", "text": "more" }));
    assert_eq!(closed(&scene, 2).await, Vec::<Value>::new());
    let mut scene = scene.restart().await;
    entry(&mut scene.peer, "e3", "history", &json!({ "role": "AI", "text": "good day" }));
    let turns = closed(&scene, 3).await;
    assert_eq!(turns.len(), 1, "{turns:?}");
    let said = turns[0]["payload"].to_string();
    assert!(said.contains("agent_history_entry") && said.contains("hello"), "{said}");
    scene.end().await;
}
