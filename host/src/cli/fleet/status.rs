//! `millrace fleet status`: desired beside observed.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::standing::Frozen;
use crate::cli::client::{Client, Connect};
use crate::cli::{Align, CliError, Exit, Output, printable, spans};
use crate::control::RunState;
use crate::control::fleet::{HostLine, HostPlugin, HostPresence, Named, PluginFleet};
use crate::control::rollout::Progress;

/// How long it is between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Digits of a digest that are shown where no version is known for it.
const DIGEST_SHOWN: usize = 19;

#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// Only this plugin
    plugin: Option<String>,
    /// Wait until every host runs what it should
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this long, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = spans::parse, requires = "wait")]
    timeout: Duration,
    /// With --wait: at least so many hosts must talk
    #[arg(long, value_name = "N", default_value_t = 1, requires = "wait")]
    hosts: usize,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// The fleet as the origin knows it. What a later host says beside this is kept in `json`.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Fleet {
    pub(in crate::cli) plugins: Vec<PluginFleet>,
    #[serde(default)]
    pub(in crate::cli) hosts: Vec<HostLine>,
    #[serde(default)]
    frozen: Option<Frozen>,
    #[serde(skip)]
    json: Value,
}

impl Fleet {
    /// With a name, of that plugin only; one that is not there is an error.
    pub(in crate::cli) async fn read(client: &Client, plugin: Option<&str>) -> Result<Self, CliError> {
        let json: Value = client.get(&["v1", "fleet", "status"], &[]).await?;
        let fleet: Self =
            serde_json::from_value(json.clone()).map_err(|error| client.unexpected(&error.to_string()))?;
        let mut fleet = Self { json, ..fleet };
        if let Some(plugin) = plugin {
            fleet.plugins.retain(|found| found.plugin == plugin);
            if fleet.plugins.is_empty() {
                return Err(CliError::new(
                    Exit::Refused,
                    format!("{} is not deployed in this fleet", printable(plugin)),
                    "`millrace fleet status` lists what is; `millrace rollout start` deploys",
                ));
            }
        }
        Ok(fleet)
    }

    /// As the origin said it, the chosen plugins only.
    pub(in crate::cli) fn json_of(&self, plugin: &PluginFleet) -> Value {
        let told = self.json.get("plugins").and_then(Value::as_array).into_iter().flatten();
        let mut told =
            told.filter(|told| told.get("plugin").and_then(Value::as_str) == Some(plugin.plugin.as_str()));
        told.next().cloned().unwrap_or_else(|| json!(plugin))
    }

    fn to_json(&self, missing: &[String]) -> Value {
        let plugins: Vec<Value> = self.plugins.iter().map(|plugin| self.json_of(plugin)).collect();
        let hosts = self.json.get("hosts").cloned().unwrap_or_else(|| json!([]));
        let frozen = self.json.get("frozen").cloned().unwrap_or_default();
        json!({
            "plugins": plugins, "hosts": hosts, "converged": missing.is_empty(), "missing": missing,
            "frozen": frozen,
        })
    }

    /// What is missing until every host runs what it should.
    fn missing(&self) -> Vec<String> {
        let of = |plugin: &PluginFleet| {
            let name = plugin.plugin.clone();
            let mut missing: Vec<String> =
                plugin.missing.iter().map(|what| printable(&format!("{name}: {what}"))).collect();
            if missing.is_empty() && !plugin.converged {
                missing.push(format!("{}: not every host runs it", printable(&name)));
            }
            missing
        };
        self.plugins.iter().flat_map(of).collect()
    }

    fn talking(&self) -> usize {
        self.hosts.iter().filter(|host| host.presence == HostPresence::Talking).count()
    }
}

