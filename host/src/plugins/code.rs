//! A plugin's native code: loaded for its instances, given back while it has none, and loaded again.
//!
//! Promises: code comes from the precompiled cache, checked as at a start, or is compiled from the artifact;
//! whoever asks while it is being loaded waits for that one load; what cannot be loaded again without compiling
//! is not given back. Deliberately absent: when a plugin is idle; that is its runner's decision.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::cache::Cache;
use super::compiler::Compiler;
use super::instance::Linked;
use super::sandbox::Guest;
use super::{ArtifactStore, PluginError, parts, trim};
use crate::error::Classify as _;
use crate::limits::CODE_LOAD_WAIT_MIN;
use crate::processors::call_is_long;
use crate::telemetry::metrics::{CODE_GIVEN_BACK, CODE_LOAD_SECONDS, CODE_LOADS};

/// Where native code comes from.
pub(super) struct Loader {
    pub(super) engine: Engine,
    pub(super) linker: Linker<Guest>,
    pub(super) cache: Option<Cache>,
    pub(super) compiler: Compiler,
    pub(super) artifacts: Option<Arc<dyn ArtifactStore>>,
}

impl Loader {
    /// The code for these bytes: from the cache, or compiled and kept there.
    pub(super) fn compile(&self, bytes: &[u8], digest: &str) -> Result<Component, PluginError> {
        if let Some(component) = self.cached(digest) {
            return Ok(component);
        }
        let code = self.compiler.compile(&self.engine, bytes)?;
        // Before it is kept: the engine may refuse what it is made of.
        let component = code.load(&self.engine).map_err(|error| parts::refusal(&error))?;
        match self.cache.as_ref().map(|cache| cache.put(digest, &code)) {
            // From its file it takes no memory of its own.
            Some(Ok(())) => {
                if let Some(component) = self.cached(digest) {
                    return Ok(component);
                }
            }
            // A full disk costs the next start some time; it is no reason not to run now.
            Some(Err(error)) => {
                tracing::warn!(error.kind = error.code(), error.blame = error.blame().as_str(), %error, "a precompiled component could not be kept");
            }
            None => {}
        }
        Ok(component)
    }

    pub(super) fn link(&self, component: &Component) -> Result<Linked, PluginError> {
        let wrong_world = |error: &wasmtime::Error| PluginError::WrongWorld { detail: format!("{error:#}") };
        let linked = self.linker.instantiate_pre(component).map_err(|error| wrong_world(&error))?;
        Linked::new(linked).map_err(|error| wrong_world(&error))
    }

    fn cached(&self, digest: &str) -> Option<Component> {
        self.cache.as_ref()?.load(&self.engine, digest)
    }

    /// Whether code that is given back could be had again without compiling, and without losing it for good.
    fn could_load_again(&self, digest: &str) -> bool {
        self.artifacts.is_some() && self.cache.as_ref().is_some_and(|cache| cache.has(digest))
    }

    /// Loads what was given back, and counts it.
    fn load_again(&self, digest: &str) -> Result<Linked, PluginError> {
        let began = Instant::now();
        let (loaded, from) = match self.cached(digest) {
            Some(component) => (self.link(&component), "cache"),
            None => (self.compile_again(digest), "artifact"),
        };
        let from = if loaded.is_ok() { from } else { "failed" };
        metrics::counter!(CODE_LOADS, "from" => from).increment(1);
        metrics::histogram!(CODE_LOAD_SECONDS).record(began.elapsed().as_secs_f64());
        loaded
    }

    /// The artifact store has checked the bytes against their digest.
    fn compile_again(&self, digest: &str) -> Result<Linked, PluginError> {
        let missing = || PluginError::ArtifactMissing { digest: digest.to_owned() };
        let artifacts = self.artifacts.as_ref().ok_or_else(missing)?;
        // It may take seconds on a guest thread: another one takes its place.
        call_is_long();
        let bytes = artifacts.get(digest)?;
        self.link(&self.compile(&bytes, digest)?)
    }
}

/// One component's code.
pub(super) struct Code {
    loader: Arc<Loader>,
    digest: String,
    /// Held while it is being loaded: who asks meanwhile waits, and finds it.
    slot: Mutex<Slot>,
    /// As the slot says, for those who must not wait.
    loaded: AtomicBool,
}

struct Slot {
    /// Living instances hold it, too.
    linked: Option<Arc<Linked>>,
    /// When it was asked for last.
    used: Instant,
    /// Why it could not be loaded, and when.
    failed: Option<(PluginError, Instant)>,
}

impl Code {
    pub(super) fn new(loader: Arc<Loader>, digest: String, linked: Arc<Linked>) -> Self {
        let slot = Slot { linked: Some(linked), used: Instant::now(), failed: None };
        Self { loader, digest, slot: Mutex::new(slot), loaded: AtomicBool::new(true) }
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// The code, loaded where it was given back. It stays as long as somebody holds it. After a failure, the
    /// next try is [`CODE_LOAD_WAIT_MIN`] later, however many ask: each may be a file to read and to compile.
    pub(super) fn get(&self) -> Result<Arc<Linked>, PluginError> {
        let mut slot = self.slot.lock().unwrap_or_else(|broken| {
            // Loading panicked, which is a bug; what is in the slot is whole.
            self.slot.clear_poison();
            broken.into_inner()
        });
        slot.used = Instant::now();
        if let Some(linked) = &slot.linked {
            return Ok(Arc::clone(linked));
        }
        if let Some((error, at)) = &slot.failed
            && at.elapsed() < CODE_LOAD_WAIT_MIN
        {
            return Err(error.clone());
        }
        match self.loader.load_again(&self.digest) {
            Ok(linked) => {
                let linked = slot.linked.insert(Arc::new(linked));
                let linked = Arc::clone(linked);
                slot.failed = None;
                self.loaded.store(true, Ordering::Relaxed);
                Ok(linked)
            }
            Err(error) => {
                tracing::warn!(error.kind = error.code(), error.blame = error.blame().as_str(), digest = self.digest, %error, "the code of an idle plugin cannot be loaded again");
                slot.failed = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }

    /// Gives the code back when no instance of it lives and none was asked for in this time. Never waits: while
    /// somebody asks for it, it is not idle.
    pub(super) fn rest(&self, idle: Duration) {
        let mut slot = match self.slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return,
        };
        // Others are made only from the one in the slot, under its lock.
        let unused = slot.linked.as_ref().is_some_and(|linked| Arc::strong_count(linked) == 1);
        if !unused || slot.used.elapsed() < idle || !self.loader.could_load_again(&self.digest) {
            return;
        }
        let given_back = slot.linked.take();
        self.loaded.store(false, Ordering::Relaxed);
        drop(slot);
        drop(given_back);
        metrics::counter!(CODE_GIVEN_BACK).increment(1);
        trim::given_back();
    }
}
