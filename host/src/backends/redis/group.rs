//! One script call for a group of appends, and what it says of each.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::Value;

use super::changes::{describe, names_in};
use super::codec::{EntryId, FORMAT, decode};
use super::faults::{backend, remote};
use super::requests::Request;
use super::scripts::{APPEND, bytes, list, number};
use super::shared::{Session, Shared};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Epoch, Position};
use crate::limits::{NAMED_STREAMS_MAX, REDIS_ENTRY_BYTES_MAX};
use crate::streams::{Appended, StreamError};

/// What became of one request.
pub(super) enum Outcome {
    /// The places of its distinct events, in a life of the log.
    Placed {
        placed: Vec<Appended>,
        epoch: Epoch,
    },
    Refused(StreamError),
    /// Last known values were others than expected: before the event that found it, these of its events are known.
    Moved {
        known: Vec<bool>,
    },
    /// The id of this one of its events has the same content in another spelling, which has this hash.
    Spelled {
        event: usize,
        hash: [u8; 16],
    },
    Again,
}

/// Sends a group. An error is one of the whole call.
pub(super) async fn send(
    shared: Arc<Shared>,
    mut session: Session,
    group: Arc<Vec<Request>>,
) -> Result<Vec<Outcome>, BackendError> {
    // Requests of one tenant share entries when they stand together.
    let mut order: Vec<usize> = (0..group.len()).collect();
    order.sort_by(|a, b| group[*a].batch.tenant.cmp(&group[*b].batch.tenant));
    let ordered: Vec<&Request> = order.iter().map(|&index| &group[index]).collect();
    let asked = Asked::prepare(&shared, &mut session, ordered).await?;
    let names = shared.keys.of_appends();
    let answer = APPEND.run(&mut session.appends, &names, |command| asked.fill(command)).await;
    let answer = answer.map_err(|error| backend("appending", &error))?;
    let shape = || remote(RemoteFault::Unsupported, "appending: the answer has another shape");
    let parts = list(answer).ok_or_else(shape)?;
    if parts.first() == Some(&Value::Int(1)) {
        // The follower finds out why, and opens another session.
        session.end.cancel();
        return Err(remote(RemoteFault::Unreachable, "appending: the log is another one"));
    }
    shared.grown(asked.change_streams());
    let answers = parts.get(2..).filter(|answers| answers.len() == order.len()).ok_or_else(shape)?;
    let read =
        order.iter().zip(answers).map(|(&index, answer)| outcome(&shared, &session, &group[index], answer));
    let read = join_all(read).await;
    let mut outcomes: Vec<Option<Outcome>> = group.iter().map(|_| None).collect();
    for (&index, outcome) in order.iter().zip(read) {
        outcomes[index] = Some(outcome?);
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.expect("each request has one answer")).collect())
}

/// What `lua/append.lua` is asked for.
pub(super) struct Asked<'a> {
    requests: Vec<&'a Request>,
    parts: Parts<'a>,
    described: Vec<Vec<u8>>,
    epoch: Epoch,
    scopes: u64,
    dedup_events_max: usize,
}

impl<'a> Asked<'a> {
    /// Reads what the log knows of the requests' change streams.
    pub(super) async fn prepare(
        shared: &Shared,
        session: &mut Session,
        requests: Vec<&'a Request>,
    ) -> Result<Self, BackendError> {
        let scopes = shared.scopes();
        let described = describe(shared, session, &scopes, &requests).await?;
        Ok(Self {
            parts: Parts::of(&requests),
            requests,
            described,
            epoch: session.epoch.clone(),
            scopes: scopes.version,
            dedup_events_max: shared.options.dedup_events_max,
        })
    }

