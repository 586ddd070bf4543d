//! Outgoing HTTP by allow-list: the grant `http`, through `wasi:http` 0.2.
//!
//! Promises: a request goes to a host that the operator has named, or nowhere; it ends with the call that
//! began it, and its connections, bytes and headers are bounded; an address of this machine or of a private
//! network is reached only if the list names that very host, so that a name that a stranger controls cannot
//! point there. Deliberately absent: redirects, proxies, pooled connections, TLS. What a guest fetches is not
//! in the log, so a plugin with this grant need not give the same rows twice.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, timeout_at};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};

use super::sandbox::Logs;
use crate::limits::{
    GUEST_HTTP_CHUNK_BYTES_MAX, GUEST_HTTP_CONNECTIONS_MAX, GUEST_HTTP_HEADER_BYTES_MAX,
    GUEST_HTTP_REQUEST_BYTES_MAX, GUEST_HTTP_REQUESTS_MAX, GUEST_HTTP_RESPONSE_BYTES_MAX,
};
use crate::telemetry::metrics::{GUEST_HTTP_DENIED, GUEST_HTTP_REQUESTS};

/// One entry of `http_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPattern {
    /// In lower case, without a dot at its end; behind `*.` where `below` says so.
    host: String,
    /// It stands for the names below `host`, and not for `host` itself.
    below: bool,
    /// None is the scheme's own port.
    port: Option<u16>,
}

/// What a plugin may reach, and how much of it at once over all its instances.
#[derive(Debug)]
pub(super) struct HttpAccess {
    hosts: Vec<HostPattern>,
    connections: Arc<Semaphore>,
}

/// Where a request may go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    /// The list has this very host, so wherever it is, it is meant.
    named: bool,
}

impl HostPattern {
    /// `api.example.com`, `api.example.com:8443`, `*.example.org`, `10.0.0.7`, `[::1]:8080`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no host: {why}"));
        if text.contains("//") || text.contains(['/', '@', '?', '#']) {
            return wrong("write the name alone, such as api.example.com or api.example.com:8443");
        }
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let Ok(authority) = rest.parse::<hyper::http::uri::Authority>() else {
            return wrong("it has other letters than a name or an address has");
        };
        let port = match (authority.port_u16(), authority.as_str().len() > authority.host().len()) {
            (None, true) => return wrong("its port is no number"),
            (Some(0), _) => return wrong("there is no port 0"),
            (port, _) => port,
        };
        let host = plain(authority.host());
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let name = host.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
        match (address, name) {
            (true, _) if below => wrong("there is nothing below an address"),
            (false, false) => wrong("a `*` stands only at its beginning, as in *.example.org"),
            (false, true) if below && !host.contains('.') => wrong("it would be half of the world"),
            _ => Ok(Self { host, below, port }),
        }
    }

    fn fits(&self, host: &str, port: u16, usual: u16) -> bool {
        let named = match self.below {
            false => host == self.host,
            true => host
                .strip_suffix(self.host.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        };
        named && port == self.port.unwrap_or(usual)
    }
}

impl HttpAccess {
    pub(super) fn new(hosts: Vec<HostPattern>) -> Self {
        Self { hosts, connections: Arc::new(Semaphore::new(GUEST_HTTP_CONNECTIONS_MAX)) }
    }

    /// The list, asked for one request. An address has to stand in it as the guest writes it.
    fn target(&self, uri: &Uri) -> Option<Target> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let (host, port) = (plain(authority.host()), authority.port_u16().unwrap_or(usual));
        let fitting = || self.hosts.iter().filter(|pattern| pattern.fits(&host, port, usual));
        fitting().next()?;
        let named = fitting().any(|pattern| !pattern.below);
        Some(Target { host, port, named })
    }
}

/// A name as it is compared: names are the same in capitals, and with a dot at their end.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether an address is this machine's, of a private network, or of nobody.
fn inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                // Shared by a provider's customers, and tests between networks.
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(v6) => match carried(v6) {
            Some(v4) => inside(v4),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}

/// The IPv4 address inside of an IPv6 one, in the ways in which one is translated to it.
fn carried(v6: Ipv6Addr) -> Option<IpAddr> {
    let words = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::from([a, b, c, d]))
    };
    match words {
        _ if v6.is_loopback() || v6.is_unspecified() => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

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
        Self { ctx, hooks: Hooks { access: access.zip(own), logs, until: Instant::now() } }
    }
}

/// Decides about each request.
pub(super) struct Hooks {
    /// The plugin's, and the instance's own part of its connections.
    access: Option<(Arc<HttpAccess>, Arc<Semaphore>)>,
    logs: Arc<Logs>,
    /// When the running call has used up its time.
    pub(super) until: Instant,
}

/// Kept as long as a connection is.
type Held = Arc<[OwnedSemaphorePermit; 2]>;

