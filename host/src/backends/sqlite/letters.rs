//! Dead letters and parked events as rows.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::committer::{Committer, Stop, text};
use super::database::{signed, unsigned};
use super::event_rows::{EVENT_COLUMN_COUNT, EVENT_COLUMNS, bind_event, read_event};
use super::shared::stored_tenant;
use crate::checkpoints::{Commit, CommitError, DeadLetterRow, ParkedKey, ParkedState, TaskId};
use crate::event::{EventBatch, Micros, Position, TenantId};

/// What a listed dead letter has beside its event; the events behind it are those of its key.
const LETTER_COLUMNS: &str = "dead_letters.tenant, task_tenant, lane, reason, message, backtrace, attempts, key, \
     state_hash, plugin_version, dead_at";

fn letters_sql(wanted: &str) -> String {
    let event = EVENT_COLUMNS.split(", ").map(|column| format!("dead_letters.{}", column.trim()));
    let event = event.collect::<Vec<_>>().join(", ");
    format!(
        "WITH of_task AS (SELECT dead_letters.seq AS letter, tasks.id AS task FROM dead_letters
           LEFT JOIN tasks ON tasks.processor = dead_letters.processor
           AND tasks.tenant = dead_letters.task_tenant AND tasks.lane = dead_letters.lane)
         SELECT {event}, {LETTER_COLUMNS},
         EXISTS (SELECT 1 FROM parked_keys WHERE parked_keys.task = of_task.task
           AND parked_keys.key = dead_letters.key AND parked_keys.held = dead_letters.position),
         (SELECT count(*) FROM parked_events WHERE parked_events.task = of_task.task
           AND parked_events.key = dead_letters.key)
         FROM dead_letters JOIN of_task ON of_task.letter = dead_letters.seq
         WHERE processor = ?1 AND (?2 IS NULL OR task_tenant = ?2) {wanted}"
    )
}

/// The newest dead letters of a processor.
pub(super) fn newest(
    conn: &Connection,
    processor: &str,
    tenant: Option<&TenantId>,
    limit: u32,
) -> rusqlite::Result<Vec<DeadLetterRow>> {
    let mut statement = conn.prepare_cached(&letters_sql("ORDER BY seq DESC LIMIT ?3"))?;
    let mut rows = statement.query((processor, tenant.map(TenantId::as_str), limit))?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        letters.push(letter(row, processor)?);
    }
    Ok(letters)
}

pub(super) fn one(
    conn: &Connection,
    processor: &str,
    tenant: Option<&TenantId>,
    position: Position,
) -> rusqlite::Result<Option<DeadLetterRow>> {
    let mut statement = conn.prepare_cached(&letters_sql("AND position = ?3"))?;
    let mut rows = statement.query((processor, tenant.map(TenantId::as_str), signed(position.0)))?;
    Ok(match rows.next()? {
        Some(row) => Some(letter(row, processor)?),
        None => None,
    })
}

fn letter(row: &Row<'_>, processor: &str) -> rusqlite::Result<DeadLetterRow> {
    let at = |column: usize| EVENT_COLUMN_COUNT + column;
    let mut event = EventBatch::new(stored_tenant(row.get_ref(at(0))?.as_str()?)?);
    event.push_checked(&read_event(row, 0)?);
    Ok(DeadLetterRow {
        task: TaskId {
            processor: processor.into(),
            tenant: stored_tenant(row.get_ref(at(1))?.as_str()?)?,
            lane: row.get(at(2))?,
        },
        event: Arc::new(event),
        reason: row.get(at(3))?,
        message: row.get(at(4))?,
        backtrace: row.get(at(5))?,
        attempts: row.get(at(6))?,
        key: row.get_ref(at(7))?.as_blob()?.into(),
        state_hash: row.get(at(8))?,
        plugin_version: row.get(at(9))?,
        at: Micros(row.get(at(10))?),
        held: row.get(at(11))?,
        parked_behind: unsigned(row.get(at(12))?),
    })
}

/// Everything that is parked for a task, in order.
pub(super) fn parked(conn: &Connection, task: i64) -> rusqlite::Result<Vec<ParkedKey>> {
    let mut statement = conn.prepare_cached(
        "SELECT key, attempts, since, retry_at, held, message FROM parked_keys WHERE task = ?1 ORDER BY key",
    )?;
    let mut rows = statement.query([task])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let held: Option<i64> = row.get(4)?;
        let state = ParkedState {
            attempts: row.get(1)?,
            since: Micros(row.get(2)?),
            retry_at: Micros(row.get(3)?),
            held: held.map(|position| Position(unsigned(position))),
            message: row.get(5)?,
        };
        keys.push(ParkedKey { key: row.get_ref(0)?.as_blob()?.into(), state, events: Vec::new() });
    }
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS}, tenant FROM parked_events WHERE task = ?1 AND key = ?2 ORDER BY position"
    ))?;
    for parked in &mut keys {
        let mut rows = statement.query((task, &*parked.key))?;
        while let Some(row) = rows.next()? {
            let mut event = EventBatch::new(stored_tenant(row.get_ref(EVENT_COLUMN_COUNT)?.as_str()?)?);
            event.push_checked(&read_event(row, 0)?);
            parked.events.push(Arc::new(event));
        }
    }
    Ok(keys)
}

