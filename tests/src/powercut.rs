//! What a power cut leaves: rebuilds a folder from the journal of `powercut/shim.c`
//! as it would be if the machine had stopped after any one record.
//!
//! Strict about what is durable: a file's bytes after a sync of the file, a name after a sync of the folder
//! that holds it, a folder's own name after a sync of the folder above. File systems keep more; a program
//! that holds under these rules does not depend on which one it has.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::chaos::Random;
use crate::host::Setup;

/// A disk loses and keeps this much of a write at a time.
const SECTOR_BYTES: usize = 512;

/// One thing a process did to a file or folder.
#[derive(Debug)]
pub struct Record {
    pub path: PathBuf,
    pub inode: u64,
    pub action: Action,
    /// How long the journal was with it.
    pub end: u64,
}

#[derive(Debug)]
pub enum Action {
    Create {
        mode: u32,
    },
    MakeFolder,
    Mode {
        mode: u32,
    },
    Write {
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        length: u64,
    },
    Remove,
    Rename {
        to: PathBuf,
    },
    /// All that the folder holds: names, and inodes for what is not a folder.
    List {
        names: Vec<(OsString, Option<u64>)>,
    },
    /// Makes durable what the first `before` bytes of the journal did to the file.
    Sync {
        before: u64,
    },
    /// The same for the names in a folder.
    SyncFolder {
        before: u64,
    },
}

/// What becomes of changes that no sync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    Dropped,
    /// Some arrived, some did not and some did in part, decided by this seed.
    Torn(u64),
    /// All arrived: what a process leaves that is killed.
    Kept,
}

/// Builds the shim as a shared library in a folder.
pub fn build_shim(dir: &Path) -> Result<PathBuf> {
    build_preloaded("powercut", dir)
}

/// Builds `tests/<name>/shim.c`.
pub fn build_preloaded(name: &str, dir: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("shim.c");
    let library = dir.join(format!("{name}.so"));
    let status = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .args(["-ldl", "-lpthread"])
        .status()
        .context("a C compiler (`cc`) is needed: on Debian, apt-get install gcc")?;
    ensure!(status.success(), "the shim `{name}` did not compile");
    Ok(library)
}

/// A process under the shim: which folder is watched, and where the journal goes.
#[derive(Clone, Debug)]
pub struct Shim {
    pub library: PathBuf,
    pub folder: PathBuf,
    pub journal: PathBuf,
}

impl Shim {
    /// The variables that put a process under it.
    pub fn env(&self) -> [(OsString, OsString); 3] {
        [
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("POWERCUT_DIR".into(), self.folder.clone().into()),
            ("POWERCUT_JOURNAL".into(), self.journal.clone().into()),
        ]
    }

    /// The same for a host.
    pub fn over(&self, mut setup: Setup) -> Setup {
        setup.env.extend(self.env());
        setup
    }

    /// How many bytes the journal has. What was acknowledged before this was asked is told by them.
    pub fn journal_bytes(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.journal).context("there is a journal")?.len())
    }
}

/// Reads a journal.
pub fn read_journal(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).with_context(|| format!("no journal at {}", path.display()))?;
    let mut rest = bytes.as_slice();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let op = take(&mut rest, 1)?[0];
        let path_length = u16::from_le_bytes(take(&mut rest, 2)?.try_into()?);
        let path = PathBuf::from(std::str::from_utf8(take(&mut rest, path_length.into())?)?);
        let number = u64::from_le_bytes(take(&mut rest, 8)?.try_into()?);
        let inode = u64::from_le_bytes(take(&mut rest, 8)?.try_into()?);
        let length = u32::from_le_bytes(take(&mut rest, 4)?.try_into()?);
        let data = take(&mut rest, length as usize)?;
        let action = match op {
            b'C' => Action::Create { mode: number.try_into()? },
            b'P' => Action::Mode { mode: number.try_into()? },
            b'M' => Action::MakeFolder,
            b'W' => Action::Write { at: number, data: data.to_vec() },
            b'T' => Action::Truncate { length: number },
            b'U' => Action::Remove,
            b'R' => Action::Rename { to: PathBuf::from(std::str::from_utf8(data)?) },
            b'L' => Action::List { names: names(data)? },
            b'S' => Action::Sync { before: number },
            b'D' => Action::SyncFolder { before: number },
            b'X' => bail!("the shim does not record {} on {}", String::from_utf8_lossy(data), path.display()),
            other => bail!("unknown record {other}"),
        };
        let end = (bytes.len() - rest.len()) as u64;
        records.push(Record { path, inode, action, end });
    }
    Ok(records)
}

