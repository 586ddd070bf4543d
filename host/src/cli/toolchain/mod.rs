//! Builds plugins to WebAssembly components, with the tools that each language needs.
//!
//! Promises: says what it installs before it does; what is installed is pinned by a list, lies in one folder a
//! machine and is installed once; every program is waited for a bounded time, has no standard input, and when it
//! fails its last words are in the error. Nothing but the standard library and nothing of the rest of the host,
//! so that whoever builds this repository can have it as a crate of its own. Deliberately absent: which plugins
//! there are, and what a component may be; that is looked at where it is loaded.

mod error;
mod files;
mod js;
mod programs;
mod python;
mod rust;
mod rust_project;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use error::ToolError;
pub use files::{copy_built, copy_tree, fingerprint, fingerprint_of, is_source, place, vendor};
pub use js::build_js;
pub use programs::{NODE, Needed, PYTHON, Said, captured, installed_once, limited, version_of};
pub use python::{build_python, fingerprint_of_packages};
pub use rust::{Component, Guest, GuestBuild, GuestKind, PROFILE, TARGET, TOOLCHAIN_VARIABLE, Toolchain};
pub use rust_project::{BEGINNING, BEGINNING_NAME, build_rust};

/// Gets what a person should know, a line at a time.
pub trait Say {
    fn say(&mut self, line: &str);
}

impl<F: FnMut(&str)> Say for F {
    fn say(&mut self, line: &str) {
        self(line);
    }
}

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    Js,
    Python,
}

/// One plugin to build, and with what.
#[derive(Clone, Copy, Debug)]
pub struct ProjectBuild<'a> {
    /// Its folder, with `plugin.toml`. What the SDK has in `millrace/` lies in its `millrace/`, see [`vendor`].
    pub project: &'a Path,
    pub name: &'a str,
    /// Where the plugin's own code begins, in the project: a module, and in Rust the crate's folder.
    pub entry: &'a str,
    /// The SDK of its language, laid out as `guest-sdk/js` and `guest-sdk/python` are: `millrace/` is what a
    /// plugin has beside itself; the rest (lists of packages, `build.mjs`, [`BEGINNING`]) is for building.
    pub sdk: &'a Path,
    /// The folder with the four files of the world.
    pub wit: &'a Path,
    /// Where tools are installed, see [`tools_dir`].
    pub tools: &'a Path,
    /// What the plugin asks its operator for.
    pub grants: &'a [String],
}

impl ProjectBuild<'_> {
    /// Whether the component may import anything of WASI. Without a grant for it, it must not.
    pub fn wasi(&self) -> bool {
        ["clock", "random", "env", "http", "read_dir"].iter().any(|grant| self.grants(grant))
    }

    pub fn grants(&self, grant: &str) -> bool {
        self.grants.iter().any(|asked| asked == grant)
    }
}

/// Brings the project's copy of the SDK up to date and builds the component, which appears in one step.
pub fn build(
    language: Language,
    project: &ProjectBuild<'_>,
    out: &Path,
    say: &mut dyn Say,
) -> Result<(), ToolError> {
    if vendor(project.sdk, project.wit, project.project)? {
        say.say("the project's copy of the SDK (millrace/) was brought up to date");
    }
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder).map_err(ToolError::file(folder))?;
    }
    match language {
        Language::Rust => build_rust(project, out, say),
        Language::Js => build_js(project, out, say),
        Language::Python => build_python(project, out, say),
    }
}

/// Where tools lie that every project of this machine shares.
pub fn tools_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("millrace/tools")
}

impl Language {
    pub const ALL: [Self; 3] = [Self::Rust, Self::Js, Self::Python];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Python => "python",
        }
    }
}

impl FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|language| language.name() == text);
        found.ok_or_else(|| format!("`{text}` is no language; there are: rust, js, python"))
    }
}
