//! Sessions, tickets and pages of other origins: what a browser may do with a token, and what other pages may not.

use serde_json::{Value, json};

use super::issuer::{Signer, claims_with, events, get, later, now, rig_of, set};
use super::rig::{Answer, Rig, tokens};

const PAGE: (&str, &str) = ("Origin", "http://localhost");

async fn open(rig: &Rig, headers: &[(&str, &str)], body: &str) -> Answer {
    rig.send("POST", "/v1/session", headers, body.as_bytes()).await
}

/// `name=value` of the cookie of a session.
fn cookie(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned()
}

async fn ticket(rig: &Rig, token: &str) -> String {
    let answer = open(rig, &[("Authorization", &format!("Bearer {token}"))], "{\"ticket\":true}").await;
    assert_eq!(answer.header("set-cookie"), None);
    answer.json()["ticket"].as_str().expect("a ticket").to_owned()
}

/// Opens a stream by a ticket: the problem, or none where the stream began.
async fn by_ticket(rig: &Rig, path: &str, accept: &str) -> Option<Value> {
    let mut client = rig.connect().await;
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    client.write(head.as_bytes()).await;
    let mut text = String::new();
    client.read_until(&mut text, "\r\n\r\n").await;
    if text.starts_with("HTTP/1.1 200") {
        client.read_until(&mut text, "event: ready").await;
        return None;
    }
    client.read_until(&mut text, "}").await;
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    Some(serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}")))
}

#[tokio::test]
async fn a_session_is_a_cookie_that_only_this_host_gets() {
    let rig = Rig::with_tokens().await;
    rig.append("alpha", 2).await;
    let opened = open(&rig, &[("Authorization", "Bearer alpha-read")], "").await;
    let view = opened.json();
    assert_eq!(view, json!({ "tenant": "alpha", "name": "token-2", "expires_at": "2013-01-02T00:00:00Z" }));
    assert_eq!(opened.header("cache-control"), Some("no-store"));
    let whole = opened.header("set-cookie").expect("a cookie").to_owned();
    let (pair, rest) = whole.split_once(';').expect("attributes");
    assert_eq!(rest, " Path=/; HttpOnly; SameSite=Strict; Max-Age=43200");
    assert!(pair.len() >= "millrace_session=".len() + 43 && !opened.text().contains(&pair[17..]), "{pair}");
    let away = [("Authorization", "Bearer alpha-read"), ("Host", "board.example.com")];
    let away = open(&rig, &away, "").await.header("set-cookie").expect("a cookie").to_owned();
    assert!(away.ends_with("; Secure"), "{away}");
    assert_ne!(away.split(';').next(), Some(pair), "each has its own id");

    let others = format!("a=b; {pair}; theme=dark");
    let answer = rig.send("GET", "/v1/streams/events", &[("Cookie", &others)], b"").await;
    assert_eq!(answer.json()["events"].as_array().expect("events").len(), 2);
    // It has the rights of its token and no others.
    let headers = [("Cookie", pair), PAGE, ("Content-Type", "application/json")];
    rig.send("POST", "/v1/events", &headers, b"{}").await.is_problem(403, "right_missing");
    // A header says more than a cookie.
    let both = [("Cookie", pair), ("Authorization", "Bearer wrong-token")];
    rig.send("GET", "/v1/streams/events", &both, b"").await.is_problem(401, "token_invalid");
    for wrong in ["millrace_session=", "millrace_session=x", "millrace_session=alpha-read", &pair[..40]] {
        let answer = rig.send("GET", "/v1/streams/events", &[("Cookie", wrong)], b"").await;
        answer.is_problem(401, "session_unknown");
    }
    rig.send("GET", "/v1/streams/events", &[("Cookie", "other=1")], b"")
        .await
        .is_problem(401, "token_missing");
    later(&rig, 12 * 3600);
    rig.send("GET", "/v1/streams/events", &[("Cookie", pair)], b"").await.is_problem(401, "session_unknown");
    rig.stop().await;
}

