//! A folder whose components are deployed: put a `*.wasm` there, or replace
//! one, and it runs. A file is taken once it has looked the same at two looks
//! in a row, so a half-written one is not. A file brings a version once: when
//! another was deployed over it since, a start of the host does not go back to it.
//! Taking a file away changes nothing: `plugin remove` does that, and a plugin
//! that was removed comes back at the next start if its file is still there.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DeployFrom, DeployOptions, DeployRequest, PluginControl};
use crate::error::{Classify, Retry};
use crate::limits::{COMPONENT_BYTES_MAX, PLUGINS_POLL, PLUGINS_RETRY_MAX};

/// How a deployment by a watched file begins to say so.
pub(super) const BY_DIRECTORY: &str = "directory: ";

/// Looks at a folder again and again.
#[derive(Debug)]
pub struct DirectoryWatcher {
    dir: PathBuf,
    interval: Duration,
    seen: BTreeMap<PathBuf, Seen>,
    /// Files that are tried again.
    pauses: BTreeMap<PathBuf, Pause>,
    /// Why the folder could not be read at the last look.
    unreadable: Option<ErrorKind>,
}

/// What a file looked like, and whether that has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    length: u64,
    modified: Option<SystemTime>,
    /// Another file may have been moved here, of the same size and time.
    inode: u64,
    taken: bool,
}

/// After a try that may do better next time.
#[derive(Clone, Copy, Debug)]
struct Pause {
    wait: Duration,
    until: Instant,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// It is dealt with until it changes.
    Done,
    /// The host could not deal with it just now.
    Later,
}

impl DirectoryWatcher {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            interval: PLUGINS_POLL,
            seen: BTreeMap::new(),
            pauses: BTreeMap::new(),
            unreadable: None,
        }
    }

    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Deploys what is there and what comes, until it is cancelled. A refused
    /// file is reported once and left until it changes; one that the host could
    /// not deal with just now is tried again.
    pub async fn run(mut self, control: Arc<dyn PluginControl>, cancel: CancellationToken) {
        loop {
            for path in self.look() {
                let before = self.pauses.remove(&path);
                let wait = next_wait(before.map(|pause| pause.wait), self.interval);
                let taken = deploy(&*control, &path, wait).await;
                if taken == Taken::Later
                    && let Some(seen) = self.seen.get_mut(&path)
                {
                    seen.taken = false;
                    self.pauses.insert(path, Pause { wait, until: Instant::now() + wait });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// The files that are to be taken now: new or changed, and as they were at the last look.
    pub fn look(&mut self) -> Vec<PathBuf> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                // Once, and not at every look until somebody mends it.
                if self.unreadable.replace(error.kind()) != Some(error.kind()) {
                    warn!(error.kind = "folder_unreadable", error.blame = "host", dir = %self.dir.display(), %error, "the plugins folder cannot be read");
                }
                return Vec::new();
            }
        };
        if self.unreadable.take().is_some() {
            info!(dir = %self.dir.display(), "the plugins folder can be read");
        }
        let mut found = BTreeMap::new();
        let mut ready = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::metadata(&path) else { continue };
            if path.extension().is_none_or(|extension| extension != "wasm") || !meta.is_file() {
                continue;
            }
            let modified = meta.modified().ok();
            let mut now = Seen { length: meta.len(), modified, inode: meta.ino(), taken: false };
            if let Some(before) = self.seen.get(&path)
                && *before == (Seen { taken: before.taken, ..now })
            {
                let pauses = self.pauses.get(&path).is_some_and(|pause| pause.until > Instant::now());
                now.taken = before.taken || !pauses;
                if !before.taken && !pauses {
                    ready.push(path.clone());
                }
            } else {
                self.pauses.remove(&path);
            }
            found.insert(path, now);
        }
        self.seen = found;
        self.pauses.retain(|path, _| self.seen.contains_key(path));
        ready.sort();
        ready
    }
}

/// A look first, and then twice as long each time.
fn next_wait(before: Option<Duration>, interval: Duration) -> Duration {
    before.map_or(interval, |before| before * 2).min(PLUGINS_RETRY_MAX)
}

