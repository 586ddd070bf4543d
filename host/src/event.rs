//! The vocabulary of events, without I/O: tenants, positions, batches.
//!
//! Events live in batches ([`EventBatch`]): one arena of bytes and a list of
//! records that hold numbers only. The same layout goes from the edge to the
//! store, to the tail and into a guest, so that an event is copied and never
//! taken apart. A batch belongs to one tenant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::{EVENT_PAYLOAD_BYTES_MAX, NAME_BYTES_MAX, TENANT_BYTES_MAX};

/// The name of a tenant: 1 to 63 of `a-z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks the name.
    pub fn new(name: &str) -> Result<Self, InvalidEvent> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = name.len() <= TENANT_BYTES_MAX
            && name.bytes().next().is_some_and(good)
            && name.bytes().all(|b| good(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid {
            Ok(Self(name.into()))
        } else {
            Err(InvalidEvent::Tenant { name: name.chars().take(80).collect() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

/// A place in the event stream. The first event has position 1; 0 stands before all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Before every event.
    pub const START: Self = Self(0);
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a commit in the store's own order. Every row carries the revision that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one life of a store: a position means something only together with its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub Arc<str>);

/// A position as clients see it: opaque to them, `epoch.position` to us. It
/// carries the epoch so that "not yet" and "another log" can be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: Epoch,
    pub position: Position,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.position)
    }
}

impl FromStr for Cursor {
    type Err = InvalidEvent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEvent::Cursor { text: text.chars().take(80).collect() };
        let (epoch, position) = text.split_once('.').ok_or_else(invalid)?;
        if epoch.is_empty() || epoch.len() > 32 || !epoch.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(invalid());
        }
        let position = position.parse().map_err(|_| invalid())?;
        Ok(Self { epoch: Epoch(epoch.into()), position: Position(position) })
    }
}

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// Reads an RFC 3339 time. What is finer than a microsecond is cut off.
    pub fn parse(text: &str) -> Result<Self, InvalidEvent> {
        text.parse::<Timestamp>()
            .map(|t| Self(t.as_microsecond()))
            .map_err(|_| InvalidEvent::Time { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for Micros {
    /// RFC 3339 in UTC, with as many digits of the second as it needs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_microsecond(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

/// One event's numbers. Its bytes lie in the arena of its batch, from `start`
/// on and in the order of the `…_bytes` fields; 0 stands for an absent part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventRecord {
    /// 0 until the log has given it a place.
    pub position: u64,
    pub version: u64,
    pub at: i64,
    pub schema_version: u32,
    pub depth: u32,
    pub start: u32,
    pub id_bytes: u32,
    pub aggregate_bytes: u32,
    pub agg_id_bytes: u32,
    pub type_bytes: u32,
    pub scope_bytes: u32,
    pub kind_bytes: u32,
    pub cursor_bytes: u32,
    pub traceparent_bytes: u32,
    pub payload_bytes: u32,
}

/// The parts of an event, borrowed. What [`EventBatch::push`] takes and [`EventBatch::get`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// 0 until the log has given it a place.
    pub position: Position,
    /// Empty on its way in: an id is derived from the aggregate, its id and the version.
    pub id: &'a str,
    pub aggregate: &'a str,
    pub agg_id: &'a str,
    pub version: u64,
    pub event_type: &'a str,
    pub at: Micros,
    pub schema_version: u32,
    /// How many processors emitted on the way to this event.
    pub depth: u32,
    pub scope: &'a str,
    pub kind: &'a str,
    pub cursor: &'a str,
    pub traceparent: &'a str,
    /// JSON text, kept byte for byte.
    pub payload: &'a [u8],
}

impl Default for Event<'_> {
    fn default() -> Self {
        Self {
            position: Position(0),
            id: "",
            aggregate: "",
            agg_id: "",
            version: 1,
            event_type: "",
            at: Micros(0),
            schema_version: 1,
            depth: 0,
            scope: "",
            kind: "",
            cursor: "",
            traceparent: "",
            payload: b"null",
        }
    }
}

impl Event<'_> {
    /// Whether both say the same, wherever they stand in the log. Payloads that
    /// differ as bytes are compared as JSON values.
    pub fn same_content(&self, other: &Event<'_>) -> bool {
        let envelope = self.id == other.id
            && self.aggregate == other.aggregate
            && self.agg_id == other.agg_id
            && self.version == other.version
            && self.event_type == other.event_type
            && self.at == other.at
            && self.schema_version == other.schema_version
            && self.scope == other.scope;
        envelope
            && (self.payload == other.payload
                || match (
                    serde_json::from_slice::<serde_json::Value>(self.payload),
                    serde_json::from_slice::<serde_json::Value>(other.payload),
                ) {
                    (Ok(a), Ok(b)) => a == b,
                    _ => false,
                })
    }
}

