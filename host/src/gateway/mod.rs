//! The edge: HTTP, authentication, problems, OpenAPI.
//!
//! Promises: what a client sends is bounded in size, number and time before it
//! is used; the tenant comes from the credential and from nowhere else; every
//! error is a problem with a stable code and a way out; an event is acknowledged
//! only after the log has made it durable. Without tokens it serves loopback only.
//!
//! Deliberately absent: TLS and HTTP/2 (a proxy's work; `grpc`, on a port of its own, has both), and any decision
//! about events, rows or plugins: this folder translates between HTTP and the seams.
//!
//! `router` has the table of routes, `serve` the connections, `problem` the
//! table of errors, `wire` the shapes that OpenAPI describes.

mod admin_checkpoints;
mod artifacts;
mod auth;
mod body;
mod candidates;
mod changes;
mod changes_follow;
mod channels;
mod cloudevents;
mod cors;
mod filters;
mod fleet;
mod groups;
#[cfg_attr(not(feature = "grpc"), path = "no_grpc.rs")]
mod grpc;
mod handover;
mod json;
mod letters;
pub mod live;
mod metrics;
mod native;
mod ndjson;
mod openapi;
mod outage;
mod pages;
mod params;
mod plugins;
mod presence;
mod problem;
mod problems;
mod publish;
mod rates;
mod rebuilds;
mod router;
mod serve;
mod sources;
mod state;
mod streams;
mod tables;
mod traced;
mod unread;
mod websocket;
pub mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{AuthOptions, JwtAlgorithm, JwtKeys, JwtOptions, Right, TokenOptions};
pub use native::read_event;
pub use problem::{PROBLEMS, Problem, ProblemKind};
pub use router::operations;
pub use serve::WriteBound;
pub use wire::Readiness;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channels::Router as ChannelRouter;
use crate::checkpoints::{CheckpointStore, ClientCheckpoints};
use crate::clock::Clock;
use crate::control::{ArtifactRepository, FleetDesk};
use crate::limits;
use crate::live::LiveQueries;
use crate::plugins::PluginControl;
use crate::presence::Presence;
use crate::processors::source::SourceHandle;
use crate::streams::groups::Groups;
use crate::streams::{EventLog, Hub};
use crate::tables::TableStore;

/// Where to listen, whom to serve, and every bound of the edge.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    pub bind: SocketAddr,
    pub auth: AuthOptions,
    /// The server for `memory.v1`; none: there is no such server.
    pub grpc: Option<GrpcServerOptions>,
    /// Origins whose pages may use the edge from a browser: `https://app.example.com`.
    pub cors_origins: Vec<String>,
    /// Requests of one tenant, in the long run and at once. A rate of 0 leaves them unbounded.
    pub tenant_requests_per_s: u32,
    pub tenant_requests_burst: u32,
    pub header_wait_max: Duration,
    pub body_idle_max: Duration,
    pub body_bytes_max: u64,
    pub upload_bytes_max: u64,
    pub component_bytes_max: u64,
    pub artifact_bytes_max: u64,
    pub connections_max: usize,
    pub sse_heartbeat: Duration,
    /// How long answers that follow events or changes stay open while their log cannot be read.
    pub log_away_max: Duration,
    /// How long conflated followers of changes wait, where they do not say.
    pub change_window: Duration,
    pub write_wait_max: Duration,
    pub live_message_bytes_max: usize,
    pub live_subscriptions_max: usize,
    pub live_first_command_wait_max: Duration,
    pub drain_max: Duration,
}

impl GatewayOptions {
    /// The bounds of [`limits`], and no tokens.
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            auth: AuthOptions::default(),
            grpc: None,
            cors_origins: Vec::new(),
            tenant_requests_per_s: limits::TENANT_REQUESTS_PER_S,
            tenant_requests_burst: limits::TENANT_REQUESTS_BURST,
            header_wait_max: limits::HEADER_WAIT_MAX,
            body_idle_max: limits::BODY_IDLE_MAX,
            body_bytes_max: limits::BODY_BYTES_MAX as u64,
            upload_bytes_max: limits::UPLOAD_BYTES_MAX,
            component_bytes_max: limits::COMPONENT_BYTES_MAX as u64,
            artifact_bytes_max: limits::ARTIFACT_BYTES_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            sse_heartbeat: limits::SSE_HEARTBEAT,
            log_away_max: limits::LOG_AWAY_MAX,
            change_window: limits::CHANGE_WINDOW,
            write_wait_max: limits::WRITE_WAIT_MAX,
            live_message_bytes_max: limits::LIVE_MESSAGE_BYTES_MAX,
            live_subscriptions_max: limits::LIVE_SUBSCRIPTIONS_MAX,
            live_first_command_wait_max: limits::LIVE_FIRST_COMMAND_WAIT_MAX,
            drain_max: limits::DRAIN_MAX,
        }
    }
}

