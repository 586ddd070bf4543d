//! Change streams: which ones an append goes to, their declarations, and reading them.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;

use super::codec::decode_one;
use super::faults::{backend, remote};
use super::reads::answer;
use super::requests::Request;
use super::scripts::{CHANGES, SCOPES, bytes, number, text};
use super::shared::{KnownScopes, Session, Shared};
use crate::error::{BackendError, RemoteFault};
use crate::event::{EventBatch, Position, TenantId};
use crate::limits::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX, REDIS_TURNS_MAX};
use crate::streams::scopes::StoredValues;
use crate::streams::{
    AggregateScopes, ChangeScopes, ChangeStream, PageLimit, StreamError, StreamName, StreamPage,
};

/// The last known values of one aggregate's fields: by aggregate, and by tenant and id.
type ValuesKey = (String, Vec<u8>);

/// For each event of the requests, in their order, what the script needs to know of its change streams: nothing for
/// most. Last known values are read before; the script compares them, so that what has changed meanwhile is found.
pub(super) async fn describe(
    shared: &Shared,
    session: &mut Session,
    known: &KnownScopes,
    requests: &[&Request],
) -> Result<Vec<Vec<u8>>, BackendError> {
    if known.scopes.is_empty() {
        return Ok(Vec::new());
    }
    let mut values = read_values(shared, session, known, requests).await?;
    let mut described = Vec::new();
    for request in requests {
        for (index, &place) in request.places.iter().enumerate() {
            let event = request.batch.get(place);
            let scopes = known.scopes.of(event.aggregate).filter(|_| request.stream.is_empty());
            let Some(scopes) = scopes.filter(|_| !request.known[index]) else {
                described.push(Vec::new());
                continue;
            };
            let key = values_key(&request.batch.tenant, event.aggregate, event.agg_id);
            let before = values.get(&key).cloned().unwrap_or_default();
            let fields = serde_json::from_str::<StoredValues>(&before)
                .map(|stored| known.scopes.known_values(event.aggregate, stored))
                .unwrap_or_default();
            let derived = scopes.derive(&event, &fields);
            let names: Vec<String> = derived.streams.iter().map(ChangeStream::to_string).collect();
            let (aggregate, id, after) = if scopes.has_fields() {
                let after = match derived.values.is_empty() {
                    true => String::new(),
                    false => serde_json::to_string(&derived.values).unwrap_or_default(),
                };
                values.insert(key.clone(), after.clone());
                (event.aggregate, &key.1[..], after)
            } else {
                ("", &[][..], String::new())
            };
            described.push(texts(&[
                names.join("\n").as_bytes(),
                aggregate.as_bytes(),
                id,
                before.as_bytes(),
                after.as_bytes(),
            ]));
        }
    }
    Ok(described)
}

/// The last known values that the requests' events may change.
async fn read_values(
    shared: &Shared,
    session: &mut Session,
    known: &KnownScopes,
    requests: &[&Request],
) -> Result<HashMap<ValuesKey, String>, BackendError> {
    let mut wanted: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    for request in requests.iter().filter(|request| request.stream.is_empty()) {
        for &place in &request.places {
            let event = request.batch.get(place);
            if known.scopes.of(event.aggregate).is_some_and(AggregateScopes::has_fields) {
                let (aggregate, id) = values_key(&request.batch.tenant, event.aggregate, event.agg_id);
                wanted.entry(aggregate).or_default().push(id);
            }
        }
    }
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let mut commands = redis::pipe();
    for (aggregate, ids) in &wanted {
        commands.cmd("HMGET").arg(shared.keys.values_of(aggregate)).arg(ids);
    }
    let found: Vec<Vec<Option<String>>> = commands
        .query_async(&mut session.appends)
        .await
        .map_err(|error| backend("reading last known values", &error))?;
    let mut values = HashMap::new();
    for ((aggregate, ids), found) in wanted.into_iter().zip(found) {
        for (id, found) in ids.into_iter().zip(found) {
            values.insert((aggregate.clone(), id), found.unwrap_or_default());
        }
    }
    Ok(values)
}

fn values_key(tenant: &TenantId, aggregate: &str, agg_id: &str) -> ValuesKey {
    (aggregate.to_owned(), [tenant.as_str().as_bytes(), &[0], agg_id.as_bytes()].concat())
}

/// Each with its length before it.
fn texts(texts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for text in texts {
        let length = u32::try_from(text.len()).expect("names are short");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(text);
    }
    out
}

