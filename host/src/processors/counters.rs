//! What happened to a processor since the host started, by version: for its status and for the metrics.
//!
//! A version's numbers begin at 0 when it takes over and stay after it was
//! replaced, for the newest [`METRIC_VERSIONS_MAX`] versions; so the labels stay
//! bounded, however often a plugin is deployed. Older ones are only in the
//! sums. Nothing here is done per event: tasks add per call, commit and turn.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::TrapKind;
use super::histogram::{Distribution, Histogram};
use crate::checkpoints::{DropReason, Dropped};
use crate::limits::METRIC_VERSIONS_MAX;
use crate::telemetry::metrics::{EVENTS_BUCKETS, SECONDS_BUCKETS};

/// One version's counts. Anybody may read; its tasks add.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) version: Arc<str>,
    events: Count,
    batches: Count,
    commits: Count,
    effects: Count,
    stale_writes: Count,
    retries: Count,
    traps: [Count; TRAP_KINDS.len()],
    dead_letters: Count,
    parkings: Count,
    replayed: Count,
    dropped_appends: [Count; DropReason::ALL.len()],
    refused_flushes: Count,
    breaker_openings: Count,
    restarts: Count,
    swaps: Count,
    cpu_nanos: Count,
    parked_events: AtomicUsize,
    held_keys: AtomicUsize,
    batch_events: Histogram,
    handle: Histogram,
    commit: Histogram,
    snapshot: Histogram,
    flush: Histogram,
    hand_over: Histogram,
}

/// The kinds of traps, in the order of their counts.
pub(super) const TRAP_KINDS: [TrapKind; 5] =
    [TrapKind::Trap, TrapKind::Timeout, TrapKind::Limit, TrapKind::Output, TrapKind::Host];

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events whose effects are committed.
    pub events: u64,
    /// Calls of `handle`.
    pub batches: u64,
    pub commits: u64,
    pub effects: u64,
    /// Writes to versioned tables that were left out.
    pub stale_writes: u64,
    pub retries: u64,
    pub traps: u64,
    pub dead_letters: u64,
    /// Events that were parked.
    pub parkings: u64,
    /// Dead letters that were replayed with success.
    pub replayed: u64,
    /// Entries to append that were left out because of what their channels are.
    pub dropped_appends: u64,
    /// Calls of `flush` whose effects were refused.
    pub refused_flushes: u64,
    /// Times that a circuit breaker opened.
    pub breaker_openings: u64,
    /// Starts after a failure.
    pub restarts: u64,
    pub swaps: u64,
    /// CPU time of the guest threads in this processor's turns.
    pub cpu_nanos: u64,
    /// Parked now, over all tasks.
    pub parked_events: u64,
    /// Ordering keys that wait for a parked event now, over all tasks.
    pub held_keys: u64,
}

/// One version's distributions at one moment.
#[derive(Clone, Debug)]
pub(super) struct Distributions {
    pub(super) batch_events: Distribution,
    pub(super) handle: Distribution,
    pub(super) commit: Distribution,
    pub(super) snapshot: Distribution,
    pub(super) flush: Distribution,
    pub(super) hand_over: Distribution,
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    fn new(version: &str) -> Self {
        Self {
            version: version.into(),
            events: Count::default(),
            batches: Count::default(),
            commits: Count::default(),
            effects: Count::default(),
            stale_writes: Count::default(),
            retries: Count::default(),
            traps: Default::default(),
            dead_letters: Count::default(),
            parkings: Count::default(),
            replayed: Count::default(),
            dropped_appends: Default::default(),
            refused_flushes: Count::default(),
            breaker_openings: Count::default(),
            restarts: Count::default(),
            swaps: Count::default(),
            cpu_nanos: Count::default(),
            parked_events: AtomicUsize::new(0),
            held_keys: AtomicUsize::new(0),
            batch_events: Histogram::of_numbers(EVENTS_BUCKETS),
            handle: Histogram::of_seconds(SECONDS_BUCKETS),
            commit: Histogram::of_seconds(SECONDS_BUCKETS),
            snapshot: Histogram::of_seconds(SECONDS_BUCKETS),
            flush: Histogram::of_seconds(SECONDS_BUCKETS),
            hand_over: Histogram::of_seconds(SECONDS_BUCKETS),
        }
    }

    /// A call of `handle` with so many events.
    pub(super) fn batch(&self, events: usize, took: Duration) {
        self.batches.add(1);
        self.batch_events.had(events);
        self.handle.took(took);
    }

    pub(super) fn effects(&self, effects: usize) {
        self.effects.add(effects as u64);
    }

    /// A commit that succeeded, from its submission to its answer.
    pub(super) fn commit(&self, events: usize, stale: u64, took: Duration) {
        self.commits.add(1);
        self.events.add(events as u64);
        self.stale_writes.add(stale);
        self.commit.took(took);
    }

