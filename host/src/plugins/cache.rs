//! Precompiled components, so that a start does not compile, and plugins share their code with the page cache.
//!
//! An entry is native code that will run with the host's rights, so only what this host wrote is taken: behind
//! the code stands an HMAC-SHA-256 over name and code, under a key that never leaves the folder `0600`. An entry
//! that does not match is thrown away, counted, and made again. Entries are written under another name, synced,
//! made read-only and renamed: there are no half ones, and a file's bytes never change. So what was checked can
//! be mapped from its file: its pages are the page cache's, and cost a plugin no memory of its own. At each put
//! the oldest entries beyond the bound on all of them go; what is mapped stays as long as it is.

use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::PluginError;
use super::compiler::Precompiled;
use crate::limits::PRECOMPILED_ENTRY_BYTES_MAX;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const ENTRY_BYTES_MAX: u64 = PRECOMPILED_ENTRY_BYTES_MAX + MAC_BYTES as u64;
/// How an entry is laid out. Those of another layout go at the start, as those of another engine do.
const LAYOUT: u8 = 2;
/// An entry is checked through a buffer of this size.
const CHECK_BYTES: usize = 16 << 10;
const ENTRY_MODE: u32 = 0o400;

/// One folder of entries for one engine.
pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    /// Of all entries together.
    bytes_max: u64,
    /// Other processes keep theirs here, too: nothing is removed that may be one of them.
    shared: bool,
    /// Code compiled by another engine has another suffix.
    suffix: String,
}

impl Cache {
    pub(super) fn open(dir: PathBuf, engine: &Engine, bytes_max: u64) -> Result<Self, PluginError> {
        let cache = Self::of(dir, engine, bytes_max)?;
        cache.tidy();
        Ok(cache)
    }

