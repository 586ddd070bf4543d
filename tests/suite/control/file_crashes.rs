//! A process that ends while it writes to the feed in files: each state that it can leave behind is built from the files
//! before and after, and whoever comes next makes the same of all.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::control::{ControlEvent, ControlSink as _, ControlSource as _, ControlVersion, Received};

use super::feeds::{event, is_broken, received};

/// What an id leads to is a link, whose text is taken for its content.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn open(dir: &Path) -> FileFeed {
    FileFeed::open(FileFeedOptions { shard_events: 2, ..FileFeedOptions::new(dir) }).unwrap()
}

fn files(dir: &Path) -> Files {
    let mut found = Files::new();
    collect(dir, dir, &mut found);
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Files) {
    for entry in fs::read_dir(dir).unwrap() {
        let (kind, path) = entry.map(|entry| (entry.file_type().unwrap(), entry.path())).unwrap();
        if kind.is_dir() {
            collect(root, &path, found);
            continue;
        }
        let bytes = if kind.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), bytes);
    }
}

fn put(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.starts_with("ids") {
            symlink(std::str::from_utf8(bytes).unwrap(), path).unwrap();
        } else {
            fs::write(path, bytes).unwrap();
        }
    }
}

async fn all(feed: &FileFeed) -> Vec<Received> {
    feed.poll(ControlVersion(0), 100, Duration::ZERO).await.unwrap().events
}

/// The files of a feed before and after something was done, by name of what changed.
struct Step {
    before: Files,
    after: Files,
}

impl Step {
    fn changed(&self, below: &str) -> Files {
        let is_new = |(path, bytes): &(&PathBuf, &Vec<u8>)| {
            path.starts_with(below) && self.before.get(*path) != Some(*bytes)
        };
        let changed: Files =
            self.after.iter().filter(is_new).map(|(path, bytes)| (path.clone(), bytes.clone())).collect();
        assert!(!changed.is_empty(), "something changed in {below}");
        changed
    }

    /// The files before, and what changed in these places.
    fn cut_after(&self, places: &[&str]) -> Files {
        let mut files = self.before.clone();
        for place in places {
            files.extend(self.changed(place));
        }
        files
    }
}

async fn base(dir: &Path) -> (FileFeed, Vec<ControlEvent>) {
    let (feed, events) = (open(dir), vec![event("one"), event("two"), event("three")]);
    for event in &events {
        feed.append(event).await.unwrap();
    }
    (feed, events)
}

#[tokio::test]
async fn an_append_that_was_cut_off_anywhere_is_finished_or_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, base) = base(dir.path()).await;
    let before = files(dir.path());
    let (cut, next) = (event("cut"), event("next"));
    feed.append(&cut).await.unwrap();
    let step = Step { before, after: files(dir.path()) };

    let half: Files = [(PathBuf::from("staging/.tmp1"), b"{\"eve".to_vec())].into();
    let staged: Files =
        step.changed("events").into_values().map(|bytes| (PathBuf::from("staging/.tmp2"), bytes)).collect();
    let with = |mut files: Files, more: &Files| {
        files.extend(more.clone());
        files
    };
    let states = [
        ("nothing is written", step.before.clone()),
        ("the event is half written", with(step.before.clone(), &half)),
        ("the event is staged", with(step.before.clone(), &staged)),
        ("the event has its name", step.cut_after(&["events"])),
        ("its id leads to it", step.cut_after(&["events", "ids"])),
        ("the head is half written", with(step.cut_after(&["events", "ids"]), &half)),
        ("the head says so, and nobody was answered", step.cut_after(&["events", "ids", "head"])),
    ];
    for (what, state) in states {
        for repeated_first in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            put(dir.path(), &state);
            let feed = open(dir.path());
            let order = if repeated_first { [&cut, &next] } else { [&next, &cut] };
            let mut versions = Vec::new();
            for event in order {
                versions.push(feed.append(event).await.unwrap().0);
            }
            let entries: Vec<_> = all(&feed).await.iter().map(received).collect();
            let came: Vec<u64> = entries.iter().map(|(version, _)| *version).collect();
            assert_eq!(came, [1, 2, 3, 4, 5], "{what}");
            assert_eq!(
                entries[..3].iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(),
                base,
                "{what}"
            );
            for (event, version) in order.into_iter().zip(versions) {
                assert_eq!(entries[usize::try_from(version).unwrap() - 1].1, *event, "{what}");
                assert_eq!(open(dir.path()).append(event).await.unwrap().0, version, "{what}");
            }
            assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0, "{what}");
        }
    }
}

/// Two events of one batch, of which only the second has its name: renames may reach the disk in any order.
#[tokio::test]
async fn an_entry_behind_a_gap_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, _) = base(dir.path()).await;
    let before = files(dir.path());
    let [lost, kept, next] = ["lost", "kept", "next"].map(event);
    feed.append(&lost).await.unwrap();
    feed.append(&kept).await.unwrap();
    let after = files(dir.path());
    let mut state = before.clone();
    let fifth = PathBuf::from("events/000000000002/00000000000000000005.json");
    state.insert(fifth.clone(), after[&fifth].clone());
    let other = tempfile::tempdir().unwrap();
    put(other.path(), &state);
    let feed = open(other.path());
    assert_eq!(feed.append(&next).await.unwrap(), ControlVersion(4));
    assert_eq!(feed.append(&kept).await.unwrap(), ControlVersion(5), "it was there already");
    assert_eq!(feed.append(&lost).await.unwrap(), ControlVersion(6));
    let came: Vec<_> = all(&feed).await.iter().map(received).skip(3).collect();
    assert_eq!(came, [(4, next), (5, kept), (6, lost)]);
}