fn names(mut rest: &[u8]) -> Result<Vec<(OsString, Option<u64>)>> {
    let mut names = Vec::new();
    while !rest.is_empty() {
        let kind = take(&mut rest, 1)?[0];
        let inode = u64::from_le_bytes(take(&mut rest, 8)?.try_into()?);
        let length = take(&mut rest, 1)?[0];
        let name = std::str::from_utf8(take(&mut rest, length.into())?)?;
        names.push((name.into(), (kind == b'f').then_some(inode)));
    }
    Ok(names)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) =
        rest.split_at_checked(length).context("the journal ends in the middle of a record")?;
    *rest = left;
    Ok(taken)
}

/// Something on its way to the disk: what of it is durable, and the changes that are not yet, each with the
/// length of the journal that tells it.
#[derive(Debug)]
struct Pending<T, C> {
    durable: T,
    unsynced: Vec<(u64, C)>,
}

/// What can be changed a step at a time.
trait Changes<C> {
    fn apply(&mut self, change: &C);

    /// Applies what arrives of a change when the power goes.
    fn tear(&mut self, change: &C, random: &mut Random);
}

impl<T: Default, C> Default for Pending<T, C> {
    fn default() -> Self {
        Self { durable: T::default(), unsynced: Vec::new() }
    }
}

impl<C, T: Changes<C>> Pending<T, C> {
    fn sync(&mut self, before: u64) {
        let kept = self.unsynced.iter().position(|(end, _)| *end > before).unwrap_or(self.unsynced.len());
        for (_, change) in self.unsynced.drain(..kept) {
            self.durable.apply(&change);
        }
    }

    fn cut(&mut self, unsynced: Unsynced, random: &mut Random) {
        match unsynced {
            Unsynced::Dropped => {}
            Unsynced::Torn(_) => {
                self.unsynced.iter().for_each(|(_, change)| self.durable.tear(change, random))
            }
            Unsynced::Kept => self.sync(u64::MAX),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    mode: u32,
}

#[derive(Debug)]
enum Change<'a> {
    Write(u64, &'a [u8]),
    Truncate(u64),
    Mode(u32),
}

impl Changes<Change<'_>> for File {
    fn apply(&mut self, change: &Change<'_>) {
        match change {
            Change::Write(at, data) => {
                let at = usize::try_from(*at).expect("test files are small");
                if self.bytes.len() < at + data.len() {
                    self.bytes.resize(at + data.len(), 0);
                }
                self.bytes[at..at + data.len()].copy_from_slice(data);
            }
            Change::Truncate(length) => {
                self.bytes.resize(usize::try_from(*length).expect("test files are small"), 0);
            }
            Change::Mode(mode) => self.mode = *mode,
        }
    }

    fn tear(&mut self, change: &Change<'_>, random: &mut Random) {
        match (change, random.below(4)) {
            (_, 0) => {}
            (_, 1) | (Change::Truncate(_) | Change::Mode(_), _) => self.apply(change),
            (Change::Write(at, data), _) => {
                let mut at = *at;
                let mut rest = *data;
                while !rest.is_empty() {
                    let into = usize::try_from(at).expect("test files are small") % SECTOR_BYTES;
                    let (sector, left) = rest.split_at(rest.len().min(SECTOR_BYTES - into));
                    if random.below(2) == 0 {
                        self.apply(&Change::Write(at, sector));
                    }
                    at += sector.len() as u64;
                    rest = left;
                }
            }
        }
    }
}

impl File {
    fn lay(&self, path: &Path) -> Result<()> {
        std::fs::write(path, &self.bytes)?;
        Ok(std::fs::set_permissions(path, Permissions::from_mode(self.mode))?)
    }
}

/// What a name stands for. Files are told by the order in which they were made: inodes are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(usize),
    Folder,
}

type Names = BTreeMap<OsString, Entry>;

#[derive(Debug)]
enum NameChange {
    Put(OsString, Entry),
    Remove(OsString),
    All(Names),
}

impl Changes<NameChange> for Names {
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Put(name, entry) => drop(self.insert(name.clone(), *entry)),
            NameChange::Remove(name) => drop(self.remove(name)),
            NameChange::All(names) => self.clone_from(names),
        }
    }

    fn tear(&mut self, change: &NameChange, random: &mut Random) {
        if random.below(2) == 0 {
            self.apply(change);
        }
    }
}

/// A disk at one moment of the journal.
#[derive(Debug, Default)]
struct Disk<'a> {
    files: Vec<Pending<File, Change<'a>>>,
    /// The file that has an inode now.
    inodes: BTreeMap<u64, usize>,
    folders: BTreeMap<PathBuf, Pending<Names, NameChange>>,
    /// What is there for the process, synced or not.
    current: BTreeMap<PathBuf, Entry>,
}

impl<'a> Disk<'a> {
    fn after(records: &'a [Record]) -> Result<Self> {
        let mut disk = Self::default();
        for record in records {
            disk.apply(record)?;
        }
        Ok(disk)
    }

