//! The records of channels that the committer has worked with, what is still to be written of them, and what their
//! followers will be told. All of it goes back with a transaction or a savepoint that fails.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::channel_reads::load_process;
use super::channel_runs::Fresh;
use super::channel_unsettled::Unsettled;
use super::committer::Committer;
use super::shared::to_json;
use crate::channels::{
    Channel, ChannelId, ChannelName, Entry, Head, ProcessId, ProcessView, Tails, count_written,
};
use crate::event::Position;
use crate::limits::CHANNEL_RECORDS_CACHED_MAX;

#[derive(Debug, Default)]
pub(super) struct Book {
    open: HashMap<ProcessId, Open>,
    /// Processes with records that are to be written in this transaction.
    dirty: Vec<ProcessId>,
    told: Vec<Told>,
    /// What this transaction has done to channels.
    lately: HashMap<ChannelId, Lately>,
    /// The run that this transaction has written.
    run: Option<i64>,
    /// Entries of processors, and their bytes. What clients append, the router counts.
    by_processors: (u64, u64),
    /// Where the savepoint began, while there is one.
    savepoint: Option<Savepoint>,
}

/// A process in memory.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) number: i64,
    pub(super) view: ProcessView,
    /// Of the channels, in their order.
    pub(super) numbers: Vec<i64>,
    /// Which channels' records are to be written.
    dirty: Vec<usize>,
}

impl Open {
    pub(super) fn new(number: i64, view: ProcessView, numbers: Vec<i64>) -> Self {
        Self { number, view, numbers, dirty: Vec::new() }
    }
}

#[derive(Debug)]
enum Told {
    /// With the channel's number.
    Appended(ChannelId, i64, Head, Vec<Arc<Entry>>),
    /// Its entries up to there are settled.
    Settled(ChannelId, Position),
    Changed(ProcessId, ProcessView),
    /// With its channels.
    Removed(ProcessId, Vec<ChannelName>),
}

/// What a transaction has appended to a channel.
#[derive(Debug, Default)]
struct Lately {
    entries: Vec<Arc<Entry>>,
    /// Up to where this transaction has settled it.
    until: Position,
}

#[derive(Debug)]
struct Savepoint {
    told: usize,
    dirty: usize,
    by_processors: (u64, u64),
    /// Processes as they were before their first append since.
    before: HashMap<ProcessId, Open>,
    /// Channels as they were: how many entries, and up to where they were settled.
    lately: HashMap<ChannelId, (usize, Position)>,
}

impl Book {
    /// After the commit.
    pub(super) fn publish(&mut self, tails: &Tails, unsettled: &Unsettled) {
        let (entries, bytes) = std::mem::take(&mut self.by_processors);
        if entries > 0 {
            count_written(entries, bytes);
        }
        // What is settled in the same transaction is in no run.
        let mut settled = self.settled_later();
        for told in self.told.drain(..).zip(settled.drain(..)) {
            match told {
                (Told::Appended(id, number, head, entries), is_settled) => {
                    if let Some(run) = self.run.filter(|_| !is_settled) {
                        unsettled.appended(&id, number, &head.channel, &entries, run);
                    }
                    tails.appended(&id, head, &entries);
                }
                (Told::Settled(id, until), _) => unsettled.settled(&id, until),
                (Told::Changed(id, view), _) => tails.changed(&id, &view),
                (Told::Removed(id, channels), _) => {
                    unsettled.removed(&id);
                    tails.removed(&id, &channels);
                }
            }
        }
        self.run = None;
        self.lately.clear();
        if self.open.len() > CHANNEL_RECORDS_CACHED_MAX {
            self.open.clear();
        }
    }

    /// Nothing of the transaction has happened.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// What is appended from now on can be taken back with [`Self::undo`]. Nothing else is done to processes until then.
    pub(super) fn begin(&mut self) {
        let (told, dirty, by_processors) = (self.told.len(), self.dirty.len(), self.by_processors);
        let (before, lately) = (HashMap::new(), HashMap::new());
        self.savepoint = Some(Savepoint { told, dirty, by_processors, before, lately });
    }

    /// What was appended since `begin` stays.
    pub(super) fn keep(&mut self) {
        self.savepoint = None;
    }

    /// What was appended since `begin` was rolled back.
    pub(super) fn undo(&mut self) {
        let Some(savepoint) = self.savepoint.take() else { return };
        self.told.truncate(savepoint.told);
        self.dirty.truncate(savepoint.dirty);
        self.by_processors = savepoint.by_processors;
        self.open.extend(savepoint.before);
        for (id, (entries, until)) in savepoint.lately {
            if let Some(lately) = self.lately.get_mut(&id) {
                lately.entries.truncate(entries);
                lately.until = until;
            }
        }
    }

