//! One run over recorded events.

use std::collections::HashSet;
use std::sync::Arc;

use super::keyed::TrialState;
use super::model::{Fault, Folded, Letter};
use crate::checkpoints::{EffectBatch, SavedState};
use crate::event::EventBatch;
use crate::limits::TRIAL_RETRIES_MAX;
use crate::processors::{
    Failure, FailureKind, FlushReason, LoadError, Processor, ProcessorFactory, TaskContext, Trap, TrapKind,
    key_of,
};

/// A processor and the events that it is tried with. They have their positions.
#[derive(Clone, Copy, Debug)]
pub struct Fold<'a> {
    pub factory: &'a dyn ProcessorFactory,
    pub events: &'a EventBatch,
    /// Only so many of the events, from the first on.
    pub first: usize,
}

/// How the events come. Counts are of events that the subscription lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub batch_events: usize,
    /// After every so many, another instance goes on from what the last one saved.
    pub restart_every: Option<usize>,
    /// After every so many, a tick. Where a plugin wants ticks, one more comes at the end.
    pub tick_every: Option<usize>,
}

/// Why there is no result at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError {
    #[error("it does not begin: {0}")]
    Load(#[from] LoadError),
    #[error("the host could not serve it: {0}")]
    Host(Trap),
}

impl Cut {
    /// Batches of this size, and nothing in between.
    pub fn batches(batch_events: usize) -> Self {
        Self { batch_events, restart_every: None, tick_every: None }
    }

    /// Where the batch that begins here ends at the latest.
    fn end(&self, at: usize, events: usize) -> usize {
        let border =
            |every: Option<usize>| every.map_or(events, |every| (at / every.max(1) + 1) * every.max(1));
        let batch = at.saturating_add(self.batch_events.max(1));
        [batch, border(self.restart_every), border(self.tick_every), events]
            .into_iter()
            .min()
            .unwrap_or(events)
    }
}

impl<'a> Fold<'a> {
    pub fn new(factory: &'a dyn ProcessorFactory, events: &'a EventBatch) -> Self {
        Self { factory, events, first: events.len() }
    }

    /// Begins without a state and hands in all events. What goes wrong with the processor is in the result.
    pub fn run(&self, cut: Cut) -> Result<Folded, FoldError> {
        let subscription = &self.factory.manifest().subscription;
        let passes = |index: &usize| {
            let (aggregate, event_type) = self.events.routing(*index);
            subscription.matches(aggregate, event_type)
        };
        let selected: Vec<usize> = (0..self.first.min(self.events.len())).filter(passes).collect();
        let mut run = Run::begin(*self)?;
        run.folded.events = selected.len();
        let due =
            |every: Option<usize>, at: usize| every.is_some_and(|every| at.is_multiple_of(every.max(1)));
        let mut at = 0;
        while at < selected.len() && !run.has_ended() {
            let end = cut.end(at, selected.len());
            run.handle(&selected[at..end])?;
            at = end;
            if due(cut.restart_every, at) && at < selected.len() {
                run.restart()?;
            }
            if due(cut.tick_every, at) {
                run.tick()?;
            }
        }
        if self.factory.manifest().flush_interval_ms.is_some() {
            run.tick()?;
        }
        Ok(run.finish())
    }
}

struct Run<'a> {
    fold: Fold<'a>,
    context: TaskContext,
    instance: Box<dyn Processor>,
    keyed: Arc<TrialState>,
    folded: Folded,
    /// After the last call that went well.
    saved: Option<SavedState>,
    /// This instance's first snapshot is taken twice.
    looked_twice: bool,
    /// Ordering keys that a letter holds.
    held: HashSet<Vec<u8>>,
    /// The last event that a call had to do with.
    position: u64,
    broken: bool,
}

impl<'a> Run<'a> {
    fn begin(fold: Fold<'a>) -> Result<Self, FoldError> {
        let keyed = Arc::new(TrialState::default());
        let context = TaskContext {
            tenant: fold.events.tenant.clone(),
            lane: 0,
            lanes: 1,
            state: Arc::clone(&keyed) as _,
        };
        let mut instance = fold.factory.instantiate(context.clone()).map_err(LoadError::Trap)?;
        instance.load(None)?;
        let folded = Folded::new(&fold.factory.manifest().tables);
        let mut run = Self {
            fold,
            context,
            instance,
            keyed,
            folded,
            saved: None,
            looked_twice: false,
            held: HashSet::new(),
            position: 0,
            broken: false,
        };
        run.save();
        Ok(run)
    }

    fn has_ended(&self) -> bool {
        self.broken || self.folded.stopped.is_some()
    }

    /// Some events in order: together, and one by one from where an instance falls.
    fn handle(&mut self, indexes: &[usize]) -> Result<(), FoldError> {
        let (mut rest, mut alone, mut tries) = (indexes.to_vec(), false, 0);
        while !self.has_ended() {
            self.pass_over_held(&mut rest);
            if rest.is_empty() {
                break;
            }
            let batch = self.batch(if alone { &rest[..1] } else { &rest });
            match self.instance.handle(&batch) {
                Ok(outcome) => {
                    let handled = outcome.handled.min(batch.len());
                    self.keep(&outcome.effects, Some(&batch));
                    if handled > 0 {
                        tries = 0;
                        rest.drain(..handled);
                        self.position = batch.records()[handled - 1].position;
                        self.save();
                    }
                    match outcome.failure {
                        Some(failure) => {
                            tries += 1;
                            if !self.fail(&rest, &failure, tries) {
                                rest.remove(0);
                                tries = 0;
                            }
                        }
                        None if handled == 0 => {
                            self.folded.stopped = Some("it handled nothing and named no failure".into());
                        }
                        None => {}
                    }
                }
                Err(trap) if trap.kind == TrapKind::Host => return Err(FoldError::Host(trap)),
                Err(trap) => {
                    if batch.len() == 1 {
                        let index = rest.remove(0);
                        self.letter(index, trap.kind.to_string(), trap.said());
                    }
                    alone = true;
                    self.reload()?;
                }
            }
        }
        Ok(())
    }

