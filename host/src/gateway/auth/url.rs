//! What may stand in an address: tickets, and no tokens.
//!
//! Addresses end up in logs, histories and referrers. A ticket that is found there has been used already.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{Method, Uri, header};

use super::Caller;
use crate::gateway::Edge;
use crate::gateway::problem::Problem;

/// What the ticket of a request stands for.
#[derive(Clone, Debug)]
pub(super) struct Redeemed(pub(super) Caller);

/// Parameters that clients of other systems put tokens in.
const TOKENS: [&str; 4] = ["access_token", "token", "jwt", "bearer"];

/// Refuses a token in the address, and takes a ticket out of it.
pub(super) fn redeem(edge: &Arc<Edge>, request: &mut Request) -> Result<(), Problem> {
    let Some(query) = request.uri().query() else { return Ok(()) };
    let mut ticket = None;
    let mut rest = String::new();
    for part in query.split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if TOKENS.contains(&name) {
            return Err(Problem::new("token_in_url", format!("the address has a parameter `{name}`")));
        }
        if name == "ticket" && ticket.is_none() {
            ticket = Some(value.to_owned());
            continue;
        }
        if !rest.is_empty() {
            rest.push('&');
        }
        rest.push_str(part);
    }
    let Some(ticket) = ticket else { return Ok(()) };
    if !opens_a_stream(request) {
        return Err(Problem::new("ticket_refused", "this request does not open a stream"));
    }
    let caller = edge.auth.tickets.take(&ticket, edge.services.clock.now());
    let caller = caller
        .ok_or_else(|| Problem::new("ticket_invalid", "the ticket is unknown, was used, or is over"))?;
    request.extensions_mut().insert(Redeemed(caller));
    *request.uri_mut() = without_query(request.uri(), &rest)?;
    Ok(())
}

/// What a browser opens without headers: EventSource and WebSocket.
fn opens_a_stream(request: &Request) -> bool {
    let path = request.uri().path();
    let follows = || {
        let accepts = request.headers().get_all(header::ACCEPT);
        accepts.iter().any(|value| value.to_str().is_ok_and(|text| text.contains("text/event-stream")))
    };
    let followed = || ["/v1/streams/", "/v1/presence/"].iter().any(|beginning| path.starts_with(beginning));
    let entries = || path.starts_with("/v1/processes/") && path.ends_with("/entries");
    *request.method() == Method::GET
        && (matches!(path, "/v1/live" | "/v1/live/ws" | "/v1/channels/ws")
            || ((followed() || entries()) && follows()))
}

fn without_query(uri: &Uri, query: &str) -> Result<Uri, Problem> {
    let mut parts = uri.clone().into_parts();
    let path = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{query}", uri.path()) };
    let path =
        path.parse().map_err(|_| Problem::new("parameter_invalid", "the query string cannot be read"))?;
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Problem::new("parameter_invalid", "the address cannot be read"))
}
