//! Deploying, pausing and looking at plugins: what the edge and the watched directory ask for.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Autopsy, Candidate, DeployOptions, Deployment, PluginError, PluginSettings, RebuildError, RebuildRequest,
    RebuildView,
};
use crate::checkpoints::{CommitError, DeadLetterRow, SavedState, TaskId};
use crate::error::{BackendError, Blame, Classify, Retry};
use crate::event::{EventBatch, Position, TenantId};
use crate::processors::{
    BreakerState, Manifest, Measures, ResolveError, Resolved, ShadowFault, ShadowRefusal, Verdict,
};
use crate::streams::StreamError;
use crate::tables::TableError;

/// Where a first deploy begins to read. Later deploys go on where the plugin stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployFrom {
    /// The oldest retained event.
    #[default]
    Oldest,
    /// What is published from now on.
    Tail,
    /// After this position.
    After(u64),
}

/// After which a deploy that found another one under way may be tried again.
const DEPLOY_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct DeployRequest {
    pub component: Bytes,
    /// Refused when the component says another name; none takes the component's word.
    pub expected_name: Option<String>,
    /// Refused when the component is of another version or world; none takes the component's word.
    pub expected_build: Option<ExpectedBuild>,
    pub from: DeployFrom,
    /// `directory` or `api`, and by whom.
    pub by: String,
    pub options: DeployOptions,
    /// A new plugin does not run until it is resumed. One that is there stays as it is.
    pub paused: bool,
    /// The settings that it runs with for as long as this deployment stands, and again whenever somebody goes back to it.
    /// None are the operator's, as they are at each start.
    pub settings: Option<PluginSettings>,
    /// Is told how far the deploy is; there are at most [`DeployStep::COUNT`] steps. What does not fit is not told.
    pub progress: Option<mpsc::Sender<DeployStep>>,
}

/// What whoever released a component says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedBuild {
    pub version: String,
    /// Such as `millrace:processor@0.1.0`.
    pub world: String,
}

impl ExpectedBuild {
    /// Compares it with what a component says of itself. One that does not know its world is not asked for it.
    pub fn check(&self, version: &str, world: Option<&str>) -> Result<(), ControlError> {
        let differs = |what: &'static str, expected: &str, found: &str| {
            Err(ControlError::OtherBuild { what, expected: expected.to_owned(), found: found.to_owned() })
        };
        if version != self.version {
            return differs("version", &self.version, version);
        }
        match world {
            Some(world) if world != self.world => differs("world", &self.world, world),
            _ => Ok(()),
        }
    }
}

/// How far a deploy has come. Each is told once, in this order, and not at all where it does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeployStep {
    /// It is native code, and has said what it is.
    Compiled,
    /// It may have what it wants, and instances of it can be made.
    Validated,
    /// It handles events beside the version that runs.
    Shadow,
    /// It runs.
    Active,
}

impl DeployStep {
    pub const COUNT: usize = 4;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    Starting,
    Running,
    /// It runs, and a lane waits for somebody or for its rest to be over; `message` says why.
    Blocked,
    Paused,
    /// Another host of the same log runs it; `message` says which. This one takes over when that one is gone.
    Standby,
    /// It stopped by itself; `message` says why. It is started again after a wait unless that cannot help.
    Failed,
}

/// One task of a plugin, for status and lag.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskStatus {
    pub tenant: String,
    pub lane: u32,
    /// Every event up to here that is the task's is applied, parked or dead-lettered.
    pub position: u64,
    pub state_bytes: u64,
    /// Events that wait for their ordering key.
    #[serde(default)]
    pub parked_events: u64,
    /// Ordering keys that a dead letter holds.
    #[serde(default)]
    pub held_keys: u64,
    /// Events that it could not handle, and that nobody has replayed or discarded.
    #[serde(default)]
    pub dead_letters: u64,
    #[serde(default)]
    pub breaker: BreakerState,
    /// Why it does nothing although it may have work.
    #[serde(default)]
    pub blocked: Option<String>,
    /// What was refused last since it began to run, and cost neither an event nor the rest of its commit: an appended
    /// entry that was left out, or the effects of a flush.
    #[serde(default)]
    pub last_refused: Option<String>,
}

