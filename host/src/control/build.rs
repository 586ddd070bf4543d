//! Build signatures beside an artifact: each is a note of its own, named by its content, so that nobody can take the place
//! of another one's.

use serde::{Deserialize, Serialize};

use super::check;
use super::{ArtifactRef, ArtifactRepository, ControlFeedError, Result, Signature};
use crate::plugins::Manifest;

/// What such notes' names begin with.
const PREFIX: &str = "build-";
/// Digits of a note's name, of the digest of what it says.
const NAME_DIGITS: usize = 32;

/// The word of a build key that an artifact is a build of a plugin. Whether the key is believed is for whoever reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildSignature {
    pub plugin: String,
    /// The key's id: `ed25519:` and 16 hexadecimal digits.
    pub key: String,
    /// 64 bytes as base64.
    pub signature: String,
}

impl BuildSignature {
    /// Those that an artifact's reference carries.
    pub fn of(plugin: &str, artifact: &ArtifactRef) -> Vec<Self> {
        let one = |Signature { key, signature }: &Signature| Self {
            plugin: plugin.to_owned(),
            key: key.clone(),
            signature: signature.clone(),
        };
        artifact.signatures.iter().map(one).collect()
    }

    fn signature(&self) -> Signature {
        Signature { key: self.key.clone(), signature: self.signature.clone() }
    }

    /// Whether it can be one. It is not verified.
    fn check(&self) -> Result<()> {
        if !Manifest::is_name(&self.plugin) {
            let plugin: String = self.plugin.chars().take(80).collect();
            return Err(invalid(format!("`{plugin}` is no name of a plugin")));
        }
        check::signatures(&[self.signature()]).map_err(invalid)
    }

    fn name(&self, note: &[u8]) -> String {
        use sha2::{Digest as _, Sha256};
        let digest = super::digest_of(Sha256::new_with_prefix(note));
        let digits = digest.strip_prefix("sha256:").unwrap_or_default();
        format!("{PREFIX}{}", &digits[..NAME_DIGITS])
    }
}

/// Keeps build signatures beside an artifact.
pub async fn attach_signatures(
    artifacts: &dyn ArtifactRepository,
    digest: &str,
    signatures: &[BuildSignature],
) -> Result<()> {
    for signature in signatures {
        signature.check()?;
    }
    for signature in signatures {
        let note = serde_json::to_vec(signature).map_err(invalid)?;
        artifacts.attach(digest, &signature.name(&note), note.into()).await?;
    }
    Ok(())
}

/// The build signatures beside an artifact. A note that is none is left out.
pub async fn build_signatures(
    artifacts: &dyn ArtifactRepository,
    digest: &str,
) -> Result<Vec<BuildSignature>> {
    let notes = artifacts.attached(digest).await?;
    let ours = notes.iter().filter(|(name, _)| name.starts_with(PREFIX));
    let read = ours.filter_map(|(_, note)| serde_json::from_slice::<BuildSignature>(note).ok());
    Ok(read.filter(|signature| signature.check().is_ok()).collect())
}

fn invalid(detail: impl ToString) -> ControlFeedError {
    ControlFeedError::InvalidSignature { detail: detail.to_string() }
}
