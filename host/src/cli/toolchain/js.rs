//! JavaScript: a project's modules and an engine become one component, by componentize-js on Node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{NODE, ProjectBuild, Say, ToolError, captured, fingerprint, installed_once, place};

/// How long npm may take: some 190 MB come over the network the first time.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long a build may take: seconds on a machine that has nothing else to do.
const BUILD_WAIT_MAX: Duration = Duration::from_secs(300);
/// What the tools are: the list and its exact versions.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];
/// What calls them, and finds them beside itself.
const SCRIPT: &str = "build.mjs";

/// Builds the project's component to `out`.
///
/// Two builds of the same sources differ: an engine's memory with the evaluated modules in it is part of a component.
/// Without a grant the component imports nothing of WASI.
pub fn build_js(project: &ProjectBuild<'_>, out: &Path, say: &mut dyn Say) -> Result<(), ToolError> {
    NODE.check()?;
    let tools = tools(project, say)?;
    say.say(&format!("building {} with componentize-js", project.name));
    let mut node = Command::new("node");
    node.arg(script(project, &tools)?);
    node.arg("--project").arg(project.project).arg("--entry").arg(project.entry);
    node.arg("--wit").arg(project.wit).arg("--out").arg(out);
    node.arg("--grants").arg(project.grants.join(","));
    captured("node build.mjs", &mut node, BUILD_WAIT_MAX)?;
    if out.is_file() { Ok(()) } else { Err(ToolError::ComponentMissing { path: out.into() }) }
}

/// The script beside the tools, under a name of its contents: another version of it needs no other tools.
fn script(project: &ProjectBuild<'_>, tools: &Path) -> Result<PathBuf, ToolError> {
    let own = project.sdk.join(SCRIPT);
    let bytes = fs::read(&own).map_err(ToolError::file(&own))?;
    let script = tools.join(format!("build-{}.mjs", fingerprint(&[&bytes])));
    if !script.exists() {
        place(&bytes, &script)?;
    }
    Ok(script)
}

/// The folder of the tools, which are installed there once for each list of them.
fn tools(project: &ProjectBuild<'_>, say: &mut dyn Say) -> Result<PathBuf, ToolError> {
    let mut files = Vec::new();
    for name in FILES {
        let path = project.sdk.join(name);
        files.push(fs::read(&path).map_err(ToolError::file(&path))?);
    }
    let parts: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let dir = project.tools.join(format!("js-{}", fingerprint(&parts)));
    installed_once(&dir, say, &mut |dir, say| {
        for (name, bytes) in FILES.iter().zip(&files) {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(ToolError::file(&path))?;
        }
        say.say(&format!("installing what builds JavaScript in {}: npm ci, about 190 MB", dir.display()));
        let mut npm = Command::new("npm");
        // A package's own scripts are never run.
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
        npm.current_dir(dir);
        captured("npm ci", &mut npm, INSTALL_WAIT_MAX).map(drop).map_err(|cause| ToolError::Install {
            what: "componentize-js, which builds JavaScript plugins,".into(),
            from: "the registry that npm asks".into(),
            cause: Box::new(cause),
        })
    })?;
    Ok(dir)
}
