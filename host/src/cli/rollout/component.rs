//! The component of a rollout: what it is, that it is stored, and who has signed it.

use std::path::{Path, PathBuf};

use super::start::StartArgs;
use crate::cli::artifact::{
    StoredLength, build_signatures, digest_file, receive, sign_build, store_file, stored_length,
};
use crate::cli::client::Client;
use crate::cli::deploy::read_component;
use crate::cli::keys::read_signing_key;
use crate::cli::{CliError, Exit, printable};
use crate::control::{ArtifactRef, Signature, SigningKey, check_digest};
use crate::plugins::{RuntimeOptions, WORLD_NAME, WasmRuntime};

/// Where it is.
#[derive(Debug)]
enum Place {
    File(PathBuf),
    Stored,
}

/// A component, before anything is sent.
#[derive(Debug)]
pub(super) struct Component {
    place: Place,
    artifact: ArtifactRef,
    pub(super) version: String,
    pub(super) world: String,
    /// What it says that it needs.
    pub(super) grants: Vec<String>,
    key: Option<SigningKey>,
}

impl Component {
    /// Reads a component, and asks it what it is.
    pub(super) async fn read(client: &Client, args: &StartArgs) -> Result<Self, CliError> {
        let key = args.build_key.as_deref().map(read_signing_key).transpose()?;
        let path = Path::new(&args.artifact);
        let (place, artifact, content) = if path.is_file() {
            let content = read_component(path)?;
            let (digest, bytes) = digest_file(path)?;
            (Place::File(path.to_owned()), ArtifactRef { digest, bytes, signatures: Vec::new() }, content)
        } else {
            let (artifact, content) = stored(client, args).await?;
            (Place::Stored, artifact, content)
        };
        let (version, world, grants) = match &args.version_is {
            Some(version) => (version.clone(), WORLD_NAME.to_owned(), Vec::new()),
            None => ask(&args.plugin, content).await?,
        };
        Ok(Self { place, artifact, version, world, grants, key })
    }

    /// As it is named before anybody has signed it.
    pub(super) fn unsigned(&self) -> ArtifactRef {
        self.artifact.clone()
    }

    /// Stores and signs it as far as that is asked for, and answers it with the word of its build keys.
    pub(super) async fn store(self, client: &Client, args: &StartArgs) -> Result<ArtifactRef, CliError> {
        let Self { place, mut artifact, key, .. } = self;
        if args.sign.dry_run {
            return Ok(match &key {
                Some(key) => artifact.built_by(&args.plugin, key),
                None => artifact,
            });
        }
        if let Place::File(path) = &place {
            let digest = artifact.digest;
            // Again where it is there: nobody pins it yet, and what was stored long ago may be collected at any time.
            (artifact, _) = store_file(client, path, true, !args.sign.json).await?;
            if artifact.digest != digest {
                return Err(CliError::failed(
                    format!("{} was changed while it was read", path.display()),
                    "repeat the command once the build is done",
                ));
            }
        }
        if let Some(key) = &key {
            sign_build(client, &args.plugin, &artifact, key).await?;
        }
        let found = build_signatures(client, &artifact.digest).await?;
        let ours = found.into_iter().filter(|signature| signature.plugin == args.plugin);
        artifact.signatures = ours.map(|one| Signature { key: one.key, signature: one.signature }).collect();
        if artifact.signatures.is_empty() && !args.unsigned {
            return Err(CliError::new(
                Exit::Refused,
                format!("no build key has signed {} as a build of {}", artifact.digest, args.plugin),
                "sign it with --build-key; with --unsigned only hosts with --insecure-dev run it",
            ));
        }
        Ok(artifact)
    }
}

/// One that is in the repository. Without its content where nobody asks for it.
async fn stored(client: &Client, args: &StartArgs) -> Result<(ArtifactRef, Vec<u8>), CliError> {
    let digest = args.artifact.clone();
    check_digest(&digest).map_err(|_| {
        CliError::usage(
            format!(
                "`{}` is neither a file nor a digest",
                printable(&digest.chars().take(80).collect::<String>())
            ),
            "name the file of a component, or a digest of `millrace artifact ls`",
        )
    })?;
    let mut content = Vec::new();
    let bytes = match (&args.version_is, stored_length(client, &digest).await?) {
        (_, StoredLength::Missing) => {
            return Err(CliError::new(
                Exit::Refused,
                format!("there is no artifact {digest}"),
                "store it with `millrace artifact push FILE`, or give --artifact FILE",
            ));
        }
        (Some(_), StoredLength::Bytes(bytes)) => bytes,
        _ => {
            let take = |piece: &[u8]| {
                content.extend_from_slice(piece);
                Ok(())
            };
            receive(client, &digest, !args.sign.json, take).await?
        }
    };
    Ok((ArtifactRef { digest, bytes, signatures: Vec::new() }, content))
}

/// Version, world and wanted grants, from the component itself. It is compiled and asked as a host does before it runs it,
/// so what no host would take is refused here.
async fn ask(plugin: &str, content: Vec<u8>) -> Result<(String, String, Vec<String>), CliError> {
    let refused = |why: &str| {
        CliError::new(
            Exit::Refused,
            printable(&format!("the component is refused: {why}")),
            "build it with this version's SDK; `millrace plugin deploy` tries it on one host",
        )
    };
    let asked = tokio::task::spawn_blocking(move || {
        // In this process: whoever releases it trusts it, and it is done once.
        WasmRuntime::new(RuntimeOptions { instances_max: 1, ..RuntimeOptions::default() })?.examine(&content)
    });
    let asked = asked.await.map_err(|error| refused(&error.to_string()))?;
    let (manifest, world) = asked.map_err(|error| refused(&error.to_string()))?;
    if manifest.name != plugin {
        return Err(CliError::usage(
            format!("the component says that it is `{}`, not `{}`", manifest.name, printable(plugin)),
            format!("write `millrace rollout start {}`, or name another --artifact", manifest.name),
        ));
    }
    Ok((manifest.version.to_string(), world, manifest.grants))
}
