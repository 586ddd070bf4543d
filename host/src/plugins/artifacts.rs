//! Component bytes in a folder, one file each, named by their digest.

use std::fs;
use std::path::PathBuf;

use super::cache::write_whole;
use super::runtime::digest;
use super::{ArtifactStore, PluginError};

/// Implements [`ArtifactStore`] on a folder.
#[derive(Debug)]
pub struct FileArtifacts {
    dir: PathBuf,
}

impl FileArtifacts {
    /// Makes the folder where it is missing.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, PluginError> {
        let dir = dir.into();
        let made = fs::create_dir_all(&dir);
        made.map_err(|error| PluginError::Storage { detail: format!("{}: {error}", dir.display()) })?;
        Ok(Self { dir })
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

impl ArtifactStore for FileArtifacts {
    fn put(&self, component: &[u8]) -> Result<String, PluginError> {
        let digest = digest(component);
        let path = self.path(&digest);
        if self.get(&digest).is_ok() {
            return Ok(digest);
        }
        write_whole(&self.dir, &path, &[component], 0o400)
            .map_err(|error| PluginError::Storage { detail: format!("{}: {error}", path.display()) })?;
        Ok(digest)
    }

    fn get(&self, digest: &str) -> Result<Vec<u8>, PluginError> {
        let hexadecimal = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        let missing = || PluginError::ArtifactMissing { digest: digest.chars().take(80).collect() };
        if !hexadecimal {
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
}
