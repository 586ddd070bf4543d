//! What was appended to channels lately. A transaction writes all that it appended, to however many channels, as one row:
//! a run. So a sync carries a few pages instead of some for each channel. Until the entries of a channel lie in
//! `channel_entries` they are here, in memory, for whoever reads; from time to time they are settled, many at once.
//!
//! A channel's record in `channels` says up to where its entries are settled: its newest position. So a run may stay for
//! longer than it has to, and settling what was settled changes nothing. A start settles everything before it serves.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _};

use super::channels::insert_entry;
use super::committer::Committer;
use super::shared::{from_json, to_json};
use crate::channels::{Channel, ChannelId, ChannelName, Entry, EntryType, Party, ProcessId};
use crate::event::{Micros, Position};
use crate::limits::{
    CHANNEL_RUN_BYTES_MAX, CHANNEL_RUN_SHARE, CHANNEL_UNSETTLED_BYTES_MAX, CHANNEL_UNSETTLED_ENTRIES_MAX,
};

/// What runs add to the schema.
pub(super) const SCHEMA: &str = "
CREATE TABLE channel_runs(id INTEGER PRIMARY KEY AUTOINCREMENT, run BLOB NOT NULL);
";

/// The committed entries that are in runs alone. The committer writes, readers look.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<ProcessId, Vec<(ChannelName, Recent)>>,
    /// Channels in the order in which they got their first entry; of one that was settled since, nothing is there.
    order: VecDeque<(ChannelId, i64)>,
    entries: usize,
    bytes: usize,
}

/// A channel's entries that are not settled.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    pub(super) number: i64,
    pub(super) channel: Arc<Channel>,
    /// Without holes, up to the newest position.
    pub(super) entries: Vec<Arc<Entry>>,
    /// The first run that has one of them.
    first_run: i64,
}

impl Unsettled {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel's newest state and its entries that are not settled. Asked before the store is: what is settled meanwhile
    /// is found in both.
    fn of(&self, id: &ChannelId) -> Option<Recent> {
        self.lock().find(id).cloned()
    }

