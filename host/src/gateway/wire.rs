//! What goes over the wire, as OpenAPI describes it.
//!
//! Answers with payloads or rows are written by hand (see `json`); their
//! shapes stand here for the description.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::event::TenantId;
use crate::plugins::{
    Candidate, Deployment, GrantStatus, Manifest, Measures, PluginCounters, PluginState, PluginStatus,
    Refusal, TaskStatus, TaskWarning, TenantFailure, Waiting,
};
use crate::tables::TableSchema;

/// An event to publish. An unknown field is refused.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct NativeEvent {
    /// The kind of thing that changed, such as `flight`.
    pub aggregate: String,
    /// Which one changed.
    pub agg_id: String,
    /// The version of it after this event: 1 or more, all 64 bits kept.
    #[schema(minimum = 1)]
    pub version: i64,
    /// What happened, such as `flight.departed`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When: RFC 3339. Now, where it is left out.
    pub at: Option<String>,
    /// The version of the payload's schema; 1 where it is left out.
    #[schema(minimum = 1)]
    pub schema_version: Option<u32>,
    /// Any JSON, kept byte for byte; null where it is left out.
    pub payload: Option<Value>,
    /// Unique in the tenant. Derived from tenant, aggregate, `agg_id` and version where it is left out.
    pub id: Option<String>,
    pub scope: Option<String>,
    /// The kind that a foreign source gave the event.
    pub kind: Option<String>,
    /// The place that a foreign source gave the event.
    pub cursor: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
}

/// A CloudEvent 1.0. See the operation for the mapping.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CloudEvent {
    pub specversion: String,
    pub id: String,
    pub source: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub subject: Option<String>,
    pub time: Option<String>,
    pub aggregate: Option<String>,
    #[schema(minimum = 1)]
    pub aggregateversion: Option<i64>,
    pub data: Option<Value>,
}

/// What became of published events, in their order.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Published {
    pub events: Vec<PublishedEvent>,
}

/// What became of one event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishedEvent {
    /// The cursor of the event.
    pub position: String,
    pub id: String,
    /// It was known already; this is its first position.
    pub repeated: bool,
}

/// The answer to one NDJSON line.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum LineAnswer {
    Published(PublishedEvent),
    /// The problem has a member `line`, counted from 1.
    Refused {
        error: ProblemBody,
    },
}

/// An error: RFC 9457.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    #[serde(rename = "type")]
    pub problem_type: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// Stable; `x-problems` lists them all.
    pub code: String,
    /// How to put it right.
    pub fix: String,
    /// `caller`, `guest` or `host`.
    pub blame: String,
    /// The limit that was hit, if one was.
    pub limit: Option<String>,
    pub asked: Option<u64>,
    pub max: Option<u64>,
}

/// An event as it is read.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// The cursor of the event.
    pub position: String,
    pub id: String,
    pub aggregate: String,
    pub agg_id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub version: i64,
    pub at: String,
    pub schema_version: u32,
    pub scope: Option<String>,
    pub kind: Option<String>,
    pub cursor: Option<String>,
    pub traceparent: Option<String>,
    /// How many processors emitted on the way to this event; left out where none.
    pub depth: Option<u32>,
    pub payload: Value,
}

/// A page of events.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    pub events: Vec<EventView>,
    /// Where to go on; moves past what a filter left out, too.
    pub next: String,
    /// Everything after this cursor is held.
    pub oldest: String,
}

/// A page of changes, or of a stream with a name of its own.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangePage {
    /// The stream's name.
    pub stream: String,
    pub events: Vec<EventView>,
    /// Where to go on, on this stream or on another one.
    pub next: String,
    /// After this cursor nothing is missing.
    pub oldest: String,
    /// The newest cursor of the whole log.
    pub newest: String,
    /// What was asked for begins before `oldest`: events are missing.
    pub truncated: bool,
    /// Which life of the log this is; every cursor begins with it.
    pub epoch: String,
}

