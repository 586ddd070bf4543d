//! Writing change streams beside the events, in the same transaction: entries of streams, last known values
//! of fields, and the numbers of streams.
//!
//! An event whose aggregate declares no scopes costs one look at whether there are any. What is kept in
//! memory can be read again: after anything that is rolled back it is forgotten.

use std::sync::Arc;

use rusqlite::OptionalExtension;

use super::committer::{Committer, Stop};
use super::database::{signed, unsigned};
use super::recent::Recent;
use super::shared::{from_json, to_json};
use crate::event::{EventBatch, Position, TenantId};
use crate::limits::{CHANGE_NUMBERS_CACHED_MAX, CHANGE_VALUES_CACHED_MAX, NAMED_STREAMS_MAX};
use crate::streams::scopes::{FieldValues, StoredValues};
use crate::streams::{AggregateScopes, Appended, ChangeScopes, StreamError, StreamName};
use crate::telemetry::metrics::{CHANGE_ENTRIES_TRIMMED, CHANGE_SCOPES_SKIPPED};

/// Where the change scopes are kept in `meta`.
const SCOPES: &str = "change_scopes";

/// A stream in the database.
#[derive(Clone, Debug)]
struct Numbered {
    number: i64,
    name: Arc<str>,
    /// Its entries, as far as a cap has to know.
    entries: u64,
}

type NameKey = (i64, String);
/// Tenant, aggregate, its id.
type ValuesKey = (i64, String, String);

/// What the committer knows of change streams.
#[derive(Debug)]
pub(super) struct Changes {
    /// As in the running group.
    scopes: Arc<ChangeScopes>,
    numbers: Recent<NameKey, Numbered>,
    values: Recent<ValuesKey, FieldValues>,
    /// What a rolled back savepoint would make wrong.
    touched: (Vec<NameKey>, Vec<ValuesKey>),
    /// Entries that one change stream keeps; none keeps all.
    entries_max: Option<u64>,
}

impl Changes {
    pub(super) fn new(scopes: Arc<ChangeScopes>, entries_max: Option<u64>) -> Self {
        Self {
            scopes,
            numbers: Recent::new(CHANGE_NUMBERS_CACHED_MAX),
            values: Recent::new(CHANGE_VALUES_CACHED_MAX),
            touched: Default::default(),
            entries_max: entries_max.filter(|max| *max > 0),
        }
    }

    /// What is written from now on can be taken back with [`Self::undo`].
    pub(super) fn begin(&mut self) {
        self.touched.0.clear();
        self.touched.1.clear();
    }

    /// What was written since `begin` was rolled back.
    pub(super) fn undo(&mut self) {
        for key in self.touched.0.drain(..) {
            self.numbers.remove(&key);
        }
        for key in self.touched.1.drain(..) {
            self.values.remove(&key);
        }
    }

    /// The whole group was rolled back.
    pub(super) fn reset(&mut self, scopes: Arc<ChangeScopes>) {
        self.begin();
        self.numbers.clear();
        self.values.clear();
        self.scopes = scopes;
    }

    pub(super) fn scopes(&self) -> &Arc<ChangeScopes> {
        &self.scopes
    }
}

/// The scopes that an earlier run has left.
pub(super) fn load_scopes(conn: &rusqlite::Connection) -> Result<ChangeScopes, rusqlite::Error> {
    let text: Option<String> =
        conn.query_row("SELECT value FROM meta WHERE name = ?1", [SCOPES], |row| row.get(0)).optional()?;
    text.map_or_else(|| Ok(ChangeScopes::default()), |text| from_json(&text))
}

impl Committer {
    pub(super) fn declare_scopes(
        &mut self,
        owner: &str,
        declarations: &[AggregateScopes],
    ) -> Result<(), Stop<StreamError>> {
        let mut scopes = ChangeScopes::clone(&self.changes.scopes);
        let useless = scopes
            .declare(owner, declarations, Position(self.counters.newest))
            .map_err(|e| Stop::Refused(e.into()))?;
        // A start declares what is there already: that writes nothing, so it waits for no disk.
        if scopes == *self.changes.scopes {
            return Ok(());
        }
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO meta(name, value) VALUES (?1, ?2)")?
            .execute((SCOPES, to_json(&scopes)?))?;
        for aggregate in &useless {
            self.conn
                .prepare_cached("DELETE FROM scope_values WHERE aggregate = ?1")?
                .execute([aggregate])?;
            self.changes.values.clear();
        }
        self.changes.scopes = Arc::new(scopes);
        Ok(())
    }

