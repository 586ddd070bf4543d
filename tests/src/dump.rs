//! A canonical dump of a store: what must not depend on when a host was killed.
//!
//! Rows, events and dead letters, sorted; without positions, revisions,
//! generations and epochs. Read from the stopped store's file, with nothing of
//! the host in between.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use rusqlite::{Connection, OpenFlags, types::ValueRef};

/// Dumps the store in a folder. The host must not be running.
pub fn dump(data: &Path) -> Result<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(data.join("millrace.db"), flags)?;
    let mut out = String::new();
    section(
        &db,
        &mut out,
        "events",
        "SELECT t.name, e.aggregate, e.agg_id, e.version, e.id, e.type, e.at, e.schema_version, e.depth, e.payload
         FROM events e JOIN tenants t ON t.id = e.tenant",
    )?;
    let mut tables = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'rows\\_%' ESCAPE '\\' ORDER BY name")?;
    let names: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in names {
        let columns: Vec<String> = db
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let kept: Vec<String> = columns
            .iter()
            .filter(|c| !matches!(c.as_str(), "_revision" | "_task" | "_tenant"))
            .map(|c| format!("r.\"{c}\""))
            .collect();
        let query = format!(
            "SELECT t.name, {} FROM \"{table}\" r JOIN tenants t ON t.id = r._tenant",
            kept.join(", ")
        );
        section(&db, &mut out, &table, &query)?;
    }
    Ok(out)
}

fn section(db: &Connection, out: &mut String, name: &str, query: &str) -> Result<()> {
    let mut statement = db.prepare(query)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let mut line = String::new();
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => line.push('-'),
                ValueRef::Integer(n) => write!(line, "{n}")?,
                ValueRef::Real(x) => write!(line, "{x:?}")?,
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    write!(line, "{:?}", String::from_utf8_lossy(bytes))?
                }
            }
            line.push('\t');
        }
        lines.push(line);
    }
    lines.sort();
    writeln!(out, "== {name}: {}", lines.len())?;
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