/// What waits for its time or for somebody, over some tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Waiting {
    /// Events that wait for their ordering key.
    pub parked_events: u64,
    /// Ordering keys that a dead letter holds.
    pub held_keys: u64,
    /// Events that could not be handled, and that nobody has replayed or discarded.
    pub dead_letters: u64,
}

impl Waiting {
    pub fn of(tasks: &[TaskStatus]) -> Self {
        let sum = |count: fn(&TaskStatus) -> u64| tasks.iter().map(count).sum();
        Self {
            parked_events: sum(|task| task.parked_events),
            held_keys: sum(|task| task.held_keys),
            dead_letters: sum(|task| task.dead_letters),
        }
    }
}

/// A tenant for which a plugin stopped by itself. Its other tenants go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantFailure {
    pub tenant: String,
    pub message: String,
}

/// Something about one task that should be looked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskWarning {
    pub tenant: String,
    pub lane: u32,
    pub message: String,
}

/// What happened to a plugin since the host started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PluginCounters {
    pub events: u64,
    pub batches: u64,
    pub commits: u64,
    pub effects: u64,
    pub stale_writes: u64,
    pub retries: u64,
    pub traps: u64,
    pub dead_letters: u64,
    #[serde(default)]
    pub parked: u64,
    #[serde(default)]
    pub replayed: u64,
    /// Entries to append that were left out because of what their channels are: closed, unknown, somebody else's.
    #[serde(default)]
    pub dropped_appends: u64,
    /// Calls of `flush` whose effects were refused.
    #[serde(default)]
    pub refused_flushes: u64,
    #[serde(default)]
    pub breaker_openings: u64,
    pub restarts: u64,
    pub swaps: u64,
}

/// A capability that a plugin has or wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GrantStatus {
    /// `clock`, `random`, `env`, `http` or `read_dir`.
    pub name: String,
    /// The operator's settings give it.
    pub granted: bool,
    /// The manifest asks for it.
    pub wanted: bool,
    /// What it reaches: hosts, the folder, names of variables and never their values.
    pub reach: Vec<String>,
}

/// A candidate that did not take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refusal {
    /// Microseconds since 1970.
    pub at: i64,
    /// The candidate's digest, or its file's name where it has none.
    pub candidate: String,
    pub code: String,
    /// `host`, `guest` or `caller`.
    #[serde(default)]
    pub blame: String,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PluginStatus {
    pub name: String,
    pub state: PluginState,
    /// Why it is not running, or empty.
    pub message: String,
    /// The tenants that it stopped for, while it runs for others. When there are any, they are the message.
    #[serde(default)]
    pub tenant_failures: Vec<TenantFailure>,
    pub deployment: Deployment,
    pub manifest: Option<Manifest>,
    /// What it may do beyond its own world, and what it asks for.
    #[serde(default)]
    pub grants: Vec<GrantStatus>,
    /// Events of the log after the position of the task that is furthest behind.
    pub lag_events: u64,
    pub tasks: Vec<TaskStatus>,
    /// What will become a failure unless somebody looks after it.
    #[serde(default)]
    pub warnings: Vec<TaskWarning>,
    pub counters: PluginCounters,
    /// Lag, memory, CPU, checkpoints and times, of all tenants together; by version where it differs.
    #[serde(default)]
    pub measures: Measures,
    pub last_refusal: Option<Refusal>,
    /// The last version that wanted to take over, and how it compared.
    pub candidate: Option<Candidate>,
    /// The answer to a deploy of what runs already.
    #[serde(default)]
    pub nothing_changed: bool,
}

impl TenantFailure {
    /// What a status says of them; empty when there are none.
    pub fn sentence(failures: &[Self]) -> String {
        let each = failures.iter().map(|failure| format!("tenant {}: {}", failure.tenant, failure.message));
        each.collect::<Vec<_>>().join("; ")
    }
}

/// Runs plugins. Durable when it answers: what was deployed runs again after a restart.
pub trait PluginControl: Send + Sync + Debug {
    fn list(&self) -> BoxFuture<'_, Result<Vec<PluginStatus>, ControlError>>;

    fn show(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// What `/metrics` says of the plugins, in Prometheus' text format.
    fn metrics(&self) -> BoxFuture<'_, String> {
        ready(String::new()).boxed()
    }

