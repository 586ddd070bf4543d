//! What a processor asks the host to do, laid out as it crossed: one arena and
//! records of numbers. A batch is checked once, when it comes in, and then
//! written as it is.

use std::collections::HashMap;
use std::sync::Arc;

use super::append::{AppendCause, AppendRef, ChannelGrant, InvalidAppend, check_append};
use crate::channels::EntryType;
use crate::event::{EventBatch, InvalidEvent, Micros, Position};
use crate::limits::{
    CAUSATION_DEPTH_MAX, EVENT_PAYLOAD_BYTES_MAX, GUEST_EFFECTS_MAX, GUEST_KEY_BYTES_MAX,
    GUEST_VALUE_BYTES_MAX, NAME_BYTES_MAX, ROW_KEY_BYTES_MAX,
};
use crate::tables::{CellError, Cells, TableSchema};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectKind {
    Put,
    Delete,
    StatePut,
    StateDelete,
    Emit,
    Append,
}

impl EffectKind {
    /// By its number in `wit/v0.1/types.wit`; the error is one that has none.
    fn from_wire(number: u32) -> Result<Self, u32> {
        Ok(match number {
            0 => Self::Put,
            1 => Self::Delete,
            2 => Self::StatePut,
            3 => Self::StateDelete,
            4 => Self::Emit,
            5 => Self::Append,
            other => return Err(other),
        })
    }
}

/// One effect's numbers. Its bytes lie in the arena from `start` on: key,
/// aggregate, type, id, body. `wit/v0.1/types.wit` says what each kind uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectRecord {
    pub kind: EffectKind,
    pub table: u32,
    /// The index of the event that caused it, in the batch that was handled.
    pub event: u32,
    pub version: u64,
    pub at: i64,
    pub schema_version: u32,
    pub start: u32,
    pub key_bytes: u32,
    pub aggregate_bytes: u32,
    pub type_bytes: u32,
    pub id_bytes: u32,
    pub body_bytes: u32,
    /// For an emitted event, and for an entry that becomes one: the depth it will have. Set by the host.
    pub depth: u32,
}

impl EffectRecord {
    /// Bytes of an effect's numbers when it crosses from a guest.
    pub const WIRE_BYTES: usize = 56;

    /// Reads effects' numbers as they crossed; `wit/v0.1/types.wit` has the layout. More than a call may hand back are
    /// refused before there is room made for them.
    pub fn read_wire(records: &[u8]) -> Result<Vec<Self>, InvalidEffect> {
        let (records, rest) = records.as_chunks::<{ EffectRecord::WIRE_BYTES }>();
        if !rest.is_empty() {
            let bytes = records.as_flattened().len() + rest.len();
            return Err(InvalidEffect::Records { bytes });
        }
        if records.len() > GUEST_EFFECTS_MAX {
            return Err(InvalidEffect::TooMany { effects: records.len() });
        }
        let mut read = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            read.push(Self::read_one(record).map_err(|kind| InvalidEffect::Kind { index, kind })?);
        }
        Ok(read)
    }

    /// One of them; the error is a kind that is none.
    fn read_one(wire: &[u8; Self::WIRE_BYTES]) -> Result<Self, u32> {
        let number = |at: usize| u32::from_le_bytes([wire[at], wire[at + 1], wire[at + 2], wire[at + 3]]);
        let word = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        Ok(Self {
            kind: EffectKind::from_wire(number(0))?,
            table: number(4),
            event: number(8),
            schema_version: number(12),
            version: word(16),
            at: word(24).cast_signed(),
            start: number(32),
            key_bytes: number(36),
            aggregate_bytes: number(40),
            type_bytes: number(44),
            id_bytes: number(48),
            body_bytes: number(52),
            depth: 0,
        })
    }

    /// All its parts together.
    fn bytes(&self) -> u64 {
        [self.key_bytes, self.aggregate_bytes, self.type_bytes, self.id_bytes, self.body_bytes]
            .into_iter()
            .map(u64::from)
            .sum()
    }
}

/// Effects of one call, in order.
#[derive(Clone, Debug, Default)]
pub struct EffectBatch {
    arena: Vec<u8>,
    records: Vec<EffectRecord>,
    /// Trace contexts of emitted events and appended entries, by the index of the effect, ascending. Few events have
    /// one.
    traceparents: Vec<(usize, Box<str>)>,
    /// Their scopes, in the same way.
    scopes: Vec<(usize, Arc<str>)>,
    /// What appended entries were caused by, in the same way.
    causes: Vec<(usize, AppendCause)>,
}