    /// The same with entries behind a position alone, as many as are wanted.
    pub(super) fn after(&self, id: &ChannelId, after: Position, most: usize) -> Option<Recent> {
        let state = self.lock();
        let recent = state.find(id)?;
        let first = recent.entries.first().map_or(0, |first| first.position.0);
        let skip = usize::try_from(after.0.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let entries = recent.entries.iter().skip(skip).take(most).cloned().collect();
        Some(Recent { channel: Arc::clone(&recent.channel), entries, ..*recent })
    }

    /// The same without entries.
    pub(super) fn record(&self, id: &ChannelId) -> Option<(i64, Arc<Channel>)> {
        self.lock().find(id).map(|recent| (recent.number, Arc::clone(&recent.channel)))
    }

    /// Of all channels of a process.
    pub(super) fn records(&self, id: &ProcessId) -> Vec<(i64, Arc<Channel>)> {
        let state = self.lock();
        let channels = state.channels.get(id).into_iter().flatten();
        channels.map(|(_, recent)| (recent.number, Arc::clone(&recent.channel))).collect()
    }

    /// Records as they are stored become what they are.
    pub(super) fn update(&self, id: &ProcessId, stored: &mut [(i64, Arc<Channel>)]) {
        newest(&self.records(id), stored);
    }

    /// The entry that a sender has appended under a number.
    pub(super) fn find(
        &self,
        id: &ChannelId,
        number: i64,
        says: impl Fn(&Entry) -> bool,
    ) -> Option<Arc<Entry>> {
        let state = self.lock();
        let recent = state.find(id).filter(|recent| recent.number == number)?;
        recent.entries.iter().rev().find(|entry| says(entry)).cloned()
    }

    /// A transaction with this run is committed.
    pub(super) fn appended(
        &self,
        id: &ChannelId,
        number: i64,
        channel: &Arc<Channel>,
        entries: &[Arc<Entry>],
        run: i64,
    ) {
        let state = &mut *self.lock();
        state.entries += entries.len();
        state.bytes += entries.iter().map(|entry| entry.bytes()).sum::<usize>();
        let of_process = state.channels.entry(id.process.clone()).or_default();
        if let Some((_, recent)) = of_process.iter_mut().find(|(name, _)| *name == id.name) {
            recent.channel = Arc::clone(channel);
            recent.entries.extend(entries.iter().cloned());
            return;
        }
        let (channel, entries) = (Arc::clone(channel), entries.to_vec());
        of_process.push((id.name.clone(), Recent { number, channel, entries, first_run: run }));
        state.order.push_back((id.clone(), run));
    }

    /// They are settled.
    pub(super) fn settled(&self, id: &ChannelId) {
        let state = &mut *self.lock();
        let Some(of_process) = state.channels.get_mut(&id.process) else { return };
        let Some(at) = of_process.iter().position(|(name, _)| *name == id.name) else { return };
        let (_, gone) = of_process.swap_remove(at);
        if of_process.is_empty() {
            state.channels.remove(&id.process);
        }
        state.forget(&gone);
    }

    /// They are gone with their process.
    pub(super) fn removed(&self, id: &ProcessId) {
        let state = &mut *self.lock();
        for (_, gone) in state.channels.remove(id).into_iter().flatten() {
            state.forget(&gone);
        }
    }

    /// What is to be settled in a transaction that has appended so many entries: more than those once there are too many,
    /// so that there are fewer afterwards, and little enough that nobody waits for it.
    fn due(&self, appended: usize) -> Vec<ChannelId> {
        let state = self.lock();
        let is_much =
            state.entries >= CHANNEL_UNSETTLED_ENTRIES_MAX || state.bytes >= CHANNEL_UNSETTLED_BYTES_MAX;
        // What removes or changes something is not to fail for want of room.
        if appended == 0 || !is_much {
            return Vec::new();
        }
        state.oldest(appended.saturating_mul(2).max(CHANNEL_RUN_SHARE))
    }

    /// The channels that have waited for longest, with about so many entries.
    fn oldest(&self, entries: usize) -> Vec<ChannelId> {
        self.lock().oldest(entries)
    }

    /// The first run that is still needed once these channels are settled; none when none is.
    fn first_run(&self, settled: &HashSet<ChannelId>) -> Option<i64> {
        let state = self.lock();
        let mut left = state.order.iter().filter(|(id, run)| state.holds(id, *run) && !settled.contains(id));
        left.next().map(|(_, run)| *run)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().channels.is_empty()
    }
}

/// Of two records of a channel the one with the newer entry counts; any other change of a record settles its entries.
pub(super) fn newest(recent: &[(i64, Arc<Channel>)], stored: &mut [(i64, Arc<Channel>)]) {
    for (number, channel) in stored {
        let known = recent.iter().find(|(of, known)| of == number && known.newest > channel.newest);
        if let Some((_, known)) = known {
            *channel = Arc::clone(known);
        }
    }
}

impl State {
    fn find(&self, id: &ChannelId) -> Option<&Recent> {
        let of_process = self.channels.get(&id.process)?;
        of_process.iter().find(|(name, _)| *name == id.name).map(|(_, recent)| recent)
    }

    fn holds(&self, id: &ChannelId, run: i64) -> bool {
        self.find(id).is_some_and(|recent| recent.first_run == run)
    }

    fn forget(&mut self, gone: &Recent) {
        self.entries -= gone.entries.len();
        self.bytes -= gone.entries.iter().map(|entry| entry.bytes()).sum::<usize>();
        while let Some((id, run)) = self.order.front()
            && !self.holds(id, *run)
        {
            self.order.pop_front();
        }
    }

    fn oldest(&self, entries: usize) -> Vec<ChannelId> {
        let (mut chosen, mut sum) = (Vec::new(), 0);
        for (id, run) in &self.order {
            if sum >= entries {
                break;
            }
            if self.holds(id, *run) {
                sum += self.find(id).map_or(0, |recent| recent.entries.len());
                chosen.push(id.clone());
            }
        }
        chosen
    }
}

/// What a transaction has appended to a channel.
#[derive(Debug)]
pub(super) struct Fresh<'a> {
    pub(super) id: &'a ChannelId,
    pub(super) number: i64,
    pub(super) channel: &'a Arc<Channel>,
    pub(super) entries: Vec<&'a Arc<Entry>>,
}

impl Fresh<'_> {
    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes()).sum()
    }
}

impl Committer {
    /// What a transaction has appended becomes its run, or is settled where it is large or its channel's record is written.
    pub(super) fn write_run(&mut self) -> rusqlite::Result<()> {
        let mut settle = self.book.dirty_channels();
        let fresh = self.book.fresh();
        let large = fresh.iter().filter(|fresh| fresh.bytes() > CHANNEL_RUN_BYTES_MAX);
        settle.extend(large.map(|fresh| (fresh.id.clone(), fresh.number)));
        let appended = fresh.iter().map(|fresh| fresh.entries.len()).sum();
        for id in self.shared.unsettled.due(appended) {
            settle.extend(self.shared.unsettled.record(&id).map(|(number, _)| (id, number)));
        }
        for (id, number) in &settle {
            self.settle_channel(id, *number)?;
        }
        let fresh = self.book.fresh();
        if fresh.is_empty() {
            return self.drop_runs();
        }
        let mut run = Vec::new();
        for fresh in &fresh {
            write_channel(&mut run, fresh.number, fresh.channel, &fresh.entries)?;
        }
        self.conn.prepare_cached("INSERT INTO channel_runs(run) VALUES (?1)")?.execute([run])?;
        let number = self.conn.last_insert_rowid();
        self.book.has_run(number);
        self.drop_runs()
    }

