//! Power cuts of a real host in the middle of a stormy run: the run is journalled once, and then cut behind
//! any of its records. What a cut leaves must open, hold what was acknowledged, and come to what a quiet run
//! comes to. The ordinary suite cuts a few times, `cargo xtask chaos --cuts N` as often as it is told.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};

use crate::chaos::{Acknowledged, Heard, Held, Random, Scenario};
use crate::dump::dump;
use crate::powercut::{Action, Record, Shim, Unsynced, build_shim, read_journal, rebuild};

/// A small WAL, so that cuts also meet copies of it into the database.
const WAL_BYTES: u64 = 64 << 10;

/// A run of a scenario with everything that its host did to its folder.
#[derive(Debug)]
pub struct Journalled {
    scenario: Scenario,
    /// The folder that holds the host's own.
    disk: PathBuf,
    records: Vec<Record>,
    notes: Vec<Note>,
    /// What the host had left when it had ended.
    pub dump: String,
}

/// Something that was acknowledged, with how long the journal was when the host was asked for it and when the
/// answer was there. What the answer stands on was written and synced before it, and so is in the journal.
#[derive(Debug)]
struct Note {
    asked: u64,
    answered: u64,
    what: Acknowledged,
}

/// A moment to cut at, and why then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Behind so many records.
    pub records: usize,
    pub during: During,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    Any,
    /// Right before or behind a sync.
    Sync,
    Deploy,
    Resolve,
}

/// The scenario as the cuts want it: without kills, since a journal tells of one process.
pub fn without_kills(scenario: &Scenario) -> Scenario {
    let mut scenario = Scenario { kills: 0, ..scenario.clone() };
    scenario.host = scenario.host.set(&format!("store.wal_bytes_soft_max={WAL_BYTES}"));
    scenario
}