/// One checked effect, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectRef<'a> {
    Put { table: usize, key: &'a str, version: u64, cells: &'a [u8] },
    Delete { table: usize, key: &'a str, version: u64 },
    StatePut { key: &'a [u8], value: &'a [u8], expires_at: Option<Micros> },
    StateDelete { key: &'a [u8] },
    Emit(EmitRef<'a>),
    Append(AppendRef<'a>),
}

/// An event to emit, borrowed. An empty id is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmitRef<'a> {
    pub id: &'a str,
    pub aggregate: &'a str,
    pub agg_id: &'a str,
    pub version: u64,
    pub event_type: &'a str,
    pub at: Micros,
    pub schema_version: u32,
    pub depth: u32,
    /// Of the event that caused it; often empty.
    pub scope: &'a str,
    /// Of the event that caused it, or what goes on from that; often empty.
    pub traceparent: &'a str,
    pub payload: &'a [u8],
}

/// Why effects are not acceptable; the index says which one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEffect {
    #[error("{effects} effects in one call; guest_effects_max is {GUEST_EFFECTS_MAX}")]
    TooMany { effects: usize },
    #[error(
        "the records of the effects have {bytes} bytes, which is no multiple of {}",
        EffectRecord::WIRE_BYTES
    )]
    Records { bytes: usize },
    #[error("effect {index} is of kind {kind}, and there are 0 to 5")]
    Kind { index: usize, kind: u32 },
    #[error("effect {index} points outside its arena")]
    Span { index: usize },
    #[error("the effects have {bytes} bytes in an arena of {arena}: they share some")]
    Shared { bytes: u64, arena: usize },
    #[error("effect {index} names event {event} of {events}")]
    Event { index: usize, event: u32, events: usize },
    #[error("effect {index} names table {table} of {tables}")]
    Table { index: usize, table: u32, tables: usize },
    #[error("effect {index} has text that is not UTF-8")]
    Utf8 { index: usize },
    #[error("effect {index}: {source}")]
    Cells { index: usize, source: CellError },
    #[error("effect {index}: a row's key has 1 to {ROW_KEY_BYTES_MAX} bytes, this one {bytes}")]
    RowKey { index: usize, bytes: usize },
    #[error("effect {index}: version {version} is out of range for table `{table}`")]
    RowVersion { index: usize, version: u64, table: String },
    #[error("effect {index}: a state key has 1 to {GUEST_KEY_BYTES_MAX} bytes, this one {bytes}")]
    StateKey { index: usize, bytes: usize },
    #[error("effect {index}: a state value has at most {GUEST_VALUE_BYTES_MAX} bytes, this one {bytes}")]
    StateValue { index: usize, bytes: usize },
    #[error("effect {index}: a state entry expires after 1970, this one at {at} microseconds")]
    StateExpiry { index: usize, at: i64 },
    #[error("effect {index}: emitted event: {source}")]
    Emit { index: usize, source: InvalidEvent },
    #[error("effect {index}: the emitted payload is not JSON")]
    EmitPayload { index: usize },
    #[error("effect {index}: appended entry: {source}")]
    Append { index: usize, source: InvalidAppend },
    #[error(
        "effect {index}: causation depth {depth} is over causation_depth_max = {CAUSATION_DEPTH_MAX}: does this processor feed itself?"
    )]
    Depth { index: usize, depth: u32 },
}

impl EffectBatch {
    /// Checks what a guest handed back. `depths` has the depth of each event that
    /// it says it handled; it is empty in `flush`, whose effects have depth 1.
    ///
    /// An emitted event is one deeper than the event that its effect names. Which one that is, the guest
    /// says, and it may lie: it may name the shallowest. But what it names is handled with this commit and
    /// cannot be named again, so events of depth d + 1 come only out of calls that used up one of depth d
    /// or less, at most `GUEST_EFFECTS_MAX` a call. A processor that feeds itself therefore ends when
    /// nothing comes from outside any more, and a lie buys it nothing that the truth would not.
    /// A stricter rule (the deepest of the batch, or so far in it) would make the depth depend on how
    /// batches were cut, against "a batch means its events one by one".
    ///
    /// Nothing may be appended to a channel; for that there is [`Self::check_granted`].
    pub fn check(
        arena: Vec<u8>,
        records: Vec<EffectRecord>,
        tables: &[TableSchema],
        depths: &[u32],
    ) -> Result<Self, InvalidEffect> {
        Self::check_granted(arena, records, tables, depths, &ChannelGrant::default())
    }