#[tokio::test]
async fn a_session_ends_no_later_than_its_token_and_makes_no_other() {
    let signer = Signer::ed25519();
    let rig = rig_of(&set(&[signer.jwk("k")]), |_| {}).await;
    let token = signer.token("k", &claims_with(&json!({ "exp": now() + 60 })));
    let opened = open(&rig, &[("Authorization", &format!("Bearer {token}"))], "{}").await;
    assert_eq!(opened.json()["expires_at"], "2013-01-01T12:01:00Z");
    assert!(opened.header("set-cookie").is_some_and(|text| text.contains("Max-Age=60")));
    let pair = cookie(&opened);
    open(&rig, &[("Cookie", &pair), PAGE], "").await.is_problem(401, "token_missing");
    let headers = [("Cookie", pair.as_str())];
    assert_eq!(rig.send("GET", "/v1/streams/events", &headers, b"").await.status, 200);
    later(&rig, 60);
    let answer = rig.send("GET", "/v1/streams/events", &headers, b"").await;
    answer.is_problem(401, "session_unknown");
    open(&rig, &[("Authorization", &format!("Bearer {token}"))], "").await.is_problem(401, "token_expired");
    open(&rig, &[], "").await.is_problem(401, "token_missing");
    for body in ["{\"ticket\":1}", "{\"tickets\":true}", "[]", "{"] {
        open(&rig, &[("Authorization", "Bearer alpha-read")], body).await.is_problem(400, "json_malformed");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing_with_a_cookie() {
    let rig = Rig::with(|options| {
        options.auth = tokens();
        options.cors_origins = vec!["https://app.example.com".into()];
    })
    .await;
    let pair = cookie(&open(&rig, &[("Authorization", "Bearer alpha-all")], "").await);
    let pause = async |headers: &[(&str, &str)]| {
        let headers = [&[("Cookie", pair.as_str())], headers].concat();
        rig.send("POST", "/v1/plugins/keeper/pause", &headers, b"").await
    };
    for headers in [
        &[][..],
        &[("Origin", "https://evil.example")],
        &[("Origin", "null")],
        &[("Origin", "http://localhost.evil.example")],
        &[("Origin", "http://localhost:8080")],
        &[("Origin", "localhost")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-origin")],
    ] {
        pause(headers).await.is_problem(403, "origin_refused");
    }
    assert!(rig.plugins.asked.lock().expect("no panic").is_empty());
    for headers in [
        [("Origin", "http://localhost")],
        [("Origin", "https://app.example.com")],
        [("Sec-Fetch-Site", "same-origin")],
    ] {
        assert_eq!(pause(&headers).await.status, 200, "{headers:?}");
    }
    // Sockets begin with a GET; browsers send the cookie with it all the same.
    let socket = [("Cookie", pair.as_str()), ("Upgrade", "websocket"), ("Origin", "https://evil.example")];
    rig.send("GET", "/v1/streams/events", &socket, b"").await.is_problem(403, "origin_refused");
    let foreign = [("Cookie", pair.as_str()), ("Origin", "https://evil.example")];
    rig.send("DELETE", "/v1/session", &foreign, b"").await.is_problem(403, "origin_refused");
    // A token in a header was put there by whoever knows it.
    let token = [("Authorization", "Bearer alpha-all"), ("Origin", "https://evil.example")];
    assert_eq!(rig.send("POST", "/v1/plugins/keeper/pause", &token, b"").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn a_ticket_opens_one_stream_soon() {
    let rig = Rig::with_tokens().await;
    let tail = |ticket: &str| format!("/v1/streams/events?after=newest&ticket={ticket}&limit=5");
    let first = ticket(&rig, "alpha-read").await;
    assert!(by_ticket(&rig, &tail(&first), "text/event-stream").await.is_none());
    let again = by_ticket(&rig, &tail(&first), "text/event-stream").await.expect("refused");
    assert_eq!((&again["code"], &again["status"]), (&json!("ticket_invalid"), &json!(401)));

    let late = ticket(&rig, "alpha-read").await;
    later(&rig, 30);
    let late = by_ticket(&rig, &tail(&late), "text/event-stream").await.expect("refused");
    assert_eq!(late["code"], "ticket_invalid");

    let other = ticket(&rig, "alpha-read").await;
    for (path, accept) in [
        (format!("/v1/streams/events?after=newest&ticket={other}"), "application/json"),
        (format!("/v1/tables?ticket={other}"), "text/event-stream"),
        (format!("/v1/plugins?ticket={other}"), "*/*"),
        (format!("/metrics?ticket={other}"), "*/*"),
    ] {
        let refused = by_ticket(&rig, &path, accept).await.expect("refused");
        assert_eq!(refused["code"], "ticket_refused", "{path}");
    }
    assert!(by_ticket(&rig, &tail(&other), "text/event-stream").await.is_none(), "it was not used up");

    let publisher = ticket(&rig, "alpha-publish").await;
    let refused = by_ticket(&rig, &tail(&publisher), "text/event-stream").await.expect("refused");
    assert_eq!(refused["code"], "right_missing");
    for wrong in ["", "x", "alpha-read"] {
        let refused = by_ticket(&rig, &tail(wrong), "text/event-stream").await.expect("refused");
        assert_eq!(refused["code"], "ticket_invalid");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_ticket_of_a_revoked_token_opens_nothing() {
    let rig = Rig::with_tokens().await;
    let held = ticket(&rig, "alpha-read").await;
    let pair = cookie(&open(&rig, &[("Authorization", "Bearer alpha-read")], "").await);
    let admin = [("Authorization", "Bearer alpha-all")];
    assert_eq!(rig.send("POST", "/v1/auth/revoke", &admin, b"{\"name\":\"token-2\"}").await.status, 200);
    let path = format!("/v1/streams/events?after=newest&ticket={held}");
    let refused = by_ticket(&rig, &path, "text/event-stream").await.expect("refused");
    assert_eq!(refused["code"], "token_revoked");
    let answer = rig.send("GET", "/v1/streams/events", &[("Cookie", &pair)], b"").await;
    answer.is_problem(401, "token_revoked");
    rig.stop().await;
}

#[tokio::test]
async fn a_token_in_an_address_is_refused() {
    let rig = Rig::with_tokens().await;
    for name in ["access_token", "token", "jwt", "bearer"] {
        for path in ["/v1/streams/events?after=oldest", "/v1/tables?x=1", "/v1/live?table=t"] {
            rig.get(&format!("{path}&{name}=alpha-read")).await.is_problem(400, "token_in_url");
        }
        get(&rig, &format!("/v1/tables?{name}=x"), "alpha-read").await.is_problem(400, "token_in_url");
    }
    rig.stop().await;
}

#[tokio::test]
async fn sessions_and_tickets_are_bounded_and_those_that_are_over_make_room() {
    let rig = Rig::with(|options| {
        options.auth = tokens();
        (options.auth.sessions_max, options.auth.tickets_max) = (2, 2);
    })
    .await;
    for (body, code) in [("", "sessions_max"), ("{\"ticket\":true}", "tickets_max")] {
        let one = || open(&rig, &[("Authorization", "Bearer alpha-read")], body);
        assert_eq!((one().await.status, one().await.status), (200, 200));
        let problem = one().await.is_problem(429, code);
        assert_eq!((&problem["limit"], &problem["max"]), (&json!(code), &json!(2)));
        later(&rig, 12 * 3600);
        assert_eq!(one().await.status, 200);
    }
    rig.stop().await;
}

#[tokio::test]
async fn without_tokens_the_loopback_rule_stays_as_it_is() {
    let rig = Rig::with(|options| options.cors_origins = vec!["https://app.example.com".into()]).await;
    let opened = open(&rig, &[], "").await;
    assert_eq!(opened.json(), json!({ "tenant": "default", "name": "loopback" }));
    assert_eq!(opened.header("set-cookie"), None);
    let held =
        open(&rig, &[], "{\"ticket\":true}").await.json()["ticket"].as_str().expect("a ticket").to_owned();
    let path = format!("/v1/streams/events?after=newest&ticket={held}");
    assert!(by_ticket(&rig, &path, "text/event-stream").await.is_none());
    for method in ["GET", "POST"] {
        let foreign = [("Origin", "https://app.example.com")];
        rig.send(method, "/v1/session", &foreign, b"").await.is_problem(403, "foreign_origin");
        rig.send(method, "/v1/session", &[("Host", "evil.example")], b"")
            .await
            .is_problem(403, "foreign_host");
    }
    assert_eq!(events(&rig, "anything-at-all").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn pages_of_allowed_origins_read_answers_and_others_do_not() {
    let rig = Rig::with(|options| {
        options.auth = tokens();
        options.cors_origins = vec!["https://app.example.com".into()];
    })
    .await;
    let asks = |origin: &'static str| {
        [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type"),
        ]
    };
    let answer = rig.send("OPTIONS", "/v1/events", &asks("https://app.example.com"), b"").await;
    assert_eq!(answer.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, POST, PUT, DELETE"),
        ("access-control-allow-headers", "authorization,content-type"),
        ("access-control-max-age", "600"),
        ("vary", "Origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    let refused = rig.send("OPTIONS", "/v1/events", &asks("https://evil.example"), b"").await;
    refused.is_problem(403, "origin_refused");
    assert_eq!(refused.header("access-control-allow-origin"), None);

    let with = async |origin: &str| {
        let headers = [("Authorization", "Bearer alpha-read"), ("Origin", origin)];
        rig.send("GET", "/v1/streams/events", &headers, b"").await
    };
    let allowed = with("https://app.example.com").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(allowed.header("cross-origin-resource-policy"), Some("cross-origin"));
    assert!(allowed.header("access-control-expose-headers").is_some_and(|names| names.contains("etag")));
    for origin in [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "null",
        "*",
    ] {
        let other = with(origin).await;
        assert_eq!(other.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(other.header("cross-origin-resource-policy"), Some("same-origin"));
        assert_eq!(other.header("vary"), Some("Origin"), "a cache must not mix them up");
    }
    // A page can read why it was refused.
    let headers = [("Origin", "https://app.example.com")];
    let refused = rig.send("GET", "/v1/streams/events", &headers, b"").await;
    refused.is_problem(401, "token_missing");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://app.example.com"));
    rig.stop().await;

    let plain = Rig::with_tokens().await;
    let answer = plain.send("OPTIONS", "/v1/events", &asks("https://app.example.com"), b"").await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("vary"), None, "nothing is said where no origin is allowed");
    plain.stop().await;
}
