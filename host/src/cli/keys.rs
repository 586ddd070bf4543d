//! `millrace keys …`: keys that sign, and the list of those that are believed. Nothing here asks a host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use tempfile::NamedTempFile;

use super::{CliError, Output, printable};
use crate::control::trust::{KeyRole, TrustStore, TrustedKey};
use crate::control::{ControlFeedError, SigningKey, Trusted};
use crate::event::Micros;
use crate::limits::{CONTROL_KEY_FILE_BYTES_MAX, CONTROL_TRUST_BYTES_MAX};

/// Only its owner reads a private key.
const PRIVATE_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millrace keys new --role build -o build.pem            build.pem is secret; build.pem.pub is for others
  millrace keys trust build.pem.pub --file trust.json    hosts with this list believe its builds
  millrace keys revoke ed25519:34750f98bd59fcfc --file trust.json

Roles: `build` signs artifacts, `release` signs what hosts are to run, `root` signs changes of the list of keys.")]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key: a file that only you can read, and its public part beside it
    #[command(
        after_help = "Examples:\n  millrace keys new --role release -o release.pem --owner ops@example.com"
    )]
    New(NewArgs),
    /// Add a public key to a list of trusted keys, and say what changed
    #[command(
        after_help = "Examples:\n  millrace keys trust build.pem.pub --file trust.json\n  millrace keys trust build.pem.pub --file trust.json --expires-at 2027-01-01T00:00:00Z"
    )]
    Trust(TrustArgs),
    /// Stop believing a key, whatever it signed and whenever; it stays in the list as revoked
    #[command(after_help = "Examples:\n  millrace keys revoke ed25519:34750f98bd59fcfc --file trust.json")]
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// What it is for
    #[arg(long, value_parser = ["build", "release", "root"])]
    role: String,
    /// The file of the private key; one that is there is left alone
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
    /// Who has it, for people; without it the file's name
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TrustArgs {
    /// The file of the public key
    key: PathBuf,
    /// When it stops counting, RFC 3339
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// The key's id, or the file of its public part
    key: String,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The list of trusted keys; made by the first `trust`
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The list's new revision; without it one more than before
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: KeysArgs, output: &mut Output) -> Result<(), CliError> {
    match args.command {
        KeysCommand::New(args) => new(&args, output)?,
        KeysCommand::Trust(args) => trust(&args, output)?,
        KeysCommand::Revoke(args) => revoke(&args, output)?,
    }
    output.flush()
}

