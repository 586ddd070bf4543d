//! What an operator may set: one [`Config`] made of parts, and where each value came from.
//!
//! Promises: defaults < config file < environment < flags; an unknown key is an
//! error that names the key, its place and the nearest key there is; every
//! value knows its source; what is a secret is masked wherever it is printed.
//! Deliberately absent: side effects. Parsing opens no port, makes no folder
//! and reads nothing but the config file. Limits have the names of `limits.rs`.

mod cache;
mod channels;
mod check;
mod control;
mod groups;
mod grpc;
mod layers;
mod presence;
mod redis;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache::CacheConfig;
pub use channels::{ChannelsConfig, ChannelsStore};
pub use control::{ArtifactsConfig, ControlConfig};
pub use groups::GroupsConfig;
pub use grpc::{GrpcCheckpoints, GrpcConfig};
pub use layers::{Layers, Resolved, Setting};
pub use presence::PresenceConfig;
pub use redis::{LogAddress, RedisAckConfig, RedisConfig};
pub use source::{GrpcSourceConfig, SecretText, SourceCheckpoints, SourceConfig, Span};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits;
use crate::plugins::{FailurePolicy, LostPolicy, Metering, PluginSettings};
use crate::streams::upcast::DeclaredUpcast;

/// Where a host keeps its store that was told nothing, in the folder that it is started in.
pub const DATA_DIR: &str = "millrace-data";

/// Everything that `millrace serve` can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub serve: ServeConfig,
    pub gateway: GatewayConfig,
    pub auth: AuthConfig,
    pub store: StoreConfig,
    pub groups: GroupsConfig,
    pub presence: PresenceConfig,
    pub channels: ChannelsConfig,
    pub redis: RedisConfig,
    pub cache: CacheConfig,
    pub control: ControlConfig,
    pub processors: ProcessorsConfig,
    pub source: SourceConfig,
    pub grpc: GrpcConfig,
    pub telemetry: TelemetryConfig,
    /// How payloads of earlier schema versions look to every consumer.
    pub upcasters: Vec<DeclaredUpcast>,
    /// By plugin name: configuration, grants, lanes, own limits.
    pub plugins: BTreeMap<String, PluginSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// Where to listen. Without `auth.tokens`, a loopback address.
    pub bind: SocketAddr,
    /// The folder of the store. One host at a time.
    pub data: PathBuf,
    /// Where the log is that this host shares with others, such as `redis://127.0.0.1:6379`; none: in `data`.
    pub log: Option<LogAddress>,
    /// A folder whose `*.wasm` files are deployed and kept up to date.
    pub plugins_dir: Option<PathBuf>,
    /// All of a drain, from the signal to the exit.
    pub drain_ms_max: u64,
}

/// Bounds of the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    pub header_wait_ms_max: u64,
    pub body_idle_ms_max: u64,
    pub body_bytes_max: u64,
    pub upload_bytes_max: u64,
    pub connections_max: usize,
    pub sse_heartbeat_ms: u64,
    /// How long followers of events and changes wait for a log that cannot be read, such as while its server restarts.
    pub log_away_ms_max: u64,
    /// How long conflated followers of changes wait for a later event, where they do not say.
    pub change_window_ms: u64,
    pub write_wait_ms_max: u64,
    /// Bounds of live queries: bytes of a query or message, subscriptions of a WebSocket, and its first command.
    pub live_message_bytes_max: usize,
    pub live_subscriptions_max: usize,
    /// Different live queries that are kept at the same time.
    pub live_views_max: usize,
    pub live_first_command_wait_ms_max: u64,
    /// Origins whose pages may use the host from a browser, such as `https://app.example.com`.
    pub cors_origins: Vec<String>,
    /// Requests of one tenant in a second, and at once; 0 a second leaves them unbounded.
    pub tenant_requests_per_s: u32,
    pub tenant_requests_burst: u32,
}

/// Who may do what. Without tokens everybody on this machine is tenant `default` with all rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    pub tokens: Vec<TokenConfig>,
    /// JSON Web Tokens of an issuer, beside the static tokens.
    pub jwt: Option<JwtConfig>,
    pub session_lifetime_s: u64,
    pub sessions_max: usize,
    pub ticket_lifetime_s: u64,
    pub tickets_max: usize,
    pub revocations_max: usize,
}

/// One static bearer token: itself or its digest, never both.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    pub token: Option<String>,
    /// SHA-256 of the token as 64 hexadecimal digits, so that the file holds no secret.
    pub token_sha256: Option<String>,
    pub tenant: String,
    pub rights: Vec<Right>,
    /// Names the token in messages and in `deployed_by`; never the token itself.
    pub name: Option<String>,
    /// The only tables that the token reads; none: all of them.
    pub tables: Option<TablesConfig>,
}

