//! What is being written.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::folder::Folder;
use crate::backends::file::control::disk::failed;
use crate::control::Result;

/// Whoever may read the folder may read what is in it; nobody changes it.
const CONTENT_MODE: u32 = 0o444;

/// A file in the spool. It goes unless it is given a name; its lock says that somebody still writes it.
#[derive(Debug)]
pub(super) struct Spooled(NamedTempFile);

impl Spooled {
    pub(super) fn begin(folder: &Folder) -> Result<Self> {
        // Nobody looks for leftovers before the new file is locked.
        let _adding = folder.adding()?;
        let spool = folder.spool();
        let file = NamedTempFile::new_in(&spool).map_err(|error| failed(&spool, &error))?;
        file.as_file().lock().map_err(|error| failed(file.path(), &error))?;
        Ok(Self(file))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(|error| failed(self.0.path(), &error))
    }

    /// Nothing of it changes any more, and all of it is on the disk.
    pub(super) fn seal(&self) -> io::Result<()> {
        self.0.as_file().set_permissions(Permissions::from_mode(CONTENT_MODE))?;
        self.0.as_file().sync_all()
    }

    pub(super) fn file(&self) -> &File {
        self.0.as_file()
    }

    /// Gives it a name that nothing has yet; false, and the file back, when something has it.
    pub(super) fn name(self, path: &Path) -> io::Result<Option<Self>> {
        match self.0.persist_noclobber(path) {
            Ok(_) => Ok(None),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(Some(Self(error.file))),
            Err(error) => Err(error.error),
        }
    }

    /// Gives it a name in place of what has it.
    pub(super) fn replace(self, path: &Path) -> io::Result<()> {
        self.0.persist(path).map(drop).map_err(|error| error.error)
    }
}

/// Removes what nobody writes any more. Only while nobody adds anything.
pub(super) fn remove_leftovers(spool: &Path) -> io::Result<()> {
    for entry in fs::read_dir(spool)? {
        let path = entry?.path();
        let file = match OpenOptions::new().read(true).open(&path) {
            Ok(file) => file,
            // It has got its name, or was given up.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(())
}
