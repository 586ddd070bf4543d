//! The watched folder: what is taken, when, and how often.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace::checkpoints::DeadLetterRow;
use millrace::error::BackendError;
use millrace::event::{Position, TenantId};
use millrace::plugins::{
    ControlError, DeployOptions, DeployRequest, Deployment, DirectoryWatcher, PluginControl, PluginError,
    PluginStatus, ReplayReport, ReplayRequest,
};
use millrace::processors::{Resolved, Verdict};
use millrace_tests::until;
use tokio_util::sync::CancellationToken;

/// Notes what it is asked to deploy and refuses it, at first with errors that may pass.
#[derive(Debug, Default)]
struct Refuser {
    deploys: Mutex<Vec<(String, usize)>>,
    passing: Vec<ControlError>,
}

impl Refuser {
    fn deploys(&self) -> Vec<(String, usize)> {
        self.deploys.lock().expect("test").clone()
    }

    fn nothing<T>() -> BoxFuture<'static, Result<T, ControlError>> {
        async { Err(ControlError::Unknown { plugin: "any".into() }) }.boxed()
    }
}

impl PluginControl for Refuser {
    fn list(&self) -> BoxFuture<'_, Result<Vec<PluginStatus>, ControlError>> {
        Self::nothing()
    }

    fn show(&self, _: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn history(&self, _: &str) -> BoxFuture<'_, Result<Vec<Deployment>, ControlError>> {
        Self::nothing()
    }

    fn deploy(&self, request: DeployRequest) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        let mut deploys = self.deploys.lock().expect("test");
        let lasting = || PluginError::NotAComponent { detail: "told so".into() }.into();
        let error = self.passing.get(deploys.len()).cloned().unwrap_or_else(lasting);
        deploys.push((request.by, request.component.len()));
        async { Err(error) }.boxed()
    }

    fn confirm(&self, _: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn abandon(&self, _: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn rollback(
        &self,
        _: &str,
        _: Option<&str>,
        _: &str,
        _: DeployOptions,
    ) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn pause(&self, _: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn resume(&self, _: &str) -> BoxFuture<'_, Result<PluginStatus, ControlError>> {
        Self::nothing()
    }

    fn remove(&self, _: &str) -> BoxFuture<'_, Result<(), ControlError>> {
        Self::nothing()
    }

    fn dead_letters(
        &self,
        _: &str,
        _: Option<&TenantId>,
        _: u32,
    ) -> BoxFuture<'_, Result<Vec<DeadLetterRow>, ControlError>> {
        Self::nothing()
    }

    fn dead_letter(
        &self,
        _: &str,
        _: Option<&TenantId>,
        _: Position,
    ) -> BoxFuture<'_, Result<DeadLetterRow, ControlError>> {
        Self::nothing()
    }

    fn resolve(
        &self,
        _: &str,
        _: Option<&TenantId>,
        _: Position,
        _: Verdict,
    ) -> BoxFuture<'_, Result<Resolved, ControlError>> {
        Self::nothing()
    }

    fn replay(&self, _: ReplayRequest) -> BoxFuture<'_, Result<ReplayReport, ControlError>> {
        Self::nothing()
    }
}

fn folder() -> (tempfile::TempDir, DirectoryWatcher) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let watcher = DirectoryWatcher::new(dir.path());
    (dir, watcher)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).expect("ours");
    path
}

#[test]
fn a_file_is_taken_at_the_second_look_and_once() {
    let (dir, mut watcher) = folder();
    let path = put(dir.path(), "a.wasm", b"one");
    assert!(watcher.look().is_empty(), "it may still be growing");
    assert_eq!(watcher.look(), [path]);
    assert!(watcher.look().is_empty());
}

#[test]
fn a_growing_file_is_not_taken_before_it_rests() {
    let (dir, mut watcher) = folder();
    for length in 1..5 {
        put(dir.path(), "a.wasm", &vec![0; length]);
        assert!(watcher.look().is_empty());
    }
    assert_eq!(watcher.look().len(), 1);
}

