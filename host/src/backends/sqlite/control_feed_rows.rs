//! What stands in the database of a control feed, and the statements on it.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior};

use super::database::{meta, set_meta, signed, unsigned};
use crate::control::{ControlEvent, ControlVersion, FleetMark, Received, rules};
use crate::limits::{CONTROL_LOCK_POLL, CONTROL_POLL_BYTES_MAX, CONTROL_TRIM_ROWS_AT_ONCE};

/// Kept in `user_version`.
pub(super) const SCHEMA_VERSION: i64 = 1;

/// `ids` outlives `events`: an id is known for ever.
const SCHEMA: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE events(version INTEGER PRIMARY KEY, event TEXT NOT NULL);
CREATE TABLE ids(event_id TEXT PRIMARY KEY, version INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE hosts(host TEXT PRIMARY KEY, at INTEGER NOT NULL, report TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mark(one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, mark TEXT NOT NULL);
INSERT INTO meta VALUES ('newest', 0), ('trimmed', 0);
";

/// What an append found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// It is in the feed at this version, now or since before.
    At(ControlVersion),
    /// Its id stands for something else.
    Taken,
}

/// What a poll reads in one transaction.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) newest: u64,
    pub(super) trimmed: u64,
    /// All that is there is above this version. Who has all up to `trimmed` misses nothing of what is below.
    pub(super) floor: u64,
    pub(super) events: Vec<Received>,
}

/// Opens the database, or creates it; answers a schema that is not known. Several processes may do that at the same time:
/// who comes second waits, also where SQLite itself does not.
pub(super) fn open(path: &Path, busy_wait: Duration) -> rusqlite::Result<Result<Connection, i64>> {
    let begin = Instant::now();
    loop {
        match try_open(path, busy_wait) {
            Err(error) if is_busy(&error) && begin.elapsed() < busy_wait => {
                std::thread::sleep(CONTROL_LOCK_POLL);
            }
            opened => return opened,
        }
    }
}

fn try_open(path: &Path, busy_wait: Duration) -> rusqlite::Result<Result<Connection, i64>> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(busy_wait)?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0")?;
    let writing = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = writing.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Ok(Err(found));
    }
    if found == 0 {
        writing.execute_batch(&format!("{SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}"))?;
    }
    writing.commit()?;
    Ok(Ok(conn))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Versions up to here that are not trimmed were given up: what had them has others now.
fn begun(conn: &Connection) -> rusqlite::Result<u64> {
    let mut found = conn.prepare_cached("SELECT value FROM meta WHERE name = 'begun'")?;
    Ok(found.query_row([], |row| row.get(0)).optional()?.map_or(0, unsigned))
}

/// Gives all that is there new versions, above a place that is beyond the newest.
pub(super) fn begin_again(conn: &mut Connection, place: u64, now: i64) -> rusqlite::Result<()> {
    let writing = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    renew(&writing, place, now)?;
    writing.commit()
}

fn renew(writing: &Connection, place: u64, now: i64) -> rusqlite::Result<()> {
    let newest = meta(writing, "newest")?;
    let Some(begin) = rules::new_life(place, newest, now) else { return Ok(()) };
    let floor = meta(writing, "trimmed")?.max(begun(writing)?);
    let step = begin - floor;
    for table in ["events", "ids"] {
        let sql = format!("UPDATE {table} SET version = version + ?1 WHERE version > ?2");
        writing.execute(&sql, (signed(step), signed(floor)))?;
    }
    set_meta(writing, "newest", newest + step)?;
    writing.execute("INSERT OR REPLACE INTO meta VALUES ('begun', ?1)", [signed(begin)]).map(drop)
}

/// Appends several events in one transaction, above what is known to have been there.
pub(super) fn append(
    conn: &mut Connection,
    events: &[ControlEvent],
    seen: u64,
    now: i64,
) -> rusqlite::Result<Vec<Found>> {
    let writing = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    renew(&writing, seen, now)?;
    let before = meta(&writing, "newest")?;
    let mut newest = before;
    let mut found = Vec::new();
    for event in events {
        let (id, digest) = (event.id().as_str(), event.digest());
        let known = writing
            .prepare_cached("SELECT version, digest FROM ids WHERE event_id = ?1")?
            .query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
            .optional()?;
        found.push(match known {
            Some((version, known)) if known == digest => Found::At(ControlVersion(unsigned(version))),
            Some(_) => Found::Taken,
            None => {
                newest += 1;
                writing
                    .prepare_cached("INSERT INTO events(version, event) VALUES (?1, ?2)")?
                    .execute((signed(newest), event.to_json()))?;
                writing
                    .prepare_cached("INSERT INTO ids(event_id, version, digest) VALUES (?1, ?2, ?3)")?
                    .execute((id, signed(newest), digest))?;
                Found::At(ControlVersion(newest))
            }
        });
    }
    if newest != before {
        set_meta(&writing, "newest", newest)?;
    }
    writing.commit()?;
    Ok(found)
}

