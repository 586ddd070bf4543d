//! Where artifacts come from and who vouches for them.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use super::trouble::Trouble;
use crate::control::{ArtifactRef, Believing, ControlFeedError, LocalArtifacts, PluginSpec, Result, wire};
use crate::limits::CONTROL_CONFIG_BYTES_MAX;
use crate::plugins::PluginSettings;

/// Artifacts on this host, fetched where they are not.
pub trait Supply: Send + Sync + Debug {
    /// All of an artifact, from this host's copy where there is one. Dropping the future leaves nothing half.
    fn get<'a>(&'a self, artifact: &'a ArtifactRef) -> BoxFuture<'a, Result<Bytes>>;

    /// Keeps this host's copy under a name, until it is unpinned under that name.
    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// What is not pinned, or not there, is fine.
    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;
}

impl Supply for LocalArtifacts {
    fn get<'a>(&'a self, artifact: &'a ArtifactRef) -> BoxFuture<'a, Result<Bytes>> {
        Self::get(self, artifact).boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Self::pin(self, digest, name).boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Self::unpin(self, digest, name).boxed()
    }
}

/// Says whether a component may run here that was released then.
pub trait Vet: Send + Sync + Debug {
    fn check(&self, plugin: &str, component: &ArtifactRef, released_at: i64) -> Result<()>;

    /// Names the list of keys that it asks: what one did not believe, the next may.
    fn list(&self) -> String;
}

impl Vet for Believing {
    fn check(&self, plugin: &str, component: &ArtifactRef, released_at: i64) -> Result<()> {
        self.keys().check_artifact(plugin, component, released_at)
    }

    fn list(&self) -> String {
        let keys = self.keys();
        let mut text = keys.to_json();
        if keys.is_insecure() {
            text.push_str("insecure");
        }
        wire::digest_text(text.as_bytes())
    }
}

/// Whether content is what an event names. Whoever supplied it has looked, too; this is what runs.
pub(super) fn verify(artifact: &ArtifactRef, content: &[u8]) -> Result<()> {
    let found = wire::hex_digest(&Sha256::digest(content));
    if found != artifact.digest || content.len() as u64 != artifact.bytes {
        let found = format!("{found}, and there are {} of {}", content.len(), artifact.bytes);
        return Err(ControlFeedError::ArtifactDamaged { digest: artifact.digest.clone(), found });
    }
    Ok(())
}

/// The settings of a version: what its event says, its configuration, and the operator's word on what no event says.
pub(super) fn settings(
    spec: &PluginSpec,
    config: Option<&[u8]>,
    operator: Option<&PluginSettings>,
) -> std::result::Result<PluginSettings, Trouble> {
    let mut settings = spec.settings()?;
    if let Some(config) = config {
        let wrong = |reason: String| Trouble::lasting("plugin_config_invalid", reason);
        if config.len() as u64 > CONTROL_CONFIG_BYTES_MAX {
            return Err(wrong(format!(
                "the configuration has {} bytes; control_config_bytes_max is {CONTROL_CONFIG_BYTES_MAX}",
                config.len()
            )));
        }
        let texts = serde_json::from_slice::<BTreeMap<String, String>>(config);
        settings.config =
            texts.map_err(|error| wrong(format!("the configuration is no JSON object of texts: {error}")))?;
    }
    if let Some(operator) = operator {
        settings.on_failure = operator.on_failure;
        settings.on_position_lost = operator.on_position_lost;
        if settings.grants.iter().any(|grant| grant == "http") {
            settings.http_ca_file.clone_from(&operator.http_ca_file);
        }
    }
    Ok(settings)
}
