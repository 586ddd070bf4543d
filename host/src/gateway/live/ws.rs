//! `GET /v1/live/ws`: the handshake.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;

use super::super::Edge;
use super::super::auth::{Caller, TableReader};
use super::super::params::Params;
use super::super::problem::Problem;
use super::super::websocket::{Opened, has_token, upgrade};
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
    let protocol = protocol_of(request.headers());
    let named = (protocol == WsProtocol::Multi).then_some(MULTI);
    upgrade(&edge, &mut request, named, move |edge, opened| serve(edge, caller, protocol, opened))
}

fn protocol_of(headers: &HeaderMap) -> WsProtocol {
    // RFC 6455: of what a client offers a host takes what it knows, or answers none.
    if has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, MULTI) {
        WsProtocol::Multi
    } else {
        WsProtocol::Single
    }
}

async fn serve(
    edge: Arc<Edge>,
    caller: Caller,
    protocol: WsProtocol,
    Opened { stream, early, place: _place }: Opened,
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
