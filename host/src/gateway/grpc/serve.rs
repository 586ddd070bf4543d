//! Connections of the gRPC server: accepting, TLS, bounds, and ending them with the edge.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::bodies::Answering;
use super::calls;
use super::places::Places;
use super::preface::Prefaced;
use super::taking;
use crate::gateway::metrics::{self, Living};
use crate::gateway::serve::WriteBound;
use crate::gateway::{Edge, GatewayError, GrpcServerOptions};
use crate::limits::{
    GRPC_CALLS_MAX, GRPC_CONNECTIONS_MAX, GRPC_EVENT_STREAMS_MAX, GRPC_FILE_BYTES_MAX, GRPC_GOODBYE_MAX,
    GRPC_HANDSHAKE_MAX, GRPC_HEADER_BYTES_MAX, GRPC_KEEPALIVE, GRPC_KEEPALIVE_WAIT_MAX,
    GRPC_STREAM_QUEUE_BYTES_MAX, GRPC_STREAMS_MAX,
};

/// The wait after a failed accept: out of file descriptors passes only when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server that listens, and serves once it is polled.
pub(in crate::gateway) struct Listening {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// What all calls share.
pub(super) struct Server {
    pub(super) edge: Arc<Edge>,
    pub(super) places: Places,
    /// Room for event streams of all callers.
    pub(super) streams: Arc<Semaphore>,
    /// Room for calls about checkpoints until their answer is taken, and for those that open a stream, while their message
    /// is in memory.
    pub(super) calls: Arc<Semaphore>,
    pub(super) subscribing: Arc<Semaphore>,
    tls: Option<TlsAcceptor>,
}

impl Listening {
    /// Reads the certificate and listens. Without credentials, on loopback addresses only.
    pub(in crate::gateway) async fn bind(
        options: &GrpcServerOptions,
        has_credentials: bool,
    ) -> Result<Self, GatewayError> {
        let bind = options.bind;
        if !has_credentials && !bind.ip().to_canonical().is_loopback() {
            return Err(GatewayError::NeedsAuth { bind });
        }
        let tls = match &options.tls {
            Some((cert, key)) => Some(acceptor(cert, key).map_err(|detail| GatewayError::Grpc { detail })?),
            None => None,
        };
        let listen = |source| GatewayError::Listen { bind, source };
        let listener = TcpListener::bind(bind).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, local_addr, tls })
    }

    pub(in crate::gateway) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Accepts until the edge stops. Connections are tasks of the edge, which waits for them.
    pub(in crate::gateway) async fn serve(self, edge: Arc<Edge>) {
        let stopping = edge.stopping.clone();
        let server = Arc::new(Server {
            edge,
            places: Places::default(),
            streams: Arc::new(Semaphore::new(GRPC_EVENT_STREAMS_MAX)),
            calls: Arc::new(Semaphore::new(GRPC_CALLS_MAX)),
            subscribing: Arc::new(Semaphore::new(GRPC_CALLS_MAX)),
            tls: self.tls,
        });
        let connections = Arc::new(Semaphore::new(GRPC_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(error.kind = "accept_failed", error.blame = "host", cause = %error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
                metrics::connection_refused();
                continue;
            };
            let server = Arc::clone(&server);
            server.edge.tasks.clone().spawn(async move {
                let living = Living::connection();
                connection(&server, stream).await;
                drop((living, place));
            });
        }
    }
}

async fn connection(server: &Arc<Server>, stream: TcpStream) {
    let edge = &server.edge;
    let wait_max = edge.options.write_wait_max;
    // Without either, answers come later and a client that vanished stays longer.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(wait_max));
    let stream = WriteBound::new(stream, wait_max, edge.stopping.clone());
    let Some(tls) = &server.tls else { return drive(server, stream).await };
    // A host that stops waits for nobody who has not asked for anything.
    let agreed = timeout(GRPC_HANDSHAKE_MAX, tls.accept(stream));
    match edge.stopping.run_until_cancelled(agreed).await {
        Some(Ok(Ok(stream))) => drive(server, stream).await,
        Some(Ok(Err(error))) => tracing::debug!(cause = %error, "a client did not agree on TLS"),
        Some(Err(_)) => tracing::debug!("a client did not agree on TLS in time"),
        None => {}
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(server: &Arc<Server>, stream: S) {
    let edge = &server.edge;
    let begun = timeout(edge.options.header_wait_max, Prefaced::of(stream));
    let Some(Ok(Some(stream))) = edge.stopping.run_until_cancelled(begun).await else {
        return tracing::debug!("a client of the gRPC server did not begin with HTTP/2");
    };
    let (serving, calls) = (Arc::clone(server), TaskTracker::new());
    let wait_max = edge.options.write_wait_max;
    let under_way = calls.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, call) = (Arc::clone(&serving), under_way.token());
        async move {
            let (response, room) = calls::answer(&server, request).await;
            Ok::<_, Infallible>(response.map(|body| Answering::new(body, (call, room), wait_max)))
        }
    });
    let mut builder = http2::Builder::new(Tracked { tasks: edge.tasks.clone(), wait_max });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(GRPC_STREAMS_MAX)
        .max_header_list_size(GRPC_HEADER_BYTES_MAX)
        .max_send_buf_size(GRPC_STREAM_QUEUE_BYTES_MAX as usize)
        .keep_alive_interval(GRPC_KEEPALIVE)
        .keep_alive_timeout(GRPC_KEEPALIVE_WAIT_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = edge.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                // A client that does not take the goodbye would hold up the stop.
                () = idle(&calls) => return,
                () = edge.hard.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(cause = %error, "connection ended");
    }
}

/// When no call was under way at the end of a while.
async fn idle(calls: &TaskTracker) {
    calls.close();
    loop {
        calls.wait().await;
        tokio::time::sleep(GRPC_GOODBYE_MAX).await;
        if calls.is_empty() {
            return;
        }
    }
}

/// Starts the calls of a connection as tasks of the edge, each until its answer is taken.
#[derive(Clone, Debug)]
struct Tracked {
    tasks: TaskTracker,
    wait_max: Duration,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(taking::bounded(future, self.wait_max));
    }
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let unusable = |setting: &str, path: &Path, error: &dyn std::fmt::Display| {
        format!("grpc.{setting} = {}: {error}", path.display())
    };
    let pem = bounded(cert).map_err(|error| unusable("cert_file", cert, &error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| unusable("cert_file", cert, &error))?;
    if chain.is_empty() {
        return Err(unusable("cert_file", cert, &"it has no certificate in PEM"));
    }
    let pem = bounded(key).map_err(|error| unusable("key_file", key, &error))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable("key_file", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| unusable("cert_file", cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(GRPC_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > GRPC_FILE_BYTES_MAX {
        let error = format!("it has more than grpc_file_bytes_max = {GRPC_FILE_BYTES_MAX} bytes");
        return Err(io::Error::other(error));
    }
    Ok(bytes)
}
