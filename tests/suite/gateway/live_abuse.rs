//! Claims about clients of live queries that send too much, too slowly, nothing, or nonsense, and about those that
//! vanish: none of them keeps a place, and none reaches the engine.

use std::time::Duration;

use millrace::gateway::GatewayOptions;
use serde_json::{Value, json};
use socket2::{SockFilter, SockRef};
use tokio::io::AsyncReadExt;

use super::fakes::FakeSubscription;
use super::live::rig_with_rows;
use super::rig::{Answer, Client, PATIENCE, Rig};

const UPGRADE: &str = "GET /v1/live/ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const GET: &str = "GET /v1/live?table=things HTTP/1.1\r\nHost: localhost\r\n";
const POST: &str =
    "POST /v1/live HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 18\r\n";
const QUERY: &str = r#"{"table":"things"}"#;
/// How requests for live queries begin; the blank line is missing.
const HEADS: [&str; 3] = [GET, POST, UPGRADE];

/// Short waits where a test is about their end.
const SHORT: Duration = Duration::from_millis(100);
const PACE: Duration = Duration::from_millis(2);

async fn rig(change: impl FnOnce(&mut GatewayOptions)) -> Rig {
    let rig = Rig::with(change).await;
    rig.rows("default", &[("a", 1, None)]).await;
    rig
}

/// Sends a byte now and then until the gateway closes, and gives what it answered.
async fn dribble(mut client: Client, bytes: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut pace = tokio::time::interval(PACE);
    let mut bytes = bytes.into_iter();
    let send = async {
        let mut piece = [0; 4096];
        loop {
            tokio::select! {
                read = client.0.read(&mut piece) => match read {
                    Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
                    _ => return,
                },
                _ = pace.tick() => if let Some(byte) = bytes.next() {
                    // The gateway may have closed: reading says so.
                    let _ = client.0.try_write(&[byte]);
                },
            }
        }
    };
    tokio::time::timeout(PATIENCE, send).await.expect("the gateway closes");
    answer
}

