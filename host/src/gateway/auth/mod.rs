//! Who asks: bearer tokens, sessions and tickets made from them, and the loopback rule where there are none.
//!
//! Promises: the tenant, the rights and the tables come from the credential alone; a credential that has expired
//! or was revoked opens nothing, and what it has opened ends; no long-lived token is taken from an address.
//! With neither tokens nor `jwt` only loopback addresses are served, everybody is the tenant `default` with all
//! rights, and `Host` and `Origin` must be loopback names.
//!
//! `tokens` has the static ones, `jwt` and `keys` the signed ones, `jwks` where keys come from, `shelf` the secrets
//! of sessions and tickets, `access` what is read of tables, `validity` how long all of it is good.

mod access;
mod fetch;
mod jwks;
mod jwt;
mod keys;
mod loopback;
mod options;
pub(super) mod sessions;
mod shelf;
mod tokens;
mod url;
mod validity;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

pub use options::{AuthOptions, JwtAlgorithm, JwtKeys, JwtOptions, Right, TokenOptions};

use super::problem::Problem;
use super::{Edge, GatewayError, cors};
use crate::clock::Clock;
use crate::event::TenantId;
use crate::limits::{CALLER_NAME_CHARS_MAX, TOKEN_BYTES_MAX};
use access::Tables;
use jwks::Issuer;
use jwt::Unsigned;
use shelf::Shelf;
use tokens::Tokens;
use validity::{Identity, Standing, Validity};

/// Who asks, as far as a handler needs to know.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) tenant: TenantId,
    pub(super) name: Arc<str>,
    /// The name, where it is nobody else's: whole, and of somebody.
    pub(super) party: Option<Arc<str>>,
    rights: Arc<[Right]>,
    /// The only tables that are read. None: all of the tenant's.
    tables: Option<Tables>,
    /// Whether the credential is still good; what stays open must end with it.
    pub(super) valid: Validity,
}

impl Caller {
    pub(super) fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }

    /// Whether this caller may read the same rows as another one.
    pub(super) fn sees_the_same(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.may(Right::Read) && self.tables == other.tables
    }

    /// The client that this caller is: a static token's name. Others are none, such as somebody with a signed token.
    pub(super) fn client(&self) -> Option<&str> {
        self.party.as_deref().filter(|_| self.valid.is_static())
    }

    pub(super) fn needs(&self, right: Right) -> Result<(), Problem> {
        if self.may(right) {
            return Ok(());
        }
        let detail = format!("this needs the right `{}`, which the token does not have", right.as_str());
        Err(Problem::new("right_missing", detail).with("right", right.as_str().into()))
    }

    /// Refuses who may not read everything of the tenant.
    pub(super) fn needs_everything(&self) -> Result<(), Problem> {
        self.needs(Right::Read)?;
        if !self.is_confined() {
            return Ok(());
        }
        // The events behind the rows would show what the tables hide.
        let detail = format!("the credential `{}` reads tables only, and not all of them", self.name);
        Err(Problem::new("tables_only", detail))
    }
}

/// Everything that a request's credential is looked up in.
#[derive(Debug)]
pub(super) struct Auth {
    /// Whom everybody is while there are no credentials.
    open: Option<Caller>,
    tokens: Tokens,
    issuer: Option<Issuer>,
    standing: Arc<Standing>,
    sessions: Shelf<sessions::Session>,
    tickets: Shelf<Caller>,
}

