//! A place holder until the way to build python is here.

use std::path::Path;

use super::{ProjectBuild, Say, ToolError};

/// Builds the project's component to `out`.
pub fn build_python(_project: &ProjectBuild<'_>, _out: &Path, _say: &mut dyn Say) -> Result<(), ToolError> {
    Err(ToolError::NoWay { why: "this build has no tools for it".into() })
}
