//! From `millrace plugin new` to the first row of what it begins, by the commands that the README shows.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::bench::{Better, Figure, Suite};
use millrace_tests::walk::{self, Terminal};

use crate::replay::binary;

const LANGUAGES: [(&str, &str); 3] = [("Rust", "rust"), ("JavaScript", "js"), ("Python", "python")];
const SECONDS_MAX: f64 = 60.0;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    // What is installed once a machine is installed here.
    let tools = tempfile::tempdir()?;
    for (name, language) in LANGUAGES {
        let again = format!("from new to running, {name}");
        let installing = format!("{again}, with its tools to be installed");
        eprintln!("  {installing}");
        suite.record(seconds(&installing), &[to_rows(language, tools.path())?])?;
        suite.measure(seconds(&again), |_| to_rows(language, tools.path()))?;
    }
    Ok(())
}

fn seconds(name: &str) -> Figure<'_> {
    Figure { name, unit: "s", floor: Some(SECONDS_MAX), better: Better::Lower }
}

/// Seconds from the first command to the first row. The host is there before, as it is in the README.
fn to_rows(language: &str, tools: &Path) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let mut terminal = Terminal::new(&binary(), dir.path())?.env("XDG_CACHE_HOME", tools);
    let host = terminal.host()?;
    let steps = walk::steps_in(language)?;
    let (query, before) = steps.split_last().context("there are commands")?;
    let begin = Instant::now();
    for step in before {
        told(step, || terminal.run(step).map(drop))?;
    }
    told(query, || terminal.until(query, |said| !walk::rows(said).is_empty()))?;
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("    {seconds:>6.2} s  in all, {language}");
    ensure!(host.terminate()?, "the host ends well");
    Ok(seconds)
}

/// Says how long a command takes.
fn told(step: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    run()?;
    eprintln!("    {:>6.2} s  {}", begin.elapsed().as_secs_f64(), walk::command(step));
    Ok(())
}