/// Types of events that only the host writes: their payload says who sent an entry of a channel, and that must not be
/// open to whoever may publish.
pub const HOST_EVENT_TYPES: [&str; 3] = ["channel.data", "channel.end", "channel.error"];

/// Events of one tenant, in order. See the module's doc for the layout.
#[derive(Clone, Debug)]
pub struct EventBatch {
    pub tenant: TenantId,
    records: Vec<EventRecord>,
    arena: Vec<u8>,
    marks: Vec<ChangeMark>,
}

/// Says that an event of a batch is in a change stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeMark {
    /// In the batch.
    pub index: u32,
    /// The stream's name; `streams::StreamName` reads it.
    pub stream: Arc<str>,
}

impl EventBatch {
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, records: Vec::new(), arena: Vec::new(), marks: Vec::new() }
    }

    pub fn with_capacity(tenant: TenantId, events: usize, bytes: usize) -> Self {
        let (records, arena) = (Vec::with_capacity(events), Vec::with_capacity(bytes));
        Self { tenant, records, arena, marks: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of text and payload.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    pub fn records(&self) -> &[EventRecord] {
        &self.records
    }

    pub fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// The last event's position; [`Position::START`] where there is none.
    pub fn last_position(&self) -> Position {
        Position(self.records.last().map_or(0, |r| r.position))
    }

    /// Checks an event from outside and appends it. An empty id is derived.
    /// Nothing is appended when it is refused.
    pub fn push(&mut self, event: &Event<'_>) -> Result<(), InvalidEvent> {
        check_name("aggregate", event.aggregate)?;
        check_name("agg_id", event.agg_id)?;
        check_name("type", event.event_type)?;
        for (field, text) in [
            ("id", event.id),
            ("scope", event.scope),
            ("kind", event.kind),
            ("cursor", event.cursor),
            ("traceparent", event.traceparent),
        ] {
            if !text.is_empty() {
                check_name(field, text)?;
            }
        }
        if event.version == 0 || i64::try_from(event.version).is_err() {
            return Err(InvalidEvent::Version { version: event.version });
        }
        if event.schema_version == 0 {
            return Err(InvalidEvent::SchemaVersion);
        }
        if event.payload.len() > EVENT_PAYLOAD_BYTES_MAX {
            return Err(InvalidEvent::PayloadTooLarge { bytes: event.payload.len() });
        }
        if let Some(event_type) = HOST_EVENT_TYPES.into_iter().find(|own| *own == event.event_type) {
            return Err(InvalidEvent::TypeReserved { event_type });
        }
        let derived;
        let event = if event.id.is_empty() {
            derived = derived_id(self.tenant.as_str(), event.aggregate, event.agg_id, event.version);
            &Event { id: &derived, ..*event }
        } else {
            event
        };
        self.push_checked(event);
        Ok(())
    }

    /// Appends an event that has been checked before: one out of a store or another batch.
    pub fn push_checked(&mut self, event: &Event<'_>) {
        let start = bound(self.arena.len());
        for text in [
            event.id,
            event.aggregate,
            event.agg_id,
            event.event_type,
            event.scope,
            event.kind,
            event.cursor,
            event.traceparent,
        ] {
            self.arena.extend_from_slice(text.as_bytes());
        }
        self.arena.extend_from_slice(event.payload);
        self.records.push(EventRecord {
            position: event.position.0,
            version: event.version,
            at: event.at.0,
            schema_version: event.schema_version,
            depth: event.depth,
            start,
            id_bytes: bound(event.id.len()),
            aggregate_bytes: bound(event.aggregate.len()),
            agg_id_bytes: bound(event.agg_id.len()),
            type_bytes: bound(event.event_type.len()),
            scope_bytes: bound(event.scope.len()),
            kind_bytes: bound(event.kind.len()),
            cursor_bytes: bound(event.cursor.len()),
            traceparent_bytes: bound(event.traceparent.len()),
            payload_bytes: bound(event.payload.len()),
        });
    }

    /// Copies event `index` of another batch of the same tenant to the end of
    /// this one: a copy of its bytes and its numbers, nothing is taken apart.
    pub fn push_from(&mut self, other: &EventBatch, index: usize) {
        debug_assert_eq!(self.tenant, other.tenant, "a batch belongs to one tenant");
        let mut record = other.records[index];
        let bytes = &other.arena[record.span()];
        record.start = bound(self.arena.len());
        self.arena.extend_from_slice(bytes);
        self.records.push(record);
    }

    /// Appends all of another batch of the same tenant, its marks too.
    pub fn extend_from(&mut self, other: &EventBatch) {
        debug_assert_eq!(self.tenant, other.tenant, "a batch belongs to one tenant");
        let base = bound(self.arena.len());
        let first = bound(self.len());
        let moved = |mark: &ChangeMark| ChangeMark { index: first + mark.index, stream: mark.stream.clone() };
        self.marks.extend(other.marks.iter().map(moved));
        self.arena.extend_from_slice(&other.arena);
        self.records.extend(other.records.iter().map(|r| EventRecord { start: r.start + base, ..*r }));
    }

    /// Gives this trace context to the events that carry none of their own.
    pub fn fill_traceparent(&mut self, traceparent: &str) {
        if self.records.iter().all(|record| record.traceparent_bytes > 0) {
            return;
        }
        let more = self.len() * traceparent.len();
        let mut filled = Self::with_capacity(self.tenant.clone(), self.len(), self.bytes() + more);
        for event in self.iter() {
            let own = event.traceparent;
            let traceparent = if own.is_empty() { traceparent } else { own };
            filled.push_checked(&Event { traceparent, ..event });
        }
        *self = filled;
    }

    /// Gives event `index` its place. For the log alone.
    pub fn set_position(&mut self, index: usize, position: Position) {
        self.records[index].position = position.0;
    }

    /// Notes that event `index` is in a change stream; in the order of the events. For the log alone.
    pub fn mark(&mut self, index: usize, stream: Arc<str>) {
        self.marks.push(ChangeMark { index: bound(index), stream });
    }

    /// Which events are in which change streams, in the order of the events. Only the chunks of the log's tail
    /// have marks, and copies of single events leave them behind.
    pub fn marks(&self) -> &[ChangeMark] {
        &self.marks
    }

    /// Event `index`, borrowed.
    pub fn get(&self, index: usize) -> Event<'_> {
        let record = &self.records[index];
        let mut at = record.start as usize;
        let mut take = |bytes: u32| {
            let span = &self.arena[at..at + bytes as usize];
            at += bytes as usize;
            span
        };
        Event {
            position: Position(record.position),
            id: text(take(record.id_bytes)),
            aggregate: text(take(record.aggregate_bytes)),
            agg_id: text(take(record.agg_id_bytes)),
            version: record.version,
            event_type: text(take(record.type_bytes)),
            at: Micros(record.at),
            schema_version: record.schema_version,
            depth: record.depth,
            scope: text(take(record.scope_bytes)),
            kind: text(take(record.kind_bytes)),
            cursor: text(take(record.cursor_bytes)),
            traceparent: text(take(record.traceparent_bytes)),
            payload: take(record.payload_bytes),
        }
    }

    /// The aggregate and the type of event `index`, without the rest: what a subscription looks at.
    pub fn routing(&self, index: usize) -> (&str, &str) {
        let record = &self.records[index];
        let aggregate = (record.start + record.id_bytes) as usize;
        let agg_id = aggregate + record.aggregate_bytes as usize;
        let event_type = agg_id + record.agg_id_bytes as usize;
        (
            text(&self.arena[aggregate..agg_id]),
            text(&self.arena[event_type..event_type + record.type_bytes as usize]),
        )
    }

    /// The events in order, borrowed.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }
}

