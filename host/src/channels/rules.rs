//! What may be done to a process and its channels, and what it does to their records. Pure: a store asks here inside of
//! its transaction and then writes what came out, so that every store has the same rules.

use std::sync::Arc;

use super::assign::{assign, assign_channel};
use super::cursor::Incarnation;
use super::entry::{Entry, EntryType, NewEntry};
use super::error::ChannelError;
use super::names::{ChannelName, Party, ProcessId, ProcessName};
use super::options::{ChannelLimits, ChannelOptions, Gaps};
use super::record::{Channel, Closed, Head, Outcome, Process, ProcessView, Role, Sender};
use super::room::{Excess, excess, takes_nobodys_room};
use crate::event::{Micros, Position};
use crate::limits::{
    CHANNEL_AHEAD_MAX, CHANNEL_ENTRY_BYTES, CHANNEL_ERROR_BYTES_MAX, CHANNEL_EVENT_PAYLOAD_BYTES_MAX,
    CHANNEL_REASON_BYTES_MAX, CHANNEL_SENDERS_MAX, CHANNEL_SEQUENCE_MAX,
};

type Result<T> = std::result::Result<T, ChannelError>;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    Party(Party),
    /// The host itself, or whoever runs it: may change anything.
    Host,
}

/// What somebody wants to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewProcess {
    pub id: ProcessId,
    pub submitter: Party,
    pub executor: Option<Party>,
    pub observers: Vec<Party>,
    pub channels: Vec<NewChannel>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChannel {
    pub name: ChannelName,
    pub options: ChannelOptions,
}

/// A change of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a channel. With `exists_ok`, one that is there stays as it is, and that is no error.
    AddChannel { channel: NewChannel, exists_ok: bool },
    /// Gives all channels to an executor, in a new epoch. The same executor again is a new one.
    Assign(Party),
    /// Takes all channels from their executors.
    Unassign,
    /// Gives one channel to an executor, or takes it.
    AssignChannel { channel: ChannelName, executor: Option<Party> },
    /// Says who else may read.
    Observe(Vec<Party>),
    /// Nothing more is appended. Closing again changes nothing.
    Close { outcome: Outcome, reason: String },
}

/// What somebody wants to append to a channel: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    pub who: Party,
    /// In which epoch the sender thinks it is. None: the current one.
    pub epoch: Option<u32>,
    pub entries: Vec<NewEntry>,
}

impl Append {
    /// What it takes of memory before it is in the store.
    pub(crate) fn held_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes() + CHANNEL_ENTRY_BYTES).sum()
    }
}

/// What comes of an append: what the store writes, and in which order it answers.
#[derive(Debug)]
pub struct Planned {
    /// The channel afterwards, before anything is dropped.
    pub channel: Channel,
    pub outcomes: Vec<Outcomed>,
    /// Whether anything of it counts towards what the channel and its process may hold.
    pub counts: bool,
    /// What has to leave before the channel is within its bounds.
    pub excess: Excess,
}

#[derive(Debug)]
pub enum Outcomed {
    New(Arc<Entry>),
    /// Index of the entry in the request: it was appended before, under this number.
    Repeat {
        index: usize,
        epoch: u32,
        sequence: u64,
    },
}

fn unknown_channel(process: &ProcessName, channel: &ChannelName) -> ChannelError {
    ChannelError::Unknown { process: process.to_string(), channel: channel.to_string() }
}

impl ProcessView {
    pub fn head(&self, channel: &ChannelName) -> Result<Head> {
        let found = self.channels.iter().find(|known| known.name == *channel);
        let found = found.ok_or_else(|| unknown_channel(&self.process.name, channel))?;
        Ok(Head { process: Arc::clone(&self.process), channel: Arc::clone(found) })
    }

    /// What all channels hold.
    pub fn bytes(&self) -> u64 {
        self.channels.iter().map(|channel| channel.all_bytes()).sum()
    }
}

