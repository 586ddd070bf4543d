//! What this executable has of the SDKs: their own files, what new projects begin with, and the world.
//!
//! A test walks `guest-sdk/` and `wit/` and fails when a file is missing here or is no longer there, and says the line
//! to add or to remove. Tests of the SDKs themselves are left out.

use std::path::{Path, PathBuf};

use crate::cli::toolchain::{
    BEGINNING, BEGINNING_NAME, Language, Say, ToolError, fingerprint, installed_once, place,
};

/// A file of the repository, by its path there.
struct Embedded {
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! embedded {
    ($($path:literal,)*) => {
        &[$(Embedded { path: $path, bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../", $path)) },)*]
    };
}

/// In the order of their paths.
static FILES: &[Embedded] = embedded![
    "guest-sdk/Cargo.toml",
    "guest-sdk/js/build.mjs",
    "guest-sdk/js/millrace/cells.mjs",
    "guest-sdk/js/millrace/channel.mjs",
    "guest-sdk/js/millrace/effects.mjs",
    "guest-sdk/js/millrace/entry.mjs",
    "guest-sdk/js/millrace/event.mjs",
    "guest-sdk/js/millrace/failure.mjs",
    "guest-sdk/js/millrace/globals.mjs",
    "guest-sdk/js/millrace/host.mjs",
    "guest-sdk/js/millrace/index.d.mts",
    "guest-sdk/js/millrace/index.mjs",
    "guest-sdk/js/millrace/json.mjs",
    "guest-sdk/js/millrace/limits.mjs",
    "guest-sdk/js/millrace/manifest.mjs",
    "guest-sdk/js/millrace/processor.mjs",
    "guest-sdk/js/millrace/state.mjs",
    "guest-sdk/js/millrace/testing/driver.mjs",
    "guest-sdk/js/millrace/testing/events.mjs",
    "guest-sdk/js/millrace/testing/host.mjs",
    "guest-sdk/js/millrace/testing/rows.mjs",
    "guest-sdk/js/millrace/time.mjs",
    "guest-sdk/js/millrace/writer.mjs",
    "guest-sdk/js/package-lock.json",
    "guest-sdk/js/package.json",
    "guest-sdk/js/template/.gitignore",
    "guest-sdk/js/template/jsconfig.json",
    "guest-sdk/js/template/package.json",
    "guest-sdk/js/template/src/plugin.mjs",
    "guest-sdk/js/template/tests/events.ndjson",
    "guest-sdk/js/template/tests/expected.json",
    "guest-sdk/js/template/tests/plugin.test.mjs",
    "guest-sdk/python/millrace/__init__.py",
    "guest-sdk/python/millrace/ambient.py",
    "guest-sdk/python/millrace/cells.py",
    "guest-sdk/python/millrace/channel.py",
    "guest-sdk/python/millrace/component.py",
    "guest-sdk/python/millrace/config.py",
    "guest-sdk/python/millrace/effects.py",
    "guest-sdk/python/millrace/event.py",
    "guest-sdk/python/millrace/failure.py",
    "guest-sdk/python/millrace/instance.py",
    "guest-sdk/python/millrace/limits.py",
    "guest-sdk/python/millrace/log.py",
    "guest-sdk/python/millrace/manifest.py",
    "guest-sdk/python/millrace/plain.py",
    "guest-sdk/python/millrace/processor.py",
    "guest-sdk/python/millrace/state.py",
    "guest-sdk/python/millrace/testing/__init__.py",
    "guest-sdk/python/millrace/testing/driver.py",
    "guest-sdk/python/millrace/testing/events.py",
    "guest-sdk/python/millrace/testing/rows.py",
    "guest-sdk/python/millrace/times.py",
    "guest-sdk/python/millrace/world.py",
    "guest-sdk/python/requirements.txt",
    "guest-sdk/python/template/.gitignore",
    "guest-sdk/python/template/app.py",
    "guest-sdk/python/template/pyproject.toml",
    "guest-sdk/python/template/tests/events.ndjson",
    "guest-sdk/python/template/tests/expected.json",
    "guest-sdk/python/template/tests/test_app.py",
    "guest-sdk/src/batch.rs",
    "guest-sdk/src/bindings.rs",
    "guest-sdk/src/channel.rs",
    "guest-sdk/src/config.rs",
    "guest-sdk/src/effects.rs",
    "guest-sdk/src/event.rs",
    "guest-sdk/src/failure.rs",
    "guest-sdk/src/imports.rs",
    "guest-sdk/src/lib.rs",
    "guest-sdk/src/limits.rs",
    "guest-sdk/src/log.rs",
    "guest-sdk/src/manifest.rs",
    "guest-sdk/src/native.rs",
    "guest-sdk/src/record.rs",
    "guest-sdk/src/row/cell.rs",
    "guest-sdk/src/row/mod.rs",
    "guest-sdk/src/row/tests.rs",
    "guest-sdk/src/saved.rs",
    "guest-sdk/src/state.rs",
    "guest-sdk/src/table.rs",
    "guest-sdk/src/testing/driver.rs",
    "guest-sdk/src/testing/event.rs",
    "guest-sdk/src/testing/mod.rs",
    "guest-sdk/src/testing/rows.rs",
    "guest-sdk/src/time.rs",
    "guest-sdk/template/.gitignore",
    "guest-sdk/template/Cargo.toml",
    "guest-sdk/template/src/lib.rs",
    "guest-sdk/template/tests/events.ndjson",
    "guest-sdk/template/tests/expected.json",
    "wit/v0.1/handler.wit",
    "wit/v0.1/host.wit",
    "wit/v0.1/types.wit",
    "wit/v0.1/world.wit",
];

/// The world that plugins are built for, among the files above.
const WORLD: &str = "wit/v0.1";

/// Rust's packages with their versions: a new project begins with those that are tested here.
static WORKSPACE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
static LOCK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));

/// The SDK of a language, unpacked.
#[derive(Clone, Debug)]
pub(super) struct Sdk {
    pub(super) sdk: PathBuf,
    pub(super) wit: PathBuf,
}

/// The paths of all files that are in this executable, from the repository's folder.
pub fn embedded_paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.path)
}

