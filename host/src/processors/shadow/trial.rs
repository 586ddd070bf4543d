//! One instance of a candidate at work, and what it is held to.

use std::sync::Arc;
use std::time::Duration;

use super::super::core_time::OwnTime;
use super::super::{Failure, FailureKind, FlushReason, LoadError, Processor, TaskContext, Trap, TrapKind};
use super::compare::Comparison;
use super::keyed::ShadowState;
use super::offers::Handled;
use super::task::context_with;
use super::{Sample, Shadow, ShadowFault, ShadowRefusal, ShadowReport, TaskFigures};
use crate::checkpoints::{EffectBatch, SavedState, TaskId};
use crate::event::EventBatch;
use crate::limits::{SHADOW_GROWTH_BYTES_MIN, SHADOW_MEMORY_BYTES_SPARE};

/// A candidate that handles what the running version has handled.
pub(super) struct Trial {
    shadow: Arc<Shadow>,
    id: TaskId,
    context: TaskContext,
    instance: Box<dyn Processor>,
    state: Arc<ShadowState>,
    comparison: Comparison,
    report: ShadowReport,
    events: u64,
    memory: Vec<Memory>,
}

/// Linear memory after so many events.
#[derive(Clone, Copy, Debug)]
struct Memory {
    events: u64,
    old: u64,
    new: u64,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("id", &self.id).field("events", &self.events).finish_non_exhaustive()
    }
}

