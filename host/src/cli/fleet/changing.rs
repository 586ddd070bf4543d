//! `millrace fleet config` and `millrace fleet trust`.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Author, ConfigArgs, Standing, TrustArgs, new_id, propose, read_bounded, unfit};
use crate::cli::artifact::send_bytes;
use crate::cli::client::Client;
use crate::cli::keys::read_trust;
use crate::cli::{CliError, Output};
use crate::control::trust::KeyRole;
use crate::control::{ArtifactRef, digest_of};
use crate::limits::CONTROL_CONFIG_BYTES_MAX;

pub(super) async fn config(args: &ConfigArgs, output: &mut Output) -> Result<(), CliError> {
    let author = Author::read(&args.sign, KeyRole::Release)?;
    let plan = args.plan.read()?;
    let content = args.config.as_deref().map(read_config).transpose()?;
    let client = Client::new(&args.sign.connect)?;
    let standing = Standing::read(&client).await?;
    if !args.sign.dry_run {
        standing.check_thawed()?;
    }
    let known = standing.plugin(&client, &args.plugin)?;
    let id = new_id();
    let make = |config| {
        known.present(&args.plugin).configure(&id, config, plan.clone()).map_err(|error| unfit(&error))
    };
    // What cannot be changed is found out before anything is stored for it.
    make(None)?;
    let config = match content {
        Some(content) => Some(config_artifact(&client, content, args.sign.dry_run).await?),
        None => None,
    };
    let change = make(config)?;
    let event = author.plugin(&args.plugin, &known, id, change)?;
    propose(&client, &event, &args.sign, output).await
}

/// Reads a configuration as hosts will.
pub(in crate::cli) fn read_config(path: &Path) -> Result<Vec<u8>, CliError> {
    let content = read_bounded(path, CONTROL_CONFIG_BYTES_MAX)?;
    match serde_json::from_slice::<BTreeMap<String, String>>(&content) {
        Ok(_) => Ok(content),
        Err(error) => Err(CliError::usage(
            format!("{} is not a JSON object of texts: {error}", path.display()),
            "write each value in quotes, numbers and lists, too",
        )),
    }
}

/// Stores a configuration, unless nothing is to be changed.
pub(in crate::cli) async fn config_artifact(
    client: &Client,
    content: Vec<u8>,
    dry_run: bool,
) -> Result<ArtifactRef, CliError> {
    if dry_run {
        let digest = digest_of(Sha256::new_with_prefix(&content));
        return Ok(ArtifactRef { digest, bytes: content.len() as u64, signatures: Vec::new() });
    }
    send_bytes(client, content).await
}

pub(super) async fn trust(args: &TrustArgs, output: &mut Output) -> Result<(), CliError> {
    let author = Author::read(&args.sign, KeyRole::Root)?;
    let list = read_trust(&args.file)?;
    let client = Client::new(&args.sign.connect)?;
    let known = Standing::read(&client).await?.entity(&client, "trust")?;
    // Hosts that begin with this very file take the feed's word only when it is later.
    let next = known.revision.max(list.revision()).saturating_add(1);
    let event = author.trust(list.trusted(), &known, args.revision.unwrap_or(next))?;
    propose(&client, &event, &args.sign, output).await
}