/// Unpacks the SDK of a language below the tools' folder, once for each of its contents.
pub(super) fn unpack(language: Language, tools: &Path, say: &mut dyn Say) -> Result<Sdk, ToolError> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for file in FILES {
        if let Some(inside) = place_of(language, file.path) {
            files.push((inside, file.bytes.to_vec()));
        }
    }
    if language == Language::Rust {
        let manifest = sdk_manifest().map_err(|why| ToolError::Sdk { why })?;
        files.push(("millrace/guest-sdk/Cargo.toml".into(), manifest.into_bytes()));
        let beginning = template(language, BEGINNING_NAME).into_iter();
        files.extend(beginning.map(|(path, bytes)| (Path::new(BEGINNING).join(path), bytes)));
    }
    let own =
        |(path, _): &(PathBuf, Vec<u8>)| path.starts_with("millrace") && !path.starts_with("millrace/wit");
    if !files.iter().any(own) {
        return Err(ToolError::Sdk { why: format!("there is none for {}", language.name()) });
    }
    let parts: Vec<&[u8]> = files
        .iter()
        .flat_map(|(path, bytes)| [path.as_os_str().as_encoded_bytes(), bytes.as_slice()])
        .collect();
    let dir = tools.join(format!("sdk-{}-{}", language.name(), fingerprint(&parts)));
    installed_once(&dir, say, &mut |dir, _| {
        files.iter().try_for_each(|(path, bytes)| place(bytes, &dir.join(path)))
    })?;
    let wit = match language {
        Language::Rust => dir.join("millrace").join(WORLD),
        Language::Js | Language::Python => dir.join(WORLD),
    };
    Ok(Sdk { sdk: dir, wit })
}

/// Where a file comes to lie in the unpacked SDK of a language; none for one that is not part of it.
fn place_of(language: Language, path: &str) -> Option<PathBuf> {
    if path.starts_with("wit/") {
        return Some(match language {
            // Its bindings look for the world beside their crate.
            Language::Rust => Path::new("millrace").join(path),
            Language::Js | Language::Python => path.into(),
        });
    }
    let inside = path.strip_prefix("guest-sdk/")?;
    match language {
        Language::Rust => inside.starts_with("src/").then(|| Path::new("millrace/guest-sdk").join(inside)),
        Language::Js | Language::Python => {
            let inside = inside.strip_prefix(language.name())?.strip_prefix('/')?;
            (!inside.starts_with("template/")).then(|| inside.into())
        }
    }
}

