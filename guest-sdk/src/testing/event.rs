//! Events for tests, and batches of them in the layout they cross in.

use serde::Serialize;

use crate::EVENT_WORDS;
use crate::Timestamp;

/// An event, owned. What is not said is empty; `version`, `schema_version` are 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TestEvent {
    pub id: String,
    pub aggregate: String,
    pub agg_id: String,
    pub version: u64,
    pub event_type: String,
    pub at: Timestamp,
    pub schema_version: u32,
    pub depth: u32,
    pub scope: String,
    pub kind: String,
    pub cursor: String,
    pub traceparent: String,
    /// JSON text.
    pub payload: Vec<u8>,
}

impl TestEvent {
    pub fn new(aggregate: &str, agg_id: &str, version: u64, event_type: &str) -> Self {
        Self {
            id: format!("{aggregate}/{agg_id}/{version}"),
            aggregate: aggregate.into(),
            agg_id: agg_id.into(),
            version,
            event_type: event_type.into(),
            at: Timestamp(0),
            schema_version: 1,
            depth: 0,
            scope: String::new(),
            kind: String::new(),
            cursor: String::new(),
            traceparent: String::new(),
            payload: b"null".to_vec(),
        }
    }

    /// When it happened, in RFC 3339. Panics when it is not.
    pub fn at(mut self, time: &str) -> Self {
        self.at = time.parse().expect("the test names an RFC 3339 time");
        self
    }

    /// Its payload, written as JSON. Panics when that is not possible.
    pub fn payload<T: Serialize + ?Sized>(mut self, payload: &T) -> Self {
        self.payload = serde_json::to_vec(payload).expect("the test's payload can be written as JSON");
        self
    }

    /// The payload, parsed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).expect("the payload is JSON")
    }
}

/// Events as they cross: one arena, and nine words of numbers an event.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub arena: Vec<u8>,
    pub words: Vec<u64>,
}

impl Batch {
    /// Lays events out; the first gets this position.
    pub fn new(events: &[TestEvent], first_position: u64) -> Self {
        let mut batch = Self::default();
        for (position, event) in (first_position..).zip(events) {
            batch.push(position, event);
        }
        batch
    }

    /// The numbers of the first `events` events.
    pub fn first(&self, events: usize) -> &[u64] {
        &self.words[..events * EVENT_WORDS]
    }

    fn push(&mut self, position: u64, event: &TestEvent) {
        let start = bound(self.arena.len());
        let mut ends = [0; 9];
        let texts = [
            &event.id,
            &event.aggregate,
            &event.agg_id,
            &event.event_type,
            &event.scope,
            &event.kind,
            &event.cursor,
            &event.traceparent,
        ];
        let parts = texts.map(|text| text.as_bytes()).into_iter().chain([event.payload.as_slice()]);
        for (end, part) in ends.iter_mut().zip(parts) {
            self.arena.extend_from_slice(part);
            *end = bound(self.arena.len()) - start;
        }
        let pair = |low: u64, high: u64| low | high << 32;
        let [id, aggregate, agg_id, event_type, scope, kind, cursor, traceparent, payload] = ends;
        self.words.extend([
            position,
            event.version,
            event.at.0.cast_unsigned(),
            pair(event.schema_version.into(), event.depth.into()),
            pair(start, id),
            pair(aggregate, agg_id),
            pair(event_type, scope),
            pair(kind, cursor),
            pair(traceparent, payload),
        ]);
    }
}

fn bound(bytes: usize) -> u64 {
    u32::try_from(bytes).expect("a test's batch is far below 4 GiB").into()
}
