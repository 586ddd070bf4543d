//! Carries rollouts on at the origin: a host with a sink and a release key.
//!
//! It remembers nothing that counts. Each look begins with what stands and what hosts report, asks [`decide`], and proposes
//! what follows as an event like any other. So it may be killed anywhere, and another one goes on: what was proposed is in
//! the outbox, and what was not is decided again.
//!
//! One at a time is enough, and two do no harm. On one store the second proposal meets another revision and is refused. Of
//! two origins both events reach the feed with one revision; every host takes the first of them, sets the other aside, and
//! both origins see the same from then on.
//!
//! A rollout never goes on for an error: without reports, or with a fleet that is frozen, it stays where it is, and what runs
//! goes on running. What is broken is taken back in a frozen fleet, too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::changes::{Actor, Change, Present, desired_of};
use super::freeze::{self, Freeze};
use super::report::Seen;
use super::rollout::{Decision, Look, Progress, RolloutState, Silence, decide};
use super::snapshot::Snapshots;
use super::{
    Board, ControlFeedError, ControlSink, ControlStore, ControlVersion, Desired, DesiredRow, EventId,
    FleetMark, Kind, Origin, Proposed, Result, SigningKey, UnsignedEvent,
};
use crate::clock::Clock;
use crate::error::Classify as _;
use crate::limits::{
    CONTROL_CONTROLLER_EVERY, CONTROL_CONTROLLER_RETRY_MAX, CONTROL_CONTROLLER_RETRY_MIN,
    CONTROL_FEED_EVENTS_KEPT, CONTROL_FEED_TRIM_EVERY, CONTROL_MARK_GAP, CONTROL_REASON_BYTES_MAX,
};
use crate::telemetry::metrics::{CONTROL_CONTROLLER_FAILED, CONTROL_ROLLOUT_CHANGES};

/// What it works with.
#[derive(Clone, Debug)]
pub struct ControllerSeams {
    pub origin: Origin,
    pub store: Arc<dyn ControlStore>,
    pub board: Arc<dyn Board>,
    pub sink: Arc<dyn ControlSink>,
    pub snapshots: Arc<Snapshots>,
    /// A release key. None leaves rollouts to people: their events come signed.
    pub key: Option<Arc<SigningKey>>,
    pub clock: Arc<dyn Clock>,
}

#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// What its events name as their actor.
    pub actor: String,
    pub every: Duration,
    pub silence: Silence,
    /// The least time between two marks.
    pub mark_gap: Duration,
    /// Events that stay in the feed behind a snapshot, and by how many versions more it grows before it is trimmed.
    pub events_kept: u64,
    pub trim_every: u64,
}

#[derive(Debug)]
pub struct Controller {
    seams: ControllerSeams,
    options: ControllerOptions,
    memory: Mutex<Memory>,
    nudged: Notify,
}

/// What would be found out again.
#[derive(Debug, Default)]
struct Memory {
    /// Since when the board has answered.
    looking_since: Option<i64>,
    /// Revisions that were seen waiting for the feed, and since when they are in it.
    awaited: BTreeMap<String, (u64, Option<i64>)>,
    marked_at: Option<Instant>,
    trimmed: ControlVersion,
}

/// What one look came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// By plugin, those with a rollout that runs.
    pub decided: BTreeMap<String, Decision>,
    /// What was proposed for it.
    pub proposed: Vec<(String, Kind)>,
    /// What the fleet's freeze kept from being proposed.
    pub frozen: Vec<String>,
}

impl ControllerOptions {
    pub fn new(host: &str) -> Self {
        Self {
            actor: format!("controller@{host}"),
            every: CONTROL_CONTROLLER_EVERY,
            silence: Silence::default(),
            mark_gap: CONTROL_MARK_GAP,
            events_kept: CONTROL_FEED_EVENTS_KEPT,
            trim_every: CONTROL_FEED_TRIM_EVERY,
        }
    }
}

impl Controller {
    pub fn new(seams: ControllerSeams, options: ControllerOptions) -> Self {
        Self { seams, options, memory: Mutex::default(), nudged: Notify::new() }
    }

    /// Looks at once and until it is told to stop. Whatever it awaits then is dropped: a proposal is made or not.
    pub async fn run(&self, stop: &CancellationToken) {
        // Cut at any await, see above.
        stop.run_until_cancelled(self.work()).await;
    }

