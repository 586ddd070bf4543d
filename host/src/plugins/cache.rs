//! Precompiled components, so that a start does not compile.
//!
//! An entry is native code that will run with the host's rights, so only what
//! this host wrote is taken: an HMAC-SHA-256 over name and bytes, under a key
//! that never leaves the folder `0600`. An entry that does not match is thrown
//! away, counted, and made again. Entries are written under another name,
//! synced, made read-only and renamed: there are no half ones. At each of them the
//! oldest beyond the bound on all of them go.

use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use wasmtime::Engine;

use super::PluginError;
use super::compiler::Precompiled;
use crate::limits::PRECOMPILED_ENTRY_BYTES_MAX;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const ENTRY_BYTES_MAX: u64 = PRECOMPILED_ENTRY_BYTES_MAX + MAC_BYTES as u64;

/// One folder of entries for one engine.
pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    /// Of all entries together.
    bytes_max: u64,
    /// Code compiled by another engine has another suffix.
    suffix: String,
}

impl Cache {
    pub(super) fn open(dir: PathBuf, engine: &Engine, bytes_max: u64) -> Result<Self, PluginError> {
        fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
        let key = key(&dir, &dir.join("key"))?;
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let cache = Self { dir, key, bytes_max, suffix: format!("{:016x}.cwasm", hasher.finish()) };
        cache.tidy();
        Ok(cache)
    }

    /// The code, where there is a sound entry. Nothing of an unsound one comes further than this.
    pub(super) fn get(&self, digest: &str) -> Option<Precompiled> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        // What is larger than any entry may be is not read to its end, and so does not match either.
        File::open(&path).ok()?.take(ENTRY_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
        let sound = bytes.split_at_checked(MAC_BYTES).is_some_and(|(mac, code)| {
            let mut expected = self.mac(digest);
            expected.update(code);
            expected.verify_slice(mac).is_ok()
        });
        if !sound {
            tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host", path = %path.display(), "a precompiled component is not this host's; it is made again");
            metrics::counter!(crate::telemetry::metrics::PRECOMPILED_REJECTED).increment(1);
            // It is replaced in a moment; if not, it is refused again.
            let _ = fs::remove_file(&path);
            return None;
        }
        bytes.drain(..MAC_BYTES);
        Some(Precompiled::vouched(bytes))
    }

    /// Keeps code for the next start. The oldest entries make room for it.
    pub(super) fn put(&self, digest: &str, precompiled: &Precompiled) -> Result<(), PluginError> {
        let path = self.path(digest);
        let code = precompiled.code();
        if code.len() as u64 > PRECOMPILED_ENTRY_BYTES_MAX.min(self.bytes_max) {
            let detail = format!(
                "it has {} bytes; precompiled_entry_bytes_max is {PRECOMPILED_ENTRY_BYTES_MAX}, precompiled_bytes_max {}",
                code.len(),
                self.bytes_max
            );
            return Err(PluginError::Storage { detail });
        }
        let mut mac = self.mac(digest);
        mac.update(code);
        let mut entry = mac.finalize().into_bytes().to_vec();
        entry.extend_from_slice(code);
        write_whole(&self.dir, &path, &entry, 0o400).map_err(|error| failed(&path, &error))?;
        self.make_room(&path);
        Ok(())
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

    /// Removes what other engines and crashes have left. At the start only: later, such a file may be one
    /// that is being written.
    fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "key" && !name.ends_with(&self.suffix) {
                // Nobody will read it; and if it stays, it is looked at again at the next start.
                let _ = fs::remove_file(entry.path());
            }
        }
        self.make_room(Path::new(""));
    }

    /// Removes the oldest entries beyond the bound, except for this one.
    fn make_room(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let ours =
            entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(&self.suffix));
        let mut kept: Vec<_> = ours
            .filter_map(|entry| {
                let meta = entry.metadata().ok()?;
                Some((meta.modified().ok(), meta.len(), entry.path()))
            })
            .collect();
        kept.sort();
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in kept.into_iter().filter(|(_, _, path)| path != newest) {
            if bytes <= self.bytes_max {
                break;
            }
            bytes -= length;
            tracing::info!(path = %path.display(), "a precompiled component made room for a newer one");
            // One that stays is counted again at the next `put`.
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

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::plugins::compiler::Compiler;
    use crate::plugins::engine;

    /// The smallest component there is: an empty one.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";
    const DIGEST: &str = "00";
    const OTHER: &str = "11";

    /// A sound entry, made worse in one of four ways.
    fn forged(sound: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        match random.random_range(0..4) {
            0 => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            1 => bytes.truncate(random.random_range(0..sound.len())),
            2 => bytes.extend((0..random.random_range(1..64)).map(|_| random.random::<u8>())),
            _ => {
                // Another entry, or its first bytes with the rest of this one.
                let cut = random.random_range(1..=other.len());
                bytes.splice(..cut.min(sound.len()), other[..cut].iter().copied());
            }
        }
        bytes
    }

    #[test]
    fn ten_thousand_forged_entries_are_refused_before_anything_is_mapped() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling().expect("an engine");
        let cache = Cache::open(dir.path().to_owned(), &engine, u64::MAX).expect("the folder opens");
        let code =
            Compiler::new(None, 0, std::time::Duration::ZERO).compile(&engine, EMPTY).expect("it compiles");
        cache.put(DIGEST, &code).expect("it can be kept");
        cache.put(OTHER, &code).expect("it can be kept");
        let [sound, other] = [DIGEST, OTHER].map(|digest| fs::read(cache.path(digest)).expect("an entry"));
        assert_ne!(sound, other, "the name is part of what the key vouches for");
        let mut random = StdRng::seed_from_u64(7);
        for turn in 0..10_000 {
            let bytes = forged(&sound, &other, &mut random);
            let path = cache.path(DIGEST);
            fs::remove_file(&path).ok();
            fs::write(&path, &bytes).expect("ours");
            // `Precompiled` is the only thing that can be mapped, and there is none.
            assert!(bytes == sound || cache.get(DIGEST).is_none(), "forged entry {turn} was taken");
        }
        fs::write(cache.path(DIGEST), &sound).expect("ours");
        cache.get(DIGEST).expect("the sound one is").load(&engine).expect("it can be mapped");
    }

    #[test]
    fn the_oldest_entries_make_room_at_every_put() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling().expect("an engine");
        let code =
            Compiler::new(None, 0, std::time::Duration::ZERO).compile(&engine, EMPTY).expect("it compiles");
        let entry = (code.code().len() + MAC_BYTES) as u64;
        let cache = Cache::open(dir.path().to_owned(), &engine, 2 * entry).expect("the folder opens");
        for (age, digest) in ["a", "b", "c", "d"].into_iter().enumerate() {
            cache.put(digest, &code).expect("it can be kept");
            let kept = cache.get(digest);
            assert!(kept.is_some(), "the newest stays");
            let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            File::open(cache.path(digest)).and_then(|file| file.set_modified(then)).expect("ours");
        }
        assert_eq!(
            ["a", "b", "c", "d"].map(|digest| cache.path(digest).exists()),
            [false, false, true, true]
        );
        let tight =
            Cache::open(dir.path().to_owned(), &engine, entry - MAC_BYTES as u64 - 1).expect("it opens");
        let error = tight.put("e", &code).expect_err("it fits no more");
        assert!(error.to_string().contains("precompiled_bytes_max"), "{error}");
        assert!(!tight.path("e").exists());
    }
}