/// Names, or names with what their rows must meet: `{ flights = { where = "carrier:eq:UA" } }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TablesConfig {
    Names(Vec<String>),
    Rules(BTreeMap<String, TableRuleConfig>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableRuleConfig {
    /// As a query's `where`: `column:op:value` or JSON. Columns need not be filterable.
    #[serde(rename = "where")]
    pub condition: Option<String>,
}

/// One issuer of JSON Web Tokens. Its keys come from one of the first three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// A file with the secret of HS256, 32 bytes or more.
    pub hs256_secret_file: Option<PathBuf>,
    pub jwks_file: Option<PathBuf>,
    /// An https address, or an http address of this machine.
    pub jwks_url: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub leeway_s: u64,
    pub tenant_claim: String,
    pub rights_claim: String,
    pub algorithms: Vec<JwtAlgorithm>,
    pub jwks_refresh_s: u64,
    /// How soon the key set is read again because of an unknown key.
    pub jwks_refresh_s_min: u64,
    pub jwks_wait_ms_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    HS256,
    RS256,
    ES256,
    EdDSA,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Append events.
    Publish,
    /// Read streams and tables.
    Read,
    /// Deploy, pause and remove plugins.
    Admin,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Events older than this are trimmed; none keeps everything.
    pub retention_age_seconds: Option<u64>,
    /// Events beyond this many are trimmed, oldest first; none keeps everything.
    pub retention_events: Option<u64>,
    pub dedup_events_max: usize,
    pub tail_bytes_max: usize,
    pub disk_free_bytes_min: u64,
    pub wal_bytes_soft_max: u64,
    pub wal_bytes_hard_max: u64,
    pub tombstone_age_seconds_max: u64,
    /// Dead letters of one plugin. With one more it stops until some are replayed or discarded.
    pub dead_letters_max: u64,
    /// Entries that one change stream keeps, about; 0 keeps what retention keeps. None does the same in the store's own log,
    /// and is `REDIS_CHANGE_STREAM_EVENTS_MAX` on a shared one. A `MemoryLog` of an embedder is told its own number
    /// (`MemoryLog::with_change_streams_of`), and does not look at this.
    pub change_stream_events_max: Option<u64>,
    /// Bounds of one task's keyed state.
    pub keyed_state_bytes_max: u64,
    pub keyed_state_entries_max: u64,
    /// How long keyed state that has expired is kept.
    pub state_expired_keep_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessorsConfig {
    pub guest_memory_bytes_max: usize,
    pub guest_state_bytes_max: usize,
    pub guest_call_ms_max: u64,
    /// What bounds the work of a call: `epoch`, which is time, or `fuel`, which is instructions.
    pub guest_metering: Metering,
    pub guest_fuel_max: u64,
    pub instances_max: usize,
    pub retries_max: u32,
    pub retry_wait_ms_min: u64,
    pub retry_wait_ms_max: u64,
    /// What happens to the ordering key of a dead letter: `hold` or `skip`. A plugin may have its own.
    pub on_failure: FailurePolicy,
    /// What happens when events are gone that a task has not handled: `stop`, `oldest`, `tail` or `rebuild`. A plugin
    /// may have its own.
    pub on_position_lost: LostPolicy,
    pub parked_events_max: usize,
    pub parked_bytes_max: usize,
    pub breaker_failures_max: u32,
    pub breaker_wait_ms_min: u64,
    pub breaker_wait_ms_max: u64,
    pub commit_events_max: usize,
    pub commit_bytes_max: usize,
    pub task_idle_ms_max: u64,
    pub compile_ms_max: u64,
    pub compile_memory_bytes_max: u64,
    pub precompiled_bytes_max: u64,
    /// Events that a new version handles beside the running one before it takes over; 0 leaves it out.
    pub shadow_events: u64,
    pub shadow_ms: u64,
    pub shadow_ms_max: u64,
    pub shadow_time_ratio_max: u32,
    pub shadow_errors_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Which messages are written: `info`, `millrace=debug,warn`, … What guests say has the target
    /// `millrace::guest`: `info,millrace::guest=off` leaves it out.
    pub filter: String,
    pub format: TraceFormat,
    /// Where spans go by OTLP over HTTP, such as `http://127.0.0.1:4318`; none records no spans.
    pub otlp_endpoint: Option<String>,
    /// Sent with every export. Masked wherever settings are printed.
    pub otlp_headers: BTreeMap<String, String>,
    /// What the collector knows this host as.
    pub service_name: String,
    /// The share of the traces that begin at this host and are recorded, 0 to 1. A publish that brings a
    /// `traceparent` was decided on by its sender.
    pub trace_sample_ratio: Ratio,
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(pub f64);

// What is not a number is refused when the settings are checked.
impl Eq for Ratio {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceFormat {
    #[default]
    Text,
    Json,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 7070)),
            data: Path::new(".").join(DATA_DIR),
            log: None,
            plugins_dir: None,
            drain_ms_max: millis(limits::DRAIN_MAX),
        }
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            header_wait_ms_max: millis(limits::HEADER_WAIT_MAX),
            body_idle_ms_max: millis(limits::BODY_IDLE_MAX),
            body_bytes_max: limits::BODY_BYTES_MAX as u64,
            upload_bytes_max: limits::UPLOAD_BYTES_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            sse_heartbeat_ms: millis(limits::SSE_HEARTBEAT),
            log_away_ms_max: millis(limits::LOG_AWAY_MAX),
            change_window_ms: millis(limits::CHANGE_WINDOW),
            write_wait_ms_max: millis(limits::WRITE_WAIT_MAX),
            live_message_bytes_max: limits::LIVE_MESSAGE_BYTES_MAX,
            live_subscriptions_max: limits::LIVE_SUBSCRIPTIONS_MAX,
            live_views_max: limits::LIVE_VIEWS_MAX,
            live_first_command_wait_ms_max: millis(limits::LIVE_FIRST_COMMAND_WAIT_MAX),
            cors_origins: Vec::new(),
            tenant_requests_per_s: limits::TENANT_REQUESTS_PER_S,
            tenant_requests_burst: limits::TENANT_REQUESTS_BURST,
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            jwt: None,
            session_lifetime_s: limits::SESSION_LIFETIME.as_secs(),
            sessions_max: limits::SESSIONS_MAX,
            ticket_lifetime_s: limits::TICKET_LIFETIME.as_secs(),
            tickets_max: limits::TICKETS_MAX,
            revocations_max: limits::REVOCATIONS_MAX,
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        use JwtAlgorithm::{ES256, EdDSA, HS256, RS256};
        Self {
            hs256_secret_file: None,
            jwks_file: None,
            jwks_url: None,
            issuer: None,
            audience: None,
            leeway_s: limits::JWT_LEEWAY.as_secs(),
            tenant_claim: "tenant".into(),
            rights_claim: "rights".into(),
            algorithms: vec![HS256, RS256, ES256, EdDSA],
            jwks_refresh_s: limits::JWKS_REFRESH.as_secs(),
            jwks_refresh_s_min: limits::JWKS_REFRESH_MIN.as_secs(),
            jwks_wait_ms_max: millis(limits::JWKS_WAIT_MAX),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            retention_age_seconds: None,
            retention_events: None,
            dedup_events_max: limits::DEDUP_EVENTS_MAX,
            tail_bytes_max: limits::TAIL_BYTES_MAX,
            disk_free_bytes_min: limits::DISK_FREE_BYTES_MIN,
            wal_bytes_soft_max: limits::WAL_BYTES_SOFT_MAX,
            wal_bytes_hard_max: limits::WAL_BYTES_HARD_MAX,
            tombstone_age_seconds_max: limits::TOMBSTONE_AGE_MAX.as_secs(),
            dead_letters_max: limits::DEAD_LETTERS_MAX,
            change_stream_events_max: None,
            keyed_state_bytes_max: limits::KEYED_STATE_BYTES_MAX,
            keyed_state_entries_max: limits::KEYED_STATE_ENTRIES_MAX,
            state_expired_keep_seconds: limits::STATE_EXPIRED_KEEP.as_secs(),
        }
    }
}

