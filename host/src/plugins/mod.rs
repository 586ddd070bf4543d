//! The WebAssembly side: engine, sandbox, instances, artifacts, the precompiled
//! cache, and hot loading.
//!
//! Promises: a component gets nothing that its grants do not name; memory,
//! time, output and log volume of a call are bounded; a trap ends one instance.
//! Deliberately absent: when events are handled and what happens after a
//! failure; that is `processors`, which sees only its own `Processor` trait.

mod artifacts;
mod autopsy;
mod bindings;
mod cache;
mod call_time;
mod candidate;
mod code;
mod compiler;
mod control;
mod describe;
mod engine;
mod grants;
mod hosts;
mod http;
mod instance;
mod managed;
mod memory;
mod metering;
mod parts;
mod rebuild;
mod rebuilder;
mod registry;
mod runtime;
mod sandbox;
pub(crate) mod tls;
pub mod trial;
mod trim;
mod wait;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

pub use candidate::{Candidate, CandidateState, DeployOptions};
pub use control::{
    ControlError, DeployFrom, DeployRequest, DeployStep, ExpectedBuild, GrantStatus, PluginControl,
    PluginCounters, PluginState, PluginStatus, Refusal, ReplayReport, ReplayRequest, TaskStatus, TaskWarning,
    TenantFailure, Waiting,
};

pub use artifacts::FileArtifacts;
pub use autopsy::{Autopsy, CoreDump, Scene};
pub use compiler::compiler_main;
pub use grants::{EnvValue, GRANTS};
pub use managed::ManagedPlugins;
pub use metering::Metering;
pub use rebuild::{
    DroppedEffects, Flip, FlipReport, NewRebuild, Positions, RebuildError, RebuildProgress, RebuildRecord,
    RebuildRequest, RebuildStage, RebuildStore, RebuildView,
};
pub use rebuilder::Rebuilder;
pub use registry::{Registry, RegistryParts};
pub use runtime::{Imports, RuntimeOptions, WORLD_NAME, WasmRuntime};
pub use watch::DirectoryWatcher;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::{BackendError, Blame, Classify, Retry};
use crate::limits::PLUGIN_STORAGE_RETRY;
/// What a plugin says of itself, which its status shows, and what a candidate may be held to.
pub use crate::processors::{CodeState, Expect, Manifest, Measures, ShadowFault};
/// What a version did, and how it compared.
pub use crate::processors::{Differences, ShadowReport, TrapCounts, VersionMeasures};
/// What happens to failing events, and what can be done about them.
pub use crate::processors::{FailureKind, FailurePolicy, LoadError, LostPolicy, Resolved, Verdict};
use crate::processors::{InvalidManifest, OrderingKey, ProcessorFactory};
/// What a rebuild calls its tables and tasks.
pub use crate::processors::{RebuildStep, is_shadow_name, shadow_name};

/// What the operator gives a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginSettings {
    /// Answers to the guest's `config.get`.
    pub config: BTreeMap<String, String>,
    /// Granted capabilities: `clock`, `random`, `env`, `http`, `read_dir`, `channels`. None is given by default.
    pub grants: Vec<String>,
    /// What the grant `env` shows: the guest's environment variables.
    pub env: BTreeMap<String, EnvValue>,
    /// What the grant `http` reaches: `api.example.com`, `api.example.com:8443`, `*.example.org`.
    pub http_hosts: Vec<String>,
    /// Authorities, as PEM, whose certificates its requests to `https` addresses trust beside those of the
    /// operating system.
    pub http_ca_file: Option<PathBuf>,
    /// What the grant `read_dir` shows, read-only, as the guest's `/data`.
    pub read_dir: Option<PathBuf>,
    /// What the grant `channels` reaches: channels that it may append to, `answers` or `chat-*`, in processes that it
    /// takes part in as `plugin:<name>`.
    pub channels: Vec<String>,
    /// Lanes, at the first deploy. Fixed from then on.
    pub lanes: Option<u32>,
    /// What happens to the ordering key of a dead letter: `hold` or `skip`.
    pub on_failure: Option<FailurePolicy>,
    /// What happens when events are gone that it has not handled: `stop`, `oldest`, `tail` or `rebuild`.
    pub on_position_lost: Option<LostPolicy>,
    /// Overrides of `guest_memory_bytes_max` and `guest_call_max`.
    pub memory_bytes_max: Option<usize>,
    pub call_ms_max: Option<u64>,
    /// Override of `guest_state_bytes_max`, up to 64 MiB.
    pub state_bytes_max: Option<usize>,
}