fn new_channel(process: &Process, new: NewChannel, now: Micros) -> Channel {
    Channel {
        name: new.name,
        executor: process.executor.clone(),
        epoch: process.epoch,
        options: new.options,
        created_at: now,
        newest: Position::START,
        oldest: Position(1),
        hot: Position(1),
        bytes: 0,
        archive_bytes: 0,
        closing_entries: 0,
        closing_bytes: 0,
        senders: Vec::new(),
    }
}

fn check_observers(observers: &[Party], limits: &ChannelLimits) -> Result<()> {
    if observers.len() <= limits.observers_max {
        return Ok(());
    }
    Err(ChannelError::Limit {
        limit: "process_observers_max",
        what: "observers of the process",
        asked: observers.len() as u64,
        max: limits.observers_max as u64,
    })
}

fn add_channel(
    view: &mut ProcessView,
    new: NewChannel,
    exists_ok: bool,
    now: Micros,
    limits: &ChannelLimits,
) -> Result<bool> {
    if view.channels.iter().any(|known| known.name == new.name) {
        if exists_ok {
            return Ok(false);
        }
        return Err(ChannelError::Exists { channel: new.name.to_string() });
    }
    if view.channels.len() >= limits.channels_max {
        return Err(ChannelError::TooManyChannels { max: limits.channels_max as u64 });
    }
    limits.check(&new.options)?;
    let channel = new_channel(&view.process, new, now);
    view.channels.push(Arc::new(channel));
    Ok(true)
}

/// Makes a process, or finds that it is there. The same request again answers what is there; another one is refused.
/// `of_tenant` counts the tenant's processes.
pub(crate) fn create(
    known: Option<&ProcessView>,
    new: NewProcess,
    of_tenant: u64,
    (incarnation, now): (Incarnation, Micros),
    limits: &ChannelLimits,
) -> Result<Option<ProcessView>> {
    if let Some(known) = known {
        let process = &known.process;
        // The executor may have changed since.
        let same = process.submitter == new.submitter
            && process.observers == new.observers
            && (new.executor.is_none() || process.executor == new.executor)
            && new
                .channels
                .iter()
                .all(|c| known.channels.iter().any(|k| k.name == c.name && k.options == c.options));
        if same {
            return Ok(None);
        }
        return Err(ChannelError::ProcessExists { process: process.name.to_string() });
    }
    if of_tenant >= limits.processes_max as u64 {
        return Err(ChannelError::Limit {
            limit: "processes_max",
            what: "processes of the tenant",
            asked: of_tenant + 1,
            max: limits.processes_max as u64,
        });
    }
    check_observers(&new.observers, limits)?;
    let process = Process {
        name: new.id.name,
        incarnation,
        submitter: new.submitter,
        epoch: u32::from(new.executor.is_some()),
        executor: new.executor,
        observers: new.observers,
        created_at: now,
        closed: None,
        version: 1,
    };
    let mut view = ProcessView { process: Arc::new(process), channels: Vec::new() };
    for channel in new.channels {
        add_channel(&mut view, channel, false, now, limits)?;
    }
    Ok(Some(view))
}

/// The submitter, and for some changes the executor of the process. Who executes one channel of it decides on nothing else.
fn needs(view: &ProcessView, by: &Actor, executor_too: bool, needed: &'static str) -> Result<()> {
    let Actor::Party(party) = by else { return Ok(()) };
    let process = &view.process;
    let executes = process.executor.as_ref() == Some(party)
        || view.channels.iter().any(|channel| channel.executor.as_ref() == Some(party));
    if process.submitter == *party || executor_too && process.executor.as_ref() == Some(party) {
        return Ok(());
    }
    let (process, party) = (process.name.to_string(), party.to_string());
    if executes || view.process.observers.iter().any(|observer| observer.as_str() == party) {
        let role = if executor_too { "submitter or executor" } else { "submitter" };
        return Err(ChannelError::Role { process, party, role, needed });
    }
    Err(ChannelError::Forbidden { process, party })
}

