//! What ends a credential before or at its time ends what it has opened; and rates of tenants.

use std::time::Duration;

use millrace::gateway::{GatewayOptions, JwtKeys};
use serde_json::{Value, json};

use super::issuer::{KeyServer, Signer, claims, claims_with, events, get, jwt, later, now, rig_of, set};
use super::rig::{Client, Rig};

/// No heartbeat wakes a stream up: what ends it does.
fn quiet(options: &mut GatewayOptions) {
    options.sse_heartbeat = Duration::from_secs(600);
}

/// A follower that has its `ready`.
async fn follow(rig: &Rig, headers: &str) -> (Client, String) {
    let mut client = rig.connect().await;
    let head = format!(
        "GET /v1/streams/events?after=newest HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n\r\n"
    );
    client.write(head.as_bytes()).await;
    let mut text = String::new();
    client.read_until(&mut text, "event: ready").await;
    (client, text)
}

async fn bearer(rig: &Rig, token: &str) -> (Client, String) {
    follow(rig, &format!("Authorization: Bearer {token}")).await
}

/// The stream's last word is this error, and then it closes.
async fn ends_with((mut client, mut text): (Client, String), code: &str) {
    client.read_until(&mut text, "event: error").await;
    client.read_until(&mut text, &format!("\"code\":\"{code}\"")).await;
    client.read_until(&mut text, "\r\n0\r\n\r\n").await;
}

async fn revoke(rig: &Rig, body: &Value) -> super::rig::Answer {
    let headers = [("Authorization", "Bearer alpha-all"), ("Content-Type", "application/json")];
    rig.send("POST", "/v1/auth/revoke", &headers, body.to_string().as_bytes()).await
}

#[tokio::test]
async fn an_open_stream_ends_when_its_token_expires() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), quiet).await;
    // A fraction, so that the stream looks at the clock soon.
    #[expect(clippy::cast_precision_loss, reason = "a time of this century")]
    let soon = signer.token("k", &claims_with(&json!({ "exp": now() as f64 + 0.05 })));
    let late = signer.token("k", &claims());
    let (first, second) = (bearer(&rig, &soon).await, bearer(&rig, &late).await);
    later(&rig, 1);
    ends_with(first, "token_expired").await;
    rig.append("alpha", 1).await;
    let (mut client, mut text) = second;
    client.read_until(&mut text, "thing.odd").await;
    events(&rig, &soon).await.is_problem(401, "token_expired");
    rig.stop().await;
}

#[tokio::test]
async fn a_busy_stream_ends_when_its_token_expires() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), quiet).await;
    let token = signer.token("k", &claims_with(&json!({ "exp": now() + 1 })));
    let stream = bearer(&rig, &token).await;
    later(&rig, 1);
    rig.append("alpha", 10).await;
    ends_with(stream, "token_expired").await;
    rig.stop().await;
}

#[tokio::test]
async fn revoking_ends_open_streams_and_nobody_elses() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), quiet).await;
    let of = |id: &str, subject: &str| signer.token("k", &claims_with(&json!({ "jti": id, "sub": subject })));
    let ada = bearer(&rig, &of("t1", "ada")).await;
    let ada_too = bearer(&rig, &of("t2", "ada")).await;
    let bob = bearer(&rig, &of("t3", "bob")).await;
    let fixed = bearer(&rig, "alpha-read").await;

    assert_eq!(revoke(&rig, &json!({ "jti": "t1" })).await.json(), json!({ "revoked": { "jti": "t1" } }));
    ends_with(ada, "token_revoked").await;
    events(&rig, &of("t1", "ada")).await.is_problem(401, "token_revoked");
    assert_eq!(events(&rig, &of("t2", "ada")).await.status, 200);

    assert_eq!(revoke(&rig, &json!({ "sub": "ada" })).await.status, 200);
    ends_with(ada_too, "token_revoked").await;
    events(&rig, &of("t4", "ada")).await.is_problem(401, "token_revoked");
    let unsaid = claims_with(&json!({ "iat": null, "jti": null }));
    events(&rig, &signer.token("k", &unsaid)).await.is_problem(401, "token_revoked");
    let newer = claims_with(&json!({ "iat": now() + 1, "jti": "t5" }));
    assert_eq!(events(&rig, &signer.token("k", &newer)).await.status, 200, "she has logged in again");

    assert_eq!(revoke(&rig, &json!({ "name": "token-2" })).await.status, 200);
    ends_with(fixed, "token_revoked").await;
    events(&rig, "alpha-read").await.is_problem(401, "token_revoked");
    assert_eq!(events(&rig, "alpha-digest").await.status, 200);

    rig.append("alpha", 1).await;
    let (mut client, mut text) = bob;
    client.read_until(&mut text, "thing.odd").await;
    assert!(!text.contains("event: error"), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn an_upload_ends_when_its_token_expires_and_keeps_what_was_answered() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), quiet).await;
    let token = signer.token("k", &claims_with(&json!({ "rights": ["publish"], "exp": now() + 60 })));
    let mut client = rig.connect().await;
    let line = |version: u32| {
        let event =
            json!({ "aggregate": "a", "agg_id": "x", "version": version, "type": "a.b", "payload": {} });
        let line = format!("{event}\n");
        format!("{:x}\r\n{line}\r\n", line.len())
    };
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    client.write(head.as_bytes()).await;
    client.write(line(1).as_bytes()).await;
    let mut text = String::new();
    client.read_until(&mut text, "\"position\"").await;
    later(&rig, 60);
    client.write(line(2).as_bytes()).await;
    client.read_until(&mut text, "\"code\":\"token_expired\"").await;
    assert_eq!(rig.store_newest(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn revoking_takes_the_right_admin_and_names_one_thing() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), |options| options.auth.revocations_max = 2).await;
    let headers = [("Authorization", "Bearer alpha-read")];
    rig.send("POST", "/v1/auth/revoke", &headers, b"{\"jti\":\"x\"}").await.is_problem(403, "right_missing");
    rig.send("POST", "/v1/auth/revoke", &[], b"{\"jti\":\"x\"}").await.is_problem(401, "token_missing");
    for body in [
        json!({}),
        json!({ "jti": "a", "sub": "b" }),
        json!({ "token": "x" }),
        json!([]),
        json!({ "jti": 1 }),
    ] {
        revoke(&rig, &body).await.is_problem(400, "json_malformed");
    }
    revoke(&rig, &json!({ "name": "nobody" })).await.is_problem(404, "credential_unknown");
    revoke(&rig, &json!({ "jti": "x".repeat(20_000) })).await.is_problem(413, "body_bytes_max");
    for id in ["a", "b", "a"] {
        assert_eq!(revoke(&rig, &json!({ "jti": id })).await.status, 200);
    }
    let full = revoke(&rig, &json!({ "jti": "c" })).await.is_problem(409, "revocations_max");
    assert_eq!((&full["asked"], &full["max"]), (&json!(3), &json!(2)));
    let first = signer.token("k", &claims_with(&json!({ "jti": "a" })));
    events(&rig, &first).await.is_problem(401, "token_revoked");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_that_is_withdrawn_ends_the_streams_of_its_tokens() {
    let (old, new) = (Signer::ed25519(), Signer::ed25519());
    let server = KeyServer::start(&set(&[old.jwk("old")])).await;
    let keys = JwtKeys::JwksUrl(server.url.clone());
    let rig = Rig::with(|options| {
        options.auth.jwt = Some(jwt(keys));
        quiet(options);
    })
    .await;
    let stream = bearer(&rig, &old.token("old", &claims())).await;
    server.show(&set(&[old.jwk("old"), new.jwk("new")]));
    later(&rig, 11);
    assert_eq!(events(&rig, &new.token("new", &claims())).await.status, 200, "the new set is there");
    server.show(&set(&[new.jwk("new")]));
    later(&rig, 11);
    events(&rig, &old.token("other", &claims())).await.is_problem(401, "token_key_unknown");
    ends_with(stream, "token_revoked").await;
    rig.stop().await;
}