    /// The same for a plugin that was granted channels.
    pub fn check_granted(
        arena: Vec<u8>,
        mut records: Vec<EffectRecord>,
        tables: &[TableSchema],
        depths: &[u32],
        channels: &ChannelGrant,
    ) -> Result<Self, InvalidEffect> {
        if records.len() > GUEST_EFFECTS_MAX {
            return Err(InvalidEffect::TooMany { effects: records.len() });
        }
        // Sixteen megabytes that every effect points at would be checked and written a hundred thousand times.
        let bytes = records.iter().map(EffectRecord::bytes).sum::<u64>();
        if bytes > arena.len() as u64 {
            return Err(match records.iter().position(|record| parts(record, &arena).is_none()) {
                Some(index) => InvalidEffect::Span { index },
                None => InvalidEffect::Shared { bytes, arena: arena.len() },
            });
        }
        for (index, record) in records.iter_mut().enumerate() {
            let event = record.event as usize;
            if !depths.is_empty() && event >= depths.len() {
                return Err(InvalidEffect::Event { index, event: record.event, events: depths.len() });
            }
            record.depth = depths.get(event).copied().unwrap_or(0) + 1;
            check_one(index, record, &arena, tables, channels)?;
        }
        Ok(Self { arena, records, ..Self::default() })
    }

    /// Leaves out the effects of kinds that this answers no for, with their bytes. It is asked once for each effect.
    pub fn retain(&mut self, keep: impl Fn(EffectKind) -> bool) {
        let kept: Vec<bool> = self.records.iter().map(|record| keep(record.kind)).collect();
        if kept.iter().all(|kept| *kept) {
            return;
        }
        let mut places = vec![0; kept.len()];
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for (index, record) in self.records.iter().enumerate().filter(|(index, _)| kept[*index]) {
            places[index] = records.len();
            let start = u32::try_from(arena.len()).expect("what is kept is no more than there was");
            let from = record.start as usize;
            let bytes =
                usize::try_from(record.bytes()).expect("the spans were checked when the batch came in");
            arena.extend_from_slice(&self.arena[from..from + bytes]);
            records.push(EffectRecord { start, ..*record });
        }
        self.traceparents.retain(|(index, _)| kept[*index]);
        self.traceparents.iter_mut().for_each(|(index, _)| *index = places[*index]);
        self.scopes.retain(|(index, _)| kept[*index]);
        self.scopes.iter_mut().for_each(|(index, _)| *index = places[*index]);
        self.causes.retain(|(index, _)| kept[*index]);
        self.causes.iter_mut().for_each(|(index, _)| *index = places[*index]);
        (self.arena, self.records) = (arena, records);
    }

    /// Appends the effects of a later call.
    pub fn append(&mut self, later: &Self) {
        let base = u32::try_from(self.arena.len()).expect("a batch's effects are bounded far below 4 GiB");
        self.arena.extend_from_slice(&later.arena);
        let before = self.records.len();
        let traceparents = later.traceparents.iter().map(|(index, text)| (before + index, text.clone()));
        self.traceparents.extend(traceparents);
        self.scopes.extend(later.scopes.iter().map(|(index, scope)| (before + index, Arc::clone(scope))));
        self.causes.extend(later.causes.iter().map(|(index, cause)| (before + index, *cause)));
        self.records.extend(later.records.iter().map(|r| EffectRecord { start: r.start + base, ..*r }));
    }

