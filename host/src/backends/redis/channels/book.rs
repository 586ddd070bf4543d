//! What a host knows of processes that it works with, and telling its followers of what has changed.
//!
//! Records come from calls whose answers may cross; each says how far the store was, and an older one changes nothing. A
//! process of the same name that is another one ends what followed the former.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::Shared;
use super::records::{At, Numbered, Record, Seen};
use crate::channels::{ChannelId, ChannelName, Entry, Head, Process, ProcessId, ProcessView, Tails};
use crate::limits::CHANNEL_RECORDS_CACHED_MAX;

#[derive(Debug)]
pub(super) struct Book {
    processes: HashMap<ProcessId, Kept>,
    /// With so many it is looked for those that nobody uses.
    full: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self { processes: HashMap::new(), full: CHANNEL_RECORDS_CACHED_MAX }
    }
}

/// A process as it was last heard of.
#[derive(Debug)]
struct Kept {
    at: At,
    /// None: it is gone.
    there: Option<There>,
}

#[derive(Debug)]
struct There {
    incarnation: Arc<str>,
    process: Arc<Process>,
    bytes: u64,
    /// All that were seen; none where what was seen is of no use any more.
    channels: HashMap<ChannelName, Option<(At, Numbered)>>,
}

impl There {
    /// Takes in channels of the same version of the process, where nothing newer is known of them.
    fn merge(&mut self, incarnation: &str, version: u64, channels: &[Numbered], at: At) {
        if *self.incarnation != *incarnation || self.process.version != version {
            return;
        }
        for numbered in channels {
            let known = self.channels.entry(numbered.channel.name.clone()).or_default();
            if known.as_ref().is_none_or(|(seen, _)| *seen <= at) {
                *known = Some((at, numbered.clone()));
            }
        }
    }

    /// Whether somebody on this host uses a channel of it.
    fn is_used(&self, tails: &Tails, id: &ProcessId) -> bool {
        let of = |name: &ChannelName| ChannelId { process: id.clone(), name: name.clone() };
        self.channels.keys().map(of).any(|channel| tails.find(&channel).is_some())
    }
}

impl Book {
    /// Takes in what an answer says of a process; none says that there is none.
    fn take_in(&mut self, tails: &Tails, id: &ProcessId, record: Option<&Record>, at: At) {
        let Some(record) = record else { return self.gone(tails, id, None, at) };
        if !self.processes.contains_key(id) {
            self.make_room(tails);
        }
        let kept = self.processes.entry(id.clone()).or_insert(Kept { at, there: None });
        if kept.at > at {
            // Channels that nothing newer is known of are of use all the same.
            if let Some(there) = &mut kept.there {
                there.merge(&record.incarnation, record.process.version, &record.channels, at);
            }
            return;
        }
        kept.at = at;
        if kept.there.as_ref().is_some_and(|there| there.incarnation != record.incarnation) {
            tails.all_removed(id);
            kept.there = None;
        }
        let there = kept.there.get_or_insert_with(|| There {
            incarnation: Arc::clone(&record.incarnation),
            process: Arc::clone(&record.process),
            bytes: record.bytes,
            channels: HashMap::new(),
        });
        if there.process.version != record.process.version {
            // Its channels may have other executors, too.
            there.channels.values_mut().for_each(|known| *known = None);
        }
        (there.process, there.bytes) = (Arc::clone(&record.process), record.bytes);
        there.merge(&record.incarnation, record.process.version, &record.channels, at);
    }

    /// A process is gone: this one of its name, or whichever there was.
    fn gone(&mut self, tails: &Tails, id: &ProcessId, incarnation: Option<&str>, at: At) {
        // Who follows it has asked for it.
        let Some(kept) = self.processes.get_mut(id) else { return };
        let another =
            kept.there.as_ref().is_some_and(|there| incarnation.is_some_and(|of| *of != *there.incarnation));
        if kept.there.is_none() || kept.at > at || another {
            return;
        }
        *kept = Kept { at, there: None };
        tails.all_removed(id);
    }

