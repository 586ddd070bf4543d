//! `millrace config`, and the flags by which `serve` and `config` find the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{Align, CliError, Output, printable};
use crate::config::{Layers, Resolved};

/// Read where no `--config` says otherwise, if it is there.
const FILE: &str = "millrace.toml";

/// The layers above the defaults.
#[derive(Debug, Default, Args)]
pub(super) struct SettingsArgs {
    /// The config file; without it millrace.toml in this folder, if there is one
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Where to listen [setting serve.bind]
    #[arg(long, value_name = "ADDRESS:PORT")]
    bind: Option<SocketAddr>,
    /// The folder of the store [setting serve.data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A log that several hosts share: redis://, rediss:// or redis+sentinel:// [setting serve.log]
    #[arg(long, value_name = "ADDRESS")]
    log: Option<String>,
    /// A folder of components to deploy and watch [setting serve.plugins_dir]
    #[arg(long, value_name = "DIR")]
    plugins_dir: Option<PathBuf>,
    /// Where this host hears what to run: file, sqlite, redis, nats [setting control.source]
    #[arg(long, value_name = "NAME")]
    feed_source: Option<String>,
    /// Where this host tells its fleet what to run [setting control.sink]
    #[arg(long, value_name = "NAME")]
    feed_sink: Option<String>,
    /// Believe the feed without signatures; never where strangers can write to it [setting control.insecure_dev]
    #[arg(long)]
    insecure_dev: bool,
    /// Which messages are written, such as millrace=debug,warn [setting telemetry.filter]
    #[arg(long, value_name = "FILTER")]
    trace: Option<String>,
    /// Any setting, such as store.retention_events=1000000; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace config                                      every setting, its value and its source
  millrace config --json                               the same for scripts
  millrace config --config staging.toml                what a file would mean
  MILLRACE_STORE__RETENTION_EVENTS=1000 millrace config
  millrace config --set serve.drain_ms_max=5000        what a flag would mean

Sources, the later wins: default, file, env MILLRACE_SECTION__KEY, flags.
Names of plugins in variables are lower case; for others use the file or --set.")]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Show the defaults, whatever is configured
    #[arg(long)]
    defaults: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl SettingsArgs {
    /// Puts the layers together, with this process's environment.
    pub(super) fn resolve(&self) -> Result<Resolved, CliError> {
        let mut layers = Layers::new();
        match &self.config {
            Some(path) => drop(layers.file(path)?),
            None if Path::new(FILE).exists() => drop(layers.file(Path::new(FILE))?),
            None => {}
        }
        layers.environment(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        );
        if let Some(bind) = self.bind {
            layers.flag("--bind", "serve.bind", bind.to_string());
        }
        for (flag, key, path) in
            [("--data", "serve.data", &self.data), ("--plugins-dir", "serve.plugins_dir", &self.plugins_dir)]
        {
            if let Some(path) = path {
                let text = path.to_str().ok_or_else(|| {
                    CliError::usage(format!("{flag} is not UTF-8: {}", path.display()), "give a path that is")
                })?;
                layers.flag(flag, key, text);
            }
        }
        for (flag, key, text) in [
            ("--log", "serve.log", &self.log),
            ("--feed-source", "control.source", &self.feed_source),
            ("--feed-sink", "control.sink", &self.feed_sink),
            ("--trace", "telemetry.filter", &self.trace),
        ] {
            if let Some(text) = text {
                layers.flag(flag, key, text.as_str());
            }
        }
        if self.insecure_dev {
            layers.flag("--insecure-dev", "control.insecure_dev", true);
        }
        for text in &self.set {
            layers.assignment(text)?;
        }
        Ok(layers.resolve()?)
    }
}

pub(super) fn run(args: &ConfigArgs, output: &mut Output) -> Result<(), CliError> {
    let resolved = if args.defaults { Layers::new().resolve()? } else { args.settings.resolve()? };
    if args.json {
        output.json(&json!({ "settings": resolved.settings }))?;
        return output.flush();
    }
    let rows: Vec<Vec<String>> = resolved
        .settings
        .iter()
        .map(|setting| {
            let value = if setting.value.is_empty() { "-" } else { &setting.value };
            vec![setting.key.clone(), printable(value), printable(&setting.source)]
        })
        .collect();
    output.table(&[("SETTING", Align::Left), ("VALUE", Align::Left), ("SOURCE", Align::Left)], &rows)?;
    output.flush()
}
