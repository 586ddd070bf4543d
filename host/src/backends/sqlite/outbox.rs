//! Emitted events and appended entries that wait for a log elsewhere, as rows; and what is remembered of that log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::SqliteStore;
use super::channel_reads::{channel_name, process_id};
use super::committer::{Committer, Stop, text};
use super::database::{backend, set_meta, signed, unsigned};
use super::event_rows::{EVENT_COLUMN_COUNT, EVENT_COLUMNS, bind_event, read_event};
use super::options::{LogPlace, OpenError};
use super::readers::ReadStop;
use super::request::Request;
use super::shared::stored_tenant;
use crate::channels::{ChannelId, EntryType, NewEntry};
use crate::checkpoints::{
    AppendCause, CarriedAppend, CarriedAppends, Commit, CommitError, EffectKind, EffectRef, LogMark,
    LogMarks, Outbox, OutboxBatch, OutboxDone, OutboxPart, OutboxWhat,
};
use crate::error::BackendError;
use crate::event::{Epoch, Event, EventBatch, Position, TenantId};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, NAME_BYTES_MAX, OUTBOX_APPENDS_BYTES, OUTBOX_APPENDS_MAX,
    OUTBOX_EVENTS_MAX, OUTBOX_PAGE_BYTES, OUTBOX_PAGE_EVENTS, OUTBOX_REFUSED_MAX,
};

/// What version 5 adds. `passed_at` is the own time of the last event that a task has handled. Who emitted an event is told by `processor`, `lane`, `revision` and `idx`: the commit, and
/// which of its events it is. The mark says which log elsewhere the store has worked with, and how far that was.
pub(super) const SCHEMA: &str = "
CREATE TABLE outbox(
  seq INTEGER PRIMARY KEY, processor TEXT NOT NULL, lane INTEGER NOT NULL, revision INTEGER NOT NULL,
  idx INTEGER NOT NULL, tenant TEXT NOT NULL, position INTEGER NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL);
CREATE TABLE outbox_refused(
  seq INTEGER PRIMARY KEY, code TEXT NOT NULL, message TEXT NOT NULL,
  processor TEXT NOT NULL, lane INTEGER NOT NULL, revision INTEGER NOT NULL,
  idx INTEGER NOT NULL, tenant TEXT NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL);
ALTER TABLE tasks ADD COLUMN passed_at INTEGER;
INSERT INTO meta VALUES ('log_epoch', ''), ('log_newest', 0);
";

/// What version 7 adds: with `entry`, a row is an entry that is appended to a channel. Then `id` is its key, `agg_id` its
/// process, `aggregate` its channel, `version` the number that it answers or 0, `schema_version` 1 where it has a
/// payload, and `kind` the text of an error.
pub(super) const SCHEMA_OF_ENTRIES: &str = "
ALTER TABLE outbox ADD COLUMN entry INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox_refused ADD COLUMN entry INTEGER NOT NULL DEFAULT 0;
";

/// What the parts of an event beside its payload come to at most.
const NAMES_BYTES: usize = 8 * NAME_BYTES_MAX;

const REFUSED_COLUMNS: &str = "processor, lane, revision, idx, tenant, id, aggregate, agg_id, version, type, at, \
     schema_version, depth, scope, kind, cursor, traceparent, payload, entry";

/// Refuses a store that has worked with a log of another place: its positions mean nothing in this one.
pub(super) fn check_place(conn: &Connection, place: LogPlace, dir: &str) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| OpenError::Backend(backend(&error));
    let (marked, own): (bool, bool) = conn
        .query_row(
            "SELECT (SELECT value FROM meta WHERE name = 'log_epoch') <> '',
               EXISTS (SELECT 1 FROM events) OR (SELECT value FROM meta WHERE name = 'trimmed') > 0",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(failed)?;
    match place {
        LogPlace::Own if marked => Err(OpenError::LogElsewhere { dir: dir.to_owned() }),
        LogPlace::Elsewhere if own => Err(OpenError::LogOwn { dir: dir.to_owned() }),
        _ => Ok(()),
    }
}

/// How many events of each processor wait. Of one that another host owns they may wait for long, and the others have
/// their room all the same. A clone shares what is not changed after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OutboxCounts(Arc<BTreeMap<Box<str>, u64>>);

