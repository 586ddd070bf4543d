//! Live queries and credentials: who may watch what, and what ends when a credential does.

use std::time::Duration;

use millrace::event::Micros;
use millrace::tables::{Condition, Filter, Operator, Value};
use serde_json::json;

use super::issuer::{Signer, claims_with, get, later, now, rig_of, set};
use super::live::batch;
use super::live_sockets::{connect_multi_with, try_connect};
use super::rig::{Client, Rig};

async fn filled(signer: &Signer) -> Rig {
    let rig =
        rig_of(&set(&[signer.jwk("k")]), |options| options.sse_heartbeat = Duration::from_secs(600)).await;
    rig.rows("alpha", &[("a", 1, None)]).await;
    rig
}

fn token(signer: &Signer, claims: serde_json::Value) -> String {
    signer.token("k", &claims_with(&claims))
}

/// Expires soon; with a fraction, so that the stream looks at the clock soon.
#[expect(clippy::cast_precision_loss, reason = "a time of this century")]
fn soon() -> serde_json::Value {
    json!({ "exp": now() as f64 + 0.05 })
}

async fn follow(rig: &Rig, token: &str) -> Client {
    let mut client = rig.connect().await;
    let head = format!(
        "GET /v1/live?table=things&limit=2 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    client.write(head.as_bytes()).await;
    client
}

#[tokio::test]
async fn a_query_carries_what_its_token_may_see_and_a_forbidden_table_is_refused() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    let some = token(&signer, json!({ "tables": { "things": { "where": "size:lt:5" } } }));
    let _client = follow(&rig, &some).await;
    let opened = rig.live.opened().await;
    let scope =
        Filter::Is(Condition { column: "size".into(), operator: Operator::Lt, values: vec![Value::Int(5)] });
    assert_eq!((opened.asked.tenant.as_str(), &opened.asked.query.query.scope), ("alpha", &scope));
    let none = token(&signer, json!({ "tables": ["others"] }));
    get(&rig, "/v1/live?table=things", &none).await.is_problem(403, "table_forbidden");
    assert!(rig.live.none_opened());
    rig.get("/v1/live?table=things").await.is_problem(401, "token_missing");
    rig.get("/v1/live/ws").await.is_problem(401, "token_missing");
    get(&rig, "/v1/live?table=things", "a.b.c").await.is_problem(401, "token_invalid");
    let writes = token(&signer, json!({ "rights": ["publish"] }));
    get(&rig, "/v1/live?table=things", &writes).await.is_problem(403, "right_missing");
    rig.stop().await;
}

#[tokio::test]
async fn a_moved_window_keeps_to_what_the_token_may_see() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    let some = token(&signer, json!({ "tables": { "things": { "where": "size:lt:5" } } }));
    let mut socket = connect_multi_with(&rig, &some).await;
    socket.say(r#"{"action":"subscribe","id":"s","query":{"table":"things","limit":2}}"#).await;
    let first = rig.live.opened().await;
    socket.say(r#"{"action":"reanchor","id":"s","limit":1}"#).await;
    let moved = rig.live.opened().await;
    assert_eq!(moved.asked.query.query.limit, 1);
    assert_eq!(moved.asked.query.query.scope, first.asked.query.query.scope);
    rig.stop().await;
}

#[tokio::test]
async fn an_expired_token_ends_its_live_queries_with_a_code() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    let mut client = follow(&rig, &token(&signer, soon())).await;
    let opened = rig.live.opened().await;
    opened.batches.send(Ok(batch(&["reset", "ready"], Some("e.1")))).await.expect("somebody listens");
    let mut text = String::new();
    client.read_until(&mut text, "event: ready").await;
    let mut socket = connect_multi_with(&rig, &token(&signer, soon())).await;
    later(&rig, 1);
    client.read_until(&mut text, "event: error").await;
    client.read_until(&mut text, "\"code\":\"token_expired\"").await;
    assert_eq!(socket.json().await["code"], "token_expired");
    rig.stop().await;
}

#[tokio::test]
async fn a_newer_token_keeps_a_socket_open_and_only_one_of_the_same_reader() {
    let signer = Signer::ed25519();
    let rig = filled(&signer).await;
    let mut socket = connect_multi_with(&rig, &token(&signer, soon())).await;
    let auth = |token: String| json!({ "action": "auth", "token": token }).to_string();
    socket.say(&auth(token(&signer, json!({ "tenant": "beta" })))).await;
    assert_eq!(socket.json().await["code"], "token_differs");
    socket.say(&auth(token(&signer, json!({ "tables": ["things"] })))).await;
    assert_eq!(socket.json().await["code"], "token_differs");
    socket.say(&auth("junk".into())).await;
    assert_eq!(socket.json().await["code"], "token_invalid");
    socket.say(&auth(token(&signer, json!({ "exp": now() + 500 })))).await;
    assert_eq!(socket.json().await["type"], "authenticated");
    rig.clock.set(Micros((now() + 100) * 1_000_000));
    // It outlives the first token, and answers.
    socket.say(r#"{"action":"ping","nonce":"x"}"#).await;
    assert_eq!(socket.json().await["type"], "pong");
    rig.clock.set(Micros((now() + 600) * 1_000_000));
    let refused = try_connect(&rig, &[("authorization", "Bearer a.b.c")]).await;
    assert!(refused.is_err(), "a bad token opens no socket");
    rig.stop().await;
}
