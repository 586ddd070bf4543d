//! Reads of what the tail does not hold, and trimming.

use redis::Value;

use super::codec::{EntryId, decode};
use super::faults::{backend, remote};
use super::groups::{Bounds, tell_losses};
use super::scripts::{READ, TRIM, bytes, list, number};
use super::shared::{Session, Shared};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Event, EventBatch, Micros, Page, Position, TenantId};
use crate::limits::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX, REDIS_TRIM_ENTRIES_MAX};
use crate::streams::groups::GroupLimits;
use crate::streams::{PageLimit, Retention, StreamError, StreamPage};
use std::sync::Arc;

/// An entry as it was found.
struct Entry {
    id: EntryId,
    appended_at: Micros,
    events: Vec<u8>,
}

struct Found {
    entries: Vec<Entry>,
    trimmed: Position,
    /// A limit ended it, and there may be more.
    more: bool,
    /// Up to where it has looked.
    upto: Position,
}

/// A page of a tenant's events.
pub(super) async fn page(
    shared: &Shared,
    tenant: &TenantId,
    after: Position,
    limit: PageLimit,
) -> Result<Page, StreamError> {
    let events_max = limit.events.clamp(1, PAGE_EVENTS_MAX);
    let bytes_max = limit.bytes.min(PAGE_BYTES_MAX);
    let found = find(shared, tenant, after, PageLimit { events: events_max, bytes: bytes_max }).await?;
    let mut events = EventBatch::new(tenant.clone());
    let mut full = false;
    for entry in &found.entries {
        let mut keep = |event: &Event<'_>| {
            if event.position <= after || full {
                return;
            }
            let bytes = events.bytes() + event.payload.len();
            full = events.len() == events_max || (!events.is_empty() && bytes > bytes_max);
            if !full {
                events.push_checked(event);
            }
        };
        decode(&entry.events, entry.id.first(), entry.id.count, &mut keep)
            .map_err(|what| remote(RemoteFault::Unsupported, format_args!("reading: {what}")))?;
    }
    let next = if full || found.more { events.last_position() } else { found.upto };
    Ok(Page { events: Arc::new(events), next, oldest: Position(found.trimmed.0 + 1) })
}

/// A page of `events` for a reader to whom it is said what is gone, and not refused.
pub(super) async fn stream_page(
    shared: &Shared,
    tenant: &TenantId,
    after: Position,
    limit: PageLimit,
) -> Result<StreamPage, StreamError> {
    let mut from = after;
    loop {
        match page(shared, tenant, from, limit).await {
            // Retention may pass while it is read.
            Err(StreamError::PositionLost { trimmed, .. }) if trimmed > from => from = trimmed,
            Err(error) => return Err(error),
            Ok(Page { events, next, oldest }) => {
                let oldest = Position(oldest.0 - 1);
                let newest = shared.bounds().newest.max(next);
                return Ok(StreamPage { events, next, oldest, newest, truncated: after < oldest });
            }
        }
    }
}

/// When the first event after a position was appended.
pub(super) async fn appended_at(
    shared: &Shared,
    tenant: &TenantId,
    after: Position,
) -> Result<Option<Micros>, StreamError> {
    let after = after.max(shared.bounds().trimmed);
    let found = find(shared, tenant, after, PageLimit { events: 1, bytes: 1 }).await?;
    Ok(found.entries.first().map(|entry| entry.appended_at))
}

