//! Plugins that could not be started, and another try where that may help.

use std::sync::Arc;

use tracing::warn;

use super::{Entry, Registry};
use crate::error::{Classify as _, Retry};
use crate::limits::{RESTART_WAIT_MAX, RESTART_WAIT_MIN};
use crate::plugins::ControlError;
use crate::processors::ProcessorFactory;

/// Why a plugin could not be started.
#[derive(Clone, Debug)]
pub(super) struct StartFailure {
    pub(super) message: String,
    /// It may go better at another try.
    again: bool,
}

impl Registry {
    /// Tries those again that could not be started for something that passes. Returns once none is left.
    pub async fn keep_starting(&self) {
        let mut wait = RESTART_WAIT_MIN;
        loop {
            let again: Vec<String> = {
                let entries = self.entries();
                entries
                    .iter()
                    .filter(|(_, entry)| wants_another_try(entry))
                    .map(|(name, _)| name.clone())
                    .collect()
            };
            if again.is_empty() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESTART_WAIT_MAX);
            for plugin in again {
                self.start_again(&plugin).await;
            }
        }
    }

    async fn start_again(&self, plugin: &str) {
        let Ok(_turn) = self.turn(plugin).await else { return };
        // It may have been changed or removed since.
        let Some(mut entry) = self.entry(plugin).ok().filter(wants_another_try) else { return };
        let loaded = self.load_deployed(&entry.deployment).await;
        self.take_in(&mut entry, loaded);
        self.entries().insert(plugin.into(), entry);
    }

    /// What became of loading a plugin: it runs, unless it is paused, or has failed.
    pub(super) fn take_in(&self, entry: &mut Entry, loaded: Result<Arc<dyn ProcessorFactory>, ControlError>) {
        match loaded {
            Ok(factory) => {
                entry.failure = None;
                entry.manifest = Some(factory.manifest().clone());
                if !entry.deployment.paused {
                    entry.runner = Some(self.run(factory, &entry.deployment));
                }
            }
            Err(error) => {
                let again = error.retry() != Retry::Never;
                warn!(error.kind = error.code(), error.blame = error.blame().as_str(), plugin.name = entry.deployment.plugin, %error, again, "plugin could not be started");
                entry.failure = Some(StartFailure { message: error.to_string(), again });
            }
        }
    }
}

fn wants_another_try(entry: &Entry) -> bool {
    entry.failure.as_ref().is_some_and(|failure| failure.again)
}
