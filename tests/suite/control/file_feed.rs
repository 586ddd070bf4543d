//! Claims about the feed in files: what others drop into its folder, what is damaged there, and what a look costs.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use millrace::backends::file::{FileFeed, FileFeedOptions, FileWork};
use millrace::clock::{Clock as _, ManualClock, SystemClock};
use millrace::control::{
    Board as _, ControlEvent, ControlFeedError, ControlSink as _, ControlSource as _, ControlVersion, Polled,
    Received,
};
use millrace::event::Micros;
use millrace::limits::CONTROL_EVENT_BYTES_MAX;
use tempfile::TempDir;

use super::feeds::{Feed, codes, event, is_broken, received, with_id};

const SHARD: u64 = 10;

struct Folder {
    temporary: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { temporary: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.temporary.path().join("feed")
    }

    fn options(&self) -> FileFeedOptions {
        FileFeedOptions { shard_events: SHARD, ..FileFeedOptions::new(self.path()) }
    }

    fn open(&self) -> FileFeed {
        FileFeed::open(self.options()).unwrap()
    }

    /// As any program does it: written elsewhere, then renamed.
    fn drop_in(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let written = self.temporary.path().join("written");
        fs::write(&written, bytes).unwrap();
        fs::rename(written, self.path().join(name)).unwrap();
    }

    fn event_file(&self, version: u64) -> PathBuf {
        self.path().join(format!("events/{:012}/{version:020}.json", version / SHARD))
    }

    /// What an id that tests give leads to.
    fn id_file(&self, event: &ControlEvent) -> PathBuf {
        self.path().join("ids/01JZ").join(event.id().as_str())
    }

    /// How many entries lie there, seen or not.
    fn entries(&self) -> usize {
        let shards = fs::read_dir(self.path().join("events")).unwrap();
        shards.map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
    }