    fn of(dir: PathBuf, engine: &Engine, bytes_max: u64) -> Result<Self, PluginError> {
        fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
        let key = key(&dir, &dir.join("key"))?;
        let mut hasher = std::hash::DefaultHasher::new();
        LAYOUT.hash(&mut hasher);
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { dir, key, bytes_max, shared: false, suffix: format!("{:016x}.cwasm", hasher.finish()) })
    }

    /// The same where other processes keep theirs: what is too much or of no use, they may be writing or using.
    pub(super) fn open_shared(dir: PathBuf, engine: &Engine, bytes_max: u64) -> Result<Self, PluginError> {
        Ok(Self { shared: true, ..Self::of(dir, engine, bytes_max)? })
    }

    /// The component, where there is a sound entry of it, mapped from its file.
    pub(super) fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let mut entry = self.get(digest)?;
        let loaded = entry.map(engine).or_else(|error| {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let path = self.dir.display();
                tracing::warn!(error.kind = "precompiled_copied", error.blame = "host", %path, error = %format!("{error:#}"), "precompiled components cannot be mapped from their files; each takes memory of its own");
            });
            entry.copy(engine)
        });
        match loaded {
            Ok(component) => Some(component),
            // It was made for another engine; this one makes its own.
            Err(error) => {
                tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host", digest, error = %format!("{error:#}"), "a precompiled component does not load; it is made again");
                // It is replaced in a moment; if not, it fails again.
                let _ = fs::remove_file(self.path(digest));
                None
            }
        }
    }

    /// Whether there is an entry; it may turn out not to be sound.
    pub(super) fn has(&self, digest: &str) -> bool {
        self.path(digest).is_file()
    }

    /// The entry, where it is sound. Nothing of an unsound one comes further than this.
    fn get(&self, digest: &str) -> Option<Entry> {
        let path = self.path(digest);
        let file = File::open(&path).ok()?;
        let mut entry = Entry { file, mac: self.mac(digest) };
        // One that cannot be read to its end cannot be mapped, either.
        if entry.check().unwrap_or(false) {
            return Some(entry);
        }
        tracing::warn!(error.kind = "precompiled_rejected", error.blame = "host", path = %path.display(), "a precompiled component is not this host's; it is made again");
        metrics::counter!(crate::telemetry::metrics::PRECOMPILED_REJECTED).increment(1);
        // It is replaced in a moment; if not, it is refused again.
        let _ = fs::remove_file(&path);
        None
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
        let mac = mac.finalize().into_bytes();
        let written = write_whole(&self.dir, &path, &[code, mac.as_slice()], ENTRY_MODE);
        written.map_err(|error| failed(&path, &error))?;
        if !self.shared {
            self.make_room(&path);
        }
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

/// An open file of the cache. Once it is checked, nothing of it is reached by its name any more.
struct Entry {
    file: File,
    /// Begun with the entry's name, for what stands in the file.
    mac: Hmac<Sha256>,
}

impl Entry {
    /// Whether the code in the file is what the MAC behind it was made over.
    fn check(&mut self) -> std::io::Result<bool> {
        let bytes = self.file.metadata()?.len();
        // What is larger than any entry may be is not read.
        let Some(mut left) = bytes.checked_sub(MAC_BYTES as u64).filter(|_| bytes <= ENTRY_BYTES_MAX) else {
            return Ok(false);
        };
        let mut mac = self.mac.clone();
        let mut buffer = [0; CHECK_BYTES];
        while left > 0 {
            let most = usize::try_from(left).map_or(CHECK_BYTES, |left| left.min(CHECK_BYTES));
            let read = self.file.read(&mut buffer[..most])?;
            if read == 0 {
                return Ok(false);
            }
            mac.update(&buffer[..read]);
            left -= read as u64;
        }
        let mut found = [0; MAC_BYTES];
        self.file.read_exact(&mut found)?;
        Ok(mac.verify_slice(&found).is_ok())
    }

    /// Maps the file. Nothing of it runs yet. The engine keeps a descriptor of it for the memory of instances.
    fn map(&self, engine: &Engine) -> Result<Component, wasmtime::Error> {
        let meta = self.file.metadata()?;
        let own = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o777 == ENTRY_MODE;
        if !own || !meta.is_file() {
            return Err(wasmtime::Error::msg("others than the host's user may be able to change the file"));
        }
        // Another name for the open file itself: whatever stands under the entry's name by now, this is what
        // was checked.
        let path = Path::new("/proc/self/fd").join(self.file.as_raw_fd().to_string());
        #[expect(unsafe_code, reason = "running compiled code is what an engine is for")]
        // SAFETY: the file holds `Engine::precompile_component`'s bytes and, behind the end of that ELF image,
        // 32 that nothing of it refers to: `check` has found a MAC over these very bytes in this very file
        // (the same inode, through the same descriptor), made by `put` under a key that only this host has,
        // about code that came from this process or from a child of the host's own executable. Nor do they
        // change as long as they are mapped: `put` gives a file its mode of 0400 before it gets its name, this
        // host never opens it for writing again, replaces and removes entries by name only, and nobody but the
        // file's owner, which is the host's own user, may write it or change its mode. Who is that user, or
        // root, needs no cache to make this process run something. Wasmtime itself checks that the code is for
        // this version and these settings.
        unsafe {
            Component::deserialize_file(engine, path)
        }
    }

    /// Copies the code to memory, where its file cannot be mapped: where the folder's file system is mounted
    /// `noexec`, there is no `/proc`, or the file is not the host's alone. What was read is checked again.
    fn copy(&mut self, engine: &Engine) -> Result<Component, wasmtime::Error> {
        self.file.rewind()?;
        let mut bytes = Vec::new();
        (&self.file).take(ENTRY_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        let changed = || wasmtime::Error::msg("its file has changed since it was opened");
        let code = bytes.len().checked_sub(MAC_BYTES).ok_or_else(changed)?;
        let found = bytes.split_off(code);
        self.mac.clone().chain_update(&bytes).verify_slice(&found).map_err(|_| changed())?;
        Precompiled::vouched(bytes).load(engine)
    }
}

/// Writes a file so that its name stands for all of it or does not exist.
pub(super) fn write_whole(dir: &Path, path: &Path, parts: &[&[u8]], mode: u32) -> std::io::Result<()> {
    // Nobody else may read it before it has its mode: a temporary file begins as 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    for part in parts {
        file.write_all(part)?;
    }
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
    write_whole(dir, path, &[&key], 0o600).map_err(|error| failed(path, &error))?;
    Ok(key)
}

/// The key, or why it is not to be used.
fn found_key(path: &Path) -> std::io::Result<Result<[u8; KEY_BYTES], &'static str>> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if let Some(why) = known_to_others(meta.uid(), meta.mode()) {
        return Ok(Err(why));
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(<[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| "it is not 32 bytes long"))
}

