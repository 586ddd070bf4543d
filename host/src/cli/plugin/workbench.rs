//! Components looked at in this process, as a host looks at them.

use std::sync::Arc;

use tempfile::TempDir;

use super::project::Project;
use crate::cli::CliError;
use crate::plugins::{Imports, PluginError, PluginRuntime as _, PluginSettings, RuntimeOptions, WasmRuntime};
use crate::processors::{Manifest, ProcessorFactory};

/// A plugin is tried in one instance after the other.
const INSTANCES: usize = 4;

#[derive(Debug)]
pub(super) struct Workbench {
    runtime: WasmRuntime,
    /// The compiled code of a component that belongs to no project.
    _code: Option<TempDir>,
}

impl Workbench {
    /// Keeps compiled code in the project, so that its commands compile a component once.
    pub(super) fn of_project(project: &Project) -> Result<Self, CliError> {
        let runtime = runtime(project.dir.join("target/code"))?;
        Ok(Self { runtime, _code: None })
    }

    pub(super) fn of_file() -> Result<Self, CliError> {
        let code = tempfile::tempdir().map_err(|error| {
            CliError::failed(
                format!("there is no folder for compiled code: {error}"),
                "look at the space of the temporary folder",
            )
        })?;
        let runtime = runtime(code.path().join("code"))?;
        Ok(Self { runtime, _code: Some(code) })
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
