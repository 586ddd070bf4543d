//! A plugin's project: a folder with `plugin.toml`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::toolchain::Language;
use crate::cli::{CliError, Exit};
use crate::limits::PROJECT_FILE_BYTES_MAX;
use crate::plugins::{EnvValue, GRANTS, PluginSettings};
use crate::processors::Manifest;

/// Not the name of the host's own config file, which a host reads from the folder that it is started in.
pub(super) const FILE: &str = "plugin.toml";

/// What a project says of itself.
#[derive(Debug)]
pub(super) struct Project {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) language: Language,
    pub(super) entry: String,
    pub(super) grants: Vec<String>,
    test: TestPart,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    plugin: PluginPart,
    #[serde(default)]
    test: TestPart,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginPart {
    name: String,
    language: String,
    entry: Option<String>,
    #[serde(default)]
    grants: Vec<String>,
}

/// What it is tried with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TestPart {
    events: PathBuf,
    expected: PathBuf,
    config: BTreeMap<String, String>,
    env: BTreeMap<String, EnvValue>,
    http_hosts: Vec<String>,
    read_dir: Option<PathBuf>,
    channels: Vec<String>,
}

impl Default for TestPart {
    fn default() -> Self {
        Self {
            events: "tests/events.ndjson".into(),
            expected: "tests/expected.json".into(),
            config: BTreeMap::new(),
            env: BTreeMap::new(),
            http_hosts: Vec::new(),
            read_dir: None,
            channels: Vec::new(),
        }
    }
}

impl Project {
    pub(super) fn open(dir: &Path) -> Result<Self, CliError> {
        let path = dir.join(FILE);
        let text = match read(&path)? {
            Some(bytes) => String::from_utf8(bytes).map_err(|_| invalid(&path, "it is not UTF-8"))?,
            None => {
                return Err(CliError::usage(
                    format!("{} is no plugin's project: it has no {FILE}", dir.display()),
                    "go to a project's folder, or begin one with `millrace plugin new --lang js NAME`",
                ));
            }
        };
        let Content { plugin, test } = toml::from_str(&text).map_err(|e| invalid(&path, e.message()))?;
        if !Manifest::is_name(&plugin.name) {
            return Err(invalid(&path, &not_a_name(&plugin.name)));
        }
        let language: Language = plugin.language.parse().map_err(|why: String| invalid(&path, &why))?;
        if let Some(unknown) = plugin.grants.iter().find(|name| !GRANTS.contains(&name.as_str())) {
            return Err(invalid(
                &path,
                &format!("`{unknown}` is no grant; there are: {}", GRANTS.join(", ")),
            ));
        }
        let entry = plugin.entry.unwrap_or_else(|| entry_of(language).to_owned());
        Ok(Self { dir: dir.into(), name: plugin.name, language, entry, grants: plugin.grants, test })
    }

    /// Where its component comes to lie.
    pub(super) fn component(&self) -> PathBuf {
        self.dir.join("target").join(format!("{}.wasm", self.name))
    }

    pub(super) fn events(&self) -> PathBuf {
        self.dir.join(&self.test.events)
    }

    pub(super) fn expected(&self) -> PathBuf {
        self.dir.join(&self.test.expected)
    }

    /// What an operator would give it who grants what it asks for.
    pub(super) fn settings(&self) -> PluginSettings {
        let test = &self.test;
        PluginSettings {
            config: test.config.clone(),
            grants: self.grants.clone(),
            env: test.env.clone(),
            http_hosts: test.http_hosts.clone(),
            read_dir: test.read_dir.as_ref().map(|dir| self.dir.join(dir)),
            channels: test.channels.clone(),
            ..PluginSettings::default()
        }
    }
}

/// Where a plugin's own code begins if its project does not say.
fn entry_of(language: Language) -> &'static str {
    match language {
        Language::Rust => ".",
        Language::Js => "src/plugin.mjs",
        Language::Python => "app.py",
    }
}

/// The file of a new project.
pub(super) fn content(name: &str, language: Language) -> String {
    let entry = entry_of(language);
    let language = language.name();
    format!(
        "[plugin]
name = \"{name}\"        # what the plugin says of itself, too
language = \"{language}\"
entry = \"{entry}\"
grants = []      # what it asks its operator for: clock, random, env, http, read_dir, channels

# What `millrace plugin test` and `millrace plugin check` try it with. For grants, what they reach stands here as well:
# env, http_hosts, read_dir, channels.
[test]
events = \"tests/events.ndjson\"        # as `millrace publish` takes them
expected = \"tests/expected.json\"      # written by `millrace plugin test --update`

[test.config]
"
    )
}

pub(super) fn not_a_name(name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    format!("`{name}` is no plugin's name: 1 to 62 of a-z, 0-9 and `-`, beginning with a letter")
}

fn invalid(path: &Path, why: &str) -> CliError {
    CliError::new(
        Exit::Config,
        format!("{}: {}", path.display(), why.trim_end()),
        format!("correct {FILE}; `millrace plugin new` writes one that holds"),
    )
}

/// A file of bounded size; none where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, CliError> {
    let failed = |error: &std::io::Error| {
        CliError::failed(
            format!("{} cannot be read: {error}", path.display()),
            "look at the path and its permissions",
        )
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut bytes = Vec::new();
    file.take(PROJECT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > PROJECT_FILE_BYTES_MAX {
        return Err(CliError::failed(
            format!("{} is larger than project_file_bytes_max = {PROJECT_FILE_BYTES_MAX}", path.display()),
            "keep fewer of what it holds",
        ));
    }
    Ok(Some(bytes))
}
