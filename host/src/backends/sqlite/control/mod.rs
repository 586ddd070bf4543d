//! A host's memory of the control feed, in a file of its own: `control.db`.
//!
//! Promises: what is answered has been through fdatasync; a call is one transaction, which a caller that goes away does not
//! cut. Its transactions are few, so one connection does them all, and the hot path of the events has nothing to do with
//! them. Deliberately absent: a lock on the file. Two processes that have it open do each other no harm, since every call
//! reads what it decides on.

mod desired;
mod outbox;
mod proposals;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};

use super::committer::Stop;
use super::database::backend;
use super::{OpenError, Synchronous, make_folder};
use crate::clock::Clock;
use crate::control::{
    Applied, Claimed, ControlEvent, ControlFeedError, ControlStore, ControlVersion, DesiredRow, Entry,
    EventId, ObservedRow, OutboxLetter, OutboxStatus, Proposed, Quarantined, Restore, Restored, Result,
    Settlement, Told, Unreadable,
};
use crate::error::BackendError;
use crate::limits::CONTROL_OUTBOX_EVENTS_MAX;

const SCHEMA_VERSION: i64 = 1;

/// Times are microseconds since 1970. `outbox` holds what is not in the feed yet, `told` the ids of all that was proposed,
/// `carried` the newest of each entity that came into the feed from here.
const SCHEMA: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('cursor', 0), ('claims', 0);
CREATE TABLE notes(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE applied_events(
  event_id TEXT PRIMARY KEY, version INTEGER NOT NULL, digest TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX applied_events_version ON applied_events(version);
CREATE TABLE desired(
  entity TEXT PRIMARY KEY, revision INTEGER NOT NULL, version INTEGER NOT NULL, event_id TEXT NOT NULL,
  digest TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE proposed(
  entity TEXT PRIMARY KEY, revision INTEGER NOT NULL, version INTEGER NOT NULL, event_id TEXT NOT NULL,
  digest TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE carried(
  entity TEXT PRIMARY KEY, revision INTEGER NOT NULL, version INTEGER NOT NULL, event_id TEXT NOT NULL,
  digest TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE observed(
  plugin TEXT PRIMARY KEY, revision INTEGER NOT NULL, phase TEXT NOT NULL, serving TEXT, code TEXT, reason TEXT,
  since INTEGER NOT NULL, attempts INTEGER NOT NULL);
CREATE TABLE quarantine(
  version INTEGER NOT NULL, name TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY(version, name));
CREATE INDEX quarantine_at ON quarantine(at, version, name);
CREATE TABLE outbox(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE, entity TEXT NOT NULL,
  revision INTEGER NOT NULL, digest TEXT NOT NULL, event TEXT NOT NULL, at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '', tried_at INTEGER NOT NULL DEFAULT 0,
  due_at INTEGER NOT NULL, claim INTEGER NOT NULL DEFAULT 0, claimed_until INTEGER NOT NULL DEFAULT 0,
  dead INTEGER NOT NULL DEFAULT 0);
CREATE INDEX outbox_turns ON outbox(seq, entity, due_at, claimed_until, dead);
CREATE TABLE told(
  event_id TEXT PRIMARY KEY, seq INTEGER NOT NULL, entity TEXT NOT NULL, revision INTEGER NOT NULL,
  digest TEXT NOT NULL, version INTEGER) WITHOUT ROWID;
CREATE INDEX told_in_feed ON told(seq) WHERE version IS NOT NULL;
";

/// How to open the store. `SqliteControlOptions::new(dir, clock)` has the defaults.
#[derive(Clone, Debug)]
pub struct SqliteControlOptions {
    /// Holds `control.db` and its WAL. Created when missing.
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub synchronous: Synchronous,
    /// Largest size of the file; beyond, calls answer `disk_full`. None leaves it to the disk.
    pub bytes_max: Option<u64>,
    /// Proposed events that may wait.
    pub outbox_events_max: u64,
}

impl SqliteControlOptions {
    pub fn new(dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            dir: dir.into(),
            clock,
            synchronous: Synchronous::Full,
            bytes_max: None,
            outbox_events_max: CONTROL_OUTBOX_EVENTS_MAX,
        }
    }
}

/// A [`ControlStore`] in a file. Clones are the same store.
#[derive(Clone, Debug)]
pub struct SqliteControlStore {
    db: Arc<Mutex<Connection>>,
    clock: Arc<dyn Clock>,
    outbox_events_max: u64,
}

/// What a transaction works with.
struct Work<'a> {
    db: &'a Connection,
    now: i64,
}

type Done<T> = std::result::Result<T, Stop<ControlFeedError>>;

impl SqliteControlStore {
    /// Opens the file, or creates it. Blocks.
    pub fn open(options: &SqliteControlOptions) -> std::result::Result<Self, OpenError> {
        make_folder(&options.dir).map_err(|error| OpenError::Directory {
            dir: options.dir.display().to_string(),
            detail: error.to_string(),
        })?;
        let db = connect(&options.dir.join("control.db"), options)?;
        let (clock, outbox_events_max) = (Arc::clone(&options.clock), options.outbox_events_max);
        Ok(Self { db: Arc::new(Mutex::new(db)), clock, outbox_events_max })
    }

    /// Runs a transaction on a thread that may block.
    fn run<'a, T: Send + 'static>(
        &'a self,
        work: impl FnOnce(&Work<'_>) -> Done<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let (db, now) = (Arc::clone(&self.db), self.clock.now().0);
        async move {
            let done = tokio::task::spawn_blocking(move || {
                let mut db = db.lock().unwrap_or_else(PoisonError::into_inner);
                transaction(&mut db, now, work)
            });
            match done.await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(Stop::Refused(error))) => Err(error),
                Ok(Err(Stop::Storage(error))) => Err(backend(&error).into()),
                // The runtime ends, or a bug was hit and its transaction rolled back.
                Err(_) => Err(BackendError::Closed.into()),
            }
        }
        .boxed()
    }
}

fn transaction<T>(db: &mut Connection, now: i64, work: impl FnOnce(&Work<'_>) -> Done<T>) -> Done<T> {
    // At once: what is read first must not be outdated when it is written.
    let transaction: Transaction<'_> = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&Work { db: &transaction, now })?;
    transaction.commit()?;
    Ok(done)
}

fn connect(path: &Path, options: &SqliteControlOptions) -> std::result::Result<Connection, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::Backend(backend(&error));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    db.set_prepared_statement_cache_capacity(128);
    let synchronous = match options.synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Off => "OFF",
    };
    db.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};"))
        .map_err(failed)?;
    if let Some(bytes) = options.bytes_max {
        let page: u64 = db
            .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))
            .map(super::database::unsigned)
            .map_err(failed)?;
        let pages = (bytes / page.max(1)).clamp(1, u64::from(u32::MAX - 1));
        db.execute_batch(&format!("PRAGMA max_page_count = {pages}")).map_err(failed)?;
    }
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::NewerSchema { found, known: SCHEMA_VERSION });
    }
    if found == 0 {
        transaction
            .execute_batch(&format!("{SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"))
            .map_err(failed)?;
    }
    // Who claimed them is gone, or it finds that its claims have ended: a sink knows what it was given twice.
    transaction
        .execute("UPDATE outbox SET claim = 0, claimed_until = 0 WHERE claim <> 0", [])
        .map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(db)
}

