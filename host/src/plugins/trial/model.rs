//! What a processor has made of its events, and where two such results part.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::report;
use crate::checkpoints::{EffectBatch, EffectRef, SavedState, StateValue};
use crate::event::{EventBatch, Micros};
use crate::limits::TRIAL_VALUE_CHARS_MAX;
use crate::tables::{Cells, TableSchema, Value};

/// What a processor has made of its events.
#[derive(Clone, Debug)]
pub struct Folded {
    /// Events that its subscription lets pass.
    pub events: usize,
    /// By place of the table and key. A row without cells was deleted from a versioned table.
    pub rows: BTreeMap<(usize, String), Row>,
    pub emitted: Vec<Emitted>,
    pub appended: Vec<Appended>,
    /// The state at the end; none of a processor without one.
    pub state: Option<SavedState>,
    pub keyed: BTreeMap<Vec<u8>, StateValue>,
    /// Events that could not be handled.
    pub letters: Vec<Letter>,
    /// Positions of events that wait behind a letter of their key.
    pub waiting: Vec<u64>,
    /// Writes that a versioned table has left out.
    pub stale: u64,
    /// Rules that it broke. They are no part of the result, and two results may be equal without.
    pub faults: Vec<Fault>,
    /// It could not go on.
    pub stopped: Option<String>,
    tables: Arc<[TableSchema]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub version: u64,
    pub cells: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The position of the event that caused it; none out of a flush.
    pub cause: Option<u64>,
    /// Empty: derived from the tenant, aggregate, agg_id and version.
    pub id: String,
    pub aggregate: String,
    pub agg_id: String,
    pub version: u64,
    pub event_type: String,
    pub at: Micros,
    pub schema_version: u32,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    pub cause: Option<u64>,
    pub process: String,
    pub channel: String,
    /// `data`, `end` or `error`.
    pub entry_type: &'static str,
    pub in_reply_to: Option<u64>,
    pub error: Option<String>,
    pub payload: Option<Vec<u8>>,
}

/// An event that could not be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub position: u64,
    /// `reject`, `fatal`, `retries`, or how its instance fell.
    pub reason: String,
    pub message: String,
}

/// A rule that the processor broke, beside what came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two snapshots of one state differ.
    SnapshotUnequal {
        position: u64,
    },
    SnapshotFell {
        position: u64,
        message: String,
    },
    /// It refuses, or falls over, what it has saved itself.
    StateRefused {
        position: u64,
        message: String,
    },
    /// What it saves right after it has loaded is not what it loaded.
    StateChanged {
        position: u64,
    },
    Flush {
        position: u64,
        message: String,
    },
}

/// Where two results part, and what each says there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub place: String,
    pub one: String,
    pub other: String,
}

