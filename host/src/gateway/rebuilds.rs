//! `/v1/plugins/{plugin}/rebuild`: filling a plugin's tables anew beside those that are served.
//!
//! A rebuild is of all tenants, and so is what it tells: all of it takes the right `admin`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::auth::Admin;
use super::body::{BodyLimit, BodyReader, media_type, unsupported};
use super::candidates::flag;
use super::params::{self, Params};
use super::problem::Problem;
use crate::plugins::{DeployFrom, RebuildRequest, RebuildView};

/// Begins a rebuild. The tables that are served stay as they are until it has everything; then its own take their
/// place at one revision. The body is the version to fill them with; without one it is the version that runs.
#[utoipa::path(
    post,
    path = "/v1/plugins/{plugin}/rebuild",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("from" = Option<String>, Query, description = "Where it begins: `oldest` (default), `tail` or a cursor"),
        ("lanes" = Option<u32>, Query, description = "Its lanes; as many as the plugin has if none are said"),
        ("accept_unemitted" = Option<bool>, Query, description = "Take over although events that one of the two versions could not handle are then emitted never or twice. Says so to a rebuild that waits for it, too"),
        ("repeat_calls" = Option<bool>, Query, description = "The version may repeat its HTTP requests for every event"),
    ),
    request_body(content = Option<Vec<u8>>, content_type = "application/wasm"),
    responses((status = 202, description = "It is under way", body = RebuildView))
)]
pub(super) async fn begin(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    mut params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let from = match params.take("from")?.as_deref() {
        None | Some("oldest") => DeployFrom::Oldest,
        Some("tail" | "newest") => DeployFrom::Tail,
        Some(cursor) => DeployFrom::After(params::cursor(cursor, &edge.services.log.epoch())?.0),
    };
    let lanes = params.number("lanes")?;
    let accept_unemitted = flag(&mut params, "accept_unemitted")?;
    let repeat_calls = flag(&mut params, "repeat_calls")?;
    params.finish()?;
    let (parts, body) = request.into_parts();
    let component = match media_type(&parts.headers).as_str() {
        "" => None,
        "application/wasm" => {
            let limit = BodyLimit { name: "component_bytes_max", bytes: edge.options.component_bytes_max };
            let reader = BodyReader::new(&parts.headers, body, edge.options.body_idle_max, limit)?;
            Some(reader.whole().await?)
        }
        other => return Err(unsupported(other, &["application/wasm"])),
    };
    let by = format!("api:{}", caller.name);
    let rebuild = RebuildRequest { plugin, component, from, lanes, accept_unemitted, repeat_calls, by };
    let view = edge.services.plugins.rebuild(rebuild).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(view)).into_response())
}

/// The last rebuild of a plugin, whether it has ended or not.
#[utoipa::path(get, path = "/v1/plugins/{plugin}/rebuild", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "The rebuild", body = RebuildView)))]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(axum::Json(edge.services.plugins.rebuild_status(&plugin).await?).into_response())
}

/// Gives a rebuild up that has not taken over. The plugin goes on as it was.
#[utoipa::path(delete, path = "/v1/plugins/{plugin}/rebuild", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "It has ended", body = RebuildView)))]
pub(super) async fn abandon(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(axum::Json(edge.services.plugins.abandon_rebuild(&plugin).await?).into_response())
}
