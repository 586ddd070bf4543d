//! Opening the database file: settings of a connection, the schema, what errors mean.

use std::path::Path;

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::channel_runs::SCHEMA as SCHEMA_7;
use super::channels::SCHEMA as SCHEMA_6;
use super::groups::SCHEMA as SCHEMA_4;
use super::options::{OpenError, SqliteOptions, Synchronous};
use super::outbox::{SCHEMA as SCHEMA_5, SCHEMA_OF_ENTRIES as SCHEMA_8};
use super::rebuilds::SCHEMA as SCHEMA_9;
use crate::error::BackendError;
use crate::tables::{matches_ilike, matches_like};

/// The schema this code writes; kept in `user_version`.
const SCHEMA_VERSION: i64 = 9;
pub(super) const PAGE_BYTES: u64 = 4096;
/// In the folder of the store.
pub(super) const DATABASE_FILE: &str = "millrace.db";

/// Payload is JSON text. `events_tenant` ends in the rowid, which is the position: it serves
/// `tenant = ? and position > ?` in order. Nothing random is indexed here: ids are found in memory.
const SCHEMA: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE tenants(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, appended INTEGER NOT NULL DEFAULT 0);
CREATE TABLE events(
  position INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, appended_at INTEGER NOT NULL, payload TEXT NOT NULL);
CREATE INDEX events_tenant ON events(tenant);
CREATE TABLE tasks(
  id INTEGER PRIMARY KEY AUTOINCREMENT, processor TEXT NOT NULL, tenant TEXT NOT NULL, lane INTEGER NOT NULL,
  generation INTEGER NOT NULL, position INTEGER NOT NULL, revision INTEGER NOT NULL, at INTEGER NOT NULL,
  UNIQUE(processor, tenant, lane));
CREATE TABLE states(task INTEGER PRIMARY KEY, content_type TEXT NOT NULL, state BLOB NOT NULL);
CREATE TABLE keyed_state(task INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY(task, key)) WITHOUT ROWID;
CREATE TABLE dead_letters(
  seq INTEGER PRIMARY KEY, processor TEXT NOT NULL, task_tenant TEXT NOT NULL, lane INTEGER NOT NULL,
  reason TEXT NOT NULL, message TEXT NOT NULL, attempts INTEGER NOT NULL, dead_at INTEGER NOT NULL,
  position INTEGER NOT NULL, tenant TEXT NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL);
