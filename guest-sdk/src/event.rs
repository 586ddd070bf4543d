//! One event, borrowed from the arena of its batch.

use std::fmt;

use serde::Deserialize;

use crate::{Failure, Timestamp};

/// Words of numbers that each event has; `wit/types.wit` says which is what.
pub const EVENT_WORDS: usize = 9;

/// One event. Copying it is cheap: it borrows everything.
///
/// Text is checked to be UTF-8 when it is asked for, so that a processor pays
/// for the parts it looks at. The host hands out nothing else; text that is
/// not UTF-8 ends the instance.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    words: &'a [u64; EVENT_WORDS],
    /// The arena from this event on.
    bytes: &'a [u8],
}

#[expect(clippy::cast_possible_truncation, reason = "a word holds two numbers of 32 bits")]
const fn low(word: u64) -> usize {
    word as u32 as usize
}

const fn high(word: u64) -> usize {
    (word >> 32) as usize
}

impl<'a> Event<'a> {
    /// Cuts an event out of its batch. Panics when its numbers point outside: the host is at fault then.
    #[doc(hidden)]
    pub fn new(arena: &'a [u8], words: &'a [u64; EVENT_WORDS]) -> Self {
        Self { words, bytes: &arena[low(words[4])..] }
    }

    fn text(&self, start: usize, end: usize) -> &'a str {
        std::str::from_utf8(&self.bytes[start..end]).expect("the host hands out UTF-8")
    }

    /// The event's id, unique in its tenant within the dedup window.
    pub fn id(&self) -> &'a str {
        self.text(0, high(self.words[4]))
    }

    /// The kind of thing that changed, such as `flight`.
    pub fn aggregate(&self) -> &'a str {
        self.text(high(self.words[4]), low(self.words[5]))
    }

    /// Which one changed.
    pub fn agg_id(&self) -> &'a str {
        self.text(low(self.words[5]), high(self.words[5]))
    }

    /// What happened, such as `flight.departed`.
    pub fn event_type(&self) -> &'a str {
        self.text(high(self.words[5]), low(self.words[6]))
    }

    /// The scope inside the tenant, if any.
    pub fn scope(&self) -> Option<&'a str> {
        self.optional(low(self.words[6]), high(self.words[6]))
    }

    /// The kind a foreign source gave the event, if any.
    pub fn kind(&self) -> Option<&'a str> {
        self.optional(high(self.words[6]), low(self.words[7]))
    }

    /// The place a foreign source gave the event, if any.
    pub fn cursor(&self) -> Option<&'a str> {
        self.optional(low(self.words[7]), high(self.words[7]))
    }

    /// The W3C trace context the event was published with, if any.
    pub fn traceparent(&self) -> Option<&'a str> {
        self.optional(high(self.words[7]), low(self.words[8]))
    }

    fn optional(&self, start: usize, end: usize) -> Option<&'a str> {
        if start == end { None } else { Some(self.text(start, end)) }
    }

    /// The payload: JSON text.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[low(self.words[8])..high(self.words[8])]
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
        self.words[0]
    }

    /// The version of the aggregate instance after this event; 1 or more.
    pub fn version(&self) -> u64 {
        self.words[1]
    }

    /// When it happened.
    pub fn at(&self) -> Timestamp {
        Timestamp(self.words[2].cast_signed())
    }

    /// The version of the payload's schema; 1 or more.
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    pub fn schema_version(&self) -> u32 {
        self.words[3] as u32
    }

    /// How many processors emitted on the way to this event; 0 for a published one.
    pub fn depth(&self) -> u32 {
        (self.words[3] >> 32) as u32
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
