//! What a processor asks the host to do, written straight into the layout it crosses in.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use serde::Serialize;

use crate::bindings::millrace::processor::types as wire;
use crate::channel::{EntryType, NewEntry};
use crate::limits::{
    CHANNEL_ERROR_BYTES_MAX, CHANNEL_NAME_BYTES_MAX, CHANNEL_PAYLOAD_BYTES_MAX, EVENT_PAYLOAD_BYTES_MAX,
    NAME_BYTES_MAX, PROCESS_NAME_BYTES_MAX, ROW_BYTES_MAX, ROW_KEY_BYTES_MAX, STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
};
use crate::record::{EFFECT_BYTES, EffectKind, EffectRecord};
use crate::state::{State, StateValue};
use crate::{Failure, Table, Timestamp, row};

/// A state entry that this batch wrote: where its value lies. None where it was deleted.
type Written = Option<(Range<usize>, Option<Timestamp>)>;

/// Takes what a processor asks for. It all happens together with the event's position, or not at all.
#[derive(Debug)]
pub struct Effects {
    tables: Vec<&'static Table>,
    arena: Vec<u8>,
    /// As they cross.
    records: Vec<u8>,
    /// The index of the event that is being handled.
    event: u32,
    /// The time by which state entries expire, and of what is emitted without one; none before the first event.
    now: Option<Timestamp>,
    /// Expired state entries that this event has deleted.
    expired_deletes: usize,
    /// What this batch has written to the keyed state: the host does not know of it yet.
    state: BTreeMap<Vec<u8>, Written>,
}

/// An event to append to the stream. Its payload is given beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEvent<'a> {
    pub aggregate: &'a str,
    pub agg_id: &'a str,
    pub event_type: &'a str,
    /// 1 or more.
    pub version: u64,
    /// None: the time of the event that is handled; in `flush` the latest of all that this instance has handled.
    pub at: Option<Timestamp>,
    /// 1 or more.
    pub schema_version: u32,
    /// Empty: derived from the tenant, aggregate, agg-id and version.
    pub id: &'a str,
}

impl Default for NewEvent<'_> {
    fn default() -> Self {
        Self { aggregate: "", agg_id: "", event_type: "", version: 1, at: None, schema_version: 1, id: "" }
    }
}

/// How far the effects had come when an event began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    arena: usize,
    records: usize,
}

impl Effects {
    pub(crate) fn new(tables: Vec<&'static Table>) -> Self {
        Self {
            tables,
            arena: vec![],
            records: vec![],
            event: 0,
            now: None,
            expired_deletes: 0,
            state: BTreeMap::new(),
        }
    }

    /// Writes a row over the one with the same key. `row` is a struct or map with the table's columns;
    /// `version` is 1 or more in a versioned table, and 0 will do in another.
    ///
    /// A row that does not fit the declaration is fatal; a value that its column cannot hold is
    /// rejected. Nothing is written then.
    pub fn put<R: Serialize + ?Sized>(
        &mut self,
        table: &Table,
        key: &str,
        version: u64,
        row: &R,
    ) -> Result<(), Failure> {
        let index = self.row_target(table, key, version)?;
        let start = self.arena.len();
        self.arena.extend_from_slice(key.as_bytes());
        let body = self.arena.len();
        let written = row::write(&mut self.arena, table, row).map_err(|e| e.into_failure(table, key));
        let written = written.and_then(|()| match self.arena.len() - body {
            bytes if bytes > ROW_BYTES_MAX => Err(Failure::reject(format!(
                "row `{key}` of table `{}` has {bytes} bytes; row_bytes_max is {ROW_BYTES_MAX}",
                table.name
            ))),
            _ => Ok(()),
        });
        if let Err(failure) = written {
            self.arena.truncate(start);
            return Err(failure);
        }
        let body_bytes = size(self.arena.len() - body);
        self.push(EffectRecord {
            kind: EffectKind::Put,
            table: index,
            version,
            key_bytes: size(key.len()),
            body_bytes,
            ..self.record(start)
        });
        Ok(())
    }

