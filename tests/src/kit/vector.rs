//! Vectors as they are written down. `tests/kit/write_vectors.py` says what each part means.

use std::collections::BTreeMap;
use std::path::Path;

use millrace::event::{Event, Micros, Position};
use millrace::processors::FlushReason;
use serde::Deserialize;
use serde_json::Value;

/// A guest's life and what it must have asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    pub name: String,
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    pub saved: Option<Saved>,
    pub calls: Vec<Call>,
    pub expect: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub content_type: String,
    pub state: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Handle(Vec<Written>),
    Flush(Reason),
    Restart,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Tick,
    Shutdown,
    Swap,
}

impl From<Reason> for FlushReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Tick => Self::Tick,
            Reason::Shutdown => Self::Shutdown,
            Reason::Swap => Self::Swap,
        }
    }
}

/// Bytes as text, as hexadecimal digits, or put together.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    Text(String),
    Repeat { repeat: Box<Bytes>, times: usize },
    Parts(Vec<Bytes>),
}

impl Bytes {
    pub fn read(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => match text.strip_prefix("hex:") {
                Some(digits) => (0..digits.len() / 2)
                    .map(|at| {
                        u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("hexadecimal digits")
                    })
                    .collect(),
                None => text.strip_prefix("text:").unwrap_or(text).as_bytes().to_vec(),
            },
            Self::Repeat { repeat, times } => repeat.read().repeat(*times),
            Self::Parts(parts) => parts.iter().flat_map(Self::read).collect(),
        }
    }
}

/// An event, or with `times` so many.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Written {
    pub times: Option<u64>,
    pub position: Option<u64>,
    pub id: Option<String>,
    pub aggregate: String,
    pub agg_id: String,
    pub version: u64,
    #[serde(rename = "type")]
    pub event_type: String,
    pub at: i64,
    pub schema_version: u32,
    pub depth: u32,
    pub scope: String,
    pub kind: String,
    pub cursor: String,
    pub traceparent: String,
    pub payload: Bytes,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            times: None,
            position: None,
            id: None,
            aggregate: "thing".into(),
            agg_id: String::new(),
            version: 1,
            event_type: String::new(),
            at: 0,
            schema_version: 1,
            depth: 0,
            scope: String::new(),
            kind: String::new(),
            cursor: String::new(),
            traceparent: String::new(),
            payload: Bytes::Text("{}".into()),
        }
    }
}

/// One event of a vector.
#[derive(Clone, Debug)]
pub(super) struct OneEvent {
    written: Written,
    id: String,
    position: u64,
    payload: Vec<u8>,
}

impl OneEvent {
    pub(super) fn borrow(&self) -> Event<'_> {
        let written = &self.written;
        Event {
            position: Position(self.position),
            id: &self.id,
            aggregate: &written.aggregate,
            agg_id: &written.agg_id,
            version: written.version,
            event_type: &written.event_type,
            at: Micros(written.at),
            schema_version: written.schema_version,
            depth: written.depth,
            scope: &written.scope,
            kind: &written.kind,
            cursor: &written.cursor,
            traceparent: &written.traceparent,
            payload: &self.payload,
        }
    }
}

/// The events that these stand for. `number` is how many came before them, `position` where the last one stood.
pub(super) fn expand(written: &[Written], number: usize, position: &mut u64) -> Vec<OneEvent> {
    let mut events = Vec::new();
    for written in written {
        for index in 0..written.times.unwrap_or(1) {
            *position = written.position.map_or(*position + 1, |first| first + index);
            let mut one = written.clone();
            one.version += index;
            if written.times.is_some() {
                one.agg_id = format!("{}{index:05}", one.agg_id);
            }
            let id = one.id.clone().unwrap_or_else(|| format!("e{}", number + events.len()));
            let payload = one.payload.read();
            events.push(OneEvent { written: one, id, position: *position, payload });
        }
    }
    events
}

/// The vectors of a group, as the kit has them.
pub fn vectors(group: &str) -> Vec<Vector> {
    vectors_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kit/vectors"), group)
}

/// Those of a group in a folder.
pub fn vectors_in(folder: &Path, group: &str) -> Vec<Vector> {
    let path = folder.join(format!("{group}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{group}: {error}"));
    assert!(!vectors.is_empty(), "{group} has vectors");
    vectors
}
