//! `/v1/artifacts…`: what a fleet runs, by its content. All of it needs the right `admin`: snapshots and settings may hold
//! what only operators should see.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Edge;
use super::auth::Admin;
use super::body::{BodyLimit, BodyReader};
use super::params::{self, Params};
use super::problem::Problem;
use crate::control::{
    ArtifactInfo, BuildSignature, ByteStream, ControlFeedError, attach_signatures, build_signatures, sized,
};
use crate::event::Micros;
use crate::limits::{
    ARTIFACT_COLLECT_AGE, ARTIFACT_PAGE_DEFAULT, ARTIFACT_PAGE_MAX, ARTIFACT_SIGNATURES_BYTES_MAX,
};

/// What is known of an artifact.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct ArtifactView {
    /// `sha256:` and 64 lower-case hexadecimal digits.
    digest: String,
    bytes: u64,
    /// When it was put last, RFC 3339.
    stored_at: String,
    /// Who keeps it from being collected.
    pins: Vec<String>,
}

/// A page of artifacts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ArtifactPage {
    artifacts: Vec<ArtifactView>,
    /// `after` of the next page; none at the end.
    next: Option<String>,
}

/// What was collected.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CollectedView {
    /// Nothing was removed: this is what would go.
    dry_run: bool,
    bytes: u64,
    artifacts: Vec<ArtifactView>,
}

/// Build signatures beside an artifact.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignatureList {
    signatures: Vec<BuildSignature>,
}

impl From<ArtifactInfo> for ArtifactView {
    fn from(ArtifactInfo { digest, bytes, stored_at, pins }: ArtifactInfo) -> Self {
        Self { digest, bytes, stored_at: Micros(stored_at).to_string(), pins }
    }
}

/// All artifacts, in the order of their digests.
#[utoipa::path(
    get,
    path = "/v1/artifacts",
    tag = "artifacts",
    params(
        ("after" = Option<String>, Query, description = "Go on where a page ended: its `next`"),
        ("limit" = Option<usize>, Query, description = "1 to 1000, or else 100"),
    ),
    responses((status = 200, description = "A page", body = ArtifactPage))
)]
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    mut params: Params,
) -> Result<Response, Problem> {
    let after = params.take("after")?;
    let limit = params.number::<usize>("limit")?.unwrap_or(ARTIFACT_PAGE_DEFAULT);
    params.finish()?;
    if !(1..=ARTIFACT_PAGE_MAX).contains(&limit) {
        return Err(params::invalid("limit", format!("is {limit}; it is 1 to {ARTIFACT_PAGE_MAX}")));
    }
    let found = edge.services.artifacts.list(after.as_deref(), limit).await?;
    let next = (found.len() == limit).then(|| found.last().map(|info| info.digest.clone())).flatten();
    let artifacts = found.into_iter().map(ArtifactView::from).collect();
    Ok(axum::Json(ArtifactPage { artifacts, next }).into_response())
}

/// Stores an artifact, unless it is there.
///
/// The body is the content, of any type. Nothing of it is kept unless all came and it has this digest.
#[utoipa::path(
    put,
    path = "/v1/artifacts/{digest}",
    tag = "artifacts",
    params(("digest" = String, Path, description = "`sha256:` and 64 lower-case hexadecimal digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It is stored, durably", body = ArtifactView))
)]
pub(super) async fn put(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(digest): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    crate::control::check_digest(&digest)?;
    let (parts, body) = request.into_parts();
    let bytes_max = edge.options.artifact_bytes_max;
    let limit = BodyLimit { name: "artifact_bytes_max", bytes: bytes_max };
    let body = BodyReader::new(&parts.headers, body, edge.options.body_idle_max, limit)?;
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let broken = Broken::default();
    let mut content = incoming(body, broken.clone());
    if let Some(length) = length.and_then(|text| text.parse().ok()) {
        content = sized(length, content);
    }
    let stored = edge.services.artifacts.put(content, Some(&digest), bytes_max).await;
    let stored = stored.map_err(|error| broken.take().unwrap_or_else(|| error.into()))?;
    Ok(axum::Json(ArtifactView::from(stored)).into_response())
}

/// What went wrong with a body while somebody else read it.
#[derive(Clone, Debug, Default)]
struct Broken(Arc<Mutex<Option<Problem>>>);

impl Broken {
    fn set(&self, problem: Problem) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }

    fn take(&self) -> Option<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body as content. Its problem is kept for the answer.
fn incoming(body: BodyReader, broken: Broken) -> ByteStream<'static> {
    unfold(Some(body), move |body| {
        let broken = broken.clone();
        async move {
            let mut body = body?;
            match body.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                Ok(None) => None,
                Err(problem) => {
                    let detail = problem.detail().to_owned();
                    broken.set(problem);
                    Some((Err(ControlFeedError::ArtifactBroken { detail }), None))
                }
            }
        }
    })
    .boxed()
}

