//! `/v1/plugins…`: looking at plugins, and changing them with the right `admin`.
//!
//! Plugins are the host's; their tasks, failures and dead letters belong to
//! tenants, and without `admin` a token sees its own tenant's only: no counter,
//! lag or message that another tenant's events move.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Edge;
use super::auth::{Admin, Caller, Reader, Right};
use super::body::{BodyLimit, BodyReader, media_type, unsupported};
use super::candidates::options;
use super::params::{self, Params};
use super::problem::Problem;
use super::wire::PluginView;
use crate::plugins::{DeployFrom, DeployRequest, PluginStatus};

/// All plugins and how they are.
#[utoipa::path(get, path = "/v1/plugins", tag = "plugins",
    responses((status = 200, description = "The plugins", body = super::wire::PluginList)))]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let plugins = edge.services.plugins.list().await?;
    let plugins: Vec<PluginView> = plugins.into_iter().map(|status| visible(&caller, status)).collect();
    Ok(axum::Json(json!({ "plugins": plugins })).into_response())
}

/// Deploys a component: a new plugin, or a new version of one, which takes over once it has proved itself.
#[utoipa::path(
    post,
    path = "/v1/plugins",
    tag = "plugins",
    params(
        ("name" = Option<String>, Query, description = "Refuse the component if it says another name"),
        ("from" = Option<String>, Query, description = "Where a new plugin begins: `oldest` (default), `tail` or a cursor"),
        ("shadow_events" = Option<u64>, Query, description = "Events that a new version handles beside the running one before it takes over"),
        ("shadow_ms" = Option<u64>, Query, description = "How long it does so where there is traffic"),
        ("no_shadow" = Option<bool>, Query, description = "Leave that out; the history says so"),
        ("confirm" = Option<bool>, Query, description = "Take over only after `POST /v1/plugins/{plugin}/confirm`"),
        ("expect" = Option<String>, Query, description = "`identical-rows`: refuse it if its rows, emitted events or appended entries differ"),
    ),
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses((status = 200, description = "It runs", body = PluginView))
)]
pub(super) async fn deploy(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    mut params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let expected_name = params.take("name")?;
    let from = match params.take("from")?.as_deref() {
        None | Some("oldest") => DeployFrom::Oldest,
        Some("tail" | "newest") => DeployFrom::Tail,
        Some(cursor) => DeployFrom::After(params::cursor(cursor, &edge.services.log.epoch())?.0),
    };
    let options = options(&mut params)?;
    params.finish()?;
    let (parts, body) = request.into_parts();
    let found = media_type(&parts.headers);
    if found != "application/wasm" {
        return Err(unsupported(&found, &["application/wasm"]));
    }
    let limit = BodyLimit { name: "component_bytes_max", bytes: edge.options.component_bytes_max };
    let component = BodyReader::new(&parts.headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    let by = format!("api:{}", caller.name);
    let deploy = DeployRequest {
        component,
        expected_name,
        expected_build: None,
        from,
        by,
        options,
        paused: false,
        settings: None,
        progress: None,
    };
    let status = edge.services.plugins.deploy(deploy).await?;
    Ok(answer(&caller, status))
}

/// One plugin.
#[utoipa::path(get, path = "/v1/plugins/{plugin}", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "The plugin", body = PluginView)))]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(answer(&caller, edge.services.plugins.show(&plugin).await?))
}

/// Removes a plugin and its progress. Its tables stay readable.
#[utoipa::path(delete, path = "/v1/plugins/{plugin}", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 204, description = "It is gone")))]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    edge.services.plugins.remove(&plugin).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Commits what was handled and stops; stays paused over restarts.
#[utoipa::path(post, path = "/v1/plugins/{plugin}/pause", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "It is paused", body = PluginView)))]
pub(super) async fn pause(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(answer(&caller, edge.services.plugins.pause(&plugin).await?))
}

/// Goes on where it paused.
#[utoipa::path(post, path = "/v1/plugins/{plugin}/resume", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "It runs", body = PluginView)))]
pub(super) async fn resume(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(answer(&caller, edge.services.plugins.resume(&plugin).await?))
}

/// Former and present deployments, newest first.
#[utoipa::path(get, path = "/v1/plugins/{plugin}/history", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "The deployments", body = super::wire::DeploymentList)))]
pub(super) async fn history(
    State(edge): State<Arc<Edge>>,
    Reader(_): Reader,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let deployments = edge.services.plugins.history(&plugin).await?;
    Ok(axum::Json(json!({ "deployments": deployments })).into_response())
}

pub(super) fn answer(caller: &Caller, status: PluginStatus) -> Response {
    axum::Json(visible(caller, status)).into_response()
}

/// What other tenants do is not this caller's business, unless it runs the host.
fn visible(caller: &Caller, status: PluginStatus) -> PluginView {
    if caller.may(Right::Admin) {
        PluginView::whole(status)
    } else {
        PluginView::of_tenant(status, &caller.tenant)
    }
}
