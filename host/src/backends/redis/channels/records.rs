//! Processes and channels as they lie in the server.
//!
//! A channel is in three parts: what changes with its process, its senders, and its numbers. An append writes the last two,
//! and so does not meet changes of the process; the numbers are counted in the server, which sees what has to leave.

use std::sync::Arc;

use redis::Value;
use serde::{Deserialize, Serialize};

use crate::backends::redis::faults::remote;
use crate::backends::redis::scripts::{bytes, list, number, text};
use crate::channels::{Channel, ChannelName, ChannelOptions, Head, Party, Process, ProcessView, Sender};
use crate::error::{BackendError, RemoteFault};
use crate::event::{Micros, Position};
use crate::limits::REDIS_LIFE_STEP;

/// How far a store is: in which life, how many changes it has seen, and the tag of the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: Box<str>,
    pub(super) life: u64,
    pub(super) count: u64,
    pub(super) tag: Box<str>,
}

/// Which of two stamps is later.
pub(super) type At = (u64, u64);

impl Stamp {
    pub(super) fn at(&self) -> At {
        (self.life, self.count)
    }
}

/// A channel, and the life that its numbers are of.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    pub(super) channel: Arc<Channel>,
    pub(super) life: u64,
}

/// A process with all of its channels, or some.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Tells it from another process of the same name.
    pub(super) incarnation: Arc<str>,
    /// Of the call that changed it last.
    pub(super) tag: String,
    pub(super) process: Arc<Process>,
    /// What all channels hold.
    pub(super) bytes: u64,
    pub(super) channels: Vec<Numbered>,
}

/// What of a channel changes with its process.
#[derive(Debug, Serialize, Deserialize)]
struct Assigned {
    executor: Option<Party>,
    epoch: u32,
    options: ChannelOptions,
    created_at: Micros,
}

/// What of a channel changes with each append and is decided by the host.
#[derive(Debug, Deserialize)]
struct Sent {
    senders: Vec<Sender>,
    closing_entries: u64,
    closing_bytes: u64,
}

/// What is written of it.
#[derive(Serialize)]
struct SentRef<'a> {
    senders: &'a [Sender],
    closing_entries: u64,
    closing_bytes: u64,
}

pub(super) fn sent(channel: &Channel) -> Result<String, BackendError> {
    let Channel { senders, closing_entries, closing_bytes, .. } = channel;
    to_json(&SentRef { senders, closing_entries: *closing_entries, closing_bytes: *closing_bytes })
}

/// An answer that the scripts never give.
pub(super) fn shape() -> BackendError {
    remote(RemoteFault::Unsupported, "channels: the answer has another shape")
}

