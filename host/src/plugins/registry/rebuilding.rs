//! Carrying a rebuild on: it runs beside the plugin until it has what the plugin has, then both stand still at one
//! position, and it takes over (`flipping`).

mod flipping;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Progress, Registry, blocking};
use crate::error::Classify as _;
use crate::event::Position;
use crate::limits::{
    REBUILD_AGAIN_MAX, REBUILD_AGAIN_MIN, REBUILD_IDLE_MAX, REBUILD_LOOK, REBUILD_NEAR_EVENTS,
    REBUILD_NOTE_EVERY, REBUILD_STEP_MAX,
};
use crate::plugins::{
    ControlError, Deployment, DroppedEffects, RebuildError, RebuildProgress, RebuildRecord, RebuildStage,
    RebuildView,
};
use crate::processors::{
    Dropped, Engine, LostPolicy, ProcessorFactory, ProcessorSettings, Renamed, Runner, RunnerStatus,
};

/// A rebuild, as it is known in memory. It stays after its end, to be looked at.
#[derive(Debug)]
pub(super) struct Rebuilding {
    number: u64,
    plugin: String,
    start: Position,
    deployment: Deployment,
    dropped: Arc<Dropped>,
    pub(super) cancel: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    progress: RebuildProgress,
    runner: Option<Runner>,
    pace: Pace,
    /// When it is tried again, and how long it waits after that.
    again: (Instant, Duration),
    /// How often the two versions were late when they were to stand, one try after the other.
    late: u32,
    noted: (Instant, RebuildProgress),
}

/// How fast it and the log move.
#[derive(Debug, Default)]
struct Pace {
    at: Option<Instant>,
    position: Position,
    newest: Position,
    events: u64,
    positions_per_s: f64,
    events_per_s: f64,
    log_per_s: f64,
}

impl Pace {
    /// Takes a look in; a number counts once it is of a second or so, and of a step: positions move by whole commits, which
    /// may take longer than that. What was there at the first look has not come since: it says nothing about how fast the
    /// log grows.
    fn look(&mut self, now: Instant, position: Position, newest: Position, events: u64) {
        if let Some(at) = self.at {
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            let stands = position == self.position && seconds < REBUILD_STEP_MAX.as_secs_f64();
            if seconds < 1.0 || stands {
                return;
            }
            let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            self.positions_per_s = per_s(position.0, self.position.0);
            self.events_per_s = per_s(events, self.events);
            self.log_per_s = per_s(newest.0, self.newest.0);
        }
        (self.at, self.position, self.newest, self.events) = (Some(now), position, newest, events);
    }
}

impl Rebuilding {
    pub(super) fn new(record: RebuildRecord) -> Self {
        let RebuildRecord { number, deployment, start, progress } = record;
        let now = Instant::now();
        let dropped = Arc::new(Dropped::from_counts(progress.dropped.emitted, progress.dropped.appended));
        let noted = (now, progress.clone());
        let again = (now, REBUILD_AGAIN_MIN);
        Self {
            number,
            plugin: deployment.plugin.clone(),
            start,
            deployment,
            dropped,
            cancel: CancellationToken::new(),
            state: Mutex::new(State { progress, runner: None, pace: Pace::default(), again, late: 0, noted }),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state().progress.stage, RebuildStage::Flipped | RebuildStage::Abandoned)
    }

    pub(super) fn under_way(&self) -> ControlError {
        RebuildError::Running { plugin: self.plugin.clone(), number: self.number }.into()
    }

    pub(super) fn runner(&self) -> Option<Runner> {
        self.state().runner.clone()
    }

