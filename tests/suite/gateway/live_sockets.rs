//! Claims about `GET /v1/live/ws`, with a client that is not ours over a real socket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use millrace::live::LiveError;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::live::{batch, rig_with_rows};
use super::rig::{PATIENCE, Rig};

const SUBSCRIBE: &str = r#"{"action":"subscribe","query":{"table":"things","limit":2}}"#;

pub(super) struct Socket(WebSocketStream<TcpStream>);

pub(super) async fn try_connect(rig: &Rig, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let port = rig.address.port();
    let mut request = format!("ws://localhost:{port}/v1/live/ws").into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).expect("a header"));
    }
    let stream = TcpStream::connect(rig.address).await.expect("the gateway listens");
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    let asked = headers.iter().any(|(name, _)| *name == "sec-websocket-protocol");
    assert_eq!(response.headers().contains_key("sec-websocket-protocol"), asked);
    Ok(Socket(socket))
}

async fn connect(rig: &Rig) -> Socket {
    try_connect(rig, &[]).await.expect("a WebSocket")
}

async fn connect_multi(rig: &Rig) -> Socket {
    try_connect(rig, &[("sec-websocket-protocol", "millrace.live.v1")]).await.expect("a WebSocket")
}

/// With a token, and many subscriptions.
pub(super) async fn connect_multi_with(rig: &Rig, token: &str) -> Socket {
    let bearer = format!("Bearer {token}");
    let headers = [("sec-websocket-protocol", "millrace.live.v1"), ("authorization", bearer.as_str())];
    try_connect(rig, &headers).await.expect("a WebSocket")
}

impl Socket {
    pub(super) async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("the gateway reads");
    }

    /// The next message that is not a ping.
    async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message comes");
            match next.expect("the socket is open").expect("a good frame") {
                Message::Ping(_) => {}
                other => return other,
            }
        }
    }

    pub(super) async fn json(&mut self) -> Value {
        let message = self.next().await;
        serde_json::from_str(message.to_text().expect("text")).unwrap_or_else(|e| panic!("{e}: {message:?}"))
    }

    /// Waits for the close, and gives its code.
    async fn closed(&mut self) -> u16 {
        let Message::Close(Some(close)) = self.next().await else { panic!("another message") };
        // Going on answers it; then the gateway closes the connection.
        assert!(tokio::time::timeout(PATIENCE, self.0.next()).await.expect("it is closed").is_none());
        close.code.into()
    }
}

