//! Channels in memory: nothing of them outlives the host. For tests, and for work whose streams need no log.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use crate::channels::{
    Actor, Append, Appended, AppendedAtOnce, Change, Channel, ChannelError, ChannelId, ChannelLimits,
    ChannelName, ChannelStats, ChannelStore, Entry, EntryPage, Head, Incarnation, NewProcess, Outcomed,
    Process, ProcessId, ProcessName, ProcessView, PromptStore, ReadLimit, Tails, WhenFull, append_owned,
    archive_excess, change, create,
};
use crate::clock::Clock;
use crate::event::{Micros, Position, TenantId};
use crate::limits::CHANNEL_SWEEP_PROCESSES_MAX;

type Result<T> = std::result::Result<T, ChannelError>;

/// A [`ChannelStore`] that forgets. Clones are the same store.
#[derive(Clone, Debug)]
pub struct MemoryChannels {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: ChannelLimits,
    clock: Arc<dyn Clock>,
    tails: Tails,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<ProcessId, Kept>,
    of_tenant: HashMap<TenantId, u64>,
}

#[derive(Debug)]
struct Kept {
    view: ProcessView,
    /// By channel, from its oldest entry to its newest.
    logs: HashMap<ChannelName, VecDeque<Arc<Entry>>>,
}

impl MemoryChannels {
    pub fn new(limits: ChannelLimits, clock: Arc<dyn Clock>) -> Self {
        // There is no log beside it.
        let limits = ChannelLimits { events: false, ..limits };
        Self { inner: Arc::new(Inner { limits, clock, tails: Tails::default(), state: Mutex::default() }) }
    }
}

fn unknown(id: &ProcessId) -> ChannelError {
    ChannelError::ProcessUnknown { process: id.to_string() }
}

impl State {
    fn kept(&self, id: &ProcessId) -> Result<&Kept> {
        self.processes.get(id).ok_or_else(|| unknown(id))
    }

    fn head(&self, id: &ChannelId) -> Result<Head> {
        self.processes.get(&id.process).ok_or_else(|| id.unknown())?.view.head(&id.name)
    }

    fn remove(&mut self, id: &ProcessId, tails: &Tails) -> bool {
        let found = self.processes.remove(id).is_some();
        if found {
            if let Some(count) = self.of_tenant.get_mut(&id.tenant) {
                *count -= 1;
            }
            tails.all_removed(id);
        }
        found
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, new: NewProcess) -> Result<(ProcessView, bool)> {
        let mut state = self.lock();
        let id = new.id.clone();
        let of_tenant = state.of_tenant.get(&id.tenant).copied().unwrap_or_default();
        let known = state.processes.get(&id).map(|kept| &kept.view);
        let made = (Incarnation::new(), self.clock.now());
        match create(known, new, of_tenant, made, &self.limits)? {
            None => Ok((state.kept(&id)?.view.clone(), false)),
            Some(view) => {
                *state.of_tenant.entry(id.tenant.clone()).or_default() += 1;
                state.processes.insert(id, Kept { view: view.clone(), logs: HashMap::new() });
                Ok((view, true))
            }
        }
    }

    fn change(&self, id: &ProcessId, by: &Actor, what: Change) -> Result<ProcessView> {
        let mut state = self.lock();
        let kept = state.processes.get_mut(id).ok_or_else(|| unknown(id))?;
        let mut view = kept.view.clone();
        if change(&mut view, by, what, self.clock.now(), &self.limits)? {
            kept.view = view.clone();
            self.tails.changed(id, &view);
        }
        Ok(view)
    }

