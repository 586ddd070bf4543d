//! Who may connect, with which names and tokens, and how much of a connection one may take.

use std::time::Duration;

use millrace::gateway::{GatewayError, GatewayOptions, Right, TokenOptions};

use super::rig::{Rig, tokens};

#[tokio::test]
async fn foreign_names_are_refused_while_there_are_no_tokens() {
    let rig = Rig::start().await;
    for host in ["localhost", "LOCALHOST:7070", "127.0.0.1", "127.0.0.1:7070", "[::1]:7070"] {
        assert_eq!(rig.send("GET", "/v1/tables", &[("Host", host)], b"").await.status, 200, "{host}");
    }
    for host in
        ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "10.0.0.1", "a@localhost"]
    {
        for path in ["/v1/tables", "/healthz", "/demo/", "/nowhere"] {
            rig.send("GET", path, &[("Host", host)], b"").await.is_problem(403, "foreign_host");
        }
    }
    for origin in ["http://localhost:3000", "http://127.0.0.1:7070", "https://[::1]"] {
        assert_eq!(rig.send("GET", "/v1/tables", &[("Origin", origin)], b"").await.status, 200, "{origin}");
    }
    for origin in ["https://example.com", "null", "http://127.0.0.1.example.com", "file://", "localhost"] {
        let headers = [("Origin", origin), ("Content-Type", "application/json")];
        rig.send("POST", "/v1/events", &headers, b"{}").await.is_problem(403, "foreign_origin");
    }
    let mut client = rig.connect().await;
    client
        .write(b"GET http://example.com/v1/tables HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await;
    client.answer().await.is_problem(403, "foreign_host");
    rig.stop().await;
}

