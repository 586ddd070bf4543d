//! `millrace channel …`: logs between who submits a process and who executes it.

mod follow;
mod send;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{ANSWER_WAIT_MAX, Client, Connect};
use super::plugin::{items, text};
use super::{Align, CliError, Output, printable};

/// Entries of one page.
const PAGE_ENTRIES: u64 = 1_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace channel send job-7 prompt 'What is a mill race?' --create
  millrace channel follow job-7 answer
  millrace channel read job-7 answer --after 100
  millrace channel ls job-7")]
pub(super) struct ChannelArgs {
    #[command(subcommand)]
    command: ChannelCommand,
}

#[derive(Debug, Subcommand)]
enum ChannelCommand {
    /// Append entries: from the command line, or the lines of standard input as they come
    #[command(after_help = "\
Examples:
  millrace channel send job-7 prompt 'What is a mill race?'
  millrace channel send job-7 prompt hello --create --executor worker-1   make what is missing
  produce | millrace channel send job-7 answer --end                      one entry a line, then `end`
  millrace channel send job-7 answer --type error 'the model is gone'     say that you failed
  millrace channel send job-7 answer --sequence 1 a b c                   numbered: safe to send again
  millrace channel send job-7 answer '{\"score\":0.5}' --format json --reply-to 1

`end` and `error` close your half of the channel: nothing more is taken from you after them.
Entries that the host has no room for in its rate wait until it has.")]
    Send(send::SendArgs),
    /// Print what a channel has
    #[command(after_help = "\
Examples:
  millrace channel read job-7 answer                      everything that is there
  millrace channel read job-7 answer --after 40 -n 10     ten entries after position 40
  millrace channel read job-7 answer --wait-ms 10000      wait for the first, if there is none
  millrace channel read job-7 answer --json | jq .payload for scripts: one entry a line")]
    Read(ReadArgs),
    /// Print what a channel has and what comes, until it ends
    #[command(after_help = "\
Examples:
  millrace channel follow job-7 answer                everything, and then what comes
  millrace channel follow job-7 answer --after 40     from position 41 on
  millrace channel follow job-7 answer --json         for scripts: one entry a line

It ends when both sides have sent `end` or `error`, or when the process is closed. A lost connection is taken
up where it broke, until --give-up-after: no entry is left out or printed twice.")]
    Follow(follow::FollowArgs),
    /// The processes, or the channels of one
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  millrace channel ls\n  millrace channel ls job-7 --json"
    )]
    Ls(LsArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Speak as this party; needs a token with the right `admin`
    #[arg(long = "as", value_name = "NAME")]
    party: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct Which {
    /// The process
    process: String,
    /// The channel's name
    channel: String,
}

#[derive(Debug, Args)]
struct ReadArgs {
    #[command(flatten)]
    which: Which,
    /// Begin after this position, or after this cursor, as the host answers them
    #[arg(long, value_name = "PLACE", default_value = "0", value_parser = Cursor::read)]
    after: Cursor,
    /// Most entries; without it all of them
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// Wait so long where there is nothing
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait_ms: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// The channels of this one
    process: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Where a reader stands, as a host says it: `….<position>`, or a position alone.
#[derive(Clone, Debug)]
struct Cursor {
    text: String,
    position: u64,
}

impl Cursor {
    fn read(text: &str) -> Result<Self, String> {
        let position = text.rsplit('.').next().and_then(|position| position.parse().ok());
        let position =
            position.ok_or_else(|| "it is neither a position nor a cursor of a channel".to_owned())?;
        Ok(Self { text: text.to_owned(), position })
    }
}

#[derive(Deserialize)]
struct EntriesPage {
    entries: Vec<Box<RawValue>>,
    /// A host of before says a number.
    next: Value,
    #[serde(default)]
    oldest: u64,
    #[serde(default)]
    missed: u64,
}

/// What is shown of an entry.
#[derive(Deserialize)]
struct Shown {
    position: u64,
    sequence: u64,
    senderid: String,
    #[serde(default)]
    timestamp: String,
    #[serde(default)]
    r#type: String,
    inreplyto: Option<u64>,
    payload: Option<String>,
    error: Option<String>,
}

pub(super) async fn run(args: ChannelArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        ChannelCommand::Send(args) => send::run(args, output).await?,
        ChannelCommand::Read(args) => read(&args, output).await?,
        ChannelCommand::Follow(args) => follow::run(&args, output).await?,
        ChannelCommand::Ls(args) => ls(&args, output).await?,
    }
    output.flush()
}

impl Common {
    /// Parameters of a request, with the party in whose name it is made.
    fn query<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let party = self.party.as_deref().map(|party| ("as", party));
        more.iter().copied().chain(party).collect()
    }
}

impl Which {
    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = vec!["v1", "processes", self.process.as_str(), "channels", self.channel.as_str()];
        path.extend(rest);
        path
    }
}