    pub(super) fn snapshot(&self, took: Duration) {
        self.snapshot.took(took);
    }

    pub(super) fn flush(&self, took: Duration) {
        self.flush.took(took);
    }

    pub(super) fn hand_over(&self, took: Duration) {
        self.hand_over.took(took);
    }

    pub(super) fn retry(&self) {
        self.retries.add(1);
    }

    pub(super) fn trap(&self, kind: TrapKind) {
        for (count, known) in self.traps.iter().zip(TRAP_KINDS) {
            count.add(u64::from(known == kind));
        }
    }

    pub(super) fn dead_letter(&self) {
        self.dead_letters.add(1);
    }

    /// An event was parked.
    pub(super) fn park(&self) {
        self.parkings.add(1);
    }

    pub(super) fn replayed(&self) {
        self.replayed.add(1);
    }

    /// A commit left these entries out.
    pub(super) fn dropped(&self, dropped: &Dropped) {
        for (count, (_, entries)) in self.dropped_appends.iter().zip(dropped.counts()) {
            count.add(entries);
        }
    }

    /// The effects of a flush, and nothing else, were refused.
    pub(super) fn flush_refused(&self) {
        self.refused_flushes.add(1);
    }

    /// The circuit breaker opened.
    pub(super) fn breaker_opened(&self) {
        self.breaker_openings.add(1);
    }

    pub(super) fn restart(&self) {
        self.restarts.add(1);
    }

    /// This version took over.
    pub(super) fn swap(&self) {
        self.swaps.add(1);
    }

    /// CPU time of a turn.
    pub(super) fn cpu(&self, time: Duration) {
        self.cpu_nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            events: self.events.get(),
            batches: self.batches.get(),
            commits: self.commits.get(),
            effects: self.effects.get(),
            stale_writes: self.stale_writes.get(),
            retries: self.retries.get(),
            traps: self.traps.iter().map(Count::get).sum(),
            dead_letters: self.dead_letters.get(),
            parkings: self.parkings.get(),
            replayed: self.replayed.get(),
            dropped_appends: self.dropped_appends.iter().map(Count::get).sum(),
            refused_flushes: self.refused_flushes.get(),
            breaker_openings: self.breaker_openings.get(),
            restarts: self.restarts.get(),
            swaps: self.swaps.get(),
            cpu_nanos: self.cpu_nanos.get(),
            parked_events: self.parked_events.load(Ordering::Relaxed) as u64,
            held_keys: self.held_keys.load(Ordering::Relaxed) as u64,
        }
    }

    /// Each kind of trap and how often it was.
    pub(super) fn traps(&self) -> impl Iterator<Item = (TrapKind, u64)> {
        TRAP_KINDS.into_iter().zip(self.traps.iter().map(Count::get))
    }

    /// Each reason to leave an entry out and how many were.
    pub(super) fn dropped_appends(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.dropped_appends.iter().map(Count::get))
    }

    pub(super) fn distributions(&self) -> Distributions {
        Distributions {
            batch_events: self.batch_events.read(),
            handle: self.handle.read(),
            commit: self.commit.read(),
            snapshot: self.snapshot.read(),
            flush: self.flush.read(),
            hand_over: self.hand_over.read(),
        }
    }

    fn move_parked(gauge: &AtomicUsize, before: usize, now: usize) {
        // Wraps where it falls, and the sum comes out right.
        gauge.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }
}

/// One task's hold on the counts of the version that it runs. What it has
/// parked counts as long as the task lives, and moves with it to another version.
#[derive(Debug)]
pub(super) struct TaskCounters {
    version: Arc<Counters>,
    parked_events: AtomicUsize,
    held_keys: AtomicUsize,
}

impl TaskCounters {
    pub(super) fn new(version: Arc<Counters>) -> Self {
        Self { version, parked_events: AtomicUsize::new(0), held_keys: AtomicUsize::new(0) }
    }

    pub(super) fn version(&self) -> &Arc<Counters> {
        &self.version
    }

    /// How many events this task has parked now, and how many keys wait for them: absolute numbers of this
    /// one task, told whenever they change. The processor's gauge is their sum over its tasks.
    pub(super) fn parked(&self, events: usize, held_keys: usize) {
        let before = self.parked_events.swap(events, Ordering::Relaxed);
        Counters::move_parked(&self.version.parked_events, before, events);
        let before = self.held_keys.swap(held_keys, Ordering::Relaxed);
        Counters::move_parked(&self.version.held_keys, before, held_keys);
    }

    /// From here on, another version's.
    pub(super) fn follow(&mut self, version: Arc<Counters>) {
        let (events, keys) =
            (self.parked_events.load(Ordering::Relaxed), self.held_keys.load(Ordering::Relaxed));
        self.parked(0, 0);
        self.version = version;
        self.parked(events, keys);
    }
}

