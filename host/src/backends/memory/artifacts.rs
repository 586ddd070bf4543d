//! Artifacts in memory: for tests, and for embedders whose hosts share a process.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::once;

use crate::clock::Clock;
use crate::control::{
    ArtifactInfo, ArtifactRepository, ByteStream, ControlFeedError, Intake, Result, check_artifact_name,
    check_digest, check_limit, check_note, verified,
};
use crate::limits::{ARTIFACT_NOTES_MAX, ARTIFACT_PINS_MAX};

/// An [`ArtifactRepository`] that is gone with its process. Clones are the same.
#[derive(Clone, Debug)]
pub struct MemoryArtifactRepository {
    clock: Arc<dyn Clock>,
    kept: Arc<Mutex<BTreeMap<String, Kept>>>,
}

#[derive(Debug)]
struct Kept {
    content: Bytes,
    stored_at: i64,
    pins: BTreeSet<String>,
    notes: BTreeMap<String, Bytes>,
}

impl Kept {
    fn info(&self, digest: &str) -> ArtifactInfo {
        ArtifactInfo {
            digest: digest.to_owned(),
            bytes: self.content.len() as u64,
            stored_at: self.stored_at,
            pins: self.pins.iter().cloned().collect(),
        }
    }
}

impl MemoryArtifactRepository {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, kept: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with an artifact that has to be there.
    fn with<T>(&self, digest: &str, work: impl FnOnce(&mut Kept) -> Result<T>) -> Result<T> {
        check_digest(digest)?;
        match self.lock().get_mut(digest) {
            Some(kept) => work(kept),
            None => Err(ControlFeedError::ArtifactMissing { digest: digest.to_owned() }),
        }
    }

    fn keep(&self, digest: String, content: Bytes) -> ArtifactInfo {
        let stored_at = self.clock.now().0;
        let mut kept = self.lock();
        let new = Kept { content, stored_at, pins: BTreeSet::new(), notes: BTreeMap::new() };
        let entry = kept.entry(digest.clone()).or_insert(new);
        entry.stored_at = stored_at;
        entry.info(&digest)
    }

    fn remove(&self, older_than: Duration, dry_run: bool) -> Vec<ArtifactInfo> {
        let older_than = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX);
        let now = self.clock.now().0;
        let mut kept = self.lock();
        let goes = |kept: &Kept| kept.pins.is_empty() && now.saturating_sub(kept.stored_at) >= older_than;
        let gone =
            kept.iter().filter(|(_, kept)| goes(kept)).map(|(digest, kept)| kept.info(digest)).collect();
        if !dry_run {
            kept.retain(|_, kept| !goes(kept));
        }
        gone
    }
}

impl ArtifactRepository for MemoryArtifactRepository {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn put<'a>(
        &'a self,
        mut content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>> {
        async move {
            digest.map(check_digest).transpose()?;
            let (mut intake, mut all) = (Intake::new(bytes_max), BytesMut::new());
            while let Some(piece) = content.next().await {
                let piece = piece?;
                intake.count(&piece)?;
                intake.hash(&piece);
                all.extend_from_slice(&piece);
            }
            let digest = intake.end(digest)?;
            Ok(self.keep(digest, all.freeze()))
        }
        .boxed()
    }

    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>> {
        let found = self.with(digest, |kept| Ok((kept.info(digest), kept.content.clone())));
        let read = found.map(|(info, content)| {
            let content = once(ready(Ok(content))).boxed();
            (info, verified(digest.to_owned(), content))
        });
        ready(read).boxed()
    }

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>> {
        let info = check_digest(digest).map(|()| self.lock().get(digest).map(|kept| kept.info(digest)));
        ready(info).boxed()
    }

    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>> {
        let listed = after.map(check_digest).transpose().map(|_| {
            let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
            let kept = self.lock();
            let range = kept.range::<str, _>((begin, Bound::Unbounded));
            range.take(limit).map(|(digest, kept)| kept.info(digest)).collect()
        });
        ready(listed).boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let pinned = check_artifact_name("pin", name).and_then(|()| {
            self.with(digest, |kept| {
                let pins = kept.pins.len() as u64 + u64::from(!kept.pins.contains(name));
                check_limit("artifact_pins_max", pins, ARTIFACT_PINS_MAX as u64)?;
                kept.pins.insert(name.to_owned());
                Ok(())
            })
        });
        ready(pinned).boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let unpinned = check_artifact_name("pin", name).and_then(|()| check_digest(digest)).map(|()| {
            if let Some(kept) = self.lock().get_mut(digest) {
                kept.pins.remove(name);
            }
        });
        ready(unpinned).boxed()
    }

    fn collect(&self, older_than: Duration, dry_run: bool) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>> {
        ready(Ok(self.remove(older_than, dry_run))).boxed()
    }

    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>> {
        let attached = check_note(name, &note).and_then(|()| {
            self.with(digest, |kept| {
                let notes = kept.notes.len() as u64 + u64::from(!kept.notes.contains_key(name));
                check_limit("artifact_notes_max", notes, ARTIFACT_NOTES_MAX as u64)?;
                match kept.notes.get(name) {
                    Some(known) if *known != note => {
                        Err(ControlFeedError::NoteTaken { digest: digest.to_owned(), name: name.to_owned() })
                    }
                    Some(_) => Ok(()),
                    None => {
                        kept.notes.insert(name.to_owned(), note);
                        Ok(())
                    }
                }
            })
        });
        ready(attached).boxed()
    }

    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>> {
        let notes = self.with(digest, |kept| {
            Ok(kept.notes.iter().map(|(name, note)| (name.clone(), note.clone())).collect())
        });
        ready(notes).boxed()
    }
}