/// Makes processors out of components.
///
/// `load` compiles (or finds in the precompiled cache) and verifies: world,
/// imports against grants, manifest. The operator's settings are asked for once the
/// component has said its name. It may take seconds and blocks; call it off the hot path.
pub trait PluginRuntime: Send + Sync + Debug {
    fn load(
        &self,
        component: &[u8],
        settings_of: &dyn Fn(&str) -> PluginSettings,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError>;

    /// Does once more what an instance did with an event, in one made for it that keeps what it left when it
    /// fell. Commits nothing, and asks for nothing but reads of the keyed state. The settings should be those
    /// that the plugin runs with. Compiles anew, so it may take seconds, and blocks.
    fn autopsy(
        &self,
        component: &[u8],
        settings: &PluginSettings,
        scene: &Scene<'_>,
    ) -> Result<Autopsy, PluginError>;
}

/// Component bytes by the SHA-256 of their content, as lower-case hexadecimal.
pub trait ArtifactStore: Send + Sync + Debug {
    /// Durable when it answers; the same bytes answer the same digest.
    fn put(&self, component: &[u8]) -> Result<String, PluginError>;

    /// The bytes, checked against the digest.
    fn get(&self, digest: &str) -> Result<Vec<u8>, PluginError>;

    /// Removes all but these and answers how many went. What is put meanwhile may go, too: the caller sees to
    /// it that nothing is.
    fn retain(&self, digests: &BTreeSet<String>) -> Result<usize, PluginError>;
}

/// What should run, as it is remembered over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Deployment {
    pub plugin: String,
    pub version: String,
    pub digest: String,
    pub paused: bool,
    /// Fixed at the first deploy.
    pub lanes: u32,
    /// Where a task without a checkpoint begins.
    pub from: StartFrom,
    /// Microseconds since 1970.
    pub deployed_at: i64,
    /// `directory` or `api`, and by whom.
    pub deployed_by: String,
    /// What its lanes were filled by; another key is another plugin. None in what older hosts wrote.
    #[serde(default)]
    pub ordering_key: Option<OrderingKey>,
    /// How the version proved itself.
    #[serde(default)]
    pub proof: Proof,
    /// An earlier version that was deployed again.
    #[serde(default)]
    pub rollback: bool,
    /// What it was deployed with; none are the operator's settings. They hold secrets of the guest, so only a
    /// [`DeploymentStore`] writes them down, beside what everybody sees of a deployment.
    #[serde(skip)]
    pub settings: Option<PluginSettings>,
}

/// What a version has shown before it served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It loads the state of every task. There was nothing that ran beside it.
    #[default]
    Loaded,
    /// The same; the shadow run was left out on request.
    LoadedOnly,
    /// It has also handled this many events in the shadow of the version before it.
    Shadowed { events: u64 },
    /// It has handled this many events to fill the plugin's tables anew.
    Rebuilt { events: u64 },
}

/// Where a new processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// The oldest retained event.
    Oldest,
    /// After this position. `tail` was turned into one at the deploy.
    After(u64),
}