    /// The change streams that its events are in, as `tenant:name`.
    pub(super) fn change_streams(&self) -> impl Iterator<Item = String> {
        let tenants = self.requests.iter().flat_map(|request| {
            let tenant = request.batch.tenant.as_str();
            request.places.iter().map(move |_| tenant)
        });
        tenants.zip(&self.described).flat_map(|(tenant, described)| {
            let names = names_in(described).split('\n').filter(|name| !name.is_empty());
            names.map(move |name| format!("{tenant}:{name}"))
        })
    }

    pub(super) fn fill(&self, command: &mut redis::Cmd) {
        let parts = &self.parts;
        command.arg(&*self.epoch.0).arg(self.dedup_events_max).arg(self.scopes).arg(NAMED_STREAMS_MAX);
        command.arg(&parts.keys).arg(&parts.kept).arg(self.requests.len()).arg(parts.chunks.len());
        for request in &self.requests {
            command.arg(request.batch.tenant.as_str()).arg(&*request.stream);
            match &request.fence {
                Some(fence) => command.arg(&*fence.name).arg(fence.generation),
                None => command.arg("").arg(""),
            };
            command.arg(request.events.len());
            match &request.tried {
                Some((epoch, newest)) if request.again && *epoch == self.epoch => command.arg(newest.0),
                _ => command.arg(""),
            };
        }
        for chunk in &parts.chunks {
            let lengths = chunk.lengths.as_slice();
            command.arg(chunk.tenant).arg(chunk.stream).arg(lengths.len() / 4).arg(&chunk.bytes).arg(lengths);
        }
        for (index, changes) in self.described.iter().enumerate().filter(|(_, changes)| !changes.is_empty()) {
            command.arg(index + 1).arg(changes);
        }
    }
}

/// The events of a group, as the script takes them.
struct Parts<'a> {
    keys: Vec<u8>,
    kept: Vec<u8>,
    chunks: Vec<Chunk<'a>>,
}

/// Events of one stream that follow each other, and fit an entry.
struct Chunk<'a> {
    tenant: &'a str,
    stream: &'a str,
    /// As they are in an entry.
    bytes: Vec<u8>,
    /// Of each, in four bytes.
    lengths: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(ordered: &[&'a Request]) -> Self {
        let events = ordered.iter().map(|request| request.events.len()).sum::<usize>();
        let mut parts = Parts {
            keys: Vec::with_capacity(events * 16),
            kept: Vec::with_capacity(events * 18),
            chunks: Vec::new(),
        };
        let mut number: u16 = 0;
        for request in ordered {
            let (tenant, stream) = (request.batch.tenant.as_str(), &*request.stream);
            for event in &request.events {
                number += 1;
                parts.keys.extend_from_slice(&event.key);
                parts.kept.extend_from_slice(&event.hash);
                parts.kept.extend_from_slice(&number.to_be_bytes());
                let chunk = parts.chunk(tenant, stream, event.body.len());
                chunk.bytes.extend_from_slice(&event.body);
                let length = u32::try_from(event.body.len()).expect("a batch has fewer bytes");
                chunk.lengths.extend_from_slice(&length.to_be_bytes());
            }
        }
        parts
    }

    /// Where an event of so many bytes goes: an entry takes in no more than its bound, or a single larger event.
    fn chunk(&mut self, tenant: &'a str, stream: &'a str, bytes: usize) -> &mut Chunk<'a> {
        let fits = self.chunks.last().is_some_and(|chunk| {
            (chunk.tenant, chunk.stream) == (tenant, stream)
                && chunk.bytes.len() + bytes <= REDIS_ENTRY_BYTES_MAX + 1
        });
        if !fits {
            self.chunks.push(Chunk { tenant, stream, bytes: vec![FORMAT], lengths: Vec::new() });
        }
        self.chunks.last_mut().expect("there is one")
    }
}

