//! `millrace plugin …`: write plugins, deploy them and look after them.

mod build;
mod check;
mod differ;
mod embedded;
mod events;
mod new;
mod project;
mod test;
mod workbench;

pub use embedded::embedded_paths;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Connect};
use super::deploy::{self, DeployArgs, RollbackArgs};
use super::rebuild::{self, RebuildArgs};
use super::{Align, CliError, Output, printable};
use crate::event::Micros;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace plugin new --lang js hello             a project that builds, tests and runs
  millrace plugin build                           in its folder: target/hello.wasm
  millrace plugin deploy target/hello.wasm
  millrace plugin list
  millrace plugin pause hello")]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    #[command(flatten)]
    Project(ProjectCommand),
    #[command(flatten)]
    Host(Box<HostCommand>),
}

/// Works on files of its user.
#[derive(Debug, Subcommand)]
enum ProjectCommand {
    /// Begin a plugin: a folder with code, tests, recorded events and the SDK
    #[command(after_help = "\
Examples:
  millrace plugin new --lang rust hello
  millrace plugin new --lang js hello --dir plugins/hello
  millrace plugin new --lang python hello")]
    New(new::NewArgs),
    /// Build a project's component, with tools that are installed once a machine
    #[command(after_help = "\
Examples:
  millrace plugin build
  millrace plugin build plugins/hello

The first build for JavaScript or Python installs what their lists pin below ${XDG_CACHE_HOME:-~/.cache}/millrace/tools.
The component is in target/NAME.wasm of the project.")]
    Build(build::BuildArgs),
    /// Run a project's own tests, then its component over recorded events
    #[command(after_help = "\
Examples:
  millrace plugin test
  millrace plugin test --update        what comes out now is what is expected from now on
  millrace plugin test --no-native     only the component")]
    Test(test::TestArgs),
    /// Say what a host would say of a component, and whether it gives the same however its events come
    #[command(after_help = "\
Examples:
  millrace plugin check                                  the project in this folder
  millrace plugin check hello.wasm --grants clock --events events.ndjson
  millrace plugin check --json

It is handed its events in batches of 1, 7 and 1,000, with and without restarts, twice each; all have to give the same.
Exit code 4 means that something was found.")]
    Check(check::CheckArgs),
}

/// Asks a host.
#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Start a component as a plugin, or swap it in for the running version
    #[command(after_help = "\
Examples:
  millrace plugin deploy flight-board.wasm                from the oldest event that is held
  millrace plugin deploy flight-board.wasm --from tail    only what is published from now on
  millrace plugin deploy board-2.wasm --name flight-board refuse it should it be another plugin
  millrace plugin deploy board-2.wasm --confirm           show the differences, wait for `plugin confirm`
  millrace plugin deploy board-2.wasm --expect identical-rows

Over a running version the new one first handles the same events in its shadow, where nothing of it is
committed. The running version serves until the new one has taken over, and goes on if it is refused.
`millrace plugin show` has the report.
--from counts for the first deploy only; later ones go on where the plugin stands.")]
    Deploy(DeployArgs),
    /// Let a candidate that waits for it take over
    #[command(after_help = "Examples:\n  millrace plugin confirm flight-board")]
    Confirm(NameArgs),
    /// Give up a candidate that is in the shadow or waits
    #[command(after_help = "Examples:\n  millrace plugin abandon flight-board")]
    Abandon(NameArgs),
    /// Deploy an earlier version again; the state goes on from where it is
    #[command(after_help = "\
Examples:
  millrace plugin rollback flight-board               the last other version
  millrace plugin rollback flight-board --to 1.2.0    a version or digest of `millrace plugin history`")]
    Rollback(RollbackArgs),
    /// Fill the plugin's tables anew beside those that are served
    #[command(after_help = "\
Examples:
  millrace plugin rebuild flight-board --wait             with the version that runs
  millrace plugin rebuild flight-board board-2.wasm       with another one: its tables, its ordering key
  millrace plugin rebuild flight-board --lanes 8 --wait   other lanes

Readers see the tables as they were until the new ones have everything; then those take their place at once.
What the events have emitted is not emitted again.")]
    Rebuild(RebuildArgs),
    /// List the plugins
    #[command(after_help = "Examples:\n  millrace plugin list\n  millrace plugin list --json")]
    List(JsonArgs),
    /// Show one plugin: state, tasks, counters, the last refusal
    #[command(
        after_help = "Examples:\n  millrace plugin show flight-board\n  millrace plugin show flight-board --json"
    )]
    Show(NameArgs),
    /// Commit what was handled and stop; stays paused over restarts
    #[command(after_help = "Examples:\n  millrace plugin pause flight-board")]
    Pause(NameArgs),
    /// Go on where it stopped
    #[command(after_help = "Examples:\n  millrace plugin resume flight-board")]
    Resume(NameArgs),
    /// Stop it and forget its deployment and checkpoints; its tables stay readable
    #[command(after_help = "Examples:\n  millrace plugin remove flight-board")]
    Remove(NameArgs),
    /// Former and present deployments, newest first
    #[command(
        after_help = "Examples:\n  millrace plugin history flight-board\n  millrace plugin history flight-board --json"
    )]
    History(NameArgs),
}

#[derive(Debug, Args)]
struct JsonArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// The plugin's name
    pub(super) name: String,
    /// Write JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) connect: Connect,
}

/// Not inside an async runtime: guests that run here bring their own.
pub(super) fn run(args: PluginArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        PluginCommand::Project(ProjectCommand::New(args)) => new::run(&args, output)?,
        PluginCommand::Project(ProjectCommand::Build(args)) => build::run(&args, output)?,
        PluginCommand::Project(ProjectCommand::Test(args)) => test::run(&args, output)?,
        PluginCommand::Project(ProjectCommand::Check(args)) => check::run(&args, output)?,
        PluginCommand::Host(command) => super::block_on(ask(*command, output))?,
    }
    output.flush()
}

