//! Keeps in the fleet's repository what hosts may still ask for: the artifacts of every version that is desired, and of the
//! one before it. The origin does that; a host has pins of its own on its copies.
//!
//! Promises: what is pinned is written down before, so a kill in between leaves no pin that nobody takes away; and it is
//! asked of the repository what is pinned, so nothing counts as pinned that is only written down.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::changes::desired_of;
use super::store::check_whole;
use super::{ArtifactRepository, ControlFeedError, ControlStore, Desired, Result};
use crate::error::Classify as _;
use crate::limits::CONTROL_PIN_EVERY;

const NOTE: &str = "pinned";

/// An artifact's digest, and the name of its pin.
type Pin = (String, String);

#[derive(Debug)]
pub struct Pinner {
    store: Arc<dyn ControlStore>,
    artifacts: Arc<dyn ArtifactRepository>,
}

impl Pinner {
    pub fn new(store: Arc<dyn ControlStore>, artifacts: Arc<dyn ArtifactRepository>) -> Self {
        Self { store, artifacts }
    }

    /// Looks at once and until it is told to stop.
    pub async fn run(&self, stop: &CancellationToken) {
        // Cut at any await: the next look goes on.
        stop.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        loop {
            if let Err(problem) = self.look().await {
                warn!(
                    error.kind = problem.code(),
                    error.blame = problem.blame().as_str(),
                    %problem,
                    "artifacts that the fleet needs are not pinned; they stay until somebody collects them"
                );
            }
            tokio::time::sleep(CONTROL_PIN_EVERY).await;
        }
    }

    /// Pins what is desired and there, and unpins what is not desired any more.
    pub async fn look(&self) -> Result<()> {
        let known = self.known().await?;
        let (mut wanted, mut loose) = (BTreeSet::new(), BTreeSet::new());
        // One that cannot be looked at, or pinned, keeps no other from being pinned.
        let (mut unseen, mut unpinned) = (None, None);
        let unreadable = self.store.unreadable().await?.proposed;
        let rows = self.store.proposed().await?;
        for (plugin, desired) in rows.iter().filter_map(desired_of) {
            for pin in pins(plugin, desired) {
                let artifact = match self.artifacts.info(&pin.0).await {
                    Ok(Some(artifact)) => artifact,
                    // What is not there may be pushed later.
                    Ok(None) => continue,
                    Err(problem) => {
                        unseen.get_or_insert(problem);
                        continue;
                    }
                };
                if !artifact.pins.contains(&pin.1) {
                    loose.insert(pin.clone());
                }
                wanted.insert(pin);
            }
        }
        if known != wanted || !loose.is_empty() {
            self.remember(&known.union(&wanted).cloned().collect()).await?;
        }
        for (digest, name) in &loose {
            if let Err(problem) = self.artifacts.pin(digest, name).await {
                unpinned.get_or_insert(problem);
            }
        }
        // What is wanted and was not seen is not let go.
        if let Some(problem) = unseen {
            return Err(problem);
        }
        // Nor is what somebody may want whose word cannot be read.
        check_whole(&unreadable)?;
        for (digest, name) in known.difference(&wanted) {
            self.artifacts.unpin(digest, name).await?;
        }
        if known != wanted {
            self.remember(&wanted).await?;
        }
        unpinned.map_or(Ok(()), Err)
    }

    async fn known(&self) -> Result<BTreeSet<Pin>> {
        let written = self.store.note(NOTE).await?;
        // What cannot be read is pinned again; pins that nobody knows of cost space, and nothing else.
        Ok(written.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    async fn remember(&self, pins: &BTreeSet<Pin>) -> Result<()> {
        let text = serde_json::to_string(pins).map_err(|error| ControlFeedError::Settings {
            setting: NOTE.into(),
            detail: error.to_string(),
        })?;
        self.store.set_note(NOTE, Some(&text)).await
    }
}

fn pins(plugin: &str, desired: &Desired) -> impl Iterator<Item = Pin> {
    let name = format!("desired:{plugin}");
    let specs = [&desired.spec, &desired.stable].into_iter().flatten();
    let artifacts = specs.flat_map(|spec| [Some(&spec.component), spec.config.as_ref()]).flatten();
    artifacts.map(move |artifact| (artifact.digest.clone(), name.clone()))
}