/// The names by line of what [`describe`] says of an event.
pub(super) fn names_in(described: &[u8]) -> &str {
    let names = described.split_first_chunk::<4>().and_then(|(length, rest)| {
        let length = u32::from_be_bytes(*length) as usize;
        rest.get(..length)
    });
    names.and_then(|names| std::str::from_utf8(names).ok()).unwrap_or_default()
}

/// Declares scopes: on what the log has, and again when another host was faster.
pub(super) async fn declare(
    shared: &Shared,
    owner: &str,
    declarations: &[AggregateScopes],
) -> Result<(), StreamError> {
    for _ in 0..REDIS_TURNS_MAX {
        let mut session = shared.serving()?;
        let known = shared.scopes();
        let mut scopes = ChangeScopes::clone(&known.scopes);
        // The script knows where the log is when they take effect.
        let useless = scopes.declare(owner, declarations, Position(u64::MAX))?;
        if scopes == *known.scopes {
            return Ok(());
        }
        let unread = |error: serde_json::Error| BackendError::Failed { detail: error.to_string() };
        let json = serde_json::to_string(&scopes).map_err(unread)?;
        let epoch = session.epoch.clone();
        let names: [&[u8]; 3] = [&shared.keys.meta, &shared.keys.scopes, &shared.keys.values];
        let call = SCOPES.run(&mut session.appends, &names, |command| {
            command.arg(&*epoch.0).arg(known.version).arg(&json).arg(u64::MAX).arg(&useless);
        });
        let asked = call.await;
        let parts = answer(shared, &session, "declaring change scopes", asked)?;
        let shape =
            || remote(RemoteFault::Unsupported, "declaring change scopes: the answer has another shape");
        let [outcome, version, json] = &parts[..] else { return Err(shape().into()) };
        shared.set_scopes(number(version).ok_or_else(shape)?, text(json).ok_or_else(shape)?)?;
        if *outcome == Value::Int(0) {
            return Ok(());
        }
    }
    let detail = "declaring change scopes: others declared some each time";
    Err(remote(RemoteFault::Timeout, detail).into())
}

/// A page of any stream but `events`.
pub(super) async fn page(
    shared: &Shared,
    tenant: &TenantId,
    stream: &StreamName,
    after: Position,
    limit: PageLimit,
) -> Result<StreamPage, StreamError> {
    let bounds = shared.bounds();
    let newest = bounds.newest;
    if after > newest {
        return Err(StreamError::PositionAhead { asked: after, newest });
    }
    let since = match stream {
        StreamName::Changes(changes) => shared.scopes().scopes.since(changes).unwrap_or(newest),
        _ => Position::START,
    };
    let limit =
        PageLimit { events: limit.events.clamp(1, PAGE_EVENTS_MAX), bytes: limit.bytes.min(PAGE_BYTES_MAX) };
    let mut session = shared.serving()?;
    let epoch = session.epoch.clone();
    let index = shared.keys.stream_of(tenant.as_str(), &stream.to_string());
    let names: [&[u8]; 3] = [&shared.keys.meta, &shared.keys.events, &index];
    let call = CHANGES.run(&mut session.reads, &names, |command| {
        command.arg(&*epoch.0).arg(after.0).arg(newest.0).arg(limit.events).arg(limit.bytes.max(1));
        command.arg(tenant.as_str());
    });
    let asked = call.await;
    let parts = answer(shared, &session, "reading a stream", asked)?;
    let shape = || remote(RemoteFault::Unsupported, "reading a stream: the answer has another shape");
    let trimmed = Position(parts.get(1).and_then(number).ok_or_else(shape)?);
    shared.trimmed(&session.epoch, trimmed);
    let mut full = parts.get(2) == Some(&Value::Int(1));
    let removed = parts.get(3) == Some(&Value::Int(1));
    let dropped = Position(parts.get(4).and_then(number).ok_or_else(shape)?);
    let mut events = EventBatch::new(tenant.clone());
    for pair in parts.get(5..).unwrap_or_default().chunks(2) {
        let [position, body] = pair else { return Err(shape().into()) };
        let (position, body) = (number(position).ok_or_else(shape)?, bytes(body).ok_or_else(shape)?);
        let event = decode_one(body, Position(position)).ok_or_else(shape)?;
        if !events.is_empty() && events.bytes() + event.payload.len() > limit.bytes {
            full = true;
            break;
        }
        events.push_checked(&event);
    }
    let next = if full { events.last_position() } else { newest };
    let oldest = trimmed.max(since).max(dropped);
    Ok(StreamPage { events: Arc::new(events), next, oldest, newest, truncated: removed || after < oldest })
}