#[tokio::test]
async fn one_subscription_gives_each_frame_as_a_message_until_it_is_ended() {
    let rig = rig_with_rows().await;
    let mut socket = connect(&rig).await;
    socket.say(SUBSCRIBE).await;
    let opened = rig.live.opened().await;
    assert_eq!(opened.asked.query.query.limit, 2);
    opened.batches.send(Ok(batch(&["reset", "enter", "ready"], Some("e.3")))).await.expect("it listens");
    for op in ["reset", "enter", "ready"] {
        assert_eq!(socket.json().await["op"], op);
    }
    socket.say(r#"{"action":"reanchor","cursor":{"values":["b"]},"limit":25}"#).await;
    let moved = rig.live.opened().await;
    let query = &moved.asked.query.query;
    assert_eq!((query.limit, query.after.as_ref().map(|after| after.key.as_str())), (25, Some("b")));
    assert_eq!(moved.asked.resume, None);
    opened.batches.closed().await;
    // What is left out stays; no values are the head.
    socket.say(r#"{"action":"reanchor","cursor":{"values":null}}"#).await;
    let head = rig.live.opened().await;
    assert_eq!((head.asked.query.query.limit, head.asked.query.query.after), (25, None));
    head.batches.send(Ok(batch(&["reset"], None))).await.expect("it listens");
    assert_eq!(socket.json().await["op"], "reset");
    socket.say(r#"{"action":"unsubscribe"}"#).await;
    assert_eq!(socket.closed().await, 1000);
    head.batches.closed().await;
    rig.stop().await;
}

#[tokio::test]
async fn many_subscriptions_share_a_socket() {
    let rig = rig_with_rows().await;
    let mut socket = connect_multi(&rig).await;
    let subscribe =
        |id: &str| json!({"action": "subscribe", "id": id, "query": {"table": "things"}}).to_string();
    let mut open = Vec::new();
    for id in ["a", "b"] {
        socket.say(&subscribe(id)).await;
        open.push(rig.live.opened().await);
        assert_eq!(socket.json().await, json!({"type": "subscribed", "id": id}));
    }
    open[1].batches.send(Ok(batch(&["leave", "enter"], Some("e.4")))).await.expect("it listens");
    let message = socket.json().await;
    assert_eq!((&message["type"], &message["id"]), (&json!("batch"), &json!("b")));
    assert_eq!(message["deltas"].as_array().map(Vec::len), Some(2));
    socket.say(&json!({"action": "subscribe", "id": "c", "query": {"table": "gone"}}).to_string()).await;
    let message = socket.json().await;
    assert_eq!((&message["code"], &message["id"]), (&json!("table_unknown"), &json!("c")));
    open[0].batches.send(Err(LiveError::ViewFailed)).await.expect("it listens");
    let message = socket.json().await;
    assert_eq!((&message["code"], &message["id"]), (&json!("live_view_failed"), &json!("a")));
    socket.say(r#"{"action":"ping","nonce":"x"}"#).await;
    assert_eq!(socket.json().await, json!({"type": "pong", "nonce": "x"}));
    // A ping of the protocol below is answered too.
    socket.0.send(Message::Ping("hi".into())).await.expect("sent");
    assert_eq!(socket.next().await, Message::Pong("hi".into()));
    drop(socket);
    tokio::time::timeout(PATIENCE, open[1].batches.closed()).await.expect("a lost client's are closed");
    rig.stop().await;
}

#[tokio::test]
async fn a_message_of_any_length_arrives_whole() {
    let rig = rig_with_rows().await;
    let mut socket = connect_multi(&rig).await;
    socket.say(r#"{"action":"subscribe","id":"a","query":{"table":"things"}}"#).await;
    let opened = rig.live.opened().await;
    socket.json().await;
    // Around the lengths at which the head of a frame grows, with what a message has around it.
    for length in (60..130).chain(65_460..65_540).chain([3_000_000]) {
        let mut builder = millrace::live::BatchBuilder::default();
        builder.frame("enter", |out| out.extend_from_slice(format!("\"{}\"", "x".repeat(length)).as_bytes()));
        let batch = builder.finish(None, millrace::event::Revision(1));
        opened.batches.send(Ok(batch)).await.expect("it listens");
        assert_eq!(socket.json().await["deltas"][0].as_str().map(str::len), Some(length));
    }
    rig.stop().await;
}

#[tokio::test]
async fn bad_messages_end_a_socket_with_a_code_and_a_last_frame() {
    let rig = rig_with_rows().await;
    let large = "x".repeat((64 << 10) + 1);
    let many = vec![json!({"column": "size", "op": "eq", "value": 1}); 200];
    let query = json!({"action": "subscribe", "query": {"table": "things", "where": many}}).to_string();
    let bomb = format!(r#"{{"action":"subscribe","query":{}1{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let cases = [
        (Message::text("nonsense"), "json_malformed", 1008),
        (Message::text("{}"), "command_invalid", 1008),
        (
            Message::text(r#"{"action":"subscribe","query":{"table":"things","limit":0}}"#),
            "query_invalid",
            1008,
        ),
        (Message::text(query), "query_invalid", 1008),
        (Message::text(bomb), "json_malformed", 1008),
        (Message::binary("{}".as_bytes().to_vec()), "message_binary", 1003),
        (Message::text(large), "live_message_bytes_max", 1009),
    ];
    for (message, code, close) in cases {
        let mut socket = connect(&rig).await;
        socket.0.send(message).await.expect("sent");
        let error = socket.json().await;
        assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
        assert!(error["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{error}");
        assert_eq!(socket.closed().await, close);
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_is_told_so() {
    let rig = rig_with_rows().await;
    let mut socket = connect(&rig).await;
    // A client's frames must be masked; and this has no known opcode.
    socket.0.get_mut().write_all(&[0x83, 0x00]).await.expect("sent");
    assert_eq!(socket.json().await["code"], "websocket_malformed");
    assert_eq!(socket.closed().await, 1002);
    rig.stop().await;
}

#[tokio::test]
async fn a_half_open_socket_and_a_half_sent_command_are_closed() {
    let wait = Duration::from_millis(50);
    let rig = Rig::with(|options| options.live_first_command_wait_max = wait).await;
    let mut socket = connect(&rig).await;
    assert_eq!(socket.json().await["code"], "live_first_command_wait_max");
    assert_eq!(socket.closed().await, 1008);
    let mut socket = connect_multi(&rig).await;
    // The head of a masked message of 100 bytes, and one of them.
    socket.0.get_mut().write_all(&[0x81, 0x80 | 100, 1, 2, 3, 4, 5]).await.expect("sent");
    assert_eq!(socket.json().await["code"], "live_first_command_wait_max");
    drop(socket);
    rig.stop().await;
}

#[tokio::test]
async fn an_idle_socket_is_pinged_and_one_that_does_not_answer_is_given_up() {
    let rig = Rig::with(|options| options.sse_heartbeat = Duration::from_millis(200)).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let mut socket = connect(&rig).await;
    socket.say(SUBSCRIBE).await;
    let opened = rig.live.opened().await;
    // Reading answers pings; five of them are more than who does not answer would get.
    for _ in 0..5 {
        let next = tokio::time::timeout(PATIENCE, socket.0.next()).await.expect("a ping comes");
        assert!(matches!(next, Some(Ok(Message::Ping(_)))), "{next:?}");
    }
    // Now nobody reads any more.
    tokio::time::timeout(PATIENCE, opened.batches.closed()).await.expect("it is given up");
    rig.stop().await;
}

#[tokio::test]
async fn a_host_that_stops_closes_its_sockets_in_good_order() {
    let rig = rig_with_rows().await;
    let mut socket = connect_multi(&rig).await;
    socket.say(r#"{"action":"subscribe","id":"a","query":{"table":"things"}}"#).await;
    let opened = rig.live.opened().await;
    socket.json().await;
    rig.cancel();
    let error = socket.json().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("host_stopping")));
    assert!(error["retry_ms"].as_u64().is_some_and(|wait| wait >= 1_000), "{error}");
    assert_eq!(socket.closed().await, 1001);
    opened.batches.closed().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_socket_keeps_its_place_among_the_connections() {
    let rig = Rig::with(|options| options.connections_max = 1).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let mut socket = connect(&rig).await;
    socket.say(SUBSCRIBE).await;
    let _opened = rig.live.opened().await;
    rig.get("/healthz").await.is_problem(503, "connections_max");
    socket.say(r#"{"action":"unsubscribe"}"#).await;
    assert_eq!(socket.closed().await, 1000);
    // Its place is free once the gateway's side is done with it.
    let freed = async {
        while rig.get("/healthz").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the place is free again");
    rig.stop().await;
}

#[tokio::test]
async fn pages_of_other_hosts_get_no_socket() {
    let rig = Rig::with_tokens().await;
    rig.rows("alpha", &[("a", 1, None)]).await;
    let port = rig.address.port();
    let token = ("authorization", "Bearer alpha-read");
    for origin in ["https://evil.example", "null", "http://localhost", "http://localhost:1", "file://"] {
        let refused = try_connect(&rig, &[token, ("origin", origin)]).await.err();
        let Some(Error::Http(response)) = refused else { panic!("{origin}: {refused:?}") };
        assert_eq!(response.status(), 403, "{origin}");
    }
    let own = format!("http://localhost:{port}");
    let mut socket = try_connect(&rig, &[token, ("origin", &own)]).await.expect("its own page");
    socket.say(SUBSCRIBE).await;
    assert_eq!(rig.live.opened().await.asked.tenant.as_str(), "alpha");
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_and_its_subscription_ends() {
    let rig = Rig::with(|options| options.write_wait_max = Duration::from_millis(50)).await;
    rig.rows("default", &[("a", 1, None)]).await;
    let mut builder = millrace::live::BatchBuilder::default();
    builder.frame("enter", |out| out.extend_from_slice(format!("\"{}\"", "x".repeat(1 << 20)).as_bytes()));
    let large = builder.finish(None, millrace::event::Revision(1));
    let mut socket = connect(&rig).await;
    socket.say(SUBSCRIBE).await;
    let over_socket = rig.live.opened().await;
    let mut follower = rig.connect().await;
    follower.write(b"GET /v1/live?table=things HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let over_sse = rig.live.opened().await;
    for opened in [over_socket, over_sse] {
        // More than any socket's buffers hold; nobody reads it.
        let flood = async { while opened.batches.send(Ok(large.clone())).await.is_ok() {} };
        tokio::time::timeout(PATIENCE, flood).await.expect("it is cut off");
    }
    drop((socket, follower));
    rig.stop().await;
}