    /// Deletes a row. In a versioned table the delete is remembered for a while, so that a late older
    /// write does not bring the row back.
    pub fn delete(&mut self, table: &Table, key: &str, version: u64) -> Result<(), Failure> {
        let index = self.row_target(table, key, version)?;
        let start = self.arena.len();
        self.arena.extend_from_slice(key.as_bytes());
        self.push(EffectRecord {
            kind: EffectKind::Delete,
            table: index,
            version,
            key_bytes: size(key.len()),
            ..self.record(start)
        });
        Ok(())
    }

    /// Appends an event to the stream, with this payload. Its scope is that of the event that is handled. JSON has no number
    /// for NaN and the infinities: they are `null` in it.
    pub fn emit<T: Serialize + ?Sized>(&mut self, event: &NewEvent<'_>, payload: &T) -> Result<(), Failure> {
        check_new_event(event)?;
        let at = event.at.or(self.now).ok_or_else(|| {
            Failure::retry("no event was handled since the start, so there is no time to emit at")
        })?;
        let start = self.arena.len();
        for text in [event.agg_id, event.aggregate, event.event_type, event.id] {
            self.arena.extend_from_slice(text.as_bytes());
        }
        let body = self.arena.len();
        let written = serde_json::to_writer(&mut self.arena, payload);
        let bytes = self.arena.len() - body;
        let problem = match written {
            Err(e) => Some(format!("the payload of `{}` cannot be written: {e}", event.event_type)),
            Ok(()) if bytes > EVENT_PAYLOAD_BYTES_MAX => Some(format!(
                "the payload of `{}` has {bytes} bytes; event_payload_bytes_max is {EVENT_PAYLOAD_BYTES_MAX}",
                event.event_type
            )),
            Ok(()) => None,
        };
        if let Some(problem) = problem {
            self.arena.truncate(start);
            return Err(Failure::reject(problem));
        }
        self.push(EffectRecord {
            kind: EffectKind::Emit,
            version: event.version,
            at: at.0,
            schema_version: event.schema_version,
            key_bytes: size(event.agg_id.len()),
            aggregate_bytes: size(event.aggregate.len()),
            type_bytes: size(event.event_type.len()),
            id_bytes: size(event.id.len()),
            body_bytes: size(bytes),
            ..self.record(start)
        });
        Ok(())
    }

    /// Appends an entry to a channel of a process, as `plugin:<name>`: the process must have been assigned to the plugin,
    /// and its operator must have granted it the channel. The entry gets the plugin's next number there.
    ///
    /// Where nobody takes the entry any more (the process is closed or somebody else's, the channel is not there) it is
    /// left out and counted. Where the channel is full or nobody is assigned yet, the event is tried again as after a
    /// retry. Any other refusal makes the event a dead letter.
    pub fn append(&mut self, process: &str, channel: &str, entry: &NewEntry<'_>) -> Result<(), Failure> {
        check_new_entry(process, channel, entry)?;
        let start = self.arena.len();
        let (entry_type, error) = (entry.entry_type.as_str(), entry.error.unwrap_or_default());
        let payload = entry.payload.unwrap_or_default();
        for text in [process, channel, entry_type, error] {
            self.arena.extend_from_slice(text.as_bytes());
        }
        self.arena.extend_from_slice(payload);
        self.push(EffectRecord {
            kind: EffectKind::Append,
            version: entry.in_reply_to.unwrap_or(0),
            schema_version: u32::from(entry.payload.is_some()),
            key_bytes: size(process.len()),
            aggregate_bytes: size(channel.len()),
            type_bytes: size(entry_type.len()),
            id_bytes: size(error.len()),
            body_bytes: size(payload.len()),
            ..self.record(start)
        });
        Ok(())
    }

