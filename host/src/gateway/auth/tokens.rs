//! The static tokens of the config file.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Caller;
use super::access::Tables;
use super::options::TokenOptions;
use super::validity::{Identity, Standing, Validity};
use crate::event::TenantId;
use crate::gateway::GatewayError;

/// By SHA-256 of the token: comparing is a look-up under a random hash key, so its time tells nothing about how
/// much of a guess was right.
#[derive(Debug)]
pub(super) struct Tokens(HashMap<[u8; 32], Caller>);

impl Tokens {
    pub(super) fn new(options: &[TokenOptions], standing: &Arc<Standing>) -> Result<Self, GatewayError> {
        let mut tokens = HashMap::new();
        for (index, token) in options.iter().enumerate() {
            let name = token.name.clone().unwrap_or_else(|| format!("token-{}", index + 1));
            let invalid = |detail: String| GatewayError::Token { detail: format!("`{name}`: {detail}") };
            let tenant = TenantId::new(&token.tenant).map_err(|e| invalid(e.to_string()))?;
            let digest = digest_of(&token.token).map_err(|e| invalid(e.into()))?;
            if token.rights.is_empty() {
                return Err(invalid("it has no rights; there are publish, read and admin".into()));
            }
            let caller = Caller {
                tenant,
                name: name.as_str().into(),
                // A place in the configuration is nobody's name.
                party: token.name.as_deref().map(Into::into),
                rights: token.rights.clone().into(),
                tables: token.tables.as_ref().map(Tables::configured),
                valid: Validity::new(standing, Identity::Static { name: name.clone() }, None),
            };
            if tokens.insert(digest, caller).is_some() {
                return Err(invalid("another entry has the same token".into()));
            }
        }
        Ok(Self(tokens))
    }

    pub(super) fn find(&self, token: &str) -> Option<&Caller> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.get(&digest)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.0.values().any(|caller| &*caller.name == name)
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