impl OutboxCounts {
    pub(super) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare("SELECT processor, count(*) FROM outbox GROUP BY processor")?;
        let counted = statement
            .query_map([], |row| Ok((Box::<str>::from(row.get::<_, String>(0)?), unsigned(row.get(1)?))))?;
        Ok(Self(Arc::new(counted.collect::<rusqlite::Result<_>>()?)))
    }

    pub(super) fn of(&self, processor: &str) -> u64 {
        self.0.get(processor).copied().unwrap_or(0)
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn set(&mut self, processor: &str, events: u64) {
        let counts = Arc::make_mut(&mut self.0);
        if events == 0 {
            counts.remove(processor);
        } else {
            counts.insert(processor.into(), events);
        }
    }
}

impl Committer {
    /// Keeps a commit's emitted events until the log has them.
    pub(super) fn write_outbox(
        &mut self,
        commit: &Commit,
        revision: u64,
        batch: &EventBatch,
    ) -> Result<(), Stop<CommitError>> {
        let events = self.room_in_outbox(commit, batch.len())?;
        let mut statement = self.conn.prepare_cached(&format!(
            "INSERT INTO outbox(processor, lane, revision, idx, tenant, {EVENT_COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)"
        ))?;
        statement.raw_bind_parameter(1, &*commit.task.processor)?;
        statement.raw_bind_parameter(2, commit.task.lane)?;
        statement.raw_bind_parameter(3, signed(revision))?;
        statement.raw_bind_parameter(5, commit.task.tenant.as_str())?;
        for index in 0..batch.len() {
            statement.raw_bind_parameter(4, signed(index as u64))?;
            bind_event(&mut statement, 6, batch, index)?;
            statement.raw_execute()?;
        }
        self.counters.outbox.set(&commit.task.processor, events);
        Ok(())
    }

    /// How many entries of a processor there are with so many more.
    fn room_in_outbox(&self, commit: &Commit, more: usize) -> Result<u64, Stop<CommitError>> {
        let events = self.counters.outbox.of(&commit.task.processor) + more as u64;
        if events <= OUTBOX_EVENTS_MAX {
            return Ok(events);
        }
        let full = BackendError::OutboxFull { events, max: OUTBOX_EVENTS_MAX };
        Err(Stop::Refused(full.into()))
    }

    /// Keeps what a commit appends to channels until these have it.
    pub(super) fn write_outbox_appends(
        &mut self,
        commit: &Commit,
        revision: u64,
    ) -> Result<(), Stop<CommitError>> {
        let count = |kind: EffectKind| -> usize {
            let effects = commit.effects.iter().flat_map(|effects| effects.records());
            effects.filter(|record| record.kind == kind).count()
        };
        let appends = count(EffectKind::Append);
        if appends == 0 {
            return Ok(());
        }
        let entries = self.room_in_outbox(commit, appends)?;
        let mut index = count(EffectKind::Emit);
        let mut statement = self.conn.prepare_cached(&format!(
            "INSERT INTO outbox(processor, lane, revision, idx, tenant, {EVENT_COLUMNS}, entry)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, NULL, ?16, ?17, 1)"
        ))?;
        for effects in &commit.effects {
            for (at, effect) in effects.iter().enumerate() {
                let EffectRef::Append(entry) = effect else { continue };
                let key = match effects.cause_of(at) {
                    // Whoever handles the event says the same.
                    Some(AppendCause { position, index }) => format!("{position}.{index}"),
                    // A flush is this store's own, and happens once.
                    None => format!("{}.{revision}.{}.{index}", self.shared.epoch.0, commit.at.0),
                };
                statement.execute(params![
                    &*commit.task.processor,
                    commit.task.lane,
                    signed(revision),
                    signed(index as u64),
                    commit.task.tenant.as_str(),
                    key,
                    entry.channel,
                    entry.process,
                    signed(entry.in_reply_to.unwrap_or(0)),
                    entry.entry_type.as_str(),
                    commit.at.0,
                    i64::from(entry.payload.is_some()),
                    entry.depth,
                    Some(entry.scope).filter(|scope| !scope.is_empty()),
                    entry.error,
                    Some(entry.traceparent).filter(|text| !text.is_empty()),
                    entry.payload.unwrap_or_default(),
                ])?;
                index += 1;
            }
        }
        drop(statement);
        self.counters.outbox.set(&commit.task.processor, entries);
        Ok(())
    }

