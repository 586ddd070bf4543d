//! Claims about what the origin keeps in the fleet's repository.

use std::sync::Arc;

use millrace::backends::memory::MemoryControlStore;
use millrace::clock::SystemClock;
use millrace::control::{ArtifactRepository as _, ControlStore, Kind, Pinner};
use millrace::error::Classify as _;
use millrace_tests::control::artifacts::SpoilableArtifacts;
use millrace_tests::control::steps::{Cut, SteppedStore, Steps};
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

/// One of them cannot be pinned, since it is damaged or was collected just now: the others are, and it is said.
#[tokio::test]
async fn what_cannot_be_pinned_keeps_nothing_else_from_it() {
    let store = Arc::new(MemoryControlStore::new(Arc::new(SystemClock)));
    let artifacts = Arc::new(SpoilableArtifacts::default());
    let mut digests = ["first", "second", "third"].map(|content| artifacts.add(content));
    digests.sort();
    for (number, content) in [b"first".as_slice(), b"second", b"third"].into_iter().enumerate() {
        let plugin = format!("board-{number}");
        let event = about(&plugin, Kind::Deployed, running(spec(&plugin, "1.0.0", content)), 1);
        store.propose(&event.sign(&release_key()).unwrap()).await.unwrap();
    }
    let pinner = Pinner::new(store, artifacts.clone());
    artifacts.refuse_pins(&digests[0], true);
    assert_eq!(pinner.look().await.unwrap_err().code(), "artifact_missing");
    assert_eq!(artifacts.pinned(), digests[1..]);
    artifacts.refuse_pins(&digests[0], false);
    pinner.look().await.unwrap();
    assert_eq!(artifacts.pinned(), digests);
}

/// The store writes down what is to be pinned before it is: a run that ends in between has not pinned it.
#[tokio::test]
async fn a_kill_at_any_step_leaves_nothing_unpinned_and_no_pin_behind() {
    let run = async |steps: Arc<Steps>| {
        let store = Arc::new(MemoryControlStore::new(Arc::new(SystemClock)));
        let artifacts = Arc::new(SpoilableArtifacts::default());
        let (first, second) = (artifacts.add("first"), artifacts.add("second"));
        propose(store.as_ref(), b"first", 1).await;
        Pinner::new(store.clone(), artifacts.clone()).look().await.unwrap();
        propose(store.as_ref(), b"second", 2).await;
        let stepped = SteppedStore { inner: store.clone(), steps: Arc::clone(&steps) };
        let killed = Pinner::new(Arc::new(stepped), artifacts.clone());
        tokio::select! {
            looked = killed.look() => looked.unwrap(),
            () = steps.killed() => {}
        }
        Pinner::new(store, artifacts.clone()).look().await.unwrap();
        let name = vec!["desired:board".to_owned()];
        assert_eq!(artifacts.info(&second).await.unwrap().unwrap().pins, name, "{:?}", steps.passed());
        assert!(artifacts.info(&first).await.unwrap().unwrap().pins.is_empty(), "{:?}", steps.passed());
        steps.passed().len()
    };
    let steps = run(Steps::all()).await;
    assert!(steps > 4, "{steps}");
    for at in 0..steps {
        run(Steps::cut(at, Cut::Kill)).await;
    }
}
