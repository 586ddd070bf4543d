//! Dead letters of groups as rows: each keeps its event, which outlives the log's own.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::committer::{Committer, text};
use super::database::signed;
use super::event_rows::{EVENT_COLUMN_COUNT, EVENT_COLUMNS, bind_event, read_event};
use crate::event::{EventBatch, Micros, Position, TenantId};
use crate::streams::groups::{DeadReason, GroupLetter, LetterPage};

const LETTER_COLUMNS: &str = "attempts, reason, message, consumer, dead_at, replaying";

fn letter_of(row: &Row<'_>, tenant: &TenantId) -> rusqlite::Result<GroupLetter> {
    let at = |column: usize| EVENT_COLUMN_COUNT + column;
    let mut event = EventBatch::new(tenant.clone());
    event.push_checked(&read_event(row, 0)?);
    Ok(GroupLetter {
        event: Arc::new(event),
        attempts: row.get(at(0))?,
        reason: DeadReason::parse(row.get_ref(at(1))?.as_str()?),
        message: row.get(at(2))?,
        consumer: row.get(at(3))?,
        at: Micros(row.get(at(4))?),
        replaying: row.get(at(5))?,
    })
}

/// All that a group is replaying.
pub(super) fn replaying(
    conn: &Connection,
    number: i64,
    tenant: &TenantId,
) -> rusqlite::Result<Vec<GroupLetter>> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS}, {LETTER_COLUMNS} FROM group_letters
         WHERE grp = ?1 AND replaying = 1 ORDER BY position"
    ))?;
    let letters = statement.query_map([number], |row| letter_of(row, tenant))?;
    letters.collect()
}

/// Those behind a position. Rows are read one by one, until the page is full.
pub(super) fn letter_page(
    conn: &Connection,
    (number, tenant): (i64, &TenantId),
    after: Position,
    limit: usize,
) -> rusqlite::Result<LetterPage> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS}, {LETTER_COLUMNS} FROM group_letters
         WHERE grp = ?1 AND position > ?2 ORDER BY position"
    ))?;
    let letters = statement.query_map((number, signed(after.0)), |row| letter_of(row, tenant))?;
    LetterPage::fill(letters, limit)
}

impl Committer {
    pub(super) fn write_group_letter(&self, number: i64, letter: &GroupLetter) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO group_letters({EVENT_COLUMNS}, grp, attempts, reason, message, consumer,
             dead_at, replaying) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
             ?17, ?18, ?19, ?20, 0)"
        ))?;
        bind_event(&mut statement, 1, &letter.event, 0)?;
        statement.raw_bind_parameter(15, number)?;
        statement.raw_bind_parameter(16, letter.attempts)?;
        statement.raw_bind_parameter(17, text(letter.reason.as_str()))?;
        statement.raw_bind_parameter(18, text(&letter.message))?;
        statement.raw_bind_parameter(19, text(&letter.consumer))?;
        statement.raw_bind_parameter(20, letter.at.0)?;
        statement.raw_execute().map(drop)
    }
}
