//! The list of keys that counts now.

use std::sync::{Arc, PoisonError, RwLock};

use super::trust::TrustStore;
use super::{ControlEvent, ControlStore, EventBody, Result};

/// The keys of this host. Clones are the same: the applier changes them, everybody else reads them.
#[derive(Clone, Debug)]
pub struct Believing {
    keys: Arc<RwLock<Arc<TrustStore>>>,
}

impl Believing {
    pub fn new(keys: TrustStore) -> Self {
        Self { keys: Arc::new(RwLock::new(Arc::new(keys))) }
    }

    /// The list as of now. Take it once for what has to be consistent.
    pub fn keys(&self) -> Arc<TrustStore> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the list that this host has heard of before, where it is above that of its file.
    pub async fn recall(&self, store: &dyn ControlStore) -> Result<()> {
        let (_, rows) = store.desired().await?;
        rows.iter().try_for_each(|row| self.learn(&row.event).map(drop))
    }

    /// Takes the list of an event that was applied here. Answers whether it is another one than before.
    pub(super) fn learn(&self, event: &ControlEvent) -> Result<bool> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(event.unsigned().body, EventBody::Trust(_)) || keys.is_past(event) {
            return Ok(false);
        }
        *keys = Arc::new(keys.after(event)?);
        Ok(true)
    }
}
