//! Channels as rows: processes and channels as JSON records, entries by channel and position.
//!
//! The committer keeps the records that it has worked with (`channel_book`). An append writes its entries at once and its
//! channel's record once per transaction, however many appends the transaction has.

use std::fmt;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::channel_book::Open;
use super::channel_events::EntryEvents;
use super::channel_reads::{channel_name, find_repeat, process_id};
use super::committer::{Committer, Stop};
use super::database::{backend, signed, unsigned};
use super::request::Answer;
use super::shared::{from_json, to_json};
use crate::backends::memory::repeated;
use crate::channels::{
    Actor, Append, Appended, Cause, Change, Channel, ChannelError, ChannelId, Entry, Excess, Head,
    Incarnation, NewProcess, Outcomed, Party, ProcessId, ProcessView, WhenFull, append, archive_excess,
    change, check_depth, create,
};
use crate::error::BackendError;
use crate::event::{Micros, Position};
use crate::limits::{
    CHANNEL_PURGE_BYTES, CHANNEL_PURGE_ENTRIES, CHANNEL_SETTLE_BYTES, CHANNEL_SWEEP_PROCESSES_MAX,
    CHANNEL_UNSETTLED_ENTRY_BYTES,
};

/// What channels add to the schema. Entries of a channel that was removed go little by little: it is in `channel_garbage`
/// until they are gone.
pub(super) const SCHEMA: &str = "
CREATE TABLE processes(
  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, process TEXT NOT NULL,
  closed_at INTEGER, UNIQUE(tenant, name));
CREATE INDEX processes_closed ON processes(closed_at) WHERE closed_at IS NOT NULL;
CREATE TABLE channels(
  id INTEGER PRIMARY KEY AUTOINCREMENT, process INTEGER NOT NULL, name TEXT NOT NULL, channel TEXT NOT NULL,
  UNIQUE(process, name));
CREATE TABLE channel_entries(
  channel INTEGER NOT NULL, position INTEGER NOT NULL, sender TEXT NOT NULL, epoch INTEGER NOT NULL,
  sequence INTEGER NOT NULL, reply INTEGER, at INTEGER NOT NULL, type TEXT NOT NULL, bytes INTEGER NOT NULL,
  error TEXT, payload BLOB, PRIMARY KEY(channel, position)) WITHOUT ROWID;
CREATE INDEX channel_entries_sequence ON channel_entries(channel, sequence);
CREATE TABLE channel_garbage(channel INTEGER PRIMARY KEY);
";

/// What making a process adds to a transaction, in entries.
const CREATE_WEIGHT: usize = 100;

type Sender<T> = oneshot::Sender<Result<T, ChannelError>>;
pub(super) type Written<T> = Result<T, Stop<ChannelError>>;

/// What channels ask for.
#[derive(Debug)]
pub(super) enum ChannelRequest {
    Create {
        new: Box<NewProcess>,
        reply: Sender<(ProcessView, bool)>,
    },
    Change {
        process: ProcessId,
        by: Actor,
        change: Box<Change>,
        reply: Sender<ProcessView>,
    },
    Append {
        channel: ChannelId,
        append: Append,
        reply: Sender<Vec<Appended>>,
    },
    Remove {
        process: ProcessId,
        only: Option<Incarnation>,
        reply: Sender<bool>,
    },
    Expire {
        closed_before: Micros,
        reply: Sender<usize>,
    },
    /// Deletes some entries of channels that were removed. Answers whether there are more.
    Purge {
        reply: Sender<bool>,
    },
    /// Settles some entries that wait for it (`channel_runs`). Answers whether there are more.
    Settle {
        reply: Sender<bool>,
    },
}

impl ChannelRequest {
    /// What it adds to a transaction: (entries, bytes).
    pub(super) fn weight(&self) -> (usize, usize) {
        match self {
            Self::Append { append, .. } => {
                (append.entries.len(), append.entries.iter().map(crate::channels::NewEntry::bytes).sum())
            }
            Self::Purge { .. } => (CHANNEL_PURGE_ENTRIES, 0),
            Self::Settle { .. } => {
                (CHANNEL_SETTLE_BYTES / CHANNEL_UNSETTLED_ENTRY_BYTES, CHANNEL_SETTLE_BYTES)
            }
            Self::Expire { .. } => (CHANNEL_SWEEP_PROCESSES_MAX, 0),
            // Counting the tenant's processes is the work.
            Self::Create { new, .. } => (CREATE_WEIGHT + new.channels.len(), 0),
            _ => (1, 0),
        }
    }

