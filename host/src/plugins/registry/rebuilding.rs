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
    REBUILD_NOTE_EVERY,
};
use crate::plugins::{
    ControlError, Deployment, DroppedEffects, RebuildError, RebuildProgress, RebuildRecord, RebuildStage,
    RebuildView,
};
use crate::processors::{
    Dropped, LostPolicy, ProcessorFactory, ProcessorSettings, Renamed, Runner, RunnerStatus,
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
    /// None before the first look: what is there by then has come at no pace.
    at: Option<Instant>,
    position: Position,
    newest: Position,
    events: u64,
    positions_per_s: f64,
    events_per_s: f64,
    log_per_s: f64,
}

impl Pace {
    /// Takes a look in; a number counts once it is of a second or so.
    fn look(&mut self, position: Position, newest: Position, events: u64) {
        let Some(at) = self.at else {
            (self.at, self.position, self.newest, self.events) =
                (Some(Instant::now()), position, newest, events);
            return;
        };
        let seconds = at.elapsed().as_secs_f64();
        if seconds < 1.0 {
            return;
        }
        let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.positions_per_s = per_s(position.0, self.position.0);
        self.events_per_s = per_s(events, self.events);
        self.log_per_s = per_s(newest.0, self.newest.0);
        (self.at, self.position, self.newest, self.events) = (Some(Instant::now()), position, newest, events);
    }
}

impl Rebuilding {
    pub(super) fn new(record: RebuildRecord) -> Self {
        let RebuildRecord { number, deployment, start, progress } = record;
        let now = Instant::now();
        let pace = Pace::default();
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
            state: Mutex::new(State { progress, runner: None, pace, again, late: 0, noted }),
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
            state.pace.look(status.done_through, newest, status.counts.events);
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
        } else if let Some(holder) = &status.standby {
            rebuilding.say(RebuildStage::Filling, format!("host {holder} runs the plugin"));
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
            state.runner = Some(Runner::start(&parts.engine, Arc::new(renamed), settings));
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
    fn what_was_in_the_log_before_has_no_pace() {
        let mut pace = Pace::default();
        pace.look(Position::START, Position(1_000_000), 0);
        assert_eq!(rounded(pace.log_per_s), 0);
        // A while later.
        pace.at = Instant::now().checked_sub(Duration::from_secs(10));
        pace.look(Position(500), Position(1_000_100), 500);
        assert!((1..=10).contains(&rounded(pace.log_per_s)), "{pace:?}");
        assert!((1..=50).contains(&rounded(pace.positions_per_s)), "{pace:?}");
    }
}
