//! Puts the parts together: the only file that names concrete backends.
//!
//! Order of a start: store (locked, opened, migrated), WebAssembly runtime,
//! what was deployed, the edge, the watched folder. A drain goes the other way
//! round under one deadline, so that nothing new comes in while what was handled is committed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backends::memory::MemoryPresence;
use crate::backends::sqlite::{OpenError, SqliteOptions, SqliteStore};
use crate::clock::{Clock, SystemClock};
use crate::config::{
    AuthConfig, Config, JwtAlgorithm as ConfiguredAlgorithm, JwtConfig, Right as ConfiguredRight,
    TablesConfig, TokenConfig,
};
use crate::gateway::{
    AuthOptions, Gateway, GatewayError, GatewayOptions, JwtAlgorithm, JwtKeys, JwtOptions, Readiness, Right,
    Services, TokenOptions,
};
use crate::live::LiveEngine;
use crate::plugins::{
    ArtifactStore, ControlError, DirectoryWatcher, FileArtifacts, PluginControl, PluginError, Registry,
    RegistryParts, RuntimeOptions, WasmRuntime,
};
use crate::presence::{Presence, PresenceLimits};
use crate::processors::{Engine, GuestPool, ProcessorSettings, ShadowSettings};
use crate::streams::groups::{GroupLimits, GroupOwner, Groups};
use crate::streams::hub::Gate;
use crate::streams::upcast::{UpcastLog, Upcasters};
use crate::streams::{EventLog, Hub, Retention};
use crate::tables::TableStore;
use crate::tasks::{OnCancel, OnError, TaskKind, Tasks};

/// The edge ends by itself only when it is told to, or when it broke.
const EDGE: TaskKind = TaskKind { on_cancel: OnCancel::Wait, on_error: OnError::StopHost };

