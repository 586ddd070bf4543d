//! Finds the workspace's guests and builds them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use toolchain::{Guest, GuestBuild, GuestKind};

use crate::paths;
use crate::run::{cargo, say};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    crate_types: Vec<String>,
}

/// Builds every guest into `target/guests` and answers the components by name.
pub(crate) fn build() -> Result<BTreeMap<String, PathBuf>> {
    let guests = find()?;
    ensure!(!guests.is_empty(), "there is no crate with crate-type \"cdylib\" under plugins/");
    ensure_linker()?;
    let build =
        GuestBuild { workspace: paths::workspace(), build_dir: paths::guest_builds(), guests, locked: true };
    let components = build.run(&mut |text: &str| say(text)).context("the guests cannot be built")?;
    let dir = paths::guests();
    fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let mut placed = BTreeMap::new();
    for component in components {
        let guest = &component.guest;
        let name = if guest.kind == GuestKind::Library { &guest.package } else { &guest.target };
        let path = dir.join(format!("{name}.wasm"));
        place(&component.path, &path)?;
        placed.insert(name.clone(), path);
    }
    crate::code::sweep(&dir.join("code"))?;
    say(&format!("{} guests in {}", placed.len(), dir.display()));
    Ok(placed)
}

/// The same with the plugins in other languages, whose tools bring a network and minutes the first time.
pub(crate) fn build_all() -> Result<()> {
    let rust = build()?;
    let others = build_others()?;
    if let Some(name) = others.keys().find(|name| rust.contains_key(*name)) {
        bail!("two plugins are named {name}");
    }
    Ok(())
}

/// Those in other languages alone. Node and Python must be there.
pub(crate) fn build_others() -> Result<BTreeMap<String, PathBuf>> {
    let others = crate::projects::build(&paths::guests())?;
    say(&format!("{} plugins in other languages beside them", others.len()));
    Ok(others)
}

/// Build scripts and procedural macros are linked for this machine, also on the way to a guest.
pub(crate) fn ensure_linker() -> Result<()> {
    ensure!(
        crate::run::works("cc", &["--version"]),
        "there is no C compiler (cc), which Rust links with; install one, on Debian as root: apt-get install --yes gcc libc6-dev"
    );
    Ok(())
}

/// Copies in one step: who watches the folder never sees half a file.
pub(crate) fn place(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("{} cannot be read", from.display()))?;
    // The same bytes keep their time, so that nobody takes them for a new version.
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let half = to.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&half, bytes)
        .and_then(|()| fs::rename(&half, to))
        .with_context(|| format!("{} cannot be written", to.display()))
}

/// Every `cdylib` of the packages under `plugins/`.
fn find() -> Result<Vec<Guest>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .stderr(Stdio::inherit())
        .output()
        .context("`cargo metadata` does not start")?;
    ensure!(output.status.success(), "`cargo metadata` failed: {}", output.status);
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` answered something else")?;
    let plugins = paths::workspace().join("plugins");
    let mut guests = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.manifest_path.starts_with(&plugins)) {
        for target in
            package.targets.iter().filter(|target| target.crate_types.iter().any(|kind| kind == "cdylib"))
        {
            let kind = match target.kind.first().map(String::as_str) {
                Some("example") => GuestKind::Example,
                Some("bin") => GuestKind::Binary,
                _ => GuestKind::Library,
            };
            guests.push(Guest { package: package.name.clone(), target: target.name.clone(), kind });
        }
    }
    Ok(guests)
}
