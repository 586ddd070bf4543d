//! Plugins that a feed decides about.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

/// The names of the plugins that only a feed may change here. Clones are the same list: whoever follows the feed writes
/// it, the registry asks it.
#[derive(Clone, Debug, Default)]
pub struct ManagedPlugins(Arc<RwLock<BTreeSet<String>>>);

impl ManagedPlugins {
    pub fn contains(&self, plugin: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(plugin)
    }

    /// Takes the place of the former list.
    pub fn set(&self, plugins: BTreeSet<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = plugins;
    }
}