/// A frame of a client, masked with zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    assert!(length < 126);
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// A WebSocket by hand.
async fn upgraded(rig: &Rig) -> Client {
    let mut client = rig.connect().await;
    client.write(format!("{UPGRADE}\r\n").as_bytes()).await;
    let mut head = String::new();
    client.read_until(&mut head, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

/// A whole answer of a connection that may stay open.
async fn answer_of(client: &mut Client) -> Answer {
    let mut text = String::new();
    client.read_until(&mut text, "\r\n\r\n").await;
    loop {
        let answer = Answer::parse(text.as_bytes());
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        if answer.body.len() >= length.expect("it has a length") {
            return answer;
        }
        let mut more = Vec::new();
        assert_ne!(client.0.read_buf(&mut more).await.expect("it answers"), 0, "{text}");
        text.push_str(std::str::from_utf8(&more).expect("text"));
    }
}

/// The last text message of a socket, and its close: code and reason.
async fn last_words(client: &mut Client) -> (Value, u16, String) {
    let mut heard = Vec::new();
    let read = async {
        loop {
            assert_ne!(client.0.read_buf(&mut heard).await.expect("it is told"), 0, "closed after {heard:?}");
            let (start, end) = match heard[..] {
                [0x81, 126, high, low, ..] => (4, 4 + usize::from(u16::from_be_bytes([high, low]))),
                [0x81, length @ ..126, ..] => (2, 2 + usize::from(length)),
                _ => continue,
            };
            let Some(&[0x88, length, high, low]) = heard.get(end..).and_then(|rest| rest.first_chunk::<4>())
            else {
                continue;
            };
            if heard.len() == end + 2 + usize::from(length) {
                let error = serde_json::from_slice(&heard[start..end]).expect("a frame is JSON");
                let reason = String::from_utf8_lossy(&heard[end + 4..]).into_owned();
                return (error, u16::from_be_bytes([high, low]), reason);
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("it is told, and closed")
}

/// Both ways to watch, with a subscription open.
async fn watching(rig: &Rig) -> [(Client, FakeSubscription); 2] {
    let mut over_sse = rig.connect().await;
    over_sse.write(format!("{GET}\r\n").as_bytes()).await;
    let first = rig.live.opened().await;
    let mut over_socket = upgraded(rig).await;
    let command = format!(r#"{{"action":"subscribe","query":{QUERY}}}"#);
    over_socket.write(&masked(0x81, command.as_bytes())).await;
    let second = rig.live.opened().await;
    [(over_sse, first), (over_socket, second)]
}

#[tokio::test]
async fn floods_of_headers_are_refused_on_every_live_path() {
    let rig = rig_with_rows().await;
    let many = "X-Flood: x\r\n".repeat(1_000);
    let long = format!("X-Flood: {}\r\n", "x".repeat(64 << 10));
    let cookies = format!("Cookie: {}\r\n", "a=b; ".repeat(20_000));
    for head in HEADS {
        for flood in [&many, &long, &cookies] {
            let mut client = rig.connect().await;
            client.write(format!("{head}{flood}\r\n{QUERY}").as_bytes()).await;
            assert_eq!(client.answer().await.status, 431, "{head}");
        }
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn heads_that_dribble_are_not_waited_for_on_any_live_path() {
    let rig = rig(|options| options.header_wait_max = SHORT).await;
    for head in HEADS {
        let mut client = rig.connect().await;
        client.write(head.as_bytes()).await;
        let endless = "X-Slow: x\r\n".bytes().cycle();
        let answer = dribble(client, endless).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2") && !answer.starts_with(b"HTTP/1.1 1"), "{answer:?}");
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn a_posted_query_that_dribbles_is_refused_although_it_never_stops() {
    let rig = rig(|options| options.live_first_command_wait_max = SHORT).await;
    for length in ["Content-Length: 60000", "Transfer-Encoding: chunked"] {
        let mut client = rig.connect().await;
        let head = POST.replace("Content-Length: 18", length);
        client.write(format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
        // One chunk that is announced, and then never whole, or just a body.
        client.write(if length.starts_with('T') { b"ea60\r\n" } else { b"" }).await;
        let answer = dribble(client, std::iter::repeat(b' ')).await;
        let problem = Answer::parse(&answer).is_problem(408, "live_first_command_wait_max");
        assert!(problem["fix"].as_str().is_some_and(|fix| fix.contains("gateway.")), "{problem}");
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_without_a_word_is_given_up_and_its_subscription_closed() {
    let rig = rig(|options| {
        options.sse_heartbeat = Duration::from_millis(20);
        options.write_wait_max = SHORT;
    })
    .await;
    let watching = watching(&rig).await;
    for (client, _) in &watching {
        // From here on nothing that the gateway sends arrives, and nothing says so: the system drops every packet.
        SockRef::from(&client.0).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).expect("it is cut off");
    }
    for (_, opened) in &watching {
        tokio::time::timeout(PATIENCE, opened.batches.closed()).await.expect("it is given up");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_socket_that_stops_in_the_middle_of_a_frame_is_given_up() {
    let rig = rig(|options| options.sse_heartbeat = Duration::from_millis(20)).await;
    let [_, (mut client, opened)] = watching(&rig).await;
    client.write(&masked(0x81, b"{\"action\":\"unsubscribe\"}")[..10]).await;
    tokio::time::timeout(PATIENCE, opened.batches.closed()).await.expect("it is given up");
    client.closed().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_socket_that_only_pings_is_closed_as_one_without_a_command() {
    let rig = rig(|options| options.live_first_command_wait_max = SHORT).await;
    let client = upgraded(&rig).await;
    let answer = dribble(client, masked(0x89, b"").into_iter().cycle()).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("live_first_command_wait_max"), "{text}");
    assert!(
        answer.windows(2).any(|two| two == 1008_u16.to_be_bytes()),
        "it is closed as a violation: {text}"
    );
    rig.stop().await;
}

#[tokio::test]
async fn handshakes_that_are_none_are_told_what_is_missing() {
    let rig = rig_with_rows().await;
    let cases = [
        ("Connection: keep-alive, Upgrade\r\n", "", 426, "websocket_expected"),
        ("Connection: keep-alive, Upgrade", "Connection: keep-alive", 426, "websocket_expected"),
        ("Upgrade: WebSocket\r\n", "", 426, "websocket_expected"),
        ("Upgrade: WebSocket", "Upgrade: h2c", 426, "websocket_expected"),
        ("Sec-WebSocket-Version: 13\r\n", "", 426, "websocket_expected"),
        ("Version: 13", "Version: 8", 426, "websocket_expected"),
        ("Version: 13", "Version: 13, 8", 426, "websocket_expected"),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 426, "websocket_expected"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "", 426, "websocket_expected"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short", 426, "websocket_expected"),
        ("GET", "POST", 405, "method_not_allowed"),
        ("/ws", "/ws?table=things", 400, "parameter_unknown"),
        ("Host: localhost", "Host: localhost\r\nOrigin: null", 403, "foreign_origin"),
        ("Host: localhost", "Host: example.com", 403, "foreign_host"),
    ];
    for (from, to, status, code) in cases {
        let head = UPGRADE.replace(from, to);
        assert_ne!(head, UPGRADE, "{from}");
        let mut client = rig.connect().await;
        client.write(format!("{head}\r\n").as_bytes()).await;
        let answer = answer_of(&mut client).await;
        answer.is_problem(status, code);
        if status == 426 {
            let offered = [answer.header("upgrade"), answer.header("sec-websocket-version")];
            assert_eq!(offered, [Some("websocket"), Some("13")], "{from}");
        }
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}

#[tokio::test]
async fn frames_that_no_client_may_send_end_a_socket_with_their_code() {
    let rig = rig_with_rows().await;
    let mut unmasked = masked(0x81, b"{}");
    unmasked.drain(2..6);
    unmasked[1] &= 0x7f;
    let long = |bytes: u64| [&[0x81, 0xff][..], &bytes.to_be_bytes(), &[0; 4]].concat();
    let cases = [
        ("not masked", unmasked, "websocket_malformed", 1002),
        ("a ping that is not masked", vec![0x89, 0], "websocket_malformed", 1002),
        ("a reserved bit", masked(0xc1, b"{}"), "websocket_malformed", 1002),
        ("an unknown opcode", masked(0x83, b"{}"), "websocket_malformed", 1002),
        ("a ping in two parts", masked(0x09, b"{}"), "websocket_malformed", 1002),
        ("the end of nothing", masked(0x80, b"{}"), "websocket_malformed", 1002),
        (
            "a message inside of one",
            [masked(0x01, b"{"), masked(0x81, b"}")].concat(),
            "websocket_malformed",
            1002,
        ),
        ("no UTF-8", masked(0x81, b"\xce\xba\xed\xa0\x80"), "message_not_utf8", 1007),
        ("as long as a length can be", long(u64::MAX >> 1), "live_message_bytes_max", 1009),
        ("a byte too long", long((64 << 10) + 1), "live_message_bytes_max", 1009),
    ];
    for (what, bytes, code, close) in cases {
        let mut client = upgraded(&rig).await;
        client.write(&bytes).await;
        let (error, closed, reason) = last_words(&mut client).await;
        assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!(code)), "{what}");
        assert_eq!((closed, reason.as_str()), (close, code), "{what}");
    }
    assert!(rig.live.none_opened());
    rig.stop().await;
}