async fn ask(command: HostCommand, output: &mut Output) -> Result<(), CliError> {
    match command {
        HostCommand::Deploy(args) => deploy::deploy(&args, output).await,
        HostCommand::Confirm(args) => change(&args, "confirm", "running the new version", output).await,
        HostCommand::Abandon(args) => deploy::abandon(&args, output).await,
        HostCommand::Rollback(args) => deploy::rollback(&args, output).await,
        HostCommand::Rebuild(args) => rebuild::rebuild(&args, output).await,
        HostCommand::List(args) => {
            let plugins = list(&Client::new(&args.connect)?).await?;
            if args.json { output.json(&json!({ "plugins": plugins })) } else { show_list(&plugins, output) }
        }
        HostCommand::Show(args) => {
            let plugin: Value = Client::new(&args.connect)?.get(&["v1", "plugins", &args.name], &[]).await?;
            if args.json { output.json(&plugin) } else { show_fields(&plugin, "", output) }
        }
        HostCommand::Pause(args) => change(&args, "pause", "paused", output).await,
        HostCommand::Resume(args) => change(&args, "resume", "resumed", output).await,
        HostCommand::Remove(args) => remove(&args, output).await,
        HostCommand::History(args) => history(&args, output).await,
    }
}

/// All plugins, as the host describes them.
pub(super) async fn list(client: &Client) -> Result<Vec<Value>, CliError> {
    let answer: Value = client.get(&["v1", "plugins"], &[]).await?;
    items(client, answer, "plugins")
}

/// One line for each plugin.
pub(super) fn show_list(plugins: &[Value], output: &mut Output) -> Result<(), CliError> {
    if plugins.is_empty() {
        return output.line("no plugins; deploy one with `millrace plugin deploy FILE`");
    }
    let rows: Vec<Vec<String>> = plugins
        .iter()
        .map(|plugin| {
            let at = |path: &str| text(plugin.pointer(path));
            let refusal = at("/last_refusal/message");
            let message = at("/message");
            let message = if message.is_empty() && !refusal.is_empty() {
                format!("refused: {refusal}")
            } else {
                message
            };
            vec![
                at("/name"),
                at("/deployment/version"),
                at("/state"),
                at("/measures/code"),
                at("/lag_events"),
                at("/counters/events"),
                at("/waiting/parked_events"),
                at("/waiting/held_keys"),
                at("/waiting/dead_letters"),
                message,
            ]
        })
        .collect();
    let head = [
        ("PLUGIN", Align::Left),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
        ("CODE", Align::Left),
        ("LAG", Align::Right),
        ("EVENTS", Align::Right),
        ("PARKED", Align::Right),
        ("HELD KEYS", Align::Right),
        ("DEAD LETTERS", Align::Right),
        ("MESSAGE", Align::Left),
    ];
    output.table(&head, &rows)
}

async fn change(args: &NameArgs, verb: &str, done: &str, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let address = client.address(&["v1", "plugins", &args.name, verb], &[]);
    let plugin: Value = client.json(client.request(Method::POST, address)).await?;
    if args.json { output.json(&plugin) } else { output.line(&format!("{} is {done}", args.name)) }
}

async fn remove(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let address = client.address(&["v1", "plugins", &args.name], &[]);
    client.send(client.request(Method::DELETE, address)).await?;
    if args.json {
        return output.json(&json!({ "removed": args.name }));
    }
    output.line(&format!("{} is removed; its tables stay readable", args.name))
}

async fn history(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let answer: Value = client.get(&["v1", "plugins", &args.name, "history"], &[]).await?;
    if args.json {
        return output.json(&answer);
    }
    let rows: Vec<Vec<String>> = items(&client, answer, "deployments")?
        .iter()
        .map(|d| {
            vec![
                time(d.get("deployed_at")),
                text(d.get("version")),
                text(d.get("digest")),
                text(d.get("deployed_by")),
                deploy::proof(d),
            ]
        })
        .collect();
    let head = [
        ("DEPLOYED", Align::Left),
        ("VERSION", Align::Left),
        ("DIGEST", Align::Left),
        ("BY", Align::Left),
        ("PROVED", Align::Left),
    ];
    output.table(&head, &rows)
}

/// A list, whether it stands alone or under its name.
pub(super) fn items(client: &Client, answer: Value, name: &str) -> Result<Vec<Value>, CliError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Bare(Vec<Value>),
        Named(serde_json::Map<String, Value>),
    }
    match serde_json::from_value(answer) {
        Ok(List::Bare(items)) => Ok(items),
        Ok(List::Named(mut fields)) => match fields.remove(name) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(client.unexpected(&format!("there is no list `{name}`"))),
        },
        Err(error) => Err(client.unexpected(&error.to_string())),
    }
}

/// Each value with its path, one a line.
pub(super) fn show_fields(value: &Value, path: &str, output: &mut Output) -> Result<(), CliError> {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| show_fields(value, &below(name), output))
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| show_fields(value, &below(&index.to_string()), output)),
        Value::Null => Ok(()),
        value if path.ends_with("deployed_at") || path.ends_with(".at") => {
            output.line(&format!("{:<32} {}", printable(path), time(Some(value))))
        }
        value => output.line(&format!("{:<32} {}", printable(path), text(Some(value)))),
    }
}

pub(super) fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => printable(text),
        Some(other) => printable(&other.to_string()),
    }
}

/// A time, whether the host wrote it as text or as microseconds.
fn time(value: Option<&Value>) -> String {
    value.and_then(Value::as_i64).map_or_else(|| text(value), |micros| Micros(micros).to_string())
}
