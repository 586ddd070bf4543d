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

/// Writes bytes at a place.
type Write = fn(&File, &[u8], u64) -> io::Result<()>;

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
    write: Write,
}

impl WalRoom {
    pub(super) fn new(database: &Path, most: u64) -> Self {
        // Not each path is text.
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        let write: Write = |file, bytes, at| file.write_all_at(bytes, at);
        Self { path: PathBuf::from(path), most, length: 0, used: 0, is_given_up: false, write }
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
        match self.fill(&file, length, goal) {
            Ok(()) => Ok(goal.max(length)),
            Err(error) => {
                // A disk that is full has to have room for what comes next.
                file.set_len(length)?;
                Err(error)
            }
        }
    }

    fn fill(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let piece = usize::try_from(to - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
            (self.write)(file, &ZEROS[..piece], at)?;
            at += piece as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    const FRAME: u64 = PAGE_BYTES + 24;
    const MOST: u64 = 3 << 19;

    /// A WAL of frames that are all ones.
    struct Wal {
        room: WalRoom,
        dir: tempfile::TempDir,
    }

    impl Wal {
        /// In a folder whose name is no text.
        fn new(most: u64) -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let name = OsStr::from_bytes(b"st\xffre");
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
            let room = WalRoom::new(&dir.path().join(name).join("store.db"), most);
            let wal = Self { room, dir };
            File::create(wal.path()).expect("a WAL");
            wal
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join(OsStr::from_bytes(b"st\xffre/store.db-wal"))
        }

        /// A transaction behind so many frames, after which there are others, and what comes after it.
        fn commit(&mut self, former: u64, frames: u64) {
            let file = OpenOptions::new().write(true).open(self.path()).expect("a WAL");
            let (from, to) = (used(former), used(frames));
            let bytes = vec![1; usize::try_from(to - from).expect("few")];
            file.write_all_at(&bytes, from).expect("there is room");
            self.room.tend(frames);
        }

        fn grow(&mut self, from: u64, to: u64) {
            for frames in from..to {
                self.commit(frames, frames + 1);
            }
        }

        fn length(&self) -> u64 {
            std::fs::metadata(self.path()).expect("a WAL").len()
        }
    }

    fn used(frames: u64) -> u64 {
        if frames == 0 { 0 } else { frames * FRAME + 32 }
    }

    /// Frames that come near to a size, and not beyond.
    fn frames(bytes: u64) -> u64 {
        (bytes - 32) / FRAME
    }

    #[test]
    fn a_wal_gets_room_in_pieces_and_never_beyond_the_size_at_which_it_is_copied_back() {
        let mut wal = Wal::new(MOST);
        let short = frames(2 * WAL_ROOM_LEFT_MIN);
        wal.grow(0, short);
        assert_eq!(wal.length(), used(short), "a short one has none");
        wal.grow(short, short + 1);
        assert_eq!(wal.length(), used(short + 1) + WAL_ROOM_BYTES);
        wal.grow(short + 1, frames(MOST));
        assert_eq!(wal.length(), MOST, "the next piece ends there");
        let beyond = frames(MOST) + 100;
        wal.grow(frames(MOST), beyond);
        assert_eq!(wal.length(), used(beyond), "beyond it grows by itself");

        let mut wal = Wal::new(2 * WAL_ROOM_LEFT_MIN);
        wal.grow(0, frames(MOST));
        assert_eq!(wal.length(), used(frames(MOST)), "this one is copied back before it has any");
    }

    #[test]
    fn room_that_a_full_disk_has_not_is_given_back_and_asked_for_again_once_the_wal_begins_anew() {
        let mut wal = Wal::new(MOST);
        wal.room.write = |file, bytes, at| {
            // Some of it still fits.
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            Err(io::ErrorKind::StorageFull.into())
        };
        let long = frames(2 * WAL_ROOM_LEFT_MIN) + 1;
        wal.grow(0, long);
        assert_eq!(wal.length(), used(long), "nothing is taken from what comes next");
        wal.room.write = |file, bytes, at| file.write_all_at(bytes, at);
        wal.grow(long, long + 10);
        assert_eq!(wal.length(), used(long + 10), "it is not asked for with each transaction");
        wal.grow(0, long);
        assert_eq!(wal.length(), used(long + 10) + WAL_ROOM_BYTES);
    }
}
