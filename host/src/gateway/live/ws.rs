//! `GET /v1/live/ws`: the handshake, and the socket that `serve_ws` is given.
//!
//! The library reads; what the host writes is framed here, many messages in one buffer and one write, which is
//! given back at once: an idle socket keeps no memory for what it was once sent.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::super::Edge;
use super::super::auth::{Caller, TableReader};
use super::super::cors::check_same_origin;
use super::super::params::Params;
use super::super::problem::Problem;
use super::super::serve::{ConnectionPlace, WriteBound};
use super::credential::Credential;
use super::http::inprocess_of;
use super::shell::{Incoming, Text, WsConn, WsOptions, WsProtocol};
use super::socket::serve_ws;
use crate::limits::{LIVE_CLOSE_WAIT_MAX, LIVE_READ_BUFFER_BYTES};

/// The subprotocol with many subscriptions.
const MULTI: &str = "millrace.live.v1";

/// Live queries over a WebSocket.
///
/// Without a subprotocol: one subscription, `{"action":"subscribe","query":{…}}` first, then `reanchor` or
/// `unsubscribe`; every frame is a message. With the subprotocol `millrace.live.v1`: many, each under an `id` of
/// the client's, with acknowledgements, and all frames of a commit in one message.
#[utoipa::path(
    get,
    path = "/v1/live/ws",
    tag = "live",
    params(("Sec-WebSocket-Protocol" = Option<String>, Header, description = "`millrace.live.v1`, or none")),
    responses((status = 101, description = "A WebSocket"))
)]
pub(in super::super) async fn open(
    State(edge): State<Arc<Edge>>,
    TableReader(caller): TableReader,
    params: Params,
    mut request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    let headers = request.headers();
    // Browsers let any page open a socket, and only say where it is from; what is no browser says nothing.
    if headers.contains_key(header::ORIGIN) {
        check_same_origin(headers, &edge.options.cors_origins)?;
    }
    let accept = accept_of(headers)?;
    let protocol = protocol_of(headers);
    if edge.stopping.is_cancelled() {
        return Err(Problem::new("host_stopping", "the host is stopping"));
    }
    let place = request.extensions().get::<ConnectionPlace>().cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = edge.tasks.clone();
    tasks.clone().spawn(async move {
        // It fails when the client is gone before the answer.
        let Ok(upgraded) = upgrade.await else { return };
        // A task of its own has the size that it needs, and this one's is free again.
        if let Some((stream, early)) = into_stream(upgraded) {
            tasks.spawn(serve(edge, caller, protocol, (stream, early), place));
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if protocol == WsProtocol::Multi {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(MULTI));
    }
    Ok(response)
}

/// What a client is answered that wants a WebSocket (RFC 6455 §4.2).
fn accept_of(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let expected = |what: &str| Problem::new("websocket_expected", what);
    if !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(expected("the request has no `Connection: Upgrade`"));
    }
    if !has_token(headers, &header::UPGRADE, "websocket") {
        return Err(expected("the request has no `Upgrade: websocket`"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(expected("the request has no `Sec-WebSocket-Version: 13`"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| expected("the request has no `Sec-WebSocket-Key` of 16 bytes in base64"))?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| expected("the `Sec-WebSocket-Key` is not usable"))
}

fn protocol_of(headers: &HeaderMap) -> WsProtocol {
    // RFC 6455: of what a client offers a host takes what it knows, or answers none.
    if has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, MULTI) {
        WsProtocol::Multi
    } else {
        WsProtocol::Single
    }
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
}

/// The stream, and what the client has sent already.
fn into_stream(upgraded: Upgraded) -> Option<(WriteBound, Vec<u8>)> {
    // What the edge serves is always such a stream; without the boxes of the upgrade it costs less.
    let Ok(parts) = upgraded.downcast::<TokioIo<WriteBound>>() else {
        tracing::error!(
            error.kind = "internal",
            error.blame = "host",
            "an upgraded connection is of an unknown type"
        );
        return None;
    };
    // The buffer that the head was read into is let go: it is large, and socket after socket would keep one.
    Some((parts.io.into_inner().taken_over(), parts.read_buf.to_vec()))
}

async fn serve(
    edge: Arc<Edge>,
    caller: Caller,
    protocol: WsProtocol,
    (stream, early): (WriteBound, Vec<u8>),
    _place: Option<ConnectionPlace>,
) {
    let edge_options = &edge.options;
    let backend = Arc::new(inprocess_of(&edge, &caller));
    let credential = Credential::new(caller);
    let options = WsOptions {
        heartbeat: edge_options.sse_heartbeat,
        write_wait_max: edge_options.write_wait_max,
        first_command_wait_max: edge_options.live_first_command_wait_max,
        message_bytes_max: edge_options.live_message_bytes_max,
        subscriptions_max: edge_options.live_subscriptions_max,
        authenticate: Some(credential.renewals(&edge)),
        ..WsOptions::new(protocol)
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(LIVE_READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(options.message_bytes_max))
        .max_frame_size(Some(options.message_bytes_max));
    let socket = WebSocketStream::from_partially_read(stream, early, Role::Server, Some(config)).await;
    let mut conn = Conn { socket };
    let until = credential.until(&edge);
    tokio::select! {
        end = serve_ws(backend, &mut conn, &options, until) => {
            tracing::debug!(end = ?end, "live socket ended");
        }
        () = edge.hard.cancelled() => {}
    }
}

struct Conn {
    socket: WebSocketStream<WriteBound>,
}

impl WsConn for Conn {
    fn recv(&mut self) -> BoxFuture<'_, Option<Incoming>> {
        async {
            loop {
                return Some(match self.socket.next().await? {
                    Ok(Message::Text(text)) => Incoming::Text(text.as_str().to_owned()),
                    Ok(Message::Binary(_)) => Incoming::Binary,
                    Ok(Message::Ping(_) | Message::Pong(_)) => Incoming::Alive,
                    // Going on sends the answer to it, and then it is over.
                    Ok(Message::Close(_) | Message::Frame(_)) => continue,
                    Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Incoming::TooLarge,
                    Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return None,
                    Err(Error::Protocol(error)) => Incoming::Malformed(error.to_string()),
                    Err(Error::Utf8(_)) => Incoming::Malformed("a text message is not UTF-8".into()),
                    Err(_) => return None,
                });
            }
        }
        .boxed()
    }

    fn send<'a>(&'a mut self, messages: &'a [Text]) -> BoxFuture<'a, io::Result<()>> {
        async move {
            // A pong may be half written, and must end first.
            self.socket.flush().await.map_err(io::Error::other)?;
            let mut out = Vec::with_capacity(messages.iter().map(|message| message.len() + 10).sum());
            for message in messages {
                write_head(&mut out, 0x81, message.len());
                message.0.iter().for_each(|part| out.extend_from_slice(part));
            }
            self.socket.get_mut().write_all(&out).await
        }
        .boxed()
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

impl Conn {
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