impl Default for ProcessorsConfig {
    fn default() -> Self {
        Self {
            guest_memory_bytes_max: limits::GUEST_MEMORY_BYTES_MAX,
            guest_state_bytes_max: limits::GUEST_STATE_BYTES_MAX,
            guest_call_ms_max: millis(limits::GUEST_CALL_MAX),
            guest_metering: Metering::default(),
            guest_fuel_max: limits::GUEST_FUEL_MAX,
            instances_max: limits::INSTANCES_MAX,
            retries_max: limits::RETRIES_MAX,
            retry_wait_ms_min: millis(limits::RETRY_WAIT_MIN),
            retry_wait_ms_max: millis(limits::RETRY_WAIT_MAX),
            on_failure: FailurePolicy::default(),
            on_position_lost: LostPolicy::default(),
            parked_events_max: limits::PARKED_EVENTS_MAX,
            parked_bytes_max: limits::PARKED_BYTES_MAX,
            breaker_failures_max: limits::BREAKER_FAILURES_MAX,
            breaker_wait_ms_min: millis(limits::BREAKER_WAIT_MIN),
            breaker_wait_ms_max: millis(limits::BREAKER_WAIT_MAX),
            commit_events_max: limits::COMMIT_EVENTS_MAX,
            commit_bytes_max: limits::COMMIT_BYTES_MAX,
            task_idle_ms_max: millis(limits::TASK_IDLE_MAX),
            compile_ms_max: millis(limits::COMPILE_MAX),
            compile_memory_bytes_max: limits::COMPILE_MEMORY_BYTES_MAX,
            precompiled_bytes_max: limits::PRECOMPILED_BYTES_MAX,
            shadow_events: limits::SHADOW_EVENTS,
            shadow_ms: millis(limits::SHADOW_TIME),
            shadow_ms_max: millis(limits::SHADOW_TIME_MAX),
            shadow_time_ratio_max: limits::SHADOW_TIME_RATIO_MAX,
            shadow_errors_max: limits::SHADOW_ERRORS_MAX,
        }
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: TraceFormat::default(),
            otlp_endpoint: None,
            otlp_headers: BTreeMap::new(),
            service_name: "millrace".into(),
            trace_sample_ratio: Ratio(1.0),
        }
    }
}

