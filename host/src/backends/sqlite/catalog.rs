//! Declaring tables: what may change in place, and the SQL that does it.
//!
//! A table is one physical table of its own, with typed columns that other
//! tools can read. Identifiers come from validated schemas (`a-z 0-9 _`) and
//! are prefixed, so they need no escaping beyond their quotes.

use std::fmt::Write as _;

use rusqlite::Connection;

use super::committer::{Committer, Stop};
use super::database::signed;
use super::shared::{Catalog, Shared, TableEntry, to_json};
use crate::event::Micros;
use crate::limits::TRIM_EVENTS_MAX;
use crate::tables::{Column, ColumnType, TableError, TableSchema};

/// The physical name of a table.
pub(super) fn rows_table(table: &str) -> String {
    format!("\"rows_{table}\"")
}

/// The physical name of a column, the three built-in ones among them.
pub(super) fn column_name(column: &str) -> String {
    match column {
        "key" => "key".to_owned(),
        "version" => "_version".to_owned(),
        "revision" => "_revision".to_owned(),
        declared => format!("\"c_{declared}\""),
    }
}

/// What a declaration would do to one table.
#[derive(Debug, PartialEq)]
enum Change {
    Create,
    /// Columns to add, by name; indexes are compared apart.
    Alter(Vec<String>),
}

/// Whether a plugin may declare these tables, given what there is.
pub(super) fn check(catalog: &Catalog, plugin: &str, tables: &[TableSchema]) -> Result<(), TableError> {
    tables.iter().try_for_each(|table| change(catalog, plugin, table).map(drop))
}

fn change(catalog: &Catalog, plugin: &str, table: &TableSchema) -> Result<Change, TableError> {
    table.validate()?;
    let Some(entry) = catalog.get(&table.name) else { return Ok(Change::Create) };
    if let Some(owner) = entry.owner.as_deref().filter(|owner| *owner != plugin) {
        return Err(TableError::Owned { table: table.name.clone(), owner: owner.to_owned() });
    }
    let known = &entry.schema;
    let changed =
        |difference: String| Err(TableError::SchemaChanged { table: table.name.clone(), difference });
    if known.versioned != table.versioned {
        return changed(format!("versioned was {}, now {}", known.versioned, table.versioned));
    }
    for column in &known.columns {
        let Some((_, now)) = table.column(&column.name) else {
            // An earlier version does not know what a later one added: its rows are null there.
            if column.nullable {
                continue;
            }
            return changed(format!("column `{}` is gone and not nullable", column.name));
        };
        if now.column_type != column.column_type {
            return changed(format!(
                "column `{}` was {:?}, now {:?}",
                column.name, column.column_type, now.column_type
            ));
        }
        if column.nullable && !now.nullable {
            return changed(format!("column `{}` was nullable and no longer is", column.name));
        }
    }
    let mut added = Vec::new();
    for column in &table.columns {
        if known.column(&column.name).is_none() {
            if !column.nullable {
                return changed(format!("the added column `{}` is not nullable", column.name));
            }
            added.push(column.name.clone());
        }
    }
    Ok(Change::Alter(added))
}

impl Committer {
    /// Makes a plugin's tables exist: all of them or, when one is refused, none.
    pub(super) fn declare(&mut self, plugin: &str, tables: &[TableSchema]) -> Result<(), Stop<TableError>> {
        check(&self.catalog, plugin, tables).map_err(Stop::Refused)?;
        for table in tables {
            // A start declares what is there already: that writes nothing, so it waits for no disk.
            let known = self.catalog.get(&table.name);
            if known.is_some_and(|e| e.owner.as_deref() == Some(plugin) && e.schema == *table) {
                continue;
            }
            let indexes = indexes_of(&self.catalog, &table.name);
            // Looked up again: two tables of one name in a declaration change it one after the other.
            match change(&self.catalog, plugin, table).map_err(Stop::Refused)? {
                Change::Create => self.conn.execute_batch(&create_sql(table, &indexes))?,
                Change::Alter(added) => self.alter(table, &indexes, &added)?,
            }
            let table = &self.with_kept_columns(table);
            self.conn
                .prepare_cached(
                    "INSERT INTO tables(name, owner, schema, indexes) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT(name) DO UPDATE SET owner = excluded.owner, schema = excluded.schema",
                )?
                .execute((&table.name, plugin, to_json(table)?, &indexes))?;
            let entry = TableEntry { owner: Some(plugin.to_owned()), schema: table.clone(), indexes };
            self.catalog.insert(table.name.clone(), entry);
            self.note_catalog_change();
        }
        Ok(())
    }

    /// What is stored is the superset: columns that are no longer declared stay readable.
    fn with_kept_columns(&self, table: &TableSchema) -> TableSchema {
        let mut table = table.clone();
        if let Some(entry) = self.catalog.get(&table.name) {
            let kept = entry.schema.columns.iter().filter(|c| table.column(&c.name).is_none());
            let kept: Vec<Column> = kept.cloned().collect();
            table.columns.extend(kept);
        }
        table
    }

