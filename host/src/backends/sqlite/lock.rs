//! One process per store: an exclusive lock on the file `LOCK`, which names its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::options::OpenError;
use crate::event::Micros;

/// Held while the store is open. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    pub(super) fn take(dir: &Path, now: Micros) -> Result<Self, OpenError> {
        let failed = |e: std::io::Error| OpenError::Directory {
            dir: dir.display().to_string(),
            detail: e.to_string(),
        };
        let path = dir.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The name is a courtesy: without it the refusal is the same.
                let _ = file.take(200).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    named => named.to_owned(),
                };
                return Err(OpenError::Locked { dir: dir.display().to_string(), holder });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "process {}, started {now}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
