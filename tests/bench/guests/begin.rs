//! From `millrace plugin new` to the first rows of what it begins, by the commands that the README shows.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::host::HostProcess;

use crate::replay::binary;

const LANGUAGES: [(&str, &str); 3] = [("Rust", "rust"), ("JavaScript", "js"), ("Python", "python")];
/// Of the plugin, and of its table.
const NAME: &str = "counts";
const SECONDS_MAX: f64 = 60.0;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    // What is installed once a machine is installed here.
    let tools = tempfile::tempdir()?;
    for (name, language) in LANGUAGES {
        let first = to_rows(language, tools.path())?;
        eprintln!("  from new to running, {name}, with its tools: {first:.1} s");
        let again = format!("from new to running, {name}");
        suite.record(seconds(&format!("{again}, with its tools to be installed")), &[first])?;
        suite.measure(seconds(&again), |_| to_rows(language, tools.path()))?;
    }
    Ok(())
}

fn seconds(name: &str) -> Figure<'_> {
    Figure { name, unit: "s", floor: Some(SECONDS_MAX), better: Better::Lower }
}

/// Seconds from the first command to the rows of the events that the template brings. The host is there before.
fn to_rows(language: &str, tools: &Path) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let project = dir.path().join("project");
    let folder = project.to_str().context("a path of letters")?;
    let component = format!("{folder}/target/{NAME}.wasm");
    crate::runtime()?.block_on(async {
        let mut host = HostProcess::start_with(&binary(), &dir.path().join("store")).await?;
        let begin = Instant::now();
        millrace(tools, &["plugin", "new", "--lang", language, NAME, "--dir", folder])?;
        millrace(tools, &["plugin", "build", folder])?;
        millrace(tools, &["plugin", "deploy", &component, "--url", &host.url])?;
        host.publish(std::fs::read(project.join("tests/events.ndjson"))?).await?;
        host.settle_every(Duration::from_millis(2)).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let page = host.get(&format!("/v1/tables/{NAME}")).await?;
        ensure!(page["rows"].as_array().is_some_and(|rows| rows.len() == 3), "it has counted: {page}");
        ensure!(host.terminate()?, "the host ends well");
        Ok(seconds)
    })
}

fn millrace(tools: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(binary());
    command.args(arguments).env("XDG_CACHE_HOME", tools).stdin(Stdio::null());
    let output = command.output().context("the binary starts")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "millrace {}: {said}", arguments.join(" "));
    Ok(())
}