impl ServeConfig {
    pub fn drain_max(&self) -> Duration {
        Duration::from_millis(self.drain_ms_max)
    }
}

impl GatewayConfig {
    pub fn header_wait_max(&self) -> Duration {
        Duration::from_millis(self.header_wait_ms_max)
    }

    pub fn body_idle_max(&self) -> Duration {
        Duration::from_millis(self.body_idle_ms_max)
    }

    pub fn change_window(&self) -> Duration {
        Duration::from_millis(self.change_window_ms)
    }

    pub fn sse_heartbeat(&self) -> Duration {
        Duration::from_millis(self.sse_heartbeat_ms)
    }

    pub fn log_away_max(&self) -> Duration {
        Duration::from_millis(self.log_away_ms_max)
    }

    pub fn write_wait_max(&self) -> Duration {
        Duration::from_millis(self.write_wait_ms_max)
    }

    pub fn live_first_command_wait_max(&self) -> Duration {
        Duration::from_millis(self.live_first_command_wait_ms_max)
    }
}

impl StoreConfig {
    pub fn retention_age(&self) -> Option<Duration> {
        self.retention_age_seconds.map(Duration::from_secs)
    }

    pub fn tombstone_age_max(&self) -> Duration {
        Duration::from_secs(self.tombstone_age_seconds_max)
    }

    pub fn state_expired_keep(&self) -> Duration {
        Duration::from_secs(self.state_expired_keep_seconds)
    }
}

impl ProcessorsConfig {
    pub fn guest_call_max(&self) -> Duration {
        Duration::from_millis(self.guest_call_ms_max)
    }

    pub fn retry_wait_min(&self) -> Duration {
        Duration::from_millis(self.retry_wait_ms_min)
    }

    pub fn retry_wait_max(&self) -> Duration {
        Duration::from_millis(self.retry_wait_ms_max)
    }

    pub fn breaker_wait_min(&self) -> Duration {
        Duration::from_millis(self.breaker_wait_ms_min)
    }

    pub fn breaker_wait_max(&self) -> Duration {
        Duration::from_millis(self.breaker_wait_ms_max)
    }

    pub fn compile_max(&self) -> Duration {
        Duration::from_millis(self.compile_ms_max)
    }

    pub fn task_idle_max(&self) -> Duration {
        Duration::from_millis(self.task_idle_ms_max)
    }

    pub fn shadow(&self) -> Duration {
        Duration::from_millis(self.shadow_ms)
    }

    pub fn shadow_max(&self) -> Duration {
        Duration::from_millis(self.shadow_ms_max)
    }
}

impl TokenConfig {
    /// SHA-256 of the token: what a presented one is compared with. `None` where the entry is incomplete.
    pub fn digest(&self) -> Option<[u8; 32]> {
        match (&self.token, &self.token_sha256) {
            (Some(token), None) if !token.is_empty() => Some(Sha256::digest(token.as_bytes()).into()),
            (None, Some(text)) => hexadecimal(text),
            _ => None,
        }
    }
}

impl fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenConfig")
            .field("tenant", &self.tenant)
            .field("rights", &self.rights)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why there is no configuration.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("`{key}` in {origin} is not a setting{}", nearest.as_ref().map(|n| format!("; the nearest is `{n}`")).unwrap_or_default())]
    UnknownKey { key: String, origin: String, nearest: Option<String> },
    #[error("`{key}` in {origin} is not usable: {detail}")]
    Invalid { key: String, origin: String, detail: String },
    #[error("the config file {} cannot be read: {detail}", path.display())]
    Unreadable { path: PathBuf, detail: String },
    #[error("`{text}` is not KEY=VALUE, such as store.retention_events=1000000")]
    NotAnAssignment { text: String },
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
