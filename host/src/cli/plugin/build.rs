//! `millrace plugin build`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::embedded;
use super::project::{FILE as PROJECT, Project};
use super::workbench::Workbench;
use crate::cli::toolchain::{self, Language, ProjectBuild, Say, ToolError};
use crate::cli::{CliError, Exit, Output, printable};
use crate::config::DATA_DIR;
use crate::limits::COMPONENT_BYTES_MAX;
use crate::plugins::WORLD_NAME;
use crate::processors::Manifest;

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A component that a host would take for what its project says.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) path: PathBuf,
    pub(super) component: Vec<u8>,
    pub(super) manifest: Manifest,
}

pub(super) fn run(args: &BuildArgs, output: &mut Output) -> Result<(), CliError> {
    let project = Project::open(&args.project)?;
    let bench = Workbench::of_project(&project)?;
    let Built { path, component, manifest } = build(&project, &bench)?;
    let version = manifest.version.to_string();
    if args.json {
        return output.json(&json!({
            "name": manifest.name, "version": version, "path": path, "bytes": component.len(), "world": WORLD_NAME,
        }));
    }
    let bytes = component.len();
    output.line(&format!("{} {version} is in {} ({bytes} bytes)", manifest.name, path.display()))
}

/// Builds a project unless its component is known to be that of its sources, and looks at what came out as a host does.
pub(super) fn build(project: &Project, bench: &Workbench) -> Result<Built, CliError> {
    let mut say = say();
    let tools = toolchain::tools_dir();
    let sdk = embedded::unpack(project.language, &tools, &mut say).map_err(|e| failed(&e))?;
    let path = project.component();
    let note = path.with_extension("sources");
    let sources = || match project.language {
        // Cargo looks after its inputs itself, in no time, and knows those that lie elsewhere: crates beside the project.
        Language::Rust => Ok(None),
        Language::Js | Language::Python => sources(project, &sdk.sdk).map(Some).map_err(|e| failed(&e)),
    };
    let wanted = sources()?;
    let current = path.exists() && wanted.is_some() && fs::read_to_string(&note).ok() == wanted;
    if !current {
        let build = ProjectBuild {
            project: &project.dir,
            name: &project.name,
            entry: &project.entry,
            sdk: &sdk.sdk,
            wit: &sdk.wit,
            tools: &tools,
            grants: &project.grants,
        };
        toolchain::build(project.language, &build, &path, &mut say).map_err(|e| failed(&e))?;
        // Of the sources as they are now: a tool may have written one, such as a lock file.
        if let Some(built) = sources()? {
            toolchain::place(built.as_bytes(), &note).map_err(|e| failed(&e))?;
        }
    }
    let component = read_component(&path)?;
    let manifest = bench.examine(&component).map_err(|error| {
        CliError::new(
            Exit::Refused,
            format!("no host would take {}: {error}", path.display()),
            "correct the plugin; `millrace plugin check` lists what else there is",
        )
    })?;
    if manifest.name != project.name {
        return Err(CliError::new(
            Exit::Refused,
            format!(
                "the plugin says that its name is `{}`, and its project says `{}`",
                printable(&manifest.name),
                project.name
            ),
            "make the names equal, in the manifest or in plugin.toml",
        ));
    }
    same_grants(project, &manifest)?;
    Ok(Built { path, component, manifest })
}

/// The project says what is built in and tried, and the manifest what the operator is asked for.
fn same_grants(project: &Project, manifest: &Manifest) -> Result<(), CliError> {
    let named = |grants: &[String]| grants.iter().cloned().collect::<BTreeSet<_>>();
    let (built, asked) = (named(&project.grants), named(&manifest.grants));
    if built == asked {
        return Ok(());
    }
    let told = |grants: BTreeSet<String>| match grants.len() {
        0 => "none".to_owned(),
        _ => grants.into_iter().collect::<Vec<_>>().join(", "),
    };
    Err(CliError::new(
        Exit::Refused,
        format!(
            "the plugin asks its operator for these grants: {}; and {PROJECT} names: {}",
            printable(&told(asked)),
            told(built)
        ),
        "make the grants equal, in the manifest or in plugin.toml",
    ))
}

/// Names what a component in JavaScript or Python is built from.
fn sources(project: &Project, sdk: &Path) -> Result<String, ToolError> {
    // A host that is started in the project's folder keeps its store there.
    let files = toolchain::fingerprint_of(&[("", &project.dir)], &[DATA_DIR], &toolchain::is_source)?;
    let packages = toolchain::fingerprint_of_packages(&project.dir);
    // The SDK's folder is named after what is in it.
    let sdk = sdk.as_os_str().as_encoded_bytes();
    let grants = project.grants.join(",");
    let parts = [files.as_bytes(), packages.as_bytes(), sdk, grants.as_bytes(), project.entry.as_bytes()];
    Ok(toolchain::fingerprint(&parts))
}

