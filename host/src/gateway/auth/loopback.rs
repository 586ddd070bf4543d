//! Without credentials: loopback names only, so that a web page that the user happens to visit cannot drive the host.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

use crate::gateway::problem::Problem;

/// Refuses foreign names.
pub(super) fn check(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let text = |value: &header::HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).chars().take(200).collect::<String>()
    };
    let mut hosts = headers.get_all(header::HOST).iter().map(text).collect::<Vec<_>>();
    hosts.extend(uri.authority().map(|authority| authority.as_str().to_owned()));
    if hosts.is_empty() {
        return Err(Problem::new("foreign_host", "the request has no Host header"));
    }
    if let Some(host) = hosts.iter().find(|host| !is_loopback_authority(host)) {
        return Err(Problem::new(
            "foreign_host",
            format!("the request is for `{host}`, which is not a loopback name"),
        ));
    }
    for origin in headers.get_all(header::ORIGIN).iter().map(text) {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !host.is_some_and(is_loopback_authority) {
            let detail =
                format!("the request comes from a page of `{origin}`, which is not a loopback origin");
            return Err(Problem::new("foreign_origin", detail));
        }
    }
    Ok(())
}

pub(super) fn is_loopback_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