async fn find(
    shared: &Shared,
    tenant: &TenantId,
    after: Position,
    limit: PageLimit,
) -> Result<Found, StreamError> {
    let bounds = shared.bounds();
    let upto = bounds.newest;
    if after < bounds.trimmed {
        return Err(StreamError::PositionLost { asked: after, trimmed: bounds.trimmed });
    }
    if after > upto {
        return Err(StreamError::PositionAhead { asked: after, newest: upto });
    }
    let mut session = shared.serving()?;
    if after == upto {
        return Ok(Found { entries: Vec::new(), trimmed: bounds.trimmed, more: false, upto });
    }
    let index = shared.keys.index_of(tenant.as_str());
    let names: [&[u8]; 4] = [&shared.keys.meta, &shared.keys.events, &index, &shared.keys.tenants];
    let epoch = session.epoch.clone();
    let call = READ.run(&mut session.reads, &names, |command| {
        command.arg(&*epoch.0).arg(after.0).arg(upto.0).arg(limit.events).arg(limit.bytes.max(1));
        command.arg(tenant.as_str());
    });
    let asked = call.await;
    let parts = answer(shared, &session, "reading", asked)?;
    let shape = || remote(RemoteFault::Unsupported, "reading: the answer has another shape");
    if parts.first() == Some(&Value::Int(2)) {
        let position: u64 = parts.get(1).and_then(number).ok_or_else(shape)?;
        // Somebody has deleted it. No reader steps over it without being told.
        return Err(StreamError::PositionLost { asked: after, trimmed: Position(position) });
    }
    let trimmed = Position(parts.get(1).and_then(number).ok_or_else(shape)?);
    shared.trimmed(&session.epoch, trimmed);
    if after < trimmed {
        return Err(StreamError::PositionLost { asked: after, trimmed });
    }
    let more = parts.get(2) == Some(&Value::Int(1));
    let entries =
        parts.get(3..).unwrap_or_default().chunks(3).map(entry).collect::<Option<_>>().ok_or_else(shape)?;
    Ok(Found { entries, trimmed, more, upto })
}

fn entry(parts: &[Value]) -> Option<Entry> {
    let [id, time, events] = parts else { return None };
    Some(Entry {
        id: EntryId::parse(bytes(id)?)?,
        appended_at: Micros(number(time)?),
        events: bytes(events)?.to_vec(),
    })
}

/// The answer of a script that works on the log that a session is of.
pub(super) fn answer(
    shared: &Shared,
    session: &Session,
    doing: &str,
    answer: redis::RedisResult<Value>,
) -> Result<Vec<Value>, BackendError> {
    let answer = answer.map_err(|error| {
        let error = backend(doing, &error);
        shared.failed(session, &error);
        error
    })?;
    let parts = list(answer);
    let parts = parts
        .ok_or_else(|| remote(RemoteFault::Unsupported, format_args!("{doing}: the answer is no list")))?;
    if parts.first() == Some(&Value::Int(1)) {
        // The follower finds out what it is, and opens another session.
        session.end.cancel();
        return Err(remote(RemoteFault::Unreachable, format_args!("{doing}: the log is another one")));
    }
    Ok(parts)
}

/// Applies retention. Answers how many positions were given up.
pub(super) async fn trim(shared: &Shared, retention: Retention) -> Result<u64, StreamError> {
    if retention == Retention::default() {
        return Ok(0);
    }
    let mut session = shared.serving()?;
    let epoch = session.epoch.clone();
    let names = shared.keys.of_groups();
    let bounds = Bounds::of(&GroupLimits::default());
    let shape = || remote(RemoteFault::Unsupported, "trimming: the answer has another shape");
    let mut gone = 0;
    loop {
        let call = TRIM.run(&mut session.reads, &names, |command| {
            let age = retention.age.map(|age| age.as_micros().to_string()).unwrap_or_default();
            let events = retention.events.map(|events| events.to_string()).unwrap_or_default();
            command.arg(&*epoch.0).arg("").arg(bounds.as_str());
            command.arg(events).arg(age).arg(REDIS_TRIM_ENTRIES_MAX);
        });
        let asked = call.await;
        let parts = answer(shared, &session, "trimming", asked)?;
        let [_, before, now, more, losses] = &parts[..] else { return Err(shape().into()) };
        tell_losses(losses);
        let before: u64 = number(before).ok_or_else(shape)?;
        let now: u64 = number(now).ok_or_else(shape)?;
        shared.trimmed(&session.epoch, Position(now));
        gone += now - before;
        if *more == Value::Int(0) {
            break;
        }
    }
    if gone > 0 {
        trim_indexes(shared, &mut session).await?;
    }
    Ok(gone)
}

async fn trim_indexes(shared: &Shared, session: &mut Session) -> Result<(), BackendError> {
    let trimmed = shared.bounds().trimmed.0;
    let tenants = shared.tenants();
    // Not all at once: the server serves others in between.
    for some in tenants.chunks(100) {
        let mut commands = redis::pipe();
        for tenant in some {
            commands.cmd("XTRIM").arg(shared.keys.index_of(tenant.as_str())).arg("MINID").arg("~");
            commands.arg(format!("{}-0", trimmed + 1)).ignore();
        }
        commands
            .query_async::<()>(&mut session.reads)
            .await
            .map_err(|error| backend("trimming the tenants' indexes", &error))?;
    }
    Ok(())
}
