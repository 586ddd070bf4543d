//! A candidate in the shadow of the version that runs: it handles the same
//! events from the same state, and its effects are compared and dropped.
//!
//! Promises: the running version never waits for the candidate, which works in
//! turns of its own behind a bounded queue; what falls behind is given up and
//! begun again from a later state; nothing of a candidate is ever committed.
//! Deliberately absent: the decision to take over, which is the deployer's.
//!
//! A *stretch* begins with the running task's state at a batch boundary and
//! goes on with exactly the events that the task handles. On a quiet stream the
//! newest events of the log are handled instead, by a fresh instance of each
//! version, from the committed state.

mod compare;
mod keyed;
mod offers;
mod replay;
mod report;
mod run;
mod task;
mod trial;

pub(super) use offers::{Link, Slot};
pub use report::{
    Differences, Expect, RowDifference, ShadowFault, ShadowOutcome, ShadowRefusal, ShadowReport,
    ShadowSettings, VersionFigures,
};

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use self::compare::Mapping;
use self::offers::Stretch;
use self::task::ShadowTask;
use super::pool::GuestPool;
use super::proof::{Basis, candidate_group};
use super::{Manifest, ProcessorFactory, Subscription};
use crate::checkpoints::TaskId;
use crate::limits::{
    SHADOW_EVENT_TIME_MIN, SHADOW_EXAMPLES_MAX, SHADOW_FEW_EVENT_TIME_MIN, SHADOW_TASKS_MAX,
};

/// One shadow run: what its tasks, the workers and whoever waits for it share.
#[derive(Debug)]
pub(super) struct Shadow {
    factory: Arc<dyn ProcessorFactory>,
    /// Of the candidate, where it is another one than the running version's.
    subscription: Option<Subscription>,
    mapping: Arc<Mapping>,
    settings: ShadowSettings,
    pool: GuestPool,
    /// A quota of threads of its own, so that it takes none of the running version's.
    group: Arc<str>,
    /// Whether stretches may begin and go on.
    accepting: AtomicBool,
    tasks: Mutex<HashMap<TaskId, Arc<ShadowTask>>>,
    found: Mutex<Found>,
    /// Batches that were offered, and those that are done with.
    offered: AtomicU64,
    done: AtomicU64,
    /// Something happened that whoever waits may want to know.
    changed: Notify,
}

/// What has been seen so far.
#[derive(Debug, Default)]
struct Found {
    report: ShadowReport,
    refusal: Option<ShadowRefusal>,
    samples: Vec<Sample>,
    figures: BTreeMap<TaskId, TaskFigures>,
}

/// The time that both took for the same batch.
#[derive(Clone, Copy, Debug)]
struct Sample {
    events: u64,
    old: Duration,
    new: Duration,
    /// The first batch of an instance pays for its memory.
    first: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct TaskFigures {
    old_memory: u64,
    new_memory: u64,
    old_state: u64,
    new_state: u64,
}

/// Samples that are kept: enough for a median.
const SAMPLES_MAX: usize = 4_096;
/// Samples from which on a median means something.
const SAMPLES_MIN: usize = 5;
/// Time in a candidate after which it is worth a look whether it is too slow to go on.
const SLOW_LOOK: Duration = Duration::from_millis(500);

impl Shadow {
    fn new(
        old: &Manifest,
        factory: Arc<dyn ProcessorFactory>,
        settings: ShadowSettings,
        pool: GuestPool,
    ) -> Self {
        let mut report = ShadowReport::default();
        let new = factory.manifest();
        let mapping = Arc::new(Mapping::new(&old.tables, &new.tables, &mut report));
        let subscription = (new.subscription != old.subscription).then(|| new.subscription.clone());
        let group = candidate_group(&new.name);
        Self {
            subscription,
            mapping,
            settings,
            pool,
            group,
            accepting: AtomicBool::new(true),
            tasks: Mutex::default(),
            found: Mutex::new(Found { report, ..Found::default() }),
            offered: AtomicU64::new(0),
            done: AtomicU64::new(0),
            changed: Notify::new(),
            factory,
        }
    }

