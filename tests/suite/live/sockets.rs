//! Claims about serving subscriptions over a WebSocket, over fakes.

use std::time::Duration;

use futures_util::FutureExt;
use millrace::gateway::live::{Broken, End, Fault, Incoming, WsOptions, WsProtocol, until_cancelled};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::acts::{Client, PATIENCE, frame, never};

const SUBSCRIBE: &str = r#"{"action":"subscribe","query":{"entity":"flights","limit":2}}"#;

fn single() -> WsOptions {
    WsOptions::new(WsProtocol::Single)
}

fn multi() -> WsOptions {
    WsOptions::new(WsProtocol::Multi)
}

fn subscribe(id: &str) -> String {
    json!({"action": "subscribe", "id": id, "query": {"table": "flights"}}).to_string()
}

#[tokio::test]
async fn w1_a_query_reaches_the_backend_and_a_disconnect_closes_its_subscription() {
    let mut client = Client::connect(single());
    let mut opened = client.subscribe(SUBSCRIBE).await;
    assert_eq!(opened.ask.query.get(), r#"{"entity":"flights","limit":2}"#);
    assert_eq!(opened.ask.resume, None);
    opened.send(&[("enter", "a"), ("enter", "b")]).await;
    assert_eq!(client.write().await, [frame("enter", "a", 0), frame("enter", "b", 1)]);
    client.say = None;
    assert_eq!(client.end().await, Ok(End::Disconnected));
    opened.is_closed().await;
}

#[tokio::test]
async fn w2_a_reanchor_passes_cursor_and_limit_and_nothing_of_the_old_window_follows() {
    let mut client = Client::connect(single());
    let mut opened = client.subscribe(SUBSCRIBE).await;
    client.say(r#"{"action":"reanchor","cursor":{"values":["c",3]},"limit":25}"#).await;
    let (anchor, feed) = opened.anchors.recv().await.expect("it is moved");
    assert_eq!(anchor.cursor.expect("a cursor").get(), r#"{"values":["c",3]}"#);
    assert_eq!(anchor.limit, Some(25));
    // Whether it is still taken or not, nobody is shown it.
    let _ = opened.feed.send(Ok(super::acts::batch(&[("enter", "old")], None))).await;
    feed.send(Ok(super::acts::batch(&[("reset", "new")], None))).await.expect("it listens");
    assert_eq!(client.write().await, [frame("reset", "new", 0)]);
    opened.feed.closed().await;
}

#[tokio::test]
async fn what_the_old_window_gave_before_a_reanchor_was_done_never_follows_the_new_one() {
    for round in 0..50 {
        let mut client = Client::connect(multi());
        let mut opened = client.subscribe(&subscribe("a")).await;
        client.say(r#"{"action":"reanchor","id":"a","limit":3}"#).await;
        let old = opened.feed.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with the subscription")]
        let writer = tokio::spawn(async move {
            while old.send(Ok(super::acts::batch(&[("update", "old")], None))).await.is_ok() {}
        });
        let (_, feed) = opened.anchors.recv().await.expect("it is moved");
        feed.send(Ok(super::acts::batch(&[("reset", "new")], None))).await.expect("it listens");
        let mut new = false;
        while !new {
            for message in client.write().await {
                new |= message.contains("\"new\"") || message.contains("reanchored");
                assert!(!(new && message.contains("\"old\"")), "round {round}: {message}");
            }
        }
        tokio::time::timeout(PATIENCE, writer).await.expect("the old window is dropped").expect("no panic");
    }
}

#[tokio::test]
async fn w3_unsubscribe_ends_well_and_closes_the_subscription() {
    let mut client = Client::connect(single());
    let mut opened = client.subscribe(SUBSCRIBE).await;
    client.say(r#"{"action":"unsubscribe"}"#).await;
    assert_eq!(client.end().await, Ok(End::Unsubscribed));
    opened.is_closed().await;
    assert_eq!(client.rest().await, ["close 1000"]);
}

#[tokio::test]
async fn w4_a_first_message_that_is_no_subscribe_is_an_error() {
    let mut client = Client::connect(single());
    client.say(r#"{"action":"reanchor","limit":5}"#).await;
    let end = client.end().await;
    assert!(matches!(&end, Err(Broken::Fault(fault)) if fault.code == "command_invalid"), "{end:?}");
    let rest = client.rest().await;
    let error: Value = serde_json::from_str(&rest[0]).expect("an error frame");
    assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!("command_invalid")));
    assert_eq!(rest[1..], ["close 1008"]);
    assert!(client.opened.recv().await.is_none(), "the backend was not asked");
}

#[tokio::test]
async fn w5_the_end_of_the_stream_closes_the_socket() {
    let mut client = Client::connect(single());
    let opened = client.subscribe(SUBSCRIBE).await;
    opened.send(&[("enter", "a")]).await;
    drop(opened);
    assert_eq!(client.end().await, Ok(End::Ended));
    assert_eq!(client.rest().await, [frame("enter", "a", 0), "close 1001".into()]);
}

#[tokio::test]
async fn w6_a_client_that_takes_nothing_is_cut_off() {
    let within = Duration::from_millis(20);
    let options = WsOptions { write_wait_max: within, ..single() };
    let mut client = Client::connect_until(options, never(), 0);
    let mut opened = client.subscribe(SUBSCRIBE).await;
    opened.send(&[("enter", "a")]).await;
    assert_eq!(client.end().await, Err(Broken::Stalled(within)));
    opened.is_closed().await;
    assert_eq!(client.rest().await, ["cut"]);
}

#[tokio::test]
async fn a_socket_without_a_first_command_is_closed() {
    for protocol in [WsProtocol::Single, WsProtocol::Multi] {
        let wait = Duration::from_millis(10);
        let options = WsOptions { first_command_wait_max: wait, ..WsOptions::new(protocol) };
        let mut client = Client::connect(options);
        // Being there is no command.
        client.say_this(Incoming::Alive).await;
        let end = client.end().await;
        assert!(matches!(end, Err(Broken::Fault(fault)) if fault.code == "live_first_command_wait_max"));
        let rest = client.rest().await;
        assert!(rest[0].contains("live_first_command_wait_max") && rest[0].contains("10ms"), "{rest:?}");
        assert_eq!(rest[1..], ["close 1008"]);
    }
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_given_up_and_one_that_does_is_kept() {
    let options = WsOptions { heartbeat: Duration::from_millis(5), ..multi() };
    let mut client = Client::connect(options);
    let mut opened = client.subscribe(&subscribe("a")).await;
    assert_eq!(client.end().await, Err(Broken::Silent));
    opened.is_closed().await;
    let rest = client.rest().await;
    assert_eq!(rest[1..], ["ping", "ping", "cut"]);

    let options = WsOptions { heartbeat: Duration::from_millis(50), ..multi() };
    let mut client = Client::connect(options);
    let _open = client.subscribe(&subscribe("a")).await;
    client.write().await;
    for _ in 0..10 {
        assert_eq!(client.write().await, ["ping"]);
        client.say_this(Incoming::Alive).await;
    }
}

#[tokio::test]
async fn many_subscriptions_have_their_own_batches_and_acknowledgements() {
    let mut client = Client::connect(multi());
    let a = client.subscribe(&subscribe("a")).await;
    assert_eq!(client.message().await, json!({"type": "subscribed", "id": "a"}));
    let odd = "b\"\\ü";
    let mut b = client.subscribe(&subscribe(odd)).await;
    assert_eq!(client.message().await, json!({"type": "subscribed", "id": odd}));
    a.send(&[("leave", "x"), ("enter", "y")]).await;
    let frames: Vec<Value> = [frame("leave", "x", 0), frame("enter", "y", 1)]
        .iter()
        .map(|frame| serde_json::from_str(frame).expect("JSON"))
        .collect();
    assert_eq!(client.message().await, json!({"type": "batch", "id": "a", "deltas": frames}));
    b.send(&[("enter", "z")]).await;
    assert_eq!(client.message().await["id"], odd);
    client.say(&json!({"action": "reanchor", "id": odd, "limit": 9}).to_string()).await;
    assert_eq!(client.message().await, json!({"type": "reanchored", "id": odd}));
    let (anchor, _moved) = b.anchors.recv().await.expect("it is moved");
    assert_eq!(anchor.limit, Some(9));
    client.say(&json!({"action": "unsubscribe", "id": odd}).to_string()).await;
    assert_eq!(client.message().await, json!({"type": "unsubscribed", "id": odd}));
    b.is_closed().await;
    client.say(r#"{"action":"ping","nonce":"n1"}"#).await;
    assert_eq!(client.message().await, json!({"type": "pong", "nonce": "n1"}));
    client.say(r#"{"action":"ping"}"#).await;
    assert_eq!(client.message().await, json!({"type": "pong"}));
    // The id is free again.
    let _again = client.subscribe(&subscribe(odd)).await;
    assert_eq!(client.message().await["type"], "subscribed");
}

#[tokio::test]
async fn a_resume_token_is_passed_on() {
    let mut client = Client::connect(multi());
    let command = r#"{"action":"subscribe","id":"a","query":{},"resume":"e.5"}"#;
    assert_eq!(client.subscribe(command).await.ask.resume.as_deref(), Some("e.5"));
}

#[tokio::test]
async fn bad_messages_are_answered_and_the_other_subscriptions_go_on() {
    let mut client = Client::connect(multi());
    let a = client.subscribe(&subscribe("a")).await;
    client.message().await;
    let long = "x".repeat(513);
    let cases = [
        ("{", "json_malformed", Value::Null),
        ("hello", "json_malformed", Value::Null),
        ("[]", "command_invalid", Value::Null),
        ("{}", "command_invalid", Value::Null),
        (r#"{"action":"dance","id":"q"}"#, "action_unknown", json!("q")),
        (r#"{"action":"subscribe","id":"q"}"#, "command_invalid", json!("q")),
        (r#"{"action":"subscribe","query":{}}"#, "command_invalid", Value::Null),
        (r#"{"action":"subscribe","id":"","query":{}}"#, "command_invalid", json!("")),
        (r#"{"action":"subscribe","id":7,"query":{}}"#, "command_invalid", Value::Null),
        (r#"{"action":"subscribe","id":"q","query":{},"tenant":"b"}"#, "command_invalid", Value::Null),
        (r#"{"action":"subscribe","id":"q","query":{},"limit":5}"#, "command_invalid", json!("q")),
        (r#"{"action":"subscribe","id":"a","query":{}}"#, "subscription_taken", json!("a")),
        (r#"{"action":"subscribe","id":"q","query":[]}"#, "query_invalid", json!("q")),
        (r#"{"action":"reanchor","id":"a","limit":-3}"#, "query_invalid", json!("a")),
        (r#"{"action":"reanchor","id":"q","limit":3}"#, "subscription_unknown", json!("q")),
        (r#"{"action":"reanchor","id":"a","limit":"3"}"#, "command_invalid", Value::Null),
        (r#"{"action":"unsubscribe","id":"q"}"#, "subscription_unknown", json!("q")),
        (r#"{"action":"auth","token":"t"}"#, "not_supported", Value::Null),
        (r#"{"action":"auth"}"#, "command_invalid", Value::Null),
        (&subscribe(&long), "name_bytes_max", Value::Null),
        (&json!({"action": "ping", "nonce": long}).to_string(), "name_bytes_max", Value::Null),
    ];
    for (message, code, id) in cases {
        client.say(message).await;
        let answer = client.message().await;
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!(code)),
            "{message}: {answer}"
        );
        assert_eq!(answer["id"], id, "{message}: {answer}");
        for member in ["detail", "fix"] {
            assert!(answer[member].as_str().is_some_and(|text| !text.is_empty()), "{message}: {answer}");
        }
    }
    client.say_this(Incoming::Binary(bytes::Bytes::new())).await;
    assert_eq!(client.message().await["code"], "message_binary");
    a.send(&[("enter", "x")]).await;
    assert_eq!(client.message().await["type"], "batch");
}

#[tokio::test]
async fn what_a_socket_cannot_go_on_after_is_said_and_then_closed() {
    let text = |text: &str| Incoming::Text(text.to_owned());
    let large = "x".repeat(single().message_bytes_max + 1);
    let cases = [
        (text("nonsense"), "json_malformed", "close 1008"),
        (text(r#"{"action":"dance"}"#), "action_unknown", "close 1008"),
        (text(r#"{"action":"ping"}"#), "action_unknown", "close 1008"),
        (text(SUBSCRIBE), "subscription_taken", "close 1008"),
        (text(r#"{"action":"reanchor","limit":-1}"#), "query_invalid", "close 1008"),
        (text(&large), "live_message_bytes_max", "close 1009"),
        (Incoming::TooLarge, "live_message_bytes_max", "close 1009"),
        (Incoming::Binary(bytes::Bytes::new()), "message_binary", "close 1003"),
        (Incoming::Malformed("a bad frame".into()), "websocket_malformed", "close 1002"),
    ];
    for (message, code, close) in cases {
        let mut client = Client::connect(single());
        let mut opened = client.subscribe(SUBSCRIBE).await;
        client.say_this(message).await;
        let end = client.end().await;
        assert!(matches!(&end, Err(Broken::Fault(fault)) if fault.code == code), "{code}: {end:?}");
        opened.is_closed().await;
        let rest = client.rest().await;
        let error: Value = serde_json::from_str(&rest[0]).expect("an error frame");
        assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!(code)));
        assert_eq!(rest[1..], [close]);
    }
}

#[tokio::test]
async fn a_socket_has_a_bound_on_its_subscriptions() {
    let mut client = Client::connect(WsOptions { subscriptions_max: 2, ..multi() });
    let mut open = Vec::new();
    for id in ["a", "b"] {
        open.push(client.subscribe(&subscribe(id)).await);
        assert_eq!(client.message().await["type"], "subscribed");
    }
    client.say(&subscribe("c")).await;
    let answer = client.message().await;
    assert_eq!((&answer["code"], &answer["id"]), (&json!("live_subscriptions_max"), &json!("c")));
    assert!(answer["detail"].as_str().is_some_and(|text| text.contains("is 2")));
    client.say(r#"{"action":"unsubscribe","id":"a"}"#).await;
    client.message().await;
    open.push(client.subscribe(&subscribe("c")).await);
    assert_eq!(client.message().await["type"], "subscribed");
}

#[tokio::test]
async fn an_error_of_one_subscription_ends_it_and_no_other() {
    let mut client = Client::connect(multi());
    let a = client.subscribe(&subscribe("a")).await;
    client.message().await;
    let b = client.subscribe(&subscribe("b")).await;
    client.message().await;
    a.feed.send(Err(Fault::new("live_view_failed", "the view failed"))).await.expect("sent");
    let answer = client.message().await;
    assert_eq!((&answer["code"], &answer["id"]), (&json!("live_view_failed"), &json!("a")));
    drop(a);
    b.send(&[("enter", "x")]).await;
    assert_eq!(client.message().await["id"], "b");
    drop(b);
    assert_eq!(client.message().await, json!({"type": "unsubscribed", "id": "b"}));
}

#[tokio::test]
async fn a_host_that_stops_says_so_and_when_to_come_back() {
    for (options, name) in [(single(), "op"), (multi(), "type")] {
        let stop = CancellationToken::new();
        let id = if name == "op" { SUBSCRIBE.to_owned() } else { subscribe("a") };
        let mut client = Client::connect_until(options, until_cancelled(stop.clone()), usize::MAX);
        let mut opened = client.subscribe(&id).await;
        if name == "type" {
            client.message().await;
        }
        stop.cancel();
        assert!(matches!(client.end().await, Ok(End::Stopped(fault)) if fault.code == "host_stopping"));
        opened.is_closed().await;
        let rest = client.rest().await;
        let error: Value = serde_json::from_str(&rest[0]).expect("an error frame");
        assert_eq!((&error[name], &error["code"]), (&json!("error"), &json!("host_stopping")));
        assert!(error["retry_ms"].as_u64().is_some_and(|wait| wait >= 1_000), "{error}");
        assert_eq!(rest[1..], ["close 1001"]);
    }
}

#[tokio::test]
async fn whatever_ends_a_socket_is_told_with_its_own_code() {
    let until = async { Fault::new("token_invalid", "the token was revoked") }.boxed();
    let mut client = Client::connect_until(multi(), until, usize::MAX);
    assert!(matches!(client.end().await, Ok(End::Stopped(fault)) if fault.code == "token_invalid"));
    let rest = client.rest().await;
    assert!(rest[0].contains("revoked"));
    assert_eq!(rest[1..], ["close 1008"]);
}

#[tokio::test]
async fn a_token_is_renewed_where_the_edge_can() {
    let check = |token: String| {
        async move {
            if token == "good" { Ok(()) } else { Err(Fault::new("token_invalid", "it is not known")) }
        }
        .boxed()
    };
    let options = WsOptions { authenticate: Some(std::sync::Arc::new(check)), ..multi() };
    let mut client = Client::connect(options);
    client.say(r#"{"action":"auth","token":"good"}"#).await;
    assert_eq!(client.message().await, json!({"type": "authenticated"}));
    client.say(r#"{"action":"auth","token":"bad"}"#).await;
    assert_eq!(client.message().await["code"], "token_invalid");
}

#[tokio::test]
async fn batches_of_all_subscriptions_that_are_ready_go_out_in_one_write() {
    let mut client = Client::connect(multi());
    let mut open = Vec::new();
    for id in ["a", "b", "c"] {
        open.push(client.subscribe(&subscribe(id)).await);
        client.message().await;
    }
    // The test runs on one thread: the socket's task runs when this one waits.
    for opened in &open {
        for _ in 0..10 {
            opened.feed.try_send(Ok(super::acts::batch(&[("update", "x")], Some("t")))).expect("room");
        }
    }
    assert_eq!(client.write().await.len(), 30);
}

#[tokio::test]
async fn rows_that_change_soon_after_a_write_wait_for_each_other_and_no_command_waits_for_them() {
    let options = WsOptions { write_pause: Duration::from_secs(3_600), ..multi() };
    let mut client = Client::connect(options);
    let opened = client.subscribe(&subscribe("a")).await;
    assert_eq!(client.message().await["type"], "subscribed");
    opened.send(&[("enter", "a")]).await;
    assert_eq!(client.message().await["type"], "batch");
    for _ in 0..50 {
        opened.send(&[("update", "a")]).await;
        tokio::task::yield_now().await;
    }
    // The answer takes along what waits.
    client.say(r#"{"action":"ping"}"#).await;
    let together = client.write().await;
    assert_eq!(together.iter().filter(|message| message.contains("\"pong\"")).count(), 1);
    assert_eq!(together.iter().filter(|message| message.contains("\"update\"")).count(), 50);
}

#[tokio::test]
async fn rows_that_wait_are_written_when_their_time_has_come() {
    let options = WsOptions { write_pause: Duration::from_secs(2), ..single() };
    let mut client = Client::connect(options);
    let opened = client.subscribe(SUBSCRIBE).await;
    opened.send(&[("enter", "a")]).await;
    assert_eq!(client.write().await, [frame("enter", "a", 0)]);
    for _ in 0..50 {
        opened.send(&[("update", "a")]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.write().await.len(), 50, "in one write");
}