    /// The task's keyed state.
    pub fn state(&mut self) -> State<'_> {
        State::new(self)
    }

    /// Bytes that have been asked for so far in this batch.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Effects that have been asked for so far in this batch.
    pub fn len(&self) -> usize {
        self.records.len() / EFFECT_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn begin(&mut self, event: usize, now: Option<Timestamp>) -> Mark {
        self.event = size(event);
        self.now = now;
        self.expired_deletes = 0;
        Mark { arena: self.arena.len(), records: self.records.len() }
    }

    /// Drops what was asked for since the mark. The overlay of the keyed state is not wound back: the
    /// batch ends here.
    pub(crate) fn truncate(&mut self, mark: Mark) {
        self.arena.truncate(mark.arena);
        self.records.truncate(mark.records);
    }

    /// Hands the effects over and makes room for as many, within reason: the next batch is likely to
    /// ask for as much, but one that asked for a lot must not keep its memory for good.
    pub(crate) fn finish(&mut self) -> wire::Effects {
        const ROOM_BYTES_MAX: usize = 512 << 10;
        const ROOM_RECORDS_MAX: usize = (4 << 10) * EFFECT_BYTES;
        self.state.clear();
        let arena = Vec::with_capacity(self.arena.len().min(ROOM_BYTES_MAX));
        let records = Vec::with_capacity(self.records.len().min(ROOM_RECORDS_MAX));
        wire::Effects {
            arena: std::mem::replace(&mut self.arena, arena),
            records: std::mem::replace(&mut self.records, records),
        }
    }

    pub(crate) fn now(&self) -> Option<Timestamp> {
        self.now
    }

    pub(crate) fn expired_deletes(&self) -> usize {
        self.expired_deletes
    }

    /// Writes an entry of the keyed state.
    pub(crate) fn write_state(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_at: Option<Timestamp>,
    ) -> Result<(), Failure> {
        check_state_key(key)?;
        if value.len() > STATE_VALUE_BYTES_MAX {
            return Err(Failure::reject(format!(
                "a state value has {} bytes; state_value_bytes_max is {STATE_VALUE_BYTES_MAX}",
                value.len()
            )));
        }
        let start = self.arena.len();
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        self.state.insert(key.to_vec(), Some((start + key.len()..self.arena.len(), expires_at)));
        self.push(EffectRecord {
            kind: EffectKind::StatePut,
            at: expires_at.map_or(0, |at| at.0),
            key_bytes: size(key.len()),
            body_bytes: size(value.len()),
            ..self.record(start)
        });
        Ok(())
    }

    /// Deletes an entry of the keyed state.
    pub(crate) fn delete_state(&mut self, key: &[u8]) -> Result<(), Failure> {
        check_state_key(key)?;
        let start = self.arena.len();
        self.arena.extend_from_slice(key);
        self.state.insert(key.to_vec(), None);
        self.push(EffectRecord {
            kind: EffectKind::StateDelete,
            key_bytes: size(key.len()),
            ..self.record(start)
        });
        Ok(())
    }

    /// The same for an entry that was found to be gone.
    pub(crate) fn delete_expired(&mut self, key: &[u8]) {
        self.expired_deletes += 1;
        self.delete_state(key).expect("a key that was written can be deleted");
    }

    /// What this batch wrote under a key, if it wrote there; the inner none stands for a delete.
    pub(crate) fn state_written(&self, key: &[u8]) -> Option<Option<StateValue>> {
        let written = self.state.get(key)?;
        Some(written.as_ref().map(|(place, expires_at)| StateValue {
            value: self.arena[place.clone()].to_vec(),
            expires_at: *expires_at,
        }))
    }

    /// The first key that this batch wrote from here on.
    pub(crate) fn state_key_from(&self, from: Bound<&[u8]>) -> Option<&[u8]> {
        self.state.range::<[u8], _>((from, Bound::Unbounded)).next().map(|(key, _)| key.as_slice())
    }

    fn push(&mut self, record: EffectRecord) {
        record.write(&mut self.records);
    }

    fn record(&self, start: usize) -> EffectRecord {
        EffectRecord {
            kind: EffectKind::Put,
            table: 0,
            event: self.event,
            version: 0,
            at: 0,
            schema_version: 0,
            start: size(start),
            key_bytes: 0,
            aggregate_bytes: 0,
            type_bytes: 0,
            id_bytes: 0,
            body_bytes: 0,
        }
    }

    /// The table's place in the manifest, after a check of key and version.
    fn row_target(&self, table: &Table, key: &str, version: u64) -> Result<u32, Failure> {
        let same = |known: &&'static Table| std::ptr::eq(*known, table) || known.name == table.name;
        let Some(index) = self.tables.iter().position(same) else {
            return Err(Failure::fatal(format!("the manifest does not name table `{}`", table.name)));
        };
        if key.is_empty() || key.len() > ROW_KEY_BYTES_MAX {
            return Err(Failure::reject(format!(
                "a key of table `{}` has {} bytes; 1 to row_key_bytes_max = {ROW_KEY_BYTES_MAX} are possible",
                table.name,
                key.len()
            )));
        }
        if table.versioned && version == 0 || i64::try_from(version).is_err() {
            return Err(Failure::fatal(format!(
                "version {version} is not one of versioned table `{}`; 1 to {} are",
                table.name,
                i64::MAX
            )));
        }
        Ok(size(index))
    }
}

