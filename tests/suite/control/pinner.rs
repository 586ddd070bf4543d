//! Claims about what the origin keeps in the fleet's repository.

use std::sync::Arc;

use millrace::backends::memory::MemoryControlStore;
use millrace::clock::SystemClock;
use millrace::control::{ArtifactRepository as _, ControlStore, Kind, Pinner};
use millrace_tests::control::artifacts::SpoilableArtifacts;
use millrace_tests::control_events::{about, digest_of, release_key, removed, running, spec};

async fn propose(store: &dyn ControlStore, content: &[u8], revision: u64) {
    let event = about("board", Kind::Deployed, running(spec("board", "1.0.0", content)), revision);
    store.propose(&event.sign(&release_key()).unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_is_desired_is_pinned_and_what_is_not_any_more_is_let_go() {
    let store = Arc::new(MemoryControlStore::new(Arc::new(SystemClock)));
    let artifacts = Arc::new(SpoilableArtifacts::default());
    let first = artifacts.add("first");
    artifacts.pin(&first, "somebody-else").await.unwrap();
    let pinner = Pinner::new(store.clone(), artifacts.clone());
    let pins = |digest: String| {
        let artifacts = artifacts.clone();
        async move { artifacts.info(&digest).await.unwrap().map(|info| info.pins).unwrap_or_default() }
    };
    propose(store.as_ref(), b"first", 1).await;
    for _ in 0..2 {
        pinner.look().await.unwrap();
        assert_eq!(pins(first.clone()).await, ["desired:board", "somebody-else"]);
    }

    // It is not there yet: the rest goes on, and it is pinned once it is.
    propose(store.as_ref(), b"second", 2).await;
    pinner.look().await.unwrap();
    assert_eq!(pins(first.clone()).await, ["somebody-else"]);
    let second = artifacts.add("second");
    assert_eq!(second, digest_of(b"second"));
    // Another run of the host knows what this one has pinned.
    let pinner = Pinner::new(store.clone(), artifacts.clone());
    pinner.look().await.unwrap();
    assert_eq!(pins(second.clone()).await, ["desired:board"]);

    let event = about("board", Kind::Removed, removed(), 3).sign(&release_key()).unwrap();
    store.propose(&event).await.unwrap();
    pinner.look().await.unwrap();
    assert!(pins(second).await.is_empty());
    assert_eq!(pins(first).await, ["somebody-else"]);
}