fn json<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<T, BackendError> {
    let text = bytes(value).ok_or_else(shape)?;
    serde_json::from_slice(text).map_err(|error| {
        remote(RemoteFault::WrongType, format_args!("channels: a record cannot be read: {error}"))
    })
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, BackendError> {
    serde_json::to_string(value)
        .map_err(|error| BackendError::Failed { detail: format!("a record of a channel: {error}") })
}

/// A channel without its senders and numbers.
pub(super) fn assigned(channel: &Channel) -> Result<String, BackendError> {
    to_json(&Assigned {
        executor: channel.executor.clone(),
        epoch: channel.epoch,
        options: channel.options.clone(),
        created_at: channel.created_at,
    })
}

pub(super) fn process_of(version: &Value, process: &Value) -> Result<Process, BackendError> {
    // It grows by itself when a store begins another life.
    Ok(Process { version: number(version).ok_or_else(shape)?, ..json(process)? })
}

/// Puts a channel's numbers into it; answers the life that they are of.
pub(super) fn set_numbers(channel: &mut Channel, value: &Value) -> Result<u64, BackendError> {
    let numbers: Vec<u64> =
        text(value).ok_or_else(shape)?.split(' ').filter_map(|part| part.parse().ok()).collect();
    let [newest, oldest, hot, bytes, archive_bytes, life] = numbers[..] else { return Err(shape()) };
    (channel.newest, channel.oldest, channel.hot) = (Position(newest), Position(oldest), Position(hot));
    (channel.bytes, channel.archive_bytes) = (bytes, archive_bytes);
    Ok(life)
}

fn numbered(name: &Value, part: &Value, senders: &Value, numbers: &Value) -> Result<Numbered, BackendError> {
    let name = text(name).and_then(|name| ChannelName::new(name).ok()).ok_or_else(shape)?;
    let Assigned { executor, epoch, options, created_at } = json(part)?;
    let Sent { senders, closing_entries, closing_bytes } = json(senders)?;
    let start = Position::START;
    let mut channel = Channel {
        name,
        executor,
        epoch,
        options,
        created_at,
        newest: start,
        oldest: start,
        hot: start,
        bytes: 0,
        archive_bytes: 0,
        closing_entries,
        closing_bytes,
        senders,
    };
    let life = set_numbers(&mut channel, numbers)?;
    Ok(Numbered { channel: Arc::new(channel), life })
}

impl Record {
    /// None where there is no process.
    pub(super) fn read(value: Value) -> Result<Option<Self>, BackendError> {
        let parts = list(value).ok_or_else(shape)?;
        if parts.is_empty() {
            return Ok(None);
        }
        let (first, rest) = parts.split_at_checked(5).ok_or_else(shape)?;
        let [incarnation, tag, version, process, bytes] = first else { return Err(shape()) };
        let channels = rest.chunks_exact(4).map(|part| numbered(&part[0], &part[1], &part[2], &part[3]));
        Ok(Some(Self {
            incarnation: text(incarnation).ok_or_else(shape)?.into(),
            tag: text(tag).ok_or_else(shape)?.to_owned(),
            process: Arc::new(process_of(version, process)?),
            bytes: number(bytes).ok_or_else(shape)?,
            channels: channels.collect::<Result<_, _>>()?,
        }))
    }

    pub(super) fn view(&self) -> ProcessView {
        let channels = self.channels.iter().map(|numbered| Arc::clone(&numbered.channel)).collect();
        ProcessView { process: Arc::clone(&self.process), channels }
    }

    pub(super) fn channel(&self, name: &ChannelName) -> Option<&Numbered> {
        self.channels.iter().find(|numbered| numbered.channel.name == *name)
    }

    pub(super) fn head(&self, name: &ChannelName) -> Option<Head> {
        let channel = Arc::clone(&self.channel(name)?.channel);
        Some(Head { process: Arc::clone(&self.process), channel })
    }
}

/// A channel and its process, to decide an append on.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) incarnation: Arc<str>,
    pub(super) head: Head,
    /// What all channels of the process hold.
    pub(super) bytes: u64,
}

impl Seen {
    /// A channel of an earlier life than the store's goes on far above, with nothing in it.
    pub(super) fn new(
        incarnation: Arc<str>,
        process: Arc<Process>,
        of: &Numbered,
        bytes: u64,
        life: u64,
    ) -> Self {
        let mut channel = Arc::clone(&of.channel);
        let mut left = bytes;
        if of.life < life {
            let anew = Arc::make_mut(&mut channel);
            left = left.saturating_sub(anew.all_bytes());
            anew.newest = anew.newest.max(Position(life * REDIS_LIFE_STEP));
            anew.oldest = Position(anew.newest.0 + 1);
            anew.hot = anew.oldest;
            (anew.bytes, anew.archive_bytes) = (0, 0);
            (anew.closing_entries, anew.closing_bytes) = (0, 0);
        }
        Self { incarnation, head: Head { process, channel }, bytes: left }
    }

    pub(super) fn of(record: &Record, name: &ChannelName, life: u64) -> Option<Self> {
        let process = Arc::clone(&record.process);
        Some(Self::new(Arc::clone(&record.incarnation), process, record.channel(name)?, record.bytes, life))
    }
}

const _: () = assert!(REDIS_LIFE_STEP == 4_294_967_296, "`lua/channels/state.lua` says the same");