impl Hooks {
    fn admit(&self, request: &Request<WasiBody>) -> Result<(Target, Held), Error> {
        let Some((access, own)) = &self.access else {
            return Err(self.deny(request, "the plugin lacks the grant `http`", Error::HttpRequestDenied));
        };
        let target = access.target(request.uri()).filter(|_| request.method() != Method::CONNECT);
        let Some(target) = target else {
            let why = "it is not in the plugin's http_hosts";
            return Err(self.deny(request, why, Error::HttpRequestDenied));
        };
        let held = Arc::clone(own).try_acquire_owned().ok();
        let held = held.zip(Arc::clone(&access.connections).try_acquire_owned().ok());
        match held {
            Some((one, all)) => Ok((target, Arc::new([one, all]))),
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
        *scheme == hyper::http::uri::Scheme::HTTP
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Answered> + Send> {
        match self.admit(&request) {
            Ok((target, held)) => {
                metrics::counter!(GUEST_HTTP_REQUESTS, "plugin" => self.logs.plugin().to_owned())
                    .increment(1);
                let logs = Arc::clone(&self.logs);
                Box::new(exchange(request, target, held, self.until, logs))
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
            cause = error.source();
        }
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, _: &std::io::Error) -> ErrorCode {
        ErrorCode::ConnectionRefused
    }
}

/// One request and the head of its answer, on a connection of their own. `until` ends all of it, the body
/// of the answer included.
async fn exchange(
    request: Request<WasiBody>,
    target: Target,
    held: Held,
    until: Instant,
    logs: Arc<Logs>,
) -> Answered {
    let until = tokio::time::Instant::from_std(until);
    let begun = timeout_at(until, begin(request, &target, &logs));
    let (response, connection) = begun.await.map_err(|_| Error::ConnectionTimeout)??;
    let response = response.map(|incoming| {
        let left = GUEST_HTTP_RESPONSE_BYTES_MAX;
        let held = Arc::clone(&held);
        Answer { incoming, left, until: Box::pin(tokio::time::sleep_until(until)), _held: held }
            .boxed_unsync()
    });
    let drive = async move {
        // The end of the call ends the connection, whoever still holds its other half.
        if let Some(connection) = connection {
            let _ = timeout_at(until, connection).await;
        }
        drop(held);
        Ok(())
    };
    Ok((response, Box::new(drive)))
}

type Connection = Pin<Box<http1::Connection<TokioIo<TcpStream>, WasiBody>>>;

async fn begin(
    mut request: Request<WasiBody>,
    target: &Target,
    logs: &Logs,
) -> Result<(Response<Incoming>, Option<Connection>), Error> {
    let stream = connect(target, logs).await?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(GUEST_HTTP_HEADER_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut connection: Connection = Box::pin(connection);
    // To a server that is no proxy, the path is all of the address; the host stands in its header.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let mut sending = pin!(sender.send_request(request.map(bounded)));
    let response = tokio::select! {
        biased;
        response = &mut sending => return Ok((response?, Some(connection))),
        ended = &mut connection => {
            ended?;
            sending.await?
        }
    };
    Ok((response, None))
}

/// A request's body, up to its bound.
fn bounded(body: WasiBody) -> WasiBody {
    let bytes_max = GUEST_HTTP_REQUEST_BYTES_MAX;
    let limited = Limited::new(body, usize::try_from(bytes_max).unwrap_or(usize::MAX));
    let error = move |error: Box<dyn std::error::Error + Send + Sync>| match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(_) => Error::HttpRequestBodySize(Some(bytes_max)),
    };
    limited.map_err(error).boxed_unsync()
}

async fn connect(target: &Target, logs: &Logs) -> Result<TcpStream, Error> {
    let host = target.host.trim_matches(['[', ']']);
    let unknown = |_| Error::DnsError { rcode: Some("no address".into()), info_code: None };
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((host, target.port)).await.map_err(unknown)?.collect();
    let mut last = Error::DestinationNotFound;
    for address in found {
        if !target.named && inside(address.ip()) {
            metrics::counter!(GUEST_HTTP_DENIED, "plugin" => logs.plugin().to_owned()).increment(1);
            logs.warn(&format!(
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

/// The body of an answer: it ends in an error at its bound, and with the call that asked for it.
struct Answer {
    incoming: Incoming,
    left: u64,
    until: Pin<Box<Sleep>>,
    _held: Held,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn access(hosts: &[&str]) -> HttpAccess {
        HttpAccess::new(hosts.iter().map(|text| HostPattern::parse(text).expect("a host")).collect())
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_that_looks_like_it() {
        let list =
            access(&["api.example.com", "Other.Example.com:8443", "*.example.org", "[::1]:8080", "10.0.0.7"]);
        let target = |uri: &str| list.target(&uri.parse().expect("an address"));
        for allowed in [
            "http://api.example.com/",
            "http://API.example.com.:80/x",
            "https://api.example.com:443/",
            "http://other.example.com:8443/",
            "http://a.example.org/",
            "http://a.b.example.org/",
            "http://[::1]:8080/",
            "http://10.0.0.7/",
        ] {
            assert!(target(allowed).is_some(), "{allowed}");
        }
        for refused in [
            "http://api.example.com:8080/",
            "http://other.example.com/",
            "http://api.example.com.evil.net/",
            "http://evilapi.example.com/",
            "http://example.org/",
            "http://notexample.org/",
            "http://.example.org/",
            "http://api.example.com@evil.net/",
            "http://api.example.com:80@evil.net/",
            "http://user@api.example.com/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://10.0.0.70/",
            "http://167772167/",
        ] {
            let uri = refused.parse::<Uri>();
            assert!(uri.is_err() || target(refused).is_none(), "{refused}");
        }
        assert!(target("http://api.example.com/").is_some_and(|target| target.named));
        assert!(target("http://a.example.org/").is_some_and(|target| !target.named));
    }

    #[test]
    fn what_is_no_host_is_not_taken_for_one() {
        for text in [
            "",
            "*",
            "*.",
            "*.com",
            "a.*.org",
            "http://a.org",
            "a.org/x",
            "a.org:",
            "a.org:x",
            "a.org:0",
            "a.org:70000",
            "u@a.org",
            "a..org",
            ".a.org",
            "a b",
            "*.10.0.0.7",
            "*.[::1]",
            "[::1",
            "a,b",
        ] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_private_networks_are_known_in_every_dress() {
        for inner in [
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(inside(inner.parse().expect("an address")), "{inner}");
        }
        for outer in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert!(!inside(outer.parse().expect("an address")), "{outer}");
        }
    }
}
