//! The committed entries that lie in runs alone (`channel_runs`), in memory for whoever reads. The committer writes, readers
//! look.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _};

use super::channel_reads::{channel_name, process_id};
use super::channel_run_bytes::Reader;
use super::database::unsigned;
use super::shared::from_json;
use crate::channels::{Channel, ChannelId, ChannelName, Entry, ProcessId};
use crate::event::Position;
use crate::limits::{CHANNEL_SETTLE_BYTES, CHANNEL_UNSETTLED_ENTRY_BYTES};

#[derive(Debug)]
pub(super) struct Unsettled {
    state: Mutex<State>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<ProcessId, Vec<(ChannelName, Held)>>,
    /// Channels by the first run that each still needs.
    order: BTreeSet<(i64, ChannelId)>,
    /// What all entries count.
    bytes: usize,
}

/// A channel's entries that are not settled, as readers are given them.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    pub(super) number: i64,
    pub(super) channel: Arc<Channel>,
    /// Without holes, up to the newest position.
    pub(super) entries: Vec<Arc<Entry>>,
}

#[derive(Debug)]
struct Held {
    number: i64,
    channel: Arc<Channel>,
    entries: VecDeque<Arc<Entry>>,
    /// The runs that have them, each with the last position in it. There is one at least.
    runs: VecDeque<(i64, Position)>,
}

/// What is to be settled of a channel.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) id: ChannelId,
    pub(super) number: i64,
    /// The oldest ones.
    pub(super) entries: Vec<Arc<Entry>>,
    /// It has no others.
    pub(super) is_all: bool,
}

/// What entries count towards bounds: about what they take in memory, however short they are.
pub(super) fn weight<'a>(entries: impl IntoIterator<Item = &'a Arc<Entry>>) -> usize {
    entries.into_iter().map(|entry| entry.bytes() + CHANNEL_UNSETTLED_ENTRY_BYTES).sum()
}

