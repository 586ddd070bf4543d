//! The records of channels that the committer has worked with, what is still to be written of them, and what their
//! followers will be told. All of it goes back with a transaction or a savepoint that fails.

use std::collections::HashMap;
use std::sync::Arc;

use super::channel_reads::load_process;
use super::committer::Committer;
use super::shared::to_json;
use crate::channels::{
    Channel, ChannelId, ChannelName, Entry, Head, ProcessId, ProcessView, Tails, count_written,
};
use crate::limits::CHANNEL_RECORDS_CACHED_MAX;

#[derive(Debug, Default)]
pub(super) struct Book {
    open: HashMap<ProcessId, Open>,
    /// Processes with records that are to be written in this transaction.
    dirty: Vec<ProcessId>,
    told: Vec<Told>,
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
    Appended(ChannelId, Head, Vec<Arc<Entry>>),
    Changed(ProcessId, ProcessView),
    /// With its channels.
    Removed(ProcessId, Vec<ChannelName>),
}

#[derive(Debug)]
struct Savepoint {
    told: usize,
    dirty: usize,
    by_processors: (u64, u64),
    /// Processes as they were before their first append since.
    before: HashMap<ProcessId, Open>,
}

impl Book {
    /// After the commit.
    pub(super) fn publish(&mut self, tails: &Tails) {
        let (entries, bytes) = std::mem::take(&mut self.by_processors);
        if entries > 0 {
            count_written(entries, bytes);
        }
        for told in self.told.drain(..) {
            match told {
                Told::Appended(id, head, entries) => tails.appended(&id, head, &entries),
                Told::Changed(id, view) => tails.changed(&id, &view),
                Told::Removed(id, channels) => tails.removed(&id, &channels),
            }
        }
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
        self.savepoint = Some(Savepoint { told, dirty, by_processors, before: HashMap::new() });
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
    }

    pub(super) fn insert(&mut self, id: ProcessId, open: Open) {
        self.open.insert(id, open);
    }

    pub(super) fn get_mut(&mut self, id: &ProcessId) -> Option<&mut Open> {
        self.open.get_mut(id)
    }

    pub(super) fn mark_dirty(&mut self, id: &ProcessId, at: usize) {
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
        if let Some(savepoint) = &mut self.savepoint
            && !savepoint.before.contains_key(&id.process)
            && let Some(open) = self.open.get(&id.process)
        {
            savepoint.before.insert(id.process.clone(), open.clone());
        }
        self.mark_dirty(&id.process, at);
        if let Some(open) = self.open.get_mut(&id.process) {
            open.view.channels[at] = Arc::clone(&head.channel);
        }
        let first = self.savepoint.as_ref().map_or(0, |savepoint| savepoint.told);
        if self.told.len() > first
            && let Some(Told::Appended(last, known, before)) = self.told.last_mut()
            && last == id
        {
            before.extend(entries);
            *known = head;
            return;
        }
        self.told.push(Told::Appended(id.clone(), head, entries));
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
            let (numbers, channels) = process.channels.into_iter().unzip();
            let view = ProcessView { process: Arc::new(process.process), channels };
            self.book.insert(id.clone(), Open::new(number, view, numbers));
        }
        Ok(self.book.get_mut(id))
    }

    /// Writes the records that have changed. The last step of a transaction.
    pub(super) fn write_channels(&mut self) -> rusqlite::Result<()> {
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
