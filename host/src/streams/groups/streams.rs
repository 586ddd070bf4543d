//! Which streams groups read, and how: every one that there is.
//!
//! Positions are of the whole log, so a group on any stream has a place that the log's bounds speak of. A change stream
//! begins where its scope was declared, and may have a cap of its own.

use std::sync::Arc;

use super::error::GroupError;
use super::names::GroupId;
use super::options::GroupStart;
use super::status::Result;
use crate::event::{EventBatch, Position, TenantId};
use crate::streams::{Bounds, EventLog, PageLimit, StreamError, StreamName, Tail, TailReader};

/// The stream that a name means.
pub(crate) fn stream_of(name: &str) -> Result<StreamName> {
    name.parse().map_err(|_| unknown(name))
}

fn unknown(name: &str) -> GroupError {
    GroupError::UnknownStream { stream: name.chars().take(80).collect() }
}

/// What of a stream is held: of a change stream, since when it has everything.
pub(crate) async fn horizon(log: &dyn EventLog, tenant: &TenantId, stream: &StreamName) -> Result<Bounds> {
    let bounds = log.bounds();
    if !matches!(stream, StreamName::Changes(_)) {
        return Ok(bounds);
    }
    let page = log.read_stream(tenant, stream, bounds.newest, PageLimit { events: 1, bytes: 0 }).await?;
    Ok(Bounds { trimmed: page.oldest, newest: page.newest })
}

/// Where a group begins, or goes on when it is moved. A change stream that no scope was declared for is unknown.
pub(crate) async fn start_of(log: &dyn EventLog, id: &GroupId, start: GroupStart) -> Result<Position> {
    let stream = stream_of(&id.stream)?;
    if let StreamName::Changes(changes) = &stream
        && log.scopes().since(changes).is_none()
    {
        return Err(unknown(&id.stream));
    }
    let Bounds { trimmed, newest } = horizon(log, &id.tenant, &stream).await?;
    match start {
        GroupStart::Oldest => Ok(trimmed),
        GroupStart::Newest => Ok(newest),
        GroupStart::After(asked) if asked < trimmed => {
            Err(StreamError::PositionLost { asked, trimmed }.into())
        }
        GroupStart::After(asked) if asked > newest => {
            Err(StreamError::PositionAhead { asked, newest }.into())
        }
        GroupStart::After(asked) => Ok(asked),
    }
}

/// A stream's events after a position, and up to where that is all. Only `events` says what is lost by an error: what
/// others lose is found in the group's store, which counts it when it goes.
pub(crate) async fn page(
    log: &dyn EventLog,
    tenant: &TenantId,
    stream: &StreamName,
    after: Position,
    limit: PageLimit,
) -> std::result::Result<(Arc<EventBatch>, Position), StreamError> {
    if *stream == StreamName::Events {
        let page = log.read(tenant, after, limit).await?;
        return Ok((page.events, page.next));
    }
    let page = log.read_stream(tenant, stream, after, limit).await?;
    Ok((page.events, page.next))
}

/// Waits for a stream's events. What is new of a change stream is new of `events`, too.
pub(crate) fn follow(tail: &Tail, tenant: &TenantId, stream: &StreamName) -> TailReader {
    match stream {
        StreamName::Named(name) => tail.follow_named(tenant, name),
        StreamName::Events | StreamName::Changes(_) => tail.follow(tenant),
    }
}
