//! One event, borrowed from the arena of its batch.

use std::fmt;

use serde::Deserialize;

use crate::bindings::millrace::processor::types::EventRecord;
use crate::{Failure, Timestamp};

/// One event. Copying it is cheap: it borrows everything.
///
/// Text is checked to be UTF-8 when it is asked for, so that a processor pays
/// for the parts it looks at. The host hands out nothing else; text that is
/// not UTF-8 ends the instance.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    record: &'a EventRecord,
    /// This event's part of the arena, exactly.
    bytes: &'a [u8],
}

impl<'a> Event<'a> {
    /// Cuts an event out of its batch. Panics when the record points outside: the host is at fault then.
    pub(crate) fn new(arena: &'a [u8], record: &'a EventRecord) -> Self {
        let r = record;
        let end = [
            r.id_bytes,
            r.aggregate_bytes,
            r.agg_id_bytes,
            r.type_bytes,
            r.scope_bytes,
            r.kind_bytes,
            r.cursor_bytes,
            r.traceparent_bytes,
            r.payload_bytes,
        ]
        .iter()
        .fold(r.start as usize, |end, bytes| end + *bytes as usize);
        Self { record, bytes: &arena[r.start as usize..end] }
    }

    fn text(&self, start: u32, bytes: u32) -> &'a str {
        let span = &self.bytes[start as usize..(start + bytes) as usize];
        std::str::from_utf8(span).expect("the host hands out UTF-8")
    }

    /// The event's id, unique in its tenant within the dedup window.
    pub fn id(&self) -> &'a str {
        self.text(0, self.record.id_bytes)
    }

    /// The kind of thing that changed, such as `flight`.
    pub fn aggregate(&self) -> &'a str {
        self.text(self.record.id_bytes, self.record.aggregate_bytes)
    }

    /// Which one changed.
    pub fn agg_id(&self) -> &'a str {
        let r = self.record;
        self.text(r.id_bytes + r.aggregate_bytes, r.agg_id_bytes)
    }

    /// What happened, such as `flight.departed`.
    pub fn event_type(&self) -> &'a str {
        let r = self.record;
        self.text(r.id_bytes + r.aggregate_bytes + r.agg_id_bytes, r.type_bytes)
    }

    /// Where the optional parts begin.
    fn optional(&self) -> u32 {
        let r = self.record;
        r.id_bytes + r.aggregate_bytes + r.agg_id_bytes + r.type_bytes
    }

    /// The scope inside the tenant, if any.
    pub fn scope(&self) -> Option<&'a str> {
        present(self.text(self.optional(), self.record.scope_bytes))
    }

    /// The kind a foreign source gave the event, if any.
    pub fn kind(&self) -> Option<&'a str> {
        let r = self.record;
        present(self.text(self.optional() + r.scope_bytes, r.kind_bytes))
    }

    /// The place a foreign source gave the event, if any.
    pub fn cursor(&self) -> Option<&'a str> {
        let r = self.record;
        present(self.text(self.optional() + r.scope_bytes + r.kind_bytes, r.cursor_bytes))
    }

    /// The W3C trace context the event was published with, if any.
    pub fn traceparent(&self) -> Option<&'a str> {
        let r = self.record;
        let start = self.optional() + r.scope_bytes + r.kind_bytes + r.cursor_bytes;
        present(self.text(start, r.traceparent_bytes))
    }

    /// The payload: JSON text.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.bytes.len() - self.record.payload_bytes as usize..]
    }

    /// The payload as a type of yours, which may borrow from it. One that does not fit is rejected.
    pub fn payload_as<T: Deserialize<'a>>(&self) -> Result<T, Failure> {
        serde_json::from_slice(self.payload()).map_err(|e| self.unfit(&e))
    }

    #[cold]
    fn unfit(&self, error: &serde_json::Error) -> Failure {
        Failure::reject(format!(
            "the payload of `{}` {} version {} does not fit: {error}",
            self.event_type(),
            self.agg_id(),
            self.version()
        ))
    }

    /// The event's place in its stream; grows within a batch.
    pub fn position(&self) -> u64 {
        self.record.position
    }

    /// The version of the aggregate instance after this event; 1 or more.
    pub fn version(&self) -> u64 {
        self.record.version
    }

    /// When it happened.
    pub fn at(&self) -> Timestamp {
        Timestamp(self.record.at)
    }

    /// The version of the payload's schema; 1 or more.
    pub fn schema_version(&self) -> u32 {
        self.record.schema_version
    }

    /// How many processors emitted on the way to this event; 0 for a published one.
    pub fn depth(&self) -> u32 {
        self.record.depth
    }
}

fn present(text: &str) -> Option<&str> {
    if text.is_empty() { None } else { Some(text) }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("position", &self.position())
            .field("aggregate", &self.aggregate())
            .field("agg_id", &self.agg_id())
            .field("version", &self.version())
            .field("event_type", &self.event_type())
            .field("at", &self.at())
            .field("payload", &String::from_utf8_lossy(self.payload()))
            .finish_non_exhaustive()
    }
}