/// A port of its own for gRPC.
#[derive(Clone, Debug)]
pub struct GrpcServerOptions {
    pub bind: SocketAddr,
    /// Files in PEM: a certificate chain and its key. None: clear text.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// What the edge translates to.
#[derive(Clone)]
pub struct Services {
    pub log: Arc<dyn EventLog>,
    /// Who follows which changes of it.
    pub hub: Hub,
    pub groups: Arc<dyn Groups>,
    pub presence: Arc<dyn Presence>,
    pub channels: ChannelRouter,
    pub tables: Arc<dyn TableStore>,
    /// Watches them.
    pub live: Arc<dyn LiveQueries>,
    pub plugins: Arc<dyn PluginControl>,
    /// What the fleet runs, by its content.
    pub artifacts: Arc<dyn ArtifactRepository>,
    /// None for a host that is alone.
    pub fleet: Option<FleetDesk>,
    /// What brings foreign events in.
    pub sources: Vec<SourceHandle>,
    /// For looking at what tasks keep; the edge neither claims nor commits.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// What clients elsewhere keep here.
    pub clients: Arc<dyn ClientCheckpoints>,
    pub clock: Arc<dyn Clock>,
    /// Renders what `/metrics` shows.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Answers `/readyz`.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("log", &self.log)
            .field("tables", &self.tables)
            .field("plugins", &self.plugins)
            .finish_non_exhaustive()
    }
}

/// Why the edge cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    #[error(
        "{bind} is not a loopback address and no tokens are configured; \
         listen on 127.0.0.1, or add tokens or auth.jwt to the config file"
    )]
    NeedsAuth { bind: SocketAddr },
    #[error("a configured token is not valid: {detail}")]
    Token { detail: String },
    #[error("auth.jwt is not usable: {detail}")]
    Jwt { detail: String },
    #[error("the gRPC server cannot begin: {detail}")]
    Grpc { detail: String },
    #[error("cannot listen on {bind}: {source}")]
    Listen { bind: SocketAddr, source: io::Error },
}

/// What handlers share.
#[derive(Debug)]
struct Edge {
    services: Services,
    auth: auth::Auth,
    rates: rates::Rates,
    options: GatewayOptions,
    /// No new work; what is under way finishes.
    stopping: CancellationToken,
    /// The drain time is over.
    hard: CancellationToken,
    /// Connections and uploads.
    tasks: TaskTracker,
}

/// The edge, listening. It answers once [`Gateway::run`] is polled.
#[derive(Debug)]
pub struct Gateway {
    edge: Arc<Edge>,
    listener: TcpListener,
    local_addr: SocketAddr,
    grpc: Option<grpc::Listening>,
}

impl Gateway {
    /// Checks the tokens and listens. Without tokens, on loopback addresses only.
    pub async fn bind(options: GatewayOptions, services: Services) -> Result<Self, GatewayError> {
        let auth = auth::Auth::new(&options.auth, options.bind, Arc::clone(&services.clock))?;
        let rates = rates::Rates::new(options.tenant_requests_per_s, options.tenant_requests_burst);
        let bind = options.bind;
        let listen = |source| GatewayError::Listen { bind, source };
        let listener = TcpListener::bind(bind).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let has_credentials = !options.auth.tokens.is_empty() || options.auth.jwt.is_some();
        let grpc = match &options.grpc {
            Some(options) => Some(grpc::Listening::bind(options, has_credentials).await?),
            None => None,
        };
        let edge = Arc::new(Edge {
            services,
            auth,
            rates,
            options,
            stopping: CancellationToken::new(),
            hard: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        Ok(Self { edge, listener, local_addr, grpc })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where the gRPC server listens, if there is one.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(grpc::Listening::local_addr)
    }

    /// Serves until cancelled. Then it accepts no more, ends followers with a
    /// `closing` event, lets requests finish, and cuts what is left when the
    /// drain time is over. Dropping the future instead leaves open connections to the runtime.
    pub async fn run(self, cancel: CancellationToken) {
        let router = router::router(&self.edge);
        let edge = Arc::clone(&self.edge);
        self.edge.tasks.spawn(async move {
            let stopping = edge.stopping.clone();
            // Ending in the middle loses a set that is not needed any more.
            stopping.run_until_cancelled(edge.auth.keep_keys()).await;
        });
        if let Some(grpc) = self.grpc {
            self.edge.tasks.spawn(grpc.serve(Arc::clone(&self.edge)));
        }
        serve::serve(self.edge, self.listener, router, cancel).await;
    }
}