    fn quarantine(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("quarantine")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

async fn all(feed: &FileFeed) -> Vec<Received> {
    feed.poll(ControlVersion(0), 1_000, Duration::ZERO).await.unwrap().events
}

fn events(entries: &[Received]) -> Vec<(u64, ControlEvent)> {
    entries.iter().map(received).collect()
}

fn at(event: &ControlEvent, version: u64) -> String {
    event.to_json_at(ControlVersion(version))
}

#[tokio::test]
async fn c06_dropped_files_come_in_the_order_that_they_ask_for_and_other_files_do_not() {
    let folder = Folder::new();
    let source = FileFeed::open_source(folder.options()).unwrap();
    assert_eq!(millrace::control::ControlSource::name(&source), "file");
    let [first, second, third, unnumbered] = ["one", "two", "three", "four"].map(event);
    folder.drop_in("a.json", unnumbered.to_json());
    folder.drop_in("b.json", at(&third, 30));
    folder.drop_in("c.json", at(&first, 10));
    folder.drop_in("d.json", at(&second, 20));
    folder.drop_in("notes.txt", "not for the feed");
    folder.drop_in(".half.json", "{");
    fs::create_dir(folder.path().join("folder.json")).unwrap();
    let entries = all(&source).await;
    // The numbers are the feed's to give: what is asked for is the order.
    assert_eq!(events(&entries), [(1, first), (2, second), (3, third), (4, unnumbered)]);
    for kept in ["notes.txt", ".half.json", "folder.json"] {
        assert!(folder.path().join(kept).exists(), "{kept} is nobody's event");
    }
    for gone in ["a.json", "b.json", "c.json", "d.json"] {
        assert!(!folder.path().join(gone).exists(), "{gone} is in the log");
    }
    assert_eq!(folder.quarantine(), [""; 0]);
}

#[tokio::test]
async fn an_event_is_one_readable_file_with_its_version() {
    let folder = Folder::new();
    let feed = folder.open();
    let event = event("one");
    feed.append(&event).await.unwrap();
    let text = fs::read_to_string(folder.event_file(1)).unwrap();
    assert!(text.lines().count() > 5, "{text}");
    assert!(text.contains("\"control_version\": 1"), "{text}");
    assert_eq!(ControlEvent::parse_at(&text).unwrap(), (event, Some(ControlVersion(1))));
}

#[tokio::test]
async fn c08_a_drop_that_is_no_event_is_set_aside_with_the_reason_and_every_host_is_told() {
    let folder = Folder::new();
    let feed = folder.open();
    let (good, other) = (event("one"), event("two"));
    let link = folder.temporary.path().join("elsewhere");
    fs::write(&link, good.to_json()).unwrap();
    let cases: [(&OsStr, &[u8]); 6] = [
        (OsStr::new("torn.json"), b"{\"event_id\": \"evt_"),
        (OsStr::new("empty.json"), b""),
        (OsStr::new("list.json"), b"[]"),
        (OsStr::new("bytes.json"), b"\xff\xfe"),
        (OsStr::from_bytes(b"\xff\n$(reboot) ..\\.json"), b"{}"),
        (OsStr::new("large.json"), &vec![b' '; CONTROL_EVENT_BYTES_MAX + 1]),
    ];
    for (name, bytes) in cases {
        folder.drop_in(name, bytes);
    }
    std::os::unix::fs::symlink(&link, folder.path().join("link.json")).unwrap();
    folder.drop_in(format!("{}.json", "n".repeat(240)), "{");
    folder.drop_in("good.json", good.to_json());
    let told = all(&feed).await;
    assert_eq!(told.len(), 9, "{told:?}");
    assert_eq!(told.iter().filter(|entry| is_broken(entry)).count(), 8, "{told:?}");
    let versions: Vec<u64> = told.iter().map(|entry| entry.version().0).collect();
    assert_eq!(versions, (1..=9).collect::<Vec<_>>());
    let aside = folder.quarantine();
    assert_eq!(aside.len(), 16, "each with its reason: {aside:?}");
    for name in aside.iter().filter_map(|name| name.strip_suffix(".reason")) {
        assert!(fs::symlink_metadata(folder.path().join("quarantine").join(name)).is_ok(), "{name}");
        let reason = folder.path().join("quarantine").join(format!("{name}.reason"));
        assert!(fs::read_to_string(reason).unwrap().trim().len() > 5, "{name}");
    }
    for entry in &told {
        if let Received::Broken { name, .. } = entry {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            assert!(name.bytes().all(plain) && name.len() < 130, "{name:?}");
        }
    }
    // What comes after it goes on, and another host sees the same.
    feed.append(&other).await.unwrap();
    let elsewhere = all(&folder.open()).await;
    assert_eq!(format!("{:?}", &elsewhere[..9]), format!("{told:?}"));
    assert_eq!(received(&elsewhere[9]), (10, other));
    assert_eq!(folder.quarantine(), aside, "nothing is set aside twice");
}

#[tokio::test]
async fn a_drop_again_changes_nothing_and_one_that_contradicts_is_set_aside() {
    let folder = Folder::new();
    let feed = folder.open();
    let number = u64::from(u32::MAX) + 1;
    let known = with_id(number, "one");
    feed.append(&known).await.unwrap();
    folder.drop_in("again.json", known.to_json());
    folder.drop_in("and-again.json", at(&known, 99));
    assert_eq!(events(&all(&feed).await), [(1, known.clone())]);
    folder.drop_in("other.json", with_id(number, "two").to_json());
    let new = event("three");
    folder.drop_in("new-1.json", new.to_json());
    folder.drop_in("new-2.json", new.to_json());
    let entries = all(&feed).await;
    assert_eq!(entries.len(), 3, "{entries:?}");
    assert_eq!(entries.iter().filter(|entry| is_broken(entry)).count(), 1);
    assert_eq!(folder.quarantine().len(), 2);
    assert_eq!(received(&entries[0]), (1, known));
    assert!(entries[1..].iter().any(|entry| !is_broken(entry) && received(entry).1 == new));
    // The sink knows what was dropped, too.
    assert!(feed.append(&new).await.unwrap().0 <= 3);
}

/// This host would set it aside for all others.
#[tokio::test]
async fn what_a_later_host_must_understand_is_carried_as_it_is() {
    let folder = Folder::new();
    let feed = folder.open();
    let later = event("one").to_json().replacen("\"schema_version\": 1", "\"schema_version\": 9", 1);
    assert!(matches!(ControlEvent::parse(&later), Err(ControlFeedError::NotUnderstood { .. })), "{later}");
    folder.drop_in("later.json", &later);
    let entries = all(&feed).await;
    assert!(
        matches!(&entries[..], [Received::Broken { name, .. }] if name.starts_with("evt_")),
        "{entries:?}"
    );
    assert_eq!(codes(&entries), ["control_event_not_understood"]);
    assert_eq!(folder.quarantine(), [""; 0]);
    assert!(fs::read_to_string(folder.event_file(1)).unwrap().contains("\"schema_version\": 9"));
    folder.drop_in("again.json", &later);
    assert_eq!(all(&feed).await.len(), 1, "its id is known");
}

#[tokio::test]
async fn what_is_damaged_or_gone_in_the_log_is_told_at_its_place() {
    let folder = Folder::new();
    let feed = folder.open();
    let sent: Vec<_> = (0..25).map(|_| event("one")).collect();
    for event in &sent {
        feed.append(event).await.unwrap();
    }
    fs::write(folder.event_file(3), "").unwrap();
    fs::write(folder.event_file(9), b"{\"event_id\": \"\xff").unwrap();
    fs::remove_file(folder.event_file(12)).unwrap();
    fs::remove_dir_all(folder.event_file(20).parent().unwrap()).unwrap();
    fs::remove_file(folder.event_file(15)).unwrap();
    fs::create_dir(folder.event_file(15)).unwrap();
    for feed in [feed, folder.open()] {
        let entries = all(&feed).await;
        let broken: Vec<u64> =
            entries.iter().filter(|entry| is_broken(entry)).map(|entry| entry.version().0).collect();
        assert_eq!(broken, [3, 9, 12, 15, 20, 21, 22, 23, 24, 25]);
        for entry in entries.iter().filter(|entry| !is_broken(entry)) {
            let (version, event) = received(entry);
            assert_eq!(event, sent[usize::try_from(version).unwrap() - 1]);
        }
        assert_eq!(entries.len(), 25);
        let codes = codes(&entries);
        assert_eq!((codes[2], codes[8]), ("control_event_invalid", "control_event_invalid"));
        assert_eq!(codes[14], "control_event_unreadable", "a folder in the place of a file");
        for gone in [11, 19, 24] {
            assert_eq!(codes[gone], "control_event_missing");
        }
    }
    assert_eq!(folder.open().append(&event("two")).await.unwrap(), ControlVersion(26));
}

/// By counting what is opened and listed: time would say nothing.
#[tokio::test]
async fn what_a_poll_and_an_append_cost_does_not_depend_on_what_was_before() {
    let folder = Folder::new();
    let feed = folder.open();
    let cost = async |newest: u64| {
        let mut costs = Vec::new();
        let mut note = |before: FileWork| {
            let after = feed.work();
            costs.push((after.opened - before.opened, after.listed - before.listed));
        };
        for after in [newest, newest - 1, newest - 2] {
            let before = feed.work();
            let polled = feed.poll(ControlVersion(after), 1, Duration::ZERO).await.unwrap();
            assert_eq!(polled.events.len(), usize::from(after < newest));
            note(before);
        }
        let (known, new) = (&all(&feed).await[usize::try_from(newest - 1).unwrap()], event("new"));
        for event in [&received(known).1, &new] {
            let before = feed.work();
            feed.append(event).await.unwrap();
            note(before);
        }
        costs
    };
    for _ in 0..2 {
        feed.append(&event("one")).await.unwrap();
    }
    let few = cost(2).await;
    for _ in 3..119 {
        feed.append(&event("one")).await.unwrap();
    }
    assert_eq!(cost(119).await, few, "opened and listed by each");
    assert!(few.iter().all(|(opened, listed)| *opened <= 8 && *listed <= 16), "{few:?}");
}

/// By counting what is synced: each event by itself, the folders of names and of ids once for all that came together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_together_are_made_durable_together() {
    const TOGETHER: u64 = 32;
    let folder = Folder::new();
    let feed = FileFeed::open(FileFeedOptions { shard_events: 1_000, ..folder.options() }).unwrap();
    // The folders are there.
    feed.append(&event("one")).await.unwrap();
    let alone = feed.work().synced;
    feed.append(&event("one")).await.unwrap();
    assert_eq!(feed.work().synced - alone, 1 + 2, "one that comes alone");
    let lock = fs::File::options().write(true).open(folder.path().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let before = feed.work().synced;
    let events: Vec<_> = (0..TOGETHER).map(|_| event("one")).collect();
    let mut all = Box::pin(try_join_all(events.iter().map(|event| feed.append(event))));
    assert!(futures_util::poll!(&mut all).is_pending(), "all of them wait for the lock, or for who does");
    drop(lock);
    let versions = all.await.unwrap();
    assert_eq!(versions.len() as u64, TOGETHER);
    // Whoever waited for the lock has taken what was there at that time; the rest came together.
    let synced = feed.work().synced - before;
    assert!([TOGETHER + 2, TOGETHER + 4].contains(&synced), "{TOGETHER} events cost {synced} syncs");
    let repeated = try_join_all(events.iter().map(|event| feed.append(event))).await.unwrap();
    assert_eq!(repeated, versions);
    assert_eq!(feed.work().synced - before, synced, "what is known costs none");
}

/// Where a file system has no links, an id is noted in a file. What cannot be read there is as good as none.
#[tokio::test]
async fn an_id_that_is_noted_in_a_file_leads_to_its_event_too() {
    let folder = Folder::new();
    let feed = folder.open();
    let event = event("one");
    assert_eq!(feed.append(&event).await.unwrap(), ControlVersion(1));
    let id = event.id().as_str();
    let path = folder.path().join("ids").join(&id["evt_".len()..][..4]).join(id);
    let noted = fs::read_link(&path).unwrap().into_os_string().into_string().unwrap();
    assert_eq!(noted, format!("1.{}", event.digest()));
    fs::remove_file(&path).unwrap();
    fs::write(&path, &noted).unwrap();
    assert_eq!(feed.append(&event).await.unwrap(), ControlVersion(1));
    for (expected, torn) in [(2, ""), (3, &noted[..20])] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, torn).unwrap();
        assert_eq!(feed.append(&event).await.unwrap(), ControlVersion(expected), "{torn}");
        assert_eq!(feed.append(&event).await.unwrap(), ControlVersion(expected), "{torn}");
    }
}

