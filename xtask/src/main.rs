//! What a developer runs: `cargo xtask demo|test|bench|chaos|soak|guests`.

mod bench;
mod chaos;
mod code;
mod demo;
mod golden;
mod guests;
mod node;
mod paths;
mod projects;
mod run;
mod soak;
mod test;
mod web;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
What a developer of Millrace runs. Everything says what it is about to install.

  cargo xtask demo [--exit] [--rate N] [--port P] [--data DIR]
      builds guests and host, replays a month of flights into the sample plugins and leaves a
      page of departures open. --exit ends after the replay, --rate paces it (events a second),
      --data keeps the store in DIR
  cargo xtask test [FILTER…]
      builds the guests and runs every test, or those whose name holds a FILTER
  cargo xtask bench [SUITE…]
      runs the benchmarks in release: a table, and target/bench/SUITE.json
  cargo xtask chaos [--kills N] [--swaps N] [--cuts N] [--failovers N] [--resolves N] [--seed S] [--events N]
                    [--plugins A,B] [--keep DIR]
      kills a host at random moments (500), swaps its plugins and makes events fail meanwhile; then
      cuts the power of another one (100 times). Compares what they store with what a quiet run does.
      With --kills 0, plugins (--plugins; the sample ones) are swapped while events come as fast as
      they are taken: entries for turn-tracer, flights for the others. One that takes none of them
      fails the run. Plugins in JavaScript or Python are built where --plugins names one
  cargo xtask soak [--steps N] [--races N] [--minutes N] [--seed S] [--store|--memory]
      drives live queries at random against a model (1,000,000 steps, one world in ten over the
      embedded store), then subscribes against writers at full speed (100,000 times). A failure
      says the one command that repeats it
  cargo xtask guests
      builds every guest to target/guests. Those in JavaScript and Python need Node and Python, whose
      packages are installed once a machine; what did not change is not built again
  cargo xtask golden VERSION
      keeps the conformance kit's components, sample plugins and what they must do in
      tests/golden/VERSION, once, when a world is frozen

Build folders: $CARGO_TARGET_DIR, or ${XDG_CACHE_HOME:-~/.cache}/millrace/target. Guests: …/millrace/guests.
MILLRACE_GUEST_TOOLCHAIN=rustup|debian forces the way in which guests are built.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        return run::print(HELP);
    };
    if rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        return run::print(HELP);
    }
    match command.as_str() {
        "demo" => demo::run(rest),
        "test" => node::with(|| test::run(rest)),
        "bench" => bench::run(rest),
        "chaos" => chaos::run(rest),
        "soak" => soak::run(rest),
        "golden" => node::with(|| golden::run(rest)),
        "guests" => node::with(guests::build_all),
        "help" | "--help" | "-h" => run::print(HELP),
        other => bail!("there is no `cargo xtask {other}`; `cargo xtask help` lists what there is"),
    }
}
