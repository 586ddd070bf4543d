//! `cargo xtask golden VERSION`: keeps the components of a world that is frozen, as they were built for it, and what they
//! must do. Every later host must run them; what builds them may be another one by then, so they are never built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{say, works};
use crate::{guests, paths};

/// The kit's guests, and plugins as people write them.
const COMPONENTS: [&str; 8] = [
    "kit",
    "kit-js",
    "kit-python",
    "flight-board",
    "carrier-stats",
    "delay-watch",
    "debounce",
    "turn-tracer",
];
/// The kit's guest without an SDK, and the component that it is the text of.
const TEXT: (&str, &str) = ("tests/kit/guests/kit.wat", "kit-wat.wasm");
/// Folders that say what a component must do, and their names beside it.
const EXPECTED: [(&str, &str); 2] =
    [("tests/kit/vectors", "vectors"), ("plugins/turn-tracer/tests/cases", "turn-tracer")];
/// A digest and a name a line, of the files before they were compressed.
const DIGESTS: &str = "DIGESTS";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [version] = arguments else { bail!("which world? `cargo xtask golden v0.1`") };
    let workspace = paths::workspace();
    let dir = workspace.join("tests/golden").join(version);
    ensure!(
        !dir.exists(),
        "{} is there: what a world's hosts must run does not change any more",
        dir.display()
    );
    ensure!(workspace.join("wit").join(version).is_dir(), "there is no world wit/{version}");
    for program in ["gzip", "sha256sum"] {
        ensure!(works(program, &["--version"]), "there is no {program}");
    }
    guests::build_all()?;
    let half = dir.with_file_name(format!("{version}.half"));
    if half.exists() {
        fs::remove_dir_all(&half).with_context(|| format!("{} cannot be removed", half.display()))?;
    }
    fs::create_dir_all(&half).with_context(|| format!("{} cannot be made", half.display()))?;
    let mut digests = String::new();
    let mut keep = |file: &Path, name: &str, is_packed: bool| -> Result<()> {
        let to = half.join(name);
        if let Some(above) = to.parent() {
            fs::create_dir_all(above)?;
        }
        if is_packed {
            fs::write(half.join(format!("{name}.gz")), output("gzip", &["-9", "-n", "-c"], file)?)?;
        } else {
            fs::copy(file, &to)?;
        }
        digests.push_str(&format!("{}  {name}\n", digest(file)?));
        Ok(())
    };
    for name in COMPONENTS {
        let name = format!("{name}.wasm");
        let file = paths::guests().join(&name);
        ensure!(file.exists(), "{} is not built", file.display());
        keep(&file, &name, true).with_context(|| format!("{name} cannot be kept"))?;
    }
    let (text, name) = TEXT;
    let component = half.join(name);
    fs::write(&component, wat::parse_file(workspace.join(text))?)?;
    keep(&component, name, true).with_context(|| format!("{name} cannot be kept"))?;
    fs::remove_file(&component)?;
    for (folder, beside) in EXPECTED {
        for file in files(&workspace.join(folder))? {
            let name = file.file_name().context("a file has a name")?.to_string_lossy();
            keep(&file, &format!("{beside}/{name}"), false)
                .with_context(|| format!("{} cannot be kept", file.display()))?;
        }
    }
    let kept = digests.lines().count();
    fs::write(half.join(DIGESTS), digests)?;
    fs::rename(&half, &dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    say(&format!("{kept} files in {}", dir.display()));
    Ok(())
}

/// A folder's files, by name; it has no folders.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.sort();
    ensure!(!found.is_empty(), "{} is empty", folder.display());
    Ok(found)
}

fn digest(file: &Path) -> Result<String> {
    let line = String::from_utf8(output("sha256sum", &[], file)?)?;
    Ok(line.split_whitespace().next().context("sha256sum answers a digest")?.to_owned())
}

fn output(program: &str, arguments: &[&str], file: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    let output = command.args(arguments).arg(file).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("{program} does not start"))?;
    ensure!(output.status.success(), "{program} failed: {}", output.status);
    Ok(output.stdout)
}
