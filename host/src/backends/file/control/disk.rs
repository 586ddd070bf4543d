//! Files and folders as a feed needs them: bounded reads and syncs that are counted, whole writes, locks.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::control::ControlFeedError;
use crate::error::BackendError;
use crate::limits::{CONTROL_FILE_SYNCS_AT_ONCE, CONTROL_LOCK_POLL};

/// Everybody may read what is in a feed.
const FILE_MODE: u32 = 0o644;

/// Counts what is looked at and what is synced, so that a test can show what a poll and an append cost.
#[derive(Debug, Default)]
pub(super) struct Disk {
    opened: AtomicU64,
    listed: AtomicU64,
    synced: AtomicU64,
}

/// How many files a feed has opened or asked for, how many names of folders it has read, and how many files and folders it
/// has synced, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileWork {
    pub opened: u64,
    pub listed: u64,
    pub synced: u64,
}

/// A text under a name that nobody sees yet. It goes unless it is given its own.
pub(super) enum Noted {
    /// A link that leads nowhere: its text is part of the folder, so that the folder's sync is the only one that it needs.
    Link(NamedTempFile<()>),
    /// Where the file system has no links.
    File(NamedTempFile),
}

impl Disk {
    pub(super) fn work(&self) -> FileWork {
        let [opened, listed, synced] =
            [&self.opened, &self.listed, &self.synced].map(|count| count.load(Ordering::Relaxed));
        FileWork { opened, listed, synced }
    }

    /// A file's bytes, and one more than the bound when it is larger. None when there is none; `InvalidData` when it is
    /// something else than a file: whoever may drop one could also drop a pipe that never ends, or a link to elsewhere.
    pub(super) fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut options = OpenOptions::new();
        let file = match options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
                return Err(no_file());
            }
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(no_file());
        }
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// What was noted under a name; none when nothing was.
    pub(super) fn noted(&self, path: &Path, bytes_max: usize) -> io::Result<Option<String>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        match fs::read_link(path) {
            Ok(text) => Ok(text.into_os_string().into_string().ok()),
            // It is no link.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let bytes = self.read(path, bytes_max)?;
                Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes what is in several files durable, some at the same time: a file system makes one write of them.
    pub(super) fn sync_files(&self, files: &[&File]) -> io::Result<()> {
        self.synced.fetch_add(files.len() as u64, Ordering::Relaxed);
        let files_of_a_lane = files.len().div_ceil(CONTROL_FILE_SYNCS_AT_ONCE).max(1);
        std::thread::scope(|scope| {
            let lanes: Vec<_> = files
                .chunks(files_of_a_lane)
                .map(|lane| scope.spawn(move || lane.iter().try_for_each(|file| file.sync_all())))
                .collect();
            lanes
                .into_iter()
                .try_for_each(|lane| lane.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked"))))
        })
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync_names(&self, dir: &Path) -> io::Result<()> {
        self.synced.fetch_add(1, Ordering::Relaxed);
        sync_folder(dir)
    }

    /// Replaces a file by another one, durable when it answers.
    pub(super) fn replace(&self, staging: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let staged = stage(staging, bytes)?;
        self.sync_files(&[staged.as_file()])?;
        staged.persist(path).map_err(|error| error.error)?;
        path.parent().map_or(Ok(()), |folder| self.sync_names(folder))
    }

    pub(super) fn exists(&self, path: &Path) -> io::Result<bool> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Names in a folder that a look at name and kind takes, up to a bound, in no order.
    pub(super) fn list(
        &self,
        dir: &Path,
        max: usize,
        takes: impl Fn(&OsString, FileType) -> bool,
    ) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            self.listed.fetch_add(1, Ordering::Relaxed);
            let entry = entry?;
            let name = entry.file_name();
            if takes(&name, entry.file_type()?) {
                names.push(name);
                if names.len() >= max {
                    break;
                }
            }
        }
        Ok(names)
    }
}

fn no_file() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it is not a plain file")
}

/// Writes a file that nobody sees yet. It goes unless it is given a name.
pub(super) fn stage(dir: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(FILE_MODE)).tempfile_in(dir)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Notes a text under a name that nobody sees yet.
pub(super) fn note(dir: &Path, text: &str) -> io::Result<Noted> {
    let linked = tempfile::Builder::new().make_in(dir, |path| symlink(text, path));
    match linked {
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            stage(dir, text.as_bytes()).map(Noted::File)
        }
        linked => linked.map(Noted::Link),
    }
}

impl Noted {
    /// What is to be synced before it gets its name.
    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Link(_) => None,
            Self::File(file) => Some(file.as_file()),
        }
    }

    pub(super) fn persist(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Link(link) => link.persist(path).map_err(|error| error.error),
            Self::File(file) => file.persist(path).map(drop).map_err(|error| error.error),
        }
    }
}

/// Makes the names in a folder durable.
pub(in crate::backends::file) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces a file by another one, durable when it answers.
pub(in crate::backends::file) fn replace(staging: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = stage(staging, bytes)?;
    staged.as_file().sync_all()?;
    staged.persist(path).map_err(|error| error.error)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes a folder and what is missing above it, each name durable.
pub(in crate::backends::file) fn make_folder(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    make_folder(dir.parent().unwrap_or(Path::new("")))?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !dir.is_dir() => Err(error),
        _ => sync_folder(&dir.join("..")),
    }
}

/// Takes the lock that all who write here take, waiting for as long as this. None when it stays taken. The system lets go
/// of it when the process ends, however it ends.
pub(super) fn lock(path: &Path, wait: Duration) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begin.elapsed() >= wait => return Ok(None),
            Err(TryLockError::WouldBlock) => std::thread::sleep(CONTROL_LOCK_POLL),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// What a failure here is to callers.
pub(in crate::backends::file) fn failed(path: &Path, error: &io::Error) -> ControlFeedError {
    let detail = format!("{}: {error}", path.display());
    ControlFeedError::Backend(match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::DiskFull { detail },
        _ => BackendError::Failed { detail },
    })
}
