//! Reading: pages of the log, tasks, keyed state, dead letters, deployments.
//! Each function runs inside one read transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::database::{signed, unsigned};
use super::event_rows::{EVENT_COLUMN_COUNT, EVENT_COLUMNS, read_event};
use super::readers::ReadStop;
use super::shared::{Shared, from_json, stored_bounds, stored_tenant};
use crate::checkpoints::{Checkpoint, CommitError, DeadLetterRow, Generation, SavedState, TaskId, TaskRow};
use crate::error::BackendError;
use crate::event::{EventBatch, Micros, Page, Position, Revision, TenantId};
use crate::limits::{GUEST_SCAN_MAX, PAGE_BYTES_MAX, PAGE_EVENTS_MAX};
use crate::plugins::{Candidate, Deployment};
use crate::streams::{PageLimit, StreamError};

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

/// Reads until the page is full or the log ends; answers true in the latter case.
fn fill(
    conn: &Connection,
    tenant: i64,
    after: Position,
    (events_max, bytes_max): (usize, usize),
    events: &mut EventBatch,
) -> rusqlite::Result<bool> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_tenant
         WHERE tenant = ?1 AND position > ?2 ORDER BY position"
    ))?;
    let mut rows = statement.query((tenant, signed(after.0)))?;
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

fn task_number(conn: &Connection, task: &TaskId) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT id FROM tasks WHERE processor = ?1 AND tenant = ?2 AND lane = ?3")?
        .query_row((&*task.processor, task.tenant.as_str(), task.lane), |row| row.get(0))
        .optional()
}

/// Position and state in one statement, so that they belong together.
pub(super) fn checkpoint(conn: &Connection, task: &TaskId) -> ReadResult<Option<Checkpoint>, CommitError> {
    Ok(conn
        .prepare_cached(
            "SELECT position, revision, content_type, state FROM tasks LEFT JOIN states ON task = id
             WHERE processor = ?1 AND tenant = ?2 AND lane = ?3 AND revision > 0",
        )?
        .query_row((&*task.processor, task.tenant.as_str(), task.lane), |row| {
            let content_type: Option<String> = row.get(2)?;
            let saved = match content_type {
                Some(content_type) => Some(SavedState { content_type, state: row.get(3)? }),
                None => None,
            };
            let (position, revision) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
            Ok(Checkpoint { position: Position(position), saved, revision: Revision(revision) })
        })
        .optional()?)
}

pub(super) fn state_get(
    conn: &Connection,
    task: &TaskId,
    key: &[u8],
) -> ReadResult<Option<Vec<u8>>, CommitError> {
    let Some(task) = task_number(conn, task)? else { return Ok(None) };
    Ok(conn
        .prepare_cached("SELECT value FROM keyed_state WHERE task = ?1 AND key = ?2")?
        .query_row((task, key), |row| row.get(0))
        .optional()?)
}

pub(super) type Entries = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) fn state_scan(
    conn: &Connection,
    task: &TaskId,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: u32,
) -> ReadResult<Entries, CommitError> {
    let Some(task) = task_number(conn, task)? else { return Ok(Entries::new()) };
    // One statement for all cases: the later of the two lower bounds decides.
    let (from, including) = match after {
        Some(after) if after >= prefix => (after, false),
        _ => (prefix, true),
    };
    let mut statement = conn.prepare_cached(
        "SELECT key, value FROM keyed_state WHERE task = ?1 AND key >= ?2 ORDER BY key LIMIT ?3",
    )?;
    let limit = limit.min(GUEST_SCAN_MAX) as usize;
    // One more, as `after` itself may come first.
    let mut rows = statement.query((task, from, signed(limit as u64 + 1)))?;
    let mut entries = Entries::new();
    while let Some(row) = rows.next()? {
        let key = row.get_ref(0)?.as_blob()?;
        if !key.starts_with(prefix) || entries.len() == limit {
            break;
        }
        if including || key != from {
            entries.push((key.to_vec(), row.get(1)?));
        }
    }
    Ok(entries)
}

pub(super) fn tasks(conn: &Connection, processor: Option<&str>) -> ReadResult<Vec<TaskRow>, CommitError> {
    let mut statement = conn.prepare_cached(
        "SELECT processor, tenant, lane, generation, position, revision, at,
         coalesce((SELECT length(state) FROM states WHERE task = tasks.id), 0)
         FROM tasks WHERE ?1 IS NULL OR processor = ?1 ORDER BY processor, tenant, lane",
    )?;
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
        });
    }
    Ok(tasks)
}

pub(super) fn dead_letters(
    conn: &Connection,
    processor: &str,
    tenant: Option<&TenantId>,
    limit: u32,
) -> ReadResult<Vec<DeadLetterRow>, CommitError> {
    const AFTER_EVENT: usize = EVENT_COLUMN_COUNT;
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS}, tenant, task_tenant, lane, reason, message, attempts, dead_at
         FROM dead_letters WHERE processor = ?1 AND (?2 IS NULL OR task_tenant = ?2)
         ORDER BY seq DESC LIMIT ?3"
    ))?;
    let mut rows = statement.query((processor, tenant.map(TenantId::as_str), limit))?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        let mut event = EventBatch::new(stored_tenant(row.get_ref(AFTER_EVENT)?.as_str()?)?);
        event.push_checked(&read_event(row, 0)?);
        letters.push(DeadLetterRow {
            task: TaskId {
                processor: processor.into(),
                tenant: stored_tenant(row.get_ref(AFTER_EVENT + 1)?.as_str()?)?,
                lane: row.get(AFTER_EVENT + 2)?,
            },
            event: Arc::new(event),
            reason: row.get(AFTER_EVENT + 3)?,
            message: row.get(AFTER_EVENT + 4)?,
            attempts: row.get(AFTER_EVENT + 5)?,
            at: Micros(row.get(AFTER_EVENT + 6)?),
        });
    }
    Ok(letters)
}

pub(super) fn deployments(conn: &Connection) -> ReadResult<Vec<Deployment>, BackendError> {
    let mut statement = conn.prepare_cached("SELECT deployment FROM deployments ORDER BY plugin")?;
    let mut rows = statement.query([])?;
    let mut deployments = Vec::new();
    while let Some(row) = rows.next()? {
        deployments.push(from_json(row.get_ref(0)?.as_str()?)?);
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
        deployments.push(from_json(row.get_ref(0)?.as_str()?)?);
    }
    Ok(deployments)
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
