//! A candidate's work for one task: turns on the guest threads, one batch each.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::super::TaskContext;
use super::super::pool::{Schedule, Turned, Turns};
use super::super::proof::Basis;
use super::keyed::ShadowState;
use super::offers::{Ended, Offer, Step, Stretch};
use super::trial::Trial;
use super::{Shadow, ShadowRefusal, lock};
use crate::checkpoints::TaskId;
use crate::event::TenantId;
use crate::limits::SHADOW_STRETCH_EVENTS_MAX;

#[derive(Debug)]
pub(super) struct ShadowTask {
    id: TaskId,
    shadow: Arc<Shadow>,
    schedule: Schedule,
    /// None between two stretches.
    stretch: Mutex<Option<Arc<Stretch>>>,
    trial: Mutex<Option<Trial>>,
}

impl ShadowTask {
    pub(super) fn new(id: TaskId, shadow: Arc<Shadow>) -> Self {
        let schedule = Schedule::default();
        Self { id, shadow, schedule, stretch: Mutex::default(), trial: Mutex::default() }
    }

    /// None while a former stretch is not done with.
    pub(super) fn begin(self: &Arc<Self>, basis: impl FnOnce() -> Basis) -> Option<Arc<Stretch>> {
        let mut stretch = lock(&self.stretch);
        if stretch.is_some() {
            return None;
        }
        let begun = Arc::new(Stretch::new(basis(), Arc::downgrade(self)));
        *stretch = Some(Arc::clone(&begun));
        Some(begun)
    }

    pub(super) fn wake(self: &Arc<Self>, offered: bool) {
        if offered {
            self.shadow.offered.fetch_add(1, Ordering::SeqCst);
        }
        self.shadow.pool.wake(self);
    }

    pub(super) fn is_idle(&self) -> bool {
        lock(&self.stretch).is_none()
    }

    /// Compares what was done, and ends.
    pub(super) fn close(&self) {
        let stretch = lock(&self.stretch).clone();
        if let Some(stretch) = stretch {
            stretch.cut();
        }
    }

    /// Ends where it stands. A call that runs is not waited for.
    pub(super) fn abandon(&self) {
        let stretch = lock(&self.stretch).take();
        if let Some(stretch) = stretch {
            stretch.drop_all();
        }
    }

    /// Answers whether another turn is wanted.
    fn run(&self) -> bool {
        let Some(stretch) = lock(&self.stretch).clone() else {
            lock(&self.trial).take();
            return false;
        };
        let mut trial = lock(&self.trial);
        let end = match stretch.next() {
            Step::Wait => return false,
            Step::Take(offer) => {
                let taken = self.take(&mut trial, &stretch, &offer);
                self.shadow.done.fetch_add(1, Ordering::SeqCst);
                match taken {
                    _ if stretch.is_dropped() => Ended::Dropped,
                    Ok(()) => return true,
                    Err(refusal) => {
                        self.shadow.refuse(refusal);
                        Ended::Dropped
                    }
                }
            }
            Step::Finish(end) => end,
        };
        let trial = trial.take();
        if end != Ended::Dropped
            && let Some(trial) = trial
            && let Err(refusal) = trial.finish(None)
        {
            self.shadow.refuse(refusal);
        }
        lock(&self.stretch).take();
        self.shadow.stretch_over(end != Ended::Whole);
        false
    }

    fn take(&self, trial: &mut Option<Trial>, stretch: &Stretch, offer: &Offer) -> Result<(), ShadowRefusal> {
        let trial = match trial {
            Some(trial) => trial,
            None => {
                let Basis { context, saved } = &stretch.basis;
                let state = ShadowState::new(Arc::clone(&stretch.before), Arc::clone(&context.state));
                let begun = Trial::begin(&self.shadow, &self.id, context, state, saved.as_deref())?;
                trial.insert(begun)
            }
        };
        match offer {
            Offer::Events(handled) => trial.handle(handled, false, &|| stretch.is_dropped())?,
            Offer::Flush(reason, effects) => trial.flush(*reason, effects)?,
        }
        if trial.is_full() || trial.events() >= SHADOW_STRETCH_EVENTS_MAX {
            stretch.end(false);
        }
        Ok(())
    }
}

/// The candidate's own context: the task's, with a view of the state as of the stretch.
pub(super) fn context_with(context: &TaskContext, state: &Arc<ShadowState>) -> TaskContext {
    TaskContext { state: Arc::clone(state) as _, ..context.clone() }
}

impl Turns for ShadowTask {
    fn group(&self) -> &Arc<str> {
        &self.shadow.group
    }

    fn tenant(&self) -> &TenantId {
        &self.id.tenant
    }

    fn turn(self: Arc<Self>) -> Turned {
        Turned { again: self.run(), ..Turned::default() }
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn is_background(&self) -> bool {
        true
    }
}