    pub(super) fn settle_outbox(&mut self, done: &OutboxDone) -> Result<(), Stop<BackendError>> {
        for (seq, code, message) in &done.refused {
            self.conn
                .prepare_cached(&format!(
                    "INSERT OR IGNORE INTO outbox_refused(seq, code, message, {REFUSED_COLUMNS})
                     SELECT (SELECT coalesce(max(seq), 0) + 1 FROM outbox_refused), ?2, ?3, {REFUSED_COLUMNS}
                     FROM outbox WHERE seq = ?1"
                ))?
                .execute((signed(*seq), text(code), message))?;
        }
        if !done.refused.is_empty() {
            self.conn
                .prepare_cached(
                    "DELETE FROM outbox_refused WHERE seq <= (SELECT max(seq) FROM outbox_refused) - ?1",
                )?
                .execute([signed(OUTBOX_REFUSED_MAX)])?;
        }
        let mut statement =
            self.conn.prepare_cached("DELETE FROM outbox WHERE seq = ?1 RETURNING processor")?;
        let mut removed: BTreeMap<String, u64> = BTreeMap::new();
        for seq in done.carried.iter().chain(done.refused.iter().map(|(seq, ..)| seq)) {
            let processor: Option<String> =
                statement.query_row([signed(*seq)], |row| row.get(0)).optional()?;
            if let Some(processor) = processor {
                *removed.entry(processor).or_default() += 1;
            }
        }
        for (processor, events) in removed {
            let left = self.counters.outbox.of(&processor).saturating_sub(events);
            self.counters.outbox.set(&processor, left);
        }
        Ok(())
    }

    pub(super) fn mark_log(&self, epoch: &Epoch, newest: Position) -> Result<(), Stop<BackendError>> {
        self.conn
            .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'log_epoch'")?
            .execute([&*epoch.0])?;
        Ok(set_meta(&self.conn, "log_newest", newest.0)?)
    }
}

fn waiting(conn: &Connection, held: &[Arc<str>]) -> rusqlite::Result<Vec<OutboxBatch>> {
    let held = serde_json::Value::from(held.iter().map(|name| name.to_string()).collect::<Vec<_>>());
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS}, seq, processor, tenant, entry FROM outbox
         WHERE processor NOT IN (SELECT value FROM json_each(?1)) ORDER BY seq LIMIT ?2"
    ))?;
    let mut rows = statement.query((held.to_string(), OUTBOX_PAGE_EVENTS))?;
    let mut batches: Vec<OutboxBatch> = Vec::new();
    let mut open: HashMap<(Arc<str>, TenantId), Option<usize>> = HashMap::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let at = EVENT_COLUMN_COUNT;
        let processor: Arc<str> = row.get_ref(at + 1)?.as_str()?.into();
        let tenant = stored_tenant(row.get_ref(at + 2)?.as_str()?)?;
        let event = read_event(row, 0)?;
        let place = open.entry((Arc::clone(&processor), tenant.clone())).or_insert_with(|| {
            batches.push(OutboxBatch { processor, tenant, parts: Vec::new() });
            Some(batches.len() - 1)
        });
        let Some(index) = *place else { continue };
        let number = unsigned(row.get_ref(at)?.as_i64()?);
        let taken = match row.get_ref(at + 3)?.as_i64()? {
            0 => take_event(&mut batches[index], number, &event),
            _ => take_entry(&mut batches[index], number, &event)?,
        };
        if !taken {
            // What comes later must not overtake: this one has to wait for the next page.
            *place = None;
            continue;
        }
        bytes += event.payload.len();
        if bytes > OUTBOX_PAGE_BYTES {
            break;
        }
    }
    Ok(batches)
}

