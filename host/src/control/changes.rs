//! The next desired state of a plugin, made of the present one. Each change is one event.
//!
//! What a rollout does not reach runs `stable`, so every change keeps it, and a host that is in no wave yet notices none of
//! them. Taking a rollout back is one event, too, `plugin.rolled_back`: `spec` stays as what was tried, and `RolledBack` says
//! that everybody runs `stable`. Two events would leave a time between them, and the first could be all that arrives.
//! `rollout.halted` stops a rollout where it is.

use std::collections::BTreeMap;

use super::rollout::{Plan, Progress, RolloutState};
use super::{
    ArtifactRef, ControlFeedError, Desired, DesiredRow, EventBody, EventId, Kind, PluginSpec, Result,
    RunState, SCHEMA_VERSION, UnsignedEvent,
};

/// What is to be desired next, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    pub desired: Desired,
}

/// Who changes something, and what they say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub name: String,
    pub reason: String,
}

/// A new version, or a first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deploy {
    pub spec: PluginSpec,
    /// None is everybody at once, without a gate.
    pub plan: Option<Plan>,
    /// None keeps those that there are.
    pub targets: Option<BTreeMap<String, String>>,
}

/// What stands, as far as a change needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    pub plugin: &'a str,
    /// None when nothing is known of it.
    pub desired: Option<&'a Desired>,
}

impl Present<'_> {
    /// `id` becomes the rollout's: that of the event that will say so. A rollout that is under way is replaced: hosts that it
    /// had reached, and that the new one does not reach at once, go back to what the others run.
    pub fn deploy(self, id: &EventId, deploy: Deploy) -> Result<Change> {
        let present = self.desired.filter(|desired| desired.state != RunState::Removed);
        let plan = match deploy.plan {
            Some(plan) => {
                plan.check()?;
                Some(plan)
            }
            None => None,
        };
        let progress = if plan.is_some() { Progress::Running } else { Progress::Complete };
        let rollout =
            RolloutState { id: id.to_string(), plan: plan.unwrap_or_else(Plan::at_once), wave: 0, progress };
        let targets = deploy.targets.or_else(|| present.map(|desired| desired.targets.clone()));
        let desired = Desired {
            state: present.map_or(RunState::Running, |desired| desired.state),
            spec: Some(deploy.spec),
            stable: present.and_then(former).cloned(),
            targets: targets.unwrap_or_default(),
            rollout: Some(rollout),
        };
        Ok(Change { kind: Kind::Deployed, desired })
    }

    /// The version that most hosts run, with another configuration; otherwise like a deploy.
    pub fn configure(self, id: &EventId, config: Option<ArtifactRef>, plan: Option<Plan>) -> Result<Change> {
        let present = self.known()?;
        let under_way = present
            .rollout
            .as_ref()
            .is_some_and(|r| matches!(r.progress, Progress::Running | Progress::Halted));
        if under_way {
            return Err(self.refused("a rollout is under way; deploy, roll back or finish it first"));
        }
        let spec = former(present).cloned().ok_or_else(|| self.refused("no host runs it"))?;
        let deploy = Deploy { spec: PluginSpec { config, ..spec }, plan, targets: None };
        Ok(Change { kind: Kind::ConfigChanged, ..self.deploy(id, deploy)? })
    }

    pub fn pause(self) -> Result<Change> {
        let present = self.in_state(RunState::Running, "it does not run")?;
        let desired = Desired { state: RunState::Paused, ..present.clone() };
        Ok(Change { kind: Kind::Paused, desired })
    }

    pub fn resume(self) -> Result<Change> {
        let present = self.in_state(RunState::Paused, "it is not paused")?;
        let desired = Desired { state: RunState::Running, ..present.clone() };
        Ok(Change { kind: Kind::Resumed, desired })
    }

    pub fn remove(self) -> Result<Change> {
        self.known()?;
        let desired = Desired {
            state: RunState::Removed,
            spec: None,
            stable: None,
            targets: BTreeMap::new(),
            rollout: None,
        };
        Ok(Change { kind: Kind::Removed, desired })
    }

    /// The next wave, whatever the gate says, and after the last one the end. A halted rollout goes on with it.
    pub fn advance(self) -> Result<Change> {
        let rollout = self.under_way()?;
        let rollout = if rollout.is_last_wave() {
            RolloutState { progress: Progress::Complete, ..rollout.clone() }
        } else {
            RolloutState {
                wave: rollout.wave.saturating_add(1),
                progress: Progress::Running,
                ..rollout.clone()
            }
        };
        self.rollout(Kind::RolloutAdvanced, rollout)
    }

    /// Stops a rollout where it is.
    pub fn halt(self) -> Result<Change> {
        let rollout = self.under_way()?;
        if rollout.progress == Progress::Halted {
            return Err(self.refused("its rollout is halted already"));
        }
        let rollout = RolloutState { progress: Progress::Halted, ..rollout.clone() };
        self.rollout(Kind::RolloutHalted, rollout)
    }

    /// Everybody goes back to the version before, also after the end of a rollout; where there was none, to nothing.
    pub fn roll_back(self) -> Result<Change> {
        let present = self.known()?;
        let Some(rollout) = &present.rollout else {
            return Err(self.refused("nothing is known of a version before; deploy the one that you want"));
        };
        match rollout.progress {
            Progress::RolledBack => Err(self.refused("it is rolled back already")),
            Progress::Complete if present.stable.is_none() => {
                Err(self.refused("there was no version before; remove it, or deploy another one"))
            }
            _ => {
                let rollout = RolloutState { progress: Progress::RolledBack, ..rollout.clone() };
                self.rollout(Kind::RolledBack, rollout)
            }
        }
    }

    fn rollout(self, kind: Kind, rollout: RolloutState) -> Result<Change> {
        let desired = Desired { rollout: Some(rollout), ..self.known()?.clone() };
        Ok(Change { kind, desired })
    }

    fn under_way(&self) -> Result<&RolloutState> {
        match &self.known()?.rollout {
            Some(rollout) if matches!(rollout.progress, Progress::Running | Progress::Halted) => Ok(rollout),
            Some(_) => Err(self.refused("its rollout is over")),
            None => Err(self.refused("it has no rollout")),
        }
    }

    fn in_state(&self, state: RunState, otherwise: &str) -> Result<&Desired> {
        let present = self.known()?;
        if present.state == state { Ok(present) } else { Err(self.refused(otherwise)) }
    }

    fn known(&self) -> Result<&Desired> {
        self.desired
            .filter(|desired| desired.state != RunState::Removed)
            .ok_or_else(|| self.refused("it is not deployed"))
    }

    fn refused(&self, detail: &str) -> ControlFeedError {
        ControlFeedError::ChangeRefused { plugin: self.plugin.to_owned(), detail: detail.to_owned() }
    }
}

