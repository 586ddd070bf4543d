//! What a consumer does: read, acknowledge, refuse, renew.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::views::{
    AckRequest, ConsumerList, EntryList, NackRequest, ReadRequest, RenewRequest, SettledList, SettledView,
};
use super::{as_json, group, json, read_body, required, told};
use crate::gateway::Edge;
use crate::gateway::auth::{Caller, Reader};
use crate::gateway::json as text;
use crate::gateway::params::Params;
use crate::gateway::problem::Problem;
use crate::limits::{GROUP_READ_BYTES_MAX, GROUP_READ_EVENTS_DEFAULT};
use crate::streams::groups::{ConsumerName, Deliveries, GroupRead, Receipt, Refusal, Settle, Settled};

/// Leases entries to a consumer, the oldest first; with `wait_ms`, waits for one where there is none.
///
/// Of each key (aggregate and aggregate id) one entry is out at a time. An entry that is not acknowledged before its
/// `deadline` is delivered again, to whoever reads.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/read",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    request_body = ReadRequest,
    responses((status = 200, description = "Entries; none where none came in time", body = EntryList))
)]
pub(in crate::gateway) async fn read(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let group = group(&edge, &caller, path)?;
    let wanted: ReadRequest = required(read_body(&edge, &headers, body).await?)?;
    let read = GroupRead {
        consumer: ConsumerName::new(&wanted.consumer)?,
        events: wanted.limit.unwrap_or(GROUP_READ_EVENTS_DEFAULT),
        bytes: wanted.bytes.unwrap_or(GROUP_READ_BYTES_MAX),
        wait: Duration::from_millis(wanted.wait_ms.unwrap_or(0)),
    };
    let stopping = edge.stopping.clone();
    // What is dropped here has leased nothing: a read does not wait between leasing and answering.
    let read = tokio::select! {
        biased;
        read = edge.services.groups.read(&group, read) => read,
        problem = caller.valid.ended() => return Err(problem),
        () = stopping.cancelled() => {
            return Err(Problem::new("host_stopping", "the host is stopping; nothing was delivered"));
        }
    };
    // Not before: the log may have begun anew while the read waited.
    let epoch = edge.services.log.epoch();
    let read = read.map_err(|error| told(error, &epoch))?;
    Ok(as_json(write_entries(&read, &epoch.0)))
}

fn write_entries(read: &Deliveries, epoch: &str) -> Vec<u8> {
    let bytes: usize = read.entries.iter().map(|entry| entry.event.bytes() + 384).sum();
    let mut out = Vec::with_capacity(bytes + 64);
    out.extend_from_slice(b"{\"entries\":[");
    for (index, entry) in read.entries.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write!(
            out,
            "{{\"receipt\":\"{}\",\"attempt\":{},\"deadline\":\"{}\",\"replayed\":{},\"event\":",
            entry.receipt, entry.attempt, entry.deadline, entry.replayed
        )
        .expect("writing to memory cannot fail");
        text::write_event(&mut out, &entry.event.get(0), epoch);
        out.push(b'}');
    }
    write!(out, "],\"lost_events\":{}}}", read.lost_events).expect("writing to memory cannot fail");
    out
}

/// Says that entries are done. Answered when that is durable; saying it again changes nothing.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/ack",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    request_body = AckRequest,
    responses((status = 200, description = "What became of each", body = SettledList))
)]
pub(in crate::gateway) async fn ack(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let AckRequest { receipts } = required(read_body(&edge, &headers, body).await?)?;
    settle(&edge, &caller, path, &receipts, Settle::Ack).await
}

/// Says that entries failed: they are delivered again later, or become dead letters. What follows on their keys waits.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/nack",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    request_body = NackRequest,
    responses((status = 200, description = "What became of each", body = SettledList))
)]
pub(in crate::gateway) async fn nack(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let NackRequest { receipts, delay_ms, reason } = required(read_body(&edge, &headers, body).await?)?;
    let nack = |receipt| Settle::Nack { receipt, delay_ms, reason: reason.clone() };
    settle(&edge, &caller, path, &receipts, nack).await
}

/// Keeps entries for longer. One whose lease has ended cannot be kept.
#[utoipa::path(
    post,
    path = "/v1/streams/{stream}/groups/{group}/renew",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    request_body = RenewRequest,
    responses((status = 200, description = "What became of each", body = SettledList))
)]
pub(in crate::gateway) async fn renew(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let RenewRequest { receipts, lease_ms } = required(read_body(&edge, &headers, body).await?)?;
    settle(&edge, &caller, path, &receipts, |receipt| Settle::Renew { receipt, lease_ms }).await
}

async fn settle(
    edge: &Edge,
    caller: &Caller,
    path: (String, String),
    receipts: &[String],
    say: impl Fn(Receipt) -> Settle,
) -> Result<Response, Problem> {
    let group = group(edge, caller, path)?;
    let parsed = receipts.iter().map(|receipt| receipt.parse::<Receipt>().map(&say));
    let said = parsed.collect::<Result<Vec<_>, _>>()?;
    let settled = edge.services.groups.settle(&group, said).await?;
    let mut first = None;
    let mut refused = 0;
    let results = receipts.iter().zip(&settled).map(|(receipt, settled)| {
        if let Settled::Refused(refusal) = settled {
            first.get_or_insert((*refusal, receipt));
            refused += 1;
        }
        view(receipt, *settled)
    });
    let results: Vec<SettledView> = results.collect();
    match first {
        Some((refusal, receipt)) if refused == results.len() => {
            let results = serde_json::to_value(&results).unwrap_or(Value::Null);
            Err(Problem::new(refusal.code(), sentence(refusal, receipt)).with("results", results))
        }
        _ => Ok(json(&SettledList { results, refused })),
    }
}

fn view(receipt: &str, settled: Settled) -> SettledView {
    let (outcome, code, at) = match settled {
        Settled::Acknowledged => ("acknowledged", None, None),
        Settled::Already => ("already", None, None),
        Settled::Retry(due) => ("retry", None, Some(due.to_string())),
        Settled::DeadLetter => ("dead_letter", None, None),
        Settled::Renewed(deadline) => ("renewed", None, Some(deadline.to_string())),
        Settled::Refused(refusal) => ("refused", Some(refusal.code().to_owned()), None),
    };
    SettledView { receipt: receipt.to_owned(), outcome: outcome.to_owned(), code, at }
}

fn sentence(refusal: Refusal, receipt: &str) -> String {
    match refusal {
        Refusal::LeaseExpired => {
            format!("the lease of `{receipt}` has ended; its entry is delivered again, or is a dead letter")
        }
        Refusal::Lost => format!("retention removed the entry of `{receipt}`, and it counts as lost"),
        Refusal::Unknown => format!("`{receipt}` is no receipt of this group as it is now"),
    }
}

/// Who reads from a group. A consumer that has nothing and is silent for long is forgotten.
#[utoipa::path(
    get,
    path = "/v1/streams/{stream}/groups/{group}/consumers",
    tag = "groups",
    params(
        ("stream" = String, Path, description = "`events`, or any other stream's name"),
        ("group" = String, Path, description = "The group's name"),
    ),
    responses((status = 200, description = "The consumers, by name", body = ConsumerList))
)]
pub(in crate::gateway) async fn consumers(
    State(edge): State<Arc<Edge>>,
    Reader(caller): Reader,
    Path(path): Path<(String, String)>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let consumers = edge.services.groups.consumers(&group(&edge, &caller, path)?).await?;
    Ok(json(&ConsumerList { consumers: consumers.into_iter().map(Into::into).collect() }))
}
