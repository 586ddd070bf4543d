//! Artifacts in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millrace::control::reconciler::Supply;
use millrace::control::{ArtifactRef, ControlFeedError, Result};
use millrace::error::BackendError;
use millrace_tests::control::steps::Steps;
use millrace_tests::control_events::digest_of;

/// Artifacts in memory, with a network that can be away.
#[derive(Debug)]
pub(super) struct FakeSupply {
    state: Mutex<Supplies>,
}

#[derive(Debug)]
struct Supplies {
    steps: Arc<Steps>,
    /// Also those that are not what their digest says.
    contents: BTreeMap<String, Bytes>,
    pins: BTreeSet<(String, String)>,
    away: bool,
    gets: usize,
}

impl FakeSupply {
    pub(super) fn new() -> Arc<Self> {
        let (contents, pins) = (BTreeMap::new(), BTreeSet::new());
        let state = Supplies { steps: Steps::all(), contents, pins, away: false, gets: 0 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, Supplies> {
        self.state.lock().unwrap()
    }

    pub(super) fn set_steps(&self, steps: &Arc<Steps>) {
        self.state().steps = Arc::clone(steps);
    }

    pub(super) fn put(&self, content: &[u8]) {
        self.state().contents.insert(digest_of(content), Bytes::copy_from_slice(content));
    }

    /// What comes for a digest is something else.
    pub(super) fn tamper(&self, digest: &str, content: &[u8]) {
        self.state().contents.insert(digest.into(), Bytes::copy_from_slice(content));
    }

    pub(super) fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    /// How often content was asked for.
    pub(super) fn gets(&self) -> usize {
        self.state().gets
    }

    /// The contents that are pinned, with the name.
    pub(super) fn pinned(&self) -> Vec<(String, String)> {
        let state = self.state();
        let text = |digest: &str| String::from_utf8(state.contents[digest].to_vec()).unwrap();
        let mut pinned: Vec<_> =
            state.pins.iter().map(|(digest, name)| (text(digest), name.clone())).collect();
        pinned.sort();
        pinned
    }

    async fn around<T>(&self, name: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let steps = Arc::clone(&self.state().steps);
        steps.around(name, call).await
    }
}

impl Supply for FakeSupply {
    fn get<'a>(&'a self, artifact: &'a ArtifactRef) -> BoxFuture<'a, Result<Bytes>> {
        let get = async {
            let mut state = self.state();
            state.gets += 1;
            if state.away {
                return Err(BackendError::Failed { detail: "the repository is away".into() }.into());
            }
            let digest = artifact.digest.clone();
            let content = state.contents.get(&digest).cloned();
            content.ok_or(ControlFeedError::ArtifactMissing { digest })
        };
        self.around("get", get).boxed()
    }

    fn pin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let pin = async {
            let mut state = self.state();
            if !state.contents.contains_key(digest) {
                return Err(ControlFeedError::ArtifactMissing { digest: digest.into() });
            }
            state.pins.insert((digest.into(), name.into()));
            Ok(())
        };
        self.around("pin", pin).boxed()
    }

    fn unpin<'a>(&'a self, digest: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let unpin = async {
            self.state().pins.remove(&(digest.into(), name.into()));
            Ok(())
        };
        self.around("unpin", unpin).boxed()
    }
}
