//! `millrace dead-letter …` and `millrace replay`: events that a plugin could not handle.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, Connect};
use super::plugin::{items, show_fields, text};
use super::{Align, CliError, Output};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace dead-letter list flight-board
  millrace dead-letter show flight-board 1234
  millrace dead-letter replay flight-board 1234
  millrace dead-letter discard flight-board --all

A letter's number is the position of its event.")]
pub(super) struct DeadLetterArgs {
    #[command(subcommand)]
    command: DeadLetterCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLetterCommand {
    /// Events that could not be handled, newest first
    #[command(
        after_help = "Examples:\n  millrace dead-letter list flight-board\n  millrace dead-letter list flight-board --limit 5 --json"
    )]
    List(ListArgs),
    /// One of them: reason, attempts, backtrace, the event, and how many wait behind it
    #[command(
        after_help = "Examples:\n  millrace dead-letter show flight-board 1234\n  millrace dead-letter show flight-board 1234 --core-dump core.wasm"
    )]
    Show(ShowArgs),
    /// Handle it again, once; on success its ordering key goes on
    #[command(
        after_help = "Examples:\n  millrace dead-letter replay flight-board 1234\n  millrace dead-letter replay flight-board --all"
    )]
    Replay(DecideArgs),
    /// Give it up; its ordering key goes on without it
    #[command(
        after_help = "Examples:\n  millrace dead-letter discard flight-board 1234\n  millrace dead-letter discard flight-board --all"
    )]
    Discard(DecideArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The plugin's name
    plugin: String,
    /// Most letters
    #[arg(long, short = 'n', default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The plugin's name
    plugin: String,
    /// The letter's number
    letter: u64,
    /// Do the event once more and write the guest's memory and stack to this file
    #[arg(long, value_name = "FILE")]
    core_dump: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct DecideArgs {
    /// The plugin's name
    plugin: String,
    /// The letter's number
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    letter: Option<u64>,
    /// All there are, the oldest first
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// With the right admin: also those of other tenants
    #[arg(long)]
    all_tenants: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace replay flight-board --event 01J9ZK5T1W6B9V8E4N3M2C7X0A
  millrace replay flight-board --event 1234 --core-dump core.wasm

The event is handled in an instance of its own, from the state that is committed now. Nothing is committed.")]
pub(super) struct ReplayArgs {
    /// The plugin's name
    plugin: String,
    /// The event's id or position
    #[arg(long, value_name = "ID")]
    event: String,
    /// Write the guest's memory and stack to this file, should it fall
    #[arg(long, value_name = "FILE")]
    core_dump: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: DeadLetterArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        DeadLetterCommand::List(args) => list(&args, output).await?,
        DeadLetterCommand::Show(args) => show(&args, output).await?,
        DeadLetterCommand::Replay(args) => decide(&args, "replay", output).await?,
        DeadLetterCommand::Discard(args) => decide(&args, "discard", output).await?,
    }
    output.flush()
}

impl Common {
    fn query<'a>(&self, mut more: Vec<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
        if self.all_tenants {
            more.push(("all_tenants", "true"));
        }
        more
    }
}

async fn letters(
    client: &Client,
    plugin: &str,
    limit: &str,
    common: &Common,
) -> Result<Vec<Value>, CliError> {
    let query = common.query(vec![("limit", limit)]);
    let answer: Value = client.get(&["v1", "plugins", plugin, "dead-letters"], &query).await?;
    items(client, answer, "dead_letters")
}

async fn list(args: &ListArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let letters = letters(&client, &args.plugin, &args.limit.to_string(), &args.common).await?;
    if args.common.json {
        return output.json(&json!({ "dead_letters": letters }));
    }
    if letters.is_empty() {
        return output.line("no dead letters");
    }
    let rows: Vec<Vec<String>> = letters
        .iter()
        .map(|letter| {
            let at = |path: &str| text(letter.pointer(path));
            let waits = match at("/held").as_str() {
                "true" => format!("holds its key, {} behind", at("/parked_behind")),
                _ => "key went on".into(),
            };
            let key = format!("{}/{}", at("/event/aggregate"), at("/event/agg_id"));
            vec![at("/letter"), at("/at"), at("/tenant"), key, at("/reason"), waits, at("/message")]
        })
        .collect();
    let head = [
        ("LETTER", Align::Right),
        ("AT", Align::Left),
        ("TENANT", Align::Left),
        ("KEY", Align::Left),
        ("REASON", Align::Left),
        ("STATE", Align::Left),
        ("MESSAGE", Align::Left),
    ];
    output.table(&head, &rows)
}

