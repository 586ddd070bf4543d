//! Which keys a host believes, and for what.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// Signs artifacts.
    Build,
    /// Signs what hosts are to run.
    Release,
    /// Signs changes of the list of keys.
    Root,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// 32 bytes as base64.
    pub public_key: String,
    pub roles: Vec<KeyRole>,
    /// Who has it, for people.
    pub owner: String,
    /// Microseconds since 1970; RFC 3339 on the wire. What was signed (`issued_at`) afterwards does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(default)]
    pub revoked: bool,
}