async fn read(args: &ReadArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let (mut after, mut wait_ms) = (args.after.text.clone(), args.wait_ms);
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let [limit, wait] = [left.min(PAGE_ENTRIES), wait_ms].map(|n| n.to_string());
        let query = common.query(&[("after", &after), ("limit", &limit), ("wait_ms", &wait)]);
        let request = client.request(Method::GET, client.address(&args.which.path(&["entries"]), &query));
        let request = request.timeout(ANSWER_WAIT_MAX + Duration::from_millis(wait_ms));
        let body = client.send(request).await?.bytes().await.map_err(|e| client.unreachable(&e))?;
        let page: EntriesPage =
            serde_json::from_slice(&body).map_err(|e| client.unexpected(&e.to_string()))?;
        if page.missed > 0 {
            output.flush()?;
            say_missed(page.missed, page.oldest);
        }
        for entry in &page.entries {
            print(entry.get(), common.json, output)?;
        }
        if page.entries.is_empty() {
            break;
        }
        left = left.saturating_sub(page.entries.len() as u64);
        // Only who has seen nothing yet waits.
        (after, wait_ms) = (text(Some(&page.next)), 0);
    }
    Ok(())
}

fn say_missed(missed: u64, oldest: u64) {
    eprintln!("{missed} entries before position {oldest} were dropped by the channel");
}

/// An entry as one line.
fn print(entry: &str, json: bool, output: &mut Output) -> Result<(), CliError> {
    if json {
        return output.line(entry);
    }
    match serde_json::from_str::<Shown>(entry) {
        Ok(shown) => output.line(&shown.line()),
        // Shown as it came rather than left out.
        Err(_) => output.line(&printable(entry)),
    }
}

impl Shown {
    fn line(&self) -> String {
        let mut line = format!("{}  {}  {}#{}", self.position, self.timestamp, self.senderid, self.sequence);
        if let Some(answered) = self.inreplyto {
            line.push_str(&format!(" re {answered}"));
        }
        if !matches!(self.r#type.as_str(), "" | "data") {
            line.push_str(&format!("  {}", self.r#type));
        }
        for part in [self.error.clone(), self.payload.as_deref().map(readable)].into_iter().flatten() {
            if !part.is_empty() {
                line.push_str(&format!("  {part}"));
            }
        }
        printable(&line)
    }
}

/// A payload that is text as text, and another one as it came.
fn readable(payload: &str) -> String {
    let bytes = STANDARD.decode(payload).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.unwrap_or_else(|| format!("base64:{payload}"))
}

async fn ls(args: &LsArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    match &args.process {
        Some(process) => {
            let view: Value = client.get(&["v1", "processes", process], &common.query(&[])).await?;
            if common.json { output.json(&view) } else { channels(&client, view, output) }
        }
        None => processes(&client, common, output).await,
    }
}

fn channels(client: &Client, view: Value, output: &mut Output) -> Result<(), CliError> {
    let channels = items(client, view, "channels")?;
    if channels.is_empty() {
        return output.line("no channels");
    }
    let rows: Vec<Vec<String>> = channels
        .iter()
        .map(|channel| {
            let at = |name: &str| text(channel.get(name));
            vec![at("channel"), at("executor"), at("entries"), at("bytes"), at("oldest"), at("newest")]
        })
        .collect();
    let head = [
        ("CHANNEL", Align::Left),
        ("EXECUTOR", Align::Left),
        ("ENTRIES", Align::Right),
        ("BYTES", Align::Right),
        ("OLDEST", Align::Right),
        ("NEWEST", Align::Right),
    ];
    output.table(&head, &rows)
}

/// All pages as one list.
async fn processes(client: &Client, common: &Common, output: &mut Output) -> Result<(), CliError> {
    let mut processes = Vec::new();
    let mut after = String::new();
    loop {
        let place = [("after", after.as_str())];
        let query = common.query(if after.is_empty() { &[] } else { &place });
        let answer: Value = client.get(&["v1", "processes"], &query).await?;
        let next = answer.get("next").map(|next| text(Some(next))).unwrap_or_default();
        processes.extend(items(client, answer, "processes")?);
        // A page may be empty and have a next one; one that leads to itself would never end.
        if next.is_empty() || next == after {
            break;
        }
        after = next;
    }
    if common.json {
        return processes.iter().try_for_each(|process| output.json(process));
    }
    if processes.is_empty() {
        return output.line("no processes");
    }
    let rows: Vec<Vec<String>> = processes
        .iter()
        .map(|process| {
            let at = |path: &str| text(process.pointer(path));
            let state = at("/closed/outcome");
            let state = if state.is_empty() { "open".to_owned() } else { state };
            vec![at("/process"), at("/submitter"), at("/executor"), state]
        })
        .collect();
    let head = [
        ("PROCESS", Align::Left),
        ("SUBMITTER", Align::Left),
        ("EXECUTOR", Align::Left),
        ("STATE", Align::Left),
    ];
    output.table(&head, &rows)
}
