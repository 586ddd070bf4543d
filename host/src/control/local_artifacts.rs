//! A host's own copies of artifacts, in front of the fleet's repository.
//!
//! Promises: what is answered has its digest, each time it is read; a copy is there whole or not at all; what is there is
//! answered while the repository is away. Deliberately absent: tries over and over; whoever asks knows how long it can wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use tracing::warn;

use super::artifacts::{collected, sized};
use super::{ArtifactInfo, ArtifactRef, ArtifactRepository, ByteStream, ControlFeedError, Result};
use crate::error::Classify as _;
use crate::limits::ARTIFACT_FETCH_IDLE_MAX;
use crate::telemetry::metrics as names;

/// Copies in a repository of this host's own, such as a folder. Clones are the same.
#[derive(Clone, Debug)]
pub struct LocalArtifacts {
    copies: Arc<dyn ArtifactRepository>,
    repository: Arc<dyn ArtifactRepository>,
    idle_max: Duration,
}

impl LocalArtifacts {
    pub fn new(copies: Arc<dyn ArtifactRepository>, repository: Arc<dyn ArtifactRepository>) -> Self {
        Self { copies, repository, idle_max: ARTIFACT_FETCH_IDLE_MAX }
    }

    /// With another time to wait for the next piece of what is fetched.
    #[must_use]
    pub fn with_idle_max(self, idle_max: Duration) -> Self {
        Self { idle_max, ..self }
    }

    /// An artifact's bytes, from the copy, or else from the repository, of which a copy stays. A copy that is damaged is
    /// fetched anew. `artifact.bytes` is the most that is read of anything.
    pub async fn get(&self, artifact: &ArtifactRef) -> Result<Bytes> {
        match self.copy(artifact).await {
            Err(ControlFeedError::ArtifactMissing { .. }) => {}
            Err(error @ ControlFeedError::ArtifactDamaged { .. }) => {
                warn!(error.kind = error.code(), error.blame = "host", %error, "a copy of an artifact is fetched again");
            }
            other => return other,
        }
        self.fetch(artifact).await?;
        self.copy(artifact).await
    }

    /// Whether a copy is here. It is not read.
    pub async fn is_here(&self, digest: &str) -> Result<bool> {
        Ok(self.copies.info(digest).await?.is_some())
    }

    /// Copies an artifact that is not here, or not whole.
    pub async fn fetch(&self, artifact: &ArtifactRef) -> Result<ArtifactInfo> {
        let fetched = self.fetch_once(artifact).await;
        let outcome = if fetched.is_ok() { "fetched" } else { "failed" };
        metrics::counter!(names::ARTIFACT_FETCHES, "outcome" => outcome).increment(1);
        fetched
    }

    async fn fetch_once(&self, artifact: &ArtifactRef) -> Result<ArtifactInfo> {
        let digest = &artifact.digest;
        let asked = tokio::time::timeout(self.idle_max, self.repository.get(digest)).await;
        let (_, content) = asked.unwrap_or_else(|_| Err(silent(self.idle_max)))?;
        let content = sized(artifact.bytes, never_silent(content, self.idle_max));
        self.copies.put(content, Some(digest), artifact.bytes).await
    }

    async fn copy(&self, artifact: &ArtifactRef) -> Result<Bytes> {
        let (info, content) = self.copies.get(&artifact.digest).await?;
        if info.bytes != artifact.bytes {
            let found = format!("another length: {} and not {}", info.bytes, artifact.bytes);
            return Err(ControlFeedError::ArtifactDamaged { digest: info.digest, found });
        }
        collected(content, artifact.bytes).await
    }

    /// Keeps a copy: `name` says what for, such as `board.active`.
    pub async fn pin(&self, digest: &str, name: &str) -> Result<()> {
        self.copies.pin(digest, name).await
    }

    pub async fn unpin(&self, digest: &str, name: &str) -> Result<()> {
        self.copies.unpin(digest, name).await
    }

    /// Removes copies that nothing pins and that were made so long ago.
    pub async fn collect(&self, older_than: Duration) -> Result<Vec<ArtifactInfo>> {
        self.copies.collect(older_than, false).await
    }
}

fn silent(idle_max: Duration) -> ControlFeedError {
    ControlFeedError::ArtifactBroken { detail: format!("nothing of it came for {idle_max:?}") }
}

/// Ends with an error when nothing comes for a while.
fn never_silent(content: ByteStream<'static>, idle_max: Duration) -> ByteStream<'static> {
    unfold(Some(content), move |content| async move {
        let mut content = content?;
        match tokio::time::timeout(idle_max, content.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(content))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Err(_) => Some((Err(silent(idle_max)), None)),
        }
    })
    .boxed()
}