impl Committer {
    /// Removes what was replayed or discarded, and adds what has failed, up to `dead_letters_max`.
    pub(super) fn write_dead_letters(&self, commit: &Commit) -> Result<(), Stop<CommitError>> {
        if !commit.resolved.is_empty() {
            let mut statement = self
                .conn
                .prepare_cached("DELETE FROM dead_letters WHERE processor = ?1 AND position = ?2")?;
            for position in &commit.resolved {
                statement.execute((&*commit.task.processor, signed(position.0)))?;
            }
        }
        if commit.dead.is_empty() {
            return Ok(());
        }
        let mut statement = self.conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO dead_letters({EVENT_COLUMNS}, processor, task_tenant, lane, reason, message,
             backtrace, attempts, key, state_hash, plugin_version, dead_at, tenant) VALUES (?1, ?2, ?3, ?4, ?5,
             ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26)"
        ))?;
        for dead in commit.dead.iter().filter(|dead| !dead.event.is_empty()) {
            bind_event(&mut statement, 1, &dead.event, 0)?;
            statement.raw_bind_parameter(15, text(&commit.task.processor))?;
            statement.raw_bind_parameter(16, text(commit.task.tenant.as_str()))?;
            statement.raw_bind_parameter(17, commit.task.lane)?;
            statement.raw_bind_parameter(18, text(dead.reason))?;
            statement.raw_bind_parameter(19, text(&dead.message))?;
            statement.raw_bind_parameter(20, text(&dead.backtrace))?;
            statement.raw_bind_parameter(21, dead.attempts)?;
            statement.raw_bind_parameter(22, &*dead.key)?;
            statement.raw_bind_parameter(23, text(&dead.state_hash))?;
            statement.raw_bind_parameter(24, text(&dead.plugin_version))?;
            statement.raw_bind_parameter(25, dead.at.0)?;
            statement.raw_bind_parameter(26, text(dead.event.tenant.as_str()))?;
            statement.raw_execute()?;
        }
        self.check_dead_letters(commit)
    }

    fn check_dead_letters(&self, commit: &Commit) -> Result<(), Stop<CommitError>> {
        let letters: i64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM dead_letters WHERE processor = ?1")?
            .query_row([&*commit.task.processor], |row| row.get(0))?;
        let (letters, max) = (unsigned(letters), self.dead_letters_max);
        if letters <= max {
            return Ok(());
        }
        Err(Stop::Refused(CommitError::DeadLettersFull { task: commit.task.clone(), letters, max }))
    }

    pub(super) fn write_parked(&self, task: i64, commit: &Commit) -> Result<(), Stop<CommitError>> {
        let parked = &commit.parked;
        if parked.is_empty() {
            return Ok(());
        }
        let mut add = self.conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO parked_events({EVENT_COLUMNS}, task, key, tenant) VALUES (?1, ?2, ?3, ?4, ?5,
             ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
        ))?;
        for (key, event) in &parked.added {
            bind_event(&mut add, 1, event, 0)?;
            add.raw_bind_parameter(15, task)?;
            add.raw_bind_parameter(16, &**key)?;
            add.raw_bind_parameter(17, text(event.tenant.as_str()))?;
            add.raw_execute()?;
        }
        let mut remove =
            self.conn.prepare_cached("DELETE FROM parked_events WHERE task = ?1 AND position = ?2")?;
        for position in &parked.removed {
            remove.execute((task, signed(position.0)))?;
        }
        let mut put = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO parked_keys(task, key, attempts, since, retry_at, held, message)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let mut drop = self.conn.prepare_cached("DELETE FROM parked_keys WHERE task = ?1 AND key = ?2")?;
        for (key, state) in &parked.keys {
            let Some(state) = state else {
                drop.execute((task, &**key))?;
                continue;
            };
            let held = state.held.map(|position| signed(position.0));
            put.execute((
                task,
                &**key,
                state.attempts,
                state.since.0,
                state.retry_at.0,
                held,
                &state.message,
            ))?;
        }
        Ok(())
    }
}
