//! Taking over: both versions stand still at one position, the store puts the one in the other's place, and the new
//! one goes on under the plugin's name.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use tracing::{info, warn};

use super::Rebuilding;
use crate::error::Classify as _;
use crate::event::Position;
use crate::limits::{
    REBUILD_AGAIN_LATE, REBUILD_AGAIN_MAX, REBUILD_AGAIN_MIN, REBUILD_HOLD_MAX, REBUILD_LATE_MAX,
};
use crate::plugins::registry::deploy::running;
use crate::plugins::registry::{Entry, Registry};
use crate::plugins::{Deployment, Flip, FlipReport, Proof, RebuildError, RebuildStage, RebuildStep};
use crate::processors::{Ahead, ProcessorFactory, Runner, RunnerStatus, TaskState};
use crate::telemetry::metrics::{REBUILD_HOLD_SECONDS, REBUILD_TRIES, REBUILDS_ENDED};

/// Lets both go on, however the try ends. Who was cut off is not concerned.
struct Held<'a>([&'a Runner; 2]);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for runner in self.0 {
            runner.release();
        }
    }
}

impl Registry {
    /// Tries once to take over. What goes wrong leaves everything as it was, and is tried again later.
    pub(super) async fn try_to_flip(
        &self,
        rebuilding: &Rebuilding,
        runner: &Runner,
        factory: &Arc<dyn ProcessorFactory>,
    ) {
        // Nothing else changes the plugin meanwhile.
        let Ok(_turn) = self.take_turn(&rebuilding.plugin).await else { return };
        if rebuilding.cancel.is_cancelled() || !rebuilding.is_open() {
            return;
        }
        counter!(REBUILD_TRIES).increment(1);
        rebuilding.change(|progress| {
            progress.stage = RebuildStage::CaughtUp;
            progress.tries += 1;
        });
        RebuildStep::CaughtUp.reached();
        let tried = match self.entry(&rebuilding.plugin) {
            Ok(entry) => self.flip(rebuilding, entry, runner, factory).await,
            Err(error) => Err(error.to_string()),
        };
        let Err(message) = tried else { return };
        let mut state = rebuilding.state();
        (state.progress.stage, state.progress.message) = (RebuildStage::CaughtUp, message);
        let (wait, next) = waits(state.late, state.again.1);
        state.again = (Instant::now() + wait, next);
    }

    async fn flip(
        &self,
        rebuilding: &Rebuilding,
        entry: Entry,
        runner: &Runner,
        factory: &Arc<dyn ProcessorFactory>,
    ) -> Result<(), String> {
        let Some(old) = running(&entry) else {
            let why = if entry.deployment.paused { "is paused" } else { "does not run for all tenants" };
            return Err(format!("the plugin {why}: both versions have to come to one position"));
        };
        if let Some(holder) = old.status().standby {
            return Err(format!("host {holder} runs the plugin"));
        }
        if let Some(why) = stuck(&old.status(), &runner.status()) {
            return Err(format!("the two versions cannot come to one position; {why}"));
        }
        rebuilding.change(|progress| progress.stage = RebuildStage::Holding);
        let begun = Instant::now();
        let held = Held([&old, runner]);
        let newest = *self.inner.parts.engine.log.tail().newest().borrow();
        let standing = tokio::time::timeout(REBUILD_HOLD_MAX, stand_together(&old, runner, newest)).await;
        let Ok(barrier) = standing else {
            rebuilding.state().late += 1;
            return Err(who_is_late(&old.status(), &runner.status()));
        };
        rebuilding.state().late = 0;
        RebuildStep::Holding.reached();
        let (progress, events) = (rebuilding.progress(), runner.status().counts.events);
        let deployment = Deployment {
            deployed_at: self.now(),
            proof: Proof::Rebuilt { events },
            ..rebuilding.deployment.clone()
        };
        // What was left out until now is in the record before it is closed.
        let noted = self.inner.parts.rebuilds.note(rebuilding.number, progress.clone()).await;
        noted.map_err(|error| error.to_string())?;
        let flip = Flip {
            number: rebuilding.number,
            barrier,
            deployment: deployment.clone(),
            accept_unemitted: progress.accept_unemitted,
        };
        let report = match self.inner.parts.rebuilds.flip(flip).await {
            Ok(report) => report,
            Err(RebuildError::Unemitted(report)) => {
                let message = RebuildError::Unemitted(report.clone()).to_string();
                rebuilding.change(|progress| progress.report = Some(*report));
                return Err(message);
            }
            // It may have happened all the same.
            Err(error @ RebuildError::Backend(_)) => {
                let report = self.flipped_after_all(rebuilding, &entry, [&old, runner]).await;
                report.ok_or_else(|| error.to_string())?
            }
            Err(error) => return Err(error.to_string()),
        };
        RebuildStep::Flipped.reached();
        old.cut_off();
        runner.cut_off();
        drop(held);
        self.serve_rebuilt(rebuilding, entry, factory, deployment);
        histogram!(REBUILD_HOLD_SECONDS).record(begun.elapsed().as_secs_f64());
        counter!(REBUILDS_ENDED, "result" => "flipped").increment(1);
        self.end_flipped(rebuilding, report, vec![old, runner.clone()]);
        self.declare_rebuilt(&rebuilding.plugin, factory).await;
        Ok(())
    }