impl Auth {
    /// Reads keys that are in files. Those behind an address come later.
    pub(super) fn new(
        options: &AuthOptions,
        bind: SocketAddr,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, GatewayError> {
        let keys = match &options.jwt {
            Some(jwt) => jwks::read_now(&jwt.keys).map_err(|detail| GatewayError::Jwt { detail })?,
            None => None,
        };
        let standing = Arc::new(Standing::new(clock, keys.unwrap_or_default(), options.revocations_max));
        let mut open = None;
        if options.tokens.is_empty() && options.jwt.is_none() {
            if !bind.ip().to_canonical().is_loopback() {
                return Err(GatewayError::NeedsAuth { bind });
            }
            let tenant =
                TenantId::new("default").map_err(|e| GatewayError::Token { detail: e.to_string() })?;
            open = Some(Caller {
                tenant,
                name: "loopback".into(),
                party: Some("loopback".into()),
                rights: [Right::Publish, Right::Read, Right::Admin].into(),
                tables: None,
                valid: Validity::new(&standing, Identity::Open, None),
            });
        }
        Ok(Self {
            open,
            tokens: Tokens::new(&options.tokens, &standing)?,
            issuer: options.jwt.clone().map(Issuer::new),
            sessions: Shelf::new("sessions_max", options.sessions_max),
            tickets: Shelf::new("tickets_max", options.tickets_max),
            standing,
        })
    }

    /// Keeps the keys of an issuer up to date for as long as it is polled.
    pub(super) async fn keep_keys(&self) {
        if let Some(issuer) = &self.issuer {
            issuer.keep_reading(&self.standing).await;
        }
    }

    /// Whose token this is. May wait for the keys of an issuer, for a bounded time.
    async fn authenticate(&self, token: &str) -> Result<Caller, Problem> {
        if let Some(caller) = &self.open {
            return Ok(caller.clone());
        }
        if token.len() > TOKEN_BYTES_MAX {
            let bytes = token.len();
            let detail = format!("the token has {bytes} bytes; token_bytes_max is {TOKEN_BYTES_MAX}");
            let problem = Problem::new("token_invalid", detail);
            return Err(problem.limit("token_bytes_max", bytes as u64, TOKEN_BYTES_MAX as u64));
        }
        let caller = match (self.tokens.find(token), &self.issuer) {
            (Some(caller), _) => caller.clone(),
            (None, Some(issuer)) if jwt::looks_like_one(token) => self.signed(issuer, token).await?,
            (None, _) => {
                let detail = "no token of this host's configuration is this one";
                return Err(Problem::new("token_invalid", detail));
            }
        };
        caller.valid.check()?;
        Ok(caller)
    }

    async fn signed(&self, issuer: &Issuer, token: &str) -> Result<Caller, Problem> {
        let algorithms = &issuer.options.algorithms;
        let signed = match jwt::verify(token, &self.standing.keys(), algorithms) {
            Err(Unsigned::KeyUnknown) if issuer.look_again(&self.standing).await => {
                jwt::verify(token, &self.standing.keys(), algorithms)
            }
            first => first,
        };
        let signed = signed.map_err(|why| match why {
            Unsigned::Refused(problem) => problem,
            Unsigned::KeyUnknown if self.standing.keys().len() == 0 => {
                Problem::new("jwks_unavailable", "the key set of the issuer could not be read yet")
                    .retry_after(issuer.options.jwks_refresh_min)
            }
            Unsigned::KeyUnknown => {
                Problem::new("token_key_unknown", "no key of the key set has signed the token")
            }
        })?;
        let claims = jwt::read(&signed.claims, &issuer.options, self.standing.clock.now())?;
        let named = claims.subject.as_deref().or(claims.id.as_deref()).unwrap_or("jwt");
        // It stands in the log and in `deployed_by`.
        let name: String = named.chars().filter(|c| !c.is_control()).take(CALLER_NAME_CHARS_MAX).collect();
        let party = claims.subject.as_deref().map(Arc::from);
        let identity = Identity::Signed {
            id: claims.id,
            subject: claims.subject,
            issued_at: claims.issued_at,
            key: signed.mark,
        };
        Ok(Caller {
            tenant: claims.tenant,
            name: name.into(),
            party,
            rights: claims.rights.into(),
            tables: claims.tables,
            valid: Validity::new(&self.standing, identity, Some(claims.expires_at)),
        })
    }
}

impl Edge {
    /// Whose token this is, for a client that sends one outside of a header: a WebSocket that goes on with a newer
    /// one. The caller's rights are still to be asked for.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Caller, Problem> {
        self.auth.authenticate(token).await
    }