async fn outcome(
    shared: &Shared,
    session: &Session,
    request: &Request,
    answer: &Value,
) -> Result<Outcome, BackendError> {
    let shape = || remote(RemoteFault::Unsupported, "appending: an answer has another shape");
    let Value::Array(parts) = answer else { return Err(shape()) };
    let (kind, parts) = parts.split_first().ok_or_else(shape)?;
    match kind {
        Value::Int(1) => {
            let first: u64 = parts.first().and_then(number).ok_or_else(shape)?;
            let at = |index: u64| Appended { position: Position(first + index), repeated: false };
            let placed = (0..request.events.len() as u64).map(at).collect();
            Ok(Outcome::Placed { placed, epoch: session.epoch.clone() })
        }
        Value::Int(3) if parts.len() == request.events.len() => {
            let one = |value: &Value| {
                let position: i64 = number(value)?;
                Some(Appended { position: Position(position.unsigned_abs()), repeated: position < 0 })
            };
            let placed = parts.iter().map(one).collect::<Option<_>>().ok_or_else(shape)?;
            Ok(Outcome::Placed { placed, epoch: session.epoch.clone() })
        }
        Value::Int(2) => {
            let [event, position, hash] = parts else { return Err(shape()) };
            let event: usize =
                number(event).filter(|event| *event < request.events.len()).ok_or_else(shape)?;
            let position = Position(number(position).ok_or_else(shape)?);
            let hash: [u8; 16] = bytes(hash).and_then(|hash| hash.try_into().ok()).ok_or_else(shape)?;
            taken(shared, session, request, event, position, hash).await
        }
        Value::Int(4) => {
            let repeated = |value: &Value| number::<i64>(value).is_some_and(|position| position < 0);
            Ok(Outcome::Moved { known: parts.iter().skip(1).map(repeated).collect() })
        }
        Value::Int(5) => Ok(Outcome::Refused(StreamError::TooManyStreams { max: NAMED_STREAMS_MAX })),
        Value::Int(7) => {
            let detail = "an append was not answered, and its ids may have left the dedup window since";
            Ok(Outcome::Refused(remote(RemoteFault::Timeout, detail).into()))
        }
        Value::Int(6) => {
            let name = request.fence.as_ref().map(|fence| fence.name.to_string()).unwrap_or_default();
            Ok(Outcome::Refused(StreamError::Fenced { name }))
        }
        _ => Err(shape()),
    }
}

/// Looks at the event that has an id already: the same content may be spelled in other ways.
async fn taken(
    shared: &Shared,
    session: &Session,
    request: &Request,
    event: usize,
    position: Position,
    hash: [u8; 16],
) -> Result<Outcome, BackendError> {
    let doing = "reading an event whose id is repeated";
    let mut command = redis::cmd("XRANGE");
    command.arg(&shared.keys.events).arg(format!("{position}-0")).arg("+").arg("COUNT").arg(1);
    let found: Value =
        command.query_async(&mut session.reads.clone()).await.map_err(|error| backend(doing, &error))?;
    let index = request.places[event];
    let mine = request.batch.get(index);
    let mut same = None;
    if let Some((id, events)) = list(found).and_then(|mut entries| entry(&entries.pop()?)) {
        let decoded = decode(&events, id.first(), id.count, |stored| {
            if stored.position == position {
                same = Some(stored.same_content(&mine));
            }
        });
        decoded.map_err(|what| remote(RemoteFault::Unsupported, format_args!("{doing}: {what}")))?;
    }
    Ok(match same {
        Some(true) => Outcome::Spelled { event, hash },
        Some(false) => Outcome::Refused(StreamError::IdTaken { index, id: mine.id.to_owned(), position }),
        // It was trimmed a moment ago, and its id is free now.
        None => Outcome::Again,
    })
}

fn entry(entry: &Value) -> Option<(EntryId, Vec<u8>)> {
    let Value::Array(parts) = entry else { return None };
    let [id, Value::Array(fields)] = &parts[..] else { return None };
    Some((EntryId::parse(bytes(id)?)?, bytes(fields.get(5)?)?.to_vec()))
}