/// Types of events that only the host writes.
const HOST_EVENT_TYPES: [&str; 3] = ["channel.data", "channel.end", "channel.error"];

fn check_new_event(event: &NewEvent<'_>) -> Result<(), Failure> {
    let texts = [
        ("aggregate", event.aggregate),
        ("agg_id", event.agg_id),
        ("type", event.event_type),
        ("id", event.id),
    ];
    for (field, text) in texts {
        if text.is_empty() && field != "id" {
            return Err(Failure::fatal(format!("an emitted event has no `{field}`")));
        }
        if text.len() > NAME_BYTES_MAX || text.bytes().any(|b| b.is_ascii_control()) {
            return Err(Failure::reject(format!(
                "`{field}` of an emitted event has {} bytes or holds a control character; \
                 name_bytes_max is {NAME_BYTES_MAX}",
                text.len()
            )));
        }
    }
    if HOST_EVENT_TYPES.contains(&event.event_type) {
        return Err(Failure::fatal(format!(
            "`{}` is what the host says of entries of channels; append to a channel instead",
            event.event_type
        )));
    }
    if event.version == 0 || i64::try_from(event.version).is_err() || event.schema_version == 0 {
        return Err(Failure::fatal(format!(
            "an emitted `{}` has version {} and schema version {}; both count from 1",
            event.event_type, event.version, event.schema_version
        )));
    }
    Ok(())
}

fn check_new_entry(process: &str, channel: &str, entry: &NewEntry<'_>) -> Result<(), Failure> {
    for (what, name, max) in
        [("process", process, PROCESS_NAME_BYTES_MAX), ("channel", channel, CHANNEL_NAME_BYTES_MAX)]
    {
        if name.is_empty() || name.len() > max {
            return Err(Failure::reject(format!(
                "the name of the {what} has {} bytes; 1 to {max} are possible",
                name.len()
            )));
        }
    }
    let error = entry.error.unwrap_or_default();
    if !error.is_empty() && entry.entry_type != EntryType::Error {
        return Err(Failure::fatal("the text of an error goes with an entry of the type `error` only"));
    }
    let payload = entry.payload.unwrap_or_default();
    for (what, bytes, name, max) in [
        ("text of the error", error.len(), "channel_error_bytes_max", CHANNEL_ERROR_BYTES_MAX),
        ("payload", payload.len(), "channel_payload_bytes_max", CHANNEL_PAYLOAD_BYTES_MAX),
    ] {
        if bytes > max {
            return Err(Failure::reject(format!(
                "the {what} of an entry for `{channel}` has {bytes} bytes; {name} is {max}"
            )));
        }
    }
    Ok(())
}

fn check_state_key(key: &[u8]) -> Result<(), Failure> {
    if key.is_empty() || key.len() > STATE_KEY_BYTES_MAX {
        return Err(Failure::reject(format!(
            "a state key has {} bytes; 1 to state_key_bytes_max = {STATE_KEY_BYTES_MAX} are possible",
            key.len()
        )));
    }
    Ok(())
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the effects of a batch are bounded far below 4 GiB")
}
