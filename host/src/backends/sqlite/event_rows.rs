//! Events as rows: binding them from a batch's arena, and reading them back into one.

use rusqlite::types::{ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row};

use super::database::{signed, unsigned};
use crate::event::{Event, EventBatch, Micros, Position};

/// Bytes that are text already, bound without looking at them again.
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// The same, where no bytes stand for an absent part.
struct Optional<'a>(&'a [u8]);

impl ToSql for Optional<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(if self.0.is_empty() {
            ToSqlOutput::Owned(Value::Null)
        } else {
            ToSqlOutput::Borrowed(ValueRef::Text(self.0))
        })
    }
}

/// What [`read_event`] expects, in this order.
pub(super) const EVENT_COLUMNS: &str = "position, id, aggregate, agg_id, version, type, at, schema_version, \
     depth, scope, kind, cursor, traceparent, payload";
pub(super) const EVENT_COLUMN_COUNT: usize = 14;

pub(super) const INSERT_EVENT: &str = "INSERT INTO events(position, id, aggregate, agg_id, version, type, at, \
     schema_version, depth, scope, kind, cursor, traceparent, payload, tenant, appended_at) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";

/// [`EVENT_COLUMNS`] and the tenant, of one position.
const SELECT_EVENT: &str = "SELECT position, id, aggregate, agg_id, version, type, at, schema_version, depth, \
     scope, kind, cursor, traceparent, payload, tenant FROM events WHERE position = ?1";

/// When the tenant's first event after a position was appended.
pub(super) fn appended_at(
    conn: &Connection,
    tenant: i64,
    after: Position,
) -> rusqlite::Result<Option<Micros>> {
    conn.prepare_cached(
        "SELECT appended_at FROM events WHERE tenant = ?1 AND position > ?2 ORDER BY position LIMIT 1",
    )?
    .query_row((tenant, signed(after.0)), |row| row.get(0).map(Micros))
    .optional()
}

/// Binds event `index` as [`EVENT_COLUMNS`], from parameter `first` on, straight from the arena.
pub(super) fn bind_event(
    statement: &mut CachedStatement<'_>,
    first: usize,
    batch: &EventBatch,
    index: usize,
) -> rusqlite::Result<()> {
    let record = &batch.records()[index];
    let mut rest = &batch.arena()[record.span()];
    let mut take = |bytes: u32| {
        let (part, after) = rest.split_at(bytes as usize);
        rest = after;
        part
    };
    statement.raw_bind_parameter(first, signed(record.position))?;
    statement.raw_bind_parameter(first + 1, Text(take(record.id_bytes)))?;
    statement.raw_bind_parameter(first + 2, Text(take(record.aggregate_bytes)))?;
    statement.raw_bind_parameter(first + 3, Text(take(record.agg_id_bytes)))?;
    statement.raw_bind_parameter(first + 4, signed(record.version))?;
    statement.raw_bind_parameter(first + 5, Text(take(record.type_bytes)))?;
    statement.raw_bind_parameter(first + 6, record.at)?;
    statement.raw_bind_parameter(first + 7, record.schema_version)?;
    statement.raw_bind_parameter(first + 8, record.depth)?;
    statement.raw_bind_parameter(first + 9, Optional(take(record.scope_bytes)))?;
    statement.raw_bind_parameter(first + 10, Optional(take(record.kind_bytes)))?;
    statement.raw_bind_parameter(first + 11, Optional(take(record.cursor_bytes)))?;
    statement.raw_bind_parameter(first + 12, Optional(take(record.traceparent_bytes)))?;
    statement.raw_bind_parameter(first + 13, Text(take(record.payload_bytes)))
}

/// The event whose [`EVENT_COLUMNS`] begin at column `first`, borrowed from the row.
pub(super) fn read_event<'a>(row: &'a Row<'_>, first: usize) -> rusqlite::Result<Event<'a>> {
    let text = |column: usize| -> rusqlite::Result<&'a str> {
        Ok(row.get_ref(first + column)?.as_str_or_null()?.unwrap_or(""))
    };
    let number = |column: usize| -> rusqlite::Result<i64> { Ok(row.get_ref(first + column)?.as_i64()?) };
    let small = |column: usize| number(column).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let payload = match row.get_ref(first + 13)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => b"null",
    };
    Ok(Event {
        position: Position(unsigned(number(0)?)),
        id: text(1)?,
        aggregate: text(2)?,
        agg_id: text(3)?,
        version: unsigned(number(4)?),
        event_type: text(5)?,
        at: Micros(number(6)?),
        schema_version: small(7)?,
        depth: small(8)?,
        scope: text(9)?,
        kind: text(10)?,
        cursor: text(11)?,
        traceparent: text(12)?,
        payload,
    })
}

/// How a stored event compares with one that has the same hash.
pub(super) enum Likeness {
    /// Another event whose id only hashes alike.
    Other,
    /// The same id and content.
    Same,
    /// The same id, but it says something else.
    Conflicting,
}

impl Likeness {
    pub(super) fn of(stored: &Event<'_>, asked: &Event<'_>) -> Self {
        if stored.id != asked.id {
            Self::Other
        } else if stored.same_content(asked) {
            Self::Same
        } else {
            Self::Conflicting
        }
    }

    /// Compares with the event at a position, also one this transaction has not yet committed.
    pub(super) fn of_stored(
        conn: &Connection,
        position: u64,
        tenant: i64,
        asked: &Event<'_>,
    ) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare_cached(SELECT_EVENT)?;
        let mut rows = statement.query((signed(position),))?;
        let Some(row) = rows.next()? else { return Ok(Self::Other) };
        if row.get_ref(EVENT_COLUMN_COUNT)?.as_i64()? != tenant {
            return Ok(Self::Other);
        }
        Ok(Self::of(&read_event(row, 0)?, asked))
    }
}
