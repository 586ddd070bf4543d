//! Dead letters of groups.

use std::io::Write as _;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::json as value;

use super::views::{DecidedView, GroupLetterList, GroupLetterView};
use super::{as_json, group, json};
use crate::event::Position;
use crate::gateway::Edge;
use crate::gateway::auth::{Admin, Reader};
use crate::gateway::json as text;
use crate::gateway::params::{self, Params};
use crate::gateway::problem::Problem;
use crate::limits::PAGE_EVENTS_MAX;
use crate::streams::groups::{GroupError, GroupLetter, LetterVerdict};

/// Dead letters of one answer when the request does not say.
const LETTERS_DEFAULT: usize = 100;

/// Entries that were delivered as often as they may be, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/groups/{group}/dead-letters",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
        ("after" = Option<u64>, Query, description = "Letters behind this number: the `next` of a page"),
        ("limit" = Option<u32>, Query, description = "1 to 4096, or else 100; large letters may make it fewer"),
    ),
    responses((status = 200, description = "The dead letters", body = GroupLetterList))
)]
pub(in crate::gateway) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    mut params: Params,
) -> Result<Response, Problem> {
    let after = Position(params.number::<u64>("after")?.unwrap_or(0));
    let limit = params.number::<usize>("limit")?.unwrap_or(LETTERS_DEFAULT);
    params.finish()?;
    if limit == 0 || limit > PAGE_EVENTS_MAX {
        let detail = format!("limit is {limit}; 1 to {PAGE_EVENTS_MAX} are possible");
        let problem = Problem::new("page_events_max", detail);
        return Err(problem.limit("page_events_max", limit as u64, PAGE_EVENTS_MAX as u64));
    }
    let page = edge.services.groups.letters(&group(&edge, &caller, path)?, after, limit).await?;
    let epoch = edge.services.log.epoch();
    let mut out = b"{\"dead_letters\":[".to_vec();
    for (index, letter) in page.letters.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_letter(&mut out, letter, &epoch.0);
    }
    let next = page.letters.last().filter(|_| page.more).map(|last| last.position().0);
    write!(out, "],\"next\":{}}}", value!(next)).expect("writing to memory cannot fail");
    Ok(as_json(out))
}

/// One dead letter.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/groups/{group}/dead-letters/{letter}",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
        ("letter" = u64, Path, description = "The letter's number, which is its event's position"),
    ),
    responses((status = 200, description = "The dead letter", body = GroupLetterView))
)]
pub(in crate::gateway) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path((stream, name, letter)): Path<(String, String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (group, position) = (group(&edge, &caller, (stream, name))?, number(&letter)?);
    let after = Position(position.0.saturating_sub(1));
    let found = edge.services.groups.letters(&group, after, 1).await?.letters.pop();
    let Some(letter) = found.filter(|letter| letter.position() == position) else {
        return Err(GroupError::UnknownLetter { group, position }.into());
    };
    let mut out = Vec::new();
    write_letter(&mut out, &letter, &edge.services.log.epoch().0);
    Ok(as_json(out))
}

/// Delivers a dead letter again, its attempts counted anew. It stays one until it is acknowledged.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/dead-letters/{letter}/replay",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
        ("letter" = u64, Path, description = "The letter's number"),
    ),
    responses((status = 200, description = "It is delivered again", body = DecidedView))
)]
pub(in crate::gateway) async fn replay(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path((stream, name, letter)): Path<(String, String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (group, position) = (group(&edge, &caller, (stream, name))?, number(&letter)?);
    edge.services.groups.decide(&group, position, LetterVerdict::Replay).await?;
    Ok(json(&DecidedView { letter: position.0, outcome: "replaying".into() }))
}

/// Forgets a dead letter.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/dead-letters/{letter}/discard",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
        ("letter" = u64, Path, description = "The letter's number"),
    ),
    responses((status = 200, description = "It is gone", body = DecidedView))
)]
pub(in crate::gateway) async fn discard(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    Path((stream, name, letter)): Path<(String, String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (group, position) = (group(&edge, &caller, (stream, name))?, number(&letter)?);
    edge.services.groups.decide(&group, position, LetterVerdict::Discard).await?;
    Ok(json(&DecidedView { letter: position.0, outcome: "discarded".into() }))
}

fn number(letter: &str) -> Result<Position, Problem> {
    let wrong = || params::invalid("letter", "is not a dead letter's number, such as 1234");
    letter.parse().map(Position).map_err(|_| wrong())
}

fn write_letter(out: &mut Vec<u8>, letter: &GroupLetter, epoch: &str) {
    let about = value!({
        "letter": letter.position().0,
        "reason": letter.reason.as_str(),
        "message": letter.message,
        "attempts": letter.attempts,
        "consumer": letter.consumer,
        "at": letter.at.to_string(),
        "replaying": letter.replaying,
    });
    let about = about.to_string();
    out.extend_from_slice(about.strip_suffix('}').unwrap_or(&about).as_bytes());
    // The event goes in as text: its payload must stay what it was.
    out.extend_from_slice(b",\"event\":");
    text::write_event(out, &letter.event.get(0), epoch);
    out.push(b'}');
}
