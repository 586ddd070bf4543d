//! Looking after the feed itself: hosts, the freeze, what was set aside, what waits.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ForgetArgs, FreezeArgs, LookArgs, rows};
use crate::cli::client::{ANSWER_WAIT_MAX, Client, Connect};
use crate::cli::plugin::{items, text};
use crate::cli::{Align, CliError, Output, printable, spans};
use crate::control::fleet::{HostLine, HostPresence};
use crate::event::Micros;

/// How long a host may take for a snapshot, which it fetches.
const RESYNC_WAIT_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct OutboxArgs {
    #[command(subcommand)]
    command: Option<OutboxCommand>,
    #[command(flatten)]
    look: LookArgs,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// Try a dead letter once more
    #[command(after_help = "Examples:\n  millrace fleet outbox retry evt_01KJN0000000000000000000AB")]
    Retry(LetterArgs),
    /// Give a dead letter up; what stood before it stands again, and what waits behind it goes
    #[command(after_help = "Examples:\n  millrace fleet outbox discard evt_01KJN0000000000000000000AB")]
    Discard(LetterArgs),
}

#[derive(Debug, Args)]
struct LetterArgs {
    /// The event's id
    event: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn hosts(args: &LookArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let answer: Value = client.get(&["v1", "fleet", "hosts"], &[]).await?;
    if args.json {
        return output.json(&answer);
    }
    let hosts: Vec<HostLine> = rows(&client, answer, "hosts")?;
    if hosts.is_empty() {
        return output.line("no host has reported; they need `control.source` and the same feed");
    }
    let lines: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            let labels: Vec<String> =
                host.labels.iter().map(|(name, value)| printable(&format!("{name}={value}"))).collect();
            vec![
                printable(&host.host),
                presence(host.presence).to_owned(),
                spans::text(Duration::from_secs(host.age_ms / 1_000)),
                labels.join(" "),
                printable(&host.millrace_version),
                host.cursor.0.to_string(),
                host.behind.to_string(),
            ]
        })
        .collect();
    let head = [
        ("HOST", Align::Left),
        ("PRESENCE", Align::Left),
        ("HEARD", Align::Right),
        ("LABELS", Align::Left),
        ("MILLRACE", Align::Left),
        ("CURSOR", Align::Right),
        ("BEHIND", Align::Right),
    ];
    output.table(&head, &lines)
}

fn presence(presence: HostPresence) -> &'static str {
    match presence {
        HostPresence::Talking => "talking",
        HostPresence::Silent => "silent",
        HostPresence::Gone => "gone",
        HostPresence::Unreadable => "unreadable",
    }
}

pub(super) async fn freeze(args: &FreezeArgs, frozen: bool, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.look.connect)?;
    let body = json!({ "frozen": frozen, "reason": args.reason });
    let request = client.request(Method::POST, client.address(&["v1", "fleet", "freeze"], &[])).json(&body);
    client.send(request.timeout(ANSWER_WAIT_MAX)).await?;
    if args.look.json {
        return output.json(&body);
    }
    output.line(if frozen {
        "the fleet is frozen; halting, pausing and rolling back still work"
    } else {
        "the fleet goes on"
    })
}

pub(super) async fn resync(args: &LookArgs, output: &mut Output) -> Result<(), CliError> {
    #[derive(Deserialize)]
    struct Resynced {
        restored: bool,
        version: Option<u64>,
        #[serde(default)]
        entities: Vec<String>,
    }
    let client = Client::new(&args.connect)?;
    let request = client.request(Method::POST, client.address(&["v1", "fleet", "resync"], &[]));
    let response = client.send(request.timeout(RESYNC_WAIT_MAX)).await?;
    let body = response.bytes().await.map_err(|error| client.unreachable(&error))?;
    let answer: Value =
        serde_json::from_slice(&body).map_err(|error| client.unexpected(&error.to_string()))?;
    if args.json {
        return output.json(&answer);
    }
    let Resynced { restored, version, entities } =
        serde_json::from_value(answer).map_err(|error| client.unexpected(&error.to_string()))?;
    if !restored {
        return output.line("the fleet has no snapshot yet; nothing was changed");
    }
    let changed = if entities.is_empty() { "nothing".into() } else { printable(&entities.join(", ")) };
    output.line(&format!(
        "this host knows the fleet's state at version {} now; changed: {changed}",
        version.unwrap_or_default()
    ))
}

