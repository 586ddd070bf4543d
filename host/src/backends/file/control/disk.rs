//! Files and folders as a feed needs them: bounded reads that are counted, whole writes, locks.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::control::ControlFeedError;
use crate::error::BackendError;
use crate::limits::{CONTROL_FILE_SYNCS_AT_ONCE, CONTROL_LOCK_POLL};

/// Everybody may read what is in a feed.
const FILE_MODE: u32 = 0o644;

/// Counts what is looked at, so that a test can show what a poll costs.
#[derive(Debug, Default)]
pub(super) struct Disk {
    opened: AtomicU64,
    listed: AtomicU64,
}

/// How many files a feed has opened or asked for, and how many names of folders it has read, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileWork {
    pub opened: u64,
    pub listed: u64,
}

impl Disk {
    pub(super) fn work(&self) -> FileWork {
        FileWork { opened: self.opened.load(Ordering::Relaxed), listed: self.listed.load(Ordering::Relaxed) }
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

/// Syncs several files, some at the same time: a file system makes one write of them.
pub(super) fn sync_files(files: &[&File]) -> io::Result<()> {
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