/// Remembers deployments with their settings, durably.
pub trait DeploymentStore: Send + Sync + Debug {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>>;
    /// Writes a plugin's deployment over the former one, and the former one into its history.
    fn put(&self, deployment: Deployment) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Takes a plugin's deployment back, as if it had not been put: the former one is the present one again.
    fn withdraw(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Forgets a plugin: its deployment, checkpoints and keyed state. Tables and dead letters stay
    /// readable; the tables have no owner until they are declared again.
    fn remove(&self, plugin: &str) -> BoxFuture<'_, Result<(), BackendError>>;
    /// The artifacts of all deployments, present and former as far as they are kept, of removed plugins, too.
    fn digests(&self) -> BoxFuture<'_, Result<BTreeSet<String>, BackendError>>;
    /// Former and present deployments of a plugin, newest first.
    fn history(&self, plugin: &str) -> BoxFuture<'_, Result<Vec<Deployment>, BackendError>>;
    /// Writes what became of a plugin's last candidate over what became of the one before.
    fn put_candidate(&self, plugin: &str, candidate: Candidate) -> BoxFuture<'_, Result<(), BackendError>>;
    /// What became of the last candidate of each plugin that had one.
    fn candidates(&self) -> BoxFuture<'_, Result<BTreeMap<String, Candidate>, BackendError>>;
}

/// Why a component cannot become, or stay, a plugin.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    #[error("this is not a WebAssembly component: {detail}")]
    NotAComponent { detail: String },
    #[error("the component has the wrong world: {detail}")]
    WrongWorld { detail: String },
    #[error("plugin {plugin} lacks the grant `{grant}`, which {why}: {give}")]
    GrantMissing { plugin: String, grant: String, why: String, give: String },
    #[error(
        "the component imports `{import}`, which this host does not have: it has the world's own imports and WASI 0.2 (cli, clocks, filesystem, io, random, sockets), empty without a grant, and outgoing wasi:http with one"
    )]
    ImportUnknown { import: String },
    #[error("`{grant}` is not a grant; there are: {}", GRANTS.join(", "))]
    GrantUnknown { grant: String },
    #[error("`{key}` is not usable: {detail}")]
    Settings { key: String, detail: String },
    #[error(
        "plugin {plugin} is granted channels, but processors append only to channels that are kept, and here channels.store puts them in memory: remove `channels` from plugins.{plugin}.grants"
    )]
    ChannelsElsewhere { plugin: String },
    #[error("the component has {bytes} bytes; component_bytes_max is {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the component has {found} {what}; {limit} is {max}")]
    TooManyParts { what: &'static str, found: u64, limit: &'static str, max: u64 },
    #[error("compiling the component needs more than {limit} = {max}{}", raise(limit))]
    CompileLimit { limit: &'static str, max: u64 },
    #[error("the compiler failed: {detail}")]
    Compiler { detail: String },
    #[error("`describe` failed: {detail}")]
    Describe { detail: String },
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    #[error("there is no artifact {digest}")]
    ArtifactMissing { digest: String },
    #[error("artifact {digest} is damaged: its bytes have digest {found}")]
    ArtifactDamaged { digest: String, found: String },
    #[error("the plugin store failed: {detail}")]
    Storage { detail: String },
    #[error("the WebAssembly engine failed: {detail}")]
    Engine { detail: String },
}

/// Some limits have a setting.
fn raise(limit: &str) -> String {
    if limit.starts_with("compile_") { format!("; raise processors.{limit}") } else { String::new() }
}

impl Classify for PluginError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotAComponent { .. } => "not_a_component",
            Self::WrongWorld { .. } => "wrong_world",
            Self::GrantMissing { .. } => "grant_missing",
            Self::ImportUnknown { .. } => "import_unknown",
            Self::GrantUnknown { .. } => "grant_unknown",
            Self::Settings { .. } => "plugin_settings_invalid",
            Self::ChannelsElsewhere { .. } => "channels_elsewhere",
            Self::TooLarge { .. } => "component_bytes_max",
            Self::TooManyParts { .. } => "wrong_parts",
            Self::CompileLimit { .. } => "compile_limit",
            Self::Compiler { .. } => "compiler_failed",
            Self::Describe { .. } => "describe_failed",
            Self::Manifest(_) => "manifest_invalid",
            Self::ArtifactMissing { .. } => "artifact_missing",
            Self::ArtifactDamaged { .. } => "artifact_damaged",
            Self::Storage { .. } => "plugin_storage_failed",
            Self::Engine { .. } => "engine_failed",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            // A disk that is full, busy or failing may be better soon. Nothing else changes by itself.
            Self::Storage { .. } => Retry::After(PLUGIN_STORAGE_RETRY),
            _ => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::ArtifactDamaged { .. }
            | Self::Storage { .. }
            | Self::Engine { .. }
            | Self::Compiler { .. } => Blame::Host,
            Self::ArtifactMissing { .. }
            | Self::GrantUnknown { .. }
            | Self::Settings { .. }
            | Self::ChannelsElsewhere { .. } => Blame::Caller,
            _ => Blame::Guest,
        }
    }
}
