//! Outgoing HTTP by allow-list: the grant `http`, through `wasi:http` 0.2.
//!
//! Promises: a request goes to a host that the operator has named, or nowhere; it ends with the call that
//! began it, and its connections, bytes and headers are bounded; an address of this machine or of a private
//! network is reached only if the list names that very host, so that a name that a stranger controls cannot
//! point there. What `https` asks of a server, `tls` says. Deliberately absent: redirects, proxies, pooled connections. What a guest fetches is not
//! in the log, so a plugin with this grant need not give the same rows twice.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::runtime::in_tokio;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p2::types::HostFutureIncomingResponse as Answering;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};

use super::hosts::{HostPattern, Hosts, Target, inside};
use super::sandbox::{Guest, Logs, cut};
use super::tls;
use crate::error::Blame;
use crate::limits::{
    GUEST_HTTP_CHUNK_BYTES_MAX, GUEST_HTTP_CONNECTIONS_MAX, GUEST_HTTP_HEADER_BYTES_MAX,
    GUEST_HTTP_REQUEST_BYTES_MAX, GUEST_HTTP_REQUESTS_MAX, GUEST_HTTP_RESPONSE_BYTES_MAX,
    GUEST_MESSAGE_BYTES_MAX,
};
use crate::telemetry::metrics::{GUEST_HTTP_DENIED, GUEST_HTTP_REQUESTS, GUEST_HTTP_UNSECURED};

/// What a plugin may reach, and how much of it at once over all its instances.
#[derive(Debug)]
pub(super) struct HttpAccess {
    hosts: Hosts,
    connections: Arc<Semaphore>,
    /// What `https` trusts.
    client: Arc<ClientConfig>,
}

impl HttpAccess {
    pub(super) fn new(hosts: Vec<HostPattern>, client: Arc<ClientConfig>) -> Self {
        let connections = Arc::new(Semaphore::new(GUEST_HTTP_CONNECTIONS_MAX));
        Self { hosts: Hosts::new(hosts), connections, client }
    }
}