    /// A channel in this transaction; as it is now it is again, should the savepoint be rolled back.
    fn lately(&mut self, id: &ChannelId) -> &mut Lately {
        if !self.lately.contains_key(id) {
            self.lately.insert(id.clone(), Lately::default());
        }
        let lately = self.lately.get_mut(id).expect("it was inserted");
        if let Some(savepoint) = &mut self.savepoint
            && !savepoint.lately.contains_key(id)
        {
            let before = (lately.entries.len(), lately.until);
            savepoint.lately.insert(id.clone(), before);
        }
        lately
    }

    pub(super) fn insert(&mut self, id: ProcessId, open: Open) {
        self.open.insert(id, open);
    }

    pub(super) fn get_mut(&mut self, id: &ProcessId) -> Option<&mut Open> {
        self.open.get_mut(id)
    }

    /// As it is now, should the savepoint be rolled back.
    fn remember(&mut self, id: &ProcessId) {
        if let Some(savepoint) = &mut self.savepoint
            && !savepoint.before.contains_key(id)
            && let Some(open) = self.open.get(id)
        {
            savepoint.before.insert(id.clone(), open.clone());
        }
    }

    /// Its record is written with this transaction; then its entries must lie in their table, too.
    pub(super) fn mark_dirty(&mut self, id: &ProcessId, at: usize) {
        self.remember(id);
        let Some(open) = self.open.get_mut(id) else { return };
        if open.dirty.is_empty() {
            self.dirty.push(id.clone());
        }
        if !open.dirty.contains(&at) {
            open.dirty.push(at);
        }
    }

    /// A channel after an append, and its new entries.
    pub(super) fn appended(&mut self, id: &ChannelId, at: usize, head: Head, entries: Vec<Arc<Entry>>) {
        self.remember(&id.process);
        let Some(open) = self.open.get_mut(&id.process) else { return };
        open.view.channels[at] = Arc::clone(&head.channel);
        let number = open.numbers[at];
        self.lately(id).entries.extend(entries.iter().cloned());
        let first = self.savepoint.as_ref().map_or(0, |savepoint| savepoint.told);
        if self.told.len() > first
            && let Some(Told::Appended(last, _, known, before)) = self.told.last_mut()
            && last == id
        {
            before.extend(entries);
            *known = head;
            return;
        }
        self.told.push(Told::Appended(id.clone(), number, head, entries));
    }

    /// Its entries up to there lie in their table.
    pub(super) fn note_settled(&mut self, id: &ChannelId, until: Position) {
        let lately = self.lately(id);
        lately.until = lately.until.max(until);
        self.told.push(Told::Settled(id.clone(), until));
    }

    /// Up to where it was settled in this transaction.
    pub(super) fn settled_until(&self, id: &ChannelId) -> Position {
        self.lately.get(id).map_or(Position::START, |lately| lately.until)
    }

    /// Up to where channels need no runs any more: those that were settled, and those that are gone.
    pub(super) fn settled(&self) -> HashMap<ChannelId, Position> {
        let mut settled: HashMap<ChannelId, Position> = HashMap::new();
        for told in &self.told {
            match told {
                Told::Settled(id, until) => {
                    let known = settled.entry(id.clone()).or_default();
                    *known = (*known).max(*until);
                }
                Told::Removed(process, channels) => {
                    let of = |name: &ChannelName| ChannelId { process: process.clone(), name: name.clone() };
                    settled.extend(channels.iter().map(|name| (of(name), Position(u64::MAX))));
                }
                Told::Appended(..) | Told::Changed(..) => {}
            }
        }
        settled
    }

    /// Of everything that is told, whether something later says that it is settled, or gone with its process.
    fn settled_later(&self) -> Vec<bool> {
        if !self.told.iter().any(|told| matches!(told, Told::Settled(..) | Told::Removed(..))) {
            return vec![false; self.told.len()];
        }
        let mut settled: HashMap<&ChannelId, Position> = HashMap::new();
        let mut removed = HashSet::new();
        let later = self.told.iter().rev().map(|told| match told {
            Told::Appended(id, _, _, entries) => {
                let is_in = |until: &Position| entries.last().is_none_or(|last| last.position <= *until);
                settled.get(id).is_some_and(is_in) || removed.contains(&id.process)
            }
            Told::Settled(id, until) => {
                let known = settled.entry(id).or_default();
                *known = (*known).max(*until);
                false
            }
            Told::Removed(id, _) => !removed.insert(id),
            Told::Changed(..) => false,
        });
        let mut later: Vec<bool> = later.collect();
        later.reverse();
        later
    }