    fn apply(&mut self, record: &'a Record) -> Result<()> {
        let (path, end) = (&record.path, record.end);
        match &record.action {
            Action::Create { mode } => {
                let file = self.add(record.inode);
                self.files[file].durable.mode = *mode;
                self.put(path, Entry::File(file), end)?;
            }
            Action::MakeFolder => self.put(path, Entry::Folder, end)?,
            Action::Write { at, data } => self.change(record.inode, end, Change::Write(*at, data)),
            Action::Mode { mode } => self.change(record.inode, end, Change::Mode(*mode)),
            Action::Truncate { length } => self.change(record.inode, end, Change::Truncate(*length)),
            Action::Remove => self.remove(path, end)?,
            Action::Rename { to } => {
                let entry = *self.current.get(path).context("what is renamed was made before")?;
                ensure!(entry != Entry::Folder, "folders are not renamed: {}", path.display());
                self.remove(path, end)?;
                self.put(to, entry, end)?;
            }
            Action::List { names } => {
                let names = names.iter().filter_map(|(name, inode)| {
                    let entry = match inode {
                        Some(inode) => self.inodes.get(inode).map(|file| Entry::File(*file)),
                        None => Some(Entry::Folder),
                    };
                    // What the process neither made nor wrote is none of its files.
                    entry.map(|entry| (name.clone(), entry))
                });
                let names: Names = names.collect();
                self.current.retain(|held, _| held.parent() != Some(path));
                self.current.extend(names.iter().map(|(name, entry)| (path.join(name), *entry)));
                let folder = self.folders.entry(path.clone()).or_default();
                folder.unsynced.push((end, NameChange::All(names)));
            }
            Action::Sync { before } => {
                if let Some(file) = self.inodes.get(&record.inode) {
                    self.files[*file].sync(*before);
                }
            }
            Action::SyncFolder { before } => {
                self.folders.entry(path.clone()).or_default().sync(*before);
            }
        }
        Ok(())
    }

    fn add(&mut self, inode: u64) -> usize {
        self.files.push(Pending::default());
        self.inodes.insert(inode, self.files.len() - 1);
        self.files.len() - 1
    }

    fn change(&mut self, inode: u64, end: u64, change: Change<'a>) {
        let file = self.inodes.get(&inode).copied().unwrap_or_else(|| self.add(inode));
        self.files[file].unsynced.push((end, change));
    }

    fn put(&mut self, path: &Path, entry: Entry, end: u64) -> Result<()> {
        self.current.insert(path.to_owned(), entry);
        self.rename(path, end, |name| NameChange::Put(name, entry))
    }

    fn remove(&mut self, path: &Path, end: u64) -> Result<()> {
        self.current.remove(path);
        self.rename(path, end, NameChange::Remove)
    }

    fn rename(&mut self, path: &Path, end: u64, change: impl FnOnce(OsString) -> NameChange) -> Result<()> {
        let folder = path.parent().context("it lies in a folder")?;
        let name = path.file_name().context("it has a name")?.to_owned();
        self.folders.entry(folder.to_owned()).or_default().unsynced.push((end, change(name)));
        Ok(())
    }

    /// The power goes.
    fn cut(&mut self, unsynced: Unsynced, notes: Option<&Path>) {
        let kept = notes.and_then(|notes| Some((notes, *self.current.get(notes)?)));
        let mut random = Random(if let Unsynced::Torn(seed) = unsynced { seed } else { 0 });
        self.folders.values_mut().for_each(|folder| folder.cut(unsynced, &mut random));
        if let Some((notes, Entry::File(file))) = kept {
            self.files[file].sync(u64::MAX);
            if let (Some(folder), Some(name)) = (notes.parent(), notes.file_name()) {
                let names = &mut self.folders.entry(folder.to_owned()).or_default().durable;
                names.insert(name.to_owned(), Entry::File(file));
            }
        }
        self.files.iter_mut().for_each(|file| file.cut(unsynced, &mut random));
    }

    fn lay(&self, folder: &Path, target: &Path) -> Result<()> {
        std::fs::create_dir_all(target)?;
        let Some(held) = self.folders.get(folder) else { return Ok(()) };
        for (name, entry) in &held.durable {
            match entry {
                Entry::File(file) => self.files[*file].durable.lay(&target.join(name))?,
                Entry::Folder => self.lay(&folder.join(name), &target.join(name))?,
            }
        }
        Ok(())
    }
}

/// Writes into `target` what the folder `source` would hold after a cut behind the
/// first `cut` records. A file `notes` right in it is taken as if every write were
/// synced: the test's own.
pub fn rebuild(
    records: &[Record],
    cut: usize,
    unsynced: Unsynced,
    source: &Path,
    target: &Path,
    notes: Option<&str>,
) -> Result<()> {
    let mut disk = Disk::after(&records[..cut])?;
    disk.cut(unsynced, notes.map(|notes| source.join(notes)).as_deref());
    disk.lay(source, target)
}
