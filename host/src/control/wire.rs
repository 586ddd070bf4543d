//! The JSON form of control events, and the bytes that are signed.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{ControlEvent, Result};

pub(super) fn read(_json: Value) -> Result<ControlEvent> {
    Err(super::ControlFeedError::InvalidEvent { detail: "not read yet".into() })
}

/// Without whitespace, members sorted by their names: what is signed does not depend on who wrote it down.
pub(super) fn signed_bytes(json: &Value) -> Vec<u8> {
    let mut signed = json.clone();
    if let Some(object) = signed.as_object_mut() {
        object.remove("signatures");
        object.remove("control_version");
    }
    signed.to_string().into_bytes()
}

pub(super) fn digest_text(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

pub(super) fn pretty(json: &Value) -> String {
    format!("{json:#}")
}