#[tokio::test]
async fn ending_a_session_ends_its_streams() {
    let rig = Rig::with(|options| {
        options.auth = super::rig::tokens();
        quiet(options);
    })
    .await;
    let opened = rig.send("POST", "/v1/session", &[("Authorization", "Bearer alpha-read")], b"").await;
    let cookie = opened.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
    let stream = follow(&rig, &format!("Cookie: {cookie}")).await;
    let headers = [("Cookie", cookie.as_str()), ("Origin", "http://localhost")];
    let ticket = rig.send("POST", "/v1/session", &headers, b"{\"ticket\":true}").await;
    let ticket = ticket.json()["ticket"].as_str().expect("a ticket").to_owned();
    let mut by_ticket = rig.connect().await;
    let head = format!(
        "GET /v1/streams/events?ticket={ticket}&after=newest HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    );
    by_ticket.write(head.as_bytes()).await;
    let mut text = String::new();
    by_ticket.read_until(&mut text, "event: ready").await;

    assert_eq!(rig.send("DELETE", "/v1/session", &headers, b"").await.status, 204);
    ends_with(stream, "session_unknown").await;
    ends_with((by_ticket, text), "session_unknown").await;
    let headers = [("Cookie", cookie.as_str())];
    rig.send("GET", "/v1/streams/events", &headers, b"").await.is_problem(401, "session_unknown");
    assert_eq!(events(&rig, "alpha-read").await.status, 200, "the token goes on");
    rig.stop().await;
}

#[tokio::test]
async fn a_tenant_has_its_rate_and_takes_nothing_of_anothers() {
    let rig = Rig::with(|options| {
        options.auth = super::rig::tokens();
        (options.tenant_requests_per_s, options.tenant_requests_burst) = (2, 3);
    })
    .await;
    for _ in 0..3 {
        assert_eq!(events(&rig, "alpha-read").await.status, 200);
    }
    // Another token of the same tenant, and a request that would be refused anyway.
    let answer = events(&rig, "alpha-all").await;
    let problem = answer.is_problem(429, "rate_limited");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("tenant_requests_per_s"), &json!(2)));
    assert_eq!(answer.header("retry-after"), Some("1"));
    get(&rig, "/v1/streams/events", "alpha-publish").await.is_problem(429, "rate_limited");
    assert_eq!(events(&rig, "beta-all-rights").await.status, 200);
    events(&rig, "no-such-token").await.is_problem(401, "token_invalid");
    assert_eq!(rig.get("/healthz").await.status, 200);
    later(&rig, 1);
    for status in [200, 200, 429] {
        assert_eq!(events(&rig, "alpha-read").await.status, status);
    }
    later(&rig, 3_600);
    for status in [200, 200, 200, 429] {
        assert_eq!(events(&rig, "alpha-read").await.status, status, "the burst is the most");
    }
    later(&rig, -3_600);
    events(&rig, "alpha-read").await.is_problem(429, "rate_limited");
    rig.stop().await;
}

#[tokio::test]
async fn without_a_rate_nobody_is_counted() {
    let rig = Rig::with_tokens().await;
    for _ in 0..50 {
        assert_eq!(events(&rig, "alpha-read").await.status, 200);
    }
    rig.stop().await;
}