impl EventRecord {
    /// Bytes of an event's numbers when it crosses to a guest.
    pub const WIRE_BYTES: usize = 72;

    /// Appends the event's numbers as they cross to a guest; `wit/v0.1/types.wit` has the layout.
    pub fn write_wire(&self, into: &mut Vec<u8>) {
        let id = self.id_bytes;
        let aggregate = id + self.aggregate_bytes;
        let agg_id = aggregate + self.agg_id_bytes;
        let event_type = agg_id + self.type_bytes;
        let scope = event_type + self.scope_bytes;
        let kind = scope + self.kind_bytes;
        let cursor = kind + self.cursor_bytes;
        let traceparent = cursor + self.traceparent_bytes;
        let words = [self.position, self.version, self.at.cast_unsigned()];
        let numbers = [
            self.schema_version,
            self.depth,
            self.start,
            id,
            aggregate,
            agg_id,
            event_type,
            scope,
            kind,
            cursor,
            traceparent,
            traceparent + self.payload_bytes,
        ];
        // Whole in one place first: the list grows once an event.
        let mut wire = [0; Self::WIRE_BYTES];
        let (low, high) = wire.split_at_mut(size_of_val(&words));
        for (place, word) in low.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        for (place, number) in high.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        into.extend_from_slice(&wire);
    }