    /// Appends to a stream with a name of its own. Its events lie with the others, under the stream's number
    /// made negative where a tenant's number stands: nothing that reads a tenant's events sees them.
    pub(super) fn append_to(
        &mut self,
        stream: &StreamName,
        batch: EventBatch,
    ) -> Result<Vec<Appended>, Stop<StreamError>> {
        let name = match stream {
            StreamName::Events => return self.append(batch),
            StreamName::Changes(_) => {
                return Err(Stop::Refused(StreamError::NotAppendable { stream: stream.to_string() }));
            }
            StreamName::Named(name) => name,
        };
        let tenant = batch.tenant.clone();
        let number = self.named_number(&tenant, name)?;
        let (appended, written) = self.write_events(-number, batch)?;
        if let Some(written) = written {
            self.note_named(tenant, name.clone(), written.last_position());
        }
        Ok(appended)
    }

    fn named_number(&mut self, tenant: &TenantId, name: &str) -> Result<i64, Stop<StreamError>> {
        let tenant = self.tenant_number(tenant)?;
        let key = (tenant, name.to_owned());
        if let Some(known) = self.changes.numbers.get(&key) {
            return Ok(known.number);
        }
        if stored_number(&self.conn, tenant, name)?.is_none() {
            let streams: i64 = self
                .conn
                .prepare_cached(
                    "SELECT (SELECT count(*) FROM streams WHERE tenant = ?1 AND name < 'changes:')
                     + (SELECT count(*) FROM streams WHERE tenant = ?1 AND name >= 'changes;')",
                )?
                .query_row([tenant], |row| row.get(0))?;
            if unsigned(streams) >= NAMED_STREAMS_MAX as u64 {
                return Err(Stop::Refused(StreamError::TooManyStreams { max: NAMED_STREAMS_MAX }));
            }
        }
        Ok(self.numbered(key)?.number)
    }

    /// A stream's number; a new stream gets one.
    fn numbered(&mut self, key: NameKey) -> Result<&mut Numbered, rusqlite::Error> {
        if self.changes.numbers.get(&key).is_none() {
            let (tenant, name) = (key.0, key.1.as_str());
            let number = match stored_number(&self.conn, tenant, name)? {
                Some(number) => number,
                None => {
                    self.conn
                        .prepare_cached("INSERT INTO streams(tenant, name) VALUES (?1, ?2)")?
                        .execute((tenant, name))?;
                    self.conn.last_insert_rowid()
                }
            };
            let entries = match self.changes.entries_max {
                None => 0,
                Some(_) => self
                    .conn
                    .prepare_cached("SELECT count(*) FROM stream_entries WHERE stream = ?1")?
                    .query_row([number], |row| row.get(0).map(unsigned))?,
            };
            let numbered = Numbered { number, name: name.into(), entries };
            self.changes.touched.0.push(key.clone());
            self.changes.numbers.put(key.clone(), numbered);
        }
        Ok(self.changes.numbers.get(&key).expect("it was put there if it was missing"))
    }

    /// Writes the entries of events that are in the log already, and marks the events with their streams.
    pub(super) fn write_changes(
        &mut self,
        tenant: i64,
        batch: &mut EventBatch,
    ) -> Result<(), rusqlite::Error> {
        let scopes = Arc::clone(&self.changes.scopes);
        let mut marks = Vec::new();
        let mut too_long = 0;
        for index in 0..batch.len() {
            let (aggregate, _) = batch.routing(index);
            let Some(scopes) = scopes.of(aggregate) else { continue };
            let event = batch.get(index);
            let derived = if scopes.has_fields() {
                let key = (tenant, event.aggregate.to_owned(), event.agg_id.to_owned());
                let before = self.known_values(&key)?;
                let derived = scopes.derive(&event, &before);
                if derived.values != before {
                    self.write_values(key, derived.values.clone())?;
                }
                derived
            } else {
                scopes.derive(&event, &FieldValues::new())
            };
            too_long += derived.too_long;
            for stream in derived.streams {
                let name = self.write_entry((tenant, stream.to_string()), event.position.0)?;
                marks.push((index, name));
            }
        }
        for (index, name) in marks {
            batch.mark(index, name);
        }
        if too_long > 0 {
            metrics::counter!(CHANGE_SCOPES_SKIPPED).increment(too_long);
        }
        Ok(())
    }

    fn write_entry(&mut self, key: NameKey, position: u64) -> Result<Arc<str>, rusqlite::Error> {
        let entries_max = self.changes.entries_max;
        let tenant = key.0;
        let stream = self.numbered(key.clone())?;
        let (number, name) = (stream.number, Arc::clone(&stream.name));
        stream.entries += 1;
        let over = entries_max.filter(|max| stream.entries > max + max / 4);
        if let Some(max) = over {
            stream.entries = max;
        }
        if entries_max.is_some() {
            self.changes.touched.0.push(key);
        }
        self.conn
            .prepare_cached("INSERT INTO stream_entries(stream, position) VALUES (?1, ?2)")?
            .execute((number, signed(position)))?;
        if let Some(max) = over {
            self.cap_entries(tenant, &name, number, max)?;
        }
        Ok(name)
    }

