//! What a processor needs to be made again beside itself: the same code under another name, whose effects stay in
//! the store, and a position at which both stand still.

mod barrier;
mod dropped;
mod step;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use barrier::Ahead;
pub use dropped::Dropped;
pub use step::RebuildStep;

use super::{
    Failure, FlushReason, LoadError, Manifest, Outcome, Processor, ProcessorFactory, TaskContext, Trap,
};
use crate::checkpoints::{EffectBatch, EffectKind, SavedState};
use crate::event::EventBatch;
use crate::limits::REBUILD_INSTANCES_MAX;

/// What something is called while a rebuild of this number fills it. No name of a plugin or a table has this sign.
pub fn shadow_name(name: &str, number: impl std::fmt::Display) -> String {
    format!("{name}~{number}")
}

/// Whether this is the name of what a rebuild fills, or has left behind.
pub fn is_shadow_name(name: &str) -> bool {
    name.contains('~')
}

/// A processor under the names of a rebuild. What would leave the store is left out and counted: the events were
/// handled before, and what came of them is where it belongs.
#[derive(Debug)]
pub struct Renamed {
    inner: Arc<dyn ProcessorFactory>,
    manifest: Manifest,
    dropped: Arc<Dropped>,
    /// Instances that live: those of all plugins come out of one pool, and nobody waits for these.
    living: Arc<AtomicUsize>,
}

impl Renamed {
    pub fn new(inner: Arc<dyn ProcessorFactory>, number: u64, dropped: Arc<Dropped>) -> Self {
        let mut manifest = inner.manifest().clone();
        manifest.name = shadow_name(&manifest.name, number);
        for table in &mut manifest.tables {
            table.name = shadow_name(&table.name, number);
        }
        // Whose changes can be followed is declared under the processor's own name.
        manifest.changes = Vec::new();
        Self { inner, manifest, dropped, living: Arc::default() }
    }
}

impl ProcessorFactory for Renamed {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn state_bytes_max(&self) -> usize {
        self.inner.state_bytes_max()
    }

    fn instantiate(&self, context: TaskContext) -> Result<Box<dyn Processor>, Trap> {
        let inner = self.inner.instantiate(context)?;
        let living = Arc::clone(&self.living);
        living.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Kept { inner, dropped: Arc::clone(&self.dropped), living }))
    }

    fn has_room(&self) -> bool {
        self.living.load(Ordering::Relaxed) < REBUILD_INSTANCES_MAX
    }

    fn rest(&self, idle: Duration) {
        self.inner.rest(idle);
    }

    fn is_loaded(&self) -> bool {
        self.inner.is_loaded()
    }
}

/// An instance of which nothing leaves the store.
struct Kept {
    inner: Box<dyn Processor>,
    dropped: Arc<Dropped>,
    living: Arc<AtomicUsize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.living.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Kept {
    fn keep(&self, effects: &mut EffectBatch) {
        effects.retain(|kind| match kind {
            EffectKind::Emit => {
                self.dropped.count_emitted();
                false
            }
            EffectKind::Append => {
                self.dropped.count_appended();
                false
            }
            _ => true,
        });
    }
}

impl Processor for Kept {
    fn load(&mut self, saved: Option<&SavedState>) -> Result<(), LoadError> {
        self.inner.load(saved)
    }

    fn handle(&mut self, batch: &EventBatch) -> Result<Outcome, Trap> {
        let mut outcome = self.inner.handle(batch)?;
        self.keep(&mut outcome.effects);
        Ok(outcome)
    }

    fn flush(&mut self, reason: FlushReason) -> Result<Result<EffectBatch, Failure>, Trap> {
        let mut flushed = self.inner.flush(reason)?;
        if let Ok(effects) = &mut flushed {
            self.keep(effects);
        }
        Ok(flushed)
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Trap> {
        RebuildStep::Filling.reached();
        self.inner.snapshot()
    }

    fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes()
    }
}
