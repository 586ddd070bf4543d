//! The events of a feed in files: how they are read, and how several are added so that a crash at any point leaves them
//! either in the feed or to be written again.
//!
//! What a writer does with all events that have come together, in this order:
//! 1. It writes their files and notes their ids, in the staging folder, and syncs the files, several at a time: a name that
//!    outlives a power cut must not stand for half an event. A note has no data of its own to sync.
//! 2. It gives the files their names, and syncs their folder: from here on they are in the feed, whatever happens.
//! 3. It gives the notes their names, and syncs their folder: whoever repeats an event after a power cut gets the version
//!    that it had. Not before the second sync, or an id could lead to an event that is gone.
//! 4. It says in the head that they are there. That is for readers, and not synced: it can be made again from the names.
//!
//! Whoever takes the lock next finishes what lies above the head.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::disk::{self, Disk, Noted, failed};
use super::layout::{Broken, Head, Known, Layout, Marker};
use crate::control::{
    Carried, ControlEvent, ControlFeedError, ControlVersion, EventId, Received, Result, rules,
};
use crate::event::Micros;
use crate::limits::{CONTROL_APPENDS_AT_ONCE_MAX, CONTROL_EVENT_BYTES_MAX};

/// Longest of the small files that only hosts write.
const SMALL_BYTES_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct FileLog {
    pub(super) layout: Layout,
    pub(super) disk: Disk,
}

/// Nobody else writes while this is there.
#[derive(Debug)]
pub(super) struct Writing {
    _lock: File,
    pub(super) head: Head,
}

/// What gets a place in the feed.
#[derive(Debug)]
pub(super) enum New {
    Event(Carried),
    /// A drop, by its name in `settling`.
    Broken(Broken),
}

/// An entry that is written and has no name yet.
struct Staged {
    version: u64,
    entry: NamedTempFile,
    id: Option<(PathBuf, Noted)>,
}

impl FileLog {
    /// Where the feed begins and ends, and whether that stood in its file.
    pub(super) fn head(&self) -> Result<(Head, bool)> {
        let path = &self.layout.head;
        let bytes = self.disk.read(path, SMALL_BYTES_MAX).or_else(as_none).map_err(|e| failed(path, &e))?;
        match bytes.as_deref().and_then(Head::read) {
            Some(head) => Ok((head, true)),
            None => Ok((self.found().map_err(|e| failed(&self.layout.events, &e))?, false)),
        }
    }

    /// The head as the names of the files tell it.
    fn found(&self) -> io::Result<Head> {
        let mut shards: Vec<u64> = numbers(&self.disk, &self.layout.events, "")?.into_iter().collect();
        let of = |shard: u64| numbers(&self.disk, &self.layout.events.join(format!("{shard:012}")), ".json");
        let mut head = Head::EMPTY;
        while let Some(last) = shards.last() {
            if let Some(newest) = of(*last)?.pop_last() {
                head.newest = newest;
                break;
            }
            shards.pop();
        }
        // Where the feed began again, folders are missing: what is before has other places now.
        let gap = shards.windows(2).rposition(|pair| pair[0].saturating_add(1) < pair[1]);
        for first in &shards[gap.map_or(0, |at| at + 1)..] {
            if let Some(oldest) = of(*first)?.pop_first() {
                head.oldest = oldest.max(1);
                break;
            }
        }
        Ok(head)
    }

