//! What a power cut leaves: rebuilds a folder from the journal of `powercut/shim.c`
//! as it would be if the machine had stopped after any one record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One thing a process did to a file.
#[derive(Debug)]
pub struct Record {
    pub path: PathBuf,
    pub action: Action,
}

#[derive(Debug)]
pub enum Action {
    Write {
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        length: u64,
    },
    /// Makes durable what the file's records before number `before` did.
    Sync {
        before: u64,
    },
    Unlink,
    Rename {
        to: PathBuf,
    },
}

/// What becomes of writes that no sync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    Dropped,
    /// Some arrived and some did not, decided by this seed.
    Torn(u64),
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
        let length = u32::from_le_bytes(take(&mut rest, 4)?.try_into()?);
        let data = take(&mut rest, length as usize)?;
        let action = match op {
            b'W' => Action::Write { at: number, data: data.to_vec() },
            b'T' => Action::Truncate { length: number },
            b'S' => Action::Sync { before: number },
            b'U' => Action::Unlink,
            b'R' => Action::Rename { to: PathBuf::from(std::str::from_utf8(data)?) },
            other => anyhow::bail!("unknown record {other}"),
        };
        records.push(Record { path, action });
    }
    Ok(records)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) =
        rest.split_at_checked(length).context("the journal ends in the middle of a record")?;
    *rest = left;
    Ok(taken)
}

/// A file on its way to the disk: what is durable, and what is not yet, by record number.
#[derive(Debug, Default)]
struct Image {
    durable: Vec<u8>,
    unsynced: Vec<(u64, Change)>,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

impl Image {
    fn apply(content: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, data) => {
                let at = usize::try_from(*at).expect("test files are small");
                if content.len() < at + data.len() {
                    content.resize(at + data.len(), 0);
                }
                content[at..at + data.len()].copy_from_slice(data);
            }
            Change::Truncate(length) => {
                content.resize(usize::try_from(*length).expect("test files are small"), 0)
            }
        }
    }

    fn sync(&mut self, before: u64) {
        let kept =
            self.unsynced.iter().position(|(number, _)| *number >= before).unwrap_or(self.unsynced.len());
        for (_, change) in self.unsynced.drain(..kept) {
            Self::apply(&mut self.durable, &change);
        }
    }
}

/// Writes into `target` what the files of `source` would hold after a cut behind
/// record number `cut`. What `keep_whole` names is taken as if every write were
/// synced: the test's own notes.
pub fn rebuild(
    records: &[Record],
    cut: usize,
    unsynced: Unsynced,
    source: &Path,
    target: &Path,
    keep_whole: &str,
) -> Result<()> {
    let mut files: BTreeMap<PathBuf, Image> = BTreeMap::new();
    for (number, record) in (0_u64..).zip(&records[..cut]) {
        match &record.action {
            Action::Write { at, data } => {
                let image = files.entry(record.path.clone()).or_default();
                image.unsynced.push((number, Change::Write(*at, data.clone())));
            }
            Action::Truncate { length } => {
                let image = files.entry(record.path.clone()).or_default();
                image.unsynced.push((number, Change::Truncate(*length)));
            }
            Action::Sync { before } => {
                if let Some(image) = files.get_mut(&record.path) {
                    image.sync(*before);
                }
            }
            Action::Unlink => {
                files.remove(&record.path);
            }
            Action::Rename { to } => {
                if let Some(image) = files.remove(&record.path) {
                    files.insert(to.clone(), image);
                }
            }
        }
    }
    for (path, mut image) in files {
        let whole = path.file_name().is_some_and(|name| name == keep_whole);
        if whole {
            image.sync(u64::MAX);
        } else if let Unsynced::Torn(seed) = unsynced {
            let mut random = seed | 1;
            for (_, change) in &image.unsynced {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if random % 2 == 0 {
                    Image::apply(&mut image.durable, change);
                }
            }
        }
        let relative = path.strip_prefix(source).context("a record outside the folder")?;
        let to = target.join(relative);
        std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        std::fs::write(to, &image.durable)?;
    }
    Ok(())
}