    fn alter(&self, table: &TableSchema, indexes: &str, added: &[String]) -> Result<(), rusqlite::Error> {
        let rows = rows_table(&table.name);
        for column in table.columns.iter().filter(|c| added.contains(&c.name)) {
            self.conn.execute_batch(&format!("ALTER TABLE {rows} ADD COLUMN {}", column_sql(column)))?;
        }
        for column in &table.columns {
            self.conn.execute_batch(&if column.sortable {
                index_sql(&table.name, indexes, &column.name)
            } else {
                format!("DROP INDEX IF EXISTS {}", index_name(indexes, &column.name))
            })?;
        }
        Ok(())
    }

    /// Drops some of the tombstones of before a time: at most a transaction's share.
    pub(super) fn purge_tombstones(
        &mut self,
        before: Micros,
    ) -> Result<u64, Stop<crate::error::BackendError>> {
        let mut left = TRIM_EVENTS_MAX;
        for table in self.catalog.values().filter(|entry| entry.schema.versioned) {
            let rows = rows_table(&table.schema.name);
            let mut purge = self.conn.prepare_cached(&format!(
                "DELETE FROM {rows} WHERE (_tenant, key) IN (SELECT _tenant, key FROM {rows}
                 WHERE _deleted > 0 AND _deleted < ?1 ORDER BY _deleted LIMIT ?2)"
            ))?;
            let purged = purge.execute((before.0, signed(left)))?;
            left = left.saturating_sub(purged as u64);
            if left == 0 {
                break;
            }
        }
        Ok(TRIM_EVENTS_MAX - left)
    }
}

impl Shared {
    /// Whether there is a tombstone to drop. A failure says no: the next look is a second away.
    pub(super) fn has_tombstones_before(&self, conn: &Connection, before: Micros) -> bool {
        let versioned: Vec<String> = self.with_catalog(|catalog| {
            catalog.values().filter(|e| e.schema.versioned).map(|e| rows_table(&e.schema.name)).collect()
        });
        versioned.iter().any(|rows| {
            conn.query_row(
                &format!("SELECT EXISTS(SELECT 1 FROM {rows} WHERE _deleted > 0 AND _deleted < ?1)"),
                [before.0],
                |row| row.get(0),
            )
            .unwrap_or(false)
        })
    }
}

pub(super) fn create_sql(table: &TableSchema, indexes: &str) -> String {
    let rows = rows_table(&table.name);
    let mut sql = format!(
        "CREATE TABLE {rows}(_tenant INTEGER NOT NULL, key TEXT NOT NULL, _version INTEGER NOT NULL,
         _revision INTEGER NOT NULL, _task INTEGER NOT NULL, _deleted INTEGER NOT NULL DEFAULT 0"
    );
    for column in &table.columns {
        // Writing to a String cannot fail.
        let _ = write!(sql, ", {}", column_sql(column));
    }
    sql.push_str(", PRIMARY KEY(_tenant, key)) WITHOUT ROWID;");
    if table.versioned {
        let _ = write!(sql, "CREATE INDEX \"tombstones_{indexes}\" ON {rows}(_deleted) WHERE _deleted > 0;");
    }
    for column in table.columns.iter().filter(|c| c.sortable) {
        sql.push_str(&index_sql(&table.name, indexes, &column.name));
    }
    sql
}

/// Cells are checked before they come here, and a tombstone has none: no NOT NULL.
fn column_sql(column: &Column) -> String {
    let affinity = match column.column_type {
        ColumnType::Bool | ColumnType::Int | ColumnType::Timestamp => "INTEGER",
        ColumnType::Float => "REAL",
        ColumnType::Text | ColumnType::Json => "TEXT",
        ColumnType::Bytes => "BLOB",
    };
    format!("{} {affinity}", column_name(&column.name))
}

/// An index by the name that its table had when it was made.
pub(super) fn index_name(indexes: &str, column: &str) -> String {
    format!("\"order_{indexes}.{column}\"")
}

/// Under which name a table's indexes are made: its own, unless they are still there of one that was called so before.
fn indexes_of(catalog: &Catalog, table: &str) -> String {
    if let Some(entry) = catalog.get(table) {
        return entry.indexes.clone();
    }
    let is_taken = |name: &str| catalog.values().any(|entry| entry.indexes == name);
    let mut name = table.to_owned();
    for again in 1u64.. {
        if !is_taken(&name) {
            break;
        }
        name = format!("{table}~again~{again}");
    }
    name
}

/// Without tombstones, and ending in the key, as every order does.
fn index_sql(table: &str, indexes: &str, column: &str) -> String {
    format!(
        "CREATE INDEX IF NOT EXISTS {} ON {}(_tenant, {}, key) WHERE _deleted = 0;",
        index_name(indexes, column),
        rows_table(table),
        column_name(column)
    )
}
