//! Components looked at in this process, as a host looks at them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::build::say;
use super::project::Project;
use crate::cli::CliError;
use crate::cli::toolchain::{Say as _, tools_dir};
use crate::plugins::{Imports, PluginError, PluginRuntime as _, PluginSettings, RuntimeOptions, WasmRuntime};
use crate::processors::{Manifest, ProcessorFactory};

/// A plugin is tried in one instance after the other.
const INSTANCES: usize = 4;

#[derive(Debug)]
pub(super) struct Workbench {
    runtime: WasmRuntime,
    /// Compiled code that cannot be kept.
    _code: Option<TempDir>,
    /// Of the folder of compiled code that is kept, as long as it is in use.
    _lock: Option<File>,
}

impl Workbench {
    /// Keeps compiled code in the project, so that its commands compile a component once. One of them at a time.
    pub(super) fn of_project(project: &Project) -> Result<Self, CliError> {
        let code = project.dir.join("target/code");
        let lock = locked(&code)?;
        Ok(Self { runtime: runtime(code, false)?, _code: None, _lock: Some(lock) })
    }

    /// Keeps compiled code beside the tools, for the next look at the same component.
    pub(super) fn of_file() -> Result<Self, CliError> {
        // Where nothing can be kept, a component can be looked at all the same.
        Self::beside_others(&tools_dir().join("code")).or_else(|_| Self::keeping_nothing())
    }

    /// Many commands may be here at once. What some have left half written, and what is too much, is removed by one that
    /// comes while there is no other.
    fn beside_others(code: &Path) -> Result<Self, CliError> {
        let lock = opened(code)?;
        let alone = lock.try_lock().is_ok();
        if !alone {
            // Until who was alone has removed that.
            lock.lock_shared().map_err(|error| unusable(code, &error))?;
        }
        let runtime = runtime(code.to_owned(), !alone)?;
        if alone {
            lock.lock_shared().map_err(|error| unusable(code, &error))?;
        }
        Ok(Self { runtime, _code: None, _lock: Some(lock) })
    }

    fn keeping_nothing() -> Result<Self, CliError> {
        let code = tempfile::tempdir().map_err(|error| {
            CliError::failed(
                format!("there is no folder for compiled code: {error}"),
                "look at the space of the temporary folder",
            )
        })?;
        let runtime = runtime(code.path().join("code"), false)?;
        Ok(Self { runtime, _code: Some(code), _lock: None })
    }

    pub(super) fn examine(&self, component: &[u8]) -> Result<Manifest, PluginError> {
        self.runtime.examine(component).map(|(manifest, _)| manifest)
    }

    pub(super) fn imports(&self, component: &[u8]) -> Result<Imports, PluginError> {
        self.runtime.imports(component)
    }

    pub(super) fn load(
        &self,
        component: &[u8],
        settings: &PluginSettings,
    ) -> Result<Arc<dyn ProcessorFactory>, PluginError> {
        self.runtime.load(component, &|_| settings.clone())
    }
}

/// Waits until no other command uses a folder, which would take what is being written for what a crash has left. Some
/// file systems have no locks of folders: there, nobody waits.
fn locked(folder: &Path) -> Result<File, CliError> {
    let folder = opened(folder)?;
    if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
        say().say("waiting for another command in this project");
        let _ = folder.lock();
    }
    Ok(folder)
}

/// The folder, made if need be.
fn opened(folder: &Path) -> Result<File, CliError> {
    let opened = fs::create_dir_all(folder).and_then(|()| File::open(folder));
    opened.map_err(|error| unusable(folder, &error))
}

fn unusable(folder: &Path, error: &io::Error) -> CliError {
    CliError::failed(
        format!("{}: {error}", folder.display()),
        "look at the path, its permissions and the free space",
    )
}

/// The component is its user's own: it is compiled in this process.
fn runtime(code: PathBuf, cache_shared: bool) -> Result<WasmRuntime, CliError> {
    let options = RuntimeOptions {
        cache_dir: Some(code),
        cache_shared,
        instances_max: INSTANCES,
        ..RuntimeOptions::default()
    };
    WasmRuntime::new(options).map_err(|error| {
        CliError::failed(
            format!("components cannot be run here: {error}"),
            "look at the limits of this process's memory and at the space of the folder",
        )
    })
}