/// A table and whose it is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TableView {
    pub plugin: String,
    #[serde(flatten)]
    pub schema: TableSchema,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TableList {
    pub tables: Vec<TableView>,
}

/// A row. Integers have all their digits, times are RFC 3339, bytes are base64.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RowView {
    pub key: String,
    /// 0 in a table without versions.
    pub version: i64,
    /// The commit that wrote it.
    pub revision: i64,
    #[schema(value_type = Object)]
    pub values: serde_json::Map<String, Value>,
}

/// A page of rows.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RowList {
    pub table: String,
    /// What the answer is exact at.
    pub revision: i64,
    pub rows: Vec<RowView>,
    /// The cursor of the next page; left out on the last.
    pub next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OneRow {
    pub table: String,
    pub revision: i64,
    pub row: RowView,
}

/// A plugin. Without the right `admin`, what belongs to one tenant is shown of the token's own tenant only.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PluginView {
    pub name: String,
    pub state: PluginState,
    /// Why it is not running, or empty.
    pub message: String,
    /// The tenants that it stopped for, while it runs for others.
    pub tenant_failures: Vec<TenantFailure>,
    pub deployment: Deployment,
    pub manifest: Option<Manifest>,
    /// What it may do beyond its own world, and what it asks for. What a grant reaches is for `admin` only.
    pub grants: Vec<GrantStatus>,
    /// Events of the log after the position of the task that is furthest behind. Of all tenants together,
    /// and so for `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    pub tasks: Vec<TaskStatus>,
    /// Parked events, held keys and dead letters of these tasks together.
    pub waiting: Waiting,
    /// What will become a failure unless somebody looks after it.
    pub warnings: Vec<TaskWarning>,
    /// Of all tenants together, and so for `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<PluginCounters>,
    /// Lag, memory, CPU, checkpoints and times. Of all tenants together, and so for `admin` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measures: Option<Measures>,
    pub last_refusal: Option<Refusal>,
    /// The last version that wanted to take over. Its report is of all tenants together, and so for `admin` only.
    pub candidate: Option<Candidate>,
    /// The answer to a deploy of what runs already.
    pub nothing_changed: bool,
}

impl PluginView {
    /// The whole host's, for `admin`.
    pub(super) fn whole(status: PluginStatus) -> Self {
        Self {
            name: status.name,
            state: status.state,
            message: status.message,
            tenant_failures: status.tenant_failures,
            deployment: status.deployment,
            manifest: status.manifest,
            grants: status.grants,
            lag_events: Some(status.lag_events),
            waiting: Waiting::of(&status.tasks),
            tasks: status.tasks,
            warnings: status.warnings,
            counters: Some(status.counters),
            measures: Some(status.measures),
            last_refusal: status.last_refusal,
            candidate: status.candidate,
            nothing_changed: status.nothing_changed,
        }
    }

