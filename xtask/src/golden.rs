//! `cargo xtask golden VERSION`: keeps the components of a world that is frozen, as they were built for it. Every later
//! host must run them; what builds them may be another one by then, so they are never built again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{say, works};
use crate::{guests, paths};

/// The kit's guests, and plugins as people write them.
const COMPONENTS: [&str; 7] =
    ["kit", "kit-js", "kit-python", "flight_board", "carrier_stats", "delay_watch", "debounce"];
/// The kit's guest without an SDK.
const TEXT: &str = "tests/kit/guests/kit.wat";
/// A digest and a name a line, of the files before they were compressed.
const DIGESTS: &str = "DIGESTS";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [version] = arguments else { bail!("which world? `cargo xtask golden v0.1`") };
    let dir = paths::workspace().join("tests/golden").join(version);
    ensure!(
        !dir.exists(),
        "{} is there: what a world's hosts must run does not change any more",
        dir.display()
    );
    for program in ["gzip", "sha256sum"] {
        ensure!(works(program, &["--version"]), "there is no {program}");
    }
    guests::build_all()?;
    let half = dir.with_extension("half");
    fs::create_dir_all(&half).with_context(|| format!("{} cannot be made", half.display()))?;
    let mut files: Vec<_> = COMPONENTS.iter().map(|name| component(name)).collect::<Result<_>>()?;
    files.push(paths::workspace().join(TEXT));
    let mut digests = String::new();
    for file in &files {
        let name = file.file_name().context("a file has a name")?.to_string_lossy();
        let packed = output("gzip", &["-9", "-n", "-c"], file)?;
        fs::write(half.join(format!("{name}.gz")), packed)?;
        let line = String::from_utf8(output("sha256sum", &[], file)?)?;
        let digest = line.split_whitespace().next().context("sha256sum answers a digest")?;
        digests.push_str(&format!("{digest}  {name}\n"));
    }
    fs::write(half.join(DIGESTS), digests)?;
    fs::rename(&half, &dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    say(&format!("{} files in {}", files.len(), dir.display()));
    Ok(())
}

/// A built component: packages are named with hyphens, examples with underscores.
fn component(name: &str) -> Result<std::path::PathBuf> {
    let names = [name.to_owned(), name.replace('_', "-")];
    let mut paths = names.iter().map(|name| paths::guests().join(format!("{name}.wasm")));
    paths.find(|path| path.exists()).with_context(|| format!("{name} is not built"))
}

fn output(program: &str, arguments: &[&str], file: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    let output = command.args(arguments).arg(file).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("{program} does not start"))?;
    ensure!(output.status.success(), "{program} failed: {}", output.status);
    Ok(output.stdout)
}