#[tokio::test]
async fn a_lost_or_torn_head_is_made_again_from_the_names_of_the_events() {
    let folder = Folder::new();
    let feed = folder.open();
    for _ in 0..25 {
        feed.append(&event("one")).await.unwrap();
    }
    feed.trim(ControlVersion(12)).await.unwrap();
    let head = folder.path().join("head");
    let whole = fs::read(&head).unwrap();
    for torn in [None, Some(&b""[..]), Some(b"{\"newest\": 2"), Some(b"{\"newest\": 3, \"oldest\": 9}")] {
        for open_again in [false, true] {
            match torn {
                None => fs::remove_file(&head).unwrap(),
                Some(bytes) => fs::write(&head, bytes).unwrap(),
            }
            let feed = if open_again { folder.open() } else { feed.clone() };
            let polled = feed.poll(ControlVersion(20), 10, Duration::ZERO).await.unwrap();
            assert_eq!((polled.oldest.0, polled.newest.0, polled.events.len()), (10, 25, 5));
            assert_eq!(fs::read(&head).unwrap(), whole);
        }
    }
    // One that went back by a power cut is behind, and nothing is written over.
    fs::write(&head, "{\"newest\": 21, \"oldest\": 10}").unwrap();
    assert_eq!(feed.append(&event("two")).await.unwrap(), ControlVersion(26));
}

