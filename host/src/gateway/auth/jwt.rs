//! JSON Web Tokens: whether the signature is a known key's, and what the claims say.
//!
//! Nothing of a token is believed before its signature is. The algorithm is the key's; the header only has to
//! agree. The signatures are ring's, which TLS brings along; what is around them is little, and reading it here
//! keeps the host's clock in charge of time.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::access::Tables;
use super::keys::KeySet;
use super::options::{JwtAlgorithm, JwtOptions, Right};
use crate::event::{Micros, TenantId};
use crate::gateway::params::cut;
use crate::gateway::problem::Problem;

/// Claims that a known key has signed.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) claims: Map<String, Value>,
    /// The key's.
    pub(super) mark: [u8; 32],
}

/// Why a token's signature is not believed.
#[derive(Debug)]
pub(super) enum Unsigned {
    /// No key of the set is the one that it names; a newer set may have it.
    KeyUnknown,
    Refused(Problem),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None are.
    crit: Option<Value>,
}

/// What the claims say, checked.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) tenant: TenantId,
    pub(super) rights: Vec<Right>,
    pub(super) tables: Option<Tables>,
    pub(super) id: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) issued_at: Option<Micros>,
    /// With the leeway.
    pub(super) expires_at: Micros,
}

/// Whether a text can be a JSON Web Token at all.
pub(super) fn looks_like_one(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Checks the signature.
pub(super) fn verify(token: &str, keys: &KeySet, algorithms: &[JwtAlgorithm]) -> Result<Signed, Unsigned> {
    let refuse = |detail: String| Unsigned::Refused(Problem::new("token_invalid", detail));
    let malformed = || refuse("the token is not a JSON Web Token".into());
    let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let (header, payload) = message.split_once('.').ok_or_else(malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed());
    let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
    let header: Header = serde_json::from_slice(&header).map_err(|_| malformed())?;
    if header.crit.is_some() {
        return Err(refuse("the token has critical extensions, and none are known here".into()));
    }
    let Some(algorithm) = algorithms.iter().copied().find(|known| known.as_str() == header.alg) else {
        let detail = format!("the token's algorithm is `{}`, which is not taken here", cut(&header.alg));
        return Err(refuse(detail));
    };
    let named = header.kid.as_deref();
    let mut candidates = keys.candidates(named).filter(|key| key.algorithm == algorithm);
    if let Some(key) = candidates.find(|key| key.verifies(message.as_bytes(), &signature)) {
        let claims = serde_json::from_slice(&payload).map_err(|_| malformed())?;
        return Ok(Signed { claims, mark: key.mark });
    }
    if named.is_some() && keys.candidates(named).any(|key| key.id.as_deref() == named) {
        return Err(refuse("the token's signature is not the one of its key".into()));
    }
    // Without a name it may be the signature of a key that is newer than the set.
    Err(Unsigned::KeyUnknown)
}

/// Reads what a signed token claims.
pub(super) fn read(
    claims: &Map<String, Value>,
    options: &JwtOptions,
    now: Micros,
) -> Result<Claims, Problem> {
    let leeway = i64::try_from(options.leeway.as_micros()).unwrap_or(i64::MAX);
    let Some(expires) = time(claims, "exp")? else {
        return Err(invalid("the token has no `exp`; one that never expires is not taken".into()));
    };
    let expires_at = Micros(expires.0.saturating_add(leeway));
    if expires_at <= now {
        return Err(Problem::new("token_expired", format!("the token expired at {}", expires)));
    }
    if let Some(begins) = time(claims, "nbf")?
        && begins.0.saturating_sub(leeway) > now.0
    {
        let detail = format!("the token is valid from {} on", begins);
        return Err(Problem::new("token_not_yet_valid", detail));
    }
    check_issuer(claims, options)?;
    check_audience(claims, options)?;
    let Some(tenant) = text(claims, &options.tenant_claim)? else {
        return Err(invalid(format!(
            "the token has no claim `{}`, which names the tenant",
            options.tenant_claim
        )));
    };
    let tenant = TenantId::new(&tenant)
        .map_err(|e| invalid(format!("the claim `{}` is no tenant: {e}", options.tenant_claim)))?;
    Ok(Claims {
        tenant,
        rights: rights(claims, &options.rights_claim)?,
        tables: Tables::claimed(claims.get("tables")).map_err(invalid)?,
        id: text(claims, "jti")?,
        subject: text(claims, "sub")?,
        issued_at: time(claims, "iat")?,
        expires_at,
    })
}

fn check_issuer(claims: &Map<String, Value>, options: &JwtOptions) -> Result<(), Problem> {
    let Some(wanted) = &options.issuer else { return Ok(()) };
    match text(claims, "iss")? {
        Some(issuer) if issuer == *wanted => Ok(()),
        Some(issuer) => {
            Err(invalid(format!("the token was issued by `{}`, not by `{wanted}`", cut(&issuer))))
        }
        None => Err(invalid(format!("the token does not say who issued it; `iss` must be `{wanted}`"))),
    }
}

/// A token that names its audience is for nobody else (RFC 7519, 4.1.3), also where this host has no name.
fn check_audience(claims: &Map<String, Value>, options: &JwtOptions) -> Result<(), Problem> {
    let named: Vec<&str> = match claims.get("aud") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(invalid("the claim `aud` is neither text nor a list".into())),
    };
    match &options.audience {
        Some(wanted) if named.contains(&wanted.as_str()) => Ok(()),
        Some(wanted) => Err(invalid(format!("the token is not for `{wanted}`, which `aud` must name"))),
        None if claims.get("aud").is_none_or(Value::is_null) => Ok(()),
        None => Err(invalid("the token is for an audience, and auth.jwt.audience is not set".into())),
    }
}

/// A list, or one text with spaces, as `scope` has it. Names that are no rights here are somebody else's.
fn rights(claims: &Map<String, Value>, name: &str) -> Result<Vec<Right>, Problem> {
    let names: Vec<&str> = match claims.get(name) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(invalid(format!("the claim `{name}` is neither text nor a list"))),
    };
    Ok(names.into_iter().filter_map(Right::named).collect())
}

fn text(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, Problem> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("the claim `{}` is not text", cut(name)))),
    }
}

/// Seconds since 1970, with a fraction or without.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<Micros>, Problem> {
    let seconds = match claims.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_f64().filter(|seconds| seconds.is_finite()),
    };
    let seconds = seconds.ok_or_else(|| invalid(format!("the claim `{name}` is not a number of seconds")))?;
    // The year 9999 is as good as any later one.
    const LAST: f64 = 253_402_300_799.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is between both ends")]
    Ok(Some(Micros((seconds.clamp(-LAST, LAST) * 1e6) as i64)))
}

fn invalid(detail: String) -> Problem {
    Problem::new("token_invalid", detail)
}
