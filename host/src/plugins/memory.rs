//! Counts the linear memory of an instance while the store's limits bound it.

use wasmtime::{ResourceLimiter, StoreLimits};

/// The limits of one store, and what its memories hold.
pub(super) struct CountedLimits {
    limits: StoreLimits,
    memory_bytes: usize,
    memory_bytes_max: usize,
    /// What a memory was to grow to when that was too much.
    asked: Option<usize>,
}

impl CountedLimits {
    pub(super) fn new(limits: StoreLimits, memory_bytes_max: usize) -> Self {
        Self { limits, memory_bytes: 0, memory_bytes_max, asked: None }
    }

    /// Bytes of all linear memories of the store.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The bound, and how much was asked for when it was too much.
    pub(super) fn exceeded(&self) -> Option<(usize, usize)> {
        self.asked.map(|asked| (self.memory_bytes_max, asked))
    }
}

impl ResourceLimiter for CountedLimits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.memory_bytes_max {
            self.asked = Some(desired);
        }
        let allowed = self.limits.memory_growing(current, desired, maximum)?;
        if allowed {
            self.memory_bytes += desired.saturating_sub(current);
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}