    /// The answer that its transaction could not even begin.
    pub(super) fn fail(self, error: &BackendError) {
        let error = ChannelError::Backend(error.clone());
        match self {
            Self::Create { reply, .. } => drop(reply.send(Err(error))),
            Self::Change { reply, .. } => drop(reply.send(Err(error))),
            Self::Append { reply, .. } => drop(reply.send(Err(error))),
            Self::Remove { reply, .. } | Self::Purge { reply } | Self::Settle { reply } => {
                drop(reply.send(Err(error)))
            }
            Self::Expire { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// An answer of any kind that waits for its transaction. It is told what the transaction failed with, if it did.
pub(super) struct Deferred(Box<dyn FnOnce(Option<BackendError>) + Send>);

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deferred")
    }
}

impl Deferred {
    pub(super) fn new<T, E>(reply: oneshot::Sender<Result<T, E>>, result: Result<T, E>) -> Self
    where
        T: Send + 'static,
        E: From<BackendError> + Send + 'static,
    {
        // Who has gone away is not waited for: what was written stays.
        Self(Box::new(move |failed| drop(reply.send(failed.map_or(result, |error| Err(error.into()))))))
    }

    pub(super) fn send(self) {
        (self.0)(None);
    }

    pub(super) fn fail(self, error: BackendError) {
        (self.0)(Some(error));
    }
}

fn unknown(id: &ProcessId) -> ChannelError {
    ChannelError::ProcessUnknown { process: id.to_string() }
}

impl Committer {
    /// Carries out what channels ask for. An error means that the whole transaction fails.
    pub(super) fn apply_to_channels(&mut self, request: ChannelRequest) -> rusqlite::Result<()> {
        match request {
            ChannelRequest::Create { new, reply } => {
                let result = self.create_process(*new);
                self.defer(reply, result)
            }
            ChannelRequest::Change { process, by, change, reply } => {
                let result = self.change_process(&process, &by, *change);
                self.defer(reply, result)
            }
            ChannelRequest::Append { channel, append, reply } => {
                let result = self.append_to_channel(&channel, &append, Cause::default());
                let result = result.map(|(appended, events)| {
                    if let Some(EntryEvents { tenant, batch }) = events {
                        self.add_chunk(tenant, batch);
                    }
                    appended
                });
                self.defer(reply, result)
            }
            ChannelRequest::Remove { process, only, reply } => {
                let result = self.remove_process(&process, only);
                self.defer(reply, result)
            }
            ChannelRequest::Expire { closed_before, reply } => {
                let result = self.expire_processes(closed_before);
                self.defer(reply, result)
            }
            ChannelRequest::Purge { reply } => {
                let result = self.purge_entries();
                self.defer(reply, result)
            }
            ChannelRequest::Settle { reply } => {
                let result = self.settle_some(CHANNEL_SETTLE_BYTES).map_err(Stop::Storage);
                self.defer(reply, result)
            }
        }
    }

    fn defer<T: Send + 'static>(&mut self, reply: Sender<T>, result: Written<T>) -> rusqlite::Result<()> {
        let result = match result {
            Ok(done) => Ok(done),
            Err(Stop::Refused(refused)) => Err(refused),
            Err(Stop::Storage(error)) => {
                drop(reply.send(Err(backend(&error).into())));
                return Err(error);
            }
        };
        self.note_answer(Answer::Deferred(Deferred::new(reply, result)));
        Ok(())
    }

    fn create_process(&mut self, new: NewProcess) -> Written<(ProcessView, bool)> {
        let id = new.id.clone();
        let known = self.open_process(&id)?.map(|open| open.view.clone());
        let of_tenant: i64 = match known {
            Some(_) => 0,
            None => self
                .conn
                .prepare_cached("SELECT count(*) FROM processes WHERE tenant = ?1")?
                .query_row([id.tenant.as_str()], |row| row.get(0))?,
        };
        let limits = &self.shared.channel_limits;
        let anew = (Incarnation::new(), self.clock.now());
        let made = create(known.as_ref(), new, unsigned(of_tenant), anew, limits);
        match (made.map_err(Stop::Refused)?, known) {
            (Some(view), _) => {
                self.conn
                    .prepare_cached("INSERT INTO processes(tenant, name, process) VALUES (?1, ?2, ?3)")?
                    .execute((id.tenant.as_str(), id.name.as_str(), to_json(&*view.process)?))?;
                let number = self.conn.last_insert_rowid();
                let mut numbers = Vec::with_capacity(view.channels.len());
                for channel in &view.channels {
                    numbers.push(insert_channel(&self.conn, number, channel)?);
                }
                self.book.insert(id, Open::new(number, view.clone(), numbers));
                Ok((view, true))
            }
            (None, Some(known)) => Ok((known, false)),
            // What is the same as before was there before.
            (None, None) => Err(Stop::Refused(unknown(&id))),
        }
    }

    fn change_process(&mut self, id: &ProcessId, by: &Actor, asked: Change) -> Written<ProcessView> {
        let (now, shared) = (self.clock.now(), Arc::clone(&self.shared));
        let open = self.open_process(id)?.ok_or_else(|| Stop::Refused(unknown(id)))?;
        let mut view = open.view.clone();
        if !change(&mut view, by, asked, now, &shared.channel_limits).map_err(Stop::Refused)? {
            return Ok(view);
        }
        let (number, known) = (open.number, open.view.channels.clone());
        let mut added = None;
        for (at, channel) in view.channels.iter().enumerate() {
            match known.get(at) {
                None => added = Some(insert_channel(&self.conn, number, channel)?),
                Some(before) if Arc::ptr_eq(before, channel) => {}
                Some(_) => self.book.mark_dirty(id, at),
            }
        }
        let closed_at = view.process.closed.as_ref().map(|closed| closed.at.0);
        self.conn
            .prepare_cached("UPDATE processes SET process = ?2, closed_at = ?3 WHERE id = ?1")?
            .execute((number, to_json(&*view.process)?, closed_at))?;
        if let Some(open) = self.book.get_mut(id) {
            open.numbers.extend(added);
            open.view = view.clone();
        }
        self.book.changed(id, view.clone());
        Ok(view)
    }

    /// Entries go behind what the channel has. Used by clients and, in the commit of a task, by processors. Answers the
    /// events that they are, too, for [`Self::add_chunk`] once they are sure to stay.
    pub(super) fn append_to_channel(
        &mut self,
        id: &ChannelId,
        asked: &Append,
        cause: Cause<'_>,
    ) -> Written<(Vec<Appended>, Option<EntryEvents>)> {
        let (now, shared) = (self.clock.now(), Arc::clone(&self.shared));
        let open = self.open_process(&id.process)?.ok_or_else(|| Stop::Refused(id.unknown()))?;
        let head = open.view.head(&id.name).map_err(Stop::Refused)?;
        let bytes = open.view.bytes();
        let at = open.view.channels.iter().position(|known| known.name == id.name);
        let Some((at, number)) = at.and_then(|at| Some((at, *open.numbers.get(at)?))) else {
            return Err(Stop::Refused(id.unknown()));
        };
        let planned = append(&head, asked, bytes, now, &shared.channel_limits).map_err(Stop::Refused)?;
        let mut answers = Vec::with_capacity(planned.outcomes.len());
        let mut new: Vec<Arc<Entry>> = Vec::with_capacity(planned.outcomes.len());
        // Nothing is written before everything is known to be taken.
        for outcome in planned.outcomes {
            answers.push(match outcome {
                Outcomed::New(entry) => {
                    let (position, epoch, sequence) = (entry.position, entry.epoch, entry.sequence);
                    new.push(entry);
                    Appended { position, epoch, sequence, repeated: false }
                }
                Outcomed::Repeat { index, epoch, sequence } => {
                    let mut before = new.iter().filter(|entry| entry.sequence == sequence);
                    let first = match before.next() {
                        Some(entry) => Some(Arc::clone(entry)),
                        None => self.find_first(id, number, &asked.who, epoch, sequence)?,
                    };
                    repeated(first.as_deref(), asked, (index, epoch, sequence)).map_err(Stop::Refused)?
                }
            });
        }
        if new.is_empty() {
            return Ok((answers, None));
        }
        check_depth(&planned.channel, cause).map_err(Stop::Refused)?;
        let mut channel = planned.channel;
        let is_over =
            !planned.excess.is_none() || !archive_excess(&channel, &shared.channel_limits).is_none();
        if is_over {
            // The oldest ones may be among those that are not settled.
            self.settle_channel(id, number)?;
            let mut rows = EntryRows::of(&self.conn)?;
            for entry in &new {
                rows.insert(number, entry)?;
            }
            drop(rows);
            self.make_room(number, &mut channel, planned.excess)?;
        }
        let channel = Arc::new(channel);
        let events = self.write_entry_events(id, &channel, &new, cause)?;
        let newest = channel.newest;
        self.book.appended(id, at, Head { process: head.process, channel }, new);
        if is_over {
            self.book.mark_dirty(&id.process, at);
            self.book.note_settled(id, newest);
        }
        Ok((answers, events))
    }

    /// The entry that a sender has appended under a number, wherever it lies.
    fn find_first(
        &self,
        id: &ChannelId,
        number: i64,
        sender: &Party,
        epoch: u32,
        sequence: u64,
    ) -> rusqlite::Result<Option<Arc<Entry>>> {
        let says =
            |entry: &Entry| (entry.sequence, entry.epoch) == (sequence, epoch) && entry.sender == *sender;
        if let Some(entry) = self.book.fresh_of(id).iter().rev().find(|entry| says(entry)) {
            return Ok(Some(Arc::clone(entry)));
        }
        if let Some(entry) = self.shared.unsettled.find(id, number, says) {
            return Ok(Some(entry));
        }
        Ok(find_repeat(&self.conn, number, sender, epoch, sequence)?.map(Arc::new))
    }

    /// The oldest entries go, into the archive or for good; all of them are settled.
    fn make_room(&self, number: i64, channel: &mut Channel, excess: Excess) -> rusqlite::Result<()> {
        if !excess.is_none() {
            let (entries, bytes) = oldest(&self.conn, number, channel.hot, excess)?;
            match channel.options.full {
                WhenFull::Archive => channel.archive(entries, bytes),
                WhenFull::DropOldest | WhenFull::Reject => {
                    drop_oldest(&self.conn, number, channel, entries, bytes)?
                }
            }
        }
        let over = archive_excess(channel, &self.shared.channel_limits);
        if !over.is_none() {
            let (entries, bytes) = oldest(&self.conn, number, channel.oldest, over)?;
            drop_oldest(&self.conn, number, channel, entries, bytes)?;
        }
        Ok(())
    }

    fn remove_process(&mut self, id: &ProcessId, only: Option<Incarnation>) -> Written<bool> {
        let found = self
            .conn
            .prepare_cached("SELECT id, process FROM processes WHERE tenant = ?1 AND name = ?2")?
            .query_row((id.tenant.as_str(), id.name.as_str()), |row| {
                let meant = |only| {
                    Ok::<_, rusqlite::Error>(only == Incarnation::of(&from_json(row.get_ref(1)?.as_str()?)?))
                };
                Ok((row.get::<_, i64>(0)?, only.map_or(Ok(true), meant)?))
            })
            .optional()?;
        let Some((number, true)) = found else { return Ok(false) };
        let channels = {
            let mut statement = self.conn.prepare_cached("SELECT name FROM channels WHERE process = ?1")?;
            let rows = statement.query_map([number], |row| channel_name(row.get_ref(0)?.as_str()?))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for sql in [
            "INSERT INTO channel_garbage(channel) SELECT id FROM channels WHERE process = ?1",
            "DELETE FROM channels WHERE process = ?1",
            "DELETE FROM processes WHERE id = ?1",
        ] {
            self.conn.prepare_cached(sql)?.execute([number])?;
        }
        self.book.removed(id, channels);
        Ok(true)
    }

    fn expire_processes(&mut self, closed_before: Micros) -> Written<usize> {
        let gone = {
            let mut statement = self.conn.prepare_cached(
                "SELECT tenant, name FROM processes WHERE closed_at < ?1 ORDER BY closed_at LIMIT ?2",
            )?;
            let rows = statement.query_map(
                (closed_before.0, i64::try_from(CHANNEL_SWEEP_PROCESSES_MAX).unwrap_or(i64::MAX)),
                |row| process_id(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?),
            )?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for id in &gone {
            self.remove_process(id, None)?;
        }
        Ok(gone.len())
    }

    fn purge_entries(&mut self) -> Written<bool> {
        let (mut entries, mut bytes) = (0, 0);
        while entries < CHANNEL_PURGE_ENTRIES && bytes < CHANNEL_PURGE_BYTES {
            let garbage: Option<i64> = self
                .conn
                .prepare_cached("SELECT channel FROM channel_garbage LIMIT 1")?
                .query_row([], |row| row.get(0))
                .optional()?;
            let Some(channel) = garbage else { return Ok(false) };
            let share = CHANNEL_PURGE_ENTRIES - entries;
            let (mut found, mut until) = (0, 0);
            {
                let mut statement = self.conn.prepare_cached(
                    "SELECT position, bytes FROM channel_entries WHERE channel = ?1 ORDER BY position LIMIT ?2",
                )?;
                let mut rows = statement.query((channel, i64::try_from(share).unwrap_or(i64::MAX)))?;
                while bytes < CHANNEL_PURGE_BYTES
                    && let Some(row) = rows.next()?
                {
                    found += 1;
                    until = row.get(0)?;
                    bytes += unsigned(row.get(1)?);
                }
            }
            if found > 0 {
                delete_until(&self.conn, channel, until)?;
            }
            if found < share && bytes < CHANNEL_PURGE_BYTES {
                let done = "DELETE FROM channel_garbage WHERE channel = ?1";
                self.conn.prepare_cached(done)?.execute([channel])?;
            }
            entries += found + 1;
        }
        Ok(true)
    }
}

fn insert_channel(conn: &Connection, process: i64, channel: &Channel) -> rusqlite::Result<i64> {
    conn.prepare_cached("INSERT INTO channels(process, name, channel) VALUES (?1, ?2, ?3)")?.execute((
        process,
        channel.name.as_str(),
        to_json(channel)?,
    ))?;
    Ok(conn.last_insert_rowid())
}

/// Rows of entries are written with it, however many.
pub(super) struct EntryRows<'c>(CachedStatement<'c>);

impl<'c> EntryRows<'c> {
    pub(super) fn of(conn: &'c Connection) -> rusqlite::Result<Self> {
        let insert =
            "INSERT INTO channel_entries(channel, position, sender, epoch, sequence, reply, at, type, bytes, error, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        conn.prepare_cached(insert).map(Self)
    }

    pub(super) fn insert(&mut self, channel: i64, entry: &Entry) -> rusqlite::Result<()> {
        let row = (
            channel,
            signed(entry.position.0),
            entry.sender.as_str(),
            entry.epoch,
            signed(entry.sequence),
            entry.in_reply_to.map(signed),
            entry.at.0,
            entry.entry_type.as_str(),
            signed(entry.bytes() as u64),
            entry.error.as_deref(),
            entry.payload.as_deref(),
        );
        self.0.execute(row).map(drop)
    }
}

/// How many entries from a position on are as many as must go, and their bytes.
fn oldest(conn: &Connection, channel: i64, from: Position, excess: Excess) -> rusqlite::Result<(u64, u64)> {
    let mut statement = conn.prepare_cached(
        "SELECT bytes FROM channel_entries WHERE channel = ?1 AND position >= ?2 ORDER BY position",
    )?;
    let mut rows = statement.query((channel, signed(from.0)))?;
    let (mut entries, mut bytes) = (0, 0);
    while entries < excess.entries || bytes < excess.bytes {
        let Some(row) = rows.next()? else { break };
        entries += 1;
        bytes += unsigned(row.get(0)?);
    }
    Ok((entries, bytes))
}

fn drop_oldest(
    conn: &Connection,
    number: i64,
    channel: &mut Channel,
    entries: u64,
    bytes: u64,
) -> rusqlite::Result<()> {
    channel.forget(entries, bytes);
    delete_until(conn, number, signed(channel.oldest.0) - 1)
}

fn delete_until(conn: &Connection, channel: i64, position: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM channel_entries WHERE channel = ?1 AND position <= ?2")?
        .execute((channel, position))
        .map(drop)
}