/// Puts `wasi:http` within reach of guests: those without the grant are told so by its name.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    // The library only asks the task of a request to end when its handle goes. Here the guest goes on once it
    // has ended, so that its next request finds the place free.
    let ty = ResourceType::host::<Answering>();
    linker.instance(TYPES)?.resource("future-incoming-response", ty, |mut store, handle| {
        let guest = store.data_mut();
        let until = guest.call.until();
        match guest.ctx().table.delete(Resource::<Answering>::new_own(handle))? {
            Answering::Pending(task) => {
                // The call's end finds the rest.
                let _ = in_tokio(async { timeout_at(until.into(), task.cancel()).await });
            }
            Answering::Ready(_) | Answering::Consumed => {}
        }
        Ok(())
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The interface, in the version of it that the library speaks; the linker finds the others by it.
const TYPES: &str = "wasi:http/types@0.2.12";

/// What `wasi:http` works with in one instance.
pub(super) struct GuestHttp {
    pub(super) ctx: WasiHttpCtx,
    pub(super) hooks: Hooks,
}

impl GuestHttp {
    pub(super) fn new(access: Option<Arc<HttpAccess>>, logs: Arc<Logs>) -> Self {
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(GUEST_HTTP_HEADER_BYTES_MAX);
        let own = access.is_some().then(|| Arc::new(Semaphore::new(GUEST_HTTP_REQUESTS_MAX)));
        let under_way = Vec::new();
        Self { ctx, hooks: Hooks { access: access.zip(own), logs, until: Instant::now(), under_way } }
    }
}

/// Decides about each request.
pub(super) struct Hooks {
    /// The plugin's, and the instance's own part of its connections.
    access: Option<(Arc<HttpAccess>, Arc<Semaphore>)>,
    logs: Arc<Logs>,
    /// When the running call has used up its time.
    pub(super) until: Instant,
    /// The requests that the running call has begun.
    under_way: Vec<Weak<Held>>,
}

/// A request's place among those that may be under way. It is given back when the body of the answer and that of
/// the request are gone, and at the latest with the call, whatever is still left of the connection then.
struct Held {
    permits: Mutex<Option<[OwnedSemaphorePermit; 2]>>,
    /// The call is over, so the connection is.
    over: CancellationToken,
}

impl Held {
    fn end(&self) {
        // Permits that go twice are no harm.
        drop(self.permits.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.over.cancel();
    }
}

impl Hooks {
    /// A call is over, and with it the requests that it began.
    pub(super) fn end_call(&mut self) {
        for held in self.under_way.drain(..).filter_map(|held| held.upgrade()) {
            held.end();
        }
    }

    fn admit(&mut self, request: &Request<WasiBody>) -> Result<(Way, Arc<Held>), Error> {
        let Some((access, own)) = &self.access else {
            return Err(self.deny(request, "the plugin lacks the grant `http`", Error::HttpRequestDenied));
        };
        let target = access.hosts.target(request.uri()).filter(|_| request.method() != Method::CONNECT);
        let Some(target) = target else {
            let why = "it is not in the plugin's http_hosts";
            return Err(self.deny(request, why, Error::HttpRequestDenied));
        };
        let held = Arc::clone(own).try_acquire_owned().ok();
        let held = held.zip(Arc::clone(&access.connections).try_acquire_owned().ok());
        match held {
            Some((one, all)) => {
                let permits = Mutex::new(Some([one, all]));
                let held = Arc::new(Held { permits, over: CancellationToken::new() });
                self.under_way.retain(|held| held.strong_count() > 0);
                self.under_way.push(Arc::downgrade(&held));
                let client = target.secured.then(|| Arc::clone(&access.client));
                Ok((Way { target, client, logs: Arc::clone(&self.logs) }, held))
            }
            None => {
                let why = format!(
                    "guest_http_requests_max = {GUEST_HTTP_REQUESTS_MAX} of one instance or \
                     guest_http_connections_max = {GUEST_HTTP_CONNECTIONS_MAX} of the plugin are under way"
                );
                Err(self.deny(request, &why, Error::ConnectionLimitReached))
            }
        }
    }

    /// Counts a refusal and notes it beside the guest's own messages, under the same bound.
    fn deny(&self, request: &Request<WasiBody>, why: &str, error: Error) -> Error {
        metrics::counter!(GUEST_HTTP_DENIED, "plugin" => self.logs.plugin().to_owned()).increment(1);
        let to = request.uri().authority().map_or("no host", |authority| authority.as_str());
        self.logs.warn(&format!("an HTTP request to {to} was refused: {why}"));
        error
    }
}

type Answered = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn is_supported_scheme(&mut self, scheme: &hyper::http::uri::Scheme) -> bool {
        *scheme == hyper::http::uri::Scheme::HTTP || *scheme == hyper::http::uri::Scheme::HTTPS
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Answered> + Send> {
        match self.admit(&request) {
            Ok((way, held)) => {
                metrics::counter!(GUEST_HTTP_REQUESTS, "plugin" => self.logs.plugin().to_owned())
                    .increment(1);
                Box::new(exchange(request, way, held, self.until))
            }
            Err(error) => Box::new(async { Err(error) }),
        }
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        GUEST_HTTP_CHUNK_BYTES_MAX
    }

    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Error::HttpRequestBodySize(bytes)) = error.downcast_ref() {
                return ErrorCode::HttpRequestBodySize(*bytes);
            }
            // A server may refuse what was agreed on only when the request is there.
            if let Some(told) = error.downcast_ref().and_then(tls::told) {
                return match told {
                    Error::TlsCertificateError => ErrorCode::TlsCertificateError,
                    _ => ErrorCode::TlsProtocolError,
                };
            }
            cause = error.source();
        }
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, _: &std::io::Error) -> ErrorCode {
        ErrorCode::ConnectionRefused
    }
}

/// One request and the head of its answer, on a connection of their own. The end of the call ends all of it, the
/// body of the answer included.
async fn exchange(request: Request<WasiBody>, way: Way, held: Arc<Held>, until: Instant) -> Answered {
    let until = tokio::time::Instant::from_std(until);
    let begun = timeout_at(until, begin(request, &way, &held));
    let begun = held.over.run_until_cancelled(begun).await.ok_or(Error::ConnectionTerminated)?;
    let (response, connection) = begun.map_err(|_| Error::ConnectionTimeout)??;
    let over = held.over.clone();
    let response = response.map(|incoming| {
        let left = GUEST_HTTP_RESPONSE_BYTES_MAX;
        Answer { incoming, left, until: Box::pin(tokio::time::sleep_until(until)), _held: held }
            .boxed_unsync()
    });
    let drive = async move {
        // The end of the call ends the connection, whoever still holds its other half.
        if let Some(connection) = connection {
            let _ = over.run_until_cancelled(timeout_at(until, connection)).await;
        }
        Ok(())
    };
    Ok((response, Box::new(drive)))
}