    /// Runs of which everything is settled.
    fn drop_runs(&mut self) -> rusqlite::Result<()> {
        let settled = self.book.settled();
        if settled.is_empty() {
            return Ok(());
        }
        let first = self.shared.unsettled.first_run(&settled);
        let before = first.or(self.book.run()).unwrap_or(i64::MAX);
        self.conn.prepare_cached("DELETE FROM channel_runs WHERE id < ?1")?.execute([before]).map(drop)
    }

    /// All entries of a channel lie in its table after this, those of this transaction, too; its record is written with
    /// the transaction.
    pub(super) fn settle_channel(&mut self, id: &ChannelId, number: i64) -> rusqlite::Result<()> {
        let recent = if self.book.is_settled(id) { None } else { self.shared.unsettled.of(id) };
        let recent = recent.filter(|recent| recent.number == number);
        let committed = recent.as_ref().map_or(&[][..], |recent| &recent.entries);
        let fresh = self.book.fresh_of(id).to_vec();
        if committed.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        let open = self.open_process(&id.process)?;
        // Of a process that is gone with this transaction nothing is kept.
        let Some(at) = open.and_then(|open| open.numbers.iter().position(|known| *known == number)) else {
            return Ok(());
        };
        for entry in committed.iter().chain(&fresh) {
            insert_entry(&self.conn, number, entry)?;
        }
        self.book.mark_dirty(&id.process, at);
        self.book.note_settled(id);
        Ok(())
    }

    /// Settles about so many entries of those that have waited for longest. Answers whether there are more.
    pub(super) fn settle_some(&mut self, entries: usize) -> rusqlite::Result<bool> {
        for id in self.shared.unsettled.oldest(entries) {
            if let Some((number, _)) = self.shared.unsettled.record(&id) {
                self.settle_channel(&id, number)?;
            }
        }
        let settled = self.book.settled();
        Ok(self.shared.unsettled.first_run(&settled).is_some())
    }
}

impl Committer {
    /// Settles everything, in a transaction of its own. What fails is left to the next start.
    pub(super) fn settle_at_end(&mut self) {
        if self.shared.unsettled.is_empty() {
            return;
        }
        let settled = self
            .execute("BEGIN IMMEDIATE")
            .and_then(|()| self.settle_some(usize::MAX))
            .and_then(|_| self.write_channels())
            .and_then(|()| self.execute("COMMIT"));
        match settled {
            Ok(()) => self.book.publish(&self.shared.channel_tails, &self.shared.unsettled),
            Err(error) => {
                tracing::warn!(error.kind = "storage_failed", error.blame = "host", %error, "entries of channels stay in runs for the next start");
                if !self.conn.is_autocommit() {
                    // The connection is closed next.
                    let _ = self.conn.execute_batch("ROLLBACK");
                }
            }
        }
    }
}

/// Settles all that a former start has left in runs.
pub(super) fn settle_all(conn: &Connection) -> rusqlite::Result<()> {
    let has_runs = "SELECT EXISTS(SELECT 1 FROM channel_runs)";
    if !conn.query_row(has_runs, [], |row| row.get::<_, bool>(0))? {
        return Ok(());
    }
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let settled = settle_runs(conn);
    match settled {
        Ok(()) => conn.execute_batch("COMMIT"),
        Err(error) => {
            // Nothing of it has happened; the error is what counts.
            let _ = conn.execute_batch("ROLLBACK");
            Err(error)
        }
    }
}

