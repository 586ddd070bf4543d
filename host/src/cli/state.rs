//! `millrace state …`: what a plugin keeps.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, Connect};
use super::{Align, CliError, Output, printable};

/// Characters of a key or value, on a terminal.
const CELL_CHARS_MAX: usize = 60;
/// Characters of a state that is JSON, and bytes of one that is not.
const STATE_CHARS_MAX: usize = 4_000;
const STATE_BYTES_MAX: usize = 64;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace state show flight-board
  millrace state show sessions --prefix user/ --limit 20")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// What one task of a plugin has committed: position, saved state, keyed state
    #[command(after_help = "\
Examples:
  millrace state show flight-board                         the task of your tenant's lane 0
  millrace state show flight-board --tenant acme --lane 3  another one; another tenant needs the right admin
  millrace state show sessions --prefix user/ --limit 20   some entries of its keyed state
  millrace state show sessions --after CURSOR              the next page
  millrace state show flight-board --json                  all there is to tell, for scripts")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The plugin's name
    plugin: String,
    /// Whose task; the token's own tenant's where it is left out
    #[arg(long)]
    tenant: Option<String>,
    /// Which lane
    #[arg(long, default_value_t = 0)]
    lane: u32,
    /// Only entries of the keyed state whose key begins so
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Go on where a page of the keyed state ended
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Entries of the keyed state
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u32>,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// The answer, as far as it is shown.
#[derive(Deserialize)]
struct StateView {
    plugin: String,
    tenant: String,
    lane: u32,
    lanes: u32,
    position: Option<String>,
    revision: Option<u64>,
    saved: Option<SavedView>,
    keyed: KeyedView,
}

#[derive(Deserialize)]
struct SavedView {
    content_type: String,
    bytes: u64,
    sha256: String,
    json: Option<Box<RawValue>>,
    base64: Option<String>,
}

#[derive(Deserialize)]
struct KeyedView {
    entries: u64,
    bytes: u64,
    page: Vec<KeyedEntryView>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct KeyedEntryView {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    expires_at: Option<String>,
}

pub(super) async fn run(args: StateArgs, output: &mut Output) -> Result<(), CliError> {
    let StateCommand::Show(args) = args.command;
    let client = Client::new(&args.connect)?;
    let (lane, limit) = (args.lane.to_string(), args.limit.map(|limit| limit.to_string()));
    let mut query = vec![("lane", lane.as_str())];
    for (name, value) in
        [("tenant", &args.tenant), ("prefix", &args.prefix), ("after", &args.after), ("limit", &limit)]
    {
        query.extend(value.as_deref().map(|value| (name, value)));
    }
    let answer: Box<RawValue> = client.get(&["v1", "plugins", &args.plugin, "state"], &query).await?;
    if args.json {
        output.json(&answer)?;
        return output.flush();
    }
    let view: StateView =
        serde_json::from_str(answer.get()).map_err(|error| client.unexpected(&error.to_string()))?;
    show(&view, output)?;
    output.flush()?;
    if let Some(next) = &view.keyed.next {
        eprintln!("there is more: --after {}", printable(next));
    }
    Ok(())
}

fn show(view: &StateView, output: &mut Output) -> Result<(), CliError> {
    let mut field = |name: &str, value: &str| output.line(&format!("{name:<14}{value}"));
    field("plugin", &printable(&view.plugin))?;
    field("tenant", &printable(&view.tenant))?;
    field("lane", &format!("{} of {}", view.lane, view.lanes))?;
    field(
        "position",
        &view.position.as_deref().map_or_else(|| "nothing is committed yet".into(), printable),
    )?;
    if let Some(revision) = view.revision {
        field("revision", &revision.to_string())?;
    }
    match &view.saved {
        None => field("state", "none is saved")?,
        Some(saved) => {
            field("content type", &printable(&saved.content_type))?;
            field("bytes", &saved.bytes.to_string())?;
            field("sha256", &printable(&saved.sha256))?;
            field("state", &state(saved))?;
        }
    }
    field("keyed state", &format!("{} entries, {} bytes", view.keyed.entries, view.keyed.bytes))?;
    if view.keyed.page.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let head = [("KEY", Align::Left), ("VALUE", Align::Left), ("EXPIRES", Align::Left)];
    let rows: Vec<Vec<String>> = view.keyed.page.iter().map(row).collect();
    output.table(&head, &rows)
}

/// JSON as it is, anything else as its first bytes; both cut off where it gets long.
fn state(saved: &SavedView) -> String {
    match &saved.json {
        Some(json) => cut(json.get(), STATE_CHARS_MAX),
        None => hex(saved.base64.as_deref().unwrap_or_default(), saved.bytes),
    }
}

fn row(entry: &KeyedEntryView) -> Vec<String> {
    let cell = |text: &Option<String>, base64: &Option<String>| match (text, base64) {
        (Some(text), _) => cut(text, CELL_CHARS_MAX),
        (None, Some(base64)) => cut(&format!("base64:{base64}"), CELL_CHARS_MAX),
        (None, None) => String::new(),
    };
    vec![
        cell(&entry.key, &entry.key_base64),
        cell(&entry.value, &entry.value_base64),
        entry.expires_at.as_deref().map_or_else(|| "never".into(), printable),
    ]
}

fn hex(base64: &str, bytes: u64) -> String {
    let state = STANDARD.decode(base64).unwrap_or_default();
    let shown = &state[..state.len().min(STATE_BYTES_MAX)];
    let mut text = String::from("0x");
    for byte in shown {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    if bytes > shown.len() as u64 {
        text.push('…');
    }
    text
}

fn cut(text: &str, chars_max: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}
