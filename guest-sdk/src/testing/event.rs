//! Events for tests, and batches of them in the layout they cross in.

use serde::Serialize;
use serde_json::{Value, json};

use crate::EVENT_BYTES;
use crate::Timestamp;
use crate::channel::to_base64;

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

    /// An entry of a channel, as the host tells it: `data`, at this place, with these bytes. Its number is its place, and
    /// nobody executes the channel.
    pub fn entry(process: &str, channel: &str, position: u64, sender: &str, payload: &[u8]) -> Self {
        let event = Self::of_entry("data", (process, channel), position, sender);
        let event = event.with("payload", to_base64(payload).into());
        match std::str::from_utf8(payload) {
            Ok(text) => event.with("text", text.into()),
            Err(_) => event,
        }
    }

    /// The end of a sender's half of a channel.
    pub fn entry_end(process: &str, channel: &str, position: u64, sender: &str) -> Self {
        Self::of_entry("end", (process, channel), position, sender)
    }

    /// The same half, ended by what went wrong.
    pub fn entry_error(process: &str, channel: &str, position: u64, sender: &str, error: &str) -> Self {
        Self::of_entry("error", (process, channel), position, sender).with("error", error.into())
    }

    /// The entry's channel is executed by this party; a plugin is `plugin:<name>`.
    pub fn executed_by(self, executor: &str) -> Self {
        self.with("executorid", executor.into())
    }

    fn of_entry(entry_type: &str, (process, channel): (&str, &str), position: u64, sender: &str) -> Self {
        let agg_id = format!("{process}_{channel}");
        Self::new("channel", &agg_id, position, &format!("channel.{entry_type}")).payload(&json!({
            "process": process, "channel": channel, "position": position, "epoch": 0, "sequence": position,
            "senderid": sender, "type": entry_type, "payload": null,
        }))
    }

    /// Gives a member of the payload, which is an object, another value.
    fn with(self, member: &str, value: Value) -> Self {
        let mut payload = self.json();
        payload[member] = value;
        self.payload(&payload)
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

/// Events as they cross: one arena, and the records of their numbers.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub arena: Vec<u8>,
    pub records: Vec<u8>,
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
    pub fn first(&self, events: usize) -> &[u8] {
        &self.records[..events * EVENT_BYTES]
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
        let words = [position, event.version, event.at.0.cast_unsigned()];
        self.records.extend(words.map(u64::to_le_bytes).as_flattened());
        let numbers = [event.schema_version, event.depth, start].into_iter().chain(ends);
        self.records.extend(numbers.flat_map(u32::to_le_bytes));
    }
}

fn bound(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a test's batch is far below 4 GiB")
}
