//! Reading: pages of the log, tasks, deployments.
//! Each function runs inside one read transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use super::database::{signed, unsigned};
use super::deployments::read_deployment;
use super::event_rows::{EVENT_COLUMNS, read_event};
use super::readers::ReadStop;
use super::shared::{Shared, from_json, stored_bounds, stored_tenant};
use crate::checkpoints::{CommitError, Generation, TaskId, TaskRow};
use crate::error::BackendError;
use crate::event::{EventBatch, Micros, Page, Position, Revision, TenantId};
use crate::limits::{PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
use crate::plugins::{Candidate, Deployment};
use crate::streams::{Bounds, PageLimit, StreamError, StreamName, StreamPage};

pub(super) type ReadResult<T, E> = Result<T, ReadStop<E>>;

/// Bytes that a page makes room for at first; it grows from there.
const PAGE_BYTES_GUESS: usize = 64 << 10;

/// A tenant's events after a position. What `next` says was true in this very
/// transaction, so that no event between can be passed over.
pub(super) fn page(
    conn: &Connection,
    shared: &Shared,
    tenant: &TenantId,
    after: Position,
    limit: PageLimit,
) -> ReadResult<Page, StreamError> {
    let bounds = stored_bounds(conn)?;
    if after < bounds.trimmed {
        return Err(ReadStop::Refused(StreamError::PositionLost { asked: after, trimmed: bounds.trimmed }));
    }
    if after > bounds.newest {
        return Err(ReadStop::Refused(StreamError::PositionAhead { asked: after, newest: bounds.newest }));
    }
    let oldest = Position(bounds.trimmed.0 + 1);
    let events_max = limit.events.clamp(1, PAGE_EVENTS_MAX);
    let bytes_max = limit.bytes.min(PAGE_BYTES_MAX);
    let Some(number) = shared.tenant_number(conn, tenant)? else {
        let events = Arc::new(EventBatch::new(tenant.clone()));
        return Ok(Page { events, next: bounds.newest, oldest });
    };
    let mut events =
        EventBatch::with_capacity(tenant.clone(), events_max.min(256), bytes_max.min(PAGE_BYTES_GUESS));
    let complete = fill(conn, number, after, (events_max, bytes_max), &mut events)?;
    let next = if complete { bounds.newest } else { events.last_position() };
    Ok(Page { events: Arc::new(events), next, oldest })
}

/// A page of any stream. What is no longer held is told by `truncated`.
pub(super) fn stream_page(
    conn: &Connection,
    shared: &Shared,
    tenant: &TenantId,
    stream: &StreamName,
    (after, limit): (Position, PageLimit),
) -> ReadResult<StreamPage, StreamError> {
    let Bounds { trimmed, newest } = stored_bounds(conn)?;
    if after > newest {
        return Err(ReadStop::Refused(StreamError::PositionAhead { asked: after, newest }));
    }
    let mut oldest = trimmed;
    if let StreamName::Changes(changes) = stream {
        oldest = oldest.max(shared.scopes().since(changes).unwrap_or(newest));
    }
    let mut events = EventBatch::new(tenant.clone());
    let mut complete = true;
    if let Some(number) = shared.tenant_number(conn, tenant)? {
        let bounds = (limit.events.clamp(1, PAGE_EVENTS_MAX), limit.bytes.min(PAGE_BYTES_MAX));
        let found = match stream {
            StreamName::Events => Some((number, 0)),
            _ => stored_stream(conn, number, &stream.to_string())?,
        };
        if let Some((number, dropped)) = found {
            oldest = oldest.max(Position(dropped));
            complete = match stream {
                StreamName::Events => fill(conn, number, after, bounds, &mut events)?,
                StreamName::Named(_) => fill(conn, -number, after, bounds, &mut events)?,
                StreamName::Changes(_) => fill_changes(conn, number, after, bounds, &mut events)?,
            };
        }
    }
    let next = if complete { newest } else { events.last_position() };
    Ok(StreamPage { events: Arc::new(events), next, oldest, newest, truncated: after < oldest })
}

/// A stream's number, and up to where a cap has dropped its entries.
fn stored_stream(conn: &Connection, tenant: i64, name: &str) -> rusqlite::Result<Option<(i64, u64)>> {
    conn.prepare_cached("SELECT id, dropped FROM streams WHERE tenant = ?1 AND name = ?2")?
        .query_row((tenant, name), |row| Ok((row.get(0)?, unsigned(row.get(1)?))))
        .optional()
}

/// Reads until the page is full or the log ends; answers true in the latter case.
fn fill(
    conn: &Connection,
    tenant: i64,
    after: Position,
    bounds: (usize, usize),
    events: &mut EventBatch,
) -> rusqlite::Result<bool> {
    let statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_tenant
         WHERE tenant = ?1 AND position > ?2 ORDER BY position"
    ))?;
    fill_from(statement, tenant, after, bounds, events)
}