impl ControlStore for SqliteControlStore {
    fn cursor(&self) -> BoxFuture<'_, Result<ControlVersion>> {
        self.run(|work| work.cursor())
    }

    fn take(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<Vec<Applied>>> {
        self.run(move |work| entries.iter().map(|entry| work.take(entry)).collect())
    }

    fn restore(&self, restore: Restore) -> BoxFuture<'_, Result<Restored>> {
        self.run(move |work| work.restore(&restore))
    }

    fn desired(&self) -> BoxFuture<'_, Result<(ControlVersion, Vec<DesiredRow>)>> {
        self.run(|work| Ok((work.cursor()?, work.all("desired")?)))
    }

    fn unreadable(&self) -> BoxFuture<'_, Result<Unreadable>> {
        self.run(|work| work.unreadable())
    }

    fn applied<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<ControlVersion>>> {
        let event = event.clone();
        self.run(move |work| Ok(work.applied(&event)?.map(|(version, _)| version)))
    }

    fn quarantined(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Quarantined>>> {
        self.run(move |work| work.quarantined(limit))
    }

    fn applied_beyond(&self, younger: u64) -> BoxFuture<'_, Result<ControlVersion>> {
        self.run(move |work| work.applied_beyond(younger))
    }

    fn forget_applied(&self, through: ControlVersion) -> BoxFuture<'_, Result<u64>> {
        self.run(move |work| work.forget_applied(through))
    }

    fn observed(&self) -> BoxFuture<'_, Result<Vec<ObservedRow>>> {
        self.run(|work| work.observed())
    }

    fn observe<'a>(&'a self, row: &'a ObservedRow) -> BoxFuture<'a, Result<()>> {
        let row = row.clone();
        self.run(move |work| work.observe(&row))
    }

    fn forget_observed<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<()>> {
        let plugin = plugin.to_owned();
        self.run(move |work| {
            work.db.prepare_cached("DELETE FROM observed WHERE plugin = ?1")?.execute([plugin])?;
            Ok(())
        })
    }

    fn propose<'a>(&'a self, event: &'a ControlEvent) -> BoxFuture<'a, Result<Proposed>> {
        let (event, events_max) = (event.clone(), self.outbox_events_max);
        self.run(move |work| work.propose(&event, events_max))
    }

    fn proposed(&self) -> BoxFuture<'_, Result<Vec<DesiredRow>>> {
        self.run(|work| work.proposed())
    }

    fn told<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<Option<Told>>> {
        let event = event.clone();
        self.run(move |work| work.told(&event))
    }

    fn claim(&self, limit: usize, lease: Duration) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.run(move |work| work.claim(limit, lease))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<()>> {
        self.run(move |work| settlements.iter().try_for_each(|settlement| work.settle(settlement)))
    }

    fn next_due(&self) -> BoxFuture<'_, Result<Option<Duration>>> {
        self.run(|work| work.next_due())
    }

    fn outbox(&self) -> BoxFuture<'_, Result<OutboxStatus>> {
        self.run(|work| work.outbox())
    }

    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<OutboxLetter>>> {
        self.run(move |work| work.letters(limit))
    }

    fn retry_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        let event = event.clone();
        self.run(move |work| work.retry_letter(&event))
    }

    fn discard_letter<'a>(&'a self, event: &'a EventId) -> BoxFuture<'a, Result<bool>> {
        let event = event.clone();
        self.run(move |work| work.discard_letter(&event))
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        let name = name.to_owned();
        self.run(move |work| {
            let mut found = work.db.prepare_cached("SELECT value FROM notes WHERE name = ?1")?;
            Ok(found.query_row([name], |row| row.get(0)).optional()?)
        })
    }

    fn set_note<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        let (name, value) = (name.to_owned(), value.map(str::to_owned));
        self.run(move |work| {
            work.db.prepare_cached("DELETE FROM notes WHERE name = ?1")?.execute([&name])?;
            if let Some(value) = value {
                work.db.prepare_cached("INSERT INTO notes VALUES (?1, ?2)")?.execute([name, value])?;
            }
            Ok(())
        })
    }
}