    /// Former and present deployments, newest first.
    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, ControlError>>;

    /// Compiles, verifies, and starts the plugin or swaps it in at a batch
    /// boundary. The running version serves until then, and goes on when the
    /// candidate is refused. The same bytes again with the same settings change nothing.
    fn deploy(&self, request: DeployRequest) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// Lets a candidate that waits for it take over.
    fn confirm(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// Gives a candidate up that is in the shadow or waits to be confirmed.
    fn abandon(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// Deploys an earlier version again, with the settings that it was deployed with: the one with this digest or
    /// version, or the last other one. It proves itself like any other; the position does not move back.
    fn rollback(
        &self,
        plugin: &str,
        to: Option<&str>,
        by: &str,
        options: DeployOptions,
    ) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// Commits what was handled and stops; stays paused over restarts.
    fn pause(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    fn resume(&self, plugin: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>>;

    /// Stops the plugin and forgets its deployment and checkpoints. Its tables stay readable.
    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), ControlError>>;

    fn dead_letters(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, ControlError>>;

    /// One dead letter, by its event's position; of one tenant where one is given.
    fn dead_letter(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
    ) -> BoxFuture<'_, Result<DeadLetterRow, ControlError>>;

    /// Replays or discards a dead letter. Durable when it answers.
    fn resolve(
        &self,
        plugin: &str,
        tenant: Option<&TenantId>,
        letter: Position,
        verdict: Verdict,
    ) -> BoxFuture<'_, Result<Resolved, ControlError>>;

    /// Begins to fill a plugin's tables anew beside those that are served, which they replace at one moment. Also says
    /// to a rebuild that waits for it that events may stay unemitted. Goes on over restarts.
    fn rebuild(&self, request: RebuildRequest) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        ready(Err(RebuildError::None { plugin: request.plugin }.into())).boxed()
    }

    /// The last rebuild of a plugin, whether it has ended or not.
    fn rebuild_status(&self, plugin: &str) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        ready(Err(RebuildError::None { plugin: plugin.to_owned() }.into())).boxed()
    }

    /// Ends a rebuild that has not taken over; the plugin is as it was.
    fn abandon_rebuild(&self, plugin: &str) -> BoxFuture<'_, Result<RebuildView, ControlError>> {
        ready(Err(RebuildError::None { plugin: plugin.to_owned() }.into())).boxed()
    }

    /// Handles an event once more in an instance of its own, from the committed state. Commits nothing.
    fn replay(&self, request: ReplayRequest) -> BoxFuture<'_, Result<ReplayReport, ControlError>>;
}

/// An event to do once more without any effect.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    pub plugin: String,
    pub tenant: TenantId,
    /// The event's id, or its position.
    pub event: String,
}

