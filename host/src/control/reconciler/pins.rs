//! Which copies of artifacts are kept for a plugin: what is wanted, what serves, and what served before it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Shared;
use crate::control::{ControlFeedError, PluginSpec, Result};

/// Written down before anything is pinned, so that nothing stays pinned that nobody knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Pins {
    wanted: BTreeSet<String>,
    active: BTreeSet<String>,
    former: BTreeSet<String>,
    /// What is still to be unpinned.
    left: BTreeSet<String>,
}

impl Pins {
    fn kept(&self) -> BTreeSet<String> {
        [&self.wanted, &self.active, &self.former].into_iter().flatten().cloned().collect()
    }
}

impl Shared {
    /// A version is here and is about to be tried.
    pub(super) async fn pin_wanted(&self, plugin: &str, spec: &PluginSpec) -> Result<()> {
        let wanted = digests(spec);
        let left = self.change_pins(plugin, |pins| pins.wanted.clone_from(&wanted)).await?;
        for digest in &wanted {
            self.parts.supply.pin(digest, &name(plugin)).await?;
        }
        self.unpin_left(plugin, left).await
    }

    /// A version serves.
    pub(super) async fn pin_active(&self, plugin: &str, spec: &PluginSpec) -> Result<()> {
        let active = digests(spec);
        let change = |pins: &mut Pins| {
            pins.wanted.clone_from(&active);
            if pins.active != active {
                pins.former = std::mem::replace(&mut pins.active, active.clone());
            }
        };
        let left = self.change_pins(plugin, change).await?;
        for digest in &active {
            match self.parts.supply.pin(digest, &name(plugin)).await {
                // It was deployed another way. Whoever runs it has its bytes.
                Err(ControlFeedError::ArtifactMissing { .. }) => {}
                pinned => pinned?,
            }
        }
        self.unpin_left(plugin, left).await
    }

    pub(super) async fn unpin_all(&self, plugin: &str) -> Result<()> {
        let left = self
            .change_pins(plugin, |pins| *pins = Pins { left: pins.left.clone(), ..Pins::default() })
            .await?;
        self.unpin_left(plugin, left).await?;
        self.parts.store.set_note(&note(plugin), None).await
    }

    /// Writes down what is to be pinned, and answers what is not to be any more.
    async fn change_pins(&self, plugin: &str, change: impl FnOnce(&mut Pins)) -> Result<Pins> {
        let written = self.parts.store.note(&note(plugin)).await?;
        // What cannot be read is as good as none: it is this host's own, and keeps too much at worst.
        let before: Pins = written.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut pins = before.clone();
        change(&mut pins);
        let kept = pins.kept();
        pins.left.extend(before.kept());
        pins.left.retain(|digest| !kept.contains(digest));
        if pins != before {
            self.parts.store.set_note(&note(plugin), Some(&json(&pins))).await?;
        }
        Ok(pins)
    }

    async fn unpin_left(&self, plugin: &str, mut pins: Pins) -> Result<()> {
        if pins.left.is_empty() {
            return Ok(());
        }
        for digest in std::mem::take(&mut pins.left) {
            self.parts.supply.unpin(&digest, &name(plugin)).await?;
        }
        self.parts.store.set_note(&note(plugin), Some(&json(&pins))).await
    }
}

fn digests(spec: &PluginSpec) -> BTreeSet<String> {
    let config = spec.config.as_ref().map(|config| config.digest.clone());
    config.into_iter().chain([spec.component.digest.clone()]).collect()
}

fn note(plugin: &str) -> String {
    format!("pins:{plugin}")
}

/// Under which its artifacts are pinned.
fn name(plugin: &str) -> String {
    format!("plugin:{plugin}")
}

fn json(pins: &Pins) -> String {
    serde_json::to_string(pins).unwrap_or_default()
}
