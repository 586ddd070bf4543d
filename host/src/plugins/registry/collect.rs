//! Removing the artifacts that nobody can go back to.

use tracing::{info, warn};

use super::{Registry, blocking};
use crate::error::Classify as _;
use crate::plugins::PluginError;

impl Registry {
    /// Removes artifacts that no deployment refers to, present or kept in the history: what is older than the
    /// history, or was kept for a take-over that failed. Nothing is removed while anything is being changed,
    /// since an artifact is there before its deployment; the next change does it then.
    pub(super) async fn collect_artifacts(&self) {
        let Ok(_nothing_changes) = self.inner.changing.try_write() else { return };
        let parts = &self.inner.parts;
        let mut kept = match parts.deployments.digests().await {
            Ok(kept) => kept,
            Err(error) => {
                warn!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "artifacts are not collected: what is deployed cannot be read");
                return;
            }
        };
        for entry in self.entries().values() {
            kept.insert(entry.deployment.digest.clone());
            kept.extend(entry.waiting.iter().map(|waiting| waiting.factory.digest().to_owned()));
        }
        let artifacts = std::sync::Arc::clone(&parts.artifacts);
        let removed: Result<usize, PluginError> = blocking(move || artifacts.retain(&kept)).await;
        match removed {
            Ok(0) => {}
            Ok(removed) => info!(removed, "artifacts removed that no deployment refers to"),
            // They are looked at again at the next change.
            Err(error) => {
                warn!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "artifacts that no deployment refers to cannot be removed")
            }
        }
    }
}
