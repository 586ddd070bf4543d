//! `millrace group …`: groups of consumers.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{ANSWER_WAIT_MAX, Client, Connect};
use super::plugin::{items, show_fields, text};
use super::{Align, CliError, Output, printable};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace group create billing --attempts-max 10
  millrace group read billing --consumer worker-1 --ack
  millrace group lag billing
  millrace group dead-letters billing")]
pub(super) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// The groups on a stream
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  millrace group list\n  millrace group ls --json"
    )]
    List(ListArgs),
    /// How a group stands, and who reads from it
    #[command(after_help = "Examples:\n  millrace group show billing\n  millrace group show billing --json")]
    Show(NameArgs),
    /// Make a group, or change the options of one that is there; it stays where it is
    #[command(after_help = "\
Examples:
  millrace group create billing                      from the oldest event that is held
  millrace group create billing --from newest        what is published from now on
  millrace group create billing --lease-ms 120000 --attempts-max 10
  millrace group create billing --on-lost from_oldest

Should retention remove what the group has not acknowledged, it stops (the default), goes on with the oldest
event that is held, or with what comes next. What was lost is counted either way.")]
    Create(CreateArgs),
    /// Take entries; with --ack they are acknowledged once they are written
    #[command(after_help = "\
Examples:
  millrace group read billing --consumer worker-1                 entries and their receipts
  millrace group read billing --consumer worker-1 --ack --follow  everything there is and what comes
  millrace group read billing --consumer worker-1 --json          for scripts: one entry a line

What is not acknowledged before its lease ends is delivered again.")]
    Read(ReadArgs),
    /// Acknowledge entries by their receipts
    #[command(after_help = "Examples:\n  millrace group ack billing 1.5f3a.2a.1")]
    Ack(SettleArgs),
    /// Say that entries failed: they are delivered again later
    #[command(
        after_help = "Examples:\n  millrace group nack billing 1.5f3a.2a.1 --reason 'no such invoice' --delay-ms 5000"
    )]
    Nack(NackArgs),
    /// How far a group is behind
    #[command(after_help = "Examples:\n  millrace group lag billing\n  millrace group lag billing --json")]
    Lag(NameArgs),
    /// Let a group go on from another place
    #[command(after_help = "\
Examples:
  millrace group seek billing --to oldest    everything that is held once more
  millrace group seek billing --to newest    leave out what there is
  millrace group seek billing --to CURSOR")]
    Seek(SeekArgs),
    /// Remove a group, its place and its dead letters
    #[command(visible_alias = "rm", after_help = "Examples:\n  millrace group remove billing")]
    Remove(NameArgs),
    /// Entries that were delivered as often as they may be: list, replay or discard them
    #[command(after_help = "\
Examples:
  millrace group dead-letters billing
  millrace group dead-letters billing --replay 1234
  millrace group dead-letters billing --discard 1234

