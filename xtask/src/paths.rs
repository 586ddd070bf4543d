//! Where things lie.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.into(), Path::to_path_buf)
}

/// Build results that outlive the clone: a cold build takes minutes.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| cache().join("target"), PathBuf::from)
}

/// Where guests are built.
pub(crate) fn guest_builds() -> PathBuf {
    cache().join("guests")
}

/// This clone's components: tests and the demo take them from here.
pub(crate) fn guests() -> PathBuf {
    workspace().join("target/guests")
}

fn cache() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    // Without a home the clone is the only place there is.
    base.map_or_else(|| workspace().join("target/cache"), |base| base.join("millrace"))
}