pub(super) async fn status(args: &StatusArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let plugin = args.plugin.as_deref();
    if !args.wait {
        let fleet = Fleet::read(&client, plugin).await?;
        let missing = fleet.missing();
        return show(&fleet, &missing, args.json, output);
    }
    let deadline = Instant::now() + args.timeout;
    let mut said = String::new();
    loop {
        let looked = Fleet::read(&client, plugin).await;
        let is_last = Instant::now() >= deadline;
        let error = match looked {
            Ok(fleet) => {
                let mut missing = fleet.missing();
                if fleet.talking() < args.hosts {
                    missing.push(format!("{} of {} hosts talk", fleet.talking(), args.hosts));
                }
                if missing.is_empty() {
                    return show(&fleet, &missing, args.json, output);
                }
                let sentence = missing.join("; ");
                if is_last {
                    show(&fleet, &missing, args.json, output)?;
                    output.flush()?;
                    let waited = spans::text(args.timeout);
                    return Err(CliError::failed(
                        format!("not converged after {waited}: {sentence}"),
                        "look at the hosts that are named, or wait longer with --timeout",
                    ));
                }
                sentence
            }
            // The origin may be restarting.
            Err(error) if !is_last && matches!(error.exit(), Exit::Unreachable | Exit::Failure) => {
                error.sentence().to_owned()
            }
            Err(error) => return Err(error),
        };
        if said != error {
            eprintln!("waiting: {error}");
            said = error;
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
    }
}

fn show(fleet: &Fleet, missing: &[String], json: bool, output: &mut Output) -> Result<(), CliError> {
    if json {
        return output.json(&fleet.to_json(missing));
    }
    if fleet.plugins.is_empty() {
        return output.line(nobody());
    }
    for plugin in &fleet.plugins {
        output.line(&headline(plugin))?;
        host_table(plugin, output)?;
        output.line("")?;
    }
    for what in missing {
        output.line(&format!("missing: {what}"))?;
    }
    if let Some(frozen) = &fleet.frozen {
        output.line(&frozen.sentence())?;
    }
    let talking = fleet.talking();
    let converged = if missing.is_empty() { "converged" } else { "not converged" };
    output.line(&format!("{converged}; {talking} of {} hosts talk", fleet.hosts.len()))
}

pub(in crate::cli) fn nobody() -> &'static str {
    "nothing is desired; deploy with `millrace rollout start`"
}

/// Version, state and rollout in one line.
fn headline(plugin: &PluginFleet) -> String {
    let state = match plugin.state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Removed => "removed",
    };
    let mut text = plugin.plugin.clone();
    if let Some(spec) = &plugin.spec {
        text.push_str(&format!(" {}", spec.version));
    }
    text.push_str(&format!(": {state}, revision {}", plugin.revision));
    if let Some(rollout) = &plugin.rollout {
        let (wave, waves) = (rollout.wave, rollout.waves);
        text.push_str(&format!(", rollout {} (wave {wave} of {waves})", progress(rollout.progress)));
    }
    if let Some(stable) = &plugin.stable {
        text.push_str(&format!(", before it {}", stable.version));
    }
    printable(&text)
}

pub(in crate::cli) fn progress(progress: Progress) -> &'static str {
    match progress {
        Progress::Running => "running",
        Progress::Halted => "halted",
        Progress::Complete => "complete",
        Progress::RolledBack => "rolled back",
    }
}

/// A plugin host by host: what it should run, what it does.
pub(in crate::cli) fn host_table(plugin: &PluginFleet, output: &mut Output) -> Result<(), CliError> {
    if plugin.hosts.is_empty() {
        return output.line("  no host");
    }
    let rows: Vec<Vec<String>> = plugin.hosts.iter().map(|host| row(plugin, host)).collect();
    let head = [
        ("  HOST", Align::Left),
        ("WAVE", Align::Right),
        ("WANTED", Align::Left),
        ("SERVES", Align::Left),
        ("PHASE", Align::Left),
        ("REVISION", Align::Right),
        ("LAG", Align::Right),
        ("", Align::Left),
    ];
    output.table(&head, &rows)
}

fn row(plugin: &PluginFleet, host: &HostPlugin) -> Vec<String> {
    let none = || "-".to_owned();
    let reason = host
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| printable(&format!("{}: {}", reason.code, reason.message)));
    vec![
        format!("  {}", printable(&host.host)),
        host.wave.map_or_else(none, |wave| wave.to_string()),
        host.wanted.as_ref().map_or_else(none, |wanted| printable(&wanted.version)),
        host.serving.as_deref().map_or_else(none, |digest| version_of(plugin, host, digest)),
        json!(host.phase).as_str().unwrap_or_default().to_owned(),
        host.revision.to_string(),
        host.lag_events.to_string(),
        reason,
    ]
}

/// The version of a component that serves, or the beginning of its digest.
fn version_of(plugin: &PluginFleet, host: &HostPlugin, digest: &str) -> String {
    let known = [&host.wanted, &plugin.spec, &plugin.stable];
    let named = known.into_iter().flatten().find(|named: &&Named| named.digest == digest);
    match named {
        Some(named) => printable(&named.version),
        None => printable(&digest.chars().take(DIGEST_SHOWN).collect::<String>()),
    }
}
