//! Where the fleet's artifacts lie.

use std::sync::Arc;

use super::{HostBuilder, HostError, off_the_runtime};
use crate::backends::file::FileArtifactRepository;
use crate::config::{ArtifactsConfig, Config};
use crate::control::ArtifactRepository;

impl HostBuilder {
    /// A server need not be there when the host starts.
    pub(super) async fn artifacts(&self) -> Result<Arc<dyn ArtifactRepository>, HostError> {
        let control = &self.config.control;
        match control.artifacts {
            ArtifactsConfig::Redis => on_redis(&self.config),
            ArtifactsConfig::File => {
                let default = || self.config.serve.data.join("artifact-repository");
                let dir = control.artifacts_dir.clone().unwrap_or_else(default);
                let clock = Arc::clone(&self.clock);
                let opened = off_the_runtime(move || FileArtifactRepository::open(dir, clock)).await?;
                Ok(Arc::new(opened?))
            }
        }
    }
}

#[cfg(feature = "redis")]
fn on_redis(config: &Config) -> Result<Arc<dyn ArtifactRepository>, HostError> {
    use crate::backends::redis::{InvalidAddress, RedisArtifactRepository, RedisLink};
    let wrong = |detail: String| crate::control::ControlFeedError::Settings {
        setting: "control.artifacts_url".into(),
        detail,
    };
    let address = config.control.artifacts_url.as_ref().or(config.serve.log.as_ref());
    let address = address.ok_or_else(|| wrong("there is no address of a server".into()))?;
    let address = address.0.parse().map_err(|error: InvalidAddress| wrong(error.to_string()))?;
    let link = RedisLink::new(address, config.redis.ca_file.clone(), &*config.redis.name);
    Ok(Arc::new(RedisArtifactRepository::new(link, super::shared_log::ack(&config.redis))))
}

#[cfg(not(feature = "redis"))]
fn on_redis(_: &Config) -> Result<Arc<dyn ArtifactRepository>, HostError> {
    let detail = "this host was built without Redis".into();
    Err(crate::control::ControlFeedError::Settings { setting: "control.artifacts".into(), detail }.into())
}
