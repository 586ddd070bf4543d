//! Writing rows: one statement per row on the way that all rows take, a second
//! look only at the row that was left alone.

use std::fmt::Write as _;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{CachedStatement, OptionalExtension, ToSql};

use super::catalog::{column_name, rows_table};
use super::committer::{Committer, Stop, text};
use super::database::{signed, unsigned};
use super::event_rows::Text;
use crate::checkpoints::{Commit, CommitError, EffectRef};
use crate::event::Revision;
use crate::tables::{Cell, Cells, Row, RowChange, TableSchema, Value};

/// What a commit changed in one table.
#[derive(Debug)]
pub(super) struct TableRows {
    pub(super) table: String,
    pub(super) rows: Vec<RowChange>,
}

/// A table that is watched.
struct WatchedTable {
    /// Where each column of the writer stands among those that are stored.
    places: Vec<usize>,
    columns: usize,
    versioned: bool,
    rows: Vec<RowChange>,
}

impl WatchedTable {
    /// The row as it was written, with the stored columns.
    fn change(&self, revision: i64, write: RowWrite<'_>) -> RowChange {
        let key = write.key.to_owned();
        let version = if self.versioned { write.version } else { 0 };
        let Some(written) = write.cells else { return RowChange::Delete { key, version } };
        let mut cells = vec![Value::Null; self.columns];
        // They were read once already, when the row was written.
        for (cell, place) in Cells::new(written).flatten().zip(&self.places) {
            cells[*place] = cell.into();
        }
        RowChange::Put(Arc::new(Row { key, version, revision: Revision(unsigned(revision)), cells }))
    }
}

/// One write to a row; no cells stand for a delete.
#[derive(Clone, Copy)]
struct RowWrite<'a> {
    table: usize,
    key: &'a str,
    version: u64,
    cells: Option<&'a [u8]>,
}

/// Whose rows are written, and at which revision.
#[derive(Clone, Copy)]
struct Writer<'a> {
    tenant: i64,
    task: i64,
    revision: i64,
    now: i64,
    commit: &'a Commit,
}

impl Committer {
    /// Writes the rows of a commit, each at most once. Answers how many writes were stale, and what changed in
    /// tables that are watched.
    pub(super) fn write_rows(
        &self,
        tenant: i64,
        task: i64,
        revision: u64,
        commit: &Commit,
    ) -> Result<(u64, Vec<TableRows>), Stop<CommitError>> {
        let mut writes = Vec::new();
        for effect in commit.effects.iter().flat_map(|effects| effects.iter()) {
            match effect {
                EffectRef::Put { table, key, version, cells } => {
                    writes.push(RowWrite { table, key, version, cells: Some(cells) });
                }
                EffectRef::Delete { table, key, version } => {
                    writes.push(RowWrite { table, key, version, cells: None });
                }
                _ => {}
            }
        }
        // Stable, so writes of one row stay in order; and rows that lie near each other are written together.
        writes.sort_by(|a, b| (a.table, a.key).cmp(&(b.table, b.key)));
        let writer =
            Writer { tenant, task, revision: signed(revision), now: self.clock.now().0.max(1), commit };
        let mut stale = 0;
        let mut changed = Vec::new();
        for of_table in writes.chunk_by(|a, b| a.table == b.table) {
            stale += self.write_table(writer, of_table, &mut changed)?;
        }
        Ok((stale, changed))
    }

