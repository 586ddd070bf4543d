//! Puts the parts together: the only file that names concrete backends.
//!
//! Order of a start: store (locked, opened, migrated), WebAssembly runtime, what a fleet's feed decides about,
//! what was deployed, the edge, the watched folder and the feed. A drain goes the other way
//! round under one deadline, so that nothing new comes in while what was handled is committed.

mod artifacts;
mod auth;
mod control;
mod parts;
#[cfg_attr(not(feature = "redis"), path = "host/no_shared_log.rs")]
mod shared_log;
#[cfg_attr(not(feature = "grpc"), path = "host/no_source.rs")]
mod source;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use shared_log::{InvalidLog, SharedLog};

use crate::backends::sqlite::{OpenError, SqliteStore};
use crate::cache::{CachedTables, ReadThrough};
use crate::channels::{ChannelStore, Router};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::control::{ArtifactRepository, ControlFeedError, FeedRegistry, FleetDesk};
use crate::error::{BackendError, Classify as _};
use crate::event::Micros;
use crate::gateway::{Gateway, GatewayError, Readiness};
use crate::limits::{CHANNEL_SWEEP, CHANNEL_SWEEP_PROCESSES_MAX, RESTART_WAIT_MAX, RESTART_WAIT_MIN};
use crate::live::LiveEngine;
use crate::plugins::{ControlError, DirectoryWatcher, PluginControl, PluginError, Registry};
use crate::processors::GuestPool;
use crate::streams::groups::Groups;
use crate::streams::hub::Gate;
use crate::streams::upcast::{InvalidUpcast, Upcasters};
use crate::streams::{EventLog, Hub};
use crate::tables::TableStore;
use crate::tasks::{OnCancel, OnError, TaskError, TaskKind, Tasks};

/// The edge ends by itself only when it is told to, or when it broke.
const EDGE: TaskKind = TaskKind { on_cancel: OnCancel::Wait, on_error: OnError::StopHost };

