//! What an operator says about who may come in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;

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
    pub(in crate::gateway) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// A right by its name; other names are none.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Publish, Self::Read, Self::Admin].into_iter().find(|right| right.as_str() == name)
    }
}

/// Whom the edge lets in. Neither tokens nor `jwt`: loopback only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    pub tokens: Vec<TokenOptions>,
    pub jwt: Option<JwtOptions>,
    pub session_lifetime: Duration,
    pub sessions_max: usize,
    pub ticket_lifetime: Duration,
    pub tickets_max: usize,
    pub revocations_max: usize,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            jwt: None,
            session_lifetime: limits::SESSION_LIFETIME,
            sessions_max: limits::SESSIONS_MAX,
            ticket_lifetime: limits::TICKET_LIFETIME,
            tickets_max: limits::TICKETS_MAX,
            revocations_max: limits::REVOCATIONS_MAX,
        }
    }
}

/// One static token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// The token itself, or `sha256:` and the hexadecimal SHA-256 of it.
    pub token: String,
    pub tenant: String,
    pub rights: Vec<Right>,
    /// Names the token in the log and in `deployed_by`; never the token itself.
    pub name: Option<String>,
    /// The only tables that the token reads, each with the condition that its rows must meet. None: all of them.
    pub tables: Option<BTreeMap<String, Option<String>>>,
}

impl fmt::Debug for TokenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenOptions")
            .field("token", &"(hidden)")
            .field("tenant", &self.tenant)
            .field("rights", &self.rights)
            .field("name", &self.name)
            .field("tables", &self.tables)
            .finish()
    }
}

/// How a JSON Web Token is signed. Each belongs to one type of key, so that a key of one type is never taken
/// for one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl JwtAlgorithm {
    pub const ALL: [Self; 4] = [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Where the keys come from that tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// A file with the secret of HS256.
    Hs256SecretFile(PathBuf),
    /// A file with a JSON Web Key Set, read again like an address.
    JwksFile(PathBuf),
    /// The address of a JSON Web Key Set: https, or http on this machine.
    JwksUrl(String),
}

/// JSON Web Tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    pub keys: JwtKeys,
    /// What `iss` must be. None: anything.
    pub issuer: Option<String>,
    /// What `aud` must name. None: a token that has an audience is refused, because it is meant for somebody else.
    pub audience: Option<String>,
    /// How far the clocks of the issuer and of this host may be apart.
    pub leeway: Duration,
    pub tenant_claim: String,
    pub rights_claim: String,
    pub algorithms: Vec<JwtAlgorithm>,
    /// How often the key set is read again.
    pub jwks_refresh: Duration,
    /// How soon it is read again because of a token with an unknown key.
    pub jwks_refresh_min: Duration,
    /// How long reading it may take.
    pub jwks_wait_max: Duration,
}

impl JwtOptions {
    pub fn new(keys: JwtKeys) -> Self {
        Self {
            keys,
            issuer: None,
            audience: None,
            leeway: limits::JWT_LEEWAY,
            tenant_claim: "tenant".into(),
            rights_claim: "rights".into(),
            algorithms: JwtAlgorithm::ALL.into(),
            jwks_refresh: limits::JWKS_REFRESH,
            jwks_refresh_min: limits::JWKS_REFRESH_MIN,
            jwks_wait_max: limits::JWKS_WAIT_MAX,
        }
    }
}