/// What is after a version, as of one moment. A row that is missing or no event is broken, at its place.
pub(super) fn read(conn: &mut Connection, after: u64, limit: usize) -> rusqlite::Result<Read> {
    let reading = conn.transaction()?;
    let (newest, trimmed) = (meta(&reading, "newest")?, meta(&reading, "trimmed")?);
    let floor = trimmed.max(begun(&reading)?);
    let mut read = Read { newest, trimmed, floor, events: Vec::new() };
    if after < trimmed || after >= newest {
        return Ok(read);
    }
    let after = after.max(floor);
    let last = newest.min(after.saturating_add(limit as u64));
    let mut statement = reading.prepare_cached(
        "SELECT version, event FROM events WHERE version > ?1 AND version <= ?2 ORDER BY version",
    )?;
    let mut rows = statement.query((signed(after), signed(last)))?;
    let (mut next, mut bytes) = (after + 1, 0);
    while let Some(row) = rows.next()? {
        let version = unsigned(row.get(0)?);
        read.events.extend((next..version).map(missing));
        // Not `?`: one row of another type must not keep the others from being read.
        let text = row.get_ref(1)?.as_str().map(str::to_owned);
        bytes += text.as_ref().map_or(0, String::len);
        let version = ControlVersion(version);
        let name = || format!("version {}", version.0);
        read.events.push(match text.map(|text| ControlEvent::parse(&text)) {
            Ok(Ok(event)) => Received::Event { version, event },
            Ok(Err(error)) => Received::refused(version, name(), &error),
            Err(error) => Received::unreadable(version, name(), error.to_string()),
        });
        next = version.0 + 1;
        if bytes >= CONTROL_POLL_BYTES_MAX {
            return Ok(read);
        }
    }
    read.events.extend((next..=last).map(missing));
    Ok(read)
}

fn missing(version: u64) -> Received {
    Received::missing(ControlVersion(version), format!("version {version}"), "its row is missing")
}

/// Removes some of what is to be removed up to a version. Answers how many events went, and whether that was all.
pub(super) fn trim(conn: &mut Connection, through: u64) -> rusqlite::Result<(u64, bool)> {
    let writing = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let floor = meta(&writing, "trimmed")?.max(begun(&writing)?);
    let all = through.min(meta(&writing, "newest")?);
    if all <= floor {
        return Ok((0, true));
    }
    let some = all.min(floor + CONTROL_TRIM_ROWS_AT_ONCE);
    let gone = writing.execute("DELETE FROM events WHERE version <= ?1", [signed(some)])?;
    set_meta(&writing, "trimmed", some)?;
    writing.commit()?;
    Ok((gone as u64, some == all))
}

pub(super) fn report(conn: &Connection, host: &str, at: i64, report: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO hosts VALUES (?1, ?2, ?3)
               ON CONFLICT(host) DO UPDATE SET at = excluded.at, report = excluded.report";
    conn.prepare_cached(sql)?.execute((host, at, report)).map(drop)
}

pub(super) fn reports(
    conn: &Connection,
    now: i64,
    limit: usize,
) -> rusqlite::Result<Vec<(String, Duration, String)>> {
    let mut statement = conn.prepare_cached("SELECT host, at, report FROM hosts ORDER BY host LIMIT ?1")?;
    let rows = statement.query_map([signed(limit as u64)], |row| {
        let age = now.saturating_sub(row.get(1)?);
        Ok((row.get(0)?, Duration::from_micros(unsigned(age)), row.get(2)?))
    })?;
    rows.collect()
}

pub(super) fn forget(conn: &Connection, host: &str) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM hosts WHERE host = ?1", [host]).map(drop)
}

pub(super) fn set_mark(conn: &Connection, mark: &FleetMark) -> rusqlite::Result<()> {
    let text = super::shared::to_json(mark)?;
    let sql = "INSERT INTO mark VALUES (1, ?1, ?2)
               ON CONFLICT(one) DO UPDATE SET version = excluded.version, mark = excluded.mark
               WHERE excluded.version >= mark.version";
    conn.execute(sql, (signed(mark.version.0), text)).map(drop)
}

pub(super) fn forget_mark(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM mark", []).map(drop)
}

/// One that cannot be read says nothing; the controller writes it again.
pub(super) fn mark(conn: &Connection) -> rusqlite::Result<Option<FleetMark>> {
    let text: Option<String> = conn.query_row("SELECT mark FROM mark", [], |row| row.get(0)).optional()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}
