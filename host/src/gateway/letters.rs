//! `/v1/plugins/{plugin}/dead-letters…` and `/replay`: events that a plugin could not handle, what to do with
//! them, and an event done once more without any effect.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use serde_json::{Value, json};

use super::auth::{Admin, Caller, Reader, Right};
use super::params::{self, Params};
use super::problem::Problem;
use super::{Edge, json as text};
use crate::checkpoints::{DeadLetterRow, EffectRef, SavedState};
use crate::event::{Position, TenantId};
use crate::limits::{PAGE_EVENTS_MAX, REPLAY_EFFECTS_MAX};
use crate::plugins::{CoreDump, FailureKind, LoadError, ReplayReport, ReplayRequest, Resolved, Verdict};

/// Dead letters of one answer when the request does not say.
const DEAD_LETTERS_DEFAULT: u32 = 100;

/// Events that a plugin could not handle, newest first, of the token's tenant.
#[utoipa::path(
    get,
    path = "/v1/plugins/{plugin}/dead-letters",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("limit" = Option<u32>, Query, description = "1 to 4096, or else 100"),
        ("all_tenants" = Option<bool>, Query, description = "With the right admin: those of every tenant"),
    ),
    responses((status = 200, description = "The dead letters", body = super::wire::DeadLetterList))
)]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(plugin): Path<String>,
    mut params: Params,
) -> Result<Response, Problem> {
    let limit = params.number::<u32>("limit")?.unwrap_or(DEAD_LETTERS_DEFAULT);
    let tenant = whose(&caller, &mut params)?;
    params.finish()?;
    if limit == 0 || limit as usize > PAGE_EVENTS_MAX {
        let detail = format!("limit is {limit}; 1 to {PAGE_EVENTS_MAX} are possible");
        let problem = Problem::new("page_events_max", detail);
        return Err(problem.limit("page_events_max", limit.into(), PAGE_EVENTS_MAX as u64));
    }
    let letters = edge.services.plugins.dead_letters(&plugin, tenant.as_ref(), limit).await?;
    let epoch = edge.services.log.epoch();
    let mut out = b"{\"dead_letters\":[".to_vec();
    for (index, letter) in letters.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_letter(&mut out, letter, &epoch.0);
    }
    out.extend_from_slice(b"]}");
    Ok(as_json(out))
}

/// One dead letter, by the position of its event.
#[utoipa::path(
    get,
    path = "/v1/plugins/{plugin}/dead-letters/{letter}",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("letter" = u64, Path, description = "The letter's number, which is its event's position"),
        ("all_tenants" = Option<bool>, Query, description = "With the right admin: also another tenant's"),
    ),
    responses((status = 200, description = "The dead letter", body = super::wire::DeadLetterView))
)]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path((plugin, letter)): Path<(String, String)>,
    mut params: Params,
) -> Result<Response, Problem> {
    let tenant = whose(&caller, &mut params)?;
    params.finish()?;
    let letter = number(&letter)?;
    let letter = edge.services.plugins.dead_letter(&plugin, tenant.as_ref(), letter).await?;
    let mut out = Vec::new();
    write_letter(&mut out, &letter, &edge.services.log.epoch().0);
    Ok(as_json(out))
}