impl Trial {
    pub(super) fn begin(
        shadow: &Arc<Shadow>,
        id: &TaskId,
        context: &TaskContext,
        state: ShadowState,
        saved: Option<&SavedState>,
    ) -> Result<Self, ShadowRefusal> {
        let state = Arc::new(state);
        let context = context_with(context, &state);
        let instance = make(shadow, &context, saved)?;
        Ok(Self {
            comparison: Comparison::new(Arc::clone(&shadow.mapping), id.tenant.clone()),
            shadow: Arc::clone(shadow),
            id: id.clone(),
            context,
            instance,
            state,
            report: ShadowReport::default(),
            events: 0,
            memory: Vec::new(),
        })
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn is_full(&self) -> bool {
        self.comparison.is_full()
    }

    /// Handles what the running version has. When it turns out meanwhile that
    /// the state it reads is not that of its place, nothing of it counts.
    pub(super) fn handle(
        &mut self,
        offered: &Handled,
        replayed: bool,
        is_dropped: &dyn Fn() -> bool,
    ) -> Result<(), ShadowRefusal> {
        let wanted = offered.handled + usize::from(offered.rejected);
        let (batch, rejected) = self.subscribed(offered, wanted);
        let mut effects = Vec::new();
        let mut took = Duration::ZERO;
        let mut failed = false;
        let mut from = 0;
        while from < batch.len() {
            let part = if from == 0 { Arc::clone(&batch) } else { part_of(&batch, from..batch.len()) };
            let begun = OwnTime::begin();
            let outcome = self.instance.handle(&part);
            took += begun.elapsed();
            if is_dropped() {
                return Ok(());
            }
            let outcome = outcome.map_err(|trap| fell(&trap, "handling events"))?;
            self.state.add(&outcome.effects);
            effects.push(outcome.effects);
            from += outcome.handled;
            let Some(failure) = outcome.failure else {
                if outcome.handled < part.len() {
                    return Err(refusal(ShadowFault::Trap, "it handled a part and named no failure".into()));
                }
                break;
            };
            failed = true;
            self.fail(&failure, rejected == Some(from))?;
            from += 1;
        }
        if offered.rejected && !failed {
            self.shadow.error_of_old(false);
        }
        self.comparison.take(&offered.effects, &effects, &mut self.report);
        let first = self.events == 0;
        self.events += wanted as u64;
        let (events, old, new) = (wanted as u64, offered.took, took);
        let sample = (!failed && !offered.rejected).then_some(Sample { events, old, new, first });
        self.shadow.count(sample, events, replayed);
        let memory = Memory { events: self.events, old: offered.memory, new: self.instance.memory_bytes() };
        self.memory.push(memory);
        Ok(())
    }

    /// The first `wanted` events as far as the candidate subscribes to them, and where the rejected one is.
    fn subscribed(&self, offered: &Handled, wanted: usize) -> (Arc<EventBatch>, Option<usize>) {
        let batch = &offered.batch;
        let rejected = offered.rejected.then_some(offered.handled);
        let Some(subscription) = &self.shadow.subscription else {
            let all = wanted == batch.len();
            return (if all { Arc::clone(batch) } else { part_of(batch, 0..wanted) }, rejected);
        };
        let mut part = EventBatch::new(batch.tenant.clone());
        let mut place = None;
        for index in 0..wanted {
            let (aggregate, event_type) = batch.routing(index);
            if subscription.matches(aggregate, event_type) {
                if rejected == Some(index) {
                    place = Some(part.len());
                }
                part.push_from(batch, index);
            }
        }
        (Arc::new(part), place)
    }

    fn fail(&self, failure: &Failure, old_failed: bool) -> Result<(), ShadowRefusal> {
        if failure.kind == FailureKind::Fatal {
            return Err(refusal(ShadowFault::Fatal, format!("it stopped: {}", failure.message)));
        }
        if old_failed {
            self.shadow.error_of_old(true);
            return Ok(());
        }
        self.shadow.error(&failure.message)
    }

    pub(super) fn flush(&mut self, reason: FlushReason, old: &EffectBatch) -> Result<(), ShadowRefusal> {
        match self.instance.flush(reason).map_err(|trap| fell(&trap, "flushing"))? {
            Ok(effects) => {
                self.state.add(&effects);
                self.comparison.take(old, &[effects], &mut self.report);
                Ok(())
            }
            Err(failure) => self.fail(&failure, false),
        }
    }

    /// The end: rows are compared, and the snapshot must be one that it goes on from.
    pub(super) fn finish(mut self, old_state: Option<u64>) -> Result<(), ShadowRefusal> {
        let mut figures = TaskFigures { old_state: old_state.unwrap_or_default(), ..TaskFigures::default() };
        if let Some(last) = self.memory.last() {
            (figures.old_memory, figures.new_memory) = (last.old, last.new);
        }
        let content_type = self.shadow.factory.manifest().state_content_type.clone();
        let checked = match content_type {
            None => Ok(()),
            Some(content_type) => self.check_snapshot(content_type, &mut figures),
        };
        self.comparison.finish(&mut self.report);
        self.shadow.merge(&self.id, &self.report, figures);
        checked?;
        check_memory(&self.memory, &figures)
    }

    fn check_snapshot(
        &mut self,
        content_type: String,
        figures: &mut TaskFigures,
    ) -> Result<(), ShadowRefusal> {
        let mut snapshot = || {
            self.instance.snapshot().map_err(|trap| match trap.kind {
                TrapKind::Host | TrapKind::Timeout => fell(&trap, "giving its snapshot"),
                _ => refusal(ShadowFault::Snapshot, format!("it fell giving its snapshot: {trap}")),
            })
        };
        let state = snapshot()?;
        figures.new_state = state.len() as u64;
        if snapshot()? != state {
            let message = "two snapshots in a row differ: its state would depend on when it is taken";
            return Err(refusal(ShadowFault::Impure, message.into()));
        }
        let saved = SavedState { content_type, state };
        make(&self.shadow, &self.context, Some(&saved)).map(drop).map_err(|refused| match refused.fault {
            ShadowFault::State => {
                refusal(ShadowFault::Snapshot, format!("it does not load its own snapshot: {refused}"))
            }
            _ => refused,
        })
    }
}

fn make(
    shadow: &Shadow,
    context: &TaskContext,
    saved: Option<&SavedState>,
) -> Result<Box<dyn Processor>, ShadowRefusal> {
    let loaded = || {
        let mut instance = shadow.factory.instantiate(context.clone())?;
        instance.load(saved)?;
        Ok::<_, LoadError>(instance)
    };
    loaded().map_err(|error| match error {
        LoadError::Refused { message } => refusal(ShadowFault::State, message),
        error @ LoadError::StateTooLarge { .. } => refusal(ShadowFault::State, error.to_string()),
        LoadError::Trap(trap) => fell(&trap, "loading a state"),
    })
}

/// Whether it uses far more memory than the running version, or grows without an end.
fn check_memory(memory: &[Memory], figures: &TaskFigures) -> Result<(), ShadowRefusal> {
    let max = figures.old_memory.saturating_mul(2).saturating_add(SHADOW_MEMORY_BYTES_SPARE);
    if figures.new_memory > max {
        let message = format!(
            "its memory is {} bytes, the running version's {}; at most twice as much and {} are possible",
            figures.new_memory, figures.old_memory, SHADOW_MEMORY_BYTES_SPARE
        );
        return Err(refusal(ShadowFault::Memory, message));
    }
    let (Some(first), Some(last)) = (memory.first(), memory.last()) else { return Ok(()) };
    // The heap of a young instance grows to where its collector begins, and the old one has long been there.
    if last.new <= last.old {
        return Ok(());
    }
    let grown = last.new.saturating_sub(first.new);
    let grown_old = last.old.saturating_sub(first.old);
    let events = last.events - first.events;
    if grown <= SHADOW_GROWTH_BYTES_MIN.max(grown_old.saturating_mul(2)) || events == 0 {
        return Ok(());
    }
    // A table that doubles grows once; a leak grows in every quarter of the run.
    let at = |quarter: u64| {
        let events = first.events + events * quarter / 4;
        memory.iter().rev().find(|m| m.events <= events).map_or(first.new, |m| m.new)
    };
    let steady = (0..4).all(|quarter| at(quarter + 1).saturating_sub(at(quarter)) > grown / 16);
    if !steady {
        return Ok(());
    }
    let message = format!(
        "it leaks: its memory grew by {grown} bytes over {events} events, the running version's by {grown_old}"
    );
    Err(refusal(ShadowFault::Memory, message))
}

fn refusal(fault: ShadowFault, message: String) -> ShadowRefusal {
    ShadowRefusal { fault, message }
}

pub(super) fn fell(trap: &Trap, doing: &str) -> ShadowRefusal {
    let fault = match trap.kind {
        TrapKind::Trap | TrapKind::Output => ShadowFault::Trap,
        TrapKind::Timeout => ShadowFault::Timeout,
        TrapKind::Limit => ShadowFault::Limit,
        TrapKind::Host => ShadowFault::Host,
    };
    refusal(fault, format!("it fell {doing}: {trap}"))
}

/// Part of a batch as a batch of its own.
pub(super) fn part_of(batch: &EventBatch, range: std::ops::Range<usize>) -> Arc<EventBatch> {
    let mut part = EventBatch::with_capacity(batch.tenant.clone(), range.len(), 0);
    for index in range {
        part.push_from(batch, index);
    }
    Arc::new(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Four hundred events, after each ten of which both have so much memory.
    fn judged(old: impl Fn(u64) -> u64, new: impl Fn(u64) -> u64) -> Option<String> {
        let memory: Vec<Memory> = (1..=40)
            .map(|batch| Memory { events: batch * 10, old: old(batch) * MIB, new: new(batch) * MIB })
            .collect();
        let last = memory[memory.len() - 1];
        let figures = TaskFigures { old_memory: last.old, new_memory: last.new, ..TaskFigures::default() };
        check_memory(&memory, &figures).err().map(|refusal| refusal.message)
    }

    #[test]
    fn a_candidate_that_holds_less_than_the_running_version_does_not_leak() {
        // A collector that has not begun yet.
        let growing = |batch| 9 + batch;
        assert_eq!(judged(|_| 73, growing), None);
        assert_eq!(judged(|_| 49, growing), None, "as much is not more");
        let said = judged(|_| 48, growing).expect("it is over, and grows");
        assert!(said.contains("it leaks: its memory grew by 40894464 bytes"), "{said}");
    }

    #[test]
    fn a_young_instance_may_grow_beside_another_young_one() {
        let growing = |batch| 9 + batch;
        assert_eq!(judged(growing, |batch| 10 + batch), None, "both grow alike");
        assert_eq!(judged(|_| 2, |_| 73), None, "what does not grow does not leak");
        let said = judged(|_| 2, |_| 101).expect("it is too much");
        assert!(said.contains("at most twice as much and 100663296 are possible"), "{said}");
    }
}
