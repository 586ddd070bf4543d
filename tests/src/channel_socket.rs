//! A client of channels over a WebSocket. It keeps what each of its subscriptions was sent, and fails where something is
//! missing, comes twice, or comes without credit.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long a client waits for what must come. Reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a subscription may be sent where nobody says anything.
pub const CREDIT: u64 = 256;

#[derive(Debug)]
pub struct ChannelSocket {
    /// For tests that say what no client should.
    pub socket: WebSocketStream<TcpStream>,
    pub follows: BTreeMap<String, Follow>,
    /// Messages that nobody has asked for yet, entries apart.
    heard: VecDeque<Value>,
    /// Ids by the numbers that stand in binary messages.
    numbers: BTreeMap<u32, String>,
    /// Pings of the protocol below.
    pub pings: usize,
}

/// What a subscription was sent.
#[derive(Debug, Default)]
pub struct Follow {
    /// As JSON, those that came as binary messages, too.
    pub entries: Vec<Value>,
    /// In how many messages the entries came.
    pub messages: usize,
    /// The position of the last one, or where it began.
    pub last: u64,
    /// The same as the host calls it.
    pub cursor: String,
    pub credit: u64,
    pub ready: Option<Value>,
    pub lagged: Vec<Value>,
    /// Why it is over.
    pub closed: Option<String>,
}

impl Follow {
    fn took(&mut self, entry: Value) {
        let position = entry["position"].as_u64().expect("a position");
        assert_eq!(position, self.last + 1, "neither hole nor repeat: {entry}");
        assert!(self.ready.is_some() && self.closed.is_none(), "between `ready` and `closed`: {entry}");
        self.credit = self.credit.checked_sub(1).expect("never more than it has credit");
        self.last = position;
        self.entries.push(entry);
    }
}

impl ChannelSocket {
    pub async fn open(address: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Self, Error> {
        Self::open_at(address, "/v1/channels/ws", headers).await
    }

    pub async fn open_at(
        address: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://localhost:{}{path}", address.port()).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).expect("a header"));
        }
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        let (follows, heard, numbers) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Ok(Self { socket, follows, heard, numbers, pings: 0 })
    }

    /// With a token.
    pub async fn connect(address: SocketAddr, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        Self::open(address, &[("authorization", bearer.as_str())]).await.expect("a WebSocket")
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("the gateway reads");
    }

    pub async fn say(&mut self, command: &Value) {
        self.send(Message::text(command.to_string())).await;
    }

    /// Follows a channel of a process, and waits until the host says that it does. Other members of the command are taken
    /// from `with`.
    pub async fn subscribe(&mut self, id: &str, process: &str, channel: &str, with: Value) {
        self.ask(id, process, channel, with).await;
        self.until(id, |follow| follow.ready.is_some()).await;
    }

    /// The same without waiting.
    pub async fn ask(&mut self, id: &str, process: &str, channel: &str, with: Value) {
        let mut command = json!({ "op": "subscribe", "id": id, "process": process, "channel": channel });
        if let (Value::Object(command), Value::Object(with)) = (&mut command, with) {
            command.extend(with);
        }
        let after = &command["after"];
        let of_cursor = || after.as_str()?.rsplit('.').next()?.parse().ok();
        let follow = Follow {
            last: after.as_u64().or_else(of_cursor).unwrap_or(0),
            credit: command["credit"].as_u64().unwrap_or(CREDIT),
            ..Follow::default()
        };
        self.follows.insert(id.to_owned(), follow);
        self.say(&command).await;
    }

    pub async fn give_credit(&mut self, id: &str, add: u64) {
        self.follow(id).credit += add;
        self.say(&json!({ "op": "credit", "id": id, "add": add })).await;
    }

    pub fn follow(&mut self, id: &str) -> &mut Follow {
        self.follows.get_mut(id).unwrap_or_else(|| panic!("`{id}` was subscribed"))
    }

    /// Takes messages in until something holds of a subscription.
    pub async fn until(&mut self, id: &str, mut holds: impl FnMut(&Follow) -> bool) {
        while !holds(self.follow(id)) {
            self.take().await;
        }
    }

    pub async fn until_entries(&mut self, id: &str, count: usize) {
        self.until(id, |follow| follow.entries.len() >= count).await;
    }

    pub async fn until_closed(&mut self, id: &str) -> String {
        self.until(id, |follow| follow.closed.is_some()).await;
        self.follow(id).closed.clone().expect("it is over")
    }

    /// The next message of a kind that no subscription has taken. Others stay.
    pub async fn hear(&mut self, op: &str) -> Value {
        self.next_of(&[op]).await
    }

    /// The same of any of these kinds: the one that came first.
    pub async fn next_of(&mut self, ops: &[&str]) -> Value {
        loop {
            let is_one = |message: &Value| message["op"].as_str().is_some_and(|op| ops.contains(&op));
            if let Some(at) = self.heard.iter().position(is_one) {
                return self.heard.remove(at).expect("it is there");
            }
            self.take().await;
        }
    }

    /// All that the host has said up to its answer to a ping, of which nothing was asked for yet.
    pub async fn round_trip(&mut self, nonce: &str) -> Vec<Value> {
        self.say(&json!({ "op": "ping", "nonce": nonce })).await;
        loop {
            if let Some(at) = self.heard.iter().position(|message| message["nonce"] == nonce) {
                let mut before: Vec<_> = self.heard.drain(..=at).collect();
                before.pop();
                before.retain(|message| message["op"] != "heartbeat");
                return before;
            }
            self.take().await;
        }
    }