    /// Emitted events and appended entries carry on the scope and the trace context of the event of this batch that
    /// caused them, and entries what they are known by.
    pub fn carry_on(&mut self, batch: &EventBatch) {
        self.note_causes(batch);
        if batch.records().iter().all(|record| record.traceparent_bytes == 0 && record.scope_bytes == 0) {
            return;
        }
        let (mut traceparents, mut scopes) = (Vec::new(), Vec::<(usize, Arc<str>)>::new());
        let goes_on = |kind| matches!(kind, EffectKind::Emit | EffectKind::Append);
        for (index, record) in self.records.iter().enumerate().filter(|(_, r)| goes_on(r.kind)) {
            let place = record.event as usize;
            if place >= batch.len() {
                continue;
            }
            let cause = batch.get(place);
            if !cause.traceparent.is_empty() {
                traceparents.push((index, cause.traceparent.into()));
            }
            if !cause.scope.is_empty() {
                // One event may cause a hundred thousand.
                let same = scopes.last().filter(|(_, scope)| **scope == *cause.scope);
                let scope = same.map_or_else(|| cause.scope.into(), |(_, scope)| Arc::clone(scope));
                scopes.push((index, scope));
            }
        }
        (self.traceparents, self.scopes) = (traceparents, scopes);
    }

    fn note_causes(&mut self, batch: &EventBatch) {
        let (mut causes, mut counts) = (Vec::new(), HashMap::<u32, u32>::new());
        for (at, record) in self.records.iter().enumerate().filter(|(_, r)| r.kind == EffectKind::Append) {
            let Some(event) = batch.records().get(record.event as usize) else { continue };
            let count = counts.entry(record.event).or_default();
            causes.push((at, AppendCause { position: Position(event.position), index: *count }));
            *count += 1;
        }
        self.causes = causes;
    }

    /// What an appended entry was caused by; none for one of a flush.
    pub fn cause_of(&self, index: usize) -> Option<AppendCause> {
        let found = self.causes.binary_search_by_key(&index, |(index, _)| *index);
        found.ok().map(|at| self.causes[at].1)
    }

    /// Puts another trace context in the place of each that this answers one for.
    pub fn map_traceparents(&mut self, of: impl Fn(&str) -> Option<String>) {
        for (_, text) in &mut self.traceparents {
            if let Some(other) = of(text) {
                *text = other.into();
            }
        }
    }

    fn traceparent(&self, index: usize) -> &str {
        let found = self.traceparents.binary_search_by_key(&index, |(index, _)| *index);
        found.map_or("", |at| &self.traceparents[at].1)
    }

    fn scope(&self, index: usize) -> &str {
        let found = self.scopes.binary_search_by_key(&index, |(index, _)| *index);
        found.map_or("", |at| &self.scopes[at].1)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    pub fn records(&self) -> &[EffectRecord] {
        &self.records
    }

    /// Effect `index`, borrowed.
    pub fn get(&self, index: usize) -> EffectRef<'_> {
        let record = &self.records[index];
        let [key, aggregate, event_type, id, body] =
            parts(record, &self.arena).expect("the spans were checked when the batch came in");
        match record.kind {
            EffectKind::Put => EffectRef::Put {
                table: record.table as usize,
                key: checked_text(key),
                version: record.version,
                cells: body,
            },
            EffectKind::Delete => EffectRef::Delete {
                table: record.table as usize,
                key: checked_text(key),
                version: record.version,
            },
            EffectKind::StatePut => {
                EffectRef::StatePut { key, value: body, expires_at: stored_expiry(record.at) }
            }
            EffectKind::StateDelete => EffectRef::StateDelete { key },
            EffectKind::Emit => EffectRef::Emit(EmitRef {
                id: checked_text(id),
                aggregate: checked_text(aggregate),
                agg_id: checked_text(key),
                version: record.version,
                event_type: checked_text(event_type),
                at: Micros(record.at),
                schema_version: record.schema_version,
                depth: record.depth,
                scope: self.scope(index),
                traceparent: self.traceparent(index),
                payload: body,
            }),
            EffectKind::Append => EffectRef::Append(AppendRef {
                process: checked_text(key),
                channel: checked_text(aggregate),
                entry_type: EntryType::parse(checked_text(event_type)).unwrap_or_default(),
                in_reply_to: (record.version > 0).then_some(record.version),
                error: (!id.is_empty()).then(|| checked_text(id)),
                payload: (record.schema_version > 0).then_some(body),
                depth: record.depth,
                scope: self.scope(index),
                traceparent: self.traceparent(index),
            }),
        }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = EffectRef<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// A state entry's expiry as it crosses and is stored: 0 stands for never.
pub fn stored_expiry(micros: i64) -> Option<Micros> {
    (micros != 0).then_some(Micros(micros))
}

fn checked_text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text was checked when the batch came in")
}

/// Cuts an effect's five parts out of its arena; none when it points outside.
fn parts<'a>(record: &EffectRecord, arena: &'a [u8]) -> Option<[&'a [u8]; 5]> {
    let mut rest = arena.get(record.start as usize..)?;
    let mut out = [&[][..]; 5];
    let lengths =
        [record.key_bytes, record.aggregate_bytes, record.type_bytes, record.id_bytes, record.body_bytes];
    for (part, length) in out.iter_mut().zip(lengths) {
        let (taken, left) = rest.split_at_checked(length as usize)?;
        *part = taken;
        rest = left;
    }
    Some(out)
}