    /// What this transaction has appended and not settled, one for each channel.
    pub(super) fn fresh(&self) -> Vec<Fresh<'_>> {
        let mut fresh: Vec<Fresh<'_>> = Vec::new();
        let mut places: HashMap<&ChannelId, usize> = HashMap::new();
        for (told, is_settled) in self.told.iter().zip(self.settled_later()) {
            let Told::Appended(id, number, head, entries) = told else { continue };
            if is_settled {
                continue;
            }
            let channel = &head.channel;
            let at = *places.entry(id).or_insert_with(|| {
                fresh.push(Fresh { id, number: *number, channel, entries: Vec::new() });
                fresh.len() - 1
            });
            fresh[at].channel = channel;
            fresh[at].entries.extend(entries);
        }
        fresh
    }

    /// The same of one channel, without its state.
    pub(super) fn fresh_of(&self, id: &ChannelId) -> &[Arc<Entry>] {
        self.lately.get(id).map_or(&[], |lately| {
            let settled = lately.entries.partition_point(|entry| entry.position <= lately.until);
            &lately.entries[settled..]
        })
    }

    pub(super) fn has_run(&mut self, run: i64) {
        self.run = Some(run);
    }

    pub(super) fn run(&self) -> Option<i64> {
        self.run
    }

    /// Channels whose records are to be written, with their numbers.
    pub(super) fn dirty_channels(&self) -> Vec<(ChannelId, i64)> {
        let open = self.dirty.iter().filter_map(|id| Some((id, self.open.get(id)?)));
        let channels = open.flat_map(|(id, open)| {
            open.dirty.iter().map(|at| {
                let name = open.view.channels[*at].name.clone();
                (ChannelId { process: id.clone(), name }, open.numbers[*at])
            })
        });
        channels.collect()
    }

    /// Entries of these sizes were appended for a processor.
    pub(super) fn written_by_processor(&mut self, sizes: impl Iterator<Item = usize>) {
        for bytes in sizes {
            self.by_processors.0 += 1;
            self.by_processors.1 += bytes as u64;
        }
    }

    pub(super) fn changed(&mut self, id: &ProcessId, view: ProcessView) {
        self.told.push(Told::Changed(id.clone(), view));
    }

    pub(super) fn removed(&mut self, id: &ProcessId, channels: Vec<ChannelName>) {
        self.open.remove(id);
        self.dirty.retain(|dirty| dirty != id);
        self.lately.retain(|channel, _| channel.process != *id);
        self.told.push(Told::Removed(id.clone(), channels));
    }

    /// Records that have changed since this was asked last: the number of each and what it is now.
    fn take_dirty(&mut self) -> Vec<(i64, Arc<Channel>)> {
        let mut changed = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let Some(open) = self.open.get_mut(&id) else { continue };
            for at in open.dirty.drain(..) {
                changed.push((open.numbers[at], Arc::clone(&open.view.channels[at])));
            }
        }
        changed
    }
}

impl Committer {
    /// A process in memory; read when it is not.
    pub(super) fn open_process(&mut self, id: &ProcessId) -> rusqlite::Result<Option<&mut Open>> {
        if !self.book.open.contains_key(id) {
            let Some((number, process)) = load_process(&self.conn, id)? else { return Ok(None) };
            let mut channels = process.channels;
            self.shared.unsettled.update(id, &mut channels);
            let (numbers, channels) = channels.into_iter().unzip();
            let view = ProcessView { process: Arc::new(process.process), channels };
            self.book.insert(id.clone(), Open::new(number, view, numbers));
        }
        Ok(self.book.get_mut(id))
    }

    /// Writes what was appended, and the records that have changed. The last step of a transaction.
    pub(super) fn write_channels(&mut self) -> rusqlite::Result<()> {
        if self.book.told.is_empty() {
            return Ok(());
        }
        self.write_run()?;
        let changed = self.book.take_dirty();
        if changed.is_empty() {
            return Ok(());
        }
        let mut statement = self.conn.prepare_cached("UPDATE channels SET channel = ?2 WHERE id = ?1")?;
        for (number, channel) in changed {
            statement.execute((number, to_json(&*channel)?))?;
        }
        Ok(())
    }
}