    /// What becomes of the first of these events. Answers whether it is tried again.
    fn fail(&mut self, rest: &[usize], failure: &Failure, tries: u32) -> bool {
        // A failure is about the event behind the handled ones; where there is none, it is about nothing.
        let Some(index) = rest.first().copied() else {
            self.folded.stopped = Some(format!("it failed without an event: {}", failure.message));
            return true;
        };
        let reason = match failure.kind {
            FailureKind::Retry if tries < TRIAL_RETRIES_MAX => return true,
            FailureKind::Retry => "retries",
            FailureKind::Reject => "reject",
            FailureKind::Fatal => {
                self.folded.stopped = Some(format!("it cannot go on: {}", failure.message));
                "fatal"
            }
        };
        self.letter(index, reason.into(), failure.message.clone());
        false
    }

    fn letter(&mut self, index: usize, reason: String, message: String) {
        let position = self.fold.events.records()[index].position;
        self.folded.letters.push(Letter { position, reason, message });
        self.held.insert(self.key(index));
    }

    fn pass_over_held(&mut self, rest: &mut Vec<usize>) {
        if self.held.is_empty() {
            return;
        }
        let (waiting, going): (Vec<usize>, Vec<usize>) =
            rest.iter().copied().partition(|index| self.held.contains(&self.key(*index)));
        let records = self.fold.events.records();
        self.folded.waiting.extend(waiting.into_iter().map(|index| records[index].position));
        *rest = going;
    }

    fn key(&self, index: usize) -> Vec<u8> {
        key_of(&self.fold.factory.manifest().ordering_key, self.fold.events, index)
    }

    fn batch(&self, indexes: &[usize]) -> EventBatch {
        let mut batch = EventBatch::new(self.fold.events.tenant.clone());
        for index in indexes {
            batch.push_from(self.fold.events, *index);
        }
        batch
    }

    fn keep(&mut self, effects: &EffectBatch, batch: Option<&EventBatch>) {
        self.keyed.add(effects);
        self.folded.take(effects, batch);
    }

    fn tick(&mut self) -> Result<(), FoldError> {
        if self.has_ended() {
            return Ok(());
        }
        let position = self.position;
        match self.instance.flush(FlushReason::Tick) {
            Ok(Ok(effects)) => {
                self.keep(&effects, None);
                self.save();
            }
            Ok(Err(failure)) => self.folded.faults.push(Fault::Flush { position, message: failure.message }),
            Err(trap) if trap.kind == TrapKind::Host => return Err(FoldError::Host(trap)),
            Err(trap) => {
                self.folded.faults.push(Fault::Flush { position, message: trap.to_string() });
                self.reload()?;
            }
        }
        Ok(())
    }

    /// As a commit does after a call.
    fn save(&mut self) {
        let Some(content_type) = self.fold.factory.manifest().state_content_type.clone() else { return };
        let position = self.position;
        let mut taken = self.instance.snapshot();
        if !self.looked_twice
            && let Ok(first) = &taken
        {
            let again = self.instance.snapshot();
            if again.as_ref().is_ok_and(|again| again != first) {
                self.folded.faults.push(Fault::SnapshotUnequal { position });
            }
            if again.is_err() {
                taken = again;
            }
        }
        self.looked_twice = true;
        match taken {
            Ok(state) => self.saved = Some(SavedState { content_type, state }),
            Err(trap) => {
                self.folded.faults.push(Fault::SnapshotFell { position, message: trap.to_string() });
                self.broken = true;
            }
        }
    }

    /// Another instance goes on from what was saved, and has to save the same.
    fn restart(&mut self) -> Result<(), FoldError> {
        if self.has_ended() {
            return Ok(());
        }
        let before = self.saved.clone();
        self.reload()?;
        if self.broken {
            return Ok(());
        }
        self.save();
        if self.saved != before {
            self.folded.faults.push(Fault::StateChanged { position: self.position });
        }
        Ok(())
    }

    fn reload(&mut self) -> Result<(), FoldError> {
        let position = self.position;
        let mut instance = self.fold.factory.instantiate(self.context.clone()).map_err(LoadError::Trap)?;
        match instance.load(self.saved.as_ref()) {
            Ok(()) => {
                self.instance = instance;
                self.looked_twice = false;
            }
            Err(LoadError::Trap(trap)) if trap.kind == TrapKind::Host => return Err(FoldError::Host(trap)),
            Err(error) => {
                self.folded.faults.push(Fault::StateRefused { position, message: error.to_string() });
                self.broken = true;
            }
        }
        Ok(())
    }

    fn finish(self) -> Folded {
        let mut folded = self.folded;
        folded.keyed = self.keyed.all();
        folded.state = self.saved;
        folded
    }
}
