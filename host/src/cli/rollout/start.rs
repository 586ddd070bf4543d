//! `millrace rollout start`: a version on its way to the fleet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::PlanArgs;
use super::component::Component;
use super::plan::{lines, selector};
use super::settings::Permissions;
use crate::cli::client::Client;
use crate::cli::fleet::{Author, SignArgs, Standing, config_artifact, new_id, propose, read_config, unfit};
use crate::cli::{CliError, Exit, Output, printable};
use crate::control::changes::{Deploy, former};
use crate::control::rollout::Plan;
use crate::control::trust::KeyRole;
use crate::control::{Desired, PluginSpec, RunState};

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// The plugin's name
    pub(super) plugin: String,
    /// The component: a file, which is stored first, or the digest of one that is stored
    #[arg(long, value_name = "DIGEST|FILE")]
    pub(super) artifact: String,
    /// Sign the component with this build key as a build of the plugin
    #[arg(long, value_name = "KEYFILE")]
    pub(super) build_key: Option<PathBuf>,
    /// Go on although no build key has signed the component
    #[arg(long)]
    pub(super) unsigned: bool,
    /// Its version; without it the component is compiled here and asked
    #[arg(long, value_name = "VERSION")]
    pub(super) version_is: Option<String>,
    /// Its configuration: a file with a JSON object of texts
    #[arg(long, value_name = "FILE", conflicts_with = "no_config")]
    config: Option<PathBuf>,
    /// Without the configuration that it has
    #[arg(long)]
    no_config: bool,
    /// Its limits and grants, all of them: a TOML file
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// One more grant, such as clock; repeatable
    #[arg(long, value_name = "NAME")]
    grant: Vec<String>,
    /// Hosts that run it at all: LABEL=VALUE[,LABEL=VALUE…], or `all`
    #[arg(long, value_name = "LABELS", value_parser = selector)]
    target: Option<BTreeMap<String, String>>,
    /// Where a first deploy begins to read: oldest, tail or after:POSITION
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Events that it handles in the shadow before it takes over; 0 leaves it out
    #[arg(long, value_name = "N")]
    shadow_events: Option<u64>,
    /// Take over without a shadow run
    #[arg(long, conflicts_with = "shadow_events")]
    no_shadow: bool,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    pub(super) sign: SignArgs,
}

pub(super) async fn start(args: &StartArgs, output: &mut Output) -> Result<(), CliError> {
    // What is wrong with files of this machine is found out before anybody is asked.
    let author = Author::read(&args.sign, KeyRole::Release)?;
    let plan = args.plan.read()?;
    let config = args.config.as_deref().map(read_config).transpose()?;
    let permissions = args.settings.as_deref().map(Permissions::read).transpose()?;
    let client = Client::new(&args.sign.connect)?;
    let standing = Standing::read(&client).await?;
    if !args.sign.dry_run {
        standing.check_thawed()?;
    }
    let known = standing.plugin(&client, &args.plugin)?;
    let before = known.desired().and_then(kept);
    let component = Component::read(&client, args).await?;
    let permissions = permissions
        .or_else(|| {
            before.map(|spec| Permissions { limits: spec.limits.clone(), grants: spec.grants.clone() })
        })
        .unwrap_or_default()
        .granting(&args.grant);
    check_grants(&args.plugin, &component, &permissions)?;
    let version = component.version.clone();
    let mut spec = PluginSpec {
        version: version.clone(),
        world: component.world.clone(),
        config: before.filter(|_| !args.no_config).and_then(|spec| spec.config.clone()),
        limits: permissions.limits,
        grants: permissions.grants,
        from: args
            .from
            .clone()
            .or_else(|| before.map(|spec| spec.from.clone()))
            .unwrap_or_else(|| "oldest".into()),
        shadow_events: if args.no_shadow { Some(0) } else { args.shadow_events },
        component: component.unsigned(),
    };
    let id = new_id();
    let deploy = |spec: PluginSpec| {
        let deploy = Deploy { spec, plan: plan.clone(), targets: args.target.clone() };
        let change = known.present(&args.plugin).deploy(&id, deploy).map_err(|error| unfit(&error))?;
        author.plugin(&args.plugin, &known, id.clone(), change)
    };
    // Nothing is stored for what would not be an event.
    deploy(spec.clone())?;
    spec.component = component.store(&client, args).await?;
    if let Some(content) = config {
        spec.config = Some(config_artifact(&client, content, args.sign.dry_run).await?);
    }
    let event = deploy(spec)?;
    propose(&client, &event, &args.sign, output).await?;
    if args.sign.json || args.sign.dry_run {
        return Ok(());
    }
    tell(&args.plugin, &version, plan.as_ref(), output)
}

fn tell(plugin: &str, version: &str, plan: Option<&Plan>, output: &mut Output) -> Result<(), CliError> {
    match plan {
        None => output.line(&format!("{plugin} {version} goes to every host at once"))?,
        Some(plan) => {
            output.line(&format!("{plugin} {version} goes out in {} waves:", plan.waves.len()))?;
            for line in lines(plan) {
                output.line(&format!("  {}", printable(&line)))?;
            }
        }
    }
    output.line(&format!("follow it with `millrace rollout status {plugin} --watch`"))
}

/// The version whose settings a new one takes over: that which most hosts run, or what was tried where nothing else was.
fn kept(desired: &Desired) -> Option<&PluginSpec> {
    if desired.state == RunState::Removed {
        return None;
    }
    former(desired).or(desired.spec.as_ref())
}

/// What it needs and is not given would only come out on the hosts.
fn check_grants(plugin: &str, component: &Component, given: &Permissions) -> Result<(), CliError> {
    let missing: Vec<&str> =
        component.grants.iter().map(String::as_str).filter(|grant| !given.gives(grant)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = printable(&missing.join(", "));
    Err(CliError::new(
        Exit::Refused,
        format!("{plugin} needs grants that it is not given: {names}"),
        "give them in --settings FILE with what they reach, or with --grant",
    ))
}
