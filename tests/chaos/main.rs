//! The long form of the kills that the suite runs short: `cargo xtask chaos [--kills N] [--seed S]`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use millrace_tests::chaos::{InPlay, Scenario, difference, setup};

/// Kills a host at random moments and compares what is left with a quiet run.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often the host is killed.
    #[arg(long, default_value_t = 500)]
    kills: usize,
    /// How often every plugin is swapped.
    #[arg(long, default_value_t = 100)]
    swaps: usize,
    /// Decides the events and the moments; printed, so that a failure can be run again.
    #[arg(long)]
    seed: Option<u64>,
    /// Events for the plugin that keeps state of both kinds, emits and fails.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Keeps the stores in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let here = std::env::current_exe()?;
    let binary = here.parent().context("a binary lies in a folder")?.join("millrace");
    ensure!(binary.exists(), "{} is missing: `cargo xtask chaos` builds it", binary.display());
    let scenario = Scenario {
        kills: arguments.kills,
        swaps: arguments.swaps,
        seed,
        in_play: InPlay {
            flights: true,
            chaotic_events: arguments.events,
            flaky_every: 200,
            bad_every: 400,
            poison_every: 800,
        },
        host: setup(binary),
    };
    let dir = tempfile::tempdir()?;
    let folder = arguments.keep.unwrap_or_else(|| dir.path().into());
    std::fs::create_dir_all(&folder)?;
    eprintln!("chaos: seed {seed}; a quiet run first");
    let quiet = scenario.quiet(&folder.join("quiet")).await?;
    let uploads = scenario.uploads()?.len();
    let (stormy, storm) = scenario
        .stormy(&folder.join("stormy"), |storm| {
            if storm.uploads.is_multiple_of(20) || storm.uploads == uploads {
                eprintln!(
                    "chaos: {} of {uploads} uploads, {} kills, {} rounds of swaps",
                    storm.uploads, storm.kills, storm.swaps
                );
            }
        })
        .await
        .with_context(|| format!("with --seed {seed}"))?;
    if let Some(difference) = difference(&quiet, &stormy) {
        bail!(
            "after {} kills the store differs from a quiet run's; --seed {seed}\n{difference}",
            storm.kills
        );
    }
    eprintln!(
        "chaos: {} kills and {} rounds of swaps left the store of a quiet run (--seed {seed})",
        storm.kills, storm.swaps
    );
    Ok(())
}