/// Where a request goes, and how.
struct Way {
    target: Target,
    /// For a secured one.
    client: Option<Arc<ClientConfig>>,
    logs: Arc<Logs>,
}

/// A connection, in the open or secured.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Connection = Pin<Box<http1::Connection<TokioIo<Box<dyn Stream>>, WasiBody>>>;

async fn begin(
    mut request: Request<WasiBody>,
    way: &Way,
    held: &Arc<Held>,
) -> Result<(Response<Incoming>, Option<Connection>), Error> {
    let stream = way.open().await?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(GUEST_HTTP_HEADER_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut connection: Connection = Box::pin(connection);
    // To a server that is no proxy, the path is all of the address; the host stands in its header.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let mut sending = pin!(sender.send_request(request.map(|body| bounded(body, Arc::clone(held)))));
    let response = tokio::select! {
        biased;
        response = &mut sending => return Ok((response?, Some(connection))),
        // Many a server ends a secured connection without a word. The whole answer may be there all the same.
        ended = &mut connection => match (sending.await, ended) {
            (Err(_), Err(error)) => return Err(error.into()),
            (answered, _) => answered?,
        }
    };
    Ok((response, None))
}

/// A request's body, up to its bound. It holds its place, since a server may answer before it has all of it.
fn bounded(body: WasiBody, held: Arc<Held>) -> WasiBody {
    let bytes_max = GUEST_HTTP_REQUEST_BYTES_MAX;
    let limited = Limited::new(body, usize::try_from(bytes_max).unwrap_or(usize::MAX));
    let error = move |error: Box<dyn std::error::Error + Send + Sync>| {
        let _held = &held;
        match error.downcast::<Error>() {
            Ok(own) => *own,
            Err(_) => Error::HttpRequestBodySize(Some(bytes_max)),
        }
    };
    limited.map_err(error).boxed_unsync()
}

impl Way {
    async fn open(&self) -> Result<Box<dyn Stream>, Error> {
        let host = self.target.host.trim_matches(['[', ']']);
        let stream = self.connect(host).await?;
        let Some(client) = &self.client else { return Ok(Box::new(stream)) };
        match tls::secure(client, host, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                metrics::counter!(GUEST_HTTP_UNSECURED, "plugin" => self.logs.plugin().to_owned())
                    .increment(1);
                // The other side's certificate is neither the guest's fault nor its caller's.
                let message = format!("a request to https://{host} was not sent: {error}");
                self.logs.fail("guest_http_unsecured", Blame::Host, cut(&message, GUEST_MESSAGE_BYTES_MAX));
                Err(tls::told(&error).unwrap_or(Error::ConnectionTerminated))
            }
        }
    }

    async fn connect(&self, host: &str) -> Result<TcpStream, Error> {
        let unknown = |_| Error::DnsError { rcode: Some("no address".into()), info_code: None };
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((host, self.target.port)).await.map_err(unknown)?.collect();
        let mut last = Error::DestinationNotFound;
        for address in found {
            if !self.target.named && inside(address.ip()) {
                metrics::counter!(GUEST_HTTP_DENIED, "plugin" => self.logs.plugin().to_owned()).increment(1);
                self.logs.warn(&format!(
                    "an HTTP request to {host} was refused: {} is a private address, and http_hosts names the host by `*` only",
                    address.ip()
                ));
                last = Error::DestinationIpProhibited;
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Error::Connect(error),
            }
        }
        Err(last)
    }
}

/// The body of an answer: it ends in an error at its bound, and with the call that asked for it.
struct Answer {
    incoming: Incoming,
    left: u64,
    until: Pin<Box<Sleep>>,
    _held: Arc<Held>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.until.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Error::HttpResponseTimeout)));
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                match self.left.checked_sub(bytes) {
                    Some(left) => {
                        self.left = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(Error::HttpResponseBodySize(Some(GUEST_HTTP_RESPONSE_BYTES_MAX)))),
                }
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }
}