    /// Somebody knows news: a change, or a report.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    async fn work(&self) {
        let mut backoff = Backoff::new(CONTROL_CONTROLLER_RETRY_MIN, CONTROL_CONTROLLER_RETRY_MAX);
        loop {
            // Marks are told also when rollouts cannot be looked at, and the other way round.
            let looked = match &self.seams.key {
                Some(_) => self.look().await.map(drop),
                None => Ok(()),
            };
            let marked = self.mark().await.map(drop);
            let wait = match looked.and(marked) {
                Ok(()) => {
                    backoff.reset();
                    self.options.every
                }
                Err(problem) => {
                    counter!(CONTROL_CONTROLLER_FAILED).increment(1);
                    warn!(
                        error.kind = problem.code(),
                        error.blame = problem.blame().as_str(),
                        %problem,
                        "rollouts are not carried on; what runs goes on"
                    );
                    backoff.next()
                }
            };
            // Either way it looks again.
            let _ = tokio::time::timeout(wait, self.nudged.notified()).await;
        }
    }

    /// Looks at every rollout once, and proposes what follows.
    pub async fn look(&self) -> Result<Looked> {
        let rows = self.seams.store.proposed().await?;
        self.memory().awaited.retain(|plugin, (revision, _)| {
            rows.iter()
                .any(|row| row.revision == *revision && desired_of(row).is_some_and(|(p, _)| p == plugin))
        });
        let running: Vec<_> = rows.iter().filter_map(running).collect();
        let mut looked = Looked::default();
        if running.is_empty() {
            return Ok(looked);
        }
        let reports = match self.seams.board.reports().await {
            Ok(reports) => Seen::read(reports),
            Err(problem) => {
                self.memory().looking_since = None;
                return Err(problem);
            }
        };
        let frozen = freeze::present(self.seams.store.as_ref()).await?;
        let mut failed = None;
        for Running { row, plugin, desired, rollout } in running {
            let decision = self.decide(row, plugin, desired, rollout, &reports).await?;
            looked.decided.insert(plugin.to_owned(), decision.clone());
            let goes_on = matches!(decision, Decision::Advance | Decision::Complete);
            if matches!(decision, Decision::Passed) || (goes_on && frozen.is_some()) {
                self.remember_passed(plugin, rollout).await?;
            }
            if goes_on && frozen.is_some() {
                looked.frozen.push(plugin.to_owned());
                continue;
            }
            match self.carry_out(row, plugin, desired, &decision).await {
                Ok(Some(kind)) => looked.proposed.push((plugin.to_owned(), kind)),
                Ok(None) => {}
                // Whoever was quicker has decided; the next look sees it.
                Err(ControlFeedError::RevisionConflict { .. } | ControlFeedError::Frozen { .. }) => {
                    debug!(plugin.name = plugin, "another change was quicker");
                }
                // The others are not to wait for it.
                Err(problem) => failed = Some(problem),
            }
        }
        failed.map_or(Ok(looked), Err)
    }

    async fn decide(
        &self,
        row: &DesiredRow,
        plugin: &str,
        desired: &Desired,
        rollout: &RolloutState,
        reports: &[Seen],
    ) -> Result<Decision> {
        let now = self.seams.clock.now().0;
        let Some(since) = self.known_since(row, plugin, now) else {
            return Ok(Decision::Wait { why: "it is not in the feed yet".into() });
        };
        let passed = self.seams.store.note(&passed_note(plugin)).await?;
        let looking_since = *self.memory().looking_since.get_or_insert(now);
        Ok(decide(&Look {
            plugin,
            desired,
            revision: row.revision,
            since,
            looking_since,
            passed: passed.is_some_and(|passed| passed == passed_text(rollout)),
            now,
            reports,
            silence: self.options.silence,
        }))
    }

    /// Since when hosts can know of a row: a feed that did not take it for hours is nobody's illness.
    fn known_since(&self, row: &DesiredRow, plugin: &str, now: i64) -> Option<i64> {
        let issued_at = row.event.unsigned().issued_at;
        let mut memory = self.memory();
        if row.version.0 == 0 {
            memory.awaited.insert(plugin.to_owned(), (row.revision, None));
            return None;
        }
        let arrived = memory.awaited.get_mut(plugin).filter(|(revision, _)| *revision == row.revision);
        let arrived = arrived.map(|(_, at)| *at.get_or_insert(now));
        Some(arrived.unwrap_or(issued_at).max(issued_at))
    }

    async fn remember_passed(&self, plugin: &str, rollout: &RolloutState) -> Result<()> {
        let (name, text) = (passed_note(plugin), passed_text(rollout));
        if self.seams.store.note(&name).await?.as_deref() != Some(&text) {
            self.seams.store.set_note(&name, Some(&text)).await?;
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        row: &DesiredRow,
        plugin: &str,
        desired: &Desired,
        decision: &Decision,
    ) -> Result<Option<Kind>> {
        let present = Present { plugin, desired: Some(desired) };
        let (change, reason, name) = match decision {
            Decision::Wait { .. } | Decision::Passed => return Ok(None),
            Decision::Advance => (present.advance()?, "the wave has passed its gate".to_owned(), "advanced"),
            Decision::Complete => {
                (present.advance()?, "the last wave has passed its gate".into(), "completed")
            }
            Decision::Halt { broken, why } => {
                (present.roll_back()?, format!("{}: {why}", broken.as_str()), "rolled_back")
            }
        };
        let kind = change.kind.clone();
        let by = Actor { name: self.options.actor.clone(), reason };
        self.propose(plugin, Some(row), change, EventId::new(ulid::Ulid::new()), &by).await?;
        counter!(CONTROL_ROLLOUT_CHANGES, "change" => name).increment(1);
        if let Decision::Halt { broken, why } = decision {
            warn!(
                plugin.name = plugin,
                error.kind = broken.as_str(),
                error.blame = "caller",
                why,
                "a rollout was taken back"
            );
        } else {
            info!(plugin.name = plugin, change = name, "a rollout went on");
        }
        Ok(Some(kind))
    }

    /// Changes a plugin for somebody, with this host's key. What it is made on may be told, so that nobody changes what they
    /// have not seen.
    pub async fn change(
        &self,
        plugin: &str,
        expected_revision: Option<u64>,
        by: &Actor,
        make: impl FnOnce(Present<'_>, &EventId) -> Result<Change> + Send,
    ) -> Result<Proposed> {
        let rows = self.seams.store.proposed().await?;
        let known =
            rows.iter().find_map(|row| desired_of(row).filter(|(name, _)| *name == plugin).zip(Some(row)));
        let desired = known.map(|((_, desired), _)| desired);
        let row = known.map(|(_, row)| row);
        let found = row.map_or(0, |row| row.revision);
        if let Some(expected) = expected_revision.filter(|expected| *expected != found) {
            return Err(ControlFeedError::RevisionConflict {
                entity: format!("plugin:{plugin}"),
                expected,
                found,
            });
        }
        let id = EventId::new(ulid::Ulid::new());
        let change = make(Present { plugin, desired }, &id)?;
        let proposed = self.propose(plugin, row, change, id, by).await?;
        self.nudge();
        Ok(proposed)
    }

    /// The next wave, whatever the gate says.
    pub async fn advance(&self, plugin: &str, by: &Actor) -> Result<Proposed> {
        self.change(plugin, None, by, |present, _| present.advance()).await
    }

    /// Stops a rollout where it is.
    pub async fn halt(&self, plugin: &str, by: &Actor) -> Result<Proposed> {
        self.change(plugin, None, by, |present, _| present.halt()).await
    }

    /// Everybody goes back to the version before.
    pub async fn roll_back(&self, plugin: &str, by: &Actor) -> Result<Proposed> {
        self.change(plugin, None, by, |present, _| present.roll_back()).await
    }

    /// Freezes the fleet, or with none lets it go on.
    pub async fn freeze(&self, freeze: Option<&Freeze>) -> Result<()> {
        freeze::set(self.seams.store.as_ref(), freeze).await?;
        self.nudge();
        Ok(())
    }

    async fn propose(
        &self,
        plugin: &str,
        base: Option<&DesiredRow>,
        change: Change,
        id: EventId,
        by: &Actor,
    ) -> Result<Proposed> {
        let reason = by.reason[..by.reason.floor_char_boundary(CONTROL_REASON_BYTES_MAX)].to_owned();
        let by = Actor { name: by.name.clone(), reason };
        let base_revision = base.map_or(0, |row| row.revision);
        let event = UnsignedEvent {
            base_event_id: base.map(|row| row.event.id().clone()),
            ..change.event(plugin, base_revision, id, &by, self.seams.clock.now().0)
        };
        let key = self.seams.key.as_ref().ok_or_else(|| ControlFeedError::Settings {
            setting: "control.signing_key".into(),
            detail: "this host has no release key, and changes nothing by itself".into(),
        })?;
        self.seams.origin.propose(&event.sign(key)?).await
    }

    /// Tells hosts what to compare themselves with, when the last time was long enough ago; then trims the feed. Hosts whose
    /// cursor is in what goes start from the snapshot, so nothing goes that it does not cover.
    pub async fn mark(&self) -> Result<Option<FleetMark>> {
        let is_due = self.memory().marked_at.is_none_or(|at| at.elapsed() >= self.options.mark_gap);
        if !is_due {
            return Ok(None);
        }
        let mark = self.seams.snapshots.publish().await?;
        self.memory().marked_at = Some(Instant::now());
        let covered = mark.snapshot.as_ref().map_or(0, |snapshot| snapshot.version.0);
        // Whoever can write a mark can write any version into it; what this host has read is there.
        let covered = covered.min(self.seams.store.cursor().await?.0);
        let through = self.seams.sink.keeping(ControlVersion(covered), self.options.events_kept).await?.0;
        let trimmed = self.memory().trimmed;
        if through >= trimmed.0.saturating_add(self.options.trim_every.max(1)) {
            self.seams.sink.trim(ControlVersion(through)).await?;
            self.memory().trimmed = ControlVersion(through);
        }
        Ok(Some(mark))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rollout that is to be looked at.
struct Running<'a> {
    row: &'a DesiredRow,
    plugin: &'a str,
    desired: &'a Desired,
    rollout: &'a RolloutState,
}

fn running(row: &DesiredRow) -> Option<Running<'_>> {
    let (plugin, desired) = desired_of(row)?;
    let rollout = desired.rollout.as_ref().filter(|rollout| rollout.progress == Progress::Running)?;
    Some(Running { row, plugin, desired, rollout })
}

fn passed_note(plugin: &str) -> String {
    format!("passed:{plugin}")
}

fn passed_text(rollout: &RolloutState) -> String {
    format!("{}/{}", rollout.id, rollout.wave)
}
