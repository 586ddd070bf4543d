//! Where artifacts lie for the whole fleet.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::Result;

/// Content in pieces.
pub type ByteStream<'a> = BoxStream<'a, Result<Bytes>>;

/// What is known of an artifact without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactInfo {
    /// `sha256:` and 64 lower-case hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
    /// Microseconds since 1970.
    pub stored_at: i64,
    /// Who keeps it from being collected, by name.
    pub pins: Vec<String>,
}

/// Immutable content by its digest. Nothing is ever overwritten; the digest is computed anew on the way in and on the way out.
/// A later backend is an OCI registry: it has the same verbs (blobs by digest, referrers for signatures, tags for pins).
pub trait ArtifactRepository: Send + Sync + Debug {
    fn name(&self) -> &'static str;

    /// Stores content, unless it is there. Nothing of it is visible unless all came, its size is at most `bytes_max`
    /// and it has the digest, where one is given. Durable when it answers, with the digest.
    fn put<'a>(
        &'a self,
        content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>>;

    /// The content. The stream ends with `ArtifactDamaged` when it was not what its digest says: whoever reads uses nothing
    /// of it before the end.
    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>>;

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>>;

    /// In the order of digests, after one.
    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>>;

    /// Keeps an artifact from being collected under a name, until it is unpinned under that name. Of one that is missing,
    /// `ArtifactMissing`.
    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Removes what nobody pins and what was stored at least so long ago, and answers what went.
    fn collect(
        &self,
        older_than: std::time::Duration,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>>;

    /// Small notes beside an artifact, such as build signatures: each by a name, written once.
    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>>;

    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>>;
}
