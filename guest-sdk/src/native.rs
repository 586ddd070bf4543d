//! A processor as native code, called as its component would be: for tests,
//! and to compare the two. What a plugin imports goes to a [`Host`] of yours.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use crate::log::Level;
use crate::wire::{Effects, Failure, Outcome};
use crate::{Context, FlushReason, Instance, Processor, Saved, StatePage, StateValue};

/// What the host offers a plugin. The default has no state and no settings, and keeps no messages.
pub trait Host: Debug + Send + Sync {
    /// What stands under a key, committed or handed back, also when it has expired.
    fn state_get(&self, key: &[u8]) -> Option<StateValue> {
        let _ = key;
        None
    }

    /// Entries whose key begins with `prefix`, after the key `after`, in the order of their bytes, expired
    /// ones included.
    fn state_scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> StatePage {
        let _ = (prefix, after, limit);
        StatePage::default()
    }

    /// A setting's value.
    fn config_get(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }

    /// Takes a message.
    fn log(&self, level: Level, message: &str) {
        let _ = (level, message);
    }
}

/// Offers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {}

thread_local! {
    /// Who answers on this thread while an instance is called.
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

pub(crate) fn with_host<R>(ask: impl FnOnce(&dyn Host) -> R) -> R {
    let host = HOST.with_borrow(Clone::clone);
    match host {
        Some(host) => ask(&*host),
        None => ask(&NoHost),
    }
}

/// Puts a host in charge of this thread, and the former one back when it is dropped.
struct Entered(Option<Arc<dyn Host>>);

impl Entered {
    fn new(host: &Arc<dyn Host>) -> Self {
        Self(HOST.replace(Some(Arc::clone(host))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        HOST.set(self.0.take());
    }
}

/// An instance of a processor and its host. Takes and gives what crosses the component's border.
#[derive(Debug)]
pub struct NativeInstance<P> {
    instance: Instance<P>,
    host: Arc<dyn Host>,
}

impl<P: Processor> NativeInstance<P> {
    /// Loads the processor. The error is what it refused with.
    pub fn load(host: Arc<dyn Host>, context: Context, saved: Option<Saved>) -> Result<Self, String> {
        let entered = Entered::new(&host);
        let instance = Instance::load(context, saved)?;
        drop(entered);
        Ok(Self { instance, host })
    }

    /// Handles events in order until one fails; what that one asked for is dropped.
    pub fn handle(&mut self, arena: &[u8], events: &[u8]) -> Outcome {
        let _entered = Entered::new(&self.host);
        self.instance.handle(arena, events)
    }

    /// Time-driven work.
    pub fn flush(&mut self, reason: FlushReason) -> Result<Effects, Failure> {
        let _entered = Entered::new(&self.host);
        self.instance.flush(reason)
    }

    /// The state to restart from.
    pub fn snapshot(&self) -> Vec<u8> {
        let _entered = Entered::new(&self.host);
        self.instance.snapshot()
    }

    /// The processor itself.
    pub fn processor(&self) -> &P {
        self.instance.processor()
    }
}