    /// Asks the store until it says whether a flip has happened. While that is not known neither version goes on: the
    /// old one might write into what is not its own any more. Both begin again where it has not. Answers what it did, where it
    /// did.
    async fn flipped_after_all(
        &self,
        rebuilding: &Rebuilding,
        entry: &Entry,
        both: [&Runner; 2],
    ) -> Option<FlipReport> {
        let mut cut_off = false;
        loop {
            let error = match self.inner.parts.rebuilds.list().await {
                Ok(records) => {
                    let record = records.into_iter().find(|record| record.number == rebuilding.number);
                    let progress = record.map(|record| record.progress).unwrap_or_default();
                    if progress.stage == RebuildStage::Flipped {
                        return progress.report;
                    }
                    if cut_off {
                        self.run_both_again(rebuilding, entry.clone(), both);
                    }
                    return None;
                }
                Err(error) => error,
            };
            if !cut_off {
                warn!(plugin.name = rebuilding.plugin, error.kind = error.code(), error.blame = error.blame().as_str(), %error, "it is not known whether a rebuild has taken over: the plugin stands still until it is");
                both.into_iter().for_each(Runner::cut_off);
                cut_off = true;
            }
            rebuilding
                .say(RebuildStage::Holding, format!("it is not known whether it has taken over: {error}"));
            if self.inner.closing.load(Ordering::SeqCst) {
                return None;
            }
            tokio::time::sleep(REBUILD_AGAIN_MIN).await;
        }
    }

    /// What was cut off goes on from what it has committed: the plugin now, and the rebuild with the next look.
    fn run_both_again(&self, rebuilding: &Rebuilding, entry: Entry, both: [&Runner; 2]) {
        let runner = Some(self.run(both[0].factory(), &entry.deployment));
        self.entries().insert(rebuilding.plugin.clone(), Entry { runner, ..entry });
        rebuilding.take_runner();
        self.let_go(both.into_iter().cloned().collect());
    }

    /// The plugin is what was rebuilt: it runs under its own name, and begins where both stood.
    fn serve_rebuilt(
        &self,
        rebuilding: &Rebuilding,
        entry: Entry,
        factory: &Arc<dyn ProcessorFactory>,
        deployment: Deployment,
    ) {
        let manifest = Some(factory.manifest().clone());
        let runner = Some(self.run(Arc::clone(factory), &deployment));
        let entry = Entry { deployment, manifest, runner, failure: None, ..entry };
        self.entries().insert(rebuilding.plugin.clone(), entry);
    }

    /// Beside the run: a log elsewhere may be away for a moment, and there the run declares them by itself.
    async fn declare_rebuilt(&self, plugin: &str, factory: &Arc<dyn ProcessorFactory>) {
        if self.inner.parts.engine.shared_log.is_some() {
            return;
        }
        if let Err(error) = self.declare_scopes(plugin, &factory.manifest().changes).await {
            warn!(plugin.name = plugin, error.kind = error.code(), error.blame = error.blame().as_str(), %error, "the change scopes of a rebuilt plugin are declared at the next start only");
        }
    }

