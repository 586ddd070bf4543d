//! `millrace status`: is it ready, and how are its plugins?

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::client::{ANSWER_WAIT_MAX, Client, Connect};
use super::{CliError, Exit, Output, plugin};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace status
  millrace status --json
  until millrace status > /dev/null; do sleep 1; done     wait for a host

Exit code 0 when the host is ready, 3 when it cannot be reached, 1 when it is not ready yet.")]
pub(super) struct StatusArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: StatusArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let request = client.request(Method::GET, client.address(&["readyz"], &[])).timeout(ANSWER_WAIT_MAX);
    let ready = client.send(request).await.map(drop);
    if ready.as_ref().is_err_and(|error| error.exit() == Exit::Unreachable) {
        return ready;
    }
    let plugins = plugin::list(&client).await;
    if args.json {
        output.json(&json!({
            "url": args.connect.url,
            "ready": ready.is_ok(),
            "plugins": plugins.as_ref().ok(),
        }))?;
    } else {
        let state = if ready.is_ok() { "ready" } else { "not ready" };
        output.line(&format!("{} is {state}", args.connect.url))?;
        if let Ok(plugins) = &plugins {
            plugin::show_list(plugins, output)?;
        }
    }
    output.flush()?;
    ready.and(plugins.map(drop))
}
