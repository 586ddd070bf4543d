//! What a store keeps of a process and of a channel, entries apart: plain values, and questions that they answer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cursor::Incarnation;
use super::entry::EntryType;
use super::names::{ChannelName, Party, ProcessName};
use super::options::ChannelOptions;
use crate::event::{Micros, Position};

/// A process: a piece of work that one party submits and another one executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub name: ProcessName,
    /// [`Incarnation::of`] reads it.
    #[serde(default)]
    pub incarnation: Incarnation,
    pub submitter: Party,
    /// Of channels that are made from now on; a channel may have another one.
    pub executor: Option<Party>,
    /// Counts assignments and their ends, from 1 on. An executor's rights are those of one epoch.
    pub epoch: u32,
    /// Parties that may read.
    pub observers: Vec<Party>,
    pub created_at: Micros,
    pub closed: Option<Closed>,
    /// Grows with each change of the process; not with what is appended.
    pub version: u64,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub at: Micros,
    pub outcome: Outcome,
    /// For people. May be empty.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Success,
    Failed,
    Cancelled,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Success, Self::Failed, Self::Cancelled].into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// A channel of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    pub name: ChannelName,
    pub executor: Option<Party>,
    /// The process's epoch when the executor here was changed last.
    pub epoch: u32,
    pub options: ChannelOptions,
    pub created_at: Micros,
    /// The position of the last entry.
    pub newest: Position,
    /// The first position that can be read; one beyond the newest when there is none.
    pub oldest: Position,
    /// The first position that counts towards what the channel may hold; what lies before it is its archive.
    pub hot: Position,
    /// Of entries from `hot` on.
    pub bytes: u64,
    /// Of entries before it.
    pub archive_bytes: u64,
    /// Entries that closed a half and took nobody's room, ever since the channel was made, and their bytes; bound by
    /// `CHANNEL_CLOSINGS_MAX` and its bytes, but for the submitter's.
    #[serde(default)]
    pub closing_entries: u64,
    #[serde(default)]
    pub closing_bytes: u64,
    /// Who has sent something here.
    pub senders: Vec<Sender>,
}

/// What a channel knows of a sender in one of its epochs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    pub party: Party,
    pub epoch: u32,
    /// All numbers from 1 to here are in the log, or were.
    pub last: u64,
    /// Stretches of numbers beyond, each from its first to its last; only on channels that take entries as they arrive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ahead: Vec<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EntryType>,
}

/// What somebody is to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Submitter,
    /// In this epoch.
    Executor(u32),
    /// Reads only.
    Observer,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Executor(_) => "executor",
            Self::Observer => "observer",
        }
    }

    /// Under which its entries are counted; none for who does not append.
    pub fn epoch(self) -> Option<u32> {
        match self {
            Self::Submitter => Some(0),
            Self::Executor(epoch) => Some(epoch),
            Self::Observer => None,
        }
    }
}

/// A channel as of one moment, with its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub process: Arc<Process>,
    pub channel: Arc<Channel>,
}

/// A process with all of its channels, in the order of their creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessView {
    pub process: Arc<Process>,
    pub channels: Vec<Arc<Channel>>,
}

impl Channel {
    /// Entries that count towards what it may hold.
    pub fn hot_entries(&self) -> u64 {
        self.newest.0 + 1 - self.hot.0
    }

    /// Entries before those.
    pub fn archived_entries(&self) -> u64 {
        self.hot.0 - self.oldest.0
    }

    /// Entries that can be read.
    pub fn entries(&self) -> u64 {
        self.newest.0 + 1 - self.oldest.0
    }

    /// Entries that are gone because the channel was full.
    pub fn dropped(&self) -> u64 {
        self.oldest.0 - 1
    }

    pub fn all_bytes(&self) -> u64 {
        self.bytes + self.archive_bytes
    }

    pub fn sender(&self, party: &Party, epoch: u32) -> Option<&Sender> {
        self.senders.iter().find(|sender| sender.epoch == epoch && sender.party == *party)
    }

    /// Whether both sides have said that nothing more comes from them.
    pub fn is_ended(&self, process: &Process) -> bool {
        let ended = |party: &Party, epoch| self.sender(party, epoch).is_some_and(|s| s.ended.is_some());
        let executor = self.executor.as_ref();
        ended(&process.submitter, 0)
            && executor.is_some_and(|e| *e == process.submitter || ended(e, self.epoch))
    }

    /// The first entries that count no more go into the archive.
    pub fn archive(&mut self, entries: u64, bytes: u64) {
        self.hot.0 += entries;
        self.bytes -= bytes;
        self.archive_bytes += bytes;
    }

    /// The oldest entries are gone.
    pub fn forget(&mut self, entries: u64, bytes: u64) {
        self.oldest.0 += entries;
        let archived = bytes.min(self.archive_bytes);
        self.archive_bytes -= archived;
        self.bytes -= bytes - archived;
        self.hot = self.hot.max(self.oldest);
    }
}

impl Sender {
    pub fn seen(&self, sequence: u64) -> bool {
        (1..=self.last).contains(&sequence)
            || self.ahead.iter().any(|(from, to)| (*from..=*to).contains(&sequence))
    }

    /// The largest number that it has used.
    pub fn highest(&self) -> u64 {
        self.ahead.last().map_or(self.last, |(_, to)| *to)
    }

    /// Takes a number in that was not seen yet.
    pub(super) fn note(&mut self, sequence: u64) {
        let at = self.ahead.partition_point(|(from, _)| *from < sequence);
        self.ahead.insert(at, (sequence, sequence));
        if self.ahead.get(at + 1).is_some_and(|(from, _)| *from == sequence + 1) {
            self.ahead[at].1 = self.ahead.remove(at + 1).1;
        }
        if at > 0 && self.ahead[at - 1].1 + 1 == sequence {
            self.ahead[at - 1].1 = self.ahead.remove(at).1;
        }
        if self.ahead[0].0 == self.last + 1 {
            self.last = self.ahead.remove(0).1;
        }
    }
}

impl Head {
    /// What somebody is here; none for a stranger. Who is both submitter and executor is one sender, the submitter.
    pub fn role(&self, who: &Party) -> Option<Role> {
        if self.process.submitter == *who {
            Some(Role::Submitter)
        } else if self.channel.executor.as_ref() == Some(who) {
            Some(Role::Executor(self.channel.epoch))
        } else if self.process.observers.contains(who) {
            Some(Role::Observer)
        } else {
            None
        }
    }

    /// Whether it is of this process, and not of another one that had the same name.
    pub(crate) fn is_of(&self, process: &Process) -> bool {
        Incarnation::of(&self.process) == Incarnation::of(process)
    }

    /// Which of two is newer, of the same process.
    pub(crate) fn age(&self) -> (u64, Position, Position) {
        (self.process.version, self.channel.newest, self.channel.oldest)
    }
}