    fn append(
        &self,
        id: &ChannelId,
        asked: &mut Append,
        admit: &mut dyn FnMut(&Head) -> Result<()>,
    ) -> Result<AppendedAtOnce> {
        let mut state = self.lock();
        let kept = state.processes.get_mut(&id.process).ok_or_else(|| id.unknown())?;
        let head = kept.view.head(&id.name)?;
        admit(&head)?;
        let planned = append_owned(&head, asked, kept.view.bytes(), self.clock.now(), &self.limits)?;
        let log = kept.logs.entry(id.name.clone()).or_default();
        let mut answers = Vec::with_capacity(planned.outcomes.len());
        let mut new = Vec::new();
        for outcome in planned.outcomes {
            answers.push(match outcome {
                Outcomed::New(entry) => {
                    let (position, epoch, sequence) = (entry.position, entry.epoch, entry.sequence);
                    new.push(entry);
                    Appended { position, epoch, sequence, repeated: false }
                }
                Outcomed::Repeat { index, epoch, sequence } => {
                    let same = |entry: &&Arc<Entry>| {
                        entry.epoch == epoch && entry.sequence == sequence && entry.sender == asked.who
                    };
                    let first = new.iter().chain(log.iter().rev()).find(same);
                    repeated(first.map(|first| &**first), asked, (index, epoch, sequence))?
                }
            });
        }
        let mut channel = planned.channel;
        log.extend(new.iter().cloned());
        let (mut entries, mut bytes) = (0, 0);
        let skip = usize::try_from(channel.hot.0 - channel.oldest.0).unwrap_or(usize::MAX);
        for entry in log.iter().skip(skip) {
            if entries >= planned.excess.entries && bytes >= planned.excess.bytes {
                break;
            }
            entries += 1;
            bytes += entry.bytes() as u64;
        }
        match channel.options.full {
            WhenFull::Archive => channel.archive(entries, bytes),
            WhenFull::DropOldest | WhenFull::Reject => forget(&mut channel, log, entries),
        }
        let over = archive_excess(&channel, &self.limits);
        let (mut entries, mut bytes) = (0, 0);
        for entry in log.iter().take_while(|entry| entry.position < channel.hot) {
            if entries >= over.entries && bytes >= over.bytes {
                break;
            }
            entries += 1;
            bytes += entry.bytes() as u64;
        }
        forget(&mut channel, log, entries);
        let channel = Arc::new(channel);
        if let Some(known) = kept.view.channels.iter_mut().find(|known| known.name == id.name) {
            *known = Arc::clone(&channel);
        }
        let bytes = new.iter().map(|entry| entry.bytes() as u64).sum();
        let followed =
            !new.is_empty() && self.tails.appended(id, Head { process: head.process, channel }, &new);
        Ok(AppendedAtOnce { places: answers, bytes, followed })
    }

    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> Result<EntryPage> {
        let state = self.lock();
        let head = state.head(id)?;
        let (oldest, newest) = (head.channel.oldest, head.channel.newest);
        let missed = oldest.0.saturating_sub(after.0.saturating_add(1));
        let from = after.0 + missed;
        let next = Position(from.min(newest.0.max(after.0)));
        let mut page = EntryPage { head, entries: Vec::new(), next, oldest, newest, missed };
        let Some(log) = state.kept(&id.process)?.logs.get(&id.name) else { return Ok(page) };
        let skip = usize::try_from(from.saturating_add(1).saturating_sub(oldest.0)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        for entry in log.iter().skip(skip).take(limit.entries.max(1)) {
            bytes += entry.bytes();
            if bytes > limit.bytes && !page.entries.is_empty() {
                break;
            }
            page.next = entry.position;
            page.entries.push(Arc::clone(entry));
        }
        Ok(page)
    }
}

/// The oldest entries go.
fn forget(channel: &mut Channel, log: &mut VecDeque<Arc<Entry>>, entries: u64) {
    let gone = log.drain(..usize::try_from(entries).unwrap_or(usize::MAX).min(log.len()));
    let bytes = gone.map(|entry| entry.bytes() as u64).sum();
    channel.forget(entries, bytes);
}

/// The answer to a repeat: where the first one lies, if it said the same.
pub(crate) fn repeated(
    first: Option<&Entry>,
    asked: &Append,
    (index, epoch, sequence): (usize, u32, u64),
) -> Result<Appended> {
    let party = asked.who.to_string();
    match first {
        None => Err(ChannelError::SequenceForgotten { party, epoch, sequence }),
        Some(first) if !first.says(&asked.entries[index]) => {
            Err(ChannelError::SequenceTaken { party, epoch, sequence, position: first.position })
        }
        Some(first) => Ok(Appended { position: first.position, epoch, sequence, repeated: true }),
    }
}

impl PromptStore for MemoryChannels {
    fn append_at_once(
        &self,
        id: &ChannelId,
        asked: &mut Append,
        admit: &mut dyn FnMut(&Head) -> Result<()>,
    ) -> Result<AppendedAtOnce> {
        self.inner.append(id, asked, admit)
    }
}

impl ChannelStore for MemoryChannels {
    fn create(&self, new: NewProcess) -> BoxFuture<'_, Result<(ProcessView, bool)>> {
        ready(self.inner.create(new)).boxed()
    }