/// Handles the event of a dead letter again, once. On success the letter is gone and its key goes on.
#[utoipa::path(
    post,
    path = "/v1/plugins/{plugin}/dead-letters/{letter}/replay",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("letter" = u64, Path, description = "The letter's number"),
        ("all_tenants" = Option<bool>, Query, description = "Also another tenant's"),
    ),
    responses((status = 200, description = "What became of it", body = super::wire::ResolvedView))
)]
pub(super) async fn replay(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path((plugin, letter)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    decide(&edge, &caller, (plugin, letter), params, Verdict::Replay).await
}

/// Gives the event of a dead letter up. The letter is gone and its key goes on.
#[utoipa::path(
    post,
    path = "/v1/plugins/{plugin}/dead-letters/{letter}/discard",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("letter" = u64, Path, description = "The letter's number"),
        ("all_tenants" = Option<bool>, Query, description = "Also another tenant's"),
    ),
    responses((status = 200, description = "What became of it", body = super::wire::ResolvedView))
)]
pub(super) async fn discard(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path((plugin, letter)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    decide(&edge, &caller, (plugin, letter), params, Verdict::Discard).await
}

/// Does what the plugin did with an event once more, in an instance of its own and from the committed state.
/// Nothing is committed. With `core_dump` the answer is the guest's memory and stack as it fell.
#[utoipa::path(
    post,
    path = "/v1/plugins/{plugin}/replay",
    tag = "plugins",
    params(
        ("plugin" = String, Path, description = "The plugin's name"),
        ("event" = String, Query, description = "The event's id or position"),
        ("core_dump" = Option<bool>, Query, description = "Answer the core dump instead of the report"),
    ),
    responses((status = 200, description = "What happened", body = super::wire::ReplayView))
)]
pub(super) async fn replay_apart(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path(plugin): Path<String>,
    mut params: Params,
) -> Result<Response, Problem> {
    let event = params.take("event")?.ok_or_else(|| params::invalid("event", "is missing"))?;
    let core_dump = flag(&mut params, "core_dump")?;
    params.finish()?;
    let request = ReplayRequest { plugin, tenant: caller.tenant.clone(), event };
    let report = edge.services.plugins.replay(request).await?;
    if !core_dump {
        return Ok(axum::Json(report_json(&report)).into_response());
    }
    match report.autopsy.core_dump {
        Some(CoreDump::Taken(bytes)) => {
            Ok(([(header::CONTENT_TYPE, "application/wasm")], bytes).into_response())
        }
        Some(CoreDump::TooLarge(bytes)) => {
            Err(Problem::new("core_dump_bytes_max", format!("the guest's memory has {bytes} bytes")))
        }
        None => Err(Problem::new(
            "core_dump_missing",
            "the guest did not fall in its own code this time".to_owned(),
        )),
    }
}

async fn decide(
    edge: &Edge,
    caller: &Caller,
    (plugin, letter): (String, String),
    mut params: Params,
    verdict: Verdict,
) -> Result<Response, Problem> {
    let tenant = whose(caller, &mut params)?;
    params.finish()?;
    let number = number(&letter)?;
    let resolved = edge.services.plugins.resolve(&plugin, tenant.as_ref(), number, verdict).await?;
    let mut said = match resolved {
        Resolved::Replayed { out_of_order, released } => {
            json!({ "outcome": "replayed", "out_of_order": out_of_order, "released": released })
        }
        Resolved::Discarded { released } => json!({ "outcome": "discarded", "released": released }),
        Resolved::FailedAgain { reason, message } => {
            json!({ "outcome": "failed_again", "reason": reason, "message": message, "blame": "guest" })
        }
    };
    said["letter"] = number.0.into();
    Ok(axum::Json(said).into_response())
}

/// The token's tenant, or with the right `admin` and `all_tenants` everybody.
fn whose(caller: &Caller, params: &mut Params) -> Result<Option<TenantId>, Problem> {
    if !flag(params, "all_tenants")? {
        return Ok(Some(caller.tenant.clone()));
    }
    if caller.may(Right::Admin) {
        return Ok(None);
    }
    Err(Problem::new("right_missing", "`all_tenants` needs the right `admin`"))
}

fn flag(params: &mut Params, name: &'static str) -> Result<bool, Problem> {
    match params.take(name)?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(params::invalid(name, "is neither true nor false")),
    }
}

fn number(letter: &str) -> Result<Position, Problem> {
    let wrong = || params::invalid("letter", "is not a dead letter's number, such as 1234");
    letter.parse().map(Position).map_err(|_| wrong())
}

fn as_json(out: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], out).into_response()
}

