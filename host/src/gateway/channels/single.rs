//! One channel: making, describing and assigning it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::views::{ChannelAssignRequest, ChannelDescription, ChannelRequest};
use super::who::Asker;
use super::{channel_id, json, read_json, required_json};
use crate::channels::{Actor, Change, ChannelError, ChannelId, Head, NewChannel, Party, may_see};
use crate::gateway::Edge;
use crate::gateway::auth::{Publisher, Reader, Somebody};
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;

/// Makes a channel in a process. The same request again answers what is there; options that are left out are not
/// compared. For the process's submitter.
#[utoipa::path(
    put,
    path = "/v1/processes/{process}/channels/{channel}",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("channel" = String, Path, description = "1 to 64 letters, digits, `.`, `_` and `-`"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body(content = ChannelRequest, description = "May be left out"),
    responses(
        (status = 200, description = "It was there", body = ChannelDescription),
        (status = 201, description = "It is new", body = ChannelDescription),
    )
)]
pub(in crate::gateway) async fn ensure(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::alone(caller, params)?;
    let id = channel_id(&asker.caller, &path)?;
    let asked: ChannelRequest = read_json(&edge, &headers, body).await?.unwrap_or_default();
    let router = &edge.services.channels;
    let options = asked.options(router.limits())?;
    let by = asker.actor()?;
    let channel = NewChannel { name: id.name.clone(), options };
    let made = router.change(&id.process, by.clone(), Change::AddChannel { channel, exists_ok: false }).await;
    let refused = match made {
        Ok(view) => {
            let head = view.head(&id.name)?;
            return Ok(json(StatusCode::CREATED, &describe(&edge, &id, &head, &by)));
        }
        // Both are answered to who may make channels here; the channel may be there nevertheless.
        Err(error @ (ChannelError::Exists { .. } | ChannelError::ProcessClosed { .. })) => error,
        Err(error) => return Err(error.into()),
    };
    match router.get_by_process_and_name(&id.process, &id.name).await {
        Ok(head) if asked.is_met(&head.channel.options)? => {
            Ok(json(StatusCode::OK, &describe(&edge, &id, &head, &by)))
        }
        Ok(_) => Err(ChannelError::Exists { channel: id.name.to_string() }.into()),
        Err(ChannelError::Unknown { .. }) => Err(refused.into()),
        Err(error) => Err(error.into()),
    }
}

/// A channel: what it holds, and who has sent how much, so that a sender that starts again knows where to go on.
#[utoipa::path(
    get,
    path = "/v1/processes/{process}/channels/{channel}",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("channel" = String, Path, description = "The channel's name"),
        ("as" = Option<String>, Query, description = "With `admin`: as this party would see it"),
    ),
    responses((status = 200, description = "The channel", body = ChannelDescription))
)]
pub(in crate::gateway) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::alone(caller, params)?;
    let id = channel_id(&asker.caller, &path)?;
    let by = asker.actor()?;
    let head = readable(&edge, &id, &by).await?;
    Ok(json(StatusCode::OK, &describe(&edge, &id, &head, &by)))
}

/// Gives one channel to an executor in a new epoch, or takes it. For the process's submitter.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/channels/{channel}/assign",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("channel" = String, Path, description = "The channel's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body = ChannelAssignRequest,
    responses((status = 200, description = "The channel", body = ChannelDescription))
)]
pub(in crate::gateway) async fn assign(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    let id = channel_id(&asker.caller, &path)?;
    let ChannelAssignRequest { executor } = required_json(&edge, &headers, body).await?;
    let executor = executor.map(|name| Party::new(&name)).transpose()?;
    let by = asker.actor()?;
    let change = Change::AssignChannel { channel: id.name.clone(), executor };
    let view = edge.services.channels.change(&id.process, by.clone(), change).await?;
    Ok(json(StatusCode::OK, &describe(&edge, &id, &view.head(&id.name)?, &by)))
}

/// A channel as it is now, for who may read it.
pub(super) async fn readable(edge: &Edge, id: &ChannelId, by: &Actor) -> Result<Head, Problem> {
    let head = edge.services.channels.get_by_process_and_name(&id.process, &id.name).await?;
    may_see(&head, by)?;
    Ok(head)
}

fn describe(edge: &Edge, id: &ChannelId, head: &Head, by: &Actor) -> ChannelDescription {
    let subscribers = edge.services.channels.subscriber_count(id);
    ChannelDescription::of(head, by, subscribers).with_senders(&head.channel)
}