    /// Where the event's bytes lie in the arena.
    pub fn span(&self) -> std::ops::Range<usize> {
        let bytes = self.id_bytes
            + self.aggregate_bytes
            + self.agg_id_bytes
            + self.type_bytes
            + self.scope_bytes
            + self.kind_bytes
            + self.cursor_bytes
            + self.traceparent_bytes
            + self.payload_bytes;
        self.start as usize..(self.start + bytes) as usize
    }
}

/// The id of an event that was published without one: the first 16 bytes of
/// SHA-256 over tenant, aggregate, aggregate id and version, as hexadecimal.
/// The same event derives the same id, so a repeated publish is recognised.
pub fn derived_id(tenant: &str, aggregate: &str, agg_id: &str, version: u64) -> String {
    let mut hash = Sha256::new();
    for part in [tenant, aggregate, agg_id] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(version.to_le_bytes());
    let digest = hash.finalize();
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut id = String::with_capacity(32);
    for byte in &digest[..16] {
        id.push(char::from(HEX[usize::from(byte >> 4)]));
        id.push(char::from(HEX[usize::from(byte & 15)]));
    }
    id
}

/// A page of a log. `next` is where to go on: it moves past what a filter left out, too.
#[derive(Clone, Debug)]
pub struct Page {
    pub events: Arc<EventBatch>,
    pub next: Position,
    /// The oldest position that is still held.
    pub oldest: Position,
}

/// What is wrong with an event or a name from outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    #[error("tenant `{name}` is not a name of 1 to {TENANT_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`")]
    Tenant { name: String },
    #[error("`{field}` is missing or empty")]
    Missing { field: &'static str },
    #[error("`{field}` has {bytes} bytes; name_bytes_max is {NAME_BYTES_MAX}")]
    NameTooLong { field: &'static str, bytes: usize },
    #[error("`{field}` holds a control character")]
    ControlCharacter { field: &'static str },
    #[error("`version` is {version}; a version is a whole number from 1 to 9223372036854775807")]
    Version { version: u64 },
    #[error("`schema_version` is 0; it counts from 1")]
    SchemaVersion,
    #[error("the payload has {bytes} bytes; event_payload_bytes_max is {EVENT_PAYLOAD_BYTES_MAX}")]
    PayloadTooLarge { bytes: usize },
    #[error("`{event_type}` is what the host says of entries of channels; name the type otherwise")]
    TypeReserved { event_type: &'static str },
    #[error("`{text}` is not an RFC 3339 time such as 2013-01-01T08:15:00Z")]
    Time { text: String },
    #[error("`{text}` is not a cursor of this server")]
    Cursor { text: String },
}

fn check_name(field: &'static str, text: &str) -> Result<(), InvalidEvent> {
    if text.is_empty() {
        return Err(InvalidEvent::Missing { field });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(InvalidEvent::NameTooLong { field, bytes: text.len() });
    }
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err(InvalidEvent::ControlCharacter { field });
    }
    Ok(())
}

fn bound(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("batches are bounded far below 4 GiB")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text enters a batch as str")
}