fn write_letter(out: &mut Vec<u8>, letter: &DeadLetterRow, epoch: &str) {
    let about = json!({
        "letter": letter.event.last_position().0,
        "tenant": letter.task.tenant.as_str(),
        "lane": letter.task.lane,
        "reason": letter.reason,
        "blame": letter.blame().as_str(),
        "message": letter.message,
        "backtrace": letter.backtrace,
        "attempts": letter.attempts,
        "held": letter.held,
        "parked_behind": letter.parked_behind,
        "state_sha256": letter.state_hash,
        "plugin_version": letter.plugin_version,
        "at": letter.at.to_string(),
    });
    let about = about.to_string();
    out.extend_from_slice(about.strip_suffix('}').unwrap_or(&about).as_bytes());
    // The event goes in as text: its payload must stay what it was.
    if !letter.event.is_empty() {
        out.extend_from_slice(b",\"event\":");
        text::write_event(out, &letter.event.get(0), epoch);
    }
    out.push(b'}');
}

fn report_json(report: &ReplayReport) -> Value {
    let autopsy = &report.autopsy;
    let mut said = json!({
        "tenant": report.task.tenant.as_str(),
        "lane": report.task.lane,
        "position": report.event.last_position().0,
        "event_id": report.event.get(0).id,
        "plugin_version": report.version,
        "state_before": report.state_before.as_ref().map(about_state),
        "core_dump": matches!(autopsy.core_dump, Some(CoreDump::Taken(_))),
        "message": "",
        "backtrace": "",
        "effects": [],
        "effects_total": 0,
    });
    match &autopsy.outcome {
        Ok(outcome) => {
            let failure = outcome.failure.as_ref();
            said["outcome"] = match failure.map(|failure| failure.kind) {
                None => "handled",
                Some(FailureKind::Retry) => "retry",
                Some(FailureKind::Reject) => "reject",
                Some(FailureKind::Fatal) => "fatal",
            }
            .into();
            said["message"] = failure.map(|failure| failure.message.as_str()).unwrap_or_default().into();
            let effects = outcome.effects.iter().take(REPLAY_EFFECTS_MAX);
            said["effects"] = effects.map(|effect| effect_json(&effect, report)).collect();
            said["effects_total"] = outcome.effects.len().into();
        }
        Err(LoadError::Trap(trap)) => {
            said["outcome"] = trap.kind.to_string().into();
            said["message"] = trap.message.clone().into();
            said["backtrace"] = trap.backtrace.clone().into();
        }
        Err(refused) => {
            said["outcome"] = "load_refused".into();
            said["message"] = refused.to_string().into();
        }
    }
    if let Some(state) = &autopsy.state {
        let content_type = autopsy.manifest.state_content_type.clone().unwrap_or_default();
        said["state_after"] = about_state(&SavedState { content_type, state: state.clone() });
    }
    said
}

fn about_state(saved: &SavedState) -> Value {
    json!({
        "content_type": saved.content_type,
        "bytes": saved.state.len(),
        "sha256": saved.hash(),
    })
}

fn effect_json(effect: &EffectRef<'_>, report: &ReplayReport) -> Value {
    let table = |index: usize| report.autopsy.manifest.tables.get(index).map(|table| table.name.as_str());
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    match effect {
        EffectRef::Put { table: index, key, version, cells } => json!({
            "kind": "put", "table": table(*index), "key": key, "version": version, "cells_base64": base64(cells),
        }),
        EffectRef::Delete { table: index, key, version } => {
            json!({ "kind": "delete", "table": table(*index), "key": key, "version": version })
        }
        EffectRef::StatePut { key, value, .. } => {
            json!({ "kind": "state-put", "key_base64": base64(key), "value_bytes": value.len() })
        }
        EffectRef::StateDelete { key } => json!({ "kind": "state-delete", "key_base64": base64(key) }),
        EffectRef::Emit(emit) => json!({
            "kind": "emit", "aggregate": emit.aggregate, "agg_id": emit.agg_id, "type": emit.event_type,
            "version": emit.version, "payload": String::from_utf8_lossy(emit.payload),
        }),
        EffectRef::Append(entry) => json!({
            "kind": "append", "process": entry.process, "channel": entry.channel, "type": entry.entry_type.as_str(),
            "inreplyto": entry.in_reply_to, "error": entry.error, "payload_base64": entry.payload.map(base64),
        }),
    }
}
