//! Claims about an origin whose memory has a row that its version cannot read: nothing of the fleet's is let go for it.

use std::sync::Arc;

use millrace::backends::memory::MemoryFeed;
use millrace::backends::sqlite::{SqliteControlOptions, SqliteControlStore, Synchronous};
use millrace::clock::SystemClock;
use millrace::control::snapshot::Snapshots;
use millrace::control::{
    ArtifactRepository as _, Believing, Board as _, ControlEvent, ControlStore as _, Kind, Pinner, Unreadable,
};
use millrace::error::Classify as _;
use millrace_tests::control::artifacts::SpoilableArtifacts;
use millrace_tests::control::{at, deployed, state, v};
use millrace_tests::control_events::{about, release_key, running, spec, trust};
use tempfile::TempDir;

struct Scene {
    dir: TempDir,
    store: Arc<SqliteControlStore>,
    artifacts: Arc<SpoilableArtifacts>,
    board: MemoryFeed,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteControlOptions {
            // Nothing here is about the power.
            synchronous: Synchronous::Off,
            ..SqliteControlOptions::new(dir.path(), Arc::new(SystemClock))
        };
        let store = Arc::new(SqliteControlStore::open(&options).unwrap());
        Self { dir, store, artifacts: Arc::default(), board: MemoryFeed::new() }
    }

    /// Those of another run: they remember nothing.
    fn snapshots(&self) -> Snapshots {
        let keys = Believing::new(trust());
        let board = Arc::new(self.board.clone());
        Snapshots::new(self.store.clone(), self.artifacts.clone(), board, keys, Arc::new(SystemClock))
    }

    async fn apply(&self, number: u64, plugin: &str) {
        self.store.apply(v(number), &deployed(number, plugin, 1)).await.unwrap();
    }

    fn set(&self, table: &str, plugin: &str, text: &str) {
        let db = rusqlite::Connection::open(self.dir.path().join("control.db")).unwrap();
        let sql = format!("UPDATE {table} SET event = ?2 WHERE entity = ?1");
        assert_eq!(db.execute(&sql, (format!("plugin:{plugin}"), text)).unwrap(), 1);
    }

    fn spoil(&self, table: &str, plugin: &str) {
        self.set(table, plugin, "{\"kind\": \"of a later host\"}");
    }

    async fn pins(&self, digest: &str) -> Vec<String> {
        self.artifacts.info(digest).await.unwrap().unwrap().pins
    }
}

fn of_content(plugin: &str, content: &[u8], revision: u64) -> ControlEvent {
    let desired = running(spec(plugin, "1.0.0", content));
    about(plugin, Kind::Deployed, desired, revision).sign(&release_key()).unwrap()
}

/// The mark and its snapshot stay, and with them the feed, which is trimmed behind a mark only. What the snapshot has is put
/// right by it.
#[tokio::test]
async fn no_smaller_state_is_marked() {
    let scene = Scene::new();
    scene.apply(1, "p").await;
    scene.apply(2, "q").await;
    let snapshots = scene.snapshots();
    let former = snapshots.publish().await.unwrap();
    let kept = scene.artifacts.pinned();
    scene.spoil("desired", "p");
    for later in [None, Some(3)] {
        if let Some(number) = later {
            scene.apply(number, "r").await;
        }
        let refused = snapshots.publish().await.unwrap_err();
        assert_eq!(refused.code(), "storage_failed");
        assert!(refused.to_string().contains("plugin:p"), "{refused}");
        assert_eq!(scene.board.mark().await.unwrap(), Some(former.clone()), "{later:?}");
        assert_eq!(scene.artifacts.pinned(), kept);
    }
    // Another run takes the mark in first.
    let all = [at("p", 1, 1), at("q", 1, 2), at("r", 1, 3)];
    let mark = scene.snapshots().publish().await.unwrap();
    assert_eq!(mark.version, v(3));
    assert_eq!(state(&*scene.store).await, all);
    // Nobody has what it was.
    scene.spoil("desired", "r");
    scene.artifacts.lose(&mark.snapshot.clone().unwrap().digest);
    assert_eq!(scene.snapshots().publish().await.unwrap_err().code(), "storage_failed");
    assert_eq!(scene.board.mark().await.unwrap(), Some(mark));
    assert!(scene.artifacts.pinned().is_empty(), "nothing was written");
}

/// What is to be pinned is; what was pinned stays, until all can be read again.
#[tokio::test]
async fn nothing_is_let_go_for_a_row_that_cannot_be_read() {
    let scene = Scene::new();
    let [first, second, third] = ["first", "second", "third"].map(|content| scene.artifacts.add(content));
    let board = of_content("board", b"first", 1);
    scene.store.apply(v(1), &board).await.unwrap();
    scene.store.propose(&of_content("other", b"second", 1)).await.unwrap();
    let pinner = Pinner::new(scene.store.clone(), scene.artifacts.clone());
    pinner.look().await.unwrap();
    scene.spoil("desired", "board");
    scene.store.propose(&of_content("other", b"third", 2)).await.unwrap();
    assert_eq!(pinner.look().await.unwrap_err().code(), "storage_failed");
    assert_eq!(scene.pins(&first).await, ["desired:board"]);
    assert_eq!(scene.pins(&second).await, ["desired:other"], "nobody knows what else it is for");
    assert_eq!(scene.pins(&third).await, ["desired:other"]);
    scene.set("desired", "board", &board.to_json());
    pinner.look().await.unwrap();
    assert_eq!(scene.pins(&first).await, ["desired:board"]);
    assert!(scene.pins(&second).await.is_empty());
}

/// A row is missed where it would be the one that is answered, and nowhere else.
#[tokio::test]
async fn a_store_says_what_its_views_lack() {
    let scene = Scene::new();
    let lacks = async || scene.store.unreadable().await.unwrap();
    let named = |desired: &[&str], proposed: &[&str]| {
        let named = |plugins: &[&str]| plugins.iter().map(|plugin| format!("plugin:{plugin}")).collect();
        Unreadable { desired: named(desired), proposed: named(proposed) }
    };
    scene.apply(1, "p").await;
    scene.apply(2, "q").await;
    scene.store.propose(&deployed(3, "p", 2)).await.unwrap();
    scene.store.propose(&deployed(4, "q", 2)).await.unwrap();
    assert_eq!(lacks().await, Unreadable::default());
    scene.spoil("desired", "p");
    scene.spoil("proposed", "q");
    assert_eq!(lacks().await, named(&["p"], &["q"]), "what was proposed since can be read, or cannot");
    // It is newer than what was proposed here.
    scene.store.apply(v(5), &deployed(5, "p", 3)).await.unwrap();
    scene.store.apply(v(6), &deployed(6, "q", 3)).await.unwrap();
    assert_eq!(lacks().await, Unreadable::default());
    scene.spoil("desired", "p");
    assert_eq!(lacks().await, named(&["p"], &["p"]));
}
