//! Component bytes in a folder, one file each, named by their digest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::write_whole;
use super::runtime::digest;
use super::{ArtifactStore, PluginError};

/// Implements [`ArtifactStore`] on a folder.
#[derive(Debug)]
pub struct FileArtifacts {
    dir: PathBuf,
}

impl FileArtifacts {
    /// Makes the folder where it is missing. What a crash has left half written goes.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, PluginError> {
        let dir = dir.into();
        let opened = || {
            fs::create_dir_all(&dir)?;
            // A deployment stands on what is in the folder: its own name must outlive a power cut, too.
            sync(&dir.join(".."))?;
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
                    // What stays costs its room, and is looked at again at the next start.
                    let _ = fs::remove_file(entry.path());
                }
            }
            Ok(())
        };
        opened().map_err(|error: std::io::Error| PluginError::Storage {
            detail: format!("{}: {error}", dir.display()),
        })?;
        Ok(Self { dir })
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

/// Makes the names in a folder durable.
fn sync(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

impl ArtifactStore for FileArtifacts {
    fn put(&self, component: &[u8]) -> Result<String, PluginError> {
        let digest = digest(component);
        let path = self.path(&digest);
        if self.get(&digest).is_ok() {
            // Whoever wrote it may have been killed before its name was synced.
            sync(&self.dir).map_err(|error| PluginError::Storage { detail: error.to_string() })?;
            return Ok(digest);
        }
        write_whole(&self.dir, &path, &[component], 0o400)
            .map_err(|error| PluginError::Storage { detail: format!("{}: {error}", path.display()) })?;
        Ok(digest)
    }

    fn get(&self, digest: &str) -> Result<Vec<u8>, PluginError> {
        let missing = || PluginError::ArtifactMissing { digest: digest.chars().take(80).collect() };
        if !is_digest(digest) {
            return Err(missing());
        }
        let bytes = fs::read(self.path(digest)).map_err(|_| missing())?;
        let found = self::digest(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(PluginError::ArtifactDamaged { digest: digest.into(), found })
        }
    }
    fn retain(&self, digests: &BTreeSet<String>) -> Result<usize, PluginError> {
        let failed = |error: std::io::Error| PluginError::Storage {
            detail: format!("{}: {error}", self.dir.display()),
        };
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // What has another name is not the store's.
            let Some(digest) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) else { continue };
            if is_digest(digest) && !digests.contains(digest) {
                fs::remove_file(entry.path()).map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_refers_to_goes_and_what_is_not_the_stores_stays() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let artifacts = FileArtifacts::open(dir.path()).expect("it opens");
        let [first, second, third] =
            [b"first".as_slice(), b"second", b"third"].map(|bytes| artifacts.put(bytes).expect("it is kept"));
        fs::write(dir.path().join("notes.wasm"), "somebody's").expect("ours");
        let kept = BTreeSet::from([first.clone(), third.clone(), "none".into()]);
        assert_eq!(artifacts.retain(&kept).expect("they can be removed"), 1);
        assert!(artifacts.get(&first).is_ok() && artifacts.get(&third).is_ok());
        assert!(matches!(artifacts.get(&second), Err(PluginError::ArtifactMissing { .. })));
        assert!(dir.path().join("notes.wasm").exists());
        assert_eq!(artifacts.retain(&kept).expect("they can be removed"), 0);
    }
}