pub(super) fn read_component(path: &Path) -> Result<Vec<u8>, CliError> {
    let next = "look at the path; `millrace plugin build` writes target/NAME.wasm";
    let unreadable =
        |error: io::Error| CliError::failed(format!("{} cannot be read: {error}", path.display()), next);
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > COMPONENT_BYTES_MAX as u64 {
        let max = COMPONENT_BYTES_MAX;
        return Err(CliError::failed(
            format!("{} has {bytes} bytes; component_bytes_max is {max}", path.display()),
            "make the component smaller: leave out packages and data that it does not need",
        ));
    }
    fs::read(path).map_err(unreadable)
}

/// Progress, for people: what was asked for goes to standard output.
pub(super) fn say() -> impl Say {
    |line: &str| {
        // Nobody may be listening.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// What a tool said, and what can be done about it.
pub(super) fn failed(error: &ToolError) -> CliError {
    let next = match error {
        ToolError::Install { cause, .. } if matches!(**cause, ToolError::NotStarted { .. }) => {
            "install the program that does not start, or put it where PATH finds it"
        }
        ToolError::Install { .. } => {
            "look at the network and at the registry that npm, pip or cargo asks; nothing else has to be repeated"
        }
        ToolError::Unfit { .. } | ToolError::NoWay { .. } | ToolError::LinkerMissing { .. } => "",
        ToolError::NotStarted { .. } => "install it, or put it where PATH finds it",
        ToolError::Entry { .. } => "correct `entry` in plugin.toml",
        ToolError::Taken { .. } => {
            "rename it if it is your own, with what names it; a copy that is not whole, remove"
        }
        ToolError::Sdk { .. } => "install millrace anew",
        ToolError::TimedOut { .. } => "try again; what was installed stays",
        ToolError::File { .. } => "look at the path, its permissions and the free space",
        _ => "correct what it says, and build again",
    };
    CliError::failed(error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use super::super::project::content;
    use super::*;

    #[test]
    fn what_can_be_done_fits_what_failed() {
        let install = |cause| ToolError::Install {
            what: "what builds".into(),
            from: "a registry".into(),
            cause: Box::new(cause),
        };
        let missing = || ToolError::NotStarted {
            program: "npm ci".into(),
            cause: io::Error::from(io::ErrorKind::NotFound),
        };
        let unreachable = ToolError::Failed {
            program: "npm ci".into(),
            status: "exit status: 1".into(),
            said: String::new(),
        };
        let entry = ToolError::Entry { entry: "app".into(), needed: "module" };
        let taken = ToolError::Taken { path: "millrace".into() };
        for (error, advised, not_advised) in [
            (install(missing()), "PATH", "network"),
            (missing(), "PATH", "network"),
            (install(unreachable), "look at the network", "PATH"),
            (entry, "`entry` in plugin.toml", "network"),
            (taken, "rename it", "permissions"),
        ] {
            let told = failed(&error);
            let next = told.next_step();
            assert!(next.contains(advised) && !next.contains(not_advised), "{told}: {next}");
        }
    }

    #[test]
    fn an_entry_that_is_none_is_told_without_the_target() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("src")).expect("the folder is the test's");
        fs::write(folder.path().join("src/lib.rs"), "").expect("the folder is the test's");
        for (language, entry) in [(Language::Rust, "src/lib.rs"), (Language::Python, "app")] {
            let sdk = folder.path().join("sdk");
            fs::create_dir_all(sdk.join("millrace")).expect("the folder is the test's");
            let build = ProjectBuild {
                project: folder.path(),
                name: "day-sums",
                entry,
                sdk: &sdk,
                wit: &sdk,
                tools: &sdk,
                grants: &[],
            };
            let out = folder.path().join("target/day-sums.wasm");
            let error = toolchain::build(language, &build, &out, &mut |_: &str| {}).expect_err("no entry");
            let told = failed(&error);
            assert!(told.sentence().starts_with(&format!("the entry `{entry}` is no ")), "{told}");
        }
    }

    #[test]
    fn a_store_in_a_projects_folder_is_none_of_its_sources() {
        for language in [Language::Js, Language::Python] {
            let folder = tempfile::tempdir().expect("a folder");
            let write = |path: &str, text: &str| {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is the test's");
                fs::write(path, text).expect("the folder is the test's");
            };
            write(PROJECT, &content("day-sums", language));
            let project = Project::open(folder.path()).expect("a project");
            let of = || sources(&project, Path::new("sdk")).expect("they are read");
            write("src/a", "1");
            let first = of();
            for beside in ["target/component/a", &format!("{DATA_DIR}/log/a")] {
                write(beside, "2");
                assert_eq!(of(), first, "{language:?}: {beside}");
            }
            write(&format!("src/{DATA_DIR}/a"), "3");
            assert_ne!(of(), first, "{language:?}: further down a folder may be called as it likes");
        }
    }
}