#[tokio::test]
async fn the_newest_event_outlives_every_trim() {
    let folder = Folder::new();
    let feed = folder.open();
    for _ in 0..19 {
        feed.append(&event("one")).await.unwrap();
    }
    assert_eq!(feed.trim(ControlVersion(u64::MAX)).await.unwrap(), 9);
    fs::remove_file(folder.path().join("head")).unwrap();
    let feed = folder.open();
    let polled = feed.poll(ControlVersion(9), 100, Duration::ZERO).await.unwrap();
    assert_eq!((polled.oldest.0, polled.newest.0, polled.events.len()), (10, 19, 10));
    assert_eq!(feed.append(&event("two")).await.unwrap(), ControlVersion(20));
}

#[tokio::test]
async fn a_repeat_is_known_after_its_event_was_trimmed() {
    let folder = Folder::new();
    let feed = folder.open();
    let first = event("one");
    feed.append(&first).await.unwrap();
    for _ in 0..15 {
        feed.append(&event("two")).await.unwrap();
    }
    assert_eq!(feed.trim(ControlVersion(12)).await.unwrap(), 9);
    assert!(!folder.event_file(1).exists());
    assert_eq!(folder.open().append(&first).await.unwrap(), ControlVersion(1));
    assert_eq!(feed.append(&event("three")).await.unwrap(), ControlVersion(17));
}

