//! The long form of what the suite runs short: live queries against a model, and against writers at full speed.
//! `cargo xtask soak [--steps N] [--races N] [--minutes N] [--seed N]`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use millrace_tests::model::{Kind, Tally, again, run};
use millrace_tests::race::race;

/// Drives live queries at random and compares what clients have with what their queries mean.
#[derive(Debug, Parser)]
struct Arguments {
    /// Steps of the model, in worlds of 600.
    #[arg(long, default_value_t = 1_000_000)]
    steps: usize,
    /// Subscriptions and moved windows against writers at full speed.
    #[arg(long, default_value_t = 100_000)]
    races: usize,
    /// Ends the model after so many minutes, whatever is left of its steps.
    #[arg(long)]
    minutes: Option<u64>,
    /// The first world's; the others count up from it. Printed, so that a failure can be run again.
    #[arg(long)]
    seed: Option<u64>,
    /// Every world over the embedded store, not one in ten.
    #[arg(long, conflicts_with = "memory")]
    store: bool,
    /// Every world in memory.
    #[arg(long)]
    memory: bool,
}

const WORLD_STEPS: usize = 600;
/// Every so many worlds, one is over the embedded store.
const STORE_EVERY: u64 = 10;
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.steps > 0 {
        model(&arguments)?;
    }
    if arguments.races > 0 {
        races(arguments.races)?;
    }
    Ok(())
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn model(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| rand::random::<u64>() >> 16);
    say(&format!("model: {} steps from seed {seed}", arguments.steps))?;
    let (begun, mut shown) = (Instant::now(), Instant::now());
    let until = arguments.minutes.map(|minutes| begun + Duration::from_secs(60 * minutes));
    let (mut tally, mut worlds) = (Tally::default(), [0_usize; 2]);
    let mut next = seed;
    while tally.steps < arguments.steps && until.is_none_or(|until| Instant::now() < until) {
        let kind = match (arguments.store, arguments.memory) {
            (true, _) => Kind::Store,
            (_, true) => Kind::Memory,
            _ if next.is_multiple_of(STORE_EVERY) => Kind::Store,
            _ => Kind::Memory,
        };
        let steps = WORLD_STEPS.min(arguments.steps - tally.steps);
        match run(kind, next, steps) {
            Ok(ran) => tally += ran,
            Err(why) => bail!("{why}\nonce more: {}", again(kind, next, steps)),
        }
        worlds[usize::from(kind == Kind::Store)] += 1;
        next += 1;
        if shown.elapsed() >= PROGRESS_EVERY {
            shown = Instant::now();
            say(&report(&tally, worlds, begun.elapsed()))?;
        }
    }
    say(&format!("model: no divergence; {}", report(&tally, worlds, begun.elapsed())))
}

fn report(tally: &Tally, [memory, store]: [usize; 2], took: Duration) -> String {
    let Tally { steps, compared, resumed, reanchored } = tally;
    format!(
        "{steps} steps in {memory} worlds in memory and {store} over the store, {compared} arrays compared, \
         {resumed} cuts resumed, {reanchored} windows moved, {} s",
        took.as_secs()
    )
}

fn races(rounds: usize) -> Result<()> {
    say(&format!("race: {rounds} times against two writers"))?;
    let begun = Instant::now();
    let runtime = tokio::runtime::Runtime::new()?;
    let raced = runtime.block_on(race(rounds, |done| {
        // Where nobody reads this, it need not be said.
        let _ = say(&format!("race: {done} of {rounds}, {} s", begun.elapsed().as_secs()));
    }));
    say(&format!("race: no gap, nothing twice, nothing missing; {raced:?}, {} s", begun.elapsed().as_secs()))
}