    pub(super) fn take_runner(&self) -> Option<Runner> {
        self.state().runner.take()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut RebuildProgress)) {
        change(&mut self.state().progress);
    }

    /// With what was left out until now. Nobody stands still in what is written down.
    pub(super) fn progress(&self) -> RebuildProgress {
        let progress = self.state().progress.clone();
        let stage = match progress.stage {
            RebuildStage::Holding | RebuildStage::CaughtUp => RebuildStage::Filling,
            stage => stage,
        };
        RebuildProgress { stage, dropped: self.dropped(), ..progress }
    }

    /// What it would tell of may be lost, and it tries to take over at once.
    pub(super) fn accept_unemitted(&self) {
        let mut state = self.state();
        state.progress.accept_unemitted = true;
        (state.again, state.late) = ((Instant::now(), REBUILD_AGAIN_MIN), 0);
    }

    fn dropped(&self) -> DroppedEffects {
        DroppedEffects { emitted: self.dropped.emitted(), appended: self.dropped.appended() }
    }

    fn say(&self, stage: RebuildStage, message: impl Into<String>) {
        let message = message.into();
        self.change(|progress| (progress.stage, progress.message) = (stage, message));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self, newest: Position) -> RebuildView {
        let status = self.runner().map(|runner| runner.status());
        let state = self.state();
        let progress = &state.progress;
        let ended = progress.report.as_ref().filter(|_| progress.stage == RebuildStage::Flipped);
        let position = match (&status, ended) {
            (_, Some(report)) => report.barrier,
            (Some(status), None) => status.done_through.0,
            (None, None) => 0,
        };
        let left = newest.0.saturating_sub(position) as f64;
        let gain = state.pace.positions_per_s - state.pace.log_per_s;
        RebuildView {
            plugin: self.plugin.clone(),
            number: self.number,
            stage: progress.stage,
            from: self.deployment.from,
            start: self.start.0,
            lanes: self.deployment.lanes,
            version: self.deployment.version.clone(),
            digest: self.deployment.digest.clone(),
            began_at: self.deployment.deployed_at,
            began_by: self.deployment.deployed_by.clone(),
            position,
            newest: newest.0,
            events_done: status.as_ref().map_or(state.pace.events, |status| status.counts.events),
            events_per_s: rounded(state.pace.events_per_s),
            eta_s: (status.is_some() && gain >= 1.0).then(|| rounded(left / gain)),
            dropped: self.dropped(),
            tries: progress.tries,
            accept_unemitted: progress.accept_unemitted,
            message: progress.message.clone(),
            report: progress.report.clone(),
        }
    }
}