    /// A worker stands at a batch boundary and would have its events handled from there.
    fn begin_stretch(self: &Arc<Self>, id: &TaskId, basis: impl FnOnce() -> Basis) -> Option<Arc<Stretch>> {
        if !self.accepting.load(Ordering::Acquire) {
            return None;
        }
        let task = {
            let mut tasks = lock(&self.tasks);
            if tasks.len() >= SHADOW_TASKS_MAX && !tasks.contains_key(id) {
                return None;
            }
            let new = || Arc::new(ShadowTask::new(id.clone(), Arc::clone(self)));
            Arc::clone(tasks.entry(id.clone()).or_insert_with(new))
        };
        task.begin(basis)
    }

    /// Ends the stretches where they are; what they have done is compared.
    fn close(&self) {
        self.accepting.store(false, Ordering::Release);
        for task in lock(&self.tasks).values() {
            task.close();
        }
    }

    /// Ends everything, and lets go of what refers to this run.
    fn abandon(&self) {
        self.accepting.store(false, Ordering::Release);
        for (_, task) in lock(&self.tasks).drain() {
            task.abandon();
        }
    }

    fn is_idle(&self) -> bool {
        lock(&self.tasks).values().all(|task| task.is_idle())
    }

    fn refuse(&self, refusal: ShadowRefusal) {
        self.accepting.store(false, Ordering::Release);
        lock(&self.found).refusal.get_or_insert(refusal);
        self.changed.notify_one();
    }

    fn is_refused(&self) -> bool {
        lock(&self.found).refusal.is_some()
    }

    fn events(&self) -> u64 {
        lock(&self.found).report.events
    }

    /// Takes in a batch that both have handled.
    fn count(&self, sample: Option<Sample>, events: u64, replayed: bool) {
        let mut found = lock(&self.found);
        found.report.events += events;
        found.report.replayed_events += if replayed { events } else { 0 };
        let Some(sample) = sample else { return };
        if found.samples.len() < SAMPLES_MAX {
            found.samples.push(sample);
        }
        let spent: Duration = found.samples.iter().map(|sample| sample.new).sum();
        let slow = if spent > SLOW_LOOK { self.too_slow(&found.samples) } else { None };
        drop(found);
        if let Some(refusal) = slow {
            self.refuse(refusal);
        }
        self.changed.notify_one();
    }

    /// An event that only the candidate failed on.
    fn error(&self, message: &str) -> Result<(), ShadowRefusal> {
        let mut found = lock(&self.found);
        let report = &mut found.report;
        report.errors_new += 1;
        if report.first_error.is_empty() {
            report.first_error = message.to_owned();
        }
        let max = self.settings.errors_max;
        if report.errors_new <= max {
            return Ok(());
        }
        Err(ShadowRefusal {
            fault: ShadowFault::Errors,
            message: format!(
                "it failed on {} events that the running version handled (shadow_errors_max = {max}): {}",
                report.errors_new, report.first_error
            ),
        })
    }

    fn error_of_old(&self, also_new: bool) {
        let report = &mut lock(&self.found).report;
        *(if also_new { &mut report.errors_both } else { &mut report.errors_old }) += 1;
    }

    /// Takes in what a stretch has found.
    fn merge(&self, id: &TaskId, part: &ShadowReport, figures: TaskFigures) {
        let mut found = lock(&self.found);
        let report = &mut found.report;
        for (sum, part) in [
            (&mut report.rows, &part.rows),
            (&mut report.emitted, &part.emitted),
            (&mut report.appended, &part.appended),
            (&mut report.state_entries, &part.state_entries),
        ] {
            sum.same += part.same;
            sum.different += part.different;
            sum.only_old += part.only_old;
            sum.only_new += part.only_new;
        }
        let room = SHADOW_EXAMPLES_MAX - report.examples.len();
        report.examples.extend(part.examples.iter().take(room).cloned());
        found.figures.insert(id.clone(), figures);
    }

