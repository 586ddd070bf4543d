//! Claims about the feeds in memory, in files and in SQLite: all that every feed must do, and what is SQLite's alone.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use millrace::backends::file::{FileFeed, FileFeedOptions};
use millrace::backends::memory::MemoryFeed;
use millrace::backends::sqlite::{SqliteFeed, SqliteFeedOptions};
use millrace::control::{ControlFeedError, ControlSink as _, ControlSource as _, ControlVersion};
use tempfile::TempDir;

use super::feeds::{Feed, LONG, Rig, codes, comes, event, feeds_conformance, is_broken};

/// In memory, with and without acknowledgements.
#[derive(Debug)]
struct InMemory {
    feed: MemoryFeed,
    acknowledged: bool,
}

impl Rig for InMemory {
    fn open<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Feed> {
        let mut feed = Feed::of(self.feed.clone());
        if self.acknowledged {
            feed.source = Arc::new(self.feed.consumer(host));
        }
        Box::pin(std::future::ready(feed))
    }

    fn put_broken(&self) -> BoxFuture<'_, ()> {
        self.feed.append_broken("notes", "it is no event");
        Box::pin(std::future::ready(()))
    }
}

#[derive(Debug)]
struct InFiles(TempDir);

impl Rig for InFiles {
    fn open<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Feed> {
        let options = FileFeedOptions { shard_events: 4, ..FileFeedOptions::new(self.0.path().join("feed")) };
        Box::pin(std::future::ready(Feed::of(FileFeed::open(options).unwrap())))
    }

    fn put_broken(&self) -> BoxFuture<'_, ()> {
        let (path, dir) = (self.0.path().join("written"), self.0.path().join("feed"));
        std::fs::write(&path, "{\"event_id\":").unwrap();
        std::fs::rename(path, dir.join("notes.json")).unwrap();
        Box::pin(std::future::ready(()))
    }
}

#[derive(Debug)]
struct InSqlite(TempDir);

impl Rig for InSqlite {
    fn open<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Feed> {
        let options = SqliteFeedOptions::new(self.0.path().join("feed"));
        Box::pin(std::future::ready(Feed::of(SqliteFeed::open(options).unwrap())))
    }

    fn put_broken(&self) -> BoxFuture<'_, ()> {
        let conn = rusqlite::Connection::open(self.0.path().join("feed/feed.db")).unwrap();
        conn.busy_timeout(LONG).unwrap();
        let sql = "BEGIN IMMEDIATE; UPDATE meta SET value = value + 1 WHERE name = 'newest';
                   INSERT INTO events SELECT value, x'ff' FROM meta WHERE name = 'newest'; COMMIT";
        conn.execute_batch(sql).unwrap();
        Box::pin(std::future::ready(()))
    }
}

async fn in_memory() -> Arc<dyn Rig> {
    Arc::new(InMemory { feed: MemoryFeed::new(), acknowledged: false })
}

async fn acknowledged() -> Arc<dyn Rig> {
    Arc::new(InMemory { feed: MemoryFeed::new(), acknowledged: true })
}

async fn in_files() -> Arc<dyn Rig> {
    Arc::new(InFiles(tempfile::tempdir().unwrap()))
}

async fn in_sqlite() -> Arc<dyn Rig> {
    Arc::new(InSqlite(tempfile::tempdir().unwrap()))
}

feeds_conformance!(memory, in_memory);
feeds_conformance!(memory_with_acks, acknowledged);
feeds_conformance!(files, in_files);
feeds_conformance!(sqlite, in_sqlite);

/// Takes the files of a feed that nobody has open.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (kind, path) = entry.map(|entry| (entry.file_type().unwrap(), entry.path())).unwrap();
        let to = to.join(path.file_name().unwrap());
        if kind.is_dir() {
            copy(&path, &to);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path).unwrap(), to).unwrap();
        } else {
            std::fs::copy(&path, to).unwrap();
        }
    }
}

