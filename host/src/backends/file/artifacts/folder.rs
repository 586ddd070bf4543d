//! The folder: names, locks, and every step that others may see.

use std::fs::{self, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::reading::{self, Content};
use super::spool::{Spooled, remove_leftovers};
use crate::backends::file::control::disk::{failed, make_folder, sync_folder};
use crate::clock::Clock;
use crate::control::{ArtifactInfo, ControlFeedError, Result, check_limit, digest_hex};
use crate::error::BackendError;
use crate::limits::{
    ARTIFACT_LOCK_POLL, ARTIFACT_LOCK_WAIT, ARTIFACT_NOTE_BYTES_MAX, ARTIFACT_NOTES_MAX, ARTIFACT_PINS_MAX,
};

/// The two folders beside content.
pub(super) const BESIDE: [&str; 2] = ["pins", "notes"];

#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
}

impl Folder {
    pub(super) fn open(dir: PathBuf, clock: Arc<dyn Clock>) -> Result<Self> {
        let folder = Self { dir, clock };
        for dir in [folder.spool(), folder.root()] {
            make_folder(&dir).map_err(|error| failed(&dir, &error))?;
        }
        // Whoever made it may have been killed before its names were synced.
        let synced = sync_folder(&folder.dir).and_then(|()| sync_folder(&folder.dir.join("..")));
        synced.map_err(|error| failed(&folder.dir, &error))?;
        Ok(folder)
    }