    /// Drops the oldest entries of a stream beyond its cap, and remembers up to where.
    fn cap_entries(&mut self, tenant: i64, name: &str, stream: i64, max: u64) -> Result<(), rusqlite::Error> {
        let last: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT position FROM stream_entries WHERE stream = ?1 ORDER BY position DESC LIMIT 1 OFFSET ?2",
            )?
            .query_row((stream, signed(max)), |row| row.get(0))
            .optional()?;
        let Some(last) = last else { return Ok(()) };
        self.lose_from_groups_of((tenant, name), Position(unsigned(last)))?;
        let gone = self
            .conn
            .prepare_cached("DELETE FROM stream_entries WHERE stream = ?1 AND position <= ?2")?
            .execute((stream, last))?;
        self.conn.prepare_cached("UPDATE streams SET dropped = ?2 WHERE id = ?1")?.execute((stream, last))?;
        metrics::counter!(CHANGE_ENTRIES_TRIMMED, "cause" => "cap").increment(gone as u64);
        Ok(())
    }

    /// The last known values of an aggregate's fields; none where nothing is known.
    fn known_values(&mut self, key: &ValuesKey) -> Result<FieldValues, rusqlite::Error> {
        if let Some(known) = self.changes.values.get(key) {
            return Ok(known.clone());
        }
        let stored: Option<String> = self
            .conn
            .prepare_cached(
                "SELECT \"values\" FROM scope_values WHERE aggregate = ?2 AND tenant = ?1 AND agg_id = ?3",
            )?
            .query_row((key.0, &key.1, &key.2), |row| row.get(0))
            .optional()?;
        let values = match stored {
            Some(text) => self.changes.scopes.known_values(&key.1, from_json::<StoredValues>(&text)?),
            None => FieldValues::new(),
        };
        self.changes.values.put(key.clone(), values.clone());
        Ok(values)
    }

    fn write_values(&mut self, key: ValuesKey, values: FieldValues) -> Result<(), rusqlite::Error> {
        if !values.is_empty() {
            self.conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO scope_values(tenant, aggregate, agg_id, \"values\") VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((key.0, &key.1, &key.2, to_json(&values)?))?;
        } else {
            self.conn
                .prepare_cached(
                    "DELETE FROM scope_values WHERE aggregate = ?2 AND tenant = ?1 AND agg_id = ?3",
                )?
                .execute((key.0, &key.1, &key.2))?;
        }
        self.changes.touched.1.push(key.clone());
        self.changes.values.put(key, values);
        Ok(())
    }

    /// Drops the entries of events that go, and change streams that have none left.
    pub(super) fn trim_changes(&mut self, before: u64, until: u64) -> Result<(), rusqlite::Error> {
        let mut emptied: Vec<(i64, NameKey)> = Vec::new();
        {
            let mut statement = self.conn.prepare_cached(
                "SELECT id, tenant, name FROM streams s WHERE id IN
                   (SELECT stream FROM stream_entries WHERE position > ?1 AND position <= ?2)
                 AND NOT EXISTS (SELECT 1 FROM stream_entries e WHERE e.stream = s.id AND e.position > ?2)",
            )?;
            let mut rows = statement.query((signed(before), signed(until)))?;
            while let Some(row) = rows.next()? {
                emptied.push((row.get(0)?, (row.get(1)?, row.get(2)?)));
            }
        }
        let gone = self
            .conn
            .prepare_cached("DELETE FROM stream_entries WHERE position > ?1 AND position <= ?2")?
            .execute((signed(before), signed(until)))?;
        for (number, key) in emptied {
            self.conn.prepare_cached("DELETE FROM streams WHERE id = ?1")?.execute([number])?;
            self.changes.numbers.remove(&key);
        }
        if gone > 0 {
            metrics::counter!(CHANGE_ENTRIES_TRIMMED, "cause" => "retention").increment(gone as u64);
        }
        Ok(())
    }
}

/// A stream's number in the database.
pub(super) fn stored_number(
    conn: &rusqlite::Connection,
    tenant: i64,
    name: &str,
) -> Result<Option<i64>, rusqlite::Error> {
    conn.prepare_cached("SELECT id FROM streams WHERE tenant = ?1 AND name = ?2")?
        .query_row((tenant, name), |row| row.get(0))
        .optional()
}