/// Carries a change out on a record. False: it is so already, and nothing has changed.
pub(crate) fn change(
    view: &mut ProcessView,
    by: &Actor,
    change: Change,
    now: Micros,
    limits: &ChannelLimits,
) -> Result<bool> {
    let executor_too = matches!(change, Change::Unassign | Change::Close { .. });
    let needed = match &change {
        Change::AddChannel { .. } => "add channels to",
        Change::Assign(_) | Change::AssignChannel { .. } => "assign",
        Change::Unassign => "unassign",
        Change::Observe(_) => "name observers of",
        Change::Close { .. } => "close",
    };
    needs(view, by, executor_too, needed)?;
    if let Change::Close { reason, .. } = &change {
        within("channel_reason_bytes_max", "bytes of the reason", reason.len(), CHANNEL_REASON_BYTES_MAX)?;
    }
    if view.process.closed.is_some() {
        return match change {
            Change::Close { .. } => Ok(false),
            // Who reads what is left can still be changed.
            Change::Observe(_) | Change::Unassign => apply(view, change, now, limits),
            Change::AddChannel { channel, exists_ok: true } if view.head(&channel.name).is_ok() => Ok(false),
            _ => Err(ChannelError::ProcessClosed { process: view.process.name.to_string() }),
        };
    }
    apply(view, change, now, limits)
}

fn apply(view: &mut ProcessView, change: Change, now: Micros, limits: &ChannelLimits) -> Result<bool> {
    let changed = match change {
        Change::AddChannel { channel, exists_ok } => add_channel(view, channel, exists_ok, now, limits)?,
        Change::Assign(executor) => {
            assign(view, Some(&executor))?;
            true
        }
        Change::Unassign => {
            let assigned =
                view.process.executor.is_some() || view.channels.iter().any(|c| c.executor.is_some());
            if assigned {
                assign(view, None)?;
            }
            assigned
        }
        Change::AssignChannel { channel, executor } => {
            assign_channel(view, &channel, executor)?;
            true
        }
        Change::Observe(observers) => {
            check_observers(&observers, limits)?;
            let changed = view.process.observers != observers;
            Arc::make_mut(&mut view.process).observers = observers;
            changed
        }
        Change::Close { outcome, reason } => {
            Arc::make_mut(&mut view.process).closed = Some(Closed { at: now, outcome, reason });
            true
        }
    };
    if changed {
        Arc::make_mut(&mut view.process).version += 1;
    }
    Ok(changed)
}

/// Refuses whoever may not remove a process: that is for its submitter.
pub(super) fn may_remove(view: &ProcessView, by: &Actor) -> Result<()> {
    needs(view, by, false, "remove")
}

/// Refuses whoever may not see what lies in a channel.
pub(crate) fn may_see(head: &Head, by: &Actor) -> Result<()> {
    match by {
        Actor::Party(party) => may_read(head, party).map(drop),
        Actor::Host => Ok(()),
    }
}

/// Who may read a channel.
pub(crate) fn may_read(head: &Head, who: &Party) -> Result<Role> {
    head.role(who).ok_or_else(|| refused(head, who))
}

/// Who may append to a channel, and in which epoch.
pub(super) fn may_append(head: &Head, who: &Party, epoch: Option<u32>) -> Result<u32> {
    let role = may_read(head, who)?;
    let process = || head.process.name.to_string();
    let Some(now) = role.epoch() else {
        let (role, needed) = ("submitter or executor", "append to channels of");
        return Err(ChannelError::Role { process: process(), party: who.to_string(), role, needed });
    };
    match epoch {
        Some(epoch) if epoch != now => {
            Err(ChannelError::Revoked { process: process(), party: who.to_string(), epoch, now })
        }
        _ => Ok(now),
    }
}

