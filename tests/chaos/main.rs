//! The long form of what the suite runs short: kills, and power cuts.
//! `cargo xtask chaos [--kills N] [--swaps N] [--cuts N] [--seed S]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use millrace::backends::redis::RedisAck;
use millrace_tests::chaos::{Heard, InPlay, Scenario, difference, setup};
use millrace_tests::cuts::{Journalled, without_kills};
use millrace_tests::failover::Failovers;
use millrace_tests::powercut::Unsynced;
use millrace_tests::swaps::{PLUGINS, at_full_rate, side_by_side};

/// Kills a host at random moments, and cuts its power; compares what is left with a quiet run.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often the host is killed.
    #[arg(long, default_value_t = 500)]
    kills: usize,
    /// How often every plugin is swapped. Without kills, at full rate.
    #[arg(long, default_value_t = 100)]
    swaps: usize,
    /// Rounds of decisions on dead letters.
    #[arg(long, default_value_t = 100)]
    resolves: usize,
    /// At how many moments of another, shorter run the power is cut.
    #[arg(long, default_value_t = 100)]
    cuts: usize,
    /// How often a log on Redis fails over to its replica.
    #[arg(long, default_value_t = 100)]
    failovers: usize,
    /// Decides the events and the moments; printed, so that a failure can be run again.
    #[arg(long)]
    seed: Option<u64>,
    /// Events for the plugin that keeps state of both kinds, emits and fails.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// The plugins that are swapped without kills, by name, such as debounce,turn-tracer. The sample plugins in Rust
    /// where none is named. Each gets events that it takes: entries for turn-tracer, flights for the others.
    #[arg(long, value_delimiter = ',', default_values_t = PLUGINS.map(String::from))]
    plugins: Vec<String>,
    /// Keeps the stores in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// How long the replica hears nothing before its primary is killed.
const REPLICA_PAUSE: Duration = Duration::from_secs(1);

/// Of each kind, in the run that is cut: every cut goes through it again.
const CUT_EVENTS: usize = 1_500;
const CUT_SWAPS: usize = 8;
const CUT_RESOLVES: usize = 16;

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
        resolves: arguments.resolves,
        seed,
        in_play: InPlay {
            flights: usize::MAX,
            chaotic_events: arguments.events,
            flaky_every: 200,
            bad_every: 400,
            poison_every: 800,
            shy_every: 400,
        },
        host: setup(binary),
    };
    let dir = tempfile::tempdir()?;
    let folder = arguments.keep.clone().unwrap_or_else(|| dir.path().into());
    std::fs::create_dir_all(&folder)?;
    if arguments.kills == 0 && arguments.swaps > 0 {
        swaps(&scenario, &arguments.plugins, &folder).await?;
    } else if arguments.kills > 0 {
        storm(&scenario, &folder).await.with_context(|| format!("with --seed {seed}"))?;
    }
    if arguments.cuts > 0 {
        cuts(&scenario, arguments.cuts, &folder.join("cuts"))
            .await
            .with_context(|| format!("with --seed {seed}"))?;
    }
    failovers(arguments.failovers).await
}

/// A log on Redis whose primary is killed again and again: nothing that was acknowledged is lost or doubled.
async fn failovers(rounds: usize) -> Result<()> {
    if rounds == 0 {
        return Ok(());
    }
    let mut servers = Failovers::new(RedisAck::Auto, REPLICA_PAUSE).await;
    let mut acknowledged = 0;
    for number in 1..=rounds {
        let found = servers.round().await;
        ensure!((found.lost, found.doubled) == (0, 0), "failover {number}: {found:?}");
        acknowledged += found.acknowledged;
        if number.is_multiple_of(10) || number == rounds {
            eprintln!(
                "chaos: {number} of {rounds} failovers, {acknowledged} events acknowledged, 0 lost, 0 doubled"
            );
        }
    }
    // The same run must be able to see a loss.
    let found = Failovers::new(RedisAck::Memory, REPLICA_PAUSE).await.round().await;
    ensure!(found.lost > 0, "events that were acknowledged from memory are all there: {found:?}");
    eprintln!("chaos: acknowledged from memory, {} of {} events were lost", found.lost, found.acknowledged);
    Ok(())
}

