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

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DeployFrom, DeployOptions, DeployRequest, PluginControl};
use crate::error::{Classify, Retry};
use crate::limits::{COMPONENT_BYTES_MAX, PLUGINS_POLL};

/// How a deployment by a watched file begins to say so.
pub(super) const BY_DIRECTORY: &str = "directory: ";

/// Looks at a folder again and again.
#[derive(Debug)]
pub struct DirectoryWatcher {
    dir: PathBuf,
    interval: Duration,
    seen: BTreeMap<PathBuf, Seen>,
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

impl DirectoryWatcher {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), interval: PLUGINS_POLL, seen: BTreeMap::new(), unreadable: None }
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
                let taken = deploy(&*control, &path).await;
                if let Some(seen) = self.seen.get_mut(&path) {
                    seen.taken = taken;
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
                now.taken = true;
                if !before.taken {
                    ready.push(path.clone());
                }
            }
            found.insert(path, now);
        }
        self.seen = found;
        ready.sort();
        ready
    }
}

/// Answers whether the file is dealt with.
async fn deploy(control: &dyn PluginControl, path: &Path) -> bool {
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
            return true;
        }
        _ => match tokio::fs::read(path).await {
            Ok(component) => component,
            Err(error) => {
                warn!(error.kind = "component_unreadable", error.blame = "host", file, %error, "the component cannot be read");
                return true;
            }
        },
    };
    let request = DeployRequest {
        component: component.into(),
        expected_name: None,
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
            true
        }
        Err(error) => {
            warn!(file, %error, error.kind = error.code(), error.blame = error.blame().as_str(), "component refused");
            error.retry() == Retry::Never
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