/// Puts an event behind what a batch has; false where a log might not take it.
fn take_event(batch: &mut OutboxBatch, number: u64, event: &Event<'_>) -> bool {
    if !matches!(batch.parts.last(), Some(OutboxPart { what: OutboxWhat::Events(_), .. })) {
        let what = OutboxWhat::Events(EventBatch::new(batch.tenant.clone()));
        batch.parts.push(OutboxPart { numbers: Vec::new(), what });
    }
    let Some(OutboxPart { numbers, what: OutboxWhat::Events(events) }) = batch.parts.last_mut() else {
        return false;
    };
    let full = events.len() >= BATCH_EVENTS_MAX
        || events.bytes() + event.payload.len() + NAMES_BYTES > BATCH_BYTES_MAX;
    if full && !events.is_empty() {
        return false;
    }
    events.push_checked(event);
    numbers.push(number);
    true
}

/// Puts an entry behind those of its channel; false where a channel might not take it.
fn take_entry(batch: &mut OutboxBatch, number: u64, row: &Event<'_>) -> rusqlite::Result<bool> {
    let process = process_id(batch.tenant.as_str(), row.agg_id)?;
    let channel = ChannelId { process, name: channel_name(row.aggregate)? };
    let append = CarriedAppend {
        key: row.id.into(),
        entry: NewEntry {
            sequence: None,
            in_reply_to: (row.version > 0).then_some(row.version),
            entry_type: EntryType::parse(row.event_type).unwrap_or_default(),
            error: (!row.kind.is_empty()).then(|| row.kind.into()),
            payload: (row.schema_version > 0).then(|| Bytes::copy_from_slice(row.payload)),
        },
        depth: row.depth,
        scope: row.scope.into(),
        traceparent: row.traceparent.into(),
    };
    // Those before the last event go before it.
    let behind = batch.parts.iter().rposition(|part| matches!(part.what, OutboxWhat::Events(_)));
    for part in &mut batch.parts[behind.map_or(0, |at| at + 1)..] {
        let OutboxWhat::Appends(known) = &mut part.what else { continue };
        if known.channel == channel {
            let bytes: usize = known.appends.iter().map(|append| append.entry.bytes()).sum();
            let full = known.appends.len() >= OUTBOX_APPENDS_MAX
                || bytes + append.entry.bytes() > OUTBOX_APPENDS_BYTES;
            if !full {
                known.appends.push(append);
                part.numbers.push(number);
            }
            return Ok(!full);
        }
    }
    let what = OutboxWhat::Appends(CarriedAppends { channel, appends: vec![append] });
    batch.parts.push(OutboxPart { numbers: vec![number], what });
    Ok(true)
}

impl Outbox for SqliteStore {
    fn waiting(&self, held: &[Arc<str>]) -> BoxFuture<'_, Result<Vec<OutboxBatch>, BackendError>> {
        let held = held.to_vec();
        self.read(move |conn, _| Ok::<_, ReadStop<BackendError>>(waiting(conn, &held)?))
    }

    fn settle(&self, done: OutboxDone) -> BoxFuture<'_, Result<(), BackendError>> {
        self.request(|reply| Request::SettleOutbox { done, reply })
    }

    fn added(&self) -> watch::Receiver<u64> {
        self.inner.shared.outbox_added.subscribe()
    }

    fn len(&self) -> u64 {
        self.inner.shared.outbox().total()
    }

    fn is_empty_of(&self, processor: &str) -> bool {
        self.inner.shared.outbox().of(processor) == 0
    }
}

impl LogMarks for SqliteStore {
    fn log_mark(&self) -> BoxFuture<'_, Result<Option<LogMark>, BackendError>> {
        self.read(|conn, _| {
            let (epoch, newest): (String, i64) = conn.query_row(
                "SELECT (SELECT value FROM meta WHERE name = 'log_epoch'),
                        (SELECT value FROM meta WHERE name = 'log_newest')",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let reached: Option<i64> =
                conn.query_row("SELECT max(position) FROM tasks", [], |row| row.get(0)).optional()?.flatten();
            let newest = Position(unsigned(newest));
            let reached = Position(reached.map_or(0, unsigned)).max(newest);
            let mark = LogMark { epoch: Epoch(epoch.into()), newest, reached };
            Ok::<_, ReadStop<BackendError>>(Some(mark).filter(|mark| !mark.epoch.0.is_empty()))
        })
    }

    fn mark_log(&self, epoch: Epoch, newest: Position) -> BoxFuture<'_, Result<(), BackendError>> {
        self.request(|reply| Request::MarkLog { epoch, newest, reply })
    }
}