    /// A stretch is over; a broken one ended before its time.
    fn stretch_over(&self, broken: bool) {
        let report = &mut lock(&self.found).report;
        report.stretches += 1;
        report.broken_stretches += u64::from(broken);
        self.changed.notify_one();
    }

    /// Whether the candidate takes longer for an event than it may.
    fn too_slow(&self, samples: &[Sample]) -> Option<ShadowRefusal> {
        let ratio = u64::from(self.settings.time_ratio_max);
        let (old, new) = slower(samples, ratio)?;
        Some(ShadowRefusal {
            fault: ShadowFault::Slow,
            message: format!(
                "it takes {} us for an event, the running version {} us; shadow_time_ratio_max is {ratio}",
                new / 1_000,
                old / 1_000
            ),
        })
    }
}

/// Nanoseconds for an event, of the running version and of the candidate, where that takes longer than it may. The
/// medians decide. Of a few samples, which a busy machine can spoil, the candidate's best against the other's worst, and
/// that counts as no faster than a version that takes its time.
fn slower(samples: &[Sample], ratio: u64) -> Option<(u64, u64)> {
    let (mut old, mut new) = per_event(samples);
    old.sort_unstable();
    new.sort_unstable();
    let (old, new, least) = if new.len() >= SAMPLES_MIN {
        (old[old.len() / 2], new[new.len() / 2], SHADOW_EVENT_TIME_MIN)
    } else {
        (*old.last()?, *new.first()?, SHADOW_FEW_EVENT_TIME_MIN)
    };
    let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
    (new > old.max(least).saturating_mul(ratio)).then_some((old, new))
}

/// Nanoseconds for an event, of each batch: (old, new). The first batches count only where there are no others.
fn per_event(samples: &[Sample]) -> (Vec<u64>, Vec<u64>) {
    let warm = samples.iter().any(|sample| !sample.first);
    let counted = samples.iter().filter(|sample| sample.events > 0 && !(warm && sample.first));
    let each = |time: Duration, events: u64| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / events;
    counted.map(|s| (each(s.old, s.events), each(s.new, s.events))).unzip()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds a shadow's parts")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of one event, by microseconds in the running version and in the candidate.
    fn samples(micros: &[(u64, u64)]) -> Vec<Sample> {
        let sample = |&(old, new): &(u64, u64)| Sample {
            events: 1,
            old: Duration::from_micros(old),
            new: Duration::from_micros(new),
            first: false,
        };
        micros.iter().map(sample).collect()
    }

    #[test]
    fn a_few_samples_refuse_only_what_is_slow_by_far() {
        assert_eq!(slower(&[], 3), None);
        assert_eq!(slower(&samples(&[(0, 55)]), 3), None);
        assert_eq!(slower(&samples(&[(0, 599), (1, 20_000)]), 3), None, "the best of it counts");
        assert_eq!(slower(&samples(&[(0, 601), (1, 20_000)]), 3), Some((1_000, 601_000)));
        assert_eq!(slower(&samples(&[(5_000, 14_000)]), 3), None);
        assert_eq!(slower(&samples(&[(5_000, 16_000)]), 3), Some((5_000_000, 16_000_000)));
    }

    #[test]
    fn the_medians_of_many_samples_decide() {
        let many = |micros: (u64, u64)| samples(&[micros; 9]);
        assert_eq!(slower(&many((0, 60)), 3), None);
        assert_eq!(slower(&many((0, 61)), 3), Some((0, 61_000)));
        assert_eq!(slower(&many((30, 90)), 3), None);
        assert_eq!(slower(&many((30, 91)), 3), Some((30_000, 91_000)));
        let mut noisy = many((30, 40));
        noisy.extend(samples(&[(30, 1_000_000); 4]));
        assert_eq!(slower(&noisy, 3), None);
    }
}