    fn write_table(
        &self,
        writer: Writer<'_>,
        writes: &[RowWrite<'_>],
        changed: &mut Vec<TableRows>,
    ) -> Result<u64, Stop<CommitError>> {
        let Some(table) = writes.first().and_then(|write| writer.commit.tables.get(write.table)) else {
            return Ok(0);
        };
        let stored = self.check_table(writer.commit, table)?;
        let mut upsert = self.conn.prepare_cached(&upsert_sql(table, stored))?;
        let mut delete = self.conn.prepare_cached(&delete_sql(stored))?;
        let mut watched = self.watched(writer.commit, table, stored);
        let mut stale = 0;
        for run in writes.chunk_by(|a, b| a.key == b.key) {
            let (write, passed_over) = coalesce(table.versioned, run);
            let written = self.write_row(writer, table, &mut upsert, &mut delete, write)? > 0
                || self.look_again(writer, table, &mut upsert, &mut delete, write)?;
            if let Some(watched) = watched.as_mut().filter(|_| written) {
                watched.rows.push(watched.change(writer.revision, write));
            }
            // When the highest version of a run is stale, all of the run are.
            stale += if written { passed_over } else { run.len() as u64 };
        }
        changed.extend(watched.map(|watched| TableRows { table: table.name.clone(), rows: watched.rows }));
        let (tenant, revision) = (&writer.commit.task.tenant, Revision(unsigned(writer.revision)));
        self.shared.last_changed.note(tenant, &table.name, revision, writes.iter().map(|write| write.key));
        Ok(stale)
    }

    /// What is needed to tell of changes, if anybody watches this table.
    fn watched(&self, commit: &Commit, table: &TableSchema, stored: &TableSchema) -> Option<WatchedTable> {
        let tables = self.watched.get(&commit.task.tenant)?;
        if !tables.contains(&table.name) {
            return None;
        }
        let places = table.columns.iter().map(|column| stored.column(&column.name).map_or(0, |(at, _)| at));
        Some(WatchedTable {
            places: places.collect(),
            columns: stored.columns.len(),
            versioned: table.versioned,
            rows: Vec::new(),
        })
    }

    /// A commit writes to tables that its own plugin has declared. Answers what
    /// is stored, which may have columns that this version does not know.
    fn check_table(&self, commit: &Commit, table: &TableSchema) -> Result<&TableSchema, Stop<CommitError>> {
        let refused = |reason| Err(Stop::Refused(CommitError::Refused { task: commit.task.clone(), reason }));
        let Some(entry) = self.catalog.get(&table.name) else {
            return refused(format!("table `{}` is not declared", table.name));
        };
        if entry.owner.as_deref() != Some(&*commit.task.processor) {
            let owner = entry.owner.as_deref().unwrap_or("nobody");
            return refused(format!("table `{}` belongs to plugin `{owner}`", table.name));
        }
        let fits = entry.schema.versioned == table.versioned
            && table.columns.iter().all(|column| {
                entry.schema.column(&column.name).is_some_and(|(_, c)| c.column_type == column.column_type)
            });
        if !fits {
            return refused(format!("table `{}` is declared otherwise by now", table.name));
        }
        Ok(&entry.schema)
    }

    fn write_row(
        &self,
        writer: Writer<'_>,
        table: &TableSchema,
        upsert: &mut CachedStatement<'_>,
        delete: &mut CachedStatement<'_>,
        write: RowWrite<'_>,
    ) -> Result<usize, Stop<CommitError>> {
        let Some(cells) = write.cells else {
            delete.raw_bind_parameter(1, writer.tenant)?;
            delete.raw_bind_parameter(2, text(write.key))?;
            delete.raw_bind_parameter(3, writer.task)?;
            if table.versioned {
                delete.raw_bind_parameter(4, signed(write.version))?;
                delete.raw_bind_parameter(5, writer.revision)?;
                delete.raw_bind_parameter(6, writer.now)?;
            }
            return Ok(delete.raw_execute()?);
        };
        upsert.raw_bind_parameter(1, writer.tenant)?;
        upsert.raw_bind_parameter(2, text(write.key))?;
        upsert.raw_bind_parameter(3, writer.task)?;
        upsert.raw_bind_parameter(4, if table.versioned { signed(write.version) } else { 0 })?;
        upsert.raw_bind_parameter(5, writer.revision)?;
        for (index, cell) in Cells::new(cells).enumerate() {
            let cell = cell.map_err(|e| {
                let reason = format!("table `{}`, key `{}`: {e}", table.name, write.key);
                Stop::Refused(CommitError::Refused { task: writer.commit.task.clone(), reason })
            })?;
            upsert.raw_bind_parameter(6 + index, SqlCell(cell))?;
        }
        Ok(upsert.raw_execute()?)
    }

    /// Nothing changed: the write is stale, there was nothing to delete, or the
    /// row belongs to another task. A row of a task that no longer exists (its
    /// plugin was removed) is taken over. Answers false when the write is stale.
    fn look_again(
        &self,
        writer: Writer<'_>,
        table: &TableSchema,
        upsert: &mut CachedStatement<'_>,
        delete: &mut CachedStatement<'_>,
        write: RowWrite<'_>,
    ) -> Result<bool, Stop<CommitError>> {
        let rows = rows_table(&table.name);
        let owner: Option<(i64, Option<u32>)> = self
            .conn
            .prepare_cached(&format!(
                "SELECT r._task, t.lane FROM {rows} r LEFT JOIN tasks t ON t.id = r._task
                 WHERE r._tenant = ?1 AND r.key = ?2"
            ))?
            .query_row((writer.tenant, write.key), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match owner {
            // An unversioned delete of a row that is not there.
            None => Ok(true),
            Some((task, _)) if task == writer.task => Ok(false),
            Some((_, Some(lane))) => Err(Stop::Refused(CommitError::Refused {
                task: writer.commit.task.clone(),
                reason: format!(
                    "table `{}`, key `{}`: the row belongs to lane {lane}, which first wrote it; \
                     write a row from events of one ordering key only",
                    table.name, write.key
                ),
            })),
            Some((_, None)) => {
                self.conn
                    .prepare_cached(&format!("UPDATE {rows} SET _task = ?3 WHERE _tenant = ?1 AND key = ?2"))?
                    .execute((writer.tenant, write.key, writer.task))?;
                Ok(self.write_row(writer, table, upsert, delete, write)? > 0)
            }
        }
    }
}

/// The one write that stands for a run of writes to a row, and how many of the
/// others were stale. In a versioned table that is the first of the highest
/// version, as if each had been written in turn; otherwise the last.
fn coalesce<'a>(versioned: bool, run: &[RowWrite<'a>]) -> (RowWrite<'a>, u64) {
    let mut kept = run[0];
    let mut stale = 0;
    for write in &run[1..] {
        if versioned && write.version <= kept.version {
            stale += 1;
        } else {
            kept = *write;
        }
    }
    (kept, stale)
}