    fn process(&self, id: &ProcessId) -> BoxFuture<'_, Result<ProcessView>> {
        ready(self.inner.lock().kept(id).map(|kept| kept.view.clone())).boxed()
    }

    fn processes(
        &self,
        tenant: &TenantId,
        after: Option<&ProcessName>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Arc<Process>>>> {
        let state = self.inner.lock();
        let of = |name: &ProcessName| ProcessId { tenant: tenant.clone(), name: name.clone() };
        let all: Vec<_> = match after {
            Some(after) => {
                let later = state.processes.range((Bound::Excluded(of(after)), Bound::Unbounded));
                later.take_while(|(id, _)| id.tenant == *tenant).map(|(_, kept)| kept).take(limit).collect()
            }
            None => {
                let of_tenant = state.processes.iter().filter(|(id, _)| id.tenant == *tenant);
                of_tenant.map(|(_, kept)| kept).take(limit).collect()
            }
        };
        ready(Ok(all.into_iter().map(|kept| Arc::clone(&kept.view.process)).collect())).boxed()
    }

    fn head(&self, id: &ChannelId) -> BoxFuture<'_, Result<Head>> {
        ready(self.inner.lock().head(id)).boxed()
    }

    fn change(&self, id: &ProcessId, by: Actor, what: Change) -> BoxFuture<'_, Result<ProcessView>> {
        ready(self.inner.change(id, &by, what)).boxed()
    }

    fn append(&self, id: &ChannelId, mut asked: Append) -> BoxFuture<'_, Result<Vec<Appended>>> {
        ready(self.inner.append(id, &mut asked, &mut |_| Ok(())).map(|done| done.places)).boxed()
    }

    fn prompt(&self) -> Option<&dyn PromptStore> {
        Some(self)
    }

    fn read(&self, id: &ChannelId, after: Position, limit: ReadLimit) -> BoxFuture<'_, Result<EntryPage>> {
        ready(self.inner.read(id, after, limit)).boxed()
    }

    fn remove(&self, id: &ProcessId, only: Option<Incarnation>) -> BoxFuture<'_, Result<bool>> {
        let mut state = self.inner.lock();
        let found = state.processes.get(id).map(|kept| Incarnation::of(&kept.view.process));
        let meant = found.is_some_and(|found| only.is_none_or(|only| only == found));
        ready(Ok(meant && state.remove(id, &self.inner.tails))).boxed()
    }

    fn expire(&self, closed_before: Micros) -> BoxFuture<'_, Result<usize>> {
        let mut state = self.inner.lock();
        let over =
            |kept: &Kept| kept.view.process.closed.as_ref().is_some_and(|closed| closed.at < closed_before);
        let gone: Vec<_> =
            state.processes.iter().filter(|(_, kept)| over(kept)).map(|(id, _)| id.clone()).collect();
        let gone = &gone[..gone.len().min(CHANNEL_SWEEP_PROCESSES_MAX)];
        for id in gone {
            state.remove(id, &self.inner.tails);
        }
        ready(Ok(gone.len())).boxed()
    }

    fn stats(&self) -> BoxFuture<'_, Result<ChannelStats>> {
        let state = self.inner.lock();
        let channels = state.processes.values().map(|kept| kept.view.channels.len() as u64).sum();
        ready(Ok(ChannelStats { channels, processes: state.processes.len() as u64 })).boxed()
    }

    fn tails(&self) -> &Tails {
        &self.inner.tails
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn limits(&self) -> &ChannelLimits {
        &self.inner.limits
    }
}
