//! One event, borrowed from the arena of its batch.

use std::fmt;

use serde::Deserialize;

use crate::{Failure, Timestamp};

/// Bytes of numbers that each event has; `wit/v0.1/types.wit` says which is what.
pub const EVENT_BYTES: usize = 72;

// Where they stand. A part ends where the next one begins.
const POSITION: usize = 0;
const VERSION: usize = 8;
const AT: usize = 16;
const SCHEMA_VERSION: usize = 24;
const DEPTH: usize = 28;
const START: usize = 32;
const ID_END: usize = 36;
const AGGREGATE_END: usize = 40;
const AGG_ID_END: usize = 44;
const TYPE_END: usize = 48;
const SCOPE_END: usize = 52;
const KIND_END: usize = 56;
const CURSOR_END: usize = 60;
const TRACEPARENT_END: usize = 64;
const PAYLOAD_END: usize = 68;

/// One event. Copying it is cheap: it borrows everything.
///
/// Text is checked to be UTF-8 when it is asked for, so that a processor pays
/// for the parts it looks at. The host hands out nothing else; text that is
/// not UTF-8 ends the instance.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    record: &'a [u8; EVENT_BYTES],
    /// The arena from this event on.
    bytes: &'a [u8],
}

/// Known places in an array of known length: one load, without a check.
const fn number<const PLACE: usize>(record: &[u8; EVENT_BYTES]) -> u32 {
    u32::from_le_bytes([record[PLACE], record[PLACE + 1], record[PLACE + 2], record[PLACE + 3]])
}

const fn word<const PLACE: usize>(record: &[u8; EVENT_BYTES]) -> u64 {
    u64::from_le_bytes([
        record[PLACE],
        record[PLACE + 1],
        record[PLACE + 2],
        record[PLACE + 3],
        record[PLACE + 4],
        record[PLACE + 5],
        record[PLACE + 6],
        record[PLACE + 7],
    ])
}

impl<'a> Event<'a> {
    /// Cuts an event out of its batch. Panics when its numbers point outside: the host is at fault then.
    #[doc(hidden)]
    pub fn new(arena: &'a [u8], record: &'a [u8; EVENT_BYTES]) -> Self {
        Self { record, bytes: &arena[number::<START>(record) as usize..] }
    }

    /// Where a part ends, from the event's first byte on.
    #[inline]
    fn end<const PLACE: usize>(&self) -> usize {
        number::<PLACE>(self.record) as usize
    }

    fn text(&self, start: usize, end: usize) -> &'a str {
        std::str::from_utf8(&self.bytes[start..end]).expect("the host hands out UTF-8")
    }

    /// The event's id, unique in its tenant within the dedup window.
    pub fn id(&self) -> &'a str {
        self.text(0, self.end::<ID_END>())
    }

    /// The kind of thing that changed, such as `flight`.
    pub fn aggregate(&self) -> &'a str {
        self.text(self.end::<ID_END>(), self.end::<AGGREGATE_END>())
    }

    /// Which one changed.
    pub fn agg_id(&self) -> &'a str {
        self.text(self.end::<AGGREGATE_END>(), self.end::<AGG_ID_END>())
    }

    /// What happened, such as `flight.departed`.
    pub fn event_type(&self) -> &'a str {
        self.text(self.end::<AGG_ID_END>(), self.end::<TYPE_END>())
    }

    /// The scope inside the tenant, if any.
    pub fn scope(&self) -> Option<&'a str> {
        self.optional(self.end::<TYPE_END>(), self.end::<SCOPE_END>())
    }

    /// The kind a foreign source gave the event, if any.
    pub fn kind(&self) -> Option<&'a str> {
        self.optional(self.end::<SCOPE_END>(), self.end::<KIND_END>())
    }

    /// The place a foreign source gave the event, if any.
    pub fn cursor(&self) -> Option<&'a str> {
        self.optional(self.end::<KIND_END>(), self.end::<CURSOR_END>())
    }

    /// The W3C trace context the event was published with, if any.
    pub fn traceparent(&self) -> Option<&'a str> {
        self.optional(self.end::<CURSOR_END>(), self.end::<TRACEPARENT_END>())
    }

    fn optional(&self, start: usize, end: usize) -> Option<&'a str> {
        if start == end { None } else { Some(self.text(start, end)) }
    }

    /// The payload: JSON text.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.end::<TRACEPARENT_END>()..self.end::<PAYLOAD_END>()]
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
        word::<POSITION>(self.record)
    }

    /// The version of the aggregate instance after this event; 1 or more.
    pub fn version(&self) -> u64 {
        word::<VERSION>(self.record)
    }

    /// When it happened.
    pub fn at(&self) -> Timestamp {
        Timestamp(word::<AT>(self.record).cast_signed())
    }

    /// The version of the payload's schema; 1 or more.
    pub fn schema_version(&self) -> u32 {
        number::<SCHEMA_VERSION>(self.record)
    }

    /// How many processors emitted on the way to this event; 0 for a published one.
    pub fn depth(&self) -> u32 {
        number::<DEPTH>(self.record)
    }
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