/// A stranger, or somebody whose time is over.
fn refused(head: &Head, who: &Party) -> ChannelError {
    let (process, party) = (head.process.name.to_string(), who.to_string());
    let former = head.channel.senders.iter().rev().find(|sender| sender.party == *who);
    match former {
        Some(former) => {
            ChannelError::Revoked { process, party, epoch: former.epoch, now: head.channel.epoch }
        }
        None => ChannelError::Forbidden { process, party },
    }
}

fn within(limit: &'static str, what: &'static str, asked: usize, max: usize) -> Result<()> {
    if asked <= max {
        return Ok(());
    }
    Err(ChannelError::Limit { limit, what, asked: asked as u64, max: max as u64 })
}

/// Refuses what no channel takes, before anybody is asked.
pub(super) fn check_entries(entries: &[NewEntry], limits: &ChannelLimits) -> Result<()> {
    for entry in entries {
        let bytes = entry.payload.as_ref().map_or(0, bytes::Bytes::len);
        if bytes > limits.payload_bytes_max {
            let (bytes, max) = (bytes as u64, limits.payload_bytes_max as u64);
            return Err(ChannelError::TooLarge { bytes, max });
        }
        if let Some(text) = &entry.error {
            if entry.entry_type != EntryType::Error {
                let why = "`error` goes with the type `error` only".to_owned();
                return Err(ChannelError::Entry { why });
            }
            within(
                "channel_error_bytes_max",
                "the bytes of the text of the error",
                text.len(),
                CHANNEL_ERROR_BYTES_MAX,
            )?;
        }
        if let Some(sequence) = entry.sequence.filter(|n| !(1..=CHANNEL_SEQUENCE_MAX).contains(n)) {
            return Err(ChannelError::Sequence { sequence: sequence.into() });
        }
    }
    within("channel_batch_entries_max", "entries of one append", entries.len(), limits.batch_entries_max)?;
    let bytes = entries.iter().map(NewEntry::bytes).sum();
    within("channel_batch_bytes_max", "bytes of one append", bytes, limits.batch_bytes_max)
}

/// Refuses what does not fit an event.
fn check_event_payloads(entries: &[NewEntry]) -> Result<()> {
    let max = CHANNEL_EVENT_PAYLOAD_BYTES_MAX as u64;
    let sizes = entries.iter().map(|entry| entry.payload.as_ref().map_or(0, bytes::Bytes::len) as u64);
    match sizes.max() {
        Some(asked) if asked > max => Err(ChannelError::Limit {
            limit: "channel_event_payload_bytes_max",
            what: "bytes of the payload of an entry that is also an event",
            asked,
            max,
        }),
        _ => Ok(()),
    }
}

/// Says what an append does. `process_bytes` is what all channels of the process hold.
pub(crate) fn append(
    head: &Head,
    append: &Append,
    process_bytes: u64,
    now: Micros,
    limits: &ChannelLimits,
) -> Result<Planned> {
    plan(head, append, process_bytes, now, limits, |new| new.payload.clone())
}

/// The same for a store that is done with that: the payloads of new entries are moved and not shared, which costs less.
/// What is refused is left as it is.
pub(crate) fn append_owned(
    head: &Head,
    append: &mut Append,
    process_bytes: u64,
    now: Micros,
    limits: &ChannelLimits,
) -> Result<Planned> {
    let mut planned = plan(head, append, process_bytes, now, limits, |_| None)?;
    // There is an outcome of each entry, in their order.
    for (outcome, new) in planned.outcomes.iter_mut().zip(&mut append.entries) {
        if let Outcomed::New(entry) = outcome
            && let Some(entry) = Arc::get_mut(entry)
        {
            entry.payload = new.payload.take();
        }
    }
    Ok(planned)
}