/// The same of a change stream, whose entries are positions.
fn fill_changes(
    conn: &Connection,
    stream: i64,
    after: Position,
    bounds: (usize, usize),
    events: &mut EventBatch,
) -> rusqlite::Result<bool> {
    let statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS} FROM stream_entries CROSS JOIN events USING (position)
         WHERE stream = ?1 AND position > ?2 ORDER BY position"
    ))?;
    fill_from(statement, stream, after, bounds, events)
}

fn fill_from(
    mut statement: CachedStatement<'_>,
    of: i64,
    after: Position,
    (events_max, bytes_max): (usize, usize),
    events: &mut EventBatch,
) -> rusqlite::Result<bool> {
    let mut rows = statement.query((of, signed(after.0)))?;
    while let Some(row) = rows.next()? {
        let event = read_event(row, 0)?;
        if events.len() == events_max
            || (!events.is_empty() && events.bytes() + event.payload.len() > bytes_max)
        {
            return Ok(false);
        }
        events.push_checked(&event);
    }
    Ok(true)
}

pub(super) fn tasks(conn: &Connection, processor: Option<&str>) -> ReadResult<Vec<TaskRow>, CommitError> {
    // With a processor, its index finds the dead letters; so it does not go the way of `?1 IS NULL OR`.
    let wanted = if processor.is_some() { "processor = ?1" } else { "?1 IS NULL" };
    let mut statement = conn.prepare_cached(&format!(
        "WITH letters AS (SELECT processor, task_tenant AS tenant, lane, count(*) AS letters
           FROM dead_letters WHERE {wanted} GROUP BY processor, task_tenant, lane)
         SELECT processor, tenant, lane, generation, position, revision, at,
         coalesce((SELECT length(state) FROM states WHERE task = tasks.id), 0), keyed_entries, keyed_bytes,
         (SELECT count(*) FROM parked_events WHERE task = tasks.id),
         (SELECT count(*) FROM parked_keys WHERE task = tasks.id AND held IS NOT NULL),
         coalesce(letters, 0)
         FROM tasks LEFT JOIN letters USING (processor, tenant, lane)
         WHERE {wanted} ORDER BY processor, tenant, lane"
    ))?;
    let mut rows = statement.query([processor])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.push(TaskRow {
            task: TaskId {
                processor: row.get_ref(0)?.as_str()?.into(),
                tenant: stored_tenant(row.get_ref(1)?.as_str()?)?,
                lane: row.get(2)?,
            },
            generation: Generation(unsigned(row.get(3)?)),
            position: Position(unsigned(row.get(4)?)),
            revision: Revision(unsigned(row.get(5)?)),
            at: Micros(row.get(6)?),
            state_bytes: unsigned(row.get(7)?),
            keyed_entries: unsigned(row.get(8)?),
            keyed_bytes: unsigned(row.get(9)?),
            parked_events: unsigned(row.get(10)?),
            held_keys: unsigned(row.get(11)?),
            dead_letters: unsigned(row.get(12)?),
        });
    }
    Ok(tasks)
}

pub(super) fn deployments(conn: &Connection) -> ReadResult<Vec<Deployment>, BackendError> {
    let mut statement = conn.prepare_cached("SELECT deployment FROM deployments ORDER BY plugin")?;
    let mut rows = statement.query([])?;
    let mut deployments = Vec::new();
    while let Some(row) = rows.next()? {
        deployments.push(read_deployment(row.get_ref(0)?.as_str()?)?);
    }
    Ok(deployments)
}

pub(super) fn deployment_history(
    conn: &Connection,
    plugin: &str,
) -> ReadResult<Vec<Deployment>, BackendError> {
    let mut statement = conn.prepare_cached(
        "SELECT deployment FROM (
           SELECT deployment, 9223372036854775807 AS seq FROM deployments WHERE plugin = ?1
           UNION ALL SELECT deployment, seq FROM deployment_history WHERE plugin = ?1)
         ORDER BY seq DESC",
    )?;
    let mut rows = statement.query([plugin])?;
    let mut deployments = Vec::new();
    while let Some(row) = rows.next()? {
        deployments.push(read_deployment(row.get_ref(0)?.as_str()?)?);
    }
    Ok(deployments)
}

pub(super) fn deployed_digests(conn: &Connection) -> ReadResult<BTreeSet<String>, BackendError> {
    let mut statement = conn.prepare_cached(
        "SELECT json_extract(deployment, '$.digest') FROM deployments
         UNION SELECT json_extract(deployment, '$.digest') FROM deployment_history
         UNION SELECT json_extract(deployment, '$.digest') FROM rebuilds WHERE open = 1",
    )?;
    let mut rows = statement.query([])?;
    let mut digests = BTreeSet::new();
    while let Some(row) = rows.next()? {
        digests.insert(row.get(0)?);
    }
    Ok(digests)
}

pub(super) fn candidates(conn: &Connection) -> ReadResult<BTreeMap<String, Candidate>, BackendError> {
    let mut statement = conn.prepare_cached("SELECT plugin, report FROM candidates")?;
    let mut rows = statement.query([])?;
    let mut candidates = BTreeMap::new();
    while let Some(row) = rows.next()? {
        candidates.insert(row.get(0)?, from_json(row.get_ref(1)?.as_str()?)?);
    }
    Ok(candidates)
}
