//! `GET /v1/live/ws`: the handshake.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::super::Edge;
use super::super::auth::{Caller, TableReader};
use super::super::cors::check_same_origin;
use super::super::params::Params;
use super::super::problem::Problem;
use super::super::serve::{ConnectionPlace, WriteBound};
use super::credential::Credential;
use super::framed::Framed;
use super::http::inprocess_of;
use super::shell::{WsOptions, WsProtocol};
use super::socket::serve_ws;

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
    let accept = match accept_of(headers) {
        Ok(accept) => accept,
        Err(problem) => return Ok(upgrade_required(problem)),
    };
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

/// A refusal that says what would be taken (RFC 9110 §15.5.22, RFC 6455 §4.4).
fn upgrade_required(problem: Problem) -> Response {
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
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
    let mut conn = Framed::server(stream, early, options.message_bytes_max).await;
    let until = credential.until(&edge);
    tokio::select! {
        end = serve_ws(backend, &mut conn, &options, until) => {
            tracing::debug!(end = ?end, "live socket ended");
        }
        () = edge.hard.cancelled() => {}
    }
}