impl Registry {
    /// Has a rebuild carried on, until it has ended or the host does.
    pub(super) fn carry_on(&self, rebuilding: Arc<Rebuilding>, factory: Option<Arc<dyn ProcessorFactory>>) {
        let (inner, caller) = (Arc::downgrade(&self.inner), self.caller);
        self.inner.parts.engine.runtime.spawn(async move {
            let mut factory = factory;
            loop {
                let Some(registry) = inner.upgrade().map(|inner| Self { inner, caller }) else { return };
                let wait = registry.step(&rebuilding, &mut factory).await;
                drop(registry);
                tokio::select! {
                    () = rebuilding.cancel.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
    }

    /// Looks once, and does what is to be done. Answers when to look again.
    async fn step(
        &self,
        rebuilding: &Rebuilding,
        loaded: &mut Option<Arc<dyn ProcessorFactory>>,
    ) -> Duration {
        if rebuilding.cancel.is_cancelled() || !rebuilding.is_open() {
            rebuilding.cancel.cancel();
            return REBUILD_LOOK;
        }
        let factory = match loaded {
            Some(factory) => Arc::clone(factory),
            None => match self.load_rebuilt(rebuilding).await {
                Ok(factory) => Arc::clone(loaded.insert(factory)),
                Err(error) => {
                    warn!(plugin.name = rebuilding.plugin, error.kind = error.code(), error.blame = error.blame().as_str(), %error, "the version of a rebuild cannot be loaded");
                    rebuilding.say(RebuildStage::Filling, error.to_string());
                    return REBUILD_AGAIN_MAX;
                }
            },
        };
        let Some(runner) = self.begin_to_run(rebuilding, &factory) else { return REBUILD_LOOK };
        let status = runner.status();
        let newest = self.inner.parts.engine.log.bounds().newest;
        let near = {
            let mut state = rebuilding.state();
            state.pace.look(Instant::now(), status.done_through, newest, status.counts.events);
            REBUILD_NEAR_EVENTS.max(rounded(state.pace.log_per_s))
        };
        if let Some(why) = lost(&status) {
            let _turn = self.take_turn(&rebuilding.plugin).await;
            if rebuilding.is_open()
                && let Err(error) = self.end_rebuild(rebuilding, &why).await
            {
                warn!(plugin.name = rebuilding.plugin, error.kind = error.code(), error.blame = "host", %error, "a rebuild whose events are gone stays");
            }
            return REBUILD_AGAIN_MAX;
        }
        if let Some((tenant, failure)) = status.failures.first() {
            rebuilding.say(RebuildStage::Filling, format!("tenant {tenant}: {failure}"));
        } else if newest.0.saturating_sub(status.done_through.0) > near {
            rebuilding.say(RebuildStage::Filling, "");
        } else if rebuilding.state().again.0 <= Instant::now() {
            self.try_to_flip(rebuilding, &runner, &factory).await;
        }
        self.note_now_and_then(rebuilding).await;
        REBUILD_LOOK
    }

    /// The very version that was asked for, with what it was asked for.
    async fn load_rebuilt(&self, rebuilding: &Rebuilding) -> Result<Arc<dyn ProcessorFactory>, ControlError> {
        let artifacts = Arc::clone(&self.inner.parts.artifacts);
        let digest = rebuilding.deployment.digest.clone();
        let component = blocking(move || artifacts.get(&digest)).await?;
        let own = rebuilding.deployment.settings.clone();
        Ok(self.load(component.into(), own, Progress::default()).await?)
    }

    /// Its run, which begins now where it has none. None once it is given up.
    fn begin_to_run(&self, rebuilding: &Rebuilding, factory: &Arc<dyn ProcessorFactory>) -> Option<Runner> {
        let mut state = rebuilding.state();
        if rebuilding.cancel.is_cancelled() {
            return None;
        }
        if state.runner.is_none() {
            let parts = &self.inner.parts;
            let renamed =
                Renamed::new(Arc::clone(factory), rebuilding.number, Arc::clone(&rebuilding.dropped));
            let (on_failure, _) = self.policies(&rebuilding.deployment);
            let settings = ProcessorSettings {
                lanes: rebuilding.deployment.lanes,
                start: rebuilding.start,
                on_failure,
                // What it lacks nobody could add.
                on_position_lost: LostPolicy::Stop,
                background: true,
                idle_max: parts.processors.idle_max.min(REBUILD_IDLE_MAX),
                ..parts.processors.clone()
            };
            // What it makes stays in this host's store, whoever runs the plugin: it has nothing to ask the others for.
            let engine = Engine { shared_log: None, ..parts.engine.clone() };
            state.runner = Some(Runner::start(&engine, Arc::new(renamed), settings));
        }
        state.runner.clone()
    }

    async fn note_now_and_then(&self, rebuilding: &Rebuilding) {
        let progress = rebuilding.progress();
        {
            let mut state = rebuilding.state();
            let (at, noted) = &state.noted;
            if *noted == progress || at.elapsed() < REBUILD_NOTE_EVERY {
                return;
            }
            state.noted = (Instant::now(), progress);
        }
        if rebuilding.is_open() {
            self.write_down_rebuild(rebuilding).await;
        }
    }
}

/// Whose events are gone: nothing can bring them back.
fn lost(status: &RunnerStatus) -> Option<String> {
    let mut lost = status.failures.iter().filter(|(_, why)| why.starts_with("position_lost"));
    lost.next().map(|(tenant, why)| format!("tenant {tenant}: {why}"))
}

fn rounded(number: f64) -> u64 {
    // Saturates, and nothing is below 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let rounded = number.max(0.0).round() as u64;
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_there_before_is_none_that_grows() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        let newest = Position(1_000_000);
        pace.look(begun, Position(400), newest, 0);
        assert_eq!((pace.positions_per_s, pace.events_per_s, pace.log_per_s), (0.0, 0.0, 0.0));
        // Otherwise it would be near at once, and the plugin would stand still for a rebuild that has far to go.
        pace.look(after(2), Position(2_400), newest, 1_000);
        assert_eq!((pace.positions_per_s, pace.events_per_s, pace.log_per_s), (1_000.0, 500.0, 0.0));
        pace.look(after(2) + Duration::from_millis(900), Position(9_000), newest, 9_000);
        assert_eq!(pace.positions_per_s, 1_000.0, "too short a time for a number");
        pace.look(after(4), Position(2_600), Position(1_000_050), 1_010);
        assert_eq!((pace.positions_per_s, pace.events_per_s, pace.log_per_s), (100.0, 5.0, 25.0));
        pace.look(after(8), Position(2_600), Position(1_000_050), 1_010);
        assert_eq!(pace.positions_per_s, 100.0, "a commit may take as long");
        pace.look(after(14), Position(2_600), Position(1_000_050), 1_010);
        assert_eq!((pace.positions_per_s, pace.events_per_s, pace.log_per_s), (0.0, 0.0, 0.0));
    }
}
