//! Builds the plugins of this repository that are projects in another language than Rust.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use toolchain::{Language, ProjectBuild, ToolError, fingerprint, fingerprint_of, is_source, tools_dir};

use crate::paths;
use crate::run::say;

#[derive(Deserialize)]
struct Project {
    plugin: Plugin,
}

#[derive(Deserialize)]
struct Plugin {
    name: String,
    language: String,
    entry: String,
    #[serde(default)]
    grants: Vec<String>,
}

/// Builds what lies in `plugins/` with a `plugin.toml` into a folder; answers the components by name.
///
/// Builds of one source differ from each other, so a component whose sources are as they were is kept.
pub(crate) fn build(into: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut placed = BTreeMap::new();
    for dir in find()? {
        let (name, path) =
            build_one(&dir, into).with_context(|| format!("{} cannot be built", dir.display()))?;
        placed.insert(name, path);
    }
    Ok(placed)
}

fn find() -> Result<Vec<PathBuf>> {
    let plugins = paths::workspace().join("plugins");
    let mut found = Vec::new();
    for entry in fs::read_dir(&plugins).with_context(|| format!("{} cannot be read", plugins.display()))? {
        let dir = entry?.path();
        if dir.join("plugin.toml").is_file() {
            found.push(dir);
        }
    }
    found.sort();
    Ok(found)
}

fn build_one(dir: &Path, into: &Path) -> Result<(String, PathBuf)> {
    let Project { plugin } = toml::from_str(&fs::read_to_string(dir.join("plugin.toml"))?)?;
    let language: Language = plugin.language.parse().map_err(anyhow::Error::msg)?;
    ensure!(language != Language::Rust, "Rust plugins here are crates of the workspace");
    let workspace = paths::workspace();
    let sdk = workspace.join("guest-sdk").join(language.name());
    let wit = workspace.join("wit/v0.1");
    // Its copy of the SDK is not there before the first build, and is known by what it is a copy of.
    let is_part = |path: &Path| is_source(path) && !path.starts_with("millrace");
    let sources = || {
        let own = fingerprint_of(&[("plugin", dir)], &[], &is_part)?;
        let others = fingerprint_of(&[("sdk", sdk.as_path()), ("wit", wit.as_path())], &[], &|_| true)?;
        let asked = [plugin.entry.as_str(), &plugin.grants.join(",")].join("\n");
        Ok::<_, ToolError>(fingerprint(&[own.as_bytes(), others.as_bytes(), asked.as_bytes()]))
    };
    let path = into.join(format!("{}.wasm", plugin.name));
    let note = path.with_extension("sources");
    if path.exists() && fs::read_to_string(&note).is_ok_and(|built| Some(built) == sources().ok()) {
        return Ok((plugin.name, path));
    }
    let build = ProjectBuild {
        project: dir,
        name: &plugin.name,
        entry: &plugin.entry,
        sdk: &sdk,
        wit: &wit,
        tools: &tools_dir(),
        grants: &plugin.grants,
    };
    fs::create_dir_all(into)?;
    toolchain::build(language, &build, &path, &mut |line: &str| say(line))?;
    // Of the sources as they are now: the build brings the plugin's copy of the SDK up to date.
    fs::write(&note, sources()?)?;
    Ok((plugin.name, path))
}
