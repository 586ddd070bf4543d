//! Running programs and telling people.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::paths;

/// What the cargo that runs this program says of its package.
const OF_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// Where tests and what they start look for built guests.
const GUESTS_DIR: &str = "MILLRACE_GUESTS_DIR";

/// A cargo that builds into the warm folder and never asks. It knows nothing of the one that runs this program: some build
/// scripts look at these words, and whoever calls cargo by hand would have their packages compiled anew each time.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        if OF_PACKAGE.iter().any(|of| name.to_string_lossy().starts_with(of)) {
            command.env_remove(name);
        }
    }
    command.current_dir(paths::workspace()).env("CARGO_TARGET_DIR", paths::target()).stdin(Stdio::null());
    // What it runs may have been built in another clone that shares the build folder.
    if std::env::var_os(GUESTS_DIR).is_none() {
        command.env(GUESTS_DIR, paths::guests());
    }
    command
}

/// Runs a program to its end.
pub(crate) fn finish(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.status().with_context(|| format!("`{line}` does not start"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Whether a program runs and ends well; its output is nobody's business.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(paths::workspace());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What goes on, on standard error.
pub(crate) fn say(text: &str) {
    eprintln!("xtask: {text}");
}

/// What was asked for, on standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output cannot be written")
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}
