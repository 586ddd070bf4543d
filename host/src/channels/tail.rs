//! Channels that somebody uses now: their newest state and their newest entries, in memory. Whoever follows a channel is
//! a place in its log; the tail wakes it, and spares it the store while it keeps up.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bell::{Bell, Listener};
use super::entry::Entry;
use super::names::{ChannelId, ChannelName, ProcessId};
use super::record::{Head, ProcessView};
use crate::event::Position;
use crate::limits::{CHANNEL_TAIL_BYTES_MAX, CHANNEL_TAIL_ENTRIES_MAX, CHANNEL_TAILS_IDLE_MAX};

const SHARDS: usize = 16;
/// With so many channels a shard looks for those that nobody uses.
const FULL: usize = CHANNEL_TAILS_IDLE_MAX / SHARDS;

/// All channels of a host that are in use. A store owns it and tells it what it has committed.
pub struct Tails {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Default for Tails {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl fmt::Debug for Tails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tails").field("channels", &self.len()).finish_non_exhaustive()
    }
}

/// All channels of a process are in the same one.
#[derive(Debug)]
struct Shard {
    /// Never without channels.
    processes: HashMap<ProcessId, Vec<Arc<Live>>>,
    channels: usize,
    /// As many as this are looked through; never so often that it costs each channel much.
    full: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { processes: HashMap::new(), channels: 0, full: FULL }
    }
}

impl Shard {
    fn make_room(&mut self) {
        if self.channels < self.full {
            return;
        }
        // Who asks for channels that are not there pushes out none that is.
        self.retain(|live| live.is_used() || live.head().is_some());
        if self.channels > FULL / 4 * 3 {
            self.retain(Live::is_used);
        }
        self.full = FULL.max(self.channels * 2);
    }

    fn retain(&mut self, mut keeps: impl FnMut(&Arc<Live>) -> bool) {
        let mut channels = 0;
        self.processes.retain(|_, of_process| {
            of_process.retain(&mut keeps);
            channels += of_process.len();
            !of_process.is_empty()
        });
        self.channels = channels;
    }

    fn find(&self, id: &ChannelId) -> Option<&Arc<Live>> {
        self.processes.get(&id.process)?.iter().find(|live| live.id.name == id.name)
    }

    /// Whatever was there under its name is there no more.
    fn insert(&mut self, live: Arc<Live>) {
        self.remove(&live.id);
        self.channels += 1;
        match self.processes.get_mut(&live.id.process) {
            Some(of_process) => of_process.push(live),
            // Most have one channel in use.
            None => drop(self.processes.insert(live.id.process.clone(), vec![live])),
        }
    }

    fn remove(&mut self, id: &ChannelId) -> Option<Arc<Live>> {
        let of_process = self.processes.get_mut(&id.process)?;
        let at = of_process.iter().position(|live| live.id.name == id.name)?;
        let gone = of_process.swap_remove(at);
        if of_process.is_empty() {
            self.processes.remove(&id.process);
        }
        self.channels -= 1;
        Some(gone)
    }

    fn remove_all(&mut self, id: &ProcessId) -> Vec<Arc<Live>> {
        let gone = self.processes.remove(id).unwrap_or_default();
        self.channels -= gone.len();
        gone
    }
}

/// A channel in use.
#[derive(Debug)]
pub(crate) struct Live {
    pub(super) id: ChannelId,
    state: Mutex<State>,
    /// Rung after each change of the state.
    changed: Bell,
    subscribers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    head: Option<Head>,
    removed: bool,
    /// Without holes, up to the newest position.
    recent: VecDeque<Arc<Entry>>,
    recent_bytes: usize,
}

impl State {
    /// Entries go; what is known of the channel stays.
    fn clear(&mut self) {
        self.recent.clear();
        self.recent_bytes = 0;
    }
}

/// What a follower finds when it looks.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The channel's newest state, and what comes next for a place, as far as it is in memory. None: the store has it.
    Head(Head, Option<Vec<Arc<Entry>>>),
    /// Nobody has read its state yet.
    Unread,
    Removed,
}