    /// What a tenant may know: nothing that other tenants' events or failures change.
    pub(super) fn of_tenant(mut status: PluginStatus, tenant: &TenantId) -> Self {
        status.tasks.retain(|task| task.tenant == tenant.as_str());
        status.warnings.retain(|warning| warning.tenant == tenant.as_str());
        status.grants.iter_mut().for_each(|grant| grant.reach.clear());
        if let Some(candidate) = &mut status.candidate {
            candidate.report = None;
            if let Some(refusal) = candidate.refusal.as_mut().filter(|r| r.code.starts_with("shadow_")) {
                // It may quote another tenant's rows or events.
                refusal.message = "the candidate was refused in the shadow".into();
            }
        }
        if let Some(refusal) = status.last_refusal.as_mut().filter(|r| r.code.starts_with("shadow_")) {
            refusal.message = "the candidate was refused in the shadow".into();
        }
        if !status.tenant_failures.is_empty() {
            status.tenant_failures.retain(|failure| failure.tenant == tenant.as_str());
            status.message = TenantFailure::sentence(&status.tenant_failures);
            if status.tenant_failures.is_empty() {
                status.state = PluginState::Running;
            }
        }
        Self { lag_events: None, counters: None, measures: None, ..Self::whole(status) }
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PluginList {
    pub plugins: Vec<PluginView>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeploymentList {
    pub deployments: Vec<Deployment>,
}

/// What one task of a plugin keeps: where it stands, its saved state, and a page of its keyed state.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StateView {
    pub plugin: String,
    pub tenant: String,
    pub lane: u32,
    /// How many lanes the plugin has.
    pub lanes: u32,
    /// The cursor of the last commit; left out before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The last commit; left out before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What `snapshot` gave last; left out where it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<SavedView>,
    pub keyed: KeyedView,
}

/// A saved state. `json` or `base64` holds it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SavedView {
    pub content_type: String,
    pub bytes: u64,
    /// Of all its bytes, in hexadecimal.
    pub sha256: String,
    /// The state, where its content type says JSON, it is JSON, and it is no longer than an answer may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub json: Option<Box<RawValue>>,
    /// The state, or its beginning, otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// `base64` is only the beginning.
    pub truncated: bool,
}

/// Keyed state: how much there is, and a page of it. Entries that have expired are there until they are removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyedView {
    pub entries: u64,
    /// Of keys and values.
    pub bytes: u64,
    pub page: Vec<KeyedEntryView>,
    /// What `after` takes to go on; left out on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An entry of keyed state. Key and value are text where they are UTF-8, and base64 where they are not.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyedEntryView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// It is gone for events from this time on; left out where it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// An event that a plugin could not handle.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterView {
    /// Its number: the position of its event.
    pub letter: u64,
    pub tenant: String,
    pub lane: u32,
    /// `reject`, `retries`, `trap`, `timeout`, `limit`, `output` or `refused`.
    pub reason: String,
    /// Whose fault it was: `guest`, or `host`.
    pub blame: String,
    pub message: String,
    /// The guest's, where it fell; or empty.
    pub backtrace: String,
    pub attempts: u32,
    /// Its ordering key waits until it is replayed or discarded.
    pub held: bool,
    /// Events of its key that wait behind it.
    pub parked_behind: u64,
    /// SHA-256 of the state that the event met; empty without one.
    pub state_sha256: String,
    pub plugin_version: String,
    pub at: String,
    pub event: EventView,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterList {
    pub dead_letters: Vec<DeadLetterView>,
}

/// What became of a dead letter.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ResolvedView {
    pub letter: u64,
    /// `replayed`, `discarded` or `failed_again`.
    pub outcome: String,
    /// Replayed after its key had gone on without it.
    pub out_of_order: Option<bool>,
    /// Events of its key that follow now.
    pub released: Option<u64>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub blame: Option<String>,
}

/// What happened when an event was done once more.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplayView {
    pub tenant: String,
    pub lane: u32,
    pub position: u64,
    pub event_id: String,
    pub plugin_version: String,
    /// `handled`, `retry`, `reject`, `fatal`, `trap`, `timeout`, `limit`, `output`, `host` or `load_refused`.
    pub outcome: String,
    pub message: String,
    pub backtrace: String,
    /// Content type, bytes and SHA-256 of the state before.
    pub state_before: Option<serde_json::Value>,
    pub state_after: Option<serde_json::Value>,
    /// What it would have asked for; the first thousand.
    pub effects: Vec<serde_json::Value>,
    pub effects_total: u64,
    /// Whether there is a core dump to ask for.
    pub core_dump: bool,
}

/// What a token was turned into.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    pub tenant: String,
    /// Whose token it was.
    pub name: String,
    /// When it ends, RFC 3339; absent where nobody needs to show anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Opens one stream as `?ticket=`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Whether the host does its work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub reasons: Vec<String>,
}
