//! Where the built guests are.

use std::path::PathBuf;

/// The component of a guest crate or example, by name. `cargo xtask guests` builds them.
pub fn guest(name: &str) -> PathBuf {
    let file = format!("{}.wasm", name.replace('-', "_"));
    let dir = guests_dir();
    let found = [dir.join(&file), dir.join("examples").join(&file)].into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("{file} is not in {}: build the guests with `cargo xtask guests`", dir.display())
    })
}

/// `MILLRACE_GUESTS_DIR`, or where `cargo xtask guests` leaves them.
fn guests_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("MILLRACE_GUESTS_DIR") {
        return dir.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .expect("HOME or XDG_CACHE_HOME is set");
    cache.join("millrace/guests/wasm32-wasip2/plugin")
}