#[tokio::test]
async fn a_drop_whose_settling_was_cut_off_anywhere_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, _) = base(dir.path()).await;
    let dropped = event("dropped");
    let (text, name) = (dropped.to_json().into_bytes(), "dropped.json");
    let before = files(dir.path());
    fs::write(dir.path().join(name), &text).unwrap();
    assert_eq!(all(&feed).await.len(), 4);
    let step = Step { before, after: files(dir.path()) };
    let with = |places: &[&str], left: &str| {
        let mut files = step.cut_after(places);
        files.insert(PathBuf::from(left), text.clone());
        files
    };
    let states = [
        ("it lies there", with(&[], name)),
        ("it was taken in", with(&[], "settling/dropped.json")),
        ("it has its name", with(&["events"], "settling/dropped.json")),
        ("its id leads to it", with(&["events", "ids"], "settling/dropped.json")),
        ("the head says so", with(&["events", "ids", "head"], "settling/dropped.json")),
        ("it is removed", step.cut_after(&["events", "ids", "head"])),
    ];
    for (what, state) in states {
        for written_first in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            put(dir.path(), &state);
            let feed = open(dir.path());
            if written_first {
                assert_eq!(feed.append(&event("next")).await.unwrap(), ControlVersion(5), "{what}");
            }
            let entries = all(&feed).await;
            assert_eq!(entries.len(), 4 + usize::from(written_first), "{what}: {entries:?}");
            assert_eq!(received(&entries[3]), (4, dropped.clone()), "{what}");
            assert_eq!(feed.append(&dropped).await.unwrap(), ControlVersion(4), "{what}");
            let left = |folder: &str| fs::read_dir(dir.path().join(folder)).unwrap().count();
            assert_eq!((left("settling"), left("quarantine"), left("staging")), (0, 0, 0), "{what}");
            assert!(!dir.path().join(name).exists(), "{what}");
        }
    }
}

#[tokio::test]
async fn a_bad_drop_whose_way_was_cut_off_anywhere_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, _) = base(dir.path()).await;
    let before = files(dir.path());
    fs::write(dir.path().join("bad.json"), "{").unwrap();
    assert_eq!(all(&feed).await.len(), 4);
    let step = Step { before, after: files(dir.path()) };
    let aside = PathBuf::from("quarantine/00000000000000000004-bad.json");
    assert!(step.after.contains_key(&aside), "{:?}", step.after.keys());
    let with = |places: &[&str], left: &Path| {
        let mut files = step.cut_after(places);
        files.insert(left.to_path_buf(), b"{".to_vec());
        files
    };
    let settling = Path::new("settling/bad.json");
    let states = [
        ("it lies there", with(&[], Path::new("bad.json"))),
        ("it was taken in", with(&[], settling)),
        ("it has a place", with(&["events"], settling)),
        ("it is set aside", with(&["events"], &aside)),
        ("its reason is there", step.cut_after(&["events", "quarantine"])),
        ("the head says so", step.cut_after(&["events", "quarantine", "head"])),
    ];
    for (what, state) in states {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &state);
        let feed = open(dir.path());
        assert_eq!(feed.append(&event("next")).await.unwrap(), ControlVersion(5), "{what}");
        let entries = all(&feed).await;
        let broken: Vec<bool> = entries.iter().map(is_broken).collect();
        assert_eq!(broken, [false, false, false, true, false], "{what}: {entries:?}");
        let mut names: Vec<_> = files(dir.path())
            .into_keys()
            .filter(|path| path.starts_with("quarantine") || path.starts_with("settling"))
            .collect();
        names.sort();
        let reason = PathBuf::from(format!("{}.reason", aside.display()));
        assert_eq!(names, [aside.clone(), reason], "{what}");
    }
}

#[tokio::test]
async fn a_trim_that_was_cut_off_promises_nothing_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, _) = base(dir.path()).await;
    feed.append(&event("four")).await.unwrap();
    let before = files(dir.path());
    assert_eq!(feed.trim(ControlVersion(3)).await.unwrap(), 3);
    let after = files(dir.path());
    let head = PathBuf::from("head");
    let told: Files = {
        let mut files = before.clone();
        files.insert(head.clone(), after[&head].clone());
        files
    };
    let moved: Files = {
        let mut files = told.clone();
        let first = PathBuf::from("events/000000000000/00000000000000000001.json");
        let bytes = files.remove(&first).unwrap();
        files.insert(PathBuf::from("staging/000000000000/00000000000000000001.json"), bytes);
        files
    };
    for (what, state) in [("the head says so", told), ("one folder is gone", moved), ("all are", after)] {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &state);
        let feed = open(dir.path());
        let behind = feed.poll(ControlVersion(2), 10, Duration::ZERO).await;
        assert!(behind.is_err(), "{what}");
        let rest = feed.poll(ControlVersion(3), 10, Duration::ZERO).await.unwrap();
        assert_eq!((rest.oldest.0, rest.newest.0, rest.events.len()), (4, 4, 1), "{what}");
        assert_eq!(feed.trim(ControlVersion(3)).await.unwrap(), 0, "{what}");
        let shards = fs::read_dir(dir.path().join("events")).unwrap();
        let holding: Vec<_> = shards
            .map(|shard| shard.unwrap().file_name())
            .filter(|shard| *shard != *"000000000002")
            .collect();
        assert!(holding.is_empty(), "{what}: {holding:?}");
        assert_eq!(feed.append(&event("five")).await.unwrap(), ControlVersion(5), "{what}");
    }
}
