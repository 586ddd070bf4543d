//! `/v1/sources…`: what brings foreign events in, and how it is doing. It needs the right `admin`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::auth::Admin;
use super::params::Params;
use super::problem::Problem;
use crate::processors::source::{SourceHandle, SourceLetter, SourceState};

/// A source.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceView {
    name: String,
    /// Whose events its events become.
    tenant: String,
    /// `connecting`, `replay`, `live`, `waiting`, `failed` or `stopped`.
    #[schema(value_type = String)]
    state: SourceState,
    /// Since when, RFC 3339.
    since: String,
    /// Up to where events are handled, in the server's words.
    cursor: Option<String>,
    events: u64,
    /// Events that came more than once.
    repeated: u64,
    /// Foreign events that cannot become ours.
    letters: u64,
    /// Checkpoints that were put.
    puts: u64,
    reconnects: u64,
    last_error: Option<SourceErrorView>,
}

/// What went wrong last.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceErrorView {
    code: &'static str,
    message: String,
}

/// All sources.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourcesView {
    sources: Vec<SourceView>,
}

/// A source with its newest letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceDetailView {
    #[serde(flatten)]
    source: SourceView,
    dead_letters: Vec<SourceLetterView>,
}

/// A foreign event that is none of ours, and why.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceLetterView {
    cursor: Option<String>,
    kind: String,
    event: String,
    reason: String,
    /// The beginning of its data.
    data: String,
    bytes: usize,
    at: String,
}

impl From<&SourceHandle> for SourceView {
    fn from(source: &SourceHandle) -> Self {
        let status = source.progress.now();
        Self {
            name: source.name.clone(),
            tenant: source.tenant.to_string(),
            state: status.state,
            since: status.since.to_string(),
            cursor: status.cursor,
            events: status.events,
            repeated: status.repeated,
            letters: status.letters,
            puts: status.puts,
            reconnects: status.reconnects,
            last_error: status.last_error.map(|(code, message)| SourceErrorView { code, message }),
        }
    }
}

impl From<SourceLetter> for SourceLetterView {
    fn from(letter: SourceLetter) -> Self {
        let SourceLetter { cursor, kind, event, reason, data, bytes, at } = letter;
        Self { cursor, kind, event, reason, data, bytes, at: at.to_string() }
    }
}

/// What brings foreign events in, and how it is doing.
#[utoipa::path(get, path = "/v1/sources", tag = "sources",
    responses((status = 200, description = "All of them", body = SourcesView)))]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let sources = edge.services.sources.iter().map(SourceView::from).collect();
    Ok(axum::Json(SourcesView { sources }).into_response())
}

/// One source, with the newest foreign events that could not become ours.
#[utoipa::path(get, path = "/v1/sources/{source}", tag = "sources",
    params(("source" = String, Path, description = "The source's name, such as `grpc`")),
    responses((status = 200, description = "The source", body = SourceDetailView)))]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let found = edge.services.sources.iter().find(|source| source.name == name);
    let source = found.ok_or_else(|| {
        let known: Vec<&str> = edge.services.sources.iter().map(|source| source.name.as_str()).collect();
        Problem::new(
            "source_unknown",
            format!("there is no source `{name}`; there are: {}", known.join(", ")),
        )
    })?;
    let dead_letters = source.letters.list().into_iter().map(SourceLetterView::from).collect();
    Ok(axum::Json(SourceDetailView { source: source.into(), dead_letters }).into_response())
}