/// Why others than this user may know what a file holds. Who knows the key can make entries.
fn known_to_others(owner: u32, mode: u32) -> Option<&'static str> {
    if mode & 0o077 != 0 {
        return Some("others may read or write it");
    }
    (owner != rustix::process::geteuid().as_raw()).then_some("it is somebody else's")
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
    use crate::plugins::{Metering, engine};

    /// The smallest component there is: an empty one.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";
    const DIGEST: &str = "00";
    const OTHER: &str = "11";

    fn compiled(engine: &Engine) -> Precompiled {
        Compiler::new(None, Metering::Epoch, 0, std::time::Duration::ZERO)
            .compile(engine, EMPTY)
            .expect("it compiles")
    }

    #[test]
    fn a_key_that_others_may_know_is_none() {
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(known_to_others(own, 0o100_600), None);
        assert_eq!(known_to_others(own + 1, 0o100_600), Some("it is somebody else's"));
        for mode in [0o100_640, 0o100_604, 0o100_620, 0o100_602] {
            assert_eq!(known_to_others(own, mode), Some("others may read or write it"));
        }
    }

    /// As the host would leave it.
    fn leave(path: &Path, bytes: &[u8]) {
        fs::remove_file(path).ok();
        fs::write(path, bytes).expect("ours");
        fs::set_permissions(path, Permissions::from_mode(ENTRY_MODE)).expect("ours");
    }

    /// A sound entry, made worse in one of seven ways.
    fn forged(sound: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        let code = sound.len() - MAC_BYTES;
        match random.random_range(0..7) {
            0 => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            1 => bytes.truncate(random.random_range(0..sound.len())),
            2 => bytes.extend((0..random.random_range(1..64)).map(|_| random.random::<u8>())),
            3 => {
                // Another entry, or its first bytes with the rest of this one.
                let cut = random.random_range(1..=other.len());
                bytes.splice(..cut.min(sound.len()), other[..cut].iter().copied());
            }
            // The MAC is cut off, or part of it is.
            4 => bytes.truncate(code + random.random_range(0..MAC_BYTES)),
            // It stands elsewhere, such as before the code, where it once stood.
            5 => bytes.rotate_right(random.random_range(1..=MAC_BYTES)),
            // It stands behind something more, or before something less.
            _ => {
                let at = random.random_range(code / 2..code);
                bytes.drain(at..at + random.random_range(1..=code - at));
            }
        }
        bytes
    }

    #[test]
    fn ten_thousand_forged_entries_are_refused_before_anything_is_mapped() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling(Metering::Epoch).expect("an engine");
        let cache = Cache::open(dir.path().to_owned(), &engine, u64::MAX).expect("the folder opens");
        let code = compiled(&engine);
        cache.put(DIGEST, &code).expect("it can be kept");
        cache.put(OTHER, &code).expect("it can be kept");
        let [sound, other] = [DIGEST, OTHER].map(|digest| fs::read(cache.path(digest)).expect("an entry"));
        assert_ne!(sound, other, "the name is part of what the key vouches for");
        let mut random = StdRng::seed_from_u64(7);
        let path = cache.path(DIGEST);
        for turn in 0..10_000 {
            let bytes = forged(&sound, &other, &mut random);
            leave(&path, &bytes);
            // `Entry` is the only thing that can be mapped, and there is none.
            assert!(bytes == sound || cache.get(DIGEST).is_none(), "forged entry {turn} was taken");
        }
        let mut earlier = cache.mac(DIGEST).chain_update(code.code()).finalize().into_bytes().to_vec();
        earlier.extend_from_slice(code.code());
        leave(&path, &earlier);
        assert!(cache.get(DIGEST).is_none(), "an entry of the earlier layout was taken");
        leave(&path, &sound);
        cache.get(DIGEST).expect("the sound one is").map(&engine).expect("it can be mapped");
        cache.load(&engine, DIGEST).expect("and it is");
    }

    #[test]
    fn what_was_checked_is_mapped_whatever_stands_under_its_name_by_then() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling(Metering::Epoch).expect("an engine");
        let cache = Cache::open(dir.path().to_owned(), &engine, u64::MAX).expect("the folder opens");
        cache.put(DIGEST, &compiled(&engine)).expect("it can be kept");
        let mut entry = cache.get(DIGEST).expect("it is sound");
        leave(&cache.path(DIGEST), b"something else");
        entry.map(&engine).expect("what was checked");
        entry.copy(&engine).expect("what was checked");
        fs::remove_file(cache.path(DIGEST)).expect("ours");
        entry.map(&engine).expect("what was checked, though it made room");
    }

    #[test]
    fn an_entry_that_others_might_change_is_copied_and_not_mapped() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling(Metering::Epoch).expect("an engine");
        let cache = Cache::open(dir.path().to_owned(), &engine, u64::MAX).expect("the folder opens");
        cache.put(DIGEST, &compiled(&engine)).expect("it can be kept");
        for mode in [0o600, 0o440, 0o402] {
            fs::set_permissions(cache.path(DIGEST), Permissions::from_mode(mode)).expect("ours");
            let mut entry = cache.get(DIGEST).expect("it is sound");
            assert!(entry.map(&engine).is_err(), "a file of mode {mode:o} was mapped");
            entry.copy(&engine).expect("what was read is what was made");
            cache.load(&engine, DIGEST).expect("the host goes on without mapping");
        }
        // What changes between the check and the copy is seen.
        fs::set_permissions(cache.path(DIGEST), Permissions::from_mode(0o600)).expect("ours");
        let mut entry = cache.get(DIGEST).expect("it is sound");
        let mut bytes = fs::read(cache.path(DIGEST)).expect("an entry");
        bytes[100] ^= 1;
        fs::write(cache.path(DIGEST), &bytes).expect("ours");
        let error = entry.copy(&engine).expect_err("it is not what was checked");
        assert!(error.to_string().contains("has changed"), "{error}");
    }

    #[test]
    fn the_oldest_entries_make_room_at_every_put() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling(Metering::Epoch).expect("an engine");
        let code = compiled(&engine);
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
    /// Another process may be writing what lies there, or use it under other settings.
    #[test]
    fn a_shared_folder_keeps_what_is_none_of_its_own() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine::for_compiling(Metering::Epoch).expect("an engine");
        let code = compiled(&engine);
        let foreign = [".tmpHalf", "00-0123456789abcdef.cwasm"].map(|name| dir.path().join(name));
        foreign.iter().for_each(|path| fs::write(path, b"not ours").expect("ours"));
        let entry = (code.code().len() + MAC_BYTES) as u64;
        let shared = Cache::open_shared(dir.path().to_owned(), &engine, entry).expect("the folder opens");
        for digest in ["a", "b"] {
            shared.put(digest, &code).expect("it can be kept");
        }
        assert!(["a", "b"].iter().all(|digest| shared.get(digest).is_some()), "the bound removes nothing");
        assert!(foreign.iter().all(|path| path.exists()));
        // Who has the folder alone puts it in order.
        Cache::open(dir.path().to_owned(), &engine, u64::MAX).expect("the folder opens");
        assert!(!foreign.iter().any(|path| path.exists()));
    }
}
