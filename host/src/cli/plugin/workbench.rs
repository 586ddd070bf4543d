//! Components looked at in this process, as a host looks at them.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::build::say;
use super::project::Project;
use crate::cli::CliError;
use crate::cli::toolchain::Say as _;
use crate::plugins::{Imports, PluginError, PluginRuntime as _, PluginSettings, RuntimeOptions, WasmRuntime};
use crate::processors::{Manifest, ProcessorFactory};

/// A plugin is tried in one instance after the other.
const INSTANCES: usize = 4;

#[derive(Debug)]
pub(super) struct Workbench {
    runtime: WasmRuntime,
    /// The compiled code of a component that belongs to no project.
    _code: Option<TempDir>,
    /// Of a project's folder of compiled code, as long as it is in use.
    _lock: Option<File>,
}

impl Workbench {
    /// Keeps compiled code in the project, so that its commands compile a component once. One of them at a time.
    pub(super) fn of_project(project: &Project) -> Result<Self, CliError> {
        let code = project.dir.join("target/code");
        let lock = locked(&code)?;
        Ok(Self { runtime: runtime(code)?, _code: None, _lock: Some(lock) })
    }

    pub(super) fn of_file() -> Result<Self, CliError> {
        let code = tempfile::tempdir().map_err(|error| {
            CliError::failed(
                format!("there is no folder for compiled code: {error}"),
                "look at the space of the temporary folder",
            )
        })?;
        let runtime = runtime(code.path().join("code"))?;
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
    let opened = fs::create_dir_all(folder).and_then(|()| File::open(folder));
    let folder = opened.map_err(|error| {
        CliError::failed(
            format!("{}: {error}", folder.display()),
            "look at the path, its permissions and the free space",
        )
    })?;
    if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
        say().say("waiting for another command in this project");
        let _ = folder.lock();
    }
    Ok(folder)
}

/// The component is its user's own: it is compiled in this process.
fn runtime(code: std::path::PathBuf) -> Result<WasmRuntime, CliError> {
    let options =
        RuntimeOptions { cache_dir: Some(code), instances_max: INSTANCES, ..RuntimeOptions::default() };
    WasmRuntime::new(options).map_err(|error| {
        CliError::failed(
            format!("components cannot be run here: {error}"),
            "look at the limits of this process's memory and at the space of the folder",
        )
    })
}