CREATE INDEX dead_letters_processor ON dead_letters(processor);
CREATE TABLE tables(name TEXT PRIMARY KEY, owner TEXT, schema TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deployments(plugin TEXT PRIMARY KEY, deployment TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deployment_history(seq INTEGER PRIMARY KEY, plugin TEXT NOT NULL, deployment TEXT NOT NULL);
CREATE INDEX deployment_history_plugin ON deployment_history(plugin);
INSERT INTO meta VALUES ('trimmed', 0), ('revision', 0), ('generation', 0);
";

/// What version 2 adds: expiry and size of keyed state, what a dead letter was held for, parked events,
/// and what became of the last candidate. An event that became a dead letter again after its plugin was
/// removed and deployed anew keeps the later of the two.
const SCHEMA_2: &str = "
ALTER TABLE keyed_state ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX keyed_state_expiry ON keyed_state(task, expires_at) WHERE expires_at > 0;
ALTER TABLE tasks ADD COLUMN keyed_entries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN keyed_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET
  keyed_entries = (SELECT count(*) FROM keyed_state WHERE task = tasks.id),
  keyed_bytes = (SELECT coalesce(sum(length(key) + length(value)), 0) FROM keyed_state WHERE task = tasks.id);
ALTER TABLE dead_letters ADD COLUMN key BLOB NOT NULL DEFAULT x'';
ALTER TABLE dead_letters ADD COLUMN state_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN plugin_version TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN backtrace TEXT NOT NULL DEFAULT '';
DELETE FROM dead_letters WHERE seq NOT IN (SELECT max(seq) FROM dead_letters GROUP BY processor, position);
CREATE UNIQUE INDEX dead_letters_position ON dead_letters(processor, position);
CREATE TABLE parked_keys(
  task INTEGER NOT NULL, key BLOB NOT NULL, attempts INTEGER NOT NULL, since INTEGER NOT NULL,
  retry_at INTEGER NOT NULL, held INTEGER, message TEXT NOT NULL, PRIMARY KEY(task, key)) WITHOUT ROWID;
CREATE TABLE parked_events(
  task INTEGER NOT NULL, key BLOB NOT NULL, tenant TEXT NOT NULL,
  position INTEGER NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL, PRIMARY KEY(task, position));
CREATE INDEX parked_events_key ON parked_events(task, key, position);
CREATE TABLE candidates(plugin TEXT PRIMARY KEY, report TEXT NOT NULL) WITHOUT ROWID;
";

/// What version 3 adds: streams with a name of their own, whose events lie under the negative of their number
/// where a tenant's stands, and change streams, whose entries are positions. `dropped` is up to where a cap has
/// dropped entries; the index by position is for trimming. What `scope_values` holds is JSON.
const SCHEMA_3: &str = "
CREATE TABLE streams(
  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant INTEGER NOT NULL, name TEXT NOT NULL,
  dropped INTEGER NOT NULL DEFAULT 0, UNIQUE(tenant, name));
CREATE TABLE stream_entries(
  stream INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY(stream, position)) WITHOUT ROWID;
CREATE INDEX stream_entries_position ON stream_entries(position);
CREATE TABLE scope_values(
  aggregate TEXT NOT NULL, tenant INTEGER NOT NULL, agg_id TEXT NOT NULL, \"values\" TEXT NOT NULL,
  PRIMARY KEY(aggregate, tenant, agg_id)) WITHOUT ROWID;
";

/// What each version adds to the one before it, from version 2 on.
const UPGRADES: [&str; 8] = [SCHEMA_2, SCHEMA_3, SCHEMA_4, SCHEMA_5, SCHEMA_6, SCHEMA_7, SCHEMA_8, SCHEMA_9];

/// Opens the one connection that writes, and creates what is missing.
pub(super) fn open_writer(path: &Path, options: &SqliteOptions) -> Result<Connection, OpenError> {
    let failed = |e: rusqlite::Error| OpenError::Backend(backend(&e));
    let conn = connect(path).map_err(failed)?;
    let found: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::NewerSchema { found, known: SCHEMA_VERSION });
    }
    let synchronous = match options.synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Off => "OFF",
    };
    conn.execute_batch(&format!(
        "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
         PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -65536; PRAGMA journal_size_limit = {};",
        options.wal_bytes_hard_max
    ))
    .map_err(failed)?;
    if let Some(bytes) = options.database_bytes_max {
        let pages = (bytes / PAGE_BYTES).clamp(1, u64::from(u32::MAX - 1));
        conn.execute_batch(&format!("PRAGMA max_page_count = {pages}")).map_err(failed)?;
    }
    if found == 0 {
        let epoch = ulid::Ulid::new().to_string();
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA} {} INSERT INTO meta VALUES ('epoch', '{epoch}');
             PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;",
            UPGRADES.concat()
        ))
        .map_err(failed)?;
    } else if found < SCHEMA_VERSION {
        let known = usize::try_from(found - 1).unwrap_or(0);
        let added = UPGRADES[known..].concat();
        let added = format!("BEGIN IMMEDIATE; {added} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
        conn.execute_batch(&added).map_err(failed)?;
    }
    Ok(conn)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let conn = connect(path)?;
    conn.execute_batch("PRAGMA cache_size = -8192; PRAGMA query_only = ON")?;
    Ok(conn)
}

/// Opens the connection that copies the WAL back.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, rusqlite::Error> {
    let conn = connect(path)?;
    conn.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -256")?;
    Ok(conn)
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(256);
    conn.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA mmap_size = 0")?;
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY
        | FunctionFlags::SQLITE_INNOCUOUS;
    for (name, matches) in
        [("mr_like", matches_like as fn(&str, &str) -> bool), ("mr_ilike", matches_ilike as _)]
    {
        conn.create_scalar_function(name, 2, flags, move |context| {
            Ok(match (context.get_raw(0).as_str(), context.get_raw(1).as_str_or_null()?) {
                (Ok(pattern), Some(text)) => Some(matches(pattern, text)),
                _ => None,
            })
        })?;
    }
    Ok(conn)
}

/// A number out of `meta`.
pub(super) fn meta(conn: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    conn.prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get::<_, i64>(0))
        .map(unsigned)
}

/// Changes a number in `meta`.
pub(super) fn set_meta(conn: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?
        .execute((name, signed(value)))
        .map(drop)
}

/// The newest position in the log; the last trimmed one when the log is empty.
pub(super) fn newest(conn: &Connection, trimmed: u64) -> Result<u64, rusqlite::Error> {
    let newest: Option<i64> = conn
        .prepare_cached("SELECT max(position) FROM events")?
        .query_row([], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(newest.map_or(trimmed, unsigned))
}

/// SQLite's integers are signed; positions, versions and revisions stay below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back; what is stored was never negative.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// What a failure of SQLite is to callers.
pub(super) fn backend(error: &rusqlite::Error) -> BackendError {
    let detail = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => BackendError::DiskFull { detail },
        _ => BackendError::Failed { detail },
    }
}
