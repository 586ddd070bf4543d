//! `millrace rollout status`: how far rollouts are.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::client::{Client, Connect};
use crate::cli::fleet::{Fleet, Standing, host_table, nobody, progress};
use crate::cli::{Align, Backoff, CliError, Exit, Output, printable, spans};
use crate::control::RunState;
use crate::control::fleet::PluginFleet;
use crate::control::rollout::Progress;

/// How often in a row a look may fail while it is watched.
const FAILED_LOOKS_MAX: u32 = 12;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only this plugin, host by host
    plugin: Option<String>,
    /// Say what changes until the rollout is over
    #[arg(long, requires = "plugin")]
    watch: bool,
    /// With --watch: how long it is between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = spans::parse, requires = "watch")]
    every: Duration,
    /// Write JSON; with --watch a line for each change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn status(args: &StatusArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let plugin = args.plugin.as_deref();
    if args.watch {
        return watch(&client, plugin.unwrap_or_default(), args, output).await;
    }
    let fleet = Fleet::read(&client, plugin).await?;
    let standing = Standing::read(&client).await?;
    let why =
        |plugin: &PluginFleet| standing.plugin(&client, &plugin.plugin).ok().and_then(|known| known.why());
    if args.json {
        let one = |plugin: &PluginFleet| with_why(fleet.json_of(plugin), why(plugin));
        let plugins: Vec<Value> = fleet.plugins.iter().map(one).collect();
        return output.json(&json!({ "plugins": plugins }));
    }
    if fleet.plugins.is_empty() {
        return output.line(nobody());
    }
    let rows: Vec<Vec<String>> = fleet.plugins.iter().map(|plugin| row(plugin, why(plugin))).collect();
    let head = [
        ("PLUGIN", Align::Left),
        ("REVISION", Align::Right),
        ("ROLLOUT", Align::Left),
        ("WAVE", Align::Left),
        ("VERSION", Align::Left),
        ("BEFORE", Align::Left),
        ("HOSTS", Align::Right),
        ("LAST CHANGE", Align::Left),
    ];
    output.table(&head, &rows)?;
    if plugin.is_some() {
        for plugin in &fleet.plugins {
            output.line("")?;
            host_table(plugin, output)?;
            for what in &plugin.missing {
                output.line(&format!("missing: {}", printable(what)))?;
            }
        }
    }
    Ok(())
}

fn with_why(mut plugin: Value, why: Option<String>) -> Value {
    if let Some(members) = plugin.as_object_mut() {
        members.insert("last_change".into(), json!(why));
    }
    plugin
}

fn row(plugin: &PluginFleet, why: Option<String>) -> Vec<String> {
    let none = || "-".to_owned();
    let rollout = plugin.rollout.as_ref();
    vec![
        printable(&plugin.plugin),
        plugin.revision.to_string(),
        rollout.map_or_else(none, |rollout| progress(rollout.progress).to_owned()),
        rollout.map_or_else(none, |rollout| format!("{}/{}", rollout.wave, rollout.waves)),
        plugin.spec.as_ref().map_or_else(none, |spec| printable(&spec.version)),
        plugin.stable.as_ref().map_or_else(none, |stable| printable(&stable.version)),
        format!("{}/{}", serving(plugin), plugin.hosts.len()),
        why.unwrap_or_default(),
    ]
}

/// Hosts that serve the new version.
fn serving(plugin: &PluginFleet) -> usize {
    let Some(spec) = &plugin.spec else { return 0 };
    plugin.hosts.iter().filter(|host| host.serving.as_deref() == Some(&spec.digest)).count()
}

async fn watch(
    client: &Client,
    plugin: &str,
    args: &StatusArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let (mut said, mut failed, mut backoff) = (None, 0, Backoff::default());
    loop {
        let found = match Fleet::read(client, Some(plugin)).await {
            Ok(fleet) => fleet,
            // The origin may be restarting; the rollout stands meanwhile.
            Err(error) if failed < FAILED_LOOKS_MAX && passes(&error) => {
                failed += 1;
                eprintln!("{}; trying again", error.sentence());
                backoff.sleep().await;
                continue;
            }
            Err(error) => return Err(error),
        };
        failed = 0;
        backoff.reset();
        let Some(now) = found.plugins.first() else { return Ok(()) };
        let line = line(now);
        if said.as_ref() != Some(&line) {
            if args.json {
                output.json(&found.json_of(now))?;
            } else {
                output.line(&line)?;
            }
            output.flush()?;
            said = Some(line);
        }
        if let Some(ended) = ended(client, now).await {
            return ended;
        }
        tokio::time::sleep(args.every).await;
    }
}

fn passes(error: &CliError) -> bool {
    matches!(error.exit(), Exit::Unreachable | Exit::Failure)
}

/// What counts as a change.
fn line(plugin: &PluginFleet) -> String {
    let rollout = plugin.rollout.as_ref().map_or_else(
        || "no rollout".to_owned(),
        |rollout| format!("{}, wave {} of {}", progress(rollout.progress), rollout.wave, rollout.waves),
    );
    let version = plugin.spec.as_ref().map(|spec| format!(" {}", spec.version)).unwrap_or_default();
    let (on, all, revision) = (serving(plugin), plugin.hosts.len(), plugin.revision);
    let mut text =
        format!("{}{version}: {rollout}, on {on} of {all} hosts (revision {revision})", plugin.plugin);
    if !plugin.missing.is_empty() {
        text.push_str(&format!("; missing: {}", plugin.missing.join("; ")));
    }
    printable(&text)
}

/// Whether there is nothing more to come by itself, and how it ended.
async fn ended(client: &Client, plugin: &PluginFleet) -> Option<Result<(), CliError>> {
    let name = &plugin.plugin;
    let (what, next_step) = match plugin.rollout.as_ref().map(|rollout| rollout.progress) {
        _ if plugin.state == RunState::Removed => {
            ("is removed", "`millrace rollout start` deploys it again".into())
        }
        Some(Progress::Running) => return None,
        Some(Progress::Complete) | None => return Some(Ok(())),
        Some(Progress::Halted) => (
            "is halted",
            format!("go on with `millrace rollout advance {name}`, or take it back with `rollback`"),
        ),
        Some(Progress::RolledBack) => (
            "is rolled back",
            format!("see `millrace fleet status {name}` for what hosts say, and deploy a better one"),
        ),
    };
    // Who and why is in the event; without it the end is as true.
    let why = match Standing::read(client).await {
        Ok(standing) => standing.plugin(client, name).ok().and_then(|known| known.why()),
        Err(_) => None,
    };
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    Some(Err(CliError::failed(format!("the rollout of {} {what}{why}", printable(name)), next_step)))
}
