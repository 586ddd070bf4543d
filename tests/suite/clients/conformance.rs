//! Claims about WebSockets by RFC 6455, which the cases of Autobahn's test suite make.
//!
//! The suite asks for a server that answers each message with the same one. This one reads and writes with the
//! code of the gateway, and closes with its codes.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use millrace::gateway::WriteBound;
use millrace::gateway::live::{Fault, Framed, Incoming, MessageKind, Text, WsConn};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use super::web;

/// Framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, and a message that comes in very many pieces.
const RULES: &str = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*";
const RULE_CASES: usize = 247;
/// Messages of up to 16 MiB, in one frame or many, in one write or in pieces of 64 bytes and more; and thousands of them.
const SIZES: &str = "9.*";
const SIZE_CASES: usize = 54;
/// Where a case does not end with `OK` for the messages and for the close.
const OTHERWISE: [(&str, [&str; 2]); 5] = [
    // The standard leaves it open; the suite only looks.
    ("7.1.6", ["INFORMATIONAL"; 2]),
    ("7.13.1", ["INFORMATIONAL"; 2]),
    ("7.13.2", ["INFORMATIONAL"; 2]),
    // Octets that are no UTF-8 are found with the end of their frame, not in the middle of it.
    ("6.4.3", ["NON-STRICT", "OK"]),
    ("6.4.4", ["NON-STRICT", "OK"]),
];

const AT_ONCE: &str = "32";
const MESSAGE_BYTES_MAX: usize = 32 << 20;

async fn echo(stream: TcpStream, message_bytes_max: usize) {
    let _ = stream.set_nodelay(true);
    let mut stream = WriteBound::new(stream, Duration::from_secs(20), CancellationToken::new());
    let mut head = String::new();
    while !head.contains("\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.push(byte[0].into());
    }
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let accept = derive_accept_key(key.expect("a client of WebSockets has a key").as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    if stream.write_all(answer.as_bytes()).await.is_err() {
        return;
    }
    let mut conn = Framed::server(stream, Vec::new(), message_bytes_max).await;
    while let Some(incoming) = conn.recv().await {
        let (kind, payload) = match incoming {
            Incoming::Text(text) => (MessageKind::Text, Bytes::from(text)),
            Incoming::Binary(bytes) => (MessageKind::Binary, bytes),
            Incoming::Alive => continue,
            Incoming::TooLarge => return close(conn, "live_message_bytes_max").await,
            Incoming::NotUtf8 => return close(conn, "message_not_utf8").await,
            Incoming::Malformed(_) => return close(conn, "websocket_malformed").await,
        };
        if conn.write(kind, &[Text::whole(payload)]).await.is_err() {
            return;
        }
    }
}

async fn close(mut conn: Framed<WriteBound>, code: &str) {
    conn.close(Fault::new(code, "").close_code(), code).await;
}

/// What the suite says of each case.
async fn judge(cases: &'static str, message_bytes_max: usize) -> BTreeMap<String, Value> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let url = format!("ws://{}", listener.local_addr().expect("it is bound"));
    let serve = async {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a client comes");
            // The set ends with this future, and its tasks with it.
            clients.spawn(echo(stream, message_bytes_max));
        }
    };
    let asked = tokio::task::spawn_blocking(move || {
        let web = web();
        let python = web.join(".venv/bin/python");
        assert!(python.exists(), "{} is missing: `cargo xtask test` installs it", python.display());
        let mut judge = Command::new(python);
        judge.arg(web.join("autobahn.py")).args([&url, cases, AT_ONCE]).stdin(Stdio::null());
        judge.output().expect("it started a moment ago")
    });
    let output = tokio::select! {
        output = asked => output.expect("without a panic"),
        () = serve => unreachable!("it accepts for ever"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{complaint}", output.status);
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("a line is JSON");
        (row["case"].as_str().expect("a case has a name").to_owned(), row)
    };
    said.lines().map(row).collect()
}

fn wrong(rows: &BTreeMap<String, Value>) -> Vec<String> {
    let is_wrong = |case: &str, row: &Value| {
        let otherwise = OTHERWISE.iter().find(|(other, _)| *other == case);
        let [behavior, close] = otherwise.map_or(["OK"; 2], |(_, verdicts)| *verdicts);
        row["behavior"] != behavior || row["close"] != close
    };
    rows.iter().filter(|(case, row)| is_wrong(case, row)).map(|(_, row)| row.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_of_the_websocket_protocol_is_kept() {
    let rows = judge(RULES, MESSAGE_BYTES_MAX).await;
    assert_eq!(rows.len(), RULE_CASES);
    let wrong = wrong(&rows);
    assert!(wrong.is_empty(), "{} of {RULE_CASES}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_any_size_in_any_pieces_come_through() {
    let rows = judge(SIZES, MESSAGE_BYTES_MAX).await;
    assert_eq!(rows.len(), SIZE_CASES);
    let wrong = wrong(&rows);
    assert!(wrong.is_empty(), "{} of {SIZE_CASES}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_of_the_protocol_finds_a_server_that_does_not_echo() {
    let rows = judge("1.1.*", 100).await;
    let (short, long): (Vec<_>, Vec<_>) = rows.values().partition(|row| row["behavior"] == "OK");
    assert_eq!((short.len(), long.len()), (1, 7), "only the empty message fits: {rows:?}");
    assert!(long.iter().all(|row| row["code"] == 1009), "{long:?}");
}