/// What a new project begins with: its files and their contents, with the plugin's name in them.
pub(super) fn template(language: Language, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let prefix = match language {
        Language::Rust => "guest-sdk/template/".to_owned(),
        Language::Js | Language::Python => format!("guest-sdk/{}/template/", language.name()),
    };
    let underscored = name.replace('-', "_");
    let mut files = Vec::new();
    for file in FILES {
        let Some(path) = file.path.strip_prefix(&prefix) else { continue };
        let bytes = match std::str::from_utf8(file.bytes) {
            Ok(text) => text.replace("plugin-name", name).replace("plugin_name", &underscored).into_bytes(),
            Err(_) => file.bytes.to_vec(),
        };
        files.push((path.into(), bytes));
    }
    if language == Language::Rust && !files.is_empty() {
        files.extend(lock(name).map(|text| ("Cargo.lock".into(), text.into_bytes())));
    }
    files
}

/// The versions that are tested here: Cargo leaves out what the project does not need, and asks nobody for the rest. None
/// for a project whose name is that of a package in there.
fn lock(name: &str) -> Option<String> {
    if LOCK.contains(&format!("name = \"{name}\"\n")) {
        return None;
    }
    let own = ["millrace-guest", "serde", "serde_json"].map(|needs| format!(" \"{needs}\",\n")).concat();
    Some(format!("{LOCK}\n[[package]]\nname = \"{name}\"\nversion = \"0.1.0\"\ndependencies = [\n{own}]\n"))
}

/// The manifest of the Rust SDK for a project, where there is no workspace to inherit from.
fn sdk_manifest() -> Result<String, String> {
    let own = FILES.iter().find(|file| file.path == "guest-sdk/Cargo.toml");
    let own =
        own.and_then(|file| std::str::from_utf8(file.bytes).ok()).ok_or("the Rust SDK has no manifest")?;
    let table = |text: &str| toml::from_str::<toml::Table>(text).map_err(|e| e.message().to_owned());
    let (mut own, root) = (table(own)?, table(WORKSPACE)?);
    let workspace = root.get("workspace").and_then(toml::Value::as_table).ok_or("there is no workspace")?;
    own.remove("lints");
    for (part, inherited) in [("package", "package"), ("dependencies", "dependencies")] {
        let from = workspace.get(inherited).and_then(toml::Value::as_table).ok_or("nothing is inherited")?;
        let Some(fields) = own.get_mut(part).and_then(toml::Value::as_table_mut) else { continue };
        for (name, value) in fields.iter_mut() {
            let inherits = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            if inherits {
                *value = from.get(name).ok_or_else(|| format!("`{name}` is not inherited"))?.clone();
            }
        }
    }
    toml::to_string(&own).map_err(|e| e.to_string())
}

/// Writes a project's files, those that are there excepted.
pub(super) fn write(files: &[(PathBuf, Vec<u8>)], dir: &Path) -> Result<(), ToolError> {
    for (path, bytes) in files {
        let path = dir.join(path);
        if !path.exists() {
            place(bytes, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_of_a_project_inherits_from_nowhere() {
        let text = sdk_manifest().expect("the repository's own manifests");
        assert!(!text.contains("workspace"), "{text}");
        for name in ["millrace-guest", "wit-bindgen", "serde_json", "edition"] {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
    }

    #[test]
    fn a_new_project_has_the_name_that_was_asked_for() {
        let files = template(Language::Rust, "day-sums");
        let text = |name: &str| {
            let (_, bytes) = files.iter().find(|(path, _)| path == Path::new(name)).expect("it is there");
            String::from_utf8(bytes.clone()).expect("UTF-8")
        };
        assert!(text("Cargo.toml").contains("name = \"day-sums\""));
        assert!(text("src/lib.rs").contains("Table::new(\"day_sums\""));
        assert!(!text("src/lib.rs").contains("plugin-name") && !text("src/lib.rs").contains("plugin_name"));
    }
}