A letter's number is the position of its event.")]
    DeadLetters(LettersArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Which stream
    #[arg(long, default_value = "events")]
    stream: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The group's name
    group: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The group's name
    group: String,
    /// Where a new group begins: `oldest`, `newest`, or a cursor
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// How long a consumer has an entry to itself
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u64>,
    /// Deliveries after which an entry that fails becomes a dead letter
    #[arg(long, value_name = "N")]
    attempts_max: Option<u32>,
    /// First wait of an entry that failed; doubles each time
    #[arg(long, value_name = "MS")]
    backoff_ms_min: Option<u64>,
    /// Longest wait of an entry that failed
    #[arg(long, value_name = "MS")]
    backoff_ms_max: Option<u64>,
    /// What it does when retention removed what it had not acknowledged
    #[arg(long, value_parser = ["stop", "from_oldest", "tail"])]
    on_lost: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ReadArgs {
    /// The group's name
    group: String,
    /// The consumer's own name, the same each time
    #[arg(long)]
    consumer: String,
    /// Most entries at a time
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: u64,
    /// Wait so long where there is nothing
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait_ms: u64,
    /// Acknowledge what was written
    #[arg(long)]
    ack: bool,
    /// Go on reading
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct SettleArgs {
    /// The group's name
    group: String,
    /// Receipts, as a read answered them
    #[arg(required = true)]
    receipts: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct NackArgs {
    /// The group's name
    group: String,
    /// Receipts, as a read answered them
    #[arg(required = true)]
    receipts: Vec<String>,
    /// Wait so long; or else what the group's backoff says
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u64>,
    /// What went wrong
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct SeekArgs {
    /// The group's name
    group: String,
    /// `oldest`, `newest`, or a cursor
    #[arg(long, value_name = "PLACE")]
    to: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct LettersArgs {
    /// The group's name
    group: String,
    /// Deliver this one again
    #[arg(long, value_name = "LETTER", conflicts_with = "discard")]
    replay: Option<u64>,
    /// Forget this one
    #[arg(long, value_name = "LETTER")]
    discard: Option<u64>,
    /// Most letters
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

/// One entry as it came, and what is shown of it.
#[derive(Deserialize)]
struct Entry {
    receipt: String,
    attempt: u32,
    event: Box<RawValue>,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<Box<RawValue>>,
}

pub(super) async fn run(args: GroupArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        GroupCommand::List(args) => list(&args, output).await?,
        GroupCommand::Show(args) => show(&args, output).await?,
        GroupCommand::Create(args) => create(&args, output).await?,
        GroupCommand::Read(args) => read(&args, output).await?,
        GroupCommand::Ack(args) => {
            let body = json!({ "receipts": args.receipts });
            settle(&args.common, &args.group, "ack", body, output).await?;
        }
        GroupCommand::Nack(args) => {
            let mut body = json!({ "receipts": args.receipts, "reason": args.reason });
            if let Some(delay) = args.delay_ms {
                body["delay_ms"] = delay.into();
            }
            settle(&args.common, &args.group, "nack", body, output).await?;
        }
        GroupCommand::Lag(args) => lag(&args, output).await?,
        GroupCommand::Seek(args) => seek(&args, output).await?,
        GroupCommand::Remove(args) => remove(&args, output).await?,
        GroupCommand::DeadLetters(args) => letters(&args, output).await?,
    }
    output.flush()
}

impl Common {
    /// The path below the group.
    fn path<'a>(&'a self, group: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = vec!["v1", "streams", &self.stream, "groups", group];
        path.extend(rest);
        path
    }
}

async fn list(args: &ListArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let answer: Value = client.get(&["v1", "streams", &args.common.stream, "groups"], &[]).await?;
    if args.common.json {
        return output.json(&answer);
    }
    let groups = items(&client, answer, "groups")?;
    if groups.is_empty() {
        return output.line("no groups");
    }
    let columns =
        ["group", "lag_events", "lag_seconds", "in_flight", "retrying", "dead_letters", "lost_events"];
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            let mut row: Vec<String> = columns.iter().map(|name| text(group.get(*name))).collect();
            row.push(if group["stopped"] == true { "stopped" } else { "" }.into());
            row
        })
        .collect();
    let head = [
        ("GROUP", Align::Left),
        ("LAG", Align::Right),
        ("SECONDS", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("RETRYING", Align::Right),
        ("DEAD", Align::Right),
        ("LOST", Align::Right),
        ("STATE", Align::Left),
    ];
    output.table(&head, &rows)
}

async fn show(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let mut group: Value = client.get(&common.path(&args.group, &[]), &[]).await?;
    let consumers: Value = client.get(&common.path(&args.group, &["consumers"]), &[]).await?;
    group["consumers"] = consumers["consumers"].clone();
    if common.json { output.json(&group) } else { show_fields(&group, "", output) }
}

async fn create(args: &CreateArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let mut body = serde_json::Map::new();
    for (name, value) in [
        ("from", args.from.clone().map(Value::from)),
        ("lease_ms", args.lease_ms.map(Value::from)),
        ("attempts_max", args.attempts_max.map(Value::from)),
        ("backoff_ms_min", args.backoff_ms_min.map(Value::from)),
        ("backoff_ms_max", args.backoff_ms_max.map(Value::from)),
        ("on_lost", args.on_lost.clone().map(Value::from)),
    ] {
        body.extend(value.map(|value| (name.to_owned(), value)));
    }
    let address = client.address(&common.path(&args.group, &[]), &[]);
    let group: Value = client.json(client.request(Method::PUT, address).json(&body)).await?;
    if common.json {
        return output.json(&group);
    }
    output.line(&format!("group {} is there, {} events behind", args.group, text(group.get("lag_events"))))
}

async fn read(args: &ReadArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    // A reader that follows waits at the host and not in a loop of its own.
    let wait_ms = if args.follow { args.wait_ms.max(10_000) } else { args.wait_ms };
    let body = json!({ "consumer": args.consumer, "limit": args.limit, "wait_ms": wait_ms });
    loop {
        let address = client.address(&common.path(&args.group, &["read"]), &[]);
        let request = client.request(Method::POST, address).json(&body);
        let request = request.timeout(ANSWER_WAIT_MAX + Duration::from_millis(wait_ms));
        let response = client.send(request).await?;
        let answer = response.bytes().await.map_err(|e| client.unreachable(&e))?;
        let answer: Entries =
            serde_json::from_slice(&answer).map_err(|e| client.unexpected(&e.to_string()))?;
        let mut receipts = Vec::new();
        for raw in &answer.entries {
            let entry: Entry =
                serde_json::from_str(raw.get()).map_err(|e| client.unexpected(&e.to_string()))?;
            if common.json {
                output.line(raw.get())?;
            } else {
                let event = printable(entry.event.get());
                output.line(&format!("{}  attempt {}  {event}", printable(&entry.receipt), entry.attempt))?;
            }
            receipts.push(entry.receipt);
        }
        // What is acknowledged has been written.
        output.flush()?;
        if args.ack && !receipts.is_empty() {
            let address = client.address(&common.path(&args.group, &["ack"]), &[]);
            let request = client.request(Method::POST, address).json(&json!({ "receipts": receipts }));
            let _: Value = client.json(request).await?;
        }
        if !args.follow {
            return Ok(());
        }
    }
}

async fn settle(
    common: &Common,
    group: &str,
    verb: &str,
    body: Value,
    output: &mut Output,
) -> Result<(), CliError> {
    let client = Client::new(&common.connect)?;
    let address = client.address(&common.path(group, &[verb]), &[]);
    let answer: Value = client.json(client.request(Method::POST, address).json(&body)).await?;
    if common.json {
        output.json(&answer)?;
    } else {
        for result in answer["results"].as_array().into_iter().flatten() {
            let at = |name: &str| text(result.get(name));
            let line = format!("{}  {} {}{}", at("receipt"), at("outcome"), at("code"), at("at"));
            output.line(line.trim_end())?;
        }
    }
    output.flush()?;
    match answer["refused"].as_u64().unwrap_or(0) {
        0 => Ok(()),
        refused => Err(CliError::failed(
            format!("{refused} receipts were refused"),
            "read again: what they stood for is delivered again, or done",
        )),
    }
}

async fn lag(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.common.connect)?;
    let group: Value = client.get(&args.common.path(&args.group, &[]), &[]).await?;
    if args.common.json {
        let names = ["lag_events", "lag_is_least", "lag_seconds", "lost_events", "lost_until", "stopped"];
        let lag: serde_json::Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), group[*name].clone())).collect();
        return output.json(&lag);
    }
    let at = |name: &str| text(group.get(name));
    let least = if group["lag_is_least"] == true { "at least " } else { "" };
    let mut line = format!("{least}{} events, {} s", at("lag_events"), at("lag_seconds"));
    if group["lost_events"] != 0 {
        line.push_str(&format!("; {} lost up to {}", at("lost_events"), at("lost_until")));
    }
    if group["stopped"] == true {
        line.push_str("; stopped");
    }
    output.line(&line)
}