impl Deref for TaskCounters {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.version
    }
}

impl Drop for TaskCounters {
    fn drop(&mut self) {
        self.parked(0, 0);
    }
}

/// A plugin's counts by version. It outlives the plugin's runs, so that a pause does not set them back.
#[derive(Debug, Default)]
pub struct VersionCounters {
    inner: Mutex<Versions>,
}

#[derive(Debug, Default)]
struct Versions {
    /// The newest last.
    kept: Vec<Arc<Counters>>,
    /// The sum of those that are kept no more.
    former: Counts,
}

impl VersionCounters {
    /// The counts of a version, which becomes the newest.
    pub(super) fn of(&self, version: &str) -> Arc<Counters> {
        let mut versions = self.lock();
        let known = versions.kept.iter().position(|counters| &*counters.version == version);
        let counters = match known {
            Some(index) => versions.kept.remove(index),
            None => Arc::new(Counters::new(version)),
        };
        versions.kept.push(Arc::clone(&counters));
        if versions.kept.len() > METRIC_VERSIONS_MAX {
            let oldest = versions.kept.remove(0);
            // What is parked moved on with its task.
            versions.former.add(&Counts { parked_events: 0, held_keys: 0, ..oldest.read() });
        }
        counters
    }

    /// The kept versions, the newest last.
    pub(super) fn versions(&self) -> Vec<Arc<Counters>> {
        self.lock().kept.clone()
    }

    /// Over all versions.
    pub(super) fn sum(&self) -> Counts {
        let versions = self.lock();
        let mut sum = versions.former;
        for counters in &versions.kept {
            sum.add(&counters.read());
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Versions> {
        self.inner.lock().expect("no code panics while it holds the counters")
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.batches += other.batches;
        self.commits += other.commits;
        self.effects += other.effects;
        self.stale_writes += other.stale_writes;
        self.retries += other.retries;
        self.traps += other.traps;
        self.dead_letters += other.dead_letters;
        self.parkings += other.parkings;
        self.replayed += other.replayed;
        self.dropped_appends += other.dropped_appends;
        self.refused_flushes += other.refused_flushes;
        self.breaker_openings += other.breaker_openings;
        self.restarts += other.restarts;
        self.swaps += other.swaps;
        self.cpu_nanos += other.cpu_nanos;
        self.parked_events += other.parked_events;
        self.held_keys += other.held_keys;
    }
}

/// CPU time of the calling thread from here on.
#[derive(Debug)]
pub(super) struct ThreadCpu(Duration);

impl ThreadCpu {
    pub(super) fn begin() -> Self {
        Self(thread_cpu())
    }

    /// To be asked on the thread that began.
    pub(super) fn spent(&self) -> Duration {
        thread_cpu().saturating_sub(self.0)
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_version_begins_at_0_and_the_old_one_stays() {
        let plugin = VersionCounters::default();
        plugin.of("1.0.0").batch(3, Duration::ZERO);
        let second = plugin.of("2.0.0");
        assert_eq!(second.read(), Counts::default());
        second.batch(1, Duration::ZERO);
        let batches: Vec<u64> = plugin.versions().iter().map(|version| version.read().batches).collect();
        assert_eq!(batches, [1, 1]);
        assert_eq!(plugin.sum().batches, 2);
    }

    #[test]
    fn many_versions_keep_the_newest_labels_and_the_whole_sum() {
        let plugin = VersionCounters::default();
        for version in 0..METRIC_VERSIONS_MAX + 3 {
            plugin.of(&format!("{version}.0.0")).retry();
        }
        assert_eq!(plugin.versions().len(), METRIC_VERSIONS_MAX);
        assert_eq!(plugin.sum().retries, METRIC_VERSIONS_MAX as u64 + 3);
        // A version that comes back is the newest again, with what it had.
        let kept = plugin.versions()[0].version.to_string();
        assert_eq!(plugin.of(&kept).read().retries, 1);
        assert_eq!(*plugin.versions().last().expect("some").version, *kept);
    }

    #[test]
    fn parked_events_move_with_their_task_and_end_with_it() {
        let plugin = VersionCounters::default();
        let one = plugin.of("1.0.0");
        let (mut first, second) = (TaskCounters::new(Arc::clone(&one)), TaskCounters::new(Arc::clone(&one)));
        first.parked(5, 2);
        second.parked(1, 1);
        first.parked(3, 1);
        assert_eq!((one.read().parked_events, one.read().held_keys), (4, 2));
        let two = plugin.of("2.0.0");
        first.follow(Arc::clone(&two));
        assert_eq!((one.read().parked_events, two.read().parked_events), (1, 3));
        drop((first, second));
        assert_eq!((plugin.sum().parked_events, plugin.sum().held_keys), (0, 0));
    }
}