    /// Waits for the close, and gives its code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Message::Close(close) => {
                    let code = close.expect("it has a code").code.into();
                    let rest = tokio::time::timeout(PATIENCE, self.socket.next()).await;
                    assert!(rest.expect("it is closed").is_none(), "nothing comes after the close");
                    return code;
                }
                other => self.obey(other),
            }
        }
    }

    async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a message comes");
            match next.expect("the socket is open").expect("a good frame") {
                Message::Ping(_) => self.pings += 1,
                other => return other,
            }
        }
    }

    /// Takes one message in.
    pub async fn take(&mut self) {
        let message = self.next().await;
        self.obey(message);
    }

    fn obey(&mut self, message: Message) {
        let message = match message {
            Message::Text(text) => serde_json::from_str::<Value>(text.as_str()).expect("JSON"),
            Message::Binary(bytes) => {
                let (number, entry) = entry_of(&bytes);
                let id = self.numbers[&number].clone();
                let follow = self.follow(&id);
                follow.messages += 1;
                return follow.took(entry);
            }
            other => panic!("no message: {other:?}"),
        };
        let op = message["op"].as_str().expect("an op").to_owned();
        if !matches!(op.as_str(), "ready" | "entries" | "lagged" | "closed") {
            self.heard.push_back(message);
            return;
        }
        let id = message["id"].as_str().expect("an id").to_owned();
        let number = message["number"].as_u64();
        let cursor = message["cursor"].as_str().expect("a cursor").to_owned();
        let follow = self.follow(&id);
        assert_eq!(follow.closed, None, "nothing comes after `closed`: {message}");
        follow.cursor = cursor;
        match op.as_str() {
            "ready" => {
                assert!(
                    follow.ready.is_none() && follow.entries.is_empty(),
                    "it comes first, once: {message}"
                );
                assert_eq!(message["after"], follow.last, "{message}");
                follow.ready = Some(message);
                let number = u32::try_from(number.expect("a number")).expect("a small one");
                self.numbers.insert(number, id.clone());
            }
            "entries" => {
                follow.messages += 1;
                let Value::Array(entries) = message["entries"].clone() else { panic!("a list: {message}") };
                assert!(!entries.is_empty(), "{message}");
                entries.into_iter().for_each(|entry| follow.took(entry));
            }
            "lagged" => {
                let resume_at = message["resume_at"].as_u64().expect("a position");
                assert_eq!(resume_at, follow.last + 1 + message["missed"].as_u64().expect("a number"));
                follow.last = resume_at - 1;
                follow.lagged.push(message);
            }
            _ => {
                assert_eq!(message["last"], follow.last, "where it can go on: {message}");
                follow.closed = Some(message["reason"].as_str().expect("a reason").to_owned());
            }
        }
        let follow = self.follow(&id);
        let position = follow.cursor.rsplit('.').next().and_then(|position| position.parse().ok());
        assert_eq!(position, Some(follow.last), "each says where it stands: {}", follow.cursor);
    }
}

/// A binary entry, as the JSON that it would be otherwise; and the number of its subscription.
fn entry_of(bytes: &[u8]) -> (u32, Value) {
    let mut rest = bytes;
    let mut take = |count: usize| {
        let (taken, more) = rest.split_at(count);
        rest = more;
        taken
    };
    let mut number = |count: usize| take(count).iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    assert_eq!(number(1), 1, "the version");
    let subscription = u32::try_from(number(4)).expect("four bytes");
    let flags = number(1);
    let (position, epoch, sequence, answered, at) =
        (number(8), number(4), number(8), number(8), number(8).cast_signed());
    let sender_bytes = number(2);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let sender = text(take(usize::try_from(sender_bytes).expect("small")));
    let error_bytes = take(2).iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    let error = text(take(error_bytes));
    let entry_type = ["data", "end", "error"][usize::try_from(flags & 3).expect("small")];
    let mut entry = json!({
        "position": position,
        "senderid": sender,
        "epoch": epoch,
        "sequence": sequence,
        "timestamp": millrace::event::Micros(at).to_string(),
        "type": entry_type,
        "payload": (flags & 4 != 0).then(|| base64(rest)),
    });
    if answered > 0 {
        entry["inreplyto"] = answered.into();
    }
    if flags & 8 != 0 {
        entry["error"] = error.into();
    }
    (subscription, entry)
}

/// An append of one entry as a binary message. Numbers that are 0 are left to the host.
#[derive(Clone, Debug, Default)]
pub struct BinaryAppend<'a> {
    pub reference: u64,
    pub process: &'a str,
    pub channel: &'a str,
    pub party: &'a str,
    pub epoch: Option<u32>,
    pub sequence: u64,
    pub in_reply_to: u64,
    /// 0 `data`, 1 `end`, 2 `error`.
    pub entry_type: u8,
    pub error: &'a str,
    pub payload: Option<&'a [u8]>,
}

impl BinaryAppend<'_> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![1];
        out.extend_from_slice(&self.reference.to_be_bytes());
        let flags = u8::from(self.payload.is_some()) << 2 | u8::from(self.epoch.is_some()) << 4;
        out.push(self.entry_type | flags);
        out.extend_from_slice(&self.epoch.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.in_reply_to.to_be_bytes());
        for name in [self.process, self.channel] {
            out.push(u8::try_from(name.len()).expect("a name"));
            out.extend_from_slice(name.as_bytes());
        }
        for text in [self.party, self.error] {
            out.extend_from_slice(&u16::try_from(text.len()).expect("short").to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(self.payload.unwrap_or_default());
        out
    }
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let all =
            three.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[(all >> (18 - 6 * place)) as usize & 63]);
            text.push(if place <= three.len() { digit } else { '=' });
        }
    }
    text
}
