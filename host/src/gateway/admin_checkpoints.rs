//! `/v1/admin/checkpoints/{client}`: the checkpoints that clients elsewhere keep here, and the rules for them, which hold over
//! gRPC, too.
//!
//! They need the right `admin`. A static token with a name is a client of that name: another client's checkpoint is not
//! told from a missing one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Edge;
use super::auth::{Caller, Right, Somebody};
use super::body::{BodyLimit, BodyReader};
use super::params::Params;
use super::problem::Problem;
use crate::checkpoints::{
    ClientCheckpoint, ClientCheckpointError, ClientId, ClientValue, NewClientCheckpoint,
};
use crate::limits::{
    CLIENT_CHECKPOINT_BYTES_MAX, CLIENT_CHECKPOINT_EXTRA_BYTES, CLIENT_CHECKPOINTS_MAX, CLIENT_NAME_BYTES_MAX,
};

/// What a client keeps here.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientCheckpointView {
    client_id: String,
    content_type: String,
    /// Any JSON. Numbers are as they were written, unless the value came over gRPC, where they are doubles.
    #[schema(value_type = Object)]
    value: Box<RawValue>,
    /// RFC 3339.
    updated_at: String,
}

/// What a client wants to keep.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClientCheckpointRequest {
    #[serde(default)]
    content_type: String,
    /// Any JSON; null is a value.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Object)]
    value: Option<Box<RawValue>>,
}

/// Null is a value, and a missing member is none.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// A client's checkpoint.
#[utoipa::path(get, path = "/v1/admin/checkpoints/{client}", tag = "checkpoints",
    params(("client" = String, Path, description = "The client's name")),
    responses((status = 200, description = "The checkpoint", body = ClientCheckpointView)))]
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(client): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    view(get(&edge, &caller, &client).await?)
}

/// Keeps a client's checkpoint in place of what there was. It is durable when the answer is there.
#[utoipa::path(put, path = "/v1/admin/checkpoints/{client}", tag = "checkpoints",
    params(("client" = String, Path, description = "The client's name")),
    request_body(content = ClientCheckpointRequest),
    responses((status = 200, description = "What is kept now", body = ClientCheckpointView)))]
pub(super) async fn replace(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(client): Path<String>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let client = own(&caller, &client)?;
    let bytes = (CLIENT_CHECKPOINT_BYTES_MAX + CLIENT_CHECKPOINT_EXTRA_BYTES) as u64;
    let limit = BodyLimit { name: "client_checkpoint_bytes_max", bytes };
    let body = BodyReader::new(&headers, body, edge.options.body_idle_max, limit)?.whole().await?;
    // A list would do for serde as well, without the names.
    if !body.trim_ascii().starts_with(b"{") {
        return Err(Problem::new("json_malformed", "the body is not a JSON object"));
    }
    let asked: ClientCheckpointRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::new("json_malformed", format!("the body: {error}")))?;
    let Some(value) = asked.value else {
        return Err(Problem::new("json_malformed", "the body has no `value`; null is one"));
    };
    let value = ClientValue::Json(value.get().to_owned());
    view(put(&edge, &caller, &client, &asked.content_type, value).await?)
}

/// What is kept of a client, for who may see it.
pub(super) async fn get(edge: &Edge, caller: &Caller, client: &str) -> Result<ClientCheckpoint, Problem> {
    let client = own(caller, client)?;
    edge.services.clients.get(&caller.tenant, &client).await?.ok_or_else(missing)
}

/// Keeps something for a client that [`own`] has let through.
pub(super) async fn put(
    edge: &Edge,
    caller: &Caller,
    client: &ClientId,
    content_type: &str,
    value: ClientValue,
) -> Result<ClientCheckpoint, Problem> {
    let content_type = content_type.trim();
    if content_type.is_empty() || content_type.len() > CLIENT_NAME_BYTES_MAX {
        let detail = format!("contentType is required; it has 1 to {CLIENT_NAME_BYTES_MAX} bytes");
        return Err(Problem::new("content_type_missing", detail));
    }
    let put = NewClientCheckpoint { content_type: content_type.to_owned(), value };
    Ok(edge.services.clients.put(&caller.tenant, client, put).await?)
}

/// The client, where it is the caller's own or the caller is none itself.
pub(super) fn own(caller: &Caller, client: &str) -> Result<ClientId, Problem> {
    caller.needs(Right::Admin)?;
    let client = ClientId::new(client).ok_or_else(|| {
        let detail = format!("client_id is required; it has 1 to {CLIENT_NAME_BYTES_MAX} bytes");
        Problem::new("client_id_invalid", detail)
    })?;
    match caller.client() {
        Some(own) if own != client.as_str() => Err(missing()),
        _ => Ok(client),
    }
}

fn missing() -> Problem {
    Problem::new("checkpoint_not_found", "checkpoint not found")
}

fn view(kept: ClientCheckpoint) -> Result<Response, Problem> {
    let damaged = || Problem::new("checkpoint_unreadable", "the value that is kept is no JSON");
    let value = match kept.value {
        ClientValue::Json(text) => text,
        ClientValue::Proto(bytes) => as_json(&bytes).ok_or_else(damaged)?,
    };
    let view = ClientCheckpointView {
        client_id: kept.client.to_string(),
        content_type: kept.content_type,
        value: RawValue::from_string(value).map_err(|_| damaged())?,
        updated_at: kept.updated_at.to_string(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], axum::Json(view)).into_response())
}

#[cfg(feature = "grpc")]
fn as_json(value: &[u8]) -> Option<String> {
    use prost::Message as _;
    Some(crate::memory_v1::Value::decode(value).ok()?.to_json().to_string())
}

#[cfg(not(feature = "grpc"))]
fn as_json(_: &[u8]) -> Option<String> {
    None
}

impl From<ClientCheckpointError> for Problem {
    fn from(error: ClientCheckpointError) -> Self {
        match error {
            ClientCheckpointError::Backend(inner) => inner.into(),
            ClientCheckpointError::TooLarge { bytes } => Self::classified(&error).limit(
                "client_checkpoint_bytes_max",
                bytes as u64,
                CLIENT_CHECKPOINT_BYTES_MAX as u64,
            ),
            ClientCheckpointError::TooMany => {
                let max = CLIENT_CHECKPOINTS_MAX as u64;
                Self::classified(&error).limit("client_checkpoints_max", max + 1, max)
            }
            ClientCheckpointError::Unreadable { .. } | ClientCheckpointError::NotShared => {
                Self::classified(&error)
            }
        }
    }
}