impl Unsettled {
    /// What a former start has left in runs. It writes nothing: a disk that is full keeps no host from starting.
    pub(super) fn load(conn: &Connection, bytes_max: usize) -> rusqlite::Result<Self> {
        let unsettled = Self { state: Mutex::default(), bytes_max };
        // Of a channel that was removed since there is no record, and its entries go with it.
        let mut known: HashMap<i64, Option<Left>> = HashMap::new();
        let mut statement = conn.prepare("SELECT id, run FROM channel_runs ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let run = row.get(0)?;
            let mut reader = Reader::new(row.get_ref(1)?.as_blob()?);
            while !reader.is_at_end() {
                let (number, record, entries) = reader.channel()?;
                let left = match known.entry(number) {
                    Occupied(known) => known.into_mut(),
                    Vacant(place) => place.insert(Left::of(conn, number)?),
                };
                let Some(left) = left else { continue };
                if record.newest() <= left.recorded.newest {
                    continue;
                }
                let channel = record.onto(&left.recorded);
                let entries = entries.into_iter().filter(|entry| entry.position > left.settled);
                let entries: Vec<_> = entries.map(Arc::new).collect();
                unsettled.appended(&left.id, number, &Arc::new(channel), &entries, run);
            }
        }
        Ok(unsettled)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel's newest state and its entries that are not settled. Asked before the store is: what is settled meanwhile
    /// is found in both.
    pub(super) fn of(&self, id: &ChannelId) -> Option<Recent> {
        self.after(id, Position::START, usize::MAX)
    }

    /// The same with entries behind a position alone, as many as are wanted.
    pub(super) fn after(&self, id: &ChannelId, after: Position, most: usize) -> Option<Recent> {
        let state = self.lock();
        let held = state.find(id)?;
        let first = held.entries.front().map_or(0, |first| first.position.0);
        let skip = usize::try_from(after.0.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let entries = held.entries.iter().skip(skip).take(most).cloned().collect();
        Some(Recent { number: held.number, channel: Arc::clone(&held.channel), entries })
    }

    /// The same without entries.
    pub(super) fn record(&self, id: &ChannelId) -> Option<(i64, Arc<Channel>)> {
        self.lock().find(id).map(|held| (held.number, Arc::clone(&held.channel)))
    }

    /// Of all channels of a process.
    pub(super) fn records(&self, id: &ProcessId) -> Vec<(i64, Arc<Channel>)> {
        let state = self.lock();
        let channels = state.channels.get(id).into_iter().flatten();
        channels.map(|(_, held)| (held.number, Arc::clone(&held.channel))).collect()
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
        let held = state.find(id).filter(|held| held.number == number)?;
        held.entries.iter().rev().find(|entry| says(entry)).cloned()
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
        state.bytes += weight(entries);
        let of_process = state.channels.entry(id.process.clone()).or_default();
        if let Some((_, held)) = of_process.iter_mut().find(|(name, _)| *name == id.name) {
            held.channel = Arc::clone(channel);
            held.entries.extend(entries.iter().cloned());
            match held.runs.back_mut() {
                Some((last, until)) if *last == run => *until = channel.newest,
                _ => held.runs.push_back((run, channel.newest)),
            }
            return;
        }
        let held = Held {
            number,
            channel: Arc::clone(channel),
            entries: entries.iter().cloned().collect(),
            runs: VecDeque::from([(run, channel.newest)]),
        };
        of_process.push((id.name.clone(), held));
        state.order.insert((run, id.clone()));
    }

    /// Its entries up to there are settled.
    pub(super) fn settled(&self, id: &ChannelId, until: Position) {
        let state = &mut *self.lock();
        let Some(of_process) = state.channels.get_mut(&id.process) else { return };
        let Some(at) = of_process.iter().position(|(name, _)| *name == id.name) else { return };
        let held = &mut of_process[at].1;
        let before = held.first_run();
        while let Some(entry) = held.entries.pop_front_if(|entry| entry.position <= until) {
            state.bytes -= weight([&entry]);
        }
        while held.runs.pop_front_if(|(_, last)| *last <= until).is_some() {}
        let now = held.first_run();
        if now == before {
            return;
        }
        if now.is_none() {
            of_process.swap_remove(at);
            if of_process.is_empty() {
                state.channels.remove(&id.process);
            }
        }
        state.order.extend(now.map(|run| (run, id.clone())));
        if let Some(run) = before {
            state.order.remove(&(run, id.clone()));
        }
    }

    /// They are gone with their process.
    pub(super) fn removed(&self, id: &ProcessId) {
        let state = &mut *self.lock();
        for (name, gone) in state.channels.remove(id).into_iter().flatten() {
            state.bytes -= weight(&gone.entries);
            if let Some(run) = gone.first_run() {
                state.order.remove(&(run, ChannelId { process: id.clone(), name: name.clone() }));
            }
        }
    }

    /// What is to be settled in a transaction whose appended entries count so much: more than those once there is too much,
    /// so that there is less afterwards, and little enough that nobody waits for it.
    pub(super) fn due(&self, appended: usize) -> Vec<Step> {
        let state = self.lock();
        // What removes or changes something is not to fail for want of room.
        if appended == 0 || state.bytes < self.bytes_max {
            return Vec::new();
        }
        state.oldest(appended.saturating_mul(2).max(CHANNEL_SETTLE_BYTES))
    }

    /// What has waited for longest, up to so many bytes and an entry.
    pub(super) fn oldest(&self, bytes: usize) -> Vec<Step> {
        self.lock().oldest(bytes)
    }

    /// The first run that is still needed once channels are settled up to there; none when none is.
    pub(super) fn first_run(&self, settled: &HashMap<ChannelId, Position>) -> Option<i64> {
        let state = self.lock();
        let mut first: Option<i64> = None;
        for (run, id) in &state.order {
            if first.is_some_and(|first| first <= *run) {
                break;
            }
            let needed = match settled.get(id) {
                None => Some(*run),
                Some(until) => {
                    let mut runs = state.find(id).into_iter().flat_map(|held| &held.runs);
                    runs.find(|(_, last)| last > until).map(|(run, _)| *run)
                }
            };
            first = first.into_iter().chain(needed).min();
        }
        first
    }

    /// What all of them count.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
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
    fn find(&self, id: &ChannelId) -> Option<&Held> {
        let of_process = self.channels.get(&id.process)?;
        of_process.iter().find(|(name, _)| *name == id.name).map(|(_, held)| held)
    }

    fn oldest(&self, bytes: usize) -> Vec<Step> {
        let (mut steps, mut sum) = (Vec::new(), 0);
        for (_, id) in &self.order {
            if sum >= bytes {
                break;
            }
            let Some(held) = self.find(id) else { continue };
            let mut entries = Vec::new();
            for entry in &held.entries {
                if sum >= bytes {
                    break;
                }
                sum += weight([entry]);
                entries.push(Arc::clone(entry));
            }
            let is_all = entries.len() == held.entries.len();
            steps.push(Step { id: id.clone(), number: held.number, entries, is_all });
        }
        steps
    }
}

impl Held {
    fn first_run(&self) -> Option<i64> {
        self.runs.front().map(|(run, _)| *run)
    }
}

/// How far a channel that has entries in runs was settled before.
struct Left {
    id: ChannelId,
    /// As it is stored.
    recorded: Channel,
    /// The newest position of its settled entries: those may be some of the ones that the record does not know yet.
    settled: Position,
}

impl Left {
    fn of(conn: &Connection, number: i64) -> rusqlite::Result<Option<Self>> {
        let found = conn
            .prepare_cached(
                "SELECT processes.tenant, processes.name, channels.name, channels.channel,
                   (SELECT max(position) FROM channel_entries WHERE channel_entries.channel = channels.id)
                 FROM channels JOIN processes ON processes.id = channels.process WHERE channels.id = ?1",
            )?
            .query_row([number], |row| {
                let process = process_id(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?)?;
                let name = channel_name(row.get_ref(2)?.as_str()?)?;
                let recorded: Channel = from_json(row.get_ref(3)?.as_str()?)?;
                let newest = Position(row.get::<_, Option<i64>>(4)?.map_or(0, unsigned));
                Ok(Self { id: ChannelId { process, name }, settled: newest.max(recorded.newest), recorded })
            })
            .optional()?;
        Ok(found)
    }
}
