//! What lies in a channel.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::names::Party;
use super::record::Head;
use crate::event::{Micros, Position};
use crate::limits::CHANNEL_ENTRY_BYTES;

/// What an entry says about its sender's half of the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryType {
    #[default]
    Data,
    /// The sender is done: nothing more comes from it in this epoch.
    End,
    /// The sender has failed: nothing more comes from it in this epoch.
    Error,
}

impl EntryType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::End => "end",
            Self::Error => "error",
        }
    }

    /// What a client wrote. An empty name is data.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "" | "data" => Some(Self::Data),
            "end" => Some(Self::End),
            "error" => Some(Self::Error),
            _ => None,
        }
    }

    /// Whether it closes its sender's half.
    pub fn closes(self) -> bool {
        self != Self::Data
    }
}

/// An entry as it lies in the log of its channel. It never changes.
#[derive(Debug)]
pub struct Entry {
    /// Its place, from 1 on without holes.
    pub position: Position,
    pub sender: Party,
    /// Of the sender: 0 for the submitter, that of the assignment for an executor.
    pub epoch: u32,
    /// Counted by the sender, from 1 on in each epoch.
    pub sequence: u64,
    /// The number of another sender's entry that this one answers.
    pub in_reply_to: Option<u64>,
    /// When it was appended.
    pub at: Micros,
    pub entry_type: EntryType,
    /// The text of an `error` entry.
    pub error: Option<Box<str>>,
    pub payload: Option<Bytes>,
    /// As it is written on the wire, once somebody has.
    pub(crate) wire: OnceLock<Bytes>,
}

impl Entry {
    /// What it takes of a budget.
    pub fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.error.as_ref().map_or(0, |text| text.len())
    }

    /// How it is written on the wire, made once for everybody.
    pub(crate) fn wire(&self, write: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.wire.get_or_init(|| write(self)).clone()
    }

    /// Whether a sender that repeats itself says the same again.
    pub(crate) fn says(&self, new: &NewEntry) -> bool {
        self.entry_type == new.entry_type
            && self.payload == new.payload
            && self.error.as_deref() == new.error.as_deref()
            && self.in_reply_to == new.in_reply_to
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let of = |entry: &Self| (entry.position, entry.epoch, entry.sequence, entry.in_reply_to, entry.at);
        of(self) == of(other)
            && self.sender == other.sender
            && self.entry_type == other.entry_type
            && self.error == other.error
            && self.payload == other.payload
    }
}

/// What somebody wants to append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewEntry {
    /// None takes the sender's next number; then a repeat is a second entry.
    pub sequence: Option<u64>,
    pub in_reply_to: Option<u64>,
    pub entry_type: EntryType,
    pub error: Option<Box<str>>,
    pub payload: Option<Bytes>,
}

impl NewEntry {
    pub fn data(sequence: u64, payload: impl Into<Bytes>) -> Self {
        Self { sequence: Some(sequence), payload: Some(payload.into()), ..Self::default() }
    }

    #[must_use]
    pub fn of_type(mut self, entry_type: EntryType) -> Self {
        self.entry_type = entry_type;
        self
    }

    #[must_use]
    pub fn replying_to(mut self, sequence: u64) -> Self {
        self.in_reply_to = Some(sequence);
        self
    }

    pub(crate) fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.error.as_ref().map_or(0, |text| text.len())
    }
}

const _: () = assert!(size_of::<NewEntry>() <= CHANNEL_ENTRY_BYTES, "an entry that waits is not larger");

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: Position,
    pub epoch: u32,
    pub sequence: u64,
    /// It lay there already: this was a repeat.
    pub repeated: bool,
}

/// A part of a channel's log.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPage {
    /// The channel and its process when it was read: whose entries these are, and who may have them.
    pub head: Head,
    pub entries: Vec<Arc<Entry>>,
    /// The index to go on from: the position of the last entry here, or where the reader stands.
    pub next: Position,
    /// The first position that can still be read, and the newest.
    pub oldest: Position,
    pub newest: Position,
    /// Entries between the reader and the first one here that were dropped.
    pub missed: u64,
}