#[test]
fn a_file_that_changes_is_taken_again_even_at_the_same_length() {
    let (dir, mut watcher) = folder();
    let path = put(dir.path(), "a.wasm", b"one");
    watcher.look();
    watcher.look();
    let modified = fs::metadata(&path).expect("ours").modified().expect("a time");
    // The same length and time, but another file.
    let new = put(dir.path(), "a.new", b"two");
    File::options().write(true).open(&new).expect("ours").set_modified(modified).expect("ours");
    fs::rename(&new, &path).expect("ours");
    assert!(watcher.look().is_empty());
    assert_eq!(watcher.look(), [path]);
}

#[test]
fn other_files_and_folders_are_left_alone() {
    let (dir, mut watcher) = folder();
    put(dir.path(), "README.md", b"text");
    put(dir.path(), "a.wasm.part", b"half");
    fs::create_dir(dir.path().join("folder.wasm")).expect("ours");
    watcher.look();
    assert!(watcher.look().is_empty());
}

#[test]
fn a_missing_folder_is_looked_for_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plugins = dir.path().join("plugins");
    let mut watcher = DirectoryWatcher::new(&plugins);
    assert!(watcher.look().is_empty());
    fs::create_dir(&plugins).expect("ours");
    put(&plugins, "a.wasm", b"one");
    watcher.look();
    assert_eq!(watcher.look().len(), 1);
}

/// Runs a watcher until the condition holds for what was deployed.
async fn watch(dir: &Path, control: Arc<Refuser>, done: impl Fn(&[(String, usize)]) -> bool) {
    let cancel = CancellationToken::new();
    let watcher = DirectoryWatcher::new(dir).every(Duration::from_millis(1));
    let running = watcher.run(Arc::clone(&control) as _, cancel.clone());
    let waiting = async {
        until("the deploys are there", || done(&control.deploys())).await;
        cancel.cancel();
    };
    tokio::join!(running, waiting);
}

#[tokio::test]
async fn a_refused_or_too_large_file_is_reported_once() {
    let (dir, _) = folder();
    put(dir.path(), "a.wasm", b"refused");
    let large = File::create(dir.path().join("large.wasm")).expect("ours");
    large.set_len((64 << 20) + 1).expect("a file with a hole");
    let control = Arc::new(Refuser::default());
    let looks = std::sync::atomic::AtomicU32::new(0);
    // Many looks pass; each of them could have tried again.
    watch(dir.path(), Arc::clone(&control), |deploys| {
        !deploys.is_empty() && looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 50
    })
    .await;
    assert_eq!(control.deploys(), [("directory: a.wasm".to_owned(), 7)]);
}

#[tokio::test]
async fn a_file_that_the_host_was_too_busy_for_is_tried_again() {
    let (dir, _) = folder();
    put(dir.path(), "a.wasm", b"good");
    let control = Arc::new(Refuser { passing: vec![BackendError::Closed.into()], ..Refuser::default() });
    watch(dir.path(), Arc::clone(&control), |deploys| deploys.len() >= 2).await;
    assert_eq!(control.deploys().len(), 2, "once more, and then it is dealt with");
}

#[tokio::test]
async fn a_file_is_tried_again_for_as_long_as_storage_fails_and_given_up_for_what_does_not_pass() {
    let (dir, _) = folder();
    put(dir.path(), "a.wasm", b"good");
    let full = ControlError::from(PluginError::Storage { detail: "no space left on device".into() });
    let control = Arc::new(Refuser { passing: vec![full; 4], ..Refuser::default() });
    let looks = std::sync::atomic::AtomicU32::new(0);
    watch(dir.path(), Arc::clone(&control), |deploys| {
        deploys.len() >= 5 && looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 50
    })
    .await;
    assert_eq!(control.deploys().len(), 5);
}