    fn make_room(&mut self, tails: &Tails) {
        if self.processes.len() < self.full {
            return;
        }
        // Those that somebody uses stay: it has to be known when they become other ones.
        self.processes.retain(|id, kept| kept.there.as_ref().is_some_and(|there| there.is_used(tails, id)));
        self.full = CHANNEL_RECORDS_CACHED_MAX.max(self.processes.len() * 2);
    }

    /// Whether it is not known that a process is another one.
    fn is(&self, id: &ProcessId, incarnation: &str) -> bool {
        let Some(kept) = self.processes.get(id) else { return true };
        kept.there.as_ref().is_some_and(|there| *there.incarnation == *incarnation)
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_in(&self, id: &ProcessId, record: Option<&Record>, at: At) {
        self.book().take_in(&self.tails, id, record, at);
    }

    /// A process was removed.
    pub(super) fn gone(&self, id: &ProcessId, incarnation: Option<&str>, at: At) {
        self.book().gone(&self.tails, id, incarnation, at);
    }

    /// A channel as it was last heard of in this life of the store.
    pub(super) fn recalled(&self, id: &ChannelId, life: u64) -> Option<Seen> {
        let book = self.book();
        let there = book.processes.get(&id.process)?.there.as_ref()?;
        let (at, numbered) = there.channels.get(&id.name)?.as_ref()?;
        let (incarnation, process) = (Arc::clone(&there.incarnation), Arc::clone(&there.process));
        (at.0 == life).then(|| Seen::new(incarnation, process, numbered, there.bytes, life))
    }

    /// This host has appended to a channel; what its process holds now.
    pub(super) fn appended(&self, id: &ChannelId, seen: &Seen, numbered: Numbered, bytes: u64, at: At) {
        let mut book = self.book();
        let Some(kept) = book.processes.get_mut(&id.process) else { return };
        let Some(there) = &mut kept.there else { return };
        there.merge(&seen.incarnation, seen.head.process.version, &[numbered], at);
        if kept.at <= at && *there.incarnation == *seen.incarnation {
            (kept.at, there.bytes) = (at, bytes);
        }
    }

    /// Somebody else has appended to a channel that nobody here uses now.
    pub(super) fn outdate(&self, id: &ChannelId, at: At) {
        let mut book = self.book();
        let there = book.processes.get_mut(&id.process).and_then(|kept| kept.there.as_mut());
        if let Some(known) = there.and_then(|there| there.channels.get_mut(&id.name))
            && known.as_ref().is_some_and(|(seen, _)| *seen < at)
        {
            *known = None;
        }
    }

    /// Whether somebody here waits for what somebody else has changed a process to.
    pub(super) fn uses(&self, id: &ProcessId, at: At) -> bool {
        let mut book = self.book();
        let Some(kept) = book.processes.get(id) else { return false };
        let of = |name: &ChannelName| ChannelId { process: id.clone(), name: name.clone() };
        let channels = kept.there.iter().flat_map(|there| there.channels.keys());
        // All of them are asked.
        let used = channels.filter(|name| self.tails.outdate(&of(name)).is_some()).count() > 0;
        if !kept.there.as_ref().is_some_and(|there| there.is_used(&self.tails, id)) && kept.at < at {
            book.processes.remove(id);
        }
        used
    }

    /// Tells followers here of entries that have come to stay.
    pub(super) fn publish(&self, id: &ChannelId, incarnation: &str, head: Head, entries: &[Arc<Entry>]) {
        // Held, so that followers of the next process of this name are not told.
        let book = self.book();
        if book.is(&id.process, incarnation) {
            self.tails.appended(id, head, entries);
        }
    }

    /// The same of a change that has come to stay.
    pub(super) fn publish_view(&self, id: &ProcessId, incarnation: &str, view: &ProcessView) {
        let book = self.book();
        if book.is(id, incarnation) {
            self.tails.changed(id, view);
        }
    }
}