pub(super) async fn forget(args: &ForgetArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.look.connect)?;
    let address = client.address(&["v1", "fleet", "hosts", &args.host], &[]);
    client.send(client.request(Method::DELETE, address).timeout(ANSWER_WAIT_MAX)).await?;
    if args.look.json {
        return output.json(&json!({ "forgotten": args.host }));
    }
    output.line(&format!("{} is forgotten; if it lives, it reports again", printable(&args.host)))
}

pub(super) async fn quarantine(args: &LookArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let answer: Value = client.get(&["v1", "fleet", "quarantine"], &[]).await?;
    if args.json {
        return output.json(&answer);
    }
    let found = items(&client, answer, "events")?;
    if found.is_empty() {
        return output.line("no event was set aside");
    }
    let lines: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            let [version, name, code, reason] =
                ["version", "name", "code", "reason"].map(|name| text(one.get(name)));
            vec![version, name, time(one.get("at")), code, reason]
        })
        .collect();
    let head = [
        ("VERSION", Align::Right),
        ("EVENT", Align::Left),
        ("AT", Align::Left),
        ("CODE", Align::Left),
        ("REASON", Align::Left),
    ];
    output.table(&head, &lines)
}

pub(super) async fn outbox(args: &OutboxArgs, output: &mut Output) -> Result<(), CliError> {
    match &args.command {
        None => look(&args.look, output).await,
        Some(OutboxCommand::Retry(args)) => settle(args, "retry", "is tried once more", output).await,
        Some(OutboxCommand::Discard(args)) => settle(args, "discard", "is given up", output).await,
    }
}

async fn look(args: &LookArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let answer: Value = client.get(&["v1", "fleet", "outbox"], &[]).await?;
    if args.json {
        return output.json(&answer);
    }
    let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (waiting, dead) = (count("waiting"), count("dead"));
    let oldest = answer.get("oldest_at").filter(|at| !at.is_null());
    let since = oldest.map(|at| format!(", the oldest since {}", time(Some(at)))).unwrap_or_default();
    let letters = items(&client, answer.clone(), "letters")?;
    output.line(&format!("{waiting} events wait for the feed{since}; {dead} of them it does not take"))?;
    if letters.is_empty() {
        return Ok(());
    }
    let lines: Vec<Vec<String>> = letters
        .iter()
        .map(|letter| {
            let [event, entity, revision, attempts, error] =
                ["event", "entity", "revision", "attempts", "error"].map(|name| text(letter.get(name)));
            vec![event, entity, revision, attempts, time(letter.get("at")), error]
        })
        .collect();
    let head = [
        ("EVENT", Align::Left),
        ("ENTITY", Align::Left),
        ("REVISION", Align::Right),
        ("TRIES", Align::Right),
        ("LAST", Align::Left),
        ("ERROR", Align::Left),
    ];
    output.table(&head, &lines)
}

async fn settle(args: &LetterArgs, verb: &str, done: &str, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let address = client.address(&["v1", "fleet", "outbox", &args.event, verb], &[]);
    client.send(client.request(Method::POST, address).timeout(ANSWER_WAIT_MAX)).await?;
    if args.json {
        return output.json(&json!({ "event": args.event, "outcome": verb }));
    }
    output.line(&format!("{} {done}", printable(&args.event)))
}

/// A time, whether the host wrote it as text or as microseconds.
fn time(value: Option<&Value>) -> String {
    value.and_then(Value::as_i64).map_or_else(|| text(value), |micros| Micros(micros).to_string())
}
