//! Artifacts in a folder, which several processes may share.
//!
//! ```text
//! sha256/<aa>/<bb>/<digest>         content, read-only; aa and bb are the first digits
//! sha256/<aa>/<bb>/<digest>.pins/   a file for each pin, by its name
//! sha256/<aa>/<bb>/<digest>.notes/  the same for notes
//! spool/                            what is being written; whoever writes a file has it locked
//! LOCK                              shared by who adds something, taken by who removes something
//! ```
//!
//! Content comes whole: it is written in the spool, synced, and then given its name, which is synced, too. Whatever a crash
//! leaves is in the spool, which is cleared at the next opening and at each collection, or is a folder of notes without
//! content, which counts for nothing and goes at the next collection. How old content is stands in its time of modification.

mod folder;
mod reading;
mod spool;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;

use crate::clock::Clock;
use crate::control::{
    ArtifactInfo, ArtifactRepository, ByteStream, Intake, Result, check_artifact_name, check_note,
    digest_hex, verified,
};
use crate::error::BackendError;
use crate::limits::ARTIFACT_PIECE_BYTES;
use folder::Folder;
use spool::Spooled;

/// An [`ArtifactRepository`] on a folder. Clones are the same.
#[derive(Clone, Debug)]
pub struct FileArtifactRepository {
    folder: Arc<Folder>,
}

impl FileArtifactRepository {
    /// Makes the folder where it is missing, and removes what crashes have left. Blocks.
    pub fn open(dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Result<Self> {
        let folder = Folder::open(dir.into(), clock)?;
        folder.clear_spool()?;
        Ok(Self { folder: Arc::new(folder) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = Arc::clone(&self.folder);
        off_the_runtime(move || work(&folder)).await
    }

    async fn take(
        &self,
        mut content: ByteStream<'_>,
        digest: Option<&str>,
        bytes_max: u64,
    ) -> Result<ArtifactInfo> {
        let mut intake = Intake::new(bytes_max);
        let mut spooled = self.run(Spooled::begin).await?;
        loop {
            let mut pieces = BytesMut::new();
            let mut ended = false;
            while pieces.len() < ARTIFACT_PIECE_BYTES && !ended {
                match content.next().await {
                    Some(piece) => {
                        let piece = piece?;
                        intake.count(&piece)?;
                        pieces.extend_from_slice(&piece);
                    }
                    None => ended = true,
                }
            }
            // Both go with the work, so that whoever stops waiting leaves nothing behind.
            (spooled, intake) = off_the_runtime(move || {
                intake.hash(&pieces);
                spooled.write(&pieces)?;
                Ok((spooled, intake))
            })
            .await?;
            if ended {
                break;
            }
        }
        let digest = intake.end(digest)?;
        self.run(move |folder| folder.keep(spooled, &digest)).await
    }
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(BackendError::Closed.into()))
}

impl ArtifactRepository for FileArtifactRepository {
    fn name(&self) -> &'static str {
        "file"
    }

    fn put<'a>(
        &'a self,
        content: ByteStream<'a>,
        digest: Option<&'a str>,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<ArtifactInfo>> {
        async move {
            digest.map(digest_hex).transpose()?;
            self.take(content, digest, bytes_max).await
        }
        .boxed()
    }

    fn get<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<(ArtifactInfo, ByteStream<'static>)>> {
        async move {
            let wanted = digest.to_owned();
            let (info, file) = self.run(move |folder| folder.read(&wanted)).await?;
            Ok((info, verified(digest.to_owned(), reading::pieces(file))))
        }
        .boxed()
    }

    fn info<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Option<ArtifactInfo>>> {
        let digest = digest.to_owned();
        self.run(move |folder| folder.info(&digest)).boxed()
    }

    fn list<'a>(&'a self, after: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<Vec<ArtifactInfo>>> {
        let after = after.map(str::to_owned);
        self.run(move |folder| walk::list(folder, after.as_deref(), limit)).boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let (digest, name) = (digest.to_owned(), name.to_owned());
        self.run(move |folder| {
            check_artifact_name("pin", &name)?;
            folder.pin(&digest, &name)
        })
        .boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let (digest, name) = (digest.to_owned(), name.to_owned());
        self.run(move |folder| {
            check_artifact_name("pin", &name)?;
            folder.unpin(&digest, &name)
        })
        .boxed()
    }

    fn collect(&self, older_than: Duration, dry_run: bool) -> BoxFuture<'_, Result<Vec<ArtifactInfo>>> {
        self.run(move |folder| {
            if !dry_run {
                folder.clear_spool()?;
                walk::remove_orphans(folder)?;
            }
            walk::collect(folder, older_than, dry_run)
        })
        .boxed()
    }

    fn attach<'a>(&'a self, digest: &'a str, name: &'a str, note: Bytes) -> BoxFuture<'a, Result<()>> {
        let (digest, name) = (digest.to_owned(), name.to_owned());
        self.run(move |folder| {
            check_note(&name, &note)?;
            folder.attach(&digest, &name, &note)
        })
        .boxed()
    }

    fn attached<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>>> {
        let digest = digest.to_owned();
        self.run(move |folder| folder.attached(&digest)).boxed()
    }
}
