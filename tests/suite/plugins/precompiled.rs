//! The precompiled cache: native code that runs with the host's rights, so only the host's own is taken.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use millrace::plugins::{PluginSettings, RuntimeOptions, WasmRuntime};

use super::rig::{batch, component, context, load, options};

/// Loads a guest with a new runtime on this folder, and has it handle an event.
fn load_with(dir: &Path, guest: &str) {
    let options = RuntimeOptions { cache_dir: Some(dir.to_owned()), ..options() };
    let runtime = WasmRuntime::new(options).expect("the runtime starts");
    let factory = load(&runtime, &component(guest), &PluginSettings::default()).expect("the guest loads");
    let mut instance = factory.instantiate(context()).expect("it can be instantiated");
    instance.load(None).expect("it loads");
    assert_eq!(instance.handle(&batch(&[("a", "x", "1")], 0)).expect("it works").handled, 1);
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .expect("the folder can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .collect();
    found.sort();
    found
}

fn only_entry(dir: &Path) -> PathBuf {
    let entries = entries(dir);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.into_iter().next().expect("there is one")
}

/// Which file this is; another one under the same name answers otherwise.
fn identity(path: &Path) -> (u64, i64) {
    let meta = fs::metadata(path).expect("it is there");
    (meta.ino(), meta.mtime_nsec())
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("ours");
    fs::write(path, bytes).expect("ours");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn a_second_start_takes_what_the_first_has_compiled() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    load_with(dir.path(), "crossing");
    let entry = only_entry(dir.path());
    let before = identity(&entry);
    load_with(dir.path(), "crossing");
    assert_eq!(identity(&entry), before, "it was not made again");
    assert_eq!((mode(&entry), mode(&dir.path().join("key"))), (0o400, 0o600));
}

#[test]
fn an_entry_that_was_changed_is_made_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    load_with(dir.path(), "crossing");
    let entry = only_entry(dir.path());
    let sound = fs::read(&entry).expect("it can be read");
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for forged in [flipped.as_slice(), &sound[..sound.len() / 2], &sound[..10], b"", &sound[32..]] {
        overwrite(&entry, forged);
        load_with(dir.path(), "crossing");
        assert!(fs::read(&entry).expect("it is there again").len() == sound.len(), "it was made again");
    }
}

#[test]
fn one_entry_cannot_stand_in_for_another() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    load_with(dir.path(), "crossing");
    let crossing = only_entry(dir.path());
    load_with(dir.path(), "trap_on_type");
    let other = entries(dir.path()).into_iter().find(|path| *path != crossing).expect("a second entry");
    let bytes = fs::read(&crossing).expect("it can be read");
    overwrite(&other, &bytes);
    load_with(dir.path(), "trap_on_type");
    assert!(fs::read(&other).expect("it is there") != bytes, "it was made again");
}

#[test]
fn entries_of_another_host_are_not_taken() {
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    load_with(ours.path(), "crossing");
    load_with(theirs.path(), "crossing");
    let entry = only_entry(ours.path());
    let foreign = fs::read(only_entry(theirs.path())).expect("it can be read");
    overwrite(&entry, &foreign);
    load_with(ours.path(), "crossing");
    assert!(fs::read(&entry).expect("it is there") != foreign, "it was made again under our key");
}

#[test]
fn a_key_that_is_not_whole_or_not_secret_is_replaced() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    load_with(dir.path(), "crossing");
    let key = dir.path().join("key");
    let entry = only_entry(dir.path());
    let first = fs::read(&key).expect("it can be read");
    for (bytes, permissions) in [(&first[..7], 0o600), (&b""[..], 0o600), (&first[..], 0o644)] {
        let before = identity(&entry);
        overwrite(&key, bytes);
        fs::set_permissions(&key, Permissions::from_mode(permissions)).expect("ours");
        load_with(dir.path(), "crossing");
        let now = fs::read(&key).expect("it is there");
        assert_eq!((now.len(), mode(&key)), (32, 0o600));
        assert_ne!(now, first);
        assert_ne!(identity(&entry), before, "what the old key vouched for is made again");
    }
}

#[test]
fn what_another_engine_or_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    load_with(dir.path(), "crossing");
    let entry = only_entry(dir.path());
    let digest = entry.file_name().expect("a name").to_string_lossy()[..64].to_owned();
    let other = dir.path().join(format!("{digest}-0123456789abcdef.cwasm"));
    fs::write(&other, b"of another engine").expect("ours");
    fs::write(dir.path().join(".tmpAbCdEf"), b"half").expect("ours");
    load_with(dir.path(), "crossing");
    assert_eq!(only_entry(dir.path()), entry);
    assert!(!dir.path().join(".tmpAbCdEf").exists());
}
