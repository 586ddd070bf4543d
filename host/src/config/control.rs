//! What an operator may set of the control feed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LogAddress;
use crate::limits;

/// What a fleet runs, and how this host hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where artifacts lie for the whole fleet: `file`, a folder, or `redis`, a server.
    pub artifacts: ArtifactsConfig,
    /// The folder of `file`; none: `artifact-repository` in `serve.data`.
    pub artifacts_dir: Option<PathBuf>,
    /// The server of `redis`; none: that of `serve.log`.
    pub artifacts_url: Option<LogAddress>,
    pub artifact_bytes_max: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactsConfig {
    #[default]
    File,
    Redis,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            artifacts: ArtifactsConfig::default(),
            artifacts_dir: None,
            artifacts_url: None,
            artifact_bytes_max: limits::ARTIFACT_BYTES_MAX,
        }
    }
}

impl ControlConfig {
    /// The first thing that is wrong: a key, and why. `log` is whether the host has a server for its log.
    pub(super) fn check(&self, log: bool) -> Result<(), (String, String)> {
        let wrong = |key: &str, why: &str| Err((format!("control.{key}"), why.to_owned()));
        if self.artifact_bytes_max == 0 {
            return wrong("artifact_bytes_max", "0 would stop everything; it counts from 1");
        }
        if self.artifacts == ArtifactsConfig::Redis && self.artifacts_url.is_none() && !log {
            return wrong("artifacts_url", "artifacts = \"redis\" needs it where there is no serve.log");
        }
        Ok(())
    }
}
