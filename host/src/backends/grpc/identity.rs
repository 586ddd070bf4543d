//! Who a client is: an API key, a bearer token, a client id.

use std::fmt;
use std::path::PathBuf;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use super::options::{GrpcOptions, bounded};
use crate::processors::source::{SourceError, SourceFault};

/// A secret, itself or in a file that may change.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Text(String),
    File(PathBuf),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Credential"),
            Self::File(path) => write!(f, "Credential({})", path.display()),
        }
    }
}

impl Credential {
    /// As it is now: a file is read each time, since who rotates a secret replaces the file.
    async fn now(&self) -> Result<String, SourceError> {
        let path = match self {
            Self::Text(text) => return Ok(text.trim().to_owned()),
            Self::File(path) => path.clone(),
        };
        let shown = path.display().to_string();
        let unreadable = |detail: &dyn fmt::Display| {
            SourceError::pass(SourceFault::Denied, format!("the secret in {shown} cannot be read: {detail}"))
        };
        let read = tokio::task::spawn_blocking(move || bounded(&path));
        let bytes = read.await.map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable(&"it is not UTF-8"))?;
        Ok(text.trim().to_owned())
    }
}

/// Adds who calls to a call. What is empty is not sent.
pub(super) async fn identify(options: &GrpcOptions, metadata: &mut MetadataMap) -> Result<(), SourceError> {
    if let Some(token) = &options.bearer_token {
        let token = token.now().await?;
        if !token.is_empty() {
            metadata.insert("authorization", secret("bearer_token", &format!("Bearer {token}"))?);
        }
    }
    if let Some(key) = &options.api_key {
        let key = key.now().await?;
        if !key.is_empty() {
            metadata.insert("x-api-key", secret("api_key", &key)?);
        }
    }
    let client = options.client_id.trim();
    if !client.is_empty() {
        let value = client.parse().map_err(|_| {
            SourceError::stop(
                SourceFault::Refused,
                "client_id is sent as a header: it has visible ASCII only",
            )
        })?;
        metadata.insert("x-client-id", value);
    }
    Ok(())
}

fn secret(setting: &str, text: &str) -> Result<MetadataValue<Ascii>, SourceError> {
    let mut value: MetadataValue<Ascii> = text.parse().map_err(|_| {
        let message = format!("{setting} is sent as a header: it has visible ASCII only");
        SourceError::stop(SourceFault::Denied, message)
    })?;
    // Kept out of what is printed, and out of the table that compresses headers.
    value.set_sensitive(true);
    Ok(value)
}
