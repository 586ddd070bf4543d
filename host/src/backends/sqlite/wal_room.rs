//! Room at the end of the WAL. A sync of a file that has grown also has to make its new length durable, which costs a file
//! system about as much again as the data of a small transaction. So a WAL that small transactions make grow gets its next
//! piece at once, as zeros, which SQLite takes for its end. It then writes where the file is long enough already, as it does
//! once the WAL has begun anew.
//!
//! Only the thread that commits may do this, and only between two transactions: nobody else makes the file longer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::database::PAGE_BYTES;
use crate::limits::{WAL_ROOM_BYTES, WAL_ROOM_LEFT_MIN};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug)]
pub(super) struct WalRoom {
    path: PathBuf,
    /// It grows no further than to the size at which it is copied back.
    most: u64,
    /// The file was at least as long when it was looked at.
    length: u64,
    /// How far the last commit came.
    used: u64,
    /// There is none to be had, until the WAL begins anew.
    is_given_up: bool,
}

impl WalRoom {
    pub(super) fn new(database: &Path, most: u64) -> Self {
        let path = PathBuf::from(format!("{}-wal", database.display()));
        Self { path, most, length: 0, used: 0, is_given_up: false }
    }

    /// After a commit that left so many frames in the WAL.
    pub(super) fn tend(&mut self, frames: u64) {
        let used = frames * (PAGE_BYTES + 24) + 32;
        let former = std::mem::replace(&mut self.used, used);
        if used < former {
            // It began anew, and may be shorter than before.
            (self.length, self.is_given_up) = (0, false);
        }
        // What writes much at once does not wait for the length of a file.
        let is_small = used.abs_diff(former) < WAL_ROOM_LEFT_MIN;
        // A store that hardly writes keeps a short WAL.
        let is_short = used < 2 * WAL_ROOM_LEFT_MIN;
        if self.is_given_up || is_short || !is_small || used + WAL_ROOM_LEFT_MIN <= self.length {
            return;
        }
        match self.make() {
            Ok(length) => self.length = length,
            Err(error) => {
                self.is_given_up = true;
                tracing::debug!(error.kind = "storage_failed", error.blame = "host", %error, "the WAL grows piece by piece");
            }
        }
    }

    /// Answers how long the file is.
    fn make(&mut self) -> io::Result<u64> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        let length = file.metadata()?.len();
        if length >= self.used + WAL_ROOM_LEFT_MIN {
            return Ok(length);
        }
        let goal = (length.max(self.used) + WAL_ROOM_BYTES).min(self.most);
        self.is_given_up = goal == self.most;
        match fill(&file, length, goal) {
            Ok(()) => Ok(goal.max(length)),
            Err(error) => {
                // A disk that is full has to have room for what comes next.
                file.set_len(length)?;
                Err(error)
            }
        }
    }
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let piece = usize::try_from(to - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(&ZEROS[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
