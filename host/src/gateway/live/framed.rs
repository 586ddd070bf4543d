//! A WebSocket over any stream.
//!
//! The library reads, out of bursts; what the host writes is framed by hand, many messages in one buffer and one write,
//! which is given back at once: an idle socket keeps no memory for what it was once sent.

use std::io;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::burst::Burst;
use super::frames::{Frames, HEAD_BYTES_MAX, MessageKind, write_head};
use super::shell::{Incoming, Text, WsConn};
use crate::limits::{LIVE_CLOSE_WAIT_MAX, LIVE_READ_BUFFER_BYTES};

/// The server's side of a WebSocket, once it is open.
#[derive(Debug)]
pub struct Framed<S> {
    socket: WebSocketStream<Burst<S>>,
    stage: Stage,
    /// The library answers a ping, and may not have written all of that. It does so when it is read from next.
    pinged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// The client has closed it, and was not answered yet.
    Closing,
    /// Nothing comes behind the answer to that.
    Closed,
}

enum Heard {
    Message(Incoming),
    /// Nothing for who listens.
    Nothing,
    Gone,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Over a stream whose handshake is done. `early` is what the client sent behind its request.
    pub async fn server(stream: S, early: Vec<u8>, message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(LIVE_READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let stream = Burst::new(stream);
        let socket = WebSocketStream::from_partially_read(stream, early, Role::Server, Some(config)).await;
        Self { socket, stage: Stage::Open, pinged: false }
    }

    /// Writes messages of a kind, in order, and flushes once.
    pub async fn write(&mut self, kind: MessageKind, messages: &[Text]) -> io::Result<()> {
        let length = messages.iter().map(|message| message.len() + HEAD_BYTES_MAX).sum();
        let mut frames = Frames::with_capacity(length);
        messages.iter().for_each(|message| frames.push_parts(kind, &message.0));
        self.write_frames(&frames).await
    }

    /// Writes messages, in order, and flushes once.
    pub async fn write_frames(&mut self, frames: &Frames) -> io::Result<()> {
        match self.stage {
            // A pong may be half written, and must end first.
            Stage::Open => {
                self.socket.flush().await.map_err(io::Error::other)?;
                self.pinged = false;
            }
            // That would write the answer to the close, and this comes before it.
            Stage::Closing => {}
            Stage::Closed => return Ok(()),
        }
        self.socket.get_mut().write_all(frames.as_bytes()).await
    }

    /// The next message; none when the client is gone. Cancel-safe.
    pub async fn hear(&mut self) -> Option<Incoming> {
        loop {
            if self.stage == Stage::Closing {
                // Going on sends the answer, and then it is over.
                self.stage = Stage::Closed;
            }
            let next = self.socket.next().await?;
            match self.understood(next) {
                Heard::Message(message) => return Some(message),
                Heard::Nothing => {}
                Heard::Gone => return None,
            }
        }
    }

    /// The next message, if it has come already. None as well when nothing more will come, which [`Self::hear`] tells. It
    /// wakes nobody when something comes: whoever has nothing else to do goes on with that.
    pub fn hear_now(&mut self) -> Option<Incoming> {
        if self.stage != Stage::Open {
            return None;
        }
        let next = self.socket.next().now_or_never()??;
        match self.understood(next) {
            Heard::Message(message) => Some(message),
            Heard::Nothing | Heard::Gone => None,
        }
    }

    fn understood(&mut self, message: Result<Message, Error>) -> Heard {
        // The library writes its answer to a ping before it reads what comes after that, as far as the client takes it.
        self.pinged &= self.socket.get_ref().is_behind();
        Heard::Message(match message {
            Ok(Message::Text(text)) => Incoming::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Ping(_)) => {
                self.pinged = true;
                Incoming::Alive
            }
            Ok(Message::Pong(_)) => Incoming::Alive,
            Ok(Message::Close(_)) => {
                // Nothing is written in the middle of a pong.
                self.stage = if self.pinged { Stage::Closed } else { Stage::Closing };
                return Heard::Nothing;
            }
            Ok(Message::Frame(_)) => return Heard::Nothing,
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Incoming::TooLarge,
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Heard::Gone,
            Err(Error::Protocol(error)) => Incoming::Malformed(error.to_string()),
            Err(Error::Utf8(_)) => Incoming::NotUtf8,
            Err(_) => return Heard::Gone,
        })
    }

