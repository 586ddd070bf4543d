//! Health, metrics, OpenAPI, and the few pages for people.
//!
//! Pages load nothing from elsewhere and hold no inline script.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::auth::Admin;
use super::problem::Problem;
use super::wire::Readiness;
use super::{Edge, openapi};
use crate::limits::GROUP_METRICS_MAX;
use crate::streams::groups::gauges;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TYPES: &str = "application/typescript; charset=utf-8";

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "host",
    responses((status = 200, description = "It lives", content_type = "text/plain", body = String)))]
pub(super) async fn healthz() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "ok\n").into_response()
}

/// The host does its work, or why it does not.
#[utoipa::path(get, path = "/readyz", tag = "host",
    responses(
        (status = 200, description = "It is ready", body = Readiness),
        (status = 503, description = "It is not, for these reasons", body = Readiness),
    ))]
pub(super) async fn readyz(State(edge): State<Arc<Edge>>) -> Response {
    let mut readiness = (edge.services.ready)();
    if edge.stopping.is_cancelled() {
        readiness.ready = false;
        readiness.reasons.push("the host is stopping".into());
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(readiness)).into_response()
}

/// What the host counts, for Prometheus. With tokens configured, for `admin` only: it speaks of all tenants.
#[utoipa::path(get, path = "/metrics", tag = "host",
    responses((status = 200, description = "Text exposition format", content_type = "text/plain", body = String)))]
pub(super) async fn metrics(State(edge): State<Arc<Edge>>, Admin(_): Admin) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let mut text = (edge.services.metrics)();
    text.push_str(&edge.services.plugins.metrics().await);
    // A store that cannot be read says so elsewhere; the rest is worth showing.
    if let Ok(lags) = edge.services.groups.lags(GROUP_METRICS_MAX).await {
        text.push_str(&gauges(&lags, edge.services.clock.now()));
    }
    (headers, text).into_response()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "host",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)))]
pub(super) async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], openapi::text())
        .into_response()
}

/// A page of links.
#[utoipa::path(get, path = "/", tag = "pages",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(super) async fn index() -> Response {
    asset(HTML, include_str!("demo/home.html"))
}

/// This description as a page.
#[utoipa::path(get, path = "/docs", tag = "pages",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(super) async fn docs() -> Response {
    asset(HTML, include_str!("demo/docs.html"))
}

pub(super) async fn docs_script() -> Response {
    asset(SCRIPT, include_str!("demo/docs.js"))
}

pub(super) async fn page_style() -> Response {
    asset(STYLE, include_str!("demo/page.css"))
}

pub(super) async fn demo_redirect() -> Redirect {
    Redirect::permanent("/demo/")
}

/// The departures board of the demo.
#[utoipa::path(get, path = "/demo/", tag = "pages",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(super) async fn demo() -> Response {
    asset(HTML, include_str!("demo/index.html"))
}

pub(super) async fn demo_script() -> Response {
    asset(SCRIPT, include_str!("demo/app.js"))
}

pub(super) async fn demo_rows() -> Response {
    asset(SCRIPT, include_str!("demo/rows.js"))
}

pub(super) async fn demo_style() -> Response {
    asset(STYLE, include_str!("demo/board.css"))
}

pub(super) async fn answers_redirect() -> Redirect {
    Redirect::permanent("/demo/answers/")
}

/// A conversation with the demo's plugin `answers`, over channels.
#[utoipa::path(get, path = "/demo/answers/", tag = "pages",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(super) async fn answers() -> Response {
    asset(HTML, include_str!("demo/answers.html"))
}

pub(super) async fn answers_script() -> Response {
    asset(SCRIPT, include_str!("demo/answers.js"))
}

pub(super) async fn answers_style() -> Response {
    asset(STYLE, include_str!("demo/answers.css"))
}

/// The JavaScript client of live queries.
pub(super) async fn client() -> Response {
    asset(SCRIPT, include_str!("client/client.js"))
}

pub(super) async fn client_types() -> Response {
    asset(TYPES, include_str!("client/client.d.ts"))
}

pub(super) async fn unknown(uri: axum::http::Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new("path_unknown", format!("there is nothing at `{path}`"))
}
