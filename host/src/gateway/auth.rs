//! Who asks: bearer tokens, and the loopback rule where there are none.
//!
//! With tokens, the tenant and the rights come from the token alone. Without
//! tokens only loopback addresses are served, everybody is the tenant
//! `default` with all rights, and `Host` and `Origin` must be loopback names, so
//! that a web page that the user happens to visit cannot drive the host.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::problem::Problem;
use super::{Edge, GatewayError};
use crate::event::TenantId;

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Append events.
    Publish,
    /// Read streams, tables and the state of plugins, inside the tenant.
    Read,
    /// Change plugins, and see those parts of the host that are not one tenant's.
    Admin,
}

impl Right {
    fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// The tokens of the config file. None: loopback only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthOptions {
    pub tokens: Vec<TokenOptions>,
}

/// One token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenOptions {
    /// The token itself, or `sha256:` and the hexadecimal SHA-256 of it.
    pub token: String,
    pub tenant: String,
    pub rights: Vec<Right>,
    /// Names the token in the log and in `deployed_by`; never the token itself.
    #[serde(default)]
    pub name: Option<String>,
}

impl fmt::Debug for TokenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenOptions")
            .field("token", &"(hidden)")
            .field("tenant", &self.tenant)
            .field("rights", &self.rights)
            .field("name", &self.name)
            .finish()
    }
}

/// Who asks, as far as a handler needs to know.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) tenant: TenantId,
    pub(super) name: Arc<str>,
    rights: Arc<[Right]>,
}

impl Caller {
    pub(super) fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }
}

/// The checked tokens.
#[derive(Debug)]
pub(super) enum Auth {
    /// By SHA-256 of the token: comparing is a look-up under a random hash key,
    /// so its time tells nothing about how much of a guess was right.
    Tokens(HashMap<[u8; 32], Caller>),
    Loopback(Caller),
}

impl Auth {
    pub(super) fn new(options: &AuthOptions, bind: SocketAddr) -> Result<Self, GatewayError> {
        if options.tokens.is_empty() {
            if !bind.ip().to_canonical().is_loopback() {
                return Err(GatewayError::NeedsAuth { bind });
            }
            let tenant =
                TenantId::new("default").map_err(|e| GatewayError::Token { detail: e.to_string() })?;
            let rights = [Right::Publish, Right::Read, Right::Admin].into();
            return Ok(Self::Loopback(Caller { tenant, name: "loopback".into(), rights }));
        }
        let mut tokens = HashMap::new();
        for (index, token) in options.tokens.iter().enumerate() {
            let name = token.name.clone().unwrap_or_else(|| format!("token-{}", index + 1));
            let invalid = |detail: String| GatewayError::Token { detail: format!("`{name}`: {detail}") };
            let tenant = TenantId::new(&token.tenant).map_err(|e| invalid(e.to_string()))?;
            let digest = digest_of(&token.token).map_err(|e| invalid(e.into()))?;
            if token.rights.is_empty() {
                return Err(invalid("it has no rights; there are publish, read and admin".into()));
            }
            let caller = Caller { tenant, name: name.as_str().into(), rights: token.rights.clone().into() };
            if tokens.insert(digest, caller).is_some() {
                return Err(invalid("another entry has the same token".into()));
            }
        }
        Ok(Self::Tokens(tokens))
    }

    fn caller(&self, headers: &HeaderMap, right: Right) -> Result<Caller, Problem> {
        let caller = match self {
            Self::Loopback(caller) => caller,
            Self::Tokens(tokens) => {
                let missing =
                    || Problem::new("token_missing", "the request has no `Authorization: Bearer` header");
                let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?.as_bytes();
                let (scheme, token) = value.split_at_checked(7).ok_or_else(missing)?;
                if !scheme.eq_ignore_ascii_case(b"bearer ") {
                    return Err(missing());
                }
                let digest: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
                tokens.get(&digest).ok_or_else(|| {
                    Problem::new("token_invalid", "no token of this host's configuration is this one")
                })?
            }
        };
        if !caller.may(right) {
            let detail = format!("this needs the right `{}`, which the token does not have", right.as_str());
            return Err(Problem::new("right_missing", detail).with("right", right.as_str().into()));
        }
        Ok(caller.clone())
    }
}

fn digest_of(token: &str) -> Result<[u8; 32], &'static str> {
    let Some(hex) = token.strip_prefix("sha256:") else {
        if token.len() < 8 || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a token has 8 or more printable ASCII characters");
        }
        return Ok(Sha256::digest(token.as_bytes()).into());
    };
    let wanted = "after `sha256:` come 64 hexadecimal digits";
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wanted);
    }
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).map_err(|_| wanted)?;
    }
    Ok(digest)
}

macro_rules! right_extractor {
    ($(#[$doc:meta])* $name:ident, $right:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(pub(super) Caller);

        impl FromRequestParts<Arc<Edge>> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Problem> {
                edge.auth.caller(&parts.headers, $right).map(Self)
            }
        }
    };
}

right_extractor!(
    /// Somebody who may publish.
    Publisher,
    Right::Publish
);
right_extractor!(
    /// Somebody who may read.
    Reader,
    Right::Read
);
right_extractor!(
    /// Somebody who may change plugins and see the whole host.
    Admin,
    Right::Admin
);

/// Refuses foreign names while there are no tokens.
pub(super) async fn guard(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    if matches!(edge.auth, Auth::Loopback(_))
        && let Err(problem) = check_loopback(request.headers(), request.uri())
    {
        return problem.into_response();
    }
    next.run(request).await
}

fn check_loopback(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
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

/// Refuses a web page of another host. Browsers let any page open a WebSocket, and only say where it is from;
/// what is no browser says nothing.
pub(super) fn check_same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let (from, port) = match origin.split_once("://") {
        Some(("http", from)) => (from, ":80"),
        Some(("https", from)) => (from, ":443"),
        _ => ("", ""),
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let bare = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
    if !from.is_empty() && bare(from) == bare(host) {
        return Ok(());
    }
    let origin: String = origin.chars().take(200).collect();
    let detail = format!("the request comes from a page of `{origin}`, which is not this host");
    Err(Problem::new("foreign_origin", detail))
}

fn is_loopback_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