/// Where it is worth another try, that is after a wait.
async fn deploy(control: &dyn PluginControl, path: &Path, wait: Duration) -> Taken {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let component = match fs::metadata(path) {
        Ok(meta) if meta.len() > COMPONENT_BYTES_MAX as u64 => {
            warn!(
                error.kind = "component_bytes_max",
                error.blame = "guest",
                file,
                bytes = meta.len(),
                component_bytes_max = COMPONENT_BYTES_MAX,
                "the component is too large"
            );
            return Taken::Done;
        }
        _ => match tokio::fs::read(path).await {
            Ok(component) => component,
            // It is not looked for any more once it is gone.
            Err(error) => {
                warn!(error.kind = "component_unreadable", error.blame = "host", file, %error, ?wait, "the component cannot be read; it is tried again");
                return Taken::Later;
            }
        },
    };
    let request = DeployRequest {
        component: component.into(),
        expected_name: None,
        expected_build: None,
        from: DeployFrom::Oldest,
        by: format!("{BY_DIRECTORY}{file}"),
        options: DeployOptions::default(),
        paused: false,
        settings: None,
        progress: None,
    };
    match control.deploy(request).await {
        Ok(status) => {
            info!(file, plugin.name = status.name, plugin.version = status.deployment.version, "plugin runs");
            Taken::Done
        }
        Err(error) if error.retry() == Retry::Never => {
            warn!(file, %error, error.kind = error.code(), error.blame = error.blame().as_str(), "component refused");
            Taken::Done
        }
        Err(error) => {
            warn!(file, %error, error.kind = error.code(), error.blame = error.blame().as_str(), ?wait, "the component could not be deployed; it is tried again");
            Taken::Later
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("test").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut waits = vec![next_wait(None, PLUGINS_POLL)];
        while waits.last().is_some_and(|last| *last < PLUGINS_RETRY_MAX) {
            waits.push(next_wait(waits.last().copied(), PLUGINS_POLL));
        }
        assert_eq!(waits[..4], [1, 2, 4, 8].map(|times| times * PLUGINS_POLL));
        assert_eq!(next_wait(waits.last().copied(), PLUGINS_POLL), PLUGINS_RETRY_MAX);
    }

    #[test]
    fn a_file_that_is_tried_again_rests_until_its_wait_is_over_or_it_changes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("a.wasm");
        fs::write(&path, "one").expect("ours");
        let mut watcher = DirectoryWatcher::new(dir.path());
        let later = |watcher: &mut DirectoryWatcher, wait: Duration| {
            watcher.seen.get_mut(&path).expect("it was seen").taken = false;
            watcher.pauses.insert(path.clone(), Pause { wait, until: Instant::now() + wait });
        };
        assert_eq!((watcher.look().len(), watcher.look().len()), (0, 1));
        later(&mut watcher, PLUGINS_RETRY_MAX);
        assert_eq!((watcher.look().len(), watcher.look().len()), (0, 0));
        later(&mut watcher, Duration::ZERO);
        assert_eq!((watcher.look().len(), watcher.look().len()), (1, 0));
        later(&mut watcher, PLUGINS_RETRY_MAX);
        fs::write(&path, "another").expect("ours");
        assert_eq!((watcher.look().len(), watcher.look().len()), (0, 1));
        later(&mut watcher, PLUGINS_RETRY_MAX);
        fs::remove_file(&path).expect("ours");
        assert!(watcher.look().is_empty() && watcher.pauses.is_empty());
    }

    #[test]
    fn a_folder_that_is_missing_is_told_once_for_each_time_it_goes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let plugins = dir.path().join("plugins");
        let said = Said::default();
        let writer = said.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut watcher = DirectoryWatcher::new(&plugins);
            for _ in 0..2 {
                (0..3).for_each(|_| assert!(watcher.look().is_empty()));
                fs::create_dir(&plugins).expect("ours");
                (0..3).for_each(|_| assert!(watcher.look().is_empty()));
                fs::remove_dir(&plugins).expect("ours");
            }
        });
        let said = String::from_utf8(said.0.lock().expect("test").clone()).expect("text");
        assert_eq!(said.matches("cannot be read").count(), 2, "{said}");
        assert_eq!(said.matches("folder can be read").count(), 2, "{said}");
    }
}
