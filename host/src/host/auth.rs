//! What the edge takes credentials from, as the configuration says it.

use std::time::Duration;

use crate::config::{
    AuthConfig, JwtAlgorithm as ConfiguredAlgorithm, JwtConfig, Right as ConfiguredRight, TablesConfig,
    TokenConfig,
};
use crate::gateway::{AuthOptions, JwtAlgorithm, JwtKeys, JwtOptions, Right, TokenOptions};

pub(super) fn auth_options(config: &AuthConfig) -> AuthOptions {
    AuthOptions {
        tokens: config.tokens.iter().map(token).collect(),
        jwt: config.jwt.as_ref().map(jwt),
        session_lifetime: Duration::from_secs(config.session_lifetime_s),
        sessions_max: config.sessions_max,
        ticket_lifetime: Duration::from_secs(config.ticket_lifetime_s),
        tickets_max: config.tickets_max,
        revocations_max: config.revocations_max,
    }
}

fn jwt(config: &JwtConfig) -> JwtOptions {
    let secret = config.hs256_secret_file.clone().map(JwtKeys::Hs256SecretFile);
    let file = || config.jwks_file.clone().map(JwtKeys::JwksFile);
    let url = || config.jwks_url.clone().map(JwtKeys::JwksUrl);
    // A checked configuration has one of them. Without any the edge does not begin: the address is none.
    let keys = secret.or_else(file).or_else(url).unwrap_or_else(|| JwtKeys::JwksUrl(String::new()));
    let algorithms = config.algorithms.iter().map(|algorithm| match algorithm {
        ConfiguredAlgorithm::HS256 => JwtAlgorithm::Hs256,
        ConfiguredAlgorithm::RS256 => JwtAlgorithm::Rs256,
        ConfiguredAlgorithm::ES256 => JwtAlgorithm::Es256,
        ConfiguredAlgorithm::EdDSA => JwtAlgorithm::EdDsa,
    });
    JwtOptions {
        issuer: config.issuer.clone(),
        audience: config.audience.clone(),
        leeway: Duration::from_secs(config.leeway_s),
        tenant_claim: config.tenant_claim.clone(),
        rights_claim: config.rights_claim.clone(),
        algorithms: algorithms.collect(),
        jwks_refresh: Duration::from_secs(config.jwks_refresh_s),
        jwks_refresh_min: Duration::from_secs(config.jwks_refresh_s_min),
        jwks_wait_max: Duration::from_millis(config.jwks_wait_ms_max),
        ..JwtOptions::new(keys)
    }
}

fn token(entry: &TokenConfig) -> TokenOptions {
    let digest = entry.digest().unwrap_or_default();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let rights = entry.rights.iter().map(|right| match right {
        ConfiguredRight::Publish => Right::Publish,
        ConfiguredRight::Read => Right::Read,
        ConfiguredRight::Admin => Right::Admin,
    });
    TokenOptions {
        token: format!("sha256:{hex}"),
        tenant: entry.tenant.clone(),
        rights: rights.collect(),
        name: entry.name.clone(),
        tables: entry.tables.as_ref().map(|tables| match tables {
            TablesConfig::Names(names) => names.iter().map(|name| (name.clone(), None)).collect(),
            TablesConfig::Rules(rules) => {
                rules.iter().map(|(name, rule)| (name.clone(), rule.condition.clone())).collect()
            }
        }),
    }
}
