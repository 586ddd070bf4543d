//! `millrace plugin rebuild`: filling a plugin's tables anew beside those that are served.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::{Method, header};
use serde_json::Value;

use super::client::{Client, Connect};
use super::deploy::{ask, read_component};
use super::plugin::{show_fields, text};
use super::{CliError, Output};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    /// The plugin's name
    name: String,
    /// The version to fill the tables with; without one the version that runs
    file: Option<PathBuf>,
    /// Where it begins: oldest, tail, or a cursor
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Its lanes
    #[arg(long, value_name = "N")]
    lanes: Option<u32>,
    /// Take over although some events are emitted never or twice; also tells a rebuild that waits for it
    #[arg(long)]
    accept_unemitted: bool,
    /// Let it repeat its HTTP requests for every event
    #[arg(long)]
    repeat_calls: bool,
    /// Wait until it has taken over
    #[arg(long)]
    wait: bool,
    /// Show how far it is
    #[arg(long, conflicts_with_all = ["file", "from", "lanes", "accept_unemitted", "repeat_calls", "abandon"])]
    status: bool,
    /// Give it up
    #[arg(long, conflicts_with_all = ["file", "from", "lanes", "accept_unemitted", "repeat_calls", "wait"])]
    abandon: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn rebuild(args: &RebuildArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let path = ["v1", "plugins", args.name.as_str(), "rebuild"];
    let mut view: Value = if args.status {
        client.get(&path, &[]).await?
    } else if args.abandon {
        client.json(client.request(Method::DELETE, client.address(&path, &[]))).await?
    } else {
        begin(args, &client).await?
    };
    while args.wait && !has_ended(&view) {
        tokio::time::sleep(LOOK).await;
        view = client.get(&path, &[]).await?;
        if !args.json && !has_ended(&view) {
            output.line(&progress(&view))?;
            output.flush()?;
        }
    }
    if args.json {
        output.json(&view)?;
    } else if args.status {
        show_fields(&view, "", output)?;
    } else {
        output.line(&outcome(&args.name, &view))?;
    }
    match args.wait && stage(&view) == "abandoned" {
        true => Err(CliError::failed(text(view.get("message")), "the plugin goes on as it was; begin again")),
        false => Ok(()),
    }
}

async fn begin(args: &RebuildArgs, client: &Client) -> Result<Value, CliError> {
    let mut query = Vec::new();
    query.extend(args.from.clone().map(|from| ("from", from)));
    query.extend(args.lanes.map(|lanes| ("lanes", lanes.to_string())));
    query.extend(args.accept_unemitted.then(|| ("accept_unemitted", "true".to_owned())));
    query.extend(args.repeat_calls.then(|| ("repeat_calls", "true".to_owned())));
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let address = client.address(&["v1", "plugins", &args.name, "rebuild"], &query);
    let mut request = client.request(Method::POST, address);
    if let Some(file) = &args.file {
        request = request.header(header::CONTENT_TYPE, "application/wasm").body(read_component(file)?);
    }
    // Compiling a large version is minutes, not seconds.
    ask(client, request).await
}

fn stage(view: &Value) -> &str {
    view.get("stage").and_then(Value::as_str).unwrap_or_default()
}

fn has_ended(view: &Value) -> bool {
    matches!(stage(view), "flipped" | "abandoned")
}

fn progress(view: &Value) -> String {
    let at = |name: &str| text(view.get(name));
    let eta = at("eta_s");
    let eta = if eta.is_empty() { String::new() } else { format!(", {eta} s left") };
    let why = at("message");
    let why = if why.is_empty() { why } else { format!(": {why}") };
    format!(
        "{} {} of {}, {} events/s{eta}{why}",
        at("stage"),
        at("position"),
        at("newest"),
        at("events_per_s")
    )
}

fn outcome(name: &str, view: &Value) -> String {
    match stage(view) {
        "flipped" => {
            format!(
                "{name} is rebuilt: its tables are new from revision {} on",
                text(view.pointer("/report/revision"))
            )
        }
        "abandoned" => format!("the rebuild of {name} is given up; the plugin goes on as it was"),
        _ => format!("{name} is being rebuilt; `millrace plugin rebuild {name} --status` says how far it is"),
    }
}