/// A running host. [`Host::shutdown`] ends it well; dropping it ends it like a kill, which loses nothing.
pub struct Host {
    addr: SocketAddr,
    store: SqliteStore,
    registry: Registry,
    live: LiveEngine,
    hub: Hub,
    groups: GroupOwner,
    log: Arc<dyn EventLog>,
    pool: GuestPool,
    tasks: Tasks,
    edge: CancellationToken,
    drain_max: Duration,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Plugins(#[from] PluginError),
    #[error(transparent)]
    Deployments(#[from] ControlError),
    #[error(transparent)]
    Edge(#[from] GatewayError),
    #[error("the guest threads do not start: {0}")]
    Threads(std::io::Error),
    #[error("a part of the start-up panicked: {0}")]
    Panicked(String),
}

type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Collects what a host is made of.
#[derive(Clone)]
pub struct HostBuilder {
    config: Config,
    clock: Arc<dyn Clock>,
    render: Render,
    compiler: Option<PathBuf>,
    change_gate: Option<Gate>,
    upcasters: Upcasters,
}

impl fmt::Debug for HostBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Host {
    pub fn builder() -> HostBuilder {
        HostBuilder {
            config: Config::default(),
            clock: Arc::new(SystemClock),
            render: Arc::new(String::new),
            compiler: None,
            change_gate: None,
            upcasters: Upcasters::default(),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The log, for embedders that publish without HTTP.
    pub fn log(&self) -> Arc<dyn EventLog> {
        Arc::clone(&self.log)
    }

    /// Who follows which changes, for embedders that follow some without HTTP.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The tables, for embedders that read without HTTP.
    pub fn tables(&self) -> Arc<dyn TableStore> {
        Arc::new(self.store.clone())
    }

    /// Groups of consumers, for embedders that consume without HTTP.
    pub fn groups(&self) -> Arc<dyn Groups> {
        Arc::new(self.groups.clone())
    }

    pub fn plugins(&self) -> Arc<dyn PluginControl> {
        Arc::new(self.registry.clone())
    }

    /// Returns once requests are answered and what was deployed has been started.
    pub async fn wait_ready(&self) {
        // `start` returns a host that is; this is where a slower start would be waited for.
    }

    /// Ends when the host stops by itself, with the reason.
    pub async fn failed(&self) -> String {
        self.tasks.token().cancelled().await;
        self.tasks.failure().unwrap_or_else(|| "its tasks were told to stop".into())
    }

    /// Drains under the configured deadline: no new requests, then the
    /// processors commit what they have handled, then the store is closed.
    pub async fn shutdown(self) {
        let deadline = Instant::now() + self.drain_max;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.edge.cancel();
        let cut_off = self.tasks.shutdown(left()).await.cut_off;
        self.live.close();
        let in_time = self.registry.shut_down(left()).await;
        let pool = self.pool.clone();
        // Joining waits for guests that are inside a call: bounded by their own time limit, and not needed.
        let joined = tokio::task::spawn_blocking(move || pool.shut_down());
        if tokio::time::timeout(left(), joined).await.is_err() {
            warn!(
                error.kind = "drain_ended",
                error.blame = "host",
                "guests were still running at the deadline; their work is repeated at the next start"
            );
        }
        self.store.close().await;
        info!(in_time, cut_off = cut_off.len(), "host stopped");
    }
}

impl HostBuilder {
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// How payloads of earlier schema versions look to every consumer.
    #[must_use]
    pub fn upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Who may follow the changes of what; it is asked before anything else is looked at.
    #[must_use]
    pub fn change_gate(mut self, gate: Gate) -> Self {
        self.change_gate = Some(gate);
        self
    }

    /// What `/metrics` answers.
    #[must_use]
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.render = Arc::new(render);
        self
    }

    /// The executable that compiles components, in a process of its own with bounds. Its `main` must ask
    /// [`compiler_main`](crate::plugins::compiler_main) first. Without one, the host compiles in itself.
    #[must_use]
    pub fn compiler(mut self, executable: impl Into<PathBuf>) -> Self {
        self.compiler = Some(executable.into());
        self
    }

    /// Starts the host on the current tokio runtime.
    pub async fn start(self) -> Result<Host, HostError> {
        let store = self.open_store().await?;
        match self.start_on(store.clone()).await {
            Ok(host) => Ok(host),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn start_on(self, store: SqliteStore) -> Result<Host, HostError> {
        let pool = GuestPool::for_this_machine().map_err(HostError::Threads)?;
        let log: Arc<dyn EventLog> = match self.upcasters.is_empty() {
            true => Arc::new(store.clone()),
            false => Arc::new(UpcastLog::new(Arc::new(store.clone()), Arc::new(self.upcasters.clone()))),
        };
        let registry = self.registry(&store, &log, &pool).await?;
        registry.start_deployed().await?;
        let tasks = Tasks::new();
        let edge = CancellationToken::new();
        let ready = Arc::new(AtomicBool::new(true));
        let live =
            LiveEngine::new(Arc::new(store.clone()), store.epoch(), self.config.gateway.live_views_max);
        let mut hub = Hub::new(Arc::clone(&log), tasks.clone(), Arc::clone(&self.clock));
        if let Some(gate) = self.change_gate.clone() {
            hub = hub.with_gate(gate);
        }
        let groups = self.groups(&store, &log);
        let keeper = groups.clone();
        tasks.supervise(TaskKind::BACKGROUND, "groups", move || {
            let keeper = keeper.clone();
            async move {
                keeper.keep().await;
                Ok(())
            }
        });
        let services = self.services((&store, &log), &registry, (&live, &hub, &groups), &ready);
        let gateway = Gateway::bind(self.gateway_options(), services).await?;
        let addr = gateway.local_addr();
        let cancel = edge.clone();
        tasks.spawn(EDGE, "gateway", async move {
            gateway.run(cancel.clone()).await;
            ready.store(false, Ordering::Release);
            if cancel.is_cancelled() { Ok(()) } else { Err("the gateway ended".into()) }
        });
        if let Some(dir) = self.config.serve.plugins_dir.clone() {
            let control: Arc<dyn PluginControl> = Arc::new(registry.clone());
            let cancel = tasks.token().clone();
            tasks.supervise(TaskKind::BACKGROUND, "plugins folder", move || {
                let watcher = DirectoryWatcher::new(&dir);
                let (control, cancel) = (Arc::clone(&control), cancel.clone());
                async move {
                    watcher.run(control, cancel).await;
                    Ok(())
                }
            });
        }
        info!(%addr, store = %self.config.serve.data.display(), "host started");
        let drain_max = self.config.serve.drain_max();
        Ok(Host { addr, store, log, registry, live, hub, groups, pool, tasks, edge, drain_max })
    }

    async fn open_store(&self) -> Result<SqliteStore, HostError> {
        let config = &self.config.store;
        let options = SqliteOptions {
            retention: Retention { age: config.retention_age(), events: config.retention_events },
            disk_free_bytes_min: config.disk_free_bytes_min,
            dedup_events_max: config.dedup_events_max,
            tail_bytes_max: config.tail_bytes_max,
            tombstone_age_max: config.tombstone_age_max(),
            dead_letters_max: config.dead_letters_max,
            change_stream_events_max: config.change_stream_events_max,
            keyed_state_bytes_max: config.keyed_state_bytes_max,
            keyed_state_entries_max: config.keyed_state_entries_max,
            state_expired_keep: config.state_expired_keep(),
            wal_bytes_soft_max: config.wal_bytes_soft_max,
            wal_bytes_hard_max: config.wal_bytes_hard_max,
            clock: Arc::clone(&self.clock),
            ..SqliteOptions::new(&self.config.serve.data)
        };
        Ok(off_the_runtime(move || SqliteStore::open(options)).await??)
    }

    async fn registry(
        &self,
        store: &SqliteStore,
        log: &Arc<dyn EventLog>,
        pool: &GuestPool,
    ) -> Result<Registry, HostError> {
        let config = &self.config.processors;
        let data = &self.config.serve.data;
        let artifacts: Arc<dyn ArtifactStore> = Arc::new(FileArtifacts::open(data.join("artifacts"))?);
        let options = RuntimeOptions {
            cache_dir: Some(data.join("precompiled")),
            instances_max: config.instances_max,
            memory_bytes_max: config.guest_memory_bytes_max,
            state_bytes_max: config.guest_state_bytes_max,
            call_max: config.guest_call_max(),
            compiler: self.compiler.clone(),
            compile_memory_bytes_max: config.compile_memory_bytes_max,
            compile_max: config.compile_max(),
            precompiled_bytes_max: config.precompiled_bytes_max,
            artifacts: Some(Arc::clone(&artifacts)),
        };
        let runtime = off_the_runtime(move || WasmRuntime::new(options)).await??;
        let engine = Engine {
            log: Arc::clone(log),
            checkpoints: Arc::new(store.clone()),
            pool: pool.clone(),
            clock: Arc::clone(&self.clock),
            runtime: tokio::runtime::Handle::current(),
        };
        Ok(Registry::new(RegistryParts {
            engine,
            runtime: Arc::new(runtime),
            artifacts,
            deployments: Arc::new(store.clone()),
            tables: Arc::new(store.clone()),
            settings: self.config.plugins.clone(),
            processors: ProcessorSettings {
                retries_max: config.retries_max,
                retry_wait_min: config.retry_wait_min(),
                retry_wait_max: config.retry_wait_max(),
                on_failure: config.on_failure,
                parked_events_max: config.parked_events_max,
                parked_bytes_max: config.parked_bytes_max,
                breaker_failures_max: config.breaker_failures_max,
                breaker_wait_min: config.breaker_wait_min(),
                breaker_wait_max: config.breaker_wait_max(),
                commit_events_max: config.commit_events_max,
                commit_events: config.commit_events_max / 2,
                commit_bytes_max: config.commit_bytes_max,
                idle_max: config.task_idle_max(),
                shadow: ShadowSettings {
                    events: config.shadow_events,
                    time: config.shadow(),
                    time_max: config.shadow_max(),
                    time_ratio_max: config.shadow_time_ratio_max,
                    errors_max: config.shadow_errors_max,
                    ..ShadowSettings::default()
                },
                ..ProcessorSettings::default()
            },
        }))
    }

    fn groups(&self, store: &SqliteStore, log: &Arc<dyn EventLog>) -> GroupOwner {
        let config = &self.config.groups;
        let limits = GroupLimits {
            groups_max: config.groups_max,
            consumers_max: config.group_consumers_max,
            consumer_idle: config.group_consumer_idle_max(),
            in_flight_max: config.group_in_flight_max,
            consumer_in_flight_max: config.group_consumer_in_flight_max,
            window_events_max: config.group_window_events_max,
            window_bytes_max: config.group_window_bytes_max,
            waiters_max: config.group_waiters_max,
            dead_letters_max: config.group_dead_letters_max,
        };
        GroupOwner::new(Arc::clone(log), Arc::new(store.clone()), Arc::clone(&self.clock), limits)
    }

    fn presence(&self) -> Arc<dyn Presence> {
        let config = &self.config.presence;
        let limits = PresenceLimits {
            rooms_max: config.presence_rooms_max,
            members_max: config.presence_members_max,
            state_bytes_max: config.presence_state_bytes_max,
            message_bytes_max: config.presence_message_bytes_max,
            followers_max: config.presence_followers_max,
            ttl: config.presence_ttl(),
            ttl_min: config.presence_ttl_min(),
            ttl_max: config.presence_ttl_max(),
            ..PresenceLimits::default()
        };
        Arc::new(MemoryPresence::open(limits, Arc::clone(&self.clock)))
    }

    fn gateway_options(&self) -> GatewayOptions {
        let config = &self.config.gateway;
        GatewayOptions {
            auth: auth_options(&self.config.auth),
            cors_origins: config.cors_origins.clone(),
            tenant_requests_per_s: config.tenant_requests_per_s,
            tenant_requests_burst: config.tenant_requests_burst,
            header_wait_max: config.header_wait_max(),
            body_idle_max: config.body_idle_max(),
            body_bytes_max: config.body_bytes_max,
            upload_bytes_max: config.upload_bytes_max,
            connections_max: config.connections_max,
            sse_heartbeat: config.sse_heartbeat(),
            change_window: config.change_window(),
            write_wait_max: config.write_wait_max(),
            live_message_bytes_max: config.live_message_bytes_max,
            live_subscriptions_max: config.live_subscriptions_max,
            live_first_command_wait_max: config.live_first_command_wait_max(),
            drain_max: self.config.serve.drain_max() / 2,
            ..GatewayOptions::new(self.config.serve.bind)
        }
    }

    fn services(
        &self,
        (store, log): (&SqliteStore, &Arc<dyn EventLog>),
        registry: &Registry,
        (live, hub, groups): (&LiveEngine, &Hub, &GroupOwner),
        ready: &Arc<AtomicBool>,
    ) -> Services {
        let ready = Arc::clone(ready);
        Services {
            log: Arc::clone(log),
            hub: hub.clone(),
            groups: Arc::new(groups.clone()),
            presence: self.presence(),
            tables: Arc::new(store.clone()),
            live: Arc::new(live.clone()),
            plugins: Arc::new(registry.clone()),
            checkpoints: Arc::new(store.clone()),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.render),
            ready: Arc::new(move || {
                let ready = ready.load(Ordering::Acquire);
                Readiness { ready, reasons: if ready { vec![] } else { vec!["the host is stopping".into()] } }
            }),
        }
    }
}

fn auth_options(config: &AuthConfig) -> AuthOptions {
    AuthOptions {
        tokens: config.tokens.iter().map(token).collect(),
        jwt: config.jwt.as_ref().map(jwt),
        session_lifetime: Duration::from_secs(config.session_lifetime_s),
        sessions_max: config.sessions_max,
        ticket_lifetime: Duration::from_secs(config.ticket_lifetime_s),
        tickets_max: config.tickets_max,
        revocations_max: config.revocations_max,
    }
}

fn jwt(config: &JwtConfig) -> JwtOptions {
    let secret = config.hs256_secret_file.clone().map(JwtKeys::Hs256SecretFile);
    let file = || config.jwks_file.clone().map(JwtKeys::JwksFile);
    let url = || config.jwks_url.clone().map(JwtKeys::JwksUrl);
    // A checked configuration has one of them. Without any the edge does not begin: the address is none.
    let keys = secret.or_else(file).or_else(url).unwrap_or_else(|| JwtKeys::JwksUrl(String::new()));
    let algorithms = config.algorithms.iter().map(|algorithm| match algorithm {
        ConfiguredAlgorithm::HS256 => JwtAlgorithm::Hs256,
        ConfiguredAlgorithm::RS256 => JwtAlgorithm::Rs256,
        ConfiguredAlgorithm::ES256 => JwtAlgorithm::Es256,
        ConfiguredAlgorithm::EdDSA => JwtAlgorithm::EdDsa,
    });
    JwtOptions {
        issuer: config.issuer.clone(),
        audience: config.audience.clone(),
        leeway: Duration::from_secs(config.leeway_s),
        tenant_claim: config.tenant_claim.clone(),
        rights_claim: config.rights_claim.clone(),
        algorithms: algorithms.collect(),
        jwks_refresh: Duration::from_secs(config.jwks_refresh_s),
        jwks_refresh_min: Duration::from_secs(config.jwks_refresh_s_min),
        jwks_wait_max: Duration::from_millis(config.jwks_wait_ms_max),
        ..JwtOptions::new(keys)
    }
}

fn token(entry: &TokenConfig) -> TokenOptions {
    let digest = entry.digest().unwrap_or_default();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let rights = entry.rights.iter().map(|right| match right {
        ConfiguredRight::Publish => Right::Publish,
        ConfiguredRight::Read => Right::Read,
        ConfiguredRight::Admin => Right::Admin,
    });
    TokenOptions {
        token: format!("sha256:{hex}"),
        tenant: entry.tenant.clone(),
        rights: rights.collect(),
        name: entry.name.clone(),
        tables: entry.tables.as_ref().map(|tables| match tables {
            TablesConfig::Names(names) => names.iter().map(|name| (name.clone(), None)).collect(),
            TablesConfig::Rules(rules) => {
                rules.iter().map(|(name, rule)| (name.clone(), rule.condition.clone())).collect()
            }
        }),
    }
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HostError::Panicked(error.to_string()))
}
