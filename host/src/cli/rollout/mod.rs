//! `millrace rollout …`: a new version on its way through the fleet.

mod component;
mod follow;
mod plan;
mod settings;
mod start;

use clap::{Args, Subcommand};

use super::fleet::{SignArgs, change};
use super::{CliError, Output};

pub(super) use plan::PlanArgs;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace rollout start board --artifact board.wasm --build-key build.pem --key release.pem
  millrace rollout status board --watch
  millrace rollout advance board --key release.pem
  millrace rollout halt board --key release.pem --reason 'the lag grows'
  millrace rollout rollback board --key release.pem

Ask the origin: the host with `control.sink`. All of them need a token with the right admin.")]
pub(super) struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
}

const START: &str = "\
Examples:
  millrace rollout start board --artifact board.wasm --build-key build.pem --key release.pem
                                                      every host at once, without a gate
  millrace rollout start board --artifact sha256:9f86… --plan plan.toml --key release.pem
  millrace rollout start board --artifact board.wasm --wave role=canary:100:10m --wave all:25:1h --key release.pem
                                                      hosts with a label, then a quarter, then all
  millrace rollout start board --artifact board.wasm --settings board.toml --config board.json --key release.pem
  millrace rollout start board --artifact board.wasm --plan plan.toml --key release.pem --dry-run

A wave is LABEL=VALUE[,LABEL=VALUE…] or `all`, then how many percent of those hosts (100), then how long it must stay
healthy (0s). A last wave of everybody is added where there is none.

A plan file:
  automatic = true               # false: each wave waits for `millrace rollout advance`

  [[waves]]
  labels = { role = \"canary\" }   # hosts with each of these; without, every host
  soak = \"10m\"                   # healthy for that long before the next wave

  [[waves]]
  percent = 25                   # of a hundred, chosen by a hash of host and rollout
  soak = \"1h\"

  [[waves]]                      # the last one takes every host

  [gate]                         # what each wave must hold against the version before; all of it may be left out
  events_min = 100               # fewer events say nothing; 0 for plugins without traffic
  traps_per_million_max = 0
  errors_per_million_max = 1000
  time_percent_max = 200         # time for an event, in percent of before
  lag_events_max = 100000
  unavailable_percent_max = 0    # hosts of a wave that may be silent or quarantined
  wait_max = \"1h\"                # how much longer than its soak time a wave may take

A settings file, all of it optional:
  grants = [\"http\", \"clock\"]
  http_hosts = [\"api.example.com\"]
  memory_bytes_max = 268435456   # also call_ms_max, state_bytes_max, lanes, env, read_dir, channels

What is not given stays as the version has it that most hosts run.";

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Deploy a version to the fleet, wave by wave or to every host at once
    #[command(after_help = START)]
    Start(Box<start::StartArgs>),
    /// How far rollouts are, and what they wait for
    #[command(after_help = "\
Examples:
  millrace rollout status
  millrace rollout status board --json
  millrace rollout status board --watch     until it is over; exit code 1 when it is halted or rolled back")]
    Status(follow::StatusArgs),
    /// Go on to the next wave, whatever the gate says; after the last one it is complete
    #[command(after_help = "Examples:\n  millrace rollout advance board --key release.pem")]
    Advance(ChangeArgs),
    /// Stop where it is: waves that have the new version keep it
    #[command(
        after_help = "Examples:\n  millrace rollout halt board --key release.pem --reason 'the lag grows'"
    )]
    Halt(ChangeArgs),
    /// Every host goes back to the version before, also after the end of a rollout
    #[command(
        after_help = "Examples:\n  millrace rollout rollback board --key release.pem --reason 'wrong totals'\n  millrace rollout rollback board --key release.pem --dry-run"
    )]
    Rollback(ChangeArgs),
}

#[derive(Debug, Args)]
struct ChangeArgs {
    /// The plugin's name
    plugin: String,
    #[command(flatten)]
    sign: SignArgs,
}

pub(super) async fn run(args: RolloutArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        RolloutCommand::Start(args) => start::start(&args, output).await?,
        RolloutCommand::Status(args) => follow::status(&args, output).await?,
        RolloutCommand::Advance(args) => {
            change(&args.plugin, &args.sign, output, |now| now.advance()).await?
        }
        RolloutCommand::Halt(args) => change(&args.plugin, &args.sign, output, |now| now.halt()).await?,
        RolloutCommand::Rollback(args) => {
            change(&args.plugin, &args.sign, output, |now| now.roll_back()).await?
        }
    }
    output.flush()
}
