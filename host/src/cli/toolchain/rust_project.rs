//! Builds a project's crate in a build folder of the project's own.
//!
//! Cargo knows the crates of a workspace by their places in it, and calls a component by its crate's name alone: of two
//! projects in one build folder, one would be given the other's code. What comes from a registry is the same for all,
//! so it is compiled once a machine, and each build folder begins with a copy of that.

use std::fs;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use super::files::copy_built;
use super::programs::turn;
use super::rust::remaps;
use super::{
    Guest, GuestBuild, GuestKind, ProjectBuild, Say, ToolError, Toolchain, copy_tree, fingerprint,
    installed_once, place, vendor,
};

/// In the SDK: a project as new ones are, from which those have what they share.
pub const BEGINNING: &str = "beginning";
/// Its name begins as the SDK's, so that one look tells what is nobody else's.
pub const BEGINNING_NAME: &str = "millrace-guest-beginning";
/// What the SDK's crates and their files have in their names.
const SDK_NAME: &str = "millrace-guest";
/// In a project: where its crate is built.
const OWN: &str = "target/component";
/// How long another build of the same project may take.
const BUILD_TURN_WAIT_MAX: Duration = Duration::from_secs(900);

/// Builds a project's crate. Builds of one project at the same time wait for each other.
pub fn build_rust(project: &ProjectBuild<'_>, out: &Path, say: &mut dyn Say) -> Result<(), ToolError> {
    let workspace = crate_folder(project.project, project.entry)?;
    let own = absolute(&project.project.join(OWN))?;
    if let Some(above) = own.parent() {
        fs::create_dir_all(above).map_err(ToolError::file(above))?;
    }
    let build =
        GuestBuild { workspace, build_dir: own.clone(), guests: vec![library(project.name)], locked: false };
    // Until the component is read: Cargo's own lock ends before that.
    let other = format!("another build in {}", own.display());
    let _turn = turn(&own.with_extension("lock"), &other, BUILD_TURN_WAIT_MAX, say)?;
    let toolchain = build.choose(say)?;
    begin(project, &build, toolchain, say)?;
    for component in build.run_by(toolchain, None, say)? {
        let bytes = fs::read(&component.path).map_err(ToolError::file(&component.path))?;
        place(&bytes, out)?;
    }
    Ok(())
}

/// The entry's folder. Programs that are started in what is none are told of as if they were missing themselves.
fn crate_folder(project: &Path, entry: &str) -> Result<PathBuf, ToolError> {
    let folder = project.join(entry);
    if folder.join("Cargo.toml").is_file() {
        return Ok(folder);
    }
    Err(ToolError::Entry {
        entry: entry.into(),
        needed: "folder of the project with a Cargo.toml in it; most have \".\"",
    })
}

/// Gives a project that has no build folder yet one with what is shared in it.
fn begin(
    project: &ProjectBuild<'_>,
    build: &GuestBuild,
    toolchain: Toolchain,
    say: &mut dyn Say,
) -> Result<(), ToolError> {
    let own = build.target_dir(toolchain);
    if own.exists() {
        return Ok(());
    }
    let from = match shared(project, build, toolchain, say) {
        Ok(from) => from,
        // By its settings a project may have its packages from where these cannot be had.
        Err(ToolError::Failed { .. }) => {
            say.say("what plugins share cannot be built; this one is built without");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let half = own.with_extension("half");
    if half.exists() {
        fs::remove_dir_all(&half).map_err(ToolError::file(&half))?;
    }
    copy_built(&from, &half, &is_shared)?;
    fs::rename(&half, &own).map_err(ToolError::file(&own))
}

/// The build folder that others begin with. One that fits a project badly costs time: Cargo builds again what differs.
fn shared(
    project: &ProjectBuild<'_>,
    build: &GuestBuild,
    toolchain: Toolchain,
    say: &mut dyn Say,
) -> Result<PathBuf, ToolError> {
    let compiler = build.compiler(toolchain)?;
    // Most projects have none.
    let settings = fs::read(build.workspace.join(".cargo/config.toml")).unwrap_or_default();
    let name = fingerprint(&[
        // Named after what is in it.
        project.sdk.as_os_str().as_encoded_bytes(),
        toolchain.name().as_bytes(),
        compiler.as_bytes(),
        remaps().concat().as_bytes(),
        &settings,
    ]);
    let dir = absolute(project.tools)?.join(format!("rust-{name}"));
    let first = GuestBuild {
        workspace: build.workspace.clone(),
        build_dir: dir.join("target"),
        guests: vec![library(BEGINNING_NAME)],
        locked: false,
    };
    installed_once(&dir, say, &mut |dir, say| {
        say.say(&format!("building what plugins share, once a machine, in {}", dir.display()));
        let begun = dir.join(BEGINNING);
        copy_tree(&project.sdk.join(BEGINNING), &begun)?;
        vendor(project.sdk, project.wit, &begun)?;
        first.run_by(toolchain, Some(&begun.join("Cargo.toml")), say).map(drop)
    })?;
    Ok(first.target_dir(toolchain))
}

/// Whether a file of a build folder is of a package that comes from elsewhere. Each project has its own copy of the SDK.
fn is_shared(path: &Path) -> bool {
    !path.iter().any(|name| name.to_string_lossy().replace('_', "-").contains(SDK_NAME))
}

fn library(name: &str) -> Guest {
    Guest { package: name.into(), target: name.into(), kind: GuestKind::Library }
}

/// Cargo runs in another folder than this process.
fn absolute(path: &Path) -> Result<PathBuf, ToolError> {
    path::absolute(path).map_err(ToolError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_the_folder_of_a_crate() {
        // Of whichever crate these tests are part of.
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = crate_folder(project, ".").map_err(|error| error.to_string());
        assert_eq!(found, Ok(project.join(".")));
        for entry in ["src", "src/main.rs", "Cargo.toml", "nowhere"] {
            let refused = crate_folder(project, entry).map_err(|error| error.to_string());
            let begins = format!("the entry `{entry}` is no folder of the project with a Cargo.toml in it");
            assert!(refused.is_err_and(|error| error.starts_with(&begins)), "{entry}");
        }
    }

    #[test]
    fn the_sdk_and_what_it_was_built_with_are_not_shared() {
        assert!(BEGINNING_NAME.starts_with(SDK_NAME));
        for (path, shared) in [
            (".rustc_info.json", true),
            ("plugin/deps/libserde-0f.rmeta", true),
            ("wasm32-wasip2/plugin/.fingerprint/serde-0f/lib-serde", true),
            ("wasm32-wasip2/plugin/.fingerprint/millrace-guest-0f/lib-millrace_guest", false),
            ("wasm32-wasip2/plugin/deps/libmillrace_guest-0f.rlib", false),
            ("wasm32-wasip2/plugin/deps/millrace_guest_beginning.wasm", false),
        ] {
            assert_eq!(is_shared(Path::new(path)), shared, "{path}");
        }
    }
}
