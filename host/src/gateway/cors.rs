//! Pages of other origins: which of them browsers may show answers to, and which may use a session.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::params::cut;
use super::problem::Problem;

/// How long a browser remembers what it was told about an address.
const PREFLIGHT_SECONDS: &str = "600";
/// What scripts may read of an answer, beside what they always may.
const EXPOSED: &str = "etag, retry-after, www-authenticate, allow";

/// Answers preflights, and says on every answer to an allowed origin that it may be shown.
pub(super) async fn allow(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let origins = &edge.options.cors_origins;
    if origins.is_empty() {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.filter(|origin| origins.iter().any(|known| known.as_bytes() == origin.as_bytes()));
    let asks = *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (&allowed, asks) {
        (Some(_), true) => preflight(request.headers()),
        (None, true) => {
            let origin = origin_of(request.headers()).unwrap_or_default();
            let detail = format!("`{}` is not in gateway.cors_origins", cut(origin));
            Problem::new("origin_refused", detail).into_response()
        }
        (_, false) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        let policy = HeaderName::from_static("cross-origin-resource-policy");
        headers.insert(policy, HeaderValue::from_static("cross-origin"));
    }
    response
}

/// Everything that the edge takes. What a request asks for is decided when it comes.
fn preflight(headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE"));
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    response
}

/// Refuses what a session's cookie was sent with by a page of another origin. Without TLS of its own the host
/// knows no scheme, so names and ports are compared; another scheme at the same name is the same site anyway.
pub(super) fn check_same_origin(headers: &HeaderMap, origins: &[String]) -> Result<(), Problem> {
    let refused = |detail: String| Err(Problem::new("origin_refused", detail));
    let Some(origin) = origin_of(headers) else {
        if headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() == b"same-origin") {
            return Ok(());
        }
        return refused("a request by cookie that changes something says its Origin".into());
    };
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let same = authority.is_some() && authority == host;
    if same || origins.iter().any(|known| known == origin) {
        return Ok(());
    }
    refused(format!("the cookie belongs to pages of this host, and the request comes from `{}`", cut(origin)))
}

fn origin_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ORIGIN)?.to_str().ok()
}
