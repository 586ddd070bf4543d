//! What one plugin should be on this host.

use std::collections::BTreeMap;

use crate::control::rollout::Progress;
use crate::control::trust::RELEASED_BEFORE;
use crate::control::{Desired, DesiredRow, EventBody, EventId, Kind, PluginSpec, RunState, rollout, wire};
use crate::plugins::{DeployFrom, Deployment};

/// How the feed's deployments begin to say who brought them.
const BY: &str = "feed: ";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) plugin: String,
    pub(super) revision: u64,
    /// Of one revision there may be two events, of which one holds in the end.
    pub(super) event: EventId,
    /// When the component was released, by the word of whoever released it: a build key that has expired since still
    /// counts. As good as ever where the others had it before.
    pub(super) released_at: i64,
    /// It is the version before one that was taken back, also where a later event says so for another reason.
    pub(super) rollback: bool,
    /// It is what hosts run that a rollout has not reached: they had it before, or everybody else has.
    pub(super) is_former: bool,
    /// It was paused, and nothing else is new.
    pub(super) is_resumed: bool,
    /// What the whole fleet should have of it.
    pub(super) desired: Desired,
    pub(super) target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Present {
        spec: Box<PluginSpec>,
        paused: bool,
    },
    /// Other hosts run it. What was kept of it here stays, paused: labels change, and an event may take them back.
    Elsewhere,
    /// A first rollout has not come to this host, or was taken back. What others have deployed here is still theirs.
    Unreached,
    /// Nobody runs it any more, and nothing of it is kept but its tables.
    Removed,
}

impl Want {
    /// None of what is no plugin.
    pub(super) fn of(row: &DesiredRow, host: &str, labels: &BTreeMap<String, String>) -> Option<Self> {
        let unsigned = row.event.unsigned();
        let EventBody::Plugin { plugin, desired } = &unsigned.body else { return None };
        let target = match (desired.state, rollout::effective_spec(desired, host, labels)) {
            (RunState::Removed, _) => Target::Removed,
            (_, None) if rollout::is_target(desired, labels) => Target::Unreached,
            (_, None) => Target::Elsewhere,
            (state, Some(spec)) => {
                Target::Present { spec: Box::new(spec.clone()), paused: state == RunState::Paused }
            }
        };
        let rolled_back = desired.rollout.as_ref().is_some_and(|r| r.progress == Progress::RolledBack);
        let rollback = unsigned.kind == Kind::RolledBack || rolled_back;
        Some(Self {
            plugin: plugin.clone(),
            revision: row.revision,
            event: row.event.id().clone(),
            released_at: released_at(desired, &target, unsigned.issued_at),
            rollback,
            is_resumed: unsigned.kind == Kind::Resumed,
            is_former: rollback || is_former(desired, &target),
            desired: desired.clone(),
            target,
        })
    }

    /// What a verdict is about: this version, as this event asks for it. It is the same after a restart.
    pub(super) fn identity(&self) -> String {
        let spec = match &self.target {
            Target::Present { spec, .. } => spec_digest(spec),
            Target::Elsewhere | Target::Unreached | Target::Removed => String::new(),
        };
        format!("{} {spec}", self.event)
    }

    /// Whether what is deployed here is none of the feed's business yet.
    pub(super) fn leaves(&self, deployment: &Deployment) -> bool {
        self.target == Target::Unreached && !deployment.deployed_by.starts_with(BY)
    }

    /// How deployments say that this one brought them.
    pub(super) fn by(&self) -> String {
        format!("{BY}{}", self.event)
    }

    /// How the way back says on whose account it is.
    pub(super) fn by_breaker(&self) -> String {
        format!("{BY}breaker, {}", self.event)
    }
}

fn is_former(desired: &Desired, target: &Target) -> bool {
    let Target::Present { spec, .. } = target else { return false };
    desired.stable.as_ref() == Some(&**spec) && desired.spec.as_ref() != Some(&**spec)
}

fn released_at(desired: &Desired, target: &Target, issued_at: i64) -> i64 {
    let Target::Present { spec, .. } = target else { return issued_at };
    if desired.stable.as_ref().is_some_and(|stable| stable.component == spec.component) {
        return RELEASED_BEFORE;
    }
    // Waves, and hosts that come late, are of the same release as the event that began it.
    let began = desired.rollout.as_ref().and_then(|rollout| EventId::try_from(rollout.id.clone()).ok());
    began.map_or(issued_at, |began| began.made_at().min(issued_at))
}

/// Names a version with its configuration and all that bounds it.
pub(super) fn spec_digest(spec: &PluginSpec) -> String {
    wire::digest_text(&serde_json::to_vec(spec).unwrap_or_default())
}

/// The digits of a spec's component, which is how plugins name digests.
pub(super) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Where a first deploy begins; `check` has let nothing else through.
pub(super) fn from(spec: &PluginSpec) -> DeployFrom {
    match spec.from.as_str() {
        "tail" => DeployFrom::Tail,
        other => match other.strip_prefix("after:").and_then(|position| position.parse().ok()) {
            Some(position) => DeployFrom::After(position),
            None => DeployFrom::Oldest,
        },
    }
}
