//! `millrace version`.

use clap::Args;
use serde_json::json;

use super::{CliError, Output};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  millrace version\n  millrace version --json")]
pub(super) struct VersionArgs {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VersionArgs, output: &mut Output) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
    if args.json {
        output.json(&json!({ "version": version, "os": system, "arch": processor }))?;
    } else {
        output.line(&format!("millrace {version} ({system}, {processor})"))?;
    }
    output.flush()
}
