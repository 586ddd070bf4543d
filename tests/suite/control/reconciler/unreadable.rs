//! Claims about a host whose memory has a row that its version cannot read.

use std::sync::Arc;

use millrace::backends::sqlite::{SqliteControlOptions, SqliteControlStore};
use millrace::clock::ManualClock;
use millrace::control::Phase;

use super::Scene;
use super::fakes::FakePlugins;

/// It does not hand out what the feed brought there, such as after it went back a version.
#[tokio::test]
async fn what_cannot_be_read_of_the_feed_is_the_feeds() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteControlOptions::new(dir.path(), Arc::new(ManualClock::default()));
    let mut scene = Scene::new();
    scene.store = Arc::new(SqliteControlStore::open(&options).unwrap());
    scene.plugins = FakePlugins::new(Arc::clone(&scene.store));
    scene.deploy("board 1", 1).await;
    let db = rusqlite::Connection::open(dir.path().join("control.db")).unwrap();
    assert_eq!(db.execute("UPDATE desired SET event = '{'", []).unwrap(), 1);
    scene.deploy("other 1", 1).await;
    scene.start();
    scene.reaches("other", 1, Phase::Active).await;
    assert!(scene.managed.contains("other") && scene.managed.contains("board"));
}
