//! A client of HTTP/2 made of frames, which takes as much of an answer as a test wants.

use millrace::memory_v1::{GetCheckpointRequest, SubscribeEventsRequest, paths};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::scene::{PATIENCE, Scene};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The code of a stream that is no longer wanted.
pub(super) const CANCEL: u32 = 8;
/// The largest window there is.
pub(super) const ALL: u32 = (1 << 31) - 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The setting that says how much is taken of each stream.
const INITIAL_WINDOW: u16 = 4;

/// How an answer went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// So many bytes of its body came, and its end.
    Whole(usize),
    /// The host has ended it, with this code.
    Reset(u32),
}

#[derive(Debug)]
pub(super) struct Raw(TcpStream);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&bytes[1..], &[kind, flags][..], &stream.to_be_bytes()[..], payload].concat()
}

impl Raw {
    /// A client that takes so many bytes of each stream, and everything of the connection.
    pub(super) async fn open(scene: &Scene, window: u32) -> Self {
        let mut raw = Self(TcpStream::connect(("127.0.0.1", scene.port())).await.unwrap());
        let setting = [&INITIAL_WINDOW.to_be_bytes()[..], &window.to_be_bytes()[..]].concat();
        // A connection begins with this much.
        let more = (ALL - 65_535).to_be_bytes();
        let said = [PREFACE, &frame(SETTINGS, 0, 0, &setting), &frame(WINDOW_UPDATE, 0, 0, &more)].concat();
        raw.0.write_all(&said).await.unwrap();
        // The host has taken the setting.
        while !matches!(raw.next().await, Frame { kind: SETTINGS, flags: ACK, .. }) {}
        raw
    }

    pub(super) async fn get(&mut self, stream: u32, client: &str) {
        let asked = GetCheckpointRequest { client_id: client.into() };
        self.call(stream, paths::GET_CHECKPOINT, &asked).await;
    }

    pub(super) async fn subscribe(&mut self, stream: u32, asked: &SubscribeEventsRequest) {
        self.call(stream, paths::SUBSCRIBE_EVENTS, asked).await;
    }

    async fn call(&mut self, stream: u32, path: &str, message: &impl Message) {
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in headers {
            // Literally, with a name of its own, not to be remembered.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let message = message.encode_to_vec();
        let bytes = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = [&[0][..], &bytes, &message].concat();
        let call =
            [frame(HEADERS, END_HEADERS, stream, &block), frame(DATA, END_STREAM, stream, &body)].concat();
        self.0.write_all(&call).await.unwrap();
    }

    /// Waits until an answer has begun.
    pub(super) async fn begun(&mut self, stream: u32) {
        while !matches!(self.next().await, Frame { kind: HEADERS, stream: of, .. } if of == stream) {}
    }

    /// Reads to the end of an answer. What is read gives no new room.
    pub(super) async fn answered(&mut self, stream: u32) -> Answered {
        let mut bytes = 0;
        loop {
            let next = self.next().await;
            if next.stream != stream {
                continue;
            }
            match next.kind {
                RESET => return Answered::Reset(u32::from_be_bytes(next.payload[..4].try_into().unwrap())),
                DATA => bytes += next.payload.len(),
                _ => {}
            }
            if matches!(next.kind, DATA | HEADERS) && next.flags & END_STREAM != 0 {
                return Answered::Whole(bytes);
            }
        }
    }

    /// The next frame. Whatever asks for an answer gets one.
    async fn next(&mut self) -> Frame {
        let next = timeout(PATIENCE, self.read()).await.expect("the host says something");
        match next {
            Frame { kind: SETTINGS, flags: 0, .. } => {
                self.0.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
            }
            Frame { kind: PING, flags: 0, ref payload, .. } => {
                self.0.write_all(&frame(PING, ACK, 0, payload)).await.unwrap();
            }
            _ => {}
        }
        next
    }

    async fn read(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Frame { kind, flags, stream: u32::from_be_bytes(stream), payload }
    }

    /// Reads nothing any more, and says that it lives until the host does not listen.
    pub(super) async fn wait_until_left(mut self) {
        let said = async {
            while self.0.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, said).await.expect("the host closes");
    }
}