async fn show(args: &ShowArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let number = args.letter.to_string();
    let query = args.common.query(Vec::new());
    let letter: Value = client.get(&["v1", "plugins", &args.plugin, "dead-letters", &number], &query).await?;
    if args.common.json {
        output.json(&letter)?;
    } else {
        show_fields(&letter, "", output)?;
    }
    match &args.core_dump {
        Some(file) => core_dump(&client, &args.plugin, &number, file, args.common.json, output).await,
        None => Ok(()),
    }
}

async fn decide(args: &DecideArgs, verb: &str, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let mut numbers: Vec<String> = args.letter.iter().map(u64::to_string).collect();
    if args.all {
        let open = letters(&client, &args.plugin, "4096", &args.common).await?;
        // The oldest first: of one key, it is the one that holds it.
        numbers = open.iter().rev().map(|letter| text(letter.get("letter"))).collect();
    }
    let mut answers = Vec::new();
    let mut failed = 0;
    for number in numbers {
        let query = args.common.query(Vec::new());
        let address = client.address(&["v1", "plugins", &args.plugin, "dead-letters", &number, verb], &query);
        let answer: Value = client.json(client.request(Method::POST, address)).await?;
        let at = |name: &str| text(answer.get(name));
        if at("outcome") == "failed_again" {
            failed += 1;
        }
        if !args.common.json {
            output.line(&said(&number, &answer))?;
        }
        answers.push(answer);
    }
    if args.common.json {
        output.json(&json!({ "resolved": answers }))?;
    } else if answers.is_empty() {
        output.line("no dead letters")?;
    }
    output.flush()?;
    if failed == 0 {
        return Ok(());
    }
    Err(CliError::failed(
        format!("{failed} of {} failed again and stay dead letters", answers.len()),
        "deploy a version that can handle them, or discard them",
    ))
}

fn said(number: &str, answer: &Value) -> String {
    let at = |name: &str| text(answer.get(name));
    match at("outcome").as_str() {
        "replayed" if at("out_of_order") == "true" => {
            format!("{number} is handled, out of order: its key had gone on")
        }
        "replayed" => format!("{number} is handled; {} events of its key follow", at("released")),
        "discarded" => format!("{number} is discarded; {} events of its key follow", at("released")),
        _ => format!("{number} failed again ({}): {}", at("reason"), at("message")),
    }
}

/// `millrace replay`.
pub(super) async fn replay(args: ReplayArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let query = [("event", args.event.as_str())];
    let address = client.address(&["v1", "plugins", &args.plugin, "replay"], &query);
    let report: Value = client.json(client.request(Method::POST, address)).await?;
    if args.json {
        output.json(&report)?;
    } else {
        show_fields(&report, "", output)?;
    }
    if let Some(file) = &args.core_dump {
        core_dump(&client, &args.plugin, &args.event, file, args.json, output).await?;
    }
    output.flush()
}

async fn core_dump(
    client: &Client,
    plugin: &str,
    event: &str,
    file: &PathBuf,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let address =
        client.address(&["v1", "plugins", plugin, "replay"], &[("event", event), ("core_dump", "true")]);
    let response = client.send(client.request(Method::POST, address)).await?;
    let dump = response.bytes().await.map_err(|e| client.unreachable(&e))?;
    std::fs::write(file, &dump).map_err(|e| {
        CliError::failed(format!("{} cannot be written: {e}", file.display()), "name another file")
    })?;
    if quiet { Ok(()) } else { output.line(&format!("core dump: {} ({} bytes)", file.display(), dump.len())) }
}