    /// Who asks, by header, ticket or cookie, in this order; and one more request of its tenant.
    async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let caller = self.shown(parts).await?;
        self.rates.admit(&caller.tenant, self.services.clock.now())?;
        Ok(caller)
    }

    /// Who calls over gRPC; and one more request of its tenant.
    #[cfg(feature = "grpc")]
    pub(super) async fn called(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let caller = self.named(headers).await?;
        self.rates.admit(&caller.tenant, self.services.clock.now())?;
        Ok(caller)
    }

    /// By a static token as `x-api-key`, which says the client and counts first, or by a bearer token. One that is not good
    /// refuses the call, whatever the other one is. Headers that name somebody are not looked at.
    #[cfg(feature = "grpc")]
    async fn named(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        if let Some(caller) = &self.auth.open {
            return Ok(caller.clone());
        }
        let bearer = match bearer(headers)? {
            Some(token) => Some(self.authenticate(token).await?),
            None => None,
        };
        let mut keys = headers.get_all("x-api-key").iter();
        let key = match (keys.next().map(|value| value.to_str()), keys.next()) {
            (None, _) => None,
            (Some(Ok(key)), None) => Some(self.authenticate(key.trim()).await?),
            _ => {
                return Err(Problem::new(
                    "token_missing",
                    "the header `x-api-key` is no text, or there are two",
                ));
            }
        };
        match (key, bearer) {
            (Some(key), _) if !key.valid.is_static() => {
                Err(Problem::new("token_invalid", "`x-api-key` takes tokens of the configuration only"))
            }
            (Some(key), Some(bearer)) if key.tenant != bearer.tenant => {
                Err(Problem::new("token_invalid", "`x-api-key` and `authorization` are of two tenants"))
            }
            (Some(caller), _) | (None, Some(caller)) => Ok(caller),
            (None, None) => Err(Problem::new("token_missing", "missing authorization")),
        }
    }

    async fn shown(&self, parts: &Parts) -> Result<Caller, Problem> {
        if let Some(caller) = &self.auth.open {
            return Ok(caller.clone());
        }
        if let Some(token) = bearer(&parts.headers)? {
            return self.authenticate(token).await;
        }
        if let Some(url::Redeemed(caller)) = parts.extensions.get() {
            caller.valid.check()?;
            return Ok(caller.clone());
        }
        let Some(id) = sessions::cookie(&parts.headers) else {
            return Err(Problem::new("token_missing", "the request has no `Authorization: Bearer` header"));
        };
        // A page of another site can make the browser send the cookie, and can even open a socket with it.
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        if !reads || parts.headers.contains_key(header::UPGRADE) {
            cors::check_same_origin(&parts.headers, &self.options.cors_origins)?;
        }
        let session = self.auth.sessions.get(id, self.services.clock.now());
        let session = session.ok_or_else(|| Problem::new("session_unknown", "no session has this cookie"))?;
        session.caller.valid.check()?;
        Ok(session.caller)
    }
}

/// The token of the header; none where there is no header.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let malformed = |detail: &str| Problem::new("token_missing", detail);
    if values.next().is_some() {
        return Err(malformed("the request has two `Authorization` headers"));
    }
    let value = value.to_str().map_err(|_| malformed("the header `Authorization` is not text"))?;
    match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => Ok(Some(token.trim())),
        _ => Err(malformed("the header `Authorization` has no bearer token")),
    }
}

macro_rules! right_extractor {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(pub(super) Caller);

        impl FromRequestParts<Arc<Edge>> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Problem> {
                let caller = edge.caller(parts).await?;
                let check: fn(&Caller) -> Result<(), Problem> = $check;
                check(&caller)?;
                Ok(Self(caller))
            }
        }
    };
}

right_extractor!(
    /// Somebody with a credential, whatever it is good for.
    Somebody,
    |_| Ok(())
);
right_extractor!(
    /// Somebody who may publish.
    Publisher,
    |caller| caller.needs(Right::Publish)
);
right_extractor!(
    /// Somebody who may read everything of the tenant.
    Reader,
    Caller::needs_everything
);
right_extractor!(
    /// Somebody who may read tables, perhaps only some of them: [`Caller::table_filter`] says which rows.
    TableReader,
    |caller| caller.needs(Right::Read)
);
right_extractor!(
    /// Somebody who may change plugins and see the whole host.
    Admin,
    |caller| caller.needs(Right::Admin)
);

/// Refuses foreign names while there are no credentials, and tokens in addresses; redeems tickets.
pub(super) async fn guard(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response {
    if edge.auth.open.is_some()
        && let Err(problem) = loopback::check(request.headers(), request.uri())
    {
        return problem.into_response();
    }
    if let Err(problem) = url::redeem(&edge, &mut request) {
        return problem.into_response();
    }
    next.run(request).await
}