impl Journalled {
    /// Runs a scenario in a folder under the shim, and makes sure that the journal tells all that was done.
    pub async fn run(scenario: &Scenario, dir: &Path) -> Result<Self> {
        let disk = dir.join("disk");
        std::fs::create_dir_all(&disk)?;
        let journal = dir.join("journal");
        let shim = Shim { library: build_shim(dir)?, folder: disk.canonicalize()?, journal };
        let journalled = Scenario { host: shim.over(scenario.host.clone()), ..scenario.clone() };
        let mut notes = Vec::new();
        let mut asked = 0;
        let mut hear = |heard: Heard| {
            match heard {
                Heard::Asked => asked = shim.journal_bytes()?,
                Heard::Acknowledged(what) => {
                    notes.push(Note { asked, answered: shim.journal_bytes()?, what });
                }
                Heard::Round(_) => {}
            }
            Ok(())
        };
        let data = disk.join("store");
        let storm = journalled.storm(&data, &mut hear).await?;
        ensure!(
            (storm.swaps, storm.resolves) == (scenario.swaps, scenario.resolves),
            "a run has all that is to happen in it: {storm:?}"
        );
        let records = read_journal(&shim.journal)?;
        let whole = dir.join("whole");
        rebuild(&records, records.len(), Unsynced::Kept, &shim.folder, &whole, None)?;
        same_folder(&data, &whole.join("store"))?;
        let dump = dump(&data)?;
        Ok(Self { scenario: scenario.clone(), disk: shim.folder, records, notes, dump })
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Drops records, such as syncs, as if the host had not done that: the next cut should show it.
    pub fn forget(&mut self, forgotten: impl Fn(&Record) -> bool) {
        self.records.retain(|record| !forgotten(record));
    }

    /// How long the journal was when the host was first asked for a decision on a dead letter.
    pub fn first_resolve(&self) -> Option<u64> {
        let mut notes = self.notes.iter();
        notes.find(|note| matches!(note.what, Acknowledged::Resolve { .. })).map(|note| note.asked)
    }

    /// Behind all records.
    pub fn end(&self) -> Cut {
        Cut { records: self.records.len(), during: During::Any }
    }

    /// So many moments, which a seed decides: anywhere, at a sync, within a deploy, within a decision on a dead
    /// letter, in turn.
    pub fn cuts(&self, count: usize, seed: u64) -> Vec<Cut> {
        let mut random = Random(seed);
        let of_kind = |wanted: fn(&Acknowledged) -> bool| -> Vec<&Note> {
            self.notes.iter().filter(|note| wanted(&note.what)).collect()
        };
        let deploys = of_kind(|what| matches!(what, Acknowledged::Deploy { .. }));
        let resolves = of_kind(|what| matches!(what, Acknowledged::Resolve { .. }));
        let syncs: Vec<usize> = (0..self.records.len())
            .filter(|index| {
                matches!(self.records[*index].action, Action::Sync { .. } | Action::SyncFolder { .. })
            })
            .collect();
        let behind = |bytes: u64| self.records.partition_point(|record| record.end <= bytes);
        let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap_or(0);
        let within = |notes: &[&Note], below: &mut dyn FnMut(usize) -> usize| {
            let note = notes.get(below(notes.len().max(1)))?;
            let (from, to) = (behind(note.asked), behind(note.answered));
            Some(from + below(to - from + 1))
        };
        (0..count)
            .map(|index| {
                let any = |below: &mut dyn FnMut(usize) -> usize| {
                    // One of equal parts each, so that all of the run is met.
                    let part = self.records.len() * index / count..self.records.len() * (index + 1) / count;
                    part.start + below(part.len().max(1)) + 1
                };
                let (records, during) = match index % 4 {
                    1 => (within(&deploys, &mut below), During::Deploy),
                    2 if !syncs.is_empty() => (Some(syncs[below(syncs.len())] + below(2)), During::Sync),
                    3 => (within(&resolves, &mut below), During::Resolve),
                    _ => (None, During::Any),
                };
                match records {
                    Some(records) => Cut { records, during },
                    None => Cut { records: any(&mut below).min(self.records.len()), during: During::Any },
                }
            })
            .collect()
    }

    /// Cuts, and goes on with what is left in `folder`; the end must be `quiet`'s.
    pub async fn goes_on(&self, cut: Cut, unsynced: Unsynced, folder: &Path, quiet: &str) -> Result<()> {
        self.go_on(cut, unsynced, folder, quiet)
            .await
            .with_context(|| format!("{cut:?} of {} records, {unsynced:?}", self.records.len()))
    }

    async fn go_on(&self, cut: Cut, unsynced: Unsynced, folder: &Path, quiet: &str) -> Result<()> {
        rebuild(&self.records, cut.records, unsynced, &self.disk, folder, None)?;
        let data = folder.join("store");
        let bytes = self.records[..cut.records].last().map_or(0, |record| record.end);
        let split = self.notes.partition_point(|note| note.answered <= bytes);
        let (before, after) = self.notes.split_at(split);
        let held = Held {
            before: before.iter().map(|note| &note.what).collect(),
            after: after.iter().map(|note| &note.what).collect(),
        };
        let dump = self.scenario.resume(&data, &held).await?;
        if let Some(difference) = crate::chaos::difference(quiet, &dump) {
            anyhow::bail!("the end is not a quiet run's:\n{difference}");
        }
        let kept = names(&data.join("artifacts"))?;
        let half = kept.iter().find(|name| name.to_string_lossy().starts_with(".tmp"));
        ensure!(half.is_none(), "a half-written component was left: {kept:?}");
        sound(&data)
    }
}

/// Whether the database in a folder is whole.
fn sound(data: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(data.join("millrace.db"), flags)?;
    let said: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(said == "ok", "the database is damaged: {said}");
    Ok(())
}

/// Whether two folders hold the same files with the same bytes and modes.
pub fn same_folder(left: &Path, right: &Path) -> Result<()> {
    let (left_names, right_names) = (names(left)?, names(right)?);
    ensure!(left_names == right_names, "{left_names:?} against {right_names:?}");
    for name in left_names {
        let (left, right) = (left.join(&name), right.join(&name));
        if left.is_dir() {
            same_folder(&left, &right)?;
        } else {
            let mode = |path: &Path| anyhow::Ok(std::fs::metadata(path)?.permissions().mode());
            let same = std::fs::read(&left)? == std::fs::read(&right)? && mode(&left)? == mode(&right)?;
            ensure!(same, "{} is not what the journal says", left.display());
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} is missing", folder.display()))? {
        let name = PathBuf::from(entry?.file_name());
        // The index of a WAL is made anew by whoever opens the database, and not journalled.
        if !name.to_string_lossy().ends_with("-shm") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