fn new(args: &NewArgs, output: &mut Output) -> Result<(), CliError> {
    let role = match args.role.as_str() {
        "build" => KeyRole::Build,
        "release" => KeyRole::Release,
        _ => KeyRole::Root,
    };
    let path = &args.output;
    let file_name = || path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let owner = args.owner.clone().unwrap_or_else(file_name);
    let (key, pem) = SigningKey::generate().map_err(|error| unusable(path, &error))?;
    let public = json_text(&key.trusted_as(role, &owner));
    // An owner that cannot stand in a list is found out now, and not when the key is needed.
    public.parse::<TrustedKey>().map_err(|error| unusable(path, &error))?;
    let beside = PathBuf::from(format!("{}.pub", path.display()));
    create(path, PRIVATE_MODE, &pem)?;
    if let Err(error) = create(&beside, PUBLIC_MODE, &public) {
        // A secret without its public part is of no use.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    let (file, public_file) = (path.display().to_string(), beside.display().to_string());
    if args.json {
        return output.json(&json!({
            "id": key.id(), "role": role.as_str(), "owner": owner, "file": file, "public_file": public_file,
        }));
    }
    output.line(&format!("{} is a new {} key", key.id(), role.as_str()))?;
    output.line(&format!("private: {file} (keep it secret)"))?;
    output.line(&format!("public:  {public_file} (for `millrace keys trust`)"))
}

fn trust(args: &TrustArgs, output: &mut Output) -> Result<(), CliError> {
    let mut key = read_public(&args.key)?;
    if let Some(text) = &args.expires_at {
        let wrong = |_| CliError::usage("--expires-at is no time", "write it as 2027-01-01T00:00:00Z");
        key.expires_at = Some(Micros::parse(text).map_err(wrong)?.0);
    }
    let is_new = !args.list.file.exists();
    let before = if is_new { TrustStore::default() } else { read_trust(&args.list.file)? };
    let id = key.id().unwrap_or_default();
    let known = before.keys().find(|(known, _)| *known == id).map(|(_, known)| known.clone());
    if known.as_ref() == Some(&key) {
        return said(&args.list, before.revision(), &id, "unchanged", "is in the list already", output);
    }
    if known.is_some_and(|known| known.revoked) {
        return Err(CliError::usage(
            format!("{id} is revoked in {}", args.list.file.display()),
            "make a new key; a revoked one may be in other hands",
        ));
    }
    let role = key.role.as_str();
    let after = before.trusting(key).map_err(|error| unusable(&args.list.file, &error))?;
    let revision = write_list(&args.list, &before, &after, is_new)?;
    said(&args.list, revision, &id, "trusted", &format!("is trusted as a {role} key"), output)
}

fn revoke(args: &RevokeArgs, output: &mut Output) -> Result<(), CliError> {
    let before = read_trust(&args.list.file)?;
    let id = match Path::new(&args.key).is_file() {
        true => read_public(Path::new(&args.key))?.id().unwrap_or_default(),
        false => args.key.clone(),
    };
    let is_revoked = before.keys().any(|(known, key)| known == id && key.revoked);
    if is_revoked {
        return said(&args.list, before.revision(), &id, "unchanged", "is revoked already", output);
    }
    let after = before.revoking(&id).map_err(|error| unusable(&args.list.file, &error))?;
    let revision = write_list(&args.list, &before, &after, false)?;
    said(&args.list, revision, &id, "revoked", "is revoked", output)
}

fn said(
    args: &ListArgs,
    revision: u64,
    id: &str,
    outcome: &str,
    words: &str,
    output: &mut Output,
) -> Result<(), CliError> {
    let file = args.file.display().to_string();
    if args.json {
        return output.json(&json!({ "id": id, "outcome": outcome, "file": file, "revision": revision }));
    }
    output.line(&format!("{} {words}; {file} has revision {revision}", printable(id)))
}

/// Replaces the list; answers its revision. A host takes the list with the higher one, its file's or its feed's.
fn write_list(args: &ListArgs, before: &TrustStore, after: &Trusted, is_new: bool) -> Result<u64, CliError> {
    let next = before.revision() + u64::from(!is_new);
    let revision = args.revision.unwrap_or(next);
    if revision < next {
        return Err(CliError::usage(
            format!("revision {revision} is not above {}, which the list has", before.revision()),
            format!("give {next} or more, or leave --revision out"),
        ));
    }
    let list = TrustStore::new(revision, after).map_err(|error| unusable(&args.file, &error))?;
    replace(&args.file, &list.to_json()).map_err(|error| unwritable(&args.file, &error))?;
    Ok(revision)
}

/// A private key. Nothing of the file is shown.
pub(super) fn read_signing_key(path: &Path) -> Result<SigningKey, CliError> {
    let text = read(path, CONTROL_KEY_FILE_BYTES_MAX)?;
    SigningKey::from_pem(&text).map_err(|error| unusable(path, &error))
}

pub(super) fn read_trust(path: &Path) -> Result<TrustStore, CliError> {
    let text = read(path, CONTROL_TRUST_BYTES_MAX)?;
    TrustStore::parse(&text).map_err(|error| unusable(path, &error))
}

pub(super) fn read_public(path: &Path) -> Result<TrustedKey, CliError> {
    let text = read(path, CONTROL_TRUST_BYTES_MAX)?;
    text.parse().map_err(|error| unusable(path, &error))
}

/// One byte more than the bound is enough to be refused.
fn read(path: &Path, bytes_max: usize) -> Result<String, CliError> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(bytes_max as u64 + 1).read_to_string(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    read().map_err(|error| {
        CliError::failed(
            format!("{} cannot be read: {error}", path.display()),
            "look at the path and its permissions",
        )
    })
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(CliError::usage(
                format!("{} is there already", path.display()),
                "name another file; a key that is lost cannot be made again",
            ));
        }
        Err(error) => return Err(unwritable(path, &error)),
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| unwritable(path, &error))
}

/// The old list or the new one, whatever happens.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(PUBLIC_MODE))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

fn json_text(key: &TrustedKey) -> String {
    format!("{:#}\n", json!(key))
}

fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(
        format!("{} cannot be written: {error}", path.display()),
        "look at the path and its permissions",
    )
}

/// What is wrong with a file; the name of the setting that it is for on a host would not help here.
fn unusable(path: &Path, error: &ControlFeedError) -> CliError {
    let detail = match error {
        ControlFeedError::Settings { detail, .. } => detail.clone(),
        other => other.to_string(),
    };
    CliError::failed(
        format!("{}: {}", path.display(), printable(&detail)),
        "correct the file, or name another; `millrace keys --help` has examples",
    )
}