#[tokio::test]
async fn c10_an_id_that_an_earlier_version_has_noted_is_known() {
    let folder = Folder::new();
    let feed = folder.open();
    let number = u64::from(u32::MAX);
    let [known, other] = ["one", "two"].map(|plugin| with_id(number, plugin));
    feed.append(&event("first")).await.unwrap();
    feed.append(&known).await.unwrap();
    let noted = folder.id_file(&known);
    assert_eq!(fs::read_link(&noted).unwrap(), Path::new(&format!("2.{}", known.digest())));
    fs::remove_file(&noted).unwrap();
    let text = format!("{{\n  \"control_version\": 2,\n  \"digest\": \"{}\"\n}}", known.digest());
    fs::write(&noted, text).unwrap();
    assert_eq!(feed.append(&known).await.unwrap(), ControlVersion(2));
    let refused = feed.append(&other).await.unwrap_err();
    assert!(matches!(refused, ControlFeedError::EventIdTaken { .. }), "{refused}");
    assert_eq!(folder.entries(), 2);
}

/// Who begins again copies all that there is; a disk may be full before it is done.
#[tokio::test]
async fn a_folder_that_cannot_begin_again_does_not_fill_and_is_left_alone_for_a_while() {
    let folder = Folder::new();
    let feed = folder.open();
    let sent: Vec<ControlEvent> = (0..70).map(|_| event("one")).collect();
    for event in &sent {
        feed.append(event).await.unwrap();
    }
    // The last id can be given to nothing: by then almost all of them have their copies.
    let last = folder.id_file(&sent[69]);
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    let with = |begin_again_pause| {
        FileFeed::open(FileFeedOptions { begin_again_pause, ..folder.options() }).unwrap()
    };
    let poll = async |feed: &FileFeed| feed.poll(ControlVersion(90), 1_000, Duration::ZERO).await;
    let is_beyond = |told: &Result<Polled, ControlFeedError>| {
        matches!(told, Err(ControlFeedError::BehindRetention { asked: 90, oldest: 1 }))
    };
    let hasty = with(Duration::ZERO);
    for _ in 0..2 {
        let before = hasty.work().synced;
        let told = poll(&hasty).await;
        assert!(is_beyond(&told), "{told:?}");
        assert!(hasty.work().synced > before, "it was tried");
        assert_eq!((folder.entries(), all(&hasty).await.len()), (70, 70));
    }
    let patient = with(Duration::from_secs(3_600));
    assert!(is_beyond(&poll(&patient).await));
    let tried = patient.work();
    assert!(is_beyond(&poll(&patient).await));
    patient.saw(ControlVersion(90));
    let refused = patient.append(&event("two")).await.unwrap_err();
    assert!(refused.to_string().contains("begin again"), "{refused}");
    assert_eq!((patient.work().synced, folder.entries()), (tried.synced, 70));

    fs::remove_dir(&last).unwrap();
    assert!(poll(&hasty).await.is_err(), "it has other versions now");
    let polled = poll(&hasty).await.unwrap();
    assert_eq!(events(&polled.events).into_iter().map(|(_, event)| event).collect::<Vec<_>>(), sent);
}

