//! `millrace plugin rebuild`: filling a plugin's tables anew beside those that are served.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::{Method, header};
use serde_json::Value;

use super::client::{Client, Connect};
use super::deploy::{ask, read_component};
use super::plugin::{show_fields, text};
use super::progress::{Share, lasting, share_bar};
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
    let path = path(args);
    let view: Value = if args.status {
        client.get(&path, &[]).await?
    } else if args.abandon {
        client.json(client.request(Method::DELETE, client.address(&path, &[]))).await?
    } else {
        begin(args, &client).await?
    };
    let view = if args.wait { until_ended(view, args, &client, output).await? } else { view };
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

fn path(args: &RebuildArgs) -> [&str; 4] {
    ["v1", "plugins", &args.name, "rebuild"]
}

/// Looks until it has taken over or is given up. Meanwhile there is a bar on a terminal, a line for each change
/// elsewhere, and nothing of either with JSON.
async fn until_ended(
    mut view: Value,
    args: &RebuildArgs,
    client: &Client,
    output: &mut Output,
) -> Result<Value, CliError> {
    let bar = share_bar(!args.json);
    let mut told = String::new();
    while !has_ended(&view) {
        let share = share(&view);
        share.show(&bar);
        if bar.is_hidden() && !args.json && share.line() != told {
            told = share.line();
            output.line(&told)?;
            output.flush()?;
        }
        tokio::time::sleep(LOOK).await;
        let looked = client.get(&path(args), &[]).await;
        if looked.is_err() {
            bar.finish_and_clear();
        }
        view = looked?;
    }
    bar.finish_and_clear();
    Ok(view)
}

async fn begin(args: &RebuildArgs, client: &Client) -> Result<Value, CliError> {
    let mut query = Vec::new();
    query.extend(args.from.clone().map(|from| ("from", from)));
    query.extend(args.lanes.map(|lanes| ("lanes", lanes.to_string())));
    query.extend(args.accept_unemitted.then(|| ("accept_unemitted", "true".to_owned())));
    query.extend(args.repeat_calls.then(|| ("repeat_calls", "true".to_owned())));
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let address = client.address(&path(args), &query);
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

/// How far it is, from where it began.
fn share(view: &Value) -> Share {
    let number = |name: &str| view.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (position, newest) = (number("position"), number("newest"));
    let start = number("start");
    let eta = view.get("eta_s").and_then(Value::as_u64);
    let eta = eta.map(|seconds| format!(", {} left", lasting(seconds))).unwrap_or_default();
    let why = text(view.get("message"));
    let why = if why.is_empty() { why } else { format!(": {why}") };
    let stage = text(view.get("stage")).replace('_', " ");
    let text = format!("{stage} {position} of {newest}, {} events/s{eta}{why}", number("events_per_s"));
    Share { done: position.saturating_sub(start), all: newest.saturating_sub(start), text }
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

#[cfg(test)]
mod tests {
    use indicatif::ProgressBar;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bar_shows_how_far_a_rebuild_is_from_where_it_began() {
        let filling = json!({
            "stage": "filling", "start": 100, "position": 1_100, "newest": 2_100, "events_per_s": 250, "eta_s": 64,
            "message": "",
        });
        let bar = ProgressBar::hidden();
        share(&filling).show(&bar);
        assert_eq!((bar.position(), bar.length()), (1_000, Some(2_000)));
        assert_eq!(bar.message(), " 50 %  filling 1100 of 2100, 250 events/s, 1 min 4 s left");
        // The log has moved on meanwhile, and so has the end.
        let later = json!({ "stage": "filling", "start": 100, "position": 1_600, "newest": 3_100 });
        share(&later).show(&bar);
        assert_eq!((bar.position(), bar.length()), (1_500, Some(3_000)));
        assert_eq!(bar.message(), " 50 %  filling 1600 of 3100, 0 events/s");
    }

    #[test]
    fn a_rebuild_that_has_not_begun_to_run_or_waits_says_so() {
        let line = |view: Value| share(&view).line();
        let begun =
            json!({ "stage": "filling", "start": 100, "position": 0, "newest": 2_100, "eta_s": null });
        assert_eq!(line(begun), "  0 %  filling 0 of 2100, 0 events/s");
        // Of a host that does not tell where it began.
        let near =
            json!({ "stage": "filling", "position": 2_099, "newest": 2_100, "events_per_s": 9, "eta_s": 0 });
        assert_eq!(line(near), " 99 %  filling 2099 of 2100, 9 events/s, 0 s left");
        let waits =
            json!({ "stage": "caught_up", "position": 7, "newest": 7, "message": "it is \u{1b}[2Jpaused" });
        assert_eq!(line(waits), "100 %  caught up 7 of 7, 0 events/s: it is \\u{1b}[2Jpaused");
    }
}