fn settle_runs(conn: &Connection) -> rusqlite::Result<()> {
    let mut records: BTreeMap<i64, Option<(Position, Channel)>> = BTreeMap::new();
    let mut statement = conn.prepare("SELECT run FROM channel_runs ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let run = row.get_ref(0)?.as_blob()?;
        let mut reader = Reader { bytes: run };
        while !reader.bytes.is_empty() {
            let (number, channel, entries) = reader.channel()?;
            let known = match records.entry(number) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let stored = conn
                        .prepare_cached("SELECT channel FROM channels WHERE id = ?1")?
                        .query_row([number], |row| from_json::<Channel>(row.get_ref(0)?.as_str()?))
                        .optional()?;
                    // A channel that was removed since has no record, and its entries go with it.
                    place.insert(stored.map(|stored| (stored.newest, stored)))
                }
            };
            let Some((settled, record)) = known else { continue };
            for entry in &entries {
                if entry.position > *settled {
                    insert_entry(conn, number, entry)?;
                    *settled = entry.position;
                }
            }
            if channel.newest > record.newest {
                *record = channel;
            }
        }
    }
    let mut update = conn.prepare_cached("UPDATE channels SET channel = ?2 WHERE id = ?1")?;
    for (number, record) in records {
        if let Some((_, record)) = record {
            update.execute((number, to_json(&record)?))?;
        }
    }
    conn.execute_batch("DELETE FROM channel_runs")
}

fn write_channel(
    run: &mut Vec<u8>,
    number: i64,
    channel: &Channel,
    entries: &[&Arc<Entry>],
) -> rusqlite::Result<()> {
    let record = to_json(channel)?;
    run.extend(number.to_le_bytes());
    write_bytes(run, record.as_bytes())?;
    run.extend(length(entries.len())?);
    for entry in entries {
        run.extend(entry.position.0.to_le_bytes());
        run.extend(entry.epoch.to_le_bytes());
        run.extend(entry.sequence.to_le_bytes());
        // No entry answers number 0.
        run.extend(entry.in_reply_to.unwrap_or(0).to_le_bytes());
        run.extend(entry.at.0.to_le_bytes());
        run.push(match entry.entry_type {
            EntryType::Data => 0,
            EntryType::End => 1,
            EntryType::Error => 2,
        });
        write_bytes(run, entry.sender.as_str().as_bytes())?;
        write_optional(run, entry.error.as_deref().map(str::as_bytes))?;
        write_optional(run, entry.payload.as_deref())?;
    }
    Ok(())
}

fn length(bytes: usize) -> rusqlite::Result<[u8; 4]> {
    u32::try_from(bytes)
        .map(u32::to_le_bytes)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn write_bytes(run: &mut Vec<u8>, bytes: &[u8]) -> rusqlite::Result<()> {
    run.extend(length(bytes.len())?);
    run.extend(bytes);
    Ok(())
}

fn write_optional(run: &mut Vec<u8>, bytes: Option<&[u8]>) -> rusqlite::Result<()> {
    run.push(u8::from(bytes.is_some()));
    bytes.map_or(Ok(()), |bytes| write_bytes(run, bytes))
}

struct Reader<'a> {
    bytes: &'a [u8],
}

fn damaged() -> rusqlite::Error {
    let why = "a run of channel entries is cut off or damaged";
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, why.into())
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> rusqlite::Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> rusqlite::Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    fn length(&mut self) -> rusqlite::Result<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| damaged())
    }

    fn sized(&mut self) -> rusqlite::Result<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> rusqlite::Result<&'a str> {
        std::str::from_utf8(self.sized()?).map_err(|_| damaged())
    }

    fn optional(&mut self) -> rusqlite::Result<Option<&'a [u8]>> {
        Ok(if self.array::<1>()?[0] == 0 { None } else { Some(self.sized()?) })
    }

    fn channel(&mut self) -> rusqlite::Result<(i64, Channel, Vec<Entry>)> {
        let number = i64::from_le_bytes(self.array()?);
        let channel = from_json(self.text()?)?;
        let count = self.length()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(self.entry()?);
        }
        Ok((number, channel, entries))
    }

    fn entry(&mut self) -> rusqlite::Result<Entry> {
        Ok(Entry {
            position: Position(u64::from_le_bytes(self.array()?)),
            epoch: u32::from_le_bytes(self.array()?),
            sequence: u64::from_le_bytes(self.array()?),
            in_reply_to: Some(u64::from_le_bytes(self.array()?)).filter(|sequence| *sequence > 0),
            at: Micros(i64::from_le_bytes(self.array()?)),
            entry_type: match self.array::<1>()?[0] {
                0 => EntryType::Data,
                1 => EntryType::End,
                2 => EntryType::Error,
                _ => return Err(damaged()),
            },
            sender: Party::new(self.text()?).map_err(|_| damaged())?,
            error: match self.optional()? {
                None => None,
                Some(text) => Some(std::str::from_utf8(text).map_err(|_| damaged())?.into()),
            },
            payload: self.optional()?.map(Bytes::copy_from_slice),
            wire: OnceLock::new(),
        })
    }
}