/// A running host. [`Host::shutdown`] ends it well; dropping it ends it like a kill, which loses nothing.
pub struct Host {
    addr: SocketAddr,
    grpc_addr: Option<SocketAddr>,
    store: SqliteStore,
    registry: Registry,
    live: LiveEngine,
    hub: Hub,
    groups: Arc<dyn Groups>,
    channels: Router,
    cache: ReadThrough,
    tables: Arc<dyn TableStore>,
    artifacts: Arc<dyn ArtifactRepository>,
    fleet: Option<FleetDesk>,
    log: Arc<dyn EventLog>,
    pool: GuestPool,
    tasks: Tasks,
    edge: CancellationToken,
    shared_log: Option<SharedLog>,
    stage: watch::Receiver<Stage>,
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
    /// What it has written down cannot be read.
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Log(#[from] InvalidLog),
    #[error(transparent)]
    Plugins(#[from] PluginError),
    #[error(transparent)]
    Deployments(#[from] ControlError),
    #[error(transparent)]
    Edge(#[from] GatewayError),
    #[error(transparent)]
    Control(#[from] ControlFeedError),
    #[error("{0}")]
    Source(String),
    #[error("`cache.redis`: {0}")]
    Cache(String),
    #[error(transparent)]
    Upcasters(#[from] InvalidUpcast),
    #[error("the guest threads do not start: {0}")]
    Threads(std::io::Error),
    #[error("a part of the start-up panicked: {0}")]
    Panicked(String),
}

/// How far a host has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// It answers; what was deployed does not run yet.
    Starting,
    Ready,
    /// It could not so far, and tries again.
    Failed(String),
    Stopping,
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
    feeds: Option<FeedRegistry>,
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
            feeds: None,
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it serves gRPC, if it does.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc_addr
    }

    /// The log, for embedders that publish without HTTP.
    pub fn log(&self) -> Arc<dyn EventLog> {
        Arc::clone(&self.log)
    }

    /// Who follows which changes, for embedders that follow some without HTTP.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The tables, for embedders that read without HTTP. Single rows come from the cache while they are unchanged.
    pub fn tables(&self) -> Arc<dyn TableStore> {
        Arc::clone(&self.tables)
    }

    /// The cache, for what embedders want to keep in it. Events evict what depends on their aggregate.
    pub fn cache(&self) -> &ReadThrough {
        &self.cache
    }

    /// Groups of consumers, for embedders that consume without HTTP.
    pub fn groups(&self) -> Arc<dyn Groups> {
        Arc::clone(&self.groups)
    }

    /// Channels, for embedders that submit or execute without HTTP.
    pub fn channels(&self) -> &Router {
        &self.channels
    }

    /// What the fleet runs, by its content, for embedders that store or read artifacts without HTTP.
    pub fn artifacts(&self) -> Arc<dyn ArtifactRepository> {
        Arc::clone(&self.artifacts)
    }

    /// What can be asked and done about the fleet, for embedders that do it without HTTP. None for a host that is alone.
    pub fn fleet(&self) -> Option<&FleetDesk> {
        self.fleet.as_ref()
    }

    pub fn plugins(&self) -> Arc<dyn PluginControl> {
        Arc::new(self.registry.clone())
    }

    /// Returns once requests are answered and what was deployed has been started. With a log elsewhere that is when the
    /// log serves; until then `/readyz` says what stands in the way. False when the host ends before.
    pub async fn wait_ready(&self) -> bool {
        let mut stages = self.stage.clone();
        let reached = stages.wait_for(|stage| matches!(stage, Stage::Ready | Stage::Stopping)).await;
        // The sender goes with the host's tasks.
        reached.is_ok_and(|stage| *stage == Stage::Ready)
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
        if let Some(shared_log) = &self.shared_log {
            shared_log.end(left()).await;
        }
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

    /// The control feeds that settings may name, instead of those of [`control_feeds`](crate::backends::control_feeds),
    /// to which an embedder adds its own.
    #[must_use]
    pub fn feeds(mut self, feeds: FeedRegistry) -> Self {
        self.feeds = Some(feeds);
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
        // It is much, and who starts a host is not to carry it.
        match Box::pin(self.start_on(store.clone())).await {
            Ok(host) => Ok(host),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn start_on(self, store: SqliteStore) -> Result<Host, HostError> {
        let artifacts = self.artifacts().await?;
        let pool = GuestPool::for_this_machine().map_err(HostError::Threads)?;
        let shared_log = SharedLog::open(&self.config, &store).await?;
        let stored: Arc<dyn EventLog> = match &shared_log {
            Some(shared) => shared.log(),
            None => Arc::new(store.clone()),
        };
        let log = self.upcast(stored)?;
        let cache = self.cache()?;
        let tables: Arc<dyn TableStore> = Arc::new(CachedTables::new(Arc::new(store.clone()), cache.clone()));
        let registry = self.registry(&store, &log, shared_log.as_ref(), &pool).await?;
        let fleet = self.fleet(&artifacts, &registry).await?;
        let tasks = Tasks::new();
        let edge = CancellationToken::new();
        let (stage, stages) = watch::channel(Stage::Starting);
        if shared_log.is_none() {
            // Whoever gets an answer from it finds everything running.
            registry.start_deployed().await?;
            stage.send_replace(Stage::Ready);
        } else {
            registry.refuse_changes();
        }
        let live =
            LiveEngine::new(Arc::new(store.clone()), store.epoch(), self.config.gateway.live_views_max);
        let mut hub = Hub::new(Arc::clone(&log), tasks.clone(), Arc::clone(&self.clock));
        if let Some(gate) = self.change_gate.clone() {
            hub = hub.with_gate(gate);
        }
        let (groups, keep) = self.groups(&store, &log, shared_log.as_ref());
        tasks.supervise(TaskKind::BACKGROUND, "groups", move || {
            let kept = keep();
            async move {
                kept.await;
                Ok(())
            }
        });
        evict_by_events(&tasks, cache.clone(), Arc::clone(&log));
        let presence = self.presence(shared_log.as_ref());
        let kept = self.channels(&store, shared_log.as_ref());
        let channels = Router::new(Arc::clone(&kept));
        let sources = self.sources(&log, shared_log.as_ref().map(SharedLog::owners), &registry)?;
        remove_closed_processes(&tasks, kept, Arc::clone(&self.clock));
        let ready = readiness(stages.clone(), shared_log.clone());
        let seen = (&live, &hub, &groups);
        let services = self.services(
            (&store, &log, &tables),
            (&registry, &artifacts, fleet.as_ref()),
            seen,
            (presence, &channels),
            (&sources[..], ready),
        );
        let gateway = Gateway::bind(self.gateway_options(), services).await?;
        let (addr, grpc_addr) = (gateway.local_addr(), gateway.grpc_addr());
        let cancel = edge.clone();
        let stopping = stage.clone();
        tasks.spawn(EDGE, "gateway", async move {
            gateway.run(cancel.clone()).await;
            stopping.send_replace(Stage::Stopping);
            if cancel.is_cancelled() { Ok(()) } else { Err("the gateway ended".into()) }
        });
        if let Some(shared) = shared_log.clone() {
            shared.remember();
            let registry = registry.clone();
            tasks.spawn(TaskKind::BACKGROUND, "start", async move {
                shared.reached().await;
                start_deployed(&shared, &registry, &stage).await;
                shared.carry();
                stage.send_if_modified(|stage| begun(stage, Stage::Ready));
                registry.keep_starting().await;
                Ok(())
            });
        } else {
            let registry = registry.clone();
            tasks.spawn(TaskKind::BACKGROUND, "start", async move {
                registry.keep_starting().await;
                Ok(())
            });
        }
        if let Some(fleet) = &fleet {
            fleet.start(&tasks, &stages);
        }
        sources.iter().for_each(|source| source.start(&tasks, &stages));
        if let Some(dir) = self.config.serve.plugins_dir.clone() {
            let stages = stages.clone();
            let control: Arc<dyn PluginControl> = Arc::new(registry.clone());
            let cancel = tasks.token().clone();
            tasks.supervise(TaskKind::BACKGROUND, "plugins folder", move || {
                let watcher = DirectoryWatcher::new(&dir);
                let (control, cancel) = (Arc::clone(&control), cancel.clone());
                let mut stages = stages.clone();
                async move {
                    // It ends with the host otherwise.
                    let begun = |stage: &Stage| matches!(stage, Stage::Ready | Stage::Stopping);
                    drop(stages.wait_for(begun).await);
                    watcher.run(control, cancel).await;
                    Ok(())
                }
            });
        }
        info!(%addr, store = %self.config.serve.data.display(), "host started");
        let drain_max = self.config.serve.drain_max();
        Ok(Host {
            addr,
            grpc_addr,
            store,
            log,
            registry,
            live,
            hub,
            groups,
            channels,
            cache,
            tables,
            artifacts,
            fleet: fleet.as_ref().map(control::Fleet::desk),
            pool,
            tasks,
            edge,
            shared_log,
            stage: stages,
            drain_max,
        })
    }
}

fn evict_by_events(tasks: &Tasks, cache: ReadThrough, log: Arc<dyn EventLog>) {
    tasks.supervise(TaskKind::BACKGROUND, "cache", move || {
        let (cache, log) = (cache.clone(), Arc::clone(&log));
        async move {
            cache.follow(log).await;
            Ok(())
        }
    });
}

/// What was closed long ago goes, with all that lies in its channels.
fn remove_closed_processes(tasks: &Tasks, store: Arc<dyn ChannelStore>, clock: Arc<dyn Clock>) {
    tasks.supervise(TaskKind::BACKGROUND, "channels", move || {
        keep_removing(Arc::clone(&store), Arc::clone(&clock))
    });
}

async fn keep_removing(store: Arc<dyn ChannelStore>, clock: Arc<dyn Clock>) -> Result<(), TaskError> {
    let keep = i64::try_from(store.limits().keep.as_micros()).unwrap_or(i64::MAX);
    loop {
        let before = Micros(clock.now().0.saturating_sub(keep));
        // Each is a transaction of its own, so that appends get their turn in between.
        while store.expire(before).await? >= CHANNEL_SWEEP_PROCESSES_MAX {}
        tokio::time::sleep(CHANNEL_SWEEP).await;
    }
}

/// Starts what was deployed, once the store knows which log it is for. What fails is said, and tried again.
async fn start_deployed(shared: &SharedLog, registry: &Registry, stage: &watch::Sender<Stage>) {
    let mut wait = RESTART_WAIT_MIN;
    loop {
        let started = match shared.mark().await {
            Ok(()) => registry.start_deployed().await,
            Err(error) => Err(error.into()),
        };
        let Err(error) = started else { return };
        error!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "what was deployed does not start; it is tried again");
        stage.send_if_modified(|stage| begun(stage, Stage::Failed(error.to_string())));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RESTART_WAIT_MAX);
    }
}

/// The start has come so far, unless the host is stopping already.
fn begun(stage: &mut Stage, now: Stage) -> bool {
    let stopping = *stage == Stage::Stopping;
    if !stopping {
        *stage = now;
    }
    !stopping
}

/// Whether a host does its work, asked at any time.
fn readiness(
    stages: watch::Receiver<Stage>,
    shared_log: Option<SharedLog>,
) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    Arc::new(move || {
        let mut reasons = Vec::new();
        match &*stages.borrow() {
            Stage::Ready => {}
            Stage::Starting => reasons.push("the host is starting".to_owned()),
            Stage::Failed(why) => reasons.push(format!("what was deployed does not start: {why}")),
            Stage::Stopping => reasons.push("the host is stopping".to_owned()),
        }
        reasons.extend(shared_log.as_ref().and_then(SharedLog::problem));
        Readiness { ready: reasons.is_empty(), reasons }
    })
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HostError::Panicked(error.to_string()))
}