/// What happened when an event was done once more.
#[derive(Clone, Debug)]
pub struct ReplayReport {
    pub task: TaskId,
    pub event: Arc<EventBatch>,
    pub version: String,
    /// What the instance began with.
    pub state_before: Option<SavedState>,
    pub autopsy: Autopsy,
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    #[error("there is no plugin `{plugin}`")]
    Unknown { plugin: String },
    #[error("the component says its name is `{found}`, not `{expected}`")]
    OtherName { expected: String, found: String },
    #[error("the component's {what} is `{found}`, and it was released as `{expected}`")]
    OtherBuild { what: &'static str, expected: String, found: String },
    #[error("version {version} refused the state of task {task}: {detail}")]
    StateRefused { version: String, task: String, detail: String },
    #[error(
        "version {version} cannot load the state of task {task}: it has {bytes} bytes; guest_state_bytes_max is {max}"
    )]
    StateTooLarge { version: String, task: String, bytes: u64, max: u64 },
    #[error("version {version} broke a limit while it loaded the state of task {task}: {detail}")]
    LoadLimit { version: String, task: String, detail: String },
    #[error("version {version} did not take over: {detail}")]
    SwapFailed { version: String, detail: String },
    #[error("version {version} was refused in the shadow: {refusal}")]
    Shadow { version: String, refusal: ShadowRefusal },
    /// A feed decides what runs under this name; here it would be undone.
    #[error("plugin `{plugin}` is the control feed's: change it there")]
    Managed { plugin: String },
    #[error("another version of plugin `{plugin}` is being deployed")]
    DeployInProgress { plugin: String },
    /// What was deployed before is not known to run yet.
    #[error("the host is starting")]
    Starting,
    #[error("version {version} of plugin `{plugin}` waits to be confirmed")]
    CandidateWaits { plugin: String, version: String },
    #[error("no candidate of plugin `{plugin}` {wanted}")]
    NoCandidate { plugin: String, wanted: &'static str },
    #[error("plugin `{plugin}` has no earlier deployment {asked}; its history has {known}")]
    NoDeployment { plugin: String, asked: String, known: String },
    #[error("plugin `{plugin}` has no dead letter {letter}; it may have been replayed or discarded")]
    DeadLetterUnknown { plugin: String, letter: u64 },
    #[error("there is no event `{event}` among the dead letters and the newest {searched} events")]
    EventUnknown { event: String, searched: u64 },
    #[error("plugin `{plugin}` {state}, so nothing can be decided about its dead letters")]
    NotRunning { plugin: String, state: &'static str },
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Classify for ControlError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "plugin_unknown",
            Self::OtherName { .. } => "plugin_other_name",
            Self::OtherBuild { .. } => "plugin_other_build",
            Self::StateRefused { .. } => "state_refused",
            Self::StateTooLarge { .. } => "guest_state_bytes_max",
            Self::LoadLimit { .. } => "load_limit",
            Self::SwapFailed { .. } => "swap_failed",
            Self::Shadow { refusal, .. } => refusal.fault.code(),
            Self::Managed { .. } => "plugin_managed",
            Self::DeployInProgress { .. } => "deploy_in_progress",
            Self::Starting => "host_starting",
            Self::CandidateWaits { .. } => "candidate_waits",
            Self::NoCandidate { .. } => "candidate_unknown",
            Self::NoDeployment { .. } => "deployment_unknown",
            Self::DeadLetterUnknown { .. } => "dead_letter_unknown",
            Self::EventUnknown { .. } => "event_unknown",
            Self::NotRunning { .. } => "plugin_not_running",
            Self::Rebuild(e) => e.code(),
            Self::Resolve(e) => e.code(),
            Self::Stream(e) => e.code(),
            Self::Plugin(e) => e.code(),
            Self::Table(e) => e.code(),
            Self::Commit(e) => e.code(),
            Self::Backend(e) => e.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Plugin(e) => e.retry(),
            Self::Rebuild(e) => e.retry(),
            Self::Resolve(e) => e.retry(),
            Self::Stream(e) => e.retry(),
            Self::Table(e) => e.retry(),
            Self::Commit(e) => e.retry(),
            Self::Backend(e) => e.retry(),
            Self::DeployInProgress { .. } | Self::Starting => Retry::After(DEPLOY_AGAIN),
            Self::CandidateWaits { .. } => Retry::After(DEPLOY_AGAIN * 10),
            Self::Shadow { refusal, .. } if refusal.fault == ShadowFault::Host => Retry::After(DEPLOY_AGAIN),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Unknown { .. }
            | Self::OtherName { .. }
            | Self::OtherBuild { .. }
            | Self::Managed { .. }
            | Self::DeployInProgress { .. }
            | Self::CandidateWaits { .. }
            | Self::NoCandidate { .. }
            | Self::NoDeployment { .. }
            | Self::DeadLetterUnknown { .. }
            | Self::EventUnknown { .. }
            | Self::NotRunning { .. } => Blame::Caller,
            Self::Shadow { refusal, .. } => match refusal.fault {
                ShadowFault::Host => Blame::Host,
                ShadowFault::Stopped => Blame::Caller,
                _ => Blame::Guest,
            },
            Self::StateRefused { .. }
            | Self::StateTooLarge { .. }
            | Self::LoadLimit { .. }
            | Self::SwapFailed { .. } => Blame::Guest,
            Self::Starting => Blame::Host,
            Self::Rebuild(e) => e.blame(),
            Self::Resolve(e) => e.blame(),
            Self::Stream(e) => e.blame(),
            Self::Plugin(e) => e.blame(),
            Self::Table(e) => e.blame(),
            Self::Commit(e) => e.blame(),
            Self::Backend(e) => e.blame(),
        }
    }
}
