//! The command line.
//!
//! Promises: every command's `--help` has examples; with `--json` standard
//! output is for scripts and nothing else is written to it; an error is one
//! sentence and a next step on standard error, with a documented exit code.
//! Deliberately absent: any way into the store. `serve` starts a host, every
//! other command is an HTTP client like another, or works on files of its user (`keys`,
//! `plugin new`, `build`, `test` and `check`).

mod artifact;
mod backoff;
mod channel;
mod client;
mod deploy;
mod error;
mod fleet;
mod frames;
mod groups;
mod keys;
mod letters;
mod output;
mod plugin;
mod progress;
mod publish;
mod query;
mod rebuild;
mod rollout;
mod serve;
mod settings;
mod spans;
mod sse;
mod state;
mod status;
mod tail;
pub mod toolchain;
mod version;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use backoff::Backoff;
pub use client::Connect;
pub use error::{CliError, Exit};
pub use output::{Align, Output, aligned, printable};
pub use plugin::embedded_paths;
pub use publish::{
    Answers, AnswersEnd, Chunk, ChunkLimits, Chunker, Pace, PublishReport, Window, publish_reader,
};
pub use sse::{SseFrame, SseParser};

/// Durable event streams and sandboxed WebAssembly processors in one binary.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, after_help = EXAMPLES, after_long_help = EXAMPLES_AND_EXITS)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a host: the log, the plugins and the HTTP edge
    Serve(serve::ServeArgs),
    /// Publish events from a file, standard input or flags
    Publish(publish::PublishArgs),
    /// Print events, and follow the stream
    Tail(tail::TailArgs),
    /// Ask for rows of a table
    Query(query::QueryArgs),
    /// Say whether the host is ready, and how its plugins are
    Status(status::StatusArgs),
    /// Write plugins, deploy them and look after them
    Plugin(plugin::PluginArgs),
    /// Look at what plugins keep
    State(state::StateArgs),
    /// Events that a plugin could not handle: look at them, replay or discard them
    DeadLetter(letters::DeadLetterArgs),
    /// Groups of consumers: make them, read from them, look after them
    Group(groups::GroupArgs),
    /// Channels between who submits a process and who executes it: send, read, follow
    Channel(channel::ChannelArgs),
    /// What a fleet runs, by its content: store it, read it, look after it
    Artifact(artifact::ArtifactArgs),
    /// New versions on their way through a fleet: start, follow, stop, take back
    Rollout(Box<rollout::RolloutArgs>),
    /// What all hosts of a fleet are to run, who does, and what is in the way
    Fleet(Box<fleet::FleetArgs>),
    /// Keys that sign, and the list of those that are believed
    Keys(keys::KeysArgs),
    /// Do an event once more in an instance of its own, without any effect
    Replay(letters::ReplayArgs),
    /// Show every setting, its value, and where the value came from
    Config(settings::ConfigArgs),
    /// Print the version
    Version(version::VersionArgs),
}

const EXAMPLES: &str = "\
Examples:
  millrace serve --plugins-dir ./plugins     run a host
  millrace publish events.ndjson.gz          send it events
  millrace tail --follow                     watch them
  millrace query flights --order key:asc     ask for rows
  millrace plugin deploy board.wasm          deploy a plugin";

const EXAMPLES_AND_EXITS: &str = "\
Examples:
  millrace serve --plugins-dir ./plugins     run a host
  millrace publish events.ndjson.gz          send it events
  millrace tail --follow                     watch them
  millrace query flights --order key:asc     ask for rows
  millrace plugin deploy board.wasm          deploy a plugin

Environment:
  MILLRACE_URL                 the host that commands talk to
  MILLRACE_TOKEN               the bearer token they show
  MILLRACE_SECTION__KEY        any setting of `millrace config`

Exit codes:
  0  it worked
  1  it failed, and no other code fits
  2  the command line is wrong
  3  the host cannot be reached, or went away
  4  the host refused what was asked
  5  the token is missing, wrong, or lacks the right
  6  the configuration is wrong";

/// Reads the command line, does what it says, and answers the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Where even the message cannot be written, the code is all there is.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() };
        }
    };
    match run(cli, &mut Output::stdout()) {
        Ok(()) => Exit::Fine.into(),
        Err(error) => {
            if error.exit() != Exit::Fine {
                // As above; `eprintln!` would panic.
                let _ = writeln!(io::stderr(), "{error}");
            }
            error.exit().into()
        }
    }
}

/// The same without the process around it: what a parsed command line says is written to `output`.
///
/// Not inside an async runtime: commands bring their own.
pub fn run(cli: Cli, output: &mut Output) -> Result<(), CliError> {
    match cli.command {
        Command::Serve(args) => serve::run(args, output),
        Command::Publish(args) => block_on(publish::run(args, output)),
        Command::Tail(args) => block_on(tail::run(args, output)),
        Command::Query(args) => block_on(query::run(args, output)),
        Command::Status(args) => block_on(status::run(args, output)),
        Command::Plugin(args) => plugin::run(args, output),
        Command::State(args) => block_on(state::run(args, output)),
        Command::DeadLetter(args) => block_on(letters::run(args, output)),
        Command::Group(args) => block_on(groups::run(args, output)),
        Command::Channel(args) => block_on(channel::run(args, output)),
        Command::Artifact(args) => block_on(artifact::run(args, output)),
        Command::Rollout(args) => block_on(rollout::run(*args, output)),
        Command::Fleet(args) => block_on(fleet::run(*args, output)),
        Command::Keys(args) => keys::run(args, output),
        Command::Replay(args) => block_on(letters::replay(args, output)),
        Command::Config(args) => settings::run(&args, output),
        Command::Version(args) => version::run(&args, output),
    }
}

/// Clients need one thread: what they wait for is the network.
fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
        CliError::failed(format!("the async runtime does not start: {e}"), "look at the process limits")
    })?;
    let ended = runtime.block_on(work);
    // A thread that waits for standard input must not hold the process.
    runtime.shutdown_background();
    ended
}
