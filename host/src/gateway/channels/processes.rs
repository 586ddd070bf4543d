//! Processes: making, listing, assigning, closing and removing them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::views::{
    ADMIN, AssignRequest, ChannelDescription, CloseRequest, ObserversRequest, ProcessDescription,
    ProcessList, ProcessRequest, option, outcome, parties, role_in, role_of,
};
use super::who::Asker;
use super::{json, process_id, read_json, required_json};
use crate::channels::{
    Actor, Change, ChannelError, ChannelId, NewProcess, Party, Process, ProcessId, ProcessName, ProcessView,
};
use crate::gateway::Edge;
use crate::gateway::auth::{Caller, Publisher, Reader, Somebody};
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;
use crate::limits::{PROCESS_LIST_DEFAULT, PROCESS_LIST_LOOKS_MAX, PROCESS_LIST_MAX, PROCESS_LIST_READS_MAX};

/// The processes that the caller may see: with `admin` all of the tenant's, else those that it submits, executes or
/// observes.
///
/// A page looks at a bounded number of the tenant's processes, so it may have few or none and a next one all the same:
/// the list is over where `next` is null.
#[utoipa::path(
    get,
    path = "/v1/processes",
    tag = "channels",
    params(
        ("after" = Option<String>, Query, description = "A process's name, such as the `next` of a page: go on after it"),
        ("limit" = Option<u32>, Query, description = "1 to 1000, or else 100"),
        ("as" = Option<String>, Query, description = "With `admin`: as this party would see it"),
    ),
    responses((status = 200, description = "Processes, by name", body = ProcessList))
)]
pub(in crate::gateway) async fn list(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    mut params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::take(caller, &mut params)?;
    let mut after = params.take("after")?.map(|name| ProcessName::new(&name)).transpose()?;
    let limit = params.number::<usize>("limit")?.unwrap_or(PROCESS_LIST_DEFAULT);
    params.finish()?;
    if !(1..=PROCESS_LIST_MAX).contains(&limit) {
        let possible = format!("1 to {PROCESS_LIST_MAX} are possible");
        return Err(option("limit", &limit.to_string(), &possible).into());
    }
    let by = asker.actor()?;
    let tenant = &asker.caller.tenant;
    let chunk = limit.max(PROCESS_LIST_DEFAULT);
    let (mut processes, mut looked, mut read) = (Vec::new(), 0, 0);
    while looked < PROCESS_LIST_LOOKS_MAX {
        let found = edge.services.channels.processes(tenant, after.as_ref(), chunk).await?;
        let last = found.len() < chunk;
        for process in found {
            if processes.len() == limit || read == PROCESS_LIST_READS_MAX {
                return Ok(page(processes, after.as_ref()));
            }
            looked += 1;
            let role = match role_on_record(&process, &by) {
                None => {
                    read += 1;
                    role_in_channels(&edge, &asker.caller, &process, &by).await?
                }
                role => role,
            };
            processes.extend(role.map(|role| ProcessDescription::of(&process, role)));
            after = Some(process.name.clone());
        }
        if last {
            return Ok(page(processes, None));
        }
    }
    Ok(page(processes, after.as_ref()))
}

fn page(processes: Vec<ProcessDescription>, next: Option<&ProcessName>) -> Response {
    json(StatusCode::OK, &ProcessList { processes, next: next.map(ProcessName::to_string) })
}

/// What somebody is to a process as its own record says.
fn role_on_record(process: &Process, by: &Actor) -> Option<&'static str> {
    match by {
        Actor::Host => Some(ADMIN),
        Actor::Party(party) => role_in(process, party),
    }
}

/// The same of who is not there: it may execute one of the channels. None for whom the process does not concern.
async fn role_in_channels(
    edge: &Edge,
    caller: &Caller,
    process: &Process,
    by: &Actor,
) -> Result<Option<&'static str>, Problem> {
    let id = ProcessId { tenant: caller.tenant.clone(), name: process.name.clone() };
    match edge.services.channels.process_for(&id, by).await {
        Ok(view) => Ok(Some(role_of(&view, by))),
        Err(ChannelError::Forbidden { .. } | ChannelError::ProcessUnknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a process, with its channels. The same request again answers what is there; what is left out is not compared.
#[utoipa::path(
    put,
    path = "/v1/processes/{process}",
    tag = "channels",
    params(
        ("process" = String, Path, description = "1 to 128 letters, digits, `.`, `:` and `-`"),
        ("as" = Option<String>, Query, description = "With `admin`: who submits it"),
    ),
    request_body(content = ProcessRequest, description = "May be left out"),
    responses(
        (status = 200, description = "It was there", body = ProcessDescription),
        (status = 201, description = "It is new", body = ProcessDescription),
    )
)]
pub(in crate::gateway) async fn ensure(
    State(edge): State<Arc<Edge>>,
    Publisher(caller): Publisher,
    Path(process): Path<String>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::alone(caller, params)?;
    let id = process_id(&asker.caller, &process)?;
    let submitter = asker.party()?;
    let asked: ProcessRequest = read_json(&edge, &headers, body).await?.unwrap_or_default();
    let router = &edge.services.channels;
    let channels = asked.channels.iter().map(|channel| channel.channel(router.limits()));
    let new = NewProcess {
        id: id.clone(),
        submitter: submitter.clone(),
        executor: asked.executor.as_deref().map(Party::new).transpose()?,
        observers: asked.observers()?.unwrap_or_default(),
        channels: channels.collect::<Result<_, _>>()?,
    };
    let by = Actor::Party(submitter);
    let (view, created) = match router.create_process(new).await {
        // The defaults that stand in for what it leaves out may have been others when the process was made.
        Err(refused @ ChannelError::ProcessExists { .. }) => match router.process(&id).await {
            Ok(view) if asked.is_met(&view, &by)? => (view, false),
            Ok(_) | Err(ChannelError::ProcessUnknown { .. }) => return Err(refused.into()),
            Err(error) => return Err(error.into()),
        },
        made => made?,
    };
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(code, &describe(&edge, &asker.caller, &view, &by)))
}