/// A put is the whole row: what the writer does not know becomes null.
fn upsert_sql(table: &TableSchema, stored: &TableSchema) -> String {
    let rows = rows_table(&table.name);
    let mut columns = String::new();
    let mut values = String::new();
    let mut updates = String::new();
    for (index, column) in table.columns.iter().enumerate() {
        let name = column_name(&column.name);
        // Writing to a String cannot fail.
        let _ = write!(columns, ", {name}");
        let _ = write!(values, ", ?{}", index + 6);
        let _ = write!(updates, ", {name} = excluded.{name}");
    }
    for column in stored.columns.iter().filter(|c| table.column(&c.name).is_none()) {
        let _ = write!(updates, ", {} = NULL", column_name(&column.name));
    }
    let gate = if table.versioned { " AND excluded._version > _version" } else { "" };
    format!(
        "INSERT INTO {rows}(_tenant, key, _task, _version, _revision, _deleted{columns})
         VALUES (?1, ?2, ?3, ?4, ?5, 0{values})
         ON CONFLICT(_tenant, key) DO UPDATE SET _version = excluded._version,
         _revision = excluded._revision, _deleted = 0{updates}
         WHERE _task = excluded._task{gate}"
    )
}

/// A versioned table keeps a tombstone, also of a row that it has not seen yet.
fn delete_sql(table: &TableSchema) -> String {
    let rows = rows_table(&table.name);
    if !table.versioned {
        return format!("DELETE FROM {rows} WHERE _tenant = ?1 AND key = ?2 AND _task = ?3");
    }
    let mut empty = String::new();
    for column in &table.columns {
        let _ = write!(empty, ", {} = NULL", column_name(&column.name));
    }
    format!(
        "INSERT INTO {rows}(_tenant, key, _task, _version, _revision, _deleted)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT(_tenant, key) DO UPDATE SET _version = excluded._version,
         _revision = excluded._revision, _deleted = excluded._deleted{empty}
         WHERE _task = excluded._task AND excluded._version > _version"
    )
}

struct SqlCell<'a>(Cell<'a>);

impl ToSql for SqlCell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Cell::Null => ToSqlOutput::Owned(SqlValue::Null),
            Cell::Bool(value) => ToSqlOutput::Owned(SqlValue::Integer(i64::from(value))),
            Cell::Int(value) | Cell::Timestamp(value) => ToSqlOutput::Owned(SqlValue::Integer(value)),
            Cell::Float(value) => ToSqlOutput::Owned(SqlValue::Real(value)),
            Cell::Text(text) | Cell::Json(text) => {
                let Text(bytes) = Text(text.as_bytes());
                ToSqlOutput::Borrowed(ValueRef::Text(bytes))
            }
            Cell::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}
