//! `millrace plugin deploy` and what belongs to it: candidates and the way back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, header};
use serde_json::Value;

use super::client::{Client, Connect};
use super::plugin::{NameArgs, text};
use super::{CliError, Output};
use crate::limits::COMPONENT_BYTES_MAX;

/// How long a deploy may take: compiling a large component is minutes, not seconds.
const DEPLOY_WAIT_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// The component
    file: PathBuf,
    /// Where the first deploy begins: oldest, tail, or a cursor
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Refuse the component should it say another name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    shadow: ShadowArgs,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// How a version is tried in the shadow of the running one.
#[derive(Debug, Args)]
pub(super) struct ShadowArgs {
    /// Events that it handles in the shadow before it takes over
    #[arg(long, value_name = "N")]
    shadow_events: Option<u64>,
    /// How long it does so where there is traffic
    #[arg(long, value_name = "MS")]
    shadow_ms: Option<u64>,
    /// Take over without a shadow run; the history says so
    #[arg(long)]
    no_shadow: bool,
    /// Take over only after `millrace plugin confirm`
    #[arg(long)]
    confirm: bool,
    /// Refuse it if its rows, emitted events or appended entries differ
    #[arg(long, value_name = "WHAT", value_parser = ["identical-rows"])]
    expect: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The plugin's name
    name: String,
    /// A version or digest of its history
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    #[command(flatten)]
    shadow: ShadowArgs,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

impl ShadowArgs {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.shadow_events.map(|events| ("shadow_events", events.to_string())));
        query.extend(self.shadow_ms.map(|ms| ("shadow_ms", ms.to_string())));
        query.extend(self.no_shadow.then(|| ("no_shadow", "true".to_owned())));
        query.extend(self.confirm.then(|| ("confirm", "true".to_owned())));
        query.extend(self.expect.clone().map(|expect| ("expect", expect)));
        query
    }
}

pub(super) async fn deploy(args: &DeployArgs, output: &mut Output) -> Result<(), CliError> {
    let component = read_component(&args.file)?;
    let client = Client::new(&args.connect)?;
    let shadow = args.shadow.query();
    let mut query: Vec<(&str, &str)> = shadow.iter().map(|(name, value)| (*name, value.as_str())).collect();
    query.extend(args.from.as_deref().map(|from| ("from", from)));
    query.extend(args.name.as_deref().map(|name| ("name", name)));
    let request = client
        .request(Method::POST, client.address(&["v1", "plugins"], &query))
        .header(header::CONTENT_TYPE, "application/wasm")
        .body(component);
    let plugin = ask(&client, request).await?;
    if args.json { output.json(&plugin) } else { tell(&plugin, output) }
}

pub(super) async fn rollback(args: &RollbackArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let shadow = args.shadow.query();
    let mut query: Vec<(&str, &str)> = shadow.iter().map(|(name, value)| (*name, value.as_str())).collect();
    query.extend(args.to.as_deref().map(|to| ("to", to)));
    let address = client.address(&["v1", "plugins", &args.name, "rollback"], &query);
    let plugin = ask(&client, client.request(Method::POST, address)).await?;
    if args.json { output.json(&plugin) } else { tell(&plugin, output) }
}

pub(super) async fn abandon(args: &NameArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let address = client.address(&["v1", "plugins", &args.name, "candidate"], &[]);
    let plugin: Value = client.json(client.request(Method::DELETE, address)).await?;
    if args.json {
        return output.json(&plugin);
    }
    output.line(&format!("the candidate of {} is given up; the running version goes on", args.name))
}

pub(super) async fn ask(client: &Client, request: RequestBuilder) -> Result<Value, CliError> {
    let response = client.send(request.timeout(DEPLOY_WAIT_MAX)).await?;
    let body = response.bytes().await.map_err(|e| client.unreachable(&e))?;
    serde_json::from_slice(&body).map_err(|e| client.unexpected(&e.to_string()))
}

/// What became of the deploy, and how the versions compare.
fn tell(plugin: &Value, output: &mut Output) -> Result<(), CliError> {
    let at = |path: &str| text(plugin.pointer(path));
    let (name, version) = (at("/name"), at("/deployment/version"));
    let waits = at("/candidate/state") == "waiting";
    if waits {
        output.line(&format!(
            "{} has proved itself and waits: `millrace plugin confirm {name}` or `millrace plugin abandon {name}`",
            at("/candidate/name")
        ))?;
    } else if at("/nothing_changed") == "true" {
        return output.line(&format!("{name} {version} runs already; nothing changed"));
    } else {
        output.line(&format!("{name} {version} is {} ({})", at("/state"), at("/deployment/digest")))?;
    }
    let Some(report) = plugin.pointer("/candidate/report").filter(|report| report.is_object()) else {
        return Ok(());
    };
    let of = |path: &str| text(report.pointer(path));
    let counts = |what: &str| {
        let [same, different] = ["same", "different"].map(|count| of(&format!("/{what}/{count}")));
        let [old, new] = ["only_old", "only_new"].map(|count| of(&format!("/{what}/{count}")));
        format!("{same} equal, {different} differ, {old} only before, {new} only now")
    };
    output.line(&format!("in the shadow: {} events in {} ms", of("/events"), of("/milliseconds")))?;
    output.line(&format!("rows: {}", counts("rows")))?;
    output.line(&format!("emitted events: {}", counts("emitted")))?;
    output.line(&format!("appended entries: {}", counts("appended")))?;
    output.line(&format!(
        "time for an event: {} ns before, {} ns now; state: {} bytes before, {} now",
        of("/old/nanoseconds_per_event"),
        of("/new/nanoseconds_per_event"),
        of("/old/state_bytes"),
        of("/new/state_bytes")
    ))
}

/// How a deployment proved itself, for the history.
pub(super) fn proof(deployment: &Value) -> String {
    let proof = deployment.get("proof");
    let events = proof.and_then(|proof| proof.pointer("/shadowed/events"));
    let rebuilt = proof.and_then(|proof| proof.pointer("/rebuilt/events"));
    let proved = match (events, proof.and_then(Value::as_str)) {
        (Some(events), _) => format!("{events} events in the shadow"),
        _ if rebuilt.is_some() => format!("rebuilt over {} events", text(rebuilt)),
        (None, Some("loaded_only")) => "loaded, shadow left out".into(),
        _ => "loaded".into(),
    };
    let rollback = deployment.get("rollback").and_then(Value::as_bool).unwrap_or(false);
    if rollback { format!("{proved}, rollback") } else { proved }
}

pub(super) fn read_component(path: &Path) -> Result<Vec<u8>, CliError> {
    let unreadable = |e: std::io::Error| {
        CliError::failed(
            format!("{} cannot be read: {e}", path.display()),
            "look at the path and its permissions",
        )
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > COMPONENT_BYTES_MAX as u64 {
        return Err(CliError::usage(
            format!("{} has {bytes} bytes; component_bytes_max is {COMPONENT_BYTES_MAX}", path.display()),
            "build it with the plugin profile, stripped",
        ));
    }
    std::fs::read(path).map_err(unreadable)
}