    fn end_flipped(&self, rebuilding: &Rebuilding, report: FlipReport, former: Vec<Runner>) {
        info!(
            plugin.name = rebuilding.plugin,
            number = rebuilding.number,
            revision = report.revision,
            stream.position = report.barrier,
            "rebuild took over"
        );
        {
            let mut state = rebuilding.state();
            state.pace.events = former.last().map_or(0, |runner| runner.status().counts.events);
            state.runner = None;
            state.progress.report = Some(report);
            (state.progress.stage, state.progress.message) = (RebuildStage::Flipped, String::new());
        }
        rebuilding.cancel.cancel();
        self.let_go(former);
    }

    /// Gives back what runs hold that were cut off. The plugin's own lease stays where another run of it keeps it.
    pub(in crate::plugins::registry) fn let_go(&self, runners: Vec<Runner>) {
        self.inner.parts.engine.runtime.spawn(async move {
            for runner in runners {
                runner.stop(Duration::ZERO).await;
            }
        });
    }
}

/// How long to wait now, and the next time. Whoever was late often stands in the plugin's way for nothing.
fn waits(late: u32, wait: Duration) -> (Duration, Duration) {
    let now = if late >= REBUILD_LATE_MAX { REBUILD_AGAIN_LATE } else { wait };
    (now, (wait * 2).min(REBUILD_AGAIN_MAX))
}

/// Has both come to one position, from this one on: what either has handled already moves it on.
///
/// The new one is flushed first. What time brings between the two flushes the old one has done and the new one has
/// still to do: it is done twice rather than never.
async fn stand_together(old: &Runner, new: &Runner, newest: Position) -> Position {
    let mut barrier = newest;
    loop {
        old.halt_at(barrier);
        let stand = match new.hold_at(barrier).await {
            Ok(()) => old.hold_at(barrier).await,
            ahead => ahead,
        };
        match stand {
            Ok(()) => return barrier,
            Err(Ahead(position)) => barrier = barrier.max(position),
        }
    }
}

/// What keeps one of the two from going on, where it has something to do: nobody needs to wait for it.
fn stuck(old: &RunnerStatus, new: &RunnerStatus) -> Option<String> {
    let of = |status: &RunnerStatus, which: &str| {
        status.tasks.iter().find_map(|TaskState { task, blocked, .. }| {
            let why = blocked.as_ref()?;
            let behind = status.behind.iter().any(|(tenant, _)| *tenant == task.tenant);
            behind.then(|| format!("{which}, tenant {}, lane {}: {why}", task.tenant, task.lane))
        })
    };
    of(old, "the old version").or_else(|| of(new, "the rebuild"))
}

/// What kept the two from coming to one position in time.
fn who_is_late(old: &RunnerStatus, new: &RunnerStatus) -> String {
    let failed = [(old, "the old version"), (new, "the rebuild")].into_iter().find_map(|(status, which)| {
        status.failures.first().map(|(tenant, why)| format!("{which}, tenant {tenant}: {why}"))
    });
    let why = stuck(old, new).or(failed).unwrap_or_else(|| "a call takes long, or much is to be done".into());
    format!("the two versions did not come to one position in {} s; {why}", REBUILD_HOLD_MAX.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_often_is_asked_rarely() {
        assert_eq!(waits(0, REBUILD_AGAIN_MIN), (REBUILD_AGAIN_MIN, REBUILD_AGAIN_MIN * 2));
        assert_eq!(waits(REBUILD_LATE_MAX - 1, REBUILD_AGAIN_MAX), (REBUILD_AGAIN_MAX, REBUILD_AGAIN_MAX));
        // Both stand still for as long as a try may take.
        let (wait, next) = waits(REBUILD_LATE_MAX, REBUILD_AGAIN_MAX);
        assert!(wait >= REBUILD_HOLD_MAX * 60, "{wait:?}");
        assert_eq!(next, REBUILD_AGAIN_MAX, "once it was in time, it is tried as before");
    }
}
