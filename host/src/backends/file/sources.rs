//! Checkpoints of sources in a folder: one file a client, replaced whole.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::control::disk;
use crate::clock::Clock;
use crate::event::Micros;
use crate::limits::SOURCE_PUT_BYTES_MAX;
use crate::processors::source::{CheckpointClient, JsonText, RemoteCheckpoint, SourceError, SourceFault};

/// Where a host keeps how far its sources are.
#[derive(Debug)]
pub struct FileSourceCheckpoints {
    dir: Arc<Path>,
    clock: Arc<dyn Clock>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    client_id: String,
    content_type: String,
    updated_at: Micros,
    value: Box<RawValue>,
}

impl FileSourceCheckpoints {
    /// The folder is made when the first checkpoint comes.
    pub fn new(dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let dir: PathBuf = dir.into();
        Self { dir: dir.into(), clock }
    }

    fn path(&self, client_id: &str) -> PathBuf {
        self.dir.join(file_name(client_id))
    }
}

impl CheckpointClient for FileSourceCheckpoints {
    fn get<'a>(&'a self, client_id: &'a str) -> BoxFuture<'a, Result<Option<RemoteCheckpoint>, SourceError>> {
        async move {
            let path = self.path(client_id);
            let kept = off_the_runtime(&path, |path| match read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                read => read.map(Some),
            })
            .await?;
            let Some(text) = kept else { return Ok(None) };
            let damaged = |error: &dyn std::fmt::Display| {
                let message = format!("{} is no checkpoint of a source: {error}", path.display());
                SourceError::stop(SourceFault::Load, message)
            };
            let kept: Kept = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
            let value = JsonText::parse(kept.value.get().as_bytes()).map_err(|error| damaged(&error))?;
            Ok(Some(RemoteCheckpoint {
                client_id: kept.client_id,
                content_type: kept.content_type,
                value,
                updated_at: Some(kept.updated_at),
            }))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        client_id: &'a str,
        content_type: &'a str,
        value: JsonText,
    ) -> BoxFuture<'a, Result<RemoteCheckpoint, SourceError>> {
        async move {
            let updated_at = self.clock.now();
            let raw = RawValue::from_string(value.as_str().to_owned()).map_err(|error| {
                SourceError::stop(SourceFault::Load, "a checkpoint is no JSON").because(error)
            })?;
            let kept = Kept {
                client_id: client_id.to_owned(),
                content_type: content_type.to_owned(),
                updated_at,
                value: raw,
            };
            let text = serde_json::to_vec(&kept).map_err(|error| {
                SourceError::stop(SourceFault::Load, "a checkpoint is no JSON").because(error)
            })?;
            let dir = Arc::clone(&self.dir);
            off_the_runtime(&self.path(client_id), move |path| {
                disk::make_folder(&dir)?;
                disk::replace(&dir, path, &text)
            })
            .await?;
            let (client_id, content_type) = (kept.client_id, kept.content_type);
            Ok(RemoteCheckpoint { client_id, content_type, value, updated_at: Some(updated_at) })
        }
        .boxed()
    }
}

/// What file systems take, with room for the name of what is being written.
const FILE_NAME_BYTES_MAX: usize = 200;

/// Letters, digits, `-` and `_` as they are, anything else as its bytes, and what is too long by its digest: two clients
/// never share a file.
fn file_name(client_id: &str) -> String {
    let mut name = String::new();
    for byte in client_id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    if name.len() > FILE_NAME_BYTES_MAX {
        name =
            Sha256::digest(client_id).iter().fold("~".to_owned(), |name, byte| format!("{name}{byte:02x}"));
    }
    name + ".json"
}

/// No more than shows that it is too long.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(2 * SOURCE_PUT_BYTES_MAX as u64).read_to_end(&mut text)?;
    Ok(text)
}

async fn off_the_runtime<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, SourceError> {
    let (at, shown) = (path.to_owned(), path.display().to_string());
    let failed = |error: io::Error| {
        let message = format!("{shown}: {error}");
        SourceError::pass(SourceFault::Store, message).because(error)
    };
    match tokio::task::spawn_blocking(move || work(&at)).await {
        Ok(done) => done.map_err(failed),
        Err(panicked) => Err(failed(io::Error::other(panicked))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_with_odd_names_have_files_of_their_own() {
        assert_eq!(file_name("turn-traces_1"), "turn-traces_1.json");
        assert_eq!(file_name("../a b"), "%2e%2e%2fa%20b.json");
        assert_ne!(file_name("a%2f"), file_name("a/"));
        let long = |last: &str| file_name(&("ü".repeat(120) + last));
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() <= FILE_NAME_BYTES_MAX && long("a").starts_with('~'), "{}", long("a"));
    }
}