/// An older copy of the files was put back, and appended to before any host looked at it: what was acknowledged reaches
/// hosts that were further, hosts that were not, and hosts that are new.
async fn an_older_copy_takes_nothing_that_hosts_then_miss(rig: &dyn Rig, dir: &Path) {
    let [feed, kept] = ["feed", "kept"].map(|name| dir.join(name));
    let origin = rig.open("a").await;
    let mut given = vec![0];
    for _ in 0..3 {
        given.push(origin.append(&event("early")).await);
    }
    drop(origin);
    copy(&feed, &kept);
    let origin = rig.open("a").await;
    for _ in 0..4 {
        given.push(origin.append(&event("lost")).await);
    }
    drop(origin);
    std::fs::remove_dir_all(&feed).unwrap();
    copy(&kept, &feed);
    let sent = event("late");
    let place = rig.open("a").await.append(&sent).await;
    assert!(given.contains(&place), "nobody knows yet, so it has a version that was given before");
    let host = rig.open("host").await;
    let told = host.source.poll(ControlVersion(given[7]), 9, Duration::ZERO).await;
    assert!(told.is_err(), "{told:?}");
    for after in given.iter().rev() {
        let version = comes(&host, *after, &sent).await;
        assert!(version > given[7], "{version} after {after}");
    }
    // It is all there once, and what was known is known.
    let fresh = rig.open("fresh").await.take(0, 4).await;
    assert_eq!(rig.open("a").await.append(&sent).await, fresh[3].version().0);
    // Hosts that never looked in between were further than that, too.
    let polled = host.source.poll(ControlVersion(given[6]), 9, Duration::ZERO).await.unwrap();
    assert_eq!(polled.events.len(), 4);
    host.sink.trim(ControlVersion(u64::MAX)).await.unwrap();
}

#[tokio::test]
async fn an_older_copy_of_a_folder_takes_nothing_that_hosts_then_miss() {
    let rig = InFiles(tempfile::tempdir().unwrap());
    let path = rig.0.path().to_owned();
    an_older_copy_takes_nothing_that_hosts_then_miss(&rig, &path).await;
}

#[tokio::test]
async fn an_older_copy_of_a_database_takes_nothing_that_hosts_then_miss() {
    let rig = InSqlite(tempfile::tempdir().unwrap());
    let path = rig.0.path().to_owned();
    an_older_copy_takes_nothing_that_hosts_then_miss(&rig, &path).await;
}

/// A head that went back in a power cut says less than there is; a host that has read it all is not beyond.
#[tokio::test]
async fn a_folder_whose_head_went_back_is_no_older_copy() {
    let rig = InFiles(tempfile::tempdir().unwrap());
    let feed = rig.open("a").await;
    for _ in 0..3 {
        feed.append(&event("one")).await;
    }
    std::fs::write(rig.0.path().join("feed/head"), "{\"newest\": 1, \"oldest\": 1}").unwrap();
    let polled = feed.source.poll(ControlVersion(3), 9, Duration::ZERO).await.unwrap();
    assert_eq!((polled.events.len(), polled.newest.0), (0, 3));
    assert_eq!(feed.append(&event("two")).await, 4);
}

/// Without its head it is known by the names of the events, of which the older ones are of places that were given up.
#[tokio::test]
async fn a_folder_that_began_again_knows_where_without_its_head() {
    let rig = InFiles(tempfile::tempdir().unwrap());
    let feed = rig.open("a").await;
    for _ in 0..3 {
        feed.append(&event("one")).await;
    }
    let poll = async |after| feed.source.poll(ControlVersion(after), 9, Duration::ZERO).await;
    assert!(poll(9).await.is_err());
    let whole = poll(9).await.unwrap();
    std::fs::remove_file(rig.0.path().join("feed/head")).unwrap();
    let found = poll(whole.oldest.0 - 1).await.unwrap();
    assert_eq!((found.oldest, found.newest, found.events.len()), (whole.oldest, whole.newest, 3));
    // How far one may be back stood in the head alone: now it is answered as what was trimmed.
    let behind = poll(9).await;
    assert!(matches!(behind, Err(ControlFeedError::BehindRetention { .. })), "{behind:?}");
}

#[tokio::test]
async fn sqlite_tells_of_a_row_that_is_gone() {
    let rig = InSqlite(tempfile::tempdir().unwrap());
    let feed = rig.open("a").await;
    for plugin in ["one", "two", "three", "four"] {
        feed.append(&event(plugin)).await;
    }
    let conn = rusqlite::Connection::open(rig.0.path().join("feed/feed.db")).unwrap();
    conn.execute_batch("DELETE FROM events WHERE version IN (2, 4)").unwrap();
    let entries = feed.take(0, 4).await;
    assert_eq!(codes(&entries), ["", "control_event_missing", "", "control_event_missing"]);
    assert!(is_broken(&entries[1]));
    assert_eq!(entries.iter().map(|entry| entry.version().0).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn c25_an_acknowledgement_counts_once() {
    let feed = MemoryFeed::new();
    let event = event("one");
    let version = feed.append(&event).await.unwrap();
    let consumer = feed.consumer("a");
    let acker = consumer.acker().unwrap();
    acker.acknowledge(event.id(), version).await.unwrap();
    assert_eq!(consumer.acknowledged(), [], "it was not answered yet");
    consumer.poll(ControlVersion(0), 1, Duration::ZERO).await.unwrap();
    for _ in 0..2 {
        acker.acknowledge(event.id(), version).await.unwrap();
    }
    assert_eq!(consumer.acknowledged(), [(event.id().clone(), version)]);
}
