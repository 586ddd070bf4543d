//! One GET for a key set: https, or http to this machine; no redirects, no more bytes than asked for.

use std::net::IpAddr;

use axum::http::{Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::plugins::tls;

/// Whether an address can be fetched from. In the open, anybody on the way could put keys of their own in place.
pub(super) fn check(url: &str) -> Result<(), String> {
    parts(url).map(|_| ())
}

struct Parts {
    uri: Uri,
    host: String,
    port: u16,
    secured: bool,
}

fn parts(url: &str) -> Result<Parts, String> {
    let wanted = || format!("`{url}` is not an https address, nor an http address of this machine");
    let uri: Uri = url.parse().map_err(|_| wanted())?;
    let host = uri.host().ok_or_else(wanted)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
    let here =
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let secured = match uri.scheme_str() {
        Some("https") => true,
        Some("http") if here => false,
        _ => return Err(wanted()),
    };
    let port = uri.port_u16().unwrap_or(if secured { 443 } else { 80 });
    Ok(Parts { uri, host, port, secured })
}

/// The body behind an address. The caller bounds the time.
pub(super) async fn get(url: &str, bytes_max: usize) -> Result<Bytes, String> {
    let parts = parts(url)?;
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{url}: {what}: {error}");
    let stream =
        TcpStream::connect((parts.host.as_str(), parts.port)).await.map_err(|e| told("no connection", &e))?;
    if parts.secured {
        let client = tls::client(None)?;
        let stream = tls::secure(&client, &parts.host, stream).await.map_err(|e| told("no TLS", &e))?;
        return exchange(stream, &parts, url, bytes_max).await;
    }
    exchange(stream, &parts, url, bytes_max).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    parts: &Parts,
    url: &str,
    bytes_max: usize,
) -> Result<Bytes, String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{url}: {what}: {error}");
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| told("no HTTP", &e))?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, "millrace")
        .body(Empty::<Bytes>::new())
        .map_err(|e| told("no request", &e))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|e| told("no answer", &e))?;
        if response.status() != StatusCode::OK {
            return Err(format!("{url}: the answer is {}, not 200", response.status()));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        let body = body.map_err(|e| told(&format!("no more than jwks_bytes_max = {bytes_max} bytes"), &e))?;
        Ok(body.to_bytes())
    };
    // The connection must be polled for the answer to come; it ends with it.
    tokio::pin!(connection);
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        ended = &mut connection => match ended {
            // What was read before the end is there all the same.
            Ok(()) => answered.await,
            Err(error) => Err(told("the connection broke", &error)),
        },
    }
}
