//! A WebSocket over any stream.
//!
//! The library reads; what the host writes is framed here, many messages in one buffer and one write, which is
//! given back at once: an idle socket keeps no memory for what it was once sent.

use std::io;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::shell::{Incoming, Text, WsConn};
use crate::limits::{LIVE_CLOSE_WAIT_MAX, LIVE_READ_BUFFER_BYTES};

/// The server's side of a WebSocket, once it is open.
#[derive(Debug)]
pub struct Framed<S> {
    socket: WebSocketStream<S>,
}

/// What a data message is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Text,
    Binary,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Over a stream whose handshake is done. `early` is what the client sent behind its request.
    pub async fn server(stream: S, early: Vec<u8>, message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(LIVE_READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let socket = WebSocketStream::from_partially_read(stream, early, Role::Server, Some(config)).await;
        Self { socket }
    }

    /// Writes messages of a kind, in order, and flushes once.
    pub async fn write(&mut self, kind: MessageKind, messages: &[Text]) -> io::Result<()> {
        self.write_parts(messages.iter().map(|message| (kind, message.0.as_slice()))).await
    }

    /// Writes messages, each in parts that follow each other, in order, and flushes once.
    pub async fn write_parts<'a>(
        &mut self,
        messages: impl Iterator<Item = (MessageKind, &'a [Bytes])> + Clone,
    ) -> io::Result<()> {
        // A pong may be half written, and must end first.
        self.socket.flush().await.map_err(io::Error::other)?;
        let length = |parts: &[Bytes]| parts.iter().map(Bytes::len).sum::<usize>();
        let mut out = Vec::with_capacity(messages.clone().map(|(_, parts)| length(parts) + 10).sum());
        for (kind, parts) in messages {
            let first = match kind {
                MessageKind::Text => 0x81,
                MessageKind::Binary => 0x82,
            };
            write_head(&mut out, first, length(parts));
            parts.iter().for_each(|part| out.extend_from_slice(part));
        }
        self.socket.get_mut().write_all(&out).await
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
        async {
            loop {
                return Some(match self.socket.next().await? {
                    Ok(Message::Text(text)) => Incoming::Text(text.as_str().to_owned()),
                    Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
                    Ok(Message::Ping(_) | Message::Pong(_)) => Incoming::Alive,
                    // Going on sends the answer to it, and then it is over.
                    Ok(Message::Close(_) | Message::Frame(_)) => continue,
                    Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Incoming::TooLarge,
                    Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return None,
                    Err(Error::Protocol(error)) => Incoming::Malformed(error.to_string()),
                    Err(Error::Utf8(_)) => Incoming::NotUtf8,
                    Err(_) => return None,
                });
            }
        }
        .boxed()
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

/// The head of a frame that is whole and, as a server's, not masked (RFC 6455 §5.2).
fn write_head(out: &mut Vec<u8>, first: u8, length: usize) {
    out.push(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::write_head;

    #[test]
    fn heads_have_the_shortest_length_that_fits() {
        let head = |length| {
            let mut out = Vec::new();
            write_head(&mut out, 0x81, length);
            out
        };
        assert_eq!(head(0), [0x81, 0]);
        assert_eq!(head(125), [0x81, 125]);
        assert_eq!(head(126), [0x81, 126, 0, 126]);
        assert_eq!(head(65_535), [0x81, 126, 0xff, 0xff]);
        assert_eq!(head(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
