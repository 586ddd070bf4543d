//! `millrace plugin test`: a project's own tests, then its component over recorded events.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use super::build::{Built, build, failed};
use super::project::{self, Project};
use super::workbench::Workbench;
use super::{differ, events};
use crate::cli::toolchain::{self, Language, NODE, PYTHON, ToolError, limited};
use crate::cli::{CliError, Exit, Output, printable};
use crate::limits::{BATCH_EVENTS_MAX, TRIAL_LINES_SHOWN_MAX};
use crate::plugins::trial::{Cut, Fold};

/// How long a project's own tests may take, with what has to be compiled for them.
const NATIVE_WAIT_MAX: Duration = Duration::from_secs(1800);

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    /// Take what comes out now for what is expected
    #[arg(long)]
    update: bool,
    /// Leave the project's own tests out
    #[arg(long)]
    no_native: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &TestArgs, output: &mut Output) -> Result<(), CliError> {
    let project = Project::open(&args.project)?;
    // First: it brings the SDK beside the project up to date, which its own tests use.
    let Built { component, .. } = build(&project, &Workbench::of_project(&project)?)?;
    // They may take long, and use this command themselves.
    if !args.no_native {
        native(&project)?;
    }
    let bench = Workbench::of_project(&project)?;
    let factory = bench.load(&component, &project.settings()).map_err(|error| {
        CliError::new(
            Exit::Refused,
            format!("no host would run it: {error}"),
            "what it may do stands in plugin.toml: `grants`, and what they reach under [test]",
        )
    })?;
    let recorded = events::read(&project.events())?;
    let fold = Fold::new(&*factory, &recorded.events);
    let folded = heard(|| fold.run(Cut::batches(BATCH_EVENTS_MAX))).map_err(|error| {
        CliError::new(Exit::Refused, error.to_string(), "correct the plugin; what it logged stands above")
    })?;
    if let Some(fault) = folded.faults.first() {
        return Err(CliError::new(Exit::Refused, fault.to_string(), "`millrace plugin check` says more"));
    }
    let (found, path) = (folded.to_json(), project.expected());
    let events = recorded.events.len();
    if args.update {
        write(&path, &found)?;
        return told(args, output, &project, events, &format!("{} is written", path.display()));
    }
    let expected = read(&path)?;
    let differences = differ::lines(&expected, &found);
    if differences.is_empty() {
        return told(args, output, &project, events, "what comes out is what is expected");
    }
    if args.json {
        output.json(&json!({ "name": project.name, "ok": false, "differences": differences }))?;
    } else {
        for line in differences.iter().take(TRIAL_LINES_SHOWN_MAX) {
            output.line(&printable(line))?;
        }
        if differences.len() > TRIAL_LINES_SHOWN_MAX {
            output.line(&format!("and {} more", differences.len() - TRIAL_LINES_SHOWN_MAX))?;
        }
    }
    output.flush()?;
    Err(CliError::new(
        Exit::Refused,
        format!("{} things are not as {} says", differences.len(), path.display()),
        "correct the plugin, or take what comes out for right with --update",
    ))
}

/// What the guest logs meanwhile goes to standard error.
fn heard<T>(work: impl FnOnce() -> T) -> T {
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(EnvFilter::new("off,millrace::guest=info"))
        .without_time()
        .finish();
    tracing::subscriber::with_default(lines, work)
}

fn told(
    args: &TestArgs,
    output: &mut Output,
    project: &Project,
    events: usize,
    what: &str,
) -> Result<(), CliError> {
    if args.json {
        return output.json(&json!({ "name": project.name, "ok": true, "events": events }));
    }
    output.line(&format!("{}: {what}, over {events} recorded events", project.name))
}

fn read(path: &Path) -> Result<Value, CliError> {
    let Some(bytes) = project::read(path)? else {
        return Err(CliError::failed(
            format!("there is no {}", path.display()),
            "look at what comes out, and keep it: millrace plugin test --update",
        ));
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        CliError::failed(
            format!("{} is not JSON: {error}", path.display()),
            "correct it, or write it anew with --update",
        )
    })
}

fn write(path: &Path, found: &Value) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(found)
        .map_err(|error| CliError::failed(format!("what came out cannot be written: {error}"), ""))?;
    text.push('\n');
    toolchain::place(text.as_bytes(), path).map_err(|error| failed(&error))
}

/// Runs the project's own tests with its language's own tool; what that writes goes to standard error.
fn native(project: &Project) -> Result<(), CliError> {
    let (program, mut command) = match project.language {
        Language::Rust => {
            let mut cargo = Command::new("cargo");
            cargo.arg("test").current_dir(project.dir.join(&project.entry));
            // Flags for somebody else's build mean something else here.
            cargo
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_TARGET_DIR");
            ("cargo test", cargo)
        }
        Language::Js => {
            NODE.check().map_err(|error| failed(&error))?;
            let scripts = scripts(&project.dir);
            if scripts.is_empty() {
                return Ok(());
            }
            let mut node = Command::new("node");
            node.arg("--test").args(scripts).current_dir(&project.dir);
            ("node --test", node)
        }
        Language::Python => {
            PYTHON.check().map_err(|error| failed(&error))?;
            let mut python = Command::new("python3");
            python.args(["-m", "unittest", "discover", "-s", "tests"]).current_dir(&project.dir);
            python.env("PYTHONDONTWRITEBYTECODE", "1");
            ("python3 -m unittest", python)
        }
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(ToolError::file("standard error"));
    command.stdout(stderr.map_or_else(|_| Stdio::null(), Stdio::from));
    limited(program, &mut command, NATIVE_WAIT_MAX).map_err(|error| match error {
        ToolError::Failed { .. } => CliError::failed(
            format!("the project's own tests failed: {error}"),
            "what they say stands above; leave them out with --no-native",
        ),
        error => failed(&error),
    })
}

/// What `node --test` runs, by name: without names it would also run what the SDK has.
fn scripts(project: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(project.join("tests")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().contains(".test.") {
            found.push(Path::new("tests").join(name));
        }
    }
    found.sort();
    found
}
