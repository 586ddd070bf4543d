//! A canonical dump of a store: what must not depend on when a host was killed.
//!
//! Rows with their tombstones, events, dead letters, snapshots, keyed state and entries of channels,
//! sorted; without positions, revisions, generations, epochs, the numbers of
//! tasks and tenants, and the host's own times. How often an event was tried that fell is left out
//! too: once if it was alone from the start, twice if it met its trap in a batch, and a kill decides
//! which. Tries that ran out (`retries`) are counted and told. Read from the stopped store's file, with nothing of
//! the host in between.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use rusqlite::{Connection, OpenFlags, types::ValueRef};

/// What every store has. A task is told by its names: its number depends on who came first.
const SECTIONS: [(&str, &str); 6] = [
    (
        "events",
        "SELECT t.name, e.aggregate, e.agg_id, e.version, e.id, e.type, e.at, e.schema_version, e.depth,
           e.scope, e.kind, e.cursor, e.traceparent, e.payload
         FROM events e JOIN tenants t ON t.id = e.tenant",
    ),
    (
        "dead letters",
        "SELECT processor, task_tenant, lane, key, reason, message,
           CASE reason WHEN 'retries' THEN attempts END, plugin_version, tenant, id, aggregate, agg_id, version,
           type, at, schema_version, depth, scope, kind, cursor, traceparent, payload
         FROM dead_letters",
    ),
    (
        "parked keys",
        "SELECT t.processor, t.tenant, t.lane, k.key, CASE WHEN k.held IS NULL THEN k.attempts END,
           k.held IS NOT NULL, k.message
         FROM parked_keys k JOIN tasks t ON t.id = k.task",
    ),
    (
        "parked events",
        "SELECT t.processor, t.tenant, t.lane, p.key, p.id, p.type, p.payload
         FROM parked_events p JOIN tasks t ON t.id = p.task",
    ),
    (
        "states",
        "SELECT t.processor, t.tenant, t.lane, s.content_type, s.state
         FROM states s JOIN tasks t ON t.id = s.task",
    ),
    (
        "keyed state",
        "SELECT t.processor, t.tenant, t.lane, k.key, k.value
         FROM keyed_state k JOIN tasks t ON t.id = k.task",
    ),
];

/// What few stores have; told where it is there. Where the host's own time would show, it is left out: an event of an
/// entry bears it, so channels with events are no matter for a dump.
const CHANNELS: (&str, &str) = (
    "channel entries",
    "SELECT p.tenant, p.name, c.name, e.position, e.sender, e.epoch, e.sequence, e.reply, e.type, e.error, e.payload
     FROM channel_entries e JOIN channels c ON c.id = e.channel JOIN processes p ON p.id = c.process",
);

/// Dumps the store in a folder. The host must not be running.
pub fn dump(data: &Path) -> Result<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(data.join("millrace.db"), flags)?;
    let mut out = String::new();
    for (name, query) in SECTIONS {
        section(&db, &mut out, name, query)?;
    }
    if db.prepare("SELECT 1 FROM channel_entries LIMIT 1")?.exists([])? {
        section(&db, &mut out, CHANNELS.0, CHANNELS.1)?;
    }
    let mut tables = db.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'rows\\_%' ESCAPE '\\' ORDER BY name",
    )?;
    let names: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in names {
        let columns: Vec<String> = db
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let kept = columns.iter().filter_map(|column| match column.as_str() {
            "_revision" | "_task" | "_tenant" => None,
            // A tombstone's time is the host's; that there is one is not.
            "_deleted" => Some("r._deleted > 0".to_owned()),
            column => Some(format!("r.\"{column}\"")),
        });
        let kept = kept.collect::<Vec<_>>().join(", ");
        let query = format!("SELECT t.name, {kept} FROM \"{table}\" r JOIN tenants t ON t.id = r._tenant");
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
                ValueRef::Text(bytes) => write!(line, "{:?}", String::from_utf8_lossy(bytes))?,
                ValueRef::Blob(bytes) => write!(line, "b\"{}\"", bytes.escape_ascii())?,
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