    pub(super) fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("sha256")
    }

    /// Where content lies. A text that is no digest leads nowhere.
    pub(super) fn path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest_hex(digest)?;
        Ok(self.root().join(&hex[..2]).join(&hex[2..4]).join(hex))
    }

    fn beside(&self, digest: &str, what: &str) -> Result<PathBuf> {
        Ok(self.path(digest)?.with_extension(what))
    }

    /// As long as it is held, nothing is removed.
    pub(super) fn adding(&self) -> Result<File> {
        self.lock(File::try_lock_shared)
    }

    /// As long as it is held, nothing is added.
    pub(super) fn removing(&self) -> Result<File> {
        self.lock(File::try_lock)
    }

    fn lock(&self, take: fn(&File) -> std::result::Result<(), TryLockError>) -> Result<File> {
        let path = self.dir.join("LOCK");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|error| failed(&path, &error))?;
        let begin = Instant::now();
        loop {
            match take(&file) {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if begin.elapsed() < ARTIFACT_LOCK_WAIT => {
                    std::thread::sleep(ARTIFACT_LOCK_POLL);
                }
                Err(TryLockError::WouldBlock) => {
                    let detail = format!("{}: others have it for {ARTIFACT_LOCK_WAIT:?}", path.display());
                    return Err(BackendError::Failed { detail }.into());
                }
                Err(TryLockError::Error(error)) => return Err(failed(&path, &error)),
            }
        }
    }

    fn now(&self) -> FileTimes {
        let since = Duration::from_micros(u64::try_from(self.clock.now().0).unwrap_or(0));
        FileTimes::new().set_modified(UNIX_EPOCH + since)
    }

    /// Whether something was stored at least so long ago.
    pub(super) fn is_older(&self, info: &ArtifactInfo, than: Duration) -> bool {
        let than = i64::try_from(than.as_micros()).unwrap_or(i64::MAX);
        self.clock.now().0.saturating_sub(info.stored_at) >= than
    }

    /// Gives what was spooled its name, unless it is there and sound.
    pub(super) fn keep(&self, spooled: Spooled, digest: &str) -> Result<ArtifactInfo> {
        let path = self.path(digest)?;
        let kept = || {
            spooled.file().set_times(self.now())?;
            spooled.seal()
        };
        kept().map_err(|error| failed(&path, &error))?;
        let _adding = self.adding()?;
        let shard = path.parent().unwrap_or(&path);
        make_folder(shard).map_err(|error| failed(shard, &error))?;
        let named = || {
            if let Some(spooled) = spooled.name(&path)? {
                self.keep_present(spooled, &path, digest)?;
            }
            // Of what was there, too, and of the folders above: whoever gave names may have been killed before syncing them.
            sync_up(shard, &self.root())
        };
        named().map_err(|error| failed(&path, &error))?;
        self.info(digest)?.ok_or_else(|| ControlFeedError::ArtifactMissing { digest: digest.to_owned() })
    }

    fn keep_present(&self, spooled: Spooled, path: &Path, digest: &str) -> io::Result<()> {
        let mut file = File::open(path)?;
        if reading::digest(&mut file)? == digest {
            return file.set_times(self.now());
        }
        tracing::warn!(
            error.kind = "artifact_damaged",
            error.blame = "host",
            digest,
            "a damaged artifact is replaced by the same content as it was"
        );
        spooled.replace(path)
    }

    pub(super) fn read(&self, digest: &str) -> Result<(ArtifactInfo, Content)> {
        let path = self.path(digest)?;
        let missing = || ControlFeedError::ArtifactMissing { digest: digest.to_owned() };
        let file = match open(&path) {
            Ok(file) => file.ok_or_else(missing)?,
            Err(error) => return Err(failed(&path, &error)),
        };
        let info = self.info_of(digest, &path)?.ok_or_else(missing)?;
        Ok((info, Content { file, path }))
    }

    pub(super) fn info(&self, digest: &str) -> Result<Option<ArtifactInfo>> {
        self.info_of(digest, &self.path(digest)?)
    }

    fn info_of(&self, digest: &str, path: &Path) -> Result<Option<ArtifactInfo>> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, &error)),
        };
        let modified = meta.modified().map_err(|error| failed(path, &error))?;
        let pins = self.names(&path.with_extension("pins"))?;
        Ok(Some(ArtifactInfo {
            digest: digest.to_owned(),
            bytes: meta.len(),
            stored_at: micros(modified),
            pins,
        }))
    }

    /// Names of the files in a folder, in order; none where there is no folder.
    fn names(&self, dir: &Path) -> Result<Vec<String>> {
        let read = || match fs::read_dir(dir) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let mut names: Vec<String> = read()
            .map_err(|error| failed(dir, &error))?
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn needed(&self, digest: &str) -> Result<()> {
        let found = self.info(digest)?;
        found.map(drop).ok_or_else(|| ControlFeedError::ArtifactMissing { digest: digest.to_owned() })
    }

    pub(super) fn pin(&self, digest: &str, name: &str) -> Result<()> {
        let _adding = self.adding()?;
        self.needed(digest)?;
        let dir = self.beside(digest, "pins")?;
        self.room(&dir, name, "artifact_pins_max", ARTIFACT_PINS_MAX)?;
        self.write_beside(&dir, name, b"").map(drop)
    }

    pub(super) fn unpin(&self, digest: &str, name: &str) -> Result<()> {
        let dir = self.beside(digest, "pins")?;
        let path = dir.join(name);
        let removed = match fs::remove_file(&path) {
            Ok(()) => sync_folder(&dir),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|error| failed(&path, &error))
    }

    pub(super) fn attach(&self, digest: &str, name: &str, note: &[u8]) -> Result<()> {
        let _adding = self.adding()?;
        self.needed(digest)?;
        let dir = self.beside(digest, "notes")?;
        self.room(&dir, name, "artifact_notes_max", ARTIFACT_NOTES_MAX)?;
        let is_new = self.write_beside(&dir, name, note)?;
        if is_new || self.note(&dir.join(name))?.as_deref() == Some(note) {
            return Ok(());
        }
        Err(ControlFeedError::NoteTaken { digest: digest.to_owned(), name: name.to_owned() })
    }

    pub(super) fn attached(&self, digest: &str) -> Result<Vec<(String, Bytes)>> {
        self.needed(digest)?;
        let dir = self.beside(digest, "notes")?;
        let mut notes = Vec::new();
        for name in self.names(&dir)? {
            if let Some(note) = self.note(&dir.join(&name))? {
                notes.push((name, note.into()));
            }
        }
        Ok(notes)
    }

    fn note(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let read = || {
            let Some(file) = open(path)? else { return Ok(None) };
            let mut bytes = Vec::new();
            file.take(ARTIFACT_NOTE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        read().map_err(|error| failed(path, &error))
    }

    /// Whether one more fits. What is there already does.
    fn room(&self, dir: &Path, name: &str, limit: &'static str, max: usize) -> Result<()> {
        let names = self.names(dir)?;
        if names.iter().any(|known| known == name) {
            return Ok(());
        }
        check_limit(limit, names.len() as u64 + 1, max as u64)
    }

    /// Writes a small file, whole and durable. False when there is one of this name.
    fn write_beside(&self, dir: &Path, name: &str, bytes: &[u8]) -> Result<bool> {
        make_folder(dir).map_err(|error| failed(dir, &error))?;
        let mut spooled = Spooled::begin(self)?;
        spooled.write(bytes)?;
        let path = dir.join(name);
        let written = || {
            spooled.seal()?;
            let is_new = spooled.name(&path)?.is_none();
            sync_folder(dir)?;
            sync_folder(&dir.join(".."))?;
            Ok(is_new)
        };
        written().map_err(|error| failed(&path, &error))
    }

    /// Removes an artifact, if it is still as old and nobody pins it. Its content goes first: without it the rest counts
    /// for nothing.
    pub(super) fn remove(&self, digest: &str, older_than: Duration) -> Result<Option<ArtifactInfo>> {
        let _removing = self.removing()?;
        let info = self.info(digest)?;
        let Some(info) = info.filter(|info| info.pins.is_empty() && self.is_older(info, older_than)) else {
            return Ok(None);
        };
        let path = self.path(digest)?;
        let removed = || {
            fs::remove_file(&path)?;
            sync_folder(path.parent().unwrap_or(&path))?;
            remove_beside(&path)
        };
        removed().map_err(|error| failed(&path, &error))?;
        Ok(Some(info))
    }

    /// Removes what crashed writers have left.
    pub(super) fn clear_spool(&self) -> Result<()> {
        let _removing = self.removing()?;
        let spool = self.spool();
        remove_leftovers(&spool).map_err(|error| failed(&spool, &error))
    }

    /// Removes what lay beside content that a crashed collection has removed.
    pub(super) fn remove_orphan(&self, path: &Path) -> Result<()> {
        let _removing = self.removing()?;
        if path.exists() {
            return Ok(());
        }
        remove_beside(path).map_err(|error| failed(path, &error))
    }
}

/// Makes the names durable in a folder and in those above it, up to this one.
fn sync_up(dir: &Path, top: &Path) -> io::Result<()> {
    sync_folder(dir)?;
    match dir.parent().filter(|_| dir != top) {
        Some(above) => sync_up(above, top),
        None => Ok(()),
    }
}

/// Removes what lies beside content.
fn remove_beside(path: &Path) -> io::Result<()> {
    for what in BESIDE {
        match fs::remove_dir_all(path.with_extension(what)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A plain file; none where there is none. A link could lead anywhere, and a pipe never end.
fn open(path: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    match opened {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