    /// What is at a place; none when its file is missing.
    pub(super) fn received(&self, version: u64) -> Result<Option<(Received, usize)>> {
        let path = self.layout.event(version);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = ControlVersion(version);
        let bytes = match self.disk.read(&path, CONTROL_EVENT_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if is_damage(&error) => {
                return Ok(Some((Received::unreadable(version, name, error.to_string()), 0)));
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        let read = bytes.len();
        if let Some(marker) = marker(&bytes) {
            return Ok(Some((Received::unreadable(version, marker.name, marker.reason), read)));
        }
        let received = match text(&bytes).and_then(ControlEvent::parse) {
            Ok(event) => Received::Event { version, event },
            Err(error) => {
                let id = carried(&bytes).map(|(event, _)| event.id().to_string());
                Received::refused(version, id.unwrap_or(name), &error)
            }
        };
        Ok(Some((received, read)))
    }

    /// Where an id leads to. What cannot be read is as good as none: a repeat gets a new place, and hosts know its id.
    pub(super) fn known(&self, id: &EventId) -> Result<Option<Known>> {
        let path = self.layout.id(id);
        let noted =
            self.disk.noted(&path, SMALL_BYTES_MAX).or_else(as_none).map_err(|e| failed(&path, &e))?;
        Ok(noted.as_deref().and_then(Known::read))
    }

    /// Begins to write, under the lock: what a writer before has left half done is finished first.
    pub(super) fn begin(&self, lock: File) -> Result<Writing> {
        let (head, stood) = self.head()?;
        let mut writing = Writing { _lock: lock, head };
        while self.is_taken(writing.head.newest + 1)? {
            writing.head.newest += 1;
            self.finish(writing.head.newest)?;
        }
        if !stood || writing.head != head {
            self.publish(&writing)?;
        }
        Ok(writing)
    }

    fn is_taken(&self, version: u64) -> Result<bool> {
        let path = self.layout.event(version);
        self.disk.exists(&path).map_err(|e| failed(&path, &e))
    }

    /// The head for somebody at a place beyond it: it is written without a sync, and may say less than there is.
    pub(super) fn head_for(&self, place: u64) -> Result<Head> {
        let (mut head, _) = self.head()?;
        while head.newest < place && self.is_taken(head.newest + 1)? {
            head.newest += 1;
        }
        Ok(head)
    }

    /// Gives all that is there new places, above one that somebody has read and that is beyond the newest. Until the head
    /// says so, nothing has changed for anybody.
    pub(super) fn begin_again(&self, writing: &mut Writing, place: u64, now: Micros) -> Result<()> {
        let former = writing.head;
        let Some(begin) = rules::new_life(place, former.newest, now.0) else { return Ok(()) };
        let begun = self.copy_above(writing, begin);
        // As long as the head is the one before, nobody sees the copies, and the next try makes all of them again.
        if begun.is_err() && matches!(self.head(), Ok((head, true)) if head == former) {
            writing.head = former;
            // What stays goes with a trim; why it did not begin counts for more.
            let _ = self.remove_above(begin);
        }
        begun
    }

    fn copy_above(&self, writing: &mut Writing, begin: u64) -> Result<()> {
        let former = writing.head;
        let mut head = Head { newest: begin, oldest: begin + 1, whole_from: Some(former.missed_below()) };
        let mut entries = Vec::new();
        writing.head = head;
        for version in former.oldest..=former.newest {
            entries.extend(self.entry(version)?);
            if entries.len() == CONTROL_APPENDS_AT_ONCE_MAX || version == former.newest {
                self.place(writing, &std::mem::take(&mut entries))?;
            }
        }
        head.newest = writing.head.newest;
        writing.head = head;
        let path = &self.layout.head;
        let written = json(&head).and_then(|bytes| self.disk.replace(&self.layout.staging, path, &bytes));
        written.map_err(|e| failed(path, &e))
    }

    fn remove_above(&self, version: u64) -> io::Result<()> {
        let Layout { events, shard_events, .. } = &self.layout;
        let shards = numbers(&self.disk, events, "")?;
        for shard in shards.range(version / shard_events..) {
            let folder = events.join(format!("{shard:012}"));
            let versions = numbers(&self.disk, &folder, ".json")?;
            for one in versions.range(version.saturating_add(1)..) {
                fs::remove_file(folder.join(format!("{one:020}.json")))?;
            }
            match fs::remove_dir(&folder) {
                // The first one may have others in it.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// What is at a place, to be given another one. What cannot be read stays behind.
    fn entry(&self, version: u64) -> Result<Option<New>> {
        let path = self.layout.event(version);
        match self.disk.read(&path, CONTROL_EVENT_BYTES_MAX) {
            Ok(Some(bytes)) => {
                let event = carried(&bytes).map(|(event, _)| New::Event(event));
                Ok(event.or_else(|| marker(&bytes).map(New::Broken)))
            }
            Err(error) if !is_damage(&error) => Err(failed(&path, &error)),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// Does what comes after an entry has its name.
    fn finish(&self, version: u64) -> Result<()> {
        let path = self.layout.event(version);
        let bytes = match self.disk.read(&path, CONTROL_EVENT_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Err(error) if !is_damage(&error) => return Err(failed(&path, &error)),
            Ok(None) | Err(_) => return Ok(()),
        };
        if let Some(broken) = marker(&bytes) {
            return self.set_aside(version, &broken);
        }
        let Some((event, _)) = carried(&bytes) else { return Ok(()) };
        if self.known(event.id())?.is_some() {
            return Ok(());
        }
        // Whoever gave it its name may have ended before that was durable, and the id must not be without it.
        self.sync(&BTreeSet::from([self.layout.shard(version)]))?;
        let path = self.layout.id(event.id());
        let known = Known { control_version: version, digest: event.digest().to_owned() };
        let folder = path.parent().unwrap_or(&self.layout.ids);
        let write = || {
            disk::make_folder(folder)?;
            let note = disk::note(&self.layout.staging, &known.text())?;
            self.disk.sync_files(note.file().as_slice())?;
            note.persist(&path)?;
            self.disk.sync_names(folder)
        };
        write().map_err(|e| failed(&path, &e))
    }

    /// Gives entries the next places, durable when it answers. [`FileLog::publish`] makes them visible.
    pub(super) fn place(&self, writing: &mut Writing, entries: &[New]) -> Result<Vec<u64>> {
        let (mut version, mut staged) = (writing.head.newest, Vec::new());
        for entry in entries {
            version += 1;
            while self.is_taken(version)? {
                self.finish(version)?;
                version += 1;
            }
            staged.push(self.stage(version, entry).map_err(|e| failed(&self.layout.staging, &e))?);
        }
        let notes = staged.iter().filter_map(|one| one.id.as_ref()?.1.file());
        let files: Vec<&File> = staged.iter().map(|one| one.entry.as_file()).chain(notes).collect();
        self.disk.sync_files(&files).map_err(|e| failed(&self.layout.staging, &e))?;
        let versions = staged.iter().map(|one| one.version).collect();
        let mut ids = Vec::new();
        let mut folders = BTreeSet::new();
        for Staged { version, entry, id } in staged {
            let path = self.layout.event(version);
            // Not over what is there, whoever put it there.
            name(&mut folders, &path, |path| {
                entry.persist_noclobber(path).map(drop).map_err(|error| error.error)
            })?;
            ids.extend(id);
        }
        self.sync(&std::mem::take(&mut folders))?;
        for (path, id) in ids {
            name(&mut folders, &path, |path| id.persist(path))?;
        }
        self.sync(&folders)?;
        writing.head.newest = version;
        Ok(versions)
    }

    fn stage(&self, version: u64, entry: &New) -> io::Result<Staged> {
        let staging = &self.layout.staging;
        let staged = |entry, id| Staged { version, entry, id };
        match entry {
            New::Event(event) => {
                let text = event.to_json_at(ControlVersion(version));
                let known = Known { control_version: version, digest: event.digest().to_owned() };
                let id = disk::note(staging, &known.text())?;
                let entry = disk::stage(staging, text.as_bytes())?;
                Ok(staged(entry, Some((self.layout.id(event.id()), id))))
            }
            New::Broken(broken) => {
                let marker = Marker { control_version: version, broken: broken.clone() };
                Ok(staged(disk::stage(staging, &json(&marker)?)?, None))
            }
        }
    }

    fn sync(&self, folders: &BTreeSet<PathBuf>) -> Result<()> {
        folders.iter().try_for_each(|folder| self.disk.sync_names(folder).map_err(|e| failed(folder, &e)))
    }

    /// Lets readers see what was placed.
    pub(super) fn publish(&self, writing: &Writing) -> Result<()> {
        let path = &self.layout.head;
        let written = json(&writing.head).and_then(|bytes| disk::stage(&self.layout.staging, &bytes));
        let named = written.and_then(|staged| staged.persist(path).map(drop).map_err(|error| error.error));
        named.map_err(|e| failed(path, &e))
    }

    /// Removes whole folders of events up to a version. Answers how many events went.
    pub(super) fn trim(&self, writing: &mut Writing, through: u64) -> Result<u64> {
        let Layout { events, staging, head: path, shard_events, .. } = &self.layout;
        // The newest stays: its name tells where the feed is, should the head be lost.
        let first_kept = (through.saturating_add(1) / shard_events).min(writing.head.newest / shard_events);
        let before = writing.head.oldest;
        writing.head.oldest = before.max((first_kept * shard_events).max(1));
        if writing.head.oldest != before {
            writing.head.whole_from = None;
            // Durable first: a head that comes back after a power cut must not promise what is gone.
            let written = json(&writing.head).and_then(|bytes| self.disk.replace(staging, path, &bytes));
            written.map_err(|e| failed(path, &e))?;
        }
        let old = || -> io::Result<()> {
            for shard in numbers(&self.disk, events, "")?.into_iter().filter(|shard| *shard < first_kept) {
                // It goes in one step; what is left of it in the staging folder goes now or at the next start.
                let (from, to) = (events.join(format!("{shard:012}")), staging.join(format!("{shard:012}")));
                fs::rename(from, &to)?;
                fs::remove_dir_all(to)?;
            }
            Ok(())
        };
        old().map_err(|e| failed(events, &e))?;
        Ok(writing.head.oldest - before)
    }
}

/// Gives a staged file its name, in a folder that is made when it is the first one there.
fn name(
    folders: &mut BTreeSet<PathBuf>,
    path: &Path,
    persist: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut named = || {
        if !folders.contains(&folder) {
            disk::make_folder(&folder)?;
            folders.insert(folder.clone());
        }
        Ok(())
    };
    named().and_then(|()| persist(path)).map_err(|e: io::Error| failed(path, &e))
}

/// The numbers that names in a folder are, without what they end in. A folder that is not there has none.
fn numbers(disk: &Disk, dir: &Path, suffix: &str) -> io::Result<BTreeSet<u64>> {
    let names = disk.list(dir, usize::MAX, |_, _| true);
    let names = match names {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let number = |name: &std::ffi::OsString| name.to_str()?.strip_suffix(suffix)?.parse().ok();
    Ok(names.iter().filter_map(number).collect())
}

fn marker(bytes: &[u8]) -> Option<Broken> {
    serde_json::from_slice::<Marker>(bytes).ok().map(|marker| marker.broken)
}

fn carried(bytes: &[u8]) -> Option<(Carried, Option<ControlVersion>)> {
    text(bytes).and_then(Carried::parse_at).ok()
}

pub(super) fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes)
        .map_err(|_| ControlFeedError::InvalidEvent { detail: "it is not text in UTF-8".into() })
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

/// Whether it is the file that is wrong, and will be at the next time, too.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory)
}

/// What is no file can be told from no file by a person only.
fn as_none<T>(error: io::Error) -> io::Result<Option<T>> {
    if is_damage(&error) { Ok(None) } else { Err(error) }
}