impl Tails {
    fn shard(&self, id: &ProcessId) -> MutexGuard<'_, Shard> {
        self.shards[self.place(id)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: &ProcessId) -> usize {
        usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or_default()
    }

    /// A channel that is in use from now on. What is committed from here on it is told.
    pub(crate) fn attach(&self, id: &ChannelId) -> Arc<Live> {
        let mut shard = self.shard(&id.process);
        if let Some(live) = shard.find(id).filter(|live| !live.is_removed()) {
            return Arc::clone(live);
        }
        shard.make_room();
        let live = Live {
            id: id.clone(),
            state: Mutex::default(),
            changed: Bell::default(),
            subscribers: AtomicUsize::new(0),
        };
        let live = Arc::new(live);
        shard.insert(Arc::clone(&live));
        live
    }

    pub(crate) fn find(&self, id: &ChannelId) -> Option<Arc<Live>> {
        self.shard(&id.process).find(id).cloned()
    }

    /// Entries were committed to a channel. In the order of their positions. Whether somebody follows it here.
    pub(crate) fn appended(&self, id: &ChannelId, head: Head, entries: &[Arc<Entry>]) -> bool {
        let Some(live) = self.find(id) else { return false };
        live.publish(head, entries);
        live.subscribers() > 0
    }

    /// A process has changed.
    pub(crate) fn changed(&self, id: &ProcessId, view: &ProcessView) {
        for channel in &view.channels {
            let of = ChannelId { process: id.clone(), name: channel.name.clone() };
            let head = Head { process: Arc::clone(&view.process), channel: Arc::clone(channel) };
            self.appended(&of, head, &[]);
        }
    }

    /// A channel is of a process that is gone, as the store says: what is told of the next one of its name is not for who
    /// uses it now.
    pub(super) fn retire(&self, live: &Arc<Live>) {
        let mut shard = self.shard(&live.id.process);
        if shard.find(&live.id).is_some_and(|known| Arc::ptr_eq(known, live)) {
            shard.remove(&live.id);
        }
        drop(shard);
        live.remove();
    }

    /// A process is gone with these channels.
    pub(crate) fn removed(&self, id: &ProcessId, channels: &[ChannelName]) {
        for name in channels {
            let of = ChannelId { process: id.clone(), name: name.clone() };
            let gone = self.shard(id).remove(&of);
            if let Some(live) = gone {
                live.remove();
            }
        }
    }

    /// A process is gone with its channels, whichever they were.
    pub(crate) fn all_removed(&self, id: &ProcessId) {
        let gone = self.shard(id).remove_all(id);
        for live in gone {
            live.remove();
        }
    }

    /// Somebody else has changed a channel: it is answered if somebody uses it now. Otherwise what is known of it is
    /// forgotten, and read again by whoever uses it next.
    pub(crate) fn outdate(&self, id: &ChannelId) -> Option<Arc<Live>> {
        let shard = self.shard(&id.process);
        let live = shard.find(id)?;
        if live.is_used() {
            return Some(Arc::clone(live));
        }
        live.forget();
        None
    }