/// A part of a result, in the order in which differences are looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Row { table: String, key: String, column: String },
    Emitted { index: usize, field: &'static str },
    Appended { index: usize, field: &'static str },
    Letter { position: u64 },
    Waiting { position: u64 },
    Keyed { key: Vec<u8> },
    State,
    Stopped,
}

type Facts = BTreeMap<Place, Vec<u8>>;

impl Folded {
    pub(super) fn new(tables: &[TableSchema]) -> Self {
        Self {
            events: 0,
            rows: BTreeMap::new(),
            emitted: Vec::new(),
            appended: Vec::new(),
            state: None,
            keyed: BTreeMap::new(),
            letters: Vec::new(),
            waiting: Vec::new(),
            stale: 0,
            faults: Vec::new(),
            stopped: None,
            tables: tables.into(),
        }
    }

    /// The tables that rows are in.
    pub fn tables(&self) -> &[TableSchema] {
        &self.tables
    }

    /// Names everything that has come out; equal results have equal ones.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (place, text) in self.facts() {
            for part in [place.to_string().as_bytes(), text.as_slice()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash.finalize().into()
    }

    /// The first part that is not the same in both: rows first, then what was emitted and appended, then the rest.
    pub fn first_difference(&self, other: &Self) -> Option<Difference> {
        let (one, other) = (self.facts(), other.facts());
        let place =
            one.keys().chain(other.keys()).filter(|place| one.get(*place) != other.get(*place)).min()?;
        let shown = |facts: &Facts| facts.get(place).map_or_else(|| "nothing".to_owned(), |text| shown(text));
        Some(Difference { place: place.to_string(), one: shown(&one), other: shown(&other) })
    }

    /// Takes a call's effects in, as a commit does; `batch` is what it handled, none of a flush.
    pub(super) fn take(&mut self, effects: &EffectBatch, batch: Option<&EventBatch>) {
        for (effect, record) in effects.iter().zip(effects.records()) {
            let cause =
                batch.and_then(|batch| batch.records().get(record.event as usize)).map(|e| e.position);
            match effect {
                EffectRef::Put { table, key, version, cells } => {
                    self.write(table, key, version, Some(cells.to_vec()));
                }
                EffectRef::Delete { table, key, version } => self.write(table, key, version, None),
                // The entries are kept where they can be read.
                EffectRef::StatePut { .. } | EffectRef::StateDelete { .. } => {}
                EffectRef::Emit(event) => self.emitted.push(Emitted {
                    cause,
                    id: event.id.to_owned(),
                    aggregate: event.aggregate.to_owned(),
                    agg_id: event.agg_id.to_owned(),
                    version: event.version,
                    event_type: event.event_type.to_owned(),
                    at: event.at,
                    schema_version: event.schema_version,
                    payload: event.payload.to_vec(),
                }),
                EffectRef::Append(entry) => self.appended.push(Appended {
                    cause,
                    process: entry.process.to_owned(),
                    channel: entry.channel.to_owned(),
                    entry_type: entry.entry_type.as_str(),
                    in_reply_to: entry.in_reply_to,
                    error: entry.error.map(str::to_owned),
                    payload: entry.payload.map(<[u8]>::to_vec),
                }),
            }
        }
    }

    fn write(&mut self, table: usize, key: &str, version: u64, cells: Option<Vec<u8>>) {
        let versioned = self.tables[table].versioned;
        let place = (table, key.to_owned());
        if !versioned {
            match cells {
                Some(_) => self.rows.insert(place, Row { version: 0, cells }),
                None => self.rows.remove(&place),
            };
            return;
        }
        if self.rows.get(&place).is_some_and(|kept| version <= kept.version) {
            self.stale += 1;
            return;
        }
        self.rows.insert(place, Row { version, cells });
    }

    /// Everything that counts when results are compared. Of a letter that is its reason: what a host or an engine
    /// says beside it is for people.
    fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        for ((table, key), row) in &self.rows {
            let table = &self.tables[*table];
            let mut fact = |column: &str, text: Vec<u8>| {
                let (table, key, column) = (table.name.clone(), key.clone(), column.to_owned());
                facts.insert(Place::Row { table, key, column }, text);
            };
            if table.versioned {
                fact("version", row.version.to_string().into_bytes());
            }
            let Some(cells) = &row.cells else { continue };
            for (column, cell) in table.columns.iter().zip(Cells::new(cells)) {
                // They were checked when they came in.
                fact(&column.name, report::text(&cell.map_or(Value::Null, Value::from)));
            }
        }
        for (index, event) in self.emitted.iter().enumerate() {
            let mut fact = |field, text: Vec<u8>| facts.insert(Place::Emitted { index, field }, text);
            fact("type", event.event_type.clone().into_bytes());
            fact("aggregate", event.aggregate.clone().into_bytes());
            fact("agg_id", event.agg_id.clone().into_bytes());
            fact("version", event.version.to_string().into_bytes());
            fact("at", event.at.to_string().into_bytes());
            fact("id", event.id.clone().into_bytes());
            fact("schema_version", event.schema_version.to_string().into_bytes());
            fact("cause", cause(event.cause));
            fact("payload", event.payload.clone());
        }
        for (index, entry) in self.appended.iter().enumerate() {
            let mut fact = |field, text: Vec<u8>| facts.insert(Place::Appended { index, field }, text);
            fact("channel", format!("{}/{}", entry.process, entry.channel).into_bytes());
            fact("type", entry.entry_type.into());
            fact("in_reply_to", cause(entry.in_reply_to));
            fact("error", entry.error.clone().unwrap_or_default().into_bytes());
            fact("cause", cause(entry.cause));
            // Without a payload is something else than with an empty one.
            if let Some(payload) = &entry.payload {
                fact("payload", payload.clone());
            }
        }
        for letter in &self.letters {
            facts.insert(Place::Letter { position: letter.position }, letter.reason.clone().into_bytes());
        }
        for position in &self.waiting {
            facts.insert(Place::Waiting { position: *position }, b"waits".to_vec());
        }
        for (key, entry) in &self.keyed {
            let mut text = entry.value.clone();
            if let Some(at) = entry.expires_at {
                text.extend_from_slice(format!(" until {at}").as_bytes());
            }
            facts.insert(Place::Keyed { key: key.clone() }, text);
        }
        if let Some(saved) = &self.state {
            facts.insert(Place::State, saved.state.clone());
        }
        if let Some(why) = &self.stopped {
            facts.insert(Place::Stopped, why.clone().into_bytes());
        }
        facts
    }
}

fn cause(position: Option<u64>) -> Vec<u8> {
    position.map_or_else(|| b"none".to_vec(), |position| position.to_string().into_bytes())
}

/// A value for a line of a report.
fn shown(bytes: &[u8]) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok("") => "nothing".to_owned(),
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().take(TRIAL_VALUE_CHARS_MAX).map(|byte| format!("{byte:02x}")).collect(),
    };
    match text.char_indices().nth(TRIAL_VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], bytes.len()),
        None => text,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row { table, key, column } => write!(f, "row {table}/{key}, column {column}"),
            Self::Emitted { index, field } => write!(f, "emitted event {}, {field}", index + 1),
            Self::Appended { index, field } => write!(f, "appended entry {}, {field}", index + 1),
            Self::Letter { position } => write!(f, "the dead letter of event {position}"),
            Self::Waiting { position } => write!(f, "event {position}, behind a dead letter of its key"),
            Self::Keyed { key } => write!(f, "keyed state {}", shown(key)),
            Self::State => f.write_str("the saved state"),
            Self::Stopped => f.write_str("why it stopped"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} / {}", self.place, self.one, self.other)
    }
}

impl Fault {
    pub fn code(&self) -> &'static str {
        match self {
            Self::SnapshotUnequal { .. } => "snapshot_unequal",
            Self::SnapshotFell { .. } => "snapshot_failed",
            Self::StateRefused { .. } => "state_refused",
            Self::StateChanged { .. } => "state_changed",
            Self::Flush { .. } => "flush_failed",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SnapshotUnequal { position } => {
                write!(
                    f,
                    "two snapshots of the state after event {position} differ: write what it holds in one order"
                )
            }
            Self::SnapshotFell { position, message } => {
                write!(f, "`snapshot` failed after event {position}: {message}")
            }
            Self::StateRefused { position, message } => {
                write!(f, "it does not load what it saved after event {position}: {message}")
            }
            Self::StateChanged { position } => write!(
                f,
                "what it saves right after it loaded the state of event {position} is not what it loaded"
            ),
            Self::Flush { position, message } => {
                write!(f, "`flush` failed after event {position}: {message}")
            }
        }
    }
}
