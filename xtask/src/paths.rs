//! Where things lie.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace's folder: that of whoever runs this, who may share a build folder with the clone that it was built in.
pub(crate) fn workspace() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    // An `xtask` that is started without cargo knows only where it was built.
    let here =
        here.filter(|here| here.ends_with("xtask")).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    here.parent().map_or_else(|| here.clone(), Path::to_path_buf)
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
