//! Connections that become WebSockets: the handshake, and handing the bare stream to whoever serves it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Edge;
use super::cors::check_same_origin;
use super::problem::Problem;
use super::serve::{ConnectionPlace, WriteBound};

/// A client's stream after its handshake.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: WriteBound,
    /// What the client has sent behind its request.
    pub(super) early: Vec<u8>,
    /// Its place among the connections, to be held as long as it is served.
    pub(super) place: Option<ConnectionPlace>,
}

/// Answers a handshake, and serves the stream in a task of the edge from then on. The answer names the subprotocol that
/// was taken, if one was. Pages of other origins are refused.
pub(super) fn upgrade<F>(
    edge: &Arc<Edge>,
    request: &mut Request,
    protocol: Option<&'static str>,
    serve: impl FnOnce(Arc<Edge>, Opened) -> F + Send + 'static,
) -> Result<Response, Problem>
where
    F: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    // Browsers let any page open a socket, and only say where it is from; what is no browser says nothing.
    if headers.contains_key(header::ORIGIN) {
        check_same_origin(headers, &edge.options.cors_origins)?;
    }
    let accept = match accept_of(headers) {
        Ok(accept) => accept,
        Err(problem) => return Ok(upgrade_required(problem)),
    };
    if edge.stopping.is_cancelled() {
        return Err(Problem::new("host_stopping", "the host is stopping"));
    }
    let place = request.extensions().get::<ConnectionPlace>().cloned();
    let upgrade = hyper::upgrade::on(request);
    let (edge, tasks) = (Arc::clone(edge), edge.tasks.clone());
    tasks.clone().spawn(async move {
        // It fails when the client is gone before the answer.
        let Ok(upgraded) = upgrade.await else { return };
        // A task of its own has the size that it needs, and this one's is free again.
        if let Some((stream, early)) = into_stream(upgraded) {
            tasks.spawn(serve(edge, Opened { stream, early, place }));
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
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

/// A refusal that says what would be taken (RFC 9110 §15.5.22, RFC 6455 §4.4).
fn upgrade_required(problem: Problem) -> Response {
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

/// Whether a header lists a word.
pub(super) fn has_token(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
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
