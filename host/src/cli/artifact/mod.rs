//! `millrace artifact …`: what a fleet runs, by its content.

mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, Connect};
use super::{Align, CliError, Output, printable, spans};
use crate::limits::ARTIFACT_PAGE_MAX;

pub(super) use transfer::{
    StoredLength, build_signatures, digest_file, receive, send_bytes, sign_build, store_file, stored_length,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace artifact push board.wasm                                   store it, unless it is there
  millrace artifact push board.wasm --sign build.pem --plugin board   and say that it is a build of `board`
  millrace artifact pull sha256:9f86… -o board.wasm
  millrace artifact ls
  millrace artifact verify board.wasm --trust trust.json --plugin board
  millrace artifact gc --older-than 30d --dry-run

All of them need a token with the right admin.")]
pub(super) struct ArtifactArgs {
    #[command(subcommand)]
    command: ArtifactCommand,
}

#[derive(Debug, Subcommand)]
enum ArtifactCommand {
    /// Store a file, unless it is there, and print its digest
    #[command(
        after_help = "Examples:\n  millrace artifact push board.wasm\n  millrace artifact push board.wasm --sign build.pem --plugin board --json"
    )]
    Push(PushArgs),
    /// Write an artifact to a file, once all of it came and has its digest
    #[command(after_help = "Examples:\n  millrace artifact pull sha256:9f86… -o board.wasm")]
    Pull(PullArgs),
    /// All artifacts, in the order of their digests
    #[command(after_help = "Examples:\n  millrace artifact ls\n  millrace artifact ls --json | jq .digest")]
    Ls(LsArgs),
    /// Say whether the host has an artifact whole, and who has signed it
    #[command(
        after_help = "Examples:\n  millrace artifact verify board.wasm\n  millrace artifact verify sha256:9f86… --trust trust.json --plugin board"
    )]
    Verify(VerifyArgs),
    /// Remove artifacts that nobody pins
    #[command(
        after_help = "Examples:\n  millrace artifact gc --dry-run\n  millrace artifact gc --older-than 12h"
    )]
    Gc(GcArgs),
}

#[derive(Debug, Args)]
struct PushArgs {
    /// The file
    file: PathBuf,
    /// Sign it with this build key, a file of `millrace keys new`
    #[arg(long, value_name = "KEYFILE", requires = "plugin")]
    sign: Option<PathBuf>,
    /// With --sign: the plugin that it is a build of
    #[arg(long, value_name = "NAME", requires = "sign")]
    plugin: Option<String>,
    /// Send it also when it is there: what is damaged is put right, and its age begins anew for `gc`
    #[arg(long)]
    again: bool,
    /// Keep it from being collected, under this name
    #[arg(long, value_name = "NAME")]
    pin: Option<String>,
    /// Write JSON, and no progress
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct PullArgs {
    /// sha256: and 64 hexadecimal digits
    digest: String,
    /// The file to write
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
    /// Write JSON, and no progress
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Write JSON, one artifact a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// A digest, or a file whose digest it is
    #[arg(value_name = "DIGEST|FILE")]
    what: String,
    /// Demand the signature of a build key of this list
    #[arg(long, value_name = "FILE", requires = "plugin")]
    trust: Option<PathBuf>,
    /// With --trust: the plugin that it must be a build of
    #[arg(long, value_name = "NAME", requires = "trust")]
    plugin: Option<String>,
    /// Write JSON, and no progress
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct GcArgs {
    /// How long ago it must have been stored: 90s, 15m, 12h, 30d
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = spans::parse)]
    older_than: Duration,
    /// Remove nothing, and say what would go
    #[arg(long)]
    dry_run: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// As the host says it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Artifact {
    digest: String,
    bytes: u64,
    stored_at: String,
    pins: Vec<String>,
}

pub(super) async fn run(args: ArtifactArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        ArtifactCommand::Push(args) => transfer::push(&args, output).await?,
        ArtifactCommand::Pull(args) => transfer::pull(&args, output).await?,
        ArtifactCommand::Ls(args) => ls(&args, output).await?,
        ArtifactCommand::Verify(args) => transfer::verify(&args, output).await?,
        ArtifactCommand::Gc(args) => gc(&args, output).await?,
    }
    output.flush()
}

async fn ls(args: &LsArgs, output: &mut Output) -> Result<(), CliError> {
    #[derive(Deserialize)]
    struct Page {
        artifacts: Vec<Artifact>,
        next: Option<String>,
    }
    let client = Client::new(&args.connect)?;
    let limit = ARTIFACT_PAGE_MAX.to_string();
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let mut query = vec![("limit", limit.as_str())];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page: Page = client.get(&["v1", "artifacts"], &query).await?;
        for artifact in &page.artifacts {
            if args.json {
                output.json(artifact)?;
            } else {
                rows.push(row(artifact));
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    match (args.json, rows.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => output.line("no artifacts; store one with `millrace artifact push FILE`"),
        (false, false) => table(&rows, output),
    }
}

async fn gc(args: &GcArgs, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&args.connect)?;
    let seconds = args.older_than.as_secs().to_string();
    let dry_run = args.dry_run.to_string();
    let query = [("older_than", seconds.as_str()), ("dry_run", dry_run.as_str())];
    let address = client.address(&["v1", "artifacts", "collect"], &query);
    let answer: Value = client.json(client.request(Method::POST, address)).await?;
    if args.json {
        return output.json(&answer);
    }
    let gone: Vec<Artifact> = serde_json::from_value(answer.get("artifacts").cloned().unwrap_or(json!([])))
        .map_err(|error| client.unexpected(&error.to_string()))?;
    if !gone.is_empty() {
        table(&gone.iter().map(row).collect::<Vec<_>>(), output)?;
    }
    let bytes: u64 = gone.iter().map(|artifact| artifact.bytes).sum();
    let done = if args.dry_run { "would go" } else { "are gone" };
    output.line(&format!("{} artifacts of {bytes} bytes {done}", gone.len()))
}

fn row(artifact: &Artifact) -> Vec<String> {
    let pins: Vec<String> = artifact.pins.iter().map(|pin| printable(pin)).collect();
    vec![
        printable(&artifact.digest),
        artifact.bytes.to_string(),
        printable(&artifact.stored_at),
        pins.join(" "),
    ]
}

fn table(rows: &[Vec<String>], output: &mut Output) -> Result<(), CliError> {
    let head = [
        ("DIGEST", Align::Left),
        ("BYTES", Align::Right),
        ("STORED", Align::Left),
        ("PINNED BY", Align::Left),
    ];
    output.table(&head, rows)
}
