//! `/v1/plugins/{plugin}/…`: candidates that are tried beside the running version, and the way back.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;

use super::Edge;
use super::auth::Admin;
use super::params::{self, Params};
use super::plugins::answer;
use super::problem::Problem;
use super::wire::PluginView;
use crate::plugins::{DeployOptions, Expect};

/// Lets a candidate that waits for it take over.
#[utoipa::path(post, path = "/v1/plugins/{plugin}/confirm", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "It runs", body = PluginView)))]
pub(super) async fn confirm(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(answer(&caller, edge.services.plugins.confirm(&plugin).await?))
}

/// Gives up a candidate that is in the shadow or waits to be confirmed.
#[utoipa::path(delete, path = "/v1/plugins/{plugin}/candidate", tag = "plugins",
    params(("plugin" = String, Path, description = "The plugin's name")),
    responses((status = 200, description = "The running version goes on", body = PluginView)))]
pub(super) async fn abandon(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    Ok(answer(&caller, edge.services.plugins.abandon(&plugin).await?))
}

/// Deploys an earlier version again. It proves itself like any other, and goes on from the newest state.
#[utoipa::path(
    post,
    path = "/v1/plugins/{plugin}/rollback",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("to" = Option<String>, Query, description = "A digest or version of its history; the last other one if none is said"),
        ("shadow_events" = Option<u64>, Query, description = "As in a deploy"),
        ("shadow_ms" = Option<u64>, Query, description = "As in a deploy"),
        ("no_shadow" = Option<bool>, Query, description = "As in a deploy"),
        ("confirm" = Option<bool>, Query, description = "As in a deploy"),
        ("expect" = Option<String>, Query, description = "As in a deploy"),
    ),
    responses((status = 200, description = "It runs", body = PluginView))
)]
pub(super) async fn rollback(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    mut params: Params,
) -> Result<Response, Problem> {
    let to = params.take("to")?;
    let options = options(&mut params)?;
    params.finish()?;
    let by = format!("api:{}", caller.name);
    let status = edge.services.plugins.rollback(&plugin, to.as_deref(), &by, options).await?;
    Ok(answer(&caller, status))
}

/// How a version is to be tried.
pub(super) fn options(params: &mut Params) -> Result<DeployOptions, Problem> {
    let expect = match params.take("expect")?.as_deref() {
        None => Expect::Anything,
        Some("identical-rows") => Expect::IdenticalRows,
        Some(_) => return Err(params::invalid("expect", "can be `identical-rows` only")),
    };
    Ok(DeployOptions {
        shadow_events: params.number("shadow_events")?,
        shadow_ms: params.number("shadow_ms")?,
        no_shadow: flag(params, "no_shadow")?,
        confirm: flag(params, "confirm")?,
        expect,
        rollback: false,
    })
}

pub(super) fn flag(params: &mut Params, name: &str) -> Result<bool, Problem> {
    match params.take(name)?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(params::invalid(name, "is neither true nor false")),
    }
}