/// An artifact's content. With HEAD: whether it is there.
///
/// It is checked while it is sent: where it is damaged, the answer breaks off before its end.
#[utoipa::path(
    get,
    path = "/v1/artifacts/{digest}",
    tag = "artifacts",
    params(("digest" = String, Path, description = "`sha256:` and 64 lower-case hexadecimal digits")),
    responses((status = 200, description = "The content", body = Vec<u8>, content_type = "application/octet-stream"))
)]
pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(digest): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (info, content) = edge.services.artifacts.get(&digest).await?;
    let content = content.inspect(|piece| {
        if let Err(error) = piece {
            use crate::error::Classify as _;
            tracing::error!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "an artifact could not be sent to its end");
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, info.bytes.to_string()),
        (header::ETAG, format!("\"{}\"", info.digest)),
        (header::CACHE_CONTROL, "private, no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(content)).into_response())
}

/// Keeps an artifact from being collected, under a name.
#[utoipa::path(
    put,
    path = "/v1/artifacts/{digest}/pins/{name}",
    tag = "artifacts",
    params(
        ("digest" = String, Path, description = "The artifact"),
        ("name" = String, Path, description = "Whose pin it is: 1 to 128 letters, digits, `.`, `_`, `-` and `:`"),
    ),
    responses((status = 204, description = "It stays until it is unpinned under this name"))
)]
pub(super) async fn pin(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path((digest, name)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    edge.services.artifacts.pin(&digest, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Takes a pin away. What is not pinned is fine.
#[utoipa::path(
    delete,
    path = "/v1/artifacts/{digest}/pins/{name}",
    tag = "artifacts",
    params(
        ("digest" = String, Path, description = "The artifact"),
        ("name" = String, Path, description = "Whose pin it is"),
    ),
    responses((status = 204, description = "It is not pinned under this name"))
)]
pub(super) async fn unpin(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path((digest, name)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    edge.services.artifacts.unpin(&digest, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The build signatures beside an artifact.
#[utoipa::path(
    get,
    path = "/v1/artifacts/{digest}/signatures",
    tag = "artifacts",
    params(("digest" = String, Path, description = "The artifact")),
    responses((status = 200, description = "The signatures; hosts say which they believe", body = SignatureList))
)]
pub(super) async fn signatures(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(digest): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let signatures = build_signatures(&*edge.services.artifacts, &digest).await?;
    Ok(axum::Json(SignatureList { signatures }).into_response())
}

/// Adds build signatures to those beside an artifact.
///
/// Each says of which plugin the content is a build. They are not verified here: each host does that before it runs anything.
#[utoipa::path(
    put,
    path = "/v1/artifacts/{digest}/signatures",
    tag = "artifacts",
    params(("digest" = String, Path, description = "The artifact")),
    request_body = SignatureList,
    responses((status = 200, description = "All that are there now", body = SignatureList))
)]
pub(super) async fn sign(
    State(edge): State<Arc<Edge>>,
    Admin(_): Admin,
    Path(digest): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    params.finish()?;
    let (parts, body) = request.into_parts();
    let limit = BodyLimit { name: "artifact_signatures_bytes_max", bytes: ARTIFACT_SIGNATURES_BYTES_MAX };
    let body = BodyReader::new(&parts.headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    let asked: SignatureList = serde_json::from_slice(&body).map_err(|error| {
        Problem::new("artifact_signature_invalid", format!("the body is not a list of signatures: {error}"))
    })?;
    let artifacts = &*edge.services.artifacts;
    attach_signatures(artifacts, &digest, &asked.signatures).await?;
    let signatures = build_signatures(artifacts, &digest).await?;
    Ok(axum::Json(SignatureList { signatures }).into_response())
}

/// Removes artifacts that nobody pins.
#[utoipa::path(
    post,
    path = "/v1/artifacts/collect",
    tag = "artifacts",
    params(
        ("older_than" = Option<u64>, Query, description = "Seconds since they were put last; 30 days where it is not said"),
        ("dry_run" = Option<bool>, Query, description = "Remove nothing, and say what would go"),
    ),
    responses((status = 200, description = "What went", body = CollectedView))
)]
pub(super) async fn collect(
    State(edge): State<Arc<Edge>>,
    Admin(caller): Admin,
    mut params: Params,
) -> Result<Response, Problem> {
    let older_than = params.number::<u64>("older_than")?.map_or(ARTIFACT_COLLECT_AGE, Duration::from_secs);
    let dry_run = match params.take("dry_run")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(params::invalid("dry_run", "is neither true nor false")),
    };
    params.finish()?;
    let gone = edge.services.artifacts.collect(older_than, dry_run).await?;
    if !dry_run && !gone.is_empty() {
        tracing::info!(artifacts = gone.len(), by = &*caller.name, "artifacts that nobody pins were removed");
    }
    let bytes = gone.iter().map(|info| info.bytes).sum();
    let artifacts = gone.into_iter().map(ArtifactView::from).collect();
    Ok(axum::Json(CollectedView { dry_run, bytes, artifacts }).into_response())
}
