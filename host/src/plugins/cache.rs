//! Precompiled components, so that a start does not compile.
//!
//! An entry is native code that will run with the host's rights, so only what
//! this host wrote is taken: an HMAC-SHA-256 over name and bytes, under a key
//! that never leaves the folder `0600`. An entry that does not match is thrown
//! away, counted, and made again. Entries are written under another name,
//! synced, made read-only and renamed: there are no half ones.

use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::PluginError;
use crate::limits::PRECOMPILED_BYTES_MAX;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// One folder of entries for one engine.
pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    /// Code compiled by another engine has another suffix.
    suffix: String,
}

impl Cache {
    pub(super) fn open(dir: PathBuf, engine: &Engine) -> Result<Self, PluginError> {
        fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
        let key = key(&dir, &dir.join("key"))?;
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let cache = Self { dir, key, suffix: format!("{:016x}.cwasm", hasher.finish()) };
        cache.tidy();
        Ok(cache)
    }

    /// The component, where there is a sound entry.
    pub(super) fn get(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let bytes = fs::read(&path).ok()?;
        let sound = bytes.split_at_checked(MAC_BYTES).filter(|(mac, code)| {
            let mut expected = self.mac(digest);
            expected.update(code);
            expected.verify_slice(mac).is_ok()
        });
        let Some((_, code)) = sound else {
            tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host", path = %path.display(), "a precompiled component is not this host's; it is made again");
            metrics::counter!(crate::telemetry::metrics::PRECOMPILED_REJECTED).increment(1);
            // It is replaced in a moment; if not, it is refused again.
            let _ = fs::remove_file(&path);
            return None;
        };
        #[expect(unsafe_code, reason = "loading precompiled code is what the cache is for")]
        // SAFETY: the bytes are `Engine::precompile_component`'s: the MAC over these very bytes, in memory,
        // was made by `put` under a key that only this host holds. Wasmtime itself checks that they are
        // for this engine.
        let component = unsafe { Component::deserialize(engine, code) };
        component
            .inspect_err(|error| {
                tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host", path = %path.display(), %error, "a precompiled component does not load");
            })
            .ok()
    }

    pub(super) fn put(&self, digest: &str, code: &[u8]) -> Result<(), PluginError> {
        let path = self.path(digest);
        let mut mac = self.mac(digest);
        mac.update(code);
        let mut entry = mac.finalize().into_bytes().to_vec();
        entry.extend_from_slice(code);
        write_whole(&self.dir, &path, &entry, 0o400).map_err(|error| failed(&path, &error))
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}-{}", self.suffix))
    }

    /// Begun with the entry's name, so that one entry cannot stand in for another.
    fn mac(&self, digest: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(digest.as_bytes());
        mac.update(self.suffix.as_bytes());
        mac
    }

    /// Removes what other engines have left, and the oldest beyond the bound.
    fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut kept = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "key" {
                continue;
            }
            match entry.metadata() {
                Ok(meta) if name.ends_with(&self.suffix) => {
                    kept.push((meta.modified().ok(), meta.len(), entry.path()))
                }
                // Another engine's, or left behind by a crash: nobody will read it.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        kept.sort();
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in kept {
            if bytes <= PRECOMPILED_BYTES_MAX {
                break;
            }
            bytes -= length;
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes a file so that its name stands for all of it or does not exist.
pub(super) fn write_whole(dir: &Path, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    // Nobody else may read it before it has its mode: a temporary file begins as 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// The host's key: read, or made from the system's randomness the first time.
///
/// It stands for nothing but this folder's entries. So one that is not whole,
/// or that others could have read, is replaced, and the entries are made again.
fn key(dir: &Path, path: &Path) -> Result<[u8; KEY_BYTES], PluginError> {
    match found_key(path) {
        Ok(Ok(key)) => return Ok(key),
        Ok(Err(why)) => tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host",
            path = %path.display(),
            why,
            "the key of the precompiled cache is replaced; components are compiled again"
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(path, &error)),
    }
    let mut key = [0; KEY_BYTES];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key));
    random.map_err(|error| failed(Path::new("/dev/urandom"), &error))?;
    write_whole(dir, path, &key, 0o600).map_err(|error| failed(path, &error))?;
    Ok(key)
}

/// The key, or why it is not to be used.
fn found_key(path: &Path) -> std::io::Result<Result<[u8; KEY_BYTES], &'static str>> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Ok(Err("others may read or write it"));
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(<[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| "it is not 32 bytes long"))
}

fn failed(path: &Path, error: &std::io::Error) -> PluginError {
    PluginError::Storage { detail: format!("{}: {error}", path.display()) }
}
