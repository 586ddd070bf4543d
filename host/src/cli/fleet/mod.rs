//! `millrace fleet …`: what all hosts of a control feed are to run, who does, and what stands in the way.
//!
//! A change is made of what stands at the origin, signed here, and proposed to it; somebody who was quicker is not
//! overwritten.

mod changing;
mod operating;
mod proposing;
mod standing;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{Client, Connect};
use super::rollout::PlanArgs;
use super::{CliError, Output};

pub(super) use changing::{config_artifact, read_config};
pub(super) use proposing::{Author, SignArgs, change, new_id, propose, read_bounded, unfit};
pub(super) use standing::Standing;
pub(super) use status::{Fleet, host_table, nobody, progress};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace fleet status                                         who runs what, and what is missing
  millrace fleet status --wait --timeout 2m board               until every host runs what it should
  millrace fleet pause board --key release.pem --reason 'disk full'
  millrace fleet freeze --reason 'no changes before the weekend is over'
  millrace fleet trust trust.json --key root.pem

New versions come with `millrace rollout start`. Ask the origin: the host with `control.sink`.
All of them need a token with the right admin.")]
pub(super) struct FleetArgs {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    /// Who runs what: desired beside observed, and what is missing
    #[command(after_help = "\
Examples:
  millrace fleet status
  millrace fleet status board --json
  millrace fleet status --wait --timeout 2m board     0 once it is so, else who is missing and exit code 1

Converged means that every host that is part of the fleet runs what it should now, and that it has not stopped
by itself. With a rollout under way hosts beyond its wave should run the version before. With --wait, a fleet of
which no host talks is not.")]
    Status(status::StatusArgs),
    /// Every host: its labels, how far it has read, when it was last heard, and whether it has missed something
    #[command(after_help = "\
Examples:
  millrace fleet hosts
  millrace fleet hosts --json

STATE compares what a host should run with what the origin has marked: same, behind, ahead of the mark, or
differs. One that differs repairs itself; `millrace fleet resync` has it do so now.")]
    Hosts(LookArgs),
    /// Forget a host that will not come back: nobody waits for it any more
    #[command(after_help = "Examples:\n  millrace fleet forget host-3")]
    Forget(ForgetArgs),
    /// Stop a plugin on every host and forget its deployment; its tables stay readable
    #[command(
        after_help = "Examples:\n  millrace fleet remove board --key release.pem --reason 'nobody reads it'\n  millrace fleet remove board --key release.pem --dry-run"
    )]
    Remove(PluginArgs),
    /// Commit what was handled and stop, on every host
    #[command(after_help = "Examples:\n  millrace fleet pause board --key release.pem")]
    Pause(PluginArgs),
    /// Go on where it stopped, on every host
    #[command(after_help = "Examples:\n  millrace fleet resume board --key release.pem")]
    Resume(PluginArgs),
    /// Give a plugin another configuration: the version that hosts run, deployed anew
    #[command(after_help = "\
Examples:
  millrace fleet config board --config board.json --key release.pem           every host at once
  millrace fleet config board --config board.json --wave zone=a:100:10m --key release.pem
  millrace fleet config board --no-config --key release.pem

The file is a JSON object of texts: the answers to the plugin's `config.get`. Plans and waves are those of
`millrace rollout start`. While a rollout is under way it is refused.")]
    Config(ConfigArgs),
    /// Give all hosts another list of trusted keys
    #[command(after_help = "\
Examples:
  millrace keys trust new-release.pem.pub --file trust.json
  millrace fleet trust trust.json --key root.pem

The list replaces the one before as a whole, so it must have a root key. A root key of the list before signs it.
Its revision is above that of the file and that of the feed; `--revision` gives another one.")]
    Trust(TrustArgs),
    /// Let nothing new out; what stops something or takes it back still goes
    #[command(
        after_help = "Examples:\n  millrace fleet freeze --reason 'an incident is looked into'\n  millrace fleet unfreeze"
    )]
    Freeze(FreezeArgs),
    /// End a freeze
    #[command(after_help = "Examples:\n  millrace fleet unfreeze --reason 'it is understood'")]
    Unfreeze(FreezeArgs),
    /// Bring what this host knows of the fleet back in line with the fleet's snapshot, now
    #[command(
        after_help = "Examples:\n  millrace fleet resync\n  millrace fleet resync --url http://host-3:7070"
    )]
    Resync(LookArgs),
    /// Events of the feed that this host has set aside, the newest first, and why
    #[command(
        after_help = "Examples:\n  millrace fleet quarantine\n  millrace fleet quarantine --json --url http://host-3:7070"
    )]
    Quarantine(LookArgs),
    /// What waits for the feed at the origin, and what the feed does not take
    #[command(after_help = "\
Examples:
  millrace fleet outbox                                         what waits, and dead letters
  millrace fleet outbox retry evt_01KJN0000000000000000000AB     try it once more
  millrace fleet outbox discard evt_01KJN0000000000000000000AB   give it up; what stood before stands again")]
    Outbox(operating::OutboxArgs),
}

#[derive(Debug, Args)]
struct LookArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct ForgetArgs {
    /// The host's name
    host: String,
    #[command(flatten)]
    look: LookArgs,
}

#[derive(Debug, Args)]
struct PluginArgs {
    /// The plugin's name
    plugin: String,
    #[command(flatten)]
    sign: SignArgs,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The plugin's name
    plugin: String,
    /// The new configuration: a file with a JSON object of texts
    #[arg(long, value_name = "FILE", required_unless_present = "no_config", conflicts_with = "no_config")]
    config: Option<PathBuf>,
    /// Take the configuration away
    #[arg(long)]
    no_config: bool,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    sign: SignArgs,
}

#[derive(Debug, Args)]
struct TrustArgs {
    /// The list of trusted keys, a file of `millrace keys trust`
    file: PathBuf,
    /// The list's revision in the feed
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    #[command(flatten)]
    sign: SignArgs,
}

#[derive(Debug, Args)]
struct FreezeArgs {
    /// Why, for whoever meets it
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    look: LookArgs,
}

pub(super) async fn run(args: FleetArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        FleetCommand::Status(args) => status::status(&args, output).await?,
        FleetCommand::Hosts(args) => operating::hosts(&args, output).await?,
        FleetCommand::Forget(args) => operating::forget(&args, output).await?,
        FleetCommand::Remove(args) => change(&args.plugin, &args.sign, output, |now| now.remove()).await?,
        FleetCommand::Pause(args) => change(&args.plugin, &args.sign, output, |now| now.pause()).await?,
        FleetCommand::Resume(args) => change(&args.plugin, &args.sign, output, |now| now.resume()).await?,
        FleetCommand::Config(args) => changing::config(&args, output).await?,
        FleetCommand::Trust(args) => changing::trust(&args, output).await?,
        FleetCommand::Freeze(args) => operating::freeze(&args, true, output).await?,
        FleetCommand::Unfreeze(args) => operating::freeze(&args, false, output).await?,
        FleetCommand::Resync(args) => operating::resync(&args, output).await?,
        FleetCommand::Quarantine(args) => operating::quarantine(&args, output).await?,
        FleetCommand::Outbox(args) => operating::outbox(&args, output).await?,
    }
    output.flush()
}

/// A list of an answer, read.
fn rows<T: DeserializeOwned>(client: &Client, answer: Value, name: &str) -> Result<Vec<T>, CliError> {
    let items = super::plugin::items(client, answer, name)?;
    serde_json::from_value(Value::Array(items)).map_err(|error| client.unexpected(&error.to_string()))
}
