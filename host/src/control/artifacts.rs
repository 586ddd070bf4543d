//! Where artifacts lie for the whole fleet.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, unfold};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ControlFeedError, Result, check_digest};
use crate::limits::{ARTIFACT_NAME_BYTES_MAX, ARTIFACT_NOTE_BYTES_MAX};

/// Content in pieces.
pub type ByteStream<'a> = BoxStream<'a, Result<Bytes>>;

/// What is known of an artifact without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactInfo {
    /// `sha256:` and 64 lower-case hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
    /// Microseconds since 1970: when it was put last.
    pub stored_at: i64,
    /// Who keeps it from being collected, by name.
    pub pins: Vec<String>,
}

/// Immutable content by its digest. Nothing is ever overwritten; the digest is computed anew on the way in and on the way out.
/// A later backend is an OCI registry: it has the same verbs (blobs by digest, referrers for signatures, tags for pins).
///
/// A text that is no digest is refused with `InvalidDigest` by every call, and reaches no file system and no server.
pub trait ArtifactRepository: Send + Sync + Debug {
    fn name(&self) -> &'static str;

    /// Stores content, unless it is there: then its age begins anew, and where what is there is damaged it is replaced.
    /// Nothing of it is visible unless all came, its size is at most `bytes_max` and it has the digest, where one is given
    /// (`ArtifactMismatch`). Durable when it answers, with the digest. Dropping the future stores nothing.
    fn put<'a>(
        &'a self,
        content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>>;

    /// The content. When it is not what its digest says, the stream ends with `ArtifactDamaged` in place of its last piece:
    /// whoever reads uses nothing of it before the end, and nobody gets all of it.
    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>>;

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>>;

    /// In the order of digests, after one that need not be there.
    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>>;

    /// Keeps an artifact from being collected under a name, until it is unpinned under that name. Of one that is missing,
    /// `ArtifactMissing`.
    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// What is not pinned, or not there, is fine.
    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Removes what nobody pins and what was stored at least so long ago, and answers what went, or would go. What is put
    /// or pinned meanwhile stays. What crashed puts have left goes, too.
    fn collect(
        &self,
        older_than: std::time::Duration,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>>;

    /// Small notes beside an artifact, such as build signatures: each by a name, written once. The same again changes
    /// nothing, another content is refused with `NoteTaken`. They go with the artifact.
    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>>;

    /// In the order of their names.
    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>>;
}

/// The 64 digits of a digest. What is none is refused.
pub fn digest_hex(digest: &str) -> Result<&str> {
    check_digest(digest)?;
    Ok(digest.strip_prefix("sha256:").unwrap_or_default())
}

/// Content's digest, from all of its pieces.
pub fn digest_of(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What every backend asks of the name of a pin or a note: it is that of a file and of keys.
pub fn check_artifact_name(what: &'static str, name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    let named = (1..=ARTIFACT_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits);
    if named && !name.starts_with('.') {
        return Ok(());
    }
    Err(ControlFeedError::InvalidName { what, name: name.chars().take(80).collect() })
}

/// What every backend asks of a note.
pub fn check_note(name: &str, note: &[u8]) -> Result<()> {
    check_artifact_name("note", name)?;
    check_limit("artifact_note_bytes_max", note.len() as u64, ARTIFACT_NOTE_BYTES_MAX as u64)
}

pub fn check_limit(limit: &'static str, asked: u64, max: u64) -> Result<()> {
    if asked > max { Err(ControlFeedError::Limit { limit, asked, max }) } else { Ok(()) }
}

/// Takes content in, piece by piece: counts it, and knows its digest in the end.
#[derive(Debug)]
pub struct Intake {
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Intake {
    pub fn new(bytes_max: u64) -> Self {
        Self { hash: Sha256::new(), bytes: 0, bytes_max }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts a piece before anything is done with it. The bound itself still fits.
    pub fn count(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        check_limit("artifact_bytes_max", self.bytes, self.bytes_max)
    }

    /// A large piece takes time: not on an async thread.
    pub fn hash(&mut self, piece: &[u8]) {
        self.hash.update(piece);
    }

    /// The digest, if it is the one that is wanted.
    pub fn end(self, wanted: Option<&str>) -> Result<String> {
        let found = digest_of(self.hash);
        match wanted.filter(|wanted| *wanted != found) {
            None => Ok(found),
            Some(wanted) => Err(ControlFeedError::ArtifactMismatch { digest: wanted.to_owned(), found }),
        }
    }
}

/// Stored content on its way out. One piece is held back: the last one comes once all of it has the digest.
pub fn verified(digest: String, content: ByteStream<'static>) -> ByteStream<'static> {
    struct Verified {
        digest: String,
        content: ByteStream<'static>,
        hash: Sha256,
        held: Option<Bytes>,
    }
    let begin = Verified { digest, content, hash: Sha256::new(), held: None };
    unfold(Some(begin), |state| async move {
        let mut state = state?;
        loop {
            match state.content.next().await {
                Some(Err(error)) => return Some((Err(error), None)),
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    state.hash.update(&piece);
                    if let Some(held) = state.held.replace(piece) {
                        return Some((Ok(held), Some(state)));
                    }
                }
                None => {
                    let found = digest_of(state.hash);
                    if found != state.digest {
                        metrics::counter!(crate::telemetry::metrics::ARTIFACTS_DAMAGED).increment(1);
                        let damaged = ControlFeedError::ArtifactDamaged { digest: state.digest, found };
                        return Some((Err(damaged), None));
                    }
                    return state.held.map(|held| (Ok(held), None));
                }
            }
        }
    })
    .boxed()
}

/// Content that has so many bytes: it fails at the first one beyond, and at its end when some are missing.
pub fn sized(bytes: u64, content: ByteStream<'_>) -> ByteStream<'_> {
    unfold(Some((content, 0_u64)), move |state| async move {
        let (mut content, seen) = state?;
        let wrong = |found| Some((Err(ControlFeedError::ArtifactSize { expected: bytes, found }), None));
        match content.next().await {
            Some(Ok(piece)) => {
                let seen = seen.saturating_add(piece.len() as u64);
                if seen > bytes { wrong(seen) } else { Some((Ok(piece), Some((content, seen)))) }
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if seen < bytes => wrong(seen),
            None => None,
        }
    })
    .boxed()
}

/// Reads all of a stream, at most so many bytes.
pub async fn collected(mut content: ByteStream<'_>, bytes_max: u64) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(piece) = content.next().await {
        let piece = piece?;
        check_limit("artifact_bytes_max", (all.len() + piece.len()) as u64, bytes_max)?;
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}