fn plan(
    head: &Head,
    append: &Append,
    process_bytes: u64,
    now: Micros,
    limits: &ChannelLimits,
    payload_of: impl Fn(&NewEntry) -> Option<bytes::Bytes>,
) -> Result<Planned> {
    check_entries(&append.entries, limits)?;
    let epoch = may_append(head, &append.who, append.epoch)?;
    if head.channel.options.events {
        check_event_payloads(&append.entries)?;
    }
    let mut channel = (*head.channel).clone();
    let one_party = channel.executor.as_ref() == Some(&head.process.submitter);
    let at = match channel.senders.iter().position(|s| s.epoch == epoch && s.party == append.who) {
        Some(at) => at,
        None => {
            make_room_for_a_sender(&mut channel, &head.process);
            channel.senders.push(Sender {
                party: append.who.clone(),
                epoch,
                last: 0,
                ahead: Vec::new(),
                ended: None,
            });
            channel.senders.len() - 1
        }
    };
    let mut outcomes = Vec::with_capacity(append.entries.len());
    // What counts towards the bounds: an entry that closes its half is always taken.
    let (mut data_entries, mut data_bytes) = (0, 0);
    for (index, new) in append.entries.iter().enumerate() {
        let sender = &mut channel.senders[at];
        let sequence = new.sequence.unwrap_or(sender.highest() + 1);
        if sequence > CHANNEL_SEQUENCE_MAX {
            return Err(ChannelError::Sequence { sequence: sequence.into() });
        }
        if sender.seen(sequence) {
            outcomes.push(Outcomed::Repeat { index, epoch, sequence });
            continue;
        }
        if head.process.closed.is_some() {
            return Err(ChannelError::ProcessClosed { process: head.process.name.to_string() });
        }
        if let Some(by) = sender.ended {
            return Err(ChannelError::half_closed(append.who.as_str(), epoch, by));
        }
        let expected = sender.last + 1;
        // What closes the half is never taken ahead: its forerunners could not be appended any more.
        let taken_ahead = channel.options.gaps == Gaps::Arrival
            && !new.entry_type.closes()
            && sender.ahead.len() < CHANNEL_AHEAD_MAX;
        if sequence != expected && !taken_ahead {
            return Err(ChannelError::Gap { party: append.who.to_string(), epoch, sequence, expected });
        }
        sender.note(sequence);
        if new.entry_type.closes() {
            sender.ended = Some(new.entry_type);
        }
        if let Some(answered) = new.in_reply_to {
            let others = |s: &Sender| one_party || s.epoch != epoch || s.party != append.who;
            if !channel.senders.iter().any(|s| others(s) && s.seen(answered)) {
                return Err(ChannelError::ReplyUnknown { sequence: answered });
            }
        }
        channel.newest.0 += 1;
        let bytes = new.bytes() as u64;
        channel.bytes += bytes;
        if new.entry_type.closes() && takes_nobodys_room(&channel, epoch, bytes) {
            channel.closing_entries += 1;
            channel.closing_bytes += bytes;
        } else {
            data_entries += 1;
            data_bytes += bytes;
        }
        outcomes.push(Outcomed::New(Arc::new(Entry {
            position: channel.newest,
            sender: append.who.clone(),
            epoch,
            sequence,
            in_reply_to: new.in_reply_to,
            at: now,
            entry_type: new.entry_type,
            error: new.error.clone(),
            payload: payload_of(new),
            wire: std::sync::OnceLock::new(),
        })));
    }
    let excess = if data_entries == 0 {
        Excess::default()
    } else {
        excess(head, &channel, (data_entries, data_bytes), process_bytes, limits)?
    };
    Ok(Planned { channel, outcomes, counts: data_entries > 0, excess })
}

/// The oldest of those that cannot append any more makes room.
fn make_room_for_a_sender(channel: &mut Channel, process: &Process) {
    while channel.senders.len() >= CHANNEL_SENDERS_MAX {
        let (executor, epoch) = (&channel.executor, channel.epoch);
        let gone = channel.senders.iter().position(|s| {
            let submits = s.epoch == 0 && s.party == process.submitter;
            let executes = s.epoch == epoch && executor.as_ref() == Some(&s.party);
            !submits && !executes
        });
        match gone {
            Some(gone) => drop(channel.senders.remove(gone)),
            None => return,
        }
    }
}
