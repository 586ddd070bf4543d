//! Rebuilds for a source whose server has forgotten where it was: what the plugins were made of comes again.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tracing::info;

use super::{ControlError, DeployFrom, PluginControl, RebuildError, RebuildRequest};
use crate::error::Classify as _;
use crate::processors::source::{Rebuilds, SourceError, SourceFault};

/// Asks for rebuilds in the name of a source.
#[derive(Clone, Debug)]
pub struct Rebuilder {
    control: Arc<dyn PluginControl>,
    by: String,
}

impl Rebuilder {
    pub fn new(control: Arc<dyn PluginControl>, by: impl Into<String>) -> Self {
        Self { control, by: by.into() }
    }

    /// With the version that runs, over everything that is kept.
    async fn begin(&self, plugin: &str) -> Result<(), SourceError> {
        let request = RebuildRequest {
            plugin: plugin.to_owned(),
            component: None,
            from: DeployFrom::Oldest,
            lanes: None,
            accept_unemitted: false,
            repeat_calls: false,
            by: self.by.clone(),
        };
        let error = match self.control.rebuild(request).await {
            Ok(view) => {
                info!(
                    plugin.name = plugin,
                    number = view.number,
                    by = self.by,
                    "a source begins anew, and with it a rebuild"
                );
                return Ok(());
            }
            // It has what comes again before it takes over, whoever began it.
            Err(ControlError::Rebuild(RebuildError::Running { .. })) => return Ok(()),
            Err(error) => error,
        };
        let message = format!(
            "the server no longer knows the cursor, and plugin `{plugin}` cannot be rebuilt: {error}"
        );
        let failed =
            SourceError { retry: error.retry(), ..SourceError::stop(SourceFault::CursorLost, message) };
        Err(failed.because(error))
    }
}

impl Rebuilds for Rebuilder {
    fn rebuild<'a>(&'a self, plugin: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        self.begin(plugin).boxed()
    }
}