#[tokio::test]
async fn tokens_decide_who_may_do_what() {
    let rig = Rig::with_tokens().await;
    let missing = rig.get("/v1/tables").await;
    missing.is_problem(401, "token_missing");
    assert!(missing.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    for (path, token, status, code) in [
        ("/v1/tables", "Bearer wrong-token", 401, "token_invalid"),
        ("/v1/tables", "Basic YTpi", 401, "token_missing"),
        ("/v1/tables", "Bearer ", 401, "token_missing"),
        ("/v1/tables", "Bearer alpha-publish", 403, "right_missing"),
        ("/v1/streams/events", "Bearer alpha-publish", 403, "right_missing"),
        ("/metrics", "Bearer alpha-read", 403, "right_missing"),
        ("/v1/plugins/keeper/dead-letters?all_tenants=true", "Bearer alpha-read", 403, "right_missing"),
    ] {
        let answer = rig.send("GET", path, &[("Authorization", token)], b"").await;
        // A header's trailing space is not part of it: an empty token is a missing one.
        answer.is_problem(status, code);
    }
    let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer alpha-read")];
    rig.send("POST", "/v1/events", &headers, b"{}").await.is_problem(403, "right_missing");
    let headers = [("Content-Type", "application/wasm"), ("Authorization", "Bearer alpha-read")];
    rig.send("POST", "/v1/plugins", &headers, b"x").await.is_problem(403, "right_missing");
    for token in ["Bearer alpha-read", "bearer alpha-read", "Bearer alpha-all", "Bearer alpha-digest"] {
        let answer =
            rig.send("GET", "/v1/tables", &[("Authorization", token), ("Host", "example.com")], b"").await;
        assert_eq!(answer.status, 200, "{token}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/docs", "/demo/", "/"] {
        assert_eq!(rig.get(path).await.status, 200, "{path} needs no token");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_token_of_the_other_tenant_publishes_into_its_own() {
    let rig = Rig::with_tokens().await;
    let body = br#"{"aggregate":"a","agg_id":"a","version":1,"type":"t"}"#;
    let mut ids = Vec::new();
    for token in ["Bearer alpha-publish", "Bearer beta-all-rights"] {
        let headers = [("Content-Type", "application/json"), ("Authorization", token)];
        let answer = rig.send("POST", "/v1/events", &headers, body).await.json();
        assert_eq!(answer["events"][0]["repeated"], false);
        ids.push(answer["events"][0]["id"].clone());
    }
    assert_ne!(ids[0], ids[1], "derived ids are inside the tenant");
    let wrong = br#"{"aggregate":"a","agg_id":"a","version":2,"type":"t","tenant":"beta"}"#;
    let headers = [("Content-Type", "application/x-ndjson"), ("Authorization", "Bearer alpha-publish")];
    let answer = rig.send("POST", "/v1/events", &headers, wrong).await.lines();
    assert_eq!(answer[0]["error"]["code"], "tenant_in_body");
    rig.stop().await;
}

#[tokio::test]
async fn without_tokens_only_loopback_can_be_bound_and_bad_tokens_are_refused() {
    let rig = Rig::start().await;
    let services = rig.services();
    let options = GatewayOptions::new("0.0.0.0:0".parse().expect("an address"));
    let error = millrace::gateway::Gateway::bind(options, services.clone()).await.expect_err("refused");
    assert!(matches!(error, GatewayError::NeedsAuth { .. }));
    assert!(error.to_string().contains("tokens"), "{error}");
    let token = |token: &str, tenant: &str, rights: &[Right]| TokenOptions {
        token: token.into(),
        tenant: tenant.into(),
        rights: rights.into(),
        name: None,
        tables: None,
    };
    for bad in [
        token("short", "alpha", &[Right::Read]),
        token("long-enough", "Not A Tenant", &[Right::Read]),
        token("long-enough", "alpha", &[]),
        token("sha256:abc", "alpha", &[Right::Read]),
        token("alpha-all", "beta", &[Right::Read]),
    ] {
        let mut options = GatewayOptions::new("127.0.0.1:0".parse().expect("an address"));
        options.auth = tokens();
        options.auth.tokens.push(bad);
        let error = millrace::gateway::Gateway::bind(options, services.clone()).await.expect_err("refused");
        assert!(matches!(error, GatewayError::Token { .. }), "{error}");
    }
    assert!(!format!("{:?}", tokens()).contains("alpha-all"), "tokens are not printed");
    rig.stop().await;
}

#[tokio::test]
async fn half_a_head_is_not_waited_for() {
    let rig = Rig::with(|options| options.header_wait_max = Duration::from_millis(100)).await;
    let mut client = rig.connect().await;
    client.write(b"GET /healthz HTTP/1.1\r\nHost: local").await;
    client.closed().await;
    let mut idle = rig.connect().await;
    idle.closed().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let rig = Rig::start().await;
    let large = "x".repeat(64 << 10);
    let answer = rig.send("GET", "/healthz", &[("X-Large", &large)], b"").await;
    assert_eq!(answer.status, 431);
    rig.stop().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let rig = Rig::with(|options| options.connections_max = 1).await;
    let mut first = rig.connect().await;
    first.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut seen = String::new();
    first.read_until(&mut seen, "ok\n").await;
    let problem = rig.connect().await.answer().await.is_problem(503, "connections_max");
    assert_eq!(problem["max"], 1);
    drop(first);
    // The place is free again once the gateway has noticed.
    let free = async {
        while rig.get("/healthz").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::rig::PATIENCE, free).await.expect("a place becomes free");
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let rig = Rig::with(|options| {
        options.write_wait_max = Duration::from_millis(300);
        options.connections_max = 1;
    })
    .await;
    rig.append_large(40, 500_000).await;
    let mut client = rig.connect().await;
    client
        .write(b"GET /v1/streams/events?after=oldest HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    // It reads nothing, and is cut: only then is there a place for another one.
    let before = tokio::time::Instant::now();
    while rig.get("/healthz").await.status != 200 {
        assert!(before.elapsed() < super::rig::PATIENCE, "the connection is still open");
    }
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn requests_under_way_finish_when_the_host_stops_and_stuck_ones_are_cut() {
    let rig = Rig::with(|options| options.drain_max = Duration::from_millis(300)).await;
    let mut client = rig.connect().await;
    client
        .write(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        .await;
    let mut idle = rig.connect().await;
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut seen = String::new();
    idle.read_until(&mut seen, "ok\n").await;
    let before = tokio::time::Instant::now();
    rig.stop().await;
    assert!(before.elapsed() < Duration::from_secs(10), "the deadline holds");
    idle.closed().await;
    client.closed().await;
}

#[tokio::test]
async fn an_answer_says_when_the_connection_closes_on_a_body_that_nobody_reads() {
    let rig = Rig::start().await;
    let chunks = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat().repeat(5);
    for (left, body) in [
        ("Content-Length: 1000000", &b"the beginning"[..]),
        // It is short, and does not come.
        ("Content-Length: 5", b""),
        ("Transfer-Encoding: chunked", b"100000\r\nthe beginning"),
        ("Transfer-Encoding: chunked", &chunks),
        ("Content-Length: 5\r\nExpect: 100-continue", b""),
    ] {
        let mut client = rig.connect().await;
        client.write(format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\n{left}\r\n\r\n").as_bytes()).await;
        client.write(body).await;
        let answer = client.answer().await;
        answer.is_problem(404, "path_unknown");
        assert_eq!(answer.header("connection"), Some("close"), "{left}");
    }
    rig.stop().await;
}

/// It is read beside its answers, unless it is refused before the first of them.
#[tokio::test]
async fn the_answer_to_an_upload_that_is_refused_says_that_the_connection_closes() {
    let rig = Rig::with(|options| options.body_idle_max = Duration::from_millis(50)).await;
    let mut client = rig.connect().await;
    client
        .write(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"agg\r\n")
        .await;
    let answer = client.answer().await;
    answer.is_problem(408, "body_idle_max");
    assert_eq!(answer.header("connection"), Some("close"));
    rig.stop().await;
}

#[tokio::test]
async fn a_connection_goes_on_after_a_short_body_that_nobody_reads_and_after_an_upload() {
    let rig = Rig::start().await;
    let mut client = rig.connect().await;
    let line = r#"{"aggregate":"a","agg_id":"a","version":1,"type":"t"}"#;
    for (target, answered, headers, body) in [
        ("/nowhere", "404", "Content-Length: 5", "short"),
        ("/nowhere", "404", "Transfer-Encoding: chunked", "5\r\nshort\r\n0\r\n\r\n"),
        ("/v1/events", "200", "Content-Length: 53\r\nContent-Type: application/x-ndjson", line),
    ] {
        let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
        client.write(head.as_bytes()).await;
        // The body comes after its head, as it does from most clients.
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write(body.as_bytes()).await;
        client.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut seen = String::new();
        client.read_until(&mut seen, "ok\n").await;
        let seen = seen.to_ascii_lowercase();
        assert!(seen.starts_with(&format!("http/1.1 {answered}")), "{headers}: {seen}");
        assert!(!seen.contains("connection: close"), "{headers}: {seen}");
    }
    rig.stop().await;
}
