//! Appends that wait for a forerunner: how many do, and how many bytes they hold.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::ChannelError;
use super::names::{ChannelId, Party, ProcessId};
use super::options::ChannelLimits;

/// Whose they are: the channel, the sender and its epoch.
pub(super) type Whose = (ChannelId, Party, u32);

#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    by_sender: HashMap<Whose, usize>,
    /// Bytes, and of all processes.
    by_process: HashMap<ProcessId, usize>,
    bytes: usize,
}

/// The right of one append to wait, as long as this lives.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    waiting: &'a Waiting,
    whose: Whose,
    bytes: usize,
}

/// What is full.
#[derive(Debug)]
pub(super) enum NoRoom {
    /// As many entries of the sender wait as may.
    Entries,
    Bytes(ChannelError),
}

fn over(limit: &'static str, what: &'static str, asked: usize, max: usize) -> Result<(), NoRoom> {
    if asked <= max {
        return Ok(());
    }
    Err(NoRoom::Bytes(ChannelError::Limit { limit, what, asked: asked as u64, max: max as u64 }))
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(
        &self,
        whose: Whose,
        bytes: usize,
        limits: &ChannelLimits,
    ) -> Result<Wait<'_>, NoRoom> {
        let process = &whose.0.process;
        let mut held = self.lock();
        let count = held.by_sender.get(&whose).copied().unwrap_or_default();
        if count >= limits.hold_entries_max {
            return Err(NoRoom::Entries);
        }
        let of_process = held.by_process.get(process).copied().unwrap_or_default() + bytes;
        let of_all = held.bytes + bytes;
        over(
            "channel_hold_bytes_max",
            "bytes of appends to the process that wait for a missing one",
            of_process,
            limits.hold_bytes_max,
        )?;
        over(
            "channel_hold_host_bytes_max",
            "bytes of all appends that wait for a missing one",
            of_all,
            limits.hold_host_bytes_max,
        )?;
        held.bytes = of_all;
        held.by_process.insert(process.clone(), of_process);
        held.by_sender.insert(whose.clone(), count + 1);
        drop(held);
        Ok(Wait { waiting: self, whose, bytes })
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut held = self.waiting.lock();
        let held = &mut *held;
        held.bytes -= self.bytes;
        less(&mut held.by_process, &self.whose.0.process, self.bytes);
        less(&mut held.by_sender, &self.whose, 1);
    }
}

/// What is none is not kept.
fn less<K: std::hash::Hash + Eq>(of: &mut HashMap<K, usize>, key: &K, by: usize) {
    let Some(count) = of.get_mut(key) else { return };
    *count -= by;
    if *count == 0 {
        of.remove(key);
    }
}
