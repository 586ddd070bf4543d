//! Artifacts in memory, which a test can spoil.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use millrace::control::{ArtifactInfo, ArtifactRepository, ByteStream, ControlFeedError, Result};

use crate::control_events::digest_of;

/// An [`ArtifactRepository`] that checks what comes in, and hands out whatever is there by now.
#[derive(Debug, Default)]
pub struct SpoilableArtifacts {
    content: Mutex<BTreeMap<String, (Bytes, BTreeSet<String>)>>,
    unpinnable: Mutex<BTreeSet<String>>,
}

impl SpoilableArtifacts {
    fn content(&self) -> MutexGuard<'_, BTreeMap<String, (Bytes, BTreeSet<String>)>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn bytes(&self, digest: &str) -> Option<Bytes> {
        self.content().get(digest).map(|(bytes, _)| bytes.clone())
    }

    /// Puts something else where an artifact was.
    pub fn spoil(&self, digest: &str, bytes: impl Into<Bytes>) {
        self.content().insert(digest.to_owned(), (bytes.into(), BTreeSet::new()));
    }

    /// Whether pins of an artifact fail.
    pub fn refuse_pins(&self, digest: &str, refused: bool) {
        let mut unpinnable = self.unpinnable.lock().unwrap_or_else(PoisonError::into_inner);
        if refused {
            unpinnable.insert(digest.to_owned());
        } else {
            unpinnable.remove(digest);
        }
    }

    /// Takes an artifact away, pinned or not.
    pub fn lose(&self, digest: &str) {
        self.content().remove(digest);
    }

    /// Stores content under its own digest.
    pub fn add(&self, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.spoil(&digest, bytes);
        digest
    }

    /// Digests that somebody keeps.
    pub fn pinned(&self) -> Vec<String> {
        let content = self.content();
        content.iter().filter(|(_, (_, pins))| !pins.is_empty()).map(|(digest, _)| digest.clone()).collect()
    }
}

fn info(digest: &str, (bytes, pins): &(Bytes, BTreeSet<String>)) -> ArtifactInfo {
    ArtifactInfo {
        digest: digest.to_owned(),
        bytes: bytes.len() as u64,
        stored_at: 0,
        pins: pins.iter().cloned().collect(),
    }
}

fn missing(digest: &str) -> ControlFeedError {
    ControlFeedError::ArtifactMissing { digest: digest.to_owned() }
}

impl ArtifactRepository for SpoilableArtifacts {
    fn name(&self) -> &'static str {
        "spoilable"
    }

    fn put<'a>(
        &'a self,
        mut content: ByteStream<'a>,
        _digest: Option<&'a str>,
        _bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>> {
        async move {
            let mut bytes = Vec::new();
            while let Some(piece) = content.next().await {
                bytes.extend_from_slice(&piece?);
            }
            let digest = digest_of(&bytes);
            let mut content = self.content();
            let stored = content.entry(digest.clone()).or_insert_with(|| (bytes.into(), BTreeSet::new()));
            Ok(info(&digest, stored))
        }
        .boxed()
    }

    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>> {
        let found = self.content().get(digest).map(|stored| {
            // In two pieces, since that is what streams come in.
            let (info, bytes) = (info(digest, stored), stored.0.clone());
            let half = bytes.len() / 2;
            let pieces = [Ok(bytes.slice(..half)), Ok(bytes.slice(half..))];
            (info, stream::iter(pieces).boxed())
        });
        ready(found.ok_or_else(|| missing(digest))).boxed()
    }

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>> {
        let found = self.content().get(digest).map(|stored| info(digest, stored));
        ready(Ok(found)).boxed()
    }

    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>> {
        let content = self.content();
        let all = content.iter().filter(|(digest, _)| after.is_none_or(|after| digest.as_str() > after));
        let found = all.take(limit).map(|(digest, stored)| info(digest, stored)).collect();
        ready(Ok(found)).boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let refused = self.unpinnable.lock().unwrap_or_else(PoisonError::into_inner).contains(digest);
        let mut content = self.content();
        let stored = content.get_mut(digest).filter(|_| !refused).ok_or_else(|| missing(digest));
        let pinned = stored.map(|(_, pins)| {
            pins.insert(name.to_owned());
        });
        ready(pinned).boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        if let Some((_, pins)) = self.content().get_mut(digest) {
            pins.remove(name);
        }
        ready(Ok(())).boxed()
    }

    fn collect(&self, _older_than: Duration, _dry_run: bool) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn attach<'a>(&'a self, _digest: &'a str, _name: &'a str, _note: Bytes) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn attached<'a>(&'a self, _digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>> {
        ready(Ok(Vec::new())).boxed()
    }
}