/// Kills, swaps and decisions on dead letters.
async fn storm(scenario: &Scenario, folder: &Path) -> Result<()> {
    let seed = scenario.seed;
    eprintln!("chaos: seed {seed}; a quiet run first");
    let quiet = scenario.quiet(&folder.join("quiet")).await?;
    let uploads = scenario.uploads()?.len();
    let mut hear = |heard: Heard| {
        if let Heard::Round(storm) = heard
            && (storm.uploads.is_multiple_of(20) || storm.uploads == uploads)
        {
            eprintln!(
                "chaos: {} of {uploads} uploads, {} kills, {} rounds of swaps",
                storm.uploads, storm.kills, storm.swaps
            );
        }
        Ok(())
    };
    let (stormy, storm) = scenario.stormy(&folder.join("stormy"), &mut hear).await?;
    if let Some(difference) = difference(&quiet, &stormy) {
        bail!("after {} kills the store differs from a quiet run's\n{difference}", storm.kills);
    }
    eprintln!(
        "chaos: {} kills and {} rounds of swaps left the store of a quiet run (--seed {seed})",
        storm.kills, storm.swaps
    );
    Ok(())
}

/// Swaps of plugins while events come as fast as they are taken.
async fn swaps(scenario: &Scenario, plugins: &[String], folder: &Path) -> Result<()> {
    let plugins: Vec<&str> = plugins.iter().map(String::as_str).collect();
    for beside in side_by_side(&plugins) {
        let folder = folder.join(beside.join("-"));
        std::fs::create_dir_all(&folder)?;
        swaps_of(scenario, &beside, &folder).await?;
    }
    Ok(())
}

/// Of those that are swapped side by side.
async fn swaps_of(scenario: &Scenario, plugins: &[&str], folder: &Path) -> Result<()> {
    let (rounds, names) = (scenario.swaps, plugins.join(", "));
    eprintln!("chaos: {rounds} swaps of each of {names} at full rate");
    let said = |swaps: usize| {
        if swaps.is_multiple_of(50) {
            eprintln!("chaos: {swaps} swaps");
        }
    };
    let found = at_full_rate(&scenario.host, plugins, rounds, folder, said).await?;
    if let Some(difference) = difference(&found.quiet, &found.swapped) {
        bail!("after {} swaps of {names} the store differs from a quiet run's\n{difference}", found.swaps);
    }
    for refusal in &found.refused {
        eprintln!("chaos: deployed again, as it was refused: {refusal}");
    }
    eprintln!(
        "chaos: {} swaps of {names} during {} events left the store of a quiet run; {} candidates were refused first",
        found.swaps,
        found.events,
        found.refused.len()
    );
    Ok(())
}

/// A shorter run, cut at many moments.
async fn cuts(scenario: &Scenario, count: usize, folder: &Path) -> Result<()> {
    let mut scenario = Scenario { swaps: CUT_SWAPS, resolves: CUT_RESOLVES, ..without_kills(scenario) };
    let in_play = &mut scenario.in_play;
    *in_play = InPlay {
        flights: CUT_EVENTS,
        chaotic_events: CUT_EVENTS,
        flaky_every: 50,
        bad_every: 60,
        poison_every: 120,
        shy_every: 60,
    };
    std::fs::create_dir_all(folder)?;
    eprintln!("chaos: a run that is to be cut");
    let quiet = scenario.quiet(&folder.join("quiet")).await?;
    let run = Journalled::run(&scenario, folder).await?;
    if let Some(difference) = difference(&quiet, &run.dump) {
        bail!("before any cut the store differs from a quiet run's\n{difference}");
    }
    for (number, cut) in (1_u64..).zip(run.cuts(count, scenario.seed)) {
        for unsynced in [Unsynced::Dropped, Unsynced::Torn(scenario.seed.wrapping_add(number))] {
            let image = folder.join("image");
            run.goes_on(cut, unsynced, &image, &quiet).await?;
            std::fs::remove_dir_all(&image)?;
        }
        if number.is_multiple_of(10) {
            eprintln!(
                "chaos: {number} of {count} power cuts, each with what no sync covers dropped and torn"
            );
        }
    }
    eprintln!(
        "chaos: {count} power cuts in a run of {} records ended in the store of a quiet run (--seed {})",
        run.records().len(),
        scenario.seed
    );
    Ok(())
}