    async fn close_in_order(&mut self, code: u16, reason: &str) -> io::Result<()> {
        // After an error of reading there may be nothing to flush; writing goes on all the same.
        let _ = self.socket.flush().await;
        let mut out = Vec::with_capacity(4 + reason.len());
        write_head(&mut out, 0x88, 2 + reason.len());
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(reason.as_bytes());
        let stream = self.socket.get_mut();
        stream.write_all(&out).await?;
        stream.flush().await?;
        loop {
            match self.socket.next().await {
                // Both have said it: the host may close.
                Some(Ok(Message::Close(_))) => return Ok(()),
                Some(Ok(_)) => {}
                // Nothing of what still comes can be understood. This takes it in and throws it away.
                Some(Err(_)) | None => return self.socket.get_mut().shutdown().await,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> WsConn for Framed<S> {
    fn recv(&mut self) -> BoxFuture<'_, Option<Incoming>> {
        self.hear().boxed()
    }

    fn send<'a>(&'a mut self, messages: &'a [Text]) -> BoxFuture<'a, io::Result<()>> {
        self.write(MessageKind::Text, messages).boxed()
    }

    fn ping(&mut self) -> BoxFuture<'_, io::Result<()>> {
        async { self.socket.send(Message::Ping(Bytes::new())).await.map_err(io::Error::other) }.boxed()
    }

    fn close<'a>(&'a mut self, code: u16, reason: &'a str) -> BoxFuture<'a, ()> {
        async move {
            // A client that does not answer is left after a while. Closing with unread bytes would reset the
            // connection, and the last words with it.
            let _ = tokio::time::timeout(LIVE_CLOSE_WAIT_MAX, self.close_in_order(code, reason)).await;
        }
        .boxed()
    }

    fn cut(&mut self) {}
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

    use super::*;

    const PING: u8 = 9;
    const CLOSE: u8 = 8;

    /// A frame of a client, masked with zeros.
    fn said(opcode: u8, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        out.extend_from_slice(text);
        out
    }

    /// A socket to which all of that was said at once, and its client.
    async fn after(frames: &[Vec<u8>]) -> (Framed<DuplexStream>, DuplexStream) {
        let (host, mut client) = duplex(64 << 10);
        client.write_all(&frames.concat()).await.unwrap();
        (Framed::server(host, Vec::new(), 1 << 10).await, client)
    }

    fn text(incoming: Option<Incoming>) -> String {
        let Some(Incoming::Text(text)) = incoming else { panic!("a text: {incoming:?}") };
        text
    }

    async fn all_of(mut client: DuplexStream) -> Vec<u8> {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        all
    }

    #[tokio::test]
    async fn what_has_come_is_heard_without_waiting_and_what_comes_later_still_is() {
        let (mut host, mut client) =
            after(&[said(1, b"a"), said(1, b"b"), said(PING, b""), said(1, b"c")]).await;
        assert_eq!(text(host.hear().await), "a");
        assert_eq!(text(host.hear_now()), "b");
        assert!(matches!(host.hear_now(), Some(Incoming::Alive)));
        assert_eq!(text(host.hear_now()), "c");
        assert!(host.hear_now().is_none());
        let later = async {
            tokio::task::yield_now().await;
            client.write_all(&said(1, b"d")).await.unwrap();
        };
        let (heard, ()) = tokio::join!(host.hear(), later);
        assert_eq!(text(heard), "d");
        drop(client);
        assert!(host.hear_now().is_none());
        assert!(host.hear().await.is_none());
    }

    #[tokio::test]
    async fn answers_come_before_the_answer_to_a_close_or_not_at_all() {
        let mut frames = Frames::default();
        frames.push_parts(MessageKind::Text, &["answer"]);
        let closed = [0x88, 0];
        let (mut host, client) = after(&[said(1, b"a"), said(CLOSE, b"")]).await;
        assert_eq!(text(host.hear().await), "a");
        assert!(host.hear_now().is_none());
        host.write_frames(&frames).await.unwrap();
        assert!(host.hear().await.is_none());
        // Nothing comes behind it.
        host.write_frames(&frames).await.unwrap();
        drop(host);
        assert_eq!(all_of(client).await, [frames.as_bytes(), &closed].concat());

        // A ping does not change that, be it long ago or just before the close.
        for frames_of_client in [
            [said(PING, b"p"), said(1, b"a"), said(CLOSE, b"")],
            [said(1, b"a"), said(PING, b"p"), said(CLOSE, b"")],
        ] {
            let (mut host, client) = after(&frames_of_client).await;
            let heard = [host.hear().await, host.hear_now()];
            assert!(heard.iter().any(|heard| matches!(heard, Some(Incoming::Text(_)))), "{heard:?}");
            assert!(host.hear_now().is_none());
            host.write_frames(&frames).await.unwrap();
            assert!(host.hear().await.is_none());
            drop(host);
            assert_eq!(all_of(client).await, [&[0x8a, 1, b'p'][..], frames.as_bytes(), &closed].concat());
        }
    }

    #[tokio::test]
    async fn nothing_is_written_in_the_middle_of_a_pong() {
        let (host, mut client) = duplex(32);
        let mut host = Framed::server(host, Vec::new(), 1 << 10).await;
        let (mut filling, mut frames) = (Frames::default(), Frames::default());
        filling.push_parts(MessageKind::Text, &["what the client does not read"]);
        frames.push_parts(MessageKind::Text, &["answer"]);
        host.write_frames(&filling).await.unwrap();
        // Of a pong there is room for a byte.
        assert_eq!(filling.as_bytes().len(), 31);
        client.write_all(&[said(PING, b"p"), said(1, b"a"), said(CLOSE, b"")].concat()).await.unwrap();
        assert!(matches!(host.hear().await, Some(Incoming::Alive)));
        assert_eq!(text(host.hear_now()), "a");
        assert!(host.hear_now().is_none());
        host.write_frames(&frames).await.unwrap();
        let end = async move { host.hear().await.is_none() };
        let (ended, all) = tokio::join!(end, all_of(client));
        assert!(ended);
        assert_eq!(all, [filling.as_bytes(), &[0x8a, 1, b'p', 0x88, 0]].concat());
    }
}