/// A process with its channels.
#[utoipa::path(
    get,
    path = "/v1/processes/{process}",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: as this party would see it"),
    ),
    responses((status = 200, description = "The process", body = ProcessDescription))
)]
pub(in crate::gateway) async fn show(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(process): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::alone(caller, params)?;
    let id = process_id(&asker.caller, &process)?;
    let by = asker.actor()?;
    let view = edge.services.channels.process_for(&id, &by).await?;
    Ok(json(StatusCode::OK, &describe(&edge, &asker.caller, &view, &by)))
}

/// Removes a process at once, with all that lies in its channels. Whoever follows them is told. For its submitter.
#[utoipa::path(
    delete,
    path = "/v1/processes/{process}",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    responses((status = 204, description = "It is gone"))
)]
pub(in crate::gateway) async fn remove(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(process): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    let id = process_id(&asker.caller, &process)?;
    edge.services.channels.remove_process(&id, &asker.actor()?).await?;
    tracing::info!(by = %asker.caller.name, process = %id, tenant = %id.tenant, "process removed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Says who reads a process without taking part. For its submitter.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/observers",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body = ObserversRequest,
    responses((status = 200, description = "The process", body = ProcessDescription))
)]
pub(in crate::gateway) async fn observe(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(process): Path<String>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    let ObserversRequest { observers } = required_json(&edge, &headers, body).await?;
    change(&edge, &asker, &process, Change::Observe(parties(&observers)?)).await
}

/// Gives a process with all of its channels to an executor, in a new epoch. For its submitter.
///
/// Whoever executed it before may neither read nor append any more, also where it is the same party: what it still does
/// belongs to the former epoch. An executor begins with sequence 1 in each epoch.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/assign",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body = AssignRequest,
    responses((status = 200, description = "The process", body = ProcessDescription))
)]
pub(in crate::gateway) async fn assign(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(process): Path<String>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    let AssignRequest { executor } = required_json(&edge, &headers, body).await?;
    change(&edge, &asker, &process, Change::Assign(Party::new(&executor)?)).await
}

/// Takes a process from its executor. For its submitter, and for the executor itself.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/unassign",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    responses((status = 200, description = "The process", body = ProcessDescription))
)]
pub(in crate::gateway) async fn unassign(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(process): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    change(&edge, &asker, &process, Change::Unassign).await
}

/// Closes a process: nothing more is appended, and whoever follows its channels is told how it ended. They can be read
/// for some time (`channels.channel_keep_ms`). Closing again changes nothing. For its submitter and its executor.
#[utoipa::path(
    post,
    path = "/v1/processes/{process}/close",
    tag = "channels",
    params(
        ("process" = String, Path, description = "The process's name"),
        ("as" = Option<String>, Query, description = "With `admin`: in the name of this party"),
    ),
    request_body = CloseRequest,
    responses((status = 200, description = "The process, with how it ended first", body = ProcessDescription))
)]
pub(in crate::gateway) async fn close(
    State(edge): State<Arc<Edge>>,
    Somebody(caller): Somebody,
    Path(process): Path<String>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    let asker = Asker::to_change(caller, params)?;
    let CloseRequest { outcome: asked, reason } = required_json(&edge, &headers, body).await?;
    change(&edge, &asker, &process, Change::Close { outcome: outcome(&asked)?, reason }).await
}

async fn change(edge: &Edge, asker: &Asker, process: &str, change: Change) -> Result<Response, Problem> {
    let id = process_id(&asker.caller, process)?;
    let by = asker.actor()?;
    let view = edge.services.channels.change(&id, by.clone(), change).await?;
    Ok(json(StatusCode::OK, &describe(edge, &asker.caller, &view, &by)))
}

fn describe(edge: &Edge, caller: &Caller, view: &ProcessView, by: &Actor) -> ProcessDescription {
    let channels = view.channels.iter().filter_map(|channel| {
        let head = view.head(&channel.name).ok()?;
        let process = ProcessId { tenant: caller.tenant.clone(), name: view.process.name.clone() };
        let id = ChannelId { process, name: channel.name.clone() };
        Some(ChannelDescription::of(&head, by, edge.services.channels.subscriber_count(&id)))
    });
    ProcessDescription {
        channels: Some(channels.collect()),
        ..ProcessDescription::of(&view.process, role_of(view, by))
    }
}