impl Change {
    /// The event that says so, to be signed. Whoever knows what stands names it in the event, too.
    pub fn event(
        self,
        plugin: &str,
        base_revision: u64,
        event_id: EventId,
        by: &Actor,
        issued_at: i64,
    ) -> UnsignedEvent {
        UnsignedEvent {
            schema_version: SCHEMA_VERSION,
            // A host that passed it by would go on with something else than the fleet.
            must_understand: true,
            event_id,
            kind: self.kind,
            body: EventBody::Plugin { plugin: plugin.to_owned(), desired: self.desired },
            revision: base_revision.saturating_add(1),
            base_revision,
            base_event_id: None,
            issued_at,
            expires_at: None,
            actor: by.name.clone(),
            reason: by.reason.clone(),
        }
    }
}

/// The plugin and the desired state of a row; none of the list of keys.
pub fn desired_of(row: &DesiredRow) -> Option<(&str, &Desired)> {
    match &row.event.unsigned().body {
        EventBody::Plugin { plugin, desired } => Some((plugin, desired)),
        _ => None,
    }
}

/// What everybody runs that no rollout has reached, and everybody once it is over.
pub fn former(desired: &Desired) -> Option<&PluginSpec> {
    match desired.rollout.as_ref().map(|rollout| rollout.progress) {
        None | Some(Progress::Complete) => desired.spec.as_ref(),
        Some(Progress::Running | Progress::Halted | Progress::RolledBack) => desired.stable.as_ref(),
    }
}
