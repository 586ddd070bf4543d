//! The shapes of `/v1/fleet…`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::control::fleet::{FleetStatus, HostChange, HostLine, PluginFleet};
use crate::control::freeze::Freeze;
use crate::control::report::Reason;
use crate::control::snapshot::Drift;
use crate::control::{
    DesiredRow, DesiredState, Outbox, OutboxLetter, OwnState, Phase, Proposed, Quarantined, Restored,
};
use crate::event::Micros;

/// A change that will be told.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ProposedView {
    /// `plugin:<name>` or `trust`.
    entity: String,
    revision: u64,
    /// It was taken before.
    repeated: bool,
}

impl From<Proposed> for ProposedView {
    fn from(Proposed { entity, revision, repeated }: Proposed) -> Self {
        Self { entity, revision, repeated }
    }
}

/// What the fleet should run.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct DesiredView {
    /// How far this host has read the feed.
    version: u64,
    entities: Vec<EntityView>,
    frozen: Option<Freeze>,
}

/// The newest event of an entity.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct EntityView {
    entity: String,
    revision: u64,
    /// Its place in the feed; 0 while it waits.
    version: u64,
    /// As it was signed.
    #[schema(value_type = Object)]
    event: Box<RawValue>,
}

impl DesiredView {
    pub(super) fn of(DesiredState { cursor, rows, frozen }: DesiredState) -> Self {
        let entity = |DesiredRow { entity, revision, version, event }: DesiredRow| {
            let event = RawValue::from_string(event.to_json()).ok()?;
            Some(EntityView { entity, revision, version: version.0, event })
        };
        // What an event writes is JSON, so none is left out.
        Self { version: cursor.0, entities: rows.into_iter().filter_map(entity).collect(), frozen }
    }
}

/// Who runs what.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct FleetView {
    plugins: Vec<PluginFleet>,
    hosts: Vec<HostLine>,
    /// Every host runs what it should.
    converged: bool,
    /// What is missing for that, for people.
    missing: Vec<String>,
    frozen: Option<Freeze>,
}

impl FleetView {
    pub(super) fn of(FleetStatus { plugins, hosts, converged }: FleetStatus, frozen: Option<Freeze>) -> Self {
        let lacks = |plugin: &PluginFleet| {
            let name = plugin.plugin.clone();
            let line = move |missing: &String| format!("{name}: {missing}");
            plugin.missing.iter().map(line).collect::<Vec<_>>()
        };
        let missing = plugins.iter().flat_map(lacks).collect();
        Self { plugins, hosts, converged, missing, frozen }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct HostsView {
    pub(super) hosts: Vec<HostLine>,
}

/// What was set aside, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct QuarantineView {
    events: Vec<SetAsideView>,
}

/// An entry of the feed that this host does not carry out.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct SetAsideView {
    version: u64,
    /// The event's id, or what the feed calls it.
    name: String,
    code: String,
    reason: String,
    /// RFC 3339.
    at: String,
}

impl QuarantineView {
    pub(super) fn of(events: Vec<Quarantined>) -> Self {
        let event = |Quarantined { version, name, code, reason, at }: Quarantined| SetAsideView {
            version: version.0,
            name,
            code,
            reason,
            at: Micros(at).to_string(),
        };
        Self { events: events.into_iter().map(event).collect() }
    }
}

/// What this host has not told yet.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct OutboxView {
    /// Dead letters included.
    waiting: u64,
    dead: u64,
    /// When the oldest was taken, RFC 3339; none when nothing waits.
    oldest_at: Option<String>,
    letters: Vec<OutboxLetterView>,
}

/// An event that the feed does not take. Its plugin waits until somebody retries or discards it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct OutboxLetterView {
    event: String,
    entity: String,
    revision: u64,
    attempts: u32,
    error: String,
    /// When it was last tried, RFC 3339.
    at: String,
}

impl OutboxView {
    pub(super) fn of(Outbox { status, letters }: Outbox) -> Self {
        let letter = |letter: OutboxLetter| OutboxLetterView {
            event: letter.event.to_string(),
            entity: letter.entity,
            revision: letter.revision,
            attempts: letter.attempts,
            error: letter.error,
            at: Micros(letter.at).to_string(),
        };
        Self {
            waiting: status.waiting,
            dead: status.dead,
            oldest_at: status.oldest_at.map(|at| Micros(at).to_string()),
            letters: letters.into_iter().map(letter).collect(),
        }
    }
}

/// Whether the fleet is to be frozen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct FreezeRequest {
    pub(super) frozen: bool,
    /// For whoever meets it.
    #[serde(default)]
    pub(super) reason: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct FreezeView {
    /// Null when it is not.
    pub(super) frozen: Option<Freeze>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct PreviewView {
    pub(super) hosts: Vec<HostChange>,
}

/// What a restore changed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ResyncView {
    /// False where the fleet has no snapshot yet.
    restored: bool,
    version: Option<u64>,
    entities: Vec<String>,
}

impl ResyncView {
    pub(super) fn of(restored: Option<Restored>) -> Self {
        let version = restored.as_ref().map(|restored| restored.cursor.0);
        let entities = restored.map(|restored| restored.entities).unwrap_or_default();
        Self { restored: version.is_some(), version, entities }
    }
}

/// The host that is asked.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct OwnView {
    host: String,
    labels: BTreeMap<String, String>,
    incarnation: String,
    millrace_version: String,
    source: String,
    sink: String,
    cursor: u64,
    state_digest: String,
    /// `same`, `behind`, `ahead` or `differs` from what the origin says; null where it has said nothing.
    drift: Option<String>,
    trust_revision: u64,
    /// It looks at no signature.
    insecure_dev: bool,
    plugins: Vec<OwnPluginView>,
}

/// How far this host is with a plugin.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct OwnPluginView {
    plugin: String,
    revision: u64,
    phase: Phase,
    serving: Option<String>,
    reason: Option<Reason>,
}

impl OwnView {
    pub(super) fn of(own: OwnState) -> Self {
        let OwnState { report, source, sink, trust_revision, is_insecure, drift } = own;
        let drift = drift.map(|drift| match drift {
            Drift::Same => "same".to_owned(),
            Drift::Behind => "behind".into(),
            Drift::Ahead => "ahead".into(),
            Drift::Differs => "differs".into(),
        });
        let plugins = report.plugins.into_iter().map(|(plugin, report)| OwnPluginView {
            plugin,
            revision: report.revision,
            phase: report.phase,
            serving: report.serving,
            reason: report.reason,
        });
        Self {
            plugins: plugins.collect(),
            host: report.host,
            labels: report.labels,
            incarnation: report.incarnation,
            millrace_version: report.millrace_version,
            source,
            sink,
            cursor: report.cursor.0,
            state_digest: report.state_digest,
            drift,
            trust_revision,
            insecure_dev: is_insecure,
        }
    }
}
