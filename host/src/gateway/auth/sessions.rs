//! `/v1/session`, for browsers: EventSource and WebSocket cannot send a header. And `/v1/auth/revoke`.
//!
//! A session is a cookie that no script reads and no other site sends; a ticket is a secret that opens one stream,
//! soon. Both are kept in memory: a restart ends them, and a page asks for another one.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::validity::Revoked;
use super::{Admin, Caller, Somebody, loopback};
use crate::event::Micros;
use crate::gateway::Edge;
use crate::gateway::body::{BodyLimit, BodyReader};
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;
use crate::gateway::wire::SessionView;
use crate::limits::AUTH_BODY_BYTES_MAX;

const COOKIE: &str = "millrace_session";

/// What a cookie stands for.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) caller: Caller,
    ended: CancellationToken,
}

/// The session's id, of the cookie header.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SessionRequest {
    ticket: bool,
}

/// Turns the bearer token into a cookie, or into a ticket for one stream.
///
/// Without a body the answer sets a cookie that only this host gets back and no script can read. A request by
/// cookie that is more than a GET must come from a page of this host or of `cors_origins`. With
/// `{"ticket":true}` the answer holds a ticket: `?ticket=` opens one stream (`/v1/live`, `/v1/live/ws`,
/// `/v1/channels/ws`, the tail of a stream, a room or a channel), once, within seconds. Both end no later than the
/// token.
#[utoipa::path(post, path = "/v1/session", tag = "host",
    request_body(content = Object, description = "Nothing, or `{\"ticket\":true}`"),
    responses((status = 200, description = "The session or the ticket", body = crate::gateway::wire::SessionView)))]
pub(in crate::gateway) async fn open(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let body = read_body(&edge, &headers, body).await?;
    let wanted: SessionRequest =
        if body.trim_ascii().is_empty() { SessionRequest::default() } else { parse(&body)? };
    let (auth, now) = (&edge.auth, edge.services.clock.now());
    let options = &edge.options.auth;
    let end = |lifetime: Duration| {
        let end = Micros(now.0.saturating_add(i64::try_from(lifetime.as_micros()).unwrap_or(i64::MAX)));
        caller.valid.expires_at().map_or(end, |earlier| earlier.min(end))
    };
    let mut view = SessionView {
        tenant: caller.tenant.as_str().to_owned(),
        name: caller.name.to_string(),
        expires_at: None,
        ticket: None,
    };
    if wanted.ticket {
        let until = end(options.ticket_lifetime);
        view.expires_at = Some(until.to_string());
        view.ticket = Some(auth.tickets.put(caller, until, now)?);
        return Ok(answer(&view, None));
    }
    if auth.open.is_some() {
        // There is nothing to show, and so nothing to remember.
        return Ok(answer(&view, None));
    }
    // A session that makes sessions would outlive every bound.
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err(Problem::new(
            "token_missing",
            "a session is made from a bearer token, not from a session",
        ));
    }
    let until = end(options.session_lifetime);
    let ended = CancellationToken::new();
    let valid = caller.valid.in_session(until, ended.clone());
    let secret = auth.sessions.put(Session { caller: Caller { valid, ..caller }, ended }, until, now)?;
    view.expires_at = Some(until.to_string());
    let seconds = u64::try_from(until.0.saturating_sub(now.0)).unwrap_or(0) / 1_000_000;
    Ok(answer(&view, Some(cookie_of(&headers, &secret, seconds))))
}

/// Ends the session of the cookie, and the streams that it has opened.
#[utoipa::path(delete, path = "/v1/session", tag = "host",
    responses((status = 204, description = "There is no session any more")))]
pub(in crate::gateway) async fn close(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    if let Some(id) = cookie(&headers) {
        crate::gateway::cors::check_same_origin(&headers, &edge.options.cors_origins)?;
        if let Some(session) = edge.auth.sessions.take(id, edge.services.clock.now()) {
            session.ended.cancel();
        }
    }
    let gone = cookie_of(&headers, "", 0);
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, gone), (header::CACHE_CONTROL, "no-store".into())])
        .into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RevokeRequest {
    jti: Option<String>,
    sub: Option<String>,
    name: Option<String>,
}

/// Ends a token before its time: one by `jti`, all that were issued to a `sub` until now, or a static one by `name`.
///
/// What it has opened ends as well. It holds for every tenant, is kept in memory and forgotten by a restart: remove
/// a static token from the configuration, and a signed one's key from the key set, if its time is long.
#[utoipa::path(post, path = "/v1/auth/revoke", tag = "host",
    request_body(content = Object, description = "`{\"jti\":…}`, `{\"sub\":…}` or `{\"name\":…}`"),
    responses((status = 200, description = "It is not good any more", body = Object)))]
pub(in crate::gateway) async fn revoke(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let wanted: RevokeRequest = parse(&read_body(&edge, &headers, body).await?)?;
    let (what, view) = match (wanted.jti, wanted.sub, wanted.name) {
        (Some(id), None, None) => (Revoked::Token(id.clone()), json!({ "jti": id })),
        (None, Some(subject), None) => (Revoked::Subject(subject.clone()), json!({ "sub": subject })),
        (None, None, Some(name)) => {
            if !edge.auth.tokens.has_name(&name) {
                let detail = format!("no static token has the name `{}`", crate::gateway::params::cut(&name));
                return Err(Problem::new("credential_unknown", detail));
            }
            (Revoked::Name(name.clone()), json!({ "name": name }))
        }
        _ => {
            let detail = "the body is one of {\"jti\":…}, {\"sub\":…} and {\"name\":…}";
            return Err(Problem::new("json_malformed", detail));
        }
    };
    edge.auth.standing.revoke(what)?;
    tracing::info!(by = %caller.name, revoked = %view, "credential revoked");
    Ok(answer(&json!({ "revoked": view }), None))
}

async fn read_body(edge: &Edge, headers: &HeaderMap, body: Body) -> Result<bytes::Bytes, Problem> {
    let limit = BodyLimit { name: "body_bytes_max", bytes: AUTH_BODY_BYTES_MAX };
    BodyReader::new(headers, body, edge.options.body_idle_max, limit)?.whole().await
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // A list would do for serde as well, without the names.
    if !body.trim_ascii().starts_with(b"{") {
        return Err(Problem::new("json_malformed", "the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|e| Problem::new("json_malformed", format!("the body: {e}")))
}

fn answer<T: Serialize>(view: &T, cookie: Option<String>) -> Response {
    let headers = [(header::CACHE_CONTROL, "no-store")];
    let mut response = (headers, axum::Json(view)).into_response();
    if let Some(cookie) = cookie.and_then(|text| text.parse().ok()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// `Secure` leaves out loopback names only: some browsers keep no such cookie for http://localhost.
fn cookie_of(headers: &HeaderMap, secret: &str, seconds: u64) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let secure = if loopback::is_loopback_authority(host) { "" } else { "; Secure" };
    format!("{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}