async fn seek(args: &SeekArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let address = client.address(&common.path(&args.group, &["seek"]), &[]);
    let request = client.request(Method::POST, address).json(&json!({ "to": args.to }));
    let group: Value = client.json(request).await?;
    if common.json {
        return output.json(&group);
    }
    output.line(&format!("group {} goes on after {}", args.group, text(group.get("position"))))
}

async fn remove(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let address = client.address(&common.path(&args.group, &[]), &[]);
    client.send(client.request(Method::DELETE, address).timeout(ANSWER_WAIT_MAX)).await?;
    if common.json {
        return output.json(&json!({ "removed": args.group }));
    }
    output.line(&format!("group {} is removed", args.group))
}

async fn letters(args: &LettersArgs, output: &mut Output) -> Result<(), CliError> {
    let (client, common) = (Client::new(&args.common.connect)?, &args.common);
    let decision = args.replay.map(|n| (n, "replay")).or(args.discard.map(|n| (n, "discard")));
    if let Some((letter, verb)) = decision {
        let number = letter.to_string();
        let path = common.path(&args.group, &["dead-letters", &number, verb]);
        let answer: Value = client.json(client.request(Method::POST, client.address(&path, &[]))).await?;
        if common.json {
            return output.json(&answer);
        }
        return output.line(&format!("{letter} is {}", text(answer.get("outcome"))));
    }
    let limit = args.limit.to_string();
    let path = common.path(&args.group, &["dead-letters"]);
    let answer: Value = client.get(&path, &[("limit", &limit)]).await?;
    if common.json {
        return output.json(&answer);
    }
    let letters = items(&client, answer, "dead_letters")?;
    if letters.is_empty() {
        return output.line("no dead letters");
    }
    let rows: Vec<Vec<String>> = letters
        .iter()
        .map(|letter| {
            let at = |path: &str| text(letter.pointer(path));
            let key = format!("{}/{}", at("/event/aggregate"), at("/event/agg_id"));
            let state = if letter["replaying"] == true { "replaying" } else { "" };
            vec![at("/letter"), at("/at"), key, at("/attempts"), at("/reason"), state.into(), at("/message")]
        })
        .collect();
    let head = [
        ("LETTER", Align::Right),
        ("AT", Align::Left),
        ("KEY", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("REASON", Align::Left),
        ("STATE", Align::Left),
        ("MESSAGE", Align::Left),
    ];
    output.table(&head, &rows)
}