#[tokio::test]
async fn a_writer_waits_for_another_one_and_says_so_when_it_takes_too_long() {
    let folder = Folder::new();
    let feed = folder.open();
    let lock = fs::File::options().write(true).open(folder.path().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let hasty = FileFeedOptions { lock_wait: Duration::ZERO, ..folder.options() };
    let refused = FileFeed::open(hasty.clone()).unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    // Reading needs no lock, and drops are somebody else's business then.
    folder.drop_in("a.json", event("one").to_json());
    let reader = FileFeed::open_source(hasty).unwrap();
    assert_eq!(all(&reader).await.len(), 0);
    let refused = reader.append(&event("two")).await.unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    let waiting = {
        let feed = feed.clone();
        async move { feed.append(&event("two")).await }
    };
    let (version, ()) = tokio::join!(waiting, async {
        tokio::task::yield_now().await;
        drop(lock);
    });
    // What was dropped before comes before.
    assert_eq!(version.unwrap(), ControlVersion(2));
    assert_eq!(all(&reader).await.len(), 2);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_an_error_with_its_name() {
    let folder = Folder::new();
    fs::write(folder.path(), "a file where the folder should be").unwrap();
    // Nobody can make a folder there, whatever rights this process has.
    for dir in [folder.path(), folder.path().join("below"), PathBuf::from("/proc/millrace/feed")] {
        for opened in
            [FileFeed::open(FileFeedOptions::new(&dir)), FileFeed::open_source(FileFeedOptions::new(&dir))]
        {
            let error = opened.unwrap_err();
            assert!(matches!(error, ControlFeedError::Backend(_)), "{error}");
            assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
        }
    }
    let folder = Folder::new();
    let feed = folder.open();
    feed.append(&event("one")).await.unwrap();
    fs::remove_dir_all(folder.path().join("staging")).unwrap();
    let refused = feed.append(&event("two")).await.unwrap_err();
    assert!(refused.to_string().contains("staging"), "{refused}");
    assert_eq!(all(&feed).await.len(), 1, "it can still be read");
}

#[tokio::test]
async fn a_folder_of_a_later_format_is_left_alone() {
    let folder = Folder::new();
    folder.open();
    fs::write(folder.path().join("format"), "{\"format\": 2, \"shard_events\": 10}").unwrap();
    let refused = FileFeed::open_source(folder.options()).unwrap_err();
    assert!(
        matches!(&refused, ControlFeedError::Settings { detail, .. } if detail.contains("format 2")),
        "{refused}"
    );
}

#[tokio::test]
async fn who_opens_it_with_another_size_of_folders_finds_everything() {
    let folder = Folder::new();
    let feed = folder.open();
    for _ in 0..12 {
        feed.append(&event("one")).await.unwrap();
    }
    let other = FileFeed::open(FileFeedOptions::new(folder.path())).unwrap();
    assert_eq!(all(&other).await.len(), 12);
    assert_eq!(other.append(&event("two")).await.unwrap(), ControlVersion(13));
    assert!(folder.event_file(13).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drops_and_appends_by_several_at_once_lose_nothing() {
    let folder = Folder::new();
    let feeds = [folder.open(), folder.open(), folder.open()];
    let mut sent = Vec::new();
    let mut sending = tokio::task::JoinSet::new();
    for round in 0..5 {
        for (place, feed) in feeds.iter().enumerate() {
            let (dropped, appended) = (event("dropped"), event("appended"));
            folder.drop_in(format!("{round}-{place}.json"), dropped.to_json());
            sent.extend([dropped, appended.clone()]);
            let feed = feed.clone();
            sending.spawn(async move {
                feed.append(&appended).await.unwrap();
                feed.poll(ControlVersion(0), 1, Duration::ZERO).await.unwrap();
            });
        }
    }
    sending.join_all().await;
    let feed = Feed::of(folder.open());
    let mut came: Vec<String> =
        feed.take(0, sent.len()).await.iter().map(|entry| received(entry).1.id().to_string()).collect();
    let mut sent: Vec<String> = sent.iter().map(|event| event.id().to_string()).collect();
    came.sort();
    sent.sort();
    assert_eq!(came, sent);
}

/// The clock of whoever looks may be wrong; when a report came is told by the clock that told it before.
#[tokio::test]
async fn the_age_of_a_report_does_not_depend_on_the_clock_of_who_asks() {
    let folder = Folder::new();
    folder.open().report("a", "{}").await.unwrap();
    let now = SystemClock.now().0;
    for hours in [-2, 2] {
        let clock = Arc::new(ManualClock::default());
        clock.set(Micros(now + hours * 3_600_000_000));
        let feed = FileFeed::open(FileFeedOptions { clock, ..folder.options() }).unwrap();
        let age = async || feed.reports().await.unwrap()[0].1;
        assert!(age().await < Duration::from_secs(3_600), "it came just now");
        let written = folder.path().join("board/hosts/a.json");
        let before = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(written).unwrap().set_modified(before).unwrap();
        assert!(age().await > Duration::from_secs(3_600), "it came long ago");
        folder.open().report("a", "{}").await.unwrap();
    }
    assert_eq!(fs::read_dir(folder.path().join("board/hosts")).unwrap().count(), 1, "nothing else stays");
}
