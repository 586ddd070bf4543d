//! `/v1/plugins/{plugin}/state`: what one task of a plugin keeps. It is read as it was committed and never changed.
//!
//! A task is one tenant's: a token sees its own tenant's, and only with the right `admin` another's.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::Edge;
use super::auth::{Caller, Reader, Right};
use super::params::{self, Params};
use super::problem::Problem;
use super::wire::{KeyedEntryView, KeyedView, SavedView, StateView};
use crate::checkpoints::{CommitError, SavedState, ScanLimit, StateEntry, TaskId, TaskRow};
use crate::error::BackendError;
use crate::event::{Cursor, TenantId};
use crate::limits::{GUEST_SCAN_MAX, STATE_ENTRIES_DEFAULT, STATE_SHOWN_BYTES_MAX};

/// What of a task's keyed state is asked for.
struct Wanted {
    prefix: Vec<u8>,
    after: Option<Vec<u8>>,
    entries: u32,
}

/// What a task of a plugin keeps: position, saved state, and a page of its keyed state.
#[utoipa::path(
    get,
    path = "/v1/plugins/{plugin}/state",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("lane" = Option<u32>, Query, description = "Which lane, or else 0"),
        ("tenant" = Option<String>, Query, description = "With the right `admin`: whose task, or else the token's own tenant's"),
        ("prefix" = Option<String>, Query, description = "Only entries of the keyed state whose key begins so"),
        ("after" = Option<String>, Query, description = "Go on where a page ended: its `next`"),
        ("limit" = Option<u32>, Query, description = "Entries of the keyed state: 0 to 1000, or else 50"),
    ),
    responses((status = 200, description = "The state", body = StateView))
)]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(plugin): Path<String>,
    mut params: Params,
) -> Result<Response, Problem> {
    let lane = params.number::<u32>("lane")?.unwrap_or(0);
    let tenant = tenant(&caller, &mut params)?;
    let wanted = wanted(&mut params)?;
    params.finish()?;
    let plugin = edge.services.plugins.show(&plugin).await?;
    let lanes = plugin.deployment.lanes;
    let id = TaskId { processor: plugin.name.as_str().into(), tenant, lane };
    let checkpoints = &edge.services.checkpoints;
    let tasks = checkpoints.tasks(Some(&plugin.name)).await?;
    let row = tasks.into_iter().find(|row| row.task == id).ok_or_else(|| unknown(&id, lanes))?;
    let checkpoint = checkpoints.checkpoint(&id).await?;
    let keyed = keyed(&edge, row, wanted).await?;
    let position = checkpoint
        .as_ref()
        .map(|found| Cursor { epoch: edge.services.log.epoch(), position: found.position }.to_string());
    let view = StateView {
        plugin: plugin.name,
        tenant: id.tenant.to_string(),
        lane,
        lanes,
        position,
        revision: checkpoint.as_ref().map(|found| found.revision.0),
        saved: checkpoint.and_then(|found| found.saved).map(saved),
        keyed,
    };
    Ok(axum::Json(view).into_response())
}

/// Whose task is meant. Only whoever runs the host may name another tenant than its own.
fn tenant(caller: &Caller, params: &mut Params) -> Result<TenantId, Problem> {
    let Some(name) = params.take("tenant")? else { return Ok(caller.tenant.clone()) };
    if name == caller.tenant.as_str() {
        return Ok(caller.tenant.clone());
    }
    if !caller.may(Right::Admin) {
        return Err(Problem::new(
            "right_missing",
            "another `tenant` than the token's needs the right `admin`",
        ));
    }
    TenantId::new(&name).map_err(|error| params::invalid("tenant", format!("is no tenant's name: {error}")))
}

fn wanted(params: &mut Params) -> Result<Wanted, Problem> {
    let entries = params.number::<u32>("limit")?.unwrap_or(STATE_ENTRIES_DEFAULT);
    if entries > GUEST_SCAN_MAX {
        let detail = format!("limit is {entries}; {GUEST_SCAN_MAX} at most is possible");
        let problem = Problem::new("guest_scan_max", detail);
        return Err(problem.limit("guest_scan_max", entries.into(), GUEST_SCAN_MAX.into()));
    }
    let after = params.take("after")?.map(|text| {
        let key = URL_SAFE_NO_PAD.decode(&text);
        key.map_err(|_| params::invalid("after", "is not what a page gave as `next`"))
    });
    let prefix = params.take("prefix")?.unwrap_or_default().into_bytes();
    Ok(Wanted { prefix, after: after.transpose()?, entries })
}

fn unknown(id: &TaskId, lanes: u32) -> Problem {
    let TaskId { processor, tenant, lane } = id;
    let detail = if *lane >= lanes {
        format!("plugin `{processor}` has {lanes} lanes, counted from 0; there is no lane {lane}")
    } else {
        format!("plugin `{processor}` has no task for tenant `{tenant}`, lane {lane}")
    };
    Problem::new("task_unknown", detail)
}

async fn keyed(edge: &Arc<Edge>, row: TaskRow, wanted: Wanted) -> Result<KeyedView, Problem> {
    let checkpoints = Arc::clone(&edge.services.checkpoints);
    let (entries, bytes) = (row.keyed_entries, row.keyed_bytes);
    let limit = ScanLimit { entries: wanted.entries, bytes: STATE_SHOWN_BYTES_MAX };
    let scan = move || checkpoints.state_scan(&row.task, &wanted.prefix, wanted.after.as_deref(), limit);
    // It waits for the disk.
    let page = tokio::task::spawn_blocking(scan).await;
    let page = page.unwrap_or(Err(CommitError::Backend(BackendError::Closed)))?;
    let last = page.entries.last().filter(|_| page.more);
    let next = last.map(|entry| URL_SAFE_NO_PAD.encode(&entry.key));
    Ok(KeyedView { entries, bytes, page: page.entries.into_iter().map(entry).collect(), next })
}

fn entry(StateEntry { key, value, expires_at }: StateEntry) -> KeyedEntryView {
    let (key, key_base64) = text(key);
    let (value, value_base64) = text(value);
    let expires_at = expires_at.map(|at| at.to_string());
    KeyedEntryView { key, key_base64, value, value_base64, expires_at }
}

/// Text where it is UTF-8, or else base64.
fn text(bytes: Vec<u8>) -> (Option<String>, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
    }
}

fn saved(SavedState { content_type, state }: SavedState) -> SavedView {
    let sha256 = Sha256::digest(&state).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let shown = &state[..state.len().min(STATE_SHOWN_BYTES_MAX)];
    let truncated = shown.len() < state.len();
    let json = if truncated || !is_json(&content_type) { None } else { parse(shown) };
    let base64 = json.is_none().then(|| STANDARD.encode(shown));
    SavedView { content_type, bytes: state.len() as u64, sha256, json, base64, truncated }
}

/// `application/json`, or a type that ends in `+json`, whatever its parameters.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json") || media_type.to_ascii_lowercase().ends_with("+json")
}

/// The state as it was written, every digit of a number kept.
fn parse(state: &[u8]) -> Option<Box<RawValue>> {
    serde_json::from_slice(state).ok()
}