fn check_one(
    index: usize,
    record: &EffectRecord,
    arena: &[u8],
    tables: &[TableSchema],
    channels: &ChannelGrant,
) -> Result<(), InvalidEffect> {
    let [key, aggregate, event_type, id, body] = parts(record, arena).ok_or(InvalidEffect::Span { index })?;
    let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| InvalidEffect::Utf8 { index });
    match record.kind {
        EffectKind::Put | EffectKind::Delete => {
            let table = tables.get(record.table as usize).ok_or(InvalidEffect::Table {
                index,
                table: record.table,
                tables: tables.len(),
            })?;
            if key.is_empty() || key.len() > ROW_KEY_BYTES_MAX {
                return Err(InvalidEffect::RowKey { index, bytes: key.len() });
            }
            utf8(key)?;
            let in_range = i64::try_from(record.version).is_ok() && (!table.versioned || record.version > 0);
            if !in_range {
                return Err(InvalidEffect::RowVersion {
                    index,
                    version: record.version,
                    table: table.name.clone(),
                });
            }
            if record.kind == EffectKind::Put {
                Cells::validate(body, table).map_err(|source| InvalidEffect::Cells { index, source })?;
            }
        }
        EffectKind::StatePut | EffectKind::StateDelete => {
            if key.is_empty() || key.len() > GUEST_KEY_BYTES_MAX {
                return Err(InvalidEffect::StateKey { index, bytes: key.len() });
            }
            if body.len() > GUEST_VALUE_BYTES_MAX {
                return Err(InvalidEffect::StateValue { index, bytes: body.len() });
            }
            if record.kind == EffectKind::StatePut && record.at < 0 {
                return Err(InvalidEffect::StateExpiry { index, at: record.at });
            }
        }
        EffectKind::Emit => {
            check_emit(index, record, [utf8(key)?, utf8(aggregate)?, utf8(event_type)?, utf8(id)?], body)?
        }
        EffectKind::Append => {
            let texts = [utf8(key)?, utf8(aggregate)?, utf8(event_type)?, utf8(id)?];
            check_append(record, texts, body, channels)
                .map_err(|source| InvalidEffect::Append { index, source })?;
        }
    }
    Ok(())
}

fn check_emit(
    index: usize,
    record: &EffectRecord,
    [agg_id, aggregate, event_type, id]: [&str; 4],
    payload: &[u8],
) -> Result<(), InvalidEffect> {
    let refused = |source| InvalidEffect::Emit { index, source };
    for (field, text) in [("aggregate", aggregate), ("agg_id", agg_id), ("type", event_type)] {
        if text.is_empty() {
            return Err(refused(InvalidEvent::Missing { field }));
        }
        check_length(field, text).map_err(refused)?;
    }
    check_length("id", id).map_err(refused)?;
    if record.version == 0 || i64::try_from(record.version).is_err() {
        return Err(refused(InvalidEvent::Version { version: record.version }));
    }
    if record.schema_version == 0 {
        return Err(refused(InvalidEvent::SchemaVersion));
    }
    if payload.len() > EVENT_PAYLOAD_BYTES_MAX {
        return Err(refused(InvalidEvent::PayloadTooLarge { bytes: payload.len() }));
    }
    if record.depth > CAUSATION_DEPTH_MAX {
        return Err(InvalidEffect::Depth { index, depth: record.depth });
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(payload)
        .map_err(|_| InvalidEffect::EmitPayload { index })?;
    Ok(())
}

fn check_length(field: &'static str, text: &str) -> Result<(), InvalidEvent> {
    if text.len() > NAME_BYTES_MAX {
        return Err(InvalidEvent::NameTooLong { field, bytes: text.len() });
    }
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err(InvalidEvent::ControlCharacter { field });
    }
    Ok(())
}
