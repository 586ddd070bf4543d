//! Carrying a rebuild on: it runs beside the plugin until it has what the plugin has, then both stand still at one
//! position, and it takes over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::deploy::running;
use super::{Entry, Progress, Registry, blocking};
use crate::error::Classify as _;
use crate::event::Position;
use crate::limits::{
    REBUILD_AGAIN_MAX, REBUILD_AGAIN_MIN, REBUILD_HOLD_MAX, REBUILD_IDLE_MAX, REBUILD_LOOK,
    REBUILD_NEAR_EVENTS, REBUILD_NOTE_EVERY,
};
use crate::plugins::{
    ControlError, Deployment, DroppedEffects, Flip, FlipReport, Proof, RebuildError, RebuildProgress,
    RebuildRecord, RebuildStage, RebuildView,
};
use crate::processors::{
    Ahead, Dropped, LostPolicy, ProcessorFactory, ProcessorSettings, Renamed, Runner, RunnerStatus, TaskState,
};
use crate::telemetry::metrics::{REBUILD_HOLD_SECONDS, REBUILD_TRIES, REBUILDS_ENDED};

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
    noted: (Instant, RebuildProgress),
}

/// How fast it and the log move.
#[derive(Debug)]
struct Pace {
    at: Instant,
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
        let seconds = self.at.elapsed().as_secs_f64();
        if seconds < 1.0 {
            return;
        }
        let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.positions_per_s = per_s(position.0, self.position.0);
        self.events_per_s = per_s(events, self.events);
        self.log_per_s = per_s(newest.0, self.newest.0);
        (self.at, self.position, self.newest, self.events) = (Instant::now(), position, newest, events);
    }
}

/// Lets both go on, however the try ends. Who was cut off is not concerned.
struct Held<'a>([&'a Runner; 2]);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for runner in self.0 {
            runner.release();
        }
    }
}

impl Rebuilding {
    pub(super) fn new(record: RebuildRecord) -> Self {
        let RebuildRecord { number, deployment, start, progress } = record;
        let now = Instant::now();
        let pace = Pace {
            at: now,
            position: Position::START,
            newest: Position::START,
            events: 0,
            positions_per_s: 0.0,
            events_per_s: 0.0,
            log_per_s: 0.0,
        };
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
            state: Mutex::new(State { progress, runner: None, pace, again, noted }),
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
        state.again = (Instant::now(), REBUILD_AGAIN_MIN);
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

    /// Tries once to take over. What goes wrong leaves everything as it was, and is tried again later.
    async fn try_to_flip(
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
        rebuilding.change(|progress| progress.tries += 1);
        let tried = match self.entry(&rebuilding.plugin) {
            Ok(entry) => self.flip(rebuilding, entry, runner, factory).await,
            Err(error) => Err(error.to_string()),
        };
        let Err(message) = tried else { return };
        let mut state = rebuilding.state();
        (state.progress.stage, state.progress.message) = (RebuildStage::CaughtUp, message);
        let (_, wait) = state.again;
        state.again = (Instant::now() + wait, (wait * 2).min(REBUILD_AGAIN_MAX));
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
        let barrier = tokio::time::timeout(REBUILD_HOLD_MAX, stand_together(&old, runner, newest)).await;
        let barrier = barrier.map_err(|_| who_is_late(&old.status(), &runner.status()))?;
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
            // It may have happened all the same: then nothing of the old version may go on.
            Err(error @ RebuildError::Backend(_)) => match self.flipped_after_all(rebuilding).await {
                Ok(Some(report)) => report,
                Ok(None) => return Err(error.to_string()),
                Err(unknown) => {
                    old.cut_off();
                    runner.cut_off();
                    return Err(unknown.to_string());
                }
            },
            Err(error) => return Err(error.to_string()),
        };
        old.cut_off();
        runner.cut_off();
        drop(held);
        self.serve_rebuilt(rebuilding, entry, factory, deployment).await;
        histogram!(REBUILD_HOLD_SECONDS).record(begun.elapsed().as_secs_f64());
        counter!(REBUILDS_ENDED, "result" => "flipped").increment(1);
        self.end_flipped(rebuilding, report, vec![old, runner.clone()]);
        Ok(())
    }

    /// What the store says of a flip whose answer was lost.
    async fn flipped_after_all(&self, rebuilding: &Rebuilding) -> Result<Option<FlipReport>, RebuildError> {
        let records = self.inner.parts.rebuilds.list().await?;
        let record = records.into_iter().find(|record| record.number == rebuilding.number);
        Ok(record.filter(|record| !record.is_open()).and_then(|record| record.progress.report))
    }

    /// The plugin is what was rebuilt: it runs under its own name, and begins where both stood.
    async fn serve_rebuilt(
        &self,
        rebuilding: &Rebuilding,
        entry: Entry,
        factory: &Arc<dyn ProcessorFactory>,
        deployment: Deployment,
    ) {
        let manifest = factory.manifest().clone();
        if let Err(error) = self.declare_scopes(&rebuilding.plugin, &manifest.changes).await {
            warn!(plugin.name = rebuilding.plugin, error.kind = error.code(), error.blame = error.blame().as_str(), %error, "the change scopes of a rebuilt plugin are declared at the next start only");
        }
        let runner = Some(self.run(Arc::clone(factory), &deployment));
        let entry = Entry { deployment, manifest: Some(manifest), runner, failure: None, ..entry };
        self.entries().insert(rebuilding.plugin.clone(), entry);
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
    pub(super) fn let_go(&self, runners: Vec<Runner>) {
        self.inner.parts.engine.runtime.spawn(async move {
            for runner in runners {
                runner.stop(Duration::ZERO).await;
            }
        });
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

/// Has both come to one position, from this one on: what either has handled already moves it on.
async fn stand_together(old: &Runner, new: &Runner, newest: Position) -> Position {
    let mut barrier = newest;
    loop {
        let stand = tokio::join!(old.hold_at(barrier), new.hold_at(barrier));
        match stand {
            (Ok(()), Ok(())) => return barrier,
            stand => {
                for Ahead(position) in [stand.0.err(), stand.1.err()].into_iter().flatten() {
                    barrier = barrier.max(position);
                }
            }
        }
    }
}

/// Whose events are gone: nothing can bring them back.
fn lost(status: &RunnerStatus) -> Option<String> {
    let mut lost = status.failures.iter().filter(|(_, why)| why.starts_with("position_lost"));
    lost.next().map(|(tenant, why)| format!("tenant {tenant}: {why}"))
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

fn rounded(number: f64) -> u64 {
    // Saturates, and nothing is below 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let rounded = number.max(0.0).round() as u64;
    rounded
}