    /// The same of all channels, after it is not known what has changed.
    pub(crate) fn outdate_all(&self) -> Vec<ChannelId> {
        let mut used = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for live in shard.processes.values().flatten() {
                if live.is_used() {
                    used.push(live.id.clone());
                } else {
                    live.forget();
                }
            }
        }
        used
    }

    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.channels
        };
        self.shards.iter().map(count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody holds it beside the list of all. Asked under the lock of that.
    fn is_used(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    fn forget(&self) {
        let mut state = self.lock();
        state.head = None;
        state.clear();
    }

    /// The process that it is of is gone. Whatever is told from now on is another one's.
    fn remove(&self) {
        {
            let mut state = self.lock();
            state.removed = true;
            state.clear();
        }
        self.changed.ring();
    }

    /// Takes in what the store has read, unless something newer was told meanwhile.
    pub(super) fn read(&self, head: &Head) {
        {
            let mut state = self.lock();
            let newer = |known: &Head| !known.is_of(&head.process) || known.age() >= head.age();
            if state.removed || state.head.as_ref().is_some_and(newer) {
                return;
            }
            // What is in memory ends somewhere before.
            state.clear();
            state.head = Some(head.clone());
        }
        // Others may wait for it.
        self.changed.ring();
    }

    fn publish(&self, head: Head, entries: &[Arc<Entry>]) {
        {
            let mut state = self.lock();
            if state.removed {
                return;
            }
            if state.head.as_ref().is_some_and(|known| !known.is_of(&head.process)) {
                drop(state);
                return self.remove();
            }
            if state.head.as_ref().is_some_and(|known| known.age() > head.age()) {
                return;
            }
            let oldest = head.channel.oldest;
            let newest = head.channel.newest;
            for entry in entries {
                if state.recent.back().is_some_and(|last| last.position.0 + 1 != entry.position.0) {
                    state.clear();
                }
                state.recent_bytes += entry.bytes();
                state.recent.push_back(Arc::clone(entry));
            }
            if state.recent.back().is_some_and(|last| last.position != newest) {
                state.clear();
            }
            while state.recent.len() > CHANNEL_TAIL_ENTRIES_MAX
                || state.recent_bytes > CHANNEL_TAIL_BYTES_MAX
                || state.recent.front().is_some_and(|first| first.position < oldest)
            {
                let Some(gone) = state.recent.pop_front() else { break };
                state.recent_bytes -= gone.bytes();
            }
            // Nobody reads here; the state alone is kept.
            if self.subscribers() == 0 {
                state.clear();
            }
            state.head = Some(head);
        }
        self.changed.ring();
    }

    /// The channel's state, if somebody has read it.
    pub(crate) fn head(&self) -> Option<Head> {
        let state = self.lock();
        if state.removed { None } else { state.head.clone() }
    }

    /// Whether the process that it was of is gone.
    pub(super) fn is_removed(&self) -> bool {
        self.lock().removed
    }

    pub(super) fn look(&self, after: Position, max: usize) -> Seen {
        let state = self.lock();
        if state.removed {
            return Seen::Removed;
        }
        let Some(head) = &state.head else { return Seen::Unread };
        let entries = if after >= head.channel.newest {
            Some(Vec::new())
        } else {
            let first = state.recent.front().map(|first| first.position.0);
            first.filter(|first| *first <= after.0 + 1).map(|first| {
                let skip = usize::try_from(after.0 + 1 - first).unwrap_or(usize::MAX);
                state.recent.iter().skip(skip).take(max).cloned().collect()
            })
        };
        Seen::Head(head.clone(), entries)
    }

    pub(super) fn watch(&self) -> Listener {
        self.changed.listen()
    }

    /// Wakes whoever waits here.
    pub(super) fn wake(&self) {
        self.changed.ring();
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Acquire)
    }

    /// Counts one more follower, unless there are enough.
    pub(super) fn enter(&self, max: usize) -> bool {
        let more = |count: usize| (count < max).then_some(count + 1);
        self.subscribers.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// With the last follower its entries go; the state stays for who appends.
    pub(super) fn leave(&self) {
        if self.subscribers.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut state = self.lock();
            state.clear();
            state.recent.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::ProcessName;
    use crate::event::TenantId;

    fn id(name: &str) -> ChannelId {
        let process =
            ProcessId { tenant: TenantId::new("acme").unwrap(), name: ProcessName::new(name).unwrap() };
        ChannelId { process, name: ChannelName::new("talk").unwrap() }
    }

    fn known(tails: &Tails, id: &ChannelId, head: &Head) {
        tails.attach(id).read(head);
    }

    fn head() -> Head {
        let process = r#"{"name":"job","submitter":"ann","executor":null,"epoch":0,"observers":[],"created_at":1,
            "closed":null,"version":1}"#;
        let channel = r#"{"name":"talk","executor":null,"epoch":0,"options":{},"created_at":1,"newest":0,"oldest":1,
            "hot":1,"bytes":0,"archive_bytes":0,"senders":[]}"#;
        Head {
            process: Arc::new(serde_json::from_str(process).unwrap()),
            channel: Arc::new(serde_json::from_str(channel).unwrap()),
        }
    }

    #[test]
    fn channels_that_nobody_uses_are_kept_up_to_a_bound_and_those_in_use_always() {
        let (tails, head) = (Tails::default(), head());
        let used: Vec<_> = (0..100).map(|n| tails.attach(&id(&format!("used-{n}")))).collect();
        for n in 0..3 * CHANNEL_TAILS_IDLE_MAX {
            known(&tails, &id(&format!("idle-{n}")), &head);
            assert!(tails.len() <= CHANNEL_TAILS_IDLE_MAX + used.len(), "{} after {n}", tails.len());
        }
        for live in &used {
            let found = tails.find(&live.id).expect("it is in use");
            assert!(Arc::ptr_eq(&found, live));
        }
    }

    #[test]
    fn more_channels_than_the_bound_can_be_in_use_and_idle_ones_are_no_more_than_those() {
        let (tails, head) = (Tails::default(), head());
        let count = 2 * CHANNEL_TAILS_IDLE_MAX;
        let used: Vec<_> = (0..count).map(|n| tails.attach(&id(&format!("used-{n}")))).collect();
        assert_eq!(tails.len(), count);
        for n in 0..4 * count {
            known(&tails, &id(&format!("idle-{n}")), &head);
        }
        // A shard with fewer of those in use has room for as many as its share of the bound.
        assert!(tails.len() <= 2 * count + CHANNEL_TAILS_IDLE_MAX, "{}", tails.len());
        drop(used);
        for n in 0..4 * count {
            known(&tails, &id(&format!("later-{n}")), &head);
        }
        assert!(tails.len() <= CHANNEL_TAILS_IDLE_MAX, "{}", tails.len());
    }

    /// Others are not even looked at: they may be locked meanwhile.
    #[test]
    fn a_process_that_goes_takes_its_own_channels_alone() {
        let (tails, head) = (Arc::new(Tails::default()), head());
        let ids =
            ["talk", "side"].map(|name| ChannelId { name: ChannelName::new(name).unwrap(), ..id("job") });
        let gone = ids.each_ref().map(|id| tails.attach(id));
        let others: Vec<_> = (0..100).map(|n| tails.attach(&id(&format!("other-{n}")))).collect();
        gone.iter().chain(&others).for_each(|live| live.read(&head));
        let place = tails.place(&ids[0].process);
        let locked: Vec<_> =
            (0..SHARDS).filter(|at| *at != place).map(|at| tails.shards[at].lock()).collect();
        let (done, ended) = std::sync::mpsc::sync_channel(1);
        let (removes, process) = (Arc::clone(&tails), ids[0].process.clone());
        let removing = std::thread::spawn(move || {
            removes.all_removed(&process);
            done.send(()).unwrap();
        });
        ended.recv_timeout(std::time::Duration::from_secs(30)).expect("it waits for nobody else's");
        drop(locked);
        removing.join().unwrap();
        assert!(gone.iter().all(|live| live.is_removed()));
        assert!(ids.iter().all(|id| tails.find(id).is_none()));
        assert!(others.iter().all(|live| !live.is_removed() && tails.find(&live.id).is_some()));
        assert_eq!(tails.len(), others.len());
        // Of the next process of its name everything is new.
        assert!(!tails.attach(&ids[0]).is_removed());
    }

    #[test]
    fn names_of_channels_that_are_not_there_push_out_none_that_is() {
        let (tails, head) = (Tails::default(), head());
        let known_ones: Vec<_> = (0..CHANNEL_TAILS_IDLE_MAX / 2).map(|n| id(&format!("known-{n}"))).collect();
        for id in &known_ones {
            known(&tails, id, &head);
        }
        for n in 0..3 * CHANNEL_TAILS_IDLE_MAX {
            // Whoever asked for it has been told that it is not there.
            drop(tails.attach(&id(&format!("missing-{n}"))));
        }
        let there = |id: &&ChannelId| tails.find(id).is_some_and(|live| live.head().is_some());
        assert_eq!(known_ones.iter().filter(there).count(), known_ones.len());
        assert!(tails.len() <= CHANNEL_TAILS_IDLE_MAX, "{}", tails.len());
    }
}
